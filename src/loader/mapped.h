/* SPDX-License-Identifier: Apache-2.0 */
/* An image as the dynamic linker mapped it: where its segments are, and what is in them. */
#ifndef MOE_LOADER_MAPPED_H
#define MOE_LOADER_MAPPED_H

#include "elf_check.h"

enum { MOE_MAPPED_SEGMENTS_LIMIT = 64 };

struct moe_mapped_segment {
    uintptr_t start;
    uintptr_t end;
    int32_t is_readable;
    int32_t is_executable;
};

struct moe_mapped {
    uintptr_t base;
    uint32_t num_segments;
    struct moe_mapped_segment segments[MOE_MAPPED_SEGMENTS_LIMIT];
    struct moe_elf_build_id build_id; /* num_bytes 0: none found */
};

/* Look up the image whose dynamic section is at `dynamic` (l_ld of its link map). 1 if there is
 * one. */
int32_t moe_mapped_find(const void *dynamic, struct moe_mapped *mapped);

/* Are the bytes [address, address + num_bytes) in one readable, or executable, segment? */
int32_t moe_mapped_can_read(const struct moe_mapped *mapped, const void *address, size_t num_bytes);
int32_t moe_mapped_can_execute(const struct moe_mapped *mapped, uintptr_t address);

/* Bytes from `address` to the end of its readable segment; 0 if it is in none. */
size_t moe_mapped_readable_bytes(const struct moe_mapped *mapped, const void *address);

#endif
