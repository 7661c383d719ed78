/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels of gpu_reference.cu say, by loops on the host: outputs and inputs are fetched,
 * what is expected is made in the plainest way, and compared. For small sizes. */
#include "gpu_large.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = BENCH_QUANTIZE_GROUP, BLOCK = BENCH_ALIGN_BLOCK };

static void *fetch(const void *device, size_t bytes)
{
    void *host = malloc(bytes);
    gpu_download(host, device, bytes);
    return host;
}

static int is_op(const struct large_check *check, const char *name)
{
    return strcmp(check->bench->op->name, name) == 0;
}

static int64_t count_routes(const struct large_check *check)
{
    return check->bench->num_tokens * check->bench->top_k;
}

static double bf16_at(const void *elements, int64_t idx)
{
    uint16_t half;
    uint32_t word;
    float value;
    memcpy(&half, (const char *)elements + 2 * idx, sizeof(half));
    word = (uint32_t)half << 16;
    memcpy(&value, &word, sizeof(value));
    return (double)value;
}

static double e4m3_at(const void *elements, int64_t idx)
{
    const int code = ((const unsigned char *)elements)[idx];
    const double sign = code >= 128 ? -1.0 : 1.0;
    const int exponent = code / 8 % 16;
    if (code % 128 == 127) {
        return (double)NAN;
    }
    return exponent > 0 ? sign * (1.0 + code % 8 / 8.0) * pow(2.0, exponent - 7)
                        : sign * (code % 8) / 512.0;
}

static double silu_product(const void *input, int64_t row, int64_t column, int64_t inter)
{
    const double gate = bf16_at(input, row * 2 * inter + column);
    return bf16_at(input, row * 2 * inter + inter + column) * gate / (1.0 + exp(-gate));
}

/* ---------------------------------------------------------------- gating */

static int is_gating_right(const struct large_check *check, double *values)
{
    const struct bench *bench = check->bench;
    const int64_t num_experts = bench->num_experts, top_k = bench->top_k;
    float *logits = fetch(check->set->logits, (size_t)(bench->num_tokens * num_experts) * 4);
    int32_t *ids = fetch(check->set->gated_ids, (size_t)count_routes(check) * 4);
    float *weights = fetch(check->set->gated_weights, (size_t)count_routes(check) * 4);
    int is_right = 1;
    for (int64_t t = 0; t < bench->num_tokens; t++) {
        const float *row = logits + t * num_experts;
        char *is_taken = calloc((size_t)num_experts, 1);
        double sum = 0.0;
        for (int64_t j = 0; j < top_k; j++) {
            int64_t best = -1;
            for (int64_t e = 0; e < num_experts; e++) {
                best = !is_taken[e] && (best < 0 || row[e] > row[best]) ? e : best;
            }
            is_taken[best] = 1;
            is_right &= ids[t * top_k + j] == best;
            values[t * top_k + j] = exp((double)row[best]);
            sum += values[t * top_k + j];
        }
        for (int64_t j = 0; j < top_k; j++) {
            const double weight = values[t * top_k + j] / sum;
            values[t * top_k + j] = weight;
            is_right &= fabs((double)weights[t * top_k + j] - weight) <= 1e-5 * weight + 1e-30;
        }
        free(is_taken);
    }
    free(logits);
    free(ids);
    free(weights);
    return is_right;
}

/* ---------------------------------------------------------------- sorts */

static int is_align_right(const struct large_check *check, const void *device_ids)
{
    const struct bench_set *set = check->set;
    const int64_t num_routes = count_routes(check);
    int32_t *ids = fetch(device_ids, (size_t)num_routes * 4);
    int32_t *sorted = fetch(set->sorted, (size_t)set->sorted_capacity * 4);
    int32_t *experts = fetch(set->experts, (size_t)set->expert_capacity * 4);
    int32_t *post_pad = fetch(set->post_pad, 4);
    int64_t at = 0;
    int is_right = 1;
    for (int32_t e = 0; e < check->bench->num_experts; e++) {
        const int64_t first = at;
        for (int64_t i = 0; i < num_routes; i++) {
            if (ids[i] == e) {
                is_right &= sorted[at++] == i;
            }
        }
        for (; (at - first) % BLOCK != 0; at++) {
            is_right &= sorted[at] == num_routes;
        }
        for (int64_t b = first / BLOCK; b < at / BLOCK; b++) {
            is_right &= experts[b] == e;
        }
    }
    is_right &= *post_pad == at;
    for (int64_t i = at; i < set->sorted_capacity; i++) {
        is_right &= sorted[i] == num_routes;
    }
    for (int64_t b = at / BLOCK; b < set->expert_capacity; b++) {
        is_right &= experts[b] == -1;
    }
    free(ids);
    free(sorted);
    free(experts);
    free(post_pad);
    return is_right;
}

static int is_ep_right(const struct large_check *check)
{
    const struct bench_set *set = check->set;
    const int64_t num_routes = count_routes(check);
    const size_t bytes = (size_t)num_routes * 4;
    int32_t *ids = fetch(set->ids, bytes), *src2dst = fetch(set->src2dst, bytes);
    int32_t *dst2src = fetch(set->dst2src, bytes), *reorder = fetch(set->reorder, bytes);
    int64_t *indptr = fetch(set->indptr, ((size_t)check->bench->num_experts + 1) * 8);
    int64_t at = 0;
    int is_right = indptr[0] == 0;
    for (int32_t e = 0; e < check->bench->num_experts; e++) {
        for (int64_t i = 0; i < num_routes; i++) {
            if (ids[i] == e) {
                is_right &= src2dst[i] == at && dst2src[at] == i && reorder[at] == e;
                at++;
            }
        }
        is_right &= indptr[e + 1] == at;
    }
    free(ids);
    free(src2dst);
    free(dst2src);
    free(reorder);
    free(indptr);
    return is_right;
}

/* ---------------------------------------------------------------- rows */

static int is_pre_reorder_right(const struct large_check *check)
{
    const size_t width = (size_t)check->bench->hidden * 2;
    const int64_t num_routes = count_routes(check);
    char *tokens = fetch(check->set->tokens, (size_t)check->bench->num_tokens * width);
    char *rows = fetch(check->set->rows, (size_t)num_routes * width);
    int32_t *src2dst = fetch(check->set->src2dst, (size_t)num_routes * 4);
    int is_right = 1;
    for (int64_t i = 0; i < num_routes; i++) {
        is_right &= memcmp(rows + (size_t)src2dst[i] * width,
                           tokens + (size_t)(i / check->bench->top_k) * width, width) == 0;
    }
    free(tokens);
    free(rows);
    free(src2dst);
    return is_right;
}

/* x of `count` columns, as codes and a scale. `slack`: relative, of x. */
static int is_group_right(const double *x, const unsigned char *codes, double scale, int64_t count,
                          double slack)
{
    double largest = 1e-10;
    int is_right = 1;
    for (int64_t i = 0; i < count; i++) {
        largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
    }
    is_right &= fabs(scale * 448.0 - largest) <= 448.0 * fabs(scale) * (0x1p-23 + slack);
    for (int64_t i = 0; i < count; i++) {
        const double half_step =
            fabs(x[i]) / 16.0 > scale / 1024.0 ? fabs(x[i]) / 16.0 : scale / 1024.0;
        is_right &=
            fabs(e4m3_at(codes, i) * scale - x[i]) <= half_step * 1.00001 + slack * fabs(x[i]);
    }
    return is_right;
}

static int are_codes_right(const struct large_check *check)
{
    const struct bench *bench = check->bench;
    const int is_activated = is_op(check, "activation_fp8");
    const int64_t width = is_activated ? bench->inter : bench->hidden;
    const int64_t num_groups = (width + GROUP - 1) / GROUP;
    const int64_t num_rows = is_op(check, "quantize") ? bench->num_tokens : count_routes(check);
    const int64_t num_inputs = is_activated ? num_rows * 2 * width : bench->num_tokens * width;
    void *input =
        fetch(is_activated ? check->set->gate_up : check->set->tokens, (size_t)num_inputs * 2);
    unsigned char *codes = fetch(check->set->quantized, (size_t)(num_rows * width));
    float *scales = fetch(check->set->scales, (size_t)(num_rows * num_groups) * 4);
    int32_t *src2dst = fetch(check->set->src2dst, (size_t)count_routes(check) * 4);
    int is_right = 1;
    for (int64_t i = 0; i < num_rows; i++) {
        const int64_t row = is_op(check, "pre_reorder_fp8") ? src2dst[i] : i;
        const int64_t from = is_op(check, "pre_reorder_fp8") ? i / bench->top_k : i;
        for (int64_t g = 0; g < num_groups; g++) {
            double x[GROUP];
            const int64_t count = width - g * GROUP < GROUP ? width - g * GROUP : GROUP;
            for (int64_t c = 0; c < count; c++) {
                x[c] = is_activated ? silu_product(input, from, g * GROUP + c, width)
                                    : bf16_at(input, from * width + g * GROUP + c);
            }
            is_right &= is_group_right(x, codes + row * width + g * GROUP,
                                       (double)scales[row * num_groups + g], count,
                                       is_activated ? 0x1p-17 : 0.0);
        }
    }
    free(input);
    free(codes);
    free(scales);
    free(src2dst);
    return is_right;
}

static int is_activation_right(const struct large_check *check, double *values)
{
    const int64_t inter = check->bench->inter, num_rows = count_routes(check);
    void *input = fetch(check->set->gate_up, (size_t)(num_rows * 2 * inter) * 2);
    void *output = fetch(check->set->quantized, (size_t)(num_rows * inter) * 2);
    int is_right = 1;
    for (int64_t i = 0; i < num_rows * inter; i++) {
        values[i] = silu_product(input, i / inter, i % inter, inter);
        is_right &= fabs(bf16_at(output, i) - values[i]) <= fabs(values[i]) * (0x1p-8 + 0x1p-18);
    }
    free(input);
    free(output);
    return is_right;
}

static int is_combine_right(const struct large_check *check, double *values)
{
    const struct bench *bench = check->bench;
    const int is_sum = is_op(check, "sum_reduce");
    const int64_t hidden = bench->hidden, num_routes = count_routes(check);
    void *rows = fetch(check->set->rows, (size_t)(num_routes * hidden) * 2);
    void *output = fetch(check->set->output, (size_t)(bench->num_tokens * hidden) * 2);
    int32_t *src2dst = fetch(check->set->src2dst, (size_t)num_routes * 4);
    float *weights = fetch(check->set->weights, (size_t)num_routes * 4);
    int is_right = 1;
    for (int64_t i = 0; i < bench->num_tokens * hidden; i++) {
        double magnitude = 0.0;
        values[i] = 0.0;
        for (int64_t j = 0; j < bench->top_k; j++) {
            const int64_t route = i / hidden * bench->top_k + j;
            const int64_t row = is_sum ? route : src2dst[route];
            const double value =
                bf16_at(rows, row * hidden + i % hidden) * (is_sum ? 1.0 : (double)weights[route]);
            values[i] += value;
            magnitude += fabs(value);
        }
        is_right &= fabs(bf16_at(output, i) - values[i]) <=
                    fabs(values[i]) / 256.0 + magnitude * bench->top_k * 0x1p-23;
    }
    free(rows);
    free(output);
    free(src2dst);
    free(weights);
    return is_right;
}

/* ---------------------------------------------------------------- by operation */

int64_t large_num_values(const struct large_check *check)
{
    if (is_op(check, "gating") || is_op(check, "route")) {
        return count_routes(check);
    }
    if (is_op(check, "activation")) {
        return count_routes(check) * check->bench->inter;
    }
    const int is_combine = is_op(check, "post_reorder") || is_op(check, "sum_reduce");
    return is_combine ? check->bench->num_tokens * check->bench->hidden : 0;
}

/* `values`: large_num_values of them. */
static int compare(const struct large_check *check, double *values)
{
    if (is_op(check, "gating")) {
        return is_gating_right(check, values);
    }
    if (is_op(check, "route")) {
        return is_gating_right(check, values) && is_align_right(check, check->set->gated_ids);
    }
    if (is_op(check, "align")) {
        return is_align_right(check, check->set->ids);
    }
    if (is_op(check, "ep_preprocess")) {
        return is_ep_right(check);
    }
    if (is_op(check, "pre_reorder")) {
        return is_pre_reorder_right(check);
    }
    if (is_op(check, "activation")) {
        return is_activation_right(check, values);
    }
    return large_num_values(check) > 0 ? is_combine_right(check, values) : are_codes_right(check);
}

int large_is_right(const struct large_check *check)
{
    double *values = malloc(((size_t)large_num_values(check) + 1) * sizeof(*values));
    const int is_right = compare(check, values);
    free(values);
    return is_right;
}

unsigned long long large_compare_values(const struct large_check *check)
{
    const int64_t count = large_num_values(check);
    double *values = malloc((size_t)count * sizeof(*values));
    double *got = fetch(check->reference, (size_t)count * sizeof(*got));
    unsigned long long num_different = 0;
    compare(check, values);
    for (int64_t i = 0; i < count; i++) {
        num_different += !(fabs(got[i] - values[i]) <= 1e-11 * fabs(values[i]) + 1e-12);
    }
    free(values);
    free(got);
    return num_different;
}

int large_list_outputs(const struct large_check *check, struct large_output *out)
{
    const struct bench *bench = check->bench;
    const struct bench_set *set = check->set;
    const int32_t op = bench->op->op;
    const int is_fp8 =
        op == MOE_OP_QUANTIZE || is_op(check, "pre_reorder_fp8") || is_op(check, "activation_fp8");
    const size_t routes = (size_t)count_routes(check) * 4;
    const size_t rows = op == MOE_OP_QUANTIZE ? (size_t)bench->num_tokens : routes / 4;
    const size_t width = (size_t)(op == MOE_OP_ACTIVATION ? bench->inter : bench->hidden);
    int count = 0;
    if (op == MOE_OP_GATING || op == MOE_OP_ROUTE) {
        out[count++] = (struct large_output){set->gated_ids, routes};
        out[count++] = (struct large_output){set->gated_weights, routes};
    }
    if (op == MOE_OP_ALIGN_BLOCK_SIZE || op == MOE_OP_ROUTE) {
        out[count++] = (struct large_output){set->sorted, (size_t)set->sorted_capacity * 4};
        out[count++] = (struct large_output){set->experts, (size_t)set->expert_capacity * 4};
        out[count++] = (struct large_output){set->post_pad, 4};
    }
    if (op == MOE_OP_EP_PREPROCESS) {
        out[count++] = (struct large_output){set->indptr, ((size_t)bench->num_experts + 1) * 8};
        out[count++] = (struct large_output){set->src2dst, routes};
        out[count++] = (struct large_output){set->dst2src, routes};
        out[count++] = (struct large_output){set->reorder, routes};
    }
    if (is_fp8) {
        out[count++] = (struct large_output){set->quantized, rows * width};
        out[count++] = (struct large_output){set->scales, rows * ((width + GROUP - 1) / GROUP) * 4};
    } else if (op == MOE_OP_PRE_REORDER) {
        out[count++] = (struct large_output){set->rows, rows * width * 2};
    } else if (op == MOE_OP_ACTIVATION) {
        out[count++] = (struct large_output){set->quantized, rows * width * 2};
    } else if (op == MOE_OP_POST_REORDER || op == MOE_OP_SUM_REDUCE) {
        out[count++] = (struct large_output){set->output, (size_t)bench->num_tokens * width * 2};
    }
    return count;
}
