/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Independent references of every Mixture-of-Experts operation, for tests.
 *
 * Everything here is a plain loop over tokens, slots, experts and columns in double precision. It
 * shares nothing with the kernels: no header, no conversion, no math function. Where a kernel
 * sorts, the reference searches; where a kernel has a schedule, the reference walks tokens x slots.
 * Slow on purpose, and short enough to be checked by reading.
 *
 * Conventions: arrays are dense and row-major unless strides are given; dimensions are int64_t; the
 * caller owns every buffer and sizes it as stated. A "route" is flat index t * top_k + j (token t,
 * slot j). A "row" is a route's position after grouping by expert. Optional pointers may be NULL
 * where the text says so. Functions are pure and thread safe. Misuse (a precondition below that
 * does not hold) stops the test program with a sentence on stderr.
 */
#ifndef MOE_TESTS_REF_H
#define MOE_TESTS_REF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Element types ---- */

enum ref_dtype {
    REF_F64 = 0, /* double: rounding to it changes nothing */
    REF_F32,
    REF_F16,
    REF_BF16,
    REF_E4M3, /* fp8 e4m3fn: no infinities, largest value 448, conversion saturates */
};

/* Bytes of one element. */
size_t ref_dtype_bytes(enum ref_dtype dtype);

/* "f64", "f32", "f16", "bf16", "e4m3": for messages. */
const char *ref_dtype_name(enum ref_dtype dtype);

/* Half the distance from 1.0 to the next value: 2^-53, 2^-24, 2^-11, 2^-8, 2^-4. Rounding a normal
 * value to nearest changes it by at most this relative amount. */
double ref_dtype_half_ulp(enum ref_dtype dtype);

/* The value after rounding to nearest even, ties and subnormals included. Overflow: infinity; e4m3
 * saturates to +-448, infinities too. NaN stays NaN. */
double ref_round(enum ref_dtype dtype, double value);

/* Element idx of an array of dtype, as double (exact). The array need not be aligned. */
double ref_load(enum ref_dtype dtype, const void *array, int64_t idx);

/* Stores ref_round(dtype, value) as element idx. NaN is stored as the positive quiet NaN. */
void ref_store(enum ref_dtype dtype, void *array, int64_t idx, double value);

/* ref_load / ref_store / ref_round over count elements. */
void ref_load_all(enum ref_dtype dtype, const void *array, int64_t count, double *values);
void ref_store_all(enum ref_dtype dtype, void *array, int64_t count, const double *values);
void ref_round_all(enum ref_dtype dtype, double *values, int64_t count);

/* ---- Tolerances ---- */

/*
 * How far an fp32-accumulated dot product, stored as dtype_out, may be from the exact sum.
 * - num_additions: additions on the longest path through the sum, bias included. An upper bound is
 *   always sound: k for a plain chain; ceil(k / 8) + 3 for eight interleaved lanes and a tree over
 *   them; one more with bias.
 * - dtype_in: type of the factors. Products of fp16, bf16 and e4m3 factors are exact in fp32; one
 * of fp32 factors is rounded once more when the kernel does not fuse it, which is allowed for.
 * - sum_abs: sum over k of |a b|, plus |bias|.
 * - value: the exact sum.
 *
 * Derivation: with unit roundoff u = 2^-24 every addition (or fused multiply-add) returns its exact
 * result times (1 + d), |d| <= u. A term that passes n roundings is multiplied by at most (1 +
 * u)^n, so the sum is off by at most g_n sum|a b| with g_n = n u / (1 - n u) (Higham, Accuracy and
 * Stability, section 3.1), for any order of summation. Storing adds half an ulp of dtype_out of the
 * computed value, itself within |value| + g_n sum|a b|, or half the smallest subnormal of dtype_out
 * if that is larger. fp32 subnormals on the way add n 2^-150, which is included.
 */
double ref_gemm_tolerance(int64_t num_additions, enum ref_dtype dtype_in, enum ref_dtype dtype_out,
                          double sum_abs, double value);

/* Half an ulp of dtype at value (half the smallest subnormal near zero): what one rounding of value
 * may change. */
double ref_rounding_tolerance(enum ref_dtype dtype, double value);

/* ---- Router and gating ---- */

/* logits[t][e] = sum_k x[t][k] w[e][k] + bias[e]. bias and sum_abs may be NULL; sum_abs[t][e]
 * receives sum_k |x w| + |bias| for ref_gemm_tolerance. */
void ref_router(const double *x, const double *w, const double *bias, int64_t num_tokens,
                int64_t num_experts, int64_t hidden, double *logits, double *sum_abs);

enum ref_gate_method {
    /* Scores over all experts first, then the choice by score (by score + bias where there is a
     * bias; the weight is the score without it). */
    REF_GATE_SOFTMAX,
    REF_GATE_SIGMOID,
    /* The choice by logit (+ bias), then softmax over the chosen logits: gpt-oss, Mixtral, and
     * softmax with renormalization in exact arithmetic. */
    REF_GATE_TOPK_SOFTMAX,
    /* The choice by logit (+ bias), then sigmoid of each chosen logit: Llama 4. */
    REF_GATE_TOPK_SIGMOID,
    /* Phi-3.5-MoE, top_k == 2, inference. First: the largest logit m; every logit s with
     * (m - s) / max(|s|, m) > 2 jitter_eps is masked; weight = softmax over the rest at m. Second:
     * the same with the first expert removed, m being the largest of the others. The two weights do
     * not sum to one. */
    REF_GATE_SPARSE_MIXER,
};

enum ref_group_score {
    REF_GROUP_MAX,      /* DeepSeek V2: the largest biased score of the group */
    REF_GROUP_TOP2_SUM, /* DeepSeek V3: the sum of its two largest (of its only one if it has one)
                         */
};

struct ref_gate_rule {
    enum ref_gate_method method;
    int64_t num_experts;
    /* Routed experts per token, 1 .. num_experts (.. the experts in topk_groups groups). */
    int64_t top_k;
    /* [num_experts] or NULL: added for the choice only. Not with the sparse mixer. */
    const double *bias;
    int64_t num_groups; /* 0 or 1: no groups. Otherwise divides num_experts */
    int64_t topk_groups;
    enum ref_group_score group_score;
    bool renormalize;      /* weights / (their sum + 1e-20) */
    double scaling_factor; /* multiplies the weights after renormalization; 1.0 for none */
    double jitter_eps;     /* sparse mixer; 0.01 in Phi-3.5-MoE */
    /* Shared experts appended at slots top_k ..: ids first_shared_id .. first_shared_id +
     * num_shared - 1; first_shared_id 0: num_experts. */
    int64_t num_shared;
    int64_t first_shared_id;
    double shared_weight; /* their weight, as it is: neither renormalized nor scaled */
    /* A decision is ambiguous if the scores of its last accepted and first rejected candidate
     * differ by no more than abs_margin + rel_margin * (the larger magnitude of the two). Negative
     * margins switch this off. */
    double abs_margin;
    double rel_margin;
};

struct ref_gate_result {
    int32_t *ids;    /* [num_tokens][top_k + num_shared], by descending choice score */
    double *weights; /* the same shape */
    /* [num_tokens], may be NULL: nonzero where the chosen set is ambiguous (experts, or groups
     * whose exchange would matter to the choice of groups). */
    unsigned char *ambiguous_set;
    /* [num_tokens], may be NULL: nonzero where the set or the order of the chosen is ambiguous. */
    unsigned char *ambiguous_order;
};

/* Gating of [num_tokens][num_experts] logits. Ties: the lower expert index wins, and the lower
 * group index. A NaN logit (or biased score) counts as -FLT_MAX, an infinite one as +-FLT_MAX: ids
 * are unique and weights finite for every input. Experts of rejected groups are out of the choice
 * whatever their score. Tokens from num_valid_tokens on are padding: ids -1 in every slot, weights
 * 0, not ambiguous. */
void ref_gate(const struct ref_gate_rule *rule, const double *logits, int64_t num_tokens,
              int64_t num_valid_tokens, const struct ref_gate_result *result);

/* Replaces ids by replicas: for ids[t][j] = e in [0, num_experts), j < num_slots, the result is
 * physical_ids[e][t % num_replicas[e]] of [num_experts][max_replicas]. Other ids stay. */
void ref_map_replicas(int32_t *ids, int64_t num_tokens, int64_t num_slots, int64_t num_experts,
                      const int32_t *physical_ids, int64_t max_replicas,
                      const int32_t *num_replicas);

/* ---- Which routes are local ---- */

/* Filters apply in this order: an id outside [0, num_experts) is dropped; an id outside [begin,
 * end) is dropped; expert_map, if given, translates, and negative entries (or entries >= num_local)
 * drop; without a map the local id is id - begin. */
struct ref_filter {
    int64_t num_experts;
    int64_t begin;
    int64_t end;               /* exclusive; begin = 0 and end = num_experts keep all */
    const int32_t *expert_map; /* [num_experts] or NULL */
    int64_t num_local;         /* local experts: local ids are 0 .. num_local - 1 */
};

/* A filter that keeps everything: local id = id. */
struct ref_filter ref_filter_all(int64_t num_experts);

/* Local expert of a routed id, or -1 if it is dropped. */
int64_t ref_local_expert(const struct ref_filter *filter, int64_t id);

/* counts[e] = routes of local expert e, e < num_local. Returns their sum. */
int64_t ref_count_routes(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes,
                         int64_t *counts);

/* ---- align_block_size ---- */

/* The tight bound of num_tokens_post_pad: block_m * floor((n + min(n, buckets) * (block_m - 1)) /
 * block_m), n routes. buckets = local experts, + 1 when dropped routes are kept. */
int64_t ref_align_capacity(int64_t num_routes, int64_t num_buckets, int64_t block_m);

/*
 * Groups routes by local expert, in ascending route order inside an expert, each group padded to a
 * multiple of block_m with the sentinel num_routes. Returns num_tokens_post_pad, which the
 * capacities must hold.
 * - sorted_ids [sorted_capacity]: routes; everything after the last group is sentinel too.
 * - expert_ids [blocks_capacity]: local expert of each block; -1 after the last block.
 * - keep_dropped: if false, dropped routes appear nowhere; if true, they form a last bucket with
 *   expert id -1.
 */
int64_t ref_align_block_size(const struct ref_filter *filter, const int64_t *ids,
                             int64_t num_routes, int64_t block_m, bool keep_dropped,
                             int32_t *sorted_ids, int64_t sorted_capacity, int32_t *expert_ids,
                             int64_t blocks_capacity);

/*
 * The batched form: expert e has rows e * max_rows + i, i < counts[e], counts clamped to 0 ..
 * max_rows; each expert's rows padded to a multiple of block_m with the sentinel num_experts *
 * max_rows, which the rest of the buffer has too. Returns num_tokens_post_pad.
 */
int64_t ref_align_batched(const int32_t *counts, int64_t num_experts, int64_t max_rows,
                          int64_t block_m, int32_t *sorted_ids, int64_t sorted_capacity,
                          int32_t *expert_ids, int64_t blocks_capacity);

/* ---- ep_preprocess ---- */

/* Any pointer may be NULL. rows_capacity elements are written to dst2src and row_experts. */
struct ref_ep_layout {
    /* [num_local + 1]: expert e has rows seg_indptr[e] .. seg_indptr[e + 1] - 1, with padding. */
    int64_t *seg_indptr;
    int64_t *counts;  /* [num_local]: rows in use; they come first in the segment */
    int32_t *src2dst; /* [num_routes]: row of each route, -1 if dropped */
    /* [rows_capacity]: route of each row, -1 in padding and after the last segment. */
    int32_t *dst2src;
    /* [rows_capacity]: local expert of each row (m_indices), -1 where dst2src is -1. */
    int32_t *row_experts;
    int64_t rows_capacity;
    /* [num_routes]: local experts in row order without padding, -1 after the last. */
    int32_t *reorder_ids;
};

/* The masked layout: a route that is the i-th of its local expert, in route order, has row
 * expert * max_rows + i if i < max_rows, else none. counts are of routes with a row; seg_indptr[e]
 * is e * max_rows. */
void ref_ep_masked(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes,
                   int64_t max_rows, const struct ref_ep_layout *layout);

/* Stable grouping of routes by local expert; each segment's length is rounded up to a multiple of
 * alignment (1: none). Returns the number of rows, padding included. */
int64_t ref_ep_preprocess(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes,
                          int64_t alignment, const struct ref_ep_layout *layout);

/* ---- Quantization and row movement ---- */

/* quantized = e4m3(fp32(x * fp32(1 / scale))), saturated, NaN kept. x holds fp32 values. */
void ref_quantize_static(const double *x, int64_t width, double scale, double *quantized);

/* The same with a scale per row of [num_rows][width] and group of group_k columns (0: all; the last
 * group may be narrower): fp32(max(min(amax, FLT_MAX), 1e-10) / 448), amax without NaN, rounded up
 * to a power of two if asked for. scales: [num_rows][number of groups]. */
void ref_quantize(const double *x, int64_t num_rows, int64_t width, int64_t group_k,
                  bool power_of_two, double *quantized, double *scales);

enum ref_scale_layout { REF_SCALE_ROW_MAJOR, REF_SCALE_COLUMN_MAJOR, REF_SCALE_PACKED };

/* Writes the scales of row `row` to their places in an array of 4-byte elements: row_major,
 * column_major_tma and ue8m0_packed (powers of two; unused bytes of a row's last word are 0) of the
 * ABI. */
void ref_store_scales(enum ref_scale_layout layout, const double *scales, int64_t num_groups,
                      int64_t row, int64_t stride, void *array);

enum ref_quant {
    REF_QUANT_NONE,          /* out = round(x) */
    REF_QUANT_STATIC,        /* scales[0] */
    REF_QUANT_TOKEN_STATIC,  /* scales[t] */
    REF_QUANT_EXPERT_STATIC, /* scales[local expert] */
    REF_QUANT_DYNAMIC,       /* out_scales [rows][number of groups] */
};

struct ref_pre_reorder {
    const double *x;        /* [num_tokens][hidden] */
    const int32_t *src2dst; /* [num_tokens][top_k]; negative: dropped */
    int64_t num_tokens;
    int64_t top_k;
    int64_t hidden;
    enum ref_quant quant;
    int64_t group_k;            /* dynamic: columns of a group; 0: all */
    bool power_of_two;          /* dynamic: scales are rounded up to powers of two */
    const double *scales;       /* given scales, or NULL */
    const int32_t *row_experts; /* [rows] local experts, for per-expert scales, or NULL */
    enum ref_dtype out_dtype;   /* quantization: REF_E4M3 */
    double *out;                /* [rows][hidden]; rows that no route goes to are left alone */
    double *out_scales;         /* dynamic scales, or NULL */
};

void ref_pre_reorder(const struct ref_pre_reorder *args);

/* ---- Activation ---- */

enum ref_act {
    REF_ACT_SILU,      /* x * sigmoid(x) */
    REF_ACT_GELU,      /* x * (1 + erf(x / sqrt 2)) / 2 */
    REF_ACT_GELU_TANH, /* x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 */
    /* Gated only. g = min(gate, limit), u = clamp(up, -limit, limit):
     * g * sigmoid(alpha * g) * (u + 1). */
    REF_ACT_SWIGLU_OAI,
    REF_ACT_RELU2, /* max(x, 0)^2 */
    REF_ACT_IDENTITY,
};

struct ref_activation {
    enum ref_act act;
    bool gated;   /* act(gate) * up; otherwise act(x) and up_offset is unused */
    double alpha; /* swiglu-oai: 1.702 */
    double limit; /* swiglu-oai: 7; INFINITY for none */
    /* Column i of the result reads columns gate_offset + i * stride, up_offset + i * stride. */
    int64_t gate_offset;
    int64_t up_offset;
    int64_t stride;
};

/* The usual layouts of inter columns: [gate | up] halves, interleaved (gate even), ungated; alpha
 * 1.702 and limit 7. */
struct ref_activation ref_activation_halves(enum ref_act act, int64_t inter);
struct ref_activation ref_activation_interleaved(enum ref_act act);
struct ref_activation ref_activation_ungated(enum ref_act act);

/* One activated value; up is ignored when not gated. */
double ref_activate(const struct ref_activation *activation, double gate, double up);

/* in [num_rows][in_width] -> out [num_rows][inter], each value rounded to out_dtype. */
void ref_activation_rows(const struct ref_activation *activation, const double *in,
                         int64_t num_rows, int64_t in_width, int64_t inter,
                         enum ref_dtype out_dtype, double *out);

/* ---- Grouped GEMM ---- */

/* A stack of matrices W[expert][n][k] with strides in elements. */
struct ref_weight {
    const double *base;
    int64_t expert_stride;
    int64_t row_stride; /* along n */
    int64_t col_stride; /* along k */
};

/* Dense [experts][n][k]. */
struct ref_weight ref_weight_dense(const double *base, int64_t n, int64_t k);

/* out[r][n] = row_weights[r] * sum_k a[r / rows_per_input][k] w[e][n][k] + bias[e][n], e being the
 * expert of row r. */
struct ref_grouped_gemm {
    const double *a;        /* [ceil(num_rows / rows_per_input)][k] */
    int64_t rows_per_input; /* top_k when a holds tokens and rows are routes; 0: 1 */
    struct ref_weight w;    /* [experts][n][k] */
    const double *bias;     /* [experts][n] or NULL */
    const int32_t *experts; /* [num_rows]: expert of each row, -1 for none; see ref_row_experts */
    const double *row_weights; /* [num_rows] or NULL: all 1 */
    int64_t num_rows;
    int64_t n;
    int64_t k;
    double *out;     /* [num_rows][n], not rounded; rows of no expert are left alone */
    double *sum_abs; /* [num_rows][n] or NULL: |row weight| sum |a w| + |bias| */
};

/* Expert of each of num_rows rows from segments: rows seg_indptr[e] .. of expert e, of which the
 * first counts[e] are in use (counts NULL: all); -1 for the others. */
void ref_row_experts(const int64_t *seg_indptr, const int64_t *counts, int64_t num_local,
                     int64_t num_rows, int32_t *experts);

void ref_grouped_gemm(const struct ref_grouped_gemm *args);

/* ---- Combine ---- */

struct ref_post_reorder {
    const double *rows;     /* [rows][hidden] */
    const int32_t *src2dst; /* [num_tokens][top_k]; negative: contributes nothing */
    const double *weights;  /* [num_tokens][top_k] or NULL: all 1 */
    int64_t num_tokens;
    int64_t top_k;
    int64_t hidden;
    double scaling_factor;       /* 1.0 for none */
    const double *shared;        /* [num_tokens][hidden], added after scaling, or NULL */
    const double *shared_factor; /* [num_tokens] factors of shared, or NULL: all 1 */
    const double *residual;      /* [num_tokens][hidden], added at the end, or NULL */
    enum ref_dtype out_dtype;    /* rounded once, at the end */
    double *out;                 /* [num_tokens][hidden] */
    double *sum_abs;             /* [num_tokens][hidden] or NULL: the same sum over magnitudes */
};

/* out[t] = scaling * sum_j weight[t][j] * rows[src2dst[t][j]] + shared_factor[t] * shared[t] +
 * residual[t]. */
void ref_post_reorder(const struct ref_post_reorder *args);

/* out[t] = scaling * sum_j in[t][j] for in [num_tokens][top_k][hidden], rounded to out_dtype.
 * sum_abs may be NULL. */
void ref_sum_reduce(const double *in, int64_t num_tokens, int64_t top_k, int64_t hidden,
                    double scaling_factor, enum ref_dtype out_dtype, double *out, double *sum_abs);

/* ---- Experts and layer ---- */

/* Where a value is rounded on its way; REF_F64 for not at all. */
struct ref_rounding {
    enum ref_dtype gemm1;        /* input of the activation: GEMM 1 with input weight and bias */
    enum ref_dtype intermediate; /* activated values */
    enum ref_dtype row;          /* an expert's output row */
    enum ref_dtype out;          /* the combined output */
};

/* A set of experts of one shape. */
struct ref_experts {
    /* [num_local][w1_rows][hidden], w1_rows = 2 * inter if gated, else inter */
    struct ref_weight w1;
    struct ref_weight w2; /* [num_local][hidden][inter] */
    const double *bias1;  /* [num_local][w1_rows] or NULL */
    const double *bias2;  /* [num_local][hidden] or NULL */
    struct ref_activation activation;
    int64_t hidden;
    int64_t inter;
};

/* One expert applied to one row: out[hidden] (rounded to rounding->row) from x[hidden].
 * input_weight multiplies the first GEMM's accumulator before its bias (1.0 for none).
 * sum_abs[hidden] or NULL: sum_i |h_i w2| + |bias2|. */
void ref_expert_row(const struct ref_experts *experts, int64_t expert, const double *x,
                    double input_weight, const struct ref_rounding *rounding, double *out,
                    double *sum_abs);

/* Rows already dispatched: x [num_rows][hidden] -> out [num_rows][hidden]. row_experts [num_rows]
 * is what ref_row_experts gives; rows of expert -1 are left alone. row_weights [num_rows] or NULL
 * multiply the first GEMM's accumulator. */
void ref_experts_rows(const struct ref_experts *experts, const double *x,
                      const int32_t *row_experts, int64_t num_rows, const double *row_weights,
                      const struct ref_rounding *rounding, double *out);

/* out[t] = scaling * sum_j weight[t][j] * expert(ids[t][j])(x[t]) + sum over shared experts +
 * residual[t]. */
struct ref_layer {
    const double *x; /* [num_tokens][hidden] */
    int64_t num_tokens;
    struct ref_experts routed;
    struct ref_filter filter;
    const int64_t *ids;    /* [num_tokens][top_k] */
    const double *weights; /* [num_tokens][top_k] */
    int64_t top_k;
    bool weight_on_input; /* weights multiply GEMM 1's accumulators; in the combine they are 1 */
    double scaling_factor;
    /* Shared experts, computed for every token, each row rounded like a routed one; 0: none. */
    int64_t num_shared;
    struct ref_experts shared;
    /* [num_shared][hidden] or NULL: each shared row is multiplied by sigmoid(gate . x). */
    const double *shared_gate;
    const double *residual; /* [num_tokens][hidden] or NULL */
    struct ref_rounding rounding;
    double *out; /* [num_tokens][hidden] */
    /* [num_tokens][hidden] or NULL: the output's sum over magnitudes, sum_j |weight| sum_i |h_i w2|
     * and so on: rounding the intermediate with relative error d changes the output by at most d
     * times this. */
    double *sum_abs;
};

void ref_layer(const struct ref_layer *args);

#endif
