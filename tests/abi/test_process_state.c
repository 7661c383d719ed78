/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 300 */
/* ctest labels: serial */
/*
 * The plugin is a guest: loading, using and unloading it leaves the state of the process as it was,
 * and nothing behind.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fenv.h>
#include <locale.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cmocka.h>

#include "abi_calls.h"
#include "support_compare.h"

extern char **environ;

enum { NUM_SIGNALS = 65, ERRNO_MARK = 77 };

/* ---------------------------------------------------------------- what is looked at */

struct process_state {
    int error_number;
    int rounding;
    uint32_t simd_control; /* MXCSR without its sticky flags, which any arithmetic may raise */
    uint16_t x87_control;
    uint64_t locale; /* hashes */
    uint64_t environment;
    uint64_t directory;
    uint64_t descriptors;
    uint64_t handlers;
    uint64_t signal_mask;
    int num_threads;
    mode_t creation_mask;
};

static uint64_t hash_text(uint64_t hash, const char *text)
{
    return support_hash(hash, text, strlen(text) + 1);
}

static int count_entries(const char *folder)
{
    int num_entries = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        num_entries += entry->d_name[0] != '.';
    }
    closedir(dir);
    return num_entries;
}

/* Which descriptors are open, and on what. */
static uint64_t hash_descriptors(void)
{
    uint64_t hash = SUPPORT_HASH_INIT;
    for (int fd = 0; fd < 256; fd++) {
        char path[64], target[512];
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof(target));
        if (length >= 0) {
            hash = support_hash(hash, &fd, sizeof(fd));
            hash = support_hash(hash, target, (size_t)length);
        }
    }
    return hash;
}

static uint64_t hash_handlers(void)
{
    uint64_t hash = SUPPORT_HASH_INIT;
    for (int number = 1; number < NUM_SIGNALS; number++) {
        struct sigaction action;
        memset(&action, 0, sizeof(action));
        if (sigaction(number, NULL, &action) == 0) {
            hash = support_hash(hash, &action.sa_handler, sizeof(action.sa_handler));
            hash = support_hash(hash, &action.sa_flags, sizeof(action.sa_flags));
        }
    }
    return hash;
}

static void read_state(struct process_state *state)
{
    int error_number = errno;
    char directory[4096];
    sigset_t mask;
    memset(state, 0, sizeof(*state));
    state->error_number = error_number;
    state->rounding = fegetround();
#if defined(__x86_64__)
    state->simd_control = _mm_getcsr() & ~UINT32_C(0x3f);
    __asm__ volatile("fnstcw %0" : "=m"(state->x87_control));
#endif
    state->locale = hash_text(SUPPORT_HASH_INIT, setlocale(LC_ALL, NULL));
    state->environment = support_hash(SUPPORT_HASH_INIT, &environ, sizeof(environ));
    for (char **variable = environ; *variable != NULL; variable++) {
        state->environment = hash_text(state->environment, *variable);
    }
    assert_non_null(getcwd(directory, sizeof(directory)));
    state->directory = hash_text(SUPPORT_HASH_INIT, directory);
    state->descriptors = hash_descriptors();
    state->handlers = hash_handlers();
    assert_int_equal(sigprocmask(SIG_SETMASK, NULL, &mask), 0);
    for (int number = 1; number < NUM_SIGNALS; number++) {
        state->signal_mask |= (uint64_t)(sigismember(&mask, number) == 1) << (number - 1);
    }
    state->num_threads = count_entries("/proc/self/task");
    state->creation_mask = umask(0);
    umask(state->creation_mask);
    errno = error_number;
}

#define SAME(member)                                                                         \
    do {                                                                                     \
        if (before->member != after->member) {                                               \
            fail_msg("%s changed " #member ": %llx to %llx", step,                           \
                     (unsigned long long)before->member, (unsigned long long)after->member); \
        }                                                                                    \
    } while (0)

static void assert_same(const char *step, const struct process_state *before,
                        const struct process_state *after, int num_new_threads)
{
    SAME(error_number);
    SAME(rounding);
    SAME(simd_control);
    SAME(x87_control);
    SAME(locale);
    SAME(environment);
    SAME(directory);
    SAME(descriptors);
    SAME(handlers);
    SAME(signal_mask);
    SAME(creation_mask);
    if (after->num_threads != before->num_threads + num_new_threads) {
        fail_msg("%s: %d threads before, %d after, %d expected to be new", step,
                 before->num_threads, after->num_threads, num_new_threads);
    }
}

/* ---------------------------------------------------------------- one life of a plugin, step by
 * step */

static struct process_state first;

/* A joined thread leaves /proc a moment after pthread_join returns. */
static void settle_threads(int num_threads)
{
    int error_number = errno;
    for (int wait = 0; wait < 2000 && count_entries("/proc/self/task") > num_threads; wait++) {
        usleep(1000);
    }
    errno = error_number;
}

static void check_step(const char *step, int num_new_threads)
{
    struct process_state now;
    settle_threads(first.num_threads + num_new_threads);
    read_state(&now);
    assert_same(step, &first, &now, num_new_threads);
}

/* Everything that a host does, with a look at the process after each step. */
static void live(int32_t num_threads)
{
    struct abi_host host;
    struct moe_context_options options;
    struct moe_plan_options plan_options;
    struct moe_error error;
    int num_new_threads = num_threads - 1;
    memset(&host, 0, sizeof(host));
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(plan_options);
    options.backend = MOE_BACKEND_CPU;
    options.num_threads = num_threads; /* and the environment is read */
    abi_services_init(&host.services);
    host.values = malloc(sizeof(*host.values));
    host.memory = aligned_alloc(_Alignof(struct abi_memory), sizeof(*host.memory));
    assert_true(host.values != NULL && host.memory != NULL);
    abi_fill(host.values, sizeof(*host.values), 8);
    abi_reset_memory(host.memory);
    abi_describe_problem(&host.problem);
    abi_describe_weights(&host.desc, host.values);

    errno = ERRNO_MARK;
    read_state(&first);
    host.so = dlopen(ABI_PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(host.so);
    errno = ERRNO_MARK; /* what dlopen does to errno is the dynamic linker's affair */
    check_step("dlopen", 0);
    moe_plugin_init_fn *init = abi_entry(host.so);
    host.api = init(&host.services, &error);
    assert_non_null(host.api);
    check_step("moe_plugin_init", 0);
    assert_int_equal(host.api->context_create(&host.services, &options, &host.context, &error), 0);
    check_step("context_create", num_new_threads);
    assert_int_equal(host.api->config_reload(host.context, NULL, 0, NULL, NULL, &error), 0);
    check_step("config_reload", num_new_threads);
    assert_int_equal(host.api->weights_bind(host.context, &host.problem, &host.desc, NULL, 0,
                                            &host.weights, &error),
                     0);
    check_step("weights_bind", num_new_threads);
    plan_options.ops = (UINT64_C(1) << MOE_NUM_OPS) - 1;
    assert_int_equal(
        host.api->plan_create(host.context, &host.problem, &plan_options, &host.plan, &error), 0);
    check_step("plan_create", num_new_threads);
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        union abi_args args;
        abi_call_fill(&abi_calls[i], &host, &args);
        assert_int_equal(abi_calls[i].run(host.api, host.plan, &args, &error), abi_calls[i].status);
        check_step(abi_calls[i].form, num_new_threads);
    }
    assert_int_equal(host.api->self_test(host.context, &error), 0);
    check_step("self_test", num_new_threads);
    host.api->plan_destroy(host.plan);
    host.api->weights_destroy(host.weights);
    host.api->context_destroy(host.context);
    check_step("context_destroy", 0);
    assert_int_equal(dlclose(host.so), 0);
    errno = ERRNO_MARK;
    check_step("dlclose", 0);
    free(host.values);
    free(host.memory);
}

static void test_state_with_one_thread(void **state)
{
    (void)state;
    live(1);
}

static void test_state_with_threads(void **state)
{
    (void)state;
    live(3);
}

/* A host whose state is not the usual one: what is restored to a default would show. */
static void test_unusual_state(void **state)
{
    (void)state;
    sigset_t mask, old_mask;
    struct sigaction action, old_action;
    assert_non_null(setlocale(LC_ALL, "C.UTF-8"));
    memset(&action, 0, sizeof(action));
    action.sa_handler = SIG_IGN;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    assert_int_equal(sigprocmask(SIG_BLOCK, &mask, &old_mask), 0);
    assert_int_equal(sigaction(SIGUSR1, &action, &old_action), 0);
    mode_t old_creation_mask = umask(0123);
#if defined(__x86_64__)
    uint32_t old_control = _mm_getcsr();
    _mm_setcsr(old_control | 0x8040); /* denormals are zero */
#endif
    live(2);
#if defined(__x86_64__)
    _mm_setcsr(old_control);
#endif
    umask(old_creation_mask);
    assert_int_equal(sigaction(SIGUSR1, &old_action, NULL), 0);
    assert_int_equal(sigprocmask(SIG_SETMASK, &old_mask, NULL), 0);
    assert_non_null(setlocale(LC_ALL, "C"));
}

/* ---------------------------------------------------------------- many lives */

/* Lines of /proc/self/maps; with `word`, only those that contain it. */
static int count_maps(const char *word)
{
    char line[4096];
    int num_lines = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL) {
        num_lines += word == NULL || strstr(line, word) != NULL;
    }
    fclose(maps);
    return num_lines;
}

static long resident_pages(void)
{
    long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    assert_non_null(statm);
    assert_int_equal(fscanf(statm, "%*d %ld", &pages), 1);
    fclose(statm);
    return pages;
}

static void load_and_unload(int32_t num_threads)
{
    struct abi_host host;
    union abi_args args;
    assert_true(abi_host_open(&host, NULL, num_threads));
    abi_call_fill(&abi_calls[0], &host, &args);
    assert_int_equal(abi_calls[0].run(host.api, host.plan, &args, NULL), 0);
    abi_host_close(&host);
}

static void test_thousand_lives(void **state)
{
    (void)state;
    /* glibc keeps freed blocks for each thread and counts them as used: its caches of all sizes are
       full after some 200 lives, and from then on not a byte may be added. */
    enum { NUM_CYCLES = 1000, NUM_WARM_UP = 300, SLACK_PAGES = 64 };
    struct process_state before, after;
    size_t heap_before = 0;
    long pages_before = 0;
    int maps_before = 0;
    assert_int_equal(count_maps("libmoe_plugin"), 0);
    read_state(&before);
    for (int cycle = 0; cycle < NUM_CYCLES; cycle++) {
        load_and_unload(1 + cycle % 3);
        if (count_maps("libmoe_plugin") != 0) {
            fail_msg("cycle %d: the plugin is still mapped after dlclose", cycle);
        }
        if (cycle == NUM_WARM_UP) {
            heap_before = mallinfo2().uordblks;
            pages_before = resident_pages();
            maps_before = count_maps(NULL);
        }
    }
    size_t heap_after = mallinfo2().uordblks;
    long pages_after = resident_pages();
    int maps_after = count_maps(NULL);
    settle_threads(before.num_threads);
    read_state(&after);
    after.error_number = before.error_number;
    assert_same("1000 lives", &before, &after, 0);
    if (MOE_TEST_SANITIZED) {
        return; /* freed memory stays in the sanitizer's quarantine; its own leak check looks
                   instead */
    }
    print_message("heap %zu to %zu bytes, %ld to %ld pages, %d to %d maps\n", heap_before,
                  heap_after, pages_before, pages_after, maps_before, maps_after);
    assert_true(heap_after <= heap_before);
    assert_true(pages_after <= pages_before + SLACK_PAGES);
    assert_true(maps_after <= maps_before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_state_with_one_thread),
        cmocka_unit_test(test_state_with_threads),
        cmocka_unit_test(test_unusual_state),
        cmocka_unit_test(test_thousand_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
