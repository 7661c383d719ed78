/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan serial */
/* Swapping as moectl swap-demo does it: what it counts and times, and that it sees errors. */
#include "swap_latency.h"
#include "swap_report.h"
#include "swap_session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define PLUGIN_A   MOE_BUILD_DIR "/lib/libmoe_plugin.so"
#define PLUGIN_B   MOE_BUILD_DIR "/lib/libmoe_plugin_b.so"
#define PLUGIN_NAN MOE_BUILD_DIR "/tests/plugins/fault_nan.so"

/* ---- latencies ---- */

static void add(struct moe_swap_intervals *intervals, int64_t begin_ns, int64_t end_ns)
{
    assert_int_equal(moe_swap_intervals_add(intervals, begin_ns, end_ns), 0);
}

static void percentiles_are_exact(void **state)
{
    (void)state;
    const struct moe_swap_intervals none = {.num_intervals = 0};
    struct moe_swap_intervals odd = {.num_intervals = 0}, even = {.num_intervals = 0};
    /* 10000 requests of 1 to 10000 us in two lists, not in order; a list is more than one block. */
    for (int64_t i = 0; i < 10000; ++i) {
        const int64_t us = i * 7919 % 10000 + 1;
        add(us % 2 == 0 ? &even : &odd, i, i + us * 1000);
    }
    const struct moe_swap_intervals *lists[] = {&odd, &even};
    struct moe_swap_percentiles out[MOE_SWAP_NUM_PHASES];
    assert_int_equal(moe_swap_latency_summarize(lists, 2, &none, &none, out), 0);
    const struct moe_swap_percentiles *outside = &out[MOE_SWAP_OUTSIDE];
    assert_int_equal(outside->num_requests, 10000);
    assert_true(outside->p50_us == 5000.0 && outside->p90_us == 9000.0);
    assert_true(outside->p99_us == 9900.0 && outside->max_us == 10000.0);
    assert_int_equal(out[MOE_SWAP_INSIDE].num_requests, 0);
    assert_true(out[MOE_SWAP_INSIDE].max_us == 0.0);
    assert_true(moe_swap_latency_ratio(out) == 0.0); /* nothing to compare */
    moe_swap_intervals_finish(&odd);
    moe_swap_intervals_finish(&even);
    assert_int_equal(odd.num_intervals, 0);
}

static void percentiles_of_few(void **state)
{
    (void)state;
    const struct moe_swap_intervals none = {.num_intervals = 0};
    struct moe_swap_intervals three = {.num_intervals = 0};
    add(&three, 0, 3000);
    add(&three, 0, 1000);
    add(&three, 0, 2000);
    const struct moe_swap_intervals *list = &three;
    struct moe_swap_percentiles out[MOE_SWAP_NUM_PHASES];
    assert_int_equal(moe_swap_latency_summarize(&list, 1, &none, &none, out), 0);
    const struct moe_swap_percentiles *outside = &out[MOE_SWAP_OUTSIDE];
    assert_true(outside->p50_us == 2.0 && outside->p90_us == 3.0);
    assert_true(outside->p99_us == 3.0 && outside->max_us == 3.0);
    moe_swap_intervals_finish(&three);
}

/* A request belongs to a window as soon as it touches it; a window goes before staging. */
static void phases_are_told_apart(void **state)
{
    (void)state;
    struct moe_swap_intervals windows = {.num_intervals = 0}, stagings = {.num_intervals = 0};
    add(&windows, 1000, 2000);
    add(&windows, 5000, 6000);
    add(&stagings, 1900, 3000);
    add(&stagings, 4000, 4500);
    static const struct {
        int64_t begin_ns, end_ns;
        int phase;
    } cases[] = {
        {0, 999, MOE_SWAP_OUTSIDE},     {0, 1000, MOE_SWAP_INSIDE},
        {2000, 2500, MOE_SWAP_INSIDE},  {2001, 2500, MOE_SWAP_STAGING},
        {0, 9000, MOE_SWAP_INSIDE},     {3000, 3900, MOE_SWAP_STAGING},
        {3001, 3999, MOE_SWAP_OUTSIDE}, {4100, 4200, MOE_SWAP_STAGING},
        {4400, 5000, MOE_SWAP_INSIDE},  {4501, 4999, MOE_SWAP_OUTSIDE},
        {6001, 6002, MOE_SWAP_OUTSIDE}, {5500, 5501, MOE_SWAP_INSIDE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct moe_swap_intervals one = {.num_intervals = 0};
        add(&one, cases[i].begin_ns, cases[i].end_ns);
        const struct moe_swap_intervals *list = &one;
        struct moe_swap_percentiles out[MOE_SWAP_NUM_PHASES];
        assert_int_equal(moe_swap_latency_summarize(&list, 1, &windows, &stagings, out), 0);
        for (int phase = 0; phase < MOE_SWAP_NUM_PHASES; ++phase) {
            if (out[phase].num_requests != (size_t)(phase == cases[i].phase)) {
                fail_msg("case %zu is not in phase %d", i, cases[i].phase);
            }
        }
        moe_swap_intervals_finish(&one);
    }
    moe_swap_intervals_finish(&windows);
    moe_swap_intervals_finish(&stagings);
}

/* ---- sessions ---- */

static struct moe_swap_session session; /* large */

static void open_session(const char *plugin_b)
{
    const struct moe_swap_options options = {
        .plugins = {PLUGIN_A, plugin_b},
        .canary_path = MOE_BUILD_DIR "/bin/moe-canary",
        .num_swaps = 6,
        .num_threads = 3,
        .is_trust_skipped = 1,
    };
    struct moe_cli_error error = {.message = ""};
    if (moe_swap_session_init(&session, &options, &error) != 0) {
        fail_msg("%s", error.message);
    }
}

static void run_session(void)
{
    struct moe_cli_error error = {.message = ""};
    if (moe_swap_session_run(&session, &error) != 0) {
        fail_msg("%s", error.message);
    }
    assert_int_equal(session.num_requests, session.num_failed + session.num_wrong +
                                               session.num_answered[0] + session.num_answered[1]);
    size_t num_timed = 0;
    for (int phase = 0; phase < MOE_SWAP_NUM_PHASES; ++phase) {
        num_timed += session.latency[phase].num_requests;
    }
    assert_int_equal(session.num_requests, num_timed + (size_t)session.num_unmeasured);
}

static int close_session(void **state)
{
    (void)state;
    moe_swap_session_finish(&session);
    return 0;
}

static void both_serve_without_a_failure(void **state)
{
    (void)state;
    open_session(PLUGIN_B);
    for (int i = 0; i < MOE_SWAP_NUM_LAYERS; ++i) { /* else the rest would show nothing */
        const struct moe_swap_layer *layer = &session.layers[i];
        assert_false(moe_swap_layer_is_answer(layer, 0, 0, MOE_SWAP_NUM_TOKENS, layer->answers[1]));
    }
    assert_string_not_equal(session.kernel_set_ids[0], session.kernel_set_ids[1]);
    run_session();
    assert_int_equal(session.num_failed, 0);
    assert_int_equal(session.num_wrong, 0);
    assert_int_equal(session.num_swaps, 6);
    assert_int_equal(session.num_rejections, 0);
    assert_true(session.num_answered[0] > 0 && session.num_answered[1] > 0);
    assert_true(session.latency[MOE_SWAP_INSIDE].num_requests > 0);
    assert_true(session.latency[MOE_SWAP_OUTSIDE].num_requests > 0);
    assert_true(session.latency[MOE_SWAP_STAGING].num_requests > 0);
    for (int step = 0; step < MOE_SWAP_NUM_STEPS; ++step) {
        assert_int_equal(session.steps[step].num_requests, 6);
    }
    assert_true(moe_swap_session_has_passed(&session));
    struct moe_swap_verdict verdict = moe_swap_verdict_make(&session, 1e9);
    assert_true(verdict.has_passed && verdict.p99_ratio > 0.0);
    verdict = moe_swap_verdict_make(&session, 1e-9);
    assert_true(verdict.is_too_slow && !verdict.has_passed);
}

/* One bit of what B is expected to answer is another one. */
static void a_wrong_bit_is_seen(void **state)
{
    (void)state;
    open_session(PLUGIN_B);
    for (int64_t token = 0; token < MOE_SWAP_NUM_TOKENS; ++token) {
        session.layers[1].answers[1][(size_t)token * session.layers[1].row_bytes] ^= 1;
    }
    run_session();
    assert_int_equal(session.num_failed, 0);
    assert_true(session.num_wrong > 0 && session.num_answered[0] > 0);
    assert_true(session.num_answered[1] > 0); /* the other layers are right */
    assert_true(session.num_neither > 0);
    assert_non_null(strstr(session.failures.kept[0], "layer 1, "));
    assert_non_null(strstr(session.failures.kept[0], "which is B, answered with other bits"));
    assert_false(moe_swap_session_has_passed(&session));
}

/* An answer that the other plugin would have given is wrong too. */
static void the_other_plugins_answer_is_wrong(void **state)
{
    (void)state;
    open_session(PLUGIN_B);
    for (int i = 0; i < MOE_SWAP_NUM_LAYERS; ++i) {
        unsigned char *answers = session.layers[i].answers[0];
        session.layers[i].answers[0] = session.layers[i].answers[1];
        session.layers[i].answers[1] = answers;
    }
    run_session();
    assert_true(session.num_wrong > 0);
    assert_int_equal(session.num_neither, 0);
    assert_false(moe_swap_session_has_passed(&session));
}

static void a_bad_plugin_never_serves(void **state)
{
    (void)state;
    open_session(PLUGIN_NAN);
    assert_int_equal(session.num_rejections, 1);
    run_session();
    assert_int_equal(session.num_rejections, 1 + 6);
    assert_int_equal(session.num_swaps, 0);
    assert_int_equal(session.num_failed + session.num_wrong, 0);
    assert_true(session.num_answered[0] > 0);
    assert_int_equal(session.num_answered[1], 0);
    assert_non_null(strstr(session.rejections.kept[0], "B: MOE_LOADER_STATUS_WRONG_RESULT: "));
    assert_true(moe_swap_latency_ratio(session.latency) == 0.0);
    assert_false(moe_swap_session_has_passed(&session));
}

static void missing_files_are_told(void **state)
{
    (void)state;
    const struct moe_swap_options options = {
        .plugins = {PLUGIN_A, MOE_BUILD_DIR "/lib/no_such_plugin.so"},
        .canary_path = MOE_BUILD_DIR "/bin/moe-canary",
        .num_swaps = 2,
        .is_trust_skipped = 1,
    };
    struct moe_cli_error error = {.message = ""};
    assert_int_equal(moe_swap_session_init(&session, &options, &error), -1);
    assert_non_null(strstr(error.message, "plugin B: "));
    assert_non_null(strstr(error.message, "no_such_plugin.so"));
    assert_true(session.num_threads > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_exact),
        cmocka_unit_test(percentiles_of_few),
        cmocka_unit_test(phases_are_told_apart),
        cmocka_unit_test_teardown(both_serve_without_a_failure, close_session),
        cmocka_unit_test_teardown(a_wrong_bit_is_seen, close_session),
        cmocka_unit_test_teardown(the_other_plugins_answer_is_wrong, close_session),
        cmocka_unit_test_teardown(a_bad_plugin_never_serves, close_session),
        cmocka_unit_test_teardown(missing_files_are_told, close_session),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
