/* SPDX-License-Identifier: Apache-2.0 */
/* The table of families: what config.json says about a layer, and sentences when it does not say
 * it. */
#define _GNU_SOURCE
#include "cli_fixture.h"

#include "cli_file.h"
#include "model_config.h"
#include "model_layers.h"

/* Reads a config given as text. The tree is destroyed by the caller. */
static struct moe_tree *read_config(const char *text, struct moe_model_config *config,
                                    int expected_status, struct moe_cli_error *error)
{
    const struct moe_tree_limits limits = MOE_TREE_LIMITS_JSON_INDEX;
    error->message[0] = '\0';
    struct moe_tree *tree =
        moe_cli_file_parse_object("config.json", text, strlen(text), &limits, error);
    if (tree == NULL) {
        fail_msg("%s", error->message);
    }
    const int status = moe_model_config_read(moe_tree_root(tree), "config.json", config, error);
    if (status != expected_status) {
        fail_msg("%s: %s", text, error->message);
    }
    return tree;
}

static void assert_refused(const char *text, const char *part)
{
    struct moe_model_config config;
    struct moe_cli_error error;
    moe_tree_destroy(read_config(text, &config, -1, &error));
    fixture_assert_contains(error.message, "config.json");
    fixture_assert_contains(error.message, part);
}

#define MIXTRAL                                                                     \
    "\"model_type\":\"mixtral\",\"num_hidden_layers\":4,\"num_experts_per_tok\":2," \
    "\"hidden_size\":64,\"intermediate_size\":96,\"hidden_act\":\"silu\""

#define QWEN3                                                                         \
    "\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":6,\"num_experts_per_tok\":2," \
    "\"num_experts\":8,\"hidden_size\":64,\"moe_intermediate_size\":96,\"hidden_act\":\"silu\""

#define DEEPSEEK                                                                         \
    "\"model_type\":\"deepseek_v3\",\"num_hidden_layers\":61,\"num_experts_per_tok\":8," \
    "\"n_routed_experts\":256,\"hidden_size\":7168,\"moe_intermediate_size\":2048,"      \
    "\"hidden_act\":\"silu\""
#define DEEPSEEK_V2                                                                   \
    "\"model_type\":\"deepseek_v2\",\"num_hidden_layers\":4,\"n_routed_experts\":64," \
    "\"num_experts_per_tok\":6,\"hidden_size\":64,\"moe_intermediate_size\":32,"      \
    "\"hidden_act\":\"silu\",\"n_group\":8,\"topk_group\":3"
#define NEMOTRON                                                                    \
    "\"model_type\":\"nemotron_h\",\"num_hidden_layers\":4,\"n_routed_experts\":8," \
    "\"num_experts_per_tok\":2,\"hidden_size\":64,\"moe_intermediate_size\":32,"    \
    "\"mlp_hidden_act\":\"relu2\""
#define ERNIE                                                                        \
    "\"model_type\":\"ernie4_5_moe\",\"num_hidden_layers\":6,\"moe_num_experts\":8," \
    "\"moe_k\":2,\"hidden_size\":64,\"moe_intermediate_size\":32,\"hidden_act\":\"silu\""

#define STEP                                                                                    \
    "\"model_type\":\"step3p5\",\"num_hidden_layers\":5,\"moe_num_experts\":8,\"moe_top_k\":2," \
    "\"hidden_size\":64,\"moe_intermediate_size\":32"

/* As published: defaults are not written. */
#define DBRX(rest)                                                                              \
    "{\"model_type\":\"dbrx\",\"n_layers\":40,\"d_model\":6144,\"ffn_config\":{\"model_type\":" \
    "\"\","                                                                                     \
    "\"ffn_hidden_size\":10752,\"moe_num_experts\":16,\"moe_top_k\":4" rest "}}"

#define LLAMA4                                                                          \
    "\"model_type\":\"llama4_text\",\"num_hidden_layers\":8,\"num_experts_per_tok\":1," \
    "\"num_local_experts\":16,\"hidden_size\":64,\"intermediate_size\":96,\"hidden_act\":\"silu\""

static void keys_have_aliases_and_defaults(void **state)
{
    (void)state;
    struct moe_model_config config;
    struct moe_cli_error error;
    static const char *const texts[] = {
        "{" MIXTRAL ",\"num_local_experts\":8}", "{" MIXTRAL ",\"num_experts\":8}",
        "{" MIXTRAL ",\"num_local_experts\":null,\"num_experts\":8}",
        "{" MIXTRAL ",\"num_local_experts\":8,\"num_experts\":9}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
        struct moe_tree *tree = read_config(texts[i], &config, 0, &error);
        assert_int_equal(config.problem.num_experts, 8);
        assert_int_equal(config.problem.tokens.dtype, MOE_DTYPE_BF16);
        moe_tree_destroy(tree);
    }
    struct moe_tree *tree = read_config("{" DEEPSEEK "}", &config, 0, &error);
    assert_int_equal(config.problem.num_groups, 8);
    assert_int_equal(config.problem.topk_groups, 4);
    assert_int_equal(config.problem.shared_inter, 2048);
    assert_true(config.problem.routed_scaling == 2.5f);
    assert_true((config.problem.flags & MOE_PROBLEM_RENORMALIZE) != 0);
    moe_tree_destroy(tree);

    tree = read_config("{" DEEPSEEK ",\"n_group\":1,\"topk_group\":1,\"n_shared_experts\":2,"
                       "\"routed_scaling_factor\":1.0,\"norm_topk_prob\":false,"
                       "\"torch_dtype\":\"float16\"}",
                       &config, 0, &error);
    assert_int_equal(config.problem.num_groups, 0);
    assert_int_equal(config.problem.topk_groups, 0);
    assert_int_equal(config.problem.shared_inter, 4096);
    assert_int_equal(config.problem.scaling_on, MOE_SCALING_NONE);
    assert_true(config.problem.routed_scaling == 0.0f);
    assert_true((config.problem.flags & MOE_PROBLEM_RENORMALIZE) == 0);
    assert_int_equal(config.problem.gate_up.dtype, MOE_DTYPE_FP16);
    assert_int_equal(config.problem.logits_dtype, MOE_DTYPE_FP32);
    moe_tree_destroy(tree);
}

/* Layers as a text: 'x' MoE, '.' dense. */
static void assert_layers(const char *text, const char *layers)
{
    struct moe_model_config config;
    struct moe_cli_error error;
    struct moe_tree *tree = read_config(text, &config, 0, &error);
    assert_true(config.num_layers >= (int64_t)strlen(layers));
    for (size_t i = 0; i < strlen(layers); ++i) {
        assert_int_equal(moe_model_config_is_moe_layer(&config, (int64_t)i), layers[i] == 'x');
    }
    const char *first = strchr(layers, 'x');
    assert_int_equal(moe_model_config_first_moe_layer(&config),
                     first != NULL ? first - layers : -1);
    moe_tree_destroy(tree);
}

static void moe_layers_follow_the_config(void **state)
{
    (void)state;
    assert_layers("{" MIXTRAL ",\"num_experts\":8}", "xxxx");
    assert_layers("{" QWEN3 "}", "xxxxxx");
    assert_layers("{" QWEN3 ",\"decoder_sparse_step\":2}", ".x.x.x");
    assert_layers("{" QWEN3 ",\"decoder_sparse_step\":3,\"mlp_only_layers\":[2]}", ".....x");
    assert_layers("{" QWEN3 ",\"mlp_only_layers\":[0,1,4]}", "..xx.x");
    assert_layers("{" QWEN3 ",\"mlp_only_layers\":[0,1,2,3,4,5]}", "......");
    assert_layers("{" DEEPSEEK "}", "...xxx");
    assert_layers("{" DEEPSEEK ",\"first_k_dense_replace\":1}", ".xxx");
    assert_layers("{" DEEPSEEK ",\"first_k_dense_replace\":1,\"moe_layer_freq\":2}", "..x.x.x");
    assert_layers("{" LLAMA4 "}", "xxxxxxxx");
    assert_layers("{" LLAMA4 ",\"interleave_moe_layer_step\":2}", ".x.x.x.x");
    assert_layers("{" LLAMA4 ",\"interleave_moe_layer_step\":2,\"moe_layers\":[0,5]}", "x....x..");
    assert_layers("{" STEP "}", "...xx");
    assert_layers("{" STEP ",\"moe_layers_enum\":\"0,3,4\"}", "x..xx");
    assert_layers("{" STEP ",\"moe_layers_enum\":\"2\"}", "..x..");
    assert_layers("{" STEP ",\"moe_layers_enum\":[1]}", ".x...");
    assert_layers("{" LLAMA4 ",\"interleave_moe_layer_step\":4,\"moe_layers\":null}", "...x...x");
}

static void kinds_of_layers_are_read(void **state)
{
    (void)state;
    assert_layers("{" NEMOTRON ",\"hybrid_override_pattern\":\"ME*E\"}", ".x.x");
    assert_layers("{" NEMOTRON ",\"layers_block_type\":[\"moe\",\"mamba\",\"attention\",\"moe\"]}",
                  "x..x");
    assert_layers("{" ERNIE ",\"moe_layer_start_index\":1,\"moe_layer_end_index\":4}", ".xxxx.");
    assert_layers("{" ERNIE ",\"moe_layer_start_index\":1,\"moe_layer_end_index\":-1,"
                  "\"moe_layer_interval\":2}",
                  ".x.x.x");
}

static void groups_follow_their_method(void **state)
{
    (void)state;
    struct moe_model_config config;
    struct moe_cli_error error;
    struct moe_tree *tree =
        read_config("{" DEEPSEEK_V2 ",\"topk_method\":\"greedy\"}", &config, 0, &error);
    assert_int_equal(config.problem.num_groups, 0);
    moe_tree_destroy(tree);
    tree = read_config("{" DEEPSEEK_V2 ",\"topk_method\":\"group_limited_greedy\"}", &config, 0,
                       &error);
    assert_int_equal(config.problem.num_groups, 8);
    assert_int_equal(config.problem.topk_groups, 3);
    assert_int_equal(config.problem.group_score, MOE_GROUP_SCORE_MAX);
    moe_tree_destroy(tree);
}

static void a_wrapped_text_model_is_read(void **state)
{
    (void)state;
    struct moe_model_config config;
    struct moe_cli_error error;
    struct moe_tree *tree = read_config("{\"model_type\":\"llama4\",\"hidden_size\":1,\"torch_"
                                        "dtype\":\"float32\",\"text_config\":{" LLAMA4 "}}",
                                        &config, 0, &error);
    assert_int_equal(config.problem.hidden, 64);
    assert_int_equal(config.problem.tokens.dtype, MOE_DTYPE_FP32);
    assert_string_equal(config.family->model_type, "llama4_text");
    moe_tree_destroy(tree);
    tree = read_config(
        "{\"model_type\":\"new_vision_model\",\"thinker_config\":{\"model_type\":\"thinker\","
        "\"text_config\":{" QWEN3 "}}}",
        &config, 0, &error);
    assert_int_equal(config.problem.num_experts, 8);
    assert_string_equal(config.family->model_type, "qwen3_moe");
    moe_tree_destroy(tree);
    assert_refused(
        "{\"model_type\":\"new_vision_model\",\"text_config\":{\"model_type\":\"bert\"}}",
        "model type 'new_vision_model' is not known");
    assert_refused(
        "{\"model_type\":\"new_vision_model\",\"text_config\":{\"model_type\":\"zaya\"}}",
        "'new_vision_model' cannot be run: its router is an MLP");
    assert_refused("{\"model_type\":\"llama4\"}", "'text_config' is missing");
    tree = read_config("{\"model_type\":\"nemo_speechlm\",\"text_config\":{" NEMOTRON
                       ",\"hybrid_override_pattern\":\"MEME\"}}",
                       &config, 0, &error);
    assert_string_equal(config.family->model_type, "nemotron_h");
    moe_tree_destroy(tree);
    assert_refused("{\"model_type\":\"llama4\",\"text_config\":3}", "'text_config' is missing");
}

/* Where the scaling factor goes, and how wide shared experts are that have a width of their own. */
static void scaling_and_shared_experts_have_their_places(void **state)
{
    (void)state;
    struct moe_model_config config;
    struct moe_cli_error error;
    static const char usual[] =
        "\"num_hidden_layers\":2,\"num_experts_per_tok\":2,\"hidden_size\":64,"
        "\"moe_intermediate_size\":32,\"hidden_act\":\"silu\",\"routed_scaling_factor\":2.5,"
        "\"mlp_layer_types\":[\"dense\",\"sparse\"]";
    static const struct {
        const char *own;
        int32_t scaling_on;
        int32_t shared_inter;
    } cases[] = {
        {"\"model_type\":\"beam\",\"num_experts\":8", MOE_SCALING_OUTPUT, 0},
        {"\"model_type\":\"deepseek_v32\",\"n_routed_experts\":8,\"n_group\":1,"
         "\"n_shared_experts\":3",
         MOE_SCALING_WEIGHTS, 96},
        {"\"model_type\":\"dots3_note_text\",\"n_routed_experts\":8,\"n_shared_experts\":3,"
         "\"shared_experts_intermediate_size\":40",
         MOE_SCALING_WEIGHTS, 120},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        char text[1024];
        snprintf(text, sizeof text, "{%s,%s}", usual, cases[i].own);
        struct moe_tree *tree = read_config(text, &config, 0, &error);
        assert_int_equal(config.problem.scaling_on, cases[i].scaling_on);
        assert_true(config.problem.routed_scaling == 2.5f);
        assert_int_equal(config.problem.shared_inter, cases[i].shared_inter);
        assert_int_equal(moe_model_config_first_moe_layer(&config), 1);
        moe_tree_destroy(tree);
    }
}

static void keys_of_objects_inside_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int32_t activation;
        uint32_t flags;
    } right[] = {
        {DBRX(""), MOE_ACTIVATION_SILU, MOE_PROBLEM_RENORMALIZE},
        {DBRX(",\"moe_normalize_expert_weights\":1"), MOE_ACTIVATION_SILU, MOE_PROBLEM_RENORMALIZE},
        {DBRX(",\"moe_normalize_expert_weights\":1.0,\"ffn_act_fn\":{\"name\":\"gelu\"}"),
         MOE_ACTIVATION_GELU, MOE_PROBLEM_RENORMALIZE},
        {DBRX(",\"moe_normalize_expert_weights\":null,\"ffn_act_fn\":null"), MOE_ACTIVATION_SILU,
         0},
    };
    struct moe_model_config config;
    struct moe_cli_error error;
    for (size_t i = 0; i < sizeof right / sizeof right[0]; ++i) {
        struct moe_tree *tree = read_config(right[i].text, &config, 0, &error);
        assert_int_equal(config.num_layers, 40);
        assert_int_equal(config.problem.hidden, 6144);
        assert_int_equal(config.problem.inter, 10752);
        assert_int_equal(config.problem.num_experts, 16);
        assert_int_equal(config.problem.top_k, 4);
        assert_int_equal(config.problem.activation, right[i].activation);
        assert_int_equal(config.problem.flags, right[i].flags);
        moe_tree_destroy(tree);
    }
    assert_refused(DBRX(",\"moe_normalize_expert_weights\":2"),
                   "'ffn_config.moe_normalize_expert_weights' is '2'; weights are divided by "
                   "their sum (1) or not at all (null)");
    assert_refused(DBRX(",\"moe_normalize_expert_weights\":{}"), "is '(a list or object)'");
    assert_refused(DBRX(",\"ffn_act_fn\":{\"name\":\"relu\"}"),
                   "ffn_config.ffn_act_fn.name 'relu' is not one of silu, ");
    assert_refused("{\"model_type\":\"dbrx\",\"n_layers\":40,\"d_model\":6144}",
                   "'ffn_config.moe_num_experts' is missing; a model of type 'dbrx' needs it");
    assert_refused("{\"model_type\":\"dbrx\",\"n_layers\":40,\"d_model\":6144,\"ffn_config\":[]}",
                   "'ffn_config.moe_num_experts' is missing");
}

/* Every type that the table refuses is refused in the words that say what does not fit. */
static void what_does_not_fit_is_said(void **state)
{
    (void)state;
    static const struct {
        const char *model_type;
        const char *reason;
    } refused[] = {
        {"deepseek_v4", "choose experts by a hash of the token"},
        {"doge", "its experts are single rows"},
        {"dots3_note_vision_encoder", "the part of a model that reads images"},
        {"glm5_next_text", "clamp gate and up before silu"},
        {"hy_v4", "clamp gate and up before silu"},
        {"hy_v4_vl_text", "clamp gate and up before silu"},
        {"inkling2_loop_text", "bound gate and up by a tanh"},
        {"inkling2_text", "bound gate and up by a tanh"},
        {"longcat_flash", "(identity experts)"},
        {"muse_spark_text", "(latent experts)"},
        {"nllb-moe", "a capacity of each expert"},
        {"switch_transformers", "a capacity of each expert"},
        {"vitpose_backbone", "single matrices"},
        {"zaya", "its router is an MLP"},
    };
    size_t num_refused = 0;
    for (size_t i = 0; moe_family_row(i) != NULL; ++i) {
        num_refused += moe_family_row(i)->refusal != NULL;
    }
    assert_int_equal(num_refused, sizeof refused / sizeof refused[0]);
    for (size_t i = 0; i < num_refused; ++i) {
        char text[128];
        char part[256];
        snprintf(text, sizeof text, "{\"model_type\":\"%s\"}", refused[i].model_type);
        snprintf(part, sizeof part, "a model of type '%s' cannot be run: ", refused[i].model_type);
        assert_refused(text, part);
        assert_refused(text, refused[i].reason);
    }
}

/* Experts that every token goes to, with a weight of its own, are experts like the others. */
static void appended_experts_are_counted(void **state)
{
    (void)state;
    struct moe_model_config config;
    struct moe_cli_error error;
    struct moe_tree *tree =
        read_config("{\"model_type\":\"inkling_mm_model\",\"text_config\":{\"num_hidden_layers\":2,"
                    "\"n_routed_experts\":8,\"num_experts_per_tok\":8,\"n_shared_experts\":3,"
                    "\"hidden_size\":64,\"moe_intermediate_size\":32,\"hidden_act\":\"silu\"}}",
                    &config, 0, &error);
    assert_int_equal(config.problem.num_experts, 11);
    assert_int_equal(config.problem.num_experts_global, 11);
    assert_int_equal(config.problem.top_k, 11);
    assert_int_equal(config.num_appended, 3);
    assert_int_equal(config.problem.shared_inter, 0);
    moe_tree_destroy(tree);
}

/* Numbers that a list has for the two kinds of tokens; the first is that of text. */
static void the_first_item_of_a_list_is_read(void **state)
{
    (void)state;
    static const char *const wrong[] = {"[]", "{}", "24", "null"};
    static const char usual[] =
        "\"model_type\":\"ernie4_5_vl_moe_text\",\"num_hidden_layers\":2,\"moe_num_experts\":8,"
        "\"moe_k\":2,\"hidden_size\":64,\"hidden_act\":\"silu\",\"moe_intermediate_size\":";
    struct moe_model_config config;
    struct moe_cli_error error;
    char text[512];
    snprintf(text, sizeof text, "{%s[48,16]}", usual);
    struct moe_tree *tree = read_config(text, &config, 0, &error);
    assert_int_equal(config.problem.inter, 48);
    assert_int_equal(config.problem.shared_inter, 96);
    moe_tree_destroy(tree);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        snprintf(text, sizeof text, "{%s%s}", usual, wrong[i]);
        assert_refused(text, "'moe_intermediate_size.0' is missing");
    }
}

/* Layers may be listed in one text, and those that clamp their activation are refused. */
static void limits_of_layers_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *lists;
        int64_t layer_idx;
        const char *part; /* of the sentence; NULL: the layer runs */
    } cases[] = {
        {"", 4, NULL},
        {",\"swiglu_limits\":null,\"swiglu_limits_shared\":[0,0,0,0.0,null]", 4, NULL},
        {",\"swiglu_limits\":[0,0,0,0,7.0]", 3, NULL},
        {",\"swiglu_limits\":[0,0,0,0,7.0]", 4,
         "layer 4 clamps gate and up around its activation ('swiglu_limits' is '7.0' there)"},
        {",\"swiglu_limits\":[0,0,0,0,0],\"swiglu_limits_shared\":[0,0,0,16,0]", 3,
         "('swiglu_limits_shared' is '16' there)"},
        {",\"swiglu_limits\":[0,0,0,[],0]", 3, "is '(a list or object)' there"},
        {",\"swiglu_limits\":[0,0,0,\"no\",0]", 3, "is 'no' there"},
        {",\"swiglu_limits\":[0,0,0,0]", 3, "does not have a number for each of the 5 layers"},
        {",\"swiglu_limits\":7", 3, "does not have a number for each of the 5 layers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
        struct moe_model_config config;
        struct moe_cli_error error;
        char text[512];
        snprintf(text, sizeof text, "{" STEP "%s}", cases[i].lists);
        struct moe_tree *tree = read_config(text, &config, 0, &error);
        error.message[0] = '\0';
        const int status = moe_model_layers_check_limits(&config, cases[i].layer_idx, &error);
        assert_int_equal(status, cases[i].part != NULL ? -1 : 0);
        fixture_assert_contains(error.message, cases[i].part != NULL ? cases[i].part : "");
        moe_tree_destroy(tree);
    }
}

static void an_unknown_type_names_the_known_ones(void **state)
{
    (void)state;
    static const char text[] = "{\"model_type\":\"qwen3_mo\"}";
    assert_refused(text, "model type 'qwen3_mo' is not known (did you mean 'qwen3_moe'?)");
    size_t num_rows = 0;
    for (; moe_family_row(num_rows) != NULL; ++num_rows) {
        if (moe_family_row(num_rows)->refusal == NULL) {
            assert_refused(text, moe_family_row(num_rows)->model_type);
        }
    }
    assert_true(num_rows >= 29);
    assert_refused("{\"model_type\":\"bert\"}",
                   "'bert' is not known; known are afmoe, aria_text, ");
    assert_refused("{}", "'model_type' is missing");
    assert_refused("{\"model_type\":3}", "'model_type' is missing or no string");
    assert_refused("{\"model_type\":[\"mixtral\"]}", "'model_type' is missing or no string");
}

static void wrong_keys_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *part;
    } wrong[] = {
        {"{" MIXTRAL "}",
         "'num_local_experts' or 'num_experts' is missing; a model of type 'mixtral'"},
        {"{" MIXTRAL ",\"num_experts\":\"8\"}", "1:145: 'num_experts' is not a number"},
        {"{" MIXTRAL ",\"num_experts\":8.5}", "'num_experts' is 8.5, not a whole number from 1"},
        {"{" MIXTRAL ",\"num_experts\":0}", "'num_experts' is 0, not a whole number from 1"},
        {"{" MIXTRAL ",\"num_experts\":1e300}", "'num_experts' is 1e+300, not a whole number"},
        {"{" MIXTRAL ",\"num_experts\":[8, 9]}", "'num_experts' differs between layers"},
        {"{" MIXTRAL ",\"num_experts\":[[8]]}", "'num_experts' is not a number"},
        {"{" MIXTRAL ",\"num_experts\":[]}", "'num_experts' is not a number"},
        {"{\"model_type\":\"longcat_flash\"}",
         "'longcat_flash' cannot be run: some of its experts"},
        {"{" NEMOTRON ",\"layers_block_type\":[\"moe\"]}",
         "'layers_block_type' does not name a kind for each of the 4 layers"},
        {"{" NEMOTRON ",\"moe_latent_size\":64}",
         "'moe_latent_size' is '64'; of type 'nemotron_h' only 'null' is known: otherwise its "
         "experts "
         "work in a projection of the tokens (latent experts)"},
        {"{" DEEPSEEK_V2 ",\"topk_method\":\"noaux_tc\"}",
         "of type 'deepseek_v2' only 'greedy' or 'group_limited_greedy' is known"},
        {"{" MIXTRAL ",\"num_experts\":1}",
         "'num_experts_per_tok' is 2, not a whole number from 1 to 1"},
        {"{" MIXTRAL ",\"num_experts\":8,\"dtype\":\"float8\"}",
         "dtype 'float8' is not one of bfloat16, float16, float32"},
        {"{" QWEN3 ",\"norm_topk_prob\":1}", "'norm_topk_prob' is not true or false"},
        {"{" QWEN3 ",\"mlp_only_layers\":3}", "'mlp_only_layers' is not a list of layer numbers"},
        {"{" QWEN3 ",\"mlp_only_layers\":[-3]}",
         "'mlp_only_layers' is not a list of layer numbers"},
        {"{" STEP ",\"moe_layers_enum\":\"3,,4\"}",
         "'moe_layers_enum' is not a list of layer numbers"},
        {"{" STEP ",\"moe_layers_enum\":\"3,\"}",
         "'moe_layers_enum' is not a list of layer numbers"},
        {"{" STEP ",\"moe_layers_enum\":\"\"}", "'moe_layers_enum' is not a list of layer numbers"},
        {"{" STEP ",\"moe_layers_enum\":\"3,99999999999999999999\"}",
         "'moe_layers_enum' is not a list of layer numbers"},
        {"{" STEP ",\"moe_layers_enum\":3}", "'moe_layers_enum' is not a list of layer numbers"},
        {"{" DEEPSEEK ",\"scoring_func\":\"softmax\"}",
         "'scoring_func' is 'softmax'; of type 'deepseek_v3' only 'sigmoid' is known"},
        {"{" DEEPSEEK ",\"n_group\":-1}", "'n_group' is -1, not a whole number from 0 to 256"},
        {"{" DEEPSEEK ",\"n_shared_experts\":1048576}", "shared experts of width 2048 are wider"},
        {"{\"model_type\":\"mixtral\",\"num_hidden_layers\":4,\"num_experts_per_tok\":2,"
         "\"num_experts\":8,\"hidden_size\":64,\"intermediate_size\":96}",
         "'hidden_act' is missing"},
        {"{\"model_type\":\"mixtral\",\"num_hidden_layers\":4,\"num_experts_per_tok\":2,"
         "\"num_experts\":8,\"hidden_size\":64,\"intermediate_size\":96,\"hidden_act\":\"mish\"}",
         "hidden_act 'mish' is not one of silu, "},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
        assert_refused(wrong[i].text, wrong[i].part);
    }
}

/* What the code takes for granted about rows. */
static void rows_are_complete(void **state)
{
    (void)state;
    const struct moe_family *before = NULL;
    for (size_t i = 0; moe_family_row(i) != NULL; ++i) {
        const struct moe_family *row = moe_family_row(i);
        assert_true(before == NULL || strcmp(before->model_type, row->model_type) < 0);
        before = row;
        const struct moe_family_value *const sizes[] = {&row->num_layers, &row->num_experts,
                                                        &row->top_k, &row->hidden, &row->inter};
        if (row->refusal != NULL) {
            continue;
        }
        for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; ++j) {
            const int follows = sizes[j] == &row->num_layers && row->layer_kinds != NULL;
            assert_true(sizes[j]->keys != NULL && (sizes[j]->is_mandatory || follows));
        }
        assert_true(row->layer_kinds == NULL || row->moe_kind != NULL);
        assert_int_equal(row->routing_is_given, row->gating == MOE_GATING_NONE);
        assert_true(row->activation_key != NULL || row->activation != 0);
        assert_int_equal(row->routing_is_given, row->router.weight == NULL);
        assert_non_null(row->down.weight);
        assert_true((row->gate_up.weight != NULL) != (row->up.weight != NULL));
        assert_true(!row->is_interleaved || row->gate_up.weight != NULL);
        const int has_appended = row->num_appended.keys != NULL;
        assert_true(!has_appended || row->routing_is_given);
        assert_int_equal(has_appended, row->gate_up.appended != NULL);
        assert_int_equal(has_appended, row->down.appended != NULL);
        const int may_be_shared = row->shared_inter.keys != NULL || row->shared_inter.value > 0 ||
                                  row->num_shared.keys != NULL || row->num_shared.value > 0;
        assert_int_equal(may_be_shared, row->shared_down != NULL);
        assert_true(!may_be_shared || (row->shared_up != NULL) != (row->shared_gate_up != NULL));
    }
}

static void alternatives_are_picked(void **state)
{
    (void)state;
    char text[8];
    assert_int_equal(moe_family_pick("ab|c", 0, text, sizeof text), 1);
    assert_string_equal(text, "ab");
    assert_int_equal(moe_family_pick("ab|c", 1, text, sizeof text), 1);
    assert_string_equal(text, "c");
    assert_int_equal(moe_family_pick("ab|c", 2, text, sizeof text), 0);
    assert_int_equal(moe_family_pick("12345678", 0, text, sizeof text), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_have_aliases_and_defaults),
        cmocka_unit_test(moe_layers_follow_the_config),
        cmocka_unit_test(kinds_of_layers_are_read),
        cmocka_unit_test(groups_follow_their_method),
        cmocka_unit_test(a_wrapped_text_model_is_read),
        cmocka_unit_test(scaling_and_shared_experts_have_their_places),
        cmocka_unit_test(keys_of_objects_inside_are_read),
        cmocka_unit_test(what_does_not_fit_is_said),
        cmocka_unit_test(appended_experts_are_counted),
        cmocka_unit_test(the_first_item_of_a_list_is_read),
        cmocka_unit_test(limits_of_layers_are_read),
        cmocka_unit_test(an_unknown_type_names_the_known_ones),
        cmocka_unit_test(wrong_keys_are_named),
        cmocka_unit_test(rows_are_complete),
        cmocka_unit_test(alternatives_are_picked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
