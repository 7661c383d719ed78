/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of `gpu_layer check` share: a tally, outputs of both sides, runs of either, and
 * comparisons that only say whether they hold, so that planted mistakes can go through them. */
#ifndef MOE_GPU_LAYER_CHECK_H
#define MOE_GPU_LAYER_CHECK_H

#include "gpu_layer.h"

enum { LAYER_POISON = 0xff, LAYER_GAP = 8 };

struct layer_check {
    const struct gpu_host *host;
    uint64_t seed;
    int modes; /* LAYER_BRIEF ... */
    int num_checked, num_failed, num_planted;
    int num_plans, num_replaced; /* with forced tiles; launches of them that took another tile */
    double largest, largest_row; /* differences as parts of their tolerance */
};

/* Outputs of both sides, with gaps between rows and bytes behind them. */
struct layer_outputs {
    unsigned char *cpu, *cuda; /* on the host */
    void *device;
    int64_t stride; /* elements */
    size_t row_bytes, used_bytes, bytes;
};

/* A plan and its workspace on the device's side. */
struct layer_side {
    struct moe_plan *plan;
    void *workspace;
    uint64_t workspace_bytes;
};

/* Is the filter part of the shape's name? Without a device wide ones have to be asked for. */
int layer_is_chosen(const struct layer_check *check, const struct layer_shape *shape,
                    const char *filter);

/* Counts a comparison, and says what failed. */
void layer_report(struct layer_check *check, int is_right, const struct layer_case *test,
                  int64_t num_tokens, const char *what, double value);

void layer_outputs_init(struct layer_outputs *outputs, const struct layer_case *test);
void layer_outputs_finish(struct layer_outputs *outputs);

/* With a workspace of at least 1 / part of what it wants: the smallest that a plan accepts. */
void layer_side_init(struct layer_side *side, const struct layer_check *check,
                     const struct layer_case *test, uint64_t part);
void layer_side_finish(struct layer_side *side, const struct layer_check *check);

/* A call with that plan and workspace that writes to `output`. */
struct layer_call layer_device_call(const struct layer_check *check, const struct layer_side *side,
                                    void *output, int64_t stride);

/* Queues a call; ends the program if it is refused. */
void layer_queue(const struct layer_check *check, const struct layer_case *test,
                 const struct layer_call *call);

/* Rows [first, first + num_tokens) on a side, poisoned before, to outputs->cuda or ->cpu. */
void layer_run_device(const struct layer_check *check, const struct layer_case *test,
                      const struct layer_side *side, struct layer_outputs *outputs, int64_t first,
                      int64_t num_tokens, int32_t has_residual);
/* ids, weights: what routed, [num_tokens, k]; NULL: not wanted. */
void layer_run_cpu(const struct layer_check *check, const struct layer_case *test,
                   struct layer_outputs *outputs, int64_t num_tokens, int32_t has_residual,
                   int32_t *ids, float *weights);

/* ---------------------------------------------------------------- comparisons */

/* Results of both sides are as close as gpu_compare wants. */
struct layer_values {
    int64_t num_tokens;
    int32_t has_residual;
    int32_t *ids;              /* that routed on the CPU's side, [num_tokens, k] */
    float *weights;            /* and their weights */
    unsigned char *is_skipped; /* tokens that the sides route to other experts; NULL: none */
};
struct gpu_comparison layer_compare(const struct layer_case *test,
                                    const struct layer_outputs *outputs,
                                    const struct layer_values *values);

/* The largest part of its tolerance that a token of the device differs from float64 by. */
double layer_compare_reference(const struct layer_case *test, const struct layer_outputs *outputs,
                               int64_t token, const struct layer_expected *expected);

/* The first row of outputs->cuda that is not bit for bit row first + row of `expected`, or -1. */
int64_t layer_other_bits(const struct layer_outputs *outputs, const unsigned char *expected,
                         int64_t first, int64_t num_tokens);

/* What lies between and behind the rows, and rows that are outside (NULL: none), is as it was
 * poisoned. */
int layer_keeps_rest(const struct layer_outputs *outputs, const unsigned char *output,
                     int64_t num_rows, const unsigned char *is_outside);
/* The same of outputs->cuda, with no row outside. */
int layer_keeps_gaps(const struct layer_outputs *outputs, int64_t num_tokens);

/* ---------------------------------------------------------------- parts */

/* The first, the middle and the last token against float64. */
void layer_check_reference(struct layer_check *check, const struct layer_case *test,
                           const struct layer_outputs *outputs, const struct layer_values *values);

/* Mistakes planted into outputs->cuda, which is right before and after: each has to be noticed. */
void layer_check_planted(struct layer_check *check, const struct layer_case *test,
                         struct layer_outputs *outputs, const struct layer_values *values);

/* The same bits: replayed, on two streams at once, counted on the device, packed, in chunks. */
void layer_check_replay(struct layer_check *check, struct layer_case *test,
                        struct layer_outputs *outputs, int64_t num_tokens);
void layer_check_same(struct layer_check *check, struct layer_case *test,
                      struct layer_outputs *outputs);

/* The same bits with every tile in any batch and chunking; layers of its own. */
void layer_check_bits(struct layer_check *check, const char *filter);

/* The same bits by captures that are replayed with other inputs; layers of its own. */
void layer_check_replays(struct layer_check *check, const char *filter);

/* Calls for tools that make a launch slow; layers of its own. */
void layer_check_brief(struct layer_check *check, const char *filter);

/* experts with the case's weights and its tokens as rows, in two forms. */
void layer_check_experts(struct layer_check *check, const struct layer_case *test);

#endif
