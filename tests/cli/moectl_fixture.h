/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests that run the built moectl: one call per expectation. */
#ifndef MOE_TESTS_CLI_MOECTL_FIXTURE_H
#define MOE_TESTS_CLI_MOECTL_FIXTURE_H

#include "cli_golden.h"

#include "support_moectl.h"

/* Runs moectl with the arguments (a list that ends with NULL). Fails unless it exits with
 * `exit_status`, says `out_part` on stdout and `err_part` on stderr (NULL: says nothing there), and
 * no escape sequence anywhere. */
static inline void expect_moectl(const char *const *arguments, int exit_status,
                                 const char *out_part, const char *err_part)
{
    struct moe_support_moectl result;
    moe_support_moectl_run(arguments, &result);
    if (result.exit_status != exit_status) {
        fail_msg("moectl %s: exit status %d instead of %d\n%s%s", arguments[0], result.exit_status,
                 exit_status, result.out, result.err);
    }
    if (out_part != NULL) {
        fixture_assert_contains(result.out, out_part);
    } else {
        assert_string_equal(result.out, "");
    }
    if (err_part != NULL) {
        fixture_assert_contains(result.err, err_part);
    } else {
        assert_string_equal(result.err, "");
    }
    assert_null(strchr(result.out, '\033'));
    assert_null(strchr(result.err, '\033'));
    moe_support_moectl_finish(&result);
}

#define ARGUMENTS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Wrong use: exit status 2, nothing on stdout, a sentence with `err_part` on stderr. */
#define EXPECT_REFUSED(err_part, ...) expect_moectl(ARGUMENTS(__VA_ARGS__), 2, NULL, err_part)

/* Exit status 0, nothing on stderr, `out_part` on stdout. */
#define EXPECT_RUN(out_part, ...) expect_moectl(ARGUMENTS(__VA_ARGS__), 0, out_part, NULL)

/* Runs moectl, whose stdout has to be a JSON document; `part` is in it. */
static inline void expect_json(const char *const *arguments, int exit_status, const char *part)
{
    struct moe_support_moectl result;
    moe_support_moectl_run(arguments, &result);
    assert_int_equal(result.exit_status, exit_status);
    if (moe_support_moectl_is_json(result.out) == 0) {
        fail_msg("moectl %s: no JSON:\n%s", arguments[0], result.out);
    }
    fixture_assert_contains(result.out, part);
    moe_support_moectl_finish(&result);
}
#define EXPECT_JSON(exit_status, part, ...) expect_json(ARGUMENTS(__VA_ARGS__), exit_status, part)

#endif
