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
    OVERLAP("pre_reorder", moe_pre_reorder_args, rows, tokens, false),
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_overlaps)};
    return cmocka_run_group_tests(tests, open_host, close_host);
}
