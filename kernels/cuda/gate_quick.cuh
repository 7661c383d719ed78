/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gating where the logits alone decide: softmax with renormalization and top-k then softmax,
 * without bias and groups, up to MOE_CUDA_GATE_QUICK_SLOTS experts per token. Ids and weights have
 * the bits of gate.cuh; this takes half of its instructions.
 *
 * A warp has a batch of tokens; expert i * 32 + lane is the i-th of a lane. Per token: 1 a lane's
 * logits become integers that order like them, with kPerLane - 1 - i in the lowest bits, and are
 * sorted in registers (a network). 2 top_k + 1 rounds: the largest head of the 32 sorted lists wins
 * (of equal ones the lowest lane's, which is the lowest expert) and leaves its list. For all tokens
 * of the batch at once, a lane per slot: 3 the winner's logit is loaded again and checked. Where
 * the lowest bits may have decided, winners are put in order by all bits; where they may have
 * decided who is chosen at all, and for zeros, NaN and infinities, the token is chosen again,
 * slowly. 4 weights, outputs.
 * Limits: 32 * kPerLane experts.
 */
#ifndef MOE_GATE_QUICK_CUH
#define MOE_GATE_QUICK_CUH

#include "gate.cuh"

namespace
{

constexpr int kQuickSlots = MOE_CUDA_GATE_QUICK_SLOTS;
constexpr int kQuickBatch = MOE_CUDA_GATE_QUICK_BATCH;

__device__ __forceinline__ const char *logits_of(const struct moe_op_gating &op, int32_t token)
{
    const int32_t element_bytes = op.logits_dtype == MOE_DTYPE_FP32 ? 4 : 2;
    return static_cast<const char *>(op.logits) +
           static_cast<int64_t>(token) * op.logits_stride * element_bytes;
}

/* Step 1, but for the sorting. Experts that do not exist have keys below all others. */
template <int kPerLane>
__device__ __forceinline__ void load_keys(const struct moe_op_gating &op, int32_t token,
                                          int32_t lane, int32_t (&keys)[kPerLane])
{
    const char *row = logits_of(op, token);
    uint32_t bits[kPerLane] = {};
    if (op.logits_dtype == MOE_DTYPE_FP32) {
#pragma unroll
        for (int i = 0; i < kPerLane; i++) {
            if (i * 32 + lane < op.num_experts) {
                bits[i] = reinterpret_cast<const uint32_t *>(row)[i * 32 + lane];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kPerLane; i++) {
            if (i * 32 + lane < op.num_experts) {
                bits[i] = __float_as_uint(load_logit(row, op.logits_dtype, i * 32 + lane));
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kPerLane; i++) {
        const int32_t sign = static_cast<int32_t>(bits[i]) >> 31;
        const uint32_t ordered = bits[i] ^ (static_cast<uint32_t>(sign) & 0x7fffffffu);
        const uint32_t key = (ordered & ~(kPerLane - 1u)) | (kPerLane - 1u - i);
        keys[i] = i * 32 + lane < op.num_experts ? static_cast<int32_t>(key) : INT32_MIN;
    }
}

/* A step of Batcher's odd-even merges: lists of kSize become lists of twice as many. */
template <int kCount, int kSize, int kDistance>
__device__ __forceinline__ void merge_keys(int32_t (&keys)[kCount])
{
    constexpr int kFirst = kDistance % kSize;
#pragma unroll
    for (int i = kFirst; i < kCount - kDistance; i++) {
        if ((i - kFirst) / kDistance % 2 == 0 && i / (2 * kSize) == (i + kDistance) / (2 * kSize)) {
            const int32_t larger = max(keys[i], keys[i + kDistance]);
            keys[i + kDistance] = min(keys[i], keys[i + kDistance]);
            keys[i] = larger;
        }
    }
    if constexpr (kDistance > 1) {
        merge_keys<kCount, kSize, kDistance / 2>(keys);
    }
}

/* Descending. */
template <int kCount, int kSize = 1>
__device__ __forceinline__ void sort_keys(int32_t (&keys)[kCount])
{
    merge_keys<kCount, kSize, kSize>(keys);
    if constexpr (2 * kSize < kCount) {
        sort_keys<kCount, 2 * kSize>(keys);
    }
}

/* Shared memory of a warp, for a token: winners, best first, and one more. */
struct QuickToken {
    int32_t keys[kQuickSlots + 1];
    int32_t lanes[kQuickSlots + 1];

    template <int kPerLane> __device__ __forceinline__ int32_t expert(int32_t slot) const
    {
        return (kPerLane - 1 - (keys[slot] & (kPerLane - 1))) * 32 + lanes[slot];
    }
    template <int kPerLane> __device__ __forceinline__ void set_expert(int32_t slot, int32_t expert)
    {
        keys[slot] = kPerLane - 1 - expert / 32;
        lanes[slot] = expert % 32;
    }
};

static_assert(MOE_CUDA_GATE_QUICK_WORDS * 4 == kQuickBatch * sizeof(QuickToken),
              "what the host counts");

/* Step 2. */
template <int kPerLane>
__device__ __forceinline__ void choose_winners(int32_t top_k, int32_t lane,
                                               int32_t (&keys)[kPerLane], QuickToken *token)
{
    const unsigned before = (1u << lane) - 1u;
#pragma unroll
    for (int round = 0; round <= kQuickSlots; round++) {
        const int32_t largest = __reduce_max_sync(kGateLanes, keys[0]);
        const bool is_largest = keys[0] == largest;
        const unsigned equal = __ballot_sync(kGateLanes, is_largest);
        if (is_largest && (equal & before) == 0) {
            token->keys[round] = largest;
            token->lanes[round] = lane;
#pragma unroll
            for (int i = 0; i < kPerLane && i < kQuickSlots - round; i++) {
                keys[i] = i + 1 < kPerLane ? keys[i + 1] : INT32_MIN;
            }
        }
        if (round % 2 == 0 && round >= top_k) {
            return;
        }
    }
}

/* The same by all bits of the logits, with NaN and infinities made finite. The next winner is the
 * best of those that are behind the last one. */
template <int kPerLane>
__device__ __forceinline__ void choose_exactly(const struct moe_op_gating &op, int32_t number,
                                               int32_t lane, QuickToken *token)
{
    const char *row = logits_of(op, number);
    uint32_t last_key = 0xffffffffu;
    int32_t last_expert = -1;
#pragma unroll 1
    for (int32_t slot = 0; slot < op.top_k; slot++) {
        uint32_t best = 0;
        int32_t best_expert = INT32_MAX;
#pragma unroll 4
        for (int32_t expert = lane; expert < op.num_experts; expert += 32) {
            const uint32_t key = make_key(make_finite(load_logit(row, op.logits_dtype, expert)));
            const bool is_behind = key < last_key || (key == last_key && expert > last_expert);
            if (is_behind && key > best) {
                best = key;
                best_expert = expert;
            }
        }
        last_key = __reduce_max_sync(kGateLanes, best);
        last_expert = __reduce_min_sync(kGateLanes, best == last_key ? best_expert : INT32_MAX);
        if (lane == 0) {
            token->set_expert<kPerLane>(slot, last_expert);
        }
    }
    __syncwarp();
}

/* Winners of all tokens in order by all bits: a lane's place among the slots of its token. */
template <int kPerLane>
__device__ __forceinline__ void order_winners(bool exists, int32_t slot, float value,
                                              int32_t expert, QuickToken *token)
{
    int32_t place = 0;
#pragma unroll 1
    for (int i = 0; i < kQuickSlots; i++) {
        const float other = __shfl_sync(kGateLanes, exists ? value : -FLT_MAX, i, kQuickSlots);
        const int32_t other_expert = __shfl_sync(kGateLanes, expert, i, kQuickSlots);
        place += other > value || (other == value && other_expert < expert) ? 1 : 0;
    }
    __syncwarp();
    if (exists) {
        token->set_expert<kPerLane>(place, expert);
    }
    __syncwarp();
}

/* Steps 3 and 4. `num_tokens` of the batch, which begins with `first`. */
template <int kPerLane>
__device__ __forceinline__ void weigh_winners(const struct moe_op_gating &op, int32_t first,
                                              int32_t num_tokens, int32_t lane, QuickToken *tokens)
{
    constexpr uint32_t kLowest = kPerLane - 1;
    const int32_t slot = lane % kQuickSlots;
    const int32_t number = first + lane / kQuickSlots;
    QuickToken *own = tokens + lane / kQuickSlots;
    const bool exists = lane / kQuickSlots < num_tokens && slot < op.top_k;
    int32_t expert = 0;
    float value = 0.0f;
    bool is_unordered = false;
    bool is_odd = false;
    __syncwarp();
    if (exists) {
        const uint32_t both = static_cast<uint32_t>(own->keys[slot] ^ own->keys[slot + 1]);
        expert = own->expert<kPerLane>(slot);
        if (expert < op.num_experts) {
            value = load_logit(logits_of(op, number), op.logits_dtype, expert);
        }
        is_unordered = both <= kLowest && op.logits_dtype == MOE_DTYPE_FP32;
        is_odd =
            value == 0.0f || !(fabsf(value) < FLT_MAX) || (is_unordered && slot == op.top_k - 1);
    }
    if (__any_sync(kGateLanes, is_unordered || is_odd)) {
        order_winners<kPerLane>(exists, slot, value, expert, own);
        unsigned odd_lanes = __ballot_sync(kGateLanes, is_odd);
#pragma unroll 1
        while (odd_lanes != 0) {
            const int32_t which = (__ffs(static_cast<int>(odd_lanes)) - 1) / kQuickSlots;
            choose_exactly<kPerLane>(op, first + which, lane, tokens + which);
            odd_lanes &= ~(((1u << kQuickSlots) - 1u) << (which * kQuickSlots));
        }
        if (exists) {
            expert = own->expert<kPerLane>(slot);
            value = make_finite(load_logit(logits_of(op, number), op.logits_dtype, expert));
        }
    }
    const float best = __shfl_sync(kGateLanes, value, 0, kQuickSlots);
    float weight = exists ? moe_vmath_exp(__fsub_rn(value, best)) : 0.0f;
    if (op.rule == MOE_GATING_TOPK_SOFTMAX) {
        float sum = weight; /* sum_row of gate_experts.cuh */
#pragma unroll
        for (int distance = kQuickSlots / 2; distance > 0; distance /= 2) {
            sum = __fadd_rn(sum, __shfl_xor_sync(kGateLanes, sum, distance));
        }
        weight = __fdiv_rn(weight, sum);
    }
    if (op.renormalize) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kQuickSlots; i++) { /* zeros behind top_k change nothing */
            sum = __fadd_rn(sum, __shfl_sync(kGateLanes, weight, i, kQuickSlots));
        }
        weight = __fdiv_rn(weight, __fadd_rn(sum, 1e-20f));
    }
    if (exists) {
        if (op.load_counters != nullptr) {
            atomicAdd(reinterpret_cast<unsigned long long *>(op.load_counters) + expert, 1ull);
        }
        store_slot(op, number, slot, find_replica(op, expert, op.first_token + number),
                   __fmul_rn(weight, op.scaling));
    }
}

/* Gates tokens first .. end, a batch at most, by one warp. `tokens`: MOE_CUDA_GATE_QUICK_WORDS of
 * shared memory of this warp. */
template <int kPerLane>
__device__ __forceinline__ void gate_batch(const struct moe_op_gating &op, int32_t first,
                                           int32_t end, int32_t num_valid, QuickToken *tokens)
{
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    const int32_t num_gated = min(end, num_valid) - first;
    __syncwarp(); /* the batch before has read its winners */
#pragma unroll 1
    for (int32_t i = 0; i < num_gated; i++) {
        int32_t keys[kPerLane];
        load_keys<kPerLane>(op, first + i, lane, keys);
        sort_keys<kPerLane>(keys);
        choose_winners<kPerLane>(op.top_k, lane, keys, tokens + i);
    }
    if (num_gated > 0) {
        weigh_winners<kPerLane>(op, first, num_gated, lane, tokens);
    }
    const int32_t num_slots = op.top_k + op.num_appended;
    if (op.num_appended == 0 && end <= num_valid) {
        return;
    }
#pragma unroll 1
    for (int32_t token = first; token < end; token++) {
        const bool is_valid = token < num_valid;
#pragma unroll 1
        for (int32_t slot = (is_valid ? op.top_k : 0) + lane; slot < num_slots; slot += 32) {
            store_slot(op, token, slot, is_valid ? op.first_appended_id + slot - op.top_k : -1,
                       is_valid ? op.appended_weight : 0.0f);
        }
    }
}

} // namespace

#endif
