/* SPDX-License-Identifier: Apache-2.0 */
/* Few calls that reach kernels which the other brief runs do not: for tools that make every launch
 * slow. Transposed weights, more than 512 and 2048 routes, pairs of tiles that gather and that
 * read copies in order, chunks, and experts in passes, each against the CPU backend and float64. */
#include "gpu_layer_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BF16   MOE_DTYPE_BF16
#define FP16   MOE_DTYPE_FP16
#define SILU   MOE_ACTIVATION_SILU
#define BIASES (MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS)

/* The number of tokens, and the part of its workspace that a call has; is_pair: with each pair of
 * tiles of which GEMM1's is a pair of CTAs (without a device: the last tile). */
struct brief {
    struct layer_shape shape;
    int64_t num_tokens;
    uint64_t parts;
    int is_pair, has_experts;
};

static const struct brief briefs[] = {
    {{"brief, transposed", 6, 2, 136, 72, 0, BF16, BF16, SILU, BIASES, LAYER_TRANSPOSED, 0, 0, 0},
     65,
     1,
     0,
     1},
    {{"brief, routes", 8, 4, 128, 64, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0}, 300, 1, 0, 1},
    {{"brief, more routes", 40, 4, 64, 64, 0, FP16, FP16, SILU, 0, LAYER_FUSED, 0, 0, 0},
     600,
     1,
     0,
     0},
    {{"brief, chunks", 8, 4, 128, 64, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0}, 300, 3, 0, 0},
    {{"brief, gathered", 3, 2, 128, 128, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
     129,
     1,
     1,
     0},
    {{"brief, in order", 2, 1, 64, 1880, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
     129,
     1,
     1,
     0},
};
enum { NUM_BRIEFS = sizeof(briefs) / sizeof(briefs[0]) };

static void check_call(struct layer_check *check, const struct brief *brief,
                       struct layer_case *test, struct layer_outputs *outputs)
{
    const size_t num_routes = (size_t)brief->num_tokens * (size_t)brief->shape.top_k;
    struct layer_side side;
    struct layer_values values = {.num_tokens = brief->num_tokens,
                                  .has_residual = 1,
                                  .ids = malloc(num_routes * 4),
                                  .weights = malloc(num_routes * 4)};
    layer_side_init(&side, check, test, brief->parts);
    layer_run_device(check, test, &side, outputs, 0, brief->num_tokens, 1);
    layer_run_cpu(check, test, outputs, brief->num_tokens, 1, values.ids, values.weights);
    const struct gpu_comparison comparison = layer_compare(test, outputs, &values);
    check->largest = fmax(check->largest, fmax(comparison.worst, comparison.all));
    layer_report(check, gpu_is_close(&comparison), test, brief->num_tokens,
                 "parts of the tolerance", fmax(comparison.worst, comparison.all));
    layer_report(check, layer_keeps_gaps(outputs, brief->num_tokens), test, brief->num_tokens,
                 "guard bands", 0.0);
    layer_check_reference(check, test, outputs, &values);
    layer_side_finish(&side, check);
    free(values.ids);
    free(values.weights);
}

static void check_pairs(struct layer_check *check, const struct brief *brief,
                        struct layer_case *test, struct layer_outputs *outputs)
{
    struct gpu_gemm_tiles pairs[GPU_MAX_PAIRS];
    const int num_pairs = gpu_list_gemm_tiles(check->host, pairs);
    int num_forced = 0;
    for (int i = 0; i < num_pairs; i++) {
        const int is_last = (check->modes & LAYER_SELF) != 0 && i + 1 == num_pairs;
        if (is_last || strcmp(pairs[i].gemm1.kernel, "sm90.pair") == 0) {
            gpu_force_gemm_tiles(check->host, &pairs[i]);
            check_call(check, brief, test, outputs);
            num_forced++;
        }
    }
    gpu_force_gemm_tiles(check->host, NULL);
    layer_report(check, num_forced > 0, test, brief->num_tokens, "pairs of tiles", num_forced);
}

void layer_check_brief(struct layer_check *check, const char *filter)
{
    for (int i = 0; i < NUM_BRIEFS; i++) {
        const struct brief *brief = &briefs[i];
        const int failed_before = check->num_failed, checked_before = check->num_checked;
        struct layer_case test;
        struct layer_outputs outputs;
        if (!layer_is_chosen(check, &brief->shape, filter)) {
            continue;
        }
        layer_case_init(&test, check->host, &brief->shape, brief->num_tokens, &check->seed);
        layer_outputs_init(&outputs, &test);
        layer_draw_inputs(&test, LAYER_UNIFORM, &check->seed);
        if (brief->is_pair) {
            check_pairs(check, brief, &test, &outputs);
        } else {
            check_call(check, brief, &test, &outputs);
        }
        if (brief->has_experts) {
            layer_check_experts(check, &test);
        }
        printf("%-20s %4d comparisons, %d failed\n", brief->shape.name,
               check->num_checked - checked_before, check->num_failed - failed_before);
        fflush(stdout);
        layer_outputs_finish(&outputs);
        layer_case_finish(&test, check->host);
    }
}
