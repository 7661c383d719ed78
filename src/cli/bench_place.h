/* SPDX-License-Identifier: Apache-2.0 */
/* Where the tensors of a benchmark live: ordinary memory for the CPU backend, a GPU's own for the
 * CUDA backend. */
#ifndef MOE_BENCH_PLACE_H
#define MOE_BENCH_PLACE_H

#include <stdint.h>

#include "bench_memory.h"
#include "bench_team.h"
#include "cli_error.h"
#include "gpu.h"

struct moe_bench_place {
    struct moe_bench_team *team; /* draws numbers */
    struct moe_gpu *gpu;         /* NULL: ordinary memory */
};

/* Bytes that benchmarks can have there; 0: not known. Returns 0, or -1 with a sentence. */
int moe_bench_place_available(const struct moe_bench_place *place, uint64_t *num_bytes,
                              struct moe_cli_error *error);

/* Takes memory; `purpose` is for the sentence. Give it back with moe_bench_memory_finish. Returns
 * 0, or -1 with a sentence. */
int moe_bench_place_take(const struct moe_bench_place *place, uint64_t num_bytes,
                         const char *purpose, struct moe_bench_memory *memory,
                         struct moe_cli_error *error);

/* As moe_bench_memory_fill. On a GPU the numbers repeat after some tens of megabytes: more than its
 * cache holds, and no kernel looks at them twice. */
int moe_bench_place_fill(const struct moe_bench_place *place, void *elements, int32_t dtype,
                         uint64_t num_elements, float scale, uint64_t seed,
                         struct moe_cli_error *error);

#endif
