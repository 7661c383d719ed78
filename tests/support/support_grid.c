/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pairwise covering, greedily: take the first pair that is not covered yet, complete it factor by
 * factor with the level that covers most new pairs, and repeat. If the completion is illegal, walk
 * through all completions, those nearest to it first.
 */
#include "support_grid.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { UNSET = -1 };

struct cover {
    struct support_grid *grid;
    support_grid_legal *legal;
    void *user;
    int first_level[SUPPORT_GRID_MAX_FACTORS]; /* position of each factor's levels among all */
    int num_levels;
    bool *covered; /* [num_levels][num_levels] */
};

static void stop(const char *sentence)
{
    fprintf(stderr, "support_grid: %s\n", sentence);
    abort();
}

bool support_full_grids(void)
{
    const char *value = getenv("MOE_TEST_FULL");
    return value != NULL && strcmp(value, "1") == 0;
}

static void init_empty(struct support_grid *grid, const int *levels, int num_factors)
{
    if (num_factors < 1 || num_factors > SUPPORT_GRID_MAX_FACTORS) {
        stop("a grid has 1 to 16 factors");
    }
    memset(grid, 0, sizeof *grid);
    grid->num_factors = num_factors;
    for (int f = 0; f < num_factors; f++) {
        if (levels[f] < 1) {
            stop("a factor has at least one level");
        }
        grid->levels[f] = levels[f];
    }
}

static void append_row(struct support_grid *grid, const int *row)
{
    size_t num_factors = (size_t)grid->num_factors;
    size_t count = (size_t)grid->num_rows;
    if ((count & (count - 1)) == 0) { /* full at powers of two */
        size_t capacity = count > 0 ? 2 * count : 1;
        int *rows = realloc(grid->rows, capacity * num_factors * sizeof *rows);
        if (rows == NULL) {
            stop("out of memory");
        }
        grid->rows = rows;
    }
    memcpy(grid->rows + count * num_factors, row, num_factors * sizeof *row);
    grid->num_rows++;
}

/* Counts row up within levels, skipping fixed factors (NULL: none); false after the last. */
static bool advance(const struct support_grid *grid, const bool *fixed, int *row)
{
    for (int f = grid->num_factors - 1; f >= 0; f--) {
        if (fixed != NULL && fixed[f]) {
            continue;
        }
        row[f]++;
        if (row[f] < grid->levels[f]) {
            return true;
        }
        row[f] = 0;
    }
    return false;
}

void support_grid_init_full(struct support_grid *grid, const int *levels, int num_factors,
                            support_grid_legal *legal, void *user)
{
    int row[SUPPORT_GRID_MAX_FACTORS] = {0};
    init_empty(grid, levels, num_factors);
    do {
        if (legal == NULL || legal(row, user)) {
            append_row(grid, row);
        }
    } while (advance(grid, NULL, row));
}

static bool *covered_at(struct cover *cover, int f, int level, int other_f, int other_level)
{
    int a = cover->first_level[f] + level;
    int b = cover->first_level[other_f] + other_level;
    return f < other_f ? &cover->covered[a * cover->num_levels + b]
                       : &cover->covered[b * cover->num_levels + a];
}

/* Pairs not yet covered that level of factor f would make with the levels set in row. */
static int count_gain(struct cover *cover, const int *row, int f, int level)
{
    int gain = 0;
    for (int other = 0; other < cover->grid->num_factors; other++) {
        if (other != f && row[other] != UNSET && !*covered_at(cover, f, level, other, row[other])) {
            gain++;
        }
    }
    return gain;
}

static void complete_greedily(struct cover *cover, int *row)
{
    for (int f = 0; f < cover->grid->num_factors; f++) {
        int best = 0;
        if (row[f] != UNSET) {
            continue;
        }
        for (int level = 1; level < cover->grid->levels[f]; level++) {
            if (count_gain(cover, row, f, level) > count_gain(cover, row, f, best)) {
                best = level;
            }
        }
        row[f] = best;
    }
}

/* Makes row legal by changing factors that are not fixed; false if that is impossible. */
static bool repair(struct cover *cover, const bool *fixed, int *row)
{
    const struct support_grid *grid = cover->grid;
    int start[SUPPORT_GRID_MAX_FACTORS];
    int shift[SUPPORT_GRID_MAX_FACTORS] = {0};
    memcpy(start, row, sizeof start);
    do {
        for (int f = 0; f < grid->num_factors; f++) {
            row[f] = (start[f] + shift[f]) % grid->levels[f];
        }
        if (cover->legal == NULL || cover->legal(row, cover->user)) {
            return true;
        }
    } while (advance(grid, fixed, shift));
    return false;
}

static void mark_covered(struct cover *cover, const int *row)
{
    for (int f = 0; f < cover->grid->num_factors; f++) {
        for (int other = f + 1; other < cover->grid->num_factors; other++) {
            *covered_at(cover, f, row[f], other, row[other]) = true;
        }
    }
}

static void cover_pair(struct cover *cover, int f, int level, int other_f, int other_level)
{
    int row[SUPPORT_GRID_MAX_FACTORS];
    bool fixed[SUPPORT_GRID_MAX_FACTORS] = {false};
    if (*covered_at(cover, f, level, other_f, other_level)) {
        return;
    }
    for (int i = 0; i < SUPPORT_GRID_MAX_FACTORS; i++) {
        row[i] = UNSET;
    }
    row[f] = level;
    row[other_f] = other_level;
    fixed[f] = true;
    fixed[other_f] = true;
    complete_greedily(cover, row);
    if (repair(cover, fixed, row)) {
        append_row(cover->grid, row);
        mark_covered(cover, row);
    } else {
        cover->grid->num_impossible_pairs++;
    }
}

void support_grid_init_pairwise(struct support_grid *grid, const int *levels, int num_factors,
                                support_grid_legal *legal, void *user)
{
    struct cover cover = {.grid = grid, .legal = legal, .user = user};
    if (num_factors == 1) {
        support_grid_init_full(grid, levels, num_factors, legal, user);
        return;
    }
    init_empty(grid, levels, num_factors);
    for (int f = 0; f < num_factors; f++) {
        cover.first_level[f] = cover.num_levels;
        cover.num_levels += levels[f];
    }
    cover.covered = calloc((size_t)cover.num_levels * (size_t)cover.num_levels, sizeof(bool));
    if (cover.covered == NULL) {
        stop("out of memory");
    }
    for (int f = 0; f < num_factors; f++) {
        for (int other = f + 1; other < num_factors; other++) {
            for (int pair = 0; pair < levels[f] * levels[other]; pair++) {
                cover_pair(&cover, f, pair / levels[other], other, pair % levels[other]);
            }
        }
    }
    free(cover.covered);
}

void support_grid_init(struct support_grid *grid, const int *levels, int num_factors,
                       support_grid_legal *legal, void *user)
{
    if (support_full_grids()) {
        support_grid_init_full(grid, levels, num_factors, legal, user);
    } else {
        support_grid_init_pairwise(grid, levels, num_factors, legal, user);
    }
}

void support_grid_row(const struct support_grid *grid, int64_t row, int *picks)
{
    if (row < 0 || row >= grid->num_rows) {
        stop("no such row");
    }
    size_t num_factors = (size_t)grid->num_factors;
    memcpy(picks, grid->rows + (size_t)row * num_factors, num_factors * sizeof *picks);
}

void support_grid_finish(struct support_grid *grid)
{
    free(grid->rows);
    memset(grid, 0, sizeof *grid);
}
