/* SPDX-License-Identifier: Apache-2.0 */
/* Router and gating references: answers worked out by hand, and properties on random logits. */
#include "ref.h"
#include "support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_SLOTS = 16 };

static void assert_near(double actual, double expected)
{
    if (!(fabs(actual - expected) <= 1e-12 * fmax(1.0, fabs(expected)))) {
        fail_msg("%.17g is not %.17g", actual, expected);
    }
}

static struct ref_gate_rule make_rule(enum ref_gate_method method, int64_t num_experts,
                                      int64_t top_k)
{
    struct ref_gate_rule rule = {
        .method = method,
        .num_experts = num_experts,
        .top_k = top_k,
        .scaling_factor = 1.0,
        .jitter_eps = 0.01,
        .abs_margin = -1.0,
    };
    return rule;
}

/* Gates one token and compares its routed slots. */
static void assert_gate(const struct ref_gate_rule *rule, const double *logits, const int32_t *ids,
                        const double *weights)
{
    int32_t actual_ids[MAX_SLOTS];
    double actual_weights[MAX_SLOTS];
    struct ref_gate_result result = {actual_ids, actual_weights, NULL, NULL};
    ref_gate(rule, logits, 1, 1, &result);
    for (int64_t j = 0; j < rule->top_k; j++) {
        assert_int_equal(actual_ids[j], ids[j]);
        assert_near(actual_weights[j], weights[j]);
    }
}

static double logit(double probability)
{
    return log(probability / (1.0 - probability));
}

static void test_router(void **state)
{
    (void)state;
    const double x[6] = {1, 2, 3, -1, 0, 1};
    const double w[6] = {1, 1, 1, 2, -1, 0.5};
    const double bias[2] = {10, -20};
    double logits[4];
    double sum_abs[4];
    ref_router(x, w, bias, 2, 2, 3, logits, sum_abs);
    const double expected[4] = {16, -18.5, 10, -21.5};
    const double expected_abs[4] = {16, 25.5, 12, 22.5};
    assert_memory_equal(logits, expected, sizeof expected);
    assert_memory_equal(sum_abs, expected_abs, sizeof expected_abs);
    ref_router(x, w, NULL, 2, 2, 3, logits, NULL);
    assert_near(logits[1], 1.5);
}

static void test_softmax(void **state)
{
    (void)state;
    const double logits[4] = {log(1), log(2), log(3), log(4)}; /* softmax: 0.1 0.2 0.3 0.4 */
    struct ref_gate_rule rule = make_rule(REF_GATE_SOFTMAX, 4, 2);
    assert_gate(&rule, logits, (int32_t[]){3, 2}, (double[]){0.4, 0.3});
    rule.renormalize = true;
    assert_gate(&rule, logits, (int32_t[]){3, 2}, (double[]){4.0 / 7, 3.0 / 7});
    rule.scaling_factor = 2.5;
    assert_gate(&rule, logits, (int32_t[]){3, 2}, (double[]){10.0 / 7, 7.5 / 7});

    const double bias[4] = {0.35, 0, 0, -0.05}; /* choice: 0.45 0.2 0.3 0.35 */
    rule = make_rule(REF_GATE_SOFTMAX, 4, 2);
    rule.bias = bias;
    assert_gate(&rule, logits, (int32_t[]){0, 3}, (double[]){0.1, 0.4});
}

static void test_sigmoid_groups(void **state)
{
    (void)state;
    const double scores[8] = {0.5, 0.5, 0.9, 0.05, 0.6, 0.55, 0.3, 0.2};
    double logits[8];
    for (int e = 0; e < 8; e++) {
        logits[e] = logit(scores[e]);
    }
    struct ref_gate_rule rule = make_rule(REF_GATE_SIGMOID, 8, 3);
    assert_gate(&rule, logits, (int32_t[]){2, 4, 5}, (double[]){0.9, 0.6, 0.55});

    /* Sums of two: 1.0, 0.95, 1.15, 0.5: groups 2 and 0 stay, expert 2 does not. */
    rule.num_groups = 4;
    rule.topk_groups = 2;
    rule.group_score = REF_GROUP_TOP2_SUM;
    assert_gate(&rule, logits, (int32_t[]){4, 5, 0}, (double[]){0.6, 0.55, 0.5});

    /* Maxima: 0.5, 0.9, 0.6, 0.3: groups 1 and 2. */
    rule.group_score = REF_GROUP_MAX;
    rule.renormalize = true;
    rule.scaling_factor = 2.0;
    assert_gate(&rule, logits, (int32_t[]){2, 4, 5},
                (double[]){1.8 / 2.05, 1.2 / 2.05, 1.1 / 2.05});

    /* The bias takes part in both choices, not in the weights; 0.05 in a group that stays beats 0.5
     * in one that does not, even when its biased score is negative. */
    const double bias[8] = {-2, -2, 0, -1, -2, -2, -2, -2};
    rule.bias = bias;
    rule.topk_groups = 1;
    rule.top_k = 2;
    rule.renormalize = false;
    rule.scaling_factor = 1.0;
    assert_gate(&rule, logits, (int32_t[]){2, 3}, (double[]){0.9, 0.05});
}

static void test_topk_first(void **state)
{
    (void)state;
    const double logits[4] = {0.0, log(3), -1.0, -0.5};
    struct ref_gate_rule rule = make_rule(REF_GATE_TOPK_SOFTMAX, 4, 2);
    assert_gate(&rule, logits, (int32_t[]){1, 0}, (double[]){0.75, 0.25});
    rule = make_rule(REF_GATE_TOPK_SIGMOID, 4, 1);
    assert_gate(&rule, logits, (int32_t[]){1}, (double[]){0.75});
    rule = make_rule(REF_GATE_TOPK_SIGMOID, 4, 2);
    assert_gate(&rule, logits, (int32_t[]){1, 0}, (double[]){0.75, 0.5});
}

static void test_sparse_mixer(void **state)
{
    (void)state;
    double kept = 1.0 / (1.0 + exp(-0.03));
    struct ref_gate_rule rule = make_rule(REF_GATE_SPARSE_MIXER, 4, 2);
    /* Round one, m = 2: distances 0, 0.015, 0.5, 0.03. Round two, m = 1.97: 0.0152 for 1.94. */
    assert_gate(&rule, (double[]){2.0, 1.97, 1.0, 1.94}, (int32_t[]){0, 1}, (double[]){kept, kept});
    /* 1.93 is 0.0203 away from 1.97. */
    assert_gate(&rule, (double[]){1.93, 1.97, 1.0, 2.0}, (int32_t[]){3, 1}, (double[]){kept, 1.0});
    /* Below zero the distance is relative to the other logit: 0.0202 / 1.0202 is inside, and
     * -1.03 is outside of round one (0.0291) and inside of round two (0.0095). */
    assert_gate(&rule, (double[]){-9.0, -1.0202, -1.0, -1.03}, (int32_t[]){2, 1},
                (double[]){1.0 / (1.0 + exp(-0.0202)), 1.0 / (1.0 + exp(-0.0098))});
    /* All zero: nothing is masked. */
    assert_gate(&rule, (double[]){0, 0, 0, 0}, (int32_t[]){0, 1}, (double[]){0.25, 1.0 / 3});
}

static void test_ties(void **state)
{
    (void)state;
    const enum ref_gate_method methods[] = {REF_GATE_SOFTMAX, REF_GATE_SIGMOID,
                                            REF_GATE_TOPK_SOFTMAX, REF_GATE_TOPK_SIGMOID};
    const double logits[8] = {1, 2, 2, 1, 2, 1, 2, 2};
    for (size_t m = 0; m < 4; m++) {
        int32_t ids[4];
        double weights[4];
        struct ref_gate_rule rule = make_rule(methods[m], 8, 4);
        struct ref_gate_result result = {ids, weights, NULL, NULL};
        ref_gate(&rule, logits, 1, 1, &result);
        assert_memory_equal(ids, ((int32_t[]){1, 2, 4, 6}), sizeof ids);
        rule.num_groups =
            4; /* all groups but the second have a 2; all groups but the last tie in sum */
        rule.topk_groups = 2;
        ref_gate(&rule, logits, 1, 1, &result);
        assert_memory_equal(ids, ((int32_t[]){1, 2, 0, 3}), sizeof ids);
        rule.group_score = REF_GROUP_TOP2_SUM;
        ref_gate(&rule, logits, 1, 1, &result);
        assert_memory_equal(ids, ((int32_t[]){1, 6, 7, 0}), sizeof ids);
    }
}

/* Any mixture of NaN, infinities and huge numbers: unique ids in range, finite weights. */
static void test_hostile_logits(void **state)
{
    (void)state;
    const double values[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, 3e38, -3e38, 0, 1};
    struct support_random random;
    support_random_seed(&random, 3);
    for (int trial = 0; trial < 5000; trial++) {
        double logits[6];
        double bias[6];
        int32_t ids[6];
        double weights[6];
        int method = trial % 5;
        for (int e = 0; e < 6; e++) {
            logits[e] = values[support_random_below(&random, 7)];
            bias[e] = values[support_random_below(&random, 7)];
        }
        struct ref_gate_rule rule =
            make_rule((enum ref_gate_method)method, 6, method == REF_GATE_SPARSE_MIXER ? 2 : 4);
        if (method != REF_GATE_SPARSE_MIXER && trial % 3 > 0) {
            rule.bias = bias;
            rule.num_groups = 3;
            rule.topk_groups = 2;
            rule.group_score = trial % 3 == 1 ? REF_GROUP_MAX : REF_GROUP_TOP2_SUM;
            rule.renormalize = true;
        }
        struct ref_gate_result result = {ids, weights, NULL, NULL};
        ref_gate(&rule, logits, 1, 1, &result);
        unsigned seen = 0;
        for (int64_t j = 0; j < rule.top_k; j++) {
            assert_in_range(ids[j], 0, 5);
            assert_false(seen & (1u << ids[j]));
            seen |= 1u << ids[j];
            assert_true(isfinite(weights[j]) && weights[j] >= 0.0);
        }
    }
    struct ref_gate_rule rule = make_rule(REF_GATE_SOFTMAX, 3, 2);
    assert_gate(&rule, (double[]){(double)NAN, 1.0, (double)INFINITY}, (int32_t[]){2, 0},
                (double[]){1.0, 0.0});
    rule = make_rule(REF_GATE_SIGMOID, 4, 4);
    assert_gate(&rule, (double[]){(double)NAN, -1.0, (double)INFINITY, -2.0},
                (int32_t[]){2, 1, 3, 0},
                (double[]){1.0, 0.2689414213699951, 0.11920292202211755, 0.0});
}

static void test_padding_and_shared(void **state)
{
    (void)state;
    const double logits[6] = {0.0, log(3), 0.0, 0.0, 5.0, 0.0};
    int32_t ids[12];
    double weights[12];
    unsigned char ambiguous[3];
    struct ref_gate_rule rule = make_rule(REF_GATE_TOPK_SOFTMAX, 2, 2);
    rule.num_shared = 2;
    rule.shared_weight = 0.4;
    rule.scaling_factor = 2.0;
    rule.abs_margin = 0.01;
    struct ref_gate_result result = {ids, weights, NULL, ambiguous};
    ref_gate(&rule, logits, 3, 2, &result);
    assert_memory_equal(ids, ((int32_t[]){1, 0, 2, 3, 0, 1, 2, 3, -1, -1, -1, -1}), sizeof ids);
    const double expected[12] = {1.5, 0.5, 0.4, 0.4, 1.0, 1.0, 0.4, 0.4, 0, 0, 0, 0};
    for (int i = 0; i < 12; i++) {
        assert_near(weights[i], expected[i]);
    }
    assert_memory_equal(ambiguous, ((unsigned char[]){0, 1, 0}), 3);
}

static void test_ambiguity(void **state)
{
    (void)state;
    /* One token each: clear, close inside the set, close at its edge. */
    const double logits[12] = {3, 2, 1, 0, 3, 2.999, 1, 0, 3, 2, 1.999, 0};
    int32_t ids[6];
    double weights[6];
    unsigned char set[3];
    unsigned char order[3];
    struct ref_gate_rule rule = make_rule(REF_GATE_TOPK_SOFTMAX, 4, 2);
    struct ref_gate_result result = {ids, weights, set, order};
    rule.abs_margin = 0.0011;
    ref_gate(&rule, logits, 3, 3, &result);
    assert_memory_equal(set, ((unsigned char[]){0, 0, 1}), 3);
    assert_memory_equal(order, ((unsigned char[]){0, 1, 1}), 3);
    rule.abs_margin = 0.0;
    rule.rel_margin = 0.0004; /* of 3: 0.0012; of 2: 0.0008 */
    ref_gate(&rule, logits, 3, 3, &result);
    assert_memory_equal(set, ((unsigned char[]){0, 0, 0}), 3);
    assert_memory_equal(order, ((unsigned char[]){0, 1, 0}), 3);

    /* Groups {3, 2} and {1, 0.5} and {1.0005, 0}: the second and third are close. */
    const double grouped[6] = {3, 2, 1, 0.5, 1.0005, 0};
    rule = make_rule(REF_GATE_TOPK_SOFTMAX, 6, 2);
    rule.num_groups = 3;
    rule.topk_groups = 2;
    rule.abs_margin = 0.001;
    ref_gate(&rule, grouped, 1, 1, &result);
    assert_int_equal(set[0], 1);
    rule.topk_groups = 1;
    ref_gate(&rule, grouped, 1, 1, &result);
    assert_int_equal(set[0], 0);

    /* Sparse mixer: 1.96 is at the very threshold of 2. */
    rule = make_rule(REF_GATE_SPARSE_MIXER, 4, 2);
    rule.abs_margin = 1e-6;
    ref_gate(&rule, (double[]){2, 1.96, 1, 0}, 1, 1, &result);
    assert_int_equal(set[0], 1);
    ref_gate(&rule, (double[]){2, 1.5, 1, 0}, 1, 1, &result);
    assert_int_equal(set[0], 0);
}

/* Exchanging experts exchanges ids; adding a constant to the logits changes no softmax. */
static void test_random_properties(void **state)
{
    (void)state;
    enum { E = 40, K = 5 };
    struct support_random random;
    support_random_seed(&random, 11);
    for (int trial = 0; trial < 200; trial++) {
        double logits[E];
        double mirrored[E];
        int32_t ids[2 * K];
        double weights[2 * K];
        for (int e = 0; e < E; e++) {
            logits[e] = 3.0 * support_random_normal(&random);
            mirrored[E - 1 - e] = logits[e] + 100.0;
        }
        enum ref_gate_method method = trial % 2 == 0 ? REF_GATE_SOFTMAX : REF_GATE_TOPK_SOFTMAX;
        struct ref_gate_rule rule = make_rule(method, E, K);
        rule.renormalize = true;
        struct ref_gate_result first = {ids, weights, NULL, NULL};
        struct ref_gate_result second = {ids + K, weights + K, NULL, NULL};
        ref_gate(&rule, logits, 1, 1, &first);
        ref_gate(&rule, mirrored, 1, 1, &second);
        double sum = 0.0;
        for (int j = 0; j < K; j++) {
            int num_larger = 0;
            for (int e = 0; e < E; e++) {
                num_larger += logits[e] > logits[ids[j]];
            }
            assert_int_equal(num_larger, j);
            assert_int_equal(ids[K + j], E - 1 - ids[j]);
            assert_true(fabs(weights[K + j] - weights[j]) < 1e-9);
            sum += weights[j];
        }
        assert_near(sum, 1.0);
    }
}

static void test_replicas(void **state)
{
    (void)state;
    int32_t ids[6] = {0, 1, 1, -1, 0, 2};
    const int32_t physical[4] = {10, 11, 20, -7};
    const int32_t num_replicas[2] = {2, 1};
    ref_map_replicas(ids, 3, 2, 2, physical, 2, num_replicas);
    assert_memory_equal(ids, ((int32_t[]){10, 20, 20, -1, 10, 2}), sizeof ids);
    int32_t odd[2] = {1, 0};
    ref_map_replicas(odd, 2, 1, 2, physical, 2, num_replicas);
    assert_memory_equal(odd, ((int32_t[]){20, 11}), sizeof odd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router),         cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_sigmoid_groups), cmocka_unit_test(test_topk_first),
        cmocka_unit_test(test_sparse_mixer),   cmocka_unit_test(test_ties),
        cmocka_unit_test(test_hostile_logits), cmocka_unit_test(test_padding_and_shared),
        cmocka_unit_test(test_ambiguity),      cmocka_unit_test(test_random_properties),
        cmocka_unit_test(test_replicas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
