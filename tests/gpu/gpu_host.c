/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_host.h"

#include "gpu_limits.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>
#include <time.h>

/* X(function, symbol): what this host needs of libcuda. */
#define GPU_FUNCTIONS(X)                                         \
    X(cuInit, cuInit)                                            \
    X(cuGetErrorName, cuGetErrorName)                            \
    X(cuDeviceGet, cuDeviceGet)                                  \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)        \
    X(cuCtxSetCurrent, cuCtxSetCurrent)                          \
    X(cuMemAlloc, cuMemAlloc_v2)                                 \
    X(cuMemFree, cuMemFree_v2)                                   \
    X(cuMemcpyHtoD, cuMemcpyHtoD_v2)                             \
    X(cuMemcpyDtoH, cuMemcpyDtoH_v2)                             \
    X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2)                   \
    X(cuMemsetD8, cuMemsetD8_v2)                                 \
    X(cuStreamCreate, cuStreamCreate)                            \
    X(cuStreamSynchronize, cuStreamSynchronize)                  \
    X(cuStreamBeginCapture, cuStreamBeginCapture_v2)             \
    X(cuStreamEndCapture, cuStreamEndCapture)                    \
    X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags)  \
    X(cuGraphLaunch, cuGraphLaunch)                              \
    X(cuGraphExecDestroy, cuGraphExecDestroy)                    \
    X(cuGraphDestroy, cuGraphDestroy)                            \
    X(cuGraphGetNodes, cuGraphGetNodes)                          \
    X(cuGraphNodeGetType, cuGraphNodeGetType)                    \
    X(cuGraphKernelNodeGetParams, cuGraphKernelNodeGetParams_v2) \
    X(cuFuncGetName, cuFuncGetName)                              \
    X(cuKernelGetName, cuKernelGetName)                          \
    X(cuEventCreate, cuEventCreate)                              \
    X(cuEventRecord, cuEventRecord)                              \
    X(cuEventSynchronize, cuEventSynchronize)                    \
    X(cuEventElapsedTime, cuEventElapsedTime_v2)                 \
    X(cuEventDestroy, cuEventDestroy_v2)                         \
    X(cuModuleLoadData, cuModuleLoadData)                        \
    X(cuModuleGetFunction, cuModuleGetFunction)                  \
    X(cuLaunchKernelEx, cuLaunchKernelEx)

static struct {
#define MEMBER(function, symbol) __typeof__(&function) function;
    GPU_FUNCTIONS(MEMBER)
#undef MEMBER
} cuda;

static CUfunction limit_empty, limit_chain, limit_read, limit_write, limit_copy, limit_random;
static void *limit_sink;

enum { MAX_FATBIN_BYTES = 4 << 20 };

static void stop(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(2);
}

static void check(CUresult result, const char *what)
{
    const char *name = NULL;
    if (result != CUDA_SUCCESS) {
        cuda.cuGetErrorName(result, &name);
        stop(what, name != NULL ? name : "unknown error");
    }
}

void gpu_host_check(int32_t status, const struct moe_error *error, const char *what)
{
    if (status != MOE_STATUS_OK) {
        stop(what, error->message);
    }
}

static void bind_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        stop("libcuda.so.1", dlerror());
    }
#define BIND(function, symbol)                                     \
    {                                                              \
        void *address = dlsym(library, #symbol);                   \
        if (address == NULL) {                                     \
            stop(#symbol, "the driver lacks it");                  \
        }                                                          \
        memcpy((void *)&cuda.function, &address, sizeof(address)); \
    }
    GPU_FUNCTIONS(BIND)
#undef BIND
}

static void print_log(void *self, int32_t level, const char *text, uint64_t text_bytes)
{
    (void)self;
    if (level <= MOE_LEVEL_WARNING) {
        fprintf(stderr, "%.*s\n", (int)text_bytes, text);
    }
}

static void beside(const char *program, const char *name, char *out, size_t out_bytes)
{
    const char *slash = strrchr(program, '/');
    snprintf(out, out_bytes, "%.*s/%s", slash != NULL ? (int)(slash - program) : 1,
             slash != NULL ? program : ".", name);
}

/* The plugin beside the program, its table and its CPU context. */
static void open_plugin(struct gpu_host *host, const char *program, struct moe_host *services)
{
    char path[4096];
    struct moe_error error;
    struct moe_context_options options;
    beside(program, "../lib/libmoe_plugin.so", path, sizeof(path));
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (plugin == NULL) {
        stop(path, dlerror());
    }
    moe_plugin_init_fn *init = NULL;
    void *address = dlsym(plugin, MOE_PLUGIN_INIT_SYMBOL);
    memcpy((void *)&init, &address, sizeof(address));
    MOE_INIT(error);
    MOE_INIT(*services);
    services->abi_major = MOE_ABI_MAJOR;
    services->abi_minor = MOE_ABI_MINOR;
    services->layout_hash = MOE_ABI_LAYOUT_HASH;
    services->log = print_log;
    host->api = init(services, &error);
    if (host->api == NULL) {
        stop(path, error.message);
    }
    MOE_INIT(options);
    options.backend = MOE_BACKEND_CPU;
    gpu_host_check(host->api->context_create(services, &options, &host->cpu, &error), &error,
                   "cpu context");
}

void gpu_host_init_cpu(struct gpu_host *host, const char *program)
{
    struct moe_host services;
    struct moe_error error;
    memset(host, 0, sizeof(*host));
    open_plugin(host, program, &services);
    MOE_INIT(error);
    MOE_INIT(host->device);
    gpu_host_check(host->api->context_device(host->cpu, &host->device, &error), &error, "device");
    host->cuda = host->cpu;
}

void gpu_host_init(struct gpu_host *host, const char *program)
{
    CUdevice device;
    CUcontext context;
    struct moe_error error;
    struct moe_host services;
    struct moe_context_options options;
    memset(host, 0, sizeof(*host));
    bind_driver();
    check(cuda.cuInit(0), "cuInit");
    check(cuda.cuDeviceGet(&device, 0), "cuDeviceGet");
    check(cuda.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    host->stream = gpu_stream();
    open_plugin(host, program, &services);
    MOE_INIT(error);
    MOE_INIT(options);
    options.backend = MOE_BACKEND_CUDA;
    gpu_host_check(host->api->context_create(&services, &options, &host->cuda, &error), &error,
                   "cuda context");
    MOE_INIT(host->device);
    gpu_host_check(host->api->context_device(host->cuda, &host->device, &error), &error, "device");
    printf("%s, sm_%d, %d SMs, driver %d, plugin %s %s, kernel set %s\n", host->device.name,
           host->device.sm, host->device.num_sms, host->device.driver_version, host->api->version,
           host->api->source_id, host->api->kernel_set_id);
}

void gpu_host_finish(struct gpu_host *host)
{
    if (host->cuda != host->cpu) {
        host->api->context_destroy(host->cuda);
    }
    host->api->context_destroy(host->cpu);
}

/* Without a driver, memory of the device is memory of this machine. */
static int is_host_memory(void)
{
    return cuda.cuMemAlloc == NULL;
}

void *gpu_alloc(size_t bytes)
{
    CUdeviceptr memory = 0;
    if (is_host_memory()) {
        void *own = aligned_alloc(256, (bytes + 256) / 256 * 256);
        if (own == NULL) {
            stop("gpu_alloc", "no memory");
        }
        return own;
    }
    check(cuda.cuMemAlloc(&memory, bytes > 0 ? bytes : 1), "cuMemAlloc");
    return (void *)(uintptr_t)memory;
}

void gpu_free(void *memory)
{
    if (is_host_memory()) {
        free(memory);
    } else if (memory != NULL) {
        check(cuda.cuMemFree((CUdeviceptr)(uintptr_t)memory), "cuMemFree");
    }
}

void gpu_upload(void *device, const void *host, size_t bytes)
{
    if (is_host_memory()) {
        memcpy(device, host, bytes);
        return;
    }
    check(cuda.cuMemcpyHtoD((CUdeviceptr)(uintptr_t)device, host, bytes), "cuMemcpyHtoD");
    check(cuda.cuStreamSynchronize(NULL), "cuMemcpyHtoD"); /* pageable memory may lag behind */
}

void gpu_download(void *host, const void *device, size_t bytes)
{
    if (is_host_memory()) {
        memcpy(host, device, bytes);
        return;
    }
    check(cuda.cuMemcpyDtoH(host, (CUdeviceptr)(uintptr_t)device, bytes), "cuMemcpyDtoH");
}

void gpu_poison(void *device, int byte, size_t bytes)
{
    if (is_host_memory()) {
        memset(device, byte, bytes);
        return;
    }
    check(cuda.cuMemsetD8((CUdeviceptr)(uintptr_t)device, (unsigned char)byte, bytes),
          "cuMemsetD8");
    check(cuda.cuStreamSynchronize(NULL), "poison");
}

void gpu_synchronize(CUstream stream)
{
    if (!is_host_memory()) {
        check(cuda.cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
}

struct gpu_graph {
    CUgraph graph;
    CUgraphExec exec;
    gpu_record_fn *record; /* without a driver: what a replay calls */
    void *self;
};

void gpu_graph_begin(CUstream stream, CUstreamCaptureMode mode)
{
    check(cuda.cuStreamBeginCapture(stream, mode), "cuStreamBeginCapture");
}

struct gpu_graph *gpu_graph_end(CUstream stream)
{
    struct gpu_graph *graph = calloc(1, sizeof(*graph));
    if (graph == NULL) {
        stop("graph", "no memory");
    }
    check(cuda.cuStreamEndCapture(stream, &graph->graph), "cuStreamEndCapture");
    check(cuda.cuGraphInstantiateWithFlags(&graph->exec, graph->graph, 0), "cuGraphInstantiate");
    return graph;
}

struct gpu_graph *gpu_graph_make(CUstream stream, CUstreamCaptureMode mode, gpu_record_fn *record,
                                 void *self)
{
    if (is_host_memory()) {
        struct gpu_graph *graph = calloc(1, sizeof(*graph));
        if (graph == NULL) {
            stop("graph", "no memory");
        }
        graph->record = record;
        graph->self = self;
        return graph;
    }
    gpu_graph_begin(stream, mode);
    record(self, stream);
    return gpu_graph_end(stream);
}

void gpu_graph_launch(struct gpu_graph *graph, CUstream stream)
{
    if (graph->record != NULL) {
        graph->record(graph->self, stream);
        return;
    }
    check(cuda.cuGraphLaunch(graph->exec, stream), "cuGraphLaunch");
}

void gpu_graph_free(struct gpu_graph *graph)
{
    if (graph->record == NULL) {
        check(cuda.cuGraphExecDestroy(graph->exec), "cuGraphExecDestroy");
        check(cuda.cuGraphDestroy(graph->graph), "cuGraphDestroy");
    }
    free(graph);
}

/* The driver's handle of a kernel is one of two kinds. */
static const char *kernel_name(CUgraphNode node)
{
    CUDA_KERNEL_NODE_PARAMS params;
    const char *name = NULL;
    memset(&params, 0, sizeof(params));
    check(cuda.cuGraphKernelNodeGetParams(node, &params), "cuGraphKernelNodeGetParams");
    const CUresult result = params.func != NULL ? cuda.cuFuncGetName(&name, params.func)
                                                : cuda.cuKernelGetName(&name, params.kern);
    check(result, "the name of a captured kernel");
    return name;
}

void gpu_captured_kernels(CUstream stream, gpu_record_fn *record, void *self, gpu_kernel_fn *visit,
                          void *visitor)
{
    CUgraph graph;
    size_t num_nodes = 0;
    check(cuda.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), "captured kernels");
    record(self, stream);
    check(cuda.cuStreamEndCapture(stream, &graph), "captured kernels");
    check(cuda.cuGraphGetNodes(graph, NULL, &num_nodes), "cuGraphGetNodes");
    CUgraphNode *nodes = calloc(num_nodes + 1, sizeof(CUgraphNode));
    if (nodes == NULL) {
        stop("captured kernels", "no memory");
    }
    if (num_nodes > 0) { /* which of a graph without nodes are an error */
        check(cuda.cuGraphGetNodes(graph, nodes, &num_nodes), "cuGraphGetNodes");
    }
    for (size_t i = 0; i < num_nodes; i++) {
        CUgraphNodeType type;
        check(cuda.cuGraphNodeGetType(nodes[i], &type), "cuGraphNodeGetType");
        if (type == CU_GRAPH_NODE_TYPE_KERNEL) {
            visit(visitor, kernel_name(nodes[i]));
        }
    }
    free(nodes);
    check(cuda.cuGraphDestroy(graph), "cuGraphDestroy");
}

CUstream gpu_stream(void)
{
    if (is_host_memory()) {
        return NULL;
    }
    CUstream stream = NULL;
    check(cuda.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    return stream;
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double now_ms(void)
{
    struct timespec now;
    (void)timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* Something of the stream's own for a while, so that clocks are those of steady work. */
static void warm_up(CUstream stream, CUgraphExec exec, double warm_ms)
{
    for (const double start = now_ms(); now_ms() - start < warm_ms;) {
        check(cuda.cuGraphLaunch(exec, stream), "cuGraphLaunch");
        check(cuda.cuStreamSynchronize(stream), "cuStreamSynchronize");
    }
}

static void idle(double idle_ms)
{
    const struct timespec pause = {(time_t)(idle_ms / 1e3), (long)(fmod(idle_ms, 1e3) * 1e6)};
    (void)thrd_sleep(&pause, NULL);
}

/* One replay in microseconds. */
static double time_replay(CUstream stream, CUgraphExec exec, CUevent begin, CUevent end)
{
    float milliseconds = 0.0f;
    check(cuda.cuEventRecord(begin, stream), "cuEventRecord");
    check(cuda.cuGraphLaunch(exec, stream), "cuGraphLaunch");
    check(cuda.cuEventRecord(end, stream), "cuEventRecord");
    check(cuda.cuEventSynchronize(end), "cuEventSynchronize");
    check(cuda.cuEventElapsedTime(&milliseconds, begin, end), "cuEventElapsedTime");
    return 1000.0 * (double)milliseconds;
}

struct gpu_timing gpu_time_graph_paced(CUstream stream, gpu_record_fn *record, void *self,
                                       int num_replays, const struct gpu_pace *pace)
{
    CUevent begin, end;
    double *samples = calloc((size_t)num_replays, sizeof(*samples));
    void *flush = pace->flush_bytes > 0 ? gpu_alloc(pace->flush_bytes) : NULL;
    if (samples == NULL) {
        stop("samples", "no memory");
    }
    check(cuda.cuEventCreate(&begin, CU_EVENT_DEFAULT), "cuEventCreate");
    check(cuda.cuEventCreate(&end, CU_EVENT_DEFAULT), "cuEventCreate");
    struct gpu_graph *graph = gpu_graph_make(stream, CU_STREAM_CAPTURE_MODE_GLOBAL, record, self);
    warm_up(stream, graph->exec, pace->warm_ms);
    for (int i = -pace->num_untimed; i < num_replays; i++) {
        if (flush != NULL) {
            gpu_limits_write(stream, flush, pace->flush_bytes);
        }
        if (pace->idle_ms > 0.0) {
            gpu_synchronize(stream);
            idle(pace->idle_ms);
        }
        const double us = time_replay(stream, graph->exec, begin, end);
        if (i >= 0) {
            samples[i] = us;
        }
    }
    qsort(samples, (size_t)num_replays, sizeof(*samples), compare_doubles);
    struct gpu_timing timing = {samples[num_replays / 2], samples[num_replays / 10],
                                samples[num_replays - 1 - num_replays / 10]};
    check(cuda.cuEventDestroy(begin), "cuEventDestroy");
    check(cuda.cuEventDestroy(end), "cuEventDestroy");
    gpu_graph_free(graph);
    gpu_free(flush);
    free(samples);
    return timing;
}

struct gpu_timing gpu_time_graph(CUstream stream, gpu_record_fn *record, void *self,
                                 int num_replays, size_t flush_bytes)
{
    const struct gpu_pace pace = {.num_untimed = 3, .flush_bytes = flush_bytes};
    return gpu_time_graph_paced(stream, record, self, num_replays, &pace);
}

void *gpu_module_open(const char *program, const char *name)
{
    char path[4096];
    CUmodule module;
    beside(program, name, path, sizeof(path));
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        stop(path, "cannot be opened");
    }
    char *image = calloc(1, MAX_FATBIN_BYTES);
    const size_t bytes = fread(image, 1, MAX_FATBIN_BYTES, file);
    fclose(file);
    if (bytes == 0 || bytes == MAX_FATBIN_BYTES) {
        stop(path, "is empty or too large");
    }
    check(cuda.cuModuleLoadData(&module, image), path);
    free(image);
    return module;
}

CUfunction gpu_module_function(void *module, const char *symbol)
{
    CUfunction function;
    check(cuda.cuModuleGetFunction(&function, module, symbol), symbol);
    return function;
}

void gpu_limits_open(const char *program)
{
    void *module = gpu_module_open(program, "gpu_limits.fatbin");
    limit_empty = gpu_module_function(module, "gpu_empty");
    limit_chain = gpu_module_function(module, "gpu_chain");
    limit_random = gpu_module_function(module, "gpu_random");
    limit_read = gpu_module_function(module, "gpu_read");
    limit_write = gpu_module_function(module, "gpu_write");
    limit_copy = gpu_module_function(module, "gpu_copy");
    limit_sink = gpu_alloc(16);
}

static void launch(CUstream stream, CUfunction function, unsigned num_ctas, unsigned num_threads,
                   void **args, int is_pdl)
{
    CUlaunchAttribute attribute = {.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION};
    attribute.value.programmaticStreamSerializationAllowed = 1;
    const CUlaunchConfig config = {.gridDimX = num_ctas,
                                   .gridDimY = 1,
                                   .gridDimZ = 1,
                                   .blockDimX = num_threads,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .hStream = stream,
                                   .attrs = &attribute,
                                   .numAttrs = is_pdl ? 1 : 0};
    check(cuda.cuLaunchKernelEx(&config, function, args, NULL), "cuLaunchKernelEx");
}

void gpu_launch(CUstream stream, CUfunction function, unsigned num_ctas, unsigned num_threads,
                void **args)
{
    launch(stream, function, num_ctas, num_threads, args, 0);
}

void gpu_limits_empty(CUstream stream)
{
    launch(stream, limit_empty, 1, 32, NULL, 0);
}

void gpu_limits_chain(CUstream stream, void *at, int is_pdl)
{
    void *args[] = {&at};
    launch(stream, limit_chain, 1, 32, args, is_pdl);
}

void gpu_fill_random(CUstream stream, void *to, size_t num_words, uint64_t random_seed,
                     int32_t is_fp32)
{
    int32_t kind = is_fp32 ? GPU_FILL_FP32 : GPU_FILL_BF16;
    void *args[] = {&to, &num_words, &random_seed, &kind};
    launch(stream, limit_random, 132 * 4, 512, args, 0);
}

void gpu_fill_random_fp16(CUstream stream, void *to, size_t num_words, uint64_t random_seed)
{
    int32_t kind = GPU_FILL_FP16;
    void *args[] = {&to, &num_words, &random_seed, &kind};
    launch(stream, limit_random, 132 * 4, 512, args, 0);
}

void gpu_limits_read(CUstream stream, const void *from, size_t bytes)
{
    int64_t num_vectors = (int64_t)(bytes / 16);
    void *args[] = {&from, &num_vectors, &limit_sink};
    launch(stream, limit_read, 132 * 4, 512, args, 0);
}

void gpu_limits_write(CUstream stream, void *to, size_t bytes)
{
    int64_t num_vectors = (int64_t)(bytes / 16);
    uint32_t value = 12345;
    void *args[] = {&to, &num_vectors, &value};
    launch(stream, limit_write, 132 * 4, 512, args, 0);
}

void gpu_limits_copy(CUstream stream, const void *from, void *to, size_t bytes)
{
    int64_t num_vectors = (int64_t)(bytes / 16);
    void *args[] = {&from, &to, &num_vectors};
    launch(stream, limit_copy, 132 * 4, 512, args, 0);
}

void gpu_driver_copy(CUstream stream, const void *from, void *to, size_t bytes)
{
    check(cuda.cuMemcpyDtoDAsync((CUdeviceptr)(uintptr_t)to, (CUdeviceptr)(uintptr_t)from, bytes,
                                 stream),
          "cuMemcpyDtoDAsync");
}

uint64_t gpu_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
