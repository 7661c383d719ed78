/* SPDX-License-Identifier: Apache-2.0 */
/* Which files are trusted: whose they are, and who can change them or the folders above them. */
#ifndef MOE_LOADER_TRUST_H
#define MOE_LOADER_TRUST_H

#include "moe_loader.h"

struct moe_trust {
    int32_t skip;             /* 1: anything goes; only the kind of file is checked */
    int32_t num_trusted_uids; /* beside root and the process's effective user */
    const uint32_t *trusted_uids;
};

/*
 * Resolve `path` (symbolic links included) and walk the result from the root folder without
 * following any link, so that what was checked is what is opened. Every folder and the file must be
 * owned by a trusted user and not writable by group or others (a sticky folder may be). On success
 * `*descriptor` is the regular file, open for reading and close-on-exec. Never waits, whatever kind
 * of file it is. INVALID_ARGUMENT for no path, IO when something is missing or cannot be read,
 * BAD_FILE for other kinds of files, UNTRUSTED.
 */
int32_t moe_trust_open_file(const char *path, const struct moe_trust *trust, int *descriptor,
                            struct moe_error *error);

/* The same for a folder: `*descriptor` is it, open for reading; `resolved` (PATH_MAX bytes) its
 * name without links. */
int32_t moe_trust_open_folder(const char *path, const struct moe_trust *trust, int *descriptor,
                              char *resolved, struct moe_error *error);

#endif
