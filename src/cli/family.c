/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"

#include <string.h>

const char moe_family_usual_layers[] = "model.layers.{layer}.|model.language_model.layers.{layer}.|"
                                       "language_model.model.layers.{layer}.";

/* The words of families.def. */
#define KEY(names)                         \
    {                                      \
        .keys = (names), .is_mandatory = 1 \
    }
#define KEY_OR(names, otherwise)              \
    {                                         \
        .keys = (names), .value = (otherwise) \
    }
#define FIXED(number)     \
    {                     \
        .value = (number) \
    }
#define PROJECTIONS(prefix)                                                                   \
    .gate = {.weight = prefix "gate_proj.weight"}, .up = {.weight = prefix "up_proj.weight"}, \
    .down = {.weight = prefix "down_proj.weight"}
#define SHARED_PROJECTIONS(prefix)                                                  \
    .shared_gate = prefix "gate_proj.weight", .shared_up = prefix "up_proj.weight", \
    .shared_down = prefix "down_proj.weight"

static const struct moe_family rows[] = {
#include "families.def"
};

enum { num_rows = sizeof rows / sizeof rows[0] };

const struct moe_family *moe_family_row(size_t row_idx)
{
    return row_idx < num_rows ? &rows[row_idx] : NULL;
}

const struct moe_family *moe_family_find(const char *model_type, int *is_wrapped,
                                         struct moe_cli_error *error)
{
    const char *names[num_rows];
    for (size_t i = 0; i < num_rows; ++i) {
        names[i] = rows[i].model_type;
        *is_wrapped = rows[i].wrapper != NULL && strcmp(rows[i].wrapper, model_type) == 0;
        if (*is_wrapped || strcmp(rows[i].model_type, model_type) == 0) {
            return &rows[i];
        }
    }
    const char *nearest = moe_cli_suggest(model_type, names, num_rows);
    moe_cli_error_set(error, "model type '%s' is not known", model_type);
    if (nearest != NULL) {
        moe_cli_error_append(error, " (did you mean '%s'?)", nearest);
    }
    const char *separator = "; known are ";
    for (size_t i = 0; i < num_rows; ++i) {
        if (rows[i].refusal == NULL) {
            moe_cli_error_append(error, "%s%s", separator, names[i]);
            separator = ", ";
        }
    }
    return NULL;
}

int moe_family_pick(const char *list, size_t idx, char *text, size_t text_bytes)
{
    const char *at = list;
    for (;;) {
        const size_t length = strcspn(at, "|");
        if (idx == 0) {
            if (length >= text_bytes) {
                return 0;
            }
            memcpy(text, at, length);
            text[length] = '\0';
            return 1;
        }
        if (at[length] == '\0') {
            return 0;
        }
        at += length + 1;
        idx -= 1;
    }
}
