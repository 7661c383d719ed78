/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of a shared object seen through its program headers; shared by the parts of the ELF
 * check. */
#ifndef MOE_LOADER_ELF_VIEW_H
#define MOE_LOADER_ELF_VIEW_H

#include "elf_check.h"

#include <elf.h>
#include <link.h>

enum { MOE_ELF_SEGMENTS_LIMIT = 64 };

struct moe_elf_view {
    const unsigned char *bytes;
    uint64_t num_bytes;
    const char *name; /* for sentences, as it may be shown */
    struct moe_error *error;
    ElfW(Phdr) segments[MOE_ELF_SEGMENTS_LIMIT];
    uint32_t num_segments;
};

/* The file's bytes of the addresses [address, address + num_bytes), or NULL when they are not all
 * in the file part of one loaded segment. No alignment is promised. */
const unsigned char *moe_elf_view_at(const struct moe_elf_view *view, uint64_t address,
                                     uint64_t num_bytes);

/* Bytes from `address` to the end of the file part of its segment; 0 if there are none. */
uint64_t moe_elf_view_rest(const struct moe_elf_view *view, uint64_t address);

/* BAD_FILE with a sentence that begins with the name. */
int32_t moe_elf_view_refuse(const struct moe_elf_view *view, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What the dynamic section says about symbols; addresses are 0 where it says nothing. */
struct moe_elf_dynamic {
    uint64_t strings;
    uint64_t strings_bytes;
    uint64_t symbols;
    uint64_t symbol_bytes;
    uint64_t hash;
    uint64_t gnu_hash;
};

/* Read the dynamic section and refuse what it must not ask for. */
int32_t moe_elf_dynamic_check(const struct moe_elf_view *view, struct moe_elf_dynamic *dynamic);

/* The string at `offset` of the string table, or NULL if it is not terminated inside it. */
const char *moe_elf_dynamic_string(const struct moe_elf_view *view,
                                   const struct moe_elf_dynamic *dynamic, uint64_t offset);

/* Exactly one exported symbol, the entry of the ABI. */
int32_t moe_elf_symbols_check(const struct moe_elf_view *view,
                              const struct moe_elf_dynamic *dynamic);

#endif
