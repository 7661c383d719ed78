/* SPDX-License-Identifier: Apache-2.0 */
/* fp32 rows, and index arrays of sorts, beyond 2^31 bytes. The other operations and types get there
 * with the shapes of gpu_large.c. */
#include "gpu_large.h"

#include "gpu_limits.h"

#include <string.h>

enum { ALIGN_BLOCK = BENCH_ALIGN_BLOCK };

/* A call's plan, and workspace for it. */
struct offsets_plan {
    struct moe_plan *plan;
    void *workspace;
    struct moe_call call;
};

static void plan_init(struct offsets_plan *own, const struct moe_problem *problem, int32_t op)
{
    struct moe_error error;
    struct moe_plan_options options;
    struct moe_plan_info info;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(info);
    options.ops = UINT64_C(1) << op;
    gpu_host_check(
        bench_host.api->plan_create(bench_host.cuda, problem, &options, &own->plan, &error), &error,
        LARGE_OFFSETS);
    gpu_host_check(bench_host.api->plan_info(own->plan, &info, &error), &error, LARGE_OFFSETS);
    own->workspace = info.workspace_bytes > 0 ? gpu_alloc(info.workspace_bytes) : NULL;
    memset(&own->call, 0, sizeof(own->call));
    own->call.num_tokens = problem->max_tokens;
    own->call.stream = bench_host.stream;
    own->call.workspace = own->workspace;
    own->call.workspace_bytes = info.workspace_bytes;
}

static void plan_finish(struct offsets_plan *own)
{
    gpu_synchronize(bench_host.stream);
    gpu_free(own->workspace);
    bench_host.api->plan_destroy(own->plan);
}

#define BEGIN(args, own)                                                    \
    (MOE_INIT_CALL(args), (own).call.struct_size = (args).call.struct_size, \
     (args).call = (own).call)

/* What a kernel of gpu_reference.cu counts. `seen`: check_align's; NULL: none. */
static unsigned long long count_wrong(const char *kernel, void **args, void *seen,
                                      size_t seen_bytes)
{
    int64_t num_routes = (int64_t)(seen_bytes / 4);
    large_begin();
    if (seen != NULL) {
        gpu_poison(seen, 0, seen_bytes);
    }
    large_run(kernel, args);
    if (seen != NULL) {
        LARGE_RUN("check_seen", &seen, &num_routes, &large_num_wrong);
    }
    return large_end();
}

/* The verdict on an output, and that a changed word behind 2^31 bytes is noticed. */
static void check_output(const char *what, const char *kernel, void **args, void *output,
                         size_t bytes, void *seen)
{
    const unsigned long long count = count_wrong(kernel, args, seen, bytes);
    large_expect(count == 0, LARGE_OFFSETS, what, "outputs are wrong", count);
    large_flip(output, bytes);
    large_expect(count_wrong(kernel, args, seen, bytes) > 0, LARGE_OFFSETS, what,
                 "the check does not notice a changed word", 0);
    large_flip(output, bytes);
    printf("%-16s %s, %.2f GB of output, %llu wrong\n", LARGE_OFFSETS, what, 1e-9 * (double)bytes,
           count);
    fflush(stdout);
}

#define CHECK_OUTPUT(what, kernel, output, bytes, seen, ...) \
    check_output(what, kernel, (void *[]){__VA_ARGS__, &large_num_wrong}, output, bytes, seen)

static void check_fp32_rows(void)
{
    struct moe_error error;
    struct moe_problem problem;
    struct offsets_plan own;
    int64_t num_tokens = 80000, top_k = 4, hidden = 7168, num_units = 2 * hidden;
    int64_t num_routes = num_tokens * top_k, factor = 7919;
    const size_t token_words = (size_t)(num_tokens * hidden);
    const size_t row_words = (size_t)(num_routes * hidden);
    int32_t kind = GPU_FILL_FP32;
    void *tokens = gpu_alloc(token_words * 4), *rows = gpu_alloc(row_words * 4);
    void *src2dst = gpu_alloc((size_t)num_routes * 4), *weights = gpu_alloc((size_t)num_routes * 4);
    void *output = gpu_alloc(token_words * 4), *unwanted = NULL;
    MOE_INIT(error);
    MOE_INIT(problem);
    problem.num_experts = problem.top_k = (int32_t)top_k;
    problem.hidden = (int32_t)hidden;
    problem.max_tokens = num_tokens;
    problem.tokens.dtype = MOE_DTYPE_FP32;
    gpu_fill_random(bench_host.stream, tokens, token_words, 5, 1);
    gpu_fill_random(bench_host.stream, weights, (size_t)num_routes, 6, 1);
    LARGE_RUN("fill_permutation", &src2dst, &num_routes, &factor);

    struct moe_pre_reorder_args pre;
    plan_init(&own, &problem, MOE_OP_PRE_REORDER);
    BEGIN(pre, own);
    pre.tokens = tokens;
    pre.src2dst = src2dst;
    pre.rows = rows;
    pre.num_rows = num_routes;
    gpu_host_check(bench_host.api->pre_reorder(own.plan, &pre, &error), &error, "pre_reorder");
    plan_finish(&own);
    CHECK_OUTPUT("pre_reorder fp32", "check_pre_reorder", rows, row_words * 4, NULL, &tokens,
                 &src2dst, &rows, &num_tokens, &top_k, &num_units);

    struct moe_post_reorder_args post;
    plan_init(&own, &problem, MOE_OP_POST_REORDER);
    BEGIN(post, own);
    post.rows = rows;
    post.num_rows = num_routes;
    post.src2dst = src2dst;
    post.topk_weights = weights;
    post.output = output;
    gpu_host_check(bench_host.api->post_reorder(own.plan, &post, &error), &error, "post_reorder");
    plan_finish(&own);
    CHECK_OUTPUT("post_reorder fp32", "check_combine", output, token_words * 4, NULL, &rows, &kind,
                 &src2dst, &weights, &output, &num_tokens, &top_k, &hidden, &unwanted);

    struct moe_sum_reduce_args sum;
    plan_init(&own, &problem, MOE_OP_SUM_REDUCE);
    BEGIN(sum, own);
    sum.input = rows;
    sum.output = output;
    gpu_host_check(bench_host.api->sum_reduce(own.plan, &sum, &error), &error, "sum_reduce");
    plan_finish(&own);
    CHECK_OUTPUT("sum_reduce fp32", "check_combine", output, token_words * 4, NULL, &rows, &kind,
                 &unwanted, &unwanted, &output, &num_tokens, &top_k, &hidden, &unwanted);
    void *all[] = {tokens, rows, src2dst, weights, output};
    for (int i = 0; i < 5; i++) {
        gpu_free(all[i]);
    }
}

static void check_sorts(void)
{
    struct moe_error error;
    struct moe_problem problem;
    struct offsets_plan own;
    int64_t num_tokens = 67500000, top_k = 8, num_experts = 256, block = ALIGN_BLOCK;
    int64_t num_routes = num_tokens * top_k, alignment = 1, max_masked_rows = 0;
    int64_t sorted_capacity = 0, expert_capacity = 0;
    const size_t route_bytes = (size_t)num_routes * 4;
    void *ids = gpu_alloc(route_bytes), *first = gpu_alloc(route_bytes), *unwanted = NULL;
    void *counts = large_zeros((size_t)num_experts * 4), *seen = gpu_alloc(route_bytes);
    MOE_INIT(error);
    MOE_INIT(problem);
    problem.num_experts = (int32_t)num_experts;
    problem.top_k = (int32_t)top_k;
    problem.max_tokens = num_tokens;
    gpu_host_check(bench_host.api->align_capacity(num_routes, problem.num_experts, ALIGN_BLOCK,
                                                  MOE_FILTER_DROP, &sorted_capacity,
                                                  &expert_capacity, &error),
                   &error, "align_capacity");
    void *second = gpu_alloc((size_t)sorted_capacity * 4);
    void *experts = gpu_alloc((size_t)expert_capacity * 4), *post_pad = gpu_alloc(4);
    void *indptr = gpu_alloc(((size_t)num_experts + 1) * 8);
    LARGE_RUN("fill_ids", &ids, &num_routes, &num_experts);
    LARGE_RUN("count_routes", &ids, &unwanted, &num_routes, &counts);

    struct moe_ep_preprocess_args ep;
    plan_init(&own, &problem, MOE_OP_EP_PREPROCESS);
    BEGIN(ep, own);
    ep.topk_ids = ids;
    ep.seg_indptr = indptr;
    ep.src2dst = first;
    ep.dst2src = second;
    ep.row_capacity = num_routes;
    gpu_host_check(bench_host.api->ep_preprocess(own.plan, &ep, &error), &error, "ep_preprocess");
    plan_finish(&own);
    CHECK_OUTPUT("ep_preprocess", "check_segments", second, route_bytes, NULL, &ids, &unwanted,
                 &counts, &indptr, &first, &second, &unwanted, &unwanted, &unwanted, &num_routes,
                 &num_experts, &alignment, &max_masked_rows, &num_routes);

    struct moe_align_args align;
    plan_init(&own, &problem, MOE_OP_ALIGN_BLOCK_SIZE);
    BEGIN(align, own);
    align.topk_ids = ids;
    align.block_size = ALIGN_BLOCK;
    align.sorted_ids = second;
    align.sorted_capacity = sorted_capacity;
    align.expert_ids = experts;
    align.expert_capacity = expert_capacity;
    align.num_tokens_post_pad = post_pad;
    gpu_host_check(bench_host.api->align_block_size(own.plan, &align, &error), &error, "align");
    plan_finish(&own);
    CHECK_OUTPUT("align_block_size", "check_align", second, route_bytes, seen, &ids, &counts,
                 &second, &experts, &post_pad, &num_routes, &num_experts, &block, &sorted_capacity,
                 &expert_capacity, &seen);
    void *all[] = {ids, first, second, counts, seen, experts, post_pad, indptr};
    for (int i = 0; i < 8; i++) {
        gpu_free(all[i]);
    }
}

void large_check_offsets(void)
{
    check_fp32_rows();
    check_sorts();
}
