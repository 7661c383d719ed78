/* SPDX-License-Identifier: Apache-2.0 */
#include "arena.h"

#include <string.h>

#define CHUNK_BYTES     ((size_t)16 << 10)
#define BLOCK_ALIGNMENT ((size_t)16)

struct moe_arena_chunk {
    struct moe_arena_chunk *next;
    size_t total_bytes; /* of the chunk, this header included */
    size_t used_bytes;
};

static size_t round_up(size_t bytes)
{
    return (bytes + BLOCK_ALIGNMENT - 1) / BLOCK_ALIGNMENT * BLOCK_ALIGNMENT;
}

void moe_arena_init(struct moe_arena *arena, const struct moe_memory *memory)
{
    arena->memory = *memory;
    arena->chunks = NULL;
}

void moe_arena_finish(struct moe_arena *arena)
{
    while (arena->chunks != NULL) {
        struct moe_arena_chunk *chunk = arena->chunks;
        arena->chunks = chunk->next;
        moe_memory_free(&arena->memory, chunk, chunk->total_bytes);
    }
}

void *moe_arena_alloc(struct moe_arena *arena, size_t bytes)
{
    const size_t header_bytes = round_up(sizeof(struct moe_arena_chunk));
    if (bytes > SIZE_MAX / 2) {
        return NULL;
    }
    size_t wanted = round_up(bytes > 0 ? bytes : 1);
    struct moe_arena_chunk *chunk = arena->chunks;
    if (chunk == NULL || chunk->total_bytes - chunk->used_bytes < wanted) {
        size_t total_bytes = header_bytes + wanted;
        if (total_bytes < CHUNK_BYTES) {
            total_bytes = CHUNK_BYTES;
        }
        chunk = moe_memory_alloc(&arena->memory, total_bytes);
        if (chunk == NULL) {
            return NULL;
        }
        chunk->total_bytes = total_bytes;
        chunk->used_bytes = header_bytes;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    void *block = (char *)chunk + chunk->used_bytes;
    chunk->used_bytes += wanted;
    return block;
}

char *moe_arena_copy(struct moe_arena *arena, const char *text, size_t text_bytes)
{
    char *copy = moe_arena_alloc(arena, text_bytes + 1);
    if (copy != NULL && text_bytes > 0) {
        memcpy(copy, text, text_bytes);
    }
    return copy;
}
