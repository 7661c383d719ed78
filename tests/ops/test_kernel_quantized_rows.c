/* SPDX-License-Identifier: Apache-2.0 */
/* pre_reorder and activation with quantized output, and activation's masked rows: codes and scales
 * bit for bit, in every form, group size and instruction set; rows and scales that are nobody's
 * untouched. */
#include "cpu_isa.h"
#include "kernel_quant.h"

static const int64_t token_counts[] = {0, 1, 5, 40};
static const int64_t widths[] = {1, 7, 32, 129, 1024};
static const int64_t topks[] = {1, 2, 8};
static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16};

/* ---------------------------------------------------------------- pre_reorder */

struct reorder_case {
    int64_t num_tokens;
    int64_t top_k;
    int64_t hidden;
    enum ref_dtype dtype;
    struct quant_form form;
    int64_t group_k;
    int64_t padding;
};

/* Routes to rows in another order, some to none; ids with filtered ones among them. */
static void make_routes(struct support_random *random, int32_t *src2dst, int64_t *ids,
                        int64_t num_routes, int64_t num_rows)
{
    for (int64_t route = 0; route < num_routes; route++) {
        const bool is_dropped = support_random_below(random, 4) == 0;
        src2dst[route] = is_dropped ? -1 - (int32_t)route : (int32_t)(num_rows - 1 - route);
        ids[route] = (int64_t)support_random_below(random, (uint64_t)num_rows + 4) - 2;
    }
}

static void run_reorder(struct support_random *random, const struct reorder_case *test)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_PRE_REORDER, variants);
    const int64_t bytes = (int64_t)ref_dtype_bytes(test->dtype);
    const int64_t num_routes = test->num_tokens * test->top_k, num_rows = num_routes + 3;
    const int64_t token_stride = test->hidden + test->padding;
    const int64_t row_stride = test->hidden + 2 * test->padding;
    const int64_t token_elements =
        test->num_tokens == 0 ? 0 : (test->num_tokens - 1) * token_stride + test->hidden;
    const bool by_expert = test->form.static_per == MOE_QUANT_PER_EXPERT;
    const int32_t num_experts = (int32_t)num_rows - 1;
    struct quant_fixture quant;
    quant_init(&quant, random, test->form, num_rows, test->hidden, test->group_k, test->padding);
    struct support_guard tokens = kernel_input(NULL, token_elements * bytes, (size_t)bytes);
    struct support_guard rows = kernel_output(num_rows * row_stride, SUPPORT_POISON_FLOAT);
    uint8_t *expected = kernel_array(num_rows * row_stride, 1);
    int32_t *src2dst = kernel_array(num_routes, sizeof(*src2dst));
    int64_t *ids = kernel_array(num_routes, sizeof(*ids));
    double *values = kernel_array(test->hidden, sizeof(double));
    quant_fill(random, test->dtype, tokens.data, test->num_tokens, test->hidden, token_stride);
    make_routes(random, src2dst, ids, num_routes, num_rows);
    memset(expected, SUPPORT_POISON_FLOAT, (size_t)(num_rows * row_stride));
    for (int64_t route = 0; route < num_routes; route++) {
        const int64_t token = route / test->top_k;
        const bool is_filtered = ids[route] < 0 || ids[route] >= num_experts;
        if (src2dst[route] >= 0 && !(by_expert && is_filtered)) {
            ref_load_all(test->dtype, tokens.data + token * token_stride * bytes, test->hidden,
                         values);
            quant_expect_row(&quant, values, src2dst[route], by_expert ? ids[route] : token,
                             expected + src2dst[route] * row_stride);
        }
    }
    struct moe_op_pre_reorder op = {
        .num_tokens = test->num_tokens,
        .top_k = (int32_t)test->top_k,
        .hidden = (int32_t)test->hidden,
        .dtype = kernel_dtype(test->dtype),
        .tokens = tokens.data,
        .token_stride = token_stride,
        .src2dst = src2dst,
        .rows = rows.data,
        .row_stride = row_stride,
        .num_rows = num_rows,
        .quant = quant_op(&quant),
        .topk_ids = by_expert ? ids : NULL,
        .ids_dtype = MOE_IDS_INT64,
        .filter = {.num_ids = num_experts, .expert_end = num_experts, .num_experts = num_experts}};
    for (int v = 0; v < 2 * num_variants; v++) {
        support_guard_poison(&rows);
        support_guard_poison(&quant.scales);
        op.quant.has_avx512 = v % 2 && moe_cpu_isa_has_avx512_vbmi();
        kernel_run(&variants[v / 2].kernels->pre_reorder, &variants[v / 2].tile, &op);
        assert_bits_equal(expected, rows.data, num_rows * row_stride, 1);
        assert_guard_intact(&rows);
        quant_check_scales(&quant);
    }
    free(values);
    free(ids);
    free(src2dst);
    free(expected);
    support_guard_finish(&rows);
    support_guard_finish(&tokens);
    quant_finish(&quant);
}

static void reordered_rows_are_quantized(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts),
                          KERNEL_COUNT(topks),
                          KERNEL_COUNT(widths),
                          KERNEL_COUNT(dtypes),
                          QUANT_NUM_FORMS,
                          KERNEL_COUNT(quant_group_ks),
                          2 /* padding */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 41);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        const struct reorder_case test = {
            token_counts[pick[0]], topks[pick[1]],          widths[pick[2]], dtypes[pick[3]],
            quant_forms[pick[4]],  quant_group_ks[pick[5]], pick[6] * 5};
        run_reorder(&random, &test);
    }
    support_grid_finish(&grid);
}

/* ---------------------------------------------------------------- activation */

/* The fp32 values of a row, by the kernel itself: what quantization adds to it is at stake here. */
static void activate_plainly(const struct moe_op_activation *quantized, float *values)
{
    struct moe_op_activation op = *quantized;
    struct moe_tile tile = {.op = MOE_OP_ACTIVATION, .block_size = 16};
    op.quant.dtype = 0;
    op.output = values;
    op.output_dtype = MOE_DTYPE_FP32;
    op.output_stride = op.inter;
    op.masked_m = NULL;
    kernel_run(&moe_cpu_kernels_c11.activation, &tile, &op);
}

static void run_activation(struct support_random *random, int64_t num_rows, int64_t inter,
                           enum ref_dtype dtype, const struct quant_form *form, int64_t group_k,
                           bool is_masked)
{
    enum { NUM_EXPERTS = 5 };
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ACTIVATION, variants);
    const int64_t bytes = (int64_t)ref_dtype_bytes(dtype);
    const int64_t row_bytes = form != NULL ? inter + 3 : (inter + 3) * bytes;
    const int32_t masked_m[NUM_EXPERTS] = {2, 0, -7, INT32_MAX, 1};
    struct quant_fixture quant;
    quant_init(&quant, random, form != NULL ? *form : quant_forms[0], num_rows, inter, group_k, 0);
    struct support_guard input = kernel_input(NULL, num_rows * 2 * inter * bytes, (size_t)bytes);
    struct support_guard output = kernel_output(num_rows * row_bytes, SUPPORT_POISON_FLOAT);
    uint8_t *expected = kernel_array(num_rows * row_bytes, 1);
    float *plain = kernel_array(num_rows * inter, sizeof(float));
    double *values = kernel_array(inter, sizeof(double));
    quant_fill(random, dtype, input.data, num_rows, 2 * inter, 2 * inter);
    memset(expected, SUPPORT_POISON_FLOAT, (size_t)(num_rows * row_bytes));
    struct moe_op_activation op = {.num_rows = num_rows,
                                   .inter = (int32_t)inter,
                                   .input_dtype = kernel_dtype(dtype),
                                   .output_dtype = kernel_dtype(form != NULL ? REF_E4M3 : dtype),
                                   .act = {.activation = MOE_ACTIVATION_SILU},
                                   .input = input.data,
                                   .row_stride = 2 * inter,
                                   .col_stride = 1,
                                   .up_offset = inter,
                                   .output = output.data,
                                   .output_stride = inter + 3,
                                   .masked_m = is_masked ? masked_m : NULL,
                                   .max_masked_rows = is_masked ? num_rows / NUM_EXPERTS : 0,
                                   .num_experts = NUM_EXPERTS};
    activate_plainly(&op, plain);
    if (form != NULL) {
        op.quant = quant_op(&quant);
    }
    for (int64_t r = 0; r < num_rows; r++) {
        if (is_masked && r % op.max_masked_rows >= masked_m[r / op.max_masked_rows]) {
            continue;
        }
        ref_load_all(REF_F32, plain + r * inter, inter, values);
        if (form != NULL) {
            quant_expect_row(&quant, values, r, r, expected + r * row_bytes);
        } else {
            ref_store_all(dtype, expected + r * row_bytes, inter, values);
        }
    }
    for (int v = 0; v < 2 * num_variants; v++) {
        support_guard_poison(&output);
        support_guard_poison(&quant.scales);
        op.has_avx512 = v % 2 && moe_cpu_isa_has_avx512_vbmi();
        kernel_run(&variants[v / 2].kernels->activation, &variants[v / 2].tile, &op);
        assert_bits_equal(expected, output.data, num_rows * row_bytes, 1);
        assert_guard_intact(&output);
        if (form != NULL) {
            quant_check_scales(&quant);
        }
    }
    free(values);
    free(plain);
    free(expected);
    support_guard_finish(&output);
    support_guard_finish(&input);
    quant_finish(&quant);
}

static void activated_rows_are_quantized(void **state)
{
    (void)state;
    /* 1100 and 2100 exceed the kernel's buffer, once within a group. */
    static const int64_t inters[] = {1, 7, 33, 129, 256, 1100, 2100};
    const int levels[] = {KERNEL_COUNT(inters), KERNEL_COUNT(dtypes), QUANT_NUM_BASIC_FORMS,
                          KERNEL_COUNT(quant_group_ks), 2 /* masked */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 42);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        run_activation(&random, 20, inters[pick[0]], dtypes[pick[1]], &quant_forms[pick[2]],
                       quant_group_ks[pick[3]], pick[4] == 1);
    }
    support_grid_finish(&grid);
}

static void masked_rows_are_left_alone(void **state)
{
    (void)state;
    struct support_random random;
    support_random_seed(&random, 43);
    for (int dtype = 0; dtype < KERNEL_COUNT(dtypes); dtype++) {
        run_activation(&random, 20, 35, dtypes[dtype], NULL, 0, true);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reordered_rows_are_quantized),
        cmocka_unit_test(activated_rows_are_quantized),
        cmocka_unit_test(masked_rows_are_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
