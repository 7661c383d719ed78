/* SPDX-License-Identifier: Apache-2.0 */
/* Checks that all run calls share. Nothing is allocated or logged here; a check that passes costs a
 * few comparisons. */
#ifndef MOE_CALL_CHECK_H
#define MOE_CALL_CHECK_H

#include "plan.h"
#include "weights.h"

/*
 * Begin a call: operation in the plan, number of tokens, flags, workspace size and alignment.
 * `call` is the first member of args already read. `num_tokens` selects the bucket:
 * call->num_tokens, or what stands for it where an operation counts rows. num_tokens_device is read
 * on a CPU and passed on elsewhere; operations that count rows refuse it. Fills `run`: arguments
 * are checked for call->num_tokens, the operation runs with run->num_tokens.
 */
int32_t moe_call_begin(const struct moe_plan *plan, int32_t op, const struct moe_call *call,
                       int64_t num_tokens, struct moe_run *run, struct moe_error *error);

/* plan is not NULL. Before args are read. */
int32_t moe_call_check_plan(const struct moe_plan *plan, int32_t op, struct moe_error *error);

/* A tensor argument: not NULL if `num_elements` > 0, aligned to its elements. */
int32_t moe_call_check_tensor(const char *op, const char *name, const void *pointer, int32_t dtype,
                              int64_t num_elements, struct moe_error *error);

/* The same for int32, int64 or float arrays of `element_bytes`. */
int32_t moe_call_check_array(const char *op, const char *name, const void *pointer,
                             size_t element_bytes, int64_t num_elements, struct moe_error *error);

/* 0 becomes `packed`; a stride below `packed` is refused. */
int32_t moe_call_resolve_stride(const char *op, const char *name, int64_t *stride, int64_t packed,
                                struct moe_error *error);

int32_t moe_call_check_ids(const char *op, int32_t ids_dtype, struct moe_error *error);

/* Resolve a filter with the plan's numbers. */
int32_t moe_call_read_filter(const char *op, const struct moe_problem *problem,
                             const struct moe_route_filter *filter, struct moe_op_filter *out,
                             struct moe_error *error);

/* Segments do not overlap: seg_indptr never decreases. A CPU can look, so a wrong one is refused
 * before anything is written; on a GPU rows of overlapping segments get the result of either. */
int32_t moe_call_check_segments(const char *op, const struct moe_plan *plan,
                                const int64_t *seg_indptr, struct moe_error *error);

/* Every destination lies in the rows, or is negative: a CPU can look, so a wrong one is refused
 * before anything is written. */
int32_t moe_call_check_destinations(const char *op, const int32_t *src2dst, int64_t num_routes,
                                    int64_t num_rows, struct moe_error *error);

/* 0 to the rows that the plan takes. */
int32_t moe_call_check_num_rows(const char *op, const struct moe_plan *plan, int64_t num_rows,
                                struct moe_error *error);

/* Masked layout: num_rows is num_experts times max_masked_rows. Without masked_m the other number
 * has no meaning and must be 0. */
int32_t moe_call_check_masked(const char *op, const struct moe_problem *problem,
                              const int32_t *masked_m, int64_t max_masked_rows, int64_t num_rows,
                              struct moe_error *error);

/* Weights: bound in the plan's context, for its problem. */
int32_t moe_call_check_weights(const char *op, const struct moe_plan *plan,
                               const struct moe_weights *weights, struct moe_error *error);

/* An operand that a call needs must have been bound; `name` is what of the weights it is. */
int32_t moe_call_check_bound(const char *op, const char *name, const struct moe_operand *operand,
                             struct moe_error *error);

/* One side of an aliasing check: `num_rows` rows of `row_bytes` with `stride_bytes` between
 * them. */
struct moe_span {
    const void *base;
    int64_t num_rows;
    int64_t row_bytes;
    int64_t stride_bytes;
};

struct moe_span moe_call_span(const void *base, int64_t num_rows, int64_t row_elements,
                              int64_t stride, int32_t dtype);

/* Refuse an output that overlaps an input, unless `in_place` and both are the same rows. */
int32_t moe_call_check_overlap(const char *op, const char *output_name, struct moe_span output,
                               const char *input_name, struct moe_span input, int in_place,
                               struct moe_error *error);

/* The most that any call has; route has all of gating and both sorts. */
#define MOE_CALL_MAX_OUTPUTS 16
#define MOE_CALL_MAX_INPUTS  12

/* A tensor of a call, by the name of its member. */
struct moe_call_tensor {
    const char *name;
    struct moe_span span;
};

/* An array without strides; NULL or no elements: nothing that could overlap. */
struct moe_call_tensor moe_call_array(const char *name, const void *base, int64_t num_elements,
                                      size_t element_bytes);

/* What the operation uses of the call's workspace for `num_tokens`. */
struct moe_call_tensor moe_call_workspace(const struct moe_plan *plan, int32_t op,
                                          const struct moe_call *call, int64_t num_tokens);

/* The first `num_outputs` of the tensors are written: refuse one that overlaps any other. */
int32_t moe_call_check_disjoint(const char *op, const struct moe_call_tensor *tensors,
                                size_t num_tensors, size_t num_outputs, struct moe_error *error);

/* The tensors of a call, collected by group; starts zeroed. */
struct moe_call_tensors {
    struct moe_call_tensor outputs[MOE_CALL_MAX_OUTPUTS];
    struct moe_call_tensor inputs[MOE_CALL_MAX_INPUTS];
    size_t num_outputs;
    size_t num_inputs;
};

/* Tensors without elements are left out. */
void moe_call_add_output(struct moe_call_tensors *tensors, struct moe_call_tensor tensor);
void moe_call_add_input(struct moe_call_tensors *tensors, struct moe_call_tensor tensor);

/* What every call has: the workspace, an output, and num_tokens_device. */
void moe_call_add_common(struct moe_call_tensors *tensors, const struct moe_plan *plan, int32_t op,
                         const struct moe_call *call);

/* Refuse an output that overlaps another output or an input. */
int32_t moe_call_check_tensors(const char *op, const struct moe_call_tensors *tensors,
                               struct moe_error *error);

#endif
