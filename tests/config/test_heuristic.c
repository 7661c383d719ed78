/* SPDX-License-Identifier: Apache-2.0 */
/* The cost model: closed, defined for all tiles, and ordered as the arithmetic of panels says. */
#include "config_fixture.h"
#include "heuristic.h"

#include <math.h>

static void every_tile_has_a_cost(void **state)
{
    (void)state;
    static const int64_t tokens[] = {0, 1, 7, 64, 4096, INT32_MAX};
    struct moe_problem problems[] = {
        fixture_problem(128, 8, 2048, 768, 1), fixture_problem(1, 1, 1, 1, 1),
        fixture_problem(4, 8, 64, 64, 1), fixture_problem(0, 0, 0, 0, 1)};
    problems[1].shared_inter = 4096;
    problems[2].num_experts_global = 1500;
    struct moe_device devices[] = {fixture_cpu("avx2", 2), fixture_cpu("avx2", 1024),
                                   fixture_cpu("avx2", 0)};
    devices[2].l2_bytes = 0;
    for (int32_t tile = 0; tile < MOE_NUM_TILES; tile++) {
        for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
            if (!moe_tiles_op_has_tiles(op) || !moe_tiles_runs(&moe_tiles[tile], op)) {
                continue;
            }
            for (size_t i = 0; i < 4 * 3 * 6; i++) {
                double cost = moe_heuristic_cost(&moe_tiles[tile], op, &devices[i % 3],
                                                 &problems[i / 3 % 4], tokens[i / 12]);
                assert_true(isfinite(cost) && cost > 0.0);
            }
        }
    }
}

static const struct moe_tile *pick(int32_t op, const char *isa, int32_t num_threads,
                                   const struct moe_problem *problem, int64_t num_tokens)
{
    struct moe_config *config = fixture_config("schema: moe-dispatch/1\nrules: []\n");
    struct moe_device device = fixture_cpu(isa, num_threads);
    struct moe_problem asked = *problem;
    asked.max_tokens = num_tokens;
    struct moe_dispatch *dispatch = fixture_dispatch(config, &device, &asked, FIXTURE_ALL_OPS);
    const struct moe_tile *tile = fixture_tile_at(dispatch, op, num_tokens);
    moe_dispatch_destroy(dispatch);
    moe_config_unref(config);
    return tile;
}

static void panels_grow_with_the_rows_per_expert(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(128, 8, 2048, 768, 1);
    int32_t before = 0;
    for (int64_t tokens = 1; tokens <= 1 << 16; tokens *= 2) {
        int32_t block_m = pick(MOE_OP_GEMM1, "avx2", 2, &problem, tokens)->block_m;
        assert_true(block_m >= before);
        before = block_m;
    }
    assert_true(pick(MOE_OP_GEMM1, "avx2", 2, &problem, 1)->block_m <= 4);
    assert_true(before >= 24);
    /* The same tokens on fewer experts are more rows per expert. */
    struct moe_problem few = fixture_problem(8, 8, 2048, 768, 1);
    assert_true(pick(MOE_OP_GEMM1, "avx2", 2, &few, 64)->block_m >
                pick(MOE_OP_GEMM1, "avx2", 2, &problem, 64)->block_m);
}

/* The GEMM tile of a GPU with the lowest cost for both GEMMs; no device and no build are needed. */
static const struct moe_tile *pick_on_gpu(const struct moe_problem *problem, int64_t num_tokens)
{
    struct moe_device device;
    const struct moe_tile *best = NULL;
    double lowest = INFINITY;
    MOE_INIT(device);
    device.backend = MOE_BACKEND_CUDA;
    device.sm = 90;
    device.num_sms = 132;
    device.smem_bytes = 227 * 1024;
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        const struct moe_tile *tile = &moe_tiles[i];
        if (tile->op != MOE_OP_GEMM1 || moe_kernels[tile->kernel].backend != MOE_BACKEND_CUDA) {
            continue;
        }
        const double cost = moe_heuristic_cost(tile, MOE_OP_GEMM1, &device, problem, num_tokens) +
                            moe_heuristic_cost(tile, MOE_OP_GEMM2, &device, problem, num_tokens);
        assert_true(isfinite(cost) && cost > 0.0);
        if (cost < lowest) {
            lowest = cost;
            best = tile;
        }
    }
    assert_non_null(best);
    return best;
}

static void gpu_blocks_grow_with_the_rows_per_expert(void **state)
{
    (void)state;
    static const int32_t models[][4] = {
        {128, 8, 2048, 768}, {8, 2, 4096, 14336}, {64, 6, 2048, 1408}};
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        const struct moe_problem problem =
            fixture_problem(models[m][0], models[m][1], models[m][2], models[m][3], 1);
        int32_t most = 0;
        for (int64_t tokens = 1; tokens <= 1 << 16; tokens *= 2) {
            const int32_t block_m = pick_on_gpu(&problem, tokens)->block_m;
            const int64_t rows = tokens * models[m][1] / models[m][0];
            assert_true(rows < 256 || block_m >= 144);
            assert_true(rows > 16 || block_m <= 64);
            most = block_m > most ? block_m : most;
        }
        assert_int_equal(most, models[m][3] > 1000 ? 184 : 144);
    }
}

/* Two tiles in one chain cost something on a GPU alone. */
static void gpu_edges_cost(void **state)
{
    (void)state;
    int num_gpu = 0;
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        const int is_gpu = moe_kernels[moe_tiles[i].kernel].backend == MOE_BACKEND_CUDA;
        const struct moe_tile *other = &moe_tiles[(i + 1) % MOE_NUM_TILES];
        assert_true(moe_heuristic_edge_cost(&moe_tiles[i], &moe_tiles[i]) == 0.0);
        assert_int_equal(moe_heuristic_edge_cost(&moe_tiles[i], other) > 0.0, is_gpu);
        num_gpu += is_gpu;
    }
    assert_true(num_gpu > 0 && num_gpu < MOE_NUM_TILES);
}

static void wider_instructions_win(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(64, 8, 2048, 1024, 1);
    for (int64_t tokens = 1; tokens <= 1 << 14; tokens *= 4) {
        for (int32_t op = 0; op < MOE_OP_EXPERTS; op++) {
            if (op == MOE_OP_QUANTIZE || op == MOE_OP_ALIGN_BLOCK_SIZE ||
                op == MOE_OP_EP_PREPROCESS) {
                continue; /* no AVX2 row */
            }
            assert_int_equal(pick(op, "avx2", 4, &problem, tokens)->kernel, MOE_KERNEL_CPU_AVX2);
            assert_int_equal(pick(op, "c11", 4, &problem, tokens)->kernel, MOE_KERNEL_CPU_C11);
        }
    }
}

/*
 * Few tokens and many threads need small tasks; many tokens per thread make the overhead of small
 * tasks count.
 */
static void tasks_follow_the_threads(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(16, 2, 4096, 512, 1);
    assert_int_equal(pick(MOE_OP_GATING, "avx2", 32, &problem, 32)->block_size, 1);
    assert_int_equal(pick(MOE_OP_GATING, "avx2", 2, &problem, 4096)->block_size, 32);
    assert_true(pick(MOE_OP_ACTIVATION, "avx2", 64, &problem, 64)->block_size <
                pick(MOE_OP_ACTIVATION, "avx2", 1, &problem, 4096)->block_size);
}

static void tokens_are_rounded_to_powers_of_two(void **state)
{
    (void)state;
    static const int64_t pairs[][2] = {
        {0, 1}, {1, 1}, {2, 2}, {3, 4}, {64, 64}, {65, 128}, {INT32_MAX, INT64_C(1) << 31}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        assert_int_equal(moe_heuristic_round_tokens(pairs[i][0]), pairs[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tile_has_a_cost),
        cmocka_unit_test(panels_grow_with_the_rows_per_expert),
        cmocka_unit_test(gpu_blocks_grow_with_the_rows_per_expert),
        cmocka_unit_test(gpu_edges_cost),
        cmocka_unit_test(wider_instructions_win),
        cmocka_unit_test(tasks_follow_the_threads),
        cmocka_unit_test(tokens_are_rounded_to_powers_of_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
