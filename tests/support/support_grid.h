/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test grids. Factors with a few levels each (T, E, k, dtype, ...) give either the full product, or
 * a small set of rows in which every pair of levels of every two factors occurs (and so every
 * level). Deterministic.
 *
 *     const int levels[] = {COUNT(tokens), COUNT(experts), COUNT(topk)};
 *     struct support_grid grid;
 *     support_grid_init(&grid, levels, 3, NULL, NULL);
 *     for (int64_t row = 0; row < grid.num_rows; row++) {
 *         int pick[3];
 *         support_grid_row(&grid, row, pick);
 *         run(tokens[pick[0]], experts[pick[1]], topk[pick[2]]);
 *     }
 *     support_grid_finish(&grid);
 */
#ifndef MOE_TESTS_SUPPORT_GRID_H
#define MOE_TESTS_SUPPORT_GRID_H

#include <stdbool.h>
#include <stdint.h>

enum { SUPPORT_GRID_MAX_FACTORS = 16 };

/* Says whether a complete row may run (for instance top_k <= experts). */
typedef bool support_grid_legal(const int *row, void *user);

struct support_grid {
    int num_factors;
    int levels[SUPPORT_GRID_MAX_FACTORS];
    int64_t num_rows;
    int64_t num_impossible_pairs; /* pairs that occur in no legal row */
    int *rows;                    /* private: [num_rows][num_factors] */
};

/* True if the environment has MOE_TEST_FULL=1: run full grids. */
bool support_full_grids(void);

/* The full product if support_full_grids(), else a pairwise covering set; illegal rows are left
 * out, and every pair that occurs in some legal row is covered. num_factors 1 .. 16, levels >= 1;
 * legal may be NULL. */
void support_grid_init(struct support_grid *grid, const int *levels, int num_factors,
                       support_grid_legal *legal, void *user);

/* The two kinds by name. */
void support_grid_init_full(struct support_grid *grid, const int *levels, int num_factors,
                            support_grid_legal *legal, void *user);
void support_grid_init_pairwise(struct support_grid *grid, const int *levels, int num_factors,
                                support_grid_legal *legal, void *user);

/* Copies the levels of one row. */
void support_grid_row(const struct support_grid *grid, int64_t row, int *picks);

/* Releases the rows. */
void support_grid_finish(struct support_grid *grid);

#endif
