/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "swap_workers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct worker_thread {
    struct moe_swap_workers *workers;
    pthread_t handle;
    struct moe_loader_worker *worker;
    void *workspace;
};

struct moe_swap_workers {
    struct moe_swap_workers_options options;
    int num_started;
    pthread_mutex_t mutex;   /* guards what follows */
    pthread_cond_t has_work; /* or is_ending */
    struct moe_swap_request *first;
    struct moe_swap_request **last;
    int num_running;
    int is_ending;
    struct worker_thread threads[];
};

int64_t moe_swap_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void moe_swap_request_run(struct moe_loader_worker *worker, void *workspace,
                          struct moe_swap_request *request)
{
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = request->num_tokens;
    args.call.workspace = workspace;
    args.tokens = request->tokens;
    args.output = request->output;
    const struct moe_loader_view *view = moe_loader_enter(worker, request->slot);
    if (view == NULL) {
        request->status = MOE_LOADER_STATUS_STATE;
        request->generation = 0;
        return;
    }
    args.call.workspace_bytes = view->workspace_bytes;
    args.weights = view->weights;
    request->generation = view->generation;
    request->status = view->api->layer(view->plan, &args, &request->error);
    moe_loader_leave(worker);
}

/* The loader goes back to the former generation when too many of these are reported. */
static void report_device_error(const struct moe_swap_workers *workers,
                                const struct moe_swap_request *request)
{
    if (request->status == MOE_STATUS_DEVICE_ERROR || request->status == MOE_STATUS_DEVICE_LOST ||
        request->status == MOE_STATUS_INTERNAL) {
        (void)moe_loader_report(workers->options.loader, request->generation, request->status,
                                NULL);
    }
}

/* With the mutex held. */
static void put(struct moe_swap_workers *workers, struct moe_swap_request *request)
{
    request->next = NULL;
    request->queued_ns = moe_swap_now_ns();
    *workers->last = request;
    workers->last = &request->next;
    pthread_cond_signal(&workers->has_work);
}

/* With the mutex held. NULL: nothing will be queued any more. */
static struct moe_swap_request *take(struct moe_swap_workers *workers)
{
    while (workers->first == NULL && !(workers->is_ending && workers->num_running == 0)) {
        pthread_cond_wait(&workers->has_work, &workers->mutex);
    }
    struct moe_swap_request *request = workers->first;
    if (request != NULL) {
        workers->first = request->next;
        if (workers->first == NULL) {
            workers->last = &workers->first;
        }
    }
    return request;
}

static void *serve(void *self)
{
    struct worker_thread *thread = self;
    struct moe_swap_workers *workers = thread->workers;
    pthread_mutex_lock(&workers->mutex);
    for (struct moe_swap_request *request = take(workers); request != NULL;
         request = take(workers)) {
        workers->num_running += 1;
        pthread_mutex_unlock(&workers->mutex);
        moe_swap_request_run(thread->worker, thread->workspace, request);
        request->done_ns = moe_swap_now_ns();
        report_device_error(workers, request);
        const int goes_on = workers->options.done(workers->options.self, request);
        pthread_mutex_lock(&workers->mutex);
        workers->num_running -= 1;
        if (goes_on) {
            put(workers, request);
        }
    }
    pthread_cond_broadcast(&workers->has_work); /* the others need not wait either */
    pthread_mutex_unlock(&workers->mutex);
    return NULL;
}

static int start_thread(struct moe_swap_workers *workers, struct worker_thread *thread,
                        struct moe_cli_error *error)
{
    struct moe_error cause;
    MOE_INIT(cause);
    thread->workers = workers;
    if (posix_memalign(&thread->workspace, (size_t)workers->options.workspace_alignment,
                       (size_t)workers->options.workspace_bytes) != 0) {
        thread->workspace = NULL;
        return moe_cli_fail_memory(error, "making a worker's workspace");
    }
    if (moe_loader_worker_open(workers->options.loader, &thread->worker, &cause) != MOE_STATUS_OK) {
        return MOE_CLI_FAIL(error, "no worker of the loader: %s", cause.message);
    }
    const int failure = pthread_create(&thread->handle, NULL, serve, thread);
    if (failure != 0) {
        return MOE_CLI_FAIL(error, "a worker thread cannot be started: %s", strerror(failure));
    }
    return 0;
}

int moe_swap_workers_create(const struct moe_swap_workers_options *options,
                            struct moe_swap_workers **out, struct moe_cli_error *error)
{
    struct moe_swap_workers *workers =
        calloc(1, sizeof *workers + (size_t)options->num_threads * sizeof workers->threads[0]);
    if (workers == NULL) {
        return moe_cli_fail_memory(error, "making worker threads");
    }
    workers->options = *options;
    workers->last = &workers->first;
    pthread_mutex_init(&workers->mutex, NULL);
    pthread_cond_init(&workers->has_work, NULL);
    for (; workers->num_started < options->num_threads; ++workers->num_started) {
        if (start_thread(workers, &workers->threads[workers->num_started], error) != 0) {
            moe_swap_workers_destroy(workers);
            return -1;
        }
    }
    *out = workers;
    return 0;
}

void moe_swap_workers_destroy(struct moe_swap_workers *workers)
{
    if (workers == NULL) {
        return;
    }
    pthread_mutex_lock(&workers->mutex);
    workers->is_ending = 1;
    pthread_cond_broadcast(&workers->has_work);
    pthread_mutex_unlock(&workers->mutex);
    for (int i = 0; i < workers->num_started; ++i) {
        pthread_join(workers->threads[i].handle, NULL);
    }
    for (int i = 0; i < workers->options.num_threads; ++i) {
        moe_loader_worker_close(workers->threads[i].worker);
        free(workers->threads[i].workspace);
    }
    pthread_cond_destroy(&workers->has_work);
    pthread_mutex_destroy(&workers->mutex);
    free(workers);
}

void moe_swap_workers_submit(struct moe_swap_workers *workers, struct moe_swap_request *request)
{
    pthread_mutex_lock(&workers->mutex);
    put(workers, request);
    pthread_mutex_unlock(&workers->mutex);
}
