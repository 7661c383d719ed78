/* SPDX-License-Identifier: Apache-2.0 */
/* Images and contexts, with the weights of open slots. All functions under the control mutex. */
#ifndef MOE_LOADER_RUNTIME_H
#define MOE_LOADER_RUNTIME_H

#include "loader_state.h"

/*
 * Check the file, try it in the canary, map it (or take the image of a file with the same bytes
 * that is mapped already), and make a context with `sources`. One user. `info` gets what is known
 * of the file as soon as it is: sha256, kernel-set id, fingerprint. No weights yet. *is_candidate
 * is false when a limit of the loader refused before the file was judged.
 */
int32_t moe_runtime_create(struct moe_loader *loader, const char *path,
                           const struct moe_loader_open_options *options,
                           struct moe_sources *sources, struct moe_loader_generation_info *info,
                           bool *is_candidate, struct moe_runtime **out, struct moe_error *error);

struct moe_runtime *moe_runtime_share(struct moe_runtime *runtime);

/* One user less; the last one destroys weights and context and parks the image. NULL is legal. */
void moe_runtime_leave(struct moe_loader *loader, struct moe_runtime *runtime);

/* Give the context `sources`, if it has others. On failure it keeps those. */
int32_t moe_runtime_select(struct moe_runtime *runtime, struct moe_sources *sources,
                           struct moe_error *error);

/* The fingerprint of the configuration that the context has. */
int32_t moe_runtime_fingerprint(const struct moe_runtime *runtime, uint64_t *fingerprint,
                                struct moe_error *error);

/* Bind the weights of a slot, unless they are; prepare them where the plugin wants that. */
int32_t moe_runtime_bind(struct moe_runtime *runtime, const struct moe_loader_slot *slot,
                         struct moe_error *error);
void moe_runtime_unbind(struct moe_runtime *runtime, const struct moe_loader_slot *slot);

/* Close what is still mapped, at the end of the loader. */
void moe_runtime_finish(struct moe_loader *loader);

#endif
