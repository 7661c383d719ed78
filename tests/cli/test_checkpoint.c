/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoint folders: shards, other names and prefixes, and sentences about what is wrong. */
#define _GNU_SOURCE
#include "cli_golden.h"

#include "checkpoint.h"

static struct fixture_folder folder;

static int set_up(void **state)
{
    (void)state;
    fixture_create(&folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_destroy(&folder);
    return 0;
}

static void assert_refused(int64_t layer_idx, const char *part)
{
    struct moe_checkpoint_layer layer;
    struct moe_cli_error error = {.message = ""};
    assert_int_equal(moe_checkpoint_layer_open(folder.path, layer_idx, &layer, &error), -1);
    fixture_assert_contains(error.message, part);
    fixture_assert_contains(error.message, folder.path);
    assert_null(layer.memory);
}

struct third {
    size_t idx;
};

/* A third of the tensors, decided by the sum of the bytes of the name. */
static size_t pick_third(const char *name)
{
    size_t sum = 0;
    for (; *name != '\0'; ++name) {
        sum += (unsigned char)*name;
    }
    return sum % 3;
}

static int keep_third(void *self, const char *name)
{
    const struct third *third = self;
    return pick_third(name) == third->idx;
}

static void write_index(const struct moe_safetensors *source, const char *format)
{
    char path[FIXTURE_PATH_BYTES];
    fixture_join(&folder, "model.safetensors.index.json", path);
    FILE *index = fopen(path, "w");
    assert_non_null(index);
    fprintf(index, "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"lm_head.weight\":\"model-9."
                   "safetensors\"");
    for (size_t i = 0; i < moe_safetensors_num_tensors(source); ++i) {
        const char *name = moe_safetensors_tensor(source, i)->name;
        fprintf(index, ",\"%s\":\"%s%zu.safetensors\"", name, format, pick_third(name) + 1);
    }
    fprintf(index, "}}");
    assert_int_equal(fclose(index), 0);
}

static void write_shards(const struct moe_safetensors *source)
{
    for (size_t i = 0; i < 3; ++i) {
        char name[32];
        char path[FIXTURE_PATH_BYTES];
        struct third third = {i};
        snprintf(name, sizeof name, "model-%zu.safetensors", i + 1);
        fixture_join(&folder, name, path);
        fixture_copy_tensors(path, source, keep_third, &third, "", "", 0);
    }
}

static void shards_are_joined(void **state)
{
    (void)state;
    const struct golden *golden = &goldens[5];
    struct moe_safetensors *source = open_golden(golden->family);
    copy_config(&folder, golden->family);
    write_shards(source);
    write_index(source, "model-");
    /* A shard that the layer does not need is not looked at, so it may be broken. */
    fixture_write_text(&folder, "model-9.safetensors", "broken");
    struct moe_checkpoint_layer layer;
    open_layer(folder.path, -1, &layer);
    for (size_t i = 0; i < num_layouts; ++i) {
        if (strcmp(layouts[i].family, golden->family) == 0) {
            check_layout(golden, &layouts[i], source, &layer.weights);
        }
    }
    moe_checkpoint_layer_close(&layer);

    struct moe_checkpoint *checkpoint;
    struct moe_cli_error error = {.message = ""};
    const struct moe_safetensors_tensor *tensor;
    const char *path;
    assert_int_equal(moe_checkpoint_open(folder.path, &checkpoint, &error), 0);
    assert_int_equal(moe_checkpoint_find(checkpoint, "no.such", &tensor, &path, &error), 0);
    assert_int_equal(moe_checkpoint_find(checkpoint, "lm_head.weight", &tensor, &path, &error), -1);
    fixture_assert_contains(error.message, "model-9.safetensors");
    moe_checkpoint_close(checkpoint);
    moe_safetensors_close(source);
}

static void bad_indexes_are_refused(void **state)
{
    (void)state;
    struct moe_safetensors *source = open_golden("qwen2_moe");
    copy_config(&folder, "qwen2_moe");
    write_shards(source);
    write_index(source, "shard-");
    assert_refused(-1, "cannot open");
    write_index(source, "../model-");
    assert_refused(-1, "is not the name of a *.safetensors file in the same folder");
    /* The index sends everything to shard 1, which has a third of it. */
    char path[FIXTURE_PATH_BYTES];
    fixture_join(&folder, "model-1.safetensors", path);
    write_index(source, "model-");
    fixture_write_raw(path, "{}", 0);
    assert_refused(-1, "where the index has it");
    fixture_write_text(&folder, "model.safetensors.index.json", "{\"weight_map\":[]}");
    assert_refused(-1, "'weight_map' is missing or no object");
    fixture_write_text(&folder, "model.safetensors.index.json", "{}");
    assert_refused(-1, "'weight_map' is missing or no object");
    fixture_write_text(&folder, "model.safetensors.index.json", "[");
    assert_refused(-1, "model.safetensors.index.json:1:");
    fixture_write_text(&folder, "model.safetensors.index.json",
                       "{\"weight_map\":{\"model.layers.0.mlp.gate.weight\":7}}");
    assert_refused(-1, "is not the name of a *.safetensors file");
    moe_safetensors_close(source);
}

static void a_single_file_of_any_name_is_found(void **state)
{
    (void)state;
    struct moe_safetensors *source = open_golden("mixtral");
    copy_config(&folder, "mixtral");
    assert_refused(-1, "has 0 *.safetensors files");
    char path[FIXTURE_PATH_BYTES];
    fixture_join(&folder, "weights.safetensors", path);
    fixture_copy_tensors(path, source, NULL, NULL, "", "", 0);
    struct moe_checkpoint_layer layer;
    open_layer(folder.path, 0, &layer);
    assert_int_equal(layer.problem.num_experts, 8);
    moe_checkpoint_layer_close(&layer);
    fixture_write_text(&folder, "other.safetensors", "");
    assert_refused(-1, "has 2 *.safetensors files");
    moe_safetensors_close(source);
}

/* A multimodal folder: text_config, other prefixes, and a layer that is not the first. */
static void a_wrapped_model_is_opened(void **state)
{
    (void)state;
    static const char *const prefixes[] = {"language_model.model.layers.3.",
                                           "model.language_model.layers.3.", "model.layers.3."};
    struct moe_safetensors *source = open_golden("llama4_text");
    fixture_write_text(&folder, "config.json",
                       "{\"model_type\":\"llama4\",\"text_config\":{\"model_type\":\"llama4_text\","
                       "\"num_hidden_layers\":4,\"num_experts_per_tok\":1,\"num_local_experts\":8,"
                       "\"hidden_size\":96,\"intermediate_size\":64,\"hidden_act\":\"silu\","
                       "\"interleave_moe_layer_step\":2,\"dtype\":\"bfloat16\"}}");
    char path[FIXTURE_PATH_BYTES];
    fixture_join(&folder, "model.safetensors", path);
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; ++i) {
        fixture_copy_tensors(path, source, NULL, NULL, "model.layers.0.", prefixes[i], 0);
        struct moe_checkpoint_layer layer;
        open_layer(folder.path, 3, &layer);
        assert_int_equal(layer.layer_idx, 3);
        assert_int_equal(layer.num_layers, 4);
        for (size_t j = 0; j < num_layouts; ++j) {
            if (strcmp(layouts[j].family, "llama4_text") == 0) {
                check_layout(&goldens[2], &layouts[j], source, &layer.weights);
            }
        }
        moe_checkpoint_layer_close(&layer);
    }
    assert_refused(0, "layer 0 is dense; the first MoE layer of this model is 1");
    assert_refused(4, "there is no layer 4; the model has 0 to 3");
    assert_refused(-2, "there is no layer -2");
    assert_refused(1, "there is no tensor 'model.layers.1.feed_forward.router.weight'; layer 1 of "
                      "a model of type "
                      "'llama4_text' needs it");
    assert_refused(1, "language_model.model.layers.{layer}.");
    moe_safetensors_close(source);
}

/* ---- what is wrong with a folder ---- */

static int keep_all_but(void *self, const char *name)
{
    return strcmp(name, self) != 0;
}

static void missing_tensors_are_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < num_goldens; ++i) {
        struct moe_safetensors *source = open_golden(goldens[i].family);
        copy_config(&folder, goldens[i].family);
        char path[FIXTURE_PATH_BYTES];
        fixture_join(&folder, "model.safetensors", path);
        const size_t num_tensors = moe_safetensors_num_tensors(source);
        /* Each of the few; a sample of the many. */
        const size_t step = num_tensors > 12 ? 17 : 1;
        for (size_t j = 0; j < num_tensors; j += step) {
            char name[128];
            snprintf(name, sizeof name, "%s", moe_safetensors_tensor(source, j)->name);
            fixture_copy_tensors(path, source, keep_all_but, name, "", "", 0);
            char part[160];
            snprintf(part, sizeof part, "there is no tensor '%s'", name);
            assert_refused(-1, part);
        }
        moe_safetensors_close(source);
    }
}

static void wrong_tensors_are_refused(void **state)
{
    (void)state;
    struct moe_safetensors *source = open_golden("mixtral");
    char path[FIXTURE_PATH_BYTES];
    fixture_join(&folder, "model.safetensors", path);
    fixture_copy_tensors(path, source, NULL, NULL, "", "", 0);
    fixture_write_text(
        &folder, "config.json",
        "{\"model_type\":\"mixtral\",\"num_hidden_layers\":1,\"num_experts_per_tok\":2,"
        "\"num_local_experts\":8,\"hidden_size\":128,\"intermediate_size\":100,"
        "\"hidden_act\":\"silu\"}");
    assert_refused(-1, "experts.0.w1.weight' has shape [112, 128]; by ");
    assert_refused(-1, "it has to be [100, 128]");
    copy_config(&folder, "mixtral");
    fixture_copy_tensors(path, source, NULL, NULL, "", "", 1);
    assert_refused(-1, "is not aligned to its elements of 2 bytes");
    moe_safetensors_close(source);

    fixture_write_text(
        &folder, "config.json",
        "{\"model_type\":\"mixtral\",\"num_hidden_layers\":1,\"num_experts_per_tok\":1,"
        "\"num_local_experts\":1,\"hidden_size\":2,\"intermediate_size\":2,"
        "\"hidden_act\":\"silu\"}");
    static const char header[] =
        "{\"model.layers.0.block_sparse_moe.gate.weight\":{\"dtype\":\"BF16\",\"shape\":[1,2],"
        "\"data_offsets\":[0,4]},"
        "\"model.layers.0.block_sparse_moe.experts.0.w1.weight\":{\"dtype\":\"%s\",\"shape\":[2,2],"
        "\"data_offsets\":[4,%d]}}%*s";
    char text[512];
    snprintf(text, sizeof text, header, "F8_E4M3", 8, 0, "");
    fixture_write_raw(path, text, 8);
    assert_refused(-1, "experts.0.w1.weight' is of type F8_E4M3; read are F32, F16 and BF16");
    snprintf(text, sizeof text, header, "Q9", 8, 0, "");
    fixture_write_raw(path, text, 8);
    assert_refused(-1, "is of type Q9");
    int padding = 0;
    do {
        snprintf(text, sizeof text, header, "F16", 12, padding++, "");
    } while (strlen(text) % 8 != 0);
    fixture_write_raw(path, text, 12);
    assert_refused(-1, "there is no tensor 'model.layers.0.block_sparse_moe.experts.0.w3.weight'");
}

static void wrong_folders_are_refused(void **state)
{
    (void)state;
    assert_refused(-1, "config.json: cannot open");
    fixture_write_text(&folder, "config.json", "{\"model_type\":\"gpt9\"}");
    assert_refused(-1, "model type 'gpt9' is not known; known are afmoe, aria_text, "
                       "axk1, axk2, bailing_hybrid");
    fixture_write_text(&folder, "config.json", "{'model_type':1}");
    assert_refused(-1, "config.json:1:2");
    fixture_write_text(&folder, "config.json", "[]");
    assert_refused(-1, "config.json: not a JSON object");
    fixture_write_text(
        &folder, "config.json",
        "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":2,\"num_experts_per_tok\":2,"
        "\"num_experts\":8,\"hidden_size\":64,\"moe_intermediate_size\":96,"
        "\"hidden_act\":\"silu\",\"mlp_only_layers\":[0,1]}");
    assert_refused(-1, "none of its 2 layers is a MoE layer");
    moe_checkpoint_close(NULL);
    struct moe_checkpoint_layer layer = {.memory = NULL};
    moe_checkpoint_layer_close(&layer);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(shards_are_joined),
        TEST(bad_indexes_are_refused),
        TEST(a_single_file_of_any_name_is_found),
        TEST(a_wrapped_model_is_opened),
        TEST(missing_tensors_are_named),
        TEST(wrong_tensors_are_refused),
        TEST(wrong_folders_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
