/* SPDX-License-Identifier: Apache-2.0 */
#include "abi_names.h"
#include "args.h"
#include "command.h"
#include "element.h"
#include "family.h"
#include "run_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char details[] =
    "Reads the weights of one layer of a Hugging Face checkpoint (config.json and safetensors; "
    "only\n"
    "the layer's pages are read), and runs router, gating, experts and shared experts on it.\n"
    "\n"
    "With --check the tokens come from hidden_states of the file, and each of router_logits, "
    "topk_ids,\n"
    "topk_weights, experts_output and block_output that the file has is compared: chosen experts "
    "have to be the\n"
    "same unless scores lie within one bf16 step, all else by relative L2 error, bound 1e-2 "
    "(outputs of fp8\n"
    "activations: 5e-2). The exit\n"
    "status is 1 beyond it. --tokens then takes the first N tokens of the file.\n"
    "\n"
    "--tp N and --ep N run the layer as N ranks would, one after the other, and sum their outputs "
    "in fp32 as\n"
    "an all-reduce does. Under --tp each rank holds inter / N channels of every expert and of the "
    "shared expert; the\n"
    "bias of down is added by the first. Under --ep each holds a contiguous range of the experts; "
    "the\n"
    "shared expert belongs to the first. Every rank runs the router. Both together make tp * ep "
    "ranks.\n"
    "\n"
    "Weights of fp8 with scales per 128 x 128 (quantization_config: quant_method fp8, "
    "weight_block_size\n"
    "[128, 128]) meet activations that are quantized to fp8, 128 columns at a time, as servers do "
    "it. With\n"
    "--activations plain only the weights are quantized.\n"
    "\n"
    "Model types (model_type in config.json) that run:";

enum { help_bytes = 6144, help_columns = 100 };

/* Adds the model types that run, in lines; with `routing_is_given` those of them alone whose router
 * is no gating rule. Returns the new length. */
static size_t add_model_types(char text[help_bytes], size_t length, int routing_is_given)
{
    const struct moe_family *family;
    const char *separator = "";
    size_t column = 0;
    for (size_t i = 0; (family = moe_family_row(i)) != NULL && length < help_bytes; ++i) {
        if (family->refusal != NULL || family->routing_is_given < routing_is_given) {
            continue;
        }
        const size_t name_length = strlen(family->model_type);
        const int is_full = column == 0 || column + name_length + 3 > help_columns;
        length += (size_t)snprintf(text + length, help_bytes - length, "%s%s%s", separator,
                                   is_full ? "\n  " : " ", family->model_type);
        column = (is_full ? 2 : column + 2) + name_length;
        separator = ",";
    }
    return length;
}

/* `details`, and the model types of the table that run. */
static void write_help(char text[help_bytes])
{
    size_t length = (size_t)snprintf(text, help_bytes, "%s", details);
    length = add_model_types(text, length, 0);
    if (length >= help_bytes) {
        return;
    }
    length += (size_t)snprintf(text + length, help_bytes - length,
                               "\n\nThe routers of these are none of the gating rules; ids and "
                               "weights come from the golden\nfile, or else from a round over the "
                               "experts:");
    (void)add_model_types(text, length, 1);
}

struct run_options {
    const char *model;
    const char *golden;
    int64_t layer_idx;
    int64_t num_tokens; /* 0: not given */
    int64_t seed;
    const char *activations; /* NULL: as the checkpoint's weights want them */
    struct moe_rank_split split;
    struct moe_plugin_host_options host;
};

enum { max_tokens = 1 << 24, max_ranks = 1024, default_tokens = 32 };

static enum moe_args_outcome parse(int argc, char **argv, struct run_options *options,
                                   struct moe_args_result *args)
{
    *options = (struct run_options){
        .layer_idx = -1, .split = {1, 1}, .host = moe_plugin_host_default_options()};
    const struct moe_args_option rows[] = {
        {.name = "model",
         .value_name = "DIR",
         .text = &options->model,
         .is_mandatory = 1,
         .help = "folder of a Hugging Face checkpoint"},
        {.name = "layer",
         .value_name = "N",
         .number = &options->layer_idx,
         .min_value = 0,
         .max_value = INT32_MAX,
         .help = "layer; without it, the first MoE layer"},
        {.name = "tokens",
         .value_name = "N",
         .number = &options->num_tokens,
         .min_value = 1,
         .max_value = max_tokens,
         .help = "number of tokens (random ones: 32; --check: all of the file)"},
        {.name = "seed",
         .value_name = "N",
         .number = &options->seed,
         .min_value = 0,
         .max_value = INT64_MAX,
         .help = "of random tokens"},
        {.name = "check",
         .value_name = "FILE",
         .text = &options->golden,
         .help = "compare with the tensors of this golden.safetensors"},
        {.name = "activations",
         .choices = "fp8|plain",
         .text = &options->activations,
         .help = "what fp8 weights meet (fp8)"},
        {.name = "tp",
         .value_name = "N",
         .number = &options->split.tp,
         .min_value = 1,
         .max_value = max_ranks,
         .help = "ranks that split the channels of each expert"},
        {.name = "ep",
         .value_name = "N",
         .number = &options->split.ep,
         .min_value = 1,
         .max_value = max_ranks,
         .help = "ranks that split the experts"},
        MOE_PLUGIN_HOST_ROW_CONFIG(options->host),
        MOE_PLUGIN_HOST_ROW_PLUGIN(options->host),
        MOE_PLUGIN_HOST_ROW_BACKEND(options->host),
        MOE_PLUGIN_HOST_ROW_ORDINAL(options->host),
        MOE_PLUGIN_HOST_ROW_THREADS(options->host),
        MOE_PLUGIN_HOST_ROW_VERBOSE(options->host),
    };
    char help[help_bytes];
    write_help(help);
    const struct moe_args_command command = {.name = moe_command_run.name,
                                             .summary = moe_command_run.summary,
                                             .details = help,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    return moe_args_parse(&command, argc, argv, args, stdout, stderr);
}

/* The run, with all that has to be given back. */
struct run {
    struct moe_plugin_host host;
    struct moe_checkpoint_layer layer;
    struct moe_golden_file golden;
    struct moe_golden_check check;
    struct moe_layer_run_request request;
    struct moe_layer_run_result result;
    void *tokens;
    int32_t *topk_ids; /* where the problem has no gating */
    float *topk_weights;
};

static int settle_num_tokens(const struct run_options *options, const struct run *run,
                             int64_t *num_tokens, struct moe_cli_error *error)
{
    if (options->golden == NULL) {
        *num_tokens = options->num_tokens > 0 ? options->num_tokens : default_tokens;
        return 0;
    }
    if (options->num_tokens > run->golden.num_tokens) {
        return MOE_CLI_FAIL(error, "--tokens %" PRId64 ": %s has %" PRId64 " tokens",
                            options->num_tokens, options->golden, run->golden.num_tokens);
    }
    *num_tokens = options->num_tokens > 0 ? options->num_tokens : run->golden.num_tokens;
    return 0;
}

static int make_tokens(const struct run_options *options, struct run *run,
                       struct moe_cli_error *error)
{
    const struct moe_problem *problem = &run->layer.problem;
    const int32_t dtype = problem->tokens.dtype;
    const int64_t num_elements = run->request.num_tokens * problem->hidden;
    run->tokens = calloc((size_t)num_elements, moe_element_bytes(dtype));
    if (run->tokens == NULL) {
        return moe_cli_fail_memory(error, "making tokens");
    }
    if (options->golden == NULL) {
        moe_element_fill_normal(run->tokens, dtype, num_elements, (uint64_t)options->seed);
        return 0;
    }
    for (int64_t i = 0; i < num_elements; ++i) {
        moe_element_store(run->tokens, dtype, i,
                          moe_golden_file_load(run->golden.hidden_states, i));
    }
    return 0;
}

/* A layer without gating gets the file's routing, or one that spreads tokens over the experts. */
static int make_routing(const struct run_options *options, struct run *run,
                        struct moe_cli_error *error)
{
    const struct moe_problem *problem = &run->layer.problem;
    const int64_t top_k = problem->top_k, num_routes = run->request.num_tokens * top_k;
    const struct moe_safetensors_tensor *ids = run->golden.tensors[MOE_GOLDEN_TOPK_IDS];
    const struct moe_safetensors_tensor *weights = run->golden.tensors[MOE_GOLDEN_TOPK_WEIGHTS];
    if (problem->gating != MOE_GATING_NONE) {
        return 0;
    }
    if (options->golden != NULL && (ids == NULL || weights == NULL)) {
        return MOE_CLI_FAIL(error,
                            "%s: it has no topk_ids and topk_weights; a layer of type '%s' takes "
                            "its routing from them",
                            options->golden, run->layer.model_type);
    }
    run->topk_ids = calloc((size_t)num_routes, sizeof *run->topk_ids);
    run->topk_weights = calloc((size_t)num_routes, sizeof *run->topk_weights);
    if (run->topk_ids == NULL || run->topk_weights == NULL) {
        return moe_cli_fail_memory(error, "making a routing");
    }
    for (int64_t i = 0; i < num_routes; ++i) {
        const int64_t id = ids != NULL
                               ? moe_golden_file_load_id(ids, i)
                               : (i + options->seed % problem->num_experts) % problem->num_experts;
        run->topk_ids[i] = id >= 0 && id < problem->num_experts ? (int32_t)id : -1;
        run->topk_weights[i] =
            weights != NULL ? moe_golden_file_load(weights, i) : 1.0f / (float)top_k;
    }
    run->request.topk_ids = run->topk_ids;
    run->request.topk_weights = run->topk_weights;
    return 0;
}

/* fp8 weights meet fp8 activations unless the user wants them plain. */
static int settle_activations(const struct run_options *options, struct moe_problem *problem,
                              struct moe_cli_error *error)
{
    if (options->activations == NULL) {
        return 0;
    }
    if (strcmp(options->activations, "plain") == 0) {
        problem->intermediate = (struct moe_recipe){0};
        return 0;
    }
    if (problem->intermediate.dtype != MOE_DTYPE_FP8_E4M3) {
        return MOE_CLI_FAIL(error,
                            "--activations %s: the experts of %s are of type %s (gate, up) and %s "
                            "(down); fp8 activations meet fp8 weights",
                            options->activations, options->model,
                            moe_abi_dtype_name(problem->gate_up.dtype),
                            moe_abi_dtype_name(problem->down.dtype));
    }
    return 0;
}

/* Reads the files before the plugin is loaded: what is wrong with them is said first. */
static int read_inputs(const struct run_options *options, struct run *run,
                       struct moe_cli_error *error)
{
    if (moe_checkpoint_layer_open(options->model, options->layer_idx, &run->layer, error) != 0 ||
        settle_activations(options, &run->layer.problem, error) != 0 ||
        moe_rank_split_check(&run->layer.problem, &options->split, error) != 0) {
        return -1;
    }
    if (options->golden != NULL &&
        moe_golden_file_open(options->golden, &run->layer.problem, &run->golden, error) != 0) {
        return -1;
    }
    if (settle_num_tokens(options, run, &run->request.num_tokens, error) != 0 ||
        make_tokens(options, run, error) != 0 || make_routing(options, run, error) != 0) {
        return -1;
    }
    run->request.layer = &run->layer;
    run->request.split = options->split;
    run->request.tokens = run->tokens;
    run->request.wants_experts_output = run->golden.tensors[MOE_GOLDEN_EXPERTS_OUTPUT] != NULL;
    return 0;
}

static int run_layer(const struct run_options *options, struct run *run,
                     struct moe_cli_error *error)
{
    if (moe_plugin_host_open(&options->host, &run->host, error) != 0) {
        return -1;
    }
    if (moe_layer_run(&run->host, &run->request, &run->result, error) != 0) {
        return -1;
    }
    return options->golden == NULL
               ? 0
               : moe_golden_check_compare(&run->golden, &run->layer, run->request.num_tokens,
                                          &run->result, &run->check, error);
}

static int report(const struct run_options *options, const struct run *run, int wants_json)
{
    const struct moe_run_report report = {
        .model = options->model,
        .golden = options->golden,
        .seed = (uint64_t)options->seed,
        .host = &run->host,
        .request = &run->request,
        .result = &run->result,
        .check = options->golden != NULL ? &run->check : NULL,
        .output = moe_run_output_measure(run->result.block_output,
                                         run->request.num_tokens * run->layer.problem.hidden),
    };
    if (wants_json) {
        if (moe_run_report_write_json(&report, stdout) != 0) {
            return MOE_EXIT_USAGE;
        }
    } else {
        moe_run_report_print(&report, stdout);
    }
    const int is_right =
        report.check != NULL ? report.check->is_right : report.output.num_not_finite == 0;
    return is_right ? MOE_EXIT_OK : MOE_EXIT_FINDINGS;
}

static int run_main(int argc, char **argv)
{
    struct run_options options;
    struct moe_args_result args;
    const enum moe_args_outcome outcome = parse(argc, argv, &options, &args);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    struct run run = {.tokens = NULL};
    struct moe_cli_error error = {.message = ""};
    int status = MOE_EXIT_USAGE;
    if (read_inputs(&options, &run, &error) != 0 || run_layer(&options, &run, &error) != 0) {
        fprintf(stderr, "moectl %s: %s\n", moe_command_run.name, error.message);
    } else {
        status = report(&options, &run, args.wants_json);
    }
    moe_layer_run_finish(&run.result);
    moe_plugin_host_finish(&run.host);
    moe_golden_file_close(&run.golden);
    moe_checkpoint_layer_close(&run.layer);
    free(run.tokens);
    free(run.topk_ids);
    free(run.topk_weights);
    return status;
}

const struct moe_command moe_command_run = {
    .name = "run",
    .summary = "Run a MoE layer of a Hugging Face checkpoint, and compare it with golden outputs.",
    .main = run_main,
};
