/* SPDX-License-Identifier: Apache-2.0 */
#include "dispatch.h"

#include "heuristic.h"
#include "rules.h"
#include "status.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A rule that matches device and problem, and which of its buckets were skipped. */
struct candidate {
    const struct moe_rule *rule;
    bool *skipped; /* [rule->num_buckets] */
};

/* The making of one table. */
struct making {
    const struct moe_device *device;
    const struct moe_problem *problem;
    uint64_t ops;
    bool partial;
    struct moe_arena *arena;      /* scratch */
    struct candidate *candidates; /* in order of precedence */
    int32_t num_candidates;
    int64_t *edges; /* last number of tokens of each interval in which nothing changes */
    int32_t num_edges;
    int32_t num_skipped;
    struct moe_error *error;
};

static bool wants(const struct making *making, int32_t op)
{
    return (making->ops >> op & 1u) != 0;
}

static int32_t no_memory(struct moe_error *error)
{
    moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for the table of tiles");
    return MOE_STATUS_OUT_OF_MEMORY;
}

void moe_dispatch_describe_device(const struct moe_device *device, char *text, size_t text_bytes)
{
    if (device->backend == MOE_BACKEND_CUDA) {
        snprintf(text, text_bytes, "sm_%d", device->sm);
    } else {
        snprintf(text, text_bytes, "a CPU with %.16s",
                 device->isa[0] != '\0' ? device->isa : "an unknown isa");
    }
}

static int32_t find_candidates(struct making *making, const struct moe_config *config)
{
    making->candidates =
        moe_arena_alloc(making->arena, (size_t)config->num_rules * sizeof(*making->candidates));
    if (making->candidates == NULL) {
        return no_memory(making->error);
    }
    for (int32_t i = 0; i < config->num_rules; i++) {
        if (!moe_rule_matches(config->rules[i], making->device, making->problem, NULL)) {
            continue;
        }
        struct candidate *candidate = &making->candidates[making->num_candidates++];
        candidate->rule = config->rules[i];
        candidate->skipped =
            moe_arena_alloc(making->arena, (size_t)candidate->rule->num_buckets * sizeof(bool));
        if (candidate->skipped == NULL) {
            return no_memory(making->error);
        }
    }
    return MOE_STATUS_OK;
}

static void add_edge(struct making *making, int64_t tokens)
{
    if (tokens >= 0 && tokens < making->problem->max_tokens) {
        making->edges[making->num_edges++] = tokens;
    }
}

/*
 * The last number of tokens, up to max_tokens, whose density is below `bound` (or equal to it); -1:
 * not even 0 is.
 */
static int64_t last_below(const struct moe_problem *problem, double bound, bool or_equal)
{
    int64_t low = -1;
    int64_t high = problem->max_tokens;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        double density = (double)(middle * problem->top_k) / (double)problem->num_experts;
        if (or_equal ? density <= bound : density < bound) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static int compare_edges(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left;
    int64_t b = *(const int64_t *)right;
    return a < b ? -1 : a > b;
}

/*
 * Wherever a bucket ends, a density begins or ends to hold, or the heuristic sees another number of
 * tokens.
 */
static int32_t find_edges(struct making *making)
{
    size_t capacity = 2 + 64; /* 0, max_tokens and the powers of two */
    for (int32_t i = 0; i < making->num_candidates; i++) {
        capacity += (size_t)making->candidates[i].rule->num_buckets + 2;
    }
    making->edges = moe_arena_alloc(making->arena, capacity * sizeof(*making->edges));
    if (making->edges == NULL) {
        return no_memory(making->error);
    }
    const struct moe_problem *problem = making->problem;
    add_edge(making, 0);
    for (int64_t tokens = 1; tokens < problem->max_tokens;
         tokens = moe_heuristic_round_tokens(tokens + 1)) {
        add_edge(making, tokens);
    }
    for (int32_t i = 0; i < making->num_candidates; i++) {
        const struct moe_rule *rule = making->candidates[i].rule;
        for (int32_t j = 0; j < rule->num_buckets; j++) {
            add_edge(making, rule->buckets[j].max_tokens);
        }
        const struct moe_match_value *density = &rule->match[MOE_MATCH_DENSITY];
        if (density->form != 0 && problem->num_experts > 0) {
            add_edge(making, last_below(problem, density->low, false));
            add_edge(making, last_below(problem, density->high, true));
        }
    }
    making->edges[making->num_edges++] = problem->max_tokens;
    qsort(making->edges, (size_t)making->num_edges, sizeof(*making->edges), compare_edges);
    int32_t num_unique = 0;
    for (int32_t i = 0; i < making->num_edges; i++) {
        if (num_unique == 0 || making->edges[i] != making->edges[num_unique - 1]) {
            making->edges[num_unique++] = making->edges[i];
        }
    }
    making->num_edges = num_unique;
    return MOE_STATUS_OK;
}

/* The rule and bucket that decide for `num_tokens`; both NULL: the heuristic alone. */
static int32_t find_rule(struct making *making, int64_t num_tokens,
                         const struct moe_rule **out_rule,
                         const struct moe_rule_bucket **out_bucket)
{
    *out_rule = NULL;
    *out_bucket = NULL;
    for (int32_t i = 0; i < making->num_candidates; i++) {
        const struct moe_rule *rule = making->candidates[i].rule;
        const struct moe_rule_bucket *bucket = moe_rule_find_bucket(rule, num_tokens);
        if (bucket == NULL || !moe_rule_density_holds(rule, making->problem, num_tokens, NULL)) {
            continue;
        }
        struct moe_reason reason;
        const struct moe_rule_op *culprit;
        if (!moe_rule_bucket_fits(bucket, making->device, &reason, &culprit)) {
            bool *skipped = &making->candidates[i].skipped[bucket - rule->buckets];
            if (rule->skip_unavailable) {
                making->num_skipped += *skipped ? 0 : 1;
                *skipped = true;
                continue;
            }
            if (!making->partial) {
                return moe_error_set_at(making->error, MOE_STATUS_CONFIG, 0, (int32_t)culprit->line,
                                        (int32_t)culprit->column,
                                        "%s:%u:%u: error[unavailable-tile]: rule \"%s\": %s; "
                                        "on_unavailable: next would "
                                        "skip the bucket",
                                        rule->file, culprit->line, culprit->column, rule->name,
                                        reason.text);
            }
        }
        *out_rule = rule;
        *out_bucket = bucket;
        return MOE_STATUS_OK;
    }
    return MOE_STATUS_OK;
}

/* Costs of all tiles for one operation; INFINITY where it may not or cannot use the tile. */
static void fill_costs(const struct making *making, const struct moe_rule_bucket *bucket,
                       int32_t op, int64_t num_tokens, double costs[MOE_NUM_TILES])
{
    static const struct moe_rule_op any = {.named = false};
    const struct moe_rule_op *rule_op = bucket != NULL ? &bucket->ops[op] : &any;
    int64_t tokens = moe_heuristic_round_tokens(num_tokens);
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        bool usable = moe_rule_allows(rule_op, op, &moe_tiles[i]) &&
                      moe_tiles_fits(&moe_tiles[i], making->device, NULL);
        costs[i] =
            usable ? moe_heuristic_cost(&moe_tiles[i], op, making->device, making->problem, tokens)
                   : INFINITY;
    }
}

/* The cheapest tile, the first of equals; -1: none. */
static int32_t choose_tile(const struct making *making, const struct moe_rule_bucket *bucket,
                           int32_t op, int64_t num_tokens)
{
    double costs[MOE_NUM_TILES];
    fill_costs(making, bucket, op, num_tokens, costs);
    int32_t best = -1;
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        if (isfinite(costs[i]) && (best < 0 || costs[i] < costs[best])) {
            best = i;
        }
    }
    return best;
}

/* The cheapest pair of equal BLOCK_SIZE_M: a CPU sorts routes into blocks once for both. */
static void choose_pair(const struct making *making, const struct moe_rule_bucket *bucket,
                        int64_t num_tokens, int32_t *gemm1, int32_t *gemm2)
{
    double costs1[MOE_NUM_TILES];
    double costs2[MOE_NUM_TILES];
    fill_costs(making, bucket, MOE_OP_GEMM1, num_tokens, costs1);
    fill_costs(making, bucket, MOE_OP_GEMM2, num_tokens, costs2);
    *gemm1 = -1;
    *gemm2 = -1;
    double best = INFINITY;
    for (int32_t i = 0; i < MOE_NUM_TILES; i++) {
        for (int32_t j = 0; j < MOE_NUM_TILES; j++) {
            const double cost =
                costs1[i] + costs2[j] + moe_heuristic_edge_cost(&moe_tiles[i], &moe_tiles[j]);
            if (moe_tiles[i].block_m == moe_tiles[j].block_m && cost < best) {
                best = cost;
                *gemm1 = i;
                *gemm2 = j;
            }
        }
    }
}

static int32_t fill_choice(const struct making *making, const struct moe_rule *rule,
                           const struct moe_rule_bucket *bucket, int32_t op, int32_t tile,
                           struct moe_dispatch_choice *choice)
{
    if (tile < 0 && !making->partial) {
        char device[48];
        moe_dispatch_describe_device(making->device, device, sizeof(device));
        return moe_error_set(making->error, MOE_STATUS_UNSUPPORTED,
                             "no kernel of this build runs %s on %s", moe_tiles_op_name(op),
                             device);
    }
    bool by_rule = bucket != NULL && bucket->ops[op].named;
    choice->tile = tile;
    choice->source = by_rule ? MOE_CHOICE_RULE : MOE_CHOICE_HEURISTIC;
    choice->line = by_rule ? (int32_t)bucket->line : 0;
    choice->rule = by_rule ? rule->name : "heuristic";
    choice->file = by_rule ? rule->file : "";
    return MOE_STATUS_OK;
}

/* All choices for one number of tokens. */
static int32_t choose(struct making *making, int64_t num_tokens, struct moe_dispatch_bucket *out)
{
    const struct moe_rule *rule;
    const struct moe_rule_bucket *bucket;
    MOE_TRY(find_rule(making, num_tokens, &rule, &bucket));
    int32_t gemm1 = -1;
    int32_t gemm2 = -1;
    if (wants(making, MOE_OP_GEMM1) || wants(making, MOE_OP_GEMM2)) {
        choose_pair(making, bucket, num_tokens, &gemm1, &gemm2);
    }
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        out->choices[op].tile = -1;
        out->choices[op].rule = "";
        out->choices[op].file = "";
        if (!wants(making, op)) {
            continue;
        }
        int32_t tile = op == MOE_OP_GEMM1   ? gemm1
                       : op == MOE_OP_GEMM2 ? gemm2
                                            : choose_tile(making, bucket, op, num_tokens);
        MOE_TRY(fill_choice(making, rule, bucket, op, tile, &out->choices[op]));
    }
    return MOE_STATUS_OK;
}

static bool same_choices(const struct moe_dispatch_bucket *a, const struct moe_dispatch_bucket *b)
{
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        const struct moe_dispatch_choice *x = &a->choices[op];
        const struct moe_dispatch_choice *y = &b->choices[op];
        /* Strings of one snapshot: equal rules are the same string. */
        if (x->tile != y->tile || x->source != y->source || x->line != y->line ||
            strcmp(x->rule, y->rule) != 0 || strcmp(x->file, y->file) != 0) {
            return false;
        }
    }
    return true;
}

static int32_t choose_all(struct making *making, struct moe_dispatch_bucket **out,
                          int32_t *out_num_buckets)
{
    struct moe_dispatch_bucket *buckets =
        moe_arena_alloc(making->arena, (size_t)making->num_edges * sizeof(*buckets));
    if (buckets == NULL) {
        return no_memory(making->error);
    }
    int32_t num_buckets = 0;
    int64_t min_tokens = 0;
    for (int32_t i = 0; i < making->num_edges; i++) {
        struct moe_dispatch_bucket *bucket = &buckets[num_buckets];
        MOE_TRY(choose(making, making->edges[i], bucket));
        bucket->min_tokens = min_tokens;
        bucket->max_tokens = making->edges[i];
        min_tokens = making->edges[i] + 1;
        if (num_buckets > 0 && same_choices(bucket - 1, bucket)) {
            bucket[-1].max_tokens = bucket->max_tokens;
        } else {
            num_buckets++;
        }
    }
    *out = buckets;
    *out_num_buckets = num_buckets;
    return MOE_STATUS_OK;
}

/* One block: the struct, the buckets, then the numbers that lookup searches. */
static struct moe_dispatch *publish(const struct moe_memory *memory, struct moe_config *config,
                                    const struct moe_dispatch_bucket *buckets, int32_t num_buckets)
{
    size_t count = (size_t)num_buckets;
    size_t block_bytes = sizeof(struct moe_dispatch) + count * (sizeof(*buckets) + sizeof(int64_t));
    struct moe_dispatch *dispatch = moe_memory_alloc(memory, block_bytes);
    if (dispatch == NULL) {
        return NULL;
    }
    struct moe_dispatch_bucket *own_buckets = (void *)(dispatch + 1);
    int64_t *max_tokens = (void *)(own_buckets + count);
    memcpy(own_buckets, buckets, count * sizeof(*buckets));
    for (size_t i = 0; i < count; i++) {
        max_tokens[i] = buckets[i].max_tokens;
    }
    dispatch->num_buckets = num_buckets;
    dispatch->max_tokens = max_tokens;
    dispatch->buckets = own_buckets;
    dispatch->config = moe_config_ref(config);
    dispatch->memory = *memory;
    dispatch->block_bytes = block_bytes;
    return dispatch;
}

static int32_t check_arguments(const struct moe_problem *problem, uint64_t ops,
                               struct moe_error *error)
{
    if (problem->max_tokens < 0 || problem->max_tokens > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%lld tokens; valid: 0 to %d",
                             (long long)problem->max_tokens, INT32_MAX);
    }
    if (problem->num_experts < 0 || problem->top_k < 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "num_experts %d and top_k %d; valid: not negative",
                             problem->num_experts, problem->top_k);
    }
    for (int32_t op = 0; op < 64; op++) {
        if ((ops >> op & 1u) != 0 && (op >= MOE_NUM_OPS || !moe_tiles_op_has_tiles(op))) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "operation %d (%s) has no tiles of its own", op,
                                 moe_tiles_op_name(op));
        }
    }
    return MOE_STATUS_OK;
}

static int32_t create(const struct moe_memory *memory, struct moe_config *config,
                      const struct moe_device *device, const struct moe_problem *problem,
                      uint64_t ops, bool partial, struct moe_dispatch **out,
                      struct moe_error *error)
{
    MOE_TRY(check_arguments(problem, ops, error));
    struct moe_arena arena;
    moe_arena_init(&arena, memory);
    struct making making;
    memset(&making, 0, sizeof(making));
    making.device = device;
    making.problem = problem;
    making.ops = ops;
    making.partial = partial;
    making.arena = &arena;
    making.error = error;

    int32_t status;
    struct moe_dispatch_bucket *buckets = NULL;
    int32_t num_buckets = 0;
    MOE_TRY_GOTO(find_candidates(&making, config));
    MOE_TRY_GOTO(find_edges(&making));
    MOE_TRY_GOTO(choose_all(&making, &buckets, &num_buckets));
    struct moe_dispatch *dispatch = publish(memory, config, buckets, num_buckets);
    if (dispatch == NULL) {
        status = no_memory(error);
        goto fail;
    }
    dispatch->num_buckets_skipped = making.num_skipped;
    *out = dispatch;
fail: /* and success: the scratch is no longer needed */
    moe_arena_finish(&arena);
    return status;
}

int32_t moe_dispatch_create(const struct moe_memory *memory, struct moe_config *config,
                            const struct moe_device *device, const struct moe_problem *problem,
                            uint64_t ops, struct moe_dispatch **out, struct moe_error *error)
{
    return create(memory, config, device, problem, ops, false, out, error);
}

int32_t moe_dispatch_create_partial(const struct moe_memory *memory, struct moe_config *config,
                                    const struct moe_device *device,
                                    const struct moe_problem *problem, uint64_t ops,
                                    struct moe_dispatch **out, struct moe_error *error)
{
    return create(memory, config, device, problem, ops, true, out, error);
}

void moe_dispatch_destroy(struct moe_dispatch *dispatch)
{
    if (dispatch == NULL) {
        return;
    }
    struct moe_memory memory = dispatch->memory;
    moe_config_unref(dispatch->config);
    moe_memory_free(&memory, dispatch, dispatch->block_bytes);
}
