/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The built-in profiles: each is read without a finding on every device, and tables made from them
 * (and from a file with every kind of boundary) agree at every number of tokens with a table whose
 * last number of tokens that is, where no boundary can be missed.
 */
#include "config_fixture.h"
#include "profiles.h"
#include "rules.h"

struct shape {
    const char *model;
    int32_t experts;
    int32_t top_k;
    int32_t hidden;
    int32_t inter;
    int32_t max_tp; /* ranks that a model's inter or experts are usually split over, powers of 2 */
    int32_t max_ep;
    int32_t is_fp8; /* published in fp8 too */
};

static const struct shape shapes[] = {
    {"mixtral-8x7b", 8, 2, 4096, 14336, 8, 8, 0},
    {"mixtral-8x22b", 8, 2, 6144, 16384, 8, 8, 0},
    {"qwen3-30b-a3b", 128, 8, 2048, 768, 8, 64, 1},
    {"qwen3-235b-a22b", 128, 8, 4096, 1536, 8, 64, 1},
    {"qwen3-next-80b-a3b", 512, 10, 2048, 512, 8, 64, 1},
    {"qwen2-57b-a14b", 64, 8, 3584, 2560, 8, 64, 0},
    {"qwen1.5-moe-a2.7b", 60, 4, 2048, 1408, 8, 4, 0},
    {"deepseek-v3", 256, 8, 7168, 2048, 16, 256, 1},
    {"deepseek-v3", 288, 8, 7168, 2048, 16, 32, 1}, /* 32 experts twice */
    {"deepseek-v2-lite", 64, 6, 2048, 1408, 8, 64, 0},
    {"olmoe-1b-7b", 64, 8, 2048, 1024, 8, 64, 0},
    {"gpt-oss-20b", 32, 4, 2880, 2880, 8, 32, 0},
    {"gpt-oss-120b", 128, 4, 2880, 2880, 8, 64, 0},
    {"glm-4.5", 160, 8, 5120, 1536, 8, 32, 1},
    {"glm-4.5-air", 128, 8, 4096, 1408, 8, 64, 1},
    {"kimi-k2", 384, 8, 7168, 2048, 16, 128, 1},
    {"minimax-m2", 256, 8, 3072, 1536, 8, 64, 1},
    {"granite-3-1b-a400m", 32, 8, 1024, 512, 8, 32, 0},
    {"granite-3-3b-a800m", 40, 8, 1536, 512, 8, 8, 0},
    {"cpu", 7, 3, 100, 36, 1, 1, 0}, /* no model: the default of the CPU */
};
#define NUM_SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static int has_profile(const char *model)
{
    char file[128];
    snprintf(file, sizeof(file), "%s.yaml", model);
    for (size_t i = 0; i < moe_num_profiles; i++) {
        if (strcmp(moe_profiles[i].name, file) == 0) {
            return 1;
        }
    }
    return 0;
}

/* Read as a user's file, a profile may name tiles of another build only; that is a warning. */
static void assert_no_finding(const char *name, const struct moe_device *device,
                              const struct fixture_findings *findings)
{
    const int is_built = device->backend == MOE_BACKEND_CUDA ? MOE_HAVE_CUDA : 1;
    int32_t num_warnings = 0;
    const char *text = findings->text;
    while (!is_built && (text = strstr(text, " warning[unavailable-tile]: ")) != NULL) {
        num_warnings++;
        text++;
    }
    if (findings->num_findings != num_warnings) {
        fail_msg("%s: %s", name, findings->text);
    }
}

static void each_profile_is_read_alone(void **state)
{
    (void)state;
    for (size_t i = 0; i < NUM_SHAPES; i++) {
        assert_true(has_profile(shapes[i].model));
    }
    struct moe_device devices[] = {fixture_cpu("avx2", 4), fixture_cpu("c11", 1), fixture_h200()};
    for (size_t i = 0; i < moe_num_profiles; i++) {
        for (size_t j = 0; j < sizeof(devices) / sizeof(devices[0]); j++) {
            struct moe_config_source source =
                fixture_text(moe_profiles[i].name, moe_profiles[i].text, MOE_CONFIG_REPLACE);
            struct fixture_findings findings;
            int32_t status;
            struct moe_config *config = fixture_read(&source, 1, &devices[j], &findings, &status);
            assert_int_equal(status, MOE_STATUS_OK);
            assert_no_finding(moe_profiles[i].name, &devices[j], &findings);
            assert_true(config->num_rules > 0);
            moe_config_unref(config);
        }
    }
}

/* A user cannot mend the plugin's own layer, so it has no findings, whatever the build lacks. */
static void the_built_in_layer_has_no_finding(void **state)
{
    (void)state;
    struct moe_device devices[] = {fixture_cpu("avx2", 4), fixture_cpu("c11", 1), fixture_h200()};
    for (size_t j = 0; j < sizeof(devices) / sizeof(devices[0]); j++) {
        struct fixture_findings findings;
        int32_t status;
        struct moe_config *config = fixture_read(NULL, 0, &devices[j], &findings, &status);
        assert_int_equal(status, MOE_STATUS_OK);
        assert_int_equal(findings.num_findings, 0);
        moe_config_unref(config);
    }
}

static int same_bucket(const struct moe_dispatch_bucket *a, const struct moe_dispatch_bucket *b)
{
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        const struct moe_dispatch_choice *x = &a->choices[op];
        const struct moe_dispatch_choice *y = &b->choices[op];
        if (x->tile != y->tile || x->source != y->source || x->line != y->line ||
            strcmp(x->rule, y->rule) != 0) {
            return 0;
        }
    }
    return 1;
}

/* What is chosen for `num_tokens` when that is the last number of tokens of the table. */
static void assert_same_alone(struct moe_config *config, const struct moe_device *device,
                              const struct moe_problem *problem,
                              const struct moe_dispatch *dispatch, int64_t num_tokens)
{
    struct moe_problem alone = *problem;
    alone.max_tokens = num_tokens;
    struct moe_dispatch *last = fixture_dispatch(config, device, &alone, FIXTURE_ALL_OPS);
    if (!same_bucket(moe_dispatch_find(dispatch, num_tokens),
                     moe_dispatch_find(last, num_tokens))) {
        fail_msg("%lld tokens", (long long)num_tokens);
    }
    moe_dispatch_destroy(last);
}

static void profiles_plan_at_every_edge(void **state)
{
    (void)state;
    struct moe_config *config = fixture_read(NULL, 0, NULL, NULL, NULL);
    struct moe_device devices[] = {fixture_cpu("avx2", 4), fixture_cpu("c11", 1),
                                   fixture_cpu("avx2", 192)};
    for (size_t i = 0; i < NUM_SHAPES; i++) {
        for (size_t j = 0; j < sizeof(devices) / sizeof(devices[0]); j++) {
            struct moe_problem problem = fixture_problem(
                shapes[i].experts, shapes[i].top_k, shapes[i].hidden, shapes[i].inter, 1 << 20);
            struct moe_dispatch *dispatch =
                fixture_dispatch(config, &devices[j], &problem, FIXTURE_ALL_OPS);
            for (int32_t b = 0; b < dispatch->num_buckets; b++) {
                int64_t edge = dispatch->buckets[b].max_tokens;
                assert_same_alone(config, &devices[j], &problem, dispatch, edge);
                if (b + 1 < dispatch->num_buckets) {
                    assert_false(same_bucket(&dispatch->buckets[b], &dispatch->buckets[b + 1]));
                    assert_same_alone(config, &devices[j], &problem, dispatch, edge + 1);
                }
            }
            moe_dispatch_destroy(dispatch);
        }
    }
    moe_config_unref(config);
}

struct decided {
    char rule[128];
    char file[128];
};

static void on_rule(void *self, const struct moe_explain_rule *rule)
{
    struct decided *decided = self;
    if (rule->chosen) {
        assert_int_equal(decided->rule[0], 0); /* one rule decides */
        snprintf(decided->rule, sizeof(decided->rule), "%s", rule->rule);
        snprintf(decided->file, sizeof(decided->file), "%s", rule->file);
    }
}

static bool is_split(int32_t part, int32_t whole, int32_t max_ranks)
{
    return whole % part == 0 && whole / part <= max_ranks &&
           (whole / part & (whole / part - 1)) == 0;
}

/* Is a rank's share of this model? A share of gpt-oss-120b is all of gpt-oss-20b. */
static bool is_share(const struct shape *shape, const struct moe_problem *problem)
{
    return shape->top_k == problem->top_k && shape->hidden == problem->hidden &&
           is_split(problem->num_experts, shape->experts, shape->max_ep) &&
           is_split(problem->inter, shape->inter, shape->max_tp);
}

/* The rule that explain chooses is in the profile of a model that this may be a share of. */
static void assert_decided_by_its_model(struct moe_config *config, const struct moe_device *device,
                                        const struct moe_problem *problem)
{
    struct moe_memory memory = fixture_memory();
    struct decided decided;
    memset(&decided, 0, sizeof(decided));
    struct moe_explain_sink sink;
    MOE_INIT(sink);
    sink.self = &decided;
    sink.rule = on_rule;
    assert_int_equal(moe_explain(&memory, config, device, problem, FIXTURE_ALL_OPS, 1, &sink, NULL),
                     MOE_STATUS_OK);
    for (size_t i = 0; i < NUM_SHAPES; i++) {
        char file[128];
        snprintf(file, sizeof(file), "built-in/%s.yaml", shapes[i].model);
        if (is_share(&shapes[i], problem) && strcmp(decided.file, file) == 0) {
            return;
        }
    }
    fail_msg("%d experts, hidden %d, inter %d, weights of type %d: %s", problem->num_experts,
             problem->hidden, problem->inter, problem->gate_up.dtype, decided.file);
}

/* Weights with a scale per 128 x 128, rows with one per 128 columns. */
static void make_fp8(struct moe_problem *problem)
{
    const struct moe_recipe weights = {.dtype = MOE_DTYPE_FP8_E4M3,
                                       .scale_dtype = MOE_DTYPE_FP32,
                                       .scale_layout = MOE_SCALE_ROW_MAJOR,
                                       .group_rows = 128,
                                       .group_k = 128};
    problem->gate_up = problem->down = problem->intermediate = weights;
    problem->intermediate.group_rows = 1;
    problem->intermediate.dynamic = 1;
}

/* Each model's own profile decides for its shape, whole and split over ranks, on a CPU and on
 * Hopper, in bf16 and, of those published so, in fp8 where whole blocks of 128 remain. */
static void profiles_decide_for_their_models(void **state)
{
    (void)state;
    struct moe_config *config = fixture_read(NULL, 0, NULL, NULL, NULL);
    struct moe_device devices[] = {fixture_cpu("avx2", 4), fixture_h200()};
    for (size_t i = 0; i + 1 < NUM_SHAPES; i++) {
        const struct shape *shape = &shapes[i];
        for (int32_t tp = 1; tp <= shape->max_tp; tp *= 2) {
            for (int32_t ep = 1; ep <= shape->max_ep; ep *= 2) {
                assert_int_equal(shape->inter % tp + shape->experts % ep, 0);
                struct moe_problem problem = fixture_problem(
                    shape->experts / ep, shape->top_k, shape->hidden, shape->inter / tp, 4096);
                problem.num_experts_global = shape->experts;
                for (size_t j = 0; j < 2; j++) {
                    assert_decided_by_its_model(config, &devices[j], &problem);
                }
                if (shape->is_fp8 && problem.inter % 128 == 0) {
                    make_fp8(&problem);
                    for (size_t j = 0; j < 2; j++) {
                        assert_decided_by_its_model(config, &devices[j], &problem);
                    }
                }
            }
        }
    }
    moe_config_unref(config);
}

static const char boundaries[] =
    "schema: moe-dispatch/1\non_unavailable: next\nrules:\n"
    "- {name: a, match: {experts: 60, topk: 4, density: 0.7..3.1}, buckets: [{max_tokens: 33, "
    "gemm1: {BLOCK_SIZE_M: 12}},"
    " {max_tokens: 40, gating: {kernel: cpu.c11}}]}\n"
    "- {name: b, match: {experts: 60, density: \">=1.5\"}, buckets: [{max_tokens: 7}, {max_tokens: "
    "129, gemm1: {BLOCK_SIZE_M: 1}}]}\n"
    "- {name: c, match: {experts: \">=60\"}, buckets: [{max_tokens: 3, activation: {BLOCK_SIZE: "
    "4}}, {max_tokens: 200, gemm2: {BLOCK_SIZE_N: 64}}]}\n"
    "- {name: d, priority: -1, match: {density: <=9.99}, buckets: [{max_tokens: inf, post_reorder: "
    "{BLOCK_SIZE: "
    "1}}]}\n";

static void every_number_of_tokens_agrees(void **state)
{
    (void)state;
    const int64_t max_tokens = 300;
    struct moe_config *config = fixture_config(boundaries);
    struct moe_device device = fixture_cpu("avx2", 3);
    struct moe_problem problem = fixture_problem(60, 4, 2048, 1408, max_tokens);
    struct moe_dispatch *dispatch = fixture_dispatch(config, &device, &problem, FIXTURE_ALL_OPS);
    assert_true(dispatch->num_buckets > 10);
    for (int64_t tokens = 0; tokens <= max_tokens; tokens++) {
        assert_same_alone(config, &device, &problem, dispatch, tokens);

        /* The rules once more, by hand: which one names something of its own for these tokens? */
        double density = (double)tokens * 4.0 / 60.0;
        const struct moe_dispatch_bucket *bucket = moe_dispatch_find(dispatch, tokens);
        const char *gemm1 = density >= 0.7 && density <= 3.1 && tokens <= 33 ? "a" : "heuristic";
        int a_covers = density >= 0.7 && density <= 3.1 && tokens <= 40;
        if (!a_covers && density >= 1.5 && tokens > 7 && tokens <= 129) {
            gemm1 = "b";
        }
        assert_string_equal(bucket->choices[MOE_OP_GEMM1].rule, gemm1);
        int b_covers = density >= 1.5 && tokens <= 129;
        assert_string_equal(bucket->choices[MOE_OP_GEMM2].rule,
                            !a_covers && !b_covers && tokens > 3 && tokens <= 200 ? "c"
                                                                                  : "heuristic");
    }
    moe_dispatch_destroy(dispatch);
    moe_config_unref(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_profile_is_read_alone),
        cmocka_unit_test(the_built_in_layer_has_no_finding),
        cmocka_unit_test(profiles_plan_at_every_edge),
        cmocka_unit_test(profiles_decide_for_their_models),
        cmocka_unit_test(every_number_of_tokens_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
