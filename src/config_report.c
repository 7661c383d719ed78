/* SPDX-License-Identifier: Apache-2.0 */
#include "config_report.h"

#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_SHOWN_BYTES     48  /* of a user's scalar in a message */
#define MAX_LINE_BYTES      512 /* of a source line */
#define MAX_SUGGESTED_BYTES 40
#define MAX_TYPING_ERRORS   2

const char *moe_config_report_code(int32_t code)
{
    static const char *const names[MOE_NUM_CONFIG_CODES] = {
#define CODE_NAME(name, text, meaning) [MOE_CONFIG_CODE_##name] = text,
        MOE_CONFIG_CODES(CODE_NAME)
#undef CODE_NAME
    };
    return names[code];
}

/* `num_bytes`, or less where that would cut a UTF-8 sequence. */
static size_t cut_at_character(const char *text, size_t text_bytes, size_t num_bytes)
{
    if (num_bytes >= text_bytes) {
        return text_bytes;
    }
    while (num_bytes > 0 && ((unsigned char)text[num_bytes] & 0xC0u) == 0x80u) {
        num_bytes--;
    }
    return num_bytes;
}

/* Copy line `line` of the text under way, terminated; false when there is none. */
static int copy_line(const struct moe_config_report *report, uint32_t line, char *out,
                     size_t out_bytes)
{
    if (report->text == NULL || line == 0) {
        return 0;
    }
    const char *start = report->text;
    const char *end = report->text + report->text_bytes;
    for (uint32_t i = 1; i < line; i++) {
        const char *newline = memchr(start, '\n', (size_t)(end - start));
        if (newline == NULL) {
            return 0;
        }
        start = newline + 1;
    }
    const char *newline = memchr(start, '\n', (size_t)(end - start));
    size_t line_bytes = (size_t)((newline != NULL ? newline : end) - start);
    if (line_bytes > 0 && start[line_bytes - 1] == '\r') {
        line_bytes--;
    }
    size_t num_bytes = cut_at_character(start, line_bytes, out_bytes - 1);
    for (size_t i = 0; i < num_bytes; i++) {
        out[i] = start[i] == '\0' ? ' ' : start[i];
    }
    out[num_bytes] = '\0';
    return 1;
}

static int32_t status_of_code(const char *code)
{
    if (strcmp(code, moe_config_report_code(MOE_CONFIG_CODE_IO)) == 0) {
        return MOE_STATUS_IO;
    }
    if (strcmp(code, moe_tree_code_name(MOE_TREE_OUT_OF_MEMORY)) == 0) {
        return MOE_STATUS_OUT_OF_MEMORY;
    }
    return MOE_STATUS_CONFIG;
}

void moe_config_report_add(struct moe_config_report *report, int32_t level, const char *code,
                           uint32_t line, uint32_t column, const char *format, ...)
{
    char message[1024];
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof(message), format, values);
    va_end(values);

    if (level == MOE_LEVEL_ERROR && report->status == MOE_STATUS_OK) {
        report->status = status_of_code(code);
        char place[32] = ""; /* none: it is about the whole file */
        if (line > 0) {
            snprintf(place, sizeof(place), ":%u:%u", line, column);
        }
        moe_error_set_at(report->error, report->status, report->native, (int32_t)line,
                         (int32_t)column, "%s%s: error[%s]: %s", report->file, place, code,
                         message);
    }
    report->native = 0;
    if (report->diagnostic == NULL) {
        return;
    }
    char source_line[MAX_LINE_BYTES];
    struct moe_diagnostic diagnostic;
    memset(&diagnostic, 0, sizeof(diagnostic));
    diagnostic.struct_size = (uint32_t)sizeof(diagnostic);
    diagnostic.level = level;
    diagnostic.line = (int32_t)line;
    diagnostic.column = (int32_t)column;
    diagnostic.code = code;
    diagnostic.file = report->file;
    diagnostic.message = message;
    diagnostic.source_line =
        copy_line(report, line, source_line, sizeof(source_line)) ? source_line : NULL;
    report->diagnostic(report->diagnostic_self, &diagnostic);
}

void moe_words_add(struct moe_words *words, const char *format, ...)
{
    size_t space = sizeof(words->text) - words->num_bytes;
    va_list values;
    va_start(values, format);
    int num_bytes = vsnprintf(words->text + words->num_bytes, space, format, values);
    va_end(values);
    if (num_bytes < 0) {
        return;
    }
    if ((size_t)num_bytes < space) {
        words->num_bytes += (size_t)num_bytes;
        return;
    }
    size_t end = sizeof(words->text) - 4;
    while (end > 0 && ((unsigned char)words->text[end] & 0xC0u) == 0x80u) {
        end--;
    }
    memcpy(words->text + end, "...", 4);
    words->num_bytes = sizeof(words->text) - 1;
}

void moe_words_add_node(struct moe_words *words, const struct moe_tree_node *node)
{
    if (node->kind != MOE_NODE_SCALAR) {
        const char *kind = node->kind == MOE_NODE_SEQUENCE ? "list" : "mapping";
        if (node->num_children == 0) {
            moe_words_add(words, "an empty %s", kind);
        } else {
            moe_words_add(words, "a %s of %zu", kind, node->num_children);
        }
        return;
    }
    if (moe_tree_is_null(node)) {
        moe_words_add(words, "nothing");
        return;
    }
    char shown[MAX_SHOWN_BYTES + 1];
    size_t num_bytes = cut_at_character(node->text, node->text_bytes, MAX_SHOWN_BYTES);
    for (size_t i = 0; i < num_bytes; i++) {
        unsigned char byte = (unsigned char)node->text[i];
        shown[i] = byte < 0x20 || byte == 0x7F ? '?' : node->text[i];
    }
    shown[num_bytes] = '\0';
    moe_words_add(words, "\"%s%s\"", shown, num_bytes < node->text_bytes ? "..." : "");
}

void moe_words_add_names(struct moe_words *words, moe_name_fn *name, const void *self)
{
    const char *text;
    for (int32_t i = 0; (text = name(self, i)) != NULL; i++) {
        moe_words_add(words, "%s%s", i > 0 ? ", " : "", text);
    }
}

static uint32_t min3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t smaller = a < b ? a : b;
    return smaller < c ? smaller : c;
}

/*
 * Insertions, deletions, changes and swaps of neighbours that turn `a` into `b`; both at most
 * MAX_SUGGESTED_BYTES long.
 */
static uint32_t typing_errors(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    uint32_t rows[3][MAX_SUGGESTED_BYTES + 1];
    for (uint32_t j = 0; j <= b_bytes; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= a_bytes; i++) {
        uint32_t *row = rows[i % 3];
        const uint32_t *above = rows[(i + 2) % 3];
        const uint32_t *above2 = rows[(i + 1) % 3];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= b_bytes; j++) {
            uint32_t change = above[j - 1] + (a[i - 1] != b[j - 1] ? 1u : 0u);
            row[j] = min3(above[j] + 1, row[j - 1] + 1, change);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                above2[j - 2] + 1 < row[j]) {
                row[j] = above2[j - 2] + 1;
            }
        }
    }
    return rows[a_bytes % 3][b_bytes];
}

void moe_words_add_suggestion(struct moe_words *words, const char *text, moe_name_fn *name,
                              const void *self)
{
    size_t text_bytes = strlen(text);
    if (text_bytes > MAX_SUGGESTED_BYTES) {
        return;
    }
    const char *nearest = NULL;
    uint32_t fewest = MAX_TYPING_ERRORS + 1;
    const char *candidate;
    for (int32_t i = 0; (candidate = name(self, i)) != NULL; i++) {
        size_t candidate_bytes = strlen(candidate);
        if (candidate_bytes > MAX_SUGGESTED_BYTES) {
            continue;
        }
        uint32_t errors = typing_errors(text, text_bytes, candidate, candidate_bytes);
        if (errors < fewest && 2 * (size_t)errors <= candidate_bytes) {
            fewest = errors;
            nearest = candidate;
        }
    }
    if (nearest != NULL) {
        moe_words_add(words, "; did you mean \"%s\"?", nearest);
    }
}
