/* SPDX-License-Identifier: Apache-2.0 */
/* Whole layers on a GPU machine: one description of a layer, its tensors on the host and on the
 * device, and calls of both backends with them. Failures end the program, as in gpu_host.h. */
#ifndef MOE_GPU_LAYER_H
#define MOE_GPU_LAYER_H

#include "gpu_compare.h"
#include "gpu_host.h"
#include "gpu_tiles.h"

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
    void *ids_out;      /* int32 [num_tokens, k]; NULL: not wanted */
    float *weights_out; /* [num_tokens, k]; NULL: not wanted */
    CUstream stream;
    int32_t is_cpu; /* with the CPU backend's weights and tensors */
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

/* Stores an element as fp32, bf16 or fp16, rounded towards zero. */
void layer_store(void *elements, int32_t dtype, int64_t index, double value);

/* New tokens, logits and residual, new ids of a pattern; sent to the device. */
void layer_draw_inputs(struct layer_case *test, int pattern, uint64_t *seed);

/* A plan of a context; workspace_cap 0: none. The first may be refused. */
int32_t layer_try_plan(const struct layer_case *test, const struct gpu_host *host,
                       struct moe_context *context, uint64_t workspace_cap, struct moe_plan **plan,
                       struct moe_error *error);
struct moe_plan *layer_plan(const struct layer_case *test, const struct gpu_host *host,
                            struct moe_context *context, uint64_t workspace_cap);
uint64_t layer_workspace_bytes(const struct gpu_host *host, const struct moe_plan *plan);

int32_t layer_run(const struct layer_case *test, const struct gpu_host *host,
                  const struct layer_call *call, struct moe_error *error);

/* The layer of a token in float64 from the stored elements, and how far a result of 16-bit steps
 * may be from it: every element, and the L2 norm of all. */
struct layer_expected {
    double *values, *tolerances; /* [hidden], owned */
    double row_tolerance;
};
void layer_expected_init(struct layer_expected *expected, const struct layer_case *test);
void layer_expected_finish(struct layer_expected *expected);
/* ids and weights: the token's k. */
void layer_reference(const struct layer_case *test, int64_t token, const int32_t *ids,
                     const float *weights, int32_t has_residual, struct layer_expected *expected);

/* How `gpu_layer check` goes. */
enum {
    LAYER_BRIEF = 1,  /* one number of tokens, and captures */
    LAYER_SELF = 2,   /* the CPU backend takes the device's part: up to 129 tokens, no captures */
    LAYER_BROKEN = 4, /* a sign of every result is flipped: the check has to fail */
};

/* The exit status. `modes`: LAYER_BRIEF ... */
int layer_check(const struct gpu_host *host, uint64_t seed, const char *filter, int modes);

/* The exit status. `json_path` NULL or "": no report. `kind_names`: what to record, all without. */
int layer_bench(const struct gpu_host *host, const char *json_path, const char *filter,
                char **kind_names, int num_kind_names);

#endif
