/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of gating on a GPU. */
#include "cuda_args.h"
#include "cuda_ops.h"
#include "cuda_routing.h"
#include "plan.h"
#include "problem.h"
#include "status.h"
#include "tiles.h"

#include <stddef.h>

/* How a warp gates. */
struct gate_shape {
    int32_t form;
    int32_t sm_threads; /* that a multiprocessor holds */
    int32_t num_words;  /* of shared memory of a warp */
    int32_t max_batch;  /* tokens of a warp at once */
    int32_t is_vectored;
};

struct gate_form {
    int32_t form;
    int32_t per_lane;
    int32_t sm_threads;
};

static bool is_vectored(const struct moe_op_gating *op)
{
    const int64_t vector_bytes = 4 * moe_dtype_bytes(op->logits_dtype);
    return op->num_experts % 4 == 0 && op->logits_stride % 4 == 0 &&
           (uintptr_t)op->logits % (uintptr_t)vector_bytes == 0;
}

bool moe_cuda_gates_quickly(const struct moe_op_gating *op)
{
    const bool is_ruled =
        op->rule == MOE_GATING_TOPK_SOFTMAX || (op->rule == MOE_GATING_SOFTMAX && op->renormalize);
    return is_ruled && op->correction_bias == NULL && op->num_groups <= 1 &&
           op->top_k <= MOE_CUDA_GATE_QUICK_SLOTS;
}

/* The first form whose lanes hold the experts; NULL: none. */
static const struct gate_form *find_gate_form(const struct gate_form *forms, size_t num_forms,
                                              int32_t num_experts)
{
    for (size_t i = 0; i < num_forms; i++) {
        if (num_experts <= 32 * forms[i].per_lane) {
            return &forms[i];
        }
    }
    return NULL;
}

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static struct gate_shape shape_gate(const struct moe_op_gating *op)
{
    static const struct gate_form forms[] = {
#define FORM(number, experts) {number, experts, MOE_CUDA_GATE_THREADS_##experts},
        MOE_CUDA_GATE_FORMS_LIST(FORM)
#undef FORM
    };
    static const struct gate_form quick_forms[] = {
#define FORM(number, experts) {number, experts, MOE_CUDA_GATE_QUICK_THREADS_##experts},
        MOE_CUDA_GATE_QUICK_FORMS_LIST(FORM)
#undef FORM
    };
    const struct gate_form *quick =
        find_gate_form(quick_forms, COUNT_OF(quick_forms), op->num_experts);
    if (quick != NULL && moe_cuda_gates_quickly(op)) {
        return (struct gate_shape){
            .form = quick->form,
            .sm_threads = quick->sm_threads,
            .num_words = 0,
            .max_batch = MOE_CUDA_GATE_QUICK_BATCH,
            .is_vectored = 1,
        };
    }
    /* More groups than lanes are scored in shared memory only. */
    const struct gate_form *form =
        op->num_groups <= 32 ? find_gate_form(forms + 1, COUNT_OF(forms) - 1, op->num_experts)
                             : NULL;
    form = form != NULL ? form : &forms[0];
    return (struct gate_shape){
        .form = form->form,
        .sm_threads = form->sm_threads,
        .num_words = MOE_CUDA_GATE_WORDS(op->num_experts, op->top_k, form->per_lane == 0 ? 3 : 1),
        .max_batch = 1,
        .is_vectored = is_vectored(op),
    };
}

/* Warps of a CTA that `free_bytes` of shared memory have room for. */
static int64_t count_gate_warps(const struct moe_tile *tile, const struct gate_shape *gate,
                                int64_t free_bytes)
{
    const int64_t fitting = free_bytes / (4 * (int64_t)(gate->num_words > 0 ? gate->num_words : 1));
    return moe_clamp(fitting, 1, tile->block_size / 32);
}

/* The plan's row, or where it has none (a plan for route alone) the one that stands first. */
static const struct moe_tile *find_tile(const struct moe_run *run)
{
    const int32_t chosen = run->bucket->choices[MOE_OP_GATING].tile;
    return &moe_tiles[chosen >= 0 ? chosen : MOE_TILE_GATING_CUDA_ROWS_64];
}

int32_t moe_cuda_gating(const struct moe_run *run, const struct moe_op_gating *op,
                        struct moe_error *error)
{
    return moe_cuda_gating_before(run, op, false, error);
}

int32_t moe_cuda_gating_before(const struct moe_run *run, const struct moe_op_gating *op,
                               bool is_late, struct moe_error *error)
{
    const struct moe_tile *tile = find_tile(run);
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const struct gate_shape gate = shape_gate(op);
    const int64_t num_warps = count_gate_warps(tile, &gate, state->smem_bytes);
    /* One wave: a warp takes one batch after the other. */
    const int64_t resident = state->num_sms * moe_clamp(gate.sm_threads / (32 * num_warps), 1, 32);
    const int64_t batch =
        moe_clamp(moe_ceil_div(op->num_tokens, resident * num_warps), 1, gate.max_batch);
    struct moe_cuda_gating args = {
        .op = *op,
        .gate_words = gate.num_words,
        .is_vectored = gate.is_vectored,
        .batch_tokens = (int32_t)batch,
        .is_late = is_late,
    };
    struct moe_cuda_launch launch = {
        .form = gate.form,
        .tile = tile->id,
        .grid_x = (uint32_t)moe_clamp(moe_ceil_div(op->num_tokens, num_warps * batch), 1, resident),
        .grid_y = 1,
        .num_threads = (uint32_t)(32 * num_warps),
        .smem_bytes = (uint32_t)(4 * num_warps * gate.num_words),
        .is_chained = run->is_chained,
        .args = &args,
    };
    return moe_cuda_state_launch(state, run->stream, &launch, error);
}
