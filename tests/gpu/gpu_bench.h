/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of gpu_bench share. */
#ifndef MOE_GPU_BENCH_H
#define MOE_GPU_BENCH_H

#include "gpu_host.h"
#include "gpu_tiles.h"

#include <stdio.h>

enum { BENCH_MAX_SETS = 20, BENCH_ALIGN_BLOCK = 128, BENCH_QUANTIZE_GROUP = 128 };

/* One operation at one size. */
struct bench {
    const struct bench_op *op;
    int32_t num_experts, top_k, hidden, inter;
    int64_t num_tokens;
    double zipf; /* exponent of the experts' popularity; 0: uniform */
    int num_sets, num_nodes;
    struct moe_plan *plan;
    void *workspace;
    uint64_t workspace_bytes;
    struct bench_set {
        void *tokens, *rows, *output, *logits, *gate_up, *quantized, *scales;
        void *ids, *weights, *src2dst, *dst2src, *indptr, *reorder, *sorted, *experts, *post_pad;
        void *gated_ids, *gated_weights;
        int64_t sorted_capacity, expert_capacity;
    } sets[BENCH_MAX_SETS];
};

/* A row of the table of operations. */
struct bench_op {
    const char *name;
    int32_t op;                                 /* MOE_OP_* */
    int has_rows;                               /* it moves rows of tokens */
    double (*bytes)(const struct bench *bench); /* that a call moves at least */
    int32_t (*run)(const struct bench *bench, const struct bench_set *set, struct moe_call call,
                   struct moe_error *error);
};

extern const struct bench_op bench_ops[];
extern const int bench_num_ops;

extern struct gpu_host bench_host;
extern FILE *bench_json; /* NULL: none */

/* Of the device in this run. */
struct bench_limits {
    double read_tbps, write_tbps, copy_tbps;
    double empty_us;  /* a node of one empty kernel, behind another */
    double chain_us;  /* a node that reads what the one before wrote */
    double pdl_us;    /* the same, launched by programmatic dependence */
    double launch_us; /* of the host: an empty kernel without a graph */
};
extern struct bench_limits bench_limits;
void bench_measure_limits(void);

/* Starts and ends a line of the JSON array. */
void bench_json_begin(void);

/* The problem of a case. */
void bench_describe(const struct bench *bench, struct moe_problem *problem);

/* A plan for its operation, and workspace. Returns 0 when there is no kernel for it, and says so
 * once. */
int bench_make_plan(struct bench *bench, const struct moe_problem *problem);
void bench_drop_plan(struct bench *bench);

/* The sets that a case's calls rotate through; random data. */
void bench_make_sets(struct bench *bench, const struct moe_problem *problem);
void bench_free_sets(struct bench *bench);

/* Microseconds of the host for a call of the operation without a graph: the median. */
double bench_host_us(const struct bench *bench);

/* Runs the first set's call. Returns 0 when it is refused as unsupported, and says so once. */
int bench_try(const struct bench *bench);

/* Queues the call. */
void bench_run(const struct bench *bench, const struct bench_set *set, CUstream stream);

#endif
