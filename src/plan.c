/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

#include "device.h"
#include "status.h"
#include "structs.h"
#include "tiles.h"

#include <stdio.h>
#include <string.h>

/* Operations that rows of tiles.def exist for; dispatch chooses for these only. */
static uint64_t tiled_ops(uint64_t ops)
{
    uint64_t result = 0;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if ((ops & MOE_OP_BIT(op)) != 0 && moe_tiles_op_has_tiles(op)) {
            result |= MOE_OP_BIT(op);
        }
    }
    return result;
}

/* Read, check and accept a problem for a device; the part of plan_create that needs no context. */
static int32_t accept_problem(const struct moe_backend *backend, const struct moe_device *device,
                              const struct moe_problem *problem, uint64_t ops,
                              struct moe_problem *own, uint64_t *expanded, struct moe_error *error)
{
    MOE_TRY(moe_problem_read(own, problem, error));
    MOE_TRY(moe_problem_expand_ops(own, ops, expanded, error));
    if ((*expanded & MOE_OP_BIT(MOE_OP_LAYER)) != 0) {
        *expanded |= backend->layer_ops;
    }
    MOE_TRY(moe_problem_check(own, *expanded, error));
    return backend->supports(device, own, *expanded, error);
}

int32_t moe_plan_supports(const struct moe_device *device, const struct moe_problem *problem,
                          uint64_t ops, struct moe_error *error)
{
    struct moe_device own_device;
    struct moe_problem own_problem;
    uint64_t expanded = 0;
    MOE_TRY(moe_device_read(&own_device, device, error));
    const struct moe_backend *backend = moe_backend_find(own_device.backend);
    if (backend == NULL) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED, "%s",
                             moe_device_absence(own_device.backend));
    }
    return accept_problem(backend, &own_device, problem, ops, &own_problem, &expanded, error);
}

uint64_t moe_plan_op_workspace(const struct moe_plan *plan, int32_t op, int64_t num_tokens)
{
    const struct moe_dispatch *dispatch = plan->dispatch;
    uint64_t largest = 0;
    for (int32_t i = 0; i < dispatch->num_buckets; i++) {
        const struct moe_dispatch_bucket *bucket = &dispatch->buckets[i];
        if (bucket->min_tokens > num_tokens) {
            break;
        }
        int64_t tokens = bucket->max_tokens < num_tokens ? bucket->max_tokens : num_tokens;
        uint64_t bytes = plan->backend->op_workspace(plan, bucket, op, tokens);
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

static bool is_chunked(int32_t op)
{
    return op == MOE_OP_LAYER || op == MOE_OP_EXPERTS;
}

int64_t moe_plan_pass_tokens(const struct moe_plan *plan, int32_t op, int64_t num_tokens)
{
    return is_chunked(op) && num_tokens > plan->chunk_tokens ? plan->chunk_tokens : num_tokens;
}

uint64_t moe_plan_call_workspace(const struct moe_plan *plan, int32_t op, int64_t num_tokens)
{
    int64_t pass_tokens = moe_plan_pass_tokens(plan, op, num_tokens);
    if (pass_tokens < num_tokens) {
        return moe_plan_op_workspace(
            plan, op, pass_tokens); /* the last pass may fall in any smaller bucket */
    }
    return plan->backend->op_workspace(plan, moe_dispatch_find(plan->dispatch, num_tokens), op,
                                       num_tokens);
}

/* Largest workspace of the operations of a plan when the layer runs in chunks of `chunk_tokens`. */
static uint64_t workspace_for_chunk(const struct moe_plan *plan, int64_t chunk_tokens)
{
    uint64_t largest = 0;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if ((plan->ops & MOE_OP_BIT(op)) == 0) {
            continue;
        }
        uint64_t bytes = moe_plan_op_workspace(
            plan, op, is_chunked(op) ? chunk_tokens : plan->problem.max_tokens);
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

/* Choose the largest chunk of tokens whose workspace fits the cap (0: none). */
static int32_t size_workspace(struct moe_plan *plan, uint64_t cap, struct moe_error *error)
{
    int64_t fits = plan->problem.max_tokens;
    uint64_t bytes = workspace_for_chunk(plan, fits);
    if (cap > 0 && bytes > cap) {
        uint64_t smallest = workspace_for_chunk(plan, 1);
        if (smallest > cap) {
            return moe_error_set(error, MOE_STATUS_WORKSPACE_TOO_SMALL,
                                 "workspace_cap is %llu bytes, but one token at a time needs %llu",
                                 (unsigned long long)cap, (unsigned long long)smallest);
        }
        int64_t too_large = fits;
        fits = 1;
        while (too_large - fits > 1) {
            int64_t middle = fits + (too_large - fits) / 2;
            if (workspace_for_chunk(plan, middle) <= cap) {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        bytes = workspace_for_chunk(plan, fits);
    }
    plan->chunk_tokens = fits;
    plan->workspace_bytes = bytes;
    return MOE_STATUS_OK;
}

/* A line of the log grows here; what does not fit is cut and ends with dots. */
struct live_choices {
    char text[256];
    size_t length;
    bool is_cut;
};

static void append_choice(struct live_choices *live, const struct moe_dispatch_bucket *bucket,
                          const struct moe_dispatch_choice *choice)
{
    static const char dots[] = "...";
    const size_t room = sizeof(live->text) - live->length;
    if (live->is_cut) {
        return;
    }
    char *end = live->text + live->length;
    int written = choice->source == MOE_CHOICE_RULE
                      ? snprintf(end, room, "; T<=%lld %s (%s:%d)", (long long)bucket->max_tokens,
                                 choice->rule, choice->file, choice->line)
                      : snprintf(end, room, "; T<=%lld heuristic", (long long)bucket->max_tokens);
    live->is_cut = written < 0 || (size_t)written >= room;
    if (live->is_cut) {
        size_t cut = sizeof(live->text) - sizeof(dots);
        while (cut > 0 && ((unsigned char)live->text[cut] & 0xC0u) == 0x80u) {
            cut--; /* no UTF-8 sequence is cut */
        }
        memcpy(live->text + cut, dots, sizeof(dots));
    } else {
        live->length += (size_t)written;
    }
}

/* Count where the GEMM tiles came from, and say in one line which rules are live. */
static void report_choices(const struct moe_plan *plan)
{
    const struct moe_problem *problem = &plan->problem;
    struct moe_context *context = plan->context;
    struct live_choices live = {.length = 0};
    for (int32_t i = 0; i < plan->dispatch->num_buckets; i++) {
        const struct moe_dispatch_bucket *bucket = &plan->dispatch->buckets[i];
        const struct moe_dispatch_choice *choice = &bucket->choices[MOE_OP_GEMM1];
        if (choice->tile < 0) {
            continue;
        }
        atomic_fetch_add_explicit(choice->source == MOE_CHOICE_RULE
                                      ? &context->num_choices_by_rule
                                      : &context->num_choices_by_heuristic,
                                  1, memory_order_relaxed);
        append_choice(&live, bucket, choice);
    }
    atomic_fetch_add_explicit(&context->num_plans_created, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&context->num_buckets_skipped,
                              (uint64_t)plan->dispatch->num_buckets_skipped, memory_order_relaxed);
    moe_context_log(
        context, MOE_LEVEL_INFO,
        "moe-plugin: plan E %d top_k %d hidden %d inter %d %s, configuration %llu, gemm1%s",
        problem->num_experts, problem->top_k, problem->hidden, problem->inter,
        moe_dtype_name(problem->gate_up.dtype), (unsigned long long)plan->config_generation,
        live.text);
}

int32_t moe_plan_create(struct moe_context *context, const struct moe_problem *problem,
                        const struct moe_plan_options *options, struct moe_plan **out,
                        struct moe_error *error)
{
    struct moe_plan_options own_options;
    struct moe_problem own_problem;
    uint64_t ops = 0;
    if (context == NULL || out == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "plan_create: context or out is NULL");
    }
    MOE_INIT(own_options);
    if (options != NULL) {
        MOE_TRY(MOE_STRUCT_READ(&own_options, options, moe_plan_options, error));
    }
    if (own_options.flags != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "plan options: flags is 0x%x; no flag is defined", own_options.flags);
    }
    MOE_TRY(accept_problem(context->backend, &context->device, problem, own_options.ops,
                           &own_problem, &ops, error));

    int32_t status = MOE_STATUS_OK;
    struct moe_config *config = NULL;
    struct moe_plan *plan = moe_memory_alloc(&context->memory, sizeof(*plan));
    if (plan == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                             "plan_create: no host memory for %zu bytes", sizeof(*plan));
    }
    plan->memory = context->memory;
    plan->context = context;
    plan->backend = context->backend;
    plan->problem = own_problem;
    plan->ops = ops;
    plan->max_rows = moe_problem_max_rows(&own_problem);
    config = moe_context_take_config(context, &plan->config_generation);
    MOE_TRY_GOTO(moe_dispatch_create(&context->memory, config, &context->device, &plan->problem,
                                     tiled_ops(ops), &plan->dispatch, error));
    MOE_TRY_GOTO(size_workspace(plan, own_options.workspace_cap, error));
    moe_config_unref(config);
    report_choices(plan);
    *out = plan;
    return MOE_STATUS_OK;

fail:
    moe_config_unref(config);
    moe_plan_destroy(plan);
    return status;
}

void moe_plan_destroy(struct moe_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    struct moe_memory memory = plan->memory;
    moe_dispatch_destroy(plan->dispatch);
    moe_memory_free(&memory, plan, sizeof(*plan));
}

int32_t moe_plan_info(const struct moe_plan *plan, struct moe_plan_info *out,
                      struct moe_error *error)
{
    if (plan == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "plan is NULL");
    }
    struct moe_plan_info info;
    MOE_INIT(info);
    info.num_buckets = plan->dispatch->num_buckets;
    info.workspace_bytes = plan->workspace_bytes;
    info.workspace_alignment = plan->backend->workspace_alignment;
    info.chunk_tokens = plan->chunk_tokens;
    info.max_rows = plan->max_rows;
    info.config_generation = plan->config_generation;
    return MOE_STRUCT_WRITE(out, &info, moe_plan_info, error);
}

/* experts and layer have no tile of their own; what names them is their first GEMM. */
static int32_t choice_op(int32_t op)
{
    return moe_tiles_op_has_tiles(op) ? op : MOE_OP_GEMM1;
}

int32_t moe_plan_op_info(const struct moe_plan *plan, int32_t op, int64_t num_tokens,
                         struct moe_choice *out, struct moe_error *error)
{
    if (plan == NULL || op < 0 || op >= MOE_NUM_OPS || (plan->ops & MOE_OP_BIT(op)) == 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "plan_op_info: operation %s (%d) is not part of the plan",
                             moe_tiles_op_name(op), op);
    }
    if (num_tokens < 0 || num_tokens > plan->problem.max_tokens) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "plan_op_info: num_tokens is %lld; the plan has 0 to %lld",
                             (long long)num_tokens, (long long)plan->problem.max_tokens);
    }
    const struct moe_dispatch_bucket *bucket =
        moe_dispatch_find(plan->dispatch, moe_plan_pass_tokens(plan, op, num_tokens));
    const struct moe_dispatch_choice *choice = &bucket->choices[choice_op(op)];
    struct moe_choice info;
    MOE_INIT(info);
    info.op = op;
    info.min_tokens = bucket->min_tokens;
    info.max_tokens = bucket->max_tokens;
    info.source = choice->source;
    info.line = choice->line;
    info.tile = choice->tile;
    info.workspace_bytes = moe_plan_call_workspace(plan, op, num_tokens);
    info.tile_name = moe_tiles[choice->tile].name;
    info.rule = choice->rule;
    info.file = choice->file;
    return MOE_STRUCT_WRITE(out, &info, moe_choice, error);
}

int32_t moe_plan_explain(const struct moe_context *context, const struct moe_device *device,
                         const struct moe_problem *problem, int64_t num_tokens,
                         const struct moe_explain_sink *sink, struct moe_error *error)
{
    struct moe_device own_device;
    struct moe_problem own_problem;
    struct moe_explain_sink own_sink;
    uint64_t ops = 0, generation = 0;
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    own_device = context->device;
    if (device != NULL) {
        MOE_TRY(moe_device_read(&own_device, device, error));
    }
    MOE_TRY(moe_problem_read(&own_problem, problem, error));
    if (num_tokens < 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "explain: num_tokens is %lld",
                             (long long)num_tokens);
    }
    if (own_problem.max_tokens < num_tokens || own_problem.max_tokens == 0) {
        own_problem.max_tokens = num_tokens > 0 ? num_tokens : 1;
    }
    MOE_TRY(moe_problem_expand_ops(&own_problem, 0, &ops, error));
    MOE_TRY(moe_problem_check(&own_problem, ops, error));
    MOE_TRY(MOE_STRUCT_READ(&own_sink, sink, moe_explain_sink, error));
    if (own_sink.flags != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "explain sink: flags is 0x%x; no flag is defined", own_sink.flags);
    }
    struct moe_config *config =
        moe_context_take_config((struct moe_context *)(uintptr_t)context, &generation);
    int32_t status = moe_explain(&context->memory, config, &own_device, &own_problem,
                                 tiled_ops(ops), num_tokens, &own_sink, error);
    moe_config_unref(config);
    return status;
}
