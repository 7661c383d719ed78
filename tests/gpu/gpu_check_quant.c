/* SPDX-License-Identifier: Apache-2.0 */
/* quantize, activation, and pre_reorder with quantized rows: values and scales of every layout. */
#include "gpu_check.h"

/* A random recipe of fp8 rows of `width` columns, its scales, and where they are. */
struct quant_case {
    struct moe_recipe recipe;
    int64_t stride;
    struct check_mirror given;  /* static: one per row at most */
    struct check_mirror scales; /* dynamic */
};

static void fill_scales(float *out, int64_t count)
{
    check_fill_elements(out, MOE_DTYPE_FP32, count);
    for (int64_t i = 0; i < count; i++) {
        out[i] = out[i] < 0.0f ? -out[i] : out[i];
    }
}

/* NaN, infinities, zeros of both signs and subnormals among the elements. */
static void add_specials(void *out, int32_t dtype, int64_t count)
{
    static const uint32_t wide[] = {0x7fc00000, 0xff800001, 0x7f800000, 0xff800000,
                                    0,          0x80000000, 1,          0x807fffff};
    static const uint16_t fp16[] = {0x7e00, 0xfc01, 0x7c00, 0xfc00, 0, 0x8000, 1, 0x83ff};
    static const uint16_t bf16[] = {0x7fc0, 0xff81, 0x7f80, 0xff80, 0, 0x8000, 1, 0x807f};
    for (int64_t i = 0; count > 0 && i < 1 + count / 200; i++) {
        const int64_t at = check_draw(count), which = check_draw(8);
        if (dtype == MOE_DTYPE_FP32) {
            memcpy((char *)out + 4 * at, &wide[which], 4);
        } else {
            memcpy((char *)out + 2 * at, dtype == MOE_DTYPE_BF16 ? &bf16[which] : &fp16[which], 2);
        }
    }
}

static void quant_init(struct quant_case *quant, int64_t num_rows, int64_t width,
                       int64_t num_static)
{
    memset(quant, 0, sizeof(*quant));
    quant->recipe.dtype = MOE_DTYPE_FP8_E4M3;
    quant->recipe.scale_dtype = MOE_DTYPE_FP32;
    quant->recipe.scale_layout = MOE_SCALE_ROW_MAJOR;
    quant->recipe.dynamic = (int32_t)PICK(1, 1, 1, 0);
    int64_t scale_words = 0;
    if (quant->recipe.dynamic) {
        quant->recipe.group_rows = 1;
        quant->recipe.group_k = (int32_t)PICK(128, 128, 0, 64, 16, 8, 512, 96, 100, 1024);
        quant->recipe.scale_layout =
            (int32_t)PICK(MOE_SCALE_ROW_MAJOR, MOE_SCALE_COLUMN_MAJOR_TMA, MOE_SCALE_UE8M0_PACKED);
        const int64_t group = quant->recipe.group_k == 0 || quant->recipe.group_k > width
                                  ? width
                                  : quant->recipe.group_k;
        const int64_t num_groups = (width + group - 1) / group;
        if (quant->recipe.scale_layout == MOE_SCALE_ROW_MAJOR) {
            quant->stride = num_groups + PICK(0, 3);
            scale_words = quant->stride * num_rows;
        } else {
            const bool is_packed = quant->recipe.scale_layout == MOE_SCALE_UE8M0_PACKED;
            quant->recipe.scale_dtype = is_packed ? MOE_DTYPE_UE8M0 : MOE_DTYPE_FP32;
            quant->stride = (num_rows + 3) / 4 * 4 + PICK(0, 4);
            scale_words = quant->stride * (is_packed ? (num_groups + 3) / 4 : num_groups);
        }
    } else {
        quant->recipe.group_rows = (int32_t)PICK(0, 1);
    }
    check_mirror_init(&quant->scales, (size_t)scale_words * 4, 0);
    check_mirror_init(&quant->given, (size_t)(num_static > 0 ? num_static : 1) * 4, 0);
    fill_scales(check_on_host(&quant->given), num_static > 0 ? num_static : 1);
    check_mirror_send(&quant->scales);
    check_mirror_send(&quant->given);
}

static void quant_finish(struct quant_case *quant, const char *text)
{
    check_mirror_compare(&quant->scales, "scales", text);
    check_mirror_finish(&quant->scales);
    check_mirror_finish(&quant->given);
}

/* Sets input_scales, output_scales, output_scale_stride and quantization of a call's arguments. */
#define SET_QUANT(args, quant, at)                                               \
    ((args).quantization = (quant).recipe,                                       \
     (args).input_scales = (quant).recipe.dynamic ? NULL : at(&(quant).given),   \
     (args).output_scales = (quant).recipe.dynamic ? at(&(quant).scales) : NULL, \
     (args).output_scale_stride = (quant).stride)

static void describe(struct check_case *test, const char *op, const struct quant_case *quant,
                     int64_t num_rows, int64_t width, const char *more)
{
    snprintf(test->text, sizeof(test->text),
             "%s rows %lld width %lld dtype %d, dynamic %d group_rows %d group_k %d layout %d "
             "stride %lld%s",
             op, (long long)num_rows, (long long)width, test->problem.tokens.dtype,
             quant->recipe.dynamic, quant->recipe.group_rows, quant->recipe.group_k,
             quant->recipe.scale_layout, (long long)quant->stride, more);
}

static size_t element_bytes(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? 4 : 2;
}

static void draw_width(struct check_case *test)
{
    check_draw_routes(test);
    test->num_tokens = PICK(0, 1, 2, 17, 64, 300);
    test->problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    test->problem.hidden = (int32_t)PICK(8, 33, 100, 128, 256, 384, 2048, 2880, 4096, 7168);
    test->problem.tokens.dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16);
    test->problem.output_dtype = test->problem.tokens.dtype;
}

void check_quantize(void)
{
    struct check_case test;
    struct quant_case quant;
    struct moe_error error;
    char more[160];
    MOE_INIT(error);
    draw_width(&test);
    check_case_init(&test, MOE_OP_QUANTIZE);
    const int32_t dtype = test.problem.tokens.dtype;
    const int64_t hidden = test.problem.hidden, num_tokens = test.num_tokens;
    const int64_t token_stride = hidden + PICK(0, 0, 8, 3),
                  output_stride = hidden + PICK(0, 0, 16, 8, 5);
    struct check_mirror tokens, output;
    struct check_count real;
    check_count_init(&real, num_tokens);
    check_mirror_init(&tokens, (size_t)(num_tokens * token_stride) * element_bytes(dtype),
                      (size_t)PICK(0, 0, 1) * element_bytes(dtype));
    check_mirror_init(&output, (size_t)(num_tokens * output_stride), (size_t)PICK(0, 0, 1, 8));
    check_fill_elements(check_on_host(&tokens), dtype, num_tokens * token_stride);
    add_specials(check_on_host(&tokens), dtype, num_tokens * token_stride);
    quant_init(&quant, num_tokens, hidden, num_tokens);
    check_mirror_send(&tokens);
    check_mirror_send(&output);
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_quantize_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.call.num_tokens_device = check_count_at(&real, is_cuda);
        args.tokens = at(&tokens);
        args.token_stride = token_stride;
        args.output = at(&output);
        args.output_stride = output_stride;
        SET_QUANT(args, quant, at);
        gpu_host_check(check_host.api->quantize(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "quantize");
    }
    check_wait();
    snprintf(more, sizeof(more), " real %d", real.value);
    describe(&test, "quantize", &quant, num_tokens, hidden, more);
    check_mirror_compare(&output, "output", test.text);
    quant_finish(&quant, test.text);
    check_mirror_finish(&tokens);
    check_mirror_finish(&output);
    check_count_finish(&real);
    check_case_finish(&test);
}

void check_pre_reorder_quantized(void)
{
    struct check_case test;
    struct quant_case quant;
    struct moe_error error;
    char more[160];
    MOE_INIT(error);
    draw_width(&test);
    if (check_draw(10) == 0) {
        check_draw_wide(&test);
    }
    int64_t num_rows;
    const int64_t most = check_draw_masked(&test, &num_rows);
    check_case_init(&test, MOE_OP_PRE_REORDER);
    const struct moe_problem *problem = &test.problem;
    const int32_t dtype = problem->tokens.dtype;
    const int64_t hidden = problem->hidden, num_routes = test.num_tokens * problem->top_k;
    const int64_t token_stride = hidden + PICK(0, 0, 8, 3),
                  row_stride = hidden + PICK(0, 0, 16, 8, 5);
    const int32_t ids_dtype = (int32_t)PICK(MOE_IDS_INT32, MOE_IDS_INT64);
    struct check_mirror tokens, src2dst, rows, ids;
    struct check_count real;
    check_count_init(&real, test.num_tokens);
    check_mirror_init(&tokens, (size_t)(test.num_tokens * token_stride) * element_bytes(dtype),
                      (size_t)PICK(0, 0, 1) * element_bytes(dtype));
    check_mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    check_mirror_init(&rows, (size_t)(num_rows * row_stride), (size_t)PICK(0, 0, 1, 8));
    check_mirror_init(&ids, (size_t)num_routes * 8, 0);
    check_fill_elements(check_on_host(&tokens), dtype, test.num_tokens * token_stride);
    add_specials(check_on_host(&tokens), dtype, test.num_tokens * token_stride);
    check_fill_destinations(check_on_host(&src2dst), num_routes, num_rows, most);
    check_fill_ids(check_on_host(&ids), ids_dtype, num_routes, problem->num_experts, PICK(0, 3));
    quant_init(&quant, num_rows, hidden,
               test.num_tokens > problem->num_experts ? test.num_tokens : problem->num_experts);
    const int is_by_expert = quant.recipe.dynamic == 0 && quant.recipe.group_rows == 0 &&
                             test.num_tokens > 0 && check_draw(2);
    struct check_mirror *all[] = {&tokens, &src2dst, &rows, &ids};
    for (size_t i = 0; i < 4; i++) {
        check_mirror_send(all[i]);
    }
    check_send_destinations(&src2dst, num_routes, num_rows);
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
        args.topk_ids = is_by_expert ? at(&ids) : NULL;
        args.ids_dtype = is_by_expert ? ids_dtype : 0;
        SET_QUANT(args, quant, at);
        gpu_host_check(check_host.api->pre_reorder(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "pre_reorder");
    }
    check_wait();
    snprintf(more, sizeof(more), " T %lld k %d masked %lld real %d%s", (long long)test.num_tokens,
             problem->top_k, (long long)most, real.value, is_by_expert ? ", by expert" : "");
    describe(&test, "pre_reorder", &quant, num_rows, hidden, more);
    check_mirror_compare(&rows, "rows", test.text);
    quant_finish(&quant, test.text);
    for (size_t i = 0; i < 4; i++) {
        check_mirror_finish(all[i]);
    }
    check_count_finish(&real);
    check_case_finish(&test);
}

/* Rows, activation and layout of an activation's input. */
struct activation_case {
    int64_t num_rows;
    int64_t max_masked_rows; /* 0: contiguous */
    int64_t row_stride;
    int64_t col_stride;
    int64_t up_offset;
    int64_t output_stride;
    int32_t input_dtype;
    int32_t output_dtype;
    int is_quantized;
    int is_in_place;
    int has_every_gate; /* bf16, halves: gates are all values of the type, one after the other */
};

enum { EVERY_GATE_EACH = 20, NUM_BF16 = 65536 };

static void draw_every_gate(struct check_case *test, struct activation_case *out)
{
    struct moe_problem *problem = &test->problem;
    memset(out, 0, sizeof(*out));
    problem->inter = 2048;
    problem->activation = MOE_ACTIVATION_SILU;
    problem->act_alpha = problem->act_limit = 0.0f;
    problem->flags = 0;
    problem->tokens.dtype = MOE_DTYPE_BF16;
    out->has_every_gate = 1;
    out->is_quantized = check_draw(2) == 0;
    out->input_dtype = MOE_DTYPE_BF16;
    out->output_dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_BF16);
    problem->intermediate.dtype = out->output_dtype;
    out->num_rows = NUM_BF16 / problem->inter;
    problem->max_tokens = out->num_rows;
    out->col_stride = 1;
    out->up_offset = problem->inter;
    out->row_stride = 2 * problem->inter;
    out->output_stride = problem->inter;
}

static void fill_every_gate(uint16_t *out, const struct activation_case *own, int32_t inter)
{
    for (int32_t i = 0; i < NUM_BF16; i++) {
        out[i / inter * own->row_stride + i % inter] = (uint16_t)i;
    }
}

static void draw_activation(struct check_case *test, struct activation_case *out)
{
    memset(out, 0, sizeof(*out));
    draw_width(test);
    struct moe_problem *problem = &test->problem;
    problem->num_experts = (int32_t)PICK(1, 3, 8);
    problem->num_experts_global = problem->num_experts;
    problem->top_k = 1;
    problem->inter = (int32_t)PICK(8, 33, 100, 128, 384, 2048, 1408);
    problem->activation = (int32_t)PICK(
        MOE_ACTIVATION_SILU, MOE_ACTIVATION_SILU, MOE_ACTIVATION_GELU, MOE_ACTIVATION_GELU_TANH,
        MOE_ACTIVATION_SWIGLU_OAI, MOE_ACTIVATION_RELU2, MOE_ACTIVATION_IDENTITY);
    const int is_oai = problem->activation == MOE_ACTIVATION_SWIGLU_OAI;
    problem->act_alpha = is_oai ? 1.702f : 0.0f;
    problem->act_limit = is_oai && check_draw(2) ? 7.0f : 0.0f;
    problem->flags = !is_oai && check_draw(4) == 0 ? MOE_PROBLEM_UNGATED : 0u;
    out->is_quantized = check_draw(2) == 0;
    out->input_dtype = problem->tokens.dtype;
    out->output_dtype = (int32_t)PICK(out->input_dtype, out->input_dtype, MOE_DTYPE_FP32,
                                      MOE_DTYPE_FP16, MOE_DTYPE_BF16);
    problem->intermediate.dtype = out->output_dtype;
    out->max_masked_rows = check_draw(3) == 0 ? PICK(1, 20, 70) : 0;
    out->num_rows = out->max_masked_rows > 0 ? problem->num_experts * out->max_masked_rows
                                             : PICK(0, 1, 5, 64, 300);
    problem->max_tokens = out->num_rows > 0 ? out->num_rows : 1;
    const int is_ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    const int64_t kind = is_ungated ? PICK(0, 3) : PICK(0, 0, 1, 2);
    out->col_stride = kind == 1 ? 2 : kind == 3 ? 3 : 1;
    out->up_offset = is_ungated ? 0 : kind == 1 ? 1 : problem->inter + (kind == 2 ? 8 : 0);
    out->row_stride =
        (problem->inter - 1) * out->col_stride + out->up_offset + 1 + PICK(0, 0, 8, 1);
    out->is_in_place =
        !out->is_quantized && out->output_dtype == out->input_dtype && check_draw(3) == 0;
    out->output_stride = out->is_in_place ? out->row_stride : problem->inter + PICK(0, 0, 16, 8, 3);
}

static void fill_masked(int32_t *out, int32_t num_experts, int64_t max_rows)
{
    for (int32_t e = 0; e < num_experts; e++) {
        out[e] = (int32_t)PICK(0, 1, max_rows / 2, max_rows, max_rows + 5, -3);
    }
}

void check_activation(void)
{
    struct check_case test;
    struct activation_case own;
    struct quant_case quant;
    struct moe_error error;
    char more[160];
    MOE_INIT(error);
    static int num_calls;
    draw_activation(&test, &own);
    if (num_calls++ % EVERY_GATE_EACH == 0) {
        draw_every_gate(&test, &own);
    }
    check_case_init(&test, MOE_OP_ACTIVATION);
    const int64_t inter = test.problem.inter;
    const size_t output_element = own.is_quantized ? 1 : element_bytes(own.output_dtype);
    struct check_mirror input, output, masked;
    check_mirror_init(
        &input, (size_t)(own.num_rows * own.row_stride) * element_bytes(own.input_dtype),
        own.has_every_gate ? 0 : (size_t)PICK(0, 0, 1) * element_bytes(own.input_dtype));
    check_mirror_init(&output, (size_t)(own.num_rows * own.output_stride) * output_element,
                      (size_t)PICK(0, 0, 1, 8) * output_element);
    check_mirror_init(&masked, (size_t)test.problem.num_experts * 4, 0);
    check_fill_elements(check_on_host(&input), own.input_dtype, own.num_rows * own.row_stride);
    add_specials(check_on_host(&input), own.input_dtype, own.num_rows * own.row_stride);
    if (own.has_every_gate) {
        fill_every_gate(check_on_host(&input), &own, (int32_t)inter);
    }
    fill_masked(check_on_host(&masked), test.problem.num_experts, own.max_masked_rows);
    quant_init(&quant, own.num_rows, inter, own.num_rows);
    check_mirror_send(&input);
    check_mirror_send(&output);
    check_mirror_send(&masked);
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_activation_args args;
        MOE_INIT_CALL(args);
        check_set_call(&test, is_cuda, &args.call);
        args.call.num_tokens = 0;
        args.input = at(&input);
        args.num_rows = own.num_rows;
        args.row_stride = own.row_stride;
        args.col_stride = own.col_stride;
        args.up_offset = own.up_offset;
        args.output = own.is_in_place ? at(&input) : at(&output);
        args.output_stride = own.output_stride;
        args.masked_m = own.max_masked_rows > 0 ? at(&masked) : NULL;
        args.max_masked_rows = own.max_masked_rows;
        if (own.is_quantized) {
            SET_QUANT(args, quant, at);
        }
        gpu_host_check(check_host.api->activation(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "activation");
    }
    check_wait();
    snprintf(more, sizeof(more),
             ", activation %d flags %u limit %g output %d col %lld up %lld masked %lld in place %d",
             test.problem.activation, test.problem.flags, (double)test.problem.act_limit,
             own.is_quantized ? MOE_DTYPE_FP8_E4M3 : own.output_dtype, (long long)own.col_stride,
             (long long)own.up_offset, (long long)own.max_masked_rows, own.is_in_place);
    describe(&test, "activation", &quant, own.num_rows, inter, more);
    check_mirror_compare(&output, "output", test.text);
    check_mirror_compare(&input, "input", test.text);
    quant_finish(&quant, test.text);
    check_mirror_finish(&input);
    check_mirror_finish(&output);
    check_mirror_finish(&masked);
    check_case_finish(&test);
}
