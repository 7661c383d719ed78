/* SPDX-License-Identifier: Apache-2.0 */
/* experts on the device against the CPU backend: contiguous and masked rows; then windows of rows
 * when the workspace is capped, and replayed captures of every mode, which have the same bits. Rows
 * outside all segments, the gaps between rows and the bytes behind them stay as they were. */
#include "gpu_layer_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_CAPTURE = -1, MOST_ROWS = 1000, MOST_MASKED = 40, PLANTED_ROWS = 100 };

/* One call on both sides. */
struct experts_case {
    struct layer_check *check;
    const struct layer_case *test;
    const char *what;
    int64_t num_rows, max_masked_rows;     /* 0: contiguous */
    void *host_segments, *device_segments; /* seg_indptr, or masked_m */
    struct layer_outputs outputs;
    unsigned char *is_outside; /* rows of no segment */
};

static void set_args(const struct experts_case *experts, int is_cpu, struct moe_experts_args *args)
{
    const struct layer_case *test = experts->test;
    const void *segments = is_cpu ? experts->host_segments : experts->device_segments;
    MOE_INIT_CALL(*args);
    args->weights = is_cpu ? test->cpu_weights : test->cuda_weights;
    args->rows = is_cpu ? test->tokens.host : test->tokens.device;
    args->num_rows = experts->num_rows;
    args->max_masked_rows = experts->max_masked_rows;
    if (experts->max_masked_rows > 0) {
        args->masked_m = segments;
    } else {
        args->seg_indptr = segments;
    }
    if ((test->shape.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0) {
        args->row_weights = is_cpu ? test->weights.host : test->weights.device;
    }
    args->output = is_cpu ? (void *)experts->outputs.cpu : experts->outputs.device;
    args->output_stride = experts->outputs.stride;
}

/* A plan with a workspace of `cap` bytes (0: what it wants), or somewhat more if it needs that. */
static struct moe_plan *make_plan(const struct experts_case *experts, int is_cpu, uint64_t cap)
{
    const struct gpu_host *host = experts->check->host;
    struct moe_error error;
    struct moe_plan *plan = NULL;
    struct moe_plan_options options;
    MOE_INIT(error);
    MOE_INIT(options);
    options.ops = UINT64_C(1) << MOE_OP_EXPERTS;
    options.workspace_cap = cap;
    while (host->api->plan_create(is_cpu ? host->cpu : host->cuda, &experts->test->problem,
                                  &options, &plan, &error) != MOE_STATUS_OK) {
        if (cap == 0 || options.workspace_cap > 4096 * cap) {
            gpu_host_check(error.status, &error, "experts plan");
        }
        options.workspace_cap += options.workspace_cap / 4;
    }
    return plan;
}

/* `mode`: CU_STREAM_CAPTURE_MODE_* of a capture that is replayed twice, or NO_CAPTURE. */
static void run_side(const struct experts_case *experts, int is_cpu, uint64_t cap, int mode)
{
    const struct gpu_host *host = experts->check->host;
    const struct layer_outputs *outputs = &experts->outputs;
    struct moe_error error;
    struct moe_experts_args args;
    struct moe_plan *plan = make_plan(experts, is_cpu, cap);
    MOE_INIT(error);
    set_args(experts, is_cpu, &args);
    args.call.workspace_bytes = layer_workspace_bytes(host, plan);
    const size_t bytes = (args.call.workspace_bytes + 127) / 64 * 64;
    args.call.workspace = is_cpu ? aligned_alloc(64, bytes) : gpu_alloc(bytes);
    if (is_cpu) {
        memset(outputs->cpu, LAYER_POISON, outputs->bytes);
        gpu_host_check(host->api->experts(plan, &args, &error), &error, "experts");
        free(args.call.workspace);
        host->api->plan_destroy(plan);
        return;
    }
    gpu_poison(outputs->device, LAYER_POISON, outputs->bytes);
    gpu_poison(args.call.workspace, LAYER_POISON, bytes);
    args.call.stream = host->stream;
    if (mode != NO_CAPTURE) {
        gpu_graph_begin(host->stream, (CUstreamCaptureMode)mode);
    }
    gpu_host_check(host->api->experts(plan, &args, &error), &error, "experts");
    if (mode != NO_CAPTURE) {
        struct gpu_graph *graph = gpu_graph_end(host->stream);
        gpu_graph_launch(graph, host->stream);
        gpu_graph_launch(graph, host->stream);
        gpu_synchronize(host->stream);
        gpu_graph_free(graph);
    }
    gpu_synchronize(host->stream);
    gpu_download(outputs->cuda, outputs->device, outputs->bytes);
    gpu_free(args.call.workspace);
    host->api->plan_destroy(plan);
}

static void report(const struct experts_case *experts, int is_right, const char *what, double value)
{
    char text[100];
    snprintf(text, sizeof(text), "experts, %s rows, %s", experts->what, what);
    layer_report(experts->check, is_right, experts->test, experts->num_rows, text, value);
}

static int keeps_the_rest(const struct experts_case *experts, const unsigned char *output)
{
    return layer_keeps_rest(&experts->outputs, output, experts->num_rows, experts->is_outside);
}

static struct gpu_comparison compare(const struct experts_case *experts)
{
    const struct layer_shape *shape = &experts->test->shape;
    const struct gpu_result result = {&experts->test->problem, GPU_RESULT_EXPERTS, 0};
    const struct gpu_rows rows = {
        experts->outputs.cuda,   experts->outputs.cpu, experts->num_rows,  shape->hidden,
        experts->outputs.stride, shape->output_dtype,  experts->is_outside};
    return gpu_compare(&result, &rows);
}

/* Mistakes of the device's output that have to be noticed, and its bytes again. */
static void check_planted(const struct experts_case *experts)
{
    const struct layer_outputs *outputs = &experts->outputs;
    const size_t last_of_row = outputs->used_bytes - 1;
    for (int64_t row = 0; row < experts->num_rows && row < PLANTED_ROWS; row++) {
        unsigned char *at = outputs->cuda + (size_t)row * outputs->row_bytes;
        const int is_first = row == 0 || experts->is_outside[row] != experts->is_outside[row - 1];
        if (is_first && experts->is_outside[row]) {
            at[last_of_row] ^= 1;
            report(experts, !keeps_the_rest(experts, outputs->cuda), "not noticed: a byte outside",
                   (double)row);
            experts->check->num_planted++;
            at[last_of_row] ^= 1;
        } else if (is_first) {
            const unsigned char right = at[last_of_row], before = at[last_of_row - 1];
            at[last_of_row] = at[last_of_row - 1] = LAYER_POISON;
            const struct gpu_comparison comparison = compare(experts);
            report(experts, !gpu_is_close(&comparison), "not noticed: an element not written",
                   (double)row);
            experts->check->num_planted++;
            at[last_of_row] = right;
            at[last_of_row - 1] = before;
        }
    }
}

/* Windows of at least a few passes, and captures, have the bits of the whole. */
static void check_case(const struct experts_case *experts)
{
    const struct layer_outputs *outputs = &experts->outputs;
    const int is_self = (experts->check->modes & LAYER_SELF) != 0;
    const int modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                         CU_STREAM_CAPTURE_MODE_RELAXED};
    unsigned char *whole = malloc(outputs->bytes);
    run_side(experts, 1, 0, NO_CAPTURE);
    run_side(experts, 0, 0, NO_CAPTURE);
    const struct gpu_comparison comparison = compare(experts);
    report(experts, gpu_is_close(&comparison), "parts of the tolerance",
           comparison.worst > comparison.all ? comparison.worst : comparison.all);
    report(experts, keeps_the_rest(experts, outputs->cpu), "bytes beside the CPU's rows", 0.0);
    report(experts, keeps_the_rest(experts, outputs->cuda), "bytes beside the rows", 0.0);
    check_planted(experts);
    memcpy(whole, outputs->cuda, outputs->bytes);
    /* A few passes of many experts; passes of parts of an expert. */
    for (int64_t divisor = 3; divisor <= 300; divisor *= 100) {
        const uint64_t row_bytes = (uint64_t)experts->test->shape.inter * 2;
        run_side(experts, 0, row_bytes * (uint64_t)(experts->num_rows / divisor) + 16384,
                 NO_CAPTURE);
        report(experts, memcmp(whole, outputs->cuda, outputs->bytes) == 0, "bits of passes",
               (double)divisor);
    }
    for (int i = 0; i < 3 && !is_self; i++) {
        run_side(experts, 0, 0, modes[i]);
        report(experts, memcmp(whole, outputs->cuda, outputs->bytes) == 0, "bits of a capture", i);
    }
    free(whole);
}

/* Ascending ends of segments with rows in front of them and behind. */
static void draw_segments(struct experts_case *experts)
{
    const int32_t num_experts = experts->test->shape.num_experts;
    const int64_t num_rows = experts->num_rows;
    int64_t *segments = experts->host_segments;
    segments[0] = 3;
    for (int32_t e = 0; e < num_experts; e++) {
        const int64_t left = num_rows - 5 - segments[e];
        const uint64_t most = (uint64_t)(2 * num_rows / num_experts + 1);
        const int64_t count = (int64_t)(gpu_random(&experts->check->seed) % most);
        const int64_t own = e + 1 == num_experts ? left - left / 9 : count;
        segments[e + 1] = segments[e] + (own < left ? own : left);
    }
    for (int64_t row = 0; row < num_rows; row++) {
        experts->is_outside[row] = row < segments[0] || row >= segments[num_experts];
    }
}

/* Rows in use per expert; some counts are out of range. */
static void draw_counts(struct experts_case *experts)
{
    const int64_t most = experts->max_masked_rows;
    int32_t *counts = experts->host_segments;
    for (int32_t e = 0; e < experts->test->shape.num_experts; e++) {
        counts[e] = (int32_t)(gpu_random(&experts->check->seed) % (uint64_t)(most + 3)) - 1;
        for (int64_t i = 0; i < most; i++) {
            experts->is_outside[e * most + i] = i >= counts[e];
        }
    }
}

void layer_check_experts(struct layer_check *check, const struct layer_case *test)
{
    const int32_t num_experts = test->shape.num_experts;
    const size_t segment_bytes = ((size_t)num_experts + 1) * sizeof(int64_t);
    struct experts_case experts = {.check = check, .test = test, .what = "contiguous"};
    layer_outputs_init(&experts.outputs, test);
    experts.host_segments = calloc(1, segment_bytes);
    experts.device_segments = gpu_alloc(segment_bytes);
    experts.is_outside = calloc((size_t)test->max_tokens, 1);

    experts.num_rows = test->max_tokens < MOST_ROWS ? test->max_tokens : MOST_ROWS;
    draw_segments(&experts);
    gpu_upload(experts.device_segments, experts.host_segments, segment_bytes);
    check_case(&experts);

    const int64_t most = test->max_tokens / num_experts;
    experts.what = "masked";
    experts.max_masked_rows = most < MOST_MASKED ? most : MOST_MASKED;
    experts.num_rows = num_experts * experts.max_masked_rows;
    draw_counts(&experts);
    gpu_upload(experts.device_segments, experts.host_segments, segment_bytes);
    check_case(&experts);

    gpu_free(experts.device_segments);
    layer_outputs_finish(&experts.outputs);
    free(experts.host_segments);
    free(experts.is_outside);
}
