/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli_file.h"

static const char weights_suffix[] = ".safetensors";
static const char weights_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";
static const char config_name[] = "config.json";

struct moe_checkpoint {
    char *folder;
    char *config_path;
    struct moe_tree *config;
    int is_located; /* the members below say where the weights are */
    char *index_path;
    struct moe_tree *index;                 /* sharded: model.safetensors.index.json */
    const struct moe_tree_node *weight_map; /* sharded: tensor name to file name */
    struct moe_safetensors **files;         /* open files; not sharded: the one */
    size_t num_files;
};

static int add_file(struct moe_checkpoint *checkpoint, const char *name,
                    struct moe_safetensors **out, struct moe_cli_error *error)
{
    struct moe_safetensors **files =
        realloc(checkpoint->files, (checkpoint->num_files + 1) * sizeof *files);
    if (files == NULL) {
        return moe_cli_fail_memory(error, "opening a checkpoint");
    }
    checkpoint->files = files;
    char *path = moe_cli_file_join(checkpoint->folder, name);
    if (path == NULL) {
        return moe_cli_fail_memory(error, "opening a checkpoint");
    }
    const int status = moe_safetensors_open(path, out, error);
    free(path);
    if (status == 0) {
        files[checkpoint->num_files++] = *out;
    }
    return status;
}

static int has_suffix(const char *name, const char *suffix)
{
    const size_t name_bytes = strlen(name);
    const size_t suffix_bytes = strlen(suffix);
    return name_bytes > suffix_bytes && strcmp(name + name_bytes - suffix_bytes, suffix) == 0;
}

/* Opens the only *.safetensors file of the folder. */
static int open_only_file(struct moe_checkpoint *checkpoint, struct moe_cli_error *error)
{
    DIR *folder = opendir(checkpoint->folder);
    if (folder == NULL) {
        return MOE_CLI_FAIL(error, "%s: cannot list: %s", checkpoint->folder, strerror(errno));
    }
    size_t num_found = 0;
    char *name = NULL;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (!has_suffix(entry->d_name, weights_suffix)) {
            continue;
        }
        num_found += 1;
        if (name == NULL) {
            name = strdup(entry->d_name);
        }
    }
    closedir(folder);
    struct moe_safetensors *file;
    int status;
    if (num_found != 1) {
        status = MOE_CLI_FAIL(
            error,
            "%s: has %zu *%s files and neither %s nor %s, so where the weights are is not known",
            checkpoint->folder, num_found, weights_suffix, weights_name, index_name);
    } else if (name == NULL) {
        status = moe_cli_fail_memory(error, "opening a checkpoint");
    } else {
        status = add_file(checkpoint, name, &file, error);
    }
    free(name);
    return status;
}

static int open_index(struct moe_checkpoint *checkpoint, struct moe_cli_error *error)
{
    const struct moe_tree_limits limits = MOE_TREE_LIMITS_JSON_INDEX;
    checkpoint->index = moe_cli_file_read_object(checkpoint->index_path, &limits, error);
    if (checkpoint->index == NULL) {
        return -1;
    }
    const struct moe_tree_node *map = moe_tree_find(moe_tree_root(checkpoint->index), "weight_map");
    if (map == NULL || map->kind != MOE_NODE_MAPPING) {
        moe_tree_destroy(checkpoint->index);
        checkpoint->index = NULL;
        return MOE_CLI_FAIL(error, "%s: 'weight_map' is missing or no object",
                            checkpoint->index_path);
    }
    checkpoint->weight_map = map;
    return 0;
}

static int locate_weights(struct moe_checkpoint *checkpoint, struct moe_cli_error *error)
{
    if (checkpoint->is_located) {
        return 0;
    }
    char *single_path = moe_cli_file_join(checkpoint->folder, weights_name);
    if (single_path == NULL) {
        return moe_cli_fail_memory(error, "opening a checkpoint");
    }
    const int has_single = moe_cli_file_exists(single_path);
    free(single_path);
    struct moe_safetensors *file;
    int status;
    if (has_single) {
        status = add_file(checkpoint, weights_name, &file, error);
    } else if (moe_cli_file_exists(checkpoint->index_path)) {
        status = open_index(checkpoint, error);
    } else {
        status = open_only_file(checkpoint, error);
    }
    checkpoint->is_located = status == 0;
    return status;
}

/* The shard that the index names for a tensor, opened at first use. */
static int find_shard(struct moe_checkpoint *checkpoint, const struct moe_tree_node *shard,
                      const char *tensor_name, struct moe_safetensors **out,
                      struct moe_cli_error *error)
{
    if (shard->kind != MOE_NODE_SCALAR || !shard->quoted || strchr(shard->text, '/') != NULL ||
        !has_suffix(shard->text, weights_suffix)) {
        return MOE_CLI_FAIL(error,
                            "%s: the file of tensor '%s' is not the name of a *%s file in "
                            "the same folder",
                            checkpoint->index_path, tensor_name, weights_suffix);
    }
    const size_t folder_bytes = strlen(checkpoint->folder) + strlen("/");
    for (size_t i = 0; i < checkpoint->num_files; ++i) {
        if (strcmp(moe_safetensors_path(checkpoint->files[i]) + folder_bytes, shard->text) == 0) {
            *out = checkpoint->files[i];
            return 0;
        }
    }
    return add_file(checkpoint, shard->text, out, error);
}

int moe_checkpoint_find(struct moe_checkpoint *checkpoint, const char *name,
                        const struct moe_safetensors_tensor **tensor, const char **path,
                        struct moe_cli_error *error)
{
    if (locate_weights(checkpoint, error) != 0) {
        return -1;
    }
    struct moe_safetensors *file;
    if (checkpoint->weight_map == NULL) {
        file = checkpoint->files[0];
    } else {
        const struct moe_tree_node *shard = moe_tree_find(checkpoint->weight_map, name);
        if (shard == NULL) {
            return 0;
        }
        if (find_shard(checkpoint, shard, name, &file, error) != 0) {
            return -1;
        }
    }
    *tensor = moe_safetensors_find(file, name);
    *path = moe_safetensors_path(file);
    if (*tensor == NULL && checkpoint->weight_map != NULL) {
        return MOE_CLI_FAIL(error, "%s: tensor '%s' is not in %s, where the index has it",
                            checkpoint->index_path, name, *path);
    }
    return *tensor != NULL;
}

int moe_checkpoint_open(const char *folder, struct moe_checkpoint **out,
                        struct moe_cli_error *error)
{
    struct moe_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL || (checkpoint->folder = strdup(folder)) == NULL ||
        (checkpoint->config_path = moe_cli_file_join(folder, config_name)) == NULL ||
        (checkpoint->index_path = moe_cli_file_join(folder, index_name)) == NULL) {
        moe_cli_fail_memory(error, "opening a checkpoint");
        goto fail;
    }
    const struct moe_tree_limits limits = MOE_TREE_LIMITS_JSON_INDEX;
    checkpoint->config = moe_cli_file_read_object(checkpoint->config_path, &limits, error);
    if (checkpoint->config == NULL) {
        goto fail;
    }
    *out = checkpoint;
    return 0;
fail:
    moe_checkpoint_close(checkpoint);
    return -1;
}

void moe_checkpoint_close(struct moe_checkpoint *checkpoint)
{
    if (checkpoint == NULL) {
        return;
    }
    for (size_t i = 0; i < checkpoint->num_files; ++i) {
        moe_safetensors_close(checkpoint->files[i]);
    }
    free(checkpoint->files);
    moe_tree_destroy(checkpoint->index);
    free(checkpoint->index_path);
    moe_tree_destroy(checkpoint->config);
    free(checkpoint->config_path);
    free(checkpoint->folder);
    free(checkpoint);
}

const char *moe_checkpoint_folder(const struct moe_checkpoint *checkpoint)
{
    return checkpoint->folder;
}

const char *moe_checkpoint_config_path(const struct moe_checkpoint *checkpoint)
{
    return checkpoint->config_path;
}

const struct moe_tree_node *moe_checkpoint_config(const struct moe_checkpoint *checkpoint)
{
    return moe_tree_root(checkpoint->config);
}
