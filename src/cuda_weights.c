/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_weights.h"

#include "context.h"
#include "cuda_args.h"
#include "cuda_chain.h"
#include "cuda_state.h"
#include "problem.h"
#include "status.h"

#include <stddef.h>
#include <string.h>

enum { TMA_BYTES = 16, MAX_GRID_YZ = 65535, PACK_SQUARE = 32 };

/* A matrix of the description and its bias. */
struct part {
    const char *name;
    size_t weight; /* offsets in moe_weights_desc; bias 0: has none */
    size_t bias;
    int32_t is_shared; /* one matrix for all tokens, as wide as the shared expert */
    int32_t is_down;   /* [hidden, inter], not [inter, hidden] */
    int32_t partner;   /* multiplied in one launch with this one; itself: none */
};

#define DESC(member) offsetof(struct moe_weights_desc, member)
static const struct part parts[MOE_CUDA_NUM_MATRICES] = {
    [MOE_CUDA_GATE] = {"gate", DESC(gate), DESC(gate_bias), 0, 0, MOE_CUDA_UP},
    [MOE_CUDA_UP] = {"up", DESC(up), DESC(up_bias), 0, 0, MOE_CUDA_GATE},
    [MOE_CUDA_DOWN] = {"down", DESC(down), DESC(down_bias), 0, 1, MOE_CUDA_DOWN},
    [MOE_CUDA_SHARED_GATE] = {"shared_gate", DESC(shared_gate), 0, 1, 0, MOE_CUDA_SHARED_UP},
    [MOE_CUDA_SHARED_UP] = {"shared_up", DESC(shared_up), 0, 1, 0, MOE_CUDA_SHARED_GATE},
    [MOE_CUDA_SHARED_DOWN] = {"shared_down", DESC(shared_down), 0, 1, 1, MOE_CUDA_SHARED_DOWN},
};

static const struct moe_operand *operand_at(const struct moe_weights_desc *desc, size_t offset)
{
    return (const struct moe_operand *)(const void *)((const char *)desc + offset);
}

/* Dimensions of a part's matrix. */
struct shape {
    int32_t num_experts;
    int32_t num_rows;
    int32_t num_columns;
};

static struct shape shape_of(const struct moe_problem *problem, const struct part *part)
{
    const int32_t inter = part->is_shared ? problem->shared_inter : problem->inter;
    struct shape shape = {
        .num_experts = part->is_shared ? 1 : problem->num_experts,
        .num_rows = part->is_down ? problem->hidden : inter,
        .num_columns = part->is_down ? inter : problem->hidden,
    };
    return shape;
}

static bool is_present(const struct moe_operand *operand)
{
    return operand->base != NULL || operand->table != NULL;
}

/* An operand of one matrix: its table has one entry. */
static struct moe_operand resolve_single(const struct moe_operand *operand)
{
    struct moe_operand single = *operand;
    if (single.table != NULL) {
        single.base = single.table[0];
        single.table = NULL;
    }
    return single;
}

static bool is_aligned(int64_t elements, int64_t element_bytes)
{
    return elements * element_bytes % TMA_BYTES == 0;
}

/* Can TMA read the matrices where they lie, at `base` and with lines `line_stride` apart? */
static bool is_reachable(const struct moe_operand *operand, const struct shape *shape,
                         int64_t line_stride)
{
    const int64_t bytes = moe_dtype_bytes(operand->dtype);
    return operand->base != NULL && (uintptr_t)operand->base % TMA_BYTES == 0 &&
           is_aligned(line_stride, bytes) && line_stride > 0 &&
           (shape->num_experts == 1 ||
            (is_aligned(operand->expert_stride, bytes) && operand->expert_stride > 0));
}

static bool is_readable(const struct moe_operand *operand, const struct shape *shape)
{
    const struct moe_operand own = shape->num_experts == 1 ? resolve_single(operand) : *operand;
    return own.col_stride == 1 && is_reachable(&own, shape, own.row_stride);
}

/* Are gate and up, of one shape, the even and the odd rows of one matrix? */
static bool is_paired(const struct moe_operand *gate, const struct moe_operand *up,
                      const struct shape *shape)
{
    return gate->row_stride == 2 && up->row_stride == 2 && gate->col_stride == up->col_stride &&
           (shape->num_experts == 1 || gate->expert_stride == up->expert_stride) &&
           (const char *)gate->base + moe_dtype_bytes(gate->dtype) == (const char *)up->base &&
           is_reachable(gate, shape, gate->col_stride);
}

/* How the matrix of a part is read where it lies, MOE_CUDA_GEMM_ROWS and so on; -1: it is packed,
 * to rows. Gate and up are read in one way: a transposed one whose partner is not is packed. */
static int32_t form_of(const struct moe_problem *problem, const struct moe_weights_desc *desc,
                       int32_t part_idx)
{
    const struct part *part = &parts[part_idx];
    const struct shape shape = shape_of(problem, part);
    const bool is_gate = part_idx == MOE_CUDA_GATE || part_idx == MOE_CUDA_SHARED_GATE;
    struct moe_operand own = *operand_at(desc, part->weight);
    struct moe_operand other = *operand_at(desc, parts[part->partner].weight);
    if (is_readable(&own, &shape)) {
        return MOE_CUDA_GEMM_ROWS;
    }
    if (shape.num_experts == 1) {
        own = resolve_single(&own);
        other = resolve_single(&other);
    }
    if (own.row_stride == 1 && is_reachable(&own, &shape, own.col_stride) &&
        (part->partner == part_idx || !is_present(&other) ||
         (other.row_stride == 1 && is_reachable(&other, &shape, other.col_stride)))) {
        return MOE_CUDA_GEMM_TRANSPOSED;
    }
    if (part->partner != part_idx && own.base != NULL && other.base != NULL &&
        is_paired(is_gate ? &own : &other, is_gate ? &other : &own, &shape)) {
        return MOE_CUDA_GEMM_PAIRED;
    }
    return -1;
}

/* A matrix or a bias on its way to the prepared form. */
struct packing {
    const struct moe_operand *operand;
    struct shape shape;
    uint64_t offset; /* in the prepared form */
};

/* Called for each operand that is packed, in the order of the prepared form. */
typedef int32_t pack_fn(void *self, const struct packing *packing, struct moe_error *error);

static uint64_t packed_bytes(const struct packing *packing)
{
    const uint64_t bytes =
        (uint64_t)packing->shape.num_experts * (uint64_t)packing->shape.num_rows *
        (uint64_t)packing->shape.num_columns * (uint64_t)moe_dtype_bytes(packing->operand->dtype);
    return (bytes + MOE_CUDA_WORKSPACE_ALIGNMENT - 1) / MOE_CUDA_WORKSPACE_ALIGNMENT *
           MOE_CUDA_WORKSPACE_ALIGNMENT;
}

/* The weight (or, with `is_bias`, the bias) of a part: is it packed, and with which shape? */
static bool find_packing(const struct moe_problem *problem, const struct moe_weights_desc *desc,
                         int32_t part_idx, bool is_bias, struct packing *out)
{
    const struct part *part = &parts[part_idx];
    if (is_bias && part->bias == 0) {
        return false;
    }
    out->operand = operand_at(desc, is_bias ? part->bias : part->weight);
    out->shape = shape_of(problem, part);
    if (is_bias) {
        out->shape.num_columns = 1;
        return out->operand->table != NULL && out->shape.num_experts > 1;
    }
    return is_present(out->operand) && form_of(problem, desc, part_idx) < 0;
}

/* Walks through the prepared form; `visit` NULL only counts. */
static int32_t walk_prepared(const struct moe_problem *problem, const struct moe_weights_desc *desc,
                             pack_fn *visit, void *self, uint64_t *total, struct moe_error *error)
{
    *total = 0;
    for (int32_t i = 0; i < 2 * MOE_CUDA_NUM_MATRICES; i++) {
        struct packing packing;
        if (!find_packing(problem, desc, i / 2, i % 2 != 0, &packing)) {
            continue;
        }
        packing.offset = *total;
        if (visit != NULL) {
            MOE_TRY(visit(self, &packing, error));
        }
        *total += packed_bytes(&packing);
    }
    return MOE_STATUS_OK;
}

uint64_t moe_cuda_weights_prepared_bytes(const struct moe_problem *problem,
                                         const struct moe_weights_desc *desc)
{
    uint64_t total = 0;
    (void)walk_prepared(problem, desc, NULL, NULL, &total, NULL);
    return total;
}

/* Filling a prepared form. */
struct filling {
    const struct moe_cuda_state *state;
    char *prepared;
    void *stream;
};

static uint32_t grid_of(int32_t size, int32_t limit)
{
    const int32_t squares = (size + PACK_SQUARE - 1) / PACK_SQUARE;
    return (uint32_t)(squares < limit ? squares : limit);
}

static int32_t launch_pack(const struct filling *filling, const struct moe_operand *operand,
                           const struct moe_cuda_pack_matrix *args, struct moe_error *error)
{
    struct moe_cuda_launch launch = {
        .tile = moe_dtype_bytes(operand->dtype) == 4 ? MOE_CUDA_PACK_MATRIX_32
                                                     : MOE_CUDA_PACK_MATRIX_16,
        .grid_x = grid_of(args->num_columns, INT32_MAX),
        .grid_y = grid_of(args->num_rows, MAX_GRID_YZ),
        .grid_z = (uint32_t)(args->num_experts < MAX_GRID_YZ ? args->num_experts : MAX_GRID_YZ),
        .num_threads = MOE_CUDA_HELPER_THREADS,
        .args = args,
    };
    return moe_cuda_state_launch(filling->state, filling->stream, &launch, error);
}

static int32_t pack_operand(void *self, const struct packing *packing, struct moe_error *error)
{
    const struct filling *filling = self;
    const struct moe_operand *operand = packing->operand;
    const struct shape *shape = &packing->shape;
    char *out = filling->prepared + packing->offset;
    const int64_t matrix_bytes =
        (int64_t)shape->num_rows * shape->num_columns * moe_dtype_bytes(operand->dtype);
    struct moe_cuda_pack_matrix args = {
        .base = operand->base,
        .out = out,
        .expert_stride = operand->expert_stride,
        .row_stride = operand->row_stride,
        .col_stride = operand->col_stride,
        .num_rows = shape->num_rows,
        .num_columns = shape->num_columns,
        .num_experts = shape->num_experts,
    };
    if (operand->table == NULL) {
        return launch_pack(filling, operand, &args, error);
    }
    args.num_experts = 1;
    for (int32_t e = 0; e < shape->num_experts; e++) {
        args.base = operand->table[e];
        args.out = out + e * matrix_bytes;
        MOE_TRY(launch_pack(filling, operand, &args, error));
    }
    return MOE_STATUS_OK;
}

int32_t moe_cuda_weights_prepare(const struct moe_context *context,
                                 const struct moe_problem *problem,
                                 const struct moe_weights_desc *desc, void *prepared, void *stream,
                                 struct moe_error *error)
{
    struct filling filling = {context->state, prepared, stream};
    uint64_t total = 0;
    return walk_prepared(problem, desc, pack_operand, &filling, &total, error);
}

/* The shapes of boxes that the GEMM tiles of this build load, each once. */
static struct moe_cuda_box box_of(const struct moe_tile *tile)
{
    struct moe_cuda_box box = {
        .num_rows = MOE_CUDA_GEMM_SLAB_ROWS(tile->block_n, tile->num_warps),
        .num_blocks = MOE_CUDA_GEMM_BOX_BLOCKS(tile->block_n, tile->block_k, tile->num_warps),
    };
    return box;
}

static int32_t find_box(const struct moe_cuda_weights *weights, const struct moe_cuda_box *box)
{
    int32_t i = 0;
    while (i < weights->num_boxes && (weights->boxes[i].num_rows != box->num_rows ||
                                      weights->boxes[i].num_blocks != box->num_blocks)) {
        i++;
    }
    return i;
}

static int32_t collect_boxes(struct moe_cuda_weights *weights, struct moe_error *error)
{
    for (int32_t id = 0; id < MOE_NUM_TILES; id++) {
        const struct moe_tile *tile = &moe_tiles[id];
        if (tile->op != MOE_OP_GEMM1 || moe_kernels[tile->kernel].backend != MOE_BACKEND_CUDA) {
            continue;
        }
        const struct moe_cuda_box box = box_of(tile);
        const int32_t found = find_box(weights, &box);
        if (found < weights->num_boxes) {
            continue;
        }
        if (found == MOE_CUDA_MAX_BOXES) {
            return moe_error_set(error, MOE_STATUS_INTERNAL,
                                 "weights_bind: tiles have more than %d shapes of boxes",
                                 MOE_CUDA_MAX_BOXES);
        }
        weights->boxes[found] = box;
        weights->num_boxes++;
    }
    return MOE_STATUS_OK;
}

const CUtensorMap *moe_cuda_weights_map(const struct moe_cuda_weights *weights, int32_t matrix,
                                        const struct moe_tile *tile)
{
    const struct moe_cuda_box box = box_of(tile);
    return &weights->matrices[matrix].maps[find_box(weights, &box)];
}

static CUresult encode_box(const struct moe_cuda_driver *driver, const struct moe_operand *operand,
                           const cuuint64_t dims[4], const cuuint64_t strides[3],
                           const cuuint32_t box_dims[4], CUtensorMap *out)
{
    const cuuint32_t ones[4] = {1, 1, 1, 1};
    return driver->cuTensorMapEncodeTiled(
        out,
        operand->dtype == MOE_DTYPE_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        4, (void *)(uintptr_t)operand->base, dims, strides, box_dims, ones,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* Map of weights whose rows lie side by side, as struct moe_cuda_gemm documents it. */
static CUresult encode_transposed(const struct moe_cuda_driver *driver,
                                  const struct moe_cuda_matrix *matrix, const struct shape *shape,
                                  const struct moe_cuda_box *box, CUtensorMap *out)
{
    const struct moe_operand *operand = &matrix->operand;
    const cuuint64_t rows = (cuuint64_t)shape->num_rows;
    const cuuint64_t columns = (cuuint64_t)shape->num_columns;
    const cuuint64_t column_bytes = 2 * (cuuint64_t)operand->col_stride;
    const cuuint64_t expert_bytes =
        shape->num_experts > 1 ? 2 * (cuuint64_t)operand->expert_stride : column_bytes * columns;
    const cuuint64_t dims[4] = {matrix->form == MOE_CUDA_GEMM_PAIRED ? 2 * rows : rows, columns, 1,
                                (cuuint64_t)shape->num_experts};
    const cuuint64_t strides[3] = {column_bytes, column_bytes, expert_bytes};
    const cuuint32_t box_dims[4] = {MOE_CUDA_GEMM_BOX_K,
                                    (cuuint32_t)(box->num_blocks * MOE_CUDA_GEMM_BOX_K), 1, 1};
    return encode_box(driver, operand, dims, strides, box_dims, out);
}

/* Dimensions and strides as struct moe_cuda_gemm documents them. */
static CUresult encode_map(const struct moe_cuda_driver *driver,
                           const struct moe_cuda_matrix *matrix, const struct shape *shape,
                           const struct moe_cuda_box *box, CUtensorMap *out)
{
    const struct moe_operand *operand = &matrix->operand;
    const cuuint64_t columns = (cuuint64_t)shape->num_columns;
    const cuuint64_t rows = (cuuint64_t)shape->num_rows;
    const cuuint64_t row_bytes = 2 * (cuuint64_t)operand->row_stride;
    const cuuint64_t expert_bytes =
        shape->num_experts > 1 ? 2 * (cuuint64_t)operand->expert_stride : row_bytes * rows;
    const cuuint64_t experts = (cuuint64_t)shape->num_experts;
    const cuuint64_t blocked_dims[4] = {MOE_CUDA_GEMM_BOX_K, rows, columns / MOE_CUDA_GEMM_BOX_K,
                                        experts};
    const cuuint64_t plain_dims[4] = {columns, rows, 1, experts};
    const cuuint64_t blocked_strides[3] = {row_bytes, 2 * MOE_CUDA_GEMM_BOX_K, expert_bytes};
    const cuuint64_t plain_strides[3] = {row_bytes, row_bytes, expert_bytes};
    const cuuint32_t box_dims[4] = {MOE_CUDA_GEMM_BOX_K, (cuuint32_t)box->num_rows,
                                    matrix->is_k_blocked ? (cuuint32_t)box->num_blocks : 1, 1};
    return encode_box(driver, operand, matrix->is_k_blocked ? blocked_dims : plain_dims,
                      matrix->is_k_blocked ? blocked_strides : plain_strides, box_dims, out);
}

static int32_t encode_maps(const struct moe_cuda_driver *driver,
                           const struct moe_cuda_weights *weights, const struct part *part,
                           const struct shape *shape, struct moe_cuda_matrix *matrix,
                           struct moe_error *error)
{
    matrix->is_k_blocked = shape->num_columns % MOE_CUDA_GEMM_BOX_K == 0;
    for (int32_t i = 0; i < weights->num_boxes; i++) {
        const struct moe_cuda_box *box = &weights->boxes[i];
        if (matrix->form != MOE_CUDA_GEMM_ROWS && box->num_rows != MOE_CUDA_GEMM_BOX_K) {
            continue; /* of a tile that has no form for it */
        }
        const CUresult result =
            matrix->form == MOE_CUDA_GEMM_ROWS
                ? encode_map(driver, matrix, shape, box, &matrix->maps[i])
                : encode_transposed(driver, matrix, shape, box, &matrix->maps[i]);
        if (result != CUDA_SUCCESS) {
            return moe_error_set_at(
                error, MOE_STATUS_UNSUPPORTED, (int32_t)result, 0, 0,
                "weights: the driver makes no tensor map of %s ([%d, %d, %d] at %p, strides "
                "%lld, %lld and %lld elements; CUresult %d)",
                part->name, shape->num_experts, shape->num_rows, shape->num_columns,
                matrix->operand.base, (long long)matrix->operand.expert_stride,
                (long long)matrix->operand.row_stride, (long long)matrix->operand.col_stride,
                (int)result);
        }
    }
    return MOE_STATUS_OK;
}

/* Weights are multiplied in the type of the tokens. */
static int32_t check_dtype(const char *name, const struct moe_operand *operand, int32_t dtype,
                           struct moe_error *error)
{
    if (is_present(operand) && operand->dtype != dtype) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "weights: %s is of type %s; the cuda backend multiplies it with "
                             "tokens of the same type, %s here",
                             name, moe_dtype_name(operand->dtype), moe_dtype_name(dtype));
    }
    return MOE_STATUS_OK;
}

/* A router is multiplied with tokens of its own type, or either of them is fp32. */
static int32_t check_router_dtype(const char *name, const struct moe_operand *operand,
                                  int32_t token_dtype, struct moe_error *error)
{
    if (operand->dtype != token_dtype && operand->dtype != MOE_DTYPE_FP32 &&
        token_dtype != MOE_DTYPE_FP32) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "weights: %s is of type %s; with %s tokens the cuda backend "
                             "multiplies %s and fp32",
                             name, moe_dtype_name(operand->dtype), moe_dtype_name(token_dtype),
                             moe_dtype_name(token_dtype));
    }
    return MOE_STATUS_OK;
}

/* The router and the shared expert's gate are read row by row, 16 bytes at a time. */
static int32_t bind_rows(const char *name, const struct moe_operand *operand,
                         const struct moe_problem *problem, int32_t num_rows,
                         struct moe_operand *out, struct moe_error *error)
{
    const struct shape shape = {1, num_rows, problem->hidden};
    if (!is_present(operand)) {
        return MOE_STATUS_OK;
    }
    MOE_TRY(check_router_dtype(name, operand, problem->tokens.dtype, error));
    *out = resolve_single(operand);
    if (num_rows == 1) {
        out->row_stride = problem->hidden; /* not used */
    }
    if (!is_readable(out, &shape)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "weights: %s must have col_stride 1, and an address and a row_stride "
                             "that are multiples of 16 bytes, on the cuda backend; it is at %p "
                             "with strides %lld and %lld elements (row, column)",
                             name, out->base, (long long)out->row_stride,
                             (long long)out->col_stride);
    }
    return MOE_STATUS_OK;
}

/* Binding in progress. */
struct binding {
    struct moe_weights *weights;
    struct moe_cuda_weights *own;
};

/* An operand that was packed is read there. */
static int32_t use_packed(void *self, const struct packing *packing, struct moe_error *error)
{
    const struct binding *binding = self;
    (void)error;
    for (int32_t i = 0; i < MOE_CUDA_NUM_MATRICES; i++) {
        struct moe_cuda_matrix *matrix = &binding->own->matrices[i];
        const struct moe_weights_desc *desc = &binding->weights->desc;
        struct moe_operand *target =
            packing->operand == operand_at(desc, parts[i].weight) ? &matrix->operand
            : parts[i].bias != 0 && packing->operand == operand_at(desc, parts[i].bias)
                ? &matrix->bias
                : NULL;
        if (target == NULL) {
            continue;
        }
        target->base = (const char *)binding->weights->prepared + packing->offset;
        target->table = NULL;
        target->col_stride = 1;
        target->row_stride = packing->shape.num_columns;
        target->expert_stride = (int64_t)packing->shape.num_rows * packing->shape.num_columns;
    }
    return MOE_STATUS_OK;
}

static int32_t bind_matrices(const struct binding *binding, struct moe_error *error)
{
    struct moe_weights *weights = binding->weights;
    const struct moe_problem *problem = &weights->problem;
    const struct moe_cuda_state *state = weights->context->state;
    struct moe_cuda_weights *own = binding->own;
    uint64_t total = 0;
    for (int32_t i = 0; i < MOE_CUDA_NUM_MATRICES; i++) {
        const struct moe_operand *weight = operand_at(&weights->desc, parts[i].weight);
        MOE_TRY(check_dtype(parts[i].name, weight, problem->tokens.dtype, error));
        const int32_t form = form_of(problem, &weights->desc, i);
        own->matrices[i].form = form < 0 ? MOE_CUDA_GEMM_ROWS : form;
        own->matrices[i].operand =
            shape_of(problem, &parts[i]).num_experts == 1 ? resolve_single(weight) : *weight;
        if (parts[i].bias != 0) {
            const struct moe_operand *bias = operand_at(&weights->desc, parts[i].bias);
            own->matrices[i].bias = problem->num_experts == 1 ? resolve_single(bias) : *bias;
        }
    }
    MOE_TRY(walk_prepared(problem, &weights->desc, use_packed, (void *)(uintptr_t)binding, &total,
                          error));
    for (int32_t i = 0; i < MOE_CUDA_NUM_MATRICES; i++) {
        const struct shape shape = shape_of(problem, &parts[i]);
        struct moe_cuda_matrix *matrix = &own->matrices[i];
        if (matrix->form == MOE_CUDA_GEMM_PAIRED && parts[i].partner < i) {
            memcpy(matrix->maps, own->matrices[parts[i].partner].maps, sizeof(matrix->maps));
        } else if (matrix->operand.base != NULL) {
            MOE_TRY(encode_maps(&state->driver, own, &parts[i], &shape, matrix, error));
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_cuda_weights_bind(struct moe_weights *weights, struct moe_error *error)
{
    const struct moe_weights_desc *desc = &weights->desc;
    const struct moe_problem *problem = &weights->problem;
    struct moe_cuda_weights *own = moe_memory_alloc(&weights->memory, sizeof(*own));
    if (own == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                             "weights_bind: no host memory for %zu bytes", sizeof(*own));
    }
    const struct binding binding = {weights, own};
    weights->backend_data = own;
    MOE_TRY(collect_boxes(own, error));
    MOE_TRY(bind_matrices(&binding, error));
    MOE_TRY(bind_rows("router", &desc->router, problem, problem->num_experts_global, &own->router,
                      error));
    own->router_bias = resolve_single(&desc->router_bias);
    return bind_rows("shared_sigmoid", &desc->shared_sigmoid, problem, 1, &own->shared_sigmoid,
                     error);
}

void moe_cuda_weights_unbind(struct moe_weights *weights)
{
    moe_memory_free(&weights->memory, weights->backend_data, sizeof(struct moe_cuda_weights));
    weights->backend_data = NULL;
}
