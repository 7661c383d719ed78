/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "swap.h"

#include "generation.h"
#include "loader_status.h"
#include "refused.h"
#include "worker.h"

#include <stdio.h>
#include <string.h>

struct moe_generation *moe_swap_find_former(const struct moe_loader *loader)
{
    struct moe_generation *former = NULL;
    for (struct moe_generation *at = loader->generations; at != NULL; at = at->next) {
        const bool can_serve =
            (at->info.state == MOE_GENERATION_WARM || at->info.state == MOE_GENERATION_DRAINING) &&
            !at->is_refused;
        if (can_serve && at->served > (former != NULL ? former->served : 0)) {
            former = at;
        }
    }
    return former;
}

/* The store. From here on workers enter `to`; the one left behind drains. `reason` and `status` are
 * about the one left behind. */
static void switch_to(struct moe_loader *loader, struct moe_generation *to, int32_t status,
                      const char *reason)
{
    struct moe_generation *from =
        atomic_exchange_explicit(&loader->active, to, memory_order_seq_cst);
    loader->stats.active_generation = to->info.generation;
    if (from != NULL) {
        moe_worker_note_inside(loader, from->inside);
        from->served = ++loader->num_served;
        moe_generation_move(loader, from, MOE_GENERATION_DRAINING, status, reason);
    }
    to->info.num_device_errors = 0;
    moe_generation_move(loader, to, MOE_GENERATION_ACTIVE, MOE_STATUS_OK, "");
}

/* ---- promote ---- */

static int32_t promote(struct moe_loader *loader, uint64_t id, struct moe_error *error)
{
    struct moe_generation *generation = moe_generation_find(loader, id, error);
    if (generation == NULL) {
        return MOE_STATUS_INVALID_ARGUMENT;
    }
    const int32_t state = generation->info.state;
    const bool is_first = atomic_load_explicit(&loader->active, memory_order_relaxed) == NULL;
    if (generation->is_in_use) {
        return moe_loader_status_set(error, MOE_STATUS_BUSY, "generation %llu is being verified",
                                     (unsigned long long)id);
    }
    if (state != MOE_GENERATION_WARM && !(is_first && state == MOE_GENERATION_STAGED)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_STATE, "generation %llu is %s; %s",
                                     (unsigned long long)id, moe_generation_state_name(state),
                                     state == MOE_GENERATION_STAGED ? "verify it first"
                                     : state == MOE_GENERATION_DRAINING
                                         ? "poll until it is warm, or roll back to it"
                                         : "warm ones can be promoted");
    }
    if (moe_refused_holds_locked(loader, generation->info.sha256)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_HASH,
                                     "the file of generation %llu is refused since another "
                                     "generation of it was rolled back",
                                     (unsigned long long)id);
    }
    loader->stats.num_promotes++;
    switch_to(loader, generation, MOE_STATUS_OK, "");
    return MOE_STATUS_OK;
}

int32_t moe_loader_promote(struct moe_loader *loader, uint64_t generation, struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&loader->state);
    status = promote(loader, generation, error);
    pthread_mutex_unlock(&loader->state);
    return status;
}

/* ---- rollback ---- */

static int32_t roll_back(struct moe_loader *loader, bool refuses, int32_t cause, const char *reason,
                         struct moe_error *error)
{
    struct moe_generation *left = atomic_load_explicit(&loader->active, memory_order_relaxed);
    struct moe_generation *former = moe_swap_find_former(loader);
    if (left == NULL || former == NULL) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_STATE,
                                     left == NULL ? "no generation is active"
                                                  : "there is no generation to roll back to: none "
                                                    "served before, or it was parked or rejected");
    }
    if (refuses) {
        left->is_refused = true;
        left->status = cause;
        snprintf(left->info.reason, sizeof(left->info.reason), "%s", reason);
        if (strcmp(left->info.sha256, former->info.sha256) != 0) {
            moe_refused_add(loader, &left->refusal, left->info.sha256);
        }
    }
    loader->stats.num_rollbacks++;
    switch_to(loader, former, cause, reason);
    return MOE_STATUS_OK;
}

int32_t moe_loader_rollback(struct moe_loader *loader, int32_t refuse, const char *reason,
                            struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&loader->state);
    status = roll_back(loader, refuse != 0, MOE_STATUS_OK, reason != NULL ? reason : "rolled back",
                       error);
    pthread_mutex_unlock(&loader->state);
    return status;
}

static int32_t report(struct moe_loader *loader, uint64_t id, int32_t cause,
                      struct moe_error *error)
{
    struct moe_generation *generation = moe_generation_find(loader, id, error);
    if (generation == NULL) {
        return MOE_STATUS_INVALID_ARGUMENT;
    }
    const uint64_t num_errors = ++generation->info.num_device_errors;
    const int32_t limit = loader->options.max_device_errors;
    if (generation->info.state != MOE_GENERATION_ACTIVE || limit < 0 ||
        num_errors < (uint64_t)limit) {
        return MOE_STATUS_OK;
    }
    char reason[sizeof(generation->info.reason)];
    snprintf(reason, sizeof(reason), "%llu device errors, the last %s",
             (unsigned long long)num_errors, moe_loader_status_name(cause));
    return roll_back(loader, true, cause, reason, error);
}

int32_t moe_loader_report(struct moe_loader *loader, uint64_t generation, int32_t status,
                          struct moe_error *error)
{
    int32_t result = moe_loader_check_not_null(loader, "loader", error);
    if (result != MOE_STATUS_OK) {
        return result;
    }
    if (status != MOE_STATUS_DEVICE_ERROR && status != MOE_STATUS_DEVICE_LOST &&
        status != MOE_STATUS_INTERNAL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "status %d (%s) is no device error; DEVICE_ERROR, DEVICE_LOST "
                                     "and INTERNAL are",
                                     status, moe_loader_status_name(status));
    }
    pthread_mutex_lock(&loader->state);
    result = report(loader, generation, status, error);
    pthread_mutex_unlock(&loader->state);
    return result;
}

/* ---- poll ---- */

static void look_at_draining(struct moe_loader *loader, struct moe_generation *generation)
{
    if (!moe_worker_have_left(loader, generation->inside)) {
        return;
    }
    if (loader->options.is_done != NULL &&
        loader->options.is_done(loader->options.self, generation->info.generation) == 0) {
        return;
    }
    if (generation->is_refused) {
        moe_generation_reject(loader, generation, generation->status, generation->info.reason);
    } else {
        moe_generation_move(loader, generation, MOE_GENERATION_WARM, MOE_STATUS_OK, "");
    }
}

int32_t moe_loader_poll(struct moe_loader *loader, struct moe_error *error)
{
    const int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&loader->state);
    for (struct moe_generation *at = loader->generations; at != NULL; at = at->next) {
        if (at->info.state == MOE_GENERATION_DRAINING) {
            look_at_draining(loader, at);
        }
    }
    pthread_mutex_unlock(&loader->state);
    /* What was rejected is released here, or by the call that holds the mutex when it ends. */
    if (pthread_mutex_trylock(&loader->control) == 0) {
        moe_loader_unlock_control(loader);
    }
    return MOE_STATUS_OK;
}
