/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include "moe_build_info.h"
#include "status.h"
#include "structs.h"

#include <stddef.h>

int32_t moe_host_read(struct moe_host *own, const struct moe_host *host, const char *who,
                      struct moe_error *error)
{
    /* Versions stand in a prefix of moe_host that never changes, so they are compared before its
     * size is. */
    if (host == NULL || host->struct_size < offsetof(struct moe_host, self)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: struct moe_host is NULL or its struct_size is not set", who);
    }
    if (host->abi_major != MOE_ABI_MAJOR || host->abi_minor != MOE_ABI_MINOR) {
        return moe_error_set(error, MOE_STATUS_VERSION,
                             "%s: the host was built for ABI %u.%u, this plugin (%s) for %d.%d; "
                             "while the major is 0 they must be equal",
                             who, host->abi_major, host->abi_minor, MOE_BUILD_VERSION,
                             MOE_ABI_MAJOR, MOE_ABI_MINOR);
    }
    if (host->layout_hash != MOE_ABI_LAYOUT_HASH) {
        return moe_error_set(error, MOE_STATUS_VERSION,
                             "%s: the host's header has layout %016llx, this plugin's %016llx, "
                             "both called ABI %d.%d; build both from the same header",
                             who, (unsigned long long)host->layout_hash,
                             (unsigned long long)MOE_ABI_LAYOUT_HASH, MOE_ABI_MAJOR, MOE_ABI_MINOR);
    }
    MOE_TRY(MOE_STRUCT_READ(own, host, moe_host, error));
    if (own->flags != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: host.flags is 0x%x; no flag is defined", who, own->flags);
    }
    if ((own->memory_alloc == NULL) != (own->memory_free == NULL)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: host: set both memory_alloc and memory_free, or neither", who);
    }
    return MOE_STATUS_OK;
}
