/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "fake_host.h"

#include <cudaTypedefs.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_BLOCKS = 4096, MAX_STREAMS = 16, MAX_NODES = 4096 };

/* X(function, version), as in cuda_driver.h. */
#define FAKE_HOST_FUNCTIONS(X)            \
    X(cuMemGetInfo, 3020)                 \
    X(cuMemAlloc, 3020)                   \
    X(cuMemFree, 3020)                    \
    X(cuMemcpyHtoDAsync, 3020)            \
    X(cuMemcpyDtoHAsync, 3020)            \
    X(cuMemcpyDtoDAsync, 3020)            \
    X(cuMemsetD32Async, 3020)             \
    X(cuStreamCreate, 2000)               \
    X(cuStreamDestroy, 4000)              \
    X(cuStreamSynchronize, 2000)          \
    X(cuStreamBeginCapture, 10010)        \
    X(cuStreamEndCapture, 10000)          \
    X(cuGraphInstantiateWithFlags, 11040) \
    X(cuGraphLaunch, 10000)               \
    X(cuGraphExecDestroy, 10000)          \
    X(cuGraphDestroy, 10000)              \
    X(cuEventCreate, 2000)                \
    X(cuEventRecord, 2000)                \
    X(cuEventSynchronize, 2000)           \
    X(cuEventElapsedTime, 2000)           \
    X(cuEventDestroy, 4000)

/* Something that a stream does: copies num_bytes, or sets them to `word` when `from` is 0; with no
 * bytes it is a kernel, which does nothing here. */
struct node {
    uintptr_t to, from;
    size_t num_bytes;
    unsigned int word;
};

struct graph {
    int num_owners; /* itself and its executable */
    size_t num_nodes;
    struct node nodes[MAX_NODES];
};

struct stream {
    struct graph *captured; /* NULL: does not capture */
};

struct event {
    double milliseconds;
};

struct block {
    uintptr_t bytes;
    size_t num_bytes;
};

static struct block blocks[MAX_BLOCKS];
static struct stream *streams[MAX_STREAMS];

#define ENTER(function)                               \
    do {                                              \
        const CUresult entry = fake_enter(#function); \
        if (entry != CUDA_SUCCESS) {                  \
            return entry;                             \
        }                                             \
    } while (0)

/* ---------------------------------------------------------------- memory */

static struct block *find_block(uintptr_t at, size_t num_bytes)
{
    for (size_t i = 0; i < MAX_BLOCKS; i++) {
        if (blocks[i].bytes != 0 && at >= blocks[i].bytes &&
            at + num_bytes <= blocks[i].bytes + blocks[i].num_bytes) {
            return &blocks[i];
        }
    }
    return NULL;
}

static CUresult CUDAAPI fake_cuMemGetInfo(size_t *available, size_t *total)
{
    ENTER(cuMemGetInfo);
    const char *bytes = getenv("FAKE_MEMORY_BYTES"); /* that are left; without it, 8 GiB */
    *total = (size_t)8 << 30;
    *available = bytes != NULL ? (size_t)atoll(bytes) : *total;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuMemAlloc(CUdeviceptr *out, size_t num_bytes)
{
    void *bytes = NULL;
    ENTER(cuMemAlloc);
    if (num_bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < MAX_BLOCKS; i++) {
        if (blocks[i].bytes != 0) {
            continue;
        }
        if (posix_memalign(&bytes, 256, num_bytes) != 0) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        blocks[i] = (struct block){(uintptr_t)bytes, num_bytes};
        fake_driver_state()->num_blocks++;
        *out = (CUdeviceptr)(uintptr_t)bytes;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult CUDAAPI fake_cuMemFree(CUdeviceptr memory)
{
    const CUresult result = fake_enter("cuMemFree");
    struct block *block = find_block((uintptr_t)memory, 1);
    if (block == NULL || block->bytes != (uintptr_t)memory) {
        fake_misuse("cuMemFree");
        return CUDA_ERROR_INVALID_VALUE;
    }
    free((void *)block->bytes);
    block->bytes = 0;
    fake_driver_state()->num_blocks--;
    return result;
}

/* ---------------------------------------------------------------- streams and their work */

static struct stream *find_stream(const void *handle)
{
    for (size_t i = 0; i < MAX_STREAMS; i++) {
        if (streams[i] != NULL && streams[i] == handle) {
            return streams[i];
        }
    }
    return NULL;
}

static void run_node(const struct node *node)
{
    unsigned char *to = (unsigned char *)node->to;
    if (node->from != 0) {
        memmove(to, (const void *)node->from, node->num_bytes);
        return;
    }
    for (size_t i = 0; i + sizeof(node->word) <= node->num_bytes; i += sizeof(node->word)) {
        memcpy(to + i, &node->word, sizeof(node->word));
    }
}

/* Now, or in the graph of a stream that captures. */
static CUresult queue(void *handle, struct node node, const char *function)
{
    struct stream *stream = find_stream(handle);
    if (stream == NULL) {
        fake_misuse(function);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (stream->captured == NULL) {
        run_node(&node);
        return CUDA_SUCCESS;
    }
    if (stream->captured->num_nodes == MAX_NODES) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    stream->captured->nodes[stream->captured->num_nodes++] = node;
    return CUDA_SUCCESS;
}

void fake_host_launch(void *handle)
{
    struct stream *stream = find_stream(handle);
    if (stream != NULL) {
        queue(handle, (struct node){0, 0, 0, 0}, "cuLaunchKernelEx");
    }
}

static int is_inside(uintptr_t at, size_t num_bytes, const char *function)
{
    if (num_bytes > 0 && find_block(at, num_bytes) == NULL) {
        fake_misuse(function);
        return 0;
    }
    return 1;
}

static CUresult CUDAAPI fake_cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t num_bytes,
                                               CUstream stream)
{
    ENTER(cuMemcpyHtoDAsync);
    if (!is_inside((uintptr_t)to, num_bytes, "cuMemcpyHtoDAsync")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, (struct node){(uintptr_t)to, (uintptr_t)from, num_bytes, 0},
                 "cuMemcpyHtoDAsync");
}

static CUresult CUDAAPI fake_cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t num_bytes,
                                               CUstream stream)
{
    ENTER(cuMemcpyDtoHAsync);
    if (!is_inside((uintptr_t)from, num_bytes, "cuMemcpyDtoHAsync")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, (struct node){(uintptr_t)to, (uintptr_t)from, num_bytes, 0},
                 "cuMemcpyDtoHAsync");
}

static CUresult CUDAAPI fake_cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t num_bytes,
                                               CUstream stream)
{
    ENTER(cuMemcpyDtoDAsync);
    if (!is_inside((uintptr_t)from, num_bytes, "cuMemcpyDtoDAsync") ||
        !is_inside((uintptr_t)to, num_bytes, "cuMemcpyDtoDAsync")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, (struct node){(uintptr_t)to, (uintptr_t)from, num_bytes, 0},
                 "cuMemcpyDtoDAsync");
}

static CUresult CUDAAPI fake_cuMemsetD32Async(CUdeviceptr to, unsigned int word, size_t num_words,
                                              CUstream stream)
{
    ENTER(cuMemsetD32Async);
    if (!is_inside((uintptr_t)to, num_words * sizeof(word), "cuMemsetD32Async")) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return queue(stream, (struct node){(uintptr_t)to, 0, num_words * sizeof(word), word},
                 "cuMemsetD32Async");
}

static CUresult CUDAAPI fake_cuStreamCreate(CUstream *out, unsigned int flags)
{
    ENTER(cuStreamCreate);
    (void)flags;
    for (size_t i = 0; i < MAX_STREAMS; i++) {
        if (streams[i] == NULL) {
            streams[i] = calloc(1, sizeof(*streams[i]));
            *out = (CUstream)(void *)streams[i];
            fake_driver_state()->num_handles += streams[i] != NULL;
            return streams[i] != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult CUDAAPI fake_cuStreamDestroy(CUstream handle)
{
    const CUresult result = fake_enter("cuStreamDestroy");
    for (size_t i = 0; i < MAX_STREAMS; i++) {
        if (streams[i] != NULL && (void *)streams[i] == (void *)handle) {
            free(streams[i]->captured);
            free(streams[i]);
            streams[i] = NULL;
            fake_driver_state()->num_handles--;
            return result;
        }
    }
    fake_misuse("cuStreamDestroy");
    return CUDA_ERROR_INVALID_HANDLE;
}

static CUresult CUDAAPI fake_cuStreamSynchronize(CUstream handle)
{
    const struct stream *stream = find_stream(handle);
    ENTER(cuStreamSynchronize);
    if (stream != NULL && stream->captured != NULL) {
        fake_misuse("cuStreamSynchronize");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------- graphs */

static CUresult CUDAAPI fake_cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode)
{
    struct stream *stream = find_stream(handle);
    ENTER(cuStreamBeginCapture);
    (void)mode;
    if (stream == NULL || stream->captured != NULL) {
        fake_misuse("cuStreamBeginCapture");
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    stream->captured = calloc(1, sizeof(*stream->captured));
    return stream->captured != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Ends the capture even when it reports a failure. */
static CUresult CUDAAPI fake_cuStreamEndCapture(CUstream handle, CUgraph *out)
{
    const CUresult result = fake_enter("cuStreamEndCapture");
    struct stream *stream = find_stream(handle);
    if (stream == NULL || stream->captured == NULL) {
        fake_misuse("cuStreamEndCapture");
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    struct graph *graph = stream->captured;
    stream->captured = NULL;
    if (result != CUDA_SUCCESS) {
        free(graph);
        return result;
    }
    graph->num_owners = 1;
    fake_driver_state()->num_handles++;
    *out = (CUgraph)(void *)graph;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph handle,
                                                         unsigned long long flags)
{
    struct graph *graph = (struct graph *)(void *)handle;
    ENTER(cuGraphInstantiateWithFlags);
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    graph->num_owners++;
    fake_driver_state()->num_handles++;
    *out = (CUgraphExec)(void *)graph;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuGraphLaunch(CUgraphExec handle, CUstream stream)
{
    const struct graph *graph = (const struct graph *)(const void *)handle;
    ENTER(cuGraphLaunch);
    for (size_t i = 0; i < graph->num_nodes; i++) {
        const CUresult result = queue(stream, graph->nodes[i], "cuGraphLaunch");
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    return CUDA_SUCCESS;
}

static void disown(struct graph *graph)
{
    fake_driver_state()->num_handles--;
    if (--graph->num_owners == 0) {
        free(graph);
    }
}

static CUresult CUDAAPI fake_cuGraphExecDestroy(CUgraphExec handle)
{
    const CUresult result = fake_enter("cuGraphExecDestroy");
    disown((struct graph *)(void *)handle);
    return result;
}

static CUresult CUDAAPI fake_cuGraphDestroy(CUgraph handle)
{
    const CUresult result = fake_enter("cuGraphDestroy");
    disown((struct graph *)(void *)handle);
    return result;
}

/* ---------------------------------------------------------------- events */

static CUresult CUDAAPI fake_cuEventCreate(CUevent *out, unsigned int flags)
{
    ENTER(cuEventCreate);
    (void)flags;
    struct event *event = calloc(1, sizeof(*event));
    *out = (CUevent)(void *)event;
    fake_driver_state()->num_handles += event != NULL;
    return event != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult CUDAAPI fake_cuEventRecord(CUevent handle, CUstream stream)
{
    struct timespec now;
    struct event *event = (struct event *)(void *)handle;
    ENTER(cuEventRecord);
    (void)stream;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->milliseconds = 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuEventSynchronize(CUevent handle)
{
    ENTER(cuEventSynchronize);
    (void)handle;
    return CUDA_SUCCESS;
}

/* Never nothing, as on a device. */
static CUresult CUDAAPI fake_cuEventElapsedTime(float *milliseconds, CUevent begin, CUevent end)
{
    const struct event *first = (const struct event *)(const void *)begin;
    const struct event *last = (const struct event *)(const void *)end;
    ENTER(cuEventElapsedTime);
    *milliseconds = (float)(last->milliseconds - first->milliseconds) + 1e-3f;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuEventDestroy(CUevent handle)
{
    const CUresult result = fake_enter("cuEventDestroy");
    free((void *)handle);
    fake_driver_state()->num_handles--;
    return result;
}

/* ---------------------------------------------------------------- the table */

int fake_host_find(const char *name, int version, int driver_version, void **out)
{
#define OFFER(function, since)                               \
    if (strcmp(name, #function) == 0) {                      \
        PFN_##function##_v##since offered = fake_##function; \
        if (since > version || since > driver_version) {     \
            return 0;                                        \
        }                                                    \
        memcpy(out, &offered, sizeof(offered));              \
        return 1;                                            \
    }
    FAKE_HOST_FUNCTIONS(OFFER)
#undef OFFER
    return 0;
}

void fake_host_reset(void)
{
    for (size_t i = 0; i < MAX_BLOCKS; i++) {
        free((void *)blocks[i].bytes);
        blocks[i].bytes = 0;
    }
    for (size_t i = 0; i < MAX_STREAMS; i++) {
        if (streams[i] != NULL) {
            free(streams[i]->captured);
            free(streams[i]);
            streams[i] = NULL;
        }
    }
}
