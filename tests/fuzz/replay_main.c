/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target over stored inputs, without libFuzzer: each argument is a file, or a folder of
 * files. Exit status 2 if something cannot be read or there is no input at all.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static int replay_file(const char *path, size_t file_bytes)
{
    uint8_t *data = malloc(file_bytes > 0 ? file_bytes : 1); /* exact, so that ASan sees overruns */
    FILE *file = fopen(path, "rb");
    int status = -1;

    if (data == NULL || file == NULL || fread(data, 1, file_bytes, file) != file_bytes) {
        perror(path);
    } else {
        fprintf(stderr, "replay %s (%zu bytes)\n", path, file_bytes);
        LLVMFuzzerTestOneInput(data, file_bytes);
        status = 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    free(data);
    return status;
}

static int replay_path(const char *path, size_t *num_replayed);

static int replay_folder(const char *path, size_t *num_replayed)
{
    DIR *folder = opendir(path);
    int status = folder != NULL ? 0 : -1;
    const struct dirent *entry;

    if (folder == NULL) {
        perror(path);
        return -1;
    }
    while (status == 0 && (entry = readdir(folder)) != NULL) {
        char child[4096];

        if (entry->d_name[0] == '.') {
            continue;
        }
        if (snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= (int)sizeof child) {
            fprintf(stderr, "%s/%s: the path is too long\n", path, entry->d_name);
            status = -1;
        } else {
            status = replay_path(child, num_replayed);
        }
    }
    closedir(folder);
    return status;
}

static int replay_path(const char *path, size_t *num_replayed)
{
    struct stat info;

    if (stat(path, &info) != 0) {
        perror(path);
        return -1;
    }
    if (S_ISDIR(info.st_mode)) {
        return replay_folder(path, num_replayed);
    }
    (*num_replayed)++;
    return replay_file(path, (size_t)info.st_size);
}

int main(int argc, char **argv)
{
    size_t num_replayed = 0;

    for (int i = 1; i < argc; i++) {
        if (replay_path(argv[i], &num_replayed) != 0) {
            return 2;
        }
    }
    if (num_replayed == 0) {
        fprintf(stderr, "no input; usage: %s FILE-OR-FOLDER...\n", argv[0]);
        return 2;
    }
    printf("%zu inputs replayed\n", num_replayed);
    return 0;
}
