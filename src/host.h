/* SPDX-License-Identifier: Apache-2.0 */
/* The host's services, checked. */
#ifndef MOE_HOST_H
#define MOE_HOST_H

#include "moe_plugin.h"

/*
 * Copy the host's struct, if it was built for this ABI: the entry and context_create ask the same.
 * `who` begins the sentence. VERSION, INVALID_ARGUMENT, UNKNOWN_FIELD. Keeps nothing.
 */
int32_t moe_host_read(struct moe_host *own, const struct moe_host *host, const char *who,
                      struct moe_error *error);

#endif
