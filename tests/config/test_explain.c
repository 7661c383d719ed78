/* SPDX-License-Identifier: Apache-2.0 */
/* explain: every rule in order with its reason, then a choice per operation. */
#include "config_fixture.h"

#define HEAD "schema: moe-dispatch/1\nrules:\n"

struct answer {
    char rules[8192];
    size_t rules_bytes;
    char choices[8192];
    size_t choices_bytes;
};

static void on_rule(void *self, const struct moe_explain_rule *rule)
{
    struct answer *answer = self;
    fixture_append(answer->rules, sizeof(answer->rules), &answer->rules_bytes,
                   "%d %s %s %s:%d: %s\n", rule->precedence, rule->chosen ? "+" : "-", rule->rule,
                   rule->file, rule->line, rule->reason);
}

static void on_choice(void *self, const struct moe_choice *choice)
{
    struct answer *answer = self;
    fixture_append(answer->choices, sizeof(answer->choices), &answer->choices_bytes,
                   "%s %lld..%lld %s: %s\n", moe_tiles_op_name(choice->op),
                   (long long)choice->min_tokens, (long long)choice->max_tokens, choice->rule,
                   choice->tile_name);
}

static void ask(const char *text, const struct moe_device *device,
                const struct moe_problem *problem, uint64_t ops, int64_t num_tokens,
                struct answer *answer)
{
    struct moe_config *config = fixture_config(text);
    struct moe_memory memory = fixture_memory();
    struct moe_explain_sink sink;
    MOE_INIT(sink);
    memset(answer, 0, sizeof(*answer));
    sink.self = answer;
    sink.rule = on_rule;
    sink.choice = on_choice;
    assert_int_equal(moe_explain(&memory, config, device, problem, ops, num_tokens, &sink, NULL),
                     MOE_STATUS_OK);
    moe_config_unref(config);
}

static const char text[] = HEAD
    "- {name: other, priority: 5, match: {experts: 128, sm: 90}, buckets: [{max_tokens: inf}]}\n"
    "- {name: shape, priority: 4, match: {experts: 128}, buckets: [{max_tokens: inf}]}\n"
    "- {name: dense, priority: 3, match: {density: \">=100\"}, buckets: [{max_tokens: inf}]}\n"
    "- {name: short, priority: 2, match: {topk: 2}, buckets: [{max_tokens: 63}]}\n"
    "- {name: yes, priority: 1, buckets: [{max_tokens: 64, gemm1: {BLOCK_SIZE_M: 24}, gemm2: {}}, "
    "{max_tokens: inf}]}\n"
    "- {name: late, buckets: [{max_tokens: inf}]}\n"
    "- {name: late and short, match: {experts: 64}, priority: -1, buckets: [{max_tokens: 8}]}\n";

static void every_rule_has_its_reason(void **state)
{
    (void)state;
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(64, 2, 256, 512, 16);
    struct answer answer;
    ask(text, &device, &problem, UINT64_C(1) << MOE_OP_GEMM1 | UINT64_C(1) << MOE_OP_GATING, 64,
        &answer);
    assert_string_equal(
        answer.rules,
        "1 - other test.yaml:3: the device has no sm, the rule wants 90\n"
        "2 - shape test.yaml:4: experts is 64, the rule wants 128\n"
        "3 - dense test.yaml:5: density is 64 * 2 / 64 at these tokens, the rule wants >=100\n"
        "4 - short test.yaml:6: matches, but its buckets end at 63 tokens\n"
        "5 + yes test.yaml:7: matches; its bucket up to 64 tokens (line 7) decides: it names "
        "gemm1, gemm2; "
        "the heuristic chooses the rest\n"
        "6 - late test.yaml:8: matches, but rule \"yes\" above (test.yaml:7) already covers 64 "
        "tokens\n"
        "7 - late and short test.yaml:9: matches, but its buckets end at 8 tokens\n");
    assert_string_equal(answer.choices, "gating 64..64 heuristic: cpu.avx2 BLOCK_SIZE 32\n"
                                        "gemm1 64..64 yes: cpu.avx2 BLOCK_SIZE_M 24 BLOCK_SIZE_N "
                                        "32 BLOCK_SIZE_K 512 GROUP_SIZE_M 1 "
                                        "num_warps 1 num_stages 1\n");
}

static void bucket_without_operations_leaves_it_to_the_heuristic(void **state)
{
    (void)state;
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(64, 2, 256, 512, 100000);
    struct answer answer;
    ask(text, &device, &problem, UINT64_C(1) << MOE_OP_GATING, 65, &answer);
    assert_non_null(
        strstr(answer.rules,
               "5 + yes test.yaml:7: matches; its bucket without end (line 7) decides; it names no "
               "operation, so the heuristic chooses\n"));
}

/* No kernel for an old GPU: rules are explained all the same, and each operation says so. */
static void device_without_kernels_is_explained(void **state)
{
    (void)state;
    struct moe_device device = fixture_h200();
    struct moe_problem problem = fixture_problem(128, 8, 2048, 768, 64);
    struct answer answer;
    device.sm = 70;
    ask(text, &device, &problem, UINT64_C(1) << MOE_OP_GEMM1 | UINT64_C(1) << MOE_OP_ROUTER, 64,
        &answer);
    assert_non_null(strstr(
        answer.rules, "2 + shape test.yaml:4: matches; its bucket without end (line 4) decides"));
    assert_string_equal(answer.choices,
                        "router 0..64 heuristic: none: no kernel of this build runs on sm_70\n"
                        "gemm1 0..64 heuristic: none: no kernel of this build runs on sm_70\n");
}

static void unavailable_tiles_are_explained(void **state)
{
    (void)state;
    static const char error_text[] = HEAD
        "- {name: a, buckets: [{max_tokens: inf, gating: {kernel: cpu.avx2, BLOCK_SIZE: 32}}]}\n";
    static const char next_text[] =
        "on_unavailable: next\n" HEAD
        "- {name: a, buckets: [{max_tokens: inf, gating: {kernel: cpu.avx2, BLOCK_SIZE: 32}}]}\n";
    struct moe_device device = fixture_cpu("c11", 2);
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct answer answer;
    ask(error_text, &device, &problem, UINT64_C(1) << MOE_OP_GATING, 64, &answer);
    assert_string_equal(
        answer.rules,
        "1 + a test.yaml:3: matches; its bucket without end (line 3) decides, and a plan is "
        "refused: "
        "gating names cpu.avx2 BLOCK_SIZE 32, but the processor lacks AVX2, FMA or F16C\n");
    assert_string_equal(
        answer.choices,
        "gating 0..64 a: none: gating names cpu.avx2 BLOCK_SIZE 32, but the processor lacks "
        "AVX2, FMA or F16C\n");
    ask(next_text, &device, &problem, UINT64_C(1) << MOE_OP_GATING, 64, &answer);
    assert_string_equal(
        answer.rules,
        "1 - a test.yaml:4: matches; its bucket without end (line 4) is skipped: gating names "
        "cpu.avx2 BLOCK_SIZE 32, but the processor lacks AVX2, FMA or F16C\n");
    assert_non_null(strstr(answer.choices, "heuristic: cpu.c11 BLOCK_SIZE"));
}

static void callbacks_are_optional_and_tokens_checked(void **state)
{
    (void)state;
    struct moe_config *config = fixture_config(text);
    struct moe_memory memory = fixture_memory();
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct moe_explain_sink sink;
    MOE_INIT(sink);
    assert_int_equal(moe_explain(&memory, config, &device, &problem, 1, 0, &sink, NULL),
                     MOE_STATUS_OK);
    assert_int_equal(moe_explain(&memory, config, &device, &problem, 1, -1, &sink, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_int_equal(moe_explain(&memory, config, &device, &problem, 1, INT64_MAX, &sink, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    moe_config_unref(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule_has_its_reason),
        cmocka_unit_test(bucket_without_operations_leaves_it_to_the_heuristic),
        cmocka_unit_test(device_without_kernels_is_explained),
        cmocka_unit_test(unavailable_tiles_are_explained),
        cmocka_unit_test(callbacks_are_optional_and_tokens_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
