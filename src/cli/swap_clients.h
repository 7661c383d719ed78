/* SPDX-License-Identifier: Apache-2.0 */
/* The load of a session: clients that ask about random tokens of random layers, check each answer,
 * and ask again at once. */
#ifndef MOE_SWAP_CLIENTS_H
#define MOE_SWAP_CLIENTS_H

#include "swap_session.h"
#include "swap_workers.h"

/* Fills session->clients, which then must not move. Returns 0, or -1 with a sentence; destroy them
 * either way. */
int moe_swap_clients_create(struct moe_swap_session *session, struct moe_cli_error *error);
void moe_swap_clients_destroy(struct moe_swap_session *session);

/* What the workers of the session call; `self` is not used. Asks no more once session->is_over. */
int moe_swap_clients_done(void *self, struct moe_swap_request *request);

/* The first request of each. */
void moe_swap_clients_submit(struct moe_swap_session *session, struct moe_swap_workers *workers);

/* Adds up what they saw into the session's results; when the workers are gone. Returns 0, or -1
 * with a sentence. */
int moe_swap_clients_collect(struct moe_swap_session *session, struct moe_cli_error *error);

#endif
