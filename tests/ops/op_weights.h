/* SPDX-License-Identifier: Apache-2.0 */
/* The weights of a layer: random values, the same values in every memory layout, and what an
 * expert makes of a row, with a bound for fp32 arithmetic that follows each error through the
 * expert. */
#ifndef MOE_TESTS_OP_WEIGHTS_H
#define MOE_TESTS_OP_WEIGHTS_H

#include "op_fp8.h"

enum op_slot {
    OP_GATE,
    OP_UP,
    OP_DOWN,
    OP_GATE_BIAS,
    OP_UP_BIAS,
    OP_DOWN_BIAS,
    OP_ROUTER,
    OP_ROUTER_BIAS,
    OP_CORRECTION_BIAS,
    OP_SHARED_GATE,
    OP_SHARED_UP,
    OP_SHARED_DOWN,
    OP_SHARED_SIGMOID,
    OP_GATE_SCALE, /* of fp8 weights, in the order of their matrices */
    OP_UP_SCALE,
    OP_DOWN_SCALE,
    OP_SHARED_GATE_SCALE,
    OP_SHARED_UP_SCALE,
    OP_SHARED_DOWN_SCALE,
    OP_NUM_SLOTS
};

enum op_layout {
    OP_LAYOUT_APART,       /* gate [E, I, H], up [E, I, H] */
    OP_LAYOUT_HALVES,      /* [E, 2I, H], gate first */
    OP_LAYOUT_INTERLEAVED, /* [E, 2I, H], gate in even rows */
    OP_LAYOUT_TRANSPOSED,  /* [E, H, 2I], gate first; down [E, I, H], router [H, E] */
    OP_LAYOUT_TABLE,       /* a pointer per expert, in falling order of addresses */
    OP_LAYOUT_PADDED,      /* gaps between rows and between experts */
    OP_NUM_LAYOUTS
};

/* Values of one operand, dense [experts][rows][cols]; rows 0: the problem has none. */
struct op_matrix {
    int64_t experts;
    int64_t rows;
    int64_t cols;
    int32_t dtype;
    unsigned char *native;
    double *values;
};

struct op_model {
    struct moe_problem problem;
    struct op_matrix matrices[OP_NUM_SLOTS];
    bool is_per_tensor; /* fp8 weights without groups: one scale for all experts */
};

/* One layout of a model in guarded memory, bound in a context. */
struct op_bound {
    struct support_guard memory[OP_NUM_SLOTS];
    const void **tables[OP_NUM_SLOTS];
    struct moe_weights_desc desc;
    struct moe_weights *weights;
};

/* ---------------------------------------------------------------- values */

static inline void op_matrix_init(struct op_matrix *matrix, struct support_random *random,
                                  int32_t dtype, int64_t experts, int64_t rows, int64_t cols,
                                  double scale)
{
    matrix->experts = experts;
    matrix->rows = rows;
    matrix->cols = cols;
    matrix->dtype = dtype;
    matrix->native = op_array(experts * rows * cols, op_dtype_bytes(dtype));
    matrix->values = op_array(experts * rows * cols, sizeof(double));
    op_fill(random, dtype, scale, experts * rows * cols, matrix->native, matrix->values);
}

static inline bool op_is_gated(const struct moe_problem *problem)
{
    return (problem->flags & MOE_PROBLEM_UNGATED) == 0;
}

static inline int64_t op_num_global(const struct moe_problem *problem)
{
    return problem->num_experts_global > 0 ? problem->num_experts_global : problem->num_experts;
}

/* Behind gating: the range of ids, and the slots of a token. */
static inline int64_t op_num_ids(const struct moe_problem *problem)
{
    return (problem->num_physical_experts > 0 ? problem->num_physical_experts
                                              : op_num_global(problem)) +
           problem->num_appended_experts;
}

static inline int64_t op_num_slots(const struct moe_problem *problem)
{
    return problem->top_k + problem->num_appended_experts;
}

static inline int32_t op_output_dtype(const struct moe_problem *problem)
{
    return problem->output_dtype != 0 ? problem->output_dtype : problem->tokens.dtype;
}

static inline int32_t op_inter_dtype(const struct moe_problem *problem)
{
    return problem->intermediate.dtype != 0 ? problem->intermediate.dtype : problem->tokens.dtype;
}

/* Where the scales of an fp8 matrix are. */
static inline int op_scale_slot(int slot)
{
    return slot < OP_SHARED_GATE ? slot - OP_GATE + OP_GATE_SCALE
                                 : slot - OP_SHARED_GATE + OP_SHARED_GATE_SCALE;
}

/* A weight matrix by its recipe. */
static inline void op_model_weight(struct op_model *model, struct support_random *random, int slot,
                                   const struct moe_recipe *recipe, int64_t experts, int64_t rows,
                                   int64_t cols)
{
    struct op_matrix *matrix = &model->matrices[slot];
    if (!op_is_fp8(recipe)) {
        op_matrix_init(matrix, random, recipe->dtype, experts, rows, cols, 0.25);
        return;
    }
    struct op_matrix *scale = &model->matrices[op_scale_slot(slot)];
    const int64_t row_groups = op_num_groups(rows, recipe->group_rows);
    const int64_t col_groups = op_num_groups(cols, recipe->group_k);
    const int64_t num_scaled = model->is_per_tensor && recipe->group_k == 0 ? 1 : experts;
    op_matrix_init(matrix, random, recipe->dtype, experts, rows, cols, OP_FP8_CODES);
    op_matrix_init(scale, random, MOE_DTYPE_FP32, num_scaled, row_groups, col_groups, 1.0);
    for (int64_t i = 0; i < num_scaled * row_groups * col_groups; i++) {
        scale->values[i] = op_draw_scale(random, false, 0.25);
        ref_store(REF_F32, scale->native, i, scale->values[i]);
    }
    for (int64_t i = 0; i < experts * rows * cols; i++) {
        const int64_t e = i / (rows * cols) % num_scaled;
        const int64_t row = recipe->group_rows == 0 ? 0 : i / cols % rows / recipe->group_rows;
        const int64_t col = recipe->group_k == 0 ? 0 : i % cols / recipe->group_k;
        matrix->values[i] *= scale->values[(e * row_groups + row) * col_groups + col];
    }
}

/* The type of what is never quantized: as gate_up, or as the output where that is fp8. */
static inline int32_t op_plain_dtype(const struct moe_problem *problem)
{
    return op_is_fp8(&problem->gate_up) ? op_output_dtype(problem) : problem->gate_up.dtype;
}

static inline void op_model_shared(struct op_model *model, struct support_random *random)
{
    const struct moe_problem *problem = &model->problem;
    const int64_t H = problem->hidden, S = problem->shared_inter;
    const bool is_fp8 = op_is_fp8(&problem->gate_up) || op_is_fp8(&problem->down);
    op_model_weight(model, random, OP_SHARED_UP, &problem->gate_up, 1, S, H);
    op_model_weight(model, random, OP_SHARED_DOWN, is_fp8 ? &problem->down : &problem->gate_up, 1,
                    H, S);
    if (op_is_gated(problem)) {
        op_model_weight(model, random, OP_SHARED_GATE, &problem->gate_up, 1, S, H);
    }
    if (problem->flags & MOE_PROBLEM_SHARED_SIGMOID) {
        op_matrix_init(&model->matrices[OP_SHARED_SIGMOID], random, op_plain_dtype(problem), 1, 1,
                       H, 0.25);
    }
}

/* Everything that the problem uses, the router included if it has a gating rule. Biases, router
 * and shared experts are of the type that they have by default. */
static inline void op_model_init(struct op_model *model, struct support_random *random,
                                 const struct moe_problem *problem)
{
    const int64_t E = problem->num_experts, G = op_num_global(problem), H = problem->hidden;
    const int64_t I = problem->inter;
    const int32_t dtype = op_plain_dtype(problem);
    const bool gated = op_is_gated(problem);
    struct op_matrix *m = model->matrices;
    memset(model, 0, sizeof(*model));
    model->problem = *problem;
    model->is_per_tensor = (op_is_fp8(&problem->gate_up) || op_is_fp8(&problem->down)) &&
                           support_random_below(random, 2) == 0;
    op_model_weight(model, random, OP_UP, &problem->gate_up, E, I, H);
    op_model_weight(model, random, OP_DOWN, &problem->down, E, H, I);
    if (gated) {
        op_model_weight(model, random, OP_GATE, &problem->gate_up, E, I, H);
    }
    if (problem->flags & MOE_PROBLEM_GATE_UP_BIAS) {
        op_matrix_init(&m[OP_UP_BIAS], random, dtype, E, I, 1, 0.5);
        if (gated) {
            op_matrix_init(&m[OP_GATE_BIAS], random, dtype, E, I, 1, 0.5);
        }
    }
    if (problem->flags & MOE_PROBLEM_DOWN_BIAS) {
        op_matrix_init(&m[OP_DOWN_BIAS], random, dtype, E, H, 1, 0.5);
    }
    if (problem->gating != MOE_GATING_NONE) {
        op_matrix_init(&m[OP_ROUTER], random, dtype, 1, G, H, 0.25);
        if (problem->flags & MOE_PROBLEM_ROUTER_BIAS) {
            op_matrix_init(&m[OP_ROUTER_BIAS], random, dtype, 1, G, 1, 0.5);
        }
        if (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) {
            op_matrix_init(&m[OP_CORRECTION_BIAS], random, MOE_DTYPE_FP32, 1, G, 1, 0.5);
        }
    }
    if (problem->shared_inter > 0) {
        op_model_shared(model, random);
    }
}

static inline void op_model_finish(struct op_model *model)
{
    for (int slot = 0; slot < OP_NUM_SLOTS; slot++) {
        free(model->matrices[slot].native);
        free(model->matrices[slot].values);
    }
}

/* ---------------------------------------------------------------- memory */

struct op_strides {
    int64_t expert;
    int64_t row;
    int64_t col;
    int64_t second; /* offset of up behind gate where both share memory; 0: each has its own */
};

static inline struct op_strides op_strides_of(const struct op_matrix *matrix, enum op_layout layout,
                                              bool is_pair)
{
    const int64_t rows = matrix->rows, cols = matrix->cols;
    const struct op_strides dense = {rows * cols, cols, 1, 0};
    switch (layout) {
    case OP_LAYOUT_HALVES:
        return is_pair ? (struct op_strides){2 * rows * cols, cols, 1, rows * cols} : dense;
    case OP_LAYOUT_INTERLEAVED:
        return is_pair ? (struct op_strides){2 * rows * cols, 2 * cols, 1, cols} : dense;
    case OP_LAYOUT_TRANSPOSED:
        return is_pair ? (struct op_strides){2 * rows * cols, 1, 2 * rows, rows}
                       : (struct op_strides){rows * cols, 1, rows, 0};
    case OP_LAYOUT_TABLE:
        return (struct op_strides){rows * cols + 5, cols, 1, 0};
    case OP_LAYOUT_PADDED:
        /* A correction bias is one contiguous array. */
        return cols == 1 ? (struct op_strides){rows + 3, 1, 1, 0}
                         : (struct op_strides){rows * (cols + 5) + 3, cols + 5, 1, 0};
    default:
        return dense;
    }
}

static inline int64_t op_extent(const struct op_matrix *matrix, const struct op_strides *strides)
{
    return strides->second + (matrix->experts - 1) * strides->expert +
           (matrix->rows - 1) * strides->row + (matrix->cols - 1) * strides->col + 1;
}

static inline void op_place(const struct op_matrix *matrix, const struct op_strides *strides,
                            bool reversed, int64_t offset, unsigned char *memory)
{
    const size_t bytes = op_dtype_bytes(matrix->dtype);
    const int64_t piece = strides->col == 1 ? matrix->cols : 1;
    for (int64_t e = 0; e < matrix->experts; e++) {
        const int64_t at = reversed ? matrix->experts - 1 - e : e;
        for (int64_t r = 0; r < matrix->rows; r++) {
            for (int64_t c = 0; c < matrix->cols; c += piece) {
                const int64_t to =
                    offset + at * strides->expert + r * strides->row + c * strides->col;
                const int64_t from = (e * matrix->rows + r) * matrix->cols + c;
                memcpy(memory + (size_t)to * bytes, matrix->native + (size_t)from * bytes,
                       (size_t)piece * bytes);
            }
        }
    }
}

static inline struct moe_operand *op_operand(struct moe_weights_desc *desc, int slot)
{
    struct moe_operand *const operands[OP_NUM_SLOTS] = {&desc->gate,
                                                        &desc->up,
                                                        &desc->down,
                                                        &desc->gate_bias,
                                                        &desc->up_bias,
                                                        &desc->down_bias,
                                                        &desc->router,
                                                        &desc->router_bias,
                                                        &desc->correction_bias,
                                                        &desc->shared_gate,
                                                        &desc->shared_up,
                                                        &desc->shared_down,
                                                        &desc->shared_sigmoid,
                                                        &desc->gate_scale,
                                                        &desc->up_scale,
                                                        &desc->down_scale,
                                                        &desc->shared_gate_scale,
                                                        &desc->shared_up_scale,
                                                        &desc->shared_down_scale};
    return operands[slot];
}

/* The slot whose memory this one shares in fused layouts, or -1. */
static inline int op_partner(const struct op_model *model, int slot)
{
    const int gate = slot == OP_UP          ? OP_GATE
                     : slot == OP_UP_BIAS   ? OP_GATE_BIAS
                     : slot == OP_SHARED_UP ? OP_SHARED_GATE
                                            : -1;
    return gate >= 0 && model->matrices[gate].rows > 0 ? gate : -1;
}

static inline bool op_has_partner(const struct op_model *model, int slot)
{
    const int up = slot == OP_GATE          ? OP_UP
                   : slot == OP_GATE_BIAS   ? OP_UP_BIAS
                   : slot == OP_SHARED_GATE ? OP_SHARED_UP
                                            : -1;
    return up >= 0 || op_partner(model, slot) >= 0;
}

static inline void op_place_slot(struct op_bound *bound, const struct op_model *model,
                                 enum op_layout layout, int slot)
{
    const struct op_matrix *matrix = &model->matrices[slot];
    const struct op_strides strides = op_strides_of(matrix, layout, op_has_partner(model, slot));
    const size_t bytes = op_dtype_bytes(matrix->dtype);
    const bool second = strides.second > 0 && op_partner(model, slot) >= 0;
    /* Slots are placed in order, so a gate is there before its up. */
    const int owner = second ? op_partner(model, slot) : slot;
    const bool by_table = layout == OP_LAYOUT_TABLE && slot != OP_CORRECTION_BIAS;
    struct moe_operand *operand = op_operand(&bound->desc, slot);
    if (!second) {
        bound->memory[slot] = op_input(NULL, op_extent(matrix, &strides) * (int64_t)bytes, bytes);
    }
    unsigned char *memory = bound->memory[owner].data;
    op_place(matrix, &strides, by_table, second ? strides.second : 0, memory);
    memory += second ? (size_t)strides.second * bytes : 0;
    operand->row_stride = strides.row;
    operand->col_stride = strides.col;
    /* One scale for all experts: each finds it at the same place. */
    const bool is_one_for_all = slot >= OP_GATE_SCALE && matrix->experts == 1;
    if (!by_table) {
        operand->base = memory;
        operand->expert_stride = is_one_for_all ? 0 : strides.expert;
        return;
    }
    const int64_t experts = is_one_for_all ? model->problem.num_experts : matrix->experts;
    bound->tables[slot] = op_array(experts, sizeof(void *));
    for (int64_t e = 0; e < experts; e++) {
        const int64_t at = is_one_for_all ? 0 : matrix->experts - 1 - e;
        bound->tables[slot][e] = memory + (size_t)(at * strides.expert) * bytes;
    }
    operand->table = bound->tables[slot];
}

/* Lays the model out in memory; op_bind makes weights of it. */
static inline void op_bound_init(struct op_bound *bound, const struct op_model *model,
                                 enum op_layout layout)
{
    memset(bound, 0, sizeof(*bound));
    MOE_INIT(bound->desc);
    for (int slot = 0; slot < OP_NUM_SLOTS; slot++) {
        if (model->matrices[slot].rows > 0) {
            op_place_slot(bound, model, layout, slot);
        }
    }
}

/* Binds in a context, instead of where it was bound before. */
static inline void op_bind(struct op_bound *bound, const struct op_model *model,
                           struct moe_context *context)
{
    struct moe_error error;
    MOE_INIT(error);
    op_api()->weights_destroy(bound->weights);
    bound->weights = NULL;
    op_assert_status(MOE_STATUS_OK,
                     op_api()->weights_bind(context, &model->problem, &bound->desc, NULL, 0,
                                            &bound->weights, &error),
                     error);
}

static inline void op_bound_finish(struct op_bound *bound)
{
    op_api()->weights_destroy(bound->weights);
    for (int slot = 0; slot < OP_NUM_SLOTS; slot++) {
        support_guard_finish(&bound->memory[slot]);
        free(bound->tables[slot]);
    }
}

/* ---------------------------------------------------------------- what an expert computes */

/* Operands of a routed expert, or of the shared one. */
struct op_expert {
    const struct moe_problem *problem;
    const double *gate, *up, *down; /* [inter][hidden], [hidden][inter]; gate NULL: ungated */
    const double *gate_bias, *up_bias, *down_bias; /* NULL: none */
    int64_t inter;
};

static inline const double *op_part(const struct op_model *model, int slot, int64_t expert)
{
    const struct op_matrix *matrix = &model->matrices[slot];
    return matrix->rows > 0 ? matrix->values + expert * matrix->rows * matrix->cols : NULL;
}

static inline struct op_expert op_routed_expert(const struct op_model *model, int64_t expert)
{
    const struct op_expert result = {
        &model->problem,
        op_part(model, OP_GATE, expert),
        op_part(model, OP_UP, expert),
        op_part(model, OP_DOWN, expert),
        op_part(model, OP_GATE_BIAS, expert),
        op_part(model, OP_UP_BIAS, expert),
        op_part(model, OP_DOWN_BIAS, expert),
        model->problem.inter,
    };
    return result;
}

static inline struct op_expert op_shared_expert(const struct op_model *model)
{
    const struct op_expert result = {.problem = &model->problem,
                                     .gate = op_part(model, OP_SHARED_GATE, 0),
                                     .up = op_part(model, OP_SHARED_UP, 0),
                                     .down = op_part(model, OP_SHARED_DOWN, 0),
                                     .inter = model->problem.shared_inter};
    return result;
}

/* out[n] = row_weight * x . w[n] + bias[n], and how far fp32 may be from it when x itself is off
 * by x_tolerance (NULL: exact) and scales add some roundings. */
static inline void op_expect_scaled_gemm(const double *x, const double *x_tolerance,
                                         const double *w, const double *bias, double row_weight,
                                         int64_t num_roundings, int64_t n, int64_t k, double *out,
                                         double *tolerance)
{
    const int32_t expert = 0;
    struct ref_grouped_gemm gemm = {.a = x,
                                    .w = ref_weight_dense(w, n, k),
                                    .bias = bias,
                                    .experts = &expert,
                                    .row_weights = &row_weight,
                                    .num_rows = 1,
                                    .n = n,
                                    .k = k,
                                    .out = out,
                                    .sum_abs = tolerance};
    double *carried = op_array(n, sizeof(double));
    ref_grouped_gemm(&gemm);
    if (x_tolerance != NULL) {
        double *unused = op_array(n, sizeof(double));
        gemm.a = x_tolerance;
        gemm.bias = NULL;
        gemm.out = unused;
        gemm.sum_abs = carried;
        ref_grouped_gemm(&gemm);
        free(unused);
    }
    for (int64_t i = 0; i < n; i++) {
        /* ceil(k / 8) steps, a tree of 3, the row weight, the bias. */
        tolerance[i] = carried[i] + ref_gemm_tolerance((k + 7) / 8 + 5 + num_roundings, REF_F32,
                                                       REF_F64, tolerance[i] + carried[i], out[i]);
    }
    free(carried);
}

static inline void op_expect_gemm(const double *x, const double *x_tolerance, const double *w,
                                  const double *bias, double row_weight, int64_t n, int64_t k,
                                  double *out, double *tolerance)
{
    op_expect_scaled_gemm(x, x_tolerance, w, bias, row_weight, 0, n, k, out, tolerance);
}

/* fp8 weights: the product of two scales, and a sum over the blocks. */
static inline int64_t op_num_scale_roundings(const struct moe_recipe *weights, int64_t k)
{
    return op_is_fp8(weights) ? op_num_groups(k, OP_FP8_BLOCK) + 2 : 0;
}

static inline struct ref_activation op_ref_activation(const struct moe_problem *problem)
{
    static const enum ref_act acts[] = {
        [MOE_ACTIVATION_SILU] = REF_ACT_SILU,
        [MOE_ACTIVATION_GELU] = REF_ACT_GELU,
        [MOE_ACTIVATION_GELU_TANH] = REF_ACT_GELU_TANH,
        [MOE_ACTIVATION_SWIGLU_OAI] = REF_ACT_SWIGLU_OAI,
        [MOE_ACTIVATION_RELU2] = REF_ACT_RELU2,
        [MOE_ACTIVATION_IDENTITY] = REF_ACT_IDENTITY,
    };
    const enum ref_act act = acts[problem->activation];
    struct ref_activation activation =
        op_is_gated(problem) ? ref_activation_halves(act, 1) : ref_activation_ungated(act);
    activation.alpha = (double)problem->act_alpha;
    activation.limit = problem->act_limit > 0.0f ? (double)problem->act_limit : (double)INFINITY;
    return activation;
}

/*
 * act(gate, up) and a bound for its fp32 value when gate and up are off by their tolerances.
 * With f the function of the gate, |f(g') u' - f(g) u| <= L dg (|u| + du) + |f(g)| du, where L
 * bounds |f'|: 1.1 for x sigma(x) and x sigma(alpha x), 1.13 for both forms of gelu, 2 (|g| + dg)
 * for relu2, 1 for the identity. Clamping only shrinks differences. fp32 arithmetic adds a few
 * ulp, and for functions of exp(z) the rounding of z: 2^-20 + 2^-22 |z| of the result, |z| at most
 * 128; |z| <= 2 |g| + 0.1 |g|^3 + |alpha g|.
 */
static inline double op_expect_act(const struct moe_problem *problem, double gate, double up,
                                   double gate_tolerance, double up_tolerance, double *out)
{
    const struct ref_activation activation = op_ref_activation(problem);
    const bool gated = op_is_gated(problem);
    const bool oai = problem->activation == MOE_ACTIVATION_SWIGLU_OAI;
    const double g = fabs(gate), u = gated ? fabs(up) + (oai ? 1.0 : 0.0) : 1.0;
    const double du = gated ? up_tolerance : 0.0;
    const double slope =
        problem->activation == MOE_ACTIVATION_RELU2 ? 2.0 * (g + gate_tolerance) : 1.13;
    const double f = problem->activation == MOE_ACTIVATION_RELU2 ? g * g : g; /* |f(g)| at most */
    const double z = fmin(128.0, 2.0 * g + 0.1 * g * g * g + (double)problem->act_alpha * g);
    *out = ref_activate(&activation, gate, up);
    /* The last two: cancellation in the reference's own gelu, and subnormals. */
    return slope * gate_tolerance * (u + du) + f * du +
           (0x1p-20 + 0x1p-22 * z) * (fabs(*out) + slope * gate_tolerance * (u + du) + f * du) +
           1e-14 * f * u + 0x1p-140;
}

/* Adds one rounding to `dtype` of every value. */
static inline void op_add_rounding(int32_t dtype, const double *values, double *tolerance,
                                   int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        tolerance[i] += ref_rounding_tolerance(op_ref_dtype(dtype), fabs(values[i]) + tolerance[i]);
    }
}

/* GEMM1: sums[0] is gate (ungated: up), sums[1] up; with tolerances, before the activation. */
static inline void op_expect_gate_up(const struct op_expert *expert, const double *x,
                                     double row_weight, double *sums[2], double *tolerances[2])
{
    const int64_t I = expert->inter, H = expert->problem->hidden;
    const int64_t num_roundings = op_num_scale_roundings(&expert->problem->gate_up, H);
    const bool gated = expert->gate != NULL;
    op_expect_scaled_gemm(x, NULL, gated ? expert->gate : expert->up,
                          gated ? expert->gate_bias : expert->up_bias, row_weight, num_roundings, I,
                          H, sums[0], tolerances[0]);
    if (gated) {
        op_expect_scaled_gemm(x, NULL, expert->up, expert->up_bias, row_weight, num_roundings, I, H,
                              sums[1], tolerances[1]);
    }
}

/* GEMM1 with activation, rounded to the intermediate's type or quantized: h [inter]. */
static inline void op_expect_hidden_row(const struct op_expert *expert, const double *x,
                                        double row_weight, double *h, double *tolerance)
{
    const int64_t I = expert->inter;
    const struct moe_recipe recipe = op_inter_recipe(expert->problem);
    double *scratch = op_array(4 * I, sizeof(double));
    double *sums[2] = {scratch, scratch + I};
    double *slack[2] = {scratch + 2 * I, scratch + 3 * I};
    op_expect_gate_up(expert, x, row_weight, sums, slack);
    for (int64_t i = 0; i < I; i++) {
        tolerance[i] =
            op_expect_act(expert->problem, sums[0][i], sums[1][i], slack[0][i], slack[1][i], &h[i]);
    }
    if (op_is_fp8(&recipe)) {
        op_expect_quantized(&recipe, I, h, tolerance);
    } else {
        op_add_rounding(recipe.dtype, h, tolerance, I);
    }
    free(scratch);
}

/* The output row [hidden] of an expert, rounded to the output type. */
static inline void op_expect_expert_row(const struct op_expert *expert, const double *x,
                                        double row_weight, double *out, double *tolerance)
{
    const int64_t I = expert->inter, H = expert->problem->hidden;
    double *h = op_array(2 * I, sizeof(double));
    op_expect_hidden_row(expert, x, row_weight, h, h + I);
    op_expect_scaled_gemm(h, h + I, expert->down, expert->down_bias, 1.0,
                          op_num_scale_roundings(&expert->problem->down, I), H, I, out, tolerance);
    op_add_rounding(op_output_dtype(expert->problem), out, tolerance, H);
    free(h);
}

#endif
