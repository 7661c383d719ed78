/* SPDX-License-Identifier: Apache-2.0 */
/* Findings in a configuration: their codes, and how they reach the host. */
#ifndef MOE_CONFIG_REPORT_H
#define MOE_CONFIG_REPORT_H

#include "moe_plugin.h"
#include "tree.h"

#include <stddef.h>

/*
 * Codes of findings, besides those of the YAML reader (MOE_TREE_CODES). Stable: never renamed,
 * never reused. X(NAME, code, meaning)
 */
#define MOE_CONFIG_CODES(X)                                                              \
    X(IO, "io", "a file cannot be read")                                                 \
    X(ENVIRONMENT, "environment", "MOE_PLUGIN_CONFIG is not a list of files")            \
    X(SCHEMA, "schema", "the schema is missing or is not one that this plugin reads")    \
    X(UNKNOWN_KEY, "unknown-key", "a key that does not exist here")                      \
    X(MISSING_KEY, "missing-key", "a key that is required here")                         \
    X(TYPE, "type", "a value of a form that the key does not take")                      \
    X(VALUE, "value", "a name that is not one of the valid ones")                        \
    X(RANGE, "range", "a number outside the valid range, or a range without numbers")    \
    X(DUPLICATE_ITEM, "duplicate-item", "the same value twice in a list")                \
    X(BUCKET_ORDER, "bucket-order", "max_tokens is not above that of the bucket before") \
    X(BLOCK_SIZE_M, "block-size-m", "gemm2 changes the BLOCK_SIZE_M of gemm1")           \
    X(UNKNOWN_TILE, "unknown-tile", "no row of kernels/tiles.def has these numbers")     \
    X(UNAVAILABLE_TILE, "unavailable-tile", "this build or device lacks the tile")       \
    X(OVERLAP, "overlap", "two rules of one layer match the same and cover the same tokens")

enum {
#define MOE_CONFIG_CODE_CONSTANT(name, code, meaning) MOE_CONFIG_CODE_##name,
    MOE_CONFIG_CODES(MOE_CONFIG_CODE_CONSTANT)
#undef MOE_CONFIG_CODE_CONSTANT
        MOE_NUM_CONFIG_CODES
};

/* The stable name of a MOE_CONFIG_CODE_*. */
const char *moe_config_report_code(int32_t code);

/* Where findings go, and the text that they are about. */
struct moe_config_report {
    moe_diagnostic_fn *diagnostic; /* NULL: findings are counted only */
    void *diagnostic_self;
    struct moe_error *error; /* gets the first error */
    const char *file;        /* name of the text under way */
    const char *text;        /* NULL: none */
    size_t text_bytes;
    int32_t status; /* of the first error: CONFIG, IO or OUT_OF_MEMORY; OK: there was none */
    int32_t native; /* errno of the next finding, which takes it */
};

/* Report one finding of `level`. `line` 0: about the whole text. */
void moe_config_report_add(struct moe_config_report *report, int32_t level, const char *code,
                           uint32_t line, uint32_t column, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* An error at `node` with a MOE_CONFIG_CODE_*. */
#define moe_config_report_error(report, node, code, ...)                                         \
    moe_config_report_add((report), MOE_LEVEL_ERROR, moe_config_report_code(code), (node)->line, \
                          (node)->column, __VA_ARGS__)

/* A short sentence part, built piece by piece; what does not fit is cut and shown by "...". */
struct moe_words {
    size_t num_bytes;
    char text[480];
};
void moe_words_add(struct moe_words *words, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * Append a node as a user can recognize it: a scalar in quotes, cut when long and without control
 * characters, or "a list of 2", "an empty mapping", "nothing".
 */
void moe_words_add_node(struct moe_words *words, const struct moe_tree_node *node);

/* Append names, comma-separated: name(self, 0), name(self, 1), ... until NULL. */
typedef const char *moe_name_fn(const void *self, int32_t position);
void moe_words_add_names(struct moe_words *words, moe_name_fn *name, const void *self);

/*
 * Append `; did you mean "x"?` when one of the names is at most two typing errors
 * (Damerau-Levenshtein, with at most half of its letters wrong) away from `text`; the nearest, the
 * first of equals.
 */
void moe_words_add_suggestion(struct moe_words *words, const char *text, moe_name_fn *name,
                              const void *self);

#endif
