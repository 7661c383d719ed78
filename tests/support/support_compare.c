/* SPDX-License-Identifier: Apache-2.0 */
#include "support_compare.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

int64_t support_find_bit_difference(const void *expected, const void *actual, int64_t count,
                                    size_t element_bytes)
{
    const char *a = expected;
    const char *b = actual;
    for (int64_t i = 0; i < count; i++) {
        size_t at = (size_t)i * element_bytes;
        if (memcmp(a + at, b + at, element_bytes) != 0) {
            return i;
        }
    }
    return -1;
}

/* Where the arguments of a comparison of values come from. */
struct closeness {
    const double *expected;
    enum ref_dtype dtype;
    const void *actual;
    const double *tolerances;
    double rel_tolerance;
    double abs_tolerance;
};

static double tolerance_at(const struct closeness *closeness, int64_t i)
{
    if (closeness->tolerances != NULL) {
        return closeness->tolerances[i];
    }
    return closeness->abs_tolerance + closeness->rel_tolerance * fabs(closeness->expected[i]);
}

static bool is_outlier(const struct closeness *closeness, int64_t i)
{
    double expected = closeness->expected[i];
    double actual = ref_load(closeness->dtype, closeness->actual, i);
    if (isnan(expected) || isnan(actual)) {
        return isnan(expected) != isnan(actual);
    }
    if (isinf(expected) || isinf(actual)) {
        return expected != actual;
    }
    return !(fabs(actual - expected) <= tolerance_at(closeness, i));
}

int64_t support_find_outlier(const double *expected, enum ref_dtype dtype, const void *actual,
                             int64_t count, const double *tolerances, double rel_tolerance,
                             double abs_tolerance)
{
    struct closeness closeness = {expected,   dtype,         actual,
                                  tolerances, rel_tolerance, abs_tolerance};
    for (int64_t i = 0; i < count; i++) {
        if (is_outlier(&closeness, i)) {
            return i;
        }
    }
    return -1;
}

double support_relative_l2(const double *expected, enum ref_dtype dtype, const void *actual,
                           int64_t count)
{
    double difference = 0.0;
    double norm = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double d = ref_load(dtype, actual, i) - expected[i];
        difference += d * d;
        norm += expected[i] * expected[i];
    }
    if (difference == 0.0) {
        return 0.0;
    }
    double ratio = sqrt(difference) / sqrt(norm);
    return isnan(ratio) ? (double)INFINITY : ratio;
}

uint64_t support_hash(uint64_t hash, const void *bytes, size_t num_bytes)
{
    const unsigned char *at = bytes;
    for (size_t i = 0; i < num_bytes; i++) {
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static void print_element(const char *what, const void *array, int64_t idx, size_t element_bytes)
{
    const unsigned char *bytes = (const unsigned char *)array + (size_t)idx * element_bytes;
    print_error("  %s: 0x", what);
    for (size_t i = element_bytes; i > 0; i--) {
        print_error("%02x", bytes[i - 1]);
    }
    print_error("\n");
}

void support_assert_bits(const void *expected, const void *actual, int64_t count,
                         size_t element_bytes, const char *name, const char *file, int line)
{
    int64_t first = support_find_bit_difference(expected, actual, count, element_bytes);
    if (first < 0) {
        return;
    }
    int64_t num_different = 0;
    for (int64_t i = first; i < count; i++) {
        size_t at = (size_t)i * element_bytes;
        num_different +=
            memcmp((const char *)expected + at, (const char *)actual + at, element_bytes) != 0;
    }
    print_error("%s[%" PRId64 "]: bits differ (%" PRId64 " of %" PRId64 " elements)\n", name, first,
                num_different, count);
    print_element("expected", expected, first, element_bytes);
    print_element("actual  ", actual, first, element_bytes);
    _fail(file, line);
}

void support_assert_close(const double *expected, enum ref_dtype dtype, const void *actual,
                          int64_t count, const double *tolerances, double rel_tolerance,
                          double abs_tolerance, const char *name, const char *file, int line)
{
    struct closeness closeness = {expected,   dtype,         actual,
                                  tolerances, rel_tolerance, abs_tolerance};
    int64_t first = -1;
    int64_t num_outliers = 0;
    for (int64_t i = count; i > 0; i--) {
        if (is_outlier(&closeness, i - 1)) {
            first = i - 1;
            num_outliers++;
        }
    }
    if (num_outliers > 0) {
        print_error("%s[%" PRId64 "]: expected %.9g, actual %.9g, tolerance %.3g (%s; %" PRId64
                    " of %" PRId64 " elements are off)\n",
                    name, first, expected[first], ref_load(dtype, actual, first),
                    tolerance_at(&closeness, first), ref_dtype_name(dtype), num_outliers, count);
        _fail(file, line);
    }
}

void support_assert_l2(const double *expected, enum ref_dtype dtype, const void *actual,
                       int64_t count, double bound, const char *name, const char *file, int line)
{
    double error = support_relative_l2(expected, dtype, actual, count);
    if (!(error <= bound)) {
        print_error("%s: relative L2 error %.4g over %" PRId64 " elements exceeds %.4g\n", name,
                    error, count, bound);
        _fail(file, line);
    }
}
