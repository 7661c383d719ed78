/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gemm: which rows meet which weights, and in which task.
 *
 * A task is a stretch of positions times block_n output channels, gate and up of the same channels
 * together. All rows of a stretch pass through the same weights, so an expert's weights come from
 * memory once, or once per some hundred rows when an expert has more than that.
 *   seg_indptr, masked_m:  segments are cut into stretches of rows_per_task positions; empty
 *                segments make no task
 *   expert_ids:  a stretch is a few consecutive blocks, as many as an expert has on average;
 *                neighbours of the same expert are taken as one
 * Tasks of one stretch are neighbours: its rows stay in the cache, and where a panel holds them all
 * they are packed once for all tasks of a range. Outputs of tasks are disjoint as long as row_ids
 * does not name a row twice.
 */
#include "gemm.h"

#include "gemm_panel.h"

#include <stdbool.h>

/* Consecutive positions of one expert. */
struct stretch {
    int64_t expert; /* -1: rows of zeros */
    int64_t first;
    int64_t end;
};

static int64_t divide_up(int64_t count, int64_t size)
{
    return (count + size - 1) / size;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static int64_t num_channel_blocks(const struct moe_op_gemm *op, const struct moe_tile *tile)
{
    return divide_up(op->n, tile->block_n);
}

/* A multiple of block_m. */
static int64_t rows_per_task(const struct moe_tile *tile)
{
    return tile->block_m < MOE_CPU_GEMM_ROWS_PER_TASK
               ? MOE_CPU_GEMM_ROWS_PER_TASK / tile->block_m * tile->block_m
               : tile->block_m;
}

/* ---------------------------------------------------------------- segments of experts */

static struct stretch segment_of(const struct moe_op_gemm *op, int64_t segment)
{
    struct stretch all;
    all.expert = segment;
    if (op->masked_m) {
        all.first = segment * op->max_masked_rows;
        all.end = all.first + clamp(op->masked_m[segment], 0, op->max_masked_rows);
        return all;
    }
    all.first = clamp(op->seg_indptr[segment], 0, op->num_rows);
    all.end = clamp(op->seg_indptr[segment + 1], all.first, op->num_rows);
    return all;
}

/* Most segments are empty or short, and the search below passes them all: no division for those. */
static int64_t num_stretches_of(const struct stretch *all, int64_t rows)
{
    const int64_t length = all->end - all->first;
    return length <= 0 ? 0 : length <= rows ? 1 : divide_up(length, rows);
}

static int64_t num_segment_stretches(const struct moe_op_gemm *op, const struct moe_tile *tile)
{
    const int64_t rows = rows_per_task(tile);
    int64_t count = 0;
    for (int64_t segment = 0; segment < op->num_segments; segment++) {
        const struct stretch all = segment_of(op, segment);
        count += num_stretches_of(&all, rows);
    }
    return count;
}

/*
 * Stretch `index` of all segments' stretches. Reads two numbers per segment, far less than the
 * weights that a task reads.
 */
static struct stretch find_segment_stretch(const struct moe_op_gemm *op,
                                           const struct moe_tile *tile, int64_t index)
{
    const int64_t rows = rows_per_task(tile);
    struct stretch found = {-1, 0, 0};
    for (int64_t segment = 0; segment < op->num_segments; segment++) {
        const struct stretch all = segment_of(op, segment);
        const int64_t count = num_stretches_of(&all, rows);
        if (index < count) {
            found.expert = all.expert;
            found.first = all.first + index * rows;
            found.end = all.end - found.first < rows ? all.end : found.first + rows;
            return found;
        }
        index -= count;
    }
    return found;
}

/* ---------------------------------------------------------------- blocks of expert_ids */

/* Positions that blocks cover. */
static int64_t num_block_positions(const struct moe_op_gemm *op)
{
    const int64_t capacity = op->num_segments <= op->num_rows / op->block_size
                                 ? op->num_segments * op->block_size
                                 : op->num_rows;
    return clamp(*op->num_tokens_post_pad, 0, capacity);
}

/* Consecutive blocks in a task. */
static int64_t blocks_per_task(const struct moe_op_gemm *op, const struct moe_tile *tile)
{
    const int64_t num_blocks = divide_up(num_block_positions(op), op->block_size);
    const int64_t most = rows_per_task(tile) / op->block_size;
    return clamp(num_blocks / (op->num_experts > 0 ? op->num_experts : 1), 1, most > 1 ? most : 1);
}

/*
 * The stretch of equal experts that begins with block `block` and ends at `end_block` at the
 * latest.
 */
static struct stretch stretch_of_blocks(const struct moe_op_gemm *op, int64_t block,
                                        int64_t end_block, int64_t num_positions)
{
    const int32_t expert = op->expert_ids[block];
    int64_t end = block + 1;
    while (end < end_block && op->expert_ids[end] == expert) {
        end++;
    }
    struct stretch stretch;
    stretch.expert = expert >= 0 && expert < op->num_experts ? expert : -1;
    stretch.first = block * op->block_size;
    stretch.end = clamp(end * op->block_size, 0, num_positions);
    return stretch;
}

/* ---------------------------------------------------------------- panels */

/*
 * List up to block_m valid rows from position *position on, and move it behind them. Returns their
 * number.
 */
static int64_t list_rows(const struct moe_op_gemm *op, int64_t block_m, int64_t *position,
                         int64_t end, const struct moe_gemm_scratch *scratch)
{
    int64_t num_rows = 0;
    int64_t p = *position;
    for (; p < end && num_rows < block_m; p++) {
        int64_t row = p;
        if (op->row_ids) {
            row = op->row_ids[p];
            if (row < 0 || row >= op->num_row_ids) {
                continue;
            }
        }
        scratch->input_rows[num_rows] = op->row_ids && op->row_ids_div ? row / op->row_ids_div : p;
        scratch->output_rows[num_rows] = op->scatter ? row : p;
        if (op->row_weights) {
            scratch->row_weights[num_rows] = op->row_weights[row];
        }
        num_rows++;
    }
    *position = p;
    return num_rows;
}

/* The stretch's rows stay packed from block to block where one panel holds them all. */
static void run_stretch(struct moe_gemm_block *block, const struct stretch *stretch,
                        struct moe_gemm_scratch *scratch)
{
    const bool has_expert = stretch->expert >= 0;
    block->expert = stretch->expert;
    if (has_expert) {
        MOE_CPU_NAME(moe_gemm_panel_begin_block)(block, scratch);
    }
    for (int64_t position = stretch->first; position < stretch->end;) {
        const bool is_first = position == stretch->first;
        const int64_t num_rows =
            list_rows(block->op, block->block_m, &position, stretch->end, scratch);
        if (num_rows == 0) {
            break; /* the rest was padding */
        }
        if (!is_first || position < stretch->end) {
            scratch->pairs_exponent = 0;
        }
        if (has_expert) {
            MOE_CPU_NAME(moe_gemm_panel_run)(block, scratch, num_rows);
        } else {
            MOE_CPU_NAME(moe_gemm_output_zero)(block, scratch, num_rows);
        }
    }
}

/* ---------------------------------------------------------------- tasks */

/* Behind the last block of a task's. */
static int64_t end_block_of(const struct moe_op_gemm *op, const struct moe_tile *tile,
                            int64_t index)
{
    return clamp((index + 1) * blocks_per_task(op, tile), 0,
                 divide_up(num_block_positions(op), op->block_size));
}

/* The first stretch of tasks [index * num_channel_blocks, ..). */
static struct stretch first_stretch(const struct moe_op_gemm *op, const struct moe_tile *tile,
                                    int64_t index)
{
    if (!op->expert_ids) {
        return find_segment_stretch(op, tile, index);
    }
    return stretch_of_blocks(op, index * blocks_per_task(op, tile), end_block_of(op, tile, index),
                             num_block_positions(op));
}

/* The stretches of blocks of a task. At the beginning `stretch` is the first one, and
 * block->next_expert and next_first are what follows the task. */
static void run_stretches(struct moe_gemm_block *block, const struct moe_tile *tile, int64_t index,
                          struct stretch stretch, struct moe_gemm_scratch *scratch)
{
    const struct moe_op_gemm *op = block->op;
    const int64_t num_positions = num_block_positions(op);
    const int64_t end = end_block_of(op, tile, index);
    const int64_t next_expert = block->next_expert;
    const int64_t next_first = block->next_first;
    const bool is_only = divide_up(stretch.end, op->block_size) >= end;
    for (;;) {
        const int64_t behind = divide_up(stretch.end, op->block_size);
        const bool is_last = behind >= end;
        const struct stretch next =
            is_last ? stretch : stretch_of_blocks(op, behind, end, num_positions);
        block->next_expert = is_last ? next_expert : next.expert;
        block->next_first = is_last ? next_first : block->first;
        run_stretch(block, &stretch, scratch);
        if (!is_only) {
            scratch->pairs_exponent = 0;
        }
        if (is_last) {
            return;
        }
        stretch = next;
    }
}

/* ---------------------------------------------------------------- the kernel */

int64_t MOE_CPU_NAME(moe_cpu_gemm_num_tasks)(const void *op, const struct moe_tile *tile)
{
    const struct moe_op_gemm *gemm = op;
    int64_t num_stretches = 0;
    if (!gemm->expert_ids) {
        num_stretches = num_segment_stretches(gemm, tile);
    } else {
        num_stretches = divide_up(divide_up(num_block_positions(gemm), gemm->block_size),
                                  blocks_per_task(gemm, tile));
    }
    return num_stretches * num_channel_blocks(gemm, tile);
}

uint64_t MOE_CPU_NAME(moe_cpu_gemm_scratch_bytes)(const void *op, const struct moe_tile *tile)
{
    struct moe_gemm_scratch layout;
    return MOE_CPU_NAME(moe_gemm_panel_layout)(&layout, op, tile, NULL);
}

void MOE_CPU_NAME(moe_cpu_gemm_run_tasks)(const void *op, const struct moe_tile *tile,
                                          const struct moe_cpu_tasks *tasks, void *scratch)
{
    const struct moe_op_gemm *gemm = op;
    const int64_t num_blocks = num_channel_blocks(gemm, tile);
    struct moe_gemm_scratch layout;
    (void)MOE_CPU_NAME(moe_gemm_panel_layout)(&layout, gemm, tile, scratch);

    struct stretch stretch = first_stretch(gemm, tile, tasks->first / num_blocks);
    for (int64_t task = tasks->first; task < tasks->end; task++) {
        const int64_t index = task / num_blocks;
        const int64_t next = task + 1 < tasks->end ? task + 1 : tasks->next;
        struct stretch after = {-1, 0, 0};
        if (next >= 0) {
            after =
                next / num_blocks == index ? stretch : first_stretch(gemm, tile, next / num_blocks);
        }
        struct moe_gemm_block block = {
            .op = gemm,
            .block_m = tile->block_m,
            .block_n = tile->block_n,
            .first = task % num_blocks * tile->block_n,
            .next_expert = after.expert,
            .next_first = next >= 0 ? next % num_blocks * tile->block_n : 0,
        };
        block.count = gemm->n - block.first < tile->block_n ? gemm->n - block.first : tile->block_n;
        if (gemm->expert_ids) {
            run_stretches(&block, tile, index, stretch, &layout);
        } else {
            run_stretch(&block, &stretch, &layout);
        }
        if (next < 0 || next / num_blocks != index) {
            layout.pairs_exponent = 0; /* other rows */
        }
        stretch = after;
    }
}

void MOE_CPU_NAME(moe_cpu_gemm_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                    void *scratch)
{
    const struct moe_cpu_tasks one = {.first = task, .end = task + 1, .next = -1};
    MOE_CPU_NAME(moe_cpu_gemm_run_tasks)(op, tile, &one, scratch);
}
