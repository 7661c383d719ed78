/* SPDX-License-Identifier: Apache-2.0 */
/* Files that moectl reads: mapped into memory, so that only the pages that are looked at are read.
 */
#ifndef MOE_CLI_FILE_H
#define MOE_CLI_FILE_H

#include <stddef.h>

#include "cli_error.h"
#include "tree.h"

struct moe_cli_file {
    const unsigned char *bytes; /* read-only pages of the file; NULL when the file is empty */
    size_t num_bytes;
};

/* Maps a regular file. Returns 0, or -1 with a sentence that names the file. The mapping must not
 * outlive a truncation of the file by someone else (the system would send SIGBUS). */
int moe_cli_file_map(const char *path, struct moe_cli_file *file, struct moe_cli_error *error);

/* Ends the mapping; a zeroed struct is allowed. */
void moe_cli_file_unmap(struct moe_cli_file *file);

/* 1 if `path` names a regular file, else 0. */
int moe_cli_file_exists(const char *path);

/* "folder/name" on the heap, for the caller to free; NULL when there is no memory. */
char *moe_cli_file_join(const char *folder, const char *name);

/* Parses a JSON object. `label` opens each message, e.g. "x.safetensors: header". Returns the tree,
 * whose root is a mapping and which the caller destroys, or NULL with the first problem and its
 * place. */
struct moe_tree *moe_cli_file_parse_object(const char *label, const char *text, size_t text_bytes,
                                           const struct moe_tree_limits *limits,
                                           struct moe_cli_error *error);

/* The same for a whole file. */
struct moe_tree *moe_cli_file_read_object(const char *path, const struct moe_tree_limits *limits,
                                          struct moe_cli_error *error);

#endif
