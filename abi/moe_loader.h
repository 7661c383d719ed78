/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe_loader.h: libmoe_loader, the host-side library that opens plugins of moe_plugin.h safely and
 * replaces one by another while the host serves. It needs libc and libdl only, knows no device, and
 * is optional: a host may dlopen a plugin by hand. Its rules for structs, errors and strings are
 * those of moe_plugin.h.
 *
 *   moe_loader_create(&options, &loader, &error);
 *   moe_loader_slot_open(loader, &slot_options, &slot, &error);    one per problem and its weights
 *   moe_loader_stage(loader, "/opt/moe/libmoe_plugin.so", NULL, &id, &error);    canary, checks,
 *                                            private copy, dlopen, context, weights, plans
 *   moe_loader_promote(loader, id, &error);
 *   ... each worker thread:  moe_loader_worker_open(loader, &worker, &error);  and per step
 *       const struct moe_loader_view *view = moe_loader_enter(worker, slot);
 *       args.weights = view->weights;
 *       view->api->layer(view->plan, &args, &error);
 *       moe_loader_leave(worker);
 *   ... to upgrade, on a control thread:  stage, verify, promote, then poll now and then;
 *       to go back:  rollback
 *
 * A generation is one plugin image with a context, and weights and plans for every open slot.
 *   STAGED    loaded, context, weights and plans made; serves nobody
 *   WARM      verified and not in use; may be promoted. Also the former ACTIVE after its drain
 *   ACTIVE    serves; exactly one, none before the first promote
 *   DRAINING  was ACTIVE; workers or the host's captured graphs may still use it
 *   PARKED    plans, weights and context are destroyed, device memory is returned; the image
 *             stays mapped
 *   REJECTED  refused, with the reason; never serves. Its resources are released as for PARKED
 * PARKED and REJECTED are final. The newest 64 such generations are remembered for
 * moe_loader_generation_at. A file whose bytes are mapped already is not mapped again: the mapped
 * image, which keeps no state, gets a new context.
 *
 * Threads. moe_loader_enter and moe_loader_leave are for the worker's thread and take no lock. All
 * else may be called from any thread, but not between that thread's enter and leave.
 *   Calls that build, run or release (slot_open, slot_close, stage, stage_config, verify, park)
 *   take turns among themselves and may take long. All others are short and never wait for those,
 *   so that a bad generation is rolled back at once even while a candidate is staged.
 *   Callbacks run on the calling thread with a mutex held: they must not call the loader.
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

/* The copy that is mapped is a sealed memfd, not a file in shadow_directory. Costs a descriptor for
 * as long as the image is mapped. */
#define MOE_LOADER_USE_MEMFD 8u

/* How a file is opened. Input. */
struct moe_loader_open_options {
    uint32_t struct_size;
    uint32_t flags; /* MOE_LOADER_SKIP_TRUST, _ALLOW_UNLOAD (an image that is refused after dlopen
                           is unloaded too), _USE_MEMFD */
    const char *sha256; /* 64 hex digits the file must have; NULL: any */
    /*
     * Private folder for the copy that is mapped, owned by this user with mode 0700; made if it is
     * missing (its parent must exist). NULL: /tmp/moe-loader-<uid>. The copy has a name that is
     * never used twice, only while it is being mapped: nothing is ever loaded from a name found
     * there, and what a killed process left is removed by the next open. A memfd takes its place
     * where the folder is mounted noexec and, if this is NULL, where it cannot be made or used.
     * Debuggers find symbols by the build id.
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
    /* For every context; copied, configuration files are read now, so that a generation can be
     * built again from what it was built from. NULL: all defaults. */
    const struct moe_context_options *context;
    const char *shadow_directory; /* as in moe_loader_open_options */
    /* moe-canary; NULL: beside the executable or in its ../lib/moe-plugin or ../bin */
    const char *canary_path;
    int32_t canary_timeout_ms; /* 0: 20000 */
    int32_t max_workers;       /* 0: 256 */
    int32_t max_slots;         /* 0: 1024 */
    int32_t max_parked; /* with this many parked images a file that is not one of them is not staged
                           (BUSY); 0: 64 */
    int32_t max_device_errors; /* reports of an ACTIVE generation at which it is rolled back; 0: 1,
                                  -1: never */
    int32_t reserved;
    void *self;
    void (*transition)(void *self,
                       const struct moe_loader_transition *transition); /* NULL: not wanted */
    /* 1: all work that the host queued with this generation is done, and its captured graphs are
     * destroyed; 0: not yet. Asked by poll once all workers have left. NULL: always 1 (CPU). */
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
    /* Copied with its tables; the elements stay until the slot is closed. */
    const struct moe_weights_desc *weights;
    uint64_t workspace_bytes; /* cap given to every plan; a generation that needs more is rejected.
                                 0: none, and views may differ in workspace_bytes */
    uint64_t workspace_alignment; /* of the workers' workspace; likewise. 0: 256 */
    uint64_t ops;                 /* as in moe_plan_options */
    /* Memory for prepared weights, when a plugin wants some: called on the control thread. Both
     * NULL (such a plugin is rejected) or both set. */
    void *self;
    void *(*prepared_alloc)(void *self, uint64_t bytes, uint64_t alignment);
    void (*prepared_free)(void *self, void *memory, uint64_t bytes, uint64_t alignment);
    void *stream; /* that weights are prepared on */
    /* Wait for `stream`; 0 when its work is done. NULL: nothing to wait for (CPU). */
    int32_t (*prepared_wait)(void *self, void *stream);
};

/*
 * Make weights and plans for the slot in every generation that may serve: STAGED, WARM, ACTIVE and
 * DRAINING. Fails, with nothing changed, if the ACTIVE one cannot; any other is rejected (a
 * DRAINING one at the end of its drain). A WARM generation that never served goes back to STAGED:
 * it has not been verified with this slot.
 */
int32_t moe_loader_slot_open(struct moe_loader *loader,
                             const struct moe_loader_slot_options *options,
                             struct moe_loader_slot **out, struct moe_error *error);
/*
 * The host's promise: from the first call on no worker that enters asks for the slot, and work that
 * was queued with it is done. BUSY while a worker that was inside at that first call, in whatever
 * slot, is still inside; try again. NULL is legal.
 */
int32_t moe_loader_slot_close(struct moe_loader_slot *slot, struct moe_error *error);

int32_t moe_loader_worker_open(struct moe_loader *loader, struct moe_loader_worker **out,
                               struct moe_error *error);
/* Not between enter and leave. NULL is legal. */
void moe_loader_worker_close(struct moe_loader_worker *worker);

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
 * The view of the ACTIVE generation, valid until leave. NULL, with nothing to leave, before the
 * first promote and when the worker is inside already. One load that other threads write to, the
 * stores go to cache lines of this worker. Costs no lock and no system call.
 */
const struct moe_loader_view *moe_loader_enter(struct moe_loader_worker *worker,
                                               const struct moe_loader_slot *slot);

/* The view of another slot in the generation that the worker is inside, valid until the same leave:
 * all layers of a step run on one generation. NULL when the worker is not inside. */
const struct moe_loader_view *moe_loader_view_of(const struct moe_loader_worker *worker,
                                                 const struct moe_loader_slot *slot);
void moe_loader_leave(struct moe_loader_worker *worker);

/* ---- generations ----------------------------------------------------------------------------- */

/*
 * Load a candidate: checks of the file, canary, then here; context, weights and plans for all open
 * slots. `options` NULL: the loader's. On failure the generation is REJECTED with the reason, and
 * what serves is untouched. A refused file is HASH. In `options`, MOE_LOADER_SKIP_CANARY is legal
 * too; MOE_LOADER_ALLOW_UNLOAD counts in the loader's options only.
 */
int32_t moe_loader_stage(struct moe_loader *loader, const char *path,
                         const struct moe_loader_open_options *options, uint64_t *generation,
                         struct moe_error *error);

/*
 * The ACTIVE image, context and weights with plans of a new configuration: `sources` replace those
 * of the loader's context options (files are read now), for later generations of stage as well once
 * this one is promoted. Verify and promote follow as for any candidate. When it is rejected the
 * context gets its former configuration back. STATE while nothing is ACTIVE.
 */
int32_t moe_loader_stage_config(struct moe_loader *loader, const struct moe_config_source *sources,
                                int32_t num_sources, uint64_t *generation, struct moe_error *error);

struct moe_loader_verify_options {
    uint32_t struct_size;
    uint32_t flags;         /* 0 */
    double max_relative_l2; /* of outputs against the ACTIVE generation's; 0: 1e-2 */
    double max_slowdown;    /* median time over the ACTIVE generation's, interleaved; a slot that
                               exceeds it is measured once more. 0: no speed gate */
    int32_t num_tokens;     /* of the comparison; 0: 16. At most the slot's max_tokens are taken */
    int32_t num_timed_runs; /* of each, for the gate; 0: 15 */
    uint64_t seed;          /* of the inputs */
    void *stream;           /* handed to run calls */
    /* Memory that the backend can use, for inputs, outputs and workspace, and copies between it and
     * the host's, which return 0 when done; all NULL: host memory (CPU). */
    void *self;
    void *(*memory_alloc)(void *self, uint64_t bytes, uint64_t alignment);
    void (*memory_free)(void *self, void *memory, uint64_t bytes, uint64_t alignment);
    int32_t (*copy_in)(void *self, void *device, const void *host, uint64_t bytes);
    /* Waits for the work on `stream` first. */
    int32_t (*copy_out)(void *self, void *host, const void *device, uint64_t bytes);
};

/*
 * The plugin's self-test, then every open slot on random inputs with its weights: `layer` with
 * given routes, with given logits and with its router (as far as the slot has them), or `experts`
 * where its ops are that. Outputs finite and fully written, the same bits whatever the workspace
 * held before, nothing written beside them, within tolerance of the ACTIVE generation's, fast
 * enough. Slots whose ops hold neither are covered by the self-test. STAGED (or WARM, to look
 * again) becomes WARM, or REJECTED with the reason: SELF_TEST, WRONG_RESULT, TOO_SLOW or what its
 * call returned. When the comparison itself cannot be made (no memory, a type that it cannot make
 * inputs of, a copy or the ACTIVE generation failed) the state stays.
 */
int32_t moe_loader_verify(struct moe_loader *loader, uint64_t generation,
                          const struct moe_loader_verify_options *options, struct moe_error *error);

/* Make a WARM generation ACTIVE for all slots by one atomic store. The first one may be promoted
 * from STAGED: there is nothing to compare it with. STATE, or BUSY while it is being verified. */
int32_t moe_loader_promote(struct moe_loader *loader, uint64_t generation, struct moe_error *error);

/*
 * Make the generation that served last before the ACTIVE one ACTIVE again: the same store. It may
 * still be DRAINING. STATE if there is none (never was, parked, or rejected). With `refuse` 1 the
 * one left behind never serves again: it is REJECTED at the end of its drain, and its file is
 * refused by stage from now on (unless both generations come from that file). `reason` may be NULL.
 */
int32_t moe_loader_rollback(struct moe_loader *loader, int32_t refuse, const char *reason,
                            struct moe_error *error);

/* Let a refused sha256 (64 hex digits) be staged again. INVALID_ARGUMENT if it is not refused. */
int32_t moe_loader_allow(struct moe_loader *loader, const char *sha256, struct moe_error *error);

/*
 * A run call of this generation returned `status`: DEVICE_ERROR, DEVICE_LOST or INTERNAL are
 * counted, others are INVALID_ARGUMENT. At max_device_errors of an ACTIVE generation the loader
 * rolls back as with `refuse` 1. STATE if there is nothing to go back to (it keeps serving).
 */
int32_t moe_loader_report(struct moe_loader *loader, uint64_t generation, int32_t status,
                          struct moe_error *error);

/* Look at DRAINING generations: those that all workers have left and that is_done agrees to become
 * WARM, or REJECTED if they were refused. Never waits. */
int32_t moe_loader_poll(struct moe_loader *loader, struct moe_error *error);

/* Release a STAGED or WARM generation. The one that rollback would take only if `also_former` is 1
 * (else STATE). BUSY while it drains, STATE in other states. */
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
    char path[320];
    char reason[256]; /* of a rejection */
};

/* By position, oldest first; INVALID_ARGUMENT past the end. */
int32_t moe_loader_generation_at(struct moe_loader *loader, int32_t index,
                                 struct moe_loader_generation_info *out, struct moe_error *error);

struct moe_loader_stats {
    uint32_t struct_size;
    int32_t num_generations;    /* that generation_at knows */
    uint64_t active_generation; /* 0: none */
    uint64_t num_promotes;
    uint64_t num_rollbacks;
    uint64_t num_rejected;
    uint64_t num_parked; /* images that stay mapped though no generation uses them */
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
