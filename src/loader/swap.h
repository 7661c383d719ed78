/* SPDX-License-Identifier: Apache-2.0 */
/* Which generation serves: promote, rollback, report, poll. */
#ifndef MOE_LOADER_SWAP_H
#define MOE_LOADER_SWAP_H

#include "loader_state.h"

/* Under the state mutex: the generation that rollback would take, NULL if there is none. */
struct moe_generation *moe_swap_find_former(const struct moe_loader *loader);

#endif
