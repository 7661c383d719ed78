/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scalars to numbers. Decimal to double is done here and exactly, in integers: strtod reads the
 * locale, which a host may change at any time, and depends on the rounding mode.
 */
#include "tree_text.h"

#include <string.h>

/* More digits than these cannot change a rounded double; that some were not zero can. */
enum { MAX_DIGITS = 800 };

/* A decimal number 0.d0 d1 d2 ... x 10^point without leading or trailing zeros. */
struct decimal {
    unsigned num_digits;
    int is_truncated; /* digits other than zero were left off behind the last */
    int64_t point;
    unsigned char digits[MAX_DIGITS];
};

enum {
    MAX_SHIFT = 59,         /* ten times 2^59 still fits 64 bits */
    MANTISSA_BITS = 53,     /* of a double, the leading one included */
    LEAST_EXPONENT = -1021, /* of a normal double written as m x 2^e with 0.5 <= m < 1 */
    GREATEST_EXPONENT = 1024
};

static void trim_zeros(struct decimal *number)
{
    while (number->num_digits > 0 && number->digits[number->num_digits - 1] == 0) {
        number->num_digits--;
    }
}

static void append_digit(struct decimal *number, unsigned digit)
{
    if (number->num_digits < MAX_DIGITS) {
        number->digits[number->num_digits++] = (unsigned char)digit;
    } else if (digit != 0) {
        number->is_truncated = 1;
    }
}

/* The exponent after `e`; beyond any that matters it only has to stay beyond. */
static int64_t read_exponent(const char *text, size_t text_bytes)
{
    const int64_t beyond = (int64_t)1 << 50;
    int is_negative = text_bytes > 0 && text[0] == '-';
    size_t at = text_bytes > 0 && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    int64_t exponent = 0;

    for (; at < text_bytes; at++) {
        if (exponent < beyond) {
            exponent = exponent * 10 + (text[at] - '0');
        }
    }
    return is_negative ? -exponent : exponent;
}

/* Reads a number whose form has been checked; its sign is skipped. */
static void read_decimal(struct decimal *number, const char *text, size_t text_bytes)
{
    int is_fraction = 0;

    number->num_digits = 0;
    number->is_truncated = 0;
    number->point = 0;
    for (size_t at = text[0] == '-' ? 1 : 0; at < text_bytes; at++) {
        if (text[at] == '.') {
            is_fraction = 1;
        } else if (text[at] == 'e' || text[at] == 'E') {
            number->point += read_exponent(text + at + 1, text_bytes - at - 1);
            break;
        } else if (text[at] == '0' && number->num_digits == 0) {
            number->point -= is_fraction; /* a leading zero is not stored */
        } else {
            append_digit(number, (unsigned)(text[at] - '0'));
            number->point += !is_fraction;
        }
    }
    trim_zeros(number);
}

/* Multiplies by 2^shift, shift from 1 to MAX_SHIFT. */
static void shift_up(struct decimal *number, unsigned shift)
{
    enum { NUM_EXTRA = 20 }; /* decimal digits of 2^59 and a carry */
    unsigned char product[MAX_DIGITS + NUM_EXTRA];
    unsigned at = number->num_digits + NUM_EXTRA;
    unsigned end = at;
    uint64_t carry = 0;

    for (unsigned i = number->num_digits; i-- > 0;) {
        carry += (uint64_t)number->digits[i] << shift;
        product[--at] = (unsigned char)(carry % 10);
        carry /= 10;
    }
    for (; carry > 0; carry /= 10) {
        product[--at] = (unsigned char)(carry % 10);
    }
    number->point += (int64_t)(end - at) - (int64_t)number->num_digits;
    number->num_digits = 0;
    for (; at < end; at++) {
        append_digit(number, product[at]);
    }
    trim_zeros(number);
}

/* Divides by 2^shift, shift from 1 to MAX_SHIFT. */
static void shift_down(struct decimal *number, unsigned shift)
{
    const uint64_t mask = ((uint64_t)1 << shift) - 1;
    unsigned num_read = 0;
    unsigned num_digits = number->num_digits;
    uint64_t rest = 0;

    while (num_digits > 0 && rest >> shift == 0) {
        rest = rest * 10 + (num_read < num_digits ? number->digits[num_read] : 0);
        num_read++;
    }
    number->point -= (int64_t)num_read - 1;
    number->num_digits = 0; /* digits are written behind the place they are read from */
    while (num_digits > 0 && (num_read < num_digits || rest > 0)) {
        append_digit(number, (unsigned)(rest >> shift));
        rest = (rest & mask) * 10;
        if (num_read < num_digits) {
            rest += number->digits[num_read++];
        }
    }
    trim_zeros(number);
}

/* The greatest n with 2^n <= 10^power, at most MAX_SHIFT. */
static unsigned bits_of_power(int64_t power)
{
    static const unsigned char bits[] = {0,  3,  6,  9,  13, 16, 19, 23, 26,
                                         29, 33, 36, 39, 43, 46, 49, 53, 56};

    return power < (int64_t)sizeof bits ? bits[power] : MAX_SHIFT;
}

/* Scales to 0.5 <= number < 1 and returns e, where the value was number x 2^e. */
static int scale_to_half(struct decimal *number)
{
    int exponent = 0;

    while (number->point > 0) {
        unsigned shift = bits_of_power(number->point);

        shift_down(number, shift);
        exponent += (int)shift;
    }
    while (number->point < 0 || number->digits[0] < 5) {
        unsigned shift = number->point < 0 ? bits_of_power(-number->point) : 1;

        shift_up(number, shift);
        exponent -= (int)shift;
    }
    return exponent;
}

/* The nearest integer, ties to even, of a number below 2^53. */
static uint64_t round_to_integer(const struct decimal *number)
{
    uint64_t integer = 0;
    int64_t at = 0;

    if (number->point < 0) {
        return 0; /* below 0.1 */
    }
    for (; at < number->point; at++) {
        integer = integer * 10 + (at < (int64_t)number->num_digits ? number->digits[at] : 0);
    }
    if (at >= (int64_t)number->num_digits) {
        return integer;
    }
    if (number->digits[at] == 5 && at + 1 == (int64_t)number->num_digits && !number->is_truncated) {
        return integer + (integer & 1);
    }
    return integer + (number->digits[at] >= 5);
}

/* The bits of the nearest double of a positive number; 0 if it is out of range. */
static uint64_t round_to_double_bits(struct decimal *number)
{
    const uint64_t hidden_bit = (uint64_t)1 << (MANTISSA_BITS - 1);
    uint64_t mantissa;
    int exponent;

    if (number->point > 310 || number->point < -330) {
        return 0;
    }
    exponent = scale_to_half(number);
    for (; exponent < LEAST_EXPONENT && number->num_digits > 0; exponent++) {
        shift_down(number, 1);
    }
    if (number->num_digits == 0) {
        return 0;
    }
    shift_up(number, MANTISSA_BITS);
    mantissa = round_to_integer(number);
    if (mantissa == hidden_bit << 1) {
        mantissa = hidden_bit;
        exponent++;
    }
    if (exponent > GREATEST_EXPONENT) {
        return 0;
    }
    if (mantissa < hidden_bit) {
        return mantissa; /* subnormal */
    }
    return (uint64_t)(exponent - LEAST_EXPONENT + 1) << (MANTISSA_BITS - 1) |
           (mantissa & (hidden_bit - 1));
}

static int is_plain_scalar(const struct moe_tree_node *node)
{
    return node != NULL && node->kind == MOE_NODE_SCALAR && !node->quoted;
}

int moe_tree_to_int64(const struct moe_tree_node *node, int64_t min, int64_t max, int64_t *out)
{
    int is_integer = 0;
    int is_negative;
    uint64_t limit;
    uint64_t magnitude = 0;
    int64_t value;

    if (!is_plain_scalar(node) || node->text_bytes == 0 ||
        moe_tree_text_number_bytes(node->text, node->text_bytes, &is_integer) != node->text_bytes ||
        !is_integer) {
        return -1;
    }
    is_negative = node->text[0] == '-';
    limit = (uint64_t)INT64_MAX + (uint64_t)is_negative;
    for (const char *at = node->text + is_negative; *at != '\0'; at++) {
        uint64_t digit = (uint64_t)(*at - '0');

        if (magnitude > (limit - digit) / 10) {
            return -1;
        }
        magnitude = magnitude * 10 + digit;
    }
    if (is_negative && magnitude > 0) {
        value = -(int64_t)(magnitude - 1) - 1;
    } else {
        value = (int64_t)magnitude;
    }
    if (value < min || value > max) {
        return -1;
    }
    *out = value;
    return 0;
}

int moe_tree_to_double(const struct moe_tree_node *node, double *out)
{
    struct decimal number;
    int is_integer = 0;
    uint64_t bits = 0;

    if (!is_plain_scalar(node) || node->text_bytes == 0 ||
        moe_tree_text_number_bytes(node->text, node->text_bytes, &is_integer) != node->text_bytes) {
        return -1;
    }
    read_decimal(&number, node->text, node->text_bytes);
    if (number.num_digits > 0) {
        bits = round_to_double_bits(&number);
        if (bits == 0) {
            return -1;
        }
    }
    bits |= (uint64_t)(node->text[0] == '-') << 63;
    memcpy(out, &bits, sizeof *out);
    return 0;
}

int moe_tree_to_bool(const struct moe_tree_node *node, int *out)
{
    if (!is_plain_scalar(node)) {
        return -1;
    }
    if (moe_tree_is_text(node, "true")) {
        *out = 1;
        return 0;
    }
    if (moe_tree_is_text(node, "false")) {
        *out = 0;
        return 0;
    }
    return -1;
}

int moe_tree_is_null(const struct moe_tree_node *node)
{
    return is_plain_scalar(node) &&
           (moe_tree_is_text(node, "null") || moe_tree_is_text(node, "~") || node->text_bytes == 0);
}

int moe_tree_is_text(const struct moe_tree_node *node, const char *text)
{
    return node != NULL && node->kind == MOE_NODE_SCALAR && strcmp(node->text, text) == 0;
}
