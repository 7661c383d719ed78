/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conversions, from the definition of a binary format: a sign, exponent_bits of exponent with a
 * bias, mantissa_bits of fraction. One code path for all formats, in exact double arithmetic.
 */
#include "ref.h"
#include "ref_require.h"

#include <math.h>
#include <string.h>

struct format {
    const char *name;
    size_t bytes;
    int mantissa_bits;
    int bias; /* also the largest exponent, except in e4m3 */
    double max_finite;
    bool has_infinity; /* otherwise conversion saturates and all ones is NaN */
};

static const struct format formats[] = {
    [REF_F64] = {"f64", 8, 52, 1023, 0x1.fffffffffffffp1023, true},
    [REF_F32] = {"f32", 4, 23, 127, 0x1.fffffep127, true},
    [REF_F16] = {"f16", 2, 10, 15, 65504.0, true},
    [REF_BF16] = {"bf16", 2, 7, 127, 0x1.fep127, true},
    [REF_E4M3] = {"e4m3", 1, 3, 7, 448.0, false},
};

static const struct format *format_of(enum ref_dtype dtype)
{
    ref_require((size_t)dtype < sizeof formats / sizeof formats[0], "unknown dtype");
    return &formats[dtype];
}

size_t ref_dtype_bytes(enum ref_dtype dtype)
{
    return format_of(dtype)->bytes;
}

const char *ref_dtype_name(enum ref_dtype dtype)
{
    return format_of(dtype)->name;
}

double ref_dtype_half_ulp(enum ref_dtype dtype)
{
    return ldexp(0.5, -format_of(dtype)->mantissa_bits);
}

/* Exponent of the last mantissa bit of a finite value: neighbours differ by 2^quantum. */
static int quantum_of(const struct format *format, double value)
{
    int least = 1 - format->bias;
    int exponent = least;
    if (value != 0.0) {
        frexp(value, &exponent); /* of a fraction in [0.5, 1) */
        exponent--;
    }
    return (exponent > least ? exponent : least) - format->mantissa_bits;
}

double ref_round(enum ref_dtype dtype, double value)
{
    const struct format *format = format_of(dtype);
    if (dtype == REF_F64 || isnan(value)) {
        return value;
    }
    if (isinf(value)) {
        return format->has_infinity ? value : copysign(format->max_finite, value);
    }
    int quantum = quantum_of(format, value);
    double steps = ldexp(fabs(value), -quantum);
    double below = floor(steps);
    double rest = steps - below;
    bool odd = ((uint64_t)below & 1) != 0;
    if (rest > 0.5 || (rest == 0.5 && odd)) {
        below += 1.0;
    }
    double rounded = ldexp(below, quantum);
    if (rounded > format->max_finite) {
        rounded = format->has_infinity ? (double)INFINITY : format->max_finite;
    }
    return copysign(rounded, value);
}

/* The sign follows the exponent's bits, which hold 0 .. 2 bias + 1. */
static uint64_t sign_bit_of(const struct format *format)
{
    return (UINT64_C(2) * (uint64_t)format->bias + 2) << format->mantissa_bits;
}

/* Bits of a value that the format represents. */
static uint64_t encode(const struct format *format, double value)
{
    uint64_t sign = signbit(value) ? sign_bit_of(format) : 0;
    uint64_t infinity = (UINT64_C(2) * (uint64_t)format->bias + 1) << format->mantissa_bits;
    uint64_t fraction_end = UINT64_C(1) << format->mantissa_bits;
    if (isnan(value)) {
        return format->has_infinity ? infinity + fraction_end / 2 : infinity + fraction_end - 1;
    }
    if (isinf(value)) {
        return sign | infinity;
    }
    int quantum = quantum_of(format, value);
    uint64_t steps = (uint64_t)ldexp(fabs(value), -quantum);
    if (steps < fraction_end) {
        return sign | steps;
    }
    int exponent_field = quantum + format->mantissa_bits + format->bias;
    return sign | ((uint64_t)exponent_field << format->mantissa_bits) | (steps - fraction_end);
}

static double decode(const struct format *format, uint64_t bits)
{
    uint64_t sign_bit = sign_bit_of(format);
    uint64_t fraction_end = UINT64_C(1) << format->mantissa_bits;
    uint64_t magnitude = bits & (sign_bit - 1);
    uint64_t fraction = magnitude % fraction_end;
    int exponent_field = (int)(magnitude / fraction_end);
    int last_field = 2 * format->bias + 1;
    double value;
    if (format->has_infinity && exponent_field == last_field) {
        value = fraction == 0 ? (double)INFINITY : (double)NAN;
    } else if (!format->has_infinity && magnitude == sign_bit - 1) {
        value = (double)NAN;
    } else if (exponent_field == 0) {
        value = ldexp((double)fraction, 1 - format->bias - format->mantissa_bits);
    } else {
        value = ldexp((double)(fraction_end + fraction),
                      exponent_field - format->bias - format->mantissa_bits);
    }
    return (bits & sign_bit) != 0 ? -value : value;
}

double ref_load(enum ref_dtype dtype, const void *array, int64_t idx)
{
    const struct format *format = format_of(dtype);
    const unsigned char *bytes = (const unsigned char *)array + (size_t)idx * format->bytes;
    uint64_t bits = 0;
    for (size_t i = 0; i < format->bytes; i++) {
        bits |= (uint64_t)bytes[i] << (8 * i);
    }
    return decode(format, bits);
}

void ref_store(enum ref_dtype dtype, void *array, int64_t idx, double value)
{
    const struct format *format = format_of(dtype);
    unsigned char *bytes = (unsigned char *)array + (size_t)idx * format->bytes;
    uint64_t bits = encode(format, ref_round(dtype, value));
    for (size_t i = 0; i < format->bytes; i++) {
        bytes[i] = (unsigned char)(bits >> (8 * i));
    }
}

void ref_load_all(enum ref_dtype dtype, const void *array, int64_t count, double *values)
{
    for (int64_t i = 0; i < count; i++) {
        values[i] = ref_load(dtype, array, i);
    }
}

void ref_store_all(enum ref_dtype dtype, void *array, int64_t count, const double *values)
{
    for (int64_t i = 0; i < count; i++) {
        ref_store(dtype, array, i, values[i]);
    }
}

void ref_round_all(enum ref_dtype dtype, double *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        values[i] = ref_round(dtype, values[i]);
    }
}

double ref_rounding_tolerance(enum ref_dtype dtype, double value)
{
    if (!isfinite(value)) {
        return 0.0;
    }
    return ldexp(0.5, quantum_of(format_of(dtype), value));
}

double ref_gemm_tolerance(int64_t num_additions, enum ref_dtype dtype_in, enum ref_dtype dtype_out,
                          double sum_abs, double value)
{
    int64_t num_roundings = num_additions + (dtype_in == REF_F32 || dtype_in == REF_F64 ? 1 : 0);
    double n_u = (double)num_roundings * ref_dtype_half_ulp(REF_F32);
    ref_require(n_u < 1.0, "the sum is too long for the error bound");
    double accumulation = n_u / (1.0 - n_u) * sum_abs + ldexp((double)num_roundings, -150);
    return accumulation + ref_rounding_tolerance(dtype_out, fabs(value) + accumulation);
}
