/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA layer on a driver that plays a device: which launches a call makes in which order and
 * how they are chained, what is refused before any, failures of every call, prepared weights. */
#include "cuda_args.h"
#include "cuda_fixture.h"

enum { MAX_FAIL_AT = 1000, NUM_TOKENS = 300 };

static struct moe_problem make_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = 16;
    problem.top_k = 4;
    problem.hidden = 256;
    problem.inter = 128;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = NUM_TOKENS;
    return problem;
}

static struct moe_operand make_operand(int number, int64_t rows, int64_t columns)
{
    const struct moe_operand operand = {.base = ON_DEVICE(number),
                                        .expert_stride = rows * columns,
                                        .row_stride = columns,
                                        .col_stride = 1};
    return operand;
}

static struct moe_weights_desc make_desc(const struct moe_problem *problem)
{
    struct moe_weights_desc desc;
    MOE_INIT(desc);
    desc.gate = make_operand(10, problem->inter, problem->hidden);
    desc.up = make_operand(11, problem->inter, problem->hidden);
    desc.down = make_operand(12, problem->hidden, problem->inter);
    if (problem->shared_inter > 0) {
        desc.shared_gate = make_operand(13, problem->shared_inter, problem->hidden);
        desc.shared_up = make_operand(14, problem->shared_inter, problem->hidden);
        desc.shared_down = make_operand(15, problem->hidden, problem->shared_inter);
    }
    if ((problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        desc.shared_sigmoid = make_operand(16, 1, problem->hidden);
    }
    if (problem->gating != MOE_GATING_NONE) {
        desc.router = make_operand(17, problem->num_experts, problem->hidden);
    }
    return desc;
}

/* A context, weights and a plan of the layer. */
struct bound {
    struct moe_context *context;
    struct moe_weights *weights;
    struct moe_plan *plan;
    uint64_t workspace_bytes;
};

static int32_t bind(const struct moe_problem *problem, uint64_t cap, struct bound *bound,
                    struct moe_error *error)
{
    const struct moe_weights_desc desc = make_desc(problem);
    struct moe_plan_options options;
    struct moe_plan_info info;
    MOE_INIT(options);
    MOE_INIT(info);
    options.ops = UINT64_C(1) << MOE_OP_LAYER;
    options.workspace_cap = cap;
    memset(bound, 0, sizeof(*bound));
    int32_t status = create(&bound->context, error);
    if (status == MOE_STATUS_OK) {
        status = api->weights_bind(bound->context, problem, &desc, NULL, 0, &bound->weights, error);
    }
    if (status == MOE_STATUS_OK) {
        status = api->plan_create(bound->context, problem, &options, &bound->plan, error);
    }
    if (status == MOE_STATUS_OK) {
        status = api->plan_info(bound->plan, &info, error);
        bound->workspace_bytes = info.workspace_bytes;
    }
    return status;
}

static void unbind(struct bound *bound)
{
    if (bound->plan != NULL) {
        api->plan_destroy(bound->plan);
    }
    if (bound->weights != NULL) {
        api->weights_destroy(bound->weights);
    }
    if (bound->context != NULL) {
        api->context_destroy(bound->context);
    }
}

static struct bound bind_or_fail(const struct moe_problem *problem, uint64_t cap)
{
    struct bound bound;
    struct moe_error error;
    MOE_INIT(error);
    if (bind(problem, cap, &bound, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return bound;
}

static struct moe_layer_args make_args(const struct bound *bound, int64_t num_tokens, int has_ids)
{
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = num_tokens;
    args.call.stream = ON_DEVICE(9);
    args.call.workspace = ON_DEVICE(20);
    args.call.workspace_bytes = bound->workspace_bytes;
    args.weights = bound->weights;
    args.tokens = ON_DEVICE(1);
    args.output = ON_DEVICE(2);
    if (has_ids) {
        args.topk_ids = ON_DEVICE(3);
        args.topk_weights = ON_DEVICE(4);
    }
    return args;
}

/* The launches since the last call are of kernels whose symbols contain these words, in this order;
 * all but the first of each pass are chained. */
static void expect_launches(const char *const *words, int num_words, int num_passes)
{
    assert_int_equal(driver->num_launches, num_words * num_passes);
    for (int i = 0; i < driver->num_launches; i++) {
        const struct fake_launch *launch = &driver->launches[i];
        if (strstr(launch->symbol, words[i % num_words]) == NULL) {
            fail_msg("launch %d is %s, expected %s", i, launch->symbol, words[i % num_words]);
        }
        assert_int_equal(launch->is_chained, i % num_words != 0);
        assert_ptr_equal(launch->stream, ON_DEVICE(9));
        assert_int_equal(launch->num_refused, 0);
    }
    driver->num_launches = 0;
}
#define EXPECT_LAUNCHES(num_passes, ...)                                                \
    expect_launches((const char *const[]){__VA_ARGS__},                                 \
                    (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)), \
                    num_passes)

static void run_layer(const struct bound *bound, int64_t num_tokens, int has_ids)
{
    struct moe_error error;
    const struct moe_layer_args args = make_args(bound, num_tokens, has_ids);
    const int64_t allocations = allocator.num_calls;
    MOE_INIT(error);
    driver->num_launches = 0;
    if (api->layer(bound->plan, &args, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    assert_int_equal(allocator.num_calls, allocations);
    assert_int_equal(driver->num_pushed, 1);
}

static void chain_of_given_ids(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct bound bound = bind_or_fail(&problem, 0);
    for (int64_t num_tokens = 1; num_tokens <= NUM_TOKENS; num_tokens *= 6) {
        run_layer(&bound, num_tokens, 1);
        EXPECT_LAUNCHES(1, "EP_PREPROCESS", "GEMM", "GEMM", "POST_REORDER");
    }
    run_layer(&bound, 0, 1);
    assert_int_equal(driver->num_launches, 0);
    unbind(&bound);
    assert_nothing_left();
}

/* The plan is made anew, with the rules of `text` alone. */
static void replan(struct bound *bound, const struct moe_problem *problem, const char *text)
{
    struct moe_config_source source;
    struct moe_plan_options options;
    struct moe_plan_info info;
    struct moe_error error;
    MOE_INIT(source);
    MOE_INIT(options);
    MOE_INIT(info);
    MOE_INIT(error);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "rules";
    source.text = text;
    source.text_bytes = strlen(text);
    options.ops = UINT64_C(1) << MOE_OP_LAYER;
    api->plan_destroy(bound->plan);
    if (api->config_reload(bound->context, &source, 1, NULL, NULL, &error) != MOE_STATUS_OK ||
        api->plan_create(bound->context, problem, &options, &bound->plan, &error) !=
            MOE_STATUS_OK ||
        api->plan_info(bound->plan, &info, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    bound->workspace_bytes = info.workspace_bytes;
}

#define PAIR_RULES(block_m)                                        \
    "schema: moe-dispatch/1\n"                                     \
    "rules:\n"                                                     \
    "- name: clusters\n"                                           \
    "  match: {backend: cuda}\n"                                   \
    "  buckets:\n"                                                 \
    "  - max_tokens: inf\n"                                        \
    "    gemm1: {kernel: sm90.pair, BLOCK_SIZE_M: " #block_m "}\n" \
    "    gemm2: {kernel: sm90.pair, BLOCK_SIZE_M: " #block_m "}\n"

/* Clusters read tokens in order, from copies that pre_reorder makes, where experts have many
 * channels or the tile cannot gather; else they gather. */
static void chain_of_pairs(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    struct bound bound = bind_or_fail(&problem, 0);
    const uint64_t gathered_bytes = bound.workspace_bytes;
    replan(&bound, &problem, PAIR_RULES(144));
    run_layer(&bound, NUM_TOKENS, 1);
    EXPECT_LAUNCHES(1, "EP_PREPROCESS", "SM90_PAIR_144", "SM90_PAIR_144", "POST_REORDER");
    replan(&bound, &problem, PAIR_RULES(184));
    assert_true(bound.workspace_bytes >=
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
    EXPECT_LAUNCHES(1, "GEMM", "GEMM", "ROUTER", "ROUTER", "GATING", "EP_PREPROCESS", "GEMM",
                    "GEMM", "POST_REORDER");
    run_layer(&bound, 2, 1);
    EXPECT_LAUNCHES(1, "GEMM", "GEMM", "ROUTER", "EP_PREPROCESS", "GEMM", "GEMM", "POST_REORDER");
    unbind(&bound);
    assert_nothing_left();
}

/* The first bytes of what launch number `launch` was given, a kernel with `word` in its symbol. */
static void read_args(const char *word, int launch, void *out, uint32_t bytes)
{
    assert_true(launch < driver->num_launches);
    assert_non_null(strstr(driver->launches[launch].symbol, word));
    memcpy(out, driver->launches[launch].args, bytes);
}
_Static_assert(sizeof(struct moe_cuda_gemm) <= FAKE_ARGS_BYTES, "the driver keeps all of it");

/* GEMM1 counts what the sort in front of it sorts and begins under it, GEMM2 reads segments that
 * are two nodes old; GEMM1 waits where there are more routes than it counts. */
static void work_before_the_wait(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    problem.max_tokens = MOE_CUDA_GEMM_MAX_ROUTES;
    struct bound bound = bind_or_fail(&problem, 0);
    const int64_t most = MOE_CUDA_GEMM_MAX_ROUTES / problem.top_k;
    const int64_t counts[] = {1, most, most + 1};
    for (int i = 0; i < 3; i++) {
        const int is_counted = i < 2;
        struct moe_cuda_gemm gemm1, gemm2;
        struct moe_cuda_post_reorder combine;
        driver->args_of = "GEMM";
        driver->args_bytes = sizeof(gemm1);
        run_layer(&bound, counts[i], 1);
        const int last = driver->num_launches - 1;
        read_args("GEMM", last - 2, &gemm1, sizeof(gemm1));
        read_args("GEMM", last - 1, &gemm2, sizeof(gemm2));
        driver->args_of = "POST_REORDER";
        driver->args_bytes = sizeof(combine);
        run_layer(&bound, counts[i], 1);
        read_args("POST_REORDER", last, &combine, sizeof(combine));
        assert_int_equal(gemm1.is_early, is_counted);
        assert_ptr_equal(gemm1.routes.topk_ids, is_counted ? ON_DEVICE(3) : NULL);
        assert_int_equal(gemm2.is_early, 1);
        assert_null(gemm2.routes.topk_ids);
        assert_int_equal(combine.is_early, 1);
        if (is_counted) {
            assert_int_equal(gemm1.routes.num_routes, counts[i] * problem.top_k);
            assert_int_equal(gemm1.routes.top_k, problem.top_k);
            assert_int_equal(gemm1.routes.ids_dtype, MOE_IDS_INT32);
            assert_int_equal(gemm1.routes.filter.num_experts, gemm1.op.num_segments);
            assert_int_equal(gemm1.routes.filter.num_ids, problem.num_experts);
        }
    }
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
    const uint64_t bytes = whole.workspace_bytes;
    unbind(&whole);
    struct bound bound = bind_or_fail(&problem, bytes / 4);
    assert_true(bound.workspace_bytes <= bytes / 4);
    assert_int_equal(api->plan_info(bound.plan, &info, NULL), MOE_STATUS_OK);
    const int num_passes = (int)((NUM_TOKENS + info.chunk_tokens - 1) / info.chunk_tokens);
    assert_true(num_passes >= 4);
    run_layer(&bound, NUM_TOKENS, 1);
    EXPECT_LAUNCHES(num_passes, "EP_PREPROCESS", "GEMM", "GEMM", "POST_REORDER");
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
    enum { NUM_WORDS = sizeof(words) / sizeof(words[0]) };
    struct moe_problem problem = make_problem();
    problem.gating = MOE_GATING_SOFTMAX;
    problem.shared_inter = 64;
    problem.flags = MOE_PROBLEM_SHARED_SIGMOID;
    struct bound bound = bind_or_fail(&problem, 0);
    const struct moe_layer_args args = make_args(&bound, 5, 0);
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
    run_layer(&bound, 5, 0);
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
        cmocka_unit_test_setup(work_before_the_wait, with_fresh_driver),
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
