/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "cli_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int moe_cli_file_map(const char *path, struct moe_cli_file *file, struct moe_cli_error *error)
{
    /* O_NONBLOCK: opening a FIFO must not wait for a writer; a regular file does not mind. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return MOE_CLI_FAIL(error, "%s: cannot open: %s", path, strerror(errno));
    }
    struct stat status;
    if (fstat(fd, &status) != 0) {
        moe_cli_error_set(error, "%s: cannot stat: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(status.st_mode)) {
        moe_cli_error_set(error, "%s: not a regular file", path);
        goto fail;
    }
    file->bytes = NULL;
    file->num_bytes = (size_t)status.st_size;
    if (file->num_bytes > 0) {
        void *pages = mmap(NULL, file->num_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (pages == MAP_FAILED) {
            moe_cli_error_set(error, "%s: cannot map: %s", path, strerror(errno));
            goto fail;
        }
        file->bytes = pages;
    }
    close(fd);
    return 0;
fail:
    close(fd);
    return -1;
}

void moe_cli_file_unmap(struct moe_cli_file *file)
{
    if (file->bytes != NULL) {
        munmap((void *)(uintptr_t)file->bytes, file->num_bytes);
    }
    file->bytes = NULL;
    file->num_bytes = 0;
}

int moe_cli_file_exists(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

char *moe_cli_file_join(const char *folder, const char *name)
{
    const size_t path_bytes = strlen(folder) + strlen(name) + sizeof "/";
    char *path = malloc(path_bytes);
    if (path != NULL) {
        snprintf(path, path_bytes, "%s/%s", folder, name);
    }
    return path;
}

struct first_problem {
    const char *label;
    struct moe_cli_error *error;
    int is_set;
};

static void keep_first_problem(void *self, const struct moe_tree_diagnostic *diagnostic)
{
    struct first_problem *first = self;
    if (!first->is_set) {
        moe_cli_error_set(first->error, "%s:%" PRIu32 ":%" PRIu32 ": %s", first->label,
                          diagnostic->line, diagnostic->column, diagnostic->message);
        first->is_set = 1;
    }
}

struct moe_tree *moe_cli_file_parse_object(const char *label, const char *text, size_t text_bytes,
                                           const struct moe_tree_limits *limits,
                                           struct moe_cli_error *error)
{
    struct first_problem first = {.label = label, .error = error, .is_set = 0};
    struct moe_tree *tree =
        moe_tree_parse(text, text_bytes, MOE_TREE_JSON, limits, NULL, keep_first_problem, &first);
    if (tree == NULL) {
        if (!first.is_set) {
            moe_cli_error_set(error, "%s: cannot be parsed", label);
        }
        return NULL;
    }
    if (moe_tree_root(tree)->kind != MOE_NODE_MAPPING) {
        moe_cli_error_set(error, "%s: not a JSON object", label);
        moe_tree_destroy(tree);
        return NULL;
    }
    return tree;
}

struct moe_tree *moe_cli_file_read_object(const char *path, const struct moe_tree_limits *limits,
                                          struct moe_cli_error *error)
{
    struct moe_cli_file file;
    if (moe_cli_file_map(path, &file, error) != 0) {
        return NULL;
    }
    struct moe_tree *tree =
        moe_cli_file_parse_object(path, (const char *)file.bytes, file.num_bytes, limits, error);
    moe_cli_file_unmap(&file);
    return tree;
}
