/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers, and elements of fp32, fp16 and bf16 in memory, for comparisons. */
#ifndef MOE_LOADER_VERIFY_NUMBER_H
#define MOE_LOADER_VERIFY_NUMBER_H

#include <stdint.h>

/* Bytes of an element; 0 for types that inputs cannot be made of. */
int64_t moe_verify_number_bytes(int32_t dtype);

/* Cut to the type's precision, which is all that random inputs need. Magnitudes 0, or 2^-14 to
 * 2^15. */
void moe_verify_number_store(int32_t dtype, double value, void *to);
/* Exact; NaN and infinities come out as such. */
double moe_verify_number_load(int32_t dtype, const void *from);

/* The next of a sequence (splitmix64): 64 bits; a number in [-1, 1); an integer in [0, limit). */
uint64_t moe_verify_number_random(uint64_t *state);
double moe_verify_number_uniform(uint64_t *state);
int64_t moe_verify_number_below(uint64_t *state, int64_t limit);

#endif
