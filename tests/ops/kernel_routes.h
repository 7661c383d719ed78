/* SPDX-License-Identifier: Apache-2.0 */
/* Ids of routes, ordinary and hostile, and filters on them, for the kernels that sort routes. */
#ifndef MOE_TESTS_KERNEL_ROUTES_H
#define MOE_TESTS_KERNEL_ROUTES_H

#include "kernel_run.h"

enum traffic {
    TRAFFIC_UNIFORM,
    TRAFFIC_HOSTILE,
    TRAFFIC_ALL_FILTERED,
    TRAFFIC_ONE_EXPERT,
    NUM_TRAFFICS
};
enum filtering {
    FILTER_NONE,
    FILTER_RANGE,
    FILTER_MAP,
    FILTER_RANGE_AND_MAP,
    FILTER_LOOSE_RANGE_AND_MAP, /* the range reaches beyond the ids that there are */
    NUM_FILTERINGS
};

/* Valid entries around the map: an id that is used without a check is not filtered, and that
 * shows. */
enum { MAP_MARGIN = 16 };

struct kernel_routes {
    int64_t num_routes;
    int64_t num_experts; /* global */
    struct ref_filter filter;
    int32_t *map; /* MAP_MARGIN entries into its allocation */
    int64_t *ids;
};

static inline int64_t kernel_hostile_id(struct support_random *random, int64_t num_experts,
                                        bool wide)
{
    const int64_t ids[] = {-1,
                           num_experts,
                           INT32_MAX,
                           INT32_MIN,
                           num_experts - 1,
                           0,
                           wide ? INT64_MAX : -2,
                           wide ? (INT64_C(1) << 32) : num_experts + 1};
    return ids[support_random_below(random, 8)];
}

static inline void kernel_make_ids(struct support_random *random, struct kernel_routes *routes,
                                   int64_t num_tokens, int64_t top_k, enum traffic traffic,
                                   bool wide)
{
    for (int64_t route = 0; route < num_tokens * top_k; route++) {
        int64_t id = (int64_t)support_random_below(random, (uint64_t)routes->num_experts);
        if (traffic == TRAFFIC_HOSTILE && support_random_below(random, 2) == 0) {
            id = kernel_hostile_id(random, routes->num_experts, wide);
        }
        id = traffic == TRAFFIC_ALL_FILTERED ? -1 : id;
        routes->ids[route] = traffic == TRAFFIC_ONE_EXPERT ? routes->num_experts / 2 : id;
    }
}

/* Every third expert is elsewhere, one entry is beyond the local experts, the rest are numbered
 * backwards. */
static inline void kernel_make_map(struct kernel_routes *routes)
{
    const int64_t num_local = (routes->num_experts + 2) / 3 * 2;
    for (int64_t e = 0; e < routes->num_experts; e++) {
        routes->map[e] = e % 3 == 2 ? -1 : (int32_t)(num_local - 1 - e * 2 / 3);
    }
    routes->map[0] = INT32_MAX;
    routes->filter.expert_map = routes->map;
    routes->filter.num_local = num_local;
}

static inline void kernel_make_filter(struct kernel_routes *routes, enum filtering filtering)
{
    routes->filter = ref_filter_all(routes->num_experts);
    if (filtering == FILTER_RANGE || filtering == FILTER_RANGE_AND_MAP) {
        routes->filter.begin = routes->num_experts / 4;
        routes->filter.end = (routes->num_experts * 3 + 3) / 4;
        routes->filter.num_local = routes->filter.end - routes->filter.begin;
    }
    if (filtering == FILTER_LOOSE_RANGE_AND_MAP) {
        routes->filter.begin = -MAP_MARGIN;
        routes->filter.end = routes->num_experts + MAP_MARGIN;
    }
    if (filtering == FILTER_MAP || filtering == FILTER_RANGE_AND_MAP ||
        filtering == FILTER_LOOSE_RANGE_AND_MAP) {
        kernel_make_map(routes);
    }
}

static inline void kernel_init_routes(struct kernel_routes *routes, struct support_random *random,
                                      int64_t num_tokens, int64_t num_experts, int64_t top_k,
                                      enum traffic traffic, enum filtering filtering, bool wide)
{
    routes->num_routes = num_tokens * top_k;
    routes->num_experts = num_experts;
    routes->ids = kernel_array(routes->num_routes, sizeof(*routes->ids));
    routes->map =
        (int32_t *)kernel_array(num_experts + 2 * MAP_MARGIN, sizeof(*routes->map)) + MAP_MARGIN;
    kernel_make_ids(random, routes, num_tokens, top_k, traffic, wide);
    kernel_make_filter(routes, filtering);
}

static inline void kernel_finish_routes(struct kernel_routes *routes)
{
    free(routes->map - MAP_MARGIN);
    free(routes->ids);
}

/* The ids as the kernel reads them: at the end of a page, int32 or int64. */
static inline struct support_guard kernel_route_ids(const struct kernel_routes *routes, bool wide)
{
    if (wide) {
        return kernel_input(routes->ids, routes->num_routes * 8, 8);
    }
    int32_t *narrow = kernel_array(routes->num_routes, sizeof(*narrow));
    support_narrow_ids(routes->ids, routes->num_routes, narrow);
    struct support_guard ids = kernel_input(narrow, routes->num_routes * 4, 4);
    free(narrow);
    return ids;
}

/* The same filter as the kernel takes it. */
static inline struct moe_op_filter kernel_filter(const struct kernel_routes *routes)
{
    struct moe_op_filter filter;
    filter.expert_map = routes->filter.expert_map;
    filter.num_ids = (int32_t)routes->num_experts;
    filter.expert_begin = (int32_t)routes->filter.begin;
    filter.expert_end = (int32_t)routes->filter.end;
    filter.num_experts = (int32_t)routes->filter.num_local;
    return filter;
}

#endif
