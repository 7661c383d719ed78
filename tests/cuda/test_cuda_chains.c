/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA run calls of more than one launch: streams, programmatic dependence, what the first launch
 * is told about the second, and calls that fail midway. */
#include "cuda_args.h"
#include "cuda_calls.h"

/* From which on launches begin under the tail of the one before. */
enum { HOPPER = 90 };

/* What a call launches: all kernels with these words in their symbols, in this order. */
struct chain {
    int32_t op;
    const char *name;
    run_fn *run;
    struct shape shape;
    const char *tile; /* forced; NULL: the heuristic's */
    const char *words[3];
    int32_t is_chained; /* all launches but the first */
};
static const struct chain chains[] = {
    {MOE_OP_ROUTER, "router", run_router, {100, 64, 8, 2048, MOE_DTYPE_BF16}, NULL, {"ROUTER"}, 0},
    {MOE_OP_GATING, "gating", run_gating, {100, 64, 8, 2048, MOE_DTYPE_BF16}, NULL, {"GATING"}, 0},
    {MOE_OP_ROUTE,
     "route",
     run_route,
     {10, 512, 8, 2048, MOE_DTYPE_BF16},
     "{kernel: cuda.sort, BLOCK_SIZE: 256}",
     {"GATING", "ROUTE_CUDA_SORT"},
     1},
    {MOE_OP_ROUTE,
     "route",
     run_route,
     {5000, 512, 8, 2048, MOE_DTYPE_BF16},
     "{kernel: cuda.split, BLOCK_SIZE: 512}",
     {"GATING", "ROUTE_CUDA_SPLIT", "ROUTE_CUDA_SPLIT"},
     1},
    {MOE_OP_ALIGN_BLOCK_SIZE,
     "align_block_size",
     run_align,
     {9, 64, 8, 2048, MOE_DTYPE_BF16},
     "{kernel: cuda.sort, BLOCK_SIZE: 256}",
     {"ALIGN_BLOCK_SIZE_CUDA_SORT"},
     0},
    {MOE_OP_ALIGN_BLOCK_SIZE,
     "align_block_size",
     run_align,
     {5000, 64, 8, 2048, MOE_DTYPE_BF16},
     "{kernel: cuda.sort, BLOCK_SIZE: 256}",
     {"ALIGN_BLOCK_SIZE_CUDA_SPLIT", "ALIGN_BLOCK_SIZE_CUDA_SPLIT"},
     1},
    {MOE_OP_EP_PREPROCESS,
     "ep_preprocess",
     run_ep_preprocess,
     {5000, 64, 8, 2048, MOE_DTYPE_BF16},
     "{kernel: cuda.split, BLOCK_SIZE: 512}",
     {"EP_PREPROCESS_CUDA_SPLIT", "EP_PREPROCESS_CUDA_SPLIT"},
     1},
    /* Launches that first read and then write: one must have ended before the next reads. */
    {MOE_OP_PRE_REORDER,
     "pre_reorder",
     run_pre_reorder,
     {4000, 64, 8, 7168, MOE_DTYPE_BF16},
     "{kernel: cuda.rows, BLOCK_SIZE: 128}",
     {"PRE_REORDER", "PRE_REORDER", "PRE_REORDER"},
     0},
    {MOE_OP_QUANTIZE, "quantize", run_quantize, {9, 64, 8, 256, MOE_DTYPE_BF16}, NULL, {"QUAN"}, 0},
    {MOE_OP_ACTIVATION,
     "activation",
     run_activation,
     {9, 8, 2, 64, MOE_DTYPE_FP16},
     NULL,
     {"ACT"},
     0},
    {MOE_OP_POST_REORDER,
     "post_reorder",
     run_post_reorder,
     {9, 8, 2, 64, MOE_DTYPE_FP16},
     NULL,
     {"POST"},
     0},
    {MOE_OP_SUM_REDUCE,
     "sum_reduce",
     run_sum_reduce,
     {9, 8, 2, 64, MOE_DTYPE_FP16},
     NULL,
     {"SUM"},
     0},
};
enum { NUM_CHAINS = sizeof(chains) / sizeof(chains[0]) };

static int count_words(const struct chain *chain)
{
    int count = 0;
    while (count < 3 && chain->words[count] != NULL) {
        count++;
    }
    return count;
}

static struct moe_plan *plan_chain(struct moe_context *context, const struct chain *chain)
{
    char text[256];
    struct moe_config_source source;
    struct moe_error error;
    MOE_INIT(source);
    MOE_INIT(error);
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\nrules:\n- name: forced\n  match: {backend: cuda}\n"
             "  buckets:\n  - max_tokens: inf\n    %s: %s\n",
             chain->name, chain->tile);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced";
    source.text = chain->tile != NULL ? text : "schema: moe-dispatch/1\nrules: []\n";
    source.text_bytes = strlen(source.text);
    if (api->config_reload(context, &source, 1, NULL, NULL, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return create_plan(context, &chain->shape, chain->op);
}

static void check_chain(const struct chain *chain, void *stream)
{
    assert_int_equal(driver->num_launches, count_words(chain));
    for (int i = 0; i < driver->num_launches; i++) {
        const struct fake_launch *launch = &driver->launches[i];
        const uint32_t is_chained = i > 0 && chain->is_chained && driver->sm >= HOPPER;
        if (strstr(launch->symbol, chain->words[i]) == NULL) {
            fail_msg("%s: launch %d is %s", chain->name, i, launch->symbol);
        }
        assert_ptr_equal(launch->stream, stream);
        assert_int_equal(launch->is_chained, is_chained);
        assert_int_equal(launch->num_attributes, is_chained);
        assert_int_equal(launch->num_refused, 0);
    }
}

/* Every launch of a call is on the stream that the host named, which the plugin knows nothing
 * about: NULL and the two handles that stand for a stream are handed on as they are. Only launches
 * behind the first of a sort begin under the tail of the one before, and only from Hopper on. */
static void streams_and_chains(void **state)
{
    void *const streams[] = {NULL, (void *)CU_STREAM_LEGACY, (void *)CU_STREAM_PER_THREAD,
                             ON_DEVICE(9)};
    driver->sm = *(const int32_t *)*state;
    struct moe_context *context = create_context();
    for (int i = 0; i < NUM_CHAINS; i++) {
        struct moe_plan *plan = plan_chain(context, &chains[i]);
        for (size_t s = 0; s < sizeof(streams) / sizeof(streams[0]); s++) {
            struct moe_error error;
            MOE_INIT(error);
            driver->num_launches = 0;
            if (chains[i].run(plan, &chains[i].shape, streams[s], &error) != MOE_STATUS_OK) {
                fail_msg("%s: %s", chains[i].name, error.message);
            }
            check_chain(&chains[i], streams[s]);
        }
        destroy_plan(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* What the driver says, and what the call says then: never that nothing was touched. */
static const struct {
    int32_t result;
    int32_t status;
} failures[] = {
    {CUDA_ERROR_INVALID_VALUE, MOE_STATUS_DEVICE_ERROR},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, MOE_STATUS_DEVICE_ERROR},
    {CUDA_ERROR_INVALID_DEVICE, MOE_STATUS_DEVICE_ERROR},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, MOE_STATUS_DEVICE_ERROR},
    {CUDA_ERROR_ILLEGAL_ADDRESS, MOE_STATUS_DEVICE_LOST},
    {CUDA_ERROR_OUT_OF_MEMORY, MOE_STATUS_DEVICE_ERROR},
};
enum { NUM_FAILURES = sizeof(failures) / sizeof(failures[0]) };

/* The launch behind `num_before` others fails. */
static void fail_launch(const struct chain *chain, const struct moe_plan *plan, int num_before,
                        int failure)
{
    struct moe_error error;
    MOE_INIT(error);
    driver->num_calls = driver->num_launches = 0;
    driver->fail_at = num_before + 2; /* the context is pushed first */
    driver->fail_result = failures[failure].result;
    const int32_t status = chain->run(plan, &chain->shape, NULL, &error);
    driver->fail_at = 0;
    assert_int_equal(status, failures[failure].status);
    assert_int_equal(error.status, status);
    assert_int_equal(error.native, failures[failure].result);
    if (strstr(error.message, "a launch failed") == NULL ||
        strstr(error.message, chain->words[num_before]) == NULL) {
        fail_msg("launch %d of %s: \"%s\"", num_before, chain->name, error.message);
    }
    assert_int_equal(driver->num_launches, num_before); /* and none behind it */
    assert_int_equal(driver->num_calls, num_before + 3);
    assert_string_equal(driver->calls[num_before + 2], "cuCtxPopCurrent");
    assert_int_equal(driver->num_pushed, 1);
}

/* Each launch of each call fails: a status, a sentence with the kernel, the context popped, nothing
 * launched behind it; the next call runs. The same without a place for the sentence. */
static void every_launch_fails_once(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    for (int i = 0; i < NUM_CHAINS; i++) {
        struct moe_plan *plan = plan_chain(context, &chains[i]);
        for (int failure = 0; failure < NUM_FAILURES; failure++) {
            for (int before = 0; before < count_words(&chains[i]); before++) {
                fail_launch(&chains[i], plan, before, failure);
            }
        }
        driver->num_calls = 0;
        driver->fail_at = count_words(&chains[i]) + 1; /* the last launch */
        driver->fail_result = CUDA_ERROR_NO_BINARY_FOR_GPU;
        assert_int_equal(chains[i].run(plan, &chains[i].shape, NULL, NULL),
                         MOE_STATUS_DEVICE_ERROR);
        driver->fail_at = 0;
        driver->num_launches = 0;
        assert_int_equal(chains[i].run(plan, &chains[i].shape, NULL, NULL), MOE_STATUS_OK);
        check_chain(&chains[i], NULL);
        destroy_plan(plan);
    }
    api->context_destroy(context);
    assert_nothing_left();
}

/* Gating in front of a sort lets it begin early, or where gating is long (more than 2^19 logits of
 * more than 256 experts) and the sort's CTAs are not the largest, when it has ended. */
static void late_sorts(void **state)
{
    (void)state;
    static const struct {
        struct shape shape;
        const char *tile;
        int32_t is_late;
    } cases[] = {
        {{1024, 512, 8, 8, MOE_DTYPE_BF16}, "{kernel: cuda.split, BLOCK_SIZE: 512}", 0},
        {{1025, 512, 8, 8, MOE_DTYPE_BF16}, "{kernel: cuda.split, BLOCK_SIZE: 512}", 1},
        {{1365, 384, 2, 8, MOE_DTYPE_BF16}, "{kernel: cuda.sort, BLOCK_SIZE: 512}", 0},
        {{1366, 384, 2, 8, MOE_DTYPE_BF16}, "{kernel: cuda.sort, BLOCK_SIZE: 512}", 1},
        {{70000, 256, 8, 8, MOE_DTYPE_BF16}, "{kernel: cuda.split, BLOCK_SIZE: 512}", 0},
        {{70000, 257, 8, 8, MOE_DTYPE_BF16}, "{kernel: cuda.split, BLOCK_SIZE: 512}", 1},
        {{70000, 512, 8, 8, MOE_DTYPE_BF16}, "{kernel: cuda.split, BLOCK_SIZE: 1024}", 0},
        /* a cluster of large CTAs; more routes than it has threads are sorted by 512 each */
        {{2048, 512, 4, 8, MOE_DTYPE_BF16}, "{kernel: cuda.sort, BLOCK_SIZE: 1024}", 0},
        {{2049, 512, 4, 8, MOE_DTYPE_BF16}, "{kernel: cuda.sort, BLOCK_SIZE: 1024}", 1},
    };
    struct moe_context *context = create_context();
    driver->args_of = "GATING";
    driver->args_bytes = sizeof(struct moe_cuda_gating);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct chain chain = {
            .op = MOE_OP_ROUTE, .name = "route", .shape = cases[i].shape, .tile = cases[i].tile};
        struct moe_cuda_gating gating;
        struct moe_plan *plan = plan_chain(context, &chain);
        driver->num_launches = 0;
        assert_int_equal(run_route(plan, &chain.shape, NULL, NULL), MOE_STATUS_OK);
        assert_true(driver->num_launches >= 2);
        assert_non_null(strstr(driver->launches[0].symbol, "GATING"));
        memcpy(&gating, driver->launches[0].args, sizeof(gating));
        assert_int_equal(gating.op.num_tokens, chain.shape.num_tokens);
        if (gating.is_late != cases[i].is_late) {
            fail_msg("case %d: is_late is %d", (int)i, gating.is_late);
        }
        assert_int_equal(driver->launches[1].is_chained, 1);
        destroy_plan(plan);
    }
    /* By itself it has nothing behind it that could be late. */
    const struct shape alone = {70000, 512, 8, 8, MOE_DTYPE_BF16};
    struct moe_cuda_gating gating;
    struct moe_plan *plan = create_plan(context, &alone, MOE_OP_GATING);
    driver->num_launches = 0;
    assert_int_equal(run_gating(plan, &alone, NULL, NULL), MOE_STATUS_OK);
    memcpy(&gating, driver->launches[0].args, sizeof(gating));
    assert_int_equal(gating.op.num_tokens, alone.num_tokens);
    assert_int_equal(gating.is_late, 0);
    destroy_plan(plan);
    api->context_destroy(context);
    assert_nothing_left();
}
_Static_assert(sizeof(struct moe_cuda_gating) <= FAKE_ARGS_BYTES, "the driver keeps all of it");

int main(void)
{
    static int32_t sms[] = {80, 89, 90, 100, 120};
    const struct CMUnitTest tests[] = {
        {"streams_and_chains sm_80", streams_and_chains, with_fresh_driver, NULL, &sms[0]},
        {"streams_and_chains sm_89", streams_and_chains, with_fresh_driver, NULL, &sms[1]},
        {"streams_and_chains sm_90", streams_and_chains, with_fresh_driver, NULL, &sms[2]},
        {"streams_and_chains sm_100", streams_and_chains, with_fresh_driver, NULL, &sms[3]},
        {"streams_and_chains sm_120", streams_and_chains, with_fresh_driver, NULL, &sms[4]},
        cmocka_unit_test_setup(every_launch_fails_once, with_fresh_driver),
        cmocka_unit_test_setup(late_sorts, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
