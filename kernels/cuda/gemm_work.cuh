/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is to do in a grouped GEMM, from device data alone. Every CTA counts the blocks of
 * tokens of each segment into shared memory (a few microseconds' worth of counts for 512 experts),
 * and each role turns unit numbers into expert, weight block and rows by itself. The counts are
 * those of segments that a sort has made, or, under that sort, of the ids it sorts.
 * The first unit of a CTA is what its first copy waits for: whoever counts its segment writes it
 * down, and where a segment has one block nothing is divided. Few routes a CTA also sorts, where
 * no sort is in front of it (gemm_sort.cuh).
 *
 * A segment's rows are split evenly over ceil(rows / block_m) blocks, in steps of 8; in clusters
 * over ceil(rows / (2 block_m)) blocks of two parts each, one per CTA. Units are
 * ordered by segment; within one, blocks of tokens form even groups of group_m at most, and a group
 * takes a weight block in turn before the next weight block, so that what runs at the same time
 * shares both in the L2.
 */
#ifndef MOE_GEMM_WORK_CUH
#define MOE_GEMM_WORK_CUH

#include "gemm_sort.cuh"

/* Words in shared memory, num_segments + 1 of each. */
struct moe_gemm_work {
    int32_t *first_block; /* blocks of tokens of the segments before */
    int32_t *first_row;
    int32_t *num_rows;
    char *staging;              /* of the outputs, where the CTA sorts first */
    const int32_t *row_ids;     /* op.row_ids, or the order that the CTA sorts; may be NULL */
    int32_t *first_segment;     /* one word: the segment of first_unit */
    int32_t first_unit;         /* of this CTA */
    int32_t num_blocks;         /* of all segments */
    int32_t blocks_per_segment; /* expert_ids: of each; else 0 */
    int32_t num_weight_blocks;
    int32_t num_units;
};

struct moe_gemm_unit {
    int32_t expert;       /* -1: outputs are zeros */
    int32_t weight_block; /* of block_n weight rows */
    int32_t first_row;    /* position of its first row */
    int32_t num_rows;     /* 1..block_m; 0: the other CTA of the cluster has them all */
    int32_t is_shared;    /* 1: other units read the same weights */
};

/* Rows of a segment, of seg_indptr or masked_m; with neither all max_masked_rows are used. */
static __device__ __forceinline__ void moe_gemm_segment(const struct moe_op_gemm &op,
                                                        int32_t segment, int64_t *first,
                                                        int64_t *count)
{
    if (op.seg_indptr != nullptr) {
        const int64_t begin = op.seg_indptr[segment];
        const int64_t end = op.seg_indptr[segment + 1];
        *first = begin < 0 ? 0 : (begin > op.num_rows ? op.num_rows : begin);
        *count = (end > op.num_rows ? op.num_rows : end) - *first;
    } else {
        const int64_t used = op.masked_m != nullptr ? op.masked_m[segment] : op.max_masked_rows;
        *first = segment * op.max_masked_rows;
        *count = used > op.max_masked_rows ? op.max_masked_rows : used;
    }
    *count = *count < 0 ? 0 : *count;
}

static __device__ __forceinline__ int32_t moe_gemm_ceil(int32_t a, int32_t b)
{
    return (a + b - 1) / b;
}

/* Rows of each segment by the ids of the routes, by all threads of the CTA. Ends with a barrier. */
template <int kThreads>
static __device__ __forceinline__ void moe_gemm_count_routes(
    const struct moe_cuda_gemm_routes &routes, int32_t num_segments, int32_t *num_rows)
{
    constexpr int32_t kBatch = 4; /* loads of a thread before it waits for the first */
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int32_t num_routes = moe_gemm_num_routes(routes);
    int32_t base = 0;
    do {
        int32_t locals[kBatch];
#pragma unroll
        for (int32_t i = 0; i < kBatch; i++) {
            const int32_t route = base + i * kThreads + thread;
            locals[i] = route < num_routes ? moe_filter_local(routes.filter, routes.topk_ids,
                                                              routes.ids_dtype, route)
                                           : -1;
        }
        if (base == 0) {
            for (int32_t i = thread; i < num_segments; i += kThreads) {
                num_rows[i] = 0;
            }
            __syncthreads();
        }
#pragma unroll
        for (int32_t i = 0; i < kBatch; i++) {
            if (locals[i] >= 0) {
                atomicAdd(&num_rows[locals[i]], 1);
            }
        }
        base += kBatch * kThreads;
    } while (base < num_routes);
    __syncthreads();
}

/* Where routes are counted, one sum has blocks, and from this bit on rows. */
enum { MOE_GEMM_ROW_SHIFT = 16 };
static_assert(MOE_CUDA_GEMM_MAX_ROUTES < 1 << (31 - MOE_GEMM_ROW_SHIFT), "sums in one word");

/* Does this CTA sort? Where clusters share weights there are more routes than it would. */
template <typename Tile>
static __device__ __forceinline__ bool moe_gemm_sorts(const struct moe_cuda_gemm &args)
{
    return Tile::kCtas == 1 && args.routes.src2dst != nullptr;
}

/* By all threads of the CTA; `scratch` has 64 words. Ends with a barrier. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_list_work(const struct moe_cuda_gemm &args,
                                                          int32_t num_weight_blocks,
                                                          int32_t first_unit, int32_t *scratch,
                                                          struct moe_gemm_work *work)
{
    constexpr int32_t kRows = Tile::kCtas * Tile::kBlockM; /* of a block */
    constexpr int32_t kThreads = Tile::kThreads;
    const struct moe_op_gemm &op = args.op;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int32_t lane = thread % 32;
    work->num_weight_blocks = num_weight_blocks;
    work->blocks_per_segment = 0;
    work->first_unit = first_unit;
    work->first_segment = scratch + kThreads / 32;
    if (op.expert_ids != nullptr) {
        int64_t padded = *op.num_tokens_post_pad;
        padded = padded < 0 ? 0 : (padded > op.num_rows ? op.num_rows : padded);
        work->blocks_per_segment = moe_gemm_ceil(op.block_size, kRows);
        work->num_blocks = static_cast<int32_t>(padded / op.block_size) * work->blocks_per_segment;
        work->num_units = work->num_blocks * num_weight_blocks;
        __syncthreads();
        return;
    }
    const bool is_counted = args.routes.topk_ids != nullptr;
    const bool is_sorted = moe_gemm_sorts<Tile>(args);
    const int32_t num_segments = static_cast<int32_t>(op.num_segments);
    const int32_t per_thread = moe_gemm_ceil(num_segments, kThreads);
    const int32_t begin = thread * per_thread;
    if (is_sorted) {
        moe_gemm_rank_routes<Tile>(args.routes, num_segments, work->staging);
    } else if (is_counted) {
        moe_gemm_count_routes<kThreads>(args.routes, num_segments, work->num_rows);
    }
    int32_t sum = 0;
    for (int32_t i = begin; i < begin + per_thread && i < num_segments; i++) {
        if (is_sorted) {
            work->num_rows[i] = moe_gemm_sum_counts(
                reinterpret_cast<const uint4 *>(work->staging)[i], MOE_CUDA_GEMM_SORT_WARPS);
        }
        if (is_counted) {
            sum += work->num_rows[i] << MOE_GEMM_ROW_SHIFT;
        } else {
            int64_t first, count;
            moe_gemm_segment(op, i, &first, &count);
            work->first_row[i] = static_cast<int32_t>(first);
            work->num_rows[i] = static_cast<int32_t>(count);
        }
        sum += moe_gemm_ceil(work->num_rows[i], kRows);
    }
    int32_t before = sum;
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
        const int32_t other = __shfl_up_sync(0xffffffffu, before, step);
        before += lane >= step ? other : 0;
    }
    if (lane == 31) {
        scratch[thread / 32] = before;
    }
    __syncthreads();
    before -= sum;
    int32_t total = 0;
    for (int32_t w = 0; w < kThreads / 32; w++) {
        before += w < thread / 32 ? scratch[w] : 0;
        total += scratch[w];
    }
    int32_t row = 0;
    if (is_counted) {
        row = before >> MOE_GEMM_ROW_SHIFT;
        before &= (1 << MOE_GEMM_ROW_SHIFT) - 1;
        total &= (1 << MOE_GEMM_ROW_SHIFT) - 1;
    }
    for (int32_t i = begin; i < begin + per_thread && i < num_segments; i++) {
        work->first_block[i] = before;
        if (is_counted) {
            work->first_row[i] = row;
            row += work->num_rows[i];
        }
        const int32_t unit = before * num_weight_blocks;
        before += moe_gemm_ceil(work->num_rows[i], kRows);
        if (unit <= first_unit && first_unit < before * num_weight_blocks) {
            *work->first_segment = i;
        }
    }
    if (thread == 0) {
        work->first_block[num_segments] = total;
    }
    work->num_blocks = total;
    work->num_units = total * num_weight_blocks;
    __syncthreads();
}

/* The segment that has unit `number`: the last one that starts at or before it. */
static __device__ __forceinline__ int32_t moe_gemm_find(const struct moe_gemm_work &work,
                                                        int32_t num_segments, int32_t number)
{
    if (number == work.first_unit) {
        return *work.first_segment;
    }
    int32_t low = 0;
    int32_t high = num_segments;
    while (high - low > 1) {
        const int32_t middle = (low + high) / 2;
        if (work.first_block[middle] * work.num_weight_blocks <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Unit `number`, below work.num_units: the part of CTA `rank` of its cluster of kCtas. */
template <int kGroupM, int kCtas>
static __device__ __forceinline__ struct moe_gemm_unit moe_gemm_find_unit(
    const struct moe_op_gemm &op, const struct moe_gemm_work &work, int32_t number, int32_t rank)
{
    struct moe_gemm_unit unit;
    int32_t segment = 0;
    int32_t local = number;
    int32_t num_blocks = work.num_blocks;
    if (work.blocks_per_segment == 0) {
        segment = moe_gemm_find(work, static_cast<int32_t>(op.num_segments), number);
        local -= work.first_block[segment] * work.num_weight_blocks;
        num_blocks = work.first_block[segment + 1] - work.first_block[segment];
        if (kCtas == 1 && num_blocks == 1) {
            return {segment, local, work.first_row[segment], work.num_rows[segment], 0};
        }
    }
    const int32_t per_group = moe_gemm_ceil(num_blocks, moe_gemm_ceil(num_blocks, kGroupM));
    const int32_t first = local / (per_group * work.num_weight_blocks) * per_group;
    const int32_t left = num_blocks - first;
    const int32_t in_group = left < per_group ? left : per_group;
    local -= first * work.num_weight_blocks;
    int32_t block = first + local % in_group;
    unit.weight_block = local / in_group;
    int32_t rows;
    if (work.blocks_per_segment == 0) {
        unit.expert = segment;
        unit.first_row = work.first_row[segment];
        rows = work.num_rows[segment];
    } else {
        segment = block / work.blocks_per_segment;
        block -= segment * work.blocks_per_segment;
        num_blocks = work.blocks_per_segment;
        const int32_t expert = op.expert_ids[segment];
        unit.expert = expert >= 0 && expert < op.num_experts ? expert : -1;
        unit.first_row = segment * op.block_size;
        rows = op.block_size;
    }
    unit.is_shared = num_blocks > 1;
    const int32_t per_cta = (moe_gemm_ceil(rows, kCtas * num_blocks) + 7) / 8 * 8;
    const int32_t skipped = (kCtas * block + rank) * per_cta;
    const int32_t rest = skipped < rows ? rows - skipped : 0; /* 0: only in clusters */
    unit.first_row += rest > 0 ? skipped : 0;
    unit.num_rows = rest < per_cta ? rest : per_cta;
    return unit;
}

#endif
