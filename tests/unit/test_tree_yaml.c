/* SPDX-License-Identifier: Apache-2.0 */
#include "test_tree.h"

static struct moe_tree *parse_good(const char *text)
{
    return parse_good_tree(text, strlen(text), MOE_TREE_YAML, NULL);
}

static const char sample[] = "schema: moe-dispatch/1\n"
                             "rules:\n"
                             "  - name: \"qwen3 \\u00e9\"   # comment\n"
                             "    match: {sm: 90, topk: [4, 8], weight: 'bf''16'}\n"
                             "    buckets:\n"
                             "      - max_tokens: inf\n"
                             "        note: |\n"
                             "          two\n"
                             "          lines\n"
                             "  - {}\n"
                             "empty:\n";

static void test_sample(void **state)
{
    struct moe_tree *tree = parse_good(sample);
    const struct moe_tree_node *root = moe_tree_root(tree);
    const struct moe_tree_node *rules = moe_tree_find(root, "rules");
    const struct moe_tree_node *rule;
    const struct moe_tree_node *match;
    const struct moe_tree_node *bucket;

    (void)state;
    assert_int_equal(root->kind, MOE_NODE_MAPPING);
    assert_int_equal(root->num_children, 3);
    assert_string_equal(root->keys[0].text, "schema"); /* file order */
    assert_string_equal(root->keys[2].text, "empty");
    check_scalar(moe_tree_find(root, "schema"), "moe-dispatch/1", 0);
    check_place(moe_tree_find(root, "schema"), 1, 9);
    check_scalar(moe_tree_find(root, "empty"), "", 0);
    assert_true(moe_tree_is_null(moe_tree_find(root, "empty")));

    assert_int_equal(rules->kind, MOE_NODE_SEQUENCE);
    assert_int_equal(rules->num_children, 2);
    check_place(rules, 3, 3);
    assert_null(rules->keys);
    rule = &rules->children[0];
    check_place(rule, 3, 5);
    check_scalar(moe_tree_find(rule, "name"), "qwen3 \xC3\xA9", 1);
    check_place(moe_tree_find(rule, "name"), 3, 11);

    match = moe_tree_find(rule, "match");
    check_place(match, 4, 12);
    check_scalar(moe_tree_find(match, "weight"), "bf'16", 1);
    check_place(&moe_tree_find(match, "topk")->children[1], 4, 31);

    bucket = &moe_tree_find(rule, "buckets")->children[0];
    check_scalar(moe_tree_find(bucket, "max_tokens"), "inf", 0);
    check_scalar(moe_tree_find(bucket, "note"), "two\nlines\n", 1);

    assert_int_equal(rules->children[1].kind, MOE_NODE_MAPPING);
    assert_int_equal(rules->children[1].num_children, 0);
    assert_null(moe_tree_find(&rules->children[1], "name"));
    assert_null(moe_tree_find(root, "rule"));
    assert_null(moe_tree_find(root, "ruless"));
    assert_null(moe_tree_find(rules, "name"));
    assert_null(moe_tree_find(NULL, "name"));
    moe_tree_destroy(tree);
    moe_tree_destroy(NULL);
}

/* Columns count characters; a byte order mark does not count; \r\n is one line end. */
static void test_places(void **state)
{
    struct moe_tree *tree = parse_good("\xEF\xBB\xBF"
                                       "a: {\xC3\xA9\xF0\x9F\x98\x80: 1}\r\nb: [\r2]\n");
    const struct moe_tree_node *root = moe_tree_root(tree);

    (void)state;
    check_place(root, 1, 1);
    check_place(&root->keys[0], 1, 1);
    check_place(&root->children[0].children[0], 1, 9);
    check_place(&root->keys[1], 2, 1);
    check_place(&root->children[1].children[0], 3, 1);
    moe_tree_destroy(tree);
}

static void test_empty_documents(void **state)
{
    static const char *const texts[] = {
        "",  "\n", "# only this\n", "---\n", "--- # x\n...\n", "%YAML 1.2\n---\n", "\xEF\xBB\xBF",
        "{}"};

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct moe_tree *tree = parse_good(texts[i]);

        assert_int_equal(moe_tree_root(tree)->kind, MOE_NODE_MAPPING);
        assert_int_equal(moe_tree_root(tree)->num_children, 0);
        assert_null(moe_tree_find(moe_tree_root(tree), ""));
        moe_tree_destroy(tree);
    }
    moe_tree_destroy(moe_tree_parse(NULL, 0, MOE_TREE_YAML, NULL, NULL, NULL, NULL));
}

static void test_scalar_roots(void **state)
{
    struct moe_tree *tree = parse_good("--- ''\n");

    (void)state;
    check_scalar(moe_tree_root(tree), "", 1);
    moe_tree_destroy(tree);
    tree = parse_good("just words\n");
    check_scalar(moe_tree_root(tree), "just words", 0);
    moe_tree_destroy(tree);
}

static void test_refusals(void **state)
{
    static const struct tree_refusal refusals[] = {
        {"a: [1, 2\nb: 3\n", {{MOE_TREE_SYNTAX, 2, 2, "line 1, column 4"}}},
        {"a: 1\n\tb: 2\n", {{MOE_TREE_SYNTAX, 2, 1, NULL}}},
        {"a: 'x\n", {{MOE_TREE_SYNTAX, 2, 1, "quoted scalar"}}},
        {"a: \"\\ud83d\"\n", {{MOE_TREE_SYNTAX, 1, 7, NULL}}},
        {"a: 1\n---\nb: 2\n", {{MOE_TREE_SEVERAL_DOCUMENTS, 2, 1, "second document"}}},
        {"a: 1\n...\n---\n", {{MOE_TREE_SEVERAL_DOCUMENTS, 3, 1, NULL}}},
        {"a: 1\nb: 2\na: 3\n", {{MOE_TREE_DUPLICATE_KEY, 3, 1, "'a' is already given at line 1"}}},
        {"a: 1\n\"a\": 2\n", {{MOE_TREE_DUPLICATE_KEY, 2, 1, NULL}}},
        {"<<: 1\n<<: 2\n", {{MOE_TREE_DUPLICATE_KEY, 2, 1, "'<<'"}}},
        {"? [a]\n: 1\n", {{MOE_TREE_KEY_NOT_SCALAR, 1, 3, "sequence"}}},
        {"{{a: b}: 1, [c]: 2}\n",
         {{MOE_TREE_KEY_NOT_SCALAR, 1, 2, "mapping"}, {MOE_TREE_KEY_NOT_SCALAR, 1, 13, NULL}}},
        {"a: &name 1\n", {{MOE_TREE_ANCHOR, 1, 4, "'&name'"}}},
        {"a: &m {b: 1}\nc: &s [1]\n",
         {{MOE_TREE_ANCHOR, 1, 4, "'&m'"}, {MOE_TREE_ANCHOR, 2, 4, "'&s'"}}},
        {"a: *name\n", {{MOE_TREE_ALIAS, 1, 4, "'*name'"}}},
        {"*x : 1\n*y : 2\n", {{MOE_TREE_ALIAS, 1, 1, NULL}, {MOE_TREE_ALIAS, 2, 1, NULL}}},
        {"a: !!int 1\n", {{MOE_TREE_TAG, 1, 4, "int"}}},
        {"a: ! 1\nb: !x {}\nc: !<y> []\n",
         {{MOE_TREE_TAG, 1, 4, "'!'"}, {MOE_TREE_TAG, 2, 4, "'!x'"}, {MOE_TREE_TAG, 3, 4, "'y'"}}},
        {"%TAG !e! tag:x,1:\n---\na: 1\n", {{MOE_TREE_DIRECTIVE, 1, 1, "%TAG"}}},
        {"%FOO bar\n---\na: 1\n", {{MOE_TREE_SYNTAX, 1, 5, "directive"}}},
        {"a: 1\nb: \x01\n", {{MOE_TREE_CONTROL_CHARACTER, 2, 4, "U+0001"}}},
        {"a: \xEF\xBB\xBF\n", {{MOE_TREE_CONTROL_CHARACTER, 1, 4, "U+FEFF"}}},
        {"a: \"x\\0y\"\n", {{MOE_TREE_NUL_INSIDE, 1, 4, "U+0000"}}},
        {"a: b\xC3\xA9\nc: \xFF\n", {{MOE_TREE_NOT_UTF8, 2, 4, "0xFF"}}},
        {"a: \xC0\x80\n", {{MOE_TREE_NOT_UTF8, 1, 4, NULL}}},     /* overlong */
        {"a: \xED\xA0\x80\n", {{MOE_TREE_NOT_UTF8, 1, 4, NULL}}}, /* a surrogate */
        {"a: \xF4\x90\x80\x80", {{MOE_TREE_NOT_UTF8, 1, 4, NULL}}},
        {"a: \xE2\x82", {{MOE_TREE_NOT_UTF8, 1, 4, NULL}}}, /* cut */
        {"\xFF\xFE"
         "a",
         {{MOE_TREE_NOT_UTF8, 1, 1, NULL}}}, /* UTF-16 */
    };
    static const struct tree_refusal with_nul = {"a: 1\nb\0: 2\n",
                                                 {{MOE_TREE_NUL_INSIDE, 2, 2, "offset 6"}}};

    (void)state;
    check_refusals(refusals, sizeof refusals / sizeof refusals[0], MOE_TREE_YAML);
    check_refusal_bytes(&with_nul, 11, MOE_TREE_YAML);
}

/* Problems of every kind in one text, nested ones and the last break of the grammar included. */
static void test_all_problems_are_reported_in_order(void **state)
{
    static const struct tree_refusal refusal = {"a: &x 1\n"
                                                "b:\n"
                                                "  c: *x\n"
                                                "  c: !t 2\n"
                                                "a: 3\n"
                                                "? {d: 1, d: 2}\n"
                                                ": 4\n"
                                                "e: [1, {f: 1, f: 2\n",
                                                {{MOE_TREE_ANCHOR, 1, 4, NULL},
                                                 {MOE_TREE_ALIAS, 3, 6, NULL},
                                                 {MOE_TREE_DUPLICATE_KEY, 4, 3, NULL},
                                                 {MOE_TREE_TAG, 4, 6, NULL},
                                                 {MOE_TREE_DUPLICATE_KEY, 5, 1, NULL},
                                                 {MOE_TREE_KEY_NOT_SCALAR, 6, 3, NULL},
                                                 {MOE_TREE_DUPLICATE_KEY, 6, 10, NULL},
                                                 {MOE_TREE_DUPLICATE_KEY, 8, 15, NULL}}};
    static struct tree_reports reports;

    (void)state;
    assert_null(parse_tree(refusal.text, strlen(refusal.text), MOE_TREE_YAML, NULL, &reports));
    assert_int_equal(reports.num_reports, MAX_TREE_PROBLEMS + 1);
    for (size_t i = 0; i < MAX_TREE_PROBLEMS; i++) {
        assert_int_equal(reports.problems[i].code, refusal.problems[i].code);
        assert_int_equal(reports.problems[i].line, refusal.problems[i].line);
        assert_int_equal(reports.problems[i].column, refusal.problems[i].column);
    }
    assert_int_equal(reports.problems[MAX_TREE_PROBLEMS].code, MOE_TREE_SYNTAX);
    assert_int_equal(reports.problems[MAX_TREE_PROBLEMS].line, 9);
}

static void test_number_of_reports_is_bounded(void **state)
{
    static struct tree_reports reports;
    size_t text_bytes;
    char *text = repeat_text("", "a: 1\n", 5000, "", &text_bytes);

    (void)state;
    assert_null(parse_tree(text, text_bytes, MOE_TREE_YAML, NULL, &reports));
    assert_int_equal(reports.num_reports, 1001);
    assert_int_equal(reports.problems[0].line, 2);
    assert_int_equal(reports.problems[999].line, 1001);
    assert_int_equal(reports.problems[1000].code, MOE_TREE_TOO_MANY_ERRORS);
    free(text);
}

static void test_depth_limit(void **state)
{
    static struct tree_reports reports;
    static const struct moe_tree_limits deepest = {1 << 20, UINT32_MAX, 1 << 20};
    size_t text_bytes;
    char *open = repeat_text("", "[", 64, "", &text_bytes);
    char *text = repeat_text(open, "]", 64, "", &text_bytes);

    (void)state;
    moe_tree_destroy(parse_good(text));
    free(text);
    text = repeat_text("[", open, 1, "", &text_bytes);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_YAML, NULL, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_DEEP);
    check_place(&(struct moe_tree_node){.line = reports.problems[0].line,
                                        .column = reports.problems[0].column},
                1, 65);
    free(text);
    free(open);

    text = repeat_text("", "- ", 100, "", &text_bytes);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_YAML, NULL, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_DEEP);
    free(text);

    open = repeat_text("", "[", 512, "", &text_bytes);
    text = repeat_text(open, "]", 512, "", &text_bytes);
    moe_tree_destroy(parse_good_tree(text, text_bytes, MOE_TREE_YAML, &deepest));
    free(text);
    free(open);
    text = repeat_text("", "[", 513, "", &text_bytes);
    assert_null(parse_tree(text, text_bytes, MOE_TREE_YAML, &deepest, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_DEEP);
    free(text);
}

static void test_size_limits(void **state)
{
    static struct tree_reports reports;
    static const struct moe_tree_limits five_nodes = {100, 64, 5};
    size_t text_bytes;
    char *text = repeat_text("a: ", "x", 1 << 20, "", &text_bytes);

    (void)state;
    assert_null(parse_tree(text, text_bytes, MOE_TREE_YAML, NULL, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_LARGE);
    assert_non_null(strstr(reports.messages[0], "1048579 bytes; the limit is 1048576"));
    moe_tree_destroy(parse_good_tree(text, text_bytes - 3, MOE_TREE_YAML, NULL));
    free(text);

    moe_tree_destroy(parse_good_tree("a: 1\nb: 2\n", 10, MOE_TREE_YAML, &five_nodes));
    assert_null(parse_tree("a: 1\nb: [2]\n", 12, MOE_TREE_YAML, &five_nodes, &reports));
    assert_int_equal(reports.problems[0].code, MOE_TREE_TOO_LARGE);
    assert_int_equal(reports.problems[0].line, 2);
    assert_int_equal(reports.problems[0].column, 5);
}

/* Inputs that are slow in some YAML readers: 10 MB each, seconds in all. */
static void test_hostile_texts_end_quickly(void **state)
{
    static const struct {
        const char *before;
        const char *piece;
    } hostile[] = {{"", "["},
                   {"", "{"},
                   {"", "- "},
                   {"", "? "},
                   {"", "&a "},
                   {"", "!"},
                   {"", "*a "},
                   {"", ": "},
                   {"", "%TAG !a! b\n"},
                   {"a\n...\n", "%TAG !a! b\n"},
                   {"", "---\n"},
                   {"[", "a, "},
                   {"[", "*a, "},
                   {"{", "a: 1, "},
                   {"\"", "\n"},
                   {"|\n", " a\n"},
                   {"", "#\n"},
                   {"", "a\n"},
                   {"", "\t"}};
    static const struct moe_tree_limits limits = {(size_t)20 << 20, 64, 1 << 18};
    static struct tree_reports reports;
    double start = read_seconds();

    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        size_t count = ((size_t)10 << 20) / strlen(hostile[i].piece);
        size_t text_bytes;
        char *text = repeat_text(hostile[i].before, hostile[i].piece, count, "", &text_bytes);

        moe_tree_destroy(parse_tree(text, text_bytes, MOE_TREE_YAML, &limits, &reports));
        free(text);
    }
    assert_true(read_seconds() - start < 60.0);
}

static void test_every_prefix(void **state)
{
    (void)state;
    assert_true(check_every_prefix(sample, MOE_TREE_YAML) > 10);
}

static void test_every_failed_allocation(void **state)
{
    size_t text_bytes;
    char *text = repeat_text(sample, "more_of_it_so_that_chunks_run_out: |\n  x\n", 1, "list:\n",
                             &text_bytes);
    char *long_text =
        repeat_text(text, "  - {name: a scalar of some length, value: 1}\n", 300, "", &text_bytes);

    (void)state;
    check_every_failed_allocation(long_text, MOE_TREE_YAML);
    free(long_text);
    free(text);
}

static void test_code_names_are_unique(void **state)
{
    static const struct {
        int32_t code;
        const char *name;
    } codes[] = {
#define TEST_CODE(name, number, text) {number, text},
        MOE_TREE_CODES(TEST_CODE)
#undef TEST_CODE
    };

    (void)state;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        assert_string_equal(moe_tree_code_name(codes[i].code), codes[i].name);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(codes[i].name, codes[j].name);
            assert_int_not_equal(codes[i].code, codes[j].code);
        }
    }
    assert_null(moe_tree_code_name(0));
    assert_null(moe_tree_code_name(-1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_empty_documents),
        cmocka_unit_test(test_scalar_roots),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_all_problems_are_reported_in_order),
        cmocka_unit_test(test_number_of_reports_is_bounded),
        cmocka_unit_test(test_depth_limit),
        cmocka_unit_test(test_size_limits),
        cmocka_unit_test(test_hostile_texts_end_quickly),
        cmocka_unit_test(test_every_prefix),
        cmocka_unit_test(test_every_failed_allocation),
        cmocka_unit_test(test_code_names_are_unique),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
