/* SPDX-License-Identifier: Apache-2.0 */
/* Reporting errors into the caller's struct moe_error. */
#ifndef MOE_STATUS_H
#define MOE_STATUS_H

#include "moe_plugin.h"

/*
 * Fill `error` (NULL: nothing to fill) with `status` and a printf-formatted sentence, cut at its
 * struct_size. Returns `status`, so that a check is one line: return moe_error_set(error,
 * MOE_STATUS_..., "...").
 */
int32_t moe_error_set(struct moe_error *error, int32_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with a position in a configuration and a native code (CUresult, errno). 0: none. */
int32_t moe_error_set_at(struct moe_error *error, int32_t status, int32_t native, int32_t line,
                         int32_t column, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* MOE_STATUS_* as text, and its sentence; "unknown status" for an id that is not in the list. */
const char *moe_status_name(int32_t status);
const char *moe_status_text(int32_t status);

#define MOE_TRY(call)                           \
    do {                                        \
        int32_t moe_try_status_ = (call);       \
        if (moe_try_status_ != MOE_STATUS_OK) { \
            return moe_try_status_;             \
        }                                       \
    } while (0)

/* For functions with a `fail:` label and a variable `status`. */
#define MOE_TRY_GOTO(call)             \
    do {                               \
        status = (call);               \
        if (status != MOE_STATUS_OK) { \
            goto fail;                 \
        }                              \
    } while (0)

#endif
