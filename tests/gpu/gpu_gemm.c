/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The grouped GEMM kernels alone, without the plugin: every tile on patterns that show where an
 * element came from, on random problems against a float64 reference, bit equality of all tiles,
 * grids and batches; then times.
 *
 *   gpu_gemm [check] [problem TEXT] [time TOKENS]
 *
 * check: all problems; problem: those whose name contains the text. TOKENS 0: all sizes
 */
#include "gpu_gemm.h"
#include "gpu_gemm_problems.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POISON = 0xcb }; /* a negative number in every type */

/* On the device. */
struct buffers {
    void *input, *weights, *bias, *row_weights, *row_ids, *row_experts, *indptr, *masked, *experts,
        *post_pad, *output, *values, *allowed, *counts, *sums;
    int64_t num_rows, output_bytes, num_columns, output_stride;
    int32_t num_blocks;
};

static int num_checked, num_failed; /* tiles with a problem */

static size_t element_bytes(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? 4 : 2;
}

static void *upload(const void *from, size_t bytes)
{
    void *to = driver_alloc(bytes);
    driver_upload(to, from, bytes);
    return to;
}

/* Routes sorted by expert, laid out in one of the three forms. */
static void make_rows(const struct problem *problem, struct buffers *buffers, uint64_t seed)
{
    const int64_t num_routes = problem->num_tokens * problem->top_k;
    const int32_t num_experts = problem->num_experts;
    int32_t *route_experts = calloc((size_t)num_routes + 1, 4);
    int64_t *counts = calloc((size_t)num_experts + 2, 8);
    for (int64_t route = 0; route < num_routes; route++) {
        int32_t expert = (int32_t)(random_bits(&seed) % (uint64_t)num_experts);
        if ((int32_t)(random_bits(&seed) % 100) < problem->skew) {
            expert = 0;
        }
        route_experts[route] = expert;
        counts[expert]++;
    }
    int64_t most = 1, num_rows = num_routes;
    for (int32_t e = 0; e < num_experts; e++) {
        most = counts[e] > most ? counts[e] : most;
    }
    const int64_t slots = most + 3; /* masked: rows per expert */
    int32_t num_blocks = 0;
    if (problem->form == FORM_MASKED) {
        num_rows = slots * num_experts;
    } else if (problem->form == FORM_BLOCKS) {
        for (int32_t e = 0; e < num_experts; e++) {
            num_blocks += (int32_t)((counts[e] + problem->block_size - 1) / problem->block_size);
        }
        num_blocks++; /* one of no expert */
        num_rows = (int64_t)num_blocks * problem->block_size;
    }
    int32_t *row_ids = calloc((size_t)num_rows + 1, 4);
    int32_t *row_experts = calloc((size_t)num_rows + 1, 4);
    int32_t *block_experts = calloc((size_t)num_blocks + 1, 4);
    int64_t *indptr = calloc((size_t)num_experts + 2, 8);
    int32_t *masked = calloc((size_t)num_experts + 1, 4);
    for (int64_t i = 0; i < num_rows; i++) {
        row_ids[i] = (int32_t)num_routes; /* sentinel */
        row_experts[i] = -2;
    }
    int64_t row = 0;
    int32_t block = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        indptr[e] = row;
        masked[e] = (int32_t)counts[e];
        row = problem->form == FORM_MASKED ? e * slots : row;
        for (int64_t route = 0; route < num_routes; route++) {
            if (route_experts[route] == e) {
                row_ids[row] = (int32_t)route;
                row_experts[row++] = e;
            }
        }
        if (problem->form == FORM_BLOCKS) {
            for (int64_t b = 0; b * problem->block_size < counts[e]; b++) {
                block_experts[block++] = e;
            }
            row = (int64_t)block * problem->block_size;
        }
    }
    indptr[num_experts] = row;
    if (problem->form == FORM_BLOCKS) { /* the last block: two routes that another rank has */
        block_experts[block] = -1;
        for (int64_t i = 0; i < 2 && i < num_routes; i++) {
            for (int64_t j = 0; j < num_rows - problem->block_size; j++) {
                if (row_ids[j] == (int32_t)i) {
                    row_ids[j] = (int32_t)num_routes;
                }
            }
            row_ids[num_rows - problem->block_size + i] = (int32_t)i;
            row_experts[num_rows - problem->block_size + i] = -1;
        }
    }
    const int32_t post_pad = (int32_t)num_rows;
    buffers->num_rows = num_rows;
    buffers->num_blocks = num_blocks;
    buffers->row_ids = upload(row_ids, (size_t)num_rows * 4 + 4);
    buffers->row_experts = upload(row_experts, (size_t)num_rows * 4 + 4);
    buffers->indptr = upload(indptr, (size_t)num_experts * 8 + 8);
    buffers->masked = upload(masked, (size_t)num_experts * 4 + 4);
    buffers->experts = upload(block_experts, (size_t)num_blocks * 4 + 4);
    buffers->post_pad = upload(&post_pad, 4);
    float *row_weights = calloc((size_t)(num_rows + num_routes) + 1, 4);
    for (int64_t i = 0; i < num_rows + num_routes; i++) {
        row_weights[i] = (float)(random_bits(&seed) % 1000) / 500.0f - 0.5f;
    }
    buffers->row_weights = upload(row_weights, (size_t)(num_rows + num_routes) * 4 + 4);
    free(route_experts);
    free(counts);
    free(row_ids);
    free(row_experts);
    free(block_experts);
    free(indptr);
    free(masked);
    free(row_weights);
}

static void fill_pattern(void *to, int64_t count, int32_t pattern, int32_t n, int32_t k, int half)
{
    int32_t is_half = half;
    void *args[] = {&to, &count, &pattern, &n, &k, &is_half};
    driver_launch(driver_function("gemm_fill_pattern"), 132 * 8, 256, args);
    driver_synchronize("gemm_fill_pattern");
}

/* Rows of the input that may be read. */
static int64_t num_inputs(const struct problem *problem, const struct buffers *buffers)
{
    return problem->is_gathered ? problem->num_tokens : buffers->num_rows;
}

static void make_buffers(const struct problem *problem, struct buffers *buffers, uint64_t seed)
{
    const int is_half = problem->input_dtype == MOE_DTYPE_FP16;
    const int64_t weights =
        (int64_t)problem->num_experts * problem->num_matrices * problem->n * problem->k;
    memset(buffers, 0, sizeof(*buffers));
    make_rows(problem, buffers, seed);
    const int64_t inputs = num_inputs(problem, buffers) * problem->k;
    const int64_t biases = (int64_t)problem->num_experts * problem->num_matrices * problem->n;
    buffers->input = driver_alloc((size_t)inputs * 2);
    buffers->weights = driver_alloc((size_t)weights * 2);
    buffers->bias = driver_alloc((size_t)biases * 2);
    fill_random(buffers->bias, biases, 0.5f, seed + 3, is_half);
    if (problem->is_pattern) {
        fill_pattern(buffers->input, inputs, 0, problem->n, problem->k, is_half);
        fill_pattern(buffers->weights, weights, 1, problem->n * problem->num_matrices, problem->k,
                     is_half);
    } else {
        fill_random(buffers->input, inputs, 1.0f, seed + 1, is_half);
        fill_random(buffers->weights, weights, 0.05f, seed + 2, is_half);
    }
    buffers->num_columns =
        (int64_t)problem->n * (problem->has_activation ? 1 : problem->num_matrices);
    buffers->output_stride = buffers->num_columns + (problem->odd_output ? 3 : 8);
    const int64_t output_rows =
        problem->form == FORM_BLOCKS ? problem->num_tokens * problem->top_k : buffers->num_rows;
    const int64_t rows = output_rows > buffers->num_rows ? output_rows : buffers->num_rows;
    buffers->output_bytes =
        rows * buffers->output_stride * (int64_t)element_bytes(problem->output_dtype);
    buffers->output = driver_alloc((size_t)buffers->output_bytes);
    buffers->values = driver_alloc((size_t)(rows * buffers->num_columns) * 8);
    buffers->allowed = driver_alloc((size_t)(rows * buffers->num_columns) * 8);
    driver_poison(buffers->values, 0, (size_t)(rows * buffers->num_columns) * 8);
    driver_poison(buffers->allowed, POISON, (size_t)(rows * buffers->num_columns) * 8); /* < 0 */
    buffers->counts = driver_alloc(4 * 8);
    buffers->sums = driver_alloc(2 * 8);
}

static void free_buffers(struct buffers *buffers)
{
    void *all[] = {buffers->input,   buffers->weights,     buffers->bias,   buffers->row_weights,
                   buffers->row_ids, buffers->row_experts, buffers->indptr, buffers->masked,
                   buffers->experts, buffers->post_pad,    buffers->output, buffers->values,
                   buffers->allowed, buffers->counts,      buffers->sums};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        driver_free(all[i]);
    }
}

/* The kernel's argument but for its maps. */
static void fill_args(const struct problem *problem, const struct buffers *buffers,
                      struct moe_cuda_gemm *args)
{
    struct moe_op_gemm *op = &args->op;
    memset(args, 0, sizeof(*args));
    op->num_segments = problem->form == FORM_BLOCKS ? buffers->num_blocks : problem->num_experts;
    op->seg_indptr = problem->form == FORM_SEGMENTS ? buffers->indptr : NULL;
    op->masked_m = problem->form == FORM_MASKED ? buffers->masked : NULL;
    op->max_masked_rows = buffers->num_rows / problem->num_experts;
    op->expert_ids = problem->form == FORM_BLOCKS ? buffers->experts : NULL;
    op->num_tokens_post_pad = buffers->post_pad;
    op->block_size = problem->block_size;
    op->num_experts = problem->num_experts;
    op->num_rows = buffers->num_rows;
    op->num_row_ids = problem->num_tokens * problem->top_k;
    op->row_ids = problem->is_gathered ? buffers->row_ids : NULL;
    op->row_ids_div = problem->top_k;
    op->scatter = problem->form == FORM_BLOCKS;
    op->row_weights = problem->has_row_weights ? buffers->row_weights : NULL;
    op->input = buffers->input;
    op->input_stride = problem->k;
    op->output = buffers->output;
    op->output_stride = buffers->output_stride;
    op->input_dtype = problem->input_dtype;
    op->output_dtype = problem->output_dtype;
    op->n = problem->n;
    op->k = problem->k;
    op->num_matrices = problem->num_matrices;
    op->has_activation = problem->has_activation;
    op->act.activation = problem->activation;
    op->act.ungated = problem->num_matrices == 1;
    op->act.alpha = 1.702f;
    op->act.limit = problem->activation == MOE_ACTIVATION_SWIGLU_OAI ? 1.5f : 0.0f;
    for (int m = 0; m < problem->num_matrices; m++) {
        const int64_t apart =
            problem->is_interleaved ? problem->k : (int64_t)problem->n * problem->k;
        op->weight[m].base = (const char *)buffers->weights + 2 * m * apart;
        op->weight[m].expert_stride = (int64_t)problem->num_matrices * problem->n * problem->k;
        op->weight[m].row_stride =
            (int64_t)problem->k * (problem->is_interleaved ? problem->num_matrices : 1);
        op->weight[m].col_stride = 1;
        op->weight[m].dtype = problem->input_dtype;
        if (problem->has_bias) {
            op->bias[m].base =
                (const char *)buffers->bias + 2 * (int64_t)m * problem->num_experts * problem->n;
            op->bias[m].expert_stride = problem->n;
            op->bias[m].row_stride = 1;
            op->bias[m].dtype = problem->input_dtype;
        }
    }
    args->is_k_blocked = problem->k % MOE_CUDA_GEMM_BOX_K == 0;
    args->is_output_vectored = op->output_stride % 8 == 0;
}

static void fill_reference(const struct moe_op_gemm *op, const struct buffers *buffers,
                           struct gemm_reference *reference)
{
    memset(reference, 0, sizeof(*reference));
    reference->input = op->input;
    reference->row_weights = op->row_weights;
    reference->row_ids = op->row_ids;
    reference->row_experts = buffers->row_experts;
    reference->values = buffers->values;
    reference->allowed = buffers->allowed;
    reference->num_rows = buffers->num_rows;
    reference->num_columns = buffers->num_columns;
    reference->num_row_ids = op->num_row_ids;
    reference->input_stride = op->input_stride;
    reference->expert_stride = op->weight[0].expert_stride;
    reference->row_stride = op->weight[0].row_stride;
    reference->row_ids_div = op->row_ids_div;
    reference->scatter = op->scatter;
    reference->n = op->n;
    reference->k = op->k;
    reference->num_matrices = op->num_matrices;
    reference->has_activation = op->has_activation;
    reference->activation = op->act.activation;
    reference->alpha = op->act.alpha;
    reference->limit = op->act.limit;
    reference->is_half = op->input_dtype == MOE_DTYPE_FP16;
    reference->output_dtype = op->output_dtype;
    for (int m = 0; m < op->num_matrices; m++) {
        reference->weight[m] = op->weight[m].base;
        reference->bias[m] = op->bias[m].base;
    }
}

static void run_tile(const struct gemm_tile *tile, struct moe_cuda_gemm *args,
                     const struct buffers *buffers, int num_ctas, void *host)
{
    (void)gemm_encode(tile, args);
    driver_poison(buffers->output, POISON, (size_t)buffers->output_bytes);
    driver_launch_gemm(tile, args, num_ctas, 0);
    driver_synchronize(tile->symbol);
    driver_download(host, buffers->output, (size_t)buffers->output_bytes);
}

/* The first wrong elements, with where a pattern's value came from. */
static void show_wrong(const struct problem *problem, const struct buffers *buffers,
                       const void *output, unsigned long long first)
{
    const int64_t count = buffers->num_rows * buffers->num_columns;
    double *values = calloc((size_t)count, 8), *allowed = calloc((size_t)count, 8);
    driver_download(values, buffers->values, (size_t)count * 8);
    driver_download(allowed, buffers->allowed, (size_t)count * 8);
    int shown = 0;
    for (int64_t i = (int64_t)first; i < count && shown < 12; i++) {
        const int64_t row = i / buffers->num_columns, column = i % buffers->num_columns;
        const int64_t at = row * buffers->output_stride + column;
        double got;
        if (problem->output_dtype == MOE_DTYPE_FP32) {
            got = (double)((const float *)output)[at];
        } else {
            uint32_t bits = (uint32_t)((const uint16_t *)output)[at] << 16;
            float value;
            memcpy(&value, &bits, 4); /* fp16 shows as what its bits mean in bf16 */
            got = (double)value;
        }
        const double error = got - values[i];
        if (allowed[i] >= 0.0 && !(error <= allowed[i] && -error <= allowed[i])) {
            printf("      row %lld column %lld: %g, expected %g +- %g\n", (long long)row,
                   (long long)column, got, values[i], allowed[i]);
            shown++;
        }
    }
    free(values);
    free(allowed);
}

static void check_problem(const struct problem *problem)
{
    struct buffers buffers;
    struct moe_cuda_gemm args;
    struct gemm_reference reference;
    make_buffers(problem, &buffers, 11);
    fill_args(problem, &buffers, &args);
    fill_reference(&args.op, &buffers, &reference);
    void *reference_args[] = {&reference};
    driver_launch(driver_function("gemm_reference"), 132 * 8, 256, reference_args);
    driver_synchronize("gemm_reference");
    char *first = calloc(1, (size_t)buffers.output_bytes);
    char *other = calloc(1, (size_t)buffers.output_bytes);
    for (int t = 0; t < num_gemm_tiles; t++) {
        unsigned long long counts[4] = {0, 0, ~0ull, 0};
        double sums[2] = {0.0, 0.0};
        if (!gemm_encode(&gemm_tiles[t], &args)) {
            continue;
        }
        run_tile(&gemm_tiles[t], &args, &buffers, driver_num_sms(), t == 0 ? first : other);
        driver_upload(buffers.counts, counts, sizeof(counts));
        driver_upload(buffers.sums, sums, sizeof(sums));
        const void *output = buffers.output;
        uint32_t poison = 0xcbcbcbcbu;
        void *compare_args[] = {&reference, (void *)&output, &buffers.output_stride,
                                &poison,    &buffers.counts, &buffers.sums};
        driver_launch(driver_function("gemm_compare"), 132 * 8, 256, compare_args);
        driver_synchronize("gemm_compare");
        driver_download(counts, buffers.counts, sizeof(counts));
        driver_download(sums, buffers.sums, sizeof(sums));
        int is_equal = t == 0 || memcmp(first, other, (size_t)buffers.output_bytes) == 0;
        int is_stable = 1;
        for (int ctas = 1; ctas <= 7; ctas += 6) {
            char *again = calloc(1, (size_t)buffers.output_bytes);
            if (buffers.num_rows <= 600) {
                args.is_early = ctas > 1;
                run_tile(&gemm_tiles[t], &args, &buffers, ctas, again);
                args.is_early = 0;
                is_stable &=
                    memcmp(t == 0 ? first : other, again, (size_t)buffers.output_bytes) == 0;
            }
            free(again);
        }
        const int is_wrong =
            counts[0] != 0 || counts[1] != 0 || counts[3] == 0 || !is_equal || !is_stable;
        num_checked++;
        num_failed += is_wrong;
        if (is_wrong) {
            printf("  FAIL %s, %s: %llu of %llu wrong, %llu written outside, bits %s, grids %s\n",
                   problem->name, gemm_tiles[t].symbol, counts[0], counts[3], counts[1],
                   is_equal ? "equal" : "differ", is_stable ? "equal" : "differ");
            if (counts[0] != 0) {
                show_wrong(problem, &buffers, t == 0 ? first : other, counts[2]);
            }
        } else if (t == 0) {
            printf("  %s: %llu outputs, relative error %.2e\n", problem->name, counts[3],
                   sums[1] > 0.0 ? sums[0] / sums[1] : 0.0);
        }
        fflush(stdout);
    }
    free(first);
    free(other);
    free_buffers(&buffers);
}

/* A row alone has the bits that it has among others: of each expert only its first row is kept. */
static void check_batches(void)
{
    struct problem problem = problems[5];
    struct buffers buffers;
    struct moe_cuda_gemm args;
    problem.num_tokens = 333;
    make_buffers(&problem, &buffers, 5);
    fill_args(&problem, &buffers, &args);
    char *all = calloc(1, (size_t)buffers.output_bytes);
    char *few = calloc(1, (size_t)buffers.output_bytes);
    run_tile(&gemm_tiles[0], &args, &buffers, driver_num_sms(), all);
    int64_t *indptr = calloc((size_t)problem.num_experts + 1, 8);
    driver_download(indptr, buffers.indptr, ((size_t)problem.num_experts + 1) * 8);
    /* As masked rows of count 1 at the places where the segments begin: one launch per expert. */
    int num_different = 0;
    for (int32_t e = 0; e < problem.num_experts; e++) {
        int64_t *one = calloc((size_t)problem.num_experts + 1, 8);
        for (int32_t i = 0; i <= problem.num_experts; i++) {
            one[i] = indptr[e] + (i > e && indptr[e + 1] > indptr[e] ? 1 : 0);
        }
        driver_upload(buffers.indptr, one, ((size_t)problem.num_experts + 1) * 8);
        for (int t = 0; t < num_gemm_tiles; t++) {
            if (!gemm_encode(&gemm_tiles[t], &args)) {
                continue;
            }
            run_tile(&gemm_tiles[t], &args, &buffers, driver_num_sms(), few);
            const size_t at = (size_t)(indptr[e] * buffers.output_stride) * 2;
            num_different +=
                indptr[e + 1] > indptr[e] && memcmp(all + at, few + at, (size_t)problem.n * 2) != 0;
        }
        free(one);
    }
    printf("  %s rows alone: %d differ\n", num_different != 0 ? "FAIL" : "ok", num_different);
    num_checked++;
    num_failed += num_different != 0;
    free(indptr);
    free(all);
    free(few);
    free_buffers(&buffers);
}

int main(int argc, char **argv)
{
    int wants_check = argc < 2;
    int64_t only = -1;
    const char *text = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "problem") == 0 && i + 1 < argc) {
            text = argv[++i];
        }
        wants_check |= strcmp(argv[i], "check") == 0;
        if (strcmp(argv[i], "time") == 0 && i + 1 < argc) {
            only = atoll(argv[++i]);
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    driver_open(argv[0]);
    if (wants_check) {
        for (size_t i = 0; i < sizeof(problems) / sizeof(problems[0]); i++) {
            check_problem(&problems[i]);
        }
        check_batches();
        printf("%d passed, %d failed\n", num_checked - num_failed, num_failed);
    }
    if (text != NULL) {
        int num_problems = 0;
        for (size_t i = 0; i < sizeof(problems) / sizeof(problems[0]); i++) {
            if (strstr(problems[i].name, text) != NULL) {
                check_problem(&problems[i]);
                num_problems++;
            }
        }
        num_failed += num_problems == 0;
        printf("%d problems, %d failed\n", num_problems, num_failed);
    }
    if (only >= 0) {
        gemm_time_models(only);
    }
    return num_failed != 0;
}
