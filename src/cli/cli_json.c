/* SPDX-License-Identifier: Apache-2.0 */
#include "cli_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char replacement[] = "\\ufffd";

/* Length of the well-formed UTF-8 sequence at `s`, or 0. */
static size_t measure_utf8(const unsigned char *s)
{
    size_t length;
    if (s[0] < 0x80) {
        return 1;
    } else if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        length = 2;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        length = 3;
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        length = 4;
    } else {
        return 0;
    }
    for (size_t i = 1; i < length; ++i) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    const int is_overlong = (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xF0 && s[1] < 0x90);
    const int is_surrogate = s[0] == 0xED && s[1] >= 0xA0;
    const int is_too_large = s[0] == 0xF4 && s[1] >= 0x90;
    return is_overlong || is_surrogate || is_too_large ? 0 : length;
}

static void write_quoted(FILE *out, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', out);
    while (*s != '\0') {
        const size_t length = measure_utf8(s);
        if (length == 0) {
            fputs(replacement, out);
            s += 1;
            continue;
        }
        if (*s == '"' || *s == '\\') {
            fputc('\\', out);
            fputc(*s, out);
        } else if (*s == '\n') {
            fputs("\\n", out);
        } else if (*s == '\t') {
            fputs("\\t", out);
        } else if (*s < 0x20 || *s == 0x7F) {
            fprintf(out, "\\u%04x", *s);
        } else {
            fwrite(s, 1, length, out);
        }
        s += length;
    }
    fputc('"', out);
}

static void write_indent(const struct moe_cli_json *json)
{
    fputc('\n', json->out);
    for (int i = 0; i < json->depth; ++i) {
        fputs("  ", json->out);
    }
}

static void begin_item(struct moe_cli_json *json, const char *key)
{
    if (json->depth > 0) {
        unsigned char *has_items = &json->has_items[json->depth - 1];
        if (*has_items) {
            fputc(',', json->out);
        }
        *has_items = 1;
        write_indent(json);
    }
    if (key != NULL) {
        write_quoted(json->out, key);
        fputs(": ", json->out);
    }
}

static void begin_level(struct moe_cli_json *json, const char *key, char bracket)
{
    if (json->is_broken || json->depth == MOE_CLI_JSON_MAX_DEPTH) {
        json->is_broken = 1;
        return;
    }
    begin_item(json, key);
    fputc(bracket, json->out);
    json->has_items[json->depth++] = 0;
}

static void end_level(struct moe_cli_json *json, char bracket)
{
    if (json->is_broken || json->depth == 0) {
        json->is_broken = 1;
        return;
    }
    const int had_items = json->has_items[--json->depth];
    if (had_items) {
        write_indent(json);
    }
    fputc(bracket, json->out);
}

void moe_cli_json_init(struct moe_cli_json *json, FILE *out)
{
    memset(json, 0, sizeof *json);
    json->out = out;
}

void moe_cli_json_begin_object(struct moe_cli_json *json, const char *key)
{
    begin_level(json, key, '{');
}

void moe_cli_json_end_object(struct moe_cli_json *json)
{
    end_level(json, '}');
}

void moe_cli_json_begin_array(struct moe_cli_json *json, const char *key)
{
    begin_level(json, key, '[');
}

void moe_cli_json_end_array(struct moe_cli_json *json)
{
    end_level(json, ']');
}

void moe_cli_json_put_text(struct moe_cli_json *json, const char *key, const char *text)
{
    if (text == NULL) {
        moe_cli_json_put_null(json, key);
        return;
    }
    begin_item(json, key);
    write_quoted(json->out, text);
}

void moe_cli_json_put_int(struct moe_cli_json *json, const char *key, int64_t value)
{
    begin_item(json, key);
    fprintf(json->out, "%" PRId64, value);
}

void moe_cli_json_put_hash(struct moe_cli_json *json, const char *key, uint64_t value)
{
    begin_item(json, key);
    fprintf(json->out, "\"0x%016" PRIx64 "\"", value);
}

void moe_cli_json_put_number(struct moe_cli_json *json, const char *key, double value)
{
    if (!isfinite(value)) {
        moe_cli_json_put_null(json, key);
        return;
    }
    char digits[40] = "0";
    for (int precision = 1; precision <= 17; ++precision) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value) {
            break;
        }
    }
    begin_item(json, key);
    fputs(digits, json->out);
}

void moe_cli_json_put_bool(struct moe_cli_json *json, const char *key, int value)
{
    begin_item(json, key);
    fputs(value ? "true" : "false", json->out);
}

void moe_cli_json_put_null(struct moe_cli_json *json, const char *key)
{
    begin_item(json, key);
    fputs("null", json->out);
}

int moe_cli_json_finish(struct moe_cli_json *json)
{
    fputc('\n', json->out);
    if (fflush(json->out) != 0 || ferror(json->out)) {
        return -1;
    }
    return json->is_broken || json->depth != 0 ? -1 : 0;
}
