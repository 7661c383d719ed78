/* SPDX-License-Identifier: Apache-2.0 */
#include "device_option.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A device of each compute capability that people ask about. */
static const struct known_device {
    int32_t sm;
    int32_t num_sms;
    int32_t smem_kib; /* per block, opted in */
    int32_t l2_mib;
    const char *name;
} known_devices[] = {
    {80, 108, 163, 40, "NVIDIA A100-SXM4-80GB"},
    {86, 84, 99, 6, "NVIDIA A40"},
    {89, 142, 99, 96, "NVIDIA L40S"},
    {90, 132, 227, 50, "NVIDIA H200"},
    {100, 148, 227, 126, "NVIDIA B200"},
};
enum { num_known_devices = sizeof known_devices / sizeof known_devices[0] };

/* The row of an sm; one of zeros when there is none. */
static struct known_device find_known(int64_t sm)
{
    for (size_t i = 0; i < num_known_devices; ++i) {
        if (known_devices[i].sm == sm) {
            return known_devices[i];
        }
    }
    return (struct known_device){.name = ""};
}

static int refuse_unknown(int64_t sm, struct moe_cli_error *error)
{
    moe_cli_error_set(
        error, "--sm %" PRId64 ": give --sm-count and --smem-kib too; they are known for", sm);
    for (size_t i = 0; i < num_known_devices; ++i) {
        moe_cli_error_append(error, "%s %" PRId32, i > 0 ? "," : "", known_devices[i].sm);
    }
    return -1;
}

int moe_device_option_describe(const struct moe_device_option *option, struct moe_device *device,
                               struct moe_cli_error *error)
{
    if (option->sm == 0) {
        return option->num_sms == 0 && option->smem_kib == 0 && option->name == NULL
                   ? 0
                   : MOE_CLI_FAIL(error, "--sm-count, --smem-kib and --device describe a GPU and "
                                         "need --sm");
    }
    const struct known_device known = find_known(option->sm);
    const int64_t num_sms = option->num_sms > 0 ? option->num_sms : known.num_sms;
    const int64_t smem_kib = option->smem_kib > 0 ? option->smem_kib : known.smem_kib;
    const char *name = option->name != NULL ? option->name : known.name;
    if (num_sms == 0 || smem_kib == 0) {
        return refuse_unknown(option->sm, error);
    }
    MOE_INIT(*device);
    if (strlen(name) >= sizeof device->name) {
        return MOE_CLI_FAIL(error, "--device: the name is longer than %zu bytes",
                            sizeof device->name - 1);
    }
    device->backend = MOE_BACKEND_CUDA;
    device->sm = (int32_t)option->sm;
    device->num_sms = (int32_t)num_sms;
    device->smem_bytes = 1024 * (int32_t)smem_kib;
    device->l2_bytes = (int64_t)known.l2_mib << 20;
    snprintf(device->name, sizeof device->name, "%s", name);
    return 1;
}
