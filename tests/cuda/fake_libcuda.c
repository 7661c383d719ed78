/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_fatbin.h"
#include "fake_host.h"

#include "cuda_driver.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_KERNELS = 256, MAX_GRID_YZ = 65535, DEFAULT_SMEM_BYTES = 48 * 1024, MAX_CLUSTER = 16 };

/* A kernel and its function. */
struct kernel {
    char symbol[128];
    int smem_bytes; /* opted in to */
    int32_t code_sm;
    int is_loaded;
    int allows_big_clusters;
};

static struct fake_driver driver;
static struct kernel kernels[MAX_KERNELS];
static int num_kernels;
static char primary_context, host_context;

#define EXPORTED __attribute__((visibility("default")))
EXPORTED struct fake_driver *fake_driver_get(void);
EXPORTED void fake_driver_reset(void);
EXPORTED CUresult cuGetProcAddress_v2(const char *name, void **out, int version, cuuint64_t flags,
                                      CUdriverProcAddressQueryResult *found);

struct fake_driver *fake_driver_get(void)
{
    return &driver;
}

void fake_driver_reset(void)
{
    memset(&driver, 0, sizeof(driver));
    driver.version = 13000;
    driver.num_devices = 1;
    driver.sm = 90;
    driver.num_sms = 132;
    driver.smem_bytes = 227 * 1024;
    driver.l2_bytes = getenv("FAKE_L2_BYTES") != NULL ? atoi(getenv("FAKE_L2_BYTES")) : 50 << 20;
    driver.num_pushed = 1;
    driver.stack[0] = &host_context;
    driver.capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    num_kernels = 0;
    fake_host_reset();
}

/* A program that does not reset it finds a driver too. */
__attribute__((constructor)) static void start(void)
{
    fake_driver_reset();
}

/* Counts a call; the result that it has to return. */
static CUresult enter(const char *function)
{
    if (driver.num_calls < FAKE_MAX_CALLS) {
        driver.calls[driver.num_calls] = function;
    }
    driver.num_calls++;
    const int fails = driver.num_calls == driver.fail_at ||
                      (driver.failing != NULL && strcmp(driver.failing, function) == 0);
    return fails ? (CUresult)driver.fail_result : CUDA_SUCCESS;
}

CUresult fake_enter(const char *function)
{
    return enter(function);
}

struct fake_driver *fake_driver_state(void)
{
    return &driver;
}

#define ENTER(function)                          \
    do {                                         \
        const CUresult entry = enter(#function); \
        if (entry != CUDA_SUCCESS) {             \
            return entry;                        \
        }                                        \
    } while (0)

static void misuse(const char *function)
{
    driver.num_misused++;
    driver.misused = function;
}

void fake_misuse(const char *function)
{
    misuse(function);
}

/* Calls that load need the primary context, and are not for a thread that others' captures bind. */
static void require_loading(const char *function)
{
    if (driver.num_pushed < 1 || driver.stack[driver.num_pushed - 1] != &primary_context ||
        driver.capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED || driver.num_retained < 1) {
        misuse(function);
    }
}

static CUresult CUDAAPI fake_cuInit(unsigned int flags)
{
    ENTER(cuInit);
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult CUDAAPI fake_cuDriverGetVersion(int *version)
{
    ENTER(cuDriverGetVersion);
    *version = driver.version;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuGetErrorName(CUresult result, const char **name)
{
    *name = result == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuDeviceGetCount(int *count)
{
    ENTER(cuDeviceGetCount);
    *count = driver.num_devices;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER(cuDeviceGet);
    *device = ordinal;
    return ordinal >= 0 && ordinal < driver.num_devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult CUDAAPI fake_cuDeviceGetAttribute(int *value, CUdevice_attribute attribute,
                                                  CUdevice device)
{
    (void)device;
    ENTER(cuDeviceGetAttribute);
    switch ((int)attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = driver.sm / 10;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = driver.sm % 10;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = driver.num_sms;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *value = driver.smem_bytes;
        break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
        *value = driver.l2_bytes;
        break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
        *value = 1980000;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuDeviceGetName(char *name, int name_bytes, CUdevice device)
{
    (void)device;
    ENTER(cuDeviceGetName);
    strncpy(name, "Fake H200", (size_t)name_bytes - 1);
    name[name_bytes - 1] = '\0';
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuDeviceTotalMem(size_t *bytes, CUdevice device)
{
    (void)device;
    ENTER(cuDeviceTotalMem);
    *bytes = (size_t)141 << 30;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    (void)device;
    ENTER(cuDevicePrimaryCtxRetain);
    driver.num_retained++;
    *context = (CUcontext)(void *)&primary_context;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuDevicePrimaryCtxRelease(CUdevice device)
{
    const CUresult result = enter("cuDevicePrimaryCtxRelease");
    (void)device;
    driver.num_retained--;
    if (driver.num_retained == 0) {
        num_kernels = 0;
    }
    return result;
}

static CUresult CUDAAPI fake_cuCtxPushCurrent(CUcontext context)
{
    if (driver.is_idle) {
        return CUDA_SUCCESS;
    }
    ENTER(cuCtxPushCurrent);
    if (driver.num_retained < 1 || driver.num_pushed >= FAKE_MAX_STACK) {
        misuse("cuCtxPushCurrent");
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    driver.stack[driver.num_pushed++] = context;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuCtxPopCurrent(CUcontext *context)
{
    if (driver.is_idle) {
        return CUDA_SUCCESS;
    }
    const CUresult result = enter("cuCtxPopCurrent");
    if (driver.num_pushed < 1) {
        misuse("cuCtxPopCurrent");
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *context = driver.stack[--driver.num_pushed];
    return result;
}

static int is_strict; /* the thread asked for the relaxed mode last, and did not get it */

/* To relax the mode is a step, to restore it is clean-up. */
static CUresult CUDAAPI fake_cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    const CUresult result = enter("cuThreadExchangeStreamCaptureMode");
    const int32_t old = driver.capture_mode;
    is_strict = result != CUDA_SUCCESS && *mode == CU_STREAM_CAPTURE_MODE_RELAXED;
    if (result == CUDA_SUCCESS || *mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
        driver.capture_mode = (int32_t)*mode;
        *mode = (CUstreamCaptureMode)old;
    }
    return result;
}

static CUresult CUDAAPI fake_cuLibraryLoadData(CUlibrary *library, const void *code,
                                               CUjit_option *jit_options, void **jit_values,
                                               unsigned int num_jit_options,
                                               CUlibraryOption *options, void **values,
                                               unsigned int num_options)
{
    (void)jit_options;
    (void)jit_values;
    (void)options;
    (void)values;
    ENTER(cuLibraryLoadData);
    require_loading("cuLibraryLoadData");
    if (code == NULL || num_jit_options != 0 || num_options != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (driver.needs_code && fake_fatbin_pick(code, driver.sm) == 0) {
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    driver.num_libraries++;
    *library = (CUlibrary)(uintptr_t)code;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuLibraryUnload(CUlibrary library)
{
    const CUresult result = enter("cuLibraryUnload");
    const int is_bound = driver.capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED && !is_strict;
    if (library == NULL || driver.num_libraries < 1 || driver.num_retained < 1 || is_bound) {
        misuse("cuLibraryUnload");
    }
    driver.num_libraries--;
    return result;
}

/* Every module has every kernel. */
static CUresult CUDAAPI fake_cuLibraryGetKernel(CUkernel *out, CUlibrary library,
                                                const char *symbol)
{
    ENTER(cuLibraryGetKernel);
    require_loading("cuLibraryGetKernel");
    if (library == NULL || num_kernels == MAX_KERNELS) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (driver.missing_kernel != NULL && strcmp(driver.missing_kernel, symbol) == 0) {
        return CUDA_ERROR_NOT_FOUND;
    }
    struct kernel *kernel = &kernels[num_kernels++];
    memset(kernel, 0, sizeof(*kernel));
    strncpy(kernel->symbol, symbol, sizeof(kernel->symbol) - 1);
    kernel->smem_bytes = DEFAULT_SMEM_BYTES;
    kernel->code_sm = fake_fatbin_pick(library, driver.sm);
    *out = (CUkernel)(void *)kernel;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    ENTER(cuKernelGetFunction);
    require_loading("cuKernelGetFunction");
    *function = (CUfunction)(void *)kernel;
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute,
                                                int value)
{
    struct kernel *kernel = (struct kernel *)(void *)function;
    ENTER(cuFuncSetAttribute);
    require_loading("cuFuncSetAttribute");
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES &&
        value <= driver.smem_bytes) {
        kernel->smem_bytes = value;
    } else if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
        kernel->allows_big_clusters = value;
    } else {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult CUDAAPI fake_cuFuncLoad(CUfunction function)
{
    ENTER(cuFuncLoad);
    require_loading("cuFuncLoad");
    ((struct kernel *)(void *)function)->is_loaded = 1;
    return CUDA_SUCCESS;
}

/* Would the device take it? */
static int is_launchable(const struct kernel *kernel, const struct fake_launch *launch)
{
    const uint64_t num_threads = (uint64_t)launch->block[0] * launch->block[1] * launch->block[2];
    const uint32_t cluster = launch->cluster > 0 ? launch->cluster : 1;
    return kernel->is_loaded && launch->grid[0] > 0 && launch->grid[0] <= INT32_MAX &&
           launch->grid[1] > 0 && launch->grid[1] <= MAX_GRID_YZ && launch->grid[2] > 0 &&
           launch->grid[2] <= MAX_GRID_YZ && num_threads > 0 && num_threads <= 1024 &&
           launch->smem_bytes <= (uint32_t)kernel->smem_bytes && launch->grid[0] % cluster == 0 &&
           cluster <= (kernel->allows_big_clusters ? MAX_CLUSTER : 8) &&
           (cluster == 1 || driver.sm >= 90);
}

static CUresult CUDAAPI fake_cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function,
                                              void **args, void **extra)
{
    const struct kernel *kernel = (const struct kernel *)(const void *)function;
    struct fake_launch *launch = &driver.launch;
    if (driver.is_idle) {
        return CUDA_SUCCESS;
    }
    ENTER(cuLaunchKernelEx);
    if (driver.num_pushed < 1 || driver.stack[driver.num_pushed - 1] != &primary_context ||
        kernel == NULL || args == NULL || args[0] == NULL || extra != NULL) {
        misuse("cuLaunchKernelEx");
        return CUDA_ERROR_INVALID_HANDLE;
    }
    memcpy(launch->symbol, kernel->symbol, sizeof(launch->symbol));
    launch->grid[0] = config->gridDimX;
    launch->grid[1] = config->gridDimY;
    launch->grid[2] = config->gridDimZ;
    launch->block[0] = config->blockDimX;
    launch->block[1] = config->blockDimY;
    launch->block[2] = config->blockDimZ;
    launch->cluster = 0;
    launch->is_chained = 0;
    launch->smem_bytes = config->sharedMemBytes;
    launch->num_attributes = config->numAttrs;
    launch->stream = config->hStream;
    launch->code_sm = kernel->code_sm;
    for (unsigned int i = 0; i < config->numAttrs; i++) {
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
            launch->cluster = config->attrs[i].value.clusterDim.x;
        }
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
            launch->is_chained = config->attrs[i].value.programmaticStreamSerializationAllowed != 0;
        }
    }
    if (!is_launchable(kernel, launch)) {
        launch->num_refused++;
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (driver.args_of != NULL && strstr(kernel->symbol, driver.args_of) != NULL) {
        memcpy(launch->args, args[0], driver.args_bytes);
    }
    if (driver.num_launches < FAKE_MAX_LAUNCHES) {
        driver.launches[driver.num_launches] = *launch;
    }
    driver.num_launches++;
    fake_host_launch(config->hStream);
    return CUDA_SUCCESS;
}

/* What the documentation asks of a map of plain elements. */
static CUresult CUDAAPI fake_cuTensorMapEncodeTiled(
    CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
    const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
    const cuuint32_t *element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
{
    ENTER(cuTensorMapEncodeTiled);
    (void)type;
    (void)interleave;
    (void)swizzle;
    (void)promotion;
    (void)fill;
    if ((uintptr_t)map % 64 != 0 || (uintptr_t)address % 16 != 0 || rank < 1 || rank > 5) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (cuuint32_t i = 0; i < rank; i++) {
        if (sizes[i] == 0 || sizes[i] > (UINT64_C(1) << 32) || box[i] == 0 || box[i] > 256 ||
            element_strides[i] == 0 || (i + 1 < rank && strides[i] % 16 != 0)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    struct fake_map made = {.base = address};
    _Static_assert(sizeof(made) <= sizeof(*map), "the map's place");
    memcpy(made.sizes, sizes, (rank < 4 ? rank : 4) * sizeof(*sizes));
    memcpy(made.strides, strides, (rank < 4 ? rank - 1 : 3) * sizeof(*strides));
    memcpy(made.box, box, (rank < 4 ? rank : 4) * sizeof(*box));
    memset(map, 0x5a, sizeof(*map));
    memcpy(map, &made, sizeof(made));
    return CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char *name, void **out, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *found)
{
    (void)flags;
    *out = NULL;
    *found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (driver.missing != NULL && strcmp(driver.missing, name) == 0) {
        return CUDA_ERROR_NOT_FOUND;
    }
#define OFFER(function, since)                                   \
    if (strcmp(name, #function) == 0) {                          \
        PFN_##function##_v##since offered = fake_##function;     \
        if (since > version || since > driver.version) {         \
            *found = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT; \
            return CUDA_ERROR_NOT_FOUND;                         \
        }                                                        \
        memcpy(out, &offered, sizeof(offered));                  \
        *found = CU_GET_PROC_ADDRESS_SUCCESS;                    \
        return CUDA_SUCCESS;                                     \
    }
    MOE_CUDA_FUNCTIONS(OFFER)
#undef OFFER
    if (fake_host_find(name, version, driver.version, out)) {
        *found = CU_GET_PROC_ADDRESS_SUCCESS;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}
