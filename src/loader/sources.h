/* SPDX-License-Identifier: Apache-2.0 */
/* Configurations as text. All functions under the loader's control mutex. */
#ifndef MOE_LOADER_SOURCES_H
#define MOE_LOADER_SOURCES_H

#include "loader_state.h"

/* Copy sources, with one user; a file is read now. `num` 0 gives an empty configuration.
 * INVALID_ARGUMENT, IO, OUT_OF_MEMORY. */
int32_t moe_sources_create(const struct moe_config_source *list, int32_t num,
                           struct moe_sources **out, struct moe_error *error);

/* One user more; returns its argument. */
struct moe_sources *moe_sources_share(struct moe_sources *sources);

/* One user less; the last one frees. NULL is legal. */
void moe_sources_leave(struct moe_sources *sources);

#endif
