/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of `moectl bench`: routes, random memory, samples, threads, limits. */
#define _GNU_SOURCE
#include "cli_fixture.h"

#include "bench_limits.h"
#include "bench_memory.h"
#include "bench_random.h"
#include "bench_routing.h"
#include "bench_samples.h"
#include "bench_team.h"
#include "element.h"
#include "moe_plugin.h"

#include <math.h>
#include <stdatomic.h>

/* ---------------------------------------------------------------- routes */

static struct moe_bench_routes draw(const struct moe_bench_routing *routing, int64_t num_tokens,
                                    int64_t top_k, int64_t num_experts, uint64_t seed)
{
    struct moe_cli_error error = {.message = ""};
    struct moe_bench_routes routes;
    assert_int_equal(
        moe_bench_routes_init(&routes, routing, 3, num_tokens, top_k, num_experts, seed, &error),
        0);
    return routes;
}

/* Ids are in range and distinct within a token; weights of a token add up to 1. */
static void check_ids(const struct moe_bench_routes *routes, int64_t top_k)
{
    for (int64_t token = 0; token < routes->num_sets * routes->num_tokens; ++token) {
        const int32_t *ids = routes->topk_ids + token * top_k;
        double total = 0.0;
        for (int64_t slot = 0; slot < top_k; ++slot) {
            assert_in_range(ids[slot], 0, routes->num_experts - 1);
            for (int64_t other = 0; other < slot; ++other) {
                assert_int_not_equal(ids[slot], ids[other]);
            }
            total += (double)routes->topk_weights[token * top_k + slot];
        }
        assert_true(fabs(total - 1.0) < 1e-5);
    }
}

/* Rows are the routes in order of expert, then of route. Returns the experts that have one. */
static int64_t check_rows(const struct moe_bench_routes *routes, int64_t set)
{
    const int32_t *ids = routes->topk_ids + set * routes->num_routes;
    const int64_t *seg_indptr = routes->seg_indptr + set * (routes->num_experts + 1);
    int64_t row = 0, num_active = 0;
    for (int64_t expert = 0; expert < routes->num_experts; ++expert) {
        assert_int_equal(seg_indptr[expert], row);
        for (int64_t route = 0; route < routes->num_routes; ++route) {
            if (ids[route] == expert) {
                const int64_t at = set * routes->num_routes + route;
                assert_int_equal(routes->src2dst[at], row);
                assert_memory_equal(&routes->row_weights[set * routes->num_routes + row],
                                    &routes->topk_weights[at], sizeof(float));
                ++row;
            }
        }
        num_active += row > seg_indptr[expert];
    }
    assert_int_equal(seg_indptr[routes->num_experts], routes->num_routes);
    return num_active;
}

static void test_routes_of_all_rules(void **state)
{
    (void)state;
    static const struct moe_bench_routing rules[] = {
        {.kind = MOE_BENCH_ROUTING_UNIFORM},
        {.kind = MOE_BENCH_ROUTING_ZIPF, .exponent = 1.2},
        {.kind = MOE_BENCH_ROUTING_HOT},
        {.kind = MOE_BENCH_ROUTING_UNIFORM, .num_active = 7}};
    static const struct {
        int64_t num_tokens, top_k, num_experts;
    } shapes[] = {{0, 2, 8}, {7, 1, 7}, {17, 2, 8}, {64, 6, 60}, {20, 7, 7}};
    for (size_t rule = 0; rule < sizeof rules / sizeof rules[0]; ++rule) {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; ++i) {
            struct moe_bench_routes routes =
                draw(&rules[rule], shapes[i].num_tokens, shapes[i].top_k, shapes[i].num_experts, 5);
            double num_active = 0.0;
            check_ids(&routes, shapes[i].top_k);
            for (int64_t set = 0; set < routes.num_sets; ++set) {
                num_active += (double)check_rows(&routes, set);
            }
            assert_true(fabs(num_active / (double)routes.num_sets - routes.mean_active) < 1e-9);
            moe_bench_routes_finish(&routes);
        }
    }
}

static void test_active_is_exact(void **state)
{
    (void)state;
    for (int64_t num_active = 4; num_active <= 32; num_active += 7) {
        const struct moe_bench_routing routing = {.kind = MOE_BENCH_ROUTING_UNIFORM,
                                                  .num_active = num_active};
        struct moe_bench_routes routes = draw(&routing, 8, 4, 40, 1);
        for (int64_t set = 0; set < routes.num_sets; ++set) {
            assert_int_equal(check_rows(&routes, set), num_active);
        }
        moe_bench_routes_finish(&routes);
    }
}

static void test_rules_differ(void **state)
{
    (void)state;
    const struct moe_bench_routing uniform = {.kind = MOE_BENCH_ROUTING_UNIFORM};
    const struct moe_bench_routing zipf = {.kind = MOE_BENCH_ROUTING_ZIPF, .exponent = 2.0};
    const struct moe_bench_routing hot = {.kind = MOE_BENCH_ROUTING_HOT};
    struct moe_bench_routes even = draw(&uniform, 64, 2, 64, 1);
    struct moe_bench_routes skewed = draw(&zipf, 64, 2, 64, 1);
    struct moe_bench_routes crowded = draw(&hot, 64, 2, 64, 1);
    assert_true(even.mean_active > 45.0); /* 64 * (1 - (1 - 2/64)^64) = 55.6 */
    assert_true(skewed.mean_active < 35.0);
    for (int64_t set = 0; set < crowded.num_sets; ++set) {
        const int32_t *ids = crowded.topk_ids + set * crowded.num_routes;
        for (int64_t token = 0; token < crowded.num_tokens; ++token) {
            assert_int_equal(ids[2 * token], ids[0]);
        }
    }
    moe_bench_routes_finish(&even);
    moe_bench_routes_finish(&skewed);
    moe_bench_routes_finish(&crowded);
}

static void test_seed_decides(void **state)
{
    (void)state;
    const struct moe_bench_routing routing = {.kind = MOE_BENCH_ROUTING_UNIFORM};
    struct moe_bench_routes first = draw(&routing, 32, 4, 64, 9);
    struct moe_bench_routes again = draw(&routing, 32, 4, 64, 9);
    struct moe_bench_routes other = draw(&routing, 32, 4, 64, 10);
    const size_t num_bytes = (size_t)(first.num_sets * first.num_routes) * sizeof(int32_t);
    assert_memory_equal(first.topk_ids, again.topk_ids, num_bytes);
    assert_memory_not_equal(first.topk_ids, other.topk_ids, num_bytes);
    moe_bench_routes_finish(&first);
    moe_bench_routes_finish(&again);
    moe_bench_routes_finish(&other);
}

static void test_routing_names(void **state)
{
    (void)state;
    struct moe_bench_routing routing = {.num_active = 0};
    struct moe_cli_error error = {.message = ""};
    assert_int_equal(moe_bench_routing_parse("uniform", &routing, &error), 0);
    assert_int_equal(routing.kind, MOE_BENCH_ROUTING_UNIFORM);
    assert_int_equal(moe_bench_routing_parse("hot", &routing, &error), 0);
    assert_int_equal(routing.kind, MOE_BENCH_ROUTING_HOT);
    assert_int_equal(moe_bench_routing_parse("zipf:1.5", &routing, &error), 0);
    assert_int_equal(routing.kind, MOE_BENCH_ROUTING_ZIPF);
    assert_true(routing.exponent == 1.5);
    static const char *const wrong[] = {"",        "zipf",     "zipf:",   "zipf:x", "zipf:1x",
                                        "zipf:-1", "zipf:nan", "zipf:11", "warm"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        assert_int_equal(moe_bench_routing_parse(wrong[i], &routing, &error), -1);
        fixture_assert_contains(error.message, "--routing");
    }
}

static void test_active_limits(void **state)
{
    (void)state;
    struct moe_bench_routing routing = {.num_active = 9};
    struct moe_cli_error error = {.message = ""};
    assert_int_equal(moe_bench_routing_check(&routing, 1, 8, 64, &error), -1);
    fixture_assert_contains(error.message,
                            "1 token with top_k 8 of 64 experts can reach 8 to 8 experts");
    assert_int_equal(moe_bench_routing_check(&routing, 2, 8, 64, &error), 0);
    routing.num_active = 7;
    assert_int_equal(moe_bench_routing_check(&routing, 2, 8, 64, &error), -1);
    routing.num_active = 65;
    assert_int_equal(moe_bench_routing_check(&routing, 100, 8, 64, &error), -1);
}

/* ---------------------------------------------------------------- samples */

static void test_summary(void **state)
{
    (void)state;
    struct moe_bench_samples samples = {.num_samples = 0};
    struct moe_bench_summary summary = moe_bench_samples_summarize(&samples);
    assert_int_equal(summary.num_samples, 0);
    for (int i = 10; i >= 0; --i) {
        moe_bench_samples_add(&samples, 10.0 * i);
    }
    summary = moe_bench_samples_summarize(&samples);
    assert_int_equal(summary.num_samples, 11);
    assert_true(fabs(summary.median - 50.0) < 1e-9);
    assert_true(fabs(summary.p10 - 10.0) < 1e-9);
    assert_true(fabs(summary.p90 - 90.0) < 1e-9);
}

static void test_summary_of_few(void **state)
{
    (void)state;
    struct moe_bench_samples samples = {.num_samples = 0};
    moe_bench_samples_add(&samples, 3.0);
    struct moe_bench_summary summary = moe_bench_samples_summarize(&samples);
    assert_true(summary.median == 3.0 && summary.p10 == 3.0 && summary.p90 == 3.0);
    moe_bench_samples_add(&samples, 1.0);
    summary = moe_bench_samples_summarize(&samples);
    assert_true(fabs(summary.median - 2.0) < 1e-9);
}

static void test_old_samples_go(void **state)
{
    (void)state;
    struct moe_bench_samples *samples = calloc(1, sizeof *samples);
    assert_non_null(samples);
    for (int i = 0; i < MOE_BENCH_MAX_SAMPLES; ++i) {
        moe_bench_samples_add(samples, 1000.0);
    }
    for (int i = 0; i < MOE_BENCH_MAX_SAMPLES; ++i) {
        moe_bench_samples_add(samples, 1.0);
    }
    const struct moe_bench_summary summary = moe_bench_samples_summarize(samples);
    assert_int_equal(summary.num_samples, MOE_BENCH_MAX_SAMPLES);
    assert_true(summary.p90 == 1.0);
    free(samples);
}

/* ---------------------------------------------------------------- threads, memory, limits */

enum { TEAM_THREADS = 3 };

struct visits {
    atomic_int of_thread[TEAM_THREADS];
};

static void visit(void *self, int thread_idx, int num_threads)
{
    struct visits *visits = self;
    assert_int_equal(num_threads, TEAM_THREADS);
    atomic_fetch_add(&visits->of_thread[thread_idx], 1);
}

static void test_team_runs_all(void **state)
{
    (void)state;
    struct moe_cli_error error = {.message = ""};
    struct moe_bench_team *team = moe_bench_team_create(TEAM_THREADS, &error);
    assert_non_null(team);
    struct visits visits = {.of_thread = {0}};
    for (int run = 1; run <= 200; ++run) {
        assert_true(moe_bench_team_run(team, visit, &visits) >= 0.0);
        for (int thread = 0; thread < TEAM_THREADS; ++thread) {
            assert_int_equal(atomic_load(&visits.of_thread[thread]), run);
        }
    }
    moe_bench_team_destroy(team);
    moe_bench_team_destroy(NULL);
}

static void test_fill(void **state)
{
    (void)state;
    static const int32_t dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16,
                                     MOE_DTYPE_FP8_E4M3};
    enum { NUM_ELEMENTS = (5 << 19) + 3 }; /* several chunks, the last one odd */
    struct moe_cli_error error = {.message = ""};
    struct moe_bench_team *alone = moe_bench_team_create(1, &error),
                          *three = moe_bench_team_create(TEAM_THREADS, &error);
    assert_non_null(alone);
    assert_non_null(three);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; ++i) {
        const size_t num_bytes = NUM_ELEMENTS * moe_element_bytes(dtypes[i]);
        struct moe_bench_memory a = {.bytes = NULL}, b = {.bytes = NULL};
        assert_int_equal(moe_bench_memory_init(&a, num_bytes, "a test", &error), 0);
        assert_int_equal(moe_bench_memory_init(&b, num_bytes, "a test", &error), 0);
        assert_int_equal(
            moe_bench_memory_fill(a.bytes, dtypes[i], NUM_ELEMENTS, 0.5f, 3, alone, &error), 0);
        assert_int_equal(
            moe_bench_memory_fill(b.bytes, dtypes[i], NUM_ELEMENTS, 0.5f, 3, three, &error), 0);
        assert_memory_equal(a.bytes, b.bytes, num_bytes);
        double squares = 0.0;
        int64_t num_zeros = 0;
        for (int64_t k = 0; k < NUM_ELEMENTS; ++k) {
            const double value = (double)moe_element_load(a.bytes, dtypes[i], k);
            squares += value * value;
            num_zeros += value == 0.0;
        }
        assert_true(fabs(sqrt(squares / NUM_ELEMENTS) - 0.5) < 0.01);
        assert_true(num_zeros < NUM_ELEMENTS / 200);
        moe_bench_memory_finish(&a);
        moe_bench_memory_finish(&b);
    }
    moe_bench_team_destroy(three);
    moe_bench_team_destroy(alone);
}

static void test_memory_that_is_not_there(void **state)
{
    (void)state;
    struct moe_bench_memory memory = {.bytes = NULL};
    struct moe_cli_error error = {.message = ""};
    assert_int_equal(moe_bench_memory_init(&memory, UINT64_C(1) << 62, "dreams", &error), -1);
    fixture_assert_contains(error.message, "no memory for dreams");
    moe_bench_memory_finish(&memory);
}

static void test_limits(void **state)
{
    (void)state;
    struct moe_cli_error error = {.message = ""};
    struct moe_bench_team *team = moe_bench_team_create(2, &error);
    assert_non_null(team);
    struct moe_bench_limits *limits = calloc(1, sizeof *limits);
    assert_non_null(limits);
    assert_int_equal(moe_bench_limits_init(limits, team, 8 << 20, &error), 0);
    const unsigned char *bytes = limits->memory.bytes;
    const size_t share = limits->memory.num_bytes / 2;
    assert_memory_not_equal(bytes, bytes + share / 2, share / 2);
    moe_bench_limits_measure(limits);
    for (size_t thread = 0; thread < 2;
         ++thread) { /* each thread copied the second half of its share to the first */
        assert_memory_equal(bytes + thread * share, bytes + thread * share + share / 2, share / 2);
    }
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        const struct moe_bench_summary summary =
            moe_bench_samples_summarize(&limits->samples[limit]);
        assert_int_equal(summary.num_samples, 1);
        assert_true(isfinite(summary.median) && summary.median > 1e6);
    }
    const double timer_s = moe_bench_limits_timer_s();
    assert_true(timer_s > 0.0 && timer_s < 1e-3);
    moe_bench_limits_finish(limits);
    free(limits);
    moe_bench_team_destroy(team);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routes_of_all_rules),
        cmocka_unit_test(test_active_is_exact),
        cmocka_unit_test(test_rules_differ),
        cmocka_unit_test(test_seed_decides),
        cmocka_unit_test(test_routing_names),
        cmocka_unit_test(test_active_limits),
        cmocka_unit_test(test_summary),
        cmocka_unit_test(test_summary_of_few),
        cmocka_unit_test(test_old_samples_go),
        cmocka_unit_test(test_team_runs_all),
        cmocka_unit_test(test_fill),
        cmocka_unit_test(test_memory_that_is_not_there),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
