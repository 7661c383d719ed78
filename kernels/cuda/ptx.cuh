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

#if __CUDA_ARCH__ >= 900
/* 9.7.13.4 barrier.cluster: all threads of the cluster; shared memory written before is visible
 * through mapa addresses after. */
static __device__ __forceinline__ void moe_ptx_cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* 10. %cluster_ctarank */
static __device__ __forceinline__ uint32_t moe_ptx_cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* 9.7.9.22 mapa + 9.7.9.8 ld.shared::cluster: a word of another CTA's shared memory. */
static __device__ __forceinline__ int32_t moe_ptx_load_cluster(const int32_t *own, uint32_t rank)
{
    uint32_t local = static_cast<uint32_t>(__cvta_generic_to_shared(own));
    uint32_t remote;
    int32_t value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(value) : "r"(remote) : "memory");
    return value;
}
#endif

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

#endif
