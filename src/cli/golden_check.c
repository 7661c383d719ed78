/* SPDX-License-Identifier: Apache-2.0 */
#include "golden_check.h"

#include "element.h"
#include "near_tie.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sums of squares of a comparison, in all and token by token. */
struct norms {
    double difference, expected;
};

static void add_to_norms(struct norms *norms, double expected, double computed)
{
    norms->difference += (computed - expected) * (computed - expected);
    norms->expected += expected * expected;
}

/* NaN when either side has one, which no bound accepts. */
static double get_rel_l2(const struct norms *norms)
{
    if (norms->expected == 0.0) {
        return norms->difference == 0.0 ? 0.0 : norms->difference / norms->expected;
    }
    return sqrt(norms->difference / norms->expected);
}

/* Ends a token: its norms go into the tensor's. */
static void close_token(struct moe_golden_check_tensor *tensor, struct norms *all, int64_t token,
                        const struct norms *norms)
{
    const double rel_l2 = get_rel_l2(norms);
    all->difference += norms->difference;
    all->expected += norms->expected;
    if (tensor->worst_token < 0 || !(rel_l2 <= tensor->worst_token_rel_l2)) {
        tensor->worst_token = token;
        tensor->worst_token_rel_l2 = rel_l2;
    }
}

static void close_tensor(struct moe_golden_check_tensor *tensor, const struct norms *all,
                         double bound)
{
    tensor->rel_l2 = get_rel_l2(all);
    tensor->is_right = tensor->rel_l2 <= bound;
}

/* What the comparison of routing needs for a token. */
struct routing {
    const struct moe_golden_file *golden;
    const struct moe_problem *problem;
    const struct moe_layer_run_result *result;
    float *bias;             /* [E], or NULL */
    float *logits;           /* [E] of a token */
    double *scratch;         /* [2 E] */
    unsigned char *is_open;  /* [E]: on the border of a near tie */
    int32_t *slots;          /* [E]: slot of each expert that was computed, -1: not chosen */
    unsigned char *is_other; /* [T]: token that was routed differently */
};

static void routing_finish(struct routing *routing)
{
    free(routing->bias);
    free(routing->logits);
    free(routing->scratch);
    free(routing->is_open);
    free(routing->slots);
    free(routing->is_other);
}

static int routing_init(struct routing *routing, const struct moe_golden_file *golden,
                        const struct moe_checkpoint_layer *layer, int64_t num_tokens,
                        const struct moe_layer_run_result *result, struct moe_cli_error *error)
{
    const struct moe_operand *bias = &layer->weights.correction_bias;
    const size_t num_experts = (size_t)layer->problem.num_experts;
    *routing = (struct routing){.golden = golden, .problem = &layer->problem, .result = result};
    routing->bias = bias->base != NULL ? calloc(num_experts, sizeof(float)) : NULL;
    routing->logits = calloc(num_experts, sizeof(float));
    routing->scratch = calloc(2 * num_experts, sizeof(double));
    routing->is_open = calloc(num_experts, 1);
    routing->slots = calloc(num_experts, sizeof(int32_t));
    routing->is_other = calloc((size_t)num_tokens, 1);
    if ((bias->base != NULL && routing->bias == NULL) || routing->logits == NULL ||
        routing->scratch == NULL || routing->is_open == NULL || routing->slots == NULL ||
        routing->is_other == NULL) {
        routing_finish(routing);
        return moe_cli_fail_memory(error, "comparing the routing");
    }
    for (size_t e = 0; routing->bias != NULL && e < num_experts; ++e) {
        routing->bias[e] = moe_element_load(bias->base, bias->dtype, (int64_t)e * bias->row_stride);
    }
    return 0;
}

/* Marks the experts on the border, by the golden logits where the file has them. */
static int64_t find_near_tie(struct routing *routing, int64_t token)
{
    const struct moe_safetensors_tensor *logits =
        routing->golden->tensors[MOE_GOLDEN_ROUTER_LOGITS];
    const int64_t num_experts = routing->problem->num_experts;
    for (int64_t e = 0; e < num_experts; ++e) {
        const int64_t idx = token * num_experts + e;
        routing->logits[e] =
            logits != NULL ? moe_golden_file_load(logits, idx) : routing->result->logits[idx];
    }
    return moe_near_tie_find(routing->problem, routing->logits, routing->bias, routing->scratch,
                             routing->is_open);
}

static void format_ids(const int64_t *ids, int64_t num_ids, char *text, size_t text_bytes)
{
    size_t length = 0;
    text[0] = '\0';
    for (int64_t j = 0; j < num_ids && length < text_bytes; ++j) {
        const int written =
            snprintf(text + length, text_bytes - length, "%s%" PRId64, j > 0 ? " " : "", ids[j]);
        length += written > 0 ? (size_t)written : 0;
    }
}

static void keep_wrong_token(const struct routing *routing, int64_t token,
                             struct moe_golden_check_routing *found)
{
    const struct moe_safetensors_tensor *ids = routing->golden->tensors[MOE_GOLDEN_TOPK_IDS];
    const int64_t top_k = routing->problem->top_k;
    int64_t texts[32];
    const int64_t num_shown = top_k < 32 ? top_k : 32;
    found->first_wrong = token;
    for (int64_t j = 0; j < num_shown; ++j) {
        texts[j] = moe_golden_file_load_id(ids, token * top_k + j);
    }
    format_ids(texts, num_shown, found->expected, sizeof found->expected);
    for (int64_t j = 0; j < num_shown; ++j) {
        texts[j] = routing->result->topk_ids[token * top_k + j];
    }
    format_ids(texts, num_shown, found->computed, sizeof found->computed);
}

/* Compares the experts of a token, and the weights of those that both sides chose. */
static void compare_token(struct routing *routing, int64_t token,
                          struct moe_golden_check_routing *found, struct norms *norms)
{
    const struct moe_golden_file *golden = routing->golden;
    const struct moe_safetensors_tensor *weights = golden->tensors[MOE_GOLDEN_TOPK_WEIGHTS];
    const int64_t num_experts = routing->problem->num_experts;
    const int64_t top_k = routing->problem->top_k;
    const int64_t first = token * top_k;
    const int is_near_tie = find_near_tie(routing, token) > 0;
    int is_wrong = 0;
    memset(routing->slots, 0xff, (size_t)num_experts * sizeof *routing->slots);
    for (int64_t j = 0; j < top_k; ++j) {
        const int32_t id = routing->result->topk_ids[first + j];
        if (id < 0 || id >= num_experts || routing->slots[id] >= 0) {
            is_wrong = 1; /* no expert, or twice the same */
        } else {
            routing->slots[id] = (int32_t)j;
        }
    }
    for (int64_t j = 0; j < top_k; ++j) {
        const int64_t id = moe_golden_file_load_id(golden->tensors[MOE_GOLDEN_TOPK_IDS], first + j);
        const int32_t slot = id >= 0 && id < num_experts ? routing->slots[id] : -1;
        if (slot >= 0) {
            routing->slots[id] = -1; /* what is left over at the end only we chose */
            if (weights != NULL) {
                add_to_norms(norms, (double)moe_golden_file_load(weights, first + j),
                             (double)routing->result->topk_weights[first + slot]);
            }
            continue;
        }
        routing->is_other[token] = 1;
        is_wrong |= id < 0 || id >= num_experts || !routing->is_open[id];
    }
    for (int64_t e = 0; e < num_experts; ++e) {
        is_wrong |= routing->slots[e] >= 0 && !routing->is_open[e];
    }
    found->num_near_ties += is_near_tie;
    found->num_differences += !is_wrong && routing->is_other[token];
    found->num_wrong += is_wrong;
    if (is_wrong && found->first_wrong < 0) {
        keep_wrong_token(routing, token, found);
    }
}

static void compare_routing(struct routing *routing, int64_t num_tokens,
                            struct moe_golden_check *check)
{
    struct moe_golden_check_tensor *ids = &check->tensors[MOE_GOLDEN_TOPK_IDS];
    struct moe_golden_check_tensor *weights = &check->tensors[MOE_GOLDEN_TOPK_WEIGHTS];
    if (!ids->is_present) {
        return;
    }
    struct norms all = {0.0, 0.0};
    for (int64_t token = 0; token < num_tokens; ++token) {
        struct norms norms = {0.0, 0.0};
        compare_token(routing, token, &check->routing, &norms);
        close_token(weights, &all, token, &norms);
    }
    ids->is_right = check->routing.num_wrong == 0;
    if (weights->is_present) {
        close_tensor(weights, &all, MOE_GOLDEN_CHECK_BOUND);
    }
}

/* Compares rows of `computed` [T, width] but for tokens that `is_left_out` marks (NULL: none). */
static void compare_rows(const struct moe_safetensors_tensor *expected, const float *computed,
                         int64_t num_tokens, const unsigned char *is_left_out, double bound,
                         struct moe_golden_check_tensor *tensor)
{
    if (expected == NULL) {
        return;
    }
    const int64_t width = expected->shape[1];
    struct norms all = {0.0, 0.0};
    for (int64_t token = 0; token < num_tokens; ++token) {
        if (is_left_out != NULL && is_left_out[token]) {
            continue;
        }
        struct norms norms = {0.0, 0.0};
        for (int64_t i = token * width; i < (token + 1) * width; ++i) {
            add_to_norms(&norms, (double)moe_golden_file_load(expected, i), (double)computed[i]);
        }
        close_token(tensor, &all, token, &norms);
    }
    close_tensor(tensor, &all, bound);
}

int moe_golden_check_compare(const struct moe_golden_file *golden,
                             const struct moe_checkpoint_layer *layer, int64_t num_tokens,
                             const struct moe_layer_run_result *result,
                             struct moe_golden_check *check, struct moe_cli_error *error)
{
    struct routing routing;
    memset(check, 0, sizeof *check);
    check->num_tokens = num_tokens;
    check->output_bound = layer->problem.intermediate.dtype == MOE_DTYPE_FP8_E4M3
                              ? MOE_GOLDEN_CHECK_FP8_BOUND
                              : MOE_GOLDEN_CHECK_BOUND;
    check->routing.first_wrong = -1;
    for (int kind = 0; kind < MOE_GOLDEN_NUM_KINDS; ++kind) {
        check->tensors[kind].is_given =
            layer->problem.gating == MOE_GATING_NONE &&
            (kind == MOE_GOLDEN_TOPK_IDS || kind == MOE_GOLDEN_TOPK_WEIGHTS);
        check->tensors[kind].is_present =
            golden->tensors[kind] != NULL && !check->tensors[kind].is_given;
        check->tensors[kind].worst_token = -1;
    }
    if (routing_init(&routing, golden, layer, num_tokens, result, error) != 0) {
        return -1;
    }
    compare_routing(&routing, num_tokens, check);
    compare_rows(golden->tensors[MOE_GOLDEN_ROUTER_LOGITS], result->logits, num_tokens, NULL,
                 MOE_GOLDEN_CHECK_BOUND, &check->tensors[MOE_GOLDEN_ROUTER_LOGITS]);
    /* A wrong token stays in: only near ties may differ. */
    const unsigned char *left_out = check->routing.num_wrong == 0 ? routing.is_other : NULL;
    compare_rows(golden->tensors[MOE_GOLDEN_EXPERTS_OUTPUT], result->experts_output, num_tokens,
                 left_out, check->output_bound, &check->tensors[MOE_GOLDEN_EXPERTS_OUTPUT]);
    compare_rows(golden->tensors[MOE_GOLDEN_BLOCK_OUTPUT], result->block_output, num_tokens,
                 left_out, check->output_bound, &check->tensors[MOE_GOLDEN_BLOCK_OUTPUT]);
    routing_finish(&routing);
    check->is_right = 1;
    for (int kind = 0; kind < MOE_GOLDEN_NUM_KINDS; ++kind) {
        check->is_right &= !check->tensors[kind].is_present || check->tensors[kind].is_right;
    }
    return 0;
}
