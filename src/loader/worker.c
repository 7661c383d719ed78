/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a generation is not released under a worker.
 *
 * A worker's `sequence` is odd while it is inside.         The control thread
 *   enter:  E1  sequence = odd          (seq_cst)            promote:  P1  active = new  (seq_cst)
 *           E2  generation = active     (seq_cst)                      P2  note sequence (seq_cst)
 *           ... uses generation ...                           poll:     P3  look again    (acquire)
 *   leave:  L   sequence = even         (release)
 *
 * Claim: when P2 reads an even value, or P3 reads another value than P2's odd one, then no use of
 * the old generation by that worker is going on or still to come, and all its uses happened before
 * what the control thread does next.
 *
 * The seq_cst operations have one total order S that agrees with each thread's program order. Take
 * an enter whose E2 reads the old generation. E2 does not come after P1 in S, or it would read the
 * new one (or one stored later). So E1, E2, P1, P2 stand in S in this order: P2 reads the value of
 * that E1 or a later one of `sequence`, never an earlier one.
 *   - P2 reads that E1's odd value: the worker is noted. It is crossed out when P3 reads another
 *     value, which this worker stored later: by its L, a release store that P3, an acquire load,
 *     reads; or by a later enter's store, which is sequenced after L and is a release store too.
 *     Uses are sequenced before L, so they happened before P3's return.
 *   - P2 reads a later value, even: the worker's L, or the L of a later enter; the same argument,
 *     with P2 for P3.
 *   - P2 reads a later value, odd: a later enter. The uses of the earlier one happened before, as
 *     above. Whether that later enter reads the old generation or the new one is not known, so it
 *     is noted; at worst the drain takes one step of that worker longer.
 * An enter whose E2 comes after P1 in S does not use the old generation. Values of `sequence` never
 * come again (64 bits), and enter never spins, so each noted worker is crossed out after its step.
 *
 * The cost of the order E1 before E2 is one locked instruction per enter on x86, a store to a line
 * that no other worker writes. membarrier(2) would move it to the control thread and make the
 * reader's side a plain store, a few nanoseconds of a call that takes microseconds, at the price of
 * a kernel feature to probe for and of a proof that ThreadSanitizer cannot follow.
 *
 * Closing a slot is the same with the host's promise in the place of P1: enters that happen after
 * the promise do not ask for the slot, those before are noted.
 *
 * Counting: calls[worker] of a generation is written by this worker between enter and leave only,
 * so a drained generation's counters are exact and may be freed.
 */
#include "worker.h"

#include "loader_status.h"

const struct moe_loader_view *moe_loader_enter(struct moe_loader_worker *worker,
                                               const struct moe_loader_slot *slot)
{
    const uint64_t sequence = atomic_load_explicit(&worker->sequence, memory_order_relaxed);
    if ((sequence & 1) != 0) {
        return NULL; /* inside already */
    }
    atomic_store_explicit(&worker->sequence, sequence + 1, memory_order_seq_cst);
    struct moe_generation *generation =
        atomic_load_explicit(&worker->loader->active, memory_order_seq_cst);
    if (generation == NULL) {
        atomic_store_explicit(&worker->sequence, sequence + 2, memory_order_release);
        return NULL;
    }
    worker->generation = generation;
    _Atomic(uint64_t) *num_calls = &generation->calls[worker->idx].num_calls;
    atomic_store_explicit(num_calls, atomic_load_explicit(num_calls, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    return &generation->views[slot->idx];
}

const struct moe_loader_view *moe_loader_view_of(const struct moe_loader_worker *worker,
                                                 const struct moe_loader_slot *slot)
{
    const bool is_inside = (atomic_load_explicit(&worker->sequence, memory_order_relaxed) & 1) != 0;
    return is_inside ? &worker->generation->views[slot->idx] : NULL;
}

void moe_loader_leave(struct moe_loader_worker *worker)
{
    const uint64_t sequence = atomic_load_explicit(&worker->sequence, memory_order_relaxed);
    if ((sequence & 1) != 0) {
        atomic_store_explicit(&worker->sequence, sequence + 1, memory_order_release);
    }
}

void moe_worker_note_inside(const struct moe_loader *loader, uint64_t *inside)
{
    for (int32_t i = 0; i < loader->options.max_workers; i++) {
        const uint64_t sequence =
            atomic_load_explicit(&loader->workers[i].sequence, memory_order_seq_cst);
        inside[i] = (sequence & 1) != 0 ? sequence : 0;
    }
}

bool moe_worker_have_left(const struct moe_loader *loader, uint64_t *inside)
{
    bool have_left = true;
    for (int32_t i = 0; i < loader->options.max_workers; i++) {
        if (inside[i] != 0 &&
            inside[i] != atomic_load_explicit(&loader->workers[i].sequence, memory_order_acquire)) {
            inside[i] = 0;
        }
        have_left = have_left && inside[i] == 0;
    }
    return have_left;
}

int32_t moe_loader_worker_open(struct moe_loader *loader, struct moe_loader_worker **out,
                               struct moe_error *error)
{
    int32_t status = moe_loader_check_not_null(loader, "loader", error);
    if (status == MOE_STATUS_OK) {
        status = moe_loader_check_not_null(out, "out", error);
    }
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_loader_worker *worker = NULL;
    pthread_mutex_lock(&loader->state);
    for (int32_t i = 0; i < loader->options.max_workers && worker == NULL; i++) {
        if (!loader->workers[i].is_open) {
            worker = &loader->workers[i];
            worker->is_open = true; /* its sequence goes on, so old notes stay true */
        }
    }
    pthread_mutex_unlock(&loader->state);
    if (worker == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_BUSY,
                                     "all %d workers of the loader are open; raise max_workers",
                                     loader->options.max_workers);
    }
    *out = worker;
    return MOE_STATUS_OK;
}

void moe_loader_worker_close(struct moe_loader_worker *worker)
{
    if (worker == NULL) {
        return;
    }
    moe_loader_leave(worker);
    pthread_mutex_lock(&worker->loader->state);
    worker->is_open = false;
    pthread_mutex_unlock(&worker->loader->state);
}
