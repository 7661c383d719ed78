/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gating: ids and weights of the top_k experts of each token, by the rules of MOE_GATING_LIST.
 * Moves: E logits in, top_k ids and weights out per token; about 20 E FLOPs for softmax and
 *   sigmoid. Bound by the exponentials, or for rules that need only k of them by the scan of the
 *   logits.
 * Pipeline: token by token. 1 logits to finite fp32. 2 scores (softmax, sigmoid). 3 choice values:
 *   what is compared, with bias, without the experts of rejected groups. 4 heap of the k best. 5
 *   weights of the chosen, renormalized, scaled; ids of their replicas; load.
 * Tasks share nothing but the load counters, which are sums of integers: atomic, any order.
 * Sums run over eight lanes (expert e in lane e mod 8, ascending) and then in the order of
 *   moe_vec8_sum. Softmax without bias and groups compares logits, not scores: the same order, but
 *   exact where scores round to equal values or to zero.
 * Limits: any E; top_k at most the number of experts that take part (E, or those of topk_groups
 * groups).
 */
#include "convert.h"
#include "cpu_ops.h"
#include "topk.h"
#include "vmath.h"

#include <float.h>
#include <stddef.h>

/* Scratch of one thread. Arrays of floats are padded to whole groups of eight lanes. */
struct gate {
    float *logits;       /* [E] */
    float *scores;       /* [E] softmax, sigmoid: s; sparsemixer: exponentials of one round */
    float *choice;       /* [E] logits, or scores, + bias */
    float *group_scores; /* [num_groups] */
    float *weights;      /* [top_k] */
    struct moe_topk_entry *chosen; /* [top_k] */
    struct moe_topk_entry *groups; /* [topk_groups] */
};

static uint64_t padded_bytes(int64_t count, uint64_t element_bytes)
{
    return ((uint64_t)count + 7) / 8 * 8 * element_bytes;
}

/* Lays the arrays of `gate` out in `scratch`; gate NULL: only sizes them. Returns their bytes. */
static uint64_t lay_out_gate(const struct moe_op_gating *op, unsigned char *scratch,
                             struct gate *gate)
{
    const uint64_t expert_bytes = padded_bytes(op->num_experts, sizeof(float));
    const uint64_t group_bytes = padded_bytes(op->num_groups, sizeof(float));
    const uint64_t weight_bytes = padded_bytes(op->top_k, sizeof(float));
    const uint64_t chosen_bytes = padded_bytes(op->top_k, sizeof(struct moe_topk_entry));
    const uint64_t picked_bytes = padded_bytes(op->topk_groups, sizeof(struct moe_topk_entry));
    const uint64_t groups_at = 3 * expert_bytes;
    const uint64_t weights_at = groups_at + group_bytes;
    const uint64_t chosen_at = weights_at + weight_bytes;
    const uint64_t picked_at = chosen_at + chosen_bytes;
    if (gate != NULL) {
        gate->logits = (float *)(void *)scratch;
        gate->scores = (float *)(void *)(scratch + expert_bytes);
        gate->choice = (float *)(void *)(scratch + 2 * expert_bytes);
        gate->group_scores = (float *)(void *)(scratch + groups_at);
        gate->weights = (float *)(void *)(scratch + weights_at);
        gate->chosen = (struct moe_topk_entry *)(void *)(scratch + chosen_at);
        gate->groups = (struct moe_topk_entry *)(void *)(scratch + picked_at);
    }
    return picked_at + picked_bytes;
}

/* NaN becomes the lowest finite value, infinities the largest of their sign. */
static struct moe_vec8 make_finite(struct moe_vec8 a)
{
    const struct moe_vec8 largest = moe_vec8_set1(FLT_MAX);
    const struct moe_vec8 lowest = moe_vec8_set1(-FLT_MAX);
    a = moe_vec8_select(moe_vec8_is_nan(a), lowest, a);
    return moe_vec8_max(lowest, moe_vec8_min(largest, a));
}

static void load_logits(const struct moe_op_gating *op, int64_t token, float *logits)
{
    const void *row = moe_convert_at(op->logits, op->logits_dtype, token * op->logits_stride);
    for (int64_t e = 0; e < op->num_experts; e += MOE_VEC8_LANES) {
        const int64_t left = op->num_experts - e;
        const void *from = moe_convert_at(row, op->logits_dtype, e);
        moe_vec8_store(logits + e,
                       make_finite(left >= MOE_VEC8_LANES
                                       ? moe_convert_load(from, op->logits_dtype)
                                       : moe_convert_load_partial(from, op->logits_dtype, left)));
    }
}

/* Lanes col .. col + 7 of a padded array, those at or beyond `count` replaced by `filler`. */
static struct moe_vec8 load_padded(const float *values, int64_t col, int64_t count, float filler)
{
    static const float lanes[MOE_VEC8_LANES] = {0, 1, 2, 3, 4, 5, 6, 7};
    if (count - col >= MOE_VEC8_LANES) {
        return moe_vec8_load(values + col);
    }
    const struct moe_mask8 used =
        moe_vec8_lt(moe_vec8_load(lanes), moe_vec8_set1((float)(count - col)));
    return moe_vec8_select(used, moe_vec8_load(values + col), moe_vec8_set1(filler));
}

static float find_largest(const float *values, int64_t count)
{
    struct moe_vec8 largest = moe_vec8_set1(-FLT_MAX);
    for (int64_t i = 0; i < count; i += MOE_VEC8_LANES) {
        largest = moe_vec8_max(load_padded(values, i, count, -FLT_MAX), largest);
    }
    float lanes[MOE_VEC8_LANES];
    moe_vec8_store(lanes, largest);
    for (int l = 1; l < MOE_VEC8_LANES; l++) {
        lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
    }
    return lanes[0];
}

/* The sum of a padded array in canonical order. */
static float sum_values(const float *values, int64_t count)
{
    struct moe_vec8 sum = moe_vec8_zero();
    for (int64_t i = 0; i < count; i += MOE_VEC8_LANES) {
        sum = moe_vec8_add(sum, load_padded(values, i, count, 0.0f));
    }
    return moe_vec8_sum(sum);
}

/* out may be values. */
static void softmax(const float *values, int64_t count, float *out)
{
    const struct moe_vec8 largest = moe_vec8_set1(find_largest(values, count));
    for (int64_t i = 0; i < count; i += MOE_VEC8_LANES) {
        const struct moe_vec8 value = load_padded(values, i, count, -FLT_MAX);
        moe_vec8_store(out + i, moe_vmath_exp(moe_vec8_sub(value, largest)));
    }
    const struct moe_vec8 sum = moe_vec8_set1(sum_values(out, count));
    for (int64_t i = 0; i < count; i += MOE_VEC8_LANES) {
        moe_vec8_store(out + i, moe_vec8_div(moe_vec8_load(out + i), sum));
    }
}

static void logistic(const float *values, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i += MOE_VEC8_LANES) {
        moe_vec8_store(out + i, moe_vmath_logistic(load_padded(values, i, count, 0.0f)));
    }
}

/* What the choice compares. */
static const float *make_choice(const struct moe_op_gating *op, const struct gate *gate)
{
    const int scored =
        op->rule == MOE_GATING_SIGMOID ||
        (op->rule == MOE_GATING_SOFTMAX && (op->correction_bias != NULL || op->num_groups > 1));
    const float *base = scored ? gate->scores : gate->logits;
    if (op->correction_bias == NULL) {
        return base;
    }
    for (int64_t e = 0; e < op->num_experts; e += MOE_VEC8_LANES) {
        const int64_t left = op->num_experts - e;
        const struct moe_vec8 bias = moe_convert_load_partial(
            op->correction_bias + e, MOE_DTYPE_FP32, left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES);
        const struct moe_vec8 sum = moe_vec8_add(load_padded(base, e, op->num_experts, 0.0f), bias);
        moe_vec8_store(gate->choice + e, make_finite(sum));
    }
    return gate->choice;
}

static float score_group(const struct moe_op_gating *op, const float *choice, int32_t size)
{
    float first = -FLT_MAX;
    float second = -FLT_MAX;
    for (int32_t i = 0; i < size; i++) {
        const float value = choice[i];
        second = value > first ? first : (value > second ? value : second);
        first = value > first ? value : first;
    }
    if (op->group_score != MOE_GROUP_SCORE_TOP2_SUM || size == 1) {
        return first;
    }
    const float sum = first + second;
    return sum > FLT_MAX ? FLT_MAX : (sum < -FLT_MAX ? -FLT_MAX : sum);
}

/* Marks the topk_groups best groups by a score above every finite one. */
static void mark_best_groups(const struct moe_op_gating *op, const struct gate *gate,
                             const float *choice, int32_t size)
{
    for (int32_t g = 0; g < op->num_groups; g++) {
        gate->group_scores[g] = score_group(op, choice + (int64_t)g * size, size);
    }
    moe_topk_init(gate->groups, op->topk_groups);
    moe_topk_offer(gate->groups, op->topk_groups, gate->group_scores, 0, op->num_groups);
    for (int32_t i = 0; i < op->topk_groups; i++) {
        gate->group_scores[gate->groups[i].id] = INFINITY;
    }
}

/* Fills gate->chosen, best first. */
static void choose_experts(const struct moe_op_gating *op, const struct gate *gate,
                           const float *choice)
{
    moe_topk_init(gate->chosen, op->top_k);
    if (op->num_groups > 1) {
        const int32_t size = op->num_experts / op->num_groups;
        mark_best_groups(op, gate, choice, size);
        for (int32_t g = 0; g < op->num_groups; g++) {
            if (gate->group_scores[g] > FLT_MAX) {
                moe_topk_offer(gate->chosen, op->top_k, choice, g * size, (g + 1) * size);
            }
        }
    } else {
        moe_topk_offer(gate->chosen, op->top_k, choice, 0, op->num_experts);
    }
    moe_topk_sort(gate->chosen, op->top_k);
}

/* One round of the sparse mixer: softmax at `expert`, the largest, over the logits near it but
 * `removed` (-1: none). */
static float mix_sparsely(const struct moe_op_gating *op, const struct gate *gate, int32_t expert,
                          int32_t removed)
{
    const struct moe_vec8 largest = moe_vec8_set1(gate->logits[expert]);
    const struct moe_vec8 threshold = moe_vec8_set1(2.0f * op->router_jitter);
    for (int64_t e = 0; e < op->num_experts; e += MOE_VEC8_LANES) {
        const struct moe_vec8 logit = moe_vec8_load(gate->logits + e);
        const struct moe_vec8 distance = moe_vec8_sub(largest, logit);
        /* 0 / 0 when logit and largest are both zero: a NaN is not above the threshold. */
        const struct moe_vec8 relative =
            moe_vec8_div(distance, moe_vec8_max(moe_vec8_abs(logit), largest));
        const struct moe_vec8 term = moe_vmath_exp(moe_vec8_sub(moe_vec8_zero(), distance));
        moe_vec8_store(gate->scores + e,
                       moe_vec8_select(moe_vec8_lt(threshold, relative), moe_vec8_zero(), term));
    }
    if (removed >= 0) {
        gate->scores[removed] = 0.0f;
    }
    return 1.0f / sum_values(gate->scores, op->num_experts);
}

/* gate->weights of gate->chosen, before renormalization. */
static void weigh_chosen(const struct moe_op_gating *op, const struct gate *gate)
{
    if (op->rule == MOE_GATING_SPARSEMIXER) {
        const int32_t first = gate->chosen[0].id;
        gate->weights[0] = mix_sparsely(op, gate, first, -1);
        gate->weights[1] = mix_sparsely(op, gate, gate->chosen[1].id, first);
        return;
    }
    const int scored = op->rule == MOE_GATING_SOFTMAX || op->rule == MOE_GATING_SIGMOID;
    const float *values = scored ? gate->scores : gate->logits;
    for (int32_t j = 0; j < op->top_k; j++) {
        gate->weights[j] = values[gate->chosen[j].id];
    }
    if (op->rule == MOE_GATING_TOPK_SOFTMAX) {
        softmax(gate->weights, op->top_k, gate->weights);
    } else if (op->rule == MOE_GATING_LLAMA4) {
        logistic(gate->weights, op->top_k, gate->weights);
    }
}

static void store_route(const struct moe_op_gating *op, int64_t at, int32_t id, float weight)
{
    if (op->ids_dtype == MOE_IDS_INT64) {
        ((int64_t *)op->topk_ids)[at] = id;
    } else {
        ((int32_t *)op->topk_ids)[at] = id;
    }
    op->topk_weights[at] = weight;
}

/* The id given out for logical expert `expert` to token number `token` of the call. */
static int32_t find_replica(const struct moe_op_gating *op, int32_t expert, int64_t token)
{
    if (op->physical_ids == NULL) {
        return expert;
    }
    int32_t num_replicas = op->num_replicas[expert];
    num_replicas = num_replicas < op->max_replicas ? num_replicas : op->max_replicas;
    num_replicas = num_replicas > 1 ? num_replicas : 1;
    return op->physical_ids[(int64_t)expert * op->max_replicas + token % num_replicas];
}

static void count_load(const struct moe_op_gating *op, const struct gate *gate)
{
    for (int32_t j = 0; j < op->top_k; j++) {
        __atomic_fetch_add(&op->load_counters[gate->chosen[j].id], 1, __ATOMIC_RELAXED);
    }
}

static void store_padding(const struct moe_op_gating *op, int64_t token)
{
    const int64_t num_slots = (int64_t)op->top_k + op->num_appended;
    for (int64_t slot = 0; slot < num_slots; slot++) {
        store_route(op, token * num_slots + slot, -1, 0.0f);
    }
}

static void store_token(const struct moe_op_gating *op, const struct gate *gate, int64_t token)
{
    const int64_t first = token * ((int64_t)op->top_k + op->num_appended);
    float sum = 0.0f;
    for (int32_t j = 0; j < op->top_k; j++) {
        sum += gate->weights[j];
    }
    for (int32_t j = 0; j < op->top_k; j++) {
        const float weight = op->renormalize ? gate->weights[j] / (sum + 1e-20f) : gate->weights[j];
        const int32_t id = find_replica(op, gate->chosen[j].id, op->first_token + token);
        store_route(op, first + j, id, weight * op->scaling);
    }
    for (int32_t i = 0; i < op->num_appended; i++) {
        store_route(op, first + op->top_k + i, op->first_appended_id + i, op->appended_weight);
    }
}

static void gate_token(const struct moe_op_gating *op, const struct gate *gate, int64_t token)
{
    load_logits(op, token, gate->logits);
    if (op->rule == MOE_GATING_SOFTMAX) {
        softmax(gate->logits, op->num_experts, gate->scores);
    } else if (op->rule == MOE_GATING_SIGMOID) {
        logistic(gate->logits, op->num_experts, gate->scores);
    }
    choose_experts(op, gate, make_choice(op, gate));
    weigh_chosen(op, gate);
    store_token(op, gate, token);
    if (op->load_counters != NULL) {
        count_load(op, gate);
    }
}

/* Tokens before the first padded one. */
static int64_t count_valid(const struct moe_op_gating *op)
{
    return op->num_valid_tokens != NULL ? *op->num_valid_tokens - op->first_token : op->num_tokens;
}

int64_t MOE_CPU_NAME(moe_cpu_gating_num_tasks)(const void *op, const struct moe_tile *tile)
{
    const struct moe_op_gating *gating = op;
    return moe_cpu_num_blocks(gating->num_tokens, tile->block_size);
}

uint64_t MOE_CPU_NAME(moe_cpu_gating_scratch_bytes)(const void *op, const struct moe_tile *tile)
{
    (void)tile;
    return lay_out_gate(op, NULL, NULL);
}

void MOE_CPU_NAME(moe_cpu_gating_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                      void *scratch)
{
    const struct moe_op_gating *gating = op;
    struct gate gate;
    (void)lay_out_gate(gating, scratch, &gate);
    const int64_t num_valid = count_valid(gating);
    const int64_t end = moe_cpu_block_end(gating->num_tokens, tile->block_size, task);
    for (int64_t token = task * tile->block_size; token < end; token++) {
        if (token < num_valid) {
            gate_token(gating, &gate, token);
        } else {
            store_padding(gating, token);
        }
    }
}
