/* SPDX-License-Identifier: Apache-2.0 */
/* Problems that are refused, by plan_create and by supports alike: numbers out of range, types
 * without a meaning, and what is not implemented. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "abi_members.h"

static struct abi_host host;
static const struct moe_plugin_api *api;

static int open_host(void **state)
{
    (void)state;
    if (!abi_host_open(&host, NULL, 1)) {
        return -1;
    }
    api = host.api;
    return 0;
}

static int close_host(void **state)
{
    (void)state;
    abi_host_close(&host);
    return 0;
}

#define OUTSIDE(member, first, last)                      \
    REFUSE(moe_problem, member, (first)-1, #member),      \
        REFUSE(moe_problem, member, (last) + 1, #member), \
        REFUSE(moe_problem, member, INT32_MAX, #member),  \
        REFUSE(moe_problem, member, INT32_MIN, #member)
/* Types that have a name but no kernels, and types that have no name; fp8 is for operands with
 * scales. */
#define BAD_DTYPE(member)                                     \
    OUTSIDE(member, MOE_DTYPE_FP32 - 1, MOE_DTYPE_UE8M0),     \
        LATER(moe_problem, member, MOE_DTYPE_INT8, "int8"),   \
        LATER(moe_problem, member, MOE_DTYPE_INT4, "int4"),   \
        LATER(moe_problem, member, MOE_DTYPE_MXFP4, "mxfp4"), \
        LATER(moe_problem, member, MOE_DTYPE_NVFP4, "nvfp4"), \
        LATER(moe_problem, member, MOE_DTYPE_UE8M0, "ue8m0")
#define BAD_RECIPE(member)                                                                      \
    BAD_DTYPE(member.dtype), REFUSE(moe_problem, member.dtype, MOE_DTYPE_FP8_E4M3, "fp8_e4m3"), \
        LATER(moe_problem, member.scale_dtype, MOE_DTYPE_FP32, #member),                        \
        LATER(moe_problem, member.scale_layout, MOE_SCALE_ROW_MAJOR, #member),                  \
        LATER(moe_problem, member.group_rows, 1, #member),                                      \
        LATER(moe_problem, member.group_k, 128, #member),                                       \
        LATER(moe_problem, member.zero_point, 1, #member),                                      \
        LATER(moe_problem, member.packing, 1, #member),                                         \
        LATER(moe_problem, member.dynamic, 1, #member)

enum { FLOAT_ONE = 0x3F800000, FLOAT_NAN = 0x7FC00000, FLOAT_INF = 0x7F800000 };

static const struct bad_member bad_problems[] = {
    REFUSE(moe_problem, flags, MOE_PROBLEM_SHARED_SIGMOID << 1, "flags"),
    REFUSE(moe_problem, flags, 0x80000000u, "flags"),
    REFUSE(moe_problem, num_experts, 0, "num_experts"),
    REFUSE(moe_problem, num_experts, -1, "num_experts"),
    REFUSE(moe_problem, num_experts, INT32_MAX, "num_experts"),
    REFUSE(moe_problem, num_experts_global, ABI_EXPERTS - 1, "num_experts_global"),
    REFUSE(moe_problem, num_experts_global, -1, "num_experts_global"),
    REFUSE(moe_problem, top_k, 0, "top_k"),
    REFUSE(moe_problem, top_k, ABI_EXPERTS + 1, "top_k"),
    REFUSE(moe_problem, top_k, -1, "top_k"),
    REFUSE(moe_problem, hidden, 0, "hidden"),
    REFUSE(moe_problem, hidden, -1, "hidden"),
    REFUSE(moe_problem, hidden, INT32_MAX, "hidden"),
    REFUSE(moe_problem, inter, 0, "inter"),
    REFUSE(moe_problem, inter, INT32_MAX, "inter"),
    REFUSE(moe_problem, shared_inter, -1, "shared_inter"),
    REFUSE(moe_problem, shared_inter, 0, "shared_inter"), /* SHARED_SIGMOID is set */
    OUTSIDE(activation, MOE_ACTIVATION_SILU, MOE_ACTIVATION_IDENTITY),
    REFUSE(moe_problem, act_alpha, FLOAT_ONE, "act_alpha"),
    REFUSE(moe_problem, act_limit, FLOAT_ONE, "act_limit"),
    OUTSIDE(gating, MOE_GATING_NONE, MOE_GATING_SPARSEMIXER),
    REFUSE(moe_problem, gating, MOE_GATING_LLAMA4, "CORRECTION_BIAS"),
    REFUSE(moe_problem, num_groups, -1, "num_groups"),
    REFUSE(moe_problem, num_groups, 3, "num_groups"),
    REFUSE(moe_problem, num_groups, 2, "topk_groups"),
    REFUSE(moe_problem, router_jitter, FLOAT_ONE, "router_jitter"),
    REFUSE(moe_problem, router_jitter, FLOAT_NAN, "router_jitter"),
    REFUSE(moe_problem, routed_scaling, 0x40000000, "routed_scaling"),
    REFUSE(moe_problem, routed_scaling, FLOAT_NAN, "routed_scaling"),
    REFUSE(moe_problem, routed_scaling, FLOAT_INF, "routed_scaling"),
    REFUSE(moe_problem, appended_weight, FLOAT_NAN, "appended_weight"),
    OUTSIDE(scaling_on, MOE_SCALING_NONE, MOE_SCALING_OUTPUT),
    OUTSIDE(determinism, MOE_DETERMINISM_CANONICAL, MOE_DETERMINISM_NONE),
    REFUSE(moe_problem, num_appended_experts, -1, "num_appended_experts"),
    REFUSE(moe_problem, num_appended_experts, INT32_MAX, "num_appended_experts"),
    REFUSE(moe_problem, num_physical_experts, -1, "num_physical_experts"),
    REFUSE(moe_problem, num_physical_experts, ABI_EXPERTS - 1, "num_physical_experts"),
    REFUSE(moe_problem, num_physical_experts, INT32_MAX, "num_physical_experts"),
    REFUSE(moe_problem, max_tokens, 0, "max_tokens"),
    REFUSE(moe_problem, max_tokens, -1, "max_tokens"),
    REFUSE(moe_problem, max_tokens, INT64_MAX, "max_tokens"),
    REFUSE(moe_problem, max_tokens, INT32_MAX, "max_tokens"),
    BAD_DTYPE(output_dtype),
    REFUSE(moe_problem, output_dtype, MOE_DTYPE_FP8_E4M3, "fp8_e4m3"),
    BAD_DTYPE(logits_dtype),
    LATER(moe_problem, logits_dtype, MOE_DTYPE_FP8_E4M3, "fp8_e4m3"),
    BAD_RECIPE(tokens),
    BAD_RECIPE(gate_up),
    BAD_RECIPE(intermediate),
    BAD_RECIPE(down),
    REFUSE(moe_problem, tokens.dtype, 0, "tokens.dtype"),
    REFUSE(moe_problem, gate_up.dtype, 0, "gate_up.dtype"),
    REFUSE(moe_problem, down.dtype, 0, "down.dtype"),
};

static void test_bad_problems(void **state)
{
    (void)state;
    int num_wrong = 0;
    struct moe_device device;
    MOE_INIT(device);
    assert_int_equal(api->context_device(host.context, &device, NULL), 0);
    for (size_t i = 0; i < sizeof(bad_problems) / sizeof(bad_problems[0]); i++) {
        const struct bad_member *bad = &bad_problems[i];
        struct moe_problem problem = host.problem;
        struct moe_plan *untouched = (struct moe_plan *)(void *)&problem, *plan = untouched;
        struct moe_error error;
        memcpy((char *)&problem + bad->offset, &bad->value, bad->bytes);
        MOE_INIT(error);
        int32_t status = api->plan_create(host.context, &problem, NULL, &plan, &error);
        num_wrong += is_wrong("plan_create", bad, status, &error);
        if (status != MOE_STATUS_OK) {
            assert_ptr_equal(plan, untouched);
        } else {
            api->plan_destroy(plan);
        }
        MOE_INIT(error);
        status = api->supports(&device, &problem, 0, &error);
        num_wrong += is_wrong("supports", bad, status, &error);
    }
    assert_int_equal(num_wrong, 0);
}

/* A rank holds no more experts than there are ids: physical ones and appended ones. */
static void test_experts_have_ids(void **state)
{
    (void)state;
    static const struct {
        int32_t num_experts;
        int32_t num_physical_experts;
        int32_t num_appended_experts;
        int32_t status;
    } cases[] = {
        {ABI_EXPERTS, 0, 0, MOE_STATUS_OK},
        {ABI_EXPERTS + 1, 0, 0, MOE_STATUS_INVALID_ARGUMENT},
        {ABI_EXPERTS + 1, ABI_EXPERTS + 1, 0, MOE_STATUS_OK},
        {ABI_EXPERTS + 2, ABI_EXPERTS + 1, 0, MOE_STATUS_INVALID_ARGUMENT},
        {ABI_EXPERTS + 2, 0, 2, MOE_STATUS_OK},
        {ABI_EXPERTS + 3, ABI_EXPERTS + 1, 2, MOE_STATUS_OK},
        {ABI_EXPERTS + 4, ABI_EXPERTS + 1, 2, MOE_STATUS_INVALID_ARGUMENT},
    };
    struct moe_plan_options options;
    MOE_INIT(options);
    options.ops = (UINT64_C(1) << MOE_OP_ROUTE) | (UINT64_C(1) << MOE_OP_PRE_REORDER);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct moe_problem problem = host.problem;
        struct moe_plan *plan = NULL;
        struct moe_error error;
        MOE_INIT(error);
        problem.num_experts_global = ABI_EXPERTS;
        problem.num_experts = cases[i].num_experts;
        problem.num_physical_experts = cases[i].num_physical_experts;
        problem.num_appended_experts = cases[i].num_appended_experts;
        assert_int_equal(api->plan_create(host.context, &problem, &options, &plan, &error),
                         cases[i].status);
        if (cases[i].status != MOE_STATUS_OK) {
            assert_non_null(strstr(error.message, "num_experts"));
        }
        api->plan_destroy(plan);
    }
}

/* Members that an operation does not need are 0 or right: rows and workspace count with them. */
static void test_bad_problems_of_single_operations(void **state)
{
    (void)state;
    static const struct bad_member bad_members[] = {
        REFUSE(moe_problem, top_k, -1, "top_k"),
        REFUSE(moe_problem, top_k, INT32_MAX, "top_k"),
        REFUSE(moe_problem, num_experts, -1, "num_experts"),
        REFUSE(moe_problem, num_experts, INT32_MAX, "num_experts"),
        REFUSE(moe_problem, num_experts_global, -1, "num_experts_global"),
        REFUSE(moe_problem, max_tokens, INT32_MAX, "max_tokens"),
    };
    static const int32_t ops[] = {MOE_OP_ROUTER,       MOE_OP_PRE_REORDER, MOE_OP_ACTIVATION,
                                  MOE_OP_GEMM1,        MOE_OP_GEMM2,       MOE_OP_EXPERTS,
                                  MOE_OP_POST_REORDER, MOE_OP_SUM_REDUCE};
    int num_wrong = 0;
    for (size_t i = 0; i < sizeof(bad_members) / sizeof(bad_members[0]); i++) {
        for (size_t j = 0; j < sizeof(ops) / sizeof(ops[0]); j++) {
            const struct bad_member *bad = &bad_members[i];
            struct moe_problem problem = host.problem;
            struct moe_plan *plan = NULL;
            struct moe_plan_options options;
            struct moe_error error;
            memcpy((char *)&problem + bad->offset, &bad->value, bad->bytes);
            MOE_INIT(error);
            MOE_INIT(options);
            options.ops = UINT64_C(1) << ops[j];
            int32_t status = api->plan_create(host.context, &problem, &options, &plan, &error);
            num_wrong += is_wrong("plan_create of one operation", bad, status, &error);
            api->plan_destroy(plan);
        }
    }
    assert_int_equal(num_wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_problems),
        cmocka_unit_test(test_experts_have_ids),
        cmocka_unit_test(test_bad_problems_of_single_operations),
    };
    return cmocka_run_group_tests(tests, open_host, close_host);
}
