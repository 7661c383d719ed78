/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic section: what a plugin must not ask the dynamic linker for. */
#define _GNU_SOURCE

#include "elf_view.h"
#include "loader_status.h"

#include <string.h>

#if defined(__has_feature)
#define HAS_FEATURE(feature) __has_feature(feature)
#else
#define HAS_FEATURE(feature) 0
#endif

enum { ENTRIES_LIMIT = 4096, NEEDED_LIMIT = 64 };

static const char *const allowed_libraries[] = {
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || \
    HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
    /* A sanitized host has these in it, and its plugins name them. */
    "libtsan.so.2",
    "libasan.so.8",
    "libubsan.so.1",
#endif
};
#define ALLOWED_TEXT "libc, libm, libdl, libpthread and ld-linux"

/* Tags whose presence alone is refused. */
static const struct {
    int64_t tag;
    const char *reason;
} refused_tags[] = {
    {DT_RPATH, "has an RPATH, which decides where libraries come from; link without -rpath"},
    {DT_RUNPATH, "has a RUNPATH, which decides where libraries come from; link without -rpath"},
    {DT_TEXTREL, "has text relocations; compile with -fPIC and link with -z text"},
    {DT_AUDIT, "names an audit library (DT_AUDIT)"},
    {DT_DEPAUDIT, "names an audit library (DT_DEPAUDIT)"},
    {DT_AUXILIARY, "is a filter for another library (DT_AUXILIARY)"},
    {DT_FILTER, "is a filter for another library (DT_FILTER)"},
};

const char *moe_elf_dynamic_string(const struct moe_elf_view *view,
                                   const struct moe_elf_dynamic *dynamic, uint64_t offset)
{
    if (offset >= dynamic->strings_bytes) {
        return NULL;
    }
    const unsigned char *strings = moe_elf_view_at(view, dynamic->strings, dynamic->strings_bytes);
    if (strings == NULL ||
        memchr(strings + offset, '\0', (size_t)(dynamic->strings_bytes - offset)) == NULL) {
        return NULL;
    }
    return (const char *)strings + offset;
}

static int32_t check_tag(const struct moe_elf_view *view, const ElfW(Dyn) * entry)
{
    for (size_t i = 0; i < sizeof(refused_tags) / sizeof(refused_tags[0]); i++) {
        if (entry->d_tag == refused_tags[i].tag) {
            return moe_elf_view_refuse(view, "%s", refused_tags[i].reason);
        }
    }
    uint64_t value = entry->d_un.d_val;
    if (entry->d_tag == DT_FLAGS && (value & DF_TEXTREL) != 0) {
        return moe_elf_view_refuse(view,
                                   "has text relocations (DF_TEXTREL); compile with -fPIC and "
                                   "link with -z text");
    }
    if (entry->d_tag == DT_FLAGS && (value & DF_STATIC_TLS) != 0) {
        return moe_elf_view_refuse(view,
                                   "needs static TLS (DF_STATIC_TLS), of which a running process "
                                   "has little; compile without -ftls-model=initial-exec");
    }
    if (entry->d_tag == DT_FLAGS_1 && (value & DF_1_PIE) != 0) {
        return moe_elf_view_refuse(view, "this is a program (DF_1_PIE), not a shared object");
    }
    if (entry->d_tag == DT_FLAGS_1 && (value & (DF_1_GLOBAL | DF_1_INTERPOSE)) != 0) {
        return moe_elf_view_refuse(view, "asks to be seen by other libraries (DF_1_GLOBAL or "
                                         "DF_1_INTERPOSE)");
    }
    return MOE_STATUS_OK;
}

/* Where a tag's value is kept; NULL for tags that are not needed here. */
static uint64_t *slot_of(struct moe_elf_dynamic *dynamic, int64_t tag)
{
    switch (tag) {
    case DT_STRTAB:
        return &dynamic->strings;
    case DT_STRSZ:
        return &dynamic->strings_bytes;
    case DT_SYMTAB:
        return &dynamic->symbols;
    case DT_SYMENT:
        return &dynamic->symbol_bytes;
    case DT_HASH:
        return &dynamic->hash;
    case DT_GNU_HASH:
        return &dynamic->gnu_hash;
    default:
        return NULL;
    }
}

static int32_t check_needed(const struct moe_elf_view *view, const struct moe_elf_dynamic *dynamic,
                            uint64_t name_at)
{
    const char *library = moe_elf_dynamic_string(view, dynamic, name_at);
    if (library == NULL) {
        return moe_elf_view_refuse(view,
                                   "the name of a needed library lies outside the string table");
    }
    for (size_t i = 0; i < sizeof(allowed_libraries) / sizeof(allowed_libraries[0]); i++) {
        if (strcmp(library, allowed_libraries[i]) == 0) {
            return MOE_STATUS_OK;
        }
    }
    return moe_elf_view_refuse(view, "needs the library %.64s; only " ALLOWED_TEXT " are allowed",
                               MOE_LOADER_SHOW_TEXT(library));
}

int32_t moe_elf_dynamic_check(const struct moe_elf_view *view, struct moe_elf_dynamic *dynamic)
{
    memset(dynamic, 0, sizeof(*dynamic));
    uint64_t section = 0;
    for (uint32_t i = 0; i < view->num_segments; i++) {
        if (view->segments[i].p_type == PT_DYNAMIC) {
            section = view->segments[i].p_vaddr;
        }
    }
    /* The dynamic linker reads up to DT_NULL wherever the segment ends, and so does this. */
    uint64_t num_entries = moe_elf_view_rest(view, section) / sizeof(ElfW(Dyn));
    const unsigned char *entries = moe_elf_view_at(view, section, num_entries * sizeof(ElfW(Dyn)));
    uint64_t needed[NEEDED_LIMIT];
    uint32_t num_needed = 0;
    int is_ended = 0;
    for (uint64_t i = 0; entries != NULL && i < num_entries && i < ENTRIES_LIMIT && !is_ended;
         i++) {
        ElfW(Dyn) entry;
        memcpy(&entry, entries + i * sizeof(entry), sizeof(entry));
        int32_t status = check_tag(view, &entry);
        if (status != MOE_STATUS_OK) {
            return status;
        }
        uint64_t *slot = slot_of(dynamic, entry.d_tag);
        if (slot != NULL && *slot != 0) {
            return moe_elf_view_refuse(view, "the dynamic section has tag %lld twice",
                                       (long long)entry.d_tag);
        }
        if (slot != NULL) {
            *slot = entry.d_un.d_val;
        }
        if (entry.d_tag == DT_NEEDED) {
            if (num_needed == NEEDED_LIMIT) {
                return moe_elf_view_refuse(view, "needs more than %d libraries", NEEDED_LIMIT);
            }
            needed[num_needed++] = entry.d_un.d_val;
        }
        is_ended = entry.d_tag == DT_NULL;
    }
    if (!is_ended) {
        return moe_elf_view_refuse(view, "the dynamic section has no end inside its segment");
    }
    for (uint32_t i = 0; i < num_needed; i++) {
        int32_t status = check_needed(view, dynamic, needed[i]);
        if (status != MOE_STATUS_OK) {
            return status;
        }
    }
    return MOE_STATUS_OK;
}
