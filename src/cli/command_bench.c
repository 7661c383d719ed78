/* SPDX-License-Identifier: Apache-2.0 */
/* moectl bench: how fast the operations of a plugin are, as shares of what the machine can do. */
#include "command.h"

#include "args.h"
#include "bench_options.h"
#include "bench_report.h"
#include "bench_session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char summary[] = "Measure the operations against the limits of this machine.";

static int report(const struct moe_bench_session *session)
{
    if (session->options->wants_json) {
        return moe_bench_report_json(session, stdout);
    }
    if (session->options->wants_csv) {
        return moe_bench_report_csv(session, stdout);
    }
    return moe_bench_report_text(session, stdout);
}

static int bench_main(int argc, char **argv)
{
    struct moe_bench_options options;
    const enum moe_args_outcome outcome = moe_bench_options_parse(argc, argv, summary, &options);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    static struct moe_bench_session session; /* large, and there is one */
    struct moe_cli_error error = {.message = ""};
    int status = MOE_EXIT_OK;
    if (moe_bench_session_init(&session, &options, &error) != 0 ||
        moe_bench_session_run(&session, &error) != 0) {
        fprintf(stderr, "moectl bench: %s\n", error.message);
        status = MOE_EXIT_USAGE;
    } else if (report(&session) != 0) {
        fprintf(stderr, "moectl bench: the result could not be written: %s\n", strerror(errno));
        status = MOE_EXIT_USAGE;
    }
    moe_bench_session_finish(&session);
    return status;
}

const struct moe_command moe_command_bench = {
    .name = "bench", .summary = summary, .main = bench_main};
