/* SPDX-License-Identifier: Apache-2.0 */
#include "tree.h"
#include "tree_build.h"
#include "tree_text.h"

#include <string.h>
#include <yaml.h>

struct moe_tree {
    struct moe_tree_arena arena; /* holds this structure as well */
    struct moe_tree_node root;
};

/* What one call of moe_tree_parse works with. */
struct reader {
    struct moe_tree_arena arena; /* goes into the tree at the end */
    struct moe_tree_problems problems;
    struct moe_tree_build build;
    struct moe_tree_json json;
    yaml_parser_t parser;
    int syntax;
    int has_document;
};

static struct moe_tree_place place_of(const yaml_mark_t *mark)
{
    struct moe_tree_place place = {(uint32_t)(mark->line + 1), (uint32_t)(mark->column + 1)};

    return place;
}

static void add_problem(struct reader *reader, int32_t code, struct moe_tree_place place,
                        const char *sentence)
{
    moe_tree_problems_add(&reader->problems, code, place.line, place.column, "%s", sentence);
}

/* libyaml has given up. */
static void report_parser_error(struct reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    const char *problem = parser->problem != NULL ? parser->problem : "the text cannot be read";
    struct moe_tree_place place = place_of(&parser->problem_mark);
    struct moe_tree_place context = place_of(&parser->context_mark);

    if (parser->error == YAML_MEMORY_ERROR) {
        add_problem(reader, MOE_TREE_OUT_OF_MEMORY, place, "out of memory");
        return;
    }
    if (reader->syntax == MOE_TREE_JSON && reader->json.is_broken) {
        return; /* the filter has ended the text, and has said why */
    }
    if (parser->error == YAML_READER_ERROR) {
        add_problem(reader, MOE_TREE_SYNTAX, place_of(&parser->mark), problem);
        return;
    }
    if (parser->context == NULL) {
        add_problem(reader, MOE_TREE_SYNTAX, place, problem);
        return;
    }
    moe_tree_problems_add(&reader->problems, MOE_TREE_SYNTAX, place.line, place.column,
                          "%s (%s that starts at line %u, column %u)", problem, parser->context,
                          (unsigned)context.line, (unsigned)context.column);
}

/* Reports what YAML may attach to a node and we refuse. */
static void refuse_properties(struct reader *reader, struct moe_tree_place place,
                              const yaml_char_t *anchor, const yaml_char_t *tag)
{
    char excerpt[MOE_TREE_EXCERPT_BYTES];

    if (anchor != NULL) {
        const char *name = (const char *)anchor;

        moe_tree_problems_add(&reader->problems, MOE_TREE_ANCHOR, place.line, place.column,
                              "the anchor '&%s' is not supported; write the value where it is used",
                              moe_tree_problems_excerpt(excerpt, name, strlen(name)));
    }
    if (tag != NULL) {
        const char *name = (const char *)tag;

        moe_tree_problems_add(&reader->problems, MOE_TREE_TAG, place.line, place.column,
                              "the tag '%s' is not supported; values have no explicit types",
                              moe_tree_problems_excerpt(excerpt, name, strlen(name)));
    }
}

static int take_alias(struct reader *reader, struct moe_tree_place place, const yaml_char_t *anchor)
{
    char excerpt[MOE_TREE_EXCERPT_BYTES];
    const char *name = (const char *)anchor;

    moe_tree_problems_add(&reader->problems, MOE_TREE_ALIAS, place.line, place.column,
                          "the alias '*%s' is not supported; write the value itself",
                          moe_tree_problems_excerpt(excerpt, name, strlen(name)));
    return moe_tree_build_hole(&reader->build, place);
}

static int take_scalar(struct reader *reader, struct moe_tree_place place,
                       const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t text_bytes = event->data.scalar.length;
    int is_quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;

    refuse_properties(reader, place, event->data.scalar.anchor, event->data.scalar.tag);
    if (reader->build.num_open == 0 && text_bytes == 0 && !is_quoted) {
        return 0; /* a document of nothing, such as `---` */
    }
    return moe_tree_build_scalar(&reader->build, place, text, text_bytes, is_quoted);
}

/* Returns 0 to read on, 1 at the end, -1 after a problem that ends the reading. */
static int take_event(struct reader *reader, const yaml_event_t *event)
{
    struct moe_tree_build *build = &reader->build;
    struct moe_tree_place place = place_of(&event->start_mark);

    if (reader->syntax == MOE_TREE_JSON &&
        (event->type == YAML_SCALAR_EVENT || event->type == YAML_SEQUENCE_START_EVENT ||
         event->type == YAML_SEQUENCE_END_EVENT || event->type == YAML_MAPPING_START_EVENT ||
         event->type == YAML_MAPPING_END_EVENT)) {
        place = moe_tree_json_take_place(&reader->json);
    }
    switch (event->type) {
    case YAML_STREAM_END_EVENT:
        return 1;
    case YAML_DOCUMENT_START_EVENT:
        if (reader->has_document) {
            add_problem(reader, MOE_TREE_SEVERAL_DOCUMENTS, place,
                        "a second document starts here; a file has one");
            return -1;
        }
        reader->has_document = 1;
        return 0;
    case YAML_ALIAS_EVENT:
        return take_alias(reader, place, event->data.alias.anchor);
    case YAML_SCALAR_EVENT:
        return take_scalar(reader, place, event);
    case YAML_SEQUENCE_START_EVENT:
        refuse_properties(reader, place, event->data.sequence_start.anchor,
                          event->data.sequence_start.tag);
        return moe_tree_build_open(build, place, MOE_NODE_SEQUENCE);
    case YAML_MAPPING_START_EVENT:
        refuse_properties(reader, place, event->data.mapping_start.anchor,
                          event->data.mapping_start.tag);
        return moe_tree_build_open(build, place, MOE_NODE_MAPPING);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        return moe_tree_build_close(build);
    default:
        return 0; /* the start of the stream and the end of the document say nothing */
    }
}

static void read_events(struct reader *reader)
{
    int status = 0;

    while (status == 0 && !moe_tree_problems_must_stop(&reader->problems)) {
        yaml_event_t event;

        if (!yaml_parser_parse(&reader->parser, &event)) {
            report_parser_error(reader);
            status = -1;
            break;
        }
        status = take_event(reader, &event);
        yaml_event_delete(&event);
    }
    if (status < 0 && !moe_tree_problems_must_stop(&reader->problems)) {
        moe_tree_build_close_all(&reader->build);
    }
}

/* A document of nothing is a mapping of nothing. */
static void add_root(struct reader *reader)
{
    struct moe_tree_place start = {1, 1};

    if (!moe_tree_problems_any(&reader->problems) && reader->build.num_pending == 0 &&
        moe_tree_build_open(&reader->build, start, MOE_NODE_MAPPING) == 0) {
        moe_tree_build_close(&reader->build);
    }
}

static void read_text(struct reader *reader, const char *text, size_t text_bytes)
{
    static const char byte_order_mark[] = "\xEF\xBB\xBF";

    if (text_bytes > reader->build.limits.max_bytes) {
        moe_tree_problems_add(&reader->problems, MOE_TREE_TOO_LARGE, 1, 1,
                              "the text has %zu bytes; the limit is %zu", text_bytes,
                              reader->build.limits.max_bytes);
        return;
    }
    if (text_bytes >= 3 && memcmp(text, byte_order_mark, 3) == 0) {
        text += 3;
        text_bytes -= 3;
    }
    if (moe_tree_text_check(text, text_bytes, reader->syntax, &reader->problems) != 0) {
        return;
    }
    if (!yaml_parser_initialize(&reader->parser)) {
        moe_tree_problems_add(&reader->problems, MOE_TREE_OUT_OF_MEMORY, 1, 1, "out of memory");
        return;
    }
    yaml_parser_set_encoding(&reader->parser, YAML_UTF8_ENCODING);
    if (reader->syntax == MOE_TREE_JSON) {
        moe_tree_json_init(&reader->json, text, text_bytes, &reader->problems);
        yaml_parser_set_input(&reader->parser, moe_tree_json_read, &reader->json);
    } else {
        yaml_parser_set_input_string(&reader->parser, (const unsigned char *)text, text_bytes);
    }
    read_events(reader);
    yaml_parser_delete(&reader->parser);
    add_root(reader);
}

/* Moves what was built into a tree; NULL if out of memory. */
static struct moe_tree *make_tree(struct reader *reader)
{
    struct moe_tree *tree =
        moe_tree_arena_alloc(&reader->arena, sizeof *tree, _Alignof(max_align_t));

    if (tree == NULL) {
        moe_tree_problems_add(&reader->problems, MOE_TREE_OUT_OF_MEMORY, 1, 1, "out of memory");
        return NULL;
    }
    tree->root = reader->build.pending[0];
    tree->arena = reader->arena;
    return tree;
}

struct moe_tree *moe_tree_parse(
    const char *text, size_t text_bytes, int syntax, const struct moe_tree_limits *limits,
    const struct moe_tree_memory *memory,
    void (*report)(void *self, const struct moe_tree_diagnostic *diagnostic), void *report_self)
{
    struct moe_tree_limits applied = limits != NULL ? *limits : MOE_TREE_LIMITS_CONFIG;
    struct moe_tree *tree = NULL;
    struct reader reader;

    if (applied.max_bytes > INT32_MAX) {
        applied.max_bytes = INT32_MAX;
    }
    if (applied.max_depth > MOE_TREE_DEPTH_CEILING) {
        applied.max_depth = MOE_TREE_DEPTH_CEILING;
    }
    memset(&reader, 0, sizeof reader);
    reader.syntax = syntax;
    moe_tree_arena_init(&reader.arena, memory);
    moe_tree_problems_init(&reader.problems, &reader.arena);
    moe_tree_build_init(&reader.build, &reader.arena, &reader.problems, &applied);

    read_text(&reader, text != NULL ? text : "", text_bytes);
    if (!moe_tree_problems_any(&reader.problems)) {
        tree = make_tree(&reader);
    }
    moe_tree_build_finish(&reader.build);
    moe_tree_problems_finish(&reader.problems, report, report_self);
    if (tree == NULL) {
        moe_tree_arena_finish(&reader.arena);
    }
    return tree;
}

void moe_tree_destroy(struct moe_tree *tree)
{
    if (tree != NULL) {
        struct moe_tree_arena arena = tree->arena; /* a copy: the tree lies in it */

        moe_tree_arena_finish(&arena);
    }
}

const struct moe_tree_node *moe_tree_root(const struct moe_tree *tree)
{
    return &tree->root;
}

const char *moe_tree_code_name(int32_t code)
{
    switch (code) {
#define MOE_TREE_CODE_NAME(name, number, text) \
    case MOE_TREE_##name:                      \
        return text;
        MOE_TREE_CODES(MOE_TREE_CODE_NAME)
#undef MOE_TREE_CODE_NAME
    default:
        return NULL;
    }
}
