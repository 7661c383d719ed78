/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every CUDA operation against the CPU backend, bit for bit, on random cases: the CPU backend is
 * held to the independent references by the other tests. Outputs are poisoned and stand between
 * guard bands; every variant of the tile table is forced in turn. Calls reach the device on three
 * kinds of streams, at once or captured (gpu_check_ways.c). Then bits of gating across tiles, runs
 * and batches (gpu_check_bits.c).
 *
 *   gpu_check [cases per operation and variant, default 150] [check_seed]
 */
#include "gpu_check.h"

struct gpu_host check_host;
uint64_t check_seed;
int check_num_failed;
int check_num_checked;

int main(int argc, char **argv)
{
    static const char *const op_names[MOE_NUM_OPS] = {
#define NAME(name, value, text) [value] = text,
        MOE_OP_LIST(NAME)
#undef NAME
    };
    const int64_t num_cases = argc > 1 ? atoll(argv[1]) : 150;
    check_seed = argc > 2 ? (uint64_t)atoll(argv[2]) : 20261123;
    gpu_host_init(&check_host, argv[0]);
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; check_host.api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.min_sm > check_host.device.sm) {
            continue;
        }
        if (tile.op == MOE_OP_GEMM1) {
            continue; /* not the CPU's bits: gpu_layer and gpu_gemm check them */
        }
        const int failed_before = check_num_failed, checked_before = check_num_checked;
        gpu_force_tile(&check_host, &tile, op_names[tile.op]);
        for (int64_t c = 0; c < num_cases; c++) {
            switch (tile.op) {
            case MOE_OP_ALIGN_BLOCK_SIZE:
                check_align();
                break;
            case MOE_OP_EP_PREPROCESS:
                check_ep_preprocess();
                break;
            case MOE_OP_ROUTER:
                check_router();
                break;
            case MOE_OP_GATING:
                check_gating();
                break;
            case MOE_OP_ROUTE:
                check_route();
                break;
            case MOE_OP_PRE_REORDER:
                check_pre_reorder();
                check_pre_reorder_quantized();
                break;
            case MOE_OP_QUANTIZE:
                check_quantize();
                break;
            case MOE_OP_ACTIVATION:
                check_activation();
                break;
            case MOE_OP_POST_REORDER:
                check_post_reorder(0);
                break;
            case MOE_OP_SUM_REDUCE:
                check_post_reorder(1);
                break;
            default:
                printf("FAILED %s has no check\n", op_names[tile.op]);
                check_num_failed++;
                break;
            }
        }
        printf("%-18s %-28s %5d comparisons, %d failed\n", op_names[tile.op], tile.name,
               check_num_checked - checked_before, check_num_failed - failed_before);
        fflush(stdout);
    }
    const int failed_before = check_num_failed, checked_before = check_num_checked;
    for (int64_t c = 0; c < num_cases; c++) {
        check_gating_bits();
    }
    printf("%-18s %-28s %5d comparisons, %d failed\n", "gating and route", "bits of all tiles",
           check_num_checked - checked_before, check_num_failed - failed_before);
    check_report_ways();
    gpu_host_finish(&check_host);
    printf("%d passed, %d failed\n", check_num_checked - check_num_failed, check_num_failed);
    return check_num_failed > 0 ? 1 : 0;
}
