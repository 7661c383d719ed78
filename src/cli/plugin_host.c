/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin_host.h"

#include "abi_names.h"
#include "cli_file.h"
#include "diagnostic.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct moe_plugin_host_options moe_plugin_host_default_options(void)
{
    return (struct moe_plugin_host_options){.backend = moe_abi_backend_name(MOE_BACKEND_AUTO)};
}

static void print_log(void *self, int32_t level, const char *text, uint64_t text_bytes)
{
    (void)self;
    fprintf(stderr, "[%s] %.*s\n", moe_abi_level_name(level), (int)text_bytes, text);
}

/* Takes the path of the first file that is there of those next to this program. */
static int find_plugin(char *path, struct moe_cli_error *error)
{
    static const char *const places[] = {MOECTL_PLUGIN_IN_BUILD, MOECTL_PLUGIN_INSTALLED};
    char program[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) {
        return MOE_CLI_FAIL(error,
                            "the path of moectl is not known (no /proc), so the plugin was not "
                            "looked for; name it by --plugin SO");
    }
    program[length] = '\0';
    *strrchr(program, '/') = '\0';
    moe_cli_error_set(error, "no plugin next to moectl; looked for");
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i) {
        char *joined = moe_cli_file_join(program, places[i]);
        if (joined == NULL) {
            return moe_cli_fail_memory(error, "looking for the plugin");
        }
        char *resolved = realpath(joined, NULL);
        moe_cli_error_append(error, " %s", joined);
        free(joined);
        const int is_found = resolved != NULL && strlen(resolved) < MOE_PLUGIN_HOST_PATH_BYTES &&
                             moe_cli_file_exists(resolved);
        if (is_found) {
            memcpy(path, resolved, strlen(resolved) + 1);
        }
        free(resolved);
        if (is_found) {
            return 0;
        }
    }
    moe_cli_error_append(error, "; name it by --plugin SO");
    return -1;
}

/* A path with a slash, so that dlopen takes this file and does not search. */
static int take_named_plugin(const char *name, char *path, struct moe_cli_error *error)
{
    const int length = snprintf(path, MOE_PLUGIN_HOST_PATH_BYTES, "%s%s",
                                strchr(name, '/') != NULL ? "" : "./", name);
    if (length < 0 || length >= MOE_PLUGIN_HOST_PATH_BYTES) {
        return MOE_CLI_FAIL(error, "--plugin: the path is longer than %d bytes",
                            MOE_PLUGIN_HOST_PATH_BYTES - 1);
    }
    return 0;
}

int moe_plugin_host_load(const struct moe_plugin_host_options *options,
                         struct moe_plugin_host *host, struct moe_cli_error *error)
{
    memset(host, 0, sizeof *host);
    if ((options->plugin != NULL ? take_named_plugin(options->plugin, host->path, error)
                                 : find_plugin(host->path, error)) != 0) {
        return -1;
    }
    host->image = dlopen(host->path, RTLD_NOW | RTLD_LOCAL);
    if (host->image == NULL) {
        return MOE_CLI_FAIL(error, "the plugin cannot be loaded: %s", dlerror());
    }
    moe_plugin_init_fn *init = NULL;
    void *symbol = dlsym(host->image, MOE_PLUGIN_INIT_SYMBOL);
    if (symbol == NULL) {
        return MOE_CLI_FAIL(error, "%s is no plugin: it has no symbol " MOE_PLUGIN_INIT_SYMBOL,
                            host->path);
    }
    memcpy(&init, &symbol, sizeof init); /* ISO C has no cast from an object to a function */
    MOE_INIT(host->services);
    host->services.abi_major = MOE_ABI_MAJOR;
    host->services.abi_minor = MOE_ABI_MINOR;
    host->services.layout_hash = MOE_ABI_LAYOUT_HASH;
    host->services.self = host;
    host->services.log = options->is_verbose ? print_log : NULL;
    struct moe_error cause;
    MOE_INIT(cause);
    host->api = init(&host->services, &cause);
    if (host->api == NULL) {
        return moe_plugin_host_fail(error, host->path, &cause);
    }
    return 0;
}

static void show_diagnostic(void *self, const struct moe_diagnostic *diagnostic)
{
    struct moe_plugin_host *host = self;
    host->num_diagnostics += 1;
    moe_diagnostic_print(stderr, diagnostic);
}

int moe_plugin_host_create_context(struct moe_plugin_host *host,
                                   const struct moe_plugin_host_options *options,
                                   struct moe_cli_error *error)
{
    struct moe_config_source sources[MOE_ARGS_MAX_TEXTS];
    for (size_t i = 0; i < options->configs.num_texts; ++i) {
        MOE_INIT(sources[i]);
        sources[i].path = options->configs.texts[i];
    }
    struct moe_context_options context_options;
    MOE_INIT(context_options);
    context_options.backend = moe_abi_find_backend(options->backend);
    context_options.ordinal = (int32_t)options->ordinal;
    context_options.num_threads = (int32_t)options->num_threads;
    context_options.config_sources = sources;
    context_options.num_config_sources = (int32_t)options->configs.num_texts;
    context_options.diagnostic = show_diagnostic;
    context_options.diagnostic_self = host;
    struct moe_error cause;
    MOE_INIT(cause);
    const int32_t status =
        host->api->context_create(&host->services, &context_options, &host->context, &cause);
    if (status != MOE_STATUS_OK && host->num_diagnostics > 0) {
        return MOE_CLI_FAIL(error, "the configuration cannot be used: %s",
                            host->api->status_text(status)); /* the findings were printed */
    }
    if (status != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "no context", &cause);
    }
    MOE_INIT(host->device);
    if (host->api->context_device(host->context, &host->device, &cause) != MOE_STATUS_OK) {
        return moe_plugin_host_fail(error, "the context's device", &cause);
    }
    return 0;
}

int moe_plugin_host_open(const struct moe_plugin_host_options *options,
                         struct moe_plugin_host *host, struct moe_cli_error *error)
{
    if (moe_plugin_host_load(options, host, error) != 0) {
        return -1;
    }
    return moe_plugin_host_create_context(host, options, error);
}

void moe_plugin_host_finish(struct moe_plugin_host *host)
{
    if (host->context != NULL) {
        host->api->context_destroy(host->context);
    }
    if (host->image != NULL) {
        dlclose(host->image);
    }
    memset(host, 0, sizeof *host);
}

int moe_plugin_host_fail(struct moe_cli_error *error, const char *what,
                         const struct moe_error *cause)
{
    return MOE_CLI_FAIL(error, "%s: %s", what, cause->message);
}
