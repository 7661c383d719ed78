/* SPDX-License-Identifier: Apache-2.0 */
/* Findings in configuration files, as a compiler shows them. */
#ifndef MOE_DIAGNOSTIC_H
#define MOE_DIAGNOSTIC_H

#include <stdio.h>

#include "cli_json.h"
#include "moe_plugin.h"

/* Prints `file:line:column: error[code]: message`, then the line and a caret below the column. */
void moe_diagnostic_print(FILE *out, const struct moe_diagnostic *diagnostic);

/* The same facts as an object of a JSON array. */
void moe_diagnostic_put_json(struct moe_cli_json *json, const struct moe_diagnostic *diagnostic);

#endif
