/* SPDX-License-Identifier: Apache-2.0 */
/* router where tokens or weights are fp32: the CPU's bits. Routers of 16 bits run on tensor cores
 * in an order of their own; gpu_layer checks them. */
#include "gpu_check.h"

/* A router on both sides. */
struct router_case {
    struct check_case base;
    int32_t weight_dtype, bias_dtype; /* bias 0: none */
    int64_t token_stride, row_stride, logits_stride;
    struct check_mirror tokens, weights, bias, logits;
    struct check_count count;
};

static size_t element_bytes(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? 4 : 2;
}

static void draw_router(struct router_case *router)
{
    struct moe_problem *problem = &router->base.problem;
    memset(router, 0, sizeof(*router));
    problem->struct_size = sizeof(*problem);
    problem->num_experts = (int32_t)PICK(1, 8, 60, 64, 129, 256);
    problem->top_k = 1;
    problem->hidden = (int32_t)PICK(8, 64, 200, 1024, 2560, 4096);
    problem->logits_dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_FP32, MOE_DTYPE_BF16);
    problem->tokens.dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_BF16, MOE_DTYPE_FP16);
    problem->gate_up.dtype = problem->tokens.dtype;
    problem->down.dtype = problem->tokens.dtype;
    problem->inter = 8;
    router->weight_dtype = problem->tokens.dtype != MOE_DTYPE_FP32
                               ? MOE_DTYPE_FP32
                               : (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_BF16, MOE_DTYPE_FP16);
    router->bias_dtype = (int32_t)PICK(0, MOE_DTYPE_FP32, MOE_DTYPE_BF16, MOE_DTYPE_FP16);
    problem->flags = router->bias_dtype != 0 ? MOE_PROBLEM_ROUTER_BIAS : 0;
    router->base.num_tokens = PICK(0, 1, 2, 17, 33, 64, 200);
    problem->max_tokens = router->base.num_tokens > 0 ? router->base.num_tokens : 1;
    router->token_stride = problem->hidden + PICK(0, 0, 8);
    router->row_stride = problem->hidden + PICK(0, 0, 16);
    router->logits_stride = problem->num_experts + PICK(0, 0, 3);
    snprintf(router->base.text, sizeof(router->base.text),
             "router T %lld E %d H %d tokens %d weights %d bias %d logits %d",
             (long long)router->base.num_tokens, problem->num_experts, problem->hidden,
             problem->tokens.dtype, router->weight_dtype, router->bias_dtype,
             problem->logits_dtype);
}

static void make_tensors(struct router_case *router)
{
    const struct moe_problem *problem = &router->base.problem;
    const int64_t tokens = router->base.num_tokens * router->token_stride;
    const int64_t weights = problem->num_experts * router->row_stride;
    check_mirror_init(&router->tokens, (size_t)tokens * element_bytes(problem->tokens.dtype), 0);
    check_mirror_init(&router->weights, (size_t)weights * element_bytes(router->weight_dtype), 0);
    check_mirror_init(&router->bias, (size_t)problem->num_experts * 4, 0);
    check_mirror_init(&router->logits,
                      (size_t)(router->base.num_tokens * router->logits_stride) *
                          element_bytes(problem->logits_dtype),
                      0);
    check_count_init(&router->count, router->base.num_tokens);
    check_fill_elements(check_on_host(&router->tokens), problem->tokens.dtype, tokens);
    check_fill_elements(check_on_host(&router->weights), router->weight_dtype, weights);
    if (router->bias_dtype != 0) {
        check_fill_elements(check_on_host(&router->bias), router->bias_dtype, problem->num_experts);
    }
}

static void run_router(const struct router_case *router, int is_cuda)
{
    void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
    struct moe_context *context = is_cuda ? check_host.cuda : check_host.cpu;
    struct moe_weights *weights = NULL;
    struct moe_error error;
    struct moe_weights_desc desc;
    struct moe_router_args args;
    MOE_INIT(error);
    MOE_INIT(desc);
    MOE_INIT_CALL(args);
    desc.router.base = at(&router->weights);
    desc.router.dtype = router->weight_dtype;
    desc.router.row_stride = router->row_stride;
    desc.router.col_stride = 1;
    if (router->bias_dtype != 0) {
        desc.router_bias.base = at(&router->bias);
        desc.router_bias.dtype = router->bias_dtype;
        desc.router_bias.row_stride = 1;
    }
    gpu_host_check(check_host.api->weights_bind(context, &router->base.problem, &desc, NULL, 0,
                                                &weights, &error),
                   &error, router->base.text);
    check_set_call(&router->base, is_cuda, &args.call);
    args.call.num_tokens_device = check_count_at(&router->count, is_cuda);
    args.weights = weights;
    args.tokens = at(&router->tokens);
    args.token_stride = router->token_stride;
    args.logits = at(&router->logits);
    args.logits_stride = router->logits_stride;
    gpu_host_check(
        check_host.api->router(is_cuda ? router->base.cuda : router->base.cpu, &args, &error),
        &error, router->base.text);
    if (is_cuda) {
        check_wait();
    }
    check_host.api->weights_destroy(weights);
}

void check_router(void)
{
    static struct router_case router;
    draw_router(&router);
    make_tensors(&router);
    check_case_init(&router.base, MOE_OP_ROUTER);
    struct check_mirror *all[] = {&router.tokens, &router.weights, &router.bias, &router.logits};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_mirror_send(all[i]);
    }
    run_router(&router, 0);
    for (int turn = 0; turn < 2; turn++) {
        run_router(&router, 1);
        check_mirror_compare(&router.logits, "logits", router.base.text);
    }
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_mirror_finish(all[i]);
    }
    check_count_finish(&router.count);
    check_case_finish(&router.base);
}
