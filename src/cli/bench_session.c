/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "bench_session.h"

#include "abi_names.h"
#include "terminal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    NUM_ROUNDS = 5,          /* each measures the limits and every case */
    LIMIT_SAMPLES = 3,       /* at the start of each round */
    CACHES_FOR_LIMITS = 8,   /* times the last-level cache */
    LIMIT_BYTES = 256000000, /* at least */
    ROUTE_BYTES = 64000000,  /* that the sets of one number of tokens take at most */
    MAX_ROUTE_SETS = 64,
    MIN_ROUTE_SETS = 2,
    MAX_DRAWING_THREADS = 16,
    HOST_SAMPLES = 5, /* of a GPU's host time, in each round */
    BYTES_PER_ROUTE = 16,
    OVERHEAD_SAMPLES = 25,
    OVERHEAD_CALLS = 2000,
    TIMER_READS_PER_SAMPLE = 500 /* a sample lasts so much longer than reading the clock */
};

/* The limits of a GPU are measured again between cases after this time: what else the machine does
 * must show in both. Those of CPUs, which others use as well, after each case, unless it is
 * shorter than MOE_BENCH_LIMIT_INTERVAL_S. */
static const double limit_interval_s = 0.1;

/* ---------------------------------------------------------------- what is measured */

static int refuse(struct moe_bench_session *session, int32_t op, const char *reason,
                  struct moe_cli_error *error)
{
    if (!session->options->is_all_ops) {
        return MOE_CLI_FAIL(error, "--op %s: %s", moe_abi_op_name(op), reason);
    }
    struct moe_bench_refusal *refusal = &session->refusals[session->num_refusals++];
    refusal->op = op;
    snprintf(refusal->reason, sizeof refusal->reason, "%s", reason);
    return 0;
}

/* Operations between which rows are fp8. */
static int options_refuse(const struct moe_bench_session *session, int32_t op)
{
    return session->options->problem.intermediate.dtype == MOE_DTYPE_FP8_E4M3 &&
           (op == MOE_OP_GEMM1 || op == MOE_OP_GEMM2 || op == MOE_OP_ACTIVATION);
}

/* Sorts the operations that were asked for into those that the plugin can do here and those that it
 * cannot. */
static int choose_ops(struct moe_bench_session *session, uint64_t *ops, struct moe_cli_error *error)
{
    const struct moe_plugin_api *api = session->host.api;
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        const uint64_t bit = UINT64_C(1) << op;
        struct moe_error cause;
        MOE_INIT(cause);
        if ((session->options->ops & bit) == 0) {
            continue;
        }
        if (options_refuse(session, op)) {
            if (refuse(session, op,
                       "with --dtype fp8 it takes or gives quantized rows, which bench has only "
                       "inside layer and experts",
                       error) != 0) {
                return -1;
            }
        } else if (!moe_bench_case_is_offered(api, op)) {
            if (refuse(session, op, "this plugin does not offer it (NULL in its table)", error) !=
                0) {
                return -1;
            }
        } else if (api->supports(&session->host.device, &session->options->problem, bit, &cause) !=
                   MOE_STATUS_OK) {
            if (refuse(session, op, cause.message, error) != 0) {
                return -1;
            }
        } else {
            session->ops[session->num_ops++] = op;
            *ops |= bit;
        }
    }
    if (session->num_ops == 0) {
        return MOE_CLI_FAIL(error,
                            "the plugin can do none of the operations for this problem; %s: %s",
                            moe_abi_op_name(session->refusals[0].op), session->refusals[0].reason);
    }
    return 0;
}

static int draw_routes(struct moe_bench_session *session, struct moe_cli_error *error)
{
    const struct moe_bench_options *options = session->options;
    const struct moe_problem *problem = &options->problem;
    session->routes = calloc(options->tokens.num_values + 1, sizeof *session->routes);
    if (session->routes == NULL) {
        return moe_cli_fail_memory(error, "drawing routes");
    }
    for (size_t i = 0; i <= options->tokens.num_values; ++i) {
        const int64_t num_tokens = i > 0 ? options->tokens.values[i - 1] : 0;
        const int64_t set_bytes = BYTES_PER_ROUTE * num_tokens * problem->top_k + 1;
        int64_t num_sets = ROUTE_BYTES / set_bytes;
        num_sets = num_sets > MAX_ROUTE_SETS ? MAX_ROUTE_SETS : num_sets;
        num_sets = num_sets < MIN_ROUTE_SETS ? MIN_ROUTE_SETS : num_sets;
        if (moe_bench_routes_init(&session->routes[i], &options->routing, num_sets, num_tokens,
                                  problem->top_k, problem->num_experts_global,
                                  (uint64_t)options->seed, error) != 0) {
            return -1;
        }
        session->num_routes = i + 1;
        if (moe_bench_routes_move(&session->routes[i], &session->data.place, error) != 0) {
            return -1;
        }
    }
    return 0;
}

static int make_cases(struct moe_bench_session *session, struct moe_cli_error *error)
{
    const size_t num_sizes = session->options->tokens.num_values,
                 num_ops = (size_t)session->num_ops;
    session->num_cases = num_ops * num_sizes;
    /* One more than needed: an allocation of nothing may be NULL. */
    session->cases = calloc(session->num_cases + num_ops + 1, sizeof *session->cases);
    session->results = calloc(session->num_cases + 1, sizeof *session->results);
    if (session->gpu != NULL) {
        session->host_samples = calloc(session->num_cases + 1, sizeof *session->host_samples);
    } else {
        session->paired = calloc(session->num_cases + 1, sizeof *session->paired);
    }
    if (session->cases == NULL || session->results == NULL ||
        (session->host_samples == NULL && session->paired == NULL)) {
        return moe_cli_fail_memory(error, "preparing the measurement");
    }
    for (size_t i = 0; i < num_ops; ++i) {
        for (size_t j = 0; j < num_sizes; ++j) {
            if (moe_bench_case_init(&session->cases[i * num_sizes + j], &session->data,
                                    session->ops[i], &session->routes[j + 1], error) != 0) {
                return -1;
            }
        }
        if (moe_bench_case_init(&session->cases[session->num_cases + i], &session->data,
                                session->ops[i], &session->routes[0], error) != 0) {
            return -1;
        }
    }
    return 0;
}

/* Takes operation `op_idx` and its cases out. */
static void drop_op(struct moe_bench_session *session, size_t op_idx)
{
    const size_t num_sizes = session->options->tokens.num_values;
    const size_t num_all = session->num_cases + (size_t)session->num_ops;
    const size_t empty_idx = session->num_cases + op_idx, first_idx = op_idx * num_sizes;
    struct moe_bench_case *cases = session->cases;
    memmove(cases + empty_idx, cases + empty_idx + 1, (num_all - empty_idx - 1) * sizeof *cases);
    memmove(cases + first_idx, cases + first_idx + num_sizes,
            (num_all - 1 - first_idx - num_sizes) * sizeof *cases);
    for (size_t i = op_idx; i + 1 < (size_t)session->num_ops; ++i) {
        session->ops[i] = session->ops[i + 1];
    }
    session->num_cases -= num_sizes;
    session->num_ops -= 1;
}

/* Calls each operation once: `supports` knows the problem, and only the call its arguments. */
static int try_ops(struct moe_bench_session *session, struct moe_cli_error *error)
{
    const size_t num_sizes = session->options->tokens.num_values;
    for (size_t i = 0; i < (size_t)session->num_ops;) {
        struct moe_error cause;
        MOE_INIT(cause);
        const int32_t status =
            moe_bench_case_call(&session->cases[i * num_sizes], &session->data, &cause);
        if (status == MOE_STATUS_UNSUPPORTED) {
            if (refuse(session, session->ops[i], cause.message, error) != 0) {
                return -1;
            }
            drop_op(session, i);
        } else {
            ++i; /* another failure is told when it is measured */
        }
    }
    return session->gpu != NULL ? moe_gpu_wait(session->gpu, error) : 0;
}

/* Threads that draw numbers for a GPU. */
static int count_cpus(void)
{
    const long num_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return num_cpus < 1 ? 1 : num_cpus > MAX_DRAWING_THREADS ? MAX_DRAWING_THREADS : (int)num_cpus;
}

static int init_limits(struct moe_bench_session *session, struct moe_cli_error *error)
{
    uint64_t num_bytes = CACHES_FOR_LIMITS * session->data.cache_bytes;
    num_bytes = num_bytes < LIMIT_BYTES ? LIMIT_BYTES : num_bytes;
    return session->gpu != NULL
               ? moe_bench_gpu_init(&session->gpu_bench, session->gpu, &session->host.device,
                                    session->options->problem.tokens.dtype, error)
               : moe_bench_limits_init(&session->limits, session->team, num_bytes, error);
}

int moe_bench_session_init(struct moe_bench_session *session,
                           const struct moe_bench_options *options, struct moe_cli_error *error)
{
    memset(session, 0, sizeof *session);
    session->options = options;
    uint64_t ops = 0;
    if (moe_plugin_host_open(&options->host, &session->host, error) != 0) {
        return -1;
    }
    const struct moe_device *device = &session->host.device;
    const int is_gpu = device->backend == MOE_BACKEND_CUDA;
    if (is_gpu && options->problem.gate_up.dtype == MOE_DTYPE_FP8_E4M3) {
        return MOE_CLI_FAIL(error,
                            "fp8 weights are measured on a CPU only; --backend cpu, or --dtype "
                            "fp16 or bf16");
    }
    if (choose_ops(session, &ops, error) != 0 ||
        (is_gpu && moe_gpu_open(device->ordinal, &session->gpu, error) != 0)) {
        return -1;
    }
    session->team = moe_bench_team_create(is_gpu ? count_cpus() : device->num_sms, error);
    const struct moe_bench_place place = {.team = session->team, .gpu = session->gpu};
    if (session->team == NULL ||
        moe_bench_data_init(&session->data, &session->host, options, ops, &place, error) != 0 ||
        draw_routes(session, error) != 0 || make_cases(session, error) != 0 ||
        init_limits(session, error) != 0) {
        return -1;
    }
    return moe_bench_data_fill(&session->data, &session->host, session->cases, session->num_cases,
                               (uint64_t)options->seed, error) != 0
               ? -1
               : try_ops(session, error);
}

void moe_bench_session_finish(struct moe_bench_session *session)
{
    moe_bench_data_finish(&session->data);
    moe_bench_limits_finish(&session->limits);
    moe_bench_gpu_finish(&session->gpu_bench);
    moe_bench_team_destroy(session->team);
    for (size_t i = 0; i < session->num_routes; ++i) {
        moe_bench_routes_finish(&session->routes[i]);
    }
    free(session->routes);
    free(session->cases);
    free(session->results);
    free(session->host_samples);
    free(session->paired);
    moe_gpu_close(session->gpu);
    moe_plugin_host_finish(&session->host);
    memset(session, 0, sizeof *session);
}

/* ---------------------------------------------------------------- measuring */

/* Seconds of `num_calls` calls, or -1 with a sentence. */
static int time_calls(struct moe_bench_session *session, struct moe_bench_case *bench_case,
                      uint64_t num_calls, double *seconds, struct moe_cli_error *error)
{
    struct moe_error cause;
    MOE_INIT(cause);
    const double start_s = moe_terminal_now_s();
    for (uint64_t i = 0; i < num_calls; ++i) {
        if (moe_bench_case_call(bench_case, &session->data, &cause) != MOE_STATUS_OK) {
            return moe_plugin_host_fail(error, moe_abi_op_name(bench_case->op), &cause);
        }
    }
    *seconds = moe_terminal_now_s() - start_s;
    return 0;
}

/* Warms up, and chooses how many calls make a sample that the clock can time. */
static int calibrate(struct moe_bench_session *session, struct moe_bench_case *bench_case,
                     struct moe_cli_error *error)
{
    double seconds = 0.0;
    if (time_calls(session, bench_case, 2, &seconds, error) != 0) {
        return -1;
    }
    if (session->gpu != NULL) { /* graphs are sized when they are captured */
        return moe_gpu_wait(session->gpu, error);
    }
    const double shortest_s = TIMER_READS_PER_SAMPLE * session->timer_s;
    for (;;) {
        if (time_calls(session, bench_case, bench_case->calls_per_sample, &seconds, error) != 0) {
            return -1;
        }
        if (seconds >= shortest_s) {
            return 0;
        }
        bench_case->calls_per_sample *= 2;
    }
}

static int measure_limits(struct moe_bench_session *session, struct moe_cli_error *error)
{
    int status = 0;
    if (session->gpu != NULL) {
        status = moe_bench_gpu_measure_limits(&session->gpu_bench, session->limits.samples, error);
    } else {
        moe_bench_limits_measure(&session->limits);
    }
    session->limits_s = moe_terminal_now_s();
    return status;
}

/* One round of one case on a GPU. */
static int measure_gpu_case(struct moe_bench_session *session, struct moe_bench_case *bench_case,
                            double share_s, struct moe_cli_error *error)
{
    struct moe_bench_samples *host = &session->host_samples[bench_case - session->cases];
    return moe_bench_gpu_measure_case(&session->gpu_bench, &session->data, bench_case, share_s,
                                      error) != 0
               ? -1
               : moe_bench_gpu_measure_calls(&session->gpu_bench, &session->data, bench_case,
                                             HOST_SAMPLES, host, error);
}

/* What is known about the machine at one time. */
struct rates {
    double limits[MOE_BENCH_NUM_LIMITS];
};

static struct rates last_rates(const struct moe_bench_session *session)
{
    struct rates rates;
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        rates.limits[limit] = moe_bench_samples_last(&session->limits.samples[limit]);
    }
    return rates;
}

/* How long the case takes at these rates, and which of them says so. */
static double find_floor_s(const struct moe_bench_case *bench_case, const struct rates *rates,
                           enum moe_bench_limit *bound)
{
    const enum moe_bench_limit bandwidth = moe_bench_case_bandwidth(bench_case->op);
    const double peak = rates->limits[MOE_BENCH_LIMIT_FMA];
    const double bytes_s = bench_case->cost.moved_bytes / rates->limits[bandwidth];
    const double flops_s = peak > 0.0 ? bench_case->cost.flops / peak : 0.0; /* 0: not known */
    *bound = flops_s > bytes_s ? MOE_BENCH_LIMIT_FMA : bandwidth;
    return flops_s > bytes_s ? flops_s : bytes_s;
}

/* One round of one case: a call that is not timed, because the operation before left other data in
 * the caches, then samples until the case's share of time is over; on CPUs, the limits again. */
static int measure_case(struct moe_bench_session *session, struct moe_bench_case *bench_case,
                        struct moe_cli_error *error)
{
    const double share_s = 1e-3 * (double)session->options->min_time_ms / NUM_ROUNDS;
    struct moe_bench_samples round = {.num_samples = 0};
    double seconds = 0.0;
    if (session->gpu != NULL) {
        return measure_gpu_case(session, bench_case, share_s, error);
    }
    struct rates rates = last_rates(session);
    if (time_calls(session, bench_case, 1, &seconds, error) != 0) {
        return -1;
    }
    const double start_s = moe_terminal_now_s();
    do {
        if (time_calls(session, bench_case, bench_case->calls_per_sample, &seconds, error) != 0) {
            return -1;
        }
        seconds /= (double)bench_case->calls_per_sample;
        moe_bench_samples_add(&bench_case->samples, seconds);
        moe_bench_samples_add(&round, seconds);
    } while (moe_terminal_now_s() - start_s < share_s);
    session->num_paired_rounds += 1;
    if (moe_terminal_now_s() - session->limits_s <= MOE_BENCH_LIMIT_INTERVAL_S) {
        session->num_shared_limits += 1;
    } else if (measure_limits(session, error) != 0) {
        return -1;
    }
    const struct rates after = last_rates(session);
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        rates.limits[limit] = 0.5 * (rates.limits[limit] + after.limits[limit]);
    }
    enum moe_bench_limit bound;
    moe_bench_samples_add(&session->paired[bench_case - session->cases],
                          find_floor_s(bench_case, &rates, &bound) /
                              moe_bench_samples_summarize(&round).median);
    return 0;
}

/* plan_op_info over all numbers of tokens in turn. */
static int measure_lookup(struct moe_bench_session *session, int32_t op,
                          struct moe_bench_summary *summary, struct moe_cli_error *error)
{
    const struct moe_args_list *tokens = &session->options->tokens;
    const struct moe_bench_data *data = &session->data;
    struct moe_bench_samples samples = {.num_samples = 0};
    struct moe_choice choice;
    struct moe_error cause;
    MOE_INIT(choice);
    MOE_INIT(cause);
    for (int sample = 0; sample < OVERHEAD_SAMPLES; ++sample) {
        const double start_s = moe_terminal_now_s();
        for (size_t call = 0, size = 0; call < OVERHEAD_CALLS; ++call) {
            if (data->api->plan_op_info(data->plan, op, tokens->values[size], &choice, &cause) !=
                MOE_STATUS_OK) {
                return moe_plugin_host_fail(error, "plan_op_info", &cause);
            }
            size = size + 1 < tokens->num_values ? size + 1 : 0;
        }
        moe_bench_samples_add(&samples, (moe_terminal_now_s() - start_s) / OVERHEAD_CALLS);
    }
    *summary = moe_bench_samples_summarize(&samples);
    return 0;
}

static int measure_overhead(struct moe_bench_session *session, int32_t op_idx,
                            struct moe_cli_error *error)
{
    struct moe_bench_overhead *overhead = &session->overheads[op_idx];
    struct moe_bench_case *bench_case = &session->cases[session->num_cases + (size_t)op_idx];
    overhead->op = bench_case->op;
    if (session->gpu != NULL &&
        moe_bench_gpu_measure_calls(&session->gpu_bench, &session->data, bench_case,
                                    OVERHEAD_SAMPLES, &bench_case->samples, error) != 0) {
        return -1;
    }
    for (int sample = 0; session->gpu == NULL && sample < OVERHEAD_SAMPLES; ++sample) {
        double seconds = 0.0;
        if (time_calls(session, bench_case, OVERHEAD_CALLS, &seconds, error) != 0) {
            return -1;
        }
        moe_bench_samples_add(&bench_case->samples, seconds / OVERHEAD_CALLS);
    }
    overhead->call_s = moe_bench_samples_summarize(&bench_case->samples);
    return measure_lookup(session, bench_case->op, &overhead->lookup_s, error);
}

static void conclude(struct moe_bench_session *session)
{
    struct rates best;
    for (int limit = 0; limit < MOE_BENCH_NUM_LIMITS; ++limit) {
        session->limit_summaries[limit] =
            moe_bench_samples_summarize(&session->limits.samples[limit]);
        best.limits[limit] = session->limit_summaries[limit].p90;
    }
    for (size_t i = 0; i < session->num_cases; ++i) {
        struct moe_bench_case *bench_case = &session->cases[i];
        struct moe_bench_result *result = &session->results[i];
        result->bench_case = bench_case;
        result->seconds = moe_bench_samples_summarize(&bench_case->samples);
        if (session->gpu != NULL) {
            result->host_s = moe_bench_samples_summarize(&session->host_samples[i]);
        } else {
            result->paired = moe_bench_samples_summarize(&session->paired[i]);
        }
        result->bytes_per_s = bench_case->cost.moved_bytes / result->seconds.median;
        result->flop_per_s = bench_case->cost.flops / result->seconds.median;
        result->floor_s = find_floor_s(bench_case, &best, &result->bound);
        result->ratio = result->floor_s / result->seconds.median;
    }
}

static int measure(struct moe_bench_session *session, struct moe_progress *progress,
                   struct moe_cli_error *error)
{
    const int64_t num_steps = (NUM_ROUNDS + 1) * (int64_t)session->num_cases + session->num_ops;
    int64_t step = 0;
    for (size_t i = 0; i < session->num_cases; ++i) {
        if (calibrate(session, &session->cases[i], error) != 0) {
            return -1;
        }
        moe_progress_update(progress, ++step, num_steps);
    }
    for (int round = 0; round < NUM_ROUNDS; ++round) {
        for (int sample = 0; sample < LIMIT_SAMPLES; ++sample) {
            if (measure_limits(session, error) != 0) {
                return -1;
            }
        }
        for (size_t i = 0; i < session->num_cases; ++i) {
            if (session->gpu != NULL &&
                moe_terminal_now_s() - session->limits_s > limit_interval_s &&
                measure_limits(session, error) != 0) {
                return -1;
            }
            if (measure_case(session, &session->cases[i], error) != 0) {
                return -1;
            }
            moe_progress_update(progress, ++step, num_steps);
        }
    }
    for (int32_t i = 0; i < session->num_ops; ++i) {
        if (measure_overhead(session, i, error) != 0) {
            return -1;
        }
        moe_progress_update(progress, ++step, num_steps);
    }
    conclude(session);
    return 0;
}

int moe_bench_session_run(struct moe_bench_session *session, struct moe_cli_error *error)
{
    struct moe_progress progress;
    session->timer_s = moe_bench_limits_timer_s();
    moe_progress_begin(&progress, stderr, "measuring");
    const int status = measure(session, &progress, error);
    moe_progress_end(&progress);
    return status;
}
