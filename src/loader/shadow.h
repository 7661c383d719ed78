/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private copies that are mapped in place of the published files: nobody can change them, and each
 * has a name and an identity that the dynamic linker has never seen, so it cannot answer with an
 * older image.
 */
#ifndef MOE_LOADER_SHADOW_H
#define MOE_LOADER_SHADOW_H

#include "trust.h"

#include <limits.h>

struct moe_shadow {
    int32_t descriptor;       /* read-only, close-on-exec; -1 after it was closed */
    int32_t folder;           /* where the file has its name; -1: a memfd, or the name is gone */
    char name[96];            /* in that folder */
    char path[PATH_MAX + 96]; /* for dlopen */
};

/*
 * Write `num_bytes` to a new copy. `directory`: as shadow_directory in moe_loader.h; `sha256`
 * begins its name. `wants_memfd` 1: a memfd at once. `trust` is asked about the folders above
 * `directory`.
 */
int32_t moe_shadow_create(struct moe_shadow *shadow, const char *directory, int32_t wants_memfd,
                          const struct moe_trust *trust, const char *sha256, const void *bytes,
                          size_t num_bytes, struct moe_error *error);

/*
 * Give a memfd another number, and so another path, when the dynamic linker has an older image
 * under this one (the host may load memfds of its own). 0 when that is not possible: a file, or no
 * descriptors left.
 */
int32_t moe_shadow_renumber(struct moe_shadow *shadow);

/* After dlopen: a file loses its name and its descriptor; a memfd keeps its descriptor, whose
 * number is in the path. */
void moe_shadow_mapped(struct moe_shadow *shadow);

/* The copy is not wanted any more, mapped or not. Legal twice. */
void moe_shadow_finish(struct moe_shadow *shadow);

#endif
