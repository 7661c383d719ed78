/* SPDX-License-Identifier: Apache-2.0 */
/* Finds the tensors of a layer in a checkpoint, checks their shapes and types, and describes them
 * as operands that point into the mapped files. */
#ifndef MOE_CHECKPOINT_BIND_H
#define MOE_CHECKPOINT_BIND_H

#include "checkpoint.h"
#include "checkpoint_layer.h"
#include "model_config.h"

enum {
    MOE_BINDING_NAME_BYTES = 256,
    /* Gate, up, down, their biases and scales can be a tensor per expert, and gate, up and down be
     * joined with those of appended experts. */
    MOE_BINDING_TABLES = 12,
    MOE_BINDING_COPIES = 7 /* correction bias, and scales of experts and shared experts */
};

struct moe_checkpoint_layer_memory {
    struct moe_checkpoint *checkpoint;
    const void **tables[MOE_BINDING_TABLES];
    size_t num_tables;
    float *copies[MOE_BINDING_COPIES]; /* of what the file has in another type than fp32 */
    size_t num_copies;
};

/* What the functions below work on. */
struct moe_binding {
    struct moe_checkpoint_layer *layer;
    struct moe_checkpoint *checkpoint;
    const struct moe_model_config *config;
    struct moe_cli_error *error;
    char prefix[MOE_BINDING_NAME_BYTES]; /* of the layer's tensors */
};

/*
 * A tensor that is looked for: a matrix of num_rows x num_cols (output channels x k) or, with
 * num_cols 0, a vector of num_rows; per expert when num_experts > 0. It can be one of two halves of
 * a fused tensor.
 */
struct moe_wanted {
    const char *name; /* below the prefix */
    int64_t num_experts;
    int64_t num_rows;
    int64_t num_cols;
    int num_parts;      /* 1, or 2: gate and up in one tensor */
    int part_idx;       /* 0 gate, 1 up */
    int is_interleaved; /* rows of the parts alternate */
    int is_transposed;  /* stored as [num_cols, rows] */
    int is_one_matrix;  /* experts lie one below the other in one matrix, not in a stack of them */
    int num_vectors;    /* not 0: a vector that may also be the first row of a matrix of so many */
    int may_be_fp8;     /* with scales of its own */
};

/* Replaces the first `mark` of `pattern` by a number. Returns 0, or -1 when it does not fit. */
int moe_binding_fill_in(const char *pattern, const char *mark, int64_t number, char *text,
                        size_t text_bytes);

/* The whole name of a tensor below the prefix, for one expert, in MOE_BINDING_NAME_BYTES bytes.
 * Returns 0, or -1 with a sentence. */
int moe_binding_name(const struct moe_binding *binding, const char *name, int64_t expert,
                     char *text);

/* Returns -1 with a sentence: the layer needs a tensor that is not there. */
int moe_binding_refuse_missing(const struct moe_binding *binding, const char *name);

/* Describes the tensor, or the tensors of all experts where the name has {expert}. Tables belong to
 * the layer's memory. Returns 0, or -1 with a sentence. */
int moe_binding_operand(const struct moe_binding *binding, const struct moe_wanted *want,
                        struct moe_operand *operand);

/* Makes `operand` a table of its num_experts matrices and then those of `more`, which has as many
 * as `want` says. Both are stacks of one shape and type; the table belongs to the layer's memory.
 * Returns 0, or -1 with a sentence. */
int moe_binding_append(const struct moe_binding *binding, int64_t num_experts,
                       const struct moe_wanted *want, const struct moe_operand *more,
                       struct moe_operand *operand);

/* Where a described operand is of another type than fp32: makes it a copy in fp32, rows packed,
 * which belongs to the layer's memory. Returns 0, or -1 with a sentence (out of memory). */
int moe_binding_widen(const struct moe_binding *binding, const struct moe_wanted *want,
                      struct moe_operand *operand);

/* The fp32 scales "NAME_scale_inv" of a tensor of fp8 that `want` describes: one for 128 x 128
 * elements. Returns 0, or -1 with a sentence. */
int moe_binding_scale(const struct moe_binding *binding, const struct moe_wanted *want,
                      struct moe_operand *scale);

#endif
