/* SPDX-License-Identifier: Apache-2.0 */
/* What is timed by gpu_layer bench: a model's layer with a number of tokens, and its parts. */
#ifndef MOE_GPU_LAYER_BENCH_H
#define MOE_GPU_LAYER_BENCH_H

#include "gpu_layer.h"

enum {
    BENCH_NUM_CALLS = 16, /* at most, in a graph */
    BENCH_MAX_SETS = 16,
    BENCH_NUM_COUNTS = 9
};

struct bench_model {
    const char *name;
    int32_t num_experts, top_k, hidden, inter;
    int is_compared; /* peers were measured: recorded in all sets */
    /* Of bf16 with uniform routing, on the same kind of machine; 0: not measured. */
    double peer_us[BENCH_NUM_COUNTS];
};

/* A model at one number of tokens. */
struct bench {
    const struct gpu_host *host;
    const struct bench_model *model;
    int32_t dtype;
    int32_t layout;
    double zipf;   /* exponent of the experts' popularity; 0: uniform */
    int num_calls; /* in a graph */
    int64_t num_tokens, num_routes;
    struct moe_problem problem;
    struct moe_plan *plan;
    uint64_t workspace_bytes;
    int num_sets;
    struct moe_weights *weights[BENCH_MAX_SETS];
    void *matrices[BENCH_MAX_SETS];
    void *ids[BENCH_NUM_CALLS], *src2dst[BENCH_NUM_CALLS], *seg_indptr[BENCH_NUM_CALLS];
    void *tokens, *topk_weights, *output, *workspace, *rows, *middle;
    double active_experts; /* mean over the calls */
};

/* X(constant, name): the layer first, then its parts as calls of their own; sort comes before the
 * others, which read what it wrote. */
#define BENCH_STAGES(X)     \
    X(STAGE_LAYER, "layer") \
    X(STAGE_SORT, "sort")   \
    X(STAGE_GEMM1, "gemm1") \
    X(STAGE_GEMM2, "gemm2") \
    X(STAGE_COMBINE, "combine")
enum {
#define STAGE(constant, name) constant,
    BENCH_STAGES(STAGE)
#undef STAGE
        NUM_STAGES
};

/* Weights of the model, LAYER_FUSED, LAYER_TRANSPOSED or LAYER_PAIRED, in as many sets as rotation
 * through a GiB needs. */
void bench_init(struct bench *bench, const struct gpu_host *host, const struct bench_model *model,
                int32_t dtype, int32_t layout);
void bench_finish(struct bench *bench);

/* A plan, ids and buffers for a number of tokens. */
void bench_set_tokens(struct bench *bench, int64_t num_tokens, double zipf);
void bench_drop_tokens(struct bench *bench);

/* Call number `call` of a stage, queued on the stream. */
void bench_run(const struct bench *bench, int stage, int call, CUstream stream);

/* Bytes of an expert's [inter, hidden] matrix. */
double bench_matrix_bytes(const struct bench_model *model);

#endif
