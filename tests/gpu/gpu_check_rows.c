/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_check.h"

static void draw_rows(struct check_case *test)
{
    check_draw_routes(test);
    test->num_tokens = PICK(0, 1, 2, 17, 64, 500, 1300);
    test->problem.hidden = (int32_t)PICK(8, 33, 72, 100, 104, 2048, 2880, 7168);
    if (test->num_tokens * test->problem.top_k * test->problem.hidden > 80000000) {
        test->num_tokens = 64;
    }
    test->problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    test->problem.tokens.dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16);
    test->problem.output_dtype = test->problem.tokens.dtype;
}

void check_draw_wide(struct check_case *test)
{
    struct moe_problem *problem = &test->problem;
    problem->num_experts = problem->num_experts_global = (int32_t)PICK(8, 64, 256);
    problem->num_physical_experts = 0;
    problem->top_k = problem->num_experts > 8 ? (int32_t)PICK(4, 8, 40) : (int32_t)PICK(4, 8);
    problem->hidden = (int32_t)PICK(2048, 2880, 4096, 7168, 16384);
    const int64_t tokens = 75000000 / ((int64_t)problem->top_k * problem->hidden);
    test->num_tokens = PICK(tokens, tokens + 1, tokens - tokens / 8);
    problem->max_tokens = test->num_tokens;
}

int64_t check_draw_masked(struct check_case *test, int64_t *num_rows)
{
    struct moe_problem *problem = &test->problem;
    const int64_t num_routes = test->num_tokens * problem->top_k;
    const int64_t most = test->num_tokens + PICK(0, 3);
    *num_rows = num_routes;
    if (check_draw(4) == 0 && most > 0 && problem->num_experts * most * problem->hidden < 4000000) {
        *num_rows = problem->num_experts * most;
        problem->max_tokens = *num_rows / problem->top_k + 1 > test->num_tokens
                                  ? *num_rows / problem->top_k + 1
                                  : test->num_tokens;
        return most;
    }
    const int64_t num_missing = PICK(0, 0, 3);
    *num_rows -= num_routes > num_missing ? num_missing : 0;
    return 0;
}

void check_pre_reorder(void)
{
    struct check_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_rows(&test);
    if (check_draw(10) == 0) {
        check_draw_wide(&test);
    }
    if (check_draw(6) == 0) { /* rows that are quantized already */
        test.problem.tokens = (struct moe_recipe){.dtype = MOE_DTYPE_FP8_E4M3,
                                                  .scale_dtype = MOE_DTYPE_FP32,
                                                  .scale_layout = MOE_SCALE_ROW_MAJOR,
                                                  .group_rows = 1};
        test.problem.output_dtype = MOE_DTYPE_BF16;
    }
    int64_t num_rows;
    const int64_t most = check_draw_masked(&test, &num_rows);
    check_case_init(&test, MOE_OP_PRE_REORDER);
    const struct moe_problem *problem = &test.problem;
    const int32_t dtype = problem->tokens.dtype;
    const size_t element = dtype == MOE_DTYPE_FP32 ? 4 : dtype == MOE_DTYPE_FP8_E4M3 ? 1 : 2;
    const int64_t num_routes = test.num_tokens * problem->top_k;
    const int64_t token_stride = problem->hidden + PICK(0, 0, 8, 3),
                  row_stride = problem->hidden + PICK(0, 0, 8, 5);
    struct check_mirror tokens, src2dst, rows;
    struct check_count real;
    check_count_init(&real, test.num_tokens);
    check_mirror_init(&tokens, (size_t)(test.num_tokens * token_stride) * element,
                      (size_t)PICK(0, 0, 1, 2) * element);
    check_mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    check_mirror_init(&rows, (size_t)(num_rows * row_stride) * element,
                      (size_t)PICK(0, 0, 1, 8) * element);
    check_fill_elements(check_on_host(&tokens), element == 1 ? MOE_DTYPE_BF16 : dtype,
                        test.num_tokens * token_stride / (element == 1 ? 2 : 1));
    check_fill_destinations(check_on_host(&src2dst), num_routes, num_rows, most);
    check_mirror_send(&tokens);
    check_send_destinations(&src2dst, num_routes, num_rows);
    check_mirror_send(&rows);
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_pre_reorder_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.call.num_tokens_device = check_count_at(&real, is_cuda);
        args.tokens = at(&tokens);
        args.token_stride = token_stride;
        args.src2dst = at(&src2dst);
        args.rows = at(&rows);
        args.row_stride = row_stride;
        args.num_rows = num_rows;
        gpu_host_check(check_host.api->pre_reorder(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "pre_reorder");
    }
    check_wait();
    snprintf(
        test.text, sizeof(test.text),
        "pre_reorder T %lld k %d H %d dtype %d strides %lld %lld rows %lld masked %lld real %d",
        (long long)test.num_tokens, problem->top_k, problem->hidden, dtype, (long long)token_stride,
        (long long)row_stride, (long long)num_rows, (long long)most, real.value);
    check_mirror_compare(&rows, "rows", test.text);
    check_mirror_finish(&tokens);
    check_mirror_finish(&src2dst);
    check_mirror_finish(&rows);
    check_count_finish(&real);
    check_case_finish(&test);
}

void check_post_reorder(int is_sum)
{
    struct check_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_rows(&test);
    test.problem.scaling_on = check_draw(2) ? MOE_SCALING_OUTPUT : MOE_SCALING_NONE;
    test.problem.routed_scaling = test.problem.scaling_on == MOE_SCALING_OUTPUT ? 2.5f : 0.0f;
    check_case_init(&test, is_sum ? MOE_OP_SUM_REDUCE : MOE_OP_POST_REORDER);
    const struct moe_problem *problem = &test.problem;
    const int32_t dtype = problem->output_dtype;
    const size_t element = dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t num_routes = test.num_tokens * problem->top_k, hidden = problem->hidden;
    const int64_t num_rows = num_routes > 3 ? num_routes - PICK(0, 0, 3) : num_routes;
    const int64_t token_stride = problem->top_k * hidden + PICK(0, 0, 8, 5);
    const int has_weights = check_draw(4) != 0, has_shared = check_draw(2) == 0,
              has_factor = check_draw(2) == 0, has_residual = check_draw(2) == 0;
    /* Into residual or shared, of equal strides. */
    const int is_in_place = !is_sum && (has_residual || has_shared) && check_draw(3) == 0;
    const int64_t output_stride = hidden + (is_in_place ? 0 : PICK(0, 0, 8, 3));
    struct check_count real;
    check_count_init(&real, test.num_tokens);
    struct check_mirror rows, src2dst, weights, shared, factor, residual, output;
    check_mirror_init(
        &rows, (size_t)(is_sum ? test.num_tokens * token_stride : num_routes * hidden) * element,
        (size_t)PICK(0, 0, 1) * element);
    check_mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    check_mirror_init(&weights, (size_t)num_routes * 4, 0);
    check_mirror_init(&shared, (size_t)(test.num_tokens * hidden) * element, 0);
    check_mirror_init(&factor, (size_t)test.num_tokens * 4, 0);
    check_mirror_init(&residual, (size_t)(test.num_tokens * hidden) * element, 0);
    check_mirror_init(&output, (size_t)(test.num_tokens * output_stride) * element,
                      (size_t)PICK(0, 0, 3) * element);
    check_fill_elements(check_on_host(&rows), dtype, (int64_t)(rows.bytes / element));
    check_fill_elements(check_on_host(&weights), MOE_DTYPE_FP32, num_routes);
    check_fill_elements(check_on_host(&shared), dtype, test.num_tokens * hidden);
    check_fill_elements(check_on_host(&factor), MOE_DTYPE_FP32, test.num_tokens);
    check_fill_elements(check_on_host(&residual), dtype, test.num_tokens * hidden);
    check_fill_destinations(check_on_host(&src2dst), num_routes, num_rows, 0);
    const struct check_mirror *target = !is_in_place ? &output : has_residual ? &residual : &shared;
    struct check_mirror *all[] = {&rows, &src2dst, &weights, &shared, &factor, &residual, &output};
    for (size_t i = 0; i < 7; i++) {
        check_mirror_send(all[i]);
    }
    check_send_destinations(&src2dst, num_routes, num_rows);
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        const struct moe_plan *plan = is_cuda ? test.cuda : test.cpu;
        if (is_sum) {
            struct moe_sum_reduce_args args;
            MOE_INIT_CALL(args);
            check_set_call(&test, is_cuda, &args.call);
            args.call.num_tokens_device = check_count_at(&real, is_cuda);
            args.input = at(&rows);
            args.token_stride = token_stride;
            args.output = at(&output);
            args.output_stride = output_stride;
            gpu_host_check(check_host.api->sum_reduce(plan, &args, &error), &error, "sum_reduce");
            continue;
        }
        struct moe_post_reorder_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.call.num_tokens_device = check_count_at(&real, is_cuda);
        args.rows = at(&rows);
        args.num_rows = num_rows;
        args.src2dst = at(&src2dst);
        args.topk_weights = has_weights ? at(&weights) : NULL;
        args.shared = has_shared ? at(&shared) : NULL;
        args.shared_factor = has_shared && has_factor ? at(&factor) : NULL;
        args.residual = has_residual ? at(&residual) : NULL;
        args.output = at(target);
        args.output_stride = output_stride;
        gpu_host_check(check_host.api->post_reorder(plan, &args, &error), &error, "post_reorder");
    }
    check_wait();
    snprintf(
        test.text, sizeof(test.text),
        "%s T %lld k %d H %lld dtype %d weights %d shared %d factor %d residual %d in place %d "
        "real %d",
        is_sum ? "sum_reduce" : "post_reorder", (long long)test.num_tokens, problem->top_k,
        (long long)hidden, dtype, has_weights, has_shared, has_factor, has_residual, is_in_place,
        real.value);
    check_mirror_compare(&output, "output", test.text);
    check_mirror_compare(&residual, "residual", test.text);
    check_mirror_compare(&shared, "shared", test.text);
    for (size_t i = 0; i < 7; i++) {
        check_mirror_finish(all[i]);
    }
    check_count_finish(&real);
    check_case_finish(&test);
}
