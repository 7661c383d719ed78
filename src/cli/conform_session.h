/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rule of docs/abi.md, checked against one plugin in a process of its own: a plugin that
 * crashes, hangs or exits fails the rule and nothing else. Here: the process, the verdict, and a
 * small layer with every tensor that a run call can be given.
 */
#ifndef MOE_CONFORM_SESSION_H
#define MOE_CONFORM_SESSION_H

#include "moe_plugin.h"
#include "ref.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MOE_CONFORM_TOKENS = 6,
    MOE_CONFORM_MAX_TOKENS = 8,
    MOE_CONFORM_EXPERTS = 4,
    MOE_CONFORM_TOP_K = 2,
    MOE_CONFORM_HIDDEN = 20, /* no multiple of a vector: tails are part of every sum */
    MOE_CONFORM_INTER = 12,
    MOE_CONFORM_SHARED_INTER = 16,
    MOE_CONFORM_BLOCK = 4,
    MOE_CONFORM_ROUTES = MOE_CONFORM_TOKENS * MOE_CONFORM_TOP_K,
    MOE_CONFORM_SORTED = MOE_CONFORM_ROUTES * MOE_CONFORM_BLOCK,
    MOE_CONFORM_REPLICAS = 2,
    MOE_CONFORM_VALID_TOKENS = 4, /* the rest is padding, where a form has any */
    MOE_CONFORM_BATCH_ROWS = 5,   /* of an expert, in the batched align_block_size */
    MOE_CONFORM_MASKED_ROWS = 8,  /* of an expert, in the masked layout */
    MOE_CONFORM_BAND_BYTES = 64,
    MOE_CONFORM_POISON = 0xCB,
    MOE_CONFORM_TAIL_BYTES = 64, /* how far structs grow in the rules about struct_size */
};

enum moe_conform_outcome {
    MOE_CONFORM_PASSED,
    MOE_CONFORM_FAILED,
    MOE_CONFORM_SKIPPED,
};

struct moe_conform_verdict {
    int outcome; /* enum moe_conform_outcome */
    char reason[1024];
};

/* Weights and inputs: what calls read. Elements of the case's type where it says "elements". */
struct moe_conform_inputs {
    float w1[MOE_CONFORM_EXPERTS * 2 * MOE_CONFORM_INTER * MOE_CONFORM_HIDDEN]; /* elements */
    float w2[MOE_CONFORM_EXPERTS * MOE_CONFORM_HIDDEN * MOE_CONFORM_INTER];     /* elements */
    float bias1[MOE_CONFORM_EXPERTS * 2 * MOE_CONFORM_INTER];                   /* elements */
    float bias2[MOE_CONFORM_EXPERTS * MOE_CONFORM_HIDDEN];                      /* elements */
    float router[MOE_CONFORM_EXPERTS * MOE_CONFORM_HIDDEN];                     /* elements */
    float router_bias[MOE_CONFORM_EXPERTS];                                     /* elements */
    float correction_bias[MOE_CONFORM_EXPERTS];
    float shared_w1[2 * MOE_CONFORM_SHARED_INTER * MOE_CONFORM_HIDDEN]; /* elements */
    float shared_w2[MOE_CONFORM_HIDDEN * MOE_CONFORM_SHARED_INTER];     /* elements */
    float shared_sigmoid[MOE_CONFORM_HIDDEN];                           /* elements */
    float tokens[MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN];              /* elements */
    float residual[MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN];            /* elements */
    float shared[MOE_CONFORM_TOKENS * MOE_CONFORM_HIDDEN];              /* elements */
    float rows[MOE_CONFORM_ROUTES * MOE_CONFORM_HIDDEN];                /* elements */
    float gate_up_rows[MOE_CONFORM_ROUTES * 2 * MOE_CONFORM_INTER];     /* elements */
    float inter_rows[MOE_CONFORM_ROUTES * MOE_CONFORM_INTER];           /* elements */
    float shared_factor[MOE_CONFORM_TOKENS];
    float logits[MOE_CONFORM_TOKENS * MOE_CONFORM_EXPERTS];
    int32_t topk_ids[MOE_CONFORM_ROUTES];
    float topk_weights[MOE_CONFORM_ROUTES];
    float row_weights[MOE_CONFORM_ROUTES];
    int64_t seg_indptr[MOE_CONFORM_EXPERTS + 1];
    int32_t src2dst[MOE_CONFORM_ROUTES];
    int32_t sorted_ids[MOE_CONFORM_SORTED];
    int32_t expert_ids[MOE_CONFORM_SORTED];
    int32_t num_tokens_post_pad[2];
    int32_t expert_map[MOE_CONFORM_EXPERTS];
    int32_t num_valid_tokens[2];
    int32_t physical_ids[MOE_CONFORM_EXPERTS * MOE_CONFORM_REPLICAS];
    int32_t num_replicas[MOE_CONFORM_EXPERTS];
    int32_t batch_counts[MOE_CONFORM_EXPERTS];
    int32_t spare[MOE_CONFORM_SORTED]; /* for members that only some calls take */
};

/* What calls write. X(name, type, number of elements) */
#define MOE_CONFORM_OUTPUT_LIST(X)                                     \
    X(tokens, float, MOE_CONFORM_TOKENS *MOE_CONFORM_HIDDEN)           \
    X(rows, float, MOE_CONFORM_ROUTES *MOE_CONFORM_HIDDEN)             \
    X(gate_up_rows, float, MOE_CONFORM_ROUTES * 2 * MOE_CONFORM_INTER) \
    X(inter_rows, float, MOE_CONFORM_ROUTES *MOE_CONFORM_INTER)        \
    X(logits, float, MOE_CONFORM_TOKENS *MOE_CONFORM_EXPERTS)          \
    X(topk_ids, int32_t, MOE_CONFORM_ROUTES)                           \
    X(topk_weights, float, MOE_CONFORM_ROUTES)                         \
    X(sorted_ids, int32_t, MOE_CONFORM_SORTED)                         \
    X(expert_ids, int32_t, MOE_CONFORM_SORTED)                         \
    X(num_tokens_post_pad, int32_t, 1)                                 \
    X(expert_counts, int32_t, MOE_CONFORM_EXPERTS)                     \
    X(seg_indptr, int64_t, MOE_CONFORM_EXPERTS + 1)                    \
    X(src2dst, int32_t, MOE_CONFORM_ROUTES)                            \
    X(dst2src, int32_t, MOE_CONFORM_SORTED)                            \
    X(reorder_ids, int32_t, MOE_CONFORM_ROUTES)                        \
    X(m_indices, int32_t, MOE_CONFORM_SORTED)                          \
    X(masked_m, int32_t, MOE_CONFORM_EXPERTS)                          \
    X(load_counters, int64_t, MOE_CONFORM_EXPERTS)

/* Each output begins at a cache line and ends at a band that nobody may write. */
struct moe_conform_outputs {
#define MOE_CONFORM_OUTPUT_(name, type, count)           \
    _Alignas(MOE_CONFORM_BAND_BYTES) type name[(count)]; \
    unsigned char after_##name[MOE_CONFORM_BAND_BYTES];
    unsigned char first_band[MOE_CONFORM_BAND_BYTES];
    MOE_CONFORM_OUTPUT_LIST(MOE_CONFORM_OUTPUT_)
#undef MOE_CONFORM_OUTPUT_
};

/* A problem that plugins may or may not support. */
struct moe_conform_shape {
    const char *name;
    int32_t dtype;
    int32_t activation;
    int32_t gating;
    uint32_t flags; /* MOE_PROBLEM_* */
    int32_t has_shared;
};

/* Host allocator with counters; other threads of the plugin may call it too. */
struct moe_conform_allocator {
    atomic_llong num_calls;
    atomic_llong num_live;
    atomic_llong num_wrong_frees; /* other bytes or alignment than at allocation */
    atomic_llong num_log_lines;
};

struct moe_conform {
    const char *path;
    struct moe_conform_verdict *verdict; /* shared with the process that waits */
    void *image;
    const struct moe_plugin_api *api;
    struct moe_host services;
    struct moe_conform_allocator allocator;
    const struct moe_conform_shape *shape;
    enum ref_dtype element;
    struct moe_context *context;
    struct moe_device device; /* of the context */
    struct moe_problem problem;
    struct moe_weights_desc desc;
    struct moe_weights *weights;
    struct moe_plan *plan;
    struct moe_plan_info info;
    uint64_t refused_calls; /* bit i: moe_conform_calls[i] is a form that the plugin leaves out */
    struct moe_conform_inputs *in;
    struct moe_conform_outputs *out;
    unsigned char *workspace; /* info.workspace_bytes, aligned as the plan asks, between bands */
};

typedef void moe_conform_check_fn(struct moe_conform *conform);

/* Runs `check` on the plugin at `path` in a child process and waits for its verdict, `timeout`
 * seconds at most. Returning without moe_conform_fail or _skip means passed. */
void moe_conform_session_run(const char *path, moe_conform_check_fn *check, unsigned timeout,
                             struct moe_conform_verdict *verdict);

/* Ends the check and its process, from any thread. */
__attribute__((noreturn, format(printf, 2, 3))) void moe_conform_fail(struct moe_conform *conform,
                                                                      const char *format, ...);
__attribute__((noreturn, format(printf, 2, 3))) void moe_conform_skip(struct moe_conform *conform,
                                                                      const char *format, ...);

/* Fails with "<what>: <the plugin's sentence>" unless the status is OK; UNSUPPORTED, UNAVAILABLE
 * and NO_DEVICE skip instead: then the rule cannot be seen on this machine. */
void moe_conform_require(struct moe_conform *conform, int32_t status, const struct moe_error *error,
                         const char *what);

/* moe_host of this session: versions, counting allocator, counting log. */
void moe_conform_services_init(struct moe_conform *conform, struct moe_host *services);

/* dlopen, dlsym; returns the entry. Fails when there is none. */
moe_plugin_init_fn *moe_conform_open_entry(struct moe_conform *conform);

/* The entry, then the table in conform->api. */
void moe_conform_open_table(struct moe_conform *conform);

/* Table and a context on the CPU with this many threads. */
void moe_conform_open_context(struct moe_conform *conform, int32_t num_threads);

/* Table, context, weights, plan and memory for the first shape of the list that is supported. */
void moe_conform_open(struct moe_conform *conform, int32_t num_threads);

/* The same for one shape on an open context. Returns 0 when the plugin does not support it; the
 * error has its reason. */
int moe_conform_open_shape(struct moe_conform *conform, const struct moe_conform_shape *shape,
                           struct moe_error *error);

/* Destroys what open_shape made; then everything. */
void moe_conform_close_shape(struct moe_conform *conform);
void moe_conform_close(struct moe_conform *conform);

/* Shapes to try, richest first. */
extern const struct moe_conform_shape moe_conform_shapes[];
extern const size_t moe_conform_num_shapes;

void moe_conform_describe_problem(const struct moe_conform_shape *shape,
                                  struct moe_problem *problem);
void moe_conform_describe_weights(const struct moe_conform *conform, struct moe_weights_desc *desc);

/* Inputs anew; outputs, bands and workspace to `poison`. */
void moe_conform_reset(struct moe_conform *conform, unsigned char poison);

/* Fails, naming the call, when a band around an output or the workspace (of workspace_bytes) is not
 * `poison` any more. */
void moe_conform_check_bands(struct moe_conform *conform, const char *call, unsigned char poison,
                             uint64_t workspace_bytes);

#endif
