/* SPDX-License-Identifier: Apache-2.0 */
/* The main loop of the grouped GEMM on sm_90a; gemm.cu tells what it computes. */
#ifndef MOE_GEMM_CUH
#define MOE_GEMM_CUH

#include "gemm_epilogue.cuh"

/* A row of tiles.def and what follows from it. */
template <int kM, int kN, int kK, int kGroup, int kWarps, int kStages> struct moe_gemm_tile {
    static constexpr int kBlockM = kM;
    static constexpr int kBlockN = kN;
    static constexpr int kBlockK = kK;
    static constexpr int kGroupM = kGroup;
    static constexpr int kNumStages = kStages;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kConsumers = MOE_CUDA_GEMM_NUM_CONSUMERS(kWarps);
    static constexpr int kSlabRows = MOE_CUDA_GEMM_SLAB_ROWS(kN, kWarps);
    static constexpr int kBoxes = kK / MOE_CUDA_GEMM_BOX_K; /* along k, of a stage */
    static constexpr int kBoxBytes = kSlabRows * 128;
    static constexpr int kSlabBytes = kBoxes * kBoxBytes;
    static constexpr int kWeightBytes = kN * kK * 2;
    static constexpr int kStageBytes = MOE_CUDA_GEMM_STAGE_BYTES(kM, kN, kK);
    static constexpr int kTokenWarps = 3;
    /* Step of a unit at which its token warps look up the next one. */
    static constexpr int kLookAhead = 2;
    static_assert(kM % 8 == 0 && kM <= 128, "tokens of a unit");
    static_assert(kK % MOE_CUDA_GEMM_BOX_K == 0 && kSlabRows <= 64 && kSlabRows % 16 == 0, "boxes");
    static_assert(kStageBytes % 1024 == 0 && kWeightBytes % 1024 == 0, "swizzle atoms");
    static_assert(MOE_CUDA_GEMM_FIXED_BYTES(kM, kN, kK, kWarps, kStages) +
                          MOE_CUDA_GEMM_SEGMENT_BYTES(512) <=
                      227 * 1024,
                  "shared memory");
};

/* A place in the ring; the parity of its phase flips with every turn. */
template <typename Tile> struct moe_gemm_ring {
    uint32_t slots; /* shared address of stage 0 */
    uint32_t full;  /* of its barriers, 8 bytes each */
    uint32_t empty;
    uint32_t units; /* of the units that begin in a stage, 16 bytes each */
    int32_t stage;
    uint32_t parity;

    __device__ __forceinline__ uint32_t slot() const
    {
        return slots + static_cast<uint32_t>(stage) * Tile::kStageBytes;
    }
    __device__ __forceinline__ uint32_t full_barrier() const
    {
        return full + 8 * static_cast<uint32_t>(stage);
    }
    __device__ __forceinline__ uint32_t empty_barrier() const
    {
        return empty + 8 * static_cast<uint32_t>(stage);
    }
    __device__ __forceinline__ uint32_t unit_place() const
    {
        return units + 16 * static_cast<uint32_t>(stage);
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

/*
 * Descriptor of a K-major matrix whose rows are 128 bytes, swizzled: address / 16 in bits 0..13;
 * leading offset 1 (not used by this layout) in 16..29; eight rows, 1024 bytes, / 16 in 32..45;
 * 128-byte swizzle, 1, in 62..63.
 */
static __device__ __forceinline__ uint64_t moe_gemm_descriptor(uint32_t address)
{
    return (address & 0x3ffffu) >> 4 | UINT64_C(1) << 16 | UINT64_C(64) << 32 | UINT64_C(1) << 62;
}

/* Units of this CTA. */
static __device__ __forceinline__ int32_t moe_gemm_first()
{
    return static_cast<int32_t>(blockIdx.x);
}

static __device__ __forceinline__ int32_t moe_gemm_stride()
{
    return static_cast<int32_t>(gridDim.x);
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

/* The producer of weights, one thread: boxes of every stage of every unit. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_load_weights(const struct moe_cuda_gemm &args,
                                                             const struct moe_gemm_work &work,
                                                             struct moe_gemm_ring<Tile> ring)
{
    const struct moe_op_gemm &op = args.op;
    const int32_t num_steps = moe_gemm_ceil(op.k, Tile::kBlockK);
    const uint64_t policy_once = moe_ptx_policy_evict_first();
    const uint64_t policy_shared = moe_ptx_policy_normal();
    const bool has_two = op.num_matrices == 2;
    for (int32_t u = moe_gemm_first(); u < work.num_units; u += moe_gemm_stride()) {
        const struct moe_gemm_unit unit = moe_gemm_find_unit<Tile::kGroupM>(op, work, u);
        const uint64_t policy = unit.is_shared ? policy_shared : policy_once;
        const int32_t first = unit.weight_block * (has_two ? Tile::kBlockN / 2 : Tile::kBlockN);
        for (int32_t step = 0; step < num_steps; step++) {
            moe_ptx_mbarrier_wait(ring.empty_barrier(), ring.parity ^ 1);
            if (step == 0) {
                moe_gemm_write_unit(ring.unit_place(), unit);
            }
            if (unit.expert < 0) { /* a stage without data tells the consumers */
                moe_ptx_mbarrier_arrive(ring.full_barrier());
                ring.advance();
                break;
            }
            moe_ptx_mbarrier_expect(ring.full_barrier(), Tile::kWeightBytes);
#pragma unroll
            for (int32_t slab = 0; slab < 2 * Tile::kConsumers; slab++) {
                const uint32_t to = ring.slot() + slab * Tile::kSlabBytes;
                const void *map = &args.weight[has_two ? slab % 2 : 0];
                const int32_t row = first + (has_two ? slab / 2 : slab) * Tile::kSlabRows;
                if (args.is_k_blocked) {
                    moe_ptx_copy_box(to, map, 0, row, step * Tile::kBoxes, unit.expert,
                                     ring.full_barrier(), policy);
                } else {
#pragma unroll
                    for (int32_t box = 0; box < Tile::kBoxes; box++) {
                        const int32_t k = step * Tile::kBlockK + box * MOE_CUDA_GEMM_BOX_K;
                        moe_ptx_copy_box(to + box * Tile::kBoxBytes, map, k, row, 0, unit.expert,
                                         ring.full_barrier(), policy);
                    }
                }
            }
            ring.advance();
        }
    }
}

/* Rows that a lane of a token warp copies pieces of, as input rows; -1: none. */
template <typename Tile> struct moe_gemm_sources {
    static constexpr int kRowsPerTurn = 4 * Tile::kTokenWarps;
    static constexpr int kTurns = (Tile::kBlockM + kRowsPerTurn - 1) / kRowsPerTurn;
    int32_t rows[kTurns];
};

template <typename Tile>
static __device__ __forceinline__ void moe_gemm_find_sources(const struct moe_op_gemm &op,
                                                             const struct moe_gemm_unit &unit,
                                                             int32_t own_row,
                                                             struct moe_gemm_sources<Tile> *sources)
{
#pragma unroll
    for (int32_t turn = 0; turn < sources->kTurns; turn++) {
        const int32_t row = turn * sources->kRowsPerTurn + own_row;
        sources->rows[turn] = -1;
        if (row < unit.num_rows && unit.expert >= 0) {
            sources->rows[turn] =
                op.row_ids != nullptr ? op.row_ids[unit.first_row + row] : unit.first_row + row;
        }
    }
}

/* The producers of tokens, kTokenWarps warps: eight lanes copy 128 bytes of a row. The rows of the
 * next unit are looked up while this one's are copied. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_load_tokens(const struct moe_cuda_gemm &args,
                                                            const struct moe_gemm_work &work,
                                                            struct moe_gemm_ring<Tile> ring,
                                                            int32_t token_warp)
{
    using Sources = struct moe_gemm_sources<Tile>;
    const struct moe_op_gemm &op = args.op;
    const int32_t num_steps = moe_gemm_ceil(op.k, Tile::kBlockK);
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    const int32_t chunk = lane % 8;
    const int32_t own_row = token_warp * 4 + lane / 8;
    Sources next;
    int32_t next_expert = -1;
    const auto look_up = [&](int32_t u) {
        if (u < work.num_units) {
            const struct moe_gemm_unit unit = moe_gemm_find_unit<Tile::kGroupM>(op, work, u);
            moe_gemm_find_sources(op, unit, own_row, &next);
            next_expert = unit.expert;
        }
    };
    look_up(moe_gemm_first());
    for (int32_t u = moe_gemm_first(); u < work.num_units; u += moe_gemm_stride()) {
        const char *rows[Sources::kTurns];
#pragma unroll
        for (int32_t turn = 0; turn < Sources::kTurns; turn++) {
            int32_t row = next.rows[turn];
            if (op.row_ids != nullptr) {
                row = row < 0 || row >= op.num_row_ids ? -1 : row / op.row_ids_div;
            }
            rows[turn] = row < 0 ? nullptr
                                 : static_cast<const char *>(op.input) +
                                       static_cast<int64_t>(row) * op.input_stride * 2 + chunk * 16;
        }
        const int32_t num_own_steps = next_expert < 0 ? 1 : num_steps;
        for (int32_t step = 0; step < num_own_steps; step++) {
            if (step == (Tile::kLookAhead < num_own_steps ? Tile::kLookAhead : num_own_steps - 1)) {
                look_up(u + moe_gemm_stride());
            }
            moe_ptx_mbarrier_wait(ring.empty_barrier(), ring.parity ^ 1);
            const uint32_t slot = ring.slot() + Tile::kWeightBytes;
#pragma unroll
            for (int32_t turn = 0; turn < Sources::kTurns; turn++) {
                const int32_t row = turn * Sources::kRowsPerTurn + own_row;
                if (rows[turn] == nullptr) {
                    continue;
                }
                const uint32_t to =
                    slot + static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
#pragma unroll
                for (int32_t box = 0; box < Tile::kBoxes; box++) {
                    const int32_t k = step * Tile::kBlockK + box * MOE_CUDA_GEMM_BOX_K;
                    const bool is_inside = k + chunk * 8 < op.k;
                    moe_ptx_copy16(to + box * Tile::kBlockM * 128,
                                   is_inside ? rows[turn] + static_cast<int64_t>(k) * 2
                                             : rows[turn],
                                   is_inside ? 16 : 0);
                }
            }
            moe_ptx_copy_arrive(ring.full_barrier());
            ring.advance();
        }
    }
}

/* A stage has been read: by one lane per warp. */
static __device__ __forceinline__ void moe_gemm_release(uint32_t empty_barrier)
{
    if (threadIdx.x % 32 == 0) {
        moe_ptx_mbarrier_arrive(empty_barrier);
    }
}

/* All of k for one unit, with kN columns of tokens. One stage's multiplications are in flight while
 * the next one's are queued. */
template <typename Tile, int kN, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_multiply(int32_t num_steps, int32_t consumer,
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
        moe_ptx_fence_async(); /* the copies of tokens were not made by the copy engine */
        moe_ptx_keep(sums[0]);
        moe_ptx_keep(sums[1]);
        moe_ptx_wgmma_fence();
#pragma unroll
        for (int32_t box = 0; box < Tile::kBoxes; box++) {
#pragma unroll
            for (int32_t k = 0; k < 4; k++) { /* 16 columns, 32 bytes */
                const uint32_t accumulate = box + k > 0 ? 1 : (step > 0 ? 1 : 0);
                const uint64_t weight_offset = (box * Tile::kBoxBytes + k * 32) / 16;
                const uint64_t token_offset = (box * Tile::kBlockM * 128 + k * 32) / 16;
                moe_ptx_wgmma<kN, kIsHalf>(sums[0], slab0 + weight_offset, tokens + token_offset,
                                           accumulate);
                moe_ptx_wgmma<kN, kIsHalf>(sums[1], slab1 + weight_offset, tokens + token_offset,
                                           accumulate);
            }
        }
        moe_ptx_wgmma_commit();
        moe_ptx_wgmma_wait<1>();
        moe_ptx_keep(sums[0]);
        moe_ptx_keep(sums[1]);
        if (step > 0) {
            moe_gemm_release(last);
        }
        last = ring.empty_barrier();
        ring.advance();
    }
    moe_ptx_wgmma_wait<0>();
    moe_ptx_keep(sums[0]);
    moe_ptx_keep(sums[1]);
    moe_gemm_release(last);
}

/* The switch over the number of columns stands outside the loop over k. */
template <typename Tile, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_multiply_rows(int32_t num_rows, int32_t num_steps,
                                                              int32_t consumer,
                                                              struct moe_gemm_ring<Tile> &ring,
                                                              float (&sums)[2][kSums])
{
#define MOE_GEMM_CASE(n)                                                          \
    case n / 8:                                                                   \
        if constexpr (n <= Tile::kBlockM) {                                       \
            moe_gemm_multiply<Tile, n, kIsHalf>(num_steps, consumer, ring, sums); \
        }                                                                         \
        break;
    switch ((num_rows + 7) / 8) {
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
    }
#undef MOE_GEMM_CASE
}

/* A consumer warpgroup: multiplies and stores its slabs of every unit. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_consume(const struct moe_cuda_gemm &args,
                                                        const struct moe_gemm_work &work,
                                                        struct moe_gemm_ring<Tile> ring,
                                                        uint32_t staging, char *staged,
                                                        int32_t consumer)
{
    constexpr int kSums = Tile::kBlockM / 2;
    const struct moe_op_gemm &op = args.op;
    const int32_t num_steps = moe_gemm_ceil(op.k, Tile::kBlockK);
    const bool has_two = op.num_matrices == 2;
    struct moe_gemm_place place;
    place.staging = staging + static_cast<uint32_t>(consumer) * MOE_CUDA_GEMM_STAGING_BYTES;
    place.barrier = 1 + static_cast<uint32_t>(consumer);
    place.slab_channels = Tile::kSlabRows;
    place.second_column = has_two ? op.n : 0;
    for (int32_t u = moe_gemm_first(); u < work.num_units; u += moe_gemm_stride()) {
        moe_ptx_mbarrier_wait(ring.full_barrier(), ring.parity);
        const struct moe_gemm_unit unit = moe_gemm_read_unit(ring.unit_place());
        float sums[2][kSums];
        place.first_channel = unit.weight_block * (has_two ? Tile::kBlockN / 2 : Tile::kBlockN) +
                              consumer * (has_two ? 1 : 2) * Tile::kSlabRows;
        place.second_channel = place.first_channel + (has_two ? 0 : Tile::kSlabRows);
#pragma unroll
        for (int32_t i = 0; i < kSums; i++) {
            sums[0][i] = 0.0f;
            sums[1][i] = 0.0f;
        }
        if (unit.expert < 0) {
            __syncwarp(); /* all lanes have read the unit */
            moe_gemm_release(ring.empty_barrier());
            ring.advance();
        } else {
            if (op.input_dtype == MOE_DTYPE_FP16) {
                moe_gemm_multiply_rows<Tile, true>(unit.num_rows, num_steps, consumer, ring, sums);
            } else {
                moe_gemm_multiply_rows<Tile, false>(unit.num_rows, num_steps, consumer, ring, sums);
            }
        }
        moe_gemm_store_unit<Tile::kBlockM>(
            args, unit, place,
            reinterpret_cast<float *>(staged + consumer * MOE_CUDA_GEMM_STAGING_BYTES), sums);
    }
}

/* Shared memory: ring, staging, barriers, units, scratch, three words per segment. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_run(const struct moe_cuda_gemm &args)
{
    extern __shared__ char memory[];
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const uint32_t unaligned = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    const uint32_t slots = (unaligned + 1023) / 1024 * 1024;
    const uint32_t staging = slots + Tile::kNumStages * Tile::kStageBytes;
    const uint32_t barriers = staging + Tile::kConsumers * MOE_CUDA_GEMM_STAGING_BYTES;
    const uint32_t units = barriers + 16 * Tile::kNumStages;
    int32_t *scratch =
        reinterpret_cast<int32_t *>(memory + (units - unaligned) + 16 * Tile::kNumStages);
    struct moe_gemm_work work;
    work.first_block = scratch + 64;
    work.first_row = work.first_block + args.op.num_segments + 1;
    work.num_rows = work.first_row + args.op.num_segments + 1;
    struct moe_gemm_ring<Tile> ring;
    ring.slots = slots;
    ring.full = barriers;
    ring.empty = barriers + 8 * Tile::kNumStages;
    ring.units = units;
    ring.stage = 0;
    ring.parity = 0;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < Tile::kNumStages; i++) {
            moe_ptx_mbarrier_init(ring.full + 8 * i, 1 + 32 * Tile::kTokenWarps);
            moe_ptx_mbarrier_init(ring.empty + 8 * i, 4 * Tile::kConsumers);
        }
        moe_ptx_fence_mbarrier_init();
    }
    if (threadIdx.x == 32) {
        moe_ptx_prefetch_map(&args.weight[0]);
        moe_ptx_prefetch_map(&args.weight[args.op.num_matrices == 2]);
    }
    if (!args.is_early) {
        moe_ptx_griddep_wait();
        moe_ptx_griddep_launch();
    }
    const int32_t block_channels = args.op.num_matrices == 2 ? Tile::kBlockN / 2 : Tile::kBlockN;
    moe_gemm_list_work<Tile::kBlockM, Tile::kThreads>(
        args.op, moe_gemm_ceil(args.op.n, block_channels), scratch, &work);
    if (warp < 4 * Tile::kConsumers) {
        if constexpr (Tile::kConsumers == 2) {
            moe_ptx_registers_more<208>();
        }
        if (args.is_early) {
            moe_ptx_griddep_wait();
            moe_ptx_griddep_launch();
        }
        moe_gemm_consume<Tile>(args, work, ring, staging, memory + (staging - unaligned), warp / 4);
    } else {
        if constexpr (Tile::kConsumers == 2) {
            moe_ptx_registers_fewer<88>();
        }
        if (warp == 4 * Tile::kConsumers) {
            if (threadIdx.x % 32 == 0) {
                moe_gemm_load_weights<Tile>(args, work, ring);
            }
            if (args.is_early) {
                moe_ptx_griddep_wait();
            }
        } else {
            if (args.is_early) {
                moe_ptx_griddep_wait();
            }
            moe_gemm_load_tokens<Tile>(args, work, ring, warp - 4 * Tile::kConsumers - 1);
        }
    }
}

#endif
