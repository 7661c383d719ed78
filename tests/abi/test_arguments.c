/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments of run calls that are refused: with the right status and a sentence that names the
 * member, and before anything was touched: outputs, inputs and workspace hold what they held.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "abi_calls.h"
#include "abi_layout.h"
#include "abi_quantization.h"
#include "abi_refusal.h"

/* ---------------------------------------------------------------- valid arguments */

static void test_valid_arguments_are_taken(void **state)
{
    (void)state;
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        union abi_args args;
        struct moe_error error;
        MOE_INIT(error);
        poison();
        abi_call_fill(&abi_calls[i], &host, &args);
        int32_t status = abi_calls[i].run(host.api, host.plan, &args, &error);
        if (status != abi_calls[i].status) {
            fail_msg("%s: status %d: %s", abi_calls[i].form, status, error.message);
        }
        bool wrote = memcmp(&before->out, &host.memory->out, sizeof(before->out)) != 0;
        assert_int_equal(wrote, status == MOE_STATUS_OK);
        assert_memory_equal(&before->in, &host.memory->in, sizeof(before->in));
    }
}

static void test_no_tokens_and_no_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        union abi_args args;
        struct moe_error error;
        MOE_INIT(error);
        poison();
        abi_call_fill(&abi_calls[i], &host, &args);
        args.call.num_tokens = 0;
        int32_t status = abi_calls[i].run(host.api, host.plan, &args, &error);
        if (status != abi_calls[i].status) {
            fail_msg("%s without tokens: status %d: %s", abi_calls[i].form, status, error.message);
        }
        assert_memory_equal(&before->in, &host.memory->in, sizeof(before->in));
    }
}

/* ---------------------------------------------------------------- NULL */

static void test_null_plan_and_args(void **state)
{
    (void)state;
    poison();
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        const struct abi_call *call = &abi_calls[i];
        struct moe_error error;
        union abi_args args;
        abi_call_fill(call, &host, &args);
        MOE_INIT(error);
        assert_int_equal(call->run(host.api, NULL, &args, &error), MOE_STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(error.message, "plan is NULL"));
        MOE_INIT(error);
        assert_int_equal(call->run(host.api, host.plan, NULL, &error), MOE_STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(error.message, call->struct_name));
        assert_int_equal(call->run(host.api, NULL, NULL, NULL), MOE_STATUS_INVALID_ARGUMENT);
        assert_untouched(call->form, "NULL");
    }
}

static bool is_required(const struct abi_call *call, const char *member)
{
    char word[64];
    snprintf(word, sizeof(word), " %s ", member);
    return strstr(call->required, word) != NULL;
}

/* Every pointer that the valid arguments set, made NULL: refused where it is needed, else taken. */
static void test_null_members(void **state)
{
    (void)state;
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        const struct abi_call *call = &abi_calls[i];
        int num_required = 0;
        for (size_t m = 0; m < ABI_LAYOUT_NUM_ENTRIES; m++) {
            const struct abi_layout_entry *member = &abi_layout[m];
            const char *pointer;
            union abi_args args;
            if (member->kind != ABI_LAYOUT_MEMBER || strchr(member->type, '*') == NULL ||
                strcmp(member->struct_name, call->struct_name) != 0) {
                continue;
            }
            abi_call_fill(call, &host, &args);
            memcpy(&pointer, args.bytes + member->offset, sizeof(pointer));
            if (pointer == NULL) {
                continue;
            }
            memset(args.bytes + member->offset, 0, sizeof(pointer));
            poison();
            if (is_required(call, member->name)) {
                num_required++;
                assert_refused(call, &args, member->name, MOE_STATUS_INVALID_ARGUMENT,
                               member->name);
            } else if (strcmp(member->name, "shared") == 0) {
                assert_refused(call, &args, "shared_factor alone", MOE_STATUS_INVALID_ARGUMENT,
                               "shared");
            } else if (call->run(host.api, host.plan, &args, NULL) != call->status) {
                fail_msg("%s: %s may be NULL, but is refused", call->form, member->name);
            }
        }
        int num_words = 0;
        for (const char *c = call->required; *c != '\0'; c++) {
            num_words += *c == ' ' && c[1] != '\0';
        }
        assert_int_equal(num_required, num_words);
    }
}

/* ---------------------------------------------------------------- the common part */

static void test_call(void **state)
{
    (void)state;
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        const struct abi_call *call = &abi_calls[i];
        union abi_args good, args;
        if (call->status != MOE_STATUS_OK) {
            continue;
        }
        poison();
        abi_call_fill(call, &host, &good);
        args = good;
        args.call.flags = 1;
        assert_refused(call, &args, "flags", MOE_STATUS_INVALID_ARGUMENT, "flags");
        args = good;
        args.call.num_tokens = -1;
        assert_refused(call, &args, "num_tokens -1", MOE_STATUS_INVALID_ARGUMENT, "num_tokens");
        args = good;
        args.call.num_tokens = ABI_MAX_TOKENS + 1;
        assert_refused(call, &args, "num_tokens", MOE_STATUS_INVALID_ARGUMENT, "num_tokens");
        args = good;
        args.call.num_tokens = INT64_MAX;
        assert_refused(call, &args, "num_tokens", MOE_STATUS_INVALID_ARGUMENT, "num_tokens");
    }
}

/* The rows of these are counted by their arguments. */
static bool counts_rows(const struct abi_call *call)
{
    static const char *const forms[] = {"experts", "activation", "grouped_gemm",
                                        "align_block_size, batched"};
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        if (strncmp(call->form, forms[i], strlen(forms[i])) == 0) {
            return true;
        }
    }
    return false;
}

static void test_num_tokens_device(void **state)
{
    (void)state;
    static const int32_t wrong[] = {-1, INT32_MIN, ABI_TOKENS + 1, INT32_MAX};
    static const int32_t right[] = {ABI_TOKENS, 1, 0};
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        const struct abi_call *call = &abi_calls[i];
        union abi_args args;
        if (call->status != MOE_STATUS_OK) {
            continue;
        }
        for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++) {
            poison();
            abi_call_fill(call, &host, &args);
            args.call.num_tokens_device = &wrong[k];
            assert_refused(call, &args, "wrong count", MOE_STATUS_INVALID_ARGUMENT,
                           "num_tokens_device");
        }
        for (size_t k = 0; k < sizeof(right) / sizeof(right[0]); k++) {
            poison();
            abi_call_fill(call, &host, &args);
            args.call.num_tokens_device = &right[k];
            if (counts_rows(call)) {
                assert_refused(call, &args, "rows", MOE_STATUS_INVALID_ARGUMENT,
                               "num_tokens_device");
            } else if (call->run(host.api, host.plan, &args, NULL) != MOE_STATUS_OK) {
                fail_msg("%s: num_tokens_device %d is refused", call->form, right[k]);
            }
        }
    }
}

/* A call with num_tokens_device n leaves what the same call with n tokens leaves; only the sentinel
 * of sorted ids stays that of num_tokens. */
static void test_device_count_is_the_count(void **state)
{
    (void)state;
    enum { NUM_TOKENS = 3 };
    static const int32_t count = NUM_TOKENS;
    struct abi_outputs *expected = malloc(sizeof(*expected));
    assert_non_null(expected);
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        const struct abi_call *call = &abi_calls[i];
        union abi_args args;
        if (call->status != MOE_STATUS_OK || counts_rows(call)) {
            continue;
        }
        poison();
        abi_call_fill(call, &host, &args);
        args.call.num_tokens = NUM_TOKENS;
        assert_int_equal(call->run(host.api, host.plan, &args, NULL), MOE_STATUS_OK);
        *expected = host.memory->out;
        for (size_t k = 0; k < ABI_SORTED; k++) {
            int32_t *id = &expected->sorted_ids[k];
            *id = *id == NUM_TOKENS * ABI_TOP_K ? ABI_ROUTES : *id;
        }
        poison();
        args.call.num_tokens = ABI_TOKENS;
        args.call.num_tokens_device = &count;
        assert_int_equal(call->run(host.api, host.plan, &args, NULL), MOE_STATUS_OK);
        if (memcmp(expected, &host.memory->out, sizeof(*expected)) != 0) {
            fail_msg("%s: num_tokens_device and num_tokens differ", call->form);
        }
    }
    free(expected);
}

static void test_workspace(void **state)
{
    (void)state;
    static const struct {
        const char *form;
        int32_t op;
    } ops[] = {{"layer of router", MOE_OP_LAYER},
               {"experts", MOE_OP_EXPERTS},
               {"router", MOE_OP_ROUTER},
               {"gating", MOE_OP_GATING},
               {"align_block_size", MOE_OP_ALIGN_BLOCK_SIZE},
               {"ep_preprocess", MOE_OP_EP_PREPROCESS},
               {"route", MOE_OP_ROUTE},
               {"pre_reorder", MOE_OP_PRE_REORDER},
               {"activation", MOE_OP_ACTIVATION},
               {"grouped_gemm, gate and up", MOE_OP_GEMM1},
               {"grouped_gemm, down", MOE_OP_GEMM2},
               {"post_reorder", MOE_OP_POST_REORDER},
               {"sum_reduce", MOE_OP_SUM_REDUCE}};
    struct moe_plan_info info;
    uint64_t largest = 0;
    MOE_INIT(info);
    assert_int_equal(host.api->plan_info(host.plan, &info, NULL), 0);
    assert_true(info.workspace_bytes <= ABI_WORKSPACE_BYTES);
    assert_true(info.workspace_alignment <= 64);
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        const struct abi_call *call = abi_call_find(ops[i].form);
        struct moe_choice choice;
        union abi_args args;
        assert_non_null(call);
        MOE_INIT(choice);
        assert_int_equal(host.api->plan_op_info(host.plan, ops[i].op, ABI_TOKENS, &choice, NULL),
                         0);
        largest = choice.workspace_bytes > largest ? choice.workspace_bytes : largest;
        abi_call_fill(call, &host, &args);
        poison();
        if (choice.workspace_bytes > 0) {
            args.call.workspace_bytes = choice.workspace_bytes - 1;
            assert_refused(call, &args, "workspace_bytes - 1", MOE_STATUS_WORKSPACE_TOO_SMALL,
                           "workspace");
            args.call.workspace_bytes = choice.workspace_bytes;
            args.call.workspace = NULL;
            assert_refused(call, &args, "no workspace", MOE_STATUS_WORKSPACE_TOO_SMALL,
                           "workspace");
            args.call.workspace = host.memory->workspace + 1;
            assert_refused(call, &args, "workspace + 1", MOE_STATUS_INVALID_ARGUMENT, "workspace");
        }
        /* What the plan says is enough: not a byte beyond it is written. */
        args.call.workspace = choice.workspace_bytes > 0 ? host.memory->workspace : NULL;
        args.call.workspace_bytes = choice.workspace_bytes;
        assert_int_equal(call->run(host.api, host.plan, &args, NULL), 0);
        assert_memory_equal(host.memory->workspace + choice.workspace_bytes,
                            before->workspace + choice.workspace_bytes,
                            ABI_WORKSPACE_BYTES - choice.workspace_bytes);
    }
    assert_true(largest > 0 && largest <= info.workspace_bytes);
}

/* ---------------------------------------------------------------- members, one at a time */

/* A value for one member of a form's arguments. `member` may be nested: "filter.mode". */
struct bad_member {
    const char *form;
    size_t offset;
    size_t bytes;
    int64_t value; /* ADDRESS: of unused memory */
    int32_t status;
    const char *word;
};

#define ADDRESS                 INT64_C(0x7ADD7E55)
#define MEMBER_OF(type, member) offsetof(struct type, member), sizeof(((struct type *)0)->member)
#define REFUSE(form, type, member, value, word)                                 \
    {                                                                           \
        form, MEMBER_OF(type, member), value, MOE_STATUS_INVALID_ARGUMENT, word \
    }
#define LATER(form, type, member, value, word)                             \
    {                                                                      \
        form, MEMBER_OF(type, member), value, MOE_STATUS_UNSUPPORTED, word \
    }

static const struct bad_member bad_members[] = {
#define REFUSE_IDS(form, type)                                                                     \
    REFUSE(form, type, ids_dtype, 2, "ids_dtype"), REFUSE(form, type, ids_dtype, -1, "ids_dtype"), \
        REFUSE(form, type, ids_dtype, INT32_MAX, "ids_dtype")
#define REFUSE_FILTER(form, type)                                  \
    REFUSE(form, type, filter.mode, 2, "filter.mode"),             \
        REFUSE(form, type, filter.mode, -1, "filter.mode"),        \
        REFUSE(form, type, filter.reserved, 1, "filter.reserved"), \
        REFUSE(form, type, filter.expert_begin, -1, "filter"),     \
        REFUSE(form, type, filter.expert_begin, 1, "filter"),      \
        REFUSE(form, type, filter.expert_end, -1, "filter"),       \
        REFUSE(form, type, filter.expert_end, ABI_EXPERTS + 1, "filter")
#define REFUSE_STRIDE(form, type, member)                                            \
    REFUSE(form, type, member, 1, #member), REFUSE(form, type, member, -1, #member), \
        REFUSE(form, type, member, INT64_MAX, #member)
#define REFUSE_ROWS(form, type)                   \
    REFUSE(form, type, num_rows, -1, "num_rows"), \
        REFUSE(form, type, num_rows, INT64_MAX, "num_rows")
/* Rows have a schedule already, which a second one contradicts. */
#define REFUSE_MASKED(form, type)                      \
    REFUSE(form, type, masked_m, ADDRESS, "masked_m"), \
        REFUSE(form, type, max_masked_rows, 1, "max_masked_rows")
/* Plain rows have no scales. */
#define REFUSE_SCALED_INPUT(form, type)                        \
    REFUSE(form, type, input_scales, ADDRESS, "input_scales"), \
        REFUSE(form, type, input_scale_stride, 1, "input_scale_stride")
#define REFUSE_REPLICAS(form, type)                                \
    REFUSE(form, type, physical_ids, ADDRESS, "physical_ids"),     \
        REFUSE(form, type, num_replicas, ADDRESS, "num_replicas"), \
        REFUSE(form, type, max_replicas, 1, "max_replicas"),       \
        REFUSE(form, type, max_replicas, -1, "max_replicas")
/* Where ids are given nothing is gated. */
#define REFUSE_GATING(form, type)                                      \
    REFUSE(form, type, num_valid_tokens, ADDRESS, "num_valid_tokens"), \
        REFUSE(form, type, physical_ids, ADDRESS, "physical_ids"),     \
        REFUSE(form, type, num_replicas, ADDRESS, "num_replicas"),     \
        REFUSE(form, type, max_replicas, 1, "max_replicas"),           \
        REFUSE(form, type, load_counters, ADDRESS, "load_counters")

    REFUSE_IDS("layer of ids", moe_layer_args),
    REFUSE_IDS("layer of router", moe_layer_args),
    REFUSE_FILTER("layer of ids", moe_layer_args),
    REFUSE("layer of ids", moe_layer_args, filter.mode, MOE_FILTER_KEEP, "filter.mode"),
    REFUSE("layer of ids", moe_layer_args, reserved, 1, "reserved"),
    REFUSE("layer of ids", moe_layer_args, logits, ADDRESS, "logits"),
    REFUSE("layer of ids", moe_layer_args, logits_out, ADDRESS, "logits_out"),
    REFUSE("layer of ids", moe_layer_args, topk_ids_out, ADDRESS, "topk_ids_out"),
    REFUSE("layer of ids", moe_layer_args, topk_weights_out, ADDRESS, "topk_weights_out"),
    REFUSE("layer of logits", moe_layer_args, logits_out, ADDRESS, "logits_out"),
    REFUSE("layer of logits", moe_layer_args, topk_weights, ADDRESS, "topk_weights"),
    REFUSE_STRIDE("layer of logits", moe_layer_args, logits_stride),
    REFUSE_STRIDE("layer of ids", moe_layer_args, token_stride),
    REFUSE_STRIDE("layer of ids", moe_layer_args, residual_stride),
    REFUSE_STRIDE("layer of ids", moe_layer_args, output_stride),
    REFUSE_SCALED_INPUT("layer of ids", moe_layer_args),
    REFUSE_GATING("layer of ids", moe_layer_args),
    REFUSE_REPLICAS("layer of router", moe_layer_args),
    REFUSE("layer of router", moe_layer_args, max_replicas, INT64_MAX, "max_replicas"),

    REFUSE_ROWS("experts", moe_experts_args),
    REFUSE_STRIDE("experts", moe_experts_args, row_stride),
    REFUSE_STRIDE("experts", moe_experts_args, output_stride),
    REFUSE("experts", moe_experts_args, row_weights, ADDRESS & ~3, "row_weights"),
    REFUSE_MASKED("experts", moe_experts_args),
    REFUSE_SCALED_INPUT("experts", moe_experts_args),

    REFUSE_STRIDE("router", moe_router_args, token_stride),
    REFUSE_STRIDE("router", moe_router_args, logits_stride),

    REFUSE_IDS("gating", moe_gating_args),
    REFUSE_STRIDE("gating", moe_gating_args, logits_stride),
    REFUSE_REPLICAS("gating", moe_gating_args),
    REFUSE("gating, replicas", moe_gating_args, max_replicas, 0, "max_replicas"),
    REFUSE("gating, replicas", moe_gating_args, max_replicas, -1, "max_replicas"),

    REFUSE_IDS("align_block_size", moe_align_args),
    REFUSE_FILTER("align_block_size", moe_align_args),
    REFUSE("align_block_size", moe_align_args, block_size, -1, "block_size"),
    REFUSE("align_block_size", moe_align_args, block_size, INT32_MAX, "padded"),
    REFUSE("align_block_size", moe_align_args, sorted_capacity, ABI_ROUTES, "capacities"),
    REFUSE("align_block_size", moe_align_args, sorted_capacity, INT64_MAX, "capacities"),
    REFUSE("align_block_size", moe_align_args, expert_capacity, 1, "capacities"),
    REFUSE("align_block_size", moe_align_args, expert_capacity, -1, "capacities"),
    REFUSE("align_block_size", moe_align_args, batch_counts, ADDRESS, "topk_ids"),
    REFUSE("align_block_size", moe_align_args, max_batch_rows, 1, "batch_counts"),
    REFUSE("align_block_size, batched", moe_align_args, topk_ids, ADDRESS, "topk_ids"),
    REFUSE("align_block_size, batched", moe_align_args, max_batch_rows, -1, "max_batch_rows"),
    REFUSE("align_block_size, batched", moe_align_args, max_batch_rows, INT32_MAX,
           "max_batch_rows"),
    REFUSE("align_block_size, batched", moe_align_args, max_batch_rows, ABI_SORTED, "capacities"),
    REFUSE("align_block_size, batched", moe_align_args, block_size, INT32_MAX, "2^31"),
    REFUSE("align_block_size, batched", moe_align_args, sorted_capacity, ABI_ROUTES, "capacities"),
    REFUSE("align_block_size, batched", moe_align_args, expert_capacity, ABI_EXPERTS, "capacities"),

    REFUSE_IDS("ep_preprocess", moe_ep_preprocess_args),
    REFUSE_FILTER("ep_preprocess", moe_ep_preprocess_args),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, filter.mode, MOE_FILTER_KEEP, "filter.mode"),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, segment_alignment, -1, "segment_alignment"),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, segment_alignment, INT32_MAX, "aligned to"),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, row_capacity, ABI_ROUTES - 1, "row_capacity"),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, row_capacity, INT64_MAX, "row_capacity"),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, masked_m, ADDRESS, "max_masked_rows"),
    REFUSE("ep_preprocess", moe_ep_preprocess_args, max_masked_rows, ABI_TOKENS, "masked_m"),
    REFUSE("ep_preprocess, masked", moe_ep_preprocess_args, max_masked_rows, 0, "max_masked_rows"),
    REFUSE("ep_preprocess, masked", moe_ep_preprocess_args, max_masked_rows, -1, "max_masked_rows"),
    REFUSE("ep_preprocess, masked", moe_ep_preprocess_args, max_masked_rows, ABI_TOKENS - 1,
           "max_masked_rows"),
    REFUSE("ep_preprocess, masked", moe_ep_preprocess_args, max_masked_rows, INT32_MAX,
           "max_masked_rows"),
    REFUSE("ep_preprocess, masked", moe_ep_preprocess_args, segment_alignment, 3,
           "segment_alignment"),
    REFUSE("ep_preprocess, masked", moe_ep_preprocess_args, row_capacity,
           ABI_EXPERTS *ABI_MASKED_ROWS - 1, "row_capacity"),

    REFUSE_IDS("route", moe_route_args),
    REFUSE_IDS("route of ids", moe_route_args),
    REFUSE_FILTER("route", moe_route_args),
    REFUSE_FILTER("route of ids", moe_route_args),
    REFUSE_STRIDE("route", moe_route_args, logits_stride),
    REFUSE("route", moe_route_args, max_replicas, 0, "max_replicas"),
    REFUSE("route", moe_route_args, max_replicas, -1, "max_replicas"),
    REFUSE("route", moe_route_args, block_size, -1, "block_size"),
    REFUSE("route", moe_route_args, sorted_capacity, ABI_ROUTES, "capacities"),
    REFUSE("route", moe_route_args, expert_capacity, 1, "capacities"),
    REFUSE("route", moe_route_args, segment_alignment, -1, "segment_alignment"),
    REFUSE("route", moe_route_args, segment_alignment, INT32_MAX, "aligned to"),
    REFUSE("route", moe_route_args, row_capacity, ABI_ROUTES - 1, "row_capacity"),
    REFUSE("route", moe_route_args, max_masked_rows, ABI_TOKENS, "masked_m"),
    REFUSE("route of ids", moe_route_args, max_masked_rows, ABI_TOKENS - 1, "max_masked_rows"),
    REFUSE("route of ids", moe_route_args, correction_bias, ADDRESS, "logits"),
    REFUSE("route of ids", moe_route_args, topk_weights, ADDRESS, "logits"),
    REFUSE("route of ids", moe_route_args, num_valid_tokens, ADDRESS, "logits"),
    REFUSE("route of ids", moe_route_args, physical_ids, ADDRESS, "logits"),
    REFUSE("route of ids", moe_route_args, num_replicas, ADDRESS, "logits"),
    REFUSE("route of ids", moe_route_args, load_counters, ADDRESS, "logits"),
    REFUSE("route of ids", moe_route_args, max_replicas, 1, "logits"),
    REFUSE("route of ids", moe_route_args, expert_ids, ADDRESS, "sorted_ids"),
    REFUSE("route of ids", moe_route_args, num_tokens_post_pad, ADDRESS, "sorted_ids"),

    REFUSE_ROWS("pre_reorder", moe_pre_reorder_args),
    REFUSE("pre_reorder", moe_pre_reorder_args, num_rows, ABI_ROUTES - 1, "src2dst"),
    REFUSE_STRIDE("pre_reorder", moe_pre_reorder_args, token_stride),
    REFUSE_STRIDE("pre_reorder", moe_pre_reorder_args, row_stride),
    REFUSE_IDS("pre_reorder", moe_pre_reorder_args),
    LATER("pre_reorder", moe_pre_reorder_args, output_dtype, 99, "output_dtype"),
    LATER("pre_reorder", moe_pre_reorder_args, output_dtype, MOE_DTYPE_BF16, "output_dtype"),
    REFUSE("pre_reorder", moe_pre_reorder_args, topk_ids, ADDRESS, "topk_ids"),
    REFUSE("pre_reorder", moe_pre_reorder_args, filter.expert_map, ADDRESS, "filter"),
    REFUSE("pre_reorder", moe_pre_reorder_args, filter.expert_end, 1, "filter"),
    REFUSE("pre_reorder", moe_pre_reorder_args, filter.reserved, 1, "filter"),
    REFUSE_QUANTIZED("pre_reorder", moe_pre_reorder_args),

    BAD_QUANTIZATION,
    REFUSE_ROWS("activation", moe_activation_args),
    REFUSE("activation, masked", moe_activation_args, max_masked_rows, 0, "max_masked_rows"),
    REFUSE("activation, masked", moe_activation_args, max_masked_rows, -1, "max_masked_rows"),
    REFUSE("activation, masked", moe_activation_args, masked_m, 0, "masked_m"),
    REFUSE_STRIDE("activation", moe_activation_args, row_stride),
    REFUSE_STRIDE("activation", moe_activation_args, output_stride),
    REFUSE("activation", moe_activation_args, col_stride, -1, "col_stride"),
    REFUSE("activation", moe_activation_args, col_stride, INT64_MAX, "col_stride"),
    REFUSE("activation", moe_activation_args, up_offset, -1, "up_offset"),
    REFUSE("activation", moe_activation_args, up_offset, INT64_MAX, "up_offset"),
    REFUSE("activation", moe_activation_args, masked_m, ADDRESS, "masked_m"),
    REFUSE("activation", moe_activation_args, max_masked_rows, 1, "max_masked_rows"),
    REFUSE_QUANTIZED("activation", moe_activation_args),

    REFUSE("grouped_gemm, down", moe_grouped_gemm_args, which, 0, "which"),
    REFUSE("grouped_gemm, down", moe_grouped_gemm_args, which, 4, "which"),
    REFUSE("grouped_gemm, down", moe_grouped_gemm_args, which, -1, "which"),
    REFUSE_ROWS("grouped_gemm, down", moe_grouped_gemm_args),
    REFUSE_STRIDE("grouped_gemm, down", moe_grouped_gemm_args, input_stride),
    REFUSE_STRIDE("grouped_gemm, down", moe_grouped_gemm_args, output_stride),
    REFUSE("grouped_gemm, down", moe_grouped_gemm_args, sorted_ids, ADDRESS, "seg_indptr"),
    REFUSE("grouped_gemm, gathered", moe_grouped_gemm_args, seg_indptr, ADDRESS, "seg_indptr"),
    REFUSE("grouped_gemm, gathered", moe_grouped_gemm_args, num_rows, ABI_ROUTES - 1, "num_rows"),
    REFUSE("grouped_gemm, gathered", moe_grouped_gemm_args, block_size, 0, "block_size"),
    REFUSE("grouped_gemm, gathered", moe_grouped_gemm_args, block_size, -1, "block_size"),
    REFUSE_MASKED("grouped_gemm, down", moe_grouped_gemm_args),
    REFUSE_SCALED_INPUT("grouped_gemm, down", moe_grouped_gemm_args),

    REFUSE_ROWS("post_reorder", moe_post_reorder_args),
    REFUSE("post_reorder", moe_post_reorder_args, num_rows, ABI_ROUTES - 1, "src2dst"),
    REFUSE_STRIDE("post_reorder", moe_post_reorder_args, row_stride),
    REFUSE_STRIDE("post_reorder", moe_post_reorder_args, shared_stride),
    REFUSE_STRIDE("post_reorder", moe_post_reorder_args, residual_stride),
    REFUSE_STRIDE("post_reorder", moe_post_reorder_args, output_stride),

    REFUSE_STRIDE("sum_reduce", moe_sum_reduce_args, token_stride),
    REFUSE_STRIDE("sum_reduce", moe_sum_reduce_args, output_stride),
};

/* All rows that are not refused as they should be are printed. */
static void test_bad_members(void **state)
{
    (void)state;
    int num_wrong = 0;
    for (size_t i = 0; i < sizeof(bad_members) / sizeof(bad_members[0]); i++) {
        const struct bad_member *bad = &bad_members[i];
        const struct abi_call *call = abi_call_find(bad->form);
        struct moe_error error;
        union abi_args args;
        assert_non_null(call);
        poison();
        abi_call_fill(call, &host, &args);
        int64_t value =
            bad->value == ADDRESS ? (int64_t)(intptr_t)host.memory->in.spare : bad->value;
        memcpy(args.bytes + bad->offset, &value, bad->bytes);
        MOE_INIT(error);
        int32_t status = call->run(host.api, host.plan, &args, &error);
        if (status != bad->status || strstr(error.message, bad->word) == NULL) {
            print_message("%s, %s, bytes at %zu = %lld: status %d instead of %d: \"%s\"\n",
                          bad->form, bad->word, bad->offset, (long long)bad->value, status,
                          bad->status, error.message);
            num_wrong++;
            continue;
        }
        assert_untouched(bad->form, bad->word);
    }
    assert_int_equal(num_wrong, 0);
}

/* ---------------------------------------------------------------- alignment */

/* fp8 rows: elements of one byte lie anywhere. */
static bool has_byte_elements(const struct abi_call *call, const char *member)
{
    return (strcmp(call->form, "quantize") == 0 && strcmp(member, "output") == 0) ||
           (strcmp(call->form, "pre_reorder, quantized") == 0 && strcmp(member, "rows") == 0);
}

static void test_misaligned_pointers(void **state)
{
    (void)state;
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        const struct abi_call *call = &abi_calls[i];
        for (size_t m = 0; m < ABI_LAYOUT_NUM_ENTRIES; m++) {
            const struct abi_layout_entry *member = &abi_layout[m];
            union abi_args args;
            char *pointer;
            if (call->status != MOE_STATUS_OK || member->kind != ABI_LAYOUT_MEMBER ||
                strcmp(member->struct_name, call->struct_name) != 0 ||
                strchr(member->type, '*') == NULL || strcmp(member->name, "weights") == 0 ||
                has_byte_elements(call, member->name)) {
                continue;
            }
            poison();
            abi_call_fill(call, &host, &args);
            memcpy(&pointer, args.bytes + member->offset, sizeof(pointer));
            if (pointer == NULL) {
                continue;
            }
            pointer++;
            memcpy(args.bytes + member->offset, &pointer, sizeof(pointer));
            assert_refused(call, &args, "misaligned", MOE_STATUS_INVALID_ARGUMENT, member->name);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid_arguments_are_taken),
        cmocka_unit_test(test_no_tokens_and_no_rows),
        cmocka_unit_test(test_null_plan_and_args),
        cmocka_unit_test(test_null_members),
        cmocka_unit_test(test_call),
        cmocka_unit_test(test_num_tokens_device),
        cmocka_unit_test(test_device_count_is_the_count),
        cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_bad_members),
        cmocka_unit_test(test_misaligned_pointers),
    };
    return cmocka_run_group_tests(tests, open_host, close_host);
}
