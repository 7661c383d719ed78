/* SPDX-License-Identifier: Apache-2.0 */
/* What has to be the same bits as one call that is queued alone: replayed captures with other
 * inputs, calls on two streams at once, fewer tokens than the host said, packed weights. */
#include "gpu_layer_check.h"

#include <stdlib.h>
#include <string.h>

enum { NUM_TOKENS = 129, REPLAYED_TOKENS = 33, NUM_CALLS = 40, CALL_TOKENS = 129, CALL_STEP = 7 };

static void expect_bits(struct layer_check *check, const struct layer_case *test,
                        const struct layer_outputs *outputs, const unsigned char *expected,
                        int64_t first, int64_t num_tokens, const char *what)
{
    const int64_t other = layer_other_bits(outputs, expected, first, num_tokens);
    layer_report(check, other < 0, test, num_tokens, what, (double)other);
}

struct recorded {
    const struct layer_check *check;
    const struct layer_case *test;
    struct layer_call call;
};

static void record_layer(void *self, CUstream stream)
{
    struct recorded *recorded = self;
    recorded->call.stream = stream;
    layer_queue(recorded->check, recorded->test, &recorded->call);
}

/* Captures of each mode on two kinds of streams, replayed with the inputs of the moment; then the
 * streams of the driver without a capture. */
void layer_check_replay(struct layer_check *check, struct layer_case *test,
                        struct layer_outputs *outputs, int64_t num_tokens)
{
    static const CUstreamCaptureMode modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL,
                                                CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                                                CU_STREAM_CAPTURE_MODE_RELAXED};
    const CUstream eager[] = {NULL, CU_STREAM_PER_THREAD};
    unsigned char *expected = malloc(outputs->bytes);
    struct layer_side side;
    layer_side_init(&side, check, test, 1);
    struct recorded recorded = {check, test,
                                layer_device_call(check, &side, outputs->device, outputs->stride)};
    recorded.call.num_tokens = num_tokens;
    for (int i = 0; i < 6; i++) {
        const CUstream stream = i < 3 ? check->host->stream : CU_STREAM_PER_THREAD;
        struct gpu_graph *graph = gpu_graph_make(stream, modes[i % 3], record_layer, &recorded);
        layer_draw_inputs(test, LAYER_UNIFORM, &check->seed);
        layer_run_device(check, test, &side, outputs, 0, num_tokens, 0);
        memcpy(expected, outputs->cuda, outputs->bytes);
        gpu_poison(outputs->device, LAYER_POISON, outputs->bytes);
        gpu_poison(side.workspace, LAYER_POISON, side.workspace_bytes);
        gpu_graph_launch(graph, stream);
        gpu_graph_launch(graph, stream);
        gpu_synchronize(stream);
        gpu_download(outputs->cuda, outputs->device, outputs->bytes);
        expect_bits(check, test, outputs, expected, 0, num_tokens, "replayed");
        gpu_graph_free(graph);
    }
    for (int i = 0; i < 2; i++) {
        gpu_poison(outputs->device, LAYER_POISON, outputs->bytes);
        record_layer(&recorded, eager[i]);
        gpu_synchronize(eager[i]);
        gpu_download(outputs->cuda, outputs->device, outputs->bytes);
        expect_bits(check, test, outputs, expected, 0, num_tokens, "on the streams of the driver");
    }
    layer_side_finish(&side, check);
    free(expected);
}

/* Calls on two streams in turn, each with tokens and an output of its own; a stream's calls share
 * its workspace. */
static void check_streams(struct layer_check *check, struct layer_case *test,
                          struct layer_outputs *outputs)
{
    enum { ALL_TOKENS = CALL_TOKENS + (NUM_CALLS - 1) * CALL_STEP };
    const size_t call_bytes = CALL_TOKENS * outputs->row_bytes;
    unsigned char *expected = malloc(outputs->bytes);
    unsigned char *results = gpu_alloc(NUM_CALLS * call_bytes);
    struct layer_side sides[2], plain;
    const CUstream streams[2] = {check->host->stream, gpu_stream()};
    layer_side_init(&plain, check, test, 1);
    layer_draw_inputs(test, LAYER_UNIFORM, &check->seed);
    layer_run_device(check, test, &plain, outputs, 0, ALL_TOKENS, 0);
    memcpy(expected, outputs->cuda, outputs->bytes);
    gpu_poison(results, LAYER_POISON, NUM_CALLS * call_bytes);
    for (int i = 0; i < 2; i++) {
        layer_side_init(&sides[i], check, test, 1);
        gpu_poison(sides[i].workspace, LAYER_POISON, sides[i].workspace_bytes);
    }
    for (int i = 0; i < NUM_CALLS; i++) {
        struct layer_call call = layer_device_call(
            check, &sides[i % 2], results + (size_t)i * call_bytes, outputs->stride);
        call.stream = streams[i % 2];
        call.first = i * CALL_STEP;
        call.num_tokens = CALL_TOKENS;
        layer_queue(check, test, &call);
    }
    for (int i = 0; i < 2; i++) {
        gpu_synchronize(streams[i]);
        layer_side_finish(&sides[i], check);
    }
    for (int i = 0; i < NUM_CALLS; i++) {
        gpu_download(outputs->cuda, results + (size_t)i * call_bytes, call_bytes);
        expect_bits(check, test, outputs, expected, i * CALL_STEP, CALL_TOKENS, "two streams");
    }
    layer_side_finish(&plain, check);
    gpu_free(results);
    free(expected);
}

/* Fewer tokens than the host said: rows beyond them are not touched. */
static void check_device_count(struct layer_check *check, struct layer_case *test,
                               struct layer_outputs *outputs, const unsigned char *expected)
{
    const int32_t real = NUM_TOKENS / 2;
    int32_t *count = gpu_alloc(sizeof(*count));
    struct layer_side side;
    layer_side_init(&side, check, test, 1);
    struct layer_call call = layer_device_call(check, &side, outputs->device, outputs->stride);
    call.num_tokens = NUM_TOKENS;
    call.num_tokens_device = count;
    gpu_upload(count, &real, sizeof(real));
    gpu_poison(outputs->device, LAYER_POISON, outputs->bytes);
    gpu_poison(side.workspace, LAYER_POISON, side.workspace_bytes);
    layer_queue(check, test, &call);
    gpu_synchronize(call.stream);
    gpu_download(outputs->cuda, outputs->device, outputs->bytes);
    expect_bits(check, test, outputs, expected, 0, real, "num_tokens_device");
    layer_report(check, layer_keeps_gaps(outputs, real), test, NUM_TOKENS,
                 "rows beyond the real ones", 0.0);
    gpu_free(count);
    layer_side_finish(&side, check);
}

/* The same weights, packed row by row, make the same bits as where they lie. */
static void check_packed(struct layer_check *check, const struct layer_case *test,
                         struct layer_outputs *outputs, const unsigned char *expected)
{
    struct layer_case packed;
    struct layer_side side;
    layer_case_pack(test, check->host, &packed);
    layer_side_init(&side, check, &packed, 1);
    layer_run_device(check, &packed, &side, outputs, 0, NUM_TOKENS, 0);
    expect_bits(check, test, outputs, expected, 0, NUM_TOKENS, "packed weights");
    layer_side_finish(&side, check);
    layer_case_unpack(&packed, check->host);
}

void layer_check_same(struct layer_check *check, struct layer_case *test,
                      struct layer_outputs *outputs)
{
    unsigned char *expected = malloc(outputs->bytes);
    struct layer_side side;
    layer_side_init(&side, check, test, 1);
    layer_draw_inputs(test, LAYER_UNIFORM, &check->seed);
    layer_run_device(check, test, &side, outputs, 0, NUM_TOKENS, 0);
    memcpy(expected, outputs->cuda, outputs->bytes);
    if (test->shape.layout == LAYER_TRANSPOSED || test->shape.layout == LAYER_PAIRED) {
        check_packed(check, test, outputs, expected);
    }
    check_device_count(check, test, outputs, expected);
    layer_side_finish(&side, check);
    free(expected);
    check_streams(check, test, outputs);
    if ((check->modes & LAYER_SELF) == 0) {
        layer_check_replay(check, test, outputs, REPLAYED_TOKENS);
    }
}
