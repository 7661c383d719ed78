/* SPDX-License-Identifier: Apache-2.0 */
#include "call_check.h"

#include "status.h"
#include "tiles.h"

int32_t moe_call_check_plan(const struct moe_plan *plan, int32_t op, struct moe_error *error)
{
    if (plan == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s: plan is NULL",
                             moe_tiles_op_name(op));
    }
    return MOE_STATUS_OK;
}

/* Operations whose arguments say how many rows there are. */
static bool counts_rows(int32_t op)
{
    return op == MOE_OP_ACTIVATION || op == MOE_OP_GEMM1 || op == MOE_OP_GEMM2 ||
           op == MOE_OP_EXPERTS;
}

/* The number of tokens to run with. Memory of a CPU can be read now. */
static int32_t begin_tokens(int32_t op, const struct moe_call *call, struct moe_run *run,
                            struct moe_error *error)
{
    const char *name = moe_tiles_op_name(op);
    run->num_tokens = call->num_tokens;
    run->num_tokens_device = NULL;
    if (call->num_tokens_device == NULL) {
        return MOE_STATUS_OK;
    }
    if (counts_rows(op)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: num_tokens_device is given, but rows are counted by num_rows and "
                             "the segments; leave it NULL",
                             name);
    }
    MOE_TRY(moe_call_check_array(name, "num_tokens_device", call->num_tokens_device,
                                 sizeof(int32_t), 1, error));
    if (run->plan->backend->id != MOE_BACKEND_CPU) {
        run->num_tokens_device = call->num_tokens_device;
        return MOE_STATUS_OK;
    }
    const int32_t num_tokens = *call->num_tokens_device;
    if (num_tokens < 0 || num_tokens > call->num_tokens) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: num_tokens_device holds %d; it must be 0 to num_tokens, %lld",
                             name, num_tokens, (long long)call->num_tokens);
    }
    run->num_tokens = num_tokens;
    return MOE_STATUS_OK;
}

int32_t moe_call_begin(const struct moe_plan *plan, int32_t op, const struct moe_call *call,
                       int64_t num_tokens, struct moe_run *run, struct moe_error *error)
{
    const char *name = moe_tiles_op_name(op);
    if ((plan->ops & MOE_OP_BIT(op)) == 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: the plan was not made for this operation; set its bit in "
                             "moe_plan_options.ops, or leave ops 0",
                             name);
    }
    if (call->flags != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: call.flags is 0x%x; no flag is defined", name, call->flags);
    }
    if (call->num_tokens < 0 || call->num_tokens > plan->problem.max_tokens) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: num_tokens is %lld; the plan takes 0 to %lld", name,
                             (long long)call->num_tokens, (long long)plan->problem.max_tokens);
    }
    const struct moe_dispatch_bucket *bucket =
        moe_dispatch_find(plan->dispatch, moe_plan_pass_tokens(plan, op, num_tokens));
    uint64_t needed = moe_plan_call_workspace(plan, op, num_tokens);
    if (call->workspace_bytes < needed || (needed > 0 && call->workspace == NULL)) {
        return moe_error_set(error, MOE_STATUS_WORKSPACE_TOO_SMALL,
                             "%s: the workspace has %llu bytes at %p; %lld tokens need %llu", name,
                             (unsigned long long)call->workspace_bytes, call->workspace,
                             (long long)call->num_tokens, (unsigned long long)needed);
    }
    if (needed > 0 && (uintptr_t)call->workspace % plan->backend->workspace_alignment != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: the workspace at %p must be aligned to %llu bytes", name,
                             call->workspace,
                             (unsigned long long)plan->backend->workspace_alignment);
    }
    run->plan = plan;
    run->bucket = bucket;
    run->stream = call->stream;
    run->workspace = call->workspace;
    run->weights = NULL;
    run->is_chained = 0;
    run->reserved = 0;
    return begin_tokens(op, call, run, error);
}

int32_t moe_call_check_array(const char *op, const char *name, const void *pointer,
                             size_t element_bytes, int64_t num_elements, struct moe_error *error)
{
    if (pointer == NULL && num_elements > 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s: %s is NULL", op, name);
    }
    if (element_bytes > 0 && (uintptr_t)pointer % element_bytes != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %s at %p is not aligned to its elements of %zu bytes", op, name,
                             pointer, element_bytes);
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_tensor(const char *op, const char *name, const void *pointer, int32_t dtype,
                              int64_t num_elements, struct moe_error *error)
{
    return moe_call_check_array(op, name, pointer, (size_t)moe_dtype_bytes(dtype), num_elements,
                                error);
}

int32_t moe_call_resolve_stride(const char *op, const char *name, int64_t *stride, int64_t packed,
                                struct moe_error *error)
{
    if (*stride == 0) {
        *stride = packed;
    }
    if (*stride < packed || *stride > INT64_MAX / 16 / INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %s is %lld elements; rows have %lld, and 0 stands for packed", op,
                             name, (long long)*stride, (long long)packed);
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_ids(const char *op, int32_t ids_dtype, struct moe_error *error)
{
    if (ids_dtype != MOE_IDS_INT32 && ids_dtype != MOE_IDS_INT64) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: ids_dtype is %d; it must be int32 (%d) or int64 (%d)", op,
                             ids_dtype, MOE_IDS_INT32, MOE_IDS_INT64);
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_read_filter(const char *op, const struct moe_problem *problem,
                             const struct moe_route_filter *filter, struct moe_op_filter *out,
                             struct moe_error *error)
{
    const int32_t num_ids = moe_problem_num_ids(problem);
    if (filter->reserved != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: filter.reserved is %d; it must be 0", op, filter->reserved);
    }
    if (filter->mode != MOE_FILTER_DROP && filter->mode != MOE_FILTER_KEEP) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: filter.mode is %d; it must be drop (%d) or keep (%d)", op,
                             filter->mode, MOE_FILTER_DROP, MOE_FILTER_KEEP);
    }
    if (filter->expert_begin < 0 || filter->expert_end < 0 || filter->expert_end > num_ids ||
        (filter->expert_end > 0 && filter->expert_begin > filter->expert_end) ||
        (filter->expert_end == 0 && filter->expert_begin != 0)) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: filter range [%d, %d) must lie in [0, %d); 0 and 0 stand for no range", op,
            filter->expert_begin, filter->expert_end, num_ids);
    }
    if ((uintptr_t)filter->expert_map % sizeof(int32_t) != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: filter.expert_map is not aligned", op);
    }
    out->expert_map = filter->expert_map;
    out->num_ids = num_ids;
    out->expert_begin = filter->expert_begin;
    out->expert_end = filter->expert_end > 0 ? filter->expert_end : num_ids;
    out->num_experts = problem->num_experts;
    return MOE_STATUS_OK;
}

int32_t moe_call_check_segments(const char *op, const struct moe_plan *plan,
                                const int64_t *seg_indptr, struct moe_error *error)
{
    if (plan->backend->id != MOE_BACKEND_CPU) {
        return MOE_STATUS_OK;
    }
    for (int32_t e = 0; e < plan->problem.num_experts; e++) {
        if (seg_indptr[e] > seg_indptr[e + 1]) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "%s: seg_indptr decreases from %lld to %lld at expert %d", op,
                                 (long long)seg_indptr[e], (long long)seg_indptr[e + 1], e);
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_destinations(const char *op, const int32_t *src2dst, int64_t num_routes,
                                    int64_t num_rows, struct moe_error *error)
{
    for (int64_t route = 0; route < num_routes; route++) {
        if (src2dst[route] >= num_rows) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "%s: src2dst[%lld] is %d, but there are %lld rows", op,
                                 (long long)route, src2dst[route], (long long)num_rows);
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_num_rows(const char *op, const struct moe_plan *plan, int64_t num_rows,
                                struct moe_error *error)
{
    const int64_t num_slots = moe_problem_num_slots(&plan->problem);
    if (num_rows < 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: num_rows is %lld; the plan takes 0 to %lld", op,
                             (long long)num_rows, (long long)plan->max_rows);
    }
    if (num_rows > plan->max_rows) {
        const int64_t max_tokens = (num_rows - 1) / num_slots + 1;
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: num_rows is %lld; the plan takes 0 to %lld, all rows of a masked "
                             "layout counted; one with max_tokens %lld takes them",
                             op, (long long)num_rows, (long long)plan->max_rows,
                             (long long)max_tokens);
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_masked(const char *op, const struct moe_problem *problem,
                              const int32_t *masked_m, int64_t max_masked_rows, int64_t num_rows,
                              struct moe_error *error)
{
    if (masked_m == NULL) {
        if (max_masked_rows != 0) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "%s: max_masked_rows is %lld without masked_m; leave it 0", op,
                                 (long long)max_masked_rows);
        }
        return MOE_STATUS_OK;
    }
    MOE_TRY(moe_call_check_array(op, "masked_m", masked_m, sizeof(int32_t), 1, error));
    if (max_masked_rows < 0 || max_masked_rows > INT32_MAX ||
        max_masked_rows * problem->num_experts != num_rows) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: num_rows is %lld and max_masked_rows %lld; with masked_m num_rows "
            "is max_masked_rows times the %d experts",
            op, (long long)num_rows, (long long)max_masked_rows, problem->num_experts);
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_weights(const char *op, const struct moe_plan *plan,
                               const struct moe_weights *weights, struct moe_error *error)
{
    if (weights == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s: weights is NULL", op);
    }
    if (weights->context != plan->context ||
        !moe_problem_same_weights(&weights->problem, &plan->problem)) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: the weights were bound in another context or for another problem (E %d of %d, "
            "hidden %d, "
            "inter %d, shared %d; the plan "
            "has E %d of %d, hidden %d, inter %d, shared %d; recipes and biases must be equal too)",
            op, weights->problem.num_experts, weights->problem.num_experts_global,
            weights->problem.hidden, weights->problem.inter, weights->problem.shared_inter,
            plan->problem.num_experts, plan->problem.num_experts_global, plan->problem.hidden,
            plan->problem.inter, plan->problem.shared_inter);
    }
    return MOE_STATUS_OK;
}

int32_t moe_call_check_bound(const char *op, const char *name, const struct moe_operand *operand,
                             struct moe_error *error)
{
    if (operand->base == NULL && operand->table == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: the weights were bound without %s", op, name);
    }
    return MOE_STATUS_OK;
}

struct moe_span moe_call_span(const void *base, int64_t num_rows, int64_t row_elements,
                              int64_t stride, int32_t dtype)
{
    int64_t bytes = moe_dtype_bytes(dtype);
    struct moe_span span = {base, num_rows, row_elements * bytes, stride * bytes};
    return span;
}

int32_t moe_call_check_overlap(const char *op, const char *output_name, struct moe_span output,
                               const char *input_name, struct moe_span input, int in_place,
                               struct moe_error *error)
{
    if (output.base == NULL || input.base == NULL || output.num_rows <= 0 || input.num_rows <= 0) {
        return MOE_STATUS_OK;
    }
    uintptr_t output_first = (uintptr_t)output.base, input_first = (uintptr_t)input.base;
    uintptr_t output_end =
        output_first + (uintptr_t)((output.num_rows - 1) * output.stride_bytes + output.row_bytes);
    uintptr_t input_end =
        input_first + (uintptr_t)((input.num_rows - 1) * input.stride_bytes + input.row_bytes);
    if (output_end <= input_first || input_end <= output_first) {
        return MOE_STATUS_OK;
    }
    if (in_place && output_first == input_first && output.stride_bytes == input.stride_bytes &&
        output.row_bytes == input.row_bytes) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s: %s overlaps %s%s", op,
                         output_name, input_name,
                         in_place ? ", and is not the same rows with equal strides and types" : "");
}

struct moe_call_tensor moe_call_array(const char *name, const void *base, int64_t num_elements,
                                      size_t element_bytes)
{
    if (base == NULL || num_elements <= 0) {
        return (struct moe_call_tensor){.name = name};
    }
    const int64_t bytes = num_elements * (int64_t)element_bytes;
    return (struct moe_call_tensor){.name = name, .span = {base, 1, bytes, bytes}};
}

struct moe_call_tensor moe_call_workspace(const struct moe_plan *plan, int32_t op,
                                          const struct moe_call *call, int64_t num_tokens)
{
    return moe_call_array("workspace", call->workspace,
                          (int64_t)moe_plan_call_workspace(plan, op, num_tokens), 1);
}

int32_t moe_call_check_disjoint(const char *op, const struct moe_call_tensor *tensors,
                                size_t num_tensors, size_t num_outputs, struct moe_error *error)
{
    for (size_t i = 0; i < num_outputs; i++) {
        for (size_t k = i + 1; k < num_tensors; k++) {
            MOE_TRY(moe_call_check_overlap(op, tensors[i].name, tensors[i].span, tensors[k].name,
                                           tensors[k].span, 0, error));
        }
    }
    return MOE_STATUS_OK;
}

/* Adds to one of the two arrays; their sizes are the most that any call has. */
static void add_tensor(struct moe_call_tensor *array, size_t *num, struct moe_call_tensor tensor)
{
    if (tensor.span.base != NULL && tensor.span.num_rows > 0) {
        array[(*num)++] = tensor;
    }
}

void moe_call_add_output(struct moe_call_tensors *tensors, struct moe_call_tensor tensor)
{
    add_tensor(tensors->outputs, &tensors->num_outputs, tensor);
}

void moe_call_add_input(struct moe_call_tensors *tensors, struct moe_call_tensor tensor)
{
    add_tensor(tensors->inputs, &tensors->num_inputs, tensor);
}

void moe_call_add_common(struct moe_call_tensors *tensors, const struct moe_plan *plan, int32_t op,
                         const struct moe_call *call)
{
    moe_call_add_output(tensors, moe_call_workspace(plan, op, call, call->num_tokens));
    moe_call_add_input(
        tensors, moe_call_array("num_tokens_device", call->num_tokens_device, 1, sizeof(int32_t)));
}

int32_t moe_call_check_tensors(const char *op, const struct moe_call_tensors *tensors,
                               struct moe_error *error)
{
    MOE_TRY(moe_call_check_disjoint(op, tensors->outputs, tensors->num_outputs,
                                    tensors->num_outputs, error));
    for (size_t i = 0; i < tensors->num_outputs; i++) {
        const struct moe_call_tensor *output = &tensors->outputs[i];
        for (size_t k = 0; k < tensors->num_inputs; k++) {
            MOE_TRY(moe_call_check_overlap(op, output->name, output->span, tensors->inputs[k].name,
                                           tensors->inputs[k].span, 0, error));
        }
    }
    return MOE_STATUS_OK;
}
