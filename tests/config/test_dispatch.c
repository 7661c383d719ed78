/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables of token buckets: which rule decides where, fall-through, density, tiles that are not
 * available, inheritance.
 */
#include "config_fixture.h"

#define HEAD "schema: moe-dispatch/1\nrules:\n"
#define NEXT "on_unavailable: next\n" HEAD

static struct moe_dispatch *dispatch_of(const char *text, const char *isa,
                                        const struct moe_problem *problem)
{
    struct moe_config *config = fixture_config(text);
    struct moe_device device = fixture_cpu(isa, 2);
    struct moe_dispatch *dispatch = fixture_dispatch(config, &device, problem, FIXTURE_ALL_OPS);
    moe_config_unref(config); /* the table keeps it alive */
    return dispatch;
}

static void assert_covers(const struct moe_dispatch *dispatch, int64_t max_tokens)
{
    int64_t next = 0;
    for (int32_t i = 0; i < dispatch->num_buckets; i++) {
        assert_int_equal(dispatch->buckets[i].min_tokens, next);
        assert_true(dispatch->buckets[i].max_tokens >= next);
        assert_int_equal(dispatch->max_tokens[i], dispatch->buckets[i].max_tokens);
        next = dispatch->buckets[i].max_tokens + 1;
    }
    assert_int_equal(next, max_tokens + 1);
}

static void find_returns_the_covering_bucket(const struct moe_dispatch *dispatch,
                                             int64_t max_tokens)
{
    for (int64_t tokens = 0; tokens <= max_tokens; tokens++) {
        const struct moe_dispatch_bucket *bucket = moe_dispatch_find(dispatch, tokens);
        assert_true(bucket->min_tokens <= tokens && tokens <= bucket->max_tokens);
    }
}

static void buckets_end_where_the_file_says(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 1000);
    struct moe_dispatch *dispatch =
        dispatch_of(HEAD "- name: a\n  buckets:\n"
                         "  - {max_tokens: 5, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 1}}\n"
                         "  - {max_tokens: 77, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 12}, "
                         "activation: {BLOCK_SIZE: 64}}\n"
                         "  - {max_tokens: inf, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 48}}\n",
                    "avx2", &problem);
    assert_covers(dispatch, 1000);
    find_returns_the_covering_bucket(dispatch, 1000);
    static const struct {
        int64_t tokens;
        int32_t block_m;
        int32_t line;
    } expected[] = {{0, 1, 5},   {1, 1, 5},   {5, 1, 5},    {6, 12, 6},
                    {77, 12, 6}, {78, 48, 7}, {1000, 48, 7}};
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        int64_t tokens = expected[i].tokens;
        const struct moe_dispatch_choice *choice =
            &moe_dispatch_find(dispatch, tokens)->choices[MOE_OP_GEMM1];
        assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM1, tokens)->block_m,
                         expected[i].block_m);
        assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM2, tokens)->block_m,
                         expected[i].block_m);
        assert_int_equal(choice->line, expected[i].line);
        assert_int_equal(choice->source, MOE_CHOICE_RULE);
        assert_string_equal(choice->rule, "a");
        assert_string_equal(choice->file, "test.yaml");
    }
    assert_int_equal(fixture_tile_at(dispatch, MOE_OP_ACTIVATION, 6)->block_size, 64);
    const struct moe_dispatch_choice *other =
        &moe_dispatch_find(dispatch, 6)->choices[MOE_OP_POST_REORDER];
    assert_int_equal(other->source, MOE_CHOICE_HEURISTIC);
    assert_string_equal(other->rule, "heuristic");
    assert_string_equal(other->file, "");
    assert_int_equal(other->line, 0);
    assert_int_equal(moe_dispatch_find(dispatch, 6)->choices[MOE_OP_QUANTIZE].tile, -1);
    moe_dispatch_destroy(dispatch);
}

static void what_is_not_covered_falls_through(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 300);
    struct moe_dispatch *dispatch =
        dispatch_of(HEAD "- {name: small, match: {experts: 8, topk: 2}, buckets: [{max_tokens: 16, "
                         "gemm1: {BLOCK_SIZE_M: 1}}]}\n"
                         "- {name: medium, match: {experts: 8}, buckets: [{max_tokens: 100, gemm1: "
                         "{BLOCK_SIZE_M: 12}}]}\n"
                         "- {name: other, match: {experts: 9}, buckets: [{max_tokens: inf, gemm1: "
                         "{BLOCK_SIZE_M: 48}}]}\n",
                    "avx2", &problem);
    assert_string_equal(fixture_rule_at(dispatch, 0), "small");
    assert_string_equal(fixture_rule_at(dispatch, 16), "small");
    assert_string_equal(fixture_rule_at(dispatch, 17), "medium");
    assert_string_equal(fixture_rule_at(dispatch, 100), "medium");
    assert_string_equal(fixture_rule_at(dispatch, 101), "heuristic");
    assert_string_equal(fixture_rule_at(dispatch, 300), "heuristic");
    moe_dispatch_destroy(dispatch);
}

/*
 * density = tokens * 2 / 6: at least 1 from 3 tokens on, at most 10.3333 up to 30, since 31 * 2 / 6
 * = 10.33333...
 */
static void density_begins_and_ends_at_its_token(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(6, 2, 256, 512, 100);
    struct moe_dispatch *dispatch = dispatch_of(
        HEAD
        "- {name: dense, match: {density: 1..10.3333}, buckets: [{max_tokens: inf, gemm1: "
        "{BLOCK_SIZE_M: 12}}]}\n"
        "- {name: any, priority: -1, buckets: [{max_tokens: inf, gemm1: {BLOCK_SIZE_M: 4}}]}\n",
        "avx2", &problem);
    assert_covers(dispatch, 100);
    assert_string_equal(fixture_rule_at(dispatch, 2), "any");
    assert_string_equal(fixture_rule_at(dispatch, 3), "dense");
    assert_string_equal(fixture_rule_at(dispatch, 30), "dense");
    assert_string_equal(fixture_rule_at(dispatch, 31), "any");
    moe_dispatch_destroy(dispatch);

    dispatch = dispatch_of(HEAD "- {name: none, match: {density: <=0}, buckets: [{max_tokens: inf, "
                                "gemm1: {BLOCK_SIZE_M: 4}}]}\n",
                           "avx2", &problem);
    assert_string_equal(fixture_rule_at(dispatch, 0), "none");
    assert_string_equal(fixture_rule_at(dispatch, 1), "heuristic");
    moe_dispatch_destroy(dispatch);

    problem.num_experts = 0; /* a plan for single operations: there is no density */
    dispatch = dispatch_of(HEAD "- {name: dense, match: {density: \">=0\"}, buckets: [{max_tokens: "
                                "inf, gemm1: {BLOCK_SIZE_M: 4}}]}\n",
                           "avx2", &problem);
    assert_string_equal(fixture_rule_at(dispatch, 50), "heuristic");
    moe_dispatch_destroy(dispatch);
}

#define AVX2_ONLY                                                                                  \
    "- {name: avx2 only, buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2}}, {max_tokens: inf, " \
    "gemm1: {kernel: cpu.c11}}]}\n"

static void unavailable_tiles_are_errors_or_skipped(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 100);
    struct moe_device device = fixture_cpu("c11", 2);
    struct moe_memory memory = fixture_memory();
    struct moe_dispatch *dispatch = NULL;
    struct moe_error error;
    MOE_INIT(error);

    struct moe_config *config = fixture_config(HEAD AVX2_ONLY);
    assert_int_equal(
        moe_dispatch_create(&memory, config, &device, &problem, FIXTURE_ALL_OPS, &dispatch, &error),
        MOE_STATUS_CONFIG);
    assert_null(dispatch);
    assert_int_equal(error.line, 3);
    assert_string_equal(
        error.message,
        "test.yaml:3:54: error[unavailable-tile]: rule \"avx2 only\": gemm1 names cpu.avx2 "
        "BLOCK_SIZE_M 1 BLOCK_SIZE_N 16 BLOCK_SIZE_K 8192 GROUP_SIZE_M 1 num_warps 1 num_stages 1, "
        "but "
        "the processor lacks AVX2, FMA or F16C; on_unavailable: next would skip the bucket");
    moe_config_unref(config);

    dispatch = dispatch_of(NEXT AVX2_ONLY, "c11", &problem);
    assert_string_equal(fixture_rule_at(dispatch, 8), "heuristic");
    assert_string_equal(fixture_rule_at(dispatch, 9), "avx2 only");
    assert_int_equal(dispatch->num_buckets_skipped, 1);
    moe_dispatch_destroy(dispatch);

    dispatch = dispatch_of(NEXT AVX2_ONLY, "avx2", &problem);
    assert_string_equal(fixture_rule_at(dispatch, 8), "avx2 only");
    assert_int_equal(dispatch->num_buckets_skipped, 0);
    moe_dispatch_destroy(dispatch);
}

/*
 * The same when a snapshot is made for a device; rules for other devices and problems of any kind
 * do not matter.
 */
static void unavailable_tiles_are_found_when_read(void **state)
{
    (void)state;
    struct moe_device c11 = fixture_cpu("c11", 2);
    struct moe_device avx2 = fixture_cpu("avx2", 2);
    struct fixture_findings findings;
    int32_t status;
    struct moe_config_source source = fixture_text("x", HEAD AVX2_ONLY, MOE_CONFIG_REPLACE);
    assert_null(fixture_read(&source, 1, &c11, &findings, &status));
    assert_int_equal(status, MOE_STATUS_CONFIG);
    assert_non_null(strstr(findings.text, "3:54: error[unavailable-tile]: gemm1 names cpu.avx2"));
    moe_config_unref(fixture_read(&source, 1, &avx2, NULL, NULL));

    source = fixture_text("x", NEXT AVX2_ONLY, MOE_CONFIG_REPLACE);
    moe_config_unref(fixture_read(&source, 1, &c11, &findings, &status));
    assert_int_equal(status, MOE_STATUS_OK);
    assert_int_equal(findings.num_findings, 1);
    assert_non_null(strstr(findings.text, "4:54: warning[unavailable-tile]"));

    source = fixture_text(
        "x",
        HEAD
        "- {name: a, match: {isa: avx2}, buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2}}]}\n",
        MOE_CONFIG_REPLACE);
    moe_config_unref(fixture_read(&source, 1, &c11, &findings, &status));
    assert_int_equal(status, MOE_STATUS_OK);
}

static void gemm2_inherits_gemm1(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct moe_dispatch *dispatch = dispatch_of(
        HEAD "- name: a\n  buckets:\n"
             "  - {max_tokens: 8, gemm1: {kernel: cpu.c11, BLOCK_SIZE_M: 16}, gemm2: {}}\n"
             "  - {max_tokens: 16, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_K: 512}, gemm2: "
             "{BLOCK_SIZE_M: 24}}\n"
             "  - {max_tokens: inf, gemm2: {kernel: cpu.avx2, BLOCK_SIZE_N: 64}}\n",
        "avx2", &problem);
    assert_string_equal(fixture_tile_at(dispatch, MOE_OP_GEMM2, 8)->name,
                        fixture_tile_at(dispatch, MOE_OP_GEMM1, 8)->name);
    assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM2, 8)->block_m, 16);
    /* gemm1 leaves BLOCK_SIZE_M open, gemm2 decides it for both. */
    assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM1, 16)->block_m, 24);
    assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM2, 16)->block_m, 24);
    /* gemm1 is not named, but follows. */
    assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM2, 17)->block_n, 64);
    assert_int_equal(fixture_tile_at(dispatch, MOE_OP_GEMM1, 17)->block_m,
                     fixture_tile_at(dispatch, MOE_OP_GEMM2, 17)->block_m);
    assert_int_equal(moe_dispatch_find(dispatch, 17)->choices[MOE_OP_GEMM1].source,
                     MOE_CHOICE_HEURISTIC);
    moe_dispatch_destroy(dispatch);
}

static void match_values_hold_as_documented(void **state)
{
    (void)state;
    static const struct {
        const char *match;
        int holds;
    } cases[] = {
        {"experts: 8", 1},
        {"experts: 9", 0},
        {"experts: [4, 8]", 1},
        {"experts: [4, 9]", 0},
        {"experts: \">=8\"", 1},
        {"experts: \">=9\"", 0},
        {"experts: <=8", 1},
        {"experts: <=7", 0},
        {"experts: 8..9", 1},
        {"experts: 1..7", 0},
        {"experts: \"%4\"", 1},
        {"experts: \"%3\"", 0},
        {"weight: bf16", 1},
        {"weight: [fp16, fp32]", 0},
        {"act_dtype: bf16", 1},
        {"act_dtype: fp32", 0},
        {"device: test CPU*", 1},
        {"device: \"*\"", 1},
        {"device: \"*8*\"", 0},
        {"device: [x, TEST cpu 900?]", 1},
        {"backend: cpu", 1},
        {"backend: cuda", 0},
        {"isa: avx2", 1},
        {"isa: c11", 0},
        {"sm: 90", 0},
        {"sm: \">=1\"", 0},
        {"sm_count: 2", 1},
        {"smem_kib: <=99", 0},
        {"topk: 2", 1},
        {"hidden: 256", 1},
        {"inter: \"%512\"", 1},
        {"activation: silu", 1},
        {"activation: gelu", 0},
        {"block_shape: [128, 64]", 1},
        {"block_shape: [64, 128]", 0},
    };
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    problem.gate_up.group_rows = 128;
    problem.gate_up.group_k = 64;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[512];
        snprintf(
            text, sizeof(text),
            HEAD
            "- {name: yes, match: {%s}, buckets: [{max_tokens: inf, gemm1: {BLOCK_SIZE_M: 4}}]}\n",
            cases[i].match);
        struct moe_dispatch *dispatch = dispatch_of(text, "avx2", &problem);
        int holds = strcmp(fixture_rule_at(dispatch, 1), "yes") == 0;
        if (holds != cases[i].holds) {
            fail_msg("{%s} %s", cases[i].match, holds ? "holds" : "does not hold");
        }
        moe_dispatch_destroy(dispatch);
    }
}

/* A value that problem or device leaves at zero is not known: no rule about it holds. */
static void unknown_values_hold_for_nothing(void **state)
{
    (void)state;
    struct moe_problem problem = fixture_problem(0, 0, 0, 0, 64);
    memset(&problem.gate_up, 0, sizeof(problem.gate_up));
    problem.activation = 0;
    static const char *const matches[] = {"experts: <=8", "topk: <=8",    "hidden: \"%2\"",
                                          "inter: 1..9",  "weight: bf16", "activation: [silu]",
                                          "sm: <=90"};
    for (size_t i = 0; i < sizeof(matches) / sizeof(matches[0]); i++) {
        char text[512];
        snprintf(
            text, sizeof(text),
            HEAD
            "- {name: yes, match: {%s}, buckets: [{max_tokens: inf, gating: {BLOCK_SIZE: 1}}]}\n",
            matches[i]);
        struct moe_dispatch *dispatch = dispatch_of(text, "avx2", &problem);
        assert_string_equal(moe_dispatch_find(dispatch, 64)->choices[MOE_OP_GATING].rule,
                            "heuristic");
        moe_dispatch_destroy(dispatch);
    }
}

static void what_nothing_can_run_is_unsupported(void **state)
{
    (void)state;
    struct moe_config *config = fixture_config("schema: moe-dispatch/1\nrules: []\n");
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct moe_device cpu = fixture_cpu("avx2", 2);
    struct moe_device gpu = fixture_h200();
    struct moe_memory memory = fixture_memory();
    struct moe_dispatch *dispatch = NULL;
    struct moe_error error;
    MOE_INIT(error);
    gpu.sm = 70;
    assert_int_equal(
        moe_dispatch_create(&memory, config, &gpu, &problem, FIXTURE_ALL_OPS, &dispatch, &error),
        MOE_STATUS_UNSUPPORTED);
    assert_string_equal(error.message, "no kernel of this build runs router on sm_70");
    assert_int_equal(moe_dispatch_create(&memory, config, &cpu, &problem,
                                         UINT64_C(1) << MOE_OP_LAYER, &dispatch, &error),
                     MOE_STATUS_INVALID_ARGUMENT);
    problem.max_tokens = INT64_C(1) << 31;
    assert_int_equal(moe_dispatch_create(&memory, config, &cpu, &problem, 1, &dispatch, &error),
                     MOE_STATUS_INVALID_ARGUMENT);
    problem.max_tokens = -1;
    assert_int_equal(moe_dispatch_create(&memory, config, &cpu, &problem, 1, &dispatch, &error),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_null(dispatch);

    problem.max_tokens = 0;
    dispatch = fixture_dispatch(config, &cpu, &problem, FIXTURE_ALL_OPS);
    assert_covers(dispatch, 0);
    moe_dispatch_destroy(dispatch);
    problem.max_tokens = INT32_MAX;
    dispatch = fixture_dispatch(config, &cpu, &problem, FIXTURE_ALL_OPS);
    assert_covers(dispatch, INT32_MAX);
    moe_dispatch_destroy(dispatch);
    moe_config_unref(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_end_where_the_file_says),
        cmocka_unit_test(what_is_not_covered_falls_through),
        cmocka_unit_test(density_begins_and_ends_at_its_token),
        cmocka_unit_test(unavailable_tiles_are_errors_or_skipped),
        cmocka_unit_test(unavailable_tiles_are_found_when_read),
        cmocka_unit_test(gemm2_inherits_gemm1),
        cmocka_unit_test(match_values_hold_as_documented),
        cmocka_unit_test(unknown_values_hold_for_nothing),
        cmocka_unit_test(what_nothing_can_run_is_unsupported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
