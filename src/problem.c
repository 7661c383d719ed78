/* SPDX-License-Identifier: Apache-2.0 */
#include "problem.h"

#include "recipe.h"
#include "status.h"
#include "structs.h"
#include "tiles.h"

#include <math.h>
#include <string.h>

/* Segments may be padded to multiples of this many rows by a host that dispatches rows itself. */
#define SEGMENT_ALIGNMENT_LIMIT 128

int64_t moe_dtype_bytes(int32_t dtype)
{
    switch (dtype) {
    case MOE_DTYPE_FP32:
        return 4;
    case MOE_DTYPE_FP16:
    case MOE_DTYPE_BF16:
        return 2;
    case MOE_DTYPE_FP8_E4M3:
    case MOE_DTYPE_INT8:
    case MOE_DTYPE_UE8M0:
        return 1;
    default:
        return 0;
    }
}

#define CASE_NAME(name, value, text) \
    case value:                      \
        return text;

const char *moe_dtype_name(int32_t dtype)
{
    switch (dtype) {
        MOE_DTYPE_LIST(CASE_NAME)
    default:
        return "unknown";
    }
}

const char *moe_activation_name(int32_t activation)
{
    switch (activation) {
        MOE_ACTIVATION_LIST(CASE_NAME)
    default:
        return "unknown";
    }
}

const char *moe_gating_name(int32_t gating)
{
    switch (gating) {
        MOE_GATING_LIST(CASE_NAME)
    default:
        return "unknown";
    }
}

/* The names of a list, for messages: "fp32, fp16, ...". */
#define LIST_NAME(name, value, text) ", " text
static const char dtype_choices[] = MOE_DTYPE_LIST(LIST_NAME);
static const char activation_choices[] = MOE_ACTIVATION_LIST(LIST_NAME);
static const char gating_choices[] = MOE_GATING_LIST(LIST_NAME);
#define CHOICES(list) ((list) + 2)

int32_t moe_problem_read(struct moe_problem *own, const struct moe_problem *caller,
                         struct moe_error *error)
{
    MOE_TRY(MOE_STRUCT_READ(own, caller, moe_problem, error));
    if (own->num_experts_global == 0) {
        own->num_experts_global = own->num_experts;
    }
    if (own->num_physical_experts == 0) {
        own->num_physical_experts = own->num_experts_global;
    }
    if (own->output_dtype == 0) {
        own->output_dtype = own->tokens.dtype;
    }
    const struct moe_recipe unset = {0};
    if (memcmp(&own->intermediate, &unset, sizeof(unset)) == 0) {
        own->intermediate = own->tokens;
        own->intermediate.dynamic |= moe_recipe_is_fp8(&own->tokens) && own->tokens.group_rows == 1;
    } else if (own->intermediate.dtype == 0) {
        own->intermediate.dtype = own->tokens.dtype;
    }
    if (own->logits_dtype == 0) {
        own->logits_dtype = MOE_DTYPE_FP32;
    }
    if (own->routed_scaling == 0.0f) {
        own->routed_scaling = 1.0f;
    }
    if (own->num_groups == 0) {
        own->num_groups = 1;
    }
    if (own->num_groups == 1) {
        own->topk_groups = 1;
    }
    return MOE_STATUS_OK;
}

int32_t moe_problem_expand_ops(const struct moe_problem *problem, uint64_t ops, uint64_t *expanded,
                               struct moe_error *error)
{
    const uint64_t all = MOE_OP_BIT(MOE_NUM_OPS) - 1;
    if ((ops & ~all) != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "ops has bits beyond the %d operations of MOE_OP_LIST: 0x%llx",
                             MOE_NUM_OPS, (unsigned long long)(ops & ~all));
    }
    uint64_t result = ops;
    if (ops == 0) {
        result = all & ~MOE_OP_BIT(MOE_OP_QUANTIZE);
        if (problem->gating == MOE_GATING_NONE) {
            result &= ~(MOE_OP_BIT(MOE_OP_ROUTER) | MOE_OP_BIT(MOE_OP_GATING));
        }
    }
    if ((result & MOE_OP_BIT(MOE_OP_LAYER)) != 0) {
        result |= MOE_OP_BIT(MOE_OP_EXPERTS) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS) |
                  MOE_OP_BIT(MOE_OP_ROUTE) | MOE_OP_BIT(MOE_OP_POST_REORDER);
        if (problem->gating != MOE_GATING_NONE ||
            (problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
            result |= MOE_OP_BIT(MOE_OP_ROUTER) | MOE_OP_BIT(MOE_OP_GATING);
        }
    }
    if ((result & MOE_OP_BIT(MOE_OP_EXPERTS)) != 0) {
        result |= MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2);
        if (moe_recipe_is_fp8(&problem->intermediate)) {
            result |= MOE_OP_BIT(MOE_OP_QUANTIZE);
        }
    }
    *expanded = result;
    return MOE_STATUS_OK;
}

static int32_t check_dimension(const char *name, int64_t value, int64_t low, int64_t high,
                               struct moe_error *error)
{
    if (value < low || value > high) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.%s is %lld; it must be %lld to %lld", name, (long long)value,
                             (long long)low, (long long)high);
    }
    return MOE_STATUS_OK;
}

static int32_t check_dtype(const char *name, int32_t dtype, struct moe_error *error)
{
    if (strcmp(moe_dtype_name(dtype), "unknown") == 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.%s is %d; the types are %s", name, dtype,
                             CHOICES(dtype_choices));
    }
    return MOE_STATUS_OK;
}

static int32_t check_experts(const struct moe_problem *problem, struct moe_error *error)
{
    MOE_TRY(check_dimension("num_experts_global", problem->num_experts_global, 1,
                            MOE_DIMENSION_LIMIT, error));
    MOE_TRY(check_dimension("num_physical_experts", problem->num_physical_experts,
                            problem->num_experts_global, MOE_DIMENSION_LIMIT, error));
    const int32_t num_ids = moe_problem_num_ids(problem);
    if (problem->num_experts < 1 || problem->num_experts > num_ids) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.num_experts is %d; it must be 1 to %d (num_physical_experts "
                             "or num_experts_global, + num_appended_experts)",
                             problem->num_experts, num_ids);
    }
    return MOE_STATUS_OK;
}

static int32_t check_routes(const struct moe_problem *problem, struct moe_error *error)
{
    int32_t most =
        problem->num_experts_global > 0 ? problem->num_experts_global : MOE_DIMENSION_LIMIT;
    MOE_TRY(check_dimension("top_k", problem->top_k, 1, most, error));
    if (moe_problem_max_rows(problem) > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.max_tokens %lld * %d slots (top_k and appended experts), "
                             "with segments padded to %d rows, is 2^31 or more; use fewer tokens a "
                             "call",
                             (long long)problem->max_tokens, moe_problem_num_slots(problem),
                             SEGMENT_ALIGNMENT_LIMIT);
    }
    return MOE_STATUS_OK;
}

static int32_t check_groups(const struct moe_problem *problem, struct moe_error *error)
{
    MOE_TRY(
        check_dimension("num_groups", problem->num_groups, 1, problem->num_experts_global, error));
    MOE_TRY(check_dimension("group_score", problem->group_score, MOE_GROUP_SCORE_MAX,
                            MOE_GROUP_SCORE_TOP2_SUM, error));
    if (problem->num_groups == 1) {
        return MOE_STATUS_OK;
    }
    if (problem->gating != MOE_GATING_SOFTMAX && problem->gating != MOE_GATING_SIGMOID) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "problem.num_groups is %d, but only softmax and sigmoid gating know groups, not %s",
            problem->num_groups, moe_gating_name(problem->gating));
    }
    if (problem->num_experts_global % problem->num_groups != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.num_groups %d does not divide the %d experts",
                             problem->num_groups, problem->num_experts_global);
    }
    MOE_TRY(check_dimension("topk_groups", problem->topk_groups, 1, problem->num_groups, error));
    int64_t group_experts = problem->num_experts_global / problem->num_groups;
    if (group_experts * problem->topk_groups < problem->top_k) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "problem.top_k %d is more than the %d experts of topk_groups %d groups", problem->top_k,
            (int)(group_experts * problem->topk_groups), problem->topk_groups);
    }
    if (problem->group_score == MOE_GROUP_SCORE_TOP2_SUM && group_experts < 2) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "problem.group_score top2_sum needs groups of 2 experts or more, not %d",
            (int)group_experts);
    }
    return MOE_STATUS_OK;
}

static int32_t check_gating(const struct moe_problem *problem, struct moe_error *error)
{
    bool known = strcmp(moe_gating_name(problem->gating), "unknown") != 0;
    if (!known || problem->gating == MOE_GATING_NONE) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.gating is %d (%s), but the operation gating needs a rule: %s",
                             problem->gating, moe_gating_name(problem->gating),
                             CHOICES(gating_choices));
    }
    MOE_TRY(check_groups(problem, error));
    bool scored = problem->gating == MOE_GATING_SOFTMAX || problem->gating == MOE_GATING_SIGMOID;
    if (!scored &&
        (problem->flags & (MOE_PROBLEM_RENORMALIZE | MOE_PROBLEM_CORRECTION_BIAS)) != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "MOE_PROBLEM_RENORMALIZE and _CORRECTION_BIAS belong to softmax and "
                             "sigmoid gating, not to %s",
                             moe_gating_name(problem->gating));
    }
    if (problem->gating == MOE_GATING_SPARSEMIXER &&
        (problem->top_k != 2 || !(problem->router_jitter >= 0.0f))) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "sparsemixer gating is defined for top_k 2 and router_jitter >= 0, "
                             "not for top_k %d and %g",
                             problem->top_k, (double)problem->router_jitter);
    }
    if (problem->gating != MOE_GATING_SPARSEMIXER && problem->router_jitter != 0.0f) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.router_jitter belongs to sparsemixer gating, not to %s",
                             moe_gating_name(problem->gating));
    }
    return MOE_STATUS_OK;
}

static int32_t check_activation(const struct moe_problem *problem, struct moe_error *error)
{
    if (strcmp(moe_activation_name(problem->activation), "unknown") == 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.activation is %d; the activations are %s",
                             problem->activation, CHOICES(activation_choices));
    }
    bool oai = problem->activation == MOE_ACTIVATION_SWIGLU_OAI;
    if (!oai && (problem->act_alpha != 0.0f || problem->act_limit != 0.0f)) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "problem.act_alpha and act_limit belong to swiglu_oai; %s would ignore them",
            moe_activation_name(problem->activation));
    }
    if (oai && ((problem->flags & MOE_PROBLEM_UNGATED) != 0 || !(problem->act_limit >= 0.0f) ||
                !isfinite(problem->act_alpha))) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "swiglu_oai is gated, with a finite act_alpha and act_limit >= 0, not "
                             "%g and %g",
                             (double)problem->act_alpha, (double)problem->act_limit);
    }
    return MOE_STATUS_OK;
}

static int32_t check_flags(const struct moe_problem *problem, struct moe_error *error)
{
    const uint32_t known = MOE_PROBLEM_UNGATED | MOE_PROBLEM_RENORMALIZE |
                           MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT | MOE_PROBLEM_GATE_UP_BIAS |
                           MOE_PROBLEM_DOWN_BIAS | MOE_PROBLEM_ROUTER_BIAS |
                           MOE_PROBLEM_CORRECTION_BIAS | MOE_PROBLEM_SHARED_SIGMOID;
    if ((problem->flags & ~known) != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.flags has unknown bits 0x%x", problem->flags & ~known);
    }
    if ((problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0 && problem->shared_inter == 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "MOE_PROBLEM_SHARED_SIGMOID is set, but shared_inter is 0: there is no shared expert");
    }
    if (!isfinite(problem->routed_scaling) || !isfinite(problem->appended_weight)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.routed_scaling is %g and appended_weight %g; they must be "
                             "finite",
                             (double)problem->routed_scaling, (double)problem->appended_weight);
    }
    MOE_TRY(check_dimension("scaling_on", problem->scaling_on, MOE_SCALING_NONE, MOE_SCALING_OUTPUT,
                            error));
    if (problem->scaling_on == MOE_SCALING_NONE && problem->routed_scaling != 1.0f) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.routed_scaling is %g, but scaling_on says nowhere: use "
                             "MOE_SCALING_WEIGHTS or _OUTPUT",
                             (double)problem->routed_scaling);
    }
    return check_dimension("determinism", problem->determinism, MOE_DETERMINISM_CANONICAL,
                           MOE_DETERMINISM_NONE, error);
}

/* Does any of the operations `wanted` take part? */
static bool uses(uint64_t ops, uint64_t wanted)
{
    return (ops & wanted) != 0;
}

int32_t moe_problem_check(const struct moe_problem *problem, uint64_t ops, struct moe_error *error)
{
    const uint64_t gemms = MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2);
    const uint64_t sorts = MOE_OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS) |
                           MOE_OP_BIT(MOE_OP_ROUTE);
    const uint64_t moves = MOE_OP_BIT(MOE_OP_PRE_REORDER) | MOE_OP_BIT(MOE_OP_POST_REORDER) |
                           MOE_OP_BIT(MOE_OP_SUM_REDUCE);
    const uint64_t router = MOE_OP_BIT(MOE_OP_ROUTER), gating = MOE_OP_BIT(MOE_OP_GATING);
    const uint64_t activation = MOE_OP_BIT(MOE_OP_ACTIVATION),
                   quantize = MOE_OP_BIT(MOE_OP_QUANTIZE);

    MOE_TRY(check_dimension("max_tokens", problem->max_tokens, 1, INT32_MAX, error));
    MOE_TRY(check_flags(problem, error));
    MOE_TRY(check_dimension("num_appended_experts", problem->num_appended_experts, 0,
                            MOE_DIMENSION_LIMIT, error));
    /* Rows and workspace are counted with both, so what is not needed is 0 or right. */
    if (uses(ops, gemms | sorts | router | gating) || problem->num_experts != 0 ||
        problem->num_physical_experts != 0) {
        MOE_TRY(check_experts(problem, error));
    }
    if (uses(ops, sorts | gating | moves | MOE_OP_BIT(MOE_OP_LAYER)) || problem->top_k != 0) {
        MOE_TRY(check_routes(problem, error));
    }
    if (uses(ops, gating | MOE_OP_BIT(MOE_OP_ROUTE)) && problem->gating != MOE_GATING_NONE) {
        MOE_TRY(check_gating(problem, error));
    } else if (uses(ops, gating) && !uses(ops, MOE_OP_BIT(MOE_OP_LAYER))) {
        MOE_TRY(check_gating(problem, error));
    }
    if (uses(ops, gemms | moves | router | quantize)) {
        MOE_TRY(check_dimension("hidden", problem->hidden, 1, MOE_DIMENSION_LIMIT, error));
    }
    if (uses(ops, gemms | moves | router | activation | quantize)) {
        MOE_TRY(check_dtype("tokens.dtype", problem->tokens.dtype, error));
        MOE_TRY(check_dtype("output_dtype", problem->output_dtype, error));
    }
    if (uses(ops, gemms | activation)) {
        MOE_TRY(check_dimension("inter", problem->inter, 1, MOE_DIMENSION_LIMIT, error));
        MOE_TRY(check_activation(problem, error));
        MOE_TRY(check_dtype("intermediate.dtype", problem->intermediate.dtype, error));
    }
    MOE_TRY(check_dimension("shared_inter", problem->shared_inter, 0, MOE_DIMENSION_LIMIT, error));
    if (uses(ops, gemms)) {
        MOE_TRY(check_dtype("gate_up.dtype", problem->gate_up.dtype, error));
        MOE_TRY(check_dtype("down.dtype", problem->down.dtype, error));
    }
    MOE_TRY(moe_recipe_check(problem, ops, error));
    return check_dtype("logits_dtype", problem->logits_dtype, error);
}

int32_t moe_problem_num_ids(const struct moe_problem *problem)
{
    return problem->num_physical_experts + problem->num_appended_experts;
}

int32_t moe_problem_num_slots(const struct moe_problem *problem)
{
    const int32_t num_slots = problem->top_k + problem->num_appended_experts;
    return num_slots > 0 ? num_slots : 1;
}

int64_t moe_problem_max_rows(const struct moe_problem *problem)
{
    return problem->max_tokens * moe_problem_num_slots(problem) +
           (int64_t)problem->num_experts * (SEGMENT_ALIGNMENT_LIMIT - 1);
}

bool moe_problem_same_weights(const struct moe_problem *a, const struct moe_problem *b)
{
    const uint32_t flags = MOE_PROBLEM_UNGATED | MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS |
                           MOE_PROBLEM_ROUTER_BIAS | MOE_PROBLEM_CORRECTION_BIAS |
                           MOE_PROBLEM_SHARED_SIGMOID;
    return a->num_experts == b->num_experts && a->num_experts_global == b->num_experts_global &&
           a->hidden == b->hidden && a->inter == b->inter && a->shared_inter == b->shared_inter &&
           ((a->flags ^ b->flags) & flags) == 0 &&
           memcmp(&a->gate_up, &b->gate_up, sizeof(a->gate_up)) == 0 &&
           memcmp(&a->down, &b->down, sizeof(a->down)) == 0;
}
