/* SPDX-License-Identifier: Apache-2.0 */
/* The producers of the grouped GEMM: boxes by TMA, tokens gathered by cp.async. */
#ifndef MOE_GEMM_LOAD_CUH
#define MOE_GEMM_LOAD_CUH

#include "gemm_ring.cuh"

/* A box to this CTA, or to all of its cluster. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_copy_box(uint32_t to, const void *map, int32_t x0,
                                                         int32_t x1, int32_t x2, int32_t x3,
                                                         uint32_t barrier, uint64_t policy)
{
    if constexpr (Tile::kCtas == 1) {
        moe_ptx_copy_box(to, map, x0, x1, x2, x3, barrier, policy);
    } else {
        moe_ptx_copy_box_to((1 << Tile::kCtas) - 1, to, map, x0, x1, x2, x3, barrier, policy);
    }
}

/* One stage's boxes of weights that lie channel by channel: a slab is one box. Where gate and up
 * are in turn, two slabs are 128 neighbours, 64 channels of both. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_copy_transposed(
    const struct moe_cuda_gemm &args, const struct moe_gemm_ring<Tile> &ring,
    const struct moe_gemm_unit &unit, int32_t step, int32_t rank, uint64_t policy)
{
    constexpr int32_t kOwnSlabs = 2 * Tile::kConsumers / Tile::kCtas;
    const bool is_apart = args.op.num_matrices == 2 && !Tile::kIsPaired;
    const int32_t first = unit.weight_block * (is_apart ? Tile::kBlockN / 2 : Tile::kBlockN);
#pragma unroll
    for (int32_t i = 0; i < kOwnSlabs; i++) {
        const int32_t slab = rank * kOwnSlabs + i;
        moe_gemm_copy_box<Tile>(ring.slot() + Tile::box_offset(slab, 0),
                                &args.weight[is_apart ? i % 2 : 0],
                                first + (is_apart ? slab / 2 : slab) * Tile::kSlabRows,
                                step * Tile::kBlockK, 0, unit.expert, ring.full_barrier(), policy);
    }
}

/* One stage's boxes of weights that lie row by row. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_copy_rows(const struct moe_cuda_gemm &args,
                                                          const struct moe_gemm_ring<Tile> &ring,
                                                          const struct moe_gemm_unit &unit,
                                                          int32_t step, int32_t rank,
                                                          uint64_t policy)
{
    constexpr int32_t kOwnSlabs = 2 * Tile::kConsumers / Tile::kCtas;
    const bool has_two = args.op.num_matrices == 2;
    const int32_t first = unit.weight_block * (has_two ? Tile::kBlockN / 2 : Tile::kBlockN);
#pragma unroll
    for (int32_t i = 0; i < kOwnSlabs; i++) {
        const int32_t slab = rank * kOwnSlabs + i;
        const void *map = &args.weight[has_two ? i % 2 : 0];
        const int32_t row = first + (has_two ? slab / 2 : slab) * Tile::kSlabRows;
        const int32_t num_copies = args.is_k_blocked && !Tile::kIsMerged ? 1 : Tile::kBoxes;
#pragma unroll
        for (int32_t box = 0; box < Tile::kBoxes; box++) {
            const uint32_t to = ring.slot() + Tile::box_offset(slab, box);
            const int32_t k =
                args.is_k_blocked ? 0 : step * Tile::kBlockK + box * MOE_CUDA_GEMM_BOX_K;
            const int32_t k_block = args.is_k_blocked ? step * Tile::kBoxes + box : 0;
            if (box >= num_copies) {
                break;
            }
            moe_gemm_copy_box<Tile>(to, map, k, row, k_block, unit.expert, ring.full_barrier(),
                                    policy);
        }
    }
}

/* A CTA of a cluster brings the slabs of one consumer to both. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_copy_weights(const struct moe_cuda_gemm &args,
                                                             const struct moe_gemm_ring<Tile> &ring,
                                                             const struct moe_gemm_unit &unit,
                                                             int32_t step, int32_t rank,
                                                             uint64_t policy)
{
    if constexpr (Tile::kIsTransposed) {
        moe_gemm_copy_transposed<Tile>(args, ring, unit, step, rank, policy);
    } else {
        moe_gemm_copy_rows<Tile>(args, ring, unit, step, rank, policy);
    }
}

/* One stage's boxes of tokens, where they lie in the order of the positions. The last box may bring
 * rows of other units, which are multiplied and not stored. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_copy_tokens(const struct moe_cuda_gemm &args,
                                                            const struct moe_gemm_ring<Tile> &ring,
                                                            const struct moe_gemm_unit &unit,
                                                            int32_t step, uint64_t policy)
{
    for (int32_t row = 0; row < unit.num_rows; row += args.token_box_rows) {
#pragma unroll
        for (int32_t box = 0; box < Tile::kBoxes; box++) {
            moe_ptx_copy_box(ring.slot() + Tile::kWeightBytes +
                                 (box * Tile::kBlockM + row) * Tile::kRowBytes,
                             &args.tokens, step * Tile::kBlockK + box * MOE_CUDA_GEMM_BOX_K,
                             unit.first_row + row, 0, 0, ring.full_barrier(), policy);
        }
    }
}

/* The producer of weights, and of tokens in order, one thread: boxes of every stage of every
 * unit. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_load_boxes(const struct moe_cuda_gemm &args,
                                                           const struct moe_gemm_work &work,
                                                           struct moe_gemm_ring<Tile> ring)
{
    const struct moe_op_gemm &op = args.op;
    const int32_t num_steps = moe_gemm_ceil(op.k, Tile::kBlockK);
    const int32_t rank = moe_gemm_rank<Tile>();
    const uint64_t policy_once = moe_ptx_policy_evict_first();
    const uint64_t policy_shared = moe_ptx_policy_normal();
    bool has_waited = !args.is_early;
    for (int32_t u = moe_gemm_first<Tile>(); u < work.num_units; u += moe_gemm_stride<Tile>()) {
        const struct moe_gemm_unit unit =
            moe_gemm_find_unit<Tile::kGroupM, Tile::kCtas>(op, work, u, rank);
        const uint64_t policy = unit.is_shared ? policy_shared : policy_once;
        const int32_t num_boxes = moe_gemm_is_gathered<Tile>(args)
                                      ? 0
                                      : moe_gemm_ceil(unit.num_rows, args.token_box_rows);
        const int32_t stage_bytes =
            Tile::kWeightBytes + num_boxes * args.token_box_rows * Tile::kBoxes * Tile::kRowBytes;
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
            moe_ptx_mbarrier_expect(ring.full_barrier(), stage_bytes);
            moe_gemm_copy_weights<Tile>(args, ring, unit, step, rank, policy);
            if (num_boxes > 0) {
                if (!has_waited) {
                    moe_ptx_griddep_wait();
                    has_waited = true;
                }
                moe_gemm_copy_tokens<Tile>(args, ring, unit, step, policy_shared);
            }
            ring.advance();
        }
    }
}

/* Do row ids tell which input rows are read? */
static __device__ __forceinline__ bool moe_gemm_has_sources(const struct moe_op_gemm &op,
                                                            const struct moe_gemm_work &work)
{
    return work.row_ids != nullptr && op.row_ids_div != 0;
}

/* Rows that a lane of a token warp copies pieces of. */
template <typename Tile> struct moe_gemm_sources {
    static constexpr int kRowsPerTurn = 4 * Tile::kTokenWarps;
    static constexpr int kTurns = (Tile::kBlockM + kRowsPerTurn - 1) / kRowsPerTurn;
    int32_t expert;
    int32_t num_turns;
    int32_t rows[kTurns]; /* entries of work.row_ids, then input rows */
};

template <typename Tile>
static __device__ __forceinline__ void moe_gemm_find_sources(const struct moe_op_gemm &op,
                                                             const struct moe_gemm_work &work,
                                                             const struct moe_gemm_unit &unit,
                                                             int32_t own_row,
                                                             struct moe_gemm_sources<Tile> *sources)
{
    sources->expert = unit.expert;
    sources->num_turns = moe_gemm_ceil(unit.num_rows, sources->kRowsPerTurn);
#pragma unroll
    for (int32_t turn = 0; turn < sources->kTurns; turn++) {
        const int32_t row = turn * sources->kRowsPerTurn + own_row;
        sources->rows[turn] = -1;
        if (row < unit.num_rows && unit.expert >= 0) {
            sources->rows[turn] = moe_gemm_has_sources(op, work)
                                      ? work.row_ids[unit.first_row + row]
                                      : unit.first_row + row;
        }
    }
}

/* Ids to input rows; where there is none the first one is copied, and what comes of it is not
 * stored. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_translate(const struct moe_op_gemm &op,
                                                          const struct moe_gemm_work &work,
                                                          struct moe_gemm_sources<Tile> *sources)
{
#pragma unroll
    for (int32_t turn = 0; turn < sources->kTurns; turn++) {
        const int32_t id = sources->rows[turn];
        if (!moe_gemm_has_sources(op, work)) {
            sources->rows[turn] = id < 0 ? 0 : id;
        } else {
            sources->rows[turn] = id < 0 || id >= op.num_row_ids ? 0 : id / op.row_ids_div;
        }
    }
}

/*
 * The producers of tokens, kTokenWarps warps: eight lanes copy 128 bytes of a row. A copy's
 * addresses stay in registers of their own from step to step: the next instruction that writes such
 * a register waits until the copy has been queued, which made a copy cost 100 cycles. The rows of
 * the next unit are looked up while this one's are copied.
 */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_load_tokens(const struct moe_cuda_gemm &args,
                                                            const struct moe_gemm_work &work,
                                                            struct moe_gemm_ring<Tile> ring,
                                                            int32_t token_warp)
{
    using Sources = struct moe_gemm_sources<Tile>;
    constexpr int32_t kPieceBytes = 16;
    const struct moe_op_gemm &op = args.op;
    const int32_t num_steps = moe_gemm_ceil(op.k, Tile::kBlockK);
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    const int32_t chunk = lane % 8;
    const int32_t own_row = token_warp * 4 + lane / 8;
    static_assert(Sources::kRowsPerTurn % 8 == 4, "the swizzle of a row takes two turns");
    uint32_t offsets[2]; /* of even and odd turns, less the turn's rows */
#pragma unroll
    for (int32_t odd = 0; odd < 2; odd++) {
        offsets[odd] = static_cast<uint32_t>(Tile::kWeightBytes + own_row * Tile::kRowBytes +
                                             ((chunk ^ ((own_row + 4 * odd) & 7)) << 4));
    }
    Sources next;
    const auto look_up = [&](int32_t u) {
        if (u < work.num_units) {
            const struct moe_gemm_unit unit =
                moe_gemm_find_unit<Tile::kGroupM, Tile::kCtas>(op, work, u, moe_gemm_rank<Tile>());
            moe_gemm_find_sources(op, work, unit, own_row, &next);
        }
    };
    /* Which rows come first is known before the wait, unless a sort in front tells. */
    const bool waits_first =
        args.is_early && moe_gemm_has_sources(op, work) && !moe_gemm_sorts<Tile>(args);
    if (waits_first) {
        moe_ptx_griddep_wait();
    }
    look_up(moe_gemm_first<Tile>());
    moe_gemm_translate(op, work, &next);
    if (args.is_early && !waits_first) {
        moe_ptx_griddep_wait();
    }
    for (int32_t u = moe_gemm_first<Tile>(); u < work.num_units; u += moe_gemm_stride<Tile>()) {
        const char *from[Sources::kTurns];
#pragma unroll
        for (int32_t turn = 0; turn < Sources::kTurns; turn++) {
            from[turn] =
                static_cast<const char *>(op.input) +
                static_cast<int64_t>(next.rows[turn]) * op.input_stride * Tile::kElementBytes +
                chunk * kPieceBytes;
        }
        const int32_t num_turns = next.expert < 0 ? 0 : next.num_turns;
        const int32_t num_own_steps = next.expert < 0 ? 1 : num_steps;
        int32_t left =
            op.k - chunk * kPieceBytes /
                       Tile::kElementBytes; /* columns of the lane's pieces, this one included */
        for (int32_t step = 0; step < num_own_steps; step++) {
            moe_ptx_mbarrier_wait(ring.empty_barrier(), ring.parity ^ 1);
#pragma unroll
            for (int32_t box = 0; box < Tile::kBoxes; box++) {
                const uint32_t bytes = left > box * MOE_CUDA_GEMM_BOX_K ? kPieceBytes : 0;
#pragma unroll
                for (int32_t turn = 0; turn < Sources::kTurns; turn++) {
                    const bool is_in_block = turn * Sources::kRowsPerTurn + own_row < Tile::kBlockM;
                    moe_ptx_copy16_if(turn < num_turns && is_in_block,
                                      ring.slot() + offsets[turn % 2] +
                                          (box * Tile::kBlockM + turn * Sources::kRowsPerTurn) *
                                              Tile::kRowBytes,
                                      from[turn] + box * Tile::kRowBytes, bytes);
                }
            }
            moe_ptx_copy_arrive(ring.full_barrier());
            ring.advance();
            left -= Tile::kBlockK;
#pragma unroll
            for (int32_t turn = 0; turn < Sources::kTurns; turn++) {
                from[turn] += Tile::kBlockK * Tile::kElementBytes;
                moe_ptx_keep(from[turn]);
            }
            if (step == (Tile::kLookAhead < num_own_steps ? Tile::kLookAhead : num_own_steps - 1)) {
                look_up(u + moe_gemm_stride<Tile>());
            }
        }
        moe_gemm_translate(op, work, &next);
    }
}

#endif
