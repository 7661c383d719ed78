/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One folder per bad file: tests/data/config/invalid/<case>/input.yaml and expected.txt, which
 * holds every finding in order. Valid files lie in tests/data/config/valid and have none.
 * MOE_TEST_UPDATE=1 writes the expectations anew, for review.
 */
#define _POSIX_C_SOURCE 200809L

#include "config_fixture.h"

#include <glob.h>

#define MIN_INVALID_CASES 40u

static void read_source(const char *path, struct fixture_findings *findings, int32_t *status)
{
    struct moe_config_source source = fixture_file(path, MOE_CONFIG_REPLACE);
    moe_config_unref(fixture_read(&source, 1, NULL, findings, status));
}

static void check_invalid_case(const char *path)
{
    struct fixture_findings findings;
    int32_t status;
    read_source(path, &findings, &status);
    assert_int_equal(status, MOE_STATUS_CONFIG);

    char expected_path[1024];
    snprintf(expected_path, sizeof(expected_path), "%.*sexpected.txt",
             (int)(strlen(path) - strlen("input.yaml")), path);
    if (getenv("MOE_TEST_UPDATE") != NULL) {
        FILE *file = fopen(expected_path, "wb");
        assert_non_null(file);
        fputs(findings.text, file);
        fclose(file);
    }
    char *expected = fixture_read_file(expected_path, NULL);
    int same = strcmp(expected, findings.text) == 0;
    if (!same) {
        print_error("%s\nexpected:\n%sgot:\n%s", path, expected, findings.text);
    }
    free(expected);
    assert_true(same);
}

static void invalid_files_have_their_findings(void **state)
{
    (void)state;
    glob_t found;
    assert_int_equal(glob(MOE_TESTS_DATA_DIR "/config/invalid/*/input.yaml", 0, NULL, &found), 0);
    assert_true(found.gl_pathc >= MIN_INVALID_CASES);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        check_invalid_case(found.gl_pathv[i]);
    }
    globfree(&found);
}

/* The first finding is also the error of the call, whether or not there is a callback. */
static void first_finding_is_the_error(void **state)
{
    (void)state;
    struct moe_memory memory = fixture_memory();
    struct moe_config_source source = fixture_file(
        MOE_TESTS_DATA_DIR "/config/invalid/several_findings/input.yaml", MOE_CONFIG_REPLACE);
    struct moe_config_request request = {&source, 1, 0, NULL, NULL, NULL};
    struct moe_config *config = NULL;
    struct moe_error error;
    MOE_INIT(error);
    assert_int_equal(moe_config_create(&memory, &request, &config, &error), MOE_STATUS_CONFIG);
    assert_int_equal(error.line, 2);
    assert_int_equal(error.column, 17);
    assert_non_null(
        strstr(error.message,
               "several_findings/input.yaml:2:17: error[value]: on_unavailable is \"never\""));
    assert_null(config);
}

static void source_line_is_the_line(void **state)
{
    (void)state;
    struct fixture_findings findings;
    int32_t status;
    read_source(MOE_TESTS_DATA_DIR "/config/invalid/bucket_unknown_op/input.yaml", &findings,
                &status);
    assert_string_equal(findings.last_source_line,
                        "    buckets: [{max_tokens: inf, gem1: {kernel: cpu.avx2}}]");

    struct moe_config_source source =
        fixture_text("crlf", "schema: moe-dispatch/1\r\nrulez: []\r\n", MOE_CONFIG_REPLACE);
    assert_null(fixture_read(&source, 1, NULL, &findings, &status));
    assert_string_equal(findings.last_source_line,
                        "schema: moe-dispatch/1"); /* of "no key rules", at 1:1 */
}

static void valid_files_have_none(void **state)
{
    (void)state;
    glob_t found;
    assert_int_equal(glob(MOE_TESTS_DATA_DIR "/config/valid/*.yaml", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct fixture_findings findings;
        int32_t status;
        read_source(found.gl_pathv[i], &findings, &status);
        if (status != MOE_STATUS_OK || findings.num_findings != 0) {
            fail_msg("%s:\n%s", found.gl_pathv[i], findings.text);
        }
    }
    globfree(&found);
}

/* A text with `depth` lists inside each other, the document's mapping not counted. */
static int32_t status_of_depth(int32_t depth, struct fixture_findings *findings)
{
    char text[4096];
    size_t num_bytes = 0;
    fixture_append(text, sizeof(text), &num_bytes, "schema: moe-dispatch/1\nrules: ");
    for (int32_t i = 0; i < 2 * depth; i++) {
        fixture_append(text, sizeof(text), &num_bytes, "%c", i < depth ? '[' : ']');
    }
    struct moe_config_source source = fixture_text("deep", text, MOE_CONFIG_REPLACE);
    int32_t status;
    moe_config_unref(fixture_read(&source, 1, NULL, findings, &status));
    return status;
}

static void depth_and_size_are_limited(void **state)
{
    (void)state;
    struct fixture_findings findings;
    assert_int_equal(status_of_depth(63, &findings), MOE_STATUS_CONFIG);
    assert_null(strstr(findings.text, "[too-deep]"));
    assert_int_equal(status_of_depth(64, &findings), MOE_STATUS_CONFIG);
    assert_non_null(strstr(findings.text, "[too-deep]"));

    static const char head[] = "schema: moe-dispatch/1\nrules: []\n";
    const size_t limit = (size_t)1 << 20;
    char *text = malloc(limit + 1);
    assert_non_null(text);
    memset(text, '#', limit + 1);
    memcpy(text, head, sizeof(head) - 1);
    struct moe_config_source source = fixture_text("large", head, MOE_CONFIG_REPLACE);
    source.text = text;
    source.text_bytes = limit;
    int32_t status;
    moe_config_unref(fixture_read(&source, 1, NULL, &findings, &status));
    assert_int_equal(status, MOE_STATUS_OK);
    source.text_bytes = limit + 1;
    moe_config_unref(fixture_read(&source, 1, NULL, &findings, &status));
    assert_int_equal(status, MOE_STATUS_CONFIG);
    assert_non_null(strstr(findings.text, "[too-large]"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invalid_files_have_their_findings),
        cmocka_unit_test(first_finding_is_the_error),
        cmocka_unit_test(source_line_is_the_line),
        cmocka_unit_test(valid_files_have_none),
        cmocka_unit_test(depth_and_size_are_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
