/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GPU as a host uses it: memory, copies, one stream, events and graphs of its own, next to the
 * plugin's. libcuda is opened when it is asked for and bound by cuGetProcAddress, with prototypes
 * of our own, so that moectl needs neither cuda.h nor a build with CUDA. One thread; the primary
 * context of the device (which the plugin uses too) is current from open to close.
 *
 * Every function that can fail returns 0, or -1 with a sentence that names the driver's function
 * and its error.
 */
#ifndef MOE_GPU_H
#define MOE_GPU_H

#include <stdint.h>

#include "cli_error.h"

struct moe_gpu;
struct moe_gpu_graph;

/* Opens device `ordinal`. The caller closes it. */
int moe_gpu_open(int32_t ordinal, struct moe_gpu **out, struct moe_cli_error *error);

/* Gives stream, events and context back; memory and graphs before it. NULL is legal. */
void moe_gpu_close(struct moe_gpu *gpu);

/* The stream that everything here is ordered on, and that calls of the plugin are to be given. It
 * does not wait for the legacy default stream. */
void *moe_gpu_stream(const struct moe_gpu *gpu);

/* Bytes of device memory that can still be had. */
int moe_gpu_available(struct moe_gpu *gpu, uint64_t *num_bytes, struct moe_cli_error *error);

/* Memory that is not zeroed, aligned to 256 bytes; `purpose` is for the sentence. No bytes: one is
 * taken. */
int moe_gpu_alloc(struct moe_gpu *gpu, uint64_t num_bytes, const char *purpose, void **out,
                  struct moe_cli_error *error);

/* NULL is legal. Waits for work in flight. */
void moe_gpu_free(struct moe_gpu *gpu, void *memory);

/* Copies between host and device, behind all work on the stream; they return when it is done. */
int moe_gpu_upload(struct moe_gpu *gpu, void *to, const void *from, uint64_t num_bytes,
                   struct moe_cli_error *error);
int moe_gpu_download(struct moe_gpu *gpu, void *to, const void *from, uint64_t num_bytes,
                     struct moe_cli_error *error);

/* Queues a copy inside the device. */
int moe_gpu_copy(struct moe_gpu *gpu, void *to, const void *from, uint64_t num_bytes,
                 struct moe_cli_error *error);

/* Queues writing `word` over num_bytes / 4 words. */
int moe_gpu_set(struct moe_gpu *gpu, void *to, uint32_t word, uint64_t num_bytes,
                struct moe_cli_error *error);

/* Waits for the stream. */
int moe_gpu_wait(struct moe_gpu *gpu, struct moe_cli_error *error);

/* Queues work on the stream; returns 0, or -1 with a sentence. */
typedef int moe_gpu_record_fn(void *self, struct moe_cli_error *error);

/* Captures what `record` queues, in order, as a graph that can be replayed; nothing runs. */
int moe_gpu_capture(struct moe_gpu *gpu, moe_gpu_record_fn *record, void *self,
                    struct moe_gpu_graph **out, struct moe_cli_error *error);

/* Replays it, waits, and gives the seconds between events on both sides of it. */
int moe_gpu_replay(struct moe_gpu *gpu, struct moe_gpu_graph *graph, double *seconds,
                   struct moe_cli_error *error);

/* NULL is legal. */
void moe_gpu_graph_destroy(struct moe_gpu *gpu, struct moe_gpu_graph *graph);

/* Highest clock of the multiprocessors, in Hz. */
int moe_gpu_clock(struct moe_gpu *gpu, double *hz, struct moe_cli_error *error);

#endif
