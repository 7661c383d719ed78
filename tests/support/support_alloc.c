/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "support_alloc.h"

#include <stdlib.h>
#include <string.h>

struct support_block {
    struct support_block *next;
    void *memory;
    uint64_t bytes;
    uint64_t alignment;
};

void support_allocator_init(struct support_allocator *allocator, int64_t fail_at)
{
    memset(allocator, 0, sizeof *allocator);
    allocator->fail_at = fail_at;
    pthread_mutex_init(&allocator->lock, NULL);
}

void support_allocator_finish(struct support_allocator *allocator)
{
    while (allocator->blocks != NULL) {
        struct support_block *next = allocator->blocks->next;
        free(allocator->blocks->memory);
        free(allocator->blocks);
        allocator->blocks = next;
    }
    pthread_mutex_destroy(&allocator->lock);
}

/* A block outside of any list, or NULL. */
static struct support_block *create_block(uint64_t bytes, uint64_t alignment)
{
    struct support_block *block = malloc(sizeof *block);
    size_t least = alignment > sizeof(void *) ? alignment : sizeof(void *);
    if (block == NULL) {
        return NULL;
    }
    block->bytes = bytes;
    block->alignment = alignment;
    if (posix_memalign(&block->memory, least, bytes > 0 ? bytes : 1) != 0) {
        free(block);
        return NULL;
    }
    memset(block->memory, 0xCB, bytes);
    return block;
}

static void link_block(struct support_allocator *allocator, struct support_block *block)
{
    block->next = allocator->blocks;
    allocator->blocks = block;
    allocator->num_live++;
    allocator->live_bytes += (int64_t)block->bytes;
    if (allocator->live_bytes > allocator->peak_bytes) {
        allocator->peak_bytes = allocator->live_bytes;
    }
}

void *support_allocate(void *self, uint64_t bytes, uint64_t alignment)
{
    struct support_allocator *allocator = self;
    struct support_block *block = NULL;
    pthread_mutex_lock(&allocator->lock);
    allocator->num_calls++;
    if (allocator->num_calls != allocator->fail_at) {
        block = create_block(bytes, alignment);
    }
    if (block != NULL) {
        link_block(allocator, block);
    }
    pthread_mutex_unlock(&allocator->lock);
    return block != NULL ? block->memory : NULL;
}

/* Takes the live block that matches out of the list, or returns NULL. */
static struct support_block *unlink_block(struct support_allocator *allocator, const void *memory,
                                          uint64_t bytes, uint64_t alignment)
{
    for (struct support_block **at = &allocator->blocks; *at != NULL; at = &(*at)->next) {
        struct support_block *block = *at;
        if (block->memory == memory && block->bytes == bytes && block->alignment == alignment) {
            *at = block->next;
            allocator->num_live--;
            allocator->live_bytes -= (int64_t)bytes;
            return block;
        }
    }
    return NULL;
}

void support_free(void *self, void *memory, uint64_t bytes, uint64_t alignment)
{
    struct support_allocator *allocator = self;
    if (memory == NULL) {
        return;
    }
    pthread_mutex_lock(&allocator->lock);
    struct support_block *block = unlink_block(allocator, memory, bytes, alignment);
    if (block == NULL) {
        allocator->num_bad_frees++;
    }
    pthread_mutex_unlock(&allocator->lock);
    if (block != NULL) {
        free(block->memory);
        free(block);
    }
}
