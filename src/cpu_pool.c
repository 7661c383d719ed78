/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads: one counter hands out ranges of tasks, and a worker may come late or not at all. A run
 * is open while its caller still has tasks to take; workers enter and leave it by counting
 * themselves in `run_state`. The caller closes the run when no task is left and waits only for
 * workers that are inside, never for one that still sleeps.
 *
 * The fields of a run are written while no worker can be inside (closed, nobody active) and read by
 * workers after they entered, so `run_state` orders all access to them.
 */
#define _GNU_SOURCE
#include "cpu_pool.h"

#include "status.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    CACHE_LINE = 64,
    STACK_BYTES = 512 * 1024, /* kernels keep their data in scratch */

    /*
     * A range of tasks is this part of a thread's share of what is left: large ones first. Tasks of
     * a range share work and fetch ahead for each other, so few ranges; but so many that two
     * threads do not wait for one at a quarter of its speed, although it may hold two ranges.
     */
    RANGES_PER_THREAD = 8,
    LEAST_TASKS_AHEAD = 4, /* per thread: with fewer left nobody takes a range early */

    /*
     * Polls before a thread sleeps, about 15 to 50 ns each. Short, because the thread that is
     * waited for may need this very CPU; long enough for the gap between two stages of one call.
     */
    SPINS_IN_SESSION = 400,
    SPINS_FOR_STRAGGLERS = 200,
};

/* run_state: number of workers inside, plus flags. */
#define RUN_ACTIVE_MASK   UINT32_C(0xffff)
#define RUN_OPEN          UINT32_C(0x10000)
#define RUN_CALLER_SLEEPS UINT32_C(0x20000)
_Static_assert(MOE_CPU_POOL_MAX_THREADS <= RUN_ACTIVE_MASK, "every worker can be counted");

struct pool_worker {
    struct moe_cpu_pool *pool;
    pthread_t handle;
    int32_t thread;
};

struct moe_cpu_pool {
    struct moe_memory memory;
    size_t bytes;
    int32_t num_threads;
    int32_t num_started; /* workers to join */

    _Alignas(CACHE_LINE) atomic_bool in_session; /* a session has the workers */

    _Alignas(CACHE_LINE) _Atomic uint32_t
        num_runs; /* grows with each run, and at the end: what workers wait for */
    _Atomic uint32_t num_sleepers;
    atomic_bool stop;

    _Alignas(CACHE_LINE) _Atomic uint32_t run_state;
    moe_cpu_tasks_fn *run;
    void *self;
    int64_t num_tasks;
    bool wants_next;

    _Alignas(CACHE_LINE) _Atomic int64_t next_task;

    _Alignas(CACHE_LINE) struct pool_worker workers[];
};

/* A wait that is late sets errno (EAGAIN), and the caller's errno is the host's. */
static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    const int host_errno = errno;
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
    errno = host_errno;
}

static void futex_wake(_Atomic uint32_t *word, int num_waiters)
{
    const int host_errno = errno;
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, num_waiters, NULL, NULL, 0);
    errno = host_errno;
}

static void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* ---------------------------------------------------------------- tasks */

static void run_alone(int64_t num_tasks, moe_cpu_tasks_fn *run, void *self)
{
    if (num_tasks > 0) {
        run(self, &(struct moe_cpu_tasks){.first = 0, .end = num_tasks, .next = -1}, 0);
    }
}

/* Take the next range of the current run; false: none is left, or fewer than `least` tasks. */
static bool take_range(struct moe_cpu_pool *pool, int64_t least, struct moe_cpu_tasks *range)
{
    const int64_t num_tasks = pool->num_tasks;
    const int64_t left = num_tasks - atomic_load_explicit(&pool->next_task, memory_order_relaxed);
    if (left <= 0 || left < least) {
        return false;
    }
    const int64_t length = left / ((int64_t)pool->num_threads * RANGES_PER_THREAD) + 1;
    const int64_t first = atomic_fetch_add_explicit(&pool->next_task, length, memory_order_relaxed);
    *range = (struct moe_cpu_tasks){
        .first = first,
        .end = length < num_tasks - first ? first + length : num_tasks,
        .next = -1,
    };
    return first < num_tasks;
}

/*
 * Take ranges of the current run until none is left. Where `next` is of use the next one is taken
 * before the one at hand is run, as long as LEAST_TASKS_AHEAD tasks per thread are left.
 */
static void run_share(struct moe_cpu_pool *pool, int32_t thread)
{
    moe_cpu_tasks_fn *run = pool->run;
    void *self = pool->self;
    const bool wants_next = pool->wants_next;
    const int64_t least_ahead = (int64_t)pool->num_threads * LEAST_TASKS_AHEAD;
    struct moe_cpu_tasks range, ahead;
    for (bool has_range = take_range(pool, 1, &range); has_range;) {
        const bool has_ahead = wants_next && take_range(pool, least_ahead, &ahead);
        range.next = has_ahead ? ahead.first : -1;
        run(self, &range, thread);
        if (has_ahead) {
            range = ahead;
        } else {
            has_range = take_range(pool, 1, &range);
        }
    }
}

/* ---------------------------------------------------------------- workers */

/* Count this worker in, if a run is open. */
static bool enter_run(struct moe_cpu_pool *pool)
{
    uint32_t state = atomic_load_explicit(&pool->run_state, memory_order_relaxed);
    while (state & RUN_OPEN) {
        if (atomic_compare_exchange_weak_explicit(&pool->run_state, &state, state + 1,
                                                  memory_order_acquire, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

static void leave_run(struct moe_cpu_pool *pool)
{
    uint32_t before = atomic_fetch_sub_explicit(&pool->run_state, 1, memory_order_release);
    if ((before & RUN_CALLER_SLEEPS) && (before & RUN_ACTIVE_MASK) == 1) {
        futex_wake(&pool->run_state, 1);
    }
}

/*
 * Return when num_runs is no longer `seen`: at once, after some polls while a session lasts, or
 * after sleep.
 */
static void wait_for_run(struct moe_cpu_pool *pool, uint32_t seen)
{
    for (int spins = 0; spins < SPINS_IN_SESSION; spins++) {
        if (atomic_load_explicit(&pool->num_runs, memory_order_acquire) != seen) {
            return;
        }
        if (!atomic_load_explicit(&pool->in_session, memory_order_relaxed)) {
            break;
        }
        spin_pause();
    }
    /*
     * Sequentially consistent with start_run: either it sees this sleeper, or the futex sees its
     * new value.
     */
    atomic_fetch_add(&pool->num_sleepers, 1);
    while (atomic_load(&pool->num_runs) == seen) {
        futex_wait(&pool->num_runs, seen);
    }
    atomic_fetch_sub(&pool->num_sleepers, 1);
}

static void *worker_main(void *argument)
{
    struct pool_worker *worker = argument;
    struct moe_cpu_pool *pool = worker->pool;
    char name[16];
    (void)snprintf(name, sizeof(name), "moe-cpu-%d", (int)worker->thread);
    (void)pthread_setname_np(pthread_self(), name);
    struct moe_cpu_float
        inherited; /* from the thread that made the pool; this one has no other use */
    moe_cpu_float_enter(&inherited);

    for (;;) {
        uint32_t seen = atomic_load_explicit(&pool->num_runs, memory_order_acquire);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire)) {
            return NULL;
        }
        if (enter_run(pool)) {
            run_share(pool, worker->thread);
            leave_run(pool);
        }
        wait_for_run(pool, seen);
    }
}

/*
 * pthread_create with a small stack, or the default one where thread-local data of the process does
 * not fit the small one.
 */
static int start_thread(struct pool_worker *worker)
{
    pthread_attr_t attributes;
    int failure = pthread_attr_init(&attributes);
    if (failure) {
        return failure;
    }
    failure = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    if (!failure) {
        failure = pthread_create(&worker->handle, &attributes, worker_main, worker);
    }
    (void)pthread_attr_destroy(&attributes);
    if (failure == EINVAL) {
        failure = pthread_create(&worker->handle, NULL, worker_main, worker);
    }
    return failure;
}

static int start_workers(struct moe_cpu_pool *pool)
{
    if (pool->num_threads == 1) {
        return 0;
    }
    sigset_t all, before;
    (void)sigfillset(&all);
    int failure = pthread_sigmask(SIG_SETMASK, &all, &before); /* workers inherit it */
    if (failure) {
        return failure;
    }
    for (int32_t thread = 1; thread < pool->num_threads && !failure; thread++) {
        struct pool_worker *worker = &pool->workers[thread - 1];
        worker->pool = pool;
        worker->thread = thread;
        failure = start_thread(worker);
        if (!failure) {
            pool->num_started++;
        }
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure;
}

/* ---------------------------------------------------------------- pool */

int32_t moe_cpu_pool_default_threads(void)
{
    cpu_set_t cpus[8]; /* 8192 CPUs */
    CPU_ZERO_S(sizeof(cpus), cpus);
    if (sched_getaffinity(0, sizeof(cpus), cpus) != 0) {
        return 1;
    }
    int count = CPU_COUNT_S(sizeof(cpus), cpus);
    return count < 1                          ? 1
           : count > MOE_CPU_POOL_MAX_THREADS ? MOE_CPU_POOL_MAX_THREADS
                                              : (int32_t)count;
}

int32_t moe_cpu_pool_create(const struct moe_memory *memory, int32_t num_threads,
                            struct moe_cpu_pool **out, struct moe_error *error)
{
    if (num_threads < 1 || num_threads > MOE_CPU_POOL_MAX_THREADS) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "num_threads is %d; valid: 1..%d",
                             (int)num_threads, (int)MOE_CPU_POOL_MAX_THREADS);
    }
    size_t bytes =
        sizeof(struct moe_cpu_pool) + (size_t)(num_threads - 1) * sizeof(struct pool_worker);
    struct moe_cpu_pool *pool = moe_memory_alloc(memory, bytes);
    if (!pool) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                             "no memory for a pool of %d threads (%zu bytes)", (int)num_threads,
                             bytes);
    }
    pool->memory = *memory;
    pool->bytes = bytes;
    pool->num_threads = num_threads;
    atomic_init(&pool->in_session, false);
    atomic_init(&pool->num_runs, 0);
    atomic_init(&pool->num_sleepers, 0);
    atomic_init(&pool->stop, false);
    atomic_init(&pool->run_state, 0);
    atomic_init(&pool->next_task, 0);

    int failure = start_workers(pool);
    if (failure) {
        int32_t num_started = pool->num_started;
        moe_cpu_pool_destroy(pool);
        return moe_error_set_at(error, MOE_STATUS_UNAVAILABLE, failure, 0, 0,
                                "the system started %d of %d worker threads and refused the next; "
                                "ask for fewer threads",
                                (int)num_started, (int)num_threads - 1);
    }
    *out = pool;
    return MOE_STATUS_OK;
}

void moe_cpu_pool_destroy(struct moe_cpu_pool *pool)
{
    if (!pool) {
        return;
    }
    atomic_store_explicit(&pool->stop, true, memory_order_release);
    atomic_fetch_add(&pool->num_runs, 1);
    if (pool->num_started > 0) {
        futex_wake(&pool->num_runs, pool->num_started);
    }
    for (int32_t i = 0; i < pool->num_started; i++) {
        (void)pthread_join(pool->workers[i].handle, NULL);
    }
    struct moe_memory memory = pool->memory;
    moe_memory_free(&memory, pool, pool->bytes);
}

int32_t moe_cpu_pool_num_threads(const struct moe_cpu_pool *pool)
{
    return pool->num_threads;
}

/* ---------------------------------------------------------------- sessions */

void moe_cpu_session_begin(struct moe_cpu_session *session, struct moe_cpu_pool *pool)
{
    session->pool = pool;
    session->reserved = 0;
    moe_cpu_float_enter(&session->host);
    session->has_workers = pool->num_threads > 1 &&
                           !atomic_exchange_explicit(&pool->in_session, true, memory_order_acquire);
}

void moe_cpu_session_end(struct moe_cpu_session *session)
{
    if (session->has_workers) {
        session->has_workers = 0;
        atomic_store_explicit(&session->pool->in_session, false, memory_order_release);
    }
    moe_cpu_float_leave(&session->host);
}

static void start_run(struct moe_cpu_pool *pool, int64_t num_tasks, bool wants_next,
                      moe_cpu_tasks_fn *run, void *self)
{
    pool->wants_next = wants_next;
    pool->run = run;
    pool->self = self;
    pool->num_tasks = num_tasks;
    atomic_store_explicit(&pool->next_task, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->run_state, RUN_OPEN, memory_order_release);
    atomic_fetch_add(&pool->num_runs, 1);
    if (atomic_load(&pool->num_sleepers) > 0) {
        int64_t num_workers = pool->num_threads - 1;
        futex_wake(&pool->num_runs,
                   (int)(num_tasks - 1 < num_workers ? num_tasks - 1 : num_workers));
    }
}

/* No task is left to take: let nobody else in, and wait for those inside. */
static void finish_run(struct moe_cpu_pool *pool)
{
    uint32_t state =
        atomic_fetch_and_explicit(&pool->run_state, ~RUN_OPEN, memory_order_acquire) & ~RUN_OPEN;
    for (int spins = 0; state != 0 && spins < SPINS_FOR_STRAGGLERS; spins++) {
        spin_pause();
        state = atomic_load_explicit(&pool->run_state, memory_order_acquire);
    }
    while (state & RUN_ACTIVE_MASK) {
        uint32_t sleeping = state | RUN_CALLER_SLEEPS;
        if (state == sleeping ||
            atomic_compare_exchange_weak_explicit(&pool->run_state, &state, sleeping,
                                                  memory_order_acquire, memory_order_acquire)) {
            futex_wait(&pool->run_state, sleeping);
            state = atomic_load_explicit(&pool->run_state, memory_order_acquire);
        }
    }
}

void moe_cpu_session_run(struct moe_cpu_session *session, int64_t num_tasks, bool wants_next,
                         moe_cpu_tasks_fn *run, void *self)
{
    if (!session->has_workers || num_tasks < 2) {
        run_alone(num_tasks, run, self);
        return;
    }
    start_run(session->pool, num_tasks, wants_next, run, self);
    run_share(session->pool, 0);
    finish_run(session->pool);
}
