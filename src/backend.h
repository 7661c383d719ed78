/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a backend is: one struct of functions. Everything above it (contexts, plans, calls) checks
 * arguments and knows no device; a backend gets checked arguments with all defaults resolved.
 */
#ifndef MOE_BACKEND_H
#define MOE_BACKEND_H

#include "dispatch.h"
#include "memory.h"
#include "moe_plugin.h"
#include "ops.h"

#include <stdbool.h>

struct moe_context;
struct moe_plan;
struct moe_weights;

/* Where and with which tiles one call runs. */
struct moe_run {
    const struct moe_plan *plan;
    const struct moe_dispatch_bucket *bucket; /* of the call's number of tokens */
    void *stream;
    void *workspace;    /* at least op_workspace bytes, aligned to workspace_alignment */
    int64_t num_tokens; /* of the call; on a CPU what num_tokens_device said */
    const int32_t *num_tokens_device;  /* as in ops.h */
    const struct moe_weights *weights; /* of calls that take weights; else NULL */
    int32_t is_chained;                /* CUDA: 1: the node before in the stream is this call's */
    int32_t reserved;
};

/* layer with checked arguments; moe_layer_args documents the members. */
struct moe_op_layer {
    const struct moe_weights *weights;
    int64_t num_tokens;
    int64_t first_token; /* number of tokens[0] in the call */
    const void *tokens;
    int64_t token_stride;
    const int32_t *num_tokens_device;  /* as in ops.h */
    struct moe_op_scales input_scales; /* of pre-quantized tokens */
    const int32_t *num_valid_tokens;   /* as in moe_op_gating, with the next four */
    const int32_t *physical_ids;
    const int32_t *num_replicas;
    int64_t *load_counters;
    int32_t max_replicas;
    int32_t reserved_replicas;
    const void *logits; /* NULL: run the router, unless there are ids */
    int64_t logits_stride;
    const void *topk_ids;
    const float *topk_weights;
    int32_t ids_dtype;
    int32_t reserved;
    struct moe_op_filter filter;
    const void *residual;
    int64_t residual_stride;
    void *output;
    int64_t output_stride;
    void *logits_out;
    void *topk_ids_out;
    float *topk_weights_out;
};

/* experts with checked arguments. */
struct moe_op_experts {
    const struct moe_weights *weights;
    const void *rows;
    int64_t row_stride;
    int64_t num_rows;
    const int64_t *seg_indptr; /* contiguous; NULL: masked */
    const int32_t *masked_m;   /* [num_experts] rows in use of max_masked_rows each */
    int64_t max_masked_rows;
    struct moe_op_scales input_scales; /* of pre-quantized rows */
    const float *row_weights;
    void *output;
    int64_t output_stride;
};

struct moe_backend {
    int32_t id; /* MOE_BACKEND_* */
    const char *name;
    int32_t min_driver;
    uint32_t reserved;
    uint64_t workspace_alignment;
    uint64_t layer_ops; /* bits of operations that its layer may run beside those of every layer */

    /* Describe a device; UNAVAILABLE, NO_DEVICE, DRIVER_TOO_OLD with the reason. */
    int32_t (*probe)(int32_t ordinal, struct moe_device *out, struct moe_error *error);

    /* What a context needs beyond configuration: thread pool, loaded kernels. `device` is updated
     * with what was chosen. */
    int32_t (*state_create)(const struct moe_memory *memory,
                            const struct moe_context_options *options, struct moe_device *device,
                            void **out, struct moe_error *error);
    void (*state_destroy)(const struct moe_memory *memory, void *state);

    /* Refuse with a reason what is legal but not implemented. `problem` is checked; no device is
     * touched. */
    int32_t (*supports)(const struct moe_device *device, const struct moe_problem *problem,
                        uint64_t ops, struct moe_error *error);

    /* Is the whole layer, for some problem, something for this device? NULL: for every one. */
    bool (*runs_layer)(const struct moe_device *device);

    /* Bytes of workspace that one call of `op` needs for up to `num_tokens` tokens with the tiles
     * of `bucket`. */
    uint64_t (*op_workspace)(const struct moe_plan *plan, const struct moe_dispatch_bucket *bucket,
                             int32_t op, int64_t num_tokens);

    /* Prepared weights: bytes (0: none needed) and filling on a stream (NULL: never needed); bind
     * checks alignment. Descriptions are checked. unbind (NULL: nothing to do) frees what bind
     * made, also after a bind that failed. */
    uint64_t (*weights_prepared_bytes)(const struct moe_problem *problem,
                                       const struct moe_weights_desc *desc);
    int32_t (*weights_prepare)(const struct moe_context *context, const struct moe_problem *problem,
                               const struct moe_weights_desc *desc, void *prepared, void *stream,
                               struct moe_error *error);
    int32_t (*weights_bind)(struct moe_weights *weights, struct moe_error *error);
    void (*weights_unbind)(struct moe_weights *weights);

    /* Run calls. num_tokens of layer is at most the plan's chunk. */
    int32_t (*layer)(const struct moe_run *run, const struct moe_op_layer *op,
                     struct moe_error *error);
    int32_t (*experts)(const struct moe_run *run, const struct moe_op_experts *op,
                       struct moe_error *error);
    int32_t (*router)(const struct moe_run *run, const struct moe_op_router *op,
                      struct moe_error *error);
    int32_t (*gating)(const struct moe_run *run, const struct moe_op_gating *op,
                      struct moe_error *error);
    int32_t (*align)(const struct moe_run *run, const struct moe_op_align *op,
                     struct moe_error *error);
    int32_t (*ep_preprocess)(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                             struct moe_error *error);
    int32_t (*route)(const struct moe_run *run, const struct moe_op_route *op,
                     struct moe_error *error);
    int32_t (*quantize)(const struct moe_run *run, const struct moe_op_quantize *op,
                        struct moe_error *error);
    int32_t (*pre_reorder)(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                           struct moe_error *error);
    int32_t (*activation)(const struct moe_run *run, const struct moe_op_activation *op,
                          struct moe_error *error);
    int32_t (*grouped_gemm)(const struct moe_run *run, int32_t op_id, const struct moe_op_gemm *op,
                            struct moe_error *error);
    int32_t (*post_reorder)(const struct moe_run *run, int32_t op_id,
                            const struct moe_op_post_reorder *op, struct moe_error *error);
};

extern const struct moe_backend moe_backend_cpu;
#if MOE_HAVE_CUDA
extern const struct moe_backend moe_backend_cuda;
#endif

/* By id; AUTO gives the first available of cuda, cpu that runs the layer. NULL for an id that is
 * unknown or not in this build (device.c). */
const struct moe_backend *moe_backend_find(int32_t id);

#endif
