/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "elf_check.h"

#include "elf_view.h"
#include "loader_status.h"

#include <string.h>

#if defined(__x86_64__)
#define OWN_MACHINE      EM_X86_64
#define OWN_MACHINE_NAME "x86-64"
#elif defined(__aarch64__)
#define OWN_MACHINE      EM_AARCH64
#define OWN_MACHINE_NAME "aarch64"
#else
#error "name the ELF machine of this processor here"
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OWN_BYTE_ORDER ELFDATA2LSB
#else
#define OWN_BYTE_ORDER ELFDATA2MSB
#endif

/* Smallest page of any machine that is supported; two segments never share one. */
#define PAGE_BYTES UINT64_C(4096)

/* Addresses above this are not a shared object's; sums of two stay far from overflow. */
#define ADDRESS_LIMIT (UINT64_C(1) << 47)

/* Is [offset, offset + length) inside the file? */
static int is_in_file(const struct moe_elf_view *view, uint64_t offset, uint64_t length)
{
    return offset <= view->num_bytes && length <= view->num_bytes - offset;
}

static int32_t check_identity(const struct moe_elf_view *view)
{
    const unsigned char *ident = view->bytes;
    if (view->num_bytes == 0) {
        return moe_elf_view_refuse(view, "the file is empty");
    }
    if (view->num_bytes < SELFMAG || memcmp(ident, ELFMAG, SELFMAG) != 0) {
        return moe_elf_view_refuse(view, "not an ELF file; a plugin is a shared object");
    }
    if (view->num_bytes < sizeof(ElfW(Ehdr))) {
        return moe_elf_view_refuse(view, "the file ends inside its ELF header (%llu bytes)",
                                   (unsigned long long)view->num_bytes);
    }
    if (ident[EI_CLASS] != ELFCLASS64) {
        return moe_elf_view_refuse(view, "ELF class %u (%s); this process is 64-bit",
                                   ident[EI_CLASS],
                                   ident[EI_CLASS] == ELFCLASS32 ? "32-bit" : "unknown");
    }
    if (ident[EI_DATA] != OWN_BYTE_ORDER) {
        return moe_elf_view_refuse(view, "ELF byte order %u; this machine's is %d", ident[EI_DATA],
                                   OWN_BYTE_ORDER);
    }
    if (ident[EI_OSABI] != ELFOSABI_SYSV && ident[EI_OSABI] != ELFOSABI_GNU) {
        return moe_elf_view_refuse(
            view, "ELF for another system (OS ABI %u); 0 and 3 can be loaded", ident[EI_OSABI]);
    }
    return MOE_STATUS_OK;
}

static int32_t check_header(const struct moe_elf_view *view, ElfW(Ehdr) * header)
{
    memcpy(header, view->bytes, sizeof(*header));
    if (header->e_machine != OWN_MACHINE) {
        return moe_elf_view_refuse(view, "built for ELF machine %u; this one is %d (%s)",
                                   header->e_machine, OWN_MACHINE, OWN_MACHINE_NAME);
    }
    if (header->e_version != EV_CURRENT || view->bytes[EI_VERSION] != EV_CURRENT) {
        return moe_elf_view_refuse(view, "ELF version %u; only %d exists", header->e_version,
                                   EV_CURRENT);
    }
    if (header->e_type != ET_DYN) {
        return moe_elf_view_refuse(view, "ELF type %u; a shared object is %d", header->e_type,
                                   ET_DYN);
    }
    if (header->e_phentsize != sizeof(ElfW(Phdr)) || header->e_phnum == 0 ||
        header->e_phnum > MOE_ELF_SEGMENTS_LIMIT) {
        return moe_elf_view_refuse(
            view, "%u program headers of %u bytes; 1 to %d of %zu are expected", header->e_phnum,
            header->e_phentsize, MOE_ELF_SEGMENTS_LIMIT, sizeof(ElfW(Phdr)));
    }
    if (header->e_phoff % _Alignof(ElfW(Phdr)) != 0 ||
        !is_in_file(view, header->e_phoff, (uint64_t)header->e_phnum * sizeof(ElfW(Phdr)))) {
        return moe_elf_view_refuse(view, "cut off: the program headers lie outside the file");
    }
    /* The dynamic linker does not need these, but they end the file, so a cut shows in them. */
    if (header->e_shoff != 0 &&
        !is_in_file(view, header->e_shoff, (uint64_t)header->e_shnum * header->e_shentsize)) {
        return moe_elf_view_refuse(view,
                                   "cut off: the section headers lie outside the file of %llu "
                                   "bytes",
                                   (unsigned long long)view->num_bytes);
    }
    return MOE_STATUS_OK;
}

/* One loaded segment; `*end` is where the one before ended, rounded up to a page. */
static int32_t check_load(const struct moe_elf_view *view, const ElfW(Phdr) * segment, uint32_t idx,
                          uint64_t *end)
{
    if (!is_in_file(view, segment->p_offset, segment->p_filesz)) {
        return moe_elf_view_refuse(view, "cut off: segment %u ends at byte %llu + %llu of %llu",
                                   idx, (unsigned long long)segment->p_offset,
                                   (unsigned long long)segment->p_filesz,
                                   (unsigned long long)view->num_bytes);
    }
    if (segment->p_filesz > segment->p_memsz || segment->p_vaddr >= ADDRESS_LIMIT ||
        segment->p_memsz >= ADDRESS_LIMIT) {
        return moe_elf_view_refuse(view, "segment %u has impossible sizes", idx);
    }
    uint64_t alignment = segment->p_align;
    if (alignment < PAGE_BYTES || (alignment & (alignment - 1)) != 0 ||
        ((segment->p_vaddr ^ segment->p_offset) & (alignment - 1)) != 0) {
        return moe_elf_view_refuse(view, "segment %u is not aligned to pages", idx);
    }
    if ((segment->p_flags & (PF_W | PF_X)) == (PF_W | PF_X)) {
        return moe_elf_view_refuse(view, "segment %u is writable and executable", idx);
    }
    if (segment->p_vaddr / PAGE_BYTES * PAGE_BYTES < *end) {
        return moe_elf_view_refuse(view, "segment %u overlaps the one before it", idx);
    }
    *end = (segment->p_vaddr + segment->p_memsz + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    return MOE_STATUS_OK;
}

static int32_t check_segments(struct moe_elf_view *view)
{
    uint32_t num_loads = 0;
    uint32_t num_dynamic = 0;
    uint32_t num_stacks = 0;
    uint64_t end = 0;
    for (uint32_t i = 0; i < view->num_segments; i++) {
        const ElfW(Phdr) *segment = &view->segments[i];
        int32_t status = MOE_STATUS_OK;
        switch (segment->p_type) {
        case PT_LOAD:
            num_loads++;
            status = check_load(view, segment, i, &end);
            break;
        case PT_DYNAMIC:
            num_dynamic++;
            break;
        case PT_INTERP:
            status = moe_elf_view_refuse(view, "this is a program (it names an interpreter), not a "
                                               "shared object");
            break;
        case PT_GNU_STACK:
            num_stacks++;
            if ((segment->p_flags & PF_X) != 0) {
                status = moe_elf_view_refuse(view, "asks for an executable stack; link with "
                                                   "-z noexecstack");
            }
            break;
        default:
            break;
        }
        if (status != MOE_STATUS_OK) {
            return status;
        }
    }
    if (num_loads == 0 || num_dynamic != 1) {
        return moe_elf_view_refuse(view,
                                   "%u loaded segments and %u dynamic sections; a shared object "
                                   "has some and one",
                                   num_loads, num_dynamic);
    }
    if (num_stacks == 0) {
        return moe_elf_view_refuse(view,
                                   "does not say that its stack is not executable (PT_GNU_STACK "
                                   "is missing); link with -z noexecstack");
    }
    return MOE_STATUS_OK;
}

void moe_elf_find_build_id(const void *notes, size_t num_bytes, size_t alignment,
                           struct moe_elf_build_id *build_id)
{
    const unsigned char *bytes = notes;
    size_t padding = alignment == 8 ? 8 : 4;
    memset(build_id, 0, sizeof(*build_id));
    for (size_t at = 0; num_bytes - at >= sizeof(ElfW(Nhdr));) {
        ElfW(Nhdr) note;
        memcpy(&note, bytes + at, sizeof(note));
        /* In 64 bits these sums of 32-bit numbers cannot overflow. */
        uint64_t content_at =
            (sizeof(note) + (uint64_t)note.n_namesz + padding - 1) / padding * padding;
        uint64_t note_end = (content_at + note.n_descsz + padding - 1) / padding * padding;
        if (content_at + note.n_descsz > num_bytes - at) {
            return;
        }
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof("GNU") &&
            memcmp(bytes + at + sizeof(note), "GNU", sizeof("GNU")) == 0 && note.n_descsz > 0 &&
            note.n_descsz <= MOE_ELF_BUILD_ID_LIMIT) {
            build_id->num_bytes = note.n_descsz;
            memcpy(build_id->bytes, bytes + at + content_at, note.n_descsz);
            return;
        }
        if (note_end >= num_bytes - at) {
            return;
        }
        at += (size_t)note_end;
    }
}

static int32_t check_build_id(const struct moe_elf_view *view, struct moe_elf_build_id *build_id)
{
    build_id->num_bytes = 0;
    for (uint32_t i = 0; i < view->num_segments && build_id->num_bytes == 0; i++) {
        const ElfW(Phdr) *segment = &view->segments[i];
        if (segment->p_type == PT_NOTE) {
            /* Through its address, as it will be read from the mapped image. */
            const unsigned char *notes = moe_elf_view_at(view, segment->p_vaddr, segment->p_filesz);
            if (notes != NULL) {
                moe_elf_find_build_id(notes, (size_t)segment->p_filesz, (size_t)segment->p_align,
                                      build_id);
            }
        }
    }
    if (build_id->num_bytes == 0) {
        return moe_elf_view_refuse(view,
                                   "no GNU build id, so what gets mapped could not be proven to "
                                   "be this file; link with -Wl,--build-id=sha1");
    }
    return MOE_STATUS_OK;
}

int32_t moe_elf_check(const void *bytes, size_t num_bytes, const char *name,
                      struct moe_elf_build_id *build_id, struct moe_error *error)
{
    struct moe_loader_shown shown = moe_loader_status_show(name);
    struct moe_elf_view view = {
        .bytes = bytes, .num_bytes = num_bytes, .name = shown.text, .error = error};
    ElfW(Ehdr) header;
    int32_t status = check_identity(&view);
    if (status == MOE_STATUS_OK) {
        status = check_header(&view, &header);
    }
    if (status != MOE_STATUS_OK) {
        return status;
    }
    memcpy(view.segments, view.bytes + header.e_phoff, header.e_phnum * sizeof(view.segments[0]));
    view.num_segments = header.e_phnum;
    status = check_segments(&view);
    struct moe_elf_dynamic dynamic;
    if (status == MOE_STATUS_OK) {
        status = moe_elf_dynamic_check(&view, &dynamic);
    }
    if (status == MOE_STATUS_OK) {
        status = moe_elf_symbols_check(&view, &dynamic);
    }
    if (status == MOE_STATUS_OK) {
        status = check_build_id(&view, build_id);
    }
    return status;
}
