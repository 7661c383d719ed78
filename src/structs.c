/* SPDX-License-Identifier: Apache-2.0 */
#include "structs.h"

#include "status.h"

#include <string.h>

/* No struct of this ABI will ever be this large; a bigger struct_size is an uninitialized one. */
#define STRUCT_BYTES_LIMIT 65536u

int32_t moe_struct_read(void *own, size_t own_bytes, const void *caller, size_t introduction_bytes,
                        const char *name, struct moe_error *error)
{
    if (caller == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s is NULL", name);
    }
    uint32_t caller_bytes;
    memcpy(&caller_bytes, caller, sizeof(caller_bytes));
    if (caller_bytes < introduction_bytes || caller_bytes > STRUCT_BYTES_LIMIT) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s has struct_size %u; it must be %zu to %u (set it to sizeof)", name,
                             caller_bytes, introduction_bytes, STRUCT_BYTES_LIMIT);
    }
    const unsigned char *bytes = caller;
    for (size_t i = own_bytes; i < caller_bytes; i++) {
        if (bytes[i] != 0) {
            return moe_error_set(error, MOE_STATUS_UNKNOWN_FIELD,
                                 "%s: byte %zu is set, but this plugin knows %zu bytes (ABI "
                                 "%d.%d); leave newer members zero",
                                 name, i, own_bytes, MOE_ABI_MAJOR, MOE_ABI_MINOR);
        }
    }
    size_t num_bytes = caller_bytes < own_bytes ? caller_bytes : own_bytes;
    memset(own, 0, own_bytes);
    memcpy(own, caller, num_bytes);
    uint32_t own_size = (uint32_t)own_bytes;
    memcpy(own, &own_size, sizeof(own_size));
    return MOE_STATUS_OK;
}

int32_t moe_struct_write(void *caller, const void *own, size_t own_bytes, const char *name,
                         struct moe_error *error)
{
    if (caller == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s is NULL", name);
    }
    uint32_t caller_bytes;
    memcpy(&caller_bytes, caller, sizeof(caller_bytes));
    if (caller_bytes < sizeof(caller_bytes) || caller_bytes > STRUCT_BYTES_LIMIT) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s has struct_size %u; set it to sizeof", name, caller_bytes);
    }
    size_t num_bytes = caller_bytes < own_bytes ? caller_bytes : own_bytes;
    memcpy((unsigned char *)caller + sizeof(caller_bytes),
           (const unsigned char *)own + sizeof(caller_bytes), num_bytes - sizeof(caller_bytes));
    return MOE_STATUS_OK;
}
