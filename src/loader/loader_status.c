/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "loader_status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* No struct of this ABI will ever be this large; a bigger struct_size is an uninitialized one. */
#define STRUCT_BYTES_LIMIT 65536u

enum { SHOWN_PATH_BYTES = 175 };

static void set_error(struct moe_error *error, int32_t status, int32_t native, const char *format,
                      va_list values)
{
    if (error == NULL) {
        return;
    }
    struct moe_error full;
    memset(&full, 0, sizeof(full));
    full.struct_size = error->struct_size;
    full.status = status;
    full.native = native;
    vsnprintf(full.message, sizeof(full.message), format, values);
    if (native != 0) {
        size_t used = strlen(full.message);
        char reason[96] = "unknown error";
        /* The POSIX form: it writes into the buffer. The C library's other form needs _GNU_SOURCE.
         */
        (void)strerror_r(native, reason, sizeof(reason));
        snprintf(full.message + used, sizeof(full.message) - used, ": %s", reason);
    }

    /* An output struct: never write past the size that the caller states. */
    size_t num_bytes = error->struct_size < sizeof(full) ? error->struct_size : sizeof(full);
    if (num_bytes < offsetof(struct moe_error, status) + sizeof(full.status)) {
        return;
    }
    memcpy(error, &full, num_bytes);
    if (num_bytes > offsetof(struct moe_error, message)) {
        error->message[num_bytes - offsetof(struct moe_error, message) - 1] = '\0';
    }
}

int32_t moe_loader_status_set(struct moe_error *error, int32_t status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    set_error(error, status, 0, format, values);
    va_end(values);
    return status;
}

int32_t moe_loader_status_set_errno(struct moe_error *error, int32_t status, int errno_value,
                                    const char *format, ...)
{
    va_list values;
    va_start(values, format);
    set_error(error, status, errno_value, format, values);
    va_end(values);
    return status;
}

/* Is this a byte inside a UTF-8 character, not its first? */
static int is_inside_character(char byte)
{
    return ((unsigned char)byte & 0xc0u) == 0x80u;
}

static void append_clean(char *to, const char *from, size_t num_bytes)
{
    to += strlen(to);
    for (size_t i = 0; i < num_bytes; i++) {
        unsigned char byte = (unsigned char)from[i];
        to[i] = byte < 0x20 || byte == 0x7f ? '?' : from[i];
    }
}

struct moe_loader_shown moe_loader_status_show(const char *path)
{
    struct moe_loader_shown shown;
    memset(&shown, 0, sizeof(shown));
    path = path != NULL ? path : "(null)";
    size_t num_bytes = strlen(path);
    if (num_bytes > SHOWN_PATH_BYTES) {
        path += num_bytes - (SHOWN_PATH_BYTES - 3);
        while (is_inside_character(*path)) {
            path++;
        }
        memcpy(shown.text, "...", 3);
    }
    append_clean(shown.text, path, strlen(path));
    return shown;
}

struct moe_loader_shown moe_loader_status_show_text(const char *text)
{
    struct moe_loader_shown shown;
    memset(&shown, 0, sizeof(shown));
    text = text != NULL ? text : "(null)";
    size_t num_bytes = strnlen(text, sizeof(shown.text));
    if (num_bytes == sizeof(shown.text)) {
        num_bytes = sizeof(shown.text) - 1;
        while (num_bytes > 0 && is_inside_character(text[num_bytes])) {
            num_bytes--;
        }
    }
    append_clean(shown.text, text, num_bytes);
    return shown;
}

int32_t moe_loader_status_read_struct(void *own, size_t own_bytes, const void *caller,
                                      size_t introduction_bytes, const char *name,
                                      struct moe_error *error)
{
    if (caller == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s is NULL", name);
    }
    uint32_t caller_bytes;
    memcpy(&caller_bytes, caller, sizeof(caller_bytes));
    if (caller_bytes < introduction_bytes || caller_bytes > STRUCT_BYTES_LIMIT) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s has struct_size %u; it must be %zu to %u (set it to sizeof)", name, caller_bytes,
            introduction_bytes, STRUCT_BYTES_LIMIT);
    }
    const unsigned char *bytes = caller;
    for (size_t i = own_bytes; i < caller_bytes; i++) {
        if (bytes[i] != 0) {
            return moe_loader_status_set(error, MOE_STATUS_UNKNOWN_FIELD,
                                         "%s: byte %zu is set, but this loader (%d.%d) knows %zu "
                                         "bytes; leave newer members zero",
                                         name, i, MOE_LOADER_VERSION_MAJOR,
                                         MOE_LOADER_VERSION_MINOR, own_bytes);
        }
    }
    memset(own, 0, own_bytes);
    memcpy(own, caller, caller_bytes < own_bytes ? caller_bytes : own_bytes);
    uint32_t own_size = (uint32_t)own_bytes;
    memcpy(own, &own_size, sizeof(own_size));
    return MOE_STATUS_OK;
}

int32_t moe_loader_status_write_struct(void *caller, const void *own, size_t own_bytes,
                                       const char *name, struct moe_error *error)
{
    if (caller == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s is NULL", name);
    }
    uint32_t caller_bytes;
    memcpy(&caller_bytes, caller, sizeof(caller_bytes));
    if (caller_bytes < sizeof(caller_bytes) || caller_bytes > STRUCT_BYTES_LIMIT) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                     "%s has struct_size %u; set it to sizeof", name, caller_bytes);
    }
    size_t num_bytes = caller_bytes < own_bytes ? caller_bytes : own_bytes;
    memcpy((unsigned char *)caller + sizeof(caller_bytes),
           (const unsigned char *)own + sizeof(caller_bytes), num_bytes - sizeof(caller_bytes));
    return MOE_STATUS_OK;
}

#define STATUS_NAME(name, value, text) \
    case value:                        \
        return #name;
#define STATUS_TEXT(name, value, text) \
    case value:                        \
        return text;

const char *moe_loader_status_name(int32_t status)
{
    switch (status) {
        MOE_STATUS_LIST(STATUS_NAME)
        MOE_LOADER_STATUS_LIST(STATUS_NAME)
    default:
        return "unknown status";
    }
}

const char *moe_loader_status_text(int32_t status)
{
    switch (status) {
        MOE_STATUS_LIST(STATUS_TEXT)
        MOE_LOADER_STATUS_LIST(STATUS_TEXT)
    default:
        return "unknown status";
    }
}
