/* SPDX-License-Identifier: Apache-2.0 */
/* Plans seen from a host: which configuration they keep, what the counters and the log say, what
 * plan_info promises. */
#include "layer_fixture.h"

static struct moe_problem make_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = problem.num_experts_global = 8;
    problem.top_k = 2;
    problem.hidden = 40;
    problem.inter = 33;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.gating = MOE_GATING_SOFTMAX;
    problem.tokens.dtype = problem.gate_up.dtype = problem.down.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = 64;
    return problem;
}

static struct moe_choice choice_of(const struct moe_plan *plan, int32_t op, int64_t num_tokens)
{
    struct moe_choice choice;
    MOE_INIT(choice);
    assert_int_equal(op_api()->plan_op_info(plan, op, num_tokens, &choice, NULL), MOE_STATUS_OK);
    return choice;
}

static struct moe_config_info config_of(const struct moe_context *context)
{
    struct moe_config_info info;
    MOE_INIT(info);
    assert_int_equal(op_api()->config_info(context, &info, NULL), MOE_STATUS_OK);
    return info;
}

static struct moe_stats stats_of(const struct moe_context *context)
{
    struct moe_stats stats;
    MOE_INIT(stats);
    assert_int_equal(op_api()->stats(context, &stats, NULL), MOE_STATUS_OK);
    return stats;
}

static int32_t reload(struct moe_context *context, const char *text)
{
    struct moe_config_source source;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(source);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "reloaded.yaml";
    source.text = text;
    source.text_bytes = strlen(text);
    const int32_t status = op_api()->config_reload(context, &source, 1, NULL, NULL, &error);
    assert_true(status == MOE_STATUS_OK || error.message[0] != '\0');
    return status;
}

static void a_plan_keeps_its_configuration(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    const int last = op_plugin.num_tile_sets - 1;
    char first_text[4096], second_text[4096];
    int32_t first_tiles[MOE_NUM_OPS], second_tiles[MOE_NUM_OPS];
    op_force_tiles(0, first_tiles, first_text, sizeof(first_text));
    op_force_tiles(last, second_tiles, second_text, sizeof(second_text));
    struct moe_context *context = op_context_create(first_text, 1);
    const struct moe_config_info before = config_of(context);
    assert_int_equal(before.generation, 1);
    assert_int_equal(before.num_rules, 1);

    struct moe_plan *old = op_plan(context, &problem, 0);
    assert_int_equal(reload(context, "schema: moe-dispatch/1\nrules: [{nmae: x}]\n"),
                     MOE_STATUS_CONFIG);
    assert_int_equal(config_of(context).generation, 1);
    assert_int_equal(config_of(context).fingerprint, before.fingerprint);
    assert_int_equal(reload(context, second_text), MOE_STATUS_OK);
    assert_int_equal(config_of(context).generation, 2);
    assert_true(config_of(context).fingerprint != before.fingerprint);
    struct moe_plan *young = op_plan(context, &problem, 0);

    struct moe_plan_info info;
    MOE_INIT(info);
    assert_int_equal(op_api()->plan_info(old, &info, NULL), MOE_STATUS_OK);
    assert_int_equal(info.config_generation, 1);
    assert_int_equal(op_api()->plan_info(young, &info, NULL), MOE_STATUS_OK);
    assert_int_equal(info.config_generation, 2);
    for (int64_t tokens = 0; tokens <= 64; tokens += 16) {
        const struct moe_choice of_old = choice_of(old, MOE_OP_GEMM1, tokens);
        const struct moe_choice of_young = choice_of(young, MOE_OP_GEMM1, tokens);
        assert_int_equal(of_old.tile, first_tiles[MOE_OP_GEMM1]);
        assert_int_equal(of_young.tile, second_tiles[MOE_OP_GEMM1]);
        assert_string_equal(of_old.rule, "forced");
        assert_string_equal(of_old.file, "forced.yaml");
        assert_string_equal(of_young.file, "reloaded.yaml");
        assert_int_equal(of_old.source, MOE_CHOICE_RULE);
    }
    /* Equal rules have equal fingerprints. */
    assert_int_equal(reload(context, first_text), MOE_STATUS_OK);
    assert_int_equal(config_of(context).fingerprint, before.fingerprint);
    op_api()->plan_destroy(young);
    op_api()->plan_destroy(old);
    const struct moe_stats stats = stats_of(context);
    assert_int_equal(stats.num_plans_created, 2);
    assert_int_equal(stats.num_choices_by_rule, 2);
    assert_int_equal(stats.num_choices_by_heuristic, 0);
    assert_int_equal(stats.num_reloads, 2);
    assert_int_equal(stats.num_reloads_refused, 1);
    op_api()->context_destroy(context);
}

/* Where no rule names a tile, the cost model chooses, and says so. */
static void the_heuristic_is_counted(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct moe_context *context = op_context_create("schema: moe-dispatch/1\nrules: []\n", 1);
    struct moe_plan *plan = op_plan(context, &problem, 0);
    const struct moe_choice choice = choice_of(plan, MOE_OP_GEMM1, 64);
    assert_int_equal(choice.source, MOE_CHOICE_HEURISTIC);
    assert_string_equal(choice.rule, "heuristic");
    assert_string_equal(choice.file, "");
    assert_int_equal(stats_of(context).num_choices_by_rule, 0);
    assert_true(stats_of(context).num_choices_by_heuristic >= 1);
    op_api()->plan_destroy(plan);
    op_api()->context_destroy(context);
}

static void a_plan_logs_one_line(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    const struct op_variant *variant = op_variant(0, 2);
    const int before = atomic_load(&op_plugin.num_log_lines);
    struct moe_plan *plan = op_plan(variant->context, &problem, 0);
    assert_int_equal(atomic_load(&op_plugin.num_log_lines), before + 1);
    assert_non_null(strstr(op_plugin.last_log_line, "forced"));
    assert_non_null(strstr(op_plugin.last_log_line, "forced.yaml"));
    op_api()->plan_destroy(plan);
    assert_int_equal(atomic_load(&op_plugin.num_log_lines), before + 1);
}

/* workspace_bytes holds every call up to max_tokens; one call never needs less with more tokens of
 * a bucket. */
static void plan_info_covers_every_call(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    struct moe_context *context = op_context_create(NULL, 2);
    struct moe_plan *plan = op_plan(context, &problem, 0);
    struct moe_plan_info info;
    MOE_INIT(info);
    assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
    assert_int_equal(info.chunk_tokens, problem.max_tokens);
    assert_true(info.max_rows >= problem.max_tokens * problem.top_k);
    assert_true(info.num_buckets >= 1);
    uint64_t largest = 0;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if (op == MOE_OP_QUANTIZE) {
            continue;
        }
        for (int64_t tokens = 0; tokens <= problem.max_tokens; tokens++) {
            const struct moe_choice choice = choice_of(plan, op, tokens);
            assert_true(choice.min_tokens <= tokens && tokens <= choice.max_tokens);
            largest = choice.workspace_bytes > largest ? choice.workspace_bytes : largest;
        }
    }
    assert_int_equal(largest, info.workspace_bytes);
    struct moe_choice choice;
    MOE_INIT(choice);
    assert_int_equal(op_api()->plan_op_info(plan, MOE_OP_LAYER, 65, &choice, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_int_equal(op_api()->plan_op_info(plan, MOE_OP_LAYER, -1, &choice, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_int_equal(op_api()->plan_op_info(plan, MOE_OP_QUANTIZE, 1, &choice, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    op_api()->plan_destroy(plan);
    op_api()->context_destroy(context);
}

/* Calls of a layer that contradict themselves or the plan. */
static void contradictions_are_refused(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    const struct layer_case test = {.num_tokens = 8, .source = LAYER_FROM_IDS};
    const struct op_variant *variant = op_variant(0, 1);
    struct layer_data data;
    struct layer_outputs outputs;
    struct moe_layer_args good;
    layer_data_init(&data, 12, &problem, &test);
    op_bind(&data.bound, &data.model, variant->context);
    layer_fill_args(&data, 0, 8, &outputs, &good);
    const struct op_watch watch = {.plan = op_plan(variant->context, &data.model.problem, 0),
                                   .outputs = {&outputs.output, &outputs.ids, &outputs.weights},
                                   .num_outputs = 3};
    struct moe_layer_args bad[16];
    for (int i = 0; i < OP_COUNT(bad); i++) {
        bad[i] = good;
    }
    bad[0].weights = NULL;
    bad[1].tokens = NULL;
    bad[2].output = NULL;
    bad[3].topk_weights = NULL;
    bad[4].logits = data.logits.memory.data; /* and ids */
    bad[5].topk_ids_out = outputs.ids.data;  /* nothing chooses */
    bad[6].call.num_tokens = 9;              /* the plan has 8 */
    bad[7].token_stride = problem.hidden - 1;
    bad[8].filter.mode = MOE_FILTER_KEEP;
    bad[9].reserved = 1;
    bad[10].output = outputs.output.data + 2; /* overlaps, and is not, the residual */
    bad[10].residual = outputs.output.data;
    bad[11].call.flags = 1;
    int64_t counters[8] = {0};
    const int32_t num_valid = 8, too_many = 9;
    bad[12].load_counters = counters; /* nothing is gated */
    bad[13].num_valid_tokens = &num_valid;
    bad[14].call.num_tokens_device = &too_many;
    bad[15].input_scales = counters; /* of plain tokens */
    for (int i = 0; i < OP_COUNT(bad); i++) {
        op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_layer, &bad[i],
                          &bad[i].call);
    }
    op_expect_success(&watch, op_invoke_layer, &good, &good.call);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    layer_outputs_finish(&outputs);
    layer_data_finish(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_keeps_its_configuration),
        cmocka_unit_test(the_heuristic_is_counted),
        cmocka_unit_test(a_plan_logs_one_line),
        cmocka_unit_test(plan_info_covers_every_call),
        cmocka_unit_test(contradictions_are_refused),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
