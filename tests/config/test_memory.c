/* SPDX-License-Identifier: Apache-2.0 */
/* Out of memory at every allocation is a status and no leak; references. */
/* ctest labels: tsan */
#include "config_fixture.h"
#include "support_alloc.h"

#include <pthread.h>

static const char text[] =
    "schema: moe-dispatch/1\non_unavailable: next\nrules:\n"
    "- {name: a, match: {experts: [8, 16], density: \">=1\", device: \"*cpu*\"}, buckets: "
    "[{max_tokens: 64, gemm1: {kernel: cpu.avx2}}]}\n"
    "- {name: b, match: {inter: \"%64\"}, buckets: [{max_tokens: inf, gating: {BLOCK_SIZE: 1}}]}\n";

static void ignore_finding(void *self, const struct moe_diagnostic *finding)
{
    (void)self;
    (void)finding;
}

static void ignore_rule(void *self, const struct moe_explain_rule *rule)
{
    (void)self;
    (void)rule;
}

/* Everything that allocates, once. */
static int32_t run_all(const struct moe_memory *memory, const struct moe_config_request *request)
{
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 1000);
    struct moe_config *config = NULL;
    struct moe_dispatch *dispatch = NULL;
    struct moe_explain_sink sink;
    MOE_INIT(sink);
    sink.rule = ignore_rule;
    struct moe_error error;
    MOE_INIT(error);
    int32_t status = moe_config_create(memory, request, &config, &error);
    if (status == MOE_STATUS_OK) {
        status = moe_dispatch_create(memory, config, &device, &problem, FIXTURE_ALL_OPS, &dispatch,
                                     &error);
    }
    if (status == MOE_STATUS_OK) {
        status = moe_explain(memory, config, &device, &problem, FIXTURE_ALL_OPS, 5, &sink, &error);
    }
    assert_int_equal(error.status, status);
    moe_dispatch_destroy(dispatch);
    moe_config_unref(config);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    struct moe_config_source sources[] = {
        fixture_text("text", text, 0),
        fixture_file(MOE_TESTS_DATA_DIR "/config/valid/every_form.yaml", 0),
    };
    struct moe_config_request request = {sources, 2, 0, NULL, ignore_finding, NULL};
    struct support_allocator allocator;
    struct moe_memory memory = {&allocator, support_allocate, support_free};
    int64_t num_failed = 0;
    for (int64_t fail_at = 1;; fail_at++) {
        support_allocator_init(&allocator, fail_at);
        int32_t status = run_all(&memory, &request);
        assert_int_equal(allocator.num_live, 0);
        assert_int_equal(allocator.num_bad_frees, 0);
        support_allocator_finish(&allocator);
        if (status == MOE_STATUS_OK) {
            break;
        }
        assert_int_equal(status, MOE_STATUS_OUT_OF_MEMORY);
        num_failed++;
    }
    assert_true(num_failed > 10);
}

static void table_keeps_its_snapshot(void **state)
{
    (void)state;
    struct support_allocator allocator;
    support_allocator_init(&allocator, 0);
    struct moe_memory memory = {&allocator, support_allocate, support_free};
    struct moe_config_source source = fixture_text("text", text, MOE_CONFIG_REPLACE);
    struct moe_config_request request = {&source, 1, 0, NULL, NULL, NULL};
    struct moe_config *config = NULL;
    assert_int_equal(moe_config_create(&memory, &request, &config, NULL), MOE_STATUS_OK);
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct moe_dispatch *dispatch = NULL;
    assert_int_equal(
        moe_dispatch_create(&memory, config, &device, &problem, FIXTURE_ALL_OPS, &dispatch, NULL),
        MOE_STATUS_OK);
    moe_config_unref(config);
    assert_string_equal(fixture_rule_at(dispatch, 4), "a");
    assert_string_equal(moe_dispatch_find(dispatch, 64)->choices[MOE_OP_GEMM1].file, "text");
    moe_dispatch_destroy(dispatch);
    moe_dispatch_destroy(NULL);
    moe_config_unref(NULL);
    assert_int_equal(allocator.num_live, 0);
    support_allocator_finish(&allocator);
}

static void *plan_and_forget(void *config)
{
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct moe_memory memory = fixture_memory();
    for (int i = 0; i < 50; i++) {
        struct moe_dispatch *dispatch = NULL;
        if (moe_dispatch_create(&memory, config, &device, &problem, FIXTURE_ALL_OPS, &dispatch,
                                NULL) == MOE_STATUS_OK) {
            moe_dispatch_destroy(dispatch);
        }
    }
    moe_config_unref(config);
    return NULL;
}

static void snapshots_are_shared_between_threads(void **state)
{
    (void)state;
    struct moe_config *config = fixture_config(text);
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, plan_and_forget, moe_config_ref(config)),
                         0);
    }
    moe_config_unref(config); /* the last thread frees it */
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(table_keeps_its_snapshot),
        cmocka_unit_test(snapshots_are_shared_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
