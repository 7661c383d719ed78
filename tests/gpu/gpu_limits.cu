/* SPDX-License-Identifier: Apache-2.0 */
/* What a device can do at best, for benchmarks to hold against: an empty kernel, and streams that
 * read, write and copy. The data is never summed away: the sum of a read is compared with a value
 * that it cannot have. */
#include <stdint.h>

extern "C" __global__ void gpu_empty()
{
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
