/* SPDX-License-Identifier: Apache-2.0 */
/* Options that describe a GPU that need not be here: dispatch can be asked about any device. */
#ifndef MOE_DEVICE_OPTION_H
#define MOE_DEVICE_OPTION_H

#include <stdint.h>

#include "cli_error.h"
#include "moe_plugin.h"

struct moe_device_option {
    int64_t sm;       /* 10 * major + minor; 0: no GPU is described */
    int64_t num_sms;  /* 0: that of the best known device with this sm */
    int64_t smem_kib; /* likewise */
    const char *name; /* NULL: likewise */
};

/* Rows for a subcommand's table of options. */
#define MOE_DEVICE_OPTION_ROW_SM(option)                                                   \
    {                                                                                      \
        .name = "sm", .value_name = "N", .number = &(option).sm, .min_value = 10,          \
        .max_value = 999, .help = "for a GPU of this compute capability, as in 90 for 9.0" \
    }
#define MOE_DEVICE_OPTION_ROW_SM_COUNT(option)                                              \
    {                                                                                       \
        .name = "sm-count", .value_name = "N", .number = &(option).num_sms, .min_value = 1, \
        .max_value = 4096, .help = "with --sm: its number of multiprocessors"               \
    }
#define MOE_DEVICE_OPTION_ROW_SMEM_KIB(option)                                               \
    {                                                                                        \
        .name = "smem-kib", .value_name = "N", .number = &(option).smem_kib, .min_value = 1, \
        .max_value = 65536, .help = "with --sm: KiB of shared memory that a block can have"  \
    }
#define MOE_DEVICE_OPTION_ROW_NAME(option)                                      \
    {                                                                           \
        .name = "device", .value_name = "NAME", .text = &(option).name,         \
        .help = "with --sm: its name, which the key `device` of rules looks at" \
    }

/* Describes the GPU; call it with option->sm > 0 or with nothing set. Returns 1 and the device, 0
 * when no GPU is asked for, or -1 with a sentence when the sm is not known and its numbers are not
 * given. */
int moe_device_option_describe(const struct moe_device_option *option, struct moe_device *device,
                               struct moe_cli_error *error);

#endif
