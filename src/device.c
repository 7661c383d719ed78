/* SPDX-License-Identifier: Apache-2.0 */
#include "device.h"

#include "backend.h"
#include "status.h"
#include "structs.h"
#include "tiles.h"

#include <stdio.h>
#include <string.h>

/* A backend of the source, and whether this build has it. */
struct backend_entry {
    int32_t id;
    const char *name;
    const struct moe_backend *backend; /* NULL: not built */
    const char *absence;               /* why */
};

/* CPU first, as backend_info counts. */
static const struct backend_entry backend_entries[] = {
    {MOE_BACKEND_CPU, "cpu", &moe_backend_cpu, ""},
#if MOE_HAVE_CUDA
    {MOE_BACKEND_CUDA, "cuda", &moe_backend_cuda, ""},
#else
    {MOE_BACKEND_CUDA, "cuda", NULL, "this build of the plugin contains no CUDA kernels"},
#endif
};
enum { NUM_BACKENDS = sizeof(backend_entries) / sizeof(backend_entries[0]) };

const struct moe_backend *moe_backend_find(int32_t id)
{
    for (int32_t i = NUM_BACKENDS - 1; i >= 0; i--) {
        const struct moe_backend *backend = backend_entries[i].backend;
        struct moe_device device;
        if (backend == NULL) {
            continue;
        }
        if (backend->id == id) {
            return backend;
        }
        MOE_INIT(device);
        if (id == MOE_BACKEND_AUTO && backend->layer != NULL &&
            backend->probe(0, &device, NULL) == MOE_STATUS_OK &&
            (backend->runs_layer == NULL || backend->runs_layer(&device))) {
            return backend;
        }
    }
    return NULL;
}

const char *moe_device_absence(int32_t backend)
{
    for (int32_t i = 0; i < NUM_BACKENDS; i++) {
        if (backend_entries[i].id == backend) {
            return backend_entries[i].absence;
        }
    }
    return "no such backend; backend_info lists those that this plugin knows";
}

int32_t moe_device_refuse_backend(int32_t backend, struct moe_error *error)
{
#define BACKEND_CHOICE(constant, value, name) ", " name
    static const char choices[] = MOE_BACKEND_LIST(BACKEND_CHOICE);
#undef BACKEND_CHOICE
    if (backend < MOE_BACKEND_AUTO || backend > MOE_BACKEND_CUDA) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "backend %d is none of MOE_BACKEND_LIST: %s", backend, choices + 2);
    }
    return moe_error_set(error, MOE_STATUS_UNAVAILABLE, "%s", moe_device_absence(backend));
}

int32_t moe_device_probe(int32_t backend, int32_t ordinal, struct moe_device *out,
                         struct moe_error *error)
{
    const struct moe_backend *found = moe_backend_find(backend);
    if (found == NULL) {
        return moe_device_refuse_backend(backend, error);
    }
    struct moe_device device;
    MOE_INIT(device);
    MOE_TRY(found->probe(ordinal, &device, error));
    return MOE_STRUCT_WRITE(out, &device, moe_device, error);
}

int32_t moe_device_backend_info(int32_t index, struct moe_backend_info *out,
                                struct moe_error *error)
{
    if (index < 0 || index >= NUM_BACKENDS) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "backend index %d; there are %d",
                             index, NUM_BACKENDS);
    }
    const struct backend_entry *entry = &backend_entries[index];
    struct moe_backend_info info;
    struct moe_error why;
    struct moe_device device;
    MOE_INIT(info);
    MOE_INIT(why);
    MOE_INIT(device);
    info.backend = entry->id;
    info.name = entry->name;
    if (entry->backend == NULL) {
        snprintf(info.reason, sizeof(info.reason), "%s", entry->absence);
    } else {
        info.min_driver = entry->backend->min_driver;
        info.available = entry->backend->probe(0, &device, &why) == MOE_STATUS_OK;
        snprintf(info.reason, sizeof(info.reason), "%.*s", (int)sizeof(info.reason) - 1,
                 why.message);
    }
    return MOE_STRUCT_WRITE(out, &info, moe_backend_info, error);
}

int32_t moe_device_tile_info(int32_t index, struct moe_tile_info *out, struct moe_error *error)
{
    if (index < 0 || index >= MOE_NUM_TILES) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "tile index %d; there are %d",
                             index, MOE_NUM_TILES);
    }
    const struct moe_tile *tile = &moe_tiles[index];
    const struct moe_kernel *kernel = &moe_kernels[tile->kernel];
    struct moe_tile_info info;
    MOE_INIT(info);
    info.op = tile->op;
    info.backend = kernel->backend;
    info.built = kernel->built;
    info.min_sm = kernel->min_sm;
    info.block_size_m = tile->block_m;
    info.block_size_n = tile->block_n;
    info.block_size_k = tile->block_k;
    info.group_size_m = tile->group_m;
    info.num_warps = tile->num_warps;
    info.num_stages = tile->num_stages;
    info.block_size = tile->block_size;
    info.smem_bytes = tile->smem_bytes;
    info.kernel = kernel->name;
    info.isa = kernel->isa;
    info.name = tile->name;
    return MOE_STRUCT_WRITE(out, &info, moe_tile_info, error);
}

int32_t moe_device_read(struct moe_device *own, const struct moe_device *caller,
                        struct moe_error *error)
{
    MOE_TRY(MOE_STRUCT_READ(own, caller, moe_device, error));
    if (own->backend != MOE_BACKEND_CPU && own->backend != MOE_BACKEND_CUDA) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "device.backend is %d; it must be cpu (%d) or cuda (%d)", own->backend,
                             MOE_BACKEND_CPU, MOE_BACKEND_CUDA);
    }
    if (own->reserved != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "device.reserved is %d; it must be 0", own->reserved);
    }
    if (memchr(own->isa, '\0', sizeof(own->isa)) == NULL ||
        memchr(own->name, '\0', sizeof(own->name)) == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "device.isa and device.name must be terminated");
    }
    return MOE_STATUS_OK;
}
