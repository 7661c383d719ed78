/* SPDX-License-Identifier: Apache-2.0 */
/* Quantization, and rows moved to their places. */
#include "ref.h"
#include "ref_require.h"

#include <math.h>

enum { QUANT_GROUP_COLUMNS = 128 };

static double quantize_span(const double *x, int64_t width, double *quantized)
{
    double amax = 1e-10;
    for (int64_t i = 0; i < width; i++) {
        amax = fmax(amax, fabs(x[i]));
    }
    double scale = ref_round(REF_F32, amax / 448.0);
    for (int64_t i = 0; i < width; i++) {
        quantized[i] = ref_round(REF_E4M3, x[i] / scale);
    }
    return scale;
}

void ref_quantize_per_token(const double *x, int64_t num_rows, int64_t width, double *quantized,
                            double *scales)
{
    for (int64_t r = 0; r < num_rows; r++) {
        scales[r] = quantize_span(x + r * width, width, quantized + r * width);
    }
}

void ref_quantize_groups(const double *x, int64_t num_rows, int64_t width, double *quantized,
                         double *scales)
{
    int64_t num_groups = (width + QUANT_GROUP_COLUMNS - 1) / QUANT_GROUP_COLUMNS;
    for (int64_t r = 0; r < num_rows; r++) {
        for (int64_t g = 0; g < num_groups; g++) {
            int64_t begin = g * QUANT_GROUP_COLUMNS;
            int64_t end = begin + QUANT_GROUP_COLUMNS < width ? begin + QUANT_GROUP_COLUMNS : width;
            scales[r * num_groups + g] =
                quantize_span(x + r * width + begin, end - begin, quantized + r * width + begin);
        }
    }
}

static double given_scale(const struct ref_pre_reorder *args, int64_t token, int64_t row)
{
    switch (args->quant) {
    case REF_QUANT_STATIC:
        return args->scales[0];
    case REF_QUANT_TOKEN_STATIC:
        return args->scales[token];
    case REF_QUANT_EXPERT_STATIC:
        return args->scales[args->row_experts[row]];
    default:
        return 1.0;
    }
}

void ref_pre_reorder(const struct ref_pre_reorder *args)
{
    int64_t hidden = args->hidden;
    int64_t num_groups = (hidden + QUANT_GROUP_COLUMNS - 1) / QUANT_GROUP_COLUMNS;
    bool dynamic = args->quant == REF_QUANT_TOKEN || args->quant == REF_QUANT_GROUP;
    ref_require(!dynamic || args->out_dtype == REF_E4M3, "dynamic quantization is to e4m3");
    for (int64_t t = 0; t < args->num_tokens; t++) {
        const double *x = args->x + t * hidden;
        for (int64_t j = 0; j < args->top_k; j++) {
            int64_t row = args->src2dst[t * args->top_k + j];
            if (row < 0) {
                continue;
            }
            double *out = args->out + row * hidden;
            if (args->quant == REF_QUANT_TOKEN) {
                ref_quantize_per_token(x, 1, hidden, out, args->out_scales + row);
            } else if (args->quant == REF_QUANT_GROUP) {
                ref_quantize_groups(x, 1, hidden, out, args->out_scales + row * num_groups);
            } else {
                double scale = given_scale(args, t, row);
                for (int64_t c = 0; c < hidden; c++) {
                    out[c] = ref_round(args->out_dtype, x[c] / scale);
                }
            }
        }
    }
}
