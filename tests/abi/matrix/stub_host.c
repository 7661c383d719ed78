/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stub_host PLUGIN: what a host of either header sees of a plugin, a line per fact. With a second
 * argument it also sets its own header's new member of moe_host.
 */
#include "stub_versions.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#ifdef MATRIX_NEXT
static int32_t double_it(int32_t value)
{
    return 2 * value;
}
#endif

static void call_sum_reduce(const struct moe_plugin_api *api)
{
    static const float input[] = {1.0f, 2.0f, 3.0f, 4.0f};
    float output[2] = {0.0f, 0.0f};
    struct moe_sum_reduce_args args;
    struct moe_error error;
    MOE_INIT_CALL(args);
    MOE_INIT(error);
    args.call.num_tokens = 2;
    args.input = input;
    args.output = output;
    int32_t status = api->sum_reduce(NULL, &args, &error);
    printf("sum_reduce: status %d, %g %g\n", status, (double)output[0], (double)output[1]);
#ifdef MATRIX_NEXT
    args.next_mode = 1;
    output[0] = output[1] = 0.0f;
    status = api->sum_reduce(NULL, &args, &error);
    printf("sum_reduce with next_mode: status %d, %g %g\n", status, (double)output[0],
           (double)output[1]);
#endif
}

int main(int argc, char **argv)
{
    struct moe_host host;
    struct moe_error error;
    moe_plugin_init_fn *init = NULL;
    void *image = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    void *symbol = image != NULL ? dlsym(image, MOE_PLUGIN_INIT_SYMBOL) : NULL;
    if (symbol == NULL) {
        fprintf(stderr, "usage: stub_host PLUGIN [next_service]\n");
        return 2;
    }
    memcpy(&init, &symbol, sizeof init);
    MOE_INIT(host);
    MOE_INIT(error);
    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
#ifdef MATRIX_NEXT
    host.next_service = argc > 2 ? double_it : NULL;
#endif
    const struct moe_plugin_api *api = init(&host, &error);
    if (api == NULL) {
        printf("refused by the plugin: status %d: %s\n", error.status, error.message);
        return 0;
    }
    if (!STUB_IS_COMPATIBLE(api)) {
        printf("refused by the host: the plugin speaks ABI %u.%u, this host %d.%d\n",
               api->abi_major, api->abi_minor, MOE_ABI_MAJOR, MOE_ABI_MINOR);
        return 0;
    }
    call_sum_reduce(api);
#ifdef MATRIX_NEXT
    if (MOE_HAS(api, moe_plugin_api, next_call)) {
        printf("next_call: %d\n", api->next_call(20));
    } else {
        printf("next_call: not offered\n");
    }
#endif
    return 0;
}
