/* SPDX-License-Identifier: Apache-2.0 */
/* A host's translation unit in what C89 to C17 and C++98 to C++20 have in common; test_header.py
 * compiles it. */
#include "moe_plugin.h"

#include <string.h>

/* Every macro, as a host uses it. */
int use_macros(const struct moe_plugin_api *api);
int use_macros(const struct moe_plugin_api *api)
{
    struct moe_host host;
    struct moe_layer_args args;
    moe_plugin_init_fn *init = moe_plugin_init;
    MOE_INIT(host);
    MOE_INIT_CALL(args);
    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
    return MOE_HAS(api, moe_plugin_api, layer) && init(&host, NULL) == api &&
           args.call.struct_size == sizeof(args) && sizeof(MOE_PLUGIN_INIT_SYMBOL) > 1;
}

/* Every list: a table of names, as hosts make them, and a declaration of each id. */
#define NAME(constant, value, text) text,
static const char *const names[] = {
    MOE_STATUS_LIST(NAME) MOE_DTYPE_LIST(NAME) MOE_IDS_LIST(NAME) MOE_ACTIVATION_LIST(NAME)
        MOE_GATING_LIST(NAME) MOE_GROUP_SCORE_LIST(NAME) MOE_SCALING_LIST(NAME)
            MOE_SCALE_LAYOUT_LIST(NAME) MOE_FILTER_LIST(NAME) MOE_BACKEND_LIST(NAME)
                MOE_OP_LIST(NAME) MOE_LEVEL_LIST(NAME) MOE_DETERMINISM_LIST(NAME) 0};

const char *name_at(unsigned int index);
const char *name_at(unsigned int index)
{
    return index < sizeof(names) / sizeof(names[0]) ? names[index] : 0;
}
