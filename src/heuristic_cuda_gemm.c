/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cost of a grouped GEMM on a GPU, in cycles: bytes, tensor-core cycles and waves.
 *
 *   rows      of an active expert, r on average and r +- sqrt(r) by chance, in blocks of at most
 *             BLOCK_SIZE_M per CTA of a cluster, split evenly and rounded up to 8: N tokens of a
 *             unit; a unit is BLOCK_SIZE_N weight rows by N tokens, per CTA
 *   tensor    m64nNk16 takes max(N / 2, 16 + N / 4) cycles (measured on an H200); a unit has k / 16
 *             for each of its slabs, two per consumer warpgroup and 64 rows at most, and an
 *             epilogue that nothing hides. One consumer alone also waits at each stage. With two,
 *             what the L2 delivers takes time from it (both are bound by power), and a stage is not
 *             filled before its latency is over
 *   L2        a unit reads BLOCK_SIZE_N + N rows of k elements; CTAs of a cluster share the weights
 *   memory    the weights of the active experts once, at the device's rate, which many bytes in
 *             flight and many multiprocessors come closer to than few
 *   waves     ceil(units / clusters) units on the busiest one
 *   total     the largest of the three, and a share of the others that does not overlap
 *
 * The constants were fitted by hand and by search to times of layers on an H200; how far the tile
 * taken is from the best one: docs/performance-gemm.md, "Which tile, measured".
 */
#include "cuda_chain.h"
#include "heuristic_costs.h"

#include "tiles.h"

#include <math.h>

static const double launch_cycles = 3000.0;
static const double unit_cycles = 1525.0;     /* first loads, barriers and epilogue of a unit */
static const double output_cycles = 0.03;     /* per output element, in the epilogue */
static const double memory_rate = 21.0;       /* bytes per cycle of one multiprocessor's share */
static const double memory_rate_few = 8.36;   /* the same when only few of them read, */
static const double memory_rate_alone = 54.0; /* and what one of those gets */
static const double l2_rate = 29.0;           /* bytes per cycle of one multiprocessor, of all, */
static const double l2_rate_alone = 58.0;     /* and of one when only few of them read */
static const double shared_l2_rate = 87.0;    /* of what adds to two consumers' tensor time */
static const double stage_cycles = 50.0;      /* of a stage of one consumer, beside its sums */
static const double stage_latency = 5200.0;   /* until a stage is filled, under load */
static const double bytes_in_flight = 7780.0; /* of weights, at which half the rate is reached */
static const double slab_lost = 0.08;         /* memory time, where slabs are half of 64 rows */
static const double tail_share = 0.058;       /* of a unit's weights, with few left to read */
static const double overlap_lost = 0.2;
static const double gather_lost = 0.03; /* of GEMM1's time, where clusters gather */
static const double copy_rate = 19.0;   /* bytes per cycle and multiprocessor, read and written */

/* A GEMM as the kernel sees it. */
struct gemm_shape {
    double num_groups;  /* experts with rows */
    double rows;        /* of one of them, on average */
    double weight_rows; /* of one of them, gate and up together */
    double k;
    double element_bytes;
};

/* Blocks of up to `most` rows that an expert has, on average over what chance makes of `rows`. */
static double count_blocks(double rows, double most)
{
    static const double deviations[] = {-1.3, -0.5, 0.0, 0.5, 1.3};
    const size_t num_deviations = sizeof(deviations) / sizeof(deviations[0]);
    double sum = 0.0;
    for (size_t i = 0; i < num_deviations; i++) {
        sum += ceil(moe_cost_at_least_1(rows + deviations[i] * sqrt(rows)) / most);
    }
    return sum / (double)num_deviations;
}

static double gemm_cost(const struct moe_tile *tile, const struct moe_device *device,
                        const struct gemm_shape *shape)
{
    const double ctas = moe_tiles_cluster_ctas(tile);
    const double clusters = moe_cost_at_least_1(floor(device->num_sms / ctas));
    const double rows = moe_cost_at_least_1(shape->rows);
    const double blocks = count_blocks(rows, ctas * tile->block_m);
    const double tokens = fmin(tile->block_m, 8.0 * ceil(rows / blocks / ctas / 8.0));
    const double weight_blocks = moe_cost_blocks(shape->weight_rows, tile->block_n);
    const double units = shape->num_groups * blocks * weight_blocks;
    const double waves = ceil(units / clusters);

    const double slabs = 2.0 * (tile->num_warps / 4.0 - 1.0);
    const double unit_bytes = (tile->block_n / ctas + tokens) * shape->k * shape->element_bytes;
    double mma = fmax(tokens / 2.0, 16.0 + tokens / 4.0) * slabs * ceil(shape->k / 16.0);
    if (slabs > 2.0) {
        mma = fmax(mma + unit_bytes / shared_l2_rate,
                   ceil(shape->k / tile->block_k) * stage_latency / tile->num_stages);
    } else {
        mma += ceil(shape->k / tile->block_k) * stage_cycles;
    }
    const double epilogue = unit_cycles + output_cycles * tokens * tile->block_n;
    const double tensor = waves * (mma + epilogue);
    const double busy = fmin(1.0, units / clusters);
    const double l2 = waves * unit_bytes / (l2_rate_alone + (l2_rate - l2_rate_alone) * busy);

    const double in_flight =
        (double)tile->num_stages * tile->block_k * tile->block_n * shape->element_bytes / ctas;
    const double slab_rows = tile->block_n / slabs;
    const double rate = (memory_rate_few + (memory_rate - memory_rate_few) * busy) * in_flight /
                        (in_flight + bytes_in_flight) /
                        (1.0 + slab_lost * (64.0 / slab_rows - 1.0));
    const double weight_bytes =
        shape->num_groups * shape->weight_rows * shape->k * shape->element_bytes;
    const double unit_weights = tile->block_n * shape->k * shape->element_bytes / ctas;
    const double memory =
        tail_share * unit_weights / rate + fmax(weight_bytes / (clusters * ctas * rate),
                                                waves / blocks * unit_weights / memory_rate_alone);
    const double slowest = fmax(tensor, fmax(l2, memory));
    return launch_cycles + slowest + overlap_lost * (tensor + l2 + memory - slowest);
}

double moe_heuristic_cuda_gemm_cost(const struct moe_tile *tile, int32_t op,
                                    const struct moe_device *device,
                                    const struct moe_problem *problem, int64_t num_tokens)
{
    const bool is_gemm1 = op == MOE_OP_GEMM1;
    const struct moe_cost_routing routing = moe_cost_routing(problem, num_tokens);
    const double num_matrices = is_gemm1 && (problem->flags & MOE_PROBLEM_UNGATED) == 0 ? 2.0 : 1.0;
    struct gemm_shape shape = {
        .num_groups = routing.active_experts,
        .rows = routing.num_routes / routing.active_experts,
        .weight_rows =
            num_matrices * moe_cost_at_least_1(is_gemm1 ? problem->inter : problem->hidden),
        .k = moe_cost_at_least_1(is_gemm1 ? problem->hidden : problem->inter),
        .element_bytes = moe_cost_element_bytes(problem->tokens.dtype),
    };
    double cost = gemm_cost(tile, device, &shape);
    if (is_gemm1 && moe_tiles_cluster_ctas(tile) > 1) { /* rows are gathered, or copied before */
        const double copies = 2.0 * routing.num_routes * shape.k * shape.element_bytes /
                              (moe_cost_at_least_1(device->num_sms) * copy_rate);
        cost += moe_cuda_reads_in_order(problem, tile) ? copies : gather_lost * cost;
    }
    if (problem->shared_inter > 0) { /* a group of its own that all tokens meet */
        shape.num_groups = 1.0;
        shape.rows = (double)num_tokens;
        *(is_gemm1 ? &shape.weight_rows : &shape.k) =
            is_gemm1 ? num_matrices * problem->shared_inter : problem->shared_inter;
        cost += gemm_cost(tile, device, &shape);
    }
    return cost;
}
