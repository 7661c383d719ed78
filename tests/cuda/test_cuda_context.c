/* SPDX-License-Identifier: Apache-2.0 */
/* Creating CUDA contexts: what every failure of every call of the driver says and leaves behind. */
#include "cuda_fixture.h"

enum { MAX_FAIL_AT = 2000 };

/* Runs before the fake driver is opened: where there is none at all. */
static void no_driver(void **state)
{
    (void)state;
    struct moe_context *context;
    struct moe_error error;
    MOE_INIT(error);
    void *real = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (real != NULL) {
        dlclose(real);
        skip();
    }
    assert_int_equal(create(&context, &error), MOE_STATUS_UNAVAILABLE);
    assert_non_null(strstr(error.message, "libcuda.so.1"));
    assert_int_equal(allocator.num_live, 0);
    assert_int_equal(open_driver(), 0);
}

static void context_and_back(void **state)
{
    (void)state;
    struct moe_context *context = create_context();
    struct moe_device device;
    MOE_INIT(device);
    assert_int_equal(api->context_device(context, &device, NULL), MOE_STATUS_OK);
    assert_int_equal(device.sm, 90);
    assert_int_equal(device.num_sms, 132);
    assert_int_equal(device.smem_bytes, SMEM_LIMIT);
    assert_int_equal(device.driver_version, 13000);
    assert_int_equal(driver->num_pushed, 1);
    assert_int_equal(driver->capture_mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
    assert_true(driver->num_libraries > 0);
    api->context_destroy(context);
    assert_nothing_left();
}

static void old_drivers(void **state)
{
    (void)state;
    struct moe_backend_info info;
    driver->version = 12040;
    expect_refusal(MOE_STATUS_DRIVER_TOO_OLD, "supports CUDA 12.4; this build needs 13.0");
    MOE_INIT(info);
    assert_int_equal(api->backend_info(1, &info, NULL), MOE_STATUS_OK);
    assert_int_equal(info.backend, MOE_BACKEND_CUDA);
    assert_int_equal(info.min_driver, 13000);
    assert_int_equal(info.available, 0);
    assert_non_null(strstr(info.reason, "12.4"));
    driver->version = 12000;
    expect_refusal(MOE_STATUS_DRIVER_TOO_OLD, "cuFuncLoad of version 12040 (an older one only)");
    reset_driver();
    driver->missing = "cuLaunchKernelEx";
    expect_refusal(MOE_STATUS_DRIVER_TOO_OLD, "cuLaunchKernelEx of version 11060 (not at all)");
}

static void devices_that_cannot(void **state)
{
    (void)state;
    driver->num_devices = 0;
    expect_refusal(MOE_STATUS_NO_DEVICE, "finds no device");
    reset_driver();
    driver->failing = "cuLibraryLoadData";
    driver->fail_result = CUDA_ERROR_NO_BINARY_FOR_GPU;
    expect_refusal(MOE_STATUS_UNSUPPORTED, "209");
    reset_driver();
    driver->missing_kernel = "moe_PRE_REORDER_CUDA_ROWS_256";
    expect_refusal(MOE_STATUS_UNSUPPORTED, "moe_PRE_REORDER_CUDA_ROWS_256 for sm_90");
    reset_driver();
    driver->failing = "cuInit";
    driver->fail_result = CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    expect_refusal(MOE_STATUS_UNAVAILABLE, "cannot be initialized (803)");
}

/* Without Hopper's clusters, the rest of the kernels is loaded. */
static void older_device(void **state)
{
    (void)state;
    driver->sm = 80;
    driver->missing_kernel = "moe_GEMM_SM90_GEMM_64_256_64_8_12_5";
    api->context_destroy(create_context());
    assert_nothing_left();
}

/* The n-th call fails, for every n, until nothing does: a status, a sentence, nothing left. */
static void every_call_fails_once(void **state)
{
    const int32_t *result = *state;
    int64_t fail_at = 1;
    for (;; fail_at++) {
        struct moe_context *context;
        struct moe_error error;
        MOE_INIT(error);
        assert_true(fail_at < MAX_FAIL_AT);
        reset_driver();
        driver->fail_at = fail_at;
        driver->fail_result = *result;
        const int32_t status = create(&context, &error);
        const int64_t num_calls = driver->num_calls;
        if (status != MOE_STATUS_OK) {
            assert_null(context);
            assert_int_equal(error.status, status);
            assert_true(strlen(error.message) > 10);
            if (*result == CUDA_ERROR_OUT_OF_MEMORY) {
                assert_int_equal(status, MOE_STATUS_OUT_OF_MEMORY);
            }
            if (*result == CUDA_ERROR_ECC_UNCORRECTABLE) {
                assert_int_equal(status, MOE_STATUS_DEVICE_LOST);
            }
        }
        driver->fail_at = 0;
        api->context_destroy(context);
        assert_nothing_left();
        if (status == MOE_STATUS_OK && num_calls < fail_at) {
            break;
        }
    }
    assert_true(fail_at > 60); /* three calls per kernel alone */
}

/* The same for host memory. */
static void every_allocation_fails_once(void **state)
{
    (void)state;
    int32_t status = MOE_STATUS_OUT_OF_MEMORY;
    for (int64_t fail_at = 1; status != MOE_STATUS_OK; fail_at++) {
        struct moe_context *context;
        struct moe_error error;
        MOE_INIT(error);
        allocator.fail_at = allocator.num_calls + fail_at;
        status = create(&context, &error);
        if (status != MOE_STATUS_OK) {
            assert_int_equal(status, MOE_STATUS_OUT_OF_MEMORY);
        }
        api->context_destroy(context);
        assert_nothing_left();
    }
    allocator.fail_at = 0;
}

int main(void)
{
    static int32_t out_of_memory = CUDA_ERROR_OUT_OF_MEMORY;
    static int32_t lost = CUDA_ERROR_ECC_UNCORRECTABLE;
    static int32_t plain = CUDA_ERROR_INVALID_VALUE;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_driver),
        cmocka_unit_test_setup(context_and_back, with_fresh_driver),
        cmocka_unit_test_setup(old_drivers, with_fresh_driver),
        cmocka_unit_test_setup(devices_that_cannot, with_fresh_driver),
        cmocka_unit_test_setup(older_device, with_fresh_driver),
        {"every_call_fails_once out_of_memory", every_call_fails_once, with_fresh_driver, NULL,
         &out_of_memory},
        {"every_call_fails_once lost", every_call_fails_once, with_fresh_driver, NULL, &lost},
        {"every_call_fails_once plain", every_call_fails_once, with_fresh_driver, NULL, &plain},
        cmocka_unit_test_setup(every_allocation_fails_once, with_fresh_driver),
    };
    return open_plugin() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
