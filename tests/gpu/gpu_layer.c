/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole layers on a GPU.
 *
 *   gpu_layer check [seed [text [brief] [self] [broken]]]
 *                                         layers against the CPU backend and double arithmetic;
 *                                         only those whose name contains the text; brief: with one
 *                                         number of tokens, captures, and few calls of kernels that
 *                                         these leave out ("brief, ..."); self: no device, the CPU
 *                                         backend takes its part; broken: results are made wrong,
 *                                         so that the check fails
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

/* The modes that the words name; -1: another word. */
static int read_modes(char **words, int num_words)
{
    static const char *const names[] = {"brief", "self", "broken"};
    int modes = 0;
    for (int i = 0; i < num_words; i++) {
        int bit = 0;
        while (bit < 3 && strcmp(words[i], names[bit]) != 0) {
            bit++;
        }
        if (bit == 3) {
            return -1;
        }
        modes |= 1 << bit;
    }
    return modes;
}

int main(int argc, char **argv)
{
    struct gpu_host host;
    int failed = 2;
    const int is_check = argc > 1 && strcmp(argv[1], "check") == 0;
    const int is_bench = argc > 1 && strcmp(argv[1], "bench") == 0;
    const int modes = is_check && argc > 4 ? read_modes(argv + 4, argc - 4) : 0;
    if ((!is_check && !is_bench) || modes < 0) {
        fprintf(stderr, "usage: gpu_layer check [seed [text [brief] [self] [broken]]] | "
                        "bench [file.json [text [set...]]]\n");
        return 2;
    }
    if ((modes & LAYER_SELF) != 0) {
        gpu_host_init_cpu(&host, argv[0]);
    } else {
        gpu_host_init(&host, argv[0]);
    }
    if (is_check) {
        failed = layer_check(&host, argc > 2 ? (uint64_t)atoll(argv[2]) : 20261123,
                             argc > 3 ? argv[3] : "", modes);
    } else {
        gpu_limits_open(argv[0]);
        failed = layer_bench(&host, argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : "", argv + 4,
                             argc > 4 ? argc - 4 : 0);
    }
    gpu_host_finish(&host);
    return failed;
}
