/* SPDX-License-Identifier: Apache-2.0 */
/* What `moectl run` tells, to a person or as JSON. */
#ifndef MOE_RUN_REPORT_H
#define MOE_RUN_REPORT_H

#include <stdint.h>
#include <stdio.h>

#include "checkpoint_layer.h"
#include "cli_json.h"
#include "golden_check.h"
#include "layer_run.h"
#include "plugin_host.h"

/* The output in three numbers. */
struct moe_run_output {
    double rms;
    int64_t num_not_finite; /* NaN and infinities */
    uint64_t digest;        /* FNV-1a of its fp32 bits: equal digests, equal bits */
};

/* Of `num_elements` elements. */
struct moe_run_output moe_run_output_measure(const float *output, int64_t num_elements);

struct moe_run_report {
    const char *model;  /* folder */
    const char *golden; /* file, or NULL: random tokens */
    uint64_t seed;      /* of random tokens */
    const struct moe_plugin_host *host;
    const struct moe_layer_run_request *request;
    const struct moe_layer_run_result *result;
    const struct moe_golden_check *check; /* NULL without a golden file */
    struct moe_run_output output;
};

void moe_run_report_print(const struct moe_run_report *report, FILE *out);

/* One document. Returns 0, or -1 when it could not be written. */
int moe_run_report_write_json(const struct moe_run_report *report, FILE *out);

#endif
