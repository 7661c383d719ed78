/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the built moectl as a person would, and keeps what it says. */
#ifndef MOE_SUPPORT_MOECTL_H
#define MOE_SUPPORT_MOECTL_H

#include <stdio.h>

struct moe_support_moectl {
    int exit_status; /* -1: ended by a signal */
    char *out;       /* stdout and stderr, NUL-terminated, on the heap */
    char *err;
};

/* Runs `moectl arguments[0] ...` (NULL ends the list) without MOE_PLUGIN_CONFIG in its environment.
 * Fails the test when it cannot be started. Finish the result. */
void moe_support_moectl_run(const char *const *arguments, struct moe_support_moectl *result);

void moe_support_moectl_finish(struct moe_support_moectl *result);

/* 1 if python3 accepts `text` as a JSON document, 0 if not; -1 without a python3. */
int moe_support_moectl_is_json(const char *text);

#endif
