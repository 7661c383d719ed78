/* SPDX-License-Identifier: Apache-2.0 */
/* moe_plugin_init: what it refuses, what it writes, what it returns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "abi_host.h"
#include "abi_layout.h"

static void *plugin;
static moe_plugin_init_fn *init;

static int open_plugin(void **state)
{
    (void)state;
    plugin = dlopen(ABI_PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
    if (plugin == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return -1;
    }
    init = abi_entry(plugin);
    return init == NULL ? -1 : 0;
}

static int close_plugin(void **state)
{
    (void)state;
    return dlclose(plugin);
}

/* One wrong host, the status, and words that its sentence has to contain. */
struct bad_host {
    const char *name;
    void (*spoil)(struct moe_host *host);
    int32_t status;
    const char *words[3];
};

static void spoil_major(struct moe_host *host)
{
    host->abi_major++;
}

static void spoil_minor_up(struct moe_host *host)
{
    host->abi_minor++;
}

static void spoil_minor_down(struct moe_host *host)
{
    host->abi_minor--;
}

static void spoil_hash(struct moe_host *host)
{
    host->layout_hash ^= 1;
}

static void spoil_hash_zero(struct moe_host *host)
{
    host->layout_hash = 0;
}

static void spoil_size_zero(struct moe_host *host)
{
    host->struct_size = 0;
}

static void spoil_size_of_versions(struct moe_host *host)
{
    host->struct_size = offsetof(struct moe_host, self);
}

static void spoil_size_by_one(struct moe_host *host)
{
    host->struct_size--;
}

static void spoil_size_uninitialized(struct moe_host *host)
{
    host->struct_size = 0xCBCBCBCBu;
}

static void spoil_flags(struct moe_host *host)
{
    host->flags = 1;
}

static void *alloc_nothing(void *self, uint64_t bytes, uint64_t alignment)
{
    (void)self, (void)bytes, (void)alignment;
    return NULL;
}

static void spoil_allocator(struct moe_host *host)
{
    host->memory_alloc = alloc_nothing;
    host->memory_free = NULL;
}

static const struct bad_host bad_hosts[] = {
    {"major", spoil_major, MOE_STATUS_VERSION, {"ABI 1.1", "0.1"}},
    {"newer minor", spoil_minor_up, MOE_STATUS_VERSION, {"ABI 0.2", "0.1"}},
    {"older minor", spoil_minor_down, MOE_STATUS_VERSION, {"ABI 0.0", "0.1"}},
    {"hash", spoil_hash, MOE_STATUS_VERSION, {"layout", "same header"}},
    {"no hash", spoil_hash_zero, MOE_STATUS_VERSION, {"layout 0000000000000000"}},
    {"size 0", spoil_size_zero, MOE_STATUS_INVALID_ARGUMENT, {"struct_size"}},
    {"size of the versions", spoil_size_of_versions, MOE_STATUS_INVALID_ARGUMENT, {"struct_size"}},
    {"size - 1", spoil_size_by_one, MOE_STATUS_INVALID_ARGUMENT, {"moe_host", "struct_size"}},
    {"size not set", spoil_size_uninitialized, MOE_STATUS_INVALID_ARGUMENT, {"struct_size"}},
    {"flags", spoil_flags, MOE_STATUS_INVALID_ARGUMENT, {"flags"}},
    {"half an allocator", spoil_allocator, MOE_STATUS_INVALID_ARGUMENT, {"memory_free"}},
};

static void assert_refused(const char *name, const struct moe_host *host,
                           const struct bad_host *expected)
{
    struct moe_error error;
    memset(&error, 0xCB, sizeof(error));
    error.struct_size = sizeof(error);
    assert_null(init(host, &error));
    if (error.status != expected->status) {
        fail_msg("%s: status %d instead of %d: %s", name, error.status, expected->status,
                 error.message);
    }
    for (size_t i = 0; i < 3 && expected->words[i] != NULL; i++) {
        if (strstr(error.message, expected->words[i]) == NULL) {
            fail_msg("%s: \"%s\" does not say \"%s\"", name, error.message, expected->words[i]);
        }
    }
    assert_int_equal(error.struct_size, sizeof(error));
    assert_int_equal(error.native, 0);
    assert_int_equal(error.reserved, 0);
    assert_null(init(host, NULL));
}

static void test_wrong_hosts_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(bad_hosts) / sizeof(bad_hosts[0]); i++) {
        struct moe_host host, before;
        abi_services_init(&host);
        bad_hosts[i].spoil(&host);
        before = host;
        assert_refused(bad_hosts[i].name, &host, &bad_hosts[i]);
        assert_memory_equal(&host, &before, sizeof(host));
    }
}

static void test_null_host_is_refused(void **state)
{
    (void)state;
    static const struct bad_host expected = {
        "NULL", NULL, MOE_STATUS_INVALID_ARGUMENT, {"host is NULL"}};
    assert_refused("NULL", NULL, &expected);
}

/* A host whose header has grown: the table is given out only when what it adds is not used. */
static void test_larger_host(void **state)
{
    (void)state;
    struct {
        struct moe_host host;
        unsigned char tail[64];
    } newer;
    static const struct bad_host expected = {
        "tail", NULL, MOE_STATUS_UNKNOWN_FIELD, {"moe_host", "byte"}};
    for (size_t tail_bytes = 0; tail_bytes <= sizeof(newer.tail); tail_bytes++) {
        memset(&newer, 0, sizeof(newer));
        abi_services_init(&newer.host);
        newer.host.struct_size = (uint32_t)(sizeof(newer.host) + tail_bytes);
        memset(newer.tail + tail_bytes, 0xCB, sizeof(newer.tail) - tail_bytes);
        assert_non_null(init(&newer.host, NULL));
        for (size_t i = 0; i < tail_bytes; i++) {
            newer.tail[i] = 1;
            assert_refused("tail", &newer.host, &expected);
            newer.tail[i] = 0;
        }
    }
}

/* Callbacks and self are not looked at: they belong to context_create. */
static void test_init_calls_nothing(void **state)
{
    (void)state;
    struct moe_host host;
    abi_services_init(&host);
    memset(&host.self, 0x5A, sizeof(host) - offsetof(struct moe_host, self));
    struct moe_error error;
    memset(&error, 0xCB, sizeof(error));
    error.struct_size = sizeof(error);
    struct moe_error before = error;
    assert_non_null(init(&host, &error));
    assert_memory_equal(&error, &before, sizeof(error));
}

static void test_table(void **state)
{
    (void)state;
    struct moe_host host;
    abi_services_init(&host);
    const struct moe_plugin_api *api = init(&host, NULL);
    assert_non_null(api);
    assert_ptr_equal(api, init(&host, NULL));
    assert_int_equal(api->struct_size, sizeof(*api));
    assert_int_equal(api->abi_major, MOE_ABI_MAJOR);
    assert_int_equal(api->abi_minor, MOE_ABI_MINOR);
    assert_int_equal(api->flags, 0);
    assert_true(api->layout_hash == MOE_ABI_LAYOUT_HASH);
    assert_string_equal(api->name, "moe-plugin");
    /* This plugin offers everything. */
    for (size_t i = 0; i < ABI_LAYOUT_NUM_ENTRIES; i++) {
        const struct abi_layout_entry *entry = &abi_layout[i];
        void *member = NULL;
        if (entry->kind != ABI_LAYOUT_MEMBER || strchr(entry->type, '*') == NULL ||
            strcmp(entry->struct_name, "moe_plugin_api") != 0) {
            continue;
        }
        memcpy(&member, (const char *)api + entry->offset, sizeof(member));
        if (member == NULL) {
            fail_msg("moe_plugin_api.%s is NULL", entry->name);
        }
        if (strcmp(entry->type, "const char *") == 0 && *(const char *)member == '\0') {
            fail_msg("moe_plugin_api.%s is empty", entry->name);
        }
    }
}

/* context_create keeps the host, so it checks the same things. */
static void test_context_checks_its_host(void **state)
{
    (void)state;
    struct moe_host good;
    abi_services_init(&good);
    const struct moe_plugin_api *api = init(&good, NULL);
    assert_non_null(api);
    for (size_t i = 0; i < sizeof(bad_hosts) / sizeof(bad_hosts[0]); i++) {
        struct moe_host host = good;
        struct moe_error error;
        struct moe_context *untouched = (struct moe_context *)(void *)&host, *context = untouched;
        MOE_INIT(error);
        bad_hosts[i].spoil(&host);
        int32_t status = api->context_create(&host, NULL, &context, &error);
        if (status != bad_hosts[i].status || error.status != status) {
            fail_msg("%s: context_create returns %d instead of %d: %s", bad_hosts[i].name, status,
                     bad_hosts[i].status, error.message);
        }
        for (size_t j = 0; j < 3 && bad_hosts[i].words[j] != NULL; j++) {
            assert_non_null(strstr(error.message, bad_hosts[i].words[j]));
        }
        assert_ptr_equal(context, untouched);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_hosts_are_refused),
        cmocka_unit_test(test_null_host_is_refused),
        cmocka_unit_test(test_larger_host),
        cmocka_unit_test(test_init_calls_nothing),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_context_checks_its_host),
    };
    return cmocka_run_group_tests(tests, open_plugin, close_plugin);
}
