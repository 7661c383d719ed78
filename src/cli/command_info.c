/* SPDX-License-Identifier: Apache-2.0 */
#include "abi_names.h"
#include "args.h"
#include "command.h"
#include "host_report.h"
#include "terminal.h"

#include <inttypes.h>
#include <string.h>

static const char details[] =
    "Creates a context, so that what is told about device and configuration is what a server would "
    "get. The\n"
    "context honours the environment variable MOE_PLUGIN_CONFIG as every host's does.\n"
    "\n"
    "Exit status: 0; 1 when --self-test finds a wrong answer; 2 when plugin or context cannot be "
    "used.";

struct info_options {
    struct moe_plugin_host_options host;
    int wants_self_test;
};

/* What is asked of the context. */
struct facts {
    struct moe_config_info config;
    int is_self_tested;
    int32_t self_test; /* status */
    struct moe_error self_test_error;
};

static enum moe_args_outcome parse(int argc, char **argv, struct info_options *options,
                                   struct moe_args_result *args)
{
    *options = (struct info_options){.host = moe_plugin_host_default_options()};
    const struct moe_args_option rows[] = {
        {.name = "self-test",
         .flag = &options->wants_self_test,
         .help = "run the known answers that the plugin carries"},
        MOE_PLUGIN_HOST_ROW_CONFIG(options->host),
        MOE_PLUGIN_HOST_ROW_PLUGIN(options->host),
        MOE_PLUGIN_HOST_ROW_BACKEND(options->host),
        MOE_PLUGIN_HOST_ROW_ORDINAL(options->host),
        MOE_PLUGIN_HOST_ROW_THREADS(options->host),
        MOE_PLUGIN_HOST_ROW_VERBOSE(options->host),
    };
    const struct moe_args_command command = {.name = moe_command_info.name,
                                             .summary = moe_command_info.summary,
                                             .details = details,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    return moe_args_parse(&command, argc, argv, args, stdout, stderr);
}

static int collect(const struct moe_plugin_host *host, int wants_self_test, struct facts *facts,
                   struct moe_cli_error *error)
{
    struct moe_error cause;
    MOE_INIT(cause);
    MOE_INIT(facts->config);
    MOE_INIT(facts->self_test_error);
    if (host->api->config_info(host->context, &facts->config, &cause) != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "the configuration", &cause);
    }
    facts->is_self_tested = wants_self_test;
    facts->self_test = wants_self_test
                           ? host->api->self_test(host->context, &facts->self_test_error)
                           : MOE_STATUS_OK;
    return 0;
}

static void print_label(const char *label)
{
    printf("%s%-15s%s", moe_terminal_style(stdout, MOE_TERMINAL_BOLD), label,
           moe_terminal_style(stdout, MOE_TERMINAL_PLAIN));
}

static int next_backend(const struct moe_plugin_host *host, int32_t backend_idx,
                        struct moe_backend_info *info)
{
    MOE_INIT(*info);
    return host->api->backend_info(backend_idx, info, NULL) == MOE_STATUS_OK;
}

static void print_backends(const struct moe_plugin_host *host)
{
    struct moe_backend_info info;
    for (int32_t i = 0; next_backend(host, i, &info); ++i) {
        print_label(i == 0 ? "backends" : "");
        printf("%s: %s%s", info.name, info.available ? "available" : "off, ",
               info.available ? "" : info.reason);
        if (info.min_driver > 0) {
            printf(" (needs driver %" PRId32 ".%" PRId32 " or newer)", info.min_driver / 1000,
                   info.min_driver % 1000 / 10);
        }
        printf("\n");
    }
}

static int next_gpu(const struct moe_plugin_host *host, int32_t ordinal, struct moe_device *device)
{
    MOE_INIT(*device);
    return host->api->device_probe(MOE_BACKEND_CUDA, ordinal, device, NULL) == MOE_STATUS_OK;
}

static void print_gpus(const struct moe_plugin_host *host)
{
    struct moe_device device;
    char text[MOE_HOST_REPORT_TEXT_BYTES];
    for (int32_t i = 0; next_gpu(host, i, &device); ++i) {
        print_label(i == 0 ? "GPUs" : "");
        printf("%" PRId32 ": %s\n", i, moe_host_report_format_device(&device, text));
    }
}

static void print_facts(const struct moe_plugin_host *host, const struct facts *facts)
{
    const struct moe_plugin_api *api = host->api;
    const struct moe_config_info *config = &facts->config;
    char text[MOE_HOST_REPORT_TEXT_BYTES];
    print_label("plugin");
    printf("%s %s\n", api->name, api->version);
    print_label("path");
    printf("%s\n", host->path);
    print_label("source id");
    printf("%s\n", api->source_id);
    print_label("kernel-set id");
    printf("%s\n", api->kernel_set_id);
    print_label("ABI");
    printf("%" PRIu32 ".%" PRIu32 ", layout %016" PRIx64 "\n", api->abi_major, api->abi_minor,
           api->layout_hash);
    print_backends(host);
    print_gpus(host);
    print_label("device");
    printf("%s\n", moe_host_report_format_device(&host->device, text));
    print_label("configuration");
    printf("%" PRId32 " rule%s in %" PRId32 " layer%s, fingerprint %016" PRIx64
           ", generation %" PRIu64 "\n",
           config->num_rules, config->num_rules == 1 ? "" : "s", config->num_layers,
           config->num_layers == 1 ? "" : "s", config->fingerprint, config->generation);
    print_label("layers");
    printf("%s\n", config->layers);
    if (facts->is_self_tested) {
        print_label("self-test");
        printf("%s\n", facts->self_test == MOE_STATUS_OK ? "every known answer is right"
                                                         : facts->self_test_error.message);
    }
}

static void put_backends(struct moe_cli_json *json, const struct moe_plugin_host *host)
{
    struct moe_backend_info info;
    moe_cli_json_begin_array(json, "backends");
    for (int32_t i = 0; next_backend(host, i, &info); ++i) {
        moe_cli_json_begin_object(json, NULL);
        moe_cli_json_put_text(json, "name", info.name);
        moe_cli_json_put_bool(json, "available", info.available);
        moe_cli_json_put_text(json, "reason", info.available ? NULL : info.reason);
        moe_cli_json_put_int(json, "min_driver", info.min_driver);
        moe_cli_json_end_object(json);
    }
    moe_cli_json_end_array(json);
}

static void put_gpus(struct moe_cli_json *json, const struct moe_plugin_host *host)
{
    struct moe_device device;
    moe_cli_json_begin_array(json, "gpus");
    for (int32_t i = 0; next_gpu(host, i, &device); ++i) {
        moe_host_report_put_device(json, NULL, &device);
    }
    moe_cli_json_end_array(json);
}

static int write_facts(const struct moe_plugin_host *host, const struct facts *facts)
{
    const struct moe_config_info *config = &facts->config;
    struct moe_cli_json json;
    moe_cli_json_init(&json, stdout);
    moe_cli_json_begin_object(&json, NULL);
    moe_host_report_put_plugin(&json, host);
    put_backends(&json, host);
    put_gpus(&json, host);
    moe_host_report_put_device(&json, "device", &host->device);
    moe_cli_json_begin_object(&json, "configuration");
    moe_cli_json_put_int(&json, "num_rules", config->num_rules);
    moe_cli_json_put_int(&json, "num_layers", config->num_layers);
    moe_cli_json_put_text(&json, "layers", config->layers);
    moe_cli_json_put_hash(&json, "fingerprint", config->fingerprint);
    moe_cli_json_put_int(&json, "generation", (int64_t)config->generation);
    moe_cli_json_end_object(&json);
    if (facts->is_self_tested) {
        moe_cli_json_begin_object(&json, "self_test");
        moe_cli_json_put_bool(&json, "right", facts->self_test == MOE_STATUS_OK);
        moe_cli_json_put_text(&json, "message",
                              facts->self_test == MOE_STATUS_OK ? NULL
                                                                : facts->self_test_error.message);
        moe_cli_json_end_object(&json);
    }
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json);
}

static int info_main(int argc, char **argv)
{
    struct info_options options;
    struct moe_args_result args;
    const enum moe_args_outcome outcome = parse(argc, argv, &options, &args);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    struct moe_plugin_host host = {.api = NULL};
    struct facts facts;
    struct moe_cli_error error = {.message = ""};
    int status = MOE_EXIT_USAGE;
    if (moe_plugin_host_open(&options.host, &host, &error) != 0 ||
        collect(&host, options.wants_self_test, &facts, &error) != 0) {
        fprintf(stderr, "moectl %s: %s\n", moe_command_info.name, error.message);
    } else {
        status = facts.self_test == MOE_STATUS_OK ? MOE_EXIT_OK : MOE_EXIT_FINDINGS;
        if (!args.wants_json) {
            print_facts(&host, &facts);
        } else if (write_facts(&host, &facts) != 0) {
            status = MOE_EXIT_USAGE;
        }
    }
    moe_plugin_host_finish(&host);
    return status;
}

const struct moe_command moe_command_info = {
    .name = "info",
    .summary = "Tell what a plugin is, where it can run and how it is configured.",
    .main = info_main,
};
