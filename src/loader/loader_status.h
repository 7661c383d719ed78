/* SPDX-License-Identifier: Apache-2.0 */
/* What every file of the loader needs: reporting into struct moe_error, and structs of any size. */
#ifndef MOE_LOADER_STATUS_H
#define MOE_LOADER_STATUS_H

#include "moe_loader.h"

#include <stddef.h>

/*
 * Fill `error` (NULL: nothing to fill) with `status` and a printf-formatted sentence, cut at its
 * struct_size. Returns `status`.
 */
int32_t moe_loader_status_set(struct moe_error *error, int32_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with an errno value: kept as `native`, and its text is appended after ": ". */
int32_t moe_loader_status_set_errno(struct moe_error *error, int32_t status, int errno_value,
                                    const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Text that came from elsewhere, made fit to stand in a sentence. */
struct moe_loader_shown {
    char text[288];
};

/* A path: of a long one the end is kept, 175 bytes. Control characters become '?', UTF-8 characters
 * stay whole. NULL becomes "(null)". */
struct moe_loader_shown moe_loader_status_show(const char *path);

/* The same for words: of many the beginning is kept. */
struct moe_loader_shown moe_loader_status_show_text(const char *text);

/* As arguments of %s: they live to the end of the statement. */
#define MOE_LOADER_SHOW_PATH(path)  (moe_loader_status_show(path).text)
#define MOE_LOADER_SHOW_TEXT(words) (moe_loader_status_show_text(words).text)

/*
 * Copy the caller's input struct into ours of `own_bytes`, by the rule of moe_plugin.h: sizes below
 * `introduction_bytes` are INVALID_ARGUMENT, a missing tail becomes zero, unknown bytes that are
 * set are UNKNOWN_FIELD. After the copy struct_size is own_bytes.
 */
int32_t moe_loader_status_read_struct(void *own, size_t own_bytes, const void *caller,
                                      size_t introduction_bytes, const char *name,
                                      struct moe_error *error);

/* Copy our output struct to the caller's, at most its struct_size bytes, which stays as it is. */
int32_t moe_loader_status_write_struct(void *caller, const void *own, size_t own_bytes,
                                       const char *name, struct moe_error *error);

/* No struct has grown since 0.1, so each was introduced whole. */
#define MOE_LOADER_READ(own, caller, type, error)                                            \
    moe_loader_status_read_struct((own), sizeof(struct type), (caller), sizeof(struct type), \
                                  "struct " #type, (error))
#define MOE_LOADER_WRITE(caller, own, type, error) \
    moe_loader_status_write_struct((caller), (own), sizeof(struct type), "struct " #type, (error))

#endif
