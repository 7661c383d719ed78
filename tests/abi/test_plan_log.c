/* SPDX-License-Identifier: Apache-2.0 */
/* The line that a plan leaves in the host's log: the rules that are live, cut with dots and between
 * characters when they do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "abi_host.h"

enum { LINE_BYTES = 1024, NAME_BYTES = 120 };

struct log {
    char plan_line[LINE_BYTES];
};

static void keep_plan_line(void *self, int32_t level, const char *text, uint64_t text_bytes)
{
    struct log *log = self;
    (void)level;
    if (strstr(text, ": plan E ") != NULL && text_bytes < sizeof(log->plan_line)) {
        memcpy(log->plan_line, text, text_bytes + 1);
    }
}

/* A plan under one rule of this name, with three buckets. */
static void log_plan(const char *rule, struct log *log)
{
    char text[LINE_BYTES];
    struct moe_host services;
    struct abi_host host;
    struct moe_config_source source;
    struct moe_plan *plan = NULL;
    abi_services_init(&services);
    services.self = log;
    services.log = keep_plan_line;
    assert_true(abi_host_open(&host, &services, 1));
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\n"
             "rules:\n"
             "  - name: %s\n"
             "    buckets:\n"
             "      - {max_tokens: 1, gemm1: {kernel: cpu.c11}}\n"
             "      - {max_tokens: 2, gemm1: {kernel: cpu.c11}}\n"
             "      - {max_tokens: inf, gemm1: {kernel: cpu.c11}}\n",
             rule);
    MOE_INIT(source);
    source.path = "log.yaml";
    source.text = text;
    source.text_bytes = strlen(text);
    assert_int_equal(host.api->config_reload(host.context, &source, 1, NULL, NULL, NULL), 0);
    log->plan_line[0] = '\0';
    assert_int_equal(host.api->plan_create(host.context, &host.problem, NULL, &plan, NULL), 0);
    host.api->plan_destroy(plan);
    abi_host_close(&host);
}

static bool ends_with_dots(const char *line)
{
    const size_t length = strlen(line);
    return length > 3 && strcmp(line + length - 3, "...") == 0;
}

static void test_what_fits_is_whole(void **state)
{
    (void)state;
    struct log log;
    log_plan("short", &log);
    assert_non_null(
        strstr(log.plan_line, "gemm1; T<=1 short (log.yaml:5); T<=2 short (log.yaml:6)"));
    assert_non_null(strstr(log.plan_line, " short (log.yaml:7)"));
    assert_false(ends_with_dots(log.plan_line));
}

/* Names of two-byte characters, begun at every parity: one of them is met by the cut. */
static void test_what_does_not_fit_ends_with_dots(void **state)
{
    (void)state;
    for (size_t shift = 0; shift < 4; shift++) {
        char name[NAME_BYTES + 1];
        struct log log;
        size_t length = shift, num_heads = 0, num_tails = 0;
        memset(name, 'x', shift);
        for (; length + 2 <= NAME_BYTES; length += 2) {
            memcpy(name + length, "\xc3\xa9", 2);
        }
        name[length] = '\0';
        log_plan(name, &log);
        assert_non_null(strstr(log.plan_line, "gemm1; T<=1 "));
        assert_true(ends_with_dots(log.plan_line));
        for (const char *at = log.plan_line; *at != '\0'; at++) {
            num_heads += *at == '\xc3';
            num_tails += *at == '\xa9';
        }
        assert_true(num_heads > NAME_BYTES / 2);
        assert_int_equal(num_heads, num_tails);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_fits_is_whole),
        cmocka_unit_test(test_what_does_not_fit_ends_with_dots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
