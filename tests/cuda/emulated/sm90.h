/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A multiprocessor or two of sm_90a on a CPU, as far as the grouped GEMM uses one: the functions of
 * kernels/cuda/ptx.cuh, which this header stands in for, so that the kernel's own source runs
 * without a GPU. Every thread of a cluster is a coroutine; the scheduler takes one at random.
 *   copies     happen at a random later time; a barrier counts them then
 *   barriers   phases, counts and bytes as in PTX
 *   wgmma      reads shared memory through descriptors when it is issued; waiting for it is a
 *              warp's meeting point, as all its lanes are one there
 * What it cannot show: order between proxies, operands changed too early, and speed.
 */
#ifndef MOE_EMULATED_SM90_H
#define MOE_EMULATED_SM90_H
#define MOE_PTX_CUH /* kernels/cuda/ptx.cuh is not read */

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include <ucontext.h>

#undef __device__
#undef __global__
#undef __forceinline__
#undef __grid_constant__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __expf           expf
#define __fdividef(a, b) ((a) / (b))

namespace sm90
{

struct Dim {
    uint32_t x;
};

struct Barrier {
    int64_t count, pending, bytes, phase;
};

struct Meeting { /* of a fixed number of threads */
    int32_t num_arrived;
    int64_t generation;
};

constexpr uint32_t kSharedBase = 1040; /* not a multiple of 1024 */
constexpr size_t kSharedBytes = 233472;
constexpr size_t kStackBytes = 256 << 10;

struct Cta {
    std::vector<char> shared;
    std::map<uint32_t, Barrier> barriers;
    std::map<uint32_t, Meeting> meetings; /* named barriers, and warps from 1000 on */
    std::vector<uint32_t> words;          /* of a warp's exchange, [thread][4] */
    int32_t num_running;                  /* threads; 0: its shared memory is another CTA's now */
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    int32_t cta, thread;
    bool has_ended;
    std::vector<std::function<void()>> copies; /* begun, and not yet given to an arrival */
};

struct Cluster {
    std::vector<Cta> ctas;
    std::vector<Thread> threads;
    std::vector<std::function<void()>> pending; /* copies on their way */
    Meeting meeting;
    ucontext_t scheduler;
    Thread *current;
    int64_t num_waits; /* in a row in which nothing happened */
    uint64_t seed;
    int32_t num_threads; /* of a CTA */
    uint32_t first_block, num_blocks;
};

inline Cluster *cluster;

inline uint64_t random_bits()
{
    cluster->seed ^= cluster->seed << 13;
    cluster->seed ^= cluster->seed >> 7;
    cluster->seed ^= cluster->seed << 17;
    return cluster->seed;
}

inline void stop(const char *why)
{
    printf("emulation: %s\n", why);
    fflush(stdout);
    _Exit(1);
}

inline Cta &cta()
{
    return cluster->ctas[static_cast<size_t>(cluster->current->cta)];
}

inline uint32_t thread_idx()
{
    return static_cast<uint32_t>(cluster->current->thread);
}

inline void yield()
{
    Thread *self = cluster->current;
    swapcontext(&self->context, &cluster->scheduler);
}

/* Until `holds`; a cluster in which nobody gets on is stuck. */
template <typename Condition> inline void wait_for(Condition holds)
{
    while (!holds()) {
        if (++cluster->num_waits > 400000) {
            stop("nobody gets on: a deadlock");
        }
        yield();
    }
    cluster->num_waits = 0;
}

inline void meet(Meeting &meeting, int32_t num_threads)
{
    const int64_t generation = meeting.generation;
    if (++meeting.num_arrived == num_threads) {
        meeting.num_arrived = 0;
        meeting.generation++;
        cluster->num_waits = 0;
        return;
    }
    wait_for([&] { return meeting.generation != generation; });
}

inline void meet_warp()
{
    meet(cta().meetings[1000 + thread_idx() / 32], 32);
}

inline char *at(Cta &cta, uint32_t address)
{
    if (address < kSharedBase || address - kSharedBase + 16 > kSharedBytes) {
        stop("an address outside shared memory");
    }
    return cta.shared.data() + (address - kSharedBase);
}

inline Barrier &barrier_at(Cta &cta, uint32_t address)
{
    const auto found = cta.barriers.find(address);
    if (cta.num_running == 0) {
        stop("something arrives at a CTA that has ended");
    }
    if (found == cta.barriers.end()) {
        stop("no barrier at this address");
    }
    return found->second;
}

inline void turn_phase(Barrier &barrier)
{
    if (barrier.pending < 0) {
        stop("more arrivals than a phase has");
    }
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.phase++;
        barrier.pending = barrier.count;
    }
    cluster->num_waits = 0;
}

inline uint32_t swizzled(uint32_t address)
{
    return address ^ (address >> 7 & 7) << 4;
}

/* What cuTensorMapEncodeTiled would hold; in the place of a CUtensorMap. */
struct Map {
    const char *base;
    uint64_t dims[4], strides[3];
    uint32_t box[4];
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap), "a map in a map");

inline void copy_box(int32_t to_cta, uint32_t to, Map map, const int32_t (&x)[4], uint32_t barrier)
{
    Cta &target = cluster->ctas[static_cast<size_t>(to_cta)];
    uint32_t offset = 0;
    for (uint32_t i2 = 0; i2 < map.box[2]; i2++) {
        for (uint32_t i1 = 0; i1 < map.box[1]; i1++) {
            for (uint32_t i0 = 0; i0 < map.box[0]; i0++, offset += 2) {
                const int64_t c0 = x[0] + i0, c1 = x[1] + i1, c2 = x[2] + i2, c3 = x[3];
                uint16_t value = 0;
                if (c0 >= 0 && c1 >= 0 && c2 >= 0 && c0 < int64_t(map.dims[0]) &&
                    c1 < int64_t(map.dims[1]) && c2 < int64_t(map.dims[2]) &&
                    c3 < int64_t(map.dims[3])) {
                    memcpy(&value,
                           map.base + c0 * 2 + c1 * int64_t(map.strides[0]) +
                               c2 * int64_t(map.strides[1]) + c3 * int64_t(map.strides[2]),
                           2);
                }
                memcpy(at(target, swizzled(to + offset)), &value, 2);
            }
        }
    }
    Barrier &full = barrier_at(target, barrier);
    full.bytes -= offset;
    turn_phase(full);
}

inline void thread_main(unsigned low, unsigned high)
{
    auto *body = reinterpret_cast<std::function<void()> *>(uint64_t(low) | uint64_t(high) << 32);
    (*body)();
    cluster->current->has_ended = true;
    cta().num_running--;
    cluster->num_waits = 0;
    yield();
}

/* Runs `body` in every thread of a cluster of CTAs. */
inline void run_cluster(uint32_t first_block, uint32_t num_blocks, int32_t num_ctas,
                        int32_t num_threads, uint64_t seed, std::function<void()> body)
{
    Cluster own;
    cluster = &own;
    own.seed = seed | 1;
    own.num_waits = 0;
    own.num_threads = num_threads;
    own.first_block = first_block;
    own.num_blocks = num_blocks;
    own.meeting = {};
    own.ctas.resize(static_cast<size_t>(num_ctas));
    own.threads.resize(static_cast<size_t>(num_ctas * num_threads));
    for (auto &cta : own.ctas) {
        cta.shared.assign(kSharedBytes, char(0xee));
        cta.num_running = num_threads;
        cta.words.resize(static_cast<size_t>(num_threads) * 4);
    }
    const auto address = reinterpret_cast<uint64_t>(&body);
    for (size_t i = 0; i < own.threads.size(); i++) {
        Thread &thread = own.threads[i];
        thread.cta = int32_t(i) / num_threads;
        thread.thread = int32_t(i) % num_threads;
        thread.has_ended = false;
        thread.stack.resize(kStackBytes);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        makecontext(&thread.context, reinterpret_cast<void (*)()>(thread_main), 2,
                    unsigned(address), unsigned(address >> 32));
    }
    size_t num_left = own.threads.size();
    size_t next = 0;
    while (num_left > 0) {
        if (!own.pending.empty() && random_bits() % 4 == 0) {
            const size_t which = random_bits() % own.pending.size();
            auto copy = own.pending[which];
            own.pending.erase(own.pending.begin() + long(which));
            copy();
        }
        next = random_bits() % 64 == 0 ? random_bits() % own.threads.size()
                                       : (next + 1) % own.threads.size();
        if (own.threads[next].has_ended) {
            continue;
        }
        own.current = &own.threads[next];
        swapcontext(&own.scheduler, &own.threads[next].context);
        num_left -= own.threads[next].has_ended;
    }
    if (!own.pending.empty()) {
        stop("a CTA ended before the copies into it");
    }
}

} // namespace sm90

#define threadIdx (sm90::Dim{sm90::thread_idx()})
#define blockIdx  (sm90::Dim{sm90::cluster->first_block + uint32_t(sm90::cluster->current->cta)})
#define gridDim   (sm90::Dim{sm90::cluster->num_blocks})

inline void __syncthreads()
{
    sm90::meet(sm90::cta().meetings[0], sm90::cluster->num_threads);
}

#include "sm90_warp.h"

inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector)
{
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t result = 0;
    for (uint32_t i = 0; i < 4; i++) {
        result |= uint32_t(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
    }
    return result;
}

inline int32_t atomicAdd(int32_t *to, int32_t value)
{
    const int32_t before = *to;
    *to += value;
    return before;
}

inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline float __fadd_rn(float a, float b)
{
    return a + b;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline float __int_as_float(int32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline float moe_ptx_exp2(float x)
{
    return exp2f(x);
}
inline float moe_ptx_reciprocal(float x)
{
    return 1.0f / x;
}
inline void moe_ptx_griddep_wait()
{
}
inline void moe_ptx_griddep_launch()
{
}
inline void moe_ptx_fence_async()
{
}
inline void moe_ptx_fence_mbarrier_init()
{
}
inline void moe_ptx_prefetch_map(const void *)
{
}
inline void moe_ptx_wgmma_fence()
{
}
inline void moe_ptx_wgmma_commit()
{
}
inline uint64_t moe_ptx_policy_normal()
{
    return 0;
}
inline uint64_t moe_ptx_policy_evict_first()
{
    return 0;
}
template <int kRegisters> void moe_ptx_registers_more()
{
}
template <int kRegisters> void moe_ptx_registers_fewer()
{
}
template <int kSize> void moe_ptx_keep(float (&)[kSize])
{
}
inline void moe_ptx_keep(const char *&)
{
}
inline void moe_ptx_keep(int32_t &)
{
}

inline char *moe_ptx_shared_memory()
{
    return sm90::cta().shared.data();
}
inline uint32_t moe_ptx_shared_address(const void *)
{
    return sm90::kSharedBase;
}
inline char *moe_ptx_shared_pointer(uint32_t address)
{
    return sm90::cta().shared.data() + (address - sm90::kSharedBase);
}

inline void moe_ptx_mbarrier_init(uint32_t barrier, uint32_t count)
{
    sm90::cta().barriers[barrier] = {count, count, 0, 0};
}

inline void moe_ptx_mbarrier_arrive(uint32_t barrier)
{
    auto &own = sm90::barrier_at(sm90::cta(), barrier);
    own.pending--;
    sm90::turn_phase(own);
}

inline void moe_ptx_mbarrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    auto &there = sm90::barrier_at(sm90::cluster->ctas[rank], barrier);
    there.pending--;
    sm90::turn_phase(there);
}

inline void moe_ptx_mbarrier_expect(uint32_t barrier, uint32_t bytes)
{
    auto &own = sm90::barrier_at(sm90::cta(), barrier);
    own.bytes += bytes;
    own.pending--;
    sm90::turn_phase(own);
}

inline void moe_ptx_mbarrier_wait(uint32_t barrier, uint32_t parity)
{
    auto &own = sm90::barrier_at(sm90::cta(), barrier);
    sm90::wait_for([&] { return (own.phase & 1) != int64_t(parity); });
}

inline void moe_ptx_barrier_sync(uint32_t id, uint32_t count)
{
    sm90::meet(sm90::cta().meetings[id], int32_t(count));
}

inline void moe_ptx_cluster_sync()
{
    sm90::meet(sm90::cluster->meeting, int32_t(sm90::cluster->threads.size()));
}

inline uint32_t moe_ptx_cluster_rank()
{
    return uint32_t(sm90::cluster->current->cta);
}

inline void moe_ptx_copy_box_to(uint16_t ctas, uint32_t to, const void *map, int32_t x0, int32_t x1,
                                int32_t x2, int32_t x3, uint32_t barrier, uint64_t)
{
    for (int32_t rank = 0; rank < int32_t(sm90::cluster->ctas.size()); rank++) {
        if ((ctas >> rank & 1) != 0) {
            sm90::Map own;
            memcpy(&own, map, sizeof(own));
            sm90::cluster->pending.push_back([=] {
                sm90::copy_box(rank, to, own, {x0, x1, x2, x3}, barrier);
            });
        }
    }
}

inline void moe_ptx_copy_box(uint32_t to, const void *map, int32_t x0, int32_t x1, int32_t x2,
                             int32_t x3, uint32_t barrier, uint64_t policy)
{
    moe_ptx_copy_box_to(uint16_t(1 << sm90::cluster->current->cta), to, map, x0, x1, x2, x3,
                        barrier, policy);
}

inline void moe_ptx_copy16_if(bool is_there, uint32_t to, const void *from, uint32_t bytes)
{
    sm90::Cta *cta = &sm90::cta();
    sm90::cluster->current->copies.push_back([=] {
        memset(sm90::at(*cta, to), 0, is_there ? 16 : 0);
        memcpy(sm90::at(*cta, to), from, is_there ? bytes : 0);
    });
}

inline void moe_ptx_store16_if(bool is_there, void *to, const uint4 &value)
{
    memcpy(to, &value, is_there ? 16 : 0);
}

inline void moe_ptx_copy_arrive(uint32_t barrier)
{
    sm90::Cta *cta = &sm90::cta();
    auto copies = std::move(sm90::cluster->current->copies);
    sm90::cluster->current->copies.clear();
    sm90::cluster->pending.push_back([=] {
        for (const auto &copy : copies) {
            copy();
        }
        auto &full = sm90::barrier_at(*cta, barrier);
        full.pending--;
        sm90::turn_phase(full);
    });
}

inline void moe_ptx_store_shared16(uint32_t to, uint4 value)
{
    memcpy(sm90::at(sm90::cta(), to), &value, 16);
}

inline void moe_ptx_load_shared16(uint32_t from, uint4 *out)
{
    memcpy(out, sm90::at(sm90::cta(), from), 16);
}

inline int32_t moe_ptx_load_shared4(uint32_t from)
{
    int32_t value;
    memcpy(&value, sm90::at(sm90::cta(), from), 4);
    return value;
}

inline void moe_ptx_store_shared4(uint32_t to, int32_t value)
{
    memcpy(sm90::at(sm90::cta(), to), &value, 4);
}

inline uint32_t moe_ptx_min_s16x2(uint32_t a, uint32_t b)
{
    const auto least = [](uint32_t x, uint32_t y) {
        return uint32_t(uint16_t(int16_t(x) < int16_t(y) ? x : y));
    };
    return least(a & 0xffff, b & 0xffff) | least(a >> 16, b >> 16) << 16;
}

/* Lane 8 i + r gives where row r of the stored matrix i goes; this lane has the elements of its row
 * lane / 4 and columns 2 * (lane % 4) and the next, which are stored transposed. */
inline void moe_ptx_store_transposed(uint32_t to, const uint32_t (&words)[4])
{
    const uint32_t thread = sm90::thread_idx(), lane = thread % 32;
    auto &places = sm90::cta().words;
    places[thread * 4] = to;
    sm90::meet_warp();
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t row = lane / 4, column = 2 * (lane % 4) + j;
            const uint16_t value = uint16_t(words[i] >> (16 * j));
            const uint32_t place = places[(thread - lane + 8 * i + column) * 4] + 2 * row;
            memcpy(sm90::at(sm90::cta(), place), &value, 2);
        }
    }
    sm90::meet_warp();
}

template <int kGroups> void moe_ptx_wgmma_wait()
{
    sm90::meet_warp();
}

#endif
