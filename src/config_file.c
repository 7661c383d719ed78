/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "config_file.h"

#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int32_t report_errno(struct moe_config_report *report, const char *verb, int number)
{
    char reason[128];
    if (strerror_r(number, reason, sizeof(reason)) != 0) {
        memcpy(reason, "unknown error", sizeof("unknown error"));
    }
    report->native = number;
    moe_config_report_add(report, MOE_LEVEL_ERROR, moe_config_report_code(MOE_CONFIG_CODE_IO), 0, 0,
                          "cannot %s the file: %s (errno %d)", verb, reason, number);
    return MOE_STATUS_IO;
}

static int32_t report_no_memory(struct moe_config_report *report)
{
    moe_config_report_add(report, MOE_LEVEL_ERROR, moe_tree_code_name(MOE_TREE_OUT_OF_MEMORY), 0, 0,
                          "no memory to read the file");
    return MOE_STATUS_OUT_OF_MEMORY;
}

static int32_t read_all(int descriptor, const struct moe_memory *memory, size_t max_bytes,
                        struct moe_config_file *out, struct moe_config_report *report)
{
    struct stat about;
    if (fstat(descriptor, &about) != 0) {
        return report_errno(report, "examine", errno);
    }
    if (!S_ISREG(about.st_mode)) {
        moe_config_report_add(
            report, MOE_LEVEL_ERROR, moe_config_report_code(MOE_CONFIG_CODE_IO), 0, 0,
            "not a regular file; a configuration is read from regular files only");
        return MOE_STATUS_IO;
    }
    out->capacity_bytes = max_bytes + 1;
    if (about.st_size >= 0 && (uint64_t)about.st_size < max_bytes) {
        out->capacity_bytes =
            (size_t)about.st_size + 1; /* one more: a read that fills it shows growth */
    }
    out->text = moe_memory_alloc(memory, out->capacity_bytes);
    if (out->text == NULL) {
        return report_no_memory(report);
    }
    while (out->text_bytes < out->capacity_bytes) {
        ssize_t num_bytes =
            read(descriptor, out->text + out->text_bytes, out->capacity_bytes - out->text_bytes);
        if (num_bytes < 0 && errno == EINTR) {
            continue;
        }
        if (num_bytes < 0) {
            return report_errno(report, "read", errno);
        }
        if (num_bytes == 0) {
            return MOE_STATUS_OK;
        }
        out->text_bytes += (size_t)num_bytes;
    }
    if (out->text_bytes <= max_bytes) {
        moe_config_report_add(
            report, MOE_LEVEL_ERROR, moe_config_report_code(MOE_CONFIG_CODE_IO), 0, 0,
            "the file grew while it was read; write it whole and rename it into place");
        return MOE_STATUS_IO;
    }
    return MOE_STATUS_OK;
}

int32_t moe_config_file_read(const struct moe_memory *memory, const char *path, size_t max_bytes,
                             struct moe_config_file *out, struct moe_config_report *report)
{
    int caller_errno = errno;
    memset(out, 0, sizeof(*out));
    int32_t status;
    /* O_NONBLOCK: opening a FIFO does not wait for a writer. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0) {
        status = report_errno(report, "open", errno);
    } else {
        status = read_all(descriptor, memory, max_bytes, out, report);
        close(descriptor);
    }
    if (status != MOE_STATUS_OK) {
        moe_config_file_free(memory, out);
    }
    errno = caller_errno;
    return status;
}

void moe_config_file_free(const struct moe_memory *memory, struct moe_config_file *file)
{
    moe_memory_free(memory, file->text, file->capacity_bytes);
    memset(file, 0, sizeof(*file));
}
