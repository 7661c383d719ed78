/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measuring on a GPU.
 *   limits  memset and memcpy inside the device, by the driver: the highest rates of writing and of
 *           copying (bytes read plus bytes written) that a host without kernels of its own can
 *           measure. Operations that read are held against memset, those that move rows against
 *           memcpy. For tensor cores it is the nominal number of the device: its multiprocessors x
 *           its highest clock x what one does per cycle in 16-bit types.
 *   times   a graph of dependent calls (plain edges between the plugin's launches), each on the
 *           next inputs, outputs, routes and weights; between replays other memory is written, so
 *           that nothing is left in the cache. A sample is the time of a replay over its calls.
 *   calls   what a call costs the host: the clock around calls without a graph that do not wait.
 */
#ifndef MOE_BENCH_GPU_H
#define MOE_BENCH_GPU_H

#include <stdint.h>

#include "bench_case.h"
#include "bench_data.h"
#include "bench_limits.h"
#include "cli_error.h"
#include "gpu.h"
#include "moe_plugin.h"

struct moe_bench_gpu {
    struct moe_gpu *gpu; /* not owned */
    void *other;         /* memory for limits and for emptying the cache */
    uint64_t other_bytes;
    double mma_flop_per_s; /* 0: not known for this device or type */
};

/* Returns 0, or -1 with a sentence; finish either way. */
int moe_bench_gpu_init(struct moe_bench_gpu *bench, struct moe_gpu *gpu,
                       const struct moe_device *device, int32_t dtype, struct moe_cli_error *error);

/* A zeroed struct is legal. */
void moe_bench_gpu_finish(struct moe_bench_gpu *bench);

/* Adds one sample of each limit. */
int moe_bench_gpu_measure_limits(struct moe_bench_gpu *bench,
                                 struct moe_bench_samples samples[MOE_BENCH_NUM_LIMITS],
                                 struct moe_cli_error *error);

/* Adds samples to the case until `share_s` seconds are over, a few at least. */
int moe_bench_gpu_measure_case(struct moe_bench_gpu *bench, const struct moe_bench_data *data,
                               struct moe_bench_case *bench_case, double share_s,
                               struct moe_cli_error *error);

/* Adds `num_samples` samples of the host's seconds per call. */
int moe_bench_gpu_measure_calls(struct moe_bench_gpu *bench, const struct moe_bench_data *data,
                                struct moe_bench_case *bench_case, int num_samples,
                                struct moe_bench_samples *samples, struct moe_cli_error *error);

#endif
