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

/* Replaces the sentence. Always returns -1, so that a function can end in `return
 * moe_cli_error_set(...)`. */
__attribute__((format(printf, 2, 3))) int moe_cli_error_set(struct moe_cli_error *error,
                                                            const char *format, ...);

/* Appends to the sentence. Always returns -1. */
__attribute__((format(printf, 2, 3))) int moe_cli_error_append(struct moe_cli_error *error,
                                                               const char *format, ...);

/* "out of memory while ...". Always returns -1. */
int moe_cli_error_set_memory(struct moe_cli_error *error, const char *doing);

/* The choice nearest to `word` when a typing slip can explain the difference (at most two edits,
 * and fewer than half of the letters), else NULL. `choices` has num_choices entries. */
const char *moe_cli_suggest(const char *word, const char *const *choices, size_t num_choices);

#endif
