/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forms of operations that hosts with expert parallelism use, through the function table on random
 * inputs, each against the reference: the batched align_block_size, pre_reorder with given scales
 * (one, per token, per expert of a filter), and activation that quantizes (given scales and every
 * layout of dynamic ones, all rows and masked ones). Every variant gives the same bits.
 */
#include "op_weights.h"

enum { NUM_SEEDS = 150 };

static int64_t draw(struct support_random *random, int64_t low, int64_t high)
{
    return low + (int64_t)support_random_below(random, (uint64_t)(high - low + 1));
}

static void destroy_plan(const struct moe_plan *plan)
{
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)plan);
}

/* ---------------------------------------------------------------- batched align */

static void run_batched(const struct op_variant *variant, uint64_t seed)
{
    struct support_random random;
    support_random_seed(&random, seed);
    const int64_t E = draw(&random, 1, 40), max_rows = draw(&random, 1, 30);
    const int32_t block = (int32_t)draw(&random, 1, 20);
    const int64_t capacity = E * ((max_rows + block - 1) / block * block) + draw(&random, 0, 9);
    const int64_t num_blocks = (capacity + block - 1) / block;
    int32_t *counts = op_array(E, 4), *sorted = op_array(capacity, 4),
            *experts = op_array(num_blocks, 4);
    for (int64_t e = 0; e < E; e++) { /* some beyond both ends */
        counts[e] = (int32_t)draw(&random, -1, max_rows + 2);
    }
    const int64_t post_pad =
        ref_align_batched(counts, E, max_rows, block, sorted, capacity, experts, num_blocks);
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = (int32_t)E;
    problem.top_k = 1;
    problem.max_tokens = E * max_rows;
    struct support_guard in = op_input(counts, E * 4, 4);
    struct support_guard outputs[4] = {op_output(capacity * 4, 4, SUPPORT_POISON_INT),
                                       op_output(num_blocks * 4, 4, SUPPORT_POISON_INT),
                                       op_output(4, 4, SUPPORT_POISON_INT),
                                       op_output(E * 4, 4, SUPPORT_POISON_INT)};
    struct moe_align_args args;
    MOE_INIT_CALL(args);
    args.block_size = block;
    args.batch_counts = OP_INT32(in);
    args.max_batch_rows = max_rows;
    args.sorted_ids = OP_INT32(outputs[0]);
    args.sorted_capacity = capacity;
    args.expert_ids = OP_INT32(outputs[1]);
    args.expert_capacity = num_blocks;
    args.num_tokens_post_pad = OP_INT32(outputs[2]);
    args.expert_counts = OP_INT32(outputs[3]);
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE)),
        .op = MOE_OP_ALIGN_BLOCK_SIZE,
        .outputs = {&outputs[0], &outputs[1], &outputs[2], &outputs[3]},
        .num_outputs = 4};
    op_run(&watch, op_invoke_align_block_size, &args, &args.call);
    assert_bits_equal(sorted, outputs[0].data, capacity, 4);
    assert_bits_equal(experts, outputs[1].data, num_blocks, 4);
    assert_int_equal(*OP_INT32(outputs[2]), post_pad);
    for (int64_t e = 0; e < E; e++) {
        const int64_t count = counts[e] < 0 ? 0 : counts[e] > max_rows ? max_rows : counts[e];
        assert_int_equal(OP_INT32(outputs[3])[e], count);
    }
    destroy_plan(watch.plan);
    for (int i = 0; i < 4; i++) {
        support_guard_finish(&outputs[i]);
    }
    support_guard_finish(&in);
    free(experts);
    free(sorted);
    free(counts);
}

static void batched_align_matches_the_reference(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= NUM_SEEDS; seed++) {
        const struct op_variant *variants[OP_MAX_VARIANTS];
        const int num_variants = op_list_variants((int64_t)seed, variants);
        run_batched(variants[seed % (uint64_t)num_variants], seed);
    }
}

/* ---------------------------------------------------------------- given scales */

static struct moe_recipe given_recipe(bool per_row)
{
    return (struct moe_recipe){
        .dtype = MOE_DTYPE_FP8_E4M3, .scale_dtype = MOE_DTYPE_FP32, .group_rows = per_row};
}

static void draw_scales(struct support_random *random, int64_t count, float *scales, double *values)
{
    for (int64_t i = 0; i < count; i++) {
        values[i] = op_draw_scale(random, false, 1.0);
        scales[i] = (float)values[i];
    }
}

/* Rows of codes, with the rows that no route goes to as they were. */
static void run_given_reorder(const struct op_variant *variant, uint64_t seed)
{
    struct support_random random;
    support_random_seed(&random, seed);
    const enum ref_quant quant =
        (enum ref_quant)draw(&random, REF_QUANT_STATIC, REF_QUANT_EXPERT_STATIC);
    const int64_t T = draw(&random, 1, 40), k = draw(&random, 1, 4), H = draw(&random, 1, 90);
    struct op_routes routes;
    struct op_tensor tokens;
    op_routes_init(&routes, &random, T, draw(&random, k, 12), k,
                   (enum op_traffic)draw(&random, 0, OP_NUM_TRAFFICS - 1),
                   (enum op_filtering)draw(&random, 0, OP_NUM_FILTERINGS - 1), false);
    op_tensor_init(&tokens, &random, op_dtypes[draw(&random, 0, 2)], T, H, draw(&random, 0, 3),
                   1.0);
    const int64_t num_rows = T * k + 2;
    const int64_t num_scales = quant == REF_QUANT_STATIC         ? 1
                               : quant == REF_QUANT_TOKEN_STATIC ? T
                                                                 : routes.ref.num_local;
    float *scales = op_array(num_scales, 4);
    double *scale_values = op_array(num_scales, sizeof(double));
    double *values = op_array(num_rows * H, sizeof(double));
    int32_t *src2dst = op_array(T * k, 4), *row_experts = op_array(num_rows, 4);
    unsigned char *expected = op_array(num_rows * H, 1);
    struct ref_ep_layout layout = {
        .src2dst = src2dst, .row_experts = row_experts, .rows_capacity = num_rows};
    draw_scales(&random, num_scales, scales, scale_values);
    (void)ref_ep_preprocess(&routes.ref, routes.ids, T * k, 1, &layout);
    const struct ref_pre_reorder reorder = {.x = tokens.values,
                                            .src2dst = src2dst,
                                            .num_tokens = T,
                                            .top_k = k,
                                            .hidden = H,
                                            .quant = quant,
                                            .scales = scale_values,
                                            .row_experts = row_experts,
                                            .out_dtype = REF_E4M3,
                                            .out = values};
    ref_pre_reorder(&reorder);
    struct support_guard rows = op_output(num_rows * H, 1, SUPPORT_POISON_FLOAT);
    struct support_guard in = op_input(scales, num_scales * 4, 4);
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = (int32_t)routes.ref.num_local;
    problem.num_experts_global = (int32_t)routes.num_experts;
    problem.top_k = (int32_t)k;
    problem.hidden = (int32_t)H;
    problem.tokens.dtype = tokens.dtype;
    problem.max_tokens = T + 2;
    struct moe_pre_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = T;
    args.tokens = tokens.memory.data;
    args.token_stride = tokens.stride;
    args.src2dst = src2dst;
    args.rows = rows.data;
    args.num_rows = num_rows;
    args.input_scales = OP_FLOAT(in);
    args.quantization = given_recipe(quant == REF_QUANT_TOKEN_STATIC);
    if (quant == REF_QUANT_EXPERT_STATIC) {
        args.topk_ids = routes.memory.data;
        args.ids_dtype = op_ids_dtype(&routes);
        args.filter = routes.filter;
    }
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_PRE_REORDER)),
        .op = MOE_OP_PRE_REORDER,
        .num_tokens = T,
        .outputs = {&rows},
        .num_outputs = 1};
    op_run(&watch, op_invoke_pre_reorder, &args, &args.call);
    ref_store_all(REF_E4M3, expected, num_rows * H, values);
    for (int64_t row = 0; row < num_rows; row++) {
        const size_t at = (size_t)(row * H);
        if (row_experts[row] >= 0) {
            assert_bits_equal(expected + at, rows.data + at, H, 1);
        } else {
            assert_true(support_guard_is_poison(&rows, at, at + (size_t)H));
        }
    }
    destroy_plan(watch.plan);
    support_guard_finish(&in);
    support_guard_finish(&rows);
    free(expected);
    free(row_experts);
    free(src2dst);
    free(values);
    free(scale_values);
    free(scales);
    op_tensor_finish(&tokens);
    op_routes_finish(&routes);
}

static void given_scales_match_the_reference(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= NUM_SEEDS; seed++) {
        const struct op_variant *variants[OP_MAX_VARIANTS];
        const int num_variants = op_list_variants((int64_t)seed, variants);
        run_given_reorder(variants[seed % (uint64_t)num_variants], seed + 1000);
    }
}

/* ---------------------------------------------------------------- activation that quantizes */

struct quant_act {
    struct moe_problem problem;
    struct moe_recipe recipe;
    struct op_tensor input;
    int64_t num_rows;
    int64_t max_masked_rows; /* 0: all rows */
    int32_t *counts;
    bool *is_used; /* [num_rows] */
    float *given;  /* static scales */
    int64_t num_given;
    int64_t stride; /* of dynamic scales */
    int64_t scale_elements;
};

static void quant_act_init(struct quant_act *act, uint64_t seed)
{
    struct support_random random;
    support_random_seed(&random, seed);
    memset(act, 0, sizeof(*act));
    MOE_INIT(act->problem);
    const int64_t E = draw(&random, 1, 6);
    act->max_masked_rows = draw(&random, 0, 1) ? draw(&random, 1, 9) : 0;
    act->num_rows = act->max_masked_rows > 0 ? E * act->max_masked_rows : draw(&random, 1, 40);
    act->problem.num_experts = (int32_t)E;
    act->problem.top_k = 1;
    act->problem.inter = (int32_t)draw(&random, 1, 300);
    act->problem.activation = (int32_t)draw(&random, MOE_ACTIVATION_SILU, MOE_ACTIVATION_GELU_TANH);
    act->problem.tokens.dtype = op_dtypes[draw(&random, 0, 2)];
    act->problem.max_tokens = act->num_rows;
    act->counts = op_array(E, sizeof(*act->counts));
    act->is_used = op_array(act->num_rows, sizeof(*act->is_used));
    for (int64_t e = 0; e < E; e++) {
        act->counts[e] = (int32_t)draw(&random, 0, act->max_masked_rows + 1);
    }
    for (int64_t row = 0; row < act->num_rows; row++) {
        const int64_t most = act->max_masked_rows;
        act->is_used[row] = most == 0 || row % most < act->counts[row / most];
    }
    const int64_t I = act->problem.inter;
    op_tensor_init(&act->input, &random, act->problem.tokens.dtype, act->num_rows, 2 * I,
                   draw(&random, 0, 3), 2.0);
    if (draw(&random, 0, 2) == 0) {
        act->recipe = given_recipe(draw(&random, 0, 1) == 1);
        act->num_given = act->recipe.group_rows == 1 ? act->num_rows : 1;
        double *values = op_array(act->num_given, sizeof(double));
        act->given = op_array(act->num_given, sizeof(float));
        draw_scales(&random, act->num_given, act->given, values);
        free(values);
        return;
    }
    act->recipe = op_draw_rows_recipe(&random, true);
    const int64_t groups = op_num_groups(I, act->recipe.group_k);
    const bool is_packed = act->recipe.scale_layout == MOE_SCALE_UE8M0_PACKED;
    const bool is_row_major = act->recipe.scale_layout == MOE_SCALE_ROW_MAJOR;
    act->stride = is_row_major ? groups : (act->num_rows + 3) / 4 * 4;
    act->scale_elements = is_row_major ? act->num_rows * groups
                                       : act->stride * (is_packed ? (groups + 3) / 4 : groups);
}

static void quant_act_finish(struct quant_act *act)
{
    op_tensor_finish(&act->input);
    free(act->given);
    free(act->is_used);
    free(act->counts);
}

static double scale_at(const struct quant_act *act, const struct support_guard *scales, int64_t row,
                       int64_t group)
{
    if (act->given != NULL) {
        return (double)act->given[act->num_given > 1 ? row : 0];
    }
    if (act->recipe.scale_layout == MOE_SCALE_UE8M0_PACKED) {
        return ldexp(1.0, scales->data[4 * (group / 4 * act->stride + row) + group % 4] - 127);
    }
    return ref_load(REF_F32, scales->data,
                    act->recipe.scale_layout == MOE_SCALE_ROW_MAJOR ? row * act->stride + group
                                                                    : group * act->stride + row);
}

/* What the codes of a row stand for lies where the reference says; dynamic scales too. */
static void check_row(const struct quant_act *act, int64_t row, const unsigned char *codes,
                      const struct support_guard *scales)
{
    const int64_t I = act->problem.inter;
    const int64_t group = act->recipe.group_k == 0 ? I : act->recipe.group_k;
    const double *gate = act->input.values + row * 2 * I;
    double *h = op_array(2 * I, sizeof(double)), *slack = h + I;
    for (int64_t i = 0; i < I; i++) {
        slack[i] = op_expect_act(&act->problem, gate[i], gate[I + i], 0.0, 0.0, &h[i]);
    }
    if (act->given == NULL) {
        op_expect_quantized(&act->recipe, I, h, slack);
    }
    for (int64_t i = 0; i < I; i++) {
        const double scale = scale_at(act, scales, row, i / group);
        const double value = ref_load(REF_E4M3, codes, i) * scale;
        if (act->given != NULL) {
            const double ends[2] = {scale, scale};
            const double low = op_dequantized_end(h[i] - slack[i], ends, false);
            const double high = op_dequantized_end(h[i] + slack[i], ends, true);
            assert_true(value >= low && value <= high);
        } else {
            assert_true(fabs(value - h[i]) <= slack[i]);
        }
    }
    free(h);
}

static void run_quant_act(const struct op_variant *variant, struct quant_act *act,
                          unsigned char *all_codes, unsigned char *all_scales)
{
    const int64_t I = act->problem.inter;
    struct support_guard codes = op_output(act->num_rows * I, 1, SUPPORT_POISON_INT);
    struct support_guard scales = op_output(act->scale_elements * 4, 4, SUPPORT_POISON_INT);
    struct moe_activation_args args;
    MOE_INIT_CALL(args);
    args.input = act->input.memory.data;
    args.num_rows = act->num_rows;
    args.row_stride = act->input.stride;
    args.output = codes.data;
    args.masked_m = act->max_masked_rows > 0 ? act->counts : NULL;
    args.max_masked_rows = act->max_masked_rows;
    args.input_scales = act->given;
    args.output_scales = act->given == NULL ? scales.data : NULL;
    args.quantization = act->recipe;
    const struct op_watch watch = {
        .variant = variant,
        .plan = op_plan(variant->context, &act->problem, OP_BIT(MOE_OP_ACTIVATION)),
        .op = MOE_OP_ACTIVATION,
        .num_tokens = act->num_rows,
        .outputs = {&codes, &scales},
        .num_outputs = 2};
    op_run(&watch, op_invoke_activation, &args, &args.call);
    for (int64_t row = 0; row < act->num_rows; row++) {
        if (act->is_used[row]) {
            check_row(act, row, codes.data + row * I, &scales);
        } else {
            assert_true(support_guard_is_poison(&codes, (size_t)(row * I), (size_t)(row * I + I)));
        }
    }
    memcpy(all_codes, codes.data, codes.size);
    memcpy(all_scales, scales.data, scales.size);
    destroy_plan(watch.plan);
    support_guard_finish(&scales);
    support_guard_finish(&codes);
}

static void quantized_activations_match_the_reference(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= NUM_SEEDS; seed++) {
        const struct op_variant *variants[OP_MAX_VARIANTS];
        const int num_variants = op_list_variants((int64_t)seed, variants);
        struct quant_act act;
        quant_act_init(&act, seed + 2000);
        const int64_t num_codes = act.num_rows * act.problem.inter;
        unsigned char *results[2][2];
        for (int run = 0; run < 2; run++) {
            results[run][0] = op_array(num_codes, 1);
            results[run][1] = op_array(act.scale_elements, 4);
            run_quant_act(variants[(seed + (uint64_t)run * 3) % (uint64_t)num_variants], &act,
                          results[run][0], results[run][1]);
        }
        assert_bits_equal(results[0][0], results[1][0], num_codes, 1);
        assert_bits_equal(results[0][1], results[1][1], act.scale_elements, 4);
        for (int run = 0; run < 2; run++) {
            free(results[run][0]);
            free(results[run][1]);
        }
        quant_act_finish(&act);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batched_align_matches_the_reference),
        cmocka_unit_test(given_scales_match_the_reference),
        cmocka_unit_test(quantized_activations_match_the_reference),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
