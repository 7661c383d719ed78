/* SPDX-License-Identifier: Apache-2.0 */
/* Routes to blocks and rows: for each expert, look through all routes. */
#include "ref.h"
#include "ref_require.h"

#include <stdlib.h>

struct ref_filter ref_filter_all(int64_t num_experts)
{
    struct ref_filter filter = {num_experts, 0, num_experts, NULL, num_experts};
    return filter;
}

int64_t ref_local_expert(const struct ref_filter *filter, int64_t id)
{
    if (id < 0 || id >= filter->num_experts || id < filter->begin || id >= filter->end) {
        return -1;
    }
    int64_t local = filter->expert_map != NULL ? filter->expert_map[id] : id - filter->begin;
    return local >= 0 && local < filter->num_local ? local : -1;
}

/* Local expert of every route, -1 for dropped ones; for free(). */
static int64_t *localize(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes)
{
    int64_t *locals = ref_require_array(num_routes, sizeof *locals);
    for (int64_t r = 0; r < num_routes; r++) {
        locals[r] = ref_local_expert(filter, ids[r]);
    }
    return locals;
}

int64_t ref_count_routes(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes,
                         int64_t *counts)
{
    int64_t sum = 0;
    for (int64_t e = 0; e < filter->num_local; e++) {
        counts[e] = 0;
    }
    for (int64_t r = 0; r < num_routes; r++) {
        int64_t local = ref_local_expert(filter, ids[r]);
        if (local >= 0) {
            counts[local]++;
            sum++;
        }
    }
    return sum;
}

int64_t ref_align_capacity(int64_t num_routes, int64_t num_buckets, int64_t block_m)
{
    int64_t most_used = num_routes < num_buckets ? num_routes : num_buckets;
    return (num_routes + most_used * (block_m - 1)) / block_m * block_m;
}

int64_t ref_align_block_size(const struct ref_filter *filter, const int64_t *ids,
                             int64_t num_routes, int64_t block_m, bool keep_dropped,
                             int32_t *sorted_ids, int64_t sorted_capacity, int32_t *expert_ids,
                             int64_t blocks_capacity)
{
    int64_t *locals = localize(filter, ids, num_routes);
    int64_t num_buckets = filter->num_local + (keep_dropped ? 1 : 0);
    int64_t end = 0;
    for (int64_t i = 0; i < sorted_capacity; i++) {
        sorted_ids[i] = (int32_t)num_routes;
    }
    for (int64_t b = 0; b < blocks_capacity; b++) {
        expert_ids[b] = -1;
    }
    for (int64_t bucket = 0; bucket < num_buckets; bucket++) {
        int64_t expert = bucket < filter->num_local ? bucket : -1;
        int64_t begin = end;
        for (int64_t r = 0; r < num_routes; r++) {
            if (locals[r] == expert) {
                ref_require(end < sorted_capacity, "sorted_capacity is too small");
                sorted_ids[end] = (int32_t)r;
                end++;
            }
        }
        end = begin + (end - begin + block_m - 1) / block_m * block_m;
        ref_require(end <= sorted_capacity, "sorted_capacity is too small");
        ref_require(end / block_m <= blocks_capacity, "blocks_capacity is too small");
        for (int64_t b = begin / block_m; b < end / block_m; b++) {
            expert_ids[b] = (int32_t)expert;
        }
    }
    free(locals);
    return end;
}

int64_t ref_align_batched(const int32_t *counts, int64_t num_experts, int64_t max_rows,
                          int64_t block_m, int32_t *sorted_ids, int64_t sorted_capacity,
                          int32_t *expert_ids, int64_t blocks_capacity)
{
    int64_t end = 0;
    for (int64_t i = 0; i < sorted_capacity; i++) {
        sorted_ids[i] = (int32_t)(num_experts * max_rows);
    }
    for (int64_t b = 0; b < blocks_capacity; b++) {
        expert_ids[b] = -1;
    }
    for (int64_t e = 0; e < num_experts; e++) {
        int64_t num_blocks = 0;
        for (int64_t i = 0; i < counts[e] && i < max_rows; i++) {
            ref_require(end + i < sorted_capacity, "sorted_capacity is too small");
            sorted_ids[end + i] = (int32_t)(e * max_rows + i);
            num_blocks = i / block_m + 1;
        }
        ref_require(end / block_m + num_blocks <= blocks_capacity, "blocks_capacity is too small");
        for (int64_t b = 0; b < num_blocks; b++) {
            expert_ids[end / block_m + b] = (int32_t)e;
        }
        end += num_blocks * block_m;
    }
    return end;
}

void ref_row_experts(const int64_t *seg_indptr, const int64_t *counts, int64_t num_local,
                     int64_t num_rows, int32_t *experts)
{
    for (int64_t r = 0; r < num_rows; r++) {
        experts[r] = -1;
        for (int64_t e = 0; e < num_local; e++) {
            int64_t end = counts != NULL ? seg_indptr[e] + counts[e] : seg_indptr[e + 1];
            if (r >= seg_indptr[e] && r < end) {
                experts[r] = (int32_t)e;
            }
        }
    }
}

static void fill_minus_one(int32_t *array, int64_t count)
{
    for (int64_t i = 0; array != NULL && i < count; i++) {
        array[i] = -1;
    }
}

int64_t ref_ep_preprocess(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes,
                          int64_t alignment, const struct ref_ep_layout *layout)
{
    int64_t *locals = localize(filter, ids, num_routes);
    bool lists_rows = layout->dst2src != NULL || layout->row_experts != NULL;
    int64_t begin = 0;
    int64_t num_kept = 0;
    fill_minus_one(layout->src2dst, num_routes);
    fill_minus_one(layout->reorder_ids, num_routes);
    fill_minus_one(layout->dst2src, layout->rows_capacity);
    fill_minus_one(layout->row_experts, layout->rows_capacity);
    for (int64_t e = 0; e < filter->num_local; e++) {
        int64_t count = 0;
        for (int64_t r = 0; r < num_routes; r++) {
            if (locals[r] != e) {
                continue;
            }
            int64_t row = begin + count;
            count++;
            ref_require(!lists_rows || row < layout->rows_capacity, "rows_capacity is too small");
            if (layout->src2dst != NULL) {
                layout->src2dst[r] = (int32_t)row;
            }
            if (layout->dst2src != NULL) {
                layout->dst2src[row] = (int32_t)r;
            }
            if (layout->row_experts != NULL) {
                layout->row_experts[row] = (int32_t)e;
            }
            if (layout->reorder_ids != NULL) {
                layout->reorder_ids[num_kept] = (int32_t)e;
            }
            num_kept++;
        }
        if (layout->counts != NULL) {
            layout->counts[e] = count;
        }
        if (layout->seg_indptr != NULL) {
            layout->seg_indptr[e] = begin;
        }
        begin += (count + alignment - 1) / alignment * alignment;
    }
    if (layout->seg_indptr != NULL) {
        layout->seg_indptr[filter->num_local] = begin;
    }
    free(locals);
    return begin;
}

void ref_ep_masked(const struct ref_filter *filter, const int64_t *ids, int64_t num_routes,
                   int64_t max_rows, const struct ref_ep_layout *layout)
{
    int64_t *locals = localize(filter, ids, num_routes);
    int64_t num_kept = 0;
    fill_minus_one(layout->src2dst, num_routes);
    fill_minus_one(layout->reorder_ids, num_routes);
    fill_minus_one(layout->dst2src, layout->rows_capacity);
    fill_minus_one(layout->row_experts, layout->rows_capacity);
    for (int64_t e = 0; e <= filter->num_local; e++) {
        int64_t count = 0;
        if (layout->seg_indptr != NULL) {
            layout->seg_indptr[e] = e * max_rows;
        }
        for (int64_t r = 0; r < num_routes && e < filter->num_local; r++) {
            int64_t row = e * max_rows + count;
            if (locals[r] != e || count == max_rows) {
                continue;
            }
            count++;
            if (layout->src2dst != NULL) {
                layout->src2dst[r] = (int32_t)row;
            }
            if (layout->dst2src != NULL) {
                ref_require(row < layout->rows_capacity, "rows_capacity is too small");
                layout->dst2src[row] = (int32_t)r;
            }
            if (layout->row_experts != NULL) {
                ref_require(row < layout->rows_capacity, "rows_capacity is too small");
                layout->row_experts[row] = (int32_t)e;
            }
            if (layout->reorder_ids != NULL) {
                layout->reorder_ids[num_kept] = (int32_t)e;
            }
            num_kept++;
        }
        if (layout->counts != NULL && e < filter->num_local) {
            layout->counts[e] = count;
        }
    }
    free(locals);
}
