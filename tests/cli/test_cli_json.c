/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON writer: exact text, and that a strict reader reads back what was written. */
#define _GNU_SOURCE
#include "cli_fixture.h"

#include <math.h>

#include "cli_file.h"
#include "cli_json.h"
#include "terminal.h"
#include "tree.h"

struct document {
    struct moe_cli_json json;
    char *text;
    size_t text_bytes;
};

static void begin(struct document *document)
{
    FILE *out = open_memstream(&document->text, &document->text_bytes);
    assert_non_null(out);
    moe_cli_json_init(&document->json, out);
}

static int finish(struct document *document)
{
    const int status = moe_cli_json_finish(&document->json);
    fclose(document->json.out);
    return status;
}

static void a_document_is_written(void **state)
{
    (void)state;
    struct document d;
    begin(&d);
    moe_cli_json_begin_object(&d.json, NULL);
    moe_cli_json_put_text(&d.json, "name", "a\"b\\c\n\t\x01\x7f/");
    moe_cli_json_put_int(&d.json, "least", INT64_MIN);
    moe_cli_json_put_hash(&d.json, "hash", 0xFEu);
    moe_cli_json_put_bool(&d.json, "yes", 5);
    moe_cli_json_put_bool(&d.json, "no", 0);
    moe_cli_json_put_null(&d.json, "nothing");
    moe_cli_json_put_text(&d.json, "also_nothing", NULL);
    moe_cli_json_begin_array(&d.json, "list");
    moe_cli_json_put_number(&d.json, NULL, 0.1);
    moe_cli_json_begin_object(&d.json, NULL);
    moe_cli_json_end_object(&d.json);
    moe_cli_json_end_array(&d.json);
    moe_cli_json_begin_array(&d.json, "empty");
    moe_cli_json_end_array(&d.json);
    moe_cli_json_end_object(&d.json);
    assert_int_equal(finish(&d), 0);
    assert_string_equal(d.text, "{\n"
                                "  \"name\": \"a\\\"b\\\\c\\n\\t\\u0001\\u007f/\",\n"
                                "  \"least\": -9223372036854775808,\n"
                                "  \"hash\": \"0x00000000000000fe\",\n"
                                "  \"yes\": true,\n"
                                "  \"no\": false,\n"
                                "  \"nothing\": null,\n"
                                "  \"also_nothing\": null,\n"
                                "  \"list\": [\n"
                                "    0.1,\n"
                                "    {}\n"
                                "  ],\n"
                                "  \"empty\": []\n"
                                "}\n");
    free(d.text);
}

/* The bytes a JSON reader gets for one text. */
static void assert_text_reads_as(const char *text, const char *expected)
{
    struct document d;
    begin(&d);
    moe_cli_json_begin_object(&d.json, NULL);
    moe_cli_json_put_text(&d.json, text, text);
    moe_cli_json_end_object(&d.json);
    assert_int_equal(finish(&d), 0);
    struct moe_cli_error error = {.message = ""};
    const struct moe_tree_limits limits = MOE_TREE_LIMITS_CONFIG;
    struct moe_tree *tree =
        moe_cli_file_parse_object("document", d.text, d.text_bytes, &limits, &error);
    if (tree == NULL) {
        fail_msg("%s", error.message);
    }
    assert_string_equal(moe_tree_root(tree)->keys[0].text, expected);
    assert_string_equal(moe_tree_root(tree)->children[0].text, expected);
    moe_tree_destroy(tree);
    free(d.text);
}

#define BAD "\xef\xbf\xbd"

static void texts_read_back(void **state)
{
    (void)state;
    assert_text_reads_as("plain", "plain");
    assert_text_reads_as("\r\b\f\x1f", "\r\b\f\x1f");
    assert_text_reads_as("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80",
                         "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
    assert_text_reads_as("\xff", BAD);
    assert_text_reads_as("a\x80z", "a" BAD "z");
    assert_text_reads_as("\xc0\x80", BAD BAD);         /* overlong */
    assert_text_reads_as("\xed\xa0\x80", BAD BAD BAD); /* surrogate */
    assert_text_reads_as("\xf4\x90\x80\x80", BAD BAD BAD BAD);
    assert_text_reads_as("\xe2\x82", BAD BAD); /* ends inside */
    assert_text_reads_as("\xf0\x9f\x98", BAD BAD BAD);
}

static void numbers_read_back(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } numbers[] = {
        {0.0, "0\n"},         {1.0, "1\n"},          {-2.5, "-2.5\n"},
        {0.1, "0.1\n"},       {1e300, "1e+300\n"},   {NAN, "null\n"},
        {INFINITY, "null\n"}, {-INFINITY, "null\n"}, {1.0 / 3.0, "0.3333333333333333\n"}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; ++i) {
        struct document d;
        begin(&d);
        moe_cli_json_put_number(&d.json, NULL, numbers[i].value);
        assert_int_equal(finish(&d), 0);
        assert_string_equal(d.text, numbers[i].text);
        free(d.text);
    }
}

static void broken_documents_are_reported(void **state)
{
    (void)state;
    struct document d;
    begin(&d);
    moe_cli_json_begin_object(&d.json, NULL);
    assert_int_equal(finish(&d), -1);
    free(d.text);
    begin(&d);
    moe_cli_json_end_array(&d.json);
    assert_int_equal(finish(&d), -1);
    free(d.text);
    begin(&d);
    for (int i = 0; i <= MOE_CLI_JSON_MAX_DEPTH; ++i) {
        moe_cli_json_begin_array(&d.json, NULL);
    }
    for (int i = 0; i <= MOE_CLI_JSON_MAX_DEPTH; ++i) {
        moe_cli_json_end_array(&d.json);
    }
    assert_int_equal(finish(&d), -1);
    free(d.text);
    FILE *full = fopen("/dev/full", "w");
    if (full != NULL) {
        struct moe_cli_json json;
        moe_cli_json_init(&json, full);
        moe_cli_json_put_int(&json, NULL, 1);
        assert_int_equal(moe_cli_json_finish(&json), -1);
        fclose(full);
    }
}

static void pipes_see_no_colour_and_no_progress(void **state)
{
    (void)state;
    FILE *file = tmpfile();
    assert_non_null(file);
    assert_int_equal(moe_terminal_has_color(file), 0);
    assert_string_equal(moe_terminal_style(file, MOE_TERMINAL_RED), "");
    struct moe_progress progress;
    moe_progress_begin(&progress, file, "waiting");
    progress.start_s -= 60.0;
    moe_progress_update(&progress, 1, 2);
    moe_progress_end(&progress);
    assert_int_equal(ftell(file), 0);
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_document_is_written),
        cmocka_unit_test(texts_read_back),
        cmocka_unit_test(numbers_read_back),
        cmocka_unit_test(broken_documents_are_reported),
        cmocka_unit_test(pipes_see_no_colour_and_no_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
