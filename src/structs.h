/* SPDX-License-Identifier: Apache-2.0 */
/* The rule of the ABI for structs that begin with struct_size: read inputs of any size, write no
 * more than asked. */
#ifndef MOE_STRUCTS_H
#define MOE_STRUCTS_H

#include "moe_plugin.h"

#include <stddef.h>

/*
 * Copy the caller's input struct into ours of `own_bytes`. Sizes below `introduction_bytes` are
 * INVALID_ARGUMENT; a missing tail becomes zero; unknown non-zero bytes beyond own_bytes are
 * UNKNOWN_FIELD. `name` is for the message. After the copy struct_size is own_bytes.
 */
int32_t moe_struct_read(void *own, size_t own_bytes, const void *caller, size_t introduction_bytes,
                        const char *name, struct moe_error *error);

/* Copy our output struct to the caller's, at most its struct_size bytes, which stays as it is. */
int32_t moe_struct_write(void *caller, const void *own, size_t own_bytes, const char *name,
                         struct moe_error *error);

/* Sizes at introduction (0.1), for every input struct: the whole struct, since none has grown
 * yet. */
#define MOE_STRUCT_READ(own, caller, type, error)                                               \
    moe_struct_read((own), sizeof(struct type), (caller), sizeof(struct type), "struct " #type, \
                    (error))
#define MOE_STRUCT_WRITE(caller, own, type, error) \
    moe_struct_write((caller), (own), sizeof(struct type), "struct " #type, (error))

#endif
