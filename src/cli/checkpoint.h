/* SPDX-License-Identifier: Apache-2.0 */
/* A Hugging Face checkpoint folder: config.json, and tensors by name from one safetensors file or
 * from shards with an index. Files are opened when a tensor in them is first asked for, so a layer
 * costs only its shards. */
#ifndef MOE_CHECKPOINT_H
#define MOE_CHECKPOINT_H

#include "cli_error.h"
#include "safetensors.h"
#include "tree.h"

struct moe_checkpoint;

/* Opens a folder and reads its config.json; tensors are not looked for yet. Returns 0 and the
 * checkpoint in *out, for the caller to close, or -1 with a sentence. */
int moe_checkpoint_open(const char *folder, struct moe_checkpoint **out,
                        struct moe_cli_error *error);

/* Closes it and all of its files; NULL is allowed. */
void moe_checkpoint_close(struct moe_checkpoint *checkpoint);

const char *moe_checkpoint_folder(const struct moe_checkpoint *checkpoint);
const char *moe_checkpoint_config_path(const struct moe_checkpoint *checkpoint);

/* The root of config.json: a mapping. */
const struct moe_tree_node *moe_checkpoint_config(const struct moe_checkpoint *checkpoint);

/*
 * Finds a tensor. Returns 1 with *tensor and the path of its file (both live as long as the
 * checkpoint), 0 when there is no such tensor, or -1 with a sentence when the weights cannot be
 * read. Weights are, in this order: model.safetensors; the shards of model.safetensors.index.json;
 * the only *.safetensors file of the folder. Not thread-safe.
 */
int moe_checkpoint_find(struct moe_checkpoint *checkpoint, const char *name,
                        const struct moe_safetensors_tensor **tensor, const char **path,
                        struct moe_cli_error *error);

#endif
