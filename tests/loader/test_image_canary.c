/* SPDX-License-Identifier: Apache-2.0 */
/* What the canary says about plugins that refuse, crash, hang or end the process, and what it
 * leaves behind. */
#define _GNU_SOURCE

#include "loader_fixture.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

static int32_t try_in_canary(struct loader_fixture *fixture, const char *path, int32_t timeout_ms)
{
    struct moe_loader_image *image = NULL;
    MOE_INIT(fixture->error);
    int32_t status = moe_image_prepare(path, &fixture->options, &image, &fixture->error);
    assert_int_equal(status, MOE_STATUS_OK);
    struct moe_canary_options options = {.canary_path = CANARY_PATH,
                                         .path = path,
                                         .timeout_ms = timeout_ms,
                                         .backend = MOE_BACKEND_CPU};
    status = moe_canary_run(&options, image, &fixture->error);
    moe_loader_image_close(image, 1, NULL);
    return status;
}

static void expect_dead_canary(struct loader_fixture *fixture, const char *path, int32_t timeout_ms,
                               const char *words)
{
    int32_t status = try_in_canary(fixture, path, timeout_ms);
    if (status != MOE_LOADER_STATUS_CANARY || strstr(fixture->error.message, words) == NULL) {
        fail_msg("%s: expected \"...%s...\", found %s \"%s\"", path, words,
                 moe_loader_status_name(status), fixture->error.message);
    }
    assert_null(strchr(fixture->error.message, '\n'));
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left, not even a dead one */
    assert_int_equal(errno, ECHILD);
}

static void good_plugins_pass(void **state)
{
    struct loader_fixture *fixture = *state;
    assert_int_equal(try_in_canary(fixture, SMALL_PLUGIN("good_a"), 0), MOE_STATUS_OK);
    if (try_in_canary(fixture, REAL_PLUGIN, 0) != MOE_STATUS_OK) {
        fail_msg("%s", fixture->error.message);
    }
}

static void memfd_copies_pass(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture->options.flags |= MOE_LOADER_USE_MEMFD;
    assert_int_equal(try_in_canary(fixture, SMALL_PLUGIN("good_a"), 0), MOE_STATUS_OK);
}

static void bad_plugins_are_told_apart(void **state)
{
    struct loader_fixture *fixture = *state;
    expect_dead_canary(
        fixture, SMALL_PLUGIN("entry_refuses"), 0,
        "refused by the canary, in the step moe_plugin_init: moe_plugin_init refused");
    expect_dead_canary(fixture, SMALL_PLUGIN("member_null"), 0, "mandatory member layer");
    expect_dead_canary(fixture, SMALL_PLUGIN("context_refuses"), 0,
                       "in the step context_create: no such device today");
    expect_dead_canary(fixture, SMALL_PLUGIN("self_test_fails"), 0,
                       "in the step context_destroy: known answer 3 is wrong");
    expect_dead_canary(fixture, SMALL_PLUGIN("entry_ends_process"), 0,
                       "ended the canary, in the step moe_plugin_init, with exit status 0");
}

static void crashes_are_named(void **state)
{
    struct loader_fixture *fixture = *state;
    /* A sanitizer catches signals and ends the process with a status of its own. */
    const char *segv = MOE_TEST_SANITIZED ? "in the step moe_plugin_init" : "SIGSEGV";
    const char *ill = MOE_TEST_SANITIZED ? "in the step moe_plugin_init" : "SIGILL";
    expect_dead_canary(fixture, SMALL_PLUGIN("entry_crashes"), 0, segv);
    expect_dead_canary(fixture, SMALL_PLUGIN("constructor_crashes"), 0, ill);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void hangs_are_ended(void **state)
{
    struct loader_fixture *fixture = *state;
    int32_t timeout_ms = MOE_TEST_SANITIZED ? 3000 : 600;
    int64_t begin_ms = now_ms();
    expect_dead_canary(fixture, SMALL_PLUGIN("entry_hangs"), timeout_ms,
                       "hung in the canary, in the step moe_plugin_init; killed after");
    expect_dead_canary(fixture, SMALL_PLUGIN("self_test_hangs"), timeout_ms,
                       "in the step self_test");
    assert_in_range(now_ms() - begin_ms, 2 * timeout_ms, 2 * timeout_ms + 10000);
}

/* A host may ignore SIGCHLD, block signals and have closed its standard streams. */
static void odd_hosts_are_served(void **state)
{
    struct loader_fixture *fixture = *state;
    void (*before)(int) = signal(SIGCHLD, SIG_IGN);
    assert_int_equal(try_in_canary(fixture, SMALL_PLUGIN("good_a"), 0), MOE_STATUS_OK);
    assert_int_equal(try_in_canary(fixture, SMALL_PLUGIN("entry_ends_process"), 0),
                     MOE_LOADER_STATUS_CANARY);
    assert_non_null(strstr(fixture->error.message, "how is not known"));
    signal(SIGCHLD, before);

    pid_t child = fork();
    if (child == 0) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);
        for (int i = 0; i < 16; i++) {
            close(i);
        }
        int32_t good = try_in_canary(fixture, SMALL_PLUGIN("good_a"), 0);
        int32_t bad = try_in_canary(fixture, SMALL_PLUGIN("entry_crashes"), 0);
        _exit(good == MOE_STATUS_OK && bad == MOE_LOADER_STATUS_CANARY ? 0 : 1);
    }
    int ended = 0;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
}

static void a_missing_canary_is_named(void **state)
{
    struct loader_fixture *fixture = *state;
    struct moe_loader_image *image = NULL;
    assert_int_equal(moe_image_prepare(SMALL_PLUGIN("good_a"), &fixture->options, &image, NULL),
                     MOE_STATUS_OK);
    struct moe_canary_options options = {.canary_path = "/nowhere/moe-canary", .path = "p"};
    assert_int_equal(moe_canary_run(&options, image, &fixture->error), MOE_STATUS_IO);
    assert_non_null(
        strstr(fixture->error.message, "/nowhere/moe-canary: the canary cannot be run"));
    options.canary_path = NULL; /* build/tests/x finds build/bin/moe-canary */
    assert_int_equal(moe_canary_run(&options, image, &fixture->error), MOE_STATUS_OK);
    assert_int_equal(moe_image_map(image, &fixture->host, &fixture->error), MOE_STATUS_OK);
    assert_int_equal(moe_canary_run(&options, image, &fixture->error), MOE_STATUS_INVALID_ARGUMENT);
    moe_loader_image_close(image, 1, NULL);
}

/* Prepare, canary, map, again and again; killed at a random point, nothing stays that a next start
 * would load. */
static void killed_staging_leaves_nothing(void **state)
{
    struct loader_fixture *fixture = *state;
    int num_leftovers = 0;
    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (;;) {
                if (fixture_open(fixture, SMALL_PLUGIN("good_a")) != MOE_STATUS_OK) {
                    _exit(1);
                }
                moe_loader_image_close(fixture->image, 1, NULL);
            }
        }
        struct timespec pause = {.tv_nsec = 3000000 + round * 137000};
        nanosleep(&pause, NULL);
        kill(child, SIGKILL);
        int ended = 0;
        assert_int_equal(waitpid(child, &ended, 0), child);
        assert_true(WIFSIGNALED(ended));
        num_leftovers += fixture_num_entries(fixture->shadow);
        assert_in_range(fixture_num_entries(fixture->shadow), 0, 1);
    }
    print_message("%d of 40 killed processes left a copy\n", num_leftovers);

    /* One that is left for sure, in the place of a half-written copy. */
    char name[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "shadow/moe-shadow-0123456789abcdef-1-1.so", name);
    fixture_write(name, "half", 4);
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    assert_int_equal(fixture_num_entries(fixture->shadow), 0);
    moe_loader_image_close(fixture->image, 1, NULL);
}

/* A copy that another process is about to map is left alone. */
static void live_copies_are_not_swept(void **state)
{
    struct loader_fixture *fixture = *state;
    struct moe_loader_image *waiting = NULL;
    assert_int_equal(moe_image_prepare(SMALL_PLUGIN("good_a"), &fixture->options, &waiting, NULL),
                     MOE_STATUS_OK);
    assert_int_equal(fixture_num_entries(fixture->shadow), 1);
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_b"));
    assert_int_equal(fixture_num_entries(fixture->shadow), 1);
    assert_int_equal(moe_image_map(waiting, &fixture->host, &fixture->error), MOE_STATUS_OK);
    assert_string_equal(moe_loader_image_api(waiting)->kernel_set_id, "good_a");
    moe_loader_image_close(waiting, 1, NULL);
    moe_loader_image_close(fixture->image, 1, NULL);
    assert_int_equal(fixture_num_entries(fixture->shadow), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOADER_TEST(good_plugins_pass),
        LOADER_TEST(memfd_copies_pass),
        LOADER_TEST(bad_plugins_are_told_apart),
        LOADER_TEST(crashes_are_named),
        LOADER_TEST(hangs_are_ended),
        LOADER_TEST(odd_hosts_are_served),
        LOADER_TEST(a_missing_canary_is_named),
        LOADER_TEST(killed_staging_leaves_nothing),
        LOADER_TEST(live_copies_are_not_swept),
    };
    return cmocka_run_group_tests_name("image_canary", tests, NULL, NULL);
}
