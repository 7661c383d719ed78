/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_gemm.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS(X)                                            \
    X(cuInit, cuInit)                                           \
    X(cuGetErrorName, cuGetErrorName)                           \
    X(cuDeviceGet, cuDeviceGet)                                 \
    X(cuDeviceGetAttribute, cuDeviceGetAttribute)               \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)       \
    X(cuCtxSetCurrent, cuCtxSetCurrent)                         \
    X(cuMemAlloc, cuMemAlloc_v2)                                \
    X(cuMemFree, cuMemFree_v2)                                  \
    X(cuMemcpyHtoD, cuMemcpyHtoD_v2)                            \
    X(cuMemcpyDtoH, cuMemcpyDtoH_v2)                            \
    X(cuMemsetD8, cuMemsetD8_v2)                                \
    X(cuStreamCreate, cuStreamCreate)                           \
    X(cuStreamSynchronize, cuStreamSynchronize)                 \
    X(cuStreamBeginCapture, cuStreamBeginCapture_v2)            \
    X(cuStreamEndCapture, cuStreamEndCapture)                   \
    X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags) \
    X(cuGraphLaunch, cuGraphLaunch)                             \
    X(cuGraphExecDestroy, cuGraphExecDestroy)                   \
    X(cuGraphDestroy, cuGraphDestroy)                           \
    X(cuEventCreate, cuEventCreate)                             \
    X(cuEventRecord, cuEventRecord)                             \
    X(cuEventSynchronize, cuEventSynchronize)                   \
    X(cuEventElapsedTime, cuEventElapsedTime_v2)                \
    X(cuModuleLoadData, cuModuleLoadData)                       \
    X(cuModuleGetFunction, cuModuleGetFunction)                 \
    X(cuFuncSetAttribute, cuFuncSetAttribute)                   \
    X(cuLaunchKernel, cuLaunchKernel)                           \
    X(cuLaunchKernelEx, cuLaunchKernelEx)                       \
    X(cuTensorMapEncodeTiled, cuTensorMapEncodeTiled)

static struct {
#define MEMBER(function, symbol) __typeof__(&function) function;
    FUNCTIONS(MEMBER)
#undef MEMBER
} cuda;

static CUstream stream;
static CUmodule modules[2];
static int num_sms;

struct gemm_tile gemm_tiles[] = {
#define ROW_CPU_C11(...)
#define ROW_CPU_AVX2(...)
#define ROW_SM90_GEMM(...) ROW_OF("SM90_GEMM", 1, __VA_ARGS__)
#define ROW_SM90_PAIR(...) ROW_OF("SM90_PAIR", MOE_KERNEL_CTAS_SM90_PAIR, __VA_ARGS__)
#define ROW_OF(kernel, ctas, bm, bn, bk, group, warps, stages)                     \
    {"moe_GEMM_" kernel "_" #bm "_" #bn "_" #bk "_" #group "_" #warps "_" #stages, \
     ctas,                                                                         \
     bm,                                                                           \
     bn,                                                                           \
     bk,                                                                           \
     group,                                                                        \
     warps,                                                                        \
     stages,                                                                       \
     NULL},
#define MOE_TILE_GEMM(kernel, bm, bn, bk, group_m, warps, stages) \
    ROW_##kernel(bm, bn, bk, group_m, warps, stages)
#include "tiles.def"
};
const int num_gemm_tiles = (int)(sizeof(gemm_tiles) / sizeof(gemm_tiles[0]));

static void stop(const char *what, const char *why)
{
    printf("%s: %s\n", what, why);
    fflush(stdout);
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

static CUmodule load_module(const char *program, const char *name)
{
    char path[4096];
    CUmodule module;
    const char *slash = strrchr(program, '/');
    snprintf(path, sizeof(path), "%.*s/%s", slash != NULL ? (int)(slash - program) : 1,
             slash != NULL ? program : ".", name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        stop(path, "cannot be opened");
    }
    char *image = calloc(1, 32 << 20);
    if (image == NULL || fread(image, 1, (32 << 20) - 1, file) == 0) {
        stop(path, "is empty");
    }
    fclose(file);
    check(cuda.cuModuleLoadData(&module, image), path);
    free(image);
    return module;
}

void driver_open(const char *program)
{
    CUdevice device;
    CUcontext context;
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
    FUNCTIONS(BIND)
#undef BIND
    check(cuda.cuInit(0), "cuInit");
    check(cuda.cuDeviceGet(&device, 0), "cuDeviceGet");
    check(cuda.cuDeviceGetAttribute(&num_sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device),
          "cuDeviceGetAttribute");
    check(cuda.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check(cuda.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    modules[0] = load_module(program, "gpu_gemm.fatbin");
    modules[1] = load_module(program, "gpu_limits.fatbin");
    CUmodule gemm = load_module(program, "../cuda/gemm.fatbin");
    for (int i = 0; i < num_gemm_tiles; i++) {
        struct gemm_tile *tile = &gemm_tiles[i];
        check(cuda.cuModuleGetFunction(&tile->function, gemm, tile->symbol), tile->symbol);
        check(cuda.cuFuncSetAttribute(tile->function,
                                      CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 227 * 1024),
              tile->symbol);
    }
}

int driver_num_sms(void)
{
    return num_sms;
}

CUstream driver_stream(void)
{
    return stream;
}

void *driver_alloc(size_t bytes)
{
    CUdeviceptr memory = 0;
    check(cuda.cuMemAlloc(&memory, bytes > 0 ? bytes : 1), "cuMemAlloc");
    return (void *)(uintptr_t)memory;
}

void driver_free(void *memory)
{
    if (memory != NULL) {
        check(cuda.cuMemFree((CUdeviceptr)(uintptr_t)memory), "cuMemFree");
    }
}

void driver_upload(void *to, const void *from, size_t bytes)
{
    check(cuda.cuMemcpyHtoD((CUdeviceptr)(uintptr_t)to, from, bytes), "cuMemcpyHtoD");
}

void driver_download(void *to, const void *from, size_t bytes)
{
    check(cuda.cuMemcpyDtoH(to, (CUdeviceptr)(uintptr_t)from, bytes), "cuMemcpyDtoH");
}

void driver_poison(void *to, int byte, size_t bytes)
{
    check(cuda.cuMemsetD8((CUdeviceptr)(uintptr_t)to, (unsigned char)byte, bytes), "cuMemsetD8");
    check(cuda.cuStreamSynchronize(NULL), "cuMemsetD8");
}

void driver_synchronize(const char *what)
{
    check(cuda.cuStreamSynchronize(stream), what);
}

CUfunction driver_function(const char *name)
{
    CUfunction function = NULL;
    if (cuda.cuModuleGetFunction(&function, modules[0], name) != CUDA_SUCCESS) {
        check(cuda.cuModuleGetFunction(&function, modules[1], name), name);
    }
    return function;
}

void driver_launch(CUfunction function, unsigned num_ctas, unsigned num_threads, void **args)
{
    check(cuda.cuLaunchKernel(function, num_ctas, 1, 1, num_threads, 1, 1, 0, stream, args, NULL),
          "cuLaunchKernel");
}

void driver_launch_gemm(const struct gemm_tile *tile, const struct moe_cuda_gemm *args,
                        int num_ctas, int is_chained)
{
    CUlaunchAttribute attribute;
    CUlaunchConfig config;
    void *parameters[] = {(void *)(uintptr_t)args};
    const int64_t num_segments = args->op.expert_ids != NULL ? 0 : args->op.num_segments;
    memset(&config, 0, sizeof(config));
    memset(&attribute, 0, sizeof(attribute));
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    config.gridDimX =
        (unsigned)((num_ctas + tile->cluster_ctas - 1) / tile->cluster_ctas * tile->cluster_ctas);
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.blockDimX = (unsigned)(32 * tile->num_warps);
    config.sharedMemBytes =
        (unsigned)(MOE_CUDA_GEMM_FIXED_BYTES(tile->block_m, tile->block_n, tile->block_k,
                                             tile->num_warps, tile->num_stages) +
                   MOE_CUDA_GEMM_SEGMENT_BYTES(num_segments));
    config.hStream = stream;
    config.attrs = &attribute;
    config.numAttrs = is_chained ? 1 : 0;
    check(cuda.cuLaunchKernelEx(&config, tile->function, parameters, NULL), tile->symbol);
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

double driver_time(void (*record)(void *self), void *self, int num_replays, double *low,
                   double *high)
{
    CUgraph graph;
    CUgraphExec exec;
    CUevent begin, end;
    double samples[256];
    check(cuda.cuEventCreate(&begin, CU_EVENT_DEFAULT), "cuEventCreate");
    check(cuda.cuEventCreate(&end, CU_EVENT_DEFAULT), "cuEventCreate");
    check(cuda.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), "cuStreamBeginCapture");
    record(self);
    check(cuda.cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    check(cuda.cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
    num_replays = num_replays > 256 ? 256 : num_replays;
    for (int i = -2; i < num_replays; i++) {
        float milliseconds = 0.0f;
        check(cuda.cuEventRecord(begin, stream), "cuEventRecord");
        check(cuda.cuGraphLaunch(exec, stream), "cuGraphLaunch");
        check(cuda.cuEventRecord(end, stream), "cuEventRecord");
        check(cuda.cuEventSynchronize(end), "cuEventSynchronize");
        check(cuda.cuEventElapsedTime(&milliseconds, begin, end), "cuEventElapsedTime");
        if (i >= 0) {
            samples[i] = 1000.0 * (double)milliseconds;
        }
    }
    qsort(samples, (size_t)num_replays, sizeof(samples[0]), compare_doubles);
    check(cuda.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    check(cuda.cuGraphDestroy(graph), "cuGraphDestroy");
    if (low != NULL) {
        *low = samples[num_replays / 10];
    }
    if (high != NULL) {
        *high = samples[num_replays - 1 - num_replays / 10];
    }
    return samples[num_replays / 2];
}

static CUtensorMapDataType map_type(const struct moe_op_gemm *op)
{
    return op->input_dtype == MOE_DTYPE_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                             : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

static void encode_weight(CUtensorMap *map, const struct gemm_tile *tile,
                          const struct moe_op_gemm *op, int matrix)
{
    const struct moe_operand *weight = &op->weight[matrix];
    const int is_blocked = op->k % MOE_CUDA_GEMM_BOX_K == 0;
    const cuuint64_t k = (cuuint64_t)op->k;
    cuuint64_t dims[4] = {is_blocked ? MOE_CUDA_GEMM_BOX_K : k, (cuuint64_t)op->n,
                          is_blocked ? k / MOE_CUDA_GEMM_BOX_K : 1, (cuuint64_t)op->num_experts};
    cuuint64_t strides[3] = {2 * (cuuint64_t)weight->row_stride,
                             is_blocked ? 128 : 2 * (cuuint64_t)weight->row_stride,
                             2 * (cuuint64_t)weight->expert_stride};
    cuuint32_t box[4] = {
        MOE_CUDA_GEMM_BOX_K, (cuuint32_t)MOE_CUDA_GEMM_SLAB_ROWS(tile->block_n, tile->num_warps),
        is_blocked
            ? (cuuint32_t)MOE_CUDA_GEMM_BOX_BLOCKS(tile->block_n, tile->block_k, tile->num_warps)
            : 1,
        1};
    cuuint32_t element_strides[4] = {1, 1, 1, 1};
    check(cuda.cuTensorMapEncodeTiled(
              map, map_type(op), 4, (void *)(uintptr_t)weight->base, dims, strides, box,
              element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
          "cuTensorMapEncodeTiled");
}

static void encode_tokens(const struct gemm_tile *tile, struct moe_cuda_gemm *args)
{
    const struct moe_op_gemm *op = &args->op;
    const cuuint64_t row_bytes = 2 * (cuuint64_t)op->input_stride;
    const cuuint64_t dims[4] = {(cuuint64_t)op->k, (cuuint64_t)op->num_rows, 1, 1};
    const cuuint64_t strides[3] = {row_bytes, row_bytes, row_bytes};
    const cuuint32_t box[4] = {MOE_CUDA_GEMM_BOX_K,
                               (cuuint32_t)MOE_CUDA_GEMM_TOKEN_BOX_ROWS(tile->block_m), 1, 1};
    const cuuint32_t element_strides[4] = {1, 1, 1, 1};
    check(cuda.cuTensorMapEncodeTiled(
              &args->tokens, map_type(op), 4, (void *)(uintptr_t)op->input, dims, strides, box,
              element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
          "cuTensorMapEncodeTiled");
    args->token_box_rows = (int32_t)box[1];
}

int gemm_encode(const struct gemm_tile *tile, struct moe_cuda_gemm *args)
{
    const int is_gathered = args->op.row_ids != NULL && args->op.row_ids_div != 0;
    args->token_box_rows = 0;
    if (is_gathered && tile->block_m > MOE_CUDA_GEMM_GATHERED_BLOCK_M) {
        return 0;
    }
    for (int m = 0; m < args->op.num_matrices; m++) {
        encode_weight(&args->weight[m], tile, &args->op, m);
    }
    if (!is_gathered && tile->cluster_ctas > 1 && args->op.num_rows > 0) {
        encode_tokens(tile, args);
    }
    return 1;
}

void fill_random(void *to, int64_t count, float scale, uint64_t seed, int is_half)
{
    int32_t half = is_half;
    void *args[] = {&to, &count, &scale, &seed, &half};
    driver_launch(driver_function("gemm_fill_random"), 132 * 8, 256, args);
    driver_synchronize("gemm_fill_random");
}

uint64_t random_bits(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
