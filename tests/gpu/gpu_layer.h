/* SPDX-License-Identifier: Apache-2.0 */
/* Whole layers on a GPU machine: one description of a layer, its tensors on the host and on the
 * device, and calls of both backends with them. Failures end the program, as in gpu_host.h. */
#ifndef MOE_GPU_LAYER_H
#define MOE_GPU_LAYER_H

#include "gpu_host.h"

/* How the weights of the experts lie. */
enum {
    LAYER_FUSED,       /* [E, 2I, H], gate in the first half */
    LAYER_INTERLEAVED, /* [E, 2I, H], gate and up rows in turn */
    LAYER_TABLE,       /* experts apart */
    LAYER_TRANSPOSED,  /* [E, H, 2I], [E, I, H] */
    LAYER_PAIRED,      /* [E, H, 2I] interleaved, [E, I, H] */
    LAYER_NUM_LAYOUTS
};

/* Which experts the tokens meet. */
enum {
    LAYER_UNIFORM,  /* distinct, any */
    LAYER_HOT,      /* all tokens have expert 0 in slot 0 */
    LAYER_FILTERED, /* nobody's ids */
    LAYER_SPARSE,   /* a quarter of the routes are filtered, the rest has few experts */
    LAYER_NUM_PATTERNS
};

struct layer_shape {
    const char *name;
    int32_t num_experts, top_k, hidden, inter, shared_inter;
    int32_t dtype, output_dtype, activation;
    uint32_t flags;
    int32_t layout;
    int32_t gating; /* MOE_GATING_NONE: ids are given; else logits are, or the router's */
    int32_t has_router;
    float scaling;
};

/* Elements on the host (as they are stored) and on the device. */
struct layer_tensor {
    void *host;
    void *device;
    size_t bytes;
};

enum { LAYER_MAX_TENSORS = 16 };

struct layer_case {
    struct layer_shape shape;
    struct moe_problem problem;
    struct layer_tensor tensors[LAYER_MAX_TENSORS]; /* owned */
    int num_tensors;
    struct moe_weights_desc host_desc, device_desc;
    const void **tables[2]; /* host and device pointers of experts apart */
    struct moe_weights *cpu_weights, *cuda_weights;
    void *prepared;
    struct layer_tensor tokens, ids, weights, logits, residual; /* of max_tokens */
    int64_t max_tokens;
};

/* One layer call: rows [first, first + num_tokens) of the case's inputs. */
struct layer_call {
    const struct moe_plan *plan;
    int64_t first, num_tokens;
    void *output; /* [num_tokens, hidden] with output_stride elements */
    int64_t output_stride;
    void *workspace;
    uint64_t workspace_bytes;
    void *ids_out;             /* int32 [num_tokens, k]; NULL: not wanted */
    CUstream stream;           /* NULL: the CPU backend, */
    int32_t is_default_stream; /* or the default stream of the driver */
    int32_t wants_residual;
    int32_t wants_logits; /* from logits although there is a router */
    const int32_t *num_tokens_device;
};

void layer_case_init(struct layer_case *test, const struct gpu_host *host,
                     const struct layer_shape *shape, int64_t max_tokens, uint64_t *seed);
void layer_case_finish(struct layer_case *test, const struct gpu_host *host);

/* A copy of the case whose CUDA weights are packed, row by row, from tables of its matrices. */
void layer_case_pack(const struct layer_case *test, const struct gpu_host *host,
                     struct layer_case *packed);
void layer_case_unpack(struct layer_case *packed, const struct gpu_host *host);

/* New tokens, logits and residual, new ids of a pattern; sent to the device. */
void layer_draw_inputs(struct layer_case *test, int pattern, uint64_t *seed);

/* A plan of a context; workspace_cap 0: none. */
struct moe_plan *layer_plan(const struct layer_case *test, const struct gpu_host *host,
                            struct moe_context *context, uint64_t workspace_cap);
uint64_t layer_workspace_bytes(const struct gpu_host *host, const struct moe_plan *plan);

int32_t layer_run(const struct layer_case *test, const struct gpu_host *host,
                  const struct layer_call *call, struct moe_error *error);

/* Element i of an array of a dtype. */
double layer_element(const void *elements, int32_t dtype, int64_t index);

/* The layer of one token in double arithmetic from the stored elements, ids given: plain loops. */
void layer_reference(const struct layer_case *test, int64_t token, double *out);

/* Plans of the CUDA context take this GEMM tile from now on; NULL: the built-in configuration. */
void layer_force_tile(const struct gpu_host *host, const struct moe_tile_info *tile);

/* experts with the case's weights and its tokens as rows; how many of two forms are wrong. */
int layer_check_experts(const struct gpu_host *host, const struct layer_case *test, uint64_t *seed);

/* The exit status. is_brief: one number of tokens, and captures. */
int layer_check(const struct gpu_host *host, uint64_t seed, const char *filter, int is_brief);

/* The exit status. `json_path` NULL or "": no report. `kind_names`: what to record, all without. */
int layer_bench(const struct gpu_host *host, const char *json_path, const char *filter,
                char **kind_names, int num_kind_names);

#endif
