/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "bench_team.h"

#include "terminal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct team_member {
    struct moe_bench_team *team;
    pthread_t handle;
    int thread_idx;
};

struct moe_bench_team {
    int num_threads;
    int num_started;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t work;
    pthread_cond_t done;
    unsigned long num_runs; /* grows with each run */
    int num_running;
    int is_ending;
    moe_bench_team_fn *function;
    void *self;
    struct team_member members[];
};

static void *serve(void *self)
{
    const struct team_member *member = self;
    struct moe_bench_team *team = member->team;
    unsigned long num_seen = 0;
    pthread_mutex_lock(&team->mutex);
    for (;;) {
        while (team->num_runs == num_seen && !team->is_ending) {
            pthread_cond_wait(&team->work, &team->mutex);
        }
        if (team->is_ending) {
            break;
        }
        num_seen = team->num_runs;
        moe_bench_team_fn *function = team->function;
        void *function_self = team->self;
        pthread_mutex_unlock(&team->mutex);
        function(function_self, member->thread_idx, team->num_threads);
        pthread_mutex_lock(&team->mutex);
        team->num_running -= 1;
        pthread_cond_signal(&team->done);
    }
    pthread_mutex_unlock(&team->mutex);
    return NULL;
}

struct moe_bench_team *moe_bench_team_create(int num_threads, struct moe_cli_error *error)
{
    struct moe_bench_team *team =
        calloc(1, sizeof *team + (size_t)num_threads * sizeof team->members[0]);
    if (team == NULL) {
        (void)moe_cli_fail_memory(error, "starting threads");
        return NULL;
    }
    team->num_threads = num_threads;
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->work, NULL);
    pthread_cond_init(&team->done, NULL);
    for (int i = 1; i < num_threads; ++i) {
        struct team_member *member = &team->members[i];
        member->team = team;
        member->thread_idx = i;
        const int code = pthread_create(&member->handle, NULL, serve, member);
        if (code != 0) {
            moe_cli_error_set(error, "thread %d of %d could not be started: %s", i + 1, num_threads,
                              strerror(code));
            moe_bench_team_destroy(team);
            return NULL;
        }
        team->num_started = i;
    }
    return team;
}

void moe_bench_team_destroy(struct moe_bench_team *team)
{
    if (team == NULL) {
        return;
    }
    pthread_mutex_lock(&team->mutex);
    team->is_ending = 1;
    pthread_cond_broadcast(&team->work);
    pthread_mutex_unlock(&team->mutex);
    for (int i = 1; i <= team->num_started; ++i) {
        pthread_join(team->members[i].handle, NULL);
    }
    pthread_cond_destroy(&team->done);
    pthread_cond_destroy(&team->work);
    pthread_mutex_destroy(&team->mutex);
    free(team);
}

int moe_bench_team_num_threads(const struct moe_bench_team *team)
{
    return team->num_threads;
}

double moe_bench_team_run(struct moe_bench_team *team, moe_bench_team_fn *function, void *self)
{
    const double start_s = moe_terminal_now_s();
    pthread_mutex_lock(&team->mutex);
    team->function = function;
    team->self = self;
    team->num_running = team->num_started;
    team->num_runs += 1;
    pthread_cond_broadcast(&team->work);
    pthread_mutex_unlock(&team->mutex);
    function(self, 0, team->num_threads);
    pthread_mutex_lock(&team->mutex);
    while (team->num_running > 0) {
        pthread_cond_wait(&team->done, &team->mutex);
    }
    pthread_mutex_unlock(&team->mutex);
    return moe_terminal_now_s() - start_s;
}
