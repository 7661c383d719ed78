/* SPDX-License-Identifier: Apache-2.0 */
/* moectl's own side of a GPU (src/cli/gpu.h) on the driver that plays one: bytes arrive, graphs
 * replay, and whichever call fails, there is a sentence and nothing stays behind. */
#include "cuda_fixture.h"

#include "gpu.h"
#include "gpu_weights.h"

#include <stdlib.h>

enum { NUM_BYTES = 4096, MAX_CALLS = 200 };

static unsigned char sent[NUM_BYTES], received[NUM_BYTES];

struct copies {
    struct moe_gpu *gpu;
    unsigned char *memory; /* [2, NUM_BYTES] */
};

/* The second half becomes a copy of the first, and then the first all 0x01020304. */
static int record(void *self, struct moe_cli_error *error)
{
    const struct copies *copies = self;
    return moe_gpu_copy(copies->gpu, copies->memory + NUM_BYTES, copies->memory, NUM_BYTES,
                        error) != 0
               ? -1
               : moe_gpu_set(copies->gpu, copies->memory, 0x01020304u, NUM_BYTES, error);
}

/* Everything that the interface offers. Returns 0, or -1 with a sentence. */
static int use_everything(struct moe_cli_error *error)
{
    struct copies copies = {.gpu = NULL};
    struct moe_gpu_graph *graph = NULL;
    void *memory = NULL;
    uint64_t available = 0;
    double seconds = -1.0, hz = 0.0;
    int status = -1;
    if (moe_gpu_open(0, &copies.gpu, error) != 0) {
        return -1;
    }
    if (moe_gpu_available(copies.gpu, &available, error) != 0 ||
        moe_gpu_clock(copies.gpu, &hz, error) != 0 ||
        moe_gpu_alloc(copies.gpu, 2 * NUM_BYTES, "a test", &memory, error) != 0 ||
        moe_gpu_upload(copies.gpu, memory, sent, NUM_BYTES, error) != 0) {
        goto done;
    }
    copies.memory = memory;
    if (moe_gpu_capture(copies.gpu, record, &copies, &graph, error) != 0) {
        goto done;
    }
    assert_memory_equal(memory, sent, NUM_BYTES); /* nothing ran yet */
    if (moe_gpu_replay(copies.gpu, graph, &seconds, error) != 0 ||
        moe_gpu_download(copies.gpu, received, copies.memory + NUM_BYTES, NUM_BYTES, error) != 0) {
        goto done;
    }
    status = 0;
done:
    moe_gpu_graph_destroy(copies.gpu, graph);
    moe_gpu_free(copies.gpu, memory);
    moe_gpu_close(copies.gpu);
    if (status == 0) {
        assert_true(available > 0 && hz > 1e9 && seconds > 0.0);
    }
    return status;
}

static void assert_clean(void)
{
    assert_int_equal(driver->num_retained, 0);
    assert_int_equal(driver->num_blocks, 0);
    assert_int_equal(driver->num_handles, 0);
    assert_int_equal(driver->num_pushed, 1);
    if (driver->num_misused != 0) {
        fail_msg("%s was misused", driver->misused);
    }
}

static void test_bytes_arrive(void **state)
{
    (void)state;
    struct moe_cli_error error = {.message = ""};
    for (int i = 0; i < NUM_BYTES; i++) {
        sent[i] = (unsigned char)(i * 7 + i / 256);
    }
    if (use_everything(&error) != 0) {
        fail_msg("%s", error.message);
    }
    assert_memory_equal(received, sent, NUM_BYTES);
    assert_clean();
}

static void test_every_call_can_fail(void **state)
{
    (void)state;
    int num_failures = 0;
    for (int64_t n = 1; n < MAX_CALLS; n++) {
        struct moe_cli_error error = {.message = ""};
        reset_driver();
        driver->fail_at = n;
        driver->fail_result = CUDA_ERROR_OUT_OF_MEMORY;
        const int status = use_everything(&error);
        if (driver->num_calls < n) {
            break;
        }
        if (status != 0) {
            num_failures++;
            assert_non_null(strstr(error.message, "CUDA_ERROR_OUT_OF_MEMORY"));
        }
        assert_clean();
    }
    assert_true(num_failures > 15);
}

static void test_missing_function(void **state)
{
    (void)state;
    struct moe_cli_error error = {.message = ""};
    driver->version = 11000; /* cuGraphInstantiateWithFlags is of 11.4 */
    assert_int_equal(use_everything(&error), -1);
    assert_non_null(strstr(error.message, "cuGraphInstantiateWithFlags"));
    assert_clean();
}

/* Gate and up share a tensor, and a table points into another: relations and bytes stay. */
static void test_weights_keep_their_layout(void **state)
{
    (void)state;
    enum { EXPERTS = 3, INTER = 4, HIDDEN = 8 };
    static uint16_t fused[EXPERTS][2 * INTER][HIDDEN], down[EXPERTS][HIDDEN][INTER];
    struct moe_cli_error error = {.message = ""};
    struct moe_problem problem;
    struct moe_weights_desc desc;
    struct moe_gpu *gpu = NULL;
    struct moe_gpu_weights weights;
    const void *const table[EXPERTS] = {down[2], down[0], down[1]};
    for (size_t i = 0; i < sizeof(fused) / 2; i++) {
        (&fused[0][0][0])[i] = (uint16_t)(i * 31);
    }
    for (size_t i = 0; i < sizeof(down) / 2; i++) {
        (&down[0][0][0])[i] = (uint16_t)(i * 17 + 5);
    }
    MOE_INIT(problem);
    MOE_INIT(desc);
    problem.num_experts = EXPERTS;
    problem.hidden = HIDDEN;
    problem.inter = INTER;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;
    desc.gate = (struct moe_operand){fused, NULL, 2 * INTER * HIDDEN, HIDDEN, 1, 0, 0};
    desc.up = (struct moe_operand){fused[0][INTER], NULL, 2 * INTER * HIDDEN, HIDDEN, 1, 0, 0};
    desc.down = (struct moe_operand){NULL, table, 0, INTER, 1, MOE_DTYPE_BF16, 0};
    assert_int_equal(moe_gpu_open(0, &gpu, &error), 0);
    assert_int_equal(moe_gpu_weights_init(&weights, gpu, &problem, &desc, &error), 0);
    const char *gate = weights.desc.gate.base, *up = weights.desc.up.base;
    assert_int_equal(up - gate, INTER * HIDDEN * 2);
    assert_int_equal((uintptr_t)gate % 256, 0);
    assert_memory_equal(gate, fused, sizeof(fused)); /* memory of this device is ordinary memory */
    assert_int_equal(weights.desc.gate.expert_stride, desc.gate.expert_stride);
    for (int e = 0; e < EXPERTS; e++) {
        assert_memory_equal(weights.desc.down.table[e], table[e], sizeof(down[0]));
        assert_int_equal((uintptr_t)weights.desc.down.table[e] % 256, 0);
    }
    assert_null(weights.desc.router.base);
    moe_gpu_weights_finish(&weights);
    problem.down.dtype = MOE_DTYPE_MXFP4;
    desc.down.dtype = 0;
    assert_int_equal(moe_gpu_weights_init(&weights, gpu, &problem, &desc, &error), -1);
    assert_non_null(strstr(error.message, "mxfp4"));
    moe_gpu_weights_finish(&weights);
    moe_gpu_close(gpu);
    assert_clean();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_bytes_arrive, with_fresh_driver),
        cmocka_unit_test_setup(test_every_call_can_fail, with_fresh_driver),
        cmocka_unit_test_setup(test_missing_function, with_fresh_driver),
        cmocka_unit_test_setup(test_weights_keep_their_layout, with_fresh_driver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
