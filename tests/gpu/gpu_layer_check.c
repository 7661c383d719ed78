/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers on the GPU against the CPU backend (every token, within the tolerance of gpu_compare.c)
 * and against float64 (some tokens of each call, every element, gpu_layer_reference.c). Outputs
 * stand between poisoned gaps, outputs and workspace are poisoned with NaN. Then what has to be the
 * same bits, and mistakes that have to be noticed.
 */
#include "gpu_layer_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REFERENCE = 3, BRIEF_TOKENS = 65, SELF_TOKENS = 129, PLANTED_TOKENS = 65 };

#define BF16           MOE_DTYPE_BF16
#define FP16           MOE_DTYPE_FP16
#define FP32           MOE_DTYPE_FP32
#define SILU           MOE_ACTIVATION_SILU
#define BIASES         (MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS)
#define SHARED_SIGMOID MOE_PROBLEM_SHARED_SIGMOID

static const struct layer_shape shapes[] = {
    {"plain", 8, 2, 512, 256, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"many experts", 512, 10, 256, 64, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"one expert", 1, 1, 128, 192, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"odd widths", 60, 4, 2880, 88, 0, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"fp16, fp32 out", 16, 4, 264, 704, 0, FP16, FP32, MOE_ACTIVATION_GELU, 0, LAYER_FUSED, 0, 0,
     2.5f},
    {"oai, biases", 32, 4, 576, 320, 0, BF16, BF16, MOE_ACTIVATION_SWIGLU_OAI, BIASES,
     LAYER_INTERLEAVED, 0, 0, 0},
    {"oai, paired", 32, 4, 576, 320, 0, BF16, BF16, MOE_ACTIVATION_SWIGLU_OAI, BIASES, LAYER_PAIRED,
     0, 0, 0},
    {"paired, fp16", 12, 3, 456, 136, 0, FP16, FP16, SILU, 0, LAYER_PAIRED, 0, 0, 0},
    {"transposed", 12, 3, 456, 136, 0, BF16, BF16, SILU, 0, LAYER_TRANSPOSED, 0, 0, 0},
    {"transposed, fp32 out", 8, 2, 512, 256, 0, FP16, FP32, MOE_ACTIVATION_GELU, BIASES,
     LAYER_TRANSPOSED, 0, 0, 0},
    {"transposed, ungated", 16, 2, 256, 384, 0, BF16, BF16, MOE_ACTIVATION_RELU2,
     MOE_PROBLEM_UNGATED, LAYER_TRANSPOSED, 0, 0, 0},
    {"experts apart", 20, 3, 192, 96, 0, BF16, BF16, MOE_ACTIVATION_GELU_TANH, 0, LAYER_TABLE, 0, 0,
     0},
    {"ungated", 16, 2, 256, 384, 0, FP16, FP16, MOE_ACTIVATION_RELU2, MOE_PROBLEM_UNGATED,
     LAYER_FUSED, 0, 0, 0},
    {"weight on input", 16, 1, 320, 128, 0, BF16, BF16, SILU, MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT,
     LAYER_FUSED, 0, 0, 0},
    {"shared, sigmoid", 24, 4, 512, 192, 448, BF16, BF16, SILU, SHARED_SIGMOID, LAYER_FUSED, 0, 0,
     1.5f},
    {"shared, ungated", 24, 4, 512, 192, 72, BF16, BF16, MOE_ACTIVATION_RELU2, MOE_PROBLEM_UNGATED,
     LAYER_FUSED, 0, 0, 0},
    {"softmax", 128, 8, 256, 96, 0, BF16, BF16, SILU, MOE_PROBLEM_RENORMALIZE, LAYER_FUSED,
     MOE_GATING_SOFTMAX, 0, 0},
    {"router", 64, 6, 1024, 96, 128, BF16, BF16, SILU, MOE_PROBLEM_RENORMALIZE, LAYER_FUSED,
     MOE_GATING_SOFTMAX, 1, 0},
    {"identity", 16, 2, 256, 136, 0, BF16, BF16, MOE_ACTIVATION_IDENTITY, 0, LAYER_FUSED, 0, 0, 0},
    {"identity, ungated", 16, 2, 136, 192, 0, BF16, FP32, MOE_ACTIVATION_IDENTITY,
     MOE_PROBLEM_UNGATED, LAYER_TRANSPOSED, 0, 0, 0},
};
/* Widths of models: gpt-oss, DeepSeek-V2-Lite with its shared experts, and one from which on pairs
 * of tiles read in order. With a device, or where they are asked for. */
static const struct layer_shape wide_shapes[] = {
    {"wide, 2880 x 2880", 4, 3, 2880, 2880, 0, BF16, BF16, MOE_ACTIVATION_SWIGLU_OAI, BIASES,
     LAYER_INTERLEAVED, 0, 0, 0},
    {"wide, 1408", 8, 3, 2048, 1408, 2816, BF16, BF16, SILU, 0, LAYER_FUSED, 0, 0, 0},
    {"wide, in order", 6, 2, 320, 1928, 0, FP16, FP32, SILU, BIASES, LAYER_TRANSPOSED, 0, 0, 0},
};
static const int64_t token_counts[] = {0, 1, 2, 7, 8, 9, 63, 64, 65, 127, 129, 1000, 4096};
/* Those with which every pattern of routing is tried; the others take the patterns in turn. */
static const int64_t pattern_counts[] = {1, 8, PLANTED_TOKENS, 1000};
static const int64_t wide_counts[] = {1, 8, PLANTED_TOKENS, 129};
enum {
    NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]),
    NUM_WIDE = sizeof(wide_shapes) / sizeof(wide_shapes[0]),
    NUM_LISTED = 4, /* in the two lists before */
    WIDE_TOKENS = 600,
    NUM_COUNTS = sizeof(token_counts) / sizeof(token_counts[0]),
    MAX_TOKENS = 4096
};

/* The first, the middle and the last token against float64. */
void layer_check_reference(struct layer_check *check, const struct layer_case *test,
                           const struct layer_outputs *outputs, const struct layer_values *values)
{
    const int64_t num_tokens = values->num_tokens, top_k = test->shape.top_k;
    const int64_t count = num_tokens < MAX_REFERENCE ? num_tokens : MAX_REFERENCE;
    struct layer_expected expected;
    layer_expected_init(&expected, test);
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = count > 1 ? i * (num_tokens - 1) / (count - 1) : 0;
        if (values->is_skipped != NULL && values->is_skipped[t]) {
            continue;
        }
        layer_reference(test, t, values->ids + t * top_k, values->weights + t * top_k,
                        values->has_residual, &expected);
        const double off = layer_compare_reference(test, outputs, t, &expected);
        layer_report(check, off <= 1.0, test, num_tokens, "float64, parts of the tolerance", off);
        check->largest_row = fmax(check->largest_row, off);
    }
    layer_expected_finish(&expected);
}

/* Where the router's logits nearly tie, the sides may choose other experts: such tokens are not
 * compared. They are one in a hundred at most. */
static void skip_other_experts(struct layer_check *check, const struct layer_case *test,
                               const struct layer_side *side, struct layer_outputs *outputs,
                               struct layer_values *values)
{
    const size_t top_k = (size_t)test->shape.top_k;
    const size_t bytes = (size_t)values->num_tokens * top_k * 4;
    int64_t num_skipped = 0;
    int32_t *ids = malloc(bytes + 1);
    struct layer_call call = layer_device_call(check, side, outputs->device, outputs->stride);
    call.num_tokens = values->num_tokens;
    call.ids_out = gpu_alloc(bytes);
    call.weights_out = gpu_alloc(bytes);
    layer_queue(check, test, &call);
    gpu_synchronize(call.stream);
    gpu_download(ids, call.ids_out, bytes);
    for (int64_t t = 0; t < values->num_tokens; t++) {
        const size_t at = (size_t)t * top_k;
        values->is_skipped[t] = memcmp(ids + at, values->ids + at, 4 * top_k) != 0;
        num_skipped += values->is_skipped[t];
    }
    layer_report(check, num_skipped <= values->num_tokens / 100 + 1, test, values->num_tokens,
                 "tokens with other experts", (double)num_skipped);
    gpu_free(call.ids_out);
    gpu_free(call.weights_out);
    free(ids);
}

static void check_count(struct layer_check *check, struct layer_case *test,
                        const struct layer_side *side, struct layer_outputs *outputs,
                        struct layer_values *values, int is_planted)
{
    const int64_t num_tokens = values->num_tokens;
    layer_run_device(check, test, side, outputs, 0, num_tokens, values->has_residual);
    layer_run_cpu(check, test, outputs, num_tokens, values->has_residual, values->ids,
                  values->weights);
    layer_report(check, layer_keeps_gaps(outputs, num_tokens), test, num_tokens, "guard bands",
                 0.0);
    if (test->shape.has_router) {
        skip_other_experts(check, test, side, outputs, values);
    }
    const struct gpu_comparison comparison = layer_compare(test, outputs, values);
    layer_report(check, gpu_is_close(&comparison), test, num_tokens,
                 comparison.worst > 1.0 ? "a token, parts of the tolerance"
                                        : "all tokens, parts of the tolerance",
                 fmax(comparison.worst, comparison.all));
    check->largest = fmax(check->largest, fmax(comparison.worst, comparison.all));
    if (!test->shape.has_router) { /* whose weights are not known to fp32 alone */
        layer_check_reference(check, test, outputs, values);
    }
    if (is_planted && (check->modes & LAYER_BROKEN) == 0) {
        layer_check_planted(check, test, outputs, values);
    }
}

static int is_listed(const int64_t *list, int64_t num_tokens)
{
    int i = 0;
    while (i < NUM_LISTED && list[i] != num_tokens) {
        i++;
    }
    return i < NUM_LISTED;
}

static int is_wanted(const struct layer_check *check, int is_wide, int64_t num_tokens)
{
    return (check->modes & LAYER_BRIEF) != 0  ? num_tokens == BRIEF_TOKENS
           : is_wide                          ? is_listed(wide_counts, num_tokens)
           : (check->modes & LAYER_SELF) != 0 ? num_tokens <= SELF_TOKENS
                                              : 1;
}

/* Is the pattern tried with token count number i? What routes tells: ids take all patterns, logits
 * cannot filter, a router's come from tokens. Large layers take one. */
static int has_pattern(const struct layer_check *check, const struct layer_shape *shape,
                       int is_wide, int i, int pattern)
{
    if (shape->has_router) {
        return pattern == LAYER_UNIFORM;
    }
    if (shape->gating != MOE_GATING_NONE && pattern == LAYER_FILTERED) {
        return 0;
    }
    if (token_counts[i] == PLANTED_TOKENS && pattern == LAYER_UNIFORM) {
        return 1; /* mistakes are planted into it */
    }
    if (is_wide || (check->modes & LAYER_BRIEF) != 0) {
        return token_counts[i] == 8 ? pattern == LAYER_SPARSE : pattern == LAYER_UNIFORM;
    }
    const int own = i % LAYER_NUM_PATTERNS;
    const int is_possible = shape->gating == MOE_GATING_NONE || own != LAYER_FILTERED;
    return is_listed(pattern_counts, token_counts[i]) ||
           pattern == (is_possible ? own : LAYER_UNIFORM);
}

static void check_counts(struct layer_check *check, struct layer_case *test,
                         struct layer_outputs *outputs, int is_wide)
{
    const size_t num_routes = (size_t)test->max_tokens * (size_t)test->shape.top_k;
    struct layer_side side;
    struct layer_values values = {.ids = malloc(num_routes * 4),
                                  .weights = malloc(num_routes * 4),
                                  .is_skipped = calloc((size_t)test->max_tokens, 1)};
    layer_side_init(&side, check, test, 1);
    for (int i = 0; i < NUM_COUNTS; i++) {
        values.num_tokens = token_counts[i];
        for (int pattern = 0; pattern < LAYER_NUM_PATTERNS; pattern++) {
            if (is_wanted(check, is_wide, values.num_tokens) &&
                has_pattern(check, &test->shape, is_wide, i, pattern)) {
                /* Every number of tokens meets a residual, those with all patterns also none. */
                values.has_residual = is_wide || pattern == LAYER_UNIFORM ||
                                      pattern == LAYER_FILTERED ||
                                      !is_listed(pattern_counts, values.num_tokens);
                layer_draw_inputs(test, pattern, &check->seed);
                check_count(check, test, &side, outputs, &values,
                            values.num_tokens == PLANTED_TOKENS && pattern == LAYER_UNIFORM);
            }
        }
    }
    layer_side_finish(&side, check);
    free(values.ids);
    free(values.weights);
    free(values.is_skipped);
}

static void check_shape(struct layer_check *check, const struct layer_shape *shape, int is_wide)
{
    const int is_small = is_wide || (check->modes & LAYER_SELF) != 0;
    const int64_t max_tokens = (check->modes & LAYER_BRIEF) != 0 ? BRIEF_TOKENS
                               : is_small                        ? WIDE_TOKENS
                                                                 : MAX_TOKENS;
    const int failed_before = check->num_failed, checked_before = check->num_checked;
    struct layer_case test;
    struct layer_outputs outputs;
    check->largest = check->largest_row = 0.0;
    layer_case_init(&test, check->host, shape, max_tokens, &check->seed);
    layer_outputs_init(&outputs, &test);
    check_counts(check, &test, &outputs, is_wide);
    if ((check->modes & LAYER_BRIEF) != 0) {
        layer_check_replay(check, &test, &outputs, BRIEF_TOKENS);
    } else {
        layer_check_same(check, &test, &outputs);
        layer_check_experts(check, &test);
    }
    printf("%-20s %4d comparisons, %d failed, up to %.2f of the tolerance, of float64's %.2f\n",
           shape->name, check->num_checked - checked_before, check->num_failed - failed_before,
           check->largest, check->largest_row);
    fflush(stdout);
    layer_outputs_finish(&outputs);
    layer_case_finish(&test, check->host);
}

int layer_check(const struct gpu_host *host, uint64_t seed, const char *filter, int modes)
{
    struct layer_check check = {.host = host, .seed = seed, .modes = modes};
    for (int i = 0; i < NUM_SHAPES; i++) {
        if (layer_is_chosen(&check, &shapes[i], filter)) {
            check_shape(&check, &shapes[i], 0);
        }
    }
    for (int i = 0; i < NUM_WIDE; i++) {
        if (layer_is_chosen(&check, &wide_shapes[i], filter)) {
            check_shape(&check, &wide_shapes[i], 1);
        }
    }
    if ((modes & LAYER_BRIEF) != 0) {
        layer_check_brief(&check, filter);
    } else {
        layer_check_bits(&check, filter);
        layer_check_replays(&check, filter);
    }
    printf("%d plans with forced tiles, %d launch another one in their place\n", check.num_plans,
           check.num_replaced);
    printf("%d planted mistakes looked for\n", check.num_planted);
    printf("%d passed, %d failed\n", check.num_checked - check.num_failed, check.num_failed);
    return check.num_failed > 0 || check.num_checked == 0;
}
