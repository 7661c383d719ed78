/* SPDX-License-Identifier: Apache-2.0 */
/* Elements of tensors that moectl reads and writes itself: fp32, fp16, bf16, fp8 e4m3. */
#ifndef MOE_ELEMENT_H
#define MOE_ELEMENT_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of one element of a MOE_DTYPE_*; 0 for types other than these four. */
size_t moe_element_bytes(int32_t dtype);

/* Element `idx` of an array of one of these types; the array need not be aligned. */
float moe_element_load(const void *elements, int32_t dtype, int64_t idx);

/* Stores `value`, rounded to nearest even; what is too large becomes an infinity, in fp8 +-448. */
void moe_element_store(void *elements, int32_t dtype, int64_t idx, float value);

/* Fills an array with independent numbers of the standard normal distribution, the same for the
 * same seed. */
void moe_element_fill_normal(void *elements, int32_t dtype, int64_t num_elements, uint64_t seed);

#endif
