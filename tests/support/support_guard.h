/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers that notice writes outside of them, and hold poison until something is written. */
#ifndef MOE_TESTS_SUPPORT_GUARD_H
#define MOE_TESTS_SUPPORT_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SUPPORT_GUARD_BYTES = 4096,  /* guard band on either side, at least */
    SUPPORT_POISON_FLOAT = 0xFF, /* NaN in every float format */
    SUPPORT_POISON_INT = 0xCB,   /* no plausible id, count or offset (0xFF would be -1) */
};

struct support_guard_options {
    size_t alignment;    /* power of two, at most 4096; 0: 64 */
    size_t misalignment; /* bytes added to an aligned address: data % alignment == misalignment %
                            alignment */
    int poison;          /* byte that fills data: one of the above, or any */
    /* The buffer ends at a page without access, so that reading past the end faults. With an
     * alignment that the size is no multiple of, up to alignment - 1 guarded bytes remain between;
     * alignment 1 leaves none. */
    bool end_at_page;
};

struct support_guard {
    unsigned char *data; /* the buffer; never NULL, also for size 0 */
    size_t size;
    unsigned char *
        map; /* private: the whole mapping, data and guard bands between two pages without access */
    size_t map_bytes;
    int poison;
};

/* Maps a buffer of size bytes. options NULL: all defaults, poison 0xFF. Ends the test if memory
 * runs out. */
void support_guard_init(struct support_guard *guard, size_t size,
                        const struct support_guard_options *options);

/* Unmaps. Does not check. A finished or zeroed guard is left alone. */
void support_guard_finish(struct support_guard *guard);

/* Fills data with the poison byte again. */
void support_guard_poison(struct support_guard *guard);

/* True if both guard bands are intact. Otherwise *offset is the position of the first violated byte
 * relative to data: negative before it, >= size behind it. offset may be NULL. */
bool support_guard_check(const struct support_guard *guard, ptrdiff_t *offset);

/* True if bytes [begin, end) of data all still hold poison: nothing wrote there. */
bool support_guard_is_poison(const struct support_guard *guard, size_t begin, size_t end);

/* Fails the running cmocka test, naming the violated byte, unless the bands are intact. */
#define assert_guard_intact(guard) support_assert_guard((guard), #guard, __FILE__, __LINE__)
void support_assert_guard(const struct support_guard *guard, const char *name, const char *file,
                          int line);

#endif
