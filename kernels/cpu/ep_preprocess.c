/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ep_preprocess: the index arrays of expert parallelism. Rows are the local routes sorted by local
 * expert, then by route; every expert's segment of rows starts at a multiple of segment_alignment,
 * in the masked layout at expert * max_masked_rows; filtered routes have no row.
 * Moves: the ids twice, 4 bytes per route of src2dst and reorder_ids, 4 per row of dst2src and
 *   m_indices. Bound by the latency of the counters.
 * Pipeline: 1 count routes per expert. 2 place the segments: seg_indptr, masked_m, m_indices,
 *   reorder_ids, the padding of dst2src. 3 scatter the routes: src2dst, dst2src.
 * Limits: rows with padding below 2^31. One task: a stable counting sort, deterministic by itself.
 */
#include "cpu_ops.h"
#include "route_filter.h"

#include <stddef.h>
#include <string.h>

static int32_t find_local_expert(const struct moe_op_ep_preprocess *op, int64_t route)
{
    const int64_t id = moe_route_filter_load_id(op->topk_ids, op->ids_dtype, route);
    return moe_route_filter_local_expert(&op->filter, id);
}

static void fill(int32_t *array, int64_t begin, int64_t end, int32_t value)
{
    if (array == NULL) {
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        array[i] = value;
    }
}

static void count_experts(const struct moe_op_ep_preprocess *op, int64_t *counts)
{
    memset(counts, 0, (size_t)op->filter.num_experts * sizeof(*counts));
    for (int64_t route = 0; route < op->num_routes; route++) {
        const int32_t expert = find_local_expert(op, route);
        if (expert >= 0) {
            counts[expert]++;
        }
    }
}

/* Rows of one expert: in use are the first `count`. */
struct segment {
    int64_t begin;
    int64_t end;
    int64_t count;
};

/* The segment of `expert`, which `num_routes` routes go to; in the contiguous layout it starts at
 * `begin`. */
static struct segment make_segment(const struct moe_op_ep_preprocess *op, int32_t expert,
                                   int64_t num_routes, int64_t begin)
{
    const int64_t alignment = op->segment_alignment;
    const int64_t most = op->max_masked_rows;
    if (most > 0) {
        const int64_t first = expert * most;
        return (struct segment){first, first + most, num_routes < most ? num_routes : most};
    }
    const int64_t end = begin + (num_routes + alignment - 1) / alignment * alignment;
    return (struct segment){begin, end, num_routes};
}

/* Turns each count into the first row of its expert, and writes everything that follows from counts
 * alone. */
static void place_segments(const struct moe_op_ep_preprocess *op, int64_t *counts)
{
    int64_t end = 0;
    int64_t num_rows = 0; /* without padding */
    for (int32_t expert = 0; expert < op->filter.num_experts; expert++) {
        const struct segment segment = make_segment(op, expert, counts[expert], end);
        const int64_t used_end = segment.begin + segment.count;
        counts[expert] = segment.begin;
        if (op->seg_indptr != NULL) {
            op->seg_indptr[expert] = segment.begin;
        }
        if (op->masked_m != NULL) {
            op->masked_m[expert] = (int32_t)segment.count;
        }
        fill(op->m_indices, segment.begin, used_end, expert);
        fill(op->m_indices, used_end, segment.end, -1);
        fill(op->dst2src, used_end, segment.end, -1);
        fill(op->reorder_ids, num_rows, num_rows + segment.count, expert);
        num_rows += segment.count;
        end = segment.end;
    }
    if (op->seg_indptr != NULL) {
        op->seg_indptr[op->filter.num_experts] = end;
    }
    fill(op->m_indices, end, op->row_capacity, -1);
    fill(op->dst2src, end, op->row_capacity, -1);
    fill(op->reorder_ids, num_rows, op->num_routes, -1);
}

/* The next row of `expert`; -1 when its rows are all taken, which the masked layout knows. */
static int64_t take_row(const struct moe_op_ep_preprocess *op, int32_t expert, int64_t *cursors)
{
    const int64_t most = op->max_masked_rows;
    if (most > 0 && cursors[expert] >= ((int64_t)expert + 1) * most) {
        return -1;
    }
    return cursors[expert]++;
}

static void scatter_routes(const struct moe_op_ep_preprocess *op, int64_t *cursors)
{
    for (int64_t route = 0; route < op->num_routes; route++) {
        const int32_t expert = find_local_expert(op, route);
        const int64_t row = expert >= 0 ? take_row(op, expert, cursors) : -1;
        op->src2dst[route] = (int32_t)row;
        if (row >= 0 && op->dst2src != NULL) {
            op->dst2src[row] = (int32_t)route;
        }
    }
}

int64_t MOE_CPU_NAME(moe_cpu_ep_preprocess_num_tasks)(const void *op, const struct moe_tile *tile)
{
    (void)op;
    (void)tile;
    return 1; /* without routes there are still buffers to initialize */
}

uint64_t MOE_CPU_NAME(moe_cpu_ep_preprocess_scratch_bytes)(const void *op,
                                                           const struct moe_tile *tile)
{
    (void)tile;
    const struct moe_op_ep_preprocess *prep = op;
    return (uint64_t)prep->filter.num_experts * sizeof(int64_t);
}

void MOE_CPU_NAME(moe_cpu_ep_preprocess_run)(const void *op, const struct moe_tile *tile,
                                             int64_t task, void *scratch)
{
    (void)tile;
    (void)task;
    const struct moe_op_ep_preprocess *prep = op;
    int64_t *cursors = scratch;

    count_experts(prep, cursors);
    place_segments(prep, cursors);
    scatter_routes(prep, cursors);
}
