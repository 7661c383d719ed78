/* SPDX-License-Identifier: Apache-2.0 */
/* align_block_size: every output bit for bit against the reference, for hostile ids, both filter
 * modes and tight capacities; the batched form for hostile counts. */
#include "kernel_routes.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int64_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int64_t topks[] = {1, 2, 8, 22};
static const int32_t block_sizes[] = {1, 16, 100, 128};
struct outputs {
    struct support_guard sorted_ids;
    struct support_guard expert_ids;
    struct support_guard post_pad;
    struct support_guard counts;
};

static void check_outputs(const struct kernel_routes *routes, const struct moe_op_align *op,
                          const struct outputs *outputs)
{
    int32_t *sorted = kernel_array(op->sorted_capacity, sizeof(*sorted));
    int32_t *experts = kernel_array(op->expert_capacity, sizeof(*experts));
    int64_t *counts = kernel_array(routes->filter.num_local, sizeof(*counts));
    const int64_t post_pad =
        ref_align_block_size(&routes->filter, routes->ids, routes->num_routes, op->block_size,
                             op->filter_mode == MOE_FILTER_KEEP, sorted, op->sorted_capacity,
                             experts, op->expert_capacity);
    ref_count_routes(&routes->filter, routes->ids, routes->num_routes, counts);
    assert_bits_equal(sorted, outputs->sorted_ids.data, op->sorted_capacity, 4);
    assert_bits_equal(experts, outputs->expert_ids.data, op->expert_capacity, 4);
    assert_int_equal(*op->num_tokens_post_pad, post_pad);
    for (int64_t e = 0; e < routes->filter.num_local; e++) {
        assert_int_equal(op->expert_counts[e], counts[e]);
    }
    assert_guard_intact(&outputs->sorted_ids);
    assert_guard_intact(&outputs->expert_ids);
    assert_guard_intact(&outputs->post_pad);
    assert_guard_intact(&outputs->counts);
    free(counts);
    free(experts);
    free(sorted);
}

static void poison_outputs(struct outputs *outputs)
{
    support_guard_poison(&outputs->sorted_ids);
    support_guard_poison(&outputs->expert_ids);
    support_guard_poison(&outputs->post_pad);
    support_guard_poison(&outputs->counts);
}

static void check_counts_only(const struct kernel_routes *routes, const struct moe_op_align *full,
                              struct outputs *outputs, const struct kernel_variant *variant)
{
    struct moe_op_align op = *full;
    int64_t *counts = kernel_array(routes->filter.num_local, sizeof(*counts));
    op.sorted_ids = NULL;
    op.expert_ids = NULL;
    op.num_tokens_post_pad = NULL;
    poison_outputs(outputs);
    kernel_run(&variant->kernels->align, &variant->tile, &op);
    ref_count_routes(&routes->filter, routes->ids, routes->num_routes, counts);
    for (int64_t e = 0; e < routes->filter.num_local; e++) {
        assert_int_equal(op.expert_counts[e], counts[e]);
    }
    assert_true(support_guard_is_poison(&outputs->sorted_ids, 0, outputs->sorted_ids.size));
    free(counts);
}

static void run_routes(const struct kernel_routes *routes, int32_t block_size, int32_t mode,
                       bool wide, int64_t slack)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ALIGN_BLOCK_SIZE, variants);
    const int64_t num_buckets = routes->filter.num_local + (mode == MOE_FILTER_KEEP ? 1 : 0);
    const int64_t tight = ref_align_capacity(routes->num_routes, num_buckets, block_size);
    struct support_guard ids = kernel_route_ids(routes, wide);
    struct moe_op_align op = {.num_routes = routes->num_routes,
                              .topk_ids = ids.data,
                              .ids_dtype = wide ? MOE_IDS_INT64 : MOE_IDS_INT32,
                              .block_size = block_size,
                              .filter_mode = mode,
                              .sentinel = (int32_t)routes->num_routes,
                              .sorted_capacity = tight + slack,
                              .expert_capacity = tight / block_size + slack};
    op.filter = kernel_filter(routes);
    struct outputs outputs = {kernel_output(op.sorted_capacity * 4, SUPPORT_POISON_INT),
                              kernel_output(op.expert_capacity * 4, SUPPORT_POISON_INT),
                              kernel_output(4, SUPPORT_POISON_INT),
                              kernel_output(routes->filter.num_local * 4, SUPPORT_POISON_INT)};
    op.sorted_ids = (int32_t *)(void *)outputs.sorted_ids.data;
    op.expert_ids = (int32_t *)(void *)outputs.expert_ids.data;
    op.num_tokens_post_pad = (int32_t *)(void *)outputs.post_pad.data;
    op.expert_counts = (int32_t *)(void *)outputs.counts.data;
    for (int v = 0; v < num_variants; v++) {
        poison_outputs(&outputs);
        kernel_run(&variants[v].kernels->align, &variants[v].tile, &op);
        check_outputs(routes, &op, &outputs);
    }
    check_counts_only(routes, &op, &outputs, &variants[num_variants - 1]);
    support_guard_finish(&outputs.sorted_ids);
    support_guard_finish(&outputs.expert_ids);
    support_guard_finish(&outputs.post_pad);
    support_guard_finish(&outputs.counts);
    support_guard_finish(&ids);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts),
                          KERNEL_COUNT(expert_counts),
                          KERNEL_COUNT(topks),
                          KERNEL_COUNT(block_sizes),
                          NUM_TRAFFICS,
                          NUM_FILTERINGS,
                          2 /* mode */,
                          2 /* wide */,
                          2 /* slack */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 1);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        struct kernel_routes routes;
        support_grid_row(&grid, row, pick);
        kernel_init_routes(&routes, &random, token_counts[pick[0]], expert_counts[pick[1]],
                           topks[pick[2]], (enum traffic)pick[4], (enum filtering)pick[5],
                           pick[7] == 1);
        run_routes(&routes, block_sizes[pick[3]], pick[6], pick[7] == 1, pick[8] * 37);
        kernel_finish_routes(&routes);
    }
    support_grid_finish(&grid);
}

/* Rows of one batched call: counts, some of them beyond both ends. */
static int32_t *make_batches(struct support_random *random, int64_t num_experts, int64_t max_rows)
{
    int32_t *counts = kernel_array(num_experts, sizeof(*counts));
    const int32_t hostile[] = {INT32_MIN, -1, 0, (int32_t)max_rows, (int32_t)max_rows + 1,
                               INT32_MAX};
    for (int64_t e = 0; e < num_experts; e++) {
        counts[e] = support_random_below(random, 3) == 0
                        ? hostile[support_random_below(random, 6)]
                        : (int32_t)support_random_below(random, (uint64_t)max_rows + 1);
    }
    return counts;
}

static void check_batched(const struct moe_op_align *op, const struct outputs *outputs)
{
    const int64_t num_experts = op->filter.num_experts;
    int32_t *sorted = kernel_array(op->sorted_capacity, sizeof(*sorted));
    int32_t *experts = kernel_array(op->expert_capacity, sizeof(*experts));
    const int64_t post_pad =
        ref_align_batched(op->batch_counts, num_experts, op->max_batch_rows, op->block_size, sorted,
                          op->sorted_capacity, experts, op->expert_capacity);
    assert_bits_equal(sorted, outputs->sorted_ids.data, op->sorted_capacity, 4);
    assert_bits_equal(experts, outputs->expert_ids.data, op->expert_capacity, 4);
    assert_int_equal(*op->num_tokens_post_pad, post_pad);
    for (int64_t e = 0; e < num_experts; e++) {
        const int64_t count = op->batch_counts[e] < 0 ? 0 : op->batch_counts[e];
        assert_int_equal(op->expert_counts[e],
                         count < op->max_batch_rows ? count : op->max_batch_rows);
    }
    assert_guard_intact(&outputs->sorted_ids);
    assert_guard_intact(&outputs->expert_ids);
    assert_guard_intact(&outputs->post_pad);
    assert_guard_intact(&outputs->counts);
    free(experts);
    free(sorted);
}

static void run_batched(struct support_random *random, int64_t num_experts, int64_t max_rows,
                        int32_t block_size)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ALIGN_BLOCK_SIZE, variants);
    int32_t *values = make_batches(random, num_experts, max_rows);
    struct support_guard counts = kernel_input(values, num_experts * 4, 4);
    const int64_t blocks = num_experts * ((max_rows + block_size - 1) / block_size);
    struct outputs outputs = {kernel_output((blocks * block_size + 5) * 4, SUPPORT_POISON_INT),
                              kernel_output((blocks + 5) * 4, SUPPORT_POISON_INT),
                              kernel_output(4, SUPPORT_POISON_INT),
                              kernel_output(num_experts * 4, SUPPORT_POISON_INT)};
    const struct moe_op_align op = {
        .num_routes = num_experts * max_rows,
        .sentinel = (int32_t)(num_experts * max_rows),
        .block_size = block_size,
        .filter = {.num_experts = (int32_t)num_experts},
        .filter_mode = MOE_FILTER_KEEP, /* not used, as the header says */
        .sorted_ids = (int32_t *)(void *)outputs.sorted_ids.data,
        .sorted_capacity = blocks * block_size + 5,
        .expert_ids = (int32_t *)(void *)outputs.expert_ids.data,
        .expert_capacity = blocks + 5,
        .num_tokens_post_pad = (int32_t *)(void *)outputs.post_pad.data,
        .expert_counts = (int32_t *)(void *)outputs.counts.data,
        .batch_counts = (const int32_t *)(const void *)counts.data,
        .max_batch_rows = max_rows,
    };
    for (int v = 0; v < num_variants; v++) {
        poison_outputs(&outputs);
        kernel_run(&variants[v].kernels->align, &variants[v].tile, &op);
        check_batched(&op, &outputs);
    }
    support_guard_finish(&outputs.sorted_ids);
    support_guard_finish(&outputs.expert_ids);
    support_guard_finish(&outputs.post_pad);
    support_guard_finish(&outputs.counts);
    support_guard_finish(&counts);
    free(values);
}

static void batches_match_reference(void **state)
{
    (void)state;
    const int64_t rows[] = {0, 1, 16, 100, 129};
    struct support_random random;
    support_random_seed(&random, 2);
    for (int e = 0; e < KERNEL_COUNT(expert_counts); e++) {
        for (int r = 0; r < KERNEL_COUNT(rows); r++) {
            for (int b = 0; b < KERNEL_COUNT(block_sizes); b++) {
                run_batched(&random, expert_counts[e], rows[r], block_sizes[b]);
            }
        }
    }
}

/* Padding keeps the sentinel of a call's full number of tokens when fewer run. */
static void sentinel_is_given(void **state)
{
    (void)state;
    const int32_t ids[] = {1, 0, 1};
    const int32_t expected[] = {1, 40, 0, 2, 40, 40};
    int32_t sorted[6], experts[3], post_pad = 0;
    const struct moe_op_align op = {.num_routes = 3,
                                    .topk_ids = ids,
                                    .block_size = 2,
                                    .filter = {.num_ids = 2, .expert_end = 2, .num_experts = 2},
                                    .sentinel = 40,
                                    .sorted_ids = sorted,
                                    .sorted_capacity = 6,
                                    .expert_ids = experts,
                                    .expert_capacity = 3,
                                    .num_tokens_post_pad = &post_pad};
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ALIGN_BLOCK_SIZE, variants);
    for (int v = 0; v < num_variants; v++) {
        memset(sorted, 0x55, sizeof(sorted));
        kernel_run(&variants[v].kernels->align, &variants[v].tile, &op);
        assert_bits_equal(expected, sorted, 6, 4);
        assert_int_equal(post_pad, 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(batches_match_reference),
        cmocka_unit_test(sentinel_is_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
