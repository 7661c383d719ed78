/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: no-asan */
/*
 * Run calls allocate nothing, neither from the host nor from libc; with one thread they make no
 * system call, with more none but futex. The process's allocator is replaced here, which sanitizers
 * do too: hence no-asan.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "abi_calls.h"
#include "support_alloc.h"

/* ---------------------------------------------------------------- a counting libc */

/* Exported, or the plugin would be bound to libc's own and only this program be counted. */
#pragma GCC visibility push(default)

static atomic_llong num_libc_calls;

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void *block);

static void count_call(void)
{
    atomic_fetch_add_explicit(&num_libc_calls, 1, memory_order_relaxed);
}

void *malloc(size_t bytes)
{
    count_call();
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    count_call();
    return __libc_calloc(count, bytes);
}

void *realloc(void *block, size_t bytes)
{
    count_call();
    return __libc_realloc(block, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    count_call();
    return __libc_memalign(alignment, bytes);
}

void *memalign(size_t alignment, size_t bytes);
void *memalign(size_t alignment, size_t bytes)
{
    count_call();
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **out, size_t alignment, size_t bytes)
{
    count_call();
    *out = __libc_memalign(alignment, bytes);
    return *out == NULL ? ENOMEM : 0;
}

void free(void *block)
{
    count_call();
    __libc_free(block);
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    count_call();
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

int munmap(void *address, size_t bytes)
{
    count_call();
    return (int)syscall(SYS_munmap, address, bytes);
}

#pragma GCC visibility pop

/* ---------------------------------------------------------------- allocations */

struct log_counter {
    struct support_allocator allocator; /* first: it is `self` of the memory functions */
    atomic_int num_lines;
};

static void count_line(void *self, int32_t level, const char *text, uint64_t text_bytes)
{
    struct log_counter *counter = self;
    (void)level;
    (void)text;
    (void)text_bytes;
    atomic_fetch_add(&counter->num_lines, 1);
}

static int32_t run_call(const struct abi_host *host, const struct abi_call *call)
{
    union abi_args args;
    struct moe_error error;
    MOE_INIT(error);
    abi_call_fill(call, host, &args);
    return call->run(host->api, host->plan, &args, &error);
}

static void check_allocations(int32_t num_threads, bool host_has_memory)
{
    struct log_counter counter = {.num_lines = 0};
    struct moe_host services;
    struct abi_host host;
    abi_services_init(&services);
    support_allocator_init(&counter.allocator, 0);
    services.self = &counter;
    services.log = count_line;
    if (host_has_memory) {
        services.memory_alloc = support_allocate;
        services.memory_free = support_free;
    }
    long long calls_before = atomic_load(&num_libc_calls);
    assert_true(abi_host_open(&host, &services, num_threads));
    assert_true(atomic_load(&num_libc_calls) > calls_before); /* the counter counts */
    assert_int_equal(counter.allocator.num_calls > 0, host_has_memory);
    assert_true(counter.num_lines > 0);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
            int64_t host_calls = counter.allocator.num_calls;
            int num_lines = counter.num_lines;
            calls_before = atomic_load(&num_libc_calls);
            int32_t status = run_call(&host, &abi_calls[i]);
            long long calls_after = atomic_load(&num_libc_calls);
            assert_int_equal(status, abi_calls[i].status);
            if (calls_after != calls_before || counter.allocator.num_calls != host_calls ||
                counter.num_lines != num_lines) {
                fail_msg("%s, %d threads: %lld calls of libc's allocator, %lld of the host's, "
                         "%d lines of log",
                         abi_calls[i].form, num_threads, calls_after - calls_before,
                         (long long)(counter.allocator.num_calls - host_calls),
                         counter.num_lines - num_lines);
            }
        }
    }
    abi_host_close(&host);
    assert_int_equal(counter.allocator.num_live, 0);
    assert_int_equal(counter.allocator.num_bad_frees, 0);
    support_allocator_finish(&counter.allocator);
}

static void test_no_allocation(void **state)
{
    (void)state;
    for (int32_t num_threads = 1; num_threads <= 3; num_threads++) {
        check_allocations(num_threads, false);
        check_allocations(num_threads, true);
    }
}

/* ---------------------------------------------------------------- system calls */

enum { EXIT_PASSED = 10, EXIT_NO_SECCOMP = 11, EXIT_WRONG_STATUS = 12, EXIT_SYSTEM_CALL = 13 };

/* A forbidden system call arrives here, in the thread that made it. */
static void report_system_call(int number, siginfo_t *info, void *user)
{
    char line[] = "system call 0000\n";
    int value = info->si_syscall;
    (void)number;
    (void)user;
    for (size_t i = sizeof(line) - 3; i > 11; i--) {
        line[i] = (char)('0' + value % 10);
        value /= 10;
    }
    syscall(SYS_write, STDERR_FILENO, line, sizeof(line) - 1);
    syscall(SYS_exit_group, EXIT_SYSTEM_CALL);
}

/* From here on all threads of the process may write and exit, and call `allowed` (-1: nothing
 * else). */
static bool forbid_system_calls(int allowed)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = report_system_call;
    action.sa_flags = SA_SIGINFO;
    uint32_t other = allowed >= 0 ? (uint32_t)allowed : SYS_exit_group;
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, other, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(rules) / sizeof(rules[0]), rules};
    return sigaction(SIGSYS, &action, NULL) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

/* Waits until all threads but this one sleep: then they have made the system calls of their birth.
 */
static bool wait_for_sleepers(int32_t num_threads)
{
    for (int wait = 0; wait < 5000; wait++) {
        int32_t num_asleep = 0;
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *task = tasks != NULL ? readdir(tasks) : NULL; task != NULL;
             task = readdir(tasks)) {
            char path[300], state = '\0';
            snprintf(path, sizeof(path), "/proc/self/task/%s/stat", task->d_name);
            FILE *stat = task->d_name[0] != '.' ? fopen(path, "r") : NULL;
            if (stat != NULL) {
                num_asleep += fscanf(stat, "%*d (%*[^)]) %c", &state) == 1 && state == 'S';
                fclose(stat);
            }
        }
        if (tasks != NULL) {
            closedir(tasks);
        }
        if (num_asleep == num_threads - 1) {
            return true;
        }
        usleep(1000);
    }
    return false;
}

/* Runs each call under the filter, in a child; gives its exit status. */
static int run_filtered(int32_t num_threads, int allowed, bool breaks_the_rule)
{
    fflush(stdout);
    fflush(stderr);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct abi_host host;
        if (!abi_host_open(&host, NULL, num_threads) || !wait_for_sleepers(num_threads)) {
            _exit(EXIT_WRONG_STATUS);
        }
        if (!forbid_system_calls(allowed)) {
            _exit(EXIT_NO_SECCOMP);
        }
        if (breaks_the_rule) {
            syscall(SYS_getppid);
        }
        for (int round = 0; round < 20; round++) {
            for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
                if (run_call(&host, &abi_calls[i]) != abi_calls[i].status) {
                    _exit(EXIT_WRONG_STATUS);
                }
            }
        }
        _exit(EXIT_PASSED);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) { /* a pool thread blocks signals, SIGSYS too: then it is the end */
        print_message("signal %d%s\n", WTERMSIG(status),
                      WTERMSIG(status) == SIGSYS ? ": a system call of a pool thread" : "");
        return EXIT_SYSTEM_CALL;
    }
    return WEXITSTATUS(status);
}

/* Is there a filter at all, and does it find what it should? */
static void require_seccomp(void)
{
    int status = run_filtered(1, -1, true);
    if (status == EXIT_NO_SECCOMP) {
        print_message("no seccomp filters here: skipped\n");
        skip();
    }
    assert_int_equal(status, EXIT_SYSTEM_CALL);
}

static void test_no_system_call_with_one_thread(void **state)
{
    (void)state;
    require_seccomp();
    assert_int_equal(run_filtered(1, -1, false), EXIT_PASSED);
}

static void test_only_futex_with_threads(void **state)
{
    (void)state;
    require_seccomp();
    assert_int_equal(run_filtered(2, SYS_futex, false), EXIT_PASSED);
    assert_int_equal(run_filtered(3, SYS_futex, false), EXIT_PASSED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_no_system_call_with_one_thread),
        cmocka_unit_test(test_only_futex_with_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
