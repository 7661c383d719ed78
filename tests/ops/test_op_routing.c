/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 900 */
/* align_block_size, align_capacity and ep_preprocess through the function table: every output bit
 * for bit against the reference, for hostile ids and all filters, with capacities that hosts use
 * and the smallest ones. */
#include "op_data.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int64_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int64_t topks[] = {1, 2, 8, 22};
static const int32_t block_sizes[] = {1, 16, 100, 128};
static const int32_t alignments[] = {0, 1, 4, 128};

enum capacity {
    CAPACITY_TIGHT,
    CAPACITY_SGLANG, /* numel + (E + 1) (bs - 1), in blocks rounded up */
    CAPACITY_VLLM,   /* numel + E (bs - 1), at most numel * bs, rounded up to blocks */
    NUM_CAPACITIES
};

struct route_case {
    int64_t num_tokens;
    int64_t num_experts;
    int64_t top_k;
    enum op_traffic traffic;
    enum op_filtering filtering;
    bool wide;
};

static struct moe_problem make_problem(const struct op_routes *routes)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = (int32_t)routes->ref.num_local;
    problem.num_experts_global = (int32_t)routes->num_experts;
    problem.top_k = (int32_t)routes->top_k;
    problem.max_tokens = routes->num_tokens > 0 ? routes->num_tokens : 1;
    return problem;
}

static void destroy_plan(const struct moe_plan *plan)
{
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)plan);
}

/* ---------------------------------------------------------------- align_block_size */

struct align_outputs {
    struct support_guard sorted_ids;
    struct support_guard expert_ids;
    struct support_guard post_pad;
    struct support_guard counts;
};

static void init_align_outputs(struct align_outputs *outputs, int64_t sorted, int64_t blocks,
                               int64_t num_local)
{
    outputs->sorted_ids = op_output(sorted * 4, 4, SUPPORT_POISON_INT);
    outputs->expert_ids = op_output(blocks * 4, 4, SUPPORT_POISON_INT);
    outputs->post_pad = op_output(4, 4, SUPPORT_POISON_INT);
    outputs->counts = op_output(num_local * 4, 4, SUPPORT_POISON_INT);
}

static void finish_align_outputs(struct align_outputs *outputs)
{
    support_guard_finish(&outputs->sorted_ids);
    support_guard_finish(&outputs->expert_ids);
    support_guard_finish(&outputs->post_pad);
    support_guard_finish(&outputs->counts);
}

static void check_align(const struct op_routes *routes, const struct moe_align_args *args)
{
    int32_t *sorted = op_array(args->sorted_capacity, sizeof(*sorted));
    int32_t *experts = op_array(args->expert_capacity, sizeof(*experts));
    const int64_t post_pad =
        ref_align_block_size(&routes->ref, routes->ids, routes->num_routes, args->block_size,
                             args->filter.mode == MOE_FILTER_KEEP, sorted, args->sorted_capacity,
                             experts, args->expert_capacity);
    assert_bits_equal(sorted, args->sorted_ids, args->sorted_capacity, 4);
    assert_bits_equal(experts, args->expert_ids, args->expert_capacity, 4);
    assert_int_equal(*args->num_tokens_post_pad, post_pad);
    free(experts);
    free(sorted);
}

static void check_counts(const struct op_routes *routes, const struct support_guard *counts)
{
    int64_t *expected = op_array(routes->ref.num_local, sizeof(*expected));
    ref_count_routes(&routes->ref, routes->ids, routes->num_routes, expected);
    for (int64_t e = 0; e < routes->ref.num_local; e++) {
        assert_int_equal(OP_INT32(*counts)[e], expected[e]);
    }
    free(expected);
}

/* The smallest capacity is the one the ABI's function and the reference name. */
static int64_t tight_capacity(const struct op_routes *routes, int32_t block_size, int32_t mode)
{
    int64_t sorted = -1, blocks = -1;
    struct moe_error error;
    MOE_INIT(error);
    const int64_t expected = ref_align_capacity(
        routes->num_routes, routes->ref.num_local + (mode == MOE_FILTER_KEEP), block_size);
    op_assert_status(MOE_STATUS_OK,
                     op_api()->align_capacity(routes->num_routes, (int32_t)routes->ref.num_local,
                                              block_size, mode, &sorted, &blocks, &error),
                     error);
    assert_int_equal(sorted, expected);
    assert_int_equal(blocks, expected / block_size);
    return expected;
}

static int64_t host_capacity(const struct op_routes *routes, enum capacity capacity,
                             int32_t block_size, int64_t tight)
{
    const int64_t numel = routes->num_routes, experts = routes->ref.num_local;
    const int64_t sglang = numel + (experts + 1) * (block_size - 1);
    int64_t vllm = numel + (experts + 1) * (block_size - 1);
    if (numel < experts + 1) {
        vllm = numel * block_size < vllm ? numel * block_size : vllm;
    }
    return capacity == CAPACITY_TIGHT ? tight : capacity == CAPACITY_SGLANG ? sglang : vllm;
}

/* One entry less of either is refused, and nothing is written. */
static void expect_small_refused(const struct op_watch *watch, const struct moe_align_args *args,
                                 int64_t tight)
{
    struct moe_align_args small = *args;
    small.sorted_capacity = tight - 1;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, watch, op_invoke_align_block_size, &small,
                      &small.call);
    small.sorted_capacity = args->sorted_capacity;
    small.expert_capacity = tight / args->block_size - 1;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, watch, op_invoke_align_block_size, &small,
                      &small.call);
}

static void run_align(const struct op_variant *variant, const struct op_routes *routes,
                      int32_t block_size, int32_t mode, enum capacity capacity)
{
    const struct moe_problem problem = make_problem(routes);
    const int64_t tight = tight_capacity(routes, block_size, mode);
    struct align_outputs outputs;
    struct moe_align_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = routes->num_tokens;
    args.topk_ids = routes->memory.data;
    args.ids_dtype = op_ids_dtype(routes);
    args.block_size = block_size;
    args.filter = routes->filter;
    args.filter.mode = mode;
    args.sorted_capacity = host_capacity(routes, capacity, block_size, tight);
    args.expert_capacity = capacity == CAPACITY_TIGHT
                               ? tight / block_size
                               : (args.sorted_capacity + block_size - 1) / block_size;
    init_align_outputs(&outputs, args.sorted_capacity, args.expert_capacity, routes->ref.num_local);
    struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE)),
        .op = MOE_OP_ALIGN_BLOCK_SIZE,
        .num_tokens = routes->num_tokens,
        .outputs = {&outputs.sorted_ids, &outputs.expert_ids, &outputs.post_pad, &outputs.counts},
        .num_outputs = 4};
    args.expert_counts = OP_INT32(outputs.counts);
    op_run(&watch, op_invoke_align_block_size, &args, &args.call); /* counts only */
    check_counts(routes, &outputs.counts);
    assert_true(support_guard_is_poison(&outputs.sorted_ids, 0, outputs.sorted_ids.size));
    support_guard_poison(&outputs.counts);
    args.sorted_ids = OP_INT32(outputs.sorted_ids);
    args.expert_ids = OP_INT32(outputs.expert_ids);
    args.num_tokens_post_pad = OP_INT32(outputs.post_pad);
    if (tight > 0) {
        expect_small_refused(&watch, &args, tight);
    }
    op_run(&watch, op_invoke_align_block_size, &args, &args.call);
    check_align(routes, &args);
    check_counts(routes, &outputs.counts);
    destroy_plan(watch.plan);
    finish_align_outputs(&outputs);
}

static void align_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {
        OP_COUNT(token_counts), OP_COUNT(expert_counts), OP_COUNT(topks), OP_COUNT(block_sizes),
        OP_NUM_TRAFFICS,        OP_NUM_FILTERINGS,       2 /* wide */,    2 /* mode */,
        NUM_CAPACITIES};
    struct op_grid grid;
    struct support_random random;
    support_random_seed(&random, 1);
    op_grid_init(&grid, levels, OP_COUNT(levels), 4, 4);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[OP_COUNT(levels)];
        struct op_routes routes;
        const bool runs = op_grid_row(&grid, row, pick);
        while (topks[pick[2]] > expert_counts[pick[1]]) {
            pick[2]--;
        }
        if (!runs) {
            continue;
        }
        op_routes_init(&routes, &random, token_counts[pick[0]], expert_counts[pick[1]],
                       topks[pick[2]], (enum op_traffic)pick[4], (enum op_filtering)pick[5],
                       pick[6] == 1);
        run_align(op_variant(0, (int32_t)(row % OP_MAX_THREADS) + 1), &routes, block_sizes[pick[3]],
                  pick[7] == 1 ? MOE_FILTER_KEEP : MOE_FILTER_DROP, (enum capacity)pick[8]);
        op_routes_finish(&routes);
    }
    op_grid_finish(&grid);
}

/* Block size 0 is that of the plan's gemm1. */
static void align_takes_the_plans_block_size(void **state)
{
    (void)state;
    struct support_random random;
    struct op_routes routes;
    support_random_seed(&random, 3);
    op_routes_init(&routes, &random, 17, 8, 2, OP_TRAFFIC_UNIFORM, OP_FILTER_NONE, false);
    for (int set = 0; set < op_plugin.num_tile_sets; set++) {
        const struct op_variant *variant = op_variant(set, 1);
        struct moe_problem problem = make_problem(&routes);
        struct moe_tile_info tile;
        struct align_outputs outputs;
        struct moe_align_args args;
        MOE_INIT(tile);
        problem.hidden = 16;
        problem.inter = 16;
        problem.activation = MOE_ACTIVATION_SILU;
        problem.tokens.dtype = problem.gate_up.dtype = problem.down.dtype = MOE_DTYPE_BF16;
        assert_int_equal(op_api()->tile_info(variant->tiles[MOE_OP_GEMM1], &tile, NULL),
                         MOE_STATUS_OK);
        init_align_outputs(&outputs, 4096, 4096, 8);
        MOE_INIT_CALL(args);
        args.call.num_tokens = routes.num_tokens;
        args.topk_ids = routes.memory.data;
        args.sorted_capacity = args.expert_capacity = 4096;
        args.sorted_ids = OP_INT32(outputs.sorted_ids);
        args.expert_ids = OP_INT32(outputs.expert_ids);
        args.num_tokens_post_pad = OP_INT32(outputs.post_pad);
        const struct op_watch watch = {
            .variant = variant,
            .plan = op_plan(variant->context, &problem, 0),
            .op = MOE_OP_ALIGN_BLOCK_SIZE,
            .num_tokens = routes.num_tokens,
            .outputs = {&outputs.sorted_ids, &outputs.expert_ids, &outputs.post_pad},
            .num_outputs = 3};
        op_run(&watch, op_invoke_align_block_size, &args, &args.call);
        args.block_size = tile.block_size_m;
        check_align(&routes, &args);
        destroy_plan(watch.plan);
        finish_align_outputs(&outputs);
    }
    op_routes_finish(&routes);
}

/* ---------------------------------------------------------------- align_capacity */

/* The largest padded size over every way to put `left` routes into `buckets` buckets. */
static int64_t worst_case(int64_t left, int64_t buckets, int64_t block_size)
{
    int64_t worst = 0;
    if (buckets == 0) {
        return left == 0 ? 0 : -1;
    }
    for (int64_t here = 0; here <= left; here++) {
        const int64_t rest = worst_case(left - here, buckets - 1, block_size);
        const int64_t padded = (here + block_size - 1) / block_size * block_size;
        worst = rest >= 0 && padded + rest > worst ? padded + rest : worst;
    }
    return worst;
}

static void align_capacity_is_the_worst_case(void **state)
{
    (void)state;
    for (int64_t routes = 0; routes <= 9; routes++) {
        for (int32_t experts = 1; experts <= 4; experts++) {
            for (int32_t block_size = 1; block_size <= 6; block_size++) {
                for (int32_t mode = MOE_FILTER_DROP; mode <= MOE_FILTER_KEEP; mode++) {
                    int64_t sorted = -1, blocks = -1;
                    const int64_t worst =
                        worst_case(routes, experts + (mode == MOE_FILTER_KEEP), block_size);
                    assert_int_equal(op_api()->align_capacity(routes, experts, block_size, mode,
                                                              &sorted, &blocks, NULL),
                                     MOE_STATUS_OK);
                    assert_int_equal(sorted, worst);
                    assert_int_equal(blocks, worst / block_size);
                }
            }
        }
    }
}

static void align_capacity_refuses_what_does_not_fit(void **state)
{
    (void)state;
    const struct {
        int64_t num_routes;
        int32_t num_experts;
        int32_t block_size;
        int32_t mode;
    } bad[] = {
        {-1, 8, 16, MOE_FILTER_DROP},
        {1, 0, 16, MOE_FILTER_DROP},
        {1, 8, 0, MOE_FILTER_DROP},
        {1, 8, 16, 2},
        {INT64_C(1) << 31, 8, 16, MOE_FILTER_DROP},
        {INT32_MAX, 1 << 24, 1 << 20, MOE_FILTER_KEEP},
        {INT64_MAX, INT32_MAX, INT32_MAX, MOE_FILTER_KEEP},
    };
    for (int i = 0; i < OP_COUNT(bad); i++) {
        int64_t sorted = -7, blocks = -7;
        struct moe_error error;
        MOE_INIT(error);
        op_assert_status(MOE_STATUS_INVALID_ARGUMENT,
                         op_api()->align_capacity(bad[i].num_routes, bad[i].num_experts,
                                                  bad[i].block_size, bad[i].mode, &sorted, &blocks,
                                                  &error),
                         error);
        assert_true(sorted == -7 && blocks == -7);
    }
}

/* ---------------------------------------------------------------- ep_preprocess */

struct ep_outputs {
    struct support_guard seg_indptr;
    struct support_guard src2dst;
    struct support_guard dst2src;
    struct support_guard reorder_ids;
    struct support_guard m_indices;
};

static void check_ep(const struct op_routes *routes, const struct moe_ep_preprocess_args *args)
{
    const int64_t alignment = args->segment_alignment > 0 ? args->segment_alignment : 1;
    struct ref_ep_layout layout = {
        .seg_indptr = op_array(routes->ref.num_local + 1, 8),
        .src2dst = op_array(routes->num_routes, 4),
        .dst2src = op_array(args->row_capacity, 4),
        .row_experts = op_array(args->row_capacity, 4),
        .rows_capacity = args->row_capacity,
        .reorder_ids = op_array(routes->num_routes, 4),
    };
    ref_ep_preprocess(&routes->ref, routes->ids, routes->num_routes, alignment, &layout);
    assert_bits_equal(layout.seg_indptr, args->seg_indptr, routes->ref.num_local + 1, 8);
    assert_bits_equal(layout.src2dst, args->src2dst, routes->num_routes, 4);
    if (args->dst2src != NULL) {
        assert_bits_equal(layout.dst2src, args->dst2src, args->row_capacity, 4);
        assert_bits_equal(layout.row_experts, args->m_indices, args->row_capacity, 4);
        assert_bits_equal(layout.reorder_ids, args->reorder_ids, routes->num_routes, 4);
    }
    free(layout.seg_indptr);
    free(layout.src2dst);
    free(layout.dst2src);
    free(layout.row_experts);
    free(layout.reorder_ids);
}

static void run_ep(const struct op_variant *variant, const struct op_routes *routes,
                   int32_t alignment, int64_t slack, bool wants_rows)
{
    const struct moe_problem problem = make_problem(routes);
    const int64_t step = alignment > 0 ? alignment : 1;
    /* Every expert with a route wastes step - 1 rows, in whole steps. */
    const int64_t tight = ref_align_capacity(routes->num_routes, routes->ref.num_local, step);
    struct moe_ep_preprocess_args args;
    struct ep_outputs outputs = {
        op_output((routes->ref.num_local + 1) * 8, 8, SUPPORT_POISON_INT),
        op_output(routes->num_routes * 4, 4, SUPPORT_POISON_INT),
        op_output((tight + slack) * 4, 4, SUPPORT_POISON_INT),
        op_output(routes->num_routes * 4, 4, SUPPORT_POISON_INT),
        op_output((tight + slack) * 4, 4, SUPPORT_POISON_INT),
    };
    MOE_INIT_CALL(args);
    args.call.num_tokens = routes->num_tokens;
    args.topk_ids = routes->memory.data;
    args.ids_dtype = op_ids_dtype(routes);
    args.segment_alignment = alignment;
    args.filter = routes->filter;
    args.seg_indptr = OP_INT64(outputs.seg_indptr);
    args.src2dst = OP_INT32(outputs.src2dst);
    args.row_capacity = tight + slack;
    if (wants_rows) {
        args.dst2src = OP_INT32(outputs.dst2src);
        args.reorder_ids = OP_INT32(outputs.reorder_ids);
        args.m_indices = OP_INT32(outputs.m_indices);
    }
    struct op_watch watch = {.variant = variant,
                             .plan =
                                 op_plan(variant->context, &problem, OP_BIT(MOE_OP_EP_PREPROCESS)),
                             .op = MOE_OP_EP_PREPROCESS,
                             .num_tokens = routes->num_tokens,
                             .outputs = {&outputs.seg_indptr, &outputs.src2dst, &outputs.dst2src,
                                         &outputs.reorder_ids, &outputs.m_indices},
                             .num_outputs = 5};
    if (wants_rows && tight > 0) {
        struct moe_ep_preprocess_args small = args;
        small.row_capacity = tight - 1;
        op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_ep_preprocess, &small,
                          &small.call);
    }
    op_run(&watch, op_invoke_ep_preprocess, &args, &args.call);
    check_ep(routes, &args);
    if (!wants_rows) {
        assert_true(support_guard_is_poison(&outputs.dst2src, 0, outputs.dst2src.size));
        assert_true(support_guard_is_poison(&outputs.m_indices, 0, outputs.m_indices.size));
        assert_true(support_guard_is_poison(&outputs.reorder_ids, 0, outputs.reorder_ids.size));
    }
    destroy_plan(watch.plan);
    support_guard_finish(&outputs.seg_indptr);
    support_guard_finish(&outputs.src2dst);
    support_guard_finish(&outputs.dst2src);
    support_guard_finish(&outputs.reorder_ids);
    support_guard_finish(&outputs.m_indices);
}

static void ep_preprocess_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {OP_COUNT(token_counts), OP_COUNT(expert_counts), OP_COUNT(topks),
                          OP_COUNT(alignments),   OP_NUM_TRAFFICS,         OP_NUM_FILTERINGS,
                          2 /* wide */,           2 /* slack */,           2 /* rows */};
    struct op_grid grid;
    struct support_random random;
    support_random_seed(&random, 2);
    op_grid_init(&grid, levels, OP_COUNT(levels), 4, 4);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[OP_COUNT(levels)];
        struct op_routes routes;
        const bool runs = op_grid_row(&grid, row, pick);
        while (topks[pick[2]] > expert_counts[pick[1]]) {
            pick[2]--;
        }
        if (!runs) {
            continue;
        }
        op_routes_init(&routes, &random, token_counts[pick[0]], expert_counts[pick[1]],
                       topks[pick[2]], (enum op_traffic)pick[4], (enum op_filtering)pick[5],
                       pick[6] == 1);
        run_ep(op_variant(0, (int32_t)(row % OP_MAX_THREADS) + 1), &routes, alignments[pick[3]],
               pick[7] * 5, pick[8] == 1);
        op_routes_finish(&routes);
    }
    op_grid_finish(&grid);
}

/* Filters that name experts outside the problem, and a layout that is half described. */
static void bad_filters_are_refused(void **state)
{
    (void)state;
    struct support_random random;
    struct op_routes routes;
    support_random_seed(&random, 4);
    op_routes_init(&routes, &random, 2, 8, 2, OP_TRAFFIC_UNIFORM, OP_FILTER_NONE, false);
    const struct moe_problem problem = make_problem(&routes);
    struct support_guard indptr = op_output(9 * 8, 8, SUPPORT_POISON_INT);
    struct support_guard src2dst = op_output(4 * 4, 4, SUPPORT_POISON_INT);
    const struct op_variant *variant = op_variant(0, 1);
    struct op_watch watch = {.plan =
                                 op_plan(variant->context, &problem, OP_BIT(MOE_OP_EP_PREPROCESS)),
                             .outputs = {&indptr, &src2dst},
                             .num_outputs = 2};
    struct moe_ep_preprocess_args good;
    MOE_INIT_CALL(good);
    good.call.num_tokens = 2;
    good.topk_ids = routes.memory.data;
    good.seg_indptr = OP_INT64(indptr);
    good.src2dst = OP_INT32(src2dst);
    struct moe_ep_preprocess_args bad[6] = {good, good, good, good, good, good};
    bad[0].filter.expert_end = 9;
    bad[1].filter.expert_begin = -1;
    bad[1].filter.expert_end = 4;
    bad[2].filter.expert_begin = 5;
    bad[2].filter.expert_end = 4;
    bad[3].filter.mode = MOE_FILTER_KEEP;
    bad[4].filter.reserved = 1;
    bad[5].segment_alignment = -1;
    for (int i = 0; i < OP_COUNT(bad); i++) {
        op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_ep_preprocess, &bad[i],
                          &bad[i].call);
    }
    struct moe_ep_preprocess_args masked = good;
    masked.max_masked_rows = 4;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_ep_preprocess, &masked,
                      &masked.call);
    op_expect_success(&watch, op_invoke_ep_preprocess, &good, &good.call);
    destroy_plan(watch.plan);
    support_guard_finish(&src2dst);
    support_guard_finish(&indptr);
    op_routes_finish(&routes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(align_matches_reference),
        cmocka_unit_test(align_takes_the_plans_block_size),
        cmocka_unit_test(align_capacity_is_the_worst_case),
        cmocka_unit_test(align_capacity_refuses_what_does_not_fit),
        cmocka_unit_test(ep_preprocess_matches_reference),
        cmocka_unit_test(bad_filters_are_refused),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
