/* SPDX-License-Identifier: Apache-2.0 */
/* Files that were rolled back and are not staged again until the host allows it. */
#ifndef MOE_LOADER_REFUSED_H
#define MOE_LOADER_REFUSED_H

#include "loader_state.h"

/* Under the state mutex; and the same for those who do not hold it. */
bool moe_refused_holds_locked(struct moe_loader *loader, const char *sha256);
bool moe_refused_holds(struct moe_loader *loader, const char *sha256);

/* Under the state mutex. Takes *refusal, which was allocated when nothing hung on it, unless the
 * file is in the list already. */
void moe_refused_add(struct moe_loader *loader, struct moe_refused **refusal, const char *sha256);

void moe_refused_finish(struct moe_loader *loader);

#endif
