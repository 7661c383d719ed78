/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the routing operations on a GPU: it follows from the numbers and the tile; nothing is
 * read back from the device. */
#include "cuda_routing.h"

#include "cuda_args.h"
#include "cuda_ops.h"
#include "plan.h"
#include "problem.h"
#include "status.h"
#include "tiles.h"

/*
 * Chunks: in one launch a warp's worth for most tiles, since every CTA counts everything anyway; in
 * two launches enough that a CTA's warps are busy, but no more rows in the table than are summed
 * quickly.
 */
enum { MAX_ONE_LAUNCH_CTAS = 64, MAX_CHUNKS = 128, TABLE_ALIGNMENT = 256, WARP_ROUTES = 32 };

static int64_t ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Of what every launch of a sort needs. */
static int64_t fixed_smem_bytes(int32_t num_experts)
{
    return 4 * (MOE_CUDA_SORT_SCAN_WORDS + 5 * (int64_t)moe_cuda_sort_bucket_words(num_experts));
}

static int64_t counter_bytes(int32_t num_experts)
{
    return 2 * (int64_t)moe_cuda_sort_row_words(num_experts);
}

/* Two sums per bucket of a group of threads in PLACE. */
static int64_t partial_bytes(int32_t num_experts)
{
    return 2 * 4 * (int64_t)moe_cuda_sort_row_words(num_experts);
}

/* Of one launch with one ranking warp, and of PLACE with one group, at the largest chunk. */
static int64_t min_sort_bytes(int32_t num_experts)
{
    return fixed_smem_bytes(num_experts) + 8 * MOE_CUDA_SORT_MAX_CHUNK + partial_bytes(num_experts);
}

/* One launch takes all routes of a call if they can be counted in 16 bits, and cuda.split never. */
static bool is_one_launch(const struct moe_tile *tile, int64_t num_routes)
{
    return tile->kernel == MOE_KERNEL_CUDA_SORT && num_routes <= MOE_CUDA_SORT_MAX_CHUNK;
}

/* Routes of a chunk. */
static int64_t chunk_routes(const struct moe_tile *tile, int64_t num_routes)
{
    const bool is_one = is_one_launch(tile, num_routes);
    const int64_t num_chunks = is_one ? MAX_ONE_LAUNCH_CTAS : MAX_CHUNKS;
    const int64_t least = is_one ? WARP_ROUTES : tile->block_size;
    return clamp(ceil_div(num_routes, num_chunks), least, MOE_CUDA_SORT_MAX_CHUNK);
}

/* One even without routes: there are still outputs to initialize. */
static int64_t count_chunks(int64_t num_routes, int64_t chunk)
{
    return num_routes > chunk ? ceil_div(num_routes, chunk) : 1;
}

static int64_t table_bytes(int64_t num_chunks, int32_t num_experts)
{
    return ceil_div(num_chunks * counter_bytes(num_experts), TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
}

uint64_t moe_cuda_sort_workspace(const struct moe_problem *problem, const struct moe_tile *tile,
                                 int64_t num_tokens)
{
    const int32_t num_slots = moe_problem_num_slots(problem);
    const int64_t num_routes = num_tokens * num_slots;
    if (is_one_launch(tile, num_routes)) {
        return 0;
    }
    const int64_t chunk = chunk_routes(tile, num_routes);
    const int64_t num_chunks = count_chunks(num_routes, chunk);
    return (uint64_t)(2 * table_bytes(num_chunks, problem->num_experts) + 4 * num_chunks * chunk);
}

/* Ranking warps and their stretches: no more warps than have routes, since every one costs a turn
 * of the sum, and no more than `free_bytes` of shared memory have counters for. */
static void shape_warps(const struct moe_tile *tile, int32_t num_experts, int64_t free_bytes,
                        struct moe_cuda_sort_shape *shape)
{
    const int64_t useful = ceil_div(shape->chunk_routes, WARP_ROUTES);
    int64_t num_warps = clamp(useful, 1, tile->block_size / 32);
    num_warps = clamp(free_bytes / counter_bytes(num_experts), 1, num_warps);
    shape->num_warps = (int32_t)num_warps;
    shape->routes_per_warp =
        (int32_t)(ceil_div(ceil_div(shape->chunk_routes, num_warps), WARP_ROUTES) * WARP_ROUTES);
}

static struct moe_cuda_sort_shape shape_sort(const struct moe_run *run, const struct moe_tile *tile,
                                             int32_t num_experts, int64_t num_routes)
{
    const int64_t chunk = chunk_routes(tile, num_routes);
    const bool is_one = is_one_launch(tile, num_routes);
    struct moe_cuda_sort_shape shape = {
        .phase = is_one ? MOE_CUDA_SORT_ALL : MOE_CUDA_SORT_COUNT,
        .num_chunks = (int32_t)count_chunks(num_routes, chunk),
        .chunk_routes = (int32_t)chunk,
    };
    const int64_t chunk_bytes = 4 * (int64_t)moe_cuda_sort_chunk_words(chunk);
    const int64_t fixed = fixed_smem_bytes(num_experts) + (is_one ? 1 : 2) * chunk_bytes;
    shape_warps(tile, num_experts, moe_cuda_state_of(run)->smem_bytes - fixed, &shape);
    shape.smem_bytes = (int32_t)(fixed + shape.num_warps * counter_bytes(num_experts));
    if (!is_one) {
        unsigned char *tables = run->workspace;
        const int64_t bytes = table_bytes(shape.num_chunks, num_experts);
        shape.counts = (uint16_t *)(void *)tables;
        shape.places = (uint16_t *)(void *)(tables + bytes);
        shape.lists = (uint32_t *)(void *)(tables + 2 * bytes);
    }
    return shape;
}

/* From COUNT to PLACE. */
static void shape_place(const struct moe_cuda_state *state, const struct moe_tile *tile,
                        int32_t num_experts, struct moe_cuda_sort_shape *shape)
{
    const int64_t fixed =
        fixed_smem_bytes(num_experts) + 8 * (int64_t)moe_cuda_sort_chunk_words(shape->chunk_routes);
    const int64_t fitting = (state->smem_bytes - fixed) / partial_bytes(num_experts);
    shape->phase = MOE_CUDA_SORT_PLACE;
    shape->group_threads = (moe_cuda_sort_row_words(num_experts) / 2 + 31) / 32 * 32;
    int64_t num_groups = clamp(tile->block_size / shape->group_threads, 1, shape->num_chunks);
    num_groups = clamp(num_groups, 1, fitting);
    shape->num_groups = (int32_t)num_groups;
    shape->smem_bytes = (int32_t)(fixed + num_groups * partial_bytes(num_experts));
}

/* The launches of a sort: `shape` lies in `args`. One launch has more CTAs than chunks where
 * `num_words` of output are more than those write quickly. */
static int32_t launch_sort(const struct moe_run *run, const struct moe_tile *tile, int32_t form,
                           int32_t num_experts, const void *args, struct moe_cuda_sort_shape *shape,
                           int64_t num_words, struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const bool is_split = shape->phase == MOE_CUDA_SORT_COUNT;
    const int64_t writers = clamp(ceil_div(num_words, 2 * (int64_t)tile->block_size),
                                  ceil_div(num_experts, tile->block_size / 32), 32);
    const int64_t num_ctas = !is_split && writers > shape->num_chunks ? writers : shape->num_chunks;
    struct moe_cuda_launch launch = {
        .form = form,
        .tile = tile->id,
        .grid_x = (uint32_t)num_ctas,
        .grid_y = 1,
        .num_threads = (uint32_t)tile->block_size,
        .smem_bytes = (uint32_t)shape->smem_bytes,
        .is_chained = run->is_chained,
        .args = args,
    };
    MOE_TRY(moe_cuda_state_launch(state, run->stream, &launch, error));
    if (!is_split) {
        return MOE_STATUS_OK;
    }
    shape_place(state, tile, num_experts, shape);
    launch.smem_bytes = (uint32_t)shape->smem_bytes;
    launch.is_chained = 1;
    return moe_cuda_state_launch(state, run->stream, &launch, error);
}

int32_t moe_cuda_align(const struct moe_run *run, const struct moe_op_align *op,
                       struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_ALIGN_BLOCK_SIZE);
    const int32_t num_experts = op->filter.num_experts;
    const bool is_batched = op->batch_counts != NULL;
    struct moe_cuda_align args = {.op = *op};
    if (is_batched) {
        args.shape.phase = MOE_CUDA_SORT_BATCH;
        args.shape.num_chunks = 1;
        args.shape.smem_bytes = (int32_t)fixed_smem_bytes(num_experts);
    } else {
        args.shape = shape_sort(run, tile, num_experts, op->num_routes);
    }
    return launch_sort(run, tile, 0, num_experts, &args, &args.shape,
                       op->sorted_ids != NULL ? op->sorted_capacity : num_experts, error);
}

static int64_t preprocess_words(const struct moe_op_ep_preprocess *op)
{
    const bool has_rows = op->dst2src != NULL || op->m_indices != NULL;
    return op->num_routes + (has_rows ? op->row_capacity : 0);
}

int32_t moe_cuda_ep_preprocess(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                               struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_EP_PREPROCESS);
    const int32_t num_experts = op->filter.num_experts;
    struct moe_cuda_ep_preprocess args = {
        .op = *op,
        .shape = shape_sort(run, tile, num_experts, op->num_routes),
    };
    return launch_sort(run, tile, 0, num_experts, &args, &args.shape, preprocess_words(op), error);
}

/* How a warp gates. */
struct gate_shape {
    int32_t form;
    int32_t sm_threads; /* that a multiprocessor holds */
    int32_t num_words;  /* of shared memory of a warp */
    int32_t is_vectored;
};

static struct gate_shape shape_gate(const struct moe_op_gating *op)
{
    static const struct {
        int32_t form;
        int32_t per_lane;
        int32_t sm_threads;
    } forms[] = {
#define FORM(number, experts) {number, experts, MOE_CUDA_GATE_THREADS_##experts},
        MOE_CUDA_GATE_FORMS_LIST(FORM)
#undef FORM
    };
    const int64_t vector_bytes = 4 * moe_dtype_bytes(op->logits_dtype);
    struct gate_shape shape = {
        .form = 0,
        .sm_threads = forms[0].sm_threads,
        .is_vectored = op->num_experts % 4 == 0 && op->logits_stride % 4 == 0 &&
                       (uintptr_t)op->logits % (uintptr_t)vector_bytes == 0,
    };
    /* More groups than lanes are scored in shared memory only. */
    for (size_t i = 1; i < sizeof(forms) / sizeof(forms[0]) && op->num_groups <= 32; i++) {
        if (op->num_experts <= 32 * forms[i].per_lane) {
            shape.form = forms[i].form;
            shape.sm_threads = forms[i].sm_threads;
            break;
        }
    }
    shape.num_words = MOE_CUDA_GATE_WORDS(op->num_experts, op->top_k, shape.form == 0 ? 3 : 1);
    return shape;
}

/* Warps of a CTA that `free_bytes` of shared memory have room for. */
static int64_t count_gate_warps(const struct moe_tile *tile, const struct gate_shape *gate,
                                int64_t free_bytes)
{
    return clamp(free_bytes / (4 * (int64_t)gate->num_words), 1, tile->block_size / 32);
}

static int32_t launch_gating(const struct moe_run *run, const struct moe_tile *tile,
                             const struct moe_op_gating *op, struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const struct gate_shape gate = shape_gate(op);
    const int64_t num_warps = count_gate_warps(tile, &gate, state->smem_bytes);
    struct moe_cuda_gating args = {
        .op = *op,
        .gate_words = gate.num_words,
        .is_vectored = gate.is_vectored,
    };
    /* One wave: a warp takes one token after the other. */
    const int64_t resident = state->num_sms * clamp(gate.sm_threads / (32 * num_warps), 1, 32);
    struct moe_cuda_launch launch = {
        .form = gate.form,
        .tile = tile->id,
        .grid_x = (uint32_t)clamp(ceil_div(op->num_tokens, num_warps), 1, resident),
        .grid_y = 1,
        .num_threads = (uint32_t)(32 * num_warps),
        .smem_bytes = (uint32_t)(4 * num_warps * gate.num_words),
        .is_chained = run->is_chained,
        .args = &args,
    };
    return moe_cuda_state_launch(state, run->stream, &launch, error);
}

int32_t moe_cuda_gating(const struct moe_run *run, const struct moe_op_gating *op,
                        struct moe_error *error)
{
    return launch_gating(run, moe_cuda_tile_of(run, MOE_OP_GATING), op, error);
}

/* The plan's row for gating, or where it has none the one that stands first. */
static const struct moe_tile *find_gating_tile(const struct moe_run *run)
{
    const int32_t chosen = run->bucket->choices[MOE_OP_GATING].tile;
    return &moe_tiles[chosen >= 0 ? chosen : MOE_TILE_GATING_CUDA_ROWS_64];
}

int32_t moe_cuda_route(const struct moe_run *run, const struct moe_op_route *op,
                       struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_ROUTE);
    const struct moe_op_align *align = &op->align;
    const struct moe_op_ep_preprocess *preprocess = &op->preprocess;
    const int32_t num_experts =
        op->wants_align ? align->filter.num_experts : preprocess->filter.num_experts;
    const int64_t num_routes = op->wants_align ? align->num_routes : preprocess->num_routes;
    struct moe_run sort_run = *run;
    if (op->gating.logits != NULL && op->gating.num_tokens > 0) {
        MOE_TRY(launch_gating(run, find_gating_tile(run), &op->gating, error));
        sort_run.is_chained = 1;
    }
    struct moe_cuda_route args = {
        .op = *op,
        .shape = shape_sort(&sort_run, tile, num_experts, num_routes),
    };
    int64_t num_words = op->wants_preprocess ? preprocess_words(preprocess) : num_routes;
    num_words += op->wants_align && align->sorted_ids != NULL ? align->sorted_capacity : 0;
    const int32_t form = !op->wants_preprocess ? MOE_CUDA_ROUTE_ALIGN
                         : !op->wants_align    ? MOE_CUDA_ROUTE_PREPROCESS
                                               : MOE_CUDA_ROUTE_BOTH;
    return launch_sort(&sort_run, tile, form, num_experts, &args, &args.shape, num_words, error);
}

int32_t moe_cuda_supports_routing(const struct moe_device *device,
                                  const struct moe_problem *problem, uint64_t ops,
                                  struct moe_error *error)
{
    const uint64_t gating = MOE_OP_BIT(MOE_OP_GATING) | MOE_OP_BIT(MOE_OP_ROUTE);
    const uint64_t sorts = MOE_OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS) |
                           MOE_OP_BIT(MOE_OP_ROUTE);
    const int64_t sort_bytes = (ops & sorts) != 0 ? min_sort_bytes(problem->num_experts) : 0;
    const bool gates = (ops & gating) != 0 && problem->gating != MOE_GATING_NONE;
    const int32_t num_experts = problem->num_experts_global;
    const int64_t gate_bytes =
        gates ? 4 * (int64_t)MOE_CUDA_GATE_WORDS(num_experts, problem->top_k, 3) : 0;
    const int64_t most = sort_bytes > gate_bytes ? sort_bytes : gate_bytes;
    if (most > device->smem_bytes) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.num_experts %d of %d, top_k %d: routing keeps its counters "
                             "and rows in shared memory and needs %lld bytes; the device has %d",
                             problem->num_experts, num_experts, problem->top_k, (long long)most,
                             device->smem_bytes);
    }
    return MOE_STATUS_OK;
}
