/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Naive checks of large results on the device: what the operation's words in moe_plugin.h say, in
 * float64 and by plain loops, one thread per output, nothing shared with the kernels. Each kernel
 * counts the outputs that are wrong in *num_wrong. `reference`, when given, receives the float64
 * values, so that small sizes can be compared with loops on the host. Elements are bf16.
 */
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

__device__ double from_e4m3(uint8_t bits)
{
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const double magnitude = exponent == 0 ? ldexp(static_cast<double>(mantissa), -9)
                                           : ldexp(8.0 + mantissa, exponent - 10);
    return (bits & 0x80) != 0 ? -magnitude : magnitude;
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

/* rows[src2dst[route]] are the bits of the route's token. */
extern "C" __global__ void check_pre_reorder(const uint16_t *tokens, const int32_t *src2dst,
                                             const uint16_t *rows, int64_t num_tokens,
                                             int64_t top_k, int64_t hidden,
                                             unsigned long long *num_wrong)
{
    for (int64_t i = thread_id(); i < num_tokens * top_k * hidden; i += num_threads()) {
        const int64_t route = i / hidden, column = i % hidden;
        const int64_t row = src2dst[route];
        if (rows[row * hidden + column] != tokens[route / top_k * hidden + column]) {
            wrong(num_wrong);
        }
    }
}

/* Quantized rows of `group` columns per scale: row r is token row_tokens(r). src2dst NULL: row t is
 * token t. One thread per (route, group). */
extern "C" __global__ void check_quantized(const uint16_t *tokens, const int32_t *src2dst,
                                           const uint8_t *rows, const float *scales,
                                           int64_t num_tokens, int64_t top_k, int64_t hidden,
                                           int64_t group, unsigned long long *num_wrong)
{
    const int64_t num_groups = (hidden + group - 1) / group;
    for (int64_t i = thread_id(); i < num_tokens * top_k * num_groups; i += num_threads()) {
        const int64_t route = i / num_groups, first = i % num_groups * group;
        const int64_t row = src2dst != nullptr ? src2dst[route] : route;
        const int64_t end = first + group < hidden ? first + group : hidden;
        double largest = 0.0;
        for (int64_t c = first; c < end; ++c) {
            largest = fmax(largest, fabs(from_bf16(tokens[route / top_k * hidden + c])));
        }
        const double scale = static_cast<double>(scales[row * num_groups + i % num_groups]);
        bool is_right = fabs(scale - fmax(largest, 1e-10) / 448.0) <= scale * 0x1p-23;
        for (int64_t c = first; c < end; ++c) {
            const double x = from_bf16(tokens[route / top_k * hidden + c]);
            const double got = from_e4m3(rows[row * hidden + c]) * scale;
            /* Half a step of e4m3: 2^-4 of the value, or 2^-10 of the scale. */
            is_right &= fabs(got - x) <= fmax(fabs(x) * 0x1p-4, scale * 0x1p-10) * 1.00001;
        }
        if (!is_right) {
            wrong(num_wrong);
        }
    }
}

/* output[t] = sum over slots of weight * row. src2dst NULL: rows are routes; weights NULL: 1. */
extern "C" __global__ void check_combine(const uint16_t *rows, const int32_t *src2dst,
                                         const float *weights, const uint16_t *output,
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
            const double value = weight * from_bf16(rows[row * hidden + column]);
            sum += value;
            magnitude += fabs(value);
        }
        if (reference != nullptr) {
            reference[i] = sum;
        }
        const double slack = magnitude * static_cast<double>(top_k) * 0x1p-23;
        if (!is_near_bf16(from_bf16(output[i]), sum, slack)) {
            wrong(num_wrong);
        }
    }
}

/* output[r, i] = silu(gate) * up of halves. */
extern "C" __global__ void check_activation(const uint16_t *input, const uint16_t *output,
                                            int64_t num_rows, int64_t inter, double *reference,
                                            unsigned long long *num_wrong)
{
    for (int64_t i = thread_id(); i < num_rows * inter; i += num_threads()) {
        const int64_t row = i / inter, column = i % inter;
        const double gate = from_bf16(input[row * 2 * inter + column]);
        const double up = from_bf16(input[row * 2 * inter + inter + column]);
        const double value = gate / (1.0 + exp(-gate)) * up;
        if (reference != nullptr) {
            reference[i] = value;
        }
        /* exp and the products in fp32: some units of 2^-24. */
        if (!is_near_bf16(from_bf16(output[i]), value, fabs(value) * 0x1p-18)) {
            wrong(num_wrong);
        }
    }
}

/* k distinct experts, in descending order, none left out that is larger by more than fp32 scores
 * can tell; renormalized softmax weights. One thread per token. */
extern "C" __global__ void check_gating(const float *logits, const int32_t *ids,
                                        const float *weights, int64_t num_tokens, int64_t top_k,
                                        int64_t num_experts, double *reference,
                                        unsigned long long *num_wrong)
{
    for (int64_t t = thread_id(); t < num_tokens; t += num_threads()) {
        const float *row = logits + t * num_experts;
        const int32_t *chosen = ids + t * top_k;
        double largest = -INFINITY, lowest_chosen = INFINITY, sum = 0.0;
        bool is_right = true;
        for (int64_t e = 0; e < num_experts; ++e) {
            largest = fmax(largest, static_cast<double>(row[e]));
        }
        for (int64_t j = 0; j < top_k; ++j) {
            if (chosen[j] < 0 || chosen[j] >= num_experts) {
                wrong(num_wrong);
                return;
            }
            for (int64_t i = 0; i < j; ++i) {
                is_right &= chosen[i] != chosen[j];
            }
            const double logit = static_cast<double>(row[chosen[j]]);
            /* exp(logit - largest) has an error of some 1e-7 of itself. */
            is_right &= j == 0 || logit <= static_cast<double>(row[chosen[j - 1]]) + 1e-5;
            lowest_chosen = fmin(lowest_chosen, logit);
            sum += exp(logit - largest);
        }
        for (int64_t e = 0; e < num_experts; ++e) {
            bool is_chosen = false;
            for (int64_t j = 0; j < top_k; ++j) {
                is_chosen |= chosen[j] == e;
            }
            is_right &= is_chosen || static_cast<double>(row[e]) <= lowest_chosen + 1e-5;
        }
        for (int64_t j = 0; j < top_k; ++j) {
            const double weight = exp(static_cast<double>(row[chosen[j]]) - largest) / sum;
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

/* Routes per expert, for the checks below; counts are zero before. */
extern "C" __global__ void count_routes(const int32_t *ids, int64_t num_routes, int32_t *counts)
{
    for (int64_t i = thread_id(); i < num_routes; i += num_threads()) {
        atomicAdd(&counts[ids[i]], 1);
    }
}

/* sorted_ids: blocks of one expert each, in order of expert, routes ascending inside an expert,
 * padding and tail = num_routes; every route once (seen is zero before). */
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

/* seg_indptr from the counts; src2dst and dst2src are inverse, rows lie in their expert's segment
 * in order of route. No alignment, nothing filtered. */
extern "C" __global__ void check_ep_preprocess(const int32_t *ids, const int32_t *counts,
                                               const int64_t *seg_indptr, const int32_t *src2dst,
                                               const int32_t *dst2src, int64_t num_routes,
                                               int64_t num_experts, unsigned long long *num_wrong)
{
    if (thread_id() == 0) {
        int64_t sum = 0;
        for (int64_t e = 0; e <= num_experts; ++e) {
            if (seg_indptr[e] != sum) {
                wrong(num_wrong);
            }
            sum += e < num_experts ? counts[e] : 0;
        }
    }
    for (int64_t i = thread_id(); i < num_routes; i += num_threads()) {
        const int64_t row = src2dst[i];
        bool is_right = row >= 0 && row < num_routes;
        is_right = is_right && dst2src[row] == i && row >= seg_indptr[ids[i]] &&
                   row < seg_indptr[ids[i] + 1];
        is_right = is_right && (row == seg_indptr[ids[i]] || dst2src[row - 1] < i);
        if (!is_right) {
            wrong(num_wrong);
        }
    }
}
