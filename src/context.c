/* SPDX-License-Identifier: Apache-2.0 */
#include "context.h"

#include "device.h"
#include "host.h"
#include "status.h"
#include "structs.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void moe_context_log(const struct moe_context *context, int32_t level, const char *format, ...)
{
    if (context->host.log == NULL) {
        return;
    }
    char text[512];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(text, sizeof(text), format, values);
    va_end(values);
    if (length < 0) {
        return;
    }
    uint64_t text_bytes = (size_t)length < sizeof(text) ? (uint64_t)length : sizeof(text) - 1;
    context->host.log(context->host.self, level, text, text_bytes);
}

/* Read `num_sources` host structs into an array of ours. */
static int32_t read_sources(const struct moe_memory *memory,
                            const struct moe_config_source *sources, int32_t num_sources,
                            struct moe_config_source **out, struct moe_error *error)
{
    *out = NULL;
    if (num_sources < 0 || (num_sources > 0 && sources == NULL)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "configuration: %d sources at %p",
                             num_sources, (const void *)sources);
    }
    if (num_sources == 0) {
        return MOE_STATUS_OK;
    }
    size_t bytes = (size_t)num_sources * sizeof(struct moe_config_source);
    struct moe_config_source *own = moe_memory_alloc(memory, bytes);
    if (own == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY, "no host memory for %zu bytes",
                             bytes);
    }
    /* The host's array has the host's stride. */
    const char *source = (const char *)sources;
    int32_t status = MOE_STATUS_OK;
    for (int32_t i = 0; i < num_sources; i++) {
        uint32_t stride;
        memcpy(&stride, source, sizeof(stride));
        MOE_TRY_GOTO(MOE_STRUCT_READ(&own[i], source, moe_config_source, error));
        if (own[i].path == NULL && own[i].text == NULL) {
            status = moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                   "configuration source %d has neither path nor text", i);
            goto fail;
        }
        if ((own[i].flags & ~MOE_CONFIG_REPLACE) != 0) {
            status = moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                   "configuration source %d has unknown flags 0x%x; "
                                   "MOE_CONFIG_REPLACE is the only one",
                                   i, own[i].flags);
            goto fail;
        }
        source += stride;
    }
    *out = own;
    return MOE_STATUS_OK;

fail:
    moe_memory_free(memory, own, bytes);
    return status;
}

/* Read and check all layers for `device`. */
static int32_t load_config(const struct moe_memory *memory, const struct moe_config_source *sources,
                           int32_t num_sources, int32_t use_environment,
                           const struct moe_device *device, moe_diagnostic_fn *diagnostic,
                           void *diagnostic_self, struct moe_config **out, struct moe_error *error)
{
    struct moe_config_source *own = NULL;
    MOE_TRY(read_sources(memory, sources, num_sources, &own, error));
    struct moe_config_request request = {
        .sources = own,
        .num_sources = num_sources,
        .use_environment = use_environment,
        .device = device,
        .diagnostic = diagnostic,
        .diagnostic_self = diagnostic_self,
    };
    int32_t status = moe_config_create(memory, &request, out, error);
    moe_memory_free(memory, own, (size_t)num_sources * sizeof(struct moe_config_source));
    return status;
}

/* Make `config` the live one; gives the old one back. Called with the mutex held, or before the
 * context is shared. */
static struct moe_config *publish(struct moe_context *context, struct moe_config *config)
{
    struct moe_config *old = context->config;
    context->config = config;
    context->generation++;
    MOE_INIT(context->info);
    moe_config_describe(config, &context->info);
    context->info.generation = context->generation;
    return old;
}

static void log_config(const struct moe_context *context, const struct moe_config_info *info)
{
    moe_context_log(context, MOE_LEVEL_INFO,
                    "moe-plugin: %s backend (%s, %d threads or SMs), configuration %" PRIu64
                    ": %d rules of %s, fingerprint %016" PRIx64,
                    context->backend->name, context->device.name, context->device.num_sms,
                    info->generation, info->num_rules, info->layers, info->fingerprint);
}

int32_t moe_context_create(const struct moe_host *host, const struct moe_context_options *options,
                           struct moe_context **out, struct moe_error *error)
{
    struct moe_host own_host;
    struct moe_context_options own_options;
    struct moe_memory memory;
    if (out == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context_create: out is NULL");
    }
    MOE_TRY(moe_host_read(&own_host, host, "context_create", error));
    MOE_INIT(own_options);
    if (options != NULL) {
        MOE_TRY(MOE_STRUCT_READ(&own_options, options, moe_context_options, error));
    }
    if ((own_options.flags & ~MOE_CONTEXT_IGNORE_ENVIRONMENT) != 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "context options: unknown flags 0x%x; MOE_CONTEXT_IGNORE_ENVIRONMENT is the only one",
            own_options.flags);
    }
    const struct moe_backend *backend = moe_backend_find(own_options.backend);
    if (backend == NULL) {
        return moe_device_refuse_backend(own_options.backend, error);
    }
    moe_memory_init(&memory, &own_host);
    struct moe_context *context = moe_memory_alloc(&memory, sizeof(*context));
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY, "no host memory for %zu bytes",
                             sizeof(*context));
    }
    int32_t status = MOE_STATUS_OK;
    context->memory = memory;
    context->host = own_host;
    context->backend = backend;
    context->use_environment = (own_options.flags & MOE_CONTEXT_IGNORE_ENVIRONMENT) == 0;
    pthread_mutex_init(&context->mutex, NULL);
    MOE_INIT(context->device);
    MOE_TRY_GOTO(backend->probe(own_options.ordinal, &context->device, error));
    MOE_TRY_GOTO(backend->state_create(&context->memory, &own_options, &context->device,
                                       &context->state, error));
    struct moe_config *config = NULL;
    MOE_TRY_GOTO(load_config(&context->memory, own_options.config_sources,
                             own_options.num_config_sources, context->use_environment,
                             &context->device, own_options.diagnostic, own_options.diagnostic_self,
                             &config, error));
    publish(context, config);
    log_config(context, &context->info);
    *out = context;
    return MOE_STATUS_OK;

fail:
    moe_context_destroy(context);
    return status;
}

void moe_context_destroy(struct moe_context *context)
{
    if (context == NULL) {
        return;
    }
    moe_config_unref(context->config);
    if (context->state != NULL) {
        context->backend->state_destroy(&context->memory, context->state);
    }
    pthread_mutex_destroy(&context->mutex);
    struct moe_memory memory = context->memory;
    moe_memory_free(&memory, context, sizeof(*context));
}

struct moe_config *moe_context_take_config(struct moe_context *context, uint64_t *generation)
{
    pthread_mutex_lock(&context->mutex);
    struct moe_config *config = moe_config_ref(context->config);
    *generation = context->generation;
    pthread_mutex_unlock(&context->mutex);
    return config;
}

int32_t moe_context_reload(struct moe_context *context, const struct moe_config_source *sources,
                           int32_t num_sources, moe_diagnostic_fn *diagnostic,
                           void *diagnostic_self, struct moe_error *error)
{
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    struct moe_config *config = NULL;
    int32_t status = load_config(&context->memory, sources, num_sources, context->use_environment,
                                 &context->device, diagnostic, diagnostic_self, &config, error);
    if (status != MOE_STATUS_OK) {
        atomic_fetch_add_explicit(&context->num_reloads_refused, 1, memory_order_relaxed);
        return status;
    }
    pthread_mutex_lock(&context->mutex);
    struct moe_config *old = publish(context, config);
    struct moe_config_info info = context->info;
    moe_config_ref(config); /* its strings are logged below; another reload may replace it first */
    pthread_mutex_unlock(&context->mutex);
    atomic_fetch_add_explicit(&context->num_reloads, 1, memory_order_relaxed);
    log_config(context, &info);
    moe_config_unref(config);
    moe_config_unref(old);
    return MOE_STATUS_OK;
}

int32_t moe_context_validate(const struct moe_host *host, const struct moe_config_source *sources,
                             int32_t num_sources, const struct moe_device *device,
                             moe_diagnostic_fn *diagnostic, void *diagnostic_self,
                             struct moe_error *error)
{
    struct moe_host own_host;
    struct moe_device own_device;
    struct moe_memory memory;
    struct moe_config *config = NULL;
    moe_memory_init(&memory, NULL);
    if (host != NULL) {
        MOE_TRY(moe_host_read(&own_host, host, "config_validate", error));
        moe_memory_init(&memory, &own_host);
    }
    if (device != NULL) {
        MOE_TRY(moe_device_read(&own_device, device, error));
    }
    MOE_TRY(load_config(&memory, sources, num_sources, 0, device != NULL ? &own_device : NULL,
                        diagnostic, diagnostic_self, &config, error));
    moe_config_unref(config);
    return MOE_STATUS_OK;
}

int32_t moe_context_config_info(const struct moe_context *context, struct moe_config_info *out,
                                struct moe_error *error)
{
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    pthread_mutex_t *mutex = (pthread_mutex_t *)(uintptr_t)&context->mutex;
    pthread_mutex_lock(mutex);
    struct moe_config_info info = context->info;
    pthread_mutex_unlock(mutex);
    return MOE_STRUCT_WRITE(out, &info, moe_config_info, error);
}

int32_t moe_context_device(const struct moe_context *context, struct moe_device *out,
                           struct moe_error *error)
{
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    return MOE_STRUCT_WRITE(out, &context->device, moe_device, error);
}

int32_t moe_context_stats(const struct moe_context *context, struct moe_stats *out,
                          struct moe_error *error)
{
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    struct moe_stats stats;
    MOE_INIT(stats);
    stats.num_plans_created =
        atomic_load_explicit(&context->num_plans_created, memory_order_relaxed);
    stats.num_choices_by_rule =
        atomic_load_explicit(&context->num_choices_by_rule, memory_order_relaxed);
    stats.num_choices_by_heuristic =
        atomic_load_explicit(&context->num_choices_by_heuristic, memory_order_relaxed);
    stats.num_buckets_skipped =
        atomic_load_explicit(&context->num_buckets_skipped, memory_order_relaxed);
    stats.num_reloads = atomic_load_explicit(&context->num_reloads, memory_order_relaxed);
    stats.num_reloads_refused =
        atomic_load_explicit(&context->num_reloads_refused, memory_order_relaxed);
    return MOE_STRUCT_WRITE(out, &stats, moe_stats, error);
}
