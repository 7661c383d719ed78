/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be said about a shared object before the dynamic linker sees it. Reads `bytes` only,
 * within their bounds, whatever they are; everything is found through program headers, as the
 * dynamic linker finds it.
 */
#ifndef MOE_LOADER_ELF_CHECK_H
#define MOE_LOADER_ELF_CHECK_H

#include "moe_loader.h"

#define MOE_ELF_BUILD_ID_LIMIT 64

struct moe_elf_build_id {
    uint32_t num_bytes;
    uint8_t bytes[MOE_ELF_BUILD_ID_LIMIT];
};

/*
 * Is this a plugin for this machine? A complete shared object of the right class, byte order and
 * machine; segments that do not overlap and are never writable and executable; a GNU build id; no
 * executable stack, text relocations, RPATH, RUNPATH, static TLS, filters, audit libraries or
 * global scope; NEEDED in the allow-list; one exported symbol, the function moe_plugin_init, and no
 * unique symbols. OK with `*build_id`, or BAD_FILE with the first thing that is wrong; `name`
 * begins the sentence.
 */
int32_t moe_elf_check(const void *bytes, size_t num_bytes, const char *name,
                      struct moe_elf_build_id *build_id, struct moe_error *error);

/* The build id in `num_bytes` of notes aligned to `alignment` (4 or 8); num_bytes 0 in the result
 * if there is none. */
void moe_elf_find_build_id(const void *notes, size_t num_bytes, size_t alignment,
                           struct moe_elf_build_id *build_id);

#endif
