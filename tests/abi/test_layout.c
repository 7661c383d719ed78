/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The binary layout of moe_plugin.h is the released one: abi/layout-<major>.<minor>.txt, whose hash
 * is MOE_ABI_LAYOUT_HASH. After a change that is meant, run this program with --print, store its
 * output there, and put the hash that the test then names into the header.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "abi_layout.h"
#include "support_compare.h"

#define STRINGIFY_(text) #text
#define STRINGIFY(text)  STRINGIFY_(text)
#define GOLDEN_PATH \
    MOE_SOURCE_DIR "/abi/layout-" STRINGIFY(MOE_ABI_MAJOR) "." STRINGIFY(MOE_ABI_MINOR) ".txt"
#define HEADER_PATH MOE_SOURCE_DIR "/abi/moe_plugin.h"

/* The entry has this type for ever. */
typedef const struct moe_plugin_api *entry_type(const struct moe_host *, struct moe_error *);
_Static_assert(_Generic(&moe_plugin_init, entry_type * : 1, default : 0) &&
                   _Generic((moe_plugin_init_fn *)0, entry_type * : 1, default : 0),
               "moe_plugin_init");

/* One line per entry; the caller frees. */
static char *make_layout_text(void)
{
    size_t num_bytes = 0;
    char *text = NULL;
    FILE *stream = open_memstream(&text, &num_bytes);
    if (stream == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < ABI_LAYOUT_NUM_ENTRIES; i++) {
        const struct abi_layout_entry *entry = &abi_layout[i];
        switch (entry->kind) {
        case ABI_LAYOUT_STRUCT:
            fprintf(stream, "struct %s %zu %zu\n", entry->struct_name, entry->bytes,
                    entry->alignment);
            break;
        case ABI_LAYOUT_MEMBER:
            fprintf(stream, "%s.%s %zu %zu %s\n", entry->struct_name, entry->name, entry->offset,
                    entry->bytes, entry->type);
            break;
        case ABI_LAYOUT_CONSTANT:
            fprintf(stream, "%s %lld\n", entry->name, (long long)entry->value);
            break;
        }
    }
    if (fclose(stream) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static char *read_text(const char *path)
{
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) {
        fail_msg("cannot open %s", path);
    }
    assert_int_equal(fseek(stream, 0, SEEK_END), 0);
    long num_bytes = ftell(stream);
    assert_true(num_bytes > 0);
    rewind(stream);
    char *text = malloc((size_t)num_bytes + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)num_bytes, stream), (size_t)num_bytes);
    text[num_bytes] = '\0';
    fclose(stream);
    return text;
}

static int line_length(const char *line)
{
    return (int)strcspn(line, "\n");
}

static void test_layout_is_golden(void **state)
{
    (void)state;
    char *golden = read_text(GOLDEN_PATH);
    char *ours = make_layout_text();
    assert_non_null(ours);
    const char *wanted = golden, *got = ours;
    for (int line = 1; *wanted != '\0' || *got != '\0'; line++) {
        int wanted_length = line_length(wanted), got_length = line_length(got);
        if (wanted_length != got_length || memcmp(wanted, got, (size_t)wanted_length) != 0) {
            fail_msg("%s:%d: \"%.*s\"; this build has \"%.*s\"", GOLDEN_PATH, line, wanted_length,
                     wanted, got_length, got);
        }
        wanted += wanted_length + (wanted[wanted_length] == '\n');
        got += got_length + (got[got_length] == '\n');
    }
    assert_string_equal(golden, ours);
    free(golden);
    free(ours);
}

static void test_hash_is_of_golden(void **state)
{
    (void)state;
    char *golden = read_text(GOLDEN_PATH);
    uint64_t hash = support_hash(SUPPORT_HASH_INIT, golden, strlen(golden));
    free(golden);
    if (hash != MOE_ABI_LAYOUT_HASH) {
        fail_msg("the hash of %s is 0x%016llx; MOE_ABI_LAYOUT_HASH is 0x%016llx", GOLDEN_PATH,
                 (unsigned long long)hash, (unsigned long long)MOE_ABI_LAYOUT_HASH);
    }
}

/* Members lie one after the other and fill their struct: none is missing here, and there is no
 * implicit padding. */
static void test_members_fill_structs(void **state)
{
    (void)state;
    const struct abi_layout_entry *open = NULL;
    size_t end = 0;
    for (size_t i = 0; i <= ABI_LAYOUT_NUM_ENTRIES; i++) {
        const struct abi_layout_entry *entry = i < ABI_LAYOUT_NUM_ENTRIES ? &abi_layout[i] : NULL;
        bool is_member = entry != NULL && entry->kind == ABI_LAYOUT_MEMBER;
        if (!is_member && open != NULL && end != open->bytes) {
            fail_msg(
                "struct %s has %zu bytes, its members %zu: one is missing, or there is padding",
                open->struct_name, open->bytes, end);
        }
        if (!is_member) {
            open = entry != NULL && entry->kind == ABI_LAYOUT_STRUCT ? entry : NULL;
            end = 0;
            continue;
        }
        assert_non_null(open);
        assert_string_equal(entry->struct_name, open->struct_name);
        if (entry->offset != end) {
            fail_msg("%s.%s is at %zu, the member before it ends at %zu", entry->struct_name,
                     entry->name, entry->offset, end);
        }
        end = entry->offset + entry->bytes;
    }
}

/* Structs that can grow begin with their size; so do the arguments of run calls, inside of their
 * first member. */
static void test_first_members(void **state)
{
    (void)state;
    for (size_t i = 0; i + 1 < ABI_LAYOUT_NUM_ENTRIES; i++) {
        if (abi_layout[i].kind != ABI_LAYOUT_STRUCT) {
            continue;
        }
        const char *name = abi_layout[i].struct_name;
        const struct abi_layout_entry *first = &abi_layout[i + 1];
        bool is_frozen = strcmp(name, "moe_recipe") == 0 || strcmp(name, "moe_operand") == 0 ||
                         strcmp(name, "moe_route_filter") == 0;
        bool is_sized =
            (strcmp(first->name, "struct_size") == 0 && strcmp(first->type, "uint32_t") == 0) ||
            strcmp(first->type, "struct moe_call") == 0;
        if (is_frozen == is_sized) {
            fail_msg("struct %s begins with %s %s", name, first->type, first->name);
        }
    }
}

static bool is_listed(enum abi_layout_kind kind, const char *name, size_t name_bytes)
{
    for (size_t i = 0; i < ABI_LAYOUT_NUM_ENTRIES; i++) {
        const char *listed =
            kind == ABI_LAYOUT_STRUCT ? abi_layout[i].struct_name : abi_layout[i].name;
        if (abi_layout[i].kind == kind && strlen(listed) == name_bytes &&
            memcmp(listed, name, name_bytes) == 0) {
            return true;
        }
    }
    return false;
}

/* Calls is_listed for each line of the header that begins with `prefix` and goes on as a
 * definition. */
static int count_definitions(const char *header, const char *prefix, enum abi_layout_kind kind)
{
    static const char name_characters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
    int num_found = 0;
    for (const char *line = header; *line != '\0'; line += line_length(line) + 1) {
        if (strncmp(line, prefix, strlen(prefix)) != 0) {
            continue;
        }
        const char *name = line + strlen(prefix);
        size_t name_bytes = strspn(name, name_characters);
        const char *rest = name + name_bytes + strspn(name + name_bytes, " \\\n");
        bool defines = kind == ABI_LAYOUT_STRUCT ? *rest == '{' : *rest >= '0' && *rest <= '9';
        if (!defines) {
            continue;
        }
        num_found++;
        if (!is_listed(kind, name, name_bytes)) {
            fail_msg("%.*s of moe_plugin.h is missing in layout.def", (int)name_bytes, name);
        }
    }
    return num_found;
}

static int count_listed(enum abi_layout_kind kind)
{
    int num_listed = 0;
    for (size_t i = 0; i < ABI_LAYOUT_NUM_ENTRIES; i++) {
        num_listed += abi_layout[i].kind == kind;
    }
    return num_listed;
}

/* Rows of the lists of ids: "X(NAME, ...". */
static int count_ids(const char *header)
{
    static const char row[] = "X(MOE_";
    int num_found = 0;
    for (const char *at = strstr(header, row); at != NULL; at = strstr(at + 1, row)) {
        const char *name = at + strlen("X(");
        num_found++;
        if (!is_listed(ABI_LAYOUT_CONSTANT, name, strcspn(name, ","))) {
            fail_msg("id %.*s of moe_plugin.h is missing in layout.def", (int)strcspn(name, ","),
                     name);
        }
    }
    return num_found;
}

static void test_header_is_covered(void **state)
{
    (void)state;
    char *header = read_text(HEADER_PATH);
    int num_structs = count_definitions(header, "struct ", ABI_LAYOUT_STRUCT);
    int num_constants = count_definitions(header, "#define ", ABI_LAYOUT_CONSTANT);
    int num_ids = count_ids(header);
    free(header);
    assert_int_equal(num_structs, count_listed(ABI_LAYOUT_STRUCT));
    assert_int_equal(num_constants + num_ids, count_listed(ABI_LAYOUT_CONSTANT));
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--print") == 0) {
        char *text = make_layout_text();
        int is_printed = text != NULL && fputs(text, stdout) >= 0 && fflush(stdout) == 0;
        free(text);
        return is_printed ? 0 : 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout_is_golden),     cmocka_unit_test(test_hash_is_of_golden),
        cmocka_unit_test(test_members_fill_structs), cmocka_unit_test(test_first_members),
        cmocka_unit_test(test_header_is_covered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
