/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rules as they are kept after reading, and the two tables that decide what a rule may say: match
 * keys and tile keys. Reading, matching, explaining, the fingerprint and the documentation's test
 * all expand from these tables.
 */
#ifndef MOE_RULES_H
#define MOE_RULES_H

#include "arena.h"
#include "config.h"
#include "tiles.h"

#include <stdatomic.h>
#include <stdbool.h>

/* What kind of thing a match key compares. */
enum {
    MOE_KIND_NAME,    /* one of a list of names */
    MOE_KIND_INTEGER, /* from 1 to the key's maximum */
    MOE_KIND_REAL,    /* not negative */
    MOE_KIND_PAIR,    /* two integers */
    MOE_KIND_TEXT     /* any text, compared without regard to case; * and ? are wildcards */
};

/* Forms that a value may have. */
#define MOE_FORM_SCALAR   1u
#define MOE_FORM_LIST     2u
#define MOE_FORM_RANGE    4u
#define MOE_FORM_MULTIPLE 8u
#define MOE_FORM_GLOB     16u
#define MOE_FORM_PAIR     32u

#define MOE_FORMS_NUMBER (MOE_FORM_SCALAR | MOE_FORM_LIST | MOE_FORM_RANGE)
#define MOE_FORMS_NAME   (MOE_FORM_SCALAR | MOE_FORM_LIST)

/*
 * X(NAME, key, kind, forms, of the device?, maximum, meaning). A maximum is one of MOE_KIND_INTEGER
 * and _PAIR.
 */
#define MOE_MATCH_KEYS(X)                                                                    \
    X(BACKEND, "backend", NAME, MOE_FORMS_NAME, true, 0, "backend of the device")            \
    X(ISA, "isa", NAME, MOE_FORMS_NAME, true, 0, "CPU: instruction set")                     \
    X(SM, "sm", INTEGER, MOE_FORMS_NUMBER, true, 9999,                                       \
      "CUDA: 10 * major + minor of the compute capability")                                  \
    X(SM_COUNT, "sm_count", INTEGER, MOE_FORMS_NUMBER | MOE_FORM_MULTIPLE, true, 65535,      \
      "CUDA: streaming multiprocessors; CPU: threads of the pool")                           \
    X(SMEM_KIB, "smem_kib", INTEGER, MOE_FORMS_NUMBER, true, 65535,                          \
      "CUDA: shared memory of a block, in KiB")                                              \
    X(DEVICE, "device", TEXT, MOE_FORMS_NAME | MOE_FORM_GLOB, true, 0,                       \
      "marketing name of the device")                                                        \
    X(EXPERTS, "experts", INTEGER, MOE_FORMS_NUMBER | MOE_FORM_MULTIPLE, false, INT32_MAX,   \
      "experts that this rank holds")                                                        \
    X(TOPK, "topk", INTEGER, MOE_FORMS_NUMBER, false, INT32_MAX, "experts per token")        \
    X(HIDDEN, "hidden", INTEGER, MOE_FORMS_NUMBER | MOE_FORM_MULTIPLE, false, INT32_MAX,     \
      "width of a token")                                                                    \
    X(INTER, "inter", INTEGER, MOE_FORMS_NUMBER | MOE_FORM_MULTIPLE, false, INT32_MAX,       \
      "intermediate width of one expert on this rank")                                       \
    X(ACT_DTYPE, "act_dtype", NAME, MOE_FORMS_NAME, false, 0, "element type of the tokens")  \
    X(WEIGHT, "weight", NAME, MOE_FORMS_NAME, false, 0, "element type of the first weights") \
    X(BLOCK_SHAPE, "block_shape", PAIR, MOE_FORM_PAIR, false, INT32_MAX,                     \
      "channels and columns of the first weights that share a scale")                        \
    X(ACTIVATION, "activation", NAME, MOE_FORMS_NAME, false, 0, "activation function")       \
    X(DENSITY, "density", REAL, MOE_FORM_RANGE, false, 0, "tokens * topk / experts of a call")

enum {
#define MOE_MATCH_KEY_CONSTANT(name, key, kind, forms, device, max, meaning) MOE_MATCH_##name,
    MOE_MATCH_KEYS(MOE_MATCH_KEY_CONSTANT)
#undef MOE_MATCH_KEY_CONSTANT
        MOE_NUM_MATCH_KEYS
};

struct moe_match_key {
    const char *name;
    int32_t kind;   /* MOE_KIND_* */
    uint32_t forms; /* MOE_FORM_* */
    int64_t max;
    bool of_device; /* else of the problem */
};
extern const struct moe_match_key moe_match_keys[MOE_NUM_MATCH_KEYS];

/*
 * The valid names of a key of MOE_KIND_NAME, by position, NULL past the end; and the number of a
 * name, -1 if it is not valid.
 */
const char *moe_match_key_name(int32_t key, int32_t position);
int64_t moe_match_key_find(int32_t key, const char *text);

/*
 * Numbers of a tile that YAML can name. X(NAME, key, member of struct moe_tile, 1: GEMM, 0: the
 * other operations)
 */
#define MOE_TILE_KEYS(X)                        \
    X(BLOCK_SIZE_M, "BLOCK_SIZE_M", block_m, 1) \
    X(BLOCK_SIZE_N, "BLOCK_SIZE_N", block_n, 1) \
    X(BLOCK_SIZE_K, "BLOCK_SIZE_K", block_k, 1) \
    X(GROUP_SIZE_M, "GROUP_SIZE_M", group_m, 1) \
    X(NUM_WARPS, "num_warps", num_warps, 1)     \
    X(NUM_STAGES, "num_stages", num_stages, 1)  \
    X(BLOCK_SIZE, "BLOCK_SIZE", block_size, 0)

enum {
#define MOE_TILE_KEY_CONSTANT(name, key, member, gemm) MOE_TILE_KEY_##name,
    MOE_TILE_KEYS(MOE_TILE_KEY_CONSTANT)
#undef MOE_TILE_KEY_CONSTANT
        MOE_NUM_TILE_KEYS
};

struct moe_tile_key {
    const char *name;
    bool gemm;
};
extern const struct moe_tile_key moe_tile_keys[MOE_NUM_TILE_KEYS];
int32_t moe_tile_key_value(const struct moe_tile *tile, int32_t tile_key);

/* One thing that a value names. */
struct moe_match_item {
    int64_t number;   /* integers; names: as moe_match_key_find numbers them */
    const char *text; /* MOE_KIND_TEXT, in lower case; else NULL */
    size_t position;  /* in the list that the file has */
};

/* The value of a match key in a rule. */
struct moe_match_value {
    uint32_t form; /* MOE_FORM_*; 0: the rule does not name the key */
    int32_t num_items;
    const struct moe_match_item *items; /* scalar, glob, multiple: 1; pair: 2; list: sorted */
    double low; /* range, both inclusive; infinite where open. Integers are exact */
    double high;
    const char *words; /* as the file spells it */
};

/* What a bucket says about one operation. */
struct moe_rule_op {
    bool named;
    int32_t kernel; /* MOE_KERNEL_*; -1: any */
    uint32_t given; /* bits 1 << MOE_TILE_KEY_* */
    int32_t numbers[MOE_NUM_TILE_KEYS];
    uint32_t line;
    uint32_t column;
};

#define MOE_TOKENS_INF INT64_MAX

struct moe_rule_bucket {
    int64_t max_tokens; /* MOE_TOKENS_INF: no end */
    uint32_t line;
    uint32_t column;
    struct moe_rule_op ops[MOE_NUM_OPS]; /* experts and layer are never named */
};

struct moe_rule {
    struct moe_rule *next; /* in order of reading */
    const char *name;
    const char *file;
    uint32_t line;
    uint32_t column;
    int32_t layer;    /* the higher, the stronger */
    int32_t sequence; /* order of reading */
    int32_t priority;
    int32_t num_exact;     /* keys matched exactly */
    int32_t num_loose;     /* keys matched by list, range, %, glob */
    bool skip_unavailable; /* on_unavailable: next */
    int32_t num_buckets;
    const struct moe_rule_bucket *buckets;
    struct moe_match_value match[MOE_NUM_MATCH_KEYS];
    uint64_t match_hash; /* equal matches have equal hashes */
};

/* A snapshot. The rules stand in order of precedence, strongest first. */
struct moe_config {
    struct moe_memory memory;
    atomic_int num_references;
    struct moe_arena arena;
    const struct moe_rule *const *rules;
    int32_t num_rules;
    int32_t num_layers;
    uint64_t fingerprint;
    const char *layers;
};

/* A reason in words. */
struct moe_reason {
    char text[320];
};

/*
 * Do all keys of the rule hold, but for density? `problem` NULL: only those of the device. If not,
 * and `reason` is given, the first key that does not hold. A key whose value the device or problem
 * leaves at zero does not hold.
 */
bool moe_rule_matches(const struct moe_rule *rule, const struct moe_device *device,
                      const struct moe_problem *problem, struct moe_reason *reason);

/* Does the rule's density hold for this many tokens? True for a rule without one. */
bool moe_rule_density_holds(const struct moe_rule *rule, const struct moe_problem *problem,
                            int64_t num_tokens, struct moe_reason *reason);

/* The bucket that covers `num_tokens`, NULL when they all end before. */
const struct moe_rule_bucket *moe_rule_find_bucket(const struct moe_rule *rule, int64_t num_tokens);

/*
 * Is `tile` one of those that the bucket allows for `op`? An operation that is not named allows all
 * of its own.
 */
bool moe_rule_allows(const struct moe_rule_op *rule_op, int32_t op, const struct moe_tile *tile);

/*
 * Has `device` a tile for each operation that the bucket names, and a pair of equal BLOCK_SIZE_M
 * for gemm1 and gemm2? If not, the reason. `device` NULL: any build and device.
 */
bool moe_rule_bucket_fits(const struct moe_rule_bucket *bucket, const struct moe_device *device,
                          struct moe_reason *reason, const struct moe_rule_op **culprit);

/* Do two rules match exactly the same? */
bool moe_rule_same_match(const struct moe_rule *a, const struct moe_rule *b);

/*
 * FNV-1a 64 over a canonical form, the same on every machine: of the match, and of the whole rule
 * but for its name and place.
 */
#define MOE_HASH_START UINT64_C(14695981039346656037)
uint64_t moe_rule_hash_match(uint64_t hash, const struct moe_rule *rule);
uint64_t moe_rule_hash(uint64_t hash, const struct moe_rule *rule);
uint64_t moe_rule_hash_bytes(uint64_t hash, const void *bytes, size_t num_bytes);

#endif
