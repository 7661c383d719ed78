/* SPDX-License-Identifier: Apache-2.0 */
#include "cli_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void write_at(struct moe_cli_error *error, size_t at, const char *format, va_list args)
{
    const size_t room = sizeof error->message - at;
    const int length = vsnprintf(error->message + at, room, format, args);
    if (length < 0) {
        error->message[at] = '\0';
    } else if ((size_t)length >= room) {
        memcpy(error->message + sizeof error->message - sizeof "...", "...", sizeof "...");
    }
}

void moe_cli_error_set(struct moe_cli_error *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_at(error, 0, format, args);
    va_end(args);
}

void moe_cli_error_append(struct moe_cli_error *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_at(error, strlen(error->message), format, args);
    va_end(args);
}

enum { SUGGEST_MAX_LETTERS = 63, SUGGEST_MAX_EDITS = 2 };

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Edits between two words: a letter inserted, dropped or replaced, or two neighbours swapped. */
static size_t count_edits(const char *a, size_t a_letters, const char *b, size_t b_letters)
{
    size_t rows[3][SUGGEST_MAX_LETTERS + 1];
    size_t *before = rows[0];
    size_t *above = rows[1];
    size_t *row = rows[2];
    for (size_t j = 0; j <= b_letters; ++j) {
        above[j] = j;
    }
    for (size_t i = 1; i <= a_letters; ++i) {
        row[0] = i;
        for (size_t j = 1; j <= b_letters; ++j) {
            const size_t replace = above[j - 1] + (a[i - 1] != b[j - 1] ? 1 : 0);
            row[j] = min_size(replace, min_size(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                row[j] = min_size(row[j], before[j - 2] + 1);
            }
        }
        size_t *oldest = before;
        before = above;
        above = row;
        row = oldest;
    }
    return above[b_letters];
}

const char *moe_cli_suggest(const char *word, const char *const *choices, size_t num_choices)
{
    const size_t letters = strlen(word);
    if (letters == 0 || letters > SUGGEST_MAX_LETTERS) {
        return NULL;
    }
    const char *best = NULL;
    size_t best_edits = SUGGEST_MAX_EDITS + 1;
    for (size_t i = 0; i < num_choices; ++i) {
        const size_t choice_letters = strlen(choices[i]);
        if (choice_letters > SUGGEST_MAX_LETTERS) {
            continue;
        }
        const size_t edits = count_edits(word, letters, choices[i], choice_letters);
        if (edits < best_edits && edits * 2 < choice_letters) {
            best = choices[i];
            best_edits = edits;
        }
    }
    return best;
}
