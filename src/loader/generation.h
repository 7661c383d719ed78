/* SPDX-License-Identifier: Apache-2.0 */
/* Building and releasing generations, and the list of them. */
#ifndef MOE_LOADER_GENERATION_H
#define MOE_LOADER_GENERATION_H

#include "loader_state.h"

/* ---- under the control mutex ---- */

/* Plan and view of one slot, with the weights bound; the generation's configuration is selected. A
 * plan that does not fit the slot's workspace is WORKSPACE. Nothing is left behind on failure. */
int32_t moe_generation_add_slot(struct moe_generation *generation,
                                const struct moe_loader_slot *slot, struct moe_error *error);
void moe_generation_remove_slot(struct moe_generation *generation,
                                const struct moe_loader_slot *slot);

/* Destroy what a generation holds that nobody uses any more; its record stays. */
void moe_generation_release(struct moe_loader *loader, struct moe_generation *generation);

/* Release what was rejected while the control mutex was not at hand. */
void moe_generation_release_rejected(struct moe_loader *loader);

/* ---- under the state mutex ---- */

/* NULL with a sentence if there is no such generation. */
struct moe_generation *moe_generation_find(struct moe_loader *loader, uint64_t id,
                                           struct moe_error *error);

/* Set the state, count, call the host's transition. */
void moe_generation_move(struct moe_loader *loader, struct moe_generation *generation, int32_t to,
                         int32_t status, const char *reason);

/* Move to REJECTED; the next holder of the control mutex releases it. */
void moe_generation_reject(struct moe_loader *loader, struct moe_generation *generation,
                           int32_t status, const char *reason);

const char *moe_generation_state_name(int32_t state);

/* Calls that entered it, so far. */
uint64_t moe_generation_num_calls(const struct moe_loader *loader,
                                  const struct moe_generation *generation);

/* Destroy the record of a released generation. NULL is legal. */
void moe_generation_destroy(struct moe_generation *generation);

#endif
