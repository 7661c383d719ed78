/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_weights.h"

#include "abi_names.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256 };

/* Sizes of a problem that operands have. */
enum size { ONE, EXPERTS, ALL_EXPERTS, HIDDEN, INTER, SHARED_INTER };

/* An operand: [experts, rows, columns] of the recipe's elements, or of its scales, which are as
 * many fewer as share one. */
struct row {
    size_t operand; /* offset in moe_weights_desc */
    enum size experts, rows, columns;
    size_t recipe; /* offset in moe_problem */
    int is_scale;
};

#define OPERAND(member) offsetof(struct moe_weights_desc, member)
#define RECIPE(member)  offsetof(struct moe_problem, member)
static const struct row rows[] = {
    {OPERAND(gate), EXPERTS, INTER, HIDDEN, RECIPE(gate_up), 0},
    {OPERAND(up), EXPERTS, INTER, HIDDEN, RECIPE(gate_up), 0},
    {OPERAND(down), EXPERTS, HIDDEN, INTER, RECIPE(down), 0},
    {OPERAND(gate_bias), EXPERTS, INTER, ONE, RECIPE(gate_up), 0},
    {OPERAND(up_bias), EXPERTS, INTER, ONE, RECIPE(gate_up), 0},
    {OPERAND(down_bias), EXPERTS, HIDDEN, ONE, RECIPE(gate_up), 0},
    {OPERAND(gate_scale), EXPERTS, INTER, HIDDEN, RECIPE(gate_up), 1},
    {OPERAND(up_scale), EXPERTS, INTER, HIDDEN, RECIPE(gate_up), 1},
    {OPERAND(down_scale), EXPERTS, HIDDEN, INTER, RECIPE(down), 1},
    {OPERAND(router), ONE, ALL_EXPERTS, HIDDEN, RECIPE(gate_up), 0},
    {OPERAND(router_bias), ONE, ALL_EXPERTS, ONE, RECIPE(gate_up), 0},
    {OPERAND(correction_bias), ONE, ALL_EXPERTS, ONE, RECIPE(gate_up), 0},
    {OPERAND(shared_gate), ONE, SHARED_INTER, HIDDEN, RECIPE(gate_up), 0},
    {OPERAND(shared_up), ONE, SHARED_INTER, HIDDEN, RECIPE(gate_up), 0},
    {OPERAND(shared_down), ONE, HIDDEN, SHARED_INTER, RECIPE(gate_up), 0},
    {OPERAND(shared_sigmoid), ONE, ONE, HIDDEN, RECIPE(gate_up), 0},
    {OPERAND(shared_gate_scale), ONE, SHARED_INTER, HIDDEN, RECIPE(gate_up), 1},
    {OPERAND(shared_up_scale), ONE, SHARED_INTER, HIDDEN, RECIPE(gate_up), 1},
    {OPERAND(shared_down_scale), ONE, HIDDEN, SHARED_INTER, RECIPE(down), 1},
};
_Static_assert(sizeof rows / sizeof rows[0] == MOE_GPU_WEIGHTS_NUM_OPERANDS, "a row per operand");
_Static_assert(sizeof(struct moe_weights_desc) ==
                   OPERAND(gate) + MOE_GPU_WEIGHTS_NUM_OPERANDS * sizeof(struct moe_operand),
               "the operands are all of them");

static int64_t get_size(const struct moe_problem *problem, enum size size)
{
    switch (size) {
    case EXPERTS:
        return problem->num_experts;
    case ALL_EXPERTS:
        return problem->num_experts_global > 0 ? problem->num_experts_global : problem->num_experts;
    case HIDDEN:
        return problem->hidden;
    case INTER:
        return problem->inter;
    case SHARED_INTER:
        return problem->shared_inter;
    default:
        return 1;
    }
}

/* Bytes of an element that takes whole bytes; 0: another type. */
static int64_t get_element_bytes(int32_t dtype)
{
    switch (dtype) {
    case MOE_DTYPE_FP32:
        return 4;
    case MOE_DTYPE_FP16:
    case MOE_DTYPE_BF16:
        return 2;
    case MOE_DTYPE_FP8_E4M3:
    case MOE_DTYPE_INT8:
    case MOE_DTYPE_UE8M0:
        return 1;
    default:
        return 0;
    }
}

/* Bytes that are sent together. */
struct range {
    uintptr_t begin, end;
    uint64_t offset; /* in the device's memory */
};

struct ranges {
    struct range *items;
    size_t num_items, capacity;
};

static int64_t count_groups(int64_t size, int32_t group)
{
    return group > 0 ? (size + group - 1) / group : 1;
}

/* First and last byte of one expert's matrix, as offsets from its address. */
struct extent {
    int64_t begin, end;
};

static void stretch(struct extent *extent, int64_t count, int64_t stride_bytes)
{
    const int64_t reach = (count - 1) * stride_bytes;
    *(reach < 0 ? &extent->begin : &extent->end) += reach;
}

/* What an operand spans from each of its num_entries addresses: one, which all experts follow, or
 * one per expert. */
static int measure(const struct row *row, const struct moe_problem *problem,
                   const struct moe_operand *operand, struct extent *extent, int64_t *num_entries,
                   struct moe_cli_error *error)
{
    struct moe_recipe recipe;
    memcpy(&recipe, (const char *)problem + row->recipe, sizeof recipe);
    int32_t dtype = row->is_scale ? recipe.scale_dtype : recipe.dtype;
    if (row->operand == OPERAND(correction_bias)) {
        dtype = MOE_DTYPE_FP32;
    }
    dtype = operand->dtype != 0 ? operand->dtype : dtype;
    const int64_t element_bytes = get_element_bytes(dtype);
    if (element_bytes == 0) {
        return MOE_CLI_FAIL(error, "weights of type %s cannot be sent to a GPU by moectl",
                            moe_abi_dtype_name(dtype));
    }
    const int64_t num_experts = get_size(problem, row->experts);
    int64_t num_rows = get_size(problem, row->rows);
    int64_t num_columns = get_size(problem, row->columns);
    if (row->is_scale) {
        num_rows = count_groups(num_rows, recipe.group_rows);
        num_columns = count_groups(num_columns, recipe.group_k);
    }
    *extent = (struct extent){0, element_bytes};
    stretch(extent, num_rows, operand->row_stride * element_bytes);
    stretch(extent, num_columns, operand->col_stride * element_bytes);
    *num_entries = operand->table != NULL ? num_experts : 1;
    if (operand->table == NULL) {
        stretch(extent, num_experts, operand->expert_stride * element_bytes);
    }
    return 0;
}

static int add_range(struct ranges *ranges, const void *at, const struct extent *extent,
                     struct moe_cli_error *error)
{
    if (ranges->num_items == ranges->capacity) {
        const size_t capacity = 2 * ranges->capacity + 64;
        struct range *items = realloc(ranges->items, capacity * sizeof *items);
        if (items == NULL) {
            return moe_cli_fail_memory(error, "sending the weights");
        }
        ranges->items = items;
        ranges->capacity = capacity;
    }
    const uintptr_t address = (uintptr_t)at;
    ranges->items[ranges->num_items++] =
        (struct range){address + (uintptr_t)extent->begin, address + (uintptr_t)extent->end, 0};
    return 0;
}

static struct moe_operand *get_operand(struct moe_weights_desc *desc, const struct row *row)
{
    return (struct moe_operand *)(void *)((char *)desc + row->operand);
}

static int is_present(const struct moe_operand *operand)
{
    return operand->base != NULL || operand->table != NULL;
}

static int collect(struct moe_weights_desc *desc, const struct moe_problem *problem,
                   struct ranges *ranges, struct moe_cli_error *error)
{
    for (size_t i = 0; i < MOE_GPU_WEIGHTS_NUM_OPERANDS; ++i) {
        const struct moe_operand *operand = get_operand(desc, &rows[i]);
        struct extent extent;
        int64_t num_entries = 0;
        if (!is_present(operand)) {
            continue;
        }
        if (measure(&rows[i], problem, operand, &extent, &num_entries, error) != 0) {
            return -1;
        }
        for (int64_t e = 0; e < num_entries; ++e) {
            const void *at = operand->table != NULL ? operand->table[e] : operand->base;
            if (add_range(ranges, at, &extent, error) != 0) {
                return -1;
            }
        }
    }
    return 0;
}

static int compare_ranges(const void *a, const void *b)
{
    const uintptr_t left = ((const struct range *)a)->begin;
    const uintptr_t right = ((const struct range *)b)->begin;
    return (left > right) - (left < right);
}

/* Makes one of ranges that overlap, and gives each its place. Returns the bytes of all. */
static uint64_t place(struct ranges *ranges)
{
    size_t num_kept = 0;
    uint64_t num_bytes = 0;
    qsort(ranges->items, ranges->num_items, sizeof ranges->items[0], compare_ranges);
    for (size_t i = 0; i < ranges->num_items; ++i) {
        const struct range *range = &ranges->items[i];
        struct range *last = num_kept > 0 ? &ranges->items[num_kept - 1] : NULL;
        if (last != NULL && range->begin < last->end) {
            last->end = range->end > last->end ? range->end : last->end;
        } else {
            ranges->items[num_kept++] = *range;
        }
    }
    ranges->num_items = num_kept;
    for (size_t i = 0; i < num_kept; ++i) {
        struct range *range = &ranges->items[i];
        range->offset = num_bytes;
        num_bytes += (range->end - range->begin + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return num_bytes;
}

/* The device's address of a byte of a range. */
static const void *translate(const struct moe_gpu_weights *weights, const struct ranges *ranges,
                             const void *at)
{
    const uintptr_t address = (uintptr_t)at;
    size_t low = 0, high = ranges->num_items;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (ranges->items[middle].begin <= address) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const struct range *range = &ranges->items[low];
    return (const char *)weights->memory + range->offset + (address - range->begin);
}

static int move_operands(struct moe_gpu_weights *weights, const struct moe_problem *problem,
                         const struct ranges *ranges, struct moe_cli_error *error)
{
    for (size_t i = 0; i < MOE_GPU_WEIGHTS_NUM_OPERANDS; ++i) {
        struct moe_operand *operand = get_operand(&weights->desc, &rows[i]);
        if (operand->base != NULL) {
            operand->base = translate(weights, ranges, operand->base);
        }
        if (operand->table == NULL) {
            continue;
        }
        const int64_t num_experts = get_size(problem, rows[i].experts);
        const void **table = calloc((size_t)num_experts, sizeof *table);
        if (table == NULL) {
            return moe_cli_fail_memory(error, "sending the weights");
        }
        weights->tables[i] = table;
        for (int64_t e = 0; e < num_experts; ++e) {
            table[e] = translate(weights, ranges, operand->table[e]);
        }
        operand->table = table;
    }
    return 0;
}

int moe_gpu_weights_init(struct moe_gpu_weights *weights, struct moe_gpu *gpu,
                         const struct moe_problem *problem, const struct moe_weights_desc *desc,
                         struct moe_cli_error *error)
{
    *weights = (struct moe_gpu_weights){.gpu = gpu, .desc = *desc};
    struct ranges ranges = {.items = NULL};
    int status = collect(&weights->desc, problem, &ranges, error);
    if (status == 0) {
        weights->num_bytes = place(&ranges);
        status = moe_gpu_alloc(gpu, weights->num_bytes, "the weights", &weights->memory, error);
    }
    for (size_t i = 0; status == 0 && i < ranges.num_items; ++i) {
        const struct range *range = &ranges.items[i];
        status = moe_gpu_upload(gpu, (char *)weights->memory + range->offset,
                                (const void *)range->begin, range->end - range->begin, error);
    }
    if (status == 0) {
        status = move_operands(weights, problem, &ranges, error);
    }
    free(ranges.items);
    return status;
}

void moe_gpu_weights_finish(struct moe_gpu_weights *weights)
{
    for (size_t i = 0; i < MOE_GPU_WEIGHTS_NUM_OPERANDS; ++i) {
        free(weights->tables[i]);
    }
    if (weights->gpu != NULL) {
        moe_gpu_free(weights->gpu, weights->memory);
    }
    memset(weights, 0, sizeof *weights);
}
