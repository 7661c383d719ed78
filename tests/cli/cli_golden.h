/* SPDX-License-Identifier: Apache-2.0 */
/* The golden layers as this suite knows them: their numbers, and where each element lies in the
 * published tensors; written down here and not taken from the table of families. */
#ifndef MOE_TESTS_CLI_GOLDEN_H
#define MOE_TESTS_CLI_GOLDEN_H

#include "cli_fixture.h"

#include "checkpoint_layer.h"
#include "moe_plugin.h"

struct golden {
    const char *family;
    int32_t num_experts, top_k, hidden, inter, shared_inter;
    int32_t gating;
    uint32_t flags;
    int32_t activation;
    int32_t num_groups, topk_groups, group_score;
    float routed_scaling;
    int32_t logits_dtype;
    float act_alpha, act_limit;
};

static const struct golden goldens[] = {
    {.family = "deepseek_v3",
     .num_experts = 64,
     .top_k = 8,
     .hidden = 96,
     .inter = 32,
     .shared_inter = 32,
     .gating = MOE_GATING_SIGMOID,
     .flags = MOE_PROBLEM_RENORMALIZE | MOE_PROBLEM_CORRECTION_BIAS,
     .activation = MOE_ACTIVATION_SILU,
     .num_groups = 8,
     .topk_groups = 4,
     .group_score = MOE_GROUP_SCORE_TOP2_SUM,
     .routed_scaling = 2.5f,
     .logits_dtype = MOE_DTYPE_FP32},
    {.family = "gpt_oss",
     .num_experts = 16,
     .top_k = 4,
     .hidden = 96,
     .inter = 80,
     .gating = MOE_GATING_TOPK_SOFTMAX,
     .flags = MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS | MOE_PROBLEM_ROUTER_BIAS,
     .activation = MOE_ACTIVATION_SWIGLU_OAI,
     .logits_dtype = MOE_DTYPE_BF16,
     .act_alpha = 1.702f,
     .act_limit = 7.0f},
    {.family = "llama4_text",
     .num_experts = 8,
     .top_k = 1,
     .hidden = 96,
     .inter = 64,
     .shared_inter = 64,
     .gating = MOE_GATING_LLAMA4,
     .flags = MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT,
     .activation = MOE_ACTIVATION_SILU,
     .logits_dtype = MOE_DTYPE_BF16},
    {.family = "mixtral",
     .num_experts = 8,
     .top_k = 2,
     .hidden = 128,
     .inter = 112,
     .gating = MOE_GATING_SOFTMAX,
     .flags = MOE_PROBLEM_RENORMALIZE,
     .activation = MOE_ACTIVATION_SILU,
     .logits_dtype = MOE_DTYPE_BF16},
    {.family = "olmoe",
     .num_experts = 64,
     .top_k = 8,
     .hidden = 64,
     .inter = 32,
     .gating = MOE_GATING_SOFTMAX,
     .activation = MOE_ACTIVATION_SILU,
     .logits_dtype = MOE_DTYPE_BF16},
    {.family = "qwen2_moe",
     .num_experts = 60,
     .top_k = 4,
     .hidden = 80,
     .inter = 40,
     .shared_inter = 88,
     .gating = MOE_GATING_SOFTMAX,
     .flags = MOE_PROBLEM_SHARED_SIGMOID,
     .activation = MOE_ACTIVATION_SILU,
     .logits_dtype = MOE_DTYPE_BF16},
    {.family = "qwen3_moe",
     .num_experts = 32,
     .top_k = 8,
     .hidden = 128,
     .inter = 48,
     .gating = MOE_GATING_SOFTMAX,
     .flags = MOE_PROBLEM_RENORMALIZE,
     .activation = MOE_ACTIVATION_SILU,
     .logits_dtype = MOE_DTYPE_BF16},
    {.family = "dbrx",
     .num_experts = 16,
     .top_k = 4,
     .hidden = 72,
     .inter = 40,
     .gating = MOE_GATING_SOFTMAX,
     .flags = MOE_PROBLEM_RENORMALIZE,
     .activation = MOE_ACTIVATION_SILU,
     .logits_dtype = MOE_DTYPE_BF16},
};
enum { num_goldens = sizeof goldens / sizeof goldens[0] };

static inline void golden_path(const char *family, const char *name, char *path)
{
    const int length = snprintf(path, FIXTURE_PATH_BYTES, "%s/golden/%s%s%s", MOE_TESTS_DATA_DIR,
                                family, name[0] != '\0' ? "/" : "", name);
    assert_in_range(length, 1, FIXTURE_PATH_BYTES - 1);
}

static inline void open_layer(const char *path, int64_t layer_idx,
                              struct moe_checkpoint_layer *layer)
{
    struct moe_cli_error error = {.message = ""};
    if (moe_checkpoint_layer_open(path, layer_idx, layer, &error) != 0) {
        fail_msg("%s", error.message);
    }
}

static inline struct moe_safetensors *open_golden(const char *family)
{
    char path[FIXTURE_PATH_BYTES];
    golden_path(family, "model.safetensors", path);
    struct moe_safetensors *file = NULL;
    struct moe_cli_error error = {.message = ""};
    if (moe_safetensors_open(path, &file, &error) != 0) {
        fail_msg("%s", error.message);
    }
    return file;
}

static inline void copy_config(const struct fixture_folder *folder, const char *family)
{
    char from[FIXTURE_PATH_BYTES];
    char to[FIXTURE_PATH_BYTES];
    size_t num_bytes;
    golden_path(family, "config.json", from);
    fixture_join(folder, "config.json", to);
    unsigned char *text = fixture_read(from, &num_bytes);
    fixture_write(to, text, num_bytes);
    free(text);
}

/* ---- where elements lie: the operand's place against one computed from the tensor's published
 * layout ---- */

/* Index of element (row, col) of an expert inside of its tensor, as the family publishes it. */
typedef int64_t place_fn(const struct golden *golden, int64_t expert, int64_t row, int64_t col);

static inline int64_t place_in_hidden(const struct golden *golden, int64_t expert, int64_t row,
                                      int64_t col)
{
    (void)expert;
    return row * golden->hidden + col; /* [I, H] */
}

static inline int64_t place_in_inter(const struct golden *golden, int64_t expert, int64_t row,
                                     int64_t col)
{
    (void)expert;
    return row * golden->inter + col; /* [H, I] */
}

static inline int64_t place_in_shared_inter(const struct golden *golden, int64_t expert,
                                            int64_t row, int64_t col)
{
    (void)expert;
    return row * golden->shared_inter + col; /* [H, shared I] */
}

static inline int64_t place_stacked_down(const struct golden *golden, int64_t expert, int64_t row,
                                         int64_t col)
{
    return (expert * golden->inter + col) * golden->hidden + row; /* [E, I, H] */
}

static inline int64_t place_below_gate(const struct golden *golden, int64_t expert, int64_t row,
                                       int64_t col)
{
    return (expert * golden->inter + row) * golden->hidden + col; /* [E * I, H] */
}

static inline int64_t place_interleaved_gate(const struct golden *golden, int64_t expert,
                                             int64_t row, int64_t col)
{
    return (expert * golden->hidden + col) * 2 * golden->inter + 2 * row; /* [E, H, 2I] */
}

static inline int64_t place_interleaved_up(const struct golden *golden, int64_t expert, int64_t row,
                                           int64_t col)
{
    return place_interleaved_gate(golden, expert, row, col) + 1;
}

static inline int64_t place_interleaved_gate_bias(const struct golden *golden, int64_t expert,
                                                  int64_t row, int64_t col)
{
    (void)col;
    return expert * 2 * golden->inter + 2 * row; /* [E, 2I] */
}

static inline int64_t place_interleaved_up_bias(const struct golden *golden, int64_t expert,
                                                int64_t row, int64_t col)
{
    return place_interleaved_gate_bias(golden, expert, row, col) + 1;
}

static inline int64_t place_stacked_hidden_bias(const struct golden *golden, int64_t expert,
                                                int64_t row, int64_t col)
{
    (void)col;
    return expert * golden->hidden + row; /* [E, H] */
}

static inline int64_t place_halves_gate(const struct golden *golden, int64_t expert, int64_t row,
                                        int64_t col)
{
    return (expert * golden->hidden + col) * 2 * golden->inter + row; /* [E, H, 2I] */
}

static inline int64_t place_halves_up(const struct golden *golden, int64_t expert, int64_t row,
                                      int64_t col)
{
    return place_halves_gate(golden, expert, row, col) + golden->inter;
}

static inline int64_t place_vector(const struct golden *golden, int64_t expert, int64_t row,
                                   int64_t col)
{
    (void)golden;
    (void)expert;
    (void)col;
    return row;
}

enum { no_experts, all_experts };
enum { of_none, of_one, of_experts, of_hidden, of_inter, of_shared };

struct layout {
    const char *family;
    size_t operand;     /* offset in struct moe_weights_desc */
    const char *tensor; /* below the prefix of layer 0; %d is the expert */
    place_fn *place;
    int has_experts;
    int rows, cols;
};

#define AT(member) offsetof(struct moe_weights_desc, member)
static const struct layout layouts[] = {
    {"dbrx", AT(gate), "ffn.experts.mlp.w1", place_below_gate, all_experts, of_inter, of_hidden},
    {"dbrx", AT(up), "ffn.experts.mlp.v1", place_below_gate, all_experts, of_inter, of_hidden},
    {"dbrx", AT(down), "ffn.experts.mlp.w2", place_stacked_down, all_experts, of_hidden, of_inter},
    {"dbrx", AT(router), "ffn.router.layer.weight", place_in_hidden, no_experts, of_experts,
     of_hidden},
    {"mixtral", AT(gate), "block_sparse_moe.experts.%d.w1.weight", place_in_hidden, all_experts,
     of_inter, of_hidden},
    {"mixtral", AT(up), "block_sparse_moe.experts.%d.w3.weight", place_in_hidden, all_experts,
     of_inter, of_hidden},
    {"mixtral", AT(down), "block_sparse_moe.experts.%d.w2.weight", place_in_inter, all_experts,
     of_hidden, of_inter},
    {"mixtral", AT(router), "block_sparse_moe.gate.weight", place_in_hidden, no_experts, of_experts,
     of_hidden},
    {"olmoe", AT(gate), "mlp.experts.%d.gate_proj.weight", place_in_hidden, all_experts, of_inter,
     of_hidden},
    {"olmoe", AT(up), "mlp.experts.%d.up_proj.weight", place_in_hidden, all_experts, of_inter,
     of_hidden},
    {"olmoe", AT(down), "mlp.experts.%d.down_proj.weight", place_in_inter, all_experts, of_hidden,
     of_inter},
    {"olmoe", AT(router), "mlp.gate.weight", place_in_hidden, no_experts, of_experts, of_hidden},
    {"qwen3_moe", AT(gate), "mlp.experts.%d.gate_proj.weight", place_in_hidden, all_experts,
     of_inter, of_hidden},
    {"qwen3_moe", AT(up), "mlp.experts.%d.up_proj.weight", place_in_hidden, all_experts, of_inter,
     of_hidden},
    {"qwen3_moe", AT(down), "mlp.experts.%d.down_proj.weight", place_in_inter, all_experts,
     of_hidden, of_inter},
    {"qwen3_moe", AT(router), "mlp.gate.weight", place_in_hidden, no_experts, of_experts,
     of_hidden},
    {"qwen2_moe", AT(gate), "mlp.experts.%d.gate_proj.weight", place_in_hidden, all_experts,
     of_inter, of_hidden},
    {"qwen2_moe", AT(up), "mlp.experts.%d.up_proj.weight", place_in_hidden, all_experts, of_inter,
     of_hidden},
    {"qwen2_moe", AT(down), "mlp.experts.%d.down_proj.weight", place_in_inter, all_experts,
     of_hidden, of_inter},
    {"qwen2_moe", AT(router), "mlp.gate.weight", place_in_hidden, no_experts, of_experts,
     of_hidden},
    {"qwen2_moe", AT(shared_gate), "mlp.shared_expert.gate_proj.weight", place_in_hidden,
     no_experts, of_shared, of_hidden},
    {"qwen2_moe", AT(shared_up), "mlp.shared_expert.up_proj.weight", place_in_hidden, no_experts,
     of_shared, of_hidden},
    {"qwen2_moe", AT(shared_down), "mlp.shared_expert.down_proj.weight", place_in_shared_inter,
     no_experts, of_hidden, of_shared},
    {"qwen2_moe", AT(shared_sigmoid), "mlp.shared_expert_gate.weight", place_in_hidden, no_experts,
     of_one, of_hidden},
    {"deepseek_v3", AT(gate), "mlp.experts.%d.gate_proj.weight", place_in_hidden, all_experts,
     of_inter, of_hidden},
    {"deepseek_v3", AT(up), "mlp.experts.%d.up_proj.weight", place_in_hidden, all_experts, of_inter,
     of_hidden},
    {"deepseek_v3", AT(down), "mlp.experts.%d.down_proj.weight", place_in_inter, all_experts,
     of_hidden, of_inter},
    {"deepseek_v3", AT(router), "mlp.gate.weight", place_in_hidden, no_experts, of_experts,
     of_hidden},
    {"deepseek_v3", AT(correction_bias), "mlp.gate.e_score_correction_bias", place_vector,
     no_experts, of_experts, of_none},
    {"deepseek_v3", AT(shared_gate), "mlp.shared_experts.gate_proj.weight", place_in_hidden,
     no_experts, of_shared, of_hidden},
    {"deepseek_v3", AT(shared_up), "mlp.shared_experts.up_proj.weight", place_in_hidden, no_experts,
     of_shared, of_hidden},
    {"deepseek_v3", AT(shared_down), "mlp.shared_experts.down_proj.weight", place_in_shared_inter,
     no_experts, of_hidden, of_shared},
    {"gpt_oss", AT(gate), "mlp.experts.gate_up_proj", place_interleaved_gate, all_experts, of_inter,
     of_hidden},
    {"gpt_oss", AT(up), "mlp.experts.gate_up_proj", place_interleaved_up, all_experts, of_inter,
     of_hidden},
    {"gpt_oss", AT(down), "mlp.experts.down_proj", place_stacked_down, all_experts, of_hidden,
     of_inter},
    {"gpt_oss", AT(gate_bias), "mlp.experts.gate_up_proj_bias", place_interleaved_gate_bias,
     all_experts, of_inter, of_none},
    {"gpt_oss", AT(up_bias), "mlp.experts.gate_up_proj_bias", place_interleaved_up_bias,
     all_experts, of_inter, of_none},
    {"gpt_oss", AT(down_bias), "mlp.experts.down_proj_bias", place_stacked_hidden_bias, all_experts,
     of_hidden, of_none},
    {"gpt_oss", AT(router), "mlp.router.weight", place_in_hidden, no_experts, of_experts,
     of_hidden},
    {"gpt_oss", AT(router_bias), "mlp.router.bias", place_vector, no_experts, of_experts, of_none},
    {"llama4_text", AT(gate), "feed_forward.experts.gate_up_proj", place_halves_gate, all_experts,
     of_inter, of_hidden},
    {"llama4_text", AT(up), "feed_forward.experts.gate_up_proj", place_halves_up, all_experts,
     of_inter, of_hidden},
    {"llama4_text", AT(down), "feed_forward.experts.down_proj", place_stacked_down, all_experts,
     of_hidden, of_inter},
    {"llama4_text", AT(router), "feed_forward.router.weight", place_in_hidden, no_experts,
     of_experts, of_hidden},
    {"llama4_text", AT(shared_gate), "feed_forward.shared_expert.gate_proj.weight", place_in_hidden,
     no_experts, of_shared, of_hidden},
    {"llama4_text", AT(shared_up), "feed_forward.shared_expert.up_proj.weight", place_in_hidden,
     no_experts, of_shared, of_hidden},
    {"llama4_text", AT(shared_down), "feed_forward.shared_expert.down_proj.weight",
     place_in_shared_inter, no_experts, of_hidden, of_shared},
};
enum { num_layouts = sizeof layouts / sizeof layouts[0] };

static inline int64_t size_of(const struct golden *golden, int which)
{
    const int64_t sizes[] = {[of_none] = 1,
                             [of_one] = 1,
                             [of_experts] = golden->num_experts,
                             [of_hidden] = golden->hidden,
                             [of_inter] = golden->inter,
                             [of_shared] = golden->shared_inter};
    return sizes[which];
}

static const struct moe_safetensors_tensor *find_golden_tensor(const struct moe_safetensors *file,
                                                               const struct layout *layout,
                                                               int64_t expert)
{
    const int is_dbrx = strcmp(layout->family, "dbrx") == 0;
    char name[128];
    strcpy(name, is_dbrx ? "transformer.blocks.0." : "model.layers.0.");
    const char *number = strstr(layout->tensor, "%d");
    if (number == NULL) {
        strcat(name, layout->tensor);
    } else {
        snprintf(name + strlen(name), sizeof name - strlen(name), "%.*s%" PRId64 "%s",
                 (int)(number - layout->tensor), layout->tensor, expert, number + strlen("%d"));
    }
    const struct moe_safetensors_tensor *tensor = moe_safetensors_find(file, name);
    assert_non_null(tensor);
    return tensor;
}

static inline void check_layout(const struct golden *golden, const struct layout *layout,
                                const struct moe_safetensors *file,
                                const struct moe_weights_desc *weights)
{
    const struct moe_operand *operand =
        (const void *)((const unsigned char *)weights + layout->operand);
    assert_true((operand->base != NULL) != (operand->table != NULL));
    const int64_t num_experts = layout->has_experts ? golden->num_experts : 1;
    const int64_t num_rows = size_of(golden, layout->rows);
    const int64_t num_cols = size_of(golden, layout->cols);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
        const struct moe_safetensors_tensor *tensor = find_golden_tensor(file, layout, expert);
        assert_int_equal(operand->dtype, tensor->moe_dtype);
        const int64_t element_bytes = (int64_t)tensor->data_bytes / tensor->num_elements;
        const unsigned char *base = operand->table != NULL ? operand->table[expert] : operand->base;
        if (base == NULL) {
            fail_msg("%s: no %s", golden->family, tensor->name);
            return;
        }
        for (int64_t row = 0; row < num_rows; ++row) {
            for (int64_t col = 0; col < num_cols; ++col) {
                const int64_t there = layout->place(golden, expert, row, col);
                assert_in_range(there, 0, tensor->num_elements - 1);
                const int64_t here =
                    (operand->table != NULL ? 0 : expert * operand->expert_stride) +
                    row * operand->row_stride + col * operand->col_stride;
                if (memcmp(base + here * element_bytes,
                           (const unsigned char *)tensor->data + there * element_bytes,
                           (size_t)element_bytes) != 0) {
                    fail_msg("%s: element (%" PRId64 ", %" PRId64 ", %" PRId64 ") of %s",
                             golden->family, expert, row, col, tensor->name);
                }
            }
        }
    }
}

#endif
