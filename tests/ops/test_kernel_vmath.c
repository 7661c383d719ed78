/* SPDX-License-Identifier: Apache-2.0 */
/* The portable lane functions against the C library in double, over the whole range of fp32. That
 * the AVX2 build gives the same bits is test_kernel_activation's and test_kernel_convert's matter.
 */
#include "vmath.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct moe_vec8 lane_fn(struct moe_vec8 x);
typedef double exact_fn(double x);

static double exact_logistic(double x)
{
    return x >= 0.0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x));
}

static double exact_normal_cdf(double x)
{
    return 0.5 * erfc(-x * 0.70710678118654752440);
}

static double exact_one_plus_exp_neg(double x)
{
    return 1.0 + exp(-x);
}

/* One unit in the last place of a float near `value`. */
static double unit_of(double value)
{
    int exponent = 0;
    if (fabs(value) < 0x1p-126) {
        return 0x1p-149;
    }
    frexp(value, &exponent);
    return ldexp(1.0, exponent - 24);
}

static void check_lane(const char *name, exact_fn *exact_value, double max_ulp, float x, float y)
{
    if (isnan(x)) {
        assert_true(isnan(y));
        return;
    }
    const double exact = exact_value((double)x);
    if (exact >= 0x1.ffffffp127) { /* rounds to infinity */
        assert_true(isinf(y) && y > 0.0f);
        return;
    }
    const double error = fabs((double)y - exact) / unit_of(exact);
    if (!(error <= max_ulp)) {
        fail_msg("%s(%a) = %a, exactly %a: %.2f ulp, at most %.2f allowed", name, (double)x,
                 (double)y, exact, error, max_ulp);
    }
}

static void sweep(const char *name, lane_fn *function, exact_fn *exact, double max_ulp)
{
    const uint32_t step = MOE_TEST_SANITIZED ? 8191 * 16 : 8191; /* a prime: all low bits occur */
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += (uint64_t)step * MOE_VEC8_LANES) {
        float x[MOE_VEC8_LANES];
        float y[MOE_VEC8_LANES];
        for (uint32_t l = 0; l < MOE_VEC8_LANES; l++) {
            x[l] = moe_float_from_bits((uint32_t)bits + l * step);
        }
        moe_vec8_store(y, function(moe_vec8_load(x)));
        for (int l = 0; l < MOE_VEC8_LANES; l++) {
            check_lane(name, exact, max_ulp, x[l], y[l]);
        }
    }
    for (int i = -1200000; i <= 1200000; i += MOE_VEC8_LANES) { /* where the values are used */
        float x[MOE_VEC8_LANES];
        float y[MOE_VEC8_LANES];
        for (int l = 0; l < MOE_VEC8_LANES; l++) {
            x[l] = (float)(i + l) * 1e-4f;
        }
        moe_vec8_store(y, function(moe_vec8_load(x)));
        for (int l = 0; l < MOE_VEC8_LANES; l++) {
            check_lane(name, exact, max_ulp, x[l], y[l]);
        }
    }
}

static void exp_is_within_its_bound(void **state)
{
    (void)state;
    sweep("exp", moe_vmath_exp, exp, 1.5);
}

static void logistic_is_within_its_bound(void **state)
{
    (void)state;
    sweep("logistic", moe_vmath_logistic, exact_logistic, 3.0);
}

static void one_plus_exp_neg_is_within_its_bound(void **state)
{
    (void)state;
    sweep("one_plus_exp_neg", moe_vmath_one_plus_exp_neg, exact_one_plus_exp_neg, 5.6);
    for (int i = -12 * 8192; i <= 12 * 8192; i += MOE_VEC8_LANES) {
        float x[MOE_VEC8_LANES];
        float y[MOE_VEC8_LANES];
        for (int l = 0; l < MOE_VEC8_LANES; l++) {
            x[l] = (float)(i + l) * 0x1p-13f;
        }
        moe_vec8_store(y, moe_vmath_one_plus_exp_neg(moe_vec8_load(x)));
        for (int l = 0; l < MOE_VEC8_LANES; l++) {
            check_lane("one_plus_exp_neg", exact_one_plus_exp_neg, 2.6, x[l], y[l]);
        }
    }
}

static void normal_cdf_is_within_its_bound(void **state)
{
    (void)state;
    sweep("normal_cdf", moe_vmath_normal_cdf, exact_normal_cdf, 5.5);
}

static void special_arguments_are_exact(void **state)
{
    (void)state;
    const float x[MOE_VEC8_LANES] = {0.0f,    -0.0f,    INFINITY, -INFINITY,
                                     1000.0f, -1000.0f, NAN,      0x1p-149f};
    const float exp_values[] = {1.0f, 1.0f, INFINITY, 0.0f, INFINITY, 0.0f, NAN, 1.0f};
    const float halves[] = {0.5f, 0.5f, 1.0f, 0.0f, 1.0f, 0.0f, NAN, 0.5f};
    const float denominators[] = {2.0f, 2.0f, 1.0f, INFINITY, 1.0f, INFINITY, NAN, 2.0f};
    const float *const expected_values[] = {exp_values, halves, halves, denominators};
    float y[4][MOE_VEC8_LANES];
    moe_vec8_store(y[0], moe_vmath_exp(moe_vec8_load(x)));
    moe_vec8_store(y[1], moe_vmath_logistic(moe_vec8_load(x)));
    moe_vec8_store(y[2], moe_vmath_normal_cdf(moe_vec8_load(x)));
    moe_vec8_store(y[3], moe_vmath_one_plus_exp_neg(moe_vec8_load(x)));
    for (int l = 0; l < MOE_VEC8_LANES; l++) {
        for (int f = 0; f < 4; f++) {
            const float expected = expected_values[f][l];
            assert_true(isnan(expected) ? isnan(y[f][l]) : y[f][l] == expected);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_its_bound),
        cmocka_unit_test(logistic_is_within_its_bound),
        cmocka_unit_test(one_plus_exp_neg_is_within_its_bound),
        cmocka_unit_test(normal_cdf_is_within_its_bound),
        cmocka_unit_test(special_arguments_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
