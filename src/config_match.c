/* SPDX-License-Identifier: Apache-2.0 */
/* Reading `match`: a value of one of the forms that its key takes. */
#include "config_parse.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NUMBER_BYTES 40u

/* What is being read: the key's row, and the rule's value for it. */
struct reading {
    struct moe_config_parse *parse;
    int32_t key;
    const struct moe_match_key *row;
    const struct moe_tree_node *node;
    struct moe_match_value *value;
};

static const char *match_key_name(const void *self, int32_t position)
{
    (void)self;
    return position < MOE_NUM_MATCH_KEYS ? moe_match_keys[position].name : NULL;
}

static const char *valid_name(const void *self, int32_t position)
{
    const int32_t *key = self;
    return moe_match_key_name(*key, position);
}

/* What the key takes, in words. */
static void add_valid_forms(struct moe_words *words, const struct reading *reading)
{
    uint32_t forms = reading->row->forms;
    const char *separator = "";
    if ((forms & MOE_FORM_SCALAR) != 0) {
        switch (reading->row->kind) {
        case MOE_KIND_NAME:
            moe_words_add(words, "one of ");
            moe_words_add_names(words, valid_name, &reading->key);
            break;
        case MOE_KIND_INTEGER:
            moe_words_add(words, "an integer from 1 to %lld", (long long)reading->row->max);
            break;
        default:
            moe_words_add(words, "a text");
            break;
        }
        separator = "; ";
    }
    if ((forms & MOE_FORM_LIST) != 0) {
        moe_words_add(words, "%sa list of them", separator);
        separator = "; ";
    }
    if ((forms & MOE_FORM_RANGE) != 0) {
        moe_words_add(words, "%s\">=a\"; \"<=a\"; \"a..b\"", separator);
        separator = "; ";
    }
    if ((forms & MOE_FORM_MULTIPLE) != 0) {
        moe_words_add(words, "%s\"%%k\", a multiple of k", separator);
        separator = "; ";
    }
    if ((forms & MOE_FORM_GLOB) != 0) {
        moe_words_add(words, "%sa glob with * and ?", separator);
        separator = "; ";
    }
    if ((forms & MOE_FORM_PAIR) != 0) {
        moe_words_add(words, "%sa pair [n, k] of integers from 1 to %lld", separator,
                      (long long)reading->row->max);
    }
}

static bool refuse(const struct reading *reading, const struct moe_tree_node *node, int32_t code)
{
    struct moe_words words = {0, ""};
    moe_words_add(&words, "%s is ", reading->row->name);
    moe_words_add_node(&words, node);
    moe_words_add(&words, "; valid: ");
    add_valid_forms(&words, reading);
    if (code == MOE_CONFIG_CODE_VALUE) {
        moe_words_add_suggestion(&words, node->text, valid_name, &reading->key);
    }
    moe_config_report_error(reading->parse->report, node, code, "%s", words.text);
    return false;
}

static bool read_text_item(const struct reading *reading, const struct moe_tree_node *node,
                           struct moe_match_item *item)
{
    if (node->text_bytes == 0 || moe_tree_is_null(node)) {
        return refuse(reading, node, MOE_CONFIG_CODE_TYPE);
    }
    char *copy = moe_config_parse_alloc(reading->parse, node->text_bytes + 1);
    if (copy == NULL) {
        return false;
    }
    for (size_t i = 0; i < node->text_bytes; i++) {
        char c = node->text[i];
        copy[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    item->text = copy;
    return true;
}

/* One scalar: a number, a name or a text. */
static bool read_item(const struct reading *reading, const struct moe_tree_node *node,
                      struct moe_match_item *item)
{
    if (node->kind != MOE_NODE_SCALAR) {
        return refuse(reading, node, MOE_CONFIG_CODE_TYPE);
    }
    switch (reading->row->kind) {
    case MOE_KIND_TEXT:
        return read_text_item(reading, node, item);
    case MOE_KIND_NAME:
        item->number = moe_match_key_find(reading->key, node->text);
        if (item->number >= 0) {
            return true;
        }
        return refuse(reading, node,
                      moe_tree_is_null(node) ? MOE_CONFIG_CODE_TYPE : MOE_CONFIG_CODE_VALUE);
    default:
        if (moe_tree_to_int64(node, 1, reading->row->max, &item->number) == 0) {
            return true;
        }
        return refuse(reading, node,
                      moe_config_parse_looks_like_integer(node) ? MOE_CONFIG_CODE_RANGE
                                                                : MOE_CONFIG_CODE_TYPE);
    }
}

static int compare_items(const void *left, const void *right)
{
    const struct moe_match_item *a = left;
    const struct moe_match_item *b = right;
    if (a->text != NULL && b->text != NULL) {
        return strcmp(a->text, b->text);
    }
    return a->number < b->number ? -1 : a->number > b->number;
}

static int order_items(const void *left, const void *right)
{
    const struct moe_match_item *a = left;
    const struct moe_match_item *b = right;
    int order = compare_items(a, b);
    return order != 0 ? order : (a->position < b->position ? -1 : 1);
}

/* Sort a list, so that its order does not matter; an item that stands twice is an error. */
static bool sort_items(const struct reading *reading, struct moe_match_item *items,
                       size_t num_items)
{
    qsort(items, num_items, sizeof(*items), order_items);
    const struct moe_tree_node *again = NULL;
    for (size_t i = 1; i < num_items; i++) {
        const struct moe_tree_node *node = &reading->node->children[items[i].position];
        if (compare_items(&items[i - 1], &items[i]) == 0 && (again == NULL || node < again)) {
            again = node;
        }
    }
    if (again == NULL) {
        return true;
    }
    struct moe_words words = {0, ""};
    moe_words_add_node(&words, again);
    moe_config_report_error(reading->parse->report, again, MOE_CONFIG_CODE_DUPLICATE_ITEM,
                            "%s lists %s twice", reading->row->name, words.text);
    return false;
}

static bool read_items(const struct reading *reading, size_t num_items, struct moe_match_item **out)
{
    const struct moe_tree_node *node = reading->node;
    struct moe_match_item *items =
        moe_config_parse_alloc(reading->parse, num_items * sizeof(*items));
    if (items == NULL) {
        return false;
    }
    bool good = true;
    for (size_t i = 0; i < num_items && !reading->parse->out_of_memory; i++) {
        items[i].position = i;
        good = read_item(reading, &node->children[i], &items[i]) && good;
    }
    *out = items;
    return good && !reading->parse->out_of_memory;
}

static bool read_list(const struct reading *reading)
{
    const struct moe_tree_node *node = reading->node;
    bool is_pair = reading->row->kind == MOE_KIND_PAIR;
    if (node->num_children == 0 || (is_pair && node->num_children != 2) ||
        (reading->row->forms & (MOE_FORM_LIST | MOE_FORM_PAIR)) == 0) {
        return refuse(reading, node, MOE_CONFIG_CODE_TYPE);
    }
    struct moe_match_item *items;
    if (!read_items(reading, node->num_children, &items)) {
        return false;
    }
    if (!is_pair && !sort_items(reading, items, node->num_children)) {
        return false;
    }
    reading->value->items = items;
    reading->value->num_items = (int32_t)node->num_children;
    /* A list of one is that one. */
    reading->value->form = is_pair ? MOE_FORM_PAIR : MOE_FORM_LIST;
    if (!is_pair && node->num_children == 1) {
        bool is_glob = items[0].text != NULL && strpbrk(items[0].text, "*?") != NULL;
        reading->value->form = is_glob ? MOE_FORM_GLOB : MOE_FORM_SCALAR;
    }
    return true;
}

/*
 * The number that `num_bytes` bytes spell: an integer from 1 to the key's maximum, or a real number
 * that is not negative.
 */
static bool read_number(const struct reading *reading, const char *text, size_t num_bytes,
                        double *out)
{
    char copy[MAX_NUMBER_BYTES + 1];
    if (num_bytes == 0 || num_bytes > MAX_NUMBER_BYTES) {
        return refuse(reading, reading->node, MOE_CONFIG_CODE_RANGE);
    }
    memcpy(copy, text, num_bytes);
    copy[num_bytes] = '\0';
    struct moe_tree_node node;
    memset(&node, 0, sizeof(node));
    node.kind = MOE_NODE_SCALAR;
    node.text = copy;
    node.text_bytes = num_bytes;
    int64_t integer;
    double real;
    if (reading->row->kind == MOE_KIND_REAL && moe_tree_to_double(&node, &real) == 0 &&
        real >= 0.0) {
        *out = real + 0.0; /* -0 is 0 */
        return true;
    }
    if (reading->row->kind == MOE_KIND_INTEGER &&
        moe_tree_to_int64(&node, 1, reading->row->max, &integer) == 0) {
        *out = (double)integer;
        return true;
    }
    return refuse(reading, reading->node, MOE_CONFIG_CODE_RANGE);
}

static bool read_range(const struct reading *reading)
{
    const char *text = reading->node->text;
    size_t num_bytes = reading->node->text_bytes;
    struct moe_match_value *value = reading->value;
    value->form = MOE_FORM_RANGE;
    value->low = -INFINITY;
    value->high = INFINITY;
    if (strncmp(text, ">=", 2) == 0) {
        return read_number(reading, text + 2, num_bytes - 2, &value->low);
    }
    if (strncmp(text, "<=", 2) == 0) {
        return read_number(reading, text + 2, num_bytes - 2, &value->high);
    }
    const char *dots = strstr(text, "..");
    size_t low_bytes = (size_t)(dots - text);
    if (!read_number(reading, text, low_bytes, &value->low) ||
        !read_number(reading, dots + 2, num_bytes - low_bytes - 2, &value->high)) {
        return false;
    }
    if (value->low > value->high) {
        moe_config_report_error(
            reading->parse->report, reading->node, MOE_CONFIG_CODE_RANGE,
            "%s is \"%s\", which holds for nothing; valid: \"a..b\" with a <= b",
            reading->row->name, text);
        return false;
    }
    return true;
}

static bool read_multiple(const struct reading *reading)
{
    double divisor = 0.0;
    if (!read_number(reading, reading->node->text + 1, reading->node->text_bytes - 1, &divisor)) {
        return false;
    }
    struct moe_match_item *item = moe_config_parse_alloc(reading->parse, sizeof(*item));
    if (item == NULL) {
        return false;
    }
    item->number = (int64_t)divisor;
    reading->value->form = MOE_FORM_MULTIPLE;
    reading->value->items = item;
    reading->value->num_items = 1;
    return true;
}

static bool read_scalar(const struct reading *reading)
{
    const char *text = reading->node->text;
    uint32_t forms = reading->row->forms;
    bool is_range =
        strncmp(text, ">=", 2) == 0 || strncmp(text, "<=", 2) == 0 || strstr(text, "..") != NULL;
    if (is_range && (forms & MOE_FORM_RANGE) != 0) {
        return read_range(reading);
    }
    if (text[0] == '%' && (forms & MOE_FORM_MULTIPLE) != 0) {
        return read_multiple(reading);
    }
    if ((forms & MOE_FORM_SCALAR) == 0) {
        return refuse(reading, reading->node, MOE_CONFIG_CODE_TYPE);
    }
    struct moe_match_item *item = moe_config_parse_alloc(reading->parse, sizeof(*item));
    if (item == NULL || !read_item(reading, reading->node, item)) {
        return false;
    }
    bool is_glob = item->text != NULL && strpbrk(item->text, "*?") != NULL;
    reading->value->form = is_glob ? MOE_FORM_GLOB : MOE_FORM_SCALAR;
    reading->value->items = item;
    reading->value->num_items = 1;
    return true;
}

/* The value as the file spells it, for explain. */
static bool keep_words(const struct reading *reading)
{
    struct moe_words words = {0, ""};
    const struct moe_tree_node *node = reading->node;
    if (node->kind == MOE_NODE_SCALAR) {
        moe_words_add(&words, "%s", node->text);
    } else {
        for (size_t i = 0; i < node->num_children; i++) {
            moe_words_add(&words, "%s%s", i == 0 ? "[" : ", ", node->children[i].text);
        }
        moe_words_add(&words, "]");
    }
    reading->value->words = moe_arena_copy(reading->parse->arena, words.text, words.num_bytes);
    if (reading->value->words == NULL) {
        reading->parse->out_of_memory = true;
    }
    return reading->value->words != NULL;
}

static bool read_value(const struct reading *reading)
{
    switch (reading->node->kind) {
    case MOE_NODE_SEQUENCE:
        return read_list(reading) && keep_words(reading);
    case MOE_NODE_SCALAR:
        return read_scalar(reading) && keep_words(reading);
    default:
        return refuse(reading, reading->node, MOE_CONFIG_CODE_TYPE);
    }
}

bool moe_config_parse_match(struct moe_config_parse *parse, const struct moe_tree_node *node,
                            struct moe_rule *rule)
{
    rule->match_hash = moe_rule_hash_match(MOE_HASH_START, rule);
    if (node == NULL) {
        return true;
    }
    if (!moe_config_parse_expect(parse, node, MOE_NODE_MAPPING, "match",
                                 "a mapping of match keys")) {
        return false;
    }
    bool good = true;
    for (size_t i = 0; i < node->num_children && !parse->out_of_memory; i++) {
        int32_t key = 0;
        while (key < MOE_NUM_MATCH_KEYS &&
               strcmp(moe_match_keys[key].name, node->keys[i].text) != 0) {
            key++;
        }
        if (key == MOE_NUM_MATCH_KEYS) {
            moe_config_parse_unknown_key(parse, &node->keys[i], "match", match_key_name, NULL);
            good = false;
            continue;
        }
        struct reading reading = {parse, key, &moe_match_keys[key], &node->children[i],
                                  &rule->match[key]};
        good = read_value(&reading) && good;
        bool exact = (rule->match[key].form & (MOE_FORM_SCALAR | MOE_FORM_PAIR)) != 0;
        rule->num_exact += exact ? 1 : 0;
        rule->num_loose += exact ? 0 : 1;
    }
    rule->match_hash = moe_rule_hash_match(MOE_HASH_START, rule);
    return good && !parse->out_of_memory;
}
