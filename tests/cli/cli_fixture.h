/* SPDX-License-Identifier: Apache-2.0 */
/* Files that the tests of moectl write: a fresh folder each, safetensors files from a list of
 * tensors, texts. */
#ifndef MOE_TESTS_CLI_FIXTURE_H
#define MOE_TESTS_CLI_FIXTURE_H

#include <dirent.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli_error.h"
#include "safetensors.h"

enum { FIXTURE_PATH_BYTES = 512 };

/* A folder of its own for a test. */
struct fixture_folder {
    char path[FIXTURE_PATH_BYTES];
};

static inline void fixture_create(struct fixture_folder *folder)
{
    const char *parent = getenv("TMPDIR");
    snprintf(folder->path, sizeof folder->path, "%s/moe-cli-XXXXXX",
             parent != NULL && parent[0] != '\0' ? parent : "/tmp");
    assert_non_null(mkdtemp(folder->path));
}

static inline void fixture_join(const struct fixture_folder *folder, const char *name, char *path)
{
    const int length = snprintf(path, FIXTURE_PATH_BYTES, "%s/%s", folder->path, name);
    assert_in_range(length, 1, FIXTURE_PATH_BYTES - 1);
}

static inline void fixture_destroy(struct fixture_folder *folder)
{
    DIR *entries = opendir(folder->path);
    assert_non_null(entries);
    for (struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            char path[FIXTURE_PATH_BYTES];
            fixture_join(folder, entry->d_name, path);
            remove(path);
        }
    }
    closedir(entries);
    assert_int_equal(rmdir(folder->path), 0);
}

static inline void fixture_write(const char *path, const void *bytes, size_t num_bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, num_bytes, file), num_bytes);
    assert_int_equal(fclose(file), 0);
}

static inline void fixture_write_text(const struct fixture_folder *folder, const char *name,
                                      const char *text)
{
    char path[FIXTURE_PATH_BYTES];
    fixture_join(folder, name, path);
    fixture_write(path, text, strlen(text));
}

/* The whole file, NUL-terminated, on the heap. */
static inline unsigned char *fixture_read(const char *path, size_t *num_bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *num_bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*num_bytes + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *num_bytes, file), *num_bytes);
    bytes[*num_bytes] = '\0';
    fclose(file);
    return bytes;
}

static inline void fixture_put_length(unsigned char *bytes, uint64_t length)
{
    for (int i = 0; i < 8; ++i) {
        bytes[i] = (unsigned char)(length >> (8 * i));
    }
}

/* A file of a header's length, a header, and num_data_bytes bytes 0, 1, 2, ... of data. */
static inline void fixture_write_raw(const char *path, const char *header, size_t num_data_bytes)
{
    const size_t header_bytes = strlen(header);
    unsigned char *bytes = malloc(8 + header_bytes + num_data_bytes);
    assert_non_null(bytes);
    fixture_put_length(bytes, header_bytes);
    memcpy(bytes + 8, header, header_bytes);
    for (size_t i = 0; i < num_data_bytes; ++i) {
        bytes[8 + header_bytes + i] = (unsigned char)i;
    }
    fixture_write(path, bytes, 8 + header_bytes + num_data_bytes);
    free(bytes);
}

/* Writes tensors of another file to a new one, under names that begin with `prefix` in place of
 * `old_prefix`. `keep(self, name)` says which; NULL keeps all. `shift` bytes before the data make
 * it start at any alignment. */
static inline void fixture_copy_tensors(const char *path, const struct moe_safetensors *source,
                                        int (*keep)(void *self, const char *name), void *self,
                                        const char *old_prefix, const char *prefix, size_t shift)
{
    const size_t num_tensors = moe_safetensors_num_tensors(source);
    char *header = NULL;
    size_t header_bytes = 0;
    FILE *text = open_memstream(&header, &header_bytes);
    assert_non_null(text);
    uint64_t at = 0;
    fputc('{', text);
    for (size_t i = 0; i < num_tensors; ++i) {
        const struct moe_safetensors_tensor *tensor = moe_safetensors_tensor(source, i);
        if (keep != NULL && !keep(self, tensor->name)) {
            continue;
        }
        assert_memory_equal(tensor->name, old_prefix, strlen(old_prefix));
        char shape[MOE_SAFETENSORS_SHAPE_BYTES];
        moe_safetensors_format_shape(tensor->shape, tensor->rank, shape, sizeof shape);
        fprintf(text,
                "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64
                "]}",
                at == 0 ? "" : ",", prefix, tensor->name + strlen(old_prefix), tensor->dtype_name,
                shape, at, at + tensor->data_bytes);
        at += tensor->data_bytes;
    }
    fputc('}', text);
    while ((size_t)ftell(text) % 8 != shift) {
        fputc(' ', text);
    }
    assert_int_equal(fclose(text), 0);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    unsigned char length[8];
    fixture_put_length(length, header_bytes);
    fwrite(length, 1, sizeof length, file);
    fwrite(header, 1, header_bytes, file);
    for (size_t i = 0; i < num_tensors; ++i) {
        const struct moe_safetensors_tensor *tensor = moe_safetensors_tensor(source, i);
        if (keep == NULL || keep(self, tensor->name)) {
            fwrite(tensor->data, 1, tensor->data_bytes, file);
        }
    }
    assert_int_equal(fclose(file), 0);
    free(header);
}

static inline void fixture_assert_contains(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("'%s' does not contain '%s'", text, part);
    }
}

#endif
