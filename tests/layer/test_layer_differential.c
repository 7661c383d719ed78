/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 600 */
/*
 * Differential fuzzing of the layer: random problems, plain and fp8 (every kind and layout of
 * scales), batches, filters, layouts and destinations, each against the reference, in a random
 * variant (tiles and threads) and again in another, and a few tokens alone. A fixed set of seeds
 * runs in the suite;
 *
 *   MOE_FUZZ_SECONDS=300 MOE_FUZZ_SEED=1 test_layer_layer_differential
 *
 * goes on with seeds from that one for that long. A failure names its seed.
 */
#include "layer_fixture.h"

#include <time.h>

#define NUM_FIXED_SEEDS 600
#define MAX_WORK        ((int64_t)3000000) /* multiply-adds of one case */

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
    if (op_is_fp8(&problem->tokens) && test->source == LAYER_FROM_ROUTER) {
        test->source = LAYER_FROM_LOGITS; /* the router reads plain tokens */
    }
}

/* A few tokens alone give the rows that they gave in the batch. */
static void check_alone(const struct op_variant *variant, struct layer_data *data,
                        struct support_random *random, const struct layer_result *batch)
{
    const struct moe_problem *problem = &data->model.problem;
    const size_t row_bytes = (size_t)problem->hidden * op_dtype_bytes(op_output_dtype(problem));
    struct layer_result alone;
    layer_result_init(&alone, data);
    for (int i = 0; i < 3 && data->test.num_tokens > 0; i++) {
        const int64_t token = draw(random, 0, data->test.num_tokens - 1);
        layer_run(variant, data, token, 1, &alone);
        assert_bits_equal(alone.output, batch->output + (size_t)token * row_bytes, problem->hidden,
                          op_dtype_bytes(op_output_dtype(problem)));
    }
    layer_result_finish(&alone);
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
    layer_run(variants[b], &data, 0, test.num_tokens, &other);
    layer_compare(&data, &first, &other);
    check_alone(variants[b], &data, &random, &first);
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
