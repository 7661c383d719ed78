/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin, loaded as any host loads it: dlopen, one symbol, the function table, a context.
 */
#ifndef MOE_PLUGIN_HOST_H
#define MOE_PLUGIN_HOST_H

#include <stdint.h>

#include "args.h"
#include "cli_error.h"
#include "moe_plugin.h"

/* What a command line says about the plugin. Begin with moe_plugin_host_default_options. */
struct moe_plugin_host_options {
    const char *plugin;            /* path; NULL: looked for next to moectl */
    struct moe_args_texts configs; /* YAML files, later ones overlay earlier ones */
    const char *backend;           /* name in MOE_BACKEND_LIST */
    int64_t num_threads;           /* 0: as many as the process may use */
    int64_t ordinal;               /* of the GPU */
    int is_verbose;                /* the plugin's log goes to stderr */
};
struct moe_plugin_host_options moe_plugin_host_default_options(void);

/* Rows for a subcommand's table of options. */
#define MOE_PLUGIN_HOST_ROW_PLUGIN(options)                                          \
    {                                                                                \
        .name = "plugin", .value_name = "SO", .text = &(options).plugin,             \
        .help = "plugin to load; without it, the one built or installed with moectl" \
    }
#define MOE_PLUGIN_HOST_ROW_CONFIG(options)                                          \
    {                                                                                \
        .name = "config", .value_name = "FILE", .texts = &(options).configs,         \
        .help = "YAML rules on top of the built-in ones; may be given several times" \
    }
#define MOE_PLUGIN_HOST_ROW_BACKEND(options)                                                 \
    {                                                                                        \
        .name = "backend", .choices = moe_abi_backend_choices(), .text = &(options).backend, \
        .help = "where to run; auto: a GPU if there is one"                                  \
    }
#define MOE_PLUGIN_HOST_ROW_ORDINAL(options)                                                 \
    {                                                                                        \
        .name = "ordinal", .value_name = "N", .number = &(options).ordinal, .min_value = 0,  \
        .max_value = INT32_MAX, .help = "number of the GPU, as `moectl info` lists them (0)" \
    }
#define MOE_PLUGIN_HOST_ROW_THREADS(options)                                                    \
    {                                                                                           \
        .name = "threads", .value_name = "N", .number = &(options).num_threads, .min_value = 0, \
        .max_value = INT32_MAX, .help = "CPU threads; 0: as many as this process may use"       \
    }
#define MOE_PLUGIN_HOST_ROW_VERBOSE(options)                             \
    {                                                                    \
        .name = "verbose", .letter = 'v', .flag = &(options).is_verbose, \
        .help = "show the plugin's log on stderr"                        \
    }

enum { MOE_PLUGIN_HOST_PATH_BYTES = 4096 };

/* Caller-owned, must not move while the context lives. */
struct moe_plugin_host {
    const struct moe_plugin_api *api;
    struct moe_context *context; /* NULL until moe_plugin_host_create_context */
    struct moe_device device;    /* the context's */
    char path[MOE_PLUGIN_HOST_PATH_BYTES];
    struct moe_host services;
    void *image;
    int64_t num_diagnostics; /* printed while the context was created */
};

/* Finds and opens the plugin and asks it for its table. Returns 0, or -1 with a sentence (the
 * dynamic linker's or the plugin's). Finish the host either way. */
int moe_plugin_host_load(const struct moe_plugin_host_options *options,
                         struct moe_plugin_host *host, struct moe_cli_error *error);

/* Creates the context of a loaded plugin. What is wrong in configuration files is printed to
 * stderr, with the line and a caret. Returns 0, or -1 with a sentence. */
int moe_plugin_host_create_context(struct moe_plugin_host *host,
                                   const struct moe_plugin_host_options *options,
                                   struct moe_cli_error *error);

/* Both of the above. */
int moe_plugin_host_open(const struct moe_plugin_host_options *options,
                         struct moe_plugin_host *host, struct moe_cli_error *error);

/* Destroys the context, unloads the plugin. A zeroed struct is allowed. */
void moe_plugin_host_finish(struct moe_plugin_host *host);

/* Sets the sentence to "<what>: <the plugin's>" and returns -1. */
int moe_plugin_host_fail(struct moe_cli_error *error, const char *what,
                         const struct moe_error *cause);

#endif
