/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "generation.h"
#include "loader_status.h"
#include "refused.h"
#include "runtime.h"
#include "slot.h"
#include "sources.h"

#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_CANARY_TIMEOUT_MS = 20000,
    DEFAULT_MAX_WORKERS = 256,
    DEFAULT_MAX_SLOTS = 1024,
    DEFAULT_MAX_PARKED = 64,
    DEFAULT_MAX_DEVICE_ERRORS = 1,
    MAX_COUNT = 1 << 20,
    KNOWN_FLAGS = MOE_LOADER_SKIP_TRUST | MOE_LOADER_SKIP_CANARY | MOE_LOADER_ALLOW_UNLOAD |
                  MOE_LOADER_USE_MEMFD,
};

/* ---- what all files use ---- */

int32_t moe_loader_check_not_null(const void *object, const char *name, struct moe_error *error)
{
    return object != NULL
               ? MOE_STATUS_OK
               : moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s is NULL", name);
}

int32_t moe_loader_pass_error(struct moe_error *error, int32_t status,
                              const struct moe_error *cause)
{
    if (status == MOE_STATUS_OK || error == NULL) {
        return status;
    }
    struct moe_error full = *cause;
    full.status = status;
    if (error->struct_size >= sizeof(full.struct_size)) {
        (void)MOE_LOADER_WRITE(error, &full, moe_error, NULL);
        if (error->struct_size > offsetof(struct moe_error, message) &&
            error->struct_size < sizeof(full)) {
            error->message[error->struct_size - offsetof(struct moe_error, message) - 1] = '\0';
        }
    }
    return status;
}

char *moe_loader_copy_string(const char *text)
{
    const size_t num_bytes = strlen(text) + 1;
    char *copy = malloc(num_bytes);
    if (copy != NULL) {
        memcpy(copy, text, num_bytes);
    }
    return copy;
}

void *moe_loader_alloc(size_t num, size_t bytes, size_t alignment)
{
    void *memory = NULL;
    if (posix_memalign(&memory, alignment < sizeof(void *) ? sizeof(void *) : alignment,
                       num * bytes) != 0) {
        return NULL;
    }
    memset(memory, 0, num * bytes);
    return memory;
}

void moe_loader_lock_control(struct moe_loader *loader)
{
    pthread_mutex_lock(&loader->control);
}

void moe_loader_unlock_control(struct moe_loader *loader)
{
    moe_generation_release_rejected(loader);
    pthread_mutex_unlock(&loader->control);
}

/* ---- options ---- */

static int32_t resolve_count(int32_t *count, int32_t default_count, const char *name,
                             struct moe_error *error)
{
    if (*count < 0 || *count > MAX_COUNT) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "moe_loader_options.%s is %d; it must be 0 (%d) to %d", name,
                                     *count, default_count, MAX_COUNT);
    }
    *count = *count == 0 ? default_count : *count;
    return MOE_STATUS_OK;
}

static int32_t resolve_options(struct moe_loader_options *options, struct moe_error *error)
{
    if ((options->flags & ~(uint32_t)KNOWN_FLAGS) != 0 || options->reserved != 0) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "moe_loader_options: flags is 0x%x, reserved %d; known bits "
                                     "are 0x%x, reserved is 0",
                                     options->flags, options->reserved, (unsigned)KNOWN_FLAGS);
    }
    if (options->max_device_errors < -1) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "moe_loader_options.max_device_errors is %d; it must be -1 "
                                     "(never), 0 (%d) or more",
                                     options->max_device_errors, DEFAULT_MAX_DEVICE_ERRORS);
    }
    if (options->max_device_errors == 0) {
        options->max_device_errors = DEFAULT_MAX_DEVICE_ERRORS;
    }
    const struct {
        int32_t *count;
        int32_t default_count;
        const char *name;
    } counts[] = {
        {&options->canary_timeout_ms, DEFAULT_CANARY_TIMEOUT_MS, "canary_timeout_ms"},
        {&options->max_workers, DEFAULT_MAX_WORKERS, "max_workers"},
        {&options->max_slots, DEFAULT_MAX_SLOTS, "max_slots"},
        {&options->max_parked, DEFAULT_MAX_PARKED, "max_parked"},
    };
    int32_t status = MOE_STATUS_OK;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]) && status == MOE_STATUS_OK; i++) {
        status = resolve_count(counts[i].count, counts[i].default_count, counts[i].name, error);
    }
    return status;
}

static int32_t copy_optional_string(char **copy, const char *text, struct moe_error *error)
{
    if (text != NULL) {
        *copy = moe_loader_copy_string(text);
        if (*copy == NULL) {
            return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for a path");
        }
    }
    return MOE_STATUS_OK;
}

/* Host, context options and strings: copies, since the caller's end with the call. */
static int32_t copy_pointees(struct moe_loader *loader, struct moe_error *error)
{
    const struct moe_loader_options *options = &loader->options;
    int32_t status = MOE_STATUS_OK;
    if (options->host != NULL) {
        status = MOE_LOADER_READ(&loader->host, options->host, moe_host, error);
    } else {
        MOE_INIT(loader->host);
        loader->host.abi_major = MOE_ABI_MAJOR;
        loader->host.abi_minor = MOE_ABI_MINOR;
        loader->host.layout_hash = MOE_ABI_LAYOUT_HASH;
    }
    MOE_INIT(loader->context);
    if (status == MOE_STATUS_OK && options->context != NULL) {
        status = MOE_LOADER_READ(&loader->context, options->context, moe_context_options, error);
    }
    if (status == MOE_STATUS_OK) {
        status = moe_sources_create(loader->context.config_sources,
                                    loader->context.num_config_sources, &loader->sources, error);
    }
    if (status == MOE_STATUS_OK) {
        status = copy_optional_string(&loader->shadow_directory, options->shadow_directory, error);
    }
    if (status == MOE_STATUS_OK) {
        status = copy_optional_string(&loader->canary_path, options->canary_path, error);
    }
    return status;
}

static int32_t allocate_tables(struct moe_loader *loader, struct moe_error *error)
{
    const size_t num_workers = (size_t)loader->options.max_workers;
    loader->slots = calloc((size_t)loader->options.max_slots, sizeof(*loader->slots));
    loader->workers =
        moe_loader_alloc(num_workers, sizeof(*loader->workers), _Alignof(struct moe_loader_worker));
    if (loader->slots == NULL || loader->workers == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for %d slots and %d workers",
                                     loader->options.max_slots, loader->options.max_workers);
    }
    for (size_t i = 0; i < num_workers; i++) {
        loader->workers[i].loader = loader;
        loader->workers[i].idx = (int32_t)i;
    }
    return MOE_STATUS_OK;
}

/* ---- create, destroy ---- */

int32_t moe_loader_create(const struct moe_loader_options *options, struct moe_loader **out,
                          struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(out, "out", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_loader *loader = moe_loader_alloc(1, sizeof(*loader), _Alignof(struct moe_loader));
    if (loader == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for a loader");
    }
    pthread_mutex_init(&loader->control, NULL);
    pthread_mutex_init(&loader->state, NULL);
    MOE_INIT(loader->stats);
    MOE_INIT(loader->options);
    if (options != NULL) {
        status = MOE_LOADER_READ(&loader->options, options, moe_loader_options, error);
    }
    if (status == MOE_STATUS_OK) {
        status = resolve_options(&loader->options, error);
    }
    if (status == MOE_STATUS_OK) {
        status = copy_pointees(loader, error);
    }
    if (status == MOE_STATUS_OK) {
        status = allocate_tables(loader, error);
    }
    if (status != MOE_STATUS_OK) {
        moe_loader_destroy(loader);
        return status;
    }
    *out = loader;
    return MOE_STATUS_OK;
}

static void destroy_generations(struct moe_loader *loader)
{
    while (loader->generations != NULL) {
        struct moe_generation *generation = loader->generations;
        loader->generations = generation->next;
        moe_generation_release(loader, generation);
        moe_generation_destroy(generation);
    }
}

void moe_loader_destroy(struct moe_loader *loader)
{
    if (loader == NULL) {
        return;
    }
    atomic_store_explicit(&loader->active, NULL, memory_order_release);
    destroy_generations(loader);
    for (int32_t i = 0; loader->slots != NULL && i < loader->options.max_slots; i++) {
        moe_slot_destroy(loader->slots[i]);
    }
    moe_runtime_finish(loader);
    moe_refused_finish(loader);
    moe_sources_leave(loader->sources);
    pthread_mutex_destroy(&loader->control);
    pthread_mutex_destroy(&loader->state);
    free(loader->slots);
    free(loader->workers);
    free(loader->shadow_directory);
    free(loader->canary_path);
    free(loader);
}

int32_t moe_loader_get_stats(struct moe_loader *loader, struct moe_loader_stats *out,
                             struct moe_error *error)
{
    const int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&loader->state);
    const struct moe_loader_stats stats = loader->stats;
    pthread_mutex_unlock(&loader->state);
    return MOE_LOADER_WRITE(out, &stats, moe_loader_stats, error);
}
