/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: layers of YAML rules (docs/configuration.md), read and checked once, then
 * immutable and shared by reference. A plan keeps the snapshot that it was made from.
 */
#ifndef MOE_CONFIG_H
#define MOE_CONFIG_H

#include "memory.h"
#include "moe_plugin.h"

struct moe_config;

/* What a snapshot is made from. */
struct moe_config_request {
    const struct moe_config_source *sources; /* already read (struct_size), lowest layer first */
    int32_t num_sources;
    int32_t use_environment;         /* 1: MOE_PLUGIN_CONFIG is above them, but for privileged
                                        processes */
    const struct moe_device *device; /* rules that match it are checked against it; NULL: none is */
    moe_diagnostic_fn *diagnostic;   /* NULL: only the first finding, in the error */
    void *diagnostic_self;
};

/*
 * Read all layers: built-in profiles (one layer), sources, environment (one per file). A layer that
 * a later one replaces (MOE_CONFIG_REPLACE, a leading = in the environment) is not read. Reports
 * every finding, on the calling thread. On any error finding CONFIG, IO or OUT_OF_MEMORY by the
 * first one, which is also in `error`; INVALID_ARGUMENT for a source without path and text or with
 * unknown flags. The snapshot starts with one reference.
 */
int32_t moe_config_create(const struct moe_memory *memory, const struct moe_config_request *request,
                          struct moe_config **out, struct moe_error *error);

/* Atomic reference count; unref frees at zero and takes NULL. */
struct moe_config *moe_config_ref(struct moe_config *config);
void moe_config_unref(struct moe_config *config);

/*
 * Fill num_rules, num_layers, fingerprint and layers, and nothing else: generation is the
 * context's. `layers` lives as long as the snapshot. The fingerprint is over the rules' content in
 * order of precedence: names, files, comments, spacing and spelling ("[8]" or "8") do not matter.
 */
void moe_config_describe(const struct moe_config *config, struct moe_config_info *out);

#endif
