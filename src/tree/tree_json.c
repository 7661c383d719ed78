/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_json.h"
#include "tree_text.h"

#include <stdio.h>
#include <string.h>

/* What may come next. */
enum {
    EXPECTS_VALUE,        /* at the start, and after a colon */
    EXPECTS_ITEM,         /* after a comma in an array */
    EXPECTS_ITEM_OR_END,  /* after `[` */
    EXPECTS_KEY,          /* after a comma in an object */
    EXPECTS_KEY_OR_END,   /* after `{` */
    EXPECTS_COLON,        /* after a key */
    EXPECTS_COMMA_OR_END, /* after a value in an array or object */
    EXPECTS_NOTHING       /* after the value of the whole text */
};

static const char *const expected[] = {
    [EXPECTS_VALUE] = "a value",
    [EXPECTS_ITEM] = "a value",
    [EXPECTS_ITEM_OR_END] = "a value or ']'",
    [EXPECTS_KEY] = "a key in double quotes",
    [EXPECTS_KEY_OR_END] = "a key in double quotes or '}'",
    [EXPECTS_COLON] = "':'",
    [EXPECTS_COMMA_OR_END] = "',' or the end of the collection",
    [EXPECTS_NOTHING] = "the end of the text",
};

void moe_tree_json_init(struct moe_tree_json *json, const char *text, size_t text_bytes,
                        struct moe_tree_problems *problems)
{
    memset(json, 0, sizeof *json);
    json->at = text;
    json->end = text + text_bytes;
    json->place.line = 1;
    json->place.column = 1;
    json->problems = problems;
    json->expects = EXPECTS_VALUE;
}

struct moe_tree_place moe_tree_json_take_place(struct moe_tree_json *json)
{
    return json->queue[json->num_taken++ % MOE_TREE_JSON_QUEUE_TOKENS];
}

/* After a problem that leaves no way to read on. */
static void stop(struct moe_tree_json *json)
{
    json->is_finished = 1;
    json->is_broken = 1;
}

static void add_problem(struct moe_tree_json *json, int32_t code, const char *sentence)
{
    moe_tree_problems_add(json->problems, code, json->place.line, json->place.column, "%s",
                          sentence);
}

/* Steps over characters that are on one line. */
static void advance(struct moe_tree_json *json, size_t num_bytes)
{
    for (size_t i = 0; i < num_bytes; i++) {
        json->place.column += ((unsigned char)json->at[i] & 0xC0) != 0x80;
    }
    json->at += num_bytes;
}

static void skip_space(struct moe_tree_json *json)
{
    for (; json->at < json->end; json->at++) {
        char byte = *json->at;

        if (byte == '\n' || (byte == '\r' && !(json->end - json->at > 1 && json->at[1] == '\n'))) {
            json->place.line++;
            json->place.column = 1;
        } else if (byte == ' ' || byte == '\t') {
            json->place.column++;
        } else if (byte != '\r') {
            return;
        }
    }
}

static void hand_out(struct moe_tree_json *json, const char *head)
{
    json->head_bytes = strlen(head);
    json->head_at = 0;
    memcpy(json->head, head, json->head_bytes);
}

static void queue_place(struct moe_tree_json *json)
{
    json->queue[json->num_queued++ % MOE_TREE_JSON_QUEUE_TOKENS] = json->place;
}

static int is_in_object(const struct moe_tree_json *json)
{
    return json->depth > 0 && json->is_object[json->depth - 1];
}

/* The state after a value. */
static int after_value(const struct moe_tree_json *json)
{
    return json->depth > 0 ? EXPECTS_COMMA_OR_END : EXPECTS_NOTHING;
}

/* Something other than what is expected: says what it is, as closely as can be told. */
static void refuse_token(struct moe_tree_json *json)
{
    char excerpt[MOE_TREE_EXCERPT_BYTES];
    size_t num_shown = 1;

    while (json->end - json->at > (ptrdiff_t)num_shown &&
           ((unsigned char)json->at[num_shown] & 0xC0) == 0x80) {
        num_shown++;
    }
    moe_tree_problems_add(json->problems, MOE_TREE_SYNTAX, json->place.line, json->place.column,
                          "expected %s here, not '%s'", expected[json->expects],
                          moe_tree_problems_excerpt(excerpt, json->at, num_shown));
    stop(json);
}

static void refuse_end(struct moe_tree_json *json)
{
    if (json->depth == 0) {
        moe_tree_problems_add(json->problems, MOE_TREE_SYNTAX, json->place.line, json->place.column,
                              "the text ends where %s is expected", expected[json->expects]);
    } else {
        const struct moe_tree_place *opened = &json->opened[json->depth - 1];

        moe_tree_problems_add(json->problems, MOE_TREE_SYNTAX, json->place.line, json->place.column,
                              "the text ends before the '%c' of line %u, column %u is closed",
                              is_in_object(json) ? '{' : '[', (unsigned)opened->line,
                              (unsigned)opened->column);
    }
    stop(json);
}

static void open_collection(struct moe_tree_json *json, char bracket)
{
    queue_place(json);
    json->opened[json->depth] = json->place;
    json->is_object[json->depth] = bracket == '{';
    json->depth++;
    json->expects = bracket == '{' ? EXPECTS_KEY_OR_END : EXPECTS_ITEM_OR_END;
    hand_out(json, bracket == '{' ? "\n{" : "\n[");
    advance(json, 1);
    if (json->depth > MOE_TREE_DEPTH_CEILING) {
        json->is_finished = 1; /* the event of this bracket is refused; there is no room for more */
    }
}

static void close_collection(struct moe_tree_json *json, char bracket)
{
    int closes_object = bracket == '}';

    if (json->depth == 0 || closes_object != is_in_object(json)) {
        refuse_token(json);
        return;
    }
    if (json->expects == EXPECTS_ITEM || json->expects == EXPECTS_KEY) {
        add_problem(json, MOE_TREE_JSON_TRAILING_COMMA,
                    closes_object ? "a comma before '}' is not allowed in JSON"
                                  : "a comma before ']' is not allowed in JSON");
        stop(json);
        return;
    }
    if (json->expects == EXPECTS_VALUE || json->expects == EXPECTS_COLON) {
        refuse_token(json);
        return;
    }
    queue_place(json);
    json->depth--;
    json->expects = after_value(json);
    hand_out(json, closes_object ? "\n}" : "\n]");
    advance(json, 1);
}

static void open_string(struct moe_tree_json *json, int is_key)
{
    queue_place(json);
    json->string_start = json->place;
    json->is_in_string = 1;
    json->string_is_key = is_key;
    hand_out(json, is_key ? "\n? \"" : "\n\"");
    advance(json, 1);
}

/* A number, true, false or null: what reaches to the next space or punctuation. */
static void read_literal(struct moe_tree_json *json)
{
    static const char *const words[] = {"true", "false", "null"};
    size_t left = (size_t)(json->end - json->at);
    size_t length = 0;
    int is_integer = 0;
    int is_valid;
    char excerpt[MOE_TREE_EXCERPT_BYTES];

    while (length < left && strchr(" \t\r\n,:[]{}\"", json->at[length]) == NULL) {
        length++;
    }
    is_valid = moe_tree_text_number_bytes(json->at, length, &is_integer) == length;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        is_valid |= length == strlen(words[i]) && memcmp(json->at, words[i], length) == 0;
    }
    if (!is_valid) {
        moe_tree_problems_add(json->problems, MOE_TREE_JSON_BAD_LITERAL, json->place.line,
                              json->place.column,
                              "'%s' is not a JSON value; a string in double quotes, a decimal "
                              "number, true, false, null, '[' or '{' is",
                              moe_tree_problems_excerpt(excerpt, json->at, length));
        stop(json);
        return;
    }
    queue_place(json);
    json->expects = after_value(json);
    hand_out(json, "\n");
    json->body = json->at;
    json->body_bytes = length;
    advance(json, length);
}

static void read_key(struct moe_tree_json *json, char byte)
{
    char excerpt[MOE_TREE_EXCERPT_BYTES];
    size_t length = 0;

    if (byte == '"') {
        open_string(json, 1);
        return;
    }
    if (strchr(",:", byte) != NULL) {
        refuse_token(json);
        return;
    }
    while (json->end - json->at > (ptrdiff_t)length &&
           (length == 0 || strchr(" \t\r\n,:[]{}\"", json->at[length]) == NULL)) {
        length++;
    }
    moe_tree_problems_add(json->problems, MOE_TREE_JSON_PLAIN_KEY, json->place.line,
                          json->place.column,
                          "a key of a JSON object is a string in double quotes, not '%s'",
                          moe_tree_problems_excerpt(excerpt, json->at, length));
    stop(json);
}

static void read_value(struct moe_tree_json *json, char byte)
{
    if (byte == '"') {
        open_string(json, 0);
    } else if (byte == '[' || byte == '{') {
        open_collection(json, byte);
    } else if (byte == ',' || byte == ':') {
        refuse_token(json);
    } else {
        read_literal(json);
    }
}

static void read_separator(struct moe_tree_json *json, char byte)
{
    if (byte == ':' && json->expects == EXPECTS_COLON) {
        json->expects = EXPECTS_VALUE;
        hand_out(json, " :");
        advance(json, 1);
    } else if (byte == ',' && json->expects == EXPECTS_COMMA_OR_END) {
        json->expects = is_in_object(json) ? EXPECTS_KEY : EXPECTS_ITEM;
        hand_out(json, ",");
        advance(json, 1);
    } else {
        refuse_token(json);
    }
}

static void read_token(struct moe_tree_json *json)
{
    char byte;

    skip_space(json);
    if (json->at == json->end) {
        if (json->expects == EXPECTS_NOTHING) {
            json->is_finished = 1;
        } else {
            refuse_end(json);
        }
        return;
    }
    byte = *json->at;
    if (byte == '#' || byte == '/') {
        add_problem(json, MOE_TREE_JSON_COMMENT, "JSON has no comments");
        stop(json);
        return;
    }
    if (json->expects == EXPECTS_NOTHING) {
        add_problem(json, MOE_TREE_SEVERAL_DOCUMENTS,
                    "something follows the end of the JSON value; one value is expected");
        stop(json);
        return;
    }
    if (byte == '\'' && json->expects != EXPECTS_COLON && json->expects != EXPECTS_COMMA_OR_END) {
        add_problem(json, MOE_TREE_JSON_SINGLE_QUOTE,
                    "a JSON string is written in double quotes, not in single quotes");
        stop(json);
        return;
    }
    if (byte == ']' || byte == '}') {
        close_collection(json, byte);
        return;
    }
    switch (json->expects) {
    case EXPECTS_KEY:
    case EXPECTS_KEY_OR_END:
        read_key(json, byte);
        return;
    case EXPECTS_COLON:
    case EXPECTS_COMMA_OR_END:
        read_separator(json, byte);
        return;
    default:
        read_value(json, byte);
        return;
    }
}

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
    hand_out(json, "\\\\");
    advance(json, 1);
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
        add_problem(json, MOE_TREE_JSON_BAD_ESCAPE, "the escape \\u takes four hexadecimal digits");
        keep_backslash(json);
        return;
    }
    if (first == 0) {
        add_problem(json, MOE_TREE_NUL_INSIDE, "a string with the character U+0000");
        keep_backslash(json);
        return;
    }
    if (first < 0xD800 || first > 0xDFFF) {
        hand_out_character(json, (uint32_t)first);
        advance(json, 6);
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
    advance(json, 12);
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
    advance(json, 2);
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
    stop(json);
}

/* One piece of a string: bytes that stay as they are, an escape, or the end. */
static void read_string(struct moe_tree_json *json)
{
    size_t run_bytes = measure_run(json);
    uint32_t character = 0;
    size_t length;

    if (run_bytes > 0) {
        json->body = json->at;
        json->body_bytes = run_bytes;
        advance(json, run_bytes);
        return;
    }
    if (json->at == json->end) {
        refuse_string_end(json, "the text ends");
        return;
    }
    if (*json->at == '"') {
        hand_out(json, "\"");
        advance(json, 1);
        json->is_in_string = 0;
        json->expects = json->string_is_key ? EXPECTS_COLON : after_value(json);
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
    advance(json, length);
}

/* Copies out what is ready; returns the bytes copied. */
static size_t copy_ready(struct moe_tree_json *json, unsigned char *buffer, size_t room)
{
    size_t head_left = json->head_bytes - json->head_at;
    size_t from_head = head_left < room ? head_left : room;
    size_t from_body = 0;

    memcpy(buffer, json->head + json->head_at, from_head);
    json->head_at += from_head;
    if (from_head == head_left && json->body_bytes > 0) {
        from_body = json->body_bytes < room - from_head ? json->body_bytes : room - from_head;
        memcpy(buffer + from_head, json->body, from_body);
        json->body += from_body;
        json->body_bytes -= from_body;
    }
    return from_head + from_body;
}

int moe_tree_json_read(void *self, unsigned char *buffer, size_t buffer_bytes, size_t *read_bytes)
{
    struct moe_tree_json *json = self;
    size_t filled = 0;

    for (;;) {
        filled += copy_ready(json, buffer + filled, buffer_bytes - filled);
        if (filled == buffer_bytes || json->is_finished ||
            moe_tree_problems_must_stop(json->problems)) {
            break;
        }
        if (json->is_in_string) {
            read_string(json);
        } else if (json->num_queued - json->num_taken < MOE_TREE_JSON_QUEUE_TOKENS) {
            read_token(json);
        } else {
            break;
        }
    }
    *read_bytes = filled;
    return 1;
}
