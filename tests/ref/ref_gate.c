/* SPDX-License-Identifier: Apache-2.0 */
/* Router logits and the choice of experts, one token at a time. */
#include "ref.h"
#include "ref_require.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

void ref_router(const double *x, const double *w, const double *bias, int64_t num_tokens,
                int64_t num_experts, int64_t hidden, double *logits, double *sum_abs)
{
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t e = 0; e < num_experts; e++) {
            double sum = bias != NULL ? bias[e] : 0.0;
            double magnitude = fabs(sum);
            for (int64_t k = 0; k < hidden; k++) {
                double product = x[t * hidden + k] * w[e * hidden + k];
                sum += product;
                magnitude += fabs(product);
            }
            logits[t * num_experts + e] = sum;
            if (sum_abs != NULL) {
                sum_abs[t * num_experts + e] = magnitude;
            }
        }
    }
}

struct ambiguity {
    bool set;
    bool order;
};

static double clamp_to_float(double value)
{
    if (isnan(value)) {
        return -(double)FLT_MAX;
    }
    return fmax(-(double)FLT_MAX, fmin((double)FLT_MAX, value));
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static bool too_close(const struct ref_gate_rule *rule, double a, double b)
{
    if (rule->abs_margin < 0.0 || rule->rel_margin < 0.0) {
        return false;
    }
    return fabs(a - b) <= rule->abs_margin + rule->rel_margin * fmax(fabs(a), fabs(b));
}

/* The candidate with the largest score, the first of equals, or -1. */
static int64_t find_best(const double *scores, const bool *candidates, int64_t count)
{
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++) {
        if (candidates[i] && (best < 0 || scores[i] > scores[best])) {
            best = i;
        }
    }
    return best;
}

/* Picks num_picks candidates in descending order of score; the rest stay candidates. */
static struct ambiguity pick_largest(const struct ref_gate_rule *rule, const double *scores,
                                     bool *candidates, int64_t count, int64_t num_picks,
                                     int64_t *picks)
{
    struct ambiguity ambiguity = {false, false};
    for (int64_t j = 0; j < num_picks; j++) {
        picks[j] = find_best(scores, candidates, count);
        ref_require(picks[j] >= 0, "more picks than candidates");
        candidates[picks[j]] = false;
        int64_t next = find_best(scores, candidates, count);
        if (next >= 0 && too_close(rule, scores[picks[j]], scores[next])) {
            ambiguity.order = true;
            ambiguity.set = j == num_picks - 1;
        }
    }
    return ambiguity;
}

static double score_of_group(const struct ref_gate_rule *rule, const double *choice, int64_t size)
{
    double largest = -INFINITY;
    double second = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        if (choice[i] > largest) {
            second = largest;
            largest = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    bool add_second = rule->group_score == REF_GROUP_TOP2_SUM && size > 1;
    return add_second ? largest + second : largest;
}

/* Leaves only the experts of the best groups as candidates. */
static struct ambiguity restrict_to_groups(const struct ref_gate_rule *rule, const double *choice,
                                           bool *candidates)
{
    int64_t size = rule->num_experts / rule->num_groups;
    double *scores = ref_require_array(rule->num_groups, sizeof *scores);
    bool *rejected = ref_require_array(rule->num_groups, sizeof *rejected);
    int64_t *picks = ref_require_array(rule->topk_groups, sizeof *picks);
    for (int64_t g = 0; g < rule->num_groups; g++) {
        scores[g] = score_of_group(rule, choice + g * size, size);
        rejected[g] = true;
    }
    struct ambiguity ambiguity =
        pick_largest(rule, scores, rejected, rule->num_groups, rule->topk_groups, picks);
    for (int64_t e = 0; e < rule->num_experts; e++) {
        candidates[e] = !rejected[e / size];
    }
    ambiguity.order = ambiguity.set; /* the order of groups has no effect */
    free(picks);
    free(rejected);
    free(scores);
    return ambiguity;
}

static void softmax(const double *logits, int64_t count, double *out)
{
    double largest = -INFINITY;
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        largest = fmax(largest, logits[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        sum += exp(logits[i] - largest);
    }
    for (int64_t i = 0; i < count; i++) {
        out[i] = exp(logits[i] - largest) / sum;
    }
}

/* What the choice compares before the correction bias: scores, or logits where those come later. */
static void score_experts(const struct ref_gate_rule *rule, const double *logits, double *scores)
{
    if (rule->method == REF_GATE_SOFTMAX) {
        softmax(logits, rule->num_experts, scores);
        return;
    }
    for (int64_t e = 0; e < rule->num_experts; e++) {
        scores[e] = rule->method == REF_GATE_SIGMOID ? sigmoid(logits[e]) : logits[e];
    }
}

/* scores: what score_experts gave. picks: chosen experts. */
static void weigh_picks(const struct ref_gate_rule *rule, const double *scores,
                        const int64_t *picks, double *weights)
{
    for (int64_t j = 0; j < rule->top_k; j++) {
        weights[j] = scores[picks[j]];
        if (rule->method == REF_GATE_TOPK_SIGMOID) {
            weights[j] = sigmoid(weights[j]);
        }
    }
    if (rule->method == REF_GATE_TOPK_SOFTMAX) {
        softmax(weights, rule->top_k, weights);
    }
}

static struct ambiguity choose(const struct ref_gate_rule *rule, const double *logits,
                               int64_t *picks, double *weights)
{
    int64_t num_experts = rule->num_experts;
    double *scores = ref_require_array(num_experts, sizeof *scores);
    double *choice = ref_require_array(num_experts, sizeof *choice);
    bool *candidates = ref_require_array(num_experts, sizeof *candidates);
    struct ambiguity groups = {false, false};

    score_experts(rule, logits, scores);
    for (int64_t e = 0; e < num_experts; e++) {
        choice[e] = clamp_to_float(scores[e] + (rule->bias != NULL ? rule->bias[e] : 0.0));
        candidates[e] = true;
    }
    if (rule->num_groups > 1) {
        groups = restrict_to_groups(rule, choice, candidates);
    }
    struct ambiguity ambiguity =
        pick_largest(rule, choice, candidates, num_experts, rule->top_k, picks);
    weigh_picks(rule, scores, picks, weights);
    ambiguity.set = ambiguity.set || groups.set;
    ambiguity.order = ambiguity.order || groups.order;
    free(candidates);
    free(choice);
    free(scores);
    return ambiguity;
}

/* One of the sparse mixer's two rounds. Exchanging the rounds would change both weights, and so
 * would a logit that crosses the mask's threshold: every near tie makes the set ambiguous. */
static bool mix_once(const struct ref_gate_rule *rule, const double *logits, bool *candidates,
                     int64_t *pick, double *weight)
{
    *pick = find_best(logits, candidates, rule->num_experts);
    double largest = logits[*pick];
    double threshold = 2.0 * rule->jitter_eps;
    double sum = 0.0;
    bool ambiguous = false;
    for (int64_t e = 0; e < rule->num_experts; e++) {
        if (!candidates[e]) {
            continue;
        }
        double factor = fmax(fabs(logits[e]), largest);
        double distance = factor > 0.0 ? (largest - logits[e]) / factor : 0.0;
        if (distance <= threshold) {
            sum += exp(logits[e] - largest);
        }
        ambiguous = ambiguous || too_close(rule, distance, threshold) ||
                    (e != *pick && too_close(rule, logits[e], largest));
    }
    *weight = 1.0 / sum;
    candidates[*pick] = false;
    return ambiguous;
}

static struct ambiguity mix_sparsely(const struct ref_gate_rule *rule, const double *logits,
                                     int64_t *picks, double *weights)
{
    bool *candidates = ref_require_array(rule->num_experts, sizeof *candidates);
    for (int64_t e = 0; e < rule->num_experts; e++) {
        candidates[e] = true;
    }
    bool first = mix_once(rule, logits, candidates, &picks[0], &weights[0]);
    bool second = mix_once(rule, logits, candidates, &picks[1], &weights[1]);
    free(candidates);
    struct ambiguity ambiguity = {first || second, first || second};
    return ambiguity;
}

static void finish_weights(const struct ref_gate_rule *rule, double *weights)
{
    double sum = 0.0;
    for (int64_t j = 0; j < rule->top_k; j++) {
        sum += weights[j];
    }
    for (int64_t j = 0; j < rule->top_k; j++) {
        weights[j] =
            (rule->renormalize ? weights[j] / (sum + 1e-20) : weights[j]) * rule->scaling_factor;
    }
}

void ref_map_replicas(int32_t *ids, int64_t num_tokens, int64_t num_slots, int64_t num_experts,
                      const int32_t *physical_ids, int64_t max_replicas,
                      const int32_t *num_replicas)
{
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t j = 0; j < num_slots; j++) {
            int32_t *id = &ids[t * num_slots + j];
            if (*id >= 0 && *id < num_experts) {
                *id = physical_ids[*id * max_replicas + t % num_replicas[*id]];
            }
        }
    }
}

static void check_rule(const struct ref_gate_rule *rule)
{
    bool grouped = rule->num_groups > 1;
    int64_t num_candidates = rule->num_experts;
    ref_require(rule->num_experts > 0 && rule->top_k > 0, "no experts or no slots");
    if (grouped) {
        ref_require(rule->num_experts % rule->num_groups == 0, "groups do not divide the experts");
        ref_require(rule->topk_groups >= 1 && rule->topk_groups <= rule->num_groups,
                    "topk_groups is not in 1 .. num_groups");
        num_candidates = rule->num_experts / rule->num_groups * rule->topk_groups;
    }
    ref_require(rule->top_k <= num_candidates, "top_k exceeds the experts to choose from");
    if (rule->method == REF_GATE_SPARSE_MIXER) {
        ref_require(rule->top_k == 2 && rule->bias == NULL && !grouped,
                    "the sparse mixer has top_k 2, no bias and no groups");
    }
}

void ref_gate(const struct ref_gate_rule *rule, const double *logits, int64_t num_tokens,
              int64_t num_valid_tokens, const struct ref_gate_result *result)
{
    check_rule(rule);
    int64_t num_slots = rule->top_k + rule->num_shared;
    double *clean = ref_require_array(rule->num_experts, sizeof *clean);
    int64_t *picks = ref_require_array(rule->top_k, sizeof *picks);
    for (int64_t t = 0; t < num_tokens; t++) {
        int32_t *ids = result->ids + t * num_slots;
        double *weights = result->weights + t * num_slots;
        struct ambiguity ambiguity = {false, false};
        bool valid = t < num_valid_tokens;
        if (valid) {
            for (int64_t e = 0; e < rule->num_experts; e++) {
                clean[e] = clamp_to_float(logits[t * rule->num_experts + e]);
            }
            ambiguity = rule->method == REF_GATE_SPARSE_MIXER
                            ? mix_sparsely(rule, clean, picks, weights)
                            : choose(rule, clean, picks, weights);
            finish_weights(rule, weights);
        }
        for (int64_t j = 0; j < num_slots; j++) {
            bool shared = j >= rule->top_k;
            int64_t base = rule->first_shared_id != 0 ? rule->first_shared_id : rule->num_experts;
            int64_t id = shared ? base + j - rule->top_k : picks[j];
            ids[j] = valid ? (int32_t)id : -1;
            weights[j] = !valid ? 0.0 : shared ? rule->shared_weight : weights[j];
        }
        if (result->ambiguous_set != NULL) {
            result->ambiguous_set[t] = ambiguity.set;
        }
        if (result->ambiguous_order != NULL) {
            result->ambiguous_order[t] = ambiguity.order;
        }
    }
    free(picks);
    free(clean);
}
