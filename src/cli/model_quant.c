/* SPDX-License-Identifier: Apache-2.0 */
#include "model_quant.h"

#include <inttypes.h>
#include <string.h>

#include "fp8_recipe.h"

static const char method_key[] = "quant_method";
static const char block_key[] = "weight_block_size";
static const char scheme_key[] = "activation_scheme";
static const char fp8_method[] = "fp8";

/* What methods of quantization store; others are only named. */
static const struct {
    const char *method;
    const char *meaning;
} others[] = {
    {"mxfp4", "4-bit floats with a power-of-two scale per 32"},
    {"gptq", "packed 2- to 8-bit integers with scales per group"},
    {"awq", "packed 4-bit integers with scales per group"},
    {"compressed-tensors", "a container of several integer and float formats"},
    {"bitsandbytes", "8-bit integers or 4-bit nf4 and fp4"},
    {"modelopt", "nvfp4, or fp8 with one scale per tensor"},
    {"fbgemm_fp8", "fp8 with a scale per output channel"},
    {"quark", "a container of several integer and float formats"},
    {"auto-round", "packed 2- to 8-bit integers with scales per group"},
    {"hqq", "packed 1- to 8-bit integers with scales and zero points"},
    {"torchao", "a container of several integer and float formats"},
};

static const char what_is_read[] =
    "read are unquantized weights, and quant_method 'fp8' with weight_block_size [128, 128]";

const struct moe_tree_node *moe_model_quant_find(const struct moe_tree_node *root,
                                                 const struct moe_tree_node *text)
{
    const struct moe_tree_node *node = moe_tree_find(text, "quantization_config");
    node = node != NULL ? node : moe_tree_find(root, "quantization_config");
    return node != NULL && !moe_tree_is_null(node) ? node : NULL;
}

const char *moe_model_quant_method(const struct moe_tree_node *quantization)
{
    const struct moe_tree_node *method = moe_tree_find(quantization, method_key);
    return method != NULL ? method->text : NULL;
}

int moe_model_quant_is_fp8(const struct moe_tree_node *quantization)
{
    const char *method = moe_model_quant_method(quantization);
    return method != NULL && strcmp(method, fp8_method) == 0;
}

static int refuse_method(const struct moe_tree_node *quantization, const char *path,
                         struct moe_cli_error *error)
{
    const char *method = moe_model_quant_method(quantization);
    if (method == NULL) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32
                            ": quantization_config has no %s, so what the weights are is not "
                            "known; %s",
                            path, quantization->line, quantization->column, method_key,
                            what_is_read);
    }
    const char *meaning = NULL;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; ++i) {
        meaning = strcmp(others[i].method, method) == 0 ? others[i].meaning : meaning;
    }
    return MOE_CLI_FAIL(error,
                        "%s:%" PRIu32 ":%" PRIu32
                        ": the weights are quantized by '%s'%s%s%s, which cannot be run; %s",
                        path, quantization->line, quantization->column, method,
                        meaning != NULL ? " (" : "", meaning != NULL ? meaning : "",
                        meaning != NULL ? ")" : "", what_is_read);
}

static int is_block(const struct moe_tree_node *node)
{
    int64_t size = 0;
    return moe_tree_to_int64(node, 0, INT64_MAX, &size) == 0 && size == MOE_FP8_BLOCK;
}

int moe_model_quant_check(const struct moe_tree_node *quantization, const char *path,
                          struct moe_cli_error *error)
{
    if (quantization == NULL) {
        return 0;
    }
    if (!moe_model_quant_is_fp8(quantization)) {
        return refuse_method(quantization, path, error);
    }
    const struct moe_tree_node *blocks = moe_tree_find(quantization, block_key);
    if (blocks == NULL || moe_tree_is_null(blocks)) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32
                            ": the weights are fp8 without %s, that is, with one scale per "
                            "tensor, which cannot be run; %s",
                            path, quantization->line, quantization->column, block_key,
                            what_is_read);
    }
    if (blocks->kind != MOE_NODE_SEQUENCE || blocks->num_children != 2 ||
        !is_block(&blocks->children[0]) || !is_block(&blocks->children[1])) {
        return MOE_CLI_FAIL(
            error, "%s:%" PRIu32 ":%" PRIu32 ": %s of fp8 weights is not [%d, %d]; %s", path,
            blocks->line, blocks->column, block_key, MOE_FP8_BLOCK, MOE_FP8_BLOCK, what_is_read);
    }
    const struct moe_tree_node *scheme = moe_tree_find(quantization, scheme_key);
    if (scheme != NULL && !moe_tree_is_null(scheme) && !moe_tree_is_text(scheme, "dynamic")) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32
                            ": %s '%s' is not 'dynamic': activations with scales from the "
                            "checkpoint cannot be run",
                            path, scheme->line, scheme->column, scheme_key,
                            scheme->text != NULL ? scheme->text : "(a list or object)");
    }
    return 0;
}
