/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-canary: tries a plugin in a process of its own, so that a crash or a hang ends nothing else.
 *
 *   moe-canary [--backend NAME] [--ordinal N] [--skip-trust] PLUGIN
 *
 * Opens the plugin as a host would, makes a context with one thread, runs the self-test, destroys
 * the context. The last line of its output is "moe-canary: passed", or "moe-canary: refused: " and
 * the reason. Exit status 0: passed; 1: refused; 2: wrong arguments. The loader starts it with
 * --inherited (the plugin is open on a descriptor, PLUGIN is its name), --parent PID (it ends with
 * that process) and --backend-id.
 */
#define _GNU_SOURCE

#include "canary_protocol.h"
#include "image.h"
#include "loader_status.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

struct arguments {
    const char *path;
    long parent;
    int32_t backend;
    int32_t ordinal;
    int is_inherited;
    uint32_t flags;
};

static void say(const char *prefix, const char *text)
{
    char line[768];
    int needed = snprintf(line, sizeof(line) - 1, "%s%s", prefix, text);
    size_t num_bytes = needed < (int)sizeof(line) - 1 ? (size_t)needed : sizeof(line) - 2;
    line[num_bytes] = '\n';
    /* Nothing can be done if nobody listens; the exit status still tells. */
    ssize_t written = write(STDOUT_FILENO, line, num_bytes + 1);
    (void)written;
}

/* ---- arguments ---- */

static int read_number(const char *text, long limit, long *number)
{
    char *end = NULL;
    errno = 0;
    *number = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *number >= 0 && *number <= limit;
}

static int read_backend(const char *name, int32_t *backend)
{
#define BACKEND_ROW(constant, value, text) \
    if (strcmp(name, text) == 0) {         \
        *backend = value;                  \
        return 1;                          \
    }
    MOE_BACKEND_LIST(BACKEND_ROW)
    return 0;
}

static int refuse_argument(const char *what, const char *value)
{
    char text[512];
    snprintf(text, sizeof(text),
             "%s %.200s; usage: " /* the rest is the same for all */
             "moe-canary [--backend auto|cpu|cuda] [--ordinal N] [--skip-trust] "
             "PLUGIN",
             what, value);
    say(MOE_CANARY_REFUSAL, text);
    return 0;
}

static int read_arguments(int num_words, char **words, struct arguments *arguments)
{
    static const struct option options[] = {{"backend", required_argument, NULL, 'b'},
                                            {"backend-id", required_argument, NULL, 'i'},
                                            {"ordinal", required_argument, NULL, 'o'},
                                            {"parent", required_argument, NULL, 'p'},
                                            {"inherited", no_argument, NULL, 'f'},
                                            {"skip-trust", no_argument, NULL, 's'},
                                            {NULL, 0, NULL, 0}};
    memset(arguments, 0, sizeof(*arguments));
    opterr = 0;
    for (int found; (found = getopt_long(num_words, words, "", options, NULL)) != -1;) {
        long number = 0;
        if (found == 'b' && !read_backend(optarg, &arguments->backend)) {
            return refuse_argument("unknown backend", optarg);
        }
        if ((found == 'i' || found == 'o' || found == 'p') &&
            !read_number(optarg, INT32_MAX, &number)) {
            return refuse_argument("not a number:", optarg);
        }
        switch (found) {
        case 'b':
            break;
        case 'i':
            arguments->backend = (int32_t)number;
            break;
        case 'o':
            arguments->ordinal = (int32_t)number;
            break;
        case 'p':
            arguments->parent = number;
            break;
        case 'f':
            arguments->is_inherited = 1;
            break;
        case 's':
            arguments->flags |= MOE_LOADER_SKIP_TRUST;
            break;
        default:
            return refuse_argument("unknown argument", words[optind - 1]);
        }
    }
    if (optind + 1 != num_words) {
        return refuse_argument("one PLUGIN is expected, found",
                               optind == num_words ? "none" : words[optind + 1]);
    }
    arguments->path = words[optind];
    return 1;
}

/* ---- being harmless ---- */

/* What the host had open is not the plugin's business. */
static void close_others(int first)
{
    DIR *entries = opendir("/proc/self/fd");
    if (entries == NULL) {
        return;
    }
    for (struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        long number = 0;
        if (read_number(entry->d_name, INT32_MAX, &number) && number >= first &&
            number != dirfd(entries)) {
            close((int)number);
        }
    }
    closedir(entries);
}

/* No core file, and no life after the host's. */
static int settle(const struct arguments *arguments)
{
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    close_others(arguments->is_inherited ? MOE_CANARY_DESCRIPTOR + 1 : MOE_CANARY_DESCRIPTOR);
    if (arguments->parent == 0) {
        return 1;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return getppid() == (pid_t)arguments->parent; /* it may have died before the line above */
}

/* ---- the steps ---- */

static int32_t try_context(const struct moe_plugin_api *api, const struct moe_host *host,
                           const struct arguments *arguments, struct moe_error *error)
{
    struct moe_context_options options;
    MOE_INIT(options);
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    options.backend = arguments->backend;
    options.ordinal = arguments->ordinal;
    options.num_threads = 1; /* the host's cores are busy */
    struct moe_context *context = NULL;
    say(MOE_CANARY_STEP, "context_create");
    int32_t status = api->context_create(host, &options, &context, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    say(MOE_CANARY_STEP, "self_test");
    status = api->self_test(context, error);
    say(MOE_CANARY_STEP, "context_destroy");
    api->context_destroy(context);
    return status;
}

static int32_t try_plugin(const struct arguments *arguments, struct moe_error *error)
{
    struct moe_host host;
    MOE_INIT(host);
    host.abi_major = MOE_ABI_MAJOR;
    host.abi_minor = MOE_ABI_MINOR;
    host.layout_hash = MOE_ABI_LAYOUT_HASH;
    struct moe_loader_open_options options;
    MOE_INIT(options);
    /* A memfd: a crash here leaves no file. */
    options.flags = arguments->flags | MOE_LOADER_USE_MEMFD;
    struct moe_loader_image *image = NULL;
    say(MOE_CANARY_STEP, "open");
    int32_t status = arguments->is_inherited
                         ? moe_image_prepare_descriptor(MOE_CANARY_DESCRIPTOR, arguments->path,
                                                        &options, &image, error)
                         : moe_image_prepare(arguments->path, &options, &image, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    say(MOE_CANARY_STEP, "moe_plugin_init");
    status = moe_image_map(image, &host, error);
    if (status == MOE_STATUS_OK) {
        status = try_context(moe_loader_image_api(image), &host, arguments, error);
    }
    moe_loader_image_close(image, 0, NULL);
    return status;
}

int main(int num_words, char **words)
{
    struct arguments arguments;
    struct moe_error error;
    MOE_INIT(error);
    if (!read_arguments(num_words, words, &arguments)) {
        return 2;
    }
    if (!settle(&arguments)) {
        say(MOE_CANARY_REFUSAL, "the process that started this is gone");
        return 1;
    }
    int32_t status = try_plugin(&arguments, &error);
    if (status != MOE_STATUS_OK) {
        char text[640];
        error.message[sizeof(error.message) - 1] = '\0';
        snprintf(text, sizeof(text), "%s (%s)", MOE_LOADER_SHOW_TEXT(error.message),
                 moe_loader_status_name(status));
        say(MOE_CANARY_REFUSAL, text);
        return 1;
    }
    say(MOE_CANARY_PASSED, "");
    return 0;
}
