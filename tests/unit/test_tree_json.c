/* SPDX-License-Identifier: Apache-2.0 */
#include "test_tree.h"

static struct moe_tree *parse_good(const char *text)
{
    return parse_good_tree(text, strlen(text), MOE_TREE_JSON, NULL);
}

static const char sample[] =
    "{\"__metadata__\": {\"format\": \"pt\"},\r\n"
    "\t\"model.layers.0.mlp.gate.weight\":\t{\"dtype\":\"BF16\",\"shape\":[64, 2048],\n"
    "  \"data_offsets\": [0,262144]}, \"list\": [true, false, null, -0.5e-3, \"true\", [], {}],\n"
    "\"\": \"\\ud83d\\ude00 \\u00E9\\\"\\\\\\/\\b\\f\\n\\r\\t\"}\n";

static void test_sample(void **state)
{
    struct moe_tree *tree = parse_good(sample);
    const struct moe_tree_node *root = moe_tree_root(tree);
    const struct moe_tree_node *tensor = moe_tree_find(root, "model.layers.0.mlp.gate.weight");
    const struct moe_tree_node *list = moe_tree_find(root, "list");
    static const char *const items[] = {"true", "false", "null", "-0.5e-3", "true"};

    (void)state;
    assert_int_equal(root->kind, MOE_NODE_MAPPING);
    assert_int_equal(root->num_children, 4);
    check_place(root, 1, 1);
    check_place(&root->keys[0], 1, 2);
    assert_int_equal(root->keys[0].quoted, 1);
    check_scalar(moe_tree_find(moe_tree_find(root, "__metadata__"), "format"), "pt", 1);
    check_place(&root->keys[1], 2, 2);
    check_place(tensor, 2, 36);
    check_place(moe_tree_find(tensor, "shape"), 2, 60);
    check_scalar(&moe_tree_find(tensor, "shape")->children[1], "2048", 0);
    check_place(&moe_tree_find(tensor, "data_offsets")->children[1], 3, 22);

    assert_int_equal(list->num_children, 7);
    for (size_t i = 0; i < sizeof items / sizeof items[0]; i++) {
        check_scalar(&list->children[i], items[i], i == 4);
    }
    assert_true(moe_tree_is_null(&list->children[2]));
    assert_int_equal(list->children[5].kind, MOE_NODE_SEQUENCE);
    assert_int_equal(list->children[6].kind, MOE_NODE_MAPPING);
    check_scalar(moe_tree_find(root, ""), "\xF0\x9F\x98\x80 \xC3\xA9\"\\/\b\f\n\r\t", 1);
    moe_tree_destroy(tree);
}

/* Texts that are valid JSON and that libyaml alone refuses or reads differently. */
static void test_what_yaml_reads_differently(void **state)
{
    static const struct {
        const char *text;
        const char *string;
    } strings[] = {
        {"\"a  \xE2\x80\xA8  b\"", "a  \xE2\x80\xA8  b"}, /* U+2028, a line break of YAML */
        {"\"\xE2\x80\xA9\"", "\xE2\x80\xA9"},
        {"\"a \xC2\x85 b\"", "a \xC2\x85 b"}, /* next line, likewise */
        {"\"\x7F\xC2\x80\xC2\x9F\"", "\x7F\xC2\x80\xC2\x9F"},
        {"\"\xEF\xBB\xBF\xEF\xBF\xBE\xEF\xBF\xBF\"", "\xEF\xBB\xBF\xEF\xBF\xBE\xEF\xBF\xBF"},
        {"\"\xF4\x8F\xBF\xBF\"", "\xF4\x8F\xBF\xBF"},
        {"\"\\uFFFF\\uD800\\uDC00\\uDBFF\\uDFFF\"", "\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"},
        {"\"\\u0085\\u2028 \\u0020\"", "\xC2\x85\xE2\x80\xA8  "},
        {"\"--- # & * ! | > ' % @ ` {a: b}, [c]\"", "--- # & * ! | > ' % @ ` {a: b}, [c]"},
        {"\"\"", ""},
        {"\" \"", " "},
        {"\xEF\xBB\xBF\"mark\"", "mark"},
    };
    static const char *const texts[] = {
        "{\"a\":1,\"b\":[{}],\"c\":{\"d\":[]}}",
        "[[],[[]],{},{\"a\":{}}]",
        "[\"a\",\"b\"]",
        "\t[\t1\t,\t2\t]\t",
        "{\t\"a\"\t:\t1\t}",
        "{\n\"a\"\n:\n1\n,\n\"b\"\r:\r2\r}\r\n",
        "[\"key\", {\"? a\": \": b\", \"-\": \"- c\"}]",
        "[0,-0,0e0,1E+2,1e-2,-1.5]",
        "[\"<<\",{\"<<\":1}]",
    };

    (void)state;
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
        struct moe_tree *tree = parse_good(strings[i].text);

        check_scalar(moe_tree_root(tree), strings[i].string, 1);
        moe_tree_destroy(tree);
    }
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        moe_tree_destroy(parse_good(texts[i]));
    }
}

static void test_scalar_roots(void **state)
{
    static const char *const texts[] = {"0", "-12.5e+7", "true", "false", "null", " 5 \n"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct moe_tree *tree = parse_good(texts[i]);

        assert_int_equal(moe_tree_root(tree)->kind, MOE_NODE_SCALAR);
        assert_int_equal(moe_tree_root(tree)->quoted, 0);
        moe_tree_destroy(tree);
    }
}

static void test_grammar_refusals(void **state)
{
    static const struct tree_refusal refusals[] = {
        {"", {{MOE_TREE_SYNTAX, 1, 1, "the text ends where a value"}}},
        {" \n ", {{MOE_TREE_SYNTAX, 2, 2, "the text ends"}}},
        {"[1, 2", {{MOE_TREE_SYNTAX, 1, 6, "the '[' of line 1, column 1"}}},
        {"{\"a\": {\n\"b\": 1", {{MOE_TREE_SYNTAX, 2, 7, "the '{' of line 1, column 7"}}},
        {"[1 2]", {{MOE_TREE_SYNTAX, 1, 4, "',' or the end"}}},
        {"[,1]", {{MOE_TREE_SYNTAX, 1, 2, "a value or ']'"}}},
        {"[1,,2]", {{MOE_TREE_SYNTAX, 1, 4, "expected a value here, not ','"}}},
        {"[1}", {{MOE_TREE_SYNTAX, 1, 3, "'}'"}}},
        {"{\"a\":1]", {{MOE_TREE_SYNTAX, 1, 7, "']'"}}},
        {"]", {{MOE_TREE_SYNTAX, 1, 1, "']'"}}},
        {"[1:2]", {{MOE_TREE_SYNTAX, 1, 3, "':'"}}},
        {"[\"a\":2]", {{MOE_TREE_SYNTAX, 1, 5, "':'"}}},
        {"{\"a\"}", {{MOE_TREE_SYNTAX, 1, 5, "expected ':'"}}},
        {"{\"a\":}", {{MOE_TREE_SYNTAX, 1, 6, "expected a value"}}},
        {"{\"a\" 1}", {{MOE_TREE_SYNTAX, 1, 6, "expected ':'"}}},
        {"{\"a\":1 \"b\":2}", {{MOE_TREE_SYNTAX, 1, 8, NULL}}},
        {"{,}", {{MOE_TREE_SYNTAX, 1, 2, "a key"}}},
        {"{:1}", {{MOE_TREE_SYNTAX, 1, 2, "a key"}}},
        {":", {{MOE_TREE_SYNTAX, 1, 1, NULL}}},
        {"\"abc", {{MOE_TREE_SYNTAX, 1, 5, "inside the string"}}},
        {"\"abc\\", {{MOE_TREE_SYNTAX, 1, 6, "inside the string"}}},
        {"[\"ab\nc\"]", {{MOE_TREE_SYNTAX, 1, 5, "the line ends inside the string"}}},
        {"[1,]", {{MOE_TREE_JSON_TRAILING_COMMA, 1, 4, "']'"}}},
        {"{\"a\":1,\n}", {{MOE_TREE_JSON_TRAILING_COMMA, 2, 1, "'}'"}}},
        {"1 2", {{MOE_TREE_SEVERAL_DOCUMENTS, 1, 3, NULL}}},
        {"{}\n{}", {{MOE_TREE_SEVERAL_DOCUMENTS, 2, 1, NULL}}},
        {"[]]", {{MOE_TREE_SEVERAL_DOCUMENTS, 1, 3, NULL}}},
        {"{}\n---\n{}", {{MOE_TREE_SEVERAL_DOCUMENTS, 2, 1, NULL}}},
        {"{a: 1}", {{MOE_TREE_JSON_PLAIN_KEY, 1, 2, "'a'"}}},
        {"{\"a\": 1, 2: 3}", {{MOE_TREE_JSON_PLAIN_KEY, 1, 10, "'2'"}}},
        {"{[1]: 3}", {{MOE_TREE_JSON_PLAIN_KEY, 1, 2, "'[1'"}}},
        {"{? \"a\": 3}", {{MOE_TREE_JSON_PLAIN_KEY, 1, 2, "'?'"}}},
        {"['a']", {{MOE_TREE_JSON_SINGLE_QUOTE, 1, 2, NULL}}},
        {"{'a': 1}", {{MOE_TREE_JSON_SINGLE_QUOTE, 1, 2, NULL}}},
        {"[1] // end", {{MOE_TREE_JSON_COMMENT, 1, 5, NULL}}},
        {"[1, /* two */ 2]", {{MOE_TREE_JSON_COMMENT, 1, 5, NULL}}},
        {"# first\n[1]", {{MOE_TREE_JSON_COMMENT, 1, 1, NULL}}},
    };

    (void)state;
    check_refusals(refusals, sizeof refusals / sizeof refusals[0], MOE_TREE_JSON);
}

static void test_literal_refusals(void **state)
{
    static const char *const literals[] = {
        "NaN", "Infinity", "-Infinity", "True", "nul",  "truee", "01",      "-01", "+1",
        "1.",  ".5",       "1e",        "1e+",  "0x10", "1_0",   "-",       "--1", "abc",
        "~",   "1a",       "-a",        "1.e1", "&a",   "*a",    "!!int",   "|",   ">",
        "- 1", "? a",      "@",         "`",    "%",    "=",     "\xC3\xA9"};
    static struct tree_reports reports;

    (void)state;
    for (size_t i = 0; i < sizeof literals / sizeof literals[0]; i++) {
        char text[32];
        int text_bytes = snprintf(text, sizeof text, "[0,\n %s]", literals[i]);

        assert_null(parse_tree(text, (size_t)text_bytes, MOE_TREE_JSON, NULL, &reports));
        assert_int_equal(reports.num_reports, 1);
        assert_int_equal(reports.problems[0].code, MOE_TREE_JSON_BAD_LITERAL);
        assert_int_equal(reports.problems[0].line, 2);
        assert_int_equal(reports.problems[0].column, 2);
        assert_non_null(strstr(reports.messages[0], "true, false, null"));
    }
    assert_null(parse_tree("a: 1\n", 5, MOE_TREE_JSON, NULL, &reports)); /* a block collection */
    assert_int_equal(reports.problems[0].code, MOE_TREE_JSON_BAD_LITERAL);
}

static void test_string_refusals(void **state)
{
    static const struct tree_refusal refusals[] = {
        {"[\"\\x41\"]", {{MOE_TREE_JSON_BAD_ESCAPE, 1, 3, "\\x"}}},
        {"[\"a\\U0001F600\"]", {{MOE_TREE_JSON_BAD_ESCAPE, 1, 4, "\\U"}}},
        {"[\"\\0\", \"\\e\\ \"]",
         {{MOE_TREE_JSON_BAD_ESCAPE, 1, 3, "\\0"},
          {MOE_TREE_JSON_BAD_ESCAPE, 1, 9, "\\e"},
          {MOE_TREE_JSON_BAD_ESCAPE, 1, 11, NULL}}},
        {"\"\\\xC3\xA9\"", {{MOE_TREE_JSON_BAD_ESCAPE, 1, 2, "\\\xC3\xA9 is not"}}},
        {"\"\\u12g4\"", {{MOE_TREE_JSON_BAD_ESCAPE, 1, 2, "four hexadecimal digits"}}},
        {"\"\\u123\"", {{MOE_TREE_JSON_BAD_ESCAPE, 1, 2, NULL}}},
        {"\"\\ud83d\"", {{MOE_TREE_JSON_BAD_SURROGATE, 1, 2, "\\uD83D"}}},
        {"\"\\ude00\\ud83d\"",
         {{MOE_TREE_JSON_BAD_SURROGATE, 1, 2, "\\uDE00"},
          {MOE_TREE_JSON_BAD_SURROGATE, 1, 8, "\\uD83D"}}},
        {"\"\\ud83d\\ud83d\\ude00\"", {{MOE_TREE_JSON_BAD_SURROGATE, 1, 2, NULL}}},
        {"\"\\ud83d\\n\"", {{MOE_TREE_JSON_BAD_SURROGATE, 1, 2, NULL}}},
        {"\"\\ud83d\\u0041\"", {{MOE_TREE_JSON_BAD_SURROGATE, 1, 2, NULL}}},
        {"{\"\\ud800\": 1, \"\\ud801\": 2}",
         {{MOE_TREE_JSON_BAD_SURROGATE, 1, 3, NULL}, {MOE_TREE_JSON_BAD_SURROGATE, 1, 16, NULL}}},
        {"[\"a\\u0000\"]", {{MOE_TREE_NUL_INSIDE, 1, 4, NULL}}},
        {"[\"a\tb\x01\"]",
         {{MOE_TREE_CONTROL_CHARACTER, 1, 4, "\\u0009"},
          {MOE_TREE_CONTROL_CHARACTER, 1, 6, "\\u0001"}}},
        {"[\"\xC3\xA9\", \"\xED\xB0\x80\"]", {{MOE_TREE_NOT_UTF8, 1, 8, NULL}}},
        {"[\n\"\xFF\"]", {{MOE_TREE_NOT_UTF8, 2, 2, "0xFF"}}},
    };
    static const struct tree_refusal with_nul = {"[1,\n\0]",
                                                 {{MOE_TREE_NUL_INSIDE, 2, 1, "offset 4"}}};

    (void)state;
    check_refusals(refusals, sizeof refusals / sizeof refusals[0], MOE_TREE_JSON);
    check_refusal_bytes(&with_nul, 6, MOE_TREE_JSON);
}

static void test_all_problems_are_reported_in_order(void **state)
{
    static const struct tree_refusal refusal = {
        "{\"a\": 1, \"b\": {\"c\": \"\\q\", \"c\": 2},\n"
        " \"a\": \"\\ud800\", \"\\u0061\": 3, \"open\": {\"x\": 1, \"x\": [1, }",
        {{MOE_TREE_JSON_BAD_ESCAPE, 1, 22, NULL},
         {MOE_TREE_DUPLICATE_KEY, 1, 27, NULL},
         {MOE_TREE_DUPLICATE_KEY, 2, 2, NULL},
         {MOE_TREE_JSON_BAD_SURROGATE, 2, 8, NULL},
         {MOE_TREE_DUPLICATE_KEY, 2, 17, "'a' is already given at line 1, column 2"},
         {MOE_TREE_DUPLICATE_KEY, 2, 47, NULL},
         {MOE_TREE_SYNTAX, 2, 56, "expected a value here, not '}'"}}};

    (void)state;
    check_refusals(&refusal, 1, MOE_TREE_JSON);
}

static void test_duplicates_in_a_large_mapping(void **state)
{
    static struct tree_reports reports;
    static const struct moe_tree_limits limits = {(size_t)64 << 20, 64, 1 << 20};
    const size_t num_keys = 200000;
    char *text = malloc(num_keys * 24);
    size_t text_bytes = 1;
    struct moe_tree *tree;
    double start = read_seconds();

    (void)state;
    assert_non_null(text);
    text[0] = '{';
    for (size_t i = 0; i < num_keys; i++) { /* a permutation: 7919 is prime to 200000 */
        text_bytes += (size_t)sprintf(text + text_bytes, "%s\"key%zu\":%zu", i > 0 ? "," : "",
                                      i * 7919 % num_keys, i);
    }
    text[text_bytes] = '}';
    tree = parse_good_tree(text, text_bytes + 1, MOE_TREE_JSON, &limits);
    for (size_t i = 0; i < num_keys; i++) {
        char key[24];
        int64_t value = -1;

        snprintf(key, sizeof key, "key%zu", i * 7919 % num_keys);
        assert_int_equal(
            moe_tree_to_int64(moe_tree_find(moe_tree_root(tree), key), 0, INT64_MAX, &value), 0);
        assert_int_equal(value, i);
    }
    assert_null(moe_tree_find(moe_tree_root(tree), "key200000"));
    moe_tree_destroy(tree);

    memcpy(text + text_bytes, ",\"key7919\":0}", 14);
    assert_null(parse_tree(text, text_bytes + 13, MOE_TREE_JSON, &limits, &reports));
    assert_int_equal(reports.num_reports, 1);
    assert_int_equal(reports.problems[0].code, MOE_TREE_DUPLICATE_KEY);
    assert_int_equal(reports.problems[0].column, text_bytes + 2);
    free(text);
    assert_true(read_seconds() - start < 30.0); /* milliseconds; a linear search takes minutes */
}

/* libyaml takes a simple key of at most 1024 characters; JSON has no such limit. */
static void test_long_strings(void **state)
{
    static const size_t lengths[] = {1000, 1023, 1024, 1025, 16383, 16384, 16385, 300000};

    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        size_t text_bytes;
        char *key = repeat_text("", "k", lengths[i], "", &text_bytes);
        char *start = repeat_text("{\"", key, 1, "\": [\"", &text_bytes);
        char *text = repeat_text(start, "\\ud83d\\ude00", 20000, "\", 7]}", &text_bytes);
        struct moe_tree *tree = parse_good_tree(text, text_bytes, MOE_TREE_JSON, NULL);
        const struct moe_tree_node *value = moe_tree_find(moe_tree_root(tree), key);

        assert_non_null(value);
        assert_int_equal(value->children[0].text_bytes, 80000);
        check_place(&value->children[0], 1, (uint32_t)lengths[i] + 7);
        check_place(&value->children[1], 1, (uint32_t)lengths[i] + 7 + 240000 + 4);
        moe_tree_destroy(tree);
        free(text);
        free(start);
        free(key);
    }
}

static void test_depth_limit(void **state)
{
    static struct tree_reports reports;
    static const struct moe_tree_limits deepest = {(size_t)64 << 20, UINT32_MAX, 1 << 20};
    size_t text_bytes;
    char *open = repeat_text("", "[", 64, "", &text_bytes);
    char *text = repeat_text(open, "]", 64, "", &text_bytes);
    double start = read_seconds();

    (void)state;
    moe_tree_destroy(parse_good(text));
    free(text);
    free(open);
    text = repeat_text("", "[", 1000000, "", &text_bytes);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_JSON, NULL, &reports));
    assert_int_equal(reports.num_reports, 1);
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_DEEP);
    assert_int_equal(reports.problems[0].column, 65);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_JSON, &deepest, &reports));
    assert_int_equal(reports.num_reports, 1);
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_DEEP);
    assert_int_equal(reports.problems[0].column, 513);
    free(text);
    text = repeat_text("", "{\"a\":", 200000, "", &text_bytes);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_JSON, NULL, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_DEEP);
    assert_int_equal(reports.problems[0].column, 64 * 5 + 1);
    free(text);

    open = repeat_text("", "[", 512, "", &text_bytes);
    text = repeat_text(open, "]", 512, "", &text_bytes);
    moe_tree_destroy(parse_good_tree(text, text_bytes, MOE_TREE_JSON, &deepest));
    free(text);
    free(open);
    assert_true(read_seconds() - start < 10.0);
}

static void test_large_texts(void **state)
{
    static struct tree_reports reports;
    static const struct moe_tree_limits few_nodes = {(size_t)20 << 20, 64, 100};
    size_t text_bytes;
    char *text = repeat_text("{\"first\": 0",
                             ",\n\"x\": {\"dtype\":\"BF16\",\"shape\":[768,2048],\"at\":[0,1]}",
                             200000, "}", &text_bytes);

    (void)state;
    assert_true(text_bytes > 10000000);
    for (size_t i = 0, number = 0; i + 3 < text_bytes; i++) { /* make the keys differ */
        if (text[i] == '"' && text[i + 1] == 'x' && text[i + 2] == '"') {
            text[i + 1] = (char)('A' + number++ % 26);
        }
    }
    assert_null(
        parse_tree(text, text_bytes, MOE_TREE_JSON, &MOE_TREE_LIMITS_JSON_HEADER, &reports));
    assert_int_equal(reports.num_reports, 1001); /* 26 keys only: the rest are duplicates */
    assert_int_equal(reports.problems[0].line, 28);
    assert_int_equal(reports.problems[1000].code, MOE_TREE_TOO_MANY_ERRORS);

    assert_null(parse_tree(text, text_bytes, MOE_TREE_JSON, NULL, &reports)); /* 1 MiB */
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_LARGE);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_JSON, &few_nodes, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_LARGE);
    assert_non_null(strstr(reports.messages[0], "100"));
    free(text);

    text = repeat_text("[0", ", {\"a\": [1, \"two\"]}", 500000, "]", &text_bytes);
    {
        struct moe_tree *tree =
            parse_good_tree(text, text_bytes, MOE_TREE_JSON, &MOE_TREE_LIMITS_JSON_HEADER);

        assert_int_equal(moe_tree_root(tree)->num_children, 500001);
        check_scalar(&moe_tree_find(&moe_tree_root(tree)->children[500000], "a")->children[1],
                     "two", 1);
        moe_tree_destroy(tree);
    }
    free(text);
}

static void test_every_prefix(void **state)
{
    (void)state;
    /* Only the text without its last line end is whole. */
    assert_int_equal(check_every_prefix(sample, MOE_TREE_JSON), 1);
}

static void test_every_failed_allocation(void **state)
{
    size_t text_bytes;
    char *text = repeat_text("[0", ", {\"name\": \"of some length\", \"list\": [1, 2]}", 300, "]",
                             &text_bytes);

    (void)state;
    check_every_failed_allocation(text, MOE_TREE_JSON);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_what_yaml_reads_differently),
        cmocka_unit_test(test_scalar_roots),
        cmocka_unit_test(test_grammar_refusals),
        cmocka_unit_test(test_literal_refusals),
        cmocka_unit_test(test_string_refusals),
        cmocka_unit_test(test_all_problems_are_reported_in_order),
        cmocka_unit_test(test_duplicates_in_a_large_mapping),
        cmocka_unit_test(test_long_strings),
        cmocka_unit_test(test_depth_limit),
        cmocka_unit_test(test_large_texts),
        cmocka_unit_test(test_every_prefix),
        cmocka_unit_test(test_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
