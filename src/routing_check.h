/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments of gating and of the two sorts, checked and turned into what kernels take; the single
 * operations and route share this. `op` names the call in sentences. Overlaps are checked
 * afterwards, over one list of all tensors of the call.
 */
#ifndef MOE_ROUTING_CHECK_H
#define MOE_ROUTING_CHECK_H

#include "call_check.h"

#include <stdbool.h>

/* The numbers of the plan, of the call's tokens, and of `own`; resolves own->logits_stride. */
int32_t moe_routing_read_gating(const char *op, const struct moe_run *run,
                                struct moe_gating_args *own, struct moe_op_gating *out,
                                struct moe_error *error);
int32_t moe_routing_read_align(const char *op, const struct moe_run *run,
                               const struct moe_align_args *own, struct moe_op_align *out,
                               struct moe_error *error);
int32_t moe_routing_read_ep_preprocess(const char *op, const struct moe_run *run,
                                       const struct moe_ep_preprocess_args *own,
                                       struct moe_op_ep_preprocess *out, struct moe_error *error);

/* A logical-to-physical map is complete or absent. */
int32_t moe_routing_check_replicas(const char *op, const int32_t *physical_ids,
                                   const int32_t *num_replicas, int64_t max_replicas,
                                   struct moe_error *error);

/* The tensors that only this operation has: all but topk_ids, the filter's map, the workspace and
 * num_tokens_device. */
void moe_routing_list_gating(const struct moe_problem *problem, const struct moe_gating_args *own,
                             struct moe_call_tensors *tensors);
void moe_routing_list_align(const struct moe_problem *problem, const struct moe_align_args *own,
                            struct moe_call_tensors *tensors);
void moe_routing_list_ep_preprocess(const struct moe_problem *problem,
                                    const struct moe_ep_preprocess_args *own,
                                    struct moe_call_tensors *tensors);

/* topk_ids of a call with `num_tokens` tokens, and the map of a filter: elements of an overlap
 * check. */
struct moe_call_tensor moe_routing_ids(const struct moe_problem *problem, const void *topk_ids,
                                       int32_t ids_dtype, int64_t num_tokens);
struct moe_call_tensor moe_routing_map(const struct moe_problem *problem,
                                       const struct moe_route_filter *filter);

/* Is only the number of routes per expert wanted? */
bool moe_routing_is_counts_only(const struct moe_align_args *own);

/* Entries that routes padded per bucket take at most: every bucket that can have a route wastes
 * block_size - 1 of them, and whole blocks count. */
int64_t moe_routing_worst_padded(int64_t num_routes, int64_t num_buckets, int64_t block_size);

#endif
