/* SPDX-License-Identifier: Apache-2.0 */
/* The ELF check on good plugins, spoilt in one place each, cut anywhere, and with random bytes
 * changed; and SHA-256. */
#define _GNU_SOURCE

#include "elf_check.h"
#include "loader_fixture.h"
#include "sha256.h"

#include <elf.h>
#include <link.h>

struct spoilt {
    unsigned char *bytes;
    size_t num_bytes;
};

static struct spoilt load(const char *path)
{
    struct spoilt spoilt;
    spoilt.bytes = fixture_read(path, &spoilt.num_bytes);
    return spoilt;
}

static ElfW(Phdr) * segment_of(const struct spoilt *spoilt, uint32_t type)
{
    ElfW(Ehdr) header;
    memcpy(&header, spoilt->bytes, sizeof(header));
    for (int i = 0; i < header.e_phnum; i++) {
        void *at = spoilt->bytes + header.e_phoff + (size_t)i * sizeof(ElfW(Phdr));
        ElfW(Phdr) *segment = at; /* malloc and the linker align it */
        if (segment->p_type == type) {
            return segment;
        }
    }
    fail_msg("no segment of type %u", type);
    return NULL;
}

static ElfW(Dyn) * dynamic_of(const struct spoilt *spoilt, int64_t tag)
{
    void *at = spoilt->bytes + segment_of(spoilt, PT_DYNAMIC)->p_offset;
    for (ElfW(Dyn) *entry = at; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == tag) {
            return entry;
        }
    }
    fail_msg("no dynamic entry %lld", (long long)tag);
    return NULL;
}

static ElfW(Ehdr) * header_of(const struct spoilt *spoilt)
{
    return (ElfW(Ehdr) *)(void *)spoilt->bytes;
}

/* Checks an exact allocation, so that a sanitizer sees any byte read past it. */
static int32_t check(const unsigned char *bytes, size_t num_bytes, struct moe_error *error)
{
    struct moe_elf_build_id build_id;
    unsigned char *exact = malloc(num_bytes > 0 ? num_bytes : 1);
    assert_non_null(exact);
    memcpy(exact, bytes, num_bytes);
    MOE_INIT(*error);
    int32_t status = moe_elf_check(exact, num_bytes, "p.so", &build_id, error);
    free(exact);
    return status;
}

/* The spoilt bytes are refused with these words, and freed. */
static void expect_refusal(struct spoilt *spoilt, const char *words)
{
    struct moe_error error;
    int32_t status = check(spoilt->bytes, spoilt->num_bytes, &error);
    if (status != MOE_LOADER_STATUS_BAD_FILE || strstr(error.message, words) == NULL) {
        fail_msg("expected \"...%s...\", found %s \"%s\"", words, moe_loader_status_name(status),
                 error.message);
    }
    free(spoilt->bytes);
}

#define EXPECT_SPOILT(change, words)                         \
    do {                                                     \
        struct spoilt spoilt = load(SMALL_PLUGIN("good_a")); \
        change;                                              \
        expect_refusal(&spoilt, words);                      \
    } while (0)

static void headers_are_checked(void **state)
{
    (void)state;
    EXPECT_SPOILT(spoilt.num_bytes = 0, "the file is empty");
    EXPECT_SPOILT(spoilt.bytes[1] = 'x', "not an ELF file");
    EXPECT_SPOILT(spoilt.num_bytes = 3, "not an ELF file");
    EXPECT_SPOILT(spoilt.num_bytes = 40, "ends inside its ELF header (40 bytes)");
    EXPECT_SPOILT(spoilt.bytes[EI_CLASS] = ELFCLASS32, "ELF class 1 (32-bit)");
    EXPECT_SPOILT(spoilt.bytes[EI_DATA] ^= 3, "ELF byte order");
    EXPECT_SPOILT(spoilt.bytes[EI_OSABI] = ELFOSABI_FREEBSD, "another system (OS ABI 9)");
    EXPECT_SPOILT(spoilt.bytes[EI_VERSION] = 7, "ELF version");
    EXPECT_SPOILT(header_of(&spoilt)->e_machine = EM_RISCV, "built for ELF machine 243");
    EXPECT_SPOILT(header_of(&spoilt)->e_type = ET_REL, "ELF type 1;");
    EXPECT_SPOILT(header_of(&spoilt)->e_phnum = 0, "0 program headers");
    EXPECT_SPOILT(header_of(&spoilt)->e_phnum = PN_XNUM, "65535 program headers");
    EXPECT_SPOILT(header_of(&spoilt)->e_phentsize = 32, "of 32 bytes");
    EXPECT_SPOILT(header_of(&spoilt)->e_phoff = UINT64_MAX - 7, "program headers lie outside");
    EXPECT_SPOILT(header_of(&spoilt)->e_shoff = UINT64_MAX - 7, "section headers lie outside");
}

static void segments_are_checked(void **state)
{
    (void)state;
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_filesz = UINT64_MAX, "cut off: segment 0");
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_memsz = 1, "impossible sizes");
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_memsz = UINT64_MAX, "impossible sizes");
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_align = 3, "not aligned to pages");
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_vaddr += 8, "not aligned to pages");
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_flags = PF_R | PF_W | PF_X,
                  "writable and executable");
    EXPECT_SPOILT(segment_of(&spoilt, PT_LOAD)->p_memsz = 1 << 20, "overlaps the one before");
    EXPECT_SPOILT(segment_of(&spoilt, PT_DYNAMIC)->p_type = PT_NULL, "0 dynamic sections");
    EXPECT_SPOILT(segment_of(&spoilt, PT_GNU_STACK)->p_type = PT_NULL, "PT_GNU_STACK is missing");
    EXPECT_SPOILT(segment_of(&spoilt, PT_GNU_STACK)->p_flags |= PF_X, "executable stack");
    EXPECT_SPOILT(segment_of(&spoilt, PT_NOTE)->p_vaddr = UINT64_C(1) << 46, "no GNU build id");
    EXPECT_SPOILT(segment_of(&spoilt, PT_DYNAMIC)->p_vaddr = UINT64_C(1) << 46,
                  "has no end inside");
}

static void dynamic_sections_are_checked(void **state)
{
    (void)state;
    const int64_t spare = DT_PLTGOT; /* a tag that the check does not need */
    EXPECT_SPOILT(dynamic_of(&spoilt, spare)->d_tag = DT_TEXTREL, "has text relocations");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_FLAGS)->d_un.d_val |= DF_TEXTREL, "DF_TEXTREL");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_FLAGS)->d_un.d_val |= DF_STATIC_TLS, "DF_STATIC_TLS");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_FLAGS_1)->d_un.d_val |= DF_1_PIE, "DF_1_PIE");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_FLAGS_1)->d_un.d_val |= DF_1_GLOBAL, "DF_1_GLOBAL");
    EXPECT_SPOILT(dynamic_of(&spoilt, spare)->d_tag = DT_AUDIT, "DT_AUDIT");
    EXPECT_SPOILT(dynamic_of(&spoilt, spare)->d_tag = DT_DEPAUDIT, "DT_DEPAUDIT");
    EXPECT_SPOILT(dynamic_of(&spoilt, spare)->d_tag = DT_AUXILIARY, "DT_AUXILIARY");
    EXPECT_SPOILT(dynamic_of(&spoilt, spare)->d_tag = DT_FILTER, "DT_FILTER");
    EXPECT_SPOILT(dynamic_of(&spoilt, spare)->d_tag = DT_STRTAB, "has tag 5 twice");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_NEEDED)->d_un.d_val = UINT64_MAX,
                  "name of a needed library lies outside");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_NEEDED)->d_un.d_val += 1, "needs the library ");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_STRTAB)->d_un.d_val = UINT64_MAX, "lies outside");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_STRSZ)->d_un.d_val = UINT64_MAX, "lies outside");
}

static void symbol_tables_are_checked(void **state)
{
    (void)state;
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_SYMTAB)->d_un.d_val = UINT64_MAX / 2,
                  "symbol table lies outside");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_SYMENT)->d_un.d_val = 16, "symbols of 16 bytes");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_GNU_HASH)->d_un.d_val = UINT64_MAX,
                  "GNU hash table lies outside");
    EXPECT_SPOILT(dynamic_of(&spoilt, DT_GNU_HASH)->d_tag = DT_PLTGOT, "no hash table");
    /* good_a's GNU hash table lies in the first segment, whose addresses are offsets. */
    EXPECT_SPOILT(memset(spoilt.bytes + dynamic_of(&spoilt, DT_GNU_HASH)->d_un.d_ptr, 0xff, 4),
                  "GNU hash table is broken");
    EXPECT_SPOILT(memset(spoilt.bytes + dynamic_of(&spoilt, DT_GNU_HASH)->d_un.d_ptr + 8, 0, 4),
                  "GNU hash table is broken");
    EXPECT_SPOILT(
        memset(spoilt.bytes + dynamic_of(&spoilt, DT_GNU_HASH)->d_un.d_ptr + 16 + 8, 0x7f, 4),
        "GNU hash table");
    struct spoilt old = load(SMALL_PLUGIN("old_hash"));
    memset(old.bytes + dynamic_of(&old, DT_HASH)->d_un.d_ptr + 4, 0xff, 4);
    expect_refusal(&old, "hash table is longer than its segment");
    old = load(SMALL_PLUGIN("old_hash"));
    dynamic_of(&old, DT_HASH)->d_un.d_val = UINT64_MAX;
    expect_refusal(&old, "hash table lies outside");
}

/* Cut at every byte of the small plugin, and at many of the real one: never accepted, never a byte
 * read past the end. */
static void cut_files_are_refused(void **state)
{
    (void)state;
    struct moe_error error;
    struct spoilt small = load(SMALL_PLUGIN("good_a"));
    assert_int_equal(check(small.bytes, small.num_bytes, &error), MOE_STATUS_OK);
    for (size_t cut = 0; cut < small.num_bytes; cut += cut < 4096 ? 1 : 61) {
        assert_int_equal(check(small.bytes, cut, &error), MOE_LOADER_STATUS_BAD_FILE);
    }
    free(small.bytes);
    struct spoilt real = load(REAL_PLUGIN);
    assert_int_equal(check(real.bytes, real.num_bytes, &error), MOE_STATUS_OK);
    for (size_t cut = 0; cut < real.num_bytes; cut += real.num_bytes / 97) {
        assert_int_equal(check(real.bytes, cut, &error), MOE_LOADER_STATUS_BAD_FILE);
    }
    free(real.bytes);
}

/* A refusal has a sentence, whatever was changed. */
static void changed_bytes_are_survived(void **state)
{
    (void)state;
    struct spoilt good = load(SMALL_PLUGIN("good_a"));
    unsigned char *changed = malloc(good.num_bytes);
    assert_non_null(changed);
    uint64_t seed = 1;
    int num_refused = 0;
    for (int round = 0; round < 2000; round++) {
        memcpy(changed, good.bytes, good.num_bytes);
        for (int i = 0; i <= round % 4; i++) {
            seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            /* Headers, notes, hash tables and symbols are all in the first 2 KiB. */
            changed[(seed >> 33) % 2048] = (unsigned char)(seed >> 24);
        }
        struct moe_error error;
        if (check(changed, good.num_bytes, &error) != MOE_STATUS_OK) {
            assert_true(strlen(error.message) > strlen("p.so: "));
            num_refused++;
        }
    }
    assert_in_range(num_refused, 100, 1999);
    free(changed);
    free(good.bytes);
}

static void digests_are_those_of_the_standard(void **state)
{
    (void)state;
    char hex[MOE_SHA256_HEX_BYTES];
    moe_sha256_hex("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    moe_sha256_hex("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    moe_sha256_hex(two_blocks, strlen(two_blocks), hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    const char *four = "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnop"
                       "jklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu";
    moe_sha256_hex(four, strlen(four), hex);
    assert_string_equal(hex, "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    moe_sha256_hex(million, 1000000, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_are_checked),
        cmocka_unit_test(segments_are_checked),
        cmocka_unit_test(dynamic_sections_are_checked),
        cmocka_unit_test(symbol_tables_are_checked),
        cmocka_unit_test(cut_files_are_refused),
        cmocka_unit_test(changed_bytes_are_survived),
        cmocka_unit_test(digests_are_those_of_the_standard),
    };
    return cmocka_run_group_tests_name("elf", tests, NULL, NULL);
}
