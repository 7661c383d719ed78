/* SPDX-License-Identifier: Apache-2.0 */
/* Known answers of operations that a layer of plain elements does not run as such: route and
 * quantize. Written by hand; each is exact. */
#include "calls.h"
#include "problem.h"
#include "self_test.h"
#include "status.h"
#include "structs.h"

#include <math.h>
#include <string.h>

/* A plan for one operation and the workspace of its calls. */
struct op_plan {
    struct moe_plan *plan;
    void *workspace;
    uint64_t workspace_bytes;
};

static void close_plan(struct moe_context *context, struct op_plan *op)
{
    moe_memory_free(&context->memory, op->workspace, (size_t)op->workspace_bytes);
    moe_plan_destroy(op->plan);
}

/* Closed by the caller, also after a failure. */
static int32_t open_plan(struct moe_context *context, const struct moe_problem *problem, int32_t op,
                         struct op_plan *out, struct moe_error *error)
{
    struct moe_plan_options options;
    MOE_INIT(options);
    options.ops = MOE_OP_BIT(op);
    MOE_TRY(moe_plan_create(context, problem, &options, &out->plan, error));
    if (out->plan->workspace_bytes == 0) {
        return MOE_STATUS_OK;
    }
    out->workspace = moe_memory_alloc(&context->memory, (size_t)out->plan->workspace_bytes);
    if (out->workspace == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                             "self-test: no host memory for %llu bytes",
                             (unsigned long long)out->plan->workspace_bytes);
    }
    out->workspace_bytes = out->plan->workspace_bytes;
    return MOE_STATUS_OK;
}

static void fill_call(const struct op_plan *op, int64_t num_tokens, struct moe_call *call)
{
    call->num_tokens = num_tokens;
    call->workspace = op->workspace;
    call->workspace_bytes = op->workspace_bytes;
}

/* ---------------------------------------------------------------- route */

enum {
    ROUTE_TOKENS = 3,
    ROUTE_EXPERTS = 4,
    ROUTE_TOP_K = 2,
    ROUTE_BLOCK_SIZE = 2,
    ROUTE_ROUTES = ROUTE_TOKENS * ROUTE_TOP_K,
    ROUTE_SORTED = 10, /* what align_capacity says */
    ROUTE_BLOCKS = ROUTE_SORTED / ROUTE_BLOCK_SIZE
};

/* Every token has two equal largest logits: renormalized, both weights are one half. */
static const float route_logits[ROUTE_TOKENS * ROUTE_EXPERTS] = {0, 2, 1,  2,  5,  1,
                                                                 1, 5, -9, -3, -3, -8};

/* All outputs of a call. */
struct route_answer {
    int32_t ids[ROUTE_ROUTES];
    float weights[ROUTE_ROUTES];
    int32_t sorted_ids[ROUTE_SORTED];
    int32_t expert_ids[ROUTE_BLOCKS];
    int32_t num_tokens_post_pad;
    int32_t expert_counts[ROUTE_EXPERTS];
    int64_t seg_indptr[ROUTE_EXPERTS + 1];
    int32_t src2dst[ROUTE_ROUTES];
};

static const struct route_answer route_known = {
    .ids = {1, 3, 0, 3, 1, 2},
    .weights = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f},
    .sorted_ids = {2, 6, 0, 4, 5, 6, 1, 3, 6, 6},
    .expert_ids = {0, 1, 2, 3, -1},
    .num_tokens_post_pad = 8,
    .expert_counts = {1, 2, 1, 2},
    .seg_indptr = {0, 1, 3, 4, 6},
    .src2dst = {1, 4, 0, 5, 2, 3},
};

static int32_t check_route(const struct route_answer *got, struct moe_error *error)
{
    const struct {
        const char *name;
        const void *got, *known;
        size_t bytes;
    } arrays[] = {
        {"topk_ids", got->ids, route_known.ids, sizeof(got->ids)},
        {"topk_weights", got->weights, route_known.weights, sizeof(got->weights)},
        {"sorted_ids", got->sorted_ids, route_known.sorted_ids, sizeof(got->sorted_ids)},
        {"expert_ids", got->expert_ids, route_known.expert_ids, sizeof(got->expert_ids)},
        {"num_tokens_post_pad", &got->num_tokens_post_pad, &route_known.num_tokens_post_pad,
         sizeof(got->num_tokens_post_pad)},
        {"expert_counts", got->expert_counts, route_known.expert_counts,
         sizeof(got->expert_counts)},
        {"seg_indptr", got->seg_indptr, route_known.seg_indptr, sizeof(got->seg_indptr)},
        {"src2dst", got->src2dst, route_known.src2dst, sizeof(got->src2dst)},
    };
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) {
        if (memcmp(arrays[i].got, arrays[i].known, arrays[i].bytes) != 0) {
            return moe_error_set(error, MOE_STATUS_SELF_TEST,
                                 "self-test: route: %s differs from the known answer",
                                 arrays[i].name);
        }
    }
    return MOE_STATUS_OK;
}

static int32_t run_route(struct moe_context *context, struct moe_error *error)
{
    struct moe_problem problem;
    struct op_plan op = {.plan = NULL};
    struct route_answer got;
    struct moe_route_args args;
    int32_t status = MOE_STATUS_OK;
    MOE_INIT(problem);
    problem.flags = MOE_PROBLEM_RENORMALIZE;
    problem.num_experts = ROUTE_EXPERTS;
    problem.top_k = ROUTE_TOP_K;
    problem.gating = MOE_GATING_SOFTMAX;
    problem.max_tokens = ROUTE_TOKENS;
    memset(&got, 0xee, sizeof(got));
    MOE_TRY_GOTO(open_plan(context, &problem, MOE_OP_ROUTE, &op, error));
    MOE_INIT_CALL(args);
    fill_call(&op, ROUTE_TOKENS, &args.call);
    args.logits = route_logits;
    args.topk_ids = got.ids;
    args.topk_weights = got.weights;
    args.block_size = ROUTE_BLOCK_SIZE;
    args.sorted_ids = got.sorted_ids;
    args.sorted_capacity = ROUTE_SORTED;
    args.expert_ids = got.expert_ids;
    args.expert_capacity = ROUTE_BLOCKS;
    args.num_tokens_post_pad = &got.num_tokens_post_pad;
    args.expert_counts = got.expert_counts;
    args.seg_indptr = got.seg_indptr;
    args.src2dst = got.src2dst;
    MOE_TRY_GOTO(moe_calls_route(op.plan, &args, error));
    status = check_route(&got, error);

fail:
    close_plan(context, &op);
    return status;
}

/* ---------------------------------------------------------------- quantize */

enum { QUANTIZE_TOKENS = 3, QUANTIZE_HIDDEN = 8 };

/* Scales 1, 2 and the smallest; ties to even, the smallest subnormal and half of it, NaN, -0. */
static const float quantize_tokens[QUANTIZE_TOKENS * QUANTIZE_HIDDEN] = {
    448, -224, 1, 0.5f, 0, 447, -448, 240, 896, 17, 19, -2, 0x1p-8f, 0x1p-9f, NAN, 3, 0, -0.0f,
};
static const float quantize_scales[QUANTIZE_TOKENS] = {1, 2, 1e-10f / 448};
static const uint8_t quantize_codes[QUANTIZE_TOKENS * QUANTIZE_HIDDEN] = {
    0x7e, 0xf6, 0x38, 0x30, 0x00, 0x7e, 0xfe, 0x77, 0x7e, 0x50, 0x52, 0xb8,
    0x01, 0x00, 0x7f, 0x3c, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
};

static int32_t check_quantize(const uint8_t *codes, const float *scales, struct moe_error *error)
{
    for (int32_t i = 0; i < QUANTIZE_TOKENS * QUANTIZE_HIDDEN; i++) {
        if (codes[i] != quantize_codes[i]) {
            return moe_error_set(error, MOE_STATUS_SELF_TEST,
                                 "self-test: quantize, token %d, channel %d: code 0x%02x instead "
                                 "of 0x%02x",
                                 i / QUANTIZE_HIDDEN, i % QUANTIZE_HIDDEN, codes[i],
                                 quantize_codes[i]);
        }
    }
    for (size_t i = 0; i < sizeof(quantize_scales) / sizeof(quantize_scales[0]); i++) {
        if (scales[i] != quantize_scales[i]) {
            return moe_error_set(error, MOE_STATUS_SELF_TEST,
                                 "self-test: quantize: scale %zu is %g instead of %g", i,
                                 (double)scales[i], (double)quantize_scales[i]);
        }
    }
    return MOE_STATUS_OK;
}

static int32_t run_quantize(struct moe_context *context, struct moe_error *error)
{
    struct moe_problem problem;
    struct op_plan op = {.plan = NULL};
    struct moe_quantize_args args;
    uint8_t codes[QUANTIZE_TOKENS * QUANTIZE_HIDDEN] = {0};
    float scales[QUANTIZE_TOKENS] = {0};
    int32_t status = MOE_STATUS_OK;
    MOE_INIT(problem);
    problem.hidden = QUANTIZE_HIDDEN;
    problem.max_tokens = QUANTIZE_TOKENS;
    problem.tokens.dtype = MOE_DTYPE_FP32;
    MOE_TRY_GOTO(open_plan(context, &problem, MOE_OP_QUANTIZE, &op, error));
    MOE_INIT_CALL(args);
    fill_call(&op, QUANTIZE_TOKENS, &args.call);
    args.tokens = quantize_tokens;
    args.output = codes;
    args.output_scales = scales;
    args.quantization.dtype = MOE_DTYPE_FP8_E4M3;
    args.quantization.scale_dtype = MOE_DTYPE_FP32;
    args.quantization.scale_layout = MOE_SCALE_ROW_MAJOR;
    args.quantization.group_rows = 1;
    args.quantization.dynamic = 1;
    MOE_TRY_GOTO(moe_calls_quantize(op.plan, &args, error));
    status = check_quantize(codes, scales, error);

fail:
    close_plan(context, &op);
    return status;
}

int32_t moe_self_test_ops(struct moe_context *context, struct moe_error *error)
{
    MOE_TRY(run_route(context, error));
    return run_quantize(context, error);
}
