/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the CUDA kernels: the operation's struct and what the host has worked out for it. */
#ifndef MOE_CUDA_ARGS_H
#define MOE_CUDA_ARGS_H

#include "ops.h"

#include <cuda.h>

/* What a launch of the sort kernels does: all of it with a thread per route (route_flat.cuh), or
 * one of two steps (route_split.cuh). */
#define MOE_CUDA_SORT_FLAT  0
#define MOE_CUDA_SORT_COUNT 1 /* a CTA per chunk: ranks and counts it into the workspace */
#define MOE_CUDA_SORT_PLACE 2 /* a CTA per chunk, after COUNT: writes the outputs */
#define MOE_CUDA_SORT_BATCH 3 /* align's batched form, whose counts are given; kernels of PLACE */

/* FLAT: CTAs of a cluster, and shared memory that every device has at least. */
#define MOE_CUDA_SORT_CLUSTER_CTAS 8
#define MOE_CUDA_SORT_FLAT_BYTES   (96 * 1024)

/* FLAT: of a bucket's counts, a byte per warp of a CTA: 16-byte loads of neighbours do not meet in
 * a bank. */
#define MOE_CUDA_SORT_FLAT_ROW_BYTES(num_threads) ((num_threads) <= 512 ? 16 : 48)

/* Rows of the table that a thread of PLACE adds up in 16 bits, and routes of a chunk of COUNT at
 * most, so that it can. */
#define MOE_CUDA_SORT_BATCH_ROWS   8
#define MOE_CUDA_SORT_SPLIT_ROUTES (65535 / MOE_CUDA_SORT_BATCH_ROWS)

/* Scratch of the scan. */
#define MOE_CUDA_SORT_SCAN_WORDS 128

/* Words of an array with an entry per bucket (experts, and one for filtered routes) and an end. */
#define moe_cuda_sort_bucket_words(num_experts) (((num_experts) + 2 + 3) / 4 * 4)

/* Words of an array with an entry per route of a chunk. */
#define moe_cuda_sort_chunk_words(chunk_routes) (((chunk_routes) + 3) / 4 * 4)

/* Counters of a warp, and 16-bit words of a row of the tables. */
#define moe_cuda_sort_row_words(num_experts) (((num_experts) + 1 + 7) / 8 * 8)

struct moe_cuda_sort_shape {
    int32_t phase;      /* MOE_CUDA_SORT_* */
    int32_t num_chunks; /* COUNT, PLACE: more CTAs than these help to write padding */
    int32_t chunk_routes;
    int32_t num_warps;       /* that rank routes; fewer when counters do not fit */
    int32_t routes_per_warp; /* a multiple of 32 */
    int32_t smem_bytes;
    int32_t num_groups; /* PLACE: of row words / 8 threads, which share a row of the table */
    int32_t reserved;
    uint16_t *counts; /* COUNT, PLACE: [num_chunks][row words] routes per bucket */
    uint32_t *ranks;  /* [num_chunks * chunk_routes] bucket << 16 | number in its chunk */
};

struct moe_cuda_align {
    struct moe_op_align op;
    struct moe_cuda_sort_shape shape;
};

struct moe_cuda_ep_preprocess {
    struct moe_op_ep_preprocess op;
    struct moe_cuda_sort_shape shape;
};

/* Words of shared memory of a warp that gates (gate.cuh): candidates, the chosen, a row of experts;
 * three rows when experts do not fit registers. */
#define MOE_CUDA_GATE_ROW_WORDS(num_experts) (((num_experts) + 31) / 32 * 32)
#define MOE_CUDA_GATE_WORDS(num_experts, top_k, num_rows) \
    (96 + 2 * (((top_k) + 3) / 4 * 4) + (num_rows)*MOE_CUDA_GATE_ROW_WORDS(num_experts))

/* Where the logits alone decide (gate_quick.cuh): experts chosen per token at most, and tokens that
 * a warp has at once, a lane per slot. No shared memory. */
#define MOE_CUDA_GATE_QUICK_SLOTS 8
#define MOE_CUDA_GATE_QUICK_BATCH (32 / MOE_CUDA_GATE_QUICK_SLOTS)

/* A warp gates a token, quick forms `batch_tokens` of them. `gate_words`: 4-byte words of shared
 * memory of each warp. `is_late`: dependents are launched when the last CTA ends, not when it
 * begins. */
struct moe_cuda_gating {
    struct moe_op_gating op;
    int32_t gate_words;
    int32_t is_vectored; /* four logits at a time are aligned, in all rows */
    int32_t batch_tokens;
    int32_t is_late;
};

/* Forms of gating: experts in registers of a lane (0: any number, in shared memory), and threads
 * that a multiprocessor holds with the registers that are left. */
#define MOE_CUDA_GATE_THREADS_0           1024
#define MOE_CUDA_GATE_THREADS_4           1024
#define MOE_CUDA_GATE_THREADS_8           768
#define MOE_CUDA_GATE_THREADS_16          512
#define MOE_CUDA_GATE_QUICK_THREADS_2     2048
#define MOE_CUDA_GATE_QUICK_THREADS_4     2048
#define MOE_CUDA_GATE_QUICK_THREADS_8     1536
#define MOE_CUDA_GATE_QUICK_THREADS_16    1024
#define MOE_CUDA_GATE_FORMS_LIST(X)       X(0, 0) X(1, 4) X(2, 8) X(3, 16)
#define MOE_CUDA_GATE_QUICK_FORMS_LIST(X) X(4, 2) X(5, 4) X(6, 8) X(7, 16)
#define MOE_CUDA_GATE_NUM_FORMS           8

/* Forms of the sorts. Of cuda.sort, for FLAT: one CTA, a cluster. Of cuda.split: COUNT, PLACE. */
enum { MOE_CUDA_SORT_FORM_ALONE, MOE_CUDA_SORT_FORM_CLUSTER, MOE_CUDA_SORT_NUM_FORMS };
enum { MOE_CUDA_SPLIT_FORM_COUNT, MOE_CUDA_SPLIT_FORM_PLACE, MOE_CUDA_SPLIT_NUM_FORMS };

/* route, by what it writes: cuda.sort as it is, with gating, and both in a cluster; cuda.split
 * PLACE, then COUNT, and COUNT with gating. */
enum {
    MOE_CUDA_ROUTE_BOTH,
    MOE_CUDA_ROUTE_ALIGN,
    MOE_CUDA_ROUTE_PREPROCESS,
    MOE_CUDA_ROUTE_GATED,
    MOE_CUDA_ROUTE_COUNT = MOE_CUDA_ROUTE_GATED,
    MOE_CUDA_ROUTE_COUNT_GATED,
    MOE_CUDA_ROUTE_NUM_SPLIT_FORMS,
    MOE_CUDA_ROUTE_CLUSTER = 2 * MOE_CUDA_ROUTE_GATED,
    MOE_CUDA_ROUTE_NUM_FORMS = 2 * MOE_CUDA_ROUTE_CLUSTER
};

/* Experts in registers of a lane, where a sort gates: 32 times as many at most. */
#define MOE_CUDA_ROUTE_PER_LANE 8

struct moe_cuda_route {
    struct moe_op_route op;
    struct moe_cuda_sort_shape shape;
    int32_t chunk_tokens; /* gated forms: of a CTA, */
    int32_t batch_tokens; /* and of a warp at once */
};

/* Warps of a CTA of the router kernels. */
#define MOE_CUDA_ROUTER_WARPS 8

/* router: tokens and weights of one 16-bit type, on tensor cores; fp32 on either side. */
enum { MOE_CUDA_ROUTER_HALF, MOE_CUDA_ROUTER_WIDE, MOE_CUDA_ROUTER_NUM_FORMS };

/* `applies_sigmoid`: the results are 1 / (1 + exp(-logit)), for the factor of a shared expert. */
struct moe_cuda_router {
    struct moe_op_router op;
    int32_t applies_sigmoid;
    int32_t reserved;
};

/*
 * Forms: a kernel of the operations on rows is compiled more than once, each for a part of what the
 * operation takes, so that one part's registers do not limit another's threads. The host picks one
 * per launch. X(op, number of forms)
 */
#define MOE_CUDA_MAX_FORMS 12
#define MOE_CUDA_FORMS_LIST(X)                              \
    X(MOE_OP_ROUTER, MOE_CUDA_ROUTER_NUM_FORMS)             \
    X(MOE_OP_ALIGN_BLOCK_SIZE, MOE_CUDA_SORT_NUM_FORMS)     \
    X(MOE_OP_EP_PREPROCESS, MOE_CUDA_SORT_NUM_FORMS)        \
    X(MOE_OP_GATING, MOE_CUDA_GATE_NUM_FORMS)               \
    X(MOE_OP_ROUTE, MOE_CUDA_ROUTE_NUM_FORMS)               \
    X(MOE_OP_PRE_REORDER, MOE_CUDA_PRE_REORDER_NUM_FORMS)   \
    X(MOE_OP_QUANTIZE, MOE_CUDA_QUANTIZE_NUM_FORMS)         \
    X(MOE_OP_ACTIVATION, MOE_CUDA_ACTIVATION_NUM_FORMS)     \
    X(MOE_OP_POST_REORDER, MOE_CUDA_POST_REORDER_NUM_FORMS) \
    X(MOE_OP_SUM_REDUCE, MOE_CUDA_POST_REORDER_NUM_FORMS)

/* The same of cuda.split, where an operation has that kernel. */
#define MOE_CUDA_SPLIT_FORMS_LIST(X)                     \
    X(MOE_OP_ALIGN_BLOCK_SIZE, MOE_CUDA_SPLIT_NUM_FORMS) \
    X(MOE_OP_EP_PREPROCESS, MOE_CUDA_SPLIT_NUM_FORMS)    \
    X(MOE_OP_ROUTE, MOE_CUDA_ROUTE_NUM_SPLIT_FORMS)

/* Units of 16 columns, one per thread: unit number / per_row = number * row_magic >> row_shift for
 * numbers below 2^31. 2^lanes_log2 of them share a scale. */
struct moe_cuda_units {
    int32_t per_row;
    uint32_t row_magic;
    int32_t row_shift;
    int32_t lanes_log2;
};

/* pre_reorder. Not quantized: a 16-byte vector of a token a thread, two, or what smaller alignment
 * allows. Quantized: in groups that lanes share, or any other way. LANES_K8_BF16: LANES of bf16
 * with eight slots. WIDE and WIDE_LANES: COPY and LANES where many rows are written
 * (reorder_wide.cuh). */
enum {
    MOE_CUDA_PRE_REORDER_COPY,
    MOE_CUDA_PRE_REORDER_WIDE,
    MOE_CUDA_PRE_REORDER_LANES,
    MOE_CUDA_PRE_REORDER_OTHER,
    MOE_CUDA_PRE_REORDER_WIDE_LANES,
    MOE_CUDA_PRE_REORDER_COPY_PAIRS,
    MOE_CUDA_PRE_REORDER_COPY_NARROW,
    MOE_CUDA_PRE_REORDER_LANES_K8_BF16,
    MOE_CUDA_PRE_REORDER_NUM_FORMS
};

/* A launch of the wide forms. A warp has a part, as it is written, of a token, and for copies a
 * barrier, quantized the part's scales. Sizes are multiples of 16 bytes, quantized of a group. */
#define MOE_CUDA_WIDE_THREADS       1024 /* that a multiprocessor holds */
#define MOE_CUDA_WIDE_BARRIER_BYTES 8
struct moe_cuda_wide {
    int64_t first_token; /* of this launch, also of LANES and LANES_K8_BF16 */
    int64_t end_token;   /* the first that is not of this launch */
    int64_t row_stride_bytes;
    int32_t row_bytes;
    int32_t num_parts;
    int32_t part_bytes; /* the last part of a row may have fewer */
    int32_t side_bytes; /* barrier or scales of a warp */
    /* The copy engine writes the scales too: rows of them, 16 bytes aligned. */
    int32_t copies_scales;
    int32_t reserved;
};

/* `vector_bytes` (16, 4, 2 or 1) divides every base address, stride and row; quantized: 16 where
 * eight columns of a token are 16-byte aligned. */
struct moe_cuda_pre_reorder {
    struct moe_op_pre_reorder op;
    int32_t vector_bytes;
    int32_t row_vectors;         /* vectors of a row */
    int32_t is_output_vectored;  /* quantized: eight bytes of a row are 8-byte aligned */
    int32_t num_groups;          /* scales of a row */
    struct moe_cuda_units units; /* LANES, WIDE_LANES */
    struct moe_cuda_wide wide;
};

enum { MOE_CUDA_QUANTIZE_LANES, MOE_CUDA_QUANTIZE_OTHER, MOE_CUDA_QUANTIZE_NUM_FORMS };

struct moe_cuda_quantize {
    struct moe_op_quantize op;
    int32_t is_vectored;
    int32_t is_output_vectored;
    int32_t num_groups;
    int32_t reserved;
    struct moe_cuda_units units; /* LANES */
};

/* activation: by what limits its threads. OTHER: gelu, relu2, identity. The quantized ones by
 * lanes; QUANTIZED: every other quantization, of all. SILU_BF16: gated bf16 in halves, to bf16 or
 * by lanes, 16 columns a thread. */
enum {
    MOE_CUDA_ACTIVATION_SILU,
    MOE_CUDA_ACTIVATION_LOGISTIC,
    MOE_CUDA_ACTIVATION_OTHER,
    MOE_CUDA_ACTIVATION_SILU_LANES,
    MOE_CUDA_ACTIVATION_LOGISTIC_LANES,
    MOE_CUDA_ACTIVATION_OTHER_LANES,
    MOE_CUDA_ACTIVATION_QUANTIZED,
    MOE_CUDA_ACTIVATION_SILU_BF16,
    MOE_CUDA_ACTIVATION_SILU_BF16_LANES,
    MOE_CUDA_ACTIVATION_NUM_FORMS
};

/* How gate and up of eight columns are loaded. */
enum { MOE_CUDA_LOAD_EACH, MOE_CUDA_LOAD_HALVES, MOE_CUDA_LOAD_PAIRS };

struct moe_cuda_activation {
    struct moe_op_activation op;
    int32_t load;               /* MOE_CUDA_LOAD_*; not EACH: 16-byte aligned everywhere */
    int32_t is_output_vectored; /* eight columns are aligned to 16 bytes (fp8: 8) */
    int32_t num_groups;         /* scales of a row */
    int32_t is_ordered;         /* in place, and columns are written where others are read: a CTA
                                   has a row and reads a block of columns before it writes it */
    int32_t rows_per_expert;    /* masked layout: CTAs in y of an expert */
    int32_t reserved;
    struct moe_cuda_units units; /* LANES, SILU_BF16 */
};

/* post_reorder: one column per thread; vectors of 16 bytes, by the slots whose rows are loaded
 * together, and vectors of a thread, which lie BLOCK_SIZE apart. K8_BF16: K8 of bf16 with neither
 * shared nor residual, where few tokens leave no time to fetch more code. */
enum {
    MOE_CUDA_POST_REORDER_EACH,
    MOE_CUDA_POST_REORDER_K2,
    MOE_CUDA_POST_REORDER_K4,
    MOE_CUDA_POST_REORDER_K8,
    MOE_CUDA_POST_REORDER_K8_BF16,
    MOE_CUDA_POST_REORDER_NUM_FORMS
};
#define MOE_CUDA_POST_REORDER_UNITS_K2 2
#define MOE_CUDA_POST_REORDER_UNITS_K4 2
#define MOE_CUDA_POST_REORDER_UNITS_K8 1

/* `is_early`: src2dst, topk_weights and num_tokens_device were written before the node in front of
 * this one, which waited for it: forms whose one group has all slots read them before the wait. */
struct moe_cuda_post_reorder {
    struct moe_op_post_reorder op;
    int32_t is_early;
    int32_t reserved;
};

/*
 * The grouped GEMM of sm90.gemm. A tile's numbers (struct moe_tile, a row of tiles.def):
 *   block_m     tokens of a work unit at most; a unit takes its expert's rows in steps of 8
 *   block_n     weight rows of a work unit, gate and up together: block_n / num_matrices channels
 *   block_k     columns of one stage of the ring
 *   group_m     blocks of tokens that share a weight block before the next weight block is taken
 *   num_warps   warps of a CTA: 8 with one consumer warpgroup, 12 with two
 *   num_stages  stages of the ring
 * Launch: grid (num_sms, 1; sm90.pair: rounded down to pairs), 32 * num_warps threads, dynamic
 * shared memory of MOE_CUDA_GEMM_FIXED_BYTES + MOE_CUDA_GEMM_SEGMENT_BYTES, and where it sorts
 * MOE_CUDA_GEMM_ORDER_BYTES. A CTA fills a multiprocessor, so that the CTAs of a chained launch
 * spread evenly. Any grid gives the same bits.
 */

/* Two slabs of weight rows per consumer warpgroup; a slab is the rows of one box. Slabs of less
 * than 64 rows lie beside each other and are multiplied at once (is_merged), so a box brings 64
 * columns; else it brings all columns of a stage. */
#define MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps) ((num_warps) / 4 - 1)
#define MOE_CUDA_GEMM_SLAB_ROWS(block_n, num_warps) \
    ((block_n) / (2 * MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps)))
#define MOE_CUDA_GEMM_IS_MERGED(block_n, num_warps) \
    (MOE_CUDA_GEMM_SLAB_ROWS(block_n, num_warps) <= 32)
#define MOE_CUDA_GEMM_BOX_BLOCKS(block_n, block_k, num_warps) \
    (MOE_CUDA_GEMM_IS_MERGED(block_n, num_warps) ? 1 : (block_k) / MOE_CUDA_GEMM_BOX_K)

/* Of a box of tokens of sm90.pair: half of the block, or all of it where that is seldom less than
 * full. Few boxes come faster than many. */
#define MOE_CUDA_GEMM_TOKEN_BOX_ROWS(block_m) \
    ((block_m) > MOE_CUDA_GEMM_GATHERED_BLOCK_M ? (block_m) : (block_m) / 2)

/* Bytes of an element of tokens and weights, and the columns of a box: one swizzled row. */
#define MOE_CUDA_GEMM_ELEMENT_BYTES 2
#define MOE_CUDA_GEMM_ROW_BYTES     128
#define MOE_CUDA_GEMM_BOX_K         (MOE_CUDA_GEMM_ROW_BYTES / MOE_CUDA_GEMM_ELEMENT_BYTES)

/* Per consumer warpgroup, where a unit's output is transposed: 32 tokens x 64 channels x 16 bits,
 * for two slabs. */
#define MOE_CUDA_GEMM_STAGING_BYTES 8192

#define MOE_CUDA_GEMM_STAGE_BYTES(block_m, block_n, block_k) \
    (((block_m) + (block_n)) * (block_k)*MOE_CUDA_GEMM_ELEMENT_BYTES)

/* Shared memory of a CTA: alignment, ring, staging, two barriers and a unit per stage, output
 * rows, scratch, three words per segment (first tile, first position, positions), the order of
 * sorted routes. Segments: num_segments, with expert_ids 0. */
#define MOE_CUDA_GEMM_FIXED_BYTES(block_m, block_n, block_k, num_warps, num_stages)           \
    (1024 + (num_stages)*MOE_CUDA_GEMM_STAGE_BYTES(block_m, block_n, block_k) +               \
     MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps) * MOE_CUDA_GEMM_STAGING_BYTES + (num_stages)*32 + \
     MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps) * (block_m)*4 + 256)
#define MOE_CUDA_GEMM_SEGMENT_BYTES(num_segments) (12 * ((num_segments) + 1))

/* Where a GEMM's list of work may come from beside the segments themselves: the ids of the routes
 * that a sort puts in order of experts. It lets the first GEMM of a layer begin under the sort, or,
 * with src2dst, do without one. */
struct moe_cuda_gemm_routes {
    const void *topk_ids; /* NULL: from the segments */
    const int32_t *num_tokens_device;
    int32_t *src2dst; /* not NULL: the GEMM sorts the routes, reads rows by the order that comes of
                         it, and writes the position of each route here, -1 where it has none */
    int32_t ids_dtype;
    int32_t num_routes;
    int32_t top_k; /* slots of a token */
    int32_t reserved;
    struct moe_op_filter filter;
};

/* Routes that every CTA of a GEMM counts for itself, at most, and those that it sorts. */
#define MOE_CUDA_GEMM_MAX_ROUTES 2048
#define MOE_CUDA_GEMM_MAX_SORTED 1024

/* Sorting: a byte per segment and sorting warp, a rank per route, in the staging of all consumers;
 * the order of the routes behind the segments' words. */
#define MOE_CUDA_GEMM_SORT_WARPS 16 /* at most */
#define MOE_CUDA_GEMM_SORT_BYTES(num_routes, num_segments) \
    (MOE_CUDA_GEMM_SORT_WARPS * (num_segments) + 4 * (num_routes))
#define MOE_CUDA_GEMM_ORDER_BYTES(num_routes) (4 * (num_routes))

/* Forms, by how the weights lie. Numbers, since symbols are made of them. PAIRED has ten registers
 * too few for larger blocks. */
#define MOE_CUDA_GEMM_ROWS           0
#define MOE_CUDA_GEMM_TRANSPOSED     1
#define MOE_CUDA_GEMM_PAIRED         2
#define MOE_CUDA_GEMM_NUM_FORMS      3
#define MOE_CUDA_GEMM_PAIRED_BLOCK_M 144
#define MOE_CUDA_GEMM_HAS_FORM(form, block_m, block_n, num_warps) \
    ((form) == MOE_CUDA_GEMM_ROWS ||                              \
     (!MOE_CUDA_GEMM_IS_MERGED(block_n, num_warps) &&             \
      ((form) != MOE_CUDA_GEMM_PAIRED || (block_m) <= MOE_CUDA_GEMM_PAIRED_BLOCK_M)))

/*
 * weight[i], i below op.num_matrices (a second map that is not used: anything): op.weight[i] as a
 * map of four dimensions, 16-bit type of op.input_dtype, CU_TENSOR_MAP_SWIZZLE_128B, no
 * interleave, zero fill, element strides 1, L2 promotion 256 bytes. Bytes below are
 * 2 * the operand's strides; each must be a multiple of 16, as must the base. col_stride is 1.
 *   op.k % 64 == 0, is_k_blocked 1:  dims (64, n, k / 64, E), strides (row, 128, expert)
 *   else            is_k_blocked 0:  dims (k, n, 1, E), strides (row, row, expert)
 *   box                              (64, slab rows, is_k_blocked ? BOX_BLOCKS : 1, 1)
 * Halves of [E, 2I, H], separate tensors, padded and interleaved rows are all base and strides.
 * That is form ROWS. Weights that lie channel by channel, row_stride 1, are read by form
 * TRANSPOSED, of tiles whose slabs are 64 rows: the map's dimensions are (n, k, 1, E), its strides
 * (column, column, expert), its box (64, block_k, 1, 1). Form PAIRED: channels of gate and up are
 * in turn, gate first; row_stride is 2, num_matrices 2, and either map is that of both, with 2 * n
 * for n.
 *
 * op: as documented in ops.h, with these limits. input base and 2 * input_stride divide by 16; k
 * and n divide by 8; weight dtype is input_dtype, bf16 or fp16; output bf16, fp16 or fp32; biases
 * have a base, not a table; no scales, no output_quant. has_activation: num_matrices 2, or 1 with
 * act.ungated. Exactly one of seg_indptr, masked_m, expert_ids; row_ids with either. Segments of
 * seg_indptr are experts, num_segments = num_experts, as are those of masked_m. None of the three:
 * as masked_m with all max_masked_rows in use (a shared expert: one segment of all tokens).
 */
struct moe_cuda_gemm {
    CUtensorMap weight[2];
    CUtensorMap tokens; /* sm90.pair with token_box_rows > 0: dims (k, num_rows, 1, 1), box (64,
                           token_box_rows, 1, 1), the rest as of weight[i] */
    struct moe_op_gemm op;
    int32_t is_k_blocked;       /* of form ROWS */
    int32_t is_output_vectored; /* 1: output base and stride divide by 16 bytes; else element-wise
                                   stores */
    int32_t is_early;       /* 1: what tells the work (seg_indptr, masked_m, expert_ids, num_tokens_
                         post_pad; the ids and what maps them) was written before the node in front
                         of this one, which waited for it: weights are fetched before the wait. 0:
                         by that node, or unknown */
    int32_t token_box_rows; /* 0: position p reads the input row of struct moe_op_gemm; else row p,
                               by boxes of so many rows (TOKEN_BOX_ROWS), if that divides block_m */
    /* With topk_ids: the segments are those of a sort without alignment; seg_indptr is not NULL and
     * not read. With src2dst, of tiles whose clusters are one CTA: at most MAX_SORTED routes,
     * SORT_BYTES in the staging, op.row_ids NULL (the input row of a route is its number /
     * row_ids_div), op.row_weights NULL, op.scatter 0. */
    struct moe_cuda_gemm_routes routes;
};

/* Threads of the helpers that prepare what other kernels read. */
#define MOE_CUDA_HELPER_THREADS 256

/* out[s] = clamp(seg_indptr[s], first, last) - first for s in [0, num_segments]: the part of the
 * segments in rows [first, last), as segments of a pass of its own. */
struct moe_cuda_clip_segments {
    const int64_t *seg_indptr;
    int64_t *out;
    int64_t first;
    int64_t last;
    int32_t num_segments;
    int32_t reserved;
};

/* out[e] = clamp(masked_m[e] - first_row, 0, num_rows) for e in [first_expert, last_expert), else
 * 0: rows in use of a pass over a window of masked rows. */
struct moe_cuda_clip_masked {
    const int32_t *masked_m;
    int32_t *out;
    int64_t first_row;
    int64_t num_rows;
    int32_t first_expert;
    int32_t last_expert;
    int32_t num_experts;
    int32_t reserved;
};

/* A matrix per expert, strides in elements (16 or 32 bits), to packed rows one after the other:
 * out[(e * num_rows + row) * num_columns + column]. Grid (columns / 32, rows / 32, experts). */
struct moe_cuda_pack_matrix {
    const void *base;
    void *out;
    int64_t expert_stride;
    int64_t row_stride;
    int64_t col_stride;
    int32_t num_rows;
    int32_t num_columns;
    int32_t num_experts;
    int32_t reserved;
};

#endif
