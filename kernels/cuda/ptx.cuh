/* SPDX-License-Identifier: Apache-2.0 */
/* One inline function per PTX instruction that CUDA C has no word for. Sections are those of the
 * PTX ISA. Nothing else in the tree contains inline assembly for a GPU. */
#ifndef MOE_PTX_CUH
#define MOE_PTX_CUH

#include <stdint.h>

/* 9.7.13.13 griddepcontrol.wait: until all grids that this one depends on have finished and their
 * writes are visible. Returns at once in a grid that was launched without the attribute. */
static __device__ __forceinline__ void moe_ptx_griddep_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* 9.7.13.13 griddepcontrol.launch_dependents: the next grid of the chain may begin its prologue. */
static __device__ __forceinline__ void moe_ptx_griddep_launch()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* 9.7.13.4 barrier.cluster: what a thread of the cluster wrote before it arrived, all of them see
 * after they have waited. */
static __device__ __forceinline__ void moe_ptx_cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void moe_ptx_cluster_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* 9.7.9.22 mapa, 9.7.9.11 st.shared::cluster: stores to what lies at `at` in the shared memory of
 * another CTA of the cluster. */
static __device__ __forceinline__ void moe_ptx_cluster_store(uint32_t at, uint32_t rank,
                                                             uint32_t value)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "st.shared::cluster.u32 [there], %2;\n"
                 "}\n" ::"r"(at),
                 "r"(rank), "r"(value)
                 : "memory");
#endif
}

/* 9.7.3.14 rcp.approx.ftz.f32: 1 / x to one unit in the last place, for normal x. */
static __device__ __forceinline__ float moe_ptx_rcp_approx(float x)
{
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

/* 9.7.4.8 max.NaN.xorsign.abs.bf16x2: the larger magnitudes of two pairs, NaN if either is; signs
 * mean nothing. */
static __device__ __forceinline__ uint32_t moe_ptx_max_abs_bf16x2(uint32_t a, uint32_t b)
{
#if __CUDA_ARCH__ >= 860
    uint32_t result;
    asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
#else
    return __vmaxu2(a & 0x7fff7fffu, b & 0x7fff7fffu);
#endif
}

/* 9.7.14.5.14 mma.m16n8k16, fp32 accumulators: sums += a * b of bf16 (f16) fragments. */
static __device__ __forceinline__ void moe_ptx_mma_bf16(float (&sums)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void moe_ptx_mma_f16(float (&sums)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* From here on: sm_90 and later, what grouped GEMMs and wide reorders are made of. Shared-memory
 * addresses are 32-bit. */

/* The launch's shared memory. */
static __device__ __forceinline__ char *moe_ptx_shared_memory()
{
    extern __shared__ __align__(16) char memory[];
    return memory;
}

static __device__ __forceinline__ uint32_t moe_ptx_shared_address(const void *memory)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

static __device__ __forceinline__ char *moe_ptx_shared_pointer(uint32_t address)
{
    return static_cast<char *>(__cvta_shared_to_generic(address));
}

/* 9.7.13.15 mbarrier. The count is that of arrivals per phase. */
static __device__ __forceinline__ void moe_ptx_mbarrier_init(uint32_t barrier, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

static __device__ __forceinline__ void moe_ptx_mbarrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives at the barrier in the same place of CTA `rank` of the cluster, which may be this one. */
static __device__ __forceinline__ void moe_ptx_mbarrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}\n" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

/* All threads of all CTAs of the cluster. */
static __device__ __forceinline__ void moe_ptx_cluster_sync()
{
    moe_ptx_cluster_arrive();
    moe_ptx_cluster_wait();
}

static __device__ __forceinline__ uint32_t moe_ptx_cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* Arrives, and lets the phase wait for `bytes` of bulk copies besides. */
static __device__ __forceinline__ void moe_ptx_mbarrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Until the phase of this parity has ended. The hardware suspends the thread between tries. */
static __device__ __forceinline__ void moe_ptx_mbarrier_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t has_ended;
    do {
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n"
                     "}\n"
                     : "=r"(has_ended)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (has_ended == 0);
}

/* 9.7.13.4 fence: initialized barriers become visible to the copy engine. */
static __device__ __forceinline__ void moe_ptx_fence_mbarrier_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* 9.7.13.4 fence.proxy.async: what was written to shared memory, by this thread or before a barrier
 * that it has passed, becomes visible to wgmma and to the copy engine. */
static __device__ __forceinline__ void moe_ptx_fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* 9.7.13.1 barrier of `count` threads; id 0 is __syncthreads. */
static __device__ __forceinline__ void moe_ptx_barrier_sync(uint32_t id, uint32_t count)
{
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}

/* 9.7.9.25.3 cp.async: 16 bytes, or zeros when `bytes` is 0; past L1. */
static __device__ __forceinline__ void moe_ptx_copy16(uint32_t to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}

/* The same, predicated and not branched around: many of them in a row are straight code. */
static __device__ __forceinline__ void moe_ptx_copy16_if(bool is_there, uint32_t to,
                                                         const void *from, uint32_t bytes)
{
    asm volatile("{\n"
                 ".reg .pred there;\n"
                 "setp.ne.b32 there, %3, 0;\n"
                 "@there cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n"
                 "}\n" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(static_cast<int32_t>(is_there))
                 : "memory");
}

/* 9.7.9.11 st.global of 16 bytes, if `is_there`: no branch, which would end what can be scheduled
 * together. */
static __device__ __forceinline__ void moe_ptx_store16_if(bool is_there, void *to,
                                                          const uint4 &value)
{
    asm volatile("{\n"
                 ".reg .pred there;\n"
                 "setp.ne.b32 there, %5, 0;\n"
                 "@there st.global.v4.b32 [%0], {%1, %2, %3, %4};\n"
                 "}\n" ::"l"(to),
                 "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w),
                 "r"(static_cast<int32_t>(is_there))
                 : "memory");
}

/* 9.7.9.25.3 cp.async.commit_group: this thread's copies since the last one are a group. */
static __device__ __forceinline__ void moe_ptx_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* 9.7.9.25.3 cp.async.wait_group: until all but the newest kPending groups of this thread have
 * landed. */
template <int kPending> static __device__ __forceinline__ void moe_ptx_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/* 9.7.13.15 cp.async.mbarrier.arrive: the barrier counts an arrival of this thread when its copies
 * so far have landed. The thread does not wait. */
static __device__ __forceinline__ void moe_ptx_copy_arrive(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

#if __CUDA_ARCH__ >= 900

/* 9.7.9.25.4 cp.async.bulk: rows of bytes, addresses and size multiples of 16. A load is counted by
 * the barrier. */
static __device__ __forceinline__ void moe_ptx_bulk_load(uint32_t to, const void *from,
                                                         uint32_t bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

static __device__ __forceinline__ void moe_ptx_bulk_store(void *to, uint32_t from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
}

/* 9.7.9.18 createpolicy: lines that are written are the first to leave the L2. */
static __device__ __forceinline__ uint64_t moe_ptx_evict_first()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

static __device__ __forceinline__ void moe_ptx_bulk_store_hinted(void *to, uint32_t from,
                                                                 uint32_t bytes, uint64_t policy)
{
    asm volatile(
        "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(to),
        "r"(from), "r"(bytes), "l"(policy)
        : "memory");
}

/* 9.7.9.25.4 cp.async.bulk.commit_group, wait_group: until this thread's stores are done. */
static __device__ __forceinline__ void moe_ptx_bulk_finish()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif

#if __CUDA_ARCH__ == 900
/* 9.7.9.27 cp.async.bulk.tensor: one box of a map of four dimensions. */
static __device__ __forceinline__ void moe_ptx_copy_box(uint32_t to, const void *map, int32_t x0,
                                                        int32_t x1, int32_t x2, int32_t x3,
                                                        uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
                 "l"(map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(barrier), "l"(policy)
                 : "memory");
}

/* The same box to the same place of each CTA of the cluster whose bit is set; each one's barrier in
 * the place of `barrier` counts the bytes. */
static __device__ __forceinline__ void moe_ptx_copy_box_to(uint16_t ctas, uint32_t to,
                                                           const void *map, int32_t x0, int32_t x1,
                                                           int32_t x2, int32_t x3, uint32_t barrier,
                                                           uint64_t policy)
{
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7, %8;" ::"r"(to),
        "l"(map), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(barrier), "h"(ctas), "l"(policy)
        : "memory");
}

/* 9.7.9.28 prefetch.tensormap */
static __device__ __forceinline__ void moe_ptx_prefetch_map(const void *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* 9.7.9.18 createpolicy: lines that go first when the L2 needs room. */
static __device__ __forceinline__ uint64_t moe_ptx_policy_evict_first()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

static __device__ __forceinline__ uint64_t moe_ptx_policy_normal()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* 9.7.19.5 setmaxnreg: by all warps of a warpgroup. */
template <int kRegisters> static __device__ __forceinline__ void moe_ptx_registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters> static __device__ __forceinline__ void moe_ptx_registers_fewer()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/* 9.7.14.5.15 stmatrix, four transposed 8x8 matrices of 16-bit elements; lane l gives where column
 * l % 8 of matrix l / 8 goes, 16 bytes. */
static __device__ __forceinline__ void moe_ptx_store_transposed(uint32_t to,
                                                                const uint32_t (&words)[4])
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
        "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
        : "memory");
}

/* 9.7.1.18 min.s16x2: of each half as a signed number. */
static __device__ __forceinline__ uint32_t moe_ptx_min_s16x2(uint32_t a, uint32_t b)
{
    uint32_t result;
    asm("min.s16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

/* 9.7.9.8, 9.7.9.11 ld.shared, st.shared of a word. */
static __device__ __forceinline__ int32_t moe_ptx_load_shared4(uint32_t from)
{
    int32_t value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
    return value;
}

static __device__ __forceinline__ void moe_ptx_store_shared4(uint32_t to, int32_t value)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

/* 9.7.9.8 ld.shared of 16 bytes. */
static __device__ __forceinline__ void moe_ptx_load_shared16(uint32_t from, uint4 *out)
{
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out->x), "=r"(out->y), "=r"(out->z), "=r"(out->w)
                 : "r"(from)
                 : "memory");
}

/* 9.7.9.13 st.shared of 16 bytes. */
static __device__ __forceinline__ void moe_ptx_store_shared16(uint32_t to, const uint4 &value)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

/* 9.7.3.21 ex2.approx: 2^x to 2 ulp; subnormal results are 0. */
static __device__ __forceinline__ float moe_ptx_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 9.7.3.14 rcp.approx: 1 / x to 1 ulp. */
static __device__ __forceinline__ float moe_ptx_reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 9.7.15.7 wgmma: registers written before are seen by the next multiplication. */
static __device__ __forceinline__ void moe_ptx_wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void moe_ptx_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kGroups> static __device__ __forceinline__ void moe_ptx_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

/* Sums are read and written here as far as the compiler knows: no copy of one moves across. */
template <int kSize> static __device__ __forceinline__ void moe_ptx_keep(float (&sums)[kSize])
{
#pragma unroll
    for (int i = 0; i < kSize; i++) {
        asm volatile("" : "+f"(sums[i])::"memory");
    }
}

/* A number is made anew from here on: what follows from it is not kept in registers before. */
static __device__ __forceinline__ void moe_ptx_keep(int32_t &number)
{
    asm volatile("" : "+r"(number));
}

/* An address has a pair of registers from here on. */
static __device__ __forceinline__ void moe_ptx_keep(const char *&address)
{
    asm volatile("" : "+l"(address));
}

/*
 * 9.7.15.5 wgmma.m64nNk16 of bf16 (f16) in shared memory, described by 64-bit descriptors: sums =
 * a * b + (accumulate ? sums : 0). The first N / 2 sums are used. b is K-major, a too or, with
 * kIsTransposed, M-major.
 */
#define MOE_PTX_NAMES_8     "%0, %1, %2, %3"
#define MOE_PTX_NAMES_16    MOE_PTX_NAMES_8 ", %4, %5, %6, %7"
#define MOE_PTX_NAMES_24    MOE_PTX_NAMES_16 ", %8, %9, %10, %11"
#define MOE_PTX_NAMES_32    MOE_PTX_NAMES_24 ", %12, %13, %14, %15"
#define MOE_PTX_NAMES_40    MOE_PTX_NAMES_32 ", %16, %17, %18, %19"
#define MOE_PTX_NAMES_48    MOE_PTX_NAMES_40 ", %20, %21, %22, %23"
#define MOE_PTX_NAMES_56    MOE_PTX_NAMES_48 ", %24, %25, %26, %27"
#define MOE_PTX_NAMES_64    MOE_PTX_NAMES_56 ", %28, %29, %30, %31"
#define MOE_PTX_NAMES_72    MOE_PTX_NAMES_64 ", %32, %33, %34, %35"
#define MOE_PTX_NAMES_80    MOE_PTX_NAMES_72 ", %36, %37, %38, %39"
#define MOE_PTX_NAMES_88    MOE_PTX_NAMES_80 ", %40, %41, %42, %43"
#define MOE_PTX_NAMES_96    MOE_PTX_NAMES_88 ", %44, %45, %46, %47"
#define MOE_PTX_NAMES_104   MOE_PTX_NAMES_96 ", %48, %49, %50, %51"
#define MOE_PTX_NAMES_112   MOE_PTX_NAMES_104 ", %52, %53, %54, %55"
#define MOE_PTX_NAMES_120   MOE_PTX_NAMES_112 ", %56, %57, %58, %59"
#define MOE_PTX_NAMES_128   MOE_PTX_NAMES_120 ", %60, %61, %62, %63"
#define MOE_PTX_NAMES_136   MOE_PTX_NAMES_128 ", %64, %65, %66, %67"
#define MOE_PTX_NAMES_144   MOE_PTX_NAMES_136 ", %68, %69, %70, %71"
#define MOE_PTX_NAMES_152   MOE_PTX_NAMES_144 ", %72, %73, %74, %75"
#define MOE_PTX_NAMES_160   MOE_PTX_NAMES_152 ", %76, %77, %78, %79"
#define MOE_PTX_NAMES_168   MOE_PTX_NAMES_160 ", %80, %81, %82, %83"
#define MOE_PTX_NAMES_176   MOE_PTX_NAMES_168 ", %84, %85, %86, %87"
#define MOE_PTX_NAMES_184   MOE_PTX_NAMES_176 ", %88, %89, %90, %91"
#define MOE_PTX_NAMES_192   MOE_PTX_NAMES_184 ", %92, %93, %94, %95"
#define MOE_PTX_SUM4(d, i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MOE_PTX_SUMS_8(d)   MOE_PTX_SUM4(d, 0)
#define MOE_PTX_SUMS_16(d)  MOE_PTX_SUMS_8(d), MOE_PTX_SUM4(d, 4)
#define MOE_PTX_SUMS_24(d)  MOE_PTX_SUMS_16(d), MOE_PTX_SUM4(d, 8)
#define MOE_PTX_SUMS_32(d)  MOE_PTX_SUMS_24(d), MOE_PTX_SUM4(d, 12)
#define MOE_PTX_SUMS_40(d)  MOE_PTX_SUMS_32(d), MOE_PTX_SUM4(d, 16)
#define MOE_PTX_SUMS_48(d)  MOE_PTX_SUMS_40(d), MOE_PTX_SUM4(d, 20)
#define MOE_PTX_SUMS_56(d)  MOE_PTX_SUMS_48(d), MOE_PTX_SUM4(d, 24)
#define MOE_PTX_SUMS_64(d)  MOE_PTX_SUMS_56(d), MOE_PTX_SUM4(d, 28)
#define MOE_PTX_SUMS_72(d)  MOE_PTX_SUMS_64(d), MOE_PTX_SUM4(d, 32)
#define MOE_PTX_SUMS_80(d)  MOE_PTX_SUMS_72(d), MOE_PTX_SUM4(d, 36)
#define MOE_PTX_SUMS_88(d)  MOE_PTX_SUMS_80(d), MOE_PTX_SUM4(d, 40)
#define MOE_PTX_SUMS_96(d)  MOE_PTX_SUMS_88(d), MOE_PTX_SUM4(d, 44)
#define MOE_PTX_SUMS_104(d) MOE_PTX_SUMS_96(d), MOE_PTX_SUM4(d, 48)
#define MOE_PTX_SUMS_112(d) MOE_PTX_SUMS_104(d), MOE_PTX_SUM4(d, 52)
#define MOE_PTX_SUMS_120(d) MOE_PTX_SUMS_112(d), MOE_PTX_SUM4(d, 56)
#define MOE_PTX_SUMS_128(d) MOE_PTX_SUMS_120(d), MOE_PTX_SUM4(d, 60)
#define MOE_PTX_SUMS_136(d) MOE_PTX_SUMS_128(d), MOE_PTX_SUM4(d, 64)
#define MOE_PTX_SUMS_144(d) MOE_PTX_SUMS_136(d), MOE_PTX_SUM4(d, 68)
#define MOE_PTX_SUMS_152(d) MOE_PTX_SUMS_144(d), MOE_PTX_SUM4(d, 72)
#define MOE_PTX_SUMS_160(d) MOE_PTX_SUMS_152(d), MOE_PTX_SUM4(d, 76)
#define MOE_PTX_SUMS_168(d) MOE_PTX_SUMS_160(d), MOE_PTX_SUM4(d, 80)
#define MOE_PTX_SUMS_176(d) MOE_PTX_SUMS_168(d), MOE_PTX_SUM4(d, 84)
#define MOE_PTX_SUMS_184(d) MOE_PTX_SUMS_176(d), MOE_PTX_SUM4(d, 88)
#define MOE_PTX_SUMS_192(d) MOE_PTX_SUMS_184(d), MOE_PTX_SUM4(d, 92)
#define MOE_PTX_WGMMA_TYPE(n, type, trans, a_name, b_name, accumulate_name)                   \
    asm volatile("{\n"                                                                        \
                 ".reg .pred p;\n"                                                            \
                 "setp.ne.b32 p, " accumulate_name ", 0;\n"                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type              \
                 " {" MOE_PTX_NAMES_##n "}, " a_name ", " b_name ", p, 1, 1, " trans ", 0;\n" \
                                        "}\n"                                                 \
                 : MOE_PTX_SUMS_##n(sums)                                                     \
                 : "l"(a), "l"(b), "r"(accumulate)                                            \
                 : "memory")
#define MOE_PTX_WGMMA(n, a_name, b_name, accumulate_name)                        \
    if constexpr (kN == n) {                                                     \
        if constexpr (kIsHalf && kIsTransposed) {                                \
            MOE_PTX_WGMMA_TYPE(n, "f16", "1", a_name, b_name, accumulate_name);  \
        } else if constexpr (kIsHalf) {                                          \
            MOE_PTX_WGMMA_TYPE(n, "f16", "0", a_name, b_name, accumulate_name);  \
        } else if constexpr (kIsTransposed) {                                    \
            MOE_PTX_WGMMA_TYPE(n, "bf16", "1", a_name, b_name, accumulate_name); \
        } else {                                                                 \
            MOE_PTX_WGMMA_TYPE(n, "bf16", "0", a_name, b_name, accumulate_name); \
        }                                                                        \
    }
template <int kN, bool kIsHalf, bool kIsTransposed, int kSize>
static __device__ __forceinline__ void moe_ptx_wgmma(float (&sums)[kSize], uint64_t a, uint64_t b,
                                                     uint32_t accumulate)
{
    static_assert(kN % 8 == 0 && kN <= 192 && kN / 2 <= kSize, "a multiple of 8 columns");
    MOE_PTX_WGMMA(8, "%4", "%5", "%6")
    MOE_PTX_WGMMA(16, "%8", "%9", "%10")
    MOE_PTX_WGMMA(24, "%12", "%13", "%14")
    MOE_PTX_WGMMA(32, "%16", "%17", "%18")
    MOE_PTX_WGMMA(40, "%20", "%21", "%22")
    MOE_PTX_WGMMA(48, "%24", "%25", "%26")
    MOE_PTX_WGMMA(56, "%28", "%29", "%30")
    MOE_PTX_WGMMA(64, "%32", "%33", "%34")
    MOE_PTX_WGMMA(72, "%36", "%37", "%38")
    MOE_PTX_WGMMA(80, "%40", "%41", "%42")
    MOE_PTX_WGMMA(88, "%44", "%45", "%46")
    MOE_PTX_WGMMA(96, "%48", "%49", "%50")
    MOE_PTX_WGMMA(104, "%52", "%53", "%54")
    MOE_PTX_WGMMA(112, "%56", "%57", "%58")
    MOE_PTX_WGMMA(120, "%60", "%61", "%62")
    MOE_PTX_WGMMA(128, "%64", "%65", "%66")
    MOE_PTX_WGMMA(136, "%68", "%69", "%70")
    MOE_PTX_WGMMA(144, "%72", "%73", "%74")
    MOE_PTX_WGMMA(152, "%76", "%77", "%78")
    MOE_PTX_WGMMA(160, "%80", "%81", "%82")
    MOE_PTX_WGMMA(168, "%84", "%85", "%86")
    MOE_PTX_WGMMA(176, "%88", "%89", "%90")
    MOE_PTX_WGMMA(184, "%92", "%93", "%94")
    MOE_PTX_WGMMA(192, "%96", "%97", "%98")
}
#endif

#endif
