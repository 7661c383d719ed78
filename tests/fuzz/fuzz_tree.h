/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must hold for any input of moe_tree_parse:
 *   - either a tree or problems, those in the order of the text, with known codes and sentences;
 *   - memory goes back in the sizes it was given out in, all of it, and running out is a problem;
 *   - every key finds its value, every text is UTF-8 without a NUL, every place is in the text;
 *   - written out as JSON and read again, a tree is the same.
 * A broken rule ends the program.
 */
#ifndef MOE_TESTS_FUZZ_TREE_H
#define MOE_TESTS_FUZZ_TREE_H

#include "tree.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

#define FUZZ_REQUIRE(condition)                                                     \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

struct fuzz_memory {
    uint64_t live_bytes;
    uint64_t num_calls;
    uint64_t fail_at; /* the call that returns NULL; 0: none */
};

static inline void *fuzz_alloc(void *self, uint64_t bytes, uint64_t align)
{
    struct fuzz_memory *memory = self;
    void *block;

    FUZZ_REQUIRE(align <= 16);
    memory->num_calls++;
    if (memory->num_calls == memory->fail_at) {
        return NULL;
    }
    block = malloc(bytes > 0 ? (size_t)bytes : 1);
    FUZZ_REQUIRE(block != NULL);
    memory->live_bytes += bytes;
    return block;
}

static inline void fuzz_release(void *self, void *block, uint64_t bytes, uint64_t align)
{
    struct fuzz_memory *memory = self;

    FUZZ_REQUIRE(align <= 16 && block != NULL && bytes <= memory->live_bytes);
    memory->live_bytes -= bytes;
    free(block);
}

struct fuzz_report {
    struct moe_tree_diagnostic last;
    unsigned num_reported;
};

static inline void fuzz_take_report(void *self, const struct moe_tree_diagnostic *diagnostic)
{
    struct fuzz_report *report = self;

    FUZZ_REQUIRE(moe_tree_code_name(diagnostic->code) != NULL);
    FUZZ_REQUIRE(diagnostic->line >= 1 && diagnostic->column >= 1);
    FUZZ_REQUIRE(diagnostic->message != NULL && diagnostic->message[0] != '\0');
    FUZZ_REQUIRE(strchr(diagnostic->message, '\n') == NULL);
    if (report->num_reported > 0) {
        FUZZ_REQUIRE(
            diagnostic->line > report->last.line ||
            (diagnostic->line == report->last.line && diagnostic->column >= report->last.column));
    }
    report->last = *diagnostic;
    report->num_reported++;
}

/* A text that grows. */
struct fuzz_text {
    char *bytes;
    size_t num_bytes;
    size_t capacity;
};

static inline void fuzz_write(struct fuzz_text *text, const char *bytes, size_t num_bytes)
{
    if (text->bytes == NULL || text->capacity - text->num_bytes < num_bytes) {
        text->capacity = 2 * text->capacity + num_bytes;
        text->bytes = realloc(text->bytes, text->capacity);
        FUZZ_REQUIRE(text->bytes != NULL);
    }
    memcpy(text->bytes + text->num_bytes, bytes, num_bytes);
    text->num_bytes += num_bytes;
}

static inline void fuzz_write_string(struct fuzz_text *text, const struct moe_tree_node *node)
{
    fuzz_write(text, "\"", 1);
    for (size_t i = 0; i < node->text_bytes; i++) {
        unsigned char byte = (unsigned char)node->text[i];
        char escape[8];

        if (byte < 0x20 || byte == '"' || byte == '\\') {
            fuzz_write(text, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", byte));
        } else {
            fuzz_write(text, &node->text[i], 1);
        }
    }
    fuzz_write(text, "\"", 1);
}

/* Writes a tree as JSON. Plain scalars stay plain if `keeps_plain`, else they become strings. */
static inline void fuzz_write_node(struct fuzz_text *text, const struct moe_tree_node *node,
                                   int keeps_plain)
{
    int is_mapping = node->kind == MOE_NODE_MAPPING;

    if (node->kind == MOE_NODE_SCALAR) {
        if (keeps_plain && !node->quoted) {
            fuzz_write(text, node->text, node->text_bytes);
        } else {
            fuzz_write_string(text, node);
        }
        return;
    }
    fuzz_write(text, is_mapping ? "{" : "[", 1);
    for (size_t i = 0; i < node->num_children; i++) {
        if (i > 0) {
            fuzz_write(text, ",", 1);
        }
        if (is_mapping) {
            fuzz_write_string(text, &node->keys[i]);
            fuzz_write(text, ":", 1);
        }
        fuzz_write_node(text, &node->children[i], keeps_plain);
    }
    fuzz_write(text, is_mapping ? "}" : "]", 1);
}

static inline void fuzz_check_scalar(const struct moe_tree_node *node)
{
    int64_t integer = 0;
    double real = 0;
    int truth = 0;
    int is_integer = moe_tree_to_int64(node, INT64_MIN, INT64_MAX, &integer) == 0;
    int is_real = moe_tree_to_double(node, &real) == 0;
    int is_truth = moe_tree_to_bool(node, &truth) == 0;

    FUZZ_REQUIRE(strlen(node->text) == node->text_bytes);
    FUZZ_REQUIRE(!is_integer || (is_real && real == (double)integer));
    FUZZ_REQUIRE(!is_truth || (!is_real && (truth == 0 || truth == 1)));
    FUZZ_REQUIRE(!node->quoted || !(is_real || is_truth || moe_tree_is_null(node)));
    FUZZ_REQUIRE(moe_tree_is_text(node, node->text));
    if (is_real) { /* the C library is an independent reader of the same form */
        FUZZ_REQUIRE(real == strtod(node->text, NULL));
    }
}

static inline void fuzz_check_node(const struct moe_tree_node *node, size_t text_bytes)
{
    FUZZ_REQUIRE(node->line >= 1 && node->line <= text_bytes + 1);
    FUZZ_REQUIRE(node->column >= 1 && node->column <= text_bytes + 1);
    if (node->kind == MOE_NODE_SCALAR) {
        fuzz_check_scalar(node);
        return;
    }
    FUZZ_REQUIRE(node->kind == MOE_NODE_SEQUENCE || node->kind == MOE_NODE_MAPPING);
    for (size_t i = 0; i < node->num_children; i++) {
        if (node->kind == MOE_NODE_MAPPING) {
            fuzz_check_node(&node->keys[i], text_bytes);
            FUZZ_REQUIRE(moe_tree_find(node, node->keys[i].text) == &node->children[i]);
        }
        fuzz_check_node(&node->children[i], text_bytes);
    }
}

/* Places are of the text that was read, so they may differ. */
static inline void fuzz_check_same(const struct moe_tree_node *a, const struct moe_tree_node *b,
                                   int keeps_plain)
{
    FUZZ_REQUIRE(a->kind == b->kind);
    if (a->kind == MOE_NODE_SCALAR) {
        FUZZ_REQUIRE(a->text_bytes == b->text_bytes);
        FUZZ_REQUIRE(memcmp(a->text, b->text, a->text_bytes) == 0);
        FUZZ_REQUIRE(!keeps_plain || a->quoted == b->quoted);
        return;
    }
    FUZZ_REQUIRE(a->num_children == b->num_children);
    for (size_t i = 0; i < a->num_children; i++) {
        if (a->kind == MOE_NODE_MAPPING) {
            fuzz_check_same(&a->keys[i], &b->keys[i], 0);
        }
        fuzz_check_same(&a->children[i], &b->children[i], keeps_plain);
    }
}

static inline void fuzz_check_written(const struct moe_tree_node *root, int keeps_plain)
{
    struct fuzz_text text = {NULL, 0, 0};
    struct fuzz_report report = {{0, 0, 0, NULL}, 0};
    struct moe_tree *tree;

    fuzz_write_node(&text, root, keeps_plain);
    tree = moe_tree_parse(text.bytes, text.num_bytes, MOE_TREE_JSON, &MOE_TREE_LIMITS_JSON_INDEX,
                          NULL, fuzz_take_report, &report);
    FUZZ_REQUIRE(tree != NULL && report.num_reported == 0);
    fuzz_check_same(root, moe_tree_root(tree), keeps_plain);
    moe_tree_destroy(tree);
    free(text.bytes);
}

/* Reads the input once as it is, and once with an allocation that fails. */
static inline void fuzz_check_input(const uint8_t *data, size_t data_bytes, int syntax)
{
    struct fuzz_memory counters = {0, 0, 0};
    struct moe_tree_memory memory = {&counters, fuzz_alloc, fuzz_release};
    struct fuzz_report report = {{0, 0, 0, NULL}, 0};
    struct moe_tree *tree = moe_tree_parse((const char *)data, data_bytes, syntax, NULL, &memory,
                                           fuzz_take_report, &report);

    FUZZ_REQUIRE((tree != NULL) == (report.num_reported == 0));
    if (tree != NULL) {
        fuzz_check_node(moe_tree_root(tree), data_bytes);
        fuzz_check_written(moe_tree_root(tree), syntax == MOE_TREE_JSON);
    }
    moe_tree_destroy(tree);
    FUZZ_REQUIRE(counters.live_bytes == 0);

    if (counters.num_calls > 0) {
        counters.fail_at = 1 + data_bytes % counters.num_calls;
        counters.num_calls = 0;
        report.num_reported = 0;
        tree = moe_tree_parse((const char *)data, data_bytes, syntax, NULL, &memory,
                              fuzz_take_report, &report);
        FUZZ_REQUIRE(tree == NULL && report.num_reported > 0);
        FUZZ_REQUIRE(report.last.code == MOE_TREE_OUT_OF_MEMORY);
        FUZZ_REQUIRE(counters.live_bytes == 0);
    }
}

#endif
