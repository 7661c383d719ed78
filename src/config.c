/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot: layers are read from the weakest to the strongest, rules are put in order of
 * precedence.
 */
#define _GNU_SOURCE /* secure_getenv */

#include "config.h"

#include "config_file.h"
#include "config_parse.h"
#include "profiles.h"
#include "status.h"

#include <stdlib.h>
#include <string.h>

#define BUILT_IN_NAME    "built-in"
#define TEXT_NAME        "configuration text"
#define ENVIRONMENT_NAME "MOE_PLUGIN_CONFIG"
#define MAX_FILE_BYTES   (MOE_TREE_LIMITS_CONFIG.max_bytes)

/* The making of one snapshot. */
struct making {
    struct moe_config *config;
    const struct moe_config_request *request;
    struct moe_config_report report;
    struct moe_config_parse parse;
    const char *environment; /* the files of MOE_PLUGIN_CONFIG; NULL: none */
    bool environment_replaces;
    int32_t first_source; /* earlier ones and the built-in profiles are replaced; -1: nothing is */
};

/* The name must live as long as the snapshot. */
static int32_t begin_layer(struct making *making, const char *name, size_t name_bytes)
{
    struct moe_config *config = making->config;
    size_t old_bytes = config->layers != NULL ? strlen(config->layers) + 1 : 0;
    char *layers = moe_arena_alloc(&config->arena, old_bytes + name_bytes + 1);
    char *file = moe_arena_copy(&config->arena, name, name_bytes);
    if (layers == NULL || file == NULL) {
        return MOE_STATUS_OUT_OF_MEMORY;
    }
    if (old_bytes > 0) {
        memcpy(layers, config->layers, old_bytes - 1);
        layers[old_bytes - 1] = ',';
    }
    memcpy(layers + old_bytes, name, name_bytes);
    config->layers = layers;
    config->num_layers++;
    making->parse.layer = config->num_layers;
    making->parse.file = file;
    making->report.file = file;
    return MOE_STATUS_OK;
}

static int32_t read_text(struct making *making, const char *text, size_t text_bytes)
{
    making->report.text = text;
    making->report.text_bytes = text_bytes;
    int32_t status = moe_config_parse_text(&making->parse, text, text_bytes);
    making->report.text = NULL;
    return status;
}

static int32_t read_file(struct making *making, const char *path)
{
    struct moe_config_file file;
    const struct moe_memory *memory = &making->config->memory;
    int32_t status = moe_config_file_read(memory, path, MAX_FILE_BYTES, &file, &making->report);
    if (status != MOE_STATUS_OK) {
        return status == MOE_STATUS_OUT_OF_MEMORY
                   ? status
                   : MOE_STATUS_OK; /* reported; go on with the next */
    }
    status = read_text(making, file.text, file.text_bytes);
    moe_config_file_free(memory, &file);
    return status;
}

/* All profiles are one layer. */
static int32_t read_built_in(struct making *making)
{
    MOE_TRY(begin_layer(making, BUILT_IN_NAME, strlen(BUILT_IN_NAME)));
    for (size_t i = 0; i < moe_num_profiles; i++) {
        static const char prefix[] = BUILT_IN_NAME "/";
        size_t name_bytes = strlen(moe_profiles[i].name) + 1;
        char *file = moe_arena_alloc(&making->config->arena, sizeof(prefix) + name_bytes);
        if (file == NULL) {
            return MOE_STATUS_OUT_OF_MEMORY;
        }
        memcpy(file, prefix, sizeof(prefix));
        memcpy(file + sizeof(prefix) - 1, moe_profiles[i].name, name_bytes);
        making->parse.file = file;
        making->report.file = file;
        making->parse.is_built_in = true;
        int32_t status = read_text(making, moe_profiles[i].text, moe_profiles[i].text_bytes);
        making->parse.is_built_in = false;
        if (status != MOE_STATUS_OK) {
            return status;
        }
    }
    return MOE_STATUS_OK;
}

static int32_t read_source(struct making *making, const struct moe_config_source *source)
{
    const char *name = source->path != NULL ? source->path : TEXT_NAME;
    MOE_TRY(begin_layer(making, name, strlen(name)));
    if (source->text != NULL) {
        return read_text(making, source->text, source->text_bytes);
    }
    return read_file(making, source->path);
}

/* Each file is a layer of its own. */
static int32_t read_environment(struct making *making)
{
    const char *rest = making->environment;
    while (*rest != '\0') {
        size_t path_bytes = strcspn(rest, ":");
        bool ends_with_colon = rest[path_bytes] == ':' && rest[path_bytes + 1] == '\0';
        if (path_bytes == 0 || ends_with_colon) {
            making->report.file = ENVIRONMENT_NAME;
            moe_config_report_add(
                &making->report, MOE_LEVEL_ERROR,
                moe_config_report_code(MOE_CONFIG_CODE_ENVIRONMENT), 0, 0,
                "the value has an empty file name; valid: FILE[:FILE...], with a leading = to "
                "replace all other layers");
        }
        if (path_bytes > 0) {
            MOE_TRY(begin_layer(making, rest, path_bytes));
            MOE_TRY(read_file(making, making->parse.file));
        }
        rest += path_bytes;
        rest += *rest == ':' ? 1 : 0;
    }
    return MOE_STATUS_OK;
}

static int32_t check_sources(const struct moe_config_request *request, struct moe_error *error)
{
    if (request->num_sources < 0 || (request->num_sources > 0 && request->sources == NULL)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%d configuration sources, but no array of them",
                             request->num_sources);
    }
    for (int32_t i = 0; i < request->num_sources; i++) {
        const struct moe_config_source *source = &request->sources[i];
        if ((source->flags & ~MOE_CONFIG_REPLACE) != 0) {
            return moe_error_set(
                error, MOE_STATUS_INVALID_ARGUMENT,
                "configuration source %d has unknown flags 0x%x; valid: MOE_CONFIG_REPLACE", i,
                source->flags & ~MOE_CONFIG_REPLACE);
        }
        if (source->path == NULL && source->text == NULL) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "configuration source %d has neither a path nor a text", i);
        }
        if (source->text_bytes > SIZE_MAX / 2) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "configuration source %d has too many text_bytes", i);
        }
    }
    return MOE_STATUS_OK;
}

/*
 * What replaces what: layers that are replaced are not even read, so that a broken one can be got
 * rid of.
 */
static void find_replacements(struct making *making)
{
    const struct moe_config_request *request = making->request;
    making->first_source = -1;
    for (int32_t i = 0; i < request->num_sources; i++) {
        if ((request->sources[i].flags & MOE_CONFIG_REPLACE) != 0) {
            making->first_source = i;
        }
    }
    making->environment = request->use_environment ? secure_getenv(ENVIRONMENT_NAME) : NULL;
    making->environment_replaces = making->environment != NULL && making->environment[0] == '=';
    if (making->environment_replaces) {
        making->environment++;
    }
}

static int32_t read_layers(struct making *making)
{
    if (!making->environment_replaces) {
        if (making->first_source < 0) {
            MOE_TRY(read_built_in(making));
        }
        for (int32_t i = making->first_source < 0 ? 0 : making->first_source;
             i < making->request->num_sources; i++) {
            MOE_TRY(read_source(making, &making->request->sources[i]));
        }
    }
    return making->environment != NULL ? read_environment(making) : MOE_STATUS_OK;
}

/*
 * Order of precedence, strongest first. Layer, priority, exact keys, other keys, later in the file.
 */
static int compare_rules(const void *left, const void *right)
{
    const struct moe_rule *a = *(const struct moe_rule *const *)left;
    const struct moe_rule *b = *(const struct moe_rule *const *)right;
    if (a->layer != b->layer) {
        return a->layer > b->layer ? -1 : 1;
    }
    if (a->priority != b->priority) {
        return a->priority > b->priority ? -1 : 1;
    }
    if (a->num_exact != b->num_exact) {
        return a->num_exact > b->num_exact ? -1 : 1;
    }
    if (a->num_loose != b->num_loose) {
        return a->num_loose > b->num_loose ? -1 : 1;
    }
    return a->sequence > b->sequence ? -1 : a->sequence < b->sequence;
}

static int32_t order_rules(struct making *making)
{
    struct moe_config *config = making->config;
    size_t num_rules = (size_t)making->parse.num_rules;
    const struct moe_rule **rules = moe_arena_alloc(&config->arena, num_rules * sizeof(*rules));
    if (rules == NULL) {
        return MOE_STATUS_OUT_OF_MEMORY;
    }
    size_t i = 0;
    for (const struct moe_rule *rule = making->parse.first; rule != NULL; rule = rule->next) {
        rules[i++] = rule;
    }
    qsort(rules, num_rules, sizeof(*rules), compare_rules);
    config->rules = rules;
    config->num_rules = making->parse.num_rules;
    config->fingerprint = MOE_HASH_START;
    for (i = 0; i < num_rules; i++) {
        config->fingerprint = moe_rule_hash(config->fingerprint, rules[i]);
    }
    return MOE_STATUS_OK;
}

int32_t moe_config_create(const struct moe_memory *memory, const struct moe_config_request *request,
                          struct moe_config **out, struct moe_error *error)
{
    MOE_TRY(check_sources(request, error));
    struct moe_config *config = moe_memory_alloc(memory, sizeof(*config));
    if (config == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for the configuration");
    }
    config->memory = *memory;
    atomic_init(&config->num_references, 1);
    moe_arena_init(&config->arena, memory);

    struct making making;
    memset(&making, 0, sizeof(making));
    making.config = config;
    making.request = request;
    making.report.diagnostic = request->diagnostic;
    making.report.diagnostic_self = request->diagnostic_self;
    making.report.error = error;
    making.report.file = BUILT_IN_NAME;
    making.parse.report = &making.report;
    making.parse.arena = &config->arena;
    making.parse.device = request->device;
    find_replacements(&making);

    int32_t status = read_layers(&making);
    if (status == MOE_STATUS_OK && making.report.status == MOE_STATUS_OK) {
        status = order_rules(&making);
    }
    if (status == MOE_STATUS_OUT_OF_MEMORY) {
        moe_error_set(error, status, "no memory for the configuration");
    } else if (status == MOE_STATUS_OK) {
        status = making.report.status;
    }
    if (status != MOE_STATUS_OK) {
        moe_config_unref(config);
        return status;
    }
    *out = config;
    return MOE_STATUS_OK;
}

struct moe_config *moe_config_ref(struct moe_config *config)
{
    atomic_fetch_add_explicit(&config->num_references, 1, memory_order_relaxed);
    return config;
}

void moe_config_unref(struct moe_config *config)
{
    /* Release what this thread did with it; acquire what the others did before it is freed. */
    if (config == NULL ||
        atomic_fetch_sub_explicit(&config->num_references, 1, memory_order_acq_rel) != 1) {
        return;
    }
    struct moe_memory memory = config->memory;
    moe_arena_finish(&config->arena);
    moe_memory_free(&memory, config, sizeof(*config));
}

void moe_config_describe(const struct moe_config *config, struct moe_config_info *out)
{
    out->num_rules = config->num_rules;
    out->num_layers = config->num_layers;
    out->fingerprint = config->fingerprint;
    out->layers = config->layers != NULL ? config->layers : "";
}
