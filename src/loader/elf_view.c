/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "elf_view.h"

#include "loader_status.h"

#include <stdarg.h>
#include <stdio.h>

int32_t moe_elf_view_refuse(const struct moe_elf_view *view, const char *format, ...)
{
    char what[256];
    va_list values;
    va_start(values, format);
    vsnprintf(what, sizeof(what), format, values);
    va_end(values);
    return moe_loader_status_set(view->error, MOE_LOADER_STATUS_BAD_FILE, "%s: %s", view->name,
                                 what);
}

const unsigned char *moe_elf_view_at(const struct moe_elf_view *view, uint64_t address,
                                     uint64_t num_bytes)
{
    for (uint32_t i = 0; i < view->num_segments; i++) {
        const ElfW(Phdr) *segment = &view->segments[i];
        if (segment->p_type != PT_LOAD || address < segment->p_vaddr) {
            continue;
        }
        uint64_t offset = address - segment->p_vaddr;
        if (offset <= segment->p_filesz && num_bytes <= segment->p_filesz - offset) {
            return view->bytes + segment->p_offset + offset;
        }
    }
    return NULL;
}

uint64_t moe_elf_view_rest(const struct moe_elf_view *view, uint64_t address)
{
    for (uint32_t i = 0; i < view->num_segments; i++) {
        const ElfW(Phdr) *segment = &view->segments[i];
        if (segment->p_type == PT_LOAD && address >= segment->p_vaddr &&
            address - segment->p_vaddr < segment->p_filesz) {
            return segment->p_filesz - (address - segment->p_vaddr);
        }
    }
    return 0;
}
