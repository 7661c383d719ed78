/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "support_moectl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { max_arguments = 63 };

/* All of a file from its beginning, NUL-terminated. */
static char *read_all(FILE *file)
{
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const long num_bytes = ftell(file);
    assert_true(num_bytes >= 0);
    rewind(file);
    char *text = malloc((size_t)num_bytes + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)num_bytes, file), (size_t)num_bytes);
    text[num_bytes] = '\0';
    fclose(file);
    return text;
}

static int wait_for(pid_t child)
{
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void moe_support_moectl_run(const char *const *arguments, struct moe_support_moectl *result)
{
    static const char program[] = MOE_BUILD_DIR "/bin/moectl";
    char *argv[max_arguments + 2] = {(char *)(uintptr_t)program};
    size_t num_arguments = 0;
    for (; arguments[num_arguments] != NULL; ++num_arguments) {
        assert_in_range(num_arguments, 0, max_arguments - 1);
        argv[num_arguments + 1] = (char *)(uintptr_t)arguments[num_arguments];
    }
    FILE *out = tmpfile();
    FILE *err = tmpfile();
    assert_non_null(out);
    assert_non_null(err);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        unsetenv("MOE_PLUGIN_CONFIG");
        if (dup2(fileno(out), STDOUT_FILENO) >= 0 && dup2(fileno(err), STDERR_FILENO) >= 0) {
            execv(program, argv);
        }
        _exit(127);
    }
    result->exit_status = wait_for(child);
    result->out = read_all(out);
    result->err = read_all(err);
    if (result->exit_status == 127) {
        fail_msg("%s cannot be run; is it built?", program);
    }
}

void moe_support_moectl_finish(struct moe_support_moectl *result)
{
    free(result->out);
    free(result->err);
    memset(result, 0, sizeof *result);
}

int moe_support_moectl_is_json(const char *text)
{
    if (system("python3 -c pass 2>/dev/null") != 0) {
        return -1;
    }
    FILE *reader = popen("python3 -m json.tool >/dev/null 2>&1", "w");
    assert_non_null(reader);
    const size_t num_bytes = strlen(text);
    assert_int_equal(fwrite(text, 1, num_bytes, reader), num_bytes);
    return pclose(reader) == 0;
}
