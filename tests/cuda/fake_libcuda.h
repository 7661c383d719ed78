/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libcuda.so.1 that plays a device: functions are offered by version through cuGetProcAddress_v2,
 * any call can be made to fail, and everything is counted. A test opens it by its path before the
 * plugin asks for "libcuda.so.1", and gets the same library then, because the soname is the same.
 * One thread.
 */
#ifndef MOE_TESTS_FAKE_LIBCUDA_H
#define MOE_TESTS_FAKE_LIBCUDA_H

#include <stdint.h>

enum {
    FAKE_MAX_LAUNCHES = 128,
    FAKE_MAX_CALLS = 4096,
    FAKE_MAX_STACK = 16,
    FAKE_ARGS_BYTES = 1024
};

/* What a tensor map was made of, in its place. */
struct fake_map {
    const void *base;
    uint64_t sizes[4];
    uint64_t strides[3]; /* bytes */
    uint32_t box[4];
};

/* What cuLaunchKernelEx was asked for last. */
struct fake_launch {
    char symbol[128];
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t cluster; /* 0: no attribute */
    uint32_t smem_bytes;
    uint32_t num_attributes;
    uint32_t is_chained;  /* begins under the tail of the node before */
    uint32_t num_refused; /* launches that a device would refuse; they return INVALID_VALUE */
    int32_t code_sm;      /* the architecture of the machine code; 0: its module has none for it */
    void *stream;
    unsigned char args[FAKE_ARGS_BYTES]; /* the first args_bytes of the kernel's argument */
};

struct fake_driver {
    /* Set by the test. */
    int32_t version; /* that the driver supports, for instance 13000 */
    int32_t num_devices;
    int32_t sm; /* 90 */
    int32_t num_sms;
    int32_t smem_bytes;         /* that a block can opt in to */
    int32_t l2_bytes;           /* 50 MiB, or the environment's FAKE_L2_BYTES */
    const char *missing;        /* a function that the driver does not offer; NULL: none */
    const char *missing_kernel; /* a symbol that no module has; NULL: none */
    const char *failing;        /* a function whose every call fails with fail_result; NULL: none */
    int64_t fail_at;            /* the call (from 1) that fails with fail_result; 0: none */
    int32_t fail_result;        /* a CUresult */
    int32_t is_idle;            /* run calls' functions count nothing and return at once */
    int32_t needs_code;  /* a module without code for the device is refused, as by a driver */
    const char *args_of; /* kernels with this in their symbol are launched with an argument */
    uint32_t args_bytes; /* of so many bytes, which are kept. NULL: none are */

    /* Counted by the driver. Clean-up calls that fail do their work all the same. */
    int64_t num_calls; /* of everything but cuGetProcAddress_v2 and cuGetErrorName */
    const char *calls[FAKE_MAX_CALLS];
    int32_t num_retained;  /* primary contexts, retains minus releases */
    int32_t num_libraries; /* loaded minus unloaded */
    int32_t num_pushed;    /* contexts on this thread's stack; [0] is the host's own */
    int32_t capture_mode;  /* of this thread, CUstreamCaptureMode */
    int32_t num_blocks;    /* of device memory, allocated minus freed */
    int32_t num_handles;   /* streams, events, graphs and executables, made minus destroyed */
    int32_t num_misused;   /* calls without context, in a strict capture mode, on dead handles */
    const char *misused;   /* the last of these */
    void *stack[FAKE_MAX_STACK];
    struct fake_launch launch;
    struct fake_launch launches[FAKE_MAX_LAUNCHES]; /* all since num_launches was set to 0 */
    int32_t num_launches;
};

/* The one driver of the library, which exports this function under the name fake_driver_get.
 * reset: an H200 with driver 13.0; the host has a context current and captures with mode GLOBAL. */
typedef struct fake_driver *fake_driver_get_fn(void);
typedef void fake_driver_reset_fn(void);

#endif
