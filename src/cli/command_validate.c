/* SPDX-License-Identifier: Apache-2.0 */
#include "args.h"
#include "command.h"
#include "device_option.h"
#include "diagnostic.h"
#include "plugin_host.h"

#include <string.h>

static const char details[] =
    "Each file is checked on its own, on top of the plugin's built-in rules, and everything that "
    "is\n"
    "wrong with it is told. With --sm or --device-of-this-machine, rules that match that device "
    "are also\n"
    "checked against it: is each tile built, and does it fit?\n"
    "\n"
    "Exit status: 0 all files are right; 1 a file has an error; 2 a file could not be read.";

struct validate_options {
    struct moe_plugin_host_options host;
    struct moe_device_option device;
    int uses_this_machine;
};

/* Findings of one file go where `json` says: into the open array, or to stdout when it is NULL. */
struct findings {
    struct moe_cli_json *json;
    int num_errors;
    int num_warnings;
};

static void take_finding(void *self, const struct moe_diagnostic *diagnostic)
{
    struct findings *findings = self;
    findings->num_errors += diagnostic->level == MOE_LEVEL_ERROR;
    findings->num_warnings += diagnostic->level != MOE_LEVEL_ERROR;
    if (findings->json != NULL) {
        moe_diagnostic_put_json(findings->json, diagnostic);
    } else {
        moe_diagnostic_print(stdout, diagnostic);
    }
}

static enum moe_args_outcome parse(int argc, char **argv, struct validate_options *options,
                                   struct moe_args_result *args)
{
    *options = (struct validate_options){.host = moe_plugin_host_default_options()};
    const struct moe_args_option rows[] = {
        MOE_DEVICE_OPTION_ROW_SM(options->device),
        MOE_DEVICE_OPTION_ROW_SM_COUNT(options->device),
        MOE_DEVICE_OPTION_ROW_SMEM_KIB(options->device),
        MOE_DEVICE_OPTION_ROW_NAME(options->device),
        {.name = "device-of-this-machine",
         .flag = &options->uses_this_machine,
         .help = "check rules against the device that a plugin would run on here"},
        MOE_PLUGIN_HOST_ROW_PLUGIN(options->host),
    };
    const struct moe_args_command command = {.name = moe_command_validate.name,
                                             .summary = moe_command_validate.summary,
                                             .operands = "FILE...",
                                             .min_operands = 1,
                                             .max_operands = 1 << 20,
                                             .details = details,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    return moe_args_parse(&command, argc, argv, args, stdout, stderr);
}

/* The device to check against. Returns 1, 0 for none, or -1 with a sentence. */
static int choose_device(const struct validate_options *options, const struct moe_plugin_host *host,
                         struct moe_device *device, struct moe_cli_error *error)
{
    const int is_described = moe_device_option_describe(&options->device, device, error);
    if (is_described != 0 || !options->uses_this_machine) {
        return is_described == 1 && options->uses_this_machine
                   ? MOE_CLI_FAIL(error, "--sm and --device-of-this-machine exclude each other")
                   : is_described;
    }
    struct moe_error cause;
    MOE_INIT(cause);
    MOE_INIT(*device);
    if (host->api->device_probe(MOE_BACKEND_AUTO, 0, device, &cause) != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "the device of this machine", &cause);
    }
    return 1;
}

/* Checks one file. Returns its exit status. */
static int check_file(const struct moe_plugin_host *host, const char *path,
                      const struct moe_device *device, struct findings *findings,
                      struct moe_cli_json *json)
{
    struct moe_config_source source;
    struct moe_error cause;
    MOE_INIT(source);
    MOE_INIT(cause);
    source.path = path;
    if (json != NULL) {
        moe_cli_json_begin_object(json, NULL);
        moe_cli_json_put_text(json, "file", path);
        moe_cli_json_begin_array(json, "diagnostics");
    }
    const int32_t status = host->api->config_validate(&host->services, &source, 1, device,
                                                      take_finding, findings, &cause);
    if (json != NULL) {
        moe_cli_json_end_array(json);
        moe_cli_json_put_text(json, "status", host->api->status_name(status));
        moe_cli_json_end_object(json);
    }
    switch (status) {
    case MOE_STATUS_OK:
        return MOE_EXIT_OK;
    case MOE_STATUS_CONFIG:
        return MOE_EXIT_FINDINGS;
    default:
        if (findings->num_errors == 0) {
            fprintf(stderr, "moectl validate: %s: %s\n", path, cause.message);
        }
        return MOE_EXIT_USAGE;
    }
}

static int check_files(const struct moe_plugin_host *host, const struct moe_args_result *args,
                       const struct moe_device *device)
{
    struct moe_cli_json json;
    int worst = MOE_EXIT_OK;
    int num_errors = 0;
    int num_warnings = 0;
    moe_cli_json_init(&json, stdout);
    if (args->wants_json) {
        moe_cli_json_begin_object(&json, NULL);
        moe_cli_json_begin_array(&json, "files");
    }
    for (int i = 0; i < args->num_operands; ++i) {
        struct findings findings = {.json = args->wants_json ? &json : NULL};
        const int status = check_file(host, args->operands[i], device, &findings, findings.json);
        worst = status > worst ? status : worst;
        num_errors += findings.num_errors;
        num_warnings += findings.num_warnings;
        if (!args->wants_json && findings.num_errors + findings.num_warnings == 0 &&
            status == MOE_EXIT_OK) {
            printf("%s: right\n", args->operands[i]);
        }
    }
    if (!args->wants_json) {
        if (num_errors + num_warnings > 0) {
            printf("%d error%s, %d warning%s\n", num_errors, num_errors == 1 ? "" : "s",
                   num_warnings, num_warnings == 1 ? "" : "s");
        }
        return worst;
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_put_int(&json, "num_errors", num_errors);
    moe_cli_json_put_int(&json, "num_warnings", num_warnings);
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json) == 0 ? worst : MOE_EXIT_USAGE;
}

static int validate_main(int argc, char **argv)
{
    struct validate_options options;
    struct moe_args_result args;
    const enum moe_args_outcome outcome = parse(argc, argv, &options, &args);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    struct moe_plugin_host host = {.api = NULL};
    struct moe_device device;
    struct moe_cli_error error = {.message = ""};
    int status = MOE_EXIT_USAGE;
    int has_device = -1;
    if (moe_plugin_host_load(&options.host, &host, &error) == 0) {
        has_device = choose_device(&options, &host, &device, &error);
    }
    if (has_device < 0) {
        fprintf(stderr, "moectl %s: %s\n", moe_command_validate.name, error.message);
    } else {
        status = check_files(&host, &args, has_device ? &device : NULL);
    }
    moe_plugin_host_finish(&host);
    return status;
}

const struct moe_command moe_command_validate = {
    .name = "validate",
    .summary = "Check configuration files and tell everything that is wrong with them.",
    .main = validate_main,
};
