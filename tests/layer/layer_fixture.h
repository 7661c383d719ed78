/* SPDX-License-Identifier: Apache-2.0 */
/* Layers with random weights: their inputs, one watched call, and the expectation of every output
 * element. */
#ifndef MOE_TESTS_LAYER_FIXTURE_H
#define MOE_TESTS_LAYER_FIXTURE_H

#include "../ops/op_weights.h"

enum layer_source { LAYER_FROM_IDS, LAYER_FROM_LOGITS, LAYER_FROM_ROUTER, LAYER_NUM_SOURCES };
enum layer_target {
    LAYER_OUTPUT_APART,
    LAYER_OUTPUT_IS_TOKENS,   /* where types and strides agree, else apart */
    LAYER_OUTPUT_IS_RESIDUAL, /* where there is one */
    LAYER_NUM_TARGETS
};

struct layer_case {
    int64_t num_tokens;
    enum layer_source source;
    enum op_traffic traffic; /* of given ids */
    enum op_filtering filtering;
    bool wide; /* int64 ids, in and out */
    enum op_layout layout;
    enum layer_target target;
    bool has_residual;
    int64_t gap;          /* between rows of every tensor that has a stride */
    int64_t num_padded;   /* last tokens that are padding; 0: no num_valid_tokens */
    int64_t num_behind;   /* last tokens behind the device's number; 0: no num_tokens_device */
    int32_t max_replicas; /* of the map of physical ids; 0: no map */
    bool has_load;        /* load counters. This, padding and the map: not with given ids */
};

/* A problem with its inputs; num_experts is filled from the filter. */
struct layer_data {
    struct layer_case test;
    struct op_model model;
    struct op_bound bound;
    struct op_routes routes;
    struct op_tensor tokens;
    struct op_scales scales; /* of fp8 tokens */
    double *rows;            /* what GEMM1 reads: the tokens, quantized where the layer does that */
    struct op_tensor logits;
    struct op_tensor weights; /* [T, k] fp32 */
    struct op_tensor residual;
    struct support_guard physical_ids; /* [E_global, max_replicas] */
    struct support_guard num_replicas; /* [E_global] */
};

/* What a call gives back, packed. Of tokens behind the device's number it is what was there
 * before. */
struct layer_result {
    unsigned char *output;
    unsigned char *logits;
    unsigned char *ids; /* int32 or int64 */
    float *weights;
    int64_t *load; /* [E_global]: what was added */
};

static inline int32_t layer_logits_dtype(const struct moe_problem *problem)
{
    return problem->logits_dtype != 0 ? problem->logits_dtype : MOE_DTYPE_FP32;
}

/* Tokens, in fp8 with scales of their own. */
static inline void layer_tokens_init(struct layer_data *data, struct support_random *random,
                                     const struct moe_problem *problem)
{
    const int64_t T = data->test.num_tokens, H = problem->hidden;
    const struct moe_recipe *recipe = &problem->tokens, inter = op_inter_recipe(problem);
    const bool is_fp8 = op_is_fp8(recipe);
    op_tensor_init(&data->tokens, random, recipe->dtype, T, H, data->test.gap,
                   is_fp8 ? OP_FP8_CODES : 1.0);
    memset(&data->scales, 0, sizeof(data->scales));
    if (is_fp8) {
        op_tensor_scale(&data->tokens, &data->scales, random, recipe, data->test.gap % 2);
    }
    data->rows = op_array(T * H, sizeof(double));
    memcpy(data->rows, data->tokens.values, (size_t)(T * H) * sizeof(double));
    for (int64_t t = 0; op_quantizes_tokens(problem) && t < T; t++) {
        op_quantize_row(&inter, H, data->rows + t * H);
    }
}

/* A map of logical to physical ids: the first replica of an expert has its own id, others any;
 * entries behind its last replica are -1. */
static inline void layer_map_init(struct layer_data *data, struct support_random *random,
                                  const struct moe_problem *problem)
{
    const int64_t G = op_num_global(problem), R = data->test.max_replicas;
    const int64_t P = op_num_ids(problem) - problem->num_appended_experts;
    data->physical_ids = op_input(NULL, G * R * 4, 4);
    data->num_replicas = op_input(NULL, R > 0 ? G * 4 : 0, 4);
    for (int64_t e = 0; R > 0 && e < G; e++) {
        const int64_t count = 1 + (int64_t)support_random_below(random, (uint64_t)R);
        OP_INT32(data->num_replicas)[e] = (int32_t)count;
        for (int64_t r = 0; r < R; r++) {
            const int64_t id = r == 0 ? e : (int64_t)support_random_below(random, (uint64_t)P);
            OP_INT32(data->physical_ids)[e * R + r] = r < count ? (int32_t)id : -1;
        }
    }
}

/* `problem` as the case wants it, but for num_experts, num_experts_global holding all experts, and
 * max_tokens. */
static inline void layer_data_init(struct layer_data *data, uint64_t seed,
                                   const struct moe_problem *problem, const struct layer_case *test)
{
    struct support_random random;
    struct moe_problem own = *problem;
    const int64_t T = test->num_tokens, H = problem->hidden, k = op_num_slots(problem);
    support_random_seed(&random, seed);
    data->test = *test;
    op_routes_init(&data->routes, &random, T, op_num_ids(problem), k, test->traffic,
                   test->filtering, test->wide);
    own.num_experts = (int32_t)data->routes.ref.num_local;
    own.max_tokens = T > 0 ? T : 1;
    op_model_init(&data->model, &random, &own);
    op_bound_init(&data->bound, &data->model, test->layout);
    layer_tokens_init(data, &random, &own);
    op_tensor_init(&data->logits, &random, layer_logits_dtype(&own), T, op_num_global(problem),
                   test->gap, 2.0);
    op_tensor_init(&data->weights, &random, MOE_DTYPE_FP32, T, k, 0, 0.5);
    op_tensor_init(&data->residual, &random, op_output_dtype(&own), T, H, test->gap, 1.0);
    layer_map_init(data, &random, &own);
}

static inline void layer_data_finish(struct layer_data *data)
{
    op_bound_finish(&data->bound);
    op_model_finish(&data->model);
    op_routes_finish(&data->routes);
    op_tensor_finish(&data->tokens);
    if (op_is_fp8(&data->model.problem.tokens)) {
        support_guard_finish(&data->scales.memory);
    }
    free(data->rows);
    op_tensor_finish(&data->logits);
    op_tensor_finish(&data->weights);
    op_tensor_finish(&data->residual);
    support_guard_finish(&data->physical_ids);
    support_guard_finish(&data->num_replicas);
}

static inline void layer_result_init(struct layer_result *result, const struct layer_data *data)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t T = data->test.num_tokens;
    result->output = op_array(T * problem->hidden, op_dtype_bytes(op_output_dtype(problem)));
    result->logits = op_array(T * op_num_global(problem), sizeof(float));
    result->ids = op_array(T * op_num_slots(problem), sizeof(int64_t));
    result->weights = op_array(T * op_num_slots(problem), sizeof(float));
    result->load = op_array(op_num_global(problem), sizeof(int64_t));
}

static inline void layer_result_finish(struct layer_result *result)
{
    free(result->output);
    free(result->logits);
    free(result->ids);
    free(result->weights);
    free(result->load);
}

/* Guarded outputs of one call over `count` tokens. */
struct layer_outputs {
    struct support_guard output;
    struct support_guard logits;
    struct support_guard ids;
    struct support_guard weights;
    struct support_guard load;
    int32_t num_valid; /* of the tokens of this call */
    int32_t num_device;
};

enum { LAYER_LOAD_BEFORE = 1000 }; /* what load counters have counted before, of expert 0 */

static inline const unsigned char *layer_row(const struct op_tensor *tensor, int64_t row)
{
    return tensor->memory.data + (size_t)(row * tensor->stride) * op_dtype_bytes(tensor->dtype);
}

static inline bool layer_is_in_place(const struct layer_data *data, enum layer_target target)
{
    const struct moe_problem *problem = &data->model.problem;
    return data->test.target == target &&
           (target == LAYER_OUTPUT_IS_TOKENS ? op_output_dtype(problem) == problem->tokens.dtype
                                             : data->test.has_residual);
}

/* Of `count` tokens from `first` on, those before the last `num_last` of all. */
static inline int32_t layer_num_before(const struct layer_data *data, int64_t first, int64_t count,
                                       int64_t num_last)
{
    const int64_t before = data->test.num_tokens - num_last - first;
    return (int32_t)(before < 0 ? 0 : before < count ? before : count);
}

/* What gating takes besides logits, and the counters that it adds to. */
static inline void layer_fill_gating(const struct layer_data *data, struct layer_outputs *outputs,
                                     struct moe_layer_args *args)
{
    const struct layer_case *test = &data->test;
    const int64_t G = test->has_load ? op_num_global(&data->model.problem) : 0;
    outputs->load = op_output(G * 8, 8, SUPPORT_POISON_INT);
    for (int64_t e = 0; e < G; e++) {
        OP_INT64(outputs->load)[e] = LAYER_LOAD_BEFORE + e;
    }
    args->num_valid_tokens = test->num_padded > 0 ? &outputs->num_valid : NULL;
    args->load_counters = test->has_load ? OP_INT64(outputs->load) : NULL;
    if (test->max_replicas > 0) {
        args->physical_ids = OP_INT32(data->physical_ids);
        args->num_replicas = OP_INT32(data->num_replicas);
        args->max_replicas = test->max_replicas;
    }
}

/* Arguments for the tokens [first, first + count); outputs are allocated, in-place inputs copied
 * into them. */
static inline void layer_fill_args(const struct layer_data *data, int64_t first, int64_t count,
                                   struct layer_outputs *outputs, struct moe_layer_args *args)
{
    const struct moe_problem *problem = &data->model.problem;
    const struct layer_case *test = &data->test;
    const int64_t H = problem->hidden, k = op_num_slots(problem), stride = H + test->gap;
    const size_t bytes = op_dtype_bytes(op_output_dtype(problem));
    const size_t id_bytes = test->wide ? 8 : 4;
    const size_t logit_bytes = op_dtype_bytes(layer_logits_dtype(problem));
    const size_t size = count > 0 ? (size_t)(count * stride - test->gap) * bytes : 0;
    outputs->output = op_output((int64_t)size, bytes, SUPPORT_POISON_FLOAT);
    outputs->logits = op_output(count * op_num_global(problem) * (int64_t)logit_bytes, logit_bytes,
                                SUPPORT_POISON_FLOAT);
    outputs->ids = op_output(count * k * (int64_t)id_bytes, id_bytes, SUPPORT_POISON_INT);
    outputs->weights = op_output(count * k * 4, 4, SUPPORT_POISON_FLOAT);
    MOE_INIT_CALL(*args);
    args->call.num_tokens = count;
    outputs->num_valid = layer_num_before(data, first, count, test->num_padded);
    outputs->num_device = layer_num_before(data, first, count, test->num_behind);
    args->call.num_tokens_device = test->num_behind > 0 ? &outputs->num_device : NULL;
    args->weights = data->bound.weights;
    args->tokens = layer_row(&data->tokens, first);
    args->token_stride = data->tokens.stride;
    if (op_is_fp8(&problem->tokens)) {
        args->input_scales = op_scales_from(&data->scales, &problem->tokens, first);
        args->input_scale_stride = data->scales.stride;
    }
    args->ids_dtype = op_ids_dtype(&data->routes);
    args->filter = data->routes.filter;
    args->residual = test->has_residual ? layer_row(&data->residual, first) : NULL;
    args->residual_stride = data->residual.stride;
    args->output = outputs->output.data;
    args->output_stride = stride;
    if (test->source == LAYER_FROM_IDS) {
        args->topk_ids = data->routes.memory.data + (size_t)(first * k) * id_bytes;
        args->topk_weights = OP_FLOAT(data->weights.memory) + first * k;
        outputs->load = op_output(0, 8, SUPPORT_POISON_INT);
    } else {
        layer_fill_gating(data, outputs, args);
        args->topk_ids_out = outputs->ids.data;
        args->topk_weights_out = OP_FLOAT(outputs->weights);
    }
    if (test->source == LAYER_FROM_LOGITS) {
        args->logits = layer_row(&data->logits, first);
        args->logits_stride = data->logits.stride;
    } else if (test->source == LAYER_FROM_ROUTER) {
        args->logits_out = outputs->logits.data;
    }
    if (layer_is_in_place(data, LAYER_OUTPUT_IS_TOKENS)) {
        memcpy(outputs->output.data, args->tokens, size);
        args->tokens = args->output;
    } else if (layer_is_in_place(data, LAYER_OUTPUT_IS_RESIDUAL)) {
        memcpy(outputs->output.data, args->residual, size);
        args->residual = args->output;
    }
}

static inline void layer_expect_poison(const struct support_guard *guard, size_t begin)
{
    assert_true(support_guard_is_poison(guard, begin, guard->size));
}

static inline void layer_outputs_finish(struct layer_outputs *outputs)
{
    support_guard_finish(&outputs->output);
    support_guard_finish(&outputs->logits);
    support_guard_finish(&outputs->ids);
    support_guard_finish(&outputs->weights);
    support_guard_finish(&outputs->load);
}

/* Nothing is written for tokens behind the device's number: poison, or what is computed in place.
 */
static inline void layer_check_behind(const struct layer_data *data, int64_t first, int64_t count,
                                      const struct layer_outputs *outputs)
{
    const struct moe_problem *problem = &data->model.problem;
    const size_t run = (size_t)outputs->num_device, slots = (size_t)op_num_slots(problem);
    const size_t row_bytes =
        (size_t)(problem->hidden + data->test.gap) * op_dtype_bytes(op_output_dtype(problem));
    const size_t logit_bytes =
        (size_t)op_num_global(problem) * op_dtype_bytes(layer_logits_dtype(problem));
    const bool on_tokens = layer_is_in_place(data, LAYER_OUTPUT_IS_TOKENS);
    if (data->test.num_behind == 0 || outputs->num_device == count) {
        return;
    }
    if (on_tokens || layer_is_in_place(data, LAYER_OUTPUT_IS_RESIDUAL)) {
        const struct op_tensor *input = on_tokens ? &data->tokens : &data->residual;
        assert_memory_equal(outputs->output.data + run * row_bytes,
                            layer_row(input, first + (int64_t)run),
                            outputs->output.size - run * row_bytes);
    } else {
        layer_expect_poison(&outputs->output, run * row_bytes);
    }
    layer_expect_poison(&outputs->logits, run * logit_bytes);
    layer_expect_poison(&outputs->ids, run * slots * (data->test.wide ? 8 : 4));
    layer_expect_poison(&outputs->weights, run * slots * 4);
}

/* Packs the outputs, and frees them. */
static inline void layer_take_outputs(const struct layer_data *data, int64_t count,
                                      struct layer_outputs *outputs, struct layer_result *result)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t H = problem->hidden;
    for (int64_t e = 0; e < (int64_t)(outputs->load.size / 8); e++) {
        result->load[e] = OP_INT64(outputs->load)[e] - LAYER_LOAD_BEFORE - e;
    }
    op_pack_rows(&outputs->output, count, H, H + data->test.gap,
                 op_dtype_bytes(op_output_dtype(problem)), result->output);
    if (data->test.source == LAYER_FROM_ROUTER) {
        memcpy(result->logits, outputs->logits.data, outputs->logits.size);
    }
    if (data->test.source != LAYER_FROM_IDS) {
        memcpy(result->ids, outputs->ids.data, outputs->ids.size);
        memcpy(result->weights, outputs->weights.data, outputs->weights.size);
    } else {
        memcpy(result->ids, data->routes.memory.data, data->routes.memory.size);
        memcpy(result->weights, data->weights.memory.data, data->weights.memory.size);
    }
    layer_outputs_finish(outputs);
}

/* Runs a plan that the caller made over some tokens, under watch. */
static inline void layer_run_plan(const struct op_variant *variant, const struct moe_plan *plan,
                                  const struct layer_data *data, int64_t first, int64_t count,
                                  struct layer_result *result)
{
    struct layer_outputs outputs;
    struct moe_layer_args args;
    layer_fill_args(data, first, count, &outputs, &args);
    const struct op_watch watch = {.variant = variant,
                                   .plan = plan,
                                   .op = MOE_OP_LAYER,
                                   .num_tokens = count,
                                   .outputs = {&outputs.output, &outputs.logits, &outputs.ids,
                                               &outputs.weights, &outputs.load},
                                   .num_outputs = 5};
    op_run(&watch, op_invoke_layer, &args, &args.call);
    layer_check_behind(data, first, count, &outputs);
    layer_take_outputs(data, count, &outputs, result);
}

/* Binds, plans and runs in a variant. */
static inline void layer_run(const struct op_variant *variant, struct layer_data *data,
                             int64_t first, int64_t count, struct layer_result *result)
{
    op_bind(&data->bound, &data->model, variant->context);
    struct moe_plan *plan = op_plan(variant->context, &data->model.problem, 0);
    layer_run_plan(variant, plan, data, first, count, result);
    op_api()->plan_destroy(plan);
}

static inline void layer_compare(const struct layer_data *data, const struct layer_result *a,
                                 const struct layer_result *b)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t T = data->test.num_tokens, routes = T * op_num_slots(problem);
    assert_bits_equal(a->output, b->output, T * problem->hidden,
                      op_dtype_bytes(op_output_dtype(problem)));
    assert_bits_equal(a->ids, b->ids, routes, data->test.wide ? 8 : 4);
    assert_bits_equal(a->weights, b->weights, routes, 4);
    assert_memory_equal(a->load, b->load, (size_t)op_num_global(problem) * sizeof(int64_t));
    if (data->test.source == LAYER_FROM_ROUTER) {
        assert_bits_equal(a->logits, b->logits, T * op_num_global(problem),
                          op_dtype_bytes(layer_logits_dtype(problem)));
    }
}

/* ---------------------------------------------------------------- expectation */

static inline int64_t layer_id(const struct layer_data *data, const struct layer_result *result,
                               int64_t route)
{
    int64_t wide;
    int32_t narrow;
    memcpy(&narrow, result->ids + route * 4, 4);
    if (!data->test.wide) {
        return narrow;
    }
    memcpy(&wide, result->ids + route * 8, 8);
    return wide;
}

/* sigma(x . w) and its bound: the slope is at most 1/4, and fp32 adds a few ulp. */
static inline double layer_expect_factor(const struct layer_data *data, const double *x,
                                         double *tolerance)
{
    const struct op_matrix *w = &data->model.matrices[OP_SHARED_SIGMOID];
    double logit = 0.0;
    *tolerance = 0.0;
    if (w->rows == 0) {
        return 1.0;
    }
    op_expect_gemm(x, NULL, w->values, NULL, 1.0, 1, w->cols, &logit, tolerance);
    *tolerance = *tolerance / 4.0 + 0x1p-21;
    return 1.0 / (1.0 + exp(-logit));
}

/* Output row of one token by the routing that the call used, before its last rounding, and how far
 * it may be off. */
static inline void layer_expect_token(const struct layer_data *data,
                                      const struct layer_result *result, int64_t token, double *out,
                                      double *tolerance)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t H = problem->hidden, k = op_num_slots(problem);
    const bool on_input = (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
    const double *x = data->rows + token * H;
    double *rows = op_array(k * H, sizeof(double)), *slack = op_array(k * H, sizeof(double));
    double *carried = op_array(H, sizeof(double)), *magnitude = op_array(H, sizeof(double));
    double *weights = op_array(k, sizeof(double));
    double *shared = op_array(2 * H, sizeof(double));
    int32_t *src2dst = op_array(k, sizeof(int32_t));
    double factor_tolerance = 0.0;
    const double factor =
        layer_expect_factor(data, data->tokens.values + token * H, &factor_tolerance);
    const double scaling =
        problem->scaling_on == MOE_SCALING_OUTPUT ? (double)problem->routed_scaling : 1.0;
    for (int64_t j = 0; j < k; j++) {
        const double weight = (double)result->weights[token * k + j];
        const int64_t e =
            ref_local_expert(&data->routes.ref, layer_id(data, result, token * k + j));
        weights[j] = on_input ? 1.0 : weight;
        src2dst[j] = e < 0 ? -1 : (int32_t)j;
        if (e < 0) {
            continue;
        }
        const struct op_expert expert = op_routed_expert(&data->model, e);
        op_expect_expert_row(&expert, x, on_input ? weight : 1.0, rows + j * H, slack + j * H);
        for (int64_t h = 0; h < H; h++) {
            carried[h] += fabs(weights[j] * scaling) * slack[j * H + h];
        }
    }
    if (problem->shared_inter > 0) {
        const struct op_expert expert = op_shared_expert(&data->model);
        op_expect_expert_row(&expert, x, 1.0, shared, shared + H);
        for (int64_t h = 0; h < H; h++) {
            carried[h] +=
                factor_tolerance * fabs(shared[h]) + (factor + factor_tolerance) * shared[H + h];
        }
    }
    const struct ref_post_reorder combine = {
        .rows = rows,
        .src2dst = src2dst,
        .weights = weights,
        .num_tokens = 1,
        .top_k = k,
        .hidden = H,
        .scaling_factor = scaling,
        .shared = problem->shared_inter > 0 ? shared : NULL,
        .shared_factor = &factor,
        .residual = data->test.has_residual ? data->residual.values + token * H : NULL,
        .out_dtype = REF_F64,
        .out = out,
        .sum_abs = magnitude,
    };
    ref_post_reorder(&combine);
    for (int64_t h = 0; h < H; h++) { /* k slots, scaling, shared, residual */
        tolerance[h] = carried[h] + ref_gemm_tolerance(k + 3, REF_F32, REF_F64,
                                                       magnitude[h] + carried[h], out[h]);
    }
    op_add_rounding(op_output_dtype(problem), out, tolerance, H);
    free(src2dst);
    free(shared);
    free(weights);
    free(magnitude);
    free(carried);
    free(slack);
    free(rows);
}

/* Every token that was run, by the reference; large cases check every nth token, the first and the
 * last among them. */
static inline void layer_check(const struct layer_data *data, const struct layer_result *result)
{
    const struct moe_problem *problem = &data->model.problem;
    const int64_t T = data->test.num_tokens - data->test.num_behind, H = problem->hidden;
    const int64_t work =
        T * H * (op_num_slots(problem) * (int64_t)problem->inter + (int64_t)problem->shared_inter);
    const int64_t step = support_full_grids() || work < 4000000 ? 1 : work / 4000000 + 1;
    const enum ref_dtype dtype = op_ref_dtype(op_output_dtype(problem));
    double *out = op_array(2 * H, sizeof(double));
    for (int64_t t = 0; t < T; t = t + step < T || t == T - 1 ? t + step : T - 1) {
        layer_expect_token(data, result, t, out, out + H);
        assert_all_within(out, out + H, dtype,
                          result->output + (size_t)(t * H) * ref_dtype_bytes(dtype), H);
    }
    free(out);
}

#endif
