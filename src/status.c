/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static void set_error(struct moe_error *error, int32_t status, int32_t native, int32_t line,
                      int32_t column, const char *format, va_list values)
{
    if (error == NULL) {
        return;
    }
    struct moe_error full;
    memset(&full, 0, sizeof(full));
    full.struct_size = error->struct_size;
    full.status = status;
    full.native = native;
    full.line = line;
    full.column = column;
    vsnprintf(full.message, sizeof(full.message), format, values);

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

int32_t moe_error_set(struct moe_error *error, int32_t status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    set_error(error, status, 0, 0, 0, format, values);
    va_end(values);
    return status;
}

int32_t moe_error_set_at(struct moe_error *error, int32_t status, int32_t native, int32_t line,
                         int32_t column, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    set_error(error, status, native, line, column, format, values);
    va_end(values);
    return status;
}

const char *moe_status_name(int32_t status)
{
    switch (status) {
#define STATUS_NAME(name, value, text) \
    case value:                        \
        return #name;
        MOE_STATUS_LIST(STATUS_NAME)
#undef STATUS_NAME
    default:
        return "unknown status";
    }
}

const char *moe_status_text(int32_t status)
{
    switch (status) {
#define STATUS_TEXT(name, value, text) \
    case value:                        \
        return text;
        MOE_STATUS_LIST(STATUS_TEXT)
#undef STATUS_TEXT
    default:
        return "unknown status";
    }
}
