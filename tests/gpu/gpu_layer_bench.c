/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of whole layers, ids and weights given: graphs of layer calls with plain edges between
 * them, each call with ids of its own and the next of enough sets of weights that a set is out of
 * the cache when its turn comes again. Beside each time its parts as single operations, the floor
 * at the read limit of the same run, and the host's time for a call.
 */
#include "gpu_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    NUM_REPLAYS = 11,
    NUM_CALLS = 16, /* in a graph */
    MAX_SETS = 16,
    NUM_COUNTS = 9,
    NUM_HOST_CALLS = 64,
    MAX_TILES = 4096,
    MAX_TILE_TOKENS = 1024 /* beyond them the largest tile is the only candidate */
};
#define ROTATION_BYTES ((size_t)1 << 30)

static const int64_t token_counts[NUM_COUNTS] = {1, 8, 32, 64, 128, 256, 1024, 4096, 8192};

struct model {
    const char *name;
    int32_t num_experts, top_k, hidden, inter;
    double peer_us[NUM_COUNTS]; /* the best peer on the same kind of machine; 0: not measured */
};

static const struct model models[] = {
    {"Mixtral-8x7B", 8, 2, 4096, 14336, {182, 648, 685, 661, 679, 742, 1344, 4812, 8924}},
    {"Qwen3-30B-A3B", 128, 8, 2048, 768, {36, 134, 261, 291, 305, 312, 373, 740, 1258}},
    {"Qwen3-235B-TP8", 128, 8, 4096, 192, {0}},
    {"gpt-oss-120b", 128, 4, 2880, 2880, {0}},
    {"DeepSeek-V2-Lite", 64, 6, 2048, 1408, {0}},
    {"OLMoE", 64, 8, 2048, 1024, {0}},
    {"Granite", 40, 8, 1536, 512, {0}},
};

/* A model at one number of tokens. */
struct bench {
    const struct model *model;
    int64_t num_tokens, num_routes;
    struct moe_problem problem;
    struct moe_plan *plan;
    uint64_t workspace_bytes;
    int num_sets;
    struct moe_weights *weights[MAX_SETS];
    void *matrices[MAX_SETS];
    void *ids[NUM_CALLS], *src2dst[NUM_CALLS], *seg_indptr[NUM_CALLS];
    void *tokens, *topk_weights, *output, *workspace, *rows, *middle;
    double active_experts; /* mean over the calls */
};

static const struct gpu_host *host;
static uint64_t seed = 1;
static double read_rate; /* bytes per microsecond */
static FILE *json;

static double matrix_bytes(const struct model *model)
{
    return 2.0 * model->hidden * model->inter;
}

static void *alloc_random(size_t bytes, int32_t is_fp32)
{
    void *memory = gpu_alloc(bytes + 16);
    gpu_fill_random(host->stream, memory, (bytes + 3) / 4, gpu_random(&seed), is_fp32);
    return memory;
}

static void check(int32_t status, const struct moe_error *error)
{
    gpu_host_check(status, error, "bench");
}

/* [E, 2I, H] and [E, H, I] behind it. */
static void bind_set(struct bench *bench, int set)
{
    const struct model *model = bench->model;
    const int64_t hidden = model->hidden, inter = model->inter;
    const size_t experts = (size_t)model->num_experts;
    struct moe_error error;
    struct moe_weights_desc desc;
    MOE_INIT(error);
    MOE_INIT(desc);
    bench->matrices[set] = alloc_random((size_t)(3.0 * matrix_bytes(model)) * experts, 0);
    char *base = bench->matrices[set];
    desc.gate.base = base;
    desc.gate.expert_stride = 2 * inter * hidden;
    desc.gate.row_stride = hidden;
    desc.gate.col_stride = 1;
    desc.up = desc.gate;
    desc.up.base = base + 2 * inter * hidden;
    desc.down.base = base + (size_t)(2.0 * matrix_bytes(model)) * experts;
    desc.down.expert_stride = inter * hidden;
    desc.down.row_stride = inter;
    desc.down.col_stride = 1;
    check(host->api->weights_bind(host->cuda, &bench->problem, &desc, NULL, 0, &bench->weights[set],
                                  &error),
          &error);
}

/* k distinct experts per token, uniformly; the number of experts that any token meets. */
static int draw_ids(const struct bench *bench, int32_t *ids)
{
    const struct model *model = bench->model;
    char *met = calloc((size_t)model->num_experts, 1);
    int num_met = 0;
    for (int64_t t = 0; t < bench->num_tokens; t++) {
        int32_t *own = ids + t * model->top_k;
        for (int32_t j = 0; j < model->top_k; j++) {
            int32_t i;
            do {
                own[j] = (int32_t)(gpu_random(&seed) % (uint64_t)model->num_experts);
                for (i = 0; i < j && own[i] != own[j]; i++) {
                }
            } while (i < j);
            num_met += met[own[j]] == 0;
            met[own[j]] = 1;
        }
    }
    free(met);
    return num_met;
}

static void make_ids(struct bench *bench)
{
    const size_t bytes = (size_t)bench->num_routes * 4;
    int32_t *ids = malloc(bytes);
    int num_met = 0;
    for (int i = 0; i < NUM_CALLS; i++) {
        num_met += draw_ids(bench, ids);
        bench->ids[i] = gpu_alloc(bytes);
        bench->src2dst[i] = gpu_alloc(bytes);
        bench->seg_indptr[i] = gpu_alloc(((size_t)bench->model->num_experts + 1) * 8);
        gpu_upload(bench->ids[i], ids, bytes);
    }
    bench->active_experts = (double)num_met / NUM_CALLS;
    free(ids);
}

static void make_plan(struct bench *bench)
{
    struct moe_error error;
    struct moe_plan_options options;
    struct moe_plan_info info;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(info);
    options.ops = UINT64_C(1) << MOE_OP_LAYER;
    check(host->api->plan_create(host->cuda, &bench->problem, &options, &bench->plan, &error),
          &error);
    check(host->api->plan_info(bench->plan, &info, &error), &error);
    bench->workspace_bytes = info.workspace_bytes;
    bench->workspace = gpu_alloc(info.workspace_bytes);
}

static void free_plan(struct bench *bench)
{
    host->api->plan_destroy(bench->plan);
    gpu_free(bench->workspace);
}

static void bench_init(struct bench *bench, const struct model *model)
{
    const double set_bytes = 3.0 * matrix_bytes(model) * model->num_experts;
    memset(bench, 0, sizeof(*bench));
    bench->model = model;
    MOE_INIT(bench->problem);
    bench->problem.num_experts = model->num_experts;
    bench->problem.top_k = model->top_k;
    bench->problem.hidden = model->hidden;
    bench->problem.inter = model->inter;
    bench->problem.activation = MOE_ACTIVATION_SILU;
    bench->problem.tokens.dtype = MOE_DTYPE_BF16;
    bench->problem.gate_up.dtype = MOE_DTYPE_BF16;
    bench->problem.down.dtype = MOE_DTYPE_BF16;
    bench->problem.max_tokens = 1;
    bench->num_sets = (int)((double)ROTATION_BYTES / set_bytes) + 1;
    bench->num_sets = bench->num_sets < MAX_SETS ? bench->num_sets : MAX_SETS;
    for (int set = 0; set < bench->num_sets; set++) {
        bind_set(bench, set);
    }
}

static void bench_set_tokens(struct bench *bench, int64_t num_tokens)
{
    const size_t routes = (size_t)num_tokens * (size_t)bench->model->top_k;
    const size_t row_bytes = (size_t)bench->model->hidden * 2;
    bench->num_tokens = num_tokens;
    bench->num_routes = (int64_t)routes;
    bench->problem.max_tokens = num_tokens;
    make_plan(bench);
    make_ids(bench);
    bench->tokens = alloc_random((size_t)num_tokens * row_bytes, 0);
    bench->topk_weights = alloc_random(routes * 4, 1);
    bench->output = gpu_alloc((size_t)num_tokens * row_bytes);
    bench->rows = alloc_random(routes * row_bytes, 0);
    bench->middle = alloc_random(routes * (size_t)bench->model->inter * 2, 0);
    gpu_synchronize(host->stream);
}

static void bench_drop_tokens(struct bench *bench)
{
    void *all[] = {bench->tokens, bench->topk_weights, bench->output, bench->rows, bench->middle};
    free_plan(bench);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_free(all[i]);
    }
    for (int i = 0; i < NUM_CALLS; i++) {
        gpu_free(bench->ids[i]);
        gpu_free(bench->src2dst[i]);
        gpu_free(bench->seg_indptr[i]);
    }
}

static void bench_finish(struct bench *bench)
{
    for (int set = 0; set < bench->num_sets; set++) {
        host->api->weights_destroy(bench->weights[set]);
        gpu_free(bench->matrices[set]);
    }
}

static void run_layer(const struct bench *bench, int call, CUstream stream)
{
    struct moe_error error;
    struct moe_layer_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = bench->num_tokens;
    args.call.stream = stream;
    args.call.workspace = bench->workspace;
    args.call.workspace_bytes = bench->workspace_bytes;
    args.weights = bench->weights[call % bench->num_sets];
    args.tokens = bench->tokens;
    args.topk_ids = bench->ids[call % NUM_CALLS];
    args.topk_weights = bench->topk_weights;
    args.output = bench->output;
    check(host->api->layer(bench->plan, &args, &error), &error);
}

static void run_sort(const struct bench *bench, int call, CUstream stream)
{
    struct moe_error error;
    struct moe_ep_preprocess_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = bench->num_tokens;
    args.call.stream = stream;
    args.call.workspace = bench->workspace;
    args.call.workspace_bytes = bench->workspace_bytes;
    args.topk_ids = bench->ids[call];
    args.seg_indptr = bench->seg_indptr[call];
    args.src2dst = bench->src2dst[call];
    check(host->api->ep_preprocess(bench->plan, &args, &error), &error);
}

static void run_gemm(const struct bench *bench, int call, int32_t which, CUstream stream)
{
    struct moe_error error;
    struct moe_grouped_gemm_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = bench->num_tokens;
    args.call.stream = stream;
    args.weights = bench->weights[call % bench->num_sets];
    args.which = which;
    args.input = which == MOE_GEMM_DOWN ? bench->middle : bench->rows;
    args.output = which == MOE_GEMM_DOWN ? bench->rows : bench->middle;
    args.num_rows = bench->num_routes;
    args.seg_indptr = bench->seg_indptr[call];
    check(host->api->grouped_gemm(bench->plan, &args, &error), &error);
}

static void run_combine(const struct bench *bench, int call, CUstream stream)
{
    struct moe_error error;
    struct moe_post_reorder_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = bench->num_tokens;
    args.call.stream = stream;
    args.rows = bench->rows;
    args.num_rows = bench->num_routes;
    args.src2dst = bench->src2dst[call];
    args.topk_weights = bench->topk_weights;
    args.output = bench->output;
    check(host->api->post_reorder(bench->plan, &args, &error), &error);
}

enum { STAGE_LAYER, STAGE_SORT, STAGE_GEMM1, STAGE_GEMM2, STAGE_COMBINE, NUM_STAGES };

struct recorded {
    const struct bench *bench;
    int stage;
};

static void record(void *self, CUstream stream)
{
    const struct recorded *recorded = self;
    for (int call = 0; call < NUM_CALLS; call++) {
        switch (recorded->stage) {
        case STAGE_LAYER:
            run_layer(recorded->bench, call, stream);
            break;
        case STAGE_SORT:
            run_sort(recorded->bench, call, stream);
            break;
        case STAGE_COMBINE:
            run_combine(recorded->bench, call, stream);
            break;
        default:
            run_gemm(recorded->bench, call,
                     recorded->stage == STAGE_GEMM1 ? MOE_GEMM_GATE_UP_ACT : MOE_GEMM_DOWN, stream);
            break;
        }
    }
}

static struct gpu_timing time_stage(const struct bench *bench, int stage)
{
    struct recorded recorded = {bench, stage};
    struct gpu_timing timing = gpu_time_graph(host->stream, record, &recorded, NUM_REPLAYS, 0);
    timing.median_us /= NUM_CALLS;
    timing.low_us /= NUM_CALLS;
    timing.high_us /= NUM_CALLS;
    return timing;
}

/* Host microseconds of a call that nothing waits for. */
static double time_host(const struct bench *bench)
{
    struct timespec begin, end;
    run_layer(bench, 0, host->stream);
    gpu_synchronize(host->stream);
    (void)timespec_get(&begin, TIME_UTC);
    for (int call = 0; call < NUM_HOST_CALLS; call++) {
        run_layer(bench, call, host->stream);
    }
    (void)timespec_get(&end, TIME_UTC);
    gpu_synchronize(host->stream);
    return ((double)(end.tv_sec - begin.tv_sec) * 1e6 +
            (double)(end.tv_nsec - begin.tv_nsec) / 1e3) /
           NUM_HOST_CALLS;
}

static void bench_tokens(struct bench *bench, int count_idx)
{
    const struct model *model = bench->model;
    struct gpu_timing timings[NUM_STAGES];
    struct moe_choice choice;
    MOE_INIT(choice);
    bench_set_tokens(bench, token_counts[count_idx]);
    for (int stage = 0; stage < NUM_STAGES; stage++) {
        timings[stage] = time_stage(bench, stage);
    }
    (void)host->api->plan_op_info(bench->plan, MOE_OP_GEMM1, bench->num_tokens, &choice, NULL);
    const double host_us = time_host(bench);
    const double us = timings[STAGE_LAYER].median_us;
    const double bytes = bench->active_experts * 3.0 * matrix_bytes(model) +
                         4.0 * (double)bench->num_tokens * model->hidden;
    const double flops = 6.0 * (double)bench->num_routes * model->hidden * model->inter;
    const double peer = model->peer_us[count_idx];
    printf(
        "%-17s T %5lld %6.1f experts %9.2f us (%.2f .. %.2f) %5.2f TB/s %6.1f TF, %5.1f %% of "
        "the read limit, %s%.2f; sort %.2f gemm1 %.2f gemm2 %.2f combine %.2f, host %.1f us, %s\n",
        model->name, (long long)bench->num_tokens, bench->active_experts, us,
        timings[STAGE_LAYER].low_us, timings[STAGE_LAYER].high_us, bytes / us / 1e6,
        flops / us / 1e6, 100.0 * bytes / read_rate / us, peer > 0.0 ? "peer/us " : "no peer ",
        peer / us, timings[STAGE_SORT].median_us, timings[STAGE_GEMM1].median_us,
        timings[STAGE_GEMM2].median_us, timings[STAGE_COMBINE].median_us, host_us,
        choice.tile_name);
    fflush(stdout);
    if (json != NULL) {
        fprintf(
            json,
            ",\n  {\"model\": \"%s\", \"tokens\": %lld, \"active_experts\": %.2f, \"us\": %.3f, "
            "\"low_us\": %.3f, \"high_us\": %.3f, \"bytes\": %.0f, \"flops\": %.0f, "
            "\"peer_us\": %.1f, \"sort_us\": %.3f, \"gemm1_us\": %.3f, \"gemm2_us\": %.3f, "
            "\"combine_us\": %.3f, \"host_us\": %.2f, \"tile\": \"%s\"}",
            model->name, (long long)bench->num_tokens, bench->active_experts, us,
            timings[STAGE_LAYER].low_us, timings[STAGE_LAYER].high_us, bytes, flops, peer,
            timings[STAGE_SORT].median_us, timings[STAGE_GEMM1].median_us,
            timings[STAGE_GEMM2].median_us, timings[STAGE_COMBINE].median_us, host_us,
            choice.tile_name);
    }
    bench_drop_tokens(bench);
}

/* GEMM1 and GEMM2 with every tile, to fit the cost model by. */
static void bench_tiles(struct bench *bench, int64_t num_tokens)
{
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; i < MAX_TILES && host->api->tile_info(i, &tile, NULL) == MOE_STATUS_OK;
         i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.op != MOE_OP_GEMM1 || !tile.built) {
            continue;
        }
        layer_force_tile(host, &tile);
        bench_set_tokens(bench, num_tokens);
        (void)time_stage(bench, STAGE_SORT);
        printf(
            "tile %-17s T %5lld %3d %3d %3d %2d %2d %2d: gemm1 %9.2f gemm2 %9.2f layer %9.2f us\n",
            bench->model->name, (long long)num_tokens, tile.block_size_m, tile.block_size_n,
            tile.block_size_k, tile.group_size_m, tile.num_warps, tile.num_stages,
            time_stage(bench, STAGE_GEMM1).median_us, time_stage(bench, STAGE_GEMM2).median_us,
            time_stage(bench, STAGE_LAYER).median_us);
        fflush(stdout);
        bench_drop_tokens(bench);
    }
    layer_force_tile(host, NULL);
}

struct limits {
    void *from;
    size_t bytes;
};

static void record_read(void *self, CUstream stream)
{
    const struct limits *limits = self;
    gpu_limits_read(stream, limits->from, limits->bytes);
}

static void measure_limit(void)
{
    struct limits limits = {.bytes = (size_t)4 << 30};
    limits.from = alloc_random(limits.bytes, 0);
    const double us = gpu_time_graph(host->stream, record_read, &limits, NUM_REPLAYS, 0).median_us;
    read_rate = (double)limits.bytes / us;
    printf("read limit %.3f TB/s\n", read_rate / 1e6);
    gpu_free(limits.from);
    if (json != NULL) {
        fprintf(json,
                "[\n  {\"device\": \"%s\", \"driver\": %d, \"source\": \"%s\", "
                "\"read_tbps\": %.3f}",
                host->device.name, host->device.driver_version, host->api->source_id,
                read_rate / 1e6);
    }
}

int layer_bench(const struct gpu_host *gpu, const char *json_path, const char *filter)
{
    const int all_tiles = strncmp(filter, "tiles:", 6) == 0;
    host = gpu;
    json = json_path != NULL ? fopen(json_path, "w") : NULL;
    measure_limit();
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        struct bench bench;
        if (strstr(models[m].name, all_tiles ? filter + 6 : filter) == NULL) {
            continue;
        }
        bench_init(&bench, &models[m]);
        for (int i = 0; i < NUM_COUNTS; i++) {
            if (all_tiles && token_counts[i] <= MAX_TILE_TOKENS) {
                bench_tiles(&bench, token_counts[i]);
            } else if (!all_tiles) {
                bench_tokens(&bench, i);
            }
        }
        bench_finish(&bench);
    }
    if (json != NULL) {
        fprintf(json, "\n]\n");
        fclose(json);
    }
    return 0;
}
