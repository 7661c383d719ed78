/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The router kernels: logits within the bound of fp32 accumulation, and with the same bits in every
 * instruction set and tile.
 */
#include "cpu_isa.h"
#include "cpu_kernels.h"
#include "support.h"
#include "tiles.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

enum { PAD = 5 };

static const int32_t dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16};

struct router_case {
    int64_t num_tokens;
    int64_t num_experts;
    int64_t hidden;
    int32_t token_dtype;
    int32_t weight_dtype;
    int32_t bias_dtype; /* 0: none */
    int32_t logits_dtype;
    bool transposed;
};

static enum ref_dtype ref_of(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? REF_F32 : dtype == MOE_DTYPE_FP16 ? REF_F16 : REF_BF16;
}

static const struct moe_cpu_kernels *kernels_of(const struct moe_tile *tile)
{
#if MOE_HAVE_AVX2
    if (tile->kernel == MOE_KERNEL_CPU_AVX2) {
        return strcmp(moe_cpu_isa(), "avx2") == 0 ? &moe_cpu_kernels_avx2 : NULL;
    }
#endif
    return tile->kernel == MOE_KERNEL_CPU_C11 ? &moe_cpu_kernels_c11 : NULL;
}

static void *allocate(int64_t count, size_t bytes)
{
    void *block = calloc((size_t)(count > 0 ? count : 1), bytes);
    assert_non_null(block);
    return block;
}

/*
 * Random values that dtype holds exactly, as doubles and, in guarded memory that ends at a page, as
 * elements.
 */
static double *make_values(struct support_random *random, int64_t count, int32_t dtype)
{
    double *values = allocate(count, sizeof(double));
    for (int64_t i = 0; i < count; i++) {
        values[i] = ref_round(ref_of(dtype), support_random_normal(random));
    }
    return values;
}

static void guard_elements(struct support_guard *guard, int64_t count, int32_t dtype)
{
    const size_t bytes = ref_dtype_bytes(ref_of(dtype));
    const struct support_guard_options options = {
        .alignment = bytes, .poison = SUPPORT_POISON_FLOAT, .end_at_page = true};
    support_guard_init(guard, (size_t)(count > 0 ? count : 0) * bytes, &options);
}

struct router_data {
    double *tokens, *weight, *bias, *logits, *tolerance;
    struct support_guard token_memory, weight_memory, bias_memory;
};

static void place(const struct router_case *c, struct router_data *data, struct moe_op_router *op)
{
    const int64_t h = c->hidden, e = c->num_experts, token_stride = h + PAD;
    guard_elements(&data->token_memory, (c->num_tokens - 1) * token_stride + h, c->token_dtype);
    guard_elements(&data->weight_memory, e * h, c->weight_dtype);
    for (int64_t t = 0; t < c->num_tokens; t++) {
        for (int64_t i = 0; i < h; i++) {
            ref_store(ref_of(c->token_dtype), data->token_memory.data, t * token_stride + i,
                      data->tokens[t * h + i]);
        }
    }
    for (int64_t x = 0; x < e; x++) {
        for (int64_t i = 0; i < h; i++) {
            ref_store(ref_of(c->weight_dtype), data->weight_memory.data,
                      c->transposed ? i * e + x : x * h + i, data->weight[x * h + i]);
        }
    }
    *op = (struct moe_op_router){
        .num_tokens = c->num_tokens,
        .num_experts = (int32_t)e,
        .hidden = (int32_t)h,
        .tokens = data->token_memory.data,
        .token_stride = token_stride,
        .token_dtype = c->token_dtype,
        .logits_dtype = c->logits_dtype,
        .weight = {.base = data->weight_memory.data,
                   .row_stride = c->transposed ? 1 : h,
                   .col_stride = c->transposed ? e : 1,
                   .dtype = c->weight_dtype},
        .logits_stride = e + PAD,
    };
    if (c->bias_dtype) {
        guard_elements(&data->bias_memory, e, c->bias_dtype);
        ref_store_all(ref_of(c->bias_dtype), data->bias_memory.data, e, data->bias);
        op->bias = (struct moe_operand){
            .base = data->bias_memory.data, .row_stride = 1, .dtype = c->bias_dtype};
    }
}

static void expect(const struct router_case *c, struct router_data *data)
{
    const int64_t count = c->num_tokens * c->num_experts;
    double *sum_abs = allocate(count, sizeof(double));
    data->logits = allocate(count, sizeof(double));
    data->tolerance = allocate(count, sizeof(double));
    ref_router(data->tokens, data->weight, c->bias_dtype ? data->bias : NULL, c->num_tokens,
               c->num_experts, c->hidden, data->logits, sum_abs);
    for (int64_t i = 0; i < count; i++) {
        data->tolerance[i] =
            ref_gemm_tolerance((c->hidden + 7) / 8 + 4, ref_of(c->token_dtype),
                               ref_of(c->logits_dtype), sum_abs[i], data->logits[i]);
    }
    free(sum_abs);
}

static void run_tile(const struct moe_op_router *router, const struct moe_tile *tile,
                     struct support_guard *output)
{
    const struct moe_cpu_kernel *kernel = &kernels_of(tile)->router;
    struct moe_op_router op = *router;
    struct support_guard scratch;
    guard_elements(output, (op.num_tokens - 1) * op.logits_stride + op.num_experts,
                   op.logits_dtype);
    support_guard_init(&scratch, kernel->scratch_bytes(&op, tile), NULL);
    op.logits = output->data;
    for (int64_t task = kernel->num_tasks(&op, tile) - 1; task >= 0; task--) {
        kernel->run(&op, tile, task, scratch.data);
    }
    assert_guard_intact(&scratch);
    assert_guard_intact(output);
    support_guard_finish(&scratch);
}

static void check_logits(const struct router_case *c, const struct router_data *data,
                         const struct support_guard *output)
{
    const size_t bytes = ref_dtype_bytes(ref_of(c->logits_dtype));
    for (int64_t t = 0; t < c->num_tokens; t++) {
        const size_t begin = (size_t)(t * (c->num_experts + PAD)) * bytes;
        const size_t end = begin + (size_t)c->num_experts * bytes;
        assert_all_within(data->logits + t * c->num_experts, data->tolerance + t * c->num_experts,
                          ref_of(c->logits_dtype), output->data + begin, c->num_experts);
        if (t + 1 < c->num_tokens) {
            assert_true(support_guard_is_poison(output, end, end + PAD * bytes));
        }
    }
}

static void check_case(const struct router_case *c, uint64_t seed)
{
    struct support_random random;
    struct router_data data = {0};
    struct moe_op_router op;
    struct support_guard first = {0};
    bool has_first = false;
    support_random_seed(&random, seed);
    data.tokens = make_values(&random, c->num_tokens * c->hidden, c->token_dtype);
    data.weight = make_values(&random, c->num_experts * c->hidden, c->weight_dtype);
    data.bias =
        make_values(&random, c->num_experts, c->bias_dtype ? c->bias_dtype : MOE_DTYPE_FP32);
    place(c, &data, &op);
    expect(c, &data);
    for (int i = 0; i < MOE_NUM_TILES; i++) {
        const struct moe_tile *tile = &moe_tiles[i];
        if (tile->op != MOE_OP_GEMM1 || !kernels_of(tile)) {
            continue;
        }
        struct support_guard output;
        run_tile(&op, tile, has_first ? &output : &first);
        if (has_first) {
            assert_bits_equal(first.data, output.data, (int64_t)output.size, 1);
            support_guard_finish(&output);
        } else {
            check_logits(c, &data, &first);
        }
        has_first = true;
    }
    assert_true(has_first);
    support_guard_finish(&first);
    support_guard_finish(&data.token_memory);
    support_guard_finish(&data.weight_memory);
    support_guard_finish(&data.bias_memory);
    free(data.tokens);
    free(data.weight);
    free(data.bias);
    free(data.logits);
    free(data.tolerance);
}

static void test_grid(void **state)
{
    (void)state;
    static const int64_t tokens[] = {1, 2, 5, 8, 50, 300};
    static const int64_t experts[] = {1, 7, 8, 60, 128};
    static const int64_t hidden[] = {1, 7, 9, 64, 600};
    const int levels[] = {COUNT(tokens), COUNT(experts),    COUNT(hidden), COUNT(dtypes),
                          COUNT(dtypes), COUNT(dtypes) + 1, COUNT(dtypes), 2};
    struct support_grid grid;
    support_grid_init_pairwise(&grid, levels, COUNT(levels), NULL, NULL);
    for (int64_t row = 0; row < grid.num_rows; row++) {
        int pick[COUNT(levels)];
        support_grid_row(&grid, row, pick);
        const struct router_case c = {
            .num_tokens = tokens[pick[0]],
            .num_experts = experts[pick[1]],
            .hidden = hidden[pick[2]],
            .token_dtype = dtypes[pick[3]],
            .weight_dtype = dtypes[pick[4]],
            .bias_dtype = pick[5] < COUNT(dtypes) ? dtypes[pick[5]] : 0,
            .logits_dtype = dtypes[pick[6]],
            .transposed = pick[7] == 1,
        };
        check_case(&c, (uint64_t)row + 1000);
    }
    support_grid_finish(&grid);
}

static void test_no_tokens(void **state)
{
    (void)state;
    const struct moe_op_router op = {.num_experts = 8,
                                     .hidden = 8,
                                     .token_dtype = MOE_DTYPE_FP32,
                                     .logits_dtype = MOE_DTYPE_FP32};
    for (int i = 0; i < MOE_NUM_TILES; i++) {
        if (moe_tiles[i].op == MOE_OP_GEMM1 && kernels_of(&moe_tiles[i])) {
            assert_int_equal(kernels_of(&moe_tiles[i])->router.num_tasks(&op, &moe_tiles[i]), 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid),
        cmocka_unit_test(test_no_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
