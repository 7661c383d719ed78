/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin with one fault that only shows when it runs; PLUGIN_FAULT says which. Everything else,
 * the table included, is the real one: its source is included with one function replaced.
 */
#include "calls.h"
#include "plan.h"
#include "self_test.h"
#include "status.h"

#include <math.h>
#include <stddef.h>
#include <time.h>

enum {
    FAULT_WRONG,         /* one channel of one token is off */
    FAULT_NAN,           /* one element is NaN */
    FAULT_UNWRITTEN,     /* the last token's output stays as it was */
    FAULT_SLOW,          /* three times as long */
    FAULT_OVERRUN,       /* one byte behind the workspace */
    FAULT_UNINITIALIZED, /* the output depends on what the workspace held */
    FAULT_REFUSES_CALL,  /* every call is a device error */
    FAULT_WORKSPACE,     /* plans say that they need more than they were given */
    FAULT_UNSUPPORTED,   /* no problem is supported */
    FAULT_SELF_TEST,     /* the self-test fails: for loaders that skip the canary */
};

static int32_t faulty_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                            struct moe_error *error);
static int32_t faulty_plan_info(const struct moe_plan *plan, struct moe_plan_info *out,
                                struct moe_error *error);
static int32_t faulty_plan_create(struct moe_context *context, const struct moe_problem *problem,
                                  const struct moe_plan_options *options, struct moe_plan **out,
                                  struct moe_error *error);
static int32_t faulty_self_test(struct moe_context *context, struct moe_error *error);

#define moe_calls_layer faulty_layer
#define moe_plan_info   faulty_plan_info
#define moe_plan_create faulty_plan_create
#define moe_self_test   faulty_self_test
#include "init.c"
#undef moe_calls_layer
#undef moe_plan_info
#undef moe_plan_create
#undef moe_self_test

static void sleep_for(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int32_t faulty_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                            struct moe_error *error)
{
    if (PLUGIN_FAULT == FAULT_REFUSES_CALL) {
        return moe_error_set(error, MOE_STATUS_DEVICE_ERROR, "a device error, made up");
    }
    const double start = seconds_now();
    const unsigned char held =
        args->call.workspace_bytes != 0 ? *(const unsigned char *)args->call.workspace : 0;
    struct moe_layer_args own = *args;
    if (PLUGIN_FAULT == FAULT_UNWRITTEN) {
        own.call.num_tokens -= 1;
    }
    const int32_t status = moe_calls_layer(plan, &own, error);
    float *output = args->output; /* the tests' problems are in fp32 */
    if (PLUGIN_FAULT == FAULT_WRONG) {
        output[0] += 1.0f + fabsf(output[0]);
    } else if (PLUGIN_FAULT == FAULT_NAN) {
        output[0] = NAN;
    } else if (PLUGIN_FAULT == FAULT_SLOW) {
        sleep_for(2.0 * (seconds_now() - start) + 2e-4);
    } else if (PLUGIN_FAULT == FAULT_OVERRUN) {
        ((unsigned char *)args->call.workspace)[args->call.workspace_bytes] = 1;
    } else if (PLUGIN_FAULT == FAULT_UNINITIALIZED) {
        output[0] += held == 0 ? 0.0f : 1e-4f * fabsf(output[0]);
    }
    return status;
}

static int32_t faulty_plan_info(const struct moe_plan *plan, struct moe_plan_info *out,
                                struct moe_error *error)
{
    const int32_t status = moe_plan_info(plan, out, error);
    if (PLUGIN_FAULT == FAULT_WORKSPACE && status == MOE_STATUS_OK) {
        out->workspace_bytes += UINT64_C(1) << 32;
    }
    return status;
}

static int32_t faulty_plan_create(struct moe_context *context, const struct moe_problem *problem,
                                  const struct moe_plan_options *options, struct moe_plan **out,
                                  struct moe_error *error)
{
    if (PLUGIN_FAULT == FAULT_UNSUPPORTED) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED, "no problem is supported here");
    }
    return moe_plan_create(context, problem, options, out, error);
}

static int32_t faulty_self_test(struct moe_context *context, struct moe_error *error)
{
    if (PLUGIN_FAULT == FAULT_SELF_TEST) {
        return moe_error_set(error, MOE_STATUS_SELF_TEST, "a known answer, made up, is wrong");
    }
    return moe_self_test(context, error);
}
