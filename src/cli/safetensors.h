/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads safetensors files: 8 bytes of header length (little-endian), a JSON header, then the
 * tensors' bytes. The file is mapped, so opening it reads the header only. Nothing in a file is
 * trusted: all offsets, shapes and sizes are checked when it is opened.
 */
#ifndef MOE_SAFETENSORS_H
#define MOE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "cli_error.h"

enum { MOE_SAFETENSORS_MAX_RANK = 8 };

/* Element types of the format: X(name in the file, bits per element, MOE_DTYPE_* or 0 where the
 * plugin has none) */
#define MOE_SAFETENSORS_DTYPES(X)     \
    X(F64, 64, 0)                     \
    X(F32, 32, MOE_DTYPE_FP32)        \
    X(F16, 16, MOE_DTYPE_FP16)        \
    X(BF16, 16, MOE_DTYPE_BF16)       \
    X(F8_E4M3, 8, MOE_DTYPE_FP8_E4M3) \
    X(F8_E5M2, 8, 0)                  \
    X(F8_E8M0, 8, MOE_DTYPE_UE8M0)    \
    X(F6_E2M3, 6, 0)                  \
    X(F6_E3M2, 6, 0)                  \
    X(F4, 4, 0)                       \
    X(C64, 64, 0)                     \
    X(I64, 64, 0)                     \
    X(I32, 32, 0)                     \
    X(I16, 16, 0)                     \
    X(I8, 8, MOE_DTYPE_INT8)          \
    X(U64, 64, 0)                     \
    X(U32, 32, 0)                     \
    X(U16, 16, 0)                     \
    X(U8, 8, 0)                       \
    X(BOOL, 8, 0)

/* Ids of these types; 0 is a type that this list does not have (kept by name, its size not
 * checked). */
enum {
    MOE_SAFETENSORS_UNKNOWN = 0,
#define MOE_SAFETENSORS_DTYPE_CONSTANT(name, bits, moe_dtype) MOE_SAFETENSORS_##name,
    MOE_SAFETENSORS_DTYPES(MOE_SAFETENSORS_DTYPE_CONSTANT)
#undef MOE_SAFETENSORS_DTYPE_CONSTANT
};

/* One tensor; everything in it lives as long as the file is open. Row-major. */
struct moe_safetensors_tensor {
    const char *name;
    const char *dtype_name; /* as written in the file */
    int dtype;              /* MOE_SAFETENSORS_* */
    int32_t moe_dtype;      /* MOE_DTYPE_*; 0: the plugin has no such type */
    int rank;               /* 0 for a single number */
    int64_t shape[MOE_SAFETENSORS_MAX_RANK];
    int64_t num_elements; /* product of the shape */
    const void *data;     /* `data_bytes` bytes inside the file */
    uint64_t data_bytes;
};

struct moe_safetensors;

/*
 * Opens a file and checks all of its header. Returns 0 and the file in *out, for the caller to
 * close, or -1 with a sentence that names the file and the tensor. Refused: a truncated file, a
 * header that is no JSON object or above 100 MB, unknown or missing members, offsets outside of the
 * file or reversed, tensors that overlap, shapes that overflow or do not fit their bytes, duplicate
 * names. Bytes that no tensor covers are tolerated.
 */
int moe_safetensors_open(const char *path, struct moe_safetensors **out,
                         struct moe_cli_error *error);

/* Unmaps the file; NULL is allowed. */
void moe_safetensors_close(struct moe_safetensors *file);

/* As given to moe_safetensors_open. */
const char *moe_safetensors_path(const struct moe_safetensors *file);

/* The tensors, in order of their names (bytewise). */
size_t moe_safetensors_num_tensors(const struct moe_safetensors *file);
const struct moe_safetensors_tensor *moe_safetensors_tensor(const struct moe_safetensors *file,
                                                            size_t tensor_idx);

/* The tensor called `name`, or NULL. */
const struct moe_safetensors_tensor *moe_safetensors_find(const struct moe_safetensors *file,
                                                          const char *name);

/* The text of `key` in __metadata__, or NULL. */
const char *moe_safetensors_find_metadata(const struct moe_safetensors *file, const char *key);

/* Writes a shape as "[2, 3]" into `text` (always terminated); returns `text`. */
const char *moe_safetensors_format_shape(const int64_t *shape, int rank, char *text,
                                         size_t text_bytes);
enum { MOE_SAFETENSORS_SHAPE_BYTES = 24 * MOE_SAFETENSORS_MAX_RANK };

#endif
