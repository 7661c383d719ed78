/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOE_LOADER_SLOT_H
#define MOE_LOADER_SLOT_H

#include "loader_state.h"

/* Free a slot that no generation holds anything for. NULL is legal. */
void moe_slot_destroy(struct moe_loader_slot *slot);

#endif
