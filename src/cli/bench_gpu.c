/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_gpu.h"

#include "abi_names.h"
#include "plugin_host.h"
#include "terminal.h"

#include <string.h>

enum {
    /* The driver's copy is slower in one piece of 512 MiB and more (H200: 2.7 instead of 4.3
     * TB/s). */
    LARGEST_COPY = 256 << 20,
    OTHER_BYTES = 1 << 24, /* at least, and CACHES times the cache */
    CACHES = 16,
    LIMIT_NODES = 4,  /* of a graph that measures a limit */
    FEW_NODES = 20,   /* of a graph that measures a case */
    MANY_NODES = 100, /* the same, when the few take less than short_s */
    MIN_REPLAYS = 5,  /* of each graph */
    HOST_CALLS = 64   /* in a row: fewer than the driver queues without waiting */
};
static const double short_s = 400e-6;

/* Floating-point operations of one multiprocessor per cycle: 16-bit inputs, fp32 sums, dense. 0:
 * not known. */
static double find_mma_rate(int32_t sm)
{
    static const struct {
        int32_t sm;
        double flops;
    } rates[] = {{80, 2048.0}, {90, 4096.0}, {100, 8192.0}};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; ++i) {
        if (rates[i].sm == sm) {
            return rates[i].flops;
        }
    }
    return 0.0;
}

int moe_bench_gpu_init(struct moe_bench_gpu *bench, struct moe_gpu *gpu,
                       const struct moe_device *device, int32_t dtype, struct moe_cli_error *error)
{
    double clock_hz = 0.0;
    *bench = (struct moe_bench_gpu){.gpu = gpu, .other_bytes = OTHER_BYTES};
    if ((uint64_t)device->l2_bytes * CACHES > bench->other_bytes) {
        bench->other_bytes = (uint64_t)device->l2_bytes * CACHES;
    }
    if (moe_gpu_clock(gpu, &clock_hz, error) != 0 ||
        moe_gpu_alloc(gpu, bench->other_bytes, "measuring the limits", &bench->other, error) != 0) {
        return -1;
    }
    if (dtype == MOE_DTYPE_BF16 || dtype == MOE_DTYPE_FP16) {
        bench->mma_flop_per_s = device->num_sms * clock_hz * find_mma_rate(device->sm);
    }
    return 0;
}

void moe_bench_gpu_finish(struct moe_bench_gpu *bench)
{
    if (bench->gpu != NULL) {
        moe_gpu_free(bench->gpu, bench->other);
    }
    memset(bench, 0, sizeof *bench);
}

static int record_sets(void *self, struct moe_cli_error *error)
{
    const struct moe_bench_gpu *bench = self;
    for (uint32_t i = 0; i < LIMIT_NODES; ++i) {
        if (moe_gpu_set(bench->gpu, bench->other, 0x9e3779b9u * (i + 1), bench->other_bytes,
                        error) != 0) {
            return -1;
        }
    }
    return 0;
}

static uint64_t get_copy_bytes(const struct moe_bench_gpu *bench)
{
    const uint64_t half = bench->other_bytes / 2;
    return half < LARGEST_COPY ? half : LARGEST_COPY;
}

static int record_copies(void *self, struct moe_cli_error *error)
{
    const struct moe_bench_gpu *bench = self;
    unsigned char *places[] = {bench->other,
                               (unsigned char *)bench->other + bench->other_bytes / 2};
    for (int i = 0; i < LIMIT_NODES; ++i) {
        if (moe_gpu_copy(bench->gpu, places[i % 2], places[1 - i % 2], get_copy_bytes(bench),
                         error) != 0) {
            return -1;
        }
    }
    return 0;
}

/* Bytes per second of a graph that moves num_bytes in each node. */
static int measure_rate(struct moe_bench_gpu *bench, moe_gpu_record_fn *record, uint64_t num_bytes,
                        struct moe_bench_samples *samples, struct moe_cli_error *error)
{
    struct moe_gpu_graph *graph = NULL;
    double seconds = 0.0;
    if (moe_gpu_capture(bench->gpu, record, bench, &graph, error) != 0) {
        return -1;
    }
    int status = 0;
    for (int i = 0; i < 2 && status == 0; ++i) { /* the first one warms up */
        status = moe_gpu_replay(bench->gpu, graph, &seconds, error);
    }
    moe_gpu_graph_destroy(bench->gpu, graph);
    if (status == 0) {
        moe_bench_samples_add(samples, LIMIT_NODES * (double)num_bytes / seconds);
    }
    return status;
}

int moe_bench_gpu_measure_limits(struct moe_bench_gpu *bench,
                                 struct moe_bench_samples samples[MOE_BENCH_NUM_LIMITS],
                                 struct moe_cli_error *error)
{
    if (measure_rate(bench, record_sets, bench->other_bytes, &samples[MOE_BENCH_LIMIT_READ],
                     error) != 0 ||
        measure_rate(bench, record_copies, 2 * get_copy_bytes(bench),
                     &samples[MOE_BENCH_LIMIT_COPY], error) != 0) {
        return -1;
    }
    moe_bench_samples_add(&samples[MOE_BENCH_LIMIT_FMA], bench->mma_flop_per_s);
    return 0;
}

/* Calls of a case, one after the other. */
struct calls {
    const struct moe_bench_data *data;
    struct moe_bench_case *bench_case;
    int num_calls;
};

static int record_calls(void *self, struct moe_cli_error *error)
{
    const struct calls *calls = self;
    struct moe_error cause;
    MOE_INIT(cause);
    for (int i = 0; i < calls->num_calls; ++i) {
        if (moe_bench_case_call(calls->bench_case, calls->data, &cause) != MOE_STATUS_OK) {
            return moe_plugin_host_fail(error, moe_abi_op_name(calls->bench_case->op), &cause);
        }
    }
    return 0;
}

/* A replay on a cold cache. */
static int replay(struct moe_bench_gpu *bench, struct moe_gpu_graph *graph, double *seconds,
                  struct moe_cli_error *error)
{
    return moe_gpu_set(bench->gpu, bench->other, 0x5bd1e995u, bench->other_bytes, error) != 0
               ? -1
               : moe_gpu_replay(bench->gpu, graph, seconds, error);
}

/* A graph with as many calls as make a time that events can measure. */
static int capture_calls(struct moe_bench_gpu *bench, struct calls *calls,
                         struct moe_gpu_graph **graph, struct moe_cli_error *error)
{
    double seconds = 0.0;
    calls->num_calls = FEW_NODES;
    for (;;) {
        if (moe_gpu_capture(bench->gpu, record_calls, calls, graph, error) != 0) {
            return -1;
        }
        if (replay(bench, *graph, &seconds, error) != 0) {
            break;
        }
        if (seconds >= short_s || calls->num_calls == MANY_NODES) {
            return 0;
        }
        moe_gpu_graph_destroy(bench->gpu, *graph);
        calls->num_calls = MANY_NODES;
    }
    moe_gpu_graph_destroy(bench->gpu, *graph);
    return -1;
}

int moe_bench_gpu_measure_case(struct moe_bench_gpu *bench, const struct moe_bench_data *data,
                               struct moe_bench_case *bench_case, double share_s,
                               struct moe_cli_error *error)
{
    struct calls calls = {.data = data, .bench_case = bench_case};
    struct moe_gpu_graph *graph = NULL;
    if (capture_calls(bench, &calls, &graph, error) != 0) {
        return -1;
    }
    bench_case->calls_per_sample = (uint64_t)calls.num_calls;
    const double start_s = moe_terminal_now_s();
    int status = 0;
    for (int i = 0; status == 0 && (i < MIN_REPLAYS || moe_terminal_now_s() - start_s < share_s);
         ++i) {
        double seconds = 0.0;
        status = replay(bench, graph, &seconds, error);
        moe_bench_samples_add(&bench_case->samples, seconds / calls.num_calls);
    }
    moe_gpu_graph_destroy(bench->gpu, graph);
    return status;
}

int moe_bench_gpu_measure_calls(struct moe_bench_gpu *bench, const struct moe_bench_data *data,
                                struct moe_bench_case *bench_case, int num_samples,
                                struct moe_bench_samples *samples, struct moe_cli_error *error)
{
    struct calls calls = {.data = data, .bench_case = bench_case, .num_calls = HOST_CALLS};
    for (int i = -1; i < num_samples; ++i) { /* the first one warms up */
        if (moe_gpu_wait(bench->gpu, error) != 0) {
            return -1;
        }
        const double start_s = moe_terminal_now_s();
        if (record_calls(&calls, error) != 0) {
            return -1;
        }
        const double seconds = moe_terminal_now_s() - start_s;
        if (i >= 0) {
            moe_bench_samples_add(samples, seconds / HOST_CALLS);
        }
    }
    return moe_gpu_wait(bench->gpu, error);
}
