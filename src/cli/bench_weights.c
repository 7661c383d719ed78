/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_weights.h"

#include "bench_random.h"
#include "element.h"
#include "fp8_recipe.h"
#include "plugin_host.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* An operand of moe_weights_desc that the problem has. */
struct matrix {
    size_t operand_offset;
    size_t scale_offset; /* of the operand with its scales, if it is fp8 */
    int64_t num_experts; /* 1 for those that are not per expert */
    int64_t rows;
    int64_t cols; /* 1: a bias */
    int32_t dtype;
};

enum { MAX_MATRICES = 16 };

struct matrix_list {
    size_t num_matrices;
    struct matrix matrices[MAX_MATRICES];
};

static void add(struct matrix_list *list, int is_present, const struct matrix *matrix)
{
    if (is_present) {
        list->matrices[list->num_matrices++] = *matrix;
    }
}

/* Members of moe_weights_desc: a matrix with its scales, and one that is never quantized. */
#define OPERAND(member)   offsetof(struct moe_weights_desc, member)
#define QUANTIZED(member) OPERAND(member), OPERAND(member##_scale)
#define PLAIN(member)     OPERAND(member), 0

static void list_matrices(const struct moe_problem *problem, struct matrix_list *list)
{
    const uint32_t flags = problem->flags;
    const int is_gated = (flags & MOE_PROBLEM_UNGATED) == 0;
    const int has_gate_up_bias = (flags & MOE_PROBLEM_GATE_UP_BIAS) != 0;
    const int has_shared = problem->shared_inter > 0;
    const int64_t experts = problem->num_experts, all_experts = problem->num_experts_global;
    const int64_t hidden = problem->hidden, inter = problem->inter, shared = problem->shared_inter;
    const int32_t gate_up = problem->gate_up.dtype, down = problem->down.dtype;
    const int32_t plain = problem->tokens.dtype;
    list->num_matrices = 0;
#define ADD(is_present, ...) add(list, is_present, &(struct matrix){__VA_ARGS__})
    ADD(is_gated, QUANTIZED(gate), experts, inter, hidden, gate_up);
    ADD(1, QUANTIZED(up), experts, inter, hidden, gate_up);
    ADD(1, QUANTIZED(down), experts, hidden, inter, down);
    ADD(is_gated && has_gate_up_bias, PLAIN(gate_bias), experts, inter, 1, plain);
    ADD(has_gate_up_bias, PLAIN(up_bias), experts, inter, 1, plain);
    ADD((flags & MOE_PROBLEM_DOWN_BIAS) != 0, PLAIN(down_bias), experts, hidden, 1, plain);
    ADD(1, PLAIN(router), 1, all_experts, hidden, plain);
    ADD((flags & MOE_PROBLEM_ROUTER_BIAS) != 0, PLAIN(router_bias), 1, all_experts, 1, plain);
    ADD((flags & MOE_PROBLEM_CORRECTION_BIAS) != 0, PLAIN(correction_bias), 1, all_experts, 1,
        MOE_DTYPE_FP32);
    ADD(has_shared && is_gated, QUANTIZED(shared_gate), 1, shared, hidden, gate_up);
    ADD(has_shared, QUANTIZED(shared_up), 1, shared, hidden, gate_up);
    ADD(has_shared, QUANTIZED(shared_down), 1, hidden, shared, gate_up);
    ADD((flags & MOE_PROBLEM_SHARED_SIGMOID) != 0, PLAIN(shared_sigmoid), 1, 1, hidden, plain);
#undef ADD
}

static uint64_t count_elements(const struct matrix *matrix)
{
    return (uint64_t)matrix->num_experts * (uint64_t)matrix->rows * (uint64_t)matrix->cols;
}

static uint64_t count_scales(const struct matrix *matrix)
{
    return matrix->dtype != MOE_DTYPE_FP8_E4M3
               ? 0
               : (uint64_t)(matrix->num_experts * moe_fp8_num_blocks(matrix->rows) *
                            moe_fp8_num_blocks(matrix->cols));
}

static uint64_t element_bytes(const struct matrix *matrix)
{
    return moe_bench_memory_align(count_elements(matrix) * moe_element_bytes(matrix->dtype));
}

static uint64_t matrix_bytes(const struct matrix *matrix)
{
    return element_bytes(matrix) + moe_bench_memory_align(count_scales(matrix) * sizeof(float));
}

uint64_t moe_bench_weights_bytes(const struct moe_problem *problem)
{
    struct matrix_list list;
    list_matrices(problem, &list);
    uint64_t num_bytes = 0;
    for (size_t i = 0; i < list.num_matrices; ++i) {
        num_bytes += matrix_bytes(&list.matrices[i]);
    }
    return num_bytes;
}

/* Of fp8 weights: what quantization by the largest of 128x128 normal numbers, about 4.5 deviations,
 * leaves. */
static const float fp8_deviation = 448.0f / 4.5f;

/* Scales of one matrix, in host memory: half to one and a half times what gives the weights the
 * deviation `scale`. */
static struct moe_operand make_scales(const struct matrix *matrix, float *scales, float scale,
                                      uint64_t seed)
{
    const int64_t row_blocks = moe_fp8_num_blocks(matrix->rows);
    const int64_t col_blocks = moe_fp8_num_blocks(matrix->cols);
    const uint64_t num_scales = count_scales(matrix);
    struct moe_bench_random random;
    moe_bench_random_init(&random, seed, 0);
    for (uint64_t i = 0; i < num_scales; ++i) {
        scales[i] = scale / fp8_deviation * (0.5f + (float)moe_bench_random_unit(&random));
    }
    return (struct moe_operand){.base = scales,
                                .expert_stride = row_blocks * col_blocks,
                                .row_stride = col_blocks,
                                .col_stride = 1,
                                .dtype = MOE_DTYPE_FP32};
}

/* Fills one copy at `bytes` and describes it. */
static int make_copy(const struct matrix_list *list, unsigned char *bytes, uint64_t seed,
                     const struct moe_bench_place *place, struct moe_weights_desc *desc,
                     struct moe_cli_error *error)
{
    MOE_INIT(*desc);
    for (size_t i = 0; i < list->num_matrices; ++i) {
        const struct matrix *matrix = &list->matrices[i];
        const float scale = 1.0f / sqrtf((float)matrix->cols);
        const int is_fp8 = matrix->dtype == MOE_DTYPE_FP8_E4M3;
        if (moe_bench_place_fill(place, bytes, matrix->dtype, count_elements(matrix),
                                 is_fp8 ? fp8_deviation : scale, seed + i, error) != 0) {
            return -1;
        }
        struct moe_operand operand = {.base = bytes,
                                      .expert_stride = matrix->rows * matrix->cols,
                                      .row_stride = matrix->cols,
                                      .col_stride = 1,
                                      .dtype = matrix->dtype};
        memcpy((unsigned char *)desc + matrix->operand_offset, &operand, sizeof operand);
        if (is_fp8) {
            operand = make_scales(matrix, (float *)(void *)(bytes + element_bytes(matrix)), scale,
                                  seed + i);
            memcpy((unsigned char *)desc + matrix->scale_offset, &operand, sizeof operand);
        }
        bytes += matrix_bytes(matrix);
    }
    return 0;
}

int moe_bench_weights_init(struct moe_bench_weights *weights, const struct moe_plugin_api *api,
                           struct moe_context *context, const struct moe_problem *problem,
                           int64_t num_copies, uint64_t seed, const struct moe_bench_place *place,
                           struct moe_cli_error *error)
{
    *weights = (struct moe_bench_weights){.api = api};
    struct matrix_list list;
    struct moe_weights_desc desc;
    struct moe_weights_info info;
    struct moe_error cause;
    MOE_INIT(info);
    MOE_INIT(cause);
    list_matrices(problem, &list);
    const uint64_t plain_bytes = moe_bench_weights_bytes(problem);
    weights->bound = calloc((size_t)num_copies, sizeof(struct moe_weights *));
    if (weights->bound == NULL) {
        return moe_cli_fail_memory(error, "making weights");
    }
    if (moe_bench_place_take(place, plain_bytes * (uint64_t)num_copies, "weights", &weights->memory,
                             error) != 0) {
        return -1;
    }
    unsigned char *copy = weights->memory.bytes;
    weights->copy_bytes = plain_bytes;
    for (int64_t i = 0; i < num_copies; ++i, copy += plain_bytes) {
        const uint64_t copy_seed =
            moe_bench_random_mix(seed ^ moe_bench_random_mix((uint64_t)i + 1));
        if (make_copy(&list, copy, copy_seed, place, &desc, error) != 0) {
            return -1;
        }
        if (api->weights_query(context, problem, &desc, &info, &cause) != MOE_STATUS_OK) {
            return moe_plugin_host_fail(error, "weights_query", &cause);
        }
        if (info.prepared_bytes > 0) {
            return MOE_CLI_FAIL(error, "the plugin wants a prepared form of these weights, which "
                                       "bench does not make: it measures "
                                       "weights as a checkpoint holds them");
        }
        if (api->weights_bind(context, problem, &desc, NULL, 0, &weights->bound[i], &cause) !=
            MOE_STATUS_OK) {
            return moe_plugin_host_fail(error, "weights_bind", &cause);
        }
        weights->num_copies = i + 1;
    }
    return 0;
}

void moe_bench_weights_finish(struct moe_bench_weights *weights)
{
    for (int64_t i = 0; i < weights->num_copies; ++i) {
        weights->api->weights_destroy(weights->bound[i]);
    }
    free(weights->bound);
    moe_bench_memory_finish(&weights->memory);
    memset(weights, 0, sizeof *weights);
}
