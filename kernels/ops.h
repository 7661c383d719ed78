/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments of the kernels, shared by C and CUDA. src/ fills them after it has checked everything:
 * pointers are valid, strides are final (elements, never 0 for "packed"), dtypes are supported,
 * counts fit. Kernels decide nothing. Index values inside the host's arrays (ids, src2dst,
 * seg_indptr, expert_ids, sorted_ids) may still be anything: kernels never use one as an index
 * before a range check.
 *
 * Words: T tokens, k = top_k, route = token * k + slot, row = position of a route after sorting by
 * expert.
 */
#ifndef MOE_OPS_H
#define MOE_OPS_H

#include "moe_plugin.h"

#include <stdint.h>

/* logits[t, e] = tokens[t] . weight[e] (+ bias[e]). `weight` and `bias` are operands with one
 * expert. */
struct moe_op_router {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t hidden;
    const void *tokens;
    int64_t token_stride;
    int32_t token_dtype;
    int32_t logits_dtype;
    struct moe_operand weight; /* dtype set */
    struct moe_operand bias;   /* base NULL: none; dtype set */
    void *logits;
    int64_t logits_stride;
};

/* Gating rules as in MOE_GATING_LIST; one task gates block_size tokens. */
struct moe_op_gating {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t top_k;
    int32_t rule;        /* MOE_GATING_*, never NONE */
    int32_t renormalize; /* 0, 1 */
    int32_t num_groups;  /* at least 1 */
    int32_t topk_groups;
    int32_t group_score; /* MOE_GROUP_SCORE_* */
    int32_t logits_dtype;
    float router_jitter;
    float scaling; /* multiplies the weights last; 1: none */
    int32_t
        num_appended; /* ids num_experts + i with appended_weight, after the top_k; scaling does not
                         apply to them */
    float appended_weight;
    const void *logits;
    int64_t logits_stride;
    const float *correction_bias; /* NULL: none */
    void *topk_ids;               /* [T, top_k + num_appended] */
    int32_t ids_dtype;
    int32_t reserved;
    float *topk_weights;
};

/* Which routes are local, with all defaults resolved: 0 <= id < num_experts_global, begin <= id <
 * end, map or offset. */
struct moe_op_filter {
    const int32_t *expert_map; /* NULL: local expert = id - expert_begin */
    int32_t num_experts_global;
    int32_t expert_begin;
    int32_t expert_end;
    int32_t num_experts; /* local; a map's value at or above it is filtered */
};

struct moe_op_align {
    int64_t num_routes;
    const void *topk_ids;
    int32_t ids_dtype;
    int32_t block_size;
    struct moe_op_filter filter;
    int32_t filter_mode; /* MOE_FILTER_* */
    int32_t reserved;
    int32_t *sorted_ids; /* NULL (with the next two): counts only */
    int64_t sorted_capacity;
    int32_t *expert_ids;
    int64_t expert_capacity;
    int32_t *num_tokens_post_pad;
    int32_t *expert_counts; /* NULL: not wanted */
};

struct moe_op_ep_preprocess {
    int64_t num_routes;
    const void *topk_ids;
    int32_t ids_dtype;
    int32_t segment_alignment; /* at least 1 */
    struct moe_op_filter filter;
    int64_t *seg_indptr;
    int32_t *src2dst;
    int32_t *dst2src; /* NULL: not wanted, as for the next two */
    int32_t *reorder_ids;
    int32_t *m_indices;
    int64_t row_capacity; /* of dst2src and m_indices; checked to hold the worst case */
};

struct moe_op_pre_reorder {
    int64_t num_tokens;
    int32_t top_k;
    int32_t hidden;
    int32_t dtype;
    int32_t reserved;
    const void *tokens;
    int64_t token_stride;
    const int32_t *src2dst;
    void *rows;
    int64_t row_stride;
    int64_t num_rows; /* destinations outside [0, num_rows) are skipped */
};

/* The activation of MOE_ACTIVATION_LIST on fp32 values. */
struct moe_op_act {
    int32_t activation;
    int32_t ungated;
    float alpha;
    float limit; /* 0: none */
};

struct moe_op_activation {
    int64_t num_rows;
    int32_t inter;
    int32_t input_dtype;
    int32_t output_dtype;
    int32_t reserved;
    struct moe_op_act act;
    const void *input;
    int64_t row_stride;
    int64_t col_stride;
    int64_t up_offset; /* ungated: 0 */
    void
        *output; /* may be `input` with equal row strides and dtypes: read a group of columns before
                   writing it */
    int64_t output_stride;
};

/*
 * Grouped GEMM. Segment s covers the positions [first, first + count) and belongs to one expert:
 *   seg_indptr:           first = seg_indptr[s], count up to seg_indptr[s + 1], expert s
 *   expert_ids (blocks):  first = s * block_size, count block_size, expert = expert_ids[s]; < 0 or
 *                         >= num_experts: the outputs are zeros; segments end at
 *                         *num_tokens_post_pad
 * Position p reads input row row_ids ? row_ids[p] / row_ids_div : p and writes output row
 * scatter ? row_ids[p] : p. Positions with row_ids[p] < 0 or >= num_row_ids (the sentinel) are
 *   skipped. acc[m, n] = chain over k of input[m, k] * weight[n, k];  acc *= row_weights[...];  acc
 *   += bias[n] one matrix:              output[m, n] = round(acc)
 *   two, no activation:      output[m, n] = gate, output[m, n_total + n] = up
 *   with activation:         output[m, n] = round(act(gate, up)), in fp32 before rounding
 * row_weights are indexed by row_ids[p] when there are row_ids, else by p.
 */
struct moe_op_gemm {
    int64_t num_segments;
    const int64_t *seg_indptr;
    const int32_t *expert_ids;
    const int32_t *num_tokens_post_pad;
    int32_t block_size;
    int32_t num_experts;
    int64_t num_rows;       /* seg_indptr values are clamped to [0, num_rows]; expert_ids: length of
                     row_ids */
    const int32_t *row_ids; /* NULL: identity */
    int64_t num_row_ids;    /* row_ids values at or above are skipped */
    int32_t row_ids_div;    /* top_k for gathered tokens, else 1 */
    int32_t scatter;
    const float *row_weights; /* NULL: 1 */
    const void *input;
    int64_t input_stride;
    void *output;
    int64_t output_stride;
    int32_t input_dtype;
    int32_t output_dtype;
    int32_t n; /* output channels of one matrix */
    int32_t k;
    int32_t num_matrices; /* 1 or 2 (0: gate, 1: up) */
    int32_t has_activation;
    struct moe_op_act act;
    struct moe_operand weight[2]; /* dtype set; ungated GEMM1 and down use [0] */
    struct moe_operand bias[2];   /* base and table NULL: none */
};

struct moe_op_post_reorder {
    int64_t num_tokens;
    int32_t top_k;
    int32_t hidden;
    int32_t dtype;
    float scaling; /* 1: none */
    const void *rows;
    int64_t row_stride;
    int64_t num_rows;          /* src2dst outside [0, num_rows): no row */
    const int32_t *src2dst;    /* NULL: the row of (t, j) lies at t * token_stride + j * row_stride
                    (sum_reduce) */
    int64_t token_stride;      /* without src2dst */
    const float *topk_weights; /* NULL: all 1 */
    const void *shared;        /* NULL: none */
    int64_t shared_stride;
    const float *shared_factor; /* NULL: 1 */
    const void *residual;       /* NULL: none */
    int64_t residual_stride;
    void *output; /* may be residual or shared with equal strides */
    int64_t output_stride;
};

#endif
