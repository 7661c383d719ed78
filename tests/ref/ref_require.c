/* SPDX-License-Identifier: Apache-2.0 */
#include "ref_require.h"

#include <stdio.h>
#include <stdlib.h>

void ref_require_that(bool ok, const char *function, const char *sentence)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", function, sentence);
        abort();
    }
}

void *ref_require_array(int64_t count, size_t element_bytes)
{
    ref_require(count >= 0, "an array has a negative number of elements");
    void *array = calloc(count > 0 ? (size_t)count : 1, element_bytes);
    ref_require(array != NULL, "out of memory");
    return array;
}
