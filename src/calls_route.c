/* SPDX-License-Identifier: Apache-2.0 */
/* The run call route: gating and both sorts in one call. */
#include "call_check.h"
#include "calls.h"
#include "status.h"
#include "structs.h"

int32_t moe_calls_route(const struct moe_plan *plan, const struct moe_route_args *args,
                        struct moe_error *error)
{
    struct moe_route_args own;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_ROUTE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_route_args, error));
    return moe_error_set(error, MOE_STATUS_UNSUPPORTED, "route: the %s backend has no such kernel",
                         plan->backend->name);
}
