/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 900 */
/* layer through the function table over the grid: against the reference, the same bits with every
 * tile and number of threads; its routing is that of the single operations. */
#include "layer_fixture.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int32_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int32_t topks[] = {1, 2, 8, 22};
static const struct {
    int32_t hidden;
    int32_t inter;
    int32_t shared_inter;
} shapes[] = {{33, 40, 0}, {40, 33, 0}, {72, 88, 100}, {100, 40, 33}, {200, 72, 0}, {40, 33, 72}};
static const int32_t activations[] = {MOE_ACTIVATION_SILU,      MOE_ACTIVATION_GELU,
                                      MOE_ACTIVATION_GELU_TANH, MOE_ACTIVATION_SWIGLU_OAI,
                                      MOE_ACTIVATION_RELU2,     MOE_ACTIVATION_IDENTITY};
static const int32_t gatings[] = {MOE_GATING_SOFTMAX, MOE_GATING_SIGMOID, MOE_GATING_TOPK_SOFTMAX,
                                  MOE_GATING_LLAMA4, MOE_GATING_SPARSEMIXER};

/* The factors of the grid come first; the others are drawn for each row. */
enum factor {
    TOKENS,
    EXPERTS,
    TOPK,
    SHAPE,
    ACTIVATION,
    GATING,
    SOURCE,
    TRAFFIC,
    FILTERING,
    LAYOUT,
    WEIGHT_DTYPE,
    TOKEN_DTYPE, /* and that of down */
    INTER_DTYPE, /* and that of logits */
    OUTPUT_DTYPE,
    FLAGS,  /* bit 0: ungated, bit 1: biases */
    TARGET, /* target, + LAYER_NUM_TARGETS: with a residual */
    NUM_GRID_FACTORS,
    WIDE = NUM_GRID_FACTORS,
    ON_INPUT,
    SIGMOID,
    SCALING,
    GAP,
    NUM_FACTORS
};

static struct layer_case make_case(const int *pick)
{
    const struct layer_case test = {.num_tokens = token_counts[pick[TOKENS]],
                                    .source = (enum layer_source)pick[SOURCE],
                                    .traffic = (enum op_traffic)pick[TRAFFIC],
                                    .filtering = (enum op_filtering)pick[FILTERING],
                                    .wide = pick[WIDE] == 1,
                                    .layout = (enum op_layout)pick[LAYOUT],
                                    .target = (enum layer_target)(pick[TARGET] % LAYER_NUM_TARGETS),
                                    .has_residual = pick[TARGET] >= LAYER_NUM_TARGETS,
                                    .gap = 3 * pick[GAP]};
    return test;
}

static struct moe_problem make_problem(const int *pick)
{
    const int32_t gating = gatings[pick[GATING]];
    const bool scored = gating == MOE_GATING_SOFTMAX || gating == MOE_GATING_SIGMOID;
    const bool oai = activations[pick[ACTIVATION]] == MOE_ACTIVATION_SWIGLU_OAI;
    const bool biased = (pick[FLAGS] & 2) != 0;
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = problem.num_experts_global = expert_counts[pick[EXPERTS]];
    problem.top_k = topks[pick[TOPK]];
    problem.hidden = shapes[pick[SHAPE]].hidden;
    problem.inter = shapes[pick[SHAPE]].inter;
    problem.shared_inter = shapes[pick[SHAPE]].shared_inter;
    problem.flags =
        ((pick[FLAGS] & 1) != 0 ? MOE_PROBLEM_UNGATED : 0) |
        (biased ? MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS | MOE_PROBLEM_ROUTER_BIAS : 0) |
        (biased && scored ? MOE_PROBLEM_CORRECTION_BIAS : 0) |
        (pick[SCALING] && scored ? MOE_PROBLEM_RENORMALIZE : 0) |
        (pick[ON_INPUT] ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0) |
        (pick[SIGMOID] && problem.shared_inter > 0 ? MOE_PROBLEM_SHARED_SIGMOID : 0);
    problem.activation = activations[pick[ACTIVATION]];
    problem.act_alpha = oai ? 1.702f : 0.0f;
    problem.act_limit = oai ? 1.5f : 0.0f;
    problem.gating = gating;
    problem.router_jitter = gating == MOE_GATING_SPARSEMIXER ? 0.01f : 0.0f;
    problem.scaling_on = pick[SCALING];
    problem.routed_scaling = pick[SCALING] != MOE_SCALING_NONE ? 2.5f : 0.0f;
    problem.tokens.dtype = op_dtypes[pick[TOKEN_DTYPE]];
    problem.down.dtype = op_dtypes[pick[TOKEN_DTYPE]];
    problem.gate_up.dtype = op_dtypes[pick[WEIGHT_DTYPE]];
    problem.intermediate.dtype = op_dtypes[pick[INTER_DTYPE]];
    problem.output_dtype = op_dtypes[pick[OUTPUT_DTYPE]];
    problem.logits_dtype = op_dtypes[pick[INTER_DTYPE]];
    problem.max_tokens = 1;
    return problem;
}

/* Moves a pick that no problem has to one near it, and one that takes too long to the smallest
 * shape. */
static void settle(int *pick)
{
    const int64_t limit = support_full_grids() ? INT64_C(1) << 28 : INT64_C(1) << 25;
    while (topks[pick[TOPK]] > expert_counts[pick[EXPERTS]]) {
        pick[TOPK]--;
    }
    if (gatings[pick[GATING]] == MOE_GATING_SPARSEMIXER) {
        pick[TOPK] = pick[EXPERTS] > 0 ? 1 : 0;
        pick[GATING] = pick[EXPERTS] > 0 ? pick[GATING] : 0;
    }
    if (activations[pick[ACTIVATION]] == MOE_ACTIVATION_SWIGLU_OAI) {
        pick[FLAGS] &= ~1;
    }
    const int64_t area = (int64_t)shapes[pick[SHAPE]].hidden * shapes[pick[SHAPE]].inter;
    if (token_counts[pick[TOKENS]] * topks[pick[TOPK]] * area > limit ||
        expert_counts[pick[EXPERTS]] * area > limit) {
        pick[SHAPE] = 0;
    }
}

/* ids, weights and logits are those of router and gating as single operations. */
static void check_routing(const struct op_variant *variant, const struct layer_data *data,
                          const struct layer_result *result)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t T = data->test.num_tokens, E = op_num_global(problem);
    const size_t logit_bytes = op_dtype_bytes(layer_logits_dtype(problem));
    const bool biased = (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0;
    struct moe_plan *plan = op_plan(variant->context, problem, 0);
    struct support_guard logits =
        op_output(T * E * (int64_t)logit_bytes, logit_bytes, SUPPORT_POISON_FLOAT);
    struct layer_outputs outputs;
    struct moe_layer_args layer;
    struct moe_router_args router;
    struct moe_gating_args gating;
    layer_fill_args(data, 0, T, &outputs, &layer);
    struct op_watch watch = {.variant = variant,
                             .plan = plan,
                             .op = MOE_OP_ROUTER,
                             .num_tokens = T,
                             .outputs = {&logits},
                             .num_outputs = 1};
    MOE_INIT_CALL(gating);
    if (data->test.source == LAYER_FROM_ROUTER) {
        MOE_INIT_CALL(router);
        router.call.num_tokens = T;
        router.weights = data->bound.weights;
        router.tokens = data->tokens.memory.data;
        router.token_stride = data->tokens.stride;
        router.logits = logits.data;
        op_run(&watch, op_invoke_router, &router, &router.call);
        assert_bits_equal(logits.data, result->logits, T * E, logit_bytes);
        gating.logits = logits.data;
    } else {
        gating.logits = data->logits.memory.data;
        gating.logits_stride = data->logits.stride;
    }
    gating.call.num_tokens = T;
    gating.correction_bias = biased ? OP_FLOAT(data->bound.memory[OP_CORRECTION_BIAS]) : NULL;
    gating.topk_ids = outputs.ids.data;
    gating.topk_weights = OP_FLOAT(outputs.weights);
    gating.ids_dtype = layer.ids_dtype;
    watch.op = MOE_OP_GATING;
    watch.outputs[0] = &outputs.ids;
    op_run(&watch, op_invoke_gating, &gating, &gating.call);
    assert_bits_equal(outputs.ids.data, result->ids, T * problem->top_k, data->test.wide ? 8 : 4);
    assert_bits_equal(outputs.weights.data, result->weights, T * problem->top_k, 4);
    op_api()->plan_destroy(plan);
    support_guard_finish(&logits);
    layer_outputs_finish(&outputs);
}

static void check_case(const int *pick, int64_t turn)
{
    const struct layer_case test = make_case(pick);
    const struct moe_problem problem = make_problem(pick);
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    struct layer_data data;
    struct layer_result first, other;
    layer_data_init(&data, (uint64_t)turn, &problem, &test);
    layer_result_init(&first, &data);
    layer_result_init(&other, &data);
    layer_run(variants[0], &data, 0, test.num_tokens, &first);
    if (test.source != LAYER_FROM_IDS) {
        check_routing(variants[0], &data, &first);
    }
    layer_check(&data, &first);
    for (int v = 1; v < num_variants; v++) {
        layer_run(variants[v], &data, 0, test.num_tokens, &other);
        layer_compare(&data, &first, &other);
    }
    layer_result_finish(&first);
    layer_result_finish(&other);
    layer_data_finish(&data);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[NUM_FACTORS] = {[TOKENS] = OP_COUNT(token_counts),
                                     [EXPERTS] = OP_COUNT(expert_counts),
                                     [TOPK] = OP_COUNT(topks),
                                     [SHAPE] = OP_COUNT(shapes),
                                     [ACTIVATION] = OP_COUNT(activations),
                                     [GATING] = OP_COUNT(gatings),
                                     [SOURCE] = LAYER_NUM_SOURCES,
                                     [TRAFFIC] = OP_NUM_TRAFFICS,
                                     [FILTERING] = OP_NUM_FILTERINGS,
                                     [LAYOUT] = OP_NUM_LAYOUTS,
                                     [WEIGHT_DTYPE] = OP_COUNT(op_dtypes),
                                     [TOKEN_DTYPE] = OP_COUNT(op_dtypes),
                                     [INTER_DTYPE] = OP_COUNT(op_dtypes),
                                     [OUTPUT_DTYPE] = OP_COUNT(op_dtypes),
                                     [FLAGS] = 4,
                                     [TARGET] = 2 * LAYER_NUM_TARGETS,
                                     [WIDE] = 2,
                                     [ON_INPUT] = 2,
                                     [SIGMOID] = 2,
                                     [SCALING] = 3,
                                     [GAP] = 2};
    struct op_grid grid;
    struct support_random random;
    support_random_seed(&random, 17);
    op_grid_init(&grid, levels, NUM_GRID_FACTORS, SHAPE + 1, 6);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[NUM_FACTORS];
        const bool runs = op_grid_row(&grid, row, pick);
        for (int factor = NUM_GRID_FACTORS; factor < NUM_FACTORS; factor++) {
            pick[factor] = (int)support_random_below(&random, (uint64_t)levels[factor]);
        }
        settle(pick);
        if (runs) {
            check_case(pick, row);
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
