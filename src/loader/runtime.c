/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "runtime.h"

#include "canary_run.h"
#include "image.h"
#include "loader_status.h"
#include "refused.h"
#include "sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- images ---- */

static struct moe_kept_image *find_mapped(const struct moe_loader *loader, const char *sha256)
{
    struct moe_kept_image *mapped = loader->mapped;
    while (mapped != NULL && strcmp(mapped->sha256, sha256) != 0) {
        mapped = mapped->next;
    }
    return mapped;
}

static bool unloads(const struct moe_loader *loader)
{
    return (loader->options.flags & MOE_LOADER_ALLOW_UNLOAD) != 0;
}

static void count_parked(struct moe_loader *loader, int64_t num, uint64_t num_unloaded)
{
    pthread_mutex_lock(&loader->state);
    loader->stats.num_parked = (uint64_t)((int64_t)loader->stats.num_parked + num);
    loader->stats.num_unloaded += num_unloaded;
    pthread_mutex_unlock(&loader->state);
}

static void leave_mapped(struct moe_loader *loader, struct moe_kept_image *mapped)
{
    if (--mapped->num_users > 0) {
        return;
    }
    if (!unloads(loader)) {
        count_parked(loader, 1, 0); /* the handle stays: the image may be wanted again */
        return;
    }
    struct moe_kept_image **link = &loader->mapped;
    while (*link != mapped) {
        link = &(*link)->next;
    }
    *link = mapped->next;
    const bool is_gone = moe_loader_image_close(mapped->image, 1, NULL) == MOE_STATUS_OK;
    count_parked(loader, is_gone ? 0 : 1, is_gone ? 1 : 0);
    free(mapped);
}

/* A file that is not mapped yet. Takes `image` over, also on failure. */
static int32_t map_image(struct moe_loader *loader, struct moe_loader_image *image,
                         struct moe_kept_image **out, bool *is_candidate, struct moe_error *error)
{
    pthread_mutex_lock(&loader->state);
    const uint64_t num_parked = loader->stats.num_parked;
    pthread_mutex_unlock(&loader->state);
    if (num_parked >= (uint64_t)loader->options.max_parked) {
        (void)moe_loader_image_close(image, 0, NULL);
        *is_candidate = false;
        return moe_loader_status_set(
            error, MOE_STATUS_BUSY,
            "%llu images are parked, max_parked is %d: restart the process, "
            "raise it, or allow unloading",
            (unsigned long long)num_parked, loader->options.max_parked);
    }
    struct moe_kept_image *mapped = calloc(1, sizeof(*mapped));
    if (mapped == NULL) {
        (void)moe_loader_image_close(image, 0, NULL);
        *is_candidate = false;
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for an image");
    }
    snprintf(mapped->sha256, sizeof(mapped->sha256), "%s", moe_loader_image_sha256(image));
    const int32_t status = moe_image_map(image, &loader->host, error);
    if (status != MOE_STATUS_OK) {
        (void)moe_loader_image_close(image, unloads(loader), NULL);
        free(mapped);
        return status;
    }
    mapped->image = image;
    mapped->num_users = 1;
    mapped->next = loader->mapped;
    loader->mapped = mapped;
    *out = mapped;
    return MOE_STATUS_OK;
}

static int32_t run_canary(const struct moe_loader *loader, const char *path,
                          const struct moe_loader_image *image, struct moe_error *error)
{
    const struct moe_canary_options options = {
        .canary_path = loader->canary_path,
        .path = path,
        .timeout_ms = loader->options.canary_timeout_ms,
        .backend = loader->context.backend,
        .ordinal = loader->context.ordinal,
    };
    return moe_canary_run(&options, image, error);
}

/* The checked image of `path`, with one user more. */
static int32_t enter_image(struct moe_loader *loader, const char *path,
                           const struct moe_loader_open_options *options,
                           struct moe_loader_generation_info *info, bool *is_candidate,
                           struct moe_kept_image **out, struct moe_error *error)
{
    struct moe_loader_open_options of_image = *options;
    of_image.flags &= ~MOE_LOADER_SKIP_CANARY; /* images know no canary */
    struct moe_loader_image *image = NULL;
    int32_t status = moe_image_prepare(path, &of_image, &image, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    snprintf(info->sha256, sizeof(info->sha256), "%s", moe_loader_image_sha256(image));
    if (moe_refused_holds(loader, info->sha256)) {
        (void)moe_loader_image_close(image, 0, NULL);
        return moe_loader_status_set(
            error, MOE_LOADER_STATUS_HASH,
            "\"%s\" (sha256 %.12s...) was rolled back and is refused until "
            "it is allowed again",
            MOE_LOADER_SHOW_PATH(path), info->sha256);
    }
    if ((options->flags & MOE_LOADER_SKIP_CANARY) == 0) {
        status = run_canary(loader, path, image, error);
        if (status != MOE_STATUS_OK) {
            (void)moe_loader_image_close(image, 0, NULL);
            return status;
        }
    }
    struct moe_kept_image *mapped = find_mapped(loader, info->sha256);
    if (mapped == NULL) {
        return map_image(loader, image, out, is_candidate, error);
    }
    (void)moe_loader_image_close(image, 0, NULL);
    if (mapped->num_users++ == 0) {
        count_parked(loader, -1, 0);
    }
    *out = mapped;
    return MOE_STATUS_OK;
}

void moe_runtime_finish(struct moe_loader *loader)
{
    while (loader->mapped != NULL) {
        struct moe_kept_image *mapped = loader->mapped;
        loader->mapped = mapped->next;
        (void)moe_loader_image_close(mapped->image, unloads(loader), NULL);
        free(mapped);
    }
}

/* ---- contexts ---- */

int32_t moe_runtime_fingerprint(const struct moe_runtime *runtime, uint64_t *fingerprint,
                                struct moe_error *error)
{
    struct moe_config_info info;
    MOE_INIT(info);
    const int32_t status = runtime->api->config_info(runtime->context, &info, error);
    if (status == MOE_STATUS_OK) {
        *fingerprint = info.fingerprint;
    }
    return status;
}

static int32_t create_context(struct moe_loader *loader, struct moe_runtime *runtime,
                              struct moe_sources *sources, struct moe_error *error)
{
    struct moe_context_options options = loader->context;
    options.num_config_sources = sources->num;
    options.config_sources = sources->list;
    const int32_t status =
        runtime->api->context_create(&loader->host, &options, &runtime->context, error);
    if (status != MOE_STATUS_OK) {
        runtime->context = NULL;
        return status;
    }
    if (runtime->context == NULL) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_TABLE,
                                     "context_create returned OK without a context");
    }
    runtime->sources = moe_sources_share(sources);
    return MOE_STATUS_OK;
}

int32_t moe_runtime_create(struct moe_loader *loader, const char *path,
                           const struct moe_loader_open_options *options,
                           struct moe_sources *sources, struct moe_loader_generation_info *info,
                           bool *is_candidate, struct moe_runtime **out, struct moe_error *error)
{
    int32_t status = MOE_STATUS_OUT_OF_MEMORY;
    struct moe_runtime *runtime = calloc(1, sizeof(*runtime));
    if (runtime != NULL) {
        runtime->num_users = 1;
        runtime->weights = calloc((size_t)loader->options.max_slots, sizeof(*runtime->weights));
    }
    if (runtime == NULL || runtime->weights == NULL) {
        *is_candidate = false;
        moe_loader_status_set(error, status, "no memory for a generation");
        goto fail;
    }
    status = enter_image(loader, path, options, info, is_candidate, &runtime->mapped, error);
    if (runtime->mapped == NULL) {
        goto fail;
    }
    runtime->api = moe_loader_image_api(runtime->mapped->image);
    snprintf(info->kernel_set_id, sizeof(info->kernel_set_id), "%s", runtime->api->kernel_set_id);
    status = create_context(loader, runtime, sources, error);
    if (status != MOE_STATUS_OK) {
        goto fail;
    }
    status = moe_runtime_fingerprint(runtime, &info->config_fingerprint, error);
    if (status != MOE_STATUS_OK) {
        goto fail;
    }
    *out = runtime;
    return MOE_STATUS_OK;

fail:
    moe_runtime_leave(loader, runtime);
    return status;
}

struct moe_runtime *moe_runtime_share(struct moe_runtime *runtime)
{
    runtime->num_users++;
    return runtime;
}

void moe_runtime_leave(struct moe_loader *loader, struct moe_runtime *runtime)
{
    if (runtime == NULL || --runtime->num_users > 0) {
        return;
    }
    for (int32_t i = 0; runtime->weights != NULL && i < loader->options.max_slots; i++) {
        if (runtime->weights[i].weights != NULL) {
            moe_runtime_unbind(runtime, loader->slots[i]);
        }
    }
    if (runtime->context != NULL) {
        runtime->api->context_destroy(runtime->context);
    }
    if (runtime->mapped != NULL) {
        leave_mapped(loader, runtime->mapped);
    }
    moe_sources_leave(runtime->sources);
    free(runtime->weights);
    free(runtime);
}

int32_t moe_runtime_select(struct moe_runtime *runtime, struct moe_sources *sources,
                           struct moe_error *error)
{
    if (runtime->sources == sources) {
        return MOE_STATUS_OK;
    }
    const int32_t status = runtime->api->config_reload(runtime->context, sources->list,
                                                       sources->num, NULL, NULL, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_sources *former = runtime->sources;
    runtime->sources = moe_sources_share(sources);
    moe_sources_leave(former);
    return MOE_STATUS_OK;
}

/* ---- weights ---- */

static int32_t prepare(struct moe_runtime *runtime, const struct moe_loader_slot *slot,
                       struct moe_runtime_weights *weights, const struct moe_weights_info *info,
                       struct moe_error *error)
{
    const struct moe_loader_slot_options *options = &slot->options;
    if (options->prepared_alloc == NULL) {
        return moe_loader_status_set(
            error, MOE_STATUS_UNSUPPORTED,
            "the plugin wants %llu bytes for prepared weights, and the slot "
            "has no prepared_alloc",
            (unsigned long long)info->prepared_bytes);
    }
    weights->prepared =
        options->prepared_alloc(options->self, info->prepared_bytes, info->prepared_alignment);
    if (weights->prepared == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for %llu bytes of prepared weights",
                                     (unsigned long long)info->prepared_bytes);
    }
    weights->prepared_bytes = info->prepared_bytes;
    weights->prepared_alignment = info->prepared_alignment;
    const int32_t status = runtime->api->weights_prepare(
        runtime->context, &slot->problem, &slot->weights, weights->prepared,
        weights->prepared_bytes, options->stream, error);
    /* Also after a failure: memory that work is queued on is not to be freed. */
    if (options->prepared_wait != NULL &&
        options->prepared_wait(options->self, options->stream) != 0 && status == MOE_STATUS_OK) {
        return moe_loader_status_set(error, MOE_STATUS_DEVICE_ERROR,
                                     "the host could not wait for the prepared weights");
    }
    return status;
}

int32_t moe_runtime_bind(struct moe_runtime *runtime, const struct moe_loader_slot *slot,
                         struct moe_error *error)
{
    struct moe_runtime_weights *weights = &runtime->weights[slot->idx];
    if (weights->weights != NULL) {
        return MOE_STATUS_OK;
    }
    struct moe_weights_info info;
    MOE_INIT(info);
    int32_t status =
        runtime->api->weights_query(runtime->context, &slot->problem, &slot->weights, &info, error);
    if (status == MOE_STATUS_OK && info.prepared_bytes != 0) {
        status = prepare(runtime, slot, weights, &info, error);
    }
    if (status == MOE_STATUS_OK) {
        status = runtime->api->weights_bind(runtime->context, &slot->problem, &slot->weights,
                                            weights->prepared, weights->prepared_bytes,
                                            &weights->weights, error);
        if (status == MOE_STATUS_OK && weights->weights == NULL) {
            status = moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_TABLE,
                                           "weights_bind returned OK without weights");
        }
    }
    if (status != MOE_STATUS_OK) {
        weights->weights = NULL;
        moe_runtime_unbind(runtime, slot);
    }
    return status;
}

void moe_runtime_unbind(struct moe_runtime *runtime, const struct moe_loader_slot *slot)
{
    struct moe_runtime_weights *weights = &runtime->weights[slot->idx];
    if (weights->weights != NULL) {
        runtime->api->weights_destroy(weights->weights);
    }
    if (weights->prepared != NULL) {
        slot->options.prepared_free(slot->options.self, weights->prepared, weights->prepared_bytes,
                                    weights->prepared_alignment);
    }
    memset(weights, 0, sizeof(*weights));
}
