/* SPDX-License-Identifier: Apache-2.0 */
/* The document and its rules. */
#include "config_parse.h"

#include <string.h>

#define MAX_NAME_BYTES 120u
#define MAX_PRIORITY   1000000

static const char *const document_keys[] = {"schema", "on_unavailable", "rules", NULL};
static const char *const rule_keys[] = {"name", "priority", "match", "buckets", NULL};
static const char *const unavailable_names[] = {"error", "next", NULL};

static const char *list_name(const void *self, int32_t position)
{
    const char *const *names = self;
    return names[position];
}

static bool is_name(const char *const *names, const char *text)
{
    for (; *names != NULL; names++) {
        if (strcmp(*names, text) == 0) {
            return true;
        }
    }
    return false;
}

void *moe_config_parse_alloc(struct moe_config_parse *parse, size_t bytes)
{
    void *block = moe_arena_alloc(parse->arena, bytes);
    if (block == NULL) {
        parse->out_of_memory = true;
    }
    return block;
}

void moe_config_parse_unknown_key(struct moe_config_parse *parse, const struct moe_tree_node *key,
                                  const char *where, moe_name_fn *names, const void *self)
{
    struct moe_words words = {0, ""};
    moe_words_add(&words, "unknown key ");
    moe_words_add_node(&words, key);
    moe_words_add(&words, " in %s; valid: ", where);
    moe_words_add_names(&words, names, self);
    moe_words_add_suggestion(&words, key->text, names, self);
    moe_config_report_error(parse->report, key, MOE_CONFIG_CODE_UNKNOWN_KEY, "%s", words.text);
}

bool moe_config_parse_expect(struct moe_config_parse *parse, const struct moe_tree_node *node,
                             int32_t kind, const char *what, const char *valid)
{
    if (node->kind == kind && !moe_tree_is_null(node)) {
        return true;
    }
    struct moe_words words = {0, ""};
    moe_words_add(&words, "%s is ", what);
    moe_words_add_node(&words, node);
    moe_words_add(&words, "; valid: %s", valid);
    moe_config_report_error(parse->report, node, MOE_CONFIG_CODE_TYPE, "%s", words.text);
    return false;
}

bool moe_config_parse_looks_like_integer(const struct moe_tree_node *node)
{
    if (node->kind != MOE_NODE_SCALAR || node->quoted || node->text_bytes == 0) {
        return false;
    }
    const char *digits = node->text[0] == '-' ? node->text + 1 : node->text;
    return *digits != '\0' && strspn(digits, "0123456789") == strlen(digits) &&
           (digits[0] != '0' || digits[1] == '\0');
}

bool moe_config_parse_integer(struct moe_config_parse *parse, const struct moe_tree_node *node,
                              const char *what, int64_t min, int64_t max, const char *also,
                              int64_t *out)
{
    if (moe_tree_to_int64(node, min, max, out) == 0) {
        return true;
    }
    struct moe_words words = {0, ""};
    moe_words_add(&words, "%s is ", what);
    moe_words_add_node(&words, node);
    moe_words_add(&words, "; valid: an integer from %lld to %lld%s", (long long)min, (long long)max,
                  also);
    int32_t code =
        moe_config_parse_looks_like_integer(node) ? MOE_CONFIG_CODE_RANGE : MOE_CONFIG_CODE_TYPE;
    moe_config_report_error(parse->report, node, code, "%s", words.text);
    return false;
}

static bool check_keys(struct moe_config_parse *parse, const struct moe_tree_node *mapping,
                       const char *where, const char *const *names)
{
    bool good = true;
    for (size_t i = 0; i < mapping->num_children; i++) {
        if (!is_name(names, mapping->keys[i].text)) {
            moe_config_parse_unknown_key(parse, &mapping->keys[i], where, list_name, names);
            good = false;
        }
    }
    return good;
}

static bool require_key(struct moe_config_parse *parse, const struct moe_tree_node *mapping,
                        const char *where, const char *key, const struct moe_tree_node **out)
{
    *out = moe_tree_find(mapping, key);
    if (*out == NULL) {
        moe_config_report_error(parse->report, mapping, MOE_CONFIG_CODE_MISSING_KEY,
                                "%s has no key \"%s\"", where, key);
    }
    return *out != NULL;
}

static bool parse_name(struct moe_config_parse *parse, const struct moe_tree_node *node,
                       struct moe_rule *rule)
{
    static const char valid[] = "a text of 1 to 120 bytes without control characters";
    _Static_assert(MAX_NAME_BYTES == 120, "the sentence above states the limit");
    if (!moe_config_parse_expect(parse, node, MOE_NODE_SCALAR, "name", valid)) {
        return false;
    }
    bool good = node->text_bytes >= 1 && node->text_bytes <= MAX_NAME_BYTES;
    for (size_t i = 0; i < node->text_bytes; i++) {
        unsigned char byte = (unsigned char)node->text[i];
        good = good && byte >= 0x20 && byte != 0x7F;
    }
    if (!good) {
        struct moe_words words = {0, ""};
        moe_words_add_node(&words, node);
        moe_config_report_error(parse->report, node, MOE_CONFIG_CODE_RANGE, "name is %s; valid: %s",
                                words.text, valid);
        return false;
    }
    rule->name = moe_arena_copy(parse->arena, node->text, node->text_bytes);
    parse->out_of_memory = parse->out_of_memory || rule->name == NULL;
    return rule->name != NULL;
}

static bool check_device(struct moe_config_parse *parse, const struct moe_rule *rule)
{
    if (parse->device == NULL || !moe_rule_matches(rule, parse->device, NULL, NULL)) {
        return true;
    }
    bool good = true;
    for (int32_t i = 0; i < rule->num_buckets; i++) {
        struct moe_reason reason;
        const struct moe_rule_op *culprit;
        if (moe_rule_bucket_fits(&rule->buckets[i], parse->device, &reason, &culprit)) {
            continue;
        }
        good = good && rule->skip_unavailable;
        if (parse->is_built_in && rule->skip_unavailable) {
            continue; /* nobody can mend that here; explain names the bucket that was skipped */
        }
        moe_config_report_add(
            parse->report, rule->skip_unavailable ? MOE_LEVEL_WARNING : MOE_LEVEL_ERROR,
            moe_config_report_code(MOE_CONFIG_CODE_UNAVAILABLE_TILE), culprit->line,
            culprit->column, "%s; %s", reason.text,
            rule->skip_unavailable ? "the bucket is skipped (on_unavailable: next)"
                                   : "on_unavailable: next would skip the bucket");
    }
    return good;
}

static bool parse_buckets(struct moe_config_parse *parse, const struct moe_tree_node *node,
                          struct moe_rule *rule)
{
    static const char valid[] = "a list of buckets, each a mapping with max_tokens";
    if (!moe_config_parse_expect(parse, node, MOE_NODE_SEQUENCE, "buckets", valid)) {
        return false;
    }
    if (node->num_children == 0) {
        moe_config_report_error(parse->report, node, MOE_CONFIG_CODE_TYPE,
                                "buckets is an empty list; valid: %s", valid);
        return false;
    }
    struct moe_rule_bucket *buckets =
        moe_config_parse_alloc(parse, node->num_children * sizeof(*buckets));
    if (buckets == NULL) {
        return false;
    }
    bool good = true;
    int64_t previous = 0;
    for (size_t i = 0; i < node->num_children && !parse->out_of_memory; i++) {
        good = moe_config_parse_bucket(parse, &node->children[i], previous, &buckets[i]) && good;
        previous = buckets[i].max_tokens > previous ? buckets[i].max_tokens : previous;
    }
    rule->num_buckets = (int32_t)node->num_children;
    rule->buckets = buckets;
    return good && !parse->out_of_memory;
}

/*
 * Rules of one layer that match the same with the same priority would decide by their order alone.
 */
static bool check_overlap(struct moe_config_parse *parse, const struct moe_rule *rule)
{
    for (const struct moe_rule *other = parse->first; other != NULL; other = other->next) {
        if (other->layer != rule->layer || other->priority != rule->priority ||
            !moe_rule_same_match(other, rule)) {
            continue;
        }
        int64_t other_end = other->buckets[other->num_buckets - 1].max_tokens;
        int64_t rule_end = rule->buckets[rule->num_buckets - 1].max_tokens;
        int64_t common = other_end < rule_end ? other_end : rule_end;
        struct moe_words tokens = {0, ""};
        if (common == MOE_TOKENS_INF) {
            moe_words_add(&tokens, "any number of tokens");
        } else {
            moe_words_add(&tokens, "1 to %lld tokens", (long long)common);
        }
        bool same_file = strcmp(other->file, rule->file) == 0;
        moe_config_report_add(
            parse->report, MOE_LEVEL_ERROR, moe_config_report_code(MOE_CONFIG_CODE_OVERLAP),
            rule->line, rule->column,
            "rule \"%s\" (line %u) matches the same as rule \"%s\" (%s%sline %u), and both cover "
            "%s; "
            "valid: another match, another priority, or one rule with the buckets of both",
            rule->name, rule->line, other->name, same_file ? "" : other->file,
            same_file ? "" : ", ", other->line, tokens.text);
        return false;
    }
    return true;
}

static bool parse_rule(struct moe_config_parse *parse, const struct moe_tree_node *node)
{
    static const char valid[] = "a mapping with name, match and buckets";
    if (!moe_config_parse_expect(parse, node, MOE_NODE_MAPPING, "a rule", valid)) {
        return false;
    }
    struct moe_rule *rule = moe_config_parse_alloc(parse, sizeof(*rule));
    if (rule == NULL) {
        return false;
    }
    rule->file = parse->file;
    rule->line = node->line;
    rule->column = node->column;
    rule->layer = parse->layer;
    rule->sequence = parse->num_rules;
    rule->skip_unavailable = parse->skip_unavailable;

    bool good = check_keys(parse, node, "a rule", rule_keys);
    const struct moe_tree_node *name;
    const struct moe_tree_node *buckets;
    good = require_key(parse, node, "the rule", "name", &name) && parse_name(parse, name, rule) &&
           good;
    const struct moe_tree_node *priority = moe_tree_find(node, "priority");
    int64_t number = 0;
    if (priority != NULL) {
        good = moe_config_parse_integer(parse, priority, "priority", -MAX_PRIORITY, MAX_PRIORITY,
                                        "", &number) &&
               good;
    }
    rule->priority = (int32_t)number;
    good = moe_config_parse_match(parse, moe_tree_find(node, "match"), rule) && good;
    good = require_key(parse, node, "the rule", "buckets", &buckets) &&
           parse_buckets(parse, buckets, rule) && good;
    if (!good || parse->out_of_memory || !check_device(parse, rule) ||
        !check_overlap(parse, rule)) {
        return false;
    }
    if (parse->last != NULL) {
        parse->last->next = rule;
    } else {
        parse->first = rule;
    }
    parse->last = rule;
    parse->num_rules++;
    return true;
}

/* `moe-dispatch/1`; a minor version, when there is one some day, follows as `.N`. */
static bool check_schema(struct moe_config_parse *parse, const struct moe_tree_node *root)
{
    struct moe_words wanted = {0, ""};
    moe_words_add(&wanted, "%s/%d", MOE_CONFIG_SCHEMA_NAME, MOE_CONFIG_SCHEMA_MAJOR);
    const struct moe_tree_node *node = moe_tree_find(root, "schema");
    if (node == NULL) {
        moe_config_report_error(parse->report, root, MOE_CONFIG_CODE_SCHEMA,
                                "the document has no key \"schema\"; valid: schema: %s",
                                wanted.text);
        return false;
    }
    if (moe_tree_is_text(node, wanted.text)) {
        return true;
    }
    struct moe_words words = {0, ""};
    moe_words_add_node(&words, node);
    size_t name_bytes = strlen(MOE_CONFIG_SCHEMA_NAME "/");
    bool other_version = node->kind == MOE_NODE_SCALAR &&
                         strncmp(node->text, MOE_CONFIG_SCHEMA_NAME "/", name_bytes) == 0;
    moe_config_report_error(
        parse->report, node, MOE_CONFIG_CODE_SCHEMA, "schema is %s%s; valid: %s", words.text,
        other_version ? ", a version that this plugin does not read" : "", wanted.text);
    return false;
}

static void parse_unavailable(struct moe_config_parse *parse, const struct moe_tree_node *root)
{
    const struct moe_tree_node *node = moe_tree_find(root, "on_unavailable");
    parse->skip_unavailable = node != NULL && moe_tree_is_text(node, "next");
    if (node == NULL || parse->skip_unavailable || moe_tree_is_text(node, "error")) {
        return;
    }
    struct moe_words words = {0, ""};
    moe_words_add(&words, "on_unavailable is ");
    moe_words_add_node(&words, node);
    moe_words_add(&words, "; valid: ");
    moe_words_add_names(&words, list_name, unavailable_names);
    bool scalar = node->kind == MOE_NODE_SCALAR && !moe_tree_is_null(node);
    if (scalar) {
        moe_words_add_suggestion(&words, node->text, list_name, unavailable_names);
    }
    moe_config_report_error(parse->report, node,
                            scalar ? MOE_CONFIG_CODE_VALUE : MOE_CONFIG_CODE_TYPE, "%s",
                            words.text);
}

static void parse_document(struct moe_config_parse *parse, const struct moe_tree_node *root)
{
    if (!moe_config_parse_expect(parse, root, MOE_NODE_MAPPING, "the document",
                                 "a mapping with schema and rules")) {
        return;
    }
    /* Another version means other keys: nothing else is worth saying then. */
    if (!check_schema(parse, root)) {
        return;
    }
    check_keys(parse, root, "the document", document_keys);
    parse_unavailable(parse, root);
    const struct moe_tree_node *rules;
    if (!require_key(parse, root, "the document", "rules", &rules) ||
        !moe_config_parse_expect(parse, rules, MOE_NODE_SEQUENCE, "rules", "a list of rules")) {
        return;
    }
    for (size_t i = 0; i < rules->num_children && !parse->out_of_memory; i++) {
        parse_rule(parse, &rules->children[i]);
    }
}

static void report_tree_finding(void *self, const struct moe_tree_diagnostic *diagnostic)
{
    moe_config_report_add(self, MOE_LEVEL_ERROR, moe_tree_code_name(diagnostic->code),
                          diagnostic->line, diagnostic->column, "%s", diagnostic->message);
}

int32_t moe_config_parse_text(struct moe_config_parse *parse, const char *text, size_t text_bytes)
{
    const struct moe_memory *memory = &parse->arena->memory;
    struct moe_tree_memory tree_memory = {memory->self, memory->alloc, memory->release};
    struct moe_tree_limits limits = MOE_TREE_LIMITS_CONFIG;
    struct moe_tree *tree = moe_tree_parse(text, text_bytes, MOE_TREE_YAML, &limits, &tree_memory,
                                           report_tree_finding, parse->report);
    if (tree == NULL) {
        return parse->report->status == MOE_STATUS_OUT_OF_MEMORY ? MOE_STATUS_OUT_OF_MEMORY
                                                                 : MOE_STATUS_OK;
    }
    parse_document(parse, moe_tree_root(tree));
    moe_tree_destroy(tree);
    return parse->out_of_memory ? MOE_STATUS_OUT_OF_MEMORY : MOE_STATUS_OK;
}
