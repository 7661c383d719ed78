/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "verify_memory.h"

#include "loader_status.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 4096, MIN_ALIGNMENT = 256, GUARD_BYTE = 0xA5 };

static int32_t copy_in(const struct moe_loader_verify_options *options, void *to, const void *from,
                       uint64_t bytes, struct moe_error *error)
{
    if (options->copy_in == NULL) {
        memcpy(to, from, (size_t)bytes);
    } else if (options->copy_in(options->self, to, from, bytes) != 0) {
        return moe_loader_status_set(error, MOE_STATUS_DEVICE_ERROR,
                                     "verify: the host's copy_in failed");
    }
    return MOE_STATUS_OK;
}

static int32_t copy_out(const struct moe_loader_verify_options *options, void *to, const void *from,
                        uint64_t bytes, struct moe_error *error)
{
    if (options->copy_out == NULL) {
        memcpy(to, from, (size_t)bytes);
    } else if (options->copy_out(options->self, to, from, bytes) != 0) {
        return moe_loader_status_set(error, MOE_STATUS_DEVICE_ERROR,
                                     "verify: the host's copy_out failed");
    }
    return MOE_STATUS_OK;
}

static int32_t fill(const struct moe_loader_verify_options *options, unsigned char *to, int value,
                    uint64_t bytes, struct moe_error *error)
{
    unsigned char chunk[CHUNK_BYTES];
    memset(chunk, value, sizeof(chunk));
    int32_t status = MOE_STATUS_OK;
    for (uint64_t at = 0; at < bytes && status == MOE_STATUS_OK; at += sizeof(chunk)) {
        const uint64_t left = bytes - at;
        status =
            copy_in(options, to + at, chunk, left < sizeof(chunk) ? left : sizeof(chunk), error);
    }
    return status;
}

int32_t moe_verify_block_init(const struct moe_loader_verify_options *options, uint64_t bytes,
                              uint64_t alignment, struct moe_verify_block *block,
                              struct moe_error *error)
{
    memset(block, 0, sizeof(*block));
    block->alignment = alignment > MIN_ALIGNMENT ? alignment : MIN_ALIGNMENT;
    block->guard_bytes =
        block->alignment > MOE_VERIFY_GUARD_BYTES ? block->alignment : MOE_VERIFY_GUARD_BYTES;
    block->bytes = bytes;
    if (bytes > SIZE_MAX / 2 || block->alignment > SIZE_MAX / 8) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "verify: no memory for %llu bytes", (unsigned long long)bytes);
    }
    block->whole_bytes = bytes + 2 * block->guard_bytes;
    if (options->memory_alloc != NULL) {
        block->whole = options->memory_alloc(options->self, block->whole_bytes, block->alignment);
    } else if (posix_memalign(&block->whole, (size_t)block->alignment,
                              (size_t)block->whole_bytes) != 0) {
        block->whole = NULL;
    }
    if (block->whole == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "verify: no memory for %llu bytes",
                                     (unsigned long long)block->whole_bytes);
    }
    block->data = (unsigned char *)block->whole + block->guard_bytes;
    const int32_t status = fill(options, block->whole, GUARD_BYTE, block->guard_bytes, error);
    return status != MOE_STATUS_OK
               ? status
               : fill(options, block->data + bytes, GUARD_BYTE, block->guard_bytes, error);
}

void moe_verify_block_finish(const struct moe_loader_verify_options *options,
                             struct moe_verify_block *block)
{
    if (block->whole != NULL && options->memory_free != NULL) {
        options->memory_free(options->self, block->whole, block->whole_bytes, block->alignment);
    } else {
        free(block->whole);
    }
    memset(block, 0, sizeof(*block));
}

int32_t moe_verify_block_fill(const struct moe_loader_verify_options *options,
                              const struct moe_verify_block *block, int poison,
                              struct moe_error *error)
{
    return fill(options, block->data, poison, block->bytes, error);
}

int32_t moe_verify_block_write(const struct moe_loader_verify_options *options,
                               const struct moe_verify_block *block, const void *from,
                               struct moe_error *error)
{
    return copy_in(options, block->data, from, block->bytes, error);
}

int32_t moe_verify_block_read(const struct moe_loader_verify_options *options,
                              const struct moe_verify_block *block, void *to,
                              struct moe_error *error)
{
    return copy_out(options, to, block->data, block->bytes, error);
}

static int32_t check_band(const struct moe_loader_verify_options *options,
                          const unsigned char *band, uint64_t bytes, bool *is_intact,
                          struct moe_error *error)
{
    unsigned char chunk[CHUNK_BYTES];
    for (uint64_t at = 0; at < bytes; at += sizeof(chunk)) {
        const uint64_t num = bytes - at < sizeof(chunk) ? bytes - at : sizeof(chunk);
        const int32_t status = copy_out(options, chunk, band + at, num, error);
        if (status != MOE_STATUS_OK) {
            return status;
        }
        for (uint64_t i = 0; i < num; i++) {
            *is_intact = *is_intact && chunk[i] == GUARD_BYTE;
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_verify_block_check(const struct moe_loader_verify_options *options,
                               const struct moe_verify_block *block, bool *is_intact,
                               struct moe_error *error)
{
    *is_intact = true;
    const int32_t status = check_band(options, block->whole, block->guard_bytes, is_intact, error);
    return status != MOE_STATUS_OK ? status
                                   : check_band(options, block->data + block->bytes,
                                                block->guard_bytes, is_intact, error);
}
