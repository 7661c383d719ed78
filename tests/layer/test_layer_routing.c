/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 120 */
/*
 * What a layer hands to gating: padded tokens, a logical-to-physical map, load counters, appended
 * experts, a device-side number of tokens. A layer from logits is the layer from the ids and
 * weights that the operation gating makes with the same members, bit for bit, in one pass or in
 * chunks.
 */
#include "../ops/op_data.h"

enum { T = 19, G = 12, P = 15, A = 2, TOP_K = 3, K = TOP_K + A, E = P + A, H = 40, I = 24, R = 2 };

struct routed {
    struct moe_problem problem;
    float gate[E * I * H], up[E * I * H], down[E * H * I];
    float tokens[T * H], logits[T * G];
    struct moe_weights_desc desc;
    int32_t physical_ids[G * R], num_replicas[G], num_valid;
};

static void fill(struct support_random *random, float *values, int64_t count, double scale)
{
    for (int64_t i = 0; i < count; i++) {
        values[i] = (float)(scale * support_random_normal(random));
    }
}

static void routed_init(struct routed *routed)
{
    struct support_random random;
    support_random_seed(&random, 7);
    memset(routed, 0, sizeof(*routed));
    fill(&random, routed->gate, E * I * H, 0.2);
    fill(&random, routed->up, E * I * H, 0.2);
    fill(&random, routed->down, E * H * I, 0.2);
    fill(&random, routed->tokens, T * H, 1.0);
    fill(&random, routed->logits, T * G, 1.0);
    for (int32_t e = 0; e < G; e++) { /* the first P - G experts have a copy behind the others */
        routed->num_replicas[e] = e < P - G ? 2 : 1;
        routed->physical_ids[e * R] = e;
        routed->physical_ids[e * R + 1] = e < P - G ? G + e : -1;
    }
    routed->num_valid = T - 4;
    struct moe_problem *problem = &routed->problem;
    MOE_INIT(*problem);
    problem->num_experts = E;
    problem->num_experts_global = E;
    problem->top_k = TOP_K;
    problem->hidden = H;
    problem->inter = I;
    problem->activation = MOE_ACTIVATION_SILU;
    problem->gating = MOE_GATING_SOFTMAX;
    problem->tokens.dtype = problem->gate_up.dtype = problem->down.dtype = MOE_DTYPE_FP32;
    problem->max_tokens = T;
    MOE_INIT(routed->desc);
    routed->desc.gate = (struct moe_operand){
        .base = routed->gate, .expert_stride = I * H, .row_stride = H, .col_stride = 1};
    routed->desc.up = routed->desc.gate;
    routed->desc.up.base = routed->up;
    routed->desc.down = (struct moe_operand){
        .base = routed->down, .expert_stride = I * H, .row_stride = I, .col_stride = 1};
}

/* Twelve logical experts, fifteen physical ones, two appended: all seventeen are held here. */
static void use_replicas(struct routed *routed)
{
    routed->problem.num_experts = G;
    routed->problem.num_experts_global = G;
    routed->problem.num_physical_experts = P;
    routed->problem.num_appended_experts = A;
    routed->problem.appended_weight = 0.5f;
}

struct result {
    float output[T * H];
    int32_t ids[T * K];
    float weights[T * K];
    int64_t load[G];
};

/* Physical and appended ids to local experts: rank holds the lower ones, every second one. */
static void make_map(const struct routed *routed, int32_t map[P + A])
{
    for (int32_t id = 0; id < P + A; id++) {
        map[id] = id % 2 == 0 && id / 2 < routed->problem.num_experts ? id / 2 : -1;
    }
}

static void run(const struct routed *routed, const struct op_variant *variant, bool by_hand,
                uint64_t cap, struct result *result)
{
    const uint64_t ops = OP_BIT(MOE_OP_LAYER) | OP_BIT(MOE_OP_GATING);
    struct moe_plan *plan = op_plan_capped(variant->context, &routed->problem,
                                           by_hand ? ops : OP_BIT(MOE_OP_LAYER), cap);
    struct moe_weights *weights = NULL;
    struct moe_layer_args args;
    struct moe_gating_args gating;
    struct moe_error error;
    int32_t map[P + A];
    const int32_t num_tokens = T - 1; /* the last is behind the device's number */
    MOE_INIT(error);
    make_map(routed, map);
    memset(result, 0, sizeof(*result));
    op_assert_status(MOE_STATUS_OK,
                     op_api()->weights_bind(variant->context, &routed->problem, &routed->desc, NULL,
                                            0, &weights, &error),
                     error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = T;
    args.call.num_tokens_device = &num_tokens;
    op_lend_workspace(&args.call);
    args.weights = weights;
    args.tokens = routed->tokens;
    args.filter.expert_map = map;
    args.output = result->output;
    if (by_hand) {
        MOE_INIT_CALL(gating);
        gating.call = args.call;
        gating.call.struct_size = sizeof(gating);
        gating.logits = routed->logits;
        gating.topk_ids = result->ids;
        gating.topk_weights = result->weights;
        gating.num_valid_tokens = &routed->num_valid;
        gating.physical_ids = routed->physical_ids;
        gating.num_replicas = routed->num_replicas;
        gating.max_replicas = R;
        gating.load_counters = result->load;
        op_assert_status(MOE_STATUS_OK, op_api()->gating(plan, &gating, &error), error);
        args.topk_ids = result->ids;
        args.topk_weights = result->weights;
    } else {
        args.logits = routed->logits;
        args.topk_ids_out = result->ids;
        args.topk_weights_out = result->weights;
        args.num_valid_tokens = &routed->num_valid;
        args.physical_ids = routed->physical_ids;
        args.num_replicas = routed->num_replicas;
        args.max_replicas = R;
        args.load_counters = result->load;
    }
    op_assert_status(MOE_STATUS_OK, op_api()->layer(plan, &args, &error), error);
    op_api()->weights_destroy(weights);
    op_api()->plan_destroy(plan);
}

static void a_layer_gates_as_gating_does(void **state)
{
    (void)state;
    static struct routed routed;
    static struct result by_hand, whole, chunked;
    routed_init(&routed);
    use_replicas(&routed);
    for (int set = 0; set < op_plugin.num_tile_sets; set++) {
        const struct op_variant *variant = op_variant(set, set % OP_MAX_THREADS + 1);
        struct moe_plan_info info;
        struct moe_plan *plan = op_plan(variant->context, &routed.problem, OP_BIT(MOE_OP_LAYER));
        MOE_INIT(info);
        assert_int_equal(op_api()->plan_info(plan, &info, NULL), MOE_STATUS_OK);
        op_api()->plan_destroy(plan);
        run(&routed, variant, true, 0, &by_hand);
        run(&routed, variant, false, 0, &whole);
        run(&routed, variant, false, info.workspace_bytes - 1000, &chunked);
        assert_memory_equal(&by_hand, &whole, sizeof(whole));
        assert_memory_equal(&by_hand, &chunked, sizeof(whole));
    }
    /* What the members are for. */
    int64_t load = 0;
    for (int32_t e = 0; e < G; e++) {
        load += whole.load[e];
    }
    assert_int_equal(load, (int64_t)routed.num_valid * TOP_K);
    bool has_copy = false, has_output = false;
    for (int32_t route = 0; route < T * K; route++) {
        const int32_t token = route / K;
        has_copy |= whole.ids[route] >= G && whole.ids[route] < P;
        if (token >= routed.num_valid && token < T - 1) {
            assert_int_equal(whole.ids[route], -1);
        } else if (token < routed.num_valid && route % K >= TOP_K) {
            assert_int_equal(whole.ids[route], P + route % K - TOP_K);
        }
    }
    assert_true(has_copy);
    for (int32_t i = 0; i < T * H; i++) {
        has_output |= whole.output[i] != 0.0f;
        assert_true(i / H < routed.num_valid || whole.output[i] == 0.0f);
    }
    assert_true(has_output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_gates_as_gating_does),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
