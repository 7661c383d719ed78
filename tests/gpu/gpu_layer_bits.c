/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token's row is the same bits alone, in any batch, with any tiles of the two GEMMs and in any
 * chunks: rows of windows of one set of tokens against one run of them all. Every legal pair of
 * tiles.def is forced; the plan has to have it, and launches that took another tile in its place
 * are counted: only transposed weights may do that (docs/kernels.md).
 */
#include "gpu_layer_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BF16   MOE_DTYPE_BF16
#define FP16   MOE_DTYPE_FP16
#define FP32   MOE_DTYPE_FP32
#define SILU   MOE_ACTIVATION_SILU
#define OAI    MOE_ACTIVATION_SWIGLU_OAI
#define BIASES (MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS)

static const struct layer_shape shapes[] = {
    {"bits", 8, 2, 512, 256, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"bits, fp16, biases", 16, 4, 576, 320, 0, FP16, FP16, OAI, BIASES, LAYER_INTERLEAVED, 0, 0, 0},
    {"bits, transposed", 12, 3, 456, 136, 0, BF16, BF16, SILU, 0, LAYER_TRANSPOSED, 0, 0, 0},
    {"bits, transposed, fp16", 6, 2, 320, 192, 0, FP16, FP32, SILU, BIASES, LAYER_TRANSPOSED, 0, 0,
     0},
    {"bits, paired", 12, 3, 456, 136, 0, BF16, BF16, OAI, BIASES, LAYER_PAIRED, 0, 0, 0},
    {"bits, weight on input", 16, 2, 320, 128, 0, BF16, BF16, SILU,
     MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT, LAYER_FUSED, 0, 0, 0},
    {"bits, shared", 24, 4, 512, 192, 448, FP16, FP16, SILU, MOE_PROBLEM_SHARED_SIGMOID,
     LAYER_FUSED, 0, 0, 1.5f},
    {"bits, many experts", 300, 4, 192, 88, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"bits, one expert", 1, 1, 192, 88, 0, FP16, FP16, SILU, 0, LAYER_TABLE, 0, 0, 0},
    {"bits, wide", 12, 4, 2880, 88, 0, BF16, BF16, OAI, BIASES, LAYER_INTERLEAVED, 0, 0, 0},
    {"bits, deep", 6, 2, 192, 1440, 0, BF16, FP32, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"bits, in order", 6, 2, 192, 1928, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"bits, router", 64, 6, 1024, 96, 128, BF16, BF16, SILU, MOE_PROBLEM_RENORMALIZE, LAYER_FUSED,
     MOE_GATING_SOFTMAX, 1, 0},
};
static const int64_t token_counts[] = {1, 2, 7, 8, 9, 63, 64, 65, 127, 129, 300, 1000};
static const uint64_t parts[] = {2, 7, 40, 1000};
enum {
    NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]),
    NUM_COUNTS = sizeof(token_counts) / sizeof(token_counts[0]),
    NUM_PARTS = sizeof(parts) / sizeof(parts[0]),
    NUM_TOKENS = 1000,
    NUM_TOKENS_SELF = 129,
    LAUNCHED_TOKENS = 129
};

struct bits {
    struct layer_check *check;
    struct layer_case test;
    struct layer_outputs outputs;
    unsigned char *expected; /* of all tokens */
    int64_t num_tokens;
};

/* A window of the tokens, somewhere. */
static void check_window(struct bits *bits, const struct layer_side *side, int64_t num_tokens,
                         const char *what)
{
    const uint64_t places = (uint64_t)(bits->num_tokens - num_tokens + 1);
    const int64_t first = (int64_t)(gpu_random(&bits->check->seed) % places);
    layer_run_device(bits->check, &bits->test, side, &bits->outputs, first, num_tokens, 0);
    const int64_t other = layer_other_bits(&bits->outputs, bits->expected, first, num_tokens);
    layer_report(bits->check, other < 0, &bits->test, num_tokens, what, (double)(first + other));
    layer_report(bits->check, layer_keeps_gaps(&bits->outputs, num_tokens), &bits->test, num_tokens,
                 "guard bands", 0.0);
}

static void check_windows(struct bits *bits, const struct layer_side *side, const char *what)
{
    for (int i = 0; i < NUM_COUNTS; i++) {
        const int is_wanted = (bits->check->modes & LAYER_SELF) == 0 || i % 3 == 0;
        if (token_counts[i] <= bits->num_tokens && is_wanted) {
            check_window(bits, side, token_counts[i], what);
        }
    }
}

struct recorded {
    struct bits *bits;
    const struct layer_side *side;
};

static void record_layer(void *self, CUstream stream)
{
    const struct recorded *recorded = self;
    struct bits *bits = recorded->bits;
    struct layer_call call =
        layer_device_call(bits->check, recorded->side, bits->outputs.device, bits->outputs.stride);
    call.stream = stream;
    call.num_tokens = LAUNCHED_TOKENS;
    layer_queue(bits->check, &bits->test, &call);
}

/* What the plan has, and what it launches. */
static void check_forced(struct bits *bits, const struct layer_side *side,
                         const struct gpu_gemm_tiles *tiles)
{
    struct layer_check *check = bits->check;
    const int32_t layout = bits->test.shape.layout;
    const int may_replace = layout == LAYER_TRANSPOSED || layout == LAYER_PAIRED;
    struct recorded recorded = {bits, side};
    struct gpu_launched launched = {.tiles = tiles};
    const int is_forced = gpu_has_gemm_tiles(check->host, side->plan, 3, tiles, 1) &&
                          gpu_has_gemm_tiles(check->host, side->plan, 3, tiles, bits->num_tokens);
    layer_report(check, is_forced, &bits->test, bits->num_tokens, "the plan has another tile", 0.0);
    gpu_count_launched(check->host, record_layer, &recorded, &launched);
    if ((check->modes & LAYER_SELF) == 0) {
        layer_report(check, launched.num_gemms >= 2, &bits->test, LAUNCHED_TOKENS,
                     "GEMMs among the captured kernels", launched.num_gemms);
        layer_report(check, launched.num_replaced == 0 || may_replace, &bits->test, LAUNCHED_TOKENS,
                     launched.other, launched.num_replaced);
    }
    check->num_plans++;
    check->num_replaced += launched.num_replaced > 0;
}

static void check_tiles(struct bits *bits)
{
    const struct gpu_host *host = bits->check->host;
    struct gpu_gemm_tiles pairs[GPU_MAX_PAIRS];
    const int num_pairs = gpu_list_gemm_tiles(host, pairs);
    layer_report(bits->check, num_pairs > 1, &bits->test, 0, "tiles to choose from", num_pairs);
    for (int i = 0; i < num_pairs; i++) {
        char what[300];
        struct layer_side side;
        gpu_force_gemm_tiles(host, &pairs[i]);
        layer_side_init(&side, bits->check, &bits->test, 1);
        snprintf(what, sizeof(what), "bits of %s, %s", pairs[i].gemm1.name, pairs[i].gemm2.name);
        check_forced(bits, &side, &pairs[i]);
        check_windows(bits, &side, what);
        layer_side_finish(&side, bits->check);
    }
    gpu_force_gemm_tiles(host, NULL);
}

/* Workspaces that hold some of the tokens at a time; the smallest is smaller than the whole. */
static void check_chunks(struct bits *bits, uint64_t whole_bytes)
{
    for (int i = 0; i < NUM_PARTS; i++) {
        struct layer_side side;
        layer_side_init(&side, bits->check, &bits->test, parts[i]);
        layer_report(bits->check, side.workspace_bytes < whole_bytes, &bits->test, bits->num_tokens,
                     "the workspace of chunks", (double)side.workspace_bytes);
        check_window(bits, &side, bits->num_tokens, "bits in chunks");
        check_window(bits, &side, bits->num_tokens / 2 + 1, "bits in chunks");
        check_window(bits, &side, 1, "bits in chunks");
        layer_side_finish(&side, bits->check);
    }
}

/* What all are compared with is right; a router's choice is not known exactly. */
static void check_values(struct bits *bits)
{
    const size_t num_routes = (size_t)bits->num_tokens * (size_t)bits->test.shape.top_k;
    if (bits->test.shape.has_router) {
        return;
    }
    struct layer_values values = {.num_tokens = bits->num_tokens,
                                  .ids = malloc(num_routes * 4),
                                  .weights = malloc(num_routes * 4)};
    layer_run_cpu(bits->check, &bits->test, &bits->outputs, bits->num_tokens, 0, values.ids,
                  values.weights);
    const struct gpu_comparison comparison = layer_compare(&bits->test, &bits->outputs, &values);
    layer_report(bits->check, gpu_is_close(&comparison), &bits->test, bits->num_tokens,
                 "parts of the tolerance", fmax(comparison.worst, comparison.all));
    layer_check_reference(bits->check, &bits->test, &bits->outputs, &values);
    free(values.ids);
    free(values.weights);
}

static void check_shape(struct layer_check *check, const struct layer_shape *shape)
{
    const int failed_before = check->num_failed, checked_before = check->num_checked;
    const int plans_before = check->num_plans, replaced_before = check->num_replaced;
    struct layer_side side;
    struct bits bits = {.check = check};
    bits.num_tokens = (check->modes & LAYER_SELF) != 0 ? NUM_TOKENS_SELF : NUM_TOKENS;
    layer_case_init(&bits.test, check->host, shape, bits.num_tokens, &check->seed);
    layer_outputs_init(&bits.outputs, &bits.test);
    bits.expected = malloc(bits.outputs.bytes);
    layer_draw_inputs(&bits.test, LAYER_UNIFORM, &check->seed);
    layer_side_init(&side, check, &bits.test, 1);
    layer_run_device(check, &bits.test, &side, &bits.outputs, 0, bits.num_tokens, 0);
    memcpy(bits.expected, bits.outputs.cuda, bits.outputs.bytes);
    check_values(&bits);
    check_windows(&bits, &side, "bits of a batch");
    check_tiles(&bits);
    check_chunks(&bits, side.workspace_bytes);
    printf("%-22s %4d comparisons, %d failed, %d plans with forced tiles, %d launch another\n",
           shape->name, check->num_checked - checked_before, check->num_failed - failed_before,
           check->num_plans - plans_before, check->num_replaced - replaced_before);
    fflush(stdout);
    layer_side_finish(&side, check);
    layer_outputs_finish(&bits.outputs);
    free(bits.expected);
    layer_case_finish(&bits.test, check->host);
}

void layer_check_bits(struct layer_check *check, const char *filter)
{
    for (int i = 0; i < NUM_SHAPES; i++) {
        if (layer_is_chosen(check, &shapes[i], filter)) {
            check_shape(check, &shapes[i]);
        }
    }
}
