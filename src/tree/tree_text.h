/* SPDX-License-Identifier: Apache-2.0 */
/* What is checked on the characters of a text before anything parses it, and JSON's number form. */
#ifndef MOE_TREE_TEXT_H
#define MOE_TREE_TEXT_H

#include "tree_problems.h"

/*
 * Checks that the text is UTF-8 without NUL bytes. In YAML also that it has no character that
 * libyaml refuses (its own message has no place) and no `%TAG` line (libyaml compares each with
 * all before it, so that a file of nothing else would take minutes).
 * Adds the first problem and returns -1, or returns 0.
 */
int moe_tree_text_check(const char *text, size_t text_bytes, int syntax,
                        struct moe_tree_problems *problems);

/*
 * Decodes the UTF-8 sequence at the start of `text`, of at most `text_bytes` (> 0) bytes. Returns
 * its length from 1 to 4, or 0 if it is not valid UTF-8 (overlong, surrogate, cut, above U+10FFFF).
 */
size_t moe_tree_text_decode(const unsigned char *text, size_t text_bytes, uint32_t *character);

/*
 * 1 if libyaml refuses the character, or reads it as a line break or mark, though UTF-8 text may
 * have it. Line feed, carriage return and tab are not such.
 */
int moe_tree_text_is_special(uint32_t character);

/*
 * The length of the number, as JSON writes numbers, at the start of `text`; 0 if there is none.
 * `*is_integer` says whether it has neither a fraction nor an exponent.
 */
size_t moe_tree_text_number_bytes(const char *text, size_t text_bytes, int *is_integer);

#endif
