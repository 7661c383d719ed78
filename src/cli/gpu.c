/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * What is used of the driver's interface. CUresult, CUdevice and enumerations are int there,
 * CUdeviceptr is 64 bits, and contexts, streams, events and graphs are pointers.
 * X(function, version, parameters): the version of the driver that introduced this form.
 */
#define GPU_FUNCTIONS(X)                                                                        \
    X(cuInit, 2000, (unsigned flags))                                                           \
    X(cuGetErrorName, 6000, (int result, const char **name))                                    \
    X(cuDeviceGet, 2000, (int *device, int ordinal))                                            \
    X(cuDeviceGetAttribute, 2000, (int *value, int attribute, int device))                      \
    X(cuDevicePrimaryCtxRetain, 7000, (void **context, int device))                             \
    X(cuDevicePrimaryCtxRelease, 11000, (int device))                                           \
    X(cuCtxPushCurrent, 4000, (void *context))                                                  \
    X(cuCtxPopCurrent, 4000, (void **context))                                                  \
    X(cuMemGetInfo, 3020, (size_t * available, size_t * total))                                 \
    X(cuMemAlloc, 3020, (uint64_t * memory, size_t num_bytes))                                  \
    X(cuMemFree, 3020, (uint64_t memory))                                                       \
    X(cuMemcpyHtoDAsync, 3020, (uint64_t to, const void *from, size_t num_bytes, void *stream)) \
    X(cuMemcpyDtoHAsync, 3020, (void *to, uint64_t from, size_t num_bytes, void *stream))       \
    X(cuMemcpyDtoDAsync, 3020, (uint64_t to, uint64_t from, size_t num_bytes, void *stream))    \
    X(cuMemsetD32Async, 3020, (uint64_t to, unsigned word, size_t num_words, void *stream))     \
    X(cuStreamCreate, 2000, (void **stream, unsigned flags))                                    \
    X(cuStreamDestroy, 4000, (void *stream))                                                    \
    X(cuStreamSynchronize, 2000, (void *stream))                                                \
    X(cuStreamBeginCapture, 10010, (void *stream, int mode))                                    \
    X(cuStreamEndCapture, 10000, (void *stream, void **graph))                                  \
    X(cuGraphInstantiateWithFlags, 11040,                                                       \
      (void **executable, void *graph, unsigned long long flags))                               \
    X(cuGraphLaunch, 10000, (void *executable, void *stream))                                   \
    X(cuGraphExecDestroy, 10000, (void *executable))                                            \
    X(cuGraphDestroy, 10000, (void *graph))                                                     \
    X(cuEventCreate, 2000, (void **event, unsigned flags))                                      \
    X(cuEventRecord, 2000, (void *event, void *stream))                                         \
    X(cuEventSynchronize, 2000, (void *event))                                                  \
    X(cuEventElapsedTime, 2000, (float *milliseconds, void *begin, void *end))                  \
    X(cuEventDestroy, 4000, (void *event))

/* Values of the driver's enumerations. */
enum {
    SUCCESS = 0,
    ATTRIBUTE_CLOCK_KHZ = 13,
    STREAM_NON_BLOCKING = 1,
    CAPTURE_THREAD_LOCAL = 1,
    NEWEST_VERSION = 12000 /* that cuGetProcAddress is asked through */
};

typedef int get_proc_address_fn(const char *name, void **out, int version, uint64_t flags,
                                int *found);

struct driver {
#define MEMBER(function, version, parameters) int(*function) parameters;
    GPU_FUNCTIONS(MEMBER)
#undef MEMBER
};

struct moe_gpu {
    void *library;
    struct driver cuda;
    int device;
    int is_retained;
    int is_pushed;
    void *stream;
    void *begin, *end; /* events */
};

struct moe_gpu_graph {
    void *graph;
    void *executable;
};

static int fail(const struct moe_gpu *gpu, struct moe_cli_error *error, const char *function,
                int result)
{
    const char *name = NULL;
    if (gpu->cuda.cuGetErrorName(result, &name) != SUCCESS || name == NULL) {
        name = "an unknown error";
    }
    return MOE_CLI_FAIL(error, "the CUDA driver's %s failed with %s (%d)", function, name, result);
}

/* Calls a function of the driver: 0, or -1 with a sentence. */
#define CALL(gpu, error, function, ...) \
    check((gpu), (error), #function, (gpu)->cuda.function(__VA_ARGS__))

static int check(const struct moe_gpu *gpu, struct moe_cli_error *error, const char *function,
                 int result)
{
    return result == SUCCESS ? 0 : fail(gpu, error, function, result);
}

static int bind_function(get_proc_address_fn *get, const char *name, int version, void *out,
                         struct moe_cli_error *error)
{
    void *address = NULL;
    int found = 0;
    if (get(name, &address, version, 0, &found) != SUCCESS || address == NULL) {
        return MOE_CLI_FAIL(error, "the CUDA driver has no %s of version %d.%d", name,
                            version / 1000, version % 1000 / 10);
    }
    memcpy(out, &address, sizeof address); /* ISO C has no cast from an object to a function */
    return 0;
}

static int bind_driver(struct moe_gpu *gpu, struct moe_cli_error *error)
{
    get_proc_address_fn *get = NULL;
    gpu->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (gpu->library == NULL) {
        return MOE_CLI_FAIL(error, "the CUDA driver cannot be opened: %s", dlerror());
    }
    void *symbol = dlsym(gpu->library, "cuGetProcAddress_v2");
    if (symbol == NULL) {
        return MOE_CLI_FAIL(error, "the CUDA driver is older than %d.%d", NEWEST_VERSION / 1000,
                            NEWEST_VERSION % 1000 / 10);
    }
    memcpy(&get, &symbol, sizeof get);
#define BIND(function, version, parameters)                                                \
    if (bind_function(get, #function, version, (void *)&gpu->cuda.function, error) != 0) { \
        return -1;                                                                         \
    }
    GPU_FUNCTIONS(BIND)
#undef BIND
    return 0;
}

static int start(struct moe_gpu *gpu, int32_t ordinal, struct moe_cli_error *error)
{
    void *context = NULL;
    if (bind_driver(gpu, error) != 0 || CALL(gpu, error, cuInit, 0) != 0 ||
        CALL(gpu, error, cuDeviceGet, &gpu->device, ordinal) != 0 ||
        CALL(gpu, error, cuDevicePrimaryCtxRetain, &context, gpu->device) != 0) {
        return -1;
    }
    gpu->is_retained = 1;
    if (CALL(gpu, error, cuCtxPushCurrent, context) != 0) {
        return -1;
    }
    gpu->is_pushed = 1;
    if (CALL(gpu, error, cuStreamCreate, &gpu->stream, STREAM_NON_BLOCKING) != 0 ||
        CALL(gpu, error, cuEventCreate, &gpu->begin, 0) != 0 ||
        CALL(gpu, error, cuEventCreate, &gpu->end, 0) != 0) {
        return -1;
    }
    return 0;
}

int moe_gpu_open(int32_t ordinal, struct moe_gpu **out, struct moe_cli_error *error)
{
    struct moe_gpu *gpu = calloc(1, sizeof *gpu);
    if (gpu == NULL) {
        return moe_cli_fail_memory(error, "opening the GPU");
    }
    if (start(gpu, ordinal, error) != 0) {
        moe_gpu_close(gpu);
        return -1;
    }
    *out = gpu;
    return 0;
}

void moe_gpu_close(struct moe_gpu *gpu)
{
    if (gpu == NULL) {
        return;
    }
    void *popped = NULL;
    if (gpu->end != NULL) {
        (void)gpu->cuda.cuEventDestroy(gpu->end);
    }
    if (gpu->begin != NULL) {
        (void)gpu->cuda.cuEventDestroy(gpu->begin);
    }
    if (gpu->stream != NULL) {
        (void)gpu->cuda.cuStreamDestroy(gpu->stream);
    }
    if (gpu->is_pushed) {
        (void)gpu->cuda.cuCtxPopCurrent(&popped);
    }
    if (gpu->is_retained) {
        (void)gpu->cuda.cuDevicePrimaryCtxRelease(gpu->device);
    }
    if (gpu->library != NULL) {
        dlclose(gpu->library);
    }
    free(gpu);
}

void *moe_gpu_stream(const struct moe_gpu *gpu)
{
    return gpu->stream;
}

int moe_gpu_available(struct moe_gpu *gpu, uint64_t *num_bytes, struct moe_cli_error *error)
{
    size_t available = 0, total = 0;
    if (CALL(gpu, error, cuMemGetInfo, &available, &total) != 0) {
        return -1;
    }
    *num_bytes = available;
    return 0;
}

int moe_gpu_alloc(struct moe_gpu *gpu, uint64_t num_bytes, const char *purpose, void **out,
                  struct moe_cli_error *error)
{
    uint64_t memory = 0;
    if (CALL(gpu, error, cuMemAlloc, &memory, num_bytes > 0 ? (size_t)num_bytes : 1) != 0) {
        moe_cli_error_append(error, "; %" PRIu64 " MB of device memory were wanted for %s",
                             num_bytes / 1000000, purpose);
        return -1;
    }
    *out = (void *)(uintptr_t)memory;
    return 0;
}

void moe_gpu_free(struct moe_gpu *gpu, void *memory)
{
    if (memory != NULL) {
        (void)gpu->cuda.cuMemFree((uint64_t)(uintptr_t)memory);
    }
}

int moe_gpu_upload(struct moe_gpu *gpu, void *to, const void *from, uint64_t num_bytes,
                   struct moe_cli_error *error)
{
    return CALL(gpu, error, cuMemcpyHtoDAsync, (uint64_t)(uintptr_t)to, from, (size_t)num_bytes,
                gpu->stream) != 0
               ? -1
               : moe_gpu_wait(gpu, error);
}

int moe_gpu_download(struct moe_gpu *gpu, void *to, const void *from, uint64_t num_bytes,
                     struct moe_cli_error *error)
{
    return CALL(gpu, error, cuMemcpyDtoHAsync, to, (uint64_t)(uintptr_t)from, (size_t)num_bytes,
                gpu->stream) != 0
               ? -1
               : moe_gpu_wait(gpu, error);
}

int moe_gpu_copy(struct moe_gpu *gpu, void *to, const void *from, uint64_t num_bytes,
                 struct moe_cli_error *error)
{
    return CALL(gpu, error, cuMemcpyDtoDAsync, (uint64_t)(uintptr_t)to, (uint64_t)(uintptr_t)from,
                (size_t)num_bytes, gpu->stream);
}

int moe_gpu_set(struct moe_gpu *gpu, void *to, uint32_t word, uint64_t num_bytes,
                struct moe_cli_error *error)
{
    return CALL(gpu, error, cuMemsetD32Async, (uint64_t)(uintptr_t)to, word,
                (size_t)(num_bytes / sizeof word), gpu->stream);
}

int moe_gpu_wait(struct moe_gpu *gpu, struct moe_cli_error *error)
{
    return CALL(gpu, error, cuStreamSynchronize, gpu->stream);
}

/* A capture is ended whatever happened in it: else the stream would stay unusable. */
int moe_gpu_capture(struct moe_gpu *gpu, moe_gpu_record_fn *record, void *self,
                    struct moe_gpu_graph **out, struct moe_cli_error *error)
{
    struct moe_gpu_graph *graph = calloc(1, sizeof *graph);
    if (graph == NULL) {
        return moe_cli_fail_memory(error, "capturing a graph");
    }
    int status = CALL(gpu, error, cuStreamBeginCapture, gpu->stream, CAPTURE_THREAD_LOCAL);
    if (status == 0) {
        status = record(self, error);
        const int result = gpu->cuda.cuStreamEndCapture(gpu->stream, &graph->graph);
        status = status != 0 ? status : check(gpu, error, "cuStreamEndCapture", result);
    }
    if (status != 0 ||
        CALL(gpu, error, cuGraphInstantiateWithFlags, &graph->executable, graph->graph, 0) != 0) {
        moe_gpu_graph_destroy(gpu, graph);
        return -1;
    }
    *out = graph;
    return 0;
}

int moe_gpu_replay(struct moe_gpu *gpu, struct moe_gpu_graph *graph, double *seconds,
                   struct moe_cli_error *error)
{
    float milliseconds = 0.0f;
    if (CALL(gpu, error, cuEventRecord, gpu->begin, gpu->stream) != 0 ||
        CALL(gpu, error, cuGraphLaunch, graph->executable, gpu->stream) != 0 ||
        CALL(gpu, error, cuEventRecord, gpu->end, gpu->stream) != 0 ||
        CALL(gpu, error, cuEventSynchronize, gpu->end) != 0 ||
        CALL(gpu, error, cuEventElapsedTime, &milliseconds, gpu->begin, gpu->end) != 0) {
        return -1;
    }
    *seconds = 1e-3 * (double)milliseconds;
    return 0;
}

void moe_gpu_graph_destroy(struct moe_gpu *gpu, struct moe_gpu_graph *graph)
{
    if (graph == NULL) {
        return;
    }
    if (graph->executable != NULL) {
        (void)gpu->cuda.cuGraphExecDestroy(graph->executable);
    }
    if (graph->graph != NULL) {
        (void)gpu->cuda.cuGraphDestroy(graph->graph);
    }
    free(graph);
}

int moe_gpu_clock(struct moe_gpu *gpu, double *hz, struct moe_cli_error *error)
{
    int khz = 0;
    if (CALL(gpu, error, cuDeviceGetAttribute, &khz, ATTRIBUTE_CLOCK_KHZ, gpu->device) != 0) {
        return -1;
    }
    *hz = 1e3 * (double)khz;
    return 0;
}
