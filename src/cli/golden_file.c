/* SPDX-License-Identifier: Apache-2.0 */
#include "golden_file.h"

#include "element.h"

#include <inttypes.h>
#include <string.h>

static const char *const kind_names[MOE_GOLDEN_NUM_KINDS] = {
#define KIND_NAME(constant, name, width, text) [constant] = name,
    MOE_GOLDEN_KINDS(KIND_NAME)
#undef KIND_NAME
};
static const char hidden_states_name[] = "hidden_states";

const char *moe_golden_kind_name(enum moe_golden_kind kind)
{
    return kind_names[kind];
}

static int64_t get_width(const struct moe_problem *problem, enum moe_golden_kind kind)
{
    const int64_t widths[MOE_GOLDEN_NUM_KINDS] = {
#define KIND_WIDTH(constant, name, width, text) [constant] = problem->width,
        MOE_GOLDEN_KINDS(KIND_WIDTH)
#undef KIND_WIDTH
    };
    return widths[kind];
}

static int check_shape(const char *path, const struct moe_safetensors_tensor *tensor,
                       int64_t num_tokens, int64_t width, struct moe_cli_error *error)
{
    const int64_t shape[2] = {num_tokens, width};
    if (tensor->rank == 2 && tensor->shape[0] == num_tokens && tensor->shape[1] == width) {
        return 0;
    }
    char has[MOE_SAFETENSORS_SHAPE_BYTES];
    char needs[MOE_SAFETENSORS_SHAPE_BYTES];
    return MOE_CLI_FAIL(
        error,
        "%s: tensor '%s' has shape %s; with %" PRId64 " tokens of this layer it has to be %s", path,
        tensor->name, moe_safetensors_format_shape(tensor->shape, tensor->rank, has, sizeof has),
        num_tokens, moe_safetensors_format_shape(shape, 2, needs, sizeof needs));
}

static int check_dtype(const char *path, const struct moe_safetensors_tensor *tensor, int is_ids,
                       struct moe_cli_error *error)
{
    if (is_ids) {
        return tensor->dtype == MOE_SAFETENSORS_I32 || tensor->dtype == MOE_SAFETENSORS_I64
                   ? 0
                   : MOE_CLI_FAIL(error, "%s: tensor '%s' is of type %s; ids are I32 or I64", path,
                                  tensor->name, tensor->dtype_name);
    }
    return moe_element_bytes(tensor->moe_dtype) > 1 /* not fp8: it would need scales */
               ? 0
               : MOE_CLI_FAIL(error, "%s: tensor '%s' is of type %s; read are F32, F16 and BF16",
                              path, tensor->name, tensor->dtype_name);
}

static int find_kind(const char *name)
{
    for (int kind = 0; kind < MOE_GOLDEN_NUM_KINDS; ++kind) {
        if (strcmp(kind_names[kind], name) == 0) {
            return kind;
        }
    }
    return -1;
}

static int refuse_unknown(const char *path, const char *name, struct moe_cli_error *error)
{
    moe_cli_error_set(error, "%s: tensor '%s' is not known; known are %s", path, name,
                      hidden_states_name);
    for (int kind = 0; kind < MOE_GOLDEN_NUM_KINDS; ++kind) {
        moe_cli_error_append(error, ", %s", kind_names[kind]);
    }
    return -1;
}

static int read_input(const char *path, const struct moe_problem *problem,
                      struct moe_golden_file *golden, struct moe_cli_error *error)
{
    const struct moe_safetensors_tensor *input =
        moe_safetensors_find(golden->file, hidden_states_name);
    if (input == NULL) {
        return MOE_CLI_FAIL(error, "%s: there is no tensor '%s' to feed the layer with", path,
                            hidden_states_name);
    }
    golden->hidden_states = input;
    golden->num_tokens = input->rank == 2 ? input->shape[0] : 0;
    if (input->rank == 2 && golden->num_tokens == 0) {
        return MOE_CLI_FAIL(error, "%s: tensor '%s' has no token", path, hidden_states_name);
    }
    if (check_shape(path, input, golden->num_tokens, problem->hidden, error) != 0) {
        return -1;
    }
    return check_dtype(path, input, 0, error);
}

static int read_expected(const char *path, const struct moe_problem *problem,
                         struct moe_golden_file *golden, struct moe_cli_error *error)
{
    int num_found = 0;
    for (size_t i = 0; i < moe_safetensors_num_tensors(golden->file); ++i) {
        const struct moe_safetensors_tensor *tensor = moe_safetensors_tensor(golden->file, i);
        if (tensor == golden->hidden_states) {
            continue;
        }
        const int kind = find_kind(tensor->name);
        if (kind < 0) {
            return refuse_unknown(path, tensor->name, error);
        }
        if (check_shape(path, tensor, golden->num_tokens,
                        get_width(problem, (enum moe_golden_kind)kind), error) != 0 ||
            check_dtype(path, tensor, kind == MOE_GOLDEN_TOPK_IDS, error) != 0) {
            return -1;
        }
        golden->tensors[kind] = tensor;
        num_found += 1;
    }
    if (num_found == 0) {
        return MOE_CLI_FAIL(error, "%s: it has no tensor to compare with", path);
    }
    if (golden->tensors[MOE_GOLDEN_TOPK_WEIGHTS] != NULL &&
        golden->tensors[MOE_GOLDEN_TOPK_IDS] == NULL) {
        return MOE_CLI_FAIL(error, "%s: topk_weights cannot be compared without topk_ids", path);
    }
    return 0;
}

int moe_golden_file_open(const char *path, const struct moe_problem *problem,
                         struct moe_golden_file *golden, struct moe_cli_error *error)
{
    memset(golden, 0, sizeof *golden);
    if (moe_safetensors_open(path, &golden->file, error) != 0) {
        return -1;
    }
    if (read_input(path, problem, golden, error) != 0 ||
        read_expected(path, problem, golden, error) != 0) {
        moe_golden_file_close(golden);
        return -1;
    }
    return 0;
}

void moe_golden_file_close(struct moe_golden_file *golden)
{
    moe_safetensors_close(golden->file);
    memset(golden, 0, sizeof *golden);
}

float moe_golden_file_load(const struct moe_safetensors_tensor *tensor, int64_t idx)
{
    return moe_element_load(tensor->data, tensor->moe_dtype, idx);
}

int64_t moe_golden_file_load_id(const struct moe_safetensors_tensor *tensor, int64_t idx)
{
    const unsigned char *data = tensor->data;
    if (tensor->dtype == MOE_SAFETENSORS_I64) {
        int64_t id;
        memcpy(&id, data + (size_t)idx * sizeof id, sizeof id);
        return id;
    }
    int32_t id;
    memcpy(&id, data + (size_t)idx * sizeof id, sizeof id);
    return id;
}
