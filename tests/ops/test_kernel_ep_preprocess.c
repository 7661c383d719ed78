/* SPDX-License-Identifier: Apache-2.0 */
/* ep_preprocess: every output bit for bit against the reference, in both layouts; optional outputs
 * one by one left out. */
#include "kernel_routes.h"

static const int64_t token_counts[] = {0, 1, 2, 17, 64, 1000};
static const int64_t expert_counts[] = {1, 8, 60, 160, 257, 1500};
static const int64_t topks[] = {1, 2, 8, 22};
static const int32_t alignments[] = {1, 4, 100, 128};

enum output { SEG_INDPTR, SRC2DST, DST2SRC, REORDER_IDS, M_INDICES, NUM_OUTPUTS };
enum { ALL_OUTPUTS = NUM_OUTPUTS }; /* what is left out: nothing */

struct outputs {
    struct support_guard guards[NUM_OUTPUTS];
    int64_t counts[NUM_OUTPUTS];
};

static void init_outputs(struct outputs *outputs, const struct kernel_routes *routes,
                         int64_t row_capacity)
{
    outputs->counts[SEG_INDPTR] = routes->filter.num_local + 1;
    outputs->counts[SRC2DST] = routes->num_routes;
    outputs->counts[DST2SRC] = row_capacity;
    outputs->counts[REORDER_IDS] = routes->num_routes;
    outputs->counts[M_INDICES] = row_capacity;
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        outputs->guards[i] =
            kernel_output(outputs->counts[i] * (i == SEG_INDPTR ? 8 : 4), SUPPORT_POISON_INT);
    }
}

static int32_t *output_or_null(const struct outputs *outputs, enum output output, int left_out)
{
    return (int)output == left_out ? NULL : (int32_t *)(void *)outputs->guards[output].data;
}

static void check_outputs(const struct kernel_routes *routes, int64_t alignment, int64_t capacity,
                          const struct outputs *outputs, int left_out)
{
    int64_t *seg_indptr = kernel_array(outputs->counts[SEG_INDPTR], 8);
    int32_t *arrays[NUM_OUTPUTS];
    int64_t kept = 0;
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        arrays[i] = kernel_array(outputs->counts[i], 4);
    }
    const struct ref_ep_layout layout = {.seg_indptr = seg_indptr,
                                         .src2dst = arrays[SRC2DST],
                                         .dst2src = arrays[DST2SRC],
                                         .row_experts = arrays[M_INDICES],
                                         .rows_capacity = capacity};
    ref_ep_preprocess(&routes->filter, routes->ids, routes->num_routes, alignment, &layout);
    /* Local ids in row order without padding: the used entries of m_indices, packed. */
    for (int64_t i = 0; i < routes->num_routes; i++) {
        arrays[REORDER_IDS][i] = -1;
    }
    for (int64_t row = 0; row < capacity; row++) {
        if (arrays[M_INDICES][row] >= 0) {
            arrays[REORDER_IDS][kept++] = arrays[M_INDICES][row];
        }
    }
    assert_bits_equal(seg_indptr, outputs->guards[SEG_INDPTR].data, outputs->counts[SEG_INDPTR], 8);
    for (int i = SRC2DST; i < NUM_OUTPUTS; i++) {
        if (i == left_out) {
            assert_true(support_guard_is_poison(&outputs->guards[i], 0, outputs->guards[i].size));
        } else {
            assert_bits_equal(arrays[i], outputs->guards[i].data, outputs->counts[i], 4);
        }
    }
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        assert_guard_intact(&outputs->guards[i]);
        free(arrays[i]);
    }
    free(seg_indptr);
}

static void run_routes(const struct kernel_routes *routes, int32_t alignment, bool wide,
                       int64_t slack, int left_out)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_EP_PREPROCESS, variants);
    const int64_t capacity = ref_ep_preprocess(&routes->filter, routes->ids, routes->num_routes,
                                               alignment, &(const struct ref_ep_layout){0}) +
                             slack;
    struct support_guard ids = kernel_route_ids(routes, wide);
    struct outputs outputs;
    init_outputs(&outputs, routes, capacity);
    const struct moe_op_ep_preprocess op = {
        .num_routes = routes->num_routes,
        .topk_ids = ids.data,
        .ids_dtype = wide ? MOE_IDS_INT64 : MOE_IDS_INT32,
        .segment_alignment = alignment,
        .filter = kernel_filter(routes),
        .seg_indptr = (int64_t *)(void *)outputs.guards[SEG_INDPTR].data,
        .src2dst = (int32_t *)(void *)outputs.guards[SRC2DST].data,
        .dst2src = output_or_null(&outputs, DST2SRC, left_out),
        .reorder_ids = output_or_null(&outputs, REORDER_IDS, left_out),
        .m_indices = output_or_null(&outputs, M_INDICES, left_out),
        .row_capacity = capacity,
    };
    for (int v = 0; v < num_variants; v++) {
        for (int i = 0; i < NUM_OUTPUTS; i++) {
            support_guard_poison(&outputs.guards[i]);
        }
        kernel_run(&variants[v].kernels->ep_preprocess, &variants[v].tile, &op);
        check_outputs(routes, alignment, capacity, &outputs, left_out);
    }
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        support_guard_finish(&outputs.guards[i]);
    }
    support_guard_finish(&ids);
}

static void grid_matches_reference(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts),
                          KERNEL_COUNT(expert_counts),
                          KERNEL_COUNT(topks),
                          KERNEL_COUNT(alignments),
                          NUM_TRAFFICS,
                          NUM_FILTERINGS,
                          2 /* wide */,
                          2 /* slack */,
                          ALL_OUTPUTS - DST2SRC + 1 /* left out */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 2);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        struct kernel_routes routes;
        support_grid_row(&grid, row, pick);
        kernel_init_routes(&routes, &random, token_counts[pick[0]], expert_counts[pick[1]],
                           topks[pick[2]], (enum traffic)pick[4], (enum filtering)pick[5],
                           pick[6] == 1);
        run_routes(&routes, alignments[pick[3]], pick[6] == 1, pick[7] * 37, DST2SRC + pick[8]);
        kernel_finish_routes(&routes);
    }
    support_grid_finish(&grid);
}

/* The arrays of the masked layout, from the reference or from a kernel. */
struct masked_arrays {
    int64_t *seg_indptr;
    int64_t *counts;
    int32_t *arrays[NUM_OUTPUTS]; /* without SEG_INDPTR */
};

static void expect_masked(const struct kernel_routes *routes, int64_t max_rows,
                          const struct outputs *outputs, struct masked_arrays *expected)
{
    expected->seg_indptr = kernel_array(outputs->counts[SEG_INDPTR], 8);
    expected->counts = kernel_array(routes->filter.num_local, 8);
    for (int i = SRC2DST; i < NUM_OUTPUTS; i++) {
        expected->arrays[i] = kernel_array(outputs->counts[i], 4);
    }
    const struct ref_ep_layout layout = {.seg_indptr = expected->seg_indptr,
                                         .counts = expected->counts,
                                         .src2dst = expected->arrays[SRC2DST],
                                         .dst2src = expected->arrays[DST2SRC],
                                         .row_experts = expected->arrays[M_INDICES],
                                         .rows_capacity = outputs->counts[DST2SRC],
                                         .reorder_ids = expected->arrays[REORDER_IDS]};
    ref_ep_masked(&routes->filter, routes->ids, routes->num_routes, max_rows, &layout);
}

static void check_masked(const struct masked_arrays *expected, const struct outputs *outputs,
                         const struct support_guard *masked_m, int left_out)
{
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        const void *array =
            i == SEG_INDPTR ? (const void *)expected->seg_indptr : expected->arrays[i];
        if (i == left_out) {
            assert_true(support_guard_is_poison(&outputs->guards[i], 0, outputs->guards[i].size));
        } else {
            assert_bits_equal(array, outputs->guards[i].data, outputs->counts[i],
                              i == SEG_INDPTR ? 8 : 4);
        }
        assert_guard_intact(&outputs->guards[i]);
    }
    for (int64_t e = 0; e < outputs->counts[SEG_INDPTR] - 1; e++) {
        assert_int_equal(((const int32_t *)(const void *)masked_m->data)[e], expected->counts[e]);
    }
    assert_guard_intact(masked_m);
}

static void run_masked(const struct kernel_routes *routes, int64_t max_rows, bool wide,
                       int64_t slack, int left_out)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_EP_PREPROCESS, variants);
    const int64_t capacity = routes->filter.num_local * max_rows + slack;
    struct support_guard ids = kernel_route_ids(routes, wide);
    struct support_guard masked_m = kernel_output(routes->filter.num_local * 4, SUPPORT_POISON_INT);
    struct outputs outputs;
    struct masked_arrays expected;
    init_outputs(&outputs, routes, capacity);
    expect_masked(routes, max_rows, &outputs, &expected);
    const struct moe_op_ep_preprocess op = {
        .num_routes = routes->num_routes,
        .topk_ids = ids.data,
        .ids_dtype = wide ? MOE_IDS_INT64 : MOE_IDS_INT32,
        .segment_alignment = 1,
        .filter = kernel_filter(routes),
        .seg_indptr = (int64_t *)(void *)output_or_null(&outputs, SEG_INDPTR, left_out),
        .src2dst = output_or_null(&outputs, SRC2DST, ALL_OUTPUTS),
        .dst2src = output_or_null(&outputs, DST2SRC, left_out),
        .reorder_ids = output_or_null(&outputs, REORDER_IDS, left_out),
        .m_indices = output_or_null(&outputs, M_INDICES, left_out),
        .row_capacity = capacity,
        .masked_m = (int32_t *)(void *)masked_m.data,
        .max_masked_rows = max_rows,
    };
    for (int v = 0; v < num_variants; v++) {
        for (int i = 0; i < NUM_OUTPUTS; i++) {
            support_guard_poison(&outputs.guards[i]);
        }
        support_guard_poison(&masked_m);
        kernel_run(&variants[v].kernels->ep_preprocess, &variants[v].tile, &op);
        check_masked(&expected, &outputs, &masked_m, left_out);
    }
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        support_guard_finish(&outputs.guards[i]);
        free(i == SEG_INDPTR ? (void *)expected.seg_indptr : expected.arrays[i]);
    }
    free(expected.counts);
    support_guard_finish(&masked_m);
    support_guard_finish(&ids);
}

static void masked_grid_matches_reference(void **state)
{
    (void)state;
    static const int left_outs[] = {ALL_OUTPUTS, SEG_INDPTR, DST2SRC, REORDER_IDS, M_INDICES};
    const int levels[] = {KERNEL_COUNT(token_counts),
                          KERNEL_COUNT(expert_counts),
                          KERNEL_COUNT(topks),
                          3 /* room: fewer rows than tokens, as many, more */,
                          NUM_TRAFFICS,
                          NUM_FILTERINGS,
                          2 /* wide */,
                          2 /* slack */,
                          KERNEL_COUNT(left_outs)};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 3);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        struct kernel_routes routes;
        support_grid_row(&grid, row, pick);
        const int64_t num_tokens = token_counts[pick[0]];
        const int64_t rooms[] = {num_tokens / 3 + 1, num_tokens > 0 ? num_tokens : 1,
                                 num_tokens + 5};
        kernel_init_routes(&routes, &random, num_tokens, expert_counts[pick[1]], topks[pick[2]],
                           (enum traffic)pick[4], (enum filtering)pick[5], pick[6] == 1);
        run_masked(&routes, rooms[pick[3]], pick[6] == 1, pick[7] * 37, left_outs[pick[8]]);
        kernel_finish_routes(&routes);
    }
    support_grid_finish(&grid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(masked_grid_matches_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
