/* SPDX-License-Identifier: Apache-2.0 */
/* The part of the fake driver that hosts use: memory (ordinary memory, whose bounds are checked),
 * copies, streams, events and graphs, which replay the copies that were captured. */
#ifndef MOE_TESTS_FAKE_HOST_H
#define MOE_TESTS_FAKE_HOST_H

#include "fake_libcuda.h"

#include <cuda.h>

/* Of fake_libcuda.c: counts a call, and says what it has to return. */
CUresult fake_enter(const char *function);
void fake_misuse(const char *function);
struct fake_driver *fake_driver_state(void);

/* The function `name` of this part, for a caller that asks for `version` of a driver that has
 * `driver_version`. Returns 1; 0: no such function, or a newer one. */
int fake_host_find(const char *name, int version, int driver_version, void **out);

/* A kernel was launched on `stream`: a node of its graph, when it captures. */
void fake_host_launch(void *stream);

/* Forgets streams, events and graphs; memory that is still there is freed. */
void fake_host_reset(void);

#endif
