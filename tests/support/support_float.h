/* SPDX-License-Identifier: Apache-2.0 */
/* The calling thread's floating-point environment as an unusual host would have it. */
#ifndef MOE_SUPPORT_FLOAT_H
#define MOE_SUPPORT_FLOAT_H

#if defined(__SSE2__)
#include <xmmintrin.h>
#else
#include <fenv.h>
#endif

/* A number for everything that arithmetic depends on or leaves behind. */
static inline unsigned int support_float_state(void)
{
#if defined(__SSE2__)
    return _mm_getcsr();
#else
    return (unsigned int)fegetround() << 16 | (unsigned int)fetestexcept(FE_ALL_EXCEPT);
#endif
}

/* Subnormals are flushed (where there is SSE), rounding goes towards zero, and one flag is up. */
static inline void support_float_disturb(void)
{
#if defined(__SSE2__)
    _mm_setcsr(0x1f80u | 0x8040u | 0x6000u | 0x0004u); /* flush both ways, towards zero, divided */
#else
    (void)fesetround(FE_TOWARDZERO);
    (void)feraiseexcept(FE_DIVBYZERO);
#endif
}

static inline void support_float_default(void)
{
#if defined(__SSE2__)
    _mm_setcsr(0x1f80u);
#else
    (void)fesetenv(FE_DFL_ENV);
#endif
}

#endif
