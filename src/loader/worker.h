/* SPDX-License-Identifier: Apache-2.0 */
/* Who is inside: the readers' side of swapping. */
#ifndef MOE_LOADER_WORKER_H
#define MOE_LOADER_WORKER_H

#include "loader_state.h"

/* Under the state mutex, after the store to loader->active: note each worker that may be inside the
 * generation left behind. `inside` is [max_workers]. */
void moe_worker_note_inside(const struct moe_loader *loader, uint64_t *inside);

/* Under the state mutex: has each worker noted left since? Those that have are crossed out. */
bool moe_worker_have_left(const struct moe_loader *loader, uint64_t *inside);

/* Is a worker inside this slot? No worker enters it any more. */
bool moe_worker_is_inside_slot(const struct moe_loader *loader, const struct moe_loader_slot *slot);

#endif
