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
            api->plan_destroy(plan);
        }
    }
    api->context_destroy(context);
    assert_nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(host_time, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
