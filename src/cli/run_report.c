/* SPDX-License-Identifier: Apache-2.0 */
#include "run_report.h"

#include "abi_names.h"
#include "host_report.h"
#include "terminal.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { label_width = 11 };

struct moe_run_output moe_run_output_measure(const float *output, int64_t num_elements)
{
    struct moe_run_output measured = {.digest = UINT64_C(0xcbf29ce484222325)};
    double sum = 0.0;
    for (int64_t i = 0; i < num_elements; ++i) {
        unsigned char bytes[sizeof(float)];
        memcpy(bytes, &output[i], sizeof bytes);
        for (size_t j = 0; j < sizeof bytes; ++j) {
            measured.digest = (measured.digest ^ bytes[j]) * UINT64_C(0x100000001b3);
        }
        measured.num_not_finite += isfinite(output[i]) ? 0 : 1;
        sum += (double)output[i] * (double)output[i];
    }
    measured.rms = num_elements > 0 ? sqrt(sum / (double)num_elements) : 0.0;
    return measured;
}

static void print_label(FILE *out, const char *label)
{
    fprintf(out, "%s%-*s%s", moe_terminal_style(out, MOE_TERMINAL_BOLD), label_width, label,
            moe_terminal_style(out, MOE_TERMINAL_PLAIN));
}

static void print_what_ran(const struct moe_run_report *report, FILE *out)
{
    const struct moe_checkpoint_layer *layer = report->request->layer;
    const struct moe_plugin_api *api = report->host->api;
    const struct moe_rank_split *split = &report->request->split;
    char text[MOE_HOST_REPORT_TEXT_BYTES];
    print_label(out, "model");
    fprintf(out, "%s: %s, layer %" PRId64 " of %" PRId64 "\n", report->model, layer->model_type,
            layer->layer_idx, layer->num_layers);
    print_label(out, "layer");
    fprintf(out, "%s\n", moe_host_report_format_sizes(&layer->problem, text));
    print_label(out, "");
    fprintf(out, "%s\n", moe_host_report_format_rules(&layer->problem, text));
    print_label(out, "weights");
    fprintf(out, "%s, %s\n", moe_host_report_format_bytes(layer->weight_bytes, text),
            report->host->device.backend == MOE_BACKEND_CUDA
                ? "in the GPU's memory"
                : "where the checkpoint's files are mapped");
    print_label(out, "tokens");
    if (report->golden != NULL) {
        fprintf(out, "%" PRId64 " from %s\n", report->request->num_tokens, report->golden);
    } else {
        fprintf(out, "%" PRId64 " random ones, seed %" PRIu64 "\n", report->request->num_tokens,
                report->seed);
    }
    if (split->tp * split->ep > 1) {
        print_label(out, "ranks");
        fprintf(out, "%" PRId64 " (tp %" PRId64 ", ep %" PRId64 "), one after the other\n",
                split->tp * split->ep, split->tp, split->ep);
    }
    print_label(out, "plugin");
    fprintf(out, "%s %s, source %s, kernels %s\n", api->name, api->version, api->source_id,
            api->kernel_set_id);
    print_label(out, "");
    fprintf(out, "%s\n", report->host->path);
    print_label(out, "device");
    fprintf(out, "%s\n", moe_host_report_format_device(&report->host->device, text));
}

static void print_choices(const struct moe_layer_run_result *result, FILE *out)
{
    int tile_width = 0;
    for (int i = 0; i < result->num_choices; ++i) {
        const int width = snprintf(NULL, 0, "%s", result->choices[i].tile);
        tile_width = width > tile_width ? width : tile_width;
    }
    fprintf(out, "\n%s%-18s%-*s  chosen by%s\n", moe_terminal_style(out, MOE_TERMINAL_BOLD),
            "operation", tile_width, "tile", moe_terminal_style(out, MOE_TERMINAL_PLAIN));
    for (int i = 0; i < result->num_choices; ++i) {
        const struct moe_layer_run_choice *choice = &result->choices[i];
        char source[MOE_HOST_REPORT_SOURCE_BYTES];
        fprintf(out, "%-18s%-*s  %s\n", moe_abi_op_name(choice->op), tile_width, choice->tile,
                moe_host_report_format_source(choice->is_rule, choice->rule, choice->file,
                                              choice->line, source));
    }
}

static void print_verdict(FILE *out, int is_right)
{
    fprintf(out, "%s%s%s\n",
            moe_terminal_style(out, is_right ? MOE_TERMINAL_GREEN : MOE_TERMINAL_RED),
            is_right ? "right" : "wrong", moe_terminal_style(out, MOE_TERMINAL_PLAIN));
}

static void print_routing(const struct moe_golden_check *check, FILE *out)
{
    const struct moe_golden_check_routing *routing = &check->routing;
    char text[64];
    snprintf(text, sizeof text, "%" PRId64 " of %" PRId64 " tokens",
             check->num_tokens - routing->num_wrong - routing->num_differences, check->num_tokens);
    fprintf(out, "%-18s%-20s", moe_golden_kind_name(MOE_GOLDEN_TOPK_IDS), text);
    snprintf(text, sizeof text, "%" PRId64 " near tie%s", routing->num_near_ties,
             routing->num_near_ties == 1 ? "" : "s");
    fprintf(out, "%-27s", text);
    print_verdict(out, check->tensors[MOE_GOLDEN_TOPK_IDS].is_right);
}

static void print_tensor(const struct moe_golden_check_tensor *tensor, enum moe_golden_kind kind,
                         FILE *out)
{
    char text[64];
    fprintf(out, "%-18s%-20.3e", moe_golden_kind_name(kind), tensor->rel_l2);
    snprintf(text, sizeof text, "%.3e (token %" PRId64 ")", tensor->worst_token_rel_l2,
             tensor->worst_token);
    fprintf(out, "%-27s", text);
    print_verdict(out, tensor->is_right);
}

static void print_check(const struct moe_run_report *report, FILE *out)
{
    const struct moe_golden_check *check = report->check;
    const struct moe_golden_check_routing *routing = &check->routing;
    char bounds[64];
    const int length = snprintf(bounds, sizeof bounds, "by %g", MOE_GOLDEN_CHECK_BOUND);
    if (check->output_bound > MOE_GOLDEN_CHECK_BOUND) {
        snprintf(bounds + length, sizeof bounds - (size_t)length, ", outputs by %g",
                 check->output_bound);
    }
    fprintf(out, "\n%s%-18s%-20s%-27s%s%s\n", moe_terminal_style(out, MOE_TERMINAL_BOLD), "tensor",
            "relative L2 error", "worst token", bounds,
            moe_terminal_style(out, MOE_TERMINAL_PLAIN));
    for (int kind = 0; kind < MOE_GOLDEN_NUM_KINDS; ++kind) {
        const struct moe_golden_check_tensor *tensor = &check->tensors[kind];
        if (!tensor->is_present) {
            fprintf(out, "%-18s%s, not compared\n",
                    moe_golden_kind_name((enum moe_golden_kind)kind),
                    tensor->is_given ? "given to the layer" : "not in the file");
        } else if (kind == MOE_GOLDEN_TOPK_IDS) {
            print_routing(check, out);
        } else {
            print_tensor(tensor, (enum moe_golden_kind)kind, out);
        }
    }
    if (routing->first_wrong >= 0) {
        fprintf(out, "token %" PRId64 " has experts %s; expected are %s\n", routing->first_wrong,
                routing->computed, routing->expected);
    }
    if (routing->num_differences > 0) {
        fprintf(out,
                "%" PRId64 " near ties came out differently; the outputs of these tokens are not "
                "compared\n",
                routing->num_differences);
    }
}

void moe_run_report_print(const struct moe_run_report *report, FILE *out)
{
    const struct moe_layer_run_result *result = report->result;
    char text[MOE_HOST_REPORT_TEXT_BYTES];
    print_what_ran(report, out);
    print_choices(result, out);
    if (report->check != NULL) {
        print_check(report, out);
    }
    fputc('\n', out);
    print_label(out, "time");
    fprintf(out, "%.3f ms%s (median of %d calls; the first took %.3f ms)\n", 1e3 * result->median_s,
            report->request->split.tp * report->request->split.ep > 1 ? " on the slowest rank" : "",
            result->num_timed_calls, 1e3 * result->first_s);
    print_label(out, "workspace");
    fprintf(out, "%s\n", moe_host_report_format_bytes(result->workspace_bytes, text));
    print_label(out, "output");
    fprintf(out, "root mean square %.6g, digest %016" PRIx64 "\n", report->output.rms,
            report->output.digest);
    if (report->output.num_not_finite > 0) {
        fprintf(out, "%s%" PRId64 " elements of the output are NaN or infinite%s\n",
                moe_terminal_style(out, MOE_TERMINAL_RED), report->output.num_not_finite,
                moe_terminal_style(out, MOE_TERMINAL_PLAIN));
    }
}

static void put_choices(struct moe_cli_json *json, const struct moe_layer_run_result *result)
{
    moe_cli_json_begin_array(json, "choices");
    for (int i = 0; i < result->num_choices; ++i) {
        const struct moe_layer_run_choice *choice = &result->choices[i];
        moe_cli_json_begin_object(json, NULL);
        moe_cli_json_put_text(json, "op", moe_abi_op_name(choice->op));
        moe_cli_json_put_text(json, "tile", choice->tile);
        moe_cli_json_put_bool(json, "by_rule", choice->is_rule);
        moe_cli_json_put_text(json, "rule", choice->rule);
        moe_cli_json_put_text(json, "file", choice->file);
        moe_cli_json_put_int(json, "line", choice->line);
        moe_cli_json_put_int(json, "min_tokens", choice->min_tokens);
        moe_cli_json_put_int(json, "max_tokens", choice->max_tokens);
        moe_cli_json_end_object(json);
    }
    moe_cli_json_end_array(json);
}

static void put_routing(struct moe_cli_json *json, const struct moe_golden_check_routing *routing)
{
    moe_cli_json_put_int(json, "num_near_ties", routing->num_near_ties);
    moe_cli_json_put_int(json, "num_differences_at_near_ties", routing->num_differences);
    moe_cli_json_put_int(json, "num_wrong_tokens", routing->num_wrong);
    if (routing->first_wrong >= 0) {
        moe_cli_json_put_int(json, "first_wrong_token", routing->first_wrong);
        moe_cli_json_put_text(json, "computed", routing->computed);
        moe_cli_json_put_text(json, "expected", routing->expected);
    }
}

static void put_check(struct moe_cli_json *json, const struct moe_golden_check *check)
{
    moe_cli_json_begin_object(json, "check");
    moe_cli_json_put_number(json, "bound", MOE_GOLDEN_CHECK_BOUND);
    moe_cli_json_put_number(json, "output_bound", check->output_bound);
    moe_cli_json_put_bool(json, "right", check->is_right);
    moe_cli_json_begin_array(json, "tensors");
    for (int kind = 0; kind < MOE_GOLDEN_NUM_KINDS; ++kind) {
        const struct moe_golden_check_tensor *tensor = &check->tensors[kind];
        moe_cli_json_begin_object(json, NULL);
        moe_cli_json_put_text(json, "name", moe_golden_kind_name((enum moe_golden_kind)kind));
        moe_cli_json_put_bool(json, "compared", tensor->is_present);
        if (tensor->is_present) {
            moe_cli_json_put_bool(json, "right", tensor->is_right);
        }
        if (tensor->is_present && kind == MOE_GOLDEN_TOPK_IDS) {
            put_routing(json, &check->routing);
        } else if (tensor->is_present) {
            moe_cli_json_put_number(json, "relative_l2", tensor->rel_l2);
            moe_cli_json_put_number(json, "worst_token_relative_l2", tensor->worst_token_rel_l2);
            moe_cli_json_put_int(json, "worst_token", tensor->worst_token);
        }
        moe_cli_json_end_object(json);
    }
    moe_cli_json_end_array(json);
    moe_cli_json_end_object(json);
}

static void put_input(struct moe_cli_json *json, const struct moe_run_report *report)
{
    const struct moe_checkpoint_layer *layer = report->request->layer;
    moe_cli_json_put_text(json, "model", report->model);
    moe_cli_json_put_text(json, "family", layer->model_type);
    moe_cli_json_put_int(json, "layer", layer->layer_idx);
    moe_cli_json_put_int(json, "num_layers", layer->num_layers);
    moe_host_report_put_problem(json, &layer->problem);
    moe_cli_json_put_int(json, "weight_bytes", (int64_t)layer->weight_bytes);
    moe_cli_json_put_int(json, "num_tokens", report->request->num_tokens);
    moe_cli_json_put_text(json, "golden", report->golden);
    if (report->golden == NULL) {
        moe_cli_json_put_int(json, "seed", (int64_t)report->seed);
    }
    moe_cli_json_put_int(json, "tp", report->request->split.tp);
    moe_cli_json_put_int(json, "ep", report->request->split.ep);
}

int moe_run_report_write_json(const struct moe_run_report *report, FILE *out)
{
    const struct moe_layer_run_result *result = report->result;
    struct moe_cli_json json;
    moe_cli_json_init(&json, out);
    moe_cli_json_begin_object(&json, NULL);
    put_input(&json, report);
    moe_host_report_put_plugin(&json, report->host);
    moe_host_report_put_device(&json, "device", &report->host->device);
    put_choices(&json, result);
    if (report->check != NULL) {
        put_check(&json, report->check);
    }
    moe_cli_json_begin_object(&json, "time");
    moe_cli_json_put_number(&json, "median_ms", 1e3 * result->median_s);
    moe_cli_json_put_number(&json, "first_ms", 1e3 * result->first_s);
    moe_cli_json_put_int(&json, "num_calls", result->num_timed_calls);
    moe_cli_json_end_object(&json);
    moe_cli_json_put_int(&json, "workspace_bytes", (int64_t)result->workspace_bytes);
    moe_cli_json_begin_object(&json, "output");
    moe_cli_json_put_number(&json, "rms", report->output.rms);
    moe_cli_json_put_int(&json, "num_not_finite", report->output.num_not_finite);
    moe_cli_json_put_hash(&json, "digest", report->output.digest);
    moe_cli_json_end_object(&json);
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json);
}
