/* SPDX-License-Identifier: Apache-2.0 */
/* Preconditions and scratch memory of the references; not for tests. */
#ifndef MOE_TESTS_REF_REQUIRE_H
#define MOE_TESTS_REF_REQUIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Unless ok, prints function and sentence to stderr and ends the process. */
void ref_require_that(bool ok, const char *function, const char *sentence);
#define ref_require(ok, sentence) ref_require_that((ok), __func__, (sentence))

/* Zeroed array of count elements (at least one), for free(); ends the process if memory runs out.
 */
void *ref_require_array(int64_t count, size_t element_bytes);

#endif
