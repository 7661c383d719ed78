/* SPDX-License-Identifier: Apache-2.0 */
/* What the roles of the grouped GEMM share: the tile, the ring of stages, which units are whose. */
#ifndef MOE_GEMM_RING_CUH
#define MOE_GEMM_RING_CUH

#include "gemm_work.cuh"
#include "ptx.cuh"

/* A row of tiles.def and what follows from it. */
template <int kM, int kN, int kK, int kGroup, int kWarps, int kStages, int kClusterCtas,
          int kLayout = MOE_CUDA_GEMM_ROWS>
struct moe_gemm_tile {
    static constexpr int kBlockM = kM;
    static constexpr int kBlockN = kN;
    static constexpr int kBlockK = kK;
    static constexpr int kGroupM = kGroup;
    static constexpr int kNumStages = kStages;
    static constexpr int kCtas = kClusterCtas; /* of a cluster, which share the weights */
    static constexpr bool kIsTransposed = kLayout != MOE_CUDA_GEMM_ROWS; /* the weights */
    static constexpr bool kIsPaired = kLayout == MOE_CUDA_GEMM_PAIRED;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kConsumers = MOE_CUDA_GEMM_NUM_CONSUMERS(kWarps);
    static constexpr int kSlabRows = MOE_CUDA_GEMM_SLAB_ROWS(kN, kWarps);
    static constexpr bool kIsMerged = MOE_CUDA_GEMM_IS_MERGED(kN, kWarps); /* gemm_merge.cuh */
    static constexpr int kBoxes = kK / MOE_CUDA_GEMM_BOX_K;                /* along k, of a stage */
    static constexpr int kRowBytes = MOE_CUDA_GEMM_ROW_BYTES;              /* of a box */
    static constexpr int kBoxBytes = kSlabRows * kRowBytes;
    static constexpr int kSlabBytes = kBoxes * kBoxBytes;
    /* A multiplication takes 32 bytes of a row of k: 16 columns of 16 bits. */
    static constexpr int kElementBytes = MOE_CUDA_GEMM_ELEMENT_BYTES;
    static constexpr int kMmaBytes = 32;
    static constexpr int kMmas = kRowBytes / kMmaBytes; /* of a box */
    /* From the columns of a multiplication to the next ones, in a slab. */
    static constexpr int kStepBytes =
        kIsTransposed ? kMmaBytes / kElementBytes * kRowBytes : kMmaBytes;
    static constexpr int kWeightBytes = kN * kK * kElementBytes;
    static constexpr int kStageBytes = MOE_CUDA_GEMM_STAGE_BYTES(kM, kN, kK);
    static constexpr int kTokenWarps = 3;
    /* Shared memory behind the stages: staging, barriers, units, output rows, work. */
    static constexpr int kStagingOffset = kNumStages * kStageBytes;
    static constexpr int kFullOffset = kStagingOffset + kConsumers * MOE_CUDA_GEMM_STAGING_BYTES;
    static constexpr int kEmptyOffset = kFullOffset + 8 * kNumStages;
    static constexpr int kUnitOffset = kEmptyOffset + 8 * kNumStages;
    static constexpr int kRowOffset = kUnitOffset + 16 * kNumStages;
    static constexpr int kScratchOffset = kRowOffset + kConsumers * kM * 4;
    /* Can token warps gather? Their registers are few where the consumers' sums are many. */
    static constexpr bool kGathers = kM <= MOE_CUDA_GEMM_GATHERED_BLOCK_M;
    /* Of a thread, with two consumers; what the launch gives is 168 for each of 384. */
    static constexpr int kConsumerRegisters = kGathers ? 208 : 232;
    static constexpr int kProducerRegisters = 3 * 168 - 2 * kConsumerRegisters;
    /* Step of a unit at which its token warps look up the next one. */
    static constexpr int kLookAhead = 2;
    static_assert(kM % 8 == 0 && kM <= 192, "tokens of a unit");
    static_assert(kGathers || kCtas > 1, "one CTA gathers");
    static_assert(kCtas == 1 || MOE_CUDA_GEMM_TOKEN_BOX_ROWS(kM) % 8 == 0, "swizzle atoms");
    static_assert(kCtas == 1 || (kCtas == 2 && kConsumers == 2), "a CTA brings a consumer's slabs");
    static_assert(kK % MOE_CUDA_GEMM_BOX_K == 0 && kSlabRows <= 64 && kSlabRows % 16 == 0, "boxes");
    static_assert(!kIsMerged || kConsumers == 1, "a merged tile is one consumer's");
    static_assert(!kIsTransposed || kSlabRows == 64, "128 bytes of channels");
    static_assert(kStageBytes % 1024 == 0 && kWeightBytes % 1024 == 0, "swizzle atoms");
    static_assert(MOE_CUDA_GEMM_FIXED_BYTES(kM, kN, kK, kWarps, kStages) +
                          MOE_CUDA_GEMM_SEGMENT_BYTES(512) <=
                      227 * 1024,
                  "shared memory");

    /* Of a box of 64 columns of a slab in a stage. */
    static __device__ __forceinline__ constexpr uint32_t box_offset(int slab, int box)
    {
        return static_cast<uint32_t>(kIsMerged ? (2 * box + slab) * kBoxBytes
                                               : slab * kSlabBytes + box * kBoxBytes);
    }
};

/* A place in the ring; the parity of its phase flips with every turn. */
template <typename Tile> struct moe_gemm_ring {
    uint32_t slots; /* shared address of stage 0 */
    int32_t stage;
    uint32_t parity;

    __device__ __forceinline__ uint32_t slot() const
    {
        return slots + static_cast<uint32_t>(stage) * Tile::kStageBytes;
    }
    __device__ __forceinline__ uint32_t full_barrier() const
    {
        return slots + Tile::kFullOffset + 8 * static_cast<uint32_t>(stage);
    }
    __device__ __forceinline__ uint32_t empty_barrier() const
    {
        return slots + Tile::kEmptyOffset + 8 * static_cast<uint32_t>(stage);
    }
    __device__ __forceinline__ uint32_t unit_place() const
    {
        return slots + Tile::kUnitOffset + 16 * static_cast<uint32_t>(stage);
    }
    __device__ __forceinline__ void advance()
    {
        stage++;
        if (stage == Tile::kNumStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* Units of this CTA's cluster. */
template <typename Tile> static __device__ __forceinline__ int32_t moe_gemm_first()
{
    return static_cast<int32_t>(blockIdx.x) / Tile::kCtas;
}

template <typename Tile> static __device__ __forceinline__ int32_t moe_gemm_stride()
{
    return static_cast<int32_t>(gridDim.x) / Tile::kCtas;
}

/* Of this CTA in its cluster. */
template <typename Tile> static __device__ __forceinline__ int32_t moe_gemm_rank()
{
    return Tile::kCtas == 1 ? 0 : static_cast<int32_t>(moe_ptx_cluster_rank());
}

/* Tokens are gathered by the token warps; else they come in boxes, like weights. */
template <typename Tile>
static __device__ __forceinline__ bool moe_gemm_is_gathered(const struct moe_cuda_gemm &args)
{
    return Tile::kGathers && (Tile::kCtas == 1 || args.token_box_rows == 0);
}

/* The producer of weights tells the consumers what the unit is that begins in a stage. */
static __device__ __forceinline__ void moe_gemm_write_unit(uint32_t place,
                                                           const struct moe_gemm_unit &unit)
{
    moe_ptx_store_shared16(place, make_uint4(static_cast<uint32_t>(unit.expert),
                                             static_cast<uint32_t>(unit.weight_block),
                                             static_cast<uint32_t>(unit.first_row),
                                             static_cast<uint32_t>(unit.num_rows)));
}

static __device__ __forceinline__ struct moe_gemm_unit moe_gemm_read_unit(uint32_t place)
{
    uint4 words;
    moe_ptx_load_shared16(place, &words);
    return {static_cast<int32_t>(words.x), static_cast<int32_t>(words.y),
            static_cast<int32_t>(words.z), static_cast<int32_t>(words.w), 0};
}

/*
 * Descriptor of a matrix in rows of 128 bytes, swizzled: address / 16 in bits 0..13; leading offset
 * 1 (not used by these layouts) in 16..29; eight rows, 1024 bytes, / 16 in 32..45; 128-byte
 * swizzle, 1, in 62..63. K-major a row is 64 columns of k, M-major it is 64 channels of one column.
 */
static __device__ __forceinline__ uint64_t moe_gemm_descriptor(uint32_t address)
{
    return (address & 0x3ffffu) >> 4 | UINT64_C(1) << 16 | UINT64_C(64) << 32 | UINT64_C(1) << 62;
}

/* A stage has been read, by this warp; all CTAs whose copies fill it are told. */
template <typename Tile> static __device__ __forceinline__ void moe_gemm_release(uint32_t barrier)
{
    const uint32_t lane = threadIdx.x % 32;
    if constexpr (Tile::kCtas == 1) {
        if (lane == 0) {
            moe_ptx_mbarrier_arrive(barrier);
        }
    } else {
        if (lane < Tile::kCtas) {
            moe_ptx_mbarrier_arrive_at(barrier, lane);
        }
    }
}

#endif
