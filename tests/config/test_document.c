/* SPDX-License-Identifier: Apache-2.0 */
/*
 * docs/configuration.md: its YAML blocks are valid, and its tables name what the parser's tables
 * name.
 */
#include "config_fixture.h"
#include "config_report.h"
#include "rules.h"

static char *document;

static int read_document(void **state)
{
    (void)state;
    document = fixture_read_file(MOE_SOURCE_DIR "/docs/configuration.md", NULL);
    return 0;
}

static int free_document(void **state)
{
    (void)state;
    free(document);
    return 0;
}

static void yaml_blocks_are_valid(void **state)
{
    (void)state;
    static const char fence[] = "```yaml\n";
    int num_blocks = 0;
    for (const char *block = strstr(document, fence); block != NULL; block = strstr(block, fence)) {
        block += sizeof(fence) - 1;
        const char *end = strstr(block, "```");
        assert_non_null(end);
        struct moe_config_source source = fixture_text("block", block, MOE_CONFIG_REPLACE);
        source.text_bytes = (uint64_t)(end - block);
        struct moe_device device = fixture_cpu("avx2", 16);
        struct fixture_findings findings;
        int32_t status;
        struct moe_config *config = fixture_read(&source, 1, &device, &findings, &status);
        if (config == NULL || findings.num_findings != 0) {
            fail_msg("block %d:\n%s", num_blocks + 1, findings.text);
        }
        moe_config_unref(config);
        block = end;
        num_blocks++;
    }
    assert_true(num_blocks >= 2);
}

/* The text between a heading's line and the next heading. */
static const char *section(const char *heading, size_t *num_bytes)
{
    const char *start = strstr(document, heading);
    assert_non_null(start);
    const char *end = strstr(start + strlen(heading), "\n## ");
    *num_bytes = end != NULL ? (size_t)(end - start) : strlen(start);
    return start;
}

/* Does `name` stand in backticks in the text? */
static int has_name(const char *text, size_t num_bytes, const char *name)
{
    char quoted[128];
    snprintf(quoted, sizeof(quoted), "`%s`", name);
    const char *found = strstr(text, quoted);
    return found != NULL && found < text + num_bytes;
}

static int is_match_key(const char *name)
{
    for (int32_t i = 0; i < MOE_NUM_MATCH_KEYS; i++) {
        if (strcmp(moe_match_keys[i].name, name) == 0) {
            return 1;
        }
    }
    return 0;
}

static int is_code(const char *name)
{
    for (int32_t i = 0; i < MOE_NUM_CONFIG_CODES; i++) {
        if (strcmp(moe_config_report_code(i), name) == 0) {
            return 1;
        }
    }
    for (int32_t code = 1; moe_tree_code_name(code) != NULL; code++) {
        if (strcmp(moe_tree_code_name(code), name) == 0) {
            return 1;
        }
    }
    return 0;
}

/* Each `name` in the first cell of a line "| `name`, ... |" must be known. */
static int check_first_cells(const char *text, size_t num_bytes, int (*is_known)(const char *name))
{
    int num_names = 0;
    for (const char *row = strstr(text, "\n| `"); row != NULL && row < text + num_bytes;
         row = strstr(row + 1, "\n| `")) {
        const char *cell_end = strchr(row + 3, '|');
        assert_non_null(cell_end);
        const char *open = strchr(row, '`');
        while (open != NULL && open < cell_end) {
            const char *close = strchr(open + 1, '`');
            assert_non_null(close);
            char name[64];
            snprintf(name, sizeof(name), "%.*s", (int)(close - open - 1), open + 1);
            if (!is_known(name)) {
                fail_msg("the document describes \"%s\", which does not exist", name);
            }
            num_names++;
            open = strchr(close + 1, '`');
        }
    }
    return num_names;
}

static void match_keys_are_those_of_the_parser(void **state)
{
    (void)state;
    size_t num_bytes;
    const char *text = section("## Match keys", &num_bytes);
    const char *forms = strstr(text, "| Form |"); /* the second table is about forms */
    assert_non_null(forms);
    num_bytes = (size_t)(forms - text);
    assert_int_equal(check_first_cells(text, num_bytes, is_match_key), MOE_NUM_MATCH_KEYS);
    for (int32_t key = 0; key < MOE_NUM_MATCH_KEYS; key++) {
        char row[64];
        snprintf(row, sizeof(row), "\n| `%s` |", moe_match_keys[key].name);
        const char *start = strstr(text, row);
        if (start == NULL || start > forms) {
            fail_msg("match key %s is not described", moe_match_keys[key].name);
            return;
        }
        /* The last cell lists the forms of the key's row. */
        const char *end = start + 1 + strcspn(start + 1, "\n");
        const char *cell = end - 2;
        while (*cell != '|') {
            cell--;
        }
        char words[128];
        snprintf(words, sizeof(words), "%.*s", (int)(end - cell), cell);
        uint32_t mask = moe_match_keys[key].forms;
        static const struct {
            uint32_t form;
            const char *word;
        } names[] = {{MOE_FORM_LIST, "list"},
                     {MOE_FORM_RANGE, "range"},
                     {MOE_FORM_MULTIPLE, "multiple"},
                     {MOE_FORM_GLOB, "glob"},
                     {MOE_FORM_PAIR, "pair"}};
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
            if (((mask & names[i].form) != 0) != (strstr(words, names[i].word) != NULL)) {
                fail_msg("%s: the document says %s", moe_match_keys[key].name, words);
            }
        }
    }
}

static void operations_and_numbers_are_those_of_the_parser(void **state)
{
    (void)state;
    size_t num_bytes;
    const char *text = section("## Buckets", &num_bytes);
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if (moe_tiles_op_has_tiles(op) && !has_name(text, num_bytes, moe_tiles_op_name(op))) {
            fail_msg("operation %s is not described", moe_tiles_op_name(op));
        }
    }
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if (!has_name(text, num_bytes, moe_tile_keys[key].name)) {
            fail_msg("number %s is not described", moe_tile_keys[key].name);
        }
    }
}

static void names_of_values_are_those_of_the_parser(void **state)
{
    (void)state;
    size_t num_bytes;
    const char *text = section("## Match keys", &num_bytes);
    static const int32_t keys[] = {MOE_MATCH_BACKEND, MOE_MATCH_ISA, MOE_MATCH_ACTIVATION};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const char *name;
        for (int32_t j = 0; (name = moe_match_key_name(keys[i], j)) != NULL; j++) {
            if (!has_name(text, num_bytes, name)) {
                fail_msg("%s %s is not described", moe_match_keys[keys[i]].name, name);
            }
        }
    }
}

static void codes_are_those_of_the_parser(void **state)
{
    (void)state;
    size_t num_bytes;
    const char *text = section("## Findings", &num_bytes);
    check_first_cells(text, num_bytes, is_code);
    for (int32_t i = 0; i < MOE_NUM_CONFIG_CODES; i++) {
        if (!has_name(text, num_bytes, moe_config_report_code(i))) {
            fail_msg("code %s is not described", moe_config_report_code(i));
        }
    }
    for (int32_t code = 1; moe_tree_code_name(code) != NULL; code++) {
        const char *name = moe_tree_code_name(code);
        if (strncmp(name, "json-", 5) != 0 && !has_name(text, num_bytes, name)) {
            fail_msg("code %s is not described", name);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(yaml_blocks_are_valid),
        cmocka_unit_test(match_keys_are_those_of_the_parser),
        cmocka_unit_test(operations_and_numbers_are_those_of_the_parser),
        cmocka_unit_test(names_of_values_are_those_of_the_parser),
        cmocka_unit_test(codes_are_those_of_the_parser),
    };
    return cmocka_run_group_tests(tests, read_document, free_document);
}
