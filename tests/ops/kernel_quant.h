/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of quantized rows share: every form of a quantization, inputs with all that is awkward
 * in them, and arrays of scales with what they should hold. */
#ifndef MOE_TESTS_KERNEL_QUANT_H
#define MOE_TESTS_KERNEL_QUANT_H

#include "kernel_run.h"

#include <math.h>

struct quant_form {
    int32_t layout; /* dynamic; else MOE_SCALE_NONE */
    enum ref_scale_layout ref_layout;
    int32_t static_per;
};

static const struct quant_form quant_forms[] = {
    {MOE_SCALE_ROW_MAJOR, REF_SCALE_ROW_MAJOR, 0},
    {MOE_SCALE_COLUMN_MAJOR_TMA, REF_SCALE_COLUMN_MAJOR, 0},
    {MOE_SCALE_UE8M0_PACKED, REF_SCALE_PACKED, 0},
    {MOE_SCALE_NONE, REF_SCALE_ROW_MAJOR, MOE_QUANT_PER_TENSOR},
    {MOE_SCALE_NONE, REF_SCALE_ROW_MAJOR, MOE_QUANT_PER_ROW},
    {MOE_SCALE_NONE, REF_SCALE_ROW_MAJOR, MOE_QUANT_PER_EXPERT},
};

enum { QUANT_NUM_FORMS = KERNEL_COUNT(quant_forms), QUANT_NUM_BASIC_FORMS = QUANT_NUM_FORMS - 1 };

/* 0: the row is one group. */
static const int64_t quant_group_ks[] = {0, 1, 3, 32, 128, 200};

/* One quantization of [num_rows][width]: arrays of scales, and what dynamic ones should be. */
struct quant_fixture {
    struct quant_form form;
    int64_t num_rows;
    int64_t width;
    int64_t group_k; /* 1 .. width */
    int64_t num_groups;
    int64_t stride;
    int64_t num_elements; /* of the array of dynamic scales */
    float *static_scales;
    uint32_t *expected_scales;
    struct support_guard scales;
};

static inline void quant_init(struct quant_fixture *fixture, struct support_random *random,
                              struct quant_form form, int64_t num_rows, int64_t width,
                              int64_t group_k, int64_t padding)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->form = form;
    fixture->num_rows = num_rows;
    fixture->width = width;
    fixture->group_k = group_k == 0 || group_k > width ? width : group_k;
    fixture->num_groups = (width + fixture->group_k - 1) / fixture->group_k;
    const bool by_row = form.layout == MOE_SCALE_ROW_MAJOR;
    const int64_t num_columns =
        form.layout == MOE_SCALE_UE8M0_PACKED ? (fixture->num_groups + 3) / 4 : fixture->num_groups;
    fixture->stride = padding + (by_row ? num_columns : (num_rows + 3) / 4 * 4);
    fixture->num_elements =
        form.layout == MOE_SCALE_NONE ? 0 : fixture->stride * (by_row ? num_rows : num_columns);
    fixture->static_scales = kernel_array(num_rows, sizeof(float));
    for (int64_t i = 0; i < num_rows + 1; i++) {
        fixture->static_scales[i] =
            ldexpf(1.0f + (float)support_random_below(random, 1000) / 1000.0f,
                   (int)support_random_below(random, 20) - 12);
    }
    fixture->static_scales[num_rows / 2] = 0.0f; /* its reciprocal is infinite */
    fixture->scales = kernel_output(fixture->num_elements * 4, SUPPORT_POISON_FLOAT);
    fixture->expected_scales = kernel_array(fixture->num_elements, 4);
    memset(fixture->expected_scales, SUPPORT_POISON_FLOAT, (size_t)fixture->num_elements * 4);
}

static inline void quant_finish(struct quant_fixture *fixture)
{
    support_guard_finish(&fixture->scales);
    free(fixture->expected_scales);
    free(fixture->static_scales);
}

static inline struct moe_op_quant quant_op(const struct quant_fixture *fixture)
{
    const bool is_dynamic = fixture->form.layout != MOE_SCALE_NONE;
    const struct moe_op_quant quant = {
        .dtype = MOE_DTYPE_FP8_E4M3,
        .is_dynamic = is_dynamic,
        .group_k = (int32_t)fixture->group_k,
        .scale_layout = fixture->form.layout,
        .static_per = fixture->form.static_per,
        .static_scales = is_dynamic ? NULL : fixture->static_scales,
        .scales = is_dynamic ? fixture->scales.data : NULL,
        .scale_stride = fixture->stride,
    };
    return quant;
}

/* Codes of a row of values; dynamic scales go to row `row` of what is expected, a static one is
 * number `static_idx`. */
static inline void quant_expect_row(struct quant_fixture *fixture, const double *values,
                                    int64_t row, int64_t static_idx, uint8_t *codes)
{
    double *quantized = kernel_array(fixture->width, sizeof(double));
    double *scales = kernel_array(fixture->num_groups, sizeof(double));
    if (fixture->form.layout == MOE_SCALE_NONE) {
        const bool is_one = fixture->form.static_per == MOE_QUANT_PER_TENSOR;
        ref_quantize_static(values, fixture->width,
                            (double)fixture->static_scales[is_one ? 0 : static_idx], quantized);
    } else {
        ref_quantize(values, 1, fixture->width, fixture->group_k,
                     fixture->form.layout == MOE_SCALE_UE8M0_PACKED, quantized, scales);
        ref_store_scales(fixture->form.ref_layout, scales, fixture->num_groups, row,
                         fixture->stride, fixture->expected_scales);
    }
    ref_store_all(REF_E4M3, codes, fixture->width, quantized);
    free(scales);
    free(quantized);
}

static inline void quant_check_scales(const struct quant_fixture *fixture)
{
    assert_bits_equal(fixture->expected_scales, fixture->scales.data, fixture->num_elements, 4);
    assert_guard_intact(&fixture->scales);
}

/* Rows of every size, then zeros, NaN, infinities and subnormals in some of them. */
static inline void quant_fill(struct support_random *random, enum ref_dtype dtype, void *values,
                              int64_t num_rows, int64_t width, int64_t stride)
{
    static const double awkward[] = {0.0,       -0.0,     NAN,      INFINITY,
                                     -INFINITY, 0x1p-133, -0x1p-24, 0x1p15};
    const int64_t bytes = (int64_t)ref_dtype_bytes(dtype);
    for (int64_t r = 0; r < num_rows; r++) {
        unsigned char *row = (unsigned char *)values + r * stride * bytes;
        const uint64_t kind = support_random_below(random, 8);
        const double scale =
            kind == 0 ? 0.0 : ldexp(1.0, (int)support_random_below(random, 40) - 28);
        for (int64_t i = 0; i < width; i++) {
            ref_store(dtype, row, i, scale * support_random_normal(random));
        }
        for (int64_t i = 0; kind < 4 && i < width; i++) {
            if (support_random_below(random, 16) == 0) {
                ref_store(dtype, row, i, awkward[support_random_below(random, kind < 3 ? 8 : 2)]);
            }
        }
    }
}

#endif
