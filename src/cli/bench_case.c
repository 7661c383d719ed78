/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_case.h"

#include "abi_names.h"
#include "element.h"
#include "fp8_recipe.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

/* One call: the case, and the parts of the data that are its turn. */
struct turn {
    const struct moe_bench_data *data;
    const struct moe_problem *problem;
    int64_t num_tokens;
    int64_t num_rows;
    const struct moe_weights *weights;
    const void *input;
    const void *logits;
    unsigned char *output;
    const int32_t *topk_ids;
    const float *topk_weights;
    const int32_t *src2dst;
    const float *row_weights;
    const int64_t *seg_indptr;
};

/* Zeroed arguments with what is the same for all operations. */
#define BEGIN_ARGS(args, turn)                                         \
    (MOE_INIT_CALL(args), (args).call.num_tokens = (turn)->num_tokens, \
     (args).call.stream = (turn)->data->stream,                        \
     (args).call.workspace = (turn)->data->workspace.bytes,            \
     (args).call.workspace_bytes = (turn)->data->plan_info.workspace_bytes)

/* Carves arrays out of the outputs of a call. */
static void *carve(unsigned char **at, int64_t num_elements, size_t element_bytes)
{
    unsigned char *array = *at;
    *at += moe_bench_memory_align((uint64_t)num_elements * element_bytes);
    return array;
}

static uint64_t carved_bytes(int64_t num_elements, size_t element_bytes)
{
    return moe_bench_memory_align((uint64_t)num_elements * element_bytes);
}

/* Sizes that costs are made of. */
struct sizes {
    double tokens, rows, active, experts, hidden, inter, shared, matrices, element, logit;
    double gate_up, down; /* bytes of a weight, with its share of a scale */
    int64_t num_tokens, num_rows, num_experts, top_k, num_hidden, num_inter;
    size_t element_bytes, logit_bytes;
};

static double weight_bytes(const struct moe_recipe *recipe)
{
    const double scale_bytes = recipe->dtype == MOE_DTYPE_FP8_E4M3
                                   ? (double)sizeof(float) / (MOE_FP8_BLOCK * MOE_FP8_BLOCK)
                                   : 0.0;
    return (double)moe_element_bytes(recipe->dtype) + scale_bytes;
}

static struct sizes measure_sizes(const struct moe_problem *problem,
                                  const struct moe_bench_routes *routes)
{
    struct sizes s = {.num_tokens = routes->num_tokens,
                      .num_rows = routes->num_routes,
                      .num_experts = problem->num_experts_global,
                      .top_k = problem->top_k,
                      .num_hidden = problem->hidden,
                      .num_inter = problem->inter};
    s.element_bytes = moe_element_bytes(problem->tokens.dtype);
    s.logit_bytes = moe_element_bytes(problem->logits_dtype);
    s.tokens = (double)s.num_tokens;
    s.rows = (double)s.num_rows;
    s.active = routes->mean_active;
    s.experts = (double)s.num_experts;
    s.hidden = problem->hidden;
    s.inter = problem->inter;
    s.shared = problem->shared_inter;
    s.matrices = (problem->flags & MOE_PROBLEM_UNGATED) != 0 ? 1.0 : 2.0;
    s.element = (double)s.element_bytes;
    s.logit = (double)s.logit_bytes;
    s.gate_up = weight_bytes(&problem->gate_up);
    s.down = weight_bytes(&problem->down);
    return s;
}

static int has_weight_on_input(const struct moe_problem *problem)
{
    return (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
}

/* ---------------------------------------------------------------- routing */

static void cost_router(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_tokens * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_tokens * s->num_experts, s->logit_bytes);
    cost->moved_bytes =
        s->element * s->hidden * (s->experts + s->tokens) + s->logit * s->tokens * s->experts;
    cost->flops = 2.0 * s->tokens * s->experts * s->hidden;
}

static int32_t call_router(const struct turn *turn, struct moe_error *error)
{
    struct moe_router_args args;
    BEGIN_ARGS(args, turn);
    args.weights = turn->weights;
    args.tokens = turn->input;
    args.logits = turn->output;
    return turn->data->api->router(turn->data->plan, &args, error);
}

static void cost_gating(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_tokens * s->num_experts, s->logit_bytes);
    cost->output_bytes =
        carved_bytes(s->num_rows, sizeof(int32_t)) + carved_bytes(s->num_rows, sizeof(float));
    cost->moved_bytes = s->logit * s->tokens * s->experts + 8.0 * s->rows;
}

static int32_t call_gating(const struct turn *turn, struct moe_error *error)
{
    struct moe_gating_args args;
    unsigned char *at = turn->output;
    BEGIN_ARGS(args, turn);
    args.logits = turn->logits;
    args.correction_bias = turn->data->correction_bias.bytes;
    args.topk_ids = carve(&at, turn->num_rows, sizeof(int32_t));
    args.topk_weights = carve(&at, turn->num_rows, sizeof(float));
    args.ids_dtype = MOE_IDS_INT32;
    return turn->data->api->gating(turn->data->plan, &args, error);
}

/* Most that align_block_size can need, for any filter mode: every expert's last block is full of
 * padding. */
static int64_t largest_sorted(int64_t num_rows, int64_t num_experts)
{
    return num_rows + (num_experts + 1) * MOE_BENCH_ALIGN_BLOCK_SIZE;
}

static int64_t largest_blocks(int64_t num_rows, int64_t num_experts)
{
    return largest_sorted(num_rows, num_experts) / MOE_BENCH_ALIGN_BLOCK_SIZE;
}

static void cost_align(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->output_bytes =
        carved_bytes(largest_sorted(s->num_rows, s->num_experts), sizeof(int32_t)) +
        carved_bytes(largest_blocks(s->num_rows, s->num_experts), sizeof(int32_t)) +
        carved_bytes(1, sizeof(int32_t));
    cost->moved_bytes = 12.0 * s->rows + 8.0 * s->experts;
}

static int32_t call_align(const struct turn *turn, struct moe_error *error)
{
    struct moe_align_args args;
    unsigned char *at = turn->output;
    BEGIN_ARGS(args, turn);
    const int32_t status = turn->data->api->align_capacity(
        turn->num_rows, turn->problem->num_experts, MOE_BENCH_ALIGN_BLOCK_SIZE, MOE_FILTER_DROP,
        &args.sorted_capacity, &args.expert_capacity, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    args.topk_ids = turn->topk_ids;
    args.ids_dtype = MOE_IDS_INT32;
    args.block_size = MOE_BENCH_ALIGN_BLOCK_SIZE;
    args.filter.mode = MOE_FILTER_DROP;
    args.sorted_ids = carve(&at, args.sorted_capacity, sizeof(int32_t));
    args.expert_ids = carve(&at, args.expert_capacity, sizeof(int32_t));
    args.num_tokens_post_pad = carve(&at, 1, sizeof(int32_t));
    return turn->data->api->align_block_size(turn->data->plan, &args, error);
}

static void cost_route(const struct sizes *s, struct moe_bench_cost *cost)
{
    struct moe_bench_cost gating = {0}, align = {0};
    cost_gating(s, &gating);
    cost_align(s, &align);
    cost->input_bytes = gating.input_bytes;
    cost->output_bytes = gating.output_bytes + align.output_bytes;
    cost->moved_bytes = gating.moved_bytes + align.moved_bytes;
}

/* Gating and align_block_size in one call. */
static int32_t call_route(const struct turn *turn, struct moe_error *error)
{
    struct moe_route_args args;
    unsigned char *at = turn->output;
    BEGIN_ARGS(args, turn);
    const int32_t status = turn->data->api->align_capacity(
        turn->num_rows, turn->problem->num_experts, MOE_BENCH_ALIGN_BLOCK_SIZE, MOE_FILTER_DROP,
        &args.sorted_capacity, &args.expert_capacity, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    args.logits = turn->logits;
    args.correction_bias = turn->data->correction_bias.bytes;
    args.topk_ids = carve(&at, turn->num_rows, sizeof(int32_t));
    args.topk_weights = carve(&at, turn->num_rows, sizeof(float));
    args.ids_dtype = MOE_IDS_INT32;
    args.block_size = MOE_BENCH_ALIGN_BLOCK_SIZE;
    args.sorted_ids = carve(&at, args.sorted_capacity, sizeof(int32_t));
    args.expert_ids = carve(&at, args.expert_capacity, sizeof(int32_t));
    args.num_tokens_post_pad = carve(&at, 1, sizeof(int32_t));
    return turn->data->api->route(turn->data->plan, &args, error);
}

static void cost_ep_preprocess(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->output_bytes = carved_bytes(s->num_experts + 1, sizeof(int64_t)) +
                         2 * carved_bytes(s->num_rows, sizeof(int32_t));
    cost->moved_bytes = 12.0 * s->rows + 8.0 * s->experts;
}

static int32_t call_ep_preprocess(const struct turn *turn, struct moe_error *error)
{
    struct moe_ep_preprocess_args args;
    unsigned char *at = turn->output;
    BEGIN_ARGS(args, turn);
    args.topk_ids = turn->topk_ids;
    args.ids_dtype = MOE_IDS_INT32;
    args.seg_indptr = carve(&at, (int64_t)turn->problem->num_experts + 1, sizeof(int64_t));
    args.src2dst = carve(&at, turn->num_rows, sizeof(int32_t));
    args.dst2src = carve(&at, turn->num_rows, sizeof(int32_t));
    args.row_capacity = turn->num_rows;
    return turn->data->api->ep_preprocess(turn->data->plan, &args, error);
}

/* ---------------------------------------------------------------- rows */

static void cost_pre_reorder(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_tokens * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_rows * s->num_hidden, s->element_bytes);
    cost->moved_bytes = s->element * s->hidden * (s->tokens + s->rows);
}

static int32_t call_pre_reorder(const struct turn *turn, struct moe_error *error)
{
    struct moe_pre_reorder_args args;
    BEGIN_ARGS(args, turn);
    args.tokens = turn->input;
    args.src2dst = turn->src2dst;
    args.rows = turn->output;
    args.num_rows = turn->num_rows;
    return turn->data->api->pre_reorder(turn->data->plan, &args, error);
}

/* fp8 with one fp32 scale for 128 values of a token, as DeepSeek-V3's activations. */
enum { QUANTIZE_GROUP = 128 };

static void cost_quantize(const struct sizes *s, struct moe_bench_cost *cost)
{
    const int64_t num_groups = (s->num_hidden + QUANTIZE_GROUP - 1) / QUANTIZE_GROUP;
    cost->input_bytes = carved_bytes(s->num_tokens * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_tokens * s->num_hidden, 1) +
                         carved_bytes(s->num_tokens * num_groups, sizeof(float));
    cost->moved_bytes =
        s->tokens * (s->hidden * (s->element + 1.0) + (double)num_groups * sizeof(float));
}

static int32_t call_quantize(const struct turn *turn, struct moe_error *error)
{
    struct moe_quantize_args args;
    unsigned char *at = turn->output;
    const int64_t hidden = turn->problem->hidden;
    BEGIN_ARGS(args, turn);
    args.tokens = turn->input;
    args.output = carve(&at, turn->num_tokens * hidden, 1);
    args.output_scales = carve(
        &at, turn->num_tokens * ((hidden + QUANTIZE_GROUP - 1) / QUANTIZE_GROUP), sizeof(float));
    args.quantization = (struct moe_recipe){.dtype = MOE_DTYPE_FP8_E4M3,
                                            .scale_dtype = MOE_DTYPE_FP32,
                                            .scale_layout = MOE_SCALE_ROW_MAJOR,
                                            .group_rows = 1,
                                            .group_k = QUANTIZE_GROUP,
                                            .dynamic = 1};
    return turn->data->api->quantize(turn->data->plan, &args, error);
}

static void cost_activation(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes =
        carved_bytes(s->num_rows * s->num_inter * (int64_t)s->matrices, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_rows * s->num_inter, s->element_bytes);
    cost->moved_bytes = s->element * s->rows * s->inter * (s->matrices + 1.0);
}

static int32_t call_activation(const struct turn *turn, struct moe_error *error)
{
    struct moe_activation_args args;
    BEGIN_ARGS(args, turn);
    args.input = turn->input;
    args.num_rows = turn->num_rows;
    args.output = turn->output;
    return turn->data->api->activation(turn->data->plan, &args, error);
}

static void cost_post_reorder(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_rows * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_tokens * s->num_hidden, s->element_bytes);
    cost->moved_bytes = s->element * s->hidden * (s->tokens + s->rows);
}

static int32_t call_post_reorder(const struct turn *turn, struct moe_error *error)
{
    struct moe_post_reorder_args args;
    BEGIN_ARGS(args, turn);
    args.rows = turn->input;
    args.num_rows = turn->num_rows;
    args.src2dst = turn->src2dst;
    args.topk_weights = has_weight_on_input(turn->problem) ? NULL : turn->topk_weights;
    args.output = turn->output;
    return turn->data->api->post_reorder(turn->data->plan, &args, error);
}

static int32_t call_sum_reduce(const struct turn *turn, struct moe_error *error)
{
    struct moe_sum_reduce_args args;
    BEGIN_ARGS(args, turn);
    args.input = turn->input;
    args.output = turn->output;
    return turn->data->api->sum_reduce(turn->data->plan, &args, error);
}

/* ---------------------------------------------------------------- GEMMs */

static void cost_gemm1(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_rows * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_rows * s->num_inter, s->element_bytes);
    cost->moved_bytes = s->gate_up * s->active * s->matrices * s->hidden * s->inter +
                        s->element * s->rows * (s->hidden + s->inter);
    cost->flops = 2.0 * s->matrices * s->rows * s->hidden * s->inter;
}

static void cost_gemm2(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_rows * s->num_inter, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_rows * s->num_hidden, s->element_bytes);
    cost->moved_bytes =
        s->down * s->active * s->hidden * s->inter + s->element * s->rows * (s->hidden + s->inter);
    cost->flops = 2.0 * s->rows * s->hidden * s->inter;
}

static int32_t call_gemm(const struct turn *turn, int32_t which, struct moe_error *error)
{
    struct moe_grouped_gemm_args args;
    BEGIN_ARGS(args, turn);
    args.weights = turn->weights;
    args.input = turn->input;
    args.output = turn->output;
    args.num_rows = turn->num_rows;
    args.which = which;
    args.seg_indptr = turn->seg_indptr;
    args.row_weights = which == MOE_GEMM_GATE_UP_ACT && has_weight_on_input(turn->problem)
                           ? turn->row_weights
                           : NULL;
    return turn->data->api->grouped_gemm(turn->data->plan, &args, error);
}

static int32_t call_gemm1(const struct turn *turn, struct moe_error *error)
{
    return call_gemm(turn, MOE_GEMM_GATE_UP_ACT, error);
}

static int32_t call_gemm2(const struct turn *turn, struct moe_error *error)
{
    return call_gemm(turn, MOE_GEMM_DOWN, error);
}

static void cost_experts(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_rows * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_rows * s->num_hidden, s->element_bytes);
    cost->moved_bytes = (s->gate_up * s->matrices + s->down) * s->active * s->hidden * s->inter +
                        2.0 * s->element * s->rows * s->hidden;
    cost->flops = 2.0 * (s->matrices + 1.0) * s->rows * s->hidden * s->inter;
}

static int32_t call_experts(const struct turn *turn, struct moe_error *error)
{
    struct moe_experts_args args;
    BEGIN_ARGS(args, turn);
    args.weights = turn->weights;
    args.rows = turn->input;
    args.num_rows = turn->num_rows;
    args.seg_indptr = turn->seg_indptr;
    args.row_weights = has_weight_on_input(turn->problem) ? turn->row_weights : NULL;
    args.output = turn->output;
    return turn->data->api->experts(turn->data->plan, &args, error);
}

/* From tokens and given routes to tokens, with the shared expert if there is one. */
static void cost_layer(const struct sizes *s, struct moe_bench_cost *cost)
{
    cost->input_bytes = carved_bytes(s->num_tokens * s->num_hidden, s->element_bytes);
    cost->output_bytes = carved_bytes(s->num_tokens * s->num_hidden, s->element_bytes);
    cost->moved_bytes =
        (s->gate_up * s->matrices + s->down) * s->hidden * (s->active * s->inter + s->shared) +
        2.0 * s->element * s->tokens * s->hidden;
    cost->flops =
        2.0 * (s->matrices + 1.0) * s->hidden * (s->rows * s->inter + s->tokens * s->shared);
}

static int32_t call_layer(const struct turn *turn, struct moe_error *error)
{
    struct moe_layer_args args;
    BEGIN_ARGS(args, turn);
    args.weights = turn->weights;
    args.tokens = turn->input;
    args.topk_ids = turn->topk_ids;
    args.topk_weights = turn->topk_weights;
    args.ids_dtype = MOE_IDS_INT32;
    args.output = turn->output;
    return turn->data->api->layer(turn->data->plan, &args, error);
}

/* ---------------------------------------------------------------- the table */

struct bench_op {
    size_t member; /* of moe_plugin_api */
    int uses_weights;
    enum moe_bench_limit bandwidth;
    void (*cost)(const struct sizes *sizes, struct moe_bench_cost *cost);
    int32_t (*call)(const struct turn *turn, struct moe_error *error);
};

#define MEMBER(name) offsetof(struct moe_plugin_api, name)
static const struct bench_op bench_ops[] = {
    [MOE_OP_ROUTER] = {MEMBER(router), 1, MOE_BENCH_LIMIT_READ, cost_router, call_router},
    [MOE_OP_GATING] = {MEMBER(gating), 0, MOE_BENCH_LIMIT_READ, cost_gating, call_gating},
    [MOE_OP_ALIGN_BLOCK_SIZE] = {MEMBER(align_block_size), 0, MOE_BENCH_LIMIT_READ, cost_align,
                                 call_align},
    [MOE_OP_EP_PREPROCESS] = {MEMBER(ep_preprocess), 0, MOE_BENCH_LIMIT_READ, cost_ep_preprocess,
                              call_ep_preprocess},
    [MOE_OP_PRE_REORDER] = {MEMBER(pre_reorder), 0, MOE_BENCH_LIMIT_COPY, cost_pre_reorder,
                            call_pre_reorder},
    [MOE_OP_QUANTIZE] = {MEMBER(quantize), 0, MOE_BENCH_LIMIT_COPY, cost_quantize, call_quantize},
    [MOE_OP_ACTIVATION] = {MEMBER(activation), 0, MOE_BENCH_LIMIT_COPY, cost_activation,
                           call_activation},
    [MOE_OP_GEMM1] = {MEMBER(grouped_gemm), 1, MOE_BENCH_LIMIT_READ, cost_gemm1, call_gemm1},
    [MOE_OP_GEMM2] = {MEMBER(grouped_gemm), 1, MOE_BENCH_LIMIT_READ, cost_gemm2, call_gemm2},
    [MOE_OP_POST_REORDER] = {MEMBER(post_reorder), 0, MOE_BENCH_LIMIT_COPY, cost_post_reorder,
                             call_post_reorder},
    [MOE_OP_SUM_REDUCE] = {MEMBER(sum_reduce), 0, MOE_BENCH_LIMIT_COPY, cost_post_reorder,
                           call_sum_reduce},
    [MOE_OP_EXPERTS] = {MEMBER(experts), 1, MOE_BENCH_LIMIT_READ, cost_experts, call_experts},
    [MOE_OP_LAYER] = {MEMBER(layer), 1, MOE_BENCH_LIMIT_READ, cost_layer, call_layer},
    [MOE_OP_ROUTE] = {MEMBER(route), 0, MOE_BENCH_LIMIT_READ, cost_route, call_route},
};
_Static_assert(sizeof bench_ops / sizeof bench_ops[0] == MOE_NUM_OPS, "every operation has a row");

int moe_bench_case_is_offered(const struct moe_plugin_api *api, int32_t op)
{
    const size_t member = bench_ops[op].member;
    void (*function)(void) = NULL;
    if (api->struct_size < member + sizeof function) {
        return 0;
    }
    memcpy(&function, (const char *)api + member, sizeof function);
    return function != NULL;
}

int moe_bench_case_uses_weights(int32_t op)
{
    return bench_ops[op].uses_weights;
}

int moe_bench_case_reads_logits(int32_t op)
{
    return op == MOE_OP_GATING || op == MOE_OP_ROUTE;
}

enum moe_bench_limit moe_bench_case_bandwidth(int32_t op)
{
    return bench_ops[op].bandwidth;
}

/* Enough places that a walk through all of them leaves no cache content of the first. */
static uint64_t count_places(const struct moe_bench_cost *cost, uint64_t cold_bytes)
{
    const uint64_t larger =
        cost->input_bytes > cost->output_bytes ? cost->input_bytes : cost->output_bytes;
    return larger == 0 || larger >= cold_bytes ? 1 : (cold_bytes + larger - 1) / larger;
}

int moe_bench_case_init(struct moe_bench_case *bench_case, const struct moe_bench_data *data,
                        int32_t op, const struct moe_bench_routes *routes,
                        struct moe_cli_error *error)
{
    memset(bench_case, 0, sizeof *bench_case);
    bench_case->op = op;
    bench_case->num_tokens = routes->num_tokens;
    bench_case->routes = routes;
    bench_case->calls_per_sample = 1;
    const struct sizes sizes = measure_sizes(data->problem, routes);
    bench_ops[op].cost(&sizes, &bench_case->cost);
    bench_case->num_places = count_places(&bench_case->cost, data->cold_bytes);
    struct moe_error cause;
    MOE_INIT(cause);
    MOE_INIT(bench_case->choice);
    if (data->api->plan_op_info(data->plan, op, routes->num_tokens, &bench_case->choice, &cause) !=
        MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "plan_op_info", &cause);
    }
    return 0;
}

int32_t moe_bench_case_call(struct moe_bench_case *bench_case, const struct moe_bench_data *data,
                            struct moe_error *error)
{
    const struct moe_bench_routes *routes = bench_case->routes;
    const uint64_t call = bench_case->num_calls++;
    const uint64_t place = call % bench_case->num_places;
    const uint64_t set = call % (uint64_t)routes->num_sets;
    const uint64_t first_route = set * (uint64_t)routes->num_routes;
    const uint64_t input_at = place * bench_case->cost.input_bytes;
    struct turn turn = {
        .data = data,
        .problem = data->problem,
        .num_tokens = routes->num_tokens,
        .num_rows = routes->num_routes,
        .input = (const unsigned char *)data->inputs.bytes + input_at,
        .logits = (const unsigned char *)data->logits.bytes + input_at,
        .output = (unsigned char *)data->outputs.bytes + place * bench_case->cost.output_bytes,
        .topk_ids = routes->topk_ids + first_route,
        .topk_weights = routes->topk_weights + first_route,
        .src2dst = routes->src2dst + first_route,
        .row_weights = routes->row_weights + first_route,
        .seg_indptr = routes->seg_indptr + set * (uint64_t)(routes->num_experts + 1),
    };
    if (bench_ops[bench_case->op].uses_weights) {
        turn.weights = data->weights.bound[call % (uint64_t)data->weights.num_copies];
    }
    return bench_ops[bench_case->op].call(&turn, error);
}
