/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
/* What the device can do at best in this run: streams, and what a node of a graph and a launch
 * cost when nothing is done in them. */
#include "gpu_bench.h"

#include <stdlib.h>
#include <time.h>

/* The driver's copy is slower in one piece of 512 MiB and more (2.7 instead of 4.3 TB/s on an
 * H200). */
#define PIECE_BYTES ((size_t)256 << 20)

enum { NUM_REPLAYS = 21, NUM_NODES = 100, NUM_CALLS = 64, NUM_HOST_SAMPLES = 15 };

struct bench_limits bench_limits;

struct streams {
    void *from, *to;
    size_t bytes;
};

static void record_empty(void *self, CUstream stream)
{
    (void)self;
    for (int i = 0; i < NUM_NODES; i++) {
        gpu_limits_empty(stream);
    }
}

/* Node i reads word i and writes word i + 1, a cache line further. */
static void record_chain(void *self, CUstream stream)
{
    for (int i = 0; i < NUM_NODES; i++) {
        gpu_limits_chain(stream, (char *)self + 128 * i, 0);
    }
}

static void record_pdl_chain(void *self, CUstream stream)
{
    for (int i = 0; i < NUM_NODES; i++) {
        gpu_limits_chain(stream, (char *)self + 128 * i, 1);
    }
}

static void record_read(void *self, CUstream stream)
{
    const struct streams *streams = self;
    gpu_limits_read(stream, streams->from, streams->bytes);
}

static void record_write(void *self, CUstream stream)
{
    const struct streams *streams = self;
    gpu_limits_write(stream, streams->to, streams->bytes);
}

static void record_copy(void *self, CUstream stream)
{
    const struct streams *streams = self;
    gpu_limits_copy(stream, streams->from, streams->to, streams->bytes);
}

static void record_driver_copy(void *self, CUstream stream)
{
    const struct streams *streams = self;
    for (size_t at = 0; at < streams->bytes; at += PIECE_BYTES) {
        gpu_driver_copy(stream, (const char *)streams->from + at, (char *)streams->to + at,
                        PIECE_BYTES);
    }
}

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e6 * (double)now.tv_sec + 1e-3 * (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The median over samples of NUM_CALLS calls in a row, which never fill the driver's queue;
 * `bench` NULL: empty kernels. */
double bench_host_us(const struct bench *bench)
{
    double samples[NUM_HOST_SAMPLES];
    for (int i = -1; i < NUM_HOST_SAMPLES; i++) {
        gpu_synchronize(bench_host.stream);
        const double start_us = now_us();
        for (int call = 0; call < NUM_CALLS; call++) {
            if (bench == NULL) {
                gpu_limits_empty(bench_host.stream);
            } else {
                bench_run(bench, &bench->sets[call % bench->num_sets], bench_host.stream);
            }
        }
        if (i >= 0) {
            samples[i] = (now_us() - start_us) / NUM_CALLS;
        }
    }
    gpu_synchronize(bench_host.stream);
    qsort(samples, NUM_HOST_SAMPLES, sizeof(samples[0]), compare_doubles);
    return samples[NUM_HOST_SAMPLES / 2];
}

static double time_node(gpu_record_fn *record, void *self, double num_nodes)
{
    return gpu_time_graph(bench_host.stream, record, self, NUM_REPLAYS, 0).median_us / num_nodes;
}

void bench_measure_limits(void)
{
    struct streams streams = {.bytes = (size_t)4 << 30};
    struct bench_limits *limits = &bench_limits;
    const double megabytes = 1e-6 * (double)streams.bytes;
    streams.from = gpu_alloc(streams.bytes);
    streams.to = gpu_alloc(streams.bytes);
    gpu_limits_write(bench_host.stream, streams.from, streams.bytes);
    gpu_limits_write(bench_host.stream, streams.to, streams.bytes);
    limits->empty_us = time_node(record_empty, NULL, NUM_NODES);
    limits->chain_us = time_node(record_chain, streams.to, NUM_NODES);
    limits->pdl_us =
        bench_host.device.sm >= 90 ? time_node(record_pdl_chain, streams.to, NUM_NODES) : 0.0;
    limits->read_tbps = megabytes / time_node(record_read, &streams, 1.0);
    limits->write_tbps = megabytes / time_node(record_write, &streams, 1.0);
    const double copy_tbps = 2.0 * megabytes / time_node(record_copy, &streams, 1.0);
    const double driver_tbps = 2.0 * megabytes / time_node(record_driver_copy, &streams, 1.0);
    limits->copy_tbps = copy_tbps > driver_tbps ? copy_tbps : driver_tbps;
    limits->launch_us = bench_host_us(NULL);
    gpu_free(streams.from);
    gpu_free(streams.to);
    printf("read %.3f, write %.3f, copy %.3f (a kernel of ours) %.3f (the driver's) TB/s; node: "
           "empty %.2f us, reads what the one before "
           "wrote %.2f us, the same by programmatic launch %.2f us; host: empty launch %.2f us\n",
           limits->read_tbps, limits->write_tbps, copy_tbps, driver_tbps, limits->empty_us,
           limits->chain_us, limits->pdl_us, limits->launch_us);
    if (bench_json != NULL) {
        bench_json_begin();
        fprintf(bench_json,
                "{\"device\": \"%s\", \"driver\": %d, \"source\": \"%s\", \"read_tbps\": %.3f, "
                "\"write_tbps\": %.3f, \"copy_tbps\": %.3f, \"empty_us\": %.3f, \"chain_us\": "
                "%.3f, \"pdl_us\": %.3f, \"launch_us\": %.3f}",
                bench_host.device.name, bench_host.device.driver_version, bench_host.api->source_id,
                limits->read_tbps, limits->write_tbps, limits->copy_tbps, limits->empty_us,
                limits->chain_us, limits->pdl_us, limits->launch_us);
    }
}
