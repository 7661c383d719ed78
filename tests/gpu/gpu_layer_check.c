/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers on the GPU against the CPU backend (relative L2 and every element) and, small ones,
 * against double arithmetic. Outputs stand between poisoned gaps, outputs and workspace are
 * poisoned with NaN. Then what has to be the same bits: every tile, a token alone, chunks, a
 * replayed capture with other inputs, two streams at once, fewer tokens than the host said.
 */
#include "gpu_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GAP = 8, POISON = 0xff, MAX_TILES = 4096, MAX_REFERENCE = 3, BRIEF_TOKENS = 65 };
static const double max_relative = 5e-3;

#define BF16           MOE_DTYPE_BF16
#define FP16           MOE_DTYPE_FP16
#define FP32           MOE_DTYPE_FP32
#define SILU           MOE_ACTIVATION_SILU
#define BIASES         (MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS)
#define SHARED_SIGMOID MOE_PROBLEM_SHARED_SIGMOID

static const struct layer_shape shapes[] = {
    {"plain", 8, 2, 512, 256, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"many experts", 512, 10, 256, 64, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"one expert", 1, 1, 128, 192, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"odd widths", 60, 4, 2880, 88, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"fp16, fp32 out", 16, 4, 264, 704, 0, FP16, FP32, MOE_ACTIVATION_GELU, 0, LAYER_FUSED, 0, 0,
     2.5f},
    {"oai, biases", 32, 4, 576, 320, 0, BF16, BF16, MOE_ACTIVATION_SWIGLU_OAI, BIASES,
     LAYER_INTERLEAVED, 0, 0, 0},
    {"oai, paired", 32, 4, 576, 320, 0, BF16, BF16, MOE_ACTIVATION_SWIGLU_OAI, BIASES, LAYER_PAIRED,
     0, 0, 0},
    {"paired, fp16", 12, 3, 456, 136, 0, FP16, FP16, SILU, 0, LAYER_PAIRED, 0, 0, 0},
    {"transposed", 12, 3, 456, 136, 0, BF16, BF16, SILU, 0, LAYER_TRANSPOSED, 0, 0, 0},
    {"transposed, fp32 out", 8, 2, 512, 256, 0, FP16, FP32, MOE_ACTIVATION_GELU, BIASES,
     LAYER_TRANSPOSED, 0, 0, 0},
    {"transposed, ungated", 16, 2, 256, 384, 0, BF16, BF16, MOE_ACTIVATION_RELU2,
     MOE_PROBLEM_UNGATED, LAYER_TRANSPOSED, 0, 0, 0},
    {"experts apart", 20, 3, 192, 96, 0, BF16, BF16, MOE_ACTIVATION_GELU_TANH, 0, LAYER_TABLE, 0, 0,
     0},
    {"ungated", 16, 2, 256, 384, 0, FP16, FP16, MOE_ACTIVATION_RELU2, MOE_PROBLEM_UNGATED,
     LAYER_FUSED, 0, 0, 0},
    {"weight on input", 16, 1, 320, 128, 0, BF16, BF16, SILU, MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT,
     LAYER_FUSED, 0, 0, 0},
    {"shared, sigmoid", 24, 4, 512, 192, 448, BF16, BF16, SILU, SHARED_SIGMOID, LAYER_FUSED, 0, 0,
     1.5f},
    {"shared, ungated", 24, 4, 512, 192, 72, BF16, BF16, MOE_ACTIVATION_RELU2, MOE_PROBLEM_UNGATED,
     LAYER_FUSED, 0, 0, 0},
    {"softmax", 128, 8, 256, 96, 0, BF16, BF16, SILU, MOE_PROBLEM_RENORMALIZE, LAYER_FUSED,
     MOE_GATING_SOFTMAX, 0, 0},
    {"router", 64, 6, 1024, 96, 128, BF16, BF16, SILU, MOE_PROBLEM_RENORMALIZE, LAYER_FUSED,
     MOE_GATING_SOFTMAX, 1, 0},
};
static const int64_t token_counts[] = {0, 1, 2, 7, 8, 9, 63, 64, 65, 127, 129, 1000, 4096};
enum {
    NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]),
    NUM_COUNTS = sizeof(token_counts) / sizeof(token_counts[0]),
    MAX_TOKENS = 4096
};

static const struct gpu_host *host;
static uint64_t seed;
static int num_checked, num_failed;

/* Outputs on both sides, with gaps between the rows. */
struct outputs {
    unsigned char *cpu, *cuda; /* on the host */
    void *device;
    int64_t stride; /* elements */
    size_t element_bytes, bytes;
};

static void report(int is_right, const struct layer_case *test, int64_t num_tokens,
                   const char *what, double value)
{
    num_checked++;
    if (!is_right) {
        num_failed++;
        printf("FAILED %s, %lld tokens: %s (%.3g)\n", test->shape.name, (long long)num_tokens, what,
               value);
    }
}

static struct outputs make_outputs(const struct layer_case *test)
{
    struct outputs outputs = {.stride = test->shape.hidden + GAP,
                              .element_bytes = test->shape.output_dtype == FP32 ? 4 : 2};
    outputs.bytes = (size_t)test->max_tokens * (size_t)outputs.stride * outputs.element_bytes + 64;
    outputs.cpu = malloc(outputs.bytes);
    outputs.cuda = malloc(outputs.bytes);
    outputs.device = gpu_alloc(outputs.bytes);
    return outputs;
}

static void free_outputs(struct outputs *outputs)
{
    free(outputs->cpu);
    free(outputs->cuda);
    gpu_free(outputs->device);
}

/* A plan and its workspace on one side. */
struct side {
    struct moe_plan *plan;
    void *workspace;
    uint64_t workspace_bytes;
};

static struct side make_cuda_side(const struct layer_case *test, uint64_t cap)
{
    struct side side = {.plan = layer_plan(test, host, host->cuda, cap)};
    side.workspace_bytes = layer_workspace_bytes(host, side.plan);
    side.workspace = gpu_alloc(side.workspace_bytes);
    return side;
}

static void free_cuda_side(struct side *side)
{
    host->api->plan_destroy(side->plan);
    gpu_free(side->workspace);
}

static void run_cuda(const struct layer_case *test, const struct side *side,
                     struct outputs *outputs, int64_t first, int64_t num_tokens, int32_t residual)
{
    struct moe_error error;
    const struct layer_call call = {.plan = side->plan,
                                    .first = first,
                                    .num_tokens = num_tokens,
                                    .output = outputs->device,
                                    .output_stride = outputs->stride,
                                    .workspace = side->workspace,
                                    .workspace_bytes = side->workspace_bytes,
                                    .stream = host->stream,
                                    .wants_residual = residual};
    MOE_INIT(error);
    gpu_poison(outputs->device, POISON, outputs->bytes);
    gpu_poison(side->workspace, POISON, side->workspace_bytes);
    gpu_host_check(layer_run(test, host, &call, &error), &error, test->shape.name);
    gpu_synchronize(host->stream);
    gpu_download(outputs->cuda, outputs->device, outputs->bytes);
}

static void run_cpu(const struct layer_case *test, struct outputs *outputs, int64_t num_tokens,
                    int32_t residual)
{
    struct moe_error error;
    struct moe_plan *plan = layer_plan(test, host, host->cpu, 0);
    const uint64_t bytes = layer_workspace_bytes(host, plan);
    void *workspace = aligned_alloc(64, (bytes + 127) / 64 * 64);
    const struct layer_call call = {.plan = plan,
                                    .num_tokens = num_tokens,
                                    .output = outputs->cpu,
                                    .output_stride = outputs->stride,
                                    .workspace = workspace,
                                    .workspace_bytes = bytes,
                                    .wants_residual = residual};
    MOE_INIT(error);
    memset(outputs->cpu, POISON, outputs->bytes);
    gpu_host_check(layer_run(test, host, &call, &error), &error, test->shape.name);
    free(workspace);
    host->api->plan_destroy(plan);
}

/* Gaps and rows beyond the call's are as they were poisoned. */
static int are_gaps_kept(const struct layer_case *test, const struct outputs *outputs,
                         int64_t num_tokens)
{
    const size_t row = (size_t)outputs->stride * outputs->element_bytes;
    const size_t used = (size_t)test->shape.hidden * outputs->element_bytes;
    for (size_t i = 0; i < outputs->bytes; i++) {
        const int is_output = i / row < (size_t)num_tokens && i % row < used;
        if (!is_output && outputs->cuda[i] != POISON) {
            return 0;
        }
    }
    return 1;
}

/* Relative L2 over all tokens; the worst token's beside it. NaN where one side has it alone. */
static double compare(const struct layer_case *test, const struct outputs *outputs,
                      int64_t num_tokens, double *worst)
{
    const int32_t dtype = test->shape.output_dtype;
    double sum = 0.0, norm = 0.0;
    *worst = 0.0;
    for (int64_t t = 0; t < num_tokens; t++) {
        double row_sum = 0.0, row_norm = 0.0;
        for (int64_t h = 0; h < test->shape.hidden; h++) {
            const double a = layer_element(outputs->cuda, dtype, t * outputs->stride + h);
            const double b = layer_element(outputs->cpu, dtype, t * outputs->stride + h);
            row_sum += (a - b) * (a - b);
            row_norm += b * b;
        }
        sum += row_sum;
        norm += row_norm;
        const double row = row_norm > 0.0 ? sqrt(row_sum / row_norm) : sqrt(row_sum);
        *worst = row > *worst || row != row ? row : *worst;
    }
    return norm > 0.0 ? sqrt(sum / norm) : sqrt(sum);
}

/* A few tokens against double arithmetic. */
static void check_reference(const struct layer_case *test, const struct outputs *outputs,
                            int64_t num_tokens)
{
    double *expected = malloc((size_t)test->shape.hidden * sizeof(*expected));
    for (int64_t t = 0; t < num_tokens && t < MAX_REFERENCE; t++) {
        double sum = 0.0, norm = 0.0;
        layer_reference(test, t, expected);
        for (int64_t h = 0; h < test->shape.hidden; h++) {
            const double a =
                layer_element(outputs->cuda, test->shape.output_dtype, t * outputs->stride + h);
            sum += (a - expected[h]) * (a - expected[h]);
            norm += expected[h] * expected[h];
        }
        const double relative = norm > 0.0 ? sqrt(sum / norm) : sqrt(sum);
        report(relative < max_relative, test, num_tokens, "against double arithmetic", relative);
    }
    free(expected);
}

/* Tokens whose experts are the same on both sides, when the router's own logits choose them. */
static double check_counts(struct layer_case *test, struct outputs *outputs, int is_brief)
{
    double largest = 0.0;
    struct side side = make_cuda_side(test, 0);
    for (int i = 0; i < NUM_COUNTS; i++) {
        double worst;
        const int64_t num_tokens = token_counts[i];
        if (is_brief && num_tokens != BRIEF_TOKENS) {
            continue;
        }
        const int pattern = test->shape.gating == MOE_GATING_NONE
                                ? (int)(gpu_random(&seed) % LAYER_NUM_PATTERNS)
                                : LAYER_UNIFORM;
        const int32_t residual = (int32_t)(gpu_random(&seed) % 2);
        if (test->shape.top_k == test->shape.num_experts && pattern == LAYER_HOT) {
            continue;
        }
        layer_draw_inputs(test, pattern, &seed);
        run_cuda(test, &side, outputs, 0, num_tokens, residual);
        run_cpu(test, outputs, num_tokens, residual);
        const double relative = compare(test, outputs, num_tokens, &worst);
        report(relative < max_relative, test, num_tokens, "relative L2", relative);
        /* Near ties of a router's logits may fall either way: a token of a few may differ. */
        report(test->shape.has_router || worst < 4.0 * max_relative, test, num_tokens,
               "relative L2 of a token", worst);
        report(are_gaps_kept(test, outputs, num_tokens), test, num_tokens, "guard bands", 0.0);
        if (!residual && test->shape.gating == MOE_GATING_NONE && num_tokens < 64) {
            check_reference(test, outputs, num_tokens);
        }
        largest = relative > largest ? relative : largest;
    }
    free_cuda_side(&side);
    return largest;
}

/* The bits of the last run of run_cuda, to hold others against. */
static void expect_bits(const struct layer_case *test, const struct outputs *outputs,
                        const unsigned char *expected, int64_t first, int64_t num_tokens,
                        const char *what)
{
    const size_t row = (size_t)outputs->stride * outputs->element_bytes;
    const size_t used = (size_t)test->shape.hidden * outputs->element_bytes;
    for (int64_t t = 0; t < num_tokens; t++) {
        if (memcmp(outputs->cuda + (size_t)t * row, expected + (size_t)(first + t) * row, used) !=
            0) {
            report(0, test, num_tokens, what, (double)t);
            return;
        }
    }
    report(1, test, num_tokens, what, 0.0);
}

static void check_tiles(struct layer_case *test, struct outputs *outputs,
                        const unsigned char *expected, int64_t num_tokens)
{
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; i < MAX_TILES && host->api->tile_info(i, &tile, NULL) == MOE_STATUS_OK;
         i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.op != MOE_OP_GEMM1 || !tile.built) {
            continue;
        }
        layer_force_tile(host, &tile);
        struct side side = make_cuda_side(test, 0);
        run_cuda(test, &side, outputs, 0, num_tokens, 0);
        expect_bits(test, outputs, expected, 0, num_tokens, tile.name);
        free_cuda_side(&side);
    }
    layer_force_tile(host, NULL);
}

struct recorded {
    const struct layer_case *test;
    struct layer_call call;
};

static void record_layer(void *self, CUstream stream)
{
    struct moe_error error;
    struct recorded *recorded = self;
    recorded->call.stream = stream;
    recorded->call.is_default_stream = stream == NULL;
    MOE_INIT(error);
    gpu_host_check(layer_run(recorded->test, host, &recorded->call, &error), &error, "captured");
}

/* Captures of each mode on two kinds of streams, replayed with the inputs of the moment; then the
 * streams of the driver without a capture. */
static void check_replay(struct layer_case *test, struct outputs *outputs, int64_t num_tokens)
{
    struct side side = make_cuda_side(test, 0);
    unsigned char *expected = malloc(outputs->bytes);
    struct recorded recorded = {test,
                                {.plan = side.plan,
                                 .num_tokens = num_tokens,
                                 .output = outputs->device,
                                 .output_stride = outputs->stride,
                                 .workspace = side.workspace,
                                 .workspace_bytes = side.workspace_bytes}};
    static const CUstreamCaptureMode modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL,
                                                CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                                                CU_STREAM_CAPTURE_MODE_RELAXED};
    for (int i = 0; i < 6; i++) {
        const CUstream stream = i < 3 ? host->stream : CU_STREAM_PER_THREAD;
        struct gpu_graph *graph = gpu_graph_make(stream, modes[i % 3], record_layer, &recorded);
        layer_draw_inputs(test, LAYER_UNIFORM, &seed);
        run_cuda(test, &side, outputs, 0, num_tokens, 0);
        memcpy(expected, outputs->cuda, outputs->bytes);
        gpu_poison(outputs->device, POISON, outputs->bytes);
        gpu_poison(side.workspace, POISON, side.workspace_bytes);
        gpu_graph_launch(graph, stream);
        gpu_graph_launch(graph, stream);
        gpu_synchronize(stream);
        gpu_download(outputs->cuda, outputs->device, outputs->bytes);
        expect_bits(test, outputs, expected, 0, num_tokens, "replayed");
        gpu_graph_free(graph);
    }
    const CUstream eager[] = {NULL, CU_STREAM_PER_THREAD};
    for (int i = 0; i < 2; i++) {
        gpu_poison(outputs->device, POISON, outputs->bytes);
        record_layer(&recorded, eager[i]);
        gpu_synchronize(eager[i]);
        gpu_download(outputs->cuda, outputs->device, outputs->bytes);
        expect_bits(test, outputs, expected, 0, num_tokens, "on the streams of the driver");
    }
    free_cuda_side(&side);
    free(expected);
}

/* The same call on two streams at once, many times. */
static void check_streams(struct layer_case *test, struct outputs *outputs,
                          const unsigned char *expected, int64_t num_tokens, CUstream other)
{
    struct moe_error error;
    struct side sides[2] = {make_cuda_side(test, 0), make_cuda_side(test, 0)};
    struct outputs second = make_outputs(test);
    void *device[2] = {outputs->device, second.device};
    CUstream streams[2] = {host->stream, other};
    MOE_INIT(error);
    for (int i = 0; i < 40; i++) {
        const struct layer_call call = {.plan = sides[i % 2].plan,
                                        .num_tokens = num_tokens,
                                        .output = device[i % 2],
                                        .output_stride = outputs->stride,
                                        .workspace = sides[i % 2].workspace,
                                        .workspace_bytes = sides[i % 2].workspace_bytes,
                                        .stream = streams[i % 2]};
        gpu_host_check(layer_run(test, host, &call, &error), &error, "streams");
    }
    for (int i = 0; i < 2; i++) {
        gpu_synchronize(streams[i]);
        gpu_download(outputs->cuda, device[i], outputs->bytes);
        expect_bits(test, outputs, expected, 0, num_tokens, "two streams");
        free_cuda_side(&sides[i]);
    }
    free_outputs(&second);
}

/* A replayed graph with fewer tokens than its host said: rows beyond them are not touched. */
static void check_device_count(struct layer_case *test, struct outputs *outputs,
                               const unsigned char *expected, int64_t num_tokens)
{
    struct moe_error error;
    struct side side = make_cuda_side(test, 0);
    int32_t real = (int32_t)(num_tokens / 2);
    void *count = gpu_alloc(sizeof(real));
    const struct layer_call call = {.plan = side.plan,
                                    .num_tokens = num_tokens,
                                    .output = outputs->device,
                                    .output_stride = outputs->stride,
                                    .workspace = side.workspace,
                                    .workspace_bytes = side.workspace_bytes,
                                    .stream = host->stream,
                                    .num_tokens_device = count};
    MOE_INIT(error);
    gpu_upload(count, &real, sizeof(real));
    gpu_poison(outputs->device, POISON, outputs->bytes);
    gpu_poison(side.workspace, POISON, side.workspace_bytes);
    gpu_host_check(layer_run(test, host, &call, &error), &error, "num_tokens_device");
    gpu_synchronize(host->stream);
    gpu_download(outputs->cuda, outputs->device, outputs->bytes);
    expect_bits(test, outputs, expected, 0, real, "num_tokens_device");
    report(are_gaps_kept(test, outputs, real), test, num_tokens, "rows beyond the real ones", 0.0);
    gpu_free(count);
    free_cuda_side(&side);
}

/* The same weights, packed row by row, make the same bits as where they lie. */
static void check_packed(const struct layer_case *test, struct outputs *outputs,
                         const unsigned char *expected, int64_t num_tokens)
{
    struct layer_case packed;
    layer_case_pack(test, host, &packed);
    struct side side = make_cuda_side(&packed, 0);
    run_cuda(&packed, &side, outputs, 0, num_tokens, 0);
    expect_bits(test, outputs, expected, 0, num_tokens, "packed weights");
    free_cuda_side(&side);
    layer_case_unpack(&packed, host);
}

static void check_bits(struct layer_case *test, struct outputs *outputs, CUstream other)
{
    const int64_t num_tokens = 129;
    unsigned char *expected = malloc(outputs->bytes);
    struct side side = make_cuda_side(test, 0);
    layer_draw_inputs(test, LAYER_UNIFORM, &seed);
    run_cuda(test, &side, outputs, 0, num_tokens, 0);
    memcpy(expected, outputs->cuda, outputs->bytes);
    check_tiles(test, outputs, expected, num_tokens);
    if (test->shape.layout == LAYER_TRANSPOSED || test->shape.layout == LAYER_PAIRED) {
        check_packed(test, outputs, expected, num_tokens);
    }
    for (int64_t t = 0; t < num_tokens; t += 16) {
        run_cuda(test, &side, outputs, t, 1, 0);
        expect_bits(test, outputs, expected, t, 1, "a token alone");
    }
    struct side chunked = make_cuda_side(test, side.workspace_bytes / 40);
    run_cuda(test, &chunked, outputs, 0, num_tokens, 0);
    expect_bits(test, outputs, expected, 0, num_tokens, "chunks");
    free_cuda_side(&chunked);
    check_streams(test, outputs, expected, num_tokens, other);
    check_device_count(test, outputs, expected, num_tokens);
    free_cuda_side(&side);
    check_replay(test, outputs, 33);
    free(expected);
}

int layer_check(const struct gpu_host *gpu, uint64_t first_seed, const char *filter, int is_brief)
{
    CUstream other = gpu_stream();
    host = gpu;
    seed = first_seed;
    for (int i = 0; i < NUM_SHAPES; i++) {
        struct layer_case test;
        const int failed_before = num_failed, checked_before = num_checked;
        if (strstr(shapes[i].name, filter) == NULL) {
            continue;
        }
        layer_case_init(&test, host, &shapes[i], is_brief ? BRIEF_TOKENS : MAX_TOKENS, &seed);
        struct outputs outputs = make_outputs(&test);
        const double largest = check_counts(&test, &outputs, is_brief);
        if (is_brief) {
            check_replay(&test, &outputs, BRIEF_TOKENS);
        } else {
            check_bits(&test, &outputs, other);
            num_failed += layer_check_experts(host, &test, &seed);
            num_checked += 2;
        }
        printf("%-16s %4d comparisons, %d failed, relative L2 up to %.2e\n", shapes[i].name,
               num_checked - checked_before, num_failed - failed_before, largest);
        fflush(stdout);
        free_outputs(&outputs);
        layer_case_finish(&test, host);
    }
    printf("%d passed, %d failed\n", num_checked - num_failed, num_failed);
    return num_failed > 0 ? 1 : 0;
}
