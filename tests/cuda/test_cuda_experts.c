/* SPDX-License-Identifier: Apache-2.0 */
/* grouped_gemm and experts on a driver that plays a device: their launches and what these are given
 * to read and write, passes where the workspace is capped, refusals, failures of every call. */
#include "cuda_args.h"
#include "cuda_fixture.h"

enum { MAX_FAIL_AT = 4000, NUM_TOKENS = 100, NUM_EXPERTS = 16, HIDDEN = 256, INTER = 128 };

static struct moe_problem make_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = NUM_EXPERTS;
    problem.top_k = 4;
    problem.hidden = HIDDEN;
    problem.inter = INTER;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = NUM_TOKENS;
    return problem;
}

static struct moe_operand make_operand(int number, int64_t rows, int64_t columns)
{
    const struct moe_operand operand = {.base = ON_DEVICE(number),
                                        .expert_stride = rows * columns,
                                        .row_stride = columns,
                                        .col_stride = 1};
    return operand;
}

static int32_t bind(int32_t op, uint64_t cap, struct bound *bound, struct moe_error *error)
{
    const struct moe_problem problem = make_problem();
    struct moe_weights_desc desc;
    struct moe_plan_options options;
    MOE_INIT(desc);
    MOE_INIT(options);
    desc.gate = make_operand(10, INTER, HIDDEN);
    desc.up = make_operand(11, INTER, HIDDEN);
    desc.down = make_operand(12, HIDDEN, INTER);
    options.ops = op == MOE_OP_EXPERTS ? UINT64_C(1) << op
                                       : UINT64_C(1) << MOE_OP_GEMM1 | UINT64_C(1) << MOE_OP_GEMM2;
    options.workspace_cap = cap;
    memset(bound, 0, sizeof(*bound));
    MOE_INIT(bound->info);
    int32_t status = create(&bound->context, error);
    if (status == MOE_STATUS_OK) {
        status =
            api->weights_bind(bound->context, &problem, &desc, NULL, 0, &bound->weights, error);
    }
    if (status == MOE_STATUS_OK) {
        status = api->plan_create(bound->context, &problem, &options, &bound->plan, error);
    }
    return status == MOE_STATUS_OK ? api->plan_info(bound->plan, &bound->info, error) : status;
}

static struct bound bind_or_fail(int32_t op, uint64_t cap)
{
    struct bound bound;
    struct moe_error error;
    MOE_INIT(error);
    if (bind(op, cap, &bound, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    driver->args_of = "GEMM";
    driver->args_bytes = sizeof(struct moe_cuda_gemm);
    return bound;
}
_Static_assert(sizeof(struct moe_cuda_gemm) <= FAKE_ARGS_BYTES, "the driver keeps all of it");

static struct moe_cuda_gemm args_of(int launch)
{
    struct moe_cuda_gemm args;
    memcpy(&args, driver->launches[launch].args, sizeof(args));
    return args;
}

/* Launch number `launch` is of a kernel with `word` in its symbol, with a CTA per multiprocessor
 * for a GEMM, and begins under the tail of the one before unless it is the first. */
static void expect_launch(int launch, const char *word)
{
    const struct fake_launch *got = &driver->launches[launch];
    if (launch >= driver->num_launches || strstr(got->symbol, word) == NULL) {
        fail_msg("launch %d of %d is %s, expected %s", launch, driver->num_launches, got->symbol,
                 word);
    }
    assert_int_equal(got->is_chained, launch != 0);
    assert_ptr_equal(got->stream, ON_DEVICE(9));
    assert_int_equal(got->num_refused, 0);
    if (strstr(word, "GEMM") != NULL) {
        assert_int_equal(got->grid[0], driver->num_sms);
        assert_int_equal(got->grid[1], 1);
    }
}

static struct moe_grouped_gemm_args make_gemm_args(const struct bound *bound, int32_t which)
{
    struct moe_grouped_gemm_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = NUM_TOKENS;
    args.call.stream = ON_DEVICE(9);
    args.weights = bound->weights;
    args.which = which;
    args.input = ON_DEVICE(1);
    args.output = ON_DEVICE(2);
    args.num_rows = 300;
    args.seg_indptr = ON_DEVICE(3);
    return args;
}

static void run_gemm(const struct bound *bound, const struct moe_grouped_gemm_args *args)
{
    const int64_t allocations = allocator.num_calls;
    struct moe_error error;
    MOE_INIT(error);
    driver->num_launches = 0;
    if (api->grouped_gemm(bound->plan, args, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    assert_int_equal(allocator.num_calls, allocations);
    assert_int_equal(driver->num_pushed, 1);
}

static void gemm_of_each_kind(void **state)
{
    (void)state;
    static const struct {
        int32_t which, num_matrices, n, k, has_activation;
        int64_t output_stride;
    } kinds[] = {
        {MOE_GEMM_GATE_UP, 2, INTER, HIDDEN, 0, 2 * INTER},
        {MOE_GEMM_GATE_UP_ACT, 2, INTER, HIDDEN, 1, INTER},
        {MOE_GEMM_DOWN, 1, HIDDEN, INTER, 0, HIDDEN},
    };
    struct bound bound = bind_or_fail(MOE_OP_GEMM1, 0);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const struct moe_grouped_gemm_args args = make_gemm_args(&bound, kinds[i].which);
        run_gemm(&bound, &args);
        assert_int_equal(driver->num_launches, 1);
        expect_launch(0, "GEMM");
        const struct moe_cuda_gemm got = args_of(0);
        assert_int_equal(got.op.num_matrices, kinds[i].num_matrices);
        assert_int_equal(got.op.n, kinds[i].n);
        assert_int_equal(got.op.k, kinds[i].k);
        assert_int_equal(got.op.has_activation, kinds[i].has_activation);
        assert_int_equal(got.op.input_stride, kinds[i].k);
        assert_int_equal(got.op.output_stride, kinds[i].output_stride);
        assert_int_equal(got.op.num_rows, 300);
        assert_int_equal(got.op.num_segments, NUM_EXPERTS);
        assert_ptr_equal(got.op.input, ON_DEVICE(1));
        assert_ptr_equal(got.op.output, ON_DEVICE(2));
        assert_ptr_equal(got.op.seg_indptr, ON_DEVICE(3));
        assert_null(got.op.masked_m);
        assert_null(got.op.expert_ids);
        assert_int_equal(got.is_early, 0); /* nobody knows what the host queued before */
    }
    unbind(&bound);
    assert_nothing_left();
}

static void gemm_of_other_rows(void **state)
{
    (void)state;
    struct bound bound = bind_or_fail(MOE_OP_GEMM1, 0);
    struct moe_grouped_gemm_args args = make_gemm_args(&bound, MOE_GEMM_DOWN);
    args.seg_indptr = NULL;
    args.masked_m = ON_DEVICE(4);
    args.max_masked_rows = 8;
    args.num_rows = NUM_EXPERTS * 8;
    run_gemm(&bound, &args);
    expect_launch(0, "GEMM");
    struct moe_cuda_gemm got = args_of(0);
    assert_ptr_equal(got.op.masked_m, ON_DEVICE(4));
    assert_int_equal(got.op.max_masked_rows, 8);
    assert_null(got.op.seg_indptr);

    args = make_gemm_args(&bound, MOE_GEMM_GATE_UP_ACT);
    args.seg_indptr = NULL;
    args.sorted_ids = ON_DEVICE(5);
    args.expert_ids = ON_DEVICE(6);
    args.num_tokens_post_pad = ON_DEVICE(7);
    args.block_size = 16;
    args.num_rows = NUM_TOKENS * 4;
    run_gemm(&bound, &args);
    expect_launch(0, "GEMM");
    got = args_of(0);
    assert_ptr_equal(got.op.row_ids, ON_DEVICE(5));
    assert_ptr_equal(got.op.expert_ids, ON_DEVICE(6));
    assert_ptr_equal(got.op.num_tokens_post_pad, ON_DEVICE(7));
    assert_int_equal(got.op.block_size, 16);
    assert_int_equal(got.op.row_ids_div, 4);

    args = make_gemm_args(&bound, MOE_GEMM_DOWN);
    args.num_rows = 0;
    run_gemm(&bound, &args);
    assert_int_equal(driver->num_launches, 0);
    unbind(&bound);
    assert_nothing_left();
}

static struct moe_experts_args make_experts_args(const struct bound *bound, int64_t num_rows,
                                                 int64_t max_masked_rows)
{
    struct moe_experts_args args;
    MOE_INIT_CALL(args);
    args.call.stream = ON_DEVICE(9);
    args.call.workspace = ON_DEVICE(20);
    args.call.workspace_bytes = bound->info.workspace_bytes;
    args.weights = bound->weights;
    args.rows = ON_DEVICE(1);
    args.num_rows = num_rows;
    args.output = ON_DEVICE(2);
    args.max_masked_rows = max_masked_rows;
    if (max_masked_rows > 0) {
        args.masked_m = ON_DEVICE(4);
    } else {
        args.seg_indptr = ON_DEVICE(3);
    }
    return args;
}

static void run_experts(const struct bound *bound, const struct moe_experts_args *args)
{
    const int64_t allocations = allocator.num_calls;
    struct moe_error error;
    MOE_INIT(error);
    driver->num_launches = 0;
    if (api->experts(bound->plan, args, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    assert_int_equal(allocator.num_calls, allocations);
    assert_int_equal(driver->num_pushed, 1);
}

/* Bytes from one address of the device to another. */
static int64_t distance(const void *from, const void *to)
{
    return (int64_t)((uintptr_t)to - (uintptr_t)from);
}

/* Launches `first` and the next one: rows from `row` on become an intermediate, that outputs. Row
 * `offset` of the addresses is the first that is used; it and `num_rows` lie in the workspace. */
static void expect_pair(const struct bound *bound, int first, int64_t row, int64_t offset,
                        int64_t num_rows)
{
    const struct moe_cuda_gemm gemm1 = args_of(first), gemm2 = args_of(first + 1);
    expect_launch(first, "GEMM");
    expect_launch(first + 1, "GEMM");
    assert_int_equal(gemm1.op.num_matrices, 2);
    assert_int_equal(gemm1.op.has_activation, 1);
    assert_int_equal(gemm1.is_early, 0);
    assert_int_equal(gemm2.op.num_matrices, 1);
    assert_int_equal(gemm2.is_early, 1);
    assert_int_equal(distance(ON_DEVICE(1), gemm1.op.input), row * HIDDEN * 2);
    assert_int_equal(distance(ON_DEVICE(2), gemm2.op.output), row * HIDDEN * 2);
    assert_ptr_equal(gemm1.op.output, gemm2.op.input);
    assert_ptr_equal(gemm1.op.masked_m, gemm2.op.masked_m);
    assert_ptr_equal(gemm1.op.seg_indptr, gemm2.op.seg_indptr);
    const int64_t begin = distance(ON_DEVICE(20), gemm1.op.output) + offset * INTER * 2;
    assert_true(begin >= 0);
    assert_true((uint64_t)(begin + num_rows * INTER * 2) <= bound->info.workspace_bytes);
    /* GEMM2 may read all rows that it is told of. */
    const int64_t end =
        distance(ON_DEVICE(20), gemm2.op.input) + gemm2.op.num_rows * gemm2.op.input_stride * 2;
    assert_true((uint64_t)end <= bound->info.workspace_bytes);
}

static void experts_at_once(void **state)
{
    (void)state;
    struct bound bound = bind_or_fail(MOE_OP_EXPERTS, 0);
    const int64_t max_rows = NUM_TOKENS * 4; /* what a workspace without cap is for */
    struct moe_experts_args args = make_experts_args(&bound, max_rows, 0);
    run_experts(&bound, &args);
    assert_int_equal(driver->num_launches, 2);
    expect_pair(&bound, 0, 0, 0, max_rows);
    assert_ptr_equal(args_of(0).op.seg_indptr, ON_DEVICE(3));

    const int64_t most = max_rows / NUM_EXPERTS;
    args = make_experts_args(&bound, NUM_EXPERTS * most, most);
    run_experts(&bound, &args);
    assert_int_equal(driver->num_launches, 2);
    expect_pair(&bound, 0, 0, 0, NUM_EXPERTS * most);
    assert_ptr_equal(args_of(0).op.masked_m, ON_DEVICE(4));

    args = make_experts_args(&bound, 0, 0);
    run_experts(&bound, &args);
    assert_int_equal(driver->num_launches, 0);
    unbind(&bound);
    assert_nothing_left();
}

/* A plan whose workspace is for `num_rows` rows of a pass. */
static struct bound bind_for_rows(int64_t num_rows)
{
    const uint64_t segments = ((NUM_EXPERTS + 1) * 8 + 255) / 256 * 256;
    struct bound bound =
        bind_or_fail(MOE_OP_EXPERTS, segments + ((uint64_t)num_rows * INTER * 2 + 255) / 256 * 256);
    assert_int_equal(bound.info.chunk_tokens * 4, num_rows); /* 4 slots */
    return bound;
}

static void contiguous_windows(void **state)
{
    (void)state;
    enum { PER_PASS = 80, NUM_ROWS = 390 };
    struct bound bound = bind_for_rows(PER_PASS);
    const struct moe_experts_args args = make_experts_args(&bound, NUM_ROWS, 0);
    run_experts(&bound, &args);
    assert_int_equal(driver->num_launches, 3 * 5);
    for (int pass = 0; pass < 5; pass++) {
        const int64_t left = NUM_ROWS - pass * PER_PASS;
        expect_launch(3 * pass, "clip_segments");
        expect_pair(&bound, 3 * pass + 1, pass * PER_PASS, 0, left < PER_PASS ? left : PER_PASS);
        assert_int_equal(distance(ON_DEVICE(20), args_of(3 * pass + 1).op.seg_indptr), 0);
    }
    unbind(&bound);
    assert_nothing_left();
}

/* Passes of several experts, then of parts of one. */
static void masked_windows(void **state)
{
    (void)state;
    enum { MOST = 25 };
    static const struct {
        int64_t per_pass;
        int num_together, num_parts; /* experts of a pass; passes of an expert */
    } cases[] = {{80, 3, 1}, {40, 1, 1}, {12, 1, 3}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bound bound = bind_for_rows(cases[i].per_pass);
        const struct moe_experts_args args = make_experts_args(&bound, NUM_EXPERTS * MOST, MOST);
        run_experts(&bound, &args);
        int launch = 0;
        for (int expert = 0; expert < NUM_EXPERTS; expert += cases[i].num_together) {
            for (int part = 0; part < cases[i].num_parts; part++, launch += 3) {
                if (launch + 2 >= FAKE_MAX_LAUNCHES) {
                    continue; /* counted, not kept */
                }
                const int64_t row = part * cases[i].per_pass;
                const int64_t left = MOST - row;
                expect_launch(launch, "clip_masked");
                expect_pair(&bound, launch + 1, row, expert * (int64_t)MOST,
                            cases[i].num_parts == 1    ? MOST
                            : left < cases[i].per_pass ? left
                                                       : cases[i].per_pass);
                assert_int_equal(distance(ON_DEVICE(20), args_of(launch + 1).op.masked_m), 0);
                assert_int_equal(args_of(launch + 1).op.max_masked_rows, MOST);
            }
        }
        assert_int_equal(driver->num_launches, launch);
        unbind(&bound);
        assert_nothing_left();
    }
}

static void unaligned_rows(void **state)
{
    (void)state;
    struct moe_error error;
    MOE_INIT(error);
    struct bound bound = bind_or_fail(MOE_OP_EXPERTS, 0);
    struct moe_experts_args args = make_experts_args(&bound, 10, 0);
    args.rows = (const char *)args.rows + 2;
    driver->num_launches = 0;
    assert_int_equal(api->experts(bound.plan, &args, &error), MOE_STATUS_UNSUPPORTED);
    assert_non_null(strstr(error.message, "experts: rows"));
    unbind(&bound);

    bound = bind_or_fail(MOE_OP_GEMM1, 0);
    struct moe_grouped_gemm_args gemm = make_gemm_args(&bound, MOE_GEMM_DOWN);
    gemm.input = (const char *)gemm.input + 2;
    assert_int_equal(api->grouped_gemm(bound.plan, &gemm, &error), MOE_STATUS_UNSUPPORTED);
    assert_non_null(strstr(error.message, "grouped_gemm: input"));
    assert_int_equal(driver->num_launches, 0);
    unbind(&bound);
    assert_nothing_left();
}

/* Every call of the driver fails once, while all is made and one operation runs: a status and a
 * sentence, and nothing is left. */
static void fail_each_call(int32_t op, uint64_t cap)
{
    int num_failed = 0, num_failed_runs = 0, fail_at = 1;
    for (; fail_at < MAX_FAIL_AT; fail_at++) {
        struct bound bound;
        struct moe_error error;
        MOE_INIT(error);
        reset_driver();
        driver->fail_at = fail_at;
        driver->fail_result = CUDA_ERROR_UNKNOWN;
        int32_t status = bind(op, cap, &bound, &error);
        if (status == MOE_STATUS_OK) {
            const struct moe_experts_args experts = make_experts_args(&bound, 100, 0);
            const struct moe_grouped_gemm_args gemm = make_gemm_args(&bound, MOE_GEMM_DOWN);
            status = op == MOE_OP_EXPERTS ? api->experts(bound.plan, &experts, &error)
                                          : api->grouped_gemm(bound.plan, &gemm, &error);
            num_failed_runs += status != MOE_STATUS_OK;
        }
        num_failed += status != MOE_STATUS_OK;
        assert_true(status == MOE_STATUS_OK || strlen(error.message) > 10);
        const int is_over = driver->num_calls < fail_at;
        unbind(&bound);
        assert_nothing_left();
        if (is_over) {
            break;
        }
    }
    assert_true(num_failed > 50);
    assert_true(num_failed_runs >= 1);
    assert_true(fail_at < MAX_FAIL_AT);
}

static void every_call_fails_once(void **state)
{
    (void)state;
    fail_each_call(MOE_OP_GEMM1, 0);
    fail_each_call(MOE_OP_EXPERTS, 0);
    fail_each_call(MOE_OP_EXPERTS, 256 + 40 * INTER * 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(gemm_of_each_kind, with_fresh_driver),
        cmocka_unit_test_setup(gemm_of_other_rows, with_fresh_driver),
        cmocka_unit_test_setup(experts_at_once, with_fresh_driver),
        cmocka_unit_test_setup(contiguous_windows, with_fresh_driver),
        cmocka_unit_test_setup(masked_windows, with_fresh_driver),
        cmocka_unit_test_setup(unaligned_rows, with_fresh_driver),
        cmocka_unit_test_setup(every_call_fails_once, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
