/* SPDX-License-Identifier: Apache-2.0 */
/* What moectl shows only to a person: colour and progress. A pipe or a file sees neither. */
#ifndef MOE_TERMINAL_H
#define MOE_TERMINAL_H

#include <stdint.h>
#include <stdio.h>

enum moe_terminal_style {
    MOE_TERMINAL_PLAIN,
    MOE_TERMINAL_BOLD,
    MOE_TERMINAL_RED,
    MOE_TERMINAL_GREEN,
    MOE_TERMINAL_YELLOW
};

/* 1 when `stream` is a terminal, TERM is not "dumb" and NO_COLOR is absent or empty (no-color.org).
 */
int moe_terminal_has_color(FILE *stream);

/* The escape sequence that starts a style on `stream`, or "" when it has no colour.
 * MOE_TERMINAL_PLAIN ends any style. */
const char *moe_terminal_style(FILE *stream, enum moe_terminal_style style);

/* Progress of one long action, on stderr: silent for the first two seconds and when stderr is no
 * terminal. */
struct moe_progress {
    FILE *stream;
    const char *action; /* "reading experts"; kept, not copied */
    double start_s;
    double shown_s;
    int is_visible;
};

void moe_progress_begin(struct moe_progress *progress, FILE *stream, const char *action);
/* Cheap enough for a loop: redraws at most ten times a second. num_total 0: the end is not known.
 */
void moe_progress_update(struct moe_progress *progress, int64_t num_done, int64_t num_total);
/* Clears the line. */
void moe_progress_end(struct moe_progress *progress);

/* Seconds on a clock that never goes back. */
double moe_terminal_now_s(void);

#endif
