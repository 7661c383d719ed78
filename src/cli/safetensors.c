/* SPDX-License-Identifier: Apache-2.0 */
#include "safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_file.h"
#include "moe_plugin.h"
#include "tree.h"

/* The file begins with the header's length. */
enum { length_bytes = 8 };

struct dtype_row {
    const char *name;
    unsigned bits;
    int32_t moe_dtype;
};

static const struct dtype_row dtype_rows[] = {[MOE_SAFETENSORS_UNKNOWN] = {"", 0, 0},
#define DTYPE_ROW(name, bits, moe_dtype) [MOE_SAFETENSORS_##name] = {#name, bits, moe_dtype},
                                              MOE_SAFETENSORS_DTYPES(DTYPE_ROW)
#undef DTYPE_ROW
};

struct moe_safetensors {
    char *path;
    struct moe_cli_file file;
    struct moe_tree *header; /* owns names and metadata */
    const struct moe_tree_node *metadata;
    struct moe_safetensors_tensor *tensors; /* sorted by name */
    size_t num_tensors;
    const unsigned char *data; /* what data_offsets count from */
    uint64_t data_bytes;
};

const char *moe_safetensors_format_shape(const int64_t *shape, int rank, char *text,
                                         size_t text_bytes)
{
    size_t at = 0;
    snprintf(text, text_bytes, "[]");
    for (int i = 0; i < rank; ++i) {
        const int length = snprintf(text + at, text_bytes - at, "%s%" PRId64 "%s",
                                    i == 0 ? "[" : ", ", shape[i], i == rank - 1 ? "]" : "");
        if (length < 0 || (size_t)length >= text_bytes - at) {
            break;
        }
        at += (size_t)length;
    }
    return text;
}

static int find_dtype(const char *name)
{
    for (int i = 1; i < (int)(sizeof dtype_rows / sizeof dtype_rows[0]); ++i) {
        if (strcmp(dtype_rows[i].name, name) == 0) {
            return i;
        }
    }
    return MOE_SAFETENSORS_UNKNOWN;
}

/* Reads one member of a tensor's entry; the three functions below share this form. */
static int refuse_entry(const struct moe_safetensors *file, const char *tensor_name,
                        struct moe_cli_error *error, const char *what)
{
    return MOE_CLI_FAIL(error, "%s: tensor '%s': %s", file->path, tensor_name, what);
}

static int read_dtype(const struct moe_safetensors *file, const struct moe_tree_node *node,
                      struct moe_safetensors_tensor *tensor, struct moe_cli_error *error)
{
    if (node->kind != MOE_NODE_SCALAR || !node->quoted) {
        return refuse_entry(file, tensor->name, error, "dtype is not a string");
    }
    tensor->dtype_name = node->text;
    tensor->dtype = find_dtype(node->text);
    tensor->moe_dtype = dtype_rows[tensor->dtype].moe_dtype;
    return 0;
}

static int read_shape(const struct moe_safetensors *file, const struct moe_tree_node *node,
                      struct moe_safetensors_tensor *tensor, struct moe_cli_error *error)
{
    if (node->kind != MOE_NODE_SEQUENCE) {
        return refuse_entry(file, tensor->name, error, "shape is not a list");
    }
    if (node->num_children > MOE_SAFETENSORS_MAX_RANK) {
        return MOE_CLI_FAIL(error, "%s: tensor '%s' has %zu dimensions; at most %d are read",
                            file->path, tensor->name, node->num_children,
                            (int)MOE_SAFETENSORS_MAX_RANK);
    }
    tensor->rank = (int)node->num_children;
    tensor->num_elements = 1;
    int is_overflow = 0;
    for (int i = 0; i < tensor->rank; ++i) {
        if (moe_tree_to_int64(&node->children[i], 0, INT64_MAX, &tensor->shape[i]) != 0) {
            return refuse_entry(file, tensor->name, error,
                                "shape has an entry that is not a whole number of at least 0");
        }
        is_overflow |=
            __builtin_mul_overflow(tensor->num_elements, tensor->shape[i], &tensor->num_elements);
    }
    if (is_overflow) {
        return refuse_entry(file, tensor->name, error, "the product of its shape overflows");
    }
    return 0;
}

static int read_offsets(const struct moe_safetensors *file, const struct moe_tree_node *node,
                        struct moe_safetensors_tensor *tensor, struct moe_cli_error *error)
{
    int64_t begin;
    int64_t end;
    if (node->kind != MOE_NODE_SEQUENCE || node->num_children != 2 ||
        moe_tree_to_int64(&node->children[0], 0, INT64_MAX, &begin) != 0 ||
        moe_tree_to_int64(&node->children[1], 0, INT64_MAX, &end) != 0) {
        return refuse_entry(file, tensor->name, error,
                            "data_offsets is not a pair of whole numbers of at least 0");
    }
    if (begin > end || (uint64_t)end > file->data_bytes) {
        return MOE_CLI_FAIL(error,
                            "%s: tensor '%s': data_offsets [%" PRId64 ", %" PRId64
                            "] do not lie within the file's %" PRIu64 " bytes of data",
                            file->path, tensor->name, begin, end, file->data_bytes);
    }
    tensor->data = file->data + begin;
    tensor->data_bytes = (uint64_t)(end - begin);
    return 0;
}

/* The shape must fill the bytes exactly. Sizes of unknown types are not known. */
static int check_bytes(const struct moe_safetensors *file,
                       const struct moe_safetensors_tensor *tensor, struct moe_cli_error *error)
{
    if (tensor->dtype == MOE_SAFETENSORS_UNKNOWN) {
        return 0;
    }
    const uint64_t bits = dtype_rows[tensor->dtype].bits;
    uint64_t tensor_bits;
    uint64_t data_bits;
    if (!__builtin_mul_overflow((uint64_t)tensor->num_elements, bits, &tensor_bits) &&
        !__builtin_mul_overflow(tensor->data_bytes, (uint64_t)8, &data_bits) &&
        tensor_bits == data_bits) {
        return 0;
    }
    char shape[MOE_SAFETENSORS_SHAPE_BYTES];
    moe_safetensors_format_shape(tensor->shape, tensor->rank, shape, sizeof shape);
    return MOE_CLI_FAIL(
        error, "%s: tensor '%s' of shape %s and type %s does not fit its %" PRIu64 " bytes of data",
        file->path, tensor->name, shape, tensor->dtype_name, tensor->data_bytes);
}

static int read_tensor(const struct moe_safetensors *file, const struct moe_tree_node *entry,
                       struct moe_safetensors_tensor *tensor, struct moe_cli_error *error)
{
    if (entry->kind != MOE_NODE_MAPPING) {
        return refuse_entry(file, tensor->name, error, "its entry is not a JSON object");
    }
    for (size_t i = 0; i < entry->num_children; ++i) {
        const struct moe_tree_node *key = &entry->keys[i];
        const struct moe_tree_node *value = &entry->children[i];
        int status;
        if (moe_tree_is_text(key, "dtype")) {
            status = read_dtype(file, value, tensor, error);
        } else if (moe_tree_is_text(key, "shape")) {
            status = read_shape(file, value, tensor, error);
        } else if (moe_tree_is_text(key, "data_offsets")) {
            status = read_offsets(file, value, tensor, error);
        } else {
            status = MOE_CLI_FAIL(
                error,
                "%s: tensor '%s': unknown member '%s'; the format has dtype, shape, data_offsets",
                file->path, tensor->name, key->text);
        }
        if (status != 0) {
            return -1;
        }
    }
    /* Keys are distinct and all known, so three of them are these three. */
    if (entry->num_children != 3) {
        return refuse_entry(file, tensor->name, error,
                            "dtype, shape or data_offsets is missing from its entry");
    }
    return check_bytes(file, tensor, error);
}

static int read_metadata(struct moe_safetensors *file, const struct moe_tree_node *node,
                         struct moe_cli_error *error)
{
    if (node->kind != MOE_NODE_MAPPING) {
        return MOE_CLI_FAIL(error, "%s: __metadata__ is not a JSON object", file->path);
    }
    for (size_t i = 0; i < node->num_children; ++i) {
        if (node->children[i].kind != MOE_NODE_SCALAR || !node->children[i].quoted) {
            return MOE_CLI_FAIL(error, "%s: __metadata__ '%s' is not a string", file->path,
                                node->keys[i].text);
        }
    }
    file->metadata = node;
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const struct moe_safetensors_tensor *x = a;
    const struct moe_safetensors_tensor *y = b;
    return strcmp(x->name, y->name);
}

static int compare_places(const void *a, const void *b)
{
    const struct moe_safetensors_tensor *x = a;
    const struct moe_safetensors_tensor *y = b;
    const uintptr_t x_at = (uintptr_t)x->data;
    const uintptr_t y_at = (uintptr_t)y->data;
    return (x_at > y_at) - (x_at < y_at);
}

/* Leaves the tensors sorted by place. Empty ones cover no byte and overlap nothing. */
static int check_overlaps(struct moe_safetensors *file, struct moe_cli_error *error)
{
    qsort(file->tensors, file->num_tensors, sizeof *file->tensors, compare_places);
    const struct moe_safetensors_tensor *before = NULL;
    for (size_t i = 0; i < file->num_tensors; ++i) {
        const struct moe_safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->data_bytes == 0) {
            continue;
        }
        if (before != NULL &&
            (uintptr_t)tensor->data - (uintptr_t)before->data < before->data_bytes) {
            return MOE_CLI_FAIL(error, "%s: tensors '%s' and '%s' overlap", file->path,
                                before->name, tensor->name);
        }
        before = tensor;
    }
    return 0;
}

static int read_header(struct moe_safetensors *file, struct moe_cli_error *error)
{
    const struct moe_tree_node *root = moe_tree_root(file->header);
    file->tensors = calloc(root->num_children > 0 ? root->num_children : 1, sizeof *file->tensors);
    if (file->tensors == NULL) {
        return moe_cli_fail_memory(error, "reading a safetensors header");
    }
    for (size_t i = 0; i < root->num_children; ++i) {
        if (moe_tree_is_text(&root->keys[i], "__metadata__")) {
            if (read_metadata(file, &root->children[i], error) != 0) {
                return -1;
            }
            continue;
        }
        struct moe_safetensors_tensor *tensor = &file->tensors[file->num_tensors];
        tensor->name = root->keys[i].text;
        if (read_tensor(file, &root->children[i], tensor, error) != 0) {
            return -1;
        }
        file->num_tensors += 1;
    }
    if (check_overlaps(file, error) != 0) {
        return -1;
    }
    qsort(file->tensors, file->num_tensors, sizeof *file->tensors, compare_names);
    return 0;
}

/* Finds header and data in the mapped file and parses the header. */
static int parse_file(struct moe_safetensors *file, struct moe_cli_error *error)
{
    const struct moe_tree_limits limits = MOE_TREE_LIMITS_JSON_HEADER;
    const size_t file_bytes = file->file.num_bytes;
    if (file_bytes < length_bytes) {
        return MOE_CLI_FAIL(error, "%s: %zu bytes are too few for a safetensors file", file->path,
                            file_bytes);
    }
    uint64_t header_bytes = 0;
    for (int i = length_bytes - 1; i >= 0; --i) {
        header_bytes = header_bytes << 8 | file->file.bytes[i];
    }
    if (header_bytes > limits.max_bytes) {
        return MOE_CLI_FAIL(
            error, "%s: the header's length, %" PRIu64 " bytes, is above the format's limit of %zu",
            file->path, header_bytes, limits.max_bytes);
    }
    if (header_bytes > file_bytes - length_bytes) {
        return MOE_CLI_FAIL(error,
                            "%s: the header's length, %" PRIu64
                            " bytes, reaches past the end of the file (%zu bytes)",
                            file->path, header_bytes, file_bytes);
    }
    const char *header = (const char *)file->file.bytes + length_bytes;
    if (header_bytes == 0 || header[0] != '{') {
        return MOE_CLI_FAIL(error, "%s: the header does not begin with '{'", file->path);
    }
    file->data = file->file.bytes + length_bytes + header_bytes;
    file->data_bytes = file_bytes - length_bytes - header_bytes;
    file->header =
        moe_cli_file_parse_object(file->path, header, (size_t)header_bytes, &limits, error);
    return file->header != NULL ? read_header(file, error) : -1;
}

int moe_safetensors_open(const char *path, struct moe_safetensors **out,
                         struct moe_cli_error *error)
{
    const size_t path_bytes = strlen(path) + 1;
    struct moe_safetensors *file = calloc(1, sizeof *file);
    if (file == NULL || (file->path = malloc(path_bytes)) == NULL) {
        moe_cli_fail_memory(error, "opening a safetensors file");
        goto fail;
    }
    memcpy(file->path, path, path_bytes);
    if (moe_cli_file_map(path, &file->file, error) != 0 || parse_file(file, error) != 0) {
        goto fail;
    }
    *out = file;
    return 0;
fail:
    moe_safetensors_close(file);
    return -1;
}

void moe_safetensors_close(struct moe_safetensors *file)
{
    if (file == NULL) {
        return;
    }
    free(file->tensors);
    moe_tree_destroy(file->header);
    moe_cli_file_unmap(&file->file);
    free(file->path);
    free(file);
}

const char *moe_safetensors_path(const struct moe_safetensors *file)
{
    return file->path;
}

size_t moe_safetensors_num_tensors(const struct moe_safetensors *file)
{
    return file->num_tensors;
}

const struct moe_safetensors_tensor *moe_safetensors_tensor(const struct moe_safetensors *file,
                                                            size_t tensor_idx)
{
    return &file->tensors[tensor_idx];
}

const struct moe_safetensors_tensor *moe_safetensors_find(const struct moe_safetensors *file,
                                                          const char *name)
{
    const struct moe_safetensors_tensor wanted = {.name = name};
    return bsearch(&wanted, file->tensors, file->num_tensors, sizeof wanted, compare_names);
}

const char *moe_safetensors_find_metadata(const struct moe_safetensors *file, const char *key)
{
    const struct moe_tree_node *value = moe_tree_find(file->metadata, key);
    return value != NULL ? value->text : NULL;
}
