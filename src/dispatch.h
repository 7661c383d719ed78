/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From (configuration, device, problem) to a table of token buckets, each with a tile per
 * operation. A pure function of its inputs: no device call, no environment, no time.
 *
 * For T tokens the strongest rule decides that matches device and problem, whose density holds for
 * T, and which has a bucket that covers T. In that bucket an operation that is named may use the
 * rows that its keys allow, any other all of its rows; of those that the device can run, the
 * heuristic takes the cheapest. gemm1 and gemm2 are taken together, with one BLOCK_SIZE_M.
 */
#ifndef MOE_DISPATCH_H
#define MOE_DISPATCH_H

#include "config.h"
#include "tile.h"

/*
 * What runs for one operation in one bucket. Strings belong to the snapshot, which the table keeps
 * alive.
 */
struct moe_dispatch_choice {
    int32_t tile;   /* row of moe_tiles; -1: the operation is not part of the plan */
    int32_t source; /* MOE_CHOICE_* */
    int32_t line;   /* of the bucket in `file` */
    int32_t reserved;
    const char *rule; /* "heuristic" */
    const char *file; /* "" */
};

struct moe_dispatch_bucket {
    int64_t min_tokens;
    int64_t max_tokens;
    struct moe_dispatch_choice choices[MOE_NUM_OPS];
};

struct moe_dispatch {
    int32_t num_buckets;         /* at least 1; together they cover 0..max_tokens of the problem */
    int32_t num_buckets_skipped; /* buckets of rules that would decide, by on_unavailable: next */
    const int64_t *max_tokens;   /* [num_buckets], ascending: what lookup searches */
    const struct moe_dispatch_bucket *buckets;
    struct moe_config *config;
    struct moe_memory memory;
    size_t block_bytes; /* of the one block that all of this is */
};

/*
 * Make the table for the operations in `ops` (bits 1 << MOE_OP_*, row operations only) and
 * 0..problem->max_tokens tokens (at most INT32_MAX). Takes a reference of `config`. CONFIG when a
 * rule that decides names a tile that this build or device lacks and its on_unavailable is error;
 * UNSUPPORTED when an operation has no tile at all on this device; INVALID_ARGUMENT; OUT_OF_MEMORY.
 * Equal neighbours are merged.
 */
int32_t moe_dispatch_create(const struct moe_memory *memory, struct moe_config *config,
                            const struct moe_device *device, const struct moe_problem *problem,
                            uint64_t ops, struct moe_dispatch **out, struct moe_error *error);

/* The same for explain: an operation that has no tile gets tile -1 where create would fail. */
int32_t moe_dispatch_create_partial(const struct moe_memory *memory, struct moe_config *config,
                                    const struct moe_device *device,
                                    const struct moe_problem *problem, uint64_t ops,
                                    struct moe_dispatch **out, struct moe_error *error);

/* Gives back the reference. NULL is legal. */
void moe_dispatch_destroy(struct moe_dispatch *dispatch);

/*
 * The bucket of `num_tokens` (0..max_tokens of the problem). No lock, no allocation, no branch that
 * data decides.
 */
static inline const struct moe_dispatch_bucket *moe_dispatch_find(
    const struct moe_dispatch *dispatch, int64_t num_tokens)
{
    const int64_t *first = dispatch->max_tokens;
    int32_t num_left = dispatch->num_buckets;
    while (num_left > 1) {
        int32_t half = num_left / 2;
        first += first[half - 1] < num_tokens ? half : 0;
        num_left -= half;
    }
    return &dispatch->buckets[first - dispatch->max_tokens];
}

/*
 * The device in a few words for sentences: "sm_90", "a CPU with avx2". `text` holds at least 48
 * bytes.
 */
void moe_dispatch_describe_device(const struct moe_device *device, char *text, size_t text_bytes);

/*
 * The table entry `explain` of the ABI: every rule in order of precedence with its verdict, then
 * one choice per operation in `ops`. `sink` is already read. An operation that nothing can run on
 * the device has tile -1 and a tile_name "none: why". num_tokens from 0 to INT32_MAX;
 * problem->max_tokens does not limit it. INVALID_ARGUMENT, OUT_OF_MEMORY.
 */
int32_t moe_explain(const struct moe_memory *memory, struct moe_config *config,
                    const struct moe_device *device, const struct moe_problem *problem,
                    uint64_t ops, int64_t num_tokens, const struct moe_explain_sink *sink,
                    struct moe_error *error);

#endif
