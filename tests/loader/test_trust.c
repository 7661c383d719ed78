/* SPDX-License-Identifier: Apache-2.0 */
/* Kinds of files, owners, permissions, odd paths; nothing ever waits. */
#define _GNU_SOURCE

#include "loader_fixture.h"

#include <sys/socket.h>
#include <sys/un.h>

static void other_kinds_of_files_are_refused(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "text.so", path);
    fixture_write(path, "not a plugin\n", 13);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_BAD_FILE, "not an ELF file");
    fixture_write(path, "", 0);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_BAD_FILE, "the file is empty");
    fixture_path(fixture, "fifo.so", path);
    assert_int_equal(mkfifo(path, 0600), 0);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_BAD_FILE, "this is a FIFO");
    fixture_expect_refusal(fixture, fixture->folder, MOE_LOADER_STATUS_BAD_FILE,
                           "this is a folder");
    fixture_expect_refusal(fixture, "/", MOE_LOADER_STATUS_BAD_FILE, "this is a folder");
    fixture_expect_refusal(fixture, "/dev/zero", MOE_LOADER_STATUS_BAD_FILE, "this is a device");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", fixture->folder);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (const struct sockaddr *)&address, sizeof(address)), 0);
    fixture_expect_refusal(fixture, address.sun_path, MOE_LOADER_STATUS_BAD_FILE,
                           "this is a socket");
    close(listener);
}

static void missing_files_are_named(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "missing.so", path);
    fixture_expect_refusal(fixture, path, MOE_STATUS_IO, "missing.so: cannot be found");
    fixture_path(fixture, "dangling.so", path);
    assert_int_equal(symlink("/nowhere/plugin.so", path), 0);
    fixture_expect_refusal(fixture, path, MOE_STATUS_IO,
                           "a symbolic link to something that does not exist");
    fixture_path(fixture, "loop.so", path);
    assert_int_equal(symlink("loop.so", path), 0);
    fixture_expect_refusal(fixture, path, MOE_STATUS_IO, "symbolic links");
    fixture_expect_refusal(fixture, NULL, MOE_STATUS_INVALID_ARGUMENT, "the path is NULL");
    fixture_expect_refusal(fixture, "", MOE_STATUS_INVALID_ARGUMENT, "the path is empty");
}

static void odd_paths_work_or_are_refused(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "\xf0\x9f\xa6\x8a plugin\t.so", path);
    fixture_copy(SMALL_PLUGIN("good_a"), path);
    fixture_expect_opens(fixture, path);
    moe_loader_image_close(fixture->image, 1, NULL);
    fixture_write(path, "x", 1);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_BAD_FILE,
                           "\xf0\x9f\xa6\x8a plugin?.so: ");

    char *name = malloc(5001);
    assert_non_null(name);
    memset(name, '/', 4096);
    name[4096] = '\0';
    fixture_expect_refusal(fixture, name, MOE_STATUS_IO, "4096 bytes or more");
    /* The longest that the system takes: slashes, then the plugin. */
    const char *plugin = SMALL_PLUGIN("good_a");
    memcpy(name + 4095 - strlen(plugin), plugin, strlen(plugin) + 1);
    fixture_expect_opens(fixture, name);
    moe_loader_image_close(fixture->image, 1, NULL);
    memset(name, 'x', 5000);
    name[5000] = '\0';
    fixture_expect_refusal(fixture, name, MOE_STATUS_IO, "4096 bytes or more");
    free(name);
}

static void links_to_plugins_are_followed(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "current.so", path);
    assert_int_equal(symlink(SMALL_PLUGIN("good_a"), path), 0);
    fixture_expect_opens(fixture, path);
    assert_string_equal(moe_loader_image_api(fixture->image)->kernel_set_id, "good_a");
    moe_loader_image_close(fixture->image, 1, NULL);
}

static void writable_files_and_folders_are_refused(void **state)
{
    struct loader_fixture *fixture = *state;
    char folder[FIXTURE_PATH_BYTES];
    char path[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "lib", folder);
    fixture_path(fixture, "lib/plugin.so", path);
    assert_int_equal(mkdir(folder, 0755), 0);
    fixture_copy(SMALL_PLUGIN("good_a"), path);

    assert_int_equal(chmod(path, 0646), 0);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_UNTRUSTED,
                           "the file can be written by others (mode 0646)");
    assert_int_equal(chmod(path, 0664), 0);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_UNTRUSTED,
                           "the file can be written by its group (mode 0664)");
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(chmod(folder, 0777), 0);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_UNTRUSTED,
                           "the folder can be written by others (mode 0777)");
    fixture->options.flags |= MOE_LOADER_SKIP_TRUST;
    fixture_expect_opens(fixture, path);
    moe_loader_image_close(fixture->image, 1, NULL);
    fixture->options.flags &= ~MOE_LOADER_SKIP_TRUST;
    assert_int_equal(chmod(folder, 01777), 0); /* sticky: others cannot replace what is ours */
    fixture_expect_opens(fixture, path);
    moe_loader_image_close(fixture->image, 1, NULL);
}

static void foreign_owners_are_refused(void **state)
{
    struct loader_fixture *fixture = *state;
    char folder[FIXTURE_PATH_BYTES];
    char path[FIXTURE_PATH_BYTES];
    if (geteuid() != 0) {
        print_message("only root can give files away\n");
        skip();
    }
    fixture_path(fixture, "lib", folder);
    fixture_path(fixture, "lib/plugin.so", path);
    assert_int_equal(mkdir(folder, 0755), 0);
    fixture_copy(SMALL_PLUGIN("good_a"), path);
    assert_int_equal(chown(path, 12345, 0), 0);
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_UNTRUSTED,
                           "the file belongs to user 12345;");
    const uint32_t trusted[] = {1, 12345};
    fixture->options.trusted_uids = trusted;
    fixture->options.num_trusted_uids = 2;
    fixture_expect_opens(fixture, path);
    moe_loader_image_close(fixture->image, 1, NULL);
    fixture->options.num_trusted_uids = 1;
    assert_int_equal(chown(path, 0, 0), 0);
    assert_int_equal(chown(folder, 12345, 0), 0);
    assert_int_equal(chmod(folder, 01755), 0); /* sticky does not help against the owner */
    fixture_expect_refusal(fixture, path, MOE_LOADER_STATUS_UNTRUSTED,
                           "the folder belongs to user 12345;");
}

static void the_folder_of_copies_must_be_private(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    assert_int_equal(mkdir(fixture->shadow, 0755), 0);
    fixture_expect_refusal(fixture, SMALL_PLUGIN("good_a"), MOE_LOADER_STATUS_UNTRUSTED,
                           "it must belong to user");
    assert_int_equal(chmod(fixture->shadow, 0700), 0);
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    moe_loader_image_close(fixture->image, 1, NULL);
    fixture_path(fixture, "missing/shadow", path);
    fixture->options.shadow_directory = path;
    fixture_expect_refusal(fixture, SMALL_PLUGIN("good_a"), MOE_STATUS_IO,
                           "the folder for private copies cannot be made");
    fixture->options.shadow_directory = NULL;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    moe_loader_image_close(fixture->image, 1, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOADER_TEST(other_kinds_of_files_are_refused),
        LOADER_TEST(missing_files_are_named),
        LOADER_TEST(odd_paths_work_or_are_refused),
        LOADER_TEST(links_to_plugins_are_followed),
        LOADER_TEST(writable_files_and_folders_are_refused),
        LOADER_TEST(foreign_owners_are_refused),
        LOADER_TEST(the_folder_of_copies_must_be_private),
    };
    return cmocka_run_group_tests_name("trust", tests, NULL, NULL);
}
