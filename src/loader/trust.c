/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "trust.h"

#include "loader_status.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_trusted_owner(const struct moe_trust *trust, uid_t owner)
{
    if (owner == 0 || owner == geteuid()) {
        return 1;
    }
    for (int32_t i = 0; i < trust->num_trusted_uids; i++) {
        if (trust->trusted_uids[i] == owner) {
            return 1;
        }
    }
    return 0;
}

/* `path` is where `state` was found; for a folder, `is_folder` lets a sticky one be writable. */
static int32_t check_state(const struct moe_trust *trust, const struct stat *state, int is_folder,
                           const char *path, struct moe_error *error)
{
    const char *kind = is_folder ? "folder" : "file";
    if (trust->skip) {
        return MOE_STATUS_OK;
    }
    if (!is_trusted_owner(trust, state->st_uid)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_UNTRUSTED,
                                     "%s: the %s belongs to user %u; it must belong to root, to "
                                     "user %u (this process), or to a "
                                     "user in trusted_uids",
                                     MOE_LOADER_SHOW_PATH(path), kind, (unsigned)state->st_uid,
                                     (unsigned)geteuid());
    }
    int is_writable = (state->st_mode & (S_IWGRP | S_IWOTH)) != 0;
    if (is_writable && !(is_folder && (state->st_mode & S_ISVTX) != 0)) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_UNTRUSTED,
                                     "%s: the %s can be written by %s (mode %04o); take that away "
                                     "with chmod go-w",
                                     MOE_LOADER_SHOW_PATH(path), kind,
                                     (state->st_mode & S_IWOTH) != 0 ? "others" : "its group",
                                     (unsigned)state->st_mode & 07777u);
    }
    return MOE_STATUS_OK;
}

static int32_t resolve(const char *path, char resolved[PATH_MAX], struct moe_error *error)
{
    if (path == NULL || path[0] == '\0') {
        return moe_loader_status_set(error, MOE_STATUS_INVALID_ARGUMENT, "the path is %s",
                                     path == NULL ? "NULL" : "empty");
    }
    if (strnlen(path, PATH_MAX) == PATH_MAX) {
        return moe_loader_status_set(
            error, MOE_STATUS_IO, "%s: the path has %d bytes or more, more than the system takes",
            MOE_LOADER_SHOW_PATH(path), PATH_MAX);
    }
    if (realpath(path, resolved) != NULL) {
        return MOE_STATUS_OK;
    }
    int reason = errno;
    struct stat state;
    if (reason == ENOENT && lstat(path, &state) == 0 && S_ISLNK(state.st_mode)) {
        return moe_loader_status_set(error, MOE_STATUS_IO,
                                     "%s: a symbolic link to something that does not exist",
                                     MOE_LOADER_SHOW_PATH(path));
    }
    return moe_loader_status_set_errno(error, MOE_STATUS_IO, reason, "%s: cannot be found",
                                       MOE_LOADER_SHOW_PATH(path));
}

/*
 * Open the folder that holds the last component of the resolved path; `*name` points at that
 * component in it ("" for the root folder itself). `resolved` is cut and mended on the way.
 */
static int32_t walk(char *resolved, const struct moe_trust *trust, int *folder, const char **name,
                    struct moe_error *error)
{
    int current = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    char *component = resolved + 1;
    int32_t status = MOE_STATUS_OK;
    for (;;) {
        struct stat state;
        char *rest = strchr(component, '/');
        /* What has been walked so far, as text: the path up to this component. */
        char kept = *component;
        *component = '\0';
        if (current < 0) {
            status = moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                                 "%s: this folder cannot be opened",
                                                 MOE_LOADER_SHOW_PATH(resolved));
        } else if (fstat(current, &state) != 0) {
            status = moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                                 "%s: this folder cannot be examined",
                                                 MOE_LOADER_SHOW_PATH(resolved));
        } else {
            status = check_state(trust, &state, 1, resolved, error);
        }
        *component = kept;
        if (status != MOE_STATUS_OK) {
            break;
        }
        if (rest == NULL) {
            *folder = current;
            *name = component;
            return MOE_STATUS_OK;
        }
        *rest = '\0';
        int next = openat(current, component, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int reason = errno;
        close(current);
        errno = reason;
        *rest = '/';
        current = next;
        component = rest + 1;
    }
    if (current >= 0) {
        close(current);
    }
    return status;
}

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a folder";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
    case S_IFBLK:
        return "a device";
    case S_IFLNK:
        return "a symbolic link";
    default:
        return "of an unknown kind";
    }
}

/* Open the last component and check what was opened. */
static int32_t open_last(int folder, const char *name, const char *resolved, int wants_folder,
                         const struct moe_trust *trust, int *descriptor, struct moe_error *error)
{
    mode_t wanted = wants_folder ? S_IFDIR : S_IFREG;
    struct stat state;
    /* Looked at before it is opened, because opening a device or a FIFO can do something. */
    if (fstatat(folder, name, &state, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno, "%s: cannot be examined",
                                           MOE_LOADER_SHOW_PATH(resolved));
    }
    int opened = -1;
    if ((state.st_mode & S_IFMT) == wanted) {
        int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
        opened = openat(folder, name[0] == '\0' ? "." : name,
                        wants_folder ? flags | O_DIRECTORY : flags);
        if (opened < 0) {
            return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno, "%s: cannot be opened",
                                               MOE_LOADER_SHOW_PATH(resolved));
        }
        if (fstat(opened, &state) != 0) {
            int reason = errno;
            close(opened);
            return moe_loader_status_set_errno(error, MOE_STATUS_IO, reason,
                                               "%s: cannot be examined",
                                               MOE_LOADER_SHOW_PATH(resolved));
        }
    }
    int32_t status = MOE_STATUS_OK;
    if ((state.st_mode & S_IFMT) != wanted) {
        status =
            moe_loader_status_set(error, MOE_LOADER_STATUS_BAD_FILE, "%s: this is %s, not a %s",
                                  MOE_LOADER_SHOW_PATH(resolved), kind_of(state.st_mode),
                                  wants_folder ? "folder" : "regular file");
    } else {
        status = check_state(trust, &state, wants_folder, resolved, error);
    }
    if (status != MOE_STATUS_OK) {
        if (opened >= 0) {
            close(opened);
        }
        return status;
    }
    *descriptor = opened;
    return MOE_STATUS_OK;
}

static int32_t open_resolved(const char *path, int wants_folder, const struct moe_trust *trust,
                             int *descriptor, char resolved[PATH_MAX], struct moe_error *error)
{
    int folder = -1;
    const char *name = NULL;
    int32_t status = resolve(path, resolved, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = walk(resolved, trust, &folder, &name, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = open_last(folder, name, resolved, wants_folder, trust, descriptor, error);
    close(folder);
    return status;
}

int32_t moe_trust_open_file(const char *path, const struct moe_trust *trust, int *descriptor,
                            struct moe_error *error)
{
    char resolved[PATH_MAX];
    return open_resolved(path, 0, trust, descriptor, resolved, error);
}

int32_t moe_trust_open_folder(const char *path, const struct moe_trust *trust, int *descriptor,
                              char *resolved, struct moe_error *error)
{
    return open_resolved(path, 1, trust, descriptor, resolved, error);
}
