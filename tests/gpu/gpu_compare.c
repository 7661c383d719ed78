/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tolerance between two backends, u and v being the unit roundoffs of the tokens' and of the
 * output's type, eps that of fp32 (2^-24). All differences are L2 norms relative to the result.
 *
 * 1. A GEMM output is a chain of K products with fp32 sums. Partial sums of products with random
 *    signs grow like a walk: two thirds of the result on average. A CPU rounds K times, either way,
 *    in eight chains of smaller sums: less than eps sqrt(K). A GPU takes K/16 steps that align 16
 *    products to the largest and cut them off, either way: less than eps sqrt(K). Each step cuts
 *    off the sum towards zero, by eps of it on average, and that adds up: eps K/16. Together below
 *        eta(K) = eps * (K/16 + 2 sqrt(K) + 4).
 * 2. The activation multiplies that by at most 4: gate and up differ both, relu2 doubles,
 *    swiglu-oai has a slope of 1.7 and a product with up + 1.
 * 3. A rounding to 16 bits of two values that differ by d: they fall on either side of a boundary
 *    with a probability of d / ulp and are an ulp apart then: a mean square of d ulp, and an ulp is
 *    2 u at most, 1.44 u on average over a binade. However large d is, each side is within 0.41 u
 *    (root mean square) of what it rounds:
 *        straddle(d, u) = sqrt(d^2 + min(1.44 u d, 0.34 u^2)).
 *    That is the intermediate with u, an expert's row with v, and a layer's output with v.
 * 4. GEMM2 adds eta(I) (of the shared expert if that is wider), the sum over k slots, shared
 *    expert and residual (k + 4) eps. A router's logits differ by eta(H) of a magnitude of up to 4,
 *    and weights by twice that; routing weights of given logits by (2k + 8) eps.
 *
 * Rows fluctuate, by three times that, and by single steps: one ulp of an intermediate is 2 u of an
 * element, 16 times the row's root mean square at most, among I; that of an output row 2 v, 8
 * times, among H, twice. The tolerance of n rows together is the above and, divided by sqrt(n),
 * those. A row in which slots cancel has the errors of its addends: it is held against the mean of
 * all rows if that is larger.
 */
#include "gpu_compare.h"

#include <math.h>
#include <string.h>

static const double eps = 1.0 / 16777216.0;

double gpu_element(const void *elements, int32_t dtype, int64_t index)
{
    float wide;
    uint16_t half;
    if (dtype == MOE_DTYPE_FP32) {
        memcpy(&wide, (const char *)elements + 4 * index, sizeof(wide));
        return (double)wide;
    }
    memcpy(&half, (const char *)elements + 2 * index, sizeof(half));
    if (dtype == MOE_DTYPE_BF16) {
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(&wide, &bits, sizeof(wide));
        return (double)wide;
    }
    const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    const double magnitude = exponent == 31  ? (double)(fraction != 0 ? NAN : INFINITY)
                             : exponent == 0 ? ldexp(fraction, -24)
                                             : ldexp(1024 + fraction, exponent - 25);
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

double gpu_roundoff(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? eps : dtype == MOE_DTYPE_FP16 ? 0x1p-11 : 0x1p-8;
}

double gpu_underflow(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP16 ? 0x1p-25 : 0x1p-134;
}

static double eta(double k)
{
    return eps * (k / 16.0 + 2.0 * sqrt(k) + 4.0);
}

static double straddle(double d, double u)
{
    return sqrt(d * d + fmin(1.44 * u * d, 0.34 * u * u));
}

/* The difference without fluctuation; `steps`: what single steps make of a row. */
static double difference(const struct gpu_result *result, double *steps)
{
    const struct moe_problem *problem = result->problem;
    const double u = gpu_roundoff(problem->tokens.dtype);
    const double v = gpu_roundoff(problem->output_dtype);
    const double inter = fmax(problem->inter, problem->shared_inter);
    const double hidden = problem->hidden, top_k = problem->top_k;
    const double first = 4.0 * eta(hidden);
    const double middle_step = 32.0 * u / sqrt(problem->inter), step = 16.0 * v / sqrt(hidden);
    switch (result->kind) {
    case GPU_RESULT_WEIGHTS:
        *steps = 0.0;
        return (2.0 * top_k + 8.0) * eps;
    case GPU_RESULT_GATE_UP:
        *steps = middle_step;
        return straddle(eta(hidden), u);
    case GPU_RESULT_GATE_UP_ACT:
        *steps = middle_step;
        return straddle(first, u);
    case GPU_RESULT_DOWN:
        *steps = step;
        return straddle(eta(inter), v);
    default: {
        const double row = straddle(straddle(first, u) + eta(inter), v);
        const double routing = result->has_router ? 8.0 * eta(hidden) : 0.0;
        const int is_layer = result->kind == GPU_RESULT_LAYER;
        *steps = middle_step + (is_layer ? 2.0 : 1.0) * step;
        return is_layer ? straddle(row + routing + (top_k + 4.0) * eps, v) : row;
    }
    }
}

double gpu_tolerance(const struct gpu_result *result, int64_t num_rows)
{
    double steps = 0.0;
    const double usual = difference(result, &steps);
    return usual + (3.0 * usual + steps) / sqrt(num_rows > 1 ? (double)num_rows : 1.0);
}

/* Squares of a row: of its differences, and of what was expected. */
static void sum_row(const struct gpu_rows *rows, int64_t row, double *differences, double *norm)
{
    *differences = *norm = 0.0;
    for (int64_t i = row * rows->stride; i < row * rows->stride + rows->num_columns; i++) {
        const double a = gpu_element(rows->actual, rows->dtype, i);
        const double b = gpu_element(rows->expected, rows->dtype, i);
        *differences += (a - b) * (a - b); /* NaN and infinity stay */
        *norm += b * b;
    }
}

/* 0 where nothing differs, also where nothing was expected. */
static double ratio(double differences, double norm)
{
    return differences == 0.0 ? 0.0 : sqrt(differences / norm);
}

struct gpu_comparison gpu_compare(const struct gpu_result *result, const struct gpu_rows *rows)
{
    struct gpu_comparison comparison = {.worst_row = -1};
    double sum = 0.0, norm = 0.0, row_sum, row_norm;
    int64_t num_rows = 0;
    for (int64_t row = 0; row < rows->num_rows; row++) {
        if (rows->is_skipped == NULL || !rows->is_skipped[row]) {
            sum_row(rows, row, &row_sum, &row_norm);
            sum += row_sum;
            norm += row_norm;
            num_rows++;
        }
    }
    for (int64_t row = 0; row < rows->num_rows; row++) {
        if (rows->is_skipped == NULL || !rows->is_skipped[row]) {
            sum_row(rows, row, &row_sum, &row_norm);
            const double scale = fmax(row_norm, norm / (double)num_rows);
            const double worst = ratio(row_sum, scale) / gpu_tolerance(result, 1);
            if (isnan(worst) || worst > comparison.worst) { /* NaN is larger than all */
                comparison.worst = worst;
                comparison.worst_row = row;
            }
        }
    }
    comparison.relative = ratio(sum, norm);
    comparison.all = comparison.relative / gpu_tolerance(result, num_rows);
    return comparison;
}

int gpu_is_close(const struct gpu_comparison *comparison)
{
    return comparison->all <= 1.0 && comparison->worst <= 1.0;
}
