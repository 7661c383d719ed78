/* SPDX-License-Identifier: Apache-2.0 */
/* One sentence that tells the person at the terminal what went wrong, with the name of the thing.
 */
#ifndef MOE_CLI_ERROR_H
#define MOE_CLI_ERROR_H

#include <stddef.h>

/* Long enough for two paths and a list of choices; what does not fit ends in "...". */
enum { MOE_CLI_ERROR_BYTES = 4096 };

struct moe_cli_error {
    char message[MOE_CLI_ERROR_BYTES];
};

/* Replaces the sentence. */
__attribute__((format(printf, 2, 3))) void moe_cli_error_set(struct moe_cli_error *error,
                                                             const char *format, ...);

/* Adds to the sentence. */
__attribute__((format(printf, 2, 3))) void moe_cli_error_append(struct moe_cli_error *error,
                                                                const char *format, ...);

/* `return MOE_CLI_FAIL(error, "...")` sets the sentence and is -1. A macro, so that compilers and
 * checkers see the value. */
#define MOE_CLI_FAIL(error, ...) (moe_cli_error_set((error), __VA_ARGS__), moe_cli_failed())
static inline int moe_cli_failed(void)
{
    return -1;
}

/* The same for "out of memory while <doing>". */
static inline int moe_cli_fail_memory(struct moe_cli_error *error, const char *doing)
{
    return MOE_CLI_FAIL(error, "out of memory while %s", doing);
}

/* The choice nearest to `word` when a typing slip can explain the difference (at most two edits,
 * and fewer than half of the letters), else NULL. `choices` has num_choices entries. */
const char *moe_cli_suggest(const char *word, const char *const *choices, size_t num_choices);

#endif
