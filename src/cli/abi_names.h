/* SPDX-License-Identifier: Apache-2.0 */
/* Names of the ids in moe_plugin.h, expanded from its lists. Unknown ids are named "?". */
#ifndef MOE_ABI_NAMES_H
#define MOE_ABI_NAMES_H

#include <stdint.h>

const char *moe_abi_dtype_name(int32_t dtype);
const char *moe_abi_activation_name(int32_t activation);
const char *moe_abi_gating_name(int32_t gating);
const char *moe_abi_group_score_name(int32_t group_score);
const char *moe_abi_scaling_name(int32_t scaling);
const char *moe_abi_backend_name(int32_t backend);
const char *moe_abi_op_name(int32_t op);
const char *moe_abi_level_name(int32_t level);

/* The names of all backends as choices of an option: "auto|cpu|...". */
const char *moe_abi_backend_choices(void);
/* The same for element types. */
const char *moe_abi_dtype_choices(void);

/* The id of a name, or -1. */
int32_t moe_abi_find_backend(const char *name);
int32_t moe_abi_find_dtype(const char *name);

#endif
