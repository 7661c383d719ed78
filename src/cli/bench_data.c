/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_data.h"

#include "bench_case.h"
#include "element.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEGABYTE = 1000000,
    MIN_COPIES = 2,
    MAX_COPIES = 1024,
    COLD_MEGABYTES = 128,
    CACHES = 4, /* times the last-level cache, for data */
    /* Of the available memory, in hundredths; the rest is for the system and the workspace. */
    MEMORY_PERCENT = 70
};

int moe_bench_data_init(struct moe_bench_data *data, const struct moe_plugin_host *host,
                        const struct moe_bench_options *options, uint64_t ops,
                        const struct moe_bench_place *place, struct moe_cli_error *error)
{
    memset(data, 0, sizeof *data);
    data->api = host->api;
    data->problem = &options->problem;
    data->place = *place;
    data->stream = place->gpu != NULL ? moe_gpu_stream(place->gpu) : NULL;
    data->cold_bytes = (uint64_t)COLD_MEGABYTES * MEGABYTE;
    data->weight_bytes = (uint64_t)options->weight_mb * MEGABYTE;
    data->cache_bytes = place->gpu != NULL ? (uint64_t)host->device.l2_bytes
                                           : moe_bench_memory_cache_bytes(host->device.l2_bytes);
    if (CACHES * data->cache_bytes > data->cold_bytes) {
        data->cold_bytes = CACHES * data->cache_bytes;
    }
    struct moe_error cause;
    struct moe_plan_options plan_options;
    MOE_INIT(cause);
    MOE_INIT(plan_options);
    MOE_INIT(data->plan_info);
    plan_options.ops = ops;
    if (host->api->plan_create(host->context, &options->problem, &plan_options, &data->plan,
                               &cause) != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "plan_create", &cause);
    }
    if (host->api->plan_info(data->plan, &data->plan_info, &cause) != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "plan_info", &cause);
    }
    return 0;
}

/* What the cases need. */
struct needs {
    uint64_t input_bytes;
    uint64_t logits_bytes;
    uint64_t output_bytes;
    uint64_t weight_bytes; /* of one copy; 0: none */
};

static void grow(uint64_t *bytes, uint64_t place_bytes, uint64_t num_places)
{
    if (place_bytes * num_places > *bytes) {
        *bytes = place_bytes * num_places;
    }
}

static struct needs add_up_needs(const struct moe_problem *problem,
                                 const struct moe_bench_case *cases, size_t num_cases)
{
    struct needs needs = {0};
    for (size_t i = 0; i < num_cases; ++i) {
        const struct moe_bench_case *bench_case = &cases[i];
        const struct moe_bench_cost *cost = &bench_case->cost;
        grow(moe_bench_case_reads_logits(bench_case->op) ? &needs.logits_bytes : &needs.input_bytes,
             cost->input_bytes, bench_case->num_places);
        grow(&needs.output_bytes, cost->output_bytes, bench_case->num_places);
        if (moe_bench_case_uses_weights(bench_case->op)) {
            needs.weight_bytes = moe_bench_weights_bytes(problem);
        }
    }
    return needs;
}

/* As many copies as make `wanted_bytes` and at least MIN_COPIES, fewer when memory is short. 0: not
 * even one fits. */
static int64_t count_copies(uint64_t copy_bytes, uint64_t wanted_bytes, uint64_t budget_bytes)
{
    uint64_t num_copies = (wanted_bytes + copy_bytes - 1) / copy_bytes;
    num_copies = num_copies < MIN_COPIES ? MIN_COPIES : num_copies;
    num_copies = num_copies > MAX_COPIES ? MAX_COPIES : num_copies;
    const uint64_t fitting = budget_bytes / copy_bytes;
    return (int64_t)(fitting < num_copies ? fitting : num_copies);
}

static int take_and_fill(struct moe_bench_memory *memory, uint64_t num_bytes, int32_t dtype,
                         uint64_t seed, const char *purpose, const struct moe_bench_place *place,
                         struct moe_cli_error *error)
{
    if (moe_bench_place_take(place, num_bytes, purpose, memory, error) != 0) {
        return -1;
    }
    return moe_bench_place_fill(place, memory->bytes, dtype,
                                memory->num_bytes / moe_element_bytes(dtype), 1.0f, seed, error);
}

static int fill_correction_bias(struct moe_bench_data *data, uint64_t seed,
                                struct moe_cli_error *error)
{
    if ((data->problem->flags & MOE_PROBLEM_CORRECTION_BIAS) == 0) {
        return 0;
    }
    return take_and_fill(&data->correction_bias,
                         (uint64_t)data->problem->num_experts_global * sizeof(float),
                         MOE_DTYPE_FP32, seed, "a correction bias", &data->place, error);
}

int moe_bench_data_fill(struct moe_bench_data *data, const struct moe_plugin_host *host,
                        const struct moe_bench_case *cases, size_t num_cases, uint64_t seed,
                        struct moe_cli_error *error)
{
    const struct moe_problem *problem = data->problem;
    const struct needs needs = add_up_needs(problem, cases, num_cases);
    const uint64_t fixed_bytes = needs.input_bytes + needs.logits_bytes + needs.output_bytes +
                                 data->plan_info.workspace_bytes;
    uint64_t available = 0;
    if (moe_bench_place_available(&data->place, &available, error) != 0) {
        return -1;
    }
    const uint64_t budget = available == 0 ? UINT64_MAX : available / 100 * MEMORY_PERCENT;
    const int64_t num_copies =
        needs.weight_bytes == 0 || budget < fixed_bytes
            ? 0
            : count_copies(needs.weight_bytes, data->weight_bytes, budget - fixed_bytes);
    if (budget < fixed_bytes || (needs.weight_bytes > 0 && num_copies == 0)) {
        return MOE_CLI_FAIL(error,
                            "this needs %" PRIu64 " MB for data and %" PRIu64
                            " MB for one copy of the weights, but only %" PRIu64
                            " MB of memory are available, of which bench takes %d %%; choose a "
                            "smaller --shape, smaller numbers "
                            "of tokens or fewer operations",
                            fixed_bytes / MEGABYTE, needs.weight_bytes / MEGABYTE,
                            available / MEGABYTE, MEMORY_PERCENT);
    }
    if (take_and_fill(&data->inputs, needs.input_bytes, problem->tokens.dtype, seed + 1, "inputs",
                      &data->place, error) != 0 ||
        take_and_fill(&data->logits, needs.logits_bytes, problem->logits_dtype, seed + 2, "logits",
                      &data->place, error) != 0 ||
        take_and_fill(&data->outputs, needs.output_bytes, problem->output_dtype, seed + 3,
                      "outputs", &data->place, error) != 0 ||
        moe_bench_place_take(&data->place, data->plan_info.workspace_bytes, "the workspace",
                             &data->workspace, error) != 0 ||
        fill_correction_bias(data, seed + 4, error) != 0) {
        return -1;
    }
    if (num_copies == 0) {
        return 0;
    }
    return moe_bench_weights_init(&data->weights, host->api, host->context, problem, num_copies,
                                  seed + 5, &data->place, error);
}

void moe_bench_data_finish(struct moe_bench_data *data)
{
    moe_bench_weights_finish(&data->weights);
    moe_bench_memory_finish(&data->correction_bias);
    moe_bench_memory_finish(&data->workspace);
    moe_bench_memory_finish(&data->outputs);
    moe_bench_memory_finish(&data->logits);
    moe_bench_memory_finish(&data->inputs);
    if (data->plan != NULL) {
        data->api->plan_destroy(data->plan);
    }
    memset(data, 0, sizeof *data);
}
