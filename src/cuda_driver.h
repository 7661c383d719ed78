/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcuda, opened with libdl and bound function by function with cuGetProcAddress at the version
 * that this file was written against. cuda.h is needed to build, never to run.
 */
#ifndef MOE_CUDA_DRIVER_H
#define MOE_CUDA_DRIVER_H

#include "moe_plugin.h"

#include <cuda.h>
#include <cudaTypedefs.h>

/* X(function, version): the version is the one in the name of its type in cudaTypedefs.h. */
#define MOE_CUDA_FUNCTIONS(X)                   \
    X(cuInit, 2000)                             \
    X(cuDriverGetVersion, 2020)                 \
    X(cuGetErrorName, 6000)                     \
    X(cuDeviceGetCount, 2000)                   \
    X(cuDeviceGet, 2000)                        \
    X(cuDeviceGetAttribute, 2000)               \
    X(cuDeviceGetName, 2000)                    \
    X(cuDeviceTotalMem, 3020)                   \
    X(cuDevicePrimaryCtxRetain, 7000)           \
    X(cuDevicePrimaryCtxRelease, 11000)         \
    X(cuCtxPushCurrent, 4000)                   \
    X(cuCtxPopCurrent, 4000)                    \
    X(cuThreadExchangeStreamCaptureMode, 10010) \
    X(cuLibraryLoadData, 12000)                 \
    X(cuLibraryUnload, 12000)                   \
    X(cuLibraryGetKernel, 12000)                \
    X(cuKernelGetFunction, 12000)               \
    X(cuFuncSetAttribute, 9000)                 \
    X(cuFuncLoad, 12040)                        \
    X(cuLaunchKernelEx, 11060)                  \
    X(cuTensorMapEncodeTiled, 12000)

/* Machine code of a toolkit needs a driver of the same major version or newer. */
#define MOE_CUDA_MIN_DRIVER (CUDA_VERSION / 1000 * 1000)

struct moe_cuda_driver {
    void *handle; /* of libcuda.so.1 */
    int32_t version;
    int32_t reserved;
#define MOE_CUDA_MEMBER(function, function_version) PFN_##function##_v##function_version function;
    MOE_CUDA_FUNCTIONS(MOE_CUDA_MEMBER)
#undef MOE_CUDA_MEMBER
};

/*
 * Open libcuda, bind everything, initialize it. UNAVAILABLE: no libcuda, or it lacks a function, or
 * cuInit fails; DRIVER_TOO_OLD with both versions. On failure nothing stays open.
 */
int32_t moe_cuda_driver_open(struct moe_cuda_driver *driver, struct moe_error *error);
void moe_cuda_driver_close(struct moe_cuda_driver *driver); /* of a zeroed struct too */

/* A status and a sentence for a failed call: lost devices, missing memory and the rest apart. */
int32_t moe_cuda_driver_error(const struct moe_cuda_driver *driver, CUresult result,
                              const char *what, struct moe_error *error);

#endif
