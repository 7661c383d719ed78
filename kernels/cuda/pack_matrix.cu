/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack_matrix: matrices in any layout (transposed, interleaved, padded, experts apart) to packed
 * rows, one expert after the other: the prepared form of weights that TMA cannot read in place.
 * Moves: every element once in, once out. Bound by memory bandwidth; runs once per model.
 * Pipeline: a CTA moves squares of 32 x 32 elements: 1 load with lanes along the dimension whose
 *   elements are closer, 2 shared memory, 3 store with lanes along columns.
 * Limits: strides are not negative.
 */
#include "cuda_args.h"

namespace
{

constexpr int kSquare = 32;
constexpr int kThreadRows = MOE_CUDA_HELPER_THREADS / kSquare;

template <typename Element>
__device__ __forceinline__ void pack_square(const struct moe_cuda_pack_matrix &args,
                                            const Element *from, Element *to, int32_t first_row,
                                            int32_t first_column,
                                            Element (&square)[kSquare][kSquare + 1])
{
    const int lane = threadIdx.x % kSquare;
    const bool is_along_rows = args.row_stride < args.col_stride;
    for (int i = threadIdx.x / kSquare; i < kSquare; i += kThreadRows) {
        const int row = is_along_rows ? lane : i;
        const int column = is_along_rows ? i : lane;
        if (first_row + row < args.num_rows && first_column + column < args.num_columns) {
            square[row][column] = from[(first_row + row) * args.row_stride +
                                       (first_column + column) * args.col_stride];
        }
    }
    __syncthreads();
    for (int row = threadIdx.x / kSquare; row < kSquare; row += kThreadRows) {
        if (first_row + row < args.num_rows && first_column + lane < args.num_columns) {
            to[static_cast<int64_t>(first_row + row) * args.num_columns + first_column + lane] =
                square[row][lane];
        }
    }
    __syncthreads();
}

template <typename Element>
__device__ __forceinline__ void pack(const struct moe_cuda_pack_matrix &args)
{
    __shared__ Element square[kSquare][kSquare + 1];
    const int64_t matrix = static_cast<int64_t>(args.num_rows) * args.num_columns;
    for (int64_t e = blockIdx.z; e < args.num_experts; e += gridDim.z) {
        const Element *from = static_cast<const Element *>(args.base) + e * args.expert_stride;
        Element *to = static_cast<Element *>(args.out) + e * matrix;
        for (int32_t row = blockIdx.y * kSquare; row < args.num_rows; row += gridDim.y * kSquare) {
            for (int32_t column = blockIdx.x * kSquare; column < args.num_columns;
                 column += gridDim.x * kSquare) {
                pack_square(args, from, to, row, column, square);
            }
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(MOE_CUDA_HELPER_THREADS)
    moe_pack_matrix_16(const __grid_constant__ struct moe_cuda_pack_matrix args)
{
    pack<uint16_t>(args);
}

extern "C" __global__ void __launch_bounds__(MOE_CUDA_HELPER_THREADS)
    moe_pack_matrix_32(const __grid_constant__ struct moe_cuda_pack_matrix args)
{
    pack<uint32_t>(args);
}
