/* SPDX-License-Identifier: Apache-2.0 */
/* Random inputs, comparisons, the counting allocator and the grids. */
#define _GNU_SOURCE
#include "support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- random ---- */

static void test_random_sequence(void **state)
{
    (void)state;
    /* splitmix64 of seed 1234567 is published with its first outputs; they are the state here. */
    struct support_random random;
    support_random_seed(&random, 1234567);
    assert_true(random.state[0] == UINT64_C(6457827717110365317));
    assert_true(random.state[1] == UINT64_C(3203168211198807973));
    assert_true(random.state[2] == UINT64_C(9817491932198370423));
    /* xoshiro256** of state 1, 2, 3, 4. */
    struct support_random small = {{1, 2, 3, 4}};
    assert_true(support_random_u64(&small) == 11520);
    assert_true(support_random_u64(&small) == 0);
    assert_true(support_random_u64(&small) == 1509978240);
    assert_true(support_random_u64(&small) == UINT64_C(1215971899390074240));
}

static void test_random_ranges(void **state)
{
    (void)state;
    enum { DRAWS = 70000 };
    struct support_random random;
    int64_t counts[7] = {0};
    double sum = 0.0;
    double squares = 0.0;
    support_random_seed(&random, 0);
    for (int i = 0; i < DRAWS; i++) {
        counts[support_random_below(&random, 7)]++;
        double uniform = support_random_uniform(&random);
        assert_true(uniform > 0.0 && uniform < 1.0);
        double normal = support_random_normal(&random);
        sum += normal;
        squares += normal * normal;
    }
    for (int i = 0; i < 7; i++) {
        assert_in_range(counts[i], DRAWS / 7 - 500, DRAWS / 7 + 500);
    }
    assert_true(fabs(sum / DRAWS) < 0.02);
    assert_true(fabs(squares / DRAWS - 1.0) < 0.03);
}

static void test_fill(void **state)
{
    (void)state;
    const enum ref_dtype dtypes[] = {REF_F64, REF_F32, REF_F16, REF_BF16, REF_E4M3};
    for (size_t d = 0; d < 5; d++) {
        unsigned char first[8 * 5000];
        unsigned char second[8 * 5000];
        struct support_random random;
        size_t bytes = 5000 * ref_dtype_bytes(dtypes[d]);
        support_random_seed(&random, 5);
        support_fill_normal(&random, dtypes[d], first, 5000, 0.01);
        support_random_seed(&random, 5);
        support_fill_normal(&random, dtypes[d], second, 5000, 0.01);
        assert_memory_equal(first, second, bytes);
        for (int64_t i = 0; i < 5000; i++) {
            double value = ref_load(dtypes[d], first, i);
            assert_true(value != 0.0 && fabs(value) <= 0.0625);
        }
    }
}

static void test_fill_ids(void **state)
{
    (void)state;
    int64_t ids[100 * 8];
    int32_t narrow[100 * 8];
    struct support_random random;
    support_random_seed(&random, 9);
    support_fill_ids(&random, ids, 100, 8, 8);
    for (int t = 0; t < 100; t++) {
        unsigned seen = 0;
        for (int j = 0; j < 8; j++) {
            seen |= 1u << ids[t * 8 + j];
        }
        assert_int_equal(seen, 255);
    }
    support_narrow_ids(ids, 800, narrow);
    assert_int_equal(narrow[799], ids[799]);
}

/* ---- compare ---- */

static void test_bit_difference(void **state)
{
    (void)state;
    const float zero[3] = {1.0f, 0.0f, 2.0f};
    const float minus_zero[3] = {1.0f, -0.0f, 2.0f};
    assert_int_equal(support_find_bit_difference(zero, zero, 3, 4), -1);
    assert_int_equal(support_find_bit_difference(zero, minus_zero, 3, 4), 1);
    assert_int_equal(support_find_bit_difference(zero, minus_zero, 1, 4), -1);
    assert_bits_equal(zero, zero, 3, sizeof(float));
}

static void test_outliers(void **state)
{
    (void)state;
    const double nan = (double)NAN;
    const double inf = (double)INFINITY;
    const double expected[5] = {1.0, 100.0, nan, inf, 0.0};
    double actual[5] = {1.0, 100.0, nan, inf, 0.0};
    const double tolerances[5] = {0.1, 0.0, 0.0, 0.0, 0.5};
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 5, tolerances, 0, 0), -1);
    actual[4] = 0.5;
    assert_all_within(expected, tolerances, REF_F64, actual, 5);
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 5, NULL, 0.1, 0.1), 4);
    actual[4] = nan;
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 5, tolerances, 9, 9), 4);
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 1, NULL, 0, nan), 0);
    actual[3] = -inf;
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 5, NULL, 9, 9), 3);
    actual[2] = 1.0;
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 5, NULL, 9, 9), 2);
    actual[1] = 110.5;
    assert_int_equal(support_find_outlier(expected, REF_F64, actual, 2, NULL, 0.1, 0.4), 1);
    assert_all_close(expected, REF_F64, actual, 2, 0.1, 0.6);
}

static void test_relative_l2(void **state)
{
    (void)state;
    const double expected[2] = {3.0, 4.0};
    const float actual[2] = {3.0f, 4.5f};
    const float broken[2] = {3.0f, NAN};
    const double zeros[2] = {0.0, 0.0};
    assert_true(fabs(support_relative_l2(expected, REF_F32, actual, 2) - 0.1) < 1e-15);
    assert_true(isinf(support_relative_l2(expected, REF_F32, broken, 2)));
    assert_true(isinf(support_relative_l2(zeros, REF_F32, actual, 2)));
    assert_true(support_relative_l2(zeros, REF_F64, zeros, 2) == 0.0);
    assert_relative_l2(expected, REF_F32, actual, 2, 0.11);
}

static void test_hash(void **state)
{
    (void)state;
    /* Published vectors of FNV-1a. */
    assert_true(support_hash(SUPPORT_HASH_INIT, "", 0) == UINT64_C(0xcbf29ce484222325));
    assert_true(support_hash(SUPPORT_HASH_INIT, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(support_hash(SUPPORT_HASH_INIT, "foobar", 6) == UINT64_C(0x85944171f73967e8));
    uint64_t first = support_hash(SUPPORT_HASH_INIT, "foo", 3);
    assert_true(support_hash(first, "bar", 3) == UINT64_C(0x85944171f73967e8));
}

/* The assertions must fail when the comparison does. These run as a group of their own, in a child
 * process that keeps quiet. */
static void fail_bits(void **state)
{
    (void)state;
    const uint16_t a[2] = {1, 2};
    const uint16_t b[2] = {1, 3};
    assert_bits_equal(a, b, 2, sizeof a[0]);
}

static void fail_close(void **state)
{
    (void)state;
    const double expected[2] = {1.0, 2.0};
    const float actual[2] = {1.0f, 2.5f};
    assert_all_close(expected, REF_F32, actual, 2, 0.1, 0.0);
}

static void fail_l2(void **state)
{
    (void)state;
    const double expected[2] = {1.0, 2.0};
    const float actual[2] = {1.0f, 2.5f};
    assert_relative_l2(expected, REF_F32, actual, 2, 0.01);
}

static void fail_guard(void **state)
{
    (void)state;
    struct support_guard guard;
    support_guard_init(&guard, 10, NULL);
    guard.data[10] = 0;
    assert_guard_intact(&guard);
}

static void test_assertions_fail(void **state)
{
    (void)state;
    const struct CMUnitTest must_fail[] = {
        cmocka_unit_test(fail_bits),
        cmocka_unit_test(fail_close),
        cmocka_unit_test(fail_l2),
        cmocka_unit_test(fail_guard),
    };
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (freopen("/dev/null", "w", stdout) == NULL ||
            freopen("/dev/null", "w", stderr) == NULL) {
            _exit(100);
        }
        _exit(cmocka_run_group_tests(must_fail, NULL, NULL));
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), sizeof must_fail / sizeof must_fail[0]);
}

/* ---- allocator ---- */

static void test_allocator(void **state)
{
    (void)state;
    struct support_allocator allocator;
    support_allocator_init(&allocator, 3);
    unsigned char *first = support_allocate(&allocator, 100, 256);
    void *second = support_allocate(&allocator, 0, 1);
    assert_null(support_allocate(&allocator, 10, 8));
    void *fourth = support_allocate(&allocator, 10, 8);
    assert_non_null(first);
    assert_non_null(second);
    assert_non_null(fourth);
    assert_int_equal((uintptr_t)first % 256, 0);
    assert_int_equal(first[99], 0xCB);
    assert_int_equal(allocator.num_calls, 4);
    assert_int_equal(allocator.num_live, 3);
    assert_int_equal(allocator.live_bytes, 110);

    support_free(&allocator, first, 99, 256);
    support_free(&allocator, first, 100, 128);
    support_free(&allocator, first + 1, 100, 256);
    assert_int_equal(allocator.num_bad_frees, 3);
    support_free(&allocator, first, 100, 256);
    support_free(&allocator, first, 100, 256);
    assert_int_equal(allocator.num_bad_frees, 4);
    support_free(&allocator, NULL, 5, 5);
    support_free(&allocator, second, 0, 1);
    assert_int_equal(allocator.num_live, 1);
    assert_int_equal(allocator.live_bytes, 10);
    assert_int_equal(allocator.peak_bytes, 110);
    support_allocator_finish(&allocator);
}

/* ---- grids ---- */

/* Whether some row has both levels. */
static bool has_pair(const struct support_grid *grid, int f, int level, int other, int other_level)
{
    for (int64_t row = 0; row < grid->num_rows; row++) {
        int picks[SUPPORT_GRID_MAX_FACTORS];
        support_grid_row(grid, row, picks);
        if (picks[f] == level && picks[other] == other_level) {
            return true;
        }
    }
    return false;
}

static int64_t count_missing_pairs(const struct support_grid *grid)
{
    int64_t num_missing = 0;
    for (int f = 0; f < grid->num_factors; f++) {
        for (int other = f + 1; other < grid->num_factors; other++) {
            for (int a = 0; a < grid->levels[f]; a++) {
                for (int b = 0; b < grid->levels[other]; b++) {
                    num_missing += !has_pair(grid, f, a, other, b);
                }
            }
        }
    }
    return num_missing;
}

static void test_pairwise(void **state)
{
    (void)state;
    const int levels[] = {6, 6, 4, 3, 5, 2, 3, 1};
    struct support_grid grid;
    support_grid_init_pairwise(&grid, levels, 8, NULL, NULL);
    assert_int_equal(count_missing_pairs(&grid), 0);
    assert_int_equal(grid.num_impossible_pairs, 0);
    assert_in_range(grid.num_rows, 36, 60); /* 36 is the least; the full grid has 12960 */

    struct support_grid again;
    support_grid_init_pairwise(&again, levels, 8, NULL, NULL);
    assert_int_equal(again.num_rows, grid.num_rows);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int a[8];
        int b[8];
        support_grid_row(&grid, row, a);
        support_grid_row(&again, row, b);
        assert_memory_equal(a, b, sizeof a);
    }
    support_grid_finish(&again);
    support_grid_finish(&grid);
}

/* Like top_k <= experts; factor 2 may be 0 only together with factor 0 at its last level. */
static bool is_legal(const int *row, void *user)
{
    (void)user;
    return row[1] <= row[0] && (row[2] != 0 || row[0] == 3);
}

static void test_pairwise_with_constraint(void **state)
{
    (void)state;
    const int levels[] = {4, 4, 3, 3};
    struct support_grid pairs;
    struct support_grid full;
    support_grid_init_full(&full, levels, 4, is_legal, NULL);
    support_grid_init_pairwise(&pairs, levels, 4, is_legal, NULL);
    for (int64_t row = 0; row < pairs.num_rows; row++) {
        int picks[4];
        support_grid_row(&pairs, row, picks);
        assert_true(is_legal(picks, NULL));
    }
    assert_true(pairs.num_rows < full.num_rows);
    assert_true(count_missing_pairs(&full) > 0);
    assert_int_equal(count_missing_pairs(&pairs), count_missing_pairs(&full));
    assert_int_equal(pairs.num_impossible_pairs, count_missing_pairs(&full));
    support_grid_finish(&pairs);
    support_grid_finish(&full);
}

static void test_full_grid_option(void **state)
{
    (void)state;
    const int levels[] = {3, 4, 5};
    const int single[] = {7};
    const char *given = getenv("MOE_TEST_FULL");
    char *kept = given != NULL ? strdup(given) : NULL;
    struct support_grid grid;
    setenv("MOE_TEST_FULL", "1", 1);
    support_grid_init(&grid, levels, 3, NULL, NULL);
    assert_int_equal(grid.num_rows, 60);
    support_grid_finish(&grid);
    setenv("MOE_TEST_FULL", "0", 1);
    assert_false(support_full_grids());
    support_grid_init(&grid, levels, 3, NULL, NULL);
    assert_in_range(grid.num_rows, 20, 30);
    support_grid_finish(&grid);
    support_grid_init(&grid, single, 1, NULL, NULL);
    assert_int_equal(grid.num_rows, 7);
    support_grid_finish(&grid);
    if (kept != NULL) {
        setenv("MOE_TEST_FULL", kept, 1);
    } else {
        unsetenv("MOE_TEST_FULL");
    }
    free(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_sequence),
        cmocka_unit_test(test_random_ranges),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_fill_ids),
        cmocka_unit_test(test_bit_difference),
        cmocka_unit_test(test_outliers),
        cmocka_unit_test(test_relative_l2),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_assertions_fail),
        cmocka_unit_test(test_allocator),
        cmocka_unit_test(test_pairwise),
        cmocka_unit_test(test_full_grid_option),
        cmocka_unit_test(test_pairwise_with_constraint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
