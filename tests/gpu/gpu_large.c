/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large sizes against the naive float64 kernels of gpu_reference.cu: T 4096 and 65536, and byte
 * offsets beyond 2^31. Tokens, rows and logits are drawn on the device. The kernels that check are
 * checked themselves: at a small size they are held against loops on the host, and at every size
 * they notice one word that was changed.
 *
 *   gpu_large [operation or part...]      parts: route_segments, offsets
 */
#include "gpu_large.h"

#include "gpu_limits.h"

#include <stdlib.h>
#include <string.h>

enum { NUM_CTAS = 132 * 8, NUM_THREADS = 256, FLIP = 0x40404040 };

FILE *bench_json; /* none here */
static void *reference_module;
unsigned long long *large_num_wrong;
static int num_failed, num_checked;

void bench_json_begin(void)
{
}

void large_run(const char *name, void **args)
{
    gpu_launch(bench_host.stream, gpu_module_function(reference_module, name), NUM_CTAS,
               NUM_THREADS, args);
}

void *large_zeros(size_t bytes)
{
    void *memory = gpu_alloc(bytes);
    gpu_poison(memory, 0, bytes);
    return memory;
}

void large_expect(int is_right, const char *name, const char *text, const char *what,
                  unsigned long long count)
{
    num_checked++;
    if (!is_right) {
        printf("FAILED %s %s: %s (%llu)\n", name, text, what, count);
        num_failed++;
    }
}

static void *count_routes(const struct large_check *check, void *ids)
{
    int64_t num_routes = check->bench->num_tokens * check->bench->top_k;
    void *counts = large_zeros((size_t)check->bench->num_experts * 4), *local = NULL;
    LARGE_RUN("count_routes", &ids, &local, &num_routes, &counts);
    return counts;
}

static void check_sorted(struct large_check *check, void *ids)
{
    const struct bench_set *set = check->set;
    int64_t num_routes = check->bench->num_tokens * check->bench->top_k;
    int64_t num_experts = check->bench->num_experts, block = BENCH_ALIGN_BLOCK;
    int64_t sorted_capacity = set->sorted_capacity, expert_capacity = set->expert_capacity;
    void *sorted = set->sorted, *experts = set->experts, *post_pad = set->post_pad;
    void *counts = count_routes(check, ids), *seen = large_zeros((size_t)num_routes * 4);
    LARGE_RUN("check_align", &ids, &counts, &sorted, &experts, &post_pad, &num_routes, &num_experts,
              &block, &sorted_capacity, &expert_capacity, &seen, &large_num_wrong);
    LARGE_RUN("check_seen", &seen, &num_routes, &large_num_wrong);
    gpu_synchronize(bench_host.stream);
    gpu_free(counts);
    gpu_free(seen);
    check->output = sorted;
    check->output_bytes = (size_t)num_routes * 4;
}

static void check_align(struct large_check *check)
{
    check_sorted(check, check->set->ids);
}

static void check_ep(struct large_check *check)
{
    const struct bench_set *set = check->set;
    int64_t num_routes = check->bench->num_tokens * check->bench->top_k;
    int64_t num_experts = check->bench->num_experts, alignment = 1, max_masked_rows = 0;
    void *ids = set->ids, *indptr = set->indptr, *src2dst = set->src2dst, *dst2src = set->dst2src;
    void *reorder = set->reorder, *unwanted = NULL, *counts = count_routes(check, ids);
    LARGE_RUN("check_segments", &ids, &unwanted, &counts, &indptr, &src2dst, &dst2src, &reorder,
              &unwanted, &unwanted, &num_routes, &num_experts, &alignment, &max_masked_rows,
              &num_routes, &large_num_wrong);
    gpu_synchronize(bench_host.stream);
    gpu_free(counts);
    check->output = src2dst;
    check->output_bytes = (size_t)num_routes * 4;
}

static void check_gating(struct large_check *check)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, top_k = check->bench->top_k;
    int64_t num_experts = check->bench->num_experts;
    void *logits = set->logits, *ids = set->gated_ids, *weights = set->gated_weights;
    int32_t kind = GPU_FILL_FP32;
    LARGE_RUN("check_gating", &logits, &kind, &ids, &weights, &num_tokens, &top_k, &num_experts,
              &check->reference, &large_num_wrong);
    check->output = weights;
    check->output_bytes = (size_t)(num_tokens * top_k) * 4;
}

/* Gating, and the sort of what it chose. */
static void check_route(struct large_check *check)
{
    check_gating(check);
    if (large_end() == 0) { /* ids are fit to be followed */
        check_sorted(check, check->set->gated_ids);
    }
}

static void check_pre_reorder(struct large_check *check)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, top_k = check->bench->top_k;
    int64_t hidden = check->bench->hidden;
    void *tokens = set->tokens, *src2dst = set->src2dst, *rows = set->rows;
    LARGE_RUN("check_pre_reorder", &tokens, &src2dst, &rows, &num_tokens, &top_k, &hidden,
              &large_num_wrong);
    check->output = rows;
    check->output_bytes = (size_t)(num_tokens * top_k * hidden) * 2;
}

static void check_fp8(struct large_check *check, void *src2dst, int64_t num_tokens, int64_t top_k,
                      int32_t is_activated)
{
    const struct bench_set *set = check->set;
    int64_t width = is_activated ? check->bench->inter : check->bench->hidden;
    int64_t group = BENCH_QUANTIZE_GROUP;
    void *input = is_activated ? set->gate_up : set->tokens;
    void *rows = set->quantized, *scales = set->scales;
    LARGE_RUN("check_quantized", &input, &src2dst, &rows, &scales, &num_tokens, &top_k, &width,
              &group, &is_activated, &large_num_wrong);
    check->output = rows;
    check->output_bytes = (size_t)(num_tokens * top_k * width);
}

static void check_pre_reorder_fp8(struct large_check *check)
{
    check_fp8(check, check->set->src2dst, check->bench->num_tokens, check->bench->top_k, 0);
}

static void check_quantize(struct large_check *check)
{
    check_fp8(check, NULL, check->bench->num_tokens, 1, 0);
}

static void check_activation_fp8(struct large_check *check)
{
    check_fp8(check, NULL, check->bench->num_tokens * check->bench->top_k, 1, 1);
}

static void check_activation(struct large_check *check)
{
    int64_t num_rows = check->bench->num_tokens * check->bench->top_k;
    int64_t inter = check->bench->inter;
    void *input = check->set->gate_up, *output = check->set->quantized;
    LARGE_RUN("check_activation", &input, &output, &num_rows, &inter, &check->reference,
              &large_num_wrong);
    check->output = output;
    check->output_bytes = (size_t)(num_rows * inter) * 2;
}

static void check_combine(struct large_check *check, void *src2dst, void *weights)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, top_k = check->bench->top_k;
    int64_t hidden = check->bench->hidden;
    void *rows = set->rows, *output = set->output;
    int32_t kind = GPU_FILL_BF16;
    LARGE_RUN("check_combine", &rows, &kind, &src2dst, &weights, &output, &num_tokens, &top_k,
              &hidden, &check->reference, &large_num_wrong);
    check->output = output;
    check->output_bytes = (size_t)(num_tokens * hidden) * 2;
}

static void check_post_reorder(struct large_check *check)
{
    check_combine(check, check->set->src2dst, check->set->weights);
}

static void check_sum_reduce(struct large_check *check)
{
    check_combine(check, NULL, NULL);
}

static const struct {
    const char *name; /* in bench_ops */
    void (*check)(struct large_check *check);
} checks[] = {
    {"gating", check_gating},
    {"align", check_align},
    {"ep_preprocess", check_ep},
    {"route", check_route},
    {"pre_reorder", check_pre_reorder},
    {"pre_reorder_fp8", check_pre_reorder_fp8},
    {"quantize", check_quantize},
    {"activation", check_activation},
    {"activation_fp8", check_activation_fp8},
    {"post_reorder", check_post_reorder},
    {"sum_reduce", check_sum_reduce},
};
enum { NUM_CHECKS = sizeof(checks) / sizeof(checks[0]) };

void large_begin(void)
{
    gpu_poison(large_num_wrong, 0, sizeof(*large_num_wrong));
}

unsigned long long large_end(void)
{
    unsigned long long count = 0;
    gpu_synchronize(bench_host.stream);
    gpu_download(&count, large_num_wrong, sizeof(count));
    return count;
}

/* Runs the check on what is there now. */
static unsigned long long count_wrong(int check_idx, struct large_check *check)
{
    large_begin();
    checks[check_idx].check(check);
    return large_end();
}

static void expect(int is_right, const struct bench *bench, const char *what,
                   unsigned long long count)
{
    char text[160];
    snprintf(text, sizeof(text), "E %d k %d H %d I %d T %lld", bench->num_experts, bench->top_k,
             bench->hidden, bench->inter, (long long)bench->num_tokens);
    large_expect(is_right, bench->op->name, text, what, count);
}

void large_flip(void *output, size_t bytes)
{
    uint32_t word = 0;
    char *at = (char *)output + bytes / 16 * 15 / 4 * 4;
    gpu_download(&word, at, sizeof(word));
    word ^= FLIP;
    gpu_upload(at, &word, sizeof(word));
}

/* ---------------------------------------------------------------- cases */

/* The check's kernels against loops on the host: their values, and what they say of each output
 * with each of its words changed. */
static void hold(int check_idx, struct large_check *check)
{
    const struct bench *bench = check->bench;
    struct large_output outputs[LARGE_MAX_OUTPUTS];
    const int64_t num_values = large_num_values(check);
    unsigned long long num_different = 0;
    if (num_values > 0) {
        check->reference = gpu_alloc((size_t)num_values * sizeof(double));
        count_wrong(check_idx, check);
        num_different = large_compare_values(check);
        expect(num_different == 0, bench, "the reference kernel differs from loops on the host",
               num_different);
        gpu_free(check->reference);
        check->reference = NULL;
    }
    const int num_outputs = large_list_outputs(check, outputs);
    expect(large_is_right(check), bench, "outputs are wrong by loops on the host", 0);
    for (int i = 0; i < num_outputs; i++) {
        unsigned long long num_wrong = 0, num_words = outputs[i].bytes / 4;
        num_different = 0;
        for (size_t w = 0; w < num_words; w++) {
            uint32_t word = 0;
            char *at = (char *)outputs[i].device + 4 * w;
            gpu_download(&word, at, sizeof(word));
            const uint32_t changed = word ^ 1u << (7 * w + 3) % 32;
            gpu_upload(at, &changed, sizeof(changed));
            const int is_right = large_is_right(check);
            num_different += is_right != (count_wrong(check_idx, check) == 0);
            num_wrong += !is_right;
            gpu_upload(at, &word, sizeof(word));
        }
        expect(num_different == 0, bench, "kernel and loops disagree on changed words",
               num_different);
        printf("%-16s held against loops on the host: %llu of %llu changed words are wrong\n",
               bench->op->name, num_wrong, num_words);
        expect(num_wrong > 0, bench, "no changed word is wrong", 0);
    }
}

struct shape {
    int32_t num_experts, top_k, hidden, inter;
    int64_t num_tokens;
};

static const struct bench_op *find_op(const char *name)
{
    for (int i = 0; i < bench_num_ops; i++) {
        if (strcmp(bench_ops[i].name, name) == 0) {
            return &bench_ops[i];
        }
    }
    return NULL;
}

static void check_one(int check_idx, const struct shape *shape, int is_small)
{
    static struct bench bench;
    struct moe_problem problem;
    bench = (struct bench){.op = find_op(checks[check_idx].name),
                           .num_experts = shape->num_experts,
                           .top_k = shape->top_k,
                           .hidden = shape->hidden,
                           .inter = shape->inter,
                           .num_tokens = shape->num_tokens,
                           .num_sets = 1,
                           .num_nodes = 1};
    bench_describe(&bench, &problem);
    if (!bench_make_plan(&bench, &problem)) {
        return;
    }
    bench_make_sets(&bench, &problem);
    struct large_check check = {.bench = &bench, .set = &bench.sets[0]};
    if (!bench_try(&bench)) {
        bench_free_sets(&bench);
        bench_drop_plan(&bench);
        return;
    }
    const unsigned long long count = count_wrong(check_idx, &check);
    expect(count == 0, &bench, "outputs are wrong", count);
    if (is_small) {
        hold(check_idx, &check);
    }
    large_flip(check.output, check.output_bytes);
    expect(count_wrong(check_idx, &check) > 0, &bench, "the check does not notice a changed word",
           0);
    printf("%-16s E %3d k %2d H %5d I %5d T %6lld  %.2f GB of output, %llu wrong\n", bench.op->name,
           bench.num_experts, bench.top_k, bench.hidden, bench.inter, (long long)bench.num_tokens,
           1e-9 * (double)check.output_bytes, count);
    fflush(stdout);
    bench_free_sets(&bench);
    bench_drop_plan(&bench);
}

int large_is_wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return 1;
        }
    }
    return argc < 2;
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {8, 2, 136, 72, 5}, /* small: the references themselves */
        {256, 8, 7168, 2048, 4096}, {256, 8, 7168, 2048, 20000}, /* 2.3 GB of rows */
        {128, 8, 2048, 768, 65536},                              /* 2.1 GB of rows */
        {60, 4, 1404, 704, 65536}, /* rows that 16 bytes do not divide */
    };
    /* What the shapes above leave below 2^31 bytes: fp8 rows, activations and what they read,
     * tokens and outputs of one row per token, logits. */
    static const struct {
        const char *name;
        struct shape shape;
    } offsets[] = {
        {"activation", {8, 8, 8, 4096, 70000}},      {"activation_fp8", {8, 8, 8, 4096, 70000}},
        {"quantize", {8, 1, 7168, 8, 310000}},       {"pre_reorder", {8, 2, 7168, 8, 160000}},
        {"pre_reorder_fp8", {8, 8, 7168, 8, 40000}}, {"post_reorder", {8, 2, 7168, 8, 160000}},
        {"sum_reduce", {8, 2, 7168, 8, 160000}},     {"gating", {256, 1, 8, 8, 2200000}},
        {"route", {256, 1, 8, 8, 2200000}},
    };
    for (int i = 1; i < argc; i++) {
        if (find_op(argv[i]) == NULL && strcmp(argv[i], LARGE_SEGMENTS) != 0 &&
            strcmp(argv[i], LARGE_OFFSETS) != 0) {
            fprintf(stderr, "gpu_large: unknown operation \"%s\"\n", argv[i]);
            return 2;
        }
    }
    gpu_host_init(&bench_host, argv[0]);
    gpu_limits_open(argv[0]);
    reference_module = gpu_module_open(argv[0], "gpu_reference.fatbin");
    large_num_wrong = gpu_alloc(sizeof(*large_num_wrong));
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int c = 0; c < NUM_CHECKS; c++) {
            if (large_is_wanted(checks[c].name, argc, argv)) {
                check_one(c, &shapes[s], s == 0);
            }
        }
    }
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        for (int c = 0; c < NUM_CHECKS; c++) {
            if (strcmp(checks[c].name, offsets[i].name) == 0 &&
                large_is_wanted(checks[c].name, argc, argv)) {
                check_one(c, &offsets[i].shape, 0);
            }
        }
    }
    if (large_is_wanted(LARGE_OFFSETS, argc, argv)) {
        large_check_offsets();
    }
    if (large_is_wanted(LARGE_SEGMENTS, argc, argv)) {
        large_check_segments();
    }
    gpu_free(large_num_wrong);
    gpu_host_finish(&bench_host);
    printf("%d passed, %d failed\n", num_checked - num_failed, num_failed);
    return num_failed > 0 ? 1 : 0;
}
