/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times of whole layers, ids and weights given: graphs of layer calls with plain edges between
 * them, each call with ids of its own and the next of enough sets of weights that a set is out of
 * the cache when its turn comes again. Beside each time its parts as single operations, the floor
 * at the read limit of the same run, and the host's time for a call.
 *
 * Clocks: steady work comes before the first time and before each case. Bursts are single replays
 * after the device was idle.
 */
#include "gpu_layer_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    NUM_REPLAYS = 11,
    NUM_BURSTS = 7,
    NUM_HOST_SAMPLES = 9,
    NUM_HOST_CALLS = 8, /* in a row; they do not fill the driver's queue */
    MAX_TILES = 4096,
    MAX_LISTED = 32,  /* numbers of tokens after "tiles@" */
    MOST_BLOCKS = 4,  /* of an expert, in tiles that are timed, */
    LARGE_BLOCK = 128 /* or rows from which on all are */
};
static const double first_warm_ms = 1500.0, warm_ms = 100.0, stage_warm_ms = 10.0, idle_ms = 60.0;

static const int64_t token_counts[BENCH_NUM_COUNTS] = {1, 8, 32, 64, 128, 256, 1024, 4096, 8192};

static const struct bench_model models[] = {
    {"Mixtral-8x7B", 8, 2, 4096, 14336, 1, {182, 648, 685, 661, 679, 742, 1344, 4812, 8924}},
    {"Qwen3-30B-A3B", 128, 8, 2048, 768, 1, {36, 134, 261, 291, 305, 312, 373, 740, 1258}},
    {"Qwen3-235B-TP8", 128, 8, 4096, 192, 0, {0}},
    {"gpt-oss-120b", 128, 4, 2880, 2880, 0, {0}},
    {"DeepSeek-V2-Lite", 64, 6, 2048, 1408, 0, {0}},
    {"OLMoE", 64, 8, 2048, 1024, 0, {0}},
    {"Granite", 40, 8, 1536, 512, 0, {0}},
};

/* What is recorded: `layer` of all models, the others of those that peers were measured for. */
struct bench_kind {
    const char *name;
    int32_t dtype;
    double zipf;
    int is_burst;
    int has_all_models;
    int32_t layout; /* of the weights: LAYER_FUSED, _TRANSPOSED or _PAIRED */
};

static const struct bench_kind kinds[] = {
    {"layer", MOE_DTYPE_BF16, 0.0, 0, 1, LAYER_FUSED},
    {"zipf", MOE_DTYPE_BF16, 1.2, 0, 0, LAYER_FUSED},
    {"fp16", MOE_DTYPE_FP16, 0.0, 0, 0, LAYER_FUSED},
    {"burst", MOE_DTYPE_BF16, 0.0, 1, 0, LAYER_FUSED},
    {"transposed", MOE_DTYPE_BF16, 0.0, 0, 0, LAYER_TRANSPOSED},
    {"paired", MOE_DTYPE_BF16, 0.0, 0, 0, LAYER_PAIRED},
};
enum { NUM_KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static const struct gpu_host *host;
static double read_rate; /* bytes per microsecond */
static double next_warm_ms;
static FILE *json;

struct recorded {
    const struct bench *bench;
    int stage;
};

static void record(void *self, CUstream stream)
{
    const struct recorded *recorded = self;
    for (int call = 0; call < recorded->bench->num_calls; call++) {
        bench_run(recorded->bench, recorded->stage, call, stream);
    }
}

static struct gpu_timing time_stage(const struct bench *bench, int stage, int is_burst)
{
    struct recorded recorded = {bench, stage};
    struct gpu_pace pace = {.warm_ms = stage == STAGE_LAYER ? next_warm_ms : stage_warm_ms,
                            .num_untimed = 3};
    if (is_burst) {
        pace = (struct gpu_pace){.idle_ms = idle_ms, .num_untimed = 1};
    }
    struct gpu_timing timing = gpu_time_graph_paced(host->stream, record, &recorded,
                                                    is_burst ? NUM_BURSTS : NUM_REPLAYS, &pace);
    next_warm_ms = warm_ms;
    timing.median_us /= bench->num_calls;
    timing.low_us /= bench->num_calls;
    timing.high_us /= bench->num_calls;
    return timing;
}

static double now_us(void)
{
    struct timespec now;
    (void)timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare_doubles(const void *a, const void *b)
{
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Host microseconds of a layer call after the device was idle; without a bench of an empty
 * launch. */
static double time_host(const struct bench *bench)
{
    double samples[NUM_HOST_SAMPLES];
    for (int i = -1; i < NUM_HOST_SAMPLES; i++) {
        gpu_synchronize(host->stream);
        const double start_us = now_us();
        for (int call = 0; call < NUM_HOST_CALLS; call++) {
            if (bench == NULL) {
                gpu_limits_empty(host->stream);
            } else {
                bench_run(bench, STAGE_LAYER, call % bench->num_calls, host->stream);
            }
        }
        if (i >= 0) {
            samples[i] = (now_us() - start_us) / NUM_HOST_CALLS;
        }
    }
    gpu_synchronize(host->stream);
    qsort(samples, NUM_HOST_SAMPLES, sizeof(samples[0]), compare_doubles);
    return samples[NUM_HOST_SAMPLES / 2];
}

/* A measured case. */
struct result {
    const struct bench *bench;
    const struct bench_kind *kind;
    struct gpu_timing timings[NUM_STAGES];
    double host_us, bytes, flops, peer_us;
    const char *tiles[2]; /* of GEMM1 and GEMM2 */
};

static void print_result(const struct result *result)
{
    const struct bench *bench = result->bench;
    const struct gpu_timing *timings = result->timings;
    const double us = timings[STAGE_LAYER].median_us;
    printf("%-5s %-17s T %5lld %6.1f experts %9.2f us (%.2f .. %.2f) %5.2f TB/s %6.1f TFLOP/s, "
           "%5.1f %% of the read limit, ",
           result->kind->name, bench->model->name, (long long)bench->num_tokens,
           bench->active_experts, us, timings[STAGE_LAYER].low_us, timings[STAGE_LAYER].high_us,
           result->bytes / us / 1e6, result->flops / us / 1e6,
           100.0 * result->bytes / read_rate / us);
    if (result->peer_us > 0.0) {
        printf("peer/us %.2f, ", result->peer_us / us);
    }
    printf("sort %.2f gemm1 %.2f gemm2 %.2f combine %.2f, host %.1f us, %s, %s\n",
           timings[STAGE_SORT].median_us, timings[STAGE_GEMM1].median_us,
           timings[STAGE_GEMM2].median_us, timings[STAGE_COMBINE].median_us, result->host_us,
           result->tiles[0], result->tiles[1]);
    fflush(stdout);
}

static void write_result(const struct result *result)
{
    static const char *const stage_names[NUM_STAGES] = {
#define NAME(constant, name) [constant] = (name),
        BENCH_STAGES(NAME)
#undef NAME
    };
    const struct bench *bench = result->bench;
    const struct bench_model *model = bench->model;
    fprintf(json,
            ",\n  {\"set\": \"%s\", \"model\": \"%s\", \"experts\": %d, \"top_k\": %d, "
            "\"hidden\": %d, \"inter\": %d, \"dtype\": \"%s\", \"zipf\": %.2f, \"tokens\": %lld, "
            "\"active_experts\": %.2f, \"bytes\": %.0f, \"flops\": %.0f, \"peer_us\": %.1f, "
            "\"host_us\": %.2f, \"tile1\": \"%s\", \"tile2\": \"%s\"",
            result->kind->name, model->name, model->num_experts, model->top_k, model->hidden,
            model->inter, bench->dtype == MOE_DTYPE_FP16 ? "fp16" : "bf16", bench->zipf,
            (long long)bench->num_tokens, bench->active_experts, result->bytes, result->flops,
            result->peer_us, result->host_us, result->tiles[0], result->tiles[1]);
    for (int stage = 0; stage < NUM_STAGES; stage++) {
        const struct gpu_timing *timing = &result->timings[stage];
        fprintf(json, ", \"%s_us\": %.3f, \"%s_low_us\": %.3f, \"%s_high_us\": %.3f",
                stage_names[stage], timing->median_us, stage_names[stage], timing->low_us,
                stage_names[stage], timing->high_us);
    }
    fputs("}", json);
}

static void find_tiles(struct result *result)
{
    static const int32_t ops[] = {MOE_OP_GEMM1, MOE_OP_GEMM2};
    for (int i = 0; i < 2; i++) {
        struct moe_choice choice;
        MOE_INIT(choice);
        (void)host->api->plan_op_info(result->bench->plan, ops[i], result->bench->num_tokens,
                                      &choice, NULL);
        result->tiles[i] = choice.tile_name;
    }
}

static void bench_tokens(struct bench *bench, const struct bench_kind *kind, int count_idx)
{
    const struct bench_model *model = bench->model;
    struct result result = {.bench = bench, .kind = kind};
    bench_set_tokens(bench, token_counts[count_idx], kind->zipf);
    for (int stage = 0; stage < NUM_STAGES; stage++) {
        result.timings[stage] = time_stage(bench, stage, kind->is_burst);
    }
    result.host_us = time_host(bench);
    result.bytes = bench->active_experts * 3.0 * bench_matrix_bytes(model) +
                   4.0 * (double)bench->num_tokens * model->hidden;
    result.flops = 6.0 * (double)bench->num_routes * model->hidden * model->inter;
    result.peer_us = kind->dtype == MOE_DTYPE_BF16 && kind->zipf == 0.0 && !kind->is_burst &&
                             kind->layout == LAYER_FUSED
                         ? model->peer_us[count_idx]
                         : 0.0;
    find_tiles(&result);
    print_result(&result);
    if (json != NULL) {
        write_result(&result);
    }
    bench_drop_tokens(bench);
}

/* Not timed: tiles that an expert needs many blocks of, unless all do. */
static int is_candidate(const struct moe_tile_info *tile, const struct bench_model *model,
                        int64_t num_tokens)
{
    const int64_t rows = num_tokens * model->top_k / model->num_experts;
    return tile->backend == MOE_BACKEND_CUDA && tile->op == MOE_OP_GEMM1 && tile->built &&
           (MOST_BLOCKS * tile->block_size_m >= rows || tile->block_size_m >= LARGE_BLOCK);
}

/* GEMM1, GEMM2 and the layer with every tile, to fit the cost model by. */
static void bench_tiles(struct bench *bench, int64_t num_tokens)
{
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; i < MAX_TILES && host->api->tile_info(i, &tile, NULL) == MOE_STATUS_OK;
         i++) {
        if (!is_candidate(&tile, bench->model, num_tokens)) {
            continue;
        }
        gpu_force_gemm_tiles(host, &(struct gpu_gemm_tiles){tile, tile});
        bench_set_tokens(bench, num_tokens, 0.0);
        (void)time_stage(bench, STAGE_SORT, 0);
        printf("tile %-17s T %5lld %s %3d %3d %3d %2d %2d %2d: gemm1 %9.2f gemm2 %9.2f layer %9.2f "
               "us\n",
               bench->model->name, (long long)num_tokens, tile.kernel, tile.block_size_m,
               tile.block_size_n, tile.block_size_k, tile.group_size_m, tile.num_warps,
               tile.num_stages, time_stage(bench, STAGE_GEMM1, 0).median_us,
               time_stage(bench, STAGE_GEMM2, 0).median_us,
               time_stage(bench, STAGE_LAYER, 0).median_us);
        fflush(stdout);
        bench_drop_tokens(bench);
    }
    gpu_force_gemm_tiles(host, NULL);
}

struct limits {
    void *from;
    size_t bytes;
};

static void record_read(void *self, CUstream stream)
{
    const struct limits *limits = self;
    gpu_limits_read(stream, limits->from, limits->bytes);
}

static void measure_limit(void)
{
    const struct gpu_pace pace = {.warm_ms = warm_ms};
    struct limits limits = {.bytes = (size_t)4 << 30};
    limits.from = gpu_alloc(limits.bytes);
    gpu_fill_random(host->stream, limits.from, limits.bytes / 4, 1, 0);
    const double us =
        gpu_time_graph_paced(host->stream, record_read, &limits, NUM_REPLAYS, &pace).median_us;
    const double launch_us = time_host(NULL);
    read_rate = (double)limits.bytes / us;
    printf("read limit %.3f TB/s; host: empty launch %.2f us\n", read_rate / 1e6, launch_us);
    gpu_free(limits.from);
    if (json != NULL) {
        fprintf(json,
                "[\n  {\"device\": \"%s\", \"driver\": %d, \"source\": \"%s\", "
                "\"read_tbps\": %.3f, \"launch_us\": %.2f}",
                host->device.name, host->device.driver_version, host->api->source_id,
                read_rate / 1e6, launch_us);
    }
}

/* What "tiles" in front of the model's text asks for: every tile, with the table's numbers of
 * tokens or with those listed, of a model of the table or of a shape. */
struct tile_request {
    int is_wanted;
    int64_t counts[MAX_LISTED];
    int num_counts;
    struct bench_model shape;
    int has_shape;
};

/* Reads "tiles:TEXT" or "tiles@T,T,...:TEXT"; *text becomes what follows the colon. 0: it is
 * neither. */
static int read_tile_request(const char **text, struct tile_request *request)
{
    const char *at = *text + strlen("tiles");
    memset(request, 0, sizeof(*request));
    if (strncmp(*text, "tiles", strlen("tiles")) != 0 || (*at != ':' && *at != '@')) {
        return 1; /* a model's name */
    }
    request->is_wanted = 1;
    while (*at != ':') {
        char *end;
        const long long num_tokens = strtoll(at + 1, &end, 10);
        if (end == at + 1 || num_tokens <= 0 || request->num_counts == MAX_LISTED ||
            (*end != ',' && *end != ':')) {
            return 0;
        }
        request->counts[request->num_counts++] = num_tokens;
        at = end;
    }
    *text = at + 1;
    struct bench_model *shape = &request->shape;
    int num_read = 0;
    shape->name = *text;
    request->has_shape = sscanf(*text, "%d,%d,%d,%d%n", &shape->num_experts, &shape->top_k,
                                &shape->hidden, &shape->inter, &num_read) == 4 &&
                         (*text)[num_read] == '\0' && shape->num_experts > 0 && shape->top_k > 0 &&
                         shape->top_k <= shape->num_experts && shape->hidden > 0 &&
                         shape->inter > 0;
    return request->has_shape || strchr(*text, ',') == NULL;
}

static void bench_model(const struct bench_model *model, const struct bench_kind *kind,
                        const struct tile_request *tiles)
{
    struct bench bench;
    bench_init(&bench, host, model, kind->dtype, kind->layout);
    for (int i = 0; i < tiles->num_counts; i++) {
        bench_tiles(&bench, tiles->counts[i]);
    }
    for (int i = 0; i < BENCH_NUM_COUNTS && tiles->num_counts == 0; i++) {
        if (tiles->is_wanted) {
            bench_tiles(&bench, token_counts[i]);
        } else {
            bench_tokens(&bench, kind, i);
        }
    }
    bench_finish(&bench);
}

/* Every name is a kind. */
static int check_kinds(char **names, int num_names)
{
    for (int i = 0; i < num_names; i++) {
        int is_known = 0;
        for (int k = 0; k < NUM_KINDS; k++) {
            is_known |= strcmp(names[i], kinds[k].name) == 0;
        }
        if (!is_known) {
            fprintf(stderr, "gpu_layer: no set \"%s\"; valid:", names[i]);
            for (int k = 0; k < NUM_KINDS; k++) {
                fprintf(stderr, " %s", kinds[k].name);
            }
            fputs("\n", stderr);
            return 0;
        }
    }
    return 1;
}

static int is_wanted(const struct bench_kind *kind, char **names, int num_names)
{
    for (int i = 0; i < num_names; i++) {
        if (strcmp(names[i], kind->name) == 0) {
            return 1;
        }
    }
    return num_names == 0;
}

int layer_bench(const struct gpu_host *gpu, const char *json_path, const char *filter,
                char **kind_names, int num_kind_names)
{
    struct tile_request tiles;
    int num_benched = 0;
    host = gpu;
    if (!read_tile_request(&filter, &tiles) || (tiles.is_wanted && num_kind_names > 0)) {
        fprintf(stderr,
                "gpu_layer: \"%s\": tiles:MODEL or tiles@T,T,...:MODEL, with E,k,H,I as model "
                "or a part of a name, and no set behind it\n",
                filter);
        return 2;
    }
    if (!check_kinds(kind_names, num_kind_names)) {
        return 2;
    }
    json = json_path != NULL && json_path[0] != '\0' ? fopen(json_path, "w") : NULL;
    if (json == NULL && json_path != NULL && json_path[0] != '\0') {
        fprintf(stderr, "gpu_layer: %s cannot be written\n", json_path);
        return 2;
    }
    next_warm_ms = first_warm_ms;
    measure_limit();
    if (tiles.has_shape) {
        bench_model(&tiles.shape, &kinds[0], &tiles);
        num_benched++;
    }
    for (int k = 0; k < (tiles.is_wanted ? 1 : NUM_KINDS) && !tiles.has_shape; k++) {
        for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
            if (is_wanted(&kinds[k], kind_names, num_kind_names) &&
                (kinds[k].has_all_models || models[m].is_compared) &&
                strstr(models[m].name, filter) != NULL) {
                bench_model(&models[m], &kinds[k], &tiles);
                num_benched++;
            }
        }
    }
    if (json != NULL) {
        fprintf(json, "\n]\n");
        fclose(json);
    }
    if (num_benched == 0) {
        fprintf(stderr, "gpu_layer: no model's name contains \"%s\"\n", filter);
        return 2;
    }
    return 0;
}
