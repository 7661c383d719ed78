/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for comparisons: where the backend can use it, with guard bands on both sides. */
#ifndef MOE_LOADER_VERIFY_MEMORY_H
#define MOE_LOADER_VERIFY_MEMORY_H

#include "moe_loader.h"

#include <stdbool.h>

#define MOE_VERIFY_GUARD_BYTES 4096 /* a multiple of every alignment that is asked for below that */

struct moe_verify_block {
    unsigned char *data; /* in the backend's memory; a kernel may be given it */
    uint64_t bytes;
    void *whole; /* private */
    uint64_t whole_bytes;
    uint64_t alignment;
    uint64_t guard_bytes;
};

/* Allocate `bytes` (0 is legal), aligned to 256 or to `alignment` where that is more, guard bands
 * written. */
int32_t moe_verify_block_init(const struct moe_loader_verify_options *options, uint64_t bytes,
                              uint64_t alignment, struct moe_verify_block *block,
                              struct moe_error *error);
void moe_verify_block_finish(const struct moe_loader_verify_options *options,
                             struct moe_verify_block *block);

/* Every byte of the block becomes `poison`. */
int32_t moe_verify_block_fill(const struct moe_loader_verify_options *options,
                              const struct moe_verify_block *block, int poison,
                              struct moe_error *error);
int32_t moe_verify_block_write(const struct moe_loader_verify_options *options,
                               const struct moe_verify_block *block, const void *from,
                               struct moe_error *error);
/* Waits for queued work. */
int32_t moe_verify_block_read(const struct moe_loader_verify_options *options,
                              const struct moe_verify_block *block, void *to,
                              struct moe_error *error);

/* *is_intact: nothing was written beside the block. Waits for queued work. */
int32_t moe_verify_block_check(const struct moe_loader_verify_options *options,
                               const struct moe_verify_block *block, bool *is_intact,
                               struct moe_error *error);

#endif
