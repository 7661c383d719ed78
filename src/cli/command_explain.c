/* SPDX-License-Identifier: Apache-2.0 */
#include "abi_names.h"
#include "args.h"
#include "checkpoint_layer.h"
#include "command.h"
#include "device_option.h"
#include "fp8_recipe.h"
#include "host_report.h"
#include "rank_share.h"
#include "terminal.h"

#include <inttypes.h>
#include <string.h>

static const char details[] = "Tells, for each number of tokens, which tile each operation runs "
                              "with and which rule of which file chose\n"
                              "it, then every rule in order of precedence with the reason why it "
                              "decides or not. Nothing is run, and\n"
                              "only config.json of a model is read. A problem that a plan would "
                              "refuse is explained too, after a line\n"
                              "that says why it is refused.\n"
                              "\n"
                              "Without --sm the device is the one that the plugin would run on "
                              "here. The context honours the environment\n"
                              "variable MOE_PLUGIN_CONFIG as every host's does.";

struct explain_options {
    const char *model;
    int64_t layer_idx;
    struct moe_args_list shape;
    const char *dtype;
    struct moe_args_list tokens;
    struct moe_rank_split split;
    struct moe_device_option device;
    struct moe_plugin_host_options host;
};

enum { shape_experts, shape_top_k, shape_hidden, shape_inter, num_shape_values };

static enum moe_args_outcome parse(int argc, char **argv, struct explain_options *options,
                                   struct moe_args_result *args)
{
    *options = (struct explain_options){.layer_idx = -1,
                                        .dtype = NULL,
                                        .tokens = {.num_values = 3, .values = {1, 64, 4096}},
                                        .split = {1, 1},
                                        .host = moe_plugin_host_default_options()};
    const struct moe_args_option rows[] = {
        {.name = "model",
         .value_name = "DIR",
         .text = &options->model,
         .help = "folder of a Hugging Face checkpoint; its weights need not be there"},
        {.name = "layer",
         .value_name = "N",
         .number = &options->layer_idx,
         .min_value = 0,
         .max_value = INT32_MAX,
         .help = "with --model: layer; without it, the first MoE layer"},
        {.name = "shape",
         .value_name = "E,k,H,I",
         .list = &options->shape,
         .min_value = 1,
         .max_value = INT32_MAX,
         .help = "instead of --model: experts, top-k, hidden, inter of one expert"},
        {.name = "dtype",
         .value_name = "TYPE",
         .choices = moe_abi_dtype_choices(),
         .text = &options->dtype,
         .help = "type of weights and, if it is one for tokens, of tokens, else bf16; fp8_e4m3: "
                 "128 x 128 blocks (a model's own; --shape: bf16)"},
        {.name = "tokens",
         .letter = 'M',
         .value_name = "LIST",
         .list = &options->tokens,
         .min_value = 0,
         .max_value = INT32_MAX,
         .help = "numbers of tokens, separated by commas (1,64,4096)"},
        {.name = "tp",
         .value_name = "N",
         .number = &options->split.tp,
         .min_value = 1,
         .max_value = INT32_MAX,
         .help = "as one of N ranks that split the channels of each expert"},
        {.name = "ep",
         .value_name = "N",
         .number = &options->split.ep,
         .min_value = 1,
         .max_value = INT32_MAX,
         .help = "as one of N ranks that split the experts"},
        MOE_DEVICE_OPTION_ROW_SM(options->device),
        MOE_DEVICE_OPTION_ROW_SM_COUNT(options->device),
        MOE_DEVICE_OPTION_ROW_SMEM_KIB(options->device),
        MOE_DEVICE_OPTION_ROW_NAME(options->device),
        MOE_PLUGIN_HOST_ROW_CONFIG(options->host),
        MOE_PLUGIN_HOST_ROW_PLUGIN(options->host),
        MOE_PLUGIN_HOST_ROW_BACKEND(options->host),
        MOE_PLUGIN_HOST_ROW_THREADS(options->host),
        MOE_PLUGIN_HOST_ROW_VERBOSE(options->host),
    };
    const struct moe_args_command command = {.name = moe_command_explain.name,
                                             .summary = moe_command_explain.summary,
                                             .details = details,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    return moe_args_parse(&command, argc, argv, args, stdout, stderr);
}

/* Weights of `dtype`; tokens too where a layer computes in it, else bf16. */
static void set_dtypes(struct moe_problem *problem, int32_t dtype)
{
    const int is_for_tokens =
        dtype == MOE_DTYPE_FP32 || dtype == MOE_DTYPE_FP16 || dtype == MOE_DTYPE_BF16;
    const struct moe_recipe weights =
        dtype == MOE_DTYPE_FP8_E4M3 ? moe_fp8_weights() : (struct moe_recipe){.dtype = dtype};
    problem->tokens = (struct moe_recipe){.dtype = is_for_tokens ? dtype : MOE_DTYPE_BF16};
    problem->gate_up = weights;
    problem->intermediate = (struct moe_recipe){0};
    problem->down = weights;
}

static int describe_shape(const struct moe_args_list *shape, struct moe_problem *problem,
                          struct moe_cli_error *error)
{
    if (shape->num_values != num_shape_values) {
        return MOE_CLI_FAIL(error,
                            "--shape: %zu numbers are given; it takes four, E,k,H,I: experts, "
                            "top-k, hidden, inter",
                            shape->num_values);
    }
    MOE_INIT(*problem);
    problem->num_experts = (int32_t)shape->values[shape_experts];
    problem->top_k = (int32_t)shape->values[shape_top_k];
    problem->hidden = (int32_t)shape->values[shape_hidden];
    problem->inter = (int32_t)shape->values[shape_inter];
    problem->activation = MOE_ACTIVATION_SILU;
    problem->gating = MOE_GATING_SOFTMAX;
    set_dtypes(problem, MOE_DTYPE_BF16);
    return 0;
}

/* The problem of the first rank. */
static int describe_problem(const struct explain_options *options, struct moe_problem *problem,
                            struct moe_cli_error *error)
{
    struct moe_problem whole;
    if ((options->model != NULL) == (options->shape.num_values > 0)) {
        return MOE_CLI_FAIL(error, "give either --model DIR or --shape E,k,H,I");
    }
    if (options->model == NULL) {
        if (options->layer_idx >= 0) {
            return MOE_CLI_FAIL(error, "--layer needs --model");
        }
        if (describe_shape(&options->shape, &whole, error) != 0) {
            return -1;
        }
    } else {
        struct moe_checkpoint_layer layer;
        if (moe_checkpoint_layer_describe(options->model, options->layer_idx, &layer, error) != 0) {
            return -1;
        }
        whole = layer.problem;
    }
    if (options->dtype != NULL) {
        set_dtypes(&whole, moe_abi_find_dtype(options->dtype));
    }
    if (moe_rank_split_check(&whole, &options->split, error) != 0) {
        return -1;
    }
    struct moe_route_filter filter;
    moe_rank_split_take(&whole, &options->split, 0, problem, &filter);
    return 0;
}

/* Where the callbacks of explain write. */
struct sink {
    FILE *out;
    struct moe_cli_json *json;
    int tile_width;
};

static void measure_choice(void *self, const struct moe_choice *choice)
{
    struct sink *sink = self;
    const int width = snprintf(NULL, 0, "%s", choice->tile_name);
    sink->tile_width = width > sink->tile_width ? width : sink->tile_width;
}

static void print_choice(void *self, const struct moe_choice *choice)
{
    const struct sink *sink = self;
    char source[MOE_HOST_REPORT_SOURCE_BYTES];
    moe_host_report_format_source(choice->source == MOE_CHOICE_RULE, choice->rule, choice->file,
                                  choice->line, source);
    fprintf(sink->out, "  %-17s %-*s  %s\n", moe_abi_op_name(choice->op), sink->tile_width,
            choice->tile_name, choice->tile >= 0 ? source : "");
}

static void print_rule(void *self, const struct moe_explain_rule *rule)
{
    const struct sink *sink = self;
    fprintf(sink->out, "  %s%3" PRId32 ". %s \"%s\" (%s:%" PRId32 ")%s: %s\n",
            moe_terminal_style(sink->out, rule->chosen ? MOE_TERMINAL_GREEN : MOE_TERMINAL_PLAIN),
            rule->precedence, rule->chosen ? "*" : " ", rule->rule, rule->file, rule->line,
            moe_terminal_style(sink->out, MOE_TERMINAL_PLAIN), rule->reason);
}

static void put_choice(void *self, const struct moe_choice *choice)
{
    const struct sink *sink = self;
    moe_cli_json_begin_object(sink->json, NULL);
    moe_cli_json_put_text(sink->json, "op", moe_abi_op_name(choice->op));
    moe_cli_json_put_int(sink->json, "tile_index", choice->tile);
    moe_cli_json_put_text(sink->json, "tile", choice->tile_name);
    moe_cli_json_put_bool(sink->json, "by_rule", choice->source == MOE_CHOICE_RULE);
    moe_cli_json_put_text(sink->json, "rule", choice->rule);
    moe_cli_json_put_text(sink->json, "file", choice->file);
    moe_cli_json_put_int(sink->json, "line", choice->line);
    moe_cli_json_put_int(sink->json, "min_tokens", choice->min_tokens);
    moe_cli_json_put_int(sink->json, "max_tokens", choice->max_tokens);
    moe_cli_json_end_object(sink->json);
}

static void put_rule(void *self, const struct moe_explain_rule *rule)
{
    const struct sink *sink = self;
    moe_cli_json_begin_object(sink->json, NULL);
    moe_cli_json_put_int(sink->json, "precedence", rule->precedence);
    moe_cli_json_put_bool(sink->json, "decides", rule->chosen);
    moe_cli_json_put_text(sink->json, "rule", rule->rule);
    moe_cli_json_put_text(sink->json, "file", rule->file);
    moe_cli_json_put_int(sink->json, "line", rule->line);
    moe_cli_json_put_text(sink->json, "reason", rule->reason);
    moe_cli_json_end_object(sink->json);
}

/* The question, but for the number of tokens. */
struct question {
    const struct moe_plugin_host *host;
    const struct moe_device *device;
    const struct moe_problem *problem;
    struct moe_error support; /* status OK: the device runs the problem; else why it does not */
};

/* Rules are explained for what no version runs yet, too, so it is said whether this one does. */
static void ask_support(struct question *question, const struct moe_args_list *tokens)
{
    struct moe_problem problem = *question->problem;
    for (size_t i = 0; i < tokens->num_values; ++i) {
        const int64_t num_tokens = tokens->values[i];
        problem.max_tokens = num_tokens > problem.max_tokens ? num_tokens : problem.max_tokens;
    }
    problem.max_tokens = problem.max_tokens > 0 ? problem.max_tokens : 1;
    MOE_INIT(question->support);
    question->support.status = question->host->api->supports(
        question->device, &problem, UINT64_C(1) << MOE_OP_LAYER, &question->support);
}

static int ask(const struct question *question, int64_t num_tokens, struct sink *sink,
               void (*rule)(void *self, const struct moe_explain_rule *rule),
               void (*choice)(void *self, const struct moe_choice *choice),
               struct moe_cli_error *error)
{
    struct moe_explain_sink callbacks;
    struct moe_error cause;
    MOE_INIT(callbacks);
    MOE_INIT(cause);
    callbacks.self = sink;
    callbacks.rule = rule;
    callbacks.choice = choice;
    const struct moe_plugin_api *api = question->host->api;
    if (api->explain(question->host->context, question->device, question->problem, num_tokens,
                     &callbacks, &cause) != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "the plugin does not explain this", &cause);
    }
    return 0;
}

static int print_answers(const struct question *question, const struct moe_args_list *tokens,
                         struct moe_cli_error *error)
{
    char text[MOE_HOST_REPORT_TEXT_BYTES];
    printf("layer   %s\n", moe_host_report_format_sizes(question->problem, text));
    printf("device  %s\n", moe_host_report_format_device(question->device, text));
    if (question->support.status != MOE_STATUS_OK) {
        printf("%srefused%s %s\n", moe_terminal_style(stdout, MOE_TERMINAL_BOLD),
               moe_terminal_style(stdout, MOE_TERMINAL_PLAIN), question->support.message);
    }
    for (size_t i = 0; i < tokens->num_values; ++i) {
        struct sink sink = {.out = stdout};
        const int64_t num_tokens = tokens->values[i];
        if (ask(question, num_tokens, &sink, NULL, measure_choice, error) != 0) {
            return -1;
        }
        printf("\n%s%" PRId64 " token%s%s\n", moe_terminal_style(stdout, MOE_TERMINAL_BOLD),
               num_tokens, num_tokens == 1 ? "" : "s",
               moe_terminal_style(stdout, MOE_TERMINAL_PLAIN));
        if (ask(question, num_tokens, &sink, NULL, print_choice, error) != 0) {
            return -1;
        }
        printf("  rules in order of precedence (* decides):\n");
        if (ask(question, num_tokens, &sink, print_rule, NULL, error) != 0) {
            return -1;
        }
    }
    return 0;
}

static int put_answer(const struct question *question, int64_t num_tokens,
                      struct moe_cli_json *json, struct moe_cli_error *error)
{
    struct sink sink = {.json = json};
    moe_cli_json_begin_object(json, NULL);
    moe_cli_json_put_int(json, "num_tokens", num_tokens);
    moe_cli_json_begin_array(json, "choices");
    if (ask(question, num_tokens, &sink, NULL, put_choice, error) != 0) {
        return -1;
    }
    moe_cli_json_end_array(json);
    moe_cli_json_begin_array(json, "rules");
    if (ask(question, num_tokens, &sink, put_rule, NULL, error) != 0) {
        return -1;
    }
    moe_cli_json_end_array(json);
    moe_cli_json_end_object(json);
    return 0;
}

static int write_answers(const struct question *question, const struct moe_args_list *tokens,
                         struct moe_cli_error *error)
{
    struct moe_cli_json json;
    moe_cli_json_init(&json, stdout);
    moe_cli_json_begin_object(&json, NULL);
    moe_host_report_put_plugin(&json, question->host);
    moe_host_report_put_device(&json, "device", question->device);
    moe_host_report_put_problem(&json, question->problem);
    if (question->support.status == MOE_STATUS_OK) {
        moe_cli_json_put_null(&json, "refusal");
    } else {
        moe_cli_json_put_text(&json, "refusal", question->support.message);
    }
    moe_cli_json_begin_array(&json, "answers");
    for (size_t i = 0; i < tokens->num_values; ++i) {
        if (put_answer(question, tokens->values[i], &json, error) != 0) {
            return -1;
        }
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json) == 0 ? 0
                                           : MOE_CLI_FAIL(error, "the result cannot be written");
}

static int explain(const struct explain_options *options, int wants_json,
                   struct moe_plugin_host *host, struct moe_cli_error *error)
{
    struct moe_problem problem;
    struct moe_device device;
    if (describe_problem(options, &problem, error) != 0) {
        return -1;
    }
    const int is_described = moe_device_option_describe(&options->device, &device, error);
    if (is_described < 0 || moe_plugin_host_open(&options->host, host, error) != 0) {
        return -1;
    }
    struct question question = {
        .host = host, .device = is_described ? &device : &host->device, .problem = &problem};
    struct sink nowhere = {.out = NULL};
    for (size_t i = 0; i < options->tokens.num_values; ++i) { /* all or nothing is printed */
        if (ask(&question, options->tokens.values[i], &nowhere, NULL, NULL, error) != 0) {
            return -1;
        }
    }
    ask_support(&question, &options->tokens);
    return wants_json ? write_answers(&question, &options->tokens, error)
                      : print_answers(&question, &options->tokens, error);
}

static int explain_main(int argc, char **argv)
{
    struct explain_options options;
    struct moe_args_result args;
    const enum moe_args_outcome outcome = parse(argc, argv, &options, &args);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    struct moe_plugin_host host = {.api = NULL};
    struct moe_cli_error error = {.message = ""};
    const int status = explain(&options, args.wants_json, &host, &error);
    if (status != 0) {
        fprintf(stderr, "moectl %s: %s\n", moe_command_explain.name, error.message);
    }
    moe_plugin_host_finish(&host);
    return status == 0 ? MOE_EXIT_OK : MOE_EXIT_USAGE;
}

const struct moe_command moe_command_explain = {
    .name = "explain",
    .summary = "Tell which rule chooses which tile, and why the others do not.",
    .main = explain_main,
};
