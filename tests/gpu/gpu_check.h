/* SPDX-License-Identifier: Apache-2.0 */
/* What the checks of gpu_check share: one file of checks per group of operations. */
#ifndef MOE_GPU_CHECK_H
#define MOE_GPU_CHECK_H

#include "gpu_host.h"
#include "gpu_tiles.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 4096, POISON = 0xcb };

extern struct gpu_host check_host;
extern uint64_t check_seed;
extern int check_num_failed;
extern int check_num_checked;

/* The same memory on the host (for the CPU backend) and on the device, between guard bands. */
struct check_mirror {
    size_t bytes;
    size_t offset;       /* of the data behind the guard, for odd alignments */
    unsigned char *host; /* with guards */
    unsigned char *device;
};

/* One problem on both backends, for one operation. */
struct check_case {
    struct moe_problem problem;
    struct moe_plan *cpu;
    struct moe_plan *cuda;
    void *workspace;      /* of the CPU */
    void *cuda_workspace; /* poisoned: nothing may rely on its content */
    uint64_t cuda_workspace_bytes;
    struct moe_plan_info info;
    int64_t num_tokens;
    char text[512];
};

/* call.num_tokens_device: given in every third case. The device may have a number that is out of
 * range, which counts as the nearest one that is not; a CPU refuses those. */
struct check_count {
    struct check_mirror mirror;
    int is_given;
    int32_t value; /* -1: not given */
};

void check_mirror_init(struct check_mirror *mirror, size_t bytes, size_t misalignment);
void check_mirror_finish(struct check_mirror *mirror);
void *check_on_host(const struct check_mirror *mirror);
void *check_on_device(const struct check_mirror *mirror);
/* Send all of it, guards included. */
void check_mirror_send(const struct check_mirror *mirror);
/* Is the device's memory what the host's is, guards included? */
void check_mirror_compare(const struct check_mirror *mirror, const char *what, const char *text);
/* 0 to limit - 1 */
int64_t check_draw(int64_t limit);
int64_t check_pick(const int64_t *values, int64_t num_values);
/* The rows of a masked layout, and the most rows of an expert; or 0, and rows of the contiguous
 * one, sometimes fewer than routes. Sets the problem's max_tokens. */
int64_t check_draw_masked(struct check_case *test, int64_t *num_rows);
/* Destinations in `num_rows` rows: some of a permutation of the routes, or (most > 0) the next row
 * of a random expert of `most` rows. Every ninth and those beyond are negative. */
void check_fill_destinations(int32_t *out, int64_t num_routes, int64_t num_rows, int64_t most);
/* The device gets rows that do not exist, 0x7fffffff among them, where some of those are
 * negative. */
void check_send_destinations(const struct check_mirror *src2dst, int64_t num_routes,
                             int64_t num_rows);
/* Finite random elements of any of the three types: random signs and mantissas, moderate
 * exponents. */
void check_fill_elements(void *out, int32_t dtype, int64_t count);
/* pattern 0: uniform, 1: one hot expert, 2: nothing but ids that are nobody's, 3: every fourth of
 * those, 4: Zipf-like. */
void check_fill_ids(void *out, int32_t ids_dtype, int64_t count, int32_t num_experts,
                    int64_t pattern);
void check_case_init(struct check_case *test, int32_t op);
void check_case_finish(struct check_case *test);
/* num_tokens, workspace and stream. On the device the call that follows is queued on the test's own
 * stream, or on that of the thread or the default one, at once or into a capture of any mode: the
 * arguments are complete but for numbers of this side, and check_wait comes after the call. */
void check_set_call(const struct check_case *test, int is_cuda, struct moe_call *call);
CUstream check_begin_way(void); /* which stream that is */
/* What was queued has run when this returns. A captured call is replayed twice, first with all
 * memory rotated, where nothing may be written outside it, then with the case's own. */
void check_wait(void);
/* Prints how many calls went which way; ways that none of many went count as failed. */
void check_report_ways(void);

/* As the operation's number of tokens; what `finish` frees. */
void check_count_init(struct check_count *count, int64_t num_tokens);
void check_count_finish(struct check_count *count);
const int32_t *check_count_at(const struct check_count *count, int is_cuda);
void check_draw_routes(struct check_case *test);
/* So many tokens and slots that their rows are more than the L2 of a device holds. */
void check_draw_wide(struct check_case *test);
void check_set_filter(struct moe_route_filter *filter, const struct moe_problem *problem,
                      int64_t kind, const int32_t *map);
/* Of ids below num_ids: every third to no local expert. */
void check_fill_map(int32_t *map, const struct moe_problem *problem, int32_t num_ids);
/* A problem for gating, without redundant and appended experts, and a number of tokens. */
void check_draw_gating(struct check_case *test);
/* Random logits; some rows of equal values, of few values, of NaN and infinities of both signs,
 * mixed or one alone, with zeros of both signs, and of values that only their last bits tell
 * apart. */
void check_fill_logits(void *out, int32_t dtype, int64_t num_tokens, int64_t stride);

#define PICK(...) \
    check_pick((const int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

/* One random case of an operation, with the tile that is forced; a file per group of operations. */
void check_align(void);
void check_ep_preprocess(void);
void check_pre_reorder(void);
void check_pre_reorder_quantized(void);
void check_quantize(void);
void check_activation(void);
void check_post_reorder(int is_sum);
void check_gating(void);
void check_router(void); /* with fp32 tokens or weights */
void check_route(void);
/* Not by tile: one token's ids and weights by all tiles, alone and among others. */
void check_gating_bits(void);

#endif
