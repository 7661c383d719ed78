/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of match keys and tile keys, and the names that keys take. */
#include "rules.h"

#include <stddef.h>
#include <string.h>

struct name_number {
    const char *name;
    int64_t number;
};

#define NAME_NUMBER(constant, value, name) {name, value},
static const struct name_number backends[] = {MOE_BACKEND_LIST(NAME_NUMBER){NULL, 0}};
static const struct name_number dtypes[] = {MOE_DTYPE_LIST(NAME_NUMBER){NULL, 0}};
static const struct name_number activations[] = {MOE_ACTIVATION_LIST(NAME_NUMBER){NULL, 0}};
#undef NAME_NUMBER

const struct moe_match_key moe_match_keys[MOE_NUM_MATCH_KEYS] = {
#define MATCH_KEY(id, key, kind_id, forms_, device, max_, meaning) \
    {.name = key,                                                  \
     .kind = MOE_KIND_##kind_id,                                   \
     .forms = (forms_),                                            \
     .max = (max_),                                                \
     .of_device = (device)},
    MOE_MATCH_KEYS(MATCH_KEY)
#undef MATCH_KEY
};

const struct moe_tile_key moe_tile_keys[MOE_NUM_TILE_KEYS] = {
#define TILE_KEY(id, key, member, is_gemm) {.name = key, .gemm = (is_gemm) != 0},
    MOE_TILE_KEYS(TILE_KEY)
#undef TILE_KEY
};

int32_t moe_tile_key_value(const struct moe_tile *tile, int32_t tile_key)
{
    switch (tile_key) {
#define TILE_VALUE(id, key, member, is_gemm) \
    case MOE_TILE_KEY_##id:                  \
        return tile->member;
        MOE_TILE_KEYS(TILE_VALUE)
#undef TILE_VALUE
    default:
        return 0;
    }
}

static bool isa_stands_before(int32_t kernel)
{
    for (int32_t i = 0; i < kernel; i++) {
        if (strcmp(moe_kernels[i].isa, moe_kernels[kernel].isa) == 0) {
            return true;
        }
    }
    return false;
}

/* The instruction sets that kernels need, each once, in the order of tiles.def. */
static const char *isa_name(int32_t position)
{
    for (int32_t i = 0; i < MOE_NUM_KERNELS; i++) {
        if (moe_kernels[i].backend != MOE_BACKEND_CPU || isa_stands_before(i)) {
            continue;
        }
        if (position == 0) {
            return moe_kernels[i].isa;
        }
        position--;
    }
    return NULL;
}

static const struct name_number *names_of(int32_t key)
{
    switch (key) {
    case MOE_MATCH_BACKEND:
        return backends + 1; /* a device is never "auto" */
    case MOE_MATCH_ACT_DTYPE:
    case MOE_MATCH_WEIGHT:
        return dtypes;
    case MOE_MATCH_ACTIVATION:
        return activations;
    default:
        return NULL;
    }
}

const char *moe_match_key_name(int32_t key, int32_t position)
{
    if (key == MOE_MATCH_ISA) {
        return isa_name(position);
    }
    const struct name_number *names = names_of(key);
    return names != NULL ? names[position].name : NULL;
}

int64_t moe_match_key_find(int32_t key, const char *text)
{
    const char *name;
    for (int32_t i = 0; (name = moe_match_key_name(key, i)) != NULL; i++) {
        if (strcmp(name, text) == 0) {
            return key == MOE_MATCH_ISA ? i + 1 : names_of(key)[i].number;
        }
    }
    return -1;
}
