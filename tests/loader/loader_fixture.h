/* SPDX-License-Identifier: Apache-2.0 */
/* A private folder per test, files made and spoilt in it, and what a refusal has to look like. */
#ifndef MOE_TESTS_LOADER_FIXTURE_H
#define MOE_TESTS_LOADER_FIXTURE_H

#include "canary_run.h"
#include "image.h"
#include "loader_status.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SMALL_PLUGIN(name) MOE_BUILD_DIR "/tests/plugins/" name ".so"
#define REAL_PLUGIN        MOE_BUILD_DIR "/lib/libmoe_plugin.so"
#define CANARY_PATH        MOE_BUILD_DIR "/bin/moe-canary"
#define FIXTURE_PATH_BYTES 512

struct loader_fixture {
    char folder[64];
    char shadow[96];
    struct moe_host host;
    struct moe_loader_open_options options; /* shadow copies go into the folder */
    struct moe_error error;
    struct moe_loader_image *image;
};

static inline void fixture_require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "cannot set up a test: %s\n", what);
        abort();
    }
}

static inline int fixture_setup(void **state)
{
    struct loader_fixture *fixture = calloc(1, sizeof(*fixture));
    fixture_require(fixture != NULL, "memory");
    snprintf(fixture->folder, sizeof(fixture->folder), "/tmp/moe-test-XXXXXX");
    fixture_require(mkdtemp(fixture->folder) != NULL, fixture->folder);
    snprintf(fixture->shadow, sizeof(fixture->shadow), "%s/shadow", fixture->folder);
    MOE_INIT(fixture->host);
    fixture->host.abi_major = MOE_ABI_MAJOR;
    fixture->host.abi_minor = MOE_ABI_MINOR;
    fixture->host.layout_hash = MOE_ABI_LAYOUT_HASH;
    MOE_INIT(fixture->options);
    fixture->options.flags = MOE_LOADER_ALLOW_UNLOAD;
    fixture->options.shadow_directory = fixture->shadow;
    MOE_INIT(fixture->error);
    *state = fixture;
    return 0;
}

static inline void fixture_remove_tree(const char *path)
{
    struct stat found;
    if (lstat(path, &found) == 0 && S_ISDIR(found.st_mode)) {
        chmod(path, 0700);
        DIR *entries = opendir(path);
        for (struct dirent *entry = entries != NULL ? readdir(entries) : NULL; entry != NULL;
             entry = readdir(entries)) {
            if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
                char below[2 * PATH_MAX];
                snprintf(below, sizeof(below), "%s/%s", path, entry->d_name);
                fixture_remove_tree(below);
            }
        }
        if (entries != NULL) {
            closedir(entries);
        }
    }
    remove(path);
}

static inline int fixture_teardown(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_remove_tree(fixture->folder);
    free(fixture);
    return 0;
}

/* "<folder>/<name>" in `path`. */
static inline void fixture_path(const struct loader_fixture *fixture, const char *name,
                                char path[FIXTURE_PATH_BYTES])
{
    int needed = snprintf(path, FIXTURE_PATH_BYTES, "%s/%s", fixture->folder, name);
    fixture_require(needed < FIXTURE_PATH_BYTES, "a short path");
}

static inline unsigned char *fixture_read(const char *path, size_t *num_bytes)
{
    FILE *file = fopen(path, "rb");
    fixture_require(file != NULL, path);
    fixture_require(fseek(file, 0, SEEK_END) == 0, path);
    *num_bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*num_bytes + 1);
    fixture_require(bytes != NULL && fread(bytes, 1, *num_bytes, file) == *num_bytes, path);
    fclose(file);
    return bytes;
}

/* Overwrites in place when the file exists. */
static inline void fixture_write(const char *path, const void *bytes, size_t num_bytes)
{
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    fixture_require(file >= 0, path);
    fixture_require(write(file, bytes, num_bytes) == (ssize_t)num_bytes, path);
    fixture_require(fchmod(file, 0644) == 0 && close(file) == 0, path);
}

static inline void fixture_copy(const char *from, const char *to)
{
    size_t num_bytes;
    unsigned char *bytes = fixture_read(from, &num_bytes);
    fixture_write(to, bytes, num_bytes);
    free(bytes);
}

static inline int32_t fixture_open(struct loader_fixture *fixture, const char *path)
{
    fixture->image = NULL;
    memset(&fixture->error, 0, sizeof(fixture->error));
    fixture->error.struct_size = sizeof(fixture->error);
    return moe_loader_image_open(path, &fixture->host, &fixture->options, &fixture->image,
                                 &fixture->error);
}

/* The file is refused with this status, in one sentence that has these words. */
static inline void fixture_expect_refusal(struct loader_fixture *fixture, const char *path,
                                          int32_t status, const char *words)
{
    int32_t found = fixture_open(fixture, path);
    if (found != status || strstr(fixture->error.message, words) == NULL) {
        fail_msg("%s: expected %s \"...%s...\", found %s \"%s\"", path != NULL ? path : "NULL",
                 moe_loader_status_name(status), words, moe_loader_status_name(found),
                 fixture->error.message);
    }
    assert_null(fixture->image);
    assert_int_equal(fixture->error.status, status);
    assert_null(strchr(fixture->error.message, '\n'));
}

static inline void fixture_expect_opens(struct loader_fixture *fixture, const char *path)
{
    int32_t status = fixture_open(fixture, path);
    if (status != MOE_STATUS_OK) {
        fail_msg("%s: %s", path, fixture->error.message);
    }
    assert_non_null(fixture->image);
}

static inline int fixture_num_entries(const char *folder)
{
    DIR *entries = opendir(folder);
    int num_entries = 0;
    for (struct dirent *entry = entries != NULL ? readdir(entries) : NULL; entry != NULL;
         entry = readdir(entries)) {
        num_entries += entry->d_name[0] != '.';
    }
    if (entries != NULL) {
        closedir(entries);
    }
    return num_entries;
}

static inline int fixture_num_descriptors(void)
{
    return fixture_num_entries("/proc/self/fd");
}

static inline int fixture_num_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    fixture_require(maps != NULL, "/proc/self/maps");
    int num_lines = 0;
    for (int byte = fgetc(maps); byte != EOF; byte = fgetc(maps)) {
        num_lines += byte == '\n';
    }
    fclose(maps);
    return num_lines;
}

#define LOADER_TEST(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

#endif
