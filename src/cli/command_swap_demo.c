/* SPDX-License-Identifier: Apache-2.0 */
/* moectl swap-demo: replaces one plugin by another and back while a server's load runs. */
#include "command.h"

#include "args.h"
#include "swap_report.h"
#include "swap_session.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char summary[] = "Swap two plugins back and forth under load.";

static const char details[] =
    "Worker threads run layer requests of several sizes on the CPU, from a queue that is never "
    "empty.\n"
    "Meanwhile each plugin in turn is staged (checks, a trial in a helper process), verified "
    "against\n"
    "the one that serves, and promoted; the one before drains and is parked. Every output must "
    "have\n"
    "the bits that the plugin which ran gave for these tokens before the load.\n"
    "Exit status 1: a request failed or was answered wrong, a plugin was rejected or answered\n"
    "nothing, or the p99 ratio is above its limit.";

struct demo_options {
    struct moe_swap_options session;
    double max_p99_ratio; /* 0: no limit */
    int wants_json;
};

/* A decimal above 0. Returns 0, or -1. */
static int parse_ratio(const char *text, double *ratio)
{
    char *end = NULL;
    errno = 0;
    *ratio = strtod(text, &end);
    return end != text && *end == '\0' && errno == 0 && isfinite(*ratio) && *ratio > 0.0 ? 0 : -1;
}

static enum moe_args_outcome parse(int argc, char **argv, struct demo_options *options)
{
    memset(options, 0, sizeof *options);
    options->session.num_seconds = 10;
    options->session.num_swaps = MOE_SWAP_NUM_PLUGINS; /* there and back */
    const char *ratio = NULL;
    const struct moe_args_option table[] = {
        {.name = "seconds",
         .value_name = "S",
         .number = &options->session.num_seconds,
         .min_value = 0,
         .max_value = 86400,
         .help = "run the load at least this long"},
        {.name = "swaps",
         .value_name = "N",
         .number = &options->session.num_swaps,
         .min_value = 1,
         .max_value = MOE_SWAP_MAX_ATTEMPTS,
         .help = "run it until at least this many swaps were tried"},
        {.name = "threads",
         .value_name = "N",
         .number = &options->session.num_threads,
         .min_value = 0,
         .max_value = 1024,
         .help = "worker threads; 0: as many as this process may use CPUs"},
        {.name = "max-p99-ratio",
         .value_name = "R",
         .text = &ratio,
         .help = "fail if p99 within 5 ms of a promote is more than R times p99 elsewhere"},
        {.name = "skip-trust",
         .flag = &options->session.is_trust_skipped,
         .help = "do not check owner and permissions of the plugins and their folders"},
    };
    const struct moe_args_command command = {
        .name = "swap-demo",
        .summary = summary,
        .operands = "PLUGIN_A PLUGIN_B",
        .min_operands = MOE_SWAP_NUM_PLUGINS,
        .max_operands = MOE_SWAP_NUM_PLUGINS,
        .details = details,
        .options = table,
        .num_options = sizeof table / sizeof table[0],
    };
    struct moe_args_result result;
    const enum moe_args_outcome outcome =
        moe_args_parse(&command, argc, argv, &result, stdout, stderr);
    if (outcome != MOE_ARGS_RUN) {
        return outcome;
    }
    if (ratio != NULL && parse_ratio(ratio, &options->max_p99_ratio) != 0) {
        fprintf(stderr, "moectl swap-demo: --max-p99-ratio: '%s' is not a decimal number above 0\n",
                ratio);
        return MOE_ARGS_WRONG;
    }
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        options->session.plugins[plugin] = result.operands[plugin];
    }
    options->wants_json = result.wants_json;
    return MOE_ARGS_RUN;
}

static int report(const struct moe_swap_session *session, const struct demo_options *options)
{
    const struct moe_swap_verdict verdict = moe_swap_verdict_make(session, options->max_p99_ratio);
    if (!options->wants_json) {
        moe_swap_report_text(session, &verdict, stdout);
    } else if (moe_swap_report_json(session, &verdict, stdout) != 0) {
        fprintf(stderr, "moectl swap-demo: the result could not be written: %s\n", strerror(errno));
        return MOE_EXIT_USAGE;
    }
    return verdict.has_passed ? MOE_EXIT_OK : MOE_EXIT_FINDINGS;
}

static int swap_demo_main(int argc, char **argv)
{
    struct demo_options options;
    const enum moe_args_outcome outcome = parse(argc, argv, &options);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    static struct moe_swap_session session; /* large, and there is one */
    struct moe_cli_error error = {.message = ""};
    int status = MOE_EXIT_USAGE;
    if (moe_swap_session_init(&session, &options.session, &error) != 0 ||
        moe_swap_session_run(&session, &error) != 0) {
        fprintf(stderr, "moectl swap-demo: %s\n", error.message);
    } else {
        status = report(&session, &options);
    }
    moe_swap_session_finish(&session);
    return status;
}

const struct moe_command moe_command_swap_demo = {
    .name = "swap-demo", .summary = summary, .main = swap_demo_main};
