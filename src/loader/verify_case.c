/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "verify_case.h"

#include "loader_status.h"
#include "verify_number.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_TOKENS = 16, OUTPUT_POISON = 0xFF /* NaN in every float type, -1 as an id */ };

#define FORM_NAME(constant, name) name,
static const char *const form_names[] = {MOE_VERIFY_FORM_LIST(FORM_NAME)};

const char *moe_verify_form_name(int32_t form)
{
    return form_names[form];
}

static bool has_op(const struct moe_loader_slot *slot, int32_t op)
{
    return slot->options.ops == 0 || (slot->options.ops >> op & 1) != 0;
}

static bool is_layer(int32_t form)
{
    return form != MOE_VERIFY_EXPERTS;
}

static bool makes_routes(int32_t form)
{
    return form == MOE_VERIFY_LAYER_LOGITS || form == MOE_VERIFY_LAYER_ROUTER;
}

bool moe_verify_form_applies(const struct moe_loader_slot *slot, int32_t form)
{
    const struct moe_problem *problem = &slot->problem;
    const bool can_route = has_op(slot, MOE_OP_LAYER) && problem->gating != MOE_GATING_NONE &&
                           problem->num_appended_experts == 0;
    const bool has_experts = slot->weights.up.base != NULL || slot->weights.up.table != NULL;
    const bool has_router = slot->weights.router.base != NULL || slot->weights.router.table != NULL;
    if (!has_experts || problem->max_tokens < 1) {
        return false;
    }
    switch (form) {
    case MOE_VERIFY_LAYER_IDS:
        return has_op(slot, MOE_OP_LAYER);
    case MOE_VERIFY_LAYER_LOGITS:
        return can_route;
    case MOE_VERIFY_LAYER_ROUTER:
        return can_route && has_router;
    default:
        return !has_op(slot, MOE_OP_LAYER) && has_op(slot, MOE_OP_EXPERTS);
    }
}

/* ---- inputs ---- */

static int32_t num_global(const struct moe_problem *problem)
{
    return problem->num_experts_global != 0 ? problem->num_experts_global : problem->num_experts;
}

/* Write `num` elements that `make` gives, one call per element. */
static int32_t write_numbers(const struct moe_verify_case *test,
                             const struct moe_verify_block *block, int32_t dtype, double scale,
                             uint64_t *random, struct moe_error *error)
{
    const int64_t element_bytes = moe_verify_number_bytes(dtype);
    unsigned char *numbers = malloc((size_t)block->bytes + 1);
    if (numbers == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "verify: no memory for inputs");
    }
    for (uint64_t at = 0; at < block->bytes; at += (uint64_t)element_bytes) {
        moe_verify_number_store(dtype, scale * moe_verify_number_uniform(random), numbers + at);
    }
    const int32_t status = moe_verify_block_write(test->options, block, numbers, error);
    free(numbers);
    return status;
}

/* top_k different experts per token, by Fisher-Yates over a window of the ids. */
static int32_t write_routes(const struct moe_verify_case *test, uint64_t *random,
                            struct moe_error *error)
{
    const int32_t top_k = test->slot->problem.top_k;
    const int32_t num_experts = num_global(&test->slot->problem);
    int32_t *ids = malloc((size_t)test->num_ids * sizeof(*ids));
    int32_t *all = calloc((size_t)num_experts, sizeof(*all));
    int32_t status = MOE_STATUS_OUT_OF_MEMORY;
    if (ids == NULL || all == NULL) {
        moe_loader_status_set(error, status, "verify: no memory for inputs");
        goto done;
    }
    for (int32_t expert = 0; expert < num_experts; expert++) {
        all[expert] = expert;
    }
    for (int64_t route = 0; route < test->num_ids; route++) {
        const int64_t first = route % top_k;
        const int64_t picked = first + moe_verify_number_below(random, num_experts - first);
        const int32_t expert = all[picked];
        all[picked] = all[first];
        all[first] = expert;
        ids[route] = expert;
    }
    status = moe_verify_block_write(test->options, &test->ids, ids, error);
    if (status == MOE_STATUS_OK) {
        status = write_numbers(test, &test->weights, MOE_DTYPE_FP32, 1.0, random, error);
    }

done:
    free(ids);
    free(all);
    return status;
}

static int32_t write_segments(const struct moe_verify_case *test, struct moe_error *error)
{
    const int64_t num_experts = test->slot->problem.num_experts;
    int64_t *segments = malloc((size_t)(num_experts + 1) * sizeof(*segments));
    if (segments == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "verify: no memory for inputs");
    }
    for (int64_t expert = 0; expert <= num_experts; expert++) {
        segments[expert] = test->num_rows * expert / num_experts;
    }
    const int32_t status = moe_verify_block_write(test->options, &test->segments, segments, error);
    free(segments);
    return status;
}

/* ---- sizes ---- */

static int32_t resolve_sizes(struct moe_verify_case *test, const struct moe_loader_view *views[2],
                             struct moe_error *error)
{
    const struct moe_problem *problem = &test->slot->problem;
    const int64_t wanted =
        test->options->num_tokens != 0 ? test->options->num_tokens : DEFAULT_TOKENS;
    test->num_rows = wanted < problem->max_tokens ? wanted : problem->max_tokens;
    test->output_dtype = problem->output_dtype != 0 ? problem->output_dtype : problem->tokens.dtype;
    test->logits_dtype = problem->logits_dtype != 0 ? problem->logits_dtype : MOE_DTYPE_FP32;
    const int32_t dtypes[] = {problem->tokens.dtype, test->output_dtype, test->logits_dtype};
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (moe_verify_number_bytes(dtypes[i]) == 0) {
            return moe_loader_status_set(
                error, MOE_STATUS_UNSUPPORTED,
                "verify: slot %d has elements of dtype %d; inputs are made "
                "of fp32, fp16 and bf16",
                test->slot->idx, dtypes[i]);
        }
    }
    if (is_layer(test->form) && (problem->top_k < 1 || problem->top_k > num_global(problem))) {
        return moe_loader_status_set(error, MOE_STATUS_UNSUPPORTED,
                                     "verify: slot %d has top_k %d of %d experts", test->slot->idx,
                                     problem->top_k, num_global(problem));
    }
    for (int i = 0; i < 2 && views[i] != NULL; i++) {
        struct moe_plan_info info;
        MOE_INIT(info);
        const int32_t status = views[i]->api->plan_info(views[i]->plan, &info, error);
        if (status != MOE_STATUS_OK) {
            return status;
        }
        if (test->form == MOE_VERIFY_EXPERTS && info.max_rows < test->num_rows) {
            test->num_rows = info.max_rows;
        }
    }
    test->num_outputs = test->num_rows * problem->hidden;
    test->num_ids = is_layer(test->form) ? test->num_rows * problem->top_k : 0;
    test->num_logits = makes_routes(test->form) ? test->num_rows * num_global(problem) : 0;
    return MOE_STATUS_OK;
}

static int32_t allocate(struct moe_verify_case *test, const struct moe_loader_view *views[2],
                        struct moe_error *error)
{
    const struct moe_problem *problem = &test->slot->problem;
    const uint64_t num_rows = (uint64_t)test->num_rows;
    const uint64_t hidden = (uint64_t)problem->hidden;
    const uint64_t logits_bytes =
        (uint64_t)(test->num_logits * moe_verify_number_bytes(test->logits_dtype));
    uint64_t workspace_alignment = 0;
    for (int i = 0; i < 2 && views[i] != NULL; i++) {
        if (views[i]->workspace_alignment > workspace_alignment) {
            workspace_alignment = views[i]->workspace_alignment;
        }
        if (views[i]->workspace_bytes > test->workspace_bytes) {
            test->workspace_bytes = views[i]->workspace_bytes;
        }
    }
    const struct {
        struct moe_verify_block *block;
        uint64_t bytes;
        uint64_t alignment;
    } blocks[] = {
        {&test->tokens,
         num_rows * hidden * (uint64_t)moe_verify_number_bytes(problem->tokens.dtype), 0},
        {&test->ids, (uint64_t)test->num_ids * sizeof(int32_t), 0},
        {&test->weights,
         (uint64_t)(is_layer(test->form) ? test->num_ids : test->num_rows) * sizeof(float), 0},
        {&test->logits, logits_bytes, 0},
        {&test->segments, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t), 0},
        {&test->output, num_rows * hidden * (uint64_t)moe_verify_number_bytes(test->output_dtype),
         0},
        {&test->logits_out, logits_bytes, 0},
        {&test->ids_out, (uint64_t)test->num_ids * sizeof(int32_t), 0},
        {&test->weights_out, (uint64_t)test->num_ids * sizeof(float), 0},
        {&test->workspace, test->workspace_bytes, workspace_alignment},
    };
    int32_t status = MOE_STATUS_OK;
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]) && status == MOE_STATUS_OK; i++) {
        status = moe_verify_block_init(test->options, blocks[i].bytes, blocks[i].alignment,
                                       blocks[i].block, error);
    }
    return status;
}

int32_t moe_verify_case_init(struct moe_verify_case *test, const struct moe_loader_slot *slot,
                             int32_t form, const struct moe_loader_view *views[2],
                             const struct moe_loader_verify_options *options,
                             struct moe_error *error)
{
    memset(test, 0, sizeof(*test));
    test->options = options;
    test->slot = slot;
    test->form = form;
    uint64_t random = options->seed ^ (uint64_t)slot->idx << 8 ^ (uint64_t)form;
    int32_t status = resolve_sizes(test, views, error);
    if (status == MOE_STATUS_OK) {
        status = allocate(test, views, error);
    }
    if (status == MOE_STATUS_OK) {
        status =
            write_numbers(test, &test->tokens, slot->problem.tokens.dtype, 1.0, &random, error);
    }
    if (status == MOE_STATUS_OK && form == MOE_VERIFY_LAYER_IDS) {
        status = write_routes(test, &random, error);
    }
    if (status == MOE_STATUS_OK && form == MOE_VERIFY_LAYER_LOGITS) {
        status = write_numbers(test, &test->logits, test->logits_dtype, 4.0, &random, error);
    }
    if (status == MOE_STATUS_OK && form == MOE_VERIFY_EXPERTS) {
        status = write_numbers(test, &test->weights, MOE_DTYPE_FP32, 1.0, &random, error);
    }
    if (status == MOE_STATUS_OK && form == MOE_VERIFY_EXPERTS) {
        status = write_segments(test, error);
    }
    return status;
}

void moe_verify_case_finish(struct moe_verify_case *test)
{
    struct moe_verify_block *blocks[] = {
        &test->tokens, &test->ids,        &test->weights, &test->logits,      &test->segments,
        &test->output, &test->logits_out, &test->ids_out, &test->weights_out, &test->workspace,
    };
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
        moe_verify_block_finish(test->options, blocks[i]);
    }
}

/* ---- calls ---- */

static void fill_call(const struct moe_verify_case *test, const struct moe_loader_view *view,
                      struct moe_call *call)
{
    call->stream = test->options->stream;
    call->workspace = test->workspace.data;
    call->workspace_bytes = view->workspace_bytes;
    call->num_tokens = test->num_rows;
}

static int32_t call_layer(const struct moe_verify_case *test, const struct moe_loader_view *view,
                          struct moe_error *error)
{
    const struct moe_problem *problem = &test->slot->problem;
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    fill_call(test, view, &args.call);
    args.weights = view->weights;
    args.tokens = test->tokens.data;
    args.output = test->output.data;
    if (num_global(problem) > problem->num_experts) {
        args.filter.expert_end = problem->num_experts; /* this rank's share is the first */
    }
    if (test->form == MOE_VERIFY_LAYER_IDS) {
        args.topk_ids = test->ids.data;
        args.topk_weights = (const float *)(const void *)test->weights.data;
    } else {
        args.topk_ids_out = test->ids_out.data;
        args.topk_weights_out = (float *)(void *)test->weights_out.data;
    }
    if (test->form == MOE_VERIFY_LAYER_LOGITS) {
        args.logits = test->logits.data;
    } else if (test->form == MOE_VERIFY_LAYER_ROUTER) {
        args.logits_out = test->logits_out.data;
    }
    return view->api->layer(view->plan, &args, error);
}

static int32_t call_experts(const struct moe_verify_case *test, const struct moe_loader_view *view,
                            struct moe_error *error)
{
    struct moe_experts_args args;
    MOE_INIT_CALL(args);
    fill_call(test, view, &args.call);
    args.weights = view->weights;
    args.rows = test->tokens.data;
    args.num_rows = test->num_rows;
    args.seg_indptr = (const int64_t *)(const void *)test->segments.data;
    if ((test->slot->problem.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0) {
        args.row_weights = (const float *)(const void *)test->weights.data;
    }
    args.output = test->output.data;
    return view->api->experts(view->plan, &args, error);
}

int32_t moe_verify_case_call(const struct moe_verify_case *test, const struct moe_loader_view *view,
                             struct moe_error *error)
{
    int32_t status =
        is_layer(test->form) ? call_layer(test, view, error) : call_experts(test, view, error);
    if (status == MOE_STATUS_OK && test->options->copy_out != NULL) {
        unsigned char first;
        if (test->options->copy_out(test->options->self, &first, test->output.data, 1) != 0) {
            status = moe_loader_status_set(error, MOE_STATUS_DEVICE_ERROR,
                                           "the host could not wait for the call's work");
        }
    }
    return status;
}

/* ---- runs ---- */

static int32_t poison_outputs(const struct moe_verify_case *test, int poison,
                              struct moe_error *error)
{
    const struct moe_verify_block *outputs[] = {&test->output, &test->logits_out, &test->ids_out,
                                                &test->weights_out};
    int32_t status = moe_verify_block_fill(test->options, &test->workspace, poison, error);
    for (size_t i = 0; i < sizeof(outputs) / sizeof(outputs[0]) && status == MOE_STATUS_OK; i++) {
        status = moe_verify_block_fill(test->options, outputs[i], OUTPUT_POISON, error);
    }
    return status;
}

static int32_t read_outputs(const struct moe_verify_case *test, struct moe_verify_result *result,
                            struct moe_error *error)
{
    const struct {
        const struct moe_verify_block *block;
        void *to;
    } outputs[] = {{&test->output, result->output},
                   {&test->logits_out, result->logits},
                   {&test->ids_out, result->ids},
                   {&test->weights_out, result->weights}};
    int32_t status = MOE_STATUS_OK;
    for (size_t i = 0; i < sizeof(outputs) / sizeof(outputs[0]) && status == MOE_STATUS_OK; i++) {
        status = moe_verify_block_read(test->options, outputs[i].block, outputs[i].to, error);
    }
    return status;
}

static int32_t check_guards(const struct moe_verify_case *test, bool *is_host_fault,
                            struct moe_error *error)
{
    const struct {
        const struct moe_verify_block *block;
        const char *name;
    } blocks[] = {
        {&test->output, "output"},           {&test->workspace, "workspace"},
        {&test->logits_out, "logits_out"},   {&test->ids_out, "topk_ids_out"},
        {&test->weights_out, "weights_out"}, {&test->tokens, "tokens"},
    };
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
        bool is_intact = false;
        const int32_t status =
            moe_verify_block_check(test->options, blocks[i].block, &is_intact, error);
        if (status != MOE_STATUS_OK) {
            *is_host_fault = true;
            return status;
        }
        if (!is_intact) {
            return moe_loader_status_set(error, MOE_LOADER_STATUS_WRONG_RESULT,
                                         "slot %d, %s: bytes beside the buffer \"%s\" were written",
                                         test->slot->idx, moe_verify_form_name(test->form),
                                         blocks[i].name);
        }
    }
    return MOE_STATUS_OK;
}

static bool is_finite(double value)
{
    return value - value == 0.0;
}

static int32_t check_finite(const struct moe_verify_case *test, struct moe_verify_result *result,
                            struct moe_error *error)
{
    const int64_t element_bytes = moe_verify_number_bytes(test->output_dtype);
    for (int64_t i = 0; i < test->num_outputs; i++) {
        result->values[i] =
            moe_verify_number_load(test->output_dtype, result->output + i * element_bytes);
        if (!is_finite(result->values[i])) {
            return moe_loader_status_set(error, MOE_LOADER_STATUS_WRONG_RESULT,
                                         "slot %d, %s: row %lld, channel %lld of the output is not "
                                         "finite or was not written",
                                         test->slot->idx, moe_verify_form_name(test->form),
                                         (long long)(i / test->slot->problem.hidden),
                                         (long long)(i % test->slot->problem.hidden));
        }
    }
    return MOE_STATUS_OK;
}

static int32_t check_routes(const struct moe_verify_case *test,
                            const struct moe_verify_result *result, struct moe_error *error)
{
    const int32_t num_experts = num_global(&test->slot->problem);
    for (int64_t i = 0; makes_routes(test->form) && i < test->num_ids; i++) {
        if (result->ids[i] < 0 || result->ids[i] >= num_experts ||
            !is_finite((double)result->weights[i])) {
            return moe_loader_status_set(error, MOE_LOADER_STATUS_WRONG_RESULT,
                                         "slot %d, %s: route %lld goes to expert %d of %d with "
                                         "weight %g",
                                         test->slot->idx, moe_verify_form_name(test->form),
                                         (long long)i, result->ids[i], num_experts,
                                         (double)result->weights[i]);
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_verify_case_run(const struct moe_verify_case *test, const struct moe_loader_view *view,
                            int poison, struct moe_verify_result *result, bool *is_host_fault,
                            struct moe_error *error)
{
    *is_host_fault = true;
    int32_t status = poison_outputs(test, poison, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    *is_host_fault = false;
    status = moe_verify_case_call(test, view, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = check_guards(test, is_host_fault, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = read_outputs(test, result, error);
    if (status != MOE_STATUS_OK) {
        *is_host_fault = true;
        return status;
    }
    status = check_finite(test, result, error);
    return status != MOE_STATUS_OK ? status : check_routes(test, result, error);
}
