/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a bucket: max_tokens, and per operation a kernel and numbers that some row of tiles.def
 * has.
 */
#include "config_parse.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TILE_NUMBER 65536
#define MAX_NEAREST     3

static const char max_tokens_key[] = "max_tokens";
static const char kernel_key[] = "kernel";

/* Keys of a bucket: max_tokens, then the operations that have tiles. */
static const char *bucket_key_name(const void *self, int32_t position)
{
    (void)self;
    if (position == 0) {
        return max_tokens_key;
    }
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        position -= moe_tiles_op_has_tiles(op) ? 1 : 0;
        if (position == 0) {
            return moe_tiles_op_name(op);
        }
    }
    return NULL;
}

static bool op_takes_key(int32_t op, int32_t tile_key)
{
    return moe_tile_keys[tile_key].gemm == (moe_tiles_row_op(op) == MOE_OP_GEMM1);
}

/* Keys of an operation: kernel, then its numbers. */
static const char *op_key_name(const void *self, int32_t position)
{
    const int32_t *op = self;
    if (position == 0) {
        return kernel_key;
    }
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        position -= op_takes_key(*op, key) ? 1 : 0;
        if (position == 0) {
            return moe_tile_keys[key].name;
        }
    }
    return NULL;
}

static int32_t find_tile_key(int32_t op, const char *name)
{
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if (op_takes_key(op, key) && strcmp(moe_tile_keys[key].name, name) == 0) {
            return key;
        }
    }
    return -1;
}

/* Kernels that have a row for the operation, each once. */
static const char *kernel_name(const void *self, int32_t position)
{
    const int32_t *op = self;
    for (int32_t kernel = 0; kernel < MOE_NUM_KERNELS; kernel++) {
        for (int32_t tile = 0; tile < MOE_NUM_TILES; tile++) {
            if (moe_tiles[tile].kernel != kernel || !moe_tiles_runs(&moe_tiles[tile], *op)) {
                continue;
            }
            if (position == 0) {
                return moe_kernels[kernel].name;
            }
            position--;
            break;
        }
    }
    return NULL;
}

static bool read_kernel(struct moe_config_parse *parse, const struct moe_tree_node *node,
                        int32_t op, struct moe_rule_op *out)
{
    if (!moe_config_parse_expect(parse, node, MOE_NODE_SCALAR, kernel_key,
                                 "the name of a kernel")) {
        return false;
    }
    const char *name;
    for (int32_t i = 0; (name = kernel_name(&op, i)) != NULL; i++) {
        if (strcmp(name, node->text) != 0) {
            continue;
        }
        for (int32_t kernel = 0; kernel < MOE_NUM_KERNELS; kernel++) {
            if (strcmp(moe_kernels[kernel].name, name) == 0) {
                out->kernel = kernel;
            }
        }
        return true;
    }
    struct moe_words words = {0, ""};
    moe_words_add(&words, "%s has no kernel ", moe_tiles_op_name(op));
    moe_words_add_node(&words, node);
    moe_words_add(&words, "; valid: ");
    moe_words_add_names(&words, kernel_name, &op);
    moe_words_add_suggestion(&words, node->text, kernel_name, &op);
    moe_config_report_error(parse->report, node, MOE_CONFIG_CODE_UNKNOWN_TILE, "%s", words.text);
    return false;
}

/*
 * How far a tile is from what was asked: factors of two between numbers; another kernel counts
 * most.
 */
static int64_t distance(const struct moe_rule_op *asked, const struct moe_tile *tile)
{
    int64_t sum = asked->kernel >= 0 && asked->kernel != tile->kernel ? 1000000 : 0;
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if ((asked->given & (1u << key)) == 0) {
            continue;
        }
        int64_t a = asked->numbers[key];
        int64_t b = moe_tile_key_value(tile, key);
        int64_t larger = a > b ? a : b;
        int64_t smaller = a > b ? b : a;
        sum += smaller > 0 ? 100 * (larger - smaller) / smaller : 100000;
    }
    return sum;
}

static void add_nearest(struct moe_words *words, const struct moe_rule_op *asked, int32_t op)
{
    int64_t after = -1; /* distance and row of the one named last */
    int32_t after_tile = -1;
    for (int32_t named = 0; named < MAX_NEAREST; named++) {
        int32_t best = -1;
        int64_t best_distance = 0;
        for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
            if (!moe_tiles_runs(&moe_tiles[i], op)) {
                continue;
            }
            int64_t d = distance(asked, &moe_tiles[i]);
            bool is_next = d > after || (d == after && i > after_tile);
            if (is_next && (best < 0 || d < best_distance)) {
                best = i;
                best_distance = d;
            }
        }
        if (best < 0) {
            return;
        }
        moe_words_add(words, "%s%s", named == 0 ? "; nearest: " : "; ", moe_tiles[best].name);
        after = best_distance;
        after_tile = best;
    }
}

static void add_asked(struct moe_words *words, const struct moe_rule_op *asked)
{
    const char *separator = "";
    if (asked->kernel >= 0) {
        moe_words_add(words, "%s", moe_kernels[asked->kernel].name);
        separator = " ";
    }
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if ((asked->given & (1u << key)) != 0) {
            moe_words_add(words, "%s%s %d", separator, moe_tile_keys[key].name,
                          asked->numbers[key]);
            separator = " ";
        }
    }
}

static bool check_rows(struct moe_config_parse *parse, const struct moe_rule_op *asked, int32_t op)
{
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        if (moe_rule_allows(asked, op, &moe_tiles[i])) {
            return true;
        }
    }
    struct moe_words words = {0, ""};
    moe_words_add(&words, "%s has no tile ", moe_tiles_op_name(op));
    add_asked(&words, asked);
    add_nearest(&words, asked, op);
    moe_config_report_add(parse->report, MOE_LEVEL_ERROR,
                          moe_config_report_code(MOE_CONFIG_CODE_UNKNOWN_TILE), asked->line,
                          asked->column, "%s", words.text);
    return false;
}

static bool read_op_key(struct moe_config_parse *parse, const struct moe_tree_node *key,
                        const struct moe_tree_node *value, int32_t op, struct moe_rule_op *out)
{
    if (strcmp(key->text, kernel_key) == 0) {
        return read_kernel(parse, value, op, out);
    }
    int32_t tile_key = find_tile_key(op, key->text);
    if (tile_key < 0) {
        moe_config_parse_unknown_key(parse, key, moe_tiles_op_name(op), op_key_name, &op);
        return false;
    }
    int64_t number;
    if (!moe_config_parse_integer(parse, value, key->text, 1, MAX_TILE_NUMBER, "", &number)) {
        return false;
    }
    out->numbers[tile_key] = (int32_t)number;
    out->given |= 1u << tile_key;
    return true;
}

/* gemm2 takes over what gemm1 says and it does not. */
static bool inherit(struct moe_config_parse *parse, const struct moe_rule_op *from,
                    const struct moe_tree_node *node, struct moe_rule_op *out)
{
    const uint32_t block_m = 1u << MOE_TILE_KEY_BLOCK_SIZE_M;
    int32_t wanted = from->numbers[MOE_TILE_KEY_BLOCK_SIZE_M];
    if ((from->given & out->given & block_m) != 0 &&
        out->numbers[MOE_TILE_KEY_BLOCK_SIZE_M] != wanted) {
        const char *name = moe_tile_keys[MOE_TILE_KEY_BLOCK_SIZE_M].name;
        moe_config_report_error(
            parse->report, moe_tree_find(node, name), MOE_CONFIG_CODE_BLOCK_SIZE_M,
            "gemm2 has %s %d, gemm1 has %d; one sorting of the routes serves both; valid: %d", name,
            out->numbers[MOE_TILE_KEY_BLOCK_SIZE_M], wanted, wanted);
        return false;
    }
    if (out->kernel < 0) {
        out->kernel = from->kernel;
    }
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if ((from->given & ~out->given & (1u << key)) != 0) {
            out->numbers[key] = from->numbers[key];
        }
    }
    out->given |= from->given;
    return true;
}

/* `from` is gemm1 of the bucket when `op` is gemm2, else NULL. */
static bool read_op(struct moe_config_parse *parse, const struct moe_tree_node *node, int32_t op,
                    const struct moe_rule_op *from, struct moe_rule_op *out)
{
    const char *name = moe_tiles_op_name(op);
    if (!moe_config_parse_expect(parse, node, MOE_NODE_MAPPING, name,
                                 "a mapping of kernel and its numbers")) {
        return false;
    }
    out->kernel = -1;
    out->line = node->line;
    out->column = node->column;
    bool good = true;
    for (size_t i = 0; i < node->num_children; i++) {
        good = read_op_key(parse, &node->keys[i], &node->children[i], op, out) && good;
    }
    if (node->num_children == 0 && from == NULL) {
        struct moe_words words = {0, ""};
        moe_words_add_names(&words, op_key_name, &op);
        moe_config_report_error(parse->report, node, MOE_CONFIG_CODE_MISSING_KEY,
                                "%s names nothing; valid keys: %s; leave %s out for the heuristic",
                                name, words.text, name);
        return false;
    }
    if (!good || (from != NULL && !inherit(parse, from, node, out))) {
        return false;
    }
    out->named = true;
    return check_rows(parse, out, op);
}

static bool read_ops(struct moe_config_parse *parse, const struct moe_tree_node *node,
                     struct moe_rule_bucket *bucket)
{
    /*
     * gemm1 is read before gemm2, which may stand above it; the other operations in the order of
     * the file.
     */
    const struct moe_tree_node *gemm1 = moe_tree_find(node, moe_tiles_op_name(MOE_OP_GEMM1));
    bool gemm1_good =
        gemm1 == NULL || read_op(parse, gemm1, MOE_OP_GEMM1, NULL, &bucket->ops[MOE_OP_GEMM1]);
    bool good = gemm1_good;
    for (size_t i = 0; i < node->num_children; i++) {
        const struct moe_tree_node *key = &node->keys[i];
        int32_t op = moe_tiles_find_op(key->text);
        if (strcmp(key->text, max_tokens_key) == 0 || op == MOE_OP_GEMM1) {
            continue;
        }
        if (op < 0 || !moe_tiles_op_has_tiles(op)) {
            moe_config_parse_unknown_key(parse, key, "a bucket", bucket_key_name, NULL);
            good = false;
            continue;
        }
        bool inherits = op == MOE_OP_GEMM2 && gemm1 != NULL;
        if (inherits && !gemm1_good) {
            continue; /* what it inherits is not known */
        }
        good = read_op(parse, &node->children[i], op, inherits ? &bucket->ops[MOE_OP_GEMM1] : NULL,
                       &bucket->ops[op]) &&
               good;
    }
    return good;
}

static bool read_max_tokens(struct moe_config_parse *parse, const struct moe_tree_node *node,
                            int64_t previous, int64_t *out)
{
    const struct moe_tree_node *value = moe_tree_find(node, max_tokens_key);
    if (value == NULL) {
        moe_config_report_error(parse->report, node, MOE_CONFIG_CODE_MISSING_KEY,
                                "the bucket has no key \"%s\"", max_tokens_key);
        return false;
    }
    *out = MOE_TOKENS_INF;
    if (!moe_tree_is_text(value, "inf") &&
        !moe_config_parse_integer(parse, value, max_tokens_key, 1, INT32_MAX, ", or inf", out)) {
        *out = 0;
        return false;
    }
    if (*out > previous) {
        return true;
    }
    if (previous == MOE_TOKENS_INF) {
        moe_config_report_error(
            parse->report, value, MOE_CONFIG_CODE_BUCKET_ORDER,
            "a bucket follows the one with max_tokens inf, which covers all; valid: inf last");
    } else {
        moe_config_report_error(parse->report, value, MOE_CONFIG_CODE_BUCKET_ORDER,
                                "max_tokens is %lld after %lld; valid: ascending, inf last",
                                (long long)*out, (long long)previous);
    }
    return false;
}

bool moe_config_parse_bucket(struct moe_config_parse *parse, const struct moe_tree_node *node,
                             int64_t previous, struct moe_rule_bucket *bucket)
{
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        bucket->ops[op].kernel = -1;
    }
    bucket->line = node->line;
    bucket->column = node->column;
    if (!moe_config_parse_expect(parse, node, MOE_NODE_MAPPING, "a bucket",
                                 "a mapping with max_tokens")) {
        return false;
    }
    bool good = read_max_tokens(parse, node, previous, &bucket->max_tokens);
    good = read_ops(parse, node, bucket) && good;
    struct moe_reason reason;
    const struct moe_rule_op *culprit;
    if (good && !moe_rule_bucket_fits(bucket, NULL, &reason, &culprit)) {
        moe_config_report_add(parse->report, MOE_LEVEL_ERROR,
                              moe_config_report_code(MOE_CONFIG_CODE_UNKNOWN_TILE), culprit->line,
                              culprit->column, "%s", reason.text);
        good = false;
    }
    return good;
}
