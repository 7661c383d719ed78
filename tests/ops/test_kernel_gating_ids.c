/* SPDX-License-Identifier: Apache-2.0 */
/* gating's ids beyond the choice: padded tokens, replicas of experts, appended experts, and the
 * load counters, against the reference; the same bits in every instruction set and block size. */
#include "kernel_run.h"

#include <math.h>

static const int64_t token_counts[] = {0, 1, 2, 7, 33, 200};
static const int32_t expert_counts[] = {1, 8, 60, 257};
static const int32_t topks[] = {1, 2, 8};
static const int32_t replica_counts[] = {0, 1, 2, 5};
static const int64_t first_tokens[] = {0, 1, 12};

enum valid { VALID_ALL, VALID_NEGATIVE, VALID_NONE, VALID_SOME, VALID_BEYOND, NUM_VALIDS };
enum { FIRST_PHYSICAL_ID = 1000, FIRST_APPENDED_ID = 5000, SCORE_STEP = 16 };

struct ids_case {
    int64_t num_tokens; /* of the chunk that runs */
    int64_t first_token;
    int32_t num_experts;
    int32_t top_k;
    int32_t num_appended;
    int32_t max_replicas;
    int64_t num_valid; /* of the call; INT64_MAX: not given */
    bool wide;
    bool counts_load;
};

struct ids_data {
    float *logits; /* of all tokens of the call: no two of a token are close */
    int32_t *physical_ids;
    int32_t *num_replicas;
    int32_t *clamped; /* num_replicas in 1 .. max_replicas */
};

static int64_t all_tokens(const struct ids_case *test)
{
    return test->first_token + test->num_tokens;
}

static void make_data(struct support_random *random, const struct ids_case *test,
                      struct ids_data *data)
{
    const int32_t hostile[] = {INT32_MIN, -1, 0, INT32_MAX};
    const int64_t num_experts = test->num_experts, replicas = test->max_replicas;
    data->logits = kernel_array(all_tokens(test) * num_experts, sizeof(float));
    data->physical_ids = kernel_array(num_experts * replicas, sizeof(int32_t));
    data->num_replicas = kernel_array(num_experts, sizeof(int32_t));
    data->clamped = kernel_array(num_experts, sizeof(int32_t));
    for (int64_t i = 0; i < all_tokens(test) * num_experts; i++) {
        const int64_t turn = i / num_experts * 31 + i % num_experts;
        data->logits[i] = (float)(turn % num_experts) / SCORE_STEP;
    }
    for (int64_t i = 0; i < num_experts * replicas; i++) {
        data->physical_ids[i] = FIRST_PHYSICAL_ID + (int32_t)i;
    }
    for (int64_t e = 0; e < num_experts && replicas > 0; e++) {
        const int32_t count = support_random_below(random, 3) == 0
                                  ? hostile[support_random_below(random, 4)]
                                  : (int32_t)support_random_below(random, (uint64_t)replicas) + 1;
        data->num_replicas[e] = count;
        data->clamped[e] = count < 1 ? 1 : count > replicas ? (int32_t)replicas : count;
    }
}

static void free_data(struct ids_data *data)
{
    free(data->logits);
    free(data->physical_ids);
    free(data->num_replicas);
    free(data->clamped);
}

/* Ids, weights and load of the chunk, by the reference. */
struct expected {
    int32_t *ids;
    double *weights;
    int64_t *load;
    int64_t first_slot; /* of the chunk in ids and weights */
};

static void expect(const struct ids_case *test, const struct ids_data *data,
                   struct expected *expected)
{
    const int64_t tokens = all_tokens(test), num_slots = test->top_k + test->num_appended;
    const int64_t num_valid = test->num_valid < tokens ? test->num_valid : tokens;
    double *logits = kernel_array(tokens * test->num_experts, sizeof(*logits));
    const struct ref_gate_rule rule = {.method = REF_GATE_TOPK_SOFTMAX,
                                       .num_experts = test->num_experts,
                                       .top_k = test->top_k,
                                       .scaling_factor = 1.0,
                                       .num_shared = test->num_appended,
                                       .first_shared_id = FIRST_APPENDED_ID,
                                       .shared_weight = 0.25,
                                       .abs_margin = -1.0,
                                       .rel_margin = -1.0};
    expected->ids = kernel_array(tokens * num_slots, sizeof(int32_t));
    expected->weights = kernel_array(tokens * num_slots, sizeof(double));
    expected->load = kernel_array(test->num_experts, sizeof(int64_t));
    expected->first_slot = test->first_token * num_slots;
    const struct ref_gate_result result = {expected->ids, expected->weights, NULL, NULL};
    ref_load_all(REF_F32, data->logits, tokens * test->num_experts, logits);
    ref_gate(&rule, logits, tokens, num_valid, &result);
    for (int64_t at = expected->first_slot; at < tokens * num_slots; at++) {
        if (at % num_slots < test->top_k && expected->ids[at] >= 0) {
            expected->load[expected->ids[at]]++;
        }
    }
    if (test->max_replicas > 0) {
        ref_map_replicas(expected->ids, tokens, num_slots, test->num_experts, data->physical_ids,
                         test->max_replicas, data->clamped);
    }
    free(logits);
}

static int64_t load_id(const struct support_guard *ids, bool wide, int64_t at)
{
    return wide ? ((const int64_t *)(const void *)ids->data)[at]
                : ((const int32_t *)(const void *)ids->data)[at];
}

static void check_run(const struct ids_case *test, const struct expected *expected,
                      const struct support_guard *ids, const struct support_guard *weights,
                      const struct support_guard *load)
{
    const int64_t num_slots = test->top_k + test->num_appended;
    const float *got = (const float *)(const void *)weights->data;
    for (int64_t at = 0; at < test->num_tokens * num_slots; at++) {
        const double weight = expected->weights[expected->first_slot + at];
        assert_int_equal(load_id(ids, test->wide, at), expected->ids[expected->first_slot + at]);
        assert_true(fabs((double)got[at] - weight) <= 1e-5 * weight);
    }
    for (int32_t e = 0; e < test->num_experts && test->counts_load; e++) {
        const int64_t counted = ((const int64_t *)(const void *)load->data)[e];
        assert_int_equal(counted, expected->load[e] + e);
    }
    assert_guard_intact(ids);
    assert_guard_intact(weights);
    assert_guard_intact(load);
}

static void run_case(struct support_random *random, const struct ids_case *test)
{
    struct kernel_variant variants[KERNEL_MAX_VARIANTS];
    const int num_variants = kernel_list_variants(MOE_OP_GATING, variants);
    const int64_t num_slots = test->num_tokens * (test->top_k + test->num_appended);
    const int32_t num_valid = (int32_t)(test->num_valid == INT64_MAX ? 0 : test->num_valid);
    struct ids_data data;
    struct expected expected;
    make_data(random, test, &data);
    expect(test, &data, &expected);
    struct support_guard ids = kernel_output(num_slots * (test->wide ? 8 : 4), SUPPORT_POISON_INT);
    struct support_guard weights = kernel_output(num_slots * 4, SUPPORT_POISON_FLOAT);
    struct support_guard load = kernel_output(test->num_experts * 8, SUPPORT_POISON_INT);
    struct support_guard map =
        kernel_input(data.physical_ids, (int64_t)test->num_experts * test->max_replicas * 4, 4);
    struct support_guard counts = kernel_input(data.num_replicas, test->num_experts * 4, 4);
    const bool has_map = test->max_replicas > 0;
    const struct moe_op_gating op = {
        .num_tokens = test->num_tokens,
        .num_experts = test->num_experts,
        .top_k = test->top_k,
        .rule = MOE_GATING_TOPK_SOFTMAX,
        .num_groups = 1,
        .topk_groups = 1,
        .logits_dtype = MOE_DTYPE_FP32,
        .scaling = 1.0f,
        .num_appended = test->num_appended,
        .appended_weight = 0.25f,
        .logits = data.logits + test->first_token * test->num_experts,
        .logits_stride = test->num_experts,
        .topk_ids = ids.data,
        .ids_dtype = test->wide ? MOE_IDS_INT64 : MOE_IDS_INT32,
        .topk_weights = (float *)(void *)weights.data,
        .num_valid_tokens = test->num_valid == INT64_MAX ? NULL : &num_valid,
        .physical_ids = has_map ? (const int32_t *)(const void *)map.data : NULL,
        .num_replicas = has_map ? (const int32_t *)(const void *)counts.data : NULL,
        .load_counters = test->counts_load ? (int64_t *)(void *)load.data : NULL,
        .max_replicas = test->max_replicas,
        .first_appended_id = FIRST_APPENDED_ID,
        .first_token = test->first_token,
    };
    for (int v = 0; v < num_variants; v++) {
        support_guard_poison(&ids);
        support_guard_poison(&weights);
        support_guard_poison(&load);
        for (int32_t e = 0; e < test->num_experts; e++) {
            ((int64_t *)(void *)load.data)[e] = e;
        }
        kernel_run(&variants[v].kernels->gating, &variants[v].tile, &op);
        check_run(test, &expected, &ids, &weights, &load);
    }
    support_guard_finish(&counts);
    support_guard_finish(&map);
    support_guard_finish(&load);
    support_guard_finish(&weights);
    support_guard_finish(&ids);
    free(expected.ids);
    free(expected.weights);
    free(expected.load);
    free_data(&data);
}

static int64_t find_num_valid(enum valid valid, int64_t tokens)
{
    switch (valid) {
    case VALID_NEGATIVE:
        return -3;
    case VALID_NONE:
        return 0;
    case VALID_SOME:
        return (tokens + 1) / 2;
    case VALID_BEYOND:
        return tokens + 7;
    default:
        return INT64_MAX;
    }
}

static void ids_match_reference(void **state)
{
    (void)state;
    const int levels[] = {KERNEL_COUNT(token_counts),
                          KERNEL_COUNT(expert_counts),
                          KERNEL_COUNT(topks),
                          KERNEL_COUNT(replica_counts),
                          KERNEL_COUNT(first_tokens),
                          NUM_VALIDS,
                          3 /* appended */,
                          2 /* wide */,
                          2 /* load */};
    struct support_grid grid;
    struct support_random random;
    support_random_seed(&random, 5);
    support_grid_init_pairwise(&grid, levels, KERNEL_COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[KERNEL_COUNT(levels)];
        support_grid_row(&grid, row, pick);
        struct ids_case test = {.num_tokens = token_counts[pick[0]],
                                .first_token = first_tokens[pick[4]],
                                .num_experts = expert_counts[pick[1]],
                                .top_k = topks[pick[2]],
                                .num_appended = pick[6],
                                .max_replicas = replica_counts[pick[3]],
                                .wide = pick[7] == 1,
                                .counts_load = pick[8] == 1};
        test.top_k = test.top_k < test.num_experts ? test.top_k : test.num_experts;
        test.num_valid = find_num_valid((enum valid)pick[5], all_tokens(&test));
        run_case(&random, &test);
    }
    support_grid_finish(&grid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_match_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
