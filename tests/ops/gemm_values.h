/* SPDX-License-Identifier: Apache-2.0 */
/* Random grouped GEMMs: shapes, schedules, and values as doubles that the element types represent
 * exactly. */
#ifndef MOE_TESTS_GEMM_VALUES_H
#define MOE_TESTS_GEMM_VALUES_H

#include "cpu_isa.h"
#include "cpu_kernels.h"
#include "support.h"
#include "tiles.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum layout {
    LAYOUT_APART,                  /* gate [E, n, k] and up [E, n, k] */
    LAYOUT_HALVES,                 /* [E, 2n, k], gate first */
    LAYOUT_INTERLEAVED,            /* [E, 2n, k], gate in even rows */
    LAYOUT_TRANSPOSED,             /* [E, k, 2n], gate first */
    LAYOUT_TRANSPOSED_INTERLEAVED, /* [E, k, 2n], gate in even columns */
    LAYOUT_TABLE,                  /* a pointer per expert, padded rows */
    LAYOUT_SCATTERED,              /* both strides above 2 */
    NUM_LAYOUTS
};

enum schedule {
    SCHEDULE_SEGMENTS,       /* seg_indptr, rows in place */
    SCHEDULE_GATHERED,       /* seg_indptr, inputs through row_ids */
    SCHEDULE_BLOCKS,         /* expert_ids, inputs through row_ids, outputs in place */
    SCHEDULE_BLOCKS_SCATTER, /* expert_ids, outputs at row_ids */
    SCHEDULE_MASKED,         /* masked_m, rows in fixed strides */
    NUM_SCHEDULES
};

enum spread {
    SPREAD_UNIFORM, /* every expert has some rows */
    SPREAD_SPARSE,  /* most experts have none */
    SPREAD_HOT,     /* one expert has nearly all */
    NUM_SPREADS
};

struct gemm_shape {
    int64_t n;
    int64_t k;
    int32_t num_matrices;
    bool has_activation;
    struct moe_op_act act;
    int32_t input_dtype;
    int32_t weight_dtype;
    int32_t bias_dtype; /* 0: no bias */
    int32_t output_dtype;
    enum layout layout;
    enum schedule schedule;
    enum spread spread;
    bool has_row_weights;
    bool underflows;                  /* every product rounds to -0 */
    double weights_from, inputs_from; /* 0, or magnitudes from there to twice that */
    double rare_weight, rare_input;   /* 0, or what some elements are instead */
    int64_t rare_every;               /* one in so many is one of those; 0: RARE_EVERY */
    /* fp8 operands. */
    int64_t weight_group; /* rows and columns that share a scale; 0: one per expert and matrix */
    int64_t input_group;  /* columns; 0: one per row, -1: one for all rows */
    int32_t input_layout; /* MOE_SCALE_* */
    int64_t num_rows;     /* about that many */
    uint64_t seed;
};

enum { FIXTURE_EXPERTS = 5, FIXTURE_TOP_K = 3, FIXTURE_BLOCK = 4, FIXTURE_PAD = 3 };

struct gemm_fixture {
    struct gemm_shape shape;
    struct support_random random;
    /* Values. */
    double *weights; /* [experts][matrices][n][k] */
    double *bias;    /* [experts][matrices][n] */
    double *input;   /* [num_inputs][k] */
    int64_t num_inputs;
    int64_t num_positions;
    int64_t *seg_indptr;
    int32_t *expert_ids;
    int32_t *row_ids;
    int32_t num_tokens_post_pad;
    int32_t *masked_m;
    int64_t max_masked_rows;
    float *row_weights;
    float *weight_scales; /* [experts][matrices][row groups][groups of k] */
    float *input_scales;  /* [num_inputs][groups of k]; one for all: the same in all */
    int64_t num_outputs;
    int64_t width; /* columns of an output row */
    int64_t output_stride;
    /* Expectation, [num_outputs][width]. */
    double *expected;
    double *tolerance;
    bool *written; /* [num_outputs] */
    /* Memory as the kernel sees it. */
    struct support_guard input_memory;
    struct support_guard weight_memory[2];
    struct support_guard bias_memory;
    struct support_guard input_scale_memory;
    const void *table[2][FIXTURE_EXPERTS];
    struct moe_op_gemm op;
};

static inline enum ref_dtype fixture_ref_dtype(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32       ? REF_F32
           : dtype == MOE_DTYPE_FP16     ? REF_F16
           : dtype == MOE_DTYPE_FP8_E4M3 ? REF_E4M3
                                         : REF_BF16;
}

static inline void *fixture_alloc(int64_t count, size_t bytes)
{
    void *block = calloc((size_t)(count > 0 ? count : 1), bytes);
    assert_non_null(block);
    return block;
}

/* ---------------------------------------------------------------- values */

static inline void fixture_fill(struct gemm_fixture *fixture, double *values, int64_t count,
                                int32_t dtype, double scale)
{
    for (int64_t i = 0; i < count; i++) {
        values[i] =
            ref_round(fixture_ref_dtype(dtype), support_random_normal(&fixture->random) * scale);
    }
}

/* ---- scales of fp8 operands ---- */

static inline int64_t fixture_groups(int64_t size, int64_t group)
{
    return group <= 0 ? 1 : (size + group - 1) / group;
}

static inline float fixture_weight_scale(const struct gemm_fixture *fixture, int64_t expert,
                                         int32_t matrix, int64_t n, int64_t k)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t group = shape->weight_group;
    const int64_t row_groups = fixture_groups(shape->n, group);
    const int64_t k_groups = fixture_groups(shape->k, group);
    const int64_t block = (expert * shape->num_matrices + matrix) * row_groups;
    return shape->weight_dtype != MOE_DTYPE_FP8_E4M3
               ? 1.0f
               : fixture->weight_scales[(block + (group > 0 ? n / group : 0)) * k_groups +
                                        (group > 0 ? k / group : 0)];
}

static inline float fixture_input_scale(const struct gemm_fixture *fixture, int64_t row, int64_t k)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t group = shape->input_group;
    return shape->input_dtype != MOE_DTYPE_FP8_E4M3
               ? 1.0f
               : fixture->input_scales[row * fixture_groups(shape->k, group) +
                                       (group > 0 ? k / group : 0)];
}

/* Positive, over some binary orders; powers of two where the layout has no others. */
static inline void fixture_make_scales(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t num_weights = FIXTURE_EXPERTS * shape->num_matrices *
                                fixture_groups(shape->n, shape->weight_group) *
                                fixture_groups(shape->k, shape->weight_group);
    const int64_t num_inputs = fixture->num_inputs * fixture_groups(shape->k, shape->input_group);
    fixture->weight_scales = fixture_alloc(num_weights, sizeof(float));
    fixture->input_scales = fixture_alloc(num_inputs, sizeof(float));
    for (int64_t i = 0; i < num_weights; i++) {
        fixture->weight_scales[i] =
            0.01f + fabsf((float)support_random_normal(&fixture->random)) * 0.02f;
    }
    for (int64_t i = 0; i < num_inputs; i++) {
        const float value = 0.02f + fabsf((float)support_random_normal(&fixture->random)) * 0.05f;
        fixture->input_scales[i] = shape->input_group < 0 && i > 0 ? fixture->input_scales[0]
                                   : shape->input_layout == MOE_SCALE_UE8M0_PACKED
                                       ? exp2f(floorf(log2f(value)))
                                       : value;
    }
}

/* Rows of each expert. */
static inline void fixture_spread_rows(struct gemm_fixture *fixture,
                                       int64_t counts[FIXTURE_EXPERTS])
{
    const int64_t rows = fixture->shape.num_rows;
    for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
        switch (fixture->shape.spread) {
        case SPREAD_UNIFORM:
            counts[e] = 1 + (int64_t)support_random_below(
                                &fixture->random, (uint64_t)(2 * rows / FIXTURE_EXPERTS + 1));
            break;
        case SPREAD_SPARSE:
            counts[e] = e == 3 ? rows : 0;
            break;
        default:
            counts[e] = e == 1 ? rows : (e % 2);
            break;
        }
    }
}

/* Segments: unused positions before, between nothing, and after. */
static inline void fixture_make_segments(struct gemm_fixture *fixture)
{
    int64_t counts[FIXTURE_EXPERTS];
    fixture_spread_rows(fixture, counts);
    fixture->seg_indptr = fixture_alloc(FIXTURE_EXPERTS + 1, sizeof(int64_t));
    fixture->seg_indptr[0] = 2;
    for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
        fixture->seg_indptr[e + 1] = fixture->seg_indptr[e] + counts[e];
    }
    fixture->num_positions = fixture->seg_indptr[FIXTURE_EXPERTS] + 3;
}

/* Fixed strides; counts that are negative or above the stride are clamped. */
static inline void fixture_make_masked(struct gemm_fixture *fixture)
{
    int64_t counts[FIXTURE_EXPERTS];
    fixture_spread_rows(fixture, counts);
    fixture->masked_m = fixture_alloc(FIXTURE_EXPERTS, sizeof(int32_t));
    fixture->max_masked_rows = fixture->shape.num_rows;
    for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
        fixture->masked_m[e] = counts[e] == 0 ? -7 : (int32_t)counts[e];
    }
    fixture->num_positions = FIXTURE_EXPERTS * fixture->max_masked_rows;
}

/*
 * Blocks of FIXTURE_BLOCK positions; the last ones belong to no expert, and one more lies behind
 * num_tokens_post_pad.
 */
static inline void fixture_make_blocks(struct gemm_fixture *fixture)
{
    int64_t counts[FIXTURE_EXPERTS];
    int64_t num_blocks = 0;
    fixture_spread_rows(fixture, counts);
    for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
        num_blocks += (counts[e] + FIXTURE_BLOCK - 1) / FIXTURE_BLOCK;
    }
    fixture->expert_ids = fixture_alloc(num_blocks + 3, sizeof(int32_t));
    int64_t block = 0;
    for (int32_t e = 0; e < FIXTURE_EXPERTS; e++) {
        for (int64_t first = 0; first < counts[e]; first += FIXTURE_BLOCK) {
            fixture->expert_ids[block++] = e;
        }
    }
    fixture->expert_ids[block++] = -1;
    fixture->expert_ids[block++] = FIXTURE_EXPERTS + 7;
    fixture->num_tokens_post_pad = (int32_t)(block * FIXTURE_BLOCK);
    fixture->expert_ids[block++] = 0;
    fixture->num_positions = block * FIXTURE_BLOCK;
}

/* A permutation of the routes, with some positions that are padding. */
static inline void fixture_make_row_ids(struct gemm_fixture *fixture)
{
    const int64_t count = fixture->num_positions;
    fixture->row_ids = fixture_alloc(count, sizeof(int32_t));
    for (int64_t p = 0; p < count; p++) {
        fixture->row_ids[p] = (int32_t)p;
    }
    for (int64_t p = count - 1; p > 0; p--) {
        const int64_t other = (int64_t)support_random_below(&fixture->random, (uint64_t)p + 1);
        const int32_t swapped = fixture->row_ids[p];
        fixture->row_ids[p] = fixture->row_ids[other];
        fixture->row_ids[other] = swapped;
    }
    for (int64_t p = 0; p < count; p++) {
        if (support_random_below(&fixture->random, 6) == 0) {
            fixture->row_ids[p] = p % 2 == 0 ? (int32_t)count : -1; /* the sentinel, or filtered */
        }
    }
}

/* Expert of a position: -1 zeros, -2 outside all segments. */
static inline int64_t fixture_expert_of(const struct gemm_fixture *fixture, int64_t position)
{
    if (fixture->expert_ids) {
        if (position >= fixture->num_tokens_post_pad) {
            return -2;
        }
        const int64_t expert = fixture->expert_ids[position / FIXTURE_BLOCK];
        return expert >= 0 && expert < FIXTURE_EXPERTS ? expert : -1;
    }
    if (fixture->masked_m) {
        const int64_t expert = position / fixture->max_masked_rows;
        return position % fixture->max_masked_rows < fixture->masked_m[expert] ? expert : -2;
    }
    for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
        if (position >= fixture->seg_indptr[e] && position < fixture->seg_indptr[e + 1]) {
            return e;
        }
    }
    return -2;
}

enum { RARE_EVERY = 389 };

/* Values from `from` on, and the rare ones. */
static inline void fixture_make_rare(struct gemm_fixture *fixture, double *values, int64_t count,
                                     int32_t dtype, double from, double rare)
{
    for (int64_t i = 0; from != 0.0 && i < count; i++) {
        const double sign = support_random_below(&fixture->random, 2) != 0 ? -1.0 : 1.0;
        const double magnitude =
            from * (1.0 + (double)support_random_below(&fixture->random, 128) / 128.0);
        values[i] = sign * ref_round(fixture_ref_dtype(dtype), magnitude);
    }
    const int64_t every =
        fixture->shape.rare_every != 0 ? fixture->shape.rare_every : (int64_t)RARE_EVERY;
    for (int64_t i = 5; rare != 0.0 && i < count; i += every) {
        values[i] = rare;
    }
}

static inline void fixture_make_values(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t channels = FIXTURE_EXPERTS * shape->num_matrices * shape->n;
    fixture->weights = fixture_alloc(channels * shape->k, sizeof(double));
    fixture->bias = fixture_alloc(channels, sizeof(double));
    fixture->input = fixture_alloc(fixture->num_inputs * shape->k, sizeof(double));
    fixture->row_weights = fixture_alloc(fixture->num_positions, sizeof(float));
    fixture_fill(fixture, fixture->weights, channels * shape->k, shape->weight_dtype,
                 shape->weight_dtype == MOE_DTYPE_FP8_E4M3 ? 16.0 : 0.25);
    fixture_make_scales(fixture);
    if (shape->bias_dtype) {
        fixture_fill(fixture, fixture->bias, channels, shape->bias_dtype, 1.0);
    }
    fixture_fill(fixture, fixture->input, fixture->num_inputs * shape->k, shape->input_dtype,
                 shape->input_dtype == MOE_DTYPE_FP8_E4M3 ? 16.0 : 1.0);
    for (int64_t i = 0; shape->underflows && i < channels * shape->k; i++) {
        fixture->weights[i] = 0x1p-100;
    }
    for (int64_t i = 0; shape->underflows && i < fixture->num_inputs * shape->k; i++) {
        fixture->input[i] = -0x1p-100;
    }
    fixture_make_rare(fixture, fixture->weights, channels * shape->k, shape->weight_dtype,
                      shape->weights_from, shape->rare_weight);
    fixture_make_rare(fixture, fixture->input, fixture->num_inputs * shape->k, shape->input_dtype,
                      shape->inputs_from, shape->rare_input);
    for (int64_t p = 0; p < fixture->num_positions; p++) {
        fixture->row_weights[p] = (float)support_random_normal(&fixture->random);
    }
}

#endif
