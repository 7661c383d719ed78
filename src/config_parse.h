/* SPDX-License-Identifier: Apache-2.0 */
/* From one YAML text to rules. */
#ifndef MOE_CONFIG_PARSE_H
#define MOE_CONFIG_PARSE_H

#include "config_report.h"
#include "rules.h"
#include "tree.h"

#define MOE_CONFIG_SCHEMA_NAME  "moe-dispatch"
#define MOE_CONFIG_SCHEMA_MAJOR 1

/* The reading of one snapshot: what is read so far, and where findings go. */
struct moe_config_parse {
    struct moe_config_report *report;
    struct moe_arena *arena;
    const struct moe_device *device; /* NULL: rules are not checked against one */
    struct moe_rule *first;          /* rules so far, in order of reading */
    struct moe_rule *last;
    int32_t num_rules;
    int32_t layer;         /* of the text under way */
    const char *file;      /* lives as long as the arena */
    bool skip_unavailable; /* of the text under way */
    bool is_built_in;      /* the text under way is a profile of the plugin's own layer */
    bool out_of_memory;
};

/*
 * Append the rules of the report's text. Findings are reported, a rule with an error is left out.
 * Returns OK also then: the report's status tells. OUT_OF_MEMORY.
 */
int32_t moe_config_parse_text(struct moe_config_parse *parse, const char *text, size_t text_bytes);

/* The parts, each of which reports what is wrong at its node and then returns false. */

/* `match` of a rule, with num_exact, num_loose and match_hash. */
bool moe_config_parse_match(struct moe_config_parse *parse, const struct moe_tree_node *node,
                            struct moe_rule *rule);

/*
 * One bucket: max_tokens and operations, checked against tiles.def. `previous` is max_tokens of the
 * bucket before, 0 for the first.
 */
bool moe_config_parse_bucket(struct moe_config_parse *parse, const struct moe_tree_node *node,
                             int64_t previous, struct moe_rule_bucket *bucket);

/* Helpers that the parts share. */

/* Is the node of this kind (MOE_NODE_*)? Reports "`what` is ...; valid: `valid`" otherwise. */
bool moe_config_parse_expect(struct moe_config_parse *parse, const struct moe_tree_node *node,
                             int32_t kind, const char *what, const char *valid);

/* A plain integer from `min` to `max`; `also` names what else the caller takes, "" for nothing. */
bool moe_config_parse_integer(struct moe_config_parse *parse, const struct moe_tree_node *node,
                              const char *what, int64_t min, int64_t max, const char *also,
                              int64_t *out);

/*
 * Is the node spelled like an integer, of whatever size? Then a wrong one is out of range rather
 * than of a wrong type.
 */
bool moe_config_parse_looks_like_integer(const struct moe_tree_node *node);

/* An "unknown key" at `key`, with the valid ones and a suggestion. */
void moe_config_parse_unknown_key(struct moe_config_parse *parse, const struct moe_tree_node *key,
                                  const char *where, moe_name_fn *names, const void *self);

/* Memory of the arena; remembers when there is none. */
void *moe_config_parse_alloc(struct moe_config_parse *parse, size_t bytes);

#endif
