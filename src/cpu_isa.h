/* SPDX-License-Identifier: Apache-2.0 */
/* What the processor is and can do, from cpuid. Elsewhere than on x86-64: "c11" and no name. */
#ifndef MOE_CPU_ISA_H
#define MOE_CPU_ISA_H

#include <stddef.h>
#include <stdint.h>

/* "avx2" if this build has AVX2 kernels and processor and operating system support AVX2, FMA and
 * F16C; else "c11". */
const char *moe_cpu_isa(void);

/* Brand string, terminated; "CPU" where there is none. */
void moe_cpu_isa_brand(char *out, size_t out_bytes);

/* Bytes of the last-level cache; 0 when unknown. */
int64_t moe_cpu_isa_cache_bytes(void);

/* Has this processor AVX-512 with F, BW, VL, DQ and VBMI, and does the system save its registers?
 * Asked once per process. */
int32_t moe_cpu_isa_has_avx512_vbmi(void);

/* All that and AVX512_BF16, whose dot products were tried and found to be two fused multiply-adds
 * each (kernels/cpu/gemm_pairs.h). Asked once per process. */
int32_t moe_cpu_isa_has_avx512_bf16(void);

#endif
