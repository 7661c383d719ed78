/* SPDX-License-Identifier: Apache-2.0 */
/* The work of the CUDA layer's GEMMs: what each knows before it waits for the node in front of it,
 * from ids, counts or segments, and when GEMM1 sorts the routes itself. */
#include "cuda_args.h"
#include "cuda_layer_fixture.h"

enum { MOST_SORTED = 512 }; /* routes; docs/adr/0018 */

_Static_assert(sizeof(struct moe_cuda_gemm) <= FAKE_ARGS_BYTES, "the driver keeps all of it");

/* What the last three launches of a layer call are given. */
struct chain_args {
    struct moe_cuda_gemm gemm1, gemm2;
    struct moe_cuda_post_reorder combine;
    int num_launches;
    uint32_t gemm1_smem_bytes;
};

static void read_chain(const struct bound *bound, int64_t num_tokens, int has_ids,
                       struct chain_args *out)
{
    driver->args_of = "GEMM";
    driver->args_bytes = sizeof(out->gemm1);
    run_layer(bound, num_tokens, has_ids);
    const int last = driver->num_launches - 1;
    read_args("GEMM", last - 2, &out->gemm1, sizeof(out->gemm1));
    read_args("GEMM", last - 1, &out->gemm2, sizeof(out->gemm2));
    out->gemm1_smem_bytes = driver->launches[last - 2].smem_bytes;
    driver->args_of = "POST_REORDER";
    driver->args_bytes = sizeof(out->combine);
    run_layer(bound, num_tokens, has_ids);
    read_args("POST_REORDER", last, &out->combine, sizeof(out->combine));
    out->num_launches = driver->num_launches;
}

/* Few routes GEMM1 sorts itself, and GEMM2 counts them; of some more GEMM1 counts what the sort in
 * front of it sorts and begins under it, and GEMM2 reads segments that are two nodes old; of more
 * than it counts GEMM1 waits for the sort. */
static void work_before_the_wait(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    problem.max_tokens = MOE_CUDA_GEMM_MAX_ROUTES;
    struct bound bound = bind_or_fail(&problem, 0);
    const int64_t most_sorted = MOST_SORTED / problem.top_k;
    const int64_t most = MOE_CUDA_GEMM_MAX_ROUTES / problem.top_k;
    const int64_t counts[] = {1, most_sorted, most_sorted + 1, most, most + 1};
    for (int i = 0; i < 5; i++) {
        const int is_sorted = i < 2, is_counted = i < 4;
        struct chain_args chain;
        read_chain(&bound, counts[i], 1, &chain);
        const struct moe_cuda_gemm_routes *routes = &chain.gemm1.routes;
        assert_int_equal(chain.num_launches, is_sorted ? 3 : 4);
        assert_int_equal(chain.gemm1.is_early, is_counted);
        assert_ptr_equal(routes->topk_ids, is_counted ? ON_DEVICE(3) : NULL);
        assert_int_equal(routes->src2dst != NULL, is_sorted);
        assert_int_equal(chain.gemm1.op.row_ids == NULL, is_sorted);
        assert_int_equal(chain.gemm1.op.num_row_ids, counts[i] * problem.top_k);
        assert_int_equal(chain.gemm1.op.row_ids_div, problem.top_k);
        assert_int_equal(chain.gemm2.is_early, 1);
        assert_ptr_equal(chain.gemm2.routes.topk_ids, is_sorted ? ON_DEVICE(3) : NULL);
        assert_null(chain.gemm2.routes.src2dst);
        assert_int_equal(chain.combine.is_early, 1);
        if (is_sorted) {
            assert_ptr_equal(chain.combine.op.src2dst, routes->src2dst);
        }
        if (is_counted) {
            assert_int_equal(routes->num_routes, counts[i] * problem.top_k);
            assert_int_equal(routes->top_k, problem.top_k);
            assert_int_equal(routes->ids_dtype, MOE_IDS_INT32);
            assert_int_equal(routes->filter.num_experts, chain.gemm1.op.num_segments);
            assert_int_equal(routes->filter.num_ids, problem.num_experts);
        }
    }
    unbind(&bound);
    assert_nothing_left();
}

/* GEMM1 that sorts has shared memory for the order. Ids of a gating that is the node in front are
 * not older than it. */
static void gemm1_sorts(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    struct chain_args few, more;
    struct bound bound = bind_or_fail(&problem, 0);
    read_chain(&bound, 1, 1, &few);
    read_chain(&bound, 2, 1, &more);
    assert_int_equal(more.gemm1_smem_bytes,
                     few.gemm1_smem_bytes + (uint32_t)MOE_CUDA_GEMM_ORDER_BYTES(problem.top_k));
    unbind(&bound);
    problem.gating = MOE_GATING_SOFTMAX;
    bound = bind_or_fail(&problem, 0);
    read_chain(&bound, 1, 0, &few);
    assert_non_null(few.gemm1.routes.src2dst);
    assert_int_equal(few.gemm1.is_early, 0);
    assert_ptr_equal(few.gemm2.routes.topk_ids, few.gemm1.routes.topk_ids);
    assert_int_equal(few.gemm2.is_early, 1);
    unbind(&bound);
    assert_nothing_left();
}

#define ONE_CONSUMER_RULE        \
    "schema: moe-dispatch/1\n"   \
    "rules:\n"                   \
    "- name: one consumer\n"     \
    "  match: {backend: cuda}\n" \
    "  buckets:\n"               \
    "  - max_tokens: inf\n"      \
    "    gemm1: {kernel: sm90.gemm, BLOCK_SIZE_M: 32, BLOCK_SIZE_N: 128}\n"

/* Where it cannot, a sort is in front of it, for one token as for many: routing weights on the
 * input, clusters, more experts than the staging has counts for. */
static void gemm1_does_not_sort(void **state)
{
    (void)state;
    struct moe_problem problem = make_problem();
    struct chain_args chain;
    problem.flags |= MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT;
    struct bound bound = bind_or_fail(&problem, 0);
    read_chain(&bound, 1, 1, &chain);
    assert_int_equal(chain.num_launches, 4);
    assert_null(chain.gemm1.routes.src2dst);
    assert_non_null(chain.gemm1.op.row_ids);
    assert_non_null(chain.gemm1.op.row_weights);
    unbind(&bound);
    problem = make_problem();
    bound = bind_or_fail(&problem, 0);
    replan(&bound, &problem, PAIR_RULES(144));
    run_layer(&bound, 1, 1);
    EXPECT_LAUNCHES(1, "EP_PREPROCESS", "SM90_PAIR_144", "SM90_PAIR_144", "POST_REORDER");
    unbind(&bound);
    problem.num_experts = problem.num_experts_global =
        MOE_CUDA_GEMM_STAGING_BYTES / MOE_CUDA_GEMM_SORT_WARPS; /* counts, but no ranks */
    bound = bind_or_fail(&problem, 0);
    replan(&bound, &problem, ONE_CONSUMER_RULE);
    read_chain(&bound, 1, 1, &chain);
    assert_int_equal(chain.num_launches, 4);
    assert_null(chain.gemm1.routes.src2dst);
    unbind(&bound);
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(work_before_the_wait, with_fresh_driver),
        cmocka_unit_test_setup(gemm1_sorts, with_fresh_driver),
        cmocka_unit_test_setup(gemm1_does_not_sort, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
