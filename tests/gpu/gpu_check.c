/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every CUDA operation against the CPU backend, bit for bit, on random cases: the CPU backend is
 * held to the independent references by the other tests. Outputs are poisoned and stand between
 * guard bands; every variant of the tile table is forced in turn, and run twice.
 *
 *   gpu_check [cases per operation and variant, default 150] [seed]
 */
#include "gpu_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 4096, POISON = 0xcb };

static struct gpu_host host;
static uint64_t seed;
static int num_failed;
static int num_checked;

/* The same memory on the host (for the CPU backend) and on the device, between guard bands. */
struct mirror {
    size_t bytes;
    size_t offset;       /* of the data behind the guard, for odd alignments */
    unsigned char *host; /* with guards */
    unsigned char *device;
};

static void mirror_init(struct mirror *mirror, size_t bytes, size_t misalignment)
{
    mirror->bytes = bytes;
    mirror->offset = GUARD_BYTES + misalignment;
    mirror->host = malloc(bytes + 2 * GUARD_BYTES + misalignment);
    mirror->device = gpu_alloc(bytes + 2 * GUARD_BYTES + misalignment);
    memset(mirror->host, POISON, bytes + 2 * GUARD_BYTES + misalignment);
}

static void mirror_finish(struct mirror *mirror)
{
    free(mirror->host);
    gpu_free(mirror->device);
}

static void *on_host(const struct mirror *mirror)
{
    return mirror->host + mirror->offset;
}

static void *on_device(const struct mirror *mirror)
{
    return mirror->device + mirror->offset;
}

/* Send all of it, guards included. */
static void mirror_send(const struct mirror *mirror)
{
    gpu_upload(mirror->device, mirror->host, mirror->bytes + mirror->offset + GUARD_BYTES);
}

/* Is the device's memory what the host's is, guards included? */
static void mirror_compare(const struct mirror *mirror, const char *what, const char *text)
{
    const size_t total = mirror->bytes + mirror->offset + GUARD_BYTES;
    unsigned char *got = malloc(total);
    gpu_download(got, mirror->device, total);
    num_checked++;
    for (size_t i = 0; i < total; i++) {
        if (got[i] != mirror->host[i]) {
            if (num_failed++ < 20) {
                printf("FAILED %s, %s: byte %lld of %zu is 0x%02x, the CPU's is 0x%02x\n", text,
                       what, (long long)i - (long long)mirror->offset, mirror->bytes, got[i],
                       mirror->host[i]);
            }
            break;
        }
    }
    free(got);
}

static int64_t draw(int64_t limit)
{
    return (int64_t)(gpu_random(&seed) % (uint64_t)limit);
}

static int64_t pick(const int64_t *values, int64_t num_values)
{
    return values[draw(num_values)];
}
#define PICK(...) \
    pick((const int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

/* Finite random elements of any of the three types: random signs and mantissas, moderate
 * exponents. */
static void fill_elements(void *out, int32_t dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = gpu_random(&seed);
        if (dtype == MOE_DTYPE_FP32) {
            uint32_t word = (uint32_t)(bits & 0x807fffffu) | (uint32_t)(120 + bits / 7 % 12) << 23;
            memcpy((char *)out + 4 * i, &word, 4);
        } else if (dtype == MOE_DTYPE_BF16) {
            uint16_t half = (uint16_t)((bits & 0x807f) | (120 + (bits >> 32) % 12) << 7);
            memcpy((char *)out + 2 * i, &half, 2);
        } else {
            uint16_t half = (uint16_t)((bits & 0x83ff) | (10 + (bits >> 32) % 8) << 10);
            memcpy((char *)out + 2 * i, &half, 2);
        }
    }
}

static void fill_ids(void *out, int32_t ids_dtype, int64_t count, int32_t num_experts,
                     int64_t pattern)
{
    static const int64_t hostile[] = {-1, INT32_MAX, INT32_MIN, -2};
    for (int64_t i = 0; i < count; i++) {
        int64_t id = draw(num_experts);
        if (pattern == 1) {
            id = num_experts / 2; /* one hot expert */
        } else if (pattern == 2 || (pattern == 3 && draw(4) == 0)) {
            int64_t which = draw(5);
            id = which == 4 ? num_experts : hostile[which];
        } else if (pattern == 4) { /* Zipf-like */
            id = (int64_t)((double)num_experts / (1.0 + (double)draw(num_experts))) % num_experts;
        }
        if (ids_dtype == MOE_IDS_INT64) {
            int64_t wide = id < 0 && draw(2) ? id - (INT64_C(1) << 40) : id;
            memcpy((char *)out + 8 * i, &wide, 8);
        } else {
            int32_t narrow = (int32_t)id;
            memcpy((char *)out + 4 * i, &narrow, 4);
        }
    }
}

/* One problem on both backends, for one operation. */
struct test_case {
    struct moe_problem problem;
    struct moe_plan *cpu;
    struct moe_plan *cuda;
    void *workspace; /* of the CPU */
    struct moe_plan_info info;
    int64_t num_tokens;
    char text[256];
};

static void case_init(struct test_case *test, int32_t op)
{
    struct moe_error error;
    struct moe_plan_options options;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(test->info);
    options.ops = UINT64_C(1) << op;
    gpu_host_check(host.api->plan_create(host.cpu, &test->problem, &options, &test->cpu, &error),
                   &error, "cpu plan");
    gpu_host_check(host.api->plan_create(host.cuda, &test->problem, &options, &test->cuda, &error),
                   &error, "cuda plan");
    gpu_host_check(host.api->plan_info(test->cpu, &test->info, &error), &error, "plan_info");
    test->workspace = aligned_alloc(64, (test->info.workspace_bytes + 127) / 64 * 64);
}

static void case_finish(struct test_case *test)
{
    host.api->plan_destroy(test->cpu);
    host.api->plan_destroy(test->cuda);
    free(test->workspace);
}

static void set_call(const struct test_case *test, int is_cuda, struct moe_call *call)
{
    call->num_tokens = test->num_tokens;
    call->workspace = is_cuda ? NULL : test->workspace;
    call->workspace_bytes = is_cuda ? 0 : test->info.workspace_bytes;
    call->stream = is_cuda ? host.stream : NULL;
}

static void draw_routes(struct test_case *test)
{
    memset(&test->problem, 0, sizeof(test->problem));
    test->problem.struct_size = sizeof(test->problem);
    test->problem.num_experts = (int32_t)PICK(1, 8, 60, 160, 257, 1500);
    test->problem.num_experts_global = test->problem.num_experts + (int32_t)PICK(0, 0, 5);
    int64_t top_k = PICK(1, 2, 8, 22);
    test->problem.top_k =
        (int32_t)(top_k < test->problem.num_experts ? top_k : test->problem.num_experts);
    test->num_tokens = PICK(0, 1, 2, 17, 64, 1000, 4096);
    test->problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    test->problem.tokens.dtype = MOE_DTYPE_BF16;
}

static void set_filter(struct moe_route_filter *filter, const struct moe_problem *problem,
                       int64_t kind, const int32_t *map)
{
    if (kind == 1) {
        filter->expert_begin = problem->num_experts / 3;
        filter->expert_end = problem->num_experts - problem->num_experts / 4;
        if (filter->expert_end <= filter->expert_begin) {
            filter->expert_begin = 0;
        }
    } else if (kind == 2) {
        filter->expert_map = map;
    }
}

static void fill_map(int32_t *map, const struct moe_problem *problem)
{
    for (int32_t e = 0; e < problem->num_experts_global; e++) {
        map[e] = draw(3) == 0 ? (int32_t)PICK(-1, INT32_MAX, problem->num_experts)
                              : (int32_t)draw(problem->num_experts);
    }
}

static void check_align(void)
{
    struct test_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_routes(&test);
    case_init(&test, MOE_OP_ALIGN_BLOCK_SIZE);
    const struct moe_problem *problem = &test.problem;
    const int64_t num_routes = test.num_tokens * problem->top_k;
    const int32_t ids_dtype = (int32_t)draw(2), mode = (int32_t)draw(2);
    const int32_t block_size = (int32_t)PICK(1, 7, 16, 64, 128);
    const int64_t pattern = draw(5), filter = draw(3), extra = PICK(0, 0, 13);
    const int counts_only = draw(8) == 0;
    int64_t sorted_capacity = 0, expert_capacity = 0;
    gpu_host_check(host.api->align_capacity(num_routes, problem->num_experts, block_size, mode,
                                            &sorted_capacity, &expert_capacity, &error),
                   &error, "align_capacity");
    sorted_capacity += extra;
    expert_capacity += extra;
    struct mirror ids, map, sorted, experts, post_pad, counts;
    mirror_init(&ids, (size_t)num_routes * (ids_dtype == MOE_IDS_INT64 ? 8 : 4), 0);
    mirror_init(&map, (size_t)problem->num_experts_global * 4, 0);
    mirror_init(&sorted, (size_t)sorted_capacity * 4, 0);
    mirror_init(&experts, (size_t)expert_capacity * 4, 0);
    mirror_init(&post_pad, 4, 0);
    mirror_init(&counts, (size_t)problem->num_experts * 4, 0);
    fill_ids(on_host(&ids), ids_dtype, num_routes, problem->num_experts_global, pattern);
    fill_map(on_host(&map), problem);
    struct mirror *all[] = {&ids, &map, &sorted, &experts, &post_pad, &counts};
    for (size_t i = 0; i < 6; i++) {
        mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct mirror *) = is_cuda ? on_device : on_host;
        struct moe_align_args args;
        MOE_INIT_CALL(args);
        set_call(&test, is_cuda, &args.call);
        args.topk_ids = at(&ids);
        args.ids_dtype = ids_dtype;
        args.block_size = block_size;
        set_filter(&args.filter, problem, filter, at(&map));
        args.filter.mode = mode;
        args.expert_counts = at(&counts);
        if (!counts_only) {
            args.sorted_ids = at(&sorted);
            args.sorted_capacity = sorted_capacity;
            args.expert_ids = at(&experts);
            args.expert_capacity = expert_capacity;
            args.num_tokens_post_pad = at(&post_pad);
        }
        gpu_host_check(host.api->align_block_size(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "align");
    }
    gpu_synchronize(host.stream);
    snprintf(test.text, sizeof(test.text),
             "align T %lld E %d of %d k %d block %d mode %d ids %d pattern %lld filter %lld",
             (long long)test.num_tokens, problem->num_experts, problem->num_experts_global,
             problem->top_k, block_size, mode, ids_dtype, (long long)pattern, (long long)filter);
    mirror_compare(&sorted, "sorted_ids", test.text);
    mirror_compare(&experts, "expert_ids", test.text);
    mirror_compare(&post_pad, "num_tokens_post_pad", test.text);
    mirror_compare(&counts, "expert_counts", test.text);
    for (size_t i = 0; i < 6; i++) {
        mirror_finish(all[i]);
    }
    case_finish(&test);
}

static void check_ep_preprocess(void)
{
    struct test_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_routes(&test);
    case_init(&test, MOE_OP_EP_PREPROCESS);
    const struct moe_problem *problem = &test.problem;
    const int64_t num_routes = test.num_tokens * problem->top_k;
    const int32_t ids_dtype = (int32_t)draw(2), alignment = (int32_t)PICK(1, 4, 128);
    const int64_t pattern = draw(5), filter = draw(3);
    const int64_t capacity =
        num_routes + (int64_t)problem->num_experts * (alignment - 1) + PICK(0, 9);
    const int wants_all = draw(2) == 0;
    struct mirror ids, map, indptr, src2dst, dst2src, reorder, m_indices;
    mirror_init(&ids, (size_t)num_routes * (ids_dtype == MOE_IDS_INT64 ? 8 : 4), 0);
    mirror_init(&map, (size_t)problem->num_experts_global * 4, 0);
    mirror_init(&indptr, ((size_t)problem->num_experts + 1) * 8, 0);
    mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    mirror_init(&dst2src, (size_t)capacity * 4, 0);
    mirror_init(&reorder, (size_t)num_routes * 4, 0);
    mirror_init(&m_indices, (size_t)capacity * 4, 0);
    fill_ids(on_host(&ids), ids_dtype, num_routes, problem->num_experts_global, pattern);
    fill_map(on_host(&map), problem);
    struct mirror *all[] = {&ids, &map, &indptr, &src2dst, &dst2src, &reorder, &m_indices};
    for (size_t i = 0; i < 7; i++) {
        mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct mirror *) = is_cuda ? on_device : on_host;
        struct moe_ep_preprocess_args args;
        MOE_INIT_CALL(args);
        set_call(&test, is_cuda, &args.call);
        args.topk_ids = at(&ids);
        args.ids_dtype = ids_dtype;
        args.segment_alignment = alignment;
        set_filter(&args.filter, problem, filter, at(&map));
        args.seg_indptr = at(&indptr);
        args.src2dst = at(&src2dst);
        if (wants_all) {
            args.dst2src = at(&dst2src);
            args.reorder_ids = at(&reorder);
            args.m_indices = at(&m_indices);
            args.row_capacity = capacity;
        }
        gpu_host_check(host.api->ep_preprocess(is_cuda ? test.cuda : test.cpu, &args, &error),
                       &error, "ep_preprocess");
    }
    gpu_synchronize(host.stream);
    snprintf(test.text, sizeof(test.text),
             "ep_preprocess T %lld E %d of %d k %d alignment %d ids %d pattern %lld filter %lld",
             (long long)test.num_tokens, problem->num_experts, problem->num_experts_global,
             problem->top_k, alignment, ids_dtype, (long long)pattern, (long long)filter);
    mirror_compare(&indptr, "seg_indptr", test.text);
    mirror_compare(&src2dst, "src2dst", test.text);
    mirror_compare(&dst2src, "dst2src", test.text);
    mirror_compare(&reorder, "reorder_ids", test.text);
    mirror_compare(&m_indices, "m_indices", test.text);
    for (size_t i = 0; i < 7; i++) {
        mirror_finish(all[i]);
    }
    case_finish(&test);
}

static void draw_rows(struct test_case *test)
{
    draw_routes(test);
    test->num_tokens = PICK(0, 1, 2, 17, 64, 500);
    test->problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    test->problem.hidden = (int32_t)PICK(8, 33, 72, 100, 104, 2048, 2880, 7168);
    test->problem.tokens.dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16);
    test->problem.output_dtype = test->problem.tokens.dtype;
}

/* Destinations: a permutation of the routes with holes and values that mean no row. */
static void fill_destinations(int32_t *out, int64_t num_routes)
{
    for (int64_t i = 0; i < num_routes; i++) {
        out[i] = (int32_t)i;
    }
    for (int64_t i = num_routes - 1; i > 0; i--) {
        int64_t j = draw(i + 1);
        int32_t swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
    for (int64_t i = 0; i < num_routes; i++) {
        if (draw(9) == 0) {
            out[i] = (int32_t)PICK(-1, -7, INT32_MIN);
        }
    }
}

static void check_pre_reorder(void)
{
    struct test_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_rows(&test);
    case_init(&test, MOE_OP_PRE_REORDER);
    const struct moe_problem *problem = &test.problem;
    const int32_t dtype = problem->tokens.dtype;
    const size_t element = dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t num_routes = test.num_tokens * problem->top_k;
    const int64_t token_stride = problem->hidden + PICK(0, 0, 8, 3),
                  row_stride = problem->hidden + PICK(0, 0, 8, 5);
    struct mirror tokens, src2dst, rows;
    mirror_init(&tokens, (size_t)(test.num_tokens * token_stride) * element,
                (size_t)PICK(0, 0, 1, 2) * element);
    mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    mirror_init(&rows, (size_t)(num_routes * row_stride) * element,
                (size_t)PICK(0, 0, 1, 8) * element);
    fill_elements(on_host(&tokens), dtype, test.num_tokens * token_stride);
    fill_destinations(on_host(&src2dst), num_routes);
    mirror_send(&tokens);
    mirror_send(&src2dst);
    mirror_send(&rows);
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct mirror *) = is_cuda ? on_device : on_host;
        struct moe_pre_reorder_args args;
        MOE_INIT_CALL(args);
        set_call(&test, is_cuda, &args.call);
        args.tokens = at(&tokens);
        args.token_stride = token_stride;
        args.src2dst = at(&src2dst);
        args.rows = at(&rows);
        args.row_stride = row_stride;
        args.num_rows = num_routes;
        gpu_host_check(host.api->pre_reorder(is_cuda ? test.cuda : test.cpu, &args, &error), &error,
                       "pre_reorder");
    }
    gpu_synchronize(host.stream);
    snprintf(test.text, sizeof(test.text),
             "pre_reorder T %lld k %d H %d dtype %d strides %lld %lld", (long long)test.num_tokens,
             problem->top_k, problem->hidden, dtype, (long long)token_stride,
             (long long)row_stride);
    mirror_compare(&rows, "rows", test.text);
    mirror_finish(&tokens);
    mirror_finish(&src2dst);
    mirror_finish(&rows);
    case_finish(&test);
}

static void check_post_reorder(int is_sum)
{
    struct test_case test;
    struct moe_error error;
    MOE_INIT(error);
    draw_rows(&test);
    test.problem.scaling_on = draw(2) ? MOE_SCALING_OUTPUT : MOE_SCALING_NONE;
    test.problem.routed_scaling = test.problem.scaling_on == MOE_SCALING_OUTPUT ? 2.5f : 0.0f;
    case_init(&test, is_sum ? MOE_OP_SUM_REDUCE : MOE_OP_POST_REORDER);
    const struct moe_problem *problem = &test.problem;
    const int32_t dtype = problem->output_dtype;
    const size_t element = dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t num_routes = test.num_tokens * problem->top_k, hidden = problem->hidden;
    const int64_t output_stride = hidden + PICK(0, 0, 8, 3);
    const int64_t token_stride = problem->top_k * hidden + PICK(0, 0, 8, 5);
    const int has_weights = draw(4) != 0, has_shared = draw(2) == 0, has_factor = draw(2) == 0,
              has_residual = draw(2) == 0;
    struct mirror rows, src2dst, weights, shared, factor, residual, output;
    mirror_init(&rows,
                (size_t)(is_sum ? test.num_tokens * token_stride : num_routes * hidden) * element,
                (size_t)PICK(0, 0, 1) * element);
    mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    mirror_init(&weights, (size_t)num_routes * 4, 0);
    mirror_init(&shared, (size_t)(test.num_tokens * hidden) * element, 0);
    mirror_init(&factor, (size_t)test.num_tokens * 4, 0);
    mirror_init(&residual, (size_t)(test.num_tokens * hidden) * element, 0);
    mirror_init(&output, (size_t)(test.num_tokens * output_stride) * element,
                (size_t)PICK(0, 0, 3) * element);
    fill_elements(on_host(&rows), dtype, (int64_t)(rows.bytes / element));
    fill_elements(on_host(&weights), MOE_DTYPE_FP32, num_routes);
    fill_elements(on_host(&shared), dtype, test.num_tokens * hidden);
    fill_elements(on_host(&factor), MOE_DTYPE_FP32, test.num_tokens);
    fill_elements(on_host(&residual), dtype, test.num_tokens * hidden);
    fill_destinations(on_host(&src2dst), num_routes);
    struct mirror *all[] = {&rows, &src2dst, &weights, &shared, &factor, &residual, &output};
    for (size_t i = 0; i < 7; i++) {
        mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct mirror *) = is_cuda ? on_device : on_host;
        const struct moe_plan *plan = is_cuda ? test.cuda : test.cpu;
        if (is_sum) {
            struct moe_sum_reduce_args args;
            MOE_INIT_CALL(args);
            set_call(&test, is_cuda, &args.call);
            args.input = at(&rows);
            args.token_stride = token_stride;
            args.output = at(&output);
            args.output_stride = output_stride;
            gpu_host_check(host.api->sum_reduce(plan, &args, &error), &error, "sum_reduce");
            continue;
        }
        struct moe_post_reorder_args args;
        MOE_INIT_CALL(args);
        set_call(&test, is_cuda, &args.call);
        args.rows = at(&rows);
        args.num_rows = num_routes;
        args.src2dst = at(&src2dst);
        args.topk_weights = has_weights ? at(&weights) : NULL;
        args.shared = has_shared ? at(&shared) : NULL;
        args.shared_factor = has_shared && has_factor ? at(&factor) : NULL;
        args.residual = has_residual ? at(&residual) : NULL;
        args.output = at(&output);
        args.output_stride = output_stride;
        gpu_host_check(host.api->post_reorder(plan, &args, &error), &error, "post_reorder");
    }
    gpu_synchronize(host.stream);
    snprintf(test.text, sizeof(test.text),
             "%s T %lld k %d H %lld dtype %d weights %d shared %d factor %d residual %d",
             is_sum ? "sum_reduce" : "post_reorder", (long long)test.num_tokens, problem->top_k,
             (long long)hidden, dtype, has_weights, has_shared, has_factor, has_residual);
    mirror_compare(&output, "output", test.text);
    for (size_t i = 0; i < 7; i++) {
        mirror_finish(all[i]);
    }
    case_finish(&test);
}

int main(int argc, char **argv)
{
    static const char *const op_names[MOE_NUM_OPS] = {
#define NAME(name, value, text) [value] = text,
        MOE_OP_LIST(NAME)
#undef NAME
    };
    const int64_t num_cases = argc > 1 ? atoll(argv[1]) : 150;
    seed = argc > 2 ? (uint64_t)atoll(argv[2]) : 20261123;
    gpu_host_init(&host, argv[0]);
    struct moe_tile_info tile;
    MOE_INIT(tile);
    for (int32_t i = 0; host.api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if (tile.backend != MOE_BACKEND_CUDA || tile.min_sm > host.device.sm) {
            continue;
        }
        const int failed_before = num_failed, checked_before = num_checked;
        gpu_force_tile(&host, &tile, op_names[tile.op]);
        for (int64_t c = 0; c < num_cases; c++) {
            switch (tile.op) {
            case MOE_OP_ALIGN_BLOCK_SIZE:
                check_align();
                break;
            case MOE_OP_EP_PREPROCESS:
                check_ep_preprocess();
                break;
            case MOE_OP_PRE_REORDER:
                check_pre_reorder();
                break;
            case MOE_OP_POST_REORDER:
                check_post_reorder(0);
                break;
            case MOE_OP_SUM_REDUCE:
                check_post_reorder(1);
                break;
            default:
                printf("FAILED %s has no check\n", op_names[tile.op]);
                num_failed++;
                break;
            }
        }
        printf("%-18s %-28s %5d comparisons, %d failed\n", op_names[tile.op], tile.name,
               num_checked - checked_before, num_failed - failed_before);
        fflush(stdout);
    }
    gpu_host_finish(&host);
    printf("%d passed, %d failed\n", num_checked - num_failed, num_failed);
    return num_failed > 0 ? 1 : 0;
}
