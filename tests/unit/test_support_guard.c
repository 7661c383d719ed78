/* SPDX-License-Identifier: Apache-2.0 */
/* Guarded buffers notice a stray byte on either side, and fault where they promise to. */
#define _GNU_SOURCE
#include "support_guard.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void test_intact_after_full_write(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 63, 64, 4095, 4096, 4097, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct support_guard guard;
        support_guard_init(&guard, sizes[i], NULL);
        assert_non_null(guard.data);
        assert_int_equal((uintptr_t)guard.data % 64, 0);
        assert_true(support_guard_is_poison(&guard, 0, sizes[i]));
        memset(guard.data, 0, sizes[i]);
        assert_guard_intact(&guard);
        assert_true(sizes[i] == 0 || !support_guard_is_poison(&guard, 0, sizes[i]));
        support_guard_poison(&guard);
        assert_true(support_guard_is_poison(&guard, 0, sizes[i]));
        support_guard_finish(&guard);
    }
}

static void test_every_guarded_byte(void **state)
{
    (void)state;
    struct support_guard guard;
    ptrdiff_t found;
    support_guard_init(&guard, 100, NULL);
    for (ptrdiff_t at = -SUPPORT_GUARD_BYTES; at < 100 + SUPPORT_GUARD_BYTES; at++) {
        if (at >= 0 && at < 100) {
            continue;
        }
        guard.data[at] ^= 1;
        found = 0;
        assert_false(support_guard_check(&guard, &found));
        assert_int_equal(found, at);
        guard.data[at] ^= 1;
    }
    assert_true(support_guard_check(&guard, NULL));
    guard.data[-3] ^= 0x40;
    guard.data[101] ^= 0x40;
    assert_false(support_guard_check(&guard, &found));
    assert_int_equal(found, -3);
    support_guard_finish(&guard);
}

static void test_poison_is_nan(void **state)
{
    (void)state;
    struct support_guard guard;
    support_guard_init(&guard, 8, NULL);
    float single;
    double full;
    memcpy(&single, guard.data, sizeof single);
    memcpy(&full, guard.data, sizeof full);
    assert_true(isnan(single) && isnan(full));
    support_guard_finish(&guard);
}

static void test_alignment(void **state)
{
    (void)state;
    const size_t alignments[] = {1, 16, 256, 4096};
    const size_t misalignments[] = {0, 1, 2, 6};
    for (size_t i = 0; i < 16; i++) {
        for (int at_page = 0; at_page < 2; at_page++) {
            size_t alignment = alignments[i / 4];
            struct support_guard_options options = {.alignment = alignment,
                                                    .misalignment = misalignments[i % 4],
                                                    .poison = SUPPORT_POISON_INT,
                                                    .end_at_page = at_page != 0};
            struct support_guard guard;
            support_guard_init(&guard, 1000, &options);
            assert_int_equal((uintptr_t)guard.data % alignment, misalignments[i % 4] % alignment);
            assert_int_equal(guard.data[999], 0xCB);
            assert_guard_intact(&guard);
            guard.data[-1] ^= 1;
            assert_false(support_guard_check(&guard, NULL));
            support_guard_finish(&guard);
        }
    }
}

/* Whether reading data[offset] ends a child process. */
static bool read_faults(const struct support_guard *guard, size_t offset)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* neither cmocka nor a sanitizer reports the wanted fault */
        volatile unsigned char byte = guard->data[offset];
        (void)byte;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_read_past_end_faults(void **state)
{
    (void)state;
    const size_t sizes[] = {1, 37, 4096, 5000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct support_guard_options options = {.alignment = 1, .end_at_page = true};
        struct support_guard guard;
        support_guard_init(&guard, sizes[i], &options);
        assert_false(read_faults(&guard, sizes[i] - 1));
        assert_true(read_faults(&guard, sizes[i]));
        support_guard_finish(&guard);
    }
}

static void test_finish_twice(void **state)
{
    (void)state;
    struct support_guard guard;
    support_guard_init(&guard, 10, NULL);
    support_guard_finish(&guard);
    assert_null(guard.data);
    support_guard_finish(&guard);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_intact_after_full_write), cmocka_unit_test(test_every_guarded_byte),
        cmocka_unit_test(test_poison_is_nan),           cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_read_past_end_faults),    cmocka_unit_test(test_finish_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
