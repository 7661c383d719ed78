/* SPDX-License-Identifier: Apache-2.0 */
/* Activation, GEMM, combine and layer references: published function values, small cases written
 * out, and the layer against its own operations one after another. */
#include "ref.h"
#include "support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void assert_near(double actual, double expected)
{
    if (!(fabs(actual - expected) <= 1e-12 * fmax(1.0, fabs(expected)))) {
        fail_msg("%.17g is not %.17g", actual, expected);
    }
}

static const struct ref_rounding exact; /* REF_F64 everywhere */

static void test_activation_values(void **state)
{
    (void)state;
    struct ref_activation ungated = ref_activation_ungated(REF_ACT_SILU);
    assert_near(ref_activate(&ungated, 1.0, 99.0), 0.7310585786300049);
    assert_near(ref_activate(&ungated, -1.0, 99.0), -0.2689414213699951);
    ungated.act = REF_ACT_GELU; /* Phi(1) = 0.841344746... */
    assert_near(ref_activate(&ungated, 1.0, 99.0), 0.8413447460685429);
    assert_near(ref_activate(&ungated, -2.0, 99.0), -0.04550026389635842);
    ungated.act = REF_ACT_GELU_TANH;
    assert_near(ref_activate(&ungated, 1.0, 99.0), 0.8411919906082768);
    ungated.act = REF_ACT_RELU2;
    assert_near(ref_activate(&ungated, 3.0, 99.0), 9.0);
    assert_near(ref_activate(&ungated, -3.0, 99.0), 0.0);
    ungated.act = REF_ACT_IDENTITY;
    assert_near(ref_activate(&ungated, -3.0, 99.0), -3.0);

    struct ref_activation gated = ref_activation_halves(REF_ACT_SILU, 4);
    assert_near(ref_activate(&gated, 1.0, -2.0), -2.0 * 0.7310585786300049);
    gated.act = REF_ACT_SWIGLU_OAI;
    assert_near(ref_activate(&gated, 0.0, 3.0), 0.0);
    assert_near(ref_activate(&gated, 1.0, 2.0), 3.0 / (1.0 + exp(-1.702)));
    assert_near(ref_activate(&gated, 8.0, 9.0), 7.0 / (1.0 + exp(-1.702 * 7.0)) * 8.0);
    assert_near(ref_activate(&gated, -8.0, -9.0), -8.0 / (1.0 + exp(1.702 * 8.0)) * -6.0);
    assert_true(isnan(ref_activate(&gated, (double)NAN, 1.0)));
    assert_true(isnan(ref_activate(&gated, 1.0, (double)NAN)));
}

static void test_activation_layouts(void **state)
{
    (void)state;
    const double in[12] = {1, 2, 3, 4, 100, 100, 5, 6, 7, 8, 100, 100};
    double out[4];
    struct ref_activation activation = ref_activation_halves(REF_ACT_IDENTITY, 2);
    ref_activation_rows(&activation, in, 2, 6, 2, REF_F64, out);
    assert_memory_equal(out, ((double[]){3, 8, 35, 48}), sizeof out);
    activation = ref_activation_interleaved(REF_ACT_IDENTITY);
    ref_activation_rows(&activation, in, 2, 6, 2, REF_F64, out);
    assert_memory_equal(out, ((double[]){2, 12, 30, 56}), sizeof out);
    activation = ref_activation_ungated(REF_ACT_RELU2);
    ref_activation_rows(&activation, in, 2, 6, 2, REF_E4M3, out);
    assert_memory_equal(out, ((double[]){1, 4, 24, 36}), sizeof out); /* 25 ties to even */
}

static void test_grouped_gemm(void **state)
{
    (void)state;
    const double a[6] = {1, -2, 3, 4, 5, 6};                   /* [3][2] */
    const double w[8] = {1, 2, 3, 4, 10, 20, 30, 40};          /* [2][2][2] */
    const double transposed[8] = {1, 3, 2, 4, 10, 30, 20, 40}; /* w with k along rows */
    const double bias[4] = {0.5, -0.5, 0, 1000};
    const int32_t experts[3] = {1, -1, 0};
    double out[6] = {7, 7, 7, 7, 7, 7};
    double sum_abs[6] = {7, 7, 7, 7, 7, 7};
    struct ref_grouped_gemm args = {.a = a,
                                    .w = ref_weight_dense(w, 2, 2),
                                    .bias = bias,
                                    .experts = experts,
                                    .num_rows = 3,
                                    .n = 2,
                                    .k = 2,
                                    .out = out,
                                    .sum_abs = sum_abs};
    ref_grouped_gemm(&args);
    assert_memory_equal(out, ((double[]){-30, 950, 7, 7, 17.5, 38.5}), sizeof out);
    assert_memory_equal(sum_abs, ((double[]){50, 1110, 7, 7, 17.5, 39.5}), sizeof sum_abs);

    args.w = (struct ref_weight){transposed, 4, 1, 2};
    args.row_weights = (double[]){-2, 0, 0.5};
    args.rows_per_input = 2; /* rows 0 and 1 read a[0], row 2 reads a[1] */
    ref_grouped_gemm(&args);
    assert_memory_equal(out, ((double[]){60, 1100, 7, 7, 6, 12}), sizeof out);
    assert_memory_equal(sum_abs, ((double[]){100, 1220, 7, 7, 6, 13}), sizeof sum_abs);
}

static void test_combine(void **state)
{
    (void)state;
    const double rows[4] = {1, 10, -3, 257};
    const int32_t src2dst[6] = {2, 0, -1, -1, -1, -1};
    const double weights[6] = {0.5, 2, 100, 1, 1, 1};
    double out[2];
    double sum_abs[2];
    struct ref_post_reorder args = {.rows = rows,
                                    .src2dst = src2dst,
                                    .weights = weights,
                                    .num_tokens = 2,
                                    .top_k = 3,
                                    .hidden = 1,
                                    .scaling_factor = -4.0,
                                    .out = out,
                                    .sum_abs = sum_abs};
    ref_post_reorder(&args);
    assert_memory_equal(out, ((double[]){-2, -0.0}), sizeof out);
    assert_memory_equal(sum_abs, ((double[]){14, 0}), sizeof sum_abs);
    args.shared = (double[]){5, 6};
    args.shared_factor = (double[]){2, -1};
    args.residual = (double[]){1, -0.015625};
    args.out_dtype = REF_BF16;
    ref_post_reorder(&args);
    assert_memory_equal(out, ((double[]){9, -6}), sizeof out); /* -6.015625 ties to even */
    assert_memory_equal(sum_abs, ((double[]){25, 6.015625}), sizeof sum_abs);
    args.weights = NULL;
    args.shared_factor = NULL;
    ref_post_reorder(&args);
    assert_true(out[0] == 14.0);

    ref_sum_reduce(rows, 2, 2, 1, 2.0, REF_BF16, out, sum_abs);
    assert_memory_equal(out, ((double[]){22, 508}), sizeof out);
    assert_memory_equal(sum_abs, ((double[]){22, 520}), sizeof sum_abs);
}

/* One token, hidden 1, inter 1, two experts: w1 = 2, 3; w2 = 5, 7; identity. */
static void test_layer_by_hand(void **state)
{
    (void)state;
    const double w1[2] = {2, 3};
    const double w2[2] = {5, 7};
    const double bias1[2] = {0.25, 0};
    const double bias2[2] = {0, -1};
    const double shared_w1[1] = {1};
    const double shared_w2[1] = {100};
    const double x[1] = {2};
    const int64_t ids[3] = {1, 0, -1};
    const double weights[3] = {0.5, 4, 77};
    double out[1];
    double sum_abs[1];
    struct ref_experts routed = {ref_weight_dense(w1, 1, 1),
                                 ref_weight_dense(w2, 1, 1),
                                 bias1,
                                 bias2,
                                 ref_activation_ungated(REF_ACT_IDENTITY),
                                 1,
                                 1};
    struct ref_experts shared = {ref_weight_dense(shared_w1, 1, 1),
                                 ref_weight_dense(shared_w2, 1, 1),
                                 NULL,
                                 NULL,
                                 ref_activation_ungated(REF_ACT_IDENTITY),
                                 1,
                                 1};
    struct ref_layer layer = {.x = x,
                              .num_tokens = 1,
                              .routed = routed,
                              .filter = ref_filter_all(2),
                              .ids = ids,
                              .weights = weights,
                              .top_k = 3,
                              .scaling_factor = 10,
                              .out = out,
                              .sum_abs = sum_abs};
    /* Expert 1: 3 * 2 * 7 - 1 = 41. Expert 0: (2 * 2 + 0.25) * 5 = 21.25. */
    ref_layer(&layer);
    assert_near(out[0], 10 * (0.5 * 41 + 4 * 21.25));
    assert_near(sum_abs[0], 10 * (0.5 * 43 + 4 * 21.25));

    layer.num_shared = 1;
    layer.shared = shared;
    layer.shared_gate = (double[]){0.5}; /* sigmoid(0.5 * 2) */
    layer.residual = (double[]){-1000};
    ref_layer(&layer);
    assert_near(out[0], 1055 + 200 * 0.7310585786300049 - 1000);
    layer.shared_gate = NULL;
    ref_layer(&layer);
    assert_near(out[0], 1055 + 200 - 1000);
    assert_near(sum_abs[0], 1065 + 200 + 1000);

    /* On the input: expert 1: 0.5 * 6 * 7 - 1 = 20; expert 0: (4 * 4 + 0.25) * 5 = 81.25. */
    layer.weight_on_input = true;
    layer.num_shared = 0;
    layer.residual = NULL;
    layer.scaling_factor = 1;
    ref_layer(&layer);
    assert_near(out[0], 101.25);

    /* Expert 1 alone is local, as expert 0 of this rank's weights. */
    layer.weight_on_input = false;
    layer.filter = (struct ref_filter){2, 1, 2, NULL, 1};
    ref_layer(&layer);
    assert_near(out[0], 0.5 * 21.25);
}

static void test_rounding_stages(void **state)
{
    (void)state;
    /* 257 is no bf16 value: it becomes 256. */
    const double w1[1] = {257};
    const double w2[1] = {257};
    const double x[1] = {1};
    const int64_t ids[1] = {0};
    const double weights[1] = {1.00390625}; /* 1 + 2^-8 */
    double out[1];
    struct ref_experts routed = {ref_weight_dense(w1, 1, 1),
                                 ref_weight_dense(w2, 1, 1),
                                 NULL,
                                 NULL,
                                 ref_activation_ungated(REF_ACT_RELU2),
                                 1,
                                 1};
    struct ref_layer layer = {.x = x,
                              .num_tokens = 1,
                              .routed = routed,
                              .filter = ref_filter_all(1),
                              .ids = ids,
                              .weights = weights,
                              .top_k = 1,
                              .scaling_factor = 1,
                              .out = out};
    ref_layer(&layer);
    assert_true(out[0] == 257.0 * 257 * 257 * 1.00390625);
    layer.rounding.gemm1 = REF_BF16;
    ref_layer(&layer);
    assert_true(out[0] == 256.0 * 256 * 257 * 1.00390625);
    layer.rounding = exact;
    layer.rounding.intermediate = REF_BF16; /* 66049: steps of 512 from 65536 */
    ref_layer(&layer);
    assert_true(out[0] == 66048.0 * 257 * 1.00390625);
    layer.rounding.row = REF_BF16; /* 66048 * 257 = 2^24 + 1.504 * 2^17 */
    ref_layer(&layer);
    assert_true(out[0] == 17039360.0 * 1.00390625);
    layer.rounding.out = REF_BF16;
    ref_layer(&layer);
    assert_true(out[0] == 17170432.0); /* 2^24 + 2.508 * 2^17 */
}

enum {
    T = 23,
    H = 13,
    I = 9,
    E = 6,
    LOCAL = 4,
    K = 3,
    ALIGN = 4,
    ROWS = 96,
    ROUTES = T * K,
    X_COUNT = T * H,
    W1_COUNT = LOCAL * 2 * I * H,
    W2_COUNT = LOCAL * H * I,
    FIRST_COUNT = ROWS * 2 * I,
};

struct problem {
    double x[X_COUNT];
    double w1[W1_COUNT];
    double w2[W2_COUNT];
    double bias1[LOCAL * 2 * I];
    double bias2[LOCAL * H];
    double residual[X_COUNT];
    double weights[ROUTES];
    int64_t ids[ROUTES];
};

static void fill_problem(struct problem *problem, uint64_t seed)
{
    struct support_random random;
    support_random_seed(&random, seed);
    support_fill_normal(&random, REF_F64, problem->x, X_COUNT, 1.0);
    support_fill_normal(&random, REF_F64, problem->w1, W1_COUNT, 0.3);
    support_fill_normal(&random, REF_F64, problem->w2, W2_COUNT, 0.3);
    support_fill_normal(&random, REF_F64, problem->bias1, LOCAL * 2 * I, 0.3);
    support_fill_normal(&random, REF_F64, problem->bias2, LOCAL * H, 0.3);
    support_fill_normal(&random, REF_F64, problem->residual, X_COUNT, 1.0);
    support_fill_normal(&random, REF_F64, problem->weights, ROUTES, 0.5);
    support_fill_ids(&random, problem->ids, T, K, E);
}

/* The layer by way of rows sorted by expert, each operation rounding where the layer does. */
static void run_in_steps(const struct problem *problem, const struct ref_filter *filter,
                         const struct ref_layer *layer, double *out)
{
    static double rows[ROWS * H];
    static double first[FIRST_COUNT];
    static double middle[ROWS * I];
    static double last[ROWS * H];
    int32_t src2dst[ROUTES];
    int32_t row_experts[ROWS];
    struct ref_ep_layout layout = {
        .src2dst = src2dst, .row_experts = row_experts, .rows_capacity = ROWS};
    assert_true(ref_ep_preprocess(filter, problem->ids, ROUTES, ALIGN, &layout) <= ROWS);
    struct ref_pre_reorder reorder = {
        .x = problem->x, .src2dst = src2dst, .num_tokens = T, .top_k = K, .hidden = H, .out = rows};
    ref_pre_reorder(&reorder);
    struct ref_grouped_gemm gemm = {.a = rows,
                                    .w = layer->routed.w1,
                                    .bias = problem->bias1,
                                    .experts = row_experts,
                                    .num_rows = ROWS,
                                    .n = 2 * I,
                                    .k = H,
                                    .out = first};
    ref_grouped_gemm(&gemm);
    ref_round_all(layer->rounding.gemm1, first, FIRST_COUNT);
    ref_activation_rows(&layer->routed.activation, first, ROWS, 2 * I, I,
                        layer->rounding.intermediate, middle);
    gemm = (struct ref_grouped_gemm){.a = middle,
                                     .w = layer->routed.w2,
                                     .bias = problem->bias2,
                                     .experts = row_experts,
                                     .num_rows = ROWS,
                                     .n = H,
                                     .k = I,
                                     .out = last};
    ref_grouped_gemm(&gemm);
    ref_round_all(layer->rounding.row, last, ROWS * H);
    struct ref_post_reorder combine = {.rows = last,
                                       .src2dst = src2dst,
                                       .weights = problem->weights,
                                       .num_tokens = T,
                                       .top_k = K,
                                       .hidden = H,
                                       .scaling_factor = layer->scaling_factor,
                                       .residual = problem->residual,
                                       .out_dtype = layer->rounding.out,
                                       .out = out};
    ref_post_reorder(&combine);
}

static void test_layer_in_steps(void **state)
{
    (void)state;
    static struct problem problem;
    static const int32_t map[E] = {3, -1, 0, 2, -1, 1};
    const struct ref_rounding bf16 = {REF_F32, REF_BF16, REF_BF16, REF_BF16};
    for (uint64_t seed = 0; seed < 6; seed++) {
        double by_token[X_COUNT];
        double in_steps[X_COUNT];
        fill_problem(&problem, seed);
        struct ref_activation activation = seed % 2 == 0
                                               ? ref_activation_halves(REF_ACT_SILU, I)
                                               : ref_activation_interleaved(REF_ACT_SWIGLU_OAI);
        struct ref_experts routed = {ref_weight_dense(problem.w1, 2 * I, H),
                                     ref_weight_dense(problem.w2, H, I),
                                     problem.bias1,
                                     problem.bias2,
                                     activation,
                                     H,
                                     I};
        struct ref_filter range = {E, 1, 1 + LOCAL, NULL, LOCAL};
        struct ref_filter mapped = {E, 0, E, map, LOCAL};
        struct ref_layer layer = {.x = problem.x,
                                  .num_tokens = T,
                                  .routed = routed,
                                  .filter = seed % 3 == 0 ? range : mapped,
                                  .ids = problem.ids,
                                  .weights = problem.weights,
                                  .top_k = K,
                                  .scaling_factor = 2.5,
                                  .residual = problem.residual,
                                  .rounding = seed < 3 ? exact : bf16,
                                  .out = by_token};
        ref_layer(&layer);
        run_in_steps(&problem, &layer.filter, &layer, in_steps);
        assert_all_close(by_token, REF_F64, in_steps, X_COUNT, 1e-13, 1e-13);
    }
}

static void test_experts_rows(void **state)
{
    (void)state;
    static struct problem problem;
    double out[X_COUNT];
    double row[H];
    int32_t row_experts[T];
    double row_weights[T];
    const int64_t indptr[LOCAL + 1] = {0, 5, 5, 12, 20};
    const int64_t counts[LOCAL] = {5, 0, 4, 8};
    const struct ref_rounding rounding = {REF_F32, REF_F16, REF_F16, REF_F64};
    fill_problem(&problem, 77);
    struct ref_experts experts = {ref_weight_dense(problem.w1, 2 * I, H),
                                  ref_weight_dense(problem.w2, H, I),
                                  problem.bias1,
                                  problem.bias2,
                                  ref_activation_halves(REF_ACT_GELU, I),
                                  H,
                                  I};
    ref_row_experts(indptr, counts, LOCAL, T, row_experts);
    for (int64_t r = 0; r < T; r++) {
        row_weights[r] = 0.1 * (double)r;
    }
    for (int64_t i = 0; i < X_COUNT; i++) {
        out[i] = 12345.0;
    }
    ref_experts_rows(&experts, problem.x, row_experts, T, row_weights, &rounding, out);
    for (int64_t r = 0; r < T; r++) {
        int64_t expert = r < 5 ? 0 : r >= 12 && r < 20 ? 3 : r >= 5 && r < 9 ? 2 : -1;
        for (int64_t c = 0; c < H; c++) {
            row[c] = 12345.0;
        }
        if (expert >= 0) {
            ref_expert_row(&experts, expert, problem.x + r * H, row_weights[r], &rounding, row,
                           NULL);
        }
        assert_bits_equal(row, out + r * H, H, sizeof(double));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activation_values), cmocka_unit_test(test_activation_layouts),
        cmocka_unit_test(test_grouped_gemm),      cmocka_unit_test(test_combine),
        cmocka_unit_test(test_layer_by_hand),     cmocka_unit_test(test_rounding_stages),
        cmocka_unit_test(test_layer_in_steps),    cmocka_unit_test(test_experts_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
