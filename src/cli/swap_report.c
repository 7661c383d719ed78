/* SPDX-License-Identifier: Apache-2.0 */
#include "swap_report.h"

#include "cli_json.h"
#include "terminal.h"

static const struct {
    const char *key;
    const char *title;
} phases[MOE_SWAP_NUM_PHASES] = {
    [MOE_SWAP_INSIDE] = {"inside", "near a swap"},
    [MOE_SWAP_STAGING] = {"staging", "while staging"},
    [MOE_SWAP_OUTSIDE] = {"outside", "else"},
};
static const int phase_order[MOE_SWAP_NUM_PHASES] = {MOE_SWAP_OUTSIDE, MOE_SWAP_INSIDE,
                                                     MOE_SWAP_STAGING};

struct moe_swap_verdict moe_swap_verdict_make(const struct moe_swap_session *session,
                                              double max_p99_ratio)
{
    struct moe_swap_verdict verdict = {
        .p99_ratio = moe_swap_latency_ratio(session->latency),
        .max_p99_ratio = max_p99_ratio,
    };
    verdict.is_too_slow =
        max_p99_ratio > 0.0 && !(verdict.p99_ratio > 0.0 && verdict.p99_ratio <= max_p99_ratio);
    verdict.has_passed = moe_swap_session_has_passed(session) && !verdict.is_too_slow;
    return verdict;
}

/* ---- text ---- */

static void print_sentences(const struct moe_swap_sentences *sentences, const char *title,
                            FILE *out)
{
    for (int64_t i = 0; i < sentences->num_sentences && i < MOE_SWAP_MAX_SENTENCES; ++i) {
        fprintf(out, "%s: %s\n", title, sentences->kept[i]);
    }
    if (sentences->num_sentences > MOE_SWAP_MAX_SENTENCES) {
        fprintf(out, "%s: %lld more\n", title,
                (long long)(sentences->num_sentences - MOE_SWAP_MAX_SENTENCES));
    }
}

static void print_plugins(const struct moe_swap_session *session, FILE *out)
{
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        const char *kernel_set_id = session->kernel_set_ids[plugin];
        fprintf(out, "%s  %lld answered  kernel set %s  %s\n", moe_swap_plugin_name(plugin),
                (long long)session->num_answered[plugin],
                kernel_set_id[0] != '\0' ? kernel_set_id : "unknown (rejected)",
                session->options.plugins[plugin]);
    }
}

static void print_latency(const struct moe_swap_session *session,
                          const struct moe_swap_verdict *verdict, FILE *out)
{
    fprintf(out, "\nlatency in us    requests        p50        p90        p99        max\n");
    for (int i = 0; i < MOE_SWAP_NUM_PHASES; ++i) {
        const struct moe_swap_percentiles *latency = &session->latency[phase_order[i]];
        fprintf(out, "%-14s %10zu %10.1f %10.1f %10.1f %10.1f\n", phases[phase_order[i]].title,
                latency->num_requests, latency->p50_us, latency->p90_us, latency->p99_us,
                latency->max_us);
    }
    fprintf(out, "near a swap: within %d ms of a promote; latency: from queued to answered\n",
            MOE_SWAP_WINDOW_MS);
    if (verdict->p99_ratio > 0.0) {
        fprintf(out, "p99 near a swap / else: %.3f", verdict->p99_ratio);
    } else {
        fprintf(out, "p99 near a swap / else: not known, one of them has no requests");
    }
    if (verdict->max_p99_ratio > 0.0) {
        fprintf(out, " (at most %.3f allowed)", verdict->max_p99_ratio);
    }
    fputc('\n', out);
}

static void print_steps(const struct moe_swap_session *session, FILE *out)
{
    fprintf(out, "\nsteps in ms         times        p50        max\n");
    for (int step = 0; step < MOE_SWAP_NUM_STEPS; ++step) {
        const struct moe_swap_percentiles *times = &session->steps[step];
        fprintf(out, "%-14s %10zu %10.3f %10.3f\n", moe_swap_step_name(step), times->num_requests,
                times->p50_us / 1e3, times->max_us / 1e3);
    }
}

void moe_swap_report_text(const struct moe_swap_session *session,
                          const struct moe_swap_verdict *verdict, FILE *out)
{
    fprintf(out, "%lld requests in %.1f s on %d threads: %lld failed, %lld answered wrong\n",
            (long long)session->num_requests, session->load_seconds, session->num_threads,
            (long long)session->num_failed, (long long)session->num_wrong);
    fprintf(out, "%lld swaps, %lld rejections\n", (long long)session->num_swaps,
            (long long)session->num_rejections);
    print_plugins(session, out);
    print_latency(session, verdict, out);
    print_steps(session, out);
    fputc('\n', out);
    print_sentences(&session->rejections, "rejected", out);
    print_sentences(&session->failures, "failure", out);
    if (session->num_unmeasured > 0) {
        fprintf(out, "failure: no memory for %lld times\n", (long long)session->num_unmeasured);
    }
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        if (session->num_answered[plugin] == 0) {
            fprintf(out, "failure: %s answered nothing\n", moe_swap_plugin_name(plugin));
        }
    }
    if (verdict->is_too_slow) {
        fprintf(out, "failure: the p99 ratio is above the limit or not known\n");
    }
    fprintf(out, "%s%s%s\n",
            moe_terminal_style(out, verdict->has_passed ? MOE_TERMINAL_GREEN : MOE_TERMINAL_RED),
            verdict->has_passed ? "passed" : "FAILED", moe_terminal_style(out, MOE_TERMINAL_PLAIN));
}

/* ---- JSON ---- */

static void put_sentences(struct moe_cli_json *json, const char *key,
                          const struct moe_swap_sentences *sentences)
{
    moe_cli_json_begin_array(json, key);
    for (int64_t i = 0; i < sentences->num_sentences && i < MOE_SWAP_MAX_SENTENCES; ++i) {
        moe_cli_json_put_text(json, NULL, sentences->kept[i]);
    }
    moe_cli_json_end_array(json);
}

static void put_plugins(struct moe_cli_json *json, const struct moe_swap_session *session)
{
    moe_cli_json_begin_array(json, "plugins");
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        const char *kernel_set_id = session->kernel_set_ids[plugin];
        moe_cli_json_begin_object(json, NULL);
        moe_cli_json_put_text(json, "name", moe_swap_plugin_name(plugin));
        moe_cli_json_put_text(json, "path", session->options.plugins[plugin]);
        moe_cli_json_put_text(json, "kernel_set_id",
                              kernel_set_id[0] != '\0' ? kernel_set_id : NULL);
        moe_cli_json_put_int(json, "num_answered", session->num_answered[plugin]);
        moe_cli_json_end_object(json);
    }
    moe_cli_json_end_array(json);
}

static void put_latency(struct moe_cli_json *json, const struct moe_swap_session *session)
{
    moe_cli_json_begin_object(json, "latency_us");
    for (int i = 0; i < MOE_SWAP_NUM_PHASES; ++i) {
        const struct moe_swap_percentiles *latency = &session->latency[phase_order[i]];
        moe_cli_json_begin_object(json, phases[phase_order[i]].key);
        moe_cli_json_put_int(json, "num_requests", (int64_t)latency->num_requests);
        moe_cli_json_put_number(json, "p50", latency->p50_us);
        moe_cli_json_put_number(json, "p90", latency->p90_us);
        moe_cli_json_put_number(json, "p99", latency->p99_us);
        moe_cli_json_put_number(json, "max", latency->max_us);
        moe_cli_json_end_object(json);
    }
    moe_cli_json_end_object(json);
}

static void put_steps(struct moe_cli_json *json, const struct moe_swap_session *session)
{
    moe_cli_json_begin_object(json, "steps_ms");
    for (int step = 0; step < MOE_SWAP_NUM_STEPS; ++step) {
        const struct moe_swap_percentiles *times = &session->steps[step];
        moe_cli_json_begin_object(json, moe_swap_step_name(step));
        moe_cli_json_put_int(json, "num_times", (int64_t)times->num_requests);
        moe_cli_json_put_number(json, "p50", times->p50_us / 1e3);
        moe_cli_json_put_number(json, "max", times->max_us / 1e3);
        moe_cli_json_end_object(json);
    }
    moe_cli_json_end_object(json);
}

int moe_swap_report_json(const struct moe_swap_session *session,
                         const struct moe_swap_verdict *verdict, FILE *out)
{
    struct moe_cli_json json;
    moe_cli_json_init(&json, out);
    moe_cli_json_begin_object(&json, NULL);
    moe_cli_json_put_bool(&json, "passed", verdict->has_passed);
    moe_cli_json_put_int(&json, "num_threads", session->num_threads);
    moe_cli_json_put_number(&json, "seconds", session->load_seconds);
    moe_cli_json_put_int(&json, "num_requests", session->num_requests);
    moe_cli_json_put_int(&json, "num_failed", session->num_failed);
    moe_cli_json_put_int(&json, "num_wrong", session->num_wrong);
    moe_cli_json_put_int(&json, "num_wrong_of_neither", session->num_neither);
    moe_cli_json_put_int(&json, "num_unmeasured", session->num_unmeasured);
    moe_cli_json_put_int(&json, "num_swaps", session->num_swaps);
    moe_cli_json_put_int(&json, "num_rejections", session->num_rejections);
    put_plugins(&json, session);
    moe_cli_json_put_int(&json, "window_ms", MOE_SWAP_WINDOW_MS);
    put_latency(&json, session);
    if (verdict->p99_ratio > 0.0) {
        moe_cli_json_put_number(&json, "p99_ratio", verdict->p99_ratio);
    } else {
        moe_cli_json_put_null(&json, "p99_ratio");
    }
    if (verdict->max_p99_ratio > 0.0) {
        moe_cli_json_put_number(&json, "max_p99_ratio", verdict->max_p99_ratio);
    } else {
        moe_cli_json_put_null(&json, "max_p99_ratio");
    }
    put_steps(&json, session);
    put_sentences(&json, "rejections", &session->rejections);
    put_sentences(&json, "failures", &session->failures);
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json);
}
