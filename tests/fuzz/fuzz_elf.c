/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target of the ELF check: any bytes are accepted with a build id, or refused as BAD_FILE
 * with a sentence; never read past their end (the input is an exact allocation).
 */
#include "elf_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    struct moe_elf_build_id build_id;
    struct moe_error error;
    MOE_INIT(error);
    int32_t status = moe_elf_check(data, data_bytes, "fuzzed.so", &build_id, &error);
    if (status == MOE_STATUS_OK) {
        require(build_id.num_bytes > 0 && build_id.num_bytes <= MOE_ELF_BUILD_ID_LIMIT,
                "an accepted file has a build id");
        require(error.message[0] == '\0', "success leaves the error alone");
    } else {
        require(status == MOE_LOADER_STATUS_BAD_FILE, "a refusal is BAD_FILE");
        require(strlen(error.message) > strlen("fuzzed.so: "), "a refusal has a sentence");
        require(strlen(error.message) < sizeof(error.message) - 1, "no sentence is cut");
    }
    return 0;
}
