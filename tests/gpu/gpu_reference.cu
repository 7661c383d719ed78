/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Naive checks of large results on the device: what the operation's words in moe_plugin.h say, in
 * float64 and by plain loops, one thread per output, nothing shared with the kernels. Each kernel
 * counts the outputs that are wrong in *num_wrong. `reference`, when given, receives the float64
 * values, so that small sizes can be compared with loops on the host. Elements are bf16 where no
 * type is given.
 */
#include "gpu_limits.h"

#include <stdint.h>

namespace
{

__device__ int64_t thread_id()
{
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ int64_t num_threads()
{
    return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

__device__ double from_bf16(uint16_t bits)
{
    return static_cast<double>(__uint_as_float(static_cast<uint32_t>(bits) << 16));
}

__device__ double from_fp16(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent == 0 ? ldexp(static_cast<double>(mantissa), -24)
                                           : ldexp(1024.0 + mantissa, exponent - 25);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/* Element i of an array of GPU_FILL_*. */
__device__ double element_at(const void *array, int64_t i, int32_t kind)
{
    if (kind == GPU_FILL_FP32) {
        return static_cast<double>(static_cast<const float *>(array)[i]);
    }
    const uint16_t bits = static_cast<const uint16_t *>(array)[i];
    return kind == GPU_FILL_FP16 ? from_fp16(bits) : from_bf16(bits);
}

__device__ double from_e4m3(uint8_t bits)
{
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const double magnitude = exponent == 0 ? ldexp(static_cast<double>(mantissa), -9)
                                           : ldexp(8.0 + mantissa, exponent - 10);
    return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

/* Column i of a row of gate, then up. */
__device__ double activated(const uint16_t *row, int64_t i, int64_t inter)
{
    const double gate = from_bf16(row[i]);
    return gate / (1.0 + exp(-gate)) * from_bf16(row[inter + i]);
}

__device__ void wrong(unsigned long long *num_wrong)
{
    atomicAdd(num_wrong, 1ull);
}

/* One bf16 rounding is 2^-8 of the value at most; `slack` is what fp32 sums may add. */
__device__ bool is_near_bf16(double got, double expected, double slack)
{
    return fabs(got - expected) <= fabs(expected) * 0x1p-8 + slack;
}

} // namespace

/* rows[src2dst[route]] are the bits of the route's token. One thread per unit of 2 bytes of a row
 * of num_units. */
extern "C" __global__ void check_pre_reorder(const uint16_t *tokens, const int32_t *src2dst,
                                             const uint16_t *rows, int64_t num_tokens,
                                             int64_t top_k, int64_t num_units,
                                             unsigned long long *num_wrong)
{
    for (int64_t i = thread_id(); i < num_tokens * top_k * num_units; i += num_threads()) {
        const int64_t route = i / num_units, unit = i % num_units;
        const int64_t row = src2dst[route];
        if (rows[row * num_units + unit] != tokens[route / top_k * num_units + unit]) {
            wrong(num_wrong);
        }
    }
}

/* Quantized rows of `group` columns per scale. Row src2dst[route] (NULL: row `route`) is token
 * route / top_k, or with `is_activated` silu(gate) * up of the halves of that row of the input. One
 * thread per (route, group). */
extern "C" __global__ void check_quantized(const uint16_t *tokens, const int32_t *src2dst,
                                           const uint8_t *rows, const float *scales,
                                           int64_t num_tokens, int64_t top_k, int64_t hidden,
                                           int64_t group, int32_t is_activated,
                                           unsigned long long *num_wrong)
{
    const int64_t num_groups = (hidden + group - 1) / group;
    /* What fp32 arithmetic in front of the quantization may add. */
    const double slack = is_activated ? 0x1p-17 : 0.0;
    for (int64_t i = thread_id(); i < num_tokens * top_k * num_groups; i += num_threads()) {
        const int64_t route = i / num_groups, first = i % num_groups * group;
        const int64_t row = src2dst != nullptr ? src2dst[route] : route;
        const int64_t end = first + group < hidden ? first + group : hidden;
        const uint16_t *from = tokens + route / top_k * hidden * (is_activated ? 2 : 1);
        double largest = 0.0;
        for (int64_t c = first; c < end; ++c) {
            largest =
                fmax(largest, fabs(is_activated ? activated(from, c, hidden) : from_bf16(from[c])));
        }
        const double scale = static_cast<double>(scales[row * num_groups + i % num_groups]);
        bool is_right =
            fabs(scale - fmax(largest, 1e-10) / 448.0) <= fabs(scale) * (0x1p-23 + slack);
        for (int64_t c = first; c < end; ++c) {
            const double x = is_activated ? activated(from, c, hidden) : from_bf16(from[c]);
            const double got = from_e4m3(rows[row * hidden + c]) * scale;
            /* Half a step of e4m3: 2^-4 of the value, or 2^-10 of the scale. */
            is_right &= fabs(got - x) <=
                        fmax(fabs(x) * 0x1p-4, scale * 0x1p-10) * 1.00001 + fabs(x) * slack;
        }
        if (!is_right) {
            wrong(num_wrong);
        }
    }
}

/* output[t] = sum over slots of weight * row. src2dst NULL: rows are routes; weights NULL: 1. Rows
 * and output are of `kind` GPU_FILL_*. */
extern "C" __global__ void check_combine(const void *rows, int32_t kind, const int32_t *src2dst,
                                         const float *weights, const void *output,
                                         int64_t num_tokens, int64_t top_k, int64_t hidden,
                                         double *reference, unsigned long long *num_wrong)
{
    for (int64_t i = thread_id(); i < num_tokens * hidden; i += num_threads()) {
        const int64_t token = i / hidden, column = i % hidden;
        double sum = 0.0, magnitude = 0.0;
        for (int64_t j = 0; j < top_k; ++j) {
            const int64_t route = token * top_k + j;
            const int64_t row = src2dst != nullptr ? src2dst[route] : route;
            const double weight = weights != nullptr ? static_cast<double>(weights[route]) : 1.0;
            const double value = weight * element_at(rows, row * hidden + column, kind);
            sum += value;
            magnitude += fabs(value);
        }
        if (reference != nullptr) {
            reference[i] = sum;
        }
        const double slack = magnitude * static_cast<double>(top_k) * 0x1p-23;
        const double got = element_at(output, i, kind);
        if (!(kind == GPU_FILL_FP32 ? fabs(got - sum) <= slack : is_near_bf16(got, sum, slack))) {
            wrong(num_wrong);
        }
    }
}

/* Data for the checks: a permutation (factor has no divisor in common with count), and ids. */
extern "C" __global__ void fill_permutation(int32_t *out, int64_t count, int64_t factor)
{
    for (int64_t i = thread_id(); i < count; i += num_threads()) {
        out[i] = static_cast<int32_t>(i * factor % count);
    }
}

extern "C" __global__ void fill_ids(int32_t *out, int64_t count, int64_t num_experts)
{
    for (int64_t i = thread_id(); i < count; i += num_threads()) {
        const uint64_t bits = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u;
        out[i] = static_cast<int32_t>((bits ^ bits >> 31) % static_cast<uint64_t>(num_experts));
    }
}

/* output[r, i] = silu(gate) * up of halves. */
extern "C" __global__ void check_activation(const uint16_t *input, const uint16_t *output,
                                            int64_t num_rows, int64_t inter, double *reference,
                                            unsigned long long *num_wrong)
{
    for (int64_t i = thread_id(); i < num_rows * inter; i += num_threads()) {
        const int64_t row = i / inter, column = i % inter;
        const double value = activated(input + row * 2 * inter, column, inter);
        if (reference != nullptr) {
            reference[i] = value;
        }
        /* exp and the products in fp32: some units of 2^-24. */
        if (!is_near_bf16(from_bf16(output[i]), value, fabs(value) * 0x1p-18)) {
            wrong(num_wrong);
        }
    }
}

/* The k first experts by logit, of equal ones the lower number; renormalized softmax weights. One
 * thread per token. `kind` of the logits: GPU_FILL_*. */
extern "C" __global__ void check_gating(const void *logits, int32_t kind, const int32_t *ids,
                                        const float *weights, int64_t num_tokens, int64_t top_k,
                                        int64_t num_experts, double *reference,
                                        unsigned long long *num_wrong)
{
    for (int64_t t = thread_id(); t < num_tokens; t += num_threads()) {
        const int64_t row = t * num_experts;
        const int32_t *chosen = ids + t * top_k;
        double largest = -INFINITY, sum = 0.0;
        bool is_right = true;
        for (int64_t e = 0; e < num_experts; ++e) {
            largest = fmax(largest, element_at(logits, row + e, kind));
        }
        for (int64_t j = 0; j < top_k; ++j) {
            if (chosen[j] < 0 || chosen[j] >= num_experts) {
                wrong(num_wrong);
                return;
            }
            const double logit = element_at(logits, row + chosen[j], kind);
            /* What comes before this expert is what was chosen before it. */
            int64_t num_before = 0;
            for (int64_t e = 0; e < num_experts; ++e) {
                const double other = element_at(logits, row + e, kind);
                num_before += other > logit || (other == logit && e < chosen[j]) ? 1 : 0;
            }
            is_right &= num_before == j;
            sum += exp(logit - largest);
        }
        for (int64_t j = 0; j < top_k; ++j) {
            const double weight = exp(element_at(logits, row + chosen[j], kind) - largest) / sum;
            if (reference != nullptr) {
                reference[t * top_k + j] = weight;
            }
            is_right &=
                fabs(static_cast<double>(weights[t * top_k + j]) - weight) <= 1e-5 * weight + 1e-30;
        }
        if (!is_right) {
            wrong(num_wrong);
        }
    }
}

/* Routes per local expert, for the checks below; counts are zero before. local: of each id, or -1;
 * NULL: the id itself. */
extern "C" __global__ void count_routes(const int32_t *ids, const int32_t *local,
                                        int64_t num_routes, int32_t *counts)
{
    for (int64_t i = thread_id(); i < num_routes; i += num_threads()) {
        const int32_t expert = local != nullptr ? local[ids[i]] : ids[i];
        if (expert >= 0) {
            atomicAdd(&counts[expert], 1);
        }
    }
}

/* Behind check_align: it has seen every route. */
extern "C" __global__ void check_seen(const int32_t *seen, int64_t num_routes,
                                      unsigned long long *num_wrong)
{
    for (int64_t i = thread_id(); i < num_routes; i += num_threads()) {
        if (seen[i] != 1) {
            wrong(num_wrong);
        }
    }
}

/* sorted_ids: blocks of one expert each, in order of expert, routes ascending inside an expert,
 * padding and tail = num_routes; seen counts routes (zero before). */
extern "C" __global__ void check_align(const int32_t *ids, const int32_t *counts,
                                       const int32_t *sorted_ids, const int32_t *expert_ids,
                                       const int32_t *post_pad, int64_t num_routes,
                                       int64_t num_experts, int64_t block, int64_t sorted_capacity,
                                       int64_t expert_capacity, int32_t *seen,
                                       unsigned long long *num_wrong)
{
    const int64_t num_used = *post_pad;
    int64_t expected = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
        expected += (counts[e] + block - 1) / block * block;
    }
    if (thread_id() == 0 && num_used != expected) {
        wrong(num_wrong);
    }
    for (int64_t i = thread_id(); i < sorted_capacity; i += num_threads()) {
        const int32_t route = sorted_ids[i];
        bool is_right = true;
        if (i >= num_used) {
            is_right = route == num_routes;
        } else if (route < 0 || route > num_routes) {
            is_right = false;
        } else if (route < num_routes) {
            const int32_t expert = expert_ids[i / block];
            is_right = expert == ids[route] && atomicAdd(&seen[route], 1) == 0;
            if (i % block > 0) {
                is_right &= sorted_ids[i - 1] < route;
            } else if (i > 0 && expert_ids[i / block - 1] == expert) {
                is_right &= sorted_ids[i - 1] < route;
            }
        } else { /* padding: only at the end of an expert's last block */
            const int64_t last = (i / block + 1) * block - 1;
            is_right =
                sorted_ids[last] == num_routes &&
                (last + 1 >= num_used || expert_ids[last / block + 1] > expert_ids[last / block]);
        }
        if (!is_right) {
            wrong(num_wrong);
        }
    }
    for (int64_t i = thread_id(); i < expert_capacity; i += num_threads()) {
        const bool is_right = i * block >= num_used
                                  ? expert_ids[i] == -1
                                  : (i == 0 || expert_ids[i] >= expert_ids[i - 1]);
        if (!is_right) {
            wrong(num_wrong);
        }
    }
}

/* Everything that ep_preprocess gives. Rows of a local expert begin at a multiple of `alignment`
 * or, with max_masked_rows, of that; they are its routes in ascending order, then padding.
 * dst2src and m_indices are -1 in padding and up to their capacity. reorder_ids: local experts in
 * row order without padding, then -1. masked_m: routes of each expert. dst2src, reorder_ids,
 * m_indices and masked_m: NULL where not wanted. One thread per route, row and expert. */
extern "C" __global__ void check_segments(
    const int32_t *ids, const int32_t *local, const int32_t *counts, const int64_t *seg_indptr,
    const int32_t *src2dst, const int32_t *dst2src, const int32_t *reorder_ids,
    const int32_t *m_indices, const int32_t *masked_m, int64_t num_routes, int64_t num_experts,
    int64_t alignment, int64_t max_masked_rows, int64_t row_capacity, unsigned long long *num_wrong)
{
    for (int64_t e = thread_id(); e <= num_experts; e += num_threads()) {
        int64_t begin = 0;
        for (int64_t i = 0; i < e; ++i) {
            begin += max_masked_rows > 0 ? max_masked_rows
                                         : (counts[i] + alignment - 1) / alignment * alignment;
        }
        if (seg_indptr[e] != begin ||
            (masked_m != nullptr && e < num_experts && masked_m[e] != counts[e])) {
            wrong(num_wrong);
        }
    }
    for (int64_t i = thread_id(); i < num_routes; i += num_threads()) {
        const int32_t expert = local != nullptr ? local[ids[i]] : ids[i];
        const int64_t row = src2dst[i];
        bool is_right = row == -1;
        if (expert >= 0) {
            is_right = row >= seg_indptr[expert] && row < seg_indptr[expert] + counts[expert] &&
                       row < row_capacity;
            is_right = is_right && (dst2src == nullptr || dst2src[row] == i);
        }
        if (!is_right) {
            wrong(num_wrong);
        }
        if (reorder_ids != nullptr) {
            int64_t end = 0;
            int32_t in_order = -1;
            for (int32_t e = 0; e < num_experts && in_order < 0; ++e) {
                end += counts[e];
                in_order = i < end ? e : -1;
            }
            if (reorder_ids[i] != in_order) {
                wrong(num_wrong);
            }
        }
    }
    for (int64_t r = thread_id(); r < row_capacity && dst2src != nullptr; r += num_threads()) {
        int32_t expert = -1;
        for (int32_t e = 0; e < num_experts && expert < 0; ++e) {
            expert = r >= seg_indptr[e] && r < seg_indptr[e] + counts[e] ? e : -1;
        }
        const int64_t route = dst2src[r];
        bool is_right =
            expert >= 0 ? route >= 0 && route < num_routes && src2dst[route] == r : route == -1;
        is_right =
            is_right && (expert < 0 || r == 0 || r == seg_indptr[expert] || dst2src[r - 1] < route);
        if (!is_right || (m_indices != nullptr && m_indices[r] != expert)) {
            wrong(num_wrong);
        }
    }
}
