/* SPDX-License-Identifier: Apache-2.0 */
/* Quantization, and rows moved to their places. What the contract rounds to fp32 is computed in
 * double and rounded: products of two fp32 values are exact there, and quotients round the same. */
#include "ref.h"
#include "ref_require.h"

#include <math.h>
#include <string.h>

void ref_quantize_static(const double *x, int64_t width, double scale, double *quantized)
{
    const double inverse = ref_round(REF_F32, 1.0 / scale);
    for (int64_t i = 0; i < width; i++) {
        quantized[i] = ref_round(REF_E4M3, ref_round(REF_F32, x[i] * inverse));
    }
}

static double scale_of(const double *x, int64_t width, bool power_of_two)
{
    double amax = 0.0;
    for (int64_t i = 0; i < width; i++) {
        amax = fmax(amax, fabs(x[i])); /* fmax takes the other of a NaN */
    }
    amax = fmax(fmin(amax, 0x1.fffffep127), (double)1e-10f);
    const double scale = ref_round(REF_F32, amax / 448.0);
    int exponent;
    if (!power_of_two || frexp(scale, &exponent) == 0.5) {
        return scale;
    }
    return ldexp(1.0, exponent);
}

void ref_quantize(const double *x, int64_t num_rows, int64_t width, int64_t group_k,
                  bool power_of_two, double *quantized, double *scales)
{
    const int64_t group = group_k == 0 ? width : group_k;
    for (int64_t r = 0; r < num_rows; r++) {
        for (int64_t begin = 0; begin < width; begin += group) {
            const int64_t count = begin + group < width ? group : width - begin;
            const int64_t at = r * width + begin;
            *scales = scale_of(x + at, count, power_of_two);
            ref_quantize_static(x + at, count, *scales, quantized + at);
            scales++;
        }
    }
}

void ref_store_scales(enum ref_scale_layout layout, const double *scales, int64_t num_groups,
                      int64_t row, int64_t stride, void *array)
{
    for (int64_t g = 0; g < num_groups; g++) {
        if (layout == REF_SCALE_ROW_MAJOR) {
            ref_store(REF_F32, array, row * stride + g, scales[g]);
        } else if (layout == REF_SCALE_COLUMN_MAJOR) {
            ref_store(REF_F32, array, g * stride + row, scales[g]);
        } else {
            unsigned char *word = (unsigned char *)array + 4 * (g / 4 * stride + row);
            if (g % 4 == 0) {
                memset(word, 0, 4);
            }
            word[g % 4] = (unsigned char)(ilogb(scales[g]) + 127);
        }
    }
}

static double given_scale(const struct ref_pre_reorder *args, int64_t token, int64_t row)
{
    switch (args->quant) {
    case REF_QUANT_TOKEN_STATIC:
        return args->scales[token];
    case REF_QUANT_EXPERT_STATIC:
        return args->scales[args->row_experts[row]];
    default:
        return args->scales[0];
    }
}

void ref_pre_reorder(const struct ref_pre_reorder *args)
{
    const int64_t hidden = args->hidden;
    const int64_t group = args->group_k == 0 ? hidden : args->group_k;
    const int64_t num_groups = (hidden + group - 1) / group;
    ref_require(args->quant == REF_QUANT_NONE || args->out_dtype == REF_E4M3,
                "quantization is to e4m3");
    for (int64_t t = 0; t < args->num_tokens; t++) {
        const double *x = args->x + t * hidden;
        for (int64_t j = 0; j < args->top_k; j++) {
            const int64_t row = args->src2dst[t * args->top_k + j];
            if (row < 0) {
                continue;
            }
            double *out = args->out + row * hidden;
            if (args->quant == REF_QUANT_DYNAMIC) {
                ref_quantize(x, 1, hidden, args->group_k, args->power_of_two, out,
                             args->out_scales + row * num_groups);
            } else if (args->quant != REF_QUANT_NONE) {
                ref_quantize_static(x, hidden, given_scale(args, t, row), out);
            } else {
                for (int64_t c = 0; c < hidden; c++) {
                    out[c] = ref_round(args->out_dtype, x[c]);
                }
            }
        }
    }
}
