/* SPDX-License-Identifier: Apache-2.0 */
/* experts on the GPU against the CPU backend: contiguous and masked rows; then windows of rows when
 * the workspace is capped, and replayed captures of every mode, which have the same bits. */
#include "gpu_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POISON = 0xff };
static const double max_relative = 5e-3;

/* One call on both sides. */
struct experts_case {
    const struct gpu_host *host;
    const struct layer_case *test;
    int64_t num_rows;
    void *host_segments, *device_segments; /* seg_indptr, or masked_m */
    int64_t max_masked_rows;               /* 0: contiguous */
    unsigned char *cpu, *cuda;             /* outputs on the host */
    size_t bytes;
};

enum { NO_CAPTURE = -1 };

/* `mode`: CU_STREAM_CAPTURE_MODE_* of a capture that is replayed twice, or NO_CAPTURE. */
static int run_side(const struct experts_case *experts, int is_cpu, uint64_t cap, int mode)
{
    const struct gpu_host *host = experts->host;
    const struct layer_case *test = experts->test;
    struct moe_error error;
    struct moe_plan *plan = NULL;
    struct moe_plan_info info;
    struct moe_plan_options options;
    struct moe_experts_args args;
    MOE_INIT(error);
    MOE_INIT(info);
    MOE_INIT(options);
    MOE_INIT_CALL(args);
    options.ops = UINT64_C(1) << MOE_OP_EXPERTS;
    options.workspace_cap = cap;
    gpu_host_check(host->api->plan_create(is_cpu ? host->cpu : host->cuda, &test->problem, &options,
                                          &plan, &error),
                   &error, "experts plan");
    gpu_host_check(host->api->plan_info(plan, &info, &error), &error, "plan_info");
    const size_t bytes = (info.workspace_bytes + 127) / 64 * 64;
    void *workspace = is_cpu ? aligned_alloc(64, bytes) : gpu_alloc(bytes);
    void *output = is_cpu ? experts->cpu : gpu_alloc(experts->bytes);
    const void *segments = is_cpu ? experts->host_segments : experts->device_segments;
    args.call.stream = is_cpu ? NULL : host->stream;
    args.call.workspace = workspace;
    args.call.workspace_bytes = info.workspace_bytes;
    args.weights = is_cpu ? test->cpu_weights : test->cuda_weights;
    args.rows = is_cpu ? test->tokens.host : test->tokens.device;
    args.num_rows = experts->num_rows;
    args.max_masked_rows = experts->max_masked_rows;
    if (experts->max_masked_rows > 0) {
        args.masked_m = segments;
    } else {
        args.seg_indptr = segments;
    }
    if ((test->shape.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0) {
        args.row_weights = is_cpu ? test->weights.host : test->weights.device;
    }
    args.output = output;
    if (is_cpu) {
        memset(output, POISON, experts->bytes);
    } else {
        gpu_poison(output, POISON, experts->bytes);
        gpu_poison(workspace, POISON, bytes);
    }
    if (mode != NO_CAPTURE) {
        gpu_graph_begin(host->stream, (CUstreamCaptureMode)mode);
    }
    const int32_t status = host->api->experts(plan, &args, &error);
    if (status != MOE_STATUS_OK) {
        printf("%s\n", error.message);
    }
    if (mode != NO_CAPTURE) {
        struct gpu_graph *graph = gpu_graph_end(host->stream);
        gpu_graph_launch(graph, host->stream);
        gpu_graph_launch(graph, host->stream);
        gpu_synchronize(host->stream);
        gpu_graph_free(graph);
    }
    if (is_cpu) {
        free(workspace);
    } else {
        gpu_synchronize(host->stream);
        gpu_download(experts->cuda, output, experts->bytes);
        gpu_free(output);
        gpu_free(workspace);
    }
    host->api->plan_destroy(plan);
    return status == MOE_STATUS_OK;
}

/* Relative L2; rows that nobody writes are the same poison on both sides. */
static double compare(const struct experts_case *experts)
{
    const int32_t dtype = experts->test->shape.output_dtype;
    const int64_t count = experts->num_rows * experts->test->shape.hidden;
    double sum = 0.0, norm = 0.0;
    for (int64_t i = 0; i < count; i++) {
        const double a = layer_element(experts->cuda, dtype, i);
        const double b = layer_element(experts->cpu, dtype, i);
        if (a != a && b != b) {
            continue;
        }
        sum += (a - b) * (a - b);
        norm += b * b;
    }
    return norm > 0.0 ? sqrt(sum / norm) : sqrt(sum);
}

/* 1 if right; windows of at least a few passes have the bits of the whole. */
static int check_case(struct experts_case *experts, const char *what)
{
    unsigned char *whole = malloc(experts->bytes);
    int is_right = run_side(experts, 1, 0, NO_CAPTURE) && run_side(experts, 0, 0, NO_CAPTURE);
    const double relative = compare(experts);
    is_right = is_right && relative < max_relative;
    memcpy(whole, experts->cuda, experts->bytes);
    /* A few passes of many experts; passes of parts of an expert. */
    for (int64_t divisor = 3; is_right && divisor <= 300; divisor *= 100) {
        const uint64_t row_bytes = (uint64_t)experts->test->shape.inter * 2;
        const uint64_t cap = row_bytes * (uint64_t)(experts->num_rows / divisor) + 16384;
        is_right = run_side(experts, 0, cap, NO_CAPTURE) &&
                   memcmp(whole, experts->cuda, experts->bytes) == 0;
    }
    const int modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                         CU_STREAM_CAPTURE_MODE_RELAXED};
    for (int i = 0; is_right && i < 3; i++) {
        is_right =
            run_side(experts, 0, 0, modes[i]) && memcmp(whole, experts->cuda, experts->bytes) == 0;
    }
    if (!is_right) {
        printf("FAILED %s: experts, %s rows (relative L2 %.3g)\n", experts->test->shape.name, what,
               relative);
    }
    free(whole);
    return is_right;
}

/* Ascending ends of segments that cover all rows. */
static void draw_segments(int64_t *segments, int32_t num_experts, int64_t num_rows, uint64_t *seed)
{
    segments[0] = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        const int64_t left = num_rows - segments[e];
        const uint64_t most = (uint64_t)(2 * num_rows / num_experts + 1);
        const int64_t count = (int64_t)(gpu_random(seed) % most);
        segments[e + 1] =
            e + 1 == num_experts ? num_rows : segments[e] + (count < left ? count : left);
    }
}

int layer_check_experts(const struct gpu_host *host, const struct layer_case *test, uint64_t *seed)
{
    const int32_t num_experts = test->shape.num_experts;
    const int64_t rows = test->max_tokens < 1000 ? test->max_tokens : 1000;
    const int64_t most_masked = test->max_tokens / num_experts;
    struct experts_case experts = {.host = host, .test = test};
    const size_t segment_bytes = ((size_t)num_experts + 1) * sizeof(int64_t);
    int num_wrong = 0;
    experts.bytes = (size_t)test->max_tokens * (size_t)test->shape.hidden *
                    (test->shape.output_dtype == MOE_DTYPE_FP32 ? 4 : 2);
    experts.cpu = malloc(experts.bytes);
    experts.cuda = malloc(experts.bytes);
    experts.host_segments = malloc(segment_bytes);
    experts.device_segments = gpu_alloc(segment_bytes);

    experts.num_rows = rows;
    draw_segments(experts.host_segments, num_experts, rows, seed);
    gpu_upload(experts.device_segments, experts.host_segments, segment_bytes);
    num_wrong += !check_case(&experts, "contiguous");

    experts.max_masked_rows = most_masked < 40 ? most_masked : 40;
    experts.num_rows = num_experts * experts.max_masked_rows;
    for (int32_t e = 0; e < num_experts; e++) { /* some counts are out of range */
        ((int32_t *)experts.host_segments)[e] =
            (int32_t)(gpu_random(seed) % (uint64_t)(experts.max_masked_rows + 3)) - 1;
    }
    gpu_upload(experts.device_segments, experts.host_segments, segment_bytes);
    num_wrong += !check_case(&experts, "masked");

    gpu_free(experts.device_segments);
    free(experts.host_segments);
    free(experts.cpu);
    free(experts.cuda);
    return num_wrong;
}
