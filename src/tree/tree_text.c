/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_text.h"

#include <string.h>

enum { NEXT_LINE = 0x85, LINE_SEPARATOR = 0x2028, PARAGRAPH_SEPARATOR = 0x2029 };

size_t moe_tree_text_decode(const unsigned char *text, size_t text_bytes, uint32_t *character)
{
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = text[0];
    uint32_t value;
    size_t length;

    if (first < 0x80) {
        *character = first;
        return 1;
    }
    if ((first & 0xE0) == 0xC0) {
        length = 2;
        value = first & 0x1Fu;
    } else if ((first & 0xF0) == 0xE0) {
        length = 3;
        value = first & 0x0Fu;
    } else if ((first & 0xF8) == 0xF0) {
        length = 4;
        value = first & 0x07u;
    } else {
        return 0;
    }
    if (length > text_bytes) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (text[i] & 0x3Fu);
    }
    if (value < smallest[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
        return 0;
    }
    *character = value;
    return length;
}

int moe_tree_text_is_special(uint32_t character)
{
    if (character < 0x20) {
        return character != '\t' && character != '\n' && character != '\r';
    }
    return (character >= 0x7F && character < 0xA0) || character == LINE_SEPARATOR ||
           character == PARAGRAPH_SEPARATOR || character == 0xFEFF || character == 0xFFFE ||
           character == 0xFFFF;
}

static int is_yaml_break(uint32_t character)
{
    return character == '\n' || character == '\r' || character == NEXT_LINE ||
           character == LINE_SEPARATOR || character == PARAGRAPH_SEPARATOR;
}

static int starts_tag_directive(const char *text, size_t text_bytes)
{
    return text_bytes >= 5 && memcmp(text, "%TAG", 4) == 0 && (text[4] == ' ' || text[4] == '\t');
}

/* Checks one character of a YAML text. */
static int check_yaml_character(uint32_t character, uint32_t line, uint32_t column,
                                const char *text, size_t text_bytes,
                                struct moe_tree_problems *problems)
{
    if (moe_tree_text_is_special(character) && !is_yaml_break(character)) {
        moe_tree_problems_add(problems, MOE_TREE_CONTROL_CHARACTER, line, column,
                              "the character U+%04X is not allowed in YAML; in a string in double "
                              "quotes it can be written \\u%04X",
                              character, character);
        return -1;
    }
    if (column == 1 && character == '%' && starts_tag_directive(text, text_bytes)) {
        moe_tree_problems_add(problems, MOE_TREE_DIRECTIVE, line, column,
                              "a %%TAG directive is not supported, since tags are not");
        return -1;
    }
    return 0;
}

int moe_tree_text_check(const char *text, size_t text_bytes, int syntax,
                        struct moe_tree_problems *problems)
{
    size_t at = 0;
    uint32_t line = 1;
    uint32_t column = 1;

    while (at < text_bytes) {
        uint32_t character = 0;
        size_t length =
            moe_tree_text_decode((const unsigned char *)text + at, text_bytes - at, &character);

        if (length == 0) {
            moe_tree_problems_add(problems, MOE_TREE_NOT_UTF8, line, column,
                                  "the byte 0x%02X at offset %zu is not part of valid UTF-8",
                                  (unsigned)(unsigned char)text[at], at);
            return -1;
        }
        if (character == 0) {
            moe_tree_problems_add(problems, MOE_TREE_NUL_INSIDE, line, column,
                                  "a NUL byte at offset %zu: this is not a text file", at);
            return -1;
        }
        if (syntax == MOE_TREE_YAML && check_yaml_character(character, line, column, text + at,
                                                            text_bytes - at, problems) != 0) {
            return -1;
        }
        at += length;
        if (character == '\r' && at < text_bytes && text[at] == '\n') {
            continue; /* the line ends with the line feed */
        }
        if (syntax == MOE_TREE_YAML ? is_yaml_break(character)
                                    : character == '\n' || character == '\r') {
            line++;
            column = 1;
        } else {
            column++;
        }
    }
    return 0;
}

static size_t count_digits(const char *text, size_t text_bytes)
{
    size_t count = 0;

    while (count < text_bytes && text[count] >= '0' && text[count] <= '9') {
        count++;
    }
    return count;
}

size_t moe_tree_text_number_bytes(const char *text, size_t text_bytes, int *is_integer)
{
    size_t at = text_bytes > 0 && text[0] == '-' ? 1 : 0;
    size_t num_digits = count_digits(text + at, text_bytes - at);

    *is_integer = 1;
    if (num_digits == 0 || (num_digits > 1 && text[at] == '0')) {
        return 0;
    }
    at += num_digits;
    if (at < text_bytes && text[at] == '.') {
        num_digits = count_digits(text + at + 1, text_bytes - at - 1);
        if (num_digits == 0) {
            return 0;
        }
        at += 1 + num_digits;
        *is_integer = 0;
    }
    if (at < text_bytes && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        if (at < text_bytes && (text[at] == '+' || text[at] == '-')) {
            at++;
        }
        num_digits = count_digits(text + at, text_bytes - at);
        if (num_digits == 0) {
            return 0;
        }
        at += num_digits;
        *is_integer = 0;
    }
    return at;
}
