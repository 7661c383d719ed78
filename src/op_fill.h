/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of an operation's arguments follows from the problem alone. Calls and the layer add
 * pointers, strides and counts of tokens; scratch is sized from what is filled here.
 */
#ifndef MOE_OP_FILL_H
#define MOE_OP_FILL_H

#include "moe_plugin.h"
#include "ops.h"

/* Each zeroes `out` first. `problem` is read and checked. */
void moe_op_fill_router(const struct moe_problem *problem, struct moe_op_router *out);

/* Without a gating rule, too: its numbers are then not used. */
void moe_op_fill_gating(const struct moe_problem *problem, struct moe_op_gating *out);

/* A filter that keeps every id below P as the local expert of its number. */
void moe_op_fill_filter(const struct moe_problem *problem, struct moe_op_filter *out);

/* Blocks of one route, segments without padding. */
void moe_op_fill_align(const struct moe_problem *problem, struct moe_op_align *out);
void moe_op_fill_ep_preprocess(const struct moe_problem *problem, struct moe_op_ep_preprocess *out);

#endif
