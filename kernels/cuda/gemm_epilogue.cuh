/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From accumulators to output rows. A consumer warpgroup has, per slab, 64 channels x block_m
 * tokens; thread t holds channels 16 * (warp % 4) + lane / 4 (+ 8) of tokens 8 g + 2 * (lane % 4)
 * (+ 1): sums[slab][4 g + 2 * (channel half) + (token half)]. After gemm_pairs.cuh the channels are
 * 8 * (warp % 4) + lane / 4 (+ 32).
 *   acc * row weight, + bias, activation, one rounding; then, 32 tokens at a time (16 of two
 *   slabs), transposed through shared memory (stmatrix), so that eight lanes write 128 bytes of a
 *   token's row.
 * This is straight code, run once per unit, and the sums stay in registers: what counts is its
 * length, and that it can be scheduled. With every case tested inside it was 68 KB, more than the
 * instruction caches, and took 14,000 cycles per unit; so the cases are constants of the fast path,
 * and what is rare (NaN) is looked for in the words that are stored. With a branch around each
 * store 184 tokens took 5270 cycles; without, and with the next tokens' activation in front of a
 * barrier, 4080, of which the special function units need 2940. A loop over 16 tokens, its sums
 * chosen by a switch, took 7400: nothing then covers its waits.
 * Other activations, fp32 outputs and rows that are not 16-byte aligned go through shared memory as
 * sums, and are finished and stored element by element.
 */
#ifndef MOE_GEMM_EPILOGUE_CUH
#define MOE_GEMM_EPILOGUE_CUH

#include "gemm_act.cuh"
#include "gemm_work.cuh"
#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* Where a warpgroup's results go. */
struct moe_gemm_place {
    uint32_t staging;       /* shared address of 8 KB of the warpgroup's own */
    uint32_t rows;          /* shared address of the output rows of the unit's tokens; -1: none */
    uint32_t barrier;       /* its named barrier */
    int32_t thread;         /* this one, of 128 */
    int32_t first_channel;  /* of slab 0 */
    int32_t slab_channels;  /* channels of a slab */
    int32_t warp_channels;  /* from a warp's first channel to the next warp's: 16 or 8 */
    int32_t half_channels;  /* from a thread's first channel to its second: 8 or 32 */
    bool is_paired;         /* as gemm_pairs.cuh leaves them */
    int32_t second_channel; /* of slab 1, without activation of two matrices */
    int32_t second_column;  /* where slab 1's outputs begin, less second_channel */
};

/* The thread's first channel in a slab. */
static __device__ __forceinline__ int32_t moe_gemm_channel(const struct moe_gemm_place &place)
{
    const int32_t row = place.thread % 32 / 4;
    return place.thread / 32 * place.warp_channels +
           (place.is_paired ? row % 2 * 4 + row / 2 : row);
}

/* Eight channels as gemm_pairs.cuh leaves them, in their order. */
static __device__ __forceinline__ uint4 moe_gemm_order_pairs(const uint4 &words)
{
    return make_uint4(__byte_perm(words.x, words.y, 0x5410), __byte_perm(words.z, words.w, 0x5410),
                      __byte_perm(words.x, words.y, 0x7632), __byte_perm(words.z, words.w, 0x7632));
}

static __device__ __forceinline__ float moe_gemm_widen(const struct moe_operand &operand,
                                                       int64_t idx)
{
    if (operand.dtype == MOE_DTYPE_FP32) {
        return static_cast<const float *>(operand.base)[idx];
    }
    if (operand.dtype == MOE_DTYPE_FP16) {
        return __half2float(static_cast<const __half *>(operand.base)[idx]);
    }
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(operand.base)[idx]);
}

/* NaN of any payload is stored as the positive quiet one. */
static __device__ __forceinline__ uint32_t moe_gemm_narrow(float value, int32_t dtype)
{
    if (dtype == MOE_DTYPE_FP16) {
        return value != value ? 0x7e00u : __half_as_ushort(__float2half_rn(value));
    }
    return value != value ? 0x7fc0u : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

/* Biases of the thread's two channels of both slabs; 0 where there is none. */
static __device__ __forceinline__ void moe_gemm_load_bias(const struct moe_op_gemm &op,
                                                          const struct moe_gemm_place &place,
                                                          int32_t expert, float (&bias)[2][2])
{
    const int32_t in_slab = moe_gemm_channel(place);
#pragma unroll
    for (int32_t slab = 0; slab < 2; slab++) {
        const struct moe_operand &operand = op.bias[op.num_matrices == 2 ? slab : 0];
#pragma unroll
        for (int32_t half = 0; half < 2; half++) {
            const int32_t channel = (slab == 0 ? place.first_channel : place.second_channel) +
                                    in_slab + place.half_channels * half;
            const bool is_there = operand.base != nullptr && channel < op.n;
            bias[slab][half] = is_there ? moe_gemm_widen(operand, expert * operand.expert_stride +
                                                                      channel * operand.row_stride)
                                        : 0.0f;
        }
    }
}

/* Output row of position `row` of a unit; -1: none. */
static __device__ __forceinline__ int64_t moe_gemm_output_row(const struct moe_op_gemm &op,
                                                              int64_t position)
{
    if (op.row_ids == nullptr) {
        return position;
    }
    const int32_t id = op.row_ids[position];
    if (id < 0 || id >= op.num_row_ids) {
        return -1;
    }
    return op.scatter ? id : position;
}

static __device__ __forceinline__ float moe_gemm_row_weight(const struct moe_op_gemm &op,
                                                            int64_t position)
{
    int64_t idx = position;
    if (op.row_ids != nullptr) {
        idx = op.row_ids[position];
        if (idx < 0 || idx >= op.num_row_ids) {
            return 0.0f;
        }
    }
    return op.row_weights[idx];
}

/* Is there a row weight or a bias? Without, -0 stays -0. */
static __device__ __forceinline__ bool moe_gemm_is_affine(const struct moe_op_gemm &op)
{
    return op.row_weights != nullptr || op.bias[0].base != nullptr;
}

/* acc * row weight + bias, two roundings. */
static __device__ __forceinline__ float moe_gemm_affine(float sum, float weight, float bias)
{
    return __fadd_rn(__fmul_rn(sum, weight), bias);
}

/* Epilogues of the fast path: what stands between a sum and its output, as constants, so that a
 * unit runs through little code (see the note at the top). */
enum { MOE_GEMM_ACT_NONE, MOE_GEMM_ACT_SILU, MOE_GEMM_ACT_SWIGLU_OAI };

/* Eight tokens, group g: affine, then the activation of two matrices into slab 0. */
template <int kAct, bool kIsAffine, int kSums>
static __device__ __forceinline__ void moe_gemm_finish(const struct moe_op_gemm &op,
                                                       const struct moe_gemm_unit &unit, int32_t g,
                                                       const float (&bias)[2][2],
                                                       float (&sums)[2][kSums])
{
    if constexpr (kIsAffine) {
        const int32_t first = 8 * g + static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
        for (int32_t token = 0; token < 2; token++) {
            float weight = 1.0f;
            if (op.row_weights != nullptr && first + token < unit.num_rows) {
                weight =
                    moe_gemm_row_weight(op, static_cast<int64_t>(unit.first_row) + first + token);
            }
#pragma unroll
            for (int32_t i = 4 * g + token; i < 4 * g + 4; i += 2) {
                sums[0][i] = moe_gemm_affine(sums[0][i], weight, bias[0][i % 4 / 2]);
                sums[1][i] = moe_gemm_affine(sums[1][i], weight, bias[1][i % 4 / 2]);
            }
        }
    }
#pragma unroll
    for (int32_t i = 4 * g; i < 4 * g + 4; i++) {
        if constexpr (kAct == MOE_GEMM_ACT_SILU) {
            sums[0][i] = sums[0][i] * moe_act_logistic(sums[0][i]) * sums[1][i];
        }
        if constexpr (kAct == MOE_GEMM_ACT_SWIGLU_OAI) {
            sums[0][i] = moe_act_swiglu_oai(op.act, sums[0][i], sums[1][i]);
        }
    }
}

/* Byte of token `token`, channels 8 * chunk .. + 7 of a slab in a buffer of 4 KB: 32 tokens of one
 * slab, or 16 of two. */
template <int kNumSlabs>
static __device__ __forceinline__ uint32_t moe_gemm_staged(int32_t slab, uint32_t token,
                                                           uint32_t chunk)
{
    return (static_cast<uint32_t>(slab * (32 / kNumSlabs)) + token) * 128 +
           ((chunk ^ (token & 7)) << 4);
}

/* Two neighbours in one word, the first one low. The conversion makes NaN 0x7fff, above everything
 * else as a signed number; it is stored as the quiet NaN with no other bit. */
template <bool kIsHalf>
static __device__ __forceinline__ uint32_t moe_gemm_narrow_pair(float low, float high)
{
    if constexpr (kIsHalf) {
        const __half2 halves = __floats2half2_rn(low, high);
        return moe_ptx_min_s16x2(*reinterpret_cast<const uint32_t *>(&halves), 0x7e007e00u);
    } else {
        const __nv_bfloat162 halves = __floats2bfloat162_rn(low, high);
        return moe_ptx_min_s16x2(*reinterpret_cast<const uint32_t *>(&halves), 0x7fc07fc0u);
    }
}

/* Sums of a slab, tokens kFirst and on, to a buffer. */
template <int kNumSlabs, int kFirst, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_stage(const struct moe_gemm_place &place,
                                                      uint32_t buffer, int32_t slab,
                                                      const float (&sums)[kSums])
{
    const auto thread = static_cast<uint32_t>(place.thread);
    const uint32_t token = thread % 32 / 16 * 8 + thread % 8;
    const uint32_t chunk = thread / 32 * static_cast<uint32_t>(place.warp_channels / 8) +
                           thread / 8 % 2 * static_cast<uint32_t>(place.half_channels / 8);
#pragma unroll
    for (int32_t t = 0; t < 32 / kNumSlabs; t += 16) {
        uint32_t words[4] = {};
#pragma unroll
        for (int32_t i = 0; i < 4; i++) {
            const int32_t sum = (kFirst + t) / 2 + 2 * i;
            if (sum < kSums) {
                words[i] = moe_gemm_narrow_pair<kIsHalf>(sums[sum], sums[sum + 1]);
            }
        }
        if ((kFirst + t) / 2 < kSums) {
            moe_ptx_store_transposed(
                buffer + moe_gemm_staged<kNumSlabs>(slab, static_cast<uint32_t>(t) + token, chunk),
                words);
        }
    }
}

/* kNumTokens staged tokens, `first` and on, to their rows, by the warpgroup: eight lanes have 128
 * bytes of a row. Without branches, so that what follows is scheduled under the waits for shared
 * memory; what stands there for tokens beyond the unit's is read and not stored. Behind the last
 * row of a block that 16 does not divide, that is other words of the CTA's shared memory. */
template <int kNumSlabs, int kNumTokens>
static __device__ __forceinline__ void moe_gemm_store_staged(const struct moe_op_gemm &op,
                                                             const struct moe_gemm_unit &unit,
                                                             const struct moe_gemm_place &place,
                                                             uint32_t buffer, int32_t first)
{
    const auto thread = static_cast<uint32_t>(place.thread);
    const uint32_t chunk = thread % 8;
    const int32_t in_slab = static_cast<int32_t>(chunk) * 8;
    const int32_t channel = place.first_channel + in_slab;
#pragma unroll
    for (int32_t t = 0; t < kNumTokens; t += 16) {
        const uint32_t token = static_cast<uint32_t>(t) + thread / 8;
        const int32_t position = first + static_cast<int32_t>(token);
        const int32_t row = moe_ptx_load_shared4(place.rows + 4 * position);
        const bool is_there = position < unit.num_rows && row >= 0 && in_slab < place.slab_channels;
        uint16_t *to = static_cast<uint16_t *>(op.output) + row * op.output_stride + channel;
#pragma unroll
        for (int32_t slab = 0; slab < kNumSlabs; slab++) {
            const int32_t step = slab == 0 ? 0 : place.second_channel - place.first_channel;
            const int32_t column = slab == 0 ? 0 : step + place.second_column;
            uint4 values;
            moe_ptx_load_shared16(buffer + moe_gemm_staged<kNumSlabs>(slab, token, chunk), &values);
            if (place.is_paired) {
                values = moe_gemm_order_pairs(values);
            }
            moe_ptx_store16_if(is_there && channel + step < op.n, to + column, values);
        }
    }
}

/* Slabs of an output, and tokens that are staged at once. */
template <int kAct> struct moe_gemm_staging {
    static constexpr int kNumSlabs = kAct == MOE_GEMM_ACT_NONE ? 2 : 1;
    static constexpr int kTokens = 32 / kNumSlabs;
};

/* Tokens kBase and on, as many as are staged at once. */
template <int kBlockM, int kBase, int kAct, bool kIsAffine, int kSums>
static __device__ __forceinline__ void moe_gemm_finish_block(const struct moe_op_gemm &op,
                                                             const struct moe_gemm_unit &unit,
                                                             const float (&bias)[2][2],
                                                             float (&sums)[2][kSums])
{
#pragma unroll
    for (int32_t g = kBase / 8;
         g < (kBase + moe_gemm_staging<kAct>::kTokens) / 8 && g < kBlockM / 8; g++) {
        moe_gemm_finish<kAct, kIsAffine>(op, unit, g, bias, sums);
    }
}

/* The fast path from token kBase on, whose block is finished: 16-bit rows in vectors, for the
 * activations above. The next block is finished under this one's barrier. There are two
 * buffers, so a barrier lies between the reads of one and the writes that come next to it. */
template <int kBlockM, int kBase, bool kIsHalf, int kAct, bool kIsAffine, int kSums>
static __device__ __forceinline__ void moe_gemm_store_from(const struct moe_op_gemm &op,
                                                           const struct moe_gemm_unit &unit,
                                                           const struct moe_gemm_place &place,
                                                           const float (&bias)[2][2],
                                                           float (&sums)[2][kSums])
{
    constexpr int kNumSlabs = moe_gemm_staging<kAct>::kNumSlabs;
    constexpr int kTokens = moe_gemm_staging<kAct>::kTokens;
    if constexpr (kBase < kBlockM) {
        constexpr int kNumTokens = kBlockM - kBase < kTokens ? kBlockM - kBase : kTokens;
        if (kBase >= unit.num_rows) {
            return;
        }
        const uint32_t buffer =
            place.staging + (kBase / kTokens % 2) * (MOE_CUDA_GEMM_STAGING_BYTES / 2);
#pragma unroll
        for (int32_t slab = 0; slab < kNumSlabs; slab++) {
            moe_gemm_stage<kNumSlabs, kBase, kIsHalf>(place, buffer, slab, sums[slab]);
        }
        moe_gemm_finish_block<kBlockM, kBase + kTokens, kAct, kIsAffine>(op, unit, bias, sums);
        moe_ptx_barrier_sync(place.barrier, 128);
        moe_gemm_store_staged<kNumSlabs, kNumTokens>(op, unit, place, buffer, kBase);
        moe_gemm_store_from<kBlockM, kBase + kTokens, kIsHalf, kAct, kIsAffine>(op, unit, place,
                                                                                bias, sums);
    }
}

template <int kBlockM, bool kIsHalf, int kAct, bool kIsAffine, int kSums>
static __device__ __forceinline__ void moe_gemm_store_fast(const struct moe_op_gemm &op,
                                                           const struct moe_gemm_unit &unit,
                                                           const struct moe_gemm_place &place,
                                                           float (&sums)[2][kSums])
{
    float bias[2][2] = {};
    if constexpr (kIsAffine) {
        moe_gemm_load_bias(op, place, unit.expert, bias);
    }
    moe_gemm_finish_block<kBlockM, 0, kAct, kIsAffine>(op, unit, bias, sums);
    moe_gemm_store_from<kBlockM, 0, kIsHalf, kAct, kIsAffine>(op, unit, place, bias, sums);
    moe_ptx_barrier_sync(place.barrier, 128); /* the next unit begins with the first buffer */
}

/* One output of the general path. */
static __device__ __forceinline__ void moe_gemm_store_element(const struct moe_op_gemm &op,
                                                              int64_t idx, float value)
{
    if (op.output_dtype == MOE_DTYPE_FP32) {
        static_cast<float *>(op.output)[idx] = value != value ? __int_as_float(0x7fc00000) : value;
    } else {
        static_cast<uint16_t *>(op.output)[idx] =
            static_cast<uint16_t>(moe_gemm_narrow(value, op.output_dtype));
    }
}

/* Bias of a channel; 0: none. */
static __device__ __forceinline__ float moe_gemm_bias(const struct moe_op_gemm &op, int32_t matrix,
                                                      int32_t expert, int32_t channel)
{
    const struct moe_operand &bias = op.bias[matrix];
    return bias.base == nullptr
               ? 0.0f
               : moe_gemm_widen(bias, expert * bias.expert_stride + channel * bias.row_stride);
}

/* One channel of one token, both slabs' sums given. */
static __device__ __forceinline__ void moe_gemm_store_channel(
    const struct moe_op_gemm &op, const struct moe_gemm_unit &unit, int32_t row,
    const struct moe_gemm_place &place, int32_t channel, float sum0, float sum1)
{
    const int64_t position = static_cast<int64_t>(unit.first_row) + row;
    const int64_t to = moe_gemm_output_row(op, position);
    const int32_t first = place.first_channel + channel;
    const int32_t second = place.second_channel + channel;
    const bool has_two = op.num_matrices == 2;
    const float weight = op.row_weights != nullptr ? moe_gemm_row_weight(op, position) : 1.0f;
    const bool has_expert = unit.expert >= 0;
    const bool is_affine = has_expert && moe_gemm_is_affine(op);
    if (to < 0) {
        return;
    }
    if (is_affine && first < op.n) {
        sum0 = moe_gemm_affine(sum0, weight, moe_gemm_bias(op, 0, unit.expert, first));
    }
    if (is_affine && second < op.n) {
        sum1 = moe_gemm_affine(sum1, weight, moe_gemm_bias(op, has_two, unit.expert, second));
    }
    if (op.has_activation && has_expert) {
        sum0 =
            has_two ? moe_act_gated(op.act, sum0, sum1) : moe_act_single(op.act.activation, sum0);
        sum1 = moe_act_single(op.act.activation, sum1);
    }
    if (first < op.n) {
        moe_gemm_store_element(op, to * op.output_stride + first, sum0);
    }
    if (second < op.n && !(op.has_activation && has_two)) {
        moe_gemm_store_element(op, to * op.output_stride + place.second_column + second, sum1);
    }
}

/* fp32 sums of eight tokens in the staging area: rows of 68 words keep the writes out of each
 * other's banks. */
#define MOE_GEMM_PITCH 68

/* The general path: any activation, type and alignment, eight tokens at a time through shared
 * memory, so that its code stands here once. */
template <int kBlockM, int kSums>
static __device__ __forceinline__ void moe_gemm_store_any(const struct moe_op_gemm &op,
                                                          const struct moe_gemm_unit &unit,
                                                          const struct moe_gemm_place &place,
                                                          float (&sums)[2][kSums])
{
    float *staging = reinterpret_cast<float *>(moe_ptx_shared_pointer(place.staging));
    const int32_t thread = place.thread;
    float *to = staging + thread % 4 * 2 * MOE_GEMM_PITCH + moe_gemm_channel(place);
#pragma unroll 1
    for (int32_t base = 0; base < unit.num_rows; base += 8) {
#pragma unroll
        for (int32_t i = 0; i < kSums; i++) {
            if (i / 4 == base / 8) {
                const int32_t word = i % 2 * MOE_GEMM_PITCH + i % 4 / 2 * place.half_channels;
                to[word] = sums[0][i];
                to[8 * MOE_GEMM_PITCH + word] = sums[1][i];
            }
        }
        moe_ptx_barrier_sync(place.barrier, 128);
#pragma unroll 1
        for (int32_t row = thread / 64; row < 8 && base + row < unit.num_rows; row += 2) {
            const int32_t channel = thread % 64;
            const float *from = staging + row * MOE_GEMM_PITCH + channel;
            if (channel < place.slab_channels) {
                moe_gemm_store_channel(op, unit, base + row, place, channel, from[0],
                                       from[8 * MOE_GEMM_PITCH]);
            }
        }
        moe_ptx_barrier_sync(place.barrier, 128);
    }
}

/* Output rows of the unit's tokens, read from memory before the multiplications: token
 * 128 * i + thread of it. */
template <int kBlockM> struct moe_gemm_rows {
    static constexpr int kPerThread = (kBlockM + 127) / 128;
    int32_t rows[kPerThread];
};

template <int kBlockM>
static __device__ __forceinline__ void moe_gemm_find_rows(const struct moe_op_gemm &op,
                                                          const struct moe_gemm_unit &unit,
                                                          struct moe_gemm_rows<kBlockM> *out)
{
#pragma unroll
    for (int32_t i = 0; i < out->kPerThread; i++) {
        const int32_t token = 128 * i + static_cast<int32_t>(threadIdx.x) % 128;
        out->rows[i] = token < unit.num_rows
                           ? static_cast<int32_t>(moe_gemm_output_row(
                                 op, static_cast<int64_t>(unit.first_row) + token))
                           : -1;
    }
}

template <int kBlockM>
static __device__ __forceinline__ void moe_gemm_share_rows(const struct moe_gemm_place &place,
                                                           const struct moe_gemm_rows<kBlockM> &own)
{
#pragma unroll
    for (int32_t i = 0; i < own.kPerThread; i++) {
        const int32_t token = 128 * i + place.thread;
        if (token < kBlockM) {
            moe_ptx_store_shared4(place.rows + 4 * token, own.rows[i]);
        }
    }
}

/* The fast path for 16-bit outputs of the inputs' type; false: there is none for this GEMM. */
template <int kBlockM, bool kIsHalf, int kSums>
static __device__ __forceinline__ bool moe_gemm_try_fast(const struct moe_op_gemm &op,
                                                         const struct moe_gemm_unit &unit,
                                                         const struct moe_gemm_place &place,
                                                         float (&sums)[2][kSums])
{
    const bool is_affine = moe_gemm_is_affine(op);
#define MOE_GEMM_FAST(act)                                                        \
    if (is_affine) {                                                              \
        moe_gemm_store_fast<kBlockM, kIsHalf, act, true>(op, unit, place, sums);  \
    } else {                                                                      \
        moe_gemm_store_fast<kBlockM, kIsHalf, act, false>(op, unit, place, sums); \
    }                                                                             \
    return true
    if (!op.has_activation) {
        MOE_GEMM_FAST(MOE_GEMM_ACT_NONE);
    }
    if (op.num_matrices == 2 && op.act.activation == MOE_ACTIVATION_SILU) {
        MOE_GEMM_FAST(MOE_GEMM_ACT_SILU);
    }
    if (op.num_matrices == 2 && op.act.activation == MOE_ACTIVATION_SWIGLU_OAI) {
        MOE_GEMM_FAST(MOE_GEMM_ACT_SWIGLU_OAI);
    }
#undef MOE_GEMM_FAST
    return false;
}

/* Everything of one unit, by one consumer warpgroup; the rows have been shared. */
template <int kBlockM, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_store_unit(const struct moe_cuda_gemm &args,
                                                           const struct moe_gemm_unit &unit,
                                                           const struct moe_gemm_place &place,
                                                           float (&sums)[2][kSums])
{
    const struct moe_op_gemm &op = args.op;
    if (unit.expert >= 0 && args.is_output_vectored && op.output_dtype == op.input_dtype &&
        moe_gemm_try_fast<kBlockM, kIsHalf>(op, unit, place, sums)) {
        return;
    }
    moe_gemm_store_any<kBlockM>(op, unit, place, sums);
}

#endif
