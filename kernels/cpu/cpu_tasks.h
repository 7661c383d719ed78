/* SPDX-License-Identifier: Apache-2.0 */
/* Neighbouring tasks of an operation that one thread runs, in ascending order. */
#ifndef MOE_CPU_TASKS_H
#define MOE_CPU_TASKS_H

#include <stdint.h>

struct moe_cpu_tasks {
    int64_t first;
    int64_t end; /* behind the last one; at least first + 1 */
    /* What the thread runs after them, so that its memory can be fetched; -1: nothing, or not known
     * yet. A hint: no result depends on it. */
    int64_t next;
};

#endif
