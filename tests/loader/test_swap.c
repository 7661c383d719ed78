/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan serial */
/* ctest timeout: 600 */
/* Swapping under load: a server of eight threads, good and bad candidates, and nothing grows. */
#define _GNU_SOURCE

#include "swap_fixture.h"

#include "server.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum {
    NUM_THREADS = 8,
    NUM_CANDIDATES = MOE_TEST_SANITIZED ? 32 : 268, /* 201 good ones, 67 bad ones */
    NUM_INPUTS = 64,
    NUM_SAMPLES = 1 << 18,
    MAX_GENERATIONS = 1024,
    WINDOW_NS = 5000000,
    OUTPUT_BYTES = SWAP_TOKENS * SWAP_HIDDEN * (int)sizeof(float),
};

/* What a generation may answer. */
enum { BAD, GOOD_A, GOOD_B };

struct load {
    struct swap_fixture *fixture;
    struct server *server;
    struct server_request requests[NUM_INPUTS];
    float inputs[NUM_INPUTS][SWAP_TOKENS * SWAP_HIDDEN];
    float outputs[NUM_INPUTS][SWAP_TOKENS * SWAP_HIDDEN];
    float expected[3][NUM_INPUTS][SWAP_TOKENS * SWAP_HIDDEN]; /* by GOOD_A, GOOD_B */
    _Atomic(int) kinds[MAX_GENERATIONS];
    _Atomic(bool) is_over;
    int64_t num_checked;
    int64_t num_by_kind[3];
    int64_t num_wrong;
};

/* All inputs through the server, once. */
static void run_inputs(struct load *load)
{
    for (int i = 0; i < NUM_INPUTS; i++) {
        struct server_request *request = &load->requests[i];
        memset(request, 0, sizeof(*request));
        memset(load->outputs[i], 0xFF, OUTPUT_BYTES);
        request->slot = load->fixture->slot;
        request->num_tokens = SWAP_TOKENS;
        request->tokens = load->inputs[i];
        request->output = load->outputs[i];
        server_submit(load->server, request);
    }
    server_wait(load->server);
}

static void check_outputs(struct load *load)
{
    for (int i = 0; i < NUM_INPUTS; i++) {
        const struct server_request *request = &load->requests[i];
        const int kind = request->generation < MAX_GENERATIONS
                             ? atomic_load(&load->kinds[request->generation])
                             : BAD;
        load->num_checked++;
        load->num_by_kind[kind]++;
        load->num_wrong += request->status != MOE_STATUS_OK || kind == BAD ||
                           memcmp(load->outputs[i], load->expected[kind][i], OUTPUT_BYTES) != 0;
    }
}

static void *load_main(void *argument)
{
    struct load *load = argument;
    while (!atomic_load(&load->is_over)) {
        run_inputs(load);
        check_outputs(load);
    }
    return NULL;
}

/* Stage, verify, promote; the one before drains and is parked. */
static uint64_t bring_up(struct load *load, const char *path, int kind,
                         const struct moe_loader_verify_options *options, bool keeps_former)
{
    struct swap_fixture *f = load->fixture;
    const uint64_t former = swap_stats(f).active_generation;
    const uint64_t id = swap_stage(f, path);
    assert_true(id < MAX_GENERATIONS);
    atomic_store(&load->kinds[id], kind);
    if (former != 0) {
        swap_ok(f, moe_loader_verify(f->loader, id, options, &f->error));
    }
    swap_promote(f, id);
    server_note_swap(load->server);
    while (former != 0 && swap_info(f, former).state == MOE_GENERATION_DRAINING) {
        swap_poll(f);
        usleep(200);
    }
    if (former != 0 && !keeps_former) {
        swap_ok(f, moe_loader_park(f->loader, former, 1, &f->error));
    }
    return id;
}

/* A bad candidate ends before it serves. */
static void try_bad(struct load *load, int ordinal, const struct moe_loader_verify_options *options)
{
    static const struct {
        const char *path;
        int times_matter; /* only seen where times mean something */
        int is_dear;      /* costs the canary's timeout */
    } bad[] = {
        {FAULT_PLUGIN("wrong"), 0, 0},         {SMALL_PLUGIN("entry_crashes"), 0, 0},
        {FAULT_PLUGIN("nan"), 0, 0},           {FAULT_PLUGIN("slow"), 1, 0},
        {FAULT_PLUGIN("unsupported"), 0, 0},   {SMALL_PLUGIN("entry_hangs"), 0, 1},
        {FAULT_PLUGIN("refuses_call"), 0, 0},  {FAULT_PLUGIN("workspace"), 0, 0},
        {FAULT_PLUGIN("uninitialized"), 0, 0},
    };
    enum { NUM_BAD = sizeof(bad) / sizeof(bad[0]) };
    struct swap_fixture *f = load->fixture;
    int which = ordinal % NUM_BAD;
    if ((bad[which].times_matter && MOE_TEST_SANITIZED) ||
        (bad[which].is_dear && ordinal > NUM_BAD)) {
        which = 0;
    }
    const uint64_t serving = swap_stats(f).active_generation;
    const uint64_t num_rejected = swap_stats(f).num_rejected;
    uint64_t id = 0;
    int32_t status = moe_loader_stage(f->loader, bad[which].path, NULL, &id, &f->error);
    if (status == MOE_STATUS_OK) {
        status = moe_loader_verify(f->loader, id, options, &f->error);
        assert_int_equal(moe_loader_promote(f->loader, id, NULL), MOE_LOADER_STATUS_STATE);
    }
    if (status == MOE_STATUS_OK) {
        fail_msg("%s was not rejected", bad[which].path);
    }
    assert_int_equal(swap_stats(f).num_rejected, num_rejected + 1);
    assert_int_equal(swap_stats(f).active_generation, serving);
}

/* A's and B's answers, from calls that nobody disturbs. */
static void make_expected(struct load *load)
{
    swap_fill(load->inputs[0], NUM_INPUTS * SWAP_TOKENS * SWAP_HIDDEN, 99);
    const char *paths[] = {NULL, PLUGIN_A, PLUGIN_B};
    for (int kind = GOOD_A; kind <= GOOD_B; kind++) {
        bring_up(load, paths[kind], kind, NULL, false);
        run_inputs(load);
        memcpy(load->expected[kind], load->outputs, sizeof(load->outputs));
    }
    assert_memory_not_equal(load->expected[GOOD_A], load->expected[GOOD_B], sizeof(load->outputs));
}

static void start_server(struct load *load)
{
    const struct server_options options = {
        .loader = load->fixture->loader,
        .num_threads = NUM_THREADS,
        .workspace_bytes = SWAP_WORKSPACE_BYTES,
        .num_samples = NUM_SAMPLES,
    };
    assert_int_equal(server_create(&options, &load->server), 0);
}

static void print_report(const struct load *load, const struct server_report *report)
{
    printf("%llu requests, %llu failures; A answered %lld, B %lld; outside swaps p50 %.1f us, p99 "
           "%.1f us (%lld); within 5 ms of one p50 %.1f us, p99 %.1f us (%lld)\n",
           (unsigned long long)report->num_requests, (unsigned long long)report->num_failures,
           (long long)load->num_by_kind[GOOD_A], (long long)load->num_by_kind[GOOD_B],
           (double)report->outside.p50_ns / 1e3, (double)report->outside.p99_ns / 1e3,
           (long long)report->outside.num_samples, (double)report->inside.p50_ns / 1e3,
           (double)report->inside.p99_ns / 1e3, (long long)report->inside.num_samples);
}

static void swaps_under_load(void **state)
{
    struct swap_fixture *f = *state;
    struct load *load = calloc(1, sizeof(*load));
    assert_non_null(load);
    load->fixture = f;
    f->options.flags = MOE_LOADER_SKIP_TRUST;
    f->options.canary_timeout_ms = MOE_TEST_SANITIZED ? 30000 : 5000;
    swap_open(f);
    start_server(load);
    make_expected(load);
    struct moe_loader_verify_options options;
    MOE_INIT(options);
    options.max_slowdown = MOE_TEST_SANITIZED ? 0.0 : 3.0;

    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, load_main, load), 0);
    for (int i = 0; i < NUM_CANDIDATES; i++) {
        if (i % 4 == 3) {
            try_bad(load, i / 4, &options);
            continue;
        }
        const bool is_a = i % 2 == 0;
        const bool goes_back = i % 16 == 1;
        const uint64_t former = swap_stats(f).active_generation;
        const uint64_t id =
            bring_up(load, is_a ? PLUGIN_A : PLUGIN_B, is_a ? GOOD_A : GOOD_B, &options, goes_back);
        if (goes_back) {
            swap_ok(f, moe_loader_rollback(f->loader, 0, NULL, &f->error));
            server_note_swap(load->server);
            assert_int_equal(swap_stats(f).active_generation, former);
            while (swap_info(f, id).state == MOE_GENERATION_DRAINING) {
                swap_poll(f);
                usleep(200);
            }
            swap_ok(f, moe_loader_park(f->loader, id, 1, &f->error));
        }
    }
    atomic_store(&load->is_over, true);
    pthread_join(thread, NULL);

    struct server_report report;
    assert_int_equal(server_get_report(load->server, WINDOW_NS, &report), 0);
    print_report(load, &report);
    assert_int_equal(report.num_failures, 0);
    assert_int_equal(load->num_wrong, 0);
    assert_int_equal(load->num_by_kind[BAD], 0);
    assert_true(load->num_by_kind[GOOD_A] > 0 && load->num_by_kind[GOOD_B] > 0);
    assert_true(load->num_checked >= NUM_CANDIDATES);
    assert_int_equal(swap_stats(f).num_rejected, NUM_CANDIDATES / 4);
    server_destroy(load->server);
    free(load);
}

/* Promote and roll back as fast as can be, while workers enter and leave as fast as can be. */
static void *enter_and_leave(void *argument)
{
    struct load *load = argument;
    struct swap_fixture *f = load->fixture;
    struct moe_loader_worker *worker = NULL;
    if (moe_loader_worker_open(f->loader, &worker, NULL) != MOE_STATUS_OK) {
        return "no worker";
    }
    const char *wrong = NULL;
    while (!atomic_load_explicit(&load->is_over, memory_order_relaxed)) {
        const struct moe_loader_view *view = moe_loader_enter(worker, f->slot);
        if (view == NULL || view->plan == NULL || view->generation == 0) {
            wrong = "a view that nobody may be given";
        }
        moe_loader_leave(worker);
    }
    moe_loader_worker_close(worker);
    void *result;
    memcpy(&result, &wrong, sizeof(result));
    return result;
}

static void storm_of_promotes(void **state)
{
    struct swap_fixture *f = *state;
    struct load *load = calloc(1, sizeof(*load));
    assert_non_null(load);
    load->fixture = f;
    uint64_t current = swap_open_with_a(f);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, enter_and_leave, load), 0);
    }
    const int num_rounds = MOE_TEST_SANITIZED ? 20 : 200;
    for (int i = 0; i < num_rounds; i++) {
        const uint64_t next = swap_stage(f, PLUGIN_A);
        swap_verify(f, next);
        swap_promote(f, next);
        for (int flip = 0; flip < 20; flip++) { /* even: `next` serves in the end */
            swap_ok(f, moe_loader_rollback(f->loader, 0, NULL, &f->error));
        }
        int32_t status = MOE_STATUS_BUSY;
        while (status == MOE_STATUS_BUSY) {
            swap_poll(f);
            status = moe_loader_park(f->loader, current, 1, NULL);
        }
        assert_int_equal(status, MOE_STATUS_OK);
        current = next;
    }
    atomic_store(&load->is_over, true);
    for (int i = 0; i < 4; i++) {
        void *wrong = NULL;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
    assert_int_equal(swap_stats(f).num_rollbacks, 20 * num_rounds);
    free(load);
}

static int64_t resident_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long long total = 0, resident = 0;
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lld %lld", &total, &resident), 2);
    fclose(file);
    return resident * (int64_t)sysconf(_SC_PAGESIZE);
}

static void nothing_grows(void **state)
{
    struct swap_fixture *f = *state;
    enum { WARM_UP = MOE_TEST_SANITIZED ? 10 : 100, NUM_SWAPS = MOE_TEST_SANITIZED ? 30 : 1000 };
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    uint64_t active = swap_open_with_a(f);
    int num_descriptors = 0, num_mappings = 0;
    int64_t num_resident = 0;
    size_t num_heap = 0;
    for (int i = 0; i < WARM_UP + NUM_SWAPS; i++) {
        if (i == WARM_UP) {
            num_descriptors = fixture_num_descriptors();
            num_mappings = fixture_num_mappings();
            num_resident = resident_bytes();
            num_heap = mallinfo2().uordblks;
        }
        const uint64_t next = swap_stage(f, i % 2 == 0 ? PLUGIN_B : PLUGIN_A);
        swap_verify(f, next);
        swap_promote(f, next);
        assert_int_equal(swap_run(f, output), next);
        swap_poll(f);
        swap_ok(f, moe_loader_park(f->loader, active, 1, &f->error));
        active = next;
    }
    assert_int_equal(fixture_num_descriptors(), num_descriptors);
    assert_int_equal(fixture_num_entries(f->base.shadow), 0);
    if (!MOE_TEST_SANITIZED) { /* whose own tables grow */
        assert_in_range(fixture_num_mappings(), 0, num_mappings + 2);
        assert_true(resident_bytes() < num_resident + (2 << 20));
        assert_true(mallinfo2().uordblks < num_heap + (64 << 10));
    }
    assert_int_equal(swap_stats(f).num_promotes, WARM_UP + NUM_SWAPS + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SWAP_TEST(swaps_under_load),
        SWAP_TEST(storm_of_promotes),
        SWAP_TEST(nothing_grows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
