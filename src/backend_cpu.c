/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend: thread pool, support rules, workspace, and single operations as one kernel
 * each. */
#include "backend_cpu.h"

#include "cpu_isa.h"
#include "op_fill.h"
#include "plan.h"
#include "recipe.h"
#include "status.h"
#include "tiles.h"
#include "weights.h"

#include <string.h>

static int32_t cpu_probe(int32_t ordinal, struct moe_device *out, struct moe_error *error)
{
    if (ordinal != 0) {
        return moe_error_set(error, MOE_STATUS_NO_DEVICE, "cpu device %d: there is one, 0",
                             ordinal);
    }
    out->backend = MOE_BACKEND_CPU;
    out->num_sms = moe_cpu_pool_default_threads();
    out->l2_bytes = moe_cpu_isa_cache_bytes();
    strncpy(out->isa, moe_cpu_isa(), sizeof(out->isa) - 1);
    moe_cpu_isa_brand(out->name, sizeof(out->name));
    return MOE_STATUS_OK;
}

static int32_t cpu_state_create(const struct moe_memory *memory,
                                const struct moe_context_options *options,
                                struct moe_device *device, void **out, struct moe_error *error)
{
    struct moe_cpu_pool *pool = NULL;
    int32_t num_threads = options->num_threads;
    if (num_threads < 0 || num_threads > MOE_CPU_POOL_MAX_THREADS) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "context options: num_threads is %d; it must be 1 to %d, or 0 for the affinity mask",
            num_threads, MOE_CPU_POOL_MAX_THREADS);
    }
    if (num_threads == 0) {
        num_threads = device->num_sms;
    }
    MOE_TRY(moe_cpu_pool_create(memory, num_threads, &pool, error));
    device->num_sms = num_threads;
    *out = pool;
    return MOE_STATUS_OK;
}

static void cpu_state_destroy(const struct moe_memory *memory, void *state)
{
    (void)memory;
    moe_cpu_pool_destroy(state);
}

struct moe_cpu_pool *moe_cpu_plan_pool(const struct moe_plan *plan)
{
    return plan->context->state;
}

/* problem.c has checked fp8 recipes. */
static int32_t check_recipe(const char *name, const struct moe_recipe *recipe,
                            struct moe_error *error)
{
    if (moe_recipe_is_plain(recipe) || moe_recipe_is_fp8(recipe)) {
        return MOE_STATUS_OK;
    }
    const struct moe_recipe plain = {.dtype = recipe->dtype};
    if (moe_recipe_is_plain(&plain)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s has scales, groups or a packing; the cpu backend "
                             "implements plain %s elements only",
                             name, moe_dtype_name(recipe->dtype));
    }
    return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                         "problem.%s is %s; the cpu backend of this version implements fp32, fp16, "
                         "bf16 and fp8_e4m3",
                         name, moe_dtype_name(recipe->dtype));
}

static int32_t check_plain_dtype(const char *name, int32_t dtype, struct moe_error *error)
{
    const struct moe_recipe recipe = {.dtype = dtype};
    if (moe_recipe_is_plain(&recipe)) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                         "problem.%s is %s; it must be fp32, fp16 or bf16", name,
                         moe_dtype_name(dtype));
}

static int32_t cpu_supports(const struct moe_device *device, const struct moe_problem *problem,
                            uint64_t ops, struct moe_error *error)
{
    const uint64_t outputs =
        MOE_OP_BIT(MOE_OP_GEMM2) | MOE_OP_BIT(MOE_OP_POST_REORDER) | MOE_OP_BIT(MOE_OP_SUM_REDUCE);
    (void)device;
    MOE_TRY(check_recipe("tokens", &problem->tokens, error));
    MOE_TRY(check_recipe("gate_up", &problem->gate_up, error));
    MOE_TRY(check_recipe("intermediate", &problem->intermediate, error));
    MOE_TRY(check_recipe("down", &problem->down, error));
    if ((ops & outputs) != 0) {
        MOE_TRY(check_plain_dtype("output_dtype", problem->output_dtype, error));
    }
    return check_plain_dtype("logits_dtype", problem->logits_dtype, error);
}

static uint64_t cpu_weights_prepared_bytes(const struct moe_problem *problem,
                                           const struct moe_weights_desc *desc)
{
    (void)problem;
    (void)desc;
    return 0; /* every layout runs as it is */
}

static int32_t cpu_weights_bind(struct moe_weights *weights, struct moe_error *error)
{
    (void)weights;
    (void)error;
    return MOE_STATUS_OK;
}

const struct moe_cpu_kernels *moe_cpu_kernels_of(const struct moe_tile *tile)
{
#if MOE_HAVE_AVX2
    if (tile->kernel == MOE_KERNEL_CPU_AVX2) {
        return &moe_cpu_kernels_avx2;
    }
#endif
    (void)tile;
    return &moe_cpu_kernels_c11;
}

/* The stages of route follow one another in the same scratch. */
static uint64_t route_scratch(const struct moe_plan *plan, const struct moe_tile *tile)
{
    static const int32_t stages[] = {MOE_OP_GATING, MOE_OP_ALIGN_BLOCK_SIZE, MOE_OP_EP_PREPROCESS};
    uint64_t largest = 0;
    for (size_t i = 0; i < sizeof(stages) / sizeof(stages[0]); i++) {
        if (stages[i] != MOE_OP_GATING || plan->problem.gating != MOE_GATING_NONE) {
            const uint64_t bytes = moe_cpu_op_scratch(plan, stages[i], tile);
            largest = bytes > largest ? bytes : largest;
        }
    }
    return largest;
}

uint64_t moe_cpu_op_scratch(const struct moe_plan *plan, int32_t op, const struct moe_tile *tile)
{
    const struct moe_problem *problem = &plan->problem;
    const struct moe_cpu_kernels *kernels = moe_cpu_kernels_of(tile);
    switch (op) {
    case MOE_OP_ROUTER: {
        struct moe_op_router router;
        moe_op_fill_router(problem, &router);
        return kernels->router.scratch_bytes(&router, tile);
    }
    case MOE_OP_GATING: {
        struct moe_op_gating gating;
        moe_op_fill_gating(problem, &gating);
        return kernels->gating.scratch_bytes(&gating, tile);
    }
    case MOE_OP_ALIGN_BLOCK_SIZE: {
        struct moe_op_align align;
        moe_op_fill_align(problem, &align);
        return kernels->align.scratch_bytes(&align, tile);
    }
    case MOE_OP_EP_PREPROCESS: {
        struct moe_op_ep_preprocess preprocess;
        moe_op_fill_ep_preprocess(problem, &preprocess);
        return kernels->ep_preprocess.scratch_bytes(&preprocess, tile);
    }
    case MOE_OP_ROUTE:
        return route_scratch(plan, tile);
    case MOE_OP_PRE_REORDER: {
        struct moe_op_pre_reorder reorder = {.hidden = problem->hidden, .top_k = problem->top_k};
        return kernels->pre_reorder.scratch_bytes(&reorder, tile);
    }
    case MOE_OP_ACTIVATION: {
        struct moe_op_activation activation = {.inter = problem->inter};
        return kernels->activation.scratch_bytes(&activation, tile);
    }
    case MOE_OP_GEMM1: {
        /* The shared expert's GEMMs run with the same tiles and may be wider. */
        int32_t n = problem->inter > problem->shared_inter ? problem->inter : problem->shared_inter;
        struct moe_op_gemm gemm = {.n = n,
                                   .k = problem->hidden,
                                   .num_experts = problem->num_experts,
                                   .num_matrices =
                                       (problem->flags & MOE_PROBLEM_UNGATED) != 0 ? 1 : 2};
        return kernels->gemm.scratch_bytes(&gemm, tile);
    }
    case MOE_OP_GEMM2: {
        int32_t k = problem->inter > problem->shared_inter ? problem->inter : problem->shared_inter;
        struct moe_op_gemm gemm = {
            .n = problem->hidden, .k = k, .num_experts = problem->num_experts, .num_matrices = 1};
        return kernels->gemm.scratch_bytes(&gemm, tile);
    }
    case MOE_OP_POST_REORDER:
    case MOE_OP_SUM_REDUCE: {
        struct moe_op_post_reorder reorder = {.hidden = problem->hidden, .top_k = problem->top_k};
        return kernels->post_reorder.scratch_bytes(&reorder, tile);
    }
    default:
        return 0;
    }
}

static uint64_t cpu_op_workspace(const struct moe_plan *plan,
                                 const struct moe_dispatch_bucket *bucket, int32_t op,
                                 int64_t num_tokens)
{
    if (op == MOE_OP_LAYER) {
        return moe_cpu_layer_workspace(plan, bucket, num_tokens);
    }
    if (op == MOE_OP_EXPERTS) {
        return moe_cpu_experts_workspace(plan, bucket, num_tokens);
    }
    uint64_t scratch = moe_cpu_op_scratch(plan, op, &moe_tiles[bucket->choices[op].tile]);
    return moe_cpu_align(scratch) * (uint64_t)moe_cpu_pool_num_threads(moe_cpu_plan_pool(plan));
}

/* What the pool's task function needs of a kernel. */
struct kernel_run {
    const struct moe_cpu_run *run;
    const struct moe_cpu_kernel *kernel;
    const void *op;
    const struct moe_tile *tile;
};

static void run_tasks(void *self, const struct moe_cpu_tasks *tasks, int32_t thread)
{
    const struct kernel_run *kernel_run = self;
    const struct moe_cpu_kernel *kernel = kernel_run->kernel;
    char *scratch = kernel_run->run->scratch; /* NULL when no kernel of the call wants any */
    if (scratch != NULL) {
        scratch += (uint64_t)thread * kernel_run->run->scratch_stride;
    }
    if (kernel->run_tasks != NULL) {
        kernel->run_tasks(kernel_run->op, kernel_run->tile, tasks, scratch);
        return;
    }
    for (int64_t task = tasks->first; task < tasks->end; task++) {
        kernel->run(kernel_run->op, kernel_run->tile, task, scratch);
    }
}

void moe_cpu_run_kernel(struct moe_cpu_run *run, const struct moe_cpu_kernel *kernel,
                        const void *op, const struct moe_tile *tile)
{
    struct kernel_run kernel_run = {run, kernel, op, tile};
    moe_cpu_session_run(&run->session, kernel->num_tasks(op, tile), kernel->run_tasks != NULL,
                        run_tasks, &kernel_run);
}

/* A call that is one kernel. */
static int32_t run_single(const struct moe_run *run, int32_t op_id, size_t kernel_offset,
                          const void *op)
{
    const struct moe_tile *tile = &moe_tiles[run->bucket->choices[op_id].tile];
    const char *kernels = (const char *)moe_cpu_kernels_of(tile);
    const struct moe_cpu_kernel *kernel =
        (const struct moe_cpu_kernel *)(const void *)(kernels + kernel_offset);
    struct moe_cpu_run cpu_run = {.scratch = run->workspace};
    cpu_run.scratch_stride = moe_cpu_align(moe_cpu_op_scratch(run->plan, op_id, tile));
    moe_cpu_session_begin(&cpu_run.session, moe_cpu_plan_pool(run->plan));
    moe_cpu_run_kernel(&cpu_run, kernel, op, tile);
    moe_cpu_session_end(&cpu_run.session);
    return MOE_STATUS_OK;
}

#define KERNEL(member) offsetof(struct moe_cpu_kernels, member)

static int32_t cpu_router(const struct moe_run *run, const struct moe_op_router *op,
                          struct moe_error *error)
{
    (void)error;
    return run_single(run, MOE_OP_ROUTER, KERNEL(router), op);
}

static int32_t cpu_gating(const struct moe_run *run, const struct moe_op_gating *op,
                          struct moe_error *error)
{
    (void)error;
    return run_single(run, MOE_OP_GATING, KERNEL(gating), op);
}

static int32_t cpu_align(const struct moe_run *run, const struct moe_op_align *op,
                         struct moe_error *error)
{
    (void)error;
    return run_single(run, MOE_OP_ALIGN_BLOCK_SIZE, KERNEL(align), op);
}

static int32_t cpu_ep_preprocess(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                                 struct moe_error *error)
{
    (void)error;
    return run_single(run, MOE_OP_EP_PREPROCESS, KERNEL(ep_preprocess), op);
}

/* Gating, then the sorts of the ids that it has written. */
static int32_t cpu_route(const struct moe_run *run, const struct moe_op_route *op,
                         struct moe_error *error)
{
    (void)error;
    const struct moe_tile *tile = &moe_tiles[run->bucket->choices[MOE_OP_ROUTE].tile];
    const struct moe_cpu_kernels *kernels = moe_cpu_kernels_of(tile);
    struct moe_cpu_run cpu_run = {.scratch = run->workspace};
    cpu_run.scratch_stride = moe_cpu_align(moe_cpu_op_scratch(run->plan, MOE_OP_ROUTE, tile));
    moe_cpu_session_begin(&cpu_run.session, moe_cpu_plan_pool(run->plan));
    if (op->gating.logits != NULL) {
        moe_cpu_run_kernel(&cpu_run, &kernels->gating, &op->gating, tile);
    }
    if (op->wants_align) {
        moe_cpu_run_kernel(&cpu_run, &kernels->align, &op->align, tile);
    }
    if (op->wants_preprocess) {
        moe_cpu_run_kernel(&cpu_run, &kernels->ep_preprocess, &op->preprocess, tile);
    }
    moe_cpu_session_end(&cpu_run.session);
    return MOE_STATUS_OK;
}

/*
 * Is an operation to write around the caches? Yes, when input and output exceed half of what they
 * hold: the output would not stay, and lines that are written whole need not be read before.
 */
static int32_t is_streamed(const struct moe_run *run, int64_t num_in, int32_t in_dtype,
                           int64_t num_out, int32_t out_dtype)
{
    const int64_t moved_bytes =
        num_in * moe_dtype_bytes(in_dtype) + num_out * moe_dtype_bytes(out_dtype);
    const int64_t cache_bytes = run->plan->context->device.l2_bytes;
    return cache_bytes > 0 && moved_bytes > cache_bytes / 2;
}

static int32_t cpu_pre_reorder(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                               struct moe_error *error)
{
    (void)error;
    struct moe_op_pre_reorder own = *op;
    const int64_t num_in = op->num_tokens * op->hidden;
    own.streams = is_streamed(run, num_in, op->dtype, num_in * op->top_k, op->dtype);
    own.quant.has_avx512 = moe_cpu_isa_has_avx512_vbmi();
    return run_single(run, MOE_OP_PRE_REORDER, KERNEL(pre_reorder), &own);
}

static int32_t cpu_quantize(const struct moe_run *run, const struct moe_op_quantize *op,
                            struct moe_error *error)
{
    (void)error;
    struct moe_op_quantize own = *op;
    own.quant.has_avx512 = moe_cpu_isa_has_avx512_vbmi();
    return run_single(run, MOE_OP_QUANTIZE, KERNEL(quantize), &own);
}

static int32_t cpu_activation(const struct moe_run *run, const struct moe_op_activation *op,
                              struct moe_error *error)
{
    (void)error;
    struct moe_op_activation own = *op;
    const int64_t num_out = op->num_rows * op->inter;
    own.streams = is_streamed(run, op->act.ungated ? num_out : 2 * num_out, op->input_dtype,
                              num_out, op->output_dtype);
    own.has_avx512 = moe_cpu_isa_has_avx512_vbmi();
    return run_single(run, MOE_OP_ACTIVATION, KERNEL(activation), &own);
}

static int32_t cpu_grouped_gemm(const struct moe_run *run, int32_t op_id,
                                const struct moe_op_gemm *op, struct moe_error *error)
{
    (void)error;
    struct moe_op_gemm own = *op;
    own.has_avx512_vbmi = moe_cpu_isa_has_avx512_vbmi();
    own.has_avx512_bf16 = moe_cpu_isa_has_avx512_bf16();
    return run_single(run, op_id, KERNEL(gemm), &own);
}

void moe_cpu_prepare_post_reorder(const struct moe_run *run, struct moe_op_post_reorder *op)
{
    const int64_t num_out = op->num_tokens * op->hidden;
    op->streams = is_streamed(run, num_out * op->top_k, op->dtype, num_out, op->dtype);
    op->has_avx512 = moe_cpu_isa_has_avx512_vbmi();
}

static int32_t cpu_post_reorder(const struct moe_run *run, int32_t op_id,
                                const struct moe_op_post_reorder *op, struct moe_error *error)
{
    (void)error;
    struct moe_op_post_reorder own = *op;
    moe_cpu_prepare_post_reorder(run, &own);
    return run_single(run, op_id, KERNEL(post_reorder), &own);
}

const struct moe_backend moe_backend_cpu = {
    .id = MOE_BACKEND_CPU,
    .name = "cpu",
    .workspace_alignment = MOE_CPU_ALIGNMENT,
    .probe = cpu_probe,
    .state_create = cpu_state_create,
    .state_destroy = cpu_state_destroy,
    .supports = cpu_supports,
    .op_workspace = cpu_op_workspace,
    .weights_prepared_bytes = cpu_weights_prepared_bytes,
    .weights_bind = cpu_weights_bind,
    .layer = moe_cpu_layer,
    .experts = moe_cpu_experts,
    .router = cpu_router,
    .gating = cpu_gating,
    .align = cpu_align,
    .ep_preprocess = cpu_ep_preprocess,
    .route = cpu_route,
    .pre_reorder = cpu_pre_reorder,
    .quantize = cpu_quantize,
    .activation = cpu_activation,
    .grouped_gemm = cpu_grouped_gemm,
    .post_reorder = cpu_post_reorder,
};
