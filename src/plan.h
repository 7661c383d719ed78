/* SPDX-License-Identifier: Apache-2.0 */
/* Plans: a problem, a tile per operation and token bucket, and the sizes that follow. Immutable. */
#ifndef MOE_PLAN_H
#define MOE_PLAN_H

#include "backend.h"
#include "context.h"
#include "problem.h"

struct moe_plan {
    struct moe_memory memory;
    struct moe_context *context;
    const struct moe_backend *backend;
    struct moe_problem problem; /* read and checked */
    uint64_t ops;               /* expanded */
    struct moe_dispatch *dispatch;
    int64_t max_rows;
    int64_t chunk_tokens;     /* tokens per pass of the layer */
    uint64_t workspace_bytes; /* the largest of all operations */
    uint64_t config_generation;
};

int32_t moe_plan_create(struct moe_context *context, const struct moe_problem *problem,
                        const struct moe_plan_options *options, struct moe_plan **out,
                        struct moe_error *error);
void moe_plan_destroy(struct moe_plan *plan);
int32_t moe_plan_info(const struct moe_plan *plan, struct moe_plan_info *out,
                      struct moe_error *error);
int32_t moe_plan_op_info(const struct moe_plan *plan, int32_t op, int64_t num_tokens,
                         struct moe_choice *out, struct moe_error *error);
int32_t moe_plan_supports(const struct moe_device *device, const struct moe_problem *problem,
                          uint64_t ops, struct moe_error *error);
int32_t moe_plan_explain(const struct moe_context *context, const struct moe_device *device,
                         const struct moe_problem *problem, int64_t num_tokens,
                         const struct moe_explain_sink *sink, struct moe_error *error);

/* Tokens that one pass of a call with `num_tokens` takes: at most the chunk for layer and
 * experts. */
int64_t moe_plan_pass_tokens(const struct moe_plan *plan, int32_t op, int64_t num_tokens);

/* Workspace that a call of `op` with exactly `num_tokens` tokens needs. */
uint64_t moe_plan_call_workspace(const struct moe_plan *plan, int32_t op, int64_t num_tokens);

/* Workspace of one operation for up to `num_tokens` tokens: the largest over the buckets that those
 * can fall in. */
uint64_t moe_plan_op_workspace(const struct moe_plan *plan, int32_t op, int64_t num_tokens);

#endif
