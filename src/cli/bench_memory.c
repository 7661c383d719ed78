/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "bench_memory.h"

#include "bench_random.h"
#include "element.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    MAX_CACHES = 8,
    TABLE_BITS = 16,
    TABLE_ENTRIES = 1 << TABLE_BITS,
    ENTRIES_PER_DRAW = 64 / TABLE_BITS,
    CHUNK_ELEMENTS = 1 << 20 /* filled from one seed, so that threads do not show in the result */
};

/* The number after `key` in a file of lines "key value ..."; the first number of the file when
 * `key` is "". 0: none. */
static uint64_t read_number(const char *path, const char *key)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return 0;
    }
    char line[256];
    uint64_t value = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) {
            value = strtoull(line + strlen(key), NULL, 10); /* "max" reads as 0: no limit */
            break;
        }
    }
    fclose(file);
    return value;
}

static uint64_t smaller_limit(uint64_t available, const char *limit_path, const char *usage_path)
{
    const uint64_t limit = read_number(limit_path, "");
    if (limit == 0) {
        return available;
    }
    const uint64_t usage = read_number(usage_path, "");
    const uint64_t left = usage < limit ? limit - usage : 1;
    return available == 0 || left < available ? left : available;
}

uint64_t moe_bench_memory_available(void)
{
    uint64_t available = 1024 * read_number("/proc/meminfo", "MemAvailable:");
    available =
        smaller_limit(available, "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
    return smaller_limit(available, "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                         "/sys/fs/cgroup/memory/memory.usage_in_bytes");
}

uint64_t moe_bench_memory_cache_bytes(int64_t otherwise)
{
    uint64_t largest = 0;
    for (int index = 0; index < MAX_CACHES; ++index) {
        char path[80];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        const uint64_t bytes = 1024 * read_number(path, ""); /* "32768K" */
        largest = bytes > largest ? bytes : largest;
    }
    return largest > 0 || otherwise < 0 ? largest : (uint64_t)otherwise;
}

uint64_t moe_bench_memory_align(uint64_t value)
{
    return (value + MOE_BENCH_ALIGNMENT - 1) / MOE_BENCH_ALIGNMENT * MOE_BENCH_ALIGNMENT;
}

int moe_bench_memory_init(struct moe_bench_memory *memory, uint64_t num_bytes, const char *purpose,
                          struct moe_cli_error *error)
{
    memory->num_bytes = num_bytes > 0 ? num_bytes : MOE_BENCH_ALIGNMENT;
    memory->gpu = NULL;
    memory->bytes =
        mmap(NULL, memory->num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory->bytes == MAP_FAILED) {
        const int code = errno;
        memory->bytes = NULL;
        return MOE_CLI_FAIL(error, "no memory for %s (%" PRIu64 " MB): %s", purpose,
                            num_bytes / 1000000, strerror(code));
    }
    /* A wish: with small pages both the limits and the operations are slower alike. */
    (void)madvise(memory->bytes, memory->num_bytes, MADV_HUGEPAGE);
    return 0;
}

void moe_bench_memory_finish(struct moe_bench_memory *memory)
{
    if (memory->gpu != NULL) {
        moe_gpu_free(memory->gpu, memory->bytes);
    } else if (memory->bytes != NULL) {
        munmap(memory->bytes, memory->num_bytes);
    }
    *memory = (struct moe_bench_memory){.bytes = NULL};
}

struct fill {
    char *elements;
    size_t element_bytes;
    uint64_t num_elements;
    uint64_t seed;
    const char *table; /* TABLE_ENTRIES elements */
};

/* One draw gives ENTRIES_PER_DRAW elements; written out per size, because a memcpy of known size is
 * a move. */
static void fill_chunk_1(char *out, const char *table, uint64_t num_elements,
                         struct moe_bench_random *random)
{
    for (uint64_t i = 0; i < num_elements; i += ENTRIES_PER_DRAW) {
        uint64_t bits = moe_bench_random_next(random);
        for (uint64_t j = 0; j < ENTRIES_PER_DRAW && i + j < num_elements;
             ++j, bits >>= TABLE_BITS) {
            out[i + j] = table[bits % TABLE_ENTRIES];
        }
    }
}

static void fill_chunk_2(char *out, const char *table, uint64_t num_elements,
                         struct moe_bench_random *random)
{
    for (uint64_t i = 0; i < num_elements; i += ENTRIES_PER_DRAW) {
        uint64_t bits = moe_bench_random_next(random);
        for (uint64_t j = 0; j < ENTRIES_PER_DRAW && i + j < num_elements;
             ++j, bits >>= TABLE_BITS) {
            memcpy(out + 2 * (i + j), table + 2 * (bits % TABLE_ENTRIES), 2);
        }
    }
}

static void fill_chunk_4(char *out, const char *table, uint64_t num_elements,
                         struct moe_bench_random *random)
{
    for (uint64_t i = 0; i < num_elements; i += ENTRIES_PER_DRAW) {
        uint64_t bits = moe_bench_random_next(random);
        for (uint64_t j = 0; j < ENTRIES_PER_DRAW && i + j < num_elements;
             ++j, bits >>= TABLE_BITS) {
            memcpy(out + 4 * (i + j), table + 4 * (bits % TABLE_ENTRIES), 4);
        }
    }
}

static void fill_share(void *self, int thread_idx, int num_threads)
{
    const struct fill *fill = self;
    const uint64_t num_chunks = (fill->num_elements + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS;
    for (uint64_t chunk = (uint64_t)thread_idx; chunk < num_chunks;
         chunk += (uint64_t)num_threads) {
        const uint64_t first = chunk * CHUNK_ELEMENTS;
        const uint64_t left = fill->num_elements - first;
        const uint64_t num_elements = left < CHUNK_ELEMENTS ? left : CHUNK_ELEMENTS;
        struct moe_bench_random random;
        moe_bench_random_init(&random, fill->seed, chunk);
        char *out = fill->elements + first * fill->element_bytes;
        if (fill->element_bytes == 1) {
            fill_chunk_1(out, fill->table, num_elements, &random);
        } else if (fill->element_bytes == 2) {
            fill_chunk_2(out, fill->table, num_elements, &random);
        } else {
            fill_chunk_4(out, fill->table, num_elements, &random);
        }
    }
}

int moe_bench_memory_fill(void *elements, int32_t dtype, uint64_t num_elements, float scale,
                          uint64_t seed, struct moe_bench_team *team, struct moe_cli_error *error)
{
    const size_t element_bytes = moe_element_bytes(dtype);
    char *table = malloc(TABLE_ENTRIES * element_bytes);
    if (table == NULL) {
        return moe_cli_fail_memory(error, "drawing random numbers");
    }
    moe_element_fill_normal(table, dtype, TABLE_ENTRIES, seed);
    for (int64_t i = 0; i < TABLE_ENTRIES; ++i) {
        moe_element_store(table, dtype, i, scale * moe_element_load(table, dtype, i));
    }
    struct fill fill = {.elements = elements,
                        .element_bytes = element_bytes,
                        .num_elements = num_elements,
                        .seed = seed,
                        .table = table};
    moe_bench_team_run(team, fill_share, &fill);
    free(table);
    return 0;
}
