/* SPDX-License-Identifier: Apache-2.0 */
/* A small layer on the driver that plays a device: problem, weights, plan, calls, and what launches
 * they made. */
#ifndef MOE_TESTS_CUDA_LAYER_FIXTURE_H
#define MOE_TESTS_CUDA_LAYER_FIXTURE_H

#include "cuda_fixture.h"

enum { NUM_TOKENS = 300 };

static inline struct moe_problem make_problem(void)
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

static inline struct moe_operand make_operand(int number, int64_t rows, int64_t columns)
{
    const struct moe_operand operand = {.base = ON_DEVICE(number),
                                        .expert_stride = rows * columns,
                                        .row_stride = columns,
                                        .col_stride = 1};
    return operand;
}

static inline struct moe_weights_desc make_desc(const struct moe_problem *problem)
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

static inline int32_t bind(const struct moe_problem *problem, uint64_t cap, struct bound *bound,
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
        bound->info = info;
    }
    return status;
}

static inline struct bound bind_or_fail(const struct moe_problem *problem, uint64_t cap)
{
    struct bound bound;
    struct moe_error error;
    MOE_INIT(error);
    if (bind(problem, cap, &bound, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return bound;
}

static inline struct moe_layer_args make_args(const struct bound *bound, int64_t num_tokens,
                                              int has_ids)
{
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = num_tokens;
    args.call.stream = ON_DEVICE(9);
    args.call.workspace = ON_DEVICE(20);
    args.call.workspace_bytes = bound->info.workspace_bytes;
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
static inline void expect_launches(const char *const *words, int num_words, int num_passes)
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

static inline void run_layer(const struct bound *bound, int64_t num_tokens, int has_ids)
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

/* The plan is made anew, with the rules of `text` alone. */
static inline void replan(struct bound *bound, const struct moe_problem *problem, const char *text)
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
    bound->info = info;
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

/* The first bytes of what launch number `launch` was given, a kernel with `word` in its symbol. */
static inline void read_args(const char *word, int launch, void *out, uint32_t bytes)
{
    assert_true(launch < driver->num_launches);
    assert_non_null(strstr(driver->launches[launch].symbol, word));
    memcpy(out, driver->launches[launch].args, bytes);
}

#endif
