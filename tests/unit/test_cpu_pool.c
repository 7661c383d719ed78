/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan */
/*
 * The thread pool: every task runs exactly once, whoever runs it, and nobody waits for somebody
 * else's session.
 */
#define _GNU_SOURCE
#include "cpu_pool.h"
#include "support_float.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MAX_TASKS = 5000, MAX_TEST_THREADS = 8 };

#if MOE_TEST_SANITIZED
enum { NUM_CYCLES = 100, NUM_ROUNDS = 50 };
#else
enum { NUM_CYCLES = 1000, NUM_ROUNDS = 500 };
#endif

/* What the tasks of one run did. */
struct record {
    int32_t num_threads;
    _Atomic uint32_t num_runs[MAX_TASKS];   /* per task */
    atomic_bool occupied[MAX_TEST_THREADS]; /* per thread index, while a task runs */
    _Atomic uint32_t num_by_thread[MAX_TEST_THREADS];
    /* The next task that a thread was told of, and 1; 0: none. */
    int64_t promised[MAX_TEST_THREADS];
    _Atomic uint32_t num_promises;
    _Atomic uint32_t num_faults;
    int64_t plain[MAX_TASKS]; /* not atomic: written by one thread, read by the caller afterwards */
};

static struct moe_memory test_memory(void)
{
    struct moe_memory memory;
    moe_memory_init(&memory, NULL);
    return memory;
}

static struct moe_cpu_pool *create_pool(int32_t num_threads)
{
    struct moe_memory memory = test_memory();
    struct moe_cpu_pool *pool = NULL;
    assert_int_equal(moe_cpu_pool_create(&memory, num_threads, &pool, NULL), MOE_STATUS_OK);
    assert_non_null(pool);
    assert_int_equal(moe_cpu_pool_num_threads(pool), num_threads);
    return pool;
}

/* A thread that was told what comes next gets just that. */
static void record_tasks(void *self, const struct moe_cpu_tasks *tasks, int32_t thread)
{
    struct record *record = self;
    if (tasks->first < 0 || tasks->end <= tasks->first || tasks->end > MAX_TASKS || thread < 0 ||
        thread >= record->num_threads) {
        atomic_fetch_add(&record->num_faults, 1);
        return;
    }
    const int64_t promised = record->promised[thread];
    if (atomic_exchange(&record->occupied[thread], true) ||
        (promised != 0 && tasks->first != promised - 1)) {
        atomic_fetch_add(&record->num_faults, 1);
    }
    for (int64_t task = tasks->first; task < tasks->end; task++) {
        atomic_fetch_add(&record->num_runs[task], 1);
        record->plain[task] = task * 3 + 1;
    }
    atomic_fetch_add(&record->num_by_thread[thread], (uint32_t)(tasks->end - tasks->first));
    atomic_fetch_add(&record->num_promises, tasks->next >= 0);
    record->promised[thread] = tasks->next + 1;
    atomic_store(&record->occupied[thread], false);
}

/* Run num_tasks tasks in `session`; returns false unless each ran exactly once. */
static bool run_recorded(struct moe_cpu_session *session, struct record *record, int64_t num_tasks,
                         bool wants_next)
{
    memset(record, 0, sizeof(*record));
    record->num_threads = moe_cpu_pool_num_threads(session->pool);
    moe_cpu_session_run(session, num_tasks, wants_next, record_tasks, record);
    for (int64_t task = 0; task < MAX_TASKS; task++) {
        bool wanted = task < num_tasks;
        if (atomic_load(&record->num_runs[task]) != (wanted ? 1U : 0U) ||
            record->plain[task] != (wanted ? task * 3 + 1 : 0)) {
            return false;
        }
    }
    for (int thread = 0; thread < MAX_TEST_THREADS; thread++) {
        if (record->promised[thread] != 0) {
            return false; /* promised, but never run */
        }
    }
    return atomic_load(&record->num_faults) == 0 &&
           (wants_next || atomic_load(&record->num_promises) == 0);
}

static void test_every_task_runs_once(void **state)
{
    (void)state;
    static const int64_t sizes[] = {0, 1, 2, 3, 7, 8, 9, 31, 64, 100, 1000, 4096, MAX_TASKS};
    struct record *record = malloc(sizeof(*record));
    assert_non_null(record);
    for (int32_t num_threads = 1; num_threads <= MAX_TEST_THREADS; num_threads++) {
        struct moe_cpu_pool *pool = create_pool(num_threads);
        for (int round = 0; round < 5; round++) {
            struct moe_cpu_session session;
            moe_cpu_session_begin(&session, pool);
            assert_int_equal(session.has_workers, num_threads > 1);
            for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
                assert_true(run_recorded(&session, record, sizes[i], round % 2 == 0));
                if (num_threads > 1 && round % 2 == 0 && sizes[i] >= 100 * num_threads) {
                    assert_true(atomic_load(&record->num_promises) > 0);
                }
            }
            moe_cpu_session_end(&session);
        }
        moe_cpu_pool_destroy(pool);
    }
    free(record);
}

/*
 * Each of `num_threads` tasks waits until all have started: only as many threads as that can finish
 * them.
 */
struct meeting {
    _Atomic int32_t num_arrived;
    int32_t num_expected;
    _Atomic uint64_t threads_seen;
};

static void meet(void *self, const struct moe_cpu_tasks *tasks, int32_t thread)
{
    (void)tasks;
    struct meeting *meeting = self;
    atomic_fetch_or(&meeting->threads_seen, UINT64_C(1) << thread);
    atomic_fetch_add(&meeting->num_arrived, 1);
    while (atomic_load(&meeting->num_arrived) < meeting->num_expected) {
        sched_yield();
    }
}

static void test_all_threads_take_part(void **state)
{
    (void)state;
    for (int32_t num_threads = 2; num_threads <= MAX_TEST_THREADS; num_threads++) {
        struct moe_cpu_pool *pool = create_pool(num_threads);
        struct moe_cpu_session session;
        moe_cpu_session_begin(&session, pool);
        for (int round = 0; round < 20; round++) {
            struct meeting meeting = {.num_expected = num_threads};
            moe_cpu_session_run(&session, num_threads, true, meet, &meeting);
            assert_int_equal(atomic_load(&meeting.threads_seen), (UINT64_C(1) << num_threads) - 1);
            if (round % 4 == 0) {
                usleep(2000); /* let the workers fall asleep */
            }
        }
        moe_cpu_session_end(&session);
        moe_cpu_pool_destroy(pool);
    }
}

static void test_second_session_runs_alone(void **state)
{
    (void)state;
    struct record *record = malloc(sizeof(*record));
    assert_non_null(record);
    struct moe_cpu_pool *pool = create_pool(4);
    struct moe_cpu_session first, second, third;
    moe_cpu_session_begin(&first, pool);
    moe_cpu_session_begin(&second, pool);
    assert_int_equal(first.has_workers, 1);
    assert_int_equal(second.has_workers, 0);
    assert_true(run_recorded(&second, record, 1000, true));
    assert_int_equal(atomic_load(&record->num_by_thread[0]), 1000);
    assert_true(run_recorded(&first, record, 1000, true));
    moe_cpu_session_end(&second); /* must not give away what the first holds */
    moe_cpu_session_begin(&third, pool);
    assert_int_equal(third.has_workers, 0);
    moe_cpu_session_end(&third);
    moe_cpu_session_end(&first);
    moe_cpu_session_begin(&third, pool);
    assert_int_equal(third.has_workers, 1);
    assert_true(run_recorded(&third, record, 1000, true));
    moe_cpu_session_end(&third);
    moe_cpu_pool_destroy(pool);
    free(record);
}

struct client {
    struct moe_cpu_pool *pool;
    bool failed;
};

static void *client_main(void *argument)
{
    struct client *client = argument;
    struct record *record = malloc(sizeof(*record));
    if (!record) {
        client->failed = true;
        return NULL;
    }
    for (int round = 0; round < NUM_ROUNDS && !client->failed; round++) {
        struct moe_cpu_session session;
        moe_cpu_session_begin(&session, client->pool);
        for (int64_t num_tasks = 1; num_tasks < 300; num_tasks = num_tasks * 2 + round % 3) {
            client->failed =
                client->failed || !run_recorded(&session, record, num_tasks, round % 2 == 0);
        }
        moe_cpu_session_end(&session);
    }
    free(record);
    return NULL;
}

static void test_concurrent_sessions(void **state)
{
    (void)state;
    enum { NUM_CLIENTS = 4 };
    struct moe_cpu_pool *pool = create_pool(3);
    struct client clients[NUM_CLIENTS];
    pthread_t threads[NUM_CLIENTS];
    for (int i = 0; i < NUM_CLIENTS; i++) {
        clients[i] = (struct client){.pool = pool};
        assert_int_equal(pthread_create(&threads[i], NULL, client_main, &clients[i]), 0);
    }
    for (int i = 0; i < NUM_CLIENTS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_false(clients[i].failed);
    }
    moe_cpu_pool_destroy(pool);
}

static void test_create_destroy_cycles(void **state)
{
    (void)state;
    struct record *record = malloc(sizeof(*record));
    assert_non_null(record);
    for (int cycle = 0; cycle < NUM_CYCLES; cycle++) {
        struct moe_cpu_pool *pool = create_pool(1 + cycle % 4);
        if (cycle % 3 == 0) { /* also destroy pools whose workers never ran, or hardly started */
            struct moe_cpu_session session;
            moe_cpu_session_begin(&session, pool);
            assert_true(run_recorded(&session, record, 17, true));
            moe_cpu_session_end(&session);
        }
        moe_cpu_pool_destroy(pool);
    }
    moe_cpu_pool_destroy(NULL);
    free(record);
}

static _Atomic int32_t num_stray_signals;

static void count_stray_signal(int number)
{
    (void)number;
    char name[16] = "";
    (void)pthread_getname_np(pthread_self(), name, sizeof(name));
    if (strncmp(name, "moe-cpu-", 8) == 0) {
        atomic_fetch_add(&num_stray_signals, 1);
    }
}

struct identity {
    struct meeting meeting;
    char names[MAX_TEST_THREADS][16];
    bool blocks_signals[MAX_TEST_THREADS];
};

static void identify(void *self, const struct moe_cpu_tasks *tasks, int32_t thread)
{
    struct identity *identity = self;
    sigset_t mask;
    (void)pthread_getname_np(pthread_self(), identity->names[thread],
                             sizeof(identity->names[thread]));
    (void)pthread_sigmask(SIG_BLOCK, NULL, &mask);
    identity->blocks_signals[thread] = sigismember(&mask, SIGUSR1) == 1 &&
                                       sigismember(&mask, SIGTERM) == 1 &&
                                       sigismember(&mask, SIGALRM) == 1;
    meet(&identity->meeting, tasks, thread);
}

static void test_workers_are_named_and_block_signals(void **state)
{
    (void)state;
    enum { NUM_THREADS = 4 };
    sigset_t before, after;
    assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &before), 0);
    struct moe_cpu_pool *pool = create_pool(NUM_THREADS);
    assert_int_equal(pthread_sigmask(SIG_BLOCK, NULL, &after), 0);
    for (int number = 1; number < 32; number++) {
        assert_int_equal(sigismember(&before, number), sigismember(&after, number));
    }

    struct identity *identity = calloc(1, sizeof(*identity));
    assert_non_null(identity);
    identity->meeting.num_expected = NUM_THREADS;
    struct moe_cpu_session session;
    moe_cpu_session_begin(&session, pool);
    moe_cpu_session_run(&session, NUM_THREADS, false, identify, identity);
    moe_cpu_session_end(&session);
    for (int thread = 1; thread < NUM_THREADS; thread++) {
        char expected[16];
        (void)snprintf(expected, sizeof(expected), "moe-cpu-%d", thread);
        assert_string_equal(identity->names[thread], expected);
        assert_true(identity->blocks_signals[thread]);
    }
    assert_int_not_equal(strncmp(identity->names[0], "moe-cpu-", 8), 0);
    free(identity);

    struct sigaction action = {.sa_handler = count_stray_signal}, old;
    assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(kill(getpid(), SIGUSR1), 0);
    }
    assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
    assert_int_equal(atomic_load(&num_stray_signals), 0);
    moe_cpu_pool_destroy(pool);
}

struct float_states {
    struct meeting meeting;
    unsigned int before_task[8];
};

static void record_float_state(void *self, const struct moe_cpu_tasks *tasks, int32_t thread)
{
    struct float_states *states = self;
    states->before_task[thread] = support_float_state();
    meet(&states->meeting, tasks, thread);
}

/* Tasks run in the default environment, whatever the creator and the caller of a pool have. */
static void test_tasks_have_the_default_float_state(void **state)
{
    (void)state;
    enum { NUM_THREADS = 4 };
    support_float_default();
    const unsigned int expected = support_float_state();
    support_float_disturb();
    const unsigned int own = support_float_state();
    assert_int_not_equal(own, expected);
    struct moe_cpu_pool *pool = create_pool(NUM_THREADS);
    struct float_states *states = calloc(1, sizeof(*states));
    assert_non_null(states);
    states->meeting.num_expected = NUM_THREADS;
    struct moe_cpu_session session;
    moe_cpu_session_begin(&session, pool);
    moe_cpu_session_run(&session, NUM_THREADS, true, record_float_state, states);
    moe_cpu_session_end(&session);
    assert_int_equal(support_float_state(), own);
    support_float_default();
    for (int thread = 0; thread < NUM_THREADS; thread++) {
        assert_int_equal(states->before_task[thread], expected);
    }
    free(states);
    moe_cpu_pool_destroy(pool);
}

static void test_number_of_threads_is_checked(void **state)
{
    (void)state;
    static const int32_t wrong[] = {0, -1, INT32_MIN, 1025, INT32_MAX};
    struct moe_memory memory = test_memory();
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct moe_error error = {.struct_size = sizeof(error)};
        struct moe_cpu_pool *pool = NULL;
        assert_int_equal(moe_cpu_pool_create(&memory, wrong[i], &pool, &error),
                         MOE_STATUS_INVALID_ARGUMENT);
        assert_null(pool);
        assert_non_null(strstr(error.message, "1..1024"));
    }
    assert_in_range(moe_cpu_pool_default_threads(), 1, 1024);
}

static void *refuse_alloc(void *self, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    (void)bytes;
    (void)alignment;
    return NULL;
}

static void ignore_release(void *self, void *memory, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    (void)memory;
    (void)bytes;
    (void)alignment;
}

static void test_no_memory(void **state)
{
    (void)state;
    struct moe_memory memory = {.alloc = refuse_alloc, .release = ignore_release};
    struct moe_error error = {.struct_size = sizeof(error)};
    struct moe_cpu_pool *pool = NULL;
    assert_int_equal(moe_cpu_pool_create(&memory, 2, &pool, &error), MOE_STATUS_OUT_OF_MEMORY);
    assert_null(pool);
}

static void test_default_follows_affinity(void **state)
{
    (void)state;
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(moe_cpu_pool_default_threads(), CPU_COUNT(&before));
    size_t first = 0;
    while (!CPU_ISSET(first, &before)) {
        first++;
    }
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    int32_t count = moe_cpu_pool_default_threads();
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_runs_once),
        cmocka_unit_test(test_all_threads_take_part),
        cmocka_unit_test(test_second_session_runs_alone),
        cmocka_unit_test(test_concurrent_sessions),
        cmocka_unit_test(test_create_destroy_cycles),
        cmocka_unit_test(test_workers_are_named_and_block_signals),
        cmocka_unit_test(test_tasks_have_the_default_float_state),
        cmocka_unit_test(test_number_of_threads_is_checked),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_default_follows_affinity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
