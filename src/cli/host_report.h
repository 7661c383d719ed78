/* SPDX-License-Identifier: Apache-2.0 */
/* Facts about plugin, device and problem that several commands tell. */
#ifndef MOE_HOST_REPORT_H
#define MOE_HOST_REPORT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "cli_json.h"
#include "moe_plugin.h"
#include "plugin_host.h"

/* One line: "cpu, avx2, 8 threads (name)". Returns `text`. */
enum { MOE_HOST_REPORT_TEXT_BYTES = 256 };
const char *moe_host_report_format_device(const struct moe_device *device, char *text);

/* "128 experts, top 8, hidden 2048, inter 768, bf16". Returns `text`. */
const char *moe_host_report_format_sizes(const struct moe_problem *problem, char *text);

/* "softmax (renormalized), silu, biases". Returns `text`. */
const char *moe_host_report_format_rules(const struct moe_problem *problem, char *text);

/* "12.3 MiB". Returns `text`. */
const char *moe_host_report_format_bytes(uint64_t bytes, char *text);

/* "rule 'name' (file:line)" or "heuristic". Returns `text`. */
enum { MOE_HOST_REPORT_SOURCE_BYTES = 1024 };
const char *moe_host_report_format_source(int is_rule, const char *rule, const char *file,
                                          int32_t line, char *text);

/* Members "plugin", `key`, "problem" of the object that is open (NULL: of the array). */
void moe_host_report_put_plugin(struct moe_cli_json *json, const struct moe_plugin_host *host);
void moe_host_report_put_device(struct moe_cli_json *json, const char *key,
                                const struct moe_device *device);
void moe_host_report_put_problem(struct moe_cli_json *json, const struct moe_problem *problem);

#endif
