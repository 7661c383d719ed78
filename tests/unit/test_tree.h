/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the YAML and JSON reader share. */
#ifndef MOE_TESTS_UNIT_TEST_TREE_H
#define MOE_TESTS_UNIT_TEST_TREE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "support_alloc.h"
#include "tree.h"

/* A text that must be refused with exactly these problems, in this order. */
struct tree_problem {
    int32_t code;
    uint32_t line;
    uint32_t column;
    const char *says; /* a part of the message; NULL: any */
};

enum { MAX_TREE_PROBLEMS = 8 };

struct tree_refusal {
    const char *text;
    struct tree_problem problems[MAX_TREE_PROBLEMS]; /* ends with code 0 */
};

/* What one parse reported. */
struct tree_reports {
    size_t num_reports;
    struct tree_problem problems[1100];
    char messages[1100][200];
};

static inline void take_tree_report(void *self, const struct moe_tree_diagnostic *diagnostic)
{
    struct tree_reports *reports = self;
    size_t i = reports->num_reports++;

    assert_true(i < sizeof reports->problems / sizeof reports->problems[0]);
    reports->problems[i].code = diagnostic->code;
    reports->problems[i].line = diagnostic->line;
    reports->problems[i].column = diagnostic->column;
    snprintf(reports->messages[i], sizeof reports->messages[i], "%s", diagnostic->message);
}

/* Parses with the given limits (NULL: those of a configuration) and collects the reports. */
static inline struct moe_tree *parse_tree(const char *text, size_t text_bytes, int syntax,
                                          const struct moe_tree_limits *limits,
                                          struct tree_reports *reports)
{
    /* A copy of exactly this size, so that AddressSanitizer sees a read past the end. */
    char *copy = malloc(text_bytes > 0 ? text_bytes : 1);
    struct moe_tree *tree;

    assert_non_null(copy);
    if (text_bytes > 0) {
        memcpy(copy, text, text_bytes);
    }
    reports->num_reports = 0;
    tree = moe_tree_parse(copy, text_bytes, syntax, limits, NULL, take_tree_report, reports);
    free(copy);
    assert_int_equal(tree == NULL, reports->num_reports > 0);
    return tree;
}

static inline void check_refusal_bytes(const struct tree_refusal *refusal, size_t text_bytes,
                                       int syntax)
{
    static struct tree_reports reports;
    size_t i = 0;

    assert_null(parse_tree(refusal->text, text_bytes, syntax, NULL, &reports));
    for (size_t shown = 0; shown < reports.num_reports; shown++) {
        print_message("%u:%u: error[%s]: %s\n", reports.problems[shown].line,
                      reports.problems[shown].column,
                      moe_tree_code_name(reports.problems[shown].code), reports.messages[shown]);
    }
    for (; i < MAX_TREE_PROBLEMS && refusal->problems[i].code != 0; i++) {
        const struct tree_problem *wanted = &refusal->problems[i];

        assert_true(i < reports.num_reports);
        assert_int_equal(reports.problems[i].code, wanted->code);
        assert_int_equal(reports.problems[i].line, wanted->line);
        assert_int_equal(reports.problems[i].column, wanted->column);
        if (wanted->says != NULL && strstr(reports.messages[i], wanted->says) == NULL) {
            fail_msg("'%s' does not say '%s'", reports.messages[i], wanted->says);
        }
    }
    assert_int_equal(reports.num_reports, i);
}

static inline void check_refusals(const struct tree_refusal *refusals, size_t num_refusals,
                                  int syntax)
{
    for (size_t i = 0; i < num_refusals; i++) {
        check_refusal_bytes(&refusals[i], strlen(refusals[i].text), syntax);
    }
}

/* Parses a text that must be accepted. */
static inline struct moe_tree *parse_good_tree(const char *text, size_t text_bytes, int syntax,
                                               const struct moe_tree_limits *limits)
{
    static struct tree_reports reports;
    struct moe_tree *tree = parse_tree(text, text_bytes, syntax, limits, &reports);

    if (tree == NULL) {
        fail_msg("%u:%u: %s, in: %.60s", reports.problems[0].line, reports.problems[0].column,
                 reports.messages[0], text);
    }
    return tree;
}

static inline void check_place(const struct moe_tree_node *node, uint32_t line, uint32_t column)
{
    assert_non_null(node);
    assert_int_equal(node->line, line);
    assert_int_equal(node->column, column);
}

static inline void check_scalar(const struct moe_tree_node *node, const char *text, int quoted)
{
    assert_non_null(node);
    assert_int_equal(node->kind, MOE_NODE_SCALAR);
    assert_int_equal(node->text_bytes, strlen(text));
    assert_string_equal(node->text, text);
    assert_int_equal(node->quoted, quoted);
}

/* Every prefix of a text: no crash, and an error or a tree. Returns how many gave a tree. */
static inline size_t check_every_prefix(const char *text, int syntax)
{
    static struct tree_reports reports;
    size_t num_accepted = 0;

    for (size_t length = 0; length < strlen(text); length++) {
        struct moe_tree *tree = parse_tree(text, length, syntax, NULL, &reports);

        num_accepted += tree != NULL;
        moe_tree_destroy(tree);
    }
    return num_accepted;
}

/* Lets each allocation fail in turn: an error each time, and nothing stays behind. */
static inline void check_every_failed_allocation(const char *text, int syntax)
{
    static struct tree_reports reports;
    struct support_allocator allocator;
    struct moe_tree_memory memory = {&allocator, support_allocate, support_free};
    struct moe_tree *tree = NULL;
    int64_t fail_at = 0;

    while (tree == NULL) {
        fail_at++;
        reports.num_reports = 0;
        support_allocator_init(&allocator, fail_at);
        tree =
            moe_tree_parse(text, strlen(text), syntax, NULL, &memory, take_tree_report, &reports);
        if (tree == NULL) {
            assert_int_equal(allocator.num_live, 0);
            assert_int_equal(allocator.num_bad_frees, 0);
            assert_int_equal(reports.num_reports, 1);
            assert_int_equal(reports.problems[0].code, MOE_TREE_OUT_OF_MEMORY);
        }
    }
    assert_true(fail_at > 4); /* the buffers and at least one chunk did fail */
    assert_int_equal(reports.num_reports, 0);
    assert_true(allocator.num_live > 0);
    moe_tree_destroy(tree);
    assert_int_equal(allocator.num_live, 0);
    assert_int_equal(allocator.num_bad_frees, 0);
}

/* Processor time, so that other work on the machine does not count. */
static inline double read_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

/* `piece` repeated `count` times between `before` and `after`. The caller frees the buffer. */
static inline char *repeat_text(const char *before, const char *piece, size_t count,
                                const char *after, size_t *text_bytes)
{
    size_t piece_bytes = strlen(piece);
    size_t before_bytes = strlen(before);
    size_t after_bytes = strlen(after);
    char *text;

    *text_bytes = before_bytes + piece_bytes * count + after_bytes;
    text = malloc(*text_bytes + 1);
    assert_non_null(text);
    memcpy(text, before, before_bytes);
    for (size_t i = 0; i < count; i++) {
        memcpy(text + before_bytes + i * piece_bytes, piece, piece_bytes);
    }
    memcpy(text + *text_bytes - after_bytes, after, after_bytes + 1);
    return text;
}

#endif
