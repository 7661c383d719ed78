/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random grouped GEMMs in every layout, with an independent expectation, for the tests of the GEMM
 * kernels: the values of gemm_values.h in guarded memory, and every output in double precision.
 */
#ifndef MOE_TESTS_GEMM_FIXTURE_H
#define MOE_TESTS_GEMM_FIXTURE_H

#include "gemm_values.h"

/* ---------------------------------------------------------------- expectation */

/* The exact sum of one output before the activation, and how far fp32 may be from it. */
static inline double fixture_sum(const struct gemm_fixture *fixture, int64_t expert, int32_t matrix,
                                 int64_t n, int64_t input_row, double row_weight, double *tolerance)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t channel = (expert * shape->num_matrices + matrix) * shape->n + n;
    const double *weight = fixture->weights + channel * shape->k;
    const double *row = fixture->input + input_row * shape->k;
    double sum = 0.0, sum_abs = 0.0;
    for (int64_t k = 0; k < shape->k; k++) {
        const double product = row[k] * (double)fixture_input_scale(fixture, input_row, k) *
                               weight[k] *
                               (double)fixture_weight_scale(fixture, expert, matrix, n, k);
        sum += product;
        sum_abs += fabs(product);
    }
    const double magnitude = row_weight < 0 ? -row_weight : row_weight;
    const double bias = fixture->bias[channel];
    sum = sum * row_weight + bias;
    sum_abs = sum_abs * magnitude + (bias < 0 ? -bias : bias);
    /*
     * ceil(k / 8) steps, a tree of 3, the row weight, the bias. Scales: one rounding of a weight,
     * or one of the product of two scales and one for each of at most ceil(k / 128) sums.
     */
    *tolerance = ref_gemm_tolerance((shape->k + 7) / 8 + 5 + 2 + (shape->k + 127) / 128, REF_F32,
                                    REF_F64, sum_abs, sum);
    return sum;
}

/*
 * act(gate, up) for the sums, and how far it moves within their tolerances: the corners bound it,
 * since the functions are nearly linear over so small a range. The function itself may be off by
 * 2^-20 of its terms.
 */
static inline double fixture_activate(const struct moe_op_act *act, const double sum[2],
                                      const double tolerance[2], double *out)
{
    static const enum ref_act acts[] = {
        [MOE_ACTIVATION_SILU] = REF_ACT_SILU,
        [MOE_ACTIVATION_GELU] = REF_ACT_GELU,
        [MOE_ACTIVATION_GELU_TANH] = REF_ACT_GELU_TANH,
        [MOE_ACTIVATION_SWIGLU_OAI] = REF_ACT_SWIGLU_OAI,
        [MOE_ACTIVATION_RELU2] = REF_ACT_RELU2,
        [MOE_ACTIVATION_IDENTITY] = REF_ACT_IDENTITY,
    };
    struct ref_activation activation = act->ungated
                                           ? ref_activation_ungated(acts[act->activation])
                                           : ref_activation_halves(acts[act->activation], 1);
    activation.alpha = act->alpha;
    activation.limit = act->limit;
    const double value = ref_activate(&activation, sum[0], sum[1]);
    double largest = 0.0;
    for (int corner = 0; corner < 4; corner++) {
        const double gate = sum[0] + (corner & 1 ? tolerance[0] : -tolerance[0]);
        const double up = sum[1] + (corner & 2 ? tolerance[1] : -tolerance[1]);
        const double moved = ref_activate(&activation, gate, up) - value;
        largest = moved > largest ? moved : -moved > largest ? -moved : largest;
    }
    const double terms = (sum[0] < 0 ? -sum[0] : sum[0]) * (1.0 + (sum[1] < 0 ? -sum[1] : sum[1]));
    *out = value;
    return 1.01 * largest + 0x1p-20 * terms + 0x1p-140;
}

static inline void fixture_expect_row(struct gemm_fixture *fixture, int64_t expert,
                                      int64_t input_row, int64_t output_row, double row_weight)
{
    const struct gemm_shape *shape = &fixture->shape;
    const enum ref_dtype dtype = fixture_ref_dtype(shape->output_dtype);
    double *expected = fixture->expected + output_row * fixture->width;
    double *tolerance = fixture->tolerance + output_row * fixture->width;
    fixture->written[output_row] = true;
    for (int64_t n = 0; n < shape->n && expert >= 0; n++) {
        double sum[2] = {0, 0}, slack[2] = {0, 0};
        for (int32_t matrix = 0; matrix < shape->num_matrices; matrix++) {
            sum[matrix] =
                fixture_sum(fixture, expert, matrix, n, input_row, row_weight, &slack[matrix]);
        }
        if (shape->has_activation) {
            slack[0] = fixture_activate(&shape->act, sum, slack, &sum[0]);
        }
        for (int32_t part = 0; part < (shape->has_activation ? 1 : shape->num_matrices); part++) {
            expected[part * shape->n + n] = sum[part];
            tolerance[part * shape->n + n] =
                slack[part] + ref_rounding_tolerance(
                                  dtype, (sum[part] < 0 ? -sum[part] : sum[part]) + slack[part]);
        }
    }
}

static inline void fixture_expect(struct gemm_fixture *fixture)
{
    fixture->expected = fixture_alloc(fixture->num_outputs * fixture->width, sizeof(double));
    fixture->tolerance = fixture_alloc(fixture->num_outputs * fixture->width, sizeof(double));
    fixture->written = fixture_alloc(fixture->num_outputs, sizeof(bool));
    const bool scatter = fixture->shape.schedule == SCHEDULE_BLOCKS_SCATTER;
    for (int64_t p = 0; p < fixture->num_positions; p++) {
        const int64_t expert = fixture_expert_of(fixture, p);
        const int64_t row = fixture->row_ids ? fixture->row_ids[p] : p;
        if (expert == -2 || row < 0 || row >= fixture->num_positions) {
            continue;
        }
        const double row_weight =
            fixture->shape.has_row_weights ? (double)fixture->row_weights[row] : 1.0;
        fixture_expect_row(fixture, expert, fixture->row_ids ? row / FIXTURE_TOP_K : row,
                           scatter ? row : p, row_weight);
    }
}

/* ---------------------------------------------------------------- memory */

static inline void fixture_guard(struct support_guard *guard, int64_t count, int32_t dtype)
{
    const size_t bytes = ref_dtype_bytes(fixture_ref_dtype(dtype));
    /* Aligned to the element and no more; the first byte behind the last element cannot be read. */
    const struct support_guard_options options = {
        .alignment = bytes, .poison = SUPPORT_POISON_FLOAT, .end_at_page = true};
    support_guard_init(guard, (size_t)count * bytes, &options);
}

/* Offset of element (expert, matrix, n, k) within memory `*memory_idx`, in elements. */
struct fixture_strides {
    int64_t memory; /* elements in one memory */
    bool apart;     /* a memory per matrix */
    int64_t expert, matrix, row, col;
};

static inline struct fixture_strides fixture_strides_of(const struct gemm_shape *shape)
{
    const int64_t n = shape->n, k = shape->k, parts = shape->num_matrices;
    struct fixture_strides s = {0};
    switch (shape->layout) {
    case LAYOUT_APART:
        s = (struct fixture_strides){.apart = true, .expert = n * k, .row = k, .col = 1};
        break;
    case LAYOUT_HALVES:
        s = (struct fixture_strides){.expert = parts * n * k, .matrix = n * k, .row = k, .col = 1};
        break;
    case LAYOUT_INTERLEAVED:
        s = (struct fixture_strides){
            .expert = parts * n * k, .matrix = k, .row = parts * k, .col = 1};
        break;
    case LAYOUT_TRANSPOSED:
        s = (struct fixture_strides){
            .expert = parts * n * k, .matrix = n, .row = 1, .col = parts * n};
        break;
    case LAYOUT_TRANSPOSED_INTERLEAVED:
        s = (struct fixture_strides){
            .expert = parts * n * k, .matrix = 1, .row = parts, .col = parts * n};
        break;
    case LAYOUT_TABLE:
        s = (struct fixture_strides){
            .apart = true, .expert = n * (k + FIXTURE_PAD), .row = k + FIXTURE_PAD, .col = 1};
        break;
    default:
        s = (struct fixture_strides){
            .apart = true, .expert = 5 * n * (3 * k + 1), .row = 5 * (3 * k + 1), .col = 3};
        break;
    }
    s.memory = (FIXTURE_EXPERTS - 1) * s.expert + (s.apart ? 0 : (parts - 1) * s.matrix) +
               (n - 1) * s.row + (k - 1) * s.col + 1;
    return s;
}

static inline void fixture_place_weights(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    const struct fixture_strides s = fixture_strides_of(shape);
    const enum ref_dtype dtype = fixture_ref_dtype(shape->weight_dtype);
    for (int32_t m = 0; m < (s.apart ? shape->num_matrices : 1); m++) {
        fixture_guard(&fixture->weight_memory[m], s.memory, shape->weight_dtype);
    }
    for (int32_t m = 0; m < shape->num_matrices; m++) {
        unsigned char *data = fixture->weight_memory[s.apart ? m : 0].data;
        const int64_t offset = s.apart ? 0 : m * s.matrix;
        for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
            fixture->table[m][e] = data + (offset + e * s.expert) * (int64_t)ref_dtype_bytes(dtype);
            for (int64_t n = 0; n < shape->n; n++) {
                for (int64_t k = 0; k < shape->k; k++) {
                    const int64_t from =
                        ((e * shape->num_matrices + m) * shape->n + n) * shape->k + k;
                    ref_store(dtype, data, offset + e * s.expert + n * s.row + k * s.col,
                              fixture->weights[from]);
                }
            }
        }
        fixture->op.weight[m] = (struct moe_operand){
            .row_stride = s.row, .col_stride = s.col, .dtype = shape->weight_dtype};
        if (shape->layout == LAYOUT_TABLE) {
            fixture->op.weight[m].table = fixture->table[m];
        } else {
            fixture->op.weight[m].base = fixture->table[m][0];
            fixture->op.weight[m].expert_stride = s.expert;
        }
    }
}

/* Biases follow the interleaving of the weights. */
static inline void fixture_place_bias(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    if (!shape->bias_dtype) {
        return;
    }
    const int64_t n = shape->n, parts = shape->num_matrices;
    const bool interleaved =
        shape->layout == LAYOUT_INTERLEAVED || shape->layout == LAYOUT_TRANSPOSED_INTERLEAVED;
    const enum ref_dtype dtype = fixture_ref_dtype(shape->bias_dtype);
    fixture_guard(&fixture->bias_memory, FIXTURE_EXPERTS * parts * n, shape->bias_dtype);
    for (int32_t m = 0; m < parts; m++) {
        const int64_t offset = interleaved ? m : m * n;
        const int64_t stride = interleaved ? parts : 1;
        for (int64_t e = 0; e < FIXTURE_EXPERTS; e++) {
            for (int64_t i = 0; i < n; i++) {
                ref_store(dtype, fixture->bias_memory.data, e * parts * n + offset + i * stride,
                          fixture->bias[(e * parts + m) * n + i]);
            }
        }
        fixture->op.bias[m] = (struct moe_operand){
            .base = fixture->bias_memory.data + (size_t)offset * ref_dtype_bytes(dtype),
            .expert_stride = parts * n,
            .row_stride = stride,
            .dtype = shape->bias_dtype,
        };
    }
}

static inline void fixture_place_input(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t stride = shape->k + FIXTURE_PAD;
    fixture_guard(&fixture->input_memory, (fixture->num_inputs - 1) * stride + shape->k,
                  shape->input_dtype);
    for (int64_t m = 0; m < fixture->num_inputs; m++) {
        for (int64_t k = 0; k < shape->k; k++) {
            ref_store(fixture_ref_dtype(shape->input_dtype), fixture->input_memory.data,
                      m * stride + k, fixture->input[m * shape->k + k]);
        }
    }
    fixture->op.input = fixture->input_memory.data;
    fixture->op.input_stride = stride;
}

static inline void fixture_place_weight_scales(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t row_groups = fixture_groups(shape->n, shape->weight_group);
    const int64_t k_groups = fixture_groups(shape->k, shape->weight_group);
    fixture->op.weight_group_rows = (int32_t)(shape->weight_group ? shape->weight_group : shape->n);
    fixture->op.weight_group_k = (int32_t)(shape->weight_group ? shape->weight_group : shape->k);
    for (int32_t m = 0; m < shape->num_matrices; m++) {
        fixture->op.weight_scale[m] = (struct moe_operand){
            .base = fixture->weight_scales + m * row_groups * k_groups,
            .expert_stride = shape->num_matrices * row_groups * k_groups,
            .row_stride = k_groups,
            .col_stride = 1,
            .dtype = MOE_DTYPE_FP32,
        };
    }
}

/* By the layouts of struct moe_recipe, strides with a gap; what lies between the scales is NaN. */
static inline void fixture_place_input_scales(struct gemm_fixture *fixture)
{
    const struct gemm_shape *shape = &fixture->shape;
    const int64_t groups = fixture_groups(shape->k, shape->input_group);
    const bool by_rows = shape->input_layout == MOE_SCALE_ROW_MAJOR;
    const bool packed = shape->input_layout == MOE_SCALE_UE8M0_PACKED;
    const int64_t stride = (by_rows ? groups : fixture->num_inputs) + FIXTURE_PAD;
    const int64_t lines = by_rows ? fixture->num_inputs : packed ? (groups + 3) / 4 : groups;
    fixture_guard(&fixture->input_scale_memory, lines * stride, MOE_DTYPE_FP32);
    unsigned char *data = fixture->input_scale_memory.data;
    memset(data, 0xff, (size_t)(lines * stride) * sizeof(float));
    for (int64_t row = 0; row < fixture->num_inputs; row++) {
        for (int64_t g = 0; g < groups; g++) {
            const float scale = fixture->input_scales[row * groups + g];
            if (packed) {
                data[4 * (g / 4 * stride + row) + g % 4] = (unsigned char)(127 + (int)log2f(scale));
            } else {
                memcpy(data + 4 * (by_rows ? row * stride + g : g * stride + row), &scale, 4);
            }
        }
    }
    fixture->op.input_scales = (struct moe_op_scales){
        .base = data,
        .scale_layout = shape->input_layout,
        .group_k = (int32_t)(shape->input_group > 0 ? shape->input_group : shape->k),
        .per_row = shape->input_group >= 0,
        .stride = stride,
    };
}

/* ---------------------------------------------------------------- life */

static inline void gemm_fixture_init(struct gemm_fixture *fixture, const struct gemm_shape *shape)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->shape = *shape;
    support_random_seed(&fixture->random, shape->seed);
    const bool blocks =
        shape->schedule == SCHEDULE_BLOCKS || shape->schedule == SCHEDULE_BLOCKS_SCATTER;
    if (blocks) {
        fixture_make_blocks(fixture);
    } else if (shape->schedule == SCHEDULE_MASKED) {
        fixture_make_masked(fixture);
    } else {
        fixture_make_segments(fixture);
    }
    if (shape->schedule != SCHEDULE_SEGMENTS && shape->schedule != SCHEDULE_MASKED) {
        fixture_make_row_ids(fixture);
    }
    fixture->num_outputs = fixture->num_positions;
    fixture->num_inputs = fixture->row_ids ? (fixture->num_positions - 1) / FIXTURE_TOP_K + 1
                                           : fixture->num_positions;
    fixture->width = shape->has_activation ? shape->n : shape->num_matrices * shape->n;
    fixture->output_stride = fixture->width + FIXTURE_PAD;
    fixture_make_values(fixture);
    fixture_expect(fixture);

    fixture->op = (struct moe_op_gemm){
        .num_segments = blocks ? fixture->num_positions / FIXTURE_BLOCK : FIXTURE_EXPERTS,
        .seg_indptr = fixture->seg_indptr,
        .masked_m = fixture->masked_m,
        .max_masked_rows = fixture->max_masked_rows,
        .expert_ids = fixture->expert_ids,
        .num_tokens_post_pad = blocks ? &fixture->num_tokens_post_pad : NULL,
        .block_size = blocks ? FIXTURE_BLOCK : 0,
        .num_experts = FIXTURE_EXPERTS,
        .num_rows = fixture->num_positions,
        .row_ids = fixture->row_ids,
        .num_row_ids = fixture->row_ids ? fixture->num_positions : 0,
        .row_ids_div = fixture->row_ids ? FIXTURE_TOP_K : 1,
        .scatter = shape->schedule == SCHEDULE_BLOCKS_SCATTER,
        .row_weights = shape->has_row_weights ? fixture->row_weights : NULL,
        .output_stride = fixture->output_stride,
        .input_dtype = shape->input_dtype,
        .output_dtype = shape->output_dtype,
        .n = (int32_t)shape->n,
        .k = (int32_t)shape->k,
        .num_matrices = shape->num_matrices,
        .has_activation = shape->has_activation,
        .act = shape->act,
    };
    fixture_place_weights(fixture);
    fixture_place_bias(fixture);
    fixture_place_input(fixture);
    if (shape->weight_dtype == MOE_DTYPE_FP8_E4M3) {
        fixture_place_weight_scales(fixture);
    }
    if (shape->input_dtype == MOE_DTYPE_FP8_E4M3) {
        fixture_place_input_scales(fixture);
    }
}

static inline void gemm_fixture_finish(struct gemm_fixture *fixture)
{
    support_guard_finish(&fixture->input_memory);
    support_guard_finish(&fixture->weight_memory[0]);
    support_guard_finish(&fixture->weight_memory[1]);
    support_guard_finish(&fixture->bias_memory);
    support_guard_finish(&fixture->input_scale_memory);
    free(fixture->weights);
    free(fixture->bias);
    free(fixture->input);
    free(fixture->seg_indptr);
    free(fixture->expert_ids);
    free(fixture->row_ids);
    free(fixture->masked_m);
    free(fixture->row_weights);
    free(fixture->weight_scales);
    free(fixture->input_scales);
    free(fixture->expected);
    free(fixture->tolerance);
    free(fixture->written);
}

#endif
