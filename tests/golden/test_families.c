/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 600 */
/* The golden layer of each family through moectl and the plugin, as one command each: on one rank
 * and on several, with one thread and three, with each instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support_moectl.h"

enum { path_bytes = 512, golden_bytes = path_bytes + 32, max_extra = 6 };

/* Runs a golden layer with more options; `extra` ends with NULL. */
static void run_family(const char *family, const char *const *extra,
                       struct moe_support_moectl *result)
{
    char model[path_bytes];
    char golden[golden_bytes];
    snprintf(model, sizeof model, "%s/golden/%s", MOE_TESTS_DATA_DIR, family);
    snprintf(golden, sizeof golden, "%s/golden.safetensors", model);
    const char *arguments[8 + max_extra] = {"run", "--model", model, "--check", golden};
    for (size_t i = 0; extra[i] != NULL; ++i) {
        assert_in_range(i, 0, max_extra - 1);
        arguments[5 + i] = extra[i];
    }
    moe_support_moectl_run(arguments, result);
    if (result->exit_status != 0) {
        fail_msg("moectl run of %s exits with %d:\n%s%s", family, result->exit_status, result->out,
                 result->err);
    }
    assert_string_equal(result->err, "");
}

/* The number after `"digest": ` in a JSON result. */
static void copy_digest(const char *json, char digest[32])
{
    static const char key[] = "\"digest\":";
    const char *at = strstr(json, key);
    assert_non_null(at);
    assert_int_equal(sscanf(at + sizeof key - 1, " \"%31[0-9a-fx]\"", digest), 1);
}

static void same_bits_whatever_runs_it(const char *family)
{
    static const char portable[] = MOE_TESTS_DATA_DIR "/cli/portable.yaml";
    const char *const variants[][max_extra] = {
        {"--json", "--threads", "1", NULL},
        {"--json", "--threads", "3", NULL},
        {"--json", "--threads", "2", "--config", portable, NULL},
    };
    char first[32] = "";
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; ++i) {
        struct moe_support_moectl result;
        char digest[32];
        run_family(family, variants[i], &result);
        copy_digest(result.out, digest);
        if (i == 0) {
            memcpy(first, digest, sizeof first);
            assert_int_not_equal(moe_support_moectl_is_json(result.out), 0);
        }
        assert_string_equal(digest, first);
        moe_support_moectl_finish(&result);
    }
}

static void right_on_ranks(const char *family, const char *tp, const char *ep)
{
    struct moe_support_moectl result;
    run_family(family, (const char *const[]){"--tp", tp, "--ep", ep, NULL}, &result);
    moe_support_moectl_finish(&result);
}

static void check_family(void **state)
{
    const char *family = *state;
    same_bits_whatever_runs_it(family);
    right_on_ranks(family, "2", "1");
    right_on_ranks(family, "1", "2");
    right_on_ranks(family, "2", "3"); /* experts that do not divide by 3 */
}

/* What the check compares, and what it says about what it does not. */
static void tells_what_is_compared(void **state)
{
    (void)state;
    struct moe_support_moectl result;
    run_family("qwen2_moe", (const char *const[]){NULL}, &result);
    static const char *const tensors[] = {"router_logits", "topk_ids", "topk_weights",
                                          "experts_output", "block_output"};
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; ++i) {
        char line[64];
        snprintf(line, sizeof line, "\n%s ", tensors[i]);
        const char *at = strstr(result.out, line);
        assert_non_null(at);
        const char *verdict = strstr(at + 1, "right\n");
        assert_non_null(verdict);
        assert_null(
            memchr(at + 1, '\n', (size_t)(verdict - at - 1))); /* on the tensor's own line */
    }
    assert_null(strstr(result.out, "wrong"));
    moe_support_moectl_finish(&result);

    run_family("llama4_text", (const char *const[]){NULL}, &result);
    assert_non_null(strstr(result.out, "\ntopk_ids          not in the file"));
    assert_non_null(strstr(result.out, "\nexperts_output    not in the file"));
    moe_support_moectl_finish(&result);
}

static void takes_the_first_tokens(void **state)
{
    (void)state;
    struct moe_support_moectl result;
    run_family("olmoe", (const char *const[]){"--tokens", "1", NULL}, &result);
    assert_non_null(strstr(result.out, "1 of 1 tokens"));
    moe_support_moectl_finish(&result);
}

#define FAMILY(name)                                                        \
    {                                                                       \
        "family " name, check_family, NULL, NULL, (void *)(uintptr_t)(name) \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAMILY("afmoe"),
        FAMILY("aria_text"),
        FAMILY("axk1"),
        FAMILY("axk2"),
        FAMILY("bailing_hybrid"),
        FAMILY("beam"),
        FAMILY("cohere2_moe"),
        FAMILY("dbrx"),
        FAMILY("deepseek_ocr2_text"),
        FAMILY("deepseek_v2"),
        FAMILY("deepseek_v3"),
        FAMILY("deepseek_v32"),
        FAMILY("diffusion_gemma_text"),
        FAMILY("dots1"),
        FAMILY("dots3_note_text"),
        FAMILY("ernie4_5_moe"),
        FAMILY("ernie4_5_vl_moe_text"),
        FAMILY("exaone_moe"),
        FAMILY("flex_olmo"),
        FAMILY("flint"),
        FAMILY("gemma4_text"),
        FAMILY("glm4_moe"),
        FAMILY("glm4_moe_lite"),
        FAMILY("glm4v_moe_text"),
        FAMILY("glm_moe_dsa"),
        FAMILY("gpt_oss"),
        FAMILY("granitemoe"),
        FAMILY("granitemoe_swa"),
        FAMILY("granitemoehybrid"),
        FAMILY("granitemoeshared"),
        FAMILY("hunyuan_v1_moe"),
        FAMILY("hy_v3"),
        FAMILY("inkling_text"),
        FAMILY("jamba"),
        FAMILY("jetmoe"),
        FAMILY("kimi_k2"),
        FAMILY("kimi_linear"),
        FAMILY("kolibri1"),
        FAMILY("laguna"),
        FAMILY("lara_mini"),
        FAMILY("lfm2_moe"),
        FAMILY("llama4_text"),
        FAMILY("mellum"),
        FAMILY("mimo_v2_flash"),
        FAMILY("minimax"),
        FAMILY("minimax_m2"),
        FAMILY("minimax_m3_vl_text"),
        FAMILY("mistral4"),
        FAMILY("mistral_large4_text"),
        FAMILY("mixtral"),
        FAMILY("nemotron_h"),
        FAMILY("olmoe"),
        FAMILY("openai_privacy_filter"),
        FAMILY("phimoe"),
        FAMILY("qwen2_moe"),
        FAMILY("qwen3_5_moe_text"),
        FAMILY("qwen3_moe"),
        FAMILY("qwen3_next"),
        FAMILY("qwen3_omni_moe_talker_text"),
        FAMILY("qwen3_omni_moe_text"),
        FAMILY("qwen3_vl_moe_text"),
        FAMILY("qwen4_exp_text"),
        FAMILY("sarvam_mla"),
        FAMILY("sarvam_moe"),
        FAMILY("solar_open"),
        FAMILY("step3p5"),
        FAMILY("unlimited_ocr_text"),
        cmocka_unit_test(tells_what_is_compared),
        cmocka_unit_test(takes_the_first_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
