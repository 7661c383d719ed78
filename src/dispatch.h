/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From (configuration, device, problem) to a table of token buckets, each with a tile per operation. A pure function of
 * its inputs: no device call, no environment, no time.
 */
#ifndef MOE_DISPATCH_H
#define MOE_DISPATCH_H

#include "config.h"
#include "tile.h"

/* What runs for one operation in one bucket. Strings belong to the snapshot, which the table keeps alive. */
struct moe_dispatch_choice {
    int32_t tile;     /* row of moe_tiles; -1: the operation is not part of the plan */
    int32_t source;   /* MOE_CHOICE_* */
    int32_t line;     /* of the bucket in `file` */
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
    int32_t num_buckets;             /* at least 1; together they cover 0..max_tokens of the problem */
    int32_t num_buckets_skipped;     /* by on_unavailable: next */
    const int64_t *max_tokens;       /* [num_buckets], ascending: what lookup scans */
    const struct moe_dispatch_bucket *buckets;
    struct moe_config *config;
    struct moe_memory memory;
};

/*
 * Make the table for the operations in `ops` (bits 1 << MOE_OP_*, row operations only). CONFIG when a matching rule names a
 * tile that this build or device lacks and on_unavailable is error; UNSUPPORTED when an operation has no tile at all
 * on this device; OUT_OF_MEMORY. Equal neighbours are merged.
 */
int32_t moe_dispatch_create(const struct moe_memory *memory, struct moe_config *config, const struct moe_device *device,
                            const struct moe_problem *problem, uint64_t ops, struct moe_dispatch **out,
                            struct moe_error *error);
void moe_dispatch_destroy(struct moe_dispatch *dispatch);

/* The bucket of `num_tokens` (0..max_tokens of the problem). No lock, no allocation, a few nanoseconds. */
static inline const struct moe_dispatch_bucket *moe_dispatch_find(const struct moe_dispatch *dispatch, int64_t num_tokens)
{
    int32_t bucket = 0;
    while (bucket + 1 < dispatch->num_buckets && num_tokens > dispatch->max_tokens[bucket]) {
        bucket++;
    }
    return &dispatch->buckets[bucket];
}

/* The table entry `explain` of the ABI: every rule in order of precedence with its verdict, then the choices. `sink` is already read. */
int32_t moe_explain(const struct moe_memory *memory, struct moe_config *config, const struct moe_device *device,
                    const struct moe_problem *problem, uint64_t ops, int64_t num_tokens, const struct moe_explain_sink *sink,
                    struct moe_error *error);

#endif
