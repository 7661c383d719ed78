/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of GEMM1 (gathered, silu) and GEMM2 on the shapes of models: medians over replays of a
 * graph whose nodes have routings of their own, so that weights rotate through far more than the
 * L2. Held against the bytes of the experts that were hit at the read rate of the same run.
 */
#include "gpu_gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NODES = 8, NUM_REPLAYS = 9 };

struct model {
    const char *name;
    int32_t num_experts, top_k, hidden, inter;
};

static const struct model models[] = {
    {"Qwen3-30B-A3B", 128, 8, 2048, 768},
    {"Mixtral-8x7B", 8, 2, 4096, 14336},
};

static const int64_t tokens_of_case[] = {1, 8, 32, 64, 128, 256, 1024, 4096, 8192};

/* One case; launches of one of the two GEMMs or of both in turn. */
struct timed {
    const struct model *model;
    int64_t num_tokens;
    int num_nodes;
    void *indptr[MAX_NODES], *row_ids[MAX_NODES];
    double num_active;
    void *w1, *w2, *input, *middle, *output;
    const struct gemm_tile *tile1, *tile2; /* NULL: left out */
    int is_early, is_chained;
};

static void fill_gemm(const struct timed *timed, int node, int which, struct moe_cuda_gemm *args)
{
    const struct model *model = timed->model;
    struct moe_op_gemm *op = &args->op;
    memset(args, 0, sizeof(*args));
    op->num_segments = op->num_experts = model->num_experts;
    op->seg_indptr = timed->indptr[node];
    op->num_rows = op->num_row_ids = timed->num_tokens * model->top_k;
    op->row_ids_div = 1;
    op->input_dtype = op->output_dtype = MOE_DTYPE_BF16;
    if (which == 1) {
        op->row_ids = timed->row_ids[node];
        op->row_ids_div = model->top_k;
        op->input = timed->input;
        op->output = timed->middle;
        op->n = model->inter;
        op->k = model->hidden;
        op->num_matrices = 2;
        op->has_activation = 1;
        op->act.activation = MOE_ACTIVATION_SILU;
    } else {
        op->input = timed->middle;
        op->output = timed->output;
        op->n = model->hidden;
        op->k = model->inter;
        op->num_matrices = 1;
    }
    op->input_stride = op->k;
    op->output_stride = op->n;
    for (int m = 0; m < op->num_matrices; m++) {
        op->weight[m].base =
            (const char *)(which == 1 ? timed->w1 : timed->w2) + 2 * (int64_t)m * op->n * op->k;
        op->weight[m].row_stride = op->k;
        op->weight[m].expert_stride = (int64_t)op->num_matrices * op->n * op->k;
    }
    args->is_k_blocked = 1;
    args->is_output_vectored = 1;
    args->is_early = timed->is_early;
}

static void record(void *self)
{
    const struct timed *timed = self;
    for (int node = 0; node < timed->num_nodes; node++) {
        for (int which = 1; which <= 2; which++) {
            const struct gemm_tile *tile = which == 1 ? timed->tile1 : timed->tile2;
            struct moe_cuda_gemm args;
            if (tile == NULL) {
                continue;
            }
            fill_gemm(timed, node, which, &args);
            if (gemm_encode(tile, &args)) {
                driver_launch_gemm(tile, &args, driver_num_sms(), timed->is_chained);
            }
        }
    }
}

static double time_nodes(struct timed *timed, const struct gemm_tile *tile1,
                         const struct gemm_tile *tile2)
{
    timed->tile1 = tile1;
    timed->tile2 = tile2;
    return driver_time(record, timed, NUM_REPLAYS, NULL, NULL) / timed->num_nodes;
}

/* k distinct experts per token, uniformly; sorted by expert. */
static void draw_routing(struct timed *timed, int node, uint64_t *seed)
{
    const struct model *model = timed->model;
    const int64_t num_routes = timed->num_tokens * model->top_k;
    int32_t *experts = calloc((size_t)num_routes, 4);
    int32_t *row_ids = calloc((size_t)num_routes, 4);
    int64_t *indptr = calloc((size_t)model->num_experts + 2, 8);
    for (int64_t route = 0; route < num_routes; route++) {
        int again = 1;
        while (again) {
            experts[route] = (int32_t)(random_bits(seed) % (uint64_t)model->num_experts);
            again = 0;
            for (int64_t i = route - route % model->top_k; i < route; i++) {
                again |= experts[i] == experts[route];
            }
        }
        indptr[experts[route] + 1]++;
    }
    for (int32_t e = 0; e < model->num_experts; e++) {
        timed->num_active += indptr[e + 1] > 0 ? 1.0 / timed->num_nodes : 0.0;
        indptr[e + 1] += indptr[e];
    }
    int64_t *next = calloc((size_t)model->num_experts + 1, 8);
    memcpy(next, indptr, (size_t)model->num_experts * 8);
    for (int64_t route = 0; route < num_routes; route++) {
        row_ids[next[experts[route]]++] = (int32_t)route;
    }
    timed->indptr[node] = driver_alloc(((size_t)model->num_experts + 1) * 8);
    timed->row_ids[node] = driver_alloc((size_t)num_routes * 4);
    driver_upload(timed->indptr[node], indptr, ((size_t)model->num_experts + 1) * 8);
    driver_upload(timed->row_ids[node], row_ids, (size_t)num_routes * 4);
    free(experts);
    free(row_ids);
    free(indptr);
    free(next);
}

static void time_case(struct timed *timed, double read_rate, uint64_t *seed)
{
    const struct model *model = timed->model;
    const int64_t T = timed->num_tokens;
    const double weight = 2.0 * model->hidden * model->inter;
    const struct gemm_tile *best1 = NULL, *best2 = NULL;
    double time1 = 1e30, time2 = 1e30;
    timed->num_nodes = T <= 64 ? 8 : (T <= 256 ? 4 : 2);
    timed->num_active = 0.0;
    for (int node = 0; node < timed->num_nodes; node++) {
        draw_routing(timed, node, seed);
    }
    const double bytes1 = timed->num_active * 2.0 * weight, bytes2 = timed->num_active * weight;
    const double flops = 6.0 * (double)T * model->top_k * model->hidden * model->inter;
    printf("%s T %lld: %.1f experts; floors: GEMM1 %.1f us, GEMM2 %.1f us of bytes; both %.0f MB\n",
           model->name, (long long)T, timed->num_active, bytes1 / read_rate, bytes2 / read_rate,
           (bytes1 + bytes2) / 1e6);
    for (int t = 0; t < num_gemm_tiles; t++) {
        const struct gemm_tile *tile = &gemm_tiles[t];
        const double rows = (double)T * model->top_k / timed->num_active;
        if ((rows > 3.0 * tile->block_m && tile->block_m < 120) ||
            (rows < 16.0 && tile->block_m > 64)) {
            continue;
        }
        timed->is_chained = 1;
        timed->is_early = 0;
        const double first = time_nodes(timed, tile, NULL), second = time_nodes(timed, NULL, tile);
        printf("  %-40s GEMM1 %8.2f us (%4.1f%%, %5.0f TF)  GEMM2 %8.2f us (%4.1f%%, %5.0f TF)\n",
               tile->symbol + 19, first, 100.0 * bytes1 / read_rate / first,
               flops * 2.0 / 3.0 / first / 1e6, second, 100.0 * bytes2 / read_rate / second,
               flops / 3.0 / second / 1e6);
        if (first < time1 && tile->block_m <= MOE_CUDA_GEMM_GATHERED_BLOCK_M) {
            time1 = first;
            best1 = tile;
        }
        if (second < time2) {
            time2 = second;
            best2 = tile;
        }
    }
    for (int mode = 0; mode < 3; mode++) {
        static const char *const names[] = {"plain edges", "PDL", "PDL, weights early"};
        timed->is_chained = mode > 0;
        timed->is_early = mode > 1;
        const double both = time_nodes(timed, best1, best2);
        printf("  both, %-18s %8.2f us, %4.1f%% of bytes, %5.0f TF\n", names[mode], both,
               100.0 * (bytes1 + bytes2) / read_rate / both, flops / both / 1e6);
    }
    for (int node = 0; node < timed->num_nodes; node++) {
        driver_free(timed->indptr[node]);
        driver_free(timed->row_ids[node]);
    }
}

static void *read_from;
static const int64_t read_bytes = (int64_t)1536 << 20;

static void record_read(void *self)
{
    int64_t num_vectors = read_bytes / 16;
    void *args[] = {&read_from, &num_vectors, self};
    driver_launch(driver_function("gpu_read"), (unsigned)driver_num_sms() * 4, 512, args);
}

void gemm_time_models(int64_t only_tokens)
{
    uint64_t seed = 3;
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        const struct model *model = &models[m];
        const int64_t weights = (int64_t)model->num_experts * model->hidden * model->inter;
        const int64_t most = tokens_of_case[sizeof(tokens_of_case) / 8 - 1];
        struct timed timed;
        memset(&timed, 0, sizeof(timed));
        timed.model = model;
        timed.w1 = driver_alloc((size_t)weights * 4);
        timed.w2 = driver_alloc((size_t)weights * 2);
        timed.input = driver_alloc((size_t)(most * model->hidden) * 2);
        timed.middle = driver_alloc((size_t)(most * model->top_k * model->inter) * 2);
        timed.output = driver_alloc((size_t)(most * model->top_k * model->hidden) * 2);
        fill_random(timed.w1, weights * 2, 0.02f, 1, 0);
        fill_random(timed.w2, weights, 0.02f, 2, 0);
        fill_random(timed.input, most * model->hidden, 1.0f, 3, 0);
        fill_random(timed.middle, most * model->top_k * model->inter, 1.0f, 4, 0);
        read_from = driver_alloc((size_t)read_bytes);
        fill_random(read_from, read_bytes / 2, 1.0f, 5, 0);
        void *sink = driver_alloc(16);
        const double read_us = driver_time(record_read, &sink, 15, NULL, NULL);
        const double rate = (double)read_bytes / read_us; /* bytes per us */
        printf("read limit %.2f TB/s\n", rate / 1e6);
        for (size_t i = 0; i < sizeof(tokens_of_case) / 8; i++) {
            if (only_tokens != 0 && only_tokens != tokens_of_case[i]) {
                continue;
            }
            timed.num_tokens = tokens_of_case[i];
            time_case(&timed, rate, &seed);
        }
        void *all[] = {timed.w1,     timed.w2,  timed.input, timed.middle,
                       timed.output, read_from, sink};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
            driver_free(all[i]);
        }
    }
}
