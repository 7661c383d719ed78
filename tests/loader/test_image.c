/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing images: good ones, each kind of bad one with its own sentence, and nothing
 * left behind. */
#define _GNU_SOURCE

#include "loader_fixture.h"

#include <dlfcn.h>
#include <link.h>

static void opens_the_plugin(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, REAL_PLUGIN);
    const struct moe_plugin_api *api = moe_loader_image_api(fixture->image);
    assert_int_equal(api->struct_size, sizeof(*api));
    assert_string_equal(api->name, "moe-plugin");
    assert_int_equal(strlen(moe_loader_image_sha256(fixture->image)), 64);
    assert_int_equal(fixture_num_entries(fixture->shadow), 0); /* the copy has no name any more */
    assert_int_equal(moe_loader_image_close(fixture->image, 1, &fixture->error), MOE_STATUS_OK);
}

static void old_hash_tables_are_read(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("old_hash"));
    moe_loader_image_close(fixture->image, 1, NULL);
}

static void hash_must_be_the_given_one(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    char digest[65];
    snprintf(digest, sizeof(digest), "%s", moe_loader_image_sha256(fixture->image));
    moe_loader_image_close(fixture->image, 1, NULL);
    for (int i = 0; i < 64; i++) {
        digest[i] = (char)(digest[i] >= 'a' ? digest[i] - 'a' + 'A' : digest[i]);
    }
    fixture->options.sha256 = digest;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    moe_loader_image_close(fixture->image, 1, NULL);
    fixture_expect_refusal(fixture, SMALL_PLUGIN("good_b"), MOE_LOADER_STATUS_HASH, "sha256");
    digest[63] = 'g';
    fixture_expect_refusal(fixture, SMALL_PLUGIN("good_a"), MOE_STATUS_INVALID_ARGUMENT,
                           "64 hexadecimal digits");
}

static const struct {
    const char *path;
    int32_t status;
    const char *words;
} hostile[] = {
    {SMALL_PLUGIN("entry_returns_null"), MOE_LOADER_STATUS_BAD_TABLE, "returned no function table"},
    {SMALL_PLUGIN("entry_refuses"), MOE_LOADER_STATUS_HANDSHAKE, "this plugin?is not in the mood"},
    {SMALL_PLUGIN("entry_missing"), MOE_LOADER_STATUS_BAD_FILE, "does not export moe_plugin_init"},
    {SMALL_PLUGIN("entry_is_data"), MOE_LOADER_STATUS_BAD_FILE, "is not a function"},
    {SMALL_PLUGIN("table_version"), MOE_LOADER_STATUS_BAD_TABLE, "is of ABI 99."},
    {SMALL_PLUGIN("table_layout"), MOE_LOADER_STATUS_BAD_TABLE, "has layout "},
    {SMALL_PLUGIN("table_flags"), MOE_LOADER_STATUS_BAD_TABLE, "has flags 0x2"},
    {SMALL_PLUGIN("table_size_0"), MOE_LOADER_STATUS_BAD_TABLE, "has struct_size 0;"},
    {SMALL_PLUGIN("table_size_4"), MOE_LOADER_STATUS_BAD_TABLE, "has struct_size 4;"},
    {SMALL_PLUGIN("table_size_huge"), MOE_LOADER_STATUS_BAD_TABLE, "has struct_size 2147483648;"},
    {SMALL_PLUGIN("table_size_past_image"), MOE_LOADER_STATUS_BAD_TABLE,
     "of 65536 bytes ends outside"},
    {SMALL_PLUGIN("table_outside"), MOE_LOADER_STATUS_BAD_TABLE, "lies outside the plugin's image"},
    {SMALL_PLUGIN("table_misaligned"), MOE_LOADER_STATUS_BAD_TABLE, "is not aligned"},
    {SMALL_PLUGIN("member_null"), MOE_LOADER_STATUS_BAD_TABLE, "mandatory member layer"},
    {SMALL_PLUGIN("member_outside"), MOE_LOADER_STATUS_BAD_TABLE,
     "member layer of the function table points outside"},
    {SMALL_PLUGIN("member_in_data"), MOE_LOADER_STATUS_BAD_TABLE,
     "member layer of the function table points outside"},
    {SMALL_PLUGIN("string_null"), MOE_LOADER_STATUS_BAD_TABLE,
     "string version of the function table is NULL"},
    {SMALL_PLUGIN("string_outside"), MOE_LOADER_STATUS_BAD_TABLE,
     "string version of the function table lies outside"},
    {SMALL_PLUGIN("string_endless"), MOE_LOADER_STATUS_BAD_TABLE,
     "string version of the function table has no end within 256 bytes"},
    {SMALL_PLUGIN("exports_two"), MOE_LOADER_STATUS_BAD_FILE, "exports also_exported;"},
    {SMALL_PLUGIN("exports_unique"), MOE_LOADER_STATUS_BAD_FILE, "unique symbol unique_state"},
    {SMALL_PLUGIN("static_tls"), MOE_LOADER_STATUS_BAD_FILE, "static TLS"},
    {SMALL_PLUGIN("runpath"), MOE_LOADER_STATUS_BAD_FILE, "has a RUNPATH"},
    {SMALL_PLUGIN("rpath"), MOE_LOADER_STATUS_BAD_FILE, "has an RPATH"},
    {SMALL_PLUGIN("executable_stack"), MOE_LOADER_STATUS_BAD_FILE, "executable stack"},
    {SMALL_PLUGIN("no_build_id"), MOE_LOADER_STATUS_BAD_FILE, "no GNU build id"},
    {SMALL_PLUGIN("needs_library_1"), MOE_LOADER_STATUS_BAD_FILE, "needs the library libhelper.so"},
    {"/proc/self/exe", MOE_LOADER_STATUS_BAD_FILE, "this is a program"},
};

/* In this process, the ones whose entry comes back; beside a good one that works all along. */
static void bad_ones_are_refused_and_harm_nothing(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    struct moe_loader_image *good = fixture->image;
    const struct moe_plugin_api *api = moe_loader_image_api(good);
    int num_descriptors = fixture_num_descriptors();
    for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
        fixture_expect_refusal(fixture, hostile[i].path, hostile[i].status, hostile[i].words);
        assert_int_equal(api->backend_info(0, NULL, NULL), (int)i + 1);
        assert_int_equal(fixture_num_descriptors(), num_descriptors);
        assert_int_equal(fixture_num_entries(fixture->shadow), 0);
    }
    moe_loader_image_close(good, 1, NULL);
}

/* A refused table's image stays mapped by default, and goes when that is allowed. */
static void refused_images_unload_only_when_allowed(void **state)
{
    struct loader_fixture *fixture = *state;
    int num_mappings = fixture_num_mappings();
    fixture_expect_refusal(fixture, SMALL_PLUGIN("table_version"), MOE_LOADER_STATUS_BAD_TABLE,
                           "99");
    assert_int_equal(fixture_num_mappings(), num_mappings);
    fixture->options.flags = 0;
    fixture_expect_refusal(fixture, SMALL_PLUGIN("table_version"), MOE_LOADER_STATUS_BAD_TABLE,
                           "99");
    assert_true(fixture_num_mappings() > num_mappings);
}

static void options_are_checked(void **state)
{
    struct loader_fixture *fixture = *state;
    const char *path = SMALL_PLUGIN("good_a");
    fixture->options.struct_size = 4;
    fixture_expect_refusal(fixture, path, MOE_STATUS_INVALID_ARGUMENT, "struct_size 4");
    fixture->options.struct_size = sizeof(fixture->options);
    fixture->options.flags = MOE_LOADER_SKIP_CANARY;
    fixture_expect_refusal(fixture, path, MOE_STATUS_INVALID_ARGUMENT, "flags 0x2");
    fixture->options.flags = 0;
    fixture->options.reserved = 1;
    fixture_expect_refusal(fixture, path, MOE_STATUS_INVALID_ARGUMENT, "reserved 1");
    fixture->options.reserved = 0;
    fixture->options.num_trusted_uids = 1;
    fixture_expect_refusal(fixture, path, MOE_STATUS_INVALID_ARGUMENT, "trusted_uids");
    fixture->options.num_trusted_uids = 0;
    struct {
        struct moe_loader_open_options known;
        uint64_t newer;
    } grown = {.known = fixture->options, .newer = 0};
    grown.known.struct_size = sizeof(grown);
    struct moe_loader_image *image = NULL;
    assert_int_equal(moe_loader_image_open(path, &fixture->host, &grown.known, &image, NULL),
                     MOE_STATUS_OK);
    moe_loader_image_close(image, 1, NULL);
    grown.newer = 1;
    assert_int_equal(moe_loader_image_open(path, &fixture->host, &grown.known, &image, NULL),
                     MOE_STATUS_UNKNOWN_FIELD);
    assert_int_equal(moe_loader_image_open(path, NULL, NULL, &image, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_int_equal(moe_loader_image_open(path, &fixture->host, NULL, NULL, NULL),
                     MOE_STATUS_INVALID_ARGUMENT);
    assert_int_equal(moe_loader_image_close(NULL, 1, NULL), MOE_STATUS_OK);
}

static void the_hosts_versions_reach_the_plugin(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture->host.abi_minor = 77;
    fixture_expect_refusal(fixture, REAL_PLUGIN, MOE_LOADER_STATUS_HANDSHAKE, "0.77");
}

static int is_under(const char *marker)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[1024];
    int is_found = 0;
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        is_found |= strstr(line, marker) != NULL;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return is_found;
}

static void closing_keeps_or_unloads(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    assert_int_equal(moe_loader_image_close(fixture->image, 1, &fixture->error), MOE_STATUS_OK);
    assert_false(is_under(fixture->shadow));

    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    const struct moe_plugin_api *api = moe_loader_image_api(fixture->image);
    assert_int_equal(moe_loader_image_close(fixture->image, 0, &fixture->error), MOE_STATUS_OK);
    assert_true(is_under(fixture->shadow));
    assert_string_equal(api->kernel_set_id, "good_a");
}

static void an_image_that_stays_is_reported(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("nodelete"));
    assert_int_equal(moe_loader_image_close(fixture->image, 1, &fixture->error), MOE_STATUS_BUSY);
    assert_non_null(strstr(fixture->error.message, "still mapped after dlclose"));
}

static void nothing_grows_over_200_rounds(void **state)
{
    struct loader_fixture *fixture = *state;
    int num_descriptors = 0;
    int num_mappings = 0;
    for (int round = 0; round < 200; round++) {
        fixture->options.flags =
            MOE_LOADER_ALLOW_UNLOAD | (round % 2 != 0 ? MOE_LOADER_USE_MEMFD : 0u);
        fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
        struct moe_loader_image *first = fixture->image;
        fixture_expect_opens(fixture, SMALL_PLUGIN("good_b"));
        assert_string_equal(moe_loader_image_api(first)->kernel_set_id, "good_a");
        assert_string_equal(moe_loader_image_api(fixture->image)->kernel_set_id, "good_b");
        assert_int_equal(moe_loader_image_close(first, 1, &fixture->error), MOE_STATUS_OK);
        assert_int_equal(moe_loader_image_close(fixture->image, 1, &fixture->error), MOE_STATUS_OK);
        if (round == 3) { /* the heap and the dynamic linker have their first growth behind them */
            num_descriptors = fixture_num_descriptors();
            num_mappings = fixture_num_mappings();
        }
    }
    assert_int_equal(fixture_num_descriptors(), num_descriptors);
    assert_in_range(fixture_num_mappings(), 1, num_mappings + (MOE_TEST_SANITIZED ? 16 : 0));
    assert_int_equal(fixture_num_entries(fixture->shadow), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOADER_TEST(opens_the_plugin),
        LOADER_TEST(old_hash_tables_are_read),
        LOADER_TEST(hash_must_be_the_given_one),
        LOADER_TEST(bad_ones_are_refused_and_harm_nothing),
        LOADER_TEST(refused_images_unload_only_when_allowed),
        LOADER_TEST(options_are_checked),
        LOADER_TEST(the_hosts_versions_reach_the_plugin),
        LOADER_TEST(closing_keeps_or_unloads),
        LOADER_TEST(an_image_that_stays_is_reported),
        LOADER_TEST(nothing_grows_over_200_rounds),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
