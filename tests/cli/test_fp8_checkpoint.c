/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 300 */
/* fp8 checkpoints with scales per 128 x 128: what moectl computes from them, against the same layer
 * from the fp32 numbers that they mean; and what it refuses. */
#define _GNU_SOURCE
#include "cli_fp8.h"

#include "layer_run.h"

enum { num_tokens = 9 };

/* Of fp32 sums in one order or another, over at most 320 products. */
static const double rounding_bound = 3e-6;

/* Rows are rounded to e4m3 twice, each time by 2.4 percent (2^-3 / sqrt(12) of a power of two). */
static const double fp8_rows_bound = 5e-2;
static const double fp8_rows_least = 1e-2;

static struct fixture_folder quantized; /* the model under test */
static struct fixture_folder meant;     /* the numbers that it means */
static struct fp8_model model;

static int set_up(void **state)
{
    (void)state;
    fixture_create(&quantized);
    fixture_create(&meant);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fp8_finish(&model);
    fixture_destroy(&quantized);
    fixture_destroy(&meant);
    return 0;
}

/* ---- models */

/* Several blocks in each direction, the last ones of hidden smaller; a tensor per expert. */
static void make_deepseek(void)
{
    enum { hidden = 320, inter = 256, num_experts = 6 };
    static const char layer[] = "model.layers.0.mlp.";
    snprintf(model.config, sizeof model.config,
             "{\"model_type\":\"deepseek_v3\",\"dtype\":\"float32\",\"num_hidden_layers\":1,"
             "\"first_k_dense_replace\":0,\"hidden_act\":\"silu\",\"hidden_size\":%d,"
             "\"moe_intermediate_size\":%d,\"n_group\":1,\"topk_group\":1,\"n_routed_experts\":%d,"
             "\"n_shared_experts\":1,\"norm_topk_prob\":true,\"num_experts_per_tok\":3,"
             "\"routed_scaling_factor\":2.5}",
             hidden, inter, num_experts);
    const int64_t out[] = {inter, hidden}, in[] = {hidden, inter};
    const int64_t router[] = {num_experts, hidden}, bias[] = {num_experts};
    char name[FP8_NAME_BYTES];
    model.num_tensors = 0;
    for (int e = 0; e <= num_experts; ++e) {
        char expert[32] = "shared_experts";
        if (e < num_experts) {
            snprintf(expert, sizeof expert, "experts.%d", e);
        }
        snprintf(name, sizeof name, "%s%s.gate_proj.weight", layer, expert);
        fp8_add_random(&model, name, 2, out);
        snprintf(name, sizeof name, "%s%s.up_proj.weight", layer, expert);
        fp8_add_random(&model, name, 2, out);
        snprintf(name, sizeof name, "%s%s.down_proj.weight", layer, expert);
        fp8_add_random(&model, name, 2, in);
    }
    fp8_add_random(&model, "model.layers.0.mlp.gate.weight", 2, router);
    fp8_add_random(&model, "model.layers.0.mlp.gate.e_score_correction_bias", 1, bias);
}

/* Stacked experts, gate and up in one tensor, stored as [in, out]. */
static void make_llama4(int64_t inter)
{
    enum { hidden = 320, num_experts = 4 };
    snprintf(model.config, sizeof model.config,
             "{\"model_type\":\"llama4_text\",\"dtype\":\"float32\",\"num_hidden_layers\":1,"
             "\"hidden_act\":\"silu\",\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_local_experts\":%d,\"num_experts_per_tok\":1,\"moe_layers\":[0]}",
             hidden, (int)inter, num_experts);
    const int64_t gate_up[] = {num_experts, hidden, 2 * inter},
                  down[] = {num_experts, inter, hidden};
    const int64_t out[] = {inter, hidden}, in[] = {hidden, inter};
    const int64_t router[] = {num_experts, hidden};
    model.num_tensors = 0;
    fp8_add_random(&model, "model.layers.0.feed_forward.experts.gate_up_proj", 3, gate_up);
    fp8_add_random(&model, "model.layers.0.feed_forward.experts.down_proj", 3, down);
    fp8_add_random(&model, "model.layers.0.feed_forward.shared_expert.gate_proj.weight", 2, out);
    fp8_add_random(&model, "model.layers.0.feed_forward.shared_expert.up_proj.weight", 2, out);
    fp8_add_random(&model, "model.layers.0.feed_forward.shared_expert.down_proj.weight", 2, in);
    fp8_add_random(&model, "model.layers.0.feed_forward.router.weight", 2, router);
}

static void make_halved_llama4(void)
{
    make_llama4(256);
}

/* dbrx: the experts' matrices lie one below the other, the down matrix transposed. */
static void make_dbrx(int64_t inter)
{
    enum { hidden = 320, num_experts = 4 };
    static const char *const names[] = {"w1", "v1", "w2"};
    snprintf(model.config, sizeof model.config,
             "{\"model_type\":\"dbrx\",\"dtype\":\"float32\",\"n_layers\":1,\"d_model\":%d,"
             "\"ffn_config\":{\"ffn_hidden_size\":%d,\"moe_num_experts\":%d,\"moe_top_k\":2}}",
             hidden, (int)inter, num_experts);
    const int64_t all[] = {num_experts * inter, hidden}, router[] = {num_experts, hidden};
    model.num_tensors = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
        char name[FP8_NAME_BYTES];
        snprintf(name, sizeof name, "transformer.blocks.0.ffn.experts.mlp.%s", names[i]);
        fp8_add_random(&model, name, 2, all);
        model.tensors[i].is_matrix = 1;
    }
    fp8_add_random(&model, "transformer.blocks.0.ffn.router.layer.weight", 2, router);
}

static void make_whole_dbrx(void)
{
    make_dbrx(256);
}

static void make_golden_deepseek(void)
{
    fp8_read_golden(&model, "deepseek_v3");
}

static void make_golden_qwen(void)
{
    fp8_read_golden(&model, "qwen3_moe");
}

/* ---- running */

static void fill_tokens(float *tokens, int64_t num_elements)
{
    uint32_t state = 7;
    for (int64_t i = 0; i < num_elements; ++i) {
        state = state * 1664525u + 1013904223u;
        tokens[i] = ((float)(state >> 8) * 0x1p-23f - 1.0f) * 1.7f;
    }
}

/* The layer's output [num_tokens, hidden], on the heap. */
static float *run(const struct fixture_folder *folder, int has_plain_activations,
                  struct moe_rank_split split, int64_t *num_elements)
{
    struct moe_checkpoint_layer layer;
    struct moe_plugin_host host = {.api = NULL};
    struct moe_plugin_host_options options = moe_plugin_host_default_options();
    struct moe_cli_error error = {.message = ""};
    options.plugin = MOE_BUILD_DIR "/lib/libmoe_plugin.so";
    options.backend = "cpu";
    options.num_threads = 2;
    open_layer(folder->path, -1, &layer);
    if (has_plain_activations) {
        layer.problem.intermediate = (struct moe_recipe){0};
    }
    *num_elements = num_tokens * (int64_t)layer.problem.hidden;
    float *tokens = calloc((size_t)*num_elements, sizeof *tokens);
    float *output = calloc((size_t)*num_elements, sizeof *output);
    assert_true(tokens != NULL && output != NULL);
    assert_int_equal(layer.problem.tokens.dtype, MOE_DTYPE_FP32);
    fill_tokens(tokens, *num_elements);
    const struct moe_layer_run_request request = {
        .layer = &layer, .split = split, .num_tokens = num_tokens, .tokens = tokens};
    struct moe_layer_run_result result;
    if (moe_rank_split_check(&layer.problem, &split, &error) != 0 ||
        moe_plugin_host_open(&options, &host, &error) != 0 ||
        moe_layer_run(&host, &request, &result, &error) != 0) {
        fail_msg("%s", error.message);
    }
    memcpy(output, result.block_output, (size_t)*num_elements * sizeof *output);
    moe_layer_run_finish(&result);
    moe_plugin_host_finish(&host);
    moe_checkpoint_layer_close(&layer);
    free(tokens);
    return output;
}

static double rel_l2(const float *expected, const float *computed, int64_t num_elements)
{
    double difference = 0.0, sum = 0.0;
    for (int64_t i = 0; i < num_elements; ++i) {
        const double step = (double)computed[i] - (double)expected[i];
        difference += step * step;
        sum += (double)expected[i] * (double)expected[i];
    }
    assert_true(sum > 0.0);
    return sqrt(difference / sum);
}

/* How far the quantized model is off the numbers that it means. */
static double compare(const float *expected, int has_plain_activations, int64_t tp, int64_t ep)
{
    int64_t num_elements;
    float *output =
        run(&quantized, has_plain_activations, (struct moe_rank_split){tp, ep}, &num_elements);
    const double error = rel_l2(expected, output, num_elements);
    free(output);
    return error;
}

static float *expect_from_meant(int64_t *num_elements)
{
    fp8_write(&model, &(struct fp8_style){.is_plain = 1}, &meant);
    return run(&meant, 0, (struct moe_rank_split){1, 1}, num_elements);
}

#define ASSERT_BELOW(error, bound)                                         \
    do {                                                                   \
        const double error_ = (error);                                     \
        if (!(error_ < (bound))) {                                         \
            fail_msg("%s is %.3e, not below %.3e", #error, error_, bound); \
        }                                                                  \
    } while (0)

/* One model, with both kinds of activations and both types of scales. */
static void gives_the_numbers_that_it_means(void **state)
{
    void (*make)(void) = (void (*)(void))(uintptr_t)*state;
    make();
    int64_t num_elements;
    float *expected = expect_from_meant(&num_elements);
    const struct fp8_style styles[] = {{.has_bf16_scales = 0}, {.has_bf16_scales = 1}};
    for (size_t i = 0; i < sizeof styles / sizeof styles[0]; ++i) {
        fp8_write(&model, &styles[i], &quantized);
        ASSERT_BELOW(compare(expected, 1, 1, 1), rounding_bound);
        ASSERT_BELOW(compare(expected, 1, 1, 2), rounding_bound);
        const double of_fp8_rows = compare(expected, 0, 1, 1);
        ASSERT_BELOW(of_fp8_rows, fp8_rows_bound);
        assert_true(of_fp8_rows > fp8_rows_least); /* they were rounded */
    }
    fp8_write(&model, &(struct fp8_style){.has_a_wrong_scale = 1}, &quantized);
    assert_true(compare(expected, 1, 1, 1) > 10.0 * rounding_bound);
    free(expected);
    fp8_finish(&model);
}

/* Ranks of one block of channels each find their own scales. */
static void gives_them_on_ranks(void **state)
{
    void (*make)(void) = (void (*)(void))(uintptr_t)*state;
    make();
    int64_t num_elements;
    float *expected = expect_from_meant(&num_elements);
    fp8_write(&model, &(struct fp8_style){0}, &quantized);
    ASSERT_BELOW(compare(expected, 1, 2, 1), rounding_bound);
    ASSERT_BELOW(compare(expected, 1, 2, 3), rounding_bound);
    ASSERT_BELOW(compare(expected, 0, 2, 1), fp8_rows_bound);
    EXPECT_REFUSED("--tp 4: the inter of 256 channels does not divide by it into whole blocks of "
                   "128 channels, which share a scale",
                   "run", "--model", quantized.path, "--tp", "4");
    free(expected);
    fp8_finish(&model);
}

/* ---- against the reference, in double */

/* What a tensor of the checkpoint means, and its shape. */
struct meaning {
    double *values;
    int64_t rows, cols;
};

static struct meaning meaning_of(const char *name)
{
    for (size_t i = 0; i < model.num_tensors; ++i) {
        const struct fp8_tensor *tensor = &model.tensors[i];
        if (strcmp(tensor->name, name) != 0) {
            continue;
        }
        const int64_t num_elements = fp8_num_elements(tensor);
        struct meaning meaning = {.cols = tensor->shape[tensor->rank - 1]};
        meaning.rows = num_elements / meaning.cols;
        meaning.values = calloc((size_t)num_elements, sizeof(double));
        assert_non_null(meaning.values);
        for (int64_t j = 0; j < num_elements; ++j) {
            meaning.values[j] = (double)tensor->values[j];
        }
        if (tensor->is_matrix) {
            const struct fp8_blocks blocks = fp8_count_blocks(tensor);
            float *scales = calloc((size_t)num_elements, sizeof *scales);
            float *quotients = calloc((size_t)num_elements, sizeof *quotients);
            assert_true(scales != NULL && quotients != NULL);
            fp8_quantize(tensor, scales, quotients);
            for (int64_t j = 0; j < num_elements; ++j) {
                meaning.values[j] = ref_round(REF_E4M3, (double)quotients[j]) *
                                    (double)scales[fp8_block_of(&blocks, j)];
            }
            free(quotients);
            free(scales);
        }
        return meaning;
    }
    return (struct meaning){.values = NULL};
}

/* out[rows] = w x, or w times what x stands for once it is quantized per 128 columns. */
static void multiply(const struct meaning *w, const double *x, int has_fp8_rows, double *out)
{
    double *row = calloc((size_t)w->cols * 3, sizeof *row);
    assert_non_null(row);
    double *codes = row + w->cols, *scales = codes + w->cols;
    memcpy(row, x, (size_t)w->cols * sizeof *row);
    if (has_fp8_rows) {
        ref_quantize(x, 1, w->cols, FP8_BLOCK, 0, codes, scales);
        for (int64_t i = 0; i < w->cols; ++i) {
            row[i] = codes[i] * scales[i / FP8_BLOCK];
        }
    }
    for (int64_t r = 0; r < w->rows; ++r) {
        out[r] = 0.0;
        for (int64_t i = 0; i < w->cols; ++i) {
            out[r] += row[i] * w->values[r * w->cols + i];
        }
    }
    free(row);
}

/* Adds weight times an expert's output for x. `expert` is its place below the layer. */
static void add_expert(const char *expert, const double *x, double weight, int has_fp8_rows,
                       double *out)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    struct meaning weights[3];
    for (int i = 0; i < 3; ++i) {
        char name[FP8_NAME_BYTES];
        snprintf(name, sizeof name, "model.layers.0.mlp.%s.%s.weight", expert, parts[i]);
        weights[i] = meaning_of(name);
        assert_non_null(weights[i].values);
    }
    const int64_t inter = weights[0].rows, hidden = weights[0].cols;
    double *gate = calloc((size_t)(2 * inter + hidden), sizeof *gate);
    assert_non_null(gate);
    double *up = gate + inter, *row = up + inter;
    multiply(&weights[0], x, has_fp8_rows, gate);
    multiply(&weights[1], x, has_fp8_rows, up);
    for (int64_t i = 0; i < inter; ++i) {
        gate[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
    }
    multiply(&weights[2], gate, has_fp8_rows, row);
    for (int64_t i = 0; i < hidden; ++i) {
        out[i] += weight * row[i];
    }
    free(gate);
    for (int i = 0; i < 3; ++i) {
        free(weights[i].values);
    }
}

/* Ids and weights of the tokens by the rule of the problem; no near ties in this data. */
static void route(const struct moe_problem *problem, const double *x, int32_t *ids, double *weights)
{
    const struct meaning router = meaning_of("model.layers.0.mlp.gate.weight");
    const struct meaning bias = meaning_of("model.layers.0.mlp.gate.e_score_correction_bias");
    double *logits = calloc((size_t)(num_tokens * router.rows), sizeof *logits);
    unsigned char ambiguous[num_tokens];
    assert_true(router.values != NULL && logits != NULL);
    const struct ref_gate_rule rule = {
        .method = problem->gating == MOE_GATING_SIGMOID ? REF_GATE_SIGMOID : REF_GATE_SOFTMAX,
        .num_experts = router.rows,
        .top_k = problem->top_k,
        .bias = bias.values,
        .num_groups = problem->num_groups,
        .topk_groups = problem->topk_groups,
        .group_score = REF_GROUP_TOP2_SUM,
        .renormalize = (problem->flags & MOE_PROBLEM_RENORMALIZE) != 0,
        .scaling_factor = problem->routed_scaling != 0.0f ? (double)problem->routed_scaling : 1.0,
        .abs_margin = 1e-6};
    const struct ref_gate_result result = {
        .ids = ids, .weights = weights, .ambiguous_set = ambiguous};
    ref_router(x, router.values, NULL, num_tokens, router.rows, router.cols, logits, NULL);
    ref_gate(&rule, logits, num_tokens, num_tokens, &result);
    for (int t = 0; t < num_tokens; ++t) {
        assert_int_equal(ambiguous[t], 0);
    }
    free(logits);
    free(bias.values);
    free(router.values);
}

/* The output of the quantized model, from the numbers that its weights mean. */
static float *expect_in_double(int has_fp8_rows, int64_t *num_elements)
{
    struct moe_checkpoint_layer layer;
    open_layer(quantized.path, -1, &layer);
    const struct moe_problem problem = layer.problem;
    moe_checkpoint_layer_close(&layer);
    const int64_t hidden = problem.hidden, k = problem.top_k;
    *num_elements = num_tokens * hidden;
    float *tokens = calloc((size_t)*num_elements, sizeof *tokens);
    double *x = calloc((size_t)*num_elements * 2, sizeof *x), *out = x + *num_elements;
    int32_t *ids = calloc((size_t)(num_tokens * k), sizeof *ids);
    double *weights = calloc((size_t)(num_tokens * k), sizeof *weights);
    assert_true(tokens != NULL && x != NULL && ids != NULL && weights != NULL);
    fill_tokens(tokens, *num_elements);
    for (int64_t i = 0; i < *num_elements; ++i) {
        x[i] = (double)tokens[i];
    }
    route(&problem, x, ids, weights);
    for (int64_t t = 0; t < num_tokens; ++t) {
        for (int64_t j = 0; j < k; ++j) {
            char expert[32];
            snprintf(expert, sizeof expert, "experts.%d", (int)ids[t * k + j]);
            add_expert(expert, x + t * hidden, weights[t * k + j], has_fp8_rows, out + t * hidden);
        }
        if (problem.shared_inter > 0) {
            add_expert("shared_experts", x + t * hidden, 1.0, has_fp8_rows, out + t * hidden);
        }
    }
    for (int64_t i = 0; i < *num_elements; ++i) {
        tokens[i] = (float)out[i];
    }
    free(weights);
    free(ids);
    free(x);
    return tokens;
}

/* Codes of rows are the same unless a value lies within fp32's rounding of the middle between two:
 * none does here, so both kinds of activations are as near. */
static void agrees_with_double(void **state)
{
    void (*make)(void) = (void (*)(void))(uintptr_t)*state;
    make();
    fp8_write(&model, &(struct fp8_style){0}, &quantized);
    for (int has_fp8_rows = 0; has_fp8_rows < 2; ++has_fp8_rows) {
        int64_t num_elements;
        float *expected = expect_in_double(has_fp8_rows, &num_elements);
        ASSERT_BELOW(compare(expected, !has_fp8_rows, 1, 1), rounding_bound);
        ASSERT_BELOW(compare(expected, !has_fp8_rows, 1, 2), rounding_bound);
        free(expected);
    }
    fp8_finish(&model);
}

/* ---- the command */

/* A golden file of the numbers that are meant. */
static void write_golden(const struct fixture_folder *folder, char *path)
{
    int64_t num_elements;
    float *expected = expect_from_meant(&num_elements);
    float *tokens = calloc((size_t)num_elements, sizeof *tokens);
    assert_non_null(tokens);
    fill_tokens(tokens, num_elements);
    const int64_t shape[] = {num_tokens, num_elements / num_tokens};
    struct fp8_writer writer;
    fp8_begin(&writer);
    fp8_put(&writer, "hidden_states", "F32", REF_F32, 4, 2, shape, tokens);
    fp8_put(&writer, "block_output", "F32", REF_F32, 4, 2, shape, expected);
    fixture_join(folder, "golden.safetensors", path);
    fp8_end(&writer, path);
    free(tokens);
    free(expected);
}

static void the_command_checks_them(void **state)
{
    (void)state;
    char golden[FIXTURE_PATH_BYTES];
    make_deepseek();
    write_golden(&meant, golden);
    fp8_write(&model, &(struct fp8_style){0}, &quantized);
    const char *path = quantized.path;
    EXPECT_RUN("by 0.01, outputs by 0.05", "run", "--model", path, "--check", golden);
    EXPECT_RUN("fp8_e4m3, activations fp8_e4m3", "run", "--model", path, "--check", golden,
               "--activations", "fp8");
    EXPECT_RUN("by 0.01\n", "run", "--model", path, "--check", golden, "--activations", "plain");
    EXPECT_JSON(0, "\"activations\": \"fp8_e4m3\"", "run", "--model", path, "--json");
    EXPECT_JSON(0, "\"activations\": \"fp32\"", "run", "--model", path, "--json", "--activations",
                "plain");
    EXPECT_RUN("fp8_e4m3", "explain", "--model", path);
    fp8_write(&model, &(struct fp8_style){.has_a_wrong_scale = 1}, &quantized);
    expect_moectl(ARGUMENTS("run", "--model", path, "--check", golden), 1, "wrong", NULL);
    fp8_finish(&model);
}

/* ---- refusals */

static void expect_quantization(const char *quantization, const char *words)
{
    fp8_write(&model, &(struct fp8_style){.quantization = quantization}, &quantized);
    EXPECT_REFUSED(words, "run", "--model", quantized.path);
}

static void refuses_what_it_cannot_read(void **state)
{
    (void)state;
    static const char read[] = "read are unquantized weights, and quant_method 'fp8' with "
                               "weight_block_size [128, 128]";
    make_deepseek();
    expect_quantization("{\"quant_method\":\"mxfp4\"}",
                        "quantized by 'mxfp4' (4-bit floats with a power-of-two scale per 32)");
    expect_quantization("{\"quant_method\":\"gptq\",\"bits\":4}", read);
    expect_quantization("{\"quant_method\":\"awq\"}", "quantized by 'awq' (packed 4-bit integers");
    expect_quantization("{\"quant_method\":\"compressed-tensors\"}",
                        "quantized by 'compressed-tensors' (a container of");
    expect_quantization("{\"quant_method\":\"bitsandbytes\"}", "quantized by 'bitsandbytes' (");
    expect_quantization("{\"quant_method\":\"new_one\"}",
                        "quantized by 'new_one', which cannot be run");
    expect_quantization("{\"bits\":4}", "quantization_config has no quant_method");
    expect_quantization("{\"quant_method\":\"fp8\"}", "with one scale per tensor");
    expect_quantization("{\"quant_method\":\"fp8\",\"weight_block_size\":[64,128]}",
                        "weight_block_size of fp8 weights is not [128, 128]");
    expect_quantization("{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}",
                        "weight_block_size of fp8 weights is not [128, 128]");
    expect_quantization("{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128],"
                        "\"activation_scheme\":\"static\"}",
                        "activation_scheme 'static' is not 'dynamic'");
    expect_quantization("null", "F8_E4M3 only where config.json has a quantization_config");
    fp8_finish(&model);
}

static void refuses_wrong_scales(void **state)
{
    (void)state;
    make_deepseek();
    fp8_write(&model, &(struct fp8_style){.has_no_scales = 1}, &quantized);
    EXPECT_REFUSED("there is no tensor 'model.layers.0.mlp.experts.0.gate_proj.weight_scale_inv'",
                   "run", "--model", quantized.path);
    fp8_write(&model, &(struct fp8_style){.has_one_scale = 1}, &quantized);
    EXPECT_REFUSED("gate_proj.weight_scale_inv' has shape [1, 1]", "run", "--model",
                   quantized.path);
    EXPECT_REFUSED("it has to be [2, 3]", "run", "--model", quantized.path);
    fp8_write(&model, &(struct fp8_style){.has_plain_shared = 1}, &quantized);
    EXPECT_REFUSED("of the experts and the shared experts of layer 0 only one kind is fp8", "run",
                   "--model", quantized.path);
    fp8_finish(&model);
    make_llama4(64);
    fp8_write(&model, &(struct fp8_style){0}, &quantized);
    EXPECT_REFUSED("holds gate and up of 64 channels each, one after the other, in fp8", "run",
                   "--model", quantized.path);
    fp8_finish(&model);
    make_dbrx(64);
    fp8_write(&model, &(struct fp8_style){0}, &quantized);
    EXPECT_REFUSED("holds the 64 rows of each expert one below the other, in fp8", "run", "--model",
                   quantized.path);
    fp8_finish(&model);
}

static void refuses_wrong_activations(void **state)
{
    (void)state;
    char path[FIXTURE_PATH_BYTES];
    golden_path("mixtral", "", path);
    EXPECT_REFUSED("--activations fp8: the experts of", "run", "--model", path, "--activations",
                   "fp8");
    EXPECT_REFUSED("--activations", "run", "--model", path, "--activations", "int8");
    EXPECT_RUN("bf16", "run", "--model", path, "--activations", "plain");
}

#define MODEL(test, make)                                                   \
    {                                                                       \
#test " " #make, test, set_up, tear_down, (void *)(uintptr_t)(make) \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        MODEL(gives_the_numbers_that_it_means, make_golden_deepseek),
        MODEL(gives_the_numbers_that_it_means, make_golden_qwen),
        MODEL(gives_the_numbers_that_it_means, make_deepseek),
        MODEL(gives_the_numbers_that_it_means, make_halved_llama4),
        MODEL(gives_the_numbers_that_it_means, make_whole_dbrx),
        MODEL(agrees_with_double, make_golden_deepseek),
        MODEL(agrees_with_double, make_golden_qwen),
        MODEL(agrees_with_double, make_deepseek),
        MODEL(gives_them_on_ranks, make_deepseek),
        MODEL(gives_them_on_ranks, make_halved_llama4),
        MODEL(gives_them_on_ranks, make_whole_dbrx),
        cmocka_unit_test_setup_teardown(the_command_checks_them, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_what_it_cannot_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_wrong_scales, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_wrong_activations, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
