/* SPDX-License-Identifier: Apache-2.0 */
/* What a config.json says about quantized weights. Read is fp8 with scales per 128 x 128. */
#ifndef MOE_MODEL_QUANT_H
#define MOE_MODEL_QUANT_H

#include "cli_error.h"
#include "tree.h"

/* `quantization_config` of a config.json, which stands in `text` or beside it in `root`; NULL when
 * there is none. */
const struct moe_tree_node *moe_model_quant_find(const struct moe_tree_node *root,
                                                 const struct moe_tree_node *text);

/* Its quant_method, or NULL. */
const char *moe_model_quant_method(const struct moe_tree_node *quantization);

/* Does it say fp8? */
int moe_model_quant_is_fp8(const struct moe_tree_node *quantization);

/* Can weights that are stored so be read? NULL, or fp8 with weight_block_size [128, 128] and
 * activations that are quantized as they come. Returns 0, or -1 with a sentence that says what they
 * are and what is read. `path` is the config.json's. */
int moe_model_quant_check(const struct moe_tree_node *quantization, const char *path,
                          struct moe_cli_error *error);

#endif
