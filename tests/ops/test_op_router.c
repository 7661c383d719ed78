/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 900 */
/* router through the function table: every logit within the bound of fp32 accumulation, the same
 * bits with every tile and number of threads, and for a token wherever it stands in a batch. */
#include "op_data.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int32_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int32_t hiddens[] = {33, 40, 72, 100, 200};

struct router_case {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t hidden;
    int32_t token_dtype;
    int32_t weight_dtype;
    int32_t bias_dtype; /* 0: none */
    int32_t logits_dtype;
    int64_t gap;
    bool transposed;
};

struct router_data {
    struct op_tensor tokens;
    struct op_tensor weight; /* [E, H] or, transposed, [H, E] */
    struct op_tensor bias;
};

static struct moe_problem make_problem(const struct router_case *test)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.flags = test->bias_dtype != 0 ? MOE_PROBLEM_ROUTER_BIAS : 0;
    problem.num_experts = test->num_experts;
    problem.top_k = 1;
    problem.hidden = test->hidden;
    problem.inter = 8;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.tokens.dtype = test->token_dtype;
    problem.gate_up.dtype = test->weight_dtype;
    problem.down.dtype = test->weight_dtype;
    problem.logits_dtype = test->logits_dtype;
    problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    return problem;
}

static struct moe_weights *bind_router(const struct op_variant *variant,
                                       const struct moe_problem *problem,
                                       const struct router_case *test,
                                       const struct router_data *data)
{
    struct moe_weights_desc desc;
    struct moe_weights *weights = NULL;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(desc);
    desc.router.base = data->weight.memory.data;
    desc.router.row_stride = test->transposed ? 1 : data->weight.stride;
    desc.router.col_stride = test->transposed ? data->weight.stride : 1;
    if (test->bias_dtype != 0) {
        desc.router_bias.base = data->bias.memory.data;
        desc.router_bias.row_stride = 1;
        desc.router_bias.dtype = test->bias_dtype;
    }
    op_assert_status(
        MOE_STATUS_OK,
        op_api()->weights_bind(variant->context, problem, &desc, NULL, 0, &weights, &error), error);
    return weights;
}

/* Logits of the tokens [first, first + count) of the case, packed. */
static void run_router(const struct op_variant *variant, const struct router_case *test,
                       const struct router_data *data, int64_t first, int64_t count, void *packed)
{
    const struct moe_problem problem = make_problem(test);
    const size_t bytes = op_dtype_bytes(test->logits_dtype);
    const int64_t stride = test->num_experts + test->gap;
    const int64_t elements = count > 0 ? count * stride - test->gap : 0;
    struct support_guard logits = op_output(elements * (int64_t)bytes, bytes, SUPPORT_POISON_FLOAT);
    struct op_watch watch = {.variant = variant,
                             .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_ROUTER)),
                             .op = MOE_OP_ROUTER,
                             .num_tokens = count,
                             .outputs = {&logits},
                             .num_outputs = 1};
    struct moe_router_args args;
    MOE_INIT_CALL(args);
    args.weights = bind_router(variant, &problem, test, data);
    args.call.num_tokens = count;
    args.tokens = data->tokens.memory.data +
                  (size_t)(first * data->tokens.stride) * op_dtype_bytes(test->token_dtype);
    args.token_stride = data->tokens.stride;
    args.logits = logits.data;
    args.logits_stride = test->gap > 0 ? stride : 0;
    op_run(&watch, op_invoke_router, &args, &args.call);
    op_pack_rows(&logits, count, test->num_experts, stride, bytes, packed);
    support_guard_finish(&logits);
    op_api()->weights_destroy((struct moe_weights *)(uintptr_t)args.weights);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
}

static void make_data(struct support_random *random, const struct router_case *test,
                      struct router_data *data)
{
    const int64_t rows = test->transposed ? test->hidden : test->num_experts;
    const int64_t cols = test->transposed ? test->num_experts : test->hidden;
    op_tensor_init(&data->tokens, random, test->token_dtype, test->num_tokens, test->hidden,
                   test->gap, 1.0);
    op_tensor_init(&data->weight, random, test->weight_dtype, rows, cols, test->gap, 0.25);
    op_tensor_init(&data->bias, random, test->bias_dtype != 0 ? test->bias_dtype : MOE_DTYPE_FP32,
                   1, test->num_experts, 0, 1.0);
}

static void free_data(struct router_data *data)
{
    op_tensor_finish(&data->tokens);
    op_tensor_finish(&data->weight);
    op_tensor_finish(&data->bias);
}

static void check_logits(const struct router_case *test, const struct router_data *data,
                         const void *packed)
{
    const int64_t E = test->num_experts, H = test->hidden, count = test->num_tokens * E;
    double *weight = op_array(E * H, sizeof(double));
    double *expected = op_array(count, sizeof(double));
    double *tolerance = op_array(count, sizeof(double));
    for (int64_t e = 0; e < E; e++) {
        for (int64_t k = 0; k < H; k++) {
            weight[e * H + k] = data->weight.values[test->transposed ? k * E + e : e * H + k];
        }
    }
    ref_router(data->tokens.values, weight, test->bias_dtype != 0 ? data->bias.values : NULL,
               test->num_tokens, E, H, expected, tolerance);
    for (int64_t i = 0; i < count; i++) {
        tolerance[i] = ref_gemm_tolerance(
            (H + 7) / 8 + 4, REF_F32, op_ref_dtype(test->logits_dtype), tolerance[i], expected[i]);
    }
    assert_all_within(expected, tolerance, op_ref_dtype(test->logits_dtype), packed, count);
    free(tolerance);
    free(expected);
    free(weight);
}

static void check_case(const struct router_case *test, int64_t turn)
{
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    const int64_t count = test->num_tokens * test->num_experts;
    const size_t bytes = op_dtype_bytes(test->logits_dtype);
    struct support_random random;
    struct router_data data;
    support_random_seed(&random, (uint64_t)turn);
    make_data(&random, test, &data);
    unsigned char *first = op_array(count, bytes);
    unsigned char *other = op_array(count, bytes);
    run_router(variants[0], test, &data, 0, test->num_tokens, first);
    check_logits(test, &data, first);
    for (int v = 1; v < num_variants; v++) {
        run_router(variants[v], test, &data, 0, test->num_tokens, other);
        assert_bits_equal(first, other, count, bytes);
    }
    free(other);
    free(first);
    free_data(&data);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {OP_COUNT(token_counts),
                          OP_COUNT(expert_counts),
                          OP_COUNT(hiddens),
                          OP_COUNT(op_dtypes),
                          OP_COUNT(op_dtypes),
                          OP_COUNT(op_dtypes) + 1,
                          OP_COUNT(op_dtypes),
                          2 /* gap */,
                          2 /* transposed */};
    struct op_grid grid;
    op_grid_init(&grid, levels, OP_COUNT(levels), 3, 7);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[OP_COUNT(levels)];
        const bool runs = op_grid_row(&grid, row, pick);
        const struct router_case test = {
            .num_tokens = token_counts[pick[0]],
            .num_experts = expert_counts[pick[1]],
            .hidden = hiddens[pick[2]],
            .token_dtype = op_dtypes[pick[3]],
            .weight_dtype = op_dtypes[pick[4]],
            .bias_dtype = pick[5] < OP_COUNT(op_dtypes) ? op_dtypes[pick[5]] : 0,
            .logits_dtype = op_dtypes[pick[6]],
            .gap = 3 * pick[7],
            .transposed = pick[8] == 1,
        };
        if (runs) {
            check_case(&test, row);
        }
    }
    op_grid_finish(&grid);
}

/* Every token alone and at either end of a shorter batch, with every tile on every number of
 * threads. */
static void batch_does_not_change_a_token(void **state)
{
    (void)state;
    enum { T = 19, E = 37 };
    const struct router_case test = {.num_tokens = T,
                                     .num_experts = E,
                                     .hidden = 100,
                                     .token_dtype = MOE_DTYPE_BF16,
                                     .weight_dtype = MOE_DTYPE_FP16,
                                     .logits_dtype = MOE_DTYPE_FP32};
    struct support_random random;
    struct router_data data;
    float whole[T * E], part[T * E];
    support_random_seed(&random, 5);
    make_data(&random, &test, &data);
    run_router(op_variant(0, 1), &test, &data, 0, T, whole);
    for (int set = 0; set < op_plugin.num_tile_sets; set++) {
        for (int32_t threads = 1; threads <= OP_MAX_THREADS; threads++) {
            for (int64_t t = 0; t < T; t++) {
                run_router(op_variant(set, threads), &test, &data, t, 1, part);
                assert_bits_equal(whole + t * E, part, E, sizeof(float));
            }
            run_router(op_variant(set, threads), &test, &data, 3, 11, part);
            assert_bits_equal(whole + 3 * E, part, 11 * E, sizeof(float));
        }
    }
    free_data(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(batch_does_not_change_a_token),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
