/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Structs that begin with struct_size, in all sizes: inputs below the introduction size are
 * refused, larger ones are taken as long as what the plugin does not know is zero; outputs are
 * written up to struct_size and no further.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "abi_calls.h"
#include "support_guard.h"

enum { TAIL_BYTES = 64 };

static struct abi_host host;

static int open_host(void **state)
{
    (void)state;
    return abi_host_open(&host, NULL, 1) ? 0 : -1;
}

static int close_host(void **state)
{
    (void)state;
    abi_host_close(&host);
    return 0;
}

/* ---------------------------------------------------------------- inputs */

/* A place that an input struct goes to: valid content, and the call that reads it. */
struct input {
    const char *name;
    const char *struct_name;
    size_t own_bytes;
    void (*fill)(void *own);
    int32_t (*call)(const void *own, struct moe_error *error);
};

static void fill_host(void *own)
{
    abi_services_init(own);
}

static void fill_options(void *own)
{
    struct moe_context_options *options = own;
    MOE_INIT(*options);
    options->backend = MOE_BACKEND_CPU;
    options->flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    options->num_threads = 1;
}

static void fill_source(void *own)
{
    static const char text[] = "schema: moe-dispatch/1\nrules: []\n";
    struct moe_config_source *source = own;
    MOE_INIT(*source);
    source->path = "text";
    source->text = text;
    source->text_bytes = sizeof(text) - 1;
}

static void fill_device(void *own)
{
    struct moe_device *device = own;
    MOE_INIT(*device);
    device->backend = MOE_BACKEND_CPU;
    device->num_sms = 1;
    memcpy(device->isa, "c11", 4);
}

static void fill_problem(void *own)
{
    abi_describe_problem(own);
}

static void fill_plan_options(void *own)
{
    struct moe_plan_options *options = own;
    MOE_INIT(*options);
}

static void fill_weights(void *own)
{
    abi_describe_weights(own, host.values);
}

static void fill_sink(void *own)
{
    struct moe_explain_sink *sink = own;
    MOE_INIT(*sink);
}

static int32_t create_context(const struct moe_host *services,
                              const struct moe_context_options *options, struct moe_error *error)
{
    struct moe_context *context = NULL;
    struct moe_context_options quick;
    fill_options(&quick);
    int32_t status =
        host.api->context_create(services, options != NULL ? options : &quick, &context, error);
    host.api->context_destroy(context);
    return status;
}

static int32_t call_create_host(const void *own, struct moe_error *error)
{
    return create_context(own, NULL, error);
}

static int32_t call_create_options(const void *own, struct moe_error *error)
{
    return create_context(&host.services, own, error);
}

static int32_t call_create_source(const void *own, struct moe_error *error)
{
    struct moe_context_options options;
    fill_options(&options);
    options.config_sources = own;
    options.num_config_sources = 1;
    return create_context(&host.services, &options, error);
}

static int32_t call_validate_host(const void *own, struct moe_error *error)
{
    return host.api->config_validate(own, NULL, 0, NULL, NULL, NULL, error);
}

static int32_t call_validate_source(const void *own, struct moe_error *error)
{
    return host.api->config_validate(NULL, own, 1, NULL, NULL, NULL, error);
}

static int32_t call_validate_device(const void *own, struct moe_error *error)
{
    return host.api->config_validate(NULL, NULL, 0, own, NULL, NULL, error);
}

static int32_t call_reload_source(const void *own, struct moe_error *error)
{
    return host.api->config_reload(host.context, own, 1, NULL, NULL, error);
}

static int32_t call_supports_device(const void *own, struct moe_error *error)
{
    return host.api->supports(own, &host.problem, 0, error);
}

static int32_t call_supports_problem(const void *own, struct moe_error *error)
{
    struct moe_device device;
    fill_device(&device);
    return host.api->supports(&device, own, 0, error);
}

static int32_t create_plan(const struct moe_problem *problem,
                           const struct moe_plan_options *options, struct moe_error *error)
{
    struct moe_plan *plan = NULL;
    int32_t status = host.api->plan_create(host.context, problem, options, &plan, error);
    host.api->plan_destroy(plan);
    return status;
}

static int32_t call_plan_problem(const void *own, struct moe_error *error)
{
    return create_plan(own, NULL, error);
}

static int32_t call_plan_options(const void *own, struct moe_error *error)
{
    return create_plan(&host.problem, own, error);
}

static int32_t explain(const struct moe_device *device, const struct moe_problem *problem,
                       const struct moe_explain_sink *sink, struct moe_error *error)
{
    struct moe_explain_sink silent;
    fill_sink(&silent);
    return host.api->explain(host.context, device, problem != NULL ? problem : &host.problem, 1,
                             sink != NULL ? sink : &silent, error);
}

static int32_t call_explain_device(const void *own, struct moe_error *error)
{
    return explain(own, NULL, NULL, error);
}

static int32_t call_explain_problem(const void *own, struct moe_error *error)
{
    return explain(NULL, own, NULL, error);
}

static int32_t call_explain_sink(const void *own, struct moe_error *error)
{
    return explain(NULL, NULL, own, error);
}

static int32_t call_query_problem(const void *own, struct moe_error *error)
{
    struct moe_weights_info info;
    MOE_INIT(info);
    return host.api->weights_query(host.context, own, &host.desc, &info, error);
}

static int32_t call_query_weights(const void *own, struct moe_error *error)
{
    struct moe_weights_info info;
    MOE_INIT(info);
    return host.api->weights_query(host.context, &host.problem, own, &info, error);
}

static int32_t call_bind_problem(const void *own, struct moe_error *error)
{
    struct moe_weights *weights = NULL;
    int32_t status =
        host.api->weights_bind(host.context, own, &host.desc, NULL, 0, &weights, error);
    host.api->weights_destroy(weights);
    return status;
}

static int32_t call_bind_weights(const void *own, struct moe_error *error)
{
    struct moe_weights *weights = NULL;
    int32_t status =
        host.api->weights_bind(host.context, &host.problem, own, NULL, 0, &weights, error);
    host.api->weights_destroy(weights);
    return status;
}

#define INPUT(place, type, fill)                               \
    {                                                          \
#place, #type, sizeof(struct type), fill, call_##place \
    }
static const struct input inputs[] = {
    INPUT(create_host, moe_host, fill_host),
    INPUT(create_options, moe_context_options, fill_options),
    INPUT(create_source, moe_config_source, fill_source),
    INPUT(validate_host, moe_host, fill_host),
    INPUT(validate_source, moe_config_source, fill_source),
    INPUT(validate_device, moe_device, fill_device),
    INPUT(reload_source, moe_config_source, fill_source),
    INPUT(supports_device, moe_device, fill_device),
    INPUT(supports_problem, moe_problem, fill_problem),
    INPUT(plan_problem, moe_problem, fill_problem),
    INPUT(plan_options, moe_plan_options, fill_plan_options),
    INPUT(explain_device, moe_device, fill_device),
    INPUT(explain_problem, moe_problem, fill_problem),
    INPUT(explain_sink, moe_explain_sink, fill_sink),
    INPUT(query_problem, moe_problem, fill_problem),
    INPUT(query_weights, moe_weights_desc, fill_weights),
    INPUT(bind_problem, moe_problem, fill_problem),
    INPUT(bind_weights, moe_weights_desc, fill_weights),
};

static void assert_status(const char *name, size_t bytes, int32_t status, int32_t wanted,
                          const struct moe_error *error, const char *word)
{
    if (status != wanted) {
        fail_msg("%s, struct_size %zu: status %d instead of %d (%s)", name, bytes, status, wanted,
                 error->message);
    }
    if (wanted != MOE_STATUS_OK && strstr(error->message, word) == NULL) {
        fail_msg("%s, struct_size %zu: \"%s\" does not name %s", name, bytes, error->message, word);
    }
}

/* One size: the struct ends at a page without access, so that a byte too many is a crash. */
static void check_input_size(const char *name, const char *struct_name, const void *valid,
                             size_t own_bytes, size_t bytes, int32_t valid_status,
                             int32_t (*call)(const void *own, struct moe_error *error))
{
    struct support_guard_options options = {.alignment = 8, .poison = 0, .end_at_page = true};
    struct support_guard guard;
    struct moe_error error;
    uint32_t struct_size = (uint32_t)bytes;
    size_t readable = bytes < sizeof(struct_size) ? sizeof(struct_size) : bytes;
    support_guard_init(&guard, readable, &options);
    memset(guard.data, 0, readable);
    memcpy(guard.data, valid, own_bytes < readable ? own_bytes : readable);
    memcpy(guard.data, &struct_size, sizeof(struct_size));
    MOE_INIT(error);
    int32_t status = call(guard.data, &error);
    assert_status(name, bytes, status,
                  bytes < own_bytes ? MOE_STATUS_INVALID_ARGUMENT : valid_status, &error,
                  bytes < own_bytes ? struct_name : "");
    size_t step = bytes <= own_bytes + TAIL_BYTES ? 1 : (bytes - own_bytes - 1) / 7;
    for (size_t i = own_bytes; i < bytes; i += step) {
        guard.data[i] = (unsigned char)(1u << (i % 8));
        MOE_INIT(error);
        status = call(guard.data, &error);
        assert_status(name, bytes, status, MOE_STATUS_UNKNOWN_FIELD, &error, struct_name);
        guard.data[i] = 0;
    }
    support_guard_finish(&guard);
}

static void check_input(const char *name, const char *struct_name, const void *valid,
                        size_t own_bytes, int32_t valid_status,
                        int32_t (*call)(const void *own, struct moe_error *error))
{
    for (size_t bytes = 0; bytes <= own_bytes + TAIL_BYTES; bytes++) {
        check_input_size(name, struct_name, valid, own_bytes, bytes, valid_status, call);
    }
    check_input_size(name, struct_name, valid, own_bytes, 50001, valid_status, call);
}

static void test_inputs(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) {
        union {
            struct moe_weights_desc largest;
            struct moe_problem problem;
        } valid;
        memset(&valid, 0, sizeof(valid));
        assert_true(inputs[i].own_bytes <= sizeof(valid));
        inputs[i].fill(&valid);
        check_input(inputs[i].name, inputs[i].struct_name, &valid, inputs[i].own_bytes,
                    MOE_STATUS_OK, inputs[i].call);
    }
}

static const struct abi_call *running;

static int32_t call_running(const void *own, struct moe_error *error)
{
    return running->run(host.api, host.plan, own, error);
}

static void test_arguments_of_run_calls(void **state)
{
    (void)state;
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        union abi_args args;
        running = &abi_calls[i];
        abi_reset_memory(host.memory);
        abi_call_fill(running, &host, &args);
        check_input(running->form, running->struct_name, &args, running->args_bytes,
                    running->status, call_running);
    }
}

/* The elements of an array of sources lie as far apart as the host's header says. */
static void test_array_of_larger_sources(void **state)
{
    (void)state;
    struct newer_source {
        struct moe_config_source known;
        uint64_t unknown[3];
    } sources[2];
    struct moe_error error;
    memset(sources, 0, sizeof(sources));
    for (int i = 0; i < 2; i++) {
        fill_source(&sources[i].known);
        sources[i].known.struct_size = sizeof(sources[i]);
    }
    MOE_INIT(error);
    assert_int_equal(
        host.api->config_validate(NULL, &sources[0].known, 2, NULL, NULL, NULL, &error), 0);
    sources[1].unknown[2] = 1;
    assert_int_equal(
        host.api->config_validate(NULL, &sources[0].known, 2, NULL, NULL, NULL, &error),
        MOE_STATUS_UNKNOWN_FIELD);
    sources[1].unknown[2] = 0;
    sources[1].known.text = "schema: moe-dispatch/1\nrules: 7\n";
    sources[1].known.text_bytes = strlen(sources[1].known.text);
    assert_int_equal(
        host.api->config_validate(NULL, &sources[0].known, 2, NULL, NULL, NULL, &error),
        MOE_STATUS_CONFIG);
}

/* ---------------------------------------------------------------- outputs */

struct output {
    const char *name;
    size_t own_bytes;
    int32_t (*call)(void *out, struct moe_error *error);
};

static int32_t call_device_probe(void *out, struct moe_error *error)
{
    return host.api->device_probe(MOE_BACKEND_CPU, 0, out, error);
}

static int32_t call_context_device(void *out, struct moe_error *error)
{
    return host.api->context_device(host.context, out, error);
}

static int32_t call_config_info(void *out, struct moe_error *error)
{
    return host.api->config_info(host.context, out, error);
}

static int32_t call_plan_info(void *out, struct moe_error *error)
{
    return host.api->plan_info(host.plan, out, error);
}

static int32_t call_plan_op_info(void *out, struct moe_error *error)
{
    return host.api->plan_op_info(host.plan, MOE_OP_GEMM1, 1, out, error);
}

static int32_t call_weights_query(void *out, struct moe_error *error)
{
    return host.api->weights_query(host.context, &host.problem, &host.desc, out, error);
}

static int32_t call_tile_info(void *out, struct moe_error *error)
{
    return host.api->tile_info(0, out, error);
}

static int32_t call_backend_info(void *out, struct moe_error *error)
{
    return host.api->backend_info(1, out, error);
}

static int32_t call_stats(void *out, struct moe_error *error)
{
    return host.api->stats(host.context, out, error);
}

#define OUTPUT(function, type)                          \
    {                                                   \
#function, sizeof(struct type), call_##function \
    }
static const struct output outputs[] = {
    OUTPUT(device_probe, moe_device),
    OUTPUT(context_device, moe_device),
    OUTPUT(config_info, moe_config_info),
    OUTPUT(plan_info, moe_plan_info),
    OUTPUT(plan_op_info, moe_choice),
    OUTPUT(weights_query, moe_weights_info),
    OUTPUT(tile_info, moe_tile_info),
    OUTPUT(backend_info, moe_backend_info),
    OUTPUT(stats, moe_stats),
};

static void check_output_size(const struct output *output, size_t bytes, const unsigned char *full)
{
    enum { POISON = 0x3C };
    unsigned char buffer[1024];
    struct moe_error error;
    uint32_t struct_size = (uint32_t)bytes;
    bool is_legal = bytes >= sizeof(struct_size);
    assert_true(bytes + TAIL_BYTES <= sizeof(buffer));
    memset(buffer, POISON, sizeof(buffer));
    memcpy(buffer, &struct_size, sizeof(struct_size));
    MOE_INIT(error);
    int32_t status = output->call(buffer, &error);
    assert_status(output->name, bytes, status,
                  is_legal ? MOE_STATUS_OK : MOE_STATUS_INVALID_ARGUMENT, &error, "struct_size");
    assert_memory_equal(buffer, &struct_size, sizeof(struct_size));
    size_t written = bytes < output->own_bytes ? bytes : output->own_bytes;
    written = is_legal ? written : sizeof(struct_size);
    for (size_t i = sizeof(struct_size); i < sizeof(buffer); i++) {
        if (i < written && full != NULL && buffer[i] != full[i]) {
            fail_msg("%s, struct_size %zu: byte %zu is %02x instead of %02x", output->name, bytes,
                     i, buffer[i], full[i]);
        }
        if (i >= written && buffer[i] != POISON) {
            fail_msg("%s, struct_size %zu: byte %zu was written", output->name, bytes, i);
        }
    }
}

static void test_outputs(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(outputs) / sizeof(outputs[0]); i++) {
        unsigned char full[1024] = {0};
        uint32_t own_bytes = (uint32_t)outputs[i].own_bytes;
        memcpy(full, &own_bytes, sizeof(own_bytes));
        assert_int_equal(outputs[i].call(full, NULL), 0);
        for (size_t bytes = 0; bytes <= own_bytes + (size_t)TAIL_BYTES; bytes++) {
            check_output_size(&outputs[i], bytes, full);
        }
    }
}

/* An error is written up to its struct_size; its message ends inside of it. */
static void test_errors(void **state)
{
    (void)state;
    enum { POISON = 0x3C };
    for (size_t bytes = 0; bytes <= sizeof(struct moe_error) + TAIL_BYTES; bytes++) {
        unsigned char buffer[sizeof(struct moe_error) + 2 * TAIL_BYTES];
        uint32_t struct_size = (uint32_t)bytes;
        memset(buffer, POISON, sizeof(buffer));
        memcpy(buffer, &struct_size, sizeof(struct_size));
        int32_t status = host.api->tile_info(-1, NULL, (struct moe_error *)(void *)buffer);
        assert_int_equal(status, MOE_STATUS_INVALID_ARGUMENT);
        size_t limit = bytes < sizeof(struct moe_error) ? bytes : sizeof(struct moe_error);
        limit = limit < sizeof(struct_size) ? sizeof(struct_size) : limit;
        for (size_t i = limit; i < sizeof(buffer); i++) {
            if (buffer[i] != POISON) {
                fail_msg("error of %zu bytes: byte %zu was written", bytes, i);
            }
        }
        assert_memory_equal(buffer, &struct_size, sizeof(struct_size));
        if (bytes >= offsetof(struct moe_error, native)) {
            assert_memory_equal(buffer + offsetof(struct moe_error, status), &status,
                                sizeof(status));
        }
        size_t text = offsetof(struct moe_error, message);
        if (limit > text && memchr(buffer + text, '\0', limit - text) == NULL) {
            fail_msg("error of %zu bytes: the message has no end", bytes);
        }
        if (limit > text + 8) {
            assert_memory_equal(buffer + text, "tile ind", 8);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_arguments_of_run_calls),
        cmocka_unit_test(test_array_of_larger_sources),
        cmocka_unit_test(test_outputs),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, open_host, close_host);
}
