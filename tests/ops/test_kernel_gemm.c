/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 240 */
/*
 * The grouped GEMM kernels: against the reference within the bound of fp32 accumulation, and with
 * the same bits in every instruction set, tile and layout, whatever the order of tasks and the
 * content of scratch.
 */
#include "gemm_check.h"

static const int32_t dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16};
static const int64_t columns[] = {1, 7, 8, 9, 31, 88, 521};
static const int64_t channels[] = {1, 7, 8, 9, 31, 40, 88};
static const int64_t rows[] = {1, 4, 13, 60};

/* What a GEMM does with its sums. */
static const struct epilogue {
    int32_t num_matrices;
    bool has_activation;
    struct moe_op_act act;
} epilogues[] = {
    {1, false, {0}},
    {2, false, {0}},
    {2, true, {.activation = MOE_ACTIVATION_SILU}},
    {2, true, {.activation = MOE_ACTIVATION_SWIGLU_OAI, .alpha = 1.702f, .limit = 7.0f}},
    {2, true, {.activation = MOE_ACTIVATION_GELU_TANH}},
    {1, true, {.activation = MOE_ACTIVATION_RELU2, .ungated = 1}},
    {1, true, {.activation = MOE_ACTIVATION_GELU, .ungated = 1}},
};

static void test_grid(void **state)
{
    (void)state;
    const int levels[] = {COUNT(columns), COUNT(channels),   COUNT(rows),   COUNT(dtypes),
                          COUNT(dtypes),  COUNT(dtypes) + 1, COUNT(dtypes), COUNT(epilogues),
                          NUM_LAYOUTS,    NUM_SCHEDULES,     NUM_SPREADS,   2};
    struct support_grid grid;
    /* The full product has 10^8 rows: every pair is what is asked for, in full runs too. */
    support_grid_init_pairwise(&grid, levels, COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[COUNT(levels)];
        support_grid_row(&grid, row, pick);
        const struct epilogue *epilogue = &epilogues[pick[7]];
        const struct gemm_shape shape = {
            .k = columns[pick[0]],
            .n = channels[pick[1]],
            .num_rows = rows[pick[2]],
            .input_dtype = dtypes[pick[3]],
            .weight_dtype = dtypes[pick[4]],
            .bias_dtype = pick[5] < COUNT(dtypes) ? dtypes[pick[5]] : 0,
            .output_dtype = dtypes[pick[6]],
            .num_matrices = epilogue->num_matrices,
            .has_activation = epilogue->has_activation,
            .act = epilogue->act,
            .layout = (enum layout)pick[8],
            .schedule = (enum schedule)pick[9],
            .spread = (enum spread)pick[10],
            .has_row_weights = pick[11],
            .seed = (uint64_t)row,
        };
        (void)check_shape(&shape);
    }
    support_grid_finish(&grid);
}

/* Equal weights in different places give equal bits, few rows or many. */
static void test_layouts_agree(void **state)
{
    (void)state;
    for (int weight = 0; weight < COUNT(dtypes); weight++) {
        for (int r = 0; r < COUNT(rows); r++) {
            struct gemm_shape shape = {
                .k = 531,
                .n = 43,
                .num_rows = rows[r],
                .input_dtype = MOE_DTYPE_BF16,
                .weight_dtype = dtypes[weight],
                .bias_dtype = MOE_DTYPE_FP32,
                .output_dtype = MOE_DTYPE_FP32,
                .num_matrices = 2,
                .has_activation = true,
                .act = {.activation = MOE_ACTIVATION_SILU},
                .spread = SPREAD_HOT,
                .seed = 77,
            };
            const uint64_t expected = check_shape(&shape);
            for (int layout = 1; layout < NUM_LAYOUTS; layout++) {
                shape.layout = (enum layout)layout;
                assert_int_equal(check_shape(&shape), expected);
            }
        }
    }
}

/* The sign of zero too: lanes that hold -0 meet the zero products behind the last column. */
static void test_signs_of_zero_agree(void **state)
{
    (void)state;
    for (int64_t k = 7; k <= 17; k++) {
        struct gemm_shape shape = {
            .k = k,
            .n = 16,
            .num_rows = 9,
            .input_dtype = MOE_DTYPE_FP32,
            .weight_dtype = MOE_DTYPE_FP32,
            .output_dtype = MOE_DTYPE_FP32,
            .num_matrices = 1,
            .underflows = true,
            .spread = SPREAD_HOT,
            .seed = 3,
        };
        const uint64_t expected = check_shape(&shape);
        for (int layout = 1; layout < NUM_LAYOUTS; layout++) {
            shape.layout = (enum layout)layout;
            assert_int_equal(check_shape(&shape), expected);
        }
    }
}

/* More rows than one task takes, more columns than any tile keeps, more channels than a block. */
static void test_large_dimensions(void **state)
{
    (void)state;
    const struct gemm_shape many_rows = {.k = 24,
                                         .n = 24,
                                         .num_rows = 700,
                                         .input_dtype = MOE_DTYPE_BF16,
                                         .weight_dtype = MOE_DTYPE_BF16,
                                         .output_dtype = MOE_DTYPE_BF16,
                                         .num_matrices = 1,
                                         .spread = SPREAD_HOT,
                                         .schedule = SCHEDULE_GATHERED,
                                         .seed = 1};
    (void)check_shape(&many_rows);
    struct gemm_shape many_blocks = many_rows;
    many_blocks.schedule = SCHEDULE_BLOCKS_SCATTER;
    (void)check_shape(&many_blocks);
    struct gemm_shape long_rows = many_rows;
    long_rows.k = 2880;
    long_rows.n = 72;
    long_rows.num_rows = 7;
    long_rows.layout = LAYOUT_TRANSPOSED_INTERLEAVED;
    (void)check_shape(&long_rows);
    long_rows.k = 9001;
    long_rows.n = 9;
    long_rows.layout = LAYOUT_APART;
    (void)check_shape(&long_rows);
}

/* seg_indptr of a host may hold anything. */
static void test_wild_segments(void **state)
{
    (void)state;
    const struct gemm_shape shape = {.k = 16,
                                     .n = 16,
                                     .num_rows = 20,
                                     .input_dtype = MOE_DTYPE_FP32,
                                     .weight_dtype = MOE_DTYPE_FP32,
                                     .output_dtype = MOE_DTYPE_FP32,
                                     .num_matrices = 1,
                                     .seed = 5};
    static const int64_t wild[][FIXTURE_EXPERTS + 1] = {
        {0, 0, 0, 0, 0, 0},
        {-5, 3, 1, INT64_MAX, INT64_MIN, 4},
        {INT64_MAX, INT64_MAX, 0, 0, INT64_MIN, INT64_MIN},
        {4, 3, 2, 1, 0, -1},
        {1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20, 6 << 20},
    };
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    struct gemm_fixture fixture;
    gemm_fixture_init(&fixture, &shape);
    for (int i = 0; i < COUNT(wild); i++) {
        struct gemm_fixture changed = fixture;
        int64_t indptr[FIXTURE_EXPERTS + 1];
        memcpy(indptr, wild[i], sizeof(indptr));
        changed.op.seg_indptr = indptr;
        for (int64_t t = 0; t < num_tiles; t++) {
            struct support_guard output;
            run_tile(&changed, tiles[t], &output);
            const int64_t num_tasks = kernels_of(tiles[t])->gemm.num_tasks(&changed.op, tiles[t]);
            assert_int_equal(num_tasks == 0, i != 1);
            support_guard_finish(&output);
        }
    }
    gemm_fixture_finish(&fixture);
}

/* num_tokens_post_pad and the lengths of expert_ids and row_ids bound each other. */
static void test_wild_post_pad(void **state)
{
    (void)state;
    const struct gemm_shape shape = {.k = 16,
                                     .n = 16,
                                     .num_rows = 20,
                                     .input_dtype = MOE_DTYPE_FP32,
                                     .weight_dtype = MOE_DTYPE_FP32,
                                     .output_dtype = MOE_DTYPE_FP32,
                                     .num_matrices = 1,
                                     .schedule = SCHEDULE_BLOCKS,
                                     .seed = 6};
    static const int32_t post_pads[] = {0, -1, INT32_MIN, INT32_MAX, 1, 5};
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    struct gemm_fixture fixture;
    gemm_fixture_init(&fixture, &shape);
    for (int i = 0; i < COUNT(post_pads); i++) {
        for (int64_t cut = 0; cut < 2 * FIXTURE_BLOCK; cut++) {
            struct gemm_fixture changed = fixture;
            changed.op.num_tokens_post_pad = &post_pads[i];
            changed.op.num_rows -= cut;
            for (int64_t t = 0; t < num_tiles; t++) {
                struct support_guard output;
                run_tile(&changed, tiles[t], &output);
                assert_int_equal(kernels_of(tiles[t])->gemm.num_tasks(&changed.op, tiles[t]) == 0,
                                 post_pads[i] <= 0);
                support_guard_finish(&output);
            }
        }
    }
    gemm_fixture_finish(&fixture);
}

/* Positions behind the last block have no expert, even if row_ids and num_tokens_post_pad do. */
static void test_blocks_bound_positions(void **state)
{
    (void)state;
    const struct gemm_shape shape = {.k = 16,
                                     .n = 16,
                                     .num_rows = 20,
                                     .input_dtype = MOE_DTYPE_FP32,
                                     .weight_dtype = MOE_DTYPE_FP32,
                                     .output_dtype = MOE_DTYPE_FP32,
                                     .num_matrices = 1,
                                     .schedule = SCHEDULE_BLOCKS,
                                     .seed = 7};
    const int32_t post_pad = INT32_MAX;
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    struct gemm_fixture fixture;
    gemm_fixture_init(&fixture, &shape);
    for (int64_t cut = 0; cut < FIXTURE_BLOCK; cut++) {
        struct gemm_fixture changed = fixture;
        changed.op.num_tokens_post_pad = &post_pad;
        changed.op.num_segments -= 1;
        changed.op.num_rows -= cut;
        const size_t begin =
            (size_t)(changed.op.num_segments * FIXTURE_BLOCK * fixture.output_stride) *
            sizeof(float);
        for (int64_t t = 0; t < num_tiles; t++) {
            struct support_guard output;
            run_tile(&changed, tiles[t], &output);
            assert_true(support_guard_is_poison(&output, begin, output.size));
            assert_false(support_guard_is_poison(&output, 0, begin));
            support_guard_finish(&output);
        }
    }
    gemm_fixture_finish(&fixture);
}

/* One token must give work to several threads, and rows of one expert too. */
static void test_enough_tasks(void **state)
{
    (void)state;
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    int64_t decode[129];
    for (int e = 0; e <= 128; e++) {
        decode[e] = e < 8 ? e : 8;
    }
    const int64_t hot[] = {0, 8192, 8192};
    struct moe_op_gemm op = {.num_segments = 128,
                             .num_experts = 128,
                             .seg_indptr = decode,
                             .num_rows = 8,
                             .n = 768,
                             .k = 2048,
                             .num_matrices = 2};
    for (int64_t t = 0; t < num_tiles; t++) {
        op.num_segments = 128;
        op.seg_indptr = decode;
        op.num_rows = 8;
        assert_true(kernels_of(tiles[t])->gemm.num_tasks(&op, tiles[t]) >= 64);
        op.num_segments = 2;
        op.seg_indptr = hot;
        op.num_rows = 8192;
        assert_true(kernels_of(tiles[t])->gemm.num_tasks(&op, tiles[t]) >= 256);
        op.seg_indptr = decode + 8; /* nothing */
        assert_int_equal(kernels_of(tiles[t])->gemm.num_tasks(&op, tiles[t]), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid),
        cmocka_unit_test(test_layouts_agree),
        cmocka_unit_test(test_large_dimensions),
        cmocka_unit_test(test_wild_segments),
        cmocka_unit_test(test_wild_post_pad),
        cmocka_unit_test(test_enough_tasks),
        cmocka_unit_test(test_signs_of_zero_agree),
        cmocka_unit_test(test_blocks_bound_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
