/* SPDX-License-Identifier: Apache-2.0 */
/* Which experts two correct implementations may choose differently. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "near_tie.h"

enum { num_experts = 8 };

static int64_t find(struct moe_problem problem, const float *logits, const float *bias,
                    unsigned char *is_open)
{
    double scratch[2 * num_experts];
    problem.num_experts = num_experts;
    return moe_near_tie_find(&problem, logits, bias, scratch, is_open);
}

/* Scores of 1 to 2 have bf16 steps of 2^-7. */
static void one_step_is_a_tie_two_are_not(void **state)
{
    (void)state;
    const struct moe_problem problem = {.gating = MOE_GATING_TOPK_SOFTMAX, .top_k = 2};
    unsigned char is_open[num_experts];
    float logits[num_experts] = {0.0f, 1.9f, 1.5f, 0.1f, -3.0f, 1.5f - 0x1p-7f, 0.5f, 1.2f};
    assert_int_equal(find(problem, logits, NULL, is_open), 2);
    const unsigned char expected[num_experts] = {[2] = 1, [5] = 1};
    assert_memory_equal(is_open, expected, sizeof expected);
    logits[5] = 1.5f - 0x1p-6f;
    assert_int_equal(find(problem, logits, NULL, is_open), 0);
}

/* An equal score among the chosen takes part: either of the three may be left out. */
static void all_on_the_border_take_part(void **state)
{
    (void)state;
    const struct moe_problem problem = {.gating = MOE_GATING_SOFTMAX, .top_k = 2};
    unsigned char is_open[num_experts];
    const float logits[num_experts] = {2.0f, 0.0f, 2.0f, 0.0f, 2.0f, 0.0f, 0.0f, 0.0f};
    assert_int_equal(find(problem, logits, NULL, is_open), 3);
    const unsigned char expected[num_experts] = {[0] = 1, [2] = 1, [4] = 1};
    assert_memory_equal(is_open, expected, sizeof expected);
}

static void nothing_to_reject_is_no_tie(void **state)
{
    (void)state;
    const struct moe_problem problem = {.gating = MOE_GATING_SOFTMAX, .top_k = num_experts};
    unsigned char is_open[num_experts];
    const float logits[num_experts] = {0.0f};
    assert_int_equal(find(problem, logits, NULL, is_open), 0);
}

/* sigma(0) is 0.5: bias and logits decide together. */
static void bias_moves_the_border(void **state)
{
    (void)state;
    const struct moe_problem problem = {.gating = MOE_GATING_SIGMOID, .top_k = 1};
    unsigned char is_open[num_experts];
    const float logits[num_experts] = {0.0f, 0.0f, -9.0f, -9.0f, -9.0f, -9.0f, -9.0f, -9.0f};
    float bias[num_experts] = {0.0f};
    assert_int_equal(find(problem, logits, bias, is_open), 2);
    bias[1] = 0.25f;
    assert_int_equal(find(problem, logits, bias, is_open), 0);
    bias[2] = 0.75f; /* sigma(-9) + 0.75 is 0.7501, next to 0.75 */
    assert_int_equal(find(problem, logits, bias, is_open), 2);
    assert_true(is_open[1] && is_open[2]);
}

/* Groups of two, the best one is kept. */
static void rejected_groups_do_not_take_part(void **state)
{
    (void)state;
    const struct moe_problem problem = {.gating = MOE_GATING_SIGMOID,
                                        .top_k = 1,
                                        .num_groups = 4,
                                        .topk_groups = 1,
                                        .group_score = MOE_GROUP_SCORE_TOP2_SUM};
    unsigned char is_open[num_experts];
    /* Expert 2 is as good as expert 1, but its group is not. */
    const float logits[num_experts] = {1.0f, 2.0f, 2.0f, -1.0f, -5.0f, -5.0f, -5.0f, -5.0f};
    assert_int_equal(find(problem, logits, NULL, is_open), 0);
    const float equal[num_experts] = {1.0f, 2.0f, 2.0f, 1.0f, -5.0f, -5.0f, -5.0f, -5.0f};
    assert_int_equal(find(problem, equal, NULL, is_open), num_experts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_step_is_a_tie_two_are_not),
        cmocka_unit_test(all_on_the_border_take_part),
        cmocka_unit_test(nothing_to_reject_is_no_tie),
        cmocka_unit_test(bias_moves_the_border),
        cmocka_unit_test(rejected_groups_do_not_take_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
