/* SPDX-License-Identifier: Apache-2.0 */
/* What gpu_gemm tells its reference kernel. */
#ifndef MOE_GPU_GEMM_REF_H
#define MOE_GPU_GEMM_REF_H

#include "moe_plugin.h"

/* Tensors are packed but for the strides; two matrices are apart. */
struct gemm_reference {
    const void *input;
    const void *weight[2];
    const void *bias[2]; /* [E, n] of the inputs' type; NULL: none */
    const float *row_weights;
    const int32_t *row_ids;     /* NULL: identity */
    const int32_t *row_experts; /* [num_rows]; -1: zeros; below: not a row */
    double *values;             /* [num_rows, num_columns] */
    double *allowed;            /* error; below 0: nothing belongs there */
    int64_t num_rows;
    int64_t num_columns;
    int64_t num_row_ids;
    int64_t input_stride;
    int64_t expert_stride;
    int64_t row_stride;
    int32_t row_ids_div;
    int32_t scatter;
    int32_t n;
    int32_t k;
    int32_t num_matrices;
    int32_t has_activation;
    int32_t activation;
    int32_t is_half;
    int32_t output_dtype;
    float alpha;
    float limit;
    int32_t reserved;
};

#endif
