/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments of the kernels, shared by C and CUDA. src/ fills them after it has checked everything:
 * pointers are valid, strides are final (elements, never 0 for "packed"), dtypes are supported,
 * counts fit. Kernels decide nothing. Index values inside the host's arrays (ids, src2dst,
 * seg_indptr, expert_ids, sorted_ids) may still be anything: kernels never use one as an index
 * before a range check.
 *
 * num_tokens_device: the real number of tokens of a replayed graph, in the backend's memory.
 * Kernels take the smaller of it (at least 0) and num_tokens, and touch nothing that belongs to
 * tokens beyond. NULL: num_tokens. Always NULL on a CPU, where the call has read it.
 *
 * Words: T tokens, k = top_k (with appended experts, where they exist), route = token * k + slot,
 * row = position of a route after sorting by expert.
 */
#ifndef MOE_OPS_H
#define MOE_OPS_H

#include "moe_plugin.h"

#include <stdint.h>

/* Tokens of a block of the grouped GEMM on a GPU up to which rows can be gathered; larger blocks
 * read them in order alone. */
#define MOE_CUDA_GEMM_GATHERED_BLOCK_M 144

/* How rows are quantized while they are written, as struct moe_recipe documents it. */
struct moe_op_quant {
    int32_t dtype;              /* MOE_DTYPE_FP8_E4M3; 0: not quantized, nothing below is used */
    int32_t is_dynamic;         /* 1: scales follow from the data and are written to `scales` */
    int32_t group_k;            /* columns that share a scale; the row's width when it has one */
    int32_t scale_layout;       /* MOE_SCALE_* of `scales`; UE8M0_PACKED also rounds them up */
    int32_t static_per;         /* MOE_QUANT_PER_*: what an element of static_scales belongs to */
    int32_t has_avx512;         /* CPU: may AVX-512 do it? (activation has a word of its own) */
    const float *static_scales; /* not dynamic */
    void *scales;               /* dynamic */
    int64_t scale_stride;       /* final, in elements of the layout */
};
#define MOE_QUANT_PER_TENSOR 0
#define MOE_QUANT_PER_ROW    1 /* pre_reorder and quantize: per token */
#define MOE_QUANT_PER_EXPERT 2 /* pre_reorder: the route's local expert; filtered routes: no row */

/* logits[t, e] = tokens[t] . weight[e] (+ bias[e]). `weight` and `bias` are operands with one
 * expert. */
struct moe_op_router {
    int64_t num_tokens;
    const int32_t *num_tokens_device;
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
    const int32_t *num_tokens_device;
    int32_t num_experts;
    int32_t top_k;
    int32_t rule;        /* MOE_GATING_*, never NONE */
    int32_t renormalize; /* 0, 1 */
    int32_t num_groups;  /* at least 1 */
    int32_t topk_groups;
    int32_t group_score; /* MOE_GROUP_SCORE_* */
    int32_t logits_dtype;
    float router_jitter;
    float scaling;        /* multiplies the weights last; 1: none */
    int32_t num_appended; /* experts first_appended_id + i with appended_weight, after the top_k;
                             scaling does not apply to them */
    float appended_weight;
    const void *logits;
    int64_t logits_stride;
    const float *correction_bias; /* NULL: none */
    void *topk_ids;               /* [T, top_k + num_appended] */
    int32_t ids_dtype;
    int32_t reserved;
    float *topk_weights;
    const int32_t *num_valid_tokens; /* one; tokens from there on get id -1, weight 0. NULL: all */
    const int32_t *physical_ids;     /* [num_experts, max_replicas]; NULL: logical ids */
    const int32_t *num_replicas;     /* [num_experts]; clamped to 1..max_replicas */
    int64_t *load_counters; /* [num_experts] += routes of valid tokens by logical expert; NULL */
    int32_t max_replicas;
    int32_t first_appended_id; /* appended experts: this, this + 1, ... */
    int64_t first_token;       /* number of logits[0] in the call: num_valid_tokens and the turn of
                                  the replicas count from the call's first token */
};

/* Which routes are local, with all defaults resolved: 0 <= id < num_ids, begin <= id <
 * end, map or offset. */
struct moe_op_filter {
    const int32_t *expert_map; /* NULL: local expert = id - expert_begin */
    int32_t num_ids;
    int32_t expert_begin;
    int32_t expert_end;
    int32_t num_experts; /* local; a map's value at or above it is filtered */
};

struct moe_op_align {
    int64_t num_routes;
    const int32_t *num_tokens_device;
    const void *topk_ids;
    int32_t ids_dtype;
    int32_t block_size;
    struct moe_op_filter filter;
    int32_t filter_mode; /* MOE_FILTER_* */
    int32_t top_k;       /* num_routes = num_tokens * top_k */
    int32_t sentinel;    /* in padding and tail: routes of the call's num_tokens, whatever
                         num_tokens_device says; batched: num_routes */
    int32_t reserved;
    int32_t *sorted_ids; /* NULL with capacity 0 */
    int64_t sorted_capacity;
    int32_t *expert_ids;
    int64_t expert_capacity;
    int32_t *num_tokens_post_pad; /* NULL: counts only */
    int32_t *expert_counts;       /* NULL: not wanted */
    const int32_t *batch_counts;  /* batched form: [filter.num_experts]; topk_ids NULL, num_routes =
                                    filter.num_experts * max_batch_rows */
    int64_t max_batch_rows;
};

struct moe_op_ep_preprocess {
    int64_t num_routes;
    const int32_t *num_tokens_device;
    const void *topk_ids;
    int32_t ids_dtype;
    int32_t segment_alignment; /* at least 1 */
    int32_t top_k;             /* num_routes = num_tokens * top_k */
    int32_t reserved;
    struct moe_op_filter filter;
    int64_t *seg_indptr;
    int32_t *src2dst;
    int32_t *dst2src; /* NULL: not wanted, as for the next two */
    int32_t *reorder_ids;
    int32_t *m_indices;
    int64_t row_capacity;    /* of dst2src and m_indices; checked to hold the worst case */
    int32_t *masked_m;       /* masked layout: [filter.num_experts]; seg_indptr, if not NULL, gets
                                expert * max_masked_rows */
    int64_t max_masked_rows; /* 0: contiguous */
};

/* Gating (unless its logits are NULL: then the ids are given), then the sorts that are wanted. The
 * sorts read the ids that gating writes. */
struct moe_op_route {
    struct moe_op_gating gating;
    struct moe_op_align align;
    struct moe_op_ep_preprocess preprocess;
    int32_t wants_align;
    int32_t wants_preprocess;
};

struct moe_op_pre_reorder {
    int64_t num_tokens;
    const int32_t *num_tokens_device;
    int32_t top_k;
    int32_t hidden;
    int32_t dtype;
    int32_t streams; /* CPU: 1 = rows are too many for the caches and are written around them */
    const void *tokens;
    int64_t token_stride;
    const int32_t *src2dst;
    void *rows;
    int64_t row_stride;
    int64_t num_rows; /* destinations outside [0, num_rows) are skipped */
    struct moe_op_quant quant;
    const void *topk_ids; /* MOE_QUANT_PER_EXPERT only, with the next two */
    int32_t ids_dtype;
    int32_t ids_reserved;
    struct moe_op_filter filter;
};

/* Tokens to quantized rows and scales, row by row. */
struct moe_op_quantize {
    int64_t num_tokens;
    const int32_t *num_tokens_device;
    int32_t hidden;
    int32_t dtype;
    const void *tokens;
    int64_t token_stride;
    void *output;
    int64_t output_stride;
    struct moe_op_quant quant;
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
    int32_t streams; /* as in moe_op_pre_reorder */
    struct moe_op_act act;
    const void *input;
    int64_t row_stride;
    int64_t col_stride;
    int64_t up_offset; /* ungated: 0 */
    void
        *output; /* may be `input` with equal row strides and dtypes: read a group of columns before
                   writing it */
    int64_t output_stride;
    struct moe_op_quant quant; /* of the output; its dtype is then output_dtype */
    const int32_t *masked_m;   /* masked layout: [num_experts]; rows expert * max_masked_rows + i, i
                                  below masked_m clamped to [0, max_masked_rows]. NULL: all */
    int64_t max_masked_rows;
    int32_t num_experts;
    int32_t has_avx512; /* CPU: the processor has AVX-512 with F, BW, VL, DQ; same bits */
};

/* Scales of a quantized operand of a GEMM. base NULL: none. */
struct moe_op_scales {
    const void *base;
    int32_t scale_layout; /* MOE_SCALE_* */
    int32_t group_k;      /* columns that share a scale; k when a row has one */
    int32_t per_row;      /* 0: one scale for all rows */
    int32_t reserved;
    int64_t stride;
};

/*
 * Grouped GEMM. Segment s covers the positions [first, first + count) and belongs to one expert:
 *   seg_indptr:           first = seg_indptr[s], count up to seg_indptr[s + 1], expert s
 *   expert_ids (blocks):  first = s * block_size, count block_size, expert = expert_ids[s]; < 0 or
 *                         >= num_experts: the outputs are zeros; segments end at
 *                         *num_tokens_post_pad
 *   masked_m:             first = s * max_masked_rows, count masked_m[s] clamped to
 *                         [0, max_masked_rows], expert s
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
    const int32_t *masked_m;
    int64_t max_masked_rows;
    const int32_t *expert_ids;
    const int32_t *num_tokens_post_pad;
    int32_t block_size;
    int32_t num_experts;
    int64_t num_rows;       /* seg_indptr values are clamped to [0, num_rows]; expert_ids: length of
                     row_ids */
    const int32_t *row_ids; /* NULL: identity */
    int64_t num_row_ids;    /* row_ids values at or above are skipped */
    int32_t row_ids_div;    /* top_k for gathered tokens, else 1; 0: inputs are not gathered,
                     input row p */
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
    struct moe_operand weight[2];      /* dtype set; ungated GEMM1 and down use [0] */
    struct moe_operand bias[2];        /* base and table NULL: none */
    struct moe_op_scales input_scales; /* of fp8 input, indexed by input row */
    struct moe_operand
        weight_scale[2];              /* fp32, of fp8 weights: element (expert, row group, k group)
                                           by the operand's strides; base and table NULL: none */
    int32_t weight_group_rows;        /* output channels that share a scale; n when all do */
    int32_t weight_group_k;           /* columns that share a scale; k when all do */
    struct moe_op_quant output_quant; /* of the output, with activation only */
    int32_t has_avx512_vbmi;          /* CPU: the processor has AVX-512 up to VBMI; same bits */
    int32_t has_avx512_bf16;          /* CPU: and exact dot products of bf16 pairs; same bits */
};

struct moe_op_post_reorder {
    int64_t num_tokens;
    const int32_t *num_tokens_device;
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
    int32_t streams;    /* as in moe_op_pre_reorder */
    int32_t has_avx512; /* as in moe_op_activation */
};

#endif
