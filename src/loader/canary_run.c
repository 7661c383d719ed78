/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "canary_run.h"

#include "canary_protocol.h"
#include "loader_status.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { DEFAULT_TIMEOUT_MS = 20000, LINE_BYTES = 512 };

/* ---- where it is ---- */

static const char *const usual_places[] = {
    MOE_CANARY_NAME,
    "../lib/moe-plugin/" MOE_CANARY_NAME,
    "../bin/" MOE_CANARY_NAME,
};

static int32_t find_executable(const char *given, char found[PATH_MAX], struct moe_error *error)
{
    if (given != NULL) {
        if (access(given, X_OK) != 0) {
            return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                               "%s: the canary cannot be run",
                                               MOE_LOADER_SHOW_PATH(given));
        }
        snprintf(found, PATH_MAX, "%s", given);
        return MOE_STATUS_OK;
    }
    char own[PATH_MAX];
    ssize_t num_bytes = readlink("/proc/self/exe", own, sizeof(own) - 1);
    own[num_bytes > 0 ? num_bytes : 0] = '\0';
    char *slash = strrchr(own, '/');
    if (slash != NULL) {
        slash[1] = '\0';
        for (size_t i = 0; i < sizeof(usual_places) / sizeof(usual_places[0]); i++) {
            int needed = snprintf(found, PATH_MAX, "%s%s", own, usual_places[i]);
            if (needed < PATH_MAX && access(found, X_OK) == 0) {
                return MOE_STATUS_OK;
            }
        }
    }
    return moe_loader_status_set(error, MOE_STATUS_IO,
                                 "%s: no " MOE_CANARY_NAME
                                 " in this folder, in ../lib/moe-plugin or in ../bin; name it in "
                                 "canary_path",
                                 MOE_LOADER_SHOW_PATH(own));
}

/* ---- starting it ---- */

/* All that the helper needs of the environment: which devices there are, and what a sanitized build
 * reads. */
static int is_passed_on(const char *variable)
{
    static const char *const names[] = {
        "CUDA_VISIBLE_DEVICES=", "CUDA_DEVICE_ORDER=", "LD_LIBRARY_PATH=",
        "ASAN_OPTIONS=",         "UBSAN_OPTIONS=",     "TSAN_OPTIONS="};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strncmp(variable, names[i], strlen(names[i])) == 0) {
            return 1;
        }
    }
    return 0;
}

static void pick_environment(char *picked[], size_t num_slots)
{
    size_t num_picked = 0;
    for (char **variable = environ; variable != NULL && *variable != NULL; variable++) {
        if (num_picked + 1 < num_slots && is_passed_on(*variable)) {
            picked[num_picked++] = *variable;
        }
    }
    picked[num_picked] = NULL;
}

/* Its own process group, so that a timeout ends its children too; signals as in a fresh process. */
static int set_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    int failed = posix_spawnattr_setpgroup(attributes, 0);
    failed = failed != 0 ? failed : posix_spawnattr_setsigmask(attributes, &none);
    failed = failed != 0 ? failed : posix_spawnattr_setsigdefault(attributes, &all);
    return failed != 0 ? failed
                       : posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETPGROUP |
                                                                  POSIX_SPAWN_SETSIGMASK |
                                                                  POSIX_SPAWN_SETSIGDEF);
}

/* 0, or an errno value. `output` is where the helper writes. */
static int spawn(const char *executable, char *const arguments[], int plugin, int output,
                 pid_t *child)
{
    char *environment[16];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    pick_environment(environment, sizeof(environment) / sizeof(environment[0]));
    int failed = posix_spawn_file_actions_init(&actions);
    if (failed != 0) {
        return failed;
    }
    failed = posix_spawnattr_init(&attributes);
    if (failed != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return failed;
    }
    failed = set_attributes(&attributes);
    failed = failed != 0 ? failed
                         : posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    failed = failed != 0 ? failed : posix_spawn_file_actions_adddup2(&actions, output, 1);
    failed = failed != 0 ? failed : posix_spawn_file_actions_adddup2(&actions, output, 2);
    failed = failed != 0
                 ? failed
                 : posix_spawn_file_actions_adddup2(&actions, plugin, MOE_CANARY_DESCRIPTOR);
    failed = failed != 0
                 ? failed
                 : posix_spawn(child, executable, &actions, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return failed;
}

/* A copy of a descriptor with a number that the file actions above do not overwrite. */
static int move_up(int descriptor)
{
    return fcntl(descriptor, F_DUPFD_CLOEXEC, MOE_CANARY_DESCRIPTOR + 1);
}

static int start(const struct moe_canary_options *options, const char *executable,
                 const struct moe_loader_image *image, int *output, pid_t *child)
{
    int ends[2] = {-1, -1};
    int writer = -1;
    int plugin = -1;
    char backend[16];
    char ordinal[16];
    char parent[24];
    snprintf(backend, sizeof(backend), "%d", (int)options->backend);
    snprintf(ordinal, sizeof(ordinal), "%d", (int)options->ordinal);
    snprintf(parent, sizeof(parent), "%ld", (long)getpid());
    const char *arguments[] = {
        MOE_CANARY_NAME, "--inherited", "--parent",    parent, "--backend-id", backend, "--ordinal",
        ordinal,         "--",          options->path, NULL};
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return errno;
    }
    writer = move_up(ends[1]);
    plugin = move_up(moe_image_descriptor(image));
    int failed = writer < 0 || plugin < 0 ? errno : 0;
    if (failed == 0) {
        /* The strings are not written to; the parameter's type is older than const. */
        failed = spawn(executable, (char *const *)(uintptr_t)arguments, plugin, writer, child);
    }
    close(ends[1]);
    if (writer >= 0) {
        close(writer);
    }
    if (plugin >= 0) {
        close(plugin);
    }
    if (failed != 0) {
        close(ends[0]);
        return failed;
    }
    *output = ends[0];
    return 0;
}

/* ---- listening to it ---- */

/* What the helper has said so far. */
struct account {
    char step[64];            /* the last one it began */
    char refusal[LINE_BYTES]; /* its own sentence */
    char last[LINE_BYTES];    /* any other line: what a dying plugin or the C library printed */
    char line[LINE_BYTES];    /* not ended yet */
    size_t line_bytes;
    int is_passed;
};

static const char *after_prefix(const char *line, const char *prefix)
{
    size_t num_bytes = strlen(prefix);
    return strncmp(line, prefix, num_bytes) == 0 ? line + num_bytes : NULL;
}

static void take_line(struct account *account)
{
    const char *rest;
    account->line[account->line_bytes] = '\0';
    account->line_bytes = 0;
    if ((rest = after_prefix(account->line, MOE_CANARY_STEP)) != NULL) {
        snprintf(account->step, sizeof(account->step), "%.63s", rest);
    } else if ((rest = after_prefix(account->line, MOE_CANARY_REFUSAL)) != NULL) {
        snprintf(account->refusal, sizeof(account->refusal), "%s", rest);
    } else if (strcmp(account->line, MOE_CANARY_PASSED) == 0) {
        account->is_passed = 1;
    } else if (account->line[0] != '\0') {
        memcpy(account->last, account->line, sizeof(account->last));
    }
}

static void take_bytes(struct account *account, const char *bytes, size_t num_bytes)
{
    for (size_t i = 0; i < num_bytes; i++) {
        if (bytes[i] == '\n') {
            take_line(account);
        } else if (account->line_bytes + 1 < sizeof(account->line)) {
            account->line[account->line_bytes++] = bytes[i];
        }
    }
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Read what it says until it closes its end: 1. At the deadline: 0. */
static int listen_until(int output, int64_t deadline_ms, struct account *account)
{
    for (;;) {
        int64_t left_ms = deadline_ms - now_ms();
        struct pollfd wait_for = {.fd = output, .events = POLLIN};
        if (left_ms <= 0) {
            return 0;
        }
        if (poll(&wait_for, 1, (int)left_ms) <= 0) {
            continue;
        }
        char bytes[1024];
        ssize_t num_bytes = read(output, bytes, sizeof(bytes));
        if (num_bytes > 0) {
            take_bytes(account, bytes, (size_t)num_bytes);
        } else if (num_bytes == 0 || errno != EINTR) {
            take_line(account);
            return 1;
        }
    }
}

enum ending { ENDING_KNOWN, ENDING_TAKEN, ENDING_TIMEOUT };

/* Wait for its end, after its output has ended: mostly at once. */
static enum ending wait_until(pid_t child, int64_t deadline_ms, int *wait_status)
{
    for (;;) {
        pid_t ended = waitpid(child, wait_status, WNOHANG);
        if (ended == child) {
            return ENDING_KNOWN;
        }
        if (ended < 0 && errno != EINTR) {
            return ENDING_TAKEN; /* the host ignores SIGCHLD, or waits for any child elsewhere */
        }
        if (now_ms() >= deadline_ms) {
            return ENDING_TIMEOUT;
        }
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
}

/* ---- judging it ---- */

static const char *signal_text(int number)
{
    switch (number) {
    case SIGSEGV:
        return "SIGSEGV, an invalid memory access";
    case SIGBUS:
        return "SIGBUS, an impossible memory access";
    case SIGILL:
        return "SIGILL, an instruction that this CPU does not have";
    case SIGFPE:
        return "SIGFPE, an arithmetic error";
    case SIGABRT:
        return "SIGABRT, an abort";
    case SIGTRAP:
        return "SIGTRAP, a trap";
    case SIGSYS:
        return "SIGSYS, a forbidden system call";
    case SIGKILL:
        return "SIGKILL, from outside";
    default:
        return "a signal";
    }
}

static int32_t refuse(const struct moe_canary_options *options, const struct account *account,
                      enum ending ending, int wait_status, int64_t timeout_ms,
                      struct moe_error *error)
{
    const char *step = account->step[0] != '\0' ? account->step : "start";
    struct moe_loader_shown said = moe_loader_status_show_text(account->last);
    said.text[120] = '\0';
    const char *mark = said.text[0] != '\0' ? "; it said: " : "";
    const char *path = options->path;
    if (ending == ENDING_TIMEOUT) {
        return moe_loader_status_set(
            error, MOE_LOADER_STATUS_CANARY,
            "%s: hung in the canary, in the step %s; killed after %lld ms%s%s",
            MOE_LOADER_SHOW_PATH(path), step, (long long)timeout_ms, mark, said.text);
    }
    if (account->refusal[0] != '\0') {
        /* Its sentence begins with the path, as this one does. */
        const char *reason = after_prefix(account->refusal, MOE_LOADER_SHOW_PATH(path));
        reason = reason != NULL && strncmp(reason, ": ", 2) == 0 ? reason + 2 : account->refusal;
        return moe_loader_status_set(
            error, MOE_LOADER_STATUS_CANARY, "%s: refused by the canary, in the step %s: %s",
            MOE_LOADER_SHOW_PATH(path), step, MOE_LOADER_SHOW_TEXT(reason));
    }
    if (ending == ENDING_KNOWN && WIFSIGNALED(wait_status)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_CANARY,
                                     "%s: crashed the canary, in the step %s: signal %d (%s)%s%s",
                                     MOE_LOADER_SHOW_PATH(path), step, WTERMSIG(wait_status),
                                     signal_text(WTERMSIG(wait_status)), mark, said.text);
    }
    if (ending == ENDING_KNOWN) {
        return moe_loader_status_set(
            error, MOE_LOADER_STATUS_CANARY,
            "%s: ended the canary, in the step %s, with exit status %d%s%s",
            MOE_LOADER_SHOW_PATH(path), step, WEXITSTATUS(wait_status), mark, said.text);
    }
    return moe_loader_status_set(error, MOE_LOADER_STATUS_CANARY,
                                 "%s: ended the canary, in the step %s (how is not known: the host "
                                 "ignores SIGCHLD or waits for all children)%s%s",
                                 MOE_LOADER_SHOW_PATH(path), step, mark, said.text);
}

int32_t moe_canary_run(const struct moe_canary_options *options,
                       const struct moe_loader_image *image, struct moe_error *error)
{
    char executable[PATH_MAX];
    int output = -1;
    pid_t child = -1;
    if (moe_image_descriptor(image) < 0 || options->timeout_ms < 0) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: the image is already mapped, or timeout_ms (%d) is negative",
            MOE_LOADER_SHOW_PATH(options->path), options->timeout_ms);
    }
    int32_t status = find_executable(options->canary_path, executable, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    int64_t timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
    int64_t deadline_ms = now_ms() + timeout_ms;
    int failed = start(options, executable, image, &output, &child);
    if (failed != 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, failed,
                                           "%s: the canary cannot be started",
                                           MOE_LOADER_SHOW_PATH(executable));
    }

    struct account account;
    memset(&account, 0, sizeof(account));
    int wait_status = 0;
    enum ending ending = ENDING_TIMEOUT;
    if (listen_until(output, deadline_ms, &account)) {
        ending = wait_until(child, deadline_ms, &wait_status);
    }
    close(output);
    if (ending == ENDING_TIMEOUT) {
        kill(-child, SIGKILL);
        while (waitpid(child, &wait_status, 0) < 0 && errno == EINTR) {
        }
    }
    int is_clean = ending == ENDING_TAKEN || (ending == ENDING_KNOWN && WIFEXITED(wait_status) &&
                                              WEXITSTATUS(wait_status) == 0);
    if (account.is_passed && is_clean) {
        return MOE_STATUS_OK;
    }
    return refuse(options, &account, ending, wait_status, timeout_ms, error);
}
