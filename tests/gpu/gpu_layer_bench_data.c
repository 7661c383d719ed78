/* SPDX-License-Identifier: Apache-2.0 */
/* The data of gpu_layer bench: sets of weights, routes by popularity, random bits elsewhere. */
#include "gpu_layer_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MANY_TOKENS = 1024, FEW_CALLS = 4 }; /* beyond so many tokens a graph has few calls */
#define ROTATION_BYTES ((size_t)1 << 30)

static uint64_t seed = 1;

double bench_matrix_bytes(const struct bench_model *model)
{
    return 2.0 * model->hidden * model->inter;
}

static void *alloc_random(const struct bench *bench, size_t bytes, int32_t dtype)
{
    void *memory = gpu_alloc(bytes + 16);
    if (dtype == MOE_DTYPE_FP16) {
        gpu_fill_random_fp16(bench->host->stream, memory, (bytes + 3) / 4, gpu_random(&seed));
    } else {
        gpu_fill_random(bench->host->stream, memory, (bytes + 3) / 4, gpu_random(&seed),
                        dtype == MOE_DTYPE_FP32);
    }
    return memory;
}

static void check(int32_t status, const struct moe_error *error)
{
    gpu_host_check(status, error, "bench");
}

/* [E, 2I, H] and [E, H, I] behind it; transposed [E, H, 2I] and [E, I, H]. */
static void bind_set(struct bench *bench, int set)
{
    const struct bench_model *model = bench->model;
    const int64_t hidden = model->hidden, inter = model->inter;
    const size_t experts = (size_t)model->num_experts;
    struct moe_error error;
    struct moe_weights_desc desc;
    MOE_INIT(error);
    MOE_INIT(desc);
    bench->matrices[set] =
        alloc_random(bench, (size_t)(3.0 * bench_matrix_bytes(model)) * experts, bench->dtype);
    char *base = bench->matrices[set];
    desc.gate.base = base;
    desc.gate.expert_stride = 2 * inter * hidden;
    desc.gate.row_stride = hidden;
    desc.gate.col_stride = 1;
    if (bench->layout != LAYER_FUSED) {
        desc.gate.row_stride = bench->layout == LAYER_PAIRED ? 2 : 1;
        desc.gate.col_stride = 2 * inter;
    }
    desc.up = desc.gate;
    desc.up.base = base + 2 * (bench->layout == LAYER_PAIRED       ? 1
                               : bench->layout == LAYER_TRANSPOSED ? inter
                                                                   : inter * hidden);
    desc.down.base = base + (size_t)(2.0 * bench_matrix_bytes(model)) * experts;
    desc.down.expert_stride = inter * hidden;
    desc.down.row_stride = bench->layout == LAYER_FUSED ? inter : 1;
    desc.down.col_stride = bench->layout == LAYER_FUSED ? 1 : hidden;
    check(bench->host->api->weights_bind(bench->host->cuda, &bench->problem, &desc, NULL, 0,
                                         &bench->weights[set], &error),
          &error);
}

/* Running sums of the experts' popularity, 1 / (e + 1)^zipf. */
static double *sum_popularity(const struct bench *bench)
{
    double *sums = malloc((size_t)bench->model->num_experts * sizeof(*sums));
    double sum = 0.0;
    for (int32_t e = 0; e < bench->model->num_experts; e++) {
        sum += pow((double)e + 1.0, -bench->zipf);
        sums[e] = sum;
    }
    return sums;
}

static int32_t draw_expert(const double *sums, int32_t num_experts)
{
    const double at = ((double)(gpu_random(&seed) >> 11) + 1.0) * 0x1p-53 * sums[num_experts - 1];
    int32_t low = 0, high = num_experts - 1;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (sums[middle] < at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* k distinct experts per token; the number of experts that any token meets. */
static int draw_ids(const struct bench *bench, int32_t *ids)
{
    const struct bench_model *model = bench->model;
    char *met = calloc((size_t)model->num_experts, 1);
    double *sums = sum_popularity(bench);
    int num_met = 0;
    for (int64_t t = 0; t < bench->num_tokens; t++) {
        int32_t *own = ids + t * model->top_k;
        for (int32_t j = 0; j < model->top_k; j++) {
            int32_t i;
            do {
                own[j] = draw_expert(sums, model->num_experts);
                for (i = 0; i < j && own[i] != own[j]; i++) {
                }
            } while (i < j);
            num_met += met[own[j]] == 0;
            met[own[j]] = 1;
        }
    }
    free(sums);
    free(met);
    return num_met;
}

static void make_ids(struct bench *bench)
{
    const size_t bytes = (size_t)bench->num_routes * 4;
    int32_t *ids = malloc(bytes);
    int num_met = 0;
    for (int i = 0; i < BENCH_NUM_CALLS; i++) {
        num_met += draw_ids(bench, ids);
        bench->ids[i] = gpu_alloc(bytes);
        bench->src2dst[i] = gpu_alloc(bytes);
        bench->seg_indptr[i] = gpu_alloc(((size_t)bench->model->num_experts + 1) * 8);
        gpu_upload(bench->ids[i], ids, bytes);
    }
    bench->active_experts = (double)num_met / BENCH_NUM_CALLS;
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
    check(bench->host->api->plan_create(bench->host->cuda, &bench->problem, &options, &bench->plan,
                                        &error),
          &error);
    check(bench->host->api->plan_info(bench->plan, &info, &error), &error);
    bench->workspace_bytes = info.workspace_bytes;
    bench->workspace = gpu_alloc(info.workspace_bytes);
}

static void free_plan(struct bench *bench)
{
    bench->host->api->plan_destroy(bench->plan);
    gpu_free(bench->workspace);
}

void bench_init(struct bench *bench, const struct gpu_host *host, const struct bench_model *model,
                int32_t dtype, int32_t layout)
{
    const double set_bytes = 3.0 * bench_matrix_bytes(model) * model->num_experts;
    memset(bench, 0, sizeof(*bench));
    bench->host = host;
    bench->model = model;
    bench->dtype = dtype;
    bench->layout = layout;
    MOE_INIT(bench->problem);
    bench->problem.num_experts = model->num_experts;
    bench->problem.top_k = model->top_k;
    bench->problem.hidden = model->hidden;
    bench->problem.inter = model->inter;
    bench->problem.activation = MOE_ACTIVATION_SILU;
    bench->problem.tokens.dtype = dtype;
    bench->problem.gate_up.dtype = dtype;
    bench->problem.down.dtype = dtype;
    bench->problem.max_tokens = 1;
    bench->num_sets = (int)((double)ROTATION_BYTES / set_bytes) + 1;
    bench->num_sets = bench->num_sets < BENCH_MAX_SETS ? bench->num_sets : BENCH_MAX_SETS;
    for (int set = 0; set < bench->num_sets; set++) {
        bind_set(bench, set);
    }
}

void bench_set_tokens(struct bench *bench, int64_t num_tokens, double zipf)
{
    const size_t routes = (size_t)num_tokens * (size_t)bench->model->top_k;
    const size_t row_bytes = (size_t)bench->model->hidden * 2;
    bench->zipf = zipf;
    bench->num_calls = num_tokens <= MANY_TOKENS ? BENCH_NUM_CALLS : FEW_CALLS;
    bench->num_tokens = num_tokens;
    bench->num_routes = (int64_t)routes;
    bench->problem.max_tokens = num_tokens;
    make_plan(bench);
    make_ids(bench);
    bench->tokens = alloc_random(bench, (size_t)num_tokens * row_bytes, bench->dtype);
    bench->topk_weights = alloc_random(bench, routes * 4, MOE_DTYPE_FP32);
    bench->output = gpu_alloc((size_t)num_tokens * row_bytes);
    bench->rows = alloc_random(bench, routes * row_bytes, bench->dtype);
    bench->middle = alloc_random(bench, routes * (size_t)bench->model->inter * 2, bench->dtype);
    gpu_synchronize(bench->host->stream);
}

void bench_drop_tokens(struct bench *bench)
{
    void *all[] = {bench->tokens, bench->topk_weights, bench->output, bench->rows, bench->middle};
    free_plan(bench);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_free(all[i]);
    }
    for (int i = 0; i < BENCH_NUM_CALLS; i++) {
        gpu_free(bench->ids[i]);
        gpu_free(bench->src2dst[i]);
        gpu_free(bench->seg_indptr[i]);
    }
}

void bench_finish(struct bench *bench)
{
    for (int set = 0; set < bench->num_sets; set++) {
        bench->host->api->weights_destroy(bench->weights[set]);
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
    args.topk_ids = bench->ids[call % BENCH_NUM_CALLS];
    args.topk_weights = bench->topk_weights;
    args.output = bench->output;
    check(bench->host->api->layer(bench->plan, &args, &error), &error);
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
    check(bench->host->api->ep_preprocess(bench->plan, &args, &error), &error);
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
    check(bench->host->api->grouped_gemm(bench->plan, &args, &error), &error);
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
    check(bench->host->api->post_reorder(bench->plan, &args, &error), &error);
}

void bench_run(const struct bench *bench, int stage, int call, CUstream stream)
{
    switch (stage) {
    case STAGE_LAYER:
        run_layer(bench, call, stream);
        break;
    case STAGE_SORT:
        run_sort(bench, call, stream);
        break;
    case STAGE_COMBINE:
        run_combine(bench, call, stream);
        break;
    default:
        run_gemm(bench, call, stage == STAGE_GEMM1 ? MOE_GEMM_GATE_UP_ACT : MOE_GEMM_DOWN, stream);
        break;
    }
}
