/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of `moectl bench`. */
#ifndef MOE_BENCH_OPTIONS_H
#define MOE_BENCH_OPTIONS_H

#include <stdint.h>

#include "args.h"
#include "bench_routing.h"
#include "cli_error.h"
#include "moe_plugin.h"
#include "plugin_host.h"

/* Everything that was asked for, checked as far as it can be without a plugin. */
struct moe_bench_options {
    struct moe_plugin_host_options host;
    const char *model;          /* folder; NULL: a shape */
    const char *model_type;     /* of the model; NULL: a shape */
    int64_t layer_idx;          /* of the model */
    struct moe_problem problem; /* max_tokens is the largest of `tokens` */
    const char *dtype_name;     /* as --dtype names it */
    uint64_t ops;               /* bit set of 1 << MOE_OP_* */
    int is_all_ops;             /* "all": what the plugin refuses is reported, and is no mistake */
    struct moe_args_list tokens;
    struct moe_bench_routing routing;
    const char *routing_text;
    int64_t seed;
    int64_t min_time_ms; /* of each operation and number of tokens */
    int64_t weight_mb;   /* that the copies of the weights take together, at least */
    int wants_json;
    int wants_csv;
};

/* Reads argv as moe_args_parse does, and config.json where a model is named. Prints sentences to
 * stderr. */
enum moe_args_outcome moe_bench_options_parse(int argc, char **argv, const char *summary,
                                              struct moe_bench_options *options);

#endif
