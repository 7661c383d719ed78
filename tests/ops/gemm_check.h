/* SPDX-License-Identifier: Apache-2.0 */
/* One GEMM of a fixture with every tile: against its expectation, and the same bits from all. */
#ifndef MOE_TESTS_GEMM_CHECK_H
#define MOE_TESTS_GEMM_CHECK_H

#include "gemm_fixture.h"

#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static inline const struct moe_cpu_kernels *kernels_of(const struct moe_tile *tile)
{
#if MOE_HAVE_AVX2
    if (tile->kernel == MOE_KERNEL_CPU_AVX2) {
        return strcmp(moe_cpu_isa(), "avx2") == 0 ? &moe_cpu_kernels_avx2 : NULL;
    }
#endif
    return tile->kernel == MOE_KERNEL_CPU_C11 ? &moe_cpu_kernels_c11 : NULL;
}

/* The GEMM tiles that this machine can run. */
static inline int64_t list_tiles(const struct moe_tile *tiles[MOE_NUM_TILES])
{
    int64_t count = 0;
    for (int64_t i = 0; i < MOE_NUM_TILES; i++) {
        if (moe_tiles[i].op == MOE_OP_GEMM1 && kernels_of(&moe_tiles[i])) {
            tiles[count++] = &moe_tiles[i];
        }
    }
    assert_true(count >= 2);
    return count;
}

static inline size_t output_bytes(const struct gemm_fixture *fixture)
{
    return (size_t)((fixture->num_outputs - 1) * fixture->output_stride + fixture->width) *
           ref_dtype_bytes(fixture_ref_dtype(fixture->shape.output_dtype));
}

/* AVX2 alone, with AVX-512 VBMI, with AVX512_BF16 as well: the most that this machine has, up to
 * `level`. */
enum { NUM_LEVELS = 3 };

static inline void set_level(struct moe_op_gemm *op, int64_t level)
{
    op->has_avx512_vbmi = level >= 1 && moe_cpu_isa_has_avx512_vbmi();
    op->has_avx512_bf16 = level >= 2 && moe_cpu_isa_has_avx512_bf16();
}

static inline bool have_segments_overlap(const struct moe_op_gemm *op)
{
    bool do_overlap = false;
    for (int64_t i = 0; op->seg_indptr && i < op->num_segments; i++) {
        do_overlap |= op->seg_indptr[i] > op->seg_indptr[i + 1];
    }
    return do_overlap;
}

/* Ranges of tasks, the last first, each told of some task as the next, give the bits of single
 * tasks, which are in `output`. */
static inline void check_ranges(struct gemm_fixture *fixture, const struct moe_cpu_kernel *gemm,
                                const struct moe_tile *tile, const struct moe_op_gemm *op,
                                struct support_guard *output, struct support_guard *scratch)
{
    const size_t bytes = output_bytes(fixture);
    const int64_t num_tasks = gemm->num_tasks(op, tile);
    unsigned char *singles = fixture_alloc((int64_t)bytes, 1);
    memcpy(singles, output->data, bytes);
    support_guard_poison(output);
    support_guard_poison(scratch);
    for (int64_t end = num_tasks; end > 0;) {
        const int64_t length = 1 + (int64_t)support_random_below(&fixture->random, (uint64_t)end);
        const struct moe_cpu_tasks tasks = {
            .first = end - length,
            .end = end,
            .next = (int64_t)support_random_below(&fixture->random, (uint64_t)num_tasks + 1) - 1,
        };
        gemm->run_tasks(op, tile, &tasks, scratch->data);
        end = tasks.first;
    }
    if (!have_segments_overlap(op)) { /* else the order decides */
        assert_memory_equal(output->data, singles, bytes);
    }
    free(singles);
}

/* Run every task once, in a shuffled order, with scratch that holds NaN; then as ranges. */
static inline void run_tile_at(struct gemm_fixture *fixture, const struct moe_tile *tile,
                               int64_t level, struct support_guard *output)
{
    const struct moe_cpu_kernel *gemm = &kernels_of(tile)->gemm;
    const struct support_guard_options exact = {
        .alignment = ref_dtype_bytes(fixture_ref_dtype(fixture->shape.output_dtype)),
        .poison = SUPPORT_POISON_FLOAT,
        .end_at_page = true};
    struct support_guard scratch;
    support_guard_init(output, output_bytes(fixture), &exact);
    support_guard_init(&scratch, gemm->scratch_bytes(&fixture->op, tile), NULL);

    struct moe_op_gemm op = fixture->op;
    op.output = output->data;
    set_level(&op, level);
    const int64_t num_tasks = gemm->num_tasks(&op, tile);
    int64_t *order = fixture_alloc(num_tasks, sizeof(int64_t));
    for (int64_t task = 0; task < num_tasks; task++) {
        order[task] = task;
    }
    for (int64_t task = num_tasks - 1; task > 0; task--) {
        const int64_t other = (int64_t)support_random_below(&fixture->random, (uint64_t)task + 1);
        const int64_t swapped = order[task];
        order[task] = order[other];
        order[other] = swapped;
    }
    for (int64_t i = 0; i < num_tasks; i++) {
        if (i % 7 == 0) {
            support_guard_poison(&scratch);
        }
        gemm->run(&op, tile, order[i], scratch.data);
    }
    free(order);
    check_ranges(fixture, gemm, tile, &op, output, &scratch);
    assert_guard_intact(&scratch);
    assert_guard_intact(output);
    support_guard_finish(&scratch);
}

/* Levels in turns. */
static inline void run_tile(struct gemm_fixture *fixture, const struct moe_tile *tile,
                            struct support_guard *output)
{
    run_tile_at(fixture, tile, tile->id % NUM_LEVELS, output);
}

/* Rows that the schedule names are right, all else is untouched. */
static inline void check_outputs(const struct gemm_fixture *fixture,
                                 const struct support_guard *output)
{
    const enum ref_dtype dtype = fixture_ref_dtype(fixture->shape.output_dtype);
    const size_t bytes = ref_dtype_bytes(dtype);
    for (int64_t row = 0; row < fixture->num_outputs; row++) {
        const size_t begin = (size_t)(row * fixture->output_stride) * bytes;
        const size_t end = begin + (size_t)fixture->width * bytes;
        const size_t next =
            row + 1 < fixture->num_outputs ? begin + (size_t)fixture->output_stride * bytes : end;
        if (fixture->written[row]) {
            assert_all_within(fixture->expected + row * fixture->width,
                              fixture->tolerance + row * fixture->width, dtype,
                              output->data + begin, fixture->width);
        } else {
            assert_true(support_guard_is_poison(output, begin, end));
        }
        assert_true(support_guard_is_poison(output, end, next));
    }
}

/* All tiles in one layout, at all levels; the outputs' hash. */
static inline uint64_t check_shape(const struct gemm_shape *shape)
{
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    struct gemm_fixture fixture;
    struct support_guard first = {0};
    gemm_fixture_init(&fixture, shape);
    for (int64_t i = 0; i < NUM_LEVELS * num_tiles; i++) {
        const struct moe_tile *tile = tiles[i % num_tiles];
        struct support_guard output;
        if (i >= num_tiles && tile->kernel == MOE_KERNEL_CPU_C11) {
            continue; /* it has no levels */
        }
        run_tile_at(&fixture, tile, i / num_tiles, i == 0 ? &first : &output);
        if (i == 0) {
            check_outputs(&fixture, &first);
            continue;
        }
        if (memcmp(first.data, output.data, output.size) != 0) {
            print_error("%s at level %d differs from %s\n", tile->name, (int)(i / num_tiles),
                        tiles[0]->name);
        }
        assert_bits_equal(first.data, output.data, (int64_t)output.size, 1);
        support_guard_finish(&output);
    }
    const uint64_t hash = support_hash(SUPPORT_HASH_INIT, first.data, first.size);
    support_guard_finish(&first);
    gemm_fixture_finish(&fixture);
    return hash;
}

#endif
