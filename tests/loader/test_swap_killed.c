/* SPDX-License-Identifier: Apache-2.0 */
/* ctest timeout: 180 */
/* A process that is killed while it stages leaves nothing that the next one would load. */
#define _GNU_SOURCE

#include "swap_fixture.h"

#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>

enum { NUM_KILLS = MOE_TEST_SANITIZED ? 6 : 40, MAX_LEFT = 64 };

/* Stages for ever; killed from outside. */
static void stage_until_killed(const struct swap_fixture *f)
{
    struct moe_loader *loader = NULL;
    struct moe_loader_options options = f->options;
    options.transition = NULL;
    options.is_done = NULL;
    struct moe_loader_slot *slot = NULL;
    if (moe_loader_create(&options, &loader, NULL) != MOE_STATUS_OK ||
        moe_loader_slot_open(loader, &f->slot_options, &slot, NULL) != MOE_STATUS_OK) {
        _exit(1);
    }
    const char *paths[] = {PLUGIN_A, PLUGIN_B};
    for (unsigned round = 0;; round++) {
        uint64_t id = 0;
        if (moe_loader_stage(loader, paths[round % 2], NULL, &id, NULL) != MOE_STATUS_OK ||
            moe_loader_park(loader, id, 0, NULL) != MOE_STATUS_OK) {
            _exit(1);
        }
    }
}

/* Names in the shadow folder. */
static int list_left(const char *folder, char names[MAX_LEFT][256])
{
    DIR *entries = opendir(folder);
    int num = 0;
    for (struct dirent *entry = entries != NULL ? readdir(entries) : NULL;
         entry != NULL && num < MAX_LEFT; entry = readdir(entries)) {
        if (entry->d_name[0] != '.') {
            snprintf(names[num++], 256, "%s", entry->d_name);
        }
    }
    if (entries != NULL) {
        closedir(entries);
    }
    return num;
}

static bool is_mapped(const char *name)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[1024];
    bool found = false;
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        found = found || strstr(line, name) != NULL;
    }
    if (maps != NULL) {
        fclose(maps);
    }
    return found;
}

static void killed_at_any_point(void **state)
{
    struct swap_fixture *f = *state;
    f->options.flags = MOE_LOADER_SKIP_TRUST | MOE_LOADER_ALLOW_UNLOAD;
    int num_with_rest = 0;
    for (int i = 0; i < NUM_KILLS; i++) {
        /* Half of the rounds without canary: they spend their time in copying and mapping. */
        f->options.flags ^= MOE_LOADER_SKIP_CANARY;
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            stage_until_killed(f);
        }
        usleep((useconds_t)(1000 + 7919 * i % 97 * (MOE_TEST_SANITIZED ? 8000 : 1000)));
        assert_int_equal(kill(child, SIGKILL), 0);
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status)); /* until then every stage had worked */

        char left[MAX_LEFT][256];
        const int num_left = list_left(f->base.shadow, left);
        num_with_rest += num_left > 0;
        const uint64_t a = swap_open_with_a(f);
        float output[SWAP_TOKENS * SWAP_HIDDEN];
        assert_int_equal(swap_run(f, output), a);
        for (int name = 0; name < num_left; name++) {
            assert_false(is_mapped(left[name]));
        }
        assert_int_equal(fixture_num_entries(f->base.shadow), 0); /* and cleared away */
        moe_loader_worker_close(f->worker);
        moe_loader_destroy(f->loader);
        f->worker = NULL;
        f->loader = NULL;
    }
    printf("%d of %d kills left a file\n", num_with_rest, NUM_KILLS);
}

/* What someone else puts into the folder under a name like ours is not loaded. */
static void files_in_the_folder_are_not_trusted(void **state)
{
    struct swap_fixture *f = *state;
    const uint64_t a = swap_open_with_a(f);
    char name[FIXTURE_PATH_BYTES];
    snprintf(name, sizeof(name), "%s/%s.so", f->base.shadow, swap_info(f, a).sha256);
    fixture_copy(FAULT_PLUGIN("nan"), name);
    const uint64_t b = swap_stage(f, PLUGIN_B);
    swap_verify(f, b);
    assert_false(is_mapped(name));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SWAP_TEST(killed_at_any_point),
        SWAP_TEST(files_in_the_folder_are_not_trusted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
