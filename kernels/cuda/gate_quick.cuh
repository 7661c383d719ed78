/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gating where the logits alone decide: softmax with renormalization and top-k then softmax,
 * without bias and groups, up to MOE_CUDA_GATE_QUICK_SLOTS experts per token. Ids and weights have
 * the bits of gate.cuh; this takes a third of its instructions.
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

/* Step 1, but for the sorting. Experts that do not exist have the bits of a NaN that comes after
 * all numbers. */
template <int kPerLane>
__device__ __forceinline__ void load_keys(const struct moe_op_gating &op, int32_t token,
                                          int32_t lane, int32_t (&keys)[kPerLane])
{
    const int32_t last = op.num_experts - lane;
    uint32_t bits[kPerLane];
    if (op.logits_dtype == MOE_DTYPE_FP32) {
        const uint32_t *row = reinterpret_cast<const uint32_t *>(logits_of(op, token)) + lane;
#pragma unroll
        for (int i = 0; i < kPerLane; i++) {
            bits[i] = i * 32 < last ? row[i * 32] : 0xffffffffu;
        }
    } else {
        const uint16_t *row = reinterpret_cast<const uint16_t *>(logits_of(op, token)) + lane;
        const bool is_bf16 = op.logits_dtype == MOE_DTYPE_BF16;
#pragma unroll
        for (int i = 0; i < kPerLane; i++) {
            const uint32_t half = i * 32 < last ? row[i * 32] : 0xffffu;
            bits[i] = half << 16;
        }
#pragma unroll
        for (int i = 0; i < kPerLane && !is_bf16; i++) {
            const __half_raw raw = {static_cast<unsigned short>(bits[i] >> 16)};
            bits[i] = __float_as_uint(__half2float(__half(raw)));
        }
    }
#pragma unroll
    for (int i = 0; i < kPerLane; i++) {
        const uint32_t sign = static_cast<uint32_t>(static_cast<int32_t>(bits[i]) >> 31);
        const uint32_t with_place = (bits[i] & ~(kPerLane - 1u)) | (kPerLane - 1u - i);
        keys[i] = static_cast<int32_t>(with_place ^ (sign & 0x7fffffffu & ~(kPerLane - 1u)));
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

/* Ids that a sort reads besides: [tokens from `first`, slots] in shared memory; NULL: none. Not
 * `stores`: those alone. */
struct QuickIds {
    int32_t *ids;
    int32_t first;
    bool stores;
};

__device__ __forceinline__ void store_slot(const struct moe_op_gating &op, const QuickIds &too,
                                           int32_t token, int32_t slot, int32_t id, float weight)
{
    if (too.stores) {
        store_slot(op, token, slot, id, weight);
    }
    if (too.ids != nullptr) {
        too.ids[(token - too.first) * (op.top_k + op.num_appended) + slot] = id;
    }
}

/* A winner: its key, and the lanes that had it (the lowest won). */
struct QuickWinner {
    int32_t key;
    unsigned lanes;

    template <int kPerLane> __device__ __forceinline__ int32_t expert() const
    {
        return (kPerLane - 1 - (key & (kPerLane - 1))) * 32 + __ffs(static_cast<int>(lanes)) - 1;
    }
};

/* Step 2. `slot`: the one whose winner this lane takes, of any other token 32 at least;
 * `runner_up`: the key behind the last of kQuickSlots winners. */
template <int kPerLane>
__device__ __forceinline__ void choose_winners(int32_t top_k, int32_t slot, unsigned before,
                                               int32_t (&keys)[kPerLane], QuickWinner *winner,
                                               int32_t *runner_up)
{
#pragma unroll
    for (int round = 0; round <= kQuickSlots; round++) {
        const int32_t largest = __reduce_max_sync(kGateLanes, keys[0]);
        if (round == kQuickSlots) {
            *runner_up = slot < kQuickSlots ? largest : *runner_up;
            return;
        }
        const bool is_largest = keys[0] == largest;
        const unsigned equal = __ballot_sync(kGateLanes, is_largest);
        winner->key = slot == round ? largest : winner->key;
        winner->lanes = slot == round ? equal : winner->lanes;
        if (round > 0 && round % 2 == 0 && round >= top_k) {
            return;
        }
        const bool wins = is_largest && (equal & before) == 0;
#pragma unroll
        for (int i = 0; i < kPerLane && i < kQuickSlots - round; i++) {
            keys[i] = wins ? (i + 1 < kPerLane ? keys[i + 1] : INT32_MIN) : keys[i];
        }
    }
}

/* The same by all bits of the logits, with NaN and infinities made finite: the next winner is the
 * best of those that are behind the last one. Returns that of `slot`. */
__device__ __forceinline__ int32_t choose_exactly(const struct moe_op_gating &op, int32_t token,
                                                  int32_t lane, int32_t slot)
{
    const char *row = logits_of(op, token);
    uint32_t last_key = 0xffffffffu;
    int32_t last_expert = -1;
    int32_t chosen = 0;
#pragma unroll 1
    for (int32_t round = 0; round < op.top_k; round++) {
        uint32_t best = 0;
        int32_t best_expert = INT32_MAX;
#pragma unroll 2
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
        chosen = slot == round ? last_expert : chosen;
    }
    return chosen;
}

/* The expert of a slot when the winners of its token are in order by all bits. Slots that do not
 * exist have the lowest value. */
__device__ __forceinline__ int32_t order_winners(int32_t slot, float value, int32_t expert)
{
    int32_t place = 0;
#pragma unroll 1
    for (int i = 0; i < kQuickSlots; i++) {
        const float other = __shfl_sync(kGateLanes, value, i, kQuickSlots);
        const int32_t other_expert = __shfl_sync(kGateLanes, expert, i, kQuickSlots);
        place += other > value || (other == value && other_expert < expert) ? 1 : 0;
    }
    int32_t ordered = expert;
#pragma unroll 1
    for (int i = 0; i < kQuickSlots; i++) {
        const int32_t other_place = __shfl_sync(kGateLanes, place, i, kQuickSlots);
        const int32_t other_expert = __shfl_sync(kGateLanes, expert, i, kQuickSlots);
        ordered = other_place == slot ? other_expert : ordered;
    }
    return ordered;
}

/* Steps 3 and 4. `num_tokens` of the batch, which begins with `first`. */
template <int kPerLane>
__device__ __forceinline__ void weigh_winners(const struct moe_op_gating &op, int32_t first,
                                              int32_t num_tokens, int32_t lane,
                                              const QuickWinner &winner, int32_t runner_up,
                                              const QuickIds &too)
{
    const int32_t slot = lane % kQuickSlots;
    const int32_t token = first + lane / kQuickSlots;
    const bool exists = lane / kQuickSlots < num_tokens && slot < op.top_k;
    const int32_t behind = __shfl_down_sync(kGateLanes, winner.key, 1);
    const int32_t next = slot == kQuickSlots - 1 ? runner_up : behind;
    const bool is_unordered = exists && op.logits_dtype == MOE_DTYPE_FP32 &&
                              static_cast<uint32_t>(winner.key ^ next) < kPerLane;
    int32_t expert = exists ? winner.expert<kPerLane>() : 0;
    float value = exists ? 0.0f : -FLT_MAX;
    if (exists && expert < op.num_experts) {
        value = load_logit(logits_of(op, token), op.logits_dtype, expert);
    }
    const bool is_odd = exists && (value == 0.0f || !(fabsf(value) < FLT_MAX) ||
                                   (is_unordered && slot == op.top_k - 1));
    if (__any_sync(kGateLanes, is_unordered || is_odd)) {
        unsigned odd_lanes = __ballot_sync(kGateLanes, is_odd);
        expert = order_winners(slot, value, expert);
#pragma unroll 1
        while (odd_lanes != 0) {
            const int32_t which = (__ffs(static_cast<int>(odd_lanes)) - 1) / kQuickSlots;
            const int32_t chosen = choose_exactly(op, first + which, lane, slot);
            expert = which == lane / kQuickSlots ? chosen : expert;
            odd_lanes &= ~(((1u << kQuickSlots) - 1u) << (which * kQuickSlots));
        }
        if (exists) {
            value = make_finite(load_logit(logits_of(op, token), op.logits_dtype, expert));
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
        if (op.load_counters != nullptr && too.stores) {
            atomicAdd(reinterpret_cast<unsigned long long *>(op.load_counters) + expert, 1ull);
        }
        store_slot(op, too, token, slot, find_replica(op, expert, op.first_token + token),
                   __fmul_rn(weight, op.scaling));
    }
}

/* Gates tokens first .. end, a batch at most, by one warp. */
template <int kPerLane>
__device__ __forceinline__ void gate_batch(const struct moe_op_gating &op, int32_t first,
                                           int32_t end, int32_t num_valid, const QuickIds &too)
{
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    const unsigned before = (1u << lane) - 1u;
    const int32_t num_gated = min(end, num_valid) - first;
    QuickWinner winner = {0, 1};
    int32_t runner_up = 0;
#pragma unroll 1
    for (int32_t i = 0; i < num_gated; i++) {
        int32_t keys[kPerLane];
        const uint32_t slot = static_cast<uint32_t>(lane - i * kQuickSlots);
        load_keys<kPerLane>(op, first + i, lane, keys);
        sort_keys<kPerLane>(keys);
        choose_winners<kPerLane>(op.top_k, static_cast<int32_t>(min(slot, 32u)), before, keys,
                                 &winner, &runner_up);
    }
    if (num_gated > 0) {
        weigh_winners<kPerLane>(op, first, num_gated, lane, winner, runner_up, too);
    }
    if (op.num_appended == 0 && end <= num_valid) {
        return;
    }
    const int32_t num_slots = op.top_k + op.num_appended;
#pragma unroll 1
    for (int32_t token = first; token < end; token++) {
        const bool is_valid = token < num_valid;
#pragma unroll 1
        for (int32_t slot = (is_valid ? op.top_k : 0) + lane; slot < num_slots; slot += 32) {
            store_slot(op, too, token, slot, is_valid ? op.first_appended_id + slot - op.top_k : -1,
                       is_valid ? op.appended_weight : 0.0f);
        }
    }
}

} // namespace

#endif
