/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA run calls: what they call in the driver, how every tile launches on every device, and
 * launches that fail. */
#include "cuda_args.h"
#include "cuda_calls.h"

#include <stdlib.h>

/* cuda.sort: CTAs of a cluster, experts whose arrays fit its shared memory, and the threads of the
 * two launches that it is otherwise; tokens that one CTA gates and sorts. */
enum { CLUSTER_CTAS = 8, MAX_SORT_EXPERTS = 1000, SPLIT_THREADS = 512, ALONE_TOKENS = 8 };

/* From which on there are clusters, and launches that begin under the tail of the one before. */
enum { HOPPER = 90 };

/* A100, A10, L40S, H200, B200, B300, RTX PRO 6000. */
struct device {
    int32_t sm;
    int32_t num_sms;
    int32_t smem_bytes;
    int32_t l2_bytes;
};
static struct device devices[] = {
    {80, 108, 163 * 1024, 40 << 20},   {86, 72, 99 * 1024, 6 << 20},
    {89, 142, 99 * 1024, 96 << 20},    {90, 132, SMEM_LIMIT, 50 << 20},
    {100, 148, SMEM_LIMIT, 126 << 20}, {103, 148, SMEM_LIMIT, 126 << 20},
    {120, 188, 99 * 1024, 128 << 20},
};

enum {
    PAIRS_TOKENS = 512, /* from which on pre_reorder copies two vectors a thread */
    WIDE_SLOTS = 4,     /* at least, where it has launches that first read and then write */
};

/* Shapes that the geometry is checked with. */
static const struct shape shapes[] = {
    {1, 8, 2, 8, MOE_DTYPE_BF16},          {17, 256, 8, 7168, MOE_DTYPE_BF16},
    {4096, 512, 10, 2880, MOE_DTYPE_FP16}, {70000, 256, 8, 4096, MOE_DTYPE_BF16},
    {1000, 2048, 6, 33, MOE_DTYPE_FP32},   {200, 256, 8, 7168, MOE_DTYPE_BF16},
    {1000, 128, 6, 2048, MOE_DTYPE_BF16},
};
enum { NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static int is_sort(int32_t op)
{
    return op == MOE_OP_ROUTE || op == MOE_OP_ALIGN_BLOCK_SIZE || op == MOE_OP_EP_PREPROCESS;
}

/* A thread per route in one launch, or two launches. */
static int is_split(const struct moe_tile_info *tile, const struct shape *shape)
{
    const int64_t num_ctas = driver->sm >= HOPPER ? CLUSTER_CTAS : 1;
    return strcmp(tile->kernel, "cuda.split") == 0 || shape->num_experts > MAX_SORT_EXPERTS ||
           shape->num_tokens * shape->top_k > num_ctas * tile->block_size;
}

static int64_t count_launches(const struct moe_tile_info *tile, const struct shape *shape)
{
    return (is_sort(tile->op) && is_split(tile, shape) ? 2 : 1) +
           (tile->op == MOE_OP_ROUTE ? 1 : 0);
}

/* Threads of the last launch of a tile. */
static int32_t count_threads(const struct moe_tile_info *tile, const struct shape *shape)
{
    if (tile->op == MOE_OP_ROUTER) {
        return 32 * MOE_CUDA_ROUTER_WARPS;
    }
    return is_sort(tile->op) && strcmp(tile->kernel, "cuda.sort") == 0 && is_split(tile, shape)
               ? SPLIT_THREADS
               : tile->block_size;
}

/* Push, all launches, pop, and nothing else; no host memory. */
static void assert_launches(int64_t num_launches, int64_t allocations_before)
{
    assert_int_equal(driver->num_calls, num_launches + 2);
    assert_string_equal(driver->calls[0], "cuCtxPushCurrent");
    for (int64_t i = 1; i <= num_launches; i++) {
        assert_string_equal(driver->calls[i], "cuLaunchKernelEx");
    }
    assert_string_equal(driver->calls[num_launches + 1], "cuCtxPopCurrent");
    assert_int_equal(allocator.num_calls, allocations_before);
    assert_int_equal(driver->num_pushed, 1);
}

static uint32_t ceil_div(int64_t value, int64_t divisor)
{
    return (uint32_t)((value + divisor - 1) / divisor);
}

/* CTAs of operations on rows. */
static void check_rows_grid(const struct moe_tile_info *tile, const struct shape *shape,
                            const uint32_t grid[3])
{
    const int64_t threads = tile->block_size, hidden = shape->hidden;
    const int64_t element_bytes = shape->dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int is_vectored = hidden * element_bytes % 16 == 0;
    int64_t num_rows = shape->num_tokens, num_z = 1;
    int64_t num_x = 0;
    if (tile->op == MOE_OP_PRE_REORDER) { /* vectors of 16 bytes, two a thread where tokens are
                                             many, else (33 fp32) of 4 */
        const int64_t vectors = is_vectored && num_rows >= PAIRS_TOKENS ? 2 : 1;
        num_x = ceil_div(hidden * element_bytes / (is_vectored ? 16 : 4), vectors * threads);
    } else if (tile->op == MOE_OP_ROUTER) { /* blocks of tokens and of experts */
        num_x = ceil_div(shape->num_experts, tile->block_size_n);
        num_rows = ceil_div(num_rows, tile->block_size_m);
    } else if (tile->op == MOE_OP_QUANTIZE) { /* 16 columns a thread, else a CTA for a token */
        const int has_whole_groups = hidden % QUANT_COLUMNS == 0;
        num_x = has_whole_groups ? ceil_div(num_rows * (hidden / 16), threads) : 1;
        num_rows = has_whole_groups ? 1 : num_rows;
    } else if (tile->op == MOE_OP_ACTIVATION && shape->dtype == MOE_DTYPE_BF16 &&
               hidden % 16 == 0) { /* a thread has 16 columns of some row */
        num_x = ceil_div(num_rows * shape->top_k * (hidden / 16), threads);
        num_rows = 1;
    } else if (tile->op == MOE_OP_ACTIVATION) { /* eight columns a thread */
        num_x = ceil_div(hidden, 8 * threads);
        num_rows *= shape->top_k;
    } else { /* one vector of a token a thread with eight slots, two with others; else a column */
        const int64_t vectors = shape->top_k == 8 ? 1 : 2;
        num_x = ceil_div(hidden, is_vectored ? vectors * 16 / element_bytes * threads : threads);
        num_z = ceil_div(num_rows, 65535);
    }
    assert_int_equal(grid[0], num_x);
    assert_int_equal(grid[1], num_rows < 65535 ? num_rows : 65535);
    assert_int_equal(grid[2], num_z);
}

/* More rows are written than the L2 holds, several per token. With fewer tokens than all
 * multiprocessors have warps of a CTA that depends on how rows are divided: it is if it was. */
static int is_wide(const struct moe_tile_info *tile, const struct shape *shape)
{
    const int64_t row_bytes = (int64_t)shape->hidden * (shape->dtype == MOE_DTYPE_FP32 ? 4 : 2);
    const int has_few = shape->num_tokens < (int64_t)driver->num_sms * (tile->block_size / 32);
    return tile->op == MOE_OP_PRE_REORDER && row_bytes % 16 == 0 && shape->top_k >= WIDE_SLOTS &&
           shape->num_tokens * shape->top_k * row_bytes > driver->l2_bytes &&
           (!has_few || strncmp(driver->launches[0].symbol, "form1_", 6) == 0);
}

/* One of the launches that hold `num_tokens` in shared memory, and not much more. */
static void check_wide_launch(const struct fake_launch *launch, int64_t row_bytes,
                              int64_t num_tokens)
{
    const int64_t held_bytes = (int64_t)launch->grid[0] * launch->smem_bytes;
    assert_int_equal(strncmp(launch->symbol, "form1_", 6), 0);
    assert_true(launch->smem_bytes <= (uint32_t)driver->smem_bytes);
    assert_true(num_tokens > 0 && held_bytes >= num_tokens * row_bytes);
    assert_true(held_bytes <= num_tokens * row_bytes / 2 * 3);
    assert_int_equal(launch->grid[1] * launch->grid[2], 1);
}

/* Launches that hold as many tokens as they can, each those behind the one before. */
static void check_wide(const struct moe_tile_info *tile, const struct shape *shape)
{
    const int64_t row_bytes = (int64_t)shape->hidden * (shape->dtype == MOE_DTYPE_FP32 ? 4 : 2);
    int64_t next = 0, most = 0;
    for (int i = 0; i < driver->num_launches; i++) {
        const struct fake_launch *launch = &driver->launches[i];
        struct moe_cuda_pre_reorder args;
        memcpy(&args, launch->args, sizeof(args));
        assert_int_equal(launch->block[0], tile->block_size);
        assert_int_equal(launch->is_chained, 0);
        assert_int_equal(args.wide.first_token, next);
        const int64_t num_tokens = args.wide.end_token - next;
        most = i == 0 ? num_tokens : most;
        check_wide_launch(launch, row_bytes, num_tokens);
        next += num_tokens;
        assert_true(num_tokens == most || (next == shape->num_tokens && num_tokens < most));
    }
    assert_int_equal(next, shape->num_tokens);
}
_Static_assert(sizeof(struct moe_cuda_pre_reorder) <= FAKE_ARGS_BYTES,
               "the driver keeps all of it");

/* Form of the kernel that a launch is of: form2_moe_... */
static int32_t form_of(const struct fake_launch *launch)
{
    int form = 0;
    return sscanf(launch->symbol, "form%d_", &form) == 1 ? form : 0;
}

/* Does the kernel run in clusters of its own? */
static int is_cluster_kernel(const struct fake_launch *launch)
{
    const int32_t form = form_of(launch);
    if (strstr(launch->symbol, "_CUDA_SORT_") == NULL) {
        return strstr(launch->symbol, "_SM90_") != NULL;
    }
    return strstr(launch->symbol, "moe_ROUTE_") != NULL ? form >= MOE_CUDA_ROUTE_CLUSTER
                                                        : form == MOE_CUDA_SORT_FORM_CLUSTER;
}

/* Of the machine codes in this build the one that a driver takes for the device; 0: none. */
static int32_t built_code(int32_t sm)
{
    int32_t best = 0;
    const char *at = MOE_CUDA_ARCHITECTURES;
    while (*at != '\0') { /* 80 90a */
        const int32_t code_sm = (int32_t)strtol(at, NULL, 10);
        if (code_sm / 10 == sm / 10 && code_sm <= sm && code_sm > best) {
            best = code_sm;
        }
        at += strcspn(at, " ");
        at += strspn(at, " ");
    }
    return best;
}

/* The device takes every launch since the last look: code for it, memory and threads that it has
 * (fake_libcuda.c), and below Hopper neither clusters nor attributes. */
static void check_device(void)
{
    assert_true(driver->num_launches <= FAKE_MAX_LAUNCHES);
    for (int i = 0; i < driver->num_launches; i++) {
        const struct fake_launch *launch = &driver->launches[i];
        const int has_clusters = is_cluster_kernel(launch);
        assert_int_equal(launch->num_refused, 0);
        assert_int_equal(launch->code_sm, built_code(driver->sm));
        assert_true(launch->smem_bytes <= (uint32_t)driver->smem_bytes);
        assert_int_equal(launch->cluster, 0); /* the kernel's own */
        assert_true(driver->sm >= HOPPER || (!has_clusters && launch->num_attributes == 0));
        assert_true(!has_clusters || launch->grid[0] % CLUSTER_CTAS == 0);
    }
}

/* What the launch of a tile at a shape has to be, from the numbers of both alone. */
static void check_launch(const struct moe_tile_info *tile, const struct shape *shape)
{
    const struct fake_launch *launch = &driver->launch;
    assert_int_equal(launch->block[1] * launch->block[2], 1);
    assert_true(launch->grid[2] == 1 || launch->grid[1] == 65535);
    if (is_sort(tile->op)) {
        const uint32_t chained = /* the last one */
            driver->sm >= HOPPER && count_launches(tile, shape) > 1 ? 1 : 0;
        const int is_cluster =
            !is_split(tile, shape) && shape->num_tokens * shape->top_k > tile->block_size;
        assert_int_equal(launch->block[0], count_threads(tile, shape));
        assert_true(launch->grid[0] >= 1);
        assert_int_equal(is_cluster_kernel(launch), is_cluster);
        assert_int_equal(launch->grid[1], 1);
        assert_int_equal(launch->num_attributes, chained);
        assert_true(launch->smem_bytes >= 4 * 5 * (uint32_t)shape->num_experts);
        return;
    }
    if (tile->op == MOE_OP_GATING) { /* a warp a token; fewer warps where experts are many */
        assert_true(launch->block[0] % 32 == 0 && launch->block[0] >= 32);
        assert_true(launch->block[0] <= (uint32_t)tile->block_size);
        assert_true(launch->grid[0] <= ceil_div(shape->num_tokens, launch->block[0] / 32));
        assert_true(launch->grid[0] >= 1);
        assert_int_equal(launch->grid[1], 1);
        assert_true(launch->smem_bytes >= 4 * (uint32_t)shape->num_experts);
        return;
    }
    assert_int_equal(launch->block[0], count_threads(tile, shape));
    assert_int_equal(launch->num_attributes, 0);
    assert_int_equal(launch->smem_bytes, 0);
    check_rows_grid(tile, shape, launch->grid);
}

static void force_tile(struct moe_context *context, const struct moe_tile_info *tile,
                       const char *op_name)
{
    char text[512], numbers[64];
    struct moe_error error;
    struct moe_config_source source;
    MOE_INIT(error);
    MOE_INIT(source);
    snprintf(numbers, sizeof(numbers),
             tile->op == MOE_OP_ROUTER ? "BLOCK_SIZE_M: %d, BLOCK_SIZE_N: %d" : "BLOCK_SIZE: %d",
             tile->op == MOE_OP_ROUTER ? tile->block_size_m : tile->block_size, tile->block_size_n);
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\nrules:\n- name: forced\n  match: {backend: cuda}\n"
             "  buckets:\n  - max_tokens: inf\n    %s: {kernel: %s, %s}\n",
             op_name, tile->kernel, numbers);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced";
    source.text = text;
    source.text_bytes = strlen(text);
    if (api->config_reload(context, &source, 1, NULL, NULL, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
}

/* The last launch is of the kernel of this tile. */
static void check_symbol(const struct moe_tile_info *tile, const struct shape *shape)
{
    char end[32];
    const char *symbol = driver->launch.symbol;
    const size_t length =
        tile->op == MOE_OP_ROUTER
            ? (size_t)snprintf(end, sizeof(end), "_%d_%d", tile->block_size_m, tile->block_size_n)
            : (size_t)snprintf(end, sizeof(end), "_%d", count_threads(tile, shape));
    assert_true(strlen(symbol) > length);
    assert_string_equal(symbol + strlen(symbol) - length, end);
}

/* Counters for so many experts fit the shared memory of every device. */
enum { FITTING_EXPERTS = 512, LARGE_SMEM = 160 * 1024 };

static int is_refused(struct moe_context *context, const struct shape *shape, int32_t op)
{
    struct moe_plan *plan = NULL;
    struct moe_error error;
    MOE_INIT(error);
    if (shape->num_experts <= FITTING_EXPERTS || driver->smem_bytes >= LARGE_SMEM || !is_sort(op)) {
        return 0;
    }
    driver->num_calls = 0;
    assert_int_equal(try_plan(context, shape, op, &plan, &error), MOE_STATUS_UNSUPPORTED);
    assert_non_null(strstr(error.message, "shared memory"));
    assert_int_equal(driver->num_calls, 0);
    return 1;
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
            struct moe_error error;
            MOE_INIT(error);
            if (is_refused(context, &shapes[s], tile.op)) {
                continue;
            }
            struct moe_plan *plan = create_plan(context, &shapes[s], tile.op);
            driver->num_calls = driver->num_launches = 0;
            const int64_t allocations = allocator.num_calls;
            if (ops[index].run(plan, &shapes[s], ON_DEVICE(9), &error) != MOE_STATUS_OK) {
                fail_msg("%s %s, shape %d: %s", ops[index].name, tile.name, s, error.message);
            }
            const int has_pieces = is_wide(&tile, &shapes[s]);
            assert_launches(has_pieces ? driver->num_launches : count_launches(&tile, &shapes[s]),
                            allocations);
            check_device();
            assert_ptr_equal(driver->launch.stream, ON_DEVICE(9));
            if (has_pieces) {
                check_wide(&tile, &shapes[s]);
            } else {
                check_launch(&tile, &shapes[s]);
            }
            check_symbol(&tile, &shapes[s]);
            destroy_plan(plan);
        }
    }
    return num_tiles;
}

/* Plays a device to its end. 0: this build has no code for it, and says so. */
static int play(const struct device *device)
{
    driver->sm = device->sm;
    driver->num_sms = device->num_sms;
    driver->smem_bytes = device->smem_bytes;
    driver->l2_bytes = device->l2_bytes;
    driver->needs_code = 1;
    driver->args_of = "PRE_REORDER";
    driver->args_bytes = sizeof(struct moe_cuda_pre_reorder);
    if (built_code(device->sm) == 0) {
        expect_refusal(MOE_STATUS_UNSUPPORTED, "209");
        return 0;
    }
    return 1;
}

static void every_tile_launches(void **state)
{
    if (!play(*state)) {
        return;
    }
    struct moe_context *context = create_context();
    for (int op = 0; op < NUM_OPS; op++) {
        assert_true(check_tiles(context, op) > 0);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* A plan for route where the logits alone decide. */
static struct moe_plan *create_gating_plan(struct moe_context *context, const struct shape *shape)
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
    problem.gating = MOE_GATING_SOFTMAX;
    problem.flags = MOE_PROBLEM_RENORMALIZE;
    options.ops = UINT64_C(1) << MOE_OP_ROUTE;
    if (api->plan_create(context, &problem, &options, &plan, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return plan;
}

/* Sorts gate where the logits alone decide: two launches of cuda.split, one of cuda.sort while a
 * warp of a cluster has no more than a token; gating in front of the sort otherwise. */
static void sorts_that_gate(void **state)
{
    static const struct shape gated[] = {
        {1, 256, 8, 7168, MOE_DTYPE_BF16},     {100, 128, 8, 2048, MOE_DTYPE_BF16},
        {3000, 60, 4, 2048, MOE_DTYPE_BF16},   {70000, 256, 8, 4096, MOE_DTYPE_BF16},
        {3000, 512, 10, 2048, MOE_DTYPE_BF16}, {8, 64, 8, 2048, MOE_DTYPE_BF16},
        {9, 64, 8, 2048, MOE_DTYPE_BF16},
    };
    if (!play(*state)) {
        return;
    }
    struct moe_context *context = create_context();
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.op != MOE_OP_ROUTE) {
            continue;
        }
        force_tile(context, &tile, "route");
        const int always_gates = strcmp(tile.kernel, "cuda.split") == 0;
        const int64_t most_tokens = /* a warp of a cluster each; a CTA by itself takes eight */
            driver->sm >= HOPPER ? CLUSTER_CTAS * tile.block_size / 32 : ALONE_TOKENS;
        for (size_t s = 0; s < sizeof(gated) / sizeof(gated[0]); s++) {
            const struct shape *shape = &gated[s];
            const int fits = shape->num_experts <= 256 && shape->top_k <= 8;
            const int gates = fits && (always_gates || shape->num_tokens <= most_tokens);
            struct moe_error error;
            MOE_INIT(error);
            struct moe_plan *plan = create_gating_plan(context, shape);
            driver->num_calls = driver->num_launches = 0;
            const int64_t allocations = allocator.num_calls;
            assert_int_equal(run_route(plan, shape, NULL, &error), MOE_STATUS_OK);
            assert_launches(count_launches(&tile, shape) - gates, allocations);
            check_device();
            destroy_plan(plan);
        }
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* The workspace of a plan is enough for every number of tokens up to its own. */
static void fewer_tokens_fit(void **state)
{
    (void)state;
    static const int64_t most[] = {64, 100, 330, 1100, 2049, 2600};
    struct moe_context *context = create_context();
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.op != MOE_OP_ROUTE) {
            continue;
        }
        force_tile(context, &tile, "route");
        for (size_t m = 0; m < sizeof(most) / sizeof(most[0]); m++) {
            struct shape shape = {most[m], 256, 8, 2048, MOE_DTYPE_BF16};
            struct moe_plan *plan = create_gating_plan(context, &shape);
            for (; shape.num_tokens > 0; shape.num_tokens -= 1 + shape.num_tokens / 40) {
                struct moe_error error;
                MOE_INIT(error);
                if (run_route(plan, &shape, NULL, &error) != MOE_STATUS_OK) {
                    fail_msg("%s, %lld of %lld tokens: %s", tile.name, (long long)shape.num_tokens,
                             (long long)most[m], error.message);
                }
            }
            destroy_plan(plan);
        }
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
        {"cuLaunchKernelEx", CUDA_ERROR_OUT_OF_MEMORY, MOE_STATUS_DEVICE_ERROR, 3},
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
        destroy_plan(plan);
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
        larger.num_tokens *= larger.num_experts + 1; /* and more rows than a plan has */
        driver->num_calls = 0;
        assert_int_equal(ops[op].run(plan, &larger, NULL, &error), MOE_STATUS_INVALID_ARGUMENT);
        assert_int_equal(driver->num_calls, 0);
        destroy_plan(plan);
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
        struct moe_error error;
        MOE_INIT(error);
        driver->num_calls = 0;
        if (ops[op].run(plan, &none, NULL, &error) != MOE_STATUS_OK) {
            fail_msg("%s: %s", ops[op].name, error.message);
        }
        assert_int_equal(driver->num_calls, is_sort(ops[op].op) ? 3 : 0);
        destroy_plan(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

int main(void)
{
#define ON_DEVICES(test)                                               \
    {#test " sm_80", test, with_fresh_driver, NULL, &devices[0]},      \
        {#test " sm_86", test, with_fresh_driver, NULL, &devices[1]},  \
        {#test " sm_89", test, with_fresh_driver, NULL, &devices[2]},  \
        {#test " sm_90", test, with_fresh_driver, NULL, &devices[3]},  \
        {#test " sm_100", test, with_fresh_driver, NULL, &devices[4]}, \
        {#test " sm_103", test, with_fresh_driver, NULL, &devices[5]}, \
    {                                                                  \
#test " sm_120", test, with_fresh_driver, NULL, &devices[6]    \
    }
    const struct CMUnitTest tests[] = {
        ON_DEVICES(every_tile_launches),
        ON_DEVICES(sorts_that_gate),
        cmocka_unit_test_setup(fewer_tokens_fit, with_fresh_driver),
        cmocka_unit_test_setup(launches_that_fail, with_fresh_driver),
        cmocka_unit_test_setup(refusals_call_nothing, with_fresh_driver),
        cmocka_unit_test_setup(no_tokens, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
