/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a CUDA context of ours holds: the driver, the device's primary context, the loaded modules
 * and one function per tile. All of it is made when the context is created, so that a run call
 * only launches.
 */
#ifndef MOE_CUDA_STATE_H
#define MOE_CUDA_STATE_H

#include "cuda_args.h"
#include "cuda_driver.h"
#include "memory.h"
#include "tile.h"

#include <stdbool.h>

/* The modules of this build, one per operation (generated from kernels/cuda). */
struct moe_cuda_module {
    const char *name;
    const void *image; /* a fatbin */
};
extern const struct moe_cuda_module moe_cuda_modules[];
extern const int32_t moe_cuda_num_modules;

/* Kernels that are no variants of anything: they prepare what the others read.
 * X(constant, symbol): functions stand behind those of the tiles. */
#define MOE_CUDA_HELPER_LIST(X)                      \
    X(MOE_CUDA_CLIP_SEGMENTS, "moe_clip_segments")   \
    X(MOE_CUDA_CLIP_MASKED, "moe_clip_masked")       \
    X(MOE_CUDA_PACK_MATRIX_16, "moe_pack_matrix_16") \
    X(MOE_CUDA_PACK_MATRIX_32, "moe_pack_matrix_32")
enum {
    MOE_CUDA_BEFORE_HELPERS = MOE_NUM_TILES - 1,
#define MOE_CUDA_HELPER_ID(constant, symbol) constant,
    MOE_CUDA_HELPER_LIST(MOE_CUDA_HELPER_ID)
#undef MOE_CUDA_HELPER_ID
        MOE_CUDA_NUM_FUNCTIONS
};

struct moe_cuda_state {
    struct moe_cuda_driver driver;
    CUdevice device;
    int32_t is_retained;
    CUcontext context; /* the primary one */
    int32_t num_sms;
    int32_t sm;
    int32_t smem_bytes; /* that a block can opt in to */
    int32_t reserved;
    CUlibrary *libraries;                         /* [moe_cuda_num_modules] */
    CUfunction functions[MOE_CUDA_NUM_FUNCTIONS]; /* NULL: the tile does not run on this device */
    /* Forms 1, 2, ... of a tile; form 0 is its function. */
    CUfunction forms[MOE_NUM_TILES][MOE_CUDA_MAX_FORMS - 1];
};

/* Describe a device; the driver is open. NO_DEVICE. */
int32_t moe_cuda_state_describe(const struct moe_cuda_driver *driver, int32_t ordinal,
                                struct moe_device *out, struct moe_error *error);

/*
 * Open the driver, retain the primary context, load every module and function that fits the device.
 * The caller's current context is left as found, and a stream capture of another thread is not
 * disturbed. UNAVAILABLE, NO_DEVICE, DRIVER_TOO_OLD, OUT_OF_MEMORY, UNSUPPORTED (no code for it).
 */
int32_t moe_cuda_state_create(const struct moe_memory *memory, int32_t ordinal,
                              const struct moe_device *device, struct moe_cuda_state **out,
                              struct moe_error *error);
void moe_cuda_state_destroy(const struct moe_memory *memory, struct moe_cuda_state *state);

/* Has a tile of the GEMM this form (MOE_CUDA_GEMM_ROWS and so on)? */
bool moe_cuda_has_form(const struct moe_tile *tile, int32_t form);

/* One launch. */
struct moe_cuda_launch {
    int32_t form;    /* of the tile; 0: the only one, or the first */
    int32_t tile;    /* MOE_TILE_* or a helper, MOE_CUDA_* */
    uint32_t grid_x; /* CTAs */
    uint32_t grid_y;
    uint32_t grid_z; /* 0: 1 */
    uint32_t num_threads;
    uint32_t smem_bytes;
    int32_t is_chained; /* 1: the node before is ours; begin under its tail (PDL) */
    const void *args;   /* the kernel's one parameter */
};

/* Make the primary context current on this thread, and what was current before again. A run call
 * does so once, around all of its launches. DEVICE_ERROR, DEVICE_LOST; nothing to leave then. */
int32_t moe_cuda_state_enter(const struct moe_cuda_state *state, struct moe_error *error);
void moe_cuda_state_leave(const struct moe_cuda_state *state);

/* Queue it on `stream`, between enter and leave. Legal during capture; no lock, no allocation, no
 * synchronization. DEVICE_ERROR, DEVICE_LOST: the call's earlier launches run. */
int32_t moe_cuda_state_launch(const struct moe_cuda_state *state, void *stream,
                              const struct moe_cuda_launch *launch, struct moe_error *error);

#endif
