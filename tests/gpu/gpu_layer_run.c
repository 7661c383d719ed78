/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_layer_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES_BEHIND = 64, WIDE_ELEMENTS = 350000 };

int layer_is_chosen(const struct layer_check *check, const struct layer_shape *shape,
                    const char *filter)
{
    const int is_wide = (int64_t)shape->hidden * shape->inter > WIDE_ELEMENTS;
    const int is_asked_for = (check->modes & LAYER_SELF) == 0 || filter[0] != '\0';
    return strstr(shape->name, filter) != NULL && (is_asked_for || !is_wide);
}

void layer_report(struct layer_check *check, int is_right, const struct layer_case *test,
                  int64_t num_tokens, const char *what, double value)
{
    check->num_checked++;
    if (!is_right) {
        check->num_failed++;
        printf("FAILED %s, %lld tokens: %s (%.3g)\n", test->shape.name, (long long)num_tokens, what,
               value);
    }
}

void layer_outputs_init(struct layer_outputs *outputs, const struct layer_case *test)
{
    const size_t element_bytes = test->shape.output_dtype == MOE_DTYPE_FP32 ? 4 : 2;
    outputs->stride = test->shape.hidden + LAYER_GAP;
    outputs->row_bytes = (size_t)outputs->stride * element_bytes;
    outputs->used_bytes = (size_t)test->shape.hidden * element_bytes;
    outputs->bytes = (size_t)test->max_tokens * outputs->row_bytes + BYTES_BEHIND;
    outputs->cpu = malloc(outputs->bytes);
    outputs->cuda = malloc(outputs->bytes);
    outputs->device = gpu_alloc(outputs->bytes);
    if (outputs->cpu == NULL || outputs->cuda == NULL) {
        fprintf(stderr, "no host memory\n");
        exit(2);
    }
}

void layer_outputs_finish(struct layer_outputs *outputs)
{
    free(outputs->cpu);
    free(outputs->cuda);
    gpu_free(outputs->device);
}

void layer_side_init(struct layer_side *side, const struct layer_check *check,
                     const struct layer_case *test, uint64_t part)
{
    const struct gpu_host *host = check->host;
    struct moe_error error;
    MOE_INIT(error);
    side->plan = layer_plan(test, host, host->cuda, 0);
    const uint64_t whole = layer_workspace_bytes(host, side->plan);
    if (part > 1) {
        uint64_t cap = whole / part > 0 ? whole / part : 1;
        host->api->plan_destroy(side->plan);
        side->plan = NULL;
        while (layer_try_plan(test, host, host->cuda, cap, &side->plan, &error) != MOE_STATUS_OK) {
            cap += cap / 4 + 1;
            if (cap > 2 * whole) {
                gpu_host_check(error.status, &error, "a plan with a cap");
            }
        }
    }
    side->workspace_bytes = layer_workspace_bytes(host, side->plan);
    side->workspace = gpu_alloc(side->workspace_bytes);
}

void layer_side_finish(struct layer_side *side, const struct layer_check *check)
{
    check->host->api->plan_destroy(side->plan);
    gpu_free(side->workspace);
}

struct layer_call layer_device_call(const struct layer_check *check, const struct layer_side *side,
                                    void *output, int64_t stride)
{
    const struct layer_call call = {.plan = side->plan,
                                    .output = output,
                                    .output_stride = stride,
                                    .workspace = side->workspace,
                                    .workspace_bytes = side->workspace_bytes,
                                    .stream = check->host->stream};
    return call;
}

void layer_queue(const struct layer_check *check, const struct layer_case *test,
                 const struct layer_call *call)
{
    struct moe_error error;
    MOE_INIT(error);
    gpu_host_check(layer_run(test, check->host, call, &error), &error, test->shape.name);
}

/* The sign of the first token's largest element: what the check has to see. */
static void break_result(const struct layer_case *test, const struct layer_outputs *outputs)
{
    const int64_t element_bytes = (int64_t)(outputs->row_bytes / (size_t)outputs->stride);
    int64_t at = 0;
    for (int64_t h = 1; h < test->shape.hidden; h++) {
        at = fabs(gpu_element(outputs->cuda, test->shape.output_dtype, h)) >
                     fabs(gpu_element(outputs->cuda, test->shape.output_dtype, at))
                 ? h
                 : at;
    }
    outputs->cuda[(at + 1) * element_bytes - 1] ^= 0x80;
}

void layer_run_device(const struct layer_check *check, const struct layer_case *test,
                      const struct layer_side *side, struct layer_outputs *outputs, int64_t first,
                      int64_t num_tokens, int32_t has_residual)
{
    struct layer_call call = layer_device_call(check, side, outputs->device, outputs->stride);
    call.first = first;
    call.num_tokens = num_tokens;
    call.wants_residual = has_residual;
    gpu_poison(outputs->device, LAYER_POISON, outputs->bytes);
    gpu_poison(side->workspace, LAYER_POISON, side->workspace_bytes);
    layer_queue(check, test, &call);
    gpu_synchronize(call.stream);
    gpu_download(outputs->cuda, outputs->device, outputs->bytes);
    if ((check->modes & LAYER_BROKEN) != 0 && num_tokens > 0) {
        break_result(test, outputs);
    }
}

void layer_run_cpu(const struct layer_check *check, const struct layer_case *test,
                   struct layer_outputs *outputs, int64_t num_tokens, int32_t has_residual,
                   int32_t *ids, float *weights)
{
    const struct gpu_host *host = check->host;
    struct moe_plan *plan = layer_plan(test, host, host->cpu, 0);
    const uint64_t bytes = layer_workspace_bytes(host, plan);
    void *workspace = aligned_alloc(64, (bytes + 127) / 64 * 64);
    const int is_given = test->shape.gating == MOE_GATING_NONE;
    const size_t num_routes = (size_t)(num_tokens * test->shape.top_k);
    const struct layer_call call = {.plan = plan,
                                    .num_tokens = num_tokens,
                                    .output = outputs->cpu,
                                    .output_stride = outputs->stride,
                                    .workspace = workspace,
                                    .workspace_bytes = bytes,
                                    .is_cpu = 1,
                                    .wants_residual = has_residual,
                                    .ids_out = is_given ? NULL : ids,
                                    .weights_out = is_given ? NULL : weights};
    memset(outputs->cpu, LAYER_POISON, outputs->bytes);
    layer_queue(check, test, &call);
    if (is_given && ids != NULL) {
        memcpy(ids, test->ids.host, 4 * num_routes);
        memcpy(weights, test->weights.host, 4 * num_routes);
    }
    free(workspace);
    host->api->plan_destroy(plan);
}

static int is_poison(const unsigned char *bytes, size_t num_bytes)
{
    return num_bytes == 0 ||
           (bytes[0] == LAYER_POISON && memcmp(bytes, bytes + 1, num_bytes - 1) == 0);
}

int layer_keeps_rest(const struct layer_outputs *outputs, const unsigned char *output,
                     int64_t num_rows, const unsigned char *is_outside)
{
    const size_t behind = (size_t)num_rows * outputs->row_bytes;
    for (int64_t row = 0; row < num_rows; row++) {
        const size_t used = is_outside != NULL && is_outside[row] ? 0 : outputs->used_bytes;
        if (!is_poison(output + (size_t)row * outputs->row_bytes + used,
                       outputs->row_bytes - used)) {
            return 0;
        }
    }
    return is_poison(output + behind, outputs->bytes - behind);
}

int layer_keeps_gaps(const struct layer_outputs *outputs, int64_t num_tokens)
{
    return layer_keeps_rest(outputs, outputs->cuda, num_tokens, NULL);
}

struct gpu_comparison layer_compare(const struct layer_case *test,
                                    const struct layer_outputs *outputs,
                                    const struct layer_values *values)
{
    const struct gpu_result result = {&test->problem, GPU_RESULT_LAYER, test->shape.has_router};
    const struct gpu_rows rows = {outputs->cuda,      outputs->cpu,    values->num_tokens,
                                  test->shape.hidden, outputs->stride, test->shape.output_dtype,
                                  values->is_skipped};
    return gpu_compare(&result, &rows);
}

double layer_compare_reference(const struct layer_case *test, const struct layer_outputs *outputs,
                               int64_t token, const struct layer_expected *expected)
{
    double squares = 0.0, largest = 0.0;
    for (int64_t h = 0; h < test->shape.hidden; h++) {
        const double actual =
            gpu_element(outputs->cuda, test->shape.output_dtype, token * outputs->stride + h);
        const double off = fabs(actual - expected->values[h]);
        if (!(off <= expected->tolerances[h])) { /* also NaN, and anything beside an exact zero */
            return expected->tolerances[h] > 0.0 ? off / expected->tolerances[h] : INFINITY;
        }
        if (off > 0.0) {
            largest = fmax(largest, off / expected->tolerances[h]);
        }
        squares += off * off;
    }
    return squares > 0.0 ? fmax(largest, sqrt(squares) / expected->row_tolerance) : 0.0;
}

int64_t layer_other_bits(const struct layer_outputs *outputs, const unsigned char *expected,
                         int64_t first, int64_t num_tokens)
{
    for (int64_t t = 0; t < num_tokens; t++) {
        const unsigned char *own = outputs->cuda + (size_t)t * outputs->row_bytes;
        const unsigned char *other = expected + (size_t)(first + t) * outputs->row_bytes;
        if (memcmp(own, other, outputs->used_bytes) != 0) {
            return t;
        }
    }
    return -1;
}
