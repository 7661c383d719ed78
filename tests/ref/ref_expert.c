/* SPDX-License-Identifier: Apache-2.0 */
/* Activation, GEMMs, one expert on one row, and the whole layer: per token, per chosen expert. */
#include "ref.h"
#include "ref_require.h"

#include <math.h>
#include <stdlib.h>

static const double sqrt_half = 0.70710678118654752440;
static const double sqrt_two_over_pi = 0.79788456080286535588;

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static struct ref_activation usual_activation(enum ref_act act, bool gated, int64_t up_offset,
                                              int64_t stride)
{
    struct ref_activation activation = {
        .act = act,
        .gated = gated,
        .alpha = 1.702,
        .limit = 7.0,
        .gate_offset = 0,
        .up_offset = up_offset,
        .stride = stride,
    };
    return activation;
}

struct ref_activation ref_activation_halves(enum ref_act act, int64_t inter)
{
    return usual_activation(act, true, inter, 1);
}

struct ref_activation ref_activation_interleaved(enum ref_act act)
{
    return usual_activation(act, true, 1, 2);
}

struct ref_activation ref_activation_ungated(enum ref_act act)
{
    return usual_activation(act, false, 0, 1);
}

static double swiglu_oai(double gate, double up, double alpha, double limit)
{
    double g = gate > limit ? limit : gate;
    double u = up > limit ? limit : up < -limit ? -limit : up;
    return g * sigmoid(alpha * g) * (u + 1.0);
}

double ref_activate(const struct ref_activation *activation, double gate, double up)
{
    double value = 0.0;
    switch (activation->act) {
    case REF_ACT_SILU:
        value = gate * sigmoid(gate);
        break;
    case REF_ACT_GELU:
        value = 0.5 * gate * (1.0 + erf(gate * sqrt_half));
        break;
    case REF_ACT_GELU_TANH:
        value =
            0.5 * gate * (1.0 + tanh(sqrt_two_over_pi * (gate + 0.044715 * gate * gate * gate)));
        break;
    case REF_ACT_SWIGLU_OAI:
        ref_require(activation->gated, "swiglu-oai is gated");
        return swiglu_oai(gate, up, activation->alpha, activation->limit);
    case REF_ACT_RELU2:
        value = gate < 0.0 ? 0.0 : gate * gate;
        break;
    case REF_ACT_IDENTITY:
        value = gate;
        break;
    }
    return activation->gated ? value * up : value;
}

void ref_activation_rows(const struct ref_activation *activation, const double *in,
                         int64_t num_rows, int64_t in_width, int64_t inter,
                         enum ref_dtype out_dtype, double *out)
{
    for (int64_t r = 0; r < num_rows; r++) {
        for (int64_t i = 0; i < inter; i++) {
            const double *at = in + r * in_width + i * activation->stride;
            double up = activation->gated ? at[activation->up_offset] : 0.0;
            double value = ref_activate(activation, at[activation->gate_offset], up);
            out[r * inter + i] = ref_round(out_dtype, value);
        }
    }
}

struct ref_weight ref_weight_dense(const double *base, int64_t n, int64_t k)
{
    struct ref_weight weight = {base, n * k, k, 1};
    return weight;
}

/* Sum over k of a[k] W[expert][n][k]; *sum_abs receives the sum of magnitudes. */
static double dot(const double *a, const struct ref_weight *w, int64_t expert, int64_t n, int64_t k,
                  double *sum_abs)
{
    const double *row = w->base + expert * w->expert_stride + n * w->row_stride;
    double sum = 0.0;
    double magnitude = 0.0;
    for (int64_t i = 0; i < k; i++) {
        double product = a[i] * row[i * w->col_stride];
        sum += product;
        magnitude += fabs(product);
    }
    *sum_abs = magnitude;
    return sum;
}

void ref_grouped_gemm(const struct ref_grouped_gemm *args)
{
    int64_t rows_per_input = args->rows_per_input > 0 ? args->rows_per_input : 1;
    for (int64_t r = 0; r < args->num_rows; r++) {
        const double *a = args->a + r / rows_per_input * args->k;
        int64_t expert = args->experts[r];
        double weight = args->row_weights != NULL ? args->row_weights[r] : 1.0;
        for (int64_t n = 0; expert >= 0 && n < args->n; n++) {
            double bias = args->bias != NULL ? args->bias[expert * args->n + n] : 0.0;
            double magnitude;
            double sum = dot(a, &args->w, expert, n, args->k, &magnitude);
            args->out[r * args->n + n] = weight * sum + bias;
            if (args->sum_abs != NULL) {
                args->sum_abs[r * args->n + n] = fabs(weight) * magnitude + fabs(bias);
            }
        }
    }
}

void ref_expert_row(const struct ref_experts *experts, int64_t expert, const double *x,
                    double input_weight, const struct ref_rounding *rounding, double *out,
                    double *sum_abs)
{
    int64_t w1_rows = experts->activation.gated ? 2 * experts->inter : experts->inter;
    double *first = ref_require_array(w1_rows, sizeof *first);
    double *intermediate = ref_require_array(experts->inter, sizeof *intermediate);
    double magnitude;
    for (int64_t n = 0; n < w1_rows; n++) {
        double bias = experts->bias1 != NULL ? experts->bias1[expert * w1_rows + n] : 0.0;
        double sum = dot(x, &experts->w1, expert, n, experts->hidden, &magnitude);
        first[n] = ref_round(rounding->gemm1, sum * input_weight + bias);
    }
    ref_activation_rows(&experts->activation, first, 1, w1_rows, experts->inter,
                        rounding->intermediate, intermediate);
    for (int64_t c = 0; c < experts->hidden; c++) {
        double bias = experts->bias2 != NULL ? experts->bias2[expert * experts->hidden + c] : 0.0;
        double sum = dot(intermediate, &experts->w2, expert, c, experts->inter, &magnitude);
        out[c] = ref_round(rounding->row, sum + bias);
        if (sum_abs != NULL) {
            sum_abs[c] = magnitude + fabs(bias);
        }
    }
    free(intermediate);
    free(first);
}

void ref_experts_rows(const struct ref_experts *experts, const double *x,
                      const int32_t *row_experts, int64_t num_rows, const double *row_weights,
                      const struct ref_rounding *rounding, double *out)
{
    for (int64_t r = 0; r < num_rows; r++) {
        if (row_experts[r] >= 0) {
            ref_expert_row(experts, row_experts[r], x + r * experts->hidden,
                           row_weights != NULL ? row_weights[r] : 1.0, rounding,
                           out + r * experts->hidden, NULL);
        }
    }
}

/* sum += factor * row, and the same over magnitudes. */
static void add_row(double *sum, double *sum_abs, double factor, const double *row,
                    const double *row_abs, int64_t hidden)
{
    for (int64_t c = 0; c < hidden; c++) {
        sum[c] += factor * row[c];
        sum_abs[c] += fabs(factor) * row_abs[c];
    }
}

static double shared_factor(const struct ref_layer *args, int64_t expert, const double *x)
{
    double sum = 0.0;
    if (args->shared_gate == NULL) {
        return 1.0;
    }
    for (int64_t c = 0; c < args->routed.hidden; c++) {
        sum += x[c] * args->shared_gate[expert * args->routed.hidden + c];
    }
    return sigmoid(sum);
}

/* row: one expert's output row, its magnitudes behind it. */
static void run_token(const struct ref_layer *args, int64_t token, double *row, double *sum,
                      double *sum_abs)
{
    int64_t hidden = args->routed.hidden;
    const double *x = args->x + token * hidden;
    for (int64_t c = 0; c < hidden; c++) {
        sum[c] = 0.0;
        sum_abs[c] = 0.0;
    }
    for (int64_t j = 0; j < args->top_k; j++) {
        int64_t expert = ref_local_expert(&args->filter, args->ids[token * args->top_k + j]);
        double weight = args->weights[token * args->top_k + j];
        if (expert < 0) {
            continue;
        }
        ref_expert_row(&args->routed, expert, x, args->weight_on_input ? weight : 1.0,
                       &args->rounding, row, row + hidden);
        add_row(sum, sum_abs, args->weight_on_input ? 1.0 : weight, row, row + hidden, hidden);
    }
    for (int64_t c = 0; c < hidden; c++) {
        sum[c] *= args->scaling_factor;
        sum_abs[c] *= fabs(args->scaling_factor);
    }
    for (int64_t s = 0; s < args->num_shared; s++) {
        ref_expert_row(&args->shared, s, x, 1.0, &args->rounding, row, row + hidden);
        add_row(sum, sum_abs, shared_factor(args, s, x), row, row + hidden, hidden);
    }
}

void ref_layer(const struct ref_layer *args)
{
    int64_t hidden = args->routed.hidden;
    ref_require(args->num_shared == 0 || args->shared.hidden == hidden,
                "shared and routed experts differ in hidden");
    double *row = ref_require_array(2 * hidden, sizeof *row);
    double *sum = ref_require_array(2 * hidden, sizeof *sum);
    for (int64_t t = 0; t < args->num_tokens; t++) {
        run_token(args, t, row, sum, sum + hidden);
        for (int64_t c = 0; c < hidden; c++) {
            double residual = args->residual != NULL ? args->residual[t * hidden + c] : 0.0;
            args->out[t * hidden + c] = ref_round(args->rounding.out, sum[c] + residual);
            if (args->sum_abs != NULL) {
                args->sum_abs[t * hidden + c] = sum[hidden + c] + fabs(residual);
            }
        }
    }
    free(sum);
    free(row);
}
