/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a config.json by the row of its family: the numbers of a MoE layer, and which layers are
 * MoE. */
#ifndef MOE_MODEL_CONFIG_H
#define MOE_MODEL_CONFIG_H

#include <stdint.h>

#include "cli_error.h"
#include "family.h"
#include "moe_plugin.h"
#include "tree.h"

struct moe_model_config {
    const char *path; /* of config.json, for messages; as given to moe_model_config_read */
    const struct moe_family *family;
    const struct moe_tree_node
        *text; /* the object that the keys are read from: the root, or its text_config */
    const struct moe_tree_node *quantization; /* quantization_config, or NULL */
    int32_t dtype;                            /* of what is not quantized */
    int64_t num_layers;
    int64_t num_appended;    /* of the experts and of top_k */
    int64_t first_moe_layer; /* as struct moe_family says */
    int64_t last_moe_layer;
    int64_t moe_every;
    int64_t moe_phase;
    const struct moe_tree_node *moe_layers;   /* list of numbers, or NULL */
    const struct moe_tree_node *dense_layers; /* list of numbers, or NULL */
    const struct moe_tree_node *layer_kinds;  /* list of texts, or one text, or NULL */

    /* One layer, not split over ranks. All members but max_tokens are set; the dtypes are those
     * that config.json names (bf16 where it names none; fp8 weights with scales per 128 x 128, and
     * activations quantized by 128, where it says fp8), which the tensors of a checkpoint may
     * overrule. */
    struct moe_problem problem;
};

/* Reads `root`, the parsed config.json at `path`; both must outlive *config. Returns 0, or -1 with
 * a sentence that names the file, the key and what was looked for. */
int moe_model_config_read(const struct moe_tree_node *root, const char *path,
                          struct moe_model_config *config, struct moe_cli_error *error);

/* 1 if layer `layer_idx` (0..num_layers-1) is MoE, 0 if it is dense. */
int moe_model_config_is_moe_layer(const struct moe_model_config *config, int64_t layer_idx);

/* The lowest MoE layer, or -1 when all are dense. */
int64_t moe_model_config_first_moe_layer(const struct moe_model_config *config);

/* Sets the recipes of `problem` that follow from the experts' dtypes: gate_up and down, tokens in
 * the type of gate_up (config->dtype where that is fp8), the intermediate fp8 where both are, and
 * logits by the family's router. */
void moe_model_config_set_dtypes(const struct moe_model_config *config, int32_t gate_up_dtype,
                                 int32_t down_dtype, struct moe_problem *problem);

#endif
