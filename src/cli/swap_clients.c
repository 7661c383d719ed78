/* SPDX-License-Identifier: Apache-2.0 */
#include "swap_clients.h"

#include "bench_random.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CLIENTS_PER_THREAD = 2 }; /* so that workers find a request when they end one */

/* Asks again as soon as it is answered; one thread at a time runs its request. */
struct moe_swap_client {
    struct moe_swap_session *session;
    struct moe_swap_request request;
    struct moe_bench_random random;
    const struct moe_swap_layer *layer; /* of the request */
    int64_t first_token;
    unsigned char *output;
    struct moe_swap_intervals times;
    int64_t num_requests, num_failed, num_wrong, num_neither, num_unmeasured;
    int64_t num_answered[MOE_SWAP_NUM_PLUGINS];
    char failure[768]; /* the first */
};

static void ask(struct moe_swap_client *client)
{
    struct moe_swap_session *session = client->session;
    const int64_t layer_idx = moe_bench_random_below(&client->random, MOE_SWAP_NUM_LAYERS);
    client->layer = &session->layers[layer_idx];
    const int64_t num_tokens =
        1 + moe_bench_random_below(&client->random, client->layer->problem.max_tokens);
    client->first_token =
        moe_bench_random_below(&client->random, MOE_SWAP_NUM_TOKENS - num_tokens + 1);
    client->request.slot = client->layer->slot;
    client->request.num_tokens = num_tokens;
    client->request.tokens =
        client->layer->tokens + (size_t)client->first_token * client->layer->row_bytes;
    client->request.output = client->output;
    /* What the call leaves unwritten is no answer. */
    memset(client->output, 0xFF, (size_t)num_tokens * client->layer->row_bytes);
}

static int is_answer_of(const struct moe_swap_client *client, int plugin)
{
    return moe_swap_layer_is_answer(client->layer, plugin, client->first_token,
                                    client->request.num_tokens, client->output);
}

static void note_failure(struct moe_swap_client *client, int plugin)
{
    const struct moe_swap_request *request = &client->request;
    if (client->failure[0] != '\0') {
        return;
    }
    const int layer_idx = (int)(client->layer - client->session->layers);
    if (request->status != MOE_STATUS_OK) {
        snprintf(client->failure, sizeof client->failure,
                 "layer %d, %lld tokens from %lld, generation %llu: %s: %s", layer_idx,
                 (long long)request->num_tokens, (long long)client->first_token,
                 (unsigned long long)request->generation, moe_loader_status_name(request->status),
                 request->error.message[0] != '\0' ? request->error.message
                                                   : moe_loader_status_text(request->status));
        return;
    }
    snprintf(client->failure, sizeof client->failure,
             "layer %d, %lld tokens from %lld: generation %llu, which is %s, answered with other "
             "bits than before the load",
             layer_idx, (long long)request->num_tokens, (long long)client->first_token,
             (unsigned long long)request->generation,
             plugin < 0 ? "unknown" : moe_swap_plugin_name(plugin));
}

static void check(struct moe_swap_client *client)
{
    const struct moe_swap_session *session = client->session;
    const uint64_t generation = client->request.generation;
    const int plugin =
        generation < sizeof session->plugins / sizeof session->plugins[0]
            ? atomic_load_explicit(&session->plugins[generation], memory_order_relaxed)
            : -1;
    client->num_requests += 1;
    if (client->request.status != MOE_STATUS_OK) {
        client->num_failed += 1;
        note_failure(client, plugin);
    } else if (plugin >= 0 && is_answer_of(client, plugin)) {
        client->num_answered[plugin] += 1;
    } else {
        client->num_wrong += 1;
        client->num_neither += !is_answer_of(client, 0) && !is_answer_of(client, 1);
        note_failure(client, plugin);
    }
}

int moe_swap_clients_done(void *self, struct moe_swap_request *request)
{
    (void)self;
    struct moe_swap_client *client =
        (struct moe_swap_client *)((char *)request - offsetof(struct moe_swap_client, request));
    check(client);
    if (moe_swap_intervals_add(&client->times, request->queued_ns, request->done_ns) != 0) {
        client->num_unmeasured += 1;
    }
    if (atomic_load_explicit(&client->session->is_over, memory_order_relaxed)) {
        return 0;
    }
    ask(client);
    return 1;
}

int moe_swap_clients_create(struct moe_swap_session *session, struct moe_cli_error *error)
{
    const size_t output_bytes = moe_swap_layers_output_bytes(session->layers);
    session->num_clients = session->num_threads * CLIENTS_PER_THREAD;
    session->clients = calloc((size_t)session->num_clients, sizeof *session->clients);
    if (session->clients == NULL) {
        session->num_clients = 0;
        return moe_cli_fail_memory(error, "making clients");
    }
    for (int i = 0; i < session->num_clients; ++i) {
        struct moe_swap_client *client = &session->clients[i];
        client->session = session;
        client->output = malloc(output_bytes);
        if (client->output == NULL) {
            return moe_cli_fail_memory(error, "making clients");
        }
        MOE_INIT(client->request.error);
        moe_bench_random_init(&client->random, 1, (uint64_t)i);
    }
    return 0;
}

void moe_swap_clients_submit(struct moe_swap_session *session, struct moe_swap_workers *workers)
{
    for (int i = 0; i < session->num_clients; ++i) {
        ask(&session->clients[i]);
        moe_swap_workers_submit(workers, &session->clients[i].request);
    }
}

int moe_swap_clients_collect(struct moe_swap_session *session, struct moe_cli_error *error)
{
    const struct moe_swap_intervals **lists = calloc((size_t)session->num_clients, sizeof *lists);
    if (lists == NULL) {
        return moe_cli_fail_memory(error, "summarizing latencies");
    }
    for (int i = 0; i < session->num_clients; ++i) {
        const struct moe_swap_client *client = &session->clients[i];
        lists[i] = &client->times;
        session->num_requests += client->num_requests;
        session->num_failed += client->num_failed;
        session->num_wrong += client->num_wrong;
        session->num_neither += client->num_neither;
        session->num_unmeasured += client->num_unmeasured;
        for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
            session->num_answered[plugin] += client->num_answered[plugin];
        }
        if (client->failure[0] != '\0') {
            moe_swap_sentences_add(&session->failures, "%s", client->failure);
        }
    }
    const int result =
        moe_swap_latency_summarize(lists, (size_t)session->num_clients, &session->windows,
                                   &session->stagings, session->latency);
    free(lists);
    return result == 0 ? 0 : moe_cli_fail_memory(error, "summarizing latencies");
}

void moe_swap_clients_destroy(struct moe_swap_session *session)
{
    for (int i = 0; i < session->num_clients; ++i) {
        free(session->clients[i].output);
        moe_swap_intervals_finish(&session->clients[i].times);
    }
    free(session->clients);
    session->clients = NULL;
    session->num_clients = 0;
}
