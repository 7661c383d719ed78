/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host for programs that run on a GPU machine: the plugin through its table with one CPU and one
 * CUDA context, and libcuda for memory, copies, streams, graphs and events. Any failure ends the
 * program with a sentence: these are tests.
 */
#ifndef MOE_GPU_HOST_H
#define MOE_GPU_HOST_H

#include "moe_plugin.h"

#include <cuda.h>
#include <stddef.h>
#include <stdint.h>

struct gpu_host {
    const struct moe_plugin_api *api;
    struct moe_context *cpu;
    struct moe_context *cuda;
    struct moe_device device;
    CUstream stream;
};

/* `program` is argv[0]: the plugin is ../lib/libmoe_plugin.so from its folder. */
void gpu_host_init(struct gpu_host *host, const char *program);
/* Without a driver: the CPU context takes the device's part. Memory of the device is then memory of
 * this machine, every stream is NULL and a graph of gpu_graph_make calls `record` when it is
 * launched; captures, modules and launches there are not. */
void gpu_host_init_cpu(struct gpu_host *host, const char *program);
void gpu_host_finish(struct gpu_host *host);

/* Ends the program with a sentence unless status is OK. */
void gpu_host_check(int32_t status, const struct moe_error *error, const char *what);

void *gpu_alloc(size_t bytes);
void gpu_free(void *memory);
void gpu_upload(void *device, const void *host, size_t bytes);
void gpu_download(void *host, const void *device, size_t bytes);
void gpu_poison(void *device, int byte, size_t bytes);
void gpu_synchronize(CUstream stream);

/* Median microseconds of `num_replays` replays of a graph made of what `record` queues. Before
 * each, `flush_bytes` of other memory are written, so that nothing of the last replay is in the
 * cache. */
typedef void gpu_record_fn(void *self, CUstream stream);
struct gpu_timing {
    double median_us;
    double low_us;  /* 10th percentile */
    double high_us; /* 90th */
};
struct gpu_timing gpu_time_graph(CUstream stream, gpu_record_fn *record, void *self,
                                 int num_replays, size_t flush_bytes);

/* The same with a pace: of every number 0 means none. */
struct gpu_pace {
    double warm_ms;     /* of replays that are not timed, once */
    double idle_ms;     /* of nothing before each replay: the clocks of a burst */
    int num_untimed;    /* replays before the timed ones */
    size_t flush_bytes; /* as above */
};
struct gpu_timing gpu_time_graph_paced(CUstream stream, gpu_record_fn *record, void *self,
                                       int num_replays, const struct gpu_pace *pace);

/* What `record` queues, captured in a mode on a stream that is not the default one, as a graph. */
struct gpu_graph;
struct gpu_graph *gpu_graph_make(CUstream stream, CUstreamCaptureMode mode, gpu_record_fn *record,
                                 void *self);
/* The same in two steps: what is queued between them is captured. */
void gpu_graph_begin(CUstream stream, CUstreamCaptureMode mode);
struct gpu_graph *gpu_graph_end(CUstream stream);
void gpu_graph_launch(struct gpu_graph *graph, CUstream stream);
void gpu_graph_free(struct gpu_graph *graph);
CUstream gpu_stream(void);

/* The names of the kernels that `record` queues, which is captured and not run. */
typedef void gpu_kernel_fn(void *visitor, const char *name);
void gpu_captured_kernels(CUstream stream, gpu_record_fn *record, void *self, gpu_kernel_fn *visit,
                          void *visitor);

/* A fatbin beside the program, its kernels, and a launch. */
void *gpu_module_open(const char *program, const char *name);
CUfunction gpu_module_function(void *module, const char *symbol);
void gpu_launch(CUstream stream, CUfunction function, unsigned num_ctas, unsigned num_threads,
                void **args);

/* Kernels of gpu_limits.cu, from gpu_limits.fatbin beside the program. */
void gpu_limits_open(const char *program);
void gpu_limits_empty(CUstream stream);
/* Reads the word at `at` and writes one 128 bytes further, so that calls make a chain; `is_pdl`:
 * launched by programmatic dependence (sm_90). */
void gpu_limits_chain(CUstream stream, void *at, int is_pdl);
void gpu_limits_read(CUstream stream, const void *from, size_t bytes);
void gpu_limits_write(CUstream stream, void *to, size_t bytes);
void gpu_limits_copy(CUstream stream, const void *from, void *to, size_t bytes);
/* The driver's own copy. */
void gpu_driver_copy(CUstream stream, const void *from, void *to, size_t bytes);

/* Random numbers between 2^-7 and 2^5 of either sign, as pairs of bf16 or (is_fp32) as fp32. Queued
 * on the stream. gpu_limits_open comes before. */
void gpu_fill_random(CUstream stream, void *to, size_t num_words, uint64_t random_seed,
                     int32_t is_fp32);

/* The same as pairs of fp16 between 2^-7 and 2^-1, so that sums stay finite. */
void gpu_fill_random_fp16(CUstream stream, void *to, size_t num_words, uint64_t random_seed);

/* splitmix64 */
uint64_t gpu_random(uint64_t *state);

#endif
