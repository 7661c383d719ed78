/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_json.h"
#include "tree_text.h"

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

void moe_tree_json_stop(struct moe_tree_json *json)
{
    json->is_finished = 1;
    json->is_broken = 1;
}

void moe_tree_json_advance(struct moe_tree_json *json, size_t num_bytes)
{
    for (size_t i = 0; i < num_bytes; i++) {
        json->place.column += ((unsigned char)json->at[i] & 0xC0) != 0x80;
    }
    json->at += num_bytes;
}

void moe_tree_json_hand_out(struct moe_tree_json *json, const char *head)
{
    json->head_bytes = strlen(head);
    json->head_at = 0;
    memcpy(json->head, head, json->head_bytes);
}

void moe_tree_json_report(struct moe_tree_json *json, int32_t code, const char *sentence)
{
    moe_tree_problems_add(json->problems, code, json->place.line, json->place.column, "%s",
                          sentence);
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
    moe_tree_json_stop(json);
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
    moe_tree_json_stop(json);
}

static void open_collection(struct moe_tree_json *json, char bracket)
{
    queue_place(json);
    json->opened[json->depth] = json->place;
    json->is_object[json->depth] = bracket == '{';
    json->depth++;
    json->expects = bracket == '{' ? EXPECTS_KEY_OR_END : EXPECTS_ITEM_OR_END;
    moe_tree_json_hand_out(json, bracket == '{' ? "\n{" : "\n[");
    moe_tree_json_advance(json, 1);
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
        moe_tree_json_report(json, MOE_TREE_JSON_TRAILING_COMMA,
                             closes_object ? "a comma before '}' is not allowed in JSON"
                                           : "a comma before ']' is not allowed in JSON");
        moe_tree_json_stop(json);
        return;
    }
    if (json->expects == EXPECTS_VALUE || json->expects == EXPECTS_COLON) {
        refuse_token(json);
        return;
    }
    queue_place(json);
    json->depth--;
    json->expects = after_value(json);
    moe_tree_json_hand_out(json, closes_object ? "\n}" : "\n]");
    moe_tree_json_advance(json, 1);
}

static void open_string(struct moe_tree_json *json, int is_key)
{
    queue_place(json);
    json->string_start = json->place;
    json->is_in_string = 1;
    json->string_is_key = is_key;
    moe_tree_json_hand_out(json, is_key ? "\n? \"" : "\n\"");
    moe_tree_json_advance(json, 1);
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
        moe_tree_json_stop(json);
        return;
    }
    queue_place(json);
    json->expects = after_value(json);
    moe_tree_json_hand_out(json, "\n");
    json->body = json->at;
    json->body_bytes = length;
    moe_tree_json_advance(json, length);
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
    moe_tree_json_stop(json);
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
        moe_tree_json_hand_out(json, " :");
        moe_tree_json_advance(json, 1);
    } else if (byte == ',' && json->expects == EXPECTS_COMMA_OR_END) {
        json->expects = is_in_object(json) ? EXPECTS_KEY : EXPECTS_ITEM;
        moe_tree_json_hand_out(json, ",");
        moe_tree_json_advance(json, 1);
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
        moe_tree_json_report(json, MOE_TREE_JSON_COMMENT, "JSON has no comments");
        moe_tree_json_stop(json);
        return;
    }
    if (json->expects == EXPECTS_NOTHING) {
        moe_tree_json_report(json, MOE_TREE_SEVERAL_DOCUMENTS,
                             "something follows the end of the JSON value; one value is expected");
        moe_tree_json_stop(json);
        return;
    }
    if (byte == '\'' && json->expects != EXPECTS_COLON && json->expects != EXPECTS_COMMA_OR_END) {
        moe_tree_json_report(json, MOE_TREE_JSON_SINGLE_QUOTE,
                             "a JSON string is written in double quotes, not in single quotes");
        moe_tree_json_stop(json);
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
            moe_tree_json_read_string(json);
            if (!json->is_in_string) {
                json->expects = json->string_is_key ? EXPECTS_COLON : after_value(json);
            }
        } else if (json->num_queued - json->num_taken < MOE_TREE_JSON_QUEUE_TOKENS) {
            read_token(json);
        } else {
            break;
        }
    }
    *read_bytes = filled;
    return 1;
}
