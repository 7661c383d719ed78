/* SPDX-License-Identifier: Apache-2.0 */
/* gating and route against the CPU backend: ids exactly; weights bit for bit but for softmax with
 * renormalization alone, whose sums differ (kernels/cuda/gate.cuh). */
#include "gpu_check.h"

#include <float.h>
#include <math.h>

/* One call's arrays. */
struct gating_case {
    struct check_case test;
    int32_t num_slots;
    int32_t num_physical; /* range of the ids that a physical map gives out */
    int32_t num_ids;      /* with appended ones: P of moe_plugin.h */
    int32_t ids_dtype;
    int64_t stride;
    int32_t max_replicas;
    int has_valid, has_load, has_bias;
    int64_t filter; /* of route's sorts, as in check_set_filter */
    struct check_mirror logits, bias, ids, weights, valid, physical, replicas, load, map;
    struct check_count real;
};

void check_draw_gating(struct check_case *test)
{
    struct moe_problem *problem = &test->problem;
    memset(problem, 0, sizeof(*problem));
    problem->struct_size = sizeof(*problem);
    problem->num_experts = (int32_t)PICK(2, 8, 60, 64, 128, 160, 256, 384, 512, 600);
    problem->num_experts_global = problem->num_experts;
    problem->gating = (int32_t)(1 + check_draw(5));
    problem->tokens.dtype = MOE_DTYPE_BF16;
    problem->logits_dtype = (int32_t)PICK(MOE_DTYPE_FP32, MOE_DTYPE_BF16, MOE_DTYPE_FP16);
    const int64_t top_k = PICK(1, 2, 6, 8, 10, 33);
    problem->top_k = (int32_t)(top_k < problem->num_experts ? top_k : problem->num_experts);
    if (problem->gating == MOE_GATING_SPARSEMIXER) {
        problem->top_k = 2;
        problem->router_jitter = 0.01f;
    }
    if (problem->gating == MOE_GATING_SOFTMAX || problem->gating == MOE_GATING_SIGMOID) {
        problem->flags |= check_draw(2) == 0 ? MOE_PROBLEM_RENORMALIZE : 0;
        problem->flags |= check_draw(2) == 0 ? MOE_PROBLEM_CORRECTION_BIAS : 0;
        if (problem->num_experts % 4 == 0 && check_draw(2) == 0) {
            problem->num_groups = (int32_t)(problem->num_experts % 16 == 0 ? PICK(4, 8) : 4);
            problem->topk_groups = problem->num_groups / 2;
            problem->group_score =
                problem->num_experts > problem->num_groups ? (int32_t)check_draw(2) : 0;
            const int32_t most = problem->num_experts / 2;
            problem->top_k = problem->top_k < most ? problem->top_k : most;
        }
    }
    if (check_draw(3) == 0) {
        problem->routed_scaling = 2.5f;
        problem->scaling_on = MOE_SCALING_WEIGHTS;
    }
    /* Now and then so many that a warp gates several tokens, in whole batches and part of one. */
    test->num_tokens = check_draw(25) == 0 ? PICK(8449, 20000) : PICK(1, 2, 17, 64, 200, 1000);
    problem->max_tokens = test->num_tokens;
}

/* Redundant experts, appended experts, and which of all of them this rank holds. */
static void draw_ids(struct gating_case *self, int32_t op)
{
    struct moe_problem *problem = &self->test.problem;
    const int32_t num_logical = problem->num_experts_global;
    self->max_replicas = check_draw(3) == 0 ? (int32_t)PICK(1, 3) : 0;
    if (self->max_replicas > 0) {
        problem->num_physical_experts =
            (int32_t)PICK(0, num_logical, num_logical + 1, num_logical + 32, 2 * num_logical);
    }
    if (check_draw(4) == 0) {
        problem->num_appended_experts = (int32_t)PICK(1, 2);
        problem->appended_weight = 0.5f;
    }
    self->num_physical =
        problem->num_physical_experts > 0 ? problem->num_physical_experts : num_logical;
    self->num_ids = self->num_physical + problem->num_appended_experts;
    problem->num_experts = self->num_ids;
    self->filter = 0;
    if (op == MOE_OP_ROUTE) {
        const int32_t num_elsewhere = (int32_t)PICK(0, 0, 5);
        self->filter = check_draw(3);
        problem->num_experts -= self->num_ids > num_elsewhere ? num_elsewhere : 0;
    }
}

static void store_logit(void *out, int32_t dtype, int64_t idx, uint32_t bits)
{
    const uint32_t magnitude = bits & 0x7fffffffu, exponent = magnitude >> 23;
    uint16_t half = (uint16_t)(bits >> 16); /* bf16 */
    if (dtype == MOE_DTYPE_FP32) {
        memcpy((char *)out + 4 * idx, &bits, 4);
        return;
    }
    if (dtype == MOE_DTYPE_FP16) {
        const uint32_t small = exponent == 0     ? 0
                               : exponent == 255 ? 0x7c00u | (magnitude & 0x7fffffu) >> 13
                                                 : (exponent - 112) << 10;
        half = (uint16_t)((bits >> 16 & 0x8000u) | small);
    }
    memcpy((char *)out + 2 * idx, &half, 2);
}

/* Of one value each, but for a few rows where one expert has a number. */
static void fill_special_row(void *out, int32_t dtype, int64_t first, int64_t stride)
{
    static const uint32_t specials[] = {0x7fc00000, 0xffc00000, 0x7f800000, 0xff800000, 0x80000000};
    const uint32_t bits = specials[check_draw(5)];
    for (int64_t e = 0; e < stride; e++) {
        store_logit(out, dtype, first + e, bits);
    }
    if (check_draw(4) == 0) {
        store_logit(out, dtype, first + check_draw(stride), 0xbf800000);
    }
}

void check_fill_logits(void *out, int32_t dtype, int64_t num_tokens, int64_t stride)
{
    check_fill_elements(out, dtype, num_tokens * stride);
    for (int64_t t = 0; t < num_tokens; t++) {
        const int64_t kind = check_draw(10);
        if (kind == 4) {
            fill_special_row(out, dtype, t * stride, stride);
        }
        for (int64_t e = 0; kind < 4 && e < stride; e++) {
            static const float few[] = {0.0f, -0.0f, 1.0f, 1.0f, -2.0f, 0.5f, 0.25f, 1.0f};
            float value = kind == 0 ? 1.0f : few[check_draw(8)];
            if (kind == 3) {
                value = (check_draw(2) == 0 ? 1.0f : -1.0f) + 0x1p-23f * (float)check_draw(2000);
            }
            uint32_t bits;
            memcpy(&bits, &value, 4);
            if (kind == 2) {
                static const uint32_t specials[] = {0x7fc00000, 0xffc00000, 0x7f800000, 0xff800000};
                bits = specials[check_draw(4)];
            }
            store_logit(out, dtype, t * stride + e, bits);
        }
    }
}

static void case_init(struct gating_case *self, int32_t op)
{
    struct check_case *test = &self->test;
    check_draw_gating(test);
    draw_ids(self, op);
    check_case_init(test, op);
    const struct moe_problem *problem = &test->problem;
    const int32_t num_experts = problem->num_experts_global;
    self->num_slots = problem->top_k + problem->num_appended_experts;
    self->ids_dtype = (int32_t)check_draw(2);
    self->stride = num_experts + PICK(0, 0, 3);
    self->has_valid = check_draw(3) == 0;
    self->has_load = check_draw(self->max_replicas > 0 ? 2 : 3) == 0;
    self->has_bias = (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0;
    const int64_t replicas = self->max_replicas > 0 ? self->max_replicas : 1;
    const size_t num_slots = (size_t)(test->num_tokens * self->num_slots);
    check_mirror_init(&self->logits,
                      (size_t)(test->num_tokens * self->stride) *
                          (problem->logits_dtype == MOE_DTYPE_FP32 ? 4 : 2),
                      0);
    check_mirror_init(&self->bias, (size_t)num_experts * 4, 0);
    check_mirror_init(&self->ids, num_slots * (self->ids_dtype == MOE_IDS_INT64 ? 8 : 4), 0);
    check_mirror_init(&self->weights, num_slots * 4, 0);
    check_count_init(&self->real, test->num_tokens);
    check_mirror_init(&self->valid, 4, 0);
    check_mirror_init(&self->physical, (size_t)(num_experts * replicas) * 4, 0);
    check_mirror_init(&self->replicas, (size_t)num_experts * 4, 0);
    check_mirror_init(&self->load, (size_t)num_experts * 8, 0);
    check_mirror_init(&self->map, (size_t)self->num_ids * 4, 0);
    check_fill_map(check_on_host(&self->map), problem, self->num_ids);
    check_fill_logits(check_on_host(&self->logits), problem->logits_dtype, test->num_tokens,
                      self->stride);
    check_fill_elements(check_on_host(&self->bias), MOE_DTYPE_FP32, num_experts);
    *(int32_t *)check_on_host(&self->valid) = (int32_t)check_draw(test->num_tokens + 2);
    for (int32_t e = 0; e < num_experts; e++) {
        ((int32_t *)check_on_host(&self->replicas))[e] = (int32_t)PICK(-1, 0, 1, 2, 3, 9);
        ((int64_t *)check_on_host(&self->load))[e] = check_draw(100);
        for (int64_t r = 0; r < replicas; r++) {
            const int64_t id = check_draw(self->num_physical);
            ((int32_t *)check_on_host(&self->physical))[e * replicas + r] =
                (int32_t)(check_draw(40) == 0 ? PICK(-1, self->num_ids, INT32_MAX) : id);
        }
    }
    struct check_mirror *all[] = {&self->logits,   &self->bias,  &self->ids,
                                  &self->weights,  &self->valid, &self->physical,
                                  &self->replicas, &self->load,  &self->map};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_mirror_send(all[i]);
    }
    snprintf(test->text, sizeof(test->text),
             "T %lld E %d of %d k %d rule %d flags 0x%x groups %d of %d score %d logits %d ids %d "
             "appended %d replicas %d physical %d real %d valid %d filter %lld",
             (long long)test->num_tokens, problem->num_experts, num_experts, problem->top_k,
             problem->gating, problem->flags, problem->topk_groups, problem->num_groups,
             problem->group_score, problem->logits_dtype, self->ids_dtype,
             problem->num_appended_experts, self->max_replicas, self->num_physical,
             self->real.value, self->has_valid ? *(int32_t *)check_on_host(&self->valid) : -1,
             (long long)self->filter);
}

/* Weights whose rounding differs: relative to the CPU's within k sums and three quotients of each
 * side. What passes is taken over, so that the comparison of bytes that follows sees the rest. */
static void accept_weights(const struct gating_case *self)
{
    const struct moe_problem *problem = &self->test.problem;
    const int is_renormalized =
        problem->gating == MOE_GATING_SOFTMAX && (problem->flags & MOE_PROBLEM_RENORMALIZE) != 0;
    if (!is_renormalized || self->has_bias || problem->num_groups > 1) {
        return;
    }
    const int64_t count = self->test.num_tokens * self->num_slots;
    const float tolerance = (2.0f * (float)problem->top_k + 8.0f) * 0x1p-24f;
    float *wanted = check_on_host(&self->weights);
    float *got = malloc((size_t)count * sizeof(*got));
    gpu_download(got, check_on_device(&self->weights), (size_t)count * sizeof(*got));
    for (int64_t i = 0; i < count; i++) {
        if (fabsf(got[i] - wanted[i]) <= tolerance * wanted[i] + FLT_MIN) {
            wanted[i] = got[i];
        }
    }
    free(got);
}

static void case_compare(const struct gating_case *self)
{
    accept_weights(self);
    check_mirror_compare(&self->ids, "topk_ids", self->test.text);
    check_mirror_compare(&self->weights, "topk_weights", self->test.text);
    check_mirror_compare(&self->load, "load_counters", self->test.text);
}

static void case_finish(struct gating_case *self)
{
    struct check_mirror *all[] = {&self->logits,   &self->bias,  &self->ids,
                                  &self->weights,  &self->valid, &self->physical,
                                  &self->replicas, &self->load,  &self->map};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_mirror_finish(all[i]);
    }
    check_count_finish(&self->real);
    check_case_finish(&self->test);
}

void check_gating(void)
{
    struct gating_case self;
    struct moe_error error;
    MOE_INIT(error);
    case_init(&self, MOE_OP_GATING);
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_gating_args args;
        MOE_INIT_CALL(args);
        check_set_call(&self.test, is_cuda, &args.call);
        args.call.num_tokens_device = check_count_at(&self.real, is_cuda);
        args.logits = at(&self.logits);
        args.logits_stride = self.stride;
        args.correction_bias = self.has_bias ? at(&self.bias) : NULL;
        args.topk_ids = at(&self.ids);
        args.topk_weights = at(&self.weights);
        args.ids_dtype = self.ids_dtype;
        args.max_replicas = self.max_replicas;
        args.physical_ids = self.max_replicas > 0 ? at(&self.physical) : NULL;
        args.num_replicas = self.max_replicas > 0 ? at(&self.replicas) : NULL;
        args.num_valid_tokens = self.has_valid ? at(&self.valid) : NULL;
        args.load_counters = self.has_load ? at(&self.load) : NULL;
        gpu_host_check(
            check_host.api->gating(is_cuda ? self.test.cuda : self.test.cpu, &args, &error), &error,
            "gating");
    }
    check_wait();
    case_compare(&self);
    case_finish(&self);
}

void check_route(void)
{
    struct gating_case self;
    struct moe_error error;
    MOE_INIT(error);
    case_init(&self, MOE_OP_ROUTE);
    const struct moe_problem *problem = &self.test.problem;
    const int64_t num_routes = self.test.num_tokens * self.num_slots;
    const int32_t block_size = (int32_t)PICK(7, 16, 128), alignment = (int32_t)PICK(1, 4, 128);
    const int32_t mode = (int32_t)check_draw(2);
    const int64_t wants = check_draw(3); /* align, ep_preprocess, both */
    const int gates = check_draw(4) != 0;
    const int64_t most =
        wants > 0 && check_draw(3) == 0 && self.test.num_tokens <= 200 ? self.test.num_tokens : 0;
    const int64_t rows = most > 0 ? problem->num_experts * most
                                  : num_routes + (int64_t)problem->num_experts * (alignment - 1);
    int64_t sorted_capacity = 0, expert_capacity = 0;
    gpu_host_check(check_host.api->align_capacity(num_routes, problem->num_experts, block_size,
                                                  mode, &sorted_capacity, &expert_capacity, &error),
                   &error, "align_capacity");
    struct check_mirror sorted, experts, post_pad, counts, indptr, src2dst, dst2src, reorder,
        m_indices, masked;
    check_mirror_init(&sorted, (size_t)sorted_capacity * 4, 0);
    check_mirror_init(&experts, (size_t)expert_capacity * 4, 0);
    check_mirror_init(&post_pad, 4, 0);
    check_mirror_init(&counts, (size_t)problem->num_experts * 4, 0);
    check_mirror_init(&indptr, ((size_t)problem->num_experts + 1) * 8, 0);
    check_mirror_init(&src2dst, (size_t)num_routes * 4, 0);
    check_mirror_init(&dst2src, (size_t)rows * 4, 0);
    check_mirror_init(&reorder, (size_t)num_routes * 4, 0);
    check_mirror_init(&m_indices, (size_t)rows * 4, 0);
    check_mirror_init(&masked, (size_t)problem->num_experts * 4, 0);
    if (!gates) {
        check_fill_ids(check_on_host(&self.ids), self.ids_dtype, num_routes, self.num_ids,
                       check_draw(5));
        check_mirror_send(&self.ids);
    }
    struct check_mirror *all[] = {&sorted,  &experts, &post_pad, &counts,    &indptr,
                                  &src2dst, &dst2src, &reorder,  &m_indices, &masked};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_mirror_send(all[i]);
    }
    for (int is_cuda = 0; is_cuda < 2; is_cuda++) {
        void *(*at)(const struct check_mirror *) = is_cuda ? check_on_device : check_on_host;
        struct moe_route_args args;
        MOE_INIT_CALL(args);
        check_set_call(&self.test, is_cuda, &args.call);
        args.call.num_tokens_device = check_count_at(&self.real, is_cuda);
        args.topk_ids = at(&self.ids);
        args.ids_dtype = self.ids_dtype;
        check_set_filter(&args.filter, problem, self.filter, at(&self.map));
        args.filter.mode = mode;
        if (gates) {
            args.logits = at(&self.logits);
            args.logits_stride = self.stride;
            args.correction_bias = self.has_bias ? at(&self.bias) : NULL;
            args.topk_weights = at(&self.weights);
            args.max_replicas = self.max_replicas;
            args.physical_ids = self.max_replicas > 0 ? at(&self.physical) : NULL;
            args.num_replicas = self.max_replicas > 0 ? at(&self.replicas) : NULL;
            args.num_valid_tokens = self.has_valid ? at(&self.valid) : NULL;
            args.load_counters = self.has_load ? at(&self.load) : NULL;
        }
        if (wants != 1) {
            args.block_size = block_size;
            args.sorted_ids = at(&sorted);
            args.sorted_capacity = sorted_capacity;
            args.expert_ids = at(&experts);
            args.expert_capacity = expert_capacity;
            args.num_tokens_post_pad = at(&post_pad);
            args.expert_counts = at(&counts);
        }
        if (wants != 0) {
            args.segment_alignment = most > 0 ? 0 : alignment;
            args.seg_indptr = at(&indptr);
            args.src2dst = at(&src2dst);
            args.dst2src = at(&dst2src);
            args.reorder_ids = at(&reorder);
            args.m_indices = at(&m_indices);
            args.row_capacity = rows;
            args.max_masked_rows = most;
            args.masked_m = most > 0 ? at(&masked) : NULL;
        }
        gpu_host_check(
            check_host.api->route(is_cuda ? self.test.cuda : self.test.cpu, &args, &error), &error,
            self.test.text);
    }
    check_wait();
    case_compare(&self);
    static const char *const names[] = {
        "sorted_ids", "expert_ids", "num_tokens_post_pad", "expert_counts", "seg_indptr",
        "src2dst",    "dst2src",    "reorder_ids",         "m_indices",     "masked_m"};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check_mirror_compare(all[i], names[i], self.test.text);
        check_mirror_finish(all[i]);
    }
    case_finish(&self);
}
