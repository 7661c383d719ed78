/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 900 */
/* pre_reorder, post_reorder and sum_reduce through the function table: against the reference, the
 * same bits with every tile and number of threads, strides, in place, hostile indices. */
#include "op_data.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int64_t topks[] = {1, 2, 8, 22};
static const int64_t hiddens[] = {1, 33, 40, 72, 100, 200};
enum { NUM_EXPERTS = 60 };

static struct moe_problem make_problem(int64_t num_tokens, int64_t top_k, int64_t hidden,
                                       int32_t dtype)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = NUM_EXPERTS;
    problem.top_k = (int32_t)top_k;
    problem.hidden = (int32_t)hidden;
    problem.tokens.dtype = dtype;
    problem.max_tokens = num_tokens > 0 ? num_tokens : 1;
    return problem;
}

static void destroy_plan(const struct moe_plan *plan)
{
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)plan);
}

/* src2dst of random routes: a row per local route, and those left out are a mix of negative
 * numbers. */
struct mapping {
    struct support_guard src2dst;
    int64_t num_rows;
};

static void make_mapping(struct mapping *mapping, struct support_random *random, int64_t num_tokens,
                         int64_t top_k, enum op_traffic traffic)
{
    struct op_routes routes;
    op_routes_init(&routes, random, num_tokens, NUM_EXPERTS, top_k, traffic, OP_FILTER_NONE, false);
    int32_t *src2dst = op_array(routes.num_routes, 4);
    const struct ref_ep_layout layout = {.src2dst = src2dst};
    mapping->num_rows = ref_ep_preprocess(&routes.ref, routes.ids, routes.num_routes, 1, &layout);
    for (int64_t route = 0; route < routes.num_routes; route += 3) {
        src2dst[route] = src2dst[route] < 0 ? INT32_MIN : src2dst[route];
    }
    mapping->src2dst = op_input(src2dst, routes.num_routes * 4, 4);
    free(src2dst);
    op_routes_finish(&routes);
}

/* ---------------------------------------------------------------- pre_reorder */

struct reorder_case {
    int64_t num_tokens;
    int64_t top_k;
    int64_t hidden;
    int32_t dtype;
    enum op_traffic traffic;
    int64_t gap;
    int64_t num_spare; /* rows that are nobody's */
};

static void run_pre_reorder(const struct op_variant *variant, const struct reorder_case *test,
                            const struct op_tensor *tokens, const struct mapping *mapping)
{
    const struct moe_problem problem =
        make_problem(test->num_tokens, test->top_k, test->hidden, test->dtype);
    const size_t bytes = op_dtype_bytes(test->dtype);
    const int64_t num_rows = mapping->num_rows + test->num_spare;
    const int64_t stride = test->hidden + test->gap;
    const int32_t *src2dst = OP_INT32(mapping->src2dst);
    struct support_guard rows = op_output(num_rows * stride * (int64_t)bytes, bytes, 0xA5);
    struct moe_pre_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = test->num_tokens;
    args.tokens = tokens->memory.data;
    args.token_stride = tokens->stride;
    args.src2dst = src2dst;
    args.rows = rows.data;
    args.row_stride = stride;
    args.num_rows = num_rows;
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_PRE_REORDER)),
        .op = MOE_OP_PRE_REORDER,
        .num_tokens = test->num_tokens,
        .outputs = {&rows},
        .num_outputs = 1};
    op_run(&watch, op_invoke_pre_reorder, &args, &args.call);
    size_t num_written = 0;
    for (int64_t route = 0; route < test->num_tokens * test->top_k; route++) {
        if (src2dst[route] >= 0) {
            const unsigned char *token =
                tokens->memory.data + (size_t)(route / test->top_k * tokens->stride) * bytes;
            unsigned char *row = rows.data + (size_t)(src2dst[route] * stride) * bytes;
            assert_bits_equal(token, row, test->hidden, bytes);
            memset(row, 0xA5, (size_t)test->hidden * bytes);
            num_written++;
        }
    }
    /* Every other byte still holds poison: gaps and rows that nobody goes to. */
    assert_true(support_guard_is_poison(&rows, 0, rows.size));
    assert_int_equal(num_written, mapping->num_rows);
    destroy_plan(watch.plan);
    support_guard_finish(&rows);
}

static void pre_reorder_copies_every_route(void **state)
{
    (void)state;
    const int levels[] = {OP_COUNT(token_counts),
                          OP_COUNT(topks),
                          OP_COUNT(hiddens),
                          OP_COUNT(op_dtypes),
                          OP_NUM_TRAFFICS,
                          2 /* gap */,
                          2 /* spare */};
    struct op_grid grid;
    struct support_random random;
    support_random_seed(&random, 1);
    op_grid_init(&grid, levels, OP_COUNT(levels), 4, 4);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[OP_COUNT(levels)];
        const struct op_variant *variants[OP_MAX_VARIANTS];
        struct op_tensor tokens;
        struct mapping mapping;
        const bool runs = op_grid_row(&grid, row, pick);
        const struct reorder_case test = {
            token_counts[pick[0]],    topks[pick[1]], hiddens[pick[2]], op_dtypes[pick[3]],
            (enum op_traffic)pick[4], 3 * pick[5],    2 * pick[6]};
        if (!runs) {
            continue;
        }
        const int num_variants = op_list_variants(row, variants);
        op_tensor_init(&tokens, &random, test.dtype, test.num_tokens, test.hidden, test.gap, 1.0);
        make_mapping(&mapping, &random, test.num_tokens, test.top_k, test.traffic);
        for (int v = 0; v < num_variants; v++) {
            run_pre_reorder(variants[v], &test, &tokens, &mapping);
        }
        support_guard_finish(&mapping.src2dst);
        op_tensor_finish(&tokens);
    }
    op_grid_finish(&grid);
}

/* ---------------------------------------------------------------- post_reorder, sum_reduce */

enum extra { EXTRA_NONE, EXTRA_SHARED, EXTRA_SHARED_FACTOR, NUM_EXTRAS };
enum target { TARGET_APART, TARGET_RESIDUAL, TARGET_SHARED, NUM_TARGETS };

struct combine_case {
    struct reorder_case base;
    enum extra extra;
    enum target target;
    bool has_weights;
    bool has_residual;
    bool is_sum; /* sum_reduce */
    float scaling;
};

struct combine_data {
    struct mapping mapping;
    struct op_tensor rows;
    struct op_tensor weights;
    struct op_tensor shared;
    struct op_tensor factor;
    struct op_tensor residual;
};

static void make_combine(struct combine_data *data, struct support_random *random,
                         const struct combine_case *test)
{
    const int64_t T = test->base.num_tokens, H = test->base.hidden, k = test->base.top_k;
    const int32_t dtype = test->base.dtype;
    make_mapping(&data->mapping, random, T, k, test->base.traffic);
    op_tensor_init(&data->rows, random, dtype,
                   test->is_sum ? T * k : data->mapping.num_rows + test->base.num_spare, H,
                   test->is_sum ? 0 : test->base.gap, 1.0);
    op_tensor_init(&data->weights, random, MOE_DTYPE_FP32, T, k, 0, 0.5);
    op_tensor_init(&data->shared, random, dtype, T, H, test->base.gap, 1.0);
    op_tensor_init(&data->factor, random, MOE_DTYPE_FP32, 1, T, 0, 0.5);
    op_tensor_init(&data->residual, random, dtype, T, H, test->base.gap, 1.0);
}

static void free_combine(struct combine_data *data)
{
    support_guard_finish(&data->mapping.src2dst);
    op_tensor_finish(&data->rows);
    op_tensor_finish(&data->weights);
    op_tensor_finish(&data->shared);
    op_tensor_finish(&data->factor);
    op_tensor_finish(&data->residual);
}

static struct moe_problem combine_problem(const struct combine_case *test)
{
    struct moe_problem problem =
        make_problem(test->base.num_tokens, test->base.top_k, test->base.hidden, test->base.dtype);
    problem.output_dtype = test->base.dtype;
    problem.tokens.dtype = MOE_DTYPE_FP32; /* not used: the rows are outputs */
    problem.routed_scaling = test->scaling;
    problem.scaling_on = test->scaling != 0.0f ? MOE_SCALING_OUTPUT : MOE_SCALING_NONE;
    return problem;
}

static void run_sum(const struct op_variant *variant, const struct combine_case *test,
                    const struct combine_data *data, struct support_guard *output, int64_t stride)
{
    const struct moe_problem problem = combine_problem(test);
    struct moe_sum_reduce_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = test->base.num_tokens;
    args.input = data->rows.memory.data;
    args.output = output->data;
    args.output_stride = stride;
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_SUM_REDUCE)),
        .op = MOE_OP_SUM_REDUCE,
        .num_tokens = test->base.num_tokens,
        .outputs = {output},
        .num_outputs = 1};
    op_run(&watch, op_invoke_sum_reduce, &args, &args.call);
    destroy_plan(watch.plan);
}

static void run_post_reorder(const struct op_variant *variant, const struct combine_case *test,
                             const struct combine_data *data, struct support_guard *output,
                             int64_t stride)
{
    const struct moe_problem problem = combine_problem(test);
    struct moe_post_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = test->base.num_tokens;
    args.rows = data->rows.memory.data;
    args.row_stride = data->rows.stride;
    args.num_rows = data->rows.num_rows;
    args.src2dst = OP_INT32(data->mapping.src2dst);
    args.topk_weights = test->has_weights ? OP_FLOAT(data->weights.memory) : NULL;
    args.shared = test->extra != EXTRA_NONE ? data->shared.memory.data : NULL;
    args.shared_stride = data->shared.stride;
    args.shared_factor = test->extra == EXTRA_SHARED_FACTOR ? OP_FLOAT(data->factor.memory) : NULL;
    args.residual = test->has_residual ? data->residual.memory.data : NULL;
    args.residual_stride = data->residual.stride;
    args.output = output->data;
    args.output_stride = stride;
    if (test->target == TARGET_RESIDUAL && test->has_residual) {
        memcpy(output->data, data->residual.memory.data, data->residual.memory.size);
        args.residual = output->data;
    } else if (test->target == TARGET_SHARED && test->extra != EXTRA_NONE) {
        memcpy(output->data, data->shared.memory.data, data->shared.memory.size);
        args.shared = output->data;
    }
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_POST_REORDER)),
        .op = MOE_OP_POST_REORDER,
        .num_tokens = test->base.num_tokens,
        .outputs = {output},
        .num_outputs = 1};
    op_run(&watch, op_invoke_post_reorder, &args, &args.call);
    destroy_plan(watch.plan);
}

/* The output of one variant, packed. */
static void run_combine(const struct op_variant *variant, const struct combine_case *test,
                        const struct combine_data *data, void *packed)
{
    const size_t bytes = op_dtype_bytes(test->base.dtype);
    const int64_t T = test->base.num_tokens, H = test->base.hidden;
    const int64_t stride = H + test->base.gap;
    const int64_t count = T > 0 ? T * stride - test->base.gap : 0;
    struct support_guard output = op_output(count * (int64_t)bytes, bytes, SUPPORT_POISON_FLOAT);
    if (test->is_sum) {
        run_sum(variant, test, data, &output, stride);
    } else {
        run_post_reorder(variant, test, data, &output, stride);
    }
    op_pack_rows(&output, T, H, stride, bytes, packed);
    support_guard_finish(&output);
}

static void check_combine(const struct combine_case *test, const struct combine_data *data,
                          const void *packed)
{
    const int64_t T = test->base.num_tokens, H = test->base.hidden, k = test->base.top_k;
    const enum ref_dtype dtype = op_ref_dtype(test->base.dtype);
    const double scaling = test->scaling != 0.0f ? (double)test->scaling : 1.0;
    double *expected = op_array(T * H, sizeof(double));
    double *tolerance = op_array(T * H, sizeof(double));
    const struct ref_post_reorder combine = {
        .rows = data->rows.values,
        .src2dst = OP_INT32(data->mapping.src2dst),
        .weights = test->has_weights ? data->weights.values : NULL,
        .num_tokens = T,
        .top_k = k,
        .hidden = H,
        .scaling_factor = scaling,
        .shared = test->extra != EXTRA_NONE ? data->shared.values : NULL,
        .shared_factor = test->extra == EXTRA_SHARED_FACTOR ? data->factor.values : NULL,
        .residual = test->has_residual ? data->residual.values : NULL,
        .out_dtype = REF_F64,
        .out = expected,
        .sum_abs = tolerance,
    };
    if (test->is_sum) {
        ref_sum_reduce(data->rows.values, T, k, H, scaling, REF_F64, expected, tolerance);
    } else {
        ref_post_reorder(&combine);
    }
    for (int64_t i = 0; i < T * H; i++) { /* k slots, scaling, shared, residual */
        tolerance[i] = ref_gemm_tolerance(k + 3, REF_F32, dtype, tolerance[i], expected[i]);
    }
    assert_all_within(expected, tolerance, dtype, packed, T * H);
    free(tolerance);
    free(expected);
}

static void check_combine_case(const struct combine_case *test, int64_t turn)
{
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    const size_t bytes = op_dtype_bytes(test->base.dtype);
    const int64_t count = test->base.num_tokens * test->base.hidden;
    struct support_random random;
    struct combine_data data;
    support_random_seed(&random, (uint64_t)turn + 9);
    make_combine(&data, &random, test);
    unsigned char *first = op_array(count, bytes);
    unsigned char *other = op_array(count, bytes);
    run_combine(variants[0], test, &data, first);
    check_combine(test, &data, first);
    for (int v = 1; v < num_variants; v++) {
        run_combine(variants[v], test, &data, other);
        assert_bits_equal(first, other, count, bytes);
    }
    struct combine_case apart = *test;
    apart.target = TARGET_APART;
    run_combine(variants[0], &apart, &data, other);
    assert_bits_equal(first, other, count, bytes);
    free(other);
    free(first);
    free_combine(&data);
}

static void combine_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {
        OP_COUNT(token_counts), OP_COUNT(topks),  OP_COUNT(hiddens),  OP_COUNT(op_dtypes),
        OP_NUM_TRAFFICS,        NUM_EXTRAS,       NUM_TARGETS,        2 /* gap */,
        2 /* weights */,        2 /* residual */, 3 /* sum, spare */, 2 /* scaling */};
    struct op_grid grid;
    op_grid_init(&grid, levels, OP_COUNT(levels), 4, 4);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[OP_COUNT(levels)];
        const bool runs = op_grid_row(&grid, row, pick);
        const struct combine_case test = {
            .base = {token_counts[pick[0]], topks[pick[1]], hiddens[pick[2]], op_dtypes[pick[3]],
                     (enum op_traffic)pick[4], 3 * pick[7], 2 * (pick[10] == 1)},
            .extra = (enum extra)pick[5],
            .target = (enum target)pick[6],
            .has_weights = pick[8] == 1,
            .has_residual = pick[9] == 1,
            .is_sum = pick[10] == 2,
            .scaling = pick[11] == 1 ? 2.5f : 0.0f,
        };
        if (runs) {
            check_combine_case(&test, row);
        }
    }
    op_grid_finish(&grid);
}

/* ---------------------------------------------------------------- refusals */

static void bad_rows_are_refused(void **state)
{
    (void)state;
    const struct op_variant *variant = op_variant(0, 1);
    const struct moe_problem problem = make_problem(2, 2, 8, MOE_DTYPE_FP32);
    struct support_guard output = op_output(4 * 8 * 4, 4, SUPPORT_POISON_FLOAT);
    float values[4 * 8] = {0};
    const int32_t beyond[] = {0, 1, 2, 4}, fine[] = {3, 2, 1, 0};
    const struct op_watch watch = {
        .plan = op_plan(variant->context, &problem,
                        OP_BIT(MOE_OP_PRE_REORDER) | OP_BIT(MOE_OP_POST_REORDER)),
        .outputs = {&output},
        .num_outputs = 1};
    struct moe_pre_reorder_args pre;
    MOE_INIT_CALL(pre);
    pre.call.num_tokens = 2;
    pre.tokens = values;
    pre.src2dst = beyond;
    pre.rows = output.data;
    pre.num_rows = 4;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_pre_reorder, &pre, &pre.call);
    pre.src2dst = fine;
    pre.tokens = output.data; /* overlaps */
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_pre_reorder, &pre, &pre.call);
    pre.tokens = values;
    pre.output_dtype = MOE_DTYPE_FP8_E4M3;
    op_expect_refusal(MOE_STATUS_UNSUPPORTED, &watch, op_invoke_pre_reorder, &pre, &pre.call);
    pre.output_dtype = 0;
    op_expect_success(&watch, op_invoke_pre_reorder, &pre, &pre.call);

    struct moe_post_reorder_args post;
    MOE_INIT_CALL(post);
    post.call.num_tokens = 2;
    post.rows = values;
    post.num_rows = 4;
    post.src2dst = beyond;
    post.output = output.data;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_post_reorder, &post,
                      &post.call);
    post.src2dst = fine;
    post.output = values; /* overlaps rows */
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_post_reorder, &post,
                      &post.call);
    post.output = output.data;
    post.residual = output.data + 4; /* not the same rows */
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_post_reorder, &post,
                      &post.call);
    post.residual = NULL;
    post.topk_weights = (const float *)(const void *)(output.data + 4); /* overlaps */
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_post_reorder, &post,
                      &post.call);
    post.topk_weights = NULL;
    post.src2dst = (const int32_t *)(const void *)output.data; /* overlaps */
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_post_reorder, &post,
                      &post.call);
    post.src2dst = fine;
    post.shared_factor = values; /* of what? */
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_post_reorder, &post,
                      &post.call);
    post.shared_factor = NULL;
    op_expect_success(&watch, op_invoke_post_reorder, &post, &post.call);
    destroy_plan(watch.plan);
    support_guard_finish(&output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pre_reorder_copies_every_route),
        cmocka_unit_test(combine_matches_reference),
        cmocka_unit_test(bad_rows_are_refused),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
