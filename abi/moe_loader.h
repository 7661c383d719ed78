/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe_loader.h: libmoe_loader, the host-side library that opens plugins of moe_plugin.h safely and
 * replaces one by another while the host serves. It needs libc and libdl only, knows no device, and
 * is optional: a host may dlopen a plugin by hand. Its rules for structs, errors and strings are
 * those of moe_plugin.h.
 *
 *   moe_loader_create(&options, &loader, &error);
 *   moe_loader_stage(loader, "/opt/moe/libmoe_plugin.so", NULL, &id, &error);   canary, checks,
 *   shadow copy, dlopen moe_loader_slot_open(loader, &slot_options, &slot, &error);
 *   one per problem and its weights moe_loader_promote(loader, id, &error);
 *   ... each worker thread:  moe_loader_worker_open(loader, &worker, &error); and per step
 *       const struct moe_loader_view *view = moe_loader_enter(worker, slot);
 *       args.weights = view->weights;  view->api->layer(view->plan, &args, &error);
 *       moe_loader_leave(worker);
 *   ... to upgrade, on a control thread:  stage, verify, promote; to go back: rollback
 *
 * A generation is one plugin image with its context, and weights and plans for every open slot.
 *   States: STAGED    loaded, context, weights and plans made; serves nobody
 *   WARM      verified; may be promoted (also: the former ACTIVE after its drain, kept for
 *   rollback) ACTIVE    serves; exactly one, none before the first promote
 *   DRAINING  was ACTIVE; workers or the host's captured graphs may still use it
 *   PARKED    plans, weights and context are destroyed, device memory is returned, the image stays
 *   mapped REJECTED  refused, with the reason; never serves. Its resources are released as for
 *   PARKED
 *
 * Threads. moe_loader_enter and moe_loader_leave are for the worker's thread and take no lock. All
 * else may be called from any thread but not between enter and leave, and is serialized by a mutex
 * inside. Callbacks run on the calling thread with that mutex held: they must not call the loader.
 */
#ifndef MOE_LOADER_H
#define MOE_LOADER_H

#include "moe_plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default) /* what libmoe_loader.so exports, whatever it is built with */
#endif

#define MOE_LOADER_VERSION_MAJOR 0
#define MOE_LOADER_VERSION_MINOR 1

/* States of a generation. X(constant, value, name) */
#define MOE_GENERATION_LIST(X)                \
    X(MOE_GENERATION_STAGED, 1, "staged")     \
    X(MOE_GENERATION_WARM, 2, "warm")         \
    X(MOE_GENERATION_ACTIVE, 3, "active")     \
    X(MOE_GENERATION_DRAINING, 4, "draining") \
    X(MOE_GENERATION_PARKED, 5, "parked")     \
    X(MOE_GENERATION_REJECTED, 6, "rejected")
enum { MOE_GENERATION_LIST(MOE_ENUMERATOR_) MOE_GENERATION_MAX_ = 0x7fffffff };

/* Statuses of the loader beside those of MOE_STATUS_LIST; same numbering space, ids never reused.
 * X(constant, value, sentence) */
#define MOE_LOADER_STATUS_LIST(X)                                                                \
    X(MOE_LOADER_STATUS_UNTRUSTED, 101, "owner or permissions of the file or a folder above it") \
    X(MOE_LOADER_STATUS_BAD_FILE, 102,                                                           \
      "not a plugin: wrong kind of file, machine, or ELF content")                               \
    X(MOE_LOADER_STATUS_HASH, 103,                                                               \
      "the file is not the one whose sha256 was given, or is refused")                           \
    X(MOE_LOADER_STATUS_CANARY, 104, "the canary process failed, crashed or timed out")          \
    X(MOE_LOADER_STATUS_HANDSHAKE, 105, "moe_plugin_init refused")                               \
    X(MOE_LOADER_STATUS_BAD_TABLE, 106, "the function table breaks the contract")                \
    X(MOE_LOADER_STATUS_WRONG_RESULT, 107, "results differ from the active generation's")        \
    X(MOE_LOADER_STATUS_TOO_SLOW, 108, "slower than the speed gate allows")                      \
    X(MOE_LOADER_STATUS_WORKSPACE, 109, "a plan needs more workspace than its slot has")         \
    X(MOE_LOADER_STATUS_STATE, 110, "the generation is not in a state for this")
enum { MOE_LOADER_STATUS_LIST(MOE_ENUMERATOR_) MOE_LOADER_STATUS_MAX_ = 0x7fffffff };

struct moe_loader;
struct moe_loader_slot;
struct moe_loader_worker;

/* ---- opening one file (also usable alone)
 * ------------------------------------------------------- */

#define MOE_LOADER_SKIP_TRUST   1u /* do not check owner and permissions */
#define MOE_LOADER_SKIP_CANARY  2u /* do not try the file in a helper process first */
#define MOE_LOADER_ALLOW_UNLOAD 4u /* really dlclose a parked image; else it stays mapped */

/* The copy that is mapped is a sealed memfd, not a file in shadow_directory. Costs a descriptor for as
 * long as the image is mapped. */
#define MOE_LOADER_USE_MEMFD 8u

/* How a file is opened. Input. */
struct moe_loader_open_options {
    uint32_t struct_size;
    uint32_t flags; /* MOE_LOADER_SKIP_TRUST, _ALLOW_UNLOAD (an image that is refused after dlopen
                           is unloaded too), _USE_MEMFD */
    const char *sha256; /* 64 hex digits the file must have; NULL: any */
    /*
     * Private folder for the copy that is mapped, owned by this user with mode 0700; made if it is
     * missing (its parent must exist). NULL: /tmp/moe-loader-<uid>. The copy has a name that is never used twice,
     * only while it is being mapped: nothing is ever loaded from a name found there, and what a killed process left is
     * removed by the next open. A memfd takes its place where the folder is mounted noexec and, if
     * this is NULL, where it cannot be made or used. Debuggers find symbols by the build id.
     */
    const char *shadow_directory;
    const uint32_t *trusted_uids; /* owners accepted beside root and the process's own */
    int32_t num_trusted_uids;
    int32_t reserved;
};

/* An opened plugin: checked, copied, mapped, proven to be that copy, and past the handshake. */
struct moe_loader_image;

/*
 * Resolve `path`, then work on one descriptor of the result: regular file, trusted owner, not
 * writable by others, the same for its folders (sticky ones pass); bounded ELF check (class,
 * machine, exactly one exported symbol, no RUNPATH or RPATH, no text relocations, no unique
 * symbols, no executable stack, NEEDED in the allow-list libc, libm, libdl, libpthread, ld-linux);
 * private shadow copy under a unique name; dlopen(RTLD_NOW | RTLD_LOCAL); build id of the mapped
 * image compared with the copy's; moe_plugin_init(host); table checked (versions, size, mandatory
 * members non-NULL and inside the image, strings terminated within 256 bytes). Each refusal has its
 * own sentence.
 */
int32_t moe_loader_image_open(const char *path, const struct moe_host *host,
                              const struct moe_loader_open_options *options,
                              struct moe_loader_image **out, struct moe_error *error);
const struct moe_plugin_api *moe_loader_image_api(const struct moe_loader_image *image);
const char *moe_loader_image_sha256(const struct moe_loader_image *image);
/* Destroy the handle. The mapping stays unless `unload` is 1; then dlclose, and BUSY if the image
 * is still mapped after it. NULL is legal. */
int32_t moe_loader_image_close(struct moe_loader_image *image, int32_t unload,
                               struct moe_error *error);

/* ---- loader ---------------------------------------------------------------------------------- */

/* One change of a generation's state. Strings live until the callback returns. */
struct moe_loader_transition {
    uint32_t struct_size;
    int32_t from; /* MOE_GENERATION_*; 0: new */
    int32_t to;
    int32_t status; /* why, when rejected or rolled back automatically */
    uint64_t generation;
    const char *path;
    const char *reason; /* a sentence; "" if there is nothing to say */
};

struct moe_loader_options {
    uint32_t struct_size;
    uint32_t flags;              /* MOE_LOADER_SKIP_TRUST, _SKIP_CANARY, _ALLOW_UNLOAD */
    const struct moe_host *host; /* given to every plugin; copied */
    const struct moe_context_options
        *context; /* for every context; copied (config sources too). NULL: all defaults */
    const char *shadow_directory; /* as in moe_loader_open_options */
    const char
        *canary_path; /* moe-canary; NULL: beside the executable or in its ../lib/moe-plugin or
                        ../bin */
    int32_t canary_timeout_ms; /* 0: 20000 */
    int32_t max_workers;       /* 0: 256 */
    int32_t max_slots;         /* 0: 1024 */
    int32_t max_parked;        /* stage refuses (BUSY) with more parked images than this; 0: 64 */
    int32_t
        max_device_errors; /* reports of an ACTIVE generation before it is rolled back; 0: 1, -1:
                              never */
    int32_t reserved;
    void *self;
    void (*transition)(void *self,
                       const struct moe_loader_transition *transition); /* NULL: not wanted */
    /* Is all work that the host queued with this generation done, captured graphs destroyed? NULL:
     * yes, always (a CPU host). */
    int32_t (*is_done)(void *self, uint64_t generation);
};

int32_t moe_loader_create(const struct moe_loader_options *options, struct moe_loader **out,
                          struct moe_error *error);
/* All workers must be closed. Releases every generation. NULL is legal. */
void moe_loader_destroy(struct moe_loader *loader);

/* ---- slots and workers ----------------------------------------------------------------------- */

/* What workers run: a problem, its weights, and how much workspace each worker has for it. */
struct moe_loader_slot_options {
    uint32_t struct_size;
    uint32_t flags;                    /* 0 */
    const struct moe_problem *problem; /* copied */
    const struct moe_weights_desc
        *weights; /* copied with its tables; the elements stay until the slot is closed */
    uint64_t workspace_bytes; /* cap given to every plan; 0: none */
    uint64_t ops;             /* as in moe_plan_options */
    /* Memory for prepared weights, when a plugin wants some: called on the control thread. NULL:
     * such a plugin is rejected. */
    void *self;
    void *(*prepared_alloc)(void *self, uint64_t bytes, uint64_t alignment);
    void (*prepared_free)(void *self, void *memory, uint64_t bytes, uint64_t alignment);
};

/* Make weights and plans for the slot in every generation that is STAGED, WARM or ACTIVE. Fails if
 * the ACTIVE one cannot; another is rejected. */
int32_t moe_loader_slot_open(struct moe_loader *loader,
                             const struct moe_loader_slot_options *options,
                             struct moe_loader_slot **out, struct moe_error *error);
/* BUSY while a worker may be inside; try again. */
int32_t moe_loader_slot_close(struct moe_loader_slot *slot, struct moe_error *error);

int32_t moe_loader_worker_open(struct moe_loader *loader, struct moe_loader_worker **out,
                               struct moe_error *error);
void moe_loader_worker_close(
    struct moe_loader_worker *worker); /* not between enter and leave; NULL is legal */

/* What a worker may use between enter and leave. */
struct moe_loader_view {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t generation;
    const struct moe_plugin_api *api;
    struct moe_context *context;
    const struct moe_plan *plan;
    const struct moe_weights *weights;
    uint64_t workspace_bytes; /* of the plan, at most the slot's cap */
    uint64_t workspace_alignment;
};

/*
 * The view of the ACTIVE generation, valid until leave; NULL before the first promote. One acquire
 * load and two stores to the worker's own cache line. Not nested.
 */
const struct moe_loader_view *moe_loader_enter(struct moe_loader_worker *worker,
                                               const struct moe_loader_slot *slot);
void moe_loader_leave(struct moe_loader_worker *worker);

/* ---- generations ----------------------------------------------------------------------------- */

/* Load a candidate: canary first, then here; context, weights and plans for all open slots. On
 * failure the generation is REJECTED and its reason is in `error`. `options` NULL: the loader's. */
int32_t moe_loader_stage(struct moe_loader *loader, const char *path,
                         const struct moe_loader_open_options *options, uint64_t *generation,
                         struct moe_error *error);

/* The ACTIVE image and context with a new configuration: sources replace those of the loader's
 * context options. */
int32_t moe_loader_stage_config(struct moe_loader *loader, const struct moe_config_source *sources,
                                int32_t num_sources, uint64_t *generation, struct moe_error *error);

struct moe_loader_verify_options {
    uint32_t struct_size;
    uint32_t flags;         /* 0 */
    double max_relative_l2; /* of outputs against the ACTIVE generation's; 0: 1e-2 */
    double
        max_slowdown; /* median time over the ACTIVE generation's, interleaved; 0: no speed gate */
    int32_t num_tokens;     /* of the comparison; 0: min(max_tokens, 16) */
    int32_t num_timed_runs; /* of each, for the gate; 0: 15 */
    uint64_t seed;          /* of the inputs */
    /* Memory that the backend can use, for inputs, outputs and workspace, and copies between it and
     * the host's; NULL: host memory (CPU). */
    void *self;
    void *(*memory_alloc)(void *self, uint64_t bytes, uint64_t alignment);
    void (*memory_free)(void *self, void *memory, uint64_t bytes, uint64_t alignment);
    int32_t (*copy_in)(void *self, void *device, const void *host, uint64_t bytes);
    int32_t (*copy_out)(void *self, void *host, const void *device,
                        uint64_t bytes); /* waits for queued work first */
};

/* Self-test, then every slot: outputs finite, inside guard bands, within tolerance of the ACTIVE
 * generation's, fast enough. STAGED becomes WARM, or REJECTED with the reason. */
int32_t moe_loader_verify(struct moe_loader *loader, uint64_t generation,
                          const struct moe_loader_verify_options *options, struct moe_error *error);

/* Make a WARM generation ACTIVE: one store. (The first generation may be promoted from STAGED:
 * there is nothing to compare with.) */
int32_t moe_loader_promote(struct moe_loader *loader, uint64_t generation, struct moe_error *error);

/* Make the former ACTIVE generation active again: the same store. STATE if it was parked. The one
 * left is refused from then on (its sha256 cannot be staged again) if `refuse` is 1. */
int32_t moe_loader_rollback(struct moe_loader *loader, int32_t refuse, const char *reason,
                            struct moe_error *error);

/* Let a refused sha256 be staged again. */
int32_t moe_loader_allow(struct moe_loader *loader, const char *sha256, struct moe_error *error);

/* A run call of this generation returned a device error. Past max_device_errors the loader rolls
 * back and refuses the file. */
int32_t moe_loader_report(struct moe_loader *loader, uint64_t generation, int32_t status,
                          struct moe_error *error);

/* Look at DRAINING generations: those that no worker is in and is_done agrees to become WARM, to be
 * rolled back to. Never waits. */
int32_t moe_loader_poll(struct moe_loader *loader, struct moe_error *error);

/* Release a STAGED, WARM (not the former ACTIVE unless `also_former` is 1) or drained generation.
 * BUSY while it drains. */
int32_t moe_loader_park(struct moe_loader *loader, uint64_t generation, int32_t also_former,
                        struct moe_error *error);

/* ---- what is going on ------------------------------------------------------------------------ */

struct moe_loader_generation_info {
    uint32_t struct_size;
    int32_t state; /* MOE_GENERATION_* */
    uint64_t generation;
    uint64_t num_calls; /* enters that returned it, summed over workers */
    uint64_t num_device_errors;
    uint64_t config_fingerprint; /* compare across ranks before promoting */
    char sha256[72];
    char kernel_set_id[72]; /* likewise */
    char path[256];
    char reason[256]; /* of a rejection */
};

/* By position, oldest first; INVALID_ARGUMENT past the end. */
int32_t moe_loader_generation_at(struct moe_loader *loader, int32_t index,
                                 struct moe_loader_generation_info *out, struct moe_error *error);

struct moe_loader_stats {
    uint32_t struct_size;
    int32_t num_generations;
    uint64_t active_generation; /* 0: none */
    uint64_t num_promotes;
    uint64_t num_rollbacks;
    uint64_t num_rejected;
    uint64_t num_parked; /* images that stay mapped */
    uint64_t num_unloaded;
};
int32_t moe_loader_get_stats(struct moe_loader *loader, struct moe_loader_stats *out,
                             struct moe_error *error);

/* Name and sentence of a status of either list. Never NULL. */
const char *moe_loader_status_name(int32_t status);
const char *moe_loader_status_text(int32_t status);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif /* MOE_LOADER_H */
