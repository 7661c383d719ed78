/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a conformance session: a problem, its weights, inputs for every call. */
#include "conform_session.h"

#include <stdbool.h>
#include <string.h>

enum {
    TOKENS = MOE_CONFORM_TOKENS,
    EXPERTS = MOE_CONFORM_EXPERTS,
    HIDDEN = MOE_CONFORM_HIDDEN,
    INTER = MOE_CONFORM_INTER,
    SHARED = MOE_CONFORM_SHARED_INTER,
    ROUTES = MOE_CONFORM_ROUTES,
    BLOCK = MOE_CONFORM_BLOCK,
};

void moe_conform_describe_problem(const struct moe_conform_shape *shape,
                                  struct moe_problem *problem)
{
    MOE_INIT(*problem);
    problem->flags = shape->flags;
    problem->num_experts = EXPERTS;
    problem->top_k = shape->gating == MOE_GATING_LLAMA4 ? 1 : MOE_CONFORM_TOP_K;
    problem->hidden = HIDDEN;
    problem->inter = INTER;
    problem->shared_inter = shape->has_shared ? SHARED : 0;
    problem->activation = shape->activation;
    if (shape->activation == MOE_ACTIVATION_SWIGLU_OAI) {
        problem->act_alpha = 1.702f;
        problem->act_limit = 7.0f;
    }
    problem->gating = shape->gating;
    problem->router_jitter = shape->gating == MOE_GATING_SPARSEMIXER ? 0.01f : 0.0f;
    problem->max_tokens = MOE_CONFORM_MAX_TOKENS;
    problem->tokens.dtype = shape->dtype;
    problem->gate_up.dtype = shape->dtype;
    problem->down.dtype = shape->dtype;
}

static struct moe_operand operand(const struct moe_conform *conform, const void *base,
                                  int64_t first, int64_t expert_stride, int64_t row_stride)
{
    const char *bytes = base;
    return (struct moe_operand){
        .base = bytes + (size_t)first * ref_dtype_bytes(conform->element),
        .expert_stride = expert_stride,
        .row_stride = row_stride,
        .col_stride = 1,
    };
}

void moe_conform_describe_weights(const struct moe_conform *conform, struct moe_weights_desc *desc)
{
    const struct moe_conform_inputs *in = conform->in;
    const uint32_t flags = conform->problem.flags;
    MOE_INIT(*desc);
    desc->gate = operand(conform, in->w1, 0, 2 * INTER * HIDDEN, HIDDEN);
    desc->up = operand(conform, in->w1, INTER * HIDDEN, 2 * INTER * HIDDEN, HIDDEN);
    desc->down = operand(conform, in->w2, 0, HIDDEN * INTER, INTER);
    desc->router = operand(conform, in->router, 0, EXPERTS * HIDDEN, HIDDEN);
    if (flags & MOE_PROBLEM_GATE_UP_BIAS) {
        desc->gate_bias = operand(conform, in->bias1, 0, 2 * INTER, 1);
        desc->up_bias = operand(conform, in->bias1, INTER, 2 * INTER, 1);
    }
    if (flags & MOE_PROBLEM_DOWN_BIAS) {
        desc->down_bias = operand(conform, in->bias2, 0, HIDDEN, 1);
    }
    if (flags & MOE_PROBLEM_ROUTER_BIAS) {
        desc->router_bias = operand(conform, in->router_bias, 0, EXPERTS, 1);
    }
    if (flags & MOE_PROBLEM_CORRECTION_BIAS) {
        desc->correction_bias = operand(conform, in->correction_bias, 0, EXPERTS, 1);
    }
    if (conform->problem.shared_inter > 0) {
        desc->shared_gate = operand(conform, in->shared_w1, 0, 0, HIDDEN);
        desc->shared_up = operand(conform, in->shared_w1, SHARED * HIDDEN, 0, HIDDEN);
        desc->shared_down = operand(conform, in->shared_w2, 0, 0, SHARED);
    }
    if (flags & MOE_PROBLEM_SHARED_SIGMOID) {
        desc->shared_sigmoid = operand(conform, in->shared_sigmoid, 0, HIDDEN, HIDDEN);
    }
}

/* Values in [-0.5, 0.5) that differ from place to place. */
static void fill(enum ref_dtype dtype, void *array, size_t array_bytes, uint32_t seed)
{
    for (size_t i = 0; i < array_bytes / sizeof(float); ++i) {
        seed = seed * 1664525u + 1013904223u;
        ref_store(dtype, array, (int64_t)i, (double)((int32_t)(seed >> 20) - 2048) / 4096.0);
    }
}

/* Routes sorted by expert, by plain loops: segments, destinations, and blocks. */
static void sort_routes(struct moe_conform_inputs *in, int32_t num_routes)
{
    int32_t num_rows = 0;
    int32_t num_sorted = 0;
    for (int32_t expert = 0; expert < EXPERTS; ++expert) {
        const int32_t first_block = num_sorted / BLOCK;
        in->seg_indptr[expert] = num_rows;
        for (int32_t route = 0; route < num_routes; ++route) {
            if (in->topk_ids[route] == expert) {
                in->src2dst[route] = num_rows++;
                in->sorted_ids[num_sorted++] = route;
            }
        }
        while (num_sorted % BLOCK != 0) {
            in->sorted_ids[num_sorted++] = num_routes;
        }
        for (int32_t block = first_block; block < num_sorted / BLOCK; ++block) {
            in->expert_ids[block] = expert;
        }
    }
    in->seg_indptr[EXPERTS] = num_rows;
    in->num_tokens_post_pad[0] = num_sorted;
}

static void fill_inputs(struct moe_conform *conform)
{
    struct moe_conform_inputs *in = conform->in;
    const enum ref_dtype element = conform->element;
    const int32_t top_k = conform->problem.top_k;
    memset(in, 0, sizeof *in);
    uint32_t seed = 1;
#define FILL_ELEMENTS(name) fill(element, in->name, sizeof in->name, seed++)
#define FILL_FLOATS(name)   fill(REF_F32, in->name, sizeof in->name, seed++)
    FILL_ELEMENTS(w1);
    FILL_ELEMENTS(w2);
    FILL_ELEMENTS(bias1);
    FILL_ELEMENTS(bias2);
    FILL_ELEMENTS(router);
    FILL_ELEMENTS(router_bias);
    FILL_FLOATS(correction_bias);
    FILL_ELEMENTS(shared_w1);
    FILL_ELEMENTS(shared_w2);
    FILL_ELEMENTS(shared_sigmoid);
    FILL_ELEMENTS(tokens);
    FILL_ELEMENTS(residual);
    FILL_ELEMENTS(shared);
    FILL_ELEMENTS(rows);
    FILL_ELEMENTS(gate_up_rows);
    FILL_ELEMENTS(inter_rows);
    FILL_FLOATS(shared_factor);
    FILL_FLOATS(logits);
#undef FILL_ELEMENTS
#undef FILL_FLOATS
    for (int32_t route = 0; route < ROUTES; ++route) {
        in->topk_ids[route] = (route + route / 3) % EXPERTS;
        in->topk_weights[route] = 0.25f + 0.125f * (float)(route % 3);
        in->row_weights[route] = 0.5f + 0.25f * (float)(route % 4);
    }
    for (int32_t expert = 0; expert < EXPERTS; ++expert) {
        in->expert_map[expert] = expert;
        in->num_replicas[expert] = expert % MOE_CONFORM_REPLICAS + 1;
        in->batch_counts[expert] = 2 * expert; /* the last is more than there are */
        for (int32_t i = 0; i < MOE_CONFORM_REPLICAS; ++i) {
            in->physical_ids[expert * MOE_CONFORM_REPLICAS + i] = (expert + i + 1) % EXPERTS;
        }
    }
    in->num_valid_tokens[0] = MOE_CONFORM_VALID_TOKENS;
    sort_routes(in, TOKENS * top_k);
}

void moe_conform_reset(struct moe_conform *conform, unsigned char poison)
{
    fill_inputs(conform);
    memset(conform->out, poison, sizeof *conform->out);
    memset(conform->workspace - MOE_CONFORM_BAND_BYTES, poison,
           conform->info.workspace_bytes + 2 * (uint64_t)MOE_CONFORM_BAND_BYTES);
}

static bool is_poison(const unsigned char *band, uint64_t num_bytes, unsigned char poison)
{
    for (uint64_t i = 0; i < num_bytes; ++i) {
        if (band[i] != poison) {
            return false;
        }
    }
    return true;
}

void moe_conform_check_bands(struct moe_conform *conform, const char *call, unsigned char poison,
                             uint64_t workspace_bytes)
{
    const struct moe_conform_outputs *out = conform->out;
    const char *overrun = NULL;
    if (!is_poison(out->first_band, sizeof out->first_band, poison)) {
        overrun = "before the outputs";
    }
#define CHECK_BAND(name, type, count)                                      \
    if (!is_poison(out->after_##name, sizeof out->after_##name, poison)) { \
        overrun = "behind " #name;                                         \
    }
    MOE_CONFORM_OUTPUT_LIST(CHECK_BAND)
#undef CHECK_BAND
    if (!is_poison(conform->workspace - MOE_CONFORM_BAND_BYTES, MOE_CONFORM_BAND_BYTES, poison)) {
        overrun = "before the workspace";
    }
    if (!is_poison(conform->workspace + workspace_bytes,
                   conform->info.workspace_bytes - workspace_bytes + MOE_CONFORM_BAND_BYTES,
                   poison)) {
        overrun = "behind the workspace";
    }
    if (overrun != NULL) {
        moe_conform_fail(conform, "%s: memory %s was written", call, overrun);
    }
}
