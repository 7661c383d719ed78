/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where rules come from and which goes first: layers, replacement, the environment, precedence, the
 * fingerprint.
 */
#define _POSIX_C_SOURCE 200809L

#include "config_fixture.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD     "schema: moe-dispatch/1\nrules:\n"
#define VARIABLE "MOE_PLUGIN_CONFIG"
#define PINNED   UINT64_C(0x7353c43e5a77627e)

/* Files that the tests write, in a folder of their own. */
static char folder[] = "/tmp/moe_test_layers_XXXXXX";

static const char *write_file(const char *name, const char *text)
{
    static char paths[8][256];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    return path;
}

static struct moe_config *read_with_environment(const struct moe_config_source *sources,
                                                int32_t num_sources,
                                                struct fixture_findings *findings, int32_t *status)
{
    struct moe_memory memory = fixture_memory();
    memset(findings, 0, sizeof(*findings));
    struct moe_config_request request = {sources, num_sources,        1,
                                         NULL,    fixture_on_finding, findings};
    struct moe_config *config = NULL;
    *status = moe_config_create(&memory, &request, &config, NULL);
    return config;
}

/*
 * Layers of a snapshot with one rule per file that decides alone: which one decides for 5 tokens.
 */
static void assert_decides(struct moe_config *config, const char *rule)
{
    struct moe_device device = fixture_cpu("avx2", 2);
    struct moe_problem problem = fixture_problem(8, 2, 256, 512, 64);
    struct moe_dispatch *dispatch = fixture_dispatch(config, &device, &problem, FIXTURE_ALL_OPS);
    assert_string_equal(fixture_rule_at(dispatch, 5), rule);
    moe_dispatch_destroy(dispatch);
}

static int32_t num_layers_of(const struct moe_config *config)
{
    struct moe_config_info info;
    MOE_INIT(info);
    moe_config_describe(config, &info);
    return info.num_layers;
}

#define RULE(name)   \
    "- {name: " name \
    ", buckets: [{max_tokens: inf, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 12}}]}\n"

static void later_layers_go_first(void **state)
{
    (void)state;
    /* The first source has the higher priority and more keys; the layer counts more. */
    struct moe_config_source sources[] = {
        fixture_text("one",
                     HEAD "- {name: one, priority: 9, match: {experts: 8}, buckets: [{max_tokens: "
                          "inf, gemm1: {BLOCK_SIZE_M: 1}}]}\n",
                     0),
        fixture_text("two", HEAD RULE("two"), 0),
    };
    struct moe_config *config = fixture_read(sources, 2, NULL, NULL, NULL);
    assert_decides(config, "two");
    struct moe_config_info info;
    MOE_INIT(info);
    moe_config_describe(config, &info);
    assert_string_equal(info.layers, "built-in,one,two");
    assert_int_equal(info.num_layers, 3);
    moe_config_unref(config);
}

static void replace_drops_all_below(void **state)
{
    (void)state;
    struct moe_config_source sources[] = {
        fixture_text("broken", "not a configuration", 0), /* replaced, so not read */
        fixture_text("two", HEAD RULE("two"), MOE_CONFIG_REPLACE),
        fixture_text("three",
                     HEAD "- {name: three, match: {experts: 9}, buckets: [{max_tokens: inf}]}\n",
                     0),
    };
    struct moe_config *config = fixture_read(sources, 3, NULL, NULL, NULL);
    struct moe_config_info info;
    MOE_INIT(info);
    moe_config_describe(config, &info);
    assert_string_equal(info.layers, "two,three");
    assert_int_equal(info.num_rules, 2);
    assert_decides(config, "two");
    moe_config_unref(config);
}

static void environment_goes_first(void **state)
{
    (void)state;
    const char *host = write_file("host.yaml", HEAD RULE("host"));
    const char *first = write_file("first.yaml", HEAD RULE("first"));
    const char *second = write_file("second.yaml", HEAD RULE("second"));
    struct moe_config_source source = fixture_file(host, 0);
    struct fixture_findings findings;
    int32_t status;
    char value[1024];

    snprintf(value, sizeof(value), "%s:%s", first, second);
    assert_int_equal(setenv(VARIABLE, value, 1), 0);
    struct moe_config *config = read_with_environment(&source, 1, &findings, &status);
    assert_int_equal(status, MOE_STATUS_OK);
    assert_int_equal(num_layers_of(config), 4);
    assert_decides(config, "second");
    moe_config_unref(config);

    config = fixture_read(&source, 1, NULL, NULL, NULL); /* a request without the environment */
    assert_int_equal(num_layers_of(config), 2);
    assert_decides(config, "host");
    moe_config_unref(config);

    snprintf(value, sizeof(value), "=%s", first);
    assert_int_equal(setenv(VARIABLE, value, 1), 0);
    config = read_with_environment(&source, 1, &findings, &status);
    assert_int_equal(num_layers_of(config), 1);
    assert_decides(config, "first");
    moe_config_unref(config);

    assert_int_equal(setenv(VARIABLE, "=", 1), 0); /* nothing but the heuristic */
    config = read_with_environment(&source, 1, &findings, &status);
    assert_int_equal(num_layers_of(config), 0);
    assert_decides(config, "heuristic");
    moe_config_unref(config);

    assert_int_equal(setenv(VARIABLE, "", 1), 0); /* as if it were not set */
    config = read_with_environment(&source, 1, &findings, &status);
    assert_int_equal(num_layers_of(config), 2);
    moe_config_unref(config);
    unsetenv(VARIABLE);
}

static void environment_must_be_a_list_of_files(void **state)
{
    (void)state;
    const char *file = write_file("good.yaml", HEAD RULE("good"));
    const char *const patterns[] = {":%s", "%s:", "%s::%s", "=:%s"};
    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        char value[1024] = "";
        size_t num_bytes = 0;
        for (const char *p = patterns[i]; *p != '\0'; p++) {
            if (*p == '%') {
                fixture_append(value, sizeof(value), &num_bytes, "%s", file);
                p++;
            } else {
                fixture_append(value, sizeof(value), &num_bytes, "%c", *p);
            }
        }
        assert_int_equal(setenv(VARIABLE, value, 1), 0);
        struct fixture_findings findings;
        int32_t status;
        assert_null(read_with_environment(NULL, 0, &findings, &status));
        assert_int_equal(status, MOE_STATUS_CONFIG);
        assert_string_equal(findings.text,
                            "0:0: error[environment]: the value has an empty file name; valid: "
                            "FILE[:FILE...], with a leading = to replace all other layers\n");
    }
    unsetenv(VARIABLE);
}

static void files_that_cannot_be_read_are_named(void **state)
{
    (void)state;
    char fifo[256];
    snprintf(fifo, sizeof(fifo), "%s/fifo", folder);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    const char *missing = "/nonexistent/moe.yaml";
    struct moe_config_source sources[] = {fixture_file(missing, 0), fixture_file(fifo, 0),
                                          fixture_file(folder, 0)};
    struct fixture_findings findings;
    int32_t status;
    errno = 4711;
    assert_null(
        fixture_read(sources, 3, NULL, &findings, &status)); /* and does not wait for a writer */
    assert_int_equal(errno, 4711);
    assert_int_equal(status, MOE_STATUS_IO);
    assert_string_equal(
        findings.text,
        "0:0: error[io]: cannot open the file: No such file or directory (errno 2)\n"
        "0:0: error[io]: not a regular file; a configuration is read from regular files only\n"
        "0:0: error[io]: not a regular file; a configuration is read from regular files only\n");
    assert_int_equal(unlink(fifo), 0);

    struct moe_memory memory = fixture_memory();
    struct moe_config_request request = {sources, 1, 0, NULL, NULL, NULL};
    struct moe_config *config = NULL;
    struct moe_error error;
    MOE_INIT(error);
    assert_int_equal(moe_config_create(&memory, &request, &config, &error), MOE_STATUS_IO);
    assert_int_equal(error.native, ENOENT);
    assert_non_null(strstr(error.message, "/nonexistent/moe.yaml: error[io]: "));
}

static void bad_sources_are_refused(void **state)
{
    (void)state;
    struct moe_config_source source = fixture_text("x", HEAD, 0);
    int32_t status;
    source.flags = 2;
    assert_null(fixture_read(&source, 1, NULL, NULL, &status));
    assert_int_equal(status, MOE_STATUS_INVALID_ARGUMENT);
    source = fixture_file(NULL, 0);
    assert_null(fixture_read(&source, 1, NULL, NULL, &status));
    assert_int_equal(status, MOE_STATUS_INVALID_ARGUMENT);
    assert_null(fixture_read(NULL, 1, NULL, NULL, &status));
    assert_int_equal(status, MOE_STATUS_INVALID_ARGUMENT);
}

#define CHOICE(m) "buckets: [{max_tokens: inf, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: " #m "}}]}\n"

/* Within a layer: priority, then keys matched exactly, then other keys, then later in the file. */
static void precedence_within_a_layer(void **state)
{
    (void)state;
    static const char *const texts[][2] = {
        {"urgent", HEAD "- {name: exact, match: {experts: 8, topk: 2, hidden: 256}, " CHOICE(
                       1) "- {name: urgent, priority: 1, " CHOICE(4)},
        {"normal", HEAD "- {name: normal, " CHOICE(
                       1) "- {name: late, priority: -1, match: {experts: 8}, " CHOICE(4)},
        {"exact", HEAD "- {name: exact, match: {experts: 8}, " CHOICE(
                      1) "- {name: loose, match: {topk: [2, 4], hidden: \"%64\", inter: "
                         "\">=1\"}, " CHOICE(4)},
        {"more", HEAD "- {name: more, match: {experts: 8, topk: [2, 4]}, " CHOICE(
                     1) "- {name: less, match: {experts: 8}, " CHOICE(4)},
        {"later", HEAD "- {name: earlier, match: {experts: 8}, " CHOICE(
                      1) "- {name: later, match: {topk: 2}, " CHOICE(4)},
        {"pair",
         HEAD "- {name: pair, match: {experts: [8]}, " CHOICE(1) /* a list of one is exact */
         "- {name: glob, match: {device: \"test*\"}, " CHOICE(4)},
        {"device", HEAD "- {name: device, match: {device: TEST cpu 9000}, " CHOICE(
                       1) "- {name: glob, match: {device: \"?est*9*\"}, " CHOICE(4)},
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct moe_config *config = fixture_config(texts[i][1]);
        assert_decides(config, texts[i][0]);
        moe_config_unref(config);
    }
}

static void same_match_in_two_layers_is_no_overlap(void **state)
{
    (void)state;
    struct moe_config_source sources[] = {fixture_text("one", HEAD RULE("one"), MOE_CONFIG_REPLACE),
                                          fixture_text("two", HEAD RULE("two"), 0)};
    struct moe_config *config = fixture_read(sources, 2, NULL, NULL, NULL);
    assert_decides(config, "two");
    moe_config_unref(config);
}

static uint64_t fingerprint_of(const char *text)
{
    struct moe_config *config = fixture_config(text);
    struct moe_config_info info;
    MOE_INIT(info);
    moe_config_describe(config, &info);
    moe_config_unref(config);
    return info.fingerprint;
}

static void fingerprint_is_over_content(void **state)
{
    (void)state;
    static const char base[] = HEAD
        "- name: a\n  match: {experts: 8, weight: [bf16, fp16], density: \">=0.5\"}\n"
        "  buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}, gemm2: {}}]\n";
    static const char *const same[] = {
        "# comment\n" HEAD
        "- name: other\n  match: {density: \">=0.50\", weight: [fp16, bf16], experts: [8]}\n"
        "  buckets:\n  - max_tokens: 8\n    gemm2: {BLOCK_SIZE_M: 4}\n    gemm1: {BLOCK_SIZE_M: 4, "
        "kernel: 'cpu.avx2'}\n",
        "on_unavailable: error\n" HEAD "- name: a\n  priority: 7\n"
        "  match: {experts: 8, weight: [bf16, fp16], density: \">=5e-1\"}\n"
        "  buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}, gemm2: {}}]\n",
    };
    static const char *const different[] = {
        HEAD
        "- name: a\n  match: {experts: 8, weight: [bf16], density: \">=0.5\"}\n"
        "  buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}, gemm2: {}}]\n",
        HEAD
        "- name: a\n  match: {experts: 8, weight: [bf16, fp16], density: \"<=0.5\"}\n"
        "  buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}, gemm2: {}}]\n",
        HEAD
        "- name: a\n  match: {experts: 8, weight: [bf16, fp16], density: \">=0.5\"}\n"
        "  buckets: [{max_tokens: 9, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}, gemm2: {}}]\n",
        HEAD "- name: a\n  match: {experts: 8, weight: [bf16, fp16], density: \">=0.5\"}\n"
             "  buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}}]\n",
        "on_unavailable: next\n" HEAD
        "- name: a\n  match: {experts: 8, weight: [bf16, fp16], density: \">=0.5\"}\n"
        "  buckets: [{max_tokens: 8, gemm1: {kernel: cpu.avx2, BLOCK_SIZE_M: 4}, gemm2: {}}]\n",
    };
    uint64_t fingerprint = fingerprint_of(base);
    /* Ranks on other machines and builds compute the same number. */
    if (fingerprint != PINNED) {
        fail_msg("fingerprint 0x%016llx", (unsigned long long)fingerprint);
    }
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        assert_true(fingerprint_of(same[i]) == fingerprint);
    }
    for (size_t i = 0; i < sizeof(different) / sizeof(different[0]); i++) {
        assert_true(fingerprint_of(different[i]) != fingerprint);
    }
}

static int make_folder(void **state)
{
    (void)state;
    unsetenv(VARIABLE);
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"host.yaml", "first.yaml", "second.yaml", "good.yaml"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_layers_go_first),
        cmocka_unit_test(replace_drops_all_below),
        cmocka_unit_test(environment_goes_first),
        cmocka_unit_test(environment_must_be_a_list_of_files),
        cmocka_unit_test(files_that_cannot_be_read_are_named),
        cmocka_unit_test(bad_sources_are_refused),
        cmocka_unit_test(precedence_within_a_layer),
        cmocka_unit_test(same_match_in_two_layers_is_no_overlap),
        cmocka_unit_test(fingerprint_is_over_content),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
