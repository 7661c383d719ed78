/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of gpu_random share: one random call, and the memory that all its tensors lie in,
 * so that a byte that nobody may write is seen. */
#ifndef MOE_GPU_RANDOM_H
#define MOE_GPU_RANDOM_H

#include "gpu_compare.h"
#include "gpu_host.h"
#include "gpu_tiles.h"

/* Host memory that a case's tensors are cut from, poisoned; the device has a copy of it. */
struct random_arena {
    unsigned char *bytes;
    size_t capacity, used;
};
enum { RANDOM_POISON = 0xff };
#define RANDOM_ARENA_BYTES ((size_t)160 << 20)

/* Every 64th seed is a layer of up to 65536 tokens. */
#define RANDOM_IS_LARGE(seed) ((seed) % 64 == 0)

enum { RANDOM_LAYER, RANDOM_EXPERTS, RANDOM_GEMM, RANDOM_NUM_OPS };

/* Bytes that a call may write. */
struct random_output {
    unsigned char *at;                     /* in the arena; NULL: none */
    int64_t num_rows, num_columns, stride; /* elements */
    int32_t dtype;                         /* MOE_DTYPE_*; 0: element_bytes of exact bits */
    size_t element_bytes;
};
enum { RANDOM_MAX_OUTPUTS = 3 };

struct random_case {
    uint64_t seed;
    int op; /* RANDOM_LAYER ... */
    struct moe_problem problem;
    struct moe_weights_desc desc; /* addresses in the arena */
    const void **tables;          /* of desc, three for all experts; owned */
    uint64_t ops;                 /* of its plans */
    int64_t num_tokens;           /* of the call, or the rows that make so many */
    int64_t num_real_tokens;      /* layer: with num_tokens_device fewer */
    struct moe_layer_args layer;  /* the one of op is filled but for weights, stream, workspace */
    struct moe_experts_args experts;
    struct moe_grouped_gemm_args gemm;
    struct random_output outputs[RANDOM_MAX_OUTPUTS]; /* the first is what is computed */
};

/* splitmix64, low to high inclusive */
int64_t random_draw(uint64_t *seed, int64_t low, int64_t high);

/* num * bytes of the arena at a multiple of 16 bytes, with poison in front and behind. */
void *random_take(struct random_arena *arena, int64_t num, size_t element_bytes);

/* Elements of a dtype between -scale and scale. */
void *random_tensor(struct random_arena *arena, uint64_t *seed, int64_t count, int32_t dtype,
                    double scale);

size_t random_dtype_bytes(int32_t dtype);

/* The seed's problem and weights, and then its call. Sorted ids are made by the CPU context. */
void random_case_init(struct random_case *test, struct random_arena *arena, uint64_t seed);
void random_draw_call(struct random_case *test, struct random_arena *arena, uint64_t *seed,
                      const struct gpu_host *host);
void random_case_finish(struct random_case *test);

#endif
