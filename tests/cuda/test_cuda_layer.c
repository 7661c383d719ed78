/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA layer on a driver that plays a device: which launches a call makes in which order and
 * how they are chained, what is refused before any, failures of every call, prepared weights. What
 * the launches know before they wait: test_cuda_layer_work.c. */
#include "cuda_layer_fixture.h"

enum { MAX_FAIL_AT = 1000 };

static void chain_of_given_ids(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct bound bound = bind_or_fail(&problem, 0);
    for (int64_t num_tokens = 1; num_tokens < NUM_TOKENS / 3; num_tokens *= 6) {
        run_layer(&bound, num_tokens, 1);
        EXPECT_LAUNCHES(1, "GEMM", "GEMM", "POST_REORDER");
    }
    run_layer(&bound, NUM_TOKENS, 1); /* more routes than GEMM1 sorts */
    EXPECT_LAUNCHES(1, "EP_PREPROCESS", "GEMM", "GEMM", "POST_REORDER");
    run_layer(&bound, 0, 1);
    assert_int_equal(driver->num_launches, 0);
    unbind(&bound);
    assert_nothing_left();
}

/* Clusters read tokens in order, from copies that pre_reorder makes, where experts have many
 * channels or the tile cannot gather; else they gather. */
static void chain_of_pairs(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    struct bound bound = bind_or_fail(&problem, 0);
    const uint64_t gathered_bytes = bound.info.workspace_bytes;
    replan(&bound, &problem, PAIR_RULES(144));
    run_layer(&bound, NUM_TOKENS, 1);
    EXPECT_LAUNCHES(1, "EP_PREPROCESS", "SM90_PAIR_144", "SM90_PAIR_144", "POST_REORDER");
    replan(&bound, &problem, PAIR_RULES(184));
    assert_true(bound.info.workspace_bytes >=
                gathered_bytes + (uint64_t)NUM_TOKENS * 4 * 256 * sizeof(uint16_t));
    for (int64_t num_tokens = 1; num_tokens <= NUM_TOKENS; num_tokens *= 6) {
        run_layer(&bound, num_tokens, 1);
        EXPECT_LAUNCHES(1, "EP_PREPROCESS", "PRE_REORDER", "SM90_PAIR_184", "SM90_PAIR_184",
                        "POST_REORDER");
    }
    unbind(&bound);
    problem.inter = 2048;
    bound = bind_or_fail(&problem, 0);
    replan(&bound, &problem, PAIR_RULES(144));
    run_layer(&bound, NUM_TOKENS, 1);
    EXPECT_LAUNCHES(1, "EP_PREPROCESS", "PRE_REORDER", "SM90_PAIR_144", "SM90_PAIR_144",
                    "POST_REORDER");
    unbind(&bound);
    assert_nothing_left();
}

static void chain_with_everything(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    problem.gating = MOE_GATING_SOFTMAX;
    problem.shared_inter = 64;
    problem.flags = MOE_PROBLEM_SHARED_SIGMOID;
    struct bound bound = bind_or_fail(&problem, 0);
    run_layer(&bound, 2, 0);
    EXPECT_LAUNCHES(1, "GEMM", "GEMM", "ROUTER", "ROUTER", "GATING", "GEMM", "GEMM",
                    "POST_REORDER");
    run_layer(&bound, 2, 1);
    EXPECT_LAUNCHES(1, "GEMM", "GEMM", "ROUTER", "GEMM", "GEMM", "POST_REORDER");
    run_layer(&bound, NUM_TOKENS, 0);
    EXPECT_LAUNCHES(1, "GEMM", "GEMM", "ROUTER", "ROUTER", "GATING", "EP_PREPROCESS", "GEMM",
                    "GEMM", "POST_REORDER");
    unbind(&bound);
    assert_nothing_left();
}

/* A capped workspace: one chain per chunk, each with an ordinary first node. */
static void chunks(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct moe_plan_info info;
    MOE_INIT(info);
    struct bound whole = bind_or_fail(&problem, 0);
    const uint64_t bytes = whole.info.workspace_bytes;
    unbind(&whole);
    struct bound bound = bind_or_fail(&problem, bytes / 4);
    assert_true(bound.info.workspace_bytes <= bytes / 4);
    assert_int_equal(api->plan_info(bound.plan, &info, NULL), MOE_STATUS_OK);
    const int num_passes = (int)((NUM_TOKENS + info.chunk_tokens - 1) / info.chunk_tokens);
    assert_true(num_passes >= 4);
    run_layer(&bound, NUM_TOKENS, 1);
    EXPECT_LAUNCHES(num_passes, "GEMM", "GEMM", "POST_REORDER");
    unbind(&bound);
    assert_nothing_left();
}

/* Every call of the driver fails once, while all is made and one layer runs: a status, and nothing
 * is left. */
static void every_call_fails_once(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    int num_failed = 0, fail_at = 1;
    for (; fail_at < MAX_FAIL_AT; fail_at++) {
        struct bound bound;
        struct moe_error error;
        MOE_INIT(error);
        reset_driver();
        driver->fail_at = fail_at;
        driver->fail_result = CUDA_ERROR_UNKNOWN;
        int32_t status = bind(&problem, 0, &bound, &error);
        if (status == MOE_STATUS_OK) {
            const struct moe_layer_args args = make_args(&bound, 5, 1);
            status = api->layer(bound.plan, &args, &error);
        }
        num_failed += status != MOE_STATUS_OK;
        assert_true(status == MOE_STATUS_OK || strlen(error.message) > 10);
        const int is_over = driver->num_calls < fail_at;
        unbind(&bound);
        assert_nothing_left();
        if (is_over) {
            break;
        }
    }
    assert_true(num_failed > 50);
    assert_true(fail_at < MAX_FAIL_AT);
}

/* Each launch of the longest chain fails, in each way: what lies in front of it runs, nothing
 * behind it does, and the sentence says so with the kernel; then the layer runs. */
static void every_launch_fails_once(void **state)
{
    (void)state;
    static const struct {
        int32_t result;
        int32_t status;
    } failures[] = {
        {CUDA_ERROR_UNKNOWN, MOE_STATUS_DEVICE_ERROR},
        {CUDA_ERROR_NO_BINARY_FOR_GPU, MOE_STATUS_DEVICE_ERROR},
        {CUDA_ERROR_LAUNCH_FAILED, MOE_STATUS_DEVICE_LOST},
        {CUDA_ERROR_OUT_OF_MEMORY, MOE_STATUS_DEVICE_ERROR},
    };
    static const char *const words[] = {"GEMM",          "GEMM", "ROUTER", "ROUTER",      "GATING",
                                        "EP_PREPROCESS", "GEMM", "GEMM",   "POST_REORDER"};
    const int64_t num_tokens = NUM_TOKENS; /* more routes than GEMM1 sorts */
    enum { NUM_WORDS = sizeof(words) / sizeof(words[0]) };
    struct moe_problem problem = make_problem();
    problem.gating = MOE_GATING_SOFTMAX;
    problem.shared_inter = 64;
    problem.flags = MOE_PROBLEM_SHARED_SIGMOID;
    struct bound bound = bind_or_fail(&problem, 0);
    const struct moe_layer_args args = make_args(&bound, num_tokens, 0);
    for (size_t f = 0; f < sizeof(failures) / sizeof(failures[0]); f++) {
        for (int before = 0; before < NUM_WORDS; before++) {
            struct moe_error error;
            MOE_INIT(error);
            driver->num_calls = driver->num_launches = 0;
            driver->fail_at = before + 2; /* the context is pushed first */
            driver->fail_result = failures[f].result;
            assert_int_equal(api->layer(bound.plan, &args, &error), failures[f].status);
            driver->fail_at = 0;
            assert_int_equal(error.status, failures[f].status);
            assert_int_equal(error.native, failures[f].result);
            if (strstr(error.message, "a launch failed") == NULL ||
                strstr(error.message, words[before]) == NULL) {
                fail_msg("launch %d: \"%s\"", before, error.message);
            }
            assert_int_equal(driver->num_launches, before);
            assert_int_equal(driver->num_calls, before + 3);
            assert_int_equal(driver->num_pushed, 1);
        }
    }
    run_layer(&bound, num_tokens, 0);
    assert_int_equal(driver->num_launches, NUM_WORDS);
    unbind(&bound);
    assert_nothing_left();
}

/* Weights that TMA cannot read in place are packed once; without that form they are not bound. */
static void prepared_weights(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct moe_weights_desc desc = make_desc(&problem);
    struct moe_weights_info info;
    struct moe_weights *weights = NULL;
    struct moe_error error;
    const void *table[16];
    const uint64_t matrix_bytes = 2u * 16u * 128u * 256u;
    MOE_INIT(info);
    MOE_INIT(error);
    struct moe_context *context = create_context();
    assert_int_equal(api->weights_query(context, &problem, &desc, &info, &error), MOE_STATUS_OK);
    assert_int_equal(info.prepared_bytes, 0);
    for (int e = 0; e < 16; e++) {
        table[e] = (const char *)ON_DEVICE(30) + e * 65536;
    }
    desc.up.base = NULL; /* experts apart */
    desc.up.table = table;
    desc.down.row_stride = 2; /* neither its rows nor its columns are neighbours */
    desc.down.col_stride = 2 * problem.hidden;
    assert_int_equal(api->weights_query(context, &problem, &desc, &info, &error), MOE_STATUS_OK);
    assert_int_equal(info.prepared_bytes, 2 * matrix_bytes);
    assert_int_equal(api->weights_bind(context, &problem, &desc, NULL, 0, &weights, &error),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "weights_prepare"));
    driver->num_launches = 0;
    assert_int_equal(api->weights_prepare(context, &problem, &desc, ON_DEVICE(40),
                                          info.prepared_bytes, ON_DEVICE(9), &error),
                     MOE_STATUS_OK);
    assert_int_equal(driver->num_launches, 16 + 1);
    assert_int_equal(api->weights_bind(context, &problem, &desc, ON_DEVICE(40), info.prepared_bytes,
                                       &weights, &error),
                     MOE_STATUS_OK);
    api->weights_destroy(weights);
    api->context_destroy(context);
    assert_nothing_left();
}

/* What the GEMMs do not run is refused with the member's name, without a device. */
static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *word;
        int32_t sm, tokens, gate_up, hidden, inter;
    } cases[] = {
        {"sm_80", 80, MOE_DTYPE_BF16, MOE_DTYPE_BF16, 256, 128},
        {"sm_100", 100, MOE_DTYPE_BF16, MOE_DTYPE_BF16, 256, 128},
        {"tokens", 90, MOE_DTYPE_FP32, MOE_DTYPE_FP32, 256, 128},
        {"gate_up", 90, MOE_DTYPE_BF16, MOE_DTYPE_FP16, 256, 128},
        {"hidden", 90, MOE_DTYPE_BF16, MOE_DTYPE_BF16, 260, 128},
        {"inter", 90, MOE_DTYPE_BF16, MOE_DTYPE_BF16, 256, 100},
        {NULL, 90, MOE_DTYPE_BF16, MOE_DTYPE_BF16, 264, 88},
        {NULL, 90, MOE_DTYPE_FP16, MOE_DTYPE_FP16, 256, 128},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct moe_problem problem = make_problem();
        struct moe_device device;
        struct moe_error error;
        MOE_INIT(device);
        MOE_INIT(error);
        device.backend = MOE_BACKEND_CUDA;
        device.sm = cases[i].sm;
        device.num_sms = 132;
        device.smem_bytes = SMEM_LIMIT;
        problem.tokens.dtype = cases[i].tokens;
        problem.gate_up.dtype = cases[i].gate_up;
        problem.down.dtype = cases[i].tokens;
        problem.hidden = cases[i].hidden;
        problem.inter = cases[i].inter;
        const int32_t status =
            api->supports(&device, &problem, UINT64_C(1) << MOE_OP_LAYER, &error);
        if (cases[i].word == NULL) {
            assert_int_equal(status, MOE_STATUS_OK);
        } else if (status != MOE_STATUS_UNSUPPORTED ||
                   strstr(error.message, cases[i].word) == NULL) {
            fail_msg("%s: status %d, \"%s\"", cases[i].word, status, error.message);
        }
    }
}

/* Rows that do not begin at multiples of 16 bytes are refused before a GEMM reads them. */
static void unaligned_tokens(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct bound bound = bind_or_fail(&problem, 0);
    struct moe_layer_args args = make_args(&bound, 3, 1);
    struct moe_error error;
    MOE_INIT(error);
    args.tokens = (const char *)args.tokens + 2;
    driver->num_launches = 0;
    assert_int_equal(api->layer(bound.plan, &args, &error), MOE_STATUS_UNSUPPORTED);
    assert_non_null(strstr(error.message, "16 bytes"));
    assert_int_equal(driver->num_launches, 0);
    unbind(&bound);
    assert_nothing_left();
}

/* AUTO takes the GPU where the layer runs, and the CPU elsewhere. */
static void automatic_backend(void **state)
{
    (void)state;
    static const int32_t sms[] = {80, 90, 100};
    for (size_t i = 0; i < sizeof(sms) / sizeof(sms[0]); i++) {
        struct moe_context_options options;
        struct moe_context *context = NULL;
        struct moe_device device;
        struct moe_error error;
        MOE_INIT(options);
        MOE_INIT(device);
        MOE_INIT(error);
        reset_driver();
        driver->sm = sms[i];
        options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
        assert_int_equal(api->context_create(&host, &options, &context, &error), MOE_STATUS_OK);
        assert_int_equal(api->context_device(context, &device, &error), MOE_STATUS_OK);
        assert_int_equal(device.backend, sms[i] == 90 ? MOE_BACKEND_CUDA : MOE_BACKEND_CPU);
        api->context_destroy(context);
        assert_nothing_left();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(chain_of_given_ids, with_fresh_driver),
        cmocka_unit_test_setup(chain_of_pairs, with_fresh_driver),
        cmocka_unit_test_setup(chain_with_everything, with_fresh_driver),
        cmocka_unit_test_setup(chunks, with_fresh_driver),
        cmocka_unit_test_setup(every_call_fails_once, with_fresh_driver),
        cmocka_unit_test_setup(every_launch_fails_once, with_fresh_driver),
        cmocka_unit_test_setup(prepared_weights, with_fresh_driver),
        cmocka_unit_test_setup(refusals, with_fresh_driver),
        cmocka_unit_test_setup(unaligned_tokens, with_fresh_driver),
        cmocka_unit_test_setup(automatic_backend, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
