/* SPDX-License-Identifier: Apache-2.0 */
/* P16 to P20: what calls read and write, and the bits of their results. */
#define _GNU_SOURCE
#include "conform_calls.h"
#include "conform_rules.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- P16 */

static uint64_t workspace_of(struct moe_conform *conform, const struct moe_conform_call *call)
{
    struct moe_choice choice;
    struct moe_error error;
    MOE_INIT(choice);
    MOE_INIT(error);
    moe_conform_require(
        conform,
        conform->api->plan_op_info(conform->plan, call->op, MOE_CONFORM_TOKENS, &choice, &error),
        &error, "plan_op_info");
    if (choice.workspace_bytes > conform->info.workspace_bytes) {
        moe_conform_fail(conform, "%s: plan_op_info asks for more workspace than plan_info",
                         call->form);
    }
    return choice.workspace_bytes;
}

static void run_exactly(struct moe_conform *conform, const struct moe_conform_call *call,
                        uint64_t workspace_bytes, unsigned char poison)
{
    union moe_conform_args args;
    struct moe_error error;
    MOE_INIT(error);
    moe_conform_reset(conform, poison);
    moe_conform_call_fill(call, conform, &args);
    args.call.workspace = workspace_bytes > 0 ? conform->workspace : NULL;
    args.call.workspace_bytes = workspace_bytes;
    const int32_t status = call->run(conform->api, conform->plan, &args, &error);
    if (status != MOE_STATUS_OK) {
        moe_conform_fail(conform, "%s with exactly %llu bytes of workspace: status %d: %s",
                         call->form, (unsigned long long)workspace_bytes, status, error.message);
    }
    moe_conform_check_bands(conform, call->form, poison, workspace_bytes);
}

void moe_conform_check_workspace(struct moe_conform *conform)
{
    moe_conform_open(conform, 2);
    struct moe_conform_inputs *in = malloc(sizeof *in);
    struct moe_conform_outputs *first =
        aligned_alloc(_Alignof(struct moe_conform_outputs), sizeof *first);
    if (in == NULL || first == NULL) {
        moe_conform_skip(conform, "no memory for copies of the tensors");
    }
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        const struct moe_conform_call *call = &moe_conform_calls[i];
        if (!moe_conform_call_is_offered(conform, call)) {
            continue;
        }
        const uint64_t bytes = workspace_of(conform, call);
        run_exactly(conform, call, bytes, 0x5A);
        memcpy(first, conform->out, sizeof *first);
        *in = *conform->in;
        run_exactly(conform, call, bytes, MOE_CONFORM_POISON);
        /* Bytes are compared on purpose: a NaN that was written is a difference too. */
        /* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison) */
        if (memcmp(in, conform->in, sizeof *in) != 0) {
            moe_conform_fail(conform, "%s writes to its inputs", call->form);
        }
        /* What it wrote is what it computed: it does not depend on what lay there before. */
        const unsigned char *before = (const unsigned char *)first;
        const unsigned char *now = (const unsigned char *)conform->out;
        for (size_t b = 0; b < sizeof *first; ++b) {
            if (before[b] != now[b] && !(before[b] == 0x5A && now[b] == MOE_CONFORM_POISON)) {
                moe_conform_fail(conform, "%s: the result depends on what the memory held before",
                                 call->form);
            }
        }
        if (bytes > 0) {
            union moe_conform_args args;
            moe_conform_call_fill(call, conform, &args);
            args.call.workspace_bytes = bytes - 1;
            if (call->run(conform->api, conform->plan, &args, NULL) !=
                MOE_STATUS_WORKSPACE_TOO_SMALL) {
                moe_conform_fail(conform,
                                 "%s: one byte less workspace is not refused with "
                                 "WORKSPACE_TOO_SMALL",
                                 call->form);
            }
        }
    }
    free(in);
    free(first);
}

/* ---------------------------------------------------------------- P17, P18 */

/* Overwrites one index array with each value in turn, and runs every call. */
void moe_conform_check_any_index(struct moe_conform *conform)
{
    static const int32_t values[] = {-1, INT32_MIN, INT32_MAX, MOE_CONFORM_EXPERTS, 1 << 20};
    moe_conform_open(conform, 2);
    struct moe_conform_inputs *in = conform->in;
    const struct {
        int32_t *indices;
        size_t num_indices;
    } arrays[] = {
        {in->topk_ids, MOE_CONFORM_ROUTES},
        {in->src2dst, MOE_CONFORM_ROUTES},
        {in->sorted_ids, MOE_CONFORM_SORTED},
        {in->expert_ids, MOE_CONFORM_SORTED},
        {in->expert_map, MOE_CONFORM_EXPERTS},
        {in->num_tokens_post_pad, 1},
        {in->num_valid_tokens, 1},
        {in->num_replicas, MOE_CONFORM_EXPERTS},
        {in->batch_counts, MOE_CONFORM_EXPERTS},
    };
    for (size_t a = 0; a < sizeof arrays / sizeof arrays[0]; ++a) {
        for (size_t v = 0; v < sizeof values / sizeof values[0]; ++v) {
            for (size_t i = 0; i < moe_conform_num_calls; ++i) {
                const struct moe_conform_call *call = &moe_conform_calls[i];
                union moe_conform_args args;
                if (!moe_conform_call_is_offered(conform, call)) {
                    continue;
                }
                moe_conform_reset(conform, MOE_CONFORM_POISON);
                for (size_t n = 0; n < arrays[a].num_indices; n += 1 + (v & 1)) {
                    arrays[a].indices[n] = values[v];
                }
                moe_conform_call_fill(call, conform, &args);
                call->run(conform->api, conform->plan, &args,
                          NULL); /* taken or refused: both fine */
                moe_conform_check_bands(conform, call->form, MOE_CONFORM_POISON,
                                        conform->info.workspace_bytes);
            }
        }
    }
}

void moe_conform_check_no_tokens(struct moe_conform *conform)
{
    moe_conform_open(conform, 2);
    struct moe_error error;
    union moe_conform_args args;
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        const struct moe_conform_call *call = &moe_conform_calls[i];
        if (!moe_conform_call_is_offered(conform, call)) {
            continue;
        }
        moe_conform_reset(conform, MOE_CONFORM_POISON);
        moe_conform_call_fill(call, conform, &args);
        args.call.num_tokens = 0;
        MOE_INIT(error);
        const int32_t status = call->run(conform->api, conform->plan, &args, &error);
        if (status != MOE_STATUS_OK) {
            moe_conform_fail(conform, "%s without tokens: status %d: %s", call->form, status,
                             error.message);
        }
        const unsigned char *tokens = (const unsigned char *)conform->out->tokens;
        for (size_t b = 0; b < sizeof conform->out->tokens; ++b) {
            if (tokens[b] != MOE_CONFORM_POISON) {
                moe_conform_fail(conform, "%s without tokens writes rows", call->form);
            }
        }
    }
    moe_conform_close_shape(conform);
    if (!moe_conform_open_shape(conform, &moe_conform_shapes[1], &error)) {
        return; /* tokens without a local route are seen in P24 only, shared expert included */
    }
    for (int route = 0; route < MOE_CONFORM_ROUTES; ++route) {
        conform->in->topk_ids[route] = -1;
    }
    moe_conform_call_fill(moe_conform_call_find("layer of ids"), conform, &args);
    args.layer.residual = NULL;
    moe_conform_require(conform, conform->api->layer(conform->plan, &args.layer, &error), &error,
                        "layer without local routes");
    for (int i = 0; i < MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN; ++i) {
        if (ref_load(conform->element, conform->out->tokens, i) != 0.0) {
            moe_conform_fail(conform, "layer: a token without a local route is not zero");
        }
    }
}

/* ---------------------------------------------------------------- P19 */

/* The layer on all tokens at once; the case's plan. */
static void run_layer(struct moe_conform *conform, const struct moe_plan *plan, int64_t first,
                      int64_t num_tokens, void *workspace, uint64_t workspace_bytes, void *output)
{
    const size_t row_bytes = (size_t)MOE_CONFORM_HIDDEN * ref_dtype_bytes(conform->element);
    const size_t skipped_bytes = (size_t)first * row_bytes;
    union moe_conform_args args;
    struct moe_error error;
    MOE_INIT(error);
    moe_conform_call_fill(moe_conform_call_find("layer of ids"), conform, &args);
    args.call.num_tokens = num_tokens;
    args.call.workspace = workspace;
    args.call.workspace_bytes = workspace_bytes;
    args.layer.tokens = (const unsigned char *)args.layer.tokens + skipped_bytes;
    args.layer.residual = (const unsigned char *)args.layer.residual + skipped_bytes;
    args.layer.topk_ids = (const int32_t *)args.layer.topk_ids + first * conform->problem.top_k;
    args.layer.topk_weights += first * conform->problem.top_k;
    args.layer.output = (unsigned char *)output + skipped_bytes;
    const int32_t status = conform->api->layer(plan, &args.layer, &error);
    if (status != MOE_STATUS_OK) {
        moe_conform_fail(conform, "layer of %lld tokens: status %d: %s", (long long)num_tokens,
                         status, error.message);
    }
}

static void require_same(struct moe_conform *conform, const void *wanted, const char *what)
{
    const size_t num_bytes =
        (size_t)MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN * ref_dtype_bytes(conform->element);
    if (memcmp(wanted, conform->out->tokens, num_bytes) != 0) {
        moe_conform_fail(conform, "the layer has other bits %s", what);
    }
}

static void check_chunks(struct moe_conform *conform, const void *wanted)
{
    struct moe_plan_options options;
    struct moe_error error;
    MOE_INIT(options);
    for (uint64_t part = 2; part <= 8; part *= 2) {
        struct moe_plan *plan = NULL;
        struct moe_plan_info info;
        MOE_INIT(error);
        MOE_INIT(info);
        options.workspace_cap = conform->info.workspace_bytes / part;
        const int32_t status =
            conform->api->plan_create(conform->context, &conform->problem, &options, &plan, &error);
        if (status == MOE_STATUS_WORKSPACE_TOO_SMALL || options.workspace_cap == 0) {
            conform->api->plan_destroy(plan);
            return;
        }
        moe_conform_require(conform, status, &error, "plan_create with a workspace cap");
        moe_conform_require(conform, conform->api->plan_info(plan, &info, &error), &error,
                            "plan_info");
        if (info.workspace_bytes > options.workspace_cap) {
            moe_conform_fail(conform, "a plan capped at %llu bytes asks for %llu",
                             (unsigned long long)options.workspace_cap,
                             (unsigned long long)info.workspace_bytes);
        }
        moe_conform_reset(conform, MOE_CONFORM_POISON);
        run_layer(conform, plan, 0, MOE_CONFORM_TOKENS, conform->workspace, info.workspace_bytes,
                  conform->out->tokens);
        conform->api->plan_destroy(plan);
        require_same(conform, wanted, "when it runs in chunks");
    }
}

void moe_conform_check_same_bits(struct moe_conform *conform)
{
    float wanted[MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN];
    moe_conform_open(conform, 1);
    const struct moe_conform_shape *shape = conform->shape;
    struct moe_error error;
    run_layer(conform, conform->plan, 0, MOE_CONFORM_TOKENS, conform->workspace,
              conform->info.workspace_bytes, conform->out->tokens);
    memcpy(wanted, conform->out->tokens, sizeof wanted);
    moe_conform_reset(conform, MOE_CONFORM_POISON);
    for (int64_t token = 0; token < MOE_CONFORM_TOKENS; ++token) {
        run_layer(conform, conform->plan, token, 1, conform->workspace,
                  conform->info.workspace_bytes, conform->out->tokens);
    }
    require_same(conform, wanted, "when tokens come one at a time");
    check_chunks(conform, wanted);
    for (int32_t num_threads = 2; num_threads <= 4; ++num_threads) {
        moe_conform_close(conform);
        moe_conform_open_context(conform, num_threads);
        moe_conform_open_shape(conform, shape, &error);
        run_layer(conform, conform->plan, 0, MOE_CONFORM_TOKENS, conform->workspace,
                  conform->info.workspace_bytes, conform->out->tokens);
        require_same(conform, wanted, "with more threads");
    }
}

/* ---------------------------------------------------------------- P20 */

enum { NUM_CALLERS = 4, NUM_ROUNDS = 200 };

struct caller {
    struct moe_conform *conform;
    const float *wanted;
    pthread_t thread;
};

static void *call_repeatedly(void *argument)
{
    struct caller *caller = argument;
    struct moe_conform *conform = caller->conform;
    const size_t num_bytes =
        (size_t)MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN * ref_dtype_bytes(conform->element);
    float output[MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN];
    void *workspace = NULL;
    const uint64_t alignment = conform->info.workspace_alignment > sizeof(void *)
                                   ? conform->info.workspace_alignment
                                   : sizeof(void *);
    if (posix_memalign(&workspace, alignment, conform->info.workspace_bytes + 1) != 0) {
        moe_conform_skip(conform, "no memory for the workspaces of several threads");
    }
    for (int round = 0; round < NUM_ROUNDS; ++round) {
        memset(output, MOE_CONFORM_POISON, sizeof output);
        run_layer(conform, conform->plan, 0, MOE_CONFORM_TOKENS, workspace,
                  conform->info.workspace_bytes, output);
        if (memcmp(output, caller->wanted, num_bytes) != 0) {
            moe_conform_fail(conform, "a layer call among %d concurrent ones has other bits",
                             NUM_CALLERS);
        }
    }
    free(workspace);
    return NULL;
}

void moe_conform_check_many_threads(struct moe_conform *conform)
{
    float wanted[MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN];
    struct caller callers[NUM_CALLERS];
    moe_conform_open(conform, 2);
    run_layer(conform, conform->plan, 0, MOE_CONFORM_TOKENS, conform->workspace,
              conform->info.workspace_bytes, conform->out->tokens);
    memcpy(wanted, conform->out->tokens, sizeof wanted);
    for (int i = 0; i < NUM_CALLERS; ++i) {
        callers[i].conform = conform;
        callers[i].wanted = wanted;
        if (pthread_create(&callers[i].thread, NULL, call_repeatedly, &callers[i]) != 0) {
            moe_conform_skip(conform, "no threads to call from");
        }
    }
    for (int i = 0; i < NUM_CALLERS; ++i) {
        pthread_join(callers[i].thread, NULL);
    }
}
