/* SPDX-License-Identifier: Apache-2.0 */
/* P9 and P11 to P14: what is wrong or not implemented is refused, with a sentence, and nothing is
 * touched. */
#define _GNU_SOURCE
#include "conform_calls.h"
#include "conform_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---------------------------------------------------------------- wrong members */

enum subject { OF_PROBLEM, OF_OPTIONS, OF_PLAN_OPTIONS, OF_DEVICE, OF_CALL };

/* One member with a value that is outside of the contract. */
struct wrong {
    enum subject subject;
    const char *form; /* of OF_CALL */
    const char *member;
    size_t offset;
    size_t num_bytes;
    int64_t value;
};

#define AT(type, member) #member, offsetof(struct type, member), sizeof(((struct type *)0)->member)
#define PROBLEM(member, value)                           \
    {                                                    \
        OF_PROBLEM, NULL, AT(moe_problem, member), value \
    }
#define CALL(form, type, member, value)        \
    {                                          \
        OF_CALL, form, AT(type, member), value \
    }
static const struct wrong wrongs[] = {
    PROBLEM(flags, INT64_C(1) << 31),
    PROBLEM(activation, 99),
    PROBLEM(activation, -1),
    PROBLEM(gating, 99),
    PROBLEM(group_score, 99),
    PROBLEM(scaling_on, 99),
    PROBLEM(determinism, 99),
    PROBLEM(output_dtype, 99),
    PROBLEM(logits_dtype, -1),
    PROBLEM(tokens.dtype, 99),
    PROBLEM(gate_up.dtype, -1),
    PROBLEM(down.dtype, 99),
    PROBLEM(num_experts, -1),
    PROBLEM(num_physical_experts, 1),
    PROBLEM(num_appended_experts, -1),
    PROBLEM(top_k, MOE_CONFORM_EXPERTS + 1),
    PROBLEM(hidden, -1),
    PROBLEM(inter, -1),
    PROBLEM(max_tokens, -1),
    {OF_OPTIONS, NULL, AT(moe_context_options, flags), INT64_C(1) << 31},
    {OF_OPTIONS, NULL, AT(moe_context_options, backend), 99},
    {OF_OPTIONS, NULL, AT(moe_context_options, num_threads), -1},
    {OF_OPTIONS, NULL, AT(moe_context_options, num_config_sources), -1},
    {OF_PLAN_OPTIONS, NULL, AT(moe_plan_options, flags), 1},
    {OF_PLAN_OPTIONS, NULL, AT(moe_plan_options, ops), INT64_MIN},
    {OF_DEVICE, NULL, AT(moe_device, backend), 99},
    {OF_DEVICE, NULL, AT(moe_device, reserved), 1},
    CALL("layer of ids", moe_layer_args, call.flags, 1),
    CALL("layer of ids", moe_layer_args, call.num_tokens, -1),
    CALL("layer of ids", moe_layer_args, call.num_tokens, MOE_CONFORM_MAX_TOKENS + 1),
    CALL("layer of ids", moe_layer_args, ids_dtype, 99),
    CALL("layer of ids", moe_layer_args, reserved, 1),
    CALL("layer of ids", moe_layer_args, filter.mode, 99),
    CALL("layer of ids", moe_layer_args, filter.reserved, 1),
    CALL("layer of ids", moe_layer_args, token_stride, -1),
    CALL("layer of ids", moe_layer_args, output, 0),
    CALL("layer of ids", moe_layer_args, weights, 0),
    CALL("experts", moe_experts_args, call.flags, 1),
    CALL("experts", moe_experts_args, num_rows, -1),
    CALL("experts", moe_experts_args, rows, 0),
    CALL("gating", moe_gating_args, ids_dtype, 99),
    CALL("gating", moe_gating_args, topk_ids, 0),
    CALL("align_block_size", moe_align_args, ids_dtype, -1),
    CALL("align_block_size", moe_align_args, block_size, -1),
    CALL("align_block_size", moe_align_args, filter.mode, 99),
    CALL("ep_preprocess", moe_ep_preprocess_args, filter.reserved, 1),
    CALL("ep_preprocess", moe_ep_preprocess_args, seg_indptr, 0),
    CALL("ep_preprocess, masked", moe_ep_preprocess_args, max_masked_rows, 0),
    CALL("ep_preprocess, masked", moe_ep_preprocess_args, max_masked_rows, MOE_CONFORM_TOKENS - 1),
    CALL("align_block_size, batched", moe_align_args, max_batch_rows, -1),
    CALL("gating, replicas", moe_gating_args, max_replicas, 0),
    CALL("route", moe_route_args, ids_dtype, 99),
    CALL("route", moe_route_args, filter.mode, 99),
    CALL("route", moe_route_args, topk_ids, 0),
    CALL("route", moe_route_args, src2dst, 0),
    CALL("route", moe_route_args, sorted_capacity, 1),
    CALL("pre_reorder", moe_pre_reorder_args, num_rows, -1),
    CALL("activation", moe_activation_args, num_rows, -1),
    CALL("grouped_gemm, down", moe_grouped_gemm_args, which, 99),
    CALL("post_reorder", moe_post_reorder_args, output, 0),
    CALL("sum_reduce", moe_sum_reduce_args, input, 0),
};
#undef PROBLEM
#undef CALL

enum { NUM_WRONGS = sizeof wrongs / sizeof wrongs[0] };

/* Everything that a call could have touched, before it. */
struct snapshot {
    struct moe_conform_inputs in;
    struct moe_conform_outputs out;
};

static void set_member(void *object, const struct wrong *wrong)
{
    memcpy((unsigned char *)object + wrong->offset, &wrong->value, wrong->num_bytes);
}

/* The call with the wrong member. *created is what the output pointer became; -1: not offered. */
static int32_t call_wrong(struct moe_conform *conform, const struct wrong *wrong, void **created,
                          struct moe_error *error)
{
    const struct moe_plugin_api *api = conform->api;
    struct moe_problem problem = conform->problem;
    struct moe_device device = conform->device;
    struct moe_context_options options;
    struct moe_plan_options plan_options;
    MOE_INIT(*error);
    MOE_INIT(options);
    MOE_INIT(plan_options);
    options.backend = MOE_BACKEND_CPU;
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    options.num_threads = 1;
    struct moe_plan *plan = *created;
    struct moe_context *context = *created;
    int32_t status = MOE_STATUS_OK;
    switch (wrong->subject) {
    case OF_PROBLEM:
        set_member(&problem, wrong);
        status = api->plan_create(conform->context, &problem, NULL, &plan, error);
        *created = plan;
        break;
    case OF_OPTIONS:
        set_member(&options, wrong);
        status = api->context_create(&conform->services, &options, &context, error);
        *created = context;
        break;
    case OF_PLAN_OPTIONS:
        set_member(&plan_options, wrong);
        status = api->plan_create(conform->context, &problem, &plan_options, &plan, error);
        *created = plan;
        break;
    case OF_DEVICE:
        set_member(&device, wrong);
        status = api->supports(&device, &problem, 0, error);
        break;
    case OF_CALL: {
        const struct moe_conform_call *call = moe_conform_call_find(wrong->form);
        union moe_conform_args args;
        if (!moe_conform_call_is_offered(conform, call)) {
            return -1;
        }
        moe_conform_call_fill(call, conform, &args);
        set_member(&args, wrong);
        status = call->run(api, conform->plan, &args, error);
        break;
    }
    }
    return status;
}

static const char *subject_name(const struct wrong *wrong)
{
    switch (wrong->subject) {
    case OF_PROBLEM:
        return "moe_problem";
    case OF_OPTIONS:
        return "moe_context_options";
    case OF_PLAN_OPTIONS:
        return "moe_plan_options";
    case OF_DEVICE:
        return "moe_device";
    default:
        return wrong->form;
    }
}

void moe_conform_check_values(struct moe_conform *conform)
{
    moe_conform_open(conform, 1);
    for (size_t i = 0; i < NUM_WRONGS; ++i) {
        struct moe_error error;
        void *created = NULL;
        if (call_wrong(conform, &wrongs[i], &created, &error) == MOE_STATUS_OK) {
            moe_conform_fail(conform, "%s with %s = %lld is not refused", subject_name(&wrongs[i]),
                             wrongs[i].member, (long long)wrongs[i].value);
        }
    }
}

void moe_conform_check_sentences(struct moe_conform *conform)
{
    moe_conform_open(conform, 1);
    for (size_t i = 0; i < NUM_WRONGS; ++i) {
        struct moe_error error;
        void *created = NULL;
        const int32_t status = call_wrong(conform, &wrongs[i], &created, &error);
        if (status == MOE_STATUS_OK || status == -1) {
            continue; /* P9 tells */
        }
        const char *name = strrchr(wrongs[i].member, '.');
        name = name != NULL ? name + 1 : wrongs[i].member;
        const char *word = strrchr(name, '_'); /* "num_config_sources": "sources" at least */
        word = word != NULL ? word + 1 : name;
        if (error.status != status || memchr(error.message, '\0', sizeof error.message) == NULL) {
            moe_conform_fail(conform,
                             "%s with a wrong %s: `error` does not have the status and a sentence",
                             subject_name(&wrongs[i]), wrongs[i].member);
        }
        if (strstr(error.message, word) == NULL) {
            moe_conform_fail(conform, "%s with a wrong %s: \"%s\" does not name the thing",
                             subject_name(&wrongs[i]), name, error.message);
        }
    }
}

void moe_conform_check_untouched(struct moe_conform *conform)
{
    moe_conform_open(conform, 1);
    struct snapshot *before = malloc(sizeof *before);
    if (before == NULL) {
        moe_conform_skip(conform, "no memory for a copy of the tensors");
    }
    before->in = *conform->in;
    memcpy(&before->out, conform->out, sizeof before->out);
    for (size_t i = 0; i < NUM_WRONGS; ++i) {
        struct moe_error error;
        void *created = before;
        const int32_t status = call_wrong(conform, &wrongs[i], &created, &error);
        if (status == MOE_STATUS_OK || status == -1) {
            moe_conform_reset(conform, MOE_CONFORM_POISON); /* P9 tells */
            continue;
        }
        if (created != before) {
            moe_conform_fail(conform, "%s with a wrong %s: the output pointer was written",
                             subject_name(&wrongs[i]), wrongs[i].member);
        }
        /* Bytes are compared on purpose: a NaN that was written is a difference too. */
        /* NOLINTBEGIN(bugprone-suspicious-memory-comparison) */
        const int is_touched = memcmp(&before->in, conform->in, sizeof before->in) != 0 ||
                               memcmp(&before->out, conform->out, sizeof before->out) != 0;
        /* NOLINTEND(bugprone-suspicious-memory-comparison) */
        if (is_touched) {
            moe_conform_fail(conform, "%s with a wrong %s: tensors were written",
                             subject_name(&wrongs[i]), wrongs[i].member);
        }
        moe_conform_check_bands(conform, subject_name(&wrongs[i]), MOE_CONFORM_POISON, 0);
    }
    free(before);
}

/* ---------------------------------------------------------------- P13 */

/* Refused with a sentence: fine. Returns whether the call was taken. */
static int is_taken(struct moe_conform *conform, const char *what, int32_t status,
                    const struct moe_error *error)
{
    if (status == MOE_STATUS_OK) {
        return 1;
    }
    if (status != MOE_STATUS_UNSUPPORTED && status != MOE_STATUS_INVALID_ARGUMENT) {
        moe_conform_fail(conform, "%s: status %d instead of UNSUPPORTED: %s", what, status,
                         error->message);
    }
    if (error->message[0] == '\0') {
        moe_conform_fail(conform, "%s is refused without a reason", what);
    }
    return 0;
}

/* Members that plugins may leave out: taken means obeyed. */
static void check_gating_extras(struct moe_conform *conform)
{
    const struct moe_conform_call *call = moe_conform_call_find("gating");
    union moe_conform_args args;
    struct moe_error error;
    if (!moe_conform_call_is_offered(conform, call)) {
        return;
    }
    conform->in->spare[0] = 2;
    moe_conform_call_fill(call, conform, &args);
    args.gating.num_valid_tokens = conform->in->spare;
    MOE_INIT(error);
    if (is_taken(conform, "gating with num_valid_tokens",
                 call->run(conform->api, conform->plan, &args, &error), &error) &&
        conform->out->topk_ids[2 * conform->problem.top_k] != -1) {
        moe_conform_fail(conform, "gating takes num_valid_tokens and ignores it");
    }
    moe_conform_reset(conform, MOE_CONFORM_POISON);
    int64_t counters[MOE_CONFORM_EXPERTS] = {0};
    int64_t sum = 0;
    moe_conform_call_fill(call, conform, &args);
    args.gating.load_counters = counters;
    MOE_INIT(error);
    if (is_taken(conform, "gating with load_counters",
                 call->run(conform->api, conform->plan, &args, &error), &error)) {
        for (int expert = 0; expert < MOE_CONFORM_EXPERTS; ++expert) {
            sum += counters[expert];
        }
        if (sum != (int64_t)MOE_CONFORM_TOKENS * conform->problem.top_k) {
            moe_conform_fail(conform, "gating takes load_counters and ignores them");
        }
    }
}

static void check_device_count(struct moe_conform *conform)
{
    static const int32_t num_tokens = 1;
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        const struct moe_conform_call *call = &moe_conform_calls[i];
        union moe_conform_args args;
        struct moe_error error;
        if (call->op != MOE_OP_LAYER || !moe_conform_call_is_offered(conform, call)) {
            continue;
        }
        moe_conform_reset(conform, MOE_CONFORM_POISON);
        moe_conform_call_fill(call, conform, &args);
        args.call.num_tokens_device = &num_tokens;
        MOE_INIT(error);
        const unsigned char *last = (const unsigned char *)conform->out->tokens +
                                    (size_t)MOE_CONFORM_HIDDEN * ref_dtype_bytes(conform->element);
        if (is_taken(conform, "a call with num_tokens_device",
                     call->run(conform->api, conform->plan, &args, &error), &error) &&
            *last != MOE_CONFORM_POISON) {
            moe_conform_fail(conform, "%s takes num_tokens_device and ignores it", call->form);
        }
    }
}

/* supports and plan_create give the same answer for each recipe. */
static void check_recipes(struct moe_conform *conform)
{
    static const int32_t dtypes[] = {MOE_DTYPE_FP8_E4M3, MOE_DTYPE_INT8,  MOE_DTYPE_INT4,
                                     MOE_DTYPE_MXFP4,    MOE_DTYPE_NVFP4, MOE_DTYPE_UE8M0};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; ++i) {
        struct moe_problem problem = conform->problem;
        struct moe_plan *plan = NULL;
        struct moe_error error;
        char what[64];
        snprintf(what, sizeof what, "weights of dtype %d", dtypes[i]);
        problem.gate_up.dtype = dtypes[i];
        problem.down.dtype = dtypes[i];
        MOE_INIT(error);
        const int is_supported = is_taken(
            conform, what, conform->api->supports(&conform->device, &problem, 0, &error), &error);
        MOE_INIT(error);
        const int is_planned = is_taken(
            conform, what,
            conform->api->plan_create(conform->context, &problem, NULL, &plan, &error), &error);
        conform->api->plan_destroy(plan);
        if (is_supported != is_planned) {
            moe_conform_fail(conform, "%s: supports says %s, plan_create %s", what,
                             is_supported ? "yes" : "no", is_planned ? "yes" : "no");
        }
    }
}

void moe_conform_check_not_ignored(struct moe_conform *conform)
{
    moe_conform_open(conform, 1);
    check_recipes(conform);
    check_gating_extras(conform);
    check_device_count(conform);
}

/* ---------------------------------------------------------------- P14 */

void moe_conform_check_silence(struct moe_conform *conform)
{
    const int fd = memfd_create("moectl-conform", MFD_CLOEXEC);
    if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0) {
        moe_conform_skip(conform, "the output of the process cannot be caught here");
    }
    moe_conform_open(conform, 2);
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        if (moe_conform_call_is_offered(conform, &moe_conform_calls[i])) {
            moe_conform_call_run(&moe_conform_calls[i], conform);
        }
    }
    for (size_t i = 0; i < NUM_WRONGS; ++i) {
        struct moe_error error;
        void *created = NULL;
        call_wrong(conform, &wrongs[i], &created, &error);
    }
    moe_conform_close(conform);
    struct stat facts;
    fflush(stdout);
    if (fstat(fd, &facts) != 0 || facts.st_size != 0) {
        moe_conform_fail(conform, "it printed %lld bytes", (long long)facts.st_size);
    }
}
