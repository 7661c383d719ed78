/* SPDX-License-Identifier: Apache-2.0 */
/* What a device can do at best, for benchmarks to hold against: an empty kernel, and streams that
 * read, write and copy. The data is never summed away: the sum of a read is compared with a value
 * that it cannot have. */
#include "gpu_limits.h"

#include <stdint.h>

extern "C" __global__ void gpu_empty()
{
}

/* Reads a word, and writes one 128 bytes further: what a node of a chain of dependent kernels costs
 * when it does next to nothing. */
extern "C" __global__ void gpu_chain(uint32_t *at)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    if (threadIdx.x == 0) {
        volatile uint32_t *word = at;
        word[32] = word[0] + 1u;
    }
}

/* Numbers between 2^-7 and 2^5 of either sign, pairs of bf16 or fp32; pairs of fp16 below 2^-1. */
extern "C" __global__ void __launch_bounds__(512)
    gpu_random(uint32_t *to, uint64_t num_words, uint64_t seed, int32_t kind)
{
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_words;
         i += stride) {
        uint64_t bits = (seed + i) * 0x9e3779b97f4a7c15u;
        bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
        bits ^= bits >> 31;
        const uint32_t word = static_cast<uint32_t>(bits);
        if (kind == GPU_FILL_FP16) {
            const uint32_t first = 8u + static_cast<uint32_t>(bits >> 32) % 6u;
            const uint32_t second = 8u + static_cast<uint32_t>(bits >> 48) % 6u;
            to[i] = (word & 0x83ff83ffu) | second << 26 | first << 10;
            continue;
        }
        const uint32_t low = 120u + static_cast<uint32_t>(bits >> 32) % 12u;
        const uint32_t high = 120u + static_cast<uint32_t>(bits >> 48) % 12u;
        to[i] = kind == GPU_FILL_FP32 ? (word & 0x807fffffu) | high << 23
                                      : (word & 0x807f807fu) | high << 23 | low << 7;
    }
}

/* Eight independent 16-byte loads per thread and turn. */
extern "C" __global__ void __launch_bounds__(512)
    gpu_read(const uint4 *from, int64_t num_vectors, uint32_t *sink)
{
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    uint32_t sum = 0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_vectors;
         i += 8 * stride) {
        uint4 values[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[j] = i + j * stride < num_vectors ? __ldcs(from + i + j * stride)
                                                     : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sum ^= values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
        }
    }
    if (sum == 0x9e3779b9u) {
        *sink = sum;
    }
}

extern "C" __global__ void __launch_bounds__(512)
    gpu_write(uint4 *to, int64_t num_vectors, uint32_t value)
{
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_vectors;
         i += stride) {
        const uint32_t word = value ^ static_cast<uint32_t>(i * 2654435761u);
        to[i] = make_uint4(word, ~word, word * 3u, word * 5u);
    }
}

extern "C" __global__ void __launch_bounds__(512)
    gpu_copy(const uint4 *from, uint4 *to, int64_t num_vectors)
{
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_vectors;
         i += 8 * stride) {
        uint4 values[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (i + j * stride < num_vectors) {
                values[j] = __ldcs(from + i + j * stride);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (i + j * stride < num_vectors) {
                __stcs(to + i + j * stride, values[j]);
            }
        }
    }
}
