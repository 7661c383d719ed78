/* SPDX-License-Identifier: Apache-2.0 */
/* Two plugins that take turns in serving a load: each is staged, verified and promoted through the
 * loader while requests run, the one before drains and is parked, and every answer is checked. */
#ifndef MOE_SWAP_SESSION_H
#define MOE_SWAP_SESSION_H

#include "cli_error.h"
#include "moe_loader.h"
#include "swap_latency.h"
#include "swap_layers.h"

#include <stdatomic.h>
#include <stdint.h>

enum {
    MOE_SWAP_WINDOW_MS = 5,        /* before and after a promote */
    MOE_SWAP_MAX_ATTEMPTS = 20000, /* swaps of one run */
    MOE_SWAP_MAX_SENTENCES = 8     /* of each kind that are kept; the others are counted */
};

struct moe_swap_options {
    const char *plugins[MOE_SWAP_NUM_PLUGINS];
    const char *canary_path; /* as in moe_loader_options */
    int64_t num_seconds;     /* the load runs at least this long */
    int64_t num_swaps;       /* and until this many were tried */
    int64_t num_threads;     /* workers; 0: as many as the CPUs that the process may use */
    int is_trust_skipped;    /* of files and folders */
};

/* The steps of a swap, in their order. X(constant, name) */
#define MOE_SWAP_STEP_LIST(X)           \
    X(MOE_SWAP_STEP_STAGE, "stage")     \
    X(MOE_SWAP_STEP_VERIFY, "verify")   \
    X(MOE_SWAP_STEP_PROMOTE, "promote") \
    X(MOE_SWAP_STEP_DRAIN, "drain")     \
    X(MOE_SWAP_STEP_PARK, "park")
#define MOE_SWAP_STEP_CONSTANT_(constant, name) constant,
enum { MOE_SWAP_STEP_LIST(MOE_SWAP_STEP_CONSTANT_) MOE_SWAP_NUM_STEPS };

struct moe_swap_sentences {
    int64_t num_sentences; /* those that are not kept too */
    char kept[MOE_SWAP_MAX_SENTENCES][768];
};

/* Adds one, printf-like; what does not fit is cut. */
__attribute__((format(printf, 2, 3))) void moe_swap_sentences_add(
    struct moe_swap_sentences *sentences, const char *format, ...);

struct moe_swap_client;

/* Caller-owned, must not move between init and finish. Results are complete after run. */
struct moe_swap_session {
    struct moe_swap_options options;
    int num_threads;
    struct moe_loader *loader;
    struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS];
    char kernel_set_ids[MOE_SWAP_NUM_PLUGINS][72]; /* "" if it was rejected before the load */
    /* Plugin of each generation, by its number; -1: unknown. */
    _Atomic(signed char) plugins[MOE_SWAP_MAX_ATTEMPTS + 16];
    _Atomic(int) is_over;
    struct moe_swap_client *clients;
    int num_clients;

    /* results */
    double load_seconds;
    int64_t num_requests;
    int64_t num_failed;  /* calls that returned an error */
    int64_t num_wrong;   /* answers that are not those of the plugin which ran */
    int64_t num_neither; /* of these, those that are no plugin's answer */
    int64_t num_answered[MOE_SWAP_NUM_PLUGINS]; /* right ones */
    int64_t num_unmeasured;                     /* no memory for their times */
    int64_t num_swaps;
    int64_t num_rejections;
    struct moe_swap_sentences rejections;
    struct moe_swap_sentences failures; /* of requests and of swaps */
    struct moe_swap_percentiles latency[MOE_SWAP_NUM_PHASES];
    struct moe_swap_percentiles steps[MOE_SWAP_NUM_STEPS];

    struct moe_swap_intervals windows; /* private, as is the next */
    struct moe_swap_intervals stagings;
    struct moe_swap_intervals step_times[MOE_SWAP_NUM_STEPS];
};

/* Opens the loader and the layers, and asks both plugins for their answers; the one that was asked
 * last serves then. A plugin B that is a shared object and is refused for what it does is a
 * rejection, no error. Returns 0, or -1 with a sentence. Finish the session either way. */
int moe_swap_session_init(struct moe_swap_session *session, const struct moe_swap_options *options,
                          struct moe_cli_error *error);

/* The load, with swaps; once. Returns 0 when it could be done, whatever was found, or -1 with a
 * sentence. */
int moe_swap_session_run(struct moe_swap_session *session, struct moe_cli_error *error);

/* 1 when all requests were answered right, by both plugins, and nothing was rejected or failed. */
int moe_swap_session_has_passed(const struct moe_swap_session *session);

/* A zeroed session is allowed. */
void moe_swap_session_finish(struct moe_swap_session *session);

const char *moe_swap_plugin_name(int plugin); /* "A", "B" */
const char *moe_swap_step_name(int step);

#endif
