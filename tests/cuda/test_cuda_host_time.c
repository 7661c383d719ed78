/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: no-asan serial */
/* What a CUDA run call costs the host beside the driver, whose functions return at once here. */
#define _POSIX_C_SOURCE 200809L
#include "cuda_calls.h"

#include <time.h>

/* The bound that the plugin promises, and calls that are timed together, so often; the shortest
 * time counts. */
enum { MAX_NS = 2000, NUM_CALLS = 2000, NUM_ROUNDS = 30 };

static const struct shape shapes[] = {{1, 256, 8, 7168, MOE_DTYPE_BF16},
                                      {64, 256, 8, 7168, MOE_DTYPE_BF16},
                                      {4096, 256, 8, 7168, MOE_DTYPE_BF16}};
enum { NUM_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

static double time_call(const struct moe_plan *plan, const struct shape *shape, run_fn *run)
{
    double best_ns = 1e18;
    struct moe_error error;
    MOE_INIT(error);
    for (int round = 0; round < NUM_ROUNDS; round++) {
        const double start_ns = now_ns();
        for (int call = 0; call < NUM_CALLS; call++) {
            if (run(plan, shape, NULL, &error) != MOE_STATUS_OK) {
                fail_msg("%s", error.message);
            }
        }
        const double ns = (now_ns() - start_ns) / NUM_CALLS;
        best_ns = ns < best_ns ? ns : best_ns;
    }
    return best_ns;
}

static void host_time(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    for (int op = 0; op < NUM_OPS; op++) {
        for (int s = 0; s < NUM_SHAPES; s++) {
            struct moe_plan *plan = create_plan(context, &shapes[s], ops[op].op);
            driver->is_idle = 1;
            const double ns = time_call(plan, &shapes[s], ops[op].run);
            driver->is_idle = 0;
            print_message("%-16s T %4lld: %4.0f ns of the host beside the driver's launches\n",
                          ops[op].name, (long long)shapes[s].num_tokens, ns);
            assert_true(ns < MAX_NS);
            destroy_plan(plan);
        }
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* A layer with ids given; what a matrix's address is does not matter here. */
static void layer_host_time(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 64, 1024, 8192};
    const struct moe_operand matrix = {.base = ON_DEVICE(10),
                                       .expert_stride = (int64_t)2048 * 768,
                                       .row_stride = 2048,
                                       .col_stride = 1};
    struct moe_problem problem;
    struct moe_weights_desc desc;
    struct moe_plan_options options;
    struct moe_plan_info info;
    struct moe_error error;
    struct moe_weights *weights = NULL;
    struct moe_plan *plan = NULL;
    MOE_INIT(problem);
    MOE_INIT(desc);
    MOE_INIT(options);
    MOE_INIT(info);
    MOE_INIT(error);
    problem.num_experts = 128;
    problem.top_k = 8;
    problem.hidden = 2048;
    problem.inter = 768;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.tokens.dtype = problem.gate_up.dtype = problem.down.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = counts[3];
    desc.gate = desc.up = desc.down = matrix;
    desc.down.row_stride = 768;
    options.ops = UINT64_C(1) << MOE_OP_LAYER;
    struct moe_context *context = create_context();
    assert_int_equal(api->weights_bind(context, &problem, &desc, NULL, 0, &weights, &error), 0);
    assert_int_equal(api->plan_create(context, &problem, &options, &plan, &error), 0);
    assert_int_equal(api->plan_info(plan, &info, &error), 0);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct moe_layer_args args;
        double best_ns = 1e18;
        MOE_INIT_CALL(args);
        args.call.num_tokens = counts[i];
        args.call.stream = ON_DEVICE(9);
        args.call.workspace = ON_DEVICE(20);
        args.call.workspace_bytes = info.workspace_bytes;
        args.weights = weights;
        args.tokens = ON_DEVICE(1);
        args.output = ON_DEVICE(2);
        args.topk_ids = ON_DEVICE(3);
        args.topk_weights = ON_DEVICE(4);
        driver->is_idle = 1;
        for (int round = 0; round < NUM_ROUNDS; round++) {
            const double start_ns = now_ns();
            for (int call = 0; call < NUM_CALLS; call++) {
                assert_int_equal(api->layer(plan, &args, &error), MOE_STATUS_OK);
            }
            const double ns = (now_ns() - start_ns) / NUM_CALLS;
            best_ns = ns < best_ns ? ns : best_ns;
        }
        driver->is_idle = 0;
        print_message(
            "layer            T %4lld: %4.0f ns of the host beside the driver's launches\n",
            (long long)counts[i], best_ns);
        assert_true(best_ns < MAX_NS);
    }
    api->plan_destroy(plan);
    api->weights_destroy(weights);
    api->context_destroy(context);
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(host_time, with_fresh_driver),
        cmocka_unit_test_setup(layer_host_time, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
