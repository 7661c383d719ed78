/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_report.h"

#include "abi_names.h"
#include "cli_json.h"
#include "terminal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

static const char *source_name(const struct moe_choice *choice)
{
    return choice->source == MOE_CHOICE_RULE ? "rule" : "heuristic";
}

/* ---------------------------------------------------------------- text */

enum { MAX_COLUMNS = 16, MAX_CELL = 192 };

/* A table whose columns are as wide as their widest cell. Rows are gone through twice: to measure,
 * then to print. */
struct table {
    FILE *out;
    int is_measuring;
    int num_left; /* columns from here on are aligned to the left */
    int column;
    int widths[MAX_COLUMNS];
};

__attribute__((format(printf, 2, 3))) static void put_cell(struct table *table, const char *format,
                                                           ...)
{
    char text[MAX_CELL];
    va_list arguments;
    va_start(arguments, format);
    const int written = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const int width = written < MAX_CELL ? written : MAX_CELL - 1;
    int *widest = &table->widths[table->column];
    if (table->is_measuring) {
        *widest = width > *widest ? width : *widest;
    } else if (table->column == 0) {
        fprintf(table->out, "%-*s", *widest, text);
    } else if (table->column >= table->num_left) {
        fprintf(table->out, "  %-*s", table->widths[table->column + 1] > 0 ? *widest : 0, text);
    } else {
        fprintf(table->out, "  %*s", *widest, text);
    }
    table->column += 1;
}

static void end_row(struct table *table)
{
    table->column = 0;
    if (!table->is_measuring) {
        fputc('\n', table->out);
    }
}

static const struct moe_bench_limit_info *get_limit(const struct moe_bench_session *session,
                                                    enum moe_bench_limit limit)
{
    return moe_bench_limit_info(limit, session->gpu != NULL);
}

static void print_titles(const struct moe_bench_session *session, struct table *table)
{
    static const char *const titles[] = {"op", "T", "active", "us", "p10", "p90", "floor us"};
    const int is_gpu = session->gpu != NULL;
    table->num_left = 11;
    for (size_t i = 0; i < sizeof titles / sizeof titles[0]; ++i) {
        put_cell(table, "%s", titles[i]);
    }
    put_cell(table, "%s", is_gpu ? "TB/s" : "GB/s");
    put_cell(table, "%s", is_gpu ? "TFLOP/s" : "GFLOP/s");
    put_cell(table, "ratio");
    put_cell(table, "%s", is_gpu ? "host us" : "paired");
    put_cell(table, "limit");
    put_cell(table, "chosen by");
    put_cell(table, "tile");
    end_row(table);
}

static void print_results(const struct moe_bench_session *session, struct table *table)
{
    const double unit = session->gpu != NULL ? 1e-12 : 1e-9;
    print_titles(session, table);
    for (size_t i = 0; i < session->num_cases; ++i) {
        const struct moe_bench_result *result = &session->results[i];
        const struct moe_bench_case *bench_case = result->bench_case;
        put_cell(table, "%s", moe_abi_op_name(bench_case->op));
        put_cell(table, "%" PRId64, bench_case->num_tokens);
        put_cell(table, "%.0f", bench_case->routes->mean_active);
        put_cell(table, "%.2f", 1e6 * result->seconds.median);
        put_cell(table, "%.2f", 1e6 * result->seconds.p10);
        put_cell(table, "%.2f", 1e6 * result->seconds.p90);
        put_cell(table, "%.2f", 1e6 * result->floor_s);
        put_cell(table, session->gpu != NULL ? "%.3f" : "%.2f", unit * result->bytes_per_s);
        if (bench_case->cost.flops > 0.0) {
            put_cell(table, "%.1f", unit * result->flop_per_s);
        } else {
            put_cell(table, "-");
        }
        put_cell(table, "%.1f %%", 100.0 * result->ratio);
        if (session->gpu != NULL) {
            put_cell(table, "%.2f", 1e6 * result->host_s.median);
        } else {
            put_cell(table, "%.1f %%", 100.0 * result->paired.median);
        }
        put_cell(table, "%s", get_limit(session, result->bound)->name);
        put_cell(table, "%s", bench_case->choice.rule);
        put_cell(table, "%s", bench_case->choice.tile_name);
        end_row(table);
    }
}

static void print_overheads(const struct moe_bench_session *session, struct table *table)
{
    table->num_left = MAX_COLUMNS;
    put_cell(table, "op");
    put_cell(table, "plan_op_info ns");
    put_cell(table, "call at T=0 ns");
    end_row(table);
    for (int32_t i = 0; i < session->num_ops; ++i) {
        const struct moe_bench_overhead *overhead = &session->overheads[i];
        put_cell(table, "%s", moe_abi_op_name(overhead->op));
        put_cell(table, "%.1f", 1e9 * overhead->lookup_s.median);
        put_cell(table, "%.1f", 1e9 * overhead->call_s.median);
        end_row(table);
    }
}

static void print_table(const struct moe_bench_session *session, FILE *out,
                        void (*print)(const struct moe_bench_session *session, struct table *table))
{
    struct table table = {.out = out, .is_measuring = 1};
    print(session, &table);
    table.is_measuring = 0;
    print(session, &table);
}

/* The cheapest plan_op_info: no lookup alone can take longer. */
static double smallest_lookup_s(const struct moe_bench_session *session)
{
    double smallest_s = session->overheads[0].lookup_s.median;
    for (int32_t i = 1; i < session->num_ops; ++i) {
        const double lookup_s = session->overheads[i].lookup_s.median;
        smallest_s = lookup_s < smallest_s ? lookup_s : smallest_s;
    }
    return smallest_s;
}

static void print_setting(const struct moe_bench_session *session, FILE *out)
{
    const struct moe_bench_options *options = session->options;
    const struct moe_plugin_api *api = session->host.api;
    const struct moe_device *device = &session->host.device;
    const struct moe_problem *problem = &options->problem;
    const struct moe_bench_weights *weights = &session->data.weights;
    fprintf(out, "%s %s (%s), %s ", api->name, api->version, api->source_id,
            moe_abi_backend_name(device->backend));
    if (session->gpu != NULL) {
        fprintf(out, "sm_%d, %d multiprocessors, driver %d.%d", device->sm, device->num_sms,
                device->driver_version / 1000, device->driver_version % 1000 / 10);
    } else {
        fprintf(out, "%s, %d threads", device->isa, device->num_sms);
    }
    fprintf(out, ", last-level cache %.0f MB, %s\n", 1e-6 * (double)session->data.cache_bytes,
            device->name);
    if (options->model != NULL) {
        fprintf(out, "%s, layer %" PRId64 " of %s: ", options->model_type, options->layer_idx,
                options->model);
    }
    fprintf(out,
            "E %d, top_k %d, hidden %d, inter %d, shared %d, %s, routing %s, seed %" PRId64 "\n",
            problem->num_experts, problem->top_k, problem->hidden, problem->inter,
            problem->shared_inter, options->dtype_name, options->routing_text, options->seed);
    if (weights->num_copies > 0) {
        fprintf(out, "weights: %" PRId64 " %s of %.1f MB; ", weights->num_copies,
                weights->num_copies == 1 ? "copy" : "copies", 1e-6 * (double)weights->copy_bytes);
    }
    fprintf(out, "data: %.0f MB of inputs and %.0f MB of outputs in turns\n",
            1e-6 * (double)session->data.inputs.num_bytes,
            1e-6 * (double)session->data.outputs.num_bytes);
}

static void print_limits(const struct moe_bench_session *session, FILE *out)
{
    fprintf(out, "limits (");
    if (session->gpu != NULL) {
        fprintf(out, "by the driver");
    } else {
        fprintf(out, "%s, %d threads", moe_bench_limits_isa(),
                moe_bench_team_num_threads(session->team));
    }
    fprintf(out, ", best tenth; lowest tenth and median in brackets):");
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        const struct moe_bench_limit_info *info = get_limit(session, (enum moe_bench_limit)limit);
        const struct moe_bench_summary *summary = &session->limit_summaries[limit];
        fprintf(out, "%s %s %.1f (%.1f, %.1f) %s", limit > 0 ? "," : "", info->name,
                1e-9 * summary->p90, 1e-9 * summary->p10, 1e-9 * summary->median, info->unit);
    }
    fprintf(out, "; clock %.0f ns\n", 1e9 * session->timer_s);
}

/* Rounds whose `paired` has the limits of another time than its own. */
static void print_shared_limits(const struct moe_bench_session *session, FILE *out)
{
    if (session->num_shared_limits > 0) {
        fprintf(out,
                "paired: %" PRId64 " of %" PRId64 " rounds were over within %.0f ms of the last "
                "limits and share those; a longer --min-time measures new ones.\n",
                session->num_shared_limits, session->num_paired_rounds,
                1e3 * MOE_BENCH_LIMIT_INTERVAL_S);
    }
}

int moe_bench_report_text(const struct moe_bench_session *session, FILE *out)
{
    print_setting(session, out);
    print_limits(session, out);
    fputc('\n', out);
    print_table(session, out, print_results);
    for (int32_t i = 0; i < session->num_refusals; ++i) {
        fprintf(out, "not measured: %s (%s)\n", moe_abi_op_name(session->refusals[i].op),
                session->refusals[i].reason);
    }
    print_shared_limits(session, out);
    fputc('\n', out);
    print_table(session, out, print_overheads);
    fprintf(out,
            "A lookup in a plan takes less than %.1f ns: the fastest plan_op_info, which also "
            "fills in its answer.\n",
            1e9 * smallest_lookup_s(session));
    return fflush(out) != 0 || ferror(out) ? -1 : 0;
}

/* ---------------------------------------------------------------- JSON */

static void put_setting(const struct moe_bench_session *session, struct moe_cli_json *json)
{
    const struct moe_bench_options *options = session->options;
    const struct moe_plugin_api *api = session->host.api;
    const struct moe_device *device = &session->host.device;
    const struct moe_problem *problem = &options->problem;
    moe_cli_json_begin_object(json, "plugin");
    moe_cli_json_put_text(json, "path", session->host.path);
    moe_cli_json_put_text(json, "name", api->name);
    moe_cli_json_put_text(json, "version", api->version);
    moe_cli_json_put_text(json, "source_id", api->source_id);
    moe_cli_json_put_text(json, "kernel_set_id", api->kernel_set_id);
    moe_cli_json_end_object(json);
    moe_cli_json_begin_object(json, "device");
    moe_cli_json_put_text(json, "backend", moe_abi_backend_name(device->backend));
    moe_cli_json_put_text(json, "name", device->name);
    moe_cli_json_put_text(json, "isa", device->isa);
    if (session->gpu != NULL) {
        moe_cli_json_put_int(json, "ordinal", device->ordinal);
        moe_cli_json_put_int(json, "sm", device->sm);
        moe_cli_json_put_int(json, "num_sms", device->num_sms);
        moe_cli_json_put_int(json, "driver_version", device->driver_version);
    } else {
        moe_cli_json_put_int(json, "num_threads", device->num_sms);
    }
    moe_cli_json_put_int(json, "last_level_cache_bytes", (int64_t)session->data.cache_bytes);
    moe_cli_json_end_object(json);
    moe_cli_json_begin_object(json, "problem");
    moe_cli_json_put_text(json, "model_type", options->model_type);
    moe_cli_json_put_int(json, "num_experts", problem->num_experts);
    moe_cli_json_put_int(json, "top_k", problem->top_k);
    moe_cli_json_put_int(json, "hidden", problem->hidden);
    moe_cli_json_put_int(json, "inter", problem->inter);
    moe_cli_json_put_int(json, "shared_inter", problem->shared_inter);
    moe_cli_json_put_text(json, "dtype", options->dtype_name);
    moe_cli_json_end_object(json);
    moe_cli_json_begin_object(json, "method");
    moe_cli_json_put_text(json, "routing", options->routing_text);
    moe_cli_json_put_int(json, "num_active_fixed", options->routing.num_active);
    moe_cli_json_put_int(json, "seed", options->seed);
    moe_cli_json_put_int(json, "min_time_ms", options->min_time_ms);
    moe_cli_json_put_int(json, "num_paired_rounds", session->num_paired_rounds);
    moe_cli_json_put_int(json, "num_shared_limits", session->num_shared_limits);
    moe_cli_json_put_int(json, "num_weight_copies", session->data.weights.num_copies);
    moe_cli_json_put_int(json, "weight_copy_bytes", (int64_t)session->data.weights.copy_bytes);
    moe_cli_json_put_int(json, "input_bytes", (int64_t)session->data.inputs.num_bytes);
    moe_cli_json_put_int(json, "output_bytes", (int64_t)session->data.outputs.num_bytes);
    moe_cli_json_put_int(json, "align_block_size", MOE_BENCH_ALIGN_BLOCK_SIZE);
    moe_cli_json_end_object(json);
}

/* Members "<prefix>", "<prefix>_p10" and "<prefix>_p90", times `scale`. */
static void put_summary(struct moe_cli_json *json, const char *prefix,
                        const struct moe_bench_summary *summary, double scale)
{
    char key[64];
    moe_cli_json_put_number(json, prefix, scale * summary->median);
    snprintf(key, sizeof key, "%s_p10", prefix);
    moe_cli_json_put_number(json, key, scale * summary->p10);
    snprintf(key, sizeof key, "%s_p90", prefix);
    moe_cli_json_put_number(json, key, scale * summary->p90);
}

static void put_limits(const struct moe_bench_session *session, struct moe_cli_json *json)
{
    moe_cli_json_begin_object(json, "limits");
    if (session->gpu == NULL) {
        moe_cli_json_put_text(json, "isa", moe_bench_limits_isa());
    }
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        put_summary(json, get_limit(session, (enum moe_bench_limit)limit)->key,
                    &session->limit_summaries[limit], 1e-9);
    }
    moe_cli_json_put_number(json, "clock_ns", 1e9 * session->timer_s);
    moe_cli_json_end_object(json);
}

static void put_result(const struct moe_bench_session *session,
                       const struct moe_bench_result *result, struct moe_cli_json *json)
{
    const struct moe_bench_case *bench_case = result->bench_case;
    const struct moe_choice *choice = &bench_case->choice;
    moe_cli_json_begin_object(json, NULL);
    moe_cli_json_put_text(json, "op", moe_abi_op_name(bench_case->op));
    moe_cli_json_put_int(json, "num_tokens", bench_case->num_tokens);
    moe_cli_json_put_number(json, "mean_active_experts", bench_case->routes->mean_active);
    put_summary(json, "us", &result->seconds, 1e6);
    if (session->gpu != NULL) {
        put_summary(json, "host_us", &result->host_s, 1e6);
    }
    moe_cli_json_put_int(json, "num_samples", (int64_t)result->seconds.num_samples);
    moe_cli_json_put_int(json, "calls_per_sample", (int64_t)bench_case->calls_per_sample);
    moe_cli_json_put_number(json, "bytes", bench_case->cost.moved_bytes);
    moe_cli_json_put_number(json, "flops", bench_case->cost.flops);
    moe_cli_json_put_number(json, "gb_per_s", 1e-9 * result->bytes_per_s);
    moe_cli_json_put_number(json, "gflop_per_s", 1e-9 * result->flop_per_s);
    moe_cli_json_put_text(json, "limit", get_limit(session, result->bound)->name);
    moe_cli_json_put_number(json, "floor_us", 1e6 * result->floor_s);
    moe_cli_json_put_number(json, "ratio", result->ratio);
    if (session->gpu == NULL) {
        put_summary(json, "paired_ratio", &result->paired, 1.0);
    }
    moe_cli_json_put_text(json, "tile", choice->tile_name);
    moe_cli_json_put_text(json, "source", source_name(choice));
    moe_cli_json_put_text(json, "rule", choice->rule);
    moe_cli_json_put_text(json, "file", choice->file);
    moe_cli_json_put_int(json, "line", choice->line);
    moe_cli_json_end_object(json);
}

int moe_bench_report_json(const struct moe_bench_session *session, FILE *out)
{
    struct moe_cli_json json;
    moe_cli_json_init(&json, out);
    moe_cli_json_begin_object(&json, NULL);
    put_setting(session, &json);
    put_limits(session, &json);
    moe_cli_json_begin_array(&json, "results");
    for (size_t i = 0; i < session->num_cases; ++i) {
        put_result(session, &session->results[i], &json);
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_begin_array(&json, "not_measured");
    for (int32_t i = 0; i < session->num_refusals; ++i) {
        moe_cli_json_begin_object(&json, NULL);
        moe_cli_json_put_text(&json, "op", moe_abi_op_name(session->refusals[i].op));
        moe_cli_json_put_text(&json, "reason", session->refusals[i].reason);
        moe_cli_json_end_object(&json);
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_begin_array(&json, "overheads");
    for (int32_t i = 0; i < session->num_ops; ++i) {
        moe_cli_json_begin_object(&json, NULL);
        moe_cli_json_put_text(&json, "op", moe_abi_op_name(session->overheads[i].op));
        put_summary(&json, "plan_op_info_ns", &session->overheads[i].lookup_s, 1e9);
        put_summary(&json, "empty_call_ns", &session->overheads[i].call_s, 1e9);
        moe_cli_json_end_object(&json);
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_put_number(&json, "lookup_below_ns", 1e9 * smallest_lookup_s(session));
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json);
}

/* ---------------------------------------------------------------- CSV */

/* Quoted, because names of rules may hold commas. */
static void print_quoted(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; ++text) {
        if (*text == '"') {
            fputc('"', out);
        }
        fputc(*text, out);
    }
    fputc('"', out);
}

int moe_bench_report_csv(const struct moe_bench_session *session, FILE *out)
{
    const struct moe_bench_summary *limits = session->limit_summaries;
    const struct moe_problem *problem = &session->options->problem;
    fputs("op,num_tokens,num_experts,top_k,hidden,inter,dtype,num_threads,mean_active_experts,us,"
          "us_p10,us_p90,num_samples,"
          "gb_per_s,gflop_per_s,limit,floor_us,ratio,",
          out);
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        fprintf(out, "%s,", get_limit(session, (enum moe_bench_limit)limit)->key);
    }
    fputs(session->gpu != NULL ? "host_us,source,rule,tile\n" : "paired_ratio,source,rule,tile\n",
          out);
    for (size_t i = 0; i < session->num_cases; ++i) {
        const struct moe_bench_result *result = &session->results[i];
        const struct moe_bench_case *bench_case = result->bench_case;
        fprintf(out,
                "%s,%" PRId64
                ",%d,%d,%d,%d,%s,%d,%.2f,%.4f,%.4f,%.4f,%zu,%.4f,%.4f,%s,%.4f,%.5f,%.3f,%.3f,%.3f,",
                moe_abi_op_name(bench_case->op), bench_case->num_tokens, problem->num_experts,
                problem->top_k, problem->hidden, problem->inter, session->options->dtype_name,
                session->host.device.num_sms, bench_case->routes->mean_active,
                1e6 * result->seconds.median, 1e6 * result->seconds.p10, 1e6 * result->seconds.p90,
                result->seconds.num_samples, 1e-9 * result->bytes_per_s, 1e-9 * result->flop_per_s,
                get_limit(session, result->bound)->name, 1e6 * result->floor_s, result->ratio,
                1e-9 * limits[MOE_BENCH_LIMIT_READ].p90, 1e-9 * limits[MOE_BENCH_LIMIT_COPY].p90,
                1e-9 * limits[MOE_BENCH_LIMIT_FMA].p90);
        if (session->gpu != NULL) {
            fprintf(out, "%.4f,", 1e6 * result->host_s.median);
        } else {
            fprintf(out, "%.5f,", result->paired.median);
        }
        fprintf(out, "%s,", source_name(&bench_case->choice));
        print_quoted(out, bench_case->choice.rule);
        fputc(',', out);
        print_quoted(out, bench_case->choice.tile_name);
        fputc('\n', out);
    }
    for (int32_t i = 0; i < session->num_refusals; ++i) {
        fprintf(stderr, "not measured: %s (%s)\n", moe_abi_op_name(session->refusals[i].op),
                session->refusals[i].reason);
    }
    return fflush(out) != 0 || ferror(out) ? -1 : 0;
}
