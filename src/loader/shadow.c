/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "shadow.h"

#include "loader_status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010u /* since Linux 6.3; older kernels make every memfd executable */
#endif

#define NAME_PREFIX "moe-shadow-"

/* Never repeats in a process, so no two copies ever have the same name in it. */
static _Atomic uint64_t num_copies;

static int write_all(int descriptor, const void *bytes, size_t num_bytes)
{
    const char *next = bytes;
    while (num_bytes > 0) {
        ssize_t written = write(descriptor, next, num_bytes);
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -1;
        }
        next += written;
        num_bytes -= (size_t)written;
    }
    return 0;
}

/* ---- memfd ---- */

static void name_memfd(struct moe_shadow *shadow)
{
    snprintf(shadow->path, sizeof(shadow->path), "/proc/self/fd/%d", shadow->descriptor);
}

/* The kernel refuses while one of the pages is in use elsewhere, which a busy machine does for a
 * moment; it has waited itself by then. */
static int seal(int descriptor)
{
    enum { NUM_TRIES = 50 };
    const struct timespec pause = {.tv_sec = 0, .tv_nsec = 10000000};
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int result = fcntl(descriptor, F_ADD_SEALS, seals);
    for (int i = 1; i < NUM_TRIES && result != 0 && errno == EBUSY; i++) {
        nanosleep(&pause, NULL);
        result = fcntl(descriptor, F_ADD_SEALS, seals);
    }
    return result;
}

static int32_t create_memfd(struct moe_shadow *shadow, const void *bytes, size_t num_bytes,
                            struct moe_error *error)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int descriptor = memfd_create(shadow->name, flags | MFD_EXEC);
    if (descriptor < 0 && errno == EINVAL) {
        descriptor = memfd_create(shadow->name, flags);
    }
    if (descriptor < 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                           "no memfd can be made for the private copy");
    }
    if (write_all(descriptor, bytes, num_bytes) != 0 || seal(descriptor) != 0) {
        int reason = errno;
        close(descriptor);
        return moe_loader_status_set_errno(
            error, MOE_STATUS_IO, reason,
            "the private copy of %zu bytes cannot be written to a memfd", num_bytes);
    }
    shadow->descriptor = descriptor;
    name_memfd(shadow);
    return MOE_STATUS_OK;
}

int32_t moe_shadow_renumber(struct moe_shadow *shadow)
{
    if (shadow->folder >= 0 || shadow->descriptor < 0) {
        return 0;
    }
    int other = fcntl(shadow->descriptor, F_DUPFD_CLOEXEC, shadow->descriptor + 1);
    if (other < 0) {
        return 0;
    }
    close(shadow->descriptor);
    shadow->descriptor = other;
    name_memfd(shadow);
    return 1;
}

/* ---- the folder ---- */

/*
 * Remove copies whose process was killed between making and mapping them. A live one holds a lock
 * on its copy; the kernel lets go of it with the process, also where process ids mean nothing
 * (another container).
 */
static void sweep(int folder)
{
    int own = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = own >= 0 ? fdopendir(own) : NULL;
    if (entries == NULL) {
        if (own >= 0) {
            close(own);
        }
        return;
    }
    for (struct dirent *entry = readdir(entries); entry != NULL; entry = readdir(entries)) {
        if (strncmp(entry->d_name, NAME_PREFIX, strlen(NAME_PREFIX)) != 0) {
            continue;
        }
        int stale = openat(folder, entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (stale >= 0) {
            if (flock(stale, LOCK_EX | LOCK_NB) == 0) {
                unlinkat(folder, entry->d_name, 0);
            }
            close(stale);
        }
    }
    closedir(entries);
}

/* The folder must be ours alone: what lies in it is about to be executed. */
static int32_t check_private(int folder, const char *directory, struct moe_error *error)
{
    struct stat state;
    if (fstat(folder, &state) != 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                           "%s: the folder for private copies cannot be examined",
                                           MOE_LOADER_SHOW_PATH(directory));
    }
    if (state.st_uid != geteuid() || (state.st_mode & 077u) != 0) {
        return moe_loader_status_set(
            error, MOE_LOADER_STATUS_UNTRUSTED,
            "%s: the folder for private copies belongs to user %u with mode "
            "%04o; it must belong to user %u with mode 0700",
            MOE_LOADER_SHOW_PATH(directory), (unsigned)state.st_uid,
            (unsigned)state.st_mode & 07777u, (unsigned)geteuid());
    }
    return MOE_STATUS_OK;
}

static int32_t open_private_folder(const char *directory, const struct moe_trust *trust,
                                   int *folder, char resolved[PATH_MAX], struct moe_error *error)
{
    if (mkdir(directory, 0700) != 0 && errno != EEXIST) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                           "%s: the folder for private copies cannot be made",
                                           MOE_LOADER_SHOW_PATH(directory));
    }
    int32_t status = moe_trust_open_folder(directory, trust, folder, resolved, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = check_private(*folder, directory, error);
    if (status != MOE_STATUS_OK) {
        close(*folder);
    }
    return status;
}

/* An empty file under the shadow's name, locked; -1 and errno. */
static int create_locked(struct moe_shadow *shadow, int folder)
{
    int descriptor =
        openat(folder, shadow->name, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (descriptor < 0) {
        return -1;
    }
    /* Between the two steps another process may have taken it for stale and removed it. */
    struct stat state;
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0 || fstat(descriptor, &state) != 0 ||
        state.st_nlink == 0) {
        close(descriptor);
        unlinkat(folder, shadow->name, 0);
        errno = EAGAIN;
        return -1;
    }
    return descriptor;
}

static int write_file(struct moe_shadow *shadow, int folder, const void *bytes, size_t num_bytes)
{
    int writer = openat(folder, shadow->name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (writer < 0) {
        return -1;
    }
    int failed = write_all(writer, bytes, num_bytes) != 0 || fchmod(writer, 0400) != 0;
    int reason = errno;
    if (close(writer) != 0 && !failed) {
        return -1;
    }
    errno = reason;
    return failed ? -1 : 0;
}

static void name_copy(struct moe_shadow *shadow, const char *sha256)
{
    snprintf(shadow->name, sizeof(shadow->name), NAME_PREFIX "%.16s-%ld-%llu.so", sha256,
             (long)getpid(), (unsigned long long)(atomic_fetch_add(&num_copies, 1) + 1));
}

static int32_t create_file(struct moe_shadow *shadow, int folder, const char *resolved,
                           const char *sha256, const void *bytes, size_t num_bytes,
                           struct moe_error *error)
{
    int descriptor = -1;
    for (int attempt = 0; attempt < 16 && descriptor < 0; attempt++) {
        name_copy(shadow, sha256);
        descriptor = create_locked(shadow, folder);
        if (descriptor < 0 && errno != EAGAIN && errno != EEXIST) {
            break;
        }
    }
    if (descriptor < 0) {
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, errno,
                                           "%s: no private copy can be made in this folder",
                                           MOE_LOADER_SHOW_PATH(resolved));
    }
    if (write_file(shadow, folder, bytes, num_bytes) != 0) {
        int reason = errno;
        unlinkat(folder, shadow->name, 0);
        close(descriptor);
        return moe_loader_status_set_errno(error, MOE_STATUS_IO, reason,
                                           "%s: the private copy of %zu bytes cannot be written",
                                           MOE_LOADER_SHOW_PATH(resolved), num_bytes);
    }
    shadow->descriptor = descriptor;
    shadow->folder = folder;
    snprintf(shadow->path, sizeof(shadow->path), "%s/%s", resolved, shadow->name);
    return MOE_STATUS_OK;
}

static int is_noexec(int folder)
{
    struct statvfs mount;
    return fstatvfs(folder, &mount) == 0 && (mount.f_flag & ST_NOEXEC) != 0;
}

int32_t moe_shadow_create(struct moe_shadow *shadow, const char *directory, int32_t wants_memfd,
                          const struct moe_trust *trust, const char *sha256, const void *bytes,
                          size_t num_bytes, struct moe_error *error)
{
    memset(shadow, 0, sizeof(*shadow));
    shadow->descriptor = -1;
    shadow->folder = -1;
    name_copy(shadow, sha256);
    if (wants_memfd) {
        return create_memfd(shadow, bytes, num_bytes, error);
    }

    char own_directory[64];
    snprintf(own_directory, sizeof(own_directory), "/tmp/moe-loader-%u", (unsigned)geteuid());
    int is_optional = directory == NULL;
    if (is_optional) {
        directory = own_directory;
    }
    int folder = -1;
    char resolved[PATH_MAX];
    int32_t status = open_private_folder(directory, trust, &folder, resolved, error);
    if (status != MOE_STATUS_OK) {
        return is_optional ? create_memfd(shadow, bytes, num_bytes, error) : status;
    }
    if (is_noexec(folder)) {
        close(folder);
        return create_memfd(shadow, bytes, num_bytes, error);
    }
    sweep(folder);
    status = create_file(shadow, folder, resolved, sha256, bytes, num_bytes, error);
    if (status != MOE_STATUS_OK) {
        close(folder);
        return is_optional ? create_memfd(shadow, bytes, num_bytes, error) : status;
    }
    return MOE_STATUS_OK;
}

void moe_shadow_mapped(struct moe_shadow *shadow)
{
    if (shadow->folder >= 0) {
        moe_shadow_finish(shadow);
    }
}

void moe_shadow_finish(struct moe_shadow *shadow)
{
    if (shadow->folder >= 0) {
        unlinkat(shadow->folder, shadow->name, 0);
        close(shadow->folder);
        shadow->folder = -1;
    }
    if (shadow->descriptor >= 0) {
        close(shadow->descriptor);
        shadow->descriptor = -1;
    }
}
