/* SPDX-License-Identifier: Apache-2.0 */
/* What layer and experts share on the CPU: workspace, an expert's two GEMMs, rows quantized in
 * between. */
#ifndef MOE_CPU_CHAIN_H
#define MOE_CPU_CHAIN_H

#include "backend_cpu.h"
#include "recipe.h"
#include "tiles.h"

/* `bytes` more of a workspace: returns their offset. */
static inline uint64_t moe_cpu_append(uint64_t *total, uint64_t bytes)
{
    uint64_t offset = *total;
    *total += moe_cpu_align(bytes);
    return offset;
}

static inline const struct moe_tile *moe_cpu_tile_of(const struct moe_dispatch_bucket *bucket,
                                                     int32_t op)
{
    return &moe_tiles[bucket->choices[op].tile];
}

/* Scratch per thread that the stages in `ops` need at most. */
uint64_t moe_cpu_chain_scratch(const struct moe_plan *plan,
                               const struct moe_dispatch_bucket *bucket, uint64_t ops);

/* Rows and, where they are fp8, their scales. */
struct moe_cpu_rows {
    const void *base;
    int64_t stride;
    int32_t dtype;
    struct moe_op_scales scales; /* base NULL: none */
};

/* Place of quantized rows in a workspace; unused and without bytes where the recipe is plain. */
struct moe_cpu_quantized {
    uint64_t rows;
    uint64_t scales;
    int64_t scale_stride;
};

struct moe_cpu_quantized moe_cpu_append_quantized(uint64_t *total, const struct moe_recipe *recipe,
                                                  int64_t num_rows, int64_t width);

/* The rows at `place`, once they are there. */
struct moe_cpu_rows moe_cpu_quantized_rows(const struct moe_run *run,
                                           const struct moe_cpu_quantized *place,
                                           const struct moe_recipe *recipe, int64_t width);

/* Quantize rows [first, end) of `from` to rows [to, to + end - first) of `place`. */
void moe_cpu_quantize_rows(struct moe_cpu_run *cpu, const struct moe_run *run,
                           const struct moe_cpu_rows *from, int64_t first, int64_t end,
                           const struct moe_cpu_quantized *place, const struct moe_recipe *recipe,
                           int64_t width, int64_t to);

/* Place of the intermediate: GEMM1's output, and what GEMM2 reads where that is fp8. */
struct moe_cpu_inter {
    uint64_t rows;
    struct moe_cpu_quantized quantized;
};

struct moe_cpu_inter moe_cpu_append_inter(uint64_t *total, const struct moe_problem *problem,
                                          int64_t num_rows, int64_t inter);

/* The operands of routed experts, or of the shared one. */
struct moe_cpu_mlp {
    struct moe_operand gate, up, down;
    struct moe_operand gate_bias, up_bias, down_bias;
    struct moe_operand gate_scale, up_scale, down_scale;
    int32_t inter;
    int32_t num_experts;
};

struct moe_cpu_mlp moe_cpu_routed_mlp(const struct moe_problem *problem,
                                      const struct moe_weights_desc *desc);
struct moe_cpu_mlp moe_cpu_shared_mlp(const struct moe_problem *problem,
                                      const struct moe_weights_desc *desc);

/*
 * GEMM1 with activation and GEMM2 over the same segments. The caller has set in both what says
 * which rows: segments, num_rows, row_ids, row weights; in gemm2 the output. `rows` is GEMM1's
 * input; the intermediate's rows [first, end) are in use.
 */
void moe_cpu_run_mlp(struct moe_cpu_run *cpu, const struct moe_run *run,
                     const struct moe_cpu_mlp *mlp, const struct moe_cpu_rows *rows,
                     const struct moe_cpu_inter *inter, int64_t first, int64_t end,
                     struct moe_op_gemm *gemm1, struct moe_op_gemm *gemm2);

#endif
