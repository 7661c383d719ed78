/* SPDX-License-Identifier: Apache-2.0 */
/* Known answers: small layers of small integers, whose results are exact in every type and can be
 * computed without rounding; route and quantize by tables. */
#ifndef MOE_SELF_TEST_H
#define MOE_SELF_TEST_H

#include "context.h"

/* The table entry `self_test`. */
int32_t moe_self_test(struct moe_context *context, struct moe_error *error);

/* The tables (self_test_ops.c). SELF_TEST names the first array that is wrong. */
int32_t moe_self_test_ops(struct moe_context *context, struct moe_error *error);

#endif
