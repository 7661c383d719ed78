/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions against the compiler's own types and against bit arithmetic; error bounds against
 * fp32 sums in the worst order. */
#include "ref.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static bool same_value(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 11;
}

static void test_bf16_all_patterns(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        uint16_t pattern = (uint16_t)bits;
        double expected = (double)float_from_bits(bits << 16);
        double value = ref_load(REF_BF16, &pattern, 0);
        assert_true(same_value(value, expected));
        assert_true(same_value(ref_round(REF_BF16, value), value));
        uint16_t stored = 0;
        ref_store(REF_BF16, &stored, 0, value);
        assert_int_equal(stored, isnan(value) ? 0x7FC0 : pattern);
    }
}

/* Every fp32 value next to, and half way between, two bf16 values: rounding by integer addition. */
static void test_bf16_rounding(void **state)
{
    (void)state;
    const uint32_t lows[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
    for (uint32_t high = 0; high < 65536; high++) {
        for (size_t i = 0; i < sizeof lows / sizeof lows[0]; i++) {
            uint32_t bits = (high << 16) | lows[i];
            float value = float_from_bits(bits);
            if (isnan(value)) {
                continue;
            }
            uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
            assert_true(
                same_value(ref_round(REF_BF16, (double)value), (double)float_from_bits(rounded)));
        }
    }
}

/* fp16 from the definition: 1 sign, 5 exponent, 10 fraction bits, by powers of two. */
static double half_from_bits(uint16_t bits)
{
    int exponent = (bits >> 10) & 31;
    double fraction = (double)(bits & 1023) / 1024.0;
    double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == 31) {
        return fraction > 0.0 ? (double)NAN : sign * (double)INFINITY;
    }
    return exponent == 0 ? sign * fraction * pow(2.0, -14.0)
                         : sign * (1.0 + fraction) * pow(2.0, exponent - 15.0);
}

static void test_f16_all_patterns(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        uint16_t pattern = (uint16_t)bits;
        double value = ref_load(REF_F16, &pattern, 0);
        assert_true(same_value(value, half_from_bits(pattern)));
        uint16_t stored = 0;
        ref_store(REF_F16, &stored, 0, value);
        assert_int_equal(stored, isnan(value) ? 0x7E00 : pattern);
    }
}

/* Between every two neighbours: the middle goes to the even one, anything else to the nearer. */
static void test_f16_rounding(void **state)
{
    (void)state;
    for (uint16_t bits = 0; bits < 0x7BFF; bits++) {
        double below = half_from_bits(bits);
        double above = half_from_bits((uint16_t)(bits + 1));
        double middle = (below + above) / 2.0;
        double even = (bits & 1) == 0 ? below : above;
        assert_true(ref_round(REF_F16, middle) == even);
        assert_true(ref_round(REF_F16, -middle) == -even);
        assert_true(ref_round(REF_F16, nextafter(middle, below)) == below);
        assert_true(ref_round(REF_F16, nextafter(middle, above)) == above);
    }
    assert_true(ref_round(REF_F16, nextafter(65520.0, 0.0)) == 65504.0);
    assert_true(isinf(ref_round(REF_F16, 65520.0)));
}

static void test_f32_against_casts(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < 300000; i++) {
        /* All exponents of float and some beyond, subnormals and overflow included. */
        double mantissa = 1.0 + (double)next_random(&seed) * 0x1p-53;
        double value = ldexp(mantissa, (int)(next_random(&seed) % 290) - 155);
        value = (next_random(&seed) & 1) != 0 ? -value : value;
        float expected = (float)value;
        assert_true(same_value(ref_round(REF_F32, value), (double)expected));
        uint32_t stored = 0;
        ref_store(REF_F32, &stored, 0, value);
        assert_int_equal(stored, bits_from_float(expected));
        assert_true(same_value(ref_load(REF_F32, &stored, 0), (double)expected));
    }
}

static void test_e4m3_all_patterns(void **state)
{
    (void)state;
    double previous = -1.0;
    for (int bits = 0; bits < 128; bits++) {
        unsigned char pattern = (unsigned char)bits;
        double value = ref_load(REF_E4M3, &pattern, 0);
        if (bits == 127) {
            assert_true(isnan(value));
            continue;
        }
        double expected = bits < 8 ? bits * 0x1p-9 : ldexp(8 + bits % 8, bits / 8 - 10);
        assert_true(value == expected);
        assert_true(value > previous);
        if (bits > 0) {
            double middle = (previous + value) / 2.0;
            assert_true(ref_round(REF_E4M3, middle) == (bits % 2 == 0 ? value : previous));
        }
        unsigned char stored = 0;
        ref_store(REF_E4M3, &stored, 0, -value);
        assert_int_equal(stored, bits | 128);
        previous = value;
    }
    assert_true(previous == 448.0);
    assert_true(ref_round(REF_E4M3, 1e9) == 448.0);
    assert_true(ref_round(REF_E4M3, -(double)INFINITY) == -448.0);
    assert_true(isnan(ref_round(REF_E4M3, (double)NAN)));
}

static void test_f64_is_untouched(void **state)
{
    (void)state;
    const double values[] = {0.1, -0.0, 5e-324, DBL_MAX, (double)INFINITY, 1.0 / 3.0};
    double stored[6];
    ref_store_all(REF_F64, stored, 6, values);
    assert_memory_equal(stored, values, sizeof values);
    double loaded[6];
    ref_load_all(REF_F64, stored, 6, loaded);
    assert_memory_equal(loaded, values, sizeof values);
}

/* Sums of products in fp32, in one chain, stay inside the bound; the bound is not vacuous: one
 * product left out, or one rounding to bf16 on the way, leaves it. */
static void test_gemm_tolerance(void **state)
{
    (void)state;
    enum { K = 200 };
    uint64_t seed = 7;
    int num_detected = 0;
    for (int trial = 0; trial < 2000; trial++) {
        float chain = 0.0f;
        double exact = 0.0;
        double sum_abs = 0.0;
        double left_out = 0.0;
        for (int k = 0; k < K; k++) {
            double a = ref_round(REF_BF16, (double)(next_random(&seed) % 2000) / 1000.0 - 1.0);
            double b = ref_round(REF_BF16, (double)(next_random(&seed) % 2000) / 1000.0 - 1.0);
            chain += (float)(a * b);
            exact += a * b;
            sum_abs += fabs(a * b);
            left_out = a * b;
        }
        double tolerance = ref_gemm_tolerance(K, REF_BF16, REF_F32, sum_abs, exact);
        assert_true(fabs((double)chain - exact) <= tolerance);
        double loose = ref_gemm_tolerance(K, REF_BF16, REF_BF16, sum_abs, exact);
        assert_true(fabs(ref_round(REF_BF16, (double)chain) - exact) <= loose);
        num_detected += fabs(left_out) > 2.0 * tolerance;
    }
    assert_true(num_detected > 1900);
}

static void test_rounding_tolerance(void **state)
{
    (void)state;
    assert_true(ref_rounding_tolerance(REF_BF16, 1.0) == 0x1p-8);
    assert_true(ref_rounding_tolerance(REF_BF16, 1.99) == 0x1p-8);
    assert_true(ref_rounding_tolerance(REF_BF16, -2.0) == 0x1p-7);
    assert_true(ref_rounding_tolerance(REF_F16, 0.0) == 0x1p-25);
    assert_true(ref_rounding_tolerance(REF_E4M3, 0x1p-20) == 0x1p-10);
    assert_true(ref_dtype_half_ulp(REF_F32) == 0x1p-24);
    assert_int_equal(ref_dtype_bytes(REF_BF16), 2);
    assert_string_equal(ref_dtype_name(REF_E4M3), "e4m3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_all_patterns),  cmocka_unit_test(test_bf16_rounding),
        cmocka_unit_test(test_f16_all_patterns),   cmocka_unit_test(test_f16_rounding),
        cmocka_unit_test(test_f32_against_casts),  cmocka_unit_test(test_e4m3_all_patterns),
        cmocka_unit_test(test_f64_is_untouched),   cmocka_unit_test(test_gemm_tolerance),
        cmocka_unit_test(test_rounding_tolerance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
