/* SPDX-License-Identifier: Apache-2.0 */
/* P15: run calls allocate nothing, log nothing, and make no system call but futex. */
#define _GNU_SOURCE
#include "conform_calls.h"
#include "conform_malloc.h"
#include "conform_rules.h"

#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void check_counts(struct moe_conform *conform, const struct moe_conform_call *call)
{
    const long long host_calls = conform->allocator.num_calls;
    const long long lines = conform->allocator.num_log_lines;
    const long long libc_calls = moe_conform_malloc_num_calls();
    moe_conform_call_run(call, conform);
    const long long more_libc = moe_conform_malloc_num_calls() - libc_calls;
    const long long more_host = conform->allocator.num_calls - host_calls;
    const long long more_lines = conform->allocator.num_log_lines - lines;
    if (more_libc != 0 || more_host != 0 || more_lines != 0) {
        moe_conform_fail(
            conform, "%s: %lld calls of libc's allocator, %lld of the host's, %lld lines of log",
            call->form, more_libc, more_host, more_lines);
    }
}

/* Waits until all threads but this one sleep: the system calls of their birth are behind them. */
static bool wait_for_sleepers(void)
{
    for (int wait = 0; wait < 3000; ++wait) {
        int num_awake = 0;
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *task = tasks != NULL ? readdir(tasks) : NULL; task != NULL;
             task = readdir(tasks)) {
            char path[300];
            char state = 'S';
            snprintf(path, sizeof path, "/proc/self/task/%s/stat", task->d_name);
            FILE *stat = task->d_name[0] != '.' ? fopen(path, "r") : NULL;
            if (stat != NULL) {
                num_awake += fscanf(stat, "%*d (%*[^)]) %c", &state) != 1 || state != 'S';
                fclose(stat);
            }
        }
        if (tasks == NULL) {
            return false;
        }
        closedir(tasks);
        if (num_awake <= 1) {
            return true;
        }
        const struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    return false;
}

static struct moe_conform *filtered;
static const char *filtered_form = "";

/* A forbidden system call arrives here, in the thread that made it. */
static void report_system_call(int number, siginfo_t *info, void *user)
{
    (void)number;
    (void)user;
    snprintf(filtered->verdict->reason, sizeof filtered->verdict->reason,
             "%s: system call number %d", filtered_form, info->si_syscall);
    filtered->verdict->outcome = MOE_CONFORM_FAILED;
    syscall(SYS_exit_group, 0);
}

/* From here on all threads may call futex, and end the process. */
static bool forbid_system_calls(bool allows_futex)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = report_system_call;
    action.sa_flags = SA_SIGINFO;
    const uint32_t futex = allows_futex ? SYS_futex : SYS_exit_group;
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, futex, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};
    return sigaction(SIGSYS, &action, NULL) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

static void run_all(struct moe_conform *conform,
                    void (*run)(struct moe_conform *conform, const struct moe_conform_call *call))
{
    for (int round = 0; round < 3; ++round) {
        for (size_t i = 0; i < moe_conform_num_calls; ++i) {
            if (moe_conform_call_is_offered(conform, &moe_conform_calls[i])) {
                run(conform, &moe_conform_calls[i]);
            }
        }
    }
}

static void run_filtered(struct moe_conform *conform, const struct moe_conform_call *call)
{
    filtered_form = call->form;
    moe_conform_call_run(call, conform);
}

static void check_system_calls(struct moe_conform *conform, int32_t num_threads)
{
    moe_conform_open(conform, num_threads);
    run_all(conform, check_counts);
    filtered = conform;
    if (!wait_for_sleepers()) {
        moe_conform_skip(conform, "the threads of the plugin do not come to rest");
    }
    if (!forbid_system_calls(num_threads > 1)) {
        moe_conform_skip(conform, "system calls cannot be filtered here (seccomp)");
    }
    run_all(conform, run_filtered);
}

static void check_with_one_thread(struct moe_conform *conform)
{
    check_system_calls(conform, 1);
}

static void check_with_three_threads(struct moe_conform *conform)
{
    check_system_calls(conform, 3);
}

/* A filter stays for the life of a process, so each number of threads has its own. */
void moe_conform_check_run_calls(struct moe_conform *conform)
{
    struct moe_conform_verdict verdict;
    if (!moe_conform_malloc_is_counted()) {
        moe_conform_skip(conform, "this moectl cannot count allocations (sanitizer, or no glibc)");
    }
    moe_conform_session_run(conform->path, check_with_one_thread, 60, &verdict);
    if (verdict.outcome == MOE_CONFORM_PASSED) {
        moe_conform_session_run(conform->path, check_with_three_threads, 60, &verdict);
    }
    if (verdict.outcome == MOE_CONFORM_FAILED) {
        moe_conform_fail(conform, "%s", verdict.reason);
    }
    if (verdict.outcome == MOE_CONFORM_SKIPPED) {
        moe_conform_skip(conform, "%s", verdict.reason);
    }
}
