/* SPDX-License-Identifier: Apache-2.0 */
/* An allocator that counts, and fails on request: run a function with fail_at = 1, 2, 3 ... until
 * it succeeds, and check each time that nothing stays alive. */
#ifndef MOE_TESTS_SUPPORT_ALLOC_H
#define MOE_TESTS_SUPPORT_ALLOC_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct support_allocator {
    int64_t fail_at; /* the call (from 1) that returns NULL; 0: none. Later calls succeed again */
    atomic_llong num_calls;     /* allocations asked for */
    atomic_llong num_live;      /* blocks not yet freed */
    atomic_llong live_bytes;    /* their bytes */
    atomic_llong num_bad_frees; /* frees of something that is not a live block of an allocator of
                                   this kind */
};

/* Zeroes the counters. */
void support_allocator_init(struct support_allocator *allocator, int64_t fail_at);

/* bytes of memory filled with 0xCB, at an address that is a multiple of alignment (a power of two;
 * 0: 16), or NULL. Zero bytes give a unique pointer. user is a struct support_allocator. Thread
 * safe. */
void *support_allocate(void *user, size_t bytes, size_t alignment);

/* Frees; NULL is ignored. A damaged or foreign block counts in num_bad_frees and is not freed.
 * Thread safe. */
void support_free(void *user, void *block);

#endif
