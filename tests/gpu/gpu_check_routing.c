/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_check.h"

/* Now and then many tokens. */
static void draw_routes(struct check_case *test)
{
    check_draw_routes(test);
    if (check_draw(25) == 0) {
        test->num_tokens = PICK(16384, 65536);
        test->problem.max_tokens = test->num_tokens;
    }
}

/* The batched form: counts of any value. */
static void check_align_batched(void)
{
    struct check_case test;
    struct moe_error error;
    MOE_INIT(error);
    check_draw_routes(&test);
    check_case_init(&test, MOE_OP_ALIGN_BLOCK_SIZE);
    const int32_t num_experts = test.problem.num_experts;
    const int32_t block_size = (int32_t)PICK(1, 7, 64, 128);
    const int64_t most = PICK(1, 16, 100);
    const int64_t blocks = (most + block_size - 1) / block_size;
    struct check_mirror counts, sorted, experts, post_pad, totals;
    check_mirror_init(&counts, (size_t)num_experts * 4, 0);
    check_mirror_init(&sorted, (size_t)(num_experts * blocks * block_size) * 4, 0);
    check_mirror_init(&experts, (size_t)(num_experts * blocks) * 4, 0);
    check_mirror_init(&post_pad, 4, 0);
    check_mirror_init(&totals, (size_t)num_experts * 4, 0);
    for (int32_t e = 0; e < num_experts; e++) {
        ((int32_t *)check_on_host(&counts))[e] =
            (int32_t)(check_draw(6) == 0 ? PICK(-5, 0, INT32_MAX) : check_draw(most + 1));
    }
    struct check_mirror *all[] = {&counts, &sorted, &experts, &post_pad, &totals};
    for (size_t i = 0; i < 5; i++) {
        check_mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_align_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.call.num_tokens = 0;
        args.block_size = block_size;
        args.batch_counts = at(&counts);
        args.max_batch_rows = most;
        args.sorted_ids = at(&sorted);
        args.sorted_capacity = num_experts * blocks * block_size;
        args.expert_ids = at(&experts);
        args.expert_capacity = num_experts * blocks;
        args.num_tokens_post_pad = at(&post_pad);
        args.expert_counts = at(&totals);
        gpu_host_check(
            check_host.api->align_block_size(is_cuda ? test.cuda : test.cpu, &args, &error), &error,
            "batched align");
    }
    check_wait();
    snprintf(test.text, sizeof(test.text), "batched align E %d block %d most %lld", num_experts,
             block_size, (long long)most);
    check_mirror_compare(&sorted, "sorted_ids", test.text);
    check_mirror_compare(&experts, "expert_ids", test.text);
    check_mirror_compare(&post_pad, "num_tokens_post_pad", test.text);
    check_mirror_compare(&totals, "expert_counts", test.text);
    for (size_t i = 0; i < 5; i++) {
        check_mirror_finish(all[i]);
    }
    check_case_finish(&test);
}

void check_align(void)
{
    if (check_draw(8) == 0) {
        check_align_batched();
        return;
    }
    struct check_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_routes(&test);
    check_case_init(&test, MOE_OP_ALIGN_BLOCK_SIZE);
    const struct moe_problem *problem = &test.problem;
    const int64_t num_routes = test.num_tokens * problem->top_k;
    const int32_t ids_dtype = (int32_t)check_draw(2), mode = (int32_t)check_draw(2);
    const int32_t block_size = (int32_t)PICK(1, 7, 16, 64, 128);
    const int64_t pattern = check_draw(5), filter = check_draw(3), extra = PICK(0, 0, 13);
    const int counts_only = check_draw(8) == 0;
    int64_t sorted_capacity = 0, expert_capacity = 0;
    gpu_host_check(check_host.api->align_capacity(num_routes, problem->num_experts, block_size,
                                                  mode, &sorted_capacity, &expert_capacity, &error),
                   &error, "align_capacity");
    sorted_capacity += extra;
    expert_capacity += extra;
    struct check_mirror ids, map, sorted, experts, post_pad, counts;
    struct check_count real;
    check_mirror_init(&ids, (size_t)num_routes * (ids_dtype == MOE_IDS_INT64 ? 8 : 4), 0);
    check_mirror_init(&map, (size_t)problem->num_experts_global * 4, 0);
    check_mirror_init(&sorted, (size_t)sorted_capacity * 4, 0);
    check_mirror_init(&experts, (size_t)expert_capacity * 4, 0);
    check_mirror_init(&post_pad, 4, 0);
    check_mirror_init(&counts, (size_t)problem->num_experts * 4, 0);
    check_count_init(&real, test.num_tokens);
    check_fill_ids(check_on_host(&ids), ids_dtype, num_routes, problem->num_experts_global,
                   pattern);
    check_fill_map(check_on_host(&map), problem, problem->num_experts_global);
    struct check_mirror *all[] = {&ids, &map, &sorted, &experts, &post_pad, &counts};
    for (size_t i = 0; i < 6; i++) {
        check_mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_align_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.call.num_tokens_device = check_count_at(&real, is_cuda);
        args.topk_ids = at(&ids);
        args.ids_dtype = ids_dtype;
        args.block_size = block_size;
        check_set_filter(&args.filter, problem, filter, at(&map));
        args.filter.mode = mode;
        args.expert_counts = at(&counts);
        if (!counts_only) {
            args.sorted_ids = at(&sorted);
            args.sorted_capacity = sorted_capacity;
            args.expert_ids = at(&experts);
            args.expert_capacity = expert_capacity;
            args.num_tokens_post_pad = at(&post_pad);
        }
        gpu_host_check(
            check_host.api->align_block_size(is_cuda ? test.cuda : test.cpu, &args, &error), &error,
            "align");
    }
    check_wait();
    snprintf(
        test.text, sizeof(test.text),
        "align T %lld E %d of %d k %d block %d mode %d ids %d pattern %lld filter %lld real %d",
        (long long)test.num_tokens, problem->num_experts, problem->num_experts_global,
        problem->top_k, block_size, mode, ids_dtype, (long long)pattern, (long long)filter,
        real.value);
    check_mirror_compare(&sorted, "sorted_ids", test.text);
    check_mirror_compare(&experts, "expert_ids", test.text);
    check_mirror_compare(&post_pad, "num_tokens_post_pad", test.text);
    check_mirror_compare(&counts, "expert_counts", test.text);
    for (size_t i = 0; i < 6; i++) {
        check_mirror_finish(all[i]);
    }
    check_count_finish(&real);
    check_case_finish(&test);
}

void check_ep_preprocess(void)
{
    struct check_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_routes(&test);
    check_case_init(&test, MOE_OP_EP_PREPROCESS);
    const struct moe_problem *problem = &test.problem;
    const int64_t num_routes = test.num_tokens * problem->top_k;
    const int32_t ids_dtype = (int32_t)check_draw(2), alignment = (int32_t)PICK(1, 4, 128);
    const int64_t pattern = check_draw(5), filter = check_draw(3);
    const int64_t most = check_draw(3) == 0 && test.num_tokens > 0 && test.num_tokens <= 1000
                             ? test.num_tokens + PICK(0, 3)
                             : 0;
    const int64_t capacity =
        (most > 0 ? problem->num_experts * most
                  : num_routes + (int64_t)problem->num_experts * (alignment - 1)) +
        PICK(0, 9);
    const int wants_all = check_draw(2) == 0;
    struct check_mirror ids, map, indptr, src2dst, dst2src, reorder, m_indices, masked;
    struct check_count real;
    check_mirror_init(&ids, (size_t)num_routes * (ids_dtype == MOE_IDS_INT64 ? 8 : 4), 0);
    check_mirror_init(&map, (size_t)problem->num_experts_global * 4, 0);
    check_mirror_init(&indptr, ((size_t)problem->num_experts + 1) * 8, 0);
    check_mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    check_mirror_init(&dst2src, (size_t)capacity * 4, 0);
    check_mirror_init(&reorder, (size_t)num_routes * 4, 0);
    check_mirror_init(&m_indices, (size_t)capacity * 4, 0);
    check_mirror_init(&masked, (size_t)problem->num_experts * 4, 0);
    check_count_init(&real, test.num_tokens);
    check_fill_ids(check_on_host(&ids), ids_dtype, num_routes, problem->num_experts_global,
                   pattern);
    check_fill_map(check_on_host(&map), problem, problem->num_experts_global);
    struct check_mirror *all[] = {&ids,     &map,     &indptr,    &src2dst,
                                  &dst2src, &reorder, &m_indices, &masked};
    for (size_t i = 0; i < 8; i++) {
        check_mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_ep_preprocess_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.topk_ids = at(&ids);
        args.ids_dtype = ids_dtype;
        args.call.num_tokens_device = check_count_at(&real, is_cuda);
        args.segment_alignment = most > 0 ? 0 : alignment;
        args.max_masked_rows = most;
        args.masked_m = most > 0 ? at(&masked) : NULL;
        check_set_filter(&args.filter, problem, filter, at(&map));
        args.seg_indptr = at(&indptr);
        args.src2dst = at(&src2dst);
        if (wants_all) {
            args.dst2src = at(&dst2src);
            args.reorder_ids = at(&reorder);
            args.m_indices = at(&m_indices);
            args.row_capacity = capacity;
        }
        gpu_host_check(check_host.api->ep_preprocess(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "ep_preprocess");
    }
    check_wait();
    snprintf(
        test.text, sizeof(test.text),
        "ep_preprocess T %lld E %d of %d k %d alignment %d ids %d pattern %lld filter %lld real %d",
        (long long)test.num_tokens, problem->num_experts, problem->num_experts_global,
        problem->top_k, alignment, ids_dtype, (long long)pattern, (long long)filter, real.value);
    check_mirror_compare(&indptr, "seg_indptr", test.text);
    check_mirror_compare(&src2dst, "src2dst", test.text);
    check_mirror_compare(&dst2src, "dst2src", test.text);
    check_mirror_compare(&reorder, "reorder_ids", test.text);
    check_mirror_compare(&m_indices, "m_indices", test.text);
    check_mirror_compare(&masked, "masked_m", test.text);
    for (size_t i = 0; i < 8; i++) {
        check_mirror_finish(all[i]);
    }
    check_count_finish(&real);
    check_case_finish(&test);
}
