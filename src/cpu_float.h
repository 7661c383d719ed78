/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floating-point environment of kernels: round to nearest even, subnormals kept, exceptions
 * masked. A host may have another one, per thread (FTZ and DAZ are usual), and finds it as it was,
 * status flags included: what kernels raise is no news to it.
 */
#ifndef MOE_CPU_FLOAT_H
#define MOE_CPU_FLOAT_H

#if defined(__SSE2__)

#include <xmmintrin.h>

#define MOE_CPU_FLOAT_MXCSR 0x1f80u /* all exceptions masked, no flag, nearest, no FTZ, no DAZ */

struct moe_cpu_float {
    unsigned int mxcsr;
};

static inline void moe_cpu_float_enter(struct moe_cpu_float *host)
{
    host->mxcsr = _mm_getcsr();
    _mm_setcsr(MOE_CPU_FLOAT_MXCSR);
}

static inline void moe_cpu_float_leave(const struct moe_cpu_float *host)
{
    _mm_setcsr(host->mxcsr);
}

#else

#include <fenv.h>

struct moe_cpu_float {
    fenv_t environment;
};

static inline void moe_cpu_float_enter(struct moe_cpu_float *host)
{
    (void)fegetenv(&host->environment);
    (void)fesetenv(FE_DFL_ENV);
}

static inline void moe_cpu_float_leave(const struct moe_cpu_float *host)
{
    (void)fesetenv(&host->environment);
}

#endif

#endif
