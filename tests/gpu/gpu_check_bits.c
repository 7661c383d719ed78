/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token's ids and weights are the same bits from run to run, alone and among any others, by every
 * tile of gating and of route; ids are unique and weights finite whatever the logits are. Mostly
 * softmax with renormalization, whose weights are not the CPU's bits, so that the other checks take
 * them with a tolerance.
 */
#include "gpu_check.h"

#include <math.h>

enum { NUM_SAMPLES = 3 }; /* of tokens alone and of shares of the batch, per tile */

struct bits_case {
    struct check_case base; /* of the tile that runs */
    int32_t num_slots;
    int64_t stride;
    int has_bias;
    struct check_mirror logits, bias;
    int32_t *first_ids; /* [T, slots] of the first run */
    float *first_weights;
};

/* One run's outputs, between guards. */
struct bits_run {
    struct check_mirror ids, weights, indptr, src2dst;
};

static void draw_case(struct bits_case *self)
{
    struct moe_problem *problem = &self->base.problem;
    check_draw_gating(&self->base);
    if (check_draw(4) != 0) {
        problem->gating = check_draw(4) == 0 ? MOE_GATING_TOPK_SOFTMAX : MOE_GATING_SOFTMAX;
        problem->flags = problem->gating == MOE_GATING_SOFTMAX ? MOE_PROBLEM_RENORMALIZE : 0;
        problem->router_jitter = 0.0f;
        problem->num_groups = problem->topk_groups = problem->group_score = 0;
    }
    if (check_draw(4) == 0) {
        problem->num_appended_experts = 1;
        problem->appended_weight = 0.5f;
        problem->num_experts++;
    }
    self->num_slots = problem->top_k + problem->num_appended_experts;
    self->has_bias = (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0;
    self->stride = problem->num_experts_global + PICK(0, 0, 3);
}

static void make_inputs(struct bits_case *self)
{
    const struct moe_problem *problem = &self->base.problem;
    const int64_t num_tokens = self->base.num_tokens;
    const int64_t num_slots = num_tokens * self->num_slots;
    check_mirror_init(
        &self->logits,
        (size_t)(num_tokens * self->stride) * (problem->logits_dtype == MOE_DTYPE_FP32 ? 4 : 2), 0);
    check_mirror_init(&self->bias, (size_t)problem->num_experts_global * 4, 0);
    check_fill_logits(check_on_host(&self->logits), problem->logits_dtype, num_tokens,
                      self->stride);
    check_fill_elements(check_on_host(&self->bias), MOE_DTYPE_FP32, problem->num_experts_global);
    check_mirror_send(&self->logits);
    check_mirror_send(&self->bias);
    self->first_ids = malloc((size_t)num_slots * sizeof(*self->first_ids));
    self->first_weights = malloc((size_t)num_slots * sizeof(*self->first_weights));
}

static void run_gating(const struct bits_case *self, const struct bits_run *run, int64_t first,
                       int64_t count)
{
    struct moe_error error;
    struct moe_gating_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    check_set_call(&self->base, 1, &args.call);
    args.call.num_tokens = count;
    args.logits =
        (char *)check_on_device(&self->logits) +
        first * self->stride * (self->base.problem.logits_dtype == MOE_DTYPE_FP32 ? 4 : 2);
    args.logits_stride = self->stride;
    args.correction_bias = self->has_bias ? check_on_device(&self->bias) : NULL;
    args.topk_ids = check_on_device(&run->ids);
    args.topk_weights = check_on_device(&run->weights);
    gpu_host_check(check_host.api->gating(self->base.cuda, &args, &error), &error, self->base.text);
}

static void run_route(const struct bits_case *self, const struct bits_run *run, int64_t first,
                      int64_t count)
{
    struct moe_error error;
    struct moe_route_args args;
    MOE_INIT(error);
    MOE_INIT_CALL(args);
    check_set_call(&self->base, 1, &args.call);
    args.call.num_tokens = count;
    args.logits =
        (char *)check_on_device(&self->logits) +
        first * self->stride * (self->base.problem.logits_dtype == MOE_DTYPE_FP32 ? 4 : 2);
    args.logits_stride = self->stride;
    args.correction_bias = self->has_bias ? check_on_device(&self->bias) : NULL;
    args.topk_ids = check_on_device(&run->ids);
    args.topk_weights = check_on_device(&run->weights);
    args.seg_indptr = check_on_device(&run->indptr);
    args.src2dst = check_on_device(&run->src2dst);
    gpu_host_check(check_host.api->route(self->base.cuda, &args, &error), &error, self->base.text);
}

/* Unique ids, finite weights: of the tokens in `ids` and `weights`. */
static void check_sound(const struct bits_case *self, const int32_t *ids, const float *weights)
{
    const struct moe_problem *problem = &self->base.problem;
    const int32_t num_logical = problem->num_experts_global;
    int64_t wrong_token = -1;
    unsigned char *is_chosen = malloc((size_t)num_logical);
    for (int64_t t = 0; t < self->base.num_tokens && wrong_token < 0; t++) {
        memset(is_chosen, 0, (size_t)num_logical);
        for (int32_t j = 0; j < self->num_slots; j++) {
            const int32_t id = ids[t * self->num_slots + j];
            const bool is_right = j < problem->top_k ? id >= 0 && id < num_logical && !is_chosen[id]
                                                     : id == num_logical + j - problem->top_k;
            if (!is_right || !isfinite(weights[t * self->num_slots + j])) {
                wrong_token = t;
                break;
            }
            if (j < problem->top_k) {
                is_chosen[id] = 1;
            }
        }
    }
    free(is_chosen);
    check_num_checked++;
    if (wrong_token >= 0 && check_num_failed++ < 20) {
        printf("FAILED %s: token %lld has repeated or impossible ids, or weights that are not "
               "finite\n",
               self->base.text, (long long)wrong_token);
    }
}

/* Tokens first to first + count - 1 with the plan of the moment, against the first run's. */
static void run_share(struct bits_case *self, int32_t op, int64_t first, int64_t count,
                      int is_first_run)
{
    struct bits_run run;
    const int64_t at = first * self->num_slots;
    const size_t bytes = (size_t)(count * self->num_slots) * 4;
    check_mirror_init(&run.ids, bytes, 0);
    check_mirror_init(&run.weights, bytes, 0);
    check_mirror_init(&run.indptr, ((size_t)self->base.problem.num_experts + 1) * 8, 0);
    check_mirror_init(&run.src2dst, bytes, 0);
    struct check_mirror *all[] = {&run.ids, &run.weights, &run.indptr, &run.src2dst};
    for (size_t i = 0; i < 4; i++) {
        check_mirror_send(all[i]);
    }
    if (op == MOE_OP_GATING) {
        run_gating(self, &run, first, count);
    } else {
        run_route(self, &run, first, count);
    }
    check_wait();
    if (is_first_run) {
        gpu_download(self->first_ids, check_on_device(&run.ids), bytes);
        gpu_download(self->first_weights, check_on_device(&run.weights), bytes);
        check_sound(self, self->first_ids, self->first_weights);
    }
    memcpy(check_on_host(&run.ids), self->first_ids + at, bytes);
    memcpy(check_on_host(&run.weights), self->first_weights + at, bytes);
    check_mirror_compare(&run.ids, "topk_ids", self->base.text);
    check_mirror_compare(&run.weights, "topk_weights", self->base.text);
    for (size_t i = 0; i < 4; i++) {
        check_mirror_finish(all[i]);
    }
}

static void run_tile(struct bits_case *self, const struct moe_tile_info *tile, int is_first)
{
    struct check_case *base = &self->base;
    const struct moe_problem *problem = &base->problem;
    const int64_t num_tokens = base->num_tokens;
    gpu_force_tile(&check_host, tile, tile->op == MOE_OP_GATING ? "gating" : "route");
    check_case_init(base, tile->op);
    for (int i = 0; i < 2; i++) {
        snprintf(base->text, sizeof(base->text),
                 "bits of %s, T %lld E %d k %d rule %d flags 0x%x groups %d logits %d appended %d",
                 tile->name, (long long)num_tokens, problem->num_experts_global, problem->top_k,
                 problem->gating, problem->flags, problem->num_groups, problem->logits_dtype,
                 problem->num_appended_experts);
        run_share(self, tile->op, 0, num_tokens, is_first && i == 0);
    }
    const size_t end = strlen(base->text);
    for (int i = 0; i < NUM_SAMPLES; i++) {
        const int64_t first = check_draw(num_tokens);
        const int64_t count = i == 0 ? 1 + check_draw(num_tokens - first) : 1;
        snprintf(base->text + end, sizeof(base->text) - end, ", %lld tokens from %lld alone",
                 (long long)count, (long long)first);
        run_share(self, tile->op, first, count, 0);
    }
    check_case_finish(base);
}

void check_gating_bits(void)
{
    struct bits_case self;
    struct moe_tile_info tile;
    int num_tiles = 0;
    draw_case(&self);
    make_inputs(&self);
    MOE_INIT(tile);
    for (int32_t i = 0; check_host.api->tile_info(i, &tile, NULL) == MOE_STATUS_OK; i++) {
        if ((tile.op == MOE_OP_GATING || tile.op == MOE_OP_ROUTE) &&
            tile.backend == MOE_BACKEND_CUDA && tile.min_sm <= check_host.device.sm) {
            run_tile(&self, &tile, num_tiles++ == 0);
        }
    }
    check_mirror_finish(&self.logits);
    check_mirror_finish(&self.bias);
    free(self.first_ids);
    free(self.first_weights);
}
