/* SPDX-License-Identifier: Apache-2.0 */
/* The launches of a quantized pre_reorder: pieces of as many tokens as an H200 holds at once, and
 * what is left of the tokens in another form. */
#include "cuda_args.h"
#include "cuda_calls.h"

/* H 7168, groups of 128, CTAs of 128 threads: a warp holds a token and its scales, 7392 bytes, a
 * multiprocessor seven CTAs of four warps. */
enum { HIDDEN = 7168, NUM_THREADS = 128, RESIDENT = 132 * 7 * 4, LEAST = RESIDENT / 3 };
enum { ROW_UNITS = HIDDEN / 16, CTA_BYTES = 4 * (HIDDEN + HIDDEN / 128 * 4) };
_Static_assert(RESIDENT % 3 == 0, "the least piece is a third");
_Static_assert(sizeof(struct moe_cuda_pre_reorder) <= FAKE_ARGS_BYTES,
               "the driver keeps all of it");

static struct moe_pre_reorder_args make_args(const struct shape *shape, uintptr_t src2dst_offset)
{
    struct moe_pre_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.tokens = ON_DEVICE(0);
    args.src2dst = (const int32_t *)((uintptr_t)ON_DEVICE(1) + src2dst_offset);
    args.rows = ON_DEVICE(2);
    args.num_rows = shape->num_tokens * shape->top_k;
    args.output_scales = ON_DEVICE(3);
    set_dynamic_fp8(&args.quantization);
    return args;
}

/* Form of a launch's kernel: form2_moe_... */
static int form_of(const struct fake_launch *launch)
{
    int form = 0;
    return sscanf(launch->symbol, "form%d_moe_PRE_REORDER_CUDA_ROWS_128", &form) == 1 ? form : 0;
}

static int64_t ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

/* `num_pieces` wide launches cover the tokens from the first on; the others are `left_form`'s. */
static void check_launches(int64_t num_tokens, int num_pieces, int left_form)
{
    int64_t next = 0;
    for (int i = 0; i < driver->num_launches; i++) {
        const struct fake_launch *launch = &driver->launches[i];
        const int64_t left = num_tokens - next;
        const int64_t piece = left < RESIDENT ? left : RESIDENT;
        struct moe_cuda_pre_reorder args;
        memcpy(&args, launch->args, sizeof(args));
        assert_int_equal(launch->num_refused, 0);
        assert_int_equal(launch->num_attributes, 0);
        assert_int_equal(launch->block[0], NUM_THREADS);
        assert_int_equal(launch->grid[1] * launch->grid[2], 1);
        assert_int_equal(args.wide.first_token, next);
        if (i < num_pieces) {
            assert_int_equal(form_of(launch), MOE_CUDA_PRE_REORDER_WIDE_LANES);
            assert_int_equal(launch->grid[0], ceil_div(piece, 4));
            assert_int_equal(launch->smem_bytes, CTA_BYTES);
            assert_int_equal(args.wide.end_token, next + piece);
            next += piece;
        } else {
            assert_int_equal(form_of(launch), left_form);
            assert_int_equal(launch->grid[0], ceil_div(left * ROW_UNITS, NUM_THREADS));
            assert_int_equal(launch->smem_bytes, 0);
            next = num_tokens;
        }
    }
    assert_int_equal(next, num_tokens);
}

/* Pieces where a third of one is left at least. Below that, and where the L2 holds all rows, a
 * thread has 16 columns; eight slots of bf16 have a form of their own. */
static void pieces_and_rest(void **state)
{
    (void)state;
    static const struct {
        int64_t num_tokens;
        int32_t top_k, dtype;
        uintptr_t src2dst_offset;
        int num_launches, num_pieces, left_form;
    } cases[] = {
        {64, 8, MOE_DTYPE_BF16, 0, 1, 0, MOE_CUDA_PRE_REORDER_LANES_K8_BF16},
        {64, 8, MOE_DTYPE_BF16, 8, 1, 0, MOE_CUDA_PRE_REORDER_LANES},
        {64, 8, MOE_DTYPE_FP16, 0, 1, 0, MOE_CUDA_PRE_REORDER_LANES},
        {64, 6, MOE_DTYPE_BF16, 0, 1, 0, MOE_CUDA_PRE_REORDER_LANES},
        {LEAST - 1, 8, MOE_DTYPE_BF16, 0, 1, 0, MOE_CUDA_PRE_REORDER_LANES_K8_BF16},
        {LEAST, 8, MOE_DTYPE_BF16, 0, 1, 1, 0},
        {RESIDENT, 4, MOE_DTYPE_BF16, 0, 1, 1, 0},
        {RESIDENT, 3, MOE_DTYPE_BF16, 0, 1, 0, MOE_CUDA_PRE_REORDER_LANES},
        {RESIDENT + 1, 8, MOE_DTYPE_BF16, 0, 2, 1, MOE_CUDA_PRE_REORDER_LANES_K8_BF16},
        {RESIDENT + LEAST - 1, 8, MOE_DTYPE_FP16, 0, 2, 1, MOE_CUDA_PRE_REORDER_LANES},
        {RESIDENT + LEAST, 8, MOE_DTYPE_FP16, 0, 2, 2, 0},
        {16384, 8, MOE_DTYPE_BF16, 0, 5, 5, 0},
        {4096, 40, MOE_DTYPE_BF16, 4, 2, 1, MOE_CUDA_PRE_REORDER_LANES},
    };
    struct moe_context *context = create_context();
    driver->args_of = "PRE_REORDER";
    driver->args_bytes = sizeof(struct moe_cuda_pre_reorder);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct shape shape = {cases[i].num_tokens, 256, cases[i].top_k, HIDDEN,
                                    cases[i].dtype};
        struct moe_error error;
        MOE_INIT(error);
        struct moe_plan *plan = create_plan(context, &shape, MOE_OP_PRE_REORDER);
        driver->num_launches = 0;
        const struct moe_pre_reorder_args args = make_args(&shape, cases[i].src2dst_offset);
        if (api->pre_reorder(plan, &args, &error) != MOE_STATUS_OK) {
            fail_msg("case %d: %s", (int)i, error.message);
        }
        assert_int_equal(driver->num_launches, cases[i].num_launches);
        check_launches(shape.num_tokens, cases[i].num_pieces, cases[i].left_form);
        destroy_plan(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* Large CTAs are wide where each multiprocessor gets one. */
static void large_ctas(void **state)
{
    (void)state;
    static const char rule[] = "schema: moe-dispatch/1\nrules:\n- name: large\n"
                               "  match: {backend: cuda}\n  buckets:\n  - max_tokens: inf\n"
                               "    pre_reorder: {BLOCK_SIZE: 512}\n";
    const struct moe_config_source source = {.struct_size = sizeof(source),
                                             .flags = MOE_CONFIG_REPLACE,
                                             .path = "rules",
                                             .text = rule,
                                             .text_bytes = sizeof(rule) - 1};
    struct moe_context *context = create_context();
    struct moe_error error;
    int num_wide = 0;
    MOE_INIT(error);
    assert_int_equal(api->config_reload(context, &source, 1, NULL, NULL, &error), MOE_STATUS_OK);
    driver->args_of = "PRE_REORDER";
    driver->args_bytes = sizeof(struct moe_cuda_pre_reorder);
    for (int64_t num_tokens = 512; num_tokens <= 4096; num_tokens += 128) {
        const struct shape shape = {num_tokens, 256, 8, HIDDEN, MOE_DTYPE_BF16};
        struct moe_plan *plan = create_plan(context, &shape, MOE_OP_PRE_REORDER);
        struct moe_pre_reorder_args args = make_args(&shape, 0);
        memset(&args.quantization, 0, sizeof(args.quantization)); /* rows as they are */
        args.output_scales = NULL;
        driver->num_launches = 0;
        if (api->pre_reorder(plan, &args, &error) != MOE_STATUS_OK) {
            fail_msg("%d tokens: %s", (int)num_tokens, error.message);
        }
        const struct fake_launch *launch = &driver->launches[0];
        int form = 0;
        (void)sscanf(launch->symbol, "form%d_", &form);
        assert_int_equal(launch->block[0], 512);
        if (form == MOE_CUDA_PRE_REORDER_WIDE) {
            assert_true(launch->grid[0] >= 132);
            num_wide++;
        } else {
            assert_int_equal(form, MOE_CUDA_PRE_REORDER_COPY_PAIRS);
            assert_true(num_tokens < 132 * 16); /* a token per warp */
        }
        destroy_plan(plan);
    }
    assert_in_range(num_wide, 16, 28); /* of 29; not all */
    api->context_destroy(context);
    assert_nothing_left();
}

/* The copy engine writes scales that lie in rows, where all that it copies is a multiple of 16
 * bytes at such an address; else lanes write them. */
static void who_writes_scales(void **state)
{
    (void)state;
    static const struct {
        int32_t hidden, scale_dtype, scale_layout;
        uintptr_t offset;
        int64_t stride;
        int32_t copies;
    } cases[] = {
        {HIDDEN, MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, 0, 0, 1},
        {HIDDEN, MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, 16, 60, 1},
        {HIDDEN, MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, 8, 0, 0},
        {HIDDEN, MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, 0, 58, 0},
        {HIDDEN - QUANT_COLUMNS, MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, 0, 60, 0},
        {HIDDEN, MOE_DTYPE_FP32, MOE_SCALE_COLUMN_MAJOR_TMA, 0, 0, 0},
        {HIDDEN, MOE_DTYPE_UE8M0, MOE_SCALE_UE8M0_PACKED, 0, 0, 0},
    };
    struct moe_context *context = create_context();
    driver->args_of = "PRE_REORDER";
    driver->args_bytes = sizeof(struct moe_cuda_pre_reorder);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct shape shape = {3000, 256, 8, cases[i].hidden, MOE_DTYPE_BF16};
        struct moe_plan *plan = create_plan(context, &shape, MOE_OP_PRE_REORDER);
        struct moe_pre_reorder_args args = make_args(&shape, 0);
        struct moe_cuda_pre_reorder seen;
        struct moe_error error;
        MOE_INIT(error);
        args.output_scales = (void *)((uintptr_t)ON_DEVICE(3) + cases[i].offset);
        args.output_scale_stride = cases[i].stride;
        args.quantization.scale_dtype = cases[i].scale_dtype;
        args.quantization.scale_layout = cases[i].scale_layout;
        if (api->pre_reorder(plan, &args, &error) != MOE_STATUS_OK) {
            fail_msg("case %d: %s", (int)i, error.message);
        }
        assert_int_equal(form_of(&driver->launch), MOE_CUDA_PRE_REORDER_WIDE_LANES);
        memcpy(&seen, driver->launch.args, sizeof(seen));
        if (seen.wide.copies_scales != cases[i].copies) {
            fail_msg("case %d: copies_scales is %d", (int)i, seen.wide.copies_scales);
        }
        destroy_plan(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(who_writes_scales, with_fresh_driver),
        cmocka_unit_test_setup(large_ctas, with_fresh_driver),
        cmocka_unit_test_setup(pieces_and_rest, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
