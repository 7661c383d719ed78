/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA run calls: what they call in the driver, how every tile launches, and launches that fail. */
#include "cuda_fixture.h"

enum { SORT_THREADS = 1024 };

/* Shapes that the geometry is checked with; sorts need no hidden. */
struct shape {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t top_k;
    int32_t hidden;
    int32_t dtype;
};

static const struct shape shapes[] = {
    {1, 8, 2, 8, MOE_DTYPE_BF16},          {17, 256, 8, 7168, MOE_DTYPE_BF16},
    {4096, 512, 10, 2880, MOE_DTYPE_FP16}, {70000, 256, 8, 4096, MOE_DTYPE_BF16},
    {1000, 2048, 6, 33, MOE_DTYPE_FP32},
};

static struct moe_plan *create_plan(struct moe_context *context, const struct shape *shape,
                                    int32_t op)
{
    struct moe_problem problem;
    struct moe_plan_options options;
    struct moe_plan *plan = NULL;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(problem);
    MOE_INIT(options);
    problem.num_experts = shape->num_experts;
    problem.top_k = shape->top_k;
    problem.hidden = shape->hidden;
    problem.tokens.dtype = shape->dtype;
    problem.max_tokens = shape->num_tokens;
    options.ops = UINT64_C(1) << op;
    if (api->plan_create(context, &problem, &options, &plan, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return plan;
}

static int32_t run_align(const struct moe_plan *plan, const struct shape *shape, void *stream,
                         struct moe_error *error)
{
    struct moe_align_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.topk_ids = ON_DEVICE(0);
    args.block_size = 128;
    args.sorted_ids = ON_DEVICE(1);
    args.expert_ids = ON_DEVICE(2);
    args.num_tokens_post_pad = ON_DEVICE(3);
    assert_int_equal(api->align_capacity(shape->num_tokens * shape->top_k, shape->num_experts,
                                         args.block_size, 0, &args.sorted_capacity,
                                         &args.expert_capacity, NULL),
                     MOE_STATUS_OK);
    return api->align_block_size(plan, &args, error);
}

static int32_t run_ep_preprocess(const struct moe_plan *plan, const struct shape *shape,
                                 void *stream, struct moe_error *error)
{
    struct moe_ep_preprocess_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.topk_ids = ON_DEVICE(0);
    args.seg_indptr = ON_DEVICE(1);
    args.src2dst = ON_DEVICE(2);
    return api->ep_preprocess(plan, &args, error);
}

static int32_t run_pre_reorder(const struct moe_plan *plan, const struct shape *shape, void *stream,
                               struct moe_error *error)
{
    struct moe_pre_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.tokens = ON_DEVICE(0);
    args.src2dst = ON_DEVICE(1);
    args.rows = ON_DEVICE(2);
    args.num_rows = shape->num_tokens * shape->top_k;
    return api->pre_reorder(plan, &args, error);
}

static int32_t run_post_reorder(const struct moe_plan *plan, const struct shape *shape,
                                void *stream, struct moe_error *error)
{
    struct moe_post_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.rows = ON_DEVICE(0);
    args.num_rows = shape->num_tokens * shape->top_k;
    args.src2dst = ON_DEVICE(1);
    args.topk_weights = ON_DEVICE(2);
    args.output = ON_DEVICE(3);
    return api->post_reorder(plan, &args, error);
}

static int32_t run_sum_reduce(const struct moe_plan *plan, const struct shape *shape, void *stream,
                              struct moe_error *error)
{
    struct moe_sum_reduce_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.input = ON_DEVICE(0);
    args.output = ON_DEVICE(1);
    return api->sum_reduce(plan, &args, error);
}

typedef int32_t run_fn(const struct moe_plan *plan, const struct shape *shape, void *stream,
                       struct moe_error *error);

/* The operations that have CUDA kernels. */
static const struct {
    int32_t op;
    const char *name; /* in configurations */
    run_fn *run;
} ops[] = {
    {MOE_OP_ALIGN_BLOCK_SIZE, "align_block_size", run_align},
    {MOE_OP_EP_PREPROCESS, "ep_preprocess", run_ep_preprocess},
    {MOE_OP_PRE_REORDER, "pre_reorder", run_pre_reorder},
    {MOE_OP_POST_REORDER, "post_reorder", run_post_reorder},
    {MOE_OP_SUM_REDUCE, "sum_reduce", run_sum_reduce},
};
enum { NUM_OPS = sizeof(ops) / sizeof(ops[0]), NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

/* Push, launch, pop, and nothing else; no host memory. */
static void assert_one_launch(int64_t calls_before, int64_t allocations_before)
{
    assert_int_equal(driver->num_calls - calls_before, 3);
    assert_string_equal(driver->calls[calls_before], "cuCtxPushCurrent");
    assert_string_equal(driver->calls[calls_before + 1], "cuLaunchKernelEx");
    assert_string_equal(driver->calls[calls_before + 2], "cuCtxPopCurrent");
    assert_int_equal(allocator.num_calls, allocations_before);
    assert_int_equal(driver->num_pushed, 1);
}

static uint32_t ceil_div(int64_t value, int64_t divisor)
{
    return (uint32_t)((value + divisor - 1) / divisor);
}

/* What the launch of a tile at a shape has to be, from the numbers of both alone. */
static void check_launch(const struct moe_tile_info *tile, const struct shape *shape)
{
    const struct fake_launch *launch = &driver->launch;
    const int is_sort = tile->op == MOE_OP_ALIGN_BLOCK_SIZE || tile->op == MOE_OP_EP_PREPROCESS;
    const int64_t element_bytes = shape->dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t row_bytes = shape->hidden * element_bytes;
    assert_int_equal(launch->num_refused, 0);
    assert_true(launch->smem_bytes <= SMEM_LIMIT);
    assert_int_equal(launch->block[1] * launch->block[2], 1);
    assert_int_equal(launch->grid[2], 1);
    if (is_sort) {
        const uint32_t num_ctas = (uint32_t)tile->block_size / SORT_THREADS;
        assert_int_equal(launch->block[0], SORT_THREADS);
        assert_int_equal(launch->grid[0], num_ctas);
        assert_int_equal(launch->grid[1], 1);
        assert_int_equal(launch->cluster, num_ctas > 1 ? num_ctas : 0);
        assert_true(launch->smem_bytes >= 4 * 4 * (uint32_t)shape->num_experts);
        return;
    }
    /* Vectors of 16 bytes where rows allow, else of 4 (33 fp32); post_reorder: eight columns. */
    const int64_t vectors = tile->op == MOE_OP_PRE_REORDER
                                ? row_bytes / (row_bytes % 16 == 0 ? 16 : 4)
                                : ceil_div(shape->hidden, 8);
    assert_int_equal(launch->block[0], tile->block_size);
    assert_int_equal(launch->grid[0], ceil_div(vectors, tile->block_size));
    assert_int_equal(launch->grid[1], shape->num_tokens < 65535 ? shape->num_tokens : 65535);
    assert_int_equal(launch->cluster, 0);
    assert_int_equal(launch->smem_bytes, 0);
}

static void force_tile(struct moe_context *context, const struct moe_tile_info *tile,
                       const char *op_name)
{
    char text[512];
    struct moe_error error;
    struct moe_config_source source;
    MOE_INIT(error);
    MOE_INIT(source);
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\nrules:\n- name: forced\n  match: {backend: cuda}\n"
             "  buckets:\n  - max_tokens: inf\n    %s: {kernel: %s, BLOCK_SIZE: %d}\n",
             op_name, tile->kernel, tile->block_size);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced";
    source.text = text;
    source.text_bytes = strlen(text);
    if (api->config_reload(context, &source, 1, NULL, NULL, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
}

/* Every tile of an operation at every shape: the kernel of that tile, launched once. */
static int check_tiles(struct moe_context *context, int index)
{
    int num_tiles = 0;
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.op != ops[index].op) {
            continue;
        }
        num_tiles++;
        force_tile(context, &tile, ops[index].name);
        for (int s = 0; s < NUM_SHAPES; s++) {
            char size[16];
            struct moe_error error;
            MOE_INIT(error);
            struct moe_plan *plan = create_plan(context, &shapes[s], tile.op);
            driver->num_calls = 0;
            const int64_t allocations = allocator.num_calls;
            if (ops[index].run(plan, &shapes[s], ON_DEVICE(9), &error) != MOE_STATUS_OK) {
                fail_msg("%s %s, shape %d: %s", ops[index].name, tile.name, s, error.message);
            }
            assert_one_launch(0, allocations);
            assert_ptr_equal(driver->launch.stream, ON_DEVICE(9));
            check_launch(&tile, &shapes[s]);
            const size_t length = (size_t)snprintf(size, sizeof(size), "_%d", tile.block_size);
            const size_t symbol_length = strlen(driver->launch.symbol);
            assert_true(symbol_length > length);
            assert_string_equal(driver->launch.symbol + symbol_length - length, size);
            api->plan_destroy(plan);
        }
    }
    return num_tiles;
}

static void every_tile_launches(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    for (int op = 0; op < NUM_OPS; op++) {
        assert_true(check_tiles(context, op) > 0);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* Push, launch or pop fails: a status, the stack as before, and a later call runs. */
static void launches_that_fail(void **state)
{
    (void)state;
    static const struct {
        const char *function;
        int32_t result;
        int32_t status;
        int64_t num_calls;
    } failures[] = {
        {"cuCtxPushCurrent", CUDA_ERROR_INVALID_CONTEXT, MOE_STATUS_DEVICE_ERROR, 1},
        {"cuLaunchKernelEx", CUDA_ERROR_INVALID_VALUE, MOE_STATUS_DEVICE_ERROR, 3},
        {"cuLaunchKernelEx", CUDA_ERROR_ILLEGAL_ADDRESS, MOE_STATUS_DEVICE_LOST, 3},
        {"cuLaunchKernelEx", CUDA_ERROR_ECC_UNCORRECTABLE, MOE_STATUS_DEVICE_LOST, 3},
        {"cuLaunchKernelEx", CUDA_ERROR_OUT_OF_MEMORY, MOE_STATUS_OUT_OF_MEMORY, 3},
    };
    struct moe_context *context = create_context();
    for (int op = 0; op < NUM_OPS; op++) {
        struct moe_plan *plan = create_plan(context, &shapes[1], ops[op].op);
        for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++) {
            struct moe_error error;
            MOE_INIT(error);
            driver->failing = failures[i].function;
            driver->fail_result = failures[i].result;
            driver->num_calls = 0;
            assert_int_equal(ops[op].run(plan, &shapes[1], NULL, &error), failures[i].status);
            assert_int_equal(error.native, failures[i].result);
            assert_true(strlen(error.message) > 10);
            assert_int_equal(driver->num_calls, failures[i].num_calls);
            assert_int_equal(driver->num_pushed, 1);
            driver->failing = NULL;
            assert_int_equal(ops[op].run(plan, &shapes[1], NULL, &error), MOE_STATUS_OK);
            assert_null(driver->launch.stream);
        }
        api->plan_destroy(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* What is refused, and what has nothing to do for a driver, does not reach it. */
static void refusals_call_nothing(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    for (int op = 0; op < NUM_OPS; op++) {
        struct moe_plan *plan = create_plan(context, &shapes[1], ops[op].op);
        struct shape larger = shapes[1];
        struct moe_error error;
        MOE_INIT(error);
        larger.num_tokens++;
        driver->num_calls = 0;
        assert_int_equal(ops[op].run(plan, &larger, NULL, &error), MOE_STATUS_INVALID_ARGUMENT);
        assert_int_equal(driver->num_calls, 0);
        api->plan_destroy(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* No tokens: the sorts write their counts and tails, the rows have nothing to launch. */
static void no_tokens(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    const struct shape none = {0, 256, 8, 7168, MOE_DTYPE_BF16};
    for (int op = 0; op < NUM_OPS; op++) {
        struct moe_plan *plan = create_plan(context, &shapes[1], ops[op].op);
        const int is_sort =
            ops[op].op == MOE_OP_ALIGN_BLOCK_SIZE || ops[op].op == MOE_OP_EP_PREPROCESS;
        struct moe_error error;
        MOE_INIT(error);
        driver->num_calls = 0;
        if (ops[op].run(plan, &none, NULL, &error) != MOE_STATUS_OK) {
            fail_msg("%s: %s", ops[op].name, error.message);
        }
        assert_int_equal(driver->num_calls, is_sort ? 3 : 0);
        api->plan_destroy(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* Operations without a CUDA kernel are refused when a plan is made; AUTO takes the CPU. */
static void missing_operations(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    struct moe_context_options options;
    struct moe_problem problem;
    struct moe_plan_options plan_options;
    struct moe_plan *plan = NULL;
    struct moe_error error;
    struct moe_device device;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(problem);
    MOE_INIT(plan_options);
    MOE_INIT(device);
    problem.num_experts = 8;
    problem.top_k = 2;
    problem.hidden = 64;
    problem.inter = 64;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = 4;
    plan_options.ops = UINT64_C(1) << MOE_OP_GEMM1;
    const int32_t status = api->plan_create(context, &problem, &plan_options, &plan, &error);
    if (status != MOE_STATUS_UNSUPPORTED || strstr(error.message, "gemm1") == NULL) {
        fail_msg("status %d: %s", status, error.message);
    }
    assert_null(plan);
    api->context_destroy(context);
    options.backend = MOE_BACKEND_AUTO;
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    assert_int_equal(api->context_create(&host, &options, &context, &error), MOE_STATUS_OK);
    assert_int_equal(api->context_device(context, &device, &error), MOE_STATUS_OK);
    assert_int_equal(device.backend, MOE_BACKEND_CPU);
    api->context_destroy(context);
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_tile_launches, with_fresh_driver),
        cmocka_unit_test_setup(launches_that_fail, with_fresh_driver),
        cmocka_unit_test_setup(refusals_call_nothing, with_fresh_driver),
        cmocka_unit_test_setup(no_tokens, with_fresh_driver),
        cmocka_unit_test_setup(missing_operations, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
