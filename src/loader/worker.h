/* SPDX-License-Identifier: Apache-2.0 */
/* Who is inside: the readers' side of swapping. */
#ifndef MOE_LOADER_WORKER_H
#define MOE_LOADER_WORKER_H

#include "loader_state.h"

/* Note each worker that is inside. After a store to loader->active: that may be inside the
 * generation left behind. `inside` is [max_workers] and belongs to the caller's mutex. */
void moe_worker_note_inside(const struct moe_loader *loader, uint64_t *inside);

/* Has each worker noted left since? Those that have are crossed out. */
bool moe_worker_have_left(const struct moe_loader *loader, uint64_t *inside);

#endif
