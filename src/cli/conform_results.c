/* SPDX-License-Identifier: Apache-2.0 */
/* P24: every offered operation against the references, which know nothing of any plugin. */
#include "conform_calls.h"
#include "conform_rules.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOKENS = MOE_CONFORM_TOKENS,
    EXPERTS = MOE_CONFORM_EXPERTS,
    HIDDEN = MOE_CONFORM_HIDDEN,
    INTER = MOE_CONFORM_INTER,
    SHARED = MOE_CONFORM_SHARED_INTER,
    ROUTES = MOE_CONFORM_ROUTES,
};

/* The inputs as doubles. */
struct exact {
    double w1[EXPERTS * 2 * INTER * HIDDEN];
    double w2[EXPERTS * HIDDEN * INTER];
    double bias1[EXPERTS * 2 * INTER];
    double bias2[EXPERTS * HIDDEN];
    double router[EXPERTS * HIDDEN];
    double router_bias[EXPERTS];
    double correction_bias[EXPERTS];
    double shared_w1[2 * SHARED * HIDDEN];
    double shared_w2[HIDDEN * SHARED];
    double shared_sigmoid[HIDDEN];
    double tokens[TOKENS * HIDDEN];
    double residual[TOKENS * HIDDEN];
    double shared[TOKENS * HIDDEN];
    double rows[ROUTES * HIDDEN];
    double gate_up_rows[ROUTES * 2 * INTER];
    double inter_rows[ROUTES * INTER];
    double shared_factor[TOKENS];
    double topk_weights[ROUTES];
    double row_weights[ROUTES];
    int64_t ids[ROUTES];
    /* results */
    double out[ROUTES * 2 * INTER > ROUTES *HIDDEN ? ROUTES * 2 * INTER : ROUTES *HIDDEN];
    double sum_abs[ROUTES * 2 * INTER > ROUTES *HIDDEN ? ROUTES * 2 * INTER : ROUTES *HIDDEN];
};

static void load_exact(const struct moe_conform *conform, struct exact *exact)
{
    const struct moe_conform_inputs *in = conform->in;
#define LOAD(dtype, name)                                                                \
    ref_load_all(dtype, in->name, (int64_t)(sizeof exact->name / sizeof exact->name[0]), \
                 exact->name)
    LOAD(conform->element, w1);
    LOAD(conform->element, w2);
    LOAD(conform->element, bias1);
    LOAD(conform->element, bias2);
    LOAD(conform->element, router);
    LOAD(conform->element, router_bias);
    LOAD(REF_F32, correction_bias);
    LOAD(conform->element, shared_w1);
    LOAD(conform->element, shared_w2);
    LOAD(conform->element, shared_sigmoid);
    LOAD(conform->element, tokens);
    LOAD(conform->element, residual);
    LOAD(conform->element, shared);
    LOAD(conform->element, rows);
    LOAD(conform->element, gate_up_rows);
    LOAD(conform->element, inter_rows);
    LOAD(REF_F32, shared_factor);
    LOAD(REF_F32, topk_weights);
    LOAD(REF_F32, row_weights);
#undef LOAD
    for (int route = 0; route < ROUTES; ++route) {
        exact->ids[route] = in->topk_ids[route];
    }
}

/*
 * Element idx is `wanted`, but for: each value on the way rounded to the element type (2 half ulps
 * per rounding, a rounding may tip over: 4), fp32 sums and an activation of 18 good bits, all
 * relative to the sum over magnitudes; and one rounding at the end.
 */
static void check_array(struct moe_conform *conform, const char *call, enum ref_dtype dtype,
                        const void *array, const double *wanted, const double *sum_abs,
                        int64_t count)
{
    const double relative = 4.0 * ref_dtype_half_ulp(dtype) + 0x1p-18;
    for (int64_t i = 0; i < count; ++i) {
        const double value = ref_load(dtype, array, i);
        const double magnitude = sum_abs != NULL ? sum_abs[i] : fabs(wanted[i]);
        const double allowed =
            relative * (magnitude + fabs(wanted[i])) + ref_rounding_tolerance(dtype, wanted[i]);
        if (!(fabs(value - wanted[i]) <= allowed)) {
            moe_conform_fail(conform, "%s (%s): element %lld is %.9g instead of %.9g +- %.2g", call,
                             conform->shape->name, (long long)i, value, wanted[i], allowed);
        }
    }
}

static struct ref_activation activation_of(const struct moe_conform *conform, int64_t inter)
{
    static const struct {
        int32_t activation;
        enum ref_act act;
    } pairs[] = {
        {MOE_ACTIVATION_SILU, REF_ACT_SILU},
        {MOE_ACTIVATION_GELU, REF_ACT_GELU},
        {MOE_ACTIVATION_GELU_TANH, REF_ACT_GELU_TANH},
        {MOE_ACTIVATION_SWIGLU_OAI, REF_ACT_SWIGLU_OAI},
        {MOE_ACTIVATION_RELU2, REF_ACT_RELU2},
        {MOE_ACTIVATION_IDENTITY, REF_ACT_IDENTITY},
    };
    enum ref_act act = REF_ACT_SILU;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; ++i) {
        act = pairs[i].activation == conform->problem.activation ? pairs[i].act : act;
    }
    return ref_activation_halves(act, inter);
}

/* ---------------------------------------------------------------- router, gating */

static struct ref_gate_rule gate_rule(const struct moe_conform *conform, const struct exact *exact)
{
    static const struct {
        int32_t gating;
        enum ref_gate_method method;
    } pairs[] = {
        {MOE_GATING_SOFTMAX, REF_GATE_SOFTMAX},
        {MOE_GATING_SIGMOID, REF_GATE_SIGMOID},
        {MOE_GATING_TOPK_SOFTMAX, REF_GATE_TOPK_SOFTMAX},
        {MOE_GATING_LLAMA4, REF_GATE_TOPK_SIGMOID},
        {MOE_GATING_SPARSEMIXER, REF_GATE_SPARSE_MIXER},
    };
    struct ref_gate_rule rule = {
        .num_experts = EXPERTS,
        .top_k = conform->problem.top_k,
        .scaling_factor = 1.0,
        .jitter_eps = (double)conform->problem.router_jitter,
        .renormalize = (conform->problem.flags & MOE_PROBLEM_RENORMALIZE) != 0,
        .abs_margin = 1e-5,
        .rel_margin = 1e-5,
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; ++i) {
        rule.method = pairs[i].gating == conform->problem.gating ? pairs[i].method : rule.method;
    }
    if (conform->problem.flags & MOE_PROBLEM_CORRECTION_BIAS) {
        rule.bias = exact->correction_bias;
    }
    return rule;
}

/* ids and weights against the reference's for these logits; undecided tokens are left out. */
static void check_routing(struct moe_conform *conform, const char *call, const struct exact *exact,
                          const float *logits)
{
    const struct ref_gate_rule rule = gate_rule(conform, exact);
    double exact_logits[TOKENS * EXPERTS];
    int32_t ids[ROUTES];
    double weights[ROUTES];
    unsigned char is_ambiguous[TOKENS];
    const struct ref_gate_result result = {ids, weights, NULL, is_ambiguous};
    ref_load_all(REF_F32, logits, TOKENS * EXPERTS, exact_logits);
    ref_gate(&rule, exact_logits, TOKENS, TOKENS, &result);
    for (int64_t token = 0; token < TOKENS; ++token) {
        const int64_t first = token * rule.top_k;
        if (!is_ambiguous[token]) {
            moe_conform_check_indices(conform, call, "topk_ids", conform->out->topk_ids + first,
                                      ids + first, rule.top_k);
            check_array(conform, call, REF_F32, conform->out->topk_weights + first, weights + first,
                        NULL, rule.top_k);
        }
    }
}

static void check_router(struct moe_conform *conform, struct exact *exact)
{
    const double *bias =
        conform->problem.flags & MOE_PROBLEM_ROUTER_BIAS ? exact->router_bias : NULL;
    ref_router(exact->tokens, exact->router, bias, TOKENS, EXPERTS, HIDDEN, exact->out,
               exact->sum_abs);
    if (moe_conform_call_try(conform, "router")) {
        check_array(conform, "router", REF_F32, conform->out->logits, exact->out, exact->sum_abs,
                    TOKENS * EXPERTS);
    }
    if (moe_conform_call_try(conform, "gating")) {
        check_routing(conform, "gating", exact, conform->in->logits);
    }
    if (moe_conform_call_try(conform, "route")) {
        check_routing(conform, "route", exact, conform->in->logits);
    }
}

/* ---------------------------------------------------------------- rows */

static void check_rows(struct moe_conform *conform, struct exact *exact)
{
    const enum ref_dtype element = conform->element;
    const int64_t top_k = conform->problem.top_k;
    const struct ref_activation activation = activation_of(conform, INTER);
    const struct ref_pre_reorder pre = {.x = exact->tokens,
                                        .src2dst = conform->in->src2dst,
                                        .num_tokens = TOKENS,
                                        .top_k = top_k,
                                        .hidden = HIDDEN,
                                        .out_dtype = element,
                                        .out = exact->out};
    if (moe_conform_call_try(conform, "pre_reorder")) {
        ref_pre_reorder(&pre);
        check_array(conform, "pre_reorder", element, conform->out->rows, exact->out, NULL,
                    TOKENS * top_k * HIDDEN);
    }
    if (moe_conform_call_try(conform, "activation")) {
        ref_activation_rows(&activation, exact->gate_up_rows, TOKENS * top_k, 2 * INTER, INTER,
                            element, exact->out);
        check_array(conform, "activation", element, conform->out->inter_rows, exact->out, NULL,
                    TOKENS * top_k * INTER);
    }
    const struct ref_post_reorder post = {.rows = exact->rows,
                                          .src2dst = conform->in->src2dst,
                                          .weights = conform->problem.flags &
                                                             MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT
                                                         ? NULL
                                                         : exact->topk_weights,
                                          .num_tokens = TOKENS,
                                          .top_k = top_k,
                                          .hidden = HIDDEN,
                                          .scaling_factor = 1.0,
                                          .shared = exact->shared,
                                          .shared_factor = exact->shared_factor,
                                          .residual = exact->residual,
                                          .out_dtype = element,
                                          .out = exact->out,
                                          .sum_abs = exact->sum_abs};
    if (moe_conform_call_try(conform, "post_reorder")) {
        ref_post_reorder(&post);
        check_array(conform, "post_reorder", element, conform->out->tokens, exact->out,
                    exact->sum_abs, TOKENS * HIDDEN);
    }
    if (moe_conform_call_try(conform, "sum_reduce")) {
        ref_sum_reduce(exact->rows, TOKENS, top_k, HIDDEN, 1.0, element, exact->out,
                       exact->sum_abs);
        check_array(conform, "sum_reduce", element, conform->out->tokens, exact->out,
                    exact->sum_abs, TOKENS * HIDDEN);
    }
}

/* ---------------------------------------------------------------- GEMMs, experts, layer */

static void check_gemms(struct moe_conform *conform, struct exact *exact)
{
    const uint32_t flags = conform->problem.flags;
    const int64_t num_rows = (int64_t)TOKENS * conform->problem.top_k;
    const struct ref_activation activation = activation_of(conform, INTER);
    int32_t experts[ROUTES];
    ref_row_experts(conform->in->seg_indptr, NULL, EXPERTS, num_rows, experts);
    struct ref_grouped_gemm gemm = {.a = exact->rows,
                                    .w = ref_weight_dense(exact->w1, 2 * INTER, HIDDEN),
                                    .bias = flags & MOE_PROBLEM_GATE_UP_BIAS ? exact->bias1 : NULL,
                                    .experts = experts,
                                    .row_weights = exact->row_weights,
                                    .num_rows = num_rows,
                                    .n = 2 * INTER,
                                    .k = HIDDEN,
                                    .out = exact->out,
                                    .sum_abs = exact->sum_abs};
    if (moe_conform_call_try(conform, "grouped_gemm, gate and up")) {
        ref_grouped_gemm(&gemm);
        check_array(conform, "grouped_gemm, gate and up", conform->element,
                    conform->out->gate_up_rows, exact->out, exact->sum_abs, num_rows * 2 * INTER);
    }
    if (moe_conform_call_try(conform, "grouped_gemm, activated")) {
        double activated[ROUTES * INTER];
        double magnitudes[ROUTES * INTER];
        ref_grouped_gemm(&gemm);
        ref_activation_rows(&activation, exact->out, num_rows, 2 * INTER, INTER, REF_F64,
                            activated);
        for (int64_t i = 0; i < num_rows * INTER; ++i) {
            const double *sums = exact->sum_abs + i / INTER * 2 * INTER;
            magnitudes[i] = (1.0 + sums[i % INTER]) * (1.0 + sums[INTER + i % INTER]);
        }
        check_array(conform, "grouped_gemm, activated", conform->element, conform->out->inter_rows,
                    activated, magnitudes, num_rows * INTER);
    }
    gemm.a = exact->inter_rows;
    gemm.w = ref_weight_dense(exact->w2, HIDDEN, INTER);
    gemm.bias = flags & MOE_PROBLEM_DOWN_BIAS ? exact->bias2 : NULL;
    gemm.n = HIDDEN;
    gemm.k = INTER;
    if (moe_conform_call_try(conform, "grouped_gemm, down")) {
        ref_grouped_gemm(&gemm);
        check_array(conform, "grouped_gemm, down", conform->element, conform->out->rows, exact->out,
                    exact->sum_abs, num_rows * HIDDEN);
    }
}

static struct ref_experts routed_experts(const struct moe_conform *conform,
                                         const struct exact *exact)
{
    return (struct ref_experts){
        .w1 = ref_weight_dense(exact->w1, 2 * INTER, HIDDEN),
        .w2 = ref_weight_dense(exact->w2, HIDDEN, INTER),
        .bias1 = conform->problem.flags & MOE_PROBLEM_GATE_UP_BIAS ? exact->bias1 : NULL,
        .bias2 = conform->problem.flags & MOE_PROBLEM_DOWN_BIAS ? exact->bias2 : NULL,
        .activation = activation_of(conform, INTER),
        .hidden = HIDDEN,
        .inter = INTER};
}

static void check_experts(struct moe_conform *conform, struct exact *exact)
{
    const struct ref_experts routed = routed_experts(conform, exact);
    const struct ref_rounding rounding = {REF_F64, conform->element, conform->element, REF_F64};
    const double *row_weights =
        conform->problem.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT ? exact->row_weights : NULL;
    moe_conform_call_try(conform, "experts");
    for (int64_t row = 0; row < (int64_t)TOKENS * conform->problem.top_k; ++row) {
        const size_t row_bytes = (size_t)HIDDEN * ref_dtype_bytes(conform->element);
        int64_t expert = 0;
        while (row >= conform->in->seg_indptr[expert + 1]) {
            ++expert;
        }
        ref_expert_row(&routed, expert, exact->rows + row * HIDDEN,
                       row_weights != NULL ? row_weights[row] : 1.0, &rounding, exact->out,
                       exact->sum_abs);
        check_array(conform, "experts", conform->element,
                    (const unsigned char *)conform->out->rows + (size_t)row * row_bytes, exact->out,
                    exact->sum_abs, HIDDEN);
    }
}

/* The output of a layer call for these ids and weights. */
static void check_layer_output(struct moe_conform *conform, const char *call, struct exact *exact,
                               const int32_t *topk_ids, const float *topk_weights)
{
    int64_t ids[ROUTES];
    double weights[ROUTES];
    const int64_t num_routes = (int64_t)TOKENS * conform->problem.top_k;
    for (int64_t route = 0; route < num_routes; ++route) {
        ids[route] = topk_ids[route];
        weights[route] = (double)topk_weights[route];
    }
    const struct ref_layer layer = {
        .x = exact->tokens,
        .num_tokens = TOKENS,
        .routed = routed_experts(conform, exact),
        .filter = ref_filter_all(EXPERTS),
        .ids = ids,
        .weights = weights,
        .top_k = conform->problem.top_k,
        .weight_on_input = (conform->problem.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0,
        .scaling_factor = 1.0,
        .num_shared = conform->problem.shared_inter > 0,
        .shared = {.w1 = ref_weight_dense(exact->shared_w1, 2 * SHARED, HIDDEN),
                   .w2 = ref_weight_dense(exact->shared_w2, HIDDEN, SHARED),
                   .activation = activation_of(conform, SHARED),
                   .hidden = HIDDEN,
                   .inter = SHARED},
        .shared_gate =
            conform->problem.flags & MOE_PROBLEM_SHARED_SIGMOID ? exact->shared_sigmoid : NULL,
        .residual = exact->residual,
        .rounding = {REF_F64, conform->element, conform->element, conform->element},
        .out = exact->out,
        .sum_abs = exact->sum_abs};
    ref_layer(&layer);
    check_array(conform, call, conform->element, conform->out->tokens, exact->out, exact->sum_abs,
                TOKENS * HIDDEN);
}

static void check_layers(struct moe_conform *conform, struct exact *exact)
{
    moe_conform_call_try(conform, "layer of ids");
    check_layer_output(conform, "layer of ids", exact, conform->in->topk_ids,
                       conform->in->topk_weights);
    moe_conform_call_try(conform, "layer of logits");
    check_routing(conform, "layer of logits", exact, conform->in->logits);
    check_layer_output(conform, "layer of logits", exact, conform->out->topk_ids,
                       conform->out->topk_weights);
    moe_conform_call_try(conform, "layer of router");
    check_routing(conform, "layer of router", exact, conform->out->logits);
    check_layer_output(conform, "layer of router", exact, conform->out->topk_ids,
                       conform->out->topk_weights);
}

void moe_conform_check_results(struct moe_conform *conform)
{
    static struct exact exact;
    struct moe_error error;
    int num_shapes = 0;
    moe_conform_open_context(conform, 2);
    for (size_t i = 0; i < moe_conform_num_shapes; ++i) {
        if (!moe_conform_open_shape(conform, &moe_conform_shapes[i], &error)) {
            continue;
        }
        ++num_shapes;
        load_exact(conform, &exact);
        check_router(conform, &exact);
        moe_conform_check_routing_results(conform);
        check_rows(conform, &exact);
        check_gemms(conform, &exact);
        check_experts(conform, &exact);
        check_layers(conform, &exact);
        moe_conform_close_shape(conform);
    }
    if (num_shapes == 0) {
        moe_conform_skip(conform, "no problem of the checks is supported; the last refusal: %s",
                         error.message);
    }
}
