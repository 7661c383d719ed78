/* SPDX-License-Identifier: Apache-2.0 */
/* A loader, a small layer with per-expert tables, and the steps that tests of swaps are made of. */
#ifndef MOE_TESTS_SWAP_FIXTURE_H
#define MOE_TESTS_SWAP_FIXTURE_H

#include "loader_fixture.h"

#define PLUGIN_A           REAL_PLUGIN
#define PLUGIN_B           MOE_BUILD_DIR "/lib/libmoe_plugin_b.so"
#define FAULT_PLUGIN(name) SMALL_PLUGIN("fault_" name)

enum {
    SWAP_EXPERTS = 4,
    SWAP_TOP_K = 2,
    SWAP_HIDDEN = 96,
    SWAP_INTER = 80,
    SWAP_TOKENS = 6,
    SWAP_WORKSPACE_BYTES = 1 << 20,
    SWAP_MAX_TRANSITIONS = 64,
};

struct swap_layer {
    float gate[SWAP_EXPERTS][SWAP_INTER * SWAP_HIDDEN];
    float up[SWAP_EXPERTS][SWAP_INTER * SWAP_HIDDEN];
    float down[SWAP_EXPERTS][SWAP_HIDDEN * SWAP_INTER];
    float router[SWAP_EXPERTS * SWAP_HIDDEN];
    float tokens[SWAP_TOKENS * SWAP_HIDDEN];
};

struct swap_fixture {
    struct loader_fixture base; /* first: its teardown frees both */
    struct moe_loader *loader;
    struct moe_loader_options options;
    struct moe_context_options context;
    struct moe_problem problem;
    struct moe_weights_desc weights;
    struct moe_loader_slot_options slot_options;
    const void *gate_table[SWAP_EXPERTS], *up_table[SWAP_EXPERTS], *down_table[SWAP_EXPERTS];
    struct swap_layer layer;
    struct moe_loader_slot *slot;
    struct moe_loader_worker *worker;
    struct moe_error error;
    struct moe_loader_transition transitions[SWAP_MAX_TRANSITIONS];
    int num_transitions;
    char last_reason[256];
    int32_t is_done;
};

static inline void swap_fill(float *values, size_t num, uint32_t seed)
{
    for (size_t i = 0; i < num; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)((int32_t)(seed >> 16) - 32768) / 65536.0f;
    }
}

static inline void swap_note_transition(void *self, const struct moe_loader_transition *transition)
{
    struct swap_fixture *fixture = self;
    fixture->transitions[fixture->num_transitions++ % SWAP_MAX_TRANSITIONS] = *transition;
    snprintf(fixture->last_reason, sizeof(fixture->last_reason), "%.255s", transition->reason);
}

static inline int32_t swap_is_done(void *self, uint64_t generation)
{
    (void)generation;
    return ((struct swap_fixture *)self)->is_done;
}

static inline void swap_describe_table(struct moe_operand *operand, const void *const *table,
                                       int64_t columns)
{
    operand->table = table;
    operand->row_stride = columns;
    operand->col_stride = 1;
}

static inline void swap_describe(struct swap_fixture *fixture)
{
    struct swap_layer *layer = &fixture->layer;
    struct moe_problem *problem = &fixture->problem;
    swap_fill((float *)layer, sizeof(*layer) / sizeof(float), 7);
    MOE_INIT(*problem);
    problem->flags = MOE_PROBLEM_RENORMALIZE;
    problem->num_experts = SWAP_EXPERTS;
    problem->top_k = SWAP_TOP_K;
    problem->hidden = SWAP_HIDDEN;
    problem->inter = SWAP_INTER;
    problem->activation = MOE_ACTIVATION_SILU;
    problem->gating = MOE_GATING_SOFTMAX;
    problem->max_tokens = 32;
    problem->tokens.dtype = MOE_DTYPE_FP32;
    problem->gate_up.dtype = MOE_DTYPE_FP32;
    problem->down.dtype = MOE_DTYPE_FP32;
    for (int e = 0; e < SWAP_EXPERTS; e++) {
        fixture->gate_table[e] = layer->gate[e];
        fixture->up_table[e] = layer->up[e];
        fixture->down_table[e] = layer->down[e];
    }
    MOE_INIT(fixture->weights);
    swap_describe_table(&fixture->weights.gate, fixture->gate_table, SWAP_HIDDEN);
    swap_describe_table(&fixture->weights.up, fixture->up_table, SWAP_HIDDEN);
    swap_describe_table(&fixture->weights.down, fixture->down_table, SWAP_INTER);
    fixture->weights.router.base = layer->router;
    fixture->weights.router.row_stride = SWAP_HIDDEN;
    fixture->weights.router.col_stride = 1;
    MOE_INIT(fixture->slot_options);
    fixture->slot_options.problem = problem;
    fixture->slot_options.weights = &fixture->weights;
    fixture->slot_options.workspace_bytes = SWAP_WORKSPACE_BYTES;
}

/* Options of a loader on a CPU that skips what other tests are about. */
static inline int swap_setup(void **state)
{
    void *base = NULL;
    fixture_setup(&base);
    struct swap_fixture *fixture = realloc(base, sizeof(*fixture));
    fixture_require(fixture != NULL, "memory");
    memset((char *)fixture + sizeof(fixture->base), 0, sizeof(*fixture) - sizeof(fixture->base));
    fixture->base.options.shadow_directory = fixture->base.shadow;
    swap_describe(fixture);
    MOE_INIT(fixture->error);
    MOE_INIT(fixture->context);
    fixture->context.backend = MOE_BACKEND_CPU;
    fixture->context.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    fixture->context.num_threads = 1;
    MOE_INIT(fixture->options);
    fixture->options.flags = MOE_LOADER_SKIP_TRUST | MOE_LOADER_SKIP_CANARY;
    fixture->options.context = &fixture->context;
    fixture->options.shadow_directory = fixture->base.shadow;
    fixture->options.canary_path = CANARY_PATH;
    fixture->options.self = fixture;
    fixture->options.transition = swap_note_transition;
    fixture->options.is_done = swap_is_done;
    fixture->is_done = 1;
    *state = fixture;
    return 0;
}

static inline int swap_teardown(void **state)
{
    struct swap_fixture *fixture = *state;
    moe_loader_worker_close(fixture->worker);
    moe_loader_destroy(fixture->loader);
    return fixture_teardown(state);
}

#define swap_ok(fixture, call)                                               \
    do {                                                                     \
        const int32_t swap_status_ = (call);                                 \
        if (swap_status_ != MOE_STATUS_OK) {                                 \
            fail_msg(#call ": %s: %s", moe_loader_status_name(swap_status_), \
                     (fixture)->error.message);                              \
        }                                                                    \
    } while (0)

/* Refused with this status and a sentence that has these words. */
#define swap_refused(fixture, call, expected, words)                                           \
    do {                                                                                       \
        (fixture)->error.message[0] = '\0';                                                    \
        const int32_t swap_status_ = (call);                                                   \
        if (swap_status_ != (expected) || strstr((fixture)->error.message, (words)) == NULL) { \
            fail_msg(#call ": expected " #expected " \"...%s...\", found %s: %s", (words),     \
                     moe_loader_status_name(swap_status_), (fixture)->error.message);          \
        }                                                                                      \
    } while (0)

/* Loader, slot and worker. */
static inline void swap_open(struct swap_fixture *fixture)
{
    swap_ok(fixture, moe_loader_create(&fixture->options, &fixture->loader, &fixture->error));
    swap_ok(fixture, moe_loader_slot_open(fixture->loader, &fixture->slot_options, &fixture->slot,
                                          &fixture->error));
    swap_ok(fixture, moe_loader_worker_open(fixture->loader, &fixture->worker, &fixture->error));
}

static inline uint64_t swap_stage(struct swap_fixture *fixture, const char *path)
{
    uint64_t id = 0;
    swap_ok(fixture, moe_loader_stage(fixture->loader, path, NULL, &id, &fixture->error));
    return id;
}

static inline void swap_promote(struct swap_fixture *fixture, uint64_t id)
{
    swap_ok(fixture, moe_loader_promote(fixture->loader, id, &fixture->error));
}

static inline void swap_verify(struct swap_fixture *fixture, uint64_t id)
{
    swap_ok(fixture, moe_loader_verify(fixture->loader, id, NULL, &fixture->error));
}

static inline void swap_poll(struct swap_fixture *fixture)
{
    swap_ok(fixture, moe_loader_poll(fixture->loader, &fixture->error));
}

/* Loader with A active. */
static inline uint64_t swap_open_with_a(struct swap_fixture *fixture)
{
    swap_open(fixture);
    const uint64_t id = swap_stage(fixture, PLUGIN_A);
    swap_promote(fixture, id);
    return id;
}

static inline struct moe_loader_generation_info swap_info(struct swap_fixture *fixture, uint64_t id)
{
    struct moe_loader_generation_info info;
    for (int32_t i = 0;; i++) {
        MOE_INIT(info);
        swap_ok(fixture, moe_loader_generation_at(fixture->loader, i, &info, &fixture->error));
        if (info.generation == id) {
            return info;
        }
    }
}

static inline struct moe_loader_stats swap_stats(struct swap_fixture *fixture)
{
    struct moe_loader_stats stats;
    MOE_INIT(stats);
    swap_ok(fixture, moe_loader_get_stats(fixture->loader, &stats, &fixture->error));
    return stats;
}

#define swap_expect_state(fixture, id, expected) \
    assert_int_equal(swap_info((fixture), (id)).state, (expected))

/* The layer in whatever serves; returns which generation that was. */
static inline uint64_t swap_run(struct swap_fixture *fixture,
                                float output[SWAP_TOKENS * SWAP_HIDDEN])
{
    _Alignas(256) static unsigned char workspace[SWAP_WORKSPACE_BYTES];
    const struct moe_loader_view *view = moe_loader_enter(fixture->worker, fixture->slot);
    assert_non_null(view);
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = SWAP_TOKENS;
    args.call.workspace = workspace;
    args.call.workspace_bytes = view->workspace_bytes;
    args.weights = view->weights;
    args.tokens = fixture->layer.tokens;
    args.output = output;
    const uint64_t id = view->generation;
    swap_ok(fixture, view->api->layer(view->plan, &args, &fixture->error));
    moe_loader_leave(fixture->worker);
    return id;
}

#define SWAP_TEST(test) cmocka_unit_test_setup_teardown(test, swap_setup, swap_teardown)

#endif
