/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of the CUDA operations: the median over replays of graphs of dependent nodes with plain
 * edges, each node on a set of buffers of its own, after the cache was flushed; and what a call
 * without a graph costs the host. Nodes that do nothing, and the read, write and copy limits are
 * measured in the same run; the ratio is bytes / copy limit over the time.
 *
 *   gpu_bench [file.json [targets|tiles|wide [operation...]]]
 *     targets  three shapes, five numbers of tokens (default)
 *     tiles    the same, and every variant of the tile table in turn
 *     wide     other numbers of experts, other k, skewed routing
 */
#include "gpu_bench.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TILES = 1000, NUM_REPLAYS = 21, MANY_NODES = 100, FEW_NODES = 20, MANY_TOKENS = 1024 };
#define FLUSH_BYTES ((size_t)256 << 20)
#define SETS_BYTES  6e9 /* at most, of all sets of one case */

FILE *bench_json;
static int is_json_open;
static int wants_tiles;
static char **wanted; /* operations; all when there are none */
static int num_wanted;

void bench_json_begin(void)
{
    fputs(is_json_open ? ",\n  " : "[\n  ", bench_json);
    is_json_open = 1;
}

static void record_bench(void *self, CUstream stream)
{
    const struct bench *bench = self;
    for (int node = 0; node < bench->num_nodes; node++) {
        bench_run(bench, &bench->sets[node % bench->num_sets], stream);
    }
}

static const char *op_name(int32_t op)
{
    switch (op) {
#define NAME(name, value, text) \
    case value:                 \
        return text;
        MOE_OP_LIST(NAME)
#undef NAME
    default:
        return "";
    }
}

static void report(const struct bench *bench, const struct gpu_timing *timing, double host_us,
                   const char *tile)
{
    const double nodes = bench->num_nodes, us = timing->median_us / nodes;
    const double bytes = bench->op->bytes(bench), tbps = bytes / us / 1e6;
    printf("%-15s E %3d k %2d H %5d I %5d T %6lld %s%3.1f %9.2f us (%.2f .. %.2f) %6.3f TB/s "
           "%5.1f %% of copy, host %.2f us  %s\n",
           bench->op->name, bench->num_experts, bench->top_k, bench->hidden, bench->inter,
           (long long)bench->num_tokens, bench->zipf > 0.0 ? "zipf " : "even ", bench->zipf, us,
           timing->low_us / nodes, timing->high_us / nodes, tbps,
           100.0 * tbps / bench_limits.copy_tbps, host_us, tile);
    fflush(stdout);
    if (bench_json != NULL) {
        bench_json_begin();
        fprintf(bench_json,
                "{\"op\": \"%s\", \"experts\": %d, \"top_k\": %d, \"hidden\": %d, \"inter\": %d, "
                "\"tokens\": %lld, \"zipf\": %.2f, \"us\": %.3f, \"low_us\": %.3f, \"high_us\": "
                "%.3f, \"host_us\": %.3f, \"bytes\": %.0f, \"tile\": \"%s\"}",
                bench->op->name, bench->num_experts, bench->top_k, bench->hidden, bench->inter,
                (long long)bench->num_tokens, bench->zipf, us, timing->low_us / nodes,
                timing->high_us / nodes, host_us, bytes, tile);
    }
}

static void time_plan(struct bench *bench)
{
    struct moe_error error;
    struct moe_choice choice;
    MOE_INIT(error);
    MOE_INIT(choice);
    gpu_host_check(bench_host.api->plan_op_info(bench->plan, bench->op->op, bench->num_tokens,
                                                &choice, &error),
                   &error, bench->op->name);
    const struct gpu_timing timing =
        gpu_time_graph(bench_host.stream, record_bench, bench, NUM_REPLAYS, FLUSH_BYTES);
    report(bench, &timing, bench_host_us(bench), choice.tile_name);
}

static void time_tiles(struct bench *bench, const struct moe_problem *problem)
{
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; i < MAX_TILES && bench_host.api->tile_info(i, &tile, NULL) == MOE_STATUS_OK;
         i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.op != bench->op->op ||
            tile.min_sm > bench_host.device.sm) {
            continue;
        }
        gpu_force_tile(&bench_host, &tile, op_name(bench->op->op));
        if (bench_make_plan(bench, problem)) {
            time_plan(bench);
            bench_drop_plan(bench);
        }
        gpu_force_tile(&bench_host, NULL, NULL);
    }
}

static int is_wanted(const struct bench_op *op)
{
    for (int i = 0; i < num_wanted; i++) {
        if (strcmp(wanted[i], op->name) == 0) {
            return 1;
        }
    }
    return num_wanted == 0;
}

struct shape {
    int32_t num_experts, top_k, hidden, inter;
};

static void bench_one(const struct bench_op *op, const struct shape *shape, int64_t num_tokens,
                      double zipf)
{
    static struct bench bench;
    struct moe_problem problem;
    bench = (struct bench){.op = op,
                           .num_experts = shape->num_experts,
                           .top_k = shape->top_k,
                           .hidden = shape->hidden,
                           .inter = shape->inter,
                           .num_tokens = num_tokens,
                           .zipf = zipf};
    bench_describe(&bench, &problem);
    if (!is_wanted(op) || !bench_make_plan(&bench, &problem)) {
        return;
    }
    const double set_bytes = 1.3 * op->bytes(&bench) + 1.0;
    const double num_sets = SETS_BYTES / set_bytes;
    bench.num_nodes = num_tokens <= MANY_TOKENS ? MANY_NODES : FEW_NODES;
    bench.num_sets = num_sets > BENCH_MAX_SETS ? BENCH_MAX_SETS : num_sets < 2 ? 2 : (int)num_sets;
    bench_make_sets(&bench, &problem);
    const int is_run = bench_try(&bench);
    if (is_run) {
        time_plan(&bench);
    }
    bench_drop_plan(&bench);
    if (wants_tiles && is_run) {
        time_tiles(&bench, &problem);
    }
    bench_free_sets(&bench);
}

static void bench_targets(void)
{
    static const int64_t tokens[] = {1, 64, 1024, 4096, 16384};
    static const struct shape shapes[] = {
        {256, 8, 7168, 2048}, {64, 2, 4096, 2048}, {128, 8, 2048, 768}};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int o = 0; o < bench_num_ops; o++) {
            for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]); t++) {
                bench_one(&bench_ops[o], &shapes[s], tokens[t], 0.0);
            }
        }
    }
}

static void bench_wide(void)
{
    static const int32_t experts[] = {8, 60, 160, 384, 512}, ks[] = {1, 2, 6, 10};
    static const int64_t tokens[] = {64, 4096};
    static const struct shape skewed = {256, 8, 7168, 2048};
    for (int o = 0; o < bench_num_ops; o++) {
        const struct bench_op *op = &bench_ops[o];
        for (size_t i = 0; i < sizeof(ks) / sizeof(ks[0]); i++) {
            for (size_t e = 0; e < sizeof(experts) / sizeof(experts[0]); e++) {
                const struct shape shape = {experts[e], ks[i], 4096, 1536};
                /* Rows do not care how many experts there are. */
                const int is_new = !op->has_rows || experts[e] == 160;
                for (size_t t = 0; t < 2 && is_new && ks[i] <= experts[e]; t++) {
                    bench_one(op, &shape, tokens[t], 0.0);
                }
            }
        }
        bench_one(op, &skewed, 64, 1.2);
        bench_one(op, &skewed, 4096, 1.2);
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[2] : "targets";
    const int is_wide = strcmp(mode, "wide") == 0;
    wants_tiles = strcmp(mode, "tiles") == 0;
    if (!is_wide && !wants_tiles && strcmp(mode, "targets") != 0) {
        fprintf(stderr, "gpu_bench: unknown mode \"%s\"; valid: targets, tiles, wide\n", mode);
        return 2;
    }
    wanted = argv + 3;
    num_wanted = argc > 3 ? argc - 3 : 0;
    gpu_host_init(&bench_host, argv[0]);
    gpu_limits_open(argv[0]);
    bench_json = argc > 1 ? fopen(argv[1], "w") : NULL;
    if (argc > 1 && bench_json == NULL) {
        fprintf(stderr, "gpu_bench: %s cannot be written\n", argv[1]);
        return 2;
    }
    bench_measure_limits();
    if (is_wide) {
        bench_wide();
    } else {
        bench_targets();
    }
    if (bench_json != NULL) {
        fputs("\n]\n", bench_json);
        fclose(bench_json);
    }
    gpu_host_finish(&bench_host);
    return 0;
}
