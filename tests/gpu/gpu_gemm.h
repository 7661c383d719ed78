/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_gemm's parts: libcuda, problems and their launches. */
#ifndef MOE_GPU_GEMM_H
#define MOE_GPU_GEMM_H

#include "cuda_args.h"
#include "gpu_gemm_ref.h"
#include "tile.h"

#include <stddef.h>

/* Rows of tiles.def with kernel sm90.gemm or sm90.pair. */
struct gemm_tile {
    const char *symbol;
    int32_t cluster_ctas;
    int32_t block_m, block_n, block_k, group_m, num_warps, num_stages;
    CUfunction function;
};
extern struct gemm_tile gemm_tiles[];
extern const int num_gemm_tiles;

/* Any failure of the driver ends the program with a sentence. */
void driver_open(const char *program);
int driver_num_sms(void);
CUstream driver_stream(void);
void *driver_alloc(size_t bytes);
void driver_free(void *memory);
void driver_upload(void *to, const void *from, size_t bytes);
void driver_download(void *to, const void *from, size_t bytes);
void driver_poison(void *to, int byte, size_t bytes);
void driver_synchronize(const char *what);
CUfunction driver_function(const char *name); /* of gpu_gemm.fatbin or gpu_limits.fatbin */
void driver_launch(CUfunction function, unsigned num_ctas, unsigned num_threads, void **args);
/* num_ctas is rounded up to whole clusters. */
void driver_launch_gemm(const struct gemm_tile *tile, const struct moe_cuda_gemm *args,
                        int num_ctas, int is_chained);
/* Median microseconds of a replay of what `record` queues. */
double driver_time(void (*record)(void *self), void *self, int num_replays, double *low,
                   double *high);

/* The maps that struct moe_cuda_gemm wants for a tile; 0: the tile does not gather rows. */
int gemm_encode(const struct gemm_tile *tile, struct moe_cuda_gemm *args);

void fill_random(void *to, int64_t count, float scale, uint64_t seed, int is_half);
uint64_t random_bits(uint64_t *state);

/* Prints times of models; only_tokens 0: at all numbers of tokens. */
void gemm_time_models(int64_t only_tokens);

#endif
