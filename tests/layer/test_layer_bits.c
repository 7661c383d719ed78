/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 300 */
/* What must not change a bit of a layer: memory layout of the weights, chunks of a capped
 * workspace, the batch around a token, running it as single operations. What ranks of an
 * expert-parallel layer add up to. */
#include "layer_fixture.h"

enum { T = 50, H = 72, K = 3, E = 24 };

/* A layer that uses every stage. */
static struct moe_problem make_problem(int32_t dtype)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.flags = MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS | MOE_PROBLEM_ROUTER_BIAS |
                    MOE_PROBLEM_CORRECTION_BIAS | MOE_PROBLEM_SHARED_SIGMOID |
                    MOE_PROBLEM_RENORMALIZE;
    problem.num_experts = problem.num_experts_global = E;
    problem.top_k = K;
    problem.hidden = H;
    problem.inter = 40;
    problem.shared_inter = 88;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.gating = MOE_GATING_SIGMOID;
    problem.num_groups = 4;
    problem.topk_groups = 2;
    problem.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    problem.scaling_on = MOE_SCALING_OUTPUT;
    problem.routed_scaling = 2.5f;
    problem.tokens.dtype = problem.gate_up.dtype = problem.down.dtype = dtype;
    problem.max_tokens = T;
    return problem;
}

static const struct layer_case routed = {
    .num_tokens = T, .source = LAYER_FROM_ROUTER, .has_residual = true};

static void layouts_do_not_matter(void **state)
{
    (void)state;
    for (int d = 0; d < OP_COUNT(op_dtypes); d++) {
        const struct moe_problem problem = make_problem(op_dtypes[d]);
        struct layer_result first = {0};
        for (int layout = 0; layout < OP_NUM_LAYOUTS; layout++) {
            struct layer_case test = routed;
            struct layer_data data;
            struct layer_result other;
            test.layout = (enum op_layout)layout;
            layer_data_init(&data, 5, &problem, &test);
            layer_result_init(&other, &data);
            for (int set = 0; set < op_plugin.num_tile_sets; set++) {
                layer_run(op_variant(set, set % OP_MAX_THREADS + 1), &data, 0, T, &other);
                if (layout == 0 && set == 0) {
                    layer_check(&data, &other);
                    layer_result_init(&first, &data);
                    layer_run(op_variant(0, 1), &data, 0, T, &first);
                }
                layer_compare(&data, &first, &other);
            }
            layer_result_finish(&other);
            layer_data_finish(&data);
        }
        layer_result_finish(&first);
    }
}

/* A plan whose layer runs `chunk` tokens at a time: the chunk grows with the cap, so the cap is
 * found by halving. */
static struct moe_plan *plan_chunked(struct moe_context *context, const struct moe_problem *problem,
                                     int64_t chunk)
{
    struct moe_plan_info info;
    struct moe_plan *plan = op_plan(context, problem, OP_BIT(MOE_OP_LAYER));
    MOE_INIT(info);
    assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
    assert_int_equal(info.chunk_tokens, problem->max_tokens);
    uint64_t low = 0, high = info.workspace_bytes;
    while (high - low > 1) {
        struct moe_plan_options options;
        struct moe_plan *tried = NULL;
        const uint64_t cap = low + (high - low) / 2;
        MOE_INIT(options);
        options.ops = OP_BIT(MOE_OP_LAYER);
        options.workspace_cap = cap;
        const int32_t status = op_api()->plan_create(context, problem, &options, &tried, NULL);
        assert_true(status == MOE_STATUS_OK || status == MOE_STATUS_WORKSPACE_TOO_SMALL);
        info.chunk_tokens = 0;
        if (status == MOE_STATUS_OK) {
            assert_int_equal(op_api()->plan_info(tried, &info, NULL), MOE_STATUS_OK);
            assert_true(info.workspace_bytes <= cap);
            op_api()->plan_destroy(tried);
        }
        *(info.chunk_tokens >= chunk ? &high : &low) = cap;
    }
    op_api()->plan_destroy(plan);
    plan = op_plan_capped(context, problem, OP_BIT(MOE_OP_LAYER), high);
    assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
    assert_int_equal(info.chunk_tokens, chunk);
    return plan;
}

static void chunks_do_not_matter(void **state)
{
    (void)state;
    const int64_t chunks[] = {1, 7, T / 2};
    const enum layer_source sources[] = {LAYER_FROM_IDS, LAYER_FROM_LOGITS, LAYER_FROM_ROUTER};
    const struct moe_problem problem = make_problem(MOE_DTYPE_BF16);
    for (int s = 0; s < OP_COUNT(sources); s++) {
        struct layer_case test = routed;
        struct layer_data data;
        struct layer_result whole, chunked;
        test.source = sources[s];
        test.traffic = OP_TRAFFIC_HOSTILE;
        test.wide = s == 0;
        test.gap = 3;
        test.target = LAYER_OUTPUT_IS_TOKENS;
        layer_data_init(&data, 6, &problem, &test);
        layer_result_init(&whole, &data);
        layer_result_init(&chunked, &data);
        for (int set = 0; set < op_plugin.num_tile_sets; set += 3) {
            const struct op_variant *variant = op_variant(set, 1 + set % OP_MAX_THREADS);
            layer_run(variant, &data, 0, T, &whole);
            for (int c = 0; c < OP_COUNT(chunks); c++) {
                struct moe_plan *plan =
                    plan_chunked(variant->context, &data.model.problem, chunks[c]);
                layer_run_plan(variant, plan, &data, 0, T, &chunked);
                layer_compare(&data, &whole, &chunked);
                op_api()->plan_destroy(plan);
            }
        }
        layer_result_finish(&whole);
        layer_result_finish(&chunked);
        layer_data_finish(&data);
    }
}

/* Every token alone, and batches that begin or end anywhere. */
static void the_batch_does_not_matter(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem(MOE_DTYPE_FP16);
    const size_t row_bytes = H * 2;
    struct layer_data data;
    struct layer_result whole, part;
    layer_data_init(&data, 7, &problem, &routed);
    layer_result_init(&whole, &data);
    layer_result_init(&part, &data);
    layer_run(op_variant(0, 1), &data, 0, T, &whole);
    for (int set = 0; set < op_plugin.num_tile_sets; set++) {
        const struct op_variant *variant = op_variant(set, set % OP_MAX_THREADS + 1);
        for (int64_t first = 0; first < T; first++) {
            const int64_t lengths[] = {1, T - first};
            for (int i = 0; i < OP_COUNT(lengths); i++) {
                layer_run(variant, &data, first, lengths[i], &part);
                assert_bits_equal(whole.output + (size_t)first * row_bytes, part.output,
                                  lengths[i] * H, 2);
            }
        }
    }
    layer_result_finish(&whole);
    layer_result_finish(&part);
    layer_data_finish(&data);
}

/* ---------------------------------------------------------------- the layer as single operations
 */

struct steps {
    const struct op_variant *variant;
    const struct layer_data *data;
    struct moe_plan *plan;
    int64_t num_rows;
    int64_t *seg_indptr;
    int32_t *src2dst;
    struct support_guard rows;
    struct support_guard inter;
    struct support_guard down;
    struct support_guard output;
};

static void run_step(const struct steps *steps, int32_t op, op_invoke_fn *invoke, const void *args,
                     struct moe_call *call, struct support_guard *output)
{
    /* Operations on rows alone take as much workspace as the tokens that have so many routes. */
    const bool counts_rows = op == MOE_OP_EXPERTS || op == MOE_OP_ACTIVATION;
    const struct op_watch watch = {.variant = steps->variant,
                                   .plan = steps->plan,
                                   .op = op,
                                   .num_tokens = counts_rows ? (steps->num_rows + K - 1) / K : T,
                                   .outputs = {output},
                                   .num_outputs = 1};
    call->num_tokens = T;
    op_run(&watch, invoke, args, call);
}

static void sort_and_gather(struct steps *steps, const struct op_routes *routes)
{
    struct support_guard unused = op_output(0, 1, 0);
    struct moe_ep_preprocess_args sort;
    struct moe_pre_reorder_args reorder;
    MOE_INIT_CALL(sort);
    sort.topk_ids = routes->memory.data;
    sort.ids_dtype = op_ids_dtype(routes);
    sort.filter = routes->filter;
    sort.seg_indptr = steps->seg_indptr;
    sort.src2dst = steps->src2dst;
    run_step(steps, MOE_OP_EP_PREPROCESS, op_invoke_ep_preprocess, &sort, &sort.call, &unused);
    steps->num_rows = steps->seg_indptr[routes->ref.num_local];
    MOE_INIT_CALL(reorder);
    reorder.tokens = steps->data->tokens.memory.data;
    reorder.src2dst = steps->src2dst;
    reorder.rows = steps->rows.data;
    reorder.num_rows = steps->num_rows;
    run_step(steps, MOE_OP_PRE_REORDER, op_invoke_pre_reorder, &reorder, &reorder.call,
             &steps->rows);
    support_guard_finish(&unused);
}

static void multiply(const struct steps *steps, int32_t which, const struct support_guard *input,
                     struct support_guard *output)
{
    struct moe_grouped_gemm_args gemm;
    MOE_INIT_CALL(gemm);
    gemm.weights = steps->data->bound.weights;
    gemm.input = input->data;
    gemm.output = output->data;
    gemm.num_rows = steps->num_rows;
    gemm.which = which;
    gemm.seg_indptr = steps->seg_indptr;
    run_step(steps, which == MOE_GEMM_DOWN ? MOE_OP_GEMM2 : MOE_OP_GEMM1, op_invoke_grouped_gemm,
             &gemm, &gemm.call, output);
}

/* gate_up and the activation apart: the same bits where gate and up are kept in fp32, which rounds
 * nothing. */
static void multiply_and_activate(const struct steps *steps)
{
    struct support_guard pairs = op_output(steps->num_rows * 80 * 4, 4, SUPPORT_POISON_FLOAT);
    struct support_guard apart = op_output(steps->num_rows * 40 * 4, 4, SUPPORT_POISON_FLOAT);
    struct moe_activation_args act;
    multiply(steps, MOE_GEMM_GATE_UP, &steps->rows, &pairs);
    MOE_INIT_CALL(act);
    act.input = pairs.data;
    act.num_rows = steps->num_rows;
    act.output = apart.data;
    run_step(steps, MOE_OP_ACTIVATION, op_invoke_activation, &act, &act.call, &apart);
    assert_bits_equal(steps->inter.data, apart.data, steps->num_rows * 40, 4);
    support_guard_finish(&pairs);
    support_guard_finish(&apart);
}

static void combine(struct steps *steps, const struct layer_data *data)
{
    struct moe_post_reorder_args post;
    MOE_INIT_CALL(post);
    post.rows = steps->down.data;
    post.num_rows = steps->num_rows;
    post.src2dst = steps->src2dst;
    post.topk_weights = OP_FLOAT(data->weights.memory);
    post.residual = data->residual.memory.data;
    post.output = steps->output.data;
    support_guard_poison(&steps->output);
    run_step(steps, MOE_OP_POST_REORDER, op_invoke_post_reorder, &post, &post.call, &steps->output);
}

static void check_steps(const struct op_variant *variant, struct layer_data *data,
                        const struct layer_result *whole)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t bytes = (int64_t)op_dtype_bytes(problem->tokens.dtype);
    const size_t element = (size_t)bytes;
    struct steps steps = {.variant = variant, .data = data};
    op_bind(&data->bound, &data->model, variant->context);
    steps.plan = op_plan(variant->context, problem, 0);
    steps.seg_indptr = op_array(problem->num_experts + 1, 8);
    steps.src2dst = op_array(data->routes.num_routes, 4);
    steps.rows = op_output(data->routes.num_routes * H * bytes, element, SUPPORT_POISON_FLOAT);
    steps.inter = op_output(data->routes.num_routes * 40 * bytes, element, SUPPORT_POISON_FLOAT);
    steps.down = op_output(data->routes.num_routes * H * bytes, element, SUPPORT_POISON_FLOAT);
    steps.output = op_output(T * H * bytes, element, SUPPORT_POISON_FLOAT);
    sort_and_gather(&steps, &data->routes);
    multiply(&steps, MOE_GEMM_GATE_UP_ACT, &steps.rows, &steps.inter);
    if (problem->tokens.dtype == MOE_DTYPE_FP32) {
        multiply_and_activate(&steps);
    }
    multiply(&steps, MOE_GEMM_DOWN, &steps.inter, &steps.down);
    combine(&steps, data);
    assert_bits_equal(whole->output, steps.output.data, T * H, element);

    struct moe_experts_args experts;
    MOE_INIT_CALL(experts);
    experts.weights = data->bound.weights;
    experts.rows = steps.rows.data;
    experts.num_rows = steps.num_rows;
    experts.seg_indptr = steps.seg_indptr;
    experts.output = steps.down.data;
    support_guard_poison(&steps.down);
    run_step(&steps, MOE_OP_EXPERTS, op_invoke_experts, &experts, &experts.call, &steps.down);
    combine(&steps, data);
    assert_bits_equal(whole->output, steps.output.data, T * H, element);

    op_api()->plan_destroy(steps.plan);
    free(steps.seg_indptr);
    free(steps.src2dst);
    support_guard_finish(&steps.rows);
    support_guard_finish(&steps.inter);
    support_guard_finish(&steps.down);
    support_guard_finish(&steps.output);
}

static void single_operations_give_the_layer(void **state)
{
    (void)state;
    const enum op_traffic traffics[] = {OP_TRAFFIC_UNIFORM, OP_TRAFFIC_HOSTILE, OP_TRAFFIC_ZIPF};
    for (int d = 0; d < OP_COUNT(op_dtypes); d++) {
        struct moe_problem problem = make_problem(op_dtypes[d]);
        struct layer_case test = routed;
        struct layer_data data;
        struct layer_result whole;
        problem.flags = MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS;
        problem.shared_inter = 0;
        problem.gating = MOE_GATING_NONE;
        problem.num_groups = problem.topk_groups = problem.group_score = 0;
        test.source = LAYER_FROM_IDS;
        test.traffic = traffics[d];
        test.filtering = OP_FILTER_RANGE;
        layer_data_init(&data, 8, &problem, &test);
        layer_result_init(&whole, &data);
        layer_run(op_variant(0, 1), &data, 0, T, &whole);
        layer_check(&data, &whole);
        for (int set = 0; set < op_plugin.num_tile_sets; set++) {
            check_steps(op_variant(set, (set + d) % OP_MAX_THREADS + 1), &data, &whole);
        }
        layer_result_finish(&whole);
        layer_data_finish(&data);
    }
}

/* ---------------------------------------------------------------- expert parallelism */

/* One rank of a layer: experts [begin, end) of the whole model, by range or by map. Adds its
 * output to `sum` and its magnitude to `sum_abs`. */
static void add_rank(const struct layer_data *whole, int32_t begin, int32_t end, bool by_map,
                     double *sum, double *sum_abs)
{
    const struct op_variant *variant = op_variant(op_plugin.num_tile_sets - 1, 2);
    struct moe_problem problem = whole->model.problem;
    struct moe_weights_desc desc = whole->bound.desc;
    struct moe_weights *weights = NULL;
    struct moe_error error;
    struct layer_outputs outputs;
    struct moe_layer_args args;
    int32_t map[E];
    MOE_INIT(error);
    problem.num_experts = end - begin;
    struct moe_operand *held[] = {&desc.gate, &desc.up, &desc.down};
    for (int i = 0; i < OP_COUNT(held); i++) {
        held[i]->base =
            (const unsigned char *)held[i]->base + (size_t)(begin * held[i]->expert_stride) * 4;
    }
    for (int32_t e = 0; e < E; e++) {
        map[e] = e >= begin && e < end ? e - begin : -1;
    }
    op_assert_status(
        MOE_STATUS_OK,
        op_api()->weights_bind(variant->context, &problem, &desc, NULL, 0, &weights, &error),
        error);
    struct moe_plan *plan = op_plan(variant->context, &problem, 0);
    layer_fill_args(whole, 0, T, &outputs, &args);
    args.weights = weights;
    if (by_map) {
        args.filter.expert_map = map;
    } else {
        args.filter.expert_begin = begin;
        args.filter.expert_end = end;
    }
    const struct op_watch watch = {.variant = variant,
                                   .plan = plan,
                                   .op = MOE_OP_LAYER,
                                   .num_tokens = T,
                                   .outputs = {&outputs.output},
                                   .num_outputs = 1};
    op_run(&watch, op_invoke_layer, &args, &args.call);
    for (int64_t t = 0; t < T; t++) {
        bool is_here = false;
        for (int64_t j = 0; j < K; j++) {
            const int64_t id = whole->routes.ids[t * K + j];
            is_here = is_here || (id >= begin && id < end);
        }
        for (int64_t h = 0; h < H; h++) {
            const double value = (double)OP_FLOAT(outputs.output)[t * H + h];
            assert_true(is_here || value == 0.0);
            sum[t * H + h] += value;
            sum_abs[t * H + h] += fabs(value);
        }
    }
    op_api()->plan_destroy(plan);
    op_api()->weights_destroy(weights);
    layer_outputs_finish(&outputs);
}

static void ranks_add_up_to_the_layer(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem(MOE_DTYPE_FP32);
    struct layer_case test = routed;
    struct layer_data data;
    struct layer_result whole;
    double *expected = op_array(2 * H, sizeof(double));
    double *sum = op_array(T * H, sizeof(double));
    double *sum_abs = op_array(T * H, sizeof(double));
    problem.flags = 0;
    problem.shared_inter = 0;
    test.source = LAYER_FROM_IDS;
    test.has_residual = false;
    layer_data_init(&data, 9, &problem, &test);
    layer_result_init(&whole, &data);
    layer_run(op_variant(0, 1), &data, 0, T, &whole);
    for (int by_map = 0; by_map < 2; by_map++) {
        memset(sum, 0, T * H * sizeof(*sum));
        memset(sum_abs, 0, T * H * sizeof(*sum_abs));
        add_rank(&data, 0, 2, by_map == 1, sum, sum_abs); /* fewer experts than slots */
        add_rank(&data, 2, 13, by_map == 1, sum, sum_abs);
        add_rank(&data, 13, E, by_map == 1, sum, sum_abs);
        for (int64_t t = 0; t < T; t++) {
            layer_expect_token(&data, &whole, t, expected, expected + H);
            for (int64_t h = 0; h < H; h++) {
                /* Each rank is within the bound of its own routes, and those bounds add up to the
                 * whole's; but each rounds its own output once. */
                assert_true(fabs(sum[t * H + h] - expected[h]) <=
                            expected[H + h] + 0x1p-24 * sum_abs[t * H + h]);
            }
        }
    }
    free(sum_abs);
    free(sum);
    free(expected);
    layer_result_finish(&whole);
    layer_data_finish(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_do_not_matter),
        cmocka_unit_test(chunks_do_not_matter),
        cmocka_unit_test(the_batch_does_not_matter),
        cmocka_unit_test(single_operations_give_the_layer),
        cmocka_unit_test(ranks_add_up_to_the_layer),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
