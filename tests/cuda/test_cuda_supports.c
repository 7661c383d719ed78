/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA backend asks of problem and device: each operation for what it reads and writes,
 * supports and binding weights alike. */
#include "cuda_calls.h"

static const struct moe_recipe fp8_rows = {.dtype = MOE_DTYPE_FP8_E4M3,
                                           .scale_dtype = MOE_DTYPE_FP32,
                                           .scale_layout = MOE_SCALE_ROW_MAJOR,
                                           .group_rows = 1,
                                           .group_k = 128};

/* DeepSeek's recipes in small. */
static struct moe_problem make_fp8_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = 16;
    problem.top_k = 4;
    problem.hidden = 256;
    problem.inter = 128;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.gating = MOE_GATING_SOFTMAX;
    problem.tokens = fp8_rows;
    problem.output_dtype = MOE_DTYPE_BF16;
    problem.max_tokens = 100;
    return problem;
}

static int32_t plan_for(struct moe_context *context, const struct moe_problem *problem,
                        uint64_t mask, struct moe_plan **plan, struct moe_error *error)
{
    struct moe_plan_options options;
    MOE_INIT(options);
    options.ops = mask;
    *plan = NULL;
    return api->plan_create(context, problem, &options, plan, error);
}

static void expect_words(int32_t got, int32_t status, const struct moe_error *error,
                         const char *words)
{
    if (got != status || strstr(error->message, words) == NULL) {
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, error->message, status, words);
    }
}

/* Operations beside the GEMMs have plans for problems whose tokens are quantized. */
static void quantized_tokens(void **state)
{
    (void)state;
    static const int32_t taken[] = {
        MOE_OP_GATING,      MOE_OP_ROUTE,      MOE_OP_ALIGN_BLOCK_SIZE, MOE_OP_EP_PREPROCESS,
        MOE_OP_PRE_REORDER, MOE_OP_ACTIVATION, MOE_OP_POST_REORDER,     MOE_OP_SUM_REDUCE};
    struct moe_context *context = create_context();
    struct moe_problem problem = make_fp8_problem();
    struct moe_device device;
    struct moe_plan *plan;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(device);
    assert_int_equal(api->context_device(context, &device, NULL), MOE_STATUS_OK);
    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
        const uint64_t mask = UINT64_C(1) << taken[i];
        expect_words(api->supports(&device, &problem, mask, &error), MOE_STATUS_OK, &error, "");
        expect_words(plan_for(context, &problem, mask, &plan, &error), MOE_STATUS_OK, &error, "");
        api->plan_destroy(plan);
    }
    problem.output_dtype = 0; /* as the tokens: what the activation would read */
    expect_words(plan_for(context, &problem, UINT64_C(1) << MOE_OP_ACTIVATION, &plan, &error),
                 MOE_STATUS_INVALID_ARGUMENT, &error, "problem.output_dtype is fp8_e4m3");
    problem.tokens = (struct moe_recipe){.dtype = MOE_DTYPE_INT8};
    problem.output_dtype = MOE_DTYPE_BF16;
    expect_words(plan_for(context, &problem, UINT64_C(1) << MOE_OP_PRE_REORDER, &plan, &error),
                 MOE_STATUS_UNSUPPORTED, &error, "problem.tokens is int8");
    expect_words(plan_for(context, &problem, UINT64_C(1) << MOE_OP_EP_PREPROCESS, &plan, &error),
                 MOE_STATUS_OK, &error, "");
    api->plan_destroy(plan);
    api->context_destroy(context);
    assert_nothing_left();
}

/* Rows of fp8 are moved as bytes, as wide as addresses allow. */
static void quantized_rows_are_moved(void **state)
{
    (void)state;
    static const struct {
        int32_t hidden;
        uint32_t vector_bytes;
    } cases[] = {{256, 16}, {36, 4}, {34, 2}, {33, 1}};
    struct moe_context *context = create_context();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct moe_problem problem = make_fp8_problem();
        const struct shape shape = {100, 16, 4, cases[i].hidden, MOE_DTYPE_FP8_E4M3};
        struct moe_plan *plan;
        struct moe_error error;
        MOE_INIT(error);
        problem.hidden = cases[i].hidden;
        expect_words(plan_for(context, &problem, UINT64_C(1) << MOE_OP_PRE_REORDER, &plan, &error),
                     MOE_STATUS_OK, &error, "");
        expect_words(run_pre_reorder(plan, &shape, NULL, &error), MOE_STATUS_OK, &error, "");
        const uint32_t vectors = (uint32_t)cases[i].hidden / cases[i].vector_bytes;
        const uint32_t threads = driver->launch.block[0];
        assert_int_equal(driver->launch.grid[0], (vectors + threads - 1) / threads);
        assert_int_equal(driver->launch.grid[1], 100);
        api->plan_destroy(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* A problem with a router and nothing else. */
static struct moe_problem make_router_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = 16;
    problem.top_k = 4;
    problem.hidden = 256;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = 100;
    return problem;
}

static struct moe_operand make_matrix(int number, int64_t rows, int64_t columns)
{
    return (struct moe_operand){.base = ON_DEVICE(number),
                                .expert_stride = rows * columns,
                                .row_stride = columns,
                                .col_stride = 1};
}

/* Where there are no GEMMs, the router's weights can be bound alone, and it runs. */
static void router_without_gemms(void **state)
{
    (void)state;
    driver->sm = 80;
    struct moe_context *context = create_context();
    struct moe_problem problem = make_router_problem();
    struct moe_weights_desc desc;
    struct moe_weights_info info;
    struct moe_weights *weights = NULL;
    struct moe_router_args args;
    struct moe_plan *plan;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(desc);
    MOE_INIT(info);
    desc.router = make_matrix(1, problem.num_experts, problem.hidden);
    expect_words(plan_for(context, &problem, UINT64_C(1) << MOE_OP_ROUTER, &plan, &error),
                 MOE_STATUS_OK, &error, "");
    expect_words(api->weights_query(context, &problem, &desc, &info, &error), MOE_STATUS_OK, &error,
                 "");
    assert_int_equal(info.prepared_bytes, 0);
    expect_words(api->weights_bind(context, &problem, &desc, NULL, 0, &weights, &error),
                 MOE_STATUS_OK, &error, "");
    MOE_INIT_CALL(args);
    args.call.num_tokens = 7;
    args.weights = weights;
    args.tokens = ON_DEVICE(2);
    args.logits = ON_DEVICE(3);
    expect_words(api->router(plan, &args, &error), MOE_STATUS_OK, &error, "");
    assert_non_null(strstr(driver->launch.symbol, "ROUTER"));
    api->weights_destroy(weights);
    api->plan_destroy(plan);

    problem.inter = 128;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.down.dtype = MOE_DTYPE_BF16;
    desc.down = make_matrix(4, problem.hidden, problem.inter);
    expect_words(api->weights_bind(context, &problem, &desc, NULL, 0, &weights, &error),
                 MOE_STATUS_UNSUPPORTED, &error, "for sm_90; the device is sm_80");
    api->context_destroy(context);
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(quantized_tokens, with_fresh_driver),
        cmocka_unit_test_setup(quantized_rows_are_moved, with_fresh_driver),
        cmocka_unit_test_setup(router_without_gemms, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
