/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "ticker.h"

#include <time.h>

enum { tick_ns = 250 * 1000 * 1000, second_ns = 1000 * 1000 * 1000 };

static void *tick(void *self)
{
    struct moe_ticker *ticker = self;
    pthread_mutex_lock(&ticker->mutex);
    while (!ticker->is_over) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += tick_ns;
        if (until.tv_nsec >= second_ns) {
            until.tv_nsec -= second_ns;
            until.tv_sec += 1;
        }
        pthread_cond_timedwait(&ticker->wake, &ticker->mutex, &until);
        if (!ticker->is_over) {
            moe_progress_update(&ticker->progress, ticker->num_done, ticker->num_total);
        }
    }
    pthread_mutex_unlock(&ticker->mutex);
    return NULL;
}

void moe_ticker_begin(struct moe_ticker *ticker, FILE *stream, const char *action,
                      int64_t num_total)
{
    moe_progress_begin(&ticker->progress, stream, action);
    pthread_mutex_init(&ticker->mutex, NULL);
    pthread_cond_init(&ticker->wake, NULL);
    ticker->is_over = 0;
    ticker->num_done = 0;
    ticker->num_total = num_total;
    ticker->has_thread =
        ticker->progress.stream != NULL && pthread_create(&ticker->thread, NULL, tick, ticker) == 0;
}

void moe_ticker_set(struct moe_ticker *ticker, int64_t num_done)
{
    pthread_mutex_lock(&ticker->mutex);
    ticker->num_done = num_done;
    pthread_mutex_unlock(&ticker->mutex);
}

void moe_ticker_end(struct moe_ticker *ticker)
{
    if (ticker->has_thread) {
        pthread_mutex_lock(&ticker->mutex);
        ticker->is_over = 1;
        pthread_cond_signal(&ticker->wake);
        pthread_mutex_unlock(&ticker->mutex);
        pthread_join(ticker->thread, NULL);
    }
    moe_progress_end(&ticker->progress);
    pthread_cond_destroy(&ticker->wake);
    pthread_mutex_destroy(&ticker->mutex);
}
