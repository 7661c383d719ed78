/* SPDX-License-Identifier: Apache-2.0 */
#include "near_tie.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Distance of neighbouring bf16 numbers around the larger of two. */
static double find_step(double a, double b)
{
    const double larger = fmax(fabs(a), fabs(b));
    int exponent;
    if (larger == 0.0 || !isfinite(larger)) {
        return 0.0;
    }
    frexp(larger, &exponent); /* larger is in [2^(exponent-1), 2^exponent) */
    return ldexp(1.0, exponent - 8);
}

static int is_near(double a, double b)
{
    return fabs(a - b) <= find_step(a, b);
}

static int compare_descending(const void *a, const void *b)
{
    const double left = *(const double *)a;
    const double right = *(const double *)b;
    return (left < right) - (left > right);
}

/* The values that experts are chosen by. Where a score function only stretches the order of logits,
 * the logits themselves. */
static void compute_scores(const struct moe_problem *problem, const float *logits,
                           const float *bias, double *scores)
{
    const int64_t num_experts = problem->num_experts;
    const int is_sigmoid = problem->gating == MOE_GATING_SIGMOID;
    const int is_softmax =
        problem->gating == MOE_GATING_SOFTMAX && (bias != NULL || problem->num_groups > 1);
    double max = -INFINITY;
    double sum = 0.0;
    for (int64_t e = 0; e < num_experts; ++e) {
        max = fmax(max, (double)logits[e]);
    }
    for (int64_t e = 0; e < num_experts; ++e) {
        sum += exp((double)logits[e] - max);
    }
    for (int64_t e = 0; e < num_experts; ++e) {
        const double logit = (double)logits[e];
        scores[e] = is_sigmoid   ? 1.0 / (1.0 + exp(-logit))
                    : is_softmax ? exp(logit - max) / sum
                                 : logit;
        scores[e] += bias != NULL ? (double)bias[e] : 0.0;
    }
}

static double score_group(const struct moe_problem *problem, const double *scores,
                          int64_t group_size)
{
    double first = -INFINITY;
    double second = -INFINITY;
    for (int64_t i = 0; i < group_size; ++i) {
        if (scores[i] > first) {
            second = first;
            first = scores[i];
        } else if (scores[i] > second) {
            second = scores[i];
        }
    }
    return problem->group_score == MOE_GROUP_SCORE_TOP2_SUM && group_size > 1 ? first + second
                                                                              : first;
}

/* Takes experts of rejected groups out of `scores` (-inf). Returns 1 when the groups themselves are
 * on the border, so that any expert may be chosen. `sorted` is scratch for num_groups
 * numbers. */
static int reject_groups(const struct moe_problem *problem, double *scores, double *sorted)
{
    const int64_t num_groups = problem->num_groups;
    const int64_t group_size = problem->num_experts / num_groups;
    if (problem->topk_groups >= num_groups) {
        return 0;
    }
    for (int64_t g = 0; g < num_groups; ++g) {
        sorted[g] = score_group(problem, scores + g * group_size, group_size);
    }
    qsort(sorted, (size_t)num_groups, sizeof *sorted, compare_descending);
    const double last = sorted[problem->topk_groups - 1];
    const double first_rejected = sorted[problem->topk_groups];
    for (int64_t g = 0; g < num_groups; ++g) {
        double *group = scores + g * group_size;
        if (score_group(problem, group, group_size) < last) {
            for (int64_t i = 0; i < group_size; ++i) {
                group[i] = -INFINITY;
            }
        }
    }
    return is_near(last, first_rejected);
}

int64_t moe_near_tie_find(const struct moe_problem *problem, const float *logits, const float *bias,
                          double *scratch, unsigned char *is_open)
{
    const int64_t num_experts = problem->num_experts;
    double *scores = scratch;
    double *sorted = scratch + num_experts;
    memset(is_open, 0, (size_t)num_experts);
    if (problem->top_k >= num_experts) {
        return 0;
    }
    compute_scores(problem, logits, bias, scores);
    if (problem->num_groups > 1 && reject_groups(problem, scores, sorted)) {
        memset(is_open, 1, (size_t)num_experts);
        return num_experts;
    }
    memcpy(sorted, scores, (size_t)num_experts * sizeof *sorted);
    qsort(sorted, (size_t)num_experts, sizeof *sorted, compare_descending);
    const double last = sorted[problem->top_k - 1];
    const double first_rejected = sorted[problem->top_k];
    if (!is_near(last, first_rejected)) {
        return 0;
    }
    int64_t num_open = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
        is_open[e] = is_near(scores[e], last) || is_near(scores[e], first_rejected);
        num_open += is_open[e];
    }
    return num_open;
}
