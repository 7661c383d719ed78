/* SPDX-License-Identifier: Apache-2.0 */
/* A small inference server: threads that take layer requests from a queue and run them on whatever
 * generation the loader serves at that moment. */
#ifndef MOE_SWAP_WORKERS_H
#define MOE_SWAP_WORKERS_H

#include "cli_error.h"
#include "moe_loader.h"

#include <stdint.h>

/* Owned by the caller, untouched by it from submit until it is done. */
struct moe_swap_request {
    const struct moe_loader_slot *slot;
    const void *tokens; /* [num_tokens, hidden]; routes come from the layer's router */
    void *output;       /* [num_tokens, hidden] */
    int64_t num_tokens;
    /* Written by the workers. */
    int64_t queued_ns; /* on the clock of moe_swap_now_ns */
    int64_t done_ns;
    int32_t status; /* of the call; MOE_LOADER_STATUS_STATE: nothing was active */
    uint64_t generation;
    struct moe_error error;
    struct moe_swap_request *next; /* private */
};

/* A request is done. Called on the thread that ran it; 1 puts it back into the queue, with what the
 * function made of it (a client that asks again as soon as it is answered). */
typedef int moe_swap_done_fn(void *self, struct moe_swap_request *request);

struct moe_swap_workers_options {
    struct moe_loader *loader;
    int num_threads;
    uint64_t workspace_bytes; /* of each thread: the largest cap of the slots */
    uint64_t workspace_alignment;
    moe_swap_done_fn *done;
    void *self;
};

struct moe_swap_workers;

/* Starts the threads. Returns 0, or -1 with a sentence. */
int moe_swap_workers_create(const struct moe_swap_workers_options *options,
                            struct moe_swap_workers **out, struct moe_cli_error *error);
/* Runs what is queued (`done` must come to return 0), then ends the threads. NULL is legal. */
void moe_swap_workers_destroy(struct moe_swap_workers *workers);

/* Any thread but the workers'. */
void moe_swap_workers_submit(struct moe_swap_workers *workers, struct moe_swap_request *request);

/* A clock that never goes back. */
int64_t moe_swap_now_ns(void);

/* One call on the active generation, on a worker of the calling thread. */
void moe_swap_request_run(struct moe_loader_worker *worker, void *workspace,
                          struct moe_swap_request *request);

#endif
