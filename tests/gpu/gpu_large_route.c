/* SPDX-License-Identifier: Apache-2.0 */
/* route at T 4096 and 65536 to the arrays of expert parallelism, from logits of every type, with
 * every tile: gating and each array against naive kernels; a changed word in each is noticed. */
#include "gpu_large.h"

#include "gpu_limits.h"

#include <stdlib.h>
#include <string.h>

enum filter_kind { FILTER_NONE, FILTER_RANGE, FILTER_MAP };

struct segments_case {
    int32_t num_experts, top_k;
    int64_t num_tokens;
    int32_t kind; /* GPU_FILL_* of the logits */
    enum filter_kind filter;
    int32_t alignment;
    int32_t is_masked;
};

static const struct segments_case cases[] = {
    {8, 2, 37, GPU_FILL_FP32, FILTER_MAP, 4, 0},
    {8, 2, 37, GPU_FILL_FP16, FILTER_NONE, 1, 1},
    {256, 8, 4096, GPU_FILL_FP32, FILTER_NONE, 1, 0},
    {256, 8, 4096, GPU_FILL_BF16, FILTER_MAP, 128, 0},
    {256, 8, 4096, GPU_FILL_FP16, FILTER_RANGE, 1, 1},
    {128, 8, 65536, GPU_FILL_FP32, FILTER_RANGE, 128, 0},
    {256, 8, 65536, GPU_FILL_BF16, FILTER_NONE, 1, 1},
    {256, 8, 65536, GPU_FILL_FP16, FILTER_MAP, 4, 0},
    {60, 4, 65536, GPU_FILL_FP32, FILTER_NONE, 128, 0},
    {384, 6, 65536, GPU_FILL_BF16, FILTER_MAP, 1, 1},
};
enum { NUM_CASES = sizeof(cases) / sizeof(cases[0]), HELD_TOKENS = 64 };

/* What route gives, on the device. */
enum { IDS, WEIGHTS, INDPTR, SRC2DST, DST2SRC, REORDER, M_INDICES, MASKED, NUM_ARRAYS };
static const char *const array_names[NUM_ARRAYS] = {"topk_ids",  "topk_weights", "seg_indptr",
                                                    "src2dst",   "dst2src",      "reorder_ids",
                                                    "m_indices", "masked_m"};

struct segments {
    const struct segments_case *shape;
    int32_t num_local;
    int64_t num_routes, max_masked_rows, row_capacity;
    void *logits;
    int32_t *local; /* local expert of each id, or -1; the same on the device */
    void *local_device;
    void *arrays[NUM_ARRAYS];
    size_t array_bytes[NUM_ARRAYS];
    char text[200];
};

static size_t logit_bytes(int32_t kind)
{
    return kind == GPU_FILL_FP32 ? 4 : 2;
}

static void make_local(struct segments *own)
{
    const int32_t num_experts = own->shape->num_experts;
    own->num_local = own->shape->filter == FILTER_NONE ? num_experts : num_experts / 2;
    own->local = malloc((size_t)num_experts * sizeof(*own->local));
    for (int32_t e = 0; e < num_experts; e++) {
        own->local[e] = e;
        if (own->shape->filter == FILTER_RANGE) {
            const int32_t idx = e - num_experts / 4;
            own->local[e] = idx >= 0 && idx < own->num_local ? idx : -1;
        } else if (own->shape->filter == FILTER_MAP) { /* every second one, backwards */
            own->local[e] = e % 2 == 1 ? own->num_local - 1 - e / 2 : -1;
        }
    }
    own->local_device = gpu_alloc((size_t)num_experts * sizeof(*own->local));
    gpu_upload(own->local_device, own->local, (size_t)num_experts * sizeof(*own->local));
}

static void make_arrays(struct segments *own)
{
    const struct segments_case *shape = own->shape;
    const size_t num_words =
        ((size_t)(shape->num_tokens * shape->num_experts) * logit_bytes(shape->kind) + 3) / 4;
    own->num_routes = shape->num_tokens * shape->top_k;
    own->max_masked_rows = shape->is_masked ? shape->num_tokens + 3 : 0;
    own->row_capacity =
        shape->is_masked ? own->num_local * own->max_masked_rows
                         : own->num_routes + (int64_t)own->num_local * (shape->alignment - 1) + 11;
    own->logits = gpu_alloc(num_words * 4);
    if (shape->kind == GPU_FILL_FP16) {
        gpu_fill_random_fp16(bench_host.stream, own->logits, num_words, 77);
    } else {
        gpu_fill_random(bench_host.stream, own->logits, num_words, 78,
                        shape->kind == GPU_FILL_FP32);
    }
    const size_t routes = (size_t)own->num_routes * 4, rows = (size_t)own->row_capacity * 4;
    const size_t experts = (size_t)own->num_local;
    const size_t bytes[NUM_ARRAYS] = {routes, routes, (experts + 1) * 8, routes, rows,
                                      routes, rows,   experts * 4};
    for (int i = 0; i < NUM_ARRAYS; i++) {
        own->array_bytes[i] = bytes[i];
        own->arrays[i] = i != MASKED || shape->is_masked ? gpu_alloc(bytes[i]) : NULL;
    }
}

static void run_route(const struct segments *own)
{
    const struct segments_case *shape = own->shape;
    struct moe_error error;
    struct moe_problem problem;
    struct moe_plan_options options;
    struct moe_plan_info info;
    struct moe_route_args args;
    struct moe_plan *plan = NULL;
    MOE_INIT(error);
    MOE_INIT(problem);
    MOE_INIT(options);
    MOE_INIT(info);
    MOE_INIT_CALL(args);
    problem.num_experts = own->num_local;
    problem.num_experts_global = shape->num_experts;
    problem.top_k = shape->top_k;
    problem.max_tokens = shape->num_tokens;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gating = MOE_GATING_SOFTMAX;
    problem.flags = MOE_PROBLEM_RENORMALIZE;
    problem.logits_dtype = shape->kind == GPU_FILL_FP32   ? MOE_DTYPE_FP32
                           : shape->kind == GPU_FILL_FP16 ? MOE_DTYPE_FP16
                                                          : MOE_DTYPE_BF16;
    options.ops = UINT64_C(1) << MOE_OP_ROUTE;
    gpu_host_check(bench_host.api->plan_create(bench_host.cuda, &problem, &options, &plan, &error),
                   &error, own->text);
    gpu_host_check(bench_host.api->plan_info(plan, &info, &error), &error, own->text);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = bench_host.stream;
    args.call.workspace_bytes = info.workspace_bytes;
    args.call.workspace = info.workspace_bytes > 0 ? gpu_alloc(info.workspace_bytes) : NULL;
    args.logits = own->logits;
    args.topk_ids = own->arrays[IDS];
    args.topk_weights = own->arrays[WEIGHTS];
    if (shape->filter == FILTER_RANGE) {
        args.filter.expert_begin = shape->num_experts / 4;
        args.filter.expert_end = shape->num_experts / 4 + own->num_local;
    } else if (shape->filter == FILTER_MAP) {
        args.filter.expert_map = own->local_device;
    }
    args.segment_alignment = shape->is_masked ? 0 : shape->alignment;
    args.seg_indptr = own->arrays[INDPTR];
    args.src2dst = own->arrays[SRC2DST];
    args.dst2src = own->arrays[DST2SRC];
    args.reorder_ids = own->arrays[REORDER];
    args.m_indices = own->arrays[M_INDICES];
    args.row_capacity = own->row_capacity;
    args.masked_m = own->arrays[MASKED];
    args.max_masked_rows = own->max_masked_rows;
    gpu_host_check(bench_host.api->route(plan, &args, &error), &error, own->text);
    gpu_synchronize(bench_host.stream);
    gpu_free(args.call.workspace);
    bench_host.api->plan_destroy(plan);
}

/* Of what is there now. Ids that are wrong are not followed. */
static unsigned long long count_wrong(struct segments *own)
{
    int64_t num_tokens = own->shape->num_tokens, top_k = own->shape->top_k;
    int64_t num_global = own->shape->num_experts, num_experts = own->num_local;
    int64_t alignment = own->shape->alignment;
    int32_t kind = own->shape->kind;
    void *reference = NULL, *counts = large_zeros((size_t)num_experts * 4), **a = own->arrays;
    large_begin();
    LARGE_RUN("check_gating", &own->logits, &kind, &a[IDS], &a[WEIGHTS], &num_tokens, &top_k,
              &num_global, &reference, &large_num_wrong);
    unsigned long long count = large_end();
    if (count == 0) {
        LARGE_RUN("count_routes", &a[IDS], &own->local_device, &own->num_routes, &counts);
        LARGE_RUN("check_segments", &a[IDS], &own->local_device, &counts, &a[INDPTR], &a[SRC2DST],
                  &a[DST2SRC], &a[REORDER], &a[M_INDICES], &a[MASKED], &own->num_routes,
                  &num_experts, &alignment, &own->max_masked_rows, &own->row_capacity,
                  &large_num_wrong);
        count = large_end();
    }
    gpu_free(counts);
    return count;
}

/* ---------------------------------------------------------------- loops on the host */

static void *fetch(const struct segments *own, int array)
{
    void *host = malloc(own->array_bytes[array]);
    gpu_download(host, own->arrays[array], own->array_bytes[array]);
    return host;
}

/* The arrays behind the ids, made in the plainest way. */
static int is_right_on_host(const struct segments *own)
{
    int32_t *ids = fetch(own, IDS), *src2dst = fetch(own, SRC2DST), *dst2src = fetch(own, DST2SRC);
    int32_t *reorder = fetch(own, REORDER), *m_indices = fetch(own, M_INDICES);
    int32_t *masked = own->arrays[MASKED] != NULL ? fetch(own, MASKED) : NULL;
    int64_t *indptr = fetch(own, INDPTR);
    const int64_t alignment = own->shape->alignment, most = own->max_masked_rows;
    int64_t row = 0, number = 0;
    int is_right = 1;
    for (int32_t e = 0; e < own->num_local; e++) {
        const int64_t begin = row;
        is_right &= indptr[e] == begin;
        for (int64_t i = 0; i < own->num_routes; i++) {
            if (own->local[ids[i]] == e) {
                is_right &= src2dst[i] == row && dst2src[row] == i && m_indices[row] == e &&
                            reorder[number] == e;
                row++;
                number++;
            }
        }
        is_right &= masked == NULL || masked[e] == row - begin;
        for (; most > 0 ? row < begin + most : row % alignment != 0; row++) {
            is_right &= dst2src[row] == -1 && m_indices[row] == -1;
        }
    }
    is_right &= indptr[own->num_local] == row;
    for (; row < own->row_capacity; row++) {
        is_right &= dst2src[row] == -1 && m_indices[row] == -1;
    }
    for (; number < own->num_routes; number++) {
        is_right &= reorder[number] == -1;
    }
    for (int64_t i = 0; i < own->num_routes; i++) {
        is_right &= own->local[ids[i]] >= 0 || src2dst[i] == -1;
    }
    void *all[] = {ids, src2dst, dst2src, reorder, m_indices, masked, indptr};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        free(all[i]);
    }
    return is_right;
}

/* What the check says of every array behind the ids, with each word changed, against the loops. */
static void hold(struct segments *own)
{
    unsigned long long num_words = 0, num_wrong = 0, num_different = 0;
    large_expect(is_right_on_host(own), LARGE_SEGMENTS, own->text, "wrong by loops on the host", 0);
    for (int a = INDPTR; a < NUM_ARRAYS; a++) {
        for (size_t w = 0; own->arrays[a] != NULL && w < own->array_bytes[a] / 4; w++) {
            uint32_t word = 0;
            char *at = (char *)own->arrays[a] + 4 * w;
            gpu_download(&word, at, sizeof(word));
            const uint32_t changed = word ^ 1u << (7 * w + 3) % 32;
            gpu_upload(at, &changed, sizeof(changed));
            const int is_right = is_right_on_host(own);
            num_different += is_right != (count_wrong(own) == 0);
            num_wrong += !is_right;
            num_words++;
            gpu_upload(at, &word, sizeof(word));
        }
    }
    large_expect(num_different == 0, LARGE_SEGMENTS, own->text,
                 "kernel and loops disagree on changed words", num_different);
    large_expect(num_wrong > 0, LARGE_SEGMENTS, own->text, "no changed word is wrong", 0);
    printf("%-16s held against loops on the host: %llu of %llu changed words are wrong\n",
           LARGE_SEGMENTS, num_wrong, num_words);
}

/* ---------------------------------------------------------------- cases */

static void check_case(const struct segments_case *shape)
{
    static const char *const kinds[] = {
        [GPU_FILL_BF16] = "bf16", [GPU_FILL_FP32] = "fp32", [GPU_FILL_FP16] = "fp16"};
    static const char *const filters[] = {"all local", "a range", "a map"};
    struct segments own = {.shape = shape};
    struct moe_tile_info tile;
    int num_tiles = 0;
    MOE_INIT(tile);
    make_local(&own);
    make_arrays(&own);
    for (int32_t i = -1; i < 0 || bench_host.api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if (i >= 0 && (tile.op != MOE_OP_ROUTE || tile.backend != MOE_BACKEND_CUDA ||
                       tile.min_sm > bench_host.device.sm)) {
            continue;
        }
        snprintf(own.text, sizeof(own.text), "E %d k %d T %lld %s %s alignment %d masked %d %s",
                 shape->num_experts, shape->top_k, (long long)shape->num_tokens, kinds[shape->kind],
                 filters[shape->filter], shape->alignment, shape->is_masked,
                 i >= 0 ? tile.name : "as dispatched");
        gpu_force_tile(&bench_host, i >= 0 ? &tile : NULL, "route");
        for (int a = 0; a < NUM_ARRAYS; a++) {
            if (own.arrays[a] != NULL) {
                gpu_poison(own.arrays[a], 0xcb, own.array_bytes[a]);
            }
        }
        run_route(&own);
        const unsigned long long count = count_wrong(&own);
        large_expect(count == 0, LARGE_SEGMENTS, own.text, "outputs are wrong", count);
        num_tiles++;
    }
    gpu_force_tile(&bench_host, NULL, "route");
    if (shape->num_tokens <= HELD_TOKENS) {
        hold(&own);
    }
    for (int a = 0; a < NUM_ARRAYS; a++) {
        if (own.arrays[a] != NULL) {
            large_flip(own.arrays[a], own.array_bytes[a]);
            large_expect(count_wrong(&own) > 0, LARGE_SEGMENTS, array_names[a],
                         "the check does not notice a changed word", 0);
            large_flip(own.arrays[a], own.array_bytes[a]);
        }
    }
    for (int a = 0; a < NUM_ARRAYS; a++) {
        gpu_free(own.arrays[a]);
    }
    printf("%-16s %s, and %d tiles\n", LARGE_SEGMENTS, own.text, num_tiles - 1);
    fflush(stdout);
    gpu_free(own.logits);
    gpu_free(own.local_device);
    free(own.local);
}

void large_check_segments(void)
{
    for (int i = 0; i < NUM_CASES; i++) {
        check_case(&cases[i]);
    }
}
