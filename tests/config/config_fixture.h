/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of configuration and dispatch share: texts to snapshots, findings as lines,
 * devices and problems.
 */
#ifndef MOE_TESTS_CONFIG_FIXTURE_H
#define MOE_TESTS_CONFIG_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dispatch.h"
#include "memory.h"
#include "tiles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIXTURE_ALL_OPS (((UINT64_C(1) << MOE_OP_EXPERTS) - 1) & ~(UINT64_C(1) << MOE_OP_QUANTIZE))

/* Findings as "line:column: level[code]: message" lines. */
struct fixture_findings {
    char text[16384];
    size_t num_bytes;
    int32_t num_findings;
    char last_source_line[1024];
};

static inline void fixture_append(char *text, size_t capacity, size_t *num_bytes,
                                  const char *format, ...) __attribute__((format(printf, 4, 5)));
static inline void fixture_append(char *text, size_t capacity, size_t *num_bytes,
                                  const char *format, ...)
{
    va_list values;
    va_start(values, format);
    int added = vsnprintf(text + *num_bytes, capacity - *num_bytes, format, values);
    va_end(values);
    assert_true(added >= 0 && (size_t)added < capacity - *num_bytes);
    *num_bytes += (size_t)added;
}

static inline void fixture_on_finding(void *self, const struct moe_diagnostic *finding)
{
    struct fixture_findings *findings = self;
    fixture_append(findings->text, sizeof(findings->text), &findings->num_bytes,
                   "%d:%d: %s[%s]: %s\n", finding->line, finding->column,
                   finding->level == MOE_LEVEL_ERROR ? "error" : "warning", finding->code,
                   finding->message);
    findings->num_findings++;
    assert_non_null(finding->file);
    snprintf(findings->last_source_line, sizeof(findings->last_source_line), "%s",
             finding->source_line != NULL ? finding->source_line : "");
}

static inline struct moe_memory fixture_memory(void)
{
    struct moe_memory memory;
    moe_memory_init(&memory, NULL);
    return memory;
}

static inline struct moe_config_source fixture_text(const char *name, const char *text,
                                                    uint32_t flags)
{
    struct moe_config_source source;
    MOE_INIT(source);
    source.path = name;
    source.text = text;
    source.text_bytes = strlen(text);
    source.flags = flags;
    return source;
}

static inline struct moe_config_source fixture_file(const char *path, uint32_t flags)
{
    struct moe_config_source source;
    MOE_INIT(source);
    source.path = path;
    source.flags = flags;
    return source;
}

/* A snapshot of these sources; NULL when that fails, with the status in `status`. */
static inline struct moe_config *fixture_read(const struct moe_config_source *sources,
                                              int32_t num_sources, const struct moe_device *device,
                                              struct fixture_findings *findings, int32_t *status)
{
    struct moe_memory memory = fixture_memory();
    struct moe_config_request request;
    memset(&request, 0, sizeof(request));
    request.sources = sources;
    request.num_sources = num_sources;
    request.device = device;
    if (findings != NULL) {
        memset(findings, 0, sizeof(*findings));
        request.diagnostic = fixture_on_finding;
        request.diagnostic_self = findings;
    }
    struct moe_config *config = NULL;
    struct moe_error error;
    MOE_INIT(error);
    int32_t result = moe_config_create(&memory, &request, &config, &error);
    assert_int_equal(error.status, result); /* filled on failure, left alone on success */
    assert_true((config != NULL) == (result == MOE_STATUS_OK));
    if (status != NULL) {
        *status = result;
    } else if (result != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return config;
}

/* The snapshot of one text alone, without the built-in profiles. Fails the test on any finding. */
static inline struct moe_config *fixture_config(const char *text)
{
    struct moe_config_source source = fixture_text("test.yaml", text, MOE_CONFIG_REPLACE);
    struct fixture_findings findings;
    int32_t status;
    struct moe_config *config = fixture_read(&source, 1, NULL, &findings, &status);
    if (status != MOE_STATUS_OK || findings.num_findings != 0) {
        fail_msg("%s", findings.text);
    }
    return config;
}

static inline struct moe_device fixture_cpu(const char *isa, int32_t num_threads)
{
    struct moe_device device;
    MOE_INIT(device);
    device.backend = MOE_BACKEND_CPU;
    device.num_sms = num_threads;
    device.l2_bytes = INT64_C(32) << 20;
    snprintf(device.isa, sizeof(device.isa), "%s", isa);
    snprintf(device.name, sizeof(device.name), "Test CPU 9000");
    return device;
}

static inline struct moe_device fixture_h200(void)
{
    struct moe_device device;
    MOE_INIT(device);
    device.backend = MOE_BACKEND_CUDA;
    device.sm = 90;
    device.num_sms = 132;
    device.smem_bytes = 227 * 1024;
    device.l2_bytes = INT64_C(50) << 20;
    snprintf(device.name, sizeof(device.name), "NVIDIA H200");
    return device;
}

static inline struct moe_problem fixture_problem(int32_t experts, int32_t top_k, int32_t hidden,
                                                 int32_t inter, int64_t max_tokens)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = experts;
    problem.top_k = top_k;
    problem.hidden = hidden;
    problem.inter = inter;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.max_tokens = max_tokens;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;
    return problem;
}

/* The table; fails the test when it cannot be made. */
static inline struct moe_dispatch *fixture_dispatch(struct moe_config *config,
                                                    const struct moe_device *device,
                                                    const struct moe_problem *problem, uint64_t ops)
{
    struct moe_memory memory = fixture_memory();
    struct moe_dispatch *dispatch = NULL;
    struct moe_error error;
    MOE_INIT(error);
    if (moe_dispatch_create(&memory, config, device, problem, ops, &dispatch, &error) !=
        MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return dispatch;
}

/* Name of the rule that chose gemm1 for this many tokens. */
static inline const char *fixture_rule_at(const struct moe_dispatch *dispatch, int64_t num_tokens)
{
    return moe_dispatch_find(dispatch, num_tokens)->choices[MOE_OP_GEMM1].rule;
}

static inline const struct moe_tile *fixture_tile_at(const struct moe_dispatch *dispatch,
                                                     int32_t op, int64_t num_tokens)
{
    int32_t tile = moe_dispatch_find(dispatch, num_tokens)->choices[op].tile;
    assert_in_range(tile, 0, MOE_NUM_TILES - 1);
    return &moe_tiles[tile];
}

/* A whole file, terminated; the caller frees it. */
static inline char *fixture_read_file(const char *path, size_t *num_bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail_msg("cannot open %s", path);
    }
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    assert_true(size >= 0);
    rewind(file);
    char *text = calloc(1, (size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)size, file), (size_t)size);
    fclose(file);
    if (num_bytes != NULL) {
        *num_bytes = (size_t)size;
    }
    return text;
}

#endif
