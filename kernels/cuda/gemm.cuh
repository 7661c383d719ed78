/* SPDX-License-Identifier: Apache-2.0 */
/* The main loop of the grouped GEMM on sm_90a; gemm.cu tells what it computes. */
#ifndef MOE_GEMM_CUH
#define MOE_GEMM_CUH

#include "gemm_epilogue.cuh"
#include "gemm_load.cuh"
#include "gemm_merge.cuh"
#include "gemm_pairs.cuh"

/* All of k for one unit, with kN columns of tokens. One stage's multiplications are in flight while
 * the next one's are queued. */
template <typename Tile, int kN, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_multiply(int32_t num_steps, int32_t consumer,
                                                         bool is_gathered,
                                                         struct moe_gemm_ring<Tile> &ring,
                                                         float (&sums)[2][kSums])
{
    uint32_t last = 0;
    for (int32_t step = 0; step < num_steps; step++) {
        const uint32_t slot = ring.slot();
        const uint64_t slab0 = moe_gemm_descriptor(slot + consumer * 2 * Tile::kSlabBytes);
        const uint64_t slab1 = moe_gemm_descriptor(slot + (consumer * 2 + 1) * Tile::kSlabBytes);
        const uint64_t tokens = moe_gemm_descriptor(slot + Tile::kWeightBytes);
        moe_ptx_mbarrier_wait(ring.full_barrier(), ring.parity);
        if (is_gathered) {
            moe_ptx_fence_async(); /* these copies were not made by the copy engine */
        }
        moe_ptx_keep(sums[0]);
        moe_ptx_keep(sums[1]);
        moe_ptx_wgmma_fence();
#pragma unroll
        for (int32_t box = 0; box < Tile::kBoxes; box++) {
#pragma unroll
            for (int32_t k = 0; k < Tile::kMmas; k++) {
                const uint32_t accumulate = box + k > 0 ? 1 : (step > 0 ? 1 : 0);
                const uint64_t weight_offset = (box * Tile::kBoxBytes + k * Tile::kStepBytes) / 16;
                const uint64_t token_offset =
                    (box * Tile::kBlockM * Tile::kRowBytes + k * Tile::kMmaBytes) / 16;
                moe_ptx_wgmma<kN, kIsHalf, Tile::kIsTransposed>(sums[0], slab0 + weight_offset,
                                                                tokens + token_offset, accumulate);
                moe_ptx_wgmma<kN, kIsHalf, Tile::kIsTransposed>(sums[1], slab1 + weight_offset,
                                                                tokens + token_offset, accumulate);
            }
        }
        moe_ptx_wgmma_commit();
        moe_ptx_wgmma_wait<1>();
        moe_ptx_keep(sums[0]);
        moe_ptx_keep(sums[1]);
        if (step > 0) {
            moe_gemm_release<Tile>(last);
        }
        last = ring.empty_barrier();
        ring.advance();
    }
    moe_ptx_wgmma_wait<0>();
    moe_ptx_keep(sums[0]);
    moe_ptx_keep(sums[1]);
    moe_gemm_release<Tile>(last);
}

/* The switch over the number of columns stands outside the loop over k. */
template <typename Tile, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_multiply_rows(int32_t num_rows, int32_t num_steps,
                                                              int32_t consumer, bool is_gathered,
                                                              struct moe_gemm_ring<Tile> &ring,
                                                              float (&sums)[2][kSums])
{
#define MOE_GEMM_CASE(n)                                                                       \
    case n / 8:                                                                                \
        if constexpr (n <= Tile::kBlockM) {                                                    \
            moe_gemm_multiply<Tile, n, kIsHalf>(num_steps, consumer, is_gathered, ring, sums); \
        }                                                                                      \
        break;
    switch (num_rows > 0 ? (num_rows + 7) / 8 : 1) { /* without rows: the stages have to be read */
        MOE_GEMM_CASE(8)
        MOE_GEMM_CASE(16)
        MOE_GEMM_CASE(24)
        MOE_GEMM_CASE(32)
        MOE_GEMM_CASE(40)
        MOE_GEMM_CASE(48)
        MOE_GEMM_CASE(56)
        MOE_GEMM_CASE(64)
        MOE_GEMM_CASE(72)
        MOE_GEMM_CASE(80)
        MOE_GEMM_CASE(88)
        MOE_GEMM_CASE(96)
        MOE_GEMM_CASE(104)
        MOE_GEMM_CASE(112)
        MOE_GEMM_CASE(120)
        MOE_GEMM_CASE(128)
        MOE_GEMM_CASE(136)
        MOE_GEMM_CASE(144)
        MOE_GEMM_CASE(152)
        MOE_GEMM_CASE(160)
        MOE_GEMM_CASE(168)
        MOE_GEMM_CASE(176)
        MOE_GEMM_CASE(184)
        MOE_GEMM_CASE(192)
    }
#undef MOE_GEMM_CASE
}

/* A consumer warpgroup: multiplies and stores its slabs of every unit. */
template <typename Tile, bool kIsHalf>
static __device__ __forceinline__ void moe_gemm_consume(const struct moe_cuda_gemm &args,
                                                        const struct moe_gemm_work &work,
                                                        struct moe_gemm_ring<Tile> ring,
                                                        int32_t consumer)
{
    constexpr int kSums = Tile::kBlockM / 2;
    const struct moe_op_gemm &op = args.op;
    const int32_t num_steps = moe_gemm_ceil(op.k, Tile::kBlockK);
    const bool has_two = op.num_matrices == 2;
    struct moe_gemm_place place;
    place.staging = ring.slots + Tile::kStagingOffset +
                    static_cast<uint32_t>(consumer) * MOE_CUDA_GEMM_STAGING_BYTES;
    place.rows =
        ring.slots + Tile::kRowOffset + static_cast<uint32_t>(consumer) * Tile::kBlockM * 4;
    place.barrier = 1 + static_cast<uint32_t>(consumer);
    place.slab_channels = Tile::kSlabRows;
    place.warp_channels = 16;
    place.half_channels = 8;
    place.is_paired = Tile::kIsPaired;
    if (Tile::kIsPaired) {
        place.warp_channels = 8;
        place.half_channels = 32;
    }
    place.second_column = has_two ? op.n : 0;
    for (int32_t u = moe_gemm_first<Tile>(); u < work.num_units; u += moe_gemm_stride<Tile>()) {
        moe_ptx_mbarrier_wait(ring.full_barrier(), ring.parity);
        const struct moe_gemm_unit unit = moe_gemm_read_unit(ring.unit_place());
        float sums[2][kSums];
        place.first_channel = unit.weight_block * (has_two ? Tile::kBlockN / 2 : Tile::kBlockN) +
                              consumer * (has_two ? 1 : 2) * Tile::kSlabRows;
        place.second_channel = place.first_channel + (has_two ? 0 : Tile::kSlabRows);
        if (Tile::kIsMerged && !has_two) { /* both slabs are rows of one */
            place.slab_channels = 2 * Tile::kSlabRows;
            place.second_channel = op.n;
        }
#pragma unroll
        for (int32_t i = 0; i < kSums; i++) {
            sums[0][i] = 0.0f;
            sums[1][i] = 0.0f;
        }
        struct moe_gemm_rows<Tile::kBlockM> rows;
        moe_gemm_find_rows<Tile::kBlockM>(op, unit, &rows);
        if (unit.expert < 0) {
            __syncwarp(); /* all lanes have read the unit */
            moe_gemm_release<Tile>(ring.empty_barrier());
            ring.advance();
        } else if constexpr (Tile::kIsMerged) {
            moe_gemm_multiply_merged_rows<Tile, kIsHalf>(unit.num_rows, num_steps, ring, sums[0]);
        } else {
            moe_gemm_multiply_rows<Tile, kIsHalf>(unit.num_rows, num_steps, consumer,
                                                  moe_gemm_is_gathered<Tile>(args), ring, sums);
        }
        if constexpr (Tile::kIsPaired) {
            moe_gemm_part_pairs(sums);
        }
        if constexpr (Tile::kIsMerged) {
            if (has_two) {
                moe_gemm_exchange<Tile>(place.barrier, moe_ptx_shared_pointer(place.staging), sums);
            }
        }
        /* Or the compiler would keep addresses of the epilogue while the sums need registers. */
        place.thread = static_cast<int32_t>(threadIdx.x) % 128;
        moe_ptx_keep(place.thread);
        moe_gemm_share_rows<Tile::kBlockM>(place, rows);
        moe_gemm_store_unit<Tile::kBlockM, kIsHalf>(args, unit, place, sums);
    }
}

/* Shared memory: ring, staging, barriers, units, rows of the outputs, scratch, three words per
 * segment, the order of sorted routes. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_run(const struct moe_cuda_gemm &args)
{
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    char *memory = moe_ptx_shared_memory();
    const uint32_t unaligned = moe_ptx_shared_address(memory);
    const uint32_t slots = (unaligned + 1023) / 1024 * 1024;
    memory += slots - unaligned;
    int32_t *scratch = reinterpret_cast<int32_t *>(memory + Tile::kScratchOffset);
    struct moe_gemm_work work;
    work.first_block = scratch + 64;
    work.first_row = work.first_block + args.op.num_segments + 1;
    work.num_rows = work.first_row + args.op.num_segments + 1;
    work.staging = memory + Tile::kStagingOffset;
    int32_t *order = work.num_rows + args.op.num_segments + 1;
    work.row_ids = moe_gemm_sorts<Tile>(args) ? order : args.op.row_ids;
    struct moe_gemm_ring<Tile> ring;
    ring.slots = slots;
    ring.stage = 0;
    ring.parity = 0;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < Tile::kNumStages; i++) {
            moe_ptx_mbarrier_init(slots + Tile::kFullOffset + 8 * i,
                                  moe_gemm_is_gathered<Tile>(args) ? 1 + 32 * Tile::kTokenWarps
                                                                   : 1);
            moe_ptx_mbarrier_init(slots + Tile::kEmptyOffset + 8 * i,
                                  4 * Tile::kConsumers * Tile::kCtas);
        }
        moe_ptx_fence_mbarrier_init();
    }
    if (threadIdx.x == 32) {
        moe_ptx_prefetch_map(&args.weight[0]);
        moe_ptx_prefetch_map(&args.weight[args.op.num_matrices == 2]);
    }
    if constexpr (Tile::kCtas > 1) {
        moe_ptx_cluster_sync(); /* its barriers are ready for the other CTA */
    }
    if (!args.is_early) {
        moe_ptx_griddep_wait();
        moe_ptx_griddep_launch();
    }
    const int32_t block_channels = args.op.num_matrices == 2 ? Tile::kBlockN / 2 : Tile::kBlockN;
    moe_gemm_list_work<Tile>(args, moe_gemm_ceil(args.op.n, block_channels), moe_gemm_first<Tile>(),
                             scratch, &work);
    if (moe_gemm_sorts<Tile>(args)) {
        moe_gemm_place_routes<Tile>(args, work.first_row, work.staging, order);
    }
    if (warp < 4 * Tile::kConsumers) {
        if constexpr (Tile::kConsumers == 2) {
            moe_ptx_registers_more<Tile::kConsumerRegisters>();
        }
        if (args.is_early) {
            moe_ptx_griddep_wait();
            moe_ptx_griddep_launch();
        }
        if (args.op.input_dtype == MOE_DTYPE_FP16) {
            moe_gemm_consume<Tile, true>(args, work, ring, warp / 4);
        } else {
            moe_gemm_consume<Tile, false>(args, work, ring, warp / 4);
        }
    } else {
        if constexpr (Tile::kConsumers == 2) {
            moe_ptx_registers_fewer<Tile::kProducerRegisters>();
        }
        if (warp == 4 * Tile::kConsumers) {
            if (threadIdx.x % 32 == 0) {
                moe_gemm_load_boxes<Tile>(args, work, ring);
            }
            if (args.is_early) {
                moe_ptx_griddep_wait();
            }
        } else {
            if (!moe_gemm_is_gathered<Tile>(args)) {
                if (args.is_early) {
                    moe_ptx_griddep_wait();
                }
            } else if constexpr (Tile::kGathers) {
                moe_gemm_load_tokens<Tile>(args, work, ring, warp - 4 * Tile::kConsumers - 1);
            }
        }
    }
    if constexpr (Tile::kCtas > 1) {
        __syncwarp();
        moe_ptx_cluster_sync(); /* the other CTA may still copy here, or arrive at barriers here */
    }
}

#endif
