/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_weights.h"

#include "bench_random.h"
#include "element.h"
#include "plugin_host.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* An operand of moe_weights_desc that the problem has. */
struct matrix {
    size_t operand_offset;
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

static void add(struct matrix_list *list, int is_present, size_t operand_offset,
                int64_t num_experts, int64_t rows, int64_t cols, int32_t dtype)
{
    if (is_present) {
        list->matrices[list->num_matrices++] =
            (struct matrix){operand_offset, num_experts, rows, cols, dtype};
    }
}

#define OPERAND(member) offsetof(struct moe_weights_desc, member)

static void list_matrices(const struct moe_problem *problem, struct matrix_list *list)
{
    const uint32_t flags = problem->flags;
    const int is_gated = (flags & MOE_PROBLEM_UNGATED) == 0;
    const int has_gate_up_bias = (flags & MOE_PROBLEM_GATE_UP_BIAS) != 0;
    const int has_shared = problem->shared_inter > 0;
    const int64_t experts = problem->num_experts, all_experts = problem->num_experts_global;
    const int64_t hidden = problem->hidden, inter = problem->inter, shared = problem->shared_inter;
    const int32_t gate_up = problem->gate_up.dtype, down = problem->down.dtype;
    list->num_matrices = 0;
    add(list, is_gated, OPERAND(gate), experts, inter, hidden, gate_up);
    add(list, 1, OPERAND(up), experts, inter, hidden, gate_up);
    add(list, 1, OPERAND(down), experts, hidden, inter, down);
    add(list, is_gated && has_gate_up_bias, OPERAND(gate_bias), experts, inter, 1, gate_up);
    add(list, has_gate_up_bias, OPERAND(up_bias), experts, inter, 1, gate_up);
    add(list, (flags & MOE_PROBLEM_DOWN_BIAS) != 0, OPERAND(down_bias), experts, hidden, 1, down);
    add(list, 1, OPERAND(router), 1, all_experts, hidden, gate_up);
    add(list, (flags & MOE_PROBLEM_ROUTER_BIAS) != 0, OPERAND(router_bias), 1, all_experts, 1,
        gate_up);
    add(list, (flags & MOE_PROBLEM_CORRECTION_BIAS) != 0, OPERAND(correction_bias), 1, all_experts,
        1, MOE_DTYPE_FP32);
    add(list, has_shared && is_gated, OPERAND(shared_gate), 1, shared, hidden, gate_up);
    add(list, has_shared, OPERAND(shared_up), 1, shared, hidden, gate_up);
    add(list, has_shared, OPERAND(shared_down), 1, hidden, shared, gate_up);
    add(list, (flags & MOE_PROBLEM_SHARED_SIGMOID) != 0, OPERAND(shared_sigmoid), 1, 1, hidden,
        gate_up);
}

static uint64_t count_elements(const struct matrix *matrix)
{
    return (uint64_t)matrix->num_experts * (uint64_t)matrix->rows * (uint64_t)matrix->cols;
}

static uint64_t matrix_bytes(const struct matrix *matrix)
{
    return moe_bench_memory_align(count_elements(matrix) * moe_element_bytes(matrix->dtype));
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

/* Fills one copy at `bytes` and describes it. */
static int make_copy(const struct matrix_list *list, unsigned char *bytes, uint64_t seed,
                     const struct moe_bench_place *place, struct moe_weights_desc *desc,
                     struct moe_cli_error *error)
{
    MOE_INIT(*desc);
    for (size_t i = 0; i < list->num_matrices; ++i) {
        const struct matrix *matrix = &list->matrices[i];
        const float scale = 1.0f / sqrtf((float)matrix->cols);
        if (moe_bench_place_fill(place, bytes, matrix->dtype, count_elements(matrix), scale,
                                 seed + i, error) != 0) {
            return -1;
        }
        struct moe_operand operand = {.base = bytes,
                                      .expert_stride = matrix->rows * matrix->cols,
                                      .row_stride = matrix->cols,
                                      .col_stride = 1,
                                      .dtype = matrix->dtype};
        memcpy((unsigned char *)desc + matrix->operand_offset, &operand, sizeof operand);
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
