/* SPDX-License-Identifier: Apache-2.0 */
/* quantize and quantized pre_reorder through the function table, with packed strides and defaults
 * resolved by the call: codes and scales bit for bit, with every tile and number of threads. */
#include "op_data.h"

enum { NUM_TOKENS = 37, HIDDEN = 200, NUM_EXPERTS = 4, TOP_K = 2, NUM_ROUTES = NUM_TOKENS * TOP_K };

struct form {
    int32_t scale_dtype;
    int32_t scale_layout;
    enum ref_scale_layout ref_layout;
    int32_t group_k;
};

static const struct form forms[] = {
    {MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, REF_SCALE_ROW_MAJOR, 0},
    {MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, REF_SCALE_ROW_MAJOR, 128},
    {MOE_DTYPE_FP32, MOE_SCALE_COLUMN_MAJOR_TMA, REF_SCALE_COLUMN_MAJOR, 64},
    {MOE_DTYPE_UE8M0, MOE_SCALE_UE8M0_PACKED, REF_SCALE_PACKED, 32},
    {MOE_DTYPE_UE8M0, MOE_SCALE_UE8M0_PACKED, REF_SCALE_PACKED, 1000}, /* wider than a row */
};

static struct moe_problem make_problem(int32_t dtype)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = NUM_EXPERTS;
    problem.top_k = TOP_K;
    problem.hidden = HIDDEN;
    problem.tokens.dtype = dtype;
    problem.max_tokens = NUM_TOKENS;
    return problem;
}

static struct moe_recipe make_recipe(const struct form *form)
{
    const struct moe_recipe recipe = {.dtype = MOE_DTYPE_FP8_E4M3,
                                      .scale_dtype = form->scale_dtype,
                                      .scale_layout = form->scale_layout,
                                      .group_rows = 1,
                                      .group_k = form->group_k,
                                      .dynamic = 1};
    return recipe;
}

/* What rows src2dst[route] (NULL: the tokens themselves) and their scales should be. */
static void expect(const struct form *form, const struct op_tensor *tokens, const int32_t *src2dst,
                   int64_t num_rows, uint8_t *codes, uint32_t *scales)
{
    const int64_t group_k = form->group_k > HIDDEN ? 0 : form->group_k;
    const int64_t num_groups = group_k == 0 ? 1 : (HIDDEN + group_k - 1) / group_k;
    const int64_t stride =
        form->ref_layout == REF_SCALE_ROW_MAJOR ? num_groups : (num_rows + 3) / 4 * 4;
    for (int64_t i = 0; i < (src2dst == NULL ? NUM_TOKENS : NUM_ROUTES); i++) {
        const int64_t row = src2dst == NULL ? i : src2dst[i];
        double quantized[HIDDEN];
        double row_scales[HIDDEN];
        if (row >= 0) {
            ref_quantize(tokens->values + i / (src2dst == NULL ? 1 : TOP_K) * HIDDEN, 1, HIDDEN,
                         group_k, form->scale_layout == MOE_SCALE_UE8M0_PACKED, quantized,
                         row_scales);
            ref_store_all(REF_E4M3, codes + row * HIDDEN, HIDDEN, quantized);
            ref_store_scales(form->ref_layout, row_scales, num_groups, row, stride, scales);
        }
    }
}

static void run_case(const struct op_variant *variant, const struct form *form,
                     const struct op_tensor *tokens, const int32_t *src2dst)
{
    enum { MAX_SCALES = (NUM_ROUTES + 4) * HIDDEN };
    const int64_t num_rows = src2dst == NULL ? NUM_TOKENS : NUM_ROUTES;
    const int32_t op = src2dst == NULL ? MOE_OP_QUANTIZE : MOE_OP_PRE_REORDER;
    const struct moe_problem problem = make_problem(tokens->dtype);
    struct support_guard codes = op_output(num_rows * HIDDEN, 1, 0xA5);
    struct support_guard scales = op_output(MAX_SCALES * 4, 4, 0xA5);
    uint8_t *expected_codes = op_array(num_rows * HIDDEN, 1);
    uint32_t *expected_scales = op_array(MAX_SCALES, 4);
    memset(expected_codes, 0xA5, (size_t)(num_rows * HIDDEN));
    memset(expected_scales, 0xA5, MAX_SCALES * 4);
    expect(form, tokens, src2dst, num_rows, expected_codes, expected_scales);
    const struct op_watch watch = {.variant = variant,
                                   .plan = op_plan(variant->context, &problem, OP_BIT(op)),
                                   .op = op,
                                   .num_tokens = NUM_TOKENS,
                                   .outputs = {&codes, &scales},
                                   .num_outputs = 2};
    if (src2dst == NULL) {
        struct moe_quantize_args args;
        MOE_INIT_CALL(args);
        args.call.num_tokens = NUM_TOKENS;
        args.tokens = tokens->memory.data;
        args.token_stride = tokens->stride;
        args.output = codes.data;
        args.output_scales = scales.data;
        args.quantization = make_recipe(form);
        op_run(&watch, op_invoke_quantize, &args, &args.call);
    } else {
        struct moe_pre_reorder_args args;
        MOE_INIT_CALL(args);
        args.call.num_tokens = NUM_TOKENS;
        args.tokens = tokens->memory.data;
        args.token_stride = tokens->stride;
        args.src2dst = src2dst;
        args.rows = codes.data;
        args.num_rows = num_rows;
        args.output_scales = scales.data;
        args.quantization = make_recipe(form);
        op_run(&watch, op_invoke_pre_reorder, &args, &args.call);
    }
    assert_bits_equal(expected_codes, codes.data, num_rows * HIDDEN, 1);
    assert_bits_equal(expected_scales, scales.data, MAX_SCALES, 4);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    free(expected_scales);
    free(expected_codes);
    support_guard_finish(&scales);
    support_guard_finish(&codes);
}

static void rows_and_scales_match_the_reference(void **state)
{
    (void)state;
    struct support_random random;
    int32_t src2dst[NUM_ROUTES];
    support_random_seed(&random, 51);
    for (int32_t route = 0; route < NUM_ROUTES; route++) {
        src2dst[route] = route % 5 == 3 ? -1 : NUM_ROUTES - 1 - route;
    }
    for (int dtype = 0; dtype < OP_COUNT(op_dtypes); dtype++) {
        struct op_tensor tokens;
        op_tensor_init(&tokens, &random, op_dtypes[dtype], NUM_TOKENS, HIDDEN, 3, 1.0);
        for (int f = 0; f < OP_COUNT(forms); f++) {
            const struct op_variant *variants[OP_MAX_VARIANTS];
            const int num_variants = op_list_variants(f, variants);
            for (int v = 0; v < num_variants; v++) {
                run_case(variants[v], &forms[f], &tokens, NULL);
                run_case(variants[v], &forms[f], &tokens, src2dst);
            }
        }
        op_tensor_finish(&tokens);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_scales_match_the_reference),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
