/* SPDX-License-Identifier: Apache-2.0 */
/* quantize: codes and scales bit for bit against the reference, in every form, type, group size and
 * instruction set; every other byte untouched. */
#include "cpu_isa.h"
#include "kernel_quant.h"

static const int64_t token_counts[] = {0, 1, 5, 70};
static const int64_t hiddens[] = {1, 7, 32, 129, 1024};
static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16};

static void run_case(struct support_random *random, int64_t num_tokens, int64_t hidden,
                     enum ref_dtype dtype, struct quant_form form, int64_t group_k, int64_t padding)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_QUANTIZE, variants);
    const int64_t bytes = (int64_t)ref_dtype_bytes(dtype);
    const int64_t token_stride = hidden + padding;
    const int64_t output_stride = hidden + 2 * padding;
    const int64_t token_elements = num_tokens == 0 ? 0 : (num_tokens - 1) * token_stride + hidden;
    struct quant_fixture quant;
    quant_init(&quant, random, form, num_tokens, hidden, group_k, padding);
    struct support_guard tokens = kernel_input(NULL, token_elements * bytes, (size_t)bytes);
    struct support_guard output = kernel_output(num_tokens * output_stride, SUPPORT_POISON_FLOAT);
    uint8_t *expected = kernel_array(num_tokens * output_stride, 1);
    double *values = kernel_array(hidden, sizeof(double));
    quant_fill(random, dtype, tokens.data, num_tokens, hidden, token_stride);
    memset(expected, SUPPORT_POISON_FLOAT, (size_t)(num_tokens * output_stride));
    for (int64_t t = 0; t < num_tokens; t++) {
        ref_load_all(dtype, tokens.data + t * token_stride * bytes, hidden, values);
        quant_expect_row(&quant, values, t, t, expected + t * output_stride);
    }
    struct moe_op_quantize op = {.num_tokens = num_tokens,
                                 .hidden = (int32_t)hidden,
                                 .dtype = kernel_dtype(dtype),
                                 .tokens = tokens.data,
                                 .token_stride = token_stride,
                                 .output = output.data,
                                 .output_stride = output_stride,
                                 .quant = quant_op(&quant)};
    for (int v = 0; v < 2 * num_variants; v++) {
        support_guard_poison(&output);
        support_guard_poison(&quant.scales);
        op.quant.has_avx512 = v % 2 && moe_cpu_isa_has_avx512_vbmi();
        kernel_run(&variants[v / 2].kernels->quantize, &variants[v / 2].tile, &op);
        assert_bits_equal(expected, output.data, num_tokens * output_stride, 1);
        assert_guard_intact(&output);
        quant_check_scales(&quant);
    }
    free(values);
    free(expected);
    support_guard_finish(&output);
    support_guard_finish(&tokens);
    quant_finish(&quant);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts),   KERNEL_COUNT(hiddens),
                          KERNEL_COUNT(dtypes),         QUANT_NUM_BASIC_FORMS,
                          KERNEL_COUNT(quant_group_ks), 2 /* padding */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 31);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        run_case(&random, token_counts[pick[0]], hiddens[pick[1]], dtypes[pick[2]],
                 quant_forms[pick[3]], quant_group_ks[pick[4]], pick[5] * 5);
    }
    support_grid_finish(&grid);
}

/* Every bf16 magnitude as the largest of a group of two, with every kind of scale. */
static void every_amax_gives_its_scale(void **state)
{
    (void)state;
    enum { NUM_TOKENS = 64, HIDDEN = 1024, COUNT = NUM_TOKENS * HIDDEN };
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_QUANTIZE, variants);
    uint16_t *tokens = kernel_array(COUNT, sizeof(uint16_t));
    uint8_t *expected = kernel_array(COUNT, 1);
    uint8_t *output = kernel_array(COUNT, 1);
    struct support_random random;
    support_random_seed(&random, 32);
    for (uint32_t i = 0; i < COUNT; i += 2) {
        tokens[i] = (uint16_t)(i / 2 | 0x8000u);
        tokens[i + 1] = (uint16_t)support_random_below(&random, i / 2 + 1);
    }
    for (int form = 0; form < 3; form++) {
        struct quant_fixture quant;
        quant_init(&quant, &random, quant_forms[form], NUM_TOKENS, HIDDEN, 2, 0);
        for (int64_t t = 0; t < NUM_TOKENS; t++) {
            double values[HIDDEN];
            ref_load_all(REF_BF16, tokens + t * HIDDEN, HIDDEN, values);
            quant_expect_row(&quant, values, t, t, expected + t * HIDDEN);
        }
        struct moe_op_quantize op = {.num_tokens = NUM_TOKENS,
                                     .hidden = HIDDEN,
                                     .dtype = MOE_DTYPE_BF16,
                                     .tokens = tokens,
                                     .token_stride = HIDDEN,
                                     .output = output,
                                     .output_stride = HIDDEN,
                                     .quant = quant_op(&quant)};
        for (int v = 0; v < 2 * num_variants; v++) {
            support_guard_poison(&quant.scales);
            op.quant.has_avx512 = v % 2 && moe_cpu_isa_has_avx512_vbmi();
            kernel_run(&variants[v / 2].kernels->quantize, &variants[v / 2].tile, &op);
            assert_bits_equal(expected, output, COUNT, 1);
            quant_check_scales(&quant);
        }
        quant_finish(&quant);
    }
    free(output);
    free(expected);
    free(tokens);
}

/* Every bf16 in a row that vectors of all widths take whole, times many factors. */
static void every_bf16_has_its_code(void **state)
{
    (void)state;
    enum { NUM_TOKENS = 64, HIDDEN = 1024, COUNT = NUM_TOKENS * HIDDEN, NUM_SCALES = 5 };
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_QUANTIZE, variants);
    uint16_t *tokens = kernel_array(COUNT, sizeof(uint16_t));
    uint8_t *expected = kernel_array(COUNT, 1);
    uint8_t *output = kernel_array(COUNT, 1);
    for (uint32_t i = 0; i < COUNT; i++) {
        tokens[i] = (uint16_t)i;
    }
    for (int s = 0; s < NUM_SCALES; s++) {
        struct support_random random;
        struct quant_fixture quant;
        double values[HIDDEN];
        support_random_seed(&random, 33 + (uint64_t)s);
        quant_init(&quant, &random, quant_forms[3], NUM_TOKENS, HIDDEN, 0, 0);
        for (int64_t t = 0; t < NUM_TOKENS; t++) {
            ref_load_all(REF_BF16, tokens + t * HIDDEN, HIDDEN, values);
            quant_expect_row(&quant, values, t, t, expected + t * HIDDEN);
        }
        struct moe_op_quantize op = {.num_tokens = NUM_TOKENS,
                                     .hidden = HIDDEN,
                                     .dtype = MOE_DTYPE_BF16,
                                     .tokens = tokens,
                                     .token_stride = HIDDEN,
                                     .output = output,
                                     .output_stride = HIDDEN,
                                     .quant = quant_op(&quant)};
        for (int v = 0; v < 2 * num_variants; v++) {
            op.quant.has_avx512 = v % 2 && moe_cpu_isa_has_avx512_vbmi();
            kernel_run(&variants[v / 2].kernels->quantize, &variants[v / 2].tile, &op);
            assert_bits_equal(expected, output, COUNT, 1);
        }
        quant_finish(&quant);
    }
    free(output);
    free(expected);
    free(tokens);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(every_amax_gives_its_scale),
        cmocka_unit_test(every_bf16_has_its_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
