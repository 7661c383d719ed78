/* SPDX-License-Identifier: Apache-2.0 */
/* An output that overlaps an input, another output or the workspace is refused, in every pair. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "abi_refusal.h"

struct overlap {
    const char *form;
    size_t output; /* offset of the member */
    size_t input;
    bool in_place; /* the very same rows are legal */
};

static const struct overlap overlaps[] = {
#define OVERLAP(form, type, output, input, in_place)                                \
    {                                                                               \
        form, offsetof(struct type, output), offsetof(struct type, input), in_place \
    }
    OVERLAP("layer of ids", moe_layer_args, output, tokens, true),
    OVERLAP("layer of ids", moe_layer_args, output, residual, true),
    OVERLAP("experts", moe_experts_args, output, rows, false),
    OVERLAP("router", moe_router_args, logits, tokens, false),
    OVERLAP("router", moe_router_args, logits, call.workspace, false),
    OVERLAP("router", moe_router_args, tokens, call.workspace, false),
    OVERLAP("pre_reorder", moe_pre_reorder_args, rows, tokens, false),
    OVERLAP("pre_reorder", moe_pre_reorder_args, rows, src2dst, false),
    OVERLAP("pre_reorder, quantized", moe_pre_reorder_args, rows, tokens, false),
    OVERLAP("pre_reorder, quantized", moe_pre_reorder_args, rows, topk_ids, false),
    OVERLAP("pre_reorder, quantized", moe_pre_reorder_args, rows, input_scales, false),
    OVERLAP("quantize", moe_quantize_args, output, tokens, false),
    OVERLAP("quantize", moe_quantize_args, output, output_scales, false),
    OVERLAP("quantize", moe_quantize_args, output_scales, tokens, false),
    OVERLAP("activation, masked", moe_activation_args, output, masked_m, false),
    OVERLAP("activation", moe_activation_args, output, input, false),
    OVERLAP("grouped_gemm, down", moe_grouped_gemm_args, output, input, false),
    OVERLAP("grouped_gemm, gathered", moe_grouped_gemm_args, output, input, false),
    OVERLAP("post_reorder", moe_post_reorder_args, output, rows, false),
    OVERLAP("post_reorder", moe_post_reorder_args, output, residual, true),
    OVERLAP("post_reorder", moe_post_reorder_args, output, shared, true),
    OVERLAP("sum_reduce", moe_sum_reduce_args, output, input, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, tokens, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, residual, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, output, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, filter.expert_map, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, call.workspace, false),
    OVERLAP("layer of router", moe_layer_args, topk_ids_out, tokens, false),
    OVERLAP("layer of router", moe_layer_args, topk_ids_out, residual, false),
    OVERLAP("layer of router", moe_layer_args, topk_ids_out, output, false),
    OVERLAP("layer of router", moe_layer_args, topk_ids_out, filter.expert_map, false),
    OVERLAP("layer of router", moe_layer_args, topk_ids_out, call.workspace, false),
    OVERLAP("layer of router", moe_layer_args, topk_weights_out, tokens, false),
    OVERLAP("layer of router", moe_layer_args, topk_weights_out, residual, false),
    OVERLAP("layer of router", moe_layer_args, topk_weights_out, output, false),
    OVERLAP("layer of router", moe_layer_args, topk_weights_out, filter.expert_map, false),
    OVERLAP("layer of router", moe_layer_args, topk_weights_out, call.workspace, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, topk_ids_out, false),
    OVERLAP("layer of router", moe_layer_args, topk_ids_out, topk_weights_out, false),
    OVERLAP("layer of router", moe_layer_args, logits_out, topk_weights_out, false),
    OVERLAP("layer of logits", moe_layer_args, topk_ids_out, logits, false),
    OVERLAP("layer of logits", moe_layer_args, topk_weights_out, logits, false),
    OVERLAP("layer of logits", moe_layer_args, output, logits, false),
    OVERLAP("layer of ids", moe_layer_args, output, topk_ids, false),
    OVERLAP("layer of ids", moe_layer_args, output, topk_weights, false),
    OVERLAP("layer of ids", moe_layer_args, output, filter.expert_map, false),
    OVERLAP("layer of ids", moe_layer_args, output, call.workspace, false),
    OVERLAP("layer of ids", moe_layer_args, tokens, call.workspace, false),
    OVERLAP("layer of ids", moe_layer_args, residual, call.workspace, false),
    OVERLAP("layer of ids", moe_layer_args, topk_ids, call.workspace, false),
    OVERLAP("layer of ids", moe_layer_args, topk_weights, call.workspace, false),
    OVERLAP("experts", moe_experts_args, output, seg_indptr, false),
    OVERLAP("experts", moe_experts_args, output, call.workspace, false),
    OVERLAP("experts", moe_experts_args, rows, call.workspace, false),
    OVERLAP("gating", moe_gating_args, topk_ids, logits, false),
    OVERLAP("gating", moe_gating_args, topk_ids, correction_bias, false),
    OVERLAP("gating", moe_gating_args, topk_weights, logits, false),
    OVERLAP("gating", moe_gating_args, topk_weights, correction_bias, false),
    OVERLAP("gating", moe_gating_args, topk_ids, topk_weights, false),
    OVERLAP("align_block_size", moe_align_args, sorted_ids, topk_ids, false),
    OVERLAP("align_block_size", moe_align_args, sorted_ids, filter.expert_map, false),
    OVERLAP("align_block_size", moe_align_args, sorted_ids, expert_ids, false),
    OVERLAP("align_block_size", moe_align_args, num_tokens_post_pad, sorted_ids, false),
    OVERLAP("align_block_size", moe_align_args, sorted_ids, expert_counts, false),
    OVERLAP("align_block_size", moe_align_args, expert_ids, topk_ids, false),
    OVERLAP("align_block_size", moe_align_args, expert_ids, filter.expert_map, false),
    OVERLAP("align_block_size", moe_align_args, num_tokens_post_pad, expert_ids, false),
    OVERLAP("align_block_size", moe_align_args, expert_ids, expert_counts, false),
    OVERLAP("align_block_size", moe_align_args, num_tokens_post_pad, topk_ids, false),
    OVERLAP("align_block_size", moe_align_args, num_tokens_post_pad, filter.expert_map, false),
    OVERLAP("align_block_size", moe_align_args, num_tokens_post_pad, expert_counts, false),
    OVERLAP("align_block_size", moe_align_args, expert_counts, topk_ids, false),
    OVERLAP("align_block_size", moe_align_args, expert_counts, filter.expert_map, false),
    OVERLAP("align_block_size, counts", moe_align_args, expert_counts, topk_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, seg_indptr, topk_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, seg_indptr, filter.expert_map, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, seg_indptr, src2dst, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, seg_indptr, dst2src, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, seg_indptr, reorder_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, seg_indptr, m_indices, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, src2dst, topk_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, src2dst, filter.expert_map, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, src2dst, dst2src, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, src2dst, reorder_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, src2dst, m_indices, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, dst2src, topk_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, dst2src, filter.expert_map, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, dst2src, reorder_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, dst2src, m_indices, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, reorder_ids, topk_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, reorder_ids, filter.expert_map, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, reorder_ids, m_indices, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, m_indices, topk_ids, false),
    OVERLAP("ep_preprocess", moe_ep_preprocess_args, m_indices, filter.expert_map, false),
};

static void test_overlaps(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(overlaps) / sizeof(overlaps[0]); i++) {
        const struct abi_call *call = abi_call_find(overlaps[i].form);
        union abi_args args;
        char *input;
        assert_non_null(call);
        poison();
        abi_call_fill(call, &host, &args);
        memcpy(&input, args.bytes + overlaps[i].input, sizeof(input));
        memcpy(args.bytes + overlaps[i].output, &input, sizeof(input));
        if (!overlaps[i].in_place) {
            assert_refused(call, &args, "same place", MOE_STATUS_INVALID_ARGUMENT, "overlaps");
        } else {
            assert_int_equal(call->run(host.api, host.plan, &args, NULL), 0);
            poison();
        }
        input += sizeof(int64_t); /* the widest elements stay aligned */
        memcpy(args.bytes + overlaps[i].output, &input, sizeof(input));
        assert_refused(call, &args, "eight bytes on", MOE_STATUS_INVALID_ARGUMENT, "overlaps");
    }
}

/* The members of a form that is checked in every pair: outputs with outputs and with inputs. */
struct paired {
    const char *form;
    const size_t *outputs;
    size_t num_outputs;
    const size_t *inputs;
    size_t num_inputs;
};

#define GATING(member)     offsetof(struct moe_gating_args, member)
#define ALIGN(member)      offsetof(struct moe_align_args, member)
#define PREPROCESS(member) offsetof(struct moe_ep_preprocess_args, member)
#define ROUTE(member)      offsetof(struct moe_route_args, member)

static const size_t gating_outputs[] = {GATING(topk_ids), GATING(topk_weights),
                                        GATING(load_counters), GATING(call.workspace)};
static const size_t gating_inputs[] = {GATING(logits),           GATING(correction_bias),
                                       GATING(num_valid_tokens), GATING(physical_ids),
                                       GATING(num_replicas),     GATING(call.num_tokens_device)};
static const size_t align_outputs[] = {ALIGN(sorted_ids), ALIGN(expert_ids),
                                       ALIGN(num_tokens_post_pad), ALIGN(expert_counts),
                                       ALIGN(call.workspace)};
static const size_t align_inputs[] = {ALIGN(batch_counts)};
static const size_t masked_outputs[] = {PREPROCESS(seg_indptr),    PREPROCESS(src2dst),
                                        PREPROCESS(dst2src),       PREPROCESS(reorder_ids),
                                        PREPROCESS(m_indices),     PREPROCESS(masked_m),
                                        PREPROCESS(call.workspace)};
static const size_t masked_inputs[] = {PREPROCESS(topk_ids), PREPROCESS(filter.expert_map),
                                       PREPROCESS(call.num_tokens_device)};
static const size_t route_outputs[] = {
    ROUTE(topk_ids),      ROUTE(topk_weights), ROUTE(load_counters),
    ROUTE(sorted_ids),    ROUTE(expert_ids),   ROUTE(num_tokens_post_pad),
    ROUTE(expert_counts), ROUTE(seg_indptr),   ROUTE(src2dst),
    ROUTE(dst2src),       ROUTE(reorder_ids),  ROUTE(m_indices),
    ROUTE(call.workspace)};
static const size_t route_inputs[] = {ROUTE(logits),
                                      ROUTE(correction_bias),
                                      ROUTE(num_valid_tokens),
                                      ROUTE(physical_ids),
                                      ROUTE(num_replicas),
                                      ROUTE(filter.expert_map),
                                      ROUTE(call.num_tokens_device)};
static const size_t ids_outputs[] = {ROUTE(src2dst),   ROUTE(dst2src),  ROUTE(reorder_ids),
                                     ROUTE(m_indices), ROUTE(masked_m), ROUTE(call.workspace)};
static const size_t ids_inputs[] = {ROUTE(topk_ids), ROUTE(filter.expert_map),
                                    ROUTE(call.num_tokens_device)};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define PAIRED(form, outputs, inputs)                        \
    {                                                        \
        form, outputs, COUNT(outputs), inputs, COUNT(inputs) \
    }

static const struct paired paired[] = {
    PAIRED("gating, replicas", gating_outputs, gating_inputs),
    PAIRED("align_block_size, batched", align_outputs, align_inputs),
    PAIRED("ep_preprocess, masked", masked_outputs, masked_inputs),
    PAIRED("route", route_outputs, route_inputs),
    PAIRED("route of ids", ids_outputs, ids_inputs),
};

/* Moves the output at `moved` to where the member at `onto` lies; the workspace stays, so the other
 * moves onto it. */
static void check_pair(const struct abi_call *call, size_t moved, size_t onto)
{
    union abi_args args;
    char *place;
    poison();
    abi_call_fill(call, &host, &args);
    if (strcmp(call->form, "align_block_size, batched") != 0) {
        host.memory->in.spare[0] = ABI_TOKENS;
        before->in.spare[0] = ABI_TOKENS;
        args.call.num_tokens_device = host.memory->in.spare;
    }
    const bool onto_workspace = moved == offsetof(struct moe_call, workspace);
    memcpy(&place, args.bytes + (onto_workspace ? moved : onto), sizeof(place));
    memcpy(args.bytes + (onto_workspace ? onto : moved), &place, sizeof(place));
    if (onto_workspace && onto == offsetof(struct moe_call, num_tokens_device)) {
        memcpy(place, &(int32_t){ABI_TOKENS}, sizeof(int32_t));
        memcpy(before->workspace, &(int32_t){ABI_TOKENS}, sizeof(int32_t));
    }
    assert_refused(call, &args, "pair", MOE_STATUS_INVALID_ARGUMENT, "overlaps");
}

static void test_every_pair(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(paired); i++) {
        const struct abi_call *call = abi_call_find(paired[i].form);
        assert_non_null(call);
        for (size_t o = 0; o < paired[i].num_outputs; o++) {
            for (size_t k = 0; k < paired[i].num_outputs; k++) {
                if (k != o) {
                    check_pair(call, paired[i].outputs[o], paired[i].outputs[k]);
                }
            }
            for (size_t k = 0; k < paired[i].num_inputs; k++) {
                check_pair(call, paired[i].outputs[o], paired[i].inputs[k]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_overlaps),
                                       cmocka_unit_test(test_every_pair)};
    return cmocka_run_group_tests(tests, open_host, close_host);
}
