/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU backend's thread pool. A caller hands in independent tasks and takes part in them. One
 * caller at a time has the workers; another that comes meanwhile runs its tasks alone, with the
 * same result, since tasks are independent. After fork() only the parent may use its pools: a
 * child has no workers, and would wait for those that it remembers.
 */
#ifndef MOE_CPU_POOL_H
#define MOE_CPU_POOL_H

#include "cpu_float.h"
#include "cpu_tasks.h"
#include "memory.h"
#include "moe_plugin.h"

#include <stdbool.h>

struct moe_cpu_pool;

/*
 * Runs some tasks. `thread` is 0..num_threads-1, different for threads that run at the same time on
 * behalf of one caller: index of scratch.
 */
typedef void moe_cpu_tasks_fn(void *self, const struct moe_cpu_tasks *tasks, int32_t thread);

#define MOE_CPU_POOL_MAX_THREADS 1024

/* CPUs that this process may run on (affinity mask), 1 to MOE_CPU_POOL_MAX_THREADS. */
int32_t moe_cpu_pool_default_threads(void);

/*
 * Start num_threads - 1 workers (num_threads 1 to MOE_CPU_POOL_MAX_THREADS), signals blocked in
 * them. UNAVAILABLE when a thread cannot be started, OUT_OF_MEMORY.
 */
int32_t moe_cpu_pool_create(const struct moe_memory *memory, int32_t num_threads,
                            struct moe_cpu_pool **out, struct moe_error *error);
void moe_cpu_pool_destroy(struct moe_cpu_pool *pool); /* joins the workers; NULL is legal */
int32_t moe_cpu_pool_num_threads(const struct moe_cpu_pool *pool);

/*
 * A session is the run of one call's stages. begin takes the workers if they are free (else the
 * caller is alone); run executes tasks 0..num_tasks-1 and returns when all are done (wants_next:
 * moe_cpu_tasks.next is of use, at the price of ranges that are taken early); end gives the
 * workers back. Between begin and end the calling thread has the floating-point environment of
 * cpu_float.h, workers always. No allocation; no system call but futex, none with one thread.
 */
struct moe_cpu_session {
    struct moe_cpu_pool *pool;
    struct moe_cpu_float host; /* the caller's environment */
    int32_t has_workers;
    int32_t reserved;
};
void moe_cpu_session_begin(struct moe_cpu_session *session, struct moe_cpu_pool *pool);
void moe_cpu_session_run(struct moe_cpu_session *session, int64_t num_tasks, bool wants_next,
                         moe_cpu_tasks_fn *run, void *self);
void moe_cpu_session_end(struct moe_cpu_session *session);

#endif
