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
 * Two launches: enough chunks that a CTA's warps are busy, but no more rows in the table than are
 * summed quickly.
 */
enum { MAX_CHUNKS = 128, TABLE_ALIGNMENT = 256, WARP_ROUTES = 32 };

/* One launch: CTAs that write the outputs, and the first device with clusters. */
enum { MAX_WRITERS = 32, CLUSTER_CTAS = MOE_CUDA_SORT_CLUSTER_CTAS, CLUSTER_SM = 90 };

/* Where a CTA of a sort gates: slots of a token at most; chunks at least, as long as those have no
 * more than so many tokens. */
enum { MAX_GATED_SLOTS = 64, MIN_GATED_CHUNKS = 64, GATED_TOKENS = 16 };

/* A CTA gates and sorts alone up to so many tokens; in a cluster each of its warps has one. */
enum { MAX_ALONE_TOKENS = 8 };

/* Of shared memory, what every launch of a sort needs. */
static int64_t fixed_smem_bytes(int32_t num_experts)
{
    return 4 * (MOE_CUDA_SORT_SCAN_WORDS + 6 * (int64_t)moe_cuda_sort_bucket_words(num_experts));
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

/* Of COUNT with one ranking warp, and of PLACE with one group, at the largest chunk. */
static int64_t min_sort_bytes(int32_t num_experts)
{
    return fixed_smem_bytes(num_experts) + 8 * MOE_CUDA_SORT_MAX_CHUNK +
           counter_bytes(num_experts) + partial_bytes(num_experts);
}

/* Of FLAT, without ids. */
static int64_t flat_bytes(const struct moe_tile *tile, int32_t num_experts, bool is_cluster)
{
    const int64_t row = MOE_CUDA_SORT_FLAT_ROW_BYTES(tile->block_size);
    return fixed_smem_bytes(num_experts) + ((int64_t)num_experts + 1) * row +
           (is_cluster ? CLUSTER_CTAS * counter_bytes(num_experts) : 0);
}

/* CTAs that sort the routes of a call in one launch of cuda.sort, a thread each; 0: two launches.
 * The same for all devices if it is 1. */
static int32_t count_flat_ctas(const struct moe_tile *tile, int32_t sm, int32_t num_experts,
                               int64_t num_routes)
{
    if (tile->kernel != MOE_KERNEL_CUDA_SORT) {
        return 0;
    }
    if (num_routes <= tile->block_size) {
        return flat_bytes(tile, num_experts, false) <= MOE_CUDA_SORT_FLAT_BYTES ? 1 : 0;
    }
    return sm >= CLUSTER_SM && num_routes <= (int64_t)CLUSTER_CTAS * tile->block_size &&
                   flat_bytes(tile, num_experts, true) <= MOE_CUDA_SORT_FLAT_BYTES
               ? CLUSTER_CTAS
               : 0;
}

/* The kernels of two launches: those of the tile, or of the first row of cuda.split. */
static const struct moe_tile *find_split(const struct moe_tile *tile)
{
    if (tile->kernel == MOE_KERNEL_CUDA_SPLIT) {
        return tile;
    }
    const int32_t id = tile->op == MOE_OP_ALIGN_BLOCK_SIZE
                           ? MOE_TILE_ALIGN_BLOCK_SIZE_CUDA_SPLIT_512
                       : tile->op == MOE_OP_EP_PREPROCESS ? MOE_TILE_EP_PREPROCESS_CUDA_SPLIT_512
                                                          : MOE_TILE_ROUTE_CUDA_SPLIT_512;
    return &moe_tiles[id];
}

/* Routes of a chunk of two launches. */
static int64_t chunk_routes(const struct moe_tile *split, int64_t num_routes)
{
    return moe_clamp(moe_ceil_div(num_routes, MAX_CHUNKS), split->block_size,
                     MOE_CUDA_SORT_SPLIT_ROUTES);
}

/* One even without routes: there are still outputs to initialize. */
static int64_t count_chunks(int64_t num_routes, int64_t chunk)
{
    return num_routes > chunk ? moe_ceil_div(num_routes, chunk) : 1;
}

static int64_t table_bytes(int64_t num_chunks, int32_t num_experts)
{
    return moe_ceil_div(num_chunks * counter_bytes(num_experts), TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
}

/* Routes of a chunk where its CTA gates: of whole tokens; few, since gating takes longer than the
 * sum of a longer table. */
static int64_t gated_chunk_routes(int64_t num_routes, int32_t num_slots)
{
    const int64_t num_tokens = num_routes / num_slots;
    const int64_t least = moe_clamp(moe_ceil_div(num_tokens, MIN_GATED_CHUNKS), 1, GATED_TOKENS);
    return num_slots * moe_clamp(moe_ceil_div(num_tokens, MAX_CHUNKS), least,
                                 MOE_CUDA_SORT_SPLIT_ROUTES / num_slots);
}

/* Of two launches. */
static uint64_t split_bytes(int64_t num_routes, int64_t chunk, int32_t num_experts)
{
    const int64_t num_chunks = count_chunks(num_routes, chunk);
    return (uint64_t)(table_bytes(num_chunks, num_experts) + 4 * num_chunks * chunk);
}

/* Of two launches that gate, for up to so many routes: fewer tokens may have more chunks. */
static uint64_t gated_bytes(int64_t num_routes, int32_t num_slots, int32_t num_experts)
{
    const int64_t num_tokens = num_routes / num_slots;
    const int64_t few = moe_clamp(num_tokens, 1, MIN_GATED_CHUNKS);
    const int64_t many = moe_clamp(moe_ceil_div(num_tokens, GATED_TOKENS), few, MAX_CHUNKS);
    const int64_t capped = moe_ceil_div(num_tokens, MOE_CUDA_SORT_SPLIT_ROUTES / num_slots);
    const int64_t chunk = gated_chunk_routes(num_routes, num_slots);
    return (uint64_t)(table_bytes(many > capped ? many : capped, num_experts) +
                      4 * (num_routes + chunk));
}

uint64_t moe_cuda_sort_workspace(const struct moe_problem *problem, const struct moe_tile *tile,
                                 int64_t num_tokens)
{
    const int32_t num_slots = moe_problem_num_slots(problem);
    const int64_t num_routes = num_tokens * num_slots;
    if (count_flat_ctas(tile, 0, problem->num_experts, num_routes) > 0) {
        return 0;
    }
    const uint64_t plain =
        split_bytes(num_routes, chunk_routes(find_split(tile), num_routes), problem->num_experts);
    if (tile->op != MOE_OP_ROUTE || num_slots > MAX_GATED_SLOTS) {
        return plain;
    }
    const uint64_t gated = gated_bytes(num_routes, num_slots, problem->num_experts);
    return plain > gated ? plain : gated;
}

/* Ranking warps and their stretches: no more warps than have routes, since every one costs a turn
 * of the sum, and no more than `free_bytes` of shared memory have counters for. */
static void shape_warps(const struct moe_tile *tile, int32_t num_experts, int64_t free_bytes,
                        struct moe_cuda_sort_shape *shape)
{
    const int64_t useful = moe_ceil_div(shape->chunk_routes, WARP_ROUTES);
    int64_t num_warps = moe_clamp(useful, 1, tile->block_size / 32);
    num_warps = moe_clamp(free_bytes / counter_bytes(num_experts), 1, num_warps);
    shape->num_warps = (int32_t)num_warps;
    shape->routes_per_warp =
        (int32_t)(moe_ceil_div(moe_ceil_div(shape->chunk_routes, num_warps), WARP_ROUTES) *
                  WARP_ROUTES);
}

/* COUNT. `tile` is the split's. */
static struct moe_cuda_sort_shape shape_chunks(const struct moe_run *run,
                                               const struct moe_tile *tile, int32_t num_experts,
                                               int64_t num_routes, int64_t chunk)
{
    struct moe_cuda_sort_shape shape = {
        .phase = MOE_CUDA_SORT_COUNT,
        .num_chunks = (int32_t)count_chunks(num_routes, chunk),
        .chunk_routes = (int32_t)chunk,
    };
    const int64_t fixed = fixed_smem_bytes(num_experts) + 4 * moe_cuda_sort_chunk_words(chunk);
    shape_warps(tile, num_experts, moe_cuda_state_of(run)->smem_bytes - fixed, &shape);
    shape.smem_bytes = (int32_t)(fixed + shape.num_warps * counter_bytes(num_experts));
    unsigned char *tables = run->workspace;
    shape.counts = (uint16_t *)(void *)tables;
    shape.ranks = (uint32_t *)(void *)(tables + table_bytes(shape.num_chunks, num_experts));
    return shape;
}

/* FLAT; `id_routes` of a CTA have ids in shared memory. */
static struct moe_cuda_sort_shape shape_flat(const struct moe_tile *tile, int32_t num_experts,
                                             int32_t num_ctas, int64_t chunk, int64_t id_routes)
{
    return (struct moe_cuda_sort_shape){
        .phase = MOE_CUDA_SORT_FLAT,
        .num_chunks = num_ctas,
        .chunk_routes = (int32_t)chunk,
        .smem_bytes = (int32_t)(flat_bytes(tile, num_experts, num_ctas > 1) + 4 * id_routes),
    };
}

static struct moe_cuda_sort_shape shape_sort(const struct moe_run *run, const struct moe_tile *tile,
                                             int32_t num_experts, int64_t num_routes)
{
    const int32_t num_ctas =
        count_flat_ctas(tile, moe_cuda_state_of(run)->sm, num_experts, num_routes);
    if (num_ctas > 0) {
        return shape_flat(tile, num_experts, num_ctas, moe_ceil_div(num_routes, num_ctas), 0);
    }
    const struct moe_tile *split = find_split(tile);
    return shape_chunks(run, split, num_experts, num_routes, chunk_routes(split, num_routes));
}

/* From COUNT to PLACE. */
static void shape_place(const struct moe_cuda_state *state, const struct moe_tile *tile,
                        int32_t num_experts, struct moe_cuda_sort_shape *shape)
{
    const int64_t fixed = fixed_smem_bytes(num_experts) + counter_bytes(num_experts) +
                          8 * (int64_t)moe_cuda_sort_chunk_words(shape->chunk_routes);
    const int64_t fitting = (state->smem_bytes - fixed) / partial_bytes(num_experts);
    shape->phase = MOE_CUDA_SORT_PLACE;
    const int64_t useful = moe_ceil_div(shape->num_chunks, MOE_CUDA_SORT_BATCH_ROWS);
    int64_t num_groups = tile->block_size / (moe_cuda_sort_row_words(num_experts) / 8);
    num_groups = moe_clamp(num_groups, 1, useful < fitting ? useful : fitting);
    shape->num_groups = (int32_t)num_groups;
    shape->smem_bytes = (int32_t)(fixed + num_groups * partial_bytes(num_experts));
}

/* The launches of a sort: `shape` lies in `args`. */
struct sort_launch {
    const struct moe_tile *tile;
    const void *args;
    struct moe_cuda_sort_shape *shape;
    int64_t num_words; /* of outputs */
    int32_t num_experts;
    int32_t form; /* of FLAT, */
    int32_t cluster_form;
    int32_t count_form; /* COUNT */
    int32_t place_form; /* and PLACE */
};

/* CTAs that write the outputs quickly. */
static int64_t count_writers(const struct sort_launch *sort, const struct moe_tile *tile)
{
    return moe_clamp(moe_ceil_div(sort->num_words, 2 * (int64_t)tile->block_size),
                     moe_ceil_div(sort->num_experts, tile->block_size / 32), MAX_WRITERS);
}

static int32_t launch_flat(const struct moe_run *run, const struct sort_launch *sort,
                           struct moe_error *error)
{
    const int32_t num_ctas = sort->shape->num_chunks;
    const int64_t writers = count_writers(sort, sort->tile);
    const struct moe_cuda_launch launch = {
        .form = num_ctas > 1 ? sort->cluster_form : sort->form,
        .tile = sort->tile->id,
        .grid_x = (uint32_t)(moe_ceil_div(writers, num_ctas) * num_ctas),
        .grid_y = 1,
        .num_threads = (uint32_t)sort->tile->block_size,
        .smem_bytes = (uint32_t)sort->shape->smem_bytes,
        .is_chained = run->is_chained,
        .args = sort->args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

/* PLACE, and the batched form: there are more CTAs than chunks where those would write slowly. */
static int32_t launch_place(const struct moe_run *run, const struct sort_launch *sort,
                            int32_t is_chained, struct moe_error *error)
{
    const struct moe_tile *tile = find_split(sort->tile);
    const int64_t writers = count_writers(sort, tile);
    const struct moe_cuda_launch launch = {
        .form = sort->place_form,
        .tile = tile->id,
        .grid_x = (uint32_t)(writers > sort->shape->num_chunks ? writers : sort->shape->num_chunks),
        .grid_y = 1,
        .num_threads = (uint32_t)tile->block_size,
        .smem_bytes = (uint32_t)sort->shape->smem_bytes,
        .is_chained = is_chained,
        .args = sort->args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

static int32_t launch_sort(const struct moe_run *run, const struct sort_launch *sort,
                           struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    struct moe_cuda_sort_shape *shape = sort->shape;
    if (shape->phase == MOE_CUDA_SORT_FLAT) {
        return launch_flat(run, sort, error);
    }
    if (shape->phase == MOE_CUDA_SORT_COUNT) {
        const struct moe_tile *tile = find_split(sort->tile);
        const struct moe_cuda_launch launch = {
            .form = sort->count_form,
            .tile = tile->id,
            .grid_x = (uint32_t)shape->num_chunks,
            .grid_y = 1,
            .num_threads = (uint32_t)tile->block_size,
            .smem_bytes = (uint32_t)shape->smem_bytes,
            .is_chained = run->is_chained,
            .args = sort->args,
        };
        MOE_TRY(moe_cuda_state_launch(state, run->stream, &launch, error));
        shape_place(state, tile, sort->num_experts, shape);
        return launch_place(run, sort, 1, error);
    }
    return launch_place(run, sort, run->is_chained, error);
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
    const struct sort_launch sort = {
        .tile = tile,
        .args = &args,
        .shape = &args.shape,
        .num_words = op->sorted_ids != NULL ? op->sorted_capacity : num_experts,
        .num_experts = num_experts,
        .form = MOE_CUDA_SORT_FORM_ALONE,
        .cluster_form = MOE_CUDA_SORT_FORM_CLUSTER,
        .count_form = MOE_CUDA_SPLIT_FORM_COUNT,
        .place_form = MOE_CUDA_SPLIT_FORM_PLACE,
    };
    return launch_sort(run, &sort, error);
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
    const struct sort_launch sort = {
        .tile = tile,
        .args = &args,
        .shape = &args.shape,
        .num_words = preprocess_words(op),
        .num_experts = num_experts,
        .form = MOE_CUDA_SORT_FORM_ALONE,
        .cluster_form = MOE_CUDA_SORT_FORM_CLUSTER,
        .count_form = MOE_CUDA_SPLIT_FORM_COUNT,
        .place_form = MOE_CUDA_SPLIT_FORM_PLACE,
    };
    return launch_sort(run, &sort, error);
}

/* CTAs of one launch that gates its chunks too; 0: it does not. */
static int32_t count_gating_ctas(const struct moe_run *run, const struct moe_tile *tile,
                                 const struct moe_op_gating *op, int32_t num_experts)
{
    const int32_t num_slots = op->top_k + op->num_appended;
    const int64_t num_warps = tile->block_size / 32;
    const int64_t share = moe_ceil_div(op->num_tokens, CLUSTER_CTAS);
    const int64_t id_bytes = 4 * (int64_t)tile->block_size;
    if (op->num_tokens <= MAX_ALONE_TOKENS && op->num_tokens <= num_warps &&
        op->num_tokens * num_slots <= tile->block_size &&
        flat_bytes(tile, num_experts, false) + id_bytes <= MOE_CUDA_SORT_FLAT_BYTES) {
        return 1;
    }
    return moe_cuda_state_of(run)->sm >= CLUSTER_SM && share <= num_warps &&
                   share * num_slots <= tile->block_size &&
                   flat_bytes(tile, num_experts, true) + id_bytes <= MOE_CUDA_SORT_FLAT_BYTES
               ? CLUSTER_CTAS
               : 0;
}

/* The shape of a sort whose CTAs gate their chunks; false: they do not. */
static bool shape_gated(const struct moe_run *run, const struct moe_tile *tile, int32_t num_experts,
                        struct moe_cuda_route *args)
{
    const struct moe_op_gating *op = &args->op.gating;
    const int32_t num_slots = op->top_k + op->num_appended;
    const int64_t num_routes = op->num_tokens * num_slots;
    if (!moe_cuda_gates_quickly(op) || op->num_experts > 32 * MOE_CUDA_ROUTE_PER_LANE ||
        num_slots > MAX_GATED_SLOTS) {
        return false;
    }
    if (tile->kernel == MOE_KERNEL_CUDA_SORT) {
        const int32_t num_ctas = count_gating_ctas(run, tile, op, num_experts);
        if (num_ctas == 0) {
            return false;
        }
        args->chunk_tokens = (int32_t)moe_ceil_div(op->num_tokens, num_ctas);
        const int64_t chunk = args->chunk_tokens * num_slots;
        args->shape = shape_flat(tile, num_experts, num_ctas, chunk, chunk);
    } else {
        const int64_t chunk = gated_chunk_routes(num_routes, num_slots);
        args->chunk_tokens = (int32_t)(chunk / num_slots);
        args->shape = shape_chunks(run, tile, num_experts, num_routes, chunk);
    }
    args->batch_tokens = (int32_t)moe_clamp(moe_ceil_div(args->chunk_tokens, tile->block_size / 32),
                                            1, MOE_CUDA_GATE_QUICK_BATCH);
    return true;
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
    const bool gates = op->gating.logits != NULL && op->gating.num_tokens > 0;
    struct moe_run sort_run = *run;
    struct moe_cuda_route args = {.op = *op};
    const bool is_gated = gates && shape_gated(run, tile, num_experts, &args);
    if (!is_gated) {
        args.shape = shape_sort(run, tile, num_experts, num_routes);
    }
    if (gates && !is_gated) {
        const struct moe_tile *sort_tile =
            args.shape.phase == MOE_CUDA_SORT_FLAT ? tile : find_split(tile);
        const bool is_late = moe_cuda_gates_late(op->gating.num_tokens, op->gating.num_experts,
                                                 sort_tile->block_size);
        MOE_TRY(moe_cuda_gating_before(run, &op->gating, is_late, error));
        sort_run.is_chained = 1;
    }
    int64_t num_words = op->wants_preprocess ? preprocess_words(preprocess) : num_routes;
    num_words += op->wants_align && align->sorted_ids != NULL ? align->sorted_capacity : 0;
    const int32_t form = !op->wants_preprocess ? MOE_CUDA_ROUTE_ALIGN
                         : !op->wants_align    ? MOE_CUDA_ROUTE_PREPROCESS
                                               : MOE_CUDA_ROUTE_BOTH;
    const struct sort_launch sort = {
        .tile = tile,
        .args = &args,
        .shape = &args.shape,
        .num_words = num_words,
        .num_experts = num_experts,
        .form = form + (is_gated ? MOE_CUDA_ROUTE_GATED : 0),
        .cluster_form = form + MOE_CUDA_ROUTE_CLUSTER + (is_gated ? MOE_CUDA_ROUTE_GATED : 0),
        .count_form = is_gated ? MOE_CUDA_ROUTE_COUNT_GATED : MOE_CUDA_ROUTE_COUNT,
        .place_form = form,
    };
    return launch_sort(&sort_run, &sort, error);
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
