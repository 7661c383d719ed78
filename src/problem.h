/* SPDX-License-Identifier: Apache-2.0 */
/* A host's struct moe_problem: defaults resolved, checked for the operations that a plan is made
 * for. */
#ifndef MOE_PROBLEM_H
#define MOE_PROBLEM_H

#include "moe_plugin.h"

#include <stdbool.h>

#define MOE_OP_BIT(op) (UINT64_C(1) << (op))

/* Dimensions beyond this are mistakes, and products of two of them still fit 64 bits. */
#define MOE_DIMENSION_LIMIT (1 << 24)

/*
 * Copy the caller's problem and resolve what zero stands for: num_experts_global,
 * num_physical_experts, output, logits and intermediate dtypes, scaling 1, one group.
 * INVALID_ARGUMENT, UNKNOWN_FIELD.
 */
int32_t moe_problem_read(struct moe_problem *own, const struct moe_problem *caller,
                         struct moe_error *error);

/*
 * The operations that a plan for `ops` of moe_plan_options consists of: 0 becomes all that the
 * problem allows, layer and experts bring in the operations that they run. INVALID_ARGUMENT for
 * unknown bits.
 */
int32_t moe_problem_expand_ops(const struct moe_problem *problem, uint64_t ops, uint64_t *expanded,
                               struct moe_error *error);

/* Check every number that the operations in `ops` (expanded) use. `problem` is a read one.
 * INVALID_ARGUMENT with a sentence. */
int32_t moe_problem_check(const struct moe_problem *problem, uint64_t ops, struct moe_error *error);

/* P: operations behind gating take ids below this. */
int32_t moe_problem_num_ids(const struct moe_problem *problem);

/* Slots of a token behind gating: top_k and the appended experts; at least 1, so that rows can be
 * counted in tokens. */
int32_t moe_problem_num_slots(const struct moe_problem *problem);

/* Largest number of rows that grouped_gemm, activation and experts take with this problem. */
int64_t moe_problem_max_rows(const struct moe_problem *problem);

/* Can one set of bound weights serve both? Experts, dimensions, recipes and biases are equal. */
bool moe_problem_same_weights(const struct moe_problem *a, const struct moe_problem *b);

/* Bytes of one element; 0 for types that are not whole bytes or not known. */
int64_t moe_dtype_bytes(int32_t dtype);
const char *moe_dtype_name(int32_t dtype);
const char *moe_activation_name(int32_t activation);
const char *moe_gating_name(int32_t gating);

#endif
