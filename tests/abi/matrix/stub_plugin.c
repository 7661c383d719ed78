/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plugin with one operation, built from either header of the matrix; structs are read by the
 * plugin's own src/structs.c.
 */
#include "status.h"
#include "structs.h"
#include "stub_versions.h"

static int32_t sum_reduce(const struct moe_plan *plan, const struct moe_sum_reduce_args *args,
                          struct moe_error *error)
{
    struct moe_sum_reduce_args own;
    (void)plan;
    MOE_TRY(moe_struct_read(&own, sizeof own, args,
                            STUB_BYTES_UP_TO(moe_sum_reduce_args, output_stride),
                            "struct moe_sum_reduce_args", error));
    const float *input = own.input;
    float *output = own.output;
    for (int64_t token = 0; token < own.call.num_tokens; ++token) {
        output[token] = input[2 * token] + input[2 * token + 1];
#ifdef MATRIX_NEXT
        output[token] = own.next_mode == 1 ? -output[token] : output[token];
#endif
    }
    return MOE_STATUS_OK;
}

#ifdef MATRIX_NEXT
static int32_t (*service)(int32_t value);

static int32_t next_call(int32_t value)
{
    return service != NULL ? service(value) : value + 1;
}
#endif

static const struct moe_plugin_api api = {
    .struct_size = sizeof api,
    .abi_major = MOE_ABI_MAJOR,
    .abi_minor = MOE_ABI_MINOR,
    .layout_hash = MOE_ABI_LAYOUT_HASH,
    .name = "stub",
    .sum_reduce = sum_reduce,
#ifdef MATRIX_NEXT
    .next_call = next_call,
#endif
};

__attribute__((visibility("default"))) const struct moe_plugin_api *moe_plugin_init(
    const struct moe_host *host, struct moe_error *error)
{
    struct moe_host own;
    if (!STUB_IS_COMPATIBLE(host)) {
        moe_error_set(error, MOE_STATUS_VERSION, "the host speaks ABI %u.%u, this plugin %d.%d",
                      host->abi_major, host->abi_minor, MOE_ABI_MAJOR, MOE_ABI_MINOR);
        return NULL;
    }
    if (moe_struct_read(&own, sizeof own, host, STUB_BYTES_UP_TO(moe_host, memory_free),
                        "struct moe_host", error) != MOE_STATUS_OK) {
        return NULL;
    }
#ifdef MATRIX_NEXT
    service = own.next_service;
#endif
    return &api;
}
