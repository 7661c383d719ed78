/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 240 */
/*
 * The GEMM's sums by dot products of bf16 pairs: the bits of all other tiles, with elements that it
 * takes and with those that it leaves to the ordinary way, and what it takes. Without AVX512_BF16
 * the tiles are compared all the same.
 */
#include "gemm_check.h"

#if MOE_HAVE_AVX2
int32_t moe_gemm_pairs_pack_row_avx2(uint16_t *to, const void *from, int32_t dtype, bool meets_fp8,
                                     int64_t k);
#endif

static struct gemm_shape make_shape(int64_t k, int64_t n, int64_t num_rows, int32_t input_dtype,
                                    int32_t weight_dtype)
{
    return (struct gemm_shape){
        .k = k,
        .n = n,
        .num_rows = num_rows,
        .input_dtype = input_dtype,
        .weight_dtype = weight_dtype,
        .output_dtype = MOE_DTYPE_FP32,
        .num_matrices = 2,
        .has_activation = k % 2 == 0,
        .act = {.activation = MOE_ACTIVATION_SILU},
        .weight_group = k % 3 == 0 ? 0 : 128,
        .input_group = input_dtype == MOE_DTYPE_FP8_E4M3 && k % 2 == 0 ? 128 : 0,
        .input_layout = input_dtype == MOE_DTYPE_FP8_E4M3 ? MOE_SCALE_ROW_MAJOR : 0,
        .spread = SPREAD_HOT,
        .seed = (uint64_t)(k + n + num_rows),
    };
}

/* All numbers of rows of a register tile, lines and blocks of columns that are not whole, more
 * columns than a chunk. */
static void test_sizes(void **state)
{
    (void)state;
    static const int64_t columns[] = {1, 8, 15, 16, 33, 64, 100, 128, 130, 255, 321, 768, 2310};
    static const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 29, 55};
    static const int32_t types[][2] = {{MOE_DTYPE_BF16, MOE_DTYPE_BF16},
                                       {MOE_DTYPE_BF16, MOE_DTYPE_FP8_E4M3},
                                       {MOE_DTYPE_FP8_E4M3, MOE_DTYPE_FP8_E4M3}};
    for (int t = 0; t < COUNT(types); t++) {
        for (int c = 0; c < COUNT(columns); c++) {
            for (int r = (c + t) % 2; r<COUNT(rows); r += columns[c]> 500 ? 4 : 2) {
                const int64_t n = 8 + 5 * (r % 3);
                const struct gemm_shape shape =
                    make_shape(columns[c], n, rows[r], types[t][0], types[t][1]);
                (void)check_shape(&shape);
            }
        }
    }
}

/* Elements at and below the smallest that are allowed, subnormals, and a large one. */
static void test_rare_elements(void **state)
{
    (void)state;
    static const double rare[] = {0x1p-48,  0x1.fcp-49, -0x1p-64, 0x1.fcp-65,
                                  0x1p-126, 0x1p-133,   -0.0,     0x1.fep+100};
    for (int i = 0; i < COUNT(rare); i++) {
        for (int r = 0; r < 3; r++) {
            struct gemm_shape shape =
                make_shape(300, 24, 1 + 8 * r, MOE_DTYPE_BF16, MOE_DTYPE_BF16);
            shape.has_activation = false;
            shape.rare_weight = rare[i];
            (void)check_shape(&shape);
            shape.rare_weight = 0.0;
            shape.rare_input = rare[i];
            (void)check_shape(&shape);
        }
    }
}

/* Several blocks of channels for the same rows: taken, left to the ordinary way, taken again. */
static void test_rows_of_several_blocks(void **state)
{
    (void)state;
    static const int64_t rows[] = {1, 3, 7, 12, 20};
    for (int r = 0; r < COUNT(rows); r++) {
        struct gemm_shape shape = make_shape(256, 328, rows[r], MOE_DTYPE_BF16, MOE_DTYPE_BF16);
        (void)check_shape(&shape);
        shape.has_activation = false;
        shape.rare_weight = 0x1p-133;
        shape.rare_every = 60013; /* in every third block of 64 channels or so */
        (void)check_shape(&shape);
        shape = make_shape(256, 328, rows[r], MOE_DTYPE_FP8_E4M3, MOE_DTYPE_FP8_E4M3);
        (void)check_shape(&shape);
    }
}

/* Sums of the smallest elements that are allowed, and of smaller ones, where many are subnormal. */
static void test_small_sums(void **state)
{
    (void)state;
    static const double from[][2] = {{0x1p-48, 0x1p-64}, {0x1p-96, 0x1p-16},  {0x1p-16, 0x1p-96},
                                     {0x1p-97, 0x1p-16}, {0x1p-16, 0x1p-97},  {0x1p+13, 0x1p-126},
                                     {0x1p-65, 0x1p-64}, {0x1p-116, 0x1p-16}, {0x1p-66, 0x1p-66}};
    for (int i = 0; i < COUNT(from); i++) {
        for (int r = 0; r < 3; r++) {
            struct gemm_shape shape =
                make_shape(300, 24, 2 + 8 * r, MOE_DTYPE_BF16, MOE_DTYPE_BF16);
            shape.has_activation = false;
            shape.weights_from = from[i][0];
            shape.inputs_from = from[i][1];
            (void)check_shape(&shape);
            shape.weights_from = shape.inputs_from = 0.0;
            shape.underflows = true;
            (void)check_shape(&shape);
        }
    }
}

/* The same where rows meet the smallest codes of fp8. */
static void test_small_rows_meet_fp8(void **state)
{
    (void)state;
    static const double from[] = {0x1p-64, 0x1p-72, 0x1p-110, 0x1p-111, 0x1p-118, 0x1p-126};
    for (int i = 0; i < COUNT(from); i++) {
        for (int r = 0; r < 3; r++) {
            struct gemm_shape shape =
                make_shape(300 + i % 2, 24, 2 + 8 * r, MOE_DTYPE_BF16, MOE_DTYPE_FP8_E4M3);
            shape.has_activation = false;
            shape.weights_from = 0x1p-9;
            shape.inputs_from = from[i];
            (void)check_shape(&shape);
        }
    }
}

/* A processor that has the instruction passes the trial: else all tests here would compare the
 * ordinary path with itself. */
static void test_is_taken(void **state)
{
    (void)state;
#if MOE_HAVE_AVX2
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) {
        skip();
    }
    assert_int_equal(moe_gemm_pairs_probe_avx2(), 1);
    assert_int_equal(moe_cpu_isa_has_avx512_bf16(), 1);
#else
    skip();
#endif
}

/* The smallest elements of rows. */
static void test_least_exponents(void **state)
{
    (void)state;
#if MOE_HAVE_AVX2
    static const struct {
        uint16_t bits;
        int32_t exponent, exponent_with_fp8;
    } elements[] = {
        {0x0000, 127, 135}, {0x8000, 127, 135}, {0x1f80, 63, 71}, /* 2^-64 */
        {0x9fff, 63, 71},   {0x1f7f, 62, 70},   {0x0080, 1, 9},     {0x8080, 1, 9},
        {0x007f, 0, 8},     {0x8001, 0, 2},     {0x0001, 0, 2}, /* 2^-133 */
        {0x7f80, 127, 135}, {0x7f7f, 127, 135}, {0xffc0, 127, 135},
    };
    if (!moe_cpu_isa_has_avx512_bf16()) {
        print_message("this processor has no AVX512_BF16, or it is turned off\n");
        skip();
    }
    for (int i = 0; i < COUNT(elements); i++) {
        for (int64_t k = 2; k <= 300; k += 13) {
            uint16_t from[300], to[320];
            for (int64_t j = 0; j < k; j++) {
                from[j] = 0x3f80;
            }
            from[(7 * k + i) % k] = elements[i].bits;
            assert_int_equal(moe_gemm_pairs_pack_row_avx2(to, from, MOE_DTYPE_BF16, false, k),
                             elements[i].exponent);
            assert_int_equal(moe_gemm_pairs_pack_row_avx2(to, from, MOE_DTYPE_BF16, true, k),
                             elements[i].exponent_with_fp8);
            memset(from, 0, sizeof(from));
            assert_int_equal(moe_gemm_pairs_pack_row_avx2(to, from, MOE_DTYPE_BF16, i % 2, k), 256);
        }
    }
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_rare_elements),
        cmocka_unit_test(test_rows_of_several_blocks),
        cmocka_unit_test(test_small_sums),
        cmocka_unit_test(test_small_rows_meet_fp8),
        cmocka_unit_test(test_is_taken),
        cmocka_unit_test(test_least_exponents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
