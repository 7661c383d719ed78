/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_arena.h"

#include <stdlib.h>
#include <string.h>

enum {
    ARENA_ALIGN = 16,
    FIRST_CHUNK_BYTES = 4096,
    LAST_CHUNK_BYTES = 1 << 20,
    FIRST_BUFFER_ELEMENTS = 32
};

/* Header of a chunk; its pieces follow it. */
struct moe_tree_chunk {
    struct moe_tree_chunk *older;
    size_t capacity; /* bytes, this header included */
    size_t used;
};

static void *alloc_from_malloc(void *self, uint64_t bytes, uint64_t align)
{
    (void)self;
    (void)align; /* malloc aligns for every type, which is what a request may ask for */
    return malloc((size_t)bytes);
}

static void release_to_malloc(void *self, void *memory, uint64_t bytes, uint64_t align)
{
    (void)self;
    (void)bytes;
    (void)align;
    free(memory);
}

void moe_tree_arena_init(struct moe_tree_arena *arena, const struct moe_tree_memory *memory)
{
    static const struct moe_tree_memory from_malloc = {NULL, alloc_from_malloc, release_to_malloc};

    arena->memory = memory != NULL ? *memory : from_malloc;
    arena->newest = NULL;
    arena->next_chunk_bytes = FIRST_CHUNK_BYTES;
}

void moe_tree_arena_finish(struct moe_tree_arena *arena)
{
    while (arena->newest != NULL) {
        struct moe_tree_chunk *chunk = arena->newest;

        arena->newest = chunk->older;
        arena->memory.release(arena->memory.self, chunk, chunk->capacity, ARENA_ALIGN);
    }
}

/* The offset of a piece in `chunk`, or 0 if it does not fit. */
static size_t place_piece(const struct moe_tree_chunk *chunk, size_t bytes, size_t align)
{
    size_t offset = (chunk->used + align - 1) & ~(align - 1);

    if (offset > chunk->capacity || bytes > chunk->capacity - offset) {
        return 0;
    }
    return offset;
}

static struct moe_tree_chunk *add_chunk(struct moe_tree_arena *arena, size_t piece_bytes)
{
    size_t capacity = arena->next_chunk_bytes;
    size_t needed = piece_bytes + sizeof(struct moe_tree_chunk) + ARENA_ALIGN;
    struct moe_tree_chunk *chunk;

    if (capacity < needed) {
        capacity = needed;
    }
    chunk = arena->memory.alloc(arena->memory.self, capacity, ARENA_ALIGN);
    if (chunk == NULL) {
        return NULL;
    }
    chunk->older = arena->newest;
    chunk->capacity = capacity;
    chunk->used = sizeof *chunk;
    arena->newest = chunk;
    if (arena->next_chunk_bytes < LAST_CHUNK_BYTES) {
        arena->next_chunk_bytes *= 2;
    }
    return chunk;
}

void *moe_tree_arena_alloc(struct moe_tree_arena *arena, size_t bytes, size_t align)
{
    struct moe_tree_chunk *chunk = arena->newest;
    size_t offset = chunk != NULL ? place_piece(chunk, bytes, align) : 0;

    if (offset == 0) {
        chunk = add_chunk(arena, bytes);
        if (chunk == NULL) {
            return NULL;
        }
        offset = place_piece(chunk, bytes, align);
    }
    chunk->used = offset + bytes;
    return (char *)chunk + offset;
}

void *moe_tree_arena_grow(const struct moe_tree_arena *arena, void *buffer, size_t *capacity,
                          size_t needed, size_t element_bytes)
{
    const struct moe_tree_memory *memory = &arena->memory;
    size_t larger = *capacity > 0 ? *capacity : FIRST_BUFFER_ELEMENTS;
    void *replacement;

    while (larger < needed) {
        larger *= 2;
    }
    if (buffer != NULL && larger == *capacity) {
        return buffer;
    }
    replacement = memory->alloc(memory->self, larger * element_bytes, ARENA_ALIGN);
    if (replacement == NULL) {
        return NULL;
    }
    if (buffer != NULL) {
        memcpy(replacement, buffer, *capacity * element_bytes);
        moe_tree_arena_drop(arena, buffer, *capacity, element_bytes);
    }
    *capacity = larger;
    return replacement;
}

void moe_tree_arena_drop(const struct moe_tree_arena *arena, void *buffer, size_t capacity,
                         size_t element_bytes)
{
    if (buffer != NULL) {
        arena->memory.release(arena->memory.self, buffer, capacity * element_bytes, ARENA_ALIGN);
    }
}
