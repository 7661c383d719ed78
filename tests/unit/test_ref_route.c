/* SPDX-License-Identifier: Apache-2.0 */
/* Filters, block and row layouts, quantization and row movement: small cases written out. */
#include "ref.h"
#include "support.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define assert_array(actual, ...)                                                               \
    do {                                                                                        \
        const int32_t expected_[] = {__VA_ARGS__};                                              \
        assert_bits_equal(expected_, (actual), (int64_t)(sizeof expected_ / sizeof *expected_), \
                          sizeof *expected_);                                                   \
    } while (0)

static void test_filter(void **state)
{
    (void)state;
    struct ref_filter all = ref_filter_all(3);
    const int64_t hostile[] = {-1, 3, INT32_MAX, INT64_MIN, INT64_MAX};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(ref_local_expert(&all, hostile[i]), -1);
    }
    assert_int_equal(ref_local_expert(&all, 2), 2);

    struct ref_filter range = {6, 2, 5, NULL, 3};
    const int32_t map[6] = {1, -1, 0, 2, -1, 3};
    struct ref_filter mapped = {6, 0, 6, map, 3};
    struct ref_filter both = {6, 2, 5, map, 3};
    const int64_t by_range[6] = {-1, -1, 0, 1, 2, -1};
    const int64_t by_map[6] = {1, -1, 0, 2, -1, -1};
    const int64_t by_both[6] = {-1, -1, 0, 2, -1, -1};
    for (int64_t id = 0; id < 6; id++) {
        assert_int_equal(ref_local_expert(&range, id), by_range[id]);
        assert_int_equal(ref_local_expert(&mapped, id), by_map[id]);
        assert_int_equal(ref_local_expert(&both, id), by_both[id]);
    }

    const int64_t ids[7] = {0, 2, 2, 3, 5, -1, 4};
    int64_t counts[3];
    assert_int_equal(ref_count_routes(&range, ids, 7, counts), 4);
    assert_memory_equal(counts, ((int64_t[]){2, 1, 1}), sizeof counts);
}

static void test_align(void **state)
{
    (void)state;
    const int64_t ids[6] = {2, 0, 0, -1, 2, 5};
    struct ref_filter filter = ref_filter_all(3);
    int32_t sorted[13];
    int32_t experts[4];
    assert_int_equal(ref_align_block_size(&filter, ids, 6, 4, false, sorted, 13, experts, 4), 8);
    assert_array(sorted, 1, 2, 6, 6, 0, 4, 6, 6, 6, 6, 6, 6, 6);
    assert_array(experts, 0, 2, -1, -1);
    assert_int_equal(ref_align_block_size(&filter, ids, 6, 4, true, sorted, 13, experts, 4), 12);
    assert_array(sorted, 1, 2, 6, 6, 0, 4, 6, 6, 3, 5, 6, 6, 6);
    assert_array(experts, 0, 2, -1, -1);
    assert_int_equal(ref_align_block_size(&filter, ids, 6, 1, false, sorted, 13, experts, 4), 4);
    assert_array(sorted, 1, 2, 0, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6);
    assert_array(experts, 0, 0, 2, 2);
    assert_int_equal(ref_align_block_size(&filter, ids, 0, 4, true, sorted, 2, experts, 1), 0);
    assert_array(sorted, 0, 0);
    assert_array(experts, -1);
}

/* Over every assignment of routes to buckets the largest padded size is exactly the capacity. */
static void test_align_capacity_is_tight(void **state)
{
    (void)state;
    for (int64_t num_routes = 0; num_routes <= 6; num_routes++) {
        for (int64_t num_buckets = 1; num_buckets <= 3; num_buckets++) {
            for (int64_t block_m = 1; block_m <= 5; block_m++) {
                struct ref_filter filter = ref_filter_all(num_buckets);
                int64_t num_cases = (int64_t)pow((double)num_buckets, (double)num_routes);
                int64_t largest = 0;
                for (int64_t c = 0; c < num_cases; c++) {
                    int64_t ids[6];
                    int32_t sorted[64];
                    int32_t experts[64];
                    int64_t rest = c;
                    for (int64_t r = 0; r < num_routes; r++) {
                        ids[r] = rest % num_buckets;
                        rest /= num_buckets;
                    }
                    int64_t padded = ref_align_block_size(&filter, ids, num_routes, block_m, false,
                                                          sorted, 64, experts, 64);
                    largest = padded > largest ? padded : largest;
                }
                assert_int_equal(ref_align_capacity(num_routes, num_buckets, block_m), largest);
            }
        }
    }
}

static void test_ep_preprocess(void **state)
{
    (void)state;
    const int64_t ids[6] = {2, 0, 0, -1, 2, 5};
    struct ref_filter filter = ref_filter_all(3);
    int64_t indptr[4];
    int64_t counts[3];
    int32_t src2dst[6];
    int32_t dst2src[9];
    int32_t row_experts[9];
    int32_t reorder_ids[6];
    struct ref_ep_layout layout = {indptr, counts, src2dst, dst2src, row_experts, 9, reorder_ids};
    assert_int_equal(ref_ep_preprocess(&filter, ids, 6, 1, &layout), 4);
    assert_memory_equal(indptr, ((int64_t[]){0, 2, 2, 4}), sizeof indptr);
    assert_memory_equal(counts, ((int64_t[]){2, 0, 2}), sizeof counts);
    assert_array(src2dst, 2, 0, 1, -1, 3, -1);
    assert_array(dst2src, 1, 2, 0, 4, -1, -1, -1, -1, -1);
    assert_array(row_experts, 0, 0, 2, 2, -1, -1, -1, -1, -1);
    assert_array(reorder_ids, 0, 0, 2, 2, -1, -1);

    assert_int_equal(ref_ep_preprocess(&filter, ids, 6, 4, &layout), 8);
    assert_memory_equal(indptr, ((int64_t[]){0, 4, 4, 8}), sizeof indptr);
    assert_array(src2dst, 4, 0, 1, -1, 5, -1);
    assert_array(dst2src, 1, 2, -1, -1, 0, 4, -1, -1, -1);
    assert_array(row_experts, 0, 0, -1, -1, 2, 2, -1, -1, -1);
    assert_array(reorder_ids, 0, 0, 2, 2, -1, -1);

    int32_t experts[9];
    ref_row_experts(indptr, counts, 3, 9, experts);
    assert_array(experts, 0, 0, -1, -1, 2, 2, -1, -1, -1);
    ref_row_experts(indptr, NULL, 3, 9, experts);
    assert_array(experts, 0, 0, 0, 0, 2, 2, 2, 2, -1);

    struct ref_ep_layout nothing = {0};
    assert_int_equal(ref_ep_preprocess(&filter, ids, 6, 1, &nothing), 4);
}

static void test_quantize(void **state)
{
    (void)state;
    double row[130] = {0.0, 896.0, -14.0, 1.0};
    double quantized[130];
    double scales[2];
    row[128] = -0.875;
    row[129] = 0.1;
    ref_quantize(row, 1, 130, 0, false, quantized, scales);
    assert_true(scales[0] == 2.0);
    assert_true(quantized[1] == 448.0 && quantized[2] == -7.0 && quantized[3] == 0.5);
    assert_true(quantized[128] == -0.4375);
    ref_quantize(row, 1, 130, 128, false, quantized, scales);
    assert_true(scales[0] == 2.0 && scales[1] == 0x1p-9); /* 0.875 / 448 */
    assert_true(quantized[128] == -448.0);
    assert_true(quantized[129] == 52.0); /* 51.2; neighbours are 52 and 48 */
    row[129] = 1.0;
    ref_quantize(row, 1, 130, 128, true, quantized, scales);
    assert_true(scales[0] == 2.0 && scales[1] == 0x1p-8); /* up from 1 / 448 */
    assert_true(quantized[129] == 256.0);

    const double odd[4] = {0.0, NAN, INFINITY, -1.0};
    ref_quantize(odd, 2, 2, 0, false, quantized, scales);
    assert_true(quantized[0] == 0.0 && isnan(quantized[1]));
    assert_true(scales[0] == (double)(1e-10f / 448.0f));
    assert_true(quantized[2] == 448.0 && scales[1] == (double)(0x1.fffffep127f / 448.0f));
    ref_quantize_static(row, 2, 0.5, quantized);
    assert_true(quantized[1] == 448.0); /* 1792 saturates */
}

static void test_store_scales(void **state)
{
    (void)state;
    const double scales[5] = {0x1p-3, 0x1p-2, 0x1p-1, 0x1p0, 0x1p1};
    const unsigned char packed[16] = {9, 9, 9, 9, 124, 125, 126, 127, 9, 9, 9, 9, 128, 0, 0, 0};
    const float row_major[12] = {0, 0, 0, 0, 0, 0, 0.125f, 0.25f, 0.5f, 1, 2, 0};
    const float column_major[12] = {0, 0.125f, 0, 0.25f, 0, 0.5f, 0, 1, 0, 2, 0, 0};
    unsigned char bytes[16];
    float elements[12] = {0};
    memset(bytes, 9, sizeof(bytes));
    ref_store_scales(REF_SCALE_PACKED, scales, 5, 1, 2, bytes);
    assert_memory_equal(bytes, packed, sizeof(packed));
    ref_store_scales(REF_SCALE_ROW_MAJOR, scales, 5, 1, 6, elements);
    assert_memory_equal(elements, row_major, sizeof(row_major));
    memset(elements, 0, sizeof(elements));
    ref_store_scales(REF_SCALE_COLUMN_MAJOR, scales, 5, 1, 2, elements);
    assert_memory_equal(elements, column_major, sizeof(column_major));
}

static void test_pre_reorder(void **state)
{
    (void)state;
    const double x[4] = {1.0, 1.00390625, 1000.0, -3.0};
    const int32_t src2dst[4] = {2, -1, 0, 3};
    const int32_t row_experts[4] = {0, -1, 1, 1};
    const double scales[2] = {2.0, 4.0};
    double out[8];
    double out_scales[4] = {9, 9, 9, 9};
    struct ref_pre_reorder args = {.x = x,
                                   .src2dst = src2dst,
                                   .num_tokens = 2,
                                   .top_k = 2,
                                   .hidden = 2,
                                   .scales = scales,
                                   .row_experts = row_experts,
                                   .out_dtype = REF_BF16,
                                   .out = out,
                                   .out_scales = out_scales};
    struct {
        enum ref_quant quant;
        enum ref_dtype dtype;
        double expected[8]; /* 9: never written */
    } cases[] = {
        {REF_QUANT_NONE, REF_BF16, {1000, -3, 9, 9, 1, 1, 1000, -3}},
        {REF_QUANT_NONE, REF_E4M3, {448, -3, 9, 9, 1, 1, 448, -3}},
        {REF_QUANT_STATIC, REF_E4M3, {448, -1.5, 9, 9, 0.5, 0.5, 448, -1.5}},
        {REF_QUANT_TOKEN_STATIC, REF_E4M3, {256, -0.75, 9, 9, 0.5, 0.5, 256, -0.75}},
        {REF_QUANT_EXPERT_STATIC, REF_E4M3, {448, -1.5, 9, 9, 0.25, 0.25, 256, -0.75}},
        {REF_QUANT_DYNAMIC, REF_E4M3, {448, -1.375, 9, 9, 448, 448, 448, -1.375}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int c = 0; c < 8; c++) {
            out[c] = 9.0;
        }
        args.quant = cases[i].quant;
        args.out_dtype = cases[i].dtype;
        ref_pre_reorder(&args);
        assert_bits_equal(cases[i].expected, out, 8, sizeof(double));
    }
    assert_true(out_scales[1] == 9.0);
    assert_true(out_scales[0] == (double)(float)(1000.0 / 448.0) && out_scales[3] == out_scales[0]);
    assert_true(out_scales[2] == (double)(float)(1.00390625 / 448.0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filter),
        cmocka_unit_test(test_align),
        cmocka_unit_test(test_align_capacity_is_tight),
        cmocka_unit_test(test_ep_preprocess),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_store_scales),
        cmocka_unit_test(test_pre_reorder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
