/* SPDX-License-Identifier: Apache-2.0 */
#include "host_report.h"

#include "abi_names.h"

#include <inttypes.h>
#include <stdarg.h>

/* Appends to a text of MOE_HOST_REPORT_TEXT_BYTES; what does not fit is cut. */
__attribute__((format(printf, 3, 4))) static void append(char *text, size_t *length,
                                                         const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const int written =
        vsnprintf(text + *length, MOE_HOST_REPORT_TEXT_BYTES - *length, format, values);
    va_end(values);
    if (written > 0) {
        *length += (size_t)written;
        *length = *length < MOE_HOST_REPORT_TEXT_BYTES ? *length : MOE_HOST_REPORT_TEXT_BYTES - 1;
    }
}

const char *moe_host_report_format_device(const struct moe_device *device, char *text)
{
    size_t length = 0;
    append(text, &length, "%s", moe_abi_backend_name(device->backend));
    if (device->backend == MOE_BACKEND_CUDA) {
        append(text, &length, " sm_%" PRId32 ", %" PRId32 " SMs, %" PRId32 " KiB shared memory",
               device->sm, device->num_sms, device->smem_bytes / 1024);
    } else {
        append(text, &length, " %s, %" PRId32 " thread%s", device->isa, device->num_sms,
               device->num_sms == 1 ? "" : "s");
    }
    if (device->name[0] != '\0') {
        append(text, &length, ", %s", device->name);
    }
    return text;
}

/* The type that rows meet the weights in. */
static int32_t get_activations(const struct moe_problem *problem)
{
    return problem->intermediate.dtype != 0 ? problem->intermediate.dtype : problem->tokens.dtype;
}

const char *moe_host_report_format_sizes(const struct moe_problem *problem, char *text)
{
    size_t length = 0;
    append(text, &length,
           "%" PRId32 " experts, top %" PRId32 ", hidden %" PRId32 ", inter %" PRId32,
           problem->num_experts, problem->top_k, problem->hidden, problem->inter);
    if (problem->shared_inter > 0) {
        append(text, &length, ", shared inter %" PRId32, problem->shared_inter);
    }
    append(text, &length, ", %s", moe_abi_dtype_name(problem->gate_up.dtype));
    if (problem->gate_up.dtype == MOE_DTYPE_FP8_E4M3) {
        append(text, &length, ", activations %s", moe_abi_dtype_name(get_activations(problem)));
    }
    return text;
}

const char *moe_host_report_format_rules(const struct moe_problem *problem, char *text)
{
    static const struct {
        uint32_t flag;
        const char *text;
    } flags[] = {
        {MOE_PROBLEM_RENORMALIZE, "renormalized"},
        {MOE_PROBLEM_CORRECTION_BIAS, "correction bias"},
        {MOE_PROBLEM_ROUTER_BIAS, "router bias"},
        {MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT, "weight on the input"},
        {MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS, "expert biases"},
        {MOE_PROBLEM_UNGATED, "ungated"},
        {MOE_PROBLEM_SHARED_SIGMOID, "shared expert behind a sigmoid"},
    };
    size_t length = 0;
    append(text, &length, "%s gating", moe_abi_gating_name(problem->gating));
    if (problem->num_groups > 1) {
        append(text, &length, ", %" PRId32 " of %" PRId32 " groups by %s", problem->topk_groups,
               problem->num_groups, moe_abi_group_score_name(problem->group_score));
    }
    if (problem->scaling_on != MOE_SCALING_NONE) {
        append(text, &length, ", scaled by %g (%s)", (double)problem->routed_scaling,
               moe_abi_scaling_name(problem->scaling_on));
    }
    append(text, &length, ", %s", moe_abi_activation_name(problem->activation));
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; ++i) {
        if ((problem->flags & flags[i].flag) != 0) {
            append(text, &length, ", %s", flags[i].text);
        }
    }
    return text;
}

const char *moe_host_report_format_bytes(uint64_t bytes, char *text)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double amount = (double)bytes;
    size_t unit = 0;
    size_t length = 0;
    while (amount >= 1024.0 && unit + 1 < sizeof units / sizeof units[0]) {
        amount /= 1024.0;
        unit += 1;
    }
    append(text, &length, "%.*f %s", unit > 0 ? 1 : 0, amount, units[unit]);
    return text;
}

const char *moe_host_report_format_source(int is_rule, const char *rule, const char *file,
                                          int32_t line, char *text)
{
    if (is_rule) {
        snprintf(text, MOE_HOST_REPORT_SOURCE_BYTES, "rule \"%s\" (%s:%" PRId32 ")", rule, file,
                 line);
    } else {
        snprintf(text, MOE_HOST_REPORT_SOURCE_BYTES, "%s", rule);
    }
    return text;
}

void moe_host_report_put_plugin(struct moe_cli_json *json, const struct moe_plugin_host *host)
{
    const struct moe_plugin_api *api = host->api;
    moe_cli_json_begin_object(json, "plugin");
    moe_cli_json_put_text(json, "path", host->path);
    moe_cli_json_put_text(json, "name", api->name);
    moe_cli_json_put_text(json, "version", api->version);
    moe_cli_json_put_text(json, "source_id", api->source_id);
    moe_cli_json_put_text(json, "kernel_set_id", api->kernel_set_id);
    moe_cli_json_put_int(json, "abi_major", api->abi_major);
    moe_cli_json_put_int(json, "abi_minor", api->abi_minor);
    moe_cli_json_put_hash(json, "layout_hash", api->layout_hash);
    moe_cli_json_end_object(json);
}

void moe_host_report_put_device(struct moe_cli_json *json, const char *key,
                                const struct moe_device *device)
{
    moe_cli_json_begin_object(json, key);
    moe_cli_json_put_text(json, "backend", moe_abi_backend_name(device->backend));
    moe_cli_json_put_text(json, "name", device->name);
    if (device->backend == MOE_BACKEND_CUDA) {
        moe_cli_json_put_int(json, "ordinal", device->ordinal);
        moe_cli_json_put_int(json, "sm", device->sm);
        moe_cli_json_put_int(json, "sm_count", device->num_sms);
        moe_cli_json_put_int(json, "smem_bytes", device->smem_bytes);
        moe_cli_json_put_int(json, "memory_bytes", device->memory_bytes);
        moe_cli_json_put_int(json, "driver_version", device->driver_version);
    } else {
        moe_cli_json_put_text(json, "isa", device->isa);
        moe_cli_json_put_int(json, "num_threads", device->num_sms);
    }
    moe_cli_json_put_int(json, "l2_bytes", device->l2_bytes);
    moe_cli_json_end_object(json);
}

void moe_host_report_put_problem(struct moe_cli_json *json, const struct moe_problem *problem)
{
    const uint32_t flags = problem->flags;
    moe_cli_json_begin_object(json, "problem");
    moe_cli_json_put_int(json, "num_experts", problem->num_experts);
    moe_cli_json_put_int(json, "top_k", problem->top_k);
    moe_cli_json_put_int(json, "hidden", problem->hidden);
    moe_cli_json_put_int(json, "inter", problem->inter);
    moe_cli_json_put_int(json, "shared_inter", problem->shared_inter);
    moe_cli_json_put_text(json, "dtype", moe_abi_dtype_name(problem->gate_up.dtype));
    moe_cli_json_put_text(json, "activations", moe_abi_dtype_name(get_activations(problem)));
    moe_cli_json_put_text(json, "gating", moe_abi_gating_name(problem->gating));
    moe_cli_json_put_int(json, "num_groups", problem->num_groups);
    moe_cli_json_put_int(json, "topk_groups", problem->topk_groups);
    moe_cli_json_put_text(json, "group_score", moe_abi_group_score_name(problem->group_score));
    moe_cli_json_put_text(json, "activation", moe_abi_activation_name(problem->activation));
    moe_cli_json_put_number(json, "act_alpha", (double)problem->act_alpha);
    moe_cli_json_put_number(json, "act_limit", (double)problem->act_limit);
    moe_cli_json_put_number(json, "routed_scaling", (double)problem->routed_scaling);
    moe_cli_json_put_text(json, "scaling_on", moe_abi_scaling_name(problem->scaling_on));
    moe_cli_json_put_bool(json, "ungated", (flags & MOE_PROBLEM_UNGATED) != 0);
    moe_cli_json_put_bool(json, "renormalize", (flags & MOE_PROBLEM_RENORMALIZE) != 0);
    moe_cli_json_put_bool(json, "router_weight_on_input",
                          (flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0);
    moe_cli_json_put_bool(json, "gate_up_bias", (flags & MOE_PROBLEM_GATE_UP_BIAS) != 0);
    moe_cli_json_put_bool(json, "down_bias", (flags & MOE_PROBLEM_DOWN_BIAS) != 0);
    moe_cli_json_put_bool(json, "router_bias", (flags & MOE_PROBLEM_ROUTER_BIAS) != 0);
    moe_cli_json_put_bool(json, "correction_bias", (flags & MOE_PROBLEM_CORRECTION_BIAS) != 0);
    moe_cli_json_put_bool(json, "shared_sigmoid", (flags & MOE_PROBLEM_SHARED_SIGMOID) != 0);
    moe_cli_json_end_object(json);
}
