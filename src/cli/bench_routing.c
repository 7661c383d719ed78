/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_routing.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char zipf_prefix[] = "zipf:";

int moe_bench_routing_parse(const char *text, struct moe_bench_routing *routing,
                            struct moe_cli_error *error)
{
    if (strcmp(text, "uniform") == 0) {
        routing->kind = MOE_BENCH_ROUTING_UNIFORM;
        return 0;
    }
    if (strcmp(text, "hot") == 0) {
        routing->kind = MOE_BENCH_ROUTING_HOT;
        return 0;
    }
    if (strncmp(text, zipf_prefix, strlen(zipf_prefix)) == 0) {
        const char *digits = text + strlen(zipf_prefix);
        char *end = NULL;
        routing->kind = MOE_BENCH_ROUTING_ZIPF;
        routing->exponent = strtod(digits, &end);
        if (end != digits && *end == '\0' && routing->exponent >= 0.0 &&
            routing->exponent <= 10.0) {
            return 0;
        }
        return MOE_CLI_FAIL(error, "--routing: the exponent in '%s' is not a number from 0 to 10",
                            text);
    }
    return MOE_CLI_FAIL(error, "--routing: '%s' is not one of uniform, zipf:EXPONENT, hot", text);
}

int moe_bench_routing_check(const struct moe_bench_routing *routing, int64_t num_tokens,
                            int64_t top_k, int64_t num_experts, struct moe_cli_error *error)
{
    if (routing->num_active == 0 || num_tokens == 0) {
        return 0;
    }
    const int64_t num_routes = num_tokens * top_k;
    const int64_t most = num_routes < num_experts ? num_routes : num_experts;
    if (routing->num_active < top_k || routing->num_active > most) {
        return MOE_CLI_FAIL(error,
                            "--active %" PRId64 ": %" PRId64 " token%s with top_k %" PRId64
                            " of %" PRId64 " experts can reach %" PRId64 " to %" PRId64 " experts",
                            routing->num_active, num_tokens, num_tokens == 1 ? "" : "s", top_k,
                            num_experts, top_k, most);
    }
    return 0;
}

/* Scratch of one draw. */
struct draw {
    const struct moe_bench_routing *routing;
    struct moe_bench_random random;
    int64_t top_k;
    int64_t num_experts;
    int32_t *order; /* [num_experts] a permutation of the experts */
    double *keys;   /* [num_experts] */
};

/* Moves `num_chosen` experts, each equally likely, to the front of `order`, in random order. */
static void shuffle_front(struct draw *draw, int64_t first, int64_t num_chosen)
{
    for (int64_t i = first; i < first + num_chosen; ++i) {
        const int64_t other = i + moe_bench_random_below(&draw->random, draw->num_experts - i);
        const int32_t expert = draw->order[i];
        draw->order[i] = draw->order[other];
        draw->order[other] = expert;
    }
}

/* top_k experts without replacement, expert i with weight (i + 1)^-exponent: the smallest of
 * exponential variates with these rates. order maps ranks to experts. */
static void draw_zipf(struct draw *draw, int32_t *ids)
{
    for (int64_t rank = 0; rank < draw->num_experts; ++rank) {
        draw->keys[rank] = -log(moe_bench_random_unit(&draw->random)) *
                           pow((double)(rank + 1), draw->routing->exponent);
    }
    for (int64_t slot = 0; slot < draw->top_k; ++slot) {
        int64_t best = 0;
        for (int64_t rank = 1; rank < draw->num_experts; ++rank) {
            if (draw->keys[rank] < draw->keys[best]) {
                best = rank;
            }
        }
        ids[slot] = draw->order[best];
        draw->keys[best] = INFINITY;
    }
}

static void draw_uniform(struct draw *draw, int32_t *ids)
{
    shuffle_front(draw, 0, draw->top_k);
    memcpy(ids, draw->order, (size_t)draw->top_k * sizeof *ids);
}

/* order[0] is the hot expert of the set, and stays where it is. */
static void draw_hot(struct draw *draw, int32_t *ids)
{
    shuffle_front(draw, 1, draw->top_k - 1);
    memcpy(ids, draw->order, (size_t)draw->top_k * sizeof *ids);
}

/* One set. With a fixed number of active experts those are dealt like cards: distinct within a
 * token because top_k is not larger, and all of them are used because there are enough routes. */
static void draw_ids(struct draw *draw, int64_t num_tokens, int32_t *ids)
{
    const int64_t num_active = draw->routing->num_active;
    shuffle_front(draw, 0, draw->num_experts);
    for (int64_t token = 0; token < num_tokens; ++token, ids += draw->top_k) {
        if (num_active > 0) {
            for (int64_t slot = 0; slot < draw->top_k; ++slot) {
                ids[slot] = draw->order[(token * draw->top_k + slot) % num_active];
            }
        } else if (draw->routing->kind == MOE_BENCH_ROUTING_UNIFORM) {
            draw_uniform(draw, ids);
        } else if (draw->routing->kind == MOE_BENCH_ROUTING_ZIPF) {
            draw_zipf(draw, ids);
        } else {
            draw_hot(draw, ids);
        }
    }
}

static void draw_weights(struct draw *draw, int64_t num_tokens, float *weights)
{
    for (int64_t token = 0; token < num_tokens; ++token, weights += draw->top_k) {
        double total = 0.0;
        for (int64_t slot = 0; slot < draw->top_k; ++slot) {
            const double weight = moe_bench_random_unit(&draw->random);
            weights[slot] = (float)weight;
            total += weight;
        }
        for (int64_t slot = 0; slot < draw->top_k; ++slot) {
            weights[slot] = (float)(weights[slot] / total);
        }
    }
}

/* Sorts the routes of one set by expert. Returns the number of experts that have a route. */
static int64_t sort_routes(struct moe_bench_routes *routes, int64_t set)
{
    const int32_t *ids = routes->topk_ids + set * routes->num_routes;
    const float *weights = routes->topk_weights + set * routes->num_routes;
    int32_t *src2dst = routes->src2dst + set * routes->num_routes;
    float *row_weights = routes->row_weights + set * routes->num_routes;
    int64_t *ends = routes->seg_indptr + set * (routes->num_experts + 1);
    int64_t num_active = 0;

    for (int64_t route = 0; route < routes->num_routes; ++route) {
        ends[ids[route] + 1] += 1;
    }
    for (int64_t expert = 0; expert < routes->num_experts; ++expert) {
        num_active += ends[expert + 1] > 0;
        ends[expert + 1] += ends[expert];
    }
    /* From the last route to the first, each expert's rows are handed out from its end downwards;
     * that leaves the starts. */
    int64_t *next = ends + 1;
    for (int64_t route = routes->num_routes - 1; route >= 0; --route) {
        const int64_t row = --next[ids[route]];
        src2dst[route] = (int32_t)row;
        row_weights[row] = weights[route];
    }
    memmove(ends, ends + 1, (size_t)routes->num_experts * sizeof *ends);
    ends[routes->num_experts] = routes->num_routes;
    return num_active;
}

static int allocate(struct moe_bench_routes *routes)
{
    const size_t num_routes = (size_t)(routes->num_sets * routes->num_routes) + 1;
    routes->topk_ids = calloc(num_routes, sizeof *routes->topk_ids);
    routes->topk_weights = calloc(num_routes, sizeof *routes->topk_weights);
    routes->src2dst = calloc(num_routes, sizeof *routes->src2dst);
    routes->row_weights = calloc(num_routes, sizeof *routes->row_weights);
    routes->seg_indptr =
        calloc((size_t)(routes->num_sets * (routes->num_experts + 1)), sizeof *routes->seg_indptr);
    return routes->topk_ids != NULL && routes->topk_weights != NULL && routes->src2dst != NULL &&
                   routes->row_weights != NULL && routes->seg_indptr != NULL
               ? 0
               : -1;
}

int moe_bench_routes_init(struct moe_bench_routes *routes, const struct moe_bench_routing *routing,
                          int64_t num_sets, int64_t num_tokens, int64_t top_k, int64_t num_experts,
                          uint64_t seed, struct moe_cli_error *error)
{
    *routes = (struct moe_bench_routes){.num_sets = num_sets,
                                        .num_tokens = num_tokens,
                                        .num_routes = num_tokens * top_k,
                                        .num_experts = num_experts};
    struct draw draw = {.routing = routing, .top_k = top_k, .num_experts = num_experts};
    draw.order = calloc((size_t)num_experts, sizeof *draw.order);
    draw.keys = calloc((size_t)num_experts, sizeof *draw.keys);
    int status = 0;
    if (draw.order == NULL || draw.keys == NULL || allocate(routes) != 0) {
        status = moe_cli_fail_memory(error, "drawing routes");
        goto done;
    }
    for (int64_t expert = 0; expert < num_experts; ++expert) {
        draw.order[expert] = (int32_t)expert;
    }
    moe_bench_random_init(&draw.random, seed, (uint64_t)num_tokens);
    double num_active = 0.0;
    for (int64_t set = 0; set < num_sets; ++set) {
        draw_ids(&draw, num_tokens, routes->topk_ids + set * routes->num_routes);
        draw_weights(&draw, num_tokens, routes->topk_weights + set * routes->num_routes);
        num_active += (double)sort_routes(routes, set);
    }
    routes->mean_active = num_active / (double)num_sets;
done:
    free(draw.keys);
    free(draw.order);
    if (status != 0) {
        moe_bench_routes_finish(routes);
    }
    return status;
}

/* A copy of an array of the heap in the memory of a GPU; NULL with a sentence. */
static void *send(const struct moe_bench_place *place, const void *array, uint64_t num_bytes,
                  struct moe_cli_error *error)
{
    void *sent = NULL;
    if (moe_gpu_alloc(place->gpu, num_bytes, "routes", &sent, error) == 0 &&
        moe_gpu_upload(place->gpu, sent, array, num_bytes, error) == 0) {
        return sent;
    }
    moe_gpu_free(place->gpu, sent);
    return NULL;
}

int moe_bench_routes_move(struct moe_bench_routes *routes, const struct moe_bench_place *place,
                          struct moe_cli_error *error)
{
    if (place->gpu == NULL) {
        return 0;
    }
    const uint64_t num_routes = (uint64_t)(routes->num_sets * routes->num_routes);
    const uint64_t num_ends = (uint64_t)(routes->num_sets * (routes->num_experts + 1));
    struct moe_bench_routes moved = *routes;
    moved.gpu = place->gpu;
    moved.topk_ids = send(place, routes->topk_ids, num_routes * sizeof *moved.topk_ids, error);
    moved.topk_weights =
        send(place, routes->topk_weights, num_routes * sizeof *moved.topk_weights, error);
    moved.src2dst = send(place, routes->src2dst, num_routes * sizeof *moved.src2dst, error);
    moved.row_weights =
        send(place, routes->row_weights, num_routes * sizeof *moved.row_weights, error);
    moved.seg_indptr = send(place, routes->seg_indptr, num_ends * sizeof *moved.seg_indptr, error);
    if (moved.topk_ids == NULL || moved.topk_weights == NULL || moved.src2dst == NULL ||
        moved.row_weights == NULL || moved.seg_indptr == NULL) {
        moe_bench_routes_finish(&moved);
        return -1;
    }
    moe_bench_routes_finish(routes);
    *routes = moved;
    return 0;
}

void moe_bench_routes_finish(struct moe_bench_routes *routes)
{
    void *arrays[] = {routes->seg_indptr, routes->row_weights, routes->src2dst,
                      routes->topk_weights, routes->topk_ids};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; ++i) {
        if (routes->gpu != NULL) {
            moe_gpu_free(routes->gpu, arrays[i]);
        } else {
            free(arrays[i]);
        }
    }
    memset(routes, 0, sizeof *routes);
}
