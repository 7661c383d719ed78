/* SPDX-License-Identifier: Apache-2.0 */
/* Elements against the reference conversions: every 16-bit pattern, and values around every border
 * between two. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "element.h"
#include "moe_plugin.h"
#include "ref.h"

static const struct {
    int32_t dtype;
    enum ref_dtype ref;
} types[] = {{MOE_DTYPE_FP16, REF_F16}, {MOE_DTYPE_BF16, REF_BF16}};
enum { num_types = sizeof types / sizeof types[0], num_patterns = 1 << 16 };

static void loads_every_pattern(void **state)
{
    (void)state;
    for (int i = 0; i < num_types; ++i) {
        for (int64_t bits = 0; bits < num_patterns; ++bits) {
            const uint16_t pattern = (uint16_t)bits;
            const double expected = ref_load(types[i].ref, &pattern, 0);
            const double loaded = (double)moe_element_load(&pattern, types[i].dtype, 0);
            if (isnan(expected)) {
                assert_true(isnan(loaded));
            } else {
                assert_memory_equal(&loaded, &expected, sizeof loaded); /* the sign of zero too */
            }
        }
    }
}

static void expect_stored(int type, float value)
{
    uint16_t expected;
    uint16_t stored;
    ref_store(types[type].ref, &expected, 0, (double)value);
    moe_element_store(&stored, types[type].dtype, 0, value);
    assert_int_equal(stored, expected);
}

static void rounds_around_every_border(void **state)
{
    (void)state;
    for (int i = 0; i < num_types; ++i) {
        for (int64_t bits = 0; bits + 1 < num_patterns; ++bits) {
            const uint16_t pattern = (uint16_t)bits;
            const uint16_t next = (uint16_t)(bits + 1);
            const float value = moe_element_load(&pattern, types[i].dtype, 0);
            const float above = moe_element_load(&next, types[i].dtype, 0);
            if (!isfinite(value)) {
                continue;
            }
            expect_stored(i, value);
            /* Where `above` is infinite, the border is a step beyond the largest number. */
            const float border = isfinite(above)
                                     ? value + (above - value) / 2.0f
                                     : value * (1.0f + (float)ref_dtype_half_ulp(types[i].ref) / 2);
            expect_stored(i, border);
            expect_stored(i, nextafterf(border, INFINITY));
            expect_stored(i, nextafterf(border, -INFINITY));
        }
        expect_stored(i, INFINITY);
        expect_stored(i, -INFINITY);
        expect_stored(i, 65519.996f);
        expect_stored(i, 65520.0f);
        expect_stored(i, 3.4e38f);
        uint16_t stored;
        moe_element_store(&stored, types[i].dtype, 0, NAN);
        assert_true(isnan(moe_element_load(&stored, types[i].dtype, 0)));
    }
}

static void expect_fp8(float value)
{
    uint8_t expected;
    uint8_t stored;
    ref_store(REF_E4M3, &expected, 0, (double)value);
    moe_element_store(&stored, MOE_DTYPE_FP8_E4M3, 0, value);
    assert_int_equal(stored, expected);
}

/* Every pattern of fp8, and values around every border between two. */
static void fp8_is_as_the_reference_has_it(void **state)
{
    (void)state;
    for (int bits = 0; bits < 1 << 8; ++bits) {
        const uint8_t pattern = (uint8_t)bits;
        const double expected = ref_load(REF_E4M3, &pattern, 0);
        const double loaded = (double)moe_element_load(&pattern, MOE_DTYPE_FP8_E4M3, 0);
        if (isnan(expected)) {
            assert_true(isnan(loaded));
            continue;
        }
        assert_memory_equal(&loaded, &expected, sizeof loaded); /* the sign of zero too */
        const uint8_t next = (uint8_t)(bits + 1);
        const float above = moe_element_load(&next, MOE_DTYPE_FP8_E4M3, 0);
        const float border = isfinite(above) && bits != 0x7f
                                 ? (float)loaded + (above - (float)loaded) / 2.0f
                                 : (float)loaded * 1.04f;
        expect_fp8((float)loaded);
        expect_fp8(border);
        expect_fp8(nextafterf(border, INFINITY));
        expect_fp8(nextafterf(border, -INFINITY));
    }
    expect_fp8(INFINITY);
    expect_fp8(-INFINITY);
    expect_fp8(3.4e38f);
    uint8_t stored;
    moe_element_store(&stored, MOE_DTYPE_FP8_E4M3, 0, NAN);
    assert_int_equal(stored & 0x7f, 0x7f);
}

/* At an odd address, in the middle of an array. */
static void arrays_need_not_be_aligned(void **state)
{
    (void)state;
    const int32_t dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16, MOE_DTYPE_FP8_E4M3};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; ++i) {
        unsigned char bytes[32];
        memset(bytes, 0xa5, sizeof bytes);
        moe_element_store(bytes + 1, dtypes[i], 2, 1.5f);
        assert_true(moe_element_load(bytes + 1, dtypes[i], 2) == 1.5f);
        const size_t first = 1 + 2 * moe_element_bytes(dtypes[i]);
        for (size_t j = 0; j < sizeof bytes; ++j) {
            if (j < first || j >= first + moe_element_bytes(dtypes[i])) {
                assert_int_equal(bytes[j], 0xa5);
            }
        }
    }
    assert_int_equal(moe_element_bytes(MOE_DTYPE_INT4), 0);
}

static void random_numbers_are_normal_and_seeded(void **state)
{
    (void)state;
    enum { num_numbers = 100000 };
    float *numbers = calloc(num_numbers, sizeof *numbers);
    float *others = calloc(num_numbers, sizeof *others);
    assert_true(numbers != NULL && others != NULL);
    moe_element_fill_normal(numbers, MOE_DTYPE_FP32, num_numbers, 1);
    double sum = 0.0;
    double squares = 0.0;
    int num_within_one = 0;
    for (int i = 0; i < num_numbers; ++i) {
        sum += (double)numbers[i];
        squares += (double)numbers[i] * (double)numbers[i];
        num_within_one += fabsf(numbers[i]) < 1.0f;
    }
    assert_true(fabs(sum / num_numbers) < 0.02);
    assert_true(fabs(squares / num_numbers - 1.0) < 0.03);
    assert_true(fabs((double)num_within_one / num_numbers - 0.6827) < 0.01);
    moe_element_fill_normal(others, MOE_DTYPE_FP32, num_numbers, 1);
    assert_memory_equal(numbers, others, num_numbers * sizeof *numbers);
    moe_element_fill_normal(others, MOE_DTYPE_FP32, num_numbers, 2);
    assert_memory_not_equal(numbers, others, num_numbers * sizeof *numbers);
    free(numbers);
    free(others);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_every_pattern),
        cmocka_unit_test(rounds_around_every_border),
        cmocka_unit_test(fp8_is_as_the_reference_has_it),
        cmocka_unit_test(arrays_need_not_be_aligned),
        cmocka_unit_test(random_numbers_are_normal_and_seeded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
