/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan */
/* ctest timeout: 900 */
/* route through the function table: from logits or from hostile ids to every index array, bit for
 * bit what the references of gating and of the sorts make; padded tokens, replicas, appended
 * experts, load counters, fewer tokens than the call says; the same with every tile and number of
 * threads. */
#include "op_data.h"

static const int64_t token_counts[] = {0, 1, 2, 7, 64, 500};
static const int32_t expert_counts[] = {1, 8, 60, 257};
static const int32_t topks[] = {1, 2, 8};
static const int32_t block_sizes[] = {1, 16, 128};
static const int32_t alignments[] = {0, 1, 4, 128};

enum wants { WANTS_BOTH, WANTS_ALIGN, WANTS_COUNTS, WANTS_ROWS, NUM_WANTS };

struct route_case {
    int64_t num_tokens;
    int64_t real_tokens; /* num_tokens_device; num_tokens: not given */
    int64_t num_valid;
    int32_t num_experts; /* logical */
    int32_t top_k;
    int32_t num_appended;
    int32_t max_replicas;
    int32_t block_size;
    int32_t alignment;
    int32_t mode;
    enum wants wants;
    bool gates;
    bool masked;
    bool wide;
};

enum output {
    IDS,
    WEIGHTS,
    LOAD,
    SORTED_IDS,
    EXPERT_IDS,
    POST_PAD,
    COUNTS,
    SEG_INDPTR,
    SRC2DST,
    DST2SRC,
    REORDER_IDS,
    M_INDICES,
    MASKED_M,
    NUM_OUTPUTS
};
static const size_t element_bytes[NUM_OUTPUTS] = {8, 4, 8, 4, 4, 4, 4, 8, 4, 4, 4, 4, 4};

/* Inputs, and what the references make of them. */
struct route_data {
    struct op_routes routes; /* ids are those that the sorts see */
    struct support_guard logits;
    int32_t *physical_ids;
    int32_t *num_replicas;
    int64_t counts[NUM_OUTPUTS]; /* elements of each output */
    void *expected[NUM_OUTPUTS]; /* poison where nothing is written */
};

static int64_t num_slots(const struct route_case *test)
{
    return test->top_k + test->num_appended;
}

static int32_t num_physical(const struct route_case *test)
{
    return test->num_experts * (test->max_replicas > 0 ? test->max_replicas : 1);
}

static bool wants_align(const struct route_case *test)
{
    return test->wants == WANTS_BOTH || test->wants == WANTS_ALIGN;
}

static bool wants_rows(const struct route_case *test)
{
    return test->wants == WANTS_BOTH || test->wants == WANTS_ROWS;
}

/* Is the output part of this case? */
static bool is_made(const struct route_case *test, enum output output)
{
    switch (output) {
    case IDS:
    case WEIGHTS:
    case LOAD:
        return test->gates;
    case SORTED_IDS:
    case EXPERT_IDS:
    case POST_PAD:
        return wants_align(test);
    case COUNTS:
        return test->wants != WANTS_ROWS;
    case MASKED_M:
        return wants_rows(test) && test->masked;
    default:
        return wants_rows(test);
    }
}

static struct moe_problem make_problem(const struct route_case *test,
                                       const struct op_routes *routes)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = (int32_t)routes->ref.num_local;
    problem.num_experts_global = test->num_experts;
    problem.num_physical_experts = num_physical(test);
    problem.num_appended_experts = test->num_appended;
    problem.appended_weight = 0.25f;
    problem.top_k = test->top_k;
    problem.gating = test->gates ? MOE_GATING_TOPK_SOFTMAX : MOE_GATING_NONE;
    problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    return problem;
}

/* Room for the rows of an expert, a multiple of the alignment. */
static int64_t masked_rows(const struct route_case *test)
{
    const int64_t alignment = test->alignment > 0 ? test->alignment : 1;
    const int64_t rows = test->num_tokens > 0 ? test->num_tokens : 1;
    return (rows + alignment - 1) / alignment * alignment;
}

static int64_t row_capacity(const struct route_case *test, const struct op_routes *routes)
{
    const int64_t num_routes = test->num_tokens * num_slots(test);
    const int64_t alignment = test->alignment > 0 ? test->alignment : 1;
    return test->masked ? routes->ref.num_local * masked_rows(test)
                        : ref_align_capacity(num_routes, routes->ref.num_local, alignment);
}

static void size_outputs(const struct route_case *test, struct route_data *data)
{
    const int64_t num_routes = test->num_tokens * num_slots(test);
    const int64_t num_local = data->routes.ref.num_local;
    const int64_t sorted = ref_align_capacity(
        num_routes, num_local + (test->mode == MOE_FILTER_KEEP), test->block_size);
    const int64_t rows = row_capacity(test, &data->routes);
    const int64_t counts[NUM_OUTPUTS] = {[IDS] = num_routes,
                                         [WEIGHTS] = num_routes,
                                         [LOAD] = test->num_experts,
                                         [SORTED_IDS] = sorted,
                                         [EXPERT_IDS] = sorted / test->block_size,
                                         [POST_PAD] = 1,
                                         [COUNTS] = num_local,
                                         [SEG_INDPTR] = num_local + 1,
                                         [SRC2DST] = num_routes,
                                         [DST2SRC] = rows,
                                         [REORDER_IDS] = num_routes,
                                         [M_INDICES] = rows,
                                         [MASKED_M] = num_local};
    memcpy(data->counts, counts, sizeof(counts));
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        data->expected[i] = op_array(counts[i], 8);
    }
}

/* Logits of a token are a permutation of distinct values: no rounding can change the order. */
static void make_gating_inputs(struct support_random *random, const struct route_case *test,
                               struct route_data *data)
{
    const int64_t num_experts = test->num_experts, replicas = test->max_replicas;
    float *logits = op_array(test->num_tokens * num_experts, sizeof(*logits));
    data->physical_ids = op_array(num_experts * replicas, sizeof(int32_t));
    data->num_replicas = op_array(num_experts, sizeof(int32_t));
    for (int64_t i = 0; i < test->num_tokens * num_experts; i++) {
        logits[i] = (float)((i / num_experts * 31 + i % num_experts) % num_experts) / 16.0f;
    }
    data->logits = op_input(logits, test->num_tokens * num_experts * 4, 4);
    for (int64_t i = 0; i < num_experts * replicas; i++) {
        data->physical_ids[i] = (int32_t)(num_experts * replicas - 1 - i);
    }
    for (int64_t e = 0; e < num_experts && replicas > 0; e++) {
        data->num_replicas[e] = (int32_t)support_random_below(random, (uint64_t)replicas) + 1;
    }
    free(logits);
}

/* The reference's ids become the ids that the sorts see. */
static void expect_gating(const struct route_case *test, struct route_data *data)
{
    const int64_t tokens = test->real_tokens, slots = num_slots(test);
    const struct ref_gate_rule rule = {.method = REF_GATE_TOPK_SOFTMAX,
                                       .num_experts = test->num_experts,
                                       .top_k = test->top_k,
                                       .scaling_factor = 1.0,
                                       .num_shared = test->num_appended,
                                       .first_shared_id = num_physical(test),
                                       .shared_weight = 0.25,
                                       .abs_margin = -1.0,
                                       .rel_margin = -1.0};
    double *logits = op_array(tokens * test->num_experts, sizeof(*logits));
    int32_t *ids = op_array(tokens * slots, sizeof(*ids));
    double *weights = data->expected[WEIGHTS];
    int64_t *load = data->expected[LOAD];
    const struct ref_gate_result result = {ids, weights, NULL, NULL};
    ref_load_all(REF_F32, data->logits.data, tokens * test->num_experts, logits);
    ref_gate(&rule, logits, tokens, test->num_valid, &result);
    for (int64_t i = 0; i < tokens * slots; i++) {
        if (i % slots < test->top_k && ids[i] >= 0) {
            load[ids[i]]++;
        }
    }
    if (test->max_replicas > 0) {
        ref_map_replicas(ids, tokens, slots, test->num_experts, data->physical_ids,
                         test->max_replicas, data->num_replicas);
    }
    for (int64_t i = 0; i < tokens * slots; i++) {
        data->routes.ids[i] = ids[i];
    }
    free(ids);
    free(logits);
}

static void expect_sorts(const struct route_case *test, struct route_data *data)
{
    const struct ref_filter *filter = &data->routes.ref;
    const int64_t *ids = data->routes.ids;
    const int64_t num_routes = test->real_tokens * num_slots(test);
    int32_t *sorted = data->expected[SORTED_IDS], *post_pad = data->expected[POST_PAD];
    int64_t *local = op_array(filter->num_local, sizeof(*local));
    *post_pad = (int32_t)ref_align_block_size(
        filter, ids, num_routes, test->block_size, test->mode == MOE_FILTER_KEEP, sorted,
        data->counts[SORTED_IDS], data->expected[EXPERT_IDS], data->counts[EXPERT_IDS]);
    for (int64_t i = 0; i < data->counts[SORTED_IDS]; i++) {
        sorted[i] =
            sorted[i] == num_routes ? (int32_t)(test->num_tokens * num_slots(test)) : sorted[i];
    }
    ref_count_routes(filter, ids, num_routes, local);
    for (int64_t e = 0; e < filter->num_local; e++) {
        ((int32_t *)data->expected[COUNTS])[e] = (int32_t)local[e];
    }
    const struct ref_ep_layout layout = {.seg_indptr = data->expected[SEG_INDPTR],
                                         .counts = local,
                                         .src2dst = data->expected[SRC2DST],
                                         .dst2src = data->expected[DST2SRC],
                                         .row_experts = data->expected[M_INDICES],
                                         .rows_capacity = data->counts[DST2SRC],
                                         .reorder_ids = data->expected[REORDER_IDS]};
    if (test->masked) {
        ref_ep_masked(filter, ids, num_routes, masked_rows(test), &layout);
    } else {
        ref_ep_preprocess(filter, ids, num_routes, test->alignment > 0 ? test->alignment : 1,
                          &layout);
    }
    for (int64_t e = 0; e < filter->num_local; e++) {
        ((int32_t *)data->expected[MASKED_M])[e] = (int32_t)local[e];
    }
    free(local);
}

static void check_gating(const struct route_case *test, const struct route_data *data,
                         const struct support_guard *guards)
{
    const int64_t used = test->real_tokens * num_slots(test);
    const size_t id_bytes = test->wide ? 8 : 4;
    for (int64_t i = 0; i < used; i++) {
        const int64_t id = test->wide ? OP_INT64(guards[IDS])[i] : OP_INT32(guards[IDS])[i];
        const double weight = ((const double *)data->expected[WEIGHTS])[i];
        assert_int_equal(id, data->routes.ids[i]);
        assert_true(fabs((double)OP_FLOAT(guards[WEIGHTS])[i] - weight) <= 1e-5 * weight);
    }
    assert_true(support_guard_is_poison(&guards[IDS], (size_t)used * id_bytes, guards[IDS].size));
    assert_true(support_guard_is_poison(&guards[WEIGHTS], (size_t)used * 4, guards[WEIGHTS].size));
    for (int64_t e = 0; e < test->num_experts; e++) {
        assert_int_equal(OP_INT64(guards[LOAD])[e], ((const int64_t *)data->expected[LOAD])[e] + e);
    }
}

/* Arrays of routes have nothing for tokens beyond the real ones; all others are written in full. */
static void check_outputs(const struct route_case *test, const struct route_data *data,
                          const struct support_guard *guards)
{
    const int64_t used = test->real_tokens * num_slots(test);
    if (test->gates) {
        check_gating(test, data, guards);
    }
    for (int i = SORTED_IDS; i < NUM_OUTPUTS; i++) {
        const bool of_routes = i == SRC2DST || i == REORDER_IDS;
        const int64_t count = of_routes ? used : data->counts[i];
        if (!is_made(test, (enum output)i)) {
            assert_true(support_guard_is_poison(&guards[i], 0, guards[i].size));
            continue;
        }
        assert_bits_equal(data->expected[i], guards[i].data, count, element_bytes[i]);
        assert_true(
            support_guard_is_poison(&guards[i], (size_t)count * element_bytes[i], guards[i].size));
    }
}

static void fill_args(const struct route_case *test, const struct route_data *data,
                      const struct support_guard *guards, struct moe_route_args *args)
{
    MOE_INIT_CALL(*args);
    args->call.num_tokens = test->num_tokens;
    args->topk_ids = data->routes.memory.data;
    args->ids_dtype = test->wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
    args->filter = data->routes.filter;
    args->filter.mode = test->mode;
    args->block_size = test->block_size;
    args->segment_alignment = test->alignment;
    if (test->gates) {
        args->logits = data->logits.data;
        args->topk_ids = guards[IDS].data;
        args->topk_weights = OP_FLOAT(guards[WEIGHTS]);
        args->load_counters = OP_INT64(guards[LOAD]);
        args->max_replicas = test->max_replicas;
        args->physical_ids = test->max_replicas > 0 ? data->physical_ids : NULL;
        args->num_replicas = test->max_replicas > 0 ? data->num_replicas : NULL;
    }
    if (wants_align(test)) {
        args->sorted_ids = OP_INT32(guards[SORTED_IDS]);
        args->sorted_capacity = data->counts[SORTED_IDS];
        args->expert_ids = OP_INT32(guards[EXPERT_IDS]);
        args->expert_capacity = data->counts[EXPERT_IDS];
        args->num_tokens_post_pad = OP_INT32(guards[POST_PAD]);
    }
    if (test->wants != WANTS_ROWS) {
        args->expert_counts = OP_INT32(guards[COUNTS]);
    }
    if (wants_rows(test)) {
        args->seg_indptr = OP_INT64(guards[SEG_INDPTR]);
        args->src2dst = OP_INT32(guards[SRC2DST]);
        args->dst2src = OP_INT32(guards[DST2SRC]);
        args->reorder_ids = OP_INT32(guards[REORDER_IDS]);
        args->m_indices = OP_INT32(guards[M_INDICES]);
        args->row_capacity = data->counts[DST2SRC];
        args->masked_m = test->masked ? OP_INT32(guards[MASKED_M]) : NULL;
        args->max_masked_rows = test->masked ? masked_rows(test) : 0;
    }
}

static void run_route(const struct op_variant *variant, const struct route_case *test,
                      const struct route_data *data)
{
    const struct moe_problem problem = make_problem(test, &data->routes);
    const int32_t real_tokens = (int32_t)test->real_tokens, num_valid = (int32_t)test->num_valid;
    struct support_guard guards[NUM_OUTPUTS];
    struct moe_route_args args;
    struct op_watch watch = {.variant = variant,
                             .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_ROUTE)),
                             .op = MOE_OP_ROUTE,
                             .num_tokens = test->num_tokens,
                             .num_outputs = NUM_OUTPUTS};
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        const size_t bytes = i == IDS && !test->wide ? 4 : element_bytes[i];
        guards[i] = op_output(data->counts[i] * (int64_t)bytes, bytes,
                              i == WEIGHTS ? SUPPORT_POISON_FLOAT : SUPPORT_POISON_INT);
        watch.outputs[i] = &guards[i];
    }
    for (int64_t e = 0; e < test->num_experts && test->gates; e++) {
        OP_INT64(guards[LOAD])[e] = e;
    }
    fill_args(test, data, guards, &args);
    args.call.num_tokens_device = real_tokens < test->num_tokens ? &real_tokens : NULL;
    args.num_valid_tokens = test->gates && num_valid < test->num_tokens ? &num_valid : NULL;
    op_run(&watch, op_invoke_route, &args, &args.call);
    check_outputs(test, data, guards);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        support_guard_finish(&guards[i]);
    }
}

/* gating as a call of its own gives the same ids, weights and counts. */
static void run_gating(const struct op_variant *variant, const struct route_case *test,
                       const struct route_data *data)
{
    const struct moe_problem problem = make_problem(test, &data->routes);
    const int32_t real_tokens = (int32_t)test->real_tokens, num_valid = (int32_t)test->num_valid;
    struct support_guard guards[NUM_OUTPUTS];
    struct moe_gating_args args;
    struct op_watch watch = {.variant = variant,
                             .plan = op_plan(variant->context, &problem, OP_BIT(MOE_OP_GATING)),
                             .op = MOE_OP_GATING,
                             .num_tokens = test->num_tokens,
                             .num_outputs = LOAD + 1};
    for (int i = IDS; i <= LOAD; i++) {
        const size_t bytes = i == IDS && !test->wide ? 4 : element_bytes[i];
        guards[i] = op_output(data->counts[i] * (int64_t)bytes, bytes,
                              i == WEIGHTS ? SUPPORT_POISON_FLOAT : SUPPORT_POISON_INT);
        watch.outputs[i] = &guards[i];
    }
    for (int64_t e = 0; e < test->num_experts; e++) {
        OP_INT64(guards[LOAD])[e] = e;
    }
    MOE_INIT_CALL(args);
    args.call.num_tokens = test->num_tokens;
    args.call.num_tokens_device = real_tokens < test->num_tokens ? &real_tokens : NULL;
    args.logits = data->logits.data;
    args.topk_ids = guards[IDS].data;
    args.topk_weights = OP_FLOAT(guards[WEIGHTS]);
    args.ids_dtype = test->wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
    args.max_replicas = test->max_replicas;
    args.num_valid_tokens = num_valid < test->num_tokens ? &num_valid : NULL;
    args.physical_ids = test->max_replicas > 0 ? data->physical_ids : NULL;
    args.num_replicas = test->max_replicas > 0 ? data->num_replicas : NULL;
    args.load_counters = OP_INT64(guards[LOAD]);
    op_run(&watch, op_invoke_gating, &args, &args.call);
    check_gating(test, data, guards);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    for (int i = IDS; i <= LOAD; i++) {
        support_guard_finish(&guards[i]);
    }
}

static void run_case(const struct route_case *test, enum op_traffic traffic,
                     enum op_filtering filtering, int64_t turn)
{
    const struct op_variant *variants[OP_MAX_VARIANTS];
    const int num_variants = op_list_variants(turn, variants);
    struct support_random random;
    struct route_data data;
    support_random_seed(&random, (uint64_t)turn + 11);
    op_routes_init(&data.routes, &random, test->num_tokens, num_physical(test) + test->num_appended,
                   num_slots(test), traffic, filtering, test->wide);
    size_outputs(test, &data);
    make_gating_inputs(&random, test, &data);
    if (test->gates) {
        expect_gating(test, &data);
    }
    expect_sorts(test, &data);
    for (int v = 0; v < num_variants; v++) {
        run_route(variants[v], test, &data);
        if (test->gates) {
            run_gating(variants[v], test, &data);
        }
    }
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        free(data.expected[i]);
    }
    free(data.physical_ids);
    free(data.num_replicas);
    support_guard_finish(&data.logits);
    op_routes_finish(&data.routes);
}

enum factor {
    TOKENS,
    EXPERTS,
    TOPK,
    BLOCK,
    ALIGNMENT,
    TRAFFIC,
    FILTERING,
    WANTS,
    GATES,
    MASKED,
    WIDE,
    MODE,
    APPENDED,
    REPLICAS,
    VALID,
    DEVICE,
    NUM_FACTORS
};

static struct route_case make_case(const int *pick)
{
    struct route_case test = {.num_tokens = token_counts[pick[TOKENS]],
                              .num_experts = expert_counts[pick[EXPERTS]],
                              .top_k = topks[pick[TOPK]],
                              .num_appended = pick[APPENDED],
                              .max_replicas = pick[GATES] == 1 ? pick[REPLICAS] : 0,
                              .block_size = block_sizes[pick[BLOCK]],
                              .alignment = alignments[pick[ALIGNMENT]],
                              .mode = pick[MODE] == 1 ? MOE_FILTER_KEEP : MOE_FILTER_DROP,
                              .wants = (enum wants)pick[WANTS],
                              .gates = pick[GATES] == 1,
                              .masked = pick[MASKED] == 1,
                              .wide = pick[WIDE] == 1};
    test.top_k = test.top_k < test.num_experts ? test.top_k : test.num_experts;
    test.real_tokens = pick[DEVICE] == 0 ? test.num_tokens : test.num_tokens * pick[DEVICE] / 3;
    test.num_valid = pick[VALID] == 0 ? test.num_tokens : (test.num_tokens + 1) / 2;
    return test;
}

static const int levels[NUM_FACTORS] = {[TOKENS] = OP_COUNT(token_counts),
                                        [EXPERTS] = OP_COUNT(expert_counts),
                                        [TOPK] = OP_COUNT(topks),
                                        [BLOCK] = OP_COUNT(block_sizes),
                                        [ALIGNMENT] = OP_COUNT(alignments),
                                        [TRAFFIC] = OP_NUM_TRAFFICS,
                                        [FILTERING] = OP_NUM_FILTERINGS,
                                        [WANTS] = NUM_WANTS,
                                        [GATES] = 2,
                                        [MASKED] = 2,
                                        [WIDE] = 2,
                                        [MODE] = 2,
                                        [APPENDED] = 3,
                                        [REPLICAS] = 3,
                                        [VALID] = 2,
                                        [DEVICE] = 3};

static void grid_matches_reference(void **state)
{
    (void)state;
    struct op_grid grid;
    op_grid_init(&grid, levels, NUM_FACTORS, BLOCK, 4);
    for (int64_t row = 0; row < grid.grid.num_rows; row++) {
        int pick[NUM_FACTORS];
        if (op_grid_row(&grid, row, pick)) {
            const struct route_case test = make_case(pick);
            run_case(&test, (enum op_traffic)pick[TRAFFIC], (enum op_filtering)pick[FILTERING],
                     row);
        }
    }
    op_grid_finish(&grid);
}

static void drawn_cases_match_reference(void **state)
{
    (void)state;
    struct support_random random;
    support_random_seed(&random, 9);
    for (int turn = 0; turn < (MOE_TEST_SANITIZED ? 20 : 200); turn++) {
        int pick[NUM_FACTORS];
        for (int f = 0; f < NUM_FACTORS; f++) {
            pick[f] = (int)support_random_below(&random, (uint64_t)levels[f]);
        }
        const struct route_case test = make_case(pick);
        run_case(&test, (enum op_traffic)pick[TRAFFIC], (enum op_filtering)pick[FILTERING], turn);
    }
}

/* A plan without a gating rule takes ids only; a call must want something. */
static void logits_need_a_rule(void **state)
{
    (void)state;
    struct route_case test = {.num_tokens = 2, .real_tokens = 2, .num_experts = 8, .top_k = 2};
    struct support_random random;
    struct op_routes routes;
    support_random_seed(&random, 4);
    op_routes_init(&routes, &random, 2, 8, 2, OP_TRAFFIC_UNIFORM, OP_FILTER_NONE, false);
    const struct moe_problem problem = make_problem(&test, &routes);
    struct support_guard counts = op_output(8 * 4, 4, SUPPORT_POISON_INT);
    struct support_guard ids = op_output(4 * 4, 4, SUPPORT_POISON_INT);
    struct support_guard weights = op_output(4 * 4, 4, SUPPORT_POISON_FLOAT);
    const float logits[16] = {0};
    struct op_watch watch = {.plan =
                                 op_plan(op_variant(0, 1)->context, &problem, OP_BIT(MOE_OP_ROUTE)),
                             .outputs = {&counts, &ids, &weights},
                             .num_outputs = 3};
    struct moe_route_args good;
    MOE_INIT_CALL(good);
    good.call.num_tokens = 2;
    good.topk_ids = routes.memory.data;
    good.block_size = 1;
    good.expert_counts = OP_INT32(counts);
    struct moe_route_args gates = good, nothing = good;
    gates.logits = logits;
    gates.topk_ids = ids.data;
    gates.topk_weights = OP_FLOAT(weights);
    nothing.expert_counts = NULL;
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_route, &gates, &gates.call);
    op_expect_refusal(MOE_STATUS_INVALID_ARGUMENT, &watch, op_invoke_route, &nothing,
                      &nothing.call);
    op_expect_success(&watch, op_invoke_route, &good, &good.call);
    op_api()->plan_destroy((struct moe_plan *)(uintptr_t)watch.plan);
    support_guard_finish(&weights);
    support_guard_finish(&ids);
    support_guard_finish(&counts);
    op_routes_finish(&routes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid_matches_reference),
        cmocka_unit_test(drawn_cases_match_reference),
        cmocka_unit_test(logits_need_a_rule),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
