/* SPDX-License-Identifier: Apache-2.0 */
/* What the plugin can tell without a context: backends, devices, tiles. Entries of the function
 * table. */
#ifndef MOE_DEVICE_H
#define MOE_DEVICE_H

#include "moe_plugin.h"

int32_t moe_device_probe(int32_t backend, int32_t ordinal, struct moe_device *out,
                         struct moe_error *error);
int32_t moe_device_backend_info(int32_t index, struct moe_backend_info *out,
                                struct moe_error *error);
int32_t moe_device_tile_info(int32_t index, struct moe_tile_info *out, struct moe_error *error);

/* Why a backend of MOE_BACKEND_LIST is not in this build, as a sentence; "" if it is. */
const char *moe_device_absence(int32_t backend);

/* For a backend that moe_backend_find does not have: UNAVAILABLE with the reason, or
 * INVALID_ARGUMENT for an id outside MOE_BACKEND_LIST. */
int32_t moe_device_refuse_backend(int32_t backend, struct moe_error *error);

/* Read a host's description of a device; its backend is one of the list and its strings are
 * terminated. */
int32_t moe_device_read(struct moe_device *own, const struct moe_device *caller,
                        struct moe_error *error);

#endif
