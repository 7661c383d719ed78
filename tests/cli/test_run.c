/* SPDX-License-Identifier: Apache-2.0 */
/* moectl run: what it refuses, what a wrong golden file makes it say, and how much it reads. */
#define _GNU_SOURCE
#include "moectl_fixture.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "element.h"
#include "family.h"
#include "golden_file.h"

static struct fixture_folder folder;
static char model_path[FIXTURE_PATH_BYTES];  /* a good model */
static char golden_file[FIXTURE_PATH_BYTES]; /* and its golden file */
static char copy_path[FIXTURE_PATH_BYTES];   /* where a test writes its own golden file */

static int set_up(void **state)
{
    (void)state;
    fixture_create(&folder);
    golden_path("qwen2_moe", "", model_path);
    golden_path("qwen2_moe", "golden.safetensors", golden_file);
    fixture_join(&folder, "golden.safetensors", copy_path);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    fixture_destroy(&folder);
    return 0;
}

static struct moe_safetensors *open_file(const char *path)
{
    struct moe_safetensors *file = NULL;
    struct moe_cli_error error = {.message = ""};
    if (moe_safetensors_open(path, &file, &error) != 0) {
        fail_msg("%s", error.message);
    }
    return file;
}

static void refuses_wrong_options(void **state)
{
    (void)state;
    EXPECT_REFUSED("--model DIR is missing", "run");
    EXPECT_REFUSED("'0' is not a whole number from 1", "run", "--model", model_path, "--tokens",
                   "0");
    EXPECT_REFUSED("unknown option '--modle' (did you mean --model?)", "run", "--modle", "x");
    EXPECT_REFUSED("/there/is/none", "run", "--model", "/there/is/none");
    EXPECT_REFUSED("there is no layer 1; the model has 0 to 0", "run", "--model", model_path,
                   "--layer", "1");
    EXPECT_REFUSED("/there/is/none.safetensors", "run", "--model", model_path, "--check",
                   "/there/is/none.safetensors");
    EXPECT_REFUSED("--tokens 75: ", "run", "--model", model_path, "--check", golden_file,
                   "--tokens", "75");
    EXPECT_REFUSED("--tp 3: the inter of 40 channels does not divide by it", "run", "--model",
                   model_path, "--tp", "3");
    EXPECT_REFUSED("--tp 5: the shared inter of 88 channels does not divide by it", "run",
                   "--model", model_path, "--tp", "5");
    EXPECT_REFUSED("--ep 61: the layer has only 60 experts", "run", "--model", model_path, "--ep",
                   "61");
    EXPECT_REFUSED("/there/is/none.yaml: error[io]", "run", "--model", model_path, "--config",
                   "/there/is/none.yaml");
}

static void refuses_backends_that_are_not_here(void **state)
{
    (void)state;
    struct moe_support_moectl result;
    moe_support_moectl_run(ARGUMENTS("run", "--model", model_path, "--backend", "cuda"), &result);
    assert_int_equal(result.exit_status, 2);
    fixture_assert_contains(result.err, "moectl run: ");
    moe_support_moectl_finish(&result);
}

static void refuses_unknown_families(void **state)
{
    (void)state;
    fixture_write_text(&folder, "config.json", "{\"model_type\": \"bloom\"}");
    EXPECT_REFUSED("'bloom'", "run", "--model", folder.path);
    EXPECT_REFUSED("gpt_oss, granitemoe", "run", "--model", folder.path);
}

static void tells_its_families(void **state)
{
    (void)state;
    const struct moe_family *family;
    for (size_t i = 0; (family = moe_family_row(i)) != NULL; ++i) {
        if (family->refusal == NULL) {
            EXPECT_RUN(family->model_type, "run", "--help");
        }
    }
    struct moe_support_moectl help;
    moe_support_moectl_run(ARGUMENTS("run", "--help"), &help);
    assert_null(strstr(help.out, "longcat_flash"));
    const char *given = strstr(help.out, "none of the gating rules");
    assert_non_null(given);
    for (size_t i = 0; (family = moe_family_row(i)) != NULL; ++i) {
        if (family->refusal == NULL) { /* each in a line of the first list, some in the second */
            assert_int_equal(strstr(given, family->model_type) != NULL, family->routing_is_given);
        }
    }
    moe_support_moectl_finish(&help);
}

/* The table of a run names the operations of the layer, and none that only single calls use. */
static void tells_what_ran(void **state)
{
    (void)state;
    static const char *const ran[] = {"router", "gating", "ep_preprocess",
                                      "gemm1",  "gemm2",  "post_reorder"};
    static const char *const did_not_run[] = {"align_block_size", "pre_reorder", "activation ",
                                              "sum_reduce"};
    struct moe_support_moectl result;
    moe_support_moectl_run(ARGUMENTS("run", "--model", model_path), &result);
    assert_int_equal(result.exit_status, 0);
    for (size_t i = 0; i < sizeof ran / sizeof ran[0]; ++i) {
        char line[32];
        snprintf(line, sizeof line, "\n%s ", ran[i]);
        assert_non_null(strstr(result.out, line));
    }
    for (size_t i = 0; i < sizeof did_not_run / sizeof did_not_run[0]; ++i) {
        assert_null(strstr(result.out, did_not_run[i]));
    }
    moe_support_moectl_finish(&result);
}

static void runs_random_tokens(void **state)
{
    (void)state;
    struct moe_support_moectl first;
    struct moe_support_moectl second;
    EXPECT_RUN("32 random ones, seed 0", "run", "--model", model_path);
    EXPECT_RUN("5 random ones, seed 7", "run", "--model", model_path, "--tokens", "5", "--seed",
               "7");
    EXPECT_JSON(0, "\"seed\": 3", "run", "--model", model_path, "--json", "--seed", "3");
    moe_support_moectl_run(ARGUMENTS("run", "--model", model_path, "--seed", "1"), &first);
    moe_support_moectl_run(ARGUMENTS("run", "--model", model_path, "--seed", "2"), &second);
    const char *digest = strstr(first.out, "digest ");
    assert_non_null(digest);
    assert_non_null(strstr(second.out, "digest "));
    char line[32];
    snprintf(line, sizeof line, "%.23s", digest);
    assert_null(strstr(second.out, line));
    moe_support_moectl_finish(&first);
    moe_support_moectl_finish(&second);
}

/* ---- golden files that are wrong ---- */

/* Writes a copy of the golden file in which element `idx` of a tensor is another one. */
static void write_corrupted(const char *name, int64_t idx)
{
    struct moe_safetensors *file = open_file(golden_file);
    const struct moe_safetensors_tensor *tensor = moe_safetensors_find(file, name);
    assert_non_null(tensor);
    size_t num_bytes;
    unsigned char *bytes = fixture_read(golden_file, &num_bytes);
    unsigned char *data = memmem(bytes, num_bytes, tensor->data, tensor->data_bytes);
    assert_non_null(data);
    if (tensor->moe_dtype != 0) {
        moe_element_store(data, tensor->moe_dtype, idx,
                          8.0f + 2.0f * moe_element_load(data, tensor->moe_dtype, idx));
    } else {
        int32_t id;
        memcpy(&id, data + idx * 4, sizeof id);
        id = (id + 1) % 60;
        memcpy(data + idx * 4, &id, sizeof id);
    }
    fixture_write(copy_path, bytes, num_bytes);
    free(bytes);
    moe_safetensors_close(file);
}

/* Fails unless the line of tensor `name` ends with the verdict. */
static void expect_verdict(const char *out, const char *name, const char *verdict)
{
    char start[64];
    snprintf(start, sizeof start, "\n%s ", name);
    const char *line = strstr(out, start);
    assert_non_null(line);
    const char *end = strchr(line + 1, '\n');
    assert_non_null(end);
    const size_t length = strlen(verdict);
    if ((size_t)(end - line) < length || memcmp(end - length, verdict, length) != 0) {
        fail_msg("%s is not %s:\n%s", name, verdict, out);
    }
}

static void one_wrong_element_is_found(void **state)
{
    (void)state;
    static const char *const names[] = {"router_logits", "topk_ids", "topk_weights",
                                        "experts_output", "block_output"};
    enum { num_names = sizeof names / sizeof names[0] };
    for (size_t i = 0; i < num_names; ++i) {
        write_corrupted(names[i], 3);
        struct moe_support_moectl result;
        moe_support_moectl_run(
            ARGUMENTS("run", "--model", model_path, "--check", copy_path, "--tokens", "20"),
            &result);
        assert_int_equal(result.exit_status, 1);
        for (size_t j = 0; j < num_names; ++j) {
            expect_verdict(result.out, names[j], i == j ? "wrong" : "right");
        }
        moe_support_moectl_finish(&result);
        EXPECT_JSON(1, "\"right\": false", "run", "--json", "--model", model_path, "--check",
                    copy_path, "--tokens", "20");
    }
}

static void other_input_gives_other_output(void **state)
{
    (void)state;
    write_corrupted("hidden_states", 5);
    struct moe_support_moectl result;
    moe_support_moectl_run(ARGUMENTS("run", "--model", model_path, "--check", copy_path), &result);
    assert_int_equal(result.exit_status, 1);
    expect_verdict(result.out, "router_logits", "wrong");
    expect_verdict(result.out, "block_output", "wrong");
    moe_support_moectl_finish(&result);
}

static int keep_named(void *self, const char *name)
{
    const char *const *names = self;
    for (size_t i = 0; names[i] != NULL; ++i) {
        if (strcmp(names[i], name) == 0) {
            return 1;
        }
    }
    return 0;
}

static void write_part(const char *const *names, const char *prefix)
{
    struct moe_safetensors *file = open_file(golden_file);
    fixture_copy_tensors(copy_path, file, keep_named, (void *)(uintptr_t)names, "", prefix, 0);
    moe_safetensors_close(file);
}

static void golden_files_with_less(void **state)
{
    (void)state;
    write_part(ARGUMENTS("hidden_states", "block_output"), "");
    EXPECT_RUN("topk_ids          not in the file", "run", "--model", model_path, "--check",
               copy_path);
    EXPECT_JSON(0, "\"compared\": false", "run", "--json", "--model", model_path, "--check",
                copy_path);
    write_part(ARGUMENTS("hidden_states"), "");
    EXPECT_REFUSED("it has no tensor to compare with", "run", "--model", model_path, "--check",
                   copy_path);
    write_part(ARGUMENTS("block_output"), "");
    EXPECT_REFUSED("there is no tensor 'hidden_states'", "run", "--model", model_path, "--check",
                   copy_path);
    write_part(ARGUMENTS("hidden_states", "topk_weights"), "");
    EXPECT_REFUSED("topk_weights cannot be compared without topk_ids", "run", "--model", model_path,
                   "--check", copy_path);
}

/* A family whose router is none of ours takes its routing from the file, or makes one up. */
static void routing_is_given(void **state)
{
    (void)state;
    static const char family[] = "gemma4_text";
    char model[FIXTURE_PATH_BYTES], golden[FIXTURE_PATH_BYTES];
    golden_path(family, "", model);
    golden_path(family, "golden.safetensors", golden);
    EXPECT_RUN("topk_ids          given to the layer, not compared", "run", "--model", model,
               "--check", golden);
    EXPECT_RUN("root mean square", "run", "--model", model, "--tokens", "41", "--seed", "7");
    struct moe_safetensors *file = open_file(golden);
    const char *const *without_ids = ARGUMENTS("hidden_states", "experts_output");
    fixture_copy_tensors(copy_path, file, keep_named, (void *)(uintptr_t)without_ids, "", "", 0);
    moe_safetensors_close(file);
    EXPECT_REFUSED("it has no topk_ids and topk_weights; a layer of type 'gemma4_text' takes its "
                   "routing from them",
                   "run", "--model", model, "--check", copy_path);
}

static void golden_files_of_something_else(void **state)
{
    (void)state;
    char other[FIXTURE_PATH_BYTES];
    golden_path("mixtral", "golden.safetensors", other);
    EXPECT_REFUSED("tensor 'hidden_states' has shape [74, 128]; with 74 tokens of this layer it "
                   "has to be [74, 80]",
                   "run", "--model", model_path, "--check", other);
    golden_path("qwen2_moe", "model.safetensors", other);
    EXPECT_REFUSED("there is no tensor 'hidden_states'", "run", "--model", model_path, "--check",
                   other);
    golden_path("qwen2_moe", "config.json", other);
    EXPECT_REFUSED("config.json", "run", "--model", model_path, "--check", other);
    fixture_write_raw(
        copy_path,
        "{\"hidden_states\":{\"dtype\":\"BF16\",\"shape\":[1,80],\"data_offsets\":[0,"
        "160]},\"logits\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[160,164]}"
        "}",
        164);
    EXPECT_REFUSED("tensor 'logits' is not known; known are hidden_states, router_logits", "run",
                   "--model", model_path, "--check", copy_path);
}

/* ---- how much is read ---- */

enum { hole_gib = 6, most_resident_mib = 256 };

/* The layer, and behind it a tensor of a layer 1 that no disk holds. */
static void write_large_checkpoint(const char *path)
{
    struct moe_safetensors *source = open_golden("qwen2_moe");
    char *header = NULL;
    size_t header_bytes = 0;
    FILE *text = open_memstream(&header, &header_bytes);
    assert_non_null(text);
    uint64_t at = 0;
    for (size_t i = 0; i < moe_safetensors_num_tensors(source); ++i) {
        const struct moe_safetensors_tensor *tensor = moe_safetensors_tensor(source, i);
        char shape[MOE_SAFETENSORS_SHAPE_BYTES];
        moe_safetensors_format_shape(tensor->shape, tensor->rank, shape, sizeof shape);
        fprintf(text,
                "%c\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64
                "]}",
                i == 0 ? '{' : ',', tensor->name, tensor->dtype_name, shape, at,
                at + tensor->data_bytes);
        at += tensor->data_bytes;
    }
    const uint64_t hole = (uint64_t)hole_gib << 30;
    fprintf(text,
            ",\"model.layers.1.mlp.experts.0.up_proj.weight\":{\"dtype\":\"U8\",\"shape\":[%" PRIu64
            "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}}",
            hole, at, at + hole);
    fclose(text);
    text = fopen(path, "wb");
    assert_non_null(text);
    const size_t padding = (8 - header_bytes % 8) % 8;
    unsigned char length[8];
    fixture_put_length(length, header_bytes + padding);
    fwrite(length, 1, sizeof length, text);
    fprintf(text, "%s%*s", header, (int)padding, "");
    for (size_t i = 0; i < moe_safetensors_num_tensors(source); ++i) {
        const struct moe_safetensors_tensor *tensor = moe_safetensors_tensor(source, i);
        fwrite(tensor->data, 1, tensor->data_bytes, text);
    }
    assert_int_equal(fclose(text), 0);
    assert_int_equal(truncate(path, (off_t)(8 + header_bytes + padding + at + hole)), 0);
    free(header);
    moe_safetensors_close(source);
}

static void reads_only_the_layer(void **state)
{
    (void)state;
    char path[FIXTURE_PATH_BYTES];
    fixture_join(&folder, "model.safetensors", path);
    copy_config(&folder, "qwen2_moe");
    write_large_checkpoint(path);
    EXPECT_RUN("right", "run", "--model", folder.path, "--check", golden_file);
    if (!MOE_TEST_SANITIZED) { /* a sanitizer has memory of its own */
        struct rusage usage;   /* of the largest child so far */
        assert_int_equal(getrusage(RUSAGE_CHILDREN, &usage), 0);
        assert_in_range(usage.ru_maxrss, 1, most_resident_mib * 1024);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_wrong_options),
        cmocka_unit_test(refuses_backends_that_are_not_here),
        cmocka_unit_test(refuses_unknown_families),
        cmocka_unit_test(tells_its_families),
        cmocka_unit_test(tells_what_ran),
        cmocka_unit_test(runs_random_tokens),
        cmocka_unit_test(one_wrong_element_is_found),
        cmocka_unit_test(other_input_gives_other_output),
        cmocka_unit_test(golden_files_with_less),
        cmocka_unit_test(routing_is_given),
        cmocka_unit_test(golden_files_of_something_else),
        cmocka_unit_test(reads_only_the_layer),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
