/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: layers of YAML rules (docs/configuration.md), read and checked once, then immutable and shared by
 * reference. A plan keeps the snapshot that it was made from.
 */
#ifndef MOE_CONFIG_H
#define MOE_CONFIG_H

#include "memory.h"
#include "moe_plugin.h"

struct moe_config;

/* What a snapshot is made from. */
struct moe_config_request {
    const struct moe_config_source *sources; /* host layers, copied structs (already read), lowest first */
    int32_t num_sources;
    int32_t use_environment;                 /* 1: MOE_PLUGIN_CONFIG is the last layer (never in privileged processes) */
    const struct moe_device *device;         /* rules that match it are checked against it; NULL: none is */
    moe_diagnostic_fn *diagnostic;           /* NULL: only the first finding, in the error */
    void *diagnostic_self;
};

/*
 * Read all layers: built-in profiles, sources, environment. Reports every finding. On any error finding: CONFIG (IO
 * when a file cannot be read) with the first one in `error`. The snapshot starts with one reference.
 */
int32_t moe_config_create(const struct moe_memory *memory, const struct moe_config_request *request,
                          struct moe_config **out, struct moe_error *error);

/* Atomic reference count; unref frees at zero and takes NULL. */
struct moe_config *moe_config_ref(struct moe_config *config);
void moe_config_unref(struct moe_config *config);

/* Fill num_rules, num_layers, fingerprint and layers; generation is the context's. */
void moe_config_describe(const struct moe_config *config, struct moe_config_info *out);

#endif
