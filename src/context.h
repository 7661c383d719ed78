/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts: backend state, device, and the live configuration snapshot. */
#ifndef MOE_CONTEXT_H
#define MOE_CONTEXT_H

#include "backend.h"
#include "config.h"

#include <pthread.h>
#include <stdatomic.h>

struct moe_context {
    struct moe_memory memory;
    struct moe_host host; /* log and its self; sizes as of this header */
    const struct moe_backend *backend;
    void *state; /* the backend's */
    struct moe_device device;
    int32_t use_environment;
    pthread_mutex_t mutex; /* guards config and generation; never taken by a run call */
    struct moe_config *config;
    uint64_t generation;
    struct moe_config_info info; /* of `config`; guarded */
    _Atomic uint64_t num_plans_created;
    _Atomic uint64_t num_choices_by_rule;
    _Atomic uint64_t num_choices_by_heuristic;
    _Atomic uint64_t num_buckets_skipped;
    _Atomic uint64_t num_reloads;
    _Atomic uint64_t num_reloads_refused;
};

int32_t moe_context_create(const struct moe_host *host, const struct moe_context_options *options,
                           struct moe_context **out, struct moe_error *error);
void moe_context_destroy(struct moe_context *context);

/* Send one preformatted line to the host's log, if it has one. */
void moe_context_log(const struct moe_context *context, int32_t level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The live snapshot with a reference of its own, and its generation. */
struct moe_config *moe_context_take_config(struct moe_context *context, uint64_t *generation);

/* Entries of the function table. */
int32_t moe_context_device(const struct moe_context *context, struct moe_device *out,
                           struct moe_error *error);
int32_t moe_context_validate(const struct moe_host *host, const struct moe_config_source *sources,
                             int32_t num_sources, const struct moe_device *device,
                             moe_diagnostic_fn *diagnostic, void *diagnostic_self,
                             struct moe_error *error);
int32_t moe_context_reload(struct moe_context *context, const struct moe_config_source *sources,
                           int32_t num_sources, moe_diagnostic_fn *diagnostic,
                           void *diagnostic_self, struct moe_error *error);
int32_t moe_context_config_info(const struct moe_context *context, struct moe_config_info *out,
                                struct moe_error *error);
int32_t moe_context_stats(const struct moe_context *context, struct moe_stats *out,
                          struct moe_error *error);

#endif
