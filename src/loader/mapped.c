/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "mapped.h"

#include <link.h>
#include <string.h>

struct search {
    uintptr_t dynamic;
    struct moe_mapped *mapped;
};

static void add_segment(struct moe_mapped *mapped, const ElfW(Phdr) * header)
{
    if (mapped->num_segments == MOE_MAPPED_SEGMENTS_LIMIT) {
        return;
    }
    struct moe_mapped_segment *segment = &mapped->segments[mapped->num_segments++];
    segment->start = mapped->base + header->p_vaddr;
    segment->end = segment->start + header->p_memsz;
    segment->is_readable = (header->p_flags & PF_R) != 0;
    segment->is_executable = (header->p_flags & PF_X) != 0;
}

static int visit(struct dl_phdr_info *info, size_t info_bytes, void *self)
{
    (void)info_bytes;
    struct search *search = self;
    int is_wanted = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        is_wanted |=
            header->p_type == PT_DYNAMIC && info->dlpi_addr + header->p_vaddr == search->dynamic;
    }
    if (!is_wanted) {
        return 0;
    }
    struct moe_mapped *mapped = search->mapped;
    mapped->base = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            add_segment(mapped, &info->dlpi_phdr[i]);
        }
    }
    for (int i = 0; i < info->dlpi_phnum && mapped->build_id.num_bytes == 0; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        const void *notes = (const void *)(mapped->base + header->p_vaddr);
        if (header->p_type == PT_NOTE && moe_mapped_can_read(mapped, notes, header->p_filesz)) {
            moe_elf_find_build_id(notes, header->p_filesz, header->p_align, &mapped->build_id);
        }
    }
    return 1;
}

int32_t moe_mapped_find(const void *dynamic, struct moe_mapped *mapped)
{
    memset(mapped, 0, sizeof(*mapped));
    struct search search = {.dynamic = (uintptr_t)dynamic, .mapped = mapped};
    return dl_iterate_phdr(visit, &search) == 1;
}

size_t moe_mapped_readable_bytes(const struct moe_mapped *mapped, const void *address)
{
    uintptr_t start = (uintptr_t)address;
    for (uint32_t i = 0; i < mapped->num_segments; i++) {
        const struct moe_mapped_segment *segment = &mapped->segments[i];
        if (segment->is_readable && start >= segment->start && start < segment->end) {
            return segment->end - start;
        }
    }
    return 0;
}

int32_t moe_mapped_can_read(const struct moe_mapped *mapped, const void *address, size_t num_bytes)
{
    return num_bytes <= moe_mapped_readable_bytes(mapped, address);
}

int32_t moe_mapped_can_execute(const struct moe_mapped *mapped, uintptr_t address)
{
    for (uint32_t i = 0; i < mapped->num_segments; i++) {
        const struct moe_mapped_segment *segment = &mapped->segments[i];
        if (segment->is_executable && address >= segment->start && address < segment->end) {
            return 1;
        }
    }
    return 0;
}
