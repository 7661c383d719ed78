/* SPDX-License-Identifier: Apache-2.0 */
#include "diagnostic.h"

#include "abi_names.h"
#include "terminal.h"

#include <stdint.h>
#include <string.h>

enum { max_shown_bytes = 160 };

static int is_character_start(char byte)
{
    return ((unsigned char)byte & 0xc0u) != 0x80u;
}

/* The byte where character `column` (from 1) begins, or NULL when the line is shorter; one past
 * its end is allowed. */
static const char *find_column(const char *line, int32_t column)
{
    int32_t at_column = 0;
    for (const char *at = line;; ++at) {
        at_column += is_character_start(*at) ? 1 : 0;
        if (at_column == column) {
            return at;
        }
        if (*at == '\0') {
            return NULL;
        }
    }
}

/* The line, and a caret below `mark`. A long line is shown from some way before the mark. */
static void print_line(FILE *out, const char *line, const char *mark)
{
    const char *start = line;
    if (mark - line > max_shown_bytes / 2) {
        start = mark - max_shown_bytes / 2;
        while (!is_character_start(*start)) {
            ++start;
        }
    }
    const char *end = start + strlen(start);
    if (end - start > max_shown_bytes) {
        end = start + max_shown_bytes;
        while (!is_character_start(*end)) {
            --end;
        }
    }
    fputs("    ", out);
    for (const char *at = start; at < end; ++at) {
        const int is_control = (unsigned char)*at < 0x20 && *at != '\t';
        fputc(is_control || *at == 0x7f ? '?' : *at,
              out); /* no escape sequence reaches the terminal */
    }
    fputs("\n    ", out);
    for (const char *at = start; at < mark; ++at) {
        if (is_character_start(*at)) {
            fputc(*at == '\t' ? '\t' : ' ', out);
        }
    }
    fprintf(out, "%s^%s\n", moe_terminal_style(out, MOE_TERMINAL_GREEN),
            moe_terminal_style(out, MOE_TERMINAL_PLAIN));
}

void moe_diagnostic_print(FILE *out, const struct moe_diagnostic *diagnostic)
{
    const enum moe_terminal_style style =
        diagnostic->level == MOE_LEVEL_ERROR ? MOE_TERMINAL_RED : MOE_TERMINAL_YELLOW;
    fprintf(out, "%s:", diagnostic->file);
    if (diagnostic->line > 0) {
        fprintf(out, "%d:%d:", diagnostic->line, diagnostic->column);
    }
    fprintf(out, " %s%s[%s]%s: %s\n", moe_terminal_style(out, style),
            moe_abi_level_name(diagnostic->level), diagnostic->code,
            moe_terminal_style(out, MOE_TERMINAL_PLAIN), diagnostic->message);
    if (diagnostic->line > 0 && diagnostic->source_line != NULL) {
        const char *mark = find_column(diagnostic->source_line, diagnostic->column);
        if (mark != NULL) {
            print_line(out, diagnostic->source_line, mark);
        }
    }
}

void moe_diagnostic_put_json(struct moe_cli_json *json, const struct moe_diagnostic *diagnostic)
{
    moe_cli_json_begin_object(json, NULL);
    moe_cli_json_put_text(json, "level", moe_abi_level_name(diagnostic->level));
    moe_cli_json_put_text(json, "code", diagnostic->code);
    moe_cli_json_put_text(json, "file", diagnostic->file);
    moe_cli_json_put_int(json, "line", diagnostic->line);
    moe_cli_json_put_int(json, "column", diagnostic->column);
    moe_cli_json_put_text(json, "message", diagnostic->message);
    moe_cli_json_put_text(json, "source_line", diagnostic->source_line);
    moe_cli_json_end_object(json);
}
