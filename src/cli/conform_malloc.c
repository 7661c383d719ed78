/* SPDX-License-Identifier: Apache-2.0 */
/*
 * malloc and its family, defined by the program: every library of the process, the plugin too, is
 * bound to these. They count and hand on to glibc's.
 */
#define _GNU_SOURCE
#include "conform_malloc.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_SANITIZER 1
#endif
#endif

#if defined(__GLIBC__) && !defined(HAS_SANITIZER)

#define EXPORTED __attribute__((visibility("default")))

static atomic_llong num_calls;

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void *block);
/* Symbols of libc under names of our own: its headers have opinions on the parameters. */
EXPORTED void *counted_malloc(size_t bytes) __asm__("malloc");
EXPORTED void *counted_calloc(size_t count, size_t bytes) __asm__("calloc");
EXPORTED void *counted_realloc(void *block, size_t bytes) __asm__("realloc");
EXPORTED void *counted_memalign(size_t alignment, size_t bytes) __asm__("memalign");
EXPORTED void *counted_aligned_alloc(size_t alignment, size_t bytes) __asm__("aligned_alloc");
EXPORTED int counted_posix_memalign(void **out, size_t alignment,
                                    size_t bytes) __asm__("posix_memalign");
EXPORTED void counted_free(void *block) __asm__("free");

static void count_call(void)
{
    atomic_fetch_add_explicit(&num_calls, 1, memory_order_relaxed);
}

void *counted_malloc(size_t bytes)
{
    count_call();
    return __libc_malloc(bytes);
}

void *counted_calloc(size_t count, size_t bytes)
{
    count_call();
    return __libc_calloc(count, bytes);
}

void *counted_realloc(void *block, size_t bytes)
{
    count_call();
    return __libc_realloc(block, bytes);
}

void *counted_memalign(size_t alignment, size_t bytes)
{
    count_call();
    return __libc_memalign(alignment, bytes);
}

void *counted_aligned_alloc(size_t alignment, size_t bytes)
{
    count_call();
    return __libc_memalign(alignment, bytes);
}

int counted_posix_memalign(void **out, size_t alignment, size_t bytes)
{
    count_call();
    *out = __libc_memalign(alignment, bytes);
    return *out == NULL ? ENOMEM : 0;
}

void counted_free(void *block)
{
    count_call();
    __libc_free(block);
}

/* A library's malloc is what the dynamic linker finds first. */
int moe_conform_malloc_is_counted(void)
{
    void *(*own)(size_t) = malloc;
    void *found = dlsym(RTLD_DEFAULT, "malloc");
    return memcmp(&own, &found, sizeof found) == 0;
}

long long moe_conform_malloc_num_calls(void)
{
    return atomic_load(&num_calls);
}

#else

int moe_conform_malloc_is_counted(void)
{
    return 0;
}

long long moe_conform_malloc_num_calls(void)
{
    return 0;
}

#endif
