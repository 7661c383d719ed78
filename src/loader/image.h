/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two halves of moe_loader_image_open, for callers that put a canary between them:
 *   prepare   trust, bytes, ELF check and the private copy; nothing of the file has been mapped
 *   map       dlopen of the copy, proof, handshake, table
 * moe_loader_image_close ends an image in any state. An image is used by one thread at a time.
 */
#ifndef MOE_LOADER_IMAGE_H
#define MOE_LOADER_IMAGE_H

#include "moe_loader.h"

int32_t moe_image_prepare(const char *path, const struct moe_loader_open_options *options,
                          struct moe_loader_image **out, struct moe_error *error);

/*
 * The same from a descriptor that the caller opened and keeps; only the folder checks are left
 * out, and `path` only names the file in sentences.
 */
int32_t moe_image_prepare_descriptor(int descriptor, const char *path,
                                     const struct moe_loader_open_options *options,
                                     struct moe_loader_image **out, struct moe_error *error);

/* A read-only descriptor of the private copy, owned by the image; valid until it is mapped. */
int moe_image_descriptor(const struct moe_loader_image *image);

/*
 * On failure the image is not usable and is to be closed; whether the mapping was undone is decided
 * by MOE_LOADER_ALLOW_UNLOAD in the options given to prepare.
 */
int32_t moe_image_map(struct moe_loader_image *image, const struct moe_host *host,
                      struct moe_error *error);

#endif
