/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a CPU kernel directly, without plan or pool: in every built instruction set that this
 * machine has, with every block size that tiles.def has for the operation and one that it has not,
 * tasks in a scrambled order, scratch guarded and poisoned before each task.
 */
#ifndef MOE_TESTS_KERNEL_RUN_H
#define MOE_TESTS_KERNEL_RUN_H

#include "cpu_kernels.h"
#include "ref.h"
#include "support.h"
#include "tile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KERNEL_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

enum { KERNEL_MAX_VARIANTS = 16 };

/* One way to run an operation. */
struct kernel_variant {
    const struct moe_cpu_kernels *kernels;
    struct moe_tile tile;
};

static inline bool kernel_have_avx2(void)
{
#if MOE_HAVE_AVX2
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static inline void kernel_add_variant(struct kernel_variant *variants, int *count,
                                      const struct moe_cpu_kernels *kernels, int32_t op,
                                      int32_t block_size)
{
    assert_true(*count < KERNEL_MAX_VARIANTS);
    memset(&variants[*count], 0, sizeof(variants[*count]));
    variants[*count].kernels = kernels;
    variants[*count].tile.op = op;
    variants[*count].tile.block_size = block_size;
    (*count)++;
}

/* Every instruction set with every block size of `op`, plus 3. Returns how many. */
static inline int kernel_list_variants(int32_t op, struct kernel_variant *variants)
{
    static const struct {
        int32_t op;
        int32_t block_size;
    } rows[] = {
#define MOE_TILE_BLOCK(name, kernel, size) {MOE_OP_##name, (size)},
#include "tiles.def"
    };
    int count = 0;
    for (int isa = 0; isa < (kernel_have_avx2() ? 2 : 1); isa++) {
        const struct moe_cpu_kernels *kernels = &moe_cpu_kernels_c11;
#if MOE_HAVE_AVX2
        kernels = isa == 1 ? &moe_cpu_kernels_avx2 : kernels;
#endif
        kernel_add_variant(variants, &count, kernels, op, 3);
        for (int row = 0; row < KERNEL_COUNT(rows); row++) {
            if (rows[row].op == op) {
                kernel_add_variant(variants, &count, kernels, op, rows[row].block_size);
            }
        }
    }
    return count;
}

/* Runs all tasks, the odd ones first, each descending. */
static inline void kernel_run(const struct moe_cpu_kernel *kernel, const struct moe_tile *tile,
                              const void *op)
{
    const int64_t num_tasks = kernel->num_tasks(op, tile);
    struct support_guard scratch;
    support_guard_init(&scratch, (size_t)kernel->scratch_bytes(op, tile), NULL);
    for (int odd = 1; odd >= 0; odd--) {
        for (int64_t task = num_tasks - 1; task >= 0; task--) {
            if (task % 2 == odd) {
                support_guard_poison(&scratch);
                kernel->run(op, tile, task, scratch.data);
                assert_guard_intact(&scratch);
            }
        }
    }
    support_guard_finish(&scratch);
}

/* A guarded output of `bytes`; integers and floats get the poison of their kind. */
static inline struct support_guard kernel_output(int64_t bytes, int poison)
{
    const struct support_guard_options options = {.poison = poison};
    struct support_guard guard;
    support_guard_init(&guard, (size_t)bytes, &options);
    return guard;
}

/* A guarded input that ends at a page without access, filled from `from` (NULL: left poisoned). */
static inline struct support_guard kernel_input(const void *from, int64_t bytes, size_t alignment)
{
    const struct support_guard_options options = {
        .alignment = alignment, .poison = SUPPORT_POISON_FLOAT, .end_at_page = true};
    struct support_guard guard;
    support_guard_init(&guard, (size_t)bytes, &options);
    if (from != NULL && bytes > 0) {
        memcpy(guard.data, from, (size_t)bytes);
    }
    return guard;
}

static inline void *kernel_array(int64_t count, size_t element_bytes)
{
    void *array = calloc((size_t)count + 1, element_bytes);
    assert_non_null(array);
    return array;
}

/* The dtype of the ABI that a reference's dtype stands for. */
static inline int32_t kernel_dtype(enum ref_dtype dtype)
{
    switch (dtype) {
    case REF_F32:
        return MOE_DTYPE_FP32;
    case REF_F16:
        return MOE_DTYPE_FP16;
    case REF_BF16:
        return MOE_DTYPE_BF16;
    case REF_E4M3:
        return MOE_DTYPE_FP8_E4M3;
    default:
        fail_msg("no kernel takes %s", ref_dtype_name(dtype));
        return 0;
    }
}

#endif
