/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoint layers: numbers of all golden families, and operands that point to their elements. */
#define _GNU_SOURCE
#include "cli_golden.h"

static void numbers_of_golden_layers(void **state)
{
    (void)state;
    for (size_t i = 0; i < num_goldens; ++i) {
        const struct golden *golden = &goldens[i];
        char path[FIXTURE_PATH_BYTES];
        golden_path(golden->family, "", path);
        struct moe_checkpoint_layer layer;
        open_layer(path, -1, &layer);
        const struct moe_problem *problem = &layer.problem;
        assert_string_equal(layer.model_type, golden->family);
        assert_int_equal(layer.layer_idx, 0);
        assert_int_equal(layer.num_layers, 1);
        assert_int_equal(problem->struct_size, sizeof *problem);
        assert_int_equal(problem->flags, golden->flags);
        assert_int_equal(problem->num_experts, golden->num_experts);
        assert_int_equal(problem->num_experts_global, golden->num_experts);
        assert_int_equal(problem->top_k, golden->top_k);
        assert_int_equal(problem->hidden, golden->hidden);
        assert_int_equal(problem->inter, golden->inter);
        assert_int_equal(problem->shared_inter, golden->shared_inter);
        assert_int_equal(problem->activation, golden->activation);
        assert_true(problem->act_alpha == golden->act_alpha);
        assert_true(problem->act_limit == golden->act_limit);
        assert_int_equal(problem->gating, golden->gating);
        assert_int_equal(problem->num_groups, golden->num_groups);
        assert_int_equal(problem->topk_groups, golden->topk_groups);
        assert_int_equal(problem->group_score, golden->group_score);
        assert_true(problem->routed_scaling == golden->routed_scaling);
        assert_int_equal(problem->scaling_on,
                         golden->routed_scaling != 0 ? MOE_SCALING_WEIGHTS : MOE_SCALING_NONE);
        assert_int_equal(problem->logits_dtype, golden->logits_dtype);
        assert_int_equal(problem->tokens.dtype, MOE_DTYPE_BF16);
        assert_int_equal(problem->gate_up.dtype, MOE_DTYPE_BF16);
        assert_int_equal(problem->down.dtype, MOE_DTYPE_BF16);
        assert_int_equal(problem->max_tokens, 0);
        moe_checkpoint_layer_close(&layer);
    }
}

/* The layer's files hold its tensors and nothing else, so each byte has to be described exactly
 * once. */
static void every_tensor_is_used(void **state)
{
    (void)state;
    for (size_t i = 0; i < num_goldens; ++i) {
        struct moe_safetensors *file = open_golden(goldens[i].family);
        uint64_t num_bytes = 0;
        for (size_t j = 0; j < moe_safetensors_num_tensors(file); ++j) {
            num_bytes += moe_safetensors_tensor(file, j)->data_bytes;
        }
        char path[FIXTURE_PATH_BYTES];
        golden_path(goldens[i].family, "", path);
        struct moe_checkpoint_layer layer;
        open_layer(path, 0, &layer);
        assert_int_equal(layer.weight_bytes, num_bytes);
        moe_checkpoint_layer_close(&layer);
        moe_safetensors_close(file);
    }
}

static void the_config_alone_gives_the_same_problem(void **state)
{
    (void)state;
    struct fixture_folder folder;
    fixture_create(&folder);
    for (size_t i = 0; i < num_goldens; ++i) {
        copy_config(&folder, goldens[i].family);
        char path[FIXTURE_PATH_BYTES];
        golden_path(goldens[i].family, "", path);
        struct moe_checkpoint_layer opened;
        struct moe_checkpoint_layer described;
        struct moe_cli_error error = {.message = ""};
        open_layer(path, -1, &opened);
        assert_int_equal(moe_checkpoint_layer_describe(folder.path, -1, &described, &error), 0);
        assert_memory_equal(&opened.problem, &described.problem, sizeof opened.problem);
        assert_null(described.weights.up.base);
        assert_null(described.weights.up.table);
        moe_checkpoint_layer_close(&opened);
    }
    fixture_destroy(&folder);
}

static void operands_point_to_their_elements(void **state)
{
    (void)state;
    for (size_t i = 0; i < num_goldens; ++i) {
        char path[FIXTURE_PATH_BYTES];
        golden_path(goldens[i].family, "", path);
        struct moe_safetensors *file = open_golden(goldens[i].family);
        struct moe_checkpoint_layer layer;
        open_layer(path, -1, &layer);
        size_t num_checked = 0;
        for (size_t j = 0; j < num_layouts; ++j) {
            if (strcmp(layouts[j].family, goldens[i].family) == 0) {
                check_layout(&goldens[i], &layouts[j], file, &layer.weights);
                num_checked += 1;
            }
        }
        /* The operands of the list are all that are set. */
        const struct moe_operand *operands = &layer.weights.gate;
        const size_t num_operands = (sizeof layer.weights - AT(gate)) / sizeof *operands;
        size_t num_set = 0;
        for (size_t j = 0; j < num_operands; ++j) {
            num_set += operands[j].base != NULL || operands[j].table != NULL;
        }
        assert_int_equal(num_set, num_checked);
        moe_checkpoint_layer_close(&layer);
        moe_safetensors_close(file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_of_golden_layers),
        cmocka_unit_test(every_tensor_is_used),
        cmocka_unit_test(the_config_alone_gives_the_same_problem),
        cmocka_unit_test(operands_point_to_their_elements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
