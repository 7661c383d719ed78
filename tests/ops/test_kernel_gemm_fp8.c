/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 240 */
/*
 * The grouped GEMM kernels with fp8 weights: plain rows or fp8 rows, every granularity and layout
 * of scales, against the reference and with the same bits in every instruction set, tile and
 * layout.
 */
#include "gemm_check.h"

static const int64_t columns[] = {1, 7, 8, 31, 128, 130, 256, 521, 1157};
static const int64_t channels[] = {1, 7, 8, 31, 40, 130, 264};
static const int64_t rows[] = {1, 4, 13, 60};
static const int32_t plain_dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16};

/* Rows: their type, and the groups and layout of their scales. */
static const struct {
    int32_t dtype;
    int64_t group;
    int32_t layout;
} inputs[] = {
    {MOE_DTYPE_FP32, 0, 0},
    {MOE_DTYPE_BF16, 0, 0},
    {MOE_DTYPE_FP16, 0, 0},
    {MOE_DTYPE_FP8_E4M3, -1, MOE_SCALE_ROW_MAJOR},
    {MOE_DTYPE_FP8_E4M3, 0, MOE_SCALE_ROW_MAJOR},
    {MOE_DTYPE_FP8_E4M3, 0, MOE_SCALE_COLUMN_MAJOR_TMA},
    {MOE_DTYPE_FP8_E4M3, 0, MOE_SCALE_UE8M0_PACKED},
    {MOE_DTYPE_FP8_E4M3, 128, MOE_SCALE_ROW_MAJOR},
    {MOE_DTYPE_FP8_E4M3, 128, MOE_SCALE_COLUMN_MAJOR_TMA},
    {MOE_DTYPE_FP8_E4M3, 128, MOE_SCALE_UE8M0_PACKED},
};
static const int64_t weight_groups[] = {0, 128};

static const struct epilogue {
    int32_t num_matrices;
    bool has_activation;
    struct moe_op_act act;
} epilogues[] = {
    {1, false, {0}},
    {2, false, {0}},
    {2, true, {.activation = MOE_ACTIVATION_SILU}},
    {2, true, {.activation = MOE_ACTIVATION_SWIGLU_OAI, .alpha = 1.702f, .limit = 7.0f}},
    {1, true, {.activation = MOE_ACTIVATION_RELU2, .ungated = 1}},
};

static struct gemm_shape make_shape(int input, int weight_group)
{
    return (struct gemm_shape){
        .input_dtype = inputs[input].dtype,
        .input_group = inputs[input].group,
        .input_layout = inputs[input].layout,
        .weight_dtype = MOE_DTYPE_FP8_E4M3,
        .weight_group = weight_groups[weight_group],
    };
}

static void test_grid(void **state)
{
    (void)state;
    const int levels[] = {COUNT(columns),      COUNT(channels),      COUNT(rows),
                          COUNT(inputs),       COUNT(weight_groups), COUNT(plain_dtypes) + 1,
                          COUNT(plain_dtypes), COUNT(epilogues),     NUM_LAYOUTS,
                          NUM_SCHEDULES,       NUM_SPREADS,          2};
    struct support_grid grid;
    support_grid_init_pairwise(&grid, levels, COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[COUNT(levels)];
        support_grid_row(&grid, row, pick);
        const struct epilogue *epilogue = &epilogues[pick[7]];
        struct gemm_shape shape = make_shape(pick[3], pick[4]);
        shape.k = columns[pick[0]];
        shape.n = channels[pick[1]];
        shape.num_rows = rows[pick[2]];
        shape.bias_dtype = pick[5] < COUNT(plain_dtypes) ? plain_dtypes[pick[5]] : 0;
        shape.output_dtype = plain_dtypes[pick[6]];
        shape.num_matrices = epilogue->num_matrices;
        shape.has_activation = epilogue->has_activation;
        shape.act = epilogue->act;
        shape.layout = (enum layout)pick[8];
        shape.schedule = (enum schedule)pick[9];
        shape.spread = (enum spread)pick[10];
        shape.has_row_weights = pick[11];
        shape.seed = (uint64_t)row;
        (void)check_shape(&shape);
    }
    support_grid_finish(&grid);
}

/* Equal weights in different places give equal bits, few rows or many. */
static void test_layouts_agree(void **state)
{
    (void)state;
    for (int input = 0; input < COUNT(inputs); input++) {
        for (int r = 0; r < COUNT(rows); r++) {
            struct gemm_shape shape = make_shape(input, input % 2);
            shape.k = 403;
            shape.n = 43;
            shape.num_rows = rows[r];
            shape.output_dtype = MOE_DTYPE_FP32;
            shape.num_matrices = 2;
            shape.has_activation = true;
            shape.act.activation = MOE_ACTIVATION_SILU;
            shape.spread = SPREAD_HOT;
            shape.seed = 78;
            const uint64_t expected = check_shape(&shape);
            for (int layout = 1; layout < NUM_LAYOUTS; layout++) {
                shape.layout = (enum layout)layout;
                assert_int_equal(check_shape(&shape), expected);
            }
        }
    }
}

/* Outputs of one tile, as floats; the caller frees. */
static float *run_floats(struct gemm_fixture *fixture, const struct moe_tile *tile)
{
    struct support_guard output;
    run_tile(fixture, tile, &output);
    float *values = fixture_alloc((int64_t)output.size, 1);
    memcpy(values, output.data, output.size);
    support_guard_finish(&output);
    return values;
}

/* A NaN among the weights spoils its channel in every row, one among the inputs its row. */
static void test_nan_is_kept(void **state)
{
    (void)state;
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    const int64_t channel = 9, columns_of_nan[] = {0, 63, 129, 262};
    for (int input = 0; input < COUNT(inputs); input++) {
        for (int c = 0; c < COUNT(columns_of_nan); c++) {
            struct gemm_shape shape = make_shape(input, c % 2);
            struct gemm_fixture fixture;
            shape.k = 263;
            shape.n = 24;
            shape.num_rows = 5 + 20 * (c % 2);
            shape.output_dtype = MOE_DTYPE_FP32;
            shape.num_matrices = 1;
            shape.spread = SPREAD_SPARSE; /* all rows are expert 3's */
            shape.seed = 5;
            gemm_fixture_init(&fixture, &shape);
            fixture.weight_memory[0].data[(3 * shape.n + channel) * shape.k + columns_of_nan[c]] =
                c % 2 == 0 ? 0x7f : 0xff;
            for (int64_t t = 0; t < num_tiles; t++) {
                float *values = run_floats(&fixture, tiles[t]);
                for (int64_t row = 0; row < fixture.num_outputs; row++) {
                    for (int64_t n = 0; fixture.written[row] && n < shape.n; n++) {
                        const float value = values[row * fixture.output_stride + n];
                        assert_int_equal(value != value, n == channel);
                    }
                }
                free(values);
            }
            gemm_fixture_finish(&fixture);
        }
    }
}

/* Scales at the ends of fp32: a weight is rounded where value * scale is, and nowhere before. */
static void test_extreme_scales(void **state)
{
    (void)state;
    static const float scales[] = {0x1p+127f, 0x1.8p+120f, 0x1p+119f, 0x1p-126f,
                                   0x1p-140f, 0x1p-149f,   0.0f,      -0x1p+126f};
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    for (int i = 0; i < COUNT(scales); i++) {
        struct gemm_shape shape = make_shape(0, 0);
        struct gemm_fixture fixture;
        shape.k = 16;
        shape.n = 16;
        shape.num_rows = 4 + 30 * (i % 2);
        shape.output_dtype = MOE_DTYPE_FP32;
        shape.num_matrices = 1;
        shape.spread = SPREAD_SPARSE;
        shape.seed = 6;
        gemm_fixture_init(&fixture, &shape);
        /* One product per output: 1 * (value * scale), value 2^-9 to 448. */
        memset(fixture.input_memory.data, 0, fixture.input_memory.size);
        for (int64_t m = 0; m < fixture.num_inputs; m++) {
            const float one = 1.0f;
            memcpy(fixture.input_memory.data + (size_t)(m * fixture.op.input_stride) * 4, &one, 4);
        }
        for (int64_t n = 0; n < shape.n; n++) {
            memset(fixture.weight_memory[0].data + (3 * shape.n + n) * shape.k + 1, 0,
                   (size_t)shape.k - 1);
        }
        fixture.weight_scales[3] = scales[i];
        for (int64_t t = 0; t < num_tiles; t++) {
            float *values = run_floats(&fixture, tiles[t]);
            for (int64_t n = 0; n < shape.n; n++) {
                const double code =
                    ref_load(REF_E4M3, fixture.weight_memory[0].data, (3 * shape.n + n) * shape.k);
                double expected = ref_round(REF_F32, code * (double)scales[i]);
                for (int64_t row = 0; row < fixture.num_outputs; row++) {
                    const double value = (double)values[row * fixture.output_stride + n];
                    assert_true(!fixture.written[row] || value == expected);
                }
            }
            free(values);
        }
        gemm_fixture_finish(&fixture);
    }
}

/* Rows at the ends of fp32: one product per output. */
static void test_extreme_rows(void **state)
{
    (void)state;
    static const float inputs_at[] = {0x1.fep+118f, 0x1.02p+100f, 0x1p-85f,      0x1.fep-110f,
                                      0x1p-126f,    -0x1.8p-130f, -0x1.fep-126f, -0.0f};
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    for (int i = 0; i < 2 * COUNT(inputs_at); i++) {
        const float x = inputs_at[i / 2];
        const bool is_bf16 = i % 2 != 0;
        struct gemm_shape shape = make_shape(is_bf16, 0);
        struct gemm_fixture fixture;
        shape.k = 40;
        shape.n = 16;
        shape.num_rows = 4 + 30 * (i % 3 == 0);
        shape.output_dtype = MOE_DTYPE_FP32;
        shape.num_matrices = 1;
        shape.spread = SPREAD_SPARSE;
        shape.seed = 6;
        gemm_fixture_init(&fixture, &shape);
        const int64_t column = i % shape.k;
        memset(fixture.input_memory.data, 0, fixture.input_memory.size);
        for (int64_t m = 0; m < fixture.num_inputs; m++) {
            ref_store(is_bf16 ? REF_BF16 : REF_F32, fixture.input_memory.data,
                      m * fixture.op.input_stride + column, (double)x);
        }
        fixture.weight_scales[3] = 0.75f;
        for (int64_t t = 0; t < num_tiles; t++) {
            float *values = run_floats(&fixture, tiles[t]);
            for (int64_t n = 0; n < shape.n; n++) {
                const double code = ref_load(REF_E4M3, fixture.weight_memory[0].data,
                                             (3 * shape.n + n) * shape.k + column);
                const double sum = ref_round(REF_F32, code * (double)x);
                const double expected = ref_round(REF_F32, sum * 0.75);
                for (int64_t row = 0; row < fixture.num_outputs; row++) {
                    const double value = (double)values[row * fixture.output_stride + n];
                    assert_true(!fixture.written[row] || value == expected);
                }
            }
            free(values);
        }
        gemm_fixture_finish(&fixture);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid),         cmocka_unit_test(test_layouts_agree),
        cmocka_unit_test(test_nan_is_kept),  cmocka_unit_test(test_extreme_scales),
        cmocka_unit_test(test_extreme_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
