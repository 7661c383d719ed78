/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 900 */
/* grouped_gemm, activation and experts through the function table: every `which`, rows by segment
 * and gathered by sorted ids, against the reference; the same bits with every tile and number of
 * threads; experts equals its two GEMMs. */
#include "op_weights.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int32_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int32_t topks[] = {1, 2, 8, 22};
static const struct {
    int32_t hidden;
    int32_t inter;
} shapes[] = {{33, 40}, {40, 33}, {72, 88}, {100, 40}, {200, 72}};
static const int32_t activations[] = {MOE_ACTIVATION_SILU,      MOE_ACTIVATION_GELU,
                                      MOE_ACTIVATION_GELU_TANH, MOE_ACTIVATION_SWIGLU_OAI,
                                      MOE_ACTIVATION_RELU2,     MOE_ACTIVATION_IDENTITY};

/* One grid point for all three operations. */
struct gemm_case {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t top_k;
    int shape;
    int32_t activation;
    bool ungated;
    bool has_bias;
    bool on_input; /* routing weight on the input */
    int32_t token_dtype;
    int32_t weight_dtype;
    int32_t inter_dtype;
    int32_t output_dtype;
    enum op_traffic traffic;
    enum op_filtering filtering;
    enum op_layout layout;
    int64_t gap;
    int32_t block_size;
};

struct gemm_data {
    struct op_model model;
    struct op_bound bound; /* bound anew in each variant's context */
    struct op_routes routes;
    struct op_tensor tokens;
    struct op_tensor route_weights; /* [T, k] */
    int64_t *seg_indptr;
    int32_t *src2dst;
    int32_t *dst2src;
    int64_t num_rows;
};

static struct moe_problem make_problem(const struct gemm_case *test, const struct op_routes *routes)
{
    const bool oai = test->activation == MOE_ACTIVATION_SWIGLU_OAI;
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.flags = (test->ungated ? MOE_PROBLEM_UNGATED : 0) |
                    (test->has_bias ? MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS : 0) |
                    (test->on_input ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0);
    problem.num_experts = (int32_t)routes->ref.num_local;
    problem.num_experts_global = test->num_experts;
    problem.top_k = test->top_k;
    problem.hidden = shapes[test->shape].hidden;
    problem.inter = shapes[test->shape].inter;
    problem.activation = test->activation;
    problem.act_alpha = oai ? 1.702f : 0.0f;
    problem.act_limit = oai ? 1.5f : 0.0f; /* low enough to clamp some */
    problem.tokens.dtype = test->token_dtype;
    problem.gate_up.dtype = test->weight_dtype;
    problem.down.dtype = test->token_dtype; /* often another than gate_up's */
    problem.intermediate.dtype = test->inter_dtype;
    problem.output_dtype = test->output_dtype;
    problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    return problem;
}

static void make_data(struct gemm_data *data, struct support_random *random,
                      const struct gemm_case *test)
{
    op_routes_init(&data->routes, random, test->num_tokens, test->num_experts, test->top_k,
                   test->traffic, test->filtering, false);
    const struct moe_problem problem = make_problem(test, &data->routes);
    const int64_t num_routes = data->routes.num_routes;
    op_model_init(&data->model, random, &problem);
    op_bound_init(&data->bound, &data->model, test->layout);
    op_tensor_init(&data->tokens, random, test->token_dtype, test->num_tokens, problem.hidden,
                   test->gap, 1.0);
    op_tensor_init(&data->route_weights, random, MOE_DTYPE_FP32, 1, num_routes, 0, 0.5);
    data->seg_indptr = op_array(data->routes.ref.num_local + 1, 8);
    data->src2dst = op_array(num_routes, 4);
    data->dst2src = op_array(num_routes, 4);
    const struct ref_ep_layout layout = {.seg_indptr = data->seg_indptr,
                                         .src2dst = data->src2dst,
                                         .dst2src = data->dst2src,
                                         .rows_capacity = num_routes};
    data->num_rows = ref_ep_preprocess(&data->routes.ref, data->routes.ids, num_routes, 1, &layout);
}

static void free_data(struct gemm_data *data)
{
    op_bound_finish(&data->bound);
    op_model_finish(&data->model);
    op_routes_finish(&data->routes);
    op_tensor_finish(&data->tokens);
    op_tensor_finish(&data->route_weights);
    free(data->seg_indptr);
    free(data->src2dst);
    free(data->dst2src);
}

static void destroy_plan(const struct moe_plan *plan)
{
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)plan);
}

/* Everything that one variant computes; rows are packed and sorted by expert, route outputs are in
 * order of routes. */
struct gemm_results {
    unsigned char *gate_up;      /* [rows, 1 or 2 x inter] of the tokens' type */
    unsigned char *hidden;       /* [rows, inter] */
    unsigned char *down;         /* [rows, hidden] */
    unsigned char *route_hidden; /* [routes, inter], gathered */
    unsigned char *route_down;   /* [routes, hidden], gathered */
};

struct widths {
    int64_t gate_up;
    int64_t inter;
    int64_t hidden;
    size_t token_bytes;
    size_t inter_bytes;
    size_t output_bytes;
};

static struct widths widths_of(const struct moe_problem *problem)
{
    const struct widths widths = {op_is_gated(problem) ? 2 * problem->inter : problem->inter,
                                  problem->inter,
                                  problem->hidden,
                                  op_dtype_bytes(problem->tokens.dtype),
                                  op_dtype_bytes(op_inter_dtype(problem)),
                                  op_dtype_bytes(op_output_dtype(problem))};
    return widths;
}

static void init_results(struct gemm_results *results, const struct gemm_data *data)
{
    const struct widths w = widths_of(&data->model.problem);
    const int64_t rows = data->num_rows, routes = data->routes.num_routes;
    results->gate_up = op_array(rows * w.gate_up, w.token_bytes);
    results->hidden = op_array(rows * w.inter, w.inter_bytes);
    results->down = op_array(rows * w.hidden, w.output_bytes);
    results->route_hidden = op_array(routes * w.inter, w.inter_bytes);
    results->route_down = op_array(routes * w.hidden, w.output_bytes);
}

static void finish_results(struct gemm_results *results)
{
    free(results->gate_up);
    free(results->hidden);
    free(results->down);
    free(results->route_hidden);
    free(results->route_down);
}

static void compare_results(const struct gemm_results *a, const struct gemm_results *b,
                            const struct gemm_data *data)
{
    const struct widths w = widths_of(&data->model.problem);
    const int64_t rows = data->num_rows, routes = data->routes.num_routes;
    assert_bits_equal(a->gate_up, b->gate_up, rows * w.gate_up, w.token_bytes);
    assert_bits_equal(a->hidden, b->hidden, rows * w.inter, w.inter_bytes);
    assert_bits_equal(a->down, b->down, rows * w.hidden, w.output_bytes);
    assert_bits_equal(a->route_hidden, b->route_hidden, routes * w.inter, w.inter_bytes);
    assert_bits_equal(a->route_down, b->route_down, routes * w.hidden, w.output_bytes);
}

/* What all calls of one variant share. */
struct gemm_session {
    const struct op_variant *variant;
    const struct gemm_case *test;
    struct gemm_data *data;
    const struct moe_plan *plan;
    struct support_guard seg_indptr;
    struct support_guard rows;        /* tokens in row order */
    struct support_guard row_weights; /* routing weights in row order */
};

static void begin_session(struct gemm_session *session, const struct op_variant *variant,
                          const struct gemm_case *test, struct gemm_data *data)
{
    const struct widths w = widths_of(&data->model.problem);
    const size_t row_bytes = (size_t)w.hidden * w.token_bytes;
    session->variant = variant;
    session->test = test;
    session->data = data;
    op_bind(&data->bound, &data->model, variant->context);
    session->plan =
        op_plan(variant->context, &data->model.problem,
                OP_BIT(MOE_OP_EXPERTS) | OP_BIT(MOE_OP_ACTIVATION) | OP_BIT(MOE_OP_POST_REORDER));
    session->seg_indptr = op_input(data->seg_indptr, (data->routes.ref.num_local + 1) * 8, 8);
    session->rows = op_input(NULL, data->num_rows * (int64_t)row_bytes, w.token_bytes);
    session->row_weights = op_input(NULL, data->num_rows * 4, 4);
    for (int64_t row = 0; row < data->num_rows; row++) {
        const int64_t route = data->dst2src[row];
        memcpy(session->rows.data + (size_t)row * row_bytes,
               data->tokens.memory.data +
                   (size_t)(route / test->top_k * data->tokens.stride) * w.token_bytes,
               row_bytes);
        memcpy(session->row_weights.data + row * 4, data->route_weights.memory.data + route * 4, 4);
    }
}

static void end_session(struct gemm_session *session)
{
    destroy_plan(session->plan);
    support_guard_finish(&session->seg_indptr);
    support_guard_finish(&session->rows);
    support_guard_finish(&session->row_weights);
}

static void watch_and_run(const struct gemm_session *session, int32_t op, op_invoke_fn *invoke,
                          const void *args, struct moe_call *call, int64_t num_tokens,
                          struct support_guard *output)
{
    const struct op_watch watch = {.variant = session->variant,
                                   .plan = session->plan,
                                   .op = op,
                                   .num_tokens = num_tokens,
                                   .outputs = {output},
                                   .num_outputs = 1};
    op_run(&watch, invoke, args, call);
}

/* grouped_gemm over the segments; `input` packed rows, `packed` receives packed rows. */
static void run_segments(const struct gemm_session *session, int32_t which, const void *input,
                         int64_t width, size_t bytes, void *packed)
{
    const int64_t stride = width + session->test->gap;
    struct support_guard output =
        op_output(session->data->num_rows * stride * (int64_t)bytes, bytes, SUPPORT_POISON_FLOAT);
    struct moe_grouped_gemm_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = session->test->num_tokens;
    args.weights = session->data->bound.weights;
    args.input = input;
    args.output = output.data;
    args.output_stride = stride;
    args.num_rows = session->data->num_rows;
    args.which = which;
    args.seg_indptr = OP_INT64(session->seg_indptr);
    args.row_weights =
        session->test->on_input && which != MOE_GEMM_DOWN ? OP_FLOAT(session->row_weights) : NULL;
    watch_and_run(session, which == MOE_GEMM_DOWN ? MOE_OP_GEMM2 : MOE_OP_GEMM1,
                  op_invoke_grouped_gemm, &args, &args.call, session->test->num_tokens, &output);
    op_pack_rows(&output, args.num_rows, width, stride, bytes, packed);
    support_guard_finish(&output);
}

/* grouped_gemm gathered by the ids of align_block_size in keep mode, so that every route has an
 * output. */
static void run_gathered(const struct gemm_session *session, int32_t which, const void *input,
                         int64_t input_stride, int64_t width, size_t bytes, void *packed)
{
    const struct gemm_data *data = session->data;
    const int32_t block_size = session->test->block_size;
    const int64_t num_routes = data->routes.num_routes;
    const int64_t capacity =
        ref_align_capacity(num_routes, data->routes.ref.num_local + 1, block_size);
    struct support_guard sorted = op_input(NULL, capacity * 4, 4);
    struct support_guard experts = op_input(NULL, capacity / block_size * 4, 4);
    struct support_guard output =
        op_output(num_routes * width * (int64_t)bytes, bytes, SUPPORT_POISON_FLOAT);
    const int32_t post_pad = (int32_t)ref_align_block_size(
        &data->routes.ref, data->routes.ids, num_routes, block_size, true, OP_INT32(sorted),
        capacity, OP_INT32(experts), capacity / block_size);
    struct moe_grouped_gemm_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = session->test->num_tokens;
    args.weights = session->data->bound.weights;
    args.input = input;
    args.input_stride = input_stride;
    args.output = output.data;
    args.num_rows = num_routes;
    args.which = which;
    args.block_size = block_size;
    args.sorted_ids = OP_INT32(sorted);
    args.expert_ids = OP_INT32(experts);
    args.num_tokens_post_pad = &post_pad;
    args.row_weights = session->test->on_input && which != MOE_GEMM_DOWN
                           ? OP_FLOAT(data->route_weights.memory)
                           : NULL;
    watch_and_run(session, which == MOE_GEMM_DOWN ? MOE_OP_GEMM2 : MOE_OP_GEMM1,
                  op_invoke_grouped_gemm, &args, &args.call, session->test->num_tokens, &output);
    memcpy(packed, output.data, output.size);
    support_guard_finish(&sorted);
    support_guard_finish(&experts);
    support_guard_finish(&output);
}

static void run_experts(const struct gemm_session *session, void *packed)
{
    const struct widths w = widths_of(&session->data->model.problem);
    const int64_t stride = w.hidden + session->test->gap;
    const int64_t num_rows = session->data->num_rows;
    struct support_guard output = op_output(num_rows * stride * (int64_t)w.output_bytes,
                                            w.output_bytes, SUPPORT_POISON_FLOAT);
    struct moe_experts_args args;
    MOE_INIT_CALL(args);
    args.weights = session->data->bound.weights;
    args.rows = session->rows.data;
    args.num_rows = num_rows;
    args.seg_indptr = OP_INT64(session->seg_indptr);
    args.row_weights = session->test->on_input ? OP_FLOAT(session->row_weights) : NULL;
    args.output = output.data;
    args.output_stride = stride;
    watch_and_run(session, MOE_OP_EXPERTS, op_invoke_experts, &args, &args.call,
                  (num_rows + session->test->top_k - 1) / session->test->top_k, &output);
    op_pack_rows(&output, num_rows, w.hidden, stride, w.output_bytes, packed);
    support_guard_finish(&output);
}

static void run_all(const struct op_variant *variant, const struct gemm_case *test,
                    struct gemm_data *data, struct gemm_results *results)
{
    const struct widths w = widths_of(&data->model.problem);
    struct gemm_session session;
    unsigned char *rows = op_array(data->num_rows * w.hidden, w.output_bytes);
    begin_session(&session, variant, test, data);
    run_segments(&session, MOE_GEMM_GATE_UP, session.rows.data, w.gate_up, w.token_bytes,
                 results->gate_up);
    run_segments(&session, MOE_GEMM_GATE_UP_ACT, session.rows.data, w.inter, w.inter_bytes,
                 results->hidden);
    run_segments(&session, MOE_GEMM_DOWN, results->hidden, w.hidden, w.output_bytes, results->down);
    run_gathered(&session, MOE_GEMM_GATE_UP_ACT, data->tokens.memory.data, data->tokens.stride,
                 w.inter, w.inter_bytes, results->route_hidden);
    run_gathered(&session, MOE_GEMM_DOWN, results->route_hidden, 0, w.hidden, w.output_bytes,
                 results->route_down);
    run_experts(&session, rows);
    assert_bits_equal(results->down, rows, data->num_rows * w.hidden, w.output_bytes);
    end_session(&session);
    free(rows);
}

/* ---------------------------------------------------------------- expectation */

/* Every row by the reference; large cases check every nth row, the first and the last among them.
 */
static void check_rows(const struct gemm_data *data, const struct gemm_results *results)
{
    const struct moe_problem *problem = &data->model.problem;
    const struct widths w = widths_of(problem);
    const int64_t wide = w.gate_up > w.hidden ? w.gate_up : w.hidden;
    const int64_t work = data->num_rows * w.hidden * w.inter;
    const int64_t step = support_full_grids() || work < 4000000 ? 1 : work / 4000000 + 1;
    double *out = op_array(2 * wide, sizeof(double));
    double *tolerance = op_array(2 * wide, sizeof(double));
    for (int64_t row = 0; row < data->num_rows;) {
        const int64_t route = data->dst2src[row];
        const int64_t e = ref_local_expert(&data->routes.ref, data->routes.ids[route]);
        const double *x = data->tokens.values + route / data->routes.top_k * w.hidden;
        const bool on_input = (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
        const double row_weight = on_input ? data->route_weights.values[route] : 1.0;
        const struct op_expert expert = op_routed_expert(&data->model, e);
        double *sums[2] = {out, out + w.inter};
        double *slack[2] = {tolerance, tolerance + w.inter};
        op_expect_gate_up(&expert, x, row_weight, sums, slack);
        op_add_rounding(problem->tokens.dtype, out, tolerance, w.gate_up);
        assert_all_within(out, tolerance, op_ref_dtype(problem->tokens.dtype),
                          results->gate_up + (size_t)(row * w.gate_up) * w.token_bytes, w.gate_up);
        op_expect_hidden_row(&expert, x, row_weight, out, tolerance);
        assert_all_within(out, tolerance, op_ref_dtype(op_inter_dtype(problem)),
                          results->hidden + (size_t)(row * w.inter) * w.inter_bytes, w.inter);
        op_expect_expert_row(&expert, x, row_weight, out, tolerance);
        assert_all_within(out, tolerance, op_ref_dtype(op_output_dtype(problem)),
                          results->down + (size_t)(row * w.hidden) * w.output_bytes, w.hidden);
        row = row + step < data->num_rows || row == data->num_rows - 1 ? row + step
                                                                       : data->num_rows - 1;
    }
    free(tolerance);
    free(out);
}

/* Gathered outputs are the rows of the segments at their routes, and zeros where the expert is not
 * here. */
static void check_routes(const struct gemm_data *data, const struct gemm_results *results)
{
    const struct widths w = widths_of(&data->model.problem);
    const size_t hidden_bytes = (size_t)w.inter * w.inter_bytes;
    const size_t down_bytes = (size_t)w.hidden * w.output_bytes;
    unsigned char *zeros = op_array(w.hidden + w.inter, sizeof(float));
    for (int64_t route = 0; route < data->routes.num_routes; route++) {
        const int64_t row = data->src2dst[route];
        assert_bits_equal(row < 0 ? zeros : results->hidden + (size_t)row * hidden_bytes,
                          results->route_hidden + (size_t)route * hidden_bytes, w.inter,
                          w.inter_bytes);
        /* A row of zeros times down is its bias; a block of expert -1 is zeros. */
        assert_bits_equal(row < 0 ? zeros : results->down + (size_t)row * down_bytes,
                          results->route_down + (size_t)route * down_bytes, w.hidden,
                          w.output_bytes);
    }
    free(zeros);
}

static void check_case(const struct gemm_case *test, int64_t turn)
{
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    struct support_random random;
    struct gemm_data data;
    struct gemm_results first, other;
    support_random_seed(&random, (uint64_t)turn + 500);
    make_data(&data, &random, test);
    init_results(&first, &data);
    init_results(&other, &data);
    run_all(variants[0], test, &data, &first);
    check_rows(&data, &first);
    check_routes(&data, &first);
    for (int v = 1; v < num_variants; v++) {
        run_all(variants[v], test, &data, &other);
        compare_results(&first, &other, &data);
    }
    finish_results(&first);
    finish_results(&other);
    free_data(&data);
}

enum factor {
    TOKENS,
    EXPERTS,
    TOPK,
    SHAPE,
    ACTIVATION,
    GATED, /* 1: ungated */
    BIAS,
    ON_INPUT,
    TOKEN_DTYPE,
    WEIGHT_DTYPE,
    INTER_DTYPE,
    OUTPUT_DTYPE,
    TRAFFIC,
    FILTERING,
    LAYOUT,
    GAP,
    NUM_FACTORS
};

static struct gemm_case make_case(const int *pick)
{
    static const int32_t blocks[] = {1, 16, 24, 7};
    const struct gemm_case test = {
        .num_tokens = token_counts[pick[TOKENS]],
        .num_experts = expert_counts[pick[EXPERTS]],
        .top_k = topks[pick[TOPK]],
        .shape = pick[SHAPE],
        .activation = activations[pick[ACTIVATION]],
        .ungated = pick[GATED] == 1,
        .has_bias = pick[BIAS] == 1,
        .on_input = pick[ON_INPUT] == 1,
        .token_dtype = op_dtypes[pick[TOKEN_DTYPE]],
        .weight_dtype = op_dtypes[pick[WEIGHT_DTYPE]],
        .inter_dtype = op_dtypes[pick[INTER_DTYPE]],
        .output_dtype = op_dtypes[pick[OUTPUT_DTYPE]],
        .traffic = (enum op_traffic)pick[TRAFFIC],
        .filtering = (enum op_filtering)pick[FILTERING],
        .layout = (enum op_layout)pick[LAYOUT],
        .gap = 3 * pick[GAP],
        .block_size = blocks[(pick[TOKENS] + pick[LAYOUT]) % 4],
    };
    return test;
}

/* Moves a pick that no problem has to one near it, and one that takes too long to the smallest
 * shape. */
static void settle(int *pick)
{
    const int64_t limit = support_full_grids() ? INT64_C(1) << 28 : INT64_C(1) << 25;
    while (topks[pick[TOPK]] > expert_counts[pick[EXPERTS]]) {
        pick[TOPK]--;
    }
    if (activations[pick[ACTIVATION]] == MOE_ACTIVATION_SWIGLU_OAI) {
        pick[GATED] = 0;
    }
    const int64_t area = (int64_t)shapes[pick[SHAPE]].hidden * shapes[pick[SHAPE]].inter;
    if (token_counts[pick[TOKENS]] * topks[pick[TOPK]] * area > limit ||
        expert_counts[pick[EXPERTS]] * area > limit) {
        pick[SHAPE] = 0;
    }
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[NUM_FACTORS] = {[TOKENS] = OP_COUNT(token_counts),
                                     [EXPERTS] = OP_COUNT(expert_counts),
                                     [TOPK] = OP_COUNT(topks),
                                     [SHAPE] = OP_COUNT(shapes),
                                     [ACTIVATION] = OP_COUNT(activations),
                                     [GATED] = 2,
                                     [BIAS] = 2,
                                     [ON_INPUT] = 2,
                                     [TOKEN_DTYPE] = OP_COUNT(op_dtypes),
                                     [WEIGHT_DTYPE] = OP_COUNT(op_dtypes),
                                     [INTER_DTYPE] = OP_COUNT(op_dtypes),
                                     [OUTPUT_DTYPE] = OP_COUNT(op_dtypes),
                                     [TRAFFIC] = OP_NUM_TRAFFICS,
                                     [FILTERING] = OP_NUM_FILTERINGS,
                                     [LAYOUT] = OP_NUM_LAYOUTS,
                                     [GAP] = 2};
    struct op_grid grid;
    op_grid_init(&grid, levels, NUM_FACTORS, SHAPE + 1, 6);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[NUM_FACTORS];
        const bool runs = op_grid_row(&grid, row, pick);
        settle(pick);
        const struct gemm_case test = make_case(pick);
        if (runs) {
            check_case(&test, row);
        }
    }
    op_grid_finish(&grid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
