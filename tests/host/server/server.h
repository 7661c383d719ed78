/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small inference server: worker threads take layer requests from a queue and run them on
 * whatever generation the loader serves at that moment. It knows the loader and moe_plugin.h,
 * nothing else.
 */
#ifndef MOE_TESTS_HOST_SERVER_H
#define MOE_TESTS_HOST_SERVER_H

#include "moe_loader.h"

#include <stdint.h>

/* One request, owned by the caller until it is done; `tokens` to `topk_weights` are inputs as in
 * struct moe_layer_args, in host memory. */
struct server_request {
    const struct moe_loader_slot *slot;
    int64_t num_tokens;
    const void *tokens;
    const int32_t *topk_ids; /* NULL: by the slot's router */
    const float *topk_weights;
    void *output;
    /* Written by the server. */
    int32_t status;      /* of the call; MOE_LOADER_STATUS_STATE: nothing was ACTIVE */
    uint64_t generation; /* that answered */
    int64_t begin_ns;    /* monotonic: before enter, after leave */
    int64_t end_ns;
    struct server_request *next; /* private */
};

struct server_options {
    struct moe_loader *loader;
    int32_t num_threads;
    uint64_t workspace_bytes; /* per thread: the largest cap of the slots */
    int64_t num_samples;      /* latencies kept per thread, the newest */
};

struct server;

/* Start the threads. 0, or -1 when memory, threads or workers of the loader are short. */
int server_create(const struct server_options *options, struct server **out);

/* Let queued requests finish, stop the threads. NULL is legal. */
void server_destroy(struct server *server);

/* Queue a request. Any thread. */
void server_submit(struct server *server, struct server_request *request);

/* Wait until no request is queued or running. */
void server_wait(struct server *server);

/* Remember that a swap was made now. */
void server_note_swap(struct server *server);

int64_t server_now_ns(void);

struct server_percentiles {
    int64_t num_samples;
    int64_t p50_ns;
    int64_t p99_ns;
    int64_t max_ns;
};

struct server_report {
    uint64_t num_requests;
    uint64_t num_failures;
    struct server_percentiles inside;  /* requests that ran within `window_ns` of a noted swap */
    struct server_percentiles outside; /* the others */
};

/* What the threads have seen; while no request runs. 0, or -1 for want of memory. */
int server_get_report(struct server *server, int64_t window_ns, struct server_report *report);

#endif
