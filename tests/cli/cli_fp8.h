/* SPDX-License-Identifier: Apache-2.0 */
/* Models of one MoE layer that a test writes twice: with fp8 weights and scales per 128 x 128, and
 * with the fp32 numbers that those mean. Quantized here, in plain loops and with the conversions of
 * the reference. */
#ifndef MOE_TESTS_CLI_FP8_H
#define MOE_TESTS_CLI_FP8_H

#include "moectl_fixture.h"

#include "ref.h"

#include <math.h>

enum { FP8_MAX_TENSORS = 256, FP8_BLOCK = 128, FP8_NAME_BYTES = 128 };

struct fp8_tensor {
    char name[FP8_NAME_BYTES];
    int rank;
    int64_t shape[3];
    float *values; /* heap */
    int is_matrix; /* of an expert: quantized */
};

struct fp8_model {
    char config[4096]; /* ends with '}' */
    size_t num_tensors;
    struct fp8_tensor tensors[FP8_MAX_TENSORS];
};

/* How a model is written. */
struct fp8_style {
    int is_plain;             /* the fp32 numbers that the fp8 ones mean */
    int has_bf16_scales;      /* as some publishers write them */
    int has_no_scales;        /* and what makes a bad file */
    int has_one_scale;        /* of shape [1, 1] whatever the matrix */
    int has_a_wrong_scale;    /* of the first block of each matrix */
    int has_plain_shared;     /* shared experts are not quantized */
    const char *quantization; /* NULL: what DeepSeek-V3 publishes */
};

static inline int64_t fp8_num_elements(const struct fp8_tensor *tensor)
{
    int64_t num_elements = 1;
    for (int i = 0; i < tensor->rank; ++i) {
        num_elements *= tensor->shape[i];
    }
    return num_elements;
}

static inline struct fp8_tensor *fp8_add(struct fp8_model *model, const char *name, int rank,
                                         const int64_t *shape)
{
    assert_in_range(model->num_tensors, 0, FP8_MAX_TENSORS - 1);
    struct fp8_tensor *tensor = &model->tensors[model->num_tensors++];
    *tensor = (struct fp8_tensor){.rank = rank};
    assert_in_range(snprintf(tensor->name, sizeof tensor->name, "%s", name), 1, FP8_NAME_BYTES - 1);
    memcpy(tensor->shape, shape, (size_t)rank * sizeof *shape);
    tensor->values = calloc((size_t)fp8_num_elements(tensor), sizeof(float));
    assert_non_null(tensor->values);
    const int is_of_experts = strstr(name, "expert") != NULL && strstr(name, "_proj") != NULL;
    tensor->is_matrix = rank > 1 && is_of_experts;
    return tensor;
}

/* The layer of a golden checkpoint. */
static inline void fp8_read_golden(struct fp8_model *model, const char *family)
{
    char path[FIXTURE_PATH_BYTES];
    size_t num_bytes;
    model->num_tensors = 0;
    golden_path(family, "config.json", path);
    char *config = (char *)fixture_read(path, &num_bytes);
    assert_in_range(num_bytes, 1, sizeof model->config - 1);
    char *dtype = strstr(config, "\"bfloat16\"");
    assert_non_null(dtype); /* tokens of fp32 hide nothing behind their own rounding */
    memcpy(dtype, "\"float32\" ", strlen("\"bfloat16\""));
    *(strrchr(config, '}') + 1) = '\0';
    memcpy(model->config, config, strlen(config) + 1);
    free(config);
    struct moe_safetensors *file = open_golden(family);
    for (size_t i = 0; i < moe_safetensors_num_tensors(file); ++i) {
        const struct moe_safetensors_tensor *source = moe_safetensors_tensor(file, i);
        struct fp8_tensor *tensor = fp8_add(model, source->name, source->rank, source->shape);
        const enum ref_dtype dtype_id = source->dtype == MOE_SAFETENSORS_BF16 ? REF_BF16 : REF_F32;
        assert_true(dtype_id == REF_BF16 || source->dtype == MOE_SAFETENSORS_F32);
        for (int64_t j = 0; j < source->num_elements; ++j) {
            tensor->values[j] = (float)ref_load(dtype_id, source->data, j);
        }
    }
    moe_safetensors_close(file);
}

/* A tensor of random numbers, whose size changes from block to block. */
static inline void fp8_add_random(struct fp8_model *model, const char *name, int rank,
                                  const int64_t *shape)
{
    struct fp8_tensor *tensor = fp8_add(model, name, rank, shape);
    const int64_t num_cols = shape[rank - 1];
    uint32_t state = (uint32_t)model->num_tensors * 2654435761u;
    for (int64_t i = 0; i < fp8_num_elements(tensor); ++i) {
        state = state * 1664525u + 1013904223u;
        const float unit = (float)(state >> 8) * 0x1p-23f - 1.0f; /* -1 to 1 */
        const int64_t block = i / num_cols / FP8_BLOCK * 7 + i % num_cols / FP8_BLOCK * 3;
        tensor->values[i] = unit * 0.04f * (float)(1 + block % 5);
    }
}

static inline void fp8_finish(struct fp8_model *model)
{
    for (size_t i = 0; i < model->num_tensors; ++i) {
        free(model->tensors[i].values);
    }
    model->num_tensors = 0;
}

/* ---- writing */

struct fp8_writer {
    FILE *header, *data;
    char *header_text, *data_text;
    size_t header_bytes, data_bytes;
    uint64_t at;
};

static inline void fp8_begin(struct fp8_writer *writer)
{
    memset(writer, 0, sizeof *writer);
    writer->header = open_memstream(&writer->header_text, &writer->header_bytes);
    writer->data = open_memstream(&writer->data_text, &writer->data_bytes);
    assert_true(writer->header != NULL && writer->data != NULL);
    fputc('{', writer->header);
}

/* Stores `values`, of a type whose elements have `element_bytes` bytes. */
static inline void fp8_put(struct fp8_writer *writer, const char *name, const char *dtype_name,
                           enum ref_dtype dtype, size_t element_bytes, int rank,
                           const int64_t *shape, const float *values)
{
    char text[MOE_SAFETENSORS_SHAPE_BYTES];
    int64_t num_elements = 1;
    for (int i = 0; i < rank; ++i) {
        num_elements *= shape[i];
    }
    moe_safetensors_format_shape(shape, rank, text, sizeof text);
    const uint64_t num_bytes = (uint64_t)num_elements * element_bytes;
    fprintf(writer->header,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
            writer->at == 0 ? "" : ",", name, dtype_name, text, writer->at, writer->at + num_bytes);
    for (int64_t i = 0; i < num_elements; ++i) {
        unsigned char element[8];
        ref_store(dtype, element, 0, (double)values[i]);
        fwrite(element, 1, element_bytes, writer->data);
    }
    writer->at += num_bytes;
    for (; writer->at % 8 != 0; ++writer->at) { /* what follows stays aligned */
        fputc(0, writer->data);
    }
}

static inline void fp8_end(struct fp8_writer *writer, const char *path)
{
    fputc('}', writer->header);
    while (ftell(writer->header) % 8 != 0) {
        fputc(' ', writer->header);
    }
    assert_int_equal(fclose(writer->header), 0);
    assert_int_equal(fclose(writer->data), 0);
    unsigned char *bytes = malloc(8 + writer->header_bytes + writer->data_bytes);
    assert_non_null(bytes);
    fixture_put_length(bytes, writer->header_bytes);
    memcpy(bytes + 8, writer->header_text, writer->header_bytes);
    memcpy(bytes + 8 + writer->header_bytes, writer->data_text, writer->data_bytes);
    fixture_write(path, bytes, 8 + writer->header_bytes + writer->data_bytes);
    free(bytes);
    free(writer->header_text);
    free(writer->data_text);
}

/* The last two dimensions of a matrix, in blocks that share a scale. */
struct fp8_blocks {
    int64_t num_matrices, rows, cols, row_blocks, col_blocks;
};

static inline struct fp8_blocks fp8_count_blocks(const struct fp8_tensor *tensor)
{
    struct fp8_blocks blocks = {.rows = tensor->shape[tensor->rank - 2],
                                .cols = tensor->shape[tensor->rank - 1]};
    blocks.num_matrices = tensor->rank == 3 ? tensor->shape[0] : 1;
    blocks.row_blocks = (blocks.rows + FP8_BLOCK - 1) / FP8_BLOCK;
    blocks.col_blocks = (blocks.cols + FP8_BLOCK - 1) / FP8_BLOCK;
    return blocks;
}

static inline int64_t fp8_block_of(const struct fp8_blocks *blocks, int64_t element)
{
    const int64_t matrix = element / (blocks->rows * blocks->cols);
    const int64_t row = element / blocks->cols % blocks->rows;
    const int64_t col = element % blocks->cols;
    return (matrix * blocks->row_blocks + row / FP8_BLOCK) * blocks->col_blocks + col / FP8_BLOCK;
}

/* Scales that bf16 can hold, so that a file with bf16 scales means the same; and value / scale. */
static inline void fp8_quantize(const struct fp8_tensor *tensor, float *scales, float *quotients)
{
    const struct fp8_blocks blocks = fp8_count_blocks(tensor);
    const int64_t num_scales = blocks.num_matrices * blocks.row_blocks * blocks.col_blocks;
    const int64_t num_elements = fp8_num_elements(tensor);
    for (int64_t i = 0; i < num_scales; ++i) {
        scales[i] = 0.0f;
    }
    for (int64_t i = 0; i < num_elements; ++i) {
        float *scale = &scales[fp8_block_of(&blocks, i)];
        *scale = fmaxf(*scale, fabsf(tensor->values[i]));
    }
    for (int64_t i = 0; i < num_scales; ++i) {
        scales[i] = (float)ref_round(REF_BF16, (double)scales[i] / 448.0);
    }
    for (int64_t i = 0; i < num_elements; ++i) {
        quotients[i] = tensor->values[i] / scales[fp8_block_of(&blocks, i)];
    }
}

static inline void fp8_put_matrix(struct fp8_writer *writer, const struct fp8_tensor *tensor,
                                  const struct fp8_style *style)
{
    const struct fp8_blocks blocks = fp8_count_blocks(tensor);
    const int64_t num_elements = fp8_num_elements(tensor);
    const int64_t num_scales = blocks.num_matrices * blocks.row_blocks * blocks.col_blocks;
    float *scales = calloc((size_t)num_scales, sizeof *scales);
    float *quotients = calloc((size_t)num_elements, sizeof *quotients);
    assert_true(scales != NULL && quotients != NULL);
    fp8_quantize(tensor, scales, quotients);
    if (style->is_plain) {
        for (int64_t i = 0; i < num_elements; ++i) {
            quotients[i] =
                (float)ref_round(REF_E4M3, (double)quotients[i]) * scales[fp8_block_of(&blocks, i)];
        }
        fp8_put(writer, tensor->name, "F32", REF_F32, 4, tensor->rank, tensor->shape, quotients);
    } else {
        char name[FP8_NAME_BYTES + 16];
        snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
        const int64_t one[] = {1, 1};
        const int64_t all[] = {blocks.num_matrices, blocks.row_blocks, blocks.col_blocks};
        const int64_t *shape = style->has_one_scale ? one : tensor->rank == 3 ? all : all + 1;
        const int rank = style->has_one_scale ? 2 : tensor->rank;
        scales[0] *= style->has_a_wrong_scale ? 2.0f : 1.0f;
        fp8_put(writer, tensor->name, "F8_E4M3", REF_E4M3, 1, tensor->rank, tensor->shape,
                quotients);
        if (!style->has_no_scales) {
            fp8_put(writer, name, style->has_bf16_scales ? "BF16" : "F32",
                    style->has_bf16_scales ? REF_BF16 : REF_F32, style->has_bf16_scales ? 2 : 4,
                    rank, shape, scales);
        }
    }
    free(quotients);
    free(scales);
}

/* Writes config.json and model.safetensors. */
static inline void fp8_write(const struct fp8_model *model, const struct fp8_style *style,
                             const struct fixture_folder *folder)
{
    static const char published[] = "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
                                    "\"activation_scheme\":\"dynamic\","
                                    "\"weight_block_size\":[128,128]}";
    char config[sizeof model->config + 512];
    snprintf(config, sizeof config, "%.*s%s%s}", (int)strlen(model->config) - 1, model->config,
             style->is_plain ? "" : ",\"quantization_config\":",
             style->is_plain               ? ""
             : style->quantization != NULL ? style->quantization
                                           : published);
    fixture_write_text(folder, "config.json", config);
    struct fp8_writer writer;
    fp8_begin(&writer);
    for (size_t i = 0; i < model->num_tensors; ++i) {
        const struct fp8_tensor *tensor = &model->tensors[i];
        const int stays = style->has_plain_shared && strstr(tensor->name, "shared") != NULL;
        if (tensor->is_matrix && !stays) {
            fp8_put_matrix(&writer, tensor, style);
        } else {
            fp8_put(&writer, tensor->name, "F32", REF_F32, 4, tensor->rank, tensor->shape,
                    tensor->values);
        }
    }
    char path[FIXTURE_PATH_BYTES];
    fixture_join(folder, "model.safetensors", path);
    fp8_end(&writer, path);
}

#endif
