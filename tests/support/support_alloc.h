/* SPDX-License-Identifier: Apache-2.0 */
/* An allocator that counts, and fails on request: run a function with fail_at = 1, 2, 3 ... until
 * it succeeds, and check each time that nothing stays alive. */
#ifndef MOE_TESTS_SUPPORT_ALLOC_H
#define MOE_TESTS_SUPPORT_ALLOC_H

#include <pthread.h>
#include <stdint.h>

struct support_block;

/* Read the counters while no other thread allocates. */
struct support_allocator {
    int64_t fail_at;       /* the call (from 1) that returns NULL; 0: none. Later calls succeed */
    int64_t num_calls;     /* allocations asked for */
    int64_t num_live;      /* blocks not yet freed */
    int64_t live_bytes;    /* their bytes */
    int64_t peak_bytes;    /* the largest live_bytes so far */
    int64_t num_bad_frees; /* frees of no live block, or with other sizes */
    struct support_block *blocks; /* private: the live ones */
    pthread_mutex_t lock;         /* private */
};

/* Zeroes the counters. */
void support_allocator_init(struct support_allocator *allocator, int64_t fail_at);

/* Frees what is still alive. */
void support_allocator_finish(struct support_allocator *allocator);

/* memory_alloc and memory_free of a host whose self is a struct support_allocator. Memory is filled
 * with 0xCB, at a multiple of alignment (a power of two); zero bytes give a unique pointer. NULL at
 * call fail_at. Thread safe. */
void *support_allocate(void *self, uint64_t bytes, uint64_t alignment);

/* NULL is ignored. A block that is not live, or whose bytes or alignment differ from those it was
 * allocated with, counts in num_bad_frees and is not freed. Thread safe. */
void support_free(void *self, void *memory, uint64_t bytes, uint64_t alignment);

#endif
