/* SPDX-License-Identifier: Apache-2.0 */
/* The data of gpu_bench: routes drawn by popularity, everything else random bits of moderate
 * size. */
#include "gpu_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NUM_DRAWS = 4 }; /* different routes; sets take them in turn */

static uint64_t seed = 7;
static int is_refused[MOE_NUM_OPS]; /* no kernel: said once */

/* (0, 1] */
static double draw_unit(void)
{
    return ((double)(gpu_random(&seed) >> 11) + 1.0) * 0x1p-53;
}

/* An expert by its popularity: `sums` are running sums of the weights. */
static int32_t draw_expert(const double *sums, int32_t num_experts)
{
    const double at = draw_unit() * sums[num_experts - 1];
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

/* k distinct experts per token; with a Zipf exponent, expert e is drawn with weight
 * 1 / (e + 1)^exponent. */
static int32_t *draw_ids(const struct bench *bench)
{
    const int64_t num_tokens = bench->num_tokens;
    const int32_t top_k = bench->top_k, num_experts = bench->num_experts;
    int32_t *ids = malloc((size_t)(num_tokens * top_k) * sizeof(*ids));
    double *sums = malloc((size_t)num_experts * sizeof(*sums));
    double sum = 0.0;
    for (int32_t e = 0; e < num_experts; e++) {
        sum += pow((double)e + 1.0, -bench->zipf);
        sums[e] = sum;
    }
    for (int64_t t = 0; t < num_tokens; t++) {
        int32_t *chosen = ids + t * top_k;
        for (int32_t j = 0; j < top_k; j++) {
            int is_new = 0;
            while (!is_new) {
                chosen[j] = draw_expert(sums, num_experts);
                is_new = 1;
                for (int32_t i = 0; i < j; i++) {
                    is_new &= chosen[i] != chosen[j];
                }
            }
        }
    }
    free(sums);
    return ids;
}

/* Random bf16 bits between 2^-7 and 2^5, any sign; `num_elements` are rounded up to 8. */
static void *make_elements(double num_elements)
{
    const size_t bytes = ((size_t)num_elements * 2 + 15) / 16 * 16;
    void *memory = gpu_alloc(bytes);
    gpu_fill_random(bench_host.stream, memory, bytes / 4, gpu_random(&seed), 0);
    return memory;
}

/* Random fp32 of the same kind. */
static void *make_floats(double num_elements)
{
    const size_t words = (size_t)num_elements + 4;
    void *memory = gpu_alloc(words * 4);
    gpu_fill_random(bench_host.stream, memory, words, gpu_random(&seed), 1);
    return memory;
}

static void make_set(const struct bench *bench, const int32_t *ids, struct bench_set *set)
{
    const int64_t num_routes = bench->num_tokens * bench->top_k;
    const size_t route_words = (size_t)num_routes * 4;
    const double tokens = (double)bench->num_tokens, routes = (double)num_routes;
    const double wide = bench->hidden > bench->inter ? bench->hidden : bench->inter;
    const int32_t op = bench->op->op;
    struct moe_error error;
    MOE_INIT(error);
    memset(set, 0, sizeof(*set));
    set->ids = gpu_alloc(route_words);
    gpu_upload(set->ids, ids, route_words);
    gpu_host_check(bench_host.api->align_capacity(num_routes, bench->num_experts, BENCH_ALIGN_BLOCK,
                                                  MOE_FILTER_DROP, &set->sorted_capacity,
                                                  &set->expert_capacity, &error),
                   &error, "align_capacity");
    set->sorted = gpu_alloc((size_t)set->sorted_capacity * 4);
    set->experts = gpu_alloc((size_t)set->expert_capacity * 4);
    set->post_pad = gpu_alloc(4);
    set->indptr = gpu_alloc(((size_t)bench->num_experts + 1) * 8);
    set->src2dst = gpu_alloc(route_words);
    set->dst2src = gpu_alloc(route_words);
    set->reorder = gpu_alloc(route_words);
    set->gated_ids = gpu_alloc(route_words);
    set->gated_weights = gpu_alloc(route_words);
    if (op == MOE_OP_GATING || op == MOE_OP_ROUTE) {
        set->logits = make_floats(tokens * bench->num_experts);
    }
    if (!bench->op->has_rows) {
        return;
    }
    set->weights = make_floats(routes);
    if (op == MOE_OP_ACTIVATION) {
        set->gate_up = make_elements(2.0 * routes * bench->inter);
    } else {
        set->tokens = make_elements(tokens * bench->hidden);
        set->output = make_elements(tokens * bench->hidden);
    }
    if (op == MOE_OP_POST_REORDER || op == MOE_OP_SUM_REDUCE || op == MOE_OP_PRE_REORDER) {
        set->rows = make_elements(routes * bench->hidden);
    }
    if (op == MOE_OP_ACTIVATION || op == MOE_OP_QUANTIZE || op == MOE_OP_PRE_REORDER) {
        set->quantized = gpu_alloc((size_t)(2.0 * routes * wide));
        set->scales = gpu_alloc((size_t)(routes * (wide / BENCH_QUANTIZE_GROUP + 1.0) * 4.0));
    }
}

int bench_make_plan(struct bench *bench, const struct moe_problem *problem)
{
    struct moe_error error;
    struct moe_plan_options options;
    struct moe_plan_info info;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(info);
    options.ops = UINT64_C(1) << bench->op->op;
    const int32_t status =
        bench_host.api->plan_create(bench_host.cuda, problem, &options, &bench->plan, &error);
    if (status == MOE_STATUS_UNSUPPORTED) {
        if (!is_refused[bench->op->op]++) {
            printf("%-15s not measured: %s\n", bench->op->name, error.message);
        }
        return 0;
    }
    gpu_host_check(status, &error, bench->op->name);
    gpu_host_check(bench_host.api->plan_info(bench->plan, &info, &error), &error, "plan_info");
    bench->workspace_bytes = info.workspace_bytes;
    bench->workspace = info.workspace_bytes > 0 ? gpu_alloc(info.workspace_bytes) : NULL;
    return 1;
}

void bench_drop_plan(struct bench *bench)
{
    gpu_free(bench->workspace);
    bench_host.api->plan_destroy(bench->plan);
}

void bench_describe(const struct bench *bench, struct moe_problem *problem)
{
    MOE_INIT(*problem);
    problem->num_experts = bench->num_experts;
    problem->top_k = bench->top_k;
    problem->hidden = bench->hidden;
    problem->inter = bench->inter;
    problem->max_tokens = bench->num_tokens;
    problem->tokens.dtype = MOE_DTYPE_BF16;
    problem->activation = MOE_ACTIVATION_SILU;
    problem->gating = MOE_GATING_SOFTMAX;
    problem->flags = MOE_PROBLEM_RENORMALIZE;
    problem->logits_dtype = MOE_DTYPE_FP32;
}

/* Destinations by ep_preprocess itself. */
static void make_destinations(struct bench *bench, const struct moe_problem *problem)
{
    static struct bench sort;
    sort = *bench;
    for (int i = 0; i < bench_num_ops; i++) {
        sort.op = bench_ops[i].op == MOE_OP_EP_PREPROCESS ? &bench_ops[i] : sort.op;
    }
    if (!bench_make_plan(&sort, problem)) {
        return;
    }
    for (int i = 0; i < bench->num_sets; i++) {
        bench_run(&sort, &bench->sets[i], bench_host.stream);
    }
    gpu_synchronize(bench_host.stream);
    bench_drop_plan(&sort);
}

void bench_make_sets(struct bench *bench, const struct moe_problem *problem)
{
    int32_t *ids[NUM_DRAWS] = {NULL};
    for (int i = 0; i < bench->num_sets; i++) {
        if (ids[i % NUM_DRAWS] == NULL) {
            ids[i % NUM_DRAWS] = draw_ids(bench);
        }
        make_set(bench, ids[i % NUM_DRAWS], &bench->sets[i]);
    }
    for (int i = 0; i < NUM_DRAWS; i++) {
        free(ids[i]);
    }
    make_destinations(bench, problem);
}

void bench_free_sets(struct bench *bench)
{
    for (int i = 0; i < bench->num_sets; i++) {
        const struct bench_set *set = &bench->sets[i];
        void *all[] = {set->tokens,   set->rows,      set->output,       set->logits,  set->gate_up,
                       set->scales,   set->quantized, set->ids,          set->weights, set->src2dst,
                       set->dst2src,  set->indptr,    set->reorder,      set->sorted,  set->experts,
                       set->post_pad, set->gated_ids, set->gated_weights};
        for (size_t j = 0; j < sizeof(all) / sizeof(all[0]); j++) {
            gpu_free(all[j]);
        }
    }
}
