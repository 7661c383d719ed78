/* SPDX-License-Identifier: Apache-2.0 */
/* A whole host: opens the plugin and runs one small MoE layer, whose data is in tiny_layer.h.
 *   cc -I abi tests/host/minihost.c -ldl -lm -o minihost
 *   ./minihost build/lib/libmoe_plugin.so */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe_plugin.h"
#include "tiny_layer.h"

static struct moe_error error;

static void check(int is_ok)
{
    if (!is_ok) {
        fprintf(stderr, "%s\n", error.message[0] != '\0' ? error.message : dlerror());
        exit(1);
    }
}

static struct moe_operand matrix(const void *base, int rows, int columns)
{
    return (struct moe_operand){
        .base = base, .expert_stride = rows * columns, .row_stride = columns, .col_stride = 1};
}

int main(int argc, char **argv)
{
    struct moe_host host;
    struct moe_problem problem;
    struct moe_weights_desc desc;
    struct moe_plan_info info;
    struct moe_layer_args args;
    struct moe_context *context;
    struct moe_weights *weights;
    struct moe_plan *plan;
    MOE_INIT(error), MOE_INIT(host), MOE_INIT(problem), MOE_INIT(desc), MOE_INIT(info);
    MOE_INIT_CALL(args);
    fill_layer();

    void *so = dlopen(argc > 1 ? argv[1] : "libmoe_plugin.so", RTLD_NOW | RTLD_LOCAL);
    check(so != NULL);
    moe_plugin_init_fn *init = (moe_plugin_init_fn *)(uintptr_t)dlsym(so, MOE_PLUGIN_INIT_SYMBOL);
    check(init != NULL);

    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
    problem.num_experts = E;
    problem.top_k = K;
    problem.hidden = H;
    problem.inter = I;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.max_tokens = T;
    problem.tokens.dtype = problem.gate_up.dtype = problem.down.dtype = MOE_DTYPE_FP32;
    desc.gate = matrix(gate, I, H);
    desc.up = matrix(up, I, H);
    desc.down = matrix(down, H, I);

    const struct moe_plugin_api *api = init(&host, &error);
    check(api != NULL);
    check(api->context_create(&host, NULL, &context, &error) == MOE_STATUS_OK);
    check(api->weights_bind(context, &problem, &desc, NULL, 0, &weights, &error) == MOE_STATUS_OK);
    check(api->plan_create(context, &problem, NULL, &plan, &error) == MOE_STATUS_OK);
    check(api->plan_info(plan, &info, &error) == MOE_STATUS_OK);

    args.call.num_tokens = T;
    args.call.workspace = aligned_alloc(4096, (info.workspace_bytes / 4096 + 1) * 4096);
    args.call.workspace_bytes = info.workspace_bytes;
    args.weights = weights;
    args.tokens = tokens;
    args.topk_ids = ids;
    args.topk_weights = route_weights[0];
    args.output = output;
    check(api->layer(plan, &args, &error) == MOE_STATUS_OK);

    printf("%s %s: %.6f %.6f %.6f %.6f ...; largest error %.1e\n", api->name, api->version,
           output[0][0], output[0][1], output[0][2], output[0][3], largest_error());
    api->plan_destroy(plan);
    api->weights_destroy(weights);
    api->context_destroy(context);
    free(args.call.workspace);
    return dlclose(so) != 0 || !(largest_error() < 1e-5);
}
