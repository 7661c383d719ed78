/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of the CUDA operations: the median over replays of graphs of dependent nodes with plain
 * edges, each node on a set of buffers of its own, after the cache was flushed. An empty node and
 * the read, write and copy limits are measured in the same run; the ratio is bytes / copy limit
 * over the time.
 *
 *   gpu_bench [file.json] [tiles]     tiles: every variant of the tile table in turn
 */
#include "gpu_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TILES = 1000, MAX_SETS = 64, NUM_REPLAYS = 21 };
#define FLUSH_BYTES ((size_t)256 << 20)
#define SETS_BYTES  ((size_t)6 << 30) /* at most, of all sets of one case */

static struct gpu_host host;
static uint64_t seed = 7;
static double copy_rate, empty_us;
static FILE *json;
static int all_tiles;

/* One operation at one size; `sets` rotate. */
struct bench {
    int32_t op;
    const char *name;
    int32_t num_experts, top_k, hidden;
    int64_t num_tokens;
    int num_sets, num_nodes;
    struct moe_plan *plan;
    double bytes; /* that one node moves at least */
    struct set {
        void *tokens, *rows, *output;
        void *ids, *weights, *src2dst, *dst2src, *indptr, *reorder, *sorted, *experts, *post_pad;
        int64_t sorted_capacity, expert_capacity;
    } sets[MAX_SETS];
};

static void *alloc_random(size_t bytes)
{
    void *memory = gpu_alloc(bytes);
    gpu_limits_write(host.stream, memory, bytes & ~(size_t)15); /* bits of no pattern, not zeros */
    gpu_synchronize(host.stream);
    return memory;
}

/* k distinct experts per token, uniformly. */
static void draw_ids(int32_t *ids, int64_t num_tokens, int32_t top_k, int32_t num_experts)
{
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int32_t j = 0; j < top_k; j++) {
            int32_t id = 0;
            int again = 1;
            while (again) {
                id = (int32_t)(gpu_random(&seed) % (uint64_t)num_experts);
                again = 0;
                for (int32_t i = 0; i < j; i++) {
                    again |= ids[t * top_k + i] == id;
                }
            }
            ids[t * top_k + j] = id;
        }
    }
}

static void run_op(const struct bench *bench, const struct set *set, CUstream stream)
{
    struct moe_error error;
    int32_t status = MOE_STATUS_OK;
    const int64_t num_routes = bench->num_tokens * bench->top_k;
    MOE_INIT(error);
    if (bench->op == MOE_OP_ALIGN_BLOCK_SIZE) {
        struct moe_align_args args;
        MOE_INIT_CALL(args);
        args.call.num_tokens = bench->num_tokens;
        args.call.stream = stream;
        args.topk_ids = set->ids;
        args.block_size = 128;
        args.sorted_ids = set->sorted;
        args.sorted_capacity = set->sorted_capacity;
        args.expert_ids = set->experts;
        args.expert_capacity = set->expert_capacity;
        args.num_tokens_post_pad = set->post_pad;
        status = host.api->align_block_size(bench->plan, &args, &error);
    } else if (bench->op == MOE_OP_EP_PREPROCESS) {
        struct moe_ep_preprocess_args args;
        MOE_INIT_CALL(args);
        args.call.num_tokens = bench->num_tokens;
        args.call.stream = stream;
        args.topk_ids = set->ids;
        args.seg_indptr = set->indptr;
        args.src2dst = set->src2dst;
        args.reorder_ids = set->reorder;
        args.dst2src = set->dst2src;
        args.row_capacity = num_routes;
        status = host.api->ep_preprocess(bench->plan, &args, &error);
    } else if (bench->op == MOE_OP_PRE_REORDER) {
        struct moe_pre_reorder_args args;
        MOE_INIT_CALL(args);
        args.call.num_tokens = bench->num_tokens;
        args.call.stream = stream;
        args.tokens = set->tokens;
        args.src2dst = set->src2dst;
        args.rows = set->rows;
        args.num_rows = num_routes;
        status = host.api->pre_reorder(bench->plan, &args, &error);
    } else {
        struct moe_post_reorder_args args;
        MOE_INIT_CALL(args);
        args.call.num_tokens = bench->num_tokens;
        args.call.stream = stream;
        args.rows = set->rows;
        args.num_rows = num_routes;
        args.src2dst = set->src2dst;
        args.topk_weights = set->weights;
        args.output = set->output;
        status = host.api->post_reorder(bench->plan, &args, &error);
    }
    gpu_host_check(status, &error, bench->name);
}

static void record_bench(void *self, CUstream stream)
{
    const struct bench *bench = self;
    for (int node = 0; node < bench->num_nodes; node++) {
        run_op(bench, &bench->sets[node % bench->num_sets], stream);
    }
}

static void make_set(const struct bench *bench, struct set *set)
{
    const int64_t num_routes = bench->num_tokens * bench->top_k;
    const size_t token_bytes = (size_t)(bench->num_tokens * bench->hidden) * 2;
    const int needs_rows = bench->op == MOE_OP_PRE_REORDER || bench->op == MOE_OP_POST_REORDER;
    struct moe_error error;
    MOE_INIT(error);
    memset(set, 0, sizeof(*set));
    int32_t *ids = malloc((size_t)num_routes * 4);
    draw_ids(ids, bench->num_tokens, bench->top_k, bench->num_experts);
    set->ids = gpu_alloc((size_t)num_routes * 4);
    gpu_upload(set->ids, ids, (size_t)num_routes * 4);
    free(ids);
    gpu_host_check(host.api->align_capacity(num_routes, bench->num_experts, 128, MOE_FILTER_DROP,
                                            &set->sorted_capacity, &set->expert_capacity, &error),
                   &error, "align_capacity");
    set->sorted = gpu_alloc((size_t)set->sorted_capacity * 4);
    set->experts = gpu_alloc((size_t)set->expert_capacity * 4);
    set->post_pad = gpu_alloc(4);
    set->indptr = gpu_alloc(((size_t)bench->num_experts + 1) * 8);
    set->src2dst = gpu_alloc((size_t)num_routes * 4);
    set->dst2src = gpu_alloc((size_t)num_routes * 4);
    set->reorder = gpu_alloc((size_t)num_routes * 4);
    if (needs_rows) {
        set->tokens = alloc_random(token_bytes);
        set->rows = alloc_random(token_bytes * (size_t)bench->top_k);
        set->output = alloc_random(token_bytes);
        set->weights = alloc_random((size_t)num_routes * 4 + 16);
    }
}

static void free_set(struct set *set)
{
    void *all[] = {set->tokens,  set->rows,    set->output,  set->ids,
                   set->weights, set->src2dst, set->dst2src, set->indptr,
                   set->reorder, set->sorted,  set->experts, set->post_pad};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_free(all[i]);
    }
}

/* Destinations by ep_preprocess itself. */
static void make_destinations(struct bench *bench, const struct moe_problem *problem)
{
    struct moe_error error;
    struct moe_plan_options options;
    struct bench sort = *bench;
    MOE_INIT(error);
    MOE_INIT(options);
    options.ops = UINT64_C(1) << MOE_OP_EP_PREPROCESS;
    sort.op = MOE_OP_EP_PREPROCESS;
    gpu_host_check(host.api->plan_create(host.cuda, problem, &options, &sort.plan, &error), &error,
                   "plan");
    for (int i = 0; i < bench->num_sets; i++) {
        run_op(&sort, &bench->sets[i], host.stream);
    }
    gpu_synchronize(host.stream);
    host.api->plan_destroy(sort.plan);
}

static const char *op_name(int32_t op)
{
    switch (op) {
#define NAME(name, value, text) \
    case value:                 \
        return text;
        MOE_OP_LIST(NAME)
#undef NAME
    default:
        return "";
    }
}

static void time_plan(struct bench *bench, const struct moe_choice *choice)
{
    struct gpu_timing timing =
        gpu_time_graph(host.stream, record_bench, bench, NUM_REPLAYS, FLUSH_BYTES);
    const double us = timing.median_us / bench->num_nodes;
    const double rate = bench->bytes / us / 1e6;
    printf("%-14s E %3d k %2d H %5d T %6lld  %8.2f us  (%.2f .. %.2f)  %6.3f TB/s  %5.1f %% of "
           "copy  %s\n",
           bench->name, bench->num_experts, bench->top_k, bench->hidden,
           (long long)bench->num_tokens, us, timing.low_us / bench->num_nodes,
           timing.high_us / bench->num_nodes, rate, 100.0 * rate / copy_rate, choice->tile_name);
    fflush(stdout);
    if (json != NULL) {
        fprintf(
            json,
            ",\n  {\"op\": \"%s\", \"experts\": %d, \"top_k\": %d, \"hidden\": %d, \"tokens\": "
            "%lld, "
            "\"us\": %.3f, \"low_us\": %.3f, \"high_us\": %.3f, \"bytes\": %.0f, \"tile\": \"%s\"}",
            bench->name, bench->num_experts, bench->top_k, bench->hidden,
            (long long)bench->num_tokens, us, timing.low_us / bench->num_nodes,
            timing.high_us / bench->num_nodes, bench->bytes, choice->tile_name);
    }
}

static void bench_one(int32_t op, const char *name, int32_t num_experts, int32_t top_k,
                      int32_t hidden, int64_t num_tokens)
{
    struct bench bench = {.op = op,
                          .name = name,
                          .num_experts = num_experts,
                          .top_k = top_k,
                          .hidden = hidden,
                          .num_tokens = num_tokens};
    struct moe_error error;
    struct moe_problem problem;
    struct moe_plan_options options;
    struct moe_choice choice;
    MOE_INIT(error);
    MOE_INIT(problem);
    MOE_INIT(options);
    MOE_INIT(choice);
    problem.num_experts = num_experts;
    problem.top_k = top_k;
    problem.hidden = hidden;
    problem.max_tokens = num_tokens;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    options.ops = UINT64_C(1) << op;
    gpu_host_check(host.api->plan_create(host.cuda, &problem, &options, &bench.plan, &error),
                   &error, name);
    gpu_host_check(host.api->plan_op_info(bench.plan, op, num_tokens, &choice, &error), &error,
                   name);
    const int is_rows = op == MOE_OP_PRE_REORDER || op == MOE_OP_POST_REORDER;
    const double row_bytes = (double)hidden * 2.0 * (double)num_tokens;
    bench.bytes = is_rows ? row_bytes * (top_k + 1.0) : (double)num_tokens * top_k * 12.0;
    const double set_bytes =
        is_rows ? row_bytes * (top_k + 2.0) : (double)num_tokens * top_k * 20.0;
    bench.num_nodes = num_tokens <= 1024 ? 100 : 20;
    bench.num_sets =
        (int)((double)SETS_BYTES / (set_bytes + 1.0) < 20.0 ? (double)SETS_BYTES / (set_bytes + 1.0)
                                                            : 20.0);
    bench.num_sets = bench.num_sets < 2 ? 2 : bench.num_sets;
    for (int i = 0; i < bench.num_sets; i++) {
        make_set(&bench, &bench.sets[i]);
    }
    make_destinations(&bench, &problem);
    time_plan(&bench, &choice);
    for (int32_t i = 0; all_tiles && i < MAX_TILES; i++) {
        struct moe_tile_info tile;
        MOE_INIT(tile);
        if (host.api->tile_info(i, &tile, NULL) != MOE_STATUS_OK) {
            break;
        }
        if (tile.backend == MOE_BACKEND_CUDA && tile.op == op && tile.min_sm <= host.device.sm) {
            host.api->plan_destroy(bench.plan);
            gpu_force_tile(&host, &tile, op_name(op));
            gpu_host_check(
                host.api->plan_create(host.cuda, &problem, &options, &bench.plan, &error), &error,
                name);
            gpu_host_check(host.api->plan_op_info(bench.plan, op, num_tokens, &choice, &error),
                           &error, name);
            time_plan(&bench, &choice);
            gpu_force_tile(&host, NULL, NULL);
        }
    }
    for (int i = 0; i < bench.num_sets; i++) {
        free_set(&bench.sets[i]);
    }
    host.api->plan_destroy(bench.plan);
}

struct limits {
    void *from, *to;
    size_t bytes;
};

static void record_empty(void *self, CUstream stream)
{
    (void)self;
    for (int i = 0; i < 100; i++) {
        gpu_limits_empty(stream);
    }
}

static void record_read(void *self, CUstream stream)
{
    const struct limits *limits = self;
    gpu_limits_read(stream, limits->from, limits->bytes);
}

static void record_write(void *self, CUstream stream)
{
    const struct limits *limits = self;
    gpu_limits_write(stream, limits->to, limits->bytes);
}

static void record_copy(void *self, CUstream stream)
{
    const struct limits *limits = self;
    gpu_limits_copy(stream, limits->from, limits->to, limits->bytes);
}

static void measure_limits(void)
{
    struct limits limits = {.bytes = (size_t)4 << 30};
    limits.from = alloc_random(limits.bytes);
    limits.to = alloc_random(limits.bytes);
    empty_us = gpu_time_graph(host.stream, record_empty, NULL, NUM_REPLAYS, 0).median_us / 100.0;
    const double read = gpu_time_graph(host.stream, record_read, &limits, NUM_REPLAYS, 0).median_us;
    const double write =
        gpu_time_graph(host.stream, record_write, &limits, NUM_REPLAYS, 0).median_us;
    const double copy = gpu_time_graph(host.stream, record_copy, &limits, NUM_REPLAYS, 0).median_us;
    copy_rate = 2.0 * (double)limits.bytes / copy / 1e6;
    printf("empty node %.2f us; read %.3f, write %.3f, copy %.3f TB/s\n", empty_us,
           (double)limits.bytes / read / 1e6, (double)limits.bytes / write / 1e6, copy_rate);
    if (json != NULL) {
        fprintf(json,
                "[\n  {\"device\": \"%s\", \"driver\": %d, \"source\": \"%s\", \"empty_us\": %.3f, "
                "\"read_tbps\": %.3f, \"write_tbps\": %.3f, \"copy_tbps\": %.3f}",
                host.device.name, host.device.driver_version, host.api->source_id, empty_us,
                (double)limits.bytes / read / 1e6, (double)limits.bytes / write / 1e6, copy_rate);
    }
    gpu_free(limits.from);
    gpu_free(limits.to);
}

int main(int argc, char **argv)
{
    static const int64_t tokens[] = {1, 64, 1024, 4096, 16384};
    static const struct {
        int32_t num_experts, top_k, hidden;
    } shapes[] = {{256, 8, 7168}, {64, 2, 4096}, {128, 8, 2048}};
    static const struct {
        int32_t op;
        const char *name;
    } ops[] = {{MOE_OP_ALIGN_BLOCK_SIZE, "align"},
               {MOE_OP_EP_PREPROCESS, "ep_preprocess"},
               {MOE_OP_PRE_REORDER, "pre_reorder"},
               {MOE_OP_POST_REORDER, "post_reorder"}};
    gpu_host_init(&host, argv[0]);
    gpu_limits_open(argv[0]);
    all_tiles = argc > 2 && strcmp(argv[2], "tiles") == 0;
    json = argc > 1 ? fopen(argv[1], "w") : NULL;
    measure_limits();
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (size_t o = 0; o < sizeof(ops) / sizeof(ops[0]); o++) {
            for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]); t++) {
                bench_one(ops[o].op, ops[o].name, shapes[s].num_experts, shapes[s].top_k,
                          shapes[s].hidden, tokens[t]);
            }
        }
    }
    if (json != NULL) {
        fprintf(json, "\n]\n");
        fclose(json);
    }
    gpu_host_finish(&host);
    return 0;
}
