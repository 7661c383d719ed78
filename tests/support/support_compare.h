/* SPDX-License-Identifier: Apache-2.0 */
/* Comparisons that say where and what: a failure prints the first bad index, both values, and how
 * many differ. */
#ifndef MOE_TESTS_SUPPORT_COMPARE_H
#define MOE_TESTS_SUPPORT_COMPARE_H

#include "ref.h"

#include <stddef.h>
#include <stdint.h>

/* First index at which two arrays of count elements of element_bytes differ in a bit, or -1. */
int64_t support_find_bit_difference(const void *expected, const void *actual, int64_t count,
                                    size_t element_bytes);

/* First index at which |actual - expected| > tolerance[i], or -1. Tolerances come from
 * tolerances[i], or, where that is NULL, are abs_tolerance + rel_tolerance * |expected|. NaN equals
 * only NaN, an infinity only itself. */
int64_t support_find_outlier(const double *expected, enum ref_dtype dtype, const void *actual,
                             int64_t count, const double *tolerances, double rel_tolerance,
                             double abs_tolerance);

/* ||actual - expected|| / ||expected||; 0 if both are zero, infinity if only expected is zero or a
 * value is NaN. */
double support_relative_l2(const double *expected, enum ref_dtype dtype, const void *actual,
                           int64_t count);

/* FNV-1a, 64 bits. Continue a hash by passing the previous result; start with SUPPORT_HASH_INIT. */
#define SUPPORT_HASH_INIT UINT64_C(0xcbf29ce484222325)
uint64_t support_hash(uint64_t hash, const void *bytes, size_t num_bytes);

/* cmocka assertions over the above. */
#define assert_bits_equal(expected, actual, count, element_bytes) \
    support_assert_bits((expected), (actual), (count), (element_bytes), #actual, __FILE__, __LINE__)
#define assert_all_within(expected, tolerances, dtype, actual, count)                             \
    support_assert_close((expected), (dtype), (actual), (count), (tolerances), 0.0, 0.0, #actual, \
                         __FILE__, __LINE__)
#define assert_all_close(expected, dtype, actual, count, rel, abs)                            \
    support_assert_close((expected), (dtype), (actual), (count), NULL, (rel), (abs), #actual, \
                         __FILE__, __LINE__)
#define assert_relative_l2(expected, dtype, actual, count, bound) \
    support_assert_l2((expected), (dtype), (actual), (count), (bound), #actual, __FILE__, __LINE__)

void support_assert_bits(const void *expected, const void *actual, int64_t count,
                         size_t element_bytes, const char *name, const char *file, int line);
void support_assert_close(const double *expected, enum ref_dtype dtype, const void *actual,
                          int64_t count, const double *tolerances, double rel_tolerance,
                          double abs_tolerance, const char *name, const char *file, int line);
void support_assert_l2(const double *expected, enum ref_dtype dtype, const void *actual,
                       int64_t count, double bound, const char *name, const char *file, int line);

#endif
