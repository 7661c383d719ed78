/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_state.h"

#include "status.h"
#include "tiles.h"

#include <stdio.h>
#include <string.h>

/* Symbols of the kernels, from the rows that kernels/cuda/instantiate.cuh makes them from. */
static const char *const symbols[MOE_CUDA_NUM_FUNCTIONS] = {
#define HELPER_SYMBOL(constant, symbol) [constant] = (symbol),
    MOE_CUDA_HELPER_LIST(HELPER_SYMBOL)
#undef HELPER_SYMBOL
#define MOE_TILE_ROUTER(kernel, bm, bn, bk, group_m, warps, stages)                    \
    [MOE_TILE_ROUTER_##kernel##_##bm##_##bn##_##bk##_##group_m##_##warps##_##stages] = \
        "moe_ROUTER_" #kernel "_" #bm "_" #bn,
#define MOE_TILE_BLOCK(op, kernel, size) \
    [MOE_TILE_##op##_##kernel##_##size] = "moe_" #op "_" #kernel "_" #size,
#define MOE_TILE_GEMM(kernel, bm, bn, bk, group_m, warps, stages)                    \
    [MOE_TILE_GEMM_##kernel##_##bm##_##bn##_##bk##_##group_m##_##warps##_##stages] = \
        "moe_GEMM_" #kernel "_" #bm "_" #bn "_" #bk "_" #group_m "_" #warps "_" #stages,
#include "tiles.def"
};

/* The attributes that describe a device; the first result that is not CUDA_SUCCESS. */
static CUresult read_attributes(const struct moe_cuda_driver *driver, CUdevice device,
                                struct moe_device *out)
{
    int major = 0;
    int minor = 0;
    int l2_bytes = 0;
    const struct {
        CUdevice_attribute attribute;
        int *value;
    } wanted[] = {
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &out->num_sms},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &out->smem_bytes},
        {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, &l2_bytes},
    };
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        CUresult result =
            driver->cuDeviceGetAttribute(wanted[i].value, wanted[i].attribute, device);
        if (result != CUDA_SUCCESS) {
            return result;
        }
    }
    out->sm = 10 * major + minor;
    out->l2_bytes = l2_bytes;
    return CUDA_SUCCESS;
}

int32_t moe_cuda_state_describe(const struct moe_cuda_driver *driver, int32_t ordinal,
                                struct moe_device *out, struct moe_error *error)
{
    int count = 0;
    size_t memory_bytes = 0;
    CUdevice device = 0;
    CUresult result = driver->cuDeviceGetCount(&count);
    if (result != CUDA_SUCCESS) {
        return moe_cuda_driver_error(driver, result, "cuda: counting devices", error);
    }
    if (count == 0) {
        return moe_error_set(error, MOE_STATUS_NO_DEVICE, "cuda: the driver finds no device");
    }
    if (ordinal < 0 || ordinal >= count) {
        return moe_error_set(error, MOE_STATUS_NO_DEVICE,
                             "cuda device %d: there are %d, counted from 0", ordinal, count);
    }
    result = driver->cuDeviceGet(&device, ordinal);
    if (result == CUDA_SUCCESS) {
        result = driver->cuDeviceGetName(out->name, (int)sizeof(out->name), device);
    }
    if (result == CUDA_SUCCESS) {
        result = driver->cuDeviceTotalMem(&memory_bytes, device);
    }
    if (result == CUDA_SUCCESS) {
        result = read_attributes(driver, device, out);
    }
    if (result != CUDA_SUCCESS) {
        return moe_cuda_driver_error(driver, result, "cuda: describing the device", error);
    }
    out->backend = MOE_BACKEND_CUDA;
    out->ordinal = ordinal;
    out->memory_bytes = (int64_t)memory_bytes;
    out->driver_version = driver->version;
    return MOE_STATUS_OK;
}

static int32_t find_function(const struct moe_cuda_state *state, const char *symbol,
                             CUfunction *out, struct moe_error *error)
{
    for (int32_t i = 0; i < moe_cuda_num_modules; i++) {
        CUkernel kernel = NULL;
        CUresult result = state->driver.cuLibraryGetKernel(&kernel, state->libraries[i], symbol);
        if (result == CUDA_ERROR_NOT_FOUND) {
            continue;
        }
        if (result == CUDA_SUCCESS) {
            result = state->driver.cuKernelGetFunction(out, kernel);
        }
        if (result == CUDA_SUCCESS) {
            result = state->driver.cuFuncLoad(*out);
        }
        return result == CUDA_SUCCESS
                   ? MOE_STATUS_OK
                   : moe_cuda_driver_error(&state->driver, result, symbol, error);
    }
    return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                         "cuda: no module of this build has %s for sm_%d", symbol, state->sm);
}

/* Sorts take all the shared memory they need for their buckets, GEMMs for their segments, wide
 * reorders for their tokens. None of these has static shared memory beside it. */
static bool takes_all_memory(const struct moe_tile *tile, int32_t form)
{
    if (tile->op == MOE_OP_PRE_REORDER) {
        return form == MOE_CUDA_PRE_REORDER_WIDE || form == MOE_CUDA_PRE_REORDER_WIDE_LANES;
    }
    return tile->kernel == MOE_KERNEL_CUDA_SORT || tile->kernel == MOE_KERNEL_CUDA_SPLIT ||
           tile->op == MOE_OP_GATING || tile->op == MOE_OP_GEMM1;
}

static int32_t set_attributes(const struct moe_cuda_state *state, const struct moe_tile *tile,
                              int32_t form, CUfunction function, struct moe_error *error)
{
    CUresult result = CUDA_SUCCESS;
    if (takes_all_memory(tile, form)) {
        result = state->driver.cuFuncSetAttribute(
            function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, state->smem_bytes);
    }
    return result == CUDA_SUCCESS
               ? MOE_STATUS_OK
               : moe_cuda_driver_error(&state->driver, result, symbols[tile->id], error);
}

bool moe_cuda_has_form(const struct moe_tile *tile, int32_t form)
{
    return MOE_CUDA_GEMM_HAS_FORM(form, tile->block_m, tile->block_n, tile->num_warps);
}

static int32_t num_forms(const struct moe_tile *tile)
{
#define NUM_FORMS(op_id, forms) \
    case op_id:                 \
        return forms;
    if (tile->kernel == MOE_KERNEL_CUDA_SPLIT) {
        switch (tile->op) {
            MOE_CUDA_SPLIT_FORMS_LIST(NUM_FORMS)
        default:
            return 1;
        }
    }
    switch (tile->op) {
    case MOE_OP_GEMM1:
        return MOE_CUDA_GEMM_NUM_FORMS;
        MOE_CUDA_FORMS_LIST(NUM_FORMS)
    default:
        return 1;
    }
#undef NUM_FORMS
}

static int32_t load_forms(struct moe_cuda_state *state, const struct moe_tile *tile,
                          struct moe_error *error)
{
    for (int32_t form = 1; form < num_forms(tile); form++) {
        char symbol[128];
        if (tile->op == MOE_OP_GEMM1 && !moe_cuda_has_form(tile, form)) {
            continue;
        }
        (void)snprintf(symbol, sizeof(symbol), "form%d_%s", form, symbols[tile->id]);
        MOE_TRY(find_function(state, symbol, &state->forms[tile->id][form - 1], error));
        MOE_TRY(set_attributes(state, tile, form, state->forms[tile->id][form - 1], error));
    }
    return MOE_STATUS_OK;
}

static int32_t load_modules(struct moe_cuda_state *state, const struct moe_device *device,
                            struct moe_error *error)
{
    for (int32_t i = 0; i < moe_cuda_num_modules; i++) {
        CUresult result = state->driver.cuLibraryLoadData(
            &state->libraries[i], moe_cuda_modules[i].image, NULL, NULL, 0, NULL, NULL, 0);
        if (result != CUDA_SUCCESS) {
            return moe_cuda_driver_error(&state->driver, result, moe_cuda_modules[i].name, error);
        }
    }
    for (int32_t id = 0; id < MOE_NUM_TILES; id++) {
        const struct moe_tile *tile = &moe_tiles[id];
        if (!moe_tiles_fits(tile, device, NULL)) {
            continue;
        }
        MOE_TRY(find_function(state, symbols[id], &state->functions[id], error));
        MOE_TRY(set_attributes(state, tile, 0, state->functions[id], error));
        MOE_TRY(load_forms(state, tile, error));
    }
    for (int32_t id = MOE_CUDA_BEFORE_HELPERS + 1; id < MOE_CUDA_NUM_FUNCTIONS; id++) {
        MOE_TRY(find_function(state, symbols[id], &state->functions[id], error));
    }
    return MOE_STATUS_OK;
}

int32_t moe_cuda_state_enter(const struct moe_cuda_state *state, struct moe_error *error)
{
    const CUresult result = state->driver.cuCtxPushCurrent(state->context);
    return result == CUDA_SUCCESS
               ? MOE_STATUS_OK
               : moe_cuda_driver_error(&state->driver, result, "cuda: cuCtxPushCurrent", error);
}

void moe_cuda_state_leave(const struct moe_cuda_state *state)
{
    CUcontext popped = NULL;
    (void)state->driver.cuCtxPopCurrent(&popped);
}

/* With the primary context current, and this thread's calls not forbidden by others' captures. */
static int32_t load_in_context(struct moe_cuda_state *state, const struct moe_device *device,
                               struct moe_error *error)
{
    const struct moe_cuda_driver *driver = &state->driver;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    MOE_TRY(moe_cuda_state_enter(state, error));
    const CUresult result = driver->cuThreadExchangeStreamCaptureMode(&mode);
    int32_t status =
        result == CUDA_SUCCESS
            ? load_modules(state, device, error)
            : moe_cuda_driver_error(driver, result, "cuda: exchanging the capture mode", error);
    if (result == CUDA_SUCCESS) {
        (void)driver->cuThreadExchangeStreamCaptureMode(&mode);
    }
    moe_cuda_state_leave(state);
    return status;
}

int32_t moe_cuda_state_create(const struct moe_memory *memory, int32_t ordinal,
                              const struct moe_device *device, struct moe_cuda_state **out,
                              struct moe_error *error)
{
    const size_t libraries_bytes = (size_t)moe_cuda_num_modules * sizeof(CUlibrary);
    struct moe_cuda_state *state = moe_memory_alloc(memory, sizeof(*state));
    if (state == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY, "no host memory for %zu bytes",
                             sizeof(*state));
    }
    int32_t status = MOE_STATUS_OK;
    state->libraries = moe_memory_alloc(memory, libraries_bytes);
    if (state->libraries == NULL) {
        status = moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY, "no host memory for %zu bytes",
                               libraries_bytes);
        goto fail;
    }
    MOE_TRY_GOTO(moe_cuda_driver_open(&state->driver, error));
    state->num_sms = device->num_sms;
    state->sm = device->sm;
    state->smem_bytes = device->smem_bytes;
    CUresult result = state->driver.cuDeviceGet(&state->device, ordinal);
    if (result == CUDA_SUCCESS) {
        result = state->driver.cuDevicePrimaryCtxRetain(&state->context, state->device);
    }
    if (result != CUDA_SUCCESS) {
        status = moe_cuda_driver_error(&state->driver, result,
                                       "cuda: retaining the primary context", error);
        goto fail;
    }
    state->is_retained = 1;
    MOE_TRY_GOTO(load_in_context(state, device, error));
    *out = state;
    return MOE_STATUS_OK;

fail:
    moe_cuda_state_destroy(memory, state);
    return status;
}

/* Also while another thread captures, as loading does. Modules are loaded in order, so without the
 * first one there is none, and perhaps no driver. */
static void unload_modules(struct moe_cuda_state *state)
{
    const struct moe_cuda_driver *driver = &state->driver;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    const CUresult result = driver->cuThreadExchangeStreamCaptureMode(&mode);
    for (int32_t i = 0; i < moe_cuda_num_modules; i++) {
        if (state->libraries[i] != NULL) {
            (void)driver->cuLibraryUnload(state->libraries[i]);
        }
    }
    if (result == CUDA_SUCCESS) {
        (void)driver->cuThreadExchangeStreamCaptureMode(&mode);
    }
}

void moe_cuda_state_destroy(const struct moe_memory *memory, struct moe_cuda_state *state)
{
    if (state == NULL) {
        return;
    }
    if (state->libraries != NULL && state->libraries[0] != NULL) {
        unload_modules(state);
    }
    if (state->is_retained) {
        (void)state->driver.cuDevicePrimaryCtxRelease(state->device);
    }
    moe_cuda_driver_close(&state->driver);
    moe_memory_free(memory, state->libraries, (size_t)moe_cuda_num_modules * sizeof(CUlibrary));
    moe_memory_free(memory, state, sizeof(*state));
}

/* Launches of the call that were queued before run all the same, so no status of those that say
 * that nothing was touched, or that the host's memory is short. */
static int32_t launch_error(const struct moe_cuda_driver *driver, CUresult result,
                            const char *symbol, struct moe_error *error)
{
    char what[160];
    (void)snprintf(what, sizeof(what),
                   "cuda: a launch failed, and those of the call before it run: %s", symbol);
    const int32_t status = moe_cuda_driver_error(driver, result, what, error);
    if (status == MOE_STATUS_DEVICE_LOST) {
        return status;
    }
    if (error != NULL) {
        error->status = MOE_STATUS_DEVICE_ERROR;
    }
    return MOE_STATUS_DEVICE_ERROR;
}

int32_t moe_cuda_state_launch(const struct moe_cuda_state *state, void *stream,
                              const struct moe_cuda_launch *launch, struct moe_error *error)
{
    const struct moe_cuda_driver *driver = &state->driver;
    CUlaunchAttribute attribute;
    CUlaunchConfig config;
    void *args = (void *)(uintptr_t)launch->args;
    memset(&config, 0, sizeof(config));
    memset(&attribute, 0, sizeof(attribute));
    config.gridDimX = launch->grid_x;
    config.gridDimY = launch->grid_y;
    config.gridDimZ = launch->grid_z > 0 ? launch->grid_z : 1;
    config.blockDimX = launch->num_threads;
    config.blockDimY = 1;
    config.blockDimZ = 1;
    config.sharedMemBytes = launch->smem_bytes;
    config.hStream = stream;
    config.attrs = &attribute;
    if (launch->is_chained && state->sm >= 90) {
        attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        config.numAttrs = 1;
    }
    CUfunction function = launch->form == 0 ? state->functions[launch->tile]
                                            : state->forms[launch->tile][launch->form - 1];
    const CUresult result = driver->cuLaunchKernelEx(&config, function, &args, NULL);
    return result == CUDA_SUCCESS ? MOE_STATUS_OK
                                  : launch_error(driver, result, symbols[launch->tile], error);
}
