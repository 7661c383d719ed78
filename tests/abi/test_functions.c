/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions of the table that prepare and inspect: NULL where something is needed, ids and
 * numbers out of range, members that are reserved, and what is not implemented. A failure writes no
 * output.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "abi_members.h"

static struct abi_host host;
static const struct moe_plugin_api *api;

static int open_host(void **state)
{
    (void)state;
    if (!abi_host_open(&host, NULL, 1)) {
        return -1;
    }
    api = host.api;
    return 0;
}

static int close_host(void **state)
{
    (void)state;
    abi_host_close(&host);
    return 0;
}

/* ---------------------------------------------------------------- NULL */

#define assert_invalid(call)                                          \
    do {                                                              \
        struct moe_error error_;                                      \
        MOE_INIT(error_);                                             \
        struct moe_error *error = &error_;                            \
        assert_int_equal((call), MOE_STATUS_INVALID_ARGUMENT);        \
        assert_int_equal(error_.status, MOE_STATUS_INVALID_ARGUMENT); \
        assert_true(strlen(error_.message) > 10);                     \
        error = NULL;                                                 \
        assert_int_equal((call), MOE_STATUS_INVALID_ARGUMENT);        \
    } while (0)

static void test_null_in_context_functions(void **state)
{
    (void)state;
    struct moe_context *context = NULL;
    struct moe_device device;
    struct moe_config_info info;
    struct moe_stats stats;
    MOE_INIT(device);
    MOE_INIT(info);
    MOE_INIT(stats);
    assert_invalid(api->device_probe(MOE_BACKEND_CPU, 0, NULL, error));
    assert_invalid(api->context_create(NULL, NULL, &context, error));
    assert_invalid(api->context_create(&host.services, NULL, NULL, error));
    assert_null(context);
    assert_invalid(api->context_device(NULL, &device, error));
    assert_invalid(api->context_device(host.context, NULL, error));
    assert_invalid(api->config_validate(NULL, NULL, 1, NULL, NULL, NULL, error));
    assert_invalid(api->config_validate(NULL, NULL, -1, NULL, NULL, NULL, error));
    assert_invalid(api->config_reload(NULL, NULL, 0, NULL, NULL, error));
    assert_invalid(api->config_reload(host.context, NULL, 1, NULL, NULL, error));
    assert_invalid(api->config_reload(host.context, NULL, INT32_MIN, NULL, NULL, error));
    assert_invalid(api->config_info(NULL, &info, error));
    assert_invalid(api->config_info(host.context, NULL, error));
    assert_invalid(api->stats(NULL, &stats, error));
    assert_invalid(api->stats(host.context, NULL, error));
    assert_invalid(api->self_test(NULL, error));
    api->context_destroy(NULL);
}

static void test_null_in_plan_functions(void **state)
{
    (void)state;
    struct moe_plan *plan = NULL;
    struct moe_device device;
    struct moe_plan_info info;
    struct moe_choice choice;
    struct moe_explain_sink sink;
    MOE_INIT(device);
    MOE_INIT(info);
    MOE_INIT(choice);
    MOE_INIT(sink);
    device.backend = MOE_BACKEND_CPU;
    assert_invalid(api->supports(NULL, &host.problem, 0, error));
    assert_invalid(api->supports(&device, NULL, 0, error));
    assert_invalid(api->plan_create(NULL, &host.problem, NULL, &plan, error));
    assert_invalid(api->plan_create(host.context, NULL, NULL, &plan, error));
    assert_invalid(api->plan_create(host.context, &host.problem, NULL, NULL, error));
    assert_null(plan);
    assert_invalid(api->plan_info(NULL, &info, error));
    assert_invalid(api->plan_info(host.plan, NULL, error));
    assert_invalid(api->plan_op_info(NULL, MOE_OP_GEMM1, 1, &choice, error));
    assert_invalid(api->plan_op_info(host.plan, MOE_OP_GEMM1, 1, NULL, error));
    assert_invalid(api->explain(NULL, NULL, &host.problem, 1, &sink, error));
    assert_invalid(api->explain(host.context, NULL, NULL, 1, &sink, error));
    assert_invalid(api->explain(host.context, NULL, &host.problem, 1, NULL, error));
    assert_int_equal(api->explain(host.context, NULL, &host.problem, 1, &sink, NULL), 0);
    api->plan_destroy(NULL);
}

static void test_null_in_weights_functions(void **state)
{
    (void)state;
    struct moe_weights *weights = NULL;
    struct moe_weights_info info;
    MOE_INIT(info);
    assert_invalid(api->weights_query(NULL, &host.problem, &host.desc, &info, error));
    assert_invalid(api->weights_query(host.context, NULL, &host.desc, &info, error));
    assert_invalid(api->weights_query(host.context, &host.problem, NULL, &info, error));
    assert_invalid(api->weights_query(host.context, &host.problem, &host.desc, NULL, error));
    assert_invalid(api->weights_prepare(NULL, &host.problem, &host.desc, NULL, 0, NULL, error));
    assert_invalid(api->weights_prepare(host.context, NULL, &host.desc, NULL, 0, NULL, error));
    assert_invalid(api->weights_prepare(host.context, &host.problem, NULL, NULL, 0, NULL, error));
    /* There is nothing to prepare, and a prepared form that nobody asked for is refused. */
    assert_invalid(
        api->weights_prepare(host.context, &host.problem, &host.desc, &info, 8, NULL, error));
    assert_invalid(
        api->weights_bind(host.context, &host.problem, &host.desc, &info, 8, &weights, error));
    assert_invalid(
        api->weights_bind(host.context, &host.problem, &host.desc, NULL, 8, &weights, error));
    assert_invalid(api->weights_bind(NULL, &host.problem, &host.desc, NULL, 0, &weights, error));
    assert_invalid(api->weights_bind(host.context, NULL, &host.desc, NULL, 0, &weights, error));
    assert_invalid(api->weights_bind(host.context, &host.problem, NULL, NULL, 0, &weights, error));
    assert_invalid(
        api->weights_bind(host.context, &host.problem, &host.desc, NULL, 0, NULL, error));
    assert_null(weights);
    api->weights_destroy(NULL);
}

static void test_null_in_introspection(void **state)
{
    (void)state;
    int64_t capacity = -7;
    assert_invalid(api->tile_info(0, NULL, error));
    assert_invalid(api->backend_info(0, NULL, error));
    assert_invalid(api->align_capacity(1, 1, 1, MOE_FILTER_DROP, NULL, &capacity, error));
    assert_invalid(api->align_capacity(1, 1, 1, MOE_FILTER_DROP, &capacity, NULL, error));
    assert_invalid(api->align_capacity(-1, 1, 1, MOE_FILTER_DROP, &capacity, &capacity, error));
    assert_invalid(api->align_capacity(1, 0, 1, MOE_FILTER_DROP, &capacity, &capacity, error));
    assert_invalid(api->align_capacity(1, 1, 0, MOE_FILTER_DROP, &capacity, &capacity, error));
    assert_invalid(api->align_capacity(1, 1, 1, 2, &capacity, &capacity, error));
    assert_invalid(
        api->align_capacity(INT64_MAX, 1, 1, MOE_FILTER_DROP, &capacity, &capacity, error));
    assert_invalid(api->align_capacity(INT32_MAX, INT32_MAX, INT32_MAX, MOE_FILTER_KEEP, &capacity,
                                       &capacity, error));
    assert_int_equal(capacity, -7);
}

/* ---------------------------------------------------------------- indices and names */

static void test_lists_end(void **state)
{
    (void)state;
    static const int32_t outside[] = {-1, INT32_MIN, INT32_MAX};
    struct moe_tile_info tile;
    struct moe_backend_info backend;
    int32_t num_tiles = 0, num_backends = 0;
    MOE_INIT(tile);
    MOE_INIT(backend);
    while (api->tile_info(num_tiles, &tile, NULL) == MOE_STATUS_OK) {
        assert_non_null(tile.name);
        num_tiles++;
    }
    while (api->backend_info(num_backends, &backend, NULL) == MOE_STATUS_OK) {
        assert_int_equal(backend.available, backend.reason[0] == '\0');
        num_backends++;
    }
    assert_true(num_tiles > 0);
    assert_int_equal(num_backends, 2);
    assert_invalid(api->tile_info(num_tiles, &tile, error));
    assert_invalid(api->backend_info(num_backends, &backend, error));
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        assert_invalid(api->tile_info(outside[i], &tile, error));
        assert_invalid(api->backend_info(outside[i], &backend, error));
    }
}

static void test_status_names(void **state)
{
    (void)state;
    static const int32_t outside[] = {-1, INT32_MIN, INT32_MAX, MOE_STATUS_INTERNAL + 1};
#define EXPECT(name, value, text)                        \
    assert_string_equal(api->status_name(value), #name); \
    assert_string_equal(api->status_text(value), text);
    MOE_STATUS_LIST(EXPECT)
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        assert_string_equal(api->status_name(outside[i]), "unknown status");
        assert_string_equal(api->status_text(outside[i]), "unknown status");
    }
}

static void test_plan_op_info_range(void **state)
{
    (void)state;
    static const int32_t ops[] = {-1, MOE_NUM_OPS, INT32_MAX, INT32_MIN};
    static const int64_t tokens[] = {-1, ABI_MAX_TOKENS + 1, INT64_MAX, INT64_MIN};
    struct moe_choice choice;
    MOE_INIT(choice);
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        assert_invalid(api->plan_op_info(host.plan, ops[i], 1, &choice, error));
    }
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        assert_invalid(api->plan_op_info(host.plan, MOE_OP_GEMM1, tokens[i], &choice, error));
    }
    assert_int_equal(choice.min_tokens, 0);
    assert_null(choice.rule);
}

/* ---------------------------------------------------------------- members, one at a time */

/* Strides that would overflow an offset, and negative ones. */
static void test_bad_strides_of_weights(void **state)
{
    (void)state;
    static const int64_t strides[] = {-1, INT64_MIN, INT64_C(1) << 40, INT64_MAX};
    for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
        struct moe_weights_desc desc = host.desc;
        int64_t *const members[] = {&desc.gate.expert_stride, &desc.up.row_stride,
                                    &desc.down.col_stride, &desc.router.row_stride};
        for (size_t j = 0; j < sizeof(members) / sizeof(members[0]); j++) {
            struct moe_weights *weights = NULL;
            struct moe_error error;
            const int64_t right = *members[j];
            MOE_INIT(error);
            *members[j] = strides[i];
            assert_int_equal(
                api->weights_bind(host.context, &host.problem, &desc, NULL, 0, &weights, &error),
                MOE_STATUS_INVALID_ARGUMENT);
            assert_non_null(strstr(error.message, "stride"));
            assert_null(weights);
            *members[j] = right;
        }
    }
}

static const struct bad_member bad_options[] = {
    REFUSE(moe_context_options, flags, MOE_CONTEXT_IGNORE_ENVIRONMENT << 1, "flags"),
    REFUSE(moe_context_options, backend, -1, "backend"),
    REFUSE(moe_context_options, backend, MOE_BACKEND_CUDA + 1, "backend"),
    {offsetof(struct moe_context_options, ordinal), 4, 1, MOE_STATUS_NO_DEVICE, "device 1"},
    {offsetof(struct moe_context_options, ordinal), 4, -1, MOE_STATUS_NO_DEVICE, "device -1"},
    REFUSE(moe_context_options, num_threads, -1, "num_threads"),
    REFUSE(moe_context_options, num_threads, 1 << 20, "num_threads"),
    REFUSE(moe_context_options, num_config_sources, 1, "source"),
    REFUSE(moe_context_options, num_config_sources, -1, "source"),
};

static void test_bad_context_options(void **state)
{
    (void)state;
    int num_wrong = 0;
    for (size_t i = 0; i < sizeof(bad_options) / sizeof(bad_options[0]); i++) {
        const struct bad_member *bad = &bad_options[i];
        struct moe_context_options options;
        struct moe_context *untouched = (struct moe_context *)(void *)&options;
        struct moe_context *context = untouched;
        struct moe_error error;
        MOE_INIT(options);
        MOE_INIT(error);
        options.backend = MOE_BACKEND_CPU;
        options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
        memcpy((char *)&options + bad->offset, &bad->value, bad->bytes);
        int32_t status = api->context_create(&host.services, &options, &context, &error);
        num_wrong += is_wrong("context_create", bad, status, &error);
        assert_ptr_equal(context, untouched);
    }
    assert_int_equal(num_wrong, 0);
}

static const struct bad_member bad_devices[] = {
    REFUSE(moe_device, backend, MOE_BACKEND_AUTO, "backend"),
    REFUSE(moe_device, backend, -1, "backend"),
    REFUSE(moe_device, backend, MOE_BACKEND_CUDA + 1, "backend"),
    REFUSE(moe_device, reserved, 1, "reserved"),
};

static void test_bad_devices(void **state)
{
    (void)state;
    int num_wrong = 0;
    struct moe_explain_sink sink;
    MOE_INIT(sink);
    for (size_t i = 0; i < sizeof(bad_devices) / sizeof(bad_devices[0]); i++) {
        const struct bad_member *bad = &bad_devices[i];
        struct moe_device device;
        struct moe_error error;
        MOE_INIT(device);
        device.backend = MOE_BACKEND_CPU;
        memcpy((char *)&device + bad->offset, &bad->value, bad->bytes);
        MOE_INIT(error);
        num_wrong +=
            is_wrong("supports", bad, api->supports(&device, &host.problem, 0, &error), &error);
        MOE_INIT(error);
        num_wrong +=
            is_wrong("explain", bad,
                     api->explain(host.context, &device, &host.problem, 1, &sink, &error), &error);
        MOE_INIT(error);
        num_wrong +=
            is_wrong("config_validate", bad,
                     api->config_validate(NULL, NULL, 0, &device, NULL, NULL, &error), &error);
    }
    assert_int_equal(num_wrong, 0);

    struct moe_device device;
    MOE_INIT(device);
    device.backend = MOE_BACKEND_CPU;
    memset(device.isa, 'x', sizeof(device.isa));
    assert_invalid(api->supports(&device, &host.problem, 0, error));
    memset(device.isa, 0, sizeof(device.isa));
    memset(device.name, 'x', sizeof(device.name));
    assert_invalid(api->supports(&device, &host.problem, 0, error));
}

static void test_probe_of_no_device(void **state)
{
    (void)state;
    static const int32_t backends[] = {-1, MOE_BACKEND_CUDA + 1, INT32_MAX, INT32_MIN};
    struct moe_device device, before;
    MOE_INIT(device);
    before = device;
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        assert_invalid(api->device_probe(backends[i], 0, &device, error));
    }
    assert_int_equal(api->device_probe(MOE_BACKEND_CPU, 1, &device, NULL), MOE_STATUS_NO_DEVICE);
    assert_int_equal(api->device_probe(MOE_BACKEND_CPU, -1, &device, NULL), MOE_STATUS_NO_DEVICE);
    assert_memory_equal(&device, &before, sizeof(device));
}

/* Flags of structs that have none yet, and reserved members. */
static void test_unknown_flags(void **state)
{
    (void)state;
    struct moe_plan_options plan_options;
    struct moe_explain_sink sink;
    struct moe_config_source source;
    struct moe_weights_desc desc = host.desc;
    struct moe_weights_info info;
    struct moe_plan *plan = NULL;
    MOE_INIT(plan_options);
    MOE_INIT(sink);
    MOE_INIT(source);
    MOE_INIT(info);
    plan_options.flags = 1;
    assert_invalid(api->plan_create(host.context, &host.problem, &plan_options, &plan, error));
    plan_options.flags = 0;
    plan_options.ops = UINT64_C(1) << MOE_NUM_OPS;
    assert_invalid(api->plan_create(host.context, &host.problem, &plan_options, &plan, error));
    sink.flags = 1;
    assert_invalid(api->explain(host.context, NULL, &host.problem, 1, &sink, error));
    source.path = "text";
    source.text = "";
    source.flags = MOE_CONFIG_REPLACE << 1;
    assert_invalid(api->config_validate(NULL, &source, 1, NULL, NULL, NULL, error));
    source.flags = 0;
    source.path = NULL;
    source.text = NULL;
    assert_invalid(api->config_validate(NULL, &source, 1, NULL, NULL, NULL, error));
    desc.flags = 1;
    assert_invalid(api->weights_query(host.context, &host.problem, &desc, &info, error));
    desc = host.desc;
    desc.up.reserved = 1;
    assert_invalid(api->weights_query(host.context, &host.problem, &desc, &info, error));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_null_in_context_functions),
        cmocka_unit_test(test_null_in_plan_functions),
        cmocka_unit_test(test_null_in_weights_functions),
        cmocka_unit_test(test_null_in_introspection),
        cmocka_unit_test(test_lists_end),
        cmocka_unit_test(test_status_names),
        cmocka_unit_test(test_plan_op_info_range),
        cmocka_unit_test(test_bad_strides_of_weights),
        cmocka_unit_test(test_bad_context_options),
        cmocka_unit_test(test_bad_devices),
        cmocka_unit_test(test_probe_of_no_device),
        cmocka_unit_test(test_unknown_flags),
    };
    return cmocka_run_group_tests(tests, open_host, close_host);
}
