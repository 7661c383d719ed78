/* SPDX-License-Identifier: Apache-2.0 */
/* What --help prints: a text, or with --help=man and --help=words the same table as a manual page
 * or for a shell that completes words. */
#ifndef MOE_ARGS_PAGES_H
#define MOE_ARGS_PAGES_H

#include "args.h"

/* Does the option take a value, and the word that stands for it in texts. */
int moe_args_takes_value(const struct moe_args_option *option);
const char *moe_args_value_name(const struct moe_args_option *option);

typedef void moe_args_page(const struct moe_args_command *command, FILE *out);

/* The page for the value of --help; NULL with a sentence that lists the values. */
moe_args_page *moe_args_find_page(const char *name, struct moe_cli_error *error);

#endif
