/* SPDX-License-Identifier: Apache-2.0 */
#include "rank_share.h"

#include "element.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* group: channels that share a scale; 0: all of them, or none. */
static int check_divides(const char *what, int32_t size, int32_t group, int64_t tp,
                         struct moe_cli_error *error)
{
    if (size % tp != 0) {
        return MOE_CLI_FAIL(
            error, "--tp %" PRId64 ": the %s of %" PRId32 " channels does not divide by it", tp,
            what, size);
    }
    if (tp > 1 && group > 0 && size / tp % group != 0) {
        return MOE_CLI_FAIL(error,
                            "--tp %" PRId64 ": the %s of %" PRId32
                            " channels does not divide by it into whole blocks of %" PRId32
                            " channels, which share a scale",
                            tp, what, size, group);
    }
    return 0;
}

/* Channels that share a scale of fp8 weights; 0: no scales. */
static int32_t get_block(const struct moe_problem *problem)
{
    return problem->gate_up.group_rows > 0 ? problem->gate_up.group_rows : problem->down.group_k;
}

int moe_rank_split_check(const struct moe_problem *problem, const struct moe_rank_split *split,
                         struct moe_cli_error *error)
{
    const int32_t block = get_block(problem);
    if (check_divides("inter", problem->inter, block, split->tp, error) != 0 ||
        check_divides("shared inter", problem->shared_inter, block, split->tp, error) != 0) {
        return -1;
    }
    if (split->ep > problem->num_experts) {
        return MOE_CLI_FAIL(error, "--ep %" PRId64 ": the layer has only %" PRId32 " experts",
                            split->ep, problem->num_experts);
    }
    return 0;
}

static int is_present(const struct moe_operand *operand)
{
    return operand->base != NULL || operand->table != NULL;
}

/* Where a rank's part of an operand begins. */
struct origin {
    int64_t expert, row, col;
};

/* Makes `operand` begin at `origin` and, when it is a table, have `num_experts` entries. */
static int move_operand(struct moe_rank_share *share, struct moe_operand *operand,
                        struct origin origin, int32_t num_experts, struct moe_cli_error *error)
{
    if (!is_present(operand)) {
        return 0;
    }
    const int64_t element_bytes = (int64_t)moe_element_bytes(operand->dtype);
    const int64_t offset =
        (origin.row * operand->row_stride + origin.col * operand->col_stride) * element_bytes;
    if (operand->base != NULL) {
        operand->base = (const unsigned char *)operand->base + offset +
                        origin.expert * operand->expert_stride * element_bytes;
        return 0;
    }
    const void **table = calloc((size_t)num_experts, sizeof *table);
    if (table == NULL) {
        return moe_cli_fail_memory(error, "listing the experts of a rank");
    }
    share->tables[share->num_tables++] = table;
    for (int32_t i = 0; i < num_experts; ++i) {
        table[i] = (const unsigned char *)operand->table[origin.expert + i] + offset;
    }
    operand->table = table;
    return 0;
}

void moe_rank_split_take(const struct moe_problem *whole, const struct moe_rank_split *split,
                         int64_t rank_idx, struct moe_problem *problem,
                         struct moe_route_filter *filter)
{
    const int64_t ep_idx = rank_idx / split->tp;
    const int64_t tp_idx = rank_idx % split->tp;
    const int64_t expert_begin = whole->num_experts * ep_idx / split->ep;
    const int64_t expert_end = whole->num_experts * (ep_idx + 1) / split->ep;
    *problem = *whole;
    problem->num_experts_global = whole->num_experts;
    problem->num_experts = (int32_t)(expert_end - expert_begin);
    problem->inter = (int32_t)(whole->inter / split->tp);
    problem->shared_inter = ep_idx == 0 ? (int32_t)(whole->shared_inter / split->tp) : 0;
    if (problem->shared_inter == 0) {
        problem->flags &= ~MOE_PROBLEM_SHARED_SIGMOID;
    }
    if (tp_idx > 0) {
        problem->flags &= ~MOE_PROBLEM_DOWN_BIAS;
    }
    *filter = (struct moe_route_filter){.expert_begin = (int32_t)expert_begin,
                                        .expert_end = (int32_t)expert_end};
}

/* Takes out the operands that the rank's problem does not use. */
static void drop_unused(struct moe_rank_share *share)
{
    static const struct moe_operand absent = {.base = NULL};
    struct moe_weights_desc *weights = &share->weights;
    if (share->problem.shared_inter == 0) {
        weights->shared_gate = absent;
        weights->shared_up = absent;
        weights->shared_down = absent;
        weights->shared_sigmoid = absent;
        weights->shared_gate_scale = absent;
        weights->shared_up_scale = absent;
        weights->shared_down_scale = absent;
    }
    if ((share->problem.flags & MOE_PROBLEM_DOWN_BIAS) == 0) {
        weights->down_bias = absent;
    }
}

static int move_operands(struct moe_rank_share *share, int64_t tp_idx, struct moe_cli_error *error)
{
    struct moe_weights_desc *weights = &share->weights;
    const int64_t expert_begin = share->filter.expert_begin;
    const int64_t channel = tp_idx * share->problem.inter;
    const int64_t shared_channel = tp_idx * share->problem.shared_inter;
    const struct origin out = {.expert = expert_begin, .row = channel}; /* channels come out */
    const struct origin in = {.expert = expert_begin, .col = channel};  /* channels are summed */
    const struct origin all = {.expert = expert_begin};
    const struct origin shared_out = {.row = shared_channel};
    const struct origin shared_in = {.col = shared_channel};
    /* The same places counted in blocks that share a scale; without scales there is nothing to
     * move. */
    const int32_t block = get_block(&share->problem);
    const int64_t first_block = block > 0 ? channel / block : 0;
    const int64_t first_shared_block = block > 0 ? shared_channel / block : 0;
    const struct origin out_scale = {.expert = expert_begin, .row = first_block};
    const struct origin in_scale = {.expert = expert_begin, .col = first_block};
    const struct origin shared_out_scale = {.row = first_shared_block};
    const struct origin shared_in_scale = {.col = first_shared_block};
    const struct {
        struct moe_operand *operand;
        struct origin origin;
    } moves[] = {
        {&weights->gate, out},
        {&weights->up, out},
        {&weights->down, in},
        {&weights->gate_bias, out},
        {&weights->up_bias, out},
        {&weights->down_bias, all},
        {&weights->shared_gate, shared_out},
        {&weights->shared_up, shared_out},
        {&weights->shared_down, shared_in},
        {&weights->gate_scale, out_scale},
        {&weights->up_scale, out_scale},
        {&weights->down_scale, in_scale},
        {&weights->shared_gate_scale, shared_out_scale},
        {&weights->shared_up_scale, shared_out_scale},
        {&weights->shared_down_scale, shared_in_scale},
    };
    for (size_t i = 0; i < sizeof moves / sizeof moves[0]; ++i) {
        if (move_operand(share, moves[i].operand, moves[i].origin, share->problem.num_experts,
                         error) != 0) {
            return -1;
        }
    }
    return 0;
}

int moe_rank_share_init(const struct moe_checkpoint_layer *layer,
                        const struct moe_rank_split *split, int64_t rank_idx, int with_shared,
                        struct moe_rank_share *share, struct moe_cli_error *error)
{
    memset(share, 0, sizeof *share);
    share->weights = layer->weights;
    struct moe_problem whole = layer->problem;
    whole.shared_inter = with_shared ? whole.shared_inter : 0;
    moe_rank_split_take(&whole, split, rank_idx, &share->problem, &share->filter);
    drop_unused(share);
    if (move_operands(share, rank_idx % split->tp, error) != 0) {
        moe_rank_share_finish(share);
        return -1;
    }
    return 0;
}

void moe_rank_share_finish(struct moe_rank_share *share)
{
    for (int i = 0; i < share->num_tables; ++i) {
        free(share->tables[i]);
    }
    memset(share, 0, sizeof *share);
}
