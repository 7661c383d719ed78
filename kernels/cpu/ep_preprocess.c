/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ep_preprocess: the index arrays of expert parallelism. Rows are the local routes sorted by local
 * expert, then by route; every expert's segment of rows starts at a multiple of segment_alignment;
 * filtered routes have no row. Moves: the ids twice, 4 bytes per route of src2dst and reorder_ids,
 *   4 per row of dst2src and m_indices. Bound by the latency of the counters.
 * Pipeline: 1 count routes per expert. 2 prefix sums with padding: seg_indptr, m_indices,
 *   reorder_ids. 3 scatter the routes: src2dst, dst2src. 4 fill the padding of each segment. 5 fill
 *   the tails.
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

/* Turns each count into the first row of its expert, and writes everything that follows from counts
 * alone. */
static void place_segments(const struct moe_op_ep_preprocess *op, int64_t *counts)
{
    const int64_t alignment = op->segment_alignment;
    int64_t row = 0;
    int64_t num_local_routes = 0;
    for (int32_t expert = 0; expert < op->filter.num_experts; expert++) {
        const int64_t count = counts[expert];
        const int64_t end = row + (count + alignment - 1) / alignment * alignment;
        op->seg_indptr[expert] = row;
        counts[expert] = row;
        fill(op->m_indices, row, row + count, expert);
        fill(op->m_indices, row + count, end, -1);
        fill(op->reorder_ids, num_local_routes, num_local_routes + count, expert);
        num_local_routes += count;
        row = end;
    }
    op->seg_indptr[op->filter.num_experts] = row;
    fill(op->m_indices, row, op->row_capacity, -1);
    fill(op->reorder_ids, num_local_routes, op->num_routes, -1);
}

static void scatter_routes(const struct moe_op_ep_preprocess *op, int64_t *cursors)
{
    for (int64_t route = 0; route < op->num_routes; route++) {
        const int32_t expert = find_local_expert(op, route);
        const int64_t row = expert >= 0 ? cursors[expert]++ : -1;
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
    const int32_t num_experts = prep->filter.num_experts;
    int64_t *cursors = scratch;

    count_experts(prep, cursors);
    place_segments(prep, cursors);
    scatter_routes(prep, cursors);
    for (int32_t expert = 0; expert < num_experts; expert++) {
        fill(prep->dst2src, cursors[expert], prep->seg_indptr[expert + 1], -1);
    }
    fill(prep->dst2src, prep->seg_indptr[num_experts], prep->row_capacity, -1);
}
