/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors as the plugin sees them and as doubles for the references; expert ids, ordinary and
 * hostile; filters. */
#ifndef MOE_TESTS_OP_DATA_H
#define MOE_TESTS_OP_DATA_H

#include "op_plugin.h"

#include <math.h>

enum { OP_POOL_ELEMENTS = 8191, OP_MAX_POOLS = 16 };

static const int32_t op_dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16};

static inline enum ref_dtype op_ref_dtype(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32       ? REF_F32
           : dtype == MOE_DTYPE_FP16     ? REF_F16
           : dtype == MOE_DTYPE_FP8_E4M3 ? REF_E4M3
                                         : REF_BF16;
}

static inline size_t op_dtype_bytes(int32_t dtype)
{
    return ref_dtype_bytes(op_ref_dtype(dtype));
}

static inline void *op_array(int64_t count, size_t element_bytes)
{
    void *array = calloc((size_t)count + 1, element_bytes);
    assert_non_null(array);
    return array;
}

/* A poisoned output of `bytes`, guarded, at an address that is aligned to the element and to no
 * more. */
static inline struct support_guard op_output(int64_t bytes, size_t element_bytes, int poison)
{
    const struct support_guard_options options = {.misalignment = element_bytes, .poison = poison};
    struct support_guard guard;
    support_guard_init(&guard, (size_t)bytes, &options);
    return guard;
}

/* An input that ends at a page without access, so that reading behind it faults. */
static inline struct support_guard op_input(const void *from, int64_t bytes, size_t element_bytes)
{
    const struct support_guard_options options = {
        .alignment = element_bytes, .poison = SUPPORT_POISON_FLOAT, .end_at_page = true};
    struct support_guard guard;
    support_guard_init(&guard, (size_t)bytes, &options);
    if (from != NULL && bytes > 0) {
        memcpy(guard.data, from, (size_t)bytes);
    }
    return guard;
}

/* ---------------------------------------------------------------- random elements */

/* Normal elements of one type and scale, which tensors are filled from piece by piece. */
struct op_pool {
    int32_t dtype;
    double scale;
    unsigned char native[OP_POOL_ELEMENTS * sizeof(float)];
    double values[OP_POOL_ELEMENTS];
};

static inline const struct op_pool *op_pool(int32_t dtype, double scale)
{
    static struct op_pool pools[OP_MAX_POOLS];
    for (int i = 0; i < OP_MAX_POOLS; i++) {
        struct op_pool *pool = &pools[i];
        if (pool->dtype == dtype && pool->scale == scale) {
            return pool;
        }
        if (pool->dtype == 0) {
            struct support_random random;
            support_random_seed(&random, (uint64_t)i + 77);
            pool->dtype = dtype;
            pool->scale = scale;
            support_fill_normal(&random, op_ref_dtype(dtype), pool->native, OP_POOL_ELEMENTS,
                                scale);
            ref_load_all(op_ref_dtype(dtype), pool->native, OP_POOL_ELEMENTS, pool->values);
            return pool;
        }
    }
    fail_msg("more than %d kinds of elements", OP_MAX_POOLS);
    return NULL;
}

/* `count` elements to `native` and the same to `values`. */
static inline void op_fill(struct support_random *random, int32_t dtype, double scale,
                           int64_t count, unsigned char *native, double *values)
{
    const struct op_pool *pool = op_pool(dtype, scale);
    const size_t bytes = op_dtype_bytes(dtype);
    for (int64_t done = 0; done < count;) {
        const int64_t from = (int64_t)support_random_below(random, OP_POOL_ELEMENTS);
        int64_t piece =
            OP_POOL_ELEMENTS - from < count - done ? OP_POOL_ELEMENTS - from : count - done;
        memcpy(native + (size_t)done * bytes, pool->native + (size_t)from * bytes,
               (size_t)piece * bytes);
        memcpy(values + done, pool->values + from, (size_t)piece * sizeof(double));
        done += piece;
    }
}

/* Rows in guarded memory, NaN in the gaps between them, and dense doubles of the same values. */
struct op_tensor {
    struct support_guard memory;
    double *values; /* [num_rows][width] */
    int64_t num_rows;
    int64_t width;
    int64_t stride;
    int32_t dtype;
};

static inline void op_tensor_init(struct op_tensor *tensor, struct support_random *random,
                                  int32_t dtype, int64_t num_rows, int64_t width, int64_t gap,
                                  double scale)
{
    const size_t bytes = op_dtype_bytes(dtype);
    unsigned char *row = op_array(width, bytes);
    tensor->num_rows = num_rows;
    tensor->width = width;
    tensor->stride = width + gap;
    tensor->dtype = dtype;
    tensor->values = op_array(num_rows * width, sizeof(double));
    const int64_t count = num_rows > 0 ? num_rows * tensor->stride - gap : 0;
    tensor->memory = op_input(NULL, count * (int64_t)bytes, bytes);
    for (int64_t r = 0; r < num_rows; r++) {
        op_fill(random, dtype, scale, width, row, tensor->values + r * width);
        memcpy(tensor->memory.data + (size_t)(r * tensor->stride) * bytes, row,
               (size_t)width * bytes);
    }
    free(row);
}

static inline void op_tensor_finish(struct op_tensor *tensor)
{
    support_guard_finish(&tensor->memory);
    free(tensor->values);
}

/* Rows of `width` elements out of a guarded buffer with `stride`; the gaps must still hold poison.
 */
static inline void op_pack_rows(const struct support_guard *guard, int64_t num_rows, int64_t width,
                                int64_t stride, size_t element_bytes, void *packed)
{
    const size_t row_bytes = (size_t)width * element_bytes;
    for (int64_t r = 0; r < num_rows; r++) {
        const size_t begin = (size_t)(r * stride) * element_bytes;
        const size_t next = (size_t)((r + 1) * stride) * element_bytes;
        assert_true(support_guard_is_poison(guard, begin + row_bytes,
                                            next < guard->size ? next : guard->size));
        memcpy((unsigned char *)packed + (size_t)r * row_bytes, guard->data + begin, row_bytes);
    }
}

/* ---------------------------------------------------------------- routes */

enum op_traffic {
    OP_TRAFFIC_UNIFORM,  /* distinct within a token */
    OP_TRAFFIC_HOT,      /* one expert in every slot */
    OP_TRAFFIC_FILTERED, /* no route is local */
    OP_TRAFFIC_HOSTILE,  /* -1, E, the ends of the type, beyond 2^32 */
    OP_TRAFFIC_ZIPF,
    OP_NUM_TRAFFICS
};

enum op_filtering {
    OP_FILTER_NONE,
    OP_FILTER_RANGE,
    OP_FILTER_MAP,
    OP_FILTER_BOTH,
    OP_NUM_FILTERINGS
};

struct op_routes {
    int64_t num_tokens;
    int64_t top_k;
    int64_t num_experts; /* global */
    int64_t num_routes;
    bool wide; /* int64 ids */
    int64_t *ids;
    struct support_guard memory; /* the ids as the plugin reads them */
    struct ref_filter ref;
    struct moe_route_filter filter;
    struct support_guard map;
};

static inline int64_t op_hostile_id(struct support_random *random, int64_t num_experts, bool wide)
{
    const int64_t narrow[] = {-1, num_experts, INT32_MAX, INT32_MIN, -2, num_experts + 1};
    /* The low halves of the first three are legal ids. */
    const int64_t beyond[] = {INT64_C(1) << 32,    (INT64_C(1) << 32) + num_experts - 1,
                              -(INT64_C(1) << 32), INT64_MAX,
                              INT64_MIN,           -1};
    const uint64_t pick = support_random_below(random, 6);
    return wide && support_random_below(random, 2) == 0 ? beyond[pick] : narrow[pick];
}

static inline int64_t op_traffic_id(struct support_random *random, enum op_traffic traffic,
                                    int64_t num_experts, bool wide)
{
    const int64_t uniform = (int64_t)support_random_below(random, (uint64_t)num_experts);
    switch (traffic) {
    case OP_TRAFFIC_HOT:
        return num_experts / 2;
    case OP_TRAFFIC_FILTERED:
        return op_hostile_id(random, num_experts, wide);
    case OP_TRAFFIC_HOSTILE:
        return support_random_below(random, 2) == 0 ? op_hostile_id(random, num_experts, wide)
                                                    : uniform;
    case OP_TRAFFIC_ZIPF:
        /* P(id >= n) = 1 / (n + 1). */
        return (int64_t)fmin(1.0 / support_random_uniform(random) - 1.0, (double)num_experts - 1.0);
    default:
        return uniform;
    }
}

/* Local experts: a quarter to three quarters by range; by map every third is elsewhere, one entry
 * lies beyond the local experts, and the rest are numbered backwards. */
static inline void op_routes_filter(struct op_routes *routes, enum op_filtering filtering)
{
    const int64_t num_experts = routes->num_experts;
    int32_t *map = op_array(num_experts, sizeof(*map));
    routes->ref = ref_filter_all(num_experts);
    memset(&routes->filter, 0, sizeof(routes->filter));
    if (filtering == OP_FILTER_RANGE || filtering == OP_FILTER_BOTH) {
        routes->ref.begin = num_experts / 4;
        routes->ref.end = (num_experts * 3 + 3) / 4;
        routes->ref.num_local = routes->ref.end - routes->ref.begin;
        routes->filter.expert_begin = (int32_t)routes->ref.begin;
        routes->filter.expert_end = (int32_t)routes->ref.end;
    }
    if (filtering == OP_FILTER_MAP || filtering == OP_FILTER_BOTH) {
        routes->ref.num_local = (num_experts * 2 + 2) / 3;
        for (int64_t e = 0; e < num_experts; e++) {
            map[e] = e % 3 == 2 ? -1 : (int32_t)(routes->ref.num_local - 1 - e * 2 / 3);
        }
        map[0] = num_experts > 1 ? INT32_MAX : 0;
    }
    routes->map = op_input(map, num_experts * 4, 4);
    if (filtering == OP_FILTER_MAP || filtering == OP_FILTER_BOTH) {
        routes->ref.expert_map = (const int32_t *)(const void *)routes->map.data;
        routes->filter.expert_map = routes->ref.expert_map;
    }
    free(map);
}

static inline void op_routes_init(struct op_routes *routes, struct support_random *random,
                                  int64_t num_tokens, int64_t num_experts, int64_t top_k,
                                  enum op_traffic traffic, enum op_filtering filtering, bool wide)
{
    routes->num_tokens = num_tokens;
    routes->top_k = top_k;
    routes->num_experts = num_experts;
    routes->num_routes = num_tokens * top_k;
    routes->wide = wide;
    routes->ids = op_array(routes->num_routes, sizeof(*routes->ids));
    if (traffic == OP_TRAFFIC_UNIFORM && top_k <= num_experts) {
        support_fill_ids(random, routes->ids, num_tokens, top_k, num_experts);
    } else {
        for (int64_t route = 0; route < routes->num_routes; route++) {
            routes->ids[route] = op_traffic_id(random, traffic, num_experts, wide);
        }
    }
    int32_t *narrow = op_array(routes->num_routes, sizeof(*narrow));
    if (wide) {
        routes->memory = op_input(routes->ids, routes->num_routes * 8, 8);
    } else {
        support_narrow_ids(routes->ids, routes->num_routes, narrow);
        routes->memory = op_input(narrow, routes->num_routes * 4, 4);
    }
    free(narrow);
    op_routes_filter(routes, filtering);
}

static inline void op_routes_finish(struct op_routes *routes)
{
    support_guard_finish(&routes->memory);
    support_guard_finish(&routes->map);
    free(routes->ids);
}

static inline int32_t op_ids_dtype(const struct op_routes *routes)
{
    return routes->wide ? MOE_IDS_INT64 : MOE_IDS_INT32;
}

#define OP_INT32(guard) ((int32_t *)(void *)(guard).data)
#define OP_INT64(guard) ((int64_t *)(void *)(guard).data)
#define OP_FLOAT(guard) ((float *)(void *)(guard).data)

#endif
