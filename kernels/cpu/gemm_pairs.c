/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sums[m, n] += rows[m] . weight[n] for the rows of a panel and eight channels, by VDPBF16PS.
 *
 * Bytes: eight channels of k columns once, from memory. FLOPs: 2 * rows * 8 * k, 64 a cycle where
 * fp32 has 32 (Zen 4). Bound by memory up to some twenty rows, by the dot products above.
 * Pipeline: 1 lines of two channels are loaded, decoded (fp8) and brought into the order of pairs;
 * up to 6 rows meet them in registers; more rows: 2 they are stored, so that eight channels of a
 * chunk lie in the first level cache; 3 register tiles of 6 rows x 8 channels, 24 sums of 16 lanes;
 * meanwhile the next eight channels come into the second level cache.
 * Limits: see gemm_pairs.h; fp8 needs VBMI as well.
 */
#include "gemm_pairs.h"

#include "gemm_codes.h"

#if GEMM_HAS_PAIRS

#define PAIRS_TARGET \
    __attribute__((  \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16")))
#define PAIRS_INLINE static inline __attribute__((always_inline)) PAIRS_TARGET

enum {
    STEP_COLUMNS = 16, /* a vector: 16 columns of two channels */
    STEP_ELEMENTS = GEMM_CHANNELS * STEP_COLUMNS,
    NUM_VECTORS = GEMM_CHANNELS / 2,
    BLOCK_STEPS = GEMM_SCALE_COLUMNS / STEP_COLUMNS,
};

/* Which words of two channels' lines make [channel][lane][second, first column] of step `step`. */
#define WORDS_(channel, step, lane) \
    (32 * (channel) + 16 * (step) + 8 + (lane)), (32 * (channel) + 16 * (step) + (lane))
#define WORDS4_(channel, step, lane)                                \
    WORDS_(channel, step, lane), WORDS_(channel, step, (lane) + 1), \
        WORDS_(channel, step, (lane) + 2), WORDS_(channel, step, (lane) + 3)
#define WORDS16_(channel, step) WORDS4_(channel, step, 0), WORDS4_(channel, step, 4)

/* The same for codes and steps 2 * half, 2 * half + 1, one in the lower and one in the upper eight
 * bytes of each quarter, as unpacking wants them. */
#define CODES_(channel, at, lane) \
    (64 * (channel) + (at) + 8 + (lane)), (64 * (channel) + (at) + (lane))
#define CODES4_(channel, at, lane)                                                               \
    CODES_(channel, at, lane), CODES_(channel, at, (lane) + 1), CODES_(channel, at, (lane) + 2), \
        CODES_(channel, at, (lane) + 3)
#define CODES16_(channel, half, lane) \
    CODES4_(channel, 32 * (half), lane), CODES4_(channel, 32 * (half) + 16, lane)
#define CODES64_(half) \
    CODES16_(0, half, 0), CODES16_(0, half, 4), CODES16_(1, half, 0), CODES16_(1, half, 4)

static const uint16_t word_order[2][32] = {{WORDS16_(0, 0), WORDS16_(1, 0)},
                                           {WORDS16_(0, 1), WORDS16_(1, 1)}};
static const uint8_t code_order[2][64] = {{CODES64_(0)}, {CODES64_(1)}};

struct loader {
    __m512i order[2];
    struct gemm_vbmi_tables tables; /* fp8 */
};

PAIRS_INLINE struct loader make_loader(int32_t dtype)
{
    struct loader loader;
    const void *orders = dtype == MOE_DTYPE_BF16 ? (const void *)word_order : code_order;
    loader.order[0] = _mm512_loadu_si512(orders);
    loader.order[1] = _mm512_loadu_si512((const unsigned char *)orders + GEMM_LINE_BYTES);
    loader.tables = gemm_vbmi_tables();
    return loader;
}

/* Lanes of the smallest nonzero magnitudes seen. */
PAIRS_INLINE __m512i track_least(__m512i least, __m512i elements)
{
    const __m512i doubled = _mm512_add_epi16(elements, elements);
    return _mm512_min_epu16(least, _mm512_sub_epi16(doubled, _mm512_set1_epi16(1)));
}

/* The exponent of the smallest of them: twice the bits have it above eight others. */
PAIRS_INLINE int32_t least_exponent(__m512i least)
{
    const __m256i of_32 =
        _mm256_min_epu16(_mm512_castsi512_si256(least), _mm512_extracti64x4_epi64(least, 1));
    const __m128i of_16 =
        _mm_min_epu16(_mm256_castsi256_si128(of_32), _mm256_extracti128_si256(of_32, 1));
    return ((_mm_cvtsi128_si32(_mm_minpos_epu16(of_16)) & 0xffff) + 1) >> 8;
}

/* May weights of which these are the least meet the rows? */
PAIRS_INLINE bool are_weights_fit(const struct gemm_pairs *pairs, __m512i least)
{
    const int32_t exponent = least_exponent(least);
    return exponent > 0 && exponent + pairs->least_exponent >= GEMM_PAIRS_LEAST_SUM;
}

/* Steps in a line. */
PAIRS_INLINE int line_steps(int32_t dtype)
{
    return dtype == MOE_DTYPE_BF16 ? 2 : 4;
}

/* The steps of a line of two channels. `mask`: which bytes are there. */
PAIRS_INLINE void load_line(const struct loader *loader, int32_t dtype, const unsigned char *first,
                            const unsigned char *second, bool is_whole, uint64_t mask,
                            __m512i steps[4], __m512i *least)
{
    const __m512i a = is_whole ? _mm512_loadu_si512(first) : _mm512_maskz_loadu_epi8(mask, first);
    const __m512i b = is_whole ? _mm512_loadu_si512(second) : _mm512_maskz_loadu_epi8(mask, second);
    if (dtype == MOE_DTYPE_BF16) {
        *least = track_least(track_least(*least, a), b);
        steps[0] = _mm512_permutex2var_epi16(a, loader->order[0], b);
        steps[1] = _mm512_permutex2var_epi16(a, loader->order[1], b);
        return;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const __m512i codes = _mm512_permutex2var_epi8(a, loader->order[half], b);
        const __m512i lower = gemm_vbmi_lower(&loader->tables, codes);
        const __m512i upper = gemm_vbmi_upper(&loader->tables, codes);
        steps[2 * half] = _mm512_unpacklo_epi8(lower, upper);
        steps[2 * half + 1] = _mm512_unpackhi_epi8(lower, upper);
    }
}

/* ---------------------------------------------------------------- sums of a register tile */

struct tile {
    __m512 sums[GEMM_PAIRS_ROWS][NUM_VECTORS];
};

/* Sixteen columns of a row, for each of two channels. */
PAIRS_INLINE __m512i load_row(const uint16_t *row)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)row));
}

PAIRS_INLINE __m512 add_products(__m512 sums, __m512i row, __m512i weights)
{
    return _mm512_dpbf16_ps(sums, (__m512bh)row, (__m512bh)weights);
}

/* The sums in canonical order of eight channels' lanes. */
PAIRS_INLINE __m256 add_lanes(const __m512 sums[NUM_VECTORS])
{
    const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(sums[0], sums[1], 0x88),
                                     _mm512_shuffle_f32x4(sums[0], sums[1], 0xdd));
    const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(sums[2], sums[3], 0x88),
                                      _mm512_shuffle_f32x4(sums[2], sums[3], 0xdd));
    /* Quarter i: channels i and i + 4. */
    const __m512 by2 =
        _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
    const __m512 by1 = _mm512_add_ps(by2, _mm512_permute_ps(by2, 0xb1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, by1));
}

PAIRS_INLINE void load_tile(struct tile *tile, int num_rows, bool from_zero, const float *from,
                            int64_t pitch)
{
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++) {
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; v++) {
            tile->sums[row][v] =
                from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(from + row * pitch + 16 * v);
        }
    }
}

PAIRS_INLINE void store_tile(const struct tile *tile, int num_rows, float *to, int64_t pitch)
{
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++) {
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; v++) {
            _mm512_storeu_ps(to + row * pitch + 16 * v, tile->sums[row][v]);
        }
    }
}

/* The end of 128 columns: into the totals, and from zero again. */
PAIRS_INLINE void fold_tile(struct tile *tile, int num_rows, const struct gemm_scales *scales,
                            int64_t block, float *totals, int64_t pitch)
{
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++) {
        const float factor =
            scales->inputs[row * scales->inputs_pitch + block] * scales->weights[block];
        float *to = totals + row * pitch;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(add_lanes(tile->sums[row]), _mm256_set1_ps(factor),
                                             _mm256_loadu_ps(to)));
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; v++) {
            tile->sums[row][v] = _mm512_setzero_ps();
        }
    }
}

/* ---------------------------------------------------------------- few rows: as lines come */

PAIRS_INLINE __m512i run_lines(struct gemm_pairs *pairs, int32_t dtype, int num_rows,
                               bool has_blocks)
{
    const struct loader loader = make_loader(dtype);
    const int64_t line_columns = STEP_COLUMNS * line_steps(dtype);
    const int64_t whole = pairs->k / line_columns * line_columns;
    const int64_t element_bytes = moe_convert_element_bytes(dtype);
    const uint64_t rest = (UINT64_C(1) << ((pairs->k - whole) * element_bytes)) - 1;
    const unsigned char *w[GEMM_CHANNELS];
    struct gemm_fetch fetch = pairs->fetch;
    struct tile tile;
    __m512i least = _mm512_set1_epi16(-1);
    for (int c = 0; c < GEMM_CHANNELS; c++) {
        w[c] = gemm_channel_at(&pairs->channels, c);
    }
    load_tile(&tile, num_rows, has_blocks || pairs->is_first, pairs->sums, pairs->sums_pitch);
    for (int64_t first = 0; first < pairs->k; first += line_columns) {
        const int64_t offset = first * element_bytes;
        const uint16_t *rows = pairs->rows + first;
        if (dtype == MOE_DTYPE_FP8_E4M3) { /* bound by decoding: each test counts */
            gemm_fetch_many(&fetch);
        } else {
            gemm_fetch_lines(&pairs->fetch);
        }
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; v++) {
            const unsigned char *from[2] = {w[2 * v] + offset, w[2 * v + 1] + offset};
            __m512i steps[4];
            if (first < whole) {
                load_line(&loader, dtype, from[0], from[1], true, 0, steps, &least);
            } else {
                load_line(&loader, dtype, from[0], from[1], false, rest, steps, &least);
            }
#pragma GCC unroll 4
            for (int step = 0; step < line_steps(dtype); step++) {
#pragma GCC unroll 6
                for (int row = 0; row < num_rows; row++) {
                    const uint16_t *at = rows + row * pairs->pitch + step * STEP_COLUMNS;
                    tile.sums[row][v] = add_products(tile.sums[row][v], load_row(at), steps[step]);
                }
            }
        }
        const int64_t end = first + line_columns;
        if (has_blocks && (end % GEMM_SCALE_COLUMNS == 0 || end >= pairs->k)) {
            fold_tile(&tile, num_rows, &pairs->scales, first / GEMM_SCALE_COLUMNS, pairs->sums,
                      pairs->sums_pitch);
        }
    }
    if (!has_blocks) {
        store_tile(&tile, num_rows, pairs->sums, pairs->sums_pitch);
    }
    return least;
}

/* ---------------------------------------------------------------- more rows: packed first */

/* [step][vector], 32 elements each. Returns the least of them. */
PAIRS_INLINE __m512i pack_channels(const struct gemm_pairs *pairs, int32_t dtype)
{
    const struct loader loader = make_loader(dtype);
    const int64_t line_columns = STEP_COLUMNS * line_steps(dtype);
    const int64_t element_bytes = moe_convert_element_bytes(dtype);
    const int64_t whole = pairs->k / line_columns * line_columns;
    const uint64_t rest = (UINT64_C(1) << ((pairs->k - whole) * element_bytes)) - 1;
    __m512i least = _mm512_set1_epi16(-1);
    for (int v = 0; v < NUM_VECTORS; v++) {
        const unsigned char *a = gemm_channel_at(&pairs->channels, 2 * v);
        const unsigned char *b = gemm_channel_at(&pairs->channels, 2 * v + 1);
        uint16_t *to = pairs->packed + 2 * STEP_COLUMNS * v;
        for (int64_t first = 0; first < pairs->k; first += line_columns) {
            const int64_t offset = first * element_bytes;
            __m512i steps[4];
            if (first < whole) {
                load_line(&loader, dtype, a + offset, b + offset, true, 0, steps, &least);
            } else {
                load_line(&loader, dtype, a + offset, b + offset, false, rest, steps, &least);
            }
#pragma GCC unroll 4
            for (int step = 0; step < line_steps(dtype); step++) {
                _mm512_storeu_si512(to, steps[step]);
                to += STEP_ELEMENTS;
            }
        }
    }
    return least;
}

PAIRS_INLINE void advance_tile(struct tile *tile, int num_rows, const uint16_t *weights,
                               const uint16_t *rows, int64_t pitch)
{
    __m512i w[NUM_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < NUM_VECTORS; v++) {
        w[v] = _mm512_loadu_si512(weights + 2 * STEP_COLUMNS * v);
    }
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++) {
        const __m512i both = load_row(rows + row * pitch);
#pragma GCC unroll 4
        for (int v = 0; v < NUM_VECTORS; v++) {
            tile->sums[row][v] = add_products(tile->sums[row][v], both, w[v]);
        }
    }
}

PAIRS_INLINE void run_tile(struct gemm_pairs *pairs, int num_rows, bool has_blocks,
                           int64_t first_row)
{
    const uint16_t *rows = pairs->rows + first_row * pairs->pitch;
    const uint16_t *weights = pairs->packed;
    const int64_t num_steps = (pairs->k + STEP_COLUMNS - 1) / STEP_COLUMNS;
    float *sums = pairs->sums + first_row * pairs->sums_pitch;
    struct gemm_scales scales = pairs->scales;
    struct gemm_fetch fetch = pairs->fetch;
    struct tile tile;
    if (has_blocks) { /* else there may be no scales */
        scales.inputs += first_row * scales.inputs_pitch;
    }
    load_tile(&tile, num_rows, has_blocks || pairs->is_first, sums, pairs->sums_pitch);
    for (int64_t step = 0; step < num_steps;) {
        const int64_t left = num_steps - step;
        const int64_t count = left < BLOCK_STEPS ? left : BLOCK_STEPS;
        gemm_fetch_lines(&fetch);
        for (int64_t i = 0; i < count; i++) {
            advance_tile(&tile, num_rows, weights, rows, pairs->pitch);
            weights += STEP_ELEMENTS;
            rows += STEP_COLUMNS;
        }
        if (has_blocks) {
            fold_tile(&tile, num_rows, &scales, step / BLOCK_STEPS, sums, pairs->sums_pitch);
        }
        step += count;
    }
    if (!has_blocks) {
        store_tile(&tile, num_rows, sums, pairs->sums_pitch);
    }
    pairs->fetch = fetch;
}

/* Rows of the next register tile: none of one row where others can share with it. */
static inline int64_t next_rows(int64_t num_left)
{
    return num_left <= GEMM_PAIRS_ROWS      ? num_left
           : num_left < 2 * GEMM_PAIRS_ROWS ? (num_left + 1) / 2
                                            : GEMM_PAIRS_ROWS;
}

#define ROWS_CASE_(rows, call) \
    case rows:                 \
        call;                  \
        break
/* `call` with a constant `num` of 1 to 6 rows. */
#define WITH_ROWS_(count, CALL) \
    switch (count) {            \
        ROWS_CASE_(1, CALL(1)); \
        ROWS_CASE_(2, CALL(2)); \
        ROWS_CASE_(3, CALL(3)); \
        ROWS_CASE_(4, CALL(4)); \
        ROWS_CASE_(5, CALL(5)); \
    default:                    \
        CALL(6);                \
        break;                  \
    }

PAIRS_INLINE bool advance_typed(struct gemm_pairs *pairs, int32_t dtype, bool has_blocks)
{
    const int64_t num_lines =
        GEMM_CHANNELS * (pairs->k * moe_convert_element_bytes(dtype) / GEMM_LINE_BYTES + 1);
    __m512i least;
    if (pairs->num_rows <= GEMM_PAIRS_ROWS) {
        pairs->fetch.lines_per_tile = GEMM_FETCH_LINES;
#define RUN_LINES_(num) least = run_lines(pairs, dtype, num, has_blocks)
        WITH_ROWS_(pairs->num_rows, RUN_LINES_)
#undef RUN_LINES_
        return dtype != MOE_DTYPE_BF16 || are_weights_fit(pairs, least);
    }
    least = pack_channels(pairs, dtype);
    if (dtype == MOE_DTYPE_BF16 && !are_weights_fit(pairs, least)) {
        return false;
    }
    const int64_t num_tiles = (pairs->num_rows + GEMM_PAIRS_ROWS - 1) / GEMM_PAIRS_ROWS;
    const int64_t num_blocks = (pairs->k + GEMM_SCALE_COLUMNS - 1) / GEMM_SCALE_COLUMNS;
    pairs->fetch.lines_per_tile = num_lines / (num_tiles * num_blocks) + 1;
    for (int64_t row = 0; row < pairs->num_rows;) {
        const int64_t num_rows = next_rows(pairs->num_rows - row);
#define RUN_TILE_(num) run_tile(pairs, num, has_blocks, row)
        WITH_ROWS_(num_rows, RUN_TILE_)
#undef RUN_TILE_
        row += num_rows;
    }
    return true;
}

PAIRS_TARGET static bool advance_bf16(struct gemm_pairs *pairs)
{
    return advance_typed(pairs, MOE_DTYPE_BF16, false);
}

PAIRS_TARGET static bool advance_fp8(struct gemm_pairs *pairs)
{
    return advance_typed(pairs, MOE_DTYPE_FP8_E4M3, false);
}

PAIRS_TARGET static bool advance_fp8_blocks(struct gemm_pairs *pairs)
{
    return advance_typed(pairs, MOE_DTYPE_FP8_E4M3, true);
}

bool MOE_CPU_NAME(moe_gemm_pairs_advance)(struct gemm_pairs *pairs)
{
    if (pairs->dtype == MOE_DTYPE_BF16) {
        return advance_bf16(pairs);
    }
    return pairs->scaling == GEMM_SCALE_BLOCKS ? advance_fp8_blocks(pairs) : advance_fp8(pairs);
}

/* ---------------------------------------------------------------- rows */

PAIRS_TARGET static int32_t pack_row_bf16(uint16_t *to, const uint16_t *from, int64_t k)
{
    const int64_t padded = (k + GEMM_PAIRS_COLUMNS - 1) / GEMM_PAIRS_COLUMNS * GEMM_PAIRS_COLUMNS;
    const int64_t line = GEMM_LINE_BYTES / (int64_t)sizeof(*from);
    const __m512i low = _mm512_loadu_si512(word_order[0]);
    const __m512i high = _mm512_loadu_si512(word_order[1]);
    const __m512i order = _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1);
    __m512i least = _mm512_set1_epi16(-1);
    for (int64_t i = 0; i < padded; i += line) {
        const int64_t left = k - i;
        const __mmask32 mask = left >= line ? UINT32_MAX : left > 0 ? (UINT32_C(1) << left) - 1 : 0;
        const __m512i elements = _mm512_maskz_loadu_epi16(mask, from + i);
        least = track_least(least, elements);
        _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(order, elements));
    }
    return least_exponent(least);
}

/* The rest are few beside the weights they meet. */
PAIRS_TARGET static int32_t pack_row_scaled(uint16_t *to, const void *from, int32_t dtype,
                                            int64_t k)
{
    enum { PIECE = 2 * GEMM_SCALE_COLUMNS };
    float values[PIECE];
    uint16_t upper[PIECE];
    int32_t least = GEMM_PAIRS_NO_EXPONENT;
    for (int64_t first = 0; first < k; first += PIECE) {
        const int64_t count = k - first < PIECE ? k - first : PIECE;
        const int64_t steps = (count + STEP_COLUMNS - 1) / STEP_COLUMNS * STEP_COLUMNS;
        memset(values, 0, sizeof(values));
        gemm_pack_fp8_row(values, moe_convert_at(from, dtype, first), dtype, count);
        for (int64_t i = 0; i < steps; i += STEP_COLUMNS) {
            const __m512i bits = _mm512_loadu_si512(values + i);
            _mm256_storeu_si256((__m256i *)(void *)(upper + i),
                                _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
        }
        const int32_t exponent = pack_row_bf16(to + first, upper, count);
        least = exponent < least ? exponent : least;
    }
    return least;
}

int32_t MOE_CPU_NAME(moe_gemm_pairs_pack_row)(uint16_t *to, const void *from, int32_t dtype,
                                              bool meets_fp8, int64_t k)
{
    return meets_fp8 ? pack_row_scaled(to, from, dtype, k) : pack_row_bf16(to, from, k);
}

/* ---------------------------------------------------------------- is it so? */

PAIRS_TARGET int32_t MOE_CPU_NAME(moe_gemm_pairs_probe)(void)
{
    /* 2^24 + 1 + 2 and so on: what is rounded when, which product comes first, and that a product
     * beyond the largest number is not rounded before it is added. */
    static const float starts[] = {0x1p+24f,        -0x1p+24f, 0x1.000002p+0f,
                                   -0x1.000002p+0f, 0.0f,      -0x1p+127f};
    static const float factors[][4] = {/* odd, odd, even, even */
                                       {1.0f, 1.0f, 0x1.8p+0f, 2.0f},
                                       {0x1.8p+0f, -2.0f, 1.0f, -1.0f},
                                       {0x1.02p-12f, 0x1.02p-12f, -1.0f, 1.0f},
                                       {1.0f, 1.0f, -0x1.02p-12f, 0x1.02p-12f},
                                       {0x1.fep+60f, 0x1.fep+60f, 0x1.02p+48f, 0x1.fep+48f},
                                       {0x1p+64f, 0x1p+64f, 0.0f, 0.0f}};
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
        float got[16], expected = starts[i];
        uint32_t pairs[2] = {0, 0};
        for (int side = 0; side < 2; side++) {
            const uint32_t odd = moe_float_bits(factors[i][side]);
            const uint32_t even = moe_float_bits(factors[i][2 + side]);
            pairs[side] = (odd & 0xffff0000u) | even >> 16;
        }
        expected = gemm_fma(factors[i][0], factors[i][1], expected);
        expected = gemm_fma(factors[i][2], factors[i][3], expected);
        _mm512_storeu_ps(got, _mm512_dpbf16_ps(_mm512_set1_ps(starts[i]),
                                               (__m512bh)_mm512_set1_epi32((int)pairs[0]),
                                               (__m512bh)_mm512_set1_epi32((int)pairs[1])));
        for (int lane = 0; lane < 16; lane++) {
            if (moe_float_bits(got[lane]) != moe_float_bits(expected)) {
                return 0;
            }
        }
    }
    return 1;
}

#elif MOE_VEC8_AVX2

int32_t MOE_CPU_NAME(moe_gemm_pairs_probe)(void)
{
    return 0;
}

#endif
