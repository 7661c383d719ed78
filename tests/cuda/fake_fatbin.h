/* SPDX-License-Identifier: Apache-2.0 */
/* What a driver sees of a fatbin before it loads it. */
#ifndef MOE_TESTS_FAKE_FATBIN_H
#define MOE_TESTS_FAKE_FATBIN_H

#include <stdint.h>

/* The architecture (90 for sm_90 and sm_90a) of the machine code that a driver takes for a device
 * of `sm`: the same major number, and the largest minor one that the device has. 0: no code for it,
 * or no fatbin. */
int32_t fake_fatbin_pick(const void *image, int32_t sm);

#endif
