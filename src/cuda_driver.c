/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_driver.h"

#include "status.h"

#include <dlfcn.h>
#include <string.h>

/* A pointer to an object as a pointer to a function; POSIX says that they convert. */
static void bind_pointer(void *function, void *symbol)
{
    memcpy(function, &symbol, sizeof(symbol));
}

int32_t moe_cuda_driver_error(const struct moe_cuda_driver *driver, CUresult result,
                              const char *what, struct moe_error *error)
{
    const char *name = "unknown error";
    int32_t status = MOE_STATUS_DEVICE_ERROR;
    if (driver->cuGetErrorName != NULL) {
        (void)driver->cuGetErrorName(result, &name);
    }
    switch ((int)result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
        status = MOE_STATUS_OUT_OF_MEMORY;
        break;
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
        status = MOE_STATUS_NO_DEVICE;
        break;
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
        status = MOE_STATUS_UNSUPPORTED;
        break;
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
        status = MOE_STATUS_DEVICE_LOST;
        break;
    default:
        break;
    }
    return moe_error_set_at(error, status, (int32_t)result, 0, 0, "%s: %s (%d)", what,
                            name != NULL ? name : "unknown error", (int)result);
}

static int32_t bind_functions(struct moe_cuda_driver *driver, struct moe_error *error)
{
    PFN_cuGetProcAddress_v12000 get_proc_address = NULL;
    bind_pointer(&get_proc_address, dlsym(driver->handle, "cuGetProcAddress_v2"));
    if (get_proc_address == NULL) {
        return moe_error_set(
            error, MOE_STATUS_DRIVER_TOO_OLD,
            "cuda: the driver has no cuGetProcAddress_v2; it is older than 12.0, and %d.%d "
            "is the minimum",
            MOE_CUDA_MIN_DRIVER / 1000, MOE_CUDA_MIN_DRIVER % 1000 / 10);
    }
    static const struct {
        const char *name;
        int version;
        size_t offset;
    } functions[] = {
#define MOE_CUDA_ROW(function, version) \
    {#function, version, offsetof(struct moe_cuda_driver, function)},
        MOE_CUDA_FUNCTIONS(MOE_CUDA_ROW)
#undef MOE_CUDA_ROW
    };
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *symbol = NULL;
        CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        CUresult result = get_proc_address(functions[i].name, &symbol, functions[i].version,
                                           CU_GET_PROC_ADDRESS_LEGACY_STREAM, &found);
        if (result != CUDA_SUCCESS || symbol == NULL) {
            return moe_error_set_at(error, MOE_STATUS_DRIVER_TOO_OLD, (int32_t)result, 0, 0,
                                    "cuda: the driver does not offer %s of version %d (%s)",
                                    functions[i].name, functions[i].version,
                                    found == CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                                        ? "an older one only"
                                        : "not at all");
        }
        bind_pointer((char *)driver + functions[i].offset, symbol);
    }
    return MOE_STATUS_OK;
}

int32_t moe_cuda_driver_open(struct moe_cuda_driver *driver, struct moe_error *error)
{
    int32_t status = MOE_STATUS_OK;
    int version = 0;
    memset(driver, 0, sizeof(*driver));
    driver->handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver->handle == NULL) {
        return moe_error_set(
            error, MOE_STATUS_UNAVAILABLE,
            "cuda: libcuda.so.1 cannot be opened: no NVIDIA driver on this machine");
    }
    MOE_TRY_GOTO(bind_functions(driver, error));
    CUresult result = driver->cuDriverGetVersion(&version);
    if (result != CUDA_SUCCESS) {
        status = moe_cuda_driver_error(driver, result, "cuda: cuDriverGetVersion", error);
        goto fail;
    }
    driver->version = version;
    if (version < MOE_CUDA_MIN_DRIVER) {
        status = moe_error_set(error, MOE_STATUS_DRIVER_TOO_OLD,
                               "cuda: the driver supports CUDA %d.%d; this build needs %d.%d",
                               version / 1000, version % 1000 / 10, MOE_CUDA_MIN_DRIVER / 1000,
                               MOE_CUDA_MIN_DRIVER % 1000 / 10);
        goto fail;
    }
    result = driver->cuInit(0);
    if (result != CUDA_SUCCESS) {
        status = moe_cuda_driver_error(driver, result, "cuda: cuInit", error);
        if (status == MOE_STATUS_DEVICE_ERROR) {
            status = moe_error_set_at(error, MOE_STATUS_UNAVAILABLE, (int32_t)result, 0, 0,
                                      "cuda: the driver cannot be initialized (%d)", (int)result);
        }
        goto fail;
    }
    return MOE_STATUS_OK;

fail:
    moe_cuda_driver_close(driver);
    return status;
}

void moe_cuda_driver_close(struct moe_cuda_driver *driver)
{
    if (driver->handle != NULL) {
        dlclose(driver->handle);
    }
    memset(driver, 0, sizeof(*driver));
}
