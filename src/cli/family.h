/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model families: how a Hugging Face config.json and its tensors describe a Mixture-of-Experts
 * layer. A family is one row of families.def. No code asks for a model type: all differences are
 * data here.
 */
#ifndef MOE_FAMILY_H
#define MOE_FAMILY_H

#include <stddef.h>
#include <stdint.h>

#include "cli_error.h"
#include "moe_plugin.h"

/* A number or boolean of config.json. `keys` lists names as "a|b": the first that is there and not
 * null is read; "a.b" is the key b of the object a, and "a.0" the first item of the list a, here
 * and wherever a key is named. Without one `value` stands, unless the number is mandatory. keys
 * NULL: `value` always. */
struct moe_family_value {
    const char *keys;
    double value;
    int is_mandatory;
};

/* A matrix and its bias, as names below the layer's prefix, NULL where the family has none.
 * "{expert}" in a name means a tensor per expert; without it, experts are stacked along a first
 * dimension. */
struct moe_family_linear {
    const char *weight;
    const char *bias;
    const char *appended; /* the same matrices of appended experts, stacked; NULL: there are none */
    int is_transposed;    /* the matrix is stored as [in, out] */
    int has_one_bias;     /* the bias is one vector, which all experts add */
};

/* A scalar of config.json that must have this value where it is present and not null: a variant
 * that the row does not describe is refused rather than computed wrongly. Several rows with one key
 * list its known values. */
struct moe_family_expectation {
    const char *key;
    const char *value;
};

enum { MOE_FAMILY_MAX_EXPECTATIONS = 6 };

/* One row. Members left out of a row are zero, which is the usual case of each. */
struct moe_family {
    const char *model_type; /* "model_type" of config.json */
    const char
        *wrapper; /* model_type of a multimodal config.json whose "text_config" this is; or NULL */
    const char *layer; /* prefixes of a layer's tensors, "a|b" with {layer}; NULL: the usual ones */
    struct moe_family_expectation expect[MOE_FAMILY_MAX_EXPECTATIONS];
    struct moe_family_expectation otherwise; /* a key of `expect`, and what its other values mean,
                                                which is said when they are refused; key NULL:
                                                the key says it itself */
    const char *refusal; /* why layers of this type cannot be run; NULL: they can */

    /* Sizes. */
    struct moe_family_value num_layers;
    struct moe_family_value num_experts;
    struct moe_family_value top_k;
    struct moe_family_value num_appended; /* experts after the routed ones that every token goes to
                                             with a weight of its own: added to both numbers */
    struct moe_family_value hidden;
    struct moe_family_value inter; /* of one expert, one half of gate + up */

    /* Which layers are MoE: those of the list `moe_layers` if config.json has it; else those whose
     * kind is `moe_kind` if it has `layer_kinds`, a list of texts or one text with a letter per
     * layer; else layer l when first_moe_layer <= l <= last_moe_layer, (l - moe_phase) % moe_every
     * == 0, and l is not in the list `dense_layers`. */
    struct moe_family_value first_moe_layer;
    struct moe_family_value last_moe_layer; /* 0 without a key, and -1: the last layer */
    struct moe_family_value moe_every;      /* 0: 1 */
    struct moe_family_value moe_phase;
    const char *moe_layers;   /* key of a list of layer numbers or of a text "3,4,5", or NULL */
    const char *dense_layers; /* key of a list of layer numbers, or NULL */
    const char *layer_kinds;  /* keys "a|b" of the kinds of layers, or NULL */
    const char *moe_kind;     /* in a list of texts */
    char moe_letter;          /* in one text */
    /* Keys "a|b", all of which are read, of lists with a number per layer: layers whose number is
     * neither null nor 0 clamp their activation, and are refused; or NULL. */
    const char *layer_limits;

    /* Gating. */
    int routing_is_given;                /* the model's router is none of the rules: ids and weights
                                            come from outside, and the rest of this part is empty */
    int32_t gating;                      /* MOE_GATING_* */
    struct moe_family_value renormalize; /* boolean */
    const char *renormalize_norm;       /* key of the p of the p-norm that weights are divided by: 1
                                            renormalizes, null does not, no other is known, and
                                            `renormalize` stands without the key; or NULL */
    struct moe_family_value scaling;    /* on the routing weights; 0: 1 */
    int scaling_is_on_output;           /* on the sum over experts instead */
    struct moe_family_value num_groups; /* 0 or 1: not grouped */
    struct moe_family_value topk_groups;
    int32_t group_score;                     /* MOE_GROUP_SCORE_* */
    struct moe_family_expectation groups_if; /* groups count only if this text is there; key NULL:
                                                always */
    struct moe_family_value router_jitter;
    int router_is_fp32; /* logits are kept in fp32; 0: rounded to the type of the tokens */
    int router_weight_is_on_input;
    struct moe_family_linear router;             /* [E, H], [E] */
    const char *correction_bias;                 /* [E] or [1, E], added for the choice only */
    int num_correction_rows;                     /* n: [n, E], the first of which counts; 0: 1 */
    struct moe_family_value has_correction_bias; /* boolean; without a key: yes */

    /* Activation: named by the config's `activation_key`; `activation` where that is NULL or not in
     * config.json. activation 0: it has to be there. */
    const char *activation_key;
    int32_t activation; /* MOE_ACTIVATION_* */
    struct moe_family_value act_alpha;
    struct moe_family_value act_limit;

    /* Experts: gate and up, or gate_up fused along the output channels; and down. */
    struct moe_family_linear gate;    /* [I, H] per expert */
    struct moe_family_linear up;      /* [I, H] */
    struct moe_family_linear gate_up; /* [2I, H]: gate rows then up rows */
    struct moe_family_linear down;    /* [H, I] */
    int is_interleaved;               /* gate_up: gate and up rows alternate, gate first */
    int is_one_matrix; /* the experts' matrices lie one below the other in one, [E * I, H] or,
                          transposed, [E * in, out], where others are stacked as [E, I, H] */

    /* Shared experts, as one of the sum of their widths. */
    struct moe_family_value shared_inter; /* width of all; 0: num_shared times the width of each */
    struct moe_family_value num_shared;
    struct moe_family_value shared_inter_each; /* 0: inter */
    const char *shared_gate_up;                /* [2 * shared I, H]: gate rows then up rows */
    const char *shared_gate;                   /* [shared I, H] */
    const char *shared_up;                     /* [shared I, H] */
    const char *shared_down;                   /* [H, shared I] */
    const char *shared_sigmoid; /* [1, H]: its output is multiplied by sigma(x . w) */
};

/* The prefixes of a layer's tensors for rows that name none. */
extern const char moe_family_usual_layers[];

/* Rows of the table, in alphabetical order of their model types; NULL past the end. */
const struct moe_family *moe_family_row(size_t row_idx);

/* The row for a model_type, or for one whose wrapper has this model_type (then *is_wrapped is 1).
 * NULL when there is none, with a sentence that lists the model types of the table. */
const struct moe_family *moe_family_find(const char *model_type, int *is_wrapped,
                                         struct moe_cli_error *error);

/* Copies alternative `idx` of a list "a|b|c" into `text`. Returns 1, or 0 past the end or when it
 * does not fit. */
int moe_family_pick(const char *list, size_t idx, char *text, size_t text_bytes);

#endif
