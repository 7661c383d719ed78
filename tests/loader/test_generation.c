/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan */
/* Every state of a generation, every way into it, and every refusal on the way. */
#define _GNU_SOURCE

#include "swap_fixture.h"

#include <stdbool.h>

static void life_from_staged_to_parked(void **state)
{
    struct swap_fixture *f = *state;
    swap_open(f);
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    assert_null(moe_loader_enter(f->worker, f->slot)); /* nothing serves, nothing to leave */

    const uint64_t a = swap_stage(f, PLUGIN_A);
    swap_expect_state(f, a, MOE_GENERATION_STAGED);
    assert_null(moe_loader_enter(f->worker, f->slot));
    swap_promote(f, a);
    swap_expect_state(f, a, MOE_GENERATION_ACTIVE);
    assert_int_equal(swap_run(f, output), a);

    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_refused(f, moe_loader_promote(f->loader, b, &f->error), MOE_LOADER_STATUS_STATE,
                 "verify it first");
    swap_verify(f, b);
    swap_expect_state(f, b, MOE_GENERATION_WARM);
    assert_int_equal(swap_run(f, output), a);
    swap_promote(f, b);
    swap_expect_state(f, a, MOE_GENERATION_DRAINING);
    assert_int_equal(swap_run(f, output), b);
    swap_poll(f);
    swap_expect_state(f, a, MOE_GENERATION_WARM);

    swap_refused(f, moe_loader_park(f->loader, a, 0, &f->error), MOE_LOADER_STATUS_STATE,
                 "roll back");
    swap_ok(f, moe_loader_park(f->loader, a, 1, &f->error));
    swap_expect_state(f, a, MOE_GENERATION_PARKED);
    assert_int_equal(swap_stats(f).num_parked, 1);
    assert_int_equal(swap_info(f, a).num_calls, 2);
    assert_int_equal(swap_info(f, b).num_calls, 1);
    assert_int_equal(swap_run(f, output), b);
    swap_refused(f, moe_loader_rollback(f->loader, 0, NULL, &f->error), MOE_LOADER_STATUS_STATE,
                 "no generation to roll back to");

    const struct {
        int32_t from, to;
        uint64_t id;
    } expected[] = {
        {0, MOE_GENERATION_STAGED, a},
        {MOE_GENERATION_STAGED, MOE_GENERATION_ACTIVE, a},
        {0, MOE_GENERATION_STAGED, b},
        {MOE_GENERATION_STAGED, MOE_GENERATION_WARM, b},
        {MOE_GENERATION_ACTIVE, MOE_GENERATION_DRAINING, a},
        {MOE_GENERATION_WARM, MOE_GENERATION_ACTIVE, b},
        {MOE_GENERATION_DRAINING, MOE_GENERATION_WARM, a},
        {MOE_GENERATION_WARM, MOE_GENERATION_PARKED, a},
    };
    assert_int_equal(f->num_transitions, sizeof(expected) / sizeof(expected[0]));
    for (int i = 0; i < f->num_transitions; i++) {
        assert_int_equal(f->transitions[i].from, expected[i].from);
        assert_int_equal(f->transitions[i].to, expected[i].to);
        assert_int_equal(f->transitions[i].generation, expected[i].id);
    }
}

static void second_plugin_has_other_bits_and_equal_abi(void **state)
{
    struct swap_fixture *f = *state;
    const uint64_t a = swap_open_with_a(f);
    float from_a[SWAP_TOKENS * SWAP_HIDDEN], from_b[SWAP_TOKENS * SWAP_HIDDEN];
    assert_int_equal(swap_run(f, from_a), a);
    const struct moe_plugin_api *api_a = moe_loader_enter(f->worker, f->slot)->api;
    moe_loader_leave(f->worker);

    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    swap_promote(f, b);
    assert_int_equal(swap_run(f, from_b), b);
    const struct moe_plugin_api *api_b = moe_loader_enter(f->worker, f->slot)->api;
    moe_loader_leave(f->worker);
    assert_ptr_not_equal(api_a, api_b);
    assert_int_equal(api_a->layout_hash, api_b->layout_hash);
    assert_int_equal(api_a->abi_major, api_b->abi_major);
    assert_int_equal(api_a->abi_minor, api_b->abi_minor);
    assert_int_equal(api_a->struct_size, api_b->struct_size);
    assert_string_not_equal(api_a->kernel_set_id, api_b->kernel_set_id);
    assert_string_equal(swap_info(f, b).kernel_set_id, api_b->kernel_set_id);
    assert_memory_not_equal(from_a, from_b, sizeof(from_a));
    for (int i = 0; i < SWAP_TOKENS * SWAP_HIDDEN; i++) { /* but the same numbers */
        assert_true(from_a[i] - from_b[i] < 1e-4f && from_b[i] - from_a[i] < 1e-4f);
    }
}

static void worker_inside_and_host_hold_the_drain(void **state)
{
    struct swap_fixture *f = *state;
    const uint64_t a = swap_open_with_a(f);
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    const struct moe_loader_view *view = moe_loader_enter(f->worker, f->slot);
    assert_int_equal(view->generation, a);
    assert_null(moe_loader_enter(f->worker, f->slot)); /* not nested */
    swap_promote(f, b);
    swap_poll(f);
    swap_expect_state(f, a, MOE_GENERATION_DRAINING);
    swap_refused(f, moe_loader_park(f->loader, a, 1, &f->error), MOE_STATUS_BUSY, "drains");
    swap_refused(f, moe_loader_promote(f->loader, a, &f->error), MOE_LOADER_STATUS_STATE, "poll");
    assert_int_equal(view->generation, a); /* the view outlives the promote */
    moe_loader_leave(f->worker);
    f->is_done = 0;
    swap_poll(f);
    swap_expect_state(f, a, MOE_GENERATION_DRAINING);
    f->is_done = 1;
    assert_int_equal(moe_loader_enter(f->worker, f->slot)->generation, b);
    swap_poll(f); /* inside, but not in a */
    swap_expect_state(f, a, MOE_GENERATION_WARM);
    moe_loader_leave(f->worker);
    moe_loader_leave(f->worker); /* nothing to leave: no effect */
    swap_promote(f, a);
    swap_expect_state(f, b, MOE_GENERATION_DRAINING);
}

static void rollback_refuses_the_file_until_it_is_allowed(void **state)
{
    struct swap_fixture *f = *state;
    const uint64_t a = swap_open_with_a(f);
    swap_refused(f, moe_loader_rollback(f->loader, 0, NULL, &f->error), MOE_LOADER_STATUS_STATE,
                 "no generation to roll back to");
    const uint64_t b = swap_stage(f, PLUGIN_B), twin = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    swap_verify(f, twin);
    swap_promote(f, b);
    swap_ok(f, moe_loader_rollback(f->loader, 0, NULL, &f->error)); /* while a still drains */
    swap_expect_state(f, a, MOE_GENERATION_ACTIVE);
    swap_poll(f);
    swap_expect_state(f, b, MOE_GENERATION_WARM);
    swap_ok(f, moe_loader_rollback(f->loader, 0, NULL, &f->error)); /* and forth */
    swap_expect_state(f, b, MOE_GENERATION_ACTIVE);
    swap_ok(f, moe_loader_rollback(f->loader, 1, "slow at noon", &f->error));
    swap_expect_state(f, b, MOE_GENERATION_DRAINING);
    swap_refused(f, moe_loader_rollback(f->loader, 0, NULL, &f->error), MOE_LOADER_STATUS_STATE,
                 "roll back to");
    swap_poll(f);
    swap_expect_state(f, b, MOE_GENERATION_REJECTED);
    assert_string_equal(swap_info(f, b).reason, "slow at noon");
    assert_string_equal(f->last_reason, "slow at noon");

    uint64_t again = 0;
    swap_refused(f, moe_loader_stage(f->loader, PLUGIN_B, NULL, &again, &f->error),
                 MOE_LOADER_STATUS_HASH, "refused");
    assert_int_equal(again, 0);
    swap_refused(f, moe_loader_promote(f->loader, twin, &f->error), MOE_LOADER_STATUS_HASH,
                 "refused");
    swap_refused(f, moe_loader_allow(f->loader, "00", &f->error), MOE_STATUS_INVALID_ARGUMENT,
                 "not refused");
    char sha256[72];
    snprintf(sha256, sizeof(sha256), "%s", swap_info(f, b).sha256);
    swap_ok(f, moe_loader_allow(f->loader, sha256, &f->error));
    again = swap_stage(f, PLUGIN_B);
    swap_verify(f, again);
    swap_promote(f, again);
    assert_int_equal(swap_stats(f).num_rollbacks, 3);
    assert_int_equal(swap_stats(f).num_promotes, 3);
}

static void device_errors_roll_back(void **state)
{
    struct swap_fixture *f = *state;
    f->options.max_device_errors = 2;
    const uint64_t a = swap_open_with_a(f);
    swap_ok(f, moe_loader_report(f->loader, a, MOE_STATUS_DEVICE_ERROR, &f->error));
    swap_refused(f, moe_loader_report(f->loader, a, MOE_STATUS_DEVICE_ERROR, &f->error),
                 MOE_LOADER_STATUS_STATE, "roll back to");
    swap_expect_state(f, a, MOE_GENERATION_ACTIVE);
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    swap_promote(f, b);
    swap_refused(f, moe_loader_report(f->loader, b, MOE_STATUS_INVALID_ARGUMENT, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "no device error");
    swap_refused(f, moe_loader_report(f->loader, 999, MOE_STATUS_INTERNAL, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "no generation 999");
    swap_ok(f, moe_loader_report(f->loader, b, MOE_STATUS_DEVICE_ERROR, &f->error));
    swap_expect_state(f, b, MOE_GENERATION_ACTIVE);
    swap_ok(f, moe_loader_report(f->loader, b, MOE_STATUS_DEVICE_LOST, &f->error));
    swap_expect_state(f, a, MOE_GENERATION_ACTIVE);
    swap_ok(f, moe_loader_report(f->loader, b, MOE_STATUS_DEVICE_LOST, &f->error)); /* a late one */
    swap_poll(f);
    swap_expect_state(f, b, MOE_GENERATION_REJECTED);
    assert_int_equal(swap_info(f, b).num_device_errors, 3);
    assert_non_null(strstr(swap_info(f, b).reason, "2 device errors"));
    uint64_t id;
    swap_refused(f, moe_loader_stage(f->loader, PLUGIN_B, NULL, &id, &f->error),
                 MOE_LOADER_STATUS_HASH, "refused");
}

static const char config_text[] = "schema: moe-dispatch/1\nrules: []\n";

static void configuration_is_a_generation_too(void **state)
{
    struct swap_fixture *f = *state;
    struct moe_config_source source;
    MOE_INIT(source);
    source.path = "new.yaml";
    source.text = config_text;
    source.text_bytes = sizeof(config_text) - 1;
    source.flags = MOE_CONFIG_REPLACE;
    uint64_t id = 0;
    swap_open(f);
    swap_refused(f, moe_loader_stage_config(f->loader, &source, 1, &id, &f->error),
                 MOE_LOADER_STATUS_STATE, "no generation is active");
    const uint64_t a = swap_stage(f, PLUGIN_A);
    swap_promote(f, a);
    const uint64_t before = swap_info(f, a).config_fingerprint;
    const struct moe_loader_view *view = moe_loader_enter(f->worker, f->slot);
    const struct moe_plugin_api *api = view->api;
    struct moe_context *context = view->context; /* that of later generations, too */
    moe_loader_leave(f->worker);

    source.text = "schema: [";
    source.text_bytes = strlen(source.text);
    swap_refused(f, moe_loader_stage_config(f->loader, &source, 1, &id, &f->error),
                 MOE_STATUS_CONFIG, "");
    assert_true(f->error.line > 0);
    swap_expect_state(f, a + 1, MOE_GENERATION_REJECTED);
    struct moe_config_info config;
    MOE_INIT(config);
    swap_ok(f, api->config_info(context, &config, &f->error));
    assert_int_equal(config.fingerprint, before);

    source.text = config_text;
    source.text_bytes = sizeof(config_text) - 1;
    swap_ok(f, moe_loader_stage_config(f->loader, &source, 1, &id, &f->error));
    assert_int_not_equal(swap_info(f, id).config_fingerprint, before);
    swap_verify(f, id);
    swap_promote(f, id);
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    assert_int_equal(swap_run(f, output), id);

    /* A slot opened now gets, in each generation, a plan of its own configuration. */
    struct moe_loader_slot *second = NULL;
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error));
    swap_ok(f, moe_loader_rollback(f->loader, 1, "too slow", &f->error));
    assert_int_equal(moe_loader_enter(f->worker, second)->generation, a);
    moe_loader_leave(f->worker);
    swap_poll(f); /* releases the refused one, and its configuration with it */
    swap_expect_state(f, id, MOE_GENERATION_REJECTED);
    MOE_INIT(config);
    swap_ok(f, api->config_info(context, &config, &f->error));
    assert_int_equal(config.fingerprint, before);
    /* The file serves on, so it is not refused. */
    const uint64_t again = swap_stage(f, PLUGIN_A);
    assert_string_equal(swap_info(f, again).sha256, swap_info(f, a).sha256);
}

static void failed_stages_leave_what_serves(void **state)
{
    struct swap_fixture *f = *state;
    const uint64_t a = swap_open_with_a(f);
    float before[SWAP_TOKENS * SWAP_HIDDEN], after[SWAP_TOKENS * SWAP_HIDDEN];
    swap_run(f, before);
    uint64_t id = 0;
    swap_refused(f, moe_loader_stage(f->loader, "/nowhere/plugin.so", NULL, &id, &f->error),
                 MOE_STATUS_IO, "/nowhere/plugin.so");
    swap_refused(f, moe_loader_stage(f->loader, FAULT_PLUGIN("unsupported"), NULL, &id, &f->error),
                 MOE_STATUS_UNSUPPORTED, "no problem is supported");
    swap_refused(f, moe_loader_stage(f->loader, FAULT_PLUGIN("workspace"), NULL, &id, &f->error),
                 MOE_LOADER_STATUS_WORKSPACE, "bytes of workspace");
    swap_refused(f,
                 moe_loader_stage(f->loader, SMALL_PLUGIN("entry_refuses"), NULL, &id, &f->error),
                 MOE_LOADER_STATUS_HANDSHAKE, "");
    swap_refused(f, moe_loader_stage(f->loader, NULL, NULL, &id, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "path is NULL");
    assert_int_equal(id, 0);
    assert_int_equal(swap_stats(f).num_rejected, 4);
    for (uint64_t rejected = a + 1; rejected <= a + 4; rejected++) {
        const struct moe_loader_generation_info info = swap_info(f, rejected);
        assert_int_equal(info.state, MOE_GENERATION_REJECTED);
        assert_int_not_equal(info.reason[0], '\0');
        swap_refused(f, moe_loader_promote(f->loader, rejected, &f->error), MOE_LOADER_STATUS_STATE,
                     "rejected");
        swap_refused(f, moe_loader_verify(f->loader, rejected, NULL, &f->error),
                     MOE_LOADER_STATUS_STATE, "rejected");
        swap_refused(f, moe_loader_park(f->loader, rejected, 0, &f->error), MOE_LOADER_STATUS_STATE,
                     "rejected");
    }
    assert_int_equal(swap_run(f, after), a);
    assert_memory_equal(before, after, sizeof(before));
}

static void canary_goes_first(void **state)
{
    struct swap_fixture *f = *state;
    f->options.flags = MOE_LOADER_SKIP_TRUST;
    f->options.canary_timeout_ms = 3000 * (MOE_TEST_SANITIZED ? 10 : 1);
    const uint64_t a = swap_open_with_a(f);
    uint64_t id = 0;
    swap_refused(f,
                 moe_loader_stage(f->loader, SMALL_PLUGIN("entry_crashes"), NULL, &id, &f->error),
                 MOE_LOADER_STATUS_CANARY, "");
    swap_refused(f, moe_loader_stage(f->loader, FAULT_PLUGIN("self_test"), NULL, &id, &f->error),
                 MOE_LOADER_STATUS_CANARY, "");
    swap_expect_state(f, a, MOE_GENERATION_ACTIVE);
    assert_int_equal(swap_stats(f).num_parked, 0); /* neither was mapped here */
}

static void parked_images_are_bounded_and_used_again(void **state)
{
    struct swap_fixture *f = *state;
    f->options.max_parked = 1;
    swap_open_with_a(f);
    for (int i = 0; i < 3; i++) {
        const uint64_t b = swap_stage(f, PLUGIN_B);
        swap_ok(f, moe_loader_park(f->loader, b, 0, &f->error));
        assert_int_equal(swap_stats(f).num_parked, 1);
    }
    uint64_t id;
    swap_refused(f, moe_loader_stage(f->loader, FAULT_PLUGIN("wrong"), NULL, &id, &f->error),
                 MOE_STATUS_BUSY, "max_parked is 1");
    const uint64_t b = swap_stage(f, PLUGIN_B);
    assert_int_equal(swap_stats(f).num_parked, 0);
    swap_verify(f, b);
    swap_promote(f, b);
}

static bool is_mapped(const char *path)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[1024];
    bool found = false;
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        found = found || strstr(line, path) != NULL;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return found;
}

static void parked_images_are_unloaded_if_wanted(void **state)
{
    struct swap_fixture *f = *state;
    f->options.flags |= MOE_LOADER_ALLOW_UNLOAD;
    swap_open_with_a(f);
    const int before = fixture_num_mappings();
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_ok(f, moe_loader_park(f->loader, b, 0, &f->error));
    assert_int_equal(swap_stats(f).num_unloaded, 1);
    assert_int_equal(swap_stats(f).num_parked, 0);
    assert_true(fixture_num_mappings() <= before + 4);
    assert_false(is_mapped(PLUGIN_B)); /* the published file itself never was */
}

static void ended_generations_are_forgotten(void **state)
{
    struct swap_fixture *f = *state;
    swap_open_with_a(f);
    uint64_t last = 0;
    for (int i = 0; i < 80; i++) {
        last = swap_stage(f, PLUGIN_A);
        swap_ok(f, moe_loader_park(f->loader, last, 0, &f->error));
    }
    assert_in_range(swap_stats(f).num_generations, 64, 67);
    swap_expect_state(f, last, MOE_GENERATION_PARKED);
    struct moe_loader_generation_info info;
    MOE_INIT(info);
    swap_refused(f, moe_loader_generation_at(f->loader, 1000, &info, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "index 1000");
    swap_refused(f, moe_loader_park(f->loader, 2, 0, &f->error), MOE_STATUS_INVALID_ARGUMENT,
                 "no generation 2");
}

static void options_are_checked(void **state)
{
    struct swap_fixture *f = *state;
    struct moe_loader *loader = NULL;
    f->options.flags = 0x100;
    swap_refused(f, moe_loader_create(&f->options, &loader, &f->error), MOE_STATUS_INVALID_ARGUMENT,
                 "flags is 0x100");
    f->options.flags = 0;
    f->options.max_workers = -1;
    swap_refused(f, moe_loader_create(&f->options, &loader, &f->error), MOE_STATUS_INVALID_ARGUMENT,
                 "max_workers is -1");
    f->options.max_workers = 1;
    f->options.max_device_errors = -2;
    swap_refused(f, moe_loader_create(&f->options, &loader, &f->error), MOE_STATUS_INVALID_ARGUMENT,
                 "max_device_errors is -2");
    f->options.max_device_errors = -1;
    f->options.struct_size = 4;
    swap_refused(f, moe_loader_create(&f->options, &loader, &f->error), MOE_STATUS_INVALID_ARGUMENT,
                 "struct_size 4");
    assert_null(loader);
    f->options.struct_size = sizeof(f->options);
    swap_ok(f, moe_loader_create(&f->options, &f->loader, &f->error));
    swap_ok(f, moe_loader_worker_open(f->loader, &f->worker, &f->error));
    struct moe_loader_worker *second = NULL;
    swap_refused(f, moe_loader_worker_open(f->loader, &second, &f->error), MOE_STATUS_BUSY,
                 "max_workers");
    moe_loader_worker_close(f->worker);
    swap_ok(f, moe_loader_worker_open(f->loader, &f->worker, &f->error));
    moe_loader_destroy(NULL);
    moe_loader_worker_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SWAP_TEST(life_from_staged_to_parked),
        SWAP_TEST(second_plugin_has_other_bits_and_equal_abi),
        SWAP_TEST(worker_inside_and_host_hold_the_drain),
        SWAP_TEST(rollback_refuses_the_file_until_it_is_allowed),
        SWAP_TEST(device_errors_roll_back),
        SWAP_TEST(configuration_is_a_generation_too),
        SWAP_TEST(failed_stages_leave_what_serves),
        SWAP_TEST(canary_goes_first),
        SWAP_TEST(parked_images_are_bounded_and_used_again),
        SWAP_TEST(parked_images_are_unloaded_if_wanted),
        SWAP_TEST(ended_generations_are_forgotten),
        SWAP_TEST(options_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
