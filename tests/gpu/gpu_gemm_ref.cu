/* SPDX-License-Identifier: Apache-2.0 */
/* Data, a float64 reference and comparisons for gpu_gemm: plain loops, one thread per value. */
#include "gpu_gemm_ref.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ uint64_t hash(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static __device__ double widen(const void *base, int64_t i, int32_t is_half)
{
    return is_half ? (double)__half2float(static_cast<const __half *>(base)[i])
                   : (double)__bfloat162float(static_cast<const __nv_bfloat16 *>(base)[i]);
}

/* Sums of four uniform numbers, about normal, times scale. */
extern "C" __global__ void gemm_fill_random(uint16_t *to, int64_t count, float scale, uint64_t seed,
                                            int32_t is_half)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * blockDim.x) {
        const uint64_t bits = hash(seed ^ ((uint64_t)i * 0x2545f4914f6cdd1du));
        float sum = -2.0f;
        for (int j = 0; j < 4; j++) {
            sum += (float)((bits >> (16 * j)) & 0xffff) / 65536.0f;
        }
        const float value = sum * 1.7320508f * scale;
        to[i] = is_half ? __half_as_ushort(__float2half_rn(value))
                        : __bfloat16_as_ushort(__float2bfloat16_rn(value));
    }
}

/* pattern 0: tokens (row, k) = (3 * row + k) % 127; 1: weights (e, n, k) = k == (n + e) % k_total.
 */
extern "C" __global__ void gemm_fill_pattern(uint16_t *to, int64_t count, int32_t pattern,
                                             int32_t n, int32_t k, int32_t is_half)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t column = i % k;
        const int64_t row = i / k;
        float value = (float)((3 * row + column) % 127);
        if (pattern == 1) {
            value = column == (row % n + row / n) % k ? 1.0f : 0.0f;
        }
        to[i] = is_half ? __half_as_ushort(__float2half_rn(value))
                        : __bfloat16_as_ushort(__float2bfloat16_rn(value));
    }
}

static __device__ double logistic(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static __device__ double single(int32_t activation, double x)
{
    switch (activation) {
    case MOE_ACTIVATION_SILU:
        return x * logistic(x);
    case MOE_ACTIVATION_GELU:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case MOE_ACTIVATION_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case MOE_ACTIVATION_RELU2:
        return x > 0.0 ? x * x : 0.0;
    default:
        return x;
    }
}

static __device__ double gated(const struct gemm_reference &r, double gate, double up)
{
    if (r.activation == MOE_ACTIVATION_SWIGLU_OAI) {
        if (r.limit > 0.0f) {
            gate = fmin(gate, (double)r.limit);
            up = fmax(fmin(up, (double)r.limit), -(double)r.limit);
        }
        return gate * logistic((double)r.alpha * gate) * (up + 1.0);
    }
    return single(r.activation, gate) * up;
}

/* One thread per output: its value and the error that is allowed: the sum of the magnitudes of the
 * products * 2^-16 through the activation, and 2^-7 (fp32 output: 2^-16) of itself. */
extern "C" __global__ void gemm_reference(struct gemm_reference r)
{
    const int64_t count = r.num_rows * r.num_columns;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t position = i / r.num_columns;
        const int32_t column = (int32_t)(i % r.num_columns);
        const int32_t expert = r.row_experts[position];
        int64_t source = position, weight_row = position;
        if (expert < -1) {
            continue;
        }
        if (r.row_ids != nullptr) {
            weight_row = r.row_ids[position];
            if (weight_row < 0 || weight_row >= r.num_row_ids) {
                continue;
            }
            source = weight_row / r.row_ids_div;
        }
        const int64_t to = r.scatter ? weight_row : position;
        if (expert < 0) {
            r.values[to * r.num_columns + column] = 0.0;
            r.allowed[to * r.num_columns + column] = 0.0;
            continue;
        }
        double sum[2] = {0.0, 0.0}, size[2] = {0.0, 0.0};
        for (int m = 0; m < r.num_matrices; m++) {
            const int32_t n = r.has_activation ? column : column % r.n;
            if (!r.has_activation && m != column / r.n) {
                continue;
            }
            const int64_t base = expert * r.expert_stride + n * r.row_stride;
            for (int32_t k = 0; k < r.k; k++) {
                const double product = widen(r.input, source * r.input_stride + k, r.is_half) *
                                       widen(r.weight[m], base + k, r.is_half);
                sum[m] += product;
                size[m] += fabs(product);
            }
            const double weight =
                r.row_weights != nullptr ? (double)r.row_weights[weight_row] : 1.0;
            sum[m] *= weight;
            size[m] *= fabs(weight);
            if (r.bias[m] != nullptr) {
                sum[m] += widen(r.bias[m], (int64_t)expert * r.n + n, r.is_half);
            }
        }
        const double unit = 1.0 / 65536.0;
        double value = sum[r.has_activation ? 0 : column / r.n];
        double error = size[r.has_activation ? 0 : column / r.n] * unit;
        if (r.has_activation && r.num_matrices == 2) {
            const double g = sum[0], u = sum[1], d = 1e-3;
            value = gated(r, g, u);
            error =
                unit * (size[0] * (fabs(gated(r, g + d, u) - gated(r, g - d, u)) / (2 * d) + 1) +
                        size[1] * (fabs(gated(r, g, u + d) - gated(r, g, u - d)) / (2 * d) + 1));
        } else if (r.has_activation) {
            error *= 2.0 * fabs(value) + 2.0;
            value = single(r.activation, value);
        }
        r.values[to * r.num_columns + column] = value;
        r.allowed[to * r.num_columns + column] =
            error + fabs(value) * (r.output_dtype == MOE_DTYPE_FP32 ? unit : 1.0 / 128.0);
    }
}

/* counts: [0] compared and wrong, [1] written although nothing belongs there, [2] first wrong
 * index, [3] compared. sums: [0] squared errors, [1] squared values. */
extern "C" __global__ void gemm_compare(struct gemm_reference r, const void *output,
                                        int64_t output_stride, uint32_t poison,
                                        unsigned long long *counts, double *sums)
{
    const int64_t count = r.num_rows * r.num_columns;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t idx = i / r.num_columns * output_stride + i % r.num_columns;
        double value;
        bool is_poison;
        if (r.output_dtype == MOE_DTYPE_FP32) {
            value = (double)static_cast<const float *>(output)[idx];
            is_poison = static_cast<const uint32_t *>(output)[idx] == poison;
        } else {
            value = widen(output, idx, r.output_dtype == MOE_DTYPE_FP16);
            is_poison = static_cast<const uint16_t *>(output)[idx] == (poison & 0xffff);
        }
        if (r.allowed[i] < 0.0) {
            if (!is_poison) {
                atomicAdd(&counts[1], 1ull);
            }
            continue;
        }
        const double difference = value - r.values[i];
        atomicAdd(&counts[3], 1ull);
        if (!(fabs(difference) <= r.allowed[i])) {
            atomicAdd(&counts[0], 1ull);
            atomicMin(&counts[2], (unsigned long long)i);
        } else {
            atomicAdd(&sums[0], difference * difference);
            atomicAdd(&sums[1], r.values[i] * r.values[i]);
        }
    }
}
