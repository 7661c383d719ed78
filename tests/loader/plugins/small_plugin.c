/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest plugin that the loader accepts, and, built with another PLUGIN_BEHAVIOUR, one that
 * breaks the contract in one way. PLUGIN_ID is its kernel-set id.
 */
#define _GNU_SOURCE

#include "moe_plugin.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum behaviour {
    BEHAVES,
    ENTRY_RETURNS_NULL,
    ENTRY_REFUSES,
    ENTRY_CRASHES,
    ENTRY_HANGS,
    ENTRY_ENDS_PROCESS,
    ENTRY_MISSING,
    ENTRY_IS_DATA,
    CONSTRUCTOR_CRASHES,
    CONTEXT_REFUSES,
    SELF_TEST_FAILS,
    SELF_TEST_HANGS,
    TABLE_VERSION,
    TABLE_LAYOUT,
    TABLE_FLAGS,
    TABLE_SIZE_0,
    TABLE_SIZE_4,
    TABLE_SIZE_HUGE,
    TABLE_SIZE_PAST_IMAGE,
    TABLE_OUTSIDE,
    TABLE_MISALIGNED,
    MEMBER_NULL,
    MEMBER_OUTSIDE,
    MEMBER_IN_DATA,
    STRING_NULL,
    STRING_OUTSIDE,
    STRING_ENDLESS,
    EXPORTS_TWO,
    EXPORTS_UNIQUE,
    USES_STATIC_TLS,
    USES_LIBRARY,
};

static int num_calls;
static char endless[4096];

#if defined(PLUGIN_NEEDS_LIBRARY)
int helper_version(void);
#endif
#if defined(PLUGIN_STATIC_TLS)
static __thread volatile int in_static_tls __attribute__((tls_model("initial-exec")));
#endif
#if defined(PLUGIN_UNIQUE)
__asm__(".data\n.globl unique_state\n.type unique_state, %gnu_unique_object\n"
        ".size unique_state, 4\nunique_state: .long 0\n.previous\n");
#endif
#if defined(PLUGIN_TWO_EXPORTS)
__attribute__((visibility("default"))) int also_exported(void);
int also_exported(void)
{
    return 1;
}
#endif

static int32_t context_create(const struct moe_host *host,
                              const struct moe_context_options *options, struct moe_context **out,
                              struct moe_error *error)
{
    (void)host;
    (void)options;
    if (PLUGIN_BEHAVIOUR == CONTEXT_REFUSES) {
        error->status = MOE_STATUS_NO_DEVICE;
        snprintf(error->message, sizeof(error->message), "no such device today");
        return MOE_STATUS_NO_DEVICE;
    }
    *out = (struct moe_context *)(void *)&num_calls;
    return MOE_STATUS_OK;
}

static void context_destroy(struct moe_context *context)
{
    (void)context;
}

/* The context is two flags: "inside" is set here, then it waits for "may leave". */
static int32_t wait_inside(volatile int *flags)
{
    struct timespec pause = {.tv_nsec = 1000000};
    __atomic_store_n(&flags[0], 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&flags[1], __ATOMIC_SEQ_CST) == 0) {
        nanosleep(&pause, NULL);
    }
    return MOE_STATUS_OK;
}

static int32_t self_test(struct moe_context *context, struct moe_error *error)
{
    if (PLUGIN_BEHAVIOUR == SELF_TEST_FAILS) {
        error->status = MOE_STATUS_SELF_TEST;
        snprintf(error->message, sizeof(error->message), "known answer 3 is wrong");
        return MOE_STATUS_SELF_TEST;
    }
    if (PLUGIN_BEHAVIOUR == SELF_TEST_HANGS) {
        for (;;) {
            pause();
        }
    }
    return (void *)context == (void *)&num_calls ? MOE_STATUS_OK : wait_inside((void *)context);
}

/* State of this image: how often it was called. */
static int32_t backend_info(int32_t index, struct moe_backend_info *out, struct moe_error *error)
{
    (void)index;
    (void)out;
    (void)error;
    return ++num_calls;
}

static const char *status_text(int32_t status)
{
    (void)status;
    return PLUGIN_ID;
}

static int32_t not_offered(void)
{
    return MOE_STATUS_UNSUPPORTED;
}

#define NOT_OFFERED(member) \
    .member = (__typeof__(((struct moe_plugin_api *)0)->member))(void (*)(void))not_offered

#define TABLE_BODY                                                                                 \
    .struct_size = sizeof(struct moe_plugin_api), .abi_major = MOE_ABI_MAJOR,                      \
    .abi_minor = MOE_ABI_MINOR, .layout_hash = MOE_ABI_LAYOUT_HASH, .name = "small",               \
    .version = "0.1.0", .source_id = "test", .kernel_set_id = PLUGIN_ID,                           \
    NOT_OFFERED(device_probe), .context_create = context_create,                                   \
    .context_destroy = context_destroy, NOT_OFFERED(context_device), NOT_OFFERED(config_validate), \
    NOT_OFFERED(config_reload), NOT_OFFERED(config_info), NOT_OFFERED(supports),                   \
    NOT_OFFERED(plan_create), NOT_OFFERED(plan_destroy), NOT_OFFERED(plan_info),                   \
    NOT_OFFERED(plan_op_info), NOT_OFFERED(explain), NOT_OFFERED(weights_query),                   \
    NOT_OFFERED(weights_prepare), NOT_OFFERED(weights_bind), NOT_OFFERED(weights_destroy),         \
    NOT_OFFERED(layer), NOT_OFFERED(experts), .status_name = status_text,                          \
    .status_text = status_text, NOT_OFFERED(tile_info), .backend_info = backend_info,              \
    NOT_OFFERED(stats), .self_test = self_test

static struct moe_plugin_api api = {TABLE_BODY};

/* A function pointer member made from any address, as a broken or hostile build would. */
static void set_layer(uintptr_t address)
{
    memcpy(&api.layer, &address, sizeof(address));
}

/* The host struct serves as an address outside the image. */
static const struct moe_plugin_api *spoil(const struct moe_host *host)
{
    switch (PLUGIN_BEHAVIOUR) {
    case TABLE_VERSION:
        api.abi_major = 99;
        return &api;
    case TABLE_LAYOUT:
        api.layout_hash ^= 1;
        return &api;
    case TABLE_FLAGS:
        api.flags = 2;
        return &api;
    case TABLE_SIZE_0:
        api.struct_size = 0;
        return &api;
    case TABLE_SIZE_4:
        api.struct_size = 4;
        return &api;
    case TABLE_SIZE_HUGE:
        api.struct_size = UINT32_C(1) << 31;
        return &api;
    case TABLE_SIZE_PAST_IMAGE:
        api.struct_size = 65536;
        return &api;
    case TABLE_OUTSIDE:
        return (const struct moe_plugin_api *)(const void *)host;
    case TABLE_MISALIGNED:
        return (const struct moe_plugin_api *)(const void *)(endless + 1 + (uintptr_t)endless % 2);
    case MEMBER_NULL:
        set_layer(0);
        return &api;
    case MEMBER_OUTSIDE:
        set_layer((uintptr_t)&api + ((uintptr_t)1 << 40));
        return &api;
    case MEMBER_IN_DATA:
        set_layer((uintptr_t)&api);
        return &api;
    case STRING_NULL:
        api.version = NULL;
        return &api;
    case STRING_OUTSIDE:
        api.version = (const char *)host;
        return &api;
    case STRING_ENDLESS:
        memset(endless, 'x', sizeof(endless));
        api.version = endless;
        return &api;
    default:
        return &api;
    }
}

#if defined(PLUGIN_CONSTRUCTOR)
__attribute__((constructor)) static void crash_early(void)
{
    raise(SIGILL);
}
#endif

#if defined(PLUGIN_ENTRY_IS_DATA)
__attribute__((visibility("default"))) int moe_plugin_init_data __asm__("moe_plugin_init") = 1;
#define ENTRY hidden_entry
const struct moe_plugin_api *hidden_entry(const struct moe_host *host, struct moe_error *error);
#elif defined(PLUGIN_ENTRY_MISSING)
#define ENTRY hidden_entry
const struct moe_plugin_api *hidden_entry(const struct moe_host *host, struct moe_error *error);
#else
#define ENTRY moe_plugin_init
#endif

__attribute__((visibility("default"))) const struct moe_plugin_api *ENTRY(
    const struct moe_host *host, struct moe_error *error)
{
#if defined(PLUGIN_NEEDS_LIBRARY)
    num_calls = helper_version();
#endif
#if defined(PLUGIN_STATIC_TLS)
    num_calls = in_static_tls;
#endif
    switch (PLUGIN_BEHAVIOUR) {
    case ENTRY_RETURNS_NULL:
        return NULL;
    case ENTRY_REFUSES:
        error->status = MOE_STATUS_VERSION;
        snprintf(error->message, sizeof(error->message), "this plugin\nis not in the mood");
        return NULL;
    case ENTRY_CRASHES:
        raise(SIGSEGV);
        return NULL;
    case ENTRY_HANGS:
        for (;;) {
            pause();
        }
    case ENTRY_ENDS_PROCESS:
        exit(0);
    default:
        return spoil(host);
    }
}
