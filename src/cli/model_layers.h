/* SPDX-License-Identifier: Apache-2.0 */
/* Which layers of a model are MoE; moe_model_config_is_moe_layer tells. */
#ifndef MOE_MODEL_LAYERS_H
#define MOE_MODEL_LAYERS_H

#include "model_config.h"

/* Reads what the family says about its layers. Returns 0, or -1 with a sentence. */
int moe_model_layers_read(struct moe_model_config *config, struct moe_cli_error *error);

/* Layers that clamp their activation, by the lists that the family names, cannot be run. Returns 0,
 * or -1 with a sentence. */
int moe_model_layers_check_limits(const struct moe_model_config *config, int64_t layer_idx,
                                  struct moe_cli_error *error);

#endif
