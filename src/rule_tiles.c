/* SPDX-License-Identifier: Apache-2.0 */
/* Which tiles a bucket of a rule allows, and whether a device has them; identity of rules. */
#include "rules.h"

#include <stdio.h>
#include <string.h>

bool moe_rule_allows(const struct moe_rule_op *rule_op, int32_t op, const struct moe_tile *tile)
{
    if (!moe_tiles_runs(tile, op)) {
        return false;
    }
    if (!rule_op->named) {
        return true;
    }
    if (rule_op->kernel >= 0 && rule_op->kernel != tile->kernel) {
        return false;
    }
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if ((rule_op->given & (1u << key)) != 0 &&
            rule_op->numbers[key] != moe_tile_key_value(tile, key)) {
            return false;
        }
    }
    return true;
}

static bool fits(const struct moe_tile *tile, const struct moe_device *device, const char **reason)
{
    return device == NULL || moe_tiles_fits(tile, device, reason);
}

/* A tile that `op` may use; if none fits, the first that is allowed and why it does not fit. */
static bool op_fits(const struct moe_rule_bucket *bucket, int32_t op,
                    const struct moe_device *device, const struct moe_tile **refused,
                    const char **reason)
{
    *refused = NULL;
    *reason = NULL;
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        const char *why = NULL;
        if (!moe_rule_allows(&bucket->ops[op], op, &moe_tiles[i])) {
            continue;
        }
        if (fits(&moe_tiles[i], device, &why)) {
            return true;
        }
        if (*refused == NULL) {
            *refused = &moe_tiles[i];
            *reason = why;
        }
    }
    return false;
}

static bool pair_fits(const struct moe_rule_bucket *bucket, const struct moe_device *device)
{
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        if (!moe_rule_allows(&bucket->ops[MOE_OP_GEMM1], MOE_OP_GEMM1, &moe_tiles[i]) ||
            !fits(&moe_tiles[i], device, NULL)) {
            continue;
        }
        for (int32_t j = 0; j < MOE_NUM_TILES; j++) {
            if (moe_tiles[j].block_m == moe_tiles[i].block_m &&
                moe_rule_allows(&bucket->ops[MOE_OP_GEMM2], MOE_OP_GEMM2, &moe_tiles[j]) &&
                fits(&moe_tiles[j], device, NULL)) {
                return true;
            }
        }
    }
    return false;
}

bool moe_rule_bucket_fits(const struct moe_rule_bucket *bucket, const struct moe_device *device,
                          struct moe_reason *reason, const struct moe_rule_op **culprit)
{
    const struct moe_tile *refused;
    const char *why;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if (!bucket->ops[op].named || op_fits(bucket, op, device, &refused, &why)) {
            continue;
        }
        *culprit = &bucket->ops[op];
        if (reason != NULL && refused != NULL) {
            snprintf(reason->text, sizeof(reason->text), "%s names %s, but %s",
                     moe_tiles_op_name(op), refused->name, why);
        } else if (reason != NULL) {
            snprintf(reason->text, sizeof(reason->text), "%s names a tile that does not exist",
                     moe_tiles_op_name(op));
        }
        return false;
    }
    bool gemm_named = bucket->ops[MOE_OP_GEMM1].named || bucket->ops[MOE_OP_GEMM2].named;
    if (gemm_named && !pair_fits(bucket, device)) {
        *culprit = &bucket->ops[bucket->ops[MOE_OP_GEMM2].named ? MOE_OP_GEMM2 : MOE_OP_GEMM1];
        if (reason != NULL) {
            snprintf(reason->text, sizeof(reason->text),
                     "no tile of gemm2 that it allows has the BLOCK_SIZE_M of one that it allows "
                     "for gemm1");
        }
        return false;
    }
    return true;
}

uint64_t moe_rule_hash_bytes(uint64_t hash, const void *bytes, size_t num_bytes)
{
    const unsigned char *byte = bytes;
    for (size_t i = 0; i < num_bytes; i++) {
        hash = (hash ^ byte[i]) * UINT64_C(1099511628211);
    }
    return hash;
}

/* Numbers are hashed as eight bytes, lowest first, whatever the machine's order. */
static uint64_t hash_number(uint64_t hash, uint64_t number)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(number >> (8 * i));
    }
    return moe_rule_hash_bytes(hash, bytes, sizeof(bytes));
}

static uint64_t hash_double(uint64_t hash, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return hash_number(hash, bits);
}

static uint64_t hash_text(uint64_t hash, const char *text)
{
    return moe_rule_hash_bytes(hash, text, strlen(text) + 1);
}

/* Numbers of names follow tables that grow; the names themselves are stable. */
static uint64_t hash_item(uint64_t hash, int32_t key, const struct moe_match_item *item)
{
    if (item->text != NULL) {
        return hash_text(hash, item->text);
    }
    if (moe_match_keys[key].kind == MOE_KIND_NAME) {
        const char *name;
        for (int32_t i = 0; (name = moe_match_key_name(key, i)) != NULL; i++) {
            if (moe_match_key_find(key, name) == item->number) {
                return hash_text(hash, name);
            }
        }
    }
    return hash_number(hash, (uint64_t)item->number);
}

uint64_t moe_rule_hash_match(uint64_t hash, const struct moe_rule *rule)
{
    for (int32_t key = 0; key < MOE_NUM_MATCH_KEYS; key++) {
        const struct moe_match_value *value = &rule->match[key];
        if (value->form == 0) {
            continue;
        }
        hash = hash_text(hash, moe_match_keys[key].name);
        hash = hash_number(hash, value->form);
        for (int32_t i = 0; i < value->num_items; i++) {
            hash = hash_item(hash, key, &value->items[i]);
        }
        if (value->form == MOE_FORM_RANGE) {
            hash = hash_double(hash_double(hash, value->low), value->high);
        }
    }
    return hash;
}

static uint64_t hash_op(uint64_t hash, int32_t op, const struct moe_rule_op *rule_op)
{
    hash = hash_text(hash, moe_tiles_op_name(op));
    if (rule_op->kernel >= 0) {
        hash = hash_text(hash, moe_kernels[rule_op->kernel].name);
    }
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if ((rule_op->given & (1u << key)) != 0) {
            hash = hash_text(hash, moe_tile_keys[key].name);
            hash = hash_number(hash, (uint64_t)rule_op->numbers[key]);
        }
    }
    return hash;
}

uint64_t moe_rule_hash(uint64_t hash, const struct moe_rule *rule)
{
    hash = hash_text(hash, "rule");
    hash = moe_rule_hash_match(hash, rule);
    hash = hash_text(hash, rule->skip_unavailable ? "next" : "error");
    for (int32_t i = 0; i < rule->num_buckets; i++) {
        hash = hash_text(hash, "bucket");
        hash = hash_number(hash, (uint64_t)rule->buckets[i].max_tokens);
        for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
            if (rule->buckets[i].ops[op].named) {
                hash = hash_op(hash, op, &rule->buckets[i].ops[op]);
            }
        }
    }
    return hash;
}

static bool same_value(const struct moe_match_value *a, const struct moe_match_value *b)
{
    if (a->form != b->form || a->num_items != b->num_items) {
        return false;
    }
    if (a->form == MOE_FORM_RANGE && (a->low != b->low || a->high != b->high)) {
        return false;
    }
    for (int32_t i = 0; i < a->num_items; i++) {
        bool has_text = a->items[i].text != NULL; /* of one key, both have or neither has */
        if (has_text ? strcmp(a->items[i].text, b->items[i].text) != 0
                     : a->items[i].number != b->items[i].number) {
            return false;
        }
    }
    return true;
}

bool moe_rule_same_match(const struct moe_rule *a, const struct moe_rule *b)
{
    if (a->match_hash != b->match_hash) {
        return false;
    }
    for (int32_t key = 0; key < MOE_NUM_MATCH_KEYS; key++) {
        if (!same_value(&a->match[key], &b->match[key])) {
            return false;
        }
    }
    return true;
}
