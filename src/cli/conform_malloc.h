/* SPDX-License-Identifier: Apache-2.0 */
/* The allocator of this process, counted. */
#ifndef MOE_CONFORM_MALLOC_H
#define MOE_CONFORM_MALLOC_H

/* Can calls be counted in this build? Not with a sanitizer, which has its own allocator, and not
 * without glibc. */
int moe_conform_malloc_is_counted(void);

/* Calls of malloc, calloc, realloc, aligned allocation and free in all threads since this process
 * began. */
long long moe_conform_malloc_num_calls(void);

#endif
