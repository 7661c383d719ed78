/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 240 */
/*
 * Infinities, NaN, -0, subnormals and the largest finite numbers in weights, in rows and in both:
 * every tile at every level of instructions against the canonical sum in plain loops (gemm.h), bit
 * for bit, NaN as the canonical one. And that dot products of bf16 pairs take all of them but the
 * subnormals, so that they, and not the ordinary way, were compared.
 */
#include "gemm_check.h"

#define MOE_CPU_ISA avx2 /* gemm_pairs.h: the build whose functions are called here */
#include "gemm_pairs.h"

#if MOE_HAVE_AVX2
bool moe_gemm_pairs_advance_avx2(struct gemm_pairs *pairs);
int32_t moe_gemm_pairs_pack_row_avx2(uint16_t *to, const void *from, int32_t dtype, bool meets_fp8,
                                     int64_t k);
#endif

static const uint32_t canonical_nan = 0x7fc00000u;

/* By the bits of bf16, and whether pairs take it in a weight. */
static const struct {
    uint16_t bits;
    bool is_taken;
} specials[] = {
    {0x7f80, true},  /* infinity */
    {0xff80, true},  /* */
    {0x7fc0, true},  /* quiet NaN */
    {0xffd5, true},  /* another */
    {0x7f81, true},  /* signaling NaN */
    {0x8000, true},  /* -0 */
    {0x7f7f, true},  /* the largest finite */
    {0xff7f, true},  /* */
    {0x0080, false}, /* the smallest normal number: below what pairs take */
    {0x0001, false}, /* subnormals */
    {0x807f, false},
};

/* e4m3: NaN, -0, the smallest subnormal, the largest finite. */
static const uint8_t special_codes[] = {0x7f, 0xff, 0x80, 0x01, 0x87, 0x7e, 0xfe};

static const int64_t columns[] = {1, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 301};
static const int64_t rows[] = {1, 4, 9}; /* register tiles of lines as they come, and packed */

enum where { IN_WEIGHTS = 1, IN_ROWS = 2 };

/* ---------------------------------------------------------------- the canonical sum */

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return isnan(value) ? canonical_nan : bits;
}

static float sum_of_lanes(const float lanes[8])
{
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
           ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static const unsigned char *weight_at(const struct gemm_fixture *fixture, int64_t expert,
                                      int32_t matrix, int64_t n)
{
    const struct moe_operand *weight = &fixture->op.weight[matrix];
    return (const unsigned char *)fixture->table[matrix][expert] +
           (size_t)(n * weight->row_stride) *
               ref_dtype_bytes(fixture_ref_dtype(fixture->shape.weight_dtype));
}

/* Lanes of columns [first, end). fp8 weights and the rows that they meet are times 2^-8, 2^8. */
static void add_columns(const struct gemm_fixture *fixture, const unsigned char *weights,
                        int64_t row, int64_t first, int64_t end, float lanes[8])
{
    const struct gemm_shape *shape = &fixture->shape;
    const bool is_fp8 = shape->weight_dtype == MOE_DTYPE_FP8_E4M3;
    for (int64_t k = first; k < end; k++) {
        const float input =
            (float)ref_load(fixture_ref_dtype(shape->input_dtype), fixture->input_memory.data,
                            row * fixture->op.input_stride + k);
        const float weight = (float)ref_load(fixture_ref_dtype(shape->weight_dtype), weights, k);
        float *lane = &lanes[k % 8];
        *lane =
            is_fp8 ? fmaf(input * 0x1p+8f, weight * 0x1p-8f, *lane) : fmaf(input, weight, *lane);
    }
}

static float expect_sum(const struct gemm_fixture *fixture, int64_t expert, int32_t matrix,
                        int64_t n, int64_t row)
{
    const struct gemm_shape *shape = &fixture->shape;
    const unsigned char *weights = weight_at(fixture, expert, matrix, n);
    const bool is_fp8 = shape->weight_dtype == MOE_DTYPE_FP8_E4M3;
    const bool has_blocks =
        is_fp8 && ((shape->weight_group > 0 && shape->weight_group < shape->k) ||
                   (shape->input_dtype == MOE_DTYPE_FP8_E4M3 && shape->input_group > 0 &&
                    shape->input_group < shape->k));
    const int64_t group = has_blocks ? 128 : shape->k;
    float total = 0.0f;
    for (int64_t first = 0; first < shape->k; first += group) {
        const int64_t end = first + group < shape->k ? first + group : shape->k;
        float lanes[8] = {0};
        add_columns(fixture, weights, row, first, end, lanes);
        const float sum = sum_of_lanes(lanes);
        const float factor = fixture_input_scale(fixture, row, first) *
                             fixture_weight_scale(fixture, expert, matrix, n, first);
        total = has_blocks ? fmaf(sum, factor, total) : is_fp8 ? sum * factor : sum;
    }
    return total;
}

/* ---------------------------------------------------------------- whole GEMMs */

static void put(void *array, int32_t dtype, int64_t idx, uint16_t bits)
{
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        ((uint8_t *)array)[idx] = (uint8_t)bits;
    } else {
        ((uint16_t *)array)[idx] = bits;
    }
}

/* In three of four lines of k columns: the first, the last (a tail mostly), or two that a sum
 * meets, one of them negative. */
static void put_in_line(void *array, int32_t dtype, int64_t first, int64_t line, int64_t k,
                        uint16_t bits)
{
    const uint16_t sign = dtype == MOE_DTYPE_FP8_E4M3 ? 0x80 : 0x8000;
    switch (line % 4) {
    case 1:
        put(array, dtype, first, bits);
        break;
    case 2:
        put(array, dtype, first + k - 1, bits);
        break;
    case 3:
        put(array, dtype, first + k / 2, bits);
        put(array, dtype, first + k / 2 - k / 2 / 8 * 8, (uint16_t)(bits ^ sign));
        break;
    default:
        break;
    }
}

static void put_special(struct gemm_fixture *fixture, int where, uint16_t weight_bits,
                        uint16_t input_bits)
{
    const struct gemm_shape *shape = &fixture->shape;
    for (int64_t i = 0; (where & IN_WEIGHTS) && i < FIXTURE_EXPERTS * shape->num_matrices; i++) {
        unsigned char *matrix =
            (unsigned char *)fixture->weight_memory[i % shape->num_matrices].data;
        for (int64_t n = 0; n < shape->n; n++) {
            const int64_t line = i / shape->num_matrices * shape->n + n;
            put_in_line(matrix, shape->weight_dtype, line * shape->k, n, shape->k, weight_bits);
        }
    }
    for (int64_t row = 0; (where & IN_ROWS) && row < fixture->num_inputs; row++) {
        put_in_line(fixture->input_memory.data, shape->input_dtype, row * fixture->op.input_stride,
                    row, shape->k, input_bits);
    }
}

static void check_bits(const struct gemm_fixture *fixture, const struct moe_tile *tile,
                       int64_t level, const uint32_t *output, const uint32_t *expected)
{
    const struct gemm_shape *shape = &fixture->shape;
    for (int64_t row = 0; row < fixture->num_outputs; row++) {
        for (int64_t i = 0; fixture->written[row] && i < fixture->width; i++) {
            const uint32_t got = output[row * fixture->output_stride + i];
            const uint32_t want = expected[row * fixture->width + i];
            if (got != want) {
                fail_msg("%s at level %d, k %lld, row %lld, output %lld: %08x, expected %08x",
                         tile->name, (int)level, (long long)shape->k, (long long)row, (long long)i,
                         got, want);
            }
        }
    }
}

/* One placement of special elements, with every tile at every level. */
static void check_special(const struct gemm_shape *shape, int where, uint16_t weight_bits,
                          uint16_t input_bits)
{
    const struct moe_tile *tiles[MOE_NUM_TILES];
    const int64_t num_tiles = list_tiles(tiles);
    struct gemm_fixture fixture;
    gemm_fixture_init(&fixture, shape);
    put_special(&fixture, where, weight_bits, input_bits);
    uint32_t *expected = fixture_alloc(fixture.num_outputs * fixture.width, sizeof(*expected));
    for (int64_t row = 0; row < fixture.num_outputs; row++) {
        const int64_t expert = fixture_expert_of(&fixture, row);
        for (int64_t i = 0; fixture.written[row] && i < fixture.width; i++) {
            const int32_t matrix = (int32_t)(i / shape->n);
            expected[row * fixture.width + i] =
                bits_of(expect_sum(&fixture, expert, matrix, i % shape->n, row));
        }
    }
    for (int64_t i = 0; i < NUM_LEVELS * num_tiles; i++) {
        const struct moe_tile *tile = tiles[i % num_tiles];
        if (i >= num_tiles && tile->kernel == MOE_KERNEL_CPU_C11) {
            continue; /* it has no levels */
        }
        struct support_guard output;
        run_tile_at(&fixture, tile, i / num_tiles, &output);
        check_bits(&fixture, tile, i / num_tiles, (const void *)output.data, expected);
        support_guard_finish(&output);
    }
    free(expected);
    gemm_fixture_finish(&fixture);
}

static struct gemm_shape make_shape(int64_t k, int64_t num_rows, int32_t input_dtype,
                                    int32_t weight_dtype, bool has_groups)
{
    const bool is_fp8 = weight_dtype == MOE_DTYPE_FP8_E4M3;
    const bool has_fp8_rows = input_dtype == MOE_DTYPE_FP8_E4M3;
    return (struct gemm_shape){
        .k = k,
        .n = 11,
        .num_rows = num_rows,
        .input_dtype = input_dtype,
        .weight_dtype = weight_dtype,
        .output_dtype = MOE_DTYPE_FP32,
        .num_matrices = 2,
        .weight_group = is_fp8 && has_groups ? 128 : 0,
        .input_group = has_fp8_rows && has_groups ? 128 : 0,
        .input_layout = has_fp8_rows ? MOE_SCALE_ROW_MAJOR : 0,
        .spread = SPREAD_HOT,
        .seed = (uint64_t)(k + num_rows),
    };
}

static void say_what_runs(void)
{
    if (!moe_cpu_isa_has_avx512_bf16()) {
        print_message("this processor has no AVX512_BF16: all other ways are compared, the dot "
                      "products of bf16 pairs are not\n");
    }
}

static void test_bf16(void **state)
{
    (void)state;
    say_what_runs();
    for (int c = 0; c < COUNT(columns); c++) {
        for (int s = 0; s < COUNT(specials); s++) {
            const struct gemm_shape shape = make_shape(columns[c], rows[(c + s) % COUNT(rows)],
                                                       MOE_DTYPE_BF16, MOE_DTYPE_BF16, false);
            check_special(&shape, IN_WEIGHTS, specials[s].bits, 0);
            check_special(&shape, IN_ROWS, 0, specials[s].bits);
            for (int other = 0; other < COUNT(specials); other += 2) {
                check_special(&shape, IN_WEIGHTS | IN_ROWS, specials[s].bits,
                              specials[(s + other) % COUNT(specials)].bits);
            }
        }
    }
}

static void test_fp8(void **state)
{
    (void)state;
    say_what_runs();
    for (int c = 0; c < COUNT(columns); c++) {
        for (int s = 0; s < COUNT(special_codes); s++) {
            for (int row_type = 0; row_type < 2; row_type++) {
                const int32_t input_dtype = row_type == 0 ? MOE_DTYPE_BF16 : MOE_DTYPE_FP8_E4M3;
                const struct gemm_shape shape =
                    make_shape(columns[c], rows[(c + s) % COUNT(rows)], input_dtype,
                               MOE_DTYPE_FP8_E4M3, s % 2 == 0);
                check_special(&shape, IN_WEIGHTS, special_codes[s], 0);
                for (int other = 0; other < COUNT(specials); other += 2) {
                    const uint16_t bits = row_type == 0
                                              ? specials[(s + other) % COUNT(specials)].bits
                                              : special_codes[(s + other) % COUNT(special_codes)];
                    check_special(&shape, IN_ROWS, 0, bits);
                    check_special(&shape, IN_WEIGHTS | IN_ROWS, special_codes[s], bits);
                }
            }
        }
    }
}

/* ---------------------------------------------------------------- by pairs alone */

enum { CHANNELS = 8, LANES = 8, MAX_K = 320, MAX_ROWS = 9, PITCH = MAX_K + GEMM_PAIRS_PAD };

/* What the operands are: normal numbers around 1 or, with an exponent below 0, of that one; and a
 * special element in most channels. Rows and channels begin at lines of the caches, or beside them
 * (is_odd), and rows as far apart as a panel has them. */
struct pairs_case {
    int64_t k, num_rows;
    bool is_odd;
    int weight_exponent, input_exponent;
    uint16_t special; /* 0: none */
    bool is_taken;
};

#if MOE_HAVE_AVX2
static void fill(struct gemm_fixture *fixture, uint16_t *to, int64_t count, int exponent)
{
    double values[MAX_K];
    fixture_fill(fixture, values, count, MOE_DTYPE_BF16, 1.0);
    if (exponent != 0) {
        fixture_make_rare(fixture, values, count, MOE_DTYPE_BF16, ldexp(1.0, exponent), 0.0);
        values[count / 2] = ldexp(1.0, exponent); /* the least is there */
    }
    ref_store_all(REF_BF16, to, count, values);
}

/* Are the sums made, and are they the canonical ones? NaN need only be NaN before it is stored. */
static void check_pairs(const struct pairs_case *c)
{
    static _Alignas(64) uint16_t memory[3][(MAX_ROWS + CHANNELS) * PITCH];
    static _Alignas(64) uint16_t packed[CHANNELS * (MAX_K + 64)];
    static float sums[MAX_ROWS][CHANNELS][LANES];
    struct gemm_fixture fixture;
    int32_t least = GEMM_PAIRS_NO_EXPONENT;
    const int64_t pitch = gemm_pairs_columns(c->k) + GEMM_PAIRS_PAD;
    const int64_t channel_elements = c->is_odd ? c->k + 1 : pitch;
    uint16_t *weights = memory[0] + c->is_odd;
    uint16_t *inputs = memory[1] + c->is_odd;
    uint16_t *packed_rows = memory[2] + c->is_odd;
    support_random_seed(&fixture.random, (uint64_t)(c->k * 64 + c->num_rows));
    for (int64_t n = 0; n < CHANNELS; n++) {
        fill(&fixture, weights + n * channel_elements, c->k, c->weight_exponent);
        if (c->special != 0) {
            put_in_line(weights, MOE_DTYPE_BF16, n * channel_elements, n, c->k, c->special);
        }
    }
    for (int64_t row = 0; row < c->num_rows; row++) {
        uint16_t *input = inputs + row * channel_elements;
        fill(&fixture, input, c->k, c->input_exponent);
        const int32_t exponent = moe_gemm_pairs_pack_row_avx2(packed_rows + row * pitch, input,
                                                              MOE_DTYPE_BF16, false, c->k);
        least = exponent < least ? exponent : least;
    }
    if (c->input_exponent != 0) {
        assert_int_equal(least, c->input_exponent + 127);
    }
    struct gemm_pairs pairs = {
        .channels = {.from = (const unsigned char *)weights,
                     .channel_bytes = channel_elements * (int64_t)sizeof(*weights),
                     .count = CHANNELS},
        .dtype = MOE_DTYPE_BF16,
        .scaling = GEMM_SCALE_NONE,
        .is_first = true,
        .least_exponent = least,
        .k = c->k,
        .num_rows = c->num_rows,
        .rows = packed_rows,
        .pitch = pitch,
        .sums = &sums[0][0][0],
        .sums_pitch = CHANNELS * LANES,
        .packed = packed,
    };
    assert_int_equal(moe_gemm_pairs_advance_avx2(&pairs), c->is_taken);
    for (int64_t i = 0; c->is_taken && i < c->num_rows * CHANNELS; i++) {
        float lanes[LANES] = {0};
        for (int64_t j = 0; j < c->k; j++) {
            lanes[j % LANES] =
                fmaf((float)ref_load(REF_BF16, inputs, i / CHANNELS * channel_elements + j),
                     (float)ref_load(REF_BF16, weights, i % CHANNELS * channel_elements + j),
                     lanes[j % LANES]);
        }
        for (int lane = 0; lane < LANES; lane++) {
            assert_int_equal(bits_of(sums[i / CHANNELS][i % CHANNELS][lane]), bits_of(lanes[lane]));
        }
    }
}
#else
static void check_pairs(const struct pairs_case *c)
{
    (void)c;
}
#endif

static void skip_without_pairs(void)
{
    if (!moe_cpu_isa_has_avx512_bf16()) {
        print_message("this processor has no AVX512_BF16, or it is turned off\n");
        skip();
    }
}

/* Hints in eights end where those one by one end: in whole runs, broken ones and after the last. */
static void test_fetch(void **state)
{
    (void)state;
#if MOE_HAVE_AVX2
    static const unsigned char memory[4096] = {0};
    static const int64_t runs[][2] = {{512, 1}, {512, 3}, {1024, 2}, {768, 4}, {65, 5}, {1, 9}};
    for (int r = 0; r < COUNT(runs); r++) {
        struct gemm_fetch one = {.run = memory,
                                 .run_bytes = runs[r][0],
                                 .stride = 8,
                                 .num_runs = runs[r][1],
                                 .lines_per_tile = GEMM_FETCH_LINES};
        struct gemm_fetch many = one;
        for (int i = 0; i < 10; i++) {
            gemm_fetch_lines(&one);
            gemm_fetch_many(&many);
            assert_ptr_equal(many.run, one.run);
            assert_int_equal(many.offset, one.offset);
            assert_int_equal(many.num_runs, one.num_runs);
        }
        assert_int_equal(many.num_runs, 0);
    }
#else
    skip();
#endif
}

/* The least exponents of weights and rows that are taken, and those that are one less. */
static void test_least(void **state)
{
    (void)state;
    static const int exponents[][2] = {{-48, -64}, {-64, -48}, {-100, -12}, {-12, -100},
                                       {-110, -2}, {-2, -110}, {-56, -56}};
    skip_without_pairs();
    for (int c = 0; c < COUNT(columns); c++) {
        for (int r = 0; r < COUNT(rows); r++) {
            for (int e = 0; e < COUNT(exponents); e++) {
                struct pairs_case exact = {.k = columns[c],
                                           .num_rows = rows[r],
                                           .is_odd = (c + r + e) % 2 != 0,
                                           .weight_exponent = exponents[e][0],
                                           .input_exponent = exponents[e][1],
                                           .is_taken = true};
                check_pairs(&exact);
                exact.is_taken = false;
                exact.weight_exponent -= 1;
                check_pairs(&exact);
                exact.weight_exponent += 1;
                exact.input_exponent -= 1;
                check_pairs(&exact);
            }
        }
    }
}

static void test_pairs(void **state)
{
    (void)state;
    skip_without_pairs();
    for (int c = 0; c < COUNT(columns); c++) {
        for (int s = 0; s < COUNT(specials); s++) {
            for (int r = 0; r < COUNT(rows); r++) {
                check_pairs(&(struct pairs_case){.k = columns[c],
                                                 .num_rows = rows[r],
                                                 .is_odd = (c + s + r) % 2 != 0,
                                                 .special = specials[s].bits,
                                                 .is_taken = specials[s].is_taken});
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),  cmocka_unit_test(test_fp8),   cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_fetch), cmocka_unit_test(test_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
