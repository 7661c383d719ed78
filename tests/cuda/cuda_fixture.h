/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin with a driver that plays an H200 (fake_libcuda.h), and what has to be as it was when a
 * context is gone. */
#ifndef MOE_TESTS_CUDA_FIXTURE_H
#define MOE_TESTS_CUDA_FIXTURE_H

#include "fake_libcuda.h"
#include "moe_plugin.h"
#include "support_alloc.h"

#include <cuda.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { SMEM_LIMIT = 227 * 1024 };

static const struct moe_plugin_api *api;
static struct moe_host host;
static struct support_allocator allocator;
static struct fake_driver *driver;
static fake_driver_reset_fn *reset_driver;

/* Addresses that no host memory has: a call that touches what they stand for ends the program. */
#define ON_DEVICE(number) ((void *)(uintptr_t)(UINT64_C(0x100000000000) * ((uint64_t)(number) + 1)))

static inline void *open_library(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        print_error("%s\n", dlerror());
    }
    return library;
}

static inline int open_plugin(void)
{
    moe_plugin_init_fn *init = NULL;
    struct moe_error error;
    MOE_INIT(error);
    void *plugin = open_library(MOE_BUILD_DIR "/lib/libmoe_plugin.so");
    void *symbol = plugin != NULL ? dlsym(plugin, MOE_PLUGIN_INIT_SYMBOL) : NULL;
    if (symbol == NULL) {
        return -1;
    }
    memcpy(&init, &symbol, sizeof(init));
    support_allocator_init(&allocator, 0);
    MOE_INIT(host);
    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
    host.self = &allocator;
    host.memory_alloc = support_allocate;
    host.memory_free = support_free;
    api = init(&host, &error);
    return api != NULL ? 0 : -1;
}

static inline int open_driver(void)
{
    fake_driver_get_fn *get = NULL;
    void *library = open_library(MOE_BUILD_DIR "/tests/fake_driver/libcuda.so.1");
    void *get_symbol = library != NULL ? dlsym(library, "fake_driver_get") : NULL;
    void *reset_symbol = library != NULL ? dlsym(library, "fake_driver_reset") : NULL;
    if (get_symbol == NULL || reset_symbol == NULL) {
        return -1;
    }
    memcpy(&get, &get_symbol, sizeof(get));
    memcpy(&reset_driver, &reset_symbol, sizeof(reset_driver));
    driver = get();
    reset_driver();
    return 0;
}

static inline int32_t create(struct moe_context **out, struct moe_error *error)
{
    struct moe_context_options options;
    MOE_INIT(options);
    options.backend = MOE_BACKEND_CUDA;
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    *out = NULL;
    return api->context_create(&host, &options, out, error);
}

static inline struct moe_context *create_context(void)
{
    struct moe_context *context;
    struct moe_error error;
    MOE_INIT(error);
    if (create(&context, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return context;
}

/* The driver is as the host left it, and no block of host memory is alive. */
static inline void assert_nothing_left(void)
{
    assert_int_equal(driver->num_retained, 0);
    assert_int_equal(driver->num_libraries, 0);
    assert_int_equal(driver->num_pushed, 1);
    assert_int_equal(driver->capture_mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
    assert_int_equal(allocator.num_live, 0);
    assert_int_equal(allocator.num_bad_frees, 0);
    if (driver->num_misused != 0) {
        fail_msg("%s was misused", driver->misused);
    }
}

/* A context is refused with `status` and a sentence with `words`; nothing is left. */
static inline void expect_refusal(int32_t status, const char *words)
{
    struct moe_context *context;
    struct moe_error error;
    MOE_INIT(error);
    const int32_t got = create(&context, &error);
    if (got != status || strstr(error.message, words) == NULL) {
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, error.message, status, words);
    }
    assert_null(context);
    assert_int_equal(error.status, status);
    assert_nothing_left();
}

/* A context, weights and a plan: what a call needs. */
struct bound {
    struct moe_context *context;
    struct moe_weights *weights;
    struct moe_plan *plan;
    struct moe_plan_info info;
};

static inline void unbind(struct bound *bound)
{
    if (bound->plan != NULL) {
        api->plan_destroy(bound->plan);
    }
    if (bound->weights != NULL) {
        api->weights_destroy(bound->weights);
    }
    if (bound->context != NULL) {
        api->context_destroy(bound->context);
    }
}

static inline int with_fresh_driver(void **state)
{
    (void)state;
    if (driver == NULL && open_driver() != 0) {
        return -1;
    }
    reset_driver();
    return 0;
}

#endif
