/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugin/moe-dispatch-1.schema.json is what the tables print, accepts what the reader accepts and
 * refuses what breaks its structure. `test_config_schema --print` writes it anew.
 */
#define _POSIX_C_SOURCE 200809L

#include "config_fixture.h"
#include "schema_print.h"
#include "tree.h"

#include <glob.h>
#include <regex.h>

static struct moe_tree *schema;

static bool accepts(const struct moe_tree_node *rule, const struct moe_tree_node *value);

/* The schema that a reference of the form "#/definitions/name" names. */
static const struct moe_tree_node *follow(const struct moe_tree_node *rule)
{
    static const char prefix[] = "#/definitions/";
    const struct moe_tree_node *reference = moe_tree_find(rule, "$ref");
    if (reference == NULL) {
        return rule;
    }
    assert_int_equal(strncmp(reference->text, prefix, sizeof(prefix) - 1), 0);
    const struct moe_tree_node *definitions = moe_tree_find(moe_tree_root(schema), "definitions");
    const struct moe_tree_node *found =
        moe_tree_find(definitions, reference->text + sizeof(prefix) - 1);
    assert_non_null(found);
    return found;
}

static bool is_number(const struct moe_tree_node *value)
{
    double number;
    return moe_tree_to_double(value, &number) == 0;
}

/* YAML's plain scalars are numbers where they look like one, else texts. */
static bool has_type(const char *type, const struct moe_tree_node *value)
{
    int64_t integer;
    if (strcmp(type, "object") == 0) {
        return value->kind == MOE_NODE_MAPPING;
    }
    if (strcmp(type, "array") == 0) {
        return value->kind == MOE_NODE_SEQUENCE;
    }
    if (value->kind != MOE_NODE_SCALAR) {
        return false;
    }
    if (strcmp(type, "integer") == 0) {
        return moe_tree_to_int64(value, INT64_MIN, INT64_MAX, &integer) == 0;
    }
    if (strcmp(type, "number") == 0) {
        return is_number(value);
    }
    assert_string_equal(type, "string");
    return !is_number(value) && !moe_tree_is_null(value);
}

static bool accepts_type(const struct moe_tree_node *types, const struct moe_tree_node *value)
{
    if (types->kind == MOE_NODE_SCALAR) {
        return has_type(types->text, value);
    }
    for (size_t i = 0; i < types->num_children; i++) {
        if (has_type(types->children[i].text, value)) {
            return true;
        }
    }
    return false;
}

static bool accepts_one_of(const struct moe_tree_node *texts, const struct moe_tree_node *value)
{
    for (size_t i = 0; i < texts->num_children; i++) {
        if (moe_tree_is_text(value, texts->children[i].text)) {
            return true;
        }
    }
    return false;
}

static bool accepts_pattern(const char *pattern, const struct moe_tree_node *value)
{
    regex_t compiled;
    if (value->kind != MOE_NODE_SCALAR) {
        return false;
    }
    assert_int_equal(regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB), 0);
    bool matches = regexec(&compiled, value->text, 0, NULL, 0) == 0;
    regfree(&compiled);
    return matches;
}

/* A bound on the value, its length or its items, by the keyword's own meaning. */
static bool accepts_bound(const char *keyword, const struct moe_tree_node *bound,
                          const struct moe_tree_node *value)
{
    int64_t limit = 0, number = 0;
    assert_int_equal(moe_tree_to_int64(bound, INT64_MIN, INT64_MAX, &limit), 0);
    const bool is_least = strncmp(keyword, "min", 3) == 0;
    if (strcmp(keyword + 3, "imum") == 0) {
        if (moe_tree_to_int64(value, INT64_MIN, INT64_MAX, &number) != 0) {
            return true;
        }
    } else if (strcmp(keyword + 3, "Length") == 0) {
        number = (int64_t)value->text_bytes;
    } else {
        assert_string_equal(keyword + 3, "Items");
        number = (int64_t)value->num_children;
    }
    return is_least ? number >= limit : number <= limit;
}

static bool accepts_members(const struct moe_tree_node *rule, const struct moe_tree_node *value)
{
    const struct moe_tree_node *properties = moe_tree_find(rule, "properties");
    const struct moe_tree_node *required = moe_tree_find(rule, "required");
    for (size_t i = 0; i < value->num_children; i++) {
        const struct moe_tree_node *property = moe_tree_find(properties, value->keys[i].text);
        if (property == NULL || !accepts(property, &value->children[i])) {
            return false;
        }
    }
    for (size_t i = 0; required != NULL && i < required->num_children; i++) {
        if (moe_tree_find(value, required->children[i].text) == NULL) {
            return false;
        }
    }
    return true;
}

static bool are_unique(const struct moe_tree_node *list)
{
    for (size_t i = 0; i < list->num_children; i++) {
        for (size_t k = 0; k < i; k++) {
            if (list->children[k].text != NULL && list->children[i].text != NULL &&
                strcmp(list->children[k].text, list->children[i].text) == 0) {
                return false;
            }
        }
    }
    return true;
}

/* One keyword of a schema; every keyword that the file uses is known here. */
static bool accepts_keyword(const struct moe_tree_node *rule, const char *keyword,
                            const struct moe_tree_node *argument, const struct moe_tree_node *value)
{
    if (strcmp(keyword, "type") == 0) {
        return accepts_type(argument, value);
    }
    if (strcmp(keyword, "enum") == 0) {
        return accepts_one_of(argument, value);
    }
    if (strcmp(keyword, "const") == 0) {
        return moe_tree_is_text(value, argument->text);
    }
    if (strcmp(keyword, "pattern") == 0) {
        return accepts_pattern(argument->text, value);
    }
    if (strcmp(keyword, "uniqueItems") == 0) {
        return are_unique(value);
    }
    if (strcmp(keyword, "items") == 0) {
        for (size_t i = 0; i < value->num_children; i++) {
            if (!accepts(argument, &value->children[i])) {
                return false;
            }
        }
        return true;
    }
    if (strcmp(keyword, "anyOf") == 0) {
        for (size_t i = 0; i < argument->num_children; i++) {
            if (accepts(&argument->children[i], value)) {
                return true;
            }
        }
        return false;
    }
    if (strcmp(keyword, "properties") == 0) {
        return accepts_members(rule, value);
    }
    if (strncmp(keyword, "min", 3) == 0 || strncmp(keyword, "max", 3) == 0) {
        return accepts_bound(keyword, argument, value);
    }
    static const char *const without_check[] = {"$schema",     "title",    "definitions",
                                                "description", "required", "additionalProperties"};
    for (size_t i = 0; i < sizeof(without_check) / sizeof(without_check[0]); i++) {
        if (strcmp(keyword, without_check[i]) == 0) {
            return true;
        }
    }
    print_error("the schema has a keyword that this test does not know: %s\n", keyword);
    fail();
    return false;
}

/* Keywords of a type come first in the file, so those that follow see a value of that type. */
static bool accepts(const struct moe_tree_node *rule, const struct moe_tree_node *value)
{
    rule = follow(rule);
    for (size_t i = 0; i < rule->num_children; i++) {
        if (!accepts_keyword(rule, rule->keys[i].text, &rule->children[i], value)) {
            return false;
        }
    }
    return true;
}

static bool schema_accepts_file(const char *path)
{
    size_t num_bytes = 0;
    char *text = fixture_read_file(path, &num_bytes);
    struct moe_tree *tree = moe_tree_parse(text, num_bytes, MOE_TREE_YAML, NULL, NULL, NULL, NULL);
    assert_non_null(tree);
    const bool accepted = accepts(moe_tree_root(schema), moe_tree_root(tree));
    moe_tree_destroy(tree);
    free(text);
    return accepted;
}

static void the_file_is_what_the_tables_print(void **state)
{
    (void)state;
    char *printed = NULL;
    size_t num_bytes = 0;
    FILE *out = open_memstream(&printed, &num_bytes);
    assert_non_null(out);
    schema_print(out);
    fclose(out);
    char *file = fixture_read_file(MOE_SOURCE_DIR "/plugin/moe-dispatch-1.schema.json", NULL);
    if (strcmp(file, printed) != 0) {
        print_error("plugin/moe-dispatch-1.schema.json is old; test_config_schema --print makes "
                    "it anew\n");
    }
    assert_string_equal(file, printed);
    free(file);
    free(printed);
}

static void valid_files_are_accepted(void **state)
{
    (void)state;
    static const char *const folders[] = {MOE_TESTS_DATA_DIR "/config/valid/*.yaml",
                                          MOE_SOURCE_DIR "/plugin/profiles/*.yaml"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        glob_t found;
        assert_int_equal(glob(folders[i], 0, NULL, &found), 0);
        for (size_t k = 0; k < found.gl_pathc; k++) {
            if (!schema_accepts_file(found.gl_pathv[k])) {
                print_error("the schema refuses %s\n", found.gl_pathv[k]);
                fail();
            }
        }
        globfree(&found);
    }
}

/* Everything about structure; what needs the tile table or other rules is the reader's. */
static void invalid_structure_is_refused(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "bucket_composed_op",
        "bucket_max_tokens_huge",
        "bucket_max_tokens_missing",
        "bucket_not_mapping",
        "bucket_max_tokens_text",
        "bucket_max_tokens_zero",
        "bucket_unknown_op",
        "document_list",
        "document_unknown_key",
        "kernel_not_scalar",
        "kernel_unknown",
        "match_block_shape",
        "match_density_scalar",
        "match_integer_huge",
        "match_integer_real",
        "match_integer_text",
        "match_integer_zero",
        "match_isa_unknown",
        "match_list_duplicate",
        "match_list_empty",
        "match_list_of_ranges",
        "match_mapping",
        "match_multiple_of_sm",
        "match_name_unknown",
        "match_range_greater",
        "match_unknown_key",
        "on_unavailable_value",
        "op_not_mapping",
        "op_number_text",
        "op_unknown_key",
        "op_wrong_kind_of_key",
        "priority_range",
        "priority_text",
        "rule_buckets_empty",
        "rule_buckets_missing",
        "rule_name_long",
        "rule_name_missing",
        "rule_not_mapping",
        "rule_unknown_key",
        "rules_missing",
        "schema_missing",
        "schema_other_major",
        "schema_other_name",
        "match_block_shape_scalar",
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char path[1024];
        snprintf(path, sizeof(path), MOE_TESTS_DATA_DIR "/config/invalid/%s/input.yaml", cases[i]);
        if (schema_accepts_file(path)) {
            print_error("the schema accepts %s\n", cases[i]);
            fail();
        }
    }
}

static int read_schema(void **state)
{
    (void)state;
    size_t num_bytes = 0;
    char *text = fixture_read_file(MOE_SOURCE_DIR "/plugin/moe-dispatch-1.schema.json", &num_bytes);
    schema = moe_tree_parse(text, num_bytes, MOE_TREE_JSON, NULL, NULL, NULL, NULL);
    free(text);
    return schema == NULL;
}

static int drop_schema(void **state)
{
    (void)state;
    moe_tree_destroy(schema);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--print") == 0) {
        schema_print(stdout);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_file_is_what_the_tables_print),
        cmocka_unit_test(valid_files_are_accepted),
        cmocka_unit_test(invalid_structure_is_refused),
    };
    return cmocka_run_group_tests(tests, read_schema, drop_schema);
}
