/* SPDX-License-Identifier: Apache-2.0 */
/* A random call of layer, experts or grouped_gemm: ids of any traffic and filter, rows in any of
 * three forms, strides, destinations in place, fewer tokens on the device than on the host. */
#include "gpu_random.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 600, LARGE_TOKENS = 65536, MAX_ELEMENTS = 4000000 };
static const int64_t max_work = 400000000; /* multiply-adds of a call */

static int64_t most_tokens(const struct random_case *test)
{
    const struct moe_problem *problem = &test->problem;
    const int64_t width =
        test->op == RANDOM_LAYER
            ? (int64_t)2 * problem->hidden
            : (int64_t)problem->top_k * (2 * (int64_t)problem->inter + problem->hidden);
    const int64_t work = (int64_t)3 * problem->hidden *
                         ((int64_t)problem->inter * problem->top_k + problem->shared_inter);
    const int64_t by_work = max_work / work, by_width = MAX_ELEMENTS / width;
    const int64_t most = by_work < by_width ? by_work : by_width;
    return most < MAX_TOKENS ? most : MAX_TOKENS;
}

static int64_t draw_tokens(const struct random_case *test, uint64_t *seed)
{
    const int64_t most = most_tokens(test);
    if (RANDOM_IS_LARGE(test->seed)) {
        return LARGE_TOKENS - random_draw(seed, 0, 1) * random_draw(seed, 1, 200);
    }
    if (random_draw(seed, 0, 11) == 0) {
        return 0;
    }
    return random_draw(seed, 1, random_draw(seed, 0, 1) != 0 || most < 40 ? most : 40);
}

/* All ids, a range, a map, or both. */
static void draw_filter(const struct random_case *test, struct random_arena *arena, uint64_t *seed,
                        struct moe_route_filter *filter)
{
    const int32_t num_ids = test->problem.num_experts_global;
    const int32_t num_experts = test->problem.num_experts;
    const int kind = (int)random_draw(seed, 0, 3);
    memset(filter, 0, sizeof(*filter));
    if ((kind & 1) != 0) {
        filter->expert_begin = (int32_t)random_draw(seed, 0, num_ids - num_experts);
        filter->expert_end = filter->expert_begin + num_experts;
    }
    if ((kind & 2) != 0) {
        int32_t *map = random_take(arena, num_ids, sizeof(*map));
        for (int32_t id = 0; id < num_ids; id++) {
            map[id] =
                random_draw(seed, 0, 3) == 0 ? -1 : (int32_t)random_draw(seed, 0, num_experts + 1);
        }
        filter->expert_map = map;
    }
}

enum { UNIFORM, HOT, FEW, FILTERED, ANYTHING, NUM_TRAFFICS };

static int64_t draw_id(uint64_t *seed, int traffic, int64_t num_ids, int64_t slot, int64_t top_k)
{
    switch (traffic) {
    case HOT:
        return slot == 0 ? num_ids / 2 : random_draw(seed, 0, num_ids - 1);
    case FEW:
        return random_draw(seed, 0, (2 * top_k < num_ids ? 2 * top_k : num_ids) - 1);
    case FILTERED:
        return random_draw(seed, 0, 1) != 0 ? -1 : num_ids + slot;
    case ANYTHING:
        return random_draw(seed, 0, 9) == 0 ? INT32_MAX : random_draw(seed, -3, num_ids + 2);
    default:
        return random_draw(seed, 0, num_ids - 1);
    }
}

static int has_id(const int64_t *ids, int64_t count, int64_t id)
{
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] == id) {
            return 1;
        }
    }
    return 0;
}

/* Distinct ids of a token, but where anything goes. */
static void *draw_ids(const struct random_case *test, struct random_arena *arena, uint64_t *seed,
                      int64_t num_tokens, int32_t *ids_dtype)
{
    const int64_t top_k = test->problem.top_k, num_ids = test->problem.num_experts_global;
    const int traffic = (int)random_draw(seed, 0, NUM_TRAFFICS - 1);
    const int is_distinct = traffic != FILTERED && traffic != ANYTHING;
    const int is_wide = random_draw(seed, 0, 1) != 0;
    void *ids = random_take(arena, num_tokens * top_k, is_wide ? 8 : 4);
    int64_t token[64];
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t j = 0; j < top_k; j++) {
            do {
                token[j] = draw_id(seed, traffic, num_ids, j, top_k);
            } while (is_distinct && has_id(token, j, token[j]));
            if (is_wide) {
                ((int64_t *)ids)[t * top_k + j] = token[j];
            } else {
                ((int32_t *)ids)[t * top_k + j] = (int32_t)token[j];
            }
        }
    }
    *ids_dtype = is_wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
    return ids;
}

static struct random_output take_output(struct random_arena *arena, int64_t num_rows,
                                        int64_t num_columns, int64_t stride, int32_t dtype)
{
    const size_t element_bytes = random_dtype_bytes(dtype);
    const struct random_output output = {random_take(arena, num_rows * stride, element_bytes),
                                         num_rows,
                                         num_columns,
                                         stride,
                                         dtype,
                                         element_bytes};
    return output;
}

/* Ids and weights are given, or logits; then they may be wanted. */
static void draw_routing(struct random_case *test, struct random_arena *arena, uint64_t *seed)
{
    const struct moe_problem *problem = &test->problem;
    struct moe_layer_args *args = &test->layer;
    const int64_t num_tokens = test->num_tokens, top_k = problem->top_k;
    draw_filter(test, arena, seed, &args->filter);
    if (problem->gating == MOE_GATING_NONE || random_draw(seed, 0, 3) == 0) {
        args->topk_ids = draw_ids(test, arena, seed, num_tokens, &args->ids_dtype);
        args->topk_weights = random_tensor(arena, seed, num_tokens * top_k, MOE_DTYPE_FP32, 1.0);
        return;
    }
    args->logits_stride = problem->num_experts_global + random_draw(seed, 0, 3);
    args->logits =
        random_tensor(arena, seed, num_tokens * args->logits_stride, MOE_DTYPE_FP32, 3.0);
    if (random_draw(seed, 0, 1) != 0) {
        const int is_wide = random_draw(seed, 0, 1) != 0;
        test->outputs[1] = take_output(arena, num_tokens, top_k, top_k, MOE_DTYPE_FP32);
        test->outputs[2] = test->outputs[1];
        test->outputs[2].dtype = 0;
        test->outputs[2].element_bytes = is_wide ? 8 : 4;
        test->outputs[2].at = random_take(arena, num_tokens * top_k, is_wide ? 8 : 4);
        args->ids_dtype = is_wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
        args->topk_weights_out = (float *)(void *)test->outputs[1].at;
        args->topk_ids_out = test->outputs[2].at;
    }
}

static void draw_layer(struct random_case *test, struct random_arena *arena, uint64_t *seed)
{
    const struct moe_problem *problem = &test->problem;
    const int64_t num_tokens = test->num_tokens, hidden = problem->hidden;
    const int32_t dtype = problem->output_dtype;
    struct moe_layer_args *args = &test->layer;
    MOE_INIT_CALL(*args);
    draw_routing(test, arena, seed);
    args->call.num_tokens = num_tokens;
    args->token_stride = hidden + 8 * random_draw(seed, 0, 2);
    args->tokens =
        random_tensor(arena, seed, num_tokens * args->token_stride, problem->tokens.dtype, 1.7);
    const int has_residual = random_draw(seed, 0, 1) != 0;
    int64_t stride = hidden + random_draw(seed, 0, 5);
    if (has_residual) {
        args->residual_stride = stride;
        args->residual = random_tensor(arena, seed, num_tokens * stride, dtype, 1.0);
    }
    const int place = (int)random_draw(seed, 0, 3);
    test->outputs[0] =
        (struct random_output){NULL, num_tokens, hidden, stride, dtype, random_dtype_bytes(dtype)};
    if (place == 0 && has_residual) {
        test->outputs[0].at = (unsigned char *)(uintptr_t)args->residual;
    } else if (place == 1 && dtype == problem->tokens.dtype) {
        test->outputs[0].at = (unsigned char *)(uintptr_t)args->tokens;
        test->outputs[0].stride = args->token_stride;
    } else {
        test->outputs[0] = take_output(arena, num_tokens, hidden, stride, dtype);
    }
    args->output = test->outputs[0].at;
    args->output_stride = test->outputs[0].stride;
    test->num_real_tokens = num_tokens;
    if (num_tokens > 0 && random_draw(seed, 0, 3) == 0) {
        int32_t *count = random_take(arena, 1, sizeof(*count));
        test->num_real_tokens = random_draw(seed, 0, num_tokens);
        *count = (int32_t)test->num_real_tokens;
        args->call.num_tokens_device = count;
    }
}

/* Ends of segments, some empty, with rows in front of and behind them; how many rows there are. */
static int64_t draw_segments(const struct random_case *test, uint64_t *seed, int64_t *segments)
{
    const int32_t num_experts = test->problem.num_experts;
    const int64_t num_routes = test->num_tokens * test->problem.top_k;
    segments[0] = num_routes > 0 ? random_draw(seed, 0, 2) % num_routes : 0;
    for (int32_t e = 0; e < num_experts; e++) {
        const int64_t left = num_routes - segments[e];
        const int64_t most = random_draw(seed, 0, 7) == 0 ? left : 2 * num_routes / num_experts + 1;
        const int64_t count = random_draw(seed, 0, 3) == 0 ? 0 : random_draw(seed, 0, most);
        segments[e + 1] = segments[e] + (count < left ? count : left);
    }
    return num_routes;
}

/* Counts of a masked layout, some out of range; rows per expert. */
static int64_t draw_counts(const struct random_case *test, uint64_t *seed, int32_t *counts)
{
    const int32_t num_experts = test->problem.num_experts;
    const int64_t num_routes = test->num_tokens * test->problem.top_k;
    const int64_t most = num_routes / num_experts < 1 ? 1 : num_routes / num_experts;
    for (int32_t e = 0; e < num_experts; e++) {
        counts[e] = (int32_t)random_draw(seed, -1, most + 2);
    }
    return most;
}

static void draw_experts(struct random_case *test, struct random_arena *arena, uint64_t *seed)
{
    const struct moe_problem *problem = &test->problem;
    struct moe_experts_args *args = &test->experts;
    MOE_INIT_CALL(*args);
    if (random_draw(seed, 0, 1) != 0) {
        int64_t *segments = random_take(arena, problem->num_experts + 1, sizeof(*segments));
        args->num_rows = draw_segments(test, seed, segments);
        args->seg_indptr = segments;
    } else {
        int32_t *counts = random_take(arena, problem->num_experts, sizeof(*counts));
        args->max_masked_rows = draw_counts(test, seed, counts);
        args->num_rows = args->max_masked_rows * problem->num_experts;
        args->masked_m = counts;
    }
    args->row_stride = problem->hidden + 8 * random_draw(seed, 0, 2);
    args->rows =
        random_tensor(arena, seed, args->num_rows * args->row_stride, problem->tokens.dtype, 1.7);
    if ((problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0) {
        args->row_weights = random_tensor(arena, seed, args->num_rows, MOE_DTYPE_FP32, 1.0);
    }
    args->output_stride = problem->hidden + random_draw(seed, 0, 5);
    test->outputs[0] = take_output(arena, args->num_rows, problem->hidden, args->output_stride,
                                   problem->output_dtype);
    args->output = test->outputs[0].at;
}

/* Sorted ids and experts of blocks, made by the CPU's align_block_size; 1 if there are any. */
static void sort_ids(struct random_case *test, struct random_arena *arena, uint64_t *seed,
                     const struct gpu_host *host)
{
    static const int32_t block_sizes[] = {1, 8, 16, 40, 64, 128};
    struct moe_align_args args;
    struct moe_plan_options options;
    struct moe_plan_info info;
    struct moe_plan *plan = NULL;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(info);
    MOE_INIT_CALL(args);
    options.ops = UINT64_C(1) << MOE_OP_ALIGN_BLOCK_SIZE;
    gpu_host_check(host->api->plan_create(host->cpu, &test->problem, &options, &plan, &error),
                   &error, "a plan of align_block_size");
    gpu_host_check(host->api->plan_info(plan, &info, &error), &error, "plan_info");
    void *workspace = aligned_alloc(64, (info.workspace_bytes + 127) / 64 * 64);
    args.call.workspace = workspace;
    args.call.workspace_bytes = info.workspace_bytes;
    args.call.num_tokens = test->num_tokens;
    args.topk_ids = draw_ids(test, arena, seed, test->num_tokens, &args.ids_dtype);
    args.block_size = block_sizes[random_draw(seed, 0, 5)];
    draw_filter(test, arena, seed, &args.filter);
    args.filter.mode = (int32_t)random_draw(seed, MOE_FILTER_DROP, MOE_FILTER_KEEP);
    gpu_host_check(host->api->align_capacity(test->num_tokens * test->problem.top_k,
                                             test->problem.num_experts, args.block_size,
                                             MOE_FILTER_KEEP, &args.sorted_capacity,
                                             &args.expert_capacity, &error),
                   &error, "align_capacity");
    args.sorted_ids = random_take(arena, args.sorted_capacity, 4);
    args.expert_ids = random_take(arena, args.expert_capacity, 4);
    args.num_tokens_post_pad = random_take(arena, 1, 4);
    gpu_host_check(host->api->align_block_size(plan, &args, &error), &error, "align_block_size");
    free(workspace);
    host->api->plan_destroy(plan);
    test->gemm.sorted_ids = args.sorted_ids;
    test->gemm.expert_ids = args.expert_ids;
    test->gemm.num_tokens_post_pad = args.num_tokens_post_pad;
    test->gemm.block_size = args.block_size;
    test->gemm.call.num_tokens = test->num_tokens;
    test->gemm.num_rows = test->num_tokens * test->problem.top_k;
}

static void draw_gemm(struct random_case *test, struct random_arena *arena, uint64_t *seed,
                      const struct gpu_host *host)
{
    const struct moe_problem *problem = &test->problem;
    struct moe_grouped_gemm_args *args = &test->gemm;
    const int form = (int)random_draw(seed, 0, 2);
    MOE_INIT_CALL(*args);
    args->which = (int32_t)random_draw(seed, MOE_GEMM_GATE_UP, MOE_GEMM_DOWN);
    const int is_down = args->which == MOE_GEMM_DOWN;
    if (form == 0) {
        int64_t *segments = random_take(arena, problem->num_experts + 1, sizeof(*segments));
        args->num_rows = draw_segments(test, seed, segments);
        args->seg_indptr = segments;
    } else if (form == 1) {
        int32_t *counts = random_take(arena, problem->num_experts, sizeof(*counts));
        args->max_masked_rows = draw_counts(test, seed, counts);
        args->num_rows = args->max_masked_rows * problem->num_experts;
        args->masked_m = counts;
    } else {
        sort_ids(test, arena, seed, host);
    }
    const int64_t num_inputs = form == 2 && !is_down ? test->num_tokens : args->num_rows;
    const int64_t num_matrices = (problem->flags & MOE_PROBLEM_UNGATED) != 0 ? 1 : 2;
    const int64_t width = is_down                               ? problem->hidden
                          : args->which == MOE_GEMM_GATE_UP_ACT ? problem->inter
                                                                : num_matrices * problem->inter;
    args->input_stride = (is_down ? problem->inter : problem->hidden) + 8 * random_draw(seed, 0, 2);
    args->input =
        random_tensor(arena, seed, num_inputs * args->input_stride, problem->tokens.dtype, 1.7);
    if (random_draw(seed, 0, 1) != 0) {
        args->row_weights = random_tensor(arena, seed, args->num_rows, MOE_DTYPE_FP32, 1.0);
    }
    args->output_stride = width + random_draw(seed, 0, 5);
    test->outputs[0] = take_output(arena, args->num_rows, width, args->output_stride,
                                   is_down ? problem->output_dtype : problem->tokens.dtype);
    args->output = test->outputs[0].at;
}

void random_draw_call(struct random_case *test, struct random_arena *arena, uint64_t *seed,
                      const struct gpu_host *host)
{
    test->num_tokens = draw_tokens(test, seed);
    test->num_real_tokens = test->num_tokens;
    /* A masked layout has a row per expert at least. */
    const int64_t masked_tokens = test->problem.num_experts / test->problem.top_k + 1;
    test->problem.max_tokens = test->num_tokens > masked_tokens ? test->num_tokens : masked_tokens;
    switch (test->op) {
    case RANDOM_LAYER:
        test->ops = UINT64_C(1) << MOE_OP_LAYER;
        draw_layer(test, arena, seed);
        break;
    case RANDOM_EXPERTS:
        test->ops = UINT64_C(1) << MOE_OP_EXPERTS;
        draw_experts(test, arena, seed);
        break;
    default:
        test->ops = UINT64_C(1) << MOE_OP_GEMM1 | UINT64_C(1) << MOE_OP_GEMM2;
        draw_gemm(test, arena, seed, host);
        break;
    }
}
