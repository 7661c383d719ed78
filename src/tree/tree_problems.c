/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_problems.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_LISTED = 1000, SENTENCE_BYTES = 512 };

void moe_tree_problems_init(struct moe_tree_problems *problems, struct moe_tree_arena *arena)
{
    memset(problems, 0, sizeof *problems);
    problems->arena = arena;
}

void moe_tree_problems_add(struct moe_tree_problems *problems, int32_t code, uint32_t line,
                           uint32_t column, const char *format, ...)
{
    char sentence[SENTENCE_BYTES];
    struct moe_tree_diagnostic *list = problems->list;
    char *kept;
    size_t kept_bytes;
    va_list arguments;

    if (code == MOE_TREE_OUT_OF_MEMORY) {
        problems->is_out_of_memory = 1;
        return;
    }
    if (problems->num_listed == MAX_LISTED) {
        problems->is_full = 1;
        return;
    }
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);

    if (problems->num_listed == problems->capacity) {
        list = moe_tree_arena_grow(problems->arena, list, &problems->capacity,
                                   problems->num_listed + 1, sizeof *list);
        if (list == NULL) {
            problems->is_out_of_memory = 1;
            return;
        }
        problems->list = list;
    }
    kept_bytes = strlen(sentence) + 1;
    kept = moe_tree_arena_alloc(problems->arena, kept_bytes, 1);
    if (kept == NULL) {
        problems->is_out_of_memory = 1;
        return;
    }
    memcpy(kept, sentence, kept_bytes);
    list[problems->num_listed].code = code;
    list[problems->num_listed].line = line;
    list[problems->num_listed].column = column;
    list[problems->num_listed].message = kept;
    problems->num_listed++;
}

int moe_tree_problems_any(const struct moe_tree_problems *problems)
{
    return problems->num_listed > 0 || problems->is_out_of_memory;
}

int moe_tree_problems_must_stop(const struct moe_tree_problems *problems)
{
    return problems->is_full || problems->is_out_of_memory;
}

static int is_before(const struct moe_tree_diagnostic *a, const struct moe_tree_diagnostic *b)
{
    return a->line != b->line ? a->line < b->line : a->column < b->column;
}

/* Insertion sort: the list is short, nearly sorted, and equal places keep their order. */
static void sort_by_place(struct moe_tree_diagnostic *list, size_t num_listed)
{
    for (size_t i = 1; i < num_listed; i++) {
        struct moe_tree_diagnostic moved = list[i];
        size_t to = i;

        while (to > 0 && is_before(&moved, &list[to - 1])) {
            list[to] = list[to - 1];
            to--;
        }
        list[to] = moved;
    }
}

void moe_tree_problems_finish(struct moe_tree_problems *problems,
                              void (*report)(void *self,
                                             const struct moe_tree_diagnostic *diagnostic),
                              void *report_self)
{
    size_t num_listed = problems->num_listed;
    uint32_t last_line = 1;
    uint32_t last_column = 1;

    sort_by_place(problems->list, num_listed);
    if (num_listed > 0) {
        last_line = problems->list[num_listed - 1].line;
        last_column = problems->list[num_listed - 1].column;
    }
    for (size_t i = 0; report != NULL && i < num_listed; i++) {
        report(report_self, &problems->list[i]);
    }
    if (report != NULL && problems->is_full) {
        struct moe_tree_diagnostic more = {MOE_TREE_TOO_MANY_ERRORS, last_line, last_column,
                                           "more than 1000 errors; reading stopped here"};

        _Static_assert(MAX_LISTED == 1000, "the sentence names the number");
        report(report_self, &more);
    }
    if (report != NULL && problems->is_out_of_memory) {
        struct moe_tree_diagnostic memory = {MOE_TREE_OUT_OF_MEMORY, last_line, last_column,
                                             "out of memory"};

        report(report_self, &memory);
    }
    moe_tree_arena_drop(problems->arena, problems->list, problems->capacity,
                        sizeof *problems->list);
    problems->list = NULL;
}

const char *moe_tree_problems_excerpt(char excerpt[MOE_TREE_EXCERPT_BYTES], const char *text,
                                      size_t text_bytes)
{
    static const char ellipsis[] = "...";
    size_t shown = text_bytes;

    if (shown > MOE_TREE_EXCERPT_BYTES - sizeof ellipsis) {
        shown = MOE_TREE_EXCERPT_BYTES - sizeof ellipsis;
        while (shown > 0 && ((unsigned char)text[shown] & 0xC0) == 0x80) {
            shown--;
        }
    }
    for (size_t i = 0; i < shown; i++) {
        unsigned char byte = (unsigned char)text[i];

        excerpt[i] = byte < 0x20 || byte == 0x7F ? '?' : text[i];
    }
    memcpy(excerpt + shown, shown < text_bytes ? ellipsis : "", shown < text_bytes ? 4 : 1);
    return excerpt;
}
