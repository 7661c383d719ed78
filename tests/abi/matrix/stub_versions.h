/* SPDX-License-Identifier: Apache-2.0 */
/* The version test of both sides of the matrix, and sizes at introduction. */
#ifndef STUB_VERSIONS_H
#define STUB_VERSIONS_H

#include "moe_plugin.h"

/* MATRIX_RELAXED: the rule from 1.0 on, under which minors and layouts may differ. */
#ifdef MATRIX_RELAXED
#define STUB_IS_COMPATIBLE(other) ((other)->abi_major == MOE_ABI_MAJOR)
#else
#define STUB_IS_COMPATIBLE(other)                                                  \
    ((other)->abi_major == MOE_ABI_MAJOR && (other)->abi_minor == MOE_ABI_MINOR && \
     (other)->layout_hash == MOE_ABI_LAYOUT_HASH)
#endif

/* Bytes of a struct up to the last member that 0.1 had. */
#define STUB_BYTES_UP_TO(type, member) \
    (offsetof(struct type, member) + sizeof(((struct type *)0)->member))

#endif
