/* SPDX-License-Identifier: Apache-2.0 */
/* Ids of routes as the host wrote them, and which local expert they mean. */
#ifndef MOE_CPU_ROUTE_FILTER_H
#define MOE_CPU_ROUTE_FILTER_H

#include "ops.h"

#include <stdint.h>

/* Id number `idx` of an array of MOE_IDS_INT32 or _INT64. */
static inline int64_t moe_route_filter_load_id(const void *ids, int32_t ids_dtype, int64_t idx)
{
    return ids_dtype == MOE_IDS_INT64 ? ((const int64_t *)ids)[idx] : ((const int32_t *)ids)[idx];
}

/* Local expert (0 .. filter->num_experts - 1) of any id, or -1 if its route is filtered. */
static inline int32_t moe_route_filter_local_expert(const struct moe_op_filter *filter, int64_t id)
{
    if (id < 0 || id >= filter->num_ids || id < filter->expert_begin || id >= filter->expert_end) {
        return -1;
    }
    const int64_t local =
        filter->expert_map != NULL ? filter->expert_map[id] : id - filter->expert_begin;
    return local >= 0 && local < filter->num_experts ? (int32_t)local : -1;
}

#endif
