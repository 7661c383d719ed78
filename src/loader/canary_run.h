/* SPDX-License-Identifier: Apache-2.0 */
/* Trying a prepared image in the helper process moe-canary before this process maps it. */
#ifndef MOE_LOADER_CANARY_RUN_H
#define MOE_LOADER_CANARY_RUN_H

#include "image.h"

/* The name of the helper's executable. */
#define MOE_CANARY_NAME "moe-canary"

struct moe_canary_options {
    const char *canary_path; /* the executable; NULL: the places that moe_loader_options names */
    const char *path;        /* of the plugin, for sentences */
    int32_t timeout_ms;      /* from start to end; 0: 20000 */
    int32_t backend;         /* MOE_BACKEND_* of the context it makes */
    int32_t ordinal;         /* of the device */
};

/*
 * Start the helper with a clean environment and the image's private copy as its descriptor 3, and
 * wait. It runs the handshake, makes a context with one thread, runs the self-test and destroys the
 * context. At the timeout its process group is killed. OK, or CANARY with a sentence that says in
 * which step it refused, crashed (with the signal) or timed out; IO when the helper could not be
 * started. Safe when the host ignores SIGCHLD or reaps children elsewhere.
 */
int32_t moe_canary_run(const struct moe_canary_options *options,
                       const struct moe_loader_image *image, struct moe_error *error);

#endif
