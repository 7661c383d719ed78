/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan */
/* Slots: copies of what the host describes, opened and closed while generations exist, memory that
 * runs out. */
#define _GNU_SOURCE

#include "swap_fixture.h"

#include "support_alloc.h"

static void description_is_copied(void **state)
{
    struct swap_fixture *f = *state;
    float expected[SWAP_TOKENS * SWAP_HIDDEN], output[SWAP_TOKENS * SWAP_HIDDEN];
    swap_open_with_a(f);
    swap_run(f, expected);
    /* What the host described is gone: tables and structs are not read again. */
    memset(f->gate_table, 0, sizeof(f->gate_table));
    memset(f->up_table, 0, sizeof(f->up_table));
    memset(f->down_table, 0, sizeof(f->down_table));
    memset(&f->weights, 0xCB, sizeof(f->weights));
    memset(&f->problem, 0xCB, sizeof(f->problem));
    memset(&f->slot_options, 0xCB, sizeof(f->slot_options));
    memset(&f->options, 0xCB, sizeof(f->options));
    memset(&f->context, 0xCB, sizeof(f->context));
    const uint64_t again = swap_stage(f, PLUGIN_A);
    swap_verify(f, again);
    swap_promote(f, again);
    assert_int_equal(swap_run(f, output), again);
    assert_memory_equal(expected, output, sizeof(output));
}

static void opened_while_generations_exist(void **state)
{
    struct swap_fixture *f = *state;
    const uint64_t a = swap_open_with_a(f);
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    struct moe_loader_slot *second = NULL;
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error));
    swap_expect_state(f, b, MOE_GENERATION_STAGED); /* not verified with this slot */
    assert_string_equal(f->last_reason, "a slot was opened; verify again");
    const struct moe_loader_view *view = moe_loader_enter(f->worker, second);
    assert_int_equal(view->generation, a);
    assert_non_null(view->plan);
    assert_non_null(view->weights);
    assert_int_equal(moe_loader_view_of(f->worker, f->slot)->generation, a);
    assert_ptr_not_equal(moe_loader_view_of(f->worker, f->slot), view);
    assert_ptr_equal(moe_loader_view_of(f->worker, second), view);
    moe_loader_leave(f->worker);
    assert_null(moe_loader_view_of(f->worker, second));
    swap_verify(f, b);
    swap_promote(f, b);
    assert_int_equal(moe_loader_enter(f->worker, second)->generation, b);
    /* It may have asked for the other slot, too: that one stays until this step is over. */
    swap_refused(f, moe_loader_slot_close(f->slot, &f->error), MOE_STATUS_BUSY, "slot 0");
    swap_refused(f, moe_loader_slot_close(f->slot, &f->error), MOE_STATUS_BUSY, "slot 0");
    assert_non_null(moe_loader_view_of(f->worker, f->slot)->plan);
    moe_loader_leave(f->worker);
    assert_non_null(moe_loader_enter(f->worker, second)); /* a later step does not matter */
    swap_ok(f, moe_loader_slot_close(f->slot, &f->error));
    moe_loader_leave(f->worker);
    /* The place is free again, in the draining generation too. */
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &f->slot, &f->error));
    swap_ok(f, moe_loader_rollback(f->loader, 0, NULL, &f->error));
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    assert_int_equal(swap_run(f, output), a);
    swap_ok(f, moe_loader_slot_close(second, &f->error));
    swap_ok(f, moe_loader_slot_close(NULL, &f->error));
}

static void refusals(void **state)
{
    struct swap_fixture *f = *state;
    f->options.max_slots = 1;
    swap_open_with_a(f);
    struct moe_loader_slot *second = NULL;
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_STATUS_BUSY, "max_slots");
    swap_ok(f, moe_loader_slot_close(f->slot, &f->error));
    f->slot_options.workspace_bytes = 64; /* not enough for one token: what serves cannot */
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_LOADER_STATUS_WORKSPACE, "");
    f->slot_options.workspace_bytes = SWAP_WORKSPACE_BYTES;
    f->slot_options.workspace_alignment = 1; /* nor with such a workspace */
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_LOADER_STATUS_WORKSPACE, "aligned");
    f->slot_options.workspace_alignment = 3;
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "power of two");
    f->slot_options.workspace_alignment = 0;
    f->slot_options.flags = 1;
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "flags is 0x1");
    f->slot_options.flags = 0;
    f->slot_options.prepared_free = support_free;
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "prepared_alloc");
    f->slot_options.prepared_free = NULL;
    f->problem.num_experts = 0;
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "num_experts is 0");
    f->problem.num_experts = SWAP_EXPERTS;
    f->problem.gating = 99;
    swap_refused(f, moe_loader_slot_open(f->loader, &f->slot_options, &second, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "gating");
    assert_null(second);
    f->problem.gating = MOE_GATING_SOFTMAX;
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &f->slot, &f->error));
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    swap_run(f, output);
}

/* A slot that what serves can run, but a candidate cannot: the candidate goes. */
static void candidate_that_cannot_is_rejected(void **state)
{
    struct swap_fixture *f = *state;
    swap_ok(f, moe_loader_create(&f->options, &f->loader, &f->error));
    swap_ok(f, moe_loader_worker_open(f->loader, &f->worker, &f->error));
    const uint64_t a = swap_stage(f, PLUGIN_A);
    swap_promote(f, a);
    const uint64_t bad = swap_stage(f, FAULT_PLUGIN("workspace")); /* no slot yet: nothing to see */
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &f->slot, &f->error));
    swap_expect_state(f, bad, MOE_GENERATION_REJECTED);
    assert_non_null(strstr(swap_info(f, bad).reason, "bytes of workspace"));
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    assert_int_equal(swap_run(f, output), a);
}

/* Each allocation of a plugin that is staged fails in turn: nothing stays alive, what serves serves
 * on. */
static void memory_runs_out_while_staging(void **state)
{
    struct swap_fixture *f = *state;
    struct support_allocator allocator;
    support_allocator_init(&allocator, 0);
    struct moe_host host = f->base.host;
    host.self = &allocator;
    host.memory_alloc = support_allocate;
    host.memory_free = support_free;
    f->options.host = &host;
    const uint64_t a = swap_open_with_a(f);
    float before[SWAP_TOKENS * SWAP_HIDDEN], after[SWAP_TOKENS * SWAP_HIDDEN];
    swap_run(f, before);
    const int64_t num_live = allocator.num_live;
    int num_failures = 0;
    uint64_t b = 0;
    for (int64_t fail_at = 1; b == 0 && fail_at < 2000; fail_at++) {
        allocator.num_calls = 0;
        allocator.fail_at = fail_at;
        const int32_t status = moe_loader_stage(f->loader, PLUGIN_B, NULL, &b, &f->error);
        allocator.fail_at = 0;
        if (status != MOE_STATUS_OK) {
            num_failures++;
            assert_int_equal(b, 0);
            assert_int_equal(allocator.num_live, num_live);
        }
        assert_int_equal(swap_run(f, after), a);
        assert_memory_equal(before, after, sizeof(after));
    }
    assert_int_not_equal(b, 0);
    assert_true(num_failures > 10);
    moe_loader_worker_close(f->worker);
    moe_loader_destroy(f->loader);
    f->worker = NULL;
    f->loader = NULL;
    assert_int_equal(allocator.num_live, 0);
    assert_int_equal(allocator.num_bad_frees, 0);
    support_allocator_finish(&allocator);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SWAP_TEST(description_is_copied),
        SWAP_TEST(opened_while_generations_exist),
        SWAP_TEST(refusals),
        SWAP_TEST(candidate_that_cannot_is_rejected),
        SWAP_TEST(memory_runs_out_while_staging),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
