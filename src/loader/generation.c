/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "generation.h"

#include "loader_status.h"
#include "runtime.h"
#include "sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE_NAME(name, value, text) \
    case value:                       \
        return text;

const char *moe_generation_state_name(int32_t state)
{
    switch (state) {
        MOE_GENERATION_LIST(STATE_NAME)
    default:
        return "unknown";
    }
}

/* ---- slots ---- */

static int32_t check_workspace(const struct moe_loader_slot *slot, const struct moe_plan_info *info,
                               struct moe_error *error)
{
    const struct moe_loader_slot_options *options = &slot->options;
    if (options->workspace_bytes != 0 && info->workspace_bytes > options->workspace_bytes) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_WORKSPACE,
                                     "slot %d has %llu bytes of workspace, the plan needs %llu",
                                     slot->idx, (unsigned long long)options->workspace_bytes,
                                     (unsigned long long)info->workspace_bytes);
    }
    if (info->workspace_bytes != 0 && info->workspace_alignment > options->workspace_alignment) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_WORKSPACE,
                                     "slot %d has workspace aligned to %llu bytes, the plan needs "
                                     "%llu",
                                     slot->idx, (unsigned long long)options->workspace_alignment,
                                     (unsigned long long)info->workspace_alignment);
    }
    return MOE_STATUS_OK;
}

static int32_t create_plan(struct moe_generation *generation, const struct moe_loader_slot *slot,
                           struct moe_plan_info *info, struct moe_error *error)
{
    struct moe_runtime *runtime = generation->runtime;
    struct moe_plan_options options;
    MOE_INIT(options);
    options.workspace_cap = slot->options.workspace_bytes;
    options.ops = slot->options.ops;
    struct moe_plan *plan = NULL;
    int32_t status =
        runtime->api->plan_create(runtime->context, &slot->problem, &options, &plan, error);
    if (status == MOE_STATUS_WORKSPACE_TOO_SMALL) {
        return MOE_LOADER_STATUS_WORKSPACE; /* the plugin's sentence stands */
    }
    if (status != MOE_STATUS_OK) {
        return status;
    }
    if (plan == NULL) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_TABLE,
                                     "plan_create returned OK without a plan");
    }
    generation->plans[slot->idx] = plan;
    status = runtime->api->plan_info(plan, info, error);
    return status != MOE_STATUS_OK ? status : check_workspace(slot, info, error);
}

/* A context reads the environment at every reload. What was built from other files than before is
 * not the configuration that was verified. */
static int32_t check_fingerprint(const struct moe_generation *generation, struct moe_error *error)
{
    uint64_t fingerprint = 0;
    const int32_t status = moe_runtime_fingerprint(generation->runtime, &fingerprint, error);
    if (status != MOE_STATUS_OK || fingerprint == generation->info.config_fingerprint) {
        return status;
    }
    return moe_loader_status_set(error, MOE_STATUS_CONFIG,
                                 "the configuration that the environment names has changed since "
                                 "generation %llu was made (fingerprint %016llx, was %016llx)",
                                 (unsigned long long)generation->info.generation,
                                 (unsigned long long)fingerprint,
                                 (unsigned long long)generation->info.config_fingerprint);
}

int32_t moe_generation_add_slot(struct moe_generation *generation,
                                const struct moe_loader_slot *slot, struct moe_error *error)
{
    struct moe_runtime *runtime = generation->runtime;
    struct moe_plan_info info;
    MOE_INIT(info);
    const bool was_bound = runtime->weights[slot->idx].weights != NULL;
    int32_t status = moe_runtime_select(runtime, generation->sources, error);
    if (status == MOE_STATUS_OK) {
        status = check_fingerprint(generation, error);
    }
    if (status == MOE_STATUS_OK) {
        status = moe_runtime_bind(runtime, slot, error);
    }
    if (status == MOE_STATUS_OK) {
        status = create_plan(generation, slot, &info, error);
    }
    if (status != MOE_STATUS_OK) {
        if (generation->plans[slot->idx] != NULL) {
            runtime->api->plan_destroy(generation->plans[slot->idx]);
            generation->plans[slot->idx] = NULL;
        }
        if (!was_bound) {
            moe_runtime_unbind(runtime, slot);
        }
        return status;
    }
    struct moe_loader_view *view = &generation->views[slot->idx];
    MOE_INIT(*view);
    view->generation = generation->info.generation;
    view->api = runtime->api;
    view->context = runtime->context;
    view->plan = generation->plans[slot->idx];
    view->weights = runtime->weights[slot->idx].weights;
    view->workspace_bytes = info.workspace_bytes;
    view->workspace_alignment = info.workspace_alignment;
    return MOE_STATUS_OK;
}

void moe_generation_remove_slot(struct moe_generation *generation,
                                const struct moe_loader_slot *slot)
{
    if (generation->runtime == NULL || generation->plans[slot->idx] == NULL) {
        return;
    }
    generation->runtime->api->plan_destroy(generation->plans[slot->idx]);
    generation->plans[slot->idx] = NULL;
    memset(&generation->views[slot->idx], 0, sizeof(generation->views[slot->idx]));
}

/* ---- release ---- */

/* A context that other generations go on using gets the configuration of one of them back, the one
 * that serves if it is among them. Should that fail, the next plan tries again and reports it. */
static void restore_sources(struct moe_loader *loader, const struct moe_generation *released,
                            struct moe_runtime *runtime)
{
    struct moe_generation *heir = NULL;
    pthread_mutex_lock(&loader->state);
    for (struct moe_generation *at = loader->generations; at != NULL; at = at->next) {
        if (at != released && at->runtime == runtime &&
            (heir == NULL || at->info.state == MOE_GENERATION_ACTIVE)) {
            heir = at;
        }
    }
    pthread_mutex_unlock(&loader->state);
    if (heir != NULL) {
        (void)moe_runtime_select(runtime, heir->sources, NULL);
    }
}

void moe_generation_release(struct moe_loader *loader, struct moe_generation *generation)
{
    struct moe_runtime *runtime = generation->runtime;
    if (runtime != NULL) {
        for (int32_t i = 0; i < loader->options.max_slots; i++) {
            if (loader->slots[i] != NULL) {
                moe_generation_remove_slot(generation, loader->slots[i]);
            }
        }
        if (runtime->num_users > 1 && runtime->sources == generation->sources) {
            restore_sources(loader, generation, runtime);
        }
    }
    pthread_mutex_lock(&loader->state);
    generation->info.num_calls = moe_generation_num_calls(loader, generation);
    struct moe_call_counter *calls = generation->calls;
    uint64_t *inside = generation->inside;
    generation->calls = NULL;
    generation->inside = NULL;
    generation->runtime = NULL;
    generation->needs_release = false;
    pthread_mutex_unlock(&loader->state);

    moe_runtime_leave(loader, runtime);
    moe_sources_leave(generation->sources);
    free(generation->plans);
    free(generation->views);
    free(calls);
    free(inside);
    generation->sources = NULL;
    generation->plans = NULL;
    generation->views = NULL;
}

void moe_generation_release_rejected(struct moe_loader *loader)
{
    for (;;) {
        pthread_mutex_lock(&loader->state);
        struct moe_generation *generation = loader->generations;
        while (generation != NULL && !generation->needs_release) {
            generation = generation->next;
        }
        pthread_mutex_unlock(&loader->state);
        if (generation == NULL) {
            return;
        }
        moe_generation_release(loader, generation);
    }
}

void moe_generation_destroy(struct moe_generation *generation)
{
    if (generation != NULL) {
        free(generation->refusal);
        free(generation);
    }
}

/* ---- the list ---- */

struct moe_generation *moe_generation_find(struct moe_loader *loader, uint64_t id,
                                           struct moe_error *error)
{
    struct moe_generation *generation = loader->generations;
    while (generation != NULL && generation->info.generation != id) {
        generation = generation->next;
    }
    if (generation == NULL) {
        moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                              "no generation %llu; the newest is %llu", (unsigned long long)id,
                              (unsigned long long)loader->num_made);
    }
    return generation;
}

void moe_generation_move(struct moe_loader *loader, struct moe_generation *generation, int32_t to,
                         int32_t status, const char *reason)
{
    struct moe_loader_transition transition;
    MOE_INIT(transition);
    transition.from = generation->info.state;
    transition.to = to;
    transition.status = status;
    transition.generation = generation->info.generation;
    transition.path = generation->info.path;
    transition.reason = reason != NULL ? reason : "";
    generation->info.state = to;
    if (to == MOE_GENERATION_REJECTED) {
        loader->stats.num_rejected++;
        generation->status = status;
        if (transition.reason != generation->info.reason) {
            snprintf(generation->info.reason, sizeof(generation->info.reason), "%s",
                     transition.reason);
        }
    }
    if (loader->options.transition != NULL) {
        loader->options.transition(loader->options.self, &transition);
    }
}

void moe_generation_reject(struct moe_loader *loader, struct moe_generation *generation,
                           int32_t status, const char *reason)
{
    generation->is_refused = true;
    generation->needs_release = true;
    moe_generation_move(loader, generation, MOE_GENERATION_REJECTED, status, reason);
}

uint64_t moe_generation_num_calls(const struct moe_loader *loader,
                                  const struct moe_generation *generation)
{
    uint64_t num_calls = generation->info.num_calls;
    for (int32_t i = 0; generation->calls != NULL && i < loader->options.max_workers; i++) {
        num_calls += atomic_load_explicit(&generation->calls[i].num_calls, memory_order_relaxed);
    }
    return num_calls;
}

int32_t moe_loader_generation_at(struct moe_loader *loader, int32_t index,
                                 struct moe_loader_generation_info *out, struct moe_error *error)
{
    const int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_loader_generation_info info;
    int32_t num = 0;
    bool is_found = false;
    pthread_mutex_lock(&loader->state);
    for (struct moe_generation *at = loader->generations; at != NULL; at = at->next, num++) {
        if (num == index) {
            info = at->info;
            info.num_calls = moe_generation_num_calls(loader, at);
            is_found = true;
        }
    }
    pthread_mutex_unlock(&loader->state);
    if (!is_found) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "index %d; there are %d generations", index, num);
    }
    return MOE_LOADER_WRITE(out, &info, moe_loader_generation_info, error);
}
