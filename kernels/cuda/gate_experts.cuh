/* SPDX-License-Identifier: Apache-2.0 */
/* What a warp gates with (gate.cuh): its shared memory, the experts of a lane, their logits and
 * sort keys, and sums over all experts. */
#ifndef MOE_GATE_EXPERTS_CUH
#define MOE_GATE_EXPERTS_CUH

#include "cuda_args.h"
#include "ptx.cuh"
#include "vmath.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <float.h>

namespace
{

constexpr unsigned kGateLanes = 0xffffffffu;

/* Shared memory of a warp; MOE_CUDA_GATE_WORDS counts it. */
struct GateScratch {
    uint2 *candidates;       /* [32] inverted id, key: compared as one 64-bit number */
    float *candidate_values; /* [32] */
    int32_t *ids;            /* [top_k] chosen, best first */
    float *weights;          /* [top_k] */
    float *row;              /* [experts] of sums */
    float *values;           /* [experts] and */
    uint32_t *keys;          /* [experts], kPerLane 0 only */
};

__device__ __forceinline__ GateScratch make_gate_scratch(const struct moe_op_gating &op,
                                                         uint32_t *words)
{
    const int32_t k_words = (op.top_k + 3) / 4 * 4;
    const int32_t row_words = MOE_CUDA_GATE_ROW_WORDS(op.num_experts);
    GateScratch scratch;
    scratch.candidates = reinterpret_cast<uint2 *>(words);
    scratch.candidate_values = reinterpret_cast<float *>(words + 64);
    scratch.ids = reinterpret_cast<int32_t *>(words + 96);
    scratch.weights = reinterpret_cast<float *>(words + 96 + k_words);
    scratch.row = reinterpret_cast<float *>(words + 96 + 2 * k_words);
    scratch.values = scratch.row + row_words;
    scratch.keys = reinterpret_cast<uint32_t *>(scratch.values + row_words);
    return scratch;
}

/* Values and sort keys of a lane's experts: in registers, or in shared memory. */
template <int kPerLane> struct LaneExperts {
    float values[kPerLane];
    uint32_t keys[kPerLane];
    int32_t num_experts;
    int32_t first;

    __device__ __forceinline__ LaneExperts(const GateScratch &, int32_t count, int32_t lane)
        : num_experts(count), first(lane * kPerLane)
    {
    }
    __device__ __forceinline__ constexpr int32_t size() const
    {
        return kPerLane;
    }
    __device__ __forceinline__ int32_t expert(int32_t i) const
    {
        return first + i;
    }
};

template <> struct LaneExperts<0> {
    struct Strided {
        uint32_t *base;
        __device__ __forceinline__ uint32_t &operator[](int32_t i) const
        {
            return base[i * 32];
        }
    };
    struct StridedFloat {
        float *base;
        __device__ __forceinline__ float &operator[](int32_t i) const
        {
            return base[i * 32];
        }
    };
    StridedFloat values;
    Strided keys;
    int32_t num_experts;
    int32_t first;

    __device__ __forceinline__ LaneExperts(const GateScratch &scratch, int32_t count, int32_t lane)
        : values{scratch.values + lane}, keys{scratch.keys + lane}, num_experts(count), first(lane)
    {
    }
    __device__ __forceinline__ int32_t size() const
    {
        return (num_experts + 31) / 32;
    }
    __device__ __forceinline__ int32_t expert(int32_t i) const
    {
        return first + i * 32;
    }
};

/* NaN becomes the lowest finite value, infinities the largest of their sign. */
__device__ __forceinline__ float make_finite(float value)
{
    return fminf(fmaxf(value, -FLT_MAX), FLT_MAX); /* fmaxf hands on what is not NaN */
}

/* Larger values have larger keys; both zeros have one; no finite value has 0. */
__device__ __forceinline__ uint32_t make_key(float value)
{
    const uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));
    return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float invert_key(uint32_t key)
{
    return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ float load_logit(const void *row, int32_t dtype, int32_t expert)
{
    switch (dtype) {
    case MOE_DTYPE_BF16:
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(row)[expert]);
    case MOE_DTYPE_FP16:
        return __half2float(static_cast<const __half *>(row)[expert]);
    default:
        return static_cast<const float *>(row)[expert];
    }
}

/* Two elements of 16 bits in a word. */
__device__ __forceinline__ void widen(uint32_t word, int32_t dtype, float *out)
{
    if (dtype == MOE_DTYPE_BF16) {
        out[0] = __uint_as_float(word << 16);
        out[1] = __uint_as_float(word & 0xffff0000u);
    } else {
        const float2 both = __half22float2(*reinterpret_cast<const __half2 *>(&word));
        out[0] = both.x;
        out[1] = both.y;
    }
}

/* A lane's logits as they are. Vectors of kPerLane or four experts where all rows are aligned to
 * them and no vector is partly there. */
template <int kPerLane>
__device__ __forceinline__ void load_logits(const struct moe_op_gating &op, int32_t token,
                                            bool is_vectored, LaneExperts<kPerLane> *experts)
{
    constexpr int kWidth = kPerLane % 4 == 0 && kPerLane > 0 ? 4 : 2;
    const int32_t element_bytes = op.logits_dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const char *row = static_cast<const char *>(op.logits) +
                      static_cast<int64_t>(token) * op.logits_stride * element_bytes;
    if constexpr (kPerLane > 0) {
        if (is_vectored) {
#pragma unroll
            for (int i = 0; i < kPerLane; i += kWidth) {
                const int32_t expert = experts->expert(i);
                float *to = experts->values + i;
#pragma unroll
                for (int j = 0; j < kWidth; j++) {
                    to[j] = 0.0f;
                }
                if (expert >= op.num_experts) {
                    continue;
                }
                if (element_bytes == 4) {
                    const float *from = reinterpret_cast<const float *>(row) + expert;
                    if constexpr (kWidth == 4) {
                        const float4 all = *reinterpret_cast<const float4 *>(from);
                        to[0] = all.x;
                        to[1] = all.y;
                        to[2] = all.z;
                        to[3] = all.w;
                    } else {
                        const float2 all = *reinterpret_cast<const float2 *>(from);
                        to[0] = all.x;
                        to[1] = all.y;
                    }
                } else {
                    const uint16_t *from = reinterpret_cast<const uint16_t *>(row) + expert;
                    if constexpr (kWidth == 4) {
                        const uint2 all = *reinterpret_cast<const uint2 *>(from);
                        widen(all.x, op.logits_dtype, to);
                        widen(all.y, op.logits_dtype, to + 2);
                    } else {
                        widen(*reinterpret_cast<const uint32_t *>(from), op.logits_dtype, to);
                    }
                }
            }
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < experts->size(); i++) {
        const int32_t expert = experts->expert(i);
        experts->values[i] =
            expert < op.num_experts ? load_logit(row, op.logits_dtype, expert) : 0.0f;
    }
}

/* The sum of row[0 .. count) in the CPU's order; all lanes get it. */
__device__ __forceinline__ float sum_row(const float *row, int32_t count, int32_t lane)
{
    float sum = 0.0f;
    __syncwarp();
    if (lane < 8) {
#pragma unroll 8
        for (int32_t i = lane; i < count; i += 8) {
            sum = __fadd_rn(sum, row[i]);
        }
    }
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(kGateLanes, sum, distance));
    }
    sum = __shfl_sync(kGateLanes, sum, 0);
    __syncwarp();
    return sum;
}

/* Keys of values[i] (+ bias); 0 beyond the last expert. Returns the lane's largest. */
template <int kPerLane>
__device__ __forceinline__ uint32_t make_keys(LaneExperts<kPerLane> *experts, const float *bias)
{
    uint32_t largest = 0;
    if (bias == nullptr) {
#pragma unroll
        for (int i = 0; i < experts->size(); i++) {
            const bool exists = experts->expert(i) < experts->num_experts;
            const uint32_t key = exists ? make_key(experts->values[i]) : 0;
            experts->keys[i] = key;
            largest = max(largest, key);
        }
        return largest;
    }
#pragma unroll
    for (int i = 0; i < experts->size(); i++) {
        const int32_t expert = experts->expert(i);
        uint32_t key = 0;
        if (expert < experts->num_experts) {
            key = make_key(make_finite(__fadd_rn(experts->values[i], bias[expert])));
        }
        experts->keys[i] = key;
        largest = max(largest, key);
    }
    return largest;
}

/* values[i] = softmax of values, all of them; `largest` over the warp. */
template <int kPerLane>
__device__ __forceinline__ float exponentiate(const GateScratch &scratch,
                                              LaneExperts<kPerLane> *experts, float largest,
                                              int32_t lane, bool keeps_values)
{
#pragma unroll
    for (int i = 0; i < experts->size(); i++) {
        const int32_t expert = experts->expert(i);
        const float e = moe_vmath_exp(__fsub_rn(experts->values[i], largest));
        if (expert < experts->num_experts) {
            scratch.row[expert] = e;
        }
        if (!keeps_values) {
            experts->values[i] = e;
        }
    }
    return sum_row(scratch.row, experts->num_experts, lane);
}

} // namespace

#endif
