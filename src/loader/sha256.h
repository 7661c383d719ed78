/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4) of bytes in memory. */
#ifndef MOE_LOADER_SHA256_H
#define MOE_LOADER_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define MOE_SHA256_BYTES     32
#define MOE_SHA256_HEX_BYTES 65 /* 64 lower-case digits and the NUL */

void moe_sha256_digest(const void *bytes, size_t num_bytes, uint8_t digest[MOE_SHA256_BYTES]);

/* The digest as text. */
void moe_sha256_hex(const void *bytes, size_t num_bytes, char hex[MOE_SHA256_HEX_BYTES]);

#endif
