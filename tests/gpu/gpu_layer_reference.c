/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One token of a layer in float64, and how far a result may be from it. u and v are the unit
 * roundoffs of the tokens' and of the output's type, eps that of fp32. For every element:
 *
 * - A GEMM output, computed with fp32 sums, has at most the running error of the two orders that
 *   there are: eps times the sum of all |partial sums| of eight lanes (a CPU), and 8 eps times the
 *   sum over steps of 16 products of the larger of |partial sum| and |product| (a tensor core).
 *   Both are added up along the way.
 * - The activation carries gate's and up's errors on: what it is at the corners of their intervals,
 *   plus its own error of 16 eps of its value and 8 eps of its factors' product.
 * - The intermediate is rounded once: u |m_i| each. These errors are independent, at most that
 *   large and zero on average, so that sum_i w_hi e_i is beyond 7 sqrt(sum_i (w_hi u m_i)^2) with a
 *   probability of 2 exp(-49/2) (Hoeffding); everything else is added up as if it had one sign.
 * - A row of an expert is rounded once (v), weighted and summed over slots, shared expert and
 *   residual in fp32 ((k + 4) eps of the sum of magnitudes), and rounded once more (v).
 *
 * The L2 norm over a row: the same without the 7, since single deviations average out.
 */
#include "gpu_layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double eps = 1.0 / 16777216.0, deviations = 7.0;

enum { NUM_LANES = 8, NUM_HALVES = 65536 };

void layer_expected_init(struct layer_expected *expected, const struct layer_case *test)
{
    expected->values = calloc((size_t)test->shape.hidden, sizeof(double));
    expected->tolerances = calloc((size_t)test->shape.hidden, sizeof(double));
    expected->row_tolerance = 0.0;
}

void layer_expected_finish(struct layer_expected *expected)
{
    free(expected->values);
    free(expected->tolerances);
}

/* gpu_element of all 16-bit elements of a type. */
static const float *halves_of(int32_t dtype)
{
    static float tables[2][NUM_HALVES];
    static int is_made[2];
    const int i = dtype == MOE_DTYPE_FP16;
    if (!is_made[i]) {
        for (int bits = 0; bits < NUM_HALVES; bits++) {
            const uint16_t half = (uint16_t)bits;
            tables[i][bits] = (float)gpu_element(&half, dtype, 0);
        }
        is_made[i] = 1;
    }
    return tables[i];
}

/* The weights that meet a vector: col_stride apart, of 16 bits. */
struct weight_row {
    const uint16_t *first;
    int64_t stride;
    const float *values;
};

static struct weight_row row_of(const struct moe_operand *operand, int64_t e, int64_t row)
{
    const int64_t at = row * operand->row_stride;
    const uint16_t *base = operand->table != NULL
                               ? operand->table[e]
                               : (const uint16_t *)operand->base + e * operand->expert_stride;
    const struct weight_row weights = {base + at, operand->col_stride, halves_of(operand->dtype)};
    return weights;
}

static double bias_of(const struct moe_operand *operand, int64_t e, int64_t row)
{
    return gpu_element(operand->base, operand->dtype,
                       e * operand->expert_stride + row * operand->row_stride);
}

/* A value and the largest error of a computed one. */
struct bounded {
    double value, error;
};

static struct bounded multiply(const double *x, struct weight_row weights, int64_t k)
{
    double lanes[NUM_LANES] = {0.0}, by_lanes = 0.0, by_steps = 0.0, largest = 0.0, sum = 0.0;
    for (int64_t i = 0; i < k; i++) {
        const double product = x[i] * (double)weights.values[weights.first[i * weights.stride]];
        double *lane = &lanes[i % NUM_LANES];
        *lane += product;
        sum += product;
        by_lanes += fabs(*lane);
        largest = fmax(largest, fabs(product));
        if (i % 16 == 15 || i + 1 == k) {
            by_steps += fmax(fabs(sum), largest);
            largest = 0.0;
        }
    }
    const struct bounded result = {sum, eps * (by_lanes + 8.0 * by_steps + 4.0 * fabs(sum))};
    return result;
}

static double activate(const struct moe_problem *problem, double gate, double up)
{
    const int ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    const double x = ungated ? up : gate, factor = ungated ? 1.0 : up;
    switch (problem->activation) {
    case MOE_ACTIVATION_SILU:
        return x / (1.0 + exp(-x)) * factor;
    case MOE_ACTIVATION_GELU:
        return x * 0.5 * (1.0 + erf(x / sqrt(2.0))) * factor;
    case MOE_ACTIVATION_GELU_TANH:
        return x * 0.5 * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x))) * factor;
    case MOE_ACTIVATION_SWIGLU_OAI: {
        const double g = fmin(gate, (double)problem->act_limit);
        const double u = fmax(fmin(up, (double)problem->act_limit), -(double)problem->act_limit);
        return g / (1.0 + exp(-(double)problem->act_alpha * g)) * (u + 1.0);
    }
    case MOE_ACTIVATION_RELU2:
        return fmax(x, 0.0) * fmax(x, 0.0) * factor;
    default:
        return x * factor;
    }
}

static struct bounded activate_bounded(const struct moe_problem *problem, struct bounded gate,
                                       struct bounded up)
{
    const int ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    struct bounded result = {activate(problem, gate.value, up.value), 0.0};
    for (int corner = 0; corner < 4; corner++) {
        const double g = gate.value + (corner & 1 ? gate.error : -gate.error);
        const double u = up.value + (corner & 2 ? up.error : -up.error);
        result.error = fmax(result.error, fabs(activate(problem, g, u) - result.value));
    }
    const double factors =
        ungated ? up.value * fmax(fabs(up.value), 1.0) : gate.value * (fabs(up.value) + 1.0);
    result.error += eps * (16.0 * fabs(result.value) + 8.0 * fabs(factors));
    return result;
}

/* An expert, as bound. */
struct expert {
    const struct moe_operand *gate, *up, *down, *gate_bias, *up_bias, *down_bias;
    int64_t e, inter;
};

static struct expert routed_expert(const struct layer_case *test, int64_t e)
{
    const struct moe_weights_desc *desc = &test->host_desc;
    const uint32_t flags = test->shape.flags;
    const int has_gate = (flags & MOE_PROBLEM_UNGATED) == 0;
    const int has_bias = (flags & MOE_PROBLEM_GATE_UP_BIAS) != 0;
    const struct expert expert = {has_gate ? &desc->gate : NULL,
                                  &desc->up,
                                  &desc->down,
                                  has_gate && has_bias ? &desc->gate_bias : NULL,
                                  has_bias ? &desc->up_bias : NULL,
                                  (flags & MOE_PROBLEM_DOWN_BIAS) != 0 ? &desc->down_bias : NULL,
                                  e,
                                  test->shape.inter};
    return expert;
}

static struct expert shared_expert(const struct layer_case *test)
{
    const struct moe_weights_desc *desc = &test->host_desc;
    const int has_gate = (test->shape.flags & MOE_PROBLEM_UNGATED) == 0;
    const struct expert expert = {.gate = has_gate ? &desc->shared_gate : NULL,
                                  .up = &desc->shared_up,
                                  .down = &desc->shared_down,
                                  .inter = test->shape.shared_inter};
    return expert;
}

/* One of gate and up, with weight and bias; zero where there is none. */
static struct bounded channel(const struct expert *expert, const struct moe_operand *operand,
                              const struct moe_operand *bias, const double *x, int64_t hidden,
                              int64_t i, double on_input)
{
    struct bounded sum = {0.0, 0.0};
    if (operand == NULL) {
        return sum;
    }
    sum = multiply(x, row_of(operand, expert->e, i), hidden);
    sum.value = sum.value * on_input + (bias != NULL ? bias_of(bias, expert->e, i) : 0.0);
    sum.error = sum.error * fabs(on_input) + 4.0 * eps * fabs(sum.value);
    return sum;
}

/* Sums over the addends of a row: [hidden] each. */
struct sums {
    double *value, *magnitude;
    double *certain;  /* errors added up as if of one sign */
    double *variance; /* squares of 1 deviation of the random ones */
    double *rounds;   /* roundings of experts' rows, */
    double *rounding; /* and their squares */
};

/* One expert's row of a token, with a weight that has an error of its own. */
static void add_expert(const struct layer_case *test, const struct expert *expert, const double *x,
                       double on_input, struct bounded weight, struct sums *sums)
{
    const int64_t hidden = test->shape.hidden, inter = expert->inter;
    const double u = gpu_roundoff(test->shape.dtype), v = gpu_roundoff(test->shape.output_dtype);
    double *middle = calloc((size_t)inter * 3, sizeof(double));
    double *error = middle + inter, *rounding = error + inter;
    for (int64_t i = 0; i < inter; i++) {
        const struct bounded g =
            channel(expert, expert->gate, expert->gate_bias, x, hidden, i, on_input);
        const struct bounded up =
            channel(expert, expert->up, expert->up_bias, x, hidden, i, on_input);
        const struct bounded m = activate_bounded(&test->problem, g, up);
        middle[i] = m.value;
        error[i] = m.error;
        rounding[i] = u * (fabs(m.value) + m.error) + gpu_underflow(test->shape.dtype);
    }
    for (int64_t h = 0; h < hidden; h++) {
        const struct weight_row row = row_of(expert->down, expert->e, h);
        struct bounded y = multiply(middle, row, inter);
        double variance = 0.0;
        for (int64_t i = 0; i < inter; i++) {
            const double w = (double)row.values[row.first[i * row.stride]];
            y.error += fabs(w) * error[i];
            variance += w * w * rounding[i] * rounding[i];
        }
        y.value += expert->down_bias != NULL ? bias_of(expert->down_bias, expert->e, h) : 0.0;
        y.error += 2.0 * eps * fabs(y.value);
        const double largest = fabs(y.value) + y.error + deviations * sqrt(variance);
        const double round =
            fabs(weight.value) * (v * largest + gpu_underflow(test->shape.output_dtype));
        sums->value[h] += weight.value * y.value;
        sums->magnitude[h] += fabs(weight.value * y.value);
        sums->certain[h] += fabs(weight.value) * y.error + weight.error * largest;
        sums->rounds[h] += round;
        sums->variance[h] += weight.value * weight.value * variance;
        sums->rounding[h] += round * round;
    }
    free(middle);
}

static struct bounded shared_factor(const struct layer_case *test, const double *x)
{
    struct bounded factor = {1.0, 0.0};
    if ((test->shape.flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        const struct bounded logit =
            multiply(x, row_of(&test->host_desc.shared_sigmoid, 0, 0), test->shape.hidden);
        factor.value = 1.0 / (1.0 + exp(-logit.value));
        factor.error = logit.error / 4.0 + 16.0 * eps * factor.value;
    }
    return factor;
}

/* Scaling, of what the routed experts gave. */
static void scale(const struct layer_case *test, struct sums *sums)
{
    const double by = (double)test->shape.scaling;
    for (int64_t h = 0; h < test->shape.hidden && by != 0.0; h++) {
        sums->value[h] *= by;
        sums->magnitude[h] *= fabs(by);
        sums->certain[h] *= fabs(by);
        sums->variance[h] *= by * by;
        sums->rounds[h] *= fabs(by);
        sums->rounding[h] *= by * by;
    }
}

static void conclude(const struct layer_case *test, const struct sums *sums,
                     struct layer_expected *expected)
{
    const double v = gpu_roundoff(test->shape.output_dtype);
    const double smallest = gpu_underflow(test->shape.output_dtype);
    double squares = 0.0;
    for (int64_t h = 0; h < test->shape.hidden; h++) {
        const double sum = (test->shape.top_k + 4.0) * eps * sums->magnitude[h];
        const double certain = sums->certain[h] + sum;
        const double before = certain + deviations * sqrt(sums->variance[h]) +
                              fmin(sums->rounds[h], deviations * sqrt(sums->rounding[h]));
        const double last = sums->magnitude[h] > 0.0
                                ? v * (fabs(sums->value[h]) + before) + smallest
                                : 0.0; /* what is zero is exact */
        expected->values[h] = sums->value[h];
        expected->tolerances[h] = before + last;
        squares += certain * certain + sums->variance[h] + sums->rounding[h] + last * last;
    }
    expected->row_tolerance = sqrt(squares);
}

void layer_reference(const struct layer_case *test, int64_t token, const int32_t *ids,
                     const float *weights, int32_t has_residual, struct layer_expected *expected)
{
    const struct layer_shape *shape = &test->shape;
    const int64_t hidden = shape->hidden;
    const int on_input = (shape->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
    double *memory = calloc((size_t)hidden * 7, sizeof(double));
    double *x = memory;
    struct sums sums = {memory + hidden,     memory + 2 * hidden, memory + 3 * hidden,
                        memory + 4 * hidden, memory + 5 * hidden, memory + 6 * hidden};
    for (int64_t h = 0; h < hidden; h++) {
        x[h] = gpu_element(test->tokens.host, shape->dtype, token * hidden + h);
    }
    for (int32_t j = 0; j < shape->top_k; j++) {
        if (ids[j] >= 0 && ids[j] < shape->num_experts) {
            const struct expert expert = routed_expert(test, ids[j]);
            const struct bounded weight = {on_input ? 1.0 : (double)weights[j], 0.0};
            add_expert(test, &expert, x, on_input ? (double)weights[j] : 1.0, weight, &sums);
        }
    }
    scale(test, &sums);
    if (shape->shared_inter > 0) {
        const struct expert shared = shared_expert(test);
        add_expert(test, &shared, x, 1.0, shared_factor(test, x), &sums);
    }
    for (int64_t h = 0; h < hidden && has_residual; h++) {
        const double added =
            gpu_element(test->residual.host, shape->output_dtype, token * hidden + h);
        sums.value[h] += added;
        sums.magnitude[h] += fabs(added);
    }
    conclude(test, &sums, expected);
    free(memory);
}
