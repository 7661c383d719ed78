/* SPDX-License-Identifier: Apache-2.0 */
/* What verification finds in candidates that load well, and what it needs of the host. */
#define _GNU_SOURCE

#include "swap_fixture.h"

static struct moe_loader_verify_options verify_options(void)
{
    struct moe_loader_verify_options options;
    MOE_INIT(options);
    return options;
}

static void expect_rejected(struct swap_fixture *f, const char *name,
                            const struct moe_loader_verify_options *options, int32_t status,
                            const char *words)
{
    const uint64_t a = swap_stats(f).active_generation;
    const uint64_t bad = swap_stage(f, name);
    swap_refused(f, moe_loader_verify(f->loader, bad, options, &f->error), status, words);
    swap_expect_state(f, bad, MOE_GENERATION_REJECTED);
    assert_non_null(strstr(swap_info(f, bad).reason, words));
    swap_refused(f, moe_loader_promote(f->loader, bad, &f->error), MOE_LOADER_STATUS_STATE,
                 "rejected");
    float output[SWAP_TOKENS * SWAP_HIDDEN];
    assert_int_equal(swap_run(f, output), a);
    assert_int_equal(swap_info(f, bad).num_calls, 0);
}

static void faults_are_found(void **state)
{
    struct swap_fixture *f = *state;
    swap_open_with_a(f);
    expect_rejected(f, FAULT_PLUGIN("wrong"), NULL, MOE_LOADER_STATUS_WRONG_RESULT, "differs");
    expect_rejected(f, FAULT_PLUGIN("nan"), NULL, MOE_LOADER_STATUS_WRONG_RESULT, "not finite");
    expect_rejected(f, FAULT_PLUGIN("unwritten"), NULL, MOE_LOADER_STATUS_WRONG_RESULT,
                    "not written");
    expect_rejected(f, FAULT_PLUGIN("overrun"), NULL, MOE_LOADER_STATUS_WRONG_RESULT,
                    "\"workspace\" were written");
    expect_rejected(f, FAULT_PLUGIN("uninitialized"), NULL, MOE_LOADER_STATUS_WRONG_RESULT,
                    "other bytes in its workspace");
    expect_rejected(f, FAULT_PLUGIN("refuses_call"), NULL, MOE_STATUS_DEVICE_ERROR, "made up");
    expect_rejected(f, FAULT_PLUGIN("self_test"), NULL, MOE_STATUS_SELF_TEST, "made up");
}

static void slow_ones_pass_without_gate_only(void **state)
{
    struct swap_fixture *f = *state;
    swap_open_with_a(f);
    struct moe_loader_verify_options options = verify_options();
    const uint64_t slow = swap_stage(f, FAULT_PLUGIN("slow"));
    swap_ok(f, moe_loader_verify(f->loader, slow, &options, &f->error));
    if (MOE_TEST_SANITIZED) {
        return; /* times say nothing there */
    }
    options.max_slowdown = 2.0;
    expect_rejected(f, FAULT_PLUGIN("slow"), &options, MOE_LOADER_STATUS_TOO_SLOW, "median");
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_ok(f, moe_loader_verify(f->loader, b, &options, &f->error));
}

static void tolerance_counts(void **state)
{
    struct swap_fixture *f = *state;
    swap_open_with_a(f);
    struct moe_loader_verify_options options = verify_options();
    options.max_relative_l2 = 1e-12; /* other bits are too far off */
    expect_rejected(f, PLUGIN_B, &options, MOE_LOADER_STATUS_WRONG_RESULT, "differs");
    const uint64_t same = swap_stage(f, PLUGIN_A);
    swap_ok(f, moe_loader_verify(f->loader, same, &options, &f->error));
    options.max_relative_l2 = -1.0;
    swap_refused(f, moe_loader_verify(f->loader, same, &options, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "not negative");
    swap_expect_state(f, same, MOE_GENERATION_WARM);
}

static void first_generation_is_verified_alone(void **state)
{
    struct swap_fixture *f = *state;
    swap_open(f);
    const uint64_t bad = swap_stage(f, FAULT_PLUGIN("nan"));
    swap_refused(f, moe_loader_verify(f->loader, bad, NULL, &f->error),
                 MOE_LOADER_STATUS_WRONG_RESULT, "not finite");
    const uint64_t a = swap_stage(f, PLUGIN_A);
    swap_verify(f, a);
    swap_expect_state(f, a, MOE_GENERATION_WARM);
}

/* Every type of element, rows of experts, and a rank that holds half of the experts. */
static void other_slots(void **state)
{
    struct swap_fixture *f = *state;
    swap_open_with_a(f);
    struct moe_loader_slot *slots[4] = {NULL};
    const int32_t dtypes[] = {MOE_DTYPE_BF16, MOE_DTYPE_FP16};
    for (int i = 0; i < 2; i++) { /* any bits are small numbers of these types, or all but */
        f->problem.tokens.dtype = dtypes[i];
        swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &slots[i], &f->error));
    }
    f->problem.tokens.dtype = MOE_DTYPE_FP32;
    f->slot_options.ops = UINT64_C(1) << MOE_OP_EXPERTS;
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &slots[2], &f->error));
    f->slot_options.ops = 0;
    f->problem.num_experts = SWAP_EXPERTS / 2;
    f->problem.num_experts_global = SWAP_EXPERTS;
    swap_ok(f, moe_loader_slot_open(f->loader, &f->slot_options, &slots[3], &f->error));
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    swap_promote(f, b);
}

struct device_memory {
    int64_t num_live;
    int fail_copies_after;
    int num_copies;
};

static void *device_alloc(void *self, uint64_t bytes, uint64_t alignment)
{
    ((struct device_memory *)self)->num_live++;
    void *memory = NULL;
    return posix_memalign(&memory, (size_t)alignment, (size_t)bytes) == 0 ? memory : NULL;
}

static void device_free(void *self, void *memory, uint64_t bytes, uint64_t alignment)
{
    (void)bytes;
    (void)alignment;
    ((struct device_memory *)self)->num_live--;
    free(memory);
}

static int32_t device_copy(void *self, void *to, const void *from, uint64_t bytes)
{
    struct device_memory *memory = self;
    memory->num_copies++;
    if (memory->fail_copies_after != 0 && memory->num_copies > memory->fail_copies_after) {
        return 1;
    }
    memcpy(to, from, (size_t)bytes);
    return 0;
}

/* A device that fails says nothing about the candidate: it stays as it was, and nothing leaks. */
static void hosts_memory_is_used_and_its_failures_blame_nobody(void **state)
{
    struct swap_fixture *f = *state;
    swap_open_with_a(f);
    struct device_memory memory = {0};
    struct moe_loader_verify_options options = verify_options();
    options.self = &memory;
    options.memory_alloc = device_alloc;
    options.memory_free = device_free;
    options.copy_in = device_copy;
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_refused(f, moe_loader_verify(f->loader, b, &options, &f->error),
                 MOE_STATUS_INVALID_ARGUMENT, "all set or all NULL");
    options.copy_out = device_copy;
    int num_failures = 0;
    for (memory.fail_copies_after = 1; memory.fail_copies_after < 100000;
         memory.fail_copies_after = memory.fail_copies_after * 3 / 2 + 1) {
        memory.num_copies = 0;
        const int32_t status = moe_loader_verify(f->loader, b, &options, &f->error);
        assert_int_equal(memory.num_live, 0);
        if (status == MOE_STATUS_OK) {
            break;
        }
        num_failures++;
    }
    assert_true(num_failures > 3);
    swap_expect_state(f, b, MOE_GENERATION_WARM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SWAP_TEST(faults_are_found), SWAP_TEST(slow_ones_pass_without_gate_only),
        SWAP_TEST(tolerance_counts), SWAP_TEST(first_generation_is_verified_alone),
        SWAP_TEST(other_slots),      SWAP_TEST(hosts_memory_is_used_and_its_failures_blame_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
