/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gating of one token by one warp: ids and weights of its experts, by the rules of MOE_GATING_LIST.
 *
 * Ids are the CPU's (kernels/cpu/gating.c) exactly: what is compared has the same bits, because
 * exponentials are the same function and sums over experts are in the CPU's order (expert e in lane
 * e mod 8, ascending, then a tree). Weights are the CPU's bits too, but for softmax with
 * renormalization and neither bias nor groups: there the sum over all experts cancels and is not
 * made; w_j = e_j / (e_0 + ... + e_k-1) instead of (e_j / S) / (e_0 / S + ...).
 *
 * A lane has kPerLane neighbouring experts in registers (kPerLane 0: any number, in shared memory).
 * Choice of k from E: 1 the k-th largest of the lanes' largest values is a bound that at least k
 * values reach, mostly not many more. 2 those are collected in shared memory. 3 each finds its rank
 * among them. With many equal values, or k above 32, k rounds of a maximum over the warp.
 * Limits: kPerLane * 32 experts; with 0 what the warp's shared memory holds.
 */
#ifndef MOE_GATE_CUH
#define MOE_GATE_CUH

#include "gate_experts.cuh"

namespace
{

/* The two largest keys' values of a group; a group of one has no second. */
struct GroupBest {
    float first;
    float second;

    __device__ __forceinline__ void offer(float value)
    {
        second = value > first ? first : (value > second ? value : second);
        first = value > first ? value : first;
    }
};

__device__ __forceinline__ uint32_t score_group(const struct moe_op_gating &op,
                                                const GroupBest &best, int32_t size)
{
    if (op.group_score != MOE_GROUP_SCORE_TOP2_SUM || size == 1) {
        return make_key(best.first);
    }
    return make_key(make_finite(__fadd_rn(best.first, best.second)));
}

/* Number of groups that are better than the one with `key` and number `group`; group g's key is in
 * lane g * lanes_per_group. */
__device__ __forceinline__ int32_t rank_group(uint32_t key, int32_t group, int32_t num_groups,
                                              int32_t lanes_per_group)
{
    int32_t rank = 0;
    for (int32_t g = 0; g < num_groups; g++) {
        const uint32_t other = __shfl_sync(kGateLanes, key, g * lanes_per_group);
        rank += other > key || (other == key && g < group) ? 1 : 0;
    }
    return rank;
}

/* Keys of experts outside the best groups become 0. At most 32 groups, or kPerLane 0. */
template <int kPerLane>
__device__ __forceinline__ void keep_best_groups(const struct moe_op_gating &op,
                                                 const GateScratch &scratch,
                                                 LaneExperts<kPerLane> *experts, int32_t lane)
{
    const int32_t size = op.num_experts / op.num_groups;
    if constexpr (kPerLane > 0) {
        const int32_t lanes_per_group = size / kPerLane;
        if (size % kPerLane == 0 && (lanes_per_group & (lanes_per_group - 1)) == 0 &&
            lanes_per_group > 0) {
            GroupBest best = {-FLT_MAX, -FLT_MAX};
#pragma unroll
            for (int i = 0; i < kPerLane; i++) {
                best.offer(experts->keys[i] != 0 ? invert_key(experts->keys[i]) : -FLT_MAX);
            }
            for (int32_t distance = lanes_per_group / 2; distance > 0; distance /= 2) {
                const float first = __shfl_xor_sync(kGateLanes, best.first, distance);
                const float second = __shfl_xor_sync(kGateLanes, best.second, distance);
                best.offer(first);
                best.offer(second);
            }
            const uint32_t key = score_group(op, best, size);
            const int32_t rank =
                rank_group(key, lane / lanes_per_group, op.num_groups, lanes_per_group);
            if (rank >= op.topk_groups) {
#pragma unroll
                for (int i = 0; i < kPerLane; i++) {
                    experts->keys[i] = 0;
                }
            }
            return;
        }
    }
    __syncwarp();
    for (int i = 0; i < experts->size(); i++) {
        if (experts->expert(i) < op.num_experts) {
            scratch.row[experts->expert(i)] = __uint_as_float(experts->keys[i]);
        }
    }
    __syncwarp();
    /* Group by group: its rank among all, a lane a competitor. */
    const auto key_of = [&](int32_t group) {
        GroupBest best = {-FLT_MAX, -FLT_MAX};
        for (int32_t i = 0; i < size; i++) {
            best.offer(invert_key(__float_as_uint(scratch.row[group * size + i])));
        }
        return score_group(op, best, size);
    };
    for (int32_t group = 0; group < op.num_groups; group++) {
        const uint32_t key = key_of(group);
        int32_t better = 0;
        for (int32_t g = lane; g < op.num_groups; g += 32) {
            const uint32_t other = key_of(g);
            better += other > key || (other == key && g < group) ? 1 : 0;
        }
        if (__reduce_add_sync(kGateLanes, better) >= op.topk_groups) {
            for (int i = 0; i < experts->size(); i++) {
                const int32_t expert = experts->expert(i);
                if (expert >= group * size && expert < (group + 1) * size) {
                    experts->keys[i] = 0;
                }
            }
        }
    }
    __syncwarp();
}

/* k rounds: the largest key of the warp, of equal ones that of the lowest expert. */
template <int kPerLane>
__device__ __forceinline__ void choose_in_rounds(int32_t top_k, const GateScratch &scratch,
                                                 LaneExperts<kPerLane> *experts)
{
    for (int32_t slot = 0; slot < top_k; slot++) {
        uint32_t best = 0;
        int32_t expert = INT32_MAX;
        float value = 0.0f;
#pragma unroll
        for (int i = 0; i < experts->size(); i++) {
            if (experts->keys[i] > best) {
                best = experts->keys[i];
                expert = experts->expert(i);
                value = experts->values[i];
            }
        }
        const uint32_t largest = __reduce_max_sync(kGateLanes, best);
        const int32_t winner = __reduce_min_sync(kGateLanes, best == largest ? expert : INT32_MAX);
        if (winner == expert && best == largest) {
            scratch.ids[slot] = expert;
            scratch.weights[slot] = value;
        }
#pragma unroll
        for (int i = 0; i < experts->size(); i++) {
            if (experts->expert(i) == winner) {
                experts->keys[i] = 0;
            }
        }
    }
    __syncwarp();
}

/* scratch.ids and scratch.weights: the chosen experts and their values, best first. */
template <int kPerLane>
__device__ __forceinline__ void choose_experts(int32_t top_k, const GateScratch &scratch,
                                               LaneExperts<kPerLane> *experts, uint32_t largest,
                                               int32_t lane)
{
    if constexpr (kPerLane > 0) {
        uint32_t bound = 0;
        for (int32_t round = 0; round < top_k; round++) {
            bound = __reduce_max_sync(kGateLanes, largest);
            largest = largest == bound ? 0 : largest;
        }
        bound = bound > 0 ? bound : 1;
        const unsigned before = (1u << lane) - 1u;
        int32_t num_candidates = 0;
#pragma unroll
        for (int i = 0; i < kPerLane; i++) {
            const bool is_candidate = experts->keys[i] >= bound;
            const unsigned mask = __ballot_sync(kGateLanes, is_candidate);
            const int32_t place = num_candidates + __popc(mask & before);
            num_candidates += __popc(mask);
            if (is_candidate && place < 32) {
                scratch.candidates[place] =
                    make_uint2(~static_cast<uint32_t>(experts->expert(i)), experts->keys[i]);
                scratch.candidate_values[place] = experts->values[i];
            }
        }
        if (num_candidates <= 32 && top_k <= 32) {
            __syncwarp();
            const uint64_t *all = reinterpret_cast<const uint64_t *>(scratch.candidates);
            const uint64_t own = all[lane];
            const float value = scratch.candidate_values[lane];
            int32_t rank = 0;
#pragma unroll 4
            for (int32_t i = 0; i < num_candidates; i++) {
                rank += all[i] > own ? 1 : 0;
            }
            if (lane < num_candidates && rank < top_k) {
                scratch.ids[rank] = static_cast<int32_t>(~static_cast<uint32_t>(own));
                scratch.weights[rank] = value;
            }
            __syncwarp();
            return;
        }
    }
    choose_in_rounds(top_k, scratch, experts);
}

/* One round of the sparse mixer: softmax at the chosen expert of logit `largest`, over the logits
 * near it but that of `removed` (-1: none). */
template <int kPerLane>
__device__ __forceinline__ float mix_sparsely(const struct moe_op_gating &op,
                                              const GateScratch &scratch,
                                              const LaneExperts<kPerLane> &experts, float largest,
                                              int32_t removed, int32_t lane)
{
    const float threshold = __fmul_rn(2.0f, op.router_jitter);
#pragma unroll
    for (int i = 0; i < experts.size(); i++) {
        const int32_t expert = experts.expert(i);
        const float logit = experts.values[i];
        const float distance = __fsub_rn(largest, logit);
        const float magnitude = fabsf(logit);
        /* 0 / 0 when logit and largest are both zero: a NaN is not above the threshold. */
        const float relative = __fdiv_rn(distance, magnitude > largest ? magnitude : largest);
        const float term = moe_vmath_exp(__fsub_rn(0.0f, distance));
        if (expert < experts.num_experts) {
            scratch.row[expert] = threshold < relative || expert == removed ? 0.0f : term;
        }
    }
    return __fdiv_rn(1.0f, sum_row(scratch.row, experts.num_experts, lane));
}

/* From values of the chosen in scratch.weights to their weights, before renormalization. */
__device__ __forceinline__ void weigh_chosen(const struct moe_op_gating &op,
                                             const GateScratch &scratch, bool is_scored,
                                             float largest, float sum, int32_t lane)
{
    if (is_scored) {
        return;
    }
    const float first = scratch.weights[0];
    __syncwarp();
    for (int32_t slot = lane; slot < op.top_k; slot += 32) {
        float weight = scratch.weights[slot];
        if (op.rule == MOE_GATING_LLAMA4) {
            weight = moe_vmath_logistic(weight);
        } else if (op.rule == MOE_GATING_TOPK_SOFTMAX || op.renormalize) {
            weight = moe_vmath_exp(__fsub_rn(weight, first));
        } else {
            weight = __fdiv_rn(moe_vmath_exp(__fsub_rn(weight, largest)), sum);
        }
        scratch.weights[slot] = weight;
    }
    __syncwarp();
    if (op.rule == MOE_GATING_TOPK_SOFTMAX) {
        const float all = sum_row(scratch.weights, op.top_k, lane);
        for (int32_t slot = lane; slot < op.top_k; slot += 32) {
            scratch.weights[slot] = __fdiv_rn(scratch.weights[slot], all);
        }
        __syncwarp();
    }
}

/* The id given out for logical expert `expert` to token number `token` of the call. */
__device__ __forceinline__ int32_t find_replica(const struct moe_op_gating &op, int32_t expert,
                                                int64_t token)
{
    if (op.physical_ids == nullptr) {
        return expert;
    }
    int32_t num_replicas = op.num_replicas[expert];
    num_replicas = num_replicas < op.max_replicas ? num_replicas : op.max_replicas;
    num_replicas = num_replicas > 1 ? num_replicas : 1;
    return op.physical_ids[static_cast<int64_t>(expert) * op.max_replicas + token % num_replicas];
}

__device__ __forceinline__ void store_slot(const struct moe_op_gating &op, int32_t token,
                                           int32_t slot, int32_t id, float weight)
{
    const int64_t at = static_cast<int64_t>(token) * (op.top_k + op.num_appended) + slot;
    if (op.ids_dtype == MOE_IDS_INT64) {
        static_cast<int64_t *>(op.topk_ids)[at] = id;
    } else {
        static_cast<int32_t *>(op.topk_ids)[at] = id;
    }
    op.topk_weights[at] = weight;
}

__device__ __forceinline__ void store_token(const struct moe_op_gating &op,
                                            const GateScratch &scratch, int32_t token, int32_t lane)
{
    float sum = 0.0f;
    if (op.renormalize) {
#pragma unroll 8
        for (int32_t slot = 0; slot < op.top_k; slot++) {
            sum = __fadd_rn(sum, scratch.weights[slot]);
        }
        sum = __fadd_rn(sum, 1e-20f);
    }
    for (int32_t slot = lane; slot < op.top_k; slot += 32) {
        const int32_t expert = scratch.ids[slot];
        const float weight = scratch.weights[slot];
        if (op.load_counters != nullptr) {
            atomicAdd(reinterpret_cast<unsigned long long *>(op.load_counters) + expert, 1ull);
        }
        store_slot(op, token, slot, find_replica(op, expert, op.first_token + token),
                   __fmul_rn(op.renormalize ? __fdiv_rn(weight, sum) : weight, op.scaling));
    }
    for (int32_t i = lane; i < op.num_appended; i += 32) {
        store_slot(op, token, op.top_k + i, op.first_appended_id + i, op.appended_weight);
    }
    __syncwarp();
}

/* Gates one token. `num_valid`: tokens from there on are padding. */
template <int kPerLane>
__device__ __forceinline__ void gate_token(const struct moe_op_gating &op,
                                           const GateScratch &scratch, int32_t token,
                                           int32_t num_valid, bool is_vectored)
{
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    if (token >= num_valid) {
        for (int32_t slot = lane; slot < op.top_k + op.num_appended; slot += 32) {
            store_slot(op, token, slot, -1, 0.0f);
        }
        return;
    }
    LaneExperts<kPerLane> experts(scratch, op.num_experts, lane);
    load_logits(op, token, is_vectored, &experts);
#pragma unroll
    for (int i = 0; i < experts.size(); i++) {
        experts.values[i] = make_finite(experts.values[i]);
    }
    const bool is_softmax = op.rule == MOE_GATING_SOFTMAX;
    const bool is_scored = op.rule == MOE_GATING_SIGMOID ||
                           (is_softmax && (op.correction_bias != nullptr || op.num_groups > 1));
    uint32_t lane_largest = 0;
    float largest = 0.0f;
    float sum = 1.0f;
    if (op.rule == MOE_GATING_SIGMOID) {
#pragma unroll
        for (int i = 0; i < experts.size(); i++) {
            experts.values[i] = moe_vmath_logistic(experts.values[i]);
        }
    } else if (is_softmax && (is_scored || !op.renormalize)) {
        lane_largest = make_keys(&experts, nullptr);
        largest = invert_key(__reduce_max_sync(kGateLanes, lane_largest));
        sum = exponentiate(scratch, &experts, largest, lane, !is_scored);
        if (is_scored) {
#pragma unroll
            for (int i = 0; i < experts.size(); i++) {
                experts.values[i] = __fdiv_rn(experts.values[i], sum);
            }
        }
    }
    lane_largest = make_keys(&experts, op.correction_bias);
    if (op.num_groups > 1) {
        keep_best_groups(op, scratch, &experts, lane);
        lane_largest = 0;
#pragma unroll
        for (int i = 0; i < experts.size(); i++) {
            lane_largest = experts.keys[i] > lane_largest ? experts.keys[i] : lane_largest;
        }
    }
    choose_experts(op.top_k, scratch, &experts, lane_largest, lane);
    if (op.rule == MOE_GATING_SPARSEMIXER) {
        const int32_t first = scratch.ids[0];
        const float second_logit = scratch.weights[1];
        const float best = mix_sparsely(op, scratch, experts, scratch.weights[0], -1, lane);
        const float second = mix_sparsely(op, scratch, experts, second_logit, first, lane);
        if (lane < 2) {
            scratch.weights[lane] = lane == 0 ? best : second;
        }
        __syncwarp();
    } else {
        weigh_chosen(op, scratch, is_scored, largest, sum, lane);
    }
    store_token(op, scratch, token, lane);
}

/* Tokens that are really there. */
__device__ __forceinline__ int32_t count_tokens(const struct moe_op_gating &op)
{
    const int32_t all = static_cast<int32_t>(op.num_tokens);
    return op.num_tokens_device == nullptr ? all : max(0, min(*op.num_tokens_device, all));
}

/* Tokens before the first padded one, of `num_tokens`. */
__device__ __forceinline__ int32_t count_valid(const struct moe_op_gating &op, int32_t num_tokens)
{
    if (op.num_valid_tokens == nullptr) {
        return num_tokens;
    }
    const int64_t valid = *op.num_valid_tokens - op.first_token;
    return static_cast<int32_t>(valid < 0 ? 0 : valid < num_tokens ? valid : num_tokens);
}

} // namespace

#endif
