/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 600 */
/*
 * Differential fuzzing of the layer: random problems, plain and fp8 (every kind and layout of
 * scales), batches, filters, layouts and destinations, physical maps, appended experts, padding,
 * load counters and numbers of tokens on the device, each against the reference, in a random
 * variant (tiles and threads) and again in another under a random cap of the workspace, a few
 * tokens alone, and what is routed against the operation gating. A fixed set of seeds runs in the
 * suite;
 *
 *   MOE_FUZZ_SECONDS=300 MOE_FUZZ_SEED=1 test_layer_layer_differential
 *
 * goes on with seeds from that one for that long. A failure names its seed.
 */
#include "layer_fixture.h"

#include <time.h>

#define NUM_FIXED_SEEDS 600
#define MAX_WORK        ((int64_t)3000000) /* multiply-adds of one case */
#define MAX_REPLICAS    3
#define REPLICA_CYCLE   6 /* a multiple of every number of replicas */

static int64_t draw(struct support_random *random, int64_t low, int64_t high)
{
    return low + (int64_t)support_random_below(random, (uint64_t)(high - low + 1));
}

/* Small numbers often, large ones sometimes. */
static int64_t draw_size(struct support_random *random, int64_t high)
{
    const int64_t limit = draw(random, 0, 3) == 0 ? high : high / 8 > 0 ? high / 8 : 1;
    return draw(random, 1, limit);
}

static int32_t draw_dtype(struct support_random *random)
{
    return op_dtypes[draw(random, 0, OP_COUNT(op_dtypes) - 1)];
}

static void draw_gating(struct support_random *random, struct moe_problem *problem)
{
    static const int32_t rules[] = {MOE_GATING_SOFTMAX, MOE_GATING_SIGMOID, MOE_GATING_TOPK_SOFTMAX,
                                    MOE_GATING_LLAMA4, MOE_GATING_SPARSEMIXER};
    problem->gating = rules[draw(random, 0, OP_COUNT(rules) - 1)];
    if (problem->gating == MOE_GATING_SPARSEMIXER) {
        problem->gating = problem->num_experts_global >= 2 ? problem->gating : MOE_GATING_LLAMA4;
        problem->top_k = problem->num_experts_global >= 2 ? 2 : 1;
        problem->router_jitter = problem->num_experts_global >= 2 ? 0.01f : 0.0f;
        return;
    }
    if (problem->gating != MOE_GATING_SOFTMAX && problem->gating != MOE_GATING_SIGMOID) {
        return;
    }
    problem->flags |= draw(random, 0, 1) ? MOE_PROBLEM_RENORMALIZE : 0u;
    problem->flags |= draw(random, 0, 1) ? MOE_PROBLEM_CORRECTION_BIAS : 0u;
    const int32_t num_groups = (int32_t)draw(random, 1, 4);
    const int32_t group_experts = problem->num_experts_global / num_groups;
    const int32_t topk_groups = (int32_t)draw(random, 1, num_groups);
    if (problem->num_experts_global % num_groups == 0 && group_experts >= 2 &&
        group_experts * topk_groups >= problem->top_k) {
        problem->num_groups = num_groups;
        problem->topk_groups = topk_groups;
        problem->group_score = (int32_t)draw(random, MOE_GROUP_SCORE_MAX, MOE_GROUP_SCORE_TOP2_SUM);
    }
}

static void draw_problem(struct support_random *random, struct moe_problem *problem)
{
    MOE_INIT(*problem);
    problem->num_experts = problem->num_experts_global = (int32_t)draw_size(random, 300);
    const int64_t most = problem->num_experts_global < 24 ? problem->num_experts_global : 24;
    problem->top_k = (int32_t)draw_size(random, most);
    problem->hidden = (int32_t)draw_size(random, 300);
    problem->inter = (int32_t)draw_size(random, 200);
    problem->shared_inter = draw(random, 0, 2) == 0 ? (int32_t)draw_size(random, 120) : 0;
    problem->activation = (int32_t)draw(random, MOE_ACTIVATION_SILU, MOE_ACTIVATION_IDENTITY);
    if (problem->activation == MOE_ACTIVATION_SWIGLU_OAI) {
        problem->act_alpha = 1.702f;
        problem->act_limit = draw(random, 0, 1) ? 1.5f : 0.0f;
    } else {
        problem->flags |= draw(random, 0, 2) == 0 ? MOE_PROBLEM_UNGATED : 0u;
    }
    if (draw(random, 0, 1)) {
        problem->flags |=
            MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS | MOE_PROBLEM_ROUTER_BIAS;
    }
    problem->flags |= draw(random, 0, 3) == 0 ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0u;
    if (problem->shared_inter > 0 && draw(random, 0, 1)) {
        problem->flags |= MOE_PROBLEM_SHARED_SIGMOID;
    }
    draw_gating(random, problem);
    problem->scaling_on = (int32_t)draw(random, MOE_SCALING_NONE, MOE_SCALING_OUTPUT);
    problem->routed_scaling = problem->scaling_on != MOE_SCALING_NONE ? 2.5f : 0.0f;
    problem->tokens.dtype = draw_dtype(random);
    problem->gate_up.dtype = draw_dtype(random);
    problem->intermediate.dtype = draw_dtype(random);
    problem->down.dtype = draw_dtype(random);
    problem->output_dtype = draw_dtype(random);
    problem->logits_dtype = draw_dtype(random);
    problem->max_tokens = 1;
    if (draw(random, 0, 2) == 0) {
        problem->num_physical_experts = problem->num_experts_global + (int32_t)draw(random, 0, 5);
    }
    if (draw(random, 0, 3) == 0) {
        problem->num_appended_experts = (int32_t)draw(random, 1, 2);
        problem->appended_weight = 0.5f;
    }
    if (draw(random, 0, 1)) {
        if (problem->num_experts <= 24) { /* several blocks of 128 */
            problem->hidden = (int32_t)draw(random, 1, 300);
            problem->inter = (int32_t)draw(random, 1, 300);
        }
        op_draw_fp8(random, problem);
    }
}

static void draw_case(struct support_random *random, const struct moe_problem *problem,
                      struct layer_case *test)
{
    const int64_t token_work = (int64_t)problem->hidden * problem->inter * problem->top_k * 3 +
                               (int64_t)problem->hidden * problem->shared_inter * 3 + 1;
    const int64_t most = MAX_WORK / token_work > 300 ? 300 : MAX_WORK / token_work;
    *test = (struct layer_case){
        .num_tokens = draw(random, 0, 9) == 0 ? 0 : draw_size(random, most > 0 ? most : 1),
        .source = (enum layer_source)draw(random, 0, LAYER_NUM_SOURCES - 1),
        .traffic = (enum op_traffic)draw(random, 0, OP_NUM_TRAFFICS - 1),
        .filtering = (enum op_filtering)draw(random, 0, OP_NUM_FILTERINGS - 1),
        .wide = draw(random, 0, 1) == 1,
        .layout = (enum op_layout)draw(random, 0, OP_NUM_LAYOUTS - 1),
        .target = (enum layer_target)draw(random, 0, LAYER_NUM_TARGETS - 1),
        .has_residual = draw(random, 0, 1) == 1,
        .gap = draw(random, 0, 5)};
    const int64_t T = test->num_tokens;
    test->num_behind = draw(random, 0, 3) == 0 ? draw(random, 0, T) : 0;
    if (test->source != LAYER_FROM_IDS) {
        test->num_padded = draw(random, 0, 2) == 0 ? draw(random, 0, T) : 0;
        test->max_replicas = draw(random, 0, 2) == 0 ? (int32_t)draw(random, 1, MAX_REPLICAS) : 0;
        test->has_load = draw(random, 0, 1) == 1;
    }
    if (op_is_fp8(&problem->tokens) && test->source == LAYER_FROM_ROUTER) {
        test->source = LAYER_FROM_LOGITS; /* the router reads plain tokens */
    }
}

/* A few tokens alone give the rows that they gave in the batch. A token's replicas depend on its
 * place; alone, it is the first. */
static void check_alone(const struct op_variant *variant, struct layer_data *data,
                        struct support_random *random, const struct layer_result *batch)
{
    const struct moe_problem *problem = &data->model.problem;
    const size_t row_bytes = (size_t)problem->hidden * op_dtype_bytes(op_output_dtype(problem));
    struct layer_result alone;
    layer_result_init(&alone, data);
    for (int i = 0; i < 3 && data->test.num_tokens > 0; i++) {
        int64_t token = draw(random, 0, data->test.num_tokens - 1);
        token -= data->test.max_replicas > 0 ? token % REPLICA_CYCLE : 0;
        layer_run(variant, data, token, 1, &alone);
        assert_bits_equal(alone.output, batch->output + (size_t)token * row_bytes, problem->hidden,
                          op_dtype_bytes(op_output_dtype(problem)));
    }
    layer_result_finish(&alone);
}

/* Again with a workspace that may hold a part of the tokens only, if it holds any. */
static void run_capped(const struct op_variant *variant, struct layer_data *data,
                       struct support_random *random, struct layer_result *result)
{
    const struct moe_problem *problem = &data->model.problem;
    struct moe_plan_info info;
    struct moe_plan_options options;
    struct moe_plan *plan = op_plan(variant->context, problem, OP_BIT(MOE_OP_LAYER)), *capped;
    MOE_INIT(info);
    MOE_INIT(options);
    assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
    options.ops = OP_BIT(MOE_OP_LAYER);
    options.workspace_cap = (uint64_t)draw(random, 1, (int64_t)info.workspace_bytes);
    const int32_t status =
        op_api()->plan_create(variant->context, problem, &options, &capped, NULL);
    op_bind(&data->bound, &data->model, variant->context);
    if (status == MOE_STATUS_OK) {
        op_api()->plan_destroy(plan);
        plan = capped;
    } else {
        assert_int_equal(status, MOE_STATUS_WORKSPACE_TOO_SMALL);
    }
    layer_run_plan(variant, plan, data, 0, data->test.num_tokens, result);
    op_api()->plan_destroy(plan);
}

/* Ids, weights and counters are those of the operation gating with the same members. */
static void check_gating(const struct op_variant *variant, const struct layer_data *data,
                         const struct layer_result *result)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t T = data->test.num_tokens, run = T - data->test.num_behind;
    const int64_t G = op_num_global(problem), slots = op_num_slots(problem);
    struct layer_outputs outputs;
    struct moe_layer_args layer;
    struct moe_gating_args gating;
    layer_fill_args(data, 0, T, &outputs, &layer);
    MOE_INIT_CALL(gating);
    gating.call.num_tokens = T;
    gating.call.num_tokens_device = layer.call.num_tokens_device;
    gating.logits = layer.logits != NULL ? layer.logits : result->logits;
    gating.logits_stride = layer.logits_stride;
    if (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) {
        gating.correction_bias =
            (const float *)(const void *)data->model.matrices[OP_CORRECTION_BIAS].native;
    }
    gating.topk_ids = outputs.ids.data;
    gating.topk_weights = OP_FLOAT(outputs.weights);
    gating.ids_dtype = layer.ids_dtype;
    gating.num_valid_tokens = layer.num_valid_tokens;
    gating.physical_ids = layer.physical_ids;
    gating.num_replicas = layer.num_replicas;
    gating.max_replicas = (int32_t)layer.max_replicas;
    gating.load_counters = layer.load_counters;
    const struct op_watch watch = {.variant = variant,
                                   .plan =
                                       op_plan(variant->context, problem, OP_BIT(MOE_OP_GATING)),
                                   .op = MOE_OP_GATING,
                                   .num_tokens = T,
                                   .outputs = {&outputs.ids, &outputs.weights, &outputs.load},
                                   .num_outputs = 3};
    op_run(&watch, op_invoke_gating, &gating, &gating.call);
    assert_bits_equal(result->ids, outputs.ids.data, run * slots, data->test.wide ? 8 : 4);
    assert_bits_equal(result->weights, outputs.weights.data, run * slots, 4);
    int64_t num_routes = 0;
    for (int64_t e = 0; data->test.has_load && e < G; e++) {
        assert_int_equal(result->load[e], OP_INT64(outputs.load)[e] - LAYER_LOAD_BEFORE - e);
        num_routes += result->load[e];
    }
    const int64_t num_valid = T - data->test.num_padded < run ? T - data->test.num_padded : run;
    assert_int_equal(num_routes, data->test.has_load ? num_valid * problem->top_k : 0);
    op_api()->plan_destroy((struct moe_plan *)watch.plan);
    layer_outputs_finish(&outputs);
}

static void run_seed(uint64_t seed)
{
    struct support_random random;
    struct moe_problem problem;
    struct layer_case test;
    const struct op_variant *variants[OP_MAX_VARIANTS];
    struct layer_data data;
    struct layer_result first, other;
    support_random_seed(&random, seed);
    draw_problem(&random, &problem);
    draw_case(&random, &problem, &test);
    const int num_variants = op_list_variants((int64_t)seed, variants);
    const int a = (int)draw(&random, 0, num_variants - 1);
    const int b = (int)draw(&random, 0, num_variants - 1);
    layer_data_init(&data, seed, &problem, &test);
    layer_result_init(&first, &data);
    layer_result_init(&other, &data);
    layer_run(variants[a], &data, 0, test.num_tokens, &first);
    layer_check(&data, &first);
    run_capped(variants[b], &data, &random, &other);
    layer_compare(&data, &first, &other);
    check_alone(variants[b], &data, &random, &first);
    if (test.source != LAYER_FROM_IDS) {
        check_gating(variants[b], &data, &first);
    }
    layer_result_finish(&first);
    layer_result_finish(&other);
    layer_data_finish(&data);
}

static uint64_t current_seed;

static void random_layers_match_the_reference(void **state)
{
    (void)state;
    const char *seconds = getenv("MOE_FUZZ_SECONDS"), *first = getenv("MOE_FUZZ_SEED");
    const time_t end = time(NULL) + (seconds != NULL ? strtol(seconds, NULL, 10) : 0);
    const uint64_t begin = first != NULL ? strtoull(first, NULL, 10) : 1;
    uint64_t num_run = 0;
    for (; seconds != NULL ? time(NULL) < end : num_run < NUM_FIXED_SEEDS; num_run++) {
        current_seed = begin + num_run;
        run_seed(current_seed);
    }
    assert_true(num_run > 0);
    print_message("%llu seeds from %llu\n", (unsigned long long)num_run, (unsigned long long)begin);
    current_seed = 0;
}

static int teardown(void **state)
{
    if (current_seed != 0) {
        print_error("the seed that failed: MOE_FUZZ_SECONDS=1 MOE_FUZZ_SEED=%llu\n",
                    (unsigned long long)current_seed);
    }
    return op_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_layers_match_the_reference),
    };
    return cmocka_run_group_tests(tests, op_setup, teardown);
}
