/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 300 */
/*
 * grouped_gemm and experts through the function table on random problems, plain and fp8: rows by
 * segment, by counts in fixed strides, and gathered by sorted ids; scales of every kind and layout,
 * given and from the data. Each row against the reference, rows of no expert left as they were, and
 * the same bits in another variant.
 */
#include "op_weights.h"

enum { NUM_SEEDS = 900, EXPERTS_CALL = 4 }; /* beside MOE_GEMM_GATE_UP .. MOE_GEMM_DOWN */
_Static_assert(MOE_GEMM_GATE_UP == 1 && MOE_GEMM_DOWN == EXPERTS_CALL - 1, "four calls");

enum rows_layout { BY_SEGMENTS, BY_COUNTS, GATHERED };

struct rows_case {
    int32_t call;
    enum rows_layout layout;
    struct op_model model;
    struct op_bound bound;
    struct op_routes routes;
    int64_t num_inputs; /* rows of the input */
    int64_t num_rows;   /* rows of the output */
    int64_t max_masked_rows;
    int64_t *seg_indptr;
    int32_t *counts;  /* as given, above max_masked_rows for some */
    int32_t *experts; /* of each row, -1: none */
    struct op_tensor input;
    struct op_scales scales;
    struct op_tensor weights; /* [num_rows] fp32 */
    bool has_weights;
    int64_t gap;
    int32_t block_size;
};

static int64_t draw(struct support_random *random, int64_t low, int64_t high)
{
    return low + (int64_t)support_random_below(random, (uint64_t)(high - low + 1));
}

static int32_t draw_dtype(struct support_random *random)
{
    return op_dtypes[draw(random, 0, OP_COUNT(op_dtypes) - 1)];
}

/* ---------------------------------------------------------------- cases */

static const struct moe_recipe *input_recipe(const struct rows_case *test,
                                             const struct moe_recipe *inter)
{
    return test->call == MOE_GEMM_DOWN ? inter : &test->model.problem.tokens;
}

/* Makes the recipes fit the call: grouped_gemm does not quantize, and DOWN takes given scales. */
static void settle_recipes(struct support_random *random, int32_t call, struct moe_problem *problem)
{
    const struct moe_recipe plain = {.dtype = draw_dtype(random)};
    const struct moe_recipe inter = op_inter_recipe(problem);
    const bool is_gemm1 = call == MOE_GEMM_GATE_UP || call == MOE_GEMM_GATE_UP_ACT;
    if (is_gemm1 && op_is_fp8(&inter) &&
        (call == MOE_GEMM_GATE_UP_ACT || op_quantizes_tokens(problem))) {
        problem->intermediate = plain;
    }
    if (call == MOE_GEMM_DOWN && op_is_fp8(&inter)) {
        problem->intermediate = op_draw_rows_recipe(random, draw(random, 0, 1) == 1);
    }
}

static void draw_problem(struct support_random *random, int32_t call, struct moe_problem *problem)
{
    MOE_INIT(*problem);
    problem->num_experts_global = (int32_t)draw(random, 1, 14);
    problem->top_k = (int32_t)draw(random, 1, problem->num_experts_global < 5 ? 1 : 5);
    problem->hidden = (int32_t)draw(random, 1, draw(random, 0, 1) ? 300 : 40);
    problem->inter = (int32_t)draw(random, 1, draw(random, 0, 1) ? 300 : 40);
    problem->activation = (int32_t)draw(random, MOE_ACTIVATION_SILU, MOE_ACTIVATION_IDENTITY);
    if (problem->activation == MOE_ACTIVATION_SWIGLU_OAI) {
        problem->act_alpha = 1.702f;
        problem->act_limit = 1.5f;
    } else {
        problem->flags |= draw(random, 0, 2) == 0 ? MOE_PROBLEM_UNGATED : 0u;
    }
    problem->flags |= draw(random, 0, 1) ? MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS : 0u;
    problem->flags |= draw(random, 0, 1) ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0u;
    problem->tokens.dtype = draw_dtype(random);
    problem->gate_up.dtype = draw_dtype(random);
    problem->intermediate.dtype = draw_dtype(random);
    problem->down.dtype = draw_dtype(random);
    problem->output_dtype = draw_dtype(random);
    if (draw(random, 0, 3) != 0) {
        op_draw_fp8(random, problem);
        settle_recipes(random, call, problem);
    }
}

/* Where rows are: in the segments of an ep_preprocess, with rows behind the last one; or in fixed
 * strides; or at their routes. */
static void place_rows(struct rows_case *test, struct support_random *random)
{
    const struct op_routes *routes = &test->routes;
    const int64_t E = routes->ref.num_local, num_routes = routes->num_routes;
    test->seg_indptr = op_array(E + 1, sizeof(*test->seg_indptr));
    test->counts = op_array(E, sizeof(*test->counts));
    int64_t *num_used = op_array(E, sizeof(*num_used));
    if (test->layout == BY_SEGMENTS) {
        const struct ref_ep_layout layout = {.seg_indptr = test->seg_indptr, .counts = num_used};
        test->num_rows =
            ref_ep_preprocess(&routes->ref, routes->ids, num_routes, draw(random, 1, 4), &layout) +
            draw(random, 0, 3);
    } else if (test->layout == BY_COUNTS) {
        test->max_masked_rows = draw(random, 1, 12);
        test->num_rows = E * test->max_masked_rows;
        for (int64_t e = 0; e < E; e++) {
            test->counts[e] = (int32_t)draw(random, 0, test->max_masked_rows + 2);
            num_used[e] =
                test->counts[e] < test->max_masked_rows ? test->counts[e] : test->max_masked_rows;
            test->seg_indptr[e + 1] = (e + 1) * test->max_masked_rows;
        }
    } else {
        test->num_rows = num_routes;
    }
    test->experts = op_array(test->num_rows, sizeof(*test->experts));
    if (test->layout == GATHERED) {
        for (int64_t route = 0; route < num_routes; route++) {
            test->experts[route] = (int32_t)ref_local_expert(&routes->ref, routes->ids[route]);
        }
    } else {
        ref_row_experts(test->seg_indptr, test->layout == BY_COUNTS ? num_used : NULL, E,
                        test->num_rows, test->experts);
    }
    test->num_inputs = test->layout == GATHERED && test->call != MOE_GEMM_DOWN ? routes->num_tokens
                                                                               : test->num_rows;
    free(num_used);
}

static void init_case(struct rows_case *test, uint64_t seed)
{
    struct support_random random;
    struct moe_problem problem;
    support_random_seed(&random, seed);
    memset(test, 0, sizeof(*test));
    test->call = (int32_t)draw(&random, MOE_GEMM_GATE_UP, EXPERTS_CALL);
    test->layout = (enum rows_layout)draw(&random, BY_SEGMENTS,
                                          test->call == EXPERTS_CALL ? BY_COUNTS : GATHERED);
    test->gap = draw(&random, 0, 3);
    test->block_size = (int32_t)draw(&random, 1, 9);
    draw_problem(&random, test->call, &problem);
    op_routes_init(&test->routes, &random, draw(&random, 0, 20), problem.num_experts_global,
                   problem.top_k, (enum op_traffic)draw(&random, 0, OP_NUM_TRAFFICS - 1),
                   (enum op_filtering)draw(&random, 0, OP_NUM_FILTERINGS - 1), false);
    problem.num_experts = (int32_t)test->routes.ref.num_local;
    place_rows(test, &random);
    const int64_t most = test->num_rows > test->num_inputs ? test->num_rows : test->num_inputs;
    problem.max_tokens = most + 1;
    op_model_init(&test->model, &random, &problem);
    op_bound_init(&test->bound, &test->model, (enum op_layout)draw(&random, 0, OP_NUM_LAYOUTS - 1));
    const struct moe_recipe inter = op_inter_recipe(&test->model.problem);
    const struct moe_recipe *recipe = input_recipe(test, &inter);
    const int64_t width = test->call == MOE_GEMM_DOWN ? problem.inter : problem.hidden;
    op_tensor_init(&test->input, &random, recipe->dtype, test->num_inputs, width, test->gap,
                   op_is_fp8(recipe) ? OP_FP8_CODES : 1.0);
    if (op_is_fp8(recipe)) {
        op_tensor_scale(&test->input, &test->scales, &random, recipe, draw(&random, 0, 1));
    }
    op_tensor_init(&test->weights, &random, MOE_DTYPE_FP32, 1, test->num_rows, 0, 0.5);
    test->has_weights = test->call == EXPERTS_CALL
                            ? (problem.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0
                            : draw(&random, 0, 1) == 1;
}

static void finish_case(struct rows_case *test)
{
    const struct moe_recipe inter = op_inter_recipe(&test->model.problem);
    if (op_is_fp8(input_recipe(test, &inter))) {
        support_guard_finish(&test->scales.memory);
    }
    op_tensor_finish(&test->weights);
    op_tensor_finish(&test->input);
    op_bound_finish(&test->bound);
    op_model_finish(&test->model);
    op_routes_finish(&test->routes);
    free(test->experts);
    free(test->counts);
    free(test->seg_indptr);
}

/* ---------------------------------------------------------------- calls */

static int64_t output_width(const struct rows_case *test)
{
    const struct moe_problem *problem = &test->model.problem;
    return test->call == MOE_GEMM_GATE_UP       ? problem->inter * (op_is_gated(problem) ? 2 : 1)
           : test->call == MOE_GEMM_GATE_UP_ACT ? problem->inter
                                                : problem->hidden;
}

static int32_t output_dtype(const struct rows_case *test)
{
    const struct moe_problem *problem = &test->model.problem;
    const bool is_plain = test->call == MOE_GEMM_GATE_UP && !op_is_fp8(&problem->tokens);
    return is_plain                             ? problem->tokens.dtype
           : test->call == MOE_GEMM_GATE_UP_ACT ? op_inter_recipe(problem).dtype
                                                : op_output_dtype(problem);
}

/* The arrays of align_block_size in keep mode, so that every route has an output. */
struct sorted_routes {
    struct support_guard ids;
    struct support_guard experts;
    int32_t post_pad;
};

static void sort_routes(const struct rows_case *test, struct sorted_routes *sorted)
{
    const struct op_routes *routes = &test->routes;
    const int64_t capacity =
        ref_align_capacity(routes->num_routes, routes->ref.num_local + 1, test->block_size);
    sorted->ids = op_input(NULL, capacity * 4, 4);
    sorted->experts = op_input(NULL, capacity / test->block_size * 4, 4);
    sorted->post_pad = (int32_t)ref_align_block_size(
        &routes->ref, routes->ids, routes->num_routes, test->block_size, true,
        OP_INT32(sorted->ids), capacity, OP_INT32(sorted->experts), capacity / test->block_size);
}

static void call_gemm(const struct rows_case *test, const struct op_watch *watch,
                      const struct sorted_routes *sorted, struct support_guard *output)
{
    struct moe_grouped_gemm_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = watch->num_tokens;
    args.weights = test->bound.weights;
    args.which = test->call;
    args.input = test->input.memory.data;
    args.input_stride = test->input.stride;
    args.input_scales = test->scales.memory.data;
    args.input_scale_stride = test->scales.stride;
    args.output = output->data;
    args.output_stride = output_width(test) + test->gap;
    args.num_rows = test->num_rows;
    args.row_weights = test->has_weights ? OP_FLOAT(test->weights.memory) : NULL;
    if (test->layout == BY_SEGMENTS) {
        args.seg_indptr = test->seg_indptr;
    } else if (test->layout == BY_COUNTS) {
        args.masked_m = test->counts;
        args.max_masked_rows = test->max_masked_rows;
    } else {
        args.block_size = test->block_size;
        args.sorted_ids = OP_INT32(sorted->ids);
        args.expert_ids = OP_INT32(sorted->experts);
        args.num_tokens_post_pad = &sorted->post_pad;
    }
    op_run(watch, op_invoke_grouped_gemm, &args, &args.call);
}

static void call_experts(const struct rows_case *test, const struct op_watch *watch,
                         struct support_guard *output)
{
    struct moe_experts_args args;
    MOE_INIT_CALL(args);
    args.weights = test->bound.weights;
    args.rows = test->input.memory.data;
    args.row_stride = test->input.stride;
    args.input_scales = test->scales.memory.data;
    args.input_scale_stride = test->scales.stride;
    args.num_rows = test->num_rows;
    args.row_weights = test->has_weights ? OP_FLOAT(test->weights.memory) : NULL;
    args.seg_indptr = test->layout == BY_SEGMENTS ? test->seg_indptr : NULL;
    args.masked_m = test->layout == BY_COUNTS ? test->counts : NULL;
    args.max_masked_rows = test->max_masked_rows;
    args.output = output->data;
    args.output_stride = output_width(test) + test->gap;
    op_run(watch, op_invoke_experts, &args, &args.call);
}

/* A row of no expert is left as it was; gathered, it is zeros. */
static void check_untouched(const struct rows_case *test, const struct support_guard *output)
{
    const size_t bytes = op_dtype_bytes(output_dtype(test));
    const size_t row_bytes = (size_t)output_width(test) * bytes;
    const size_t stride_bytes = (size_t)(output_width(test) + test->gap) * bytes;
    for (int64_t row = 0; row < test->num_rows; row++) {
        const size_t at = (size_t)row * stride_bytes;
        if (test->experts[row] >= 0) {
            continue;
        }
        if (test->layout != GATHERED) {
            assert_true(support_guard_is_poison(output, at, at + row_bytes));
        }
        for (size_t i = 0; test->layout == GATHERED && i < row_bytes; i++) {
            assert_int_equal(output->data[at + i], 0);
        }
    }
}

static void run_case(const struct op_variant *variant, struct rows_case *test, void *packed)
{
    const size_t bytes = op_dtype_bytes(output_dtype(test));
    const int64_t width = output_width(test), stride = width + test->gap;
    const int32_t op = test->call == EXPERTS_CALL    ? MOE_OP_EXPERTS
                       : test->call == MOE_GEMM_DOWN ? MOE_OP_GEMM2
                                                     : MOE_OP_GEMM1;
    const int64_t k = test->model.problem.top_k;
    struct support_guard output =
        op_output(test->num_rows > 0 ? (test->num_rows * stride - test->gap) * (int64_t)bytes : 0,
                  bytes, SUPPORT_POISON_FLOAT);
    struct sorted_routes sorted;
    op_bind(&test->bound, &test->model, variant->context);
    struct moe_plan *plan = op_plan(variant->context, &test->model.problem, OP_BIT(op));
    const struct op_watch watch = {.variant = variant,
                                   .plan = plan,
                                   .op = op,
                                   .num_tokens = test->layout == GATHERED
                                                     ? test->routes.num_tokens
                                                     : (test->num_rows + k - 1) / k,
                                   .outputs = {&output},
                                   .num_outputs = 1};
    sort_routes(test, &sorted);
    if (test->call == EXPERTS_CALL) {
        call_experts(test, &watch, &output);
    } else {
        call_gemm(test, &watch, &sorted, &output);
    }
    check_untouched(test, &output);
    op_pack_rows(&output, test->num_rows, width, stride, bytes, packed);
    op_api()->plan_destroy(plan);
    support_guard_finish(&sorted.ids);
    support_guard_finish(&sorted.experts);
    support_guard_finish(&output);
}

/* ---------------------------------------------------------------- expectation */

static void expect_row(const struct rows_case *test, int64_t row, double *x, double *out,
                       double *tolerance)
{
    const struct moe_problem *problem = &test->model.problem;
    const struct moe_recipe inter = op_inter_recipe(problem);
    const struct op_expert expert = op_routed_expert(&test->model, test->experts[row]);
    const int64_t H = problem->hidden, I = problem->inter;
    const double weight = test->has_weights ? test->weights.values[row] : 1.0;
    double *sums[2] = {out, out + I};
    double *slack[2] = {tolerance, tolerance + I};
    if (test->call == EXPERTS_CALL) {
        if (op_quantizes_tokens(problem)) {
            op_quantize_row(&inter, H, x);
        }
        op_expect_expert_row(&expert, x, weight, out, tolerance);
        return;
    }
    if (test->call == MOE_GEMM_GATE_UP_ACT) {
        op_expect_hidden_row(&expert, x, weight, out, tolerance);
        return;
    }
    if (test->call == MOE_GEMM_GATE_UP) {
        op_expect_gate_up(&expert, x, weight, sums, slack);
    } else {
        op_expect_scaled_gemm(x, NULL, expert.down, expert.down_bias, weight,
                              op_num_scale_roundings(&problem->down, I), H, I, out, tolerance);
    }
    op_add_rounding(output_dtype(test), out, tolerance, output_width(test));
}

static void check_rows(const struct rows_case *test, const unsigned char *packed)
{
    const int64_t width = output_width(test), input_width = test->input.width;
    const int64_t k =
        test->layout == GATHERED && test->call != MOE_GEMM_DOWN ? test->routes.top_k : 1;
    const size_t bytes = op_dtype_bytes(output_dtype(test));
    double *out = op_array(2 * width, sizeof(double));
    double *x = op_array(input_width, sizeof(double));
    for (int64_t row = 0; row < test->num_rows; row++) {
        if (test->experts[row] < 0) {
            continue;
        }
        memcpy(x, test->input.values + row / k * input_width, (size_t)input_width * sizeof(double));
        expect_row(test, row, x, out, out + width);
        assert_all_within(out, out + width, op_ref_dtype(output_dtype(test)),
                          packed + (size_t)(row * width) * bytes, width);
    }
    free(x);
    free(out);
}

static uint64_t current_seed;
static int64_t num_fp8_cases, num_plain_cases;

static void random_rows_match_the_reference(void **state)
{
    (void)state;
    for (current_seed = 1; current_seed <= NUM_SEEDS; current_seed++) {
        const struct op_variant *variants[OP_MAX_VARIANTS];
        const int num_variants = op_list_variants((int64_t)current_seed, variants);
        struct rows_case test;
        init_case(&test, current_seed);
        const size_t bytes = op_dtype_bytes(output_dtype(&test));
        const int64_t num_elements = test.num_rows * output_width(&test);
        unsigned char *first = op_array(num_elements, bytes),
                      *other = op_array(num_elements, bytes);
        run_case(variants[current_seed % (uint64_t)num_variants], &test, first);
        check_rows(&test, first);
        run_case(variants[(current_seed / 7 + 1) % (uint64_t)num_variants], &test, other);
        assert_bits_equal(first, other, num_elements, bytes);
        const struct moe_problem *problem = &test.model.problem;
        *(op_is_fp8(&problem->gate_up) || op_is_fp8(&problem->down) ? &num_fp8_cases
                                                                    : &num_plain_cases) += 1;
        free(other);
        free(first);
        finish_case(&test);
    }
    assert_true(num_fp8_cases > NUM_SEEDS / 2 && num_plain_cases > NUM_SEEDS / 8);
    current_seed = 0;
}

static int teardown(void **state)
{
    if (current_seed != 0) {
        print_error("the seed that failed: %llu\n", (unsigned long long)current_seed);
    }
    return op_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_rows_match_the_reference),
    };
    return cmocka_run_group_tests(tests, op_setup, teardown);
}
