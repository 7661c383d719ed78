/* SPDX-License-Identifier: Apache-2.0 */
/* activation: against the reference for every function, layout and type; the same bits in every
 * instruction set, block size and layout, for every bf16 gate; in place. */
#include "cpu_isa.h"
#include "kernel_run.h"

#include <math.h>

static const int64_t row_counts[] = {0, 1, 5, 70};
static const int64_t inters[] = {1, 7, 8, 33, 256};
static const enum ref_dtype dtypes[] = {REF_F32, REF_F16, REF_BF16};

static const struct {
    int32_t activation;
    enum ref_act ref;
    bool has_ungated;
    double rel_tolerance; /* of fp32 arithmetic, for |x| up to 12 */
} functions[] = {
    {MOE_ACTIVATION_SILU, REF_ACT_SILU, true, 1e-6},
    {MOE_ACTIVATION_GELU, REF_ACT_GELU, true, 1.5e-6},
    /* The argument of the exponential is off by three roundings, relative, and at most 88. */
    {MOE_ACTIVATION_GELU_TANH, REF_ACT_GELU_TANH, true, 2e-5},
    {MOE_ACTIVATION_SWIGLU_OAI, REF_ACT_SWIGLU_OAI, false, 3e-6},
    {MOE_ACTIVATION_RELU2, REF_ACT_RELU2, true, 5e-7},
    {MOE_ACTIVATION_IDENTITY, REF_ACT_IDENTITY, true, 2e-7},
};

enum layout {
    LAYOUT_HALVES,
    LAYOUT_INTERLEAVED,
    LAYOUT_UP_FIRST,
    LAYOUT_EVERY_THIRD,
    LAYOUT_PAIRS_APART, /* stride 2, but up is not the neighbour */
    LAYOUT_UNGATED,
    LAYOUT_UNGATED_STRIDED,
    NUM_LAYOUTS
};

/* Where columns lie in a row; gate_at is where `input` points. */
struct columns {
    int64_t width;
    int64_t gate_at;
    int64_t up_offset;
    int64_t stride;
    bool ungated;
};

static struct columns lay_out(enum layout layout, int64_t inter)
{
    const struct columns layouts[NUM_LAYOUTS] = {
        [LAYOUT_HALVES] = {2 * inter, 0, inter, 1, false},
        [LAYOUT_INTERLEAVED] = {2 * inter, 0, 1, 2, false},
        [LAYOUT_UP_FIRST] = {2 * inter, inter, -inter, 1, false},
        [LAYOUT_EVERY_THIRD] = {3 * inter, 0, 2, 3, false},
        [LAYOUT_PAIRS_APART] = {4 * inter, 0, 2 * inter + 1, 2, false},
        [LAYOUT_UNGATED] = {inter, 0, 0, 1, true},
        [LAYOUT_UNGATED_STRIDED] = {3 * inter, 0, 0, 3, true},
    };
    return layouts[layout];
}

struct act_case {
    int function;
    struct columns columns;
    enum ref_dtype in;
    enum ref_dtype out;
    int64_t num_rows;
    int64_t inter;
    int64_t padding; /* of input and output rows */
    float limit;
    bool streams;    /* output around the caches */
    bool has_avx512; /* if the processor does */
};

static struct moe_op_activation make_op(const struct act_case *test, const void *input,
                                        void *output)
{
    const bool oai = functions[test->function].activation == MOE_ACTIVATION_SWIGLU_OAI;
    const struct moe_op_activation op = {
        .num_rows = test->num_rows,
        .inter = (int32_t)test->inter,
        .streams = test->streams,
        .has_avx512 = test->has_avx512 && moe_cpu_isa_has_avx512_vbmi(),
        .input_dtype = kernel_dtype(test->in),
        .output_dtype = kernel_dtype(test->out),
        .act = {.activation = functions[test->function].activation,
                .ungated = test->columns.ungated,
                .alpha = oai ? 1.702f : 0.0f,
                .limit = oai ? test->limit : 0.0f},
        .input = (const unsigned char *)input +
                 test->columns.gate_at * (int64_t)ref_dtype_bytes(test->in),
        .row_stride = test->columns.width + test->padding,
        .col_stride = test->columns.stride,
        .up_offset = test->columns.up_offset,
        .output = output,
        .output_stride = test->inter + test->padding,
    };
    return op;
}

static void expect(const struct act_case *test, const void *input, double *expected,
                   double *tolerances)
{
    const enum ref_act act = functions[test->function].ref;
    const bool cancels = act == REF_ACT_GELU || act == REF_ACT_GELU_TANH;
    const struct ref_activation activation = {.act = act,
                                              .gated = !test->columns.ungated,
                                              .alpha = (double)1.702f,
                                              .limit = test->limit > 0.0f ? (double)test->limit
                                                                          : (double)INFINITY};
    for (int64_t r = 0; r < test->num_rows; r++) {
        for (int64_t i = 0; i < test->inter; i++) {
            const int64_t gate_at = r * (test->columns.width + test->padding) +
                                    test->columns.gate_at + i * test->columns.stride;
            const double gate = ref_load(test->in, input, gate_at);
            const double up = ref_load(test->in, input, gate_at + test->columns.up_offset);
            const double value = ref_activate(&activation, gate, up);
            expected[r * test->inter + i] = value;
            /* The reference's 1 + erf and 1 + tanh cancel for negative arguments; the kernel has
             * neither. */
            tolerances[r * test->inter + i] =
                functions[test->function].rel_tolerance * fabs(value) +
                (cancels ? 1e-14 : 0x1p-147) + ref_rounding_tolerance(test->out, value);
        }
    }
}

/* Runs one variant; `dense` receives the output. */
static void run_variant(const struct act_case *test, const struct support_guard *input,
                        const struct kernel_variant *variant, void *dense)
{
    const size_t bytes = ref_dtype_bytes(test->out);
    const size_t stride = (size_t)(test->inter + test->padding) * bytes;
    const size_t used = (size_t)test->inter * bytes;
    struct support_guard output =
        kernel_output(test->num_rows * (int64_t)stride, SUPPORT_POISON_FLOAT);
    const struct moe_op_activation op = make_op(test, input->data, output.data);
    kernel_run(&variant->kernels->activation, &variant->tile, &op);
    assert_guard_intact(&output);
    for (size_t r = 0; r < (size_t)test->num_rows; r++) {
        assert_true(support_guard_is_poison(&output, r * stride + used, (r + 1) * stride));
        memcpy((unsigned char *)dense + r * used, output.data + r * stride, used);
    }
    support_guard_finish(&output);
}

static void check_all_variants(const struct act_case *test, const struct support_guard *input,
                               void *first)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ACTIVATION, variants);
    const int64_t count = test->num_rows * test->inter;
    const size_t bytes = ref_dtype_bytes(test->out);
    void *other = kernel_array(count, bytes);
    run_variant(test, input, &variants[0], first);
    for (int v = 0; v < 4 * num_variants; v++) {
        struct act_case variation = *test;
        variation.streams = v % 2 == 1;
        variation.has_avx512 = v / 2 % 2 == 1;
        run_variant(&variation, input, &variants[v / 4], other);
        assert_bits_equal(first, other, count, bytes);
    }
    free(other);
}

static void run_case(struct support_random *random, const struct act_case *test)
{
    const int64_t row_elements = test->columns.width + test->padding;
    const int64_t num_elements =
        test->num_rows == 0 ? 0 : (test->num_rows - 1) * row_elements + test->columns.width;
    const int64_t count = test->num_rows * test->inter;
    const size_t bytes = ref_dtype_bytes(test->in);
    void *values = kernel_array(num_elements, bytes);
    void *first = kernel_array(count, ref_dtype_bytes(test->out));
    double *expected = kernel_array(count, sizeof(*expected));
    double *tolerances = kernel_array(count, sizeof(*tolerances));
    support_fill_normal(random, test->in, values, num_elements, 2.0);
    struct support_guard input = kernel_input(values, num_elements * (int64_t)bytes, bytes);
    expect(test, input.data, expected, tolerances);
    check_all_variants(test, &input, first);
    assert_all_within(expected, tolerances, test->out, first, count);
    support_guard_finish(&input);
    free(tolerances);
    free(expected);
    free(first);
    free(values);
}

static bool is_legal(const int *pick, void *user)
{
    (void)user;
    return functions[pick[0]].has_ungated || pick[1] < LAYOUT_UNGATED;
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {
        KERNEL_COUNT(functions),  NUM_LAYOUTS,          KERNEL_COUNT(dtypes), KERNEL_COUNT(dtypes),
        KERNEL_COUNT(row_counts), KERNEL_COUNT(inters), 2 /* padding */,      2 /* limit */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 5);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), is_legal, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        const struct act_case test = {.function = pick[0],
                                      .columns = lay_out((enum layout)pick[1], inters[pick[5]]),
                                      .in = dtypes[pick[2]],
                                      .out = dtypes[pick[3]],
                                      .num_rows = row_counts[pick[4]],
                                      .inter = inters[pick[5]],
                                      .padding = pick[6] * 5,
                                      .limit = pick[7] == 1 ? 2.0f : 0.0f};
        run_case(&random, &test);
    }
    support_grid_finish(&grid);
}

/* Every bf16 gate, NaN, infinities and subnormals included, with ups from all over, into every
 * type: the instruction sets agree. */
static void every_gate_gives_the_same_bits(void **state)
{
    (void)state;
    enum { NUM_PATTERNS = 65536 };
    struct support_guard input = kernel_input(NULL, INT64_C(4) * NUM_PATTERNS, 2);
    uint16_t *patterns = (uint16_t *)(void *)input.data;
    uint32_t *first = kernel_array(NUM_PATTERNS, 4);
    for (uint32_t i = 0; i < NUM_PATTERNS; i++) {
        patterns[i] = (uint16_t)i;
        patterns[NUM_PATTERNS + i] = (uint16_t)(i * 40503u); /* odd: a permutation */
    }
    for (int function = 0; function < KERNEL_COUNT(functions); function++) {
        for (int out = 0; out < KERNEL_COUNT(dtypes); out++) {
            const struct act_case test = {.function = function,
                                          .columns = lay_out(LAYOUT_HALVES, NUM_PATTERNS),
                                          .in = REF_BF16,
                                          .out = dtypes[out],
                                          .num_rows = 1,
                                          .inter = NUM_PATTERNS,
                                          .limit = 7.0f};
            check_all_variants(&test, &input, first);
        }
    }
    free(first);
    support_guard_finish(&input);
}

/* The vector paths of strides 1 and 2 and the gathering path agree on the same pairs. */
static void layouts_give_the_same_bits(void **state)
{
    (void)state;
    enum { INTER = 61 };
    struct support_random random;
    float halves[2 * INTER];
    float first[INTER];
    float other[INTER];
    support_random_seed(&random, 6);
    support_fill_normal(&random, REF_F32, halves, 2 * INTER, 2.0);
    for (int function = 0; function < KERNEL_COUNT(functions); function++) {
        for (int layout = LAYOUT_HALVES; layout < LAYOUT_UNGATED; layout++) {
            struct act_case test = {.function = function,
                                    .columns = lay_out((enum layout)layout, INTER),
                                    .in = REF_F32,
                                    .out = REF_F32,
                                    .num_rows = 1,
                                    .inter = INTER,
                                    .limit = 1.0f};
            struct support_guard input = kernel_input(NULL, test.columns.width * 4, 4);
            float *values = (float *)(void *)input.data;
            for (int64_t i = 0; i < INTER; i++) {
                float *gate = values + test.columns.gate_at + i * test.columns.stride;
                gate[0] = halves[i];
                gate[test.columns.up_offset] = halves[INTER + i];
            }
            check_all_variants(&test, &input, layout == LAYOUT_HALVES ? first : other);
            assert_bits_equal(first, layout == LAYOUT_HALVES ? first : other, INTER, 4);
            support_guard_finish(&input);
        }
    }
}

static void in_place_gives_the_same_bits(void **state)
{
    (void)state;
    enum { INTER = 173, ROWS = 9, WIDTH = 2 * INTER + 3 };
    const enum layout layouts[] = {LAYOUT_HALVES, LAYOUT_INTERLEAVED, LAYOUT_UNGATED};
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_ACTIVATION, variants);
    struct support_random random;
    uint16_t values[ROWS * WIDTH];
    uint16_t apart[ROWS * INTER];
    support_random_seed(&random, 7);
    support_fill_normal(&random, REF_BF16, values, ROWS * WIDTH, 2.0);
    for (int l = 0; l < KERNEL_COUNT(layouts); l++) {
        struct act_case test = {.function = 0,
                                .columns = lay_out(layouts[l], INTER),
                                .in = REF_BF16,
                                .out = REF_BF16,
                                .num_rows = ROWS,
                                .inter = INTER};
        test.padding = WIDTH - test.columns.width;
        struct support_guard input = kernel_input(values, sizeof(values), 2);
        check_all_variants(&test, &input, apart);
        for (int v = 0; v < num_variants; v++) {
            memcpy(input.data, values, sizeof(values));
            struct moe_op_activation op = make_op(&test, input.data, input.data);
            op.output_stride = WIDTH;
            op.has_avx512 = v % 2 && moe_cpu_isa_has_avx512_vbmi();
            kernel_run(&variants[v].kernels->activation, &variants[v].tile, &op);
            for (size_t r = 0; r < ROWS; r++) {
                assert_bits_equal(apart + r * INTER, input.data + r * WIDTH * 2, INTER, 2);
            }
            assert_guard_intact(&input);
        }
        support_guard_finish(&input);
    }
}

/* A NaN gate or up is never clamped or cut away. */
static void nan_comes_through(void **state)
{
    (void)state;
    const float pairs[] = {NAN, 1.0f, 1.0f, NAN, -NAN, -2.0f, NAN, NAN};
    enum { INTER = 4 };
    struct support_guard input = kernel_input(pairs, sizeof(pairs), 4);
    for (int function = 0; function < KERNEL_COUNT(functions); function++) {
        for (int ungated = 0; ungated < (functions[function].has_ungated ? 2 : 1); ungated++) {
            struct act_case test = {.function = function,
                                    .columns = lay_out(LAYOUT_INTERLEAVED, INTER),
                                    .in = REF_F32,
                                    .out = REF_F32,
                                    .num_rows = 1,
                                    .inter = INTER,
                                    .limit = 7.0f};
            uint32_t output[INTER];
            test.columns.ungated = ungated == 1;
            test.columns.up_offset = 1 - ungated;
            check_all_variants(&test, &input, output);
            for (int i = 0; i < INTER; i++) {
                assert_true((output[i] == 0x7fc00000u) == (ungated == 0 || isnan(pairs[2 * i])));
            }
        }
    }
    support_guard_finish(&input);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(every_gate_gives_the_same_bits),
        cmocka_unit_test(layouts_give_the_same_bits),
        cmocka_unit_test(in_place_gives_the_same_bits),
        cmocka_unit_test(nan_comes_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
