/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target of the JSON reader; what must hold is in fuzz_tree.h. */
#include "fuzz_tree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    fuzz_check_input(data, data_bytes, MOE_TREE_JSON);
    return 0;
}
