/* SPDX-License-Identifier: Apache-2.0 */
/* How far two results of the same call may lie apart, derived in gpu_compare.c, and how far they
 * do. */
#ifndef MOE_GPU_COMPARE_H
#define MOE_GPU_COMPARE_H

#include "moe_plugin.h"

#include <stddef.h>
#include <stdint.h>

/* Element i of an array of fp32, bf16 or fp16. */
double gpu_element(const void *elements, int32_t dtype, int64_t index);

/* Largest relative error of rounding to a type; half the distance of its subnormal numbers. */
double gpu_roundoff(int32_t dtype);
double gpu_underflow(int32_t dtype);

/* What made the results. */
enum {
    GPU_RESULT_LAYER,
    GPU_RESULT_EXPERTS,
    GPU_RESULT_GATE_UP,     /* GEMM1 without its activation */
    GPU_RESULT_GATE_UP_ACT, /* and with it */
    GPU_RESULT_DOWN,        /* GEMM2 */
    GPU_RESULT_WEIGHTS      /* routing weights of given logits */
};

struct gpu_result {
    const struct moe_problem *problem;
    int32_t kind;       /* GPU_RESULT_* */
    int32_t has_router; /* a layer's logits are its router's */
};

/* Most that num_rows rows of two backends may differ together, relative L2. */
double gpu_tolerance(const struct gpu_result *result, int64_t num_rows);

/* Two results in the same places; a row that `is_skipped` says is not looked at (NULL: all are). */
struct gpu_rows {
    const void *actual, *expected;
    int64_t num_rows, num_columns, stride; /* elements */
    int32_t dtype;
    const unsigned char *is_skipped;
};

/* Differences as parts of their tolerance: at most 1 is right. NaN and infinity of either side are
 * wrong. `relative` is the L2 of all rows as it is. */
struct gpu_comparison {
    double relative, all, worst;
    int64_t worst_row;
};
struct gpu_comparison gpu_compare(const struct gpu_result *result, const struct gpu_rows *rows);
int gpu_is_close(const struct gpu_comparison *comparison);

#endif
