/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "bench_limits.h"

#include "moe_plugin.h"
#include "terminal.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define HAS_AVX2_LOOPS 1
#else
#define HAS_AVX2_LOOPS 0
#endif

enum {
    BLOCK_BYTES = 256,           /* that one step of the read and copy loops takes */
    NUM_PLAIN_LANES = 64,        /* the same for plain C, in elements */
    NUM_FMA_STEPS = 2 * 1000000, /* a few milliseconds of AVX2 */
    NUM_PLAIN_FMA_STEPS = 200000,
    NUM_TIMER_READS = 100000
};

/* Where results go, so that the loops cannot be left out. */
static _Atomic uint64_t read_sink;
static _Atomic float fma_sink;

static uint64_t read_plain(const unsigned char *bytes, uint64_t num_bytes)
{
    uint64_t sums[8] = {0};
    for (uint64_t at = 0; at + BLOCK_BYTES <= num_bytes; at += BLOCK_BYTES) {
        uint64_t words[BLOCK_BYTES / 8];
        memcpy(words, bytes + at, sizeof words);
        for (size_t i = 0; i < BLOCK_BYTES / 8; ++i) {
            sums[i % 8] += words[i];
        }
    }
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

static uint64_t run_fma_plain(void)
{
    float sums[NUM_PLAIN_LANES];
    for (int i = 0; i < NUM_PLAIN_LANES; ++i) {
        sums[i] = (float)i;
    }
    for (int step = 0; step < NUM_PLAIN_FMA_STEPS; ++step) {
        for (int i = 0; i < NUM_PLAIN_LANES; ++i) {
            sums[i] = sums[i] * 0.999f + 0.001f;
        }
    }
    float total = 0.0f;
    for (int i = 0; i < NUM_PLAIN_LANES; ++i) {
        total += sums[i];
    }
    fma_sink = total;
    return UINT64_C(2) * NUM_PLAIN_FMA_STEPS * NUM_PLAIN_LANES;
}

#if HAS_AVX2_LOOPS

/* The compiler is told to unroll, so that the sums stay in registers at any optimization level that
 * unrolls at all. */
#define UNROLL _Pragma("GCC unroll 16")

__attribute__((target("avx2,fma"))) static uint64_t read_avx2(const unsigned char *bytes,
                                                              uint64_t num_bytes)
{
    enum { NUM_SUMS = BLOCK_BYTES / 32 };
    __m256i sums[NUM_SUMS];
    UNROLL for (int i = 0; i < NUM_SUMS; ++i)
    {
        sums[i] = _mm256_setzero_si256();
    }
    for (uint64_t at = 0; at + BLOCK_BYTES <= num_bytes; at += BLOCK_BYTES) {
        const __m256i *block = (const __m256i *)(const void *)(bytes + at);
        UNROLL for (int i = 0; i < NUM_SUMS; ++i)
        {
            sums[i] = _mm256_add_epi64(sums[i], _mm256_load_si256(block + i));
        }
    }
    UNROLL for (int i = 1; i < NUM_SUMS; ++i)
    {
        sums[0] = _mm256_add_epi64(sums[0], sums[i]);
    }
    return (uint64_t)_mm256_extract_epi64(sums[0], 0);
}

__attribute__((target("avx2,fma"))) static void copy_avx2(unsigned char *to,
                                                          const unsigned char *from,
                                                          uint64_t num_bytes)
{
    for (uint64_t at = 0; at + BLOCK_BYTES <= num_bytes; at += BLOCK_BYTES) {
        const __m256i *source = (const __m256i *)(const void *)(from + at);
        __m256i *destination = (__m256i *)(void *)(to + at);
        UNROLL for (int i = 0; i < BLOCK_BYTES / 32; ++i)
        {
            _mm256_stream_si256(destination + i, _mm256_load_si256(source + i));
        }
    }
    _mm_sfence();
}

__attribute__((target("avx2,fma"))) static uint64_t run_fma_avx2(void)
{
    /* Independent sums: two FMA units times a latency of 4 or 5 need 8 to 10; with two constants
     * they fit 16 registers. */
    enum { NUM_SUMS = 12, LANES = 8 };
    __m256 sums[NUM_SUMS];
    const __m256 factor = _mm256_set1_ps(0.999f), addend = _mm256_set1_ps(0.001f);
    UNROLL for (int i = 0; i < NUM_SUMS; ++i)
    {
        sums[i] = _mm256_set1_ps((float)i);
    }
    for (int step = 0; step < NUM_FMA_STEPS; ++step) {
        UNROLL for (int i = 0; i < NUM_SUMS; ++i)
        {
            sums[i] = _mm256_fmadd_ps(sums[i], factor, addend);
        }
    }
    UNROLL for (int i = 1; i < NUM_SUMS; ++i)
    {
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    }
    fma_sink = _mm256_cvtss_f32(sums[0]);
    return UINT64_C(2) * NUM_FMA_STEPS * NUM_SUMS * LANES;
}

static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#else

static int has_avx2(void)
{
    return 0;
}

#endif

const char *moe_bench_limits_isa(void)
{
    return has_avx2() ? "avx2" : "c";
}

const struct moe_bench_limit_info *moe_bench_limit_info(enum moe_bench_limit limit, int is_gpu)
{
    static const struct moe_bench_limit_info infos[2][MOE_BENCH_NUM_LIMITS] = {
        {[MOE_BENCH_LIMIT_READ] = {"read", "GB/s", "read_gb_per_s"},
         [MOE_BENCH_LIMIT_COPY] = {"copy", "GB/s in + out", "copy_gb_per_s"},
         [MOE_BENCH_LIMIT_FMA] = {"fma", "GFLOP/s fp32", "fma_gflop_per_s"}},
        {[MOE_BENCH_LIMIT_READ] = {"memset", "GB/s", "memset_gb_per_s"},
         [MOE_BENCH_LIMIT_COPY] = {"memcpy", "GB/s in + out", "memcpy_gb_per_s"},
         [MOE_BENCH_LIMIT_FMA] = {"mma", "GFLOP/s 16-bit, nominal", "mma_gflop_per_s"}}};
    return &infos[is_gpu != 0][limit];
}

static uint64_t read_bytes(const unsigned char *bytes, uint64_t num_bytes)
{
#if HAS_AVX2_LOOPS
    if (has_avx2()) {
        return read_avx2(bytes, num_bytes);
    }
#endif
    return read_plain(bytes, num_bytes);
}

static void copy_bytes(unsigned char *to, const unsigned char *from, uint64_t num_bytes)
{
#if HAS_AVX2_LOOPS
    if (has_avx2()) {
        copy_avx2(to, from, num_bytes);
        return;
    }
#endif
    memcpy(to, from, num_bytes);
}

static uint64_t run_fma(void)
{
#if HAS_AVX2_LOOPS
    if (has_avx2()) {
        return run_fma_avx2();
    }
#endif
    return run_fma_plain();
}

/* One thread's share of the memory: whole blocks, one after the other. */
static unsigned char *find_share(const struct moe_bench_limits *limits, int thread_idx,
                                 int num_threads, uint64_t *num_bytes)
{
    const uint64_t blocks = limits->memory.num_bytes / (2 * BLOCK_BYTES) / (uint64_t)num_threads;
    *num_bytes = 2 * BLOCK_BYTES * blocks;
    return (unsigned char *)limits->memory.bytes + (uint64_t)thread_idx * *num_bytes;
}

static void read_share(void *self, int thread_idx, int num_threads)
{
    uint64_t num_bytes = 0;
    const unsigned char *share = find_share(self, thread_idx, num_threads, &num_bytes);
    read_sink = read_bytes(share, num_bytes);
}

static void copy_share(void *self, int thread_idx, int num_threads)
{
    uint64_t num_bytes = 0;
    unsigned char *share = find_share(self, thread_idx, num_threads, &num_bytes);
    copy_bytes(share, share + num_bytes / 2, num_bytes / 2);
}

static void fma_share(void *self, int thread_idx, int num_threads)
{
    (void)num_threads;
    uint64_t *num_operations = self;
    const uint64_t operations = run_fma();
    if (thread_idx == 0) {
        *num_operations = operations;
    }
}

int moe_bench_limits_init(struct moe_bench_limits *limits, struct moe_bench_team *team,
                          uint64_t num_bytes, struct moe_cli_error *error)
{
    memset(limits, 0, sizeof *limits);
    limits->team = team;
    if (moe_bench_memory_init(&limits->memory, num_bytes, "measuring the limits", error) != 0) {
        return -1;
    }
    return moe_bench_memory_fill(limits->memory.bytes, MOE_DTYPE_FP32,
                                 limits->memory.num_bytes / sizeof(float), 1.0f, 0, team, error);
}

void moe_bench_limits_finish(struct moe_bench_limits *limits)
{
    moe_bench_memory_finish(&limits->memory);
}

void moe_bench_limits_measure(struct moe_bench_limits *limits)
{
    const int num_threads = moe_bench_team_num_threads(limits->team);
    uint64_t share_bytes = 0, num_operations = 0;
    (void)find_share(limits, 0, num_threads, &share_bytes);
    const double moved_bytes = (double)share_bytes * num_threads;
    moe_bench_samples_add(&limits->samples[MOE_BENCH_LIMIT_READ],
                          moved_bytes / moe_bench_team_run(limits->team, read_share, limits));
    moe_bench_samples_add(&limits->samples[MOE_BENCH_LIMIT_COPY],
                          moved_bytes / moe_bench_team_run(limits->team, copy_share, limits));
    const double fma_s = moe_bench_team_run(limits->team, fma_share, &num_operations);
    moe_bench_samples_add(&limits->samples[MOE_BENCH_LIMIT_FMA],
                          (double)num_operations * num_threads / fma_s);
}

double moe_bench_limits_timer_s(void)
{
    const double start_s = moe_terminal_now_s();
    double last_s = start_s;
    for (int i = 0; i < NUM_TIMER_READS; ++i) {
        last_s = moe_terminal_now_s();
    }
    return (last_s - start_s) / NUM_TIMER_READS;
}
