/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls of the function table: every argument checked, then one backend call. moe_plugin.h
 * documents them. */
#ifndef MOE_CALLS_H
#define MOE_CALLS_H

#include "plan.h"

int32_t moe_calls_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                        struct moe_error *error);
int32_t moe_calls_experts(const struct moe_plan *plan, const struct moe_experts_args *args,
                          struct moe_error *error);
int32_t moe_calls_router(const struct moe_plan *plan, const struct moe_router_args *args,
                         struct moe_error *error);
int32_t moe_calls_gating(const struct moe_plan *plan, const struct moe_gating_args *args,
                         struct moe_error *error);
int32_t moe_calls_align(const struct moe_plan *plan, const struct moe_align_args *args,
                        struct moe_error *error);
int32_t moe_calls_ep_preprocess(const struct moe_plan *plan,
                                const struct moe_ep_preprocess_args *args, struct moe_error *error);
int32_t moe_calls_pre_reorder(const struct moe_plan *plan, const struct moe_pre_reorder_args *args,
                              struct moe_error *error);
int32_t moe_calls_quantize(const struct moe_plan *plan, const struct moe_quantize_args *args,
                           struct moe_error *error);
int32_t moe_calls_activation(const struct moe_plan *plan, const struct moe_activation_args *args,
                             struct moe_error *error);
int32_t moe_calls_grouped_gemm(const struct moe_plan *plan,
                               const struct moe_grouped_gemm_args *args, struct moe_error *error);
int32_t moe_calls_post_reorder(const struct moe_plan *plan,
                               const struct moe_post_reorder_args *args, struct moe_error *error);
int32_t moe_calls_sum_reduce(const struct moe_plan *plan, const struct moe_sum_reduce_args *args,
                             struct moe_error *error);
int32_t moe_calls_route(const struct moe_plan *plan, const struct moe_route_args *args,
                        struct moe_error *error);
int32_t moe_calls_align_capacity(int64_t num_routes, int32_t num_experts, int32_t block_size,
                                 int32_t filter_mode, int64_t *sorted_capacity,
                                 int64_t *expert_capacity, struct moe_error *error);

#endif
