/* SPDX-License-Identifier: Apache-2.0 */
/* A random problem and its weights, in any form that one description covers: fused halves, rows in
 * turn, matrices apart and padded, tables of experts in any order, transposed. */
#include "gpu_random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FUSED,
    IN_TURN,
    APART,
    TABLES,
    TRANSPOSED,
    TRANSPOSED_IN_TURN,
    NUM_LAYOUTS,
    LINE = 16,
    MAX_WEIGHTS = 6000000 /* elements */
};

int64_t random_draw(uint64_t *seed, int64_t low, int64_t high)
{
    return low + (int64_t)(gpu_random(seed) % (uint64_t)(high - low + 1));
}

/* Small numbers often, large ones sometimes. */
static int64_t draw_size(uint64_t *seed, int64_t high)
{
    const int64_t most = random_draw(seed, 0, 2) == 0 ? high : (high + 7) / 8;
    return random_draw(seed, 1, most);
}

size_t random_dtype_bytes(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? 4 : 2;
}

void *random_take(struct random_arena *arena, int64_t num, size_t element_bytes)
{
    const size_t bytes = (size_t)num * element_bytes;
    const size_t at = arena->used;
    arena->used += (bytes + LINE - 1) / LINE * LINE + (size_t)4 * LINE;
    if (arena->used > arena->capacity) {
        fprintf(stderr, "gpu_random: a case needs more than %zu bytes\n", arena->capacity);
        exit(2);
    }
    return arena->bytes + at;
}

/* As fp32, bf16 or fp16, rounded towards zero; the stored value is what counts. */
static void store(void *elements, int32_t dtype, int64_t index, float value)
{
    uint32_t bits;
    uint16_t half;
    memcpy(&bits, &value, sizeof(bits));
    if (dtype == MOE_DTYPE_FP32) {
        memcpy((char *)elements + 4 * index, &bits, sizeof(bits));
        return;
    }
    half = (uint16_t)(bits >> 16);
    if (dtype == MOE_DTYPE_FP16) {
        const int32_t exponent = (int32_t)((bits >> 23) & 0xff) - 127 + 15;
        const uint32_t magnitude =
            exponent > 0 ? (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff) : 0;
        half = (uint16_t)((bits >> 16 & 0x8000) | magnitude);
    }
    memcpy((char *)elements + 2 * index, &half, sizeof(half));
}

void *random_tensor(struct random_arena *arena, uint64_t *seed, int64_t count, int32_t dtype,
                    double scale)
{
    void *elements = random_take(arena, count, random_dtype_bytes(dtype));
    for (int64_t i = 0; i < count; i++) {
        const double unit = (double)(gpu_random(seed) >> 11) / 4503599627370496.0 - 1.0;
        store(elements, dtype, i, (float)(scale * unit));
    }
    return elements;
}

static void draw_gating(uint64_t *seed, struct moe_problem *problem)
{
    static const int32_t rules[] = {MOE_GATING_NONE, MOE_GATING_NONE, MOE_GATING_SOFTMAX,
                                    MOE_GATING_SIGMOID, MOE_GATING_TOPK_SOFTMAX};
    problem->gating = rules[random_draw(seed, 0, 4)];
    if (problem->gating == MOE_GATING_SOFTMAX || problem->gating == MOE_GATING_SIGMOID) {
        problem->flags |= random_draw(seed, 0, 1) != 0 ? MOE_PROBLEM_RENORMALIZE : 0u;
        problem->flags |= random_draw(seed, 0, 1) != 0 ? MOE_PROBLEM_CORRECTION_BIAS : 0u;
    }
}

static void draw_widths(uint64_t *seed, int op, struct moe_problem *problem)
{
    static const int32_t wide[] = {2048, 2880, 1408, 704};
    problem->hidden = (int32_t)(8 * draw_size(seed, 80));
    problem->inter = (int32_t)(8 * draw_size(seed, 80));
    if (random_draw(seed, 0, 5) == 0) {
        problem->hidden = wide[random_draw(seed, 0, 3)];
    } else if (random_draw(seed, 0, 5) == 0) {
        problem->inter = wide[random_draw(seed, 0, 3)];
    }
    if (op == RANDOM_LAYER && random_draw(seed, 0, 2) == 0) {
        problem->shared_inter = (int32_t)(8 * draw_size(seed, 60));
        problem->flags |= random_draw(seed, 0, 1) != 0 ? MOE_PROBLEM_SHARED_SIGMOID : 0u;
    }
}

static void draw_problem(uint64_t *seed, int op, int is_large, struct moe_problem *problem)
{
    static const int32_t dtypes[] = {MOE_DTYPE_BF16, MOE_DTYPE_FP16, MOE_DTYPE_FP32};
    MOE_INIT(*problem);
    draw_widths(seed, op, problem);
    if (is_large) { /* many tokens, so narrow */
        problem->hidden = (int32_t)(8 * random_draw(seed, 1, 8));
        problem->inter = (int32_t)(8 * random_draw(seed, 1, 5));
        problem->shared_inter = problem->shared_inter > 0 ? 16 : 0;
    }
    const int64_t matrix = (int64_t)3 * problem->hidden * problem->inter;
    const int64_t most_experts = is_large ? 64 : 512;
    const int64_t most = MAX_WEIGHTS / matrix > most_experts ? most_experts : MAX_WEIGHTS / matrix;
    problem->num_experts = (int32_t)(most > 1 ? draw_size(seed, most) : 1);
    problem->num_experts_global =
        (int32_t)(random_draw(seed, 0, 1) != 0
                      ? problem->num_experts
                      : random_draw(seed, problem->num_experts, most_experts));
    const int64_t most_slots = is_large ? 4 : 12;
    const int64_t ids = problem->num_experts_global;
    problem->top_k = (int32_t)random_draw(seed, 1, ids < most_slots ? ids : most_slots);
    problem->activation = (int32_t)random_draw(seed, MOE_ACTIVATION_SILU, MOE_ACTIVATION_IDENTITY);
    if (problem->activation == MOE_ACTIVATION_SWIGLU_OAI) {
        problem->act_alpha = 1.702f;
        problem->act_limit = random_draw(seed, 0, 1) != 0 ? 1.0f : 0.0f;
    } else {
        problem->flags |= random_draw(seed, 0, 2) == 0 ? MOE_PROBLEM_UNGATED : 0u;
    }
    problem->flags |= random_draw(seed, 0, 1) != 0 ? MOE_PROBLEM_GATE_UP_BIAS : 0u;
    problem->flags |= random_draw(seed, 0, 1) != 0 ? MOE_PROBLEM_DOWN_BIAS : 0u;
    problem->flags |= random_draw(seed, 0, 3) == 0 ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0u;
    if (op == RANDOM_LAYER) {
        draw_gating(seed, problem);
        problem->scaling_on = (int32_t)random_draw(seed, MOE_SCALING_NONE, MOE_SCALING_OUTPUT);
        problem->routed_scaling = problem->scaling_on != MOE_SCALING_NONE ? 2.5f : 0.0f;
    }
    problem->tokens.dtype = dtypes[random_draw(seed, 0, 1)];
    problem->gate_up.dtype = problem->tokens.dtype;
    problem->down.dtype = problem->tokens.dtype;
    problem->output_dtype = dtypes[random_draw(seed, 0, 2)];
}

/* A matrix per expert with padded rows, or with columns that lie far apart. */
static struct moe_operand draw_matrix(struct random_arena *arena, uint64_t *seed,
                                      int64_t num_experts, int64_t rows, int64_t cols,
                                      int32_t dtype, int is_transposed)
{
    struct moe_operand operand = {.dtype = dtype};
    const int64_t pad = 8 * random_draw(seed, 0, 2);
    operand.row_stride = is_transposed ? 1 : cols + pad;
    operand.col_stride = is_transposed ? rows + pad : 1;
    operand.expert_stride =
        is_transposed ? cols * operand.col_stride : rows * operand.row_stride + pad;
    operand.base = random_tensor(arena, seed, num_experts * operand.expert_stride, dtype,
                                 sqrt(3.0 / (double)cols));
    return operand;
}

/* The experts of a matrix in any order, found by a table. */
static void make_table(struct random_case *test, uint64_t *seed, int slot,
                       struct moe_operand *operand)
{
    const int32_t num_experts = test->problem.num_experts;
    const void **table = test->tables + slot * num_experts;
    for (int32_t e = 0; e < num_experts; e++) {
        const int64_t at = random_draw(seed, 0, e);
        table[e] = table[at];
        table[at] = (const char *)operand->base +
                    e * operand->expert_stride * (int64_t)random_dtype_bytes(operand->dtype);
    }
    operand->base = NULL;
    operand->table = table;
    operand->expert_stride = 0;
}

static struct moe_operand moved(struct moe_operand operand, int64_t elements)
{
    operand.base =
        (const char *)operand.base + elements * (int64_t)random_dtype_bytes(operand.dtype);
    return operand;
}

/* gate and up: one matrix of 2 I rows or columns that is shared out, or two. */
static void make_gate_up(struct random_case *test, struct random_arena *arena, uint64_t *seed,
                         int layout)
{
    const struct moe_problem *problem = &test->problem;
    const int64_t experts = problem->num_experts, hidden = problem->hidden;
    const int64_t inter = problem->inter;
    const int32_t dtype = problem->gate_up.dtype;
    const int is_transposed = layout == TRANSPOSED || layout == TRANSPOSED_IN_TURN;
    if ((problem->flags & MOE_PROBLEM_UNGATED) != 0 || layout == APART || layout == TABLES) {
        test->desc.up = draw_matrix(arena, seed, experts, inter, hidden, dtype, is_transposed);
        if ((problem->flags & MOE_PROBLEM_UNGATED) == 0) {
            test->desc.gate =
                draw_matrix(arena, seed, experts, inter, hidden, dtype, is_transposed);
        }
        return;
    }
    const struct moe_operand both =
        draw_matrix(arena, seed, experts, 2 * inter, hidden, dtype, is_transposed);
    const int is_in_turn = layout == IN_TURN || layout == TRANSPOSED_IN_TURN;
    test->desc.gate = both;
    test->desc.up = moved(both, (is_in_turn ? 1 : inter) * both.row_stride);
    if (is_in_turn) {
        test->desc.gate.row_stride *= 2;
        test->desc.up.row_stride *= 2;
    }
}

static struct moe_operand draw_bias(struct random_arena *arena, uint64_t *seed, int64_t num_experts,
                                    int64_t rows, int32_t dtype)
{
    const int64_t step = random_draw(seed, 1, 2);
    const struct moe_operand bias = {
        .base = random_tensor(arena, seed, num_experts * rows * step, dtype, 0.5),
        .expert_stride = rows * step,
        .row_stride = step,
        .dtype = dtype};
    return bias;
}

static void make_others(struct random_case *test, struct random_arena *arena, uint64_t *seed)
{
    const struct moe_problem *problem = &test->problem;
    const int32_t dtype = problem->gate_up.dtype;
    const int has_gate = (problem->flags & MOE_PROBLEM_UNGATED) == 0;
    if ((problem->flags & MOE_PROBLEM_GATE_UP_BIAS) != 0) {
        test->desc.up_bias = draw_bias(arena, seed, problem->num_experts, problem->inter, dtype);
        if (has_gate) {
            test->desc.gate_bias =
                draw_bias(arena, seed, problem->num_experts, problem->inter, dtype);
        }
    }
    if ((problem->flags & MOE_PROBLEM_DOWN_BIAS) != 0) {
        test->desc.down_bias = draw_bias(arena, seed, problem->num_experts, problem->hidden, dtype);
    }
    if ((problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0) {
        test->desc.correction_bias =
            draw_bias(arena, seed, 1, problem->num_experts_global, MOE_DTYPE_FP32);
        test->desc.correction_bias.row_stride = 1;
    }
    if (problem->shared_inter > 0) {
        if (has_gate) {
            test->desc.shared_gate =
                draw_matrix(arena, seed, 1, problem->shared_inter, problem->hidden, dtype, 0);
        }
        test->desc.shared_up =
            draw_matrix(arena, seed, 1, problem->shared_inter, problem->hidden, dtype, 0);
        test->desc.shared_down =
            draw_matrix(arena, seed, 1, problem->hidden, problem->shared_inter, dtype, 0);
    }
    if ((problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        test->desc.shared_sigmoid = draw_matrix(arena, seed, 1, 1, problem->hidden, dtype, 0);
    }
}

void random_case_init(struct random_case *test, struct random_arena *arena, uint64_t seed)
{
    uint64_t state = seed;
    memset(test, 0, sizeof(*test));
    test->seed = seed;
    test->op = (int)random_draw(&state, 0, 3) % RANDOM_NUM_OPS; /* the layer most often */
    test->op = RANDOM_IS_LARGE(seed) ? RANDOM_LAYER : test->op;
    draw_problem(&state, test->op, RANDOM_IS_LARGE(seed), &test->problem);
    MOE_INIT(test->desc);
    test->tables = calloc((size_t)test->problem.num_experts * 3, sizeof(void *));
    const int layout = (int)random_draw(&state, 0, NUM_LAYOUTS - 1);
    make_gate_up(test, arena, &state, layout);
    const int down_layout = layout == TABLES ? TABLES : (int)random_draw(&state, 0, TABLES);
    test->desc.down = draw_matrix(arena, &state, test->problem.num_experts, test->problem.hidden,
                                  test->problem.inter, test->problem.down.dtype,
                                  layout == TRANSPOSED || layout == TRANSPOSED_IN_TURN);
    if (layout == TABLES) {
        make_table(test, &state, 0, &test->desc.up);
        if (test->desc.gate.base != NULL) {
            make_table(test, &state, 1, &test->desc.gate);
        }
    }
    if (down_layout == TABLES) {
        make_table(test, &state, 2, &test->desc.down);
    }
    make_others(test, arena, &state);
}

void random_case_finish(struct random_case *test)
{
    free(test->tables);
}
