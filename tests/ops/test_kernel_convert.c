/* SPDX-License-Identifier: Apache-2.0 */
/* Loads and stores of fp32, fp16, bf16 and fp8 through the identity activation, bit for bit against
 * the reference's conversions: every 8-bit and 16-bit pattern, fp32 patterns from all over, and
 * every tie and its neighbours. */
#include "kernel_run.h"

#include <math.h>

enum { NUM_PATTERNS = 65536, NUM_TAIL = 5 };

static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16, REF_E4M3};

/* Converts `count` elements with one variant. */
static void convert(const struct kernel_variant *variant, enum ref_dtype in, const void *input,
                    enum ref_dtype out, void *output, int64_t count)
{
    const struct moe_op_activation op = {
        .num_rows = 1,
        .inter = (int32_t)count,
        .input_dtype = kernel_dtype(in),
        .output_dtype = kernel_dtype(out),
        .act = {.activation = MOE_ACTIVATION_IDENTITY, .ungated = 1},
        .input = input,
        .row_stride = count,
        .col_stride = 1,
        .output = output,
        .output_stride = count};
    kernel_run(&variant->kernels->activation, &variant->tile, &op);
}

static void check(enum ref_dtype in, const void *input, enum ref_dtype out, int64_t count)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ACTIVATION, variants);
    const size_t bytes = ref_dtype_bytes(out);
    void *expected = kernel_array(count, bytes);
    struct support_guard output = kernel_output(count * (int64_t)bytes, SUPPORT_POISON_FLOAT);
    for (int64_t i = 0; i < count; i++) {
        ref_store(out, expected, i, ref_load(in, input, i));
    }
    for (int v = 0; v < num_variants; v++) {
        support_guard_poison(&output);
        convert(&variants[v], in, input, out, output.data, count);
        assert_bits_equal(expected, output.data, count, bytes);
        assert_guard_intact(&output);
    }
    support_guard_finish(&output);
    free(expected);
}

static void every_16_bit_pattern(void **state)
{
    (void)state;
    uint16_t *patterns = kernel_array(NUM_PATTERNS + NUM_TAIL, sizeof(*patterns));
    for (int i = 0; i < NUM_PATTERNS + NUM_TAIL; i++) {
        patterns[i] = (uint16_t)i;
    }
    for (int out = 0; out < KERNEL_COUNT(dtypes); out++) {
        check(REF_F16, patterns, dtypes[out], NUM_PATTERNS + NUM_TAIL);
        check(REF_BF16, patterns, dtypes[out], NUM_PATTERNS + NUM_TAIL);
    }
    free(patterns);
}

static void every_8_bit_pattern(void **state)
{
    (void)state;
    uint8_t patterns[256 + NUM_TAIL];
    for (int i = 0; i < 256 + NUM_TAIL; i++) {
        patterns[i] = (uint8_t)i;
    }
    for (int out = 0; out < KERNEL_COUNT(dtypes); out++) {
        check(REF_E4M3, patterns, dtypes[out], 256 + NUM_TAIL);
    }
}

static void sampled_fp32_patterns(void **state)
{
    (void)state;
    enum { COUNT = 1 << 19 };
    uint32_t *patterns = kernel_array(COUNT, sizeof(*patterns));
    for (uint32_t i = 0; i < COUNT; i++) {
        patterns[i] = i * 8191u; /* odd, so that low bits take all values over all exponents */
    }
    for (int out = 0; out < KERNEL_COUNT(dtypes); out++) {
        check(REF_F32, patterns, dtypes[out], COUNT);
    }
    free(patterns);
}

/* Halfway between two neighbours of the narrow type, and one fp32 step to either side. */
static void check_ties(enum ref_dtype narrow)
{
    const uint32_t num_codes = ref_dtype_bytes(narrow) == 1 ? 256 : NUM_PATTERNS;
    uint32_t *patterns = kernel_array(INT64_C(3) * num_codes, sizeof(*patterns));
    for (uint32_t i = 0; i < num_codes; i++) {
        const uint16_t low = (uint16_t)i; /* little-endian: its first byte is the 8-bit code */
        const uint16_t high = (uint16_t)(i + 1);
        const double middle = 0.5 * ref_load(narrow, &low, 0) + 0.5 * ref_load(narrow, &high, 0);
        const float tie = (float)middle;
        memcpy(&patterns[3 * i], &tie, sizeof(tie));
        patterns[3 * i + 1] = patterns[3 * i] + 1;
        patterns[3 * i + 2] = patterns[3 * i] - 1;
    }
    check(REF_F32, patterns, narrow, INT64_C(3) * num_codes);
    free(patterns);
}

static void every_tie(void **state)
{
    (void)state;
    check_ties(REF_F16);
    check_ties(REF_BF16);
    check_ties(REF_E4M3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_8_bit_pattern),
        cmocka_unit_test(every_16_bit_pattern),
        cmocka_unit_test(sampled_fp32_patterns),
        cmocka_unit_test(every_tie),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
