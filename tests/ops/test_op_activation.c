/* SPDX-License-Identifier: Apache-2.0 */
/* activation through the function table: every function and type, halves, interleaved, strided and
 * in place, against the reference; the same bits with every tile and number of threads. */
#include "op_weights.h"

static const int64_t row_counts[] = {0, 1, 2, 17, 64, 1000};
static const int32_t inters[] = {1, 33, 40, 88, 100, 200};
static const int32_t activations[] = {MOE_ACTIVATION_SILU,      MOE_ACTIVATION_GELU,
                                      MOE_ACTIVATION_GELU_TANH, MOE_ACTIVATION_SWIGLU_OAI,
                                      MOE_ACTIVATION_RELU2,     MOE_ACTIVATION_IDENTITY};

enum layout {
    LAYOUT_HALVES, /* the default strides, given as 0 */
    LAYOUT_INTERLEAVED,
    LAYOUT_STRIDED, /* every third column, gaps between rows */
    LAYOUT_IN_PLACE,
    LAYOUT_UNGATED,
    LAYOUT_UNGATED_STRIDED,
    NUM_LAYOUTS
};

struct act_case {
    int64_t num_rows;
    int32_t inter;
    int32_t activation;
    int32_t input_dtype;
    int32_t output_dtype;
    enum layout layout;
    float limit;
};

struct columns {
    int64_t row_stride;
    int64_t col_stride;
    int64_t up_offset;
    int64_t width; /* elements that a row spans */
};

static bool is_ungated(const struct act_case *test)
{
    return test->layout >= LAYOUT_UNGATED;
}

static struct columns columns_of(const struct act_case *test)
{
    const int64_t inter = test->inter;
    const struct columns layouts[NUM_LAYOUTS] = {
        [LAYOUT_HALVES] = {2 * inter, 1, inter, 2 * inter},
        [LAYOUT_INTERLEAVED] = {2 * inter, 2, 1, 2 * inter},
        [LAYOUT_STRIDED] = {3 * inter + 5, 3, 2, 3 * inter},
        [LAYOUT_IN_PLACE] = {2 * inter, 2, 1, 2 * inter},
        [LAYOUT_UNGATED] = {inter, 1, 0, inter},
        [LAYOUT_UNGATED_STRIDED] = {3 * inter + 5, 3, 0, 3 * inter - 2},
    };
    return layouts[test->layout];
}

static struct moe_problem make_problem(const struct act_case *test)
{
    const bool oai = test->activation == MOE_ACTIVATION_SWIGLU_OAI;
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.flags = is_ungated(test) ? MOE_PROBLEM_UNGATED : 0;
    problem.inter = test->inter;
    problem.activation = test->activation;
    problem.act_alpha = oai ? 1.702f : 0.0f;
    problem.act_limit = oai ? test->limit : 0.0f;
    problem.tokens.dtype = test->input_dtype;
    problem.intermediate.dtype = test->output_dtype;
    problem.max_tokens = test->num_rows > 0 ? test->num_rows : 1;
    return problem;
}

static void run_activation(const struct op_variant *variant, const struct act_case *test,
                           const struct op_tensor *input, unsigned char *packed)
{
    const struct moe_problem problem = make_problem(test);
    const struct columns columns = columns_of(test);
    const bool in_place = test->layout == LAYOUT_IN_PLACE;
    const bool packed_halves = test->layout == LAYOUT_HALVES || test->layout == LAYOUT_UNGATED;
    const size_t bytes = op_dtype_bytes(test->output_dtype);
    const int64_t stride = in_place ? columns.row_stride : test->inter + 3;
    struct support_guard output =
        op_output(test->num_rows * stride * (int64_t)bytes, bytes, SUPPORT_POISON_FLOAT);
    struct moe_activation_args args;
    MOE_INIT_CALL(args);
    args.input = input->memory.data;
    args.num_rows = test->num_rows;
    args.row_stride = packed_halves ? 0 : columns.row_stride;
    args.col_stride = packed_halves ? 0 : columns.col_stride;
    args.up_offset = packed_halves ? 0 : columns.up_offset;
    args.output = output.data;
    args.output_stride = stride;
    if (in_place) {
        memcpy(output.data, input->memory.data, output.size);
        args.input = output.data;
    }
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_ACTIVATION)),
        .op = MOE_OP_ACTIVATION,
        .num_tokens = test->num_rows,
        .outputs = {&output},
        .num_outputs = 1};
    op_run(&watch, op_invoke_activation, &args, &args.call);
    const size_t row_bytes = (size_t)test->inter * bytes;
    if (in_place) { /* what lies behind the results of a row is as it was */
        for (int64_t r = 0; r < test->num_rows; r++) {
            const size_t at = (size_t)(r * stride) * bytes;
            memcpy(packed + (size_t)r * row_bytes, output.data + at, row_bytes);
            assert_bits_equal(input->memory.data + at + row_bytes, output.data + at + row_bytes,
                              stride - test->inter, bytes);
        }
    } else {
        op_pack_rows(&output, test->num_rows, test->inter, stride, bytes, packed);
    }
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    support_guard_finish(&output);
}

static void check_values(const struct act_case *test, const struct op_tensor *input,
                         const unsigned char *packed)
{
    const struct moe_problem problem = make_problem(test);
    const struct columns columns = columns_of(test);
    const int64_t count = test->num_rows * test->inter;
    double *expected = op_array(count, sizeof(double));
    double *tolerance = op_array(count, sizeof(double));
    for (int64_t i = 0; i < count; i++) {
        const double *gate =
            input->values + i / test->inter * input->width + i % test->inter * columns.col_stride;
        tolerance[i] =
            op_expect_act(&problem, gate[0], gate[columns.up_offset], 0.0, 0.0, &expected[i]);
    }
    op_add_rounding(test->output_dtype, expected, tolerance, count);
    assert_all_within(expected, tolerance, op_ref_dtype(test->output_dtype), packed, count);
    free(tolerance);
    free(expected);
}

static void check_case(const struct act_case *test, int64_t turn)
{
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    const struct columns columns = columns_of(test);
    const int64_t count = test->num_rows * test->inter;
    const size_t bytes = op_dtype_bytes(test->output_dtype);
    struct support_random random;
    struct op_tensor input;
    support_random_seed(&random, (uint64_t)turn);
    op_tensor_init(&input, &random, test->input_dtype, test->num_rows, columns.width,
                   columns.row_stride - columns.width, 3.0);
    unsigned char *first = op_array(count, bytes), *other = op_array(count, bytes);
    run_activation(variants[0], test, &input, first);
    check_values(test, &input, first);
    for (int v = 1; v < num_variants; v++) {
        run_activation(variants[v], test, &input, other);
        assert_bits_equal(first, other, count, bytes);
    }
    free(other);
    free(first);
    op_tensor_finish(&input);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {OP_COUNT(row_counts),
                          OP_COUNT(inters),
                          OP_COUNT(activations),
                          OP_COUNT(op_dtypes),
                          OP_COUNT(op_dtypes),
                          NUM_LAYOUTS,
                          2 /* limit */};
    struct op_grid grid;
    op_grid_init(&grid, levels, OP_COUNT(levels), 3, 4);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[OP_COUNT(levels)];
        const bool runs = op_grid_row(&grid, row, pick);
        struct act_case test = {row_counts[pick[0]],       inters[pick[1]],    activations[pick[2]],
                                op_dtypes[pick[3]],        op_dtypes[pick[4]], (enum layout)pick[5],
                                pick[6] == 1 ? 2.0f : 0.0f};
        if (test.layout == LAYOUT_IN_PLACE) {
            test.output_dtype = test.input_dtype;
        }
        if (is_ungated(&test) && test.activation == MOE_ACTIVATION_SWIGLU_OAI) {
            test.layout = LAYOUT_STRIDED; /* it is gated only */
        }
        if (runs) {
            check_case(&test, row);
        }
    }
    op_grid_finish(&grid);
}

static void bad_rows_are_refused(void **state)
{
    (void)state;
    const struct act_case test = {
        4, 8, MOE_ACTIVATION_SILU, MOE_DTYPE_FP32, MOE_DTYPE_BF16, LAYOUT_HALVES, 0.0f};
    const struct moe_problem problem = make_problem(&test);
    struct support_guard output = op_output(4 * 8 * 4, 4, SUPPORT_POISON_FLOAT);
    float input[4 * 16] = {0};
    const int32_t rows_in_use[1] = {1};
    const struct op_watch watch = {
        .plan = op_plan(op_variant(0, 1)->context, &problem, OP_BIT(MOE_OP_ACTIVATION)),
        .outputs = {&output},
        .num_outputs = 1};
    struct moe_activation_args good;
    MOE_INIT_CALL(good);
    good.input = input;
    good.num_rows = 4;
    good.output = output.data;
    struct moe_activation_args bad[7] = {good, good, good, good, good, good, good};
    bad[0].num_rows = 5;
    bad[1].num_rows = -1;
    bad[2].input = output.data; /* in place, but of another type */
    bad[3].row_stride = 15;
    bad[4].output_stride = 7;
    bad[5].input = NULL;
    bad[6].col_stride = -1;
    for (int i = 0; i < OP_COUNT(bad); i++) {
        op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_activation, &bad[i],
                          &bad[i].call);
    }
    struct moe_activation_args masked = good;
    masked.masked_m = rows_in_use;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_activation, &masked,
                      &masked.call);
    op_expect_success(&watch, op_invoke_activation, &good, &good.call);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    support_guard_finish(&output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(bad_rows_are_refused),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
