/* SPDX-License-Identifier: Apache-2.0 */
#include "weights.h"

#include "context.h"
#include "problem.h"
#include "recipe.h"
#include "status.h"
#include "structs.h"

#include <stddef.h>
#include <string.h>

/* What an operand of the description is: how often it occurs and when it has to be there. */
struct operand_rule {
    const char *name;
    size_t offset;         /* in moe_weights_desc */
    int32_t group;         /* all operands of a group are there, or none */
    int32_t per_expert;    /* 1: num_experts matrices */
    uint32_t needs_flag;   /* there only with this flag of the problem; 0: always */
    uint32_t forbids_flag; /* not there with this flag */
    int32_t kind;          /* KIND_* */
    int32_t recipe;        /* RECIPE_*: of the matrix, or of the matrix that a scale belongs to */
};

enum {
    KIND_MATRIX,     /* multiplied by rows of the recipe */
    KIND_PLAIN,      /* router, shared sigmoid: never quantized */
    KIND_BIAS,       /* the same without columns */
    KIND_CORRECTION, /* fp32 with contiguous elements */
    KIND_SCALE,      /* fp32; there when the recipe is fp8 */
};

enum { RECIPE_GATE_UP, RECIPE_DOWN };

enum {
    GROUP_GATE_UP,
    GROUP_DOWN,
    GROUP_ROUTER,
    GROUP_CORRECTION, /* of its own: a host that makes logits itself still has the plugin gate */
    GROUP_SHARED,
    NUM_GROUPS
};

#define OPERAND(member) #member, offsetof(struct moe_weights_desc, member)
static const struct operand_rule operand_rules[] = {
    {OPERAND(gate), GROUP_GATE_UP, 1, 0, MOE_PROBLEM_UNGATED, KIND_MATRIX, RECIPE_GATE_UP},
    {OPERAND(up), GROUP_GATE_UP, 1, 0, 0, KIND_MATRIX, RECIPE_GATE_UP},
    {OPERAND(gate_bias), GROUP_GATE_UP, 1, MOE_PROBLEM_GATE_UP_BIAS, MOE_PROBLEM_UNGATED, KIND_BIAS,
     RECIPE_GATE_UP},
    {OPERAND(up_bias), GROUP_GATE_UP, 1, MOE_PROBLEM_GATE_UP_BIAS, 0, KIND_BIAS, RECIPE_GATE_UP},
    {OPERAND(down), GROUP_DOWN, 1, 0, 0, KIND_MATRIX, RECIPE_DOWN},
    {OPERAND(down_bias), GROUP_DOWN, 1, MOE_PROBLEM_DOWN_BIAS, 0, KIND_BIAS, RECIPE_GATE_UP},
    {OPERAND(router), GROUP_ROUTER, 0, 0, 0, KIND_PLAIN, RECIPE_GATE_UP},
    {OPERAND(router_bias), GROUP_ROUTER, 0, MOE_PROBLEM_ROUTER_BIAS, 0, KIND_BIAS, RECIPE_GATE_UP},
    {OPERAND(correction_bias), GROUP_CORRECTION, 0, MOE_PROBLEM_CORRECTION_BIAS, 0, KIND_CORRECTION,
     RECIPE_GATE_UP},
    {OPERAND(shared_gate), GROUP_SHARED, 0, 0, MOE_PROBLEM_UNGATED, KIND_MATRIX, RECIPE_GATE_UP},
    {OPERAND(shared_up), GROUP_SHARED, 0, 0, 0, KIND_MATRIX, RECIPE_GATE_UP},
    {OPERAND(shared_down), GROUP_SHARED, 0, 0, 0, KIND_MATRIX, RECIPE_DOWN},
    {OPERAND(shared_sigmoid), GROUP_SHARED, 0, MOE_PROBLEM_SHARED_SIGMOID, 0, KIND_PLAIN,
     RECIPE_GATE_UP},
    {OPERAND(gate_scale), GROUP_GATE_UP, 1, 0, MOE_PROBLEM_UNGATED, KIND_SCALE, RECIPE_GATE_UP},
    {OPERAND(up_scale), GROUP_GATE_UP, 1, 0, 0, KIND_SCALE, RECIPE_GATE_UP},
    {OPERAND(down_scale), GROUP_DOWN, 1, 0, 0, KIND_SCALE, RECIPE_DOWN},
    {OPERAND(shared_gate_scale), GROUP_SHARED, 0, 0, MOE_PROBLEM_UNGATED, KIND_SCALE,
     RECIPE_GATE_UP},
    {OPERAND(shared_up_scale), GROUP_SHARED, 0, 0, 0, KIND_SCALE, RECIPE_GATE_UP},
    {OPERAND(shared_down_scale), GROUP_SHARED, 0, 0, 0, KIND_SCALE, RECIPE_DOWN},
};
enum { NUM_OPERANDS = sizeof(operand_rules) / sizeof(operand_rules[0]) };
_Static_assert(sizeof(struct moe_weights_desc) == 8 + NUM_OPERANDS * sizeof(struct moe_operand),
               "every operand of the description has a rule");

static struct moe_operand *operand_at(struct moe_weights_desc *desc, int32_t index)
{
    return (struct moe_operand *)(void *)((char *)desc + operand_rules[index].offset);
}

static bool is_present(const struct moe_operand *operand)
{
    return operand->base != NULL || operand->table != NULL;
}

/* Offsets of three such strides times dimensions, in bytes, fit 63 bits. */
#define STRIDE_LIMIT (INT64_MAX / 16 / MOE_DIMENSION_LIMIT)

static bool is_stride(int64_t stride)
{
    return stride >= 0 && stride <= STRIDE_LIMIT;
}

static const struct moe_recipe *recipe_of(const struct operand_rule *rule,
                                          const struct moe_problem *problem)
{
    return rule->recipe == RECIPE_DOWN ? &problem->down : &problem->gate_up;
}

/* Is this operand part of its group for this problem? */
static bool is_wanted(const struct operand_rule *rule, const struct moe_problem *problem)
{
    if (rule->needs_flag != 0 && (problem->flags & rule->needs_flag) == 0) {
        return false;
    }
    if (rule->group == GROUP_SHARED && problem->shared_inter == 0) {
        return false;
    }
    if (rule->kind == KIND_SCALE && !moe_recipe_is_fp8(recipe_of(rule, problem))) {
        return false;
    }
    return (problem->flags & rule->forbids_flag) == 0;
}

/* What is never quantized is of the output's type where gate_up is fp8. */
static int32_t default_dtype(const struct operand_rule *rule, const struct moe_problem *problem)
{
    if (rule->kind == KIND_CORRECTION || rule->kind == KIND_SCALE) {
        return MOE_DTYPE_FP32;
    }
    /* Shared experts are as gate_up in plain types; their down is as down where gate_up is fp8. */
    const struct moe_recipe *recipe = recipe_of(rule, problem);
    if (rule->group == GROUP_SHARED && !moe_recipe_is_fp8(recipe) &&
        !moe_recipe_is_fp8(&problem->gate_up)) {
        recipe = &problem->gate_up;
    }
    return rule->kind != KIND_MATRIX && moe_recipe_is_fp8(recipe) ? problem->output_dtype
                                                                  : recipe->dtype;
}

/* Matrices are fp8 where their recipe is, and only there. */
static int32_t check_operand_dtype(const struct operand_rule *rule,
                                   const struct moe_problem *problem, int32_t dtype,
                                   struct moe_error *error)
{
    const bool is_fp8 = rule->kind == KIND_MATRIX && moe_recipe_is_fp8(recipe_of(rule, problem));
    const bool is_fp32 = rule->kind == KIND_CORRECTION || rule->kind == KIND_SCALE;
    const bool is_known =
        dtype == MOE_DTYPE_FP32 || dtype == MOE_DTYPE_FP16 || dtype == MOE_DTYPE_BF16;
    if (is_fp8 && dtype != MOE_DTYPE_FP8_E4M3) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "weights: %s is of type %s, but the problem's recipe says fp8_e4m3",
                             rule->name, moe_dtype_name(dtype));
    }
    if (!is_fp8 && (is_fp32 ? dtype != MOE_DTYPE_FP32 : !is_known)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED, "weights: %s is of type %s; %s",
                             rule->name, moe_dtype_name(dtype),
                             is_fp32 ? "it must be fp32" : "fp32, fp16 and bf16 are implemented");
    }
    return MOE_STATUS_OK;
}

static int32_t check_pointer(const struct operand_rule *rule, const void *pointer,
                             int64_t alignment, int64_t expert, struct moe_error *error)
{
    if (pointer == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "weights: %s.table[%lld] is NULL",
                             rule->name, (long long)expert);
    }
    if ((uintptr_t)pointer % (uintptr_t)alignment != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "weights: %s is not aligned to its elements of %lld bytes", rule->name,
                             (long long)alignment);
    }
    return MOE_STATUS_OK;
}

static int32_t check_operand(const struct operand_rule *rule, const struct moe_problem *problem,
                             struct moe_operand *operand, struct moe_error *error)
{
    if (operand->base != NULL && operand->table != NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "weights: %s has both base and table; set one", rule->name);
    }
    if (operand->reserved != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "weights: %s.reserved must be 0",
                             rule->name);
    }
    if (!is_stride(operand->expert_stride) || !is_stride(operand->row_stride) ||
        !is_stride(operand->col_stride)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "weights: %s has strides %lld, %lld and %lld (expert, row, column); "
                             "they must be 0 to %lld elements",
                             rule->name, (long long)operand->expert_stride,
                             (long long)operand->row_stride, (long long)operand->col_stride,
                             (long long)STRIDE_LIMIT);
    }
    if (operand->dtype == 0) {
        operand->dtype = default_dtype(rule, problem);
    }
    const int64_t element_bytes = moe_dtype_bytes(operand->dtype);
    MOE_TRY(check_operand_dtype(rule, problem, operand->dtype, error));
    if (rule->kind == KIND_CORRECTION && (operand->row_stride != 1 || operand->base == NULL)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "weights: %s must be fp32 with base and row_stride 1", rule->name);
    }
    if (operand->base != NULL) {
        return check_pointer(rule, operand->base, element_bytes, 0, error);
    }
    int64_t num_tables = rule->per_expert ? problem->num_experts : 1;
    for (int64_t e = 0; e < num_tables; e++) {
        MOE_TRY(check_pointer(rule, operand->table[e], element_bytes, e, error));
    }
    return MOE_STATUS_OK;
}

/* Check the whole description; resolve dtypes in place; count entries of tables. */
static int32_t check_desc(const struct moe_problem *problem, struct moe_weights_desc *desc,
                          size_t *num_table_entries, struct moe_error *error)
{
    const char *present[NUM_GROUPS] = {NULL};
    const char *missing[NUM_GROUPS] = {NULL};
    *num_table_entries = 0;
    if (desc->flags != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "weights: flags is 0x%x; no flag is defined", desc->flags);
    }
    for (int32_t i = 0; i < NUM_OPERANDS; i++) {
        const struct operand_rule *rule = &operand_rules[i];
        struct moe_operand *operand = operand_at(desc, i);
        bool wanted = is_wanted(rule, problem);
        if (is_present(operand) && !wanted) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "weights: %s is given, but the problem does not use it (flags "
                                 "0x%x, shared_inter %d, %s is %s)",
                                 rule->name, problem->flags, problem->shared_inter,
                                 rule->recipe == RECIPE_DOWN ? "down" : "gate_up",
                                 moe_dtype_name(recipe_of(rule, problem)->dtype));
        }
        if (!wanted) {
            continue;
        }
        if (!is_present(operand)) {
            missing[rule->group] = rule->name;
            continue;
        }
        present[rule->group] = rule->name;
        MOE_TRY(check_operand(rule, problem, operand, error));
        if (operand->table != NULL) {
            *num_table_entries += rule->per_expert ? (size_t)problem->num_experts : 1;
        }
    }
    for (int32_t group = 0; group < NUM_GROUPS; group++) {
        if (present[group] != NULL && missing[group] != NULL) {
            return moe_error_set(
                error, MOE_STATUS_INVALID_ARGUMENT,
                "weights: %s is missing, although %s is given and the problem uses both",
                missing[group], present[group]);
        }
    }
    return MOE_STATUS_OK;
}

/* What these weights are for: a router alone, or with gating's bias, needs no problem that the
 * experts' GEMMs run. */
static uint64_t ops_of(struct moe_weights_desc *desc)
{
    bool has_router = false;
    for (int32_t i = 0; i < NUM_OPERANDS; i++) {
        const bool is_given = is_present(operand_at(desc, i));
        const int32_t group = operand_rules[i].group;
        if (is_given && group != GROUP_ROUTER && group != GROUP_CORRECTION) {
            return MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2);
        }
        has_router |= is_given;
    }
    return has_router ? MOE_OP_BIT(MOE_OP_ROUTER)
                      : MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2);
}

/* Read and check what query, prepare and bind have in common. */
static int32_t read_request(const struct moe_context *context, const struct moe_problem *problem,
                            const struct moe_weights_desc *desc, struct moe_problem *own_problem,
                            struct moe_weights_desc *own_desc, size_t *num_table_entries,
                            struct moe_error *error)
{
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    uint64_t ops = 0;
    MOE_TRY(MOE_STRUCT_READ(own_desc, desc, moe_weights_desc, error));
    MOE_TRY(moe_problem_read(own_problem, problem, error));
    MOE_TRY(moe_problem_expand_ops(own_problem, ops_of(own_desc), &ops, error));
    if (own_problem->max_tokens == 0) {
        own_problem->max_tokens = 1; /* weights do not depend on it */
    }
    MOE_TRY(moe_problem_check(own_problem, ops, error));
    MOE_TRY(context->backend->supports(&context->device, own_problem, ops, error));
    return check_desc(own_problem, own_desc, num_table_entries, error);
}

int32_t moe_weights_query(struct moe_context *context, const struct moe_problem *problem,
                          const struct moe_weights_desc *desc, struct moe_weights_info *out,
                          struct moe_error *error)
{
    struct moe_problem own_problem;
    struct moe_weights_desc own_desc;
    size_t num_table_entries = 0;
    MOE_TRY(
        read_request(context, problem, desc, &own_problem, &own_desc, &num_table_entries, error));
    struct moe_weights_info info;
    MOE_INIT(info);
    info.prepared_bytes = context->backend->weights_prepared_bytes(&own_problem, &own_desc);
    info.prepared_alignment = context->backend->workspace_alignment;
    return MOE_STRUCT_WRITE(out, &info, moe_weights_info, error);
}

/* A prepared form of the size and alignment that weights_query says; none where it says 0. */
static int32_t check_prepared(const struct moe_context *context, const char *call, uint64_t needed,
                              const void *prepared, uint64_t prepared_bytes,
                              struct moe_error *error)
{
    const uint64_t alignment = context->backend->workspace_alignment;
    if (needed == 0 && (prepared != NULL || prepared_bytes != 0)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: a prepared form is given, but weights_query said 0 bytes: these "
                             "weights run as they are on the %s backend",
                             call, context->backend->name);
    }
    if (needed > 0 &&
        (prepared == NULL || prepared_bytes < needed || (uintptr_t)prepared % alignment != 0)) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: these weights need a prepared form of %llu bytes, aligned to %llu, in the %s "
            "backend's memory (weights_query, weights_prepare); %llu bytes at %p are given",
            call, (unsigned long long)needed, (unsigned long long)alignment, context->backend->name,
            (unsigned long long)prepared_bytes, prepared);
    }
    return MOE_STATUS_OK;
}

int32_t moe_weights_prepare(struct moe_context *context, const struct moe_problem *problem,
                            const struct moe_weights_desc *desc, void *prepared,
                            uint64_t prepared_bytes, void *stream, struct moe_error *error)
{
    struct moe_problem own_problem;
    struct moe_weights_desc own_desc;
    size_t num_table_entries = 0;
    MOE_TRY(
        read_request(context, problem, desc, &own_problem, &own_desc, &num_table_entries, error));
    const uint64_t needed = context->backend->weights_prepared_bytes(&own_problem, &own_desc);
    if (needed == 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "weights_query said 0 bytes: these weights run as they are on the %s backend",
            context->backend->name);
    }
    MOE_TRY(check_prepared(context, "weights_prepare", needed, prepared, prepared_bytes, error));
    return context->backend->weights_prepare(context, &own_problem, &own_desc, prepared, stream,
                                             error);
}

int32_t moe_weights_bind(struct moe_context *context, const struct moe_problem *problem,
                         const struct moe_weights_desc *desc, const void *prepared,
                         uint64_t prepared_bytes, struct moe_weights **out, struct moe_error *error)
{
    struct moe_problem own_problem;
    struct moe_weights_desc own_desc;
    size_t num_table_entries = 0;
    if (out == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "weights_bind: out is NULL");
    }
    MOE_TRY(
        read_request(context, problem, desc, &own_problem, &own_desc, &num_table_entries, error));
    MOE_TRY(check_prepared(context, "weights_bind",
                           context->backend->weights_prepared_bytes(&own_problem, &own_desc),
                           prepared, prepared_bytes, error));

    int32_t status = MOE_STATUS_OK;
    size_t next_entry = 0;
    struct moe_weights *weights = moe_memory_alloc(&context->memory, sizeof(*weights));
    if (weights == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                             "weights_bind: no host memory for %zu bytes", sizeof(*weights));
    }
    weights->memory = context->memory;
    weights->context = context;
    weights->backend = context->backend;
    weights->problem = own_problem;
    weights->desc = own_desc;
    weights->prepared = prepared;
    weights->tables_bytes = num_table_entries * sizeof(void *);
    if (num_table_entries > 0) {
        weights->tables = moe_memory_alloc(&context->memory, weights->tables_bytes);
        if (weights->tables == NULL) {
            status =
                moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                              "weights_bind: no host memory for %zu bytes", weights->tables_bytes);
            goto fail;
        }
    }
    for (int32_t i = 0; i < NUM_OPERANDS; i++) {
        struct moe_operand *operand = operand_at(&weights->desc, i);
        if (operand->table != NULL) {
            size_t num_entries = operand_rules[i].per_expert ? (size_t)own_problem.num_experts : 1;
            memcpy(weights->tables + next_entry, operand->table, num_entries * sizeof(void *));
            operand->table = weights->tables + next_entry;
            next_entry += num_entries;
        }
    }
    MOE_TRY_GOTO(context->backend->weights_bind(weights, error));
    *out = weights;
    return MOE_STATUS_OK;

fail:
    moe_weights_destroy(weights);
    return status;
}

void moe_weights_destroy(struct moe_weights *weights)
{
    if (weights == NULL) {
        return;
    }
    struct moe_memory memory = weights->memory;
    if (weights->backend->weights_unbind != NULL) {
        weights->backend->weights_unbind(weights);
    }
    moe_memory_free(&memory, weights->tables, weights->tables_bytes);
    moe_memory_free(&memory, weights, sizeof(*weights));
}
