/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_options.h"

#include "abi_names.h"
#include "checkpoint_layer.h"
#include "element.h"
#include "fp8_recipe.h"

#include <stdio.h>
#include <string.h>

static const char all_ops[] = "all";

/* The members of a shape, in the order of --shape. */
enum { SHAPE_EXPERTS, SHAPE_TOP_K, SHAPE_HIDDEN, SHAPE_INTER, NUM_SHAPE };

enum {
    LARGEST_DIMENSION = 1 << 24,
    LARGEST_TOKENS = 1 << 20,
    DEFAULT_MIN_TIME_MS = 300,
    DEFAULT_WEIGHT_MB = 1000
};

/* Qwen3-30B-A3B: many small experts, the shape of most models of its time. */
static const struct moe_args_list default_shape = {.num_values = NUM_SHAPE,
                                                   .values = {128, 8, 2048, 768}};
static const struct moe_args_list default_tokens = {.num_values = 4, .values = {1, 16, 128, 512}};
/* From one token to long prompts. */
static const struct moe_args_list gpu_tokens = {
    .num_values = 9, .values = {1, 8, 32, 64, 128, 256, 1024, 4096, 8192}};

static const char details[] =
    "Measures the limits of the machine (read and copy bandwidth, fp32 multiply-adds) and the "
    "operations in turns, on the\n"
    "same number of threads. Weights and data are random; they are rotated through more memory "
    "than the last-level cache\n"
    "holds. `ratio` is the shortest possible time over the measured median: bytes by read "
    "bandwidth (copy bandwidth for\n"
    "operations that only move rows), or floating-point operations by the multiply-add peak, "
    "whichever takes longer.\n"
    "--model takes the numbers of a layer from config.json; weights need not be there. The layer's "
    "stages are the rows of\n"
    "route, gemm1, gemm2 and post_reorder.\n"
    "\n"
    "--dtype fp8 is e4m3 weights with a scale per 128x128 and bf16 tokens, quantized 128 columns "
    "at "
    "a time where they meet\n"
    "them; fp8-weights the same weights without quantized rows. Both are measured on a CPU.\n"
    "\n"
    "On a GPU, times are of graphs of dependent calls on a cold cache; `host us` is what a call "
    "without a graph costs\n"
    "the host. The limits are those of the driver's memset and memcpy, and the nominal peak of the "
    "tensor cores: what a\n"
    "host can know without kernels of its own. Operations that read are held against memset.";

/* Values as they stand on the command line. */
struct texts {
    const char *ops;
    const char *dtype;
    const char *format;
    struct moe_args_list shape;
    int64_t layer_idx;
};

/* Reads "a,b" or "all". */
static int parse_ops(const char *text, struct moe_bench_options *options,
                     struct moe_cli_error *error)
{
    const char *names[MOE_NUM_OPS + 1];
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        names[op] = moe_abi_op_name(op);
    }
    names[MOE_NUM_OPS] = all_ops;
    for (const char *at = text;; ++at) {
        const size_t length = strcspn(at, ",");
        char word[64];
        if (length >= sizeof word) {
            return MOE_CLI_FAIL(error, "--op: '%.*s' is not an operation", (int)length, at);
        }
        memcpy(word, at, length);
        word[length] = '\0';
        int32_t op = 0;
        while (op <= MOE_NUM_OPS && strcmp(names[op], word) != 0) {
            ++op;
        }
        if (op > MOE_NUM_OPS) {
            const char *nearest = moe_cli_suggest(word, names, MOE_NUM_OPS + 1);
            moe_cli_error_set(error, "--op: '%s' is not an operation%s%s%s; there are ", word,
                              nearest != NULL ? " (did you mean " : "",
                              nearest != NULL ? nearest : "", nearest != NULL ? "?)" : "");
            for (int32_t i = 0; i < MOE_NUM_OPS; ++i) {
                moe_cli_error_append(error, "%s%s", i > 0 ? ", " : "", names[i]);
            }
            moe_cli_error_append(error, ", and %s", all_ops);
            return -1;
        }
        options->is_all_ops |= op == MOE_NUM_OPS;
        options->ops |= op == MOE_NUM_OPS ? (UINT64_C(1) << MOE_NUM_OPS) - 1 : UINT64_C(1) << op;
        at += length;
        if (*at == '\0') {
            return 0;
        }
    }
}

static int read_shape(const struct moe_args_list *shape, struct moe_problem *problem,
                      struct moe_cli_error *error)
{
    if (shape->num_values != NUM_SHAPE) {
        return MOE_CLI_FAIL(
            error, "--shape needs four numbers E,k,H,I (experts, top_k, hidden, inter), not %zu",
            shape->num_values);
    }
    if (shape->values[SHAPE_TOP_K] > shape->values[SHAPE_EXPERTS]) {
        return MOE_CLI_FAIL(error, "--shape: top_k %d is more than the %d experts",
                            (int)shape->values[SHAPE_TOP_K], (int)shape->values[SHAPE_EXPERTS]);
    }
    MOE_INIT(*problem);
    problem->flags = MOE_PROBLEM_RENORMALIZE;
    problem->num_experts = (int32_t)shape->values[SHAPE_EXPERTS];
    problem->top_k = (int32_t)shape->values[SHAPE_TOP_K];
    problem->hidden = (int32_t)shape->values[SHAPE_HIDDEN];
    problem->inter = (int32_t)shape->values[SHAPE_INTER];
    problem->activation = MOE_ACTIVATION_SILU;
    problem->gating = MOE_GATING_SOFTMAX;
    problem->tokens.dtype = MOE_DTYPE_BF16;
    return 0;
}

/* Types of --dtype that are more than the name of one element type. */
#define FP8_LAYER   "fp8"
#define FP8_WEIGHTS "fp8-weights"
#define DTYPES      "fp32|fp16|bf16|" FP8_LAYER "|" FP8_WEIGHTS

/* fp8 weights in blocks of 128x128; rows that are quantized 128 columns at a time where they meet
 * them, or plain. */
static void settle_fp8(int has_fp8_rows, struct moe_problem *problem)
{
    problem->gate_up = moe_fp8_weights();
    problem->down = moe_fp8_weights();
    problem->intermediate =
        has_fp8_rows ? moe_fp8_rows() : (struct moe_recipe){.dtype = problem->tokens.dtype};
}

/* One type for tokens, weights and outputs: the asked one, or that of the tokens; or fp8 weights
 * between plain tokens. */
static int settle_dtype(const char *name, struct moe_bench_options *options,
                        struct moe_cli_error *error)
{
    struct moe_problem *problem = &options->problem;
    const int is_model_fp8 = name == NULL && problem->gate_up.dtype == MOE_DTYPE_FP8_E4M3;
    const int has_fp8_rows = is_model_fp8 ? problem->intermediate.dtype == MOE_DTYPE_FP8_E4M3
                                          : name != NULL && strcmp(name, FP8_LAYER) == 0;
    const int is_fp8 =
        is_model_fp8 || has_fp8_rows || (name != NULL && strcmp(name, FP8_WEIGHTS) == 0);
    const int32_t dtype =
        name != NULL && !is_fp8 ? moe_abi_find_dtype(name) : problem->tokens.dtype;
    if (dtype != MOE_DTYPE_FP32 && dtype != MOE_DTYPE_FP16 && dtype != MOE_DTYPE_BF16) {
        return MOE_CLI_FAIL(error, "--dtype: '%s' is not one of " DTYPES,
                            name != NULL ? name : moe_abi_dtype_name(dtype));
    }
    problem->tokens.dtype = dtype;
    problem->gate_up.dtype = dtype;
    problem->down.dtype = dtype;
    problem->intermediate.dtype = dtype;
    problem->output_dtype = dtype;
    problem->logits_dtype = problem->logits_dtype != 0 ? problem->logits_dtype : MOE_DTYPE_FP32;
    problem->num_experts_global = problem->num_experts;
    options->dtype_name = has_fp8_rows ? FP8_LAYER : FP8_WEIGHTS;
    if (is_fp8) {
        settle_fp8(has_fp8_rows, problem);
    } else {
        options->dtype_name = moe_abi_dtype_name(dtype);
    }
    return 0;
}

static int read_model(int64_t layer_idx, struct moe_bench_options *options,
                      struct moe_cli_error *error)
{
    struct moe_checkpoint_layer layer;
    if (moe_checkpoint_layer_describe(options->model, layer_idx, &layer, error) != 0) {
        return -1;
    }
    options->model_type = layer.model_type;
    options->layer_idx = layer.layer_idx;
    options->problem = layer.problem;
    /* Where the model's routing comes from outside, routing is measured by the usual rule. */
    if (options->problem.gating == MOE_GATING_NONE) {
        options->problem.gating = MOE_GATING_SOFTMAX;
    }
    return 0;
}

/* Sizes are computed in 64 bits; what comes near their end is more than any machine has. */
static int check_sizes(const struct moe_problem *problem, struct moe_cli_error *error)
{
    const double largest_bytes = 0x1p50, element_bytes = 4.0;
    const double width =
        problem->hidden > 2.0 * problem->inter ? problem->hidden : 2.0 * problem->inter;
    const double weight_bytes =
        3.0 * element_bytes * problem->hidden *
        ((double)problem->num_experts * problem->inter + problem->shared_inter);
    const double row_bytes = element_bytes * (double)problem->max_tokens * problem->top_k * width;
    if (weight_bytes > largest_bytes || row_bytes > largest_bytes) {
        return MOE_CLI_FAIL(
            error,
            "this layer would have %.3g GB of weights and %.3g GB of rows; choose smaller numbers",
            1e-9 * weight_bytes, 1e-9 * row_bytes);
    }
    return 0;
}

/* Leaves out the numbers of tokens that cannot hit --active experts, with a sentence for each, so
 * that a sweep of all models may start at one token. It is a mistake if none is left. */
static int settle_tokens(struct moe_bench_options *options, struct moe_cli_error *error)
{
    struct moe_problem *problem = &options->problem;
    struct moe_args_list kept = {.num_values = 0};
    for (size_t i = 0; i < options->tokens.num_values; ++i) {
        const int64_t num_tokens = options->tokens.values[i];
        if (moe_bench_routing_check(&options->routing, num_tokens, problem->top_k,
                                    problem->num_experts, error) == 0) {
            kept.values[kept.num_values++] = num_tokens;
        }
    }
    if (kept.num_values == 0) {
        return -1;
    }
    for (size_t i = 0; i < options->tokens.num_values; ++i) {
        const int64_t num_tokens = options->tokens.values[i];
        if (moe_bench_routing_check(&options->routing, num_tokens, problem->top_k,
                                    problem->num_experts, error) != 0) {
            fprintf(stderr, "moectl bench: not measured: %s\n", error->message);
        } else if (num_tokens > problem->max_tokens) {
            problem->max_tokens = num_tokens;
        }
    }
    options->tokens = kept;
    return 0;
}

/* --json and --csv say the same as --format. */
static int settle_format(const char *format, struct moe_bench_options *options,
                         struct moe_cli_error *error)
{
    const int is_json = format != NULL && strcmp(format, "json") == 0;
    const int is_csv = format != NULL && strcmp(format, "csv") == 0;
    if ((options->wants_json && options->wants_csv) ||
        (format != NULL &&
         ((options->wants_json && !is_json) || (options->wants_csv && !is_csv)))) {
        return MOE_CLI_FAIL(error, "--format, --json and --csv contradict each other; choose one");
    }
    options->wants_json |= is_json;
    options->wants_csv |= is_csv;
    return 0;
}

static int check(const struct texts *texts, struct moe_bench_options *options,
                 struct moe_cli_error *error)
{
    if (settle_format(texts->format, options, error) != 0) {
        return -1;
    }
    if (options->tokens.num_values == 0) {
        const int is_gpu = moe_abi_find_backend(options->host.backend) == MOE_BACKEND_CUDA;
        options->tokens = is_gpu ? gpu_tokens : default_tokens;
    }
    if (options->model != NULL && texts->shape.num_values > 0) {
        return MOE_CLI_FAIL(error, "--model and --shape are both given; choose one");
    }
    if (options->model == NULL && texts->layer_idx >= 0) {
        return MOE_CLI_FAIL(error, "--layer needs --model");
    }
    const struct moe_args_list *shape =
        texts->shape.num_values > 0 ? &texts->shape : &default_shape;
    if ((options->model != NULL ? read_model(texts->layer_idx, options, error)
                                : read_shape(shape, &options->problem, error)) != 0 ||
        settle_dtype(texts->dtype, options, error) != 0 ||
        parse_ops(texts->ops, options, error) != 0 ||
        moe_bench_routing_parse(options->routing_text, &options->routing, error) != 0) {
        return -1;
    }
    if (settle_tokens(options, error) != 0) {
        return -1;
    }
    return check_sizes(&options->problem, error);
}

enum moe_args_outcome moe_bench_options_parse(int argc, char **argv, const char *summary,
                                              struct moe_bench_options *options)
{
    *options = (struct moe_bench_options){.host = moe_plugin_host_default_options(),
                                          .routing_text = "uniform",
                                          .min_time_ms = DEFAULT_MIN_TIME_MS,
                                          .weight_mb = DEFAULT_WEIGHT_MB};
    struct texts texts = {.ops = all_ops, .layer_idx = -1};
    const struct moe_args_option rows[] = {
        {.name = "op",
         .value_name = "NAME,...",
         .help = "operations to measure, or all",
         .text = &texts.ops},
        {.name = "shape",
         .value_name = "E,k,H,I",
         .help = "experts, top_k, hidden, inter (128,8,2048,768)",
         .list = &texts.shape,
         .min_value = 1,
         .max_value = LARGEST_DIMENSION},
        {.name = "model",
         .value_name = "DIR",
         .help = "the shape and rules of a checkpoint's layer",
         .text = &options->model},
        {.name = "layer",
         .value_name = "N",
         .help = "layer of the checkpoint; without it, the first MoE layer",
         .number = &texts.layer_idx,
         .max_value = INT32_MAX},
        {.name = "dtype",
         .choices = DTYPES,
         .help = "of tokens and weights (bf16, or the model's)",
         .text = &texts.dtype},
        {.name = "tokens",
         .letter = 'M',
         .value_name = "T,...",
         .help = "numbers of tokens (1,16,128,512; --backend cuda: 1 to 8192)",
         .list = &options->tokens,
         .min_value = 1,
         .max_value = LARGEST_TOKENS},
        {.name = "routing",
         .value_name = "uniform|zipf:s|hot",
         .help = "how tokens choose experts (uniform)",
         .text = &options->routing_text},
        {.name = "active",
         .value_name = "N",
         .help = "exactly N experts get tokens; T that cannot hit N are left out",
         .number = &options->routing.num_active,
         .max_value = LARGEST_DIMENSION},
        {.name = "seed",
         .value_name = "N",
         .help = "of all random numbers (0)",
         .number = &options->seed,
         .max_value = INT64_MAX},
        {.name = "min-time",
         .value_name = "MS",
         .help = "milliseconds for each operation and number of tokens, at least (300)",
         .number = &options->min_time_ms,
         .min_value = 1,
         .max_value = 600000},
        {.name = "weight-mb",
         .value_name = "MB",
         .help = "megabytes of weights that calls are rotated through, at least (1000)",
         .number = &options->weight_mb,
         .min_value = 1,
         .max_value = 1000000},
        {.name = "format",
         .choices = "table|json|csv",
         .text = &texts.format,
         .help = "how the result is printed (table)"},
        {.name = "csv",
         .help = "print the result as comma-separated values",
         .flag = &options->wants_csv},
        MOE_PLUGIN_HOST_ROW_PLUGIN(options->host),
        MOE_PLUGIN_HOST_ROW_CONFIG(options->host),
        MOE_PLUGIN_HOST_ROW_BACKEND(options->host),
        MOE_PLUGIN_HOST_ROW_ORDINAL(options->host),
        MOE_PLUGIN_HOST_ROW_THREADS(options->host),
        MOE_PLUGIN_HOST_ROW_VERBOSE(options->host),
    };
    const struct moe_args_command command = {.name = "bench",
                                             .summary = summary,
                                             .details = details,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    struct moe_args_result result;
    const enum moe_args_outcome outcome =
        moe_args_parse(&command, argc, argv, &result, stdout, stderr);
    if (outcome != MOE_ARGS_RUN) {
        return outcome;
    }
    options->wants_json = result.wants_json;
    struct moe_cli_error error = {.message = ""};
    if (check(&texts, options, &error) != 0) {
        fprintf(stderr, "moectl bench: %s\n", error.message);
        return MOE_ARGS_WRONG;
    }
    return MOE_ARGS_RUN;
}
