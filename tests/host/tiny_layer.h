/* SPDX-License-Identifier: Apache-2.0 */
/* The layer that minihost.c runs: its numbers, what the plugin is told of them, and the answer by
 * plain loops. */
#ifndef MOE_TESTS_TINY_LAYER_H
#define MOE_TESTS_TINY_LAYER_H

#include <math.h>

#include "moe_plugin.h"

enum { T = 3, E = 4, K = 2, H = 8, I = 6 }; /* tokens, experts, top_k, hidden, inter */

static float tokens[T][H], gate[E][I][H], up[E][I][H], down[E][H][I], output[T][H];
static const int32_t ids[T][K] = {{2, 0}, {1, 3}, {3, -1}}; /* -1: an expert of another rank */
static const float route_weights[T][K] = {{0.75f, 0.25f}, {0.5f, 0.5f}, {1.0f, 0.0f}};

static const struct moe_problem problem = {
    .struct_size = sizeof problem,
    .num_experts = E,
    .top_k = K,
    .hidden = H,
    .inter = I,
    .activation = MOE_ACTIVATION_SILU,
    .max_tokens = T,
    .tokens.dtype = MOE_DTYPE_FP32,
    .gate_up.dtype = MOE_DTYPE_FP32,
    .down.dtype = MOE_DTYPE_FP32,
};

static const struct moe_weights_desc desc = {
    .struct_size = sizeof desc,
    .gate = {.base = gate, .expert_stride = I * H, .row_stride = H, .col_stride = 1},
    .up = {.base = up, .expert_stride = I * H, .row_stride = H, .col_stride = 1},
    .down = {.base = down, .expert_stride = H * I, .row_stride = I, .col_stride = 1},
};

/* The host adds the bound weights and the workspace. */
static struct moe_layer_args args = {
    .call = {.struct_size = sizeof args, .num_tokens = T},
    .tokens = tokens,
    .topk_ids = ids,
    .topk_weights = route_weights[0],
    .output = output,
};

static void fill_layer(void)
{
    for (int i = 0; i < E * I * H; i++) {
        int expert = i / (I * H), place = i % (I * H);
        gate[expert][place / H][place % H] = sinf(0.2f + 1.7f * (float)i);
        up[expert][place / H][place % H] = sinf(0.3f + 1.9f * (float)i);
        down[expert][place / I][place % I] = sinf(0.4f + 2.3f * (float)i);
    }
    for (int i = 0; i < T * H; i++) {
        tokens[i / H][i % H] = sinf(0.1f + 2.9f * (float)i);
    }
}

static double expected(int t, int h)
{
    double sum = 0;
    for (int route = 0; route < K * I; route++) {
        int e = ids[t][route / I], i = route % I;
        double g = 0, u = 0;
        for (int c = 0; e >= 0 && c < H; c++) {
            g += (double)gate[e][i][c] * tokens[t][c];
            u += (double)up[e][i][c] * tokens[t][c];
        }
        sum += e < 0 ? 0 : route_weights[t][route / I] * g / (1 + exp(-g)) * u * down[e][h][i];
    }
    return sum;
}

/* Largest difference of `output` from the plain loops. */
static double largest_error(void)
{
    double worst = 0;
    for (int i = 0; i < T * H; i++) {
        double error = fabs(output[i / H][i % H] - expected(i / H, i % H));
        worst = error <= worst ? worst : error; /* a NaN stays */
    }
    return worst;
}

#endif
