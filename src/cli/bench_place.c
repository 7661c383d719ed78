/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_place.h"

#include "element.h"

#include <stdlib.h>

/* Elements that are drawn for a GPU; what is larger is made of copies of them. */
enum { PERIOD_ELEMENTS = (1 << 25) + 4099 };

int moe_bench_place_available(const struct moe_bench_place *place, uint64_t *num_bytes,
                              struct moe_cli_error *error)
{
    if (place->gpu != NULL) {
        return moe_gpu_available(place->gpu, num_bytes, error);
    }
    *num_bytes = moe_bench_memory_available();
    return 0;
}

int moe_bench_place_take(const struct moe_bench_place *place, uint64_t num_bytes,
                         const char *purpose, struct moe_bench_memory *memory,
                         struct moe_cli_error *error)
{
    if (place->gpu == NULL) {
        return moe_bench_memory_init(memory, num_bytes, purpose, error);
    }
    void *bytes = NULL;
    num_bytes = num_bytes > 0 ? num_bytes : MOE_BENCH_ALIGNMENT;
    if (moe_gpu_alloc(place->gpu, num_bytes, purpose, &bytes, error) != 0) {
        return -1;
    }
    *memory = (struct moe_bench_memory){.bytes = bytes, .num_bytes = num_bytes, .gpu = place->gpu};
    return 0;
}

/* Draws the first elements on the host, sends them, and doubles what is there until all is full. */
static int fill_gpu(const struct moe_bench_place *place, unsigned char *to, int32_t dtype,
                    uint64_t num_elements, float scale, uint64_t seed, struct moe_cli_error *error)
{
    const uint64_t num_drawn = num_elements < PERIOD_ELEMENTS ? num_elements : PERIOD_ELEMENTS;
    const uint64_t all_bytes = num_elements * moe_element_bytes(dtype);
    uint64_t done_bytes = num_drawn * moe_element_bytes(dtype);
    void *drawn = malloc((size_t)done_bytes + 1);
    if (drawn == NULL) {
        return moe_cli_fail_memory(error, "drawing random numbers");
    }
    int status = moe_bench_memory_fill(drawn, dtype, num_drawn, scale, seed, place->team, error);
    if (status == 0) {
        status = moe_gpu_upload(place->gpu, to, drawn, done_bytes, error);
    }
    free(drawn);
    while (status == 0 && done_bytes < all_bytes) {
        const uint64_t left_bytes = all_bytes - done_bytes;
        const uint64_t num_bytes = left_bytes < done_bytes ? left_bytes : done_bytes;
        status = moe_gpu_copy(place->gpu, to + done_bytes, to, num_bytes, error);
        done_bytes += num_bytes;
    }
    return status;
}

int moe_bench_place_fill(const struct moe_bench_place *place, void *elements, int32_t dtype,
                         uint64_t num_elements, float scale, uint64_t seed,
                         struct moe_cli_error *error)
{
    return place->gpu != NULL ? fill_gpu(place, elements, dtype, num_elements, scale, seed, error)
                              : moe_bench_memory_fill(elements, dtype, num_elements, scale, seed,
                                                      place->team, error);
}
