/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 300 */
/*
 * Layers with fp8 weights, weight-only and with fp8 rows, against the reference computed from the
 * dequantized values; the same bits with every tile, number of threads and chunk, from plain tokens
 * and from tokens that the host has quantized, as one layer, as contiguous and as masked experts.
 */
#include "../ops/op_data.h"

#include "support_float.h"

enum { T = 21, K = 3, E = 7, H = 200, I = 168, MAX_GROUPS = 2, BLOCK = 128 };
enum { H_GROUPS = (H + BLOCK - 1) / BLOCK, I_GROUPS = (I + BLOCK - 1) / BLOCK };

enum rows_kind { ROWS_PLAIN, ROWS_PER_TOKEN, ROWS_GROUPS, ROWS_UE8M0, ROWS_TMA, NUM_ROWS_KINDS };

/* Weights of one matrix per expert: codes [E][rows][cols], scales [E][row groups][k groups]. */
struct matrix {
    int64_t rows, cols;
    unsigned char *codes;
    float *scales;
    double *values; /* dequantized, exact */
};

struct layer {
    struct moe_problem problem;
    enum rows_kind kind;
    bool blocks; /* scales per 128x128, else one per expert */
    struct matrix gate, up, down;
    struct moe_weights_desc desc;
    uint16_t tokens[T * H]; /* bf16 */
    double x[T * H];
    int32_t ids[T * K];
    float weights[T * K];
};

static struct moe_recipe rows_recipe(enum rows_kind kind)
{
    struct moe_recipe recipe = {.dtype = MOE_DTYPE_BF16};
    if (kind != ROWS_PLAIN) {
        recipe.dtype = MOE_DTYPE_FP8_E4M3;
        recipe.scale_dtype = kind == ROWS_UE8M0 ? MOE_DTYPE_UE8M0 : MOE_DTYPE_FP32;
        recipe.scale_layout = kind == ROWS_UE8M0 ? MOE_SCALE_UE8M0_PACKED
                              : kind == ROWS_TMA ? MOE_SCALE_COLUMN_MAJOR_TMA
                                                 : MOE_SCALE_ROW_MAJOR;
        recipe.group_rows = 1;
        recipe.group_k = kind == ROWS_PER_TOKEN ? 0 : BLOCK;
        recipe.dynamic = 1;
    }
    return recipe;
}

static void matrix_init(struct matrix *matrix, struct support_random *random, bool blocks,
                        int64_t rows, int64_t cols)
{
    const int64_t row_groups = blocks ? (rows + BLOCK - 1) / BLOCK : 1;
    const int64_t groups = blocks ? (cols + BLOCK - 1) / BLOCK : 1;
    *matrix = (struct matrix){.rows = rows, .cols = cols};
    matrix->codes = op_array(E * rows * cols, 1);
    matrix->values = op_array(E * rows * cols, sizeof(double));
    matrix->scales = op_array(E * row_groups * groups, sizeof(float));
    for (int64_t i = 0; i < E * row_groups * groups; i++) {
        matrix->scales[i] = 0.002f * (1.0f + fabsf((float)support_random_normal(random)));
    }
    for (int64_t e = 0; e < E; e++) {
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < cols; c++) {
                const int64_t at = (e * rows + r) * cols + c;
                const int64_t block = blocks ? (r / BLOCK) * groups + c / BLOCK : 0;
                ref_store(REF_E4M3, matrix->codes, at, 40.0 * support_random_normal(random));
                matrix->values[at] = ref_load(REF_E4M3, matrix->codes, at) *
                                     (double)matrix->scales[e * row_groups * groups + block];
            }
        }
    }
}

static void matrix_describe(const struct matrix *matrix, bool blocks, struct moe_operand *weight,
                            struct moe_operand *scale)
{
    const int64_t row_groups = blocks ? (matrix->rows + BLOCK - 1) / BLOCK : 1;
    const int64_t groups = blocks ? (matrix->cols + BLOCK - 1) / BLOCK : 1;
    *weight = (struct moe_operand){.base = matrix->codes,
                                   .expert_stride = matrix->rows * matrix->cols,
                                   .row_stride = matrix->cols,
                                   .col_stride = 1};
    *scale = (struct moe_operand){.base = matrix->scales,
                                  .expert_stride = row_groups * groups,
                                  .row_stride = groups,
                                  .col_stride = 1};
}

static void matrix_finish(struct matrix *matrix)
{
    free(matrix->codes);
    free(matrix->scales);
    free(matrix->values);
}

static void layer_init(struct layer *layer, enum rows_kind kind, bool blocks)
{
    struct support_random random;
    support_random_seed(&random, 41 + (uint64_t)kind);
    memset(layer, 0, sizeof(*layer));
    layer->kind = kind;
    layer->blocks = blocks;
    matrix_init(&layer->gate, &random, blocks, I, H);
    matrix_init(&layer->up, &random, blocks, I, H);
    matrix_init(&layer->down, &random, blocks, H, I);
    for (int i = 0; i < T * H; i++) {
        ref_store(REF_BF16, layer->tokens, i, support_random_normal(&random));
        layer->x[i] = ref_load(REF_BF16, layer->tokens, i);
    }
    for (int route = 0; route < T * K; route++) {
        layer->ids[route] = (int32_t)support_random_below(&random, E + 1) - (route % 5 == 0);
        layer->weights[route] = (float)support_random_uniform(&random);
    }
    const struct moe_recipe weights = {.dtype = MOE_DTYPE_FP8_E4M3,
                                       .scale_dtype = MOE_DTYPE_FP32,
                                       .scale_layout = MOE_SCALE_ROW_MAJOR,
                                       .group_rows = blocks ? BLOCK : 0,
                                       .group_k = blocks ? BLOCK : 0};
    MOE_INIT(layer->problem);
    layer->problem.num_experts = E;
    layer->problem.top_k = K;
    layer->problem.hidden = H;
    layer->problem.inter = I;
    layer->problem.activation = MOE_ACTIVATION_SILU;
    layer->problem.tokens.dtype = MOE_DTYPE_BF16;
    layer->problem.gate_up = weights;
    layer->problem.intermediate = rows_recipe(kind);
    layer->problem.down = weights;
    layer->problem.output_dtype = MOE_DTYPE_FP32;
    layer->problem.max_tokens = T;
    MOE_INIT(layer->desc);
    matrix_describe(&layer->gate, blocks, &layer->desc.gate, &layer->desc.gate_scale);
    matrix_describe(&layer->up, blocks, &layer->desc.up, &layer->desc.up_scale);
    matrix_describe(&layer->down, blocks, &layer->desc.down, &layer->desc.down_scale);
}

static void layer_finish(struct layer *layer)
{
    matrix_finish(&layer->gate);
    matrix_finish(&layer->up);
    matrix_finish(&layer->down);
}

/* ---------------------------------------------------------------- reference */

/* The values that fp8 rows stand for. */
static void dequantize(enum rows_kind kind, const double *x, int64_t width, double *out)
{
    double scales[MAX_GROUPS];
    const int64_t group = kind == ROWS_PER_TOKEN ? width : BLOCK;
    if (kind == ROWS_PLAIN) {
        memcpy(out, x, (size_t)width * sizeof(*x));
        return;
    }
    ref_quantize(x, 1, width, kind == ROWS_PER_TOKEN ? 0 : BLOCK, kind == ROWS_UE8M0, out, scales);
    for (int64_t i = 0; i < width; i++) {
        out[i] *= scales[i / group];
    }
}

static double dot(const double *a, const struct matrix *w, int64_t expert, int64_t row)
{
    double sum = 0.0;
    for (int64_t i = 0; i < w->cols; i++) {
        sum += a[i] * w->values[(expert * w->rows + row) * w->cols + i];
    }
    return sum;
}

static void expect_token(const struct layer *layer, int64_t token, double out[H])
{
    double x[H], h[I], between[I];
    dequantize(layer->kind, layer->x + token * H, H, x);
    memset(out, 0, H * sizeof(*out));
    for (int64_t j = 0; j < K; j++) {
        const int64_t e = layer->ids[token * K + j];
        if (e < 0 || e >= E) {
            continue;
        }
        for (int64_t i = 0; i < I; i++) {
            const double gate = dot(x, &layer->gate, e, i);
            h[i] = gate / (1.0 + exp(-gate)) * dot(x, &layer->up, e, i);
            h[i] = layer->kind == ROWS_PLAIN ? ref_round(REF_BF16, h[i]) : h[i];
        }
        dequantize(layer->kind, h, I, between);
        for (int64_t c = 0; c < H; c++) {
            out[c] += (double)layer->weights[token * K + j] * dot(between, &layer->down, e, c);
        }
    }
}

/* ---------------------------------------------------------------- calls */

static struct moe_weights *bind(const struct layer *layer, struct moe_context *context,
                                const struct moe_problem *problem)
{
    struct moe_weights *weights = NULL;
    struct moe_error error;
    MOE_INIT(error);
    op_assert_status(
        MOE_STATUS_OK,
        op_api()->weights_bind(context, problem, &layer->desc, NULL, 0, &weights, &error), error);
    return weights;
}

static void run_layer(const struct layer *layer, const struct op_variant *variant,
                      const struct moe_plan *plan, const struct moe_problem *problem,
                      const void *tokens, const void *scales, int64_t first, int64_t count,
                      float *out)
{
    struct moe_weights *weights = bind(layer, variant->context, problem);
    struct moe_layer_args args;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = count;
    op_lend_workspace(&args.call);
    args.weights = weights;
    args.tokens = tokens;
    args.input_scales = scales;
    args.topk_ids = layer->ids + first * K;
    args.topk_weights = layer->weights + first * K;
    args.output = out;
    op_assert_status(MOE_STATUS_OK, op_api()->layer(plan, &args, &error), error);
    op_api()->weights_destroy(weights);
}

static void run_plain(const struct layer *layer, const struct op_variant *variant, int64_t first,
                      int64_t count, float *out)
{
    struct moe_plan *plan = op_plan(variant->context, &layer->problem, 0);
    run_layer(layer, variant, plan, &layer->problem, layer->tokens + first * H, NULL, first, count,
              out);
    op_api()->plan_destroy(plan);
}

/* ---------------------------------------------------------------- tests */

/*
 * In fp32 sums of 200 products are off by 2^-24 * 40 of their magnitudes: 1e-5 of the result's
 * norm, with cancellation. Where rows are fp8 such an error now and then moves an element of the
 * intermediate to the neighbouring code, by 2^-3 of itself at most: with one of the I elements of a
 * row moved that is 2^-3 / sqrt(I) of the row. With plain rows the intermediate is bf16: 2^-8.
 */
static double norm_bound(const struct layer *layer)
{
    return layer->kind == ROWS_PLAIN ? 0x1p-8 / sqrt((double)I) * 2.0 : 0x1p-3 / sqrt((double)I);
}

static void layers_match_the_reference(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUM_ROWS_KINDS; kind++) {
        for (int blocks = 0; blocks < 2; blocks++) {
            struct layer layer;
            float out[T * H];
            double expected[H];
            layer_init(&layer, (enum rows_kind)kind, blocks != 0);
            run_plain(&layer, op_variant(0, 1), 0, T, out);
            for (int64_t t = 0; t < T; t++) {
                double error = 0.0, norm = 0.0;
                expect_token(&layer, t, expected);
                for (int64_t c = 0; c < H; c++) {
                    const double off = (double)out[t * H + c] - expected[c];
                    error += off * off;
                    norm += expected[c] * expected[c];
                }
                if (!(sqrt(error) <= norm_bound(&layer) * sqrt(norm))) {
                    print_error("kind %d blocks %d token %d: %g of %g\n", kind, blocks, (int)t,
                                sqrt(error), sqrt(norm));
                }
                assert_true(sqrt(error) <= norm_bound(&layer) * sqrt(norm));
            }
            layer_finish(&layer);
        }
    }
}

static void bits_depend_on_values_only(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUM_ROWS_KINDS; kind++) {
        struct layer layer;
        float whole[T * H], other[T * H];
        layer_init(&layer, (enum rows_kind)kind, kind % 2 == 0);
        run_plain(&layer, op_variant(0, 1), 0, T, whole);
        for (int set = 0; set < op_plugin.num_tile_sets; set++) {
            const struct op_variant *variant = op_variant(set, set % OP_MAX_THREADS + 1);
            run_plain(&layer, variant, 0, T, other);
            assert_bits_equal(whole, other, T * H, 4);
            run_plain(&layer, variant, 4, 9, other);
            assert_bits_equal(whole + 4 * H, other, 9 * H, 4);
            run_plain(&layer, variant, T - 1, 1, other);
            assert_bits_equal(whole + (T - 1) * H, other, H, 4);
        }
        layer_finish(&layer);
    }
}

static void chunks_do_not_matter(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUM_ROWS_KINDS; kind++) {
        struct layer layer;
        struct moe_plan_info info;
        float whole[T * H], other[T * H];
        const struct op_variant *variant = op_variant(1, 2);
        layer_init(&layer, (enum rows_kind)kind, true);
        run_plain(&layer, variant, 0, T, whole);
        struct moe_plan *plan = op_plan(variant->context, &layer.problem, OP_BIT(MOE_OP_LAYER));
        MOE_INIT(info);
        assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
        op_api()->plan_destroy(plan);
        plan = op_plan_capped(variant->context, &layer.problem, OP_BIT(MOE_OP_LAYER),
                              info.workspace_bytes - 2000);
        assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
        assert_true(info.chunk_tokens > 0 && info.chunk_tokens < T);
        run_layer(&layer, variant, plan, &layer.problem, layer.tokens, NULL, 0, T, other);
        assert_bits_equal(whole, other, T * H, 4);
        op_api()->plan_destroy(plan);
        layer_finish(&layer);
    }
}

/* Tokens quantized by the operation quantize, with its scales as input_scales. */
static void quantized_tokens_give_the_same_bits(void **state)
{
    (void)state;
    for (int kind = ROWS_PER_TOKEN; kind < NUM_ROWS_KINDS; kind++) {
        struct layer layer;
        float whole[T * H], other[T * H];
        unsigned char rows[T * H];
        float scales[(T + 3) * MAX_GROUPS * 2];
        struct moe_quantize_args args;
        struct moe_error error;
        const struct op_variant *variant = op_variant(2, 2);
        MOE_INIT(error);
        layer_init(&layer, (enum rows_kind)kind, true);
        run_plain(&layer, variant, 0, T, whole);
        struct moe_plan *plan = op_plan(variant->context, &layer.problem, OP_BIT(MOE_OP_QUANTIZE));
        MOE_INIT_CALL(args);
        args.call.num_tokens = T;
        op_lend_workspace(&args.call);
        args.tokens = layer.tokens;
        args.output = rows;
        args.output_scales = scales;
        args.quantization = rows_recipe((enum rows_kind)kind);
        op_assert_status(MOE_STATUS_OK, op_api()->quantize(plan, &args, &error), error);
        op_api()->plan_destroy(plan);
        struct moe_problem problem = layer.problem;
        problem.tokens = rows_recipe((enum rows_kind)kind);
        problem.tokens.dynamic = 0;
        plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_LAYER));
        run_layer(&layer, variant, plan, &problem, rows, scales, 0, T, other);
        assert_bits_equal(whole, other, T * H, 4);
        op_api()->plan_destroy(plan);
        layer_finish(&layer);
    }
}

/* Rows by hand: token t of slot 0 in the segment of its expert. */
static void run_experts(const struct layer *layer, const struct op_variant *variant, bool masked,
                        float *out)
{
    enum { STRIDE = T, ROWS = E * STRIDE };
    uint16_t *rows = op_array(ROWS * H, 2);
    float *results = op_array(ROWS * H, 4);
    int64_t seg_indptr[E + 1] = {0};
    int32_t counts[E] = {0}, place[T];
    struct moe_experts_args args;
    struct moe_error error;
    struct moe_problem problem = layer->problem;
    problem.max_tokens = ROWS;
    for (int t = 0; t < T; t++) {
        const int32_t e = layer->ids[t * K];
        place[t] = e >= 0 && e < E ? counts[e]++ : -1;
    }
    for (int e = 0; e < E; e++) {
        seg_indptr[e + 1] = seg_indptr[e] + counts[e];
    }
    for (int t = 0; t < T; t++) {
        const int32_t e = layer->ids[t * K];
        if (place[t] >= 0) {
            place[t] += (int32_t)(masked ? e * STRIDE : seg_indptr[e]);
            memcpy(rows + place[t] * H, layer->tokens + t * H, H * 2);
        }
    }
    struct moe_plan *plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_EXPERTS));
    struct moe_weights *weights = bind(layer, variant->context, &problem);
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    op_lend_workspace(&args.call);
    args.weights = weights;
    args.rows = rows;
    args.num_rows = masked ? ROWS : seg_indptr[E];
    args.seg_indptr = masked ? NULL : seg_indptr;
    args.masked_m = masked ? counts : NULL;
    args.max_masked_rows = masked ? STRIDE : 0;
    args.output = results;
    op_assert_status(MOE_STATUS_OK, op_api()->experts(plan, &args, &error), error);
    for (int t = 0; t < T; t++) {
        for (int64_t c = 0; c < H; c++) {
            out[t * H + c] = place[t] >= 0 ? results[place[t] * H + c] : 0.0f;
        }
    }
    op_api()->weights_destroy(weights);
    op_api()->plan_destroy(plan);
    free(results);
    free(rows);
}

/* One slot of weight 1: the layer's output is the expert's row. */
static void experts_give_the_same_bits(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUM_ROWS_KINDS; kind++) {
        for (int set = 0; set < op_plugin.num_tile_sets; set += 3) {
            struct layer layer;
            float whole[T * H], contiguous[T * H], masked[T * H];
            const struct op_variant *variant = op_variant(set, 1 + set % 2);
            layer_init(&layer, (enum rows_kind)kind, true);
            for (int route = 0; route < T * K; route++) {
                layer.weights[route] = 1.0f;
                layer.ids[route] = route % K == 0 ? layer.ids[route] : -1;
            }
            run_plain(&layer, variant, 0, T, whole);
            run_experts(&layer, variant, false, contiguous);
            run_experts(&layer, variant, true, masked);
            assert_bits_equal(whole, contiguous, T * H, 4);
            assert_bits_equal(whole, masked, T * H, 4);
            layer_finish(&layer);
        }
    }
}

/* What does not go together is refused with the name of what is wrong. */
static void recipes_are_checked(void **state)
{
    (void)state;
    struct layer layer;
    layer_init(&layer, ROWS_GROUPS, true);
    struct moe_problem bad[9];
    const char *words[9] = {"gate_up", "down",       "group_rows", "scale_layout", "output_dtype",
                            "dynamic", "zero_point", "group_rows", "scale_dtype"};
    for (int i = 0; i < OP_COUNT(bad); i++) {
        bad[i] = layer.problem;
    }
    bad[0].tokens = rows_recipe(ROWS_GROUPS);
    bad[0].gate_up = (struct moe_recipe){.dtype = MOE_DTYPE_BF16};
    bad[1].down = (struct moe_recipe){.dtype = MOE_DTYPE_BF16};
    bad[2].gate_up.group_rows = 64;
    bad[3].intermediate.scale_layout = MOE_SCALE_UE8M0_PACKED;
    bad[4].output_dtype = MOE_DTYPE_FP8_E4M3;
    bad[5].intermediate.dynamic = 0;
    bad[6].down.zero_point = 1;
    bad[7].intermediate.group_k = 64;
    bad[8].gate_up.scale_dtype = 0;
    for (int i = 0; i < OP_COUNT(bad); i++) {
        struct moe_plan *plan = NULL;
        struct moe_error error;
        MOE_INIT(error);
        const int32_t status =
            op_api()->plan_create(op_variant(0, 1)->context, &bad[i], NULL, &plan, &error);
        if (status == MOE_STATUS_OK || strstr(error.message, words[i]) == NULL) {
            print_error("%d: %d %s\n", i, status, error.message);
        }
        assert_true(status == MOE_STATUS_INVALID_ARGUMENT || status == MOE_STATUS_UNSUPPORTED);
        assert_non_null(strstr(error.message, words[i]));
    }
    layer_finish(&layer);
}

/* A host may flush subnormals and round towards zero, and gets the same bits and its state back. */
static void the_state_of_the_host_does_not_matter(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUM_ROWS_KINDS; kind++) {
        struct layer layer;
        float whole[T * H], other[T * H];
        layer_init(&layer, (enum rows_kind)kind, kind % 2 == 0);
        for (int set = 0; set < op_plugin.num_tile_sets; set++) {
            const struct op_variant *variant = op_variant(set, set % OP_MAX_THREADS + 1);
            struct moe_plan *plan = op_plan(variant->context, &layer.problem, 0);
            run_plain(&layer, variant, 0, T, whole);
            support_float_disturb();
            const unsigned int before = support_float_state();
            run_layer(&layer, variant, plan, &layer.problem, layer.tokens, NULL, 0, T, other);
            const unsigned int after = support_float_state();
            support_float_default();
            op_api()->plan_destroy(plan);
            assert_int_equal(after, before);
            assert_bits_equal(whole, other, T * H, 4);
        }
        layer_finish(&layer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_match_the_reference),
        cmocka_unit_test(bits_depend_on_values_only),
        cmocka_unit_test(chunks_do_not_matter),
        cmocka_unit_test(quantized_tokens_give_the_same_bits),
        cmocka_unit_test(experts_give_the_same_bits),
        cmocka_unit_test(recipes_are_checked),
        cmocka_unit_test(the_state_of_the_host_does_not_matter),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
