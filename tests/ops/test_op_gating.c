/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 900 */
/* gating through the function table: every rule over the grid against the reference, the same bits
 * with every tile and number of threads, and what a plan or a call refuses. */
#include "op_data.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int32_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int32_t topks[] = {1, 2, 8, 22};

static const struct {
    int32_t gating;
    enum ref_gate_method method;
    bool scored; /* knows groups, correction bias, renormalization */
} rules[] = {
    {MOE_GATING_SOFTMAX, REF_GATE_SOFTMAX, true},
    {MOE_GATING_SIGMOID, REF_GATE_SIGMOID, true},
    {MOE_GATING_TOPK_SOFTMAX, REF_GATE_TOPK_SOFTMAX, false},
    {MOE_GATING_LLAMA4, REF_GATE_TOPK_SIGMOID, false},
    {MOE_GATING_SPARSEMIXER, REF_GATE_SPARSE_MIXER, false},
};
enum { SPARSEMIXER = 4, MAX_SLOTS = 24 };
enum grouping { NO_GROUPS, GROUPS_BY_MAX, GROUPS_BY_TOP2, NUM_GROUPINGS };

struct gate_case {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t top_k;
    int rule;
    int32_t dtype;
    enum grouping grouping;
    bool has_bias;
    bool renormalize;
    bool wide;
    int32_t num_appended;
    bool special; /* NaN, infinities and zeros among the logits */
    int64_t gap;
    float scaling;
};

static int32_t num_groups(const struct gate_case *test)
{
    return test->grouping == NO_GROUPS ? 1 : test->num_experts % 4 == 0 ? 4 : test->num_experts;
}

static struct moe_problem make_problem(const struct gate_case *test)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.flags = (test->has_bias ? MOE_PROBLEM_CORRECTION_BIAS : 0) |
                    (test->renormalize ? MOE_PROBLEM_RENORMALIZE : 0);
    problem.num_experts = test->num_experts;
    problem.top_k = test->top_k;
    problem.gating = rules[test->rule].gating;
    problem.num_groups = num_groups(test);
    problem.topk_groups = test->grouping == NO_GROUPS ? 0 : (num_groups(test) + 1) / 2;
    problem.group_score =
        test->grouping == GROUPS_BY_TOP2 ? MOE_GROUP_SCORE_TOP2_SUM : MOE_GROUP_SCORE_MAX;
    problem.router_jitter = test->rule == SPARSEMIXER ? 0.01f : 0.0f;
    problem.routed_scaling = test->scaling;
    problem.scaling_on = test->scaling != 0.0f ? MOE_SCALING_WEIGHTS : MOE_SCALING_NONE;
    problem.logits_dtype = test->dtype;
    problem.num_appended_experts = test->num_appended;
    problem.appended_weight = 0.25f;
    problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    return problem;
}

struct gate_data {
    struct op_tensor logits;
    struct op_tensor bias;
};

static void make_data(struct support_random *random, const struct gate_case *test,
                      struct gate_data *data)
{
    const double specials[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, 0.0, 60000.0};
    const enum ref_dtype dtype = op_ref_dtype(test->dtype);
    op_tensor_init(&data->logits, random, test->dtype, test->num_tokens, test->num_experts,
                   test->gap, 2.0);
    op_tensor_init(&data->bias, random, MOE_DTYPE_FP32, 1, test->num_experts, 0, 0.3);
    for (int64_t i = 0; test->special && i < test->num_tokens * test->num_experts; i++) {
        if (support_random_below(random, 4) == 0) {
            const int64_t at = i / test->num_experts * data->logits.stride + i % test->num_experts;
            ref_store(dtype, data->logits.memory.data, at,
                      specials[support_random_below(random, 5)]);
            data->logits.values[i] = ref_load(dtype, data->logits.memory.data, at);
        }
    }
}

struct gate_result {
    unsigned char *ids; /* int32 or int64 */
    float *weights;
};

static void run_gating(const struct op_variant *variant, const struct gate_case *test,
                       const struct gate_data *data, int64_t first, int64_t count,
                       const struct gate_result *result)
{
    const struct moe_problem problem = make_problem(test);
    const int64_t slots = count * (test->top_k + test->num_appended);
    const size_t id_bytes = test->wide ? 8 : 4;
    struct support_guard ids = op_output(slots * (int64_t)id_bytes, id_bytes, SUPPORT_POISON_INT);
    struct support_guard weights = op_output(slots * 4, 4, SUPPORT_POISON_FLOAT);
    struct op_watch watch = {.variant = variant,
                             .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_GATING)),
                             .op = MOE_OP_GATING,
                             .num_tokens = count,
                             .outputs = {&ids, &weights},
                             .num_outputs = 2};
    struct moe_gating_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = count;
    args.logits = data->logits.memory.data +
                  (size_t)(first * data->logits.stride) * op_dtype_bytes(test->dtype);
    args.logits_stride = data->logits.stride;
    args.correction_bias = test->has_bias ? OP_FLOAT(data->bias.memory) : NULL;
    args.topk_ids = ids.data;
    args.topk_weights = OP_FLOAT(weights);
    args.ids_dtype = test->wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
    op_run(&watch, op_invoke_gating, &args, &args.call);
    memcpy(result->ids, ids.data, ids.size);
    memcpy(result->weights, weights.data, weights.size);
    support_guard_finish(&ids);
    support_guard_finish(&weights);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
}

static int64_t load_id(const struct gate_case *test, const struct gate_result *result, int64_t at)
{
    int64_t wide;
    int32_t narrow;
    if (test->wide) {
        memcpy(&wide, result->ids + at * 8, 8);
        return wide;
    }
    memcpy(&narrow, result->ids + at * 4, 4);
    return narrow;
}

/*
 * How far an fp32 weight may be from the exact one, relative: a score is exp(logit - max) / sum or
 * a logistic; the difference is rounded once (2^-24 of at most 128, beyond which exp is 0), exp
 * and logistic are off by a few ulp, the sum by ceil(E / 8) + 3 roundings, and scaling,
 * renormalization and division by one each.
 */
static double weight_tolerance(const struct gate_case *test)
{
    const double roundings = 128.0 + 16.0 + (test->num_experts + 7.0) / 8.0 + test->top_k;
    return roundings * 0x1p-23;
}

static struct ref_gate_rule make_rule(const struct gate_case *test, const double *bias)
{
    const struct moe_problem problem = make_problem(test);
    const double margin = 2.0 * weight_tolerance(test);
    const struct ref_gate_rule rule = {
        .method = rules[test->rule].method,
        .num_experts = test->num_experts,
        .top_k = test->top_k,
        .bias = test->has_bias ? bias : NULL,
        .num_groups = problem.num_groups,
        .topk_groups = problem.topk_groups,
        .group_score = test->grouping == GROUPS_BY_TOP2 ? REF_GROUP_TOP2_SUM : REF_GROUP_MAX,
        .renormalize = test->renormalize,
        .scaling_factor = test->scaling != 0.0f ? (double)test->scaling : 1.0,
        .jitter_eps = (double)0.01f,
        .num_shared = test->num_appended,
        .shared_weight = 0.25,
        /* Scores that the reference rounds to zero have no order there. */
        .abs_margin = test->has_bias ? margin : 1e-37,
        .rel_margin = margin,
    };
    return rule;
}

/* What holds for every token, near ties included: distinct ids in range, finite weights, none
 * negative. */
static void check_token(const struct gate_case *test, const struct gate_result *result,
                        int64_t token)
{
    const int64_t num_slots = test->top_k + test->num_appended;
    for (int64_t j = 0; j < num_slots; j++) {
        const int64_t id = load_id(test, result, token * num_slots + j);
        const float weight = result->weights[token * num_slots + j];
        assert_true(isfinite(weight) && weight >= 0.0f);
        if (j >= test->top_k) {
            assert_int_equal(id, test->num_experts + j - test->top_k);
            continue;
        }
        assert_true(id >= 0 && id < test->num_experts);
        for (int64_t i = 0; i < j; i++) {
            assert_true(load_id(test, result, token * num_slots + i) != id);
        }
    }
}

/* Returns how many tokens were compared in full. */
static int64_t check_result(const struct gate_case *test, const struct gate_data *data,
                            const struct gate_result *result)
{
    const int64_t num_slots = test->top_k + test->num_appended;
    const int64_t slots = test->num_tokens * num_slots;
    const double tolerance = weight_tolerance(test);
    struct ref_gate_result expected = {op_array(slots, 4), op_array(slots, 8),
                                       op_array(test->num_tokens, 1),
                                       op_array(test->num_tokens, 1)};
    const struct ref_gate_rule rule = make_rule(test, data->bias.values);
    int64_t num_compared = 0;
    ref_gate(&rule, data->logits.values, test->num_tokens, test->num_tokens, &expected);
    for (int64_t t = 0; t < test->num_tokens; t++) {
        check_token(test, result, t);
        if (expected.ambiguous_set[t] || expected.ambiguous_order[t]) {
            continue;
        }
        num_compared++;
        for (int64_t at = t * num_slots; at < (t + 1) * num_slots; at++) {
            const double error = fabs((double)result->weights[at] - expected.weights[at]);
            assert_int_equal(load_id(test, result, at), expected.ids[at]);
            assert_true(error <= tolerance * expected.weights[at] + 0x1p-126);
        }
    }
    free(expected.ids);
    free(expected.weights);
    free(expected.ambiguous_set);
    free(expected.ambiguous_order);
    return num_compared;
}

static int64_t check_case(const struct gate_case *test, int64_t turn)
{
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    const int64_t slots = test->num_tokens * (test->top_k + test->num_appended);
    struct gate_result first = {op_array(slots, 8), op_array(slots, 4)};
    struct gate_result other = {op_array(slots, 8), op_array(slots, 4)};
    struct support_random random;
    struct gate_data data;
    support_random_seed(&random, (uint64_t)turn + 31);
    make_data(&random, test, &data);
    run_gating(variants[0], test, &data, 0, test->num_tokens, &first);
    const int64_t num_compared = check_result(test, &data, &first);
    for (int v = 1; v < num_variants; v++) {
        run_gating(variants[v], test, &data, 0, test->num_tokens, &other);
        assert_bits_equal(first.ids, other.ids, slots, test->wide ? 8 : 4);
        assert_bits_equal(first.weights, other.weights, slots, 4);
    }
    op_tensor_finish(&data.logits);
    op_tensor_finish(&data.bias);
    free(first.ids);
    free(first.weights);
    free(other.ids);
    free(other.weights);
    return num_compared;
}

enum factor {
    TOKENS,
    EXPERTS,
    TOPK,
    RULE,
    DTYPE,
    GROUPS,
    BIAS,
    RENORMALIZE,
    WIDE,
    APPENDED,
    SPECIAL,
    GAP,
    SCALING,
    NUM_FACTORS
};

static struct gate_case make_case(const int *pick)
{
    const struct gate_case test = {
        .num_tokens = token_counts[pick[TOKENS]],
        .num_experts = expert_counts[pick[EXPERTS]],
        .top_k = topks[pick[TOPK]],
        .rule = pick[RULE],
        .dtype = op_dtypes[pick[DTYPE]],
        .grouping = (enum grouping)pick[GROUPS],
        .has_bias = pick[BIAS] == 1,
        .renormalize = pick[RENORMALIZE] == 1,
        .wide = pick[WIDE] == 1,
        .num_appended = 2 * pick[APPENDED],
        .special = pick[SPECIAL] == 1,
        .gap = 3 * pick[GAP],
        .scaling = pick[SCALING] == 1 ? 2.5f : 0.0f,
    };
    return test;
}

/* Moves a pick that no rule allows to one near it. */
static void settle(int *pick)
{
    if (!rules[pick[RULE]].scored) {
        pick[GROUPS] = NO_GROUPS;
        pick[BIAS] = pick[RENORMALIZE] = 0;
    }
    if (pick[RULE] == SPARSEMIXER) {
        pick[TOPK] = 1;
        pick[EXPERTS] = pick[EXPERTS] > 0 ? pick[EXPERTS] : 1;
    }
    if (pick[GROUPS] == GROUPS_BY_TOP2 && expert_counts[pick[EXPERTS]] % 4 != 0) {
        pick[GROUPS] = GROUPS_BY_MAX; /* groups of one expert have no second */
    }
    const struct gate_case test = make_case(pick);
    const int32_t groups = num_groups(&test);
    const int32_t eligible = test.num_experts / groups * ((groups + 1) / 2);
    while (topks[pick[TOPK]] > eligible) {
        pick[TOPK]--;
    }
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[NUM_FACTORS] = {[TOKENS] = OP_COUNT(token_counts),
                                     [EXPERTS] = OP_COUNT(expert_counts),
                                     [TOPK] = OP_COUNT(topks),
                                     [RULE] = OP_COUNT(rules),
                                     [DTYPE] = OP_COUNT(op_dtypes),
                                     [GROUPS] = NUM_GROUPINGS,
                                     [BIAS] = 2,
                                     [RENORMALIZE] = 2,
                                     [WIDE] = 2,
                                     [APPENDED] = 2,
                                     [SPECIAL] = 2,
                                     [GAP] = 2,
                                     [SCALING] = 2};
    struct op_grid grid;
    int64_t num_tokens = 0, num_compared = 0;
    op_grid_init(&grid, levels, NUM_FACTORS, RULE + 1, 5);
    assert_true(grid.grid.num_rows >= 30);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[NUM_FACTORS];
        const bool runs = op_grid_row(&grid, row, pick);
        settle(pick);
        const struct gate_case test = make_case(pick);
        if (runs) {
            num_tokens += test.num_tokens;
            num_compared += check_case(&test, row);
        }
    }
    op_grid_finish(&grid);
    print_message("%lld of %lld tokens compared in full\n", (long long)num_compared,
                  (long long)num_tokens);
    assert_true(num_compared * 3 > num_tokens);
}

/* A problem that mixes what does not belong together is refused where the plan is made. */
static void combinations_outside_the_rules_are_refused(void **state)
{
    (void)state;
    const struct gate_case plain = {
        .num_tokens = 4, .num_experts = 8, .top_k = 2, .dtype = MOE_DTYPE_FP32};
    struct moe_error error;
    struct moe_plan *plan = NULL;
    struct moe_plan_options options;
    MOE_INIT(error);
    MOE_INIT(options);
    options.ops = OP_BIT(MOE_OP_GATING);
    for (int kind = 0; kind < 8; kind++) {
        struct moe_problem problem = make_problem(&plain);
        switch (kind) {
        case 0:
            problem.gating = MOE_GATING_LLAMA4;
            problem.flags = MOE_PROBLEM_RENORMALIZE;
            break;
        case 1:
            problem.gating = MOE_GATING_TOPK_SOFTMAX;
            problem.flags = MOE_PROBLEM_CORRECTION_BIAS;
            break;
        case 2:
            problem.gating = MOE_GATING_SPARSEMIXER;
            problem.top_k = 1;
            break;
        case 3:
            problem.num_groups = 3;
            problem.topk_groups = 1;
            break;
        case 4:
            problem.num_groups = 8; /* one expert each: two do not fit one group */
            problem.topk_groups = 1;
            break;
        case 5:
            problem.top_k = 9;
            break;
        case 6:
            problem.gating = 6;
            break;
        default:
            problem.gating = MOE_GATING_NONE;
            break;
        }
        op_assert_status(
            MOE_STATUS_INVALID_ARGUMENT,
            op_api()->plan_create(op_variant(0, 1)->context, &problem, &options, &plan, &error),
            error);
        assert_null(plan);
    }
}

static void calls_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    const struct gate_case test = {
        .num_tokens = 4, .num_experts = 8, .top_k = 2, .dtype = MOE_DTYPE_FP32};
    const struct moe_problem problem = make_problem(&test);
    const struct op_variant *variant = op_variant(0, 1);
    struct support_guard ids = op_output(4 * 2 * 8, 8, SUPPORT_POISON_INT);
    struct support_guard weights = op_output(4 * 2 * 4, 4, SUPPORT_POISON_FLOAT);
    float logits[4 * 8] = {0};
    struct op_watch watch = {.plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_GATING)),
                             .outputs = {&ids, &weights},
                             .num_outputs = 2};
    struct moe_gating_args good;
    MOE_INIT_CALL(good);
    good.call.num_tokens = 4;
    good.logits = logits;
    good.topk_ids = ids.data;
    good.topk_weights = OP_FLOAT(weights);
    struct moe_gating_args bad[7] = {good, good, good, good, good, good, good};
    bad[0].call.num_tokens = 5;
    bad[1].call.num_tokens = -1;
    bad[2].logits = NULL;
    bad[3].logits_stride = 7;
    bad[4].correction_bias = logits;
    bad[5].ids_dtype = 2;
    bad[6].topk_weights = (float *)(void *)(weights.data + 1);
    for (int i = 0; i < OP_COUNT(bad); i++) {
        op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_gating, &bad[i],
                          &bad[i].call);
    }
    op_expect_success(&watch, op_invoke_gating, &good, &good.call);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    support_guard_finish(&weights);
    support_guard_finish(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(combinations_outside_the_rules_are_refused),
        cmocka_unit_test(calls_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
