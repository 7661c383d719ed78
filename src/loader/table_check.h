/* SPDX-License-Identifier: Apache-2.0 */
/* Is what moe_plugin_init returned a function table of this ABI, in the image it came from? */
#ifndef MOE_LOADER_TABLE_CHECK_H
#define MOE_LOADER_TABLE_CHECK_H

#include "mapped.h"

/*
 * Check `table` without trusting a byte of it: it lies in readable segments of the image;
 * struct_size is between that of ABI 0.1 and 64 KiB; version and layout hash are ours; strings are
 * terminated within 256 bytes inside the image; mandatory members are set, and every member that is
 * set points into executable segments. OK, or BAD_TABLE with the first thing that is wrong; `name`
 * begins the sentence.
 */
int32_t moe_table_check(const void *table, const struct moe_mapped *mapped, const char *name,
                        struct moe_error *error);

#endif
