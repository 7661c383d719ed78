/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways in which reloading a plugin by hand fails with this C library, each measured; the loader
 * survives or refuses. Where the trap can be sprung without harm, the test springs it first, so
 * that it cannot pass by not being one.
 */
/* ctest labels: tsan */
#define _GNU_SOURCE

#include "loader_fixture.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

static const char *id_of(const struct moe_loader_image *image)
{
    return moe_loader_image_api(image)->kernel_set_id;
}

/* The entry of a plugin opened by hand. */
static const char *id_by_hand(const char *path, const struct moe_host *host)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(handle);
    void *symbol = dlsym(handle, MOE_PLUGIN_INIT_SYMBOL);
    moe_plugin_init_fn *init;
    memcpy(&init, &symbol, sizeof(init));
    return init(host, NULL)->kernel_set_id;
}

/* By hand, the same path gives the old code for as long as the old image is open. */
static void a_new_file_under_the_same_path_is_loaded(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    char next[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "plugin.so", path);
    fixture_path(fixture, "plugin.so.new", next);
    fixture_copy(SMALL_PLUGIN("good_a"), path);
    assert_string_equal(id_by_hand(path, &fixture->host), "good_a");
    fixture_expect_opens(fixture, path);
    struct moe_loader_image *first = fixture->image;
    fixture_copy(SMALL_PLUGIN("good_b"), next);
    assert_int_equal(rename(next, path), 0);
    assert_string_equal(id_by_hand(path, &fixture->host), "good_a"); /* the trap */
    fixture_expect_opens(fixture, path);
    assert_string_equal(id_of(first), "good_a");
    assert_string_equal(id_of(fixture->image), "good_b");
    moe_loader_image_close(fixture->image, 1, NULL);
    moe_loader_image_close(first, 1, NULL);
}

static int memfd_of(const char *path)
{
    size_t num_bytes;
    unsigned char *bytes = fixture_read(path, &num_bytes);
    int descriptor = memfd_create("by-hand", MFD_CLOEXEC);
    assert_true(descriptor >= 0);
    assert_int_equal(write(descriptor, bytes, num_bytes), (ssize_t)num_bytes);
    free(bytes);
    return descriptor;
}

/* By hand, a descriptor number that is used again gives the old code. */
static void memfds_are_not_mistaken_for_each_other(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[64];
    int first_number = memfd_of(SMALL_PLUGIN("good_a"));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", first_number);
    assert_string_equal(id_by_hand(path, &fixture->host), "good_a");
    close(first_number);
    int second_number = memfd_of(SMALL_PLUGIN("good_b"));
    assert_int_equal(second_number, first_number);
    assert_string_equal(id_by_hand(path, &fixture->host), "good_a"); /* the trap */

    /* That number's name is taken in the dynamic linker for good; the loader notices, whatever
     * number it gets. */
    close(second_number);
    fixture->options.flags |= MOE_LOADER_USE_MEMFD;
    static const char *const plugins[] = {SMALL_PLUGIN("good_a"), SMALL_PLUGIN("good_b")};
    static const char *const ids[] = {"good_a", "good_b"};
    for (int i = 0; i < 6; i++) {
        fixture_expect_opens(fixture, plugins[i % 2]);
        assert_string_equal(id_of(fixture->image), ids[i % 2]);
        /* Half of them stay mapped, so their numbers must stay taken. */
        assert_int_equal(moe_loader_image_close(fixture->image, i % 3 == 0, NULL), MOE_STATUS_OK);
    }
}

/* By hand, this is a crash at the next call. */
static void overwriting_the_published_file_changes_nothing(void **state)
{
    struct loader_fixture *fixture = *state;
    char path[FIXTURE_PATH_BYTES];
    fixture_path(fixture, "plugin.so", path);
    fixture_copy(SMALL_PLUGIN("good_a"), path);
    fixture_expect_opens(fixture, path);
    const struct moe_plugin_api *api = moe_loader_image_api(fixture->image);
    fixture_copy(SMALL_PLUGIN("good_b"), path);
    assert_int_equal(api->backend_info(0, NULL, NULL), 1);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(api->backend_info(0, NULL, NULL), 2);
    assert_string_equal(api->status_text(0), "good_a");
    moe_loader_image_close(fixture->image, 1, NULL);
}

/* Equal SONAMEs of plugins do no harm; those of libraries that they bring along do, so they bring
 * none. */
static void soname_twins_are_apart(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    struct moe_loader_image *first = fixture->image;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_b"));
    assert_string_equal(id_of(first), "good_a");
    assert_string_equal(id_of(fixture->image), "good_b");
    moe_loader_image_close(fixture->image, 1, NULL);
    moe_loader_image_close(first, 1, NULL);
    fixture_expect_refusal(fixture, SMALL_PLUGIN("needs_library_1"), MOE_LOADER_STATUS_BAD_FILE,
                           "needs the library libhelper.so");
    fixture_expect_refusal(fixture, SMALL_PLUGIN("needs_library_2"), MOE_LOADER_STATUS_BAD_FILE,
                           "needs the library libhelper.so");
}

/* A unique symbol would make two versions share state; ordinary state is each image's own, also of
 * one file opened twice. */
static void images_share_no_state(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_refusal(fixture, SMALL_PLUGIN("exports_unique"), MOE_LOADER_STATUS_BAD_FILE,
                           "unique symbol unique_state");
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    struct moe_loader_image *first = fixture->image;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    struct moe_loader_image *second = fixture->image;
    assert_ptr_not_equal(moe_loader_image_api(first), moe_loader_image_api(second));
    assert_int_equal(moe_loader_image_api(first)->backend_info(0, NULL, NULL), 1);
    assert_int_equal(moe_loader_image_api(first)->backend_info(0, NULL, NULL), 2);
    assert_int_equal(moe_loader_image_api(second)->backend_info(0, NULL, NULL), 1);
    moe_loader_image_close(first, 1, NULL);
    moe_loader_image_close(second, 1, NULL);
}

struct visitor {
    const struct moe_plugin_api *api;
    int flags[2]; /* inside, may leave: see small_plugin.c */
    int32_t status;
};

static void *stay_inside(void *self)
{
    struct visitor *visitor = self;
    visitor->status = visitor->api->self_test((struct moe_context *)(void *)visitor->flags, NULL);
    return NULL;
}

/* By hand, dlclose under a thread is a crash; closing an image keeps its code unless unloading is
 * asked for. */
static void a_thread_inside_survives_closing(void **state)
{
    struct loader_fixture *fixture = *state;
    fixture_expect_opens(fixture, SMALL_PLUGIN("good_a"));
    struct visitor visitor = {.api = moe_loader_image_api(fixture->image), .status = -1};
    struct timespec pause = {.tv_nsec = 20000000};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stay_inside, &visitor), 0);
    while (__atomic_load_n(&visitor.flags[0], __ATOMIC_SEQ_CST) == 0) {
        nanosleep(&pause, NULL);
    }
    assert_int_equal(moe_loader_image_close(fixture->image, 0, NULL), MOE_STATUS_OK);
    nanosleep(&pause, NULL); /* it wakes up in the closed image's code every millisecond */
    __atomic_store_n(&visitor.flags[1], 1, __ATOMIC_SEQ_CST);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(visitor.status, MOE_STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOADER_TEST(a_new_file_under_the_same_path_is_loaded),
        LOADER_TEST(memfds_are_not_mistaken_for_each_other),
        LOADER_TEST(overwriting_the_published_file_changes_nothing),
        LOADER_TEST(soname_twins_are_apart),
        LOADER_TEST(images_share_no_state),
        LOADER_TEST(a_thread_inside_survives_closing),
    };
    return cmocka_run_group_tests_name("traps", tests, NULL, NULL);
}
