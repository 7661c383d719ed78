/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "slot.h"
#include "generation.h"
#include "loader_status.h"
#include "runtime.h"
#include "worker.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_EXPERTS =
        1 << 20, /* bounds what is read of a table before a plugin has judged the problem */
    DEFAULT_WORKSPACE_ALIGNMENT = 256,
};

/* ---- copies ---- */

/* The operands of a description follow each other; from `router` on a table has one entry. */
enum {
    FIRST_OPERAND = offsetof(struct moe_weights_desc, gate),
    FIRST_SINGLE = offsetof(struct moe_weights_desc, router),
    NUM_OPERANDS = (sizeof(struct moe_weights_desc) - FIRST_OPERAND) / sizeof(struct moe_operand),
};
_Static_assert(sizeof(struct moe_weights_desc) ==
                   FIRST_OPERAND + NUM_OPERANDS * sizeof(struct moe_operand),
               "a description of weights consists of operands");

static int64_t table_length(size_t operand_idx, int32_t num_experts)
{
    return FIRST_OPERAND + operand_idx * sizeof(struct moe_operand) < FIRST_SINGLE ? num_experts
                                                                                   : 1;
}

static int32_t copy_tables(struct moe_loader_slot *slot, struct moe_error *error)
{
    struct moe_operand operands[NUM_OPERANDS];
    unsigned char *first = (unsigned char *)&slot->weights + FIRST_OPERAND;
    memcpy(operands, first, sizeof(operands));
    int64_t num_entries = 0;
    for (size_t i = 0; i < NUM_OPERANDS; i++) {
        num_entries += operands[i].table != NULL ? table_length(i, slot->problem.num_experts) : 0;
    }
    if (num_entries == 0) {
        return MOE_STATUS_OK;
    }
    slot->tables = calloc((size_t)num_entries, sizeof(*slot->tables));
    if (slot->tables == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for the tables of the weights");
    }
    const void **next = slot->tables;
    for (size_t i = 0; i < NUM_OPERANDS; i++) {
        if (operands[i].table != NULL) {
            const size_t length = (size_t)table_length(i, slot->problem.num_experts);
            memcpy(next, operands[i].table, length * sizeof(*next));
            operands[i].table = next;
            next += length;
        }
    }
    memcpy(first, operands, sizeof(operands));
    return MOE_STATUS_OK;
}

static int32_t check_options(const struct moe_loader_slot_options *options, struct moe_error *error)
{
    if (options->flags != 0) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "moe_loader_slot_options.flags is 0x%x; no flag is defined",
                                     options->flags);
    }
    if ((options->prepared_alloc == NULL) != (options->prepared_free == NULL)) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "of prepared_alloc and prepared_free only one is set; set both "
            "or none");
    }
    if ((options->workspace_alignment & (options->workspace_alignment - 1)) != 0) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "workspace_alignment is %llu; it must be a power of two or 0",
                                     (unsigned long long)options->workspace_alignment);
    }
    return MOE_STATUS_OK;
}

static int32_t read_slot(struct moe_loader_slot *slot, const struct moe_loader_slot_options *caller,
                         struct moe_error *error)
{
    int32_t status = MOE_LOADER_READ(&slot->options, caller, moe_loader_slot_options, error);
    if (status == MOE_STATUS_OK) {
        status = check_options(&slot->options, error);
    }
    if (status == MOE_STATUS_OK) {
        status = MOE_LOADER_READ(&slot->problem, slot->options.problem, moe_problem, error);
    }
    if (status == MOE_STATUS_OK) {
        status = MOE_LOADER_READ(&slot->weights, slot->options.weights, moe_weights_desc, error);
    }
    if (status == MOE_STATUS_OK &&
        (slot->problem.num_experts < 1 || slot->problem.num_experts > MAX_EXPERTS)) {
        status = moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                       "problem.num_experts is %d; it must be 1 to %d",
                                       slot->problem.num_experts, MAX_EXPERTS);
    }
    if (status == MOE_STATUS_OK) {
        status = copy_tables(slot, error);
    }
    slot->options.problem = &slot->problem;
    slot->options.weights = &slot->weights;
    if (slot->options.workspace_alignment == 0) {
        slot->options.workspace_alignment = DEFAULT_WORKSPACE_ALIGNMENT;
    }
    return status;
}

void moe_slot_destroy(struct moe_loader_slot *slot)
{
    if (slot != NULL) {
        free(slot->tables);
        free(slot->inside);
        free(slot);
    }
}

/* ---- open ---- */

/* Take the slot out of every generation that still holds anything. */
static void remove_everywhere(struct moe_loader *loader, const struct moe_loader_slot *slot)
{
    struct moe_generation *at;
    pthread_mutex_lock(&loader->state);
    at = loader->generations;
    pthread_mutex_unlock(&loader->state);
    /* Records are appended and forgotten under the control mutex only, which is held. */
    for (struct moe_generation *with_plan = at; with_plan != NULL; with_plan = with_plan->next) {
        moe_generation_remove_slot(with_plan, slot);
    }
    for (; at != NULL; at = at->next) {
        if (at->runtime != NULL) {
            moe_runtime_unbind(at->runtime, slot);
        }
    }
}

/* How it went, generation by generation; nothing is decided yet. */
static void add_everywhere(struct moe_loader *loader, const struct moe_loader_slot *slot)
{
    pthread_mutex_lock(&loader->state);
    struct moe_generation *at = loader->generations;
    pthread_mutex_unlock(&loader->state);
    for (; at != NULL; at = at->next) {
        MOE_INIT(at->slot_error);
        at->slot_status = MOE_STATUS_OK;
        if (at->runtime != NULL) {
            at->slot_status = moe_generation_add_slot(at, slot, &at->slot_error);
        }
    }
}

/* Under the state mutex: the outcome for one generation that is not ACTIVE. */
static void settle(struct moe_loader *loader, struct moe_generation *generation)
{
    const int32_t state = generation->info.state;
    if (generation->slot_status == MOE_STATUS_OK) {
        if (state == MOE_GENERATION_WARM && generation->served == 0) {
            moe_generation_move(loader, generation, MOE_GENERATION_STAGED, MOE_STATUS_OK,
                                "a slot was opened; verify again");
        }
    } else if (state == MOE_GENERATION_DRAINING) {
        generation->is_refused = true;
        generation->status = generation->slot_status;
        memcpy(generation->info.reason, generation->slot_error.message,
               sizeof(generation->info.reason) - 1);
    } else if (state == MOE_GENERATION_STAGED || state == MOE_GENERATION_WARM) {
        moe_generation_reject(loader, generation, generation->slot_status,
                              generation->slot_error.message);
    }
}

static int32_t open_slot(struct moe_loader *loader, struct moe_loader_slot *slot,
                         struct moe_error *error)
{
    int32_t idx = 0;
    while (idx < loader->options.max_slots && loader->slots[idx] != NULL) {
        idx++;
    }
    if (idx == loader->options.max_slots) {
        return moe_loader_status_set(error, MOE_STATUS_BUSY,
                                     "all %d slots of the loader are open; raise max_slots", idx);
    }
    slot->idx = idx;
    loader->slots[idx] = slot;
    add_everywhere(loader, slot);

    pthread_mutex_lock(&loader->state);
    struct moe_generation *active = atomic_load_explicit(&loader->active, memory_order_relaxed);
    const int32_t status = active != NULL ? active->slot_status : MOE_STATUS_OK;
    for (struct moe_generation *at = loader->generations; status == MOE_STATUS_OK && at != NULL;
         at = at->next) {
        if (at != active) {
            settle(loader, at);
        }
    }
    pthread_mutex_unlock(&loader->state);

    if (status != MOE_STATUS_OK) {
        (void)moe_loader_pass_error(error, status, &active->slot_error);
        remove_everywhere(loader, slot);
        loader->slots[idx] = NULL;
    }
    return status;
}

int32_t moe_loader_slot_open(struct moe_loader *loader,
                             const struct moe_loader_slot_options *options,
                             struct moe_loader_slot **out, struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status == MOE_STATUS_OK) {
        status = moe_loader_check_not_null(out, "out", error);
    }
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_loader_slot *slot = calloc(1, sizeof(*slot));
    if (slot == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for a slot");
    }
    slot->loader = loader;
    slot->inside = calloc((size_t)loader->options.max_workers, sizeof(*slot->inside));
    status = slot->inside == NULL
                 ? moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for a slot")
                 : read_slot(slot, options, error);
    if (status == MOE_STATUS_OK) {
        moe_loader_lock_control(loader);
        status = open_slot(loader, slot, error);
        moe_loader_unlock_control(loader);
    }
    if (status != MOE_STATUS_OK) {
        moe_slot_destroy(slot);
        return status;
    }
    *out = slot;
    return MOE_STATUS_OK;
}

/* ---- close ---- */

int32_t moe_loader_slot_close(struct moe_loader_slot *slot, struct moe_error *error)
{
    if (slot == NULL) {
        return MOE_STATUS_OK;
    }
    struct moe_loader *loader = slot->loader;
    moe_loader_lock_control(loader);
    if (!slot->is_closing) {
        slot->is_closing = true;
        moe_worker_note_inside(loader, slot->inside);
    }
    if (!moe_worker_have_left(loader, slot->inside)) {
        const int32_t idx = slot->idx;
        moe_loader_unlock_control(loader);
        return moe_loader_status_set(error, MOE_STATUS_BUSY,
                                     "a worker has been inside since slot %d is being closed; try "
                                     "again after its leave",
                                     idx);
    }
    remove_everywhere(loader, slot);
    loader->slots[slot->idx] = NULL;
    moe_loader_unlock_control(loader);
    moe_slot_destroy(slot);
    return MOE_STATUS_OK;
}
