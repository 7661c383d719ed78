/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers and booleans of a config.json, as the members of struct moe_family ask for them. */
#ifndef MOE_MODEL_VALUES_H
#define MOE_MODEL_VALUES_H

#include "model_config.h"

/* Sizes that a config.json may ask for: their products stay far inside of 64 bits. */
#define MOE_MODEL_MAX_SIZE    ((int64_t)INT32_MAX)
#define MOE_MODEL_MAX_EXPERTS ((int64_t)1 << 20)
#define MOE_MODEL_MAX_LAYERS  ((int64_t)1 << 20)

enum { MOE_MODEL_KEY_BYTES = 128 };

/* The value of one key, "a.b" for the key b of the object a, "a.0" for the first item of
 * the list a; NULL if there is none. */
const struct moe_tree_node *moe_model_find(const struct moe_tree_node *text, const char *key);

/* The first of the keys "a|b" that is there and not null, NULL if none is; its name goes to `name`
 * of MOE_MODEL_KEY_BYTES bytes. */
const struct moe_tree_node *moe_model_find_key(const struct moe_tree_node *text, const char *keys,
                                               char *name);

/* A sentence that the model needs one of the keys. */
void moe_model_explain_missing(const struct moe_model_config *config, const char *keys,
                               struct moe_cli_error *error);

/* The value by its rule in struct moe_family_value. A list with one number per layer is read as
 * that number when all are the same. All return 0, or -1 with a sentence. */
int moe_model_read_number(const struct moe_model_config *config,
                          const struct moe_family_value *value, double *out,
                          struct moe_cli_error *error);
int moe_model_read_float(const struct moe_model_config *config,
                         const struct moe_family_value *value, float *out,
                         struct moe_cli_error *error);
int moe_model_read_flag(const struct moe_model_config *config, const struct moe_family_value *value,
                        int *out, struct moe_cli_error *error);
int moe_model_read_size(const struct moe_model_config *config, const struct moe_family_value *value,
                        int64_t min, int64_t max, int64_t *out, struct moe_cli_error *error);
int moe_model_read_size32(const struct moe_model_config *config,
                          const struct moe_family_value *value, int64_t min, int64_t max,
                          int32_t *out, struct moe_cli_error *error);

#endif
