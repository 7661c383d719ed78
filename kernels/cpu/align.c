/* SPDX-License-Identifier: Apache-2.0 */
/*
 * align_block_size: route indices grouped by local expert in ascending order, every group padded to
 * a multiple of the block size, and the expert of every block.
 * Moves: the ids twice (4 or 8 bytes each), 4 bytes per entry of the outputs; no arithmetic to
 *   speak of. Bound by the latency of the counters, which sit in the first-level cache up to some
 *   thousand experts.
 * Pipeline: 1 count routes per bucket. 2 turn counts into first positions, naming the blocks on the
 *   way. 3 scatter the routes. 4 fill what is left of each group. 5 fill the tails of the buffers.
 * The batched form has its counts given: rows of expert e are e * max_batch_rows + i.
 * Limits: routes plus padding below 2^31. One task: a stable counting sort of few elements,
 * deterministic by itself.
 */
#include "cpu_ops.h"
#include "route_filter.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Kept routes that are filtered form one bucket after those of the experts. */
static int32_t find_bucket(const struct moe_op_align *op, int64_t route)
{
    const int64_t id = moe_route_filter_load_id(op->topk_ids, op->ids_dtype, route);
    const int32_t local = moe_route_filter_local_expert(&op->filter, id);
    return local >= 0 ? local : op->filter.num_experts;
}

/* Rows in use of an expert's batch. */
static int32_t clamp_batch(const struct moe_op_align *op, int32_t expert)
{
    const int32_t count = op->batch_counts[expert];
    return count < 0 ? 0 : count < op->max_batch_rows ? count : (int32_t)op->max_batch_rows;
}

static void count_buckets(const struct moe_op_align *op, int32_t *counts)
{
    if (op->batch_counts != NULL) {
        for (int32_t expert = 0; expert < op->filter.num_experts; expert++) {
            counts[expert] = clamp_batch(op, expert);
        }
        return;
    }
    memset(counts, 0, ((size_t)op->filter.num_experts + 1) * sizeof(*counts));
    for (int64_t route = 0; route < op->num_routes; route++) {
        counts[find_bucket(op, route)]++;
    }
}

static int32_t round_up(int32_t count, int32_t block_size)
{
    return (int32_t)(((int64_t)count + block_size - 1) / block_size * block_size);
}

static void fill(int32_t *array, int64_t begin, int64_t end, int32_t value)
{
    for (int64_t i = begin; i < end; i++) {
        array[i] = value;
    }
}

/* Turns each count into the first position of its bucket and writes expert_ids. Returns
 * num_tokens_post_pad. */
static int32_t place_buckets(const struct moe_op_align *op, int32_t num_buckets, int32_t *counts)
{
    int32_t end = 0;
    for (int32_t bucket = 0; bucket < num_buckets; bucket++) {
        const int32_t begin = end;
        const int32_t expert = bucket < op->filter.num_experts ? bucket : -1;
        end += round_up(counts[bucket], op->block_size);
        counts[bucket] = begin;
        fill(op->expert_ids, begin / op->block_size, end / op->block_size, expert);
    }
    return end;
}

static void scatter_batches(const struct moe_op_align *op, int32_t *cursors)
{
    for (int32_t expert = 0; expert < op->filter.num_experts; expert++) {
        const int64_t first = expert * op->max_batch_rows;
        const int32_t count = clamp_batch(op, expert);
        for (int32_t i = 0; i < count; i++) {
            op->sorted_ids[cursors[expert]++] = (int32_t)(first + i);
        }
    }
}

static void scatter_routes(const struct moe_op_align *op, int32_t num_buckets, int32_t *cursors)
{
    if (op->batch_counts != NULL) {
        scatter_batches(op, cursors);
        return;
    }
    for (int64_t route = 0; route < op->num_routes; route++) {
        const int32_t bucket = find_bucket(op, route);
        if (bucket < num_buckets) {
            op->sorted_ids[cursors[bucket]++] = (int32_t)route;
        }
    }
}

int64_t MOE_CPU_NAME(moe_cpu_align_num_tasks)(const void *op, const struct moe_tile *tile)
{
    (void)op;
    (void)tile;
    return 1; /* without routes there are still buffers to initialize */
}

uint64_t MOE_CPU_NAME(moe_cpu_align_scratch_bytes)(const void *op, const struct moe_tile *tile)
{
    (void)tile;
    const struct moe_op_align *align = op;
    return ((uint64_t)align->filter.num_experts + 1) * sizeof(int32_t);
}

void MOE_CPU_NAME(moe_cpu_align_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                     void *scratch)
{
    (void)tile;
    (void)task;
    const struct moe_op_align *align = op;
    const int32_t num_experts = align->filter.num_experts;
    const bool keeps = align->filter_mode == MOE_FILTER_KEEP && align->batch_counts == NULL;
    const int32_t num_buckets = num_experts + (keeps ? 1 : 0);
    const int32_t sentinel = align->sentinel;
    int32_t *cursors = scratch;

    count_buckets(align, cursors);
    if (align->expert_counts != NULL) {
        memcpy(align->expert_counts, cursors, (size_t)num_experts * sizeof(*cursors));
    }
    if (align->num_tokens_post_pad == NULL) {
        return;
    }
    const int32_t num_entries = place_buckets(align, num_buckets, cursors);
    scatter_routes(align, num_buckets, cursors);
    for (int32_t bucket = 0; bucket < num_buckets; bucket++) {
        /* Groups begin at multiples of the block size, so the next multiple is this group's end. */
        const int32_t end = round_up(cursors[bucket], align->block_size);
        fill(align->sorted_ids, cursors[bucket], end, sentinel);
    }
    fill(align->sorted_ids, num_entries, align->sorted_capacity, sentinel);
    fill(align->expert_ids, num_entries / align->block_size, align->expert_capacity, -1);
    *align->num_tokens_post_pad = num_entries;
}
