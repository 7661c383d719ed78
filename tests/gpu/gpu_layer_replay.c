/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures that are replayed with other inputs have the bits of calls that are queued alone: below
 * and beyond the numbers of routes at which the sort of a layer changes (512 and 2048), with the
 * tiles of the cost model and every pair of forced ones, whole and in chunks, with tokens counted
 * on the device. Layers of its own; without a device a replay is a call.
 */
#include "gpu_layer_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BF16   MOE_DTYPE_BF16
#define FP16   MOE_DTYPE_FP16
#define SILU   MOE_ACTIVATION_SILU
#define OAI    MOE_ACTIVATION_SWIGLU_OAI
#define BIASES (MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS)

/* Pairs of 144 tokens read in order from 1875 channels on, those of 184 always. */
static const struct layer_shape shapes[] = {
    {"replay", 8, 2, 256, 128, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"replay, one slot", 40, 1, 192, 96, 0, FP16, FP16, SILU, 0, LAYER_TABLE, 0, 0, 0},
    {"replay, biases", 16, 4, 320, 192, 0, FP16, FP16, OAI, BIASES, LAYER_INTERLEAVED, 0, 0, 0},
    {"replay, transposed", 12, 3, 200, 136, 0, BF16, BF16, SILU, 0, LAYER_TRANSPOSED, 0, 0, 0},
    {"replay, in order", 6, 2, 192, 1880, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"replay, shared", 24, 4, 256, 96, 136, BF16, BF16, SILU, MOE_PROBLEM_SHARED_SIGMOID,
     LAYER_FUSED, 0, 0, 1.5f},
    {"replay, router", 64, 6, 256, 96, 0, BF16, BF16, SILU, MOE_PROBLEM_RENORMALIZE, LAYER_FUSED,
     MOE_GATING_SOFTMAX, 1, 0},
};
enum {
    NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]),
    MAX_ROUTES = 4200,
    NUM_CHUNKS = 7 /* at least, of a small workspace */
};

struct replay {
    struct layer_check *check;
    struct layer_case test;
    struct layer_outputs outputs;
    unsigned char *expected;
    struct layer_side side;
    struct layer_call call;
    const char *tiles;              /* that are forced; "": none */
    int is_pair;                    /* GEMM1's of them is a pair */
    int num_in_order, num_gathered; /* captures with tiles of pairs, of the two kinds */
};

static void record_layer(void *self, CUstream stream)
{
    struct replay *replay = self;
    replay->call.stream = stream;
    layer_queue(replay->check, &replay->test, &replay->call);
}

static void report(struct replay *replay, int is_right, const char *what, double value)
{
    char text[300];
    snprintf(text, sizeof(text), "%s%s%s", what, replay->tiles[0] != '\0' ? " with " : "",
             replay->tiles);
    layer_report(replay->check, is_right, &replay->test, replay->call.num_tokens, text, value);
}

/* New inputs of a pattern, then the call alone and the graph: the same bits in the first
 * `num_tokens` rows and nothing behind them. */
static void expect_replay(struct replay *replay, struct gpu_graph *graph, int pattern,
                          int64_t num_tokens, const char *what)
{
    struct layer_outputs *outputs = &replay->outputs;
    layer_draw_inputs(&replay->test, pattern, &replay->check->seed);
    layer_run_device(replay->check, &replay->test, &replay->side, outputs, 0, num_tokens, 0);
    memcpy(replay->expected, outputs->cuda, outputs->bytes);
    gpu_poison(outputs->device, LAYER_POISON, outputs->bytes);
    gpu_poison(replay->side.workspace, LAYER_POISON, replay->side.workspace_bytes);
    gpu_graph_launch(graph, replay->check->host->stream);
    gpu_synchronize(replay->check->host->stream);
    gpu_download(outputs->cuda, outputs->device, outputs->bytes);
    const int64_t other = layer_other_bits(outputs, replay->expected, 0, num_tokens);
    report(replay, other < 0, what, (double)other);
    report(replay, layer_keeps_gaps(outputs, num_tokens), "rows that a replay has not", 0.0);
}

static struct gpu_graph *capture(struct replay *replay)
{
    return gpu_graph_make(replay->check->host->stream, CU_STREAM_CAPTURE_MODE_GLOBAL, record_layer,
                          replay);
}

/* As many tokens as the host says. */
static void check_replays(struct replay *replay, int64_t num_tokens)
{
    const int is_given = replay->test.shape.gating == MOE_GATING_NONE;
    replay->call = layer_device_call(replay->check, &replay->side, replay->outputs.device,
                                     replay->outputs.stride);
    replay->call.num_tokens = num_tokens;
    struct gpu_graph *graph = capture(replay);
    expect_replay(replay, graph, LAYER_UNIFORM, num_tokens, "a replay");
    expect_replay(replay, graph, is_given ? LAYER_HOT : LAYER_UNIFORM, num_tokens, "a replay");
    gpu_graph_free(graph);
}

/* As many as the device says; a call that runs in chunks refuses that. */
static void check_counted_replays(struct replay *replay, int64_t num_tokens)
{
    const int is_given = replay->test.shape.gating == MOE_GATING_NONE;
    const int32_t counts[] = {(int32_t)num_tokens, (int32_t)(num_tokens / 3), 0,
                              (int32_t)(num_tokens - 1)};
    int32_t *count = gpu_alloc(sizeof(*count));
    gpu_upload(count, &counts[0], sizeof(*count)); /* what the capture could read */
    replay->call.num_tokens_device = count;
    struct gpu_graph *graph = capture(replay);
    for (size_t i = 1; i < sizeof(counts) / sizeof(counts[0]); i++) {
        const int pattern = is_given ? (int)(i % LAYER_NUM_PATTERNS) : LAYER_UNIFORM;
        gpu_upload(count, &counts[i], sizeof(*count));
        expect_replay(replay, graph, pattern, counts[i], "a replay with tokens of the device");
    }
    gpu_graph_free(graph);
    gpu_free(count);
}

struct kernels {
    int num_pairs, num_copies;
};

static void count_kernel(void *visitor, const char *name)
{
    struct kernels *kernels = visitor;
    kernels->num_pairs += strstr(name, "GEMM_SM90_PAIR") != NULL;
    kernels->num_copies += strstr(name, "PRE_REORDER") != NULL;
}

/* Do pairs of tiles read copies, or gather? */
static void count_order(struct replay *replay, int64_t num_tokens)
{
    struct kernels kernels = {0, 0};
    replay->call = layer_device_call(replay->check, &replay->side, replay->outputs.device,
                                     replay->outputs.stride);
    replay->call.num_tokens = num_tokens;
    gpu_captured_kernels(replay->check->host->stream, record_layer, replay, count_kernel, &kernels);
    replay->num_in_order += kernels.num_pairs > 0 && kernels.num_copies > 0;
    replay->num_gathered += kernels.num_pairs > 0 && kernels.num_copies == 0;
}

/* A plan that holds all tokens, and one that takes them in chunks. */
static void check_plans(struct replay *replay, const int64_t *counts, int num_counts)
{
    const int is_self = (replay->check->modes & LAYER_SELF) != 0;
    uint64_t whole_bytes = 0;
    for (uint64_t parts = 1; parts <= NUM_CHUNKS; parts += NUM_CHUNKS - 1) {
        layer_side_init(&replay->side, replay->check, &replay->test, parts);
        if (parts == 1) {
            whole_bytes = replay->side.workspace_bytes;
        } else {
            report(replay, replay->side.workspace_bytes < whole_bytes, "the workspace of chunks",
                   (double)replay->side.workspace_bytes);
        }
        for (int i = 0; i < num_counts; i++) {
            check_replays(replay, counts[i]);
            if (parts == 1) {
                check_counted_replays(replay, counts[i]);
            }
        }
        if (parts == 1 && replay->is_pair && !is_self) {
            count_order(replay, counts[0]);
        }
        layer_side_finish(&replay->side, replay->check);
    }
}

static void check_tiles(struct replay *replay, int64_t num_tokens)
{
    const struct gpu_host *host = replay->check->host;
    struct gpu_gemm_tiles pairs[GPU_MAX_PAIRS];
    const int num_pairs = gpu_list_gemm_tiles(host, pairs);
    const int step = (replay->check->modes & LAYER_SELF) != 0 ? 9 : 1;
    report(replay, num_pairs > step, "tiles to choose from", num_pairs);
    for (int i = 0; i < num_pairs; i += step) {
        char text[200];
        snprintf(text, sizeof(text), "%s, %s", pairs[i].gemm1.name, pairs[i].gemm2.name);
        replay->tiles = text;
        replay->is_pair = strcmp(pairs[i].gemm1.kernel, "sm90.pair") == 0;
        gpu_force_gemm_tiles(host, &pairs[i]);
        check_plans(replay, &num_tokens, 1);
        replay->tiles = "";
        replay->is_pair = 0;
    }
    gpu_force_gemm_tiles(host, NULL);
}

static void check_shape(struct layer_check *check, const struct layer_shape *shape)
{
    const int is_self = (check->modes & LAYER_SELF) != 0;
    const int failed_before = check->num_failed, checked_before = check->num_checked;
    const int64_t k = shape->top_k;
    /* At most 512 routes, more, at most 2048, more, many. */
    const int64_t counts[] = {512 / k, 512 / k + 1, 2048 / k, 2048 / k + 1, MAX_ROUTES / k};
    const int64_t few[] = {300 / k};
    struct replay replay = {.check = check, .tiles = ""};
    layer_case_init(&replay.test, check->host, shape, is_self ? few[0] : counts[4], &check->seed);
    layer_outputs_init(&replay.outputs, &replay.test);
    replay.expected = malloc(replay.outputs.bytes);
    check_plans(&replay, is_self ? few : counts, is_self ? 1 : 5);
    check_tiles(&replay, is_self ? few[0] : 2048 / k + 1);
    if (!is_self && shape->layout == LAYER_FUSED) {
        report(&replay, replay.num_in_order > 0, "pairs of tiles that read in order",
               replay.num_in_order);
        report(&replay, (replay.num_gathered > 0) == (shape->inter < 1875),
               "pairs of tiles that gather", replay.num_gathered);
    }
    printf("%-22s %4d comparisons, %d failed, pairs of tiles: %d in order, %d gathered\n",
           shape->name, check->num_checked - checked_before, check->num_failed - failed_before,
           replay.num_in_order, replay.num_gathered);
    fflush(stdout);
    free(replay.expected);
    layer_outputs_finish(&replay.outputs);
    layer_case_finish(&replay.test, check->host);
}

void layer_check_replays(struct layer_check *check, const char *filter)
{
    for (int i = 0; i < NUM_SHAPES; i++) {
        if (layer_is_chosen(check, &shapes[i], filter)) {
            check_shape(check, &shapes[i]);
        }
    }
}
