/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large sizes against the naive float64 kernels of gpu_reference.cu: T 4096 and 65536, and byte
 * offsets beyond 2^31. Tokens, rows and logits are drawn on the device. The kernels that check are
 * checked themselves: at a small size their float64 values are those of loops on the host, and at
 * every size they notice one word that was changed.
 *
 *   gpu_large [operation...]
 */
#include "gpu_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NUM_CTAS = 132 * 8, NUM_THREADS = 256, FLIP = 0x40404040 };

FILE *bench_json; /* none here */
static void *reference_module;
static unsigned long long *num_wrong; /* on the device */
static int num_failed, num_checked;

void bench_json_begin(void)
{
}

/* What a check looks at, and the word that is changed to see whether it notices. */
struct check {
    struct bench *bench;
    const struct bench_set *set;
    double *reference; /* on the device; NULL: not wanted */
    void *output;
    size_t output_bytes;
};

static void run_kernel(const char *name, void **args)
{
    gpu_launch(bench_host.stream, gpu_module_function(reference_module, name), NUM_CTAS,
               NUM_THREADS, args);
}

#define RUN(name, ...) run_kernel(name, (void *[]){__VA_ARGS__})

static void *alloc_zeros(size_t bytes)
{
    void *memory = gpu_alloc(bytes);
    gpu_poison(memory, 0, bytes);
    return memory;
}

static void *count_routes(const struct check *check, void *ids)
{
    int64_t num_routes = check->bench->num_tokens * check->bench->top_k;
    void *counts = alloc_zeros((size_t)check->bench->num_experts * 4);
    RUN("count_routes", &ids, &num_routes, &counts);
    return counts;
}

static void check_sorted(struct check *check, void *ids)
{
    const struct bench_set *set = check->set;
    int64_t num_routes = check->bench->num_tokens * check->bench->top_k;
    int64_t num_experts = check->bench->num_experts, block = BENCH_ALIGN_BLOCK;
    int64_t sorted_capacity = set->sorted_capacity, expert_capacity = set->expert_capacity;
    void *sorted = set->sorted, *experts = set->experts, *post_pad = set->post_pad;
    void *counts = count_routes(check, ids), *seen = alloc_zeros((size_t)num_routes * 4);
    RUN("check_align", &ids, &counts, &sorted, &experts, &post_pad, &num_routes, &num_experts,
        &block, &sorted_capacity, &expert_capacity, &seen, &num_wrong);
    gpu_synchronize(bench_host.stream);
    gpu_free(counts);
    gpu_free(seen);
    check->output = sorted;
    check->output_bytes = (size_t)num_routes * 4;
}

static void check_align(struct check *check)
{
    check_sorted(check, check->set->ids);
}

static void check_ep(struct check *check)
{
    const struct bench_set *set = check->set;
    int64_t num_routes = check->bench->num_tokens * check->bench->top_k;
    int64_t num_experts = check->bench->num_experts;
    void *ids = set->ids, *indptr = set->indptr, *src2dst = set->src2dst, *dst2src = set->dst2src;
    void *counts = count_routes(check, ids);
    RUN("check_ep_preprocess", &ids, &counts, &indptr, &src2dst, &dst2src, &num_routes,
        &num_experts, &num_wrong);
    gpu_synchronize(bench_host.stream);
    gpu_free(counts);
    check->output = src2dst;
    check->output_bytes = (size_t)num_routes * 4;
}

static void check_gating(struct check *check)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, top_k = check->bench->top_k;
    int64_t num_experts = check->bench->num_experts;
    void *logits = set->logits, *ids = set->gated_ids, *weights = set->gated_weights;
    RUN("check_gating", &logits, &ids, &weights, &num_tokens, &top_k, &num_experts,
        &check->reference, &num_wrong);
    check->output = weights;
    check->output_bytes = (size_t)(num_tokens * top_k) * 4;
}

/* Gating, and the sort of what it chose. */
static void check_route(struct check *check)
{
    check_gating(check);
    check_sorted(check, check->set->gated_ids);
}

static void check_pre_reorder(struct check *check)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, top_k = check->bench->top_k;
    int64_t hidden = check->bench->hidden;
    void *tokens = set->tokens, *src2dst = set->src2dst, *rows = set->rows;
    RUN("check_pre_reorder", &tokens, &src2dst, &rows, &num_tokens, &top_k, &hidden, &num_wrong);
    check->output = rows;
    check->output_bytes = (size_t)(num_tokens * top_k * hidden) * 2;
}

static void check_fp8(struct check *check, void *src2dst, int64_t top_k)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, hidden = check->bench->hidden;
    int64_t group = BENCH_QUANTIZE_GROUP;
    void *tokens = set->tokens, *rows = set->quantized, *scales = set->scales;
    RUN("check_quantized", &tokens, &src2dst, &rows, &scales, &num_tokens, &top_k, &hidden, &group,
        &num_wrong);
    check->output = rows;
    check->output_bytes = (size_t)(num_tokens * top_k * hidden);
}

static void check_pre_reorder_fp8(struct check *check)
{
    check_fp8(check, check->set->src2dst, check->bench->top_k);
}

static void check_quantize(struct check *check)
{
    check_fp8(check, NULL, 1);
}

static void check_activation(struct check *check)
{
    int64_t num_rows = check->bench->num_tokens * check->bench->top_k;
    int64_t inter = check->bench->inter;
    void *input = check->set->gate_up, *output = check->set->quantized;
    RUN("check_activation", &input, &output, &num_rows, &inter, &check->reference, &num_wrong);
    check->output = output;
    check->output_bytes = (size_t)(num_rows * inter) * 2;
}

static void check_combine(struct check *check, void *src2dst, void *weights)
{
    const struct bench_set *set = check->set;
    int64_t num_tokens = check->bench->num_tokens, top_k = check->bench->top_k;
    int64_t hidden = check->bench->hidden;
    void *rows = set->rows, *output = set->output;
    RUN("check_combine", &rows, &src2dst, &weights, &output, &num_tokens, &top_k, &hidden,
        &check->reference, &num_wrong);
    check->output = output;
    check->output_bytes = (size_t)(num_tokens * hidden) * 2;
}

static void check_post_reorder(struct check *check)
{
    check_combine(check, check->set->src2dst, check->set->weights);
}

static void check_sum_reduce(struct check *check)
{
    check_combine(check, NULL, NULL);
}

static const struct {
    const char *name; /* in bench_ops */
    void (*check)(struct check *check);
} checks[] = {
    {"gating", check_gating},
    {"align", check_align},
    {"ep_preprocess", check_ep},
    {"route", check_route},
    {"pre_reorder", check_pre_reorder},
    {"pre_reorder_fp8", check_pre_reorder_fp8},
    {"quantize", check_quantize},
    {"activation", check_activation},
    {"post_reorder", check_post_reorder},
    {"sum_reduce", check_sum_reduce},
};
enum { NUM_CHECKS = sizeof(checks) / sizeof(checks[0]) };

/* Runs the check on what is there now. */
static unsigned long long count_wrong(int check_idx, struct check *check)
{
    unsigned long long count = 0;
    gpu_poison(num_wrong, 0, sizeof(count));
    checks[check_idx].check(check);
    gpu_synchronize(bench_host.stream);
    gpu_download(&count, num_wrong, sizeof(count));
    return count;
}

static void fail(const struct bench *bench, const char *what, unsigned long long count)
{
    printf("FAILED %s E %d k %d H %d I %d T %lld: %s (%llu)\n", bench->op->name, bench->num_experts,
           bench->top_k, bench->hidden, bench->inter, (long long)bench->num_tokens, what, count);
    num_failed++;
}

/* Changes a word in the last eighth of the output: behind 2^31 bytes where it has so many. */
static void flip_word(const struct check *check)
{
    uint32_t word = 0;
    char *at = (char *)check->output + check->output_bytes / 16 * 15 / 4 * 4;
    gpu_download(&word, at, sizeof(word));
    word ^= FLIP;
    gpu_upload(at, &word, sizeof(word));
}

/* ---------------------------------------------------------------- loops on the host */

static double load_bf16(const void *elements, int64_t idx)
{
    uint16_t half;
    uint32_t word;
    float value;
    memcpy(&half, (const char *)elements + 2 * idx, sizeof(half));
    word = (uint32_t)half << 16;
    memcpy(&value, &word, sizeof(value));
    return (double)value;
}

static void *fetch(const void *device, size_t bytes)
{
    void *host = malloc(bytes);
    gpu_download(host, device, bytes);
    return host;
}

/* The float64 value of one output by a loop of its own; NAN: this operation has none. */
static double compute(const char *name, const struct bench *bench, void *const fetched[4],
                      int64_t idx)
{
    const int64_t hidden = bench->hidden, inter = bench->inter, top_k = bench->top_k;
    if (strcmp(name, "activation") == 0) {
        const int64_t row = idx / inter, column = idx % inter;
        const double gate = load_bf16(fetched[0], row * 2 * inter + column);
        return load_bf16(fetched[0], row * 2 * inter + inter + column) * gate / (1.0 + exp(-gate));
    }
    if (strcmp(name, "post_reorder") == 0) {
        double sum = 0.0;
        for (int64_t j = 0; j < top_k; j++) {
            const int64_t route = idx / hidden * top_k + j;
            sum +=
                (double)((const float *)fetched[2])[route] *
                load_bf16(fetched[0], ((const int32_t *)fetched[1])[route] * hidden + idx % hidden);
        }
        return sum;
    }
    if (strcmp(name, "gating") == 0) {
        const float *logits = (const float *)fetched[0] + idx / top_k * bench->num_experts;
        const int32_t *ids = (const int32_t *)fetched[1] + idx / top_k * top_k;
        double sum = 0.0;
        for (int64_t j = 0; j < top_k; j++) {
            sum += exp((double)logits[ids[j]] - (double)logits[ids[idx % top_k]]);
        }
        return 1.0 / sum;
    }
    return (double)NAN;
}

/* Compares the reference kernel's values with those of the loops above. */
static void check_reference(int check_idx, struct check *check)
{
    const struct bench *bench = check->bench;
    const struct bench_set *set = check->set;
    const char *name = checks[check_idx].name;
    const int64_t num_routes = bench->num_tokens * bench->top_k;
    const int is_gating = strcmp(name, "gating") == 0, is_act = strcmp(name, "activation") == 0;
    if (!is_gating && !is_act && strcmp(name, "post_reorder") != 0) {
        return;
    }
    const int64_t count = is_gating ? num_routes
                          : is_act  ? num_routes * bench->inter
                                    : bench->num_tokens * bench->hidden;
    check->reference = gpu_alloc((size_t)count * sizeof(double));
    count_wrong(check_idx, check);
    double *got = fetch(check->reference, (size_t)count * sizeof(double));
    void *fetched[4] = {
        is_gating ? fetch(set->logits, (size_t)(bench->num_tokens * bench->num_experts) * 4)
        : is_act  ? fetch(set->gate_up, (size_t)(num_routes * 2 * bench->inter) * 2)
                  : fetch(set->rows, (size_t)(num_routes * bench->hidden) * 2),
        fetch(is_gating ? set->gated_ids : set->src2dst, (size_t)num_routes * 4),
        is_gating || is_act ? NULL : fetch(set->weights, (size_t)num_routes * 4), NULL};
    unsigned long long num_different = 0;
    for (int64_t i = 0; i < count; i++) {
        const double expected = compute(name, bench, fetched, i);
        num_different += !(fabs(got[i] - expected) <= 1e-11 * fabs(expected) + 1e-12);
    }
    num_checked++;
    if (num_different > 0) {
        fail(bench, "the reference kernel differs from loops on the host", num_different);
    }
    for (int i = 0; i < 4; i++) {
        free(fetched[i]);
    }
    free(got);
    gpu_free(check->reference);
    check->reference = NULL;
}

/* ---------------------------------------------------------------- cases */

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
    struct check check = {.bench = &bench, .set = &bench.sets[0]};
    if (!bench_try(&bench)) {
        bench_free_sets(&bench);
        bench_drop_plan(&bench);
        return;
    }
    const unsigned long long count = count_wrong(check_idx, &check);
    num_checked++;
    if (count > 0) {
        fail(&bench, "outputs are wrong", count);
    }
    if (is_small) {
        check_reference(check_idx, &check);
    }
    flip_word(&check);
    num_checked++;
    if (count_wrong(check_idx, &check) == 0) {
        fail(&bench, "the check does not notice a changed word", 0);
    }
    printf("%-16s E %3d k %2d H %5d I %5d T %6lld  %.2f GB of output, %llu wrong\n", bench.op->name,
           bench.num_experts, bench.top_k, bench.hidden, bench.inter, (long long)bench.num_tokens,
           1e-9 * (double)check.output_bytes, count);
    fflush(stdout);
    bench_free_sets(&bench);
    bench_drop_plan(&bench);
}

static int is_wanted(const char *name, int argc, char **argv)
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
    for (int i = 1; i < argc; i++) {
        if (find_op(argv[i]) == NULL) {
            fprintf(stderr, "gpu_large: unknown operation \"%s\"\n", argv[i]);
            return 2;
        }
    }
    gpu_host_init(&bench_host, argv[0]);
    gpu_limits_open(argv[0]);
    reference_module = gpu_module_open(argv[0], "gpu_reference.fatbin");
    num_wrong = gpu_alloc(sizeof(*num_wrong));
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int c = 0; c < NUM_CHECKS; c++) {
            if (is_wanted(checks[c].name, argc, argv)) {
                check_one(c, &shapes[s], s == 0);
            }
        }
    }
    gpu_free(num_wrong);
    gpu_host_finish(&bench_host);
    printf("%d passed, %d failed\n", num_checked - num_failed, num_failed);
    return num_failed > 0 ? 1 : 0;
}
