/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole layers on a GPU.
 *
 *   gpu_layer check [seed] [text] [brief] layers against the CPU backend and double arithmetic;
 *                                         only those whose name contains the text; brief: with one
 *                                         number of tokens, and captures
 *   gpu_layer bench [file.json [text [set...]]]
 *                                         times, and ratios to the read limit of the same run; no
 *                                         report for "" as file; only models whose name contains
 *                                         the text; "tiles:" before it: every tile in turn, with
 *                                         "tiles@T,T:" those numbers of tokens, and the text may be
 *                                         E,k,H,I; sets are layer (bf16, uniform routing), zipf,
 *                                         fp16, burst, transposed and paired (weights)
 */
#include "gpu_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void layer_force_tile(const struct gpu_host *host, const struct moe_tile_info *tile)
{
    char numbers[256], text[1024];
    struct moe_error error;
    struct moe_config_source source;
    MOE_INIT(error);
    MOE_INIT(source);
    if (tile == NULL) {
        gpu_host_check(host->api->config_reload(host->cuda, NULL, 0, NULL, NULL, &error), &error,
                       "built-in");
        return;
    }
    snprintf(numbers, sizeof(numbers),
             "{kernel: %s, BLOCK_SIZE_M: %d, BLOCK_SIZE_N: %d, BLOCK_SIZE_K: %d, GROUP_SIZE_M: %d, "
             "num_warps: %d, num_stages: %d}",
             tile->kernel, tile->block_size_m, tile->block_size_n, tile->block_size_k,
             tile->group_size_m, tile->num_warps, tile->num_stages);
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\nrules:\n- name: forced\n  match: {backend: cuda}\n"
             "  buckets:\n  - max_tokens: inf\n    gemm1: %s\n    gemm2: %s\n",
             numbers, numbers);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced";
    source.text = text;
    source.text_bytes = strlen(text);
    gpu_host_check(host->api->config_reload(host->cuda, &source, 1, NULL, NULL, &error), &error,
                   text);
}

int main(int argc, char **argv)
{
    struct gpu_host host;
    int failed = 2;
    gpu_host_init(&host, argv[0]);
    gpu_limits_open(argv[0]);
    if (argc > 1 && strcmp(argv[1], "check") == 0) {
        failed = layer_check(&host, argc > 2 ? (uint64_t)atoll(argv[2]) : 20261123,
                             argc > 3 ? argv[3] : "", argc > 4 && strcmp(argv[4], "brief") == 0);
    } else if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        failed = layer_bench(&host, argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : "", argv + 4,
                             argc > 4 ? argc - 4 : 0);
    } else {
        fprintf(
            stderr,
            "usage: gpu_layer check [seed] [text] [brief] | bench [file.json [text [set...]]]\n");
    }
    gpu_host_finish(&host);
    return failed;
}
