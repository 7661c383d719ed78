/* SPDX-License-Identifier: Apache-2.0 */
/* Reading one configuration file into memory. */
#ifndef MOE_CONFIG_FILE_H
#define MOE_CONFIG_FILE_H

#include "config_report.h"
#include "memory.h"

/* A file's bytes; `capacity_bytes` is what was allocated. All zero: nothing to free. */
struct moe_config_file {
    char *text;
    size_t text_bytes;
    size_t capacity_bytes;
};

/*
 * Read `path`, a regular file (anything else, a FIFO for one, is refused without waiting). At most
 * `max_bytes` + 1 bytes are read, so that the parser can tell that there are too many. On failure
 * reports and returns IO or OUT_OF_MEMORY. Leaves errno alone.
 */
int32_t moe_config_file_read(const struct moe_memory *memory, const char *path, size_t max_bytes,
                             struct moe_config_file *out, struct moe_config_report *report);
void moe_config_file_free(const struct moe_memory *memory, struct moe_config_file *file);

#endif
