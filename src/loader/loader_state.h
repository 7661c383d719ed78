/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the loader share: the loader, its generations, slots and workers.
 *
 * Two mutexes, always taken in this order:
 *   control   held for as long as something is built, run or released: slots, images, runtimes,
 *             sources, and what a generation owns (plans, views) belong to it
 *   state     held for moments: the list of generations, their states, and everything that promote,
 *             rollback, report and poll decide by
 * A generation is released by the holder of `control` only, so what that holder looks at stays.
 * Workers take neither; worker.c says why what they use stays.
 */
#ifndef MOE_LOADER_STATE_H
#define MOE_LOADER_STATE_H

#include "moe_loader.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define MOE_LOADER_LINE_BYTES   64
#define MOE_LOADER_HISTORY      64 /* PARKED and REJECTED generations that are remembered */
#define MOE_LOADER_SHA256_BYTES sizeof(((struct moe_loader_generation_info *)0)->sha256)

/* A configuration as text, so that a context can be given it again. Shared, under `control`. */
struct moe_sources {
    struct moe_config_source *list; /* paths and texts are owned */
    int32_t num;
    int32_t num_users;
};

/* A mapped image; without users it is parked. Under `control`. */
struct moe_kept_image {
    struct moe_kept_image *next;
    struct moe_loader_image *image;
    char sha256[MOE_LOADER_SHA256_BYTES];
    int32_t num_users;
};

struct moe_runtime_weights {
    struct moe_weights *weights;
    void *prepared;
    uint64_t prepared_bytes;
    uint64_t prepared_alignment;
};

/* An image with a context on it and the weights of every open slot; generations that differ in
 * configuration only share one. Under `control`. */
struct moe_runtime {
    struct moe_kept_image *mapped;
    const struct moe_plugin_api *api;
    struct moe_context *context;
    struct moe_sources *sources;         /* that the context has now */
    struct moe_runtime_weights *weights; /* [max_slots] */
    int32_t num_users;
};

struct moe_refused {
    struct moe_refused *next;
    char sha256[MOE_LOADER_SHA256_BYTES];
};

/* Calls of one worker in one generation: written by that worker alone. */
struct moe_call_counter {
    _Alignas(MOE_LOADER_LINE_BYTES) _Atomic(uint64_t) num_calls;
};

struct moe_generation {
    struct moe_generation *next;            /* by age */
    struct moe_loader_generation_info info; /* state and the like, under `state` */
    int32_t status;                         /* why it is REJECTED, or will be */
    bool is_refused;             /* never serves again: REJECTED at the end of its drain */
    bool is_in_use;              /* being verified: not to be promoted */
    bool needs_release;          /* REJECTED, resources still there */
    struct moe_refused *refusal; /* to put into the list when it is refused */
    uint64_t served;             /* ordinal of the end of its last time as ACTIVE; 0: never */

    /* ---- under `control`; NULL once released ---- */
    struct moe_runtime *runtime;
    struct moe_sources *sources;
    struct moe_plan **plans;        /* [max_slots] */
    struct moe_loader_view *views;  /* [max_slots]: what workers are given */
    struct moe_call_counter *calls; /* [max_workers] */
    uint64_t *inside; /* [max_workers], under `state`: sequence of each worker that was
                                        inside when it stopped being ACTIVE; 0: has left */
    /* A slot is being opened: how that went here. */
    int32_t slot_status;
    struct moe_error slot_error;
};

struct moe_loader_slot {
    struct moe_loader *loader;
    int32_t idx;
    struct moe_problem problem;
    struct moe_weights_desc weights; /* tables are owned */
    const void **tables;
    struct moe_loader_slot_options options; /* pointers to problem and weights are ours */
    uint64_t *inside; /* [max_workers]: as in a generation, at the first call to close it */
    bool is_closing;
};

/* Two lines: what its thread writes in every step, and what never changes. */
struct moe_loader_worker {
    /* Odd: inside. Only the worker's thread writes it. */
    _Alignas(MOE_LOADER_LINE_BYTES) _Atomic(uint64_t) sequence;
    struct moe_generation *generation; /* that its thread is inside */
    _Alignas(MOE_LOADER_LINE_BYTES) struct moe_loader *loader;
    int32_t idx;
    bool is_open; /* under `state` */
};

struct moe_loader {
    /* The one word that promote and rollback store to; alone on its line. */
    _Alignas(MOE_LOADER_LINE_BYTES) _Atomic(struct moe_generation *) active;
    _Alignas(MOE_LOADER_LINE_BYTES) struct moe_loader_options options; /* defaults resolved */
    struct moe_host host;
    struct moe_context_options context; /* without sources */
    char *shadow_directory;
    char *canary_path;

    pthread_mutex_t control;
    struct moe_sources *sources; /* of the options */
    struct moe_kept_image *mapped;
    struct moe_loader_slot **slots; /* [max_slots]; NULL: free */

    pthread_mutex_t state;
    struct moe_generation *generations; /* oldest first */
    struct moe_refused *refused;
    uint64_t num_made;   /* generations so far: the last id */
    uint64_t num_served; /* ends of a time as ACTIVE */
    struct moe_loader_stats stats;
    struct moe_loader_worker *workers; /* [max_workers] */
};

/* ---- loader.c: both mutexes ---- */

void moe_loader_lock_control(struct moe_loader *loader);
/* Also releases generations that were rejected meanwhile. */
void moe_loader_unlock_control(struct moe_loader *loader);

/* NULL is refused with a sentence. */
int32_t moe_loader_check_not_null(const void *object, const char *name, struct moe_error *error);

/* Hand the error of an inner call to the caller (NULL: not wanted), whole: position and native code
 * too. Returns `status`; OK passes nothing. */
int32_t moe_loader_pass_error(struct moe_error *error, int32_t status,
                              const struct moe_error *cause);

/* A copy of a string, NULL when there is no memory. */
char *moe_loader_copy_string(const char *text);

/* malloc or aligned_alloc, zeroed; NULL for none. free() releases it. */
void *moe_loader_alloc(size_t num, size_t bytes, size_t alignment);

#endif
