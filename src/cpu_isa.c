/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpuid is asked directly: the compiler's own helper keeps its answers in a table that a
 * constructor fills, and nothing of this plugin may run when it is loaded.
 */
#include "cpu_isa.h"

#include "cpu_float.h"
#include "cpu_kernels.h"
#include "tile.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#if MOE_HAVE_AVX2

#include <cpuid.h>

/* Bits of XCR0: the operating system saves xmm and ymm registers. */
#define XCR0_SSE_AVX 6u
#define XCR0_AVX512  0xe6u /* the above, masks and zmm registers as well */

static uint32_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

const char *moe_cpu_isa(void)
{
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        return "c11";
    }
    const uint32_t wanted = bit_FMA | bit_F16C | bit_AVX | bit_OSXSAVE;
    if ((ecx & wanted) != wanted || (read_xcr0() & XCR0_SSE_AVX) != XCR0_SSE_AVX) {
        return "c11";
    }
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (ebx & bit_AVX2) == 0) {
        return "c11";
    }
    return "avx2";
}

static int32_t find_avx512_vbmi(void)
{
    uint32_t eax, ebx, ecx, edx;
    const uint32_t wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    return strcmp(moe_cpu_isa(), "avx2") == 0 && (read_xcr0() & XCR0_AVX512) == XCR0_AVX512 &&
           __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & wanted) == wanted &&
           (ecx & bit_AVX512VBMI) != 0;
}

/* The trial compares with fp32 arithmetic of the kernels' environment, not of the host's. */
static int32_t find_avx512_bf16(void)
{
    uint32_t eax, ebx, ecx, edx;
    struct moe_cpu_float host;
    if (!moe_cpu_isa_has_avx512_vbmi() || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) ||
        (eax & bit_AVX512BF16) == 0) {
        return 0;
    }
    moe_cpu_float_enter(&host);
    const int32_t is_exact = moe_gemm_pairs_probe_avx2();
    moe_cpu_float_leave(&host);
    return is_exact;
}

/* The answer of `find`, which is asked once: cpuid is slow in guests. `known` is 0 until then, and
 * 1 + the answer afterwards. */
static int32_t ask_once(_Atomic int32_t *known, int32_t (*find)(void))
{
    int32_t answer = atomic_load_explicit(known, memory_order_relaxed);
    if (answer == 0) {
        answer = 1 + find();
        atomic_store_explicit(known, answer, memory_order_relaxed);
    }
    return answer - 1;
}

int32_t moe_cpu_isa_has_avx512_vbmi(void)
{
    static _Atomic int32_t known;
    return ask_once(&known, find_avx512_vbmi);
}

int32_t moe_cpu_isa_has_avx512_bf16(void)
{
    static _Atomic int32_t known;
    return ask_once(&known, find_avx512_bf16);
}

/* Bytes of the largest cache that cpuid leaf `leaf` describes (its subleaves end with type 0). */
static int64_t largest_cache(uint32_t leaf)
{
    uint32_t eax, ebx, ecx, edx;
    int64_t largest = 0;
    for (uint32_t i = 0; i < 16 && __get_cpuid_count(leaf, i, &eax, &ebx, &ecx, &edx); i++) {
        if ((eax & 0x1fu) == 0) {
            break;
        }
        const int64_t ways = (ebx >> 22) + 1, partitions = (ebx >> 12 & 0x3ffu) + 1;
        const int64_t line_bytes = (ebx & 0xfffu) + 1, num_sets = (int64_t)ecx + 1;
        const int64_t bytes = ways * partitions * line_bytes * num_sets;
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

int64_t moe_cpu_isa_cache_bytes(void)
{
    int64_t bytes = largest_cache(4);                      /* Intel */
    return bytes > 0 ? bytes : largest_cache(0x8000001du); /* AMD */
}

void moe_cpu_isa_brand(char *out, size_t out_bytes)
{
    uint32_t words[13] = {0};
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t *quad = words + 4 * i;
        if (!__get_cpuid(0x80000002u + i, &quad[0], &quad[1], &quad[2], &quad[3])) {
            snprintf(out, out_bytes, "CPU");
            return;
        }
    }
    const char *text = (const char *)words;
    while (*text == ' ') {
        text++;
    }
    snprintf(out, out_bytes, "%s", text);
    for (size_t length = strlen(out); length > 0 && out[length - 1] == ' '; length--) {
        out[length - 1] = '\0';
    }
}

#else

const char *moe_cpu_isa(void)
{
    return "c11";
}

int32_t moe_cpu_isa_has_avx512_vbmi(void)
{
    return 0;
}

int32_t moe_cpu_isa_has_avx512_bf16(void)
{
    return 0;
}

void moe_cpu_isa_brand(char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "CPU");
}

int64_t moe_cpu_isa_cache_bytes(void)
{
    return 0;
}

#endif
