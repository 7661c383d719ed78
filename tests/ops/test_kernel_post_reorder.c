/* SPDX-License-Identifier: Apache-2.0 */
/* post_reorder and its case sum_reduce: against the reference within the bound of an fp32 chain,
 * and the same bits in every instruction set and block size; in place on residual and shared; NaN
 * and infinities. */
#include "cpu_isa.h"
#include "kernel_run.h"

#include <math.h>

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 300};
static const int64_t hiddens[] = {1, 7, 32, 100, 257, 1024};
static const int64_t topks[] = {1, 2, 8, 22};
static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16};

enum mapping { MAP_PERMUTED, MAP_NONE_LOCAL, MAP_SUM_REDUCE, NUM_MAPPINGS };
enum extra { EXTRA_NONE, EXTRA_SHARED, EXTRA_FACTOR, NUM_EXTRAS };
enum target { TARGET_APART, TARGET_RESIDUAL, TARGET_SHARED, NUM_TARGETS };

struct combine_case {
    int64_t num_tokens;
    int64_t hidden;
    int64_t top_k;
    enum ref_dtype dtype;
    enum mapping mapping;
    enum extra extra;
    enum target target;
    bool has_weights;
    bool has_residual;
    int64_t padding;
    float scaling;
    bool has_avx512; /* if the processor does */
    bool streams;
};

enum { NUM_MODES = 4 }; /* with and without AVX-512 and streaming stores */

static bool mode_has_avx512(int mode)
{
    return mode % 2 != 0 && moe_cpu_isa_has_avx512_vbmi();
}

/* Host arrays of a case; strides are dense where the reference wants them dense. */
struct data {
    int64_t num_rows;
    int32_t *src2dst; /* as the kernel sees it */
    int32_t *mapped;  /* the same with every missing row as -1 */
    float *weights;
    float *factors;
    void *rows;   /* [num_rows][hidden] */
    void *shared; /* [num_tokens][hidden] */
    void *residual;
};

static void fill_data(struct support_random *random, const struct combine_case *test,
                      struct data *data)
{
    const int64_t num_routes = test->num_tokens * test->top_k;
    const size_t bytes = ref_dtype_bytes(test->dtype);
    data->num_rows = num_routes + 1;
    data->src2dst = kernel_array(num_routes, 4);
    data->mapped = kernel_array(num_routes, 4);
    data->weights = kernel_array(num_routes, 4);
    data->factors = kernel_array(test->num_tokens, 4);
    data->rows = kernel_array(data->num_rows * test->hidden, bytes);
    data->shared = kernel_array(test->num_tokens * test->hidden, bytes);
    data->residual = kernel_array(test->num_tokens * test->hidden, bytes);
    support_fill_normal(random, REF_F32, data->weights, num_routes, 0.5);
    support_fill_normal(random, REF_F32, data->factors, test->num_tokens, 0.5);
    support_fill_normal(random, test->dtype, data->rows, data->num_rows * test->hidden, 1.0);
    support_fill_normal(random, test->dtype, data->shared, test->num_tokens * test->hidden, 1.0);
    support_fill_normal(random, test->dtype, data->residual, test->num_tokens * test->hidden, 1.0);
    for (int64_t route = 0; route < num_routes; route++) {
        const int32_t nowhere[] = {-1, INT32_MIN, (int32_t)data->num_rows, INT32_MAX};
        const bool missing =
            test->mapping == MAP_NONE_LOCAL ||
            (test->mapping == MAP_PERMUTED && support_random_below(random, 4) == 0);
        const int32_t row = test->mapping == MAP_SUM_REDUCE
                                ? (int32_t)route
                                : (int32_t)support_random_below(random, (uint64_t)data->num_rows);
        data->mapped[route] = missing ? -1 : row;
        data->src2dst[route] = missing ? nowhere[support_random_below(random, 4)] : row;
    }
}

static void free_data(struct data *data)
{
    free(data->residual);
    free(data->shared);
    free(data->rows);
    free(data->factors);
    free(data->weights);
    free(data->mapped);
    free(data->src2dst);
}

static double *widen(enum ref_dtype dtype, const void *array, int64_t count)
{
    double *values = kernel_array(count, sizeof(*values));
    ref_load_all(dtype, array, count, values);
    return values;
}

/* The reference's output and how far the kernel's may be from it. */
static void expect(const struct combine_case *test, const struct data *data, double *out,
                   double *tolerances)
{
    const int64_t count = test->num_tokens * test->hidden;
    double *rows = widen(test->dtype, data->rows, data->num_rows * test->hidden);
    double *shared = widen(test->dtype, data->shared, count);
    double *residual = widen(test->dtype, data->residual, count);
    double *weights = widen(REF_F32, data->weights, test->num_tokens * test->top_k);
    double *factors = widen(REF_F32, data->factors, test->num_tokens);
    const struct ref_post_reorder args = {
        .rows = rows,
        .src2dst = data->mapped,
        .weights = test->has_weights ? weights : NULL,
        .num_tokens = test->num_tokens,
        .top_k = test->top_k,
        .hidden = test->hidden,
        .scaling_factor = (double)test->scaling,
        .shared = test->extra != EXTRA_NONE ? shared : NULL,
        .shared_factor = test->extra == EXTRA_FACTOR ? factors : NULL,
        .residual = test->has_residual ? residual : NULL,
        .out_dtype = REF_F64,
        .out = out,
        .sum_abs = tolerances,
    };
    ref_post_reorder(&args);
    for (int64_t i = 0; i < count; i++) {
        /* k fused additions, scaling, shared, residual. */
        tolerances[i] =
            ref_gemm_tolerance(test->top_k + 3, REF_F32, test->dtype, tolerances[i], out[i]);
    }
    free(factors);
    free(weights);
    free(residual);
    free(shared);
    free(rows);
}

/* Copies dense rows into rows at `stride`. */
static void spread(unsigned char *to, const void *from, const struct combine_case *test,
                   int64_t stride)
{
    const int64_t bytes = (int64_t)ref_dtype_bytes(test->dtype);
    for (int64_t t = 0; t < test->num_tokens; t++) {
        memcpy(to + t * stride * bytes, (const unsigned char *)from + t * test->hidden * bytes,
               (size_t)(test->hidden * bytes));
    }
}

/* Copies rows at `stride` to dense rows. */
static void gather(void *to, const unsigned char *from, const struct combine_case *test,
                   int64_t stride)
{
    const int64_t bytes = (int64_t)ref_dtype_bytes(test->dtype);
    for (int64_t t = 0; t < test->num_tokens; t++) {
        memcpy((unsigned char *)to + t * test->hidden * bytes, from + t * stride * bytes,
               (size_t)(test->hidden * bytes));
    }
}

/* Runs one variant; `dense` receives the output. */
static void run_variant(const struct combine_case *test, const struct data *data,
                        const struct kernel_variant *variant, void *dense)
{
    const int64_t bytes = (int64_t)ref_dtype_bytes(test->dtype);
    const int64_t stride = test->hidden + test->padding;
    struct support_guard rows =
        kernel_input(data->rows, data->num_rows * test->hidden * bytes, (size_t)bytes);
    struct support_guard output =
        kernel_output(test->num_tokens * stride * bytes, SUPPORT_POISON_FLOAT);
    struct moe_op_post_reorder op = {
        .num_tokens = test->num_tokens,
        .top_k = (int32_t)test->top_k,
        .hidden = (int32_t)test->hidden,
        .dtype = kernel_dtype(test->dtype),
        .scaling = test->scaling,
        .rows = rows.data,
        .row_stride = test->hidden,
        .num_rows = data->num_rows,
        .src2dst = test->mapping == MAP_SUM_REDUCE ? NULL : data->src2dst,
        .token_stride = test->mapping == MAP_SUM_REDUCE ? test->top_k * test->hidden : 0,
        .topk_weights = test->has_weights ? data->weights : NULL,
        .shared = test->extra != EXTRA_NONE ? data->shared : NULL,
        .shared_stride = test->hidden,
        .shared_factor = test->extra == EXTRA_FACTOR ? data->factors : NULL,
        .residual = test->has_residual ? data->residual : NULL,
        .residual_stride = test->hidden,
        .output = output.data,
        .output_stride = stride,
        .streams = test->streams,
        .has_avx512 = test->has_avx512,
    };
    if (test->target == TARGET_RESIDUAL && test->has_residual) {
        spread(output.data, data->residual, test, stride);
        op.residual = output.data;
        op.residual_stride = stride;
    } else if (test->target == TARGET_SHARED && test->extra != EXTRA_NONE) {
        spread(output.data, data->shared, test, stride);
        op.shared = output.data;
        op.shared_stride = stride;
    }
    kernel_run(&variant->kernels->post_reorder, &variant->tile, &op);
    assert_guard_intact(&output);
    for (int64_t t = 0; t < test->num_tokens; t++) {
        const size_t end = (size_t)((t + 1) * stride * bytes);
        assert_true(support_guard_is_poison(&output, end - (size_t)(test->padding * bytes), end));
    }
    gather(dense, output.data, test, stride);
    support_guard_finish(&output);
    support_guard_finish(&rows);
}

static void run_case(struct support_random *random, const struct combine_case *test)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int32_t op = test->mapping == MAP_SUM_REDUCE ? MOE_OP_SUM_REDUCE : MOE_OP_POST_REORDER;
    const int num_variants = kernel_list_variants(op, variants);
    const int64_t count = test->num_tokens * test->hidden;
    const size_t bytes = ref_dtype_bytes(test->dtype);
    double *expected = kernel_array(count, sizeof(*expected));
    double *tolerances = kernel_array(count, sizeof(*tolerances));
    void *first = kernel_array(count, bytes);
    void *other = kernel_array(count, bytes);
    struct data data;
    fill_data(random, test, &data);
    expect(test, &data, expected, tolerances);
    run_variant(test, &data, &variants[0], first);
    assert_all_within(expected, tolerances, test->dtype, first, count);
    for (int v = 1; v < NUM_MODES * num_variants; v++) {
        struct combine_case variation = *test;
        variation.has_avx512 = mode_has_avx512(v / num_variants);
        variation.streams = v / num_variants / 2 != 0;
        run_variant(&variation, &data, &variants[v % num_variants], other);
        assert_bits_equal(first, other, count, bytes);
    }
    free_data(&data);
    free(other);
    free(first);
    free(tolerances);
    free(expected);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts),
                          KERNEL_COUNT(hiddens),
                          KERNEL_COUNT(topks),
                          KERNEL_COUNT(dtypes),
                          NUM_MAPPINGS,
                          NUM_EXTRAS,
                          NUM_TARGETS,
                          2 /* weights */,
                          2 /* residual */,
                          2 /* padding */,
                          2 /* scaling */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 4);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        const struct combine_case test = {.num_tokens = token_counts[pick[0]],
                                          .hidden = hiddens[pick[1]],
                                          .top_k = topks[pick[2]],
                                          .dtype = dtypes[pick[3]],
                                          .mapping = (enum mapping)pick[4],
                                          .extra = (enum extra)pick[5],
                                          .target = (enum target)pick[6],
                                          .has_weights = pick[7] == 1,
                                          .has_residual = pick[8] == 1,
                                          .padding = pick[9] * 3,
                                          .scaling = pick[10] == 1 ? 2.5f : 1.0f};
        run_case(&random, &test);
    }
    support_grid_finish(&grid);
}

/* The order of the chain: 2^24, then 1 twice, in slot order loses both ones, in any other order it
 * does not. */
static void slots_are_added_in_order(void **state)
{
    (void)state;
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_POST_REORDER, variants);
    const float rows[] = {1.0f, 1.0f, 0x1p24f};
    const int32_t src2dst[] = {2, 0, 1};
    const float weights[] = {1.0f, 1.0f, 1.0f};
    for (int v = 0; v < num_variants; v++) {
        float output = 0.0f;
        const struct moe_op_post_reorder op = {.num_tokens = 1,
                                               .top_k = 3,
                                               .hidden = 1,
                                               .dtype = MOE_DTYPE_FP32,
                                               .scaling = 1.0f,
                                               .rows = rows,
                                               .row_stride = 1,
                                               .num_rows = 3,
                                               .src2dst = src2dst,
                                               .topk_weights = weights,
                                               .output = &output,
                                               .output_stride = 1};
        kernel_run(&variants[v].kernels->post_reorder, &variants[v].tile, &op);
        assert_true(output == 0x1p24f);
    }
}

/* inf - inf and NaN inputs give the one NaN of the type; infinities and overflow give infinity. */
static void special_values_are_canonical(void **state)
{
    (void)state;
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_POST_REORDER, variants);
    const float rows[2][9] = {
        {INFINITY, NAN, -NAN, INFINITY, 3e38f, -0.0f, 0x1p-149f, 1.0f, NAN},
        {-INFINITY, 1.0f, NAN, INFINITY, 3e38f, -0.0f, 0x1p-149f, -1.0f, -NAN}};
    const uint32_t expected[9] = {0x7fc00000u, 0x7fc00000u, 0x7fc00000u, 0x7f800000u, 0x7f800000u,
                                  0u,          2u,          0u,          0x7fc00000u};
    for (int v = 0; v < num_variants; v++) {
        uint32_t output[9];
        const struct moe_op_post_reorder op = {.num_tokens = 1,
                                               .top_k = 2,
                                               .hidden = 9,
                                               .dtype = MOE_DTYPE_FP32,
                                               .scaling = 1.0f,
                                               .rows = rows,
                                               .row_stride = 9,
                                               .num_rows = 2,
                                               .output = output,
                                               .output_stride = 9};
        kernel_run(&variants[v].kernels->post_reorder, &variants[v].tile, &op);
        assert_bits_equal(expected, output, 9, 4);
    }
}

/* The same in bf16, in whole groups of columns and behind them. */
static void special_values_are_canonical_in_bf16(void **state)
{
    (void)state;
    enum { HIDDEN = 75 };
    static const uint16_t values[] = {0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81, 0x3f80,
                                      0x8000, 0x0001, 0x7f7f, 0xff7f, 0xbf80};
    enum { NUM_VALUES = sizeof(values) / sizeof(values[0]) };
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_POST_REORDER, variants);
    uint16_t rows[NUM_VALUES][2][HIDDEN];
    uint16_t first[NUM_VALUES][HIDDEN];
    for (int64_t i = 0; i < NUM_VALUES * HIDDEN; i++) {
        rows[i / HIDDEN][0][i % HIDDEN] = values[i % NUM_VALUES];
        rows[i / HIDDEN][1][i % HIDDEN] = values[(i + i / HIDDEN) % NUM_VALUES];
    }
    for (int v = 0; v < NUM_MODES * num_variants; v++) {
        _Alignas(64) uint16_t output[NUM_VALUES][HIDDEN];
        const struct moe_op_post_reorder op = {.num_tokens = NUM_VALUES,
                                               .top_k = 2,
                                               .hidden = HIDDEN,
                                               .dtype = MOE_DTYPE_BF16,
                                               .scaling = 1.0f,
                                               .rows = rows,
                                               .row_stride = HIDDEN,
                                               .num_rows = 2 * NUM_VALUES,
                                               .token_stride = 2 * HIDDEN,
                                               .output = output,
                                               .output_stride = HIDDEN,
                                               .streams = v / num_variants / 2,
                                               .has_avx512 = mode_has_avx512(v / num_variants)};
        const struct kernel_variant *variant = &variants[v % num_variants];
        kernel_run(&variant->kernels->post_reorder, &variant->tile, &op);
        for (int64_t i = 0; i < NUM_VALUES * HIDDEN; i++) {
            const uint16_t got = output[i / HIDDEN][i % HIDDEN];
            assert_true((got & 0x7fff) <= 0x7f80 || got == 0x7fc0);
        }
        if (v == 0) {
            memcpy(first, output, sizeof(first));
            assert_int_equal(first[0][0], 0x7f80); /* infinity + infinity */
            assert_int_equal(first[0][3], 0x7fc0); /* NaN + NaN */
        }
        assert_bits_equal(first, output, NUM_VALUES * HIDDEN, 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(slots_are_added_in_order),
        cmocka_unit_test(special_values_are_canonical),
        cmocka_unit_test(special_values_are_canonical_in_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
