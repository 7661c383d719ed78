/* SPDX-License-Identifier: Apache-2.0 */
/* A host built against an installed package: prints the name and version of the plugin at
 * PLUGIN. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "moe_plugin.h"

int main(void)
{
    void *so = dlopen(PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (so == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    moe_plugin_init_fn *init;
    *(void **)&init = dlsym(so, MOE_PLUGIN_INIT_SYMBOL);
    struct moe_error error;
    MOE_INIT(error);
    struct moe_host host;
    MOE_INIT(host);
    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
    const struct moe_plugin_api *api = init != NULL ? init(&host, &error) : NULL;
    if (api == NULL) {
        fprintf(stderr, "%s: %s\n", PLUGIN, error.message);
        return 1;
    }
    printf("%s %s\n", api->name, api->version);
    return dlclose(so) != 0;
}
