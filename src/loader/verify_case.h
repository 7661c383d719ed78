/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One slot, one form of its call, one set of random inputs: run in a generation, and what came of
 * it.
 */
#ifndef MOE_LOADER_VERIFY_CASE_H
#define MOE_LOADER_VERIFY_CASE_H

#include "loader_state.h"
#include "verify_memory.h"

/* X(constant, name). The routes are given; follow from given logits; from the bound router; rows
 * are given by expert. */
#define MOE_VERIFY_FORM_LIST(X)                         \
    X(MOE_VERIFY_LAYER_IDS, "layer, given routes")      \
    X(MOE_VERIFY_LAYER_LOGITS, "layer, given logits")   \
    X(MOE_VERIFY_LAYER_ROUTER, "layer, its own router") \
    X(MOE_VERIFY_EXPERTS, "experts")
#define MOE_VERIFY_FORM_CONSTANT_(constant, name) constant,
enum { MOE_VERIFY_FORM_LIST(MOE_VERIFY_FORM_CONSTANT_) MOE_VERIFY_NUM_FORMS };

struct moe_verify_case {
    const struct moe_loader_verify_options *options;
    const struct moe_loader_slot *slot;
    int32_t form;
    int64_t num_rows;    /* tokens, or rows of experts */
    int64_t num_outputs; /* elements */
    int64_t num_logits;
    int64_t num_ids;
    int32_t output_dtype;
    int32_t logits_dtype;
    uint64_t workspace_bytes; /* of the larger plan */
    struct moe_verify_block tokens, ids, weights, logits, segments;
    struct moe_verify_block output, logits_out, ids_out, weights_out, workspace;
};

/* What a run left, on the host. */
struct moe_verify_result {
    unsigned char *output;
    unsigned char *logits;
    int32_t *ids;
    float *weights;
    double *values; /* the output as numbers, made by moe_verify_case_run */
};

const char *moe_verify_form_name(int32_t form);

/* Does the slot have this form? */
bool moe_verify_form_applies(const struct moe_loader_slot *slot, int32_t form);

/* Allocate and fill the inputs; `views` are what will be run (the second may be NULL). UNSUPPORTED
 * when inputs of the slot's types cannot be made. */
int32_t moe_verify_case_init(struct moe_verify_case *test, const struct moe_loader_slot *slot,
                             int32_t form, const struct moe_loader_view *views[2],
                             const struct moe_loader_verify_options *options,
                             struct moe_error *error);
void moe_verify_case_finish(struct moe_verify_case *test);

int32_t moe_verify_result_init(const struct moe_verify_case *test, struct moe_verify_result *result,
                               struct moe_error *error);
void moe_verify_result_finish(struct moe_verify_result *result);

/* The call itself, and waiting for it. */
int32_t moe_verify_case_call(const struct moe_verify_case *test, const struct moe_loader_view *view,
                             struct moe_error *error);

/*
 * Poison outputs and workspace (the latter with `poison`), call, read everything back. WRONG_RESULT
 * with a sentence for a write beside the buffers or an element that is not finite. *is_host_fault:
 * the comparison could not be made, which says nothing about the plugin.
 */
int32_t moe_verify_case_run(const struct moe_verify_case *test, const struct moe_loader_view *view,
                            int poison, struct moe_verify_result *result, bool *is_host_fault,
                            struct moe_error *error);

/* The same bits in all that was written? */
bool moe_verify_result_equals(const struct moe_verify_case *test, const struct moe_verify_result *a,
                              const struct moe_verify_result *b);

/* Within tolerance of the reference; WRONG_RESULT with numbers. */
int32_t moe_verify_result_compare(const struct moe_verify_case *test,
                                  const struct moe_verify_result *reference,
                                  const struct moe_verify_result *candidate, double max_relative_l2,
                                  struct moe_error *error);

#endif
