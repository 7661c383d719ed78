/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter between JSON text and libyaml.
 *
 * Most JSON is YAML, but not all of it, and much that libyaml takes is not JSON. The filter reads
 * JSON strictly and hands libyaml the same tokens in a form that it reads without loss:
 *   - each token on a line of its own, so that libyaml never holds tokens back in case a `:`
 *     follows, and each key as an explicit `? "key"`, which has no limit of 1024 characters;
 *   - escapes, and characters that libyaml refuses or takes for line breaks, as \UXXXXXXXX, with
 *     surrogate pairs joined.
 * libyaml's places are then those of the rewritten text, so the filter keeps the place of each
 * token in a queue: events come in the order of tokens, one for each string, literal and bracket.
 *
 * Text flows through in pieces: the filter needs no memory but its own structure.
 */
#ifndef MOE_TREE_JSON_H
#define MOE_TREE_JSON_H

#include "tree_problems.h"

/* Collections that can be open at once, for both syntaxes: libyaml visits all for each token. */
enum { MOE_TREE_DEPTH_CEILING = 512 };

/* Tokens that libyaml has been given and has made no event of; it needs a few. */
enum { MOE_TREE_JSON_QUEUE_TOKENS = 256 };

struct moe_tree_place {
    uint32_t line;
    uint32_t column;
};

struct moe_tree_json {
    const char *at; /* what is left of the text */
    const char *end;
    struct moe_tree_place place;
    struct moe_tree_problems *problems;

    int expects;      /* what may come next; a constant of tree_json.c */
    int is_in_string; /* between quotes; `string_is_key` then says which string */
    int string_is_key;
    int is_finished; /* nothing more is handed out: the end, a problem, or depth */
    int is_broken;   /* a problem ended the text early */
    uint32_t depth;
    unsigned char is_object[MOE_TREE_DEPTH_CEILING + 1];
    struct moe_tree_place opened[MOE_TREE_DEPTH_CEILING + 1];
    struct moe_tree_place string_start;

    char head[16]; /* handed out next, then `body` */
    size_t head_bytes;
    size_t head_at;
    const char *body; /* lies in the text */
    size_t body_bytes;

    struct moe_tree_place queue[MOE_TREE_JSON_QUEUE_TOKENS];
    uint32_t num_queued; /* ever; the ring holds those from num_taken on */
    uint32_t num_taken;
};

/* Starts on a text that `moe_tree_text_check` has passed. Problems are added as they are found. */
void moe_tree_json_init(struct moe_tree_json *json, const char *text, size_t text_bytes,
                        struct moe_tree_problems *problems);

/* libyaml's read handler; `self` is a struct moe_tree_json. */
int moe_tree_json_read(void *self, unsigned char *buffer, size_t buffer_bytes, size_t *read_bytes);

/* The place of the next token. Called once for each event that has a token. */
struct moe_tree_place moe_tree_json_take_place(struct moe_tree_json *json);

/*
 * Between tree_json.c and tree_json_string.c.
 *
 * read_string hands out one piece of a string: bytes that stay as they are, an escape, or the end,
 * which clears `is_in_string`. report adds a problem at the present place. stop ends the text after
 * a problem that leaves no way to read on. advance steps over bytes of one line. hand_out sets
 * `head`, a C string of at most 15 bytes.
 */
void moe_tree_json_read_string(struct moe_tree_json *json);
void moe_tree_json_report(struct moe_tree_json *json, int32_t code, const char *sentence);
void moe_tree_json_stop(struct moe_tree_json *json);
void moe_tree_json_advance(struct moe_tree_json *json, size_t num_bytes);
void moe_tree_json_hand_out(struct moe_tree_json *json, const char *head);

#endif
