/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of JSON strings; the tokens around them are in tree_json.c. */
#include "tree_json.h"
#include "tree_text.h"

#include <stdio.h>
#include <string.h>

/* Hands out a character of a string in the escaped form that libyaml always takes as it is. */
static void hand_out_character(struct moe_tree_json *json, uint32_t character)
{
    json->head_bytes =
        (size_t)snprintf(json->head, sizeof json->head, "\\U%08X", (unsigned)character);
    json->head_at = 0;
}

/*
 * After a bad escape the string goes on, for the problems behind it. The backslash is handed out
 * as a character, so that keys that differ in bad escapes do not count as the same.
 */
static void keep_backslash(struct moe_tree_json *json)
{
    moe_tree_json_hand_out(json, "\\\\");
    moe_tree_json_advance(json, 1);
}

/* The four hexadecimal digits of a `\u` at `text`, or -1 if it is no such escape. */
static int32_t read_unicode_escape(const char *text, const char *end)
{
    int32_t value = 0;

    if (end - text < 6 || text[0] != '\\' || text[1] != 'u') {
        return -1;
    }
    for (int i = 2; i < 6; i++) {
        char digit = text[i];

        if (digit >= '0' && digit <= '9') {
            value = value * 16 + (digit - '0');
        } else if (digit >= 'a' && digit <= 'f') {
            value = value * 16 + (digit - 'a') + 10;
        } else if (digit >= 'A' && digit <= 'F') {
            value = value * 16 + (digit - 'A') + 10;
        } else {
            return -1;
        }
    }
    return value;
}

static void read_long_escape(struct moe_tree_json *json)
{
    int32_t first = read_unicode_escape(json->at, json->end);
    int32_t second;

    if (first < 0) {
        moe_tree_json_report(json, MOE_TREE_JSON_BAD_ESCAPE,
                             "the escape \\u takes four hexadecimal digits");
        keep_backslash(json);
        return;
    }
    if (first == 0) {
        moe_tree_json_report(json, MOE_TREE_NUL_INSIDE, "a string with the character U+0000");
        keep_backslash(json);
        return;
    }
    if (first < 0xD800 || first > 0xDFFF) {
        hand_out_character(json, (uint32_t)first);
        moe_tree_json_advance(json, 6);
        return;
    }
    second = first < 0xDC00 ? read_unicode_escape(json->at + 6, json->end) : -1;
    if (second < 0xDC00 || second > 0xDFFF) {
        moe_tree_problems_add(
            json->problems, MOE_TREE_JSON_BAD_SURROGATE, json->place.line, json->place.column,
            "\\u%04X is half of a surrogate pair without its other half", (unsigned)first);
        keep_backslash(json);
        return;
    }
    hand_out_character(json, (uint32_t)(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)));
    moe_tree_json_advance(json, 12);
}

static void read_escape(struct moe_tree_json *json)
{
    static const char letters[] = "\"\\/bfnrt";
    static const char meanings[] = "\"\\/\b\f\n\r\t";
    const char *letter;
    char excerpt[MOE_TREE_EXCERPT_BYTES];

    if (json->end - json->at < 2) {
        keep_backslash(json); /* the text ends here, which the next step reports */
        return;
    }
    if (json->at[1] == 'u') {
        read_long_escape(json);
        return;
    }
    letter = strchr(letters, json->at[1]);
    if (letter == NULL) {
        uint32_t character = 0;
        size_t length = moe_tree_text_decode((const unsigned char *)json->at + 1,
                                             (size_t)(json->end - json->at) - 1, &character);

        moe_tree_problems_add(json->problems, MOE_TREE_JSON_BAD_ESCAPE, json->place.line,
                              json->place.column,
                              "\\%s is not an escape of JSON; \\\", \\\\, \\/, \\b, \\f, \\n, "
                              "\\r, \\t and \\uXXXX are",
                              moe_tree_problems_excerpt(excerpt, json->at + 1, length));
        keep_backslash(json);
        return;
    }
    hand_out_character(json, (unsigned char)meanings[letter - letters]);
    moe_tree_json_advance(json, 2);
}

/* The bytes at the start of what is left that go into a string as they are. */
static size_t measure_run(const struct moe_tree_json *json)
{
    const char *at = json->at;

    while (at < json->end) {
        unsigned char byte = (unsigned char)*at;
        uint32_t character = byte;
        size_t length = 1;

        if (byte >= 0x80) {
            length = moe_tree_text_decode((const unsigned char *)at, (size_t)(json->end - at),
                                          &character);
        }
        if (byte == '"' || byte == '\\' || byte < 0x20 || moe_tree_text_is_special(character)) {
            break;
        }
        at += length;
    }
    return (size_t)(at - json->at);
}

static void refuse_string_end(struct moe_tree_json *json, const char *what)
{
    moe_tree_problems_add(json->problems, MOE_TREE_SYNTAX, json->place.line, json->place.column,
                          "%s inside the string that starts at line %u, column %u", what,
                          (unsigned)json->string_start.line, (unsigned)json->string_start.column);
    moe_tree_json_stop(json);
}

void moe_tree_json_read_string(struct moe_tree_json *json)
{
    size_t run_bytes = measure_run(json);
    uint32_t character = 0;
    size_t length;

    if (run_bytes > 0) {
        json->body = json->at;
        json->body_bytes = run_bytes;
        moe_tree_json_advance(json, run_bytes);
        return;
    }
    if (json->at == json->end) {
        refuse_string_end(json, "the text ends");
        return;
    }
    if (*json->at == '"') {
        moe_tree_json_hand_out(json, "\"");
        moe_tree_json_advance(json, 1);
        json->is_in_string = 0;
        return;
    }
    if (*json->at == '\\') {
        read_escape(json);
        return;
    }
    if (*json->at == '\n' || *json->at == '\r') {
        refuse_string_end(json, "the line ends");
        return;
    }
    length = moe_tree_text_decode((const unsigned char *)json->at, (size_t)(json->end - json->at),
                                  &character);
    if (character < 0x20) {
        moe_tree_problems_add(json->problems, MOE_TREE_CONTROL_CHARACTER, json->place.line,
                              json->place.column,
                              "the character U+%04X in a JSON string must be written \\u%04X",
                              (unsigned)character, (unsigned)character);
    }
    hand_out_character(json, character);
    moe_tree_json_advance(json, length);
}
