/* SPDX-License-Identifier: Apache-2.0 */
/* Weights that lie channel by channel, on a driver that plays a device: which of them are read
 * where they lie, by which maps and forms of the GEMM, and which are packed. */
#include "cuda_args.h"
#include "cuda_fixture.h"

enum {
    NUM_TOKENS = 300,
    HIDDEN = 256,
    INTER = 128,
    NUM_EXPERTS = 16,
    TOP_K = 4,
    FEW_TOKENS = 2 * NUM_EXPERTS / TOP_K /* two routes per expert */
};

_Static_assert(sizeof(struct moe_cuda_gemm) <= FAKE_ARGS_BYTES, "the driver keeps all of it");

static struct moe_problem make_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = NUM_EXPERTS;
    problem.top_k = TOP_K;
    problem.hidden = HIDDEN;
    problem.inter = INTER;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = NUM_TOKENS;
    return problem;
}

/* Weights [E, H, 2I] and [E, I, H]: gate before up, or both in turn. */
static struct moe_weights_desc make_transposed(int is_paired)
{
    struct moe_weights_desc desc;
    MOE_INIT(desc);
    desc.gate.base = ON_DEVICE(10);
    desc.gate.expert_stride = 2 * (int64_t)HIDDEN * INTER;
    desc.gate.row_stride = is_paired ? 2 : 1;
    desc.gate.col_stride = 2 * INTER;
    desc.up = desc.gate;
    desc.up.base = (const char *)ON_DEVICE(10) + 2 * (is_paired ? 1 : INTER);
    desc.down.base = ON_DEVICE(12);
    desc.down.expert_stride = (int64_t)HIDDEN * INTER;
    desc.down.row_stride = 1;
    desc.down.col_stride = HIDDEN;
    return desc;
}

/* Half of [E, 2I, H]. */
static struct moe_operand make_rows(int number)
{
    const struct moe_operand operand = {.base = ON_DEVICE(number),
                                        .expert_stride = (int64_t)INTER * HIDDEN,
                                        .row_stride = HIDDEN,
                                        .col_stride = 1};
    return operand;
}

static void expect_map(const CUtensorMap *map, const struct fake_map *expected)
{
    struct fake_map made;
    memcpy(&made, map, sizeof(made));
    assert_ptr_equal(made.base, expected->base);
    assert_memory_equal(made.sizes, expected->sizes, sizeof(made.sizes));
    assert_memory_equal(made.strides, expected->strides, sizeof(made.strides));
    assert_memory_equal(made.box, expected->box, sizeof(made.box));
}

/* Under one rule. Bytes of the prepared form; bound where there are none. */
static uint64_t bind_desc(const struct moe_problem *problem, const struct moe_weights_desc *desc,
                          const char *text, struct bound *bound)
{
    struct moe_error error;
    struct moe_weights_info info;
    struct moe_plan_info plan_info;
    struct moe_plan_options options;
    const struct moe_config_source source = {.struct_size = sizeof(source),
                                             .flags = MOE_CONFIG_REPLACE,
                                             .path = "rules",
                                             .text = text,
                                             .text_bytes = strlen(text)};
    MOE_INIT(error);
    MOE_INIT(info);
    MOE_INIT(plan_info);
    MOE_INIT(options);
    memset(bound, 0, sizeof(*bound));
    assert_int_equal(create(&bound->context, &error), MOE_STATUS_OK);
    options.ops = UINT64_C(1) << MOE_OP_LAYER;
    assert_int_equal(api->config_reload(bound->context, &source, 1, NULL, NULL, &error),
                     MOE_STATUS_OK);
    assert_int_equal(api->weights_query(bound->context, problem, desc, &info, &error),
                     MOE_STATUS_OK);
    if (info.prepared_bytes == 0) {
        assert_int_equal(
            api->weights_bind(bound->context, problem, desc, NULL, 0, &bound->weights, &error),
            MOE_STATUS_OK);
        assert_int_equal(api->plan_create(bound->context, problem, &options, &bound->plan, &error),
                         MOE_STATUS_OK);
        assert_int_equal(api->plan_info(bound->plan, &plan_info, &error), MOE_STATUS_OK);
        bound->info = plan_info;
    }
    return info.prepared_bytes;
}

static void run_layer(const struct bound *bound, int64_t num_tokens)
{
    struct moe_error error;
    struct moe_layer_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    args.call.num_tokens = num_tokens;
    args.call.stream = ON_DEVICE(9);
    args.call.workspace = ON_DEVICE(20);
    args.call.workspace_bytes = bound->info.workspace_bytes;
    args.weights = bound->weights;
    args.tokens = ON_DEVICE(1);
    args.output = ON_DEVICE(2);
    args.topk_ids = ON_DEVICE(3);
    args.topk_weights = ON_DEVICE(4);
    driver->num_launches = 0;
    if (api->layer(bound->plan, &args, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
}

static void expect_symbol(const struct fake_launch *launch, const char *beginning)
{
    if (strncmp(launch->symbol, beginning, strlen(beginning)) != 0) {
        fail_msg("%s, expected %s...", launch->symbol, beginning);
    }
    assert_int_equal(launch->num_refused, 0);
}

#define RULE(tile)                                                            \
    "schema: moe-dispatch/1\nrules:\n- name: one\n  match: {backend: cuda}\n" \
    "  buckets:\n  - max_tokens: inf\n    gemm1: " tile "\n    gemm2: " tile "\n"
#define TILE_16  "{kernel: sm90.gemm, BLOCK_SIZE_M: 16, BLOCK_SIZE_N: 64}"
#define TILE_32  "{kernel: sm90.gemm, BLOCK_SIZE_M: 32, BLOCK_SIZE_N: 128}"
#define TILE_64  "{kernel: sm90.gemm, BLOCK_SIZE_M: 64, BLOCK_SIZE_N: 256}"
#define TILE_184 "{kernel: sm90.pair, BLOCK_SIZE_M: 184, BLOCK_SIZE_N: 256}"

#define TRANSPOSED "form1_moe_GEMM_SM90_"
#define PAIRED     "form2_moe_GEMM_SM90_"

/* Transposed weights are read where they lie, by forms of the GEMM; a tile that has no such form is
 * stood in for by one that has, and from two routes per expert on, with gate in front of up, narrow
 * ones by a wide one. Behind the GEMMs comes post_reorder. */
static void transposed_weights(void **state)
{
    (void)state;
    static const struct {
        const char *rule, *gemm1, *gemm2;
        int64_t num_tokens;
        int is_paired;
    } cases[] = {
        {RULE(TILE_64), TRANSPOSED "GEMM_64_", TRANSPOSED "GEMM_64_", NUM_TOKENS, 0},
        {RULE(TILE_64), PAIRED "GEMM_64_", TRANSPOSED "GEMM_64_", NUM_TOKENS, 1},
        {RULE(TILE_16), TRANSPOSED "GEMM_32_", TRANSPOSED "GEMM_32_", FEW_TOKENS - 1, 0},
        {RULE(TILE_16), PAIRED "GEMM_32_", TRANSPOSED "GEMM_32_", FEW_TOKENS - 1, 1},
        {RULE(TILE_16), TRANSPOSED "GEMM_64_", TRANSPOSED "GEMM_64_", FEW_TOKENS, 0},
        {RULE(TILE_32), PAIRED "GEMM_32_", TRANSPOSED "GEMM_32_", FEW_TOKENS, 1},
        {RULE(TILE_32), TRANSPOSED "GEMM_64_", TRANSPOSED "GEMM_64_", NUM_TOKENS, 0},
        {RULE(TILE_184), TRANSPOSED "PAIR_184_", TRANSPOSED "PAIR_184_", NUM_TOKENS, 0},
        {RULE(TILE_184), PAIRED "PAIR_144_", TRANSPOSED "PAIR_184_", NUM_TOKENS, 1},
    };
    const struct moe_problem problem = make_problem();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct moe_weights_desc desc = make_transposed(cases[i].is_paired);
        const struct fake_map gate = {
            .base = desc.gate.base,
            .sizes = {cases[i].is_paired ? 2 * INTER : INTER, HIDDEN, 1, NUM_EXPERTS},
            .strides = {4 * INTER, 4 * INTER, 4 * INTER * HIDDEN},
            .box = {64, 64, 1, 1}};
        const struct fake_map down = {.base = desc.down.base,
                                      .sizes = {HIDDEN, INTER, 1, NUM_EXPERTS},
                                      .strides = {2 * HIDDEN, 2 * HIDDEN, 2 * INTER * HIDDEN},
                                      .box = {64, 64, 1, 1}};
        struct fake_map up = gate;
        struct moe_cuda_gemm args;
        struct bound bound;
        up.base = cases[i].is_paired ? gate.base : desc.up.base;
        assert_int_equal(bind_desc(&problem, &desc, cases[i].rule, &bound), 0);
        driver->args_of = "GEMM";
        driver->args_bytes = sizeof(args);
        run_layer(&bound, cases[i].num_tokens);
        const struct fake_launch *gemms = &driver->launches[driver->num_launches - 3];
        memcpy(&args, gemms[0].args, sizeof(args));
        expect_map(&args.weight[0], &gate);
        expect_map(&args.weight[1], &up);
        memcpy(&args, gemms[1].args, sizeof(args));
        expect_map(&args.weight[0], &down);
        expect_symbol(&gemms[0], cases[i].gemm1);
        expect_symbol(&gemms[1], cases[i].gemm2);
        unbind(&bound);
    }
    assert_nothing_left();
}

/* Transposed halves that one launch cannot read are packed. */
static void unlike_halves(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    const uint64_t half_bytes = (uint64_t)2 * NUM_EXPERTS * HIDDEN * INTER;
    for (int i = 0; i < 7; i++) {
        struct moe_weights_desc desc = make_transposed(i > 3);
        struct bound bound;
        uint64_t expected = 2 * half_bytes;
        if (i == 0) { /* rows of up are neighbours, or */
            desc.up = make_rows(11);
            expected = half_bytes;
        } else if (i == 1) { /* those of gate */
            desc.gate = make_rows(10);
            expected = half_bytes;
        } else if (i == 2) { /* not aligned */
            desc.up.base = (const char *)desc.up.base + 2;
        } else if (i == 3) {
            desc.gate.col_stride += 4;
        } else if (i == 4) { /* up is first */
            const struct moe_operand gate = desc.gate;
            desc.gate = desc.up;
            desc.up = gate;
        } else if (i == 5) { /* not neighbours */
            desc.up.base = (const char *)desc.up.base + 32;
        } else {
            desc.up.col_stride += 8;
        }
        assert_int_equal(bind_desc(&problem, &desc, RULE(TILE_64), &bound), expected);
        unbind(&bound);
    }
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(transposed_weights, with_fresh_driver),
        cmocka_unit_test_setup(unlike_halves, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
