/* SPDX-License-Identifier: Apache-2.0 */
/* From a file, or a configuration, to a STAGED generation; and the way out: PARKED. */
#define _POSIX_C_SOURCE 200809L

#include "generation.h"
#include "loader_status.h"
#include "runtime.h"
#include "sources.h"
#include "swap.h"

#include <stdlib.h>
#include <string.h>

/* ---- records ---- */

static struct moe_generation *create_record(const struct moe_loader *loader, const char *path)
{
    const size_t num_slots = (size_t)loader->options.max_slots;
    const size_t num_workers = (size_t)loader->options.max_workers;
    struct moe_generation *generation = calloc(1, sizeof(*generation));
    if (generation == NULL) {
        return NULL;
    }
    MOE_INIT(generation->info);
    const struct moe_loader_shown shown = moe_loader_status_show(path);
    _Static_assert(sizeof(generation->info.path) >= sizeof(shown.text), "a shown path fits");
    memcpy(generation->info.path, shown.text, sizeof(shown.text));
    generation->refusal = calloc(1, sizeof(*generation->refusal));
    generation->plans = calloc(num_slots, sizeof(struct moe_plan *));
    generation->views = calloc(num_slots, sizeof(*generation->views));
    generation->inside = calloc(num_workers, sizeof(*generation->inside));
    generation->calls = moe_loader_alloc(num_workers, sizeof(*generation->calls),
                                         _Alignof(struct moe_call_counter));
    if (generation->refusal == NULL || generation->plans == NULL || generation->views == NULL ||
        generation->inside == NULL || generation->calls == NULL) {
        free(generation->plans);
        free(generation->views);
        free(generation->inside);
        free(generation->calls);
        moe_generation_destroy(generation);
        return NULL;
    }
    return generation;
}

/* Forget the oldest record that has ended, if there are too many. */
static void forget_oldest(struct moe_loader *loader)
{
    struct moe_generation **oldest = NULL;
    int32_t num_ended = 0;
    for (struct moe_generation **link = &loader->generations; *link != NULL;
         link = &(*link)->next) {
        const bool has_ended = ((*link)->info.state == MOE_GENERATION_PARKED ||
                                (*link)->info.state == MOE_GENERATION_REJECTED) &&
                               (*link)->runtime == NULL;
        num_ended += has_ended;
        if (has_ended && oldest == NULL) {
            oldest = link;
        }
    }
    if (num_ended > MOE_LOADER_HISTORY) {
        struct moe_generation *forgotten = *oldest;
        *oldest = forgotten->next;
        loader->stats.num_generations--;
        moe_generation_destroy(forgotten);
    }
}

static void append(struct moe_loader *loader, struct moe_generation *generation)
{
    struct moe_generation **link = &loader->generations;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = generation;
    loader->stats.num_generations++;
}

/* The end of a staging that has an outcome. Takes the record over. */
static int32_t conclude(struct moe_loader *loader, struct moe_generation *generation,
                        int32_t status, uint64_t *id, const struct moe_error *cause)
{
    pthread_mutex_lock(&loader->state);
    append(loader, generation);
    if (status == MOE_STATUS_OK) {
        moe_generation_move(loader, generation, MOE_GENERATION_STAGED, MOE_STATUS_OK, "");
        *id = generation->info.generation;
    } else {
        moe_generation_reject(loader, generation, status, cause->message);
    }
    forget_oldest(loader);
    pthread_mutex_unlock(&loader->state);
    return status;
}

/* One that was never judged leaves no trace. */
static void drop(struct moe_loader *loader, struct moe_generation *generation)
{
    moe_generation_release(loader, generation);
    moe_generation_destroy(generation);
}

static uint64_t next_id(struct moe_loader *loader)
{
    pthread_mutex_lock(&loader->state);
    const uint64_t id = ++loader->num_made;
    pthread_mutex_unlock(&loader->state);
    return id;
}

static struct moe_generation *active_now(struct moe_loader *loader)
{
    return atomic_load_explicit(&loader->active, memory_order_acquire);
}

static int32_t add_open_slots(struct moe_loader *loader, struct moe_generation *generation,
                              struct moe_error *error)
{
    for (int32_t i = 0; i < loader->options.max_slots; i++) {
        if (loader->slots[i] == NULL) {
            continue;
        }
        const int32_t status = moe_generation_add_slot(generation, loader->slots[i], error);
        if (status != MOE_STATUS_OK) {
            return status;
        }
    }
    return MOE_STATUS_OK;
}

/* ---- stage ---- */

static int32_t read_options(const struct moe_loader *loader,
                            const struct moe_loader_open_options *caller,
                            struct moe_loader_open_options *own, struct moe_error *error)
{
    const uint32_t known = MOE_LOADER_SKIP_TRUST | MOE_LOADER_SKIP_CANARY |
                           MOE_LOADER_ALLOW_UNLOAD | MOE_LOADER_USE_MEMFD;
    MOE_INIT(*own);
    if (caller == NULL) {
        own->flags = loader->options.flags;
    } else {
        const int32_t status = MOE_LOADER_READ(own, caller, moe_loader_open_options, error);
        if (status != MOE_STATUS_OK) {
            return status;
        }
        if ((own->flags & ~known) != 0) {
            return moe_loader_status_set(
                error, MOE_STATUS_INVALID_ARGUMENT,
                "moe_loader_open_options.flags is 0x%x; known bits are 0x%x", own->flags, known);
        }
        own->flags = (own->flags & ~MOE_LOADER_ALLOW_UNLOAD) |
                     (loader->options.flags & MOE_LOADER_ALLOW_UNLOAD);
    }
    if (own->shadow_directory == NULL) {
        own->shadow_directory = loader->shadow_directory;
    }
    return MOE_STATUS_OK;
}

static int32_t stage(struct moe_loader *loader, const char *path,
                     const struct moe_loader_open_options *options, uint64_t *id,
                     struct moe_error *error)
{
    struct moe_generation *generation = create_record(loader, path);
    if (generation == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for a generation");
    }
    const struct moe_generation *active = active_now(loader);
    generation->info.generation = next_id(loader);
    generation->sources = moe_sources_share(active != NULL ? active->sources : loader->sources);
    bool is_candidate = true;
    int32_t status =
        moe_runtime_create(loader, path, options, generation->sources, &generation->info,
                           &is_candidate, &generation->runtime, error);
    if (!is_candidate) {
        drop(loader, generation);
        return status;
    }
    if (status == MOE_STATUS_OK) {
        status = add_open_slots(loader, generation, error);
    }
    return conclude(loader, generation, status, id, error);
}

int32_t moe_loader_stage(struct moe_loader *loader, const char *path,
                         const struct moe_loader_open_options *options, uint64_t *generation,
                         struct moe_error *error)
{
    struct moe_loader_open_options own;
    struct moe_error cause; /* its sentence is kept with the generation, wanted or not */
    MOE_INIT(cause);
    int32_t status = moe_loader_check_not_null(loader, "loader", &cause);
    if (status == MOE_STATUS_OK) {
        status = moe_loader_check_not_null(path, "path", &cause);
    }
    if (status == MOE_STATUS_OK) {
        status = moe_loader_check_not_null(generation, "generation", &cause);
    }
    if (status == MOE_STATUS_OK) {
        status = read_options(loader, options, &own, &cause);
    }
    if (status == MOE_STATUS_OK) {
        moe_loader_lock_control(loader);
        status = stage(loader, path, &own, generation, &cause);
        moe_loader_unlock_control(loader);
    }
    return moe_loader_pass_error(error, status, &cause);
}

/* ---- stage_config ---- */

static int32_t stage_config(struct moe_loader *loader, const struct moe_config_source *sources,
                            int32_t num_sources, uint64_t *id, struct moe_error *error)
{
    struct moe_sources *own = NULL;
    int32_t status = moe_sources_create(sources, num_sources, &own, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&loader->state);
    struct moe_generation *active = active_now(loader);
    const struct moe_loader_generation_info info =
        active != NULL ? active->info : (struct moe_loader_generation_info){0};
    pthread_mutex_unlock(&loader->state);
    struct moe_generation *generation = active != NULL ? create_record(loader, info.path) : NULL;
    if (generation == NULL) {
        moe_sources_leave(own);
        return active == NULL
                   ? moe_loader_status_set(error, MOE_LOADER_STATUS_STATE,
                                           "no generation is active whose configuration could be "
                                           "replaced")
                   : moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                           "no memory for a generation");
    }
    generation->info.generation = next_id(loader);
    memcpy(generation->info.path, info.path, sizeof(info.path));
    memcpy(generation->info.sha256, info.sha256, sizeof(info.sha256));
    memcpy(generation->info.kernel_set_id, info.kernel_set_id, sizeof(info.kernel_set_id));
    generation->sources = own;
    generation->runtime = moe_runtime_share(active->runtime);
    status = moe_runtime_select(generation->runtime, own, error);
    if (status == MOE_STATUS_OK) {
        status = moe_runtime_fingerprint(generation->runtime, &generation->info.config_fingerprint,
                                         error);
    }
    if (status == MOE_STATUS_OK) {
        status = add_open_slots(loader, generation, error);
    }
    return conclude(loader, generation, status, id, error);
}

int32_t moe_loader_stage_config(struct moe_loader *loader, const struct moe_config_source *sources,
                                int32_t num_sources, uint64_t *generation, struct moe_error *error)
{
    struct moe_error cause;
    MOE_INIT(cause);
    int32_t status = moe_loader_check_not_null(loader, "loader", &cause);
    if (status == MOE_STATUS_OK) {
        status = moe_loader_check_not_null(generation, "generation", &cause);
    }
    if (status == MOE_STATUS_OK) {
        moe_loader_lock_control(loader);
        status = stage_config(loader, sources, num_sources, generation, &cause);
        moe_loader_unlock_control(loader);
    }
    return moe_loader_pass_error(error, status, &cause);
}

/* ---- park ---- */

static int32_t begin_park(struct moe_loader *loader, uint64_t id, bool also_former,
                          struct moe_generation **out, struct moe_error *error)
{
    struct moe_generation *generation = moe_generation_find(loader, id, error);
    if (generation == NULL) {
        return MOE_STATUS_INVALID_ARGUMENT;
    }
    const int32_t state = generation->info.state;
    if (state == MOE_GENERATION_DRAINING) {
        return moe_loader_status_set(error, MOE_STATUS_BUSY,
                                     "generation %llu drains; poll until it is warm",
                                     (unsigned long long)id);
    }
    if (state != MOE_GENERATION_STAGED && state != MOE_GENERATION_WARM) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_STATE,
                                     "generation %llu is %s; staged and warm ones can be parked",
                                     (unsigned long long)id, moe_generation_state_name(state));
    }
    if (!also_former && generation == moe_swap_find_former(loader)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_STATE,
                                     "generation %llu is the one to roll back to; park it with "
                                     "also_former",
                                     (unsigned long long)id);
    }
    moe_generation_move(loader, generation, MOE_GENERATION_PARKED, MOE_STATUS_OK, "");
    *out = generation;
    return MOE_STATUS_OK;
}

int32_t moe_loader_park(struct moe_loader *loader, uint64_t generation, int32_t also_former,
                        struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_generation *parked = NULL;
    moe_loader_lock_control(loader);
    pthread_mutex_lock(&loader->state);
    status = begin_park(loader, generation, also_former != 0, &parked, error);
    pthread_mutex_unlock(&loader->state);
    if (status == MOE_STATUS_OK) {
        moe_generation_release(loader, parked);
    }
    moe_loader_unlock_control(loader);
    return status;
}
