/* SPDX-License-Identifier: Apache-2.0 */
/* Which routes are local (struct moe_op_filter). Any id is safe. */
#ifndef MOE_FILTER_CUH
#define MOE_FILTER_CUH

#include "ops.h"

/* Local expert of a route, -1 if it is filtered. */
static __device__ __forceinline__ int32_t moe_filter_local(const struct moe_op_filter &filter,
                                                           const void *ids, int32_t ids_dtype,
                                                           int64_t route)
{
    const int64_t id = ids_dtype == MOE_IDS_INT64 ? static_cast<const int64_t *>(ids)[route]
                                                  : static_cast<const int32_t *>(ids)[route];
    if (id < 0 || id >= filter.num_ids || id < filter.expert_begin || id >= filter.expert_end) {
        return -1;
    }
    const int64_t local =
        filter.expert_map != nullptr ? filter.expert_map[id] : id - filter.expert_begin;
    return local >= 0 && local < filter.num_experts ? static_cast<int32_t>(local) : -1;
}

#endif
