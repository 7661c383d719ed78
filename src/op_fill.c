/* SPDX-License-Identifier: Apache-2.0 */
#include "op_fill.h"

#include "problem.h"

#include <string.h>

void moe_op_fill_router(const struct moe_problem *problem, struct moe_op_router *out)
{
    memset(out, 0, sizeof(*out));
    out->num_experts = problem->num_experts_global;
    out->hidden = problem->hidden;
    out->token_dtype = problem->tokens.dtype;
    out->logits_dtype = problem->logits_dtype;
}

void moe_op_fill_gating(const struct moe_problem *problem, struct moe_op_gating *out)
{
    memset(out, 0, sizeof(*out));
    out->num_experts = problem->num_experts_global;
    out->top_k = problem->top_k;
    out->rule = problem->gating;
    out->renormalize = (problem->flags & MOE_PROBLEM_RENORMALIZE) != 0;
    out->num_groups = problem->num_groups;
    out->topk_groups = problem->topk_groups;
    out->group_score = problem->group_score;
    out->logits_dtype = problem->logits_dtype;
    out->router_jitter = problem->router_jitter;
    out->scaling = problem->scaling_on == MOE_SCALING_WEIGHTS ? problem->routed_scaling : 1.0f;
    out->num_appended = problem->num_appended_experts;
    out->appended_weight = problem->appended_weight;
    out->first_appended_id = problem->num_physical_experts;
}

void moe_op_fill_filter(const struct moe_problem *problem, struct moe_op_filter *out)
{
    memset(out, 0, sizeof(*out));
    out->num_ids = moe_problem_num_ids(problem);
    out->expert_end = out->num_ids;
    out->num_experts = problem->num_experts;
}

void moe_op_fill_align(const struct moe_problem *problem, struct moe_op_align *out)
{
    memset(out, 0, sizeof(*out));
    moe_op_fill_filter(problem, &out->filter);
    out->top_k = moe_problem_num_slots(problem);
    out->block_size = 1;
}

void moe_op_fill_ep_preprocess(const struct moe_problem *problem, struct moe_op_ep_preprocess *out)
{
    memset(out, 0, sizeof(*out));
    moe_op_fill_filter(problem, &out->filter);
    out->top_k = moe_problem_num_slots(problem);
    out->segment_alignment = 1;
}
