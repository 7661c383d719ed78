/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON Schema (draft-07) of moe-dispatch/1, printed from the tables that the reader itself
 * uses. It helps editors while one types; what only a reader can know (that some tile has all of an
 * operation's numbers, order of buckets, overlaps) stays with `moectl validate`.
 */
#ifndef MOE_TESTS_SCHEMA_PRINT_H
#define MOE_TESTS_SCHEMA_PRINT_H

#include "config_parse.h"
#include "rules.h"

#include <stdio.h>

#define SCHEMA_INTEGER_RANGE "^(>=|<=)[0-9]+$|^[0-9]+\\\\.\\\\.[0-9]+$"
#define SCHEMA_NUMBER        "[0-9]+(\\\\.[0-9]+)?([eE][-+]?[0-9]+)?"
#define SCHEMA_REAL_RANGE \
    "^(>=|<=)" SCHEMA_NUMBER "$|^" SCHEMA_NUMBER "\\\\.\\\\." SCHEMA_NUMBER "$"

static const char *const schema_meanings[MOE_NUM_MATCH_KEYS] = {
#define SCHEMA_MEANING(name, key, kind, forms, device, max, meaning) meaning,
    MOE_MATCH_KEYS(SCHEMA_MEANING)
#undef SCHEMA_MEANING
};

/* The schema of one item of a match key. */
static inline void schema_print_item(FILE *out, int32_t key)
{
    const struct moe_match_key *row = &moe_match_keys[key];
    switch (row->kind) {
    case MOE_KIND_NAME:
        fprintf(out, "{\"enum\": [");
        for (int32_t i = 0; moe_match_key_name(key, i) != NULL; i++) {
            fprintf(out, "%s\"%s\"", i > 0 ? ", " : "", moe_match_key_name(key, i));
        }
        fprintf(out, "]}");
        break;
    case MOE_KIND_TEXT:
        fprintf(out, "{\"type\": [\"string\", \"number\"]}");
        break;
    default:
        fprintf(out, "{\"type\": \"integer\", \"minimum\": 1, \"maximum\": %lld}",
                (long long)row->max);
        break;
    }
}

static inline void schema_print_match_key(FILE *out, int32_t key)
{
    const struct moe_match_key *row = &moe_match_keys[key];
    const char *separator = "";
    fprintf(out, "        \"%s\": {\"description\": \"%s\", \"anyOf\": [", row->name,
            schema_meanings[key]);
    if ((row->forms & MOE_FORM_SCALAR) != 0) {
        schema_print_item(out, key);
        separator = ", ";
    }
    if ((row->forms & MOE_FORM_LIST) != 0) {
        fprintf(out, "%s{\"type\": \"array\", \"minItems\": 1, \"uniqueItems\": true, \"items\": ",
                separator);
        schema_print_item(out, key);
        fprintf(out, "}");
        separator = ", ";
    }
    if ((row->forms & MOE_FORM_PAIR) != 0) {
        fprintf(out,
                "%s{\"type\": \"array\", \"minItems\": 2, \"maxItems\": 2, \"items\": ", separator);
        schema_print_item(out, key);
        fprintf(out, "}");
        separator = ", ";
    }
    if ((row->forms & MOE_FORM_RANGE) != 0) {
        fprintf(out, "%s{\"type\": \"string\", \"pattern\": \"%s\"}", separator,
                row->kind == MOE_KIND_REAL ? SCHEMA_REAL_RANGE : SCHEMA_INTEGER_RANGE);
        separator = ", ";
    }
    if ((row->forms & MOE_FORM_MULTIPLE) != 0) {
        fprintf(out, "%s{\"type\": \"string\", \"pattern\": \"^%%[0-9]+$\"}", separator);
    }
    fprintf(out, "]}");
}

/* Kernels and numbers that rows of the operation have. */
static inline void schema_print_op(FILE *out, int32_t op)
{
    const int32_t row_op = moe_tiles_row_op(op);
    const char *separator = "";
    fprintf(out, "        \"%s\": {\"type\": \"object\", \"additionalProperties\": false, ",
            moe_tiles_op_name(op));
    fprintf(out, "\"properties\": {\"kernel\": {\"enum\": [");
    for (int32_t kernel = 0; kernel < MOE_NUM_KERNELS; kernel++) {
        bool has_row = false;
        for (int32_t tile = 0; tile < MOE_NUM_TILES; tile++) {
            has_row = has_row ||
                      (moe_tiles[tile].kernel == kernel && moe_tiles_runs(&moe_tiles[tile], op));
        }
        if (has_row) {
            fprintf(out, "%s\"%s\"", separator, moe_kernels[kernel].name);
            separator = ", ";
        }
    }
    fprintf(out, "]}");
    for (int32_t key = 0; key < MOE_NUM_TILE_KEYS; key++) {
        if (moe_tile_keys[key].gemm == (row_op == MOE_OP_GEMM1)) {
            fprintf(out, ", \"%s\": {\"type\": \"integer\", \"minimum\": 1}",
                    moe_tile_keys[key].name);
        }
    }
    fprintf(out, "}}");
}

static inline void schema_print(FILE *out)
{
    fprintf(out,
            "{\n"
            "  \"$schema\": \"http://json-schema.org/draft-07/schema#\",\n"
            "  \"title\": \"moe-dispatch/1: which kernel variant runs an operation\",\n"
            "  \"type\": \"object\",\n"
            "  \"required\": [\"schema\", \"rules\"],\n"
            "  \"additionalProperties\": false,\n"
            "  \"properties\": {\n"
            "    \"schema\": {\"const\": \"%s/%d\"},\n"
            "    \"on_unavailable\": {\"enum\": [\"error\", \"next\"]},\n"
            "    \"rules\": {\"type\": \"array\", \"items\": "
            "{\"$ref\": \"#/definitions/rule\"}}\n"
            "  },\n"
            "  \"definitions\": {\n",
            MOE_CONFIG_SCHEMA_NAME, MOE_CONFIG_SCHEMA_MAJOR);
    fprintf(out, "    \"rule\": {\n"
                 "      \"type\": \"object\",\n"
                 "      \"required\": [\"name\", \"buckets\"],\n"
                 "      \"additionalProperties\": false,\n"
                 "      \"properties\": {\n"
                 "        \"name\": {\"type\": [\"string\", \"number\"], \"minLength\": 1, "
                 "\"maxLength\": 120},\n"
                 "        \"priority\": {\"type\": \"integer\", \"minimum\": -1000000, "
                 "\"maximum\": 1000000},\n"
                 "        \"match\": {\"$ref\": \"#/definitions/match\"},\n"
                 "        \"buckets\": {\"type\": \"array\", \"minItems\": 1, \"items\": "
                 "{\"$ref\": \"#/definitions/bucket\"}}\n"
                 "      }\n"
                 "    },\n"
                 "    \"match\": {\n"
                 "      \"type\": \"object\",\n"
                 "      \"additionalProperties\": false,\n"
                 "      \"properties\": {\n");
    for (int32_t key = 0; key < MOE_NUM_MATCH_KEYS; key++) {
        schema_print_match_key(out, key);
        fprintf(out, "%s\n", key + 1 < MOE_NUM_MATCH_KEYS ? "," : "");
    }
    fprintf(out, "      }\n"
                 "    },\n"
                 "    \"bucket\": {\n"
                 "      \"type\": \"object\",\n"
                 "      \"required\": [\"max_tokens\"],\n"
                 "      \"additionalProperties\": false,\n"
                 "      \"properties\": {\n"
                 "        \"max_tokens\": {\"anyOf\": [{\"type\": \"integer\", \"minimum\": 1, "
                 "\"maximum\": 2147483647}, {\"const\": \"inf\"}]}");
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if (moe_tiles_op_has_tiles(op)) {
            fprintf(out, ",\n");
            schema_print_op(out, op);
        }
    }
    fprintf(out, "\n      }\n    }\n  }\n}\n");
}

#endif
