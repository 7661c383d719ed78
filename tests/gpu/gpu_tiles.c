/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_tiles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gpu_list_tiles(const struct gpu_host *host, int32_t op, struct moe_tile_info *tiles)
{
    const struct moe_device *device = &host->device;
    int num_tiles = 0;
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; host->api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        const int is_for_device =
            tile.min_sm == 0 ||
            (tile.isa[0] == '\0' ? tile.min_sm <= device->sm : tile.min_sm == device->sm);
        const int has_isa =
            tile.min_sm > 0 || strcmp(tile.isa, "c11") == 0 || strcmp(tile.isa, device->isa) == 0;
        if (tile.backend != device->backend || tile.op != op || !tile.built || !is_for_device ||
            !has_isa) {
            continue;
        }
        if (num_tiles == GPU_MAX_TILES) {
            fprintf(stderr, "more than %d tiles of an operation\n", GPU_MAX_TILES);
            exit(2);
        }
        tiles[num_tiles++] = tile;
    }
    return num_tiles;
}

int gpu_list_gemm_tiles(const struct gpu_host *host, struct gpu_gemm_tiles *pairs)
{
    struct moe_tile_info tiles[GPU_MAX_TILES];
    const int num_tiles = gpu_list_tiles(host, MOE_OP_GEMM1, tiles);
    int num_pairs = 0;
    for (int i = 0; i < num_tiles * num_tiles; i++) {
        const struct gpu_gemm_tiles pair = {tiles[i / num_tiles], tiles[i % num_tiles]};
        if (pair.gemm1.block_size_m != pair.gemm2.block_size_m) {
            continue;
        }
        if (num_pairs == GPU_MAX_PAIRS) {
            fprintf(stderr, "more than %d pairs of tiles\n", GPU_MAX_PAIRS);
            exit(2);
        }
        pairs[num_pairs++] = pair;
    }
    return num_pairs;
}

/* "op: {...}" of a bucket. */
static void print_tile(char *text, size_t text_bytes, const char *op_name,
                       const struct moe_tile_info *tile)
{
    char numbers[256];
    if (tile->block_size > 0) {
        snprintf(numbers, sizeof(numbers), "BLOCK_SIZE: %d", tile->block_size);
    } else {
        snprintf(numbers, sizeof(numbers),
                 "BLOCK_SIZE_M: %d, BLOCK_SIZE_N: %d, BLOCK_SIZE_K: %d, GROUP_SIZE_M: %d, "
                 "num_warps: %d, num_stages: %d",
                 tile->block_size_m, tile->block_size_n, tile->block_size_k, tile->group_size_m,
                 tile->num_warps, tile->num_stages);
    }
    snprintf(text, text_bytes, "    %s: {kernel: %s, %s}\n", op_name, tile->kernel, numbers);
}

/* Configures the device's context: one rule for everything; NULL: the built-in configuration. */
static void configure(const struct gpu_host *host, const char *ops)
{
    char text[1200];
    struct moe_error error;
    struct moe_config_source source;
    MOE_INIT(error);
    MOE_INIT(source);
    if (ops == NULL) {
        gpu_host_check(host->api->config_reload(host->cuda, NULL, 0, NULL, NULL, &error), &error,
                       "built-in");
        return;
    }
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\non_unavailable: error\nrules:\n- name: forced\n"
             "  match: {backend: %s}\n  buckets:\n  - max_tokens: inf\n%s",
             host->device.backend == MOE_BACKEND_CUDA ? "cuda" : "cpu", ops);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced";
    source.text = text;
    source.text_bytes = strlen(text);
    gpu_host_check(host->api->config_reload(host->cuda, &source, 1, NULL, NULL, &error), &error,
                   text);
}

void gpu_force_tile(const struct gpu_host *host, const struct moe_tile_info *tile,
                    const char *op_name)
{
    char text[400];
    if (tile != NULL) {
        print_tile(text, sizeof(text), op_name, tile);
    }
    configure(host, tile != NULL ? text : NULL);
}

void gpu_force_gemm_tiles(const struct gpu_host *host, const struct gpu_gemm_tiles *tiles)
{
    char text[2][400], both[800];
    if (tiles == NULL) {
        configure(host, NULL);
        return;
    }
    print_tile(text[0], sizeof(text[0]), "gemm1", &tiles->gemm1);
    print_tile(text[1], sizeof(text[1]), "gemm2", &tiles->gemm2);
    snprintf(both, sizeof(both), "%s%s", text[0], text[1]);
    configure(host, both);
}

int gpu_has_gemm_tiles(const struct gpu_host *host, const struct moe_plan *plan, int gemms,
                       const struct gpu_gemm_tiles *tiles, int64_t num_tokens)
{
    const struct moe_tile_info *wanted[2] = {&tiles->gemm1, &tiles->gemm2};
    const int32_t ops[2] = {MOE_OP_GEMM1, MOE_OP_GEMM2};
    for (int i = 0; i < 2; i++) {
        struct moe_error error;
        struct moe_choice choice;
        MOE_INIT(error);
        MOE_INIT(choice);
        if ((gemms >> i & 1) == 0) {
            continue;
        }
        gpu_host_check(host->api->plan_op_info(plan, ops[i], num_tokens, &choice, &error), &error,
                       "plan_op_info");
        if (strcmp(choice.tile_name, wanted[i]->name) != 0) {
            printf("forced %s for gemm%d, the plan has %s (%s) for %lld tokens\n", wanted[i]->name,
                   i + 1, choice.tile_name, choice.rule, (long long)num_tokens);
            return 0;
        }
    }
    return 1;
}

/* The symbol of a tile, as kernels/cuda names it. */
static void print_symbol(char *symbol, size_t bytes, const struct moe_tile_info *tile)
{
    const int prefix = snprintf(symbol, bytes, "moe_GEMM_");
    snprintf(symbol + prefix, bytes - (size_t)prefix, "%s_%d_%d_%d_%d_%d_%d", tile->kernel,
             tile->block_size_m, tile->block_size_n, tile->block_size_k, tile->group_size_m,
             tile->num_warps, tile->num_stages);
    for (char *c = symbol + prefix; *c != '\0'; c++) {
        *c = (char)(*c == '.' ? '_' : *c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
    }
}

static void count_kernel(void *visitor, const char *name)
{
    struct gpu_launched *launched = visitor;
    char gemm1[160], gemm2[160];
    const char *symbol = strstr(name, "moe_GEMM_"); /* behind the form of the weights */
    if (symbol == NULL) {
        return;
    }
    print_symbol(gemm1, sizeof(gemm1), &launched->tiles->gemm1);
    print_symbol(gemm2, sizeof(gemm2), &launched->tiles->gemm2);
    launched->num_gemms++;
    if (strcmp(symbol, gemm1) != 0 && strcmp(symbol, gemm2) != 0) {
        launched->num_replaced++;
        snprintf(launched->other, sizeof(launched->other), "%s", name);
    }
}

void gpu_count_launched(const struct gpu_host *host, gpu_record_fn *record, void *self,
                        struct gpu_launched *launched)
{
    launched->num_gemms = launched->num_replaced = 0;
    launched->other[0] = '\0';
    if (host->device.backend == MOE_BACKEND_CUDA) {
        gpu_captured_kernels(host->stream, record, self, count_kernel, launched);
    }
}
