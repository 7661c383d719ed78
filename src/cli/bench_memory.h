/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of benchmarks: whole pages, huge ones where the system gives them, filled with random
 * numbers. */
#ifndef MOE_BENCH_MEMORY_H
#define MOE_BENCH_MEMORY_H

#include <stdint.h>

#include "bench_team.h"
#include "cli_error.h"
#include "gpu.h"

enum { MOE_BENCH_ALIGNMENT = 64 }; /* of everything that is carved out of a block */

struct moe_bench_memory {
    void *bytes;
    uint64_t num_bytes;
    struct moe_gpu *gpu; /* whose memory it is; NULL: ordinary memory */
};

/* Bytes that this process can still use without swapping: what the system calls available, or what
 * its memory limit (cgroup) leaves, the smaller; 0 when neither is known. */
uint64_t moe_bench_memory_available(void);

/* Bytes of the largest cache of the first CPU, as the system describes it; `otherwise` when it does
 * not. */
uint64_t moe_bench_memory_cache_bytes(int64_t otherwise);

/* `value` rounded up to MOE_BENCH_ALIGNMENT. */
uint64_t moe_bench_memory_align(uint64_t value);

/* Takes zeroed memory from the system. Returns 0, or -1 with a sentence that says what `purpose` it
 * was for. */
int moe_bench_memory_init(struct moe_bench_memory *memory, uint64_t num_bytes, const char *purpose,
                          struct moe_cli_error *error);

/* Gives it back. A zeroed struct is legal. */
void moe_bench_memory_finish(struct moe_bench_memory *memory);

/* Fills `num_elements` elements of fp32, fp16 or bf16 with normally distributed numbers of standard
 * deviation `scale`, the same for the same seed and any number of threads. They are drawn from a
 * table of 65536 numbers. Returns 0, or -1 with a sentence. */
int moe_bench_memory_fill(void *elements, int32_t dtype, uint64_t num_elements, float scale,
                          uint64_t seed, struct moe_bench_team *team, struct moe_cli_error *error);

#endif
