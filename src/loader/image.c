/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "image.h"

#include "elf_check.h"
#include "loader_status.h"
#include "mapped.h"
#include "sha256.h"
#include "shadow.h"
#include "table_check.h"
#include "trust.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* More than any set of kernels; a larger file is not a plugin. */
#define FILE_BYTES_LIMIT (INT64_C(1) << 30)

#define OPEN_FLAGS (MOE_LOADER_SKIP_TRUST | MOE_LOADER_ALLOW_UNLOAD | MOE_LOADER_USE_MEMFD)

struct moe_loader_image {
    char sha256[MOE_SHA256_HEX_BYTES];
    uint32_t flags;
    char *path; /* for sentences */
    struct moe_elf_build_id build_id;
    struct moe_shadow shadow;
    void *handle; /* NULL: not mapped */
    struct moe_mapped mapped;
    const struct moe_plugin_api *api; /* NULL: not past the handshake */
};

/* What dlerror says, on one line and bounded; it belongs to the calling thread. */
static struct moe_loader_shown linker_reason(void)
{
    const char *reason = dlerror();
    return moe_loader_status_show_text(reason != NULL ? reason : "no reason given");
}

/* ---- preparing ---- */

static int is_hex_digest(const char *text)
{
    return strspn(text, "0123456789abcdefABCDEF") == MOE_SHA256_HEX_BYTES - 1 &&
           text[MOE_SHA256_HEX_BYTES - 1] == '\0';
}

static int32_t read_options(const struct moe_loader_open_options *options,
                            struct moe_loader_open_options *own, struct moe_error *error)
{
    memset(own, 0, sizeof(*own));
    if (options == NULL) {
        return MOE_STATUS_OK;
    }
    int32_t status = MOE_LOADER_READ(own, options, moe_loader_open_options, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    if ((own->flags & ~OPEN_FLAGS) != 0 || own->reserved != 0) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "moe_loader_open_options has flags 0x%x and reserved %d; valid "
            "flags are SKIP_TRUST, ALLOW_UNLOAD and USE_MEMFD, reserved is 0",
            own->flags, own->reserved);
    }
    if (own->sha256 != NULL && !is_hex_digest(own->sha256)) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "sha256 \"%.80s\" is not a digest; it must be 64 hexadecimal digits",
            MOE_LOADER_SHOW_PATH(own->sha256));
    }
    if (own->num_trusted_uids < 0 || (own->num_trusted_uids > 0 && own->trusted_uids == NULL)) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT, "num_trusted_uids is %d, trusted_uids %s",
            own->num_trusted_uids, own->trusted_uids == NULL ? "NULL" : "set");
    }
    return MOE_STATUS_OK;
}

static int32_t read_fully(int descriptor, unsigned char *bytes, size_t num_bytes)
{
    for (size_t at = 0; at < num_bytes;) {
        ssize_t num_read = pread(descriptor, bytes + at, num_bytes - at, (off_t)at);
        if (num_read < 0 && errno == EINTR) {
            continue;
        }
        if (num_read <= 0) {
            errno = num_read == 0 ? 0 : errno;
            return 0;
        }
        at += (size_t)num_read;
    }
    return 1;
}

/* Same file, unchanged as far as its clock can tell? */
static int is_unchanged(const struct stat *before, const struct stat *after)
{
    return before->st_size == after->st_size && before->st_mtim.tv_sec == after->st_mtim.tv_sec &&
           before->st_mtim.tv_nsec == after->st_mtim.tv_nsec &&
           before->st_ctim.tv_sec == after->st_ctim.tv_sec &&
           before->st_ctim.tv_nsec == after->st_ctim.tv_nsec;
}

/* All bytes of the file, in memory that the caller frees: every later check looks at these and no
 * others. */
static int32_t read_file(int descriptor, const char *path, unsigned char **out, size_t *out_bytes,
                         struct moe_error *error)
{
    struct stat before;
    struct stat after;
    if (fstat(descriptor, &before) != 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno, "%s: cannot be examined",
                                           MOE_LOADER_SHOW_PATH(path));
    }
    if (!S_ISREG(before.st_mode)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_FILE, "%s: not a regular file",
                                     MOE_LOADER_SHOW_PATH(path));
    }
    if (before.st_size > FILE_BYTES_LIMIT) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_FILE,
                                     "%s: the file has %lld bytes; a plugin has at most %lld",
                                     MOE_LOADER_SHOW_PATH(path), (long long)before.st_size,
                                     (long long)FILE_BYTES_LIMIT);
    }
    size_t num_bytes = (size_t)before.st_size;
    unsigned char *bytes = malloc(num_bytes > 0 ? num_bytes : 1);
    if (bytes == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "%s: no memory for the %zu bytes of the file",
                                     MOE_LOADER_SHOW_PATH(path), num_bytes);
    }
    if (!read_fully(descriptor, bytes, num_bytes)) {
        int reason = errno;
        free(bytes);
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, reason,
                                           reason == 0 ? "%s: became shorter while it was read"
                                                       : "%s: cannot be read",
                                           MOE_LOADER_SHOW_PATH(path));
    }
    if (fstat(descriptor, &after) != 0 || !is_unchanged(&before, &after)) {
        free(bytes);
        return moe_loader_status_set(
            error, MOE_STATUS_IO,
            "%s: changed while it was read; publish a plugin by renaming a "
            "complete file",
            MOE_LOADER_SHOW_PATH(path));
    }
    *out = bytes;
    *out_bytes = num_bytes;
    return MOE_STATUS_OK;
}

static int is_same_digest(const char *left, const char *right)
{
    for (int i = 0; i < MOE_SHA256_HEX_BYTES - 1; i++) {
        char upper = right[i] >= 'A' && right[i] <= 'F' ? (char)(right[i] - 'A' + 'a') : right[i];
        if (left[i] != upper) {
            return 0;
        }
    }
    return 1;
}

static struct moe_trust trust_of(const struct moe_loader_open_options *options)
{
    struct moe_trust trust = {.skip = (options->flags & MOE_LOADER_SKIP_TRUST) != 0,
                              .num_trusted_uids = options->num_trusted_uids,
                              .trusted_uids = options->trusted_uids};
    return trust;
}

/* Hash, check and copy what was read. */
static int32_t accept_bytes(struct moe_loader_image *image, const unsigned char *bytes,
                            size_t num_bytes, const struct moe_loader_open_options *options,
                            struct moe_error *error)
{
    moe_sha256_hex(bytes, num_bytes, image->sha256);
    if (options->sha256 != NULL && !is_same_digest(image->sha256, options->sha256)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_HASH,
                                     "%s: the file has sha256 %s, not the %.64s that was asked for",
                                     MOE_LOADER_SHOW_PATH(image->path), image->sha256,
                                     options->sha256);
    }
    int32_t status = moe_elf_check(bytes, num_bytes, image->path, &image->build_id, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_trust trust = trust_of(options);
    return moe_shadow_create(&image->shadow, options->shadow_directory,
                             (options->flags & MOE_LOADER_USE_MEMFD) != 0, &trust, image->sha256,
                             bytes, num_bytes, error);
}

static int32_t prepare(int descriptor, const char *path,
                       const struct moe_loader_open_options *options, struct moe_loader_image **out,
                       struct moe_error *error)
{
    unsigned char *bytes = NULL;
    size_t num_bytes = 0;
    int32_t status = MOE_STATUS_OUT_OF_MEMORY;
    struct moe_loader_image *image = calloc(1, sizeof(*image));
    if (image != NULL) {
        image->flags = options->flags;
        image->shadow.descriptor = -1;
        image->shadow.folder = -1;
        image->path = strdup(path);
    }
    if (image == NULL || image->path == NULL) {
        status = moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY, "no memory for an image");
        goto fail;
    }
    status = read_file(descriptor, path, &bytes, &num_bytes, error);
    if (status != MOE_STATUS_OK) {
        goto fail;
    }
    status = accept_bytes(image, bytes, num_bytes, options, error);
    if (status != MOE_STATUS_OK) {
        goto fail;
    }
    free(bytes);
    *out = image;
    return MOE_STATUS_OK;

fail:
    free(bytes);
    moe_loader_image_close(image, 0, NULL);
    return status;
}

int32_t moe_image_prepare(const char *path, const struct moe_loader_open_options *options,
                          struct moe_loader_image **out, struct moe_error *error)
{
    struct moe_loader_open_options own;
    int descriptor = -1;
    if (out == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "out is NULL");
    }
    int32_t status = read_options(options, &own, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    struct moe_trust trust = trust_of(&own);
    status = moe_trust_open_file(path, &trust, &descriptor, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = prepare(descriptor, path, &own, out, error);
    close(descriptor);
    return status;
}

int32_t moe_image_prepare_descriptor(int descriptor, const char *path,
                                     const struct moe_loader_open_options *options,
                                     struct moe_loader_image **out, struct moe_error *error)
{
    struct moe_loader_open_options own;
    int32_t status = read_options(options, &own, error);
    return status == MOE_STATUS_OK ? prepare(descriptor, path, &own, out, error) : status;
}

int moe_image_descriptor(const struct moe_loader_image *image)
{
    return image->shadow.descriptor;
}

/* ---- mapping ---- */

/* Does the dynamic linker have an image under this name? */
static int is_mapped(const char *path)
{
    void *handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == NULL) {
        (void)dlerror();
        return 0;
    }
    dlclose(handle);
    return 1;
}

static int32_t map_copy(struct moe_loader_image *image, struct moe_error *error)
{
    const char *path = image->shadow.path;
    int is_taken = is_mapped(path);
    while (is_taken && moe_shadow_renumber(&image->shadow)) {
        is_taken = is_mapped(path);
    }
    if (is_taken) {
        return moe_loader_status_set(error, MOE_STATUS_INTERNAL,
                                     "%s: the dynamic linker already has an image named %s",
                                     MOE_LOADER_SHOW_PATH(image->path), MOE_LOADER_SHOW_PATH(path));
    }
    image->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (image->handle == NULL) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_FILE,
                                     "%s: the dynamic linker refuses it: %s",
                                     MOE_LOADER_SHOW_PATH(image->path), linker_reason().text);
    }
    return MOE_STATUS_OK;
}

/* Is what is mapped the copy, and not something that the dynamic linker took for it? */
static int32_t prove(struct moe_loader_image *image, struct moe_error *error)
{
    struct link_map *map = NULL;
    if (dlinfo(image->handle, RTLD_DI_LINKMAP, &map) != 0 ||
        !moe_mapped_find(map->l_ld, &image->mapped)) {
        return moe_loader_status_set(error, MOE_STATUS_INTERNAL,
                                     "%s: the mapped image cannot be found: %s",
                                     MOE_LOADER_SHOW_PATH(image->path), linker_reason().text);
    }
    if (image->mapped.build_id.num_bytes != image->build_id.num_bytes ||
        memcmp(image->mapped.build_id.bytes, image->build_id.bytes, image->build_id.num_bytes) !=
            0) {
        return moe_loader_status_set(
            error, MOE_LOADER_STATUS_BAD_FILE,
            "%s: what was mapped has another build id than the file that was "
            "checked",
            MOE_LOADER_SHOW_PATH(image->path));
    }
    return MOE_STATUS_OK;
}

static int32_t shake_hands(struct moe_loader_image *image, const struct moe_host *host,
                           struct moe_error *error)
{
    void *symbol = dlsym(image->handle, MOE_PLUGIN_INIT_SYMBOL);
    if (symbol == NULL || !moe_mapped_can_execute(&image->mapped, (uintptr_t)symbol)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_FILE,
                                     "%s: " MOE_PLUGIN_INIT_SYMBOL " cannot be found in the image",
                                     MOE_LOADER_SHOW_PATH(image->path));
    }
    moe_plugin_init_fn *init;
    memcpy(&init, &symbol, sizeof(init)); /* ISO C has no conversion from void * to a function */
    struct moe_error refusal;
    MOE_INIT(refusal);
    const struct moe_plugin_api *api = init(host, &refusal);
    if (api == NULL && refusal.status != MOE_STATUS_OK) {
        refusal.message[sizeof(refusal.message) - 1] = '\0';
        return moe_loader_status_set(error, MOE_LOADER_STATUS_HANDSHAKE,
                                     "%s: moe_plugin_init refused (status %d): %s",
                                     MOE_LOADER_SHOW_PATH(image->path), refusal.status,
                                     MOE_LOADER_SHOW_TEXT(refusal.message));
    }
    int32_t status = moe_table_check(api, &image->mapped, image->path, error);
    if (status == MOE_STATUS_OK) {
        image->api = api;
    }
    return status;
}

int32_t moe_image_map(struct moe_loader_image *image, const struct moe_host *host,
                      struct moe_error *error)
{
    if (host == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "host is NULL");
    }
    int32_t status = map_copy(image, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    moe_shadow_mapped(&image->shadow);
    status = prove(image, error);
    return status == MOE_STATUS_OK ? shake_hands(image, host, error) : status;
}

/* ---- the public functions ---- */

int32_t moe_loader_image_open(const char *path, const struct moe_host *host,
                              const struct moe_loader_open_options *options,
                              struct moe_loader_image **out, struct moe_error *error)
{
    struct moe_loader_image *image = NULL;
    if (host == NULL || out == NULL) {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s is NULL",
                                     host == NULL ? "host" : "out");
    }
    int32_t status = moe_image_prepare(path, options, &image, error);
    if (image == NULL) { /* there is an image exactly if it succeeded */
        return status;
    }
    status = moe_image_map(image, host, error);
    if (status != MOE_STATUS_OK) {
        moe_loader_image_close(image, (image->flags & MOE_LOADER_ALLOW_UNLOAD) != 0, NULL);
        return status;
    }
    *out = image;
    return MOE_STATUS_OK;
}

const struct moe_plugin_api *moe_loader_image_api(const struct moe_loader_image *image)
{
    return image->api;
}

const char *moe_loader_image_sha256(const struct moe_loader_image *image)
{
    return image->sha256;
}

static int32_t unload(struct moe_loader_image *image, struct moe_error *error)
{
    struct link_map *map = NULL;
    struct moe_mapped found;
    dlinfo(image->handle, RTLD_DI_LINKMAP, &map);
    const void *dynamic = map != NULL ? (const void *)map->l_ld : NULL;
    int failed = dlclose(image->handle);
    if (failed || is_mapped(image->shadow.path) ||
        (dynamic != NULL && moe_mapped_find(dynamic, &found) && found.base == image->mapped.base)) {
        return moe_loader_status_set(error, MOE_STATUS_BUSY,
                                     "%s: still mapped after dlclose: another reference, a unique "
                                     "symbol, a destructor of a thread, or NODELETE holds it",
                                     MOE_LOADER_SHOW_PATH(image->path));
    }
    moe_shadow_finish(&image->shadow);
    return MOE_STATUS_OK;
}

int32_t moe_loader_image_close(struct moe_loader_image *image, int32_t wants_unload,
                               struct moe_error *error)
{
    if (image == NULL) {
        return MOE_STATUS_OK;
    }
    int32_t status = MOE_STATUS_OK;
    if (image->handle == NULL) {
        moe_shadow_finish(&image->shadow);
    } else if (wants_unload) {
        status = unload(image, error);
    }
    free(image->path);
    free(image);
    return status;
}
