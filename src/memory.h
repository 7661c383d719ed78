/* SPDX-License-Identifier: Apache-2.0 */
/* Host memory from the host's allocator, or malloc where it gives none. */
#ifndef MOE_MEMORY_H
#define MOE_MEMORY_H

#include "moe_plugin.h"

#include <stddef.h>

struct moe_memory {
    void *self;
    void *(*alloc)(void *self, uint64_t bytes, uint64_t alignment);
    void (*release)(void *self, void *memory, uint64_t bytes, uint64_t alignment);
};

/* Take the allocator of `host`; malloc and free if host is NULL or sets neither function. */
void moe_memory_init(struct moe_memory *memory, const struct moe_host *host);

/* `bytes` zeroed bytes aligned to 64, NULL when there is no memory. bytes 0 gives a block of 1. */
void *moe_memory_alloc(const struct moe_memory *memory, size_t bytes);

/* Free a block of moe_memory_alloc with the same `bytes`. NULL is legal. */
void moe_memory_free(const struct moe_memory *memory, void *block, size_t bytes);

#endif
