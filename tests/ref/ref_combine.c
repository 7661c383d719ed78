/* SPDX-License-Identifier: Apache-2.0 */
/* Expert rows back to tokens. */
#include "ref.h"

#include <math.h>

void ref_post_reorder(const struct ref_post_reorder *args)
{
    for (int64_t t = 0; t < args->num_tokens; t++) {
        for (int64_t c = 0; c < args->hidden; c++) {
            double sum = 0.0;
            double magnitude = 0.0;
            for (int64_t j = 0; j < args->top_k; j++) {
                int64_t row = args->src2dst[t * args->top_k + j];
                if (row >= 0) {
                    double weight = args->weights ? args->weights[t * args->top_k + j] : 1.0;
                    sum += weight * args->rows[row * args->hidden + c];
                    magnitude += fabs(weight * args->rows[row * args->hidden + c]);
                }
            }
            double addend = args->addend != NULL ? args->addend[t * args->hidden + c] : 0.0;
            sum = sum * args->scaling_factor + addend;
            args->out[t * args->hidden + c] = ref_round(args->out_dtype, sum);
            if (args->sum_abs != NULL) {
                args->sum_abs[t * args->hidden + c] =
                    magnitude * fabs(args->scaling_factor) + fabs(addend);
            }
        }
    }
}

void ref_sum_reduce(const double *in, int64_t num_tokens, int64_t top_k, int64_t hidden,
                    double scaling_factor, enum ref_dtype out_dtype, double *out, double *sum_abs)
{
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t c = 0; c < hidden; c++) {
            double sum = 0.0;
            double magnitude = 0.0;
            for (int64_t j = 0; j < top_k; j++) {
                sum += in[(t * top_k + j) * hidden + c];
                magnitude += fabs(in[(t * top_k + j) * hidden + c]);
            }
            out[t * hidden + c] = ref_round(out_dtype, sum * scaling_factor);
            if (sum_abs != NULL) {
                sum_abs[t * hidden + c] = magnitude * fabs(scaling_factor);
            }
        }
    }
}
