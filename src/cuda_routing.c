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

/* Of a token, where a CTA of a sort gates. */
enum { MAX_GATED_SLOTS = 64 };

/* One launch: routes that every CTA counts for itself, and that a cluster sorts; tokens that one
 * CTA gates and sorts. */
enum {
    CLUSTER_SM = 90,
    CLUSTER_CTAS = MOE_CUDA_SORT_CLUSTER_CTAS,
    MAX_COUNTED_ROUTES = 1024,
    MAX_CLUSTER_ROUTES = MOE_CUDA_SORT_MAX_CHUNK,
    MAX_ALONE_TOKENS = 4
};
_Static_assert(MAX_COUNTED_ROUTES <= MOE_CUDA_SORT_MAX_CHUNK, "16-bit counts");

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

/* Of a cluster's CTA without the counters of its warps. */
static int64_t cluster_bytes(int32_t num_experts, int64_t chunk)
{
    return fixed_smem_bytes(num_experts) + 8 * (int64_t)moe_cuda_sort_chunk_words(chunk) +
           4 * (int64_t)moe_cuda_sort_bucket_words(num_experts) +
           CLUSTER_CTAS * counter_bytes(num_experts);
}

/* Of one launch with one ranking warp, and of PLACE with one group, at the largest chunk. */
static int64_t min_sort_bytes(int32_t num_experts)
{
    return fixed_smem_bytes(num_experts) + 8 * MOE_CUDA_SORT_MAX_CHUNK + partial_bytes(num_experts);
}

/* One launch of independent CTAs takes so many routes; a cluster, which sm_90 brought, is faster
 * beyond them, as far as its shared memory reaches. cuda.split is never one launch. */
static bool is_one_launch(const struct moe_tile *tile, int64_t num_routes)
{
    return tile->kernel == MOE_KERNEL_CUDA_SORT && num_routes <= MAX_COUNTED_ROUTES;
}

static bool is_cluster(const struct moe_cuda_state *state, const struct moe_tile *tile,
                       int32_t num_experts, int64_t num_routes)
{
    const int64_t bytes = cluster_bytes(num_experts, moe_ceil_div(num_routes, CLUSTER_CTAS)) +
                          counter_bytes(num_experts);
    return tile->kernel == MOE_KERNEL_CUDA_SORT && state->sm >= CLUSTER_SM &&
           num_routes > MAX_COUNTED_ROUTES && num_routes <= MAX_CLUSTER_ROUTES &&
           bytes <= state->smem_bytes;
}

/* Routes of a chunk. */
static int64_t chunk_routes(const struct moe_tile *tile, int64_t num_routes)
{
    const bool is_one = is_one_launch(tile, num_routes);
    const int64_t num_chunks = is_one ? MAX_ONE_LAUNCH_CTAS : MAX_CHUNKS;
    const int64_t least = is_one ? WARP_ROUTES : tile->block_size;
    return moe_clamp(moe_ceil_div(num_routes, num_chunks), least,
                     is_one ? MOE_CUDA_SORT_MAX_CHUNK : MOE_CUDA_SORT_SPLIT_ROUTES);
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

/* Routes of a chunk where its CTA gates: of whole tokens, a token per warp at least. */
static int64_t gated_chunk_routes(const struct moe_tile *tile, int64_t num_routes,
                                  int32_t num_slots)
{
    const int64_t num_tokens = num_routes / num_slots;
    return num_slots * moe_clamp(moe_ceil_div(num_tokens, MAX_CHUNKS), tile->block_size / 32,
                                 MOE_CUDA_SORT_SPLIT_ROUTES / num_slots);
}

/* Of two launches. */
static uint64_t split_bytes(int64_t num_routes, int64_t chunk, int32_t num_experts)
{
    const int64_t num_chunks = count_chunks(num_routes, chunk);
    return (uint64_t)(2 * table_bytes(num_chunks, num_experts) + 4 * num_chunks * chunk);
}

uint64_t moe_cuda_sort_workspace(const struct moe_problem *problem, const struct moe_tile *tile,
                                 int64_t num_tokens)
{
    const int32_t num_slots = moe_problem_num_slots(problem);
    const int64_t num_routes = num_tokens * num_slots;
    if (is_one_launch(tile, num_routes)) {
        return 0;
    }
    const uint64_t plain =
        split_bytes(num_routes, chunk_routes(tile, num_routes), problem->num_experts);
    if (tile->op != MOE_OP_ROUTE || num_slots > MAX_GATED_SLOTS) {
        return plain;
    }
    const uint64_t gated = split_bytes(num_routes, gated_chunk_routes(tile, num_routes, num_slots),
                                       problem->num_experts);
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

static struct moe_cuda_sort_shape shape_cluster(const struct moe_run *run,
                                                const struct moe_tile *tile, int32_t num_experts,
                                                int64_t chunk)
{
    struct moe_cuda_sort_shape shape = {
        .phase = MOE_CUDA_SORT_CLUSTER,
        .num_chunks = CLUSTER_CTAS,
        .chunk_routes = (int32_t)chunk,
    };
    const int64_t fixed = cluster_bytes(num_experts, chunk);
    shape_warps(tile, num_experts, moe_cuda_state_of(run)->smem_bytes - fixed, &shape);
    shape.smem_bytes = (int32_t)(fixed + shape.num_warps * counter_bytes(num_experts));
    return shape;
}

static struct moe_cuda_sort_shape shape_chunks(const struct moe_run *run,
                                               const struct moe_tile *tile, int32_t num_experts,
                                               int64_t num_routes, int64_t chunk)
{
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

static struct moe_cuda_sort_shape shape_sort(const struct moe_run *run, const struct moe_tile *tile,
                                             int32_t num_experts, int64_t num_routes)
{
    if (is_cluster(moe_cuda_state_of(run), tile, num_experts, num_routes)) {
        return shape_cluster(run, tile, num_experts, moe_ceil_div(num_routes, CLUSTER_CTAS));
    }
    return shape_chunks(run, tile, num_experts, num_routes, chunk_routes(tile, num_routes));
}

/* From COUNT to PLACE. */
static void shape_place(const struct moe_cuda_state *state, const struct moe_tile *tile,
                        int32_t num_experts, struct moe_cuda_sort_shape *shape)
{
    const int64_t fixed =
        fixed_smem_bytes(num_experts) + 8 * (int64_t)moe_cuda_sort_chunk_words(shape->chunk_routes);
    const int64_t fitting = (state->smem_bytes - fixed) / partial_bytes(num_experts);
    shape->phase = MOE_CUDA_SORT_PLACE;
    const int64_t useful = moe_ceil_div(shape->num_chunks, MOE_CUDA_SORT_BATCH_ROWS);
    int64_t num_groups = tile->block_size / (moe_cuda_sort_row_words(num_experts) / 8);
    num_groups = moe_clamp(num_groups, 1, useful < fitting ? useful : fitting);
    shape->num_groups = (int32_t)num_groups;
    shape->smem_bytes = (int32_t)(fixed + num_groups * partial_bytes(num_experts));
}

/* The launches of a sort: `shape` lies in `args`. There are more CTAs than chunks where `num_words`
 * of output are more than those write quickly. */
struct sort_launch {
    const struct moe_tile *tile;
    const void *args;
    struct moe_cuda_sort_shape *shape;
    int64_t num_words;
    int32_t num_experts;
    int32_t form;         /* of one launch, or the first; */
    int32_t place_form;   /* of the second; */
    int32_t cluster_form; /* of a cluster, if shape->phase says so */
    int32_t is_alone;     /* one launch is one CTA */
};

static int32_t launch_sort(const struct moe_run *run, const struct sort_launch *sort,
                           struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const struct moe_tile *tile = sort->tile;
    struct moe_cuda_sort_shape *shape = sort->shape;
    const bool is_split = shape->phase == MOE_CUDA_SORT_COUNT;
    const bool is_one_cluster = shape->phase == MOE_CUDA_SORT_CLUSTER;
    const int64_t writers = moe_clamp(moe_ceil_div(sort->num_words, 2 * (int64_t)tile->block_size),
                                      moe_ceil_div(sort->num_experts, tile->block_size / 32), 32);
    const int64_t most = writers > shape->num_chunks ? writers : shape->num_chunks;
    struct moe_cuda_launch launch = {
        .form = is_one_cluster ? sort->cluster_form : sort->form,
        .tile = tile->id,
        .grid_x =
            (uint32_t)(is_split || is_one_cluster || sort->is_alone ? shape->num_chunks : most),
        .grid_y = 1,
        .num_threads = (uint32_t)tile->block_size,
        .smem_bytes = (uint32_t)shape->smem_bytes,
        .is_chained = run->is_chained,
        .args = sort->args,
    };
    MOE_TRY(moe_cuda_state_launch(state, run->stream, &launch, error));
    if (!is_split) {
        return MOE_STATUS_OK;
    }
    shape_place(state, tile, sort->num_experts, shape);
    launch.form = sort->place_form;
    launch.grid_x = (uint32_t)most;
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
    const struct sort_launch sort = {
        .tile = tile,
        .args = &args,
        .shape = &args.shape,
        .num_words = op->sorted_ids != NULL ? op->sorted_capacity : num_experts,
        .num_experts = num_experts,
        .cluster_form = MOE_CUDA_SORT_FORM_CLUSTER,
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
        .cluster_form = MOE_CUDA_SORT_FORM_CLUSTER,
    };
    return launch_sort(run, &sort, error);
}

/* How a sort gates: in front of it, or in the CTAs of one of its launches. */
enum route_gating { GATES_BEFORE, GATES_ALONE, GATES_IN_CLUSTER, GATES_IN_COUNT };

/* In one CTA while a warp has a token; in a cluster while a warp has no more than a few. */
static enum route_gating choose_gating(const struct moe_cuda_state *state,
                                       const struct moe_tile *tile, const struct moe_op_gating *op,
                                       int32_t num_experts)
{
    const int32_t num_slots = op->top_k + op->num_appended;
    const int64_t num_warps = tile->block_size / 32;
    const int64_t share = moe_ceil_div(op->num_tokens, CLUSTER_CTAS);
    if (!moe_cuda_gates_quickly(op) || op->num_experts > 32 * MOE_CUDA_ROUTE_PER_LANE ||
        num_slots > MAX_GATED_SLOTS) {
        return GATES_BEFORE;
    }
    if (tile->kernel != MOE_KERNEL_CUDA_SORT) {
        return GATES_IN_COUNT;
    }
    if (op->num_tokens <= MAX_ALONE_TOKENS && op->num_tokens <= num_warps) {
        return GATES_ALONE;
    }
    const int64_t bytes =
        cluster_bytes(num_experts, share * num_slots) + counter_bytes(num_experts);
    return state->sm >= CLUSTER_SM && share <= num_warps && bytes <= state->smem_bytes
               ? GATES_IN_CLUSTER
               : GATES_BEFORE;
}

/* The shape of a sort whose CTAs gate their chunks. */
static void shape_gated(const struct moe_run *run, const struct moe_tile *tile, int32_t num_experts,
                        enum route_gating gating, struct moe_cuda_route *args)
{
    const struct moe_op_gating *op = &args->op.gating;
    const int32_t num_warps = tile->block_size / 32;
    const int32_t num_slots = op->top_k + op->num_appended;
    const int64_t num_routes = op->num_tokens * num_slots;
    const int32_t gate_bytes = 4 * num_warps * MOE_CUDA_GATE_QUICK_WORDS;
    int64_t chunk = num_routes;
    if (gating == GATES_IN_CLUSTER) {
        chunk = moe_ceil_div(op->num_tokens, CLUSTER_CTAS) * num_slots;
        args->shape = shape_cluster(run, tile, num_experts, chunk);
    } else {
        chunk = gating == GATES_IN_COUNT ? gated_chunk_routes(tile, num_routes, num_slots) : chunk;
        args->shape = shape_chunks(run, tile, num_experts, num_routes, chunk);
    }
    if (args->shape.smem_bytes < gate_bytes) {
        args->shape.smem_bytes = gate_bytes;
    }
    args->chunk_tokens = (int32_t)(chunk / num_slots);
    args->batch_tokens = (int32_t)moe_clamp(moe_ceil_div(args->chunk_tokens, num_warps), 1,
                                            MOE_CUDA_GATE_QUICK_BATCH);
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
    const enum route_gating gating =
        gates ? choose_gating(moe_cuda_state_of(run), tile, &op->gating, num_experts)
              : GATES_BEFORE;
    const bool is_gated = gating != GATES_BEFORE;
    struct moe_run sort_run = *run;
    struct moe_cuda_route args = {.op = *op};
    if (is_gated) {
        shape_gated(run, tile, num_experts, gating, &args);
    } else {
        args.shape = shape_sort(run, tile, num_experts, num_routes);
    }
    if (gates && !is_gated) {
        MOE_TRY(moe_cuda_gating(run, &op->gating, error));
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
        .place_form = form,
        .cluster_form = form + (is_gated ? MOE_CUDA_ROUTE_GATED : 0) + MOE_CUDA_ROUTE_CLUSTER,
        .is_alone = gating == GATES_ALONE,
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
