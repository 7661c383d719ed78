/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The built plugin as a host sees it: opened with dlopen, one context per forced choice of tiles
 * and number of threads, and a run call under watch.
 *
 * A tile set forces one tile per operation through a configuration that replaces all others. Tile
 * set s takes row s (modulo their number) of the rows of tiles.def that this machine can run, so
 * all sets together cover every row of every operation.
 */
#ifndef MOE_TESTS_OP_PLUGIN_H
#define MOE_TESTS_OP_PLUGIN_H

#include "moe_plugin.h"
#include "support.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define OP_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

enum {
    OP_MAX_TILE_SETS = 16,
    OP_MAX_THREADS = 3,
    OP_MAX_OUTPUTS = 16,
    OP_WORKSPACE_ALIGNMENT = 64
};

/* A context whose every choice is forced. */
struct op_variant {
    struct moe_context *context;
    int tile_set;
    int32_t num_threads;
    int32_t tiles[MOE_NUM_OPS]; /* index for tile_info; -1: the operation has no tile of its own */
};

struct op_plugin {
    void *image;
    const struct moe_plugin_api *api;
    struct moe_host host;
    struct moe_device device;
    struct support_allocator allocator; /* of every context */
    _Atomic int num_log_lines;
    pthread_mutex_t log_lock; /* of last_log_line: contexts log on the thread that calls them */
    char last_log_line[512];
    int num_tile_sets;
    struct op_variant variants[OP_MAX_TILE_SETS][OP_MAX_THREADS + 1]; /* made on first use */
};

static struct op_plugin op_plugin = {.log_lock = PTHREAD_MUTEX_INITIALIZER};

#define op_api() (op_plugin.api)

/* Fails the test with the plugin's sentence unless `status` is what it should be. */
#define op_assert_status(expected, status, error) \
    op_assert_status_at((expected), (status), &(error), __FILE__, __LINE__)

static inline void op_assert_status_at(int32_t expected, int32_t status,
                                       const struct moe_error *error, const char *file, int line)
{
    if (status != expected) {
        print_error("%s:%d: %s instead of %s: %s\n", file, line, op_api()->status_name(status),
                    op_api()->status_name(expected), status == 0 ? "" : error->message);
        _fail(file, line);
    }
    if (status != MOE_STATUS_OK) {
        assert_int_equal(error->status, status);
        assert_true(error->message[0] != '\0');
    }
}

static inline void op_log(void *self, int32_t level, const char *text, uint64_t text_bytes)
{
    (void)self;
    assert_true(level >= MOE_LEVEL_ERROR && level <= MOE_LEVEL_INFO);
    assert_int_equal(strlen(text), text_bytes);
    atomic_fetch_add(&op_plugin.num_log_lines, 1);
    pthread_mutex_lock(&op_plugin.log_lock);
    snprintf(op_plugin.last_log_line, sizeof(op_plugin.last_log_line), "%s", text);
    pthread_mutex_unlock(&op_plugin.log_lock);
}

static inline void *op_host_alloc(void *self, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    return support_allocate(&op_plugin.allocator, bytes, alignment);
}

static inline void op_host_free(void *self, void *memory, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    support_free(&op_plugin.allocator, memory, bytes, alignment);
}

/* ---------------------------------------------------------------- tiles */

/* Rows of tiles.def for `op` that this machine can run. Returns how many. */
static inline int op_list_tiles(int32_t op, int32_t *tiles, int capacity)
{
    const bool is_gemm = op == MOE_OP_ROUTER || op == MOE_OP_GEMM1 || op == MOE_OP_GEMM2;
    const bool has_avx2 = strcmp(op_plugin.device.isa, "avx2") == 0;
    struct moe_tile_info info;
    int count = 0;
    MOE_INIT(info);
    for (int32_t index = 0; op_api()->tile_info(index, &info, NULL) == MOE_STATUS_OK; index++) {
        const bool can_run = info.built && info.backend == MOE_BACKEND_CPU &&
                             (has_avx2 || strcmp(info.isa, "c11") == 0);
        if (can_run && info.op == (is_gemm ? MOE_OP_GEMM1 : op)) {
            assert_true(count < capacity);
            tiles[count++] = index;
        }
    }
    return count;
}

/* "{kernel: ..., every key}" of one tile; the numbers that the table has no value for are left
 * out. */
static inline void op_append_tile(char *text, size_t size, const char *op_name, int32_t tile)
{
    struct moe_tile_info info;
    MOE_INIT(info);
    assert_int_equal(op_api()->tile_info(tile, &info, NULL), MOE_STATUS_OK);
    size_t length = strlen(text);
    if (info.block_size > 0) {
        snprintf(text + length, size - length, "        %s: {kernel: %s, BLOCK_SIZE: %d}\n",
                 op_name, info.kernel, info.block_size);
    } else {
        snprintf(text + length, size - length,
                 "        %s: {kernel: %s, BLOCK_SIZE_M: %d, BLOCK_SIZE_N: %d, BLOCK_SIZE_K: %d, "
                 "GROUP_SIZE_M: %d, num_warps: %d, num_stages: %d}\n",
                 op_name, info.kernel, info.block_size_m, info.block_size_n, info.block_size_k,
                 info.group_size_m, info.num_warps, info.num_stages);
    }
    assert_true(strlen(text) < size - 1);
}

/* The configuration that forces a tile set; `tiles` receives the choice. */
static inline void op_force_tiles(int tile_set, int32_t tiles[MOE_NUM_OPS], char *text, size_t size)
{
    static const char *const names[] = {
#define OP_NAME(constant, value, name) name,
        MOE_OP_LIST(OP_NAME)
#undef OP_NAME
    };
    snprintf(text, size,
             "schema: moe-dispatch/1\nrules:\n  - name: forced\n    match: {backend: cpu}\n"
             "    buckets:\n      - max_tokens: inf\n");
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        int32_t rows[OP_MAX_TILE_SETS];
        const int count = op_list_tiles(op, rows, OP_COUNT(rows));
        tiles[op] = count > 0 ? rows[tile_set % count] : -1;
        if (count > 0) {
            op_append_tile(text, size, names[op], tiles[op]);
        }
    }
}

/* ---------------------------------------------------------------- contexts */

/* A context on `num_threads` threads; `config` NULL: built-in profiles only, else it replaces
 * them. */
static inline struct moe_context *op_context_create(const char *config, int32_t num_threads)
{
    struct moe_context_options options;
    struct moe_config_source source;
    struct moe_context *context = NULL;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(source);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced.yaml";
    source.text = config;
    source.text_bytes = config != NULL ? strlen(config) : 0;
    MOE_INIT(options);
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    options.backend = MOE_BACKEND_CPU;
    options.num_threads = num_threads;
    options.config_sources = &source;
    options.num_config_sources = config != NULL;
    op_assert_status(MOE_STATUS_OK,
                     op_api()->context_create(&op_plugin.host, &options, &context, &error), error);
    assert_non_null(context);
    return context;
}

/* The context of a tile set on 1 to OP_MAX_THREADS threads. */
static inline const struct op_variant *op_variant(int tile_set, int32_t num_threads)
{
    struct op_variant *variant = &op_plugin.variants[tile_set][num_threads];
    if (variant->context == NULL) {
        char config[4096];
        op_force_tiles(tile_set, variant->tiles, config, sizeof(config));
        variant->context = op_context_create(config, num_threads);
        variant->tile_set = tile_set;
        variant->num_threads = num_threads;
    }
    return variant;
}

/* The variants that a case runs in: every tile set, on a number of threads that turns with `turn`,
 * so that all meet over a grid. Returns how many. */
static inline int op_list_variants(int64_t turn, const struct op_variant **variants)
{
    for (int set = 0; set < op_plugin.num_tile_sets; set++) {
        variants[set] = op_variant(set, (int32_t)((turn + set) % OP_MAX_THREADS) + 1);
    }
    return op_plugin.num_tile_sets;
}

enum { OP_MAX_VARIANTS = OP_MAX_TILE_SETS };

/* Group setup: opens the plugin. */
static inline int op_setup(void **state)
{
    (void)state;
    int32_t tiles[OP_MAX_TILE_SETS];
    struct moe_error error;
    MOE_INIT(error);
    op_plugin.image = dlopen(MOE_BUILD_DIR "/lib/libmoe_plugin.so", RTLD_NOW | RTLD_LOCAL);
    if (op_plugin.image == NULL) {
        print_error("%s\n", dlerror());
        return -1;
    }
    moe_plugin_init_fn *init = NULL;
    void *symbol = dlsym(op_plugin.image, MOE_PLUGIN_INIT_SYMBOL);
    memcpy(&init, &symbol, sizeof(init));
    assert_non_null(symbol);
    support_allocator_init(&op_plugin.allocator, 0);
    MOE_INIT(op_plugin.host);
    op_plugin.host.abi_major = MOE_ABI_MAJOR;
    op_plugin.host.abi_minor = MOE_ABI_MINOR;
    op_plugin.host.layout_hash = MOE_ABI_LAYOUT_HASH;
    op_plugin.host.log = op_log;
    op_plugin.host.memory_alloc = op_host_alloc;
    op_plugin.host.memory_free = op_host_free;
    op_plugin.api = init(&op_plugin.host, &error);
    if (op_plugin.api == NULL) {
        print_error("%s\n", error.message);
        return -1;
    }
    MOE_INIT(op_plugin.device);
    op_assert_status(MOE_STATUS_OK,
                     op_api()->device_probe(MOE_BACKEND_CPU, 0, &op_plugin.device, &error), error);
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        const int count = op_list_tiles(op, tiles, OP_COUNT(tiles));
        op_plugin.num_tile_sets = count > op_plugin.num_tile_sets ? count : op_plugin.num_tile_sets;
    }
    return op_plugin.num_tile_sets > 0 ? 0 : -1;
}

/* Group teardown: every context gives back all it took. */
static inline int op_teardown(void **state)
{
    (void)state;
    for (int set = 0; set < OP_MAX_TILE_SETS; set++) {
        for (int threads = 0; threads <= OP_MAX_THREADS; threads++) {
            op_api()->context_destroy(op_plugin.variants[set][threads].context);
        }
    }
    const int64_t num_left = op_plugin.allocator.num_live + op_plugin.allocator.num_bad_frees;
    support_allocator_finish(&op_plugin.allocator);
    dlclose(op_plugin.image);
    if (num_left != 0) {
        print_error("%lld blocks leaked or freed badly\n", (long long)num_left);
        return -1;
    }
    return 0;
}

/* ---------------------------------------------------------------- plans and runs */

static inline struct moe_plan *op_plan_capped(struct moe_context *context,
                                              const struct moe_problem *problem, uint64_t ops,
                                              uint64_t workspace_cap)
{
    struct moe_plan_options options;
    struct moe_plan *plan = NULL;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(options);
    options.ops = ops;
    options.workspace_cap = workspace_cap;
    op_assert_status(MOE_STATUS_OK,
                     op_api()->plan_create(context, problem, &options, &plan, &error), error);
    return plan;
}

/* A plan for single operations, a set of 1 << MOE_OP_*; 0: everything. */
static inline struct moe_plan *op_plan(struct moe_context *context,
                                       const struct moe_problem *problem, uint64_t ops)
{
    return op_plan_capped(context, problem, ops, 0);
}

#define OP_BIT(op) (UINT64_C(1) << (op))

/* Calls of one shape, so that all of them run under the same watch. */
typedef int32_t op_invoke_fn(const struct moe_plan *plan, const void *args,
                             struct moe_error *error);
#define OP_INVOKE(name)                                                                   \
    static inline int32_t op_invoke_##name(const struct moe_plan *plan, const void *args, \
                                           struct moe_error *error)                       \
    {                                                                                     \
        return op_api()->name(plan, args, error);                                         \
    }
OP_INVOKE(router)
OP_INVOKE(gating)
OP_INVOKE(align_block_size)
OP_INVOKE(ep_preprocess)
OP_INVOKE(route)
OP_INVOKE(pre_reorder)
OP_INVOKE(quantize)
OP_INVOKE(activation)
OP_INVOKE(grouped_gemm)
OP_INVOKE(post_reorder)
OP_INVOKE(sum_reduce)
OP_INVOKE(experts)
OP_INVOKE(layer)

/* What a watched call needs to know besides its arguments. */
struct op_watch {
    const struct op_variant *variant; /* NULL: tiles are not checked */
    const struct moe_plan *plan;
    int32_t op;         /* whose workspace it needs */
    int64_t num_tokens; /* for plan_op_info */
    struct support_guard *outputs[OP_MAX_OUTPUTS];
    int num_outputs;
};

static inline uint64_t op_hash_outputs(const struct op_watch *watch)
{
    uint64_t hash = SUPPORT_HASH_INIT;
    for (int i = 0; i < watch->num_outputs; i++) {
        hash = support_hash(hash, watch->outputs[i]->data, watch->outputs[i]->size);
    }
    return hash;
}

/* A workspace one byte short is refused before anything is touched. */
static inline void op_expect_short_workspace(const struct op_watch *watch, op_invoke_fn *invoke,
                                             const void *args, struct moe_call *call,
                                             const struct support_guard *workspace)
{
    const uint64_t before = op_hash_outputs(watch);
    struct moe_error error;
    MOE_INIT(error);
    call->workspace_bytes = workspace->size - 1;
    op_assert_status(MOE_STATUS_WORKSPACE_TOO_SMALL, invoke(watch->plan, args, &error), error);
    assert_true(op_hash_outputs(watch) == before);
    assert_true(support_guard_is_poison(workspace, 0, workspace->size));
    call->workspace_bytes = workspace->size;
}

/*
 * Runs one call with a poisoned workspace of exactly the bytes that the plan says. `call` is the
 * first member of args. Checks the forced tile, guard bands of workspace and outputs, and that
 * nothing was allocated or logged.
 */
static inline void op_run(const struct op_watch *watch, op_invoke_fn *invoke, const void *args,
                          struct moe_call *call)
{
    const struct support_guard_options options = {.alignment = OP_WORKSPACE_ALIGNMENT,
                                                  .poison = SUPPORT_POISON_FLOAT};
    struct support_guard workspace;
    struct moe_choice choice;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(choice);
    op_assert_status(
        MOE_STATUS_OK,
        op_api()->plan_op_info(watch->plan, watch->op, watch->num_tokens, &choice, &error), error);
    if (watch->variant != NULL && watch->variant->tiles[watch->op] >= 0) {
        assert_int_equal(choice.tile, watch->variant->tiles[watch->op]);
        assert_int_equal(choice.source, MOE_CHOICE_RULE);
    }
    support_guard_init(&workspace, (size_t)choice.workspace_bytes, &options);
    call->workspace = choice.workspace_bytes > 0 ? workspace.data : NULL;
    call->workspace_bytes = choice.workspace_bytes;
    if (choice.workspace_bytes > 0) {
        op_expect_short_workspace(watch, invoke, args, call, &workspace);
    }
    const int64_t num_allocations = op_plugin.allocator.num_calls;
    const int num_log_lines = atomic_load(&op_plugin.num_log_lines);
    op_assert_status(MOE_STATUS_OK, invoke(watch->plan, args, &error), error);
    assert_int_equal(op_plugin.allocator.num_calls, num_allocations);
    assert_int_equal(atomic_load(&op_plugin.num_log_lines), num_log_lines);
    assert_guard_intact(&workspace);
    for (int i = 0; i < watch->num_outputs; i++) {
        assert_guard_intact(watch->outputs[i]);
    }
    support_guard_finish(&workspace);
}

/* Enough workspace for any small call. */
static inline void op_lend_workspace(struct moe_call *call)
{
    static _Alignas(OP_WORKSPACE_ALIGNMENT) unsigned char workspace[1 << 22];
    call->workspace = workspace;
    call->workspace_bytes = sizeof(workspace);
}

/* A call that is refused as `expected`, though it has workspace, with all outputs left as they
 * are. */
static inline void op_expect_refusal(int32_t expected, const struct op_watch *watch,
                                     op_invoke_fn *invoke, const void *args, struct moe_call *call)
{
    const uint64_t before = op_hash_outputs(watch);
    struct moe_error error;
    MOE_INIT(error);
    op_lend_workspace(call);
    op_assert_status(expected, invoke(watch->plan, args, &error), error);
    assert_true(op_hash_outputs(watch) == before);
}

/* The same call as it should be: makes sure that a refusal was for its own reason. */
static inline void op_expect_success(const struct op_watch *watch, op_invoke_fn *invoke,
                                     const void *args, struct moe_call *call)
{
    struct moe_error error;
    MOE_INIT(error);
    op_lend_workspace(call);
    op_assert_status(MOE_STATUS_OK, invoke(watch->plan, args, &error), error);
}

/* ---------------------------------------------------------------- grids */

/* Pairwise over all factors; with MOE_TEST_FULL=1 the full product of the first num_main factors,
 * the others drawn for each row. Sanitizer builds run every sanitized_stride-th row. */
struct op_grid {
    struct support_grid grid;
    struct support_random random;
    int levels[SUPPORT_GRID_MAX_FACTORS];
    int num_factors;
    int num_main;
    int sanitized_stride;
};

static inline void op_grid_init(struct op_grid *grid, const int *levels, int num_factors,
                                int num_main, int sanitized_stride)
{
    memcpy(grid->levels, levels, (size_t)num_factors * sizeof(*levels));
    grid->num_factors = num_factors;
    grid->num_main = num_main;
    grid->sanitized_stride = sanitized_stride;
    support_random_seed(&grid->random, (uint64_t)num_factors);
    support_grid_init(&grid->grid, levels, support_full_grids() ? num_main : num_factors, NULL,
                      NULL);
}

/* The levels of a row; false: this build leaves it out. Rows are asked for in order. */
static inline bool op_grid_row(struct op_grid *grid, int64_t row, int *pick)
{
    support_grid_row(&grid->grid, row, pick);
    for (int f = grid->num_main; support_full_grids() && f < grid->num_factors; f++) {
        pick[f] = (int)support_random_below(&grid->random, (uint64_t)grid->levels[f]);
    }
    return MOE_TEST_SANITIZED == 0 || row % grid->sanitized_stride == 0;
}

static inline void op_grid_finish(struct op_grid *grid)
{
    support_grid_finish(&grid->grid);
}

#endif
