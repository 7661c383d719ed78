/* SPDX-License-Identifier: Apache-2.0 */
/* Expert rows back to tokens. */
#include "ref.h"

#include <math.h>

/* Adds value to *sum, and its magnitude to *sum_abs. */
static void add(double *sum, double *sum_abs, double value)
{
    *sum += value;
    *sum_abs += fabs(value);
}

void ref_post_reorder(const struct ref_post_reorder *args)
{
    for (int64_t t = 0; t < args->num_tokens; t++) {
        for (int64_t c = 0; c < args->hidden; c++) {
            int64_t at = t * args->hidden + c;
            double sum = 0.0;
            double sum_abs = 0.0;
            for (int64_t j = 0; j < args->top_k; j++) {
                int64_t row = args->src2dst[t * args->top_k + j];
                double weight = args->weights != NULL ? args->weights[t * args->top_k + j] : 1.0;
                if (row >= 0) {
                    add(&sum, &sum_abs, weight * args->rows[row * args->hidden + c]);
                }
            }
            sum *= args->scaling_factor;
            sum_abs *= fabs(args->scaling_factor);
            if (args->shared != NULL) {
                double factor = args->shared_factor != NULL ? args->shared_factor[t] : 1.0;
                add(&sum, &sum_abs, factor * args->shared[at]);
            }
            if (args->residual != NULL) {
                add(&sum, &sum_abs, args->residual[at]);
            }
            args->out[at] = ref_round(args->out_dtype, sum);
            if (args->sum_abs != NULL) {
                args->sum_abs[at] = sum_abs;
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
                add(&sum, &magnitude, in[(t * top_k + j) * hidden + c]);
            }
            out[t * hidden + c] = ref_round(out_dtype, sum * scaling_factor);
            if (sum_abs != NULL) {
                sum_abs[t * hidden + c] = magnitude * fabs(scaling_factor);
            }
        }
    }
}
