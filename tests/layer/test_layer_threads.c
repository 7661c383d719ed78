/* SPDX-License-Identifier: Apache-2.0 */
/* ctest labels: tsan */
/* Four threads on one plan and one weights object, while others create plans and reload the
 * configuration: every result has the bits of a run alone. */
#include "layer_fixture.h"

#include <pthread.h>

enum { T = 40, H = 40, NUM_RUNNERS = 4, NUM_MAKERS = 2, NUM_ROUNDS = 25 };

struct runner {
    const struct layer_data *data;
    const struct moe_plan *plan;
    const struct layer_result *alone;
    int32_t status; /* of the last call that failed */
    int num_different;
};

struct maker {
    struct moe_context *context;
    const struct layer_data *data;
    int32_t status;
};

/* cmocka's assertions belong to the main thread: threads count, the main thread asserts. */
static void *run_layers(void *argument)
{
    struct runner *runner = argument;
    const size_t bytes = op_dtype_bytes(op_output_dtype(&runner->data->model.problem));
    struct layer_outputs outputs;
    struct moe_layer_args args;
    struct moe_choice choice;
    MOE_INIT(choice);
    layer_fill_args(runner->data, 0, T, &outputs, &args);
    op_api()->plan_op_info(runner->plan, MOE_OP_LAYER, T, &choice, NULL);
    struct support_guard workspace =
        op_output((int64_t)choice.workspace_bytes + OP_WORKSPACE_ALIGNMENT, OP_WORKSPACE_ALIGNMENT,
                  SUPPORT_POISON_FLOAT);
    args.call.workspace = workspace.data + OP_WORKSPACE_ALIGNMENT -
                          (uintptr_t)workspace.data % OP_WORKSPACE_ALIGNMENT;
    args.call.workspace_bytes = choice.workspace_bytes;
    for (int round = 0; round < NUM_ROUNDS; round++) {
        struct moe_error error;
        MOE_INIT(error);
        support_guard_poison(&outputs.output);
        support_guard_poison(&workspace);
        const int32_t status = op_api()->layer(runner->plan, &args, &error);
        runner->status = status != MOE_STATUS_OK ? status : runner->status;
        runner->num_different += support_find_bit_difference(
                                     runner->alone->output, outputs.output.data, T * H, bytes) >= 0;
        runner->num_different += !support_guard_check(&outputs.output, NULL);
        runner->num_different += !support_guard_check(&workspace, NULL);
    }
    support_guard_finish(&workspace);
    layer_outputs_finish(&outputs);
    return NULL;
}

static void *make_plans(void *argument)
{
    struct maker *maker = argument;
    for (int round = 0; round < NUM_ROUNDS; round++) {
        struct moe_plan *plan = NULL;
        struct moe_weights *weights = NULL;
        struct moe_stats stats;
        MOE_INIT(stats);
        int32_t status =
            op_api()->plan_create(maker->context, &maker->data->model.problem, NULL, &plan, NULL);
        status = status != MOE_STATUS_OK
                     ? status
                     : op_api()->weights_bind(maker->context, &maker->data->model.problem,
                                              &maker->data->bound.desc, NULL, 0, &weights, NULL);
        status = status != MOE_STATUS_OK
                     ? status
                     : op_api()->config_reload(maker->context, NULL, 0, NULL, NULL, NULL);
        status = status != MOE_STATUS_OK ? status : op_api()->stats(maker->context, &stats, NULL);
        maker->status = status != MOE_STATUS_OK ? status : maker->status;
        op_api()->weights_destroy(weights);
        op_api()->plan_destroy(plan);
    }
    return NULL;
}

static struct moe_problem make_problem(void)
{
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.flags = MOE_PROBLEM_SHARED_SIGMOID | MOE_PROBLEM_RENORMALIZE;
    problem.num_experts = problem.num_experts_global = 16;
    problem.top_k = 4;
    problem.hidden = H;
    problem.inter = 33;
    problem.shared_inter = 24;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.gating = MOE_GATING_SOFTMAX;
    problem.tokens.dtype = problem.gate_up.dtype = problem.down.dtype = MOE_DTYPE_BF16;
    problem.max_tokens = T;
    return problem;
}

static void threads_share_a_plan(void **state)
{
    (void)state;
    const struct moe_problem problem = make_problem();
    const struct layer_case test = {.num_tokens = T, .source = LAYER_FROM_ROUTER};
    for (int32_t num_threads = 1; num_threads <= OP_MAX_THREADS; num_threads++) {
        struct moe_context *context = op_context_create(NULL, num_threads);
        struct runner runners[NUM_RUNNERS];
        struct maker makers[NUM_MAKERS];
        pthread_t threads[NUM_RUNNERS + NUM_MAKERS];
        struct layer_data data;
        struct layer_result alone;
        layer_data_init(&data, 11, &problem, &test);
        layer_result_init(&alone, &data);
        op_bind(&data.bound, &data.model, context);
        struct moe_plan *plan = op_plan(context, &data.model.problem, 0);
        layer_run_plan(NULL, plan, &data, 0, T, &alone);
        layer_check(&data, &alone);
        for (int i = 0; i < NUM_RUNNERS; i++) {
            runners[i] = (struct runner){&data, plan, &alone, MOE_STATUS_OK, 0};
            assert_int_equal(pthread_create(&threads[i], NULL, run_layers, &runners[i]), 0);
        }
        for (int i = 0; i < NUM_MAKERS; i++) {
            makers[i] = (struct maker){context, &data, MOE_STATUS_OK};
            assert_int_equal(
                pthread_create(&threads[NUM_RUNNERS + i], NULL, make_plans, &makers[i]), 0);
        }
        for (int i = 0; i < NUM_RUNNERS + NUM_MAKERS; i++) {
            assert_int_equal(pthread_join(threads[i], NULL), 0);
        }
        for (int i = 0; i < NUM_RUNNERS; i++) {
            assert_int_equal(runners[i].status, MOE_STATUS_OK);
            assert_int_equal(runners[i].num_different, 0);
        }
        for (int i = 0; i < NUM_MAKERS; i++) {
            assert_int_equal(makers[i].status, MOE_STATUS_OK);
        }
        struct moe_stats stats;
        MOE_INIT(stats);
        assert_int_equal(op_api()->stats(context, &stats, NULL), MOE_STATUS_OK);
        assert_int_equal(stats.num_plans_created, 1 + NUM_MAKERS * NUM_ROUNDS);
        assert_int_equal(stats.num_reloads, NUM_MAKERS * NUM_ROUNDS);
        op_api()->plan_destroy(plan);
        layer_result_finish(&alone);
        layer_data_finish(&data);
        op_api()->context_destroy(context);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_share_a_plan),
    };
    return cmocka_run_group_tests(tests, op_setup, op_teardown);
}
