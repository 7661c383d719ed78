/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_ALIGNMENT 64u

static void *libc_alloc(void *self, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    if (bytes > SIZE_MAX - alignment) {
        return NULL;
    }
    size_t rounded = (size_t)((bytes + alignment - 1) / alignment * alignment);
    return aligned_alloc((size_t)alignment, rounded);
}

static void libc_release(void *self, void *block, uint64_t bytes, uint64_t alignment)
{
    (void)self;
    (void)bytes;
    (void)alignment;
    free(block);
}

void moe_memory_init(struct moe_memory *memory, const struct moe_host *host)
{
    if (host != NULL && host->memory_alloc != NULL) {
        memory->self = host->self;
        memory->alloc = host->memory_alloc;
        memory->release = host->memory_free;
        return;
    }
    memory->self = NULL;
    memory->alloc = libc_alloc;
    memory->release = libc_release;
}

void *moe_memory_alloc(const struct moe_memory *memory, size_t bytes)
{
    size_t wanted = bytes > 0 ? bytes : 1;
    void *block = memory->alloc(memory->self, wanted, BLOCK_ALIGNMENT);
    if (block != NULL) {
        memset(block, 0, wanted);
    }
    return block;
}

void moe_memory_free(const struct moe_memory *memory, void *block, size_t bytes)
{
    if (block != NULL) {
        memory->release(memory->self, block, bytes > 0 ? bytes : 1, BLOCK_ALIGNMENT);
    }
}
