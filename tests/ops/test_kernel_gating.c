/* SPDX-License-Identifier: Apache-2.0 */
/* gating: ids and weights against the reference wherever the choice is not a near tie, and the same
 * bits in every instruction set and block size; ties, NaN and infinities by hand. */
#include "kernel_run.h"

#include <float.h>
#include <math.h>

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int32_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int32_t topks[] = {1, 2, 8, 22};
static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16};

static const struct {
    int32_t rule;
    enum ref_gate_method method;
    bool chooses_by_logit; /* without bias and groups: exact, also for ties */
} rules[] = {
    {MOE_GATING_SOFTMAX, REF_GATE_SOFTMAX, true},
    {MOE_GATING_SIGMOID, REF_GATE_SIGMOID, false},
    {MOE_GATING_TOPK_SOFTMAX, REF_GATE_TOPK_SOFTMAX, true},
    {MOE_GATING_LLAMA4, REF_GATE_TOPK_SIGMOID, true},
    {MOE_GATING_SPARSEMIXER, REF_GATE_SPARSE_MIXER, false},
};
enum { SPARSEMIXER = 4, MAX_SLOTS = 24 };

enum logits { LOGITS_NORMAL, LOGITS_SPECIAL, NUM_LOGITS };

struct gate_case {
    int64_t num_tokens;
    int rule;
    enum ref_dtype dtype;
    int32_t num_groups;
    int32_t topk_groups;
    int32_t group_score;
    bool has_bias;
    bool renormalize;
    bool wide;
    int32_t num_experts;
    int32_t top_k;
    int32_t num_appended;
    enum logits logits;
    int64_t padding;
    float scaling;
};

struct results {
    int64_t num_slots; /* of all tokens */
    int32_t *ids;
    double *weights;
    unsigned char *ambiguous_set;
    unsigned char *ambiguous_order;
};

/* Where scores are compared that the kernel rounds to fp32, near ties may go either way. */
static struct ref_gate_rule make_rule(const struct gate_case *test, const double *bias)
{
    const bool exact =
        rules[test->rule].chooses_by_logit && test->num_groups == 1 && !test->has_bias;
    /* Softmax of infinities underflows to equal scores in the reference, not in the kernel. */
    const bool underflows =
        rules[test->rule].rule == MOE_GATING_SOFTMAX && test->logits == LOGITS_SPECIAL;
    const double margin = exact && !underflows ? -1.0 : 2e-6;
    const struct ref_gate_rule rule = {
        .method = rules[test->rule].method,
        .num_experts = test->num_experts,
        .top_k = test->top_k,
        .bias = test->has_bias ? bias : NULL,
        .num_groups = test->num_groups,
        .topk_groups = test->topk_groups,
        .group_score =
            test->group_score == MOE_GROUP_SCORE_MAX ? REF_GROUP_MAX : REF_GROUP_TOP2_SUM,
        .renormalize = test->renormalize,
        .scaling_factor = (double)test->scaling,
        .jitter_eps = (double)0.01f,
        .num_shared = test->num_appended,
        .shared_weight = 0.25,
        .abs_margin = exact && !underflows ? -1.0 : (test->has_bias ? 1e-6 : 1e-37),
        .rel_margin = margin,
    };
    return rule;
}

static void fill_logits(struct support_random *random, const struct gate_case *test, void *logits)
{
    const double specials[] = {NAN, (double)INFINITY, -(double)INFINITY, 0.0, -0.0, 1.0, 60000.0};
    const int64_t count = test->num_tokens * (test->num_experts + test->padding);
    support_fill_normal(random, test->dtype, logits, count, 2.0);
    for (int64_t i = 0; test->logits == LOGITS_SPECIAL && i < count; i++) {
        if (support_random_below(random, 4) == 0) {
            ref_store(test->dtype, logits, i, specials[support_random_below(random, 7)]);
        }
    }
}

static struct results expect(const struct gate_case *test, const void *logits, const float *bias)
{
    const int64_t num_slots = test->top_k + test->num_appended;
    const int64_t stride = test->num_experts + test->padding;
    double *dense = kernel_array(test->num_tokens * test->num_experts, sizeof(*dense));
    double *wide_bias = kernel_array(test->num_experts, sizeof(*wide_bias));
    struct results results;
    results.num_slots = test->num_tokens * num_slots;
    results.ids = kernel_array(results.num_slots, sizeof(*results.ids));
    results.weights = kernel_array(results.num_slots, sizeof(*results.weights));
    results.ambiguous_set = kernel_array(test->num_tokens, 1);
    results.ambiguous_order = kernel_array(test->num_tokens, 1);
    for (int64_t t = 0; t < test->num_tokens; t++) {
        for (int64_t e = 0; e < test->num_experts; e++) {
            dense[t * test->num_experts + e] = ref_load(test->dtype, logits, t * stride + e);
        }
    }
    ref_load_all(REF_F32, bias, test->num_experts, wide_bias);
    const struct ref_gate_rule rule = make_rule(test, wide_bias);
    const struct ref_gate_result result = {results.ids, results.weights, results.ambiguous_set,
                                           results.ambiguous_order};
    ref_gate(&rule, dense, test->num_tokens, test->num_tokens, &result);
    free(wide_bias);
    free(dense);
    return results;
}

static void free_results(struct results *results)
{
    free(results->ids);
    free(results->weights);
    free(results->ambiguous_set);
    free(results->ambiguous_order);
}

static int64_t load_id(const struct gate_case *test, const unsigned char *ids, int64_t idx)
{
    int64_t id64;
    int32_t id32;
    memcpy(&id64, ids + idx * (test->wide ? 8 : 0), test->wide ? 8 : 0);
    memcpy(&id32, ids + idx * (test->wide ? 0 : 4), test->wide ? 0 : 4);
    return test->wide ? id64 : id32;
}

/* What holds for every token, near ties included. */
static void check_token(const struct gate_case *test, const int64_t *ids, const float *weights)
{
    const int32_t num_slots = test->top_k + test->num_appended;
    for (int32_t j = 0; j < num_slots; j++) {
        const bool appended = j >= test->top_k;
        assert_true(isfinite(weights[j]) && weights[j] >= 0.0f);
        assert_true(ids[j] >= (appended ? test->num_experts : 0));
        assert_true(ids[j] < test->num_experts + (appended ? test->num_appended : 0));
        for (int32_t i = 0; i < j; i++) {
            assert_true(ids[i] != ids[j]);
        }
    }
}

/* Returns how many tokens were compared in full. */
static int64_t check_results(const struct gate_case *test, const struct results *expected,
                             const unsigned char *ids, const float *weights)
{
    const int64_t num_slots = test->top_k + test->num_appended;
    int64_t num_compared = 0;
    for (int64_t t = 0; t < test->num_tokens; t++) {
        int64_t token_ids[MAX_SLOTS];
        for (int64_t j = 0; j < num_slots; j++) {
            token_ids[j] = load_id(test, ids, t * num_slots + j);
        }
        check_token(test, token_ids, weights + t * num_slots);
        if (expected->ambiguous_set[t] || expected->ambiguous_order[t]) {
            continue;
        }
        num_compared++;
        for (int64_t j = 0; j < num_slots; j++) {
            const int64_t at = t * num_slots + j;
            const double error = fabs((double)weights[at] - expected->weights[at]);
            assert_int_equal(token_ids[j], expected->ids[at]);
            /* logit - max is rounded: an absolute error of 2^-24 times their distance. */
            assert_true(error <= 1e-5 * expected->weights[at] + 0x1p-126);
        }
    }
    return num_compared;
}

static struct moe_op_gating make_op(const struct gate_case *test)
{
    const struct moe_op_gating op = {
        .num_tokens = test->num_tokens,
        .num_experts = test->num_experts,
        .top_k = test->top_k,
        .rule = rules[test->rule].rule,
        .renormalize = test->renormalize,
        .num_groups = test->num_groups,
        .topk_groups = test->topk_groups,
        .group_score = test->group_score,
        .logits_dtype = kernel_dtype(test->dtype),
        .router_jitter = 0.01f,
        .scaling = test->scaling,
        .num_appended = test->num_appended,
        .appended_weight = 0.25f,
        .first_appended_id = test->num_experts,
        .logits_stride = test->num_experts + test->padding,
        .ids_dtype = test->wide ? MOE_IDS_INT64 : MOE_IDS_INT32,
    };
    return op;
}

static void run_variants(const struct gate_case *test, const struct support_guard *logits,
                         const float *bias, unsigned char *ids, float *weights)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_GATING, variants);
    const int64_t count = test->num_tokens * (test->top_k + test->num_appended);
    const size_t id_bytes = test->wide ? 8 : 4;
    struct support_guard id_guard = kernel_output(count * (int64_t)id_bytes, SUPPORT_POISON_INT);
    struct support_guard weight_guard = kernel_output(count * 4, SUPPORT_POISON_FLOAT);
    struct support_guard bias_guard = kernel_input(bias, (int64_t)test->num_experts * 4, 4);
    struct moe_op_gating op = make_op(test);
    op.logits = logits->data;
    op.correction_bias = test->has_bias ? (const float *)(const void *)bias_guard.data : NULL;
    op.topk_ids = id_guard.data;
    op.topk_weights = (float *)(void *)weight_guard.data;
    for (int v = 0; v < num_variants; v++) {
        support_guard_poison(&id_guard);
        support_guard_poison(&weight_guard);
        kernel_run(&variants[v].kernels->gating, &variants[v].tile, &op);
        assert_guard_intact(&id_guard);
        assert_guard_intact(&weight_guard);
        if (v == 0) {
            memcpy(ids, id_guard.data, (size_t)count * id_bytes);
            memcpy(weights, weight_guard.data, (size_t)count * sizeof(*weights));
        }
        assert_bits_equal(ids, id_guard.data, count, id_bytes);
        assert_bits_equal(weights, weight_guard.data, count, sizeof(*weights));
    }
    support_guard_finish(&bias_guard);
    support_guard_finish(&weight_guard);
    support_guard_finish(&id_guard);
}

static int64_t run_case(struct support_random *random, const struct gate_case *test)
{
    const int64_t stride = test->num_experts + test->padding;
    const int64_t bytes = (int64_t)ref_dtype_bytes(test->dtype);
    const int64_t count = test->num_tokens * (test->top_k + test->num_appended);
    const int64_t num_used = test->num_tokens == 0 ? 0 : test->num_tokens * stride - test->padding;
    void *values = kernel_array(test->num_tokens * stride, (size_t)bytes);
    float *bias = kernel_array(test->num_experts, sizeof(*bias));
    unsigned char *ids = kernel_array(count, 8);
    float *weights = kernel_array(count, sizeof(*weights));
    fill_logits(random, test, values);
    support_fill_normal(random, REF_F32, bias, test->num_experts, 0.3);
    struct support_guard logits = kernel_input(values, num_used * bytes, (size_t)bytes);
    struct results expected = expect(test, values, bias);
    run_variants(test, &logits, bias, ids, weights);
    const int64_t num_compared = check_results(test, &expected, ids, weights);
    free_results(&expected);
    support_guard_finish(&logits);
    free(weights);
    free(ids);
    free(bias);
    free(values);
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
    LOGITS,
    PADDING,
    SCALING,
    NUM_FACTORS
};
enum { NO_GROUPS, GROUPS_BY_MAX, GROUPS_BY_TOP2, NUM_GROUPINGS };

static struct gate_case make_case(const int *pick)
{
    const int32_t num_experts = expert_counts[pick[EXPERTS]];
    const bool grouped = pick[GROUPS] != NO_GROUPS;
    /* Four groups where they divide, else one expert per group. */
    const int32_t num_groups = num_experts % 4 == 0 ? 4 : num_experts;
    const struct gate_case test = {
        .num_tokens = token_counts[pick[TOKENS]],
        .num_experts = num_experts,
        .top_k = topks[pick[TOPK]],
        .rule = pick[RULE],
        .dtype = dtypes[pick[DTYPE]],
        .num_groups = grouped ? num_groups : 1,
        .topk_groups = grouped ? (num_groups + 1) / 2 : 1,
        .group_score =
            pick[GROUPS] == GROUPS_BY_TOP2 ? MOE_GROUP_SCORE_TOP2_SUM : MOE_GROUP_SCORE_MAX,
        .has_bias = pick[BIAS] == 1,
        .renormalize = pick[RENORMALIZE] == 1,
        .wide = pick[WIDE] == 1,
        .num_appended = pick[APPENDED] * 2,
        .logits = (enum logits)pick[LOGITS],
        .padding = pick[PADDING] * 3,
        .scaling = pick[SCALING] == 1 ? 2.5f : 1.0f,
    };
    return test;
}

static bool is_legal(const int *pick, void *user)
{
    (void)user;
    const struct gate_case test = make_case(pick);
    const bool scored =
        rules[test.rule].rule == MOE_GATING_SOFTMAX || rules[test.rule].rule == MOE_GATING_SIGMOID;
    if (!scored && (test.num_groups > 1 || test.has_bias || test.renormalize)) {
        return false;
    }
    if (test.rule == SPARSEMIXER && test.top_k != 2) {
        return false;
    }
    return test.top_k <= test.num_experts / test.num_groups * test.topk_groups;
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[NUM_FACTORS] = {[TOKENS] = KERNEL_COUNT(token_counts),
                                     [EXPERTS] = KERNEL_COUNT(expert_counts),
                                     [TOPK] = KERNEL_COUNT(topks),
                                     [RULE] = KERNEL_COUNT(rules),
                                     [DTYPE] = KERNEL_COUNT(dtypes),
                                     [GROUPS] = NUM_GROUPINGS,
                                     [BIAS] = 2,
                                     [RENORMALIZE] = 2,
                                     [WIDE] = 2,
                                     [APPENDED] = 2,
                                     [LOGITS] = NUM_LOGITS,
                                     [PADDING] = 2,
                                     [SCALING] = 2};
    struct support_grid grid;
    struct support_random random;
    int64_t num_tokens = 0;
    int64_t num_compared = 0;
    support_random_seed(&random, 8);
    support_grid_init_pairwise(&grid, levels, NUM_FACTORS, is_legal, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[NUM_FACTORS];
        support_grid_row(&grid, row, pick);
        const struct gate_case test = make_case(pick);
        num_tokens += test.num_tokens;
        num_compared += run_case(&random, &test);
    }
    support_grid_finish(&grid);
    print_message("%lld of %lld tokens compared in full\n", (long long)num_compared,
                  (long long)num_tokens);
    assert_true(num_compared * 2 > num_tokens);
}

/* Large fp32 logits far apart: nothing is a near tie, so that every token counts. */
static void every_rule_without_near_ties(void **state)
{
    (void)state;
    struct support_random random;
    support_random_seed(&random, 9);
    for (int rule = 0; rule < KERNEL_COUNT(rules); rule++) {
        const struct gate_case test = {.num_tokens = 200,
                                       .num_experts = 64,
                                       .top_k = rule == SPARSEMIXER ? 2 : 6,
                                       .rule = rule,
                                       .dtype = REF_F32,
                                       .num_groups = 1,
                                       .topk_groups = 1,
                                       .scaling = 1.0f};
        assert_true(run_case(&random, &test) >= 190);
    }
}

/* Runs one token of fp32 logits in every variant; ids and weights of the last one. */
static void gate_one(struct gate_case *test, const float *logits, const float *bias, int32_t *ids,
                     float *weights)
{
    struct support_guard guard = kernel_input(logits, (int64_t)test->num_experts * 4, 4);
    test->num_tokens = 1;
    test->dtype = REF_F32;
    test->has_bias = bias != NULL;
    test->scaling = 1.0f;
    run_variants(test, &guard, bias, (unsigned char *)ids, weights);
    support_guard_finish(&guard);
}

static void ties_go_to_the_lower_id(void **state)
{
    (void)state;
    enum { E = 100 };
    float logits[E];
    int32_t ids[22];
    float weights[22];
    for (int e = 0; e < E; e++) {
        logits[e] = e % 10 == 3 ? 2.0f : (e % 2 == 0 ? 0.0f : -0.0f);
    }
    for (int rule = 0; rule < SPARSEMIXER; rule++) {
        struct gate_case test = {
            .rule = rule, .num_experts = E, .top_k = 22, .num_groups = 1, .topk_groups = 1};
        gate_one(&test, logits, NULL, ids, weights);
        for (int j = 0; j < 10; j++) {
            assert_int_equal(ids[j], 10 * j + 3);
        }
        const int rest[] = {0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12};
        for (int j = 10; j < 22; j++) {
            assert_int_equal(ids[j], rest[j - 10]);
        }
    }
}

/* A softmax that rounds to zero for all but one expert still orders the others by logit. */
static void underflowing_softmax_keeps_the_order(void **state)
{
    (void)state;
    const float logits[] = {-300.0f, -200.0f, 0.0f, -150.0f, -400.0f};
    const int32_t order[] = {2, 3, 1, 0};
    int32_t ids[4];
    float weights[4];
    struct gate_case test = {.rule = 0,
                             .num_experts = 5,
                             .top_k = 4,
                             .num_groups = 1,
                             .topk_groups = 1,
                             .renormalize = true};
    gate_one(&test, logits, NULL, ids, weights);
    assert_bits_equal(order, ids, 4, 4);
    assert_true(weights[0] == 1.0f && weights[1] == 0.0f);
}

static void hopeless_logits_give_distinct_ids(void **state)
{
    (void)state;
    enum { E = 20, K = 8 };
    const float fillers[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int rule = 0; rule < KERNEL_COUNT(rules); rule++) {
        for (int filler = 0; filler < 4; filler++) {
            float logits[E];
            float bias[E];
            int32_t ids[K];
            float weights[K];
            struct gate_case test = {.rule = rule,
                                     .num_experts = E,
                                     .top_k = rule == SPARSEMIXER ? 2 : K,
                                     .num_groups = 1,
                                     .topk_groups = 1,
                                     .renormalize = rule < 2};
            for (int e = 0; e < E; e++) {
                logits[e] = fillers[filler];
                bias[e] = fillers[filler];
            }
            for (int biased = 0; biased < (rule < 2 ? 2 : 1); biased++) {
                gate_one(&test, logits, biased ? bias : NULL, ids, weights);
                for (int j = 0; j < test.top_k; j++) {
                    assert_int_equal(ids[j], j);
                    assert_true(isfinite(weights[j]));
                }
            }
        }
    }
}

/* All experts of a rank are chosen, in order; also more than any shortcut would expect. */
static void every_expert_can_be_chosen(void **state)
{
    (void)state;
    enum { E = 100000 };
    float *logits = kernel_array(E, sizeof(*logits));
    int32_t *ids = kernel_array(E, sizeof(*ids));
    float *weights = kernel_array(E, sizeof(*weights));
    for (int e = 0; e < E; e++) {
        logits[e] = (float)((int64_t)e * 7919 % E) * 1e-4f; /* a permutation of distinct values */
    }
    struct gate_case test = {
        .rule = 2, .num_experts = E, .top_k = E, .num_groups = 1, .topk_groups = 1};
    gate_one(&test, logits, NULL, ids, weights);
    for (int j = 1; j < E; j++) {
        assert_true(logits[ids[j - 1]] > logits[ids[j]]);
        assert_true(weights[j - 1] >= weights[j]);
    }
    free(weights);
    free(ids);
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(every_rule_without_near_ties),
        cmocka_unit_test(ties_go_to_the_lower_id),
        cmocka_unit_test(underflowing_softmax_keeps_the_order),
        cmocka_unit_test(hopeless_logits_give_distinct_ids),
        cmocka_unit_test(every_expert_can_be_chosen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
