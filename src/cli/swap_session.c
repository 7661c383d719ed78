/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "swap_session.h"

#include "swap_clients.h"
#include "swap_workers.h"
#include "terminal.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    PAUSE_MS = 25,     /* between staging and a promote: the window holds no staging */
    DRAIN_POLL_MS = 5, /* a host polls now and then; each time it takes a CPU from a worker */
    DRAIN_SECONDS = 60 /* longer is a failure */
};
_Static_assert(PAUSE_MS > 2 * MOE_SWAP_WINDOW_MS, "requests of the phases are apart");

const char *moe_swap_plugin_name(int plugin)
{
    return plugin == 0 ? "A" : "B";
}

const char *moe_swap_step_name(int step)
{
#define STEP_NAME(constant, name) name,
    static const char *const names[] = {MOE_SWAP_STEP_LIST(STEP_NAME)};
#undef STEP_NAME
    return names[step];
}

void moe_swap_sentences_add(struct moe_swap_sentences *sentences, const char *format, ...)
{
    const int64_t idx = sentences->num_sentences++;
    if (idx < MOE_SWAP_MAX_SENTENCES) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(sentences->kept[idx], sizeof sentences->kept[idx], format, arguments);
        va_end(arguments);
    }
}

static void pause_ms(int ms)
{
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

/* ---- generations ---- */

static uint64_t active_generation(const struct moe_swap_session *session)
{
    struct moe_loader_stats stats;
    MOE_INIT(stats);
    (void)moe_loader_get_stats(session->loader, &stats, NULL);
    return stats.active_generation;
}

static void note_time(struct moe_swap_session *session, int step, int64_t begin_ns)
{
    session->num_unmeasured +=
        moe_swap_intervals_add(&session->step_times[step], begin_ns, moe_swap_now_ns()) != 0;
}

static void note_staging(struct moe_swap_session *session, int64_t begin_ns)
{
    session->num_unmeasured +=
        moe_swap_intervals_add(&session->stagings, begin_ns, moe_swap_now_ns()) != 0;
}

/* Stage and, when something is active to compare with, verify. */
static int32_t bring_up(struct moe_swap_session *session, int plugin, uint64_t *generation,
                        struct moe_error *cause)
{
    int64_t begin_ns = moe_swap_now_ns();
    MOE_INIT(*cause);
    int32_t status = moe_loader_stage(session->loader, session->options.plugins[plugin], NULL,
                                      generation, cause);
    note_time(session, MOE_SWAP_STEP_STAGE, begin_ns);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    if (*generation < sizeof session->plugins / sizeof session->plugins[0]) {
        atomic_store(&session->plugins[*generation], (signed char)plugin);
    }
    if (active_generation(session) == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_loader_verify_options verify;
    MOE_INIT(verify);
    begin_ns = moe_swap_now_ns();
    status = moe_loader_verify(session->loader, *generation, &verify, cause);
    note_time(session, MOE_SWAP_STEP_VERIFY, begin_ns);
    return status;
}

static void note_rejection(struct moe_swap_session *session, int plugin, int32_t status,
                           const struct moe_error *cause)
{
    session->num_rejections += 1;
    moe_swap_sentences_add(&session->rejections, "%s: %s: %s", moe_swap_plugin_name(plugin),
                           moe_loader_status_name(status), cause->message);
}

/* Waits until no worker is inside the generation any more. */
static int32_t drain(struct moe_swap_session *session, uint64_t generation, struct moe_error *cause)
{
    const int64_t begin_ns = moe_swap_now_ns();
    const int64_t deadline_ns = begin_ns + (int64_t)DRAIN_SECONDS * 1000000000;
    struct moe_loader_generation_info info;
    MOE_INIT(info);
    for (;;) {
        int32_t status = moe_loader_poll(session->loader, cause);
        for (int32_t i = 0; status == MOE_STATUS_OK && info.generation != generation; ++i) {
            status = moe_loader_generation_at(session->loader, i, &info, cause);
        }
        if (status != MOE_STATUS_OK || info.state != MOE_GENERATION_DRAINING) {
            note_time(session, MOE_SWAP_STEP_DRAIN, begin_ns);
            return status;
        }
        if (moe_swap_now_ns() > deadline_ns) {
            snprintf(cause->message, sizeof cause->message,
                     "generation %llu has not drained in %d seconds",
                     (unsigned long long)generation, DRAIN_SECONDS);
            return MOE_STATUS_BUSY;
        }
        info.generation = 0;
        pause_ms(DRAIN_POLL_MS);
    }
}

static int32_t park(struct moe_swap_session *session, uint64_t generation, struct moe_error *cause)
{
    const int64_t begin_ns = moe_swap_now_ns();
    const int32_t status = moe_loader_park(session->loader, generation, 1, cause);
    note_time(session, MOE_SWAP_STEP_PARK, begin_ns);
    note_staging(session, begin_ns);
    return status;
}

static int32_t promote(struct moe_swap_session *session, uint64_t generation,
                       struct moe_error *cause)
{
    const int64_t window_ns = (int64_t)MOE_SWAP_WINDOW_MS * 1000000;
    const int64_t begin_ns = moe_swap_now_ns();
    const int32_t status = moe_loader_promote(session->loader, generation, cause);
    const int64_t end_ns = moe_swap_now_ns();
    note_time(session, MOE_SWAP_STEP_PROMOTE, begin_ns);
    session->num_unmeasured +=
        moe_swap_intervals_add(&session->windows, begin_ns - window_ns, end_ns + window_ns) != 0;
    return status;
}

/* One swap to the plugin that does not serve. */
static void swap(struct moe_swap_session *session)
{
    const uint64_t former = active_generation(session);
    const int plugin = atomic_load(&session->plugins[former]) == 0 ? 1 : 0;
    struct moe_error cause;
    uint64_t generation = 0;
    const int64_t begin_ns = moe_swap_now_ns();
    int32_t status = bring_up(session, plugin, &generation, &cause);
    note_staging(session, begin_ns);
    pause_ms(PAUSE_MS);
    if (status != MOE_STATUS_OK) {
        note_rejection(session, plugin, status, &cause);
        return;
    }
    const char *step = moe_swap_step_name(MOE_SWAP_STEP_PROMOTE);
    status = promote(session, generation, &cause);
    if (status == MOE_STATUS_OK) {
        session->num_swaps += 1;
        step = moe_swap_step_name(MOE_SWAP_STEP_DRAIN);
        status = drain(session, former, &cause);
        pause_ms(PAUSE_MS);
    }
    if (status == MOE_STATUS_OK) {
        step = moe_swap_step_name(MOE_SWAP_STEP_PARK);
        status = park(session, former, &cause);
    }
    if (status != MOE_STATUS_OK) {
        moe_swap_sentences_add(&session->failures, "swap %lld, %s: %s: %s",
                               (long long)session->num_swaps, step, moe_loader_status_name(status),
                               cause.message);
    }
    pause_ms(PAUSE_MS);
}

/* ---- before the load ---- */

/* The bits of all tokens from the active generation. */
static int take_answers(struct moe_swap_session *session, int plugin, struct moe_cli_error *error)
{
    struct moe_loader_worker *worker = NULL;
    struct moe_swap_request request = {.next = NULL};
    MOE_INIT(request.error);
    if (moe_loader_worker_open(session->loader, &worker, &request.error) != MOE_STATUS_OK) {
        return MOE_CLI_FAIL(error, "no worker of the loader: %s", request.error.message);
    }
    void *workspace = NULL;
    if (posix_memalign(&workspace, MOE_SWAP_WORKSPACE_ALIGNMENT, MOE_SWAP_WORKSPACE_BYTES) != 0) {
        moe_loader_worker_close(worker);
        return moe_cli_fail_memory(error, "making a worker's workspace");
    }
    for (int i = 0; i < MOE_SWAP_NUM_LAYERS && request.status == MOE_STATUS_OK; ++i) {
        const struct moe_swap_layer *layer = &session->layers[i];
        for (int64_t first = 0; first < MOE_SWAP_NUM_TOKENS && request.status == MOE_STATUS_OK;
             first += layer->problem.max_tokens) {
            const int64_t num_left = MOE_SWAP_NUM_TOKENS - first;
            request.slot = layer->slot;
            request.num_tokens =
                num_left < layer->problem.max_tokens ? num_left : layer->problem.max_tokens;
            request.tokens = layer->tokens + (size_t)first * layer->row_bytes;
            request.output = layer->answers[plugin] + (size_t)first * layer->row_bytes;
            moe_swap_request_run(worker, workspace, &request);
        }
    }
    free(workspace);
    moe_loader_worker_close(worker);
    return request.status == MOE_STATUS_OK
               ? 0
               : MOE_CLI_FAIL(error, "%s: layer: %s", session->options.plugins[plugin],
                              request.error.message);
}

static void take_kernel_set_id(struct moe_swap_session *session, int plugin, uint64_t generation)
{
    struct moe_loader_generation_info info;
    MOE_INIT(info);
    for (int32_t i = 0; moe_loader_generation_at(session->loader, i, &info, NULL) == MOE_STATUS_OK;
         ++i) {
        if (info.generation == generation) {
            memcpy(session->kernel_set_ids[plugin], info.kernel_set_id,
                   sizeof session->kernel_set_ids[plugin]);
        }
    }
}

/* Makes the plugin serve, parks the one before, asks for its answers. */
static int meet(struct moe_swap_session *session, int plugin, struct moe_cli_error *error)
{
    const uint64_t former = active_generation(session);
    struct moe_error cause;
    uint64_t generation = 0;
    int32_t status = bring_up(session, plugin, &generation, &cause);
    const int is_unreadable = status == MOE_STATUS_IO || status == MOE_STATUS_INVALID_ARGUMENT ||
                              status == MOE_LOADER_STATUS_UNTRUSTED ||
                              status == MOE_LOADER_STATUS_BAD_FILE;
    if (status != MOE_STATUS_OK && former != 0 && !is_unreadable) {
        note_rejection(session, plugin, status, &cause);
        return 0;
    }
    if (status == MOE_STATUS_OK) {
        status = moe_loader_promote(session->loader, generation, &cause);
    }
    if (status == MOE_STATUS_OK && former != 0) {
        status = drain(session, former, &cause);
    }
    if (status == MOE_STATUS_OK && former != 0) {
        status = moe_loader_park(session->loader, former, 1, &cause);
    }
    if (status != MOE_STATUS_OK) {
        return MOE_CLI_FAIL(error, "plugin %s: %s", moe_swap_plugin_name(plugin), cause.message);
    }
    take_kernel_set_id(session, plugin, generation);
    return take_answers(session, plugin, error);
}

static void *alloc_prepared(void *self, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    void *memory = NULL;
    const size_t least = sizeof(void *);
    return posix_memalign(&memory, alignment < least ? least : (size_t)alignment, (size_t)bytes) ==
                   0
               ? memory
               : NULL;
}

static void free_prepared(void *self, void *memory, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    (void)bytes;
    (void)alignment;
    free(memory);
}

static int open_loader(struct moe_swap_session *session, struct moe_cli_error *error)
{
    struct moe_host host;
    MOE_INIT(host);
    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
    struct moe_context_options context;
    MOE_INIT(context);
    context.backend = MOE_BACKEND_CPU;
    context.num_threads = 1; /* the workers are the parallelism */
    struct moe_loader_options options;
    MOE_INIT(options);
    options.flags = session->options.is_trust_skipped ? MOE_LOADER_SKIP_TRUST : 0;
    options.host = &host;
    options.context = &context;
    options.canary_path = session->options.canary_path;
    options.max_workers = session->num_threads + 1;
    struct moe_error cause;
    MOE_INIT(cause);
    if (moe_loader_create(&options, &session->loader, &cause) != MOE_STATUS_OK) {
        return MOE_CLI_FAIL(error, "no loader: %s", cause.message);
    }
    for (int i = 0; i < MOE_SWAP_NUM_LAYERS; ++i) {
        struct moe_swap_layer *layer = &session->layers[i];
        struct moe_loader_slot_options slot;
        MOE_INIT(slot);
        slot.problem = &layer->problem;
        slot.weights = &layer->weights;
        slot.workspace_bytes = MOE_SWAP_WORKSPACE_BYTES;
        slot.workspace_alignment = MOE_SWAP_WORKSPACE_ALIGNMENT;
        slot.prepared_alloc = alloc_prepared;
        slot.prepared_free = free_prepared;
        if (moe_loader_slot_open(session->loader, &slot, &layer->slot, &cause) != MOE_STATUS_OK) {
            return MOE_CLI_FAIL(error, "layer %d: %s", i, cause.message);
        }
    }
    return 0;
}

/* ---- life ---- */

static int count_cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

int moe_swap_session_init(struct moe_swap_session *session, const struct moe_swap_options *options,
                          struct moe_cli_error *error)
{
    memset(session, 0, sizeof *session);
    session->options = *options;
    session->num_threads = options->num_threads > 0 ? (int)options->num_threads : count_cpus();
    for (size_t i = 0; i < sizeof session->plugins / sizeof session->plugins[0]; ++i) {
        atomic_init(&session->plugins[i], -1);
    }
    if (moe_swap_layers_init(session->layers, error) != 0 || open_loader(session, error) != 0) {
        return -1;
    }
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        if (meet(session, plugin, error) != 0) {
            return -1;
        }
    }
    for (int step = 0; step < MOE_SWAP_NUM_STEPS; ++step) {
        moe_swap_intervals_finish(&session->step_times[step]); /* those before the load */
    }
    return moe_swap_clients_create(session, error);
}

static int summarize_steps(struct moe_swap_session *session, struct moe_cli_error *error)
{
    /* With no window and no staging all are "outside". */
    const struct moe_swap_intervals none = {.num_intervals = 0};
    for (int step = 0; step < MOE_SWAP_NUM_STEPS; ++step) {
        const struct moe_swap_intervals *times = &session->step_times[step];
        struct moe_swap_percentiles phases[MOE_SWAP_NUM_PHASES];
        if (moe_swap_latency_summarize(&times, 1, &none, &none, phases) != 0) {
            return moe_cli_fail_memory(error, "summarizing the steps of swaps");
        }
        session->steps[step] = phases[MOE_SWAP_OUTSIDE];
    }
    return 0;
}

int moe_swap_session_run(struct moe_swap_session *session, struct moe_cli_error *error)
{
    const struct moe_swap_workers_options options = {
        .loader = session->loader,
        .num_threads = session->num_threads,
        .workspace_bytes = MOE_SWAP_WORKSPACE_BYTES,
        .workspace_alignment = MOE_SWAP_WORKSPACE_ALIGNMENT,
        .done = moe_swap_clients_done,
    };
    struct moe_swap_workers *workers = NULL;
    if (moe_swap_workers_create(&options, &workers, error) != 0) {
        return -1;
    }
    struct moe_progress progress;
    moe_progress_begin(&progress, stderr, "swapping under load");
    const int64_t begin_ns = moe_swap_now_ns();
    moe_swap_clients_submit(session, workers);
    const int64_t load_ns = session->options.num_seconds * INT64_C(1000000000);
    int64_t num_attempts = 0;
    pause_ms(PAUSE_MS);
    while (num_attempts < MOE_SWAP_MAX_ATTEMPTS &&
           (num_attempts < session->options.num_swaps || moe_swap_now_ns() < begin_ns + load_ns)) {
        swap(session);
        num_attempts += 1;
        moe_progress_update(&progress, num_attempts, session->options.num_swaps);
    }
    atomic_store(&session->is_over, 1);
    session->load_seconds = (double)(moe_swap_now_ns() - begin_ns) / 1e9;
    moe_swap_workers_destroy(workers);
    moe_progress_end(&progress);
    if (moe_swap_clients_collect(session, error) != 0) {
        return -1;
    }
    return summarize_steps(session, error);
}

int moe_swap_session_has_passed(const struct moe_swap_session *session)
{
    int has_passed = session->num_failed == 0 && session->num_wrong == 0 &&
                     session->num_unmeasured == 0 && session->num_rejections == 0 &&
                     session->failures.num_sentences == 0;
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        has_passed = has_passed && session->num_answered[plugin] > 0;
    }
    return has_passed;
}

void moe_swap_session_finish(struct moe_swap_session *session)
{
    moe_loader_destroy(session->loader);
    moe_swap_clients_destroy(session);
    moe_swap_layers_finish(session->layers);
    moe_swap_intervals_finish(&session->windows);
    moe_swap_intervals_finish(&session->stagings);
    for (int step = 0; step < MOE_SWAP_NUM_STEPS; ++step) {
        moe_swap_intervals_finish(&session->step_times[step]);
    }
    session->loader = NULL;
}
