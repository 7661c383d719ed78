/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of moectl that look at a plugin and its configuration. */
#define _GNU_SOURCE
#include "moectl_fixture.h"

#include <sys/wait.h>

static struct fixture_folder folder;
static char good_path[FIXTURE_PATH_BYTES];
static char bad_path[FIXTURE_PATH_BYTES];
static char mixtral_path[FIXTURE_PATH_BYTES];

static const char good_config[] = "schema: moe-dispatch/1\n"
                                  "rules:\n"
                                  "  - name: mine\n"
                                  "    match: {backend: cpu, experts: 8}\n"
                                  "    priority: 9\n"
                                  "    buckets:\n"
                                  "      - max_tokens: 16\n"
                                  "        gemm1: {kernel: cpu.c11}\n";

static const char bad_config[] = "schema: moe-dispatch/1\n"
                                 "rules:\n"
                                 "  - name: wrong\n"
                                 "    match: {backend: cpu, expert: 8}\n"
                                 "    buckets:\n"
                                 "      - max_tokens: -1\n";

static int set_up(void **state)
{
    (void)state;
    fixture_create(&folder);
    fixture_write_text(&folder, "good.yaml", good_config);
    fixture_write_text(&folder, "bad.yaml", bad_config);
    fixture_join(&folder, "good.yaml", good_path);
    fixture_join(&folder, "bad.yaml", bad_path);
    golden_path("mixtral", "", mixtral_path);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_destroy(&folder);
    return 0;
}

static const char *const commands[] = {"run", "validate", "explain", "list", "info"};

static void tells_its_commands(void **state)
{
    (void)state;
    EXPECT_RUN("usage: moectl COMMAND", "--help");
    EXPECT_RUN("moectl 0.1", "--version");
    expect_moectl((const char *const[]){NULL}, 2, NULL, "usage: moectl COMMAND");
    EXPECT_REFUSED("there is no command 'ifno' (did you mean info?); there are run, ", "ifno");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; ++i) {
        char usage[64];
        snprintf(usage, sizeof usage, "usage: moectl %s [options]", commands[i]);
        EXPECT_RUN(commands[i], "--help");
        EXPECT_RUN(usage, commands[i], "--help");
        EXPECT_REFUSED("unknown option '--jason' (did you mean --json?)", commands[i], "--jason");
    }
}

static void refuses_what_is_no_plugin(void **state)
{
    (void)state;
    EXPECT_REFUSED("the plugin cannot be loaded", "list", "--plugin", good_path);
    EXPECT_REFUSED("there-is-none.so", "info", "--plugin", "there-is-none.so");
    EXPECT_REFUSED("--backend: 'tpu' is not one of auto|cpu|cuda", "info", "--backend", "tpu");
}

static void full_disk_is_no_success(void **state)
{
    (void)state;
    const int status = system(MOE_BUILD_DIR "/bin/moectl list >/dev/full 2>/dev/null");
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 2);
}

static void lists_tiles(void **state)
{
    (void)state;
    EXPECT_RUN("cpu.c11 BLOCK_SIZE_M", "list");
    EXPECT_RUN("post_reorder", "list", "--plugin", MOE_BUILD_DIR "/lib/libmoe_plugin.so");
    EXPECT_JSON(0, "\"BLOCK_SIZE_M\"", "list", "--json");
}

static void tells_what_the_plugin_is(void **state)
{
    (void)state;
    EXPECT_RUN("every known answer is right", "info", "--self-test");
    EXPECT_RUN("cuda: ", "info");
    EXPECT_RUN(good_path, "info", "--config", good_path); /* a live layer */
    EXPECT_RUN("cpu", "info", "--backend", "cpu", "--threads", "3");
    EXPECT_REFUSED("num_threads is 5000; it must be 1 to 1024", "info", "--threads", "5000");
    EXPECT_JSON(0, "\"fingerprint\"", "info", "--json");
    EXPECT_JSON(0, "\"right\": true", "info", "--json", "--self-test");
    expect_moectl(ARGUMENTS("info", "--verbose"), 0, "kernel-set id", "[info] ");
}

static void validate_points_at_findings(void **state)
{
    (void)state;
    char line[FIXTURE_PATH_BYTES + 64];
    EXPECT_RUN("good.yaml: right", "validate", good_path);
    EXPECT_RUN("good.yaml: right", "validate", "--device-of-this-machine", good_path);
    EXPECT_RUN("good.yaml: right", "validate", "--sm", "90", good_path);
    snprintf(line, sizeof line, "%s:4:27: error[unknown-key]: ", bad_path);
    expect_moectl(ARGUMENTS("validate", bad_path), 1, line, NULL);
    /* The caret is below the key, as many columns in as the message says. */
    expect_moectl(ARGUMENTS("validate", bad_path), 1,
                  "\n        match: {backend: cpu, expert: 8}\n                              ^\n",
                  NULL);
    snprintf(line, sizeof line, "%s:6:21: error[", bad_path); /* all findings, not the first */
    expect_moectl(ARGUMENTS("validate", bad_path), 1, line, NULL);
    expect_moectl(ARGUMENTS("validate", good_path, bad_path), 1, "2 errors, 0 warnings", NULL);
    expect_moectl(ARGUMENTS("validate", bad_path, "/there/is/none.yaml"), 2,
                  "/there/is/none.yaml: error[io]: ", NULL);
    EXPECT_REFUSED("FILE... is missing", "validate");
    EXPECT_REFUSED("exclude each other", "validate", "--sm", "90", "--device-of-this-machine",
                   good_path);
    EXPECT_REFUSED("need --sm", "validate", "--sm-count", "132", good_path);
    EXPECT_REFUSED("--sm 77: give --sm-count and --smem-kib too", "validate", "--sm", "77",
                   good_path);
    EXPECT_JSON(0, "\"num_errors\": 0", "validate", "--json", good_path);
    EXPECT_JSON(1, "\"code\": \"unknown-key\"", "validate", "--json", bad_path, good_path);
}

static void explain_names_the_rule(void **state)
{
    (void)state;
    char place[FIXTURE_PATH_BYTES + 64];
    snprintf(place, sizeof place, "rule \"mine\" (%s:7)", good_path); /* the bucket */
    EXPECT_RUN(place, "explain", "--shape", "8,2,128,112", "-M", "16", "--config", good_path);
    EXPECT_RUN(place, "explain", "--model", mixtral_path, "-M", "1", "--config", good_path);
    snprintf(place, sizeof place, "* \"mine\" (%s:3)", good_path); /* the rule */
    EXPECT_RUN(place, "explain", "--shape", "8,2,128,112", "-M", "16", "--config", good_path);
    EXPECT_RUN("its buckets end at 16 tokens", "explain", "--shape", "8,2,128,112", "-M", "17",
               "--config", good_path);
    EXPECT_RUN("experts is 4, the rule wants 8", "explain", "--shape", "8,2,128,112", "--ep", "2",
               "-M", "1", "--config", good_path);
    EXPECT_RUN("inter 56,", "explain", "--shape", "8,2,128,112", "--tp", "2");
    EXPECT_RUN("fp32", "explain", "--shape", "8,2,128,112", "--dtype", "fp32");
    EXPECT_RUN("* \"DeepSeek-V3 in fp8 on Hopper\"", "explain", "--shape", "256,8,7168,2048",
               "--dtype", "fp8_e4m3", "--sm", "90");
    EXPECT_RUN("mxfp4", "explain", "--shape", "8,2,128,112", "--dtype", "mxfp4");
    EXPECT_RUN("refused problem.gate_up is mxfp4; the cpu backend", "explain", "--shape",
               "8,2,128,112", "--dtype", "mxfp4");
    EXPECT_JSON(0, "\"refusal\": \"problem.gate_up is int4", "explain", "--json", "--shape",
                "8,2,128,112", "--dtype", "int4");
    EXPECT_JSON(0, "\"refusal\": null", "explain", "--json", "--shape", "8,2,128,112", "-M", "0");
    EXPECT_RUN("sm_90, 132 SMs, 227 KiB", "explain", "--shape", "8,2,128,112", "--sm", "90");
    EXPECT_RUN("sm_121, 48 SMs, 99 KiB shared memory, GB10", "explain", "--shape", "8,2,128,112",
               "--sm", "121", "--sm-count", "48", "--smem-kib", "99", "--device", "GB10");
    EXPECT_JSON(0, "\"decides\": true", "explain", "--json", "--shape", "8,2,128,112", "--config",
                good_path);
}

static void explain_refuses(void **state)
{
    (void)state;
    EXPECT_REFUSED("give either --model DIR or --shape E,k,H,I", "explain");
    EXPECT_REFUSED("give either --model DIR or --shape E,k,H,I", "explain", "--model", mixtral_path,
                   "--shape", "8,2,128,112");
    EXPECT_REFUSED("it takes four, E,k,H,I", "explain", "--shape", "8,2,128");
    EXPECT_REFUSED("'fp9' is not one of fp32|fp16|bf16|fp8_e4m3|", "explain", "--shape",
                   "8,2,128,112", "--dtype", "fp9");
    EXPECT_REFUSED("top_k", "explain", "--shape", "8,9,128,112"); /* the plugin's sentence */
    EXPECT_REFUSED("--tp 3: the inter of 112 channels does not divide by it", "explain", "--shape",
                   "8,2,128,112", "--tp", "3");
    EXPECT_REFUSED("--layer needs --model", "explain", "--shape", "8,2,128,112", "--layer", "1");
    /* Findings of --config are shown before the sentence. */
    EXPECT_REFUSED("error[unknown-key]", "explain", "--shape", "8,2,128,112", "--config", bad_path);
    EXPECT_REFUSED("the configuration cannot be used", "explain", "--shape", "8,2,128,112",
                   "--config", good_path, "--config", bad_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tells_its_commands),       cmocka_unit_test(refuses_what_is_no_plugin),
        cmocka_unit_test(full_disk_is_no_success),  cmocka_unit_test(lists_tiles),
        cmocka_unit_test(tells_what_the_plugin_is), cmocka_unit_test(validate_points_at_findings),
        cmocka_unit_test(explain_names_the_rule),   cmocka_unit_test(explain_refuses),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
