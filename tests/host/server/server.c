/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "server.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORKSPACE_ALIGNMENT = 256, MAX_SWAPS = 1 << 16, LINE_BYTES = 64 };

struct sample {
    int64_t begin_ns;
    int64_t end_ns;
};

struct thread {
    _Alignas(LINE_BYTES) struct server *server;
    pthread_t handle;
    struct moe_loader_worker *worker;
    void *workspace;
    struct sample *samples; /* ring */
    int64_t num_samples;    /* taken so far */
    uint64_t num_failures;
};

struct server {
    struct server_options options;
    struct thread *threads;
    int32_t num_started;

    pthread_mutex_t mutex;
    pthread_cond_t has_work; /* or is_stopping */
    pthread_cond_t is_idle;
    struct server_request *first;
    struct server_request **last;
    int64_t num_pending; /* queued or running */
    bool is_stopping;
    int64_t *swaps;
    int64_t num_swaps;
};

int64_t server_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- worker threads ---- */

static bool is_device_error(int32_t status)
{
    return status == MOE_STATUS_DEVICE_ERROR || status == MOE_STATUS_DEVICE_LOST ||
           status == MOE_STATUS_INTERNAL;
}

static void run(struct thread *thread, struct server_request *request)
{
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = request->num_tokens;
    args.call.workspace = thread->workspace;
    args.tokens = request->tokens;
    args.topk_ids = request->topk_ids;
    args.topk_weights = request->topk_weights;
    args.output = request->output;

    const struct moe_loader_view *view = moe_loader_enter(thread->worker, request->slot);
    if (view == NULL) {
        request->status = MOE_LOADER_STATUS_STATE;
        return;
    }
    args.call.workspace_bytes = view->workspace_bytes;
    args.weights = view->weights;
    request->generation = view->generation;
    request->status = view->api->layer(view->plan, &args, NULL);
    moe_loader_leave(thread->worker);
    if (is_device_error(request->status)) {
        (void)moe_loader_report(thread->server->options.loader, request->generation,
                                request->status, NULL);
    }
}

static void serve(struct thread *thread, struct server_request *request)
{
    request->begin_ns = server_now_ns();
    run(thread, request);
    request->end_ns = server_now_ns();
    thread->num_failures += request->status != MOE_STATUS_OK;
    struct sample *sample =
        &thread->samples[thread->num_samples % thread->server->options.num_samples];
    sample->begin_ns = request->begin_ns;
    sample->end_ns = request->end_ns;
    thread->num_samples++;
}

/* The next request; NULL when the server stops and the queue is empty. */
static struct server_request *take(struct server *server)
{
    pthread_mutex_lock(&server->mutex);
    while (server->first == NULL && !server->is_stopping) {
        pthread_cond_wait(&server->has_work, &server->mutex);
    }
    struct server_request *request = server->first;
    if (request != NULL) {
        server->first = request->next;
        if (server->first == NULL) {
            server->last = &server->first;
        }
    }
    pthread_mutex_unlock(&server->mutex);
    return request;
}

static void finish_one(struct server *server)
{
    pthread_mutex_lock(&server->mutex);
    server->num_pending--;
    if (server->num_pending == 0) {
        pthread_cond_broadcast(&server->is_idle);
    }
    pthread_mutex_unlock(&server->mutex);
}

static void *thread_main(void *argument)
{
    struct thread *thread = argument;
    struct server *server = thread->server;
    for (struct server_request *request = take(server); request != NULL; request = take(server)) {
        serve(thread, request);
        finish_one(server);
    }
    return NULL;
}

/* ---- life ---- */

static int start_thread(struct server *server, struct thread *thread)
{
    const struct server_options *options = &server->options;
    thread->server = server;
    thread->samples = calloc((size_t)options->num_samples, sizeof(*thread->samples));
    if (thread->samples == NULL ||
        posix_memalign(&thread->workspace, WORKSPACE_ALIGNMENT,
                       (size_t)options->workspace_bytes + WORKSPACE_ALIGNMENT) != 0 ||
        moe_loader_worker_open(options->loader, &thread->worker, NULL) != MOE_STATUS_OK) {
        return -1;
    }
    return pthread_create(&thread->handle, NULL, thread_main, thread) == 0 ? 0 : -1;
}

int server_create(const struct server_options *options, struct server **out)
{
    struct server *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        return -1;
    }
    server->options = *options;
    server->last = &server->first;
    pthread_mutex_init(&server->mutex, NULL);
    pthread_cond_init(&server->has_work, NULL);
    pthread_cond_init(&server->is_idle, NULL);
    server->swaps = calloc(MAX_SWAPS, sizeof(*server->swaps));
    void *threads = NULL;
    const size_t threads_bytes = (size_t)options->num_threads * sizeof(*server->threads);
    if (server->swaps == NULL || posix_memalign(&threads, LINE_BYTES, threads_bytes) != 0) {
        server_destroy(server);
        return -1;
    }
    memset(threads, 0, threads_bytes);
    server->threads = threads;
    while (server->num_started < options->num_threads) {
        if (start_thread(server, &server->threads[server->num_started]) != 0) {
            server_destroy(server);
            return -1;
        }
        server->num_started++;
    }
    *out = server;
    return 0;
}

void server_destroy(struct server *server)
{
    if (server == NULL) {
        return;
    }
    pthread_mutex_lock(&server->mutex);
    server->is_stopping = true;
    pthread_cond_broadcast(&server->has_work);
    pthread_mutex_unlock(&server->mutex);
    for (int32_t i = 0; i < server->num_started; i++) {
        pthread_join(server->threads[i].handle, NULL);
    }
    for (int32_t i = 0; server->threads != NULL && i < server->options.num_threads; i++) {
        moe_loader_worker_close(server->threads[i].worker);
        free(server->threads[i].workspace);
        free(server->threads[i].samples);
    }
    pthread_cond_destroy(&server->has_work);
    pthread_cond_destroy(&server->is_idle);
    pthread_mutex_destroy(&server->mutex);
    free(server->threads);
    free(server->swaps);
    free(server);
}

void server_submit(struct server *server, struct server_request *request)
{
    request->next = NULL;
    pthread_mutex_lock(&server->mutex);
    *server->last = request;
    server->last = &request->next;
    server->num_pending++;
    pthread_cond_signal(&server->has_work);
    pthread_mutex_unlock(&server->mutex);
}

void server_wait(struct server *server)
{
    pthread_mutex_lock(&server->mutex);
    while (server->num_pending > 0) {
        pthread_cond_wait(&server->is_idle, &server->mutex);
    }
    pthread_mutex_unlock(&server->mutex);
}

void server_note_swap(struct server *server)
{
    pthread_mutex_lock(&server->mutex);
    if (server->num_swaps < MAX_SWAPS) {
        server->swaps[server->num_swaps++] = server_now_ns();
    }
    pthread_mutex_unlock(&server->mutex);
}

/* ---- report ---- */

/* Swaps are noted in ascending order: the first at or after `begin - window` decides. */
static bool is_near_swap(const struct server *server, const struct sample *sample,
                         int64_t window_ns)
{
    int64_t low = 0, high = server->num_swaps;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (server->swaps[middle] < sample->begin_ns - window_ns) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < server->num_swaps && server->swaps[low] <= sample->end_ns + window_ns;
}

static int compare_times(const void *a, const void *b)
{
    int64_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

static void summarize(int64_t *times, int64_t num, struct server_percentiles *out)
{
    memset(out, 0, sizeof(*out));
    out->num_samples = num;
    if (num > 0) {
        qsort(times, (size_t)num, sizeof(*times), compare_times);
        out->p50_ns = times[num / 2];
        out->p99_ns = times[num * 99 / 100];
        out->max_ns = times[num - 1];
    }
}

int server_get_report(struct server *server, int64_t window_ns, struct server_report *report)
{
    const int64_t kept = server->options.num_samples;
    const size_t capacity = (size_t)kept * (size_t)server->num_started + 1;
    int64_t *inside = malloc(capacity * sizeof(*inside));
    int64_t *outside = malloc(capacity * sizeof(*outside));
    int64_t num_inside = 0, num_outside = 0;
    memset(report, 0, sizeof(*report));
    if (inside == NULL || outside == NULL) {
        free(inside);
        free(outside);
        return -1;
    }
    for (int32_t t = 0; t < server->num_started; t++) {
        const struct thread *thread = &server->threads[t];
        report->num_requests += (uint64_t)thread->num_samples;
        report->num_failures += thread->num_failures;
        for (int64_t i = 0; i < thread->num_samples && i < kept; i++) {
            const struct sample *sample = &thread->samples[i];
            const int64_t time = sample->end_ns - sample->begin_ns;
            if (is_near_swap(server, sample, window_ns)) {
                inside[num_inside++] = time;
            } else {
                outside[num_outside++] = time;
            }
        }
    }
    summarize(inside, num_inside, &report->inside);
    summarize(outside, num_outside, &report->outside);
    free(inside);
    free(outside);
    return 0;
}
