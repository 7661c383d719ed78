/* SPDX-License-Identifier: Apache-2.0 */
/* Writes one JSON document to a stream, for `--json`. */
#ifndef MOE_CLI_JSON_H
#define MOE_CLI_JSON_H

#include <stdint.h>
#include <stdio.h>

enum { MOE_CLI_JSON_MAX_DEPTH = 32 };

/* Caller-owned; the members belong to the writer. One thread at a time. */
struct moe_cli_json {
    FILE *out;
    int depth;
    unsigned char has_items[MOE_CLI_JSON_MAX_DEPTH];
    int is_broken; /* a level was opened too deep or closed twice */
};

/* Every function below takes `key`: the member's name inside an object, NULL inside an array and
 * for the document itself. */

void moe_cli_json_init(struct moe_cli_json *json, FILE *out);
void moe_cli_json_begin_object(struct moe_cli_json *json, const char *key);
void moe_cli_json_end_object(struct moe_cli_json *json);
void moe_cli_json_begin_array(struct moe_cli_json *json, const char *key);
void moe_cli_json_end_array(struct moe_cli_json *json);

/* Text is UTF-8; bytes that are not become U+FFFD. NULL writes null. */
void moe_cli_json_put_text(struct moe_cli_json *json, const char *key, const char *text);
void moe_cli_json_put_int(struct moe_cli_json *json, const char *key, int64_t value);
/* Unsigned 64-bit values that a JSON reader could round (hashes) are written by this as "0x..."
 * text. */
void moe_cli_json_put_hash(struct moe_cli_json *json, const char *key, uint64_t value);
/* The shortest decimal that reads back as the same double; NaN and infinities become null. */
void moe_cli_json_put_number(struct moe_cli_json *json, const char *key, double value);
void moe_cli_json_put_bool(struct moe_cli_json *json, const char *key, int value);
void moe_cli_json_put_null(struct moe_cli_json *json, const char *key);

/* Ends the document with a newline. Returns 0, or -1 when the stream failed or levels were not
 * balanced. */
int moe_cli_json_finish(struct moe_cli_json *json);

#endif
