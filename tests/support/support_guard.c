/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One mapping per buffer:
 *
 *     | page without access | guard band | data | guard band | page without access |
 *
 * With end_at_page the band behind the data shrinks to what alignment leaves.
 */
#define _GNU_SOURCE
#include "support_guard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static void stop(const char *sentence)
{
    fprintf(stderr, "support_guard: %s\n", sentence);
    abort();
}

/* Depends on the position, so that a shifted copy of the band is noticed too. */
static unsigned char band_byte(size_t position)
{
    return (unsigned char)(0xA5u ^ (position * 29u) ^ (position >> 8));
}

/* First violated position in [begin, end) of the mapping, or end. */
static size_t find_violation(const struct support_guard *guard, size_t begin, size_t end)
{
    size_t position = begin;
    while (position < end && guard->map[position] == band_byte(position)) {
        position++;
    }
    return position;
}

static void fill_band(struct support_guard *guard, size_t begin, size_t end)
{
    for (size_t position = begin; position < end; position++) {
        guard->map[position] = band_byte(position);
    }
}

/* Position of the data in a mapping whose accessible part is [page, accessible_end). */
static size_t place_data(size_t size, const struct support_guard_options *options, size_t page,
                         size_t accessible_end)
{
    size_t alignment = options->alignment > 0 ? options->alignment : 64;
    size_t shift = options->misalignment % alignment;
    if (alignment > SUPPORT_GUARD_BYTES || (alignment & (alignment - 1)) != 0) {
        stop("alignment must be a power of two, at most 4096");
    }
    if (!options->end_at_page) {
        return round_up(page + SUPPORT_GUARD_BYTES, alignment) + shift;
    }
    return (accessible_end - size - shift) / alignment * alignment + shift;
}

void support_guard_init(struct support_guard *guard, size_t size,
                        const struct support_guard_options *options)
{
    static const struct support_guard_options defaults = {.poison = SUPPORT_POISON_FLOAT};
    options = options != NULL ? options : &defaults;
    size_t page = page_bytes();
    /* Two bands, and room for alignment and misalignment. */
    size_t accessible_bytes = round_up(size + 4 * (size_t)SUPPORT_GUARD_BYTES, page);
    size_t accessible_end = page + accessible_bytes;
    guard->map_bytes = accessible_end + page;
    void *map = mmap(NULL, guard->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED ||
        mprotect((char *)map + page, accessible_bytes, PROT_READ | PROT_WRITE) != 0) {
        stop("out of memory");
    }
    guard->map = map;
    guard->size = size;
    guard->poison = options->poison;
    size_t begin = place_data(size, options, page, accessible_end);
    guard->data = guard->map + begin;
    fill_band(guard, page, begin);
    fill_band(guard, begin + size, accessible_end);
    support_guard_poison(guard);
}

void support_guard_finish(struct support_guard *guard)
{
    if (guard->map != NULL && munmap(guard->map, guard->map_bytes) != 0) {
        stop("munmap failed");
    }
    memset(guard, 0, sizeof *guard);
}

void support_guard_poison(struct support_guard *guard)
{
    memset(guard->data, guard->poison, guard->size);
}

bool support_guard_check(const struct support_guard *guard, ptrdiff_t *offset)
{
    size_t page = page_bytes();
    size_t begin = (size_t)(guard->data - guard->map);
    size_t end = begin + guard->size;
    size_t accessible_end = guard->map_bytes - page;
    size_t violation = find_violation(guard, page, begin);
    if (violation == begin) {
        violation = find_violation(guard, end, accessible_end);
        if (violation == accessible_end) {
            return true;
        }
    }
    if (offset != NULL) {
        *offset = (ptrdiff_t)violation - (ptrdiff_t)begin;
    }
    return false;
}

bool support_guard_is_poison(const struct support_guard *guard, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        if (guard->data[i] != (unsigned char)guard->poison) {
            return false;
        }
    }
    return true;
}

void support_assert_guard(const struct support_guard *guard, const char *name, const char *file,
                          int line)
{
    ptrdiff_t offset = 0;
    if (!support_guard_check(guard, &offset)) {
        print_error("%s: a write outside of its %zu bytes, at offset %td\n", name, guard->size,
                    offset);
        _fail(file, line);
    }
}
