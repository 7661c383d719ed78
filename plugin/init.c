/* SPDX-License-Identifier: Apache-2.0 */
/* The one exported symbol and the function table behind it. */
#include "calls.h"
#include "context.h"
#include "device.h"
#include "host.h"
#include "moe_build_info.h"
#include "moe_plugin.h"
#include "plan.h"
#include "self_test.h"
#include "status.h"
#include "weights.h"

static const struct moe_plugin_api api = {
    .struct_size = sizeof(struct moe_plugin_api),
    .abi_major = MOE_ABI_MAJOR,
    .abi_minor = MOE_ABI_MINOR,
    .layout_hash = MOE_ABI_LAYOUT_HASH,
    .name = "moe-plugin",
    .version = MOE_BUILD_VERSION,
    .source_id = MOE_BUILD_SOURCE_ID,
    .kernel_set_id = MOE_BUILD_KERNEL_SET_ID,
    .device_probe = moe_device_probe,
    .context_create = moe_context_create,
    .context_destroy = moe_context_destroy,
    .context_device = moe_context_device,
    .config_validate = moe_context_validate,
    .config_reload = moe_context_reload,
    .config_info = moe_context_config_info,
    .supports = moe_plan_supports,
    .plan_create = moe_plan_create,
    .plan_destroy = moe_plan_destroy,
    .plan_info = moe_plan_info,
    .plan_op_info = moe_plan_op_info,
    .explain = moe_plan_explain,
    .weights_query = moe_weights_query,
    .weights_prepare = moe_weights_prepare,
    .weights_bind = moe_weights_bind,
    .weights_destroy = moe_weights_destroy,
    .layer = moe_calls_layer,
    .experts = moe_calls_experts,
    .router = moe_calls_router,
    .gating = moe_calls_gating,
    .align_block_size = moe_calls_align,
    .ep_preprocess = moe_calls_ep_preprocess,
    .pre_reorder = moe_calls_pre_reorder,
    .quantize = moe_calls_quantize,
    .activation = moe_calls_activation,
    .grouped_gemm = moe_calls_grouped_gemm,
    .post_reorder = moe_calls_post_reorder,
    .sum_reduce = moe_calls_sum_reduce,
    .route = moe_calls_route,
    .align_capacity = moe_calls_align_capacity,
    .status_name = moe_status_name,
    .status_text = moe_status_text,
    .tile_info = moe_device_tile_info,
    .backend_info = moe_device_backend_info,
    .stats = moe_context_stats,
    .self_test = moe_self_test,
};

__attribute__((visibility("default"))) const struct moe_plugin_api *moe_plugin_init(
    const struct moe_host *host, struct moe_error *error)
{
    struct moe_host own;
    return moe_host_read(&own, host, "moe_plugin_init", error) == MOE_STATUS_OK ? &api : NULL;
}
