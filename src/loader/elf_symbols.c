/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic symbols: how many there are (only hash tables say so), and which are exported. */
#define _GNU_SOURCE

#include "elf_view.h"
#include "loader_status.h"

#include <string.h>

static uint32_t read_word(const unsigned char *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof(word));
    return word;
}

/* The old table: words nbucket, nchain, buckets, chains; a chain per symbol. */
static int32_t count_by_hash(const struct moe_elf_view *view, uint64_t table, uint64_t *num_symbols)
{
    const unsigned char *head = moe_elf_view_at(view, table, 8);
    if (head == NULL) {
        return moe_elf_view_refuse(view, "the hash table lies outside the loaded segments");
    }
    uint64_t num_buckets = read_word(head);
    uint64_t num_chains = read_word(head + 4);
    if (num_buckets == 0 ||
        moe_elf_view_at(view, table, 8 + 4 * (num_buckets + num_chains)) == NULL) {
        return moe_elf_view_refuse(view, "the hash table is longer than its segment");
    }
    *num_symbols = num_chains;
    return MOE_STATUS_OK;
}

/* The symbol after the last one that the chain from `symbol` leads to; 0 when it runs out of the
 * segment. */
static uint64_t chain_end(const unsigned char *chains, uint64_t num_chains, uint64_t idx)
{
    for (; idx < num_chains; idx++) {
        if ((read_word(chains + 4 * idx) & 1u) != 0) {
            return idx + 1;
        }
    }
    return 0;
}

/*
 * The GNU table: words nbuckets, symoffset, bloom_size, bloom_shift; bloom_size words of the
 * machine's size; buckets (first symbol of each, ascending); chains for the symbols from symoffset
 * on, each ended by an odd word. So the last symbol is the end of the chain of the highest bucket.
 */
static int32_t count_by_gnu_hash(const struct moe_elf_view *view, uint64_t table,
                                 uint64_t *num_symbols)
{
    const unsigned char *head = moe_elf_view_at(view, table, 16);
    if (head == NULL) {
        return moe_elf_view_refuse(view, "the GNU hash table lies outside the loaded segments");
    }
    uint64_t num_buckets = read_word(head);
    uint64_t first_symbol = read_word(head + 4);
    uint64_t num_bloom = read_word(head + 8);
    uint64_t buckets_at = table + 16 + num_bloom * sizeof(ElfW(Addr));
    uint64_t chains_at = buckets_at + 4 * num_buckets;
    if (num_buckets == 0 || num_bloom == 0 || (num_bloom & (num_bloom - 1)) != 0 ||
        moe_elf_view_at(view, table, chains_at - table) == NULL) {
        return moe_elf_view_refuse(view, "the GNU hash table is broken or longer than its segment");
    }
    const unsigned char *buckets = moe_elf_view_at(view, buckets_at, 4 * num_buckets);
    uint64_t last = 0;
    for (uint64_t i = 0; buckets != NULL && i < num_buckets; i++) {
        uint64_t symbol = read_word(buckets + 4 * i);
        if (symbol != 0 && symbol < first_symbol) {
            return moe_elf_view_refuse(view, "the GNU hash table names a symbol before its first");
        }
        last = symbol > last ? symbol : last;
    }
    *num_symbols = first_symbol;
    if (last == 0) {
        return MOE_STATUS_OK;
    }
    uint64_t num_chains = moe_elf_view_rest(view, chains_at) / 4;
    const unsigned char *chains = moe_elf_view_at(view, chains_at, 4 * num_chains);
    uint64_t end = chains != NULL ? chain_end(chains, num_chains, last - first_symbol) : 0;
    if (end == 0) {
        return moe_elf_view_refuse(view, "a chain of the GNU hash table has no end in its segment");
    }
    *num_symbols = first_symbol + end;
    return MOE_STATUS_OK;
}

static int32_t count_symbols(const struct moe_elf_view *view, const struct moe_elf_dynamic *dynamic,
                             uint64_t *num_symbols)
{
    uint64_t by_hash = 0;
    uint64_t by_gnu_hash = 0;
    int32_t status = MOE_STATUS_OK;
    if (dynamic->hash == 0 && dynamic->gnu_hash == 0) {
        return moe_elf_view_refuse(view, "no hash table, so no symbol can be looked up");
    }
    if (dynamic->hash != 0) {
        status = count_by_hash(view, dynamic->hash, &by_hash);
    }
    if (status == MOE_STATUS_OK && dynamic->gnu_hash != 0) {
        status = count_by_gnu_hash(view, dynamic->gnu_hash, &by_gnu_hash);
    }
    *num_symbols = by_hash > by_gnu_hash ? by_hash : by_gnu_hash;
    return status;
}

static int is_executable(const struct moe_elf_view *view, uint64_t address)
{
    for (uint32_t i = 0; i < view->num_segments; i++) {
        const ElfW(Phdr) *segment = &view->segments[i];
        if (segment->p_type == PT_LOAD && (segment->p_flags & PF_X) != 0 &&
            address >= segment->p_vaddr && address - segment->p_vaddr < segment->p_filesz) {
            return 1;
        }
    }
    return 0;
}

/* One symbol; `*num_entries` counts the ABI's entry. */
static int32_t check_symbol(const struct moe_elf_view *view, const struct moe_elf_dynamic *dynamic,
                            const ElfW(Sym) * symbol, uint32_t *num_entries)
{
    unsigned bind = ELF64_ST_BIND(symbol->st_info);
    unsigned visibility = ELF64_ST_VISIBILITY(symbol->st_other);
    int is_exported = symbol->st_shndx != SHN_UNDEF && bind != STB_LOCAL &&
                      visibility != STV_HIDDEN && visibility != STV_INTERNAL;
    if (!is_exported && bind != STB_GNU_UNIQUE) {
        return MOE_STATUS_OK;
    }
    const char *name = moe_elf_dynamic_string(view, dynamic, symbol->st_name);
    if (name == NULL) {
        return moe_elf_view_refuse(view, "the name of a symbol lies outside the string table");
    }
    if (bind == STB_GNU_UNIQUE) {
        return moe_elf_view_refuse(view,
                                   "has the unique symbol %.64s, which two versions of a plugin "
                                   "would share; compile with -fno-gnu-unique or hide it",
                                   MOE_LOADER_SHOW_TEXT(name));
    }
    if (strcmp(name, MOE_PLUGIN_INIT_SYMBOL) != 0) {
        return moe_elf_view_refuse(view,
                                   "exports %.64s; a plugin exports " MOE_PLUGIN_INIT_SYMBOL
                                   " only (hide the rest with a version script)",
                                   MOE_LOADER_SHOW_TEXT(name));
    }
    if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || !is_executable(view, symbol->st_value)) {
        return moe_elf_view_refuse(view, "the symbol " MOE_PLUGIN_INIT_SYMBOL
                                         " is not a function in an executable segment");
    }
    (*num_entries)++;
    return MOE_STATUS_OK;
}

int32_t moe_elf_symbols_check(const struct moe_elf_view *view,
                              const struct moe_elf_dynamic *dynamic)
{
    uint64_t num_symbols = 0;
    if (dynamic->strings_bytes == 0 ||
        moe_elf_view_at(view, dynamic->strings, dynamic->strings_bytes) == NULL) {
        return moe_elf_view_refuse(view, "the string table lies outside the loaded segments");
    }
    if (dynamic->symbol_bytes != sizeof(ElfW(Sym))) {
        return moe_elf_view_refuse(view, "symbols of %llu bytes; they have %zu",
                                   (unsigned long long)dynamic->symbol_bytes, sizeof(ElfW(Sym)));
    }
    int32_t status = count_symbols(view, dynamic, &num_symbols);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    const unsigned char *symbols =
        moe_elf_view_at(view, dynamic->symbols, num_symbols * sizeof(ElfW(Sym)));
    if (symbols == NULL) {
        return moe_elf_view_refuse(view, "the symbol table lies outside the loaded segments");
    }
    uint32_t num_entries = 0;
    for (uint64_t i = 1; i < num_symbols; i++) { /* the first is reserved */
        ElfW(Sym) symbol;
        memcpy(&symbol, symbols + i * sizeof(symbol), sizeof(symbol));
        status = check_symbol(view, dynamic, &symbol, &num_entries);
        if (status != MOE_STATUS_OK) {
            return status;
        }
    }
    if (num_entries != 1) {
        return moe_elf_view_refuse(view, num_entries == 0
                                             ? "does not export " MOE_PLUGIN_INIT_SYMBOL
                                             : "exports " MOE_PLUGIN_INIT_SYMBOL " more than once");
    }
    return MOE_STATUS_OK;
}
