/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "terminal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double quiet_s = 2.0;
static const double redraw_s = 0.1;

static const char *const style_codes[] = {[MOE_TERMINAL_PLAIN] = "\033[0m",
                                          [MOE_TERMINAL_BOLD] = "\033[1m",
                                          [MOE_TERMINAL_RED] = "\033[31m",
                                          [MOE_TERMINAL_GREEN] = "\033[32m",
                                          [MOE_TERMINAL_YELLOW] = "\033[33m"};

int moe_terminal_has_color(FILE *stream)
{
    const char *no_color = getenv("NO_COLOR");
    if (no_color != NULL && no_color[0] != '\0') {
        return 0;
    }
    const char *term = getenv("TERM");
    return term != NULL && strcmp(term, "dumb") != 0 && isatty(fileno(stream)) == 1;
}

const char *moe_terminal_style(FILE *stream, enum moe_terminal_style style)
{
    return moe_terminal_has_color(stream) ? style_codes[style] : "";
}

double moe_terminal_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void moe_progress_begin(struct moe_progress *progress, FILE *stream, const char *action)
{
    progress->stream = isatty(fileno(stream)) == 1 ? stream : NULL;
    progress->action = action;
    progress->start_s = moe_terminal_now_s();
    progress->shown_s = 0.0;
    progress->is_visible = 0;
}

void moe_progress_update(struct moe_progress *progress, int64_t num_done, int64_t num_total)
{
    if (progress->stream == NULL) {
        return;
    }
    const double now_s = moe_terminal_now_s();
    if (now_s - progress->start_s < quiet_s || now_s - progress->shown_s < redraw_s) {
        return;
    }
    progress->shown_s = now_s;
    progress->is_visible = 1;
    const double elapsed_s = now_s - progress->start_s;
    if (num_total > 0) {
        fprintf(progress->stream, "\r\033[K%s: %" PRId64 " of %" PRId64 " (%.0f %%), %.0f s",
                progress->action, num_done, num_total, 100.0 * (double)num_done / (double)num_total,
                elapsed_s);
    } else {
        fprintf(progress->stream, "\r\033[K%s: %" PRId64 ", %.0f s", progress->action, num_done,
                elapsed_s);
    }
    fflush(progress->stream);
}

void moe_progress_end(struct moe_progress *progress)
{
    if (progress->is_visible) {
        fputs("\r\033[K", progress->stream);
        fflush(progress->stream);
        progress->is_visible = 0;
    }
}
