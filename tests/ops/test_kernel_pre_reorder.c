/* SPDX-License-Identifier: Apache-2.0 */
/* pre_reorder: rows bit for bit the tokens they came from, every other byte untouched, destinations
 * out of range skipped. */
#include "kernel_run.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 300};
static const int64_t hiddens[] = {1, 7, 32, 129, 1024};
static const int64_t topks[] = {1, 2, 8, 22};
static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16};

/* A random permutation of rows with gaps, and destinations that are nobody's. */
static void make_src2dst(struct support_random *random, int32_t *src2dst, int64_t num_routes,
                         int64_t num_rows)
{
    const int32_t nowhere[] = {-1, INT32_MIN, (int32_t)num_rows, INT32_MAX};
    for (int64_t i = 0; i < num_routes; i++) {
        src2dst[i] = (int32_t)i;
    }
    for (int64_t i = num_routes - 1; i > 0; i--) {
        const int64_t other = (int64_t)support_random_below(random, (uint64_t)i + 1);
        const int32_t swapped = src2dst[i];
        src2dst[i] = src2dst[other];
        src2dst[other] = swapped;
    }
    for (int64_t i = 0; i < num_routes; i++) {
        if (support_random_below(random, 3) == 0) {
            src2dst[i] = nowhere[support_random_below(random, 4)];
        }
    }
}

static void run_case(struct support_random *random, int64_t num_tokens, int64_t hidden,
                     int64_t top_k, enum ref_dtype dtype, int64_t padding)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_PRE_REORDER, variants);
    const int64_t bytes = (int64_t)ref_dtype_bytes(dtype);
    const int64_t num_routes = num_tokens * top_k;
    const int64_t num_rows = num_routes + 2;
    const int64_t token_stride = hidden + padding;
    const int64_t row_stride = hidden + 2 * padding;
    const int64_t token_elements = num_tokens == 0 ? 0 : (num_tokens - 1) * token_stride + hidden;
    int32_t *src2dst = kernel_array(num_routes, sizeof(*src2dst));
    unsigned char *expected = kernel_array(num_rows * row_stride * bytes, 1);
    struct support_guard tokens = kernel_input(NULL, token_elements * bytes, (size_t)bytes);
    struct support_guard rows = kernel_output(num_rows * row_stride * bytes, SUPPORT_POISON_FLOAT);
    for (int64_t i = 0; i < token_elements * bytes; i++) {
        tokens.data[i] = (unsigned char)support_random_below(random, 256); /* all bit patterns */
    }
    make_src2dst(random, src2dst, num_routes, num_rows);
    memset(expected, SUPPORT_POISON_FLOAT, (size_t)(num_rows * row_stride * bytes));
    for (int64_t route = 0; route < num_routes; route++) {
        if (src2dst[route] >= 0 && src2dst[route] < num_rows) {
            memcpy(expected + src2dst[route] * row_stride * bytes,
                   tokens.data + route / top_k * token_stride * bytes, (size_t)(hidden * bytes));
        }
    }
    struct moe_op_pre_reorder op = {.num_tokens = num_tokens,
                                    .top_k = (int32_t)top_k,
                                    .hidden = (int32_t)hidden,
                                    .dtype = kernel_dtype(dtype),
                                    .tokens = tokens.data,
                                    .token_stride = token_stride,
                                    .src2dst = src2dst,
                                    .rows = rows.data,
                                    .row_stride = row_stride,
                                    .num_rows = num_rows};
    for (int v = 0; v < 2 * num_variants; v++) {
        const struct kernel_variant *variant = &variants[v / 2];
        op.streams = v % 2;
        support_guard_poison(&rows);
        kernel_run(&variant->kernels->pre_reorder, &variant->tile, &op);
        assert_bits_equal(expected, rows.data, num_rows * row_stride * bytes, 1);
        assert_guard_intact(&rows);
    }
    support_guard_finish(&rows);
    support_guard_finish(&tokens);
    free(expected);
    free(src2dst);
}

static void grid_copies_exactly(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts), KERNEL_COUNT(hiddens), KERNEL_COUNT(topks),
                          KERNEL_COUNT(dtypes), 2 /* padding */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 3);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        run_case(&random, token_counts[pick[0]], hiddens[pick[1]], topks[pick[2]], dtypes[pick[3]],
                 pick[4] * 5);
    }
    support_grid_finish(&grid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_copies_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
