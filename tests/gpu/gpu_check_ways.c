/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways in which a call reaches the device: on a stream of the test's own, on that of the thread
 * or on the default one, at once or captured, in each of the three modes of capture. A captured
 * call is replayed with other memory first: what it does depends on the replay's inputs alone, and
 * whatever those are it writes nothing outside its arrays.
 */
#include "gpu_check.h"

enum {
    NUM_CAPTURES = 3,     /* modes, of each of two streams */
    MAX_MIRRORS = 64,     /* that live at once */
    ROTATION = 16,        /* bytes: whole elements of every type */
    OTHER_WAY_EACH = 6,   /* calls; the others go to the test's own stream at once */
    MANY_CALLS = 1000,    /* by then every way was gone */
    MAX_BYTES = 128 << 20 /* of memory that is kept while a graph is replayed with other */
};

static const struct way {
    const char *name;
    int is_own;     /* stream: the test's own */
    CUstream other; /* else this one */
    int is_captured;
    CUstreamCaptureMode mode;
} ways[] = {
    {"own", 1, NULL, 0, 0},
    {"own captured global", 1, NULL, 1, CU_STREAM_CAPTURE_MODE_GLOBAL},
    {"own captured thread-local", 1, NULL, 1, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL},
    {"own captured relaxed", 1, NULL, 1, CU_STREAM_CAPTURE_MODE_RELAXED},
    {"per-thread", 0, CU_STREAM_PER_THREAD, 0, 0},
    {"per-thread captured global", 0, CU_STREAM_PER_THREAD, 1, CU_STREAM_CAPTURE_MODE_GLOBAL},
    {"per-thread captured thread-local", 0, CU_STREAM_PER_THREAD, 1,
     CU_STREAM_CAPTURE_MODE_THREAD_LOCAL},
    {"per-thread captured relaxed", 0, CU_STREAM_PER_THREAD, 1, CU_STREAM_CAPTURE_MODE_RELAXED},
    {"default", 0, NULL, 0, 0},
};
enum { NUM_WAYS = sizeof(ways) / sizeof(ways[0]) };

static int way_idx; /* of the call that is queued */
static long long num_calls[NUM_WAYS];
static const struct check_mirror *mirrors[MAX_MIRRORS];
static int num_mirrors;

void check_mirror_init(struct check_mirror *mirror, size_t bytes, size_t misalignment)
{
    mirror->bytes = bytes;
    mirror->offset = GUARD_BYTES + misalignment;
    mirror->host = malloc(bytes + 2 * GUARD_BYTES + misalignment);
    mirror->device = gpu_alloc(bytes + 2 * GUARD_BYTES + misalignment);
    memset(mirror->host, POISON, bytes + 2 * GUARD_BYTES + misalignment);
    if (num_mirrors == MAX_MIRRORS) {
        fprintf(stderr, "gpu_check: more than %d mirrors at once\n", MAX_MIRRORS);
        exit(2);
    }
    mirrors[num_mirrors++] = mirror;
}

void check_mirror_finish(struct check_mirror *mirror)
{
    for (int i = 0; i < num_mirrors; i++) {
        if (mirrors[i] == mirror) {
            mirrors[i] = mirrors[--num_mirrors];
            break;
        }
    }
    free(mirror->host);
    gpu_free(mirror->device);
}

static size_t total_bytes(const struct check_mirror *mirror)
{
    return mirror->bytes + mirror->offset + GUARD_BYTES;
}

CUstream check_begin_way(void)
{
    size_t bytes = 0;
    for (int i = 0; i < num_mirrors; i++) {
        bytes += total_bytes(mirrors[i]);
    }
    way_idx = check_draw(OTHER_WAY_EACH) == 0 ? (int)check_draw(NUM_WAYS) : 0;
    if (ways[way_idx].is_captured && bytes > MAX_BYTES) {
        way_idx = 0;
    }
    const struct way *way = &ways[way_idx];
    const CUstream stream = way->is_own ? check_host.stream : way->other;
    num_calls[way_idx]++;
    if (way->is_captured) {
        gpu_graph_begin(stream, way->mode);
    }
    return stream;
}

/* The data of every mirror begins ROTATION bytes later, its first bytes come last. */
static void send_rotated(const struct check_mirror *mirror, const unsigned char *kept)
{
    unsigned char *rotated = malloc(total_bytes(mirror));
    memcpy(rotated, kept, total_bytes(mirror));
    if (mirror->bytes > ROTATION) {
        memcpy(rotated + mirror->offset, kept + mirror->offset + ROTATION,
               mirror->bytes - ROTATION);
        memcpy(rotated + mirror->offset + mirror->bytes - ROTATION, kept + mirror->offset,
               ROTATION);
    }
    gpu_upload(mirror->device, rotated, total_bytes(mirror));
    free(rotated);
}

static void check_guards(const struct check_mirror *mirror)
{
    const size_t total = total_bytes(mirror);
    unsigned char *got = malloc(total);
    gpu_download(got, mirror->device, total);
    for (size_t i = 0; i < total; i++) {
        if ((i < mirror->offset || i >= mirror->offset + mirror->bytes) && got[i] != POISON) {
            if (check_num_failed++ < 20) {
                printf("FAILED %s: a replay with other inputs wrote byte %lld of %zu\n",
                       ways[way_idx].name, (long long)i - (long long)mirror->offset, mirror->bytes);
            }
            break;
        }
    }
    check_num_checked++;
    free(got);
}

void check_wait(void)
{
    const struct way *way = &ways[way_idx];
    const CUstream stream = way->is_own ? check_host.stream : way->other;
    unsigned char *kept[MAX_MIRRORS];
    if (!way->is_captured) {
        gpu_synchronize(stream);
        return;
    }
    struct gpu_graph *graph = gpu_graph_end(stream);
    for (int i = 0; i < num_mirrors; i++) {
        kept[i] = malloc(total_bytes(mirrors[i]));
        gpu_download(kept[i], mirrors[i]->device, total_bytes(mirrors[i]));
        send_rotated(mirrors[i], kept[i]);
    }
    gpu_graph_launch(graph, stream);
    gpu_synchronize(stream);
    for (int i = 0; i < num_mirrors; i++) {
        check_guards(mirrors[i]);
        gpu_upload(mirrors[i]->device, kept[i], total_bytes(mirrors[i]));
        free(kept[i]);
    }
    gpu_graph_launch(graph, stream);
    gpu_synchronize(stream);
    gpu_graph_free(graph);
}

void check_report_ways(void)
{
    long long num_all = 0;
    for (int i = 0; i < NUM_WAYS; i++) {
        num_all += num_calls[i];
    }
    for (int i = 0; i < NUM_WAYS; i++) {
        printf("%-34s %7lld calls\n", ways[i].name, num_calls[i]);
        check_num_checked++;
        if (num_calls[i] > 0) {
            continue;
        }
        if (num_all < MANY_CALLS) {
            printf("so few calls need not go every way\n");
        } else {
            printf("FAILED no call went this way: %s\n", ways[i].name);
            check_num_failed++;
        }
    }
}
