/* SPDX-License-Identifier: Apache-2.0 */
/* A whole host: opens the plugin and runs one MoE layer, which tiny_layer.h describes and checks.
 *   cc -I abi tests/host/minihost.c -ldl -lm -o host && ./host build/lib/libmoe_plugin.so */
#include <dlfcn.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>

#include "tiny_layer.h"

#define CHECK(ok) ((ok) ? (void)0 : errx(1, "%s", *error.message ? error.message : dlerror()))
static struct moe_error error = {.struct_size = sizeof error};

int main(int argc, char **argv)
{
    struct moe_host host = {.struct_size = sizeof host,
                            .abi_major = MOE_ABI_MAJOR,
                            .abi_minor = MOE_ABI_MINOR,
                            .layout_hash = MOE_ABI_LAYOUT_HASH};
    struct moe_plan_info info = {.struct_size = sizeof info};
    struct moe_context *context;
    struct moe_weights *weights;
    struct moe_plan *plan;
    fill_layer();
    void *so = dlopen(argc > 1 ? argv[1] : "libmoe_plugin.so", RTLD_NOW | RTLD_LOCAL);
    CHECK(so != NULL);
    moe_plugin_init_fn *init = (moe_plugin_init_fn *)(uintptr_t)dlsym(so, MOE_PLUGIN_INIT_SYMBOL);
    CHECK(init != NULL);
    const struct moe_plugin_api *api = init(&host, &error);
    CHECK(api != NULL);
    CHECK(api->context_create(&host, NULL, &context, &error) == MOE_STATUS_OK);
    CHECK(api->weights_bind(context, &problem, &desc, NULL, 0, &weights, &error) == MOE_STATUS_OK);
    CHECK(api->plan_create(context, &problem, NULL, &plan, &error) == MOE_STATUS_OK);
    CHECK(api->plan_info(plan, &info, &error) == MOE_STATUS_OK);
    args.weights = weights;
    args.call.workspace_bytes = info.workspace_bytes;
    args.call.workspace = aligned_alloc(info.workspace_alignment, info.workspace_bytes);
    CHECK(api->layer(plan, &args, &error) == MOE_STATUS_OK);
    printf("%s %s: largest error %.1e\n", api->name, api->version, largest_error());
    api->plan_destroy(plan);
    api->weights_destroy(weights);
    api->context_destroy(context);
    free(args.call.workspace);
    return dlclose(so) != 0 || !(largest_error() < 1e-5);
}
