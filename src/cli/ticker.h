/* SPDX-License-Identifier: Apache-2.0 */
/* Progress of actions that cannot report it themselves, because each step is one long call: a
 * thread redraws the line. Without a terminal there is no thread. */
#ifndef MOE_TICKER_H
#define MOE_TICKER_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

#include "terminal.h"

/* Caller-owned, must not move between begin and end. */
struct moe_ticker {
    struct moe_progress progress;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards the members below */
    pthread_cond_t wake;
    int has_thread;
    int is_over;
    int64_t num_done;
    int64_t num_total;
};

/* As moe_progress_begin. A system that has no thread left shows no progress. */
void moe_ticker_begin(struct moe_ticker *ticker, FILE *stream, const char *action,
                      int64_t num_total);
void moe_ticker_set(struct moe_ticker *ticker, int64_t num_done);
/* Stops the thread and clears the line. */
void moe_ticker_end(struct moe_ticker *ticker);

#endif
