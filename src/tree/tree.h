/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads YAML or JSON text into an immutable tree of nodes, each with its place in the text.
 *
 * A leaf library: it knows nothing of the plugin and includes nothing of ours. Text is parsed by
 * libyaml's event parser. JSON goes through the same parser behind a strict filter, so one place
 * checks depth, size, duplicate keys and memory for both.
 *
 * Scalars stay text: what a scalar means is decided by whoever asks for it (`moe_tree_to_*`), so
 * YAML's implicit types (`no`, `1:30`, `0o7`) never apply.
 *
 * No function reads the locale, the environment or a file, or keeps anything between calls.
 */
#ifndef MOE_TREE_H
#define MOE_TREE_H

#include <stddef.h>
#include <stdint.h>

/* Kinds of a node. */
enum { MOE_NODE_SCALAR = 1, MOE_NODE_SEQUENCE = 2, MOE_NODE_MAPPING = 3 };

/* Syntaxes that `moe_tree_parse` reads. */
enum { MOE_TREE_YAML = 1, MOE_TREE_JSON = 2 };

/*
 * Every problem that is reported: X(NAME, number, name). Numbers and names are stable: they are
 * never reused, and new ones are added at the end.
 */
#define MOE_TREE_CODES(X)                                                                          \
    X(OUT_OF_MEMORY, 1, "out-of-memory")         /* the allocator returned NULL */                 \
    X(TOO_LARGE, 2, "too-large")                 /* more bytes or nodes than the limits allow */   \
    X(TOO_DEEP, 3, "too-deep")                   /* more open collections than the limits allow */ \
    X(TOO_MANY_ERRORS, 4, "too-many-errors")     /* the rest of the problems is not listed */      \
    X(NOT_UTF8, 5, "not-utf8")                   /* a byte sequence that is not UTF-8 */           \
    X(NUL_INSIDE, 6, "nul-inside")               /* a NUL byte, or an escape that makes one */     \
    X(CONTROL_CHARACTER, 7, "control-character") /* a character that must be escaped */            \
    X(SYNTAX, 8, "syntax")                       /* the text breaks the grammar */                 \
    X(SEVERAL_DOCUMENTS, 9, "several-documents") /* something follows the first document */        \
    X(DUPLICATE_KEY, 10, "duplicate-key")        /* a mapping has the same key twice */            \
    X(KEY_NOT_SCALAR, 11, "key-not-scalar")      /* YAML: a sequence or mapping as a key */        \
    X(ANCHOR, 12, "anchor")                      /* YAML: `&name` */                               \
    X(ALIAS, 13, "alias")                        /* YAML: `*name` */                               \
    X(TAG, 14, "tag")                            /* YAML: `!name` */                               \
    X(DIRECTIVE, 15, "directive")                /* YAML: `%TAG` */                                \
    X(JSON_PLAIN_KEY, 16, "json-plain-key")      /* JSON: a key without double quotes */           \
    X(JSON_COMMENT, 17, "json-comment")          /* JSON: a comment */                             \
    X(JSON_BAD_LITERAL, 18, "json-bad-literal")  /* JSON: no string, number, true, false, null */  \
    X(JSON_BAD_ESCAPE, 19, "json-bad-escape")    /* JSON: an escape that JSON does not have */     \
    X(JSON_BAD_SURROGATE, 20, "json-bad-surrogate")   /* JSON: half of a surrogate pair */         \
    X(JSON_SINGLE_QUOTE, 21, "json-single-quote")     /* JSON: a string in single quotes */        \
    X(JSON_TRAILING_COMMA, 22, "json-trailing-comma") /* JSON: a comma before `]` or `}` */

enum {
#define MOE_TREE_CODE_CONSTANT(name, number, text) MOE_TREE_##name = (number),
    MOE_TREE_CODES(MOE_TREE_CODE_CONSTANT)
#undef MOE_TREE_CODE_CONSTANT
};

/*
 * One node. All pointers stay valid until the tree is destroyed. Lines and columns count from 1;
 * a column is a number of Unicode characters, a byte order mark not counted.
 */
struct moe_tree_node {
    int32_t kind;   /* MOE_NODE_* */
    int32_t quoted; /* scalar: 1 if it was written in quotes (JSON: a string) or, in YAML, as a
                             block (`|`, `>`); such a scalar is never a number, a boolean or null */
    uint32_t line;  /* where the node starts */
    uint32_t column;
    const char *text;    /* scalar: UTF-8, ends with a NUL, has none inside; else NULL */
    size_t text_bytes;   /* scalar: without the final NUL */
    size_t num_children; /* sequence: items; mapping: pairs */
    const struct moe_tree_node *children; /* sequence: items; mapping: values, in file order */
    const struct moe_tree_node *keys;     /* mapping: keys[i] belongs to children[i]; all scalars */
    const uint32_t *key_order;            /* mapping: positions in `keys`, sorted by text (for
                                             moe_tree_find) */
};

/*
 * Where the memory of a tree comes from. `alloc` gives `bytes` bytes at a multiple of `align` (a
 * power of two, at most 16), or NULL; `release` gets back the same numbers. libyaml's own buffers
 * (about 100 KiB and the longest scalar, freed before `moe_tree_parse` returns) come from malloc.
 */
struct moe_tree_memory {
    void *self;
    void *(*alloc)(void *self, uint64_t bytes, uint64_t align);
    void (*release)(void *self, void *memory, uint64_t bytes, uint64_t align);
};

/* What a text may take. A text beyond a limit is an error, found before the memory is spent. */
struct moe_tree_limits {
    size_t max_bytes;   /* of text; above 2 GiB - 1 counts as that */
    uint32_t max_depth; /* open collections, the root included; above 512 counts as that */
    size_t max_nodes;   /* scalars, keys, sequences and mappings together */
};

/* Limits for a configuration file, a safetensors header, and a safetensors index. */
#define MOE_TREE_LIMITS_CONFIG      ((struct moe_tree_limits){1 << 20, 64, 1 << 18})
#define MOE_TREE_LIMITS_JSON_HEADER ((struct moe_tree_limits){100000000, 64, 1 << 24})
#define MOE_TREE_LIMITS_JSON_INDEX  ((struct moe_tree_limits){64 << 20, 64, 1 << 22})

/* One problem. `message` is one sentence without a final stop, valid during the callback only. */
struct moe_tree_diagnostic {
    int32_t code; /* MOE_TREE_* */
    uint32_t line;
    uint32_t column;
    const char *message;
};

struct moe_tree;

/*
 * Parses one document of `text_bytes` bytes of UTF-8 (NULL is allowed for 0 bytes; a byte order
 * mark at the start is skipped). The text is not kept.
 *
 * YAML: anchors, aliases, tags, `%TAG`, several documents and duplicate keys are refused, keys are
 * scalars, and `<<` is a key like any other. An empty document is an empty mapping.
 * JSON: RFC 8259 and nothing more, except that a key may not appear twice in an object and that
 * `\u0000` is refused (a text is also a C string).
 *
 * `limits` NULL means MOE_TREE_LIMITS_CONFIG; `memory` NULL means malloc and free, else it is
 * copied and must stay usable until the tree is destroyed. `report`, if not NULL, gets each problem
 * in the order of the text, on the calling thread, before this function returns.
 *
 * Returns the tree, which the caller destroys, or NULL if any problem was reported. All problems
 * are reported (up to 1000), except that nothing after a break of the grammar is read.
 * Calls on different threads are independent.
 */
struct moe_tree *moe_tree_parse(
    const char *text, size_t text_bytes, int syntax, const struct moe_tree_limits *limits,
    const struct moe_tree_memory *memory,
    void (*report)(void *self, const struct moe_tree_diagnostic *diagnostic), void *report_self);

/* Frees a tree and all its nodes. NULL is allowed. */
void moe_tree_destroy(struct moe_tree *tree);

/* The node of the document; never NULL. Any number of threads may read a tree. */
const struct moe_tree_node *moe_tree_root(const struct moe_tree *tree);

/*
 * The value of `key`, a C string, in a mapping, or NULL if it has no such key or `mapping` is NULL
 * or not a mapping. Takes time in the logarithm of the number of keys.
 */
const struct moe_tree_node *moe_tree_find(const struct moe_tree_node *mapping, const char *key);

/*
 * The number of a plain scalar: an optional minus and decimal digits without leading zeros, from
 * `min` to `max`. Returns 0, or -1 and leaves `*out` alone for anything else (NULL node included).
 */
int moe_tree_to_int64(const struct moe_tree_node *node, int64_t min, int64_t max, int64_t *out);

/*
 * The number of a plain scalar written as JSON writes numbers (`-1`, `0.5`, `1e-6`), rounded to
 * nearest even. Returns 0, or -1 and leaves `*out` alone for anything else, for a number beyond
 * the finite range of a double, and for one that is not zero but would round to zero.
 */
int moe_tree_to_double(const struct moe_tree_node *node, double *out);

/* 1 or 0 for a plain `true` or `false`. Returns 0, or -1 and leaves `*out` alone. */
int moe_tree_to_bool(const struct moe_tree_node *node, int *out);

/* 1 if the node is a plain scalar `null` or, as YAML also writes it, `~` or nothing; else 0. */
int moe_tree_is_null(const struct moe_tree_node *node);

/* 1 if the node is a scalar, quoted or not, whose text is the C string `text`; else 0. */
int moe_tree_is_text(const struct moe_tree_node *node, const char *text);

/* The name of a code, such as "duplicate-key"; NULL for a number that is not a code. */
const char *moe_tree_code_name(int32_t code);

#endif
