/* SPDX-License-Identifier: Apache-2.0 */
/* P6 to P8: structs that begin with struct_size, in all sizes. */
#define _GNU_SOURCE
#include "conform_calls.h"
#include "conform_rules.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---------------------------------------------------------------- places of inputs */

union any_input {
    struct moe_host host;
    struct moe_context_options options;
    struct moe_config_source source;
    struct moe_device device;
    struct moe_problem problem;
    struct moe_plan_options plan_options;
    struct moe_weights_desc desc;
    struct moe_explain_sink sink;
    union moe_conform_args args;
};

struct place {
    const char *name;
    size_t own_bytes;
    void (*fill)(const struct moe_conform *conform, union any_input *own);
    int32_t (*call)(struct moe_conform *conform, const void *own, struct moe_error *error);
};

static void fill_host(const struct moe_conform *conform, union any_input *own)
{
    own->host = conform->services;
}

static void fill_options(const struct moe_conform *conform, union any_input *own)
{
    (void)conform;
    own->options.struct_size = sizeof own->options;
    own->options.backend = MOE_BACKEND_CPU;
    own->options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    own->options.num_threads = 1;
}

static void fill_source(const struct moe_conform *conform, union any_input *own)
{
    static const char text[] = "schema: moe-dispatch/1\nrules: []\n";
    (void)conform;
    own->source.struct_size = sizeof own->source;
    own->source.path = "text";
    own->source.text = text;
    own->source.text_bytes = sizeof text - 1;
}

static void fill_device(const struct moe_conform *conform, union any_input *own)
{
    own->device = conform->device;
}

static void fill_problem(const struct moe_conform *conform, union any_input *own)
{
    own->problem = conform->problem;
}

static void fill_plan_options(const struct moe_conform *conform, union any_input *own)
{
    (void)conform;
    own->plan_options.struct_size = sizeof own->plan_options;
}

static void fill_weights(const struct moe_conform *conform, union any_input *own)
{
    own->desc = conform->desc;
}

static void fill_sink(const struct moe_conform *conform, union any_input *own)
{
    (void)conform;
    own->sink.struct_size = sizeof own->sink;
}

static int32_t call_create(struct moe_conform *conform, const struct moe_host *host,
                           const struct moe_context_options *options, struct moe_error *error)
{
    struct moe_context *context = NULL;
    union any_input quick = {.host = {.struct_size = 0}};
    fill_options(conform, &quick);
    const int32_t status =
        conform->api->context_create(host != NULL ? host : &conform->services,
                                     options != NULL ? options : &quick.options, &context, error);
    conform->api->context_destroy(context);
    return status;
}

static int32_t call_host(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    return call_create(conform, own, NULL, error);
}

static int32_t call_options(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    return call_create(conform, NULL, own, error);
}

static int32_t call_source(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    return conform->api->config_validate(NULL, own, 1, NULL, NULL, NULL, error);
}

static int32_t call_device(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    return conform->api->supports(own, &conform->problem, 0, error);
}

static int32_t call_problem(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    return conform->api->supports(&conform->device, own, 0, error);
}

static int32_t call_plan(struct moe_conform *conform, const struct moe_problem *problem,
                         const struct moe_plan_options *options, struct moe_error *error)
{
    struct moe_plan *plan = NULL;
    const int32_t status =
        conform->api->plan_create(conform->context, problem, options, &plan, error);
    conform->api->plan_destroy(plan);
    return status;
}

static int32_t call_plan_problem(struct moe_conform *conform, const void *own,
                                 struct moe_error *error)
{
    return call_plan(conform, own, NULL, error);
}

static int32_t call_plan_options(struct moe_conform *conform, const void *own,
                                 struct moe_error *error)
{
    return call_plan(conform, &conform->problem, own, error);
}

static int32_t call_sink(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    return conform->api->explain(conform->context, NULL, &conform->problem, 1, own, error);
}

static int32_t call_weights(struct moe_conform *conform, const void *own, struct moe_error *error)
{
    struct moe_weights_info info;
    MOE_INIT(info);
    return conform->api->weights_query(conform->context, &conform->problem, own, &info, error);
}

static const struct place places[] = {
    {"moe_host of context_create", sizeof(struct moe_host), fill_host, call_host},
    {"moe_context_options", sizeof(struct moe_context_options), fill_options, call_options},
    {"moe_config_source", sizeof(struct moe_config_source), fill_source, call_source},
    {"moe_device of supports", sizeof(struct moe_device), fill_device, call_device},
    {"moe_problem of supports", sizeof(struct moe_problem), fill_problem, call_problem},
    {"moe_problem of plan_create", sizeof(struct moe_problem), fill_problem, call_plan_problem},
    {"moe_plan_options", sizeof(struct moe_plan_options), fill_plan_options, call_plan_options},
    {"moe_explain_sink", sizeof(struct moe_explain_sink), fill_sink, call_sink},
    {"moe_weights_desc", sizeof(struct moe_weights_desc), fill_weights, call_weights},
};

/* ---------------------------------------------------------------- P6, P7 */

/* Memory whose last byte is followed by a page without access. */
struct ending {
    unsigned char *end;
    size_t num_bytes;
};

static struct ending map_ending(struct moe_conform *conform)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *pages =
        mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + page, page, PROT_NONE) != 0) {
        moe_conform_skip(conform, "no memory for a guarded struct");
    }
    return (struct ending){pages + page, page};
}

struct caller {
    const char *name;
    const struct place *place;           /* either this */
    const struct moe_conform_call *call; /* or that */
};

static int32_t call_with(struct moe_conform *conform, const struct caller *caller, const void *own,
                         struct moe_error *error)
{
    MOE_INIT(*error);
    return caller->place != NULL ? caller->place->call(conform, own, error)
                                 : caller->call->run(conform->api, conform->plan, own, error);
}

/* The struct with this struct_size; it starts 8-aligned, so up to 7 bytes lie behind it. */
static unsigned char *place_struct(const struct ending *ending, const void *valid, size_t own_bytes,
                                   size_t bytes)
{
    const uint32_t struct_size = (uint32_t)bytes;
    const size_t room = ((bytes < sizeof struct_size ? sizeof struct_size : bytes) + 7) / 8 * 8;
    unsigned char *own = ending->end - room;
    memset(own, 0, room);
    memcpy(own, valid, own_bytes < room ? own_bytes : room);
    memcpy(own, &struct_size, sizeof struct_size);
    return own;
}

static void check_known_sizes(struct moe_conform *conform, const struct caller *caller,
                              const void *valid, size_t own_bytes, const struct ending *ending)
{
    struct moe_error error;
    for (size_t bytes = 0; bytes <= own_bytes + MOE_CONFORM_TAIL_BYTES; ++bytes) {
        const void *own = place_struct(ending, valid, own_bytes, bytes);
        const int32_t status = call_with(conform, caller, own, &error);
        const int32_t wanted = bytes < own_bytes ? MOE_STATUS_INVALID_ARGUMENT : MOE_STATUS_OK;
        if (status != wanted) {
            moe_conform_fail(conform, "%s with struct_size %zu of %zu: status %d instead of %d: %s",
                             caller->name, bytes, own_bytes, status, wanted, error.message);
        }
    }
}

static void check_unknown_tails(struct moe_conform *conform, const struct caller *caller,
                                const void *valid, size_t own_bytes, const struct ending *ending)
{
    struct moe_error error;
    const size_t bytes = own_bytes + MOE_CONFORM_TAIL_BYTES;
    unsigned char *own = place_struct(ending, valid, own_bytes, bytes);
    for (size_t i = own_bytes; i < bytes; ++i) {
        own[i] = (unsigned char)(1u << (i % 8));
        const int32_t status = call_with(conform, caller, own, &error);
        if (status != MOE_STATUS_UNKNOWN_FIELD) {
            moe_conform_fail(conform,
                             "%s with byte %zu set, %zu behind what this version has: status %d "
                             "instead of UNKNOWN_FIELD",
                             caller->name, i, i - own_bytes, status);
        }
        own[i] = 0;
    }
}

typedef void check_sizes_fn(struct moe_conform *conform, const struct caller *caller,
                            const void *valid, size_t own_bytes, const struct ending *ending);

static void check_inputs(struct moe_conform *conform, check_sizes_fn *check)
{
    moe_conform_open(conform, 1);
    const struct ending ending = map_ending(conform);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i) {
        union any_input valid;
        const struct caller caller = {places[i].name, &places[i], NULL};
        memset(&valid, 0, sizeof valid);
        places[i].fill(conform, &valid);
        check(conform, &caller, &valid, places[i].own_bytes, &ending);
    }
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        union moe_conform_args valid;
        const struct moe_conform_call *call = &moe_conform_calls[i];
        const struct caller caller = {call->form, NULL, call};
        if (moe_conform_call_is_offered(conform, call)) {
            moe_conform_call_fill(call, conform, &valid);
            check(conform, &caller, &valid, call->args_bytes, &ending);
        }
    }
}

void moe_conform_check_input_sizes(struct moe_conform *conform)
{
    check_inputs(conform, check_known_sizes);
}

void moe_conform_check_input_tails(struct moe_conform *conform)
{
    check_inputs(conform, check_unknown_tails);
}

/* ---------------------------------------------------------------- P8 */

struct output {
    const char *name;
    size_t own_bytes;
    int32_t (*call)(struct moe_conform *conform, void *out, struct moe_error *error);
    int32_t (*refuse)(struct moe_conform *conform, void *out, struct moe_error *error);
};

#define OUTPUT_CALL(name, ...)                                                           \
    static int32_t name(struct moe_conform *conform, void *out, struct moe_error *error) \
    {                                                                                    \
        return conform->api->__VA_ARGS__;                                                \
    }
OUTPUT_CALL(get_probe, device_probe(MOE_BACKEND_CPU, 0, out, error))
OUTPUT_CALL(no_probe, device_probe(99, 0, out, error))
OUTPUT_CALL(get_device, context_device(conform->context, out, error))
OUTPUT_CALL(no_device, context_device(NULL, out, error))
OUTPUT_CALL(get_config, config_info(conform->context, out, error))
OUTPUT_CALL(no_config, config_info(NULL, out, error))
OUTPUT_CALL(get_plan, plan_info(conform->plan, out, error))
OUTPUT_CALL(no_plan, plan_info(NULL, out, error))
OUTPUT_CALL(get_choice, plan_op_info(conform->plan, MOE_OP_GEMM1, 1, out, error))
OUTPUT_CALL(no_choice, plan_op_info(conform->plan, 99, 1, out, error))
OUTPUT_CALL(get_weights,
            weights_query(conform->context, &conform->problem, &conform->desc, out, error))
OUTPUT_CALL(no_weights, weights_query(conform->context, NULL, &conform->desc, out, error))
OUTPUT_CALL(get_tile, tile_info(0, out, error))
OUTPUT_CALL(no_tile, tile_info(-1, out, error))
OUTPUT_CALL(get_backend, backend_info(0, out, error))
OUTPUT_CALL(no_backend, backend_info(-1, out, error))
OUTPUT_CALL(get_stats, stats(conform->context, out, error))
OUTPUT_CALL(no_stats, stats(NULL, out, error))
#undef OUTPUT_CALL

static const struct output outputs[] = {
    {"device_probe", sizeof(struct moe_device), get_probe, no_probe},
    {"context_device", sizeof(struct moe_device), get_device, no_device},
    {"config_info", sizeof(struct moe_config_info), get_config, no_config},
    {"plan_info", sizeof(struct moe_plan_info), get_plan, no_plan},
    {"plan_op_info", sizeof(struct moe_choice), get_choice, no_choice},
    {"weights_query", sizeof(struct moe_weights_info), get_weights, no_weights},
    {"tile_info", sizeof(struct moe_tile_info), get_tile, no_tile},
    {"backend_info", sizeof(struct moe_backend_info), get_backend, no_backend},
    {"stats", sizeof(struct moe_stats), get_stats, no_stats},
};

static void check_output_size(struct moe_conform *conform, const struct output *output,
                              size_t bytes, int is_refused)
{
    _Alignas(16) unsigned char buffer[sizeof(struct moe_backend_info) + 256];
    const uint32_t struct_size = (uint32_t)bytes;
    struct moe_error error;
    MOE_INIT(error);
    memset(buffer, MOE_CONFORM_POISON, sizeof buffer);
    memcpy(buffer, &struct_size, sizeof struct_size);
    const int32_t status = is_refused ? output->refuse(conform, buffer, &error)
                                      : output->call(conform, buffer, &error);
    const int wants_refusal = is_refused || bytes < sizeof struct_size;
    if ((status != MOE_STATUS_OK) != wants_refusal) {
        moe_conform_fail(conform, "%s with struct_size %zu: status %d: %s", output->name, bytes,
                         status, error.message);
    }
    size_t limit = bytes < output->own_bytes ? bytes : output->own_bytes;
    limit = wants_refusal ? sizeof struct_size : limit;
    for (size_t i = limit; i < sizeof buffer; ++i) {
        if (buffer[i] != MOE_CONFORM_POISON) {
            moe_conform_fail(conform, "%s with struct_size %zu: byte %zu was written%s",
                             output->name, bytes, i,
                             wants_refusal ? " although the call failed" : "");
        }
    }
    if (memcmp(buffer, &struct_size, sizeof struct_size) != 0) {
        moe_conform_fail(conform, "%s with struct_size %zu: struct_size was changed", output->name,
                         bytes);
    }
}

static void check_error_size(struct moe_conform *conform, size_t bytes)
{
    _Alignas(16) unsigned char buffer[sizeof(struct moe_error) + 2 * MOE_CONFORM_TAIL_BYTES];
    const uint32_t struct_size = (uint32_t)bytes;
    memset(buffer, MOE_CONFORM_POISON, sizeof buffer);
    memcpy(buffer, &struct_size, sizeof struct_size);
    conform->api->tile_info(-1, NULL, (struct moe_error *)(void *)buffer);
    size_t limit = bytes < sizeof(struct moe_error) ? bytes : sizeof(struct moe_error);
    limit = limit < sizeof struct_size ? sizeof struct_size : limit;
    for (size_t i = limit; i < sizeof buffer; ++i) {
        if (buffer[i] != MOE_CONFORM_POISON) {
            moe_conform_fail(conform, "moe_error with struct_size %zu: byte %zu was written", bytes,
                             i);
        }
    }
    const size_t text = offsetof(struct moe_error, message);
    if (limit > text && memchr(buffer + text, '\0', limit - text) == NULL) {
        moe_conform_fail(conform, "moe_error with struct_size %zu: the message has no end", bytes);
    }
}

void moe_conform_check_output_sizes(struct moe_conform *conform)
{
    moe_conform_open(conform, 1);
    for (size_t i = 0; i < sizeof outputs / sizeof outputs[0]; ++i) {
        for (size_t bytes = 0; bytes <= outputs[i].own_bytes + MOE_CONFORM_TAIL_BYTES; ++bytes) {
            check_output_size(conform, &outputs[i], bytes, 0);
            check_output_size(conform, &outputs[i], bytes, 1);
        }
    }
    for (size_t bytes = 0; bytes <= sizeof(struct moe_error) + MOE_CONFORM_TAIL_BYTES; ++bytes) {
        check_error_size(conform, bytes);
    }
}
