/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "sources.h"

#include "loader_status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_SOURCES = 1024,
    MAX_FILE_BYTES = 16 * 1024 * 1024, /* a plugin's own limit is lower; this one bounds memory */
};

static int32_t read_descriptor(int descriptor, const char *path, char **text, uint64_t *text_bytes,
                               struct moe_error *error)
{
    struct stat about;
    if (fstat(descriptor, &about) != 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno, "cannot examine \"%s\"",
                                           moe_loader_status_show(path).text);
    }
    if (!S_ISREG(about.st_mode) || about.st_size > MAX_FILE_BYTES) {
        return moe_loader_status_set(
            error, MOE_STATUS_IO, "configuration \"%s\" is not a regular file of at most %d bytes",
            moe_loader_status_show(path).text, MAX_FILE_BYTES);
    }
    const size_t capacity = (size_t)about.st_size + 1; /* a read that fills it shows growth */
    char *bytes = malloc(capacity);
    if (bytes == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for the configuration");
    }
    size_t used = 0;
    while (used < capacity) {
        const ssize_t num_bytes = read(descriptor, bytes + used, capacity - used);
        if (num_bytes < 0 && errno == EINTR) {
            continue;
        }
        if (num_bytes < 0) {
            const int reason = errno;
            free(bytes);
            return moe_loader_status_set_errno(error, MOE_STATUS_IO, reason, "cannot read \"%s\"",
                                               moe_loader_status_show(path).text);
        }
        if (num_bytes == 0) {
            break;
        }
        used += (size_t)num_bytes;
    }
    if (used == capacity) {
        free(bytes);
        return moe_loader_status_set(error, MOE_STATUS_IO,
                                     "configuration \"%s\" grew while it was read",
                                     moe_loader_status_show(path).text);
    }
    *text = bytes;
    *text_bytes = used;
    return MOE_STATUS_OK;
}

static int32_t read_file(const char *path, char **text, uint64_t *text_bytes,
                         struct moe_error *error)
{
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                           "cannot open the configuration \"%s\"",
                                           moe_loader_status_show(path).text);
    }
    const int32_t status = read_descriptor(descriptor, path, text, text_bytes, error);
    close(descriptor);
    return status;
}

static int32_t copy_source(struct moe_config_source *own, const struct moe_config_source *caller,
                           struct moe_error *error)
{
    struct moe_config_source read;
    const int32_t status = MOE_LOADER_READ(&read, caller, moe_config_source, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    *own = read;
    own->path = NULL;
    own->text = NULL;
    if (read.path != NULL) {
        own->path = moe_loader_copy_string(read.path);
        if (own->path == NULL) {
            return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                         "no memory for the configuration");
        }
    }
    char *text = NULL;
    if (read.text == NULL) {
        if (read.path == NULL) {
            return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                         "a configuration source has neither path nor text");
        }
        const int32_t read_status = read_file(read.path, &text, &own->text_bytes, error);
        own->text = text;
        return read_status;
    }
    if (read.text_bytes > MAX_FILE_BYTES) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "a configuration source has %llu bytes; at most %d",
                                     (unsigned long long)read.text_bytes, MAX_FILE_BYTES);
    }
    text = malloc((size_t)read.text_bytes + 1);
    if (text == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for the configuration");
    }
    memcpy(text, read.text, (size_t)read.text_bytes);
    own->text = text;
    return MOE_STATUS_OK;
}

int32_t moe_sources_create(const struct moe_config_source *list, int32_t num,
                           struct moe_sources **out, struct moe_error *error)
{
    if (num < 0 || num > MAX_SOURCES || (num > 0 && list == NULL)) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%d configuration sources%s; 0 to %d, with a list when there are any", num,
            list == NULL ? " without a list" : "", MAX_SOURCES);
    }
    struct moe_sources *sources = calloc(1, sizeof(*sources));
    if (sources == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for the configuration");
    }
    sources->num_users = 1;
    sources->list = calloc(num > 0 ? (size_t)num : 1, sizeof(*sources->list));
    if (sources->list == NULL) {
        moe_sources_leave(sources);
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "no memory for the configuration");
    }
    int32_t status = MOE_STATUS_OK;
    for (int32_t i = 0; i < num && status == MOE_STATUS_OK; i++) {
        sources->num = i + 1;
        status = copy_source(&sources->list[i], &list[i], error);
    }
    if (status != MOE_STATUS_OK) {
        moe_sources_leave(sources);
        return status;
    }
    *out = sources;
    return MOE_STATUS_OK;
}

struct moe_sources *moe_sources_share(struct moe_sources *sources)
{
    sources->num_users++;
    return sources;
}

/* free() of memory that is const to everyone but its owner. */
static void free_const(const void *memory)
{
    void *writable;
    memcpy(&writable, &memory, sizeof(writable));
    free(writable);
}

void moe_sources_leave(struct moe_sources *sources)
{
    if (sources == NULL || --sources->num_users > 0) {
        return;
    }
    for (int32_t i = 0; i < sources->num; i++) {
        free_const(sources->list[i].path);
        free_const(sources->list[i].text);
    }
    free(sources->list);
    free(sources);
}
