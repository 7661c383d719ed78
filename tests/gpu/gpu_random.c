/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random layers, experts and grouped GEMMs on the GPU against the CPU backend: any activation, form
 * of weights, bias, shared expert, filter, gating, ids, form of rows, stride and destination. All
 * tensors of a call lie in one piece of memory that both sides have a copy of, so that after a run
 * every byte is either a result or what it was. Then the same bits with another pair of tiles, in
 * another workspace, and for some of the tokens alone.
 *
 *   gpu_random [seed [count [self | strict]]]
 *
 * A failure names its seed. A plan has the tiles that are forced or is wrong; a launch may take
 * another one in their place (weights that do not lie row by row, rows that are gathered), which is
 * counted, printed at the end and, if strict, wrong. self: the CPU backend takes the device's part,
 * to test the test.
 */
#include "gpu_random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 4096 };

/* Where a call runs: its copy of the arena and its context. */
struct side {
    struct moe_context *context;
    int is_device;
    unsigned char *arena;
    struct moe_weights *weights;
    void *prepared;
};

static struct gpu_host host;
static struct random_arena arena;
static unsigned char *before, *expected, *first, *other; /* images of the arena */
static struct gpu_gemm_tiles tiles[GPU_MAX_PAIRS];
static int num_tiles, num_failed, num_checked, num_forced, num_replaced, is_strict;

static void report(int is_right, const struct random_case *test, const char *what, double value)
{
    static const char *const names[] = {"layer", "experts", "grouped_gemm"};
    const struct moe_problem *problem = &test->problem;
    num_checked++;
    if (!is_right) {
        num_failed++;
        printf("FAILED seed %llu: %s of E %d of %d, k %d, H %d, I %d, shared %d, act %d, flags %u, "
               "gating %d, T %lld: %s (%.3g)\n",
               (unsigned long long)test->seed, names[test->op], problem->num_experts,
               problem->num_experts_global, problem->top_k, problem->hidden, problem->inter,
               problem->shared_inter, problem->activation, problem->flags, problem->gating,
               (long long)test->num_tokens, what, value);
    }
}

/* ---------------------------------------------------------------- one side */

static void *take(const struct side *side, size_t bytes)
{
    return side->is_device ? gpu_alloc(bytes) : aligned_alloc(256, (bytes + 255) / 256 * 256);
}

static void give_back(const struct side *side, void *memory)
{
    if (side->is_device) {
        gpu_free(memory);
    } else {
        free(memory);
    }
}

static void move_to(const struct side *side, void *to, const void *from, size_t bytes)
{
    if (side->is_device) {
        gpu_upload(to, from, bytes);
    } else {
        memcpy(to, from, bytes);
    }
}

static void move_from(const struct side *side, void *to, const void *from, size_t bytes)
{
    if (side->is_device) {
        gpu_download(to, from, bytes);
    } else {
        memcpy(to, from, bytes);
    }
}

/* The address on a side of what lies in the arena; NULL stays NULL. */
static void *there(const struct side *side, const void *at)
{
    return at == NULL ? NULL : side->arena + ((const unsigned char *)at - arena.bytes);
}

static void bind_weights(struct side *side, const struct random_case *test)
{
    struct moe_weights_desc desc = test->desc;
    struct moe_weights_info info;
    struct moe_error error;
    struct moe_operand *operands[] = {&desc.gate,           &desc.up,
                                      &desc.down,           &desc.gate_bias,
                                      &desc.up_bias,        &desc.down_bias,
                                      &desc.shared_gate,    &desc.shared_up,
                                      &desc.shared_down,    &desc.shared_sigmoid,
                                      &desc.correction_bias};
    const size_t num_experts = (size_t)test->problem.num_experts;
    const void **tables = calloc(3 * num_experts, sizeof(*tables));
    MOE_INIT(error);
    MOE_INIT(info);
    for (size_t i = 0; i < sizeof(operands) / sizeof(operands[0]); i++) {
        operands[i]->base = there(side, operands[i]->base);
        if (operands[i]->table != NULL) {
            operands[i]->table = tables + (operands[i]->table - (const void *const *)test->tables);
        }
    }
    for (size_t i = 0; i < 3 * num_experts; i++) {
        tables[i] = there(side, test->tables[i]);
    }
    gpu_host_check(host.api->weights_query(side->context, &test->problem, &desc, &info, &error),
                   &error, "weights_query");
    side->prepared = info.prepared_bytes > 0 ? take(side, info.prepared_bytes) : NULL;
    if (side->prepared != NULL) {
        gpu_host_check(host.api->weights_prepare(side->context, &test->problem, &desc,
                                                 side->prepared, info.prepared_bytes, host.stream,
                                                 &error),
                       &error, "weights_prepare");
        gpu_synchronize(host.stream);
    }
    gpu_host_check(host.api->weights_bind(side->context, &test->problem, &desc, side->prepared,
                                          info.prepared_bytes, &side->weights, &error),
                   &error, "weights_bind");
    free(tables);
}

static void unbind_weights(struct side *side)
{
    host.api->weights_destroy(side->weights);
    if (side->prepared != NULL) {
        give_back(side, side->prepared);
    }
}

/* A plan of a workspace that is a part of what it wants, or the smallest larger one there is. */
static struct moe_plan *make_plan(const struct side *side, const struct random_case *test,
                                  int64_t part, uint64_t *workspace_bytes)
{
    struct moe_plan *plan = NULL;
    struct moe_plan_options options;
    struct moe_plan_info info;
    struct moe_error error;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(info);
    options.ops = test->ops;
    gpu_host_check(host.api->plan_create(side->context, &test->problem, &options, &plan, &error),
                   &error, "plan_create");
    gpu_host_check(host.api->plan_info(plan, &info, &error), &error, "plan_info");
    options.workspace_cap = info.workspace_bytes / (uint64_t)part;
    if (part > 1 && options.workspace_cap > 0) {
        host.api->plan_destroy(plan);
        while (host.api->plan_create(side->context, &test->problem, &options, &plan, &error) !=
               MOE_STATUS_OK) {
            options.workspace_cap *= 2;
            if (options.workspace_cap > 2 * info.workspace_bytes) {
                gpu_host_check(error.status, &error, "a plan with a cap");
            }
        }
        gpu_host_check(host.api->plan_info(plan, &info, &error), &error, "plan_info");
    }
    *workspace_bytes = info.workspace_bytes;
    return plan;
}

/* Rows [first, first + count) of a tensor, on a side. */
static void *rows_of(const struct side *side, const void *at, int64_t first_row, int64_t stride,
                     size_t element_bytes)
{
    char *rows = there(side, at);
    return rows == NULL ? NULL : rows + first_row * stride * (int64_t)element_bytes;
}

static int32_t call_layer(const struct side *side, const struct random_case *test,
                          const struct moe_plan *plan, const struct moe_call *call,
                          int64_t first_token, struct moe_error *error)
{
    struct moe_layer_args args = test->layer;
    const int64_t top_k = test->problem.top_k;
    const size_t token_bytes = random_dtype_bytes(test->problem.tokens.dtype);
    const size_t output_bytes = random_dtype_bytes(test->problem.output_dtype);
    const size_t id_bytes = args.ids_dtype == MOE_IDS_INT64 ? 8 : 4;
    args.call = *call;
    args.call.struct_size = test->layer.call.struct_size;
    args.weights = side->weights;
    args.tokens = rows_of(side, args.tokens, first_token, args.token_stride, token_bytes);
    args.logits = rows_of(side, args.logits, first_token, args.logits_stride, 4);
    args.topk_ids = rows_of(side, args.topk_ids, first_token, top_k, id_bytes);
    args.topk_weights = rows_of(side, args.topk_weights, first_token, top_k, 4);
    args.residual = rows_of(side, args.residual, first_token, args.residual_stride, output_bytes);
    args.output = rows_of(side, args.output, first_token, args.output_stride, output_bytes);
    args.topk_ids_out = rows_of(side, args.topk_ids_out, first_token, top_k, id_bytes);
    args.topk_weights_out = rows_of(side, args.topk_weights_out, first_token, top_k, 4);
    args.filter.expert_map = there(side, args.filter.expert_map);
    return host.api->layer(plan, &args, error);
}

static int32_t call_experts(const struct side *side, const struct random_case *test,
                            const struct moe_plan *plan, const struct moe_call *call,
                            struct moe_error *error)
{
    struct moe_experts_args args = test->experts;
    args.call = *call;
    args.call.struct_size = test->experts.call.struct_size;
    args.weights = side->weights;
    args.rows = there(side, args.rows);
    args.seg_indptr = there(side, args.seg_indptr);
    args.masked_m = there(side, args.masked_m);
    args.row_weights = there(side, args.row_weights);
    args.output = there(side, args.output);
    return host.api->experts(plan, &args, error);
}

static int32_t call_gemm(const struct side *side, const struct random_case *test,
                         const struct moe_plan *plan, const struct moe_call *call,
                         struct moe_error *error)
{
    struct moe_grouped_gemm_args args = test->gemm;
    args.call = *call;
    args.call.struct_size = test->gemm.call.struct_size;
    args.weights = side->weights;
    args.input = there(side, args.input);
    args.seg_indptr = there(side, args.seg_indptr);
    args.masked_m = there(side, args.masked_m);
    args.sorted_ids = there(side, args.sorted_ids);
    args.expert_ids = there(side, args.expert_ids);
    args.num_tokens_post_pad = there(side, args.num_tokens_post_pad);
    args.row_weights = there(side, args.row_weights);
    args.output = there(side, args.output);
    return host.api->grouped_gemm(plan, &args, error);
}

/* How a call is made. */
struct manner {
    int64_t part;                       /* of the workspace that it wants, 1 / part */
    int64_t first_token, count;         /* of a layer; count 0: all of them */
    const struct gpu_gemm_tiles *tiles; /* forced; NULL: none */
};

/* A call with everything it needs. */
struct ready {
    const struct side *side;
    const struct random_case *test;
    const struct moe_plan *plan;
    struct moe_call call;
    int64_t first_token;
    int32_t status;
    struct moe_error error;
};

static void make_call(void *self, CUstream stream)
{
    struct ready *ready = self;
    const struct random_case *test = ready->test;
    ready->call.stream = stream;
    ready->status = test->op == RANDOM_LAYER
                        ? call_layer(ready->side, test, ready->plan, &ready->call,
                                     ready->first_token, &ready->error)
                    : test->op == RANDOM_EXPERTS
                        ? call_experts(ready->side, test, ready->plan, &ready->call, &ready->error)
                        : call_gemm(ready->side, test, ready->plan, &ready->call, &ready->error);
}

/* The forced tiles are the plan's, and what was launched is counted. */
static void check_forced(struct ready *ready, const struct gpu_gemm_tiles *forced)
{
    const struct random_case *test = ready->test;
    struct gpu_launched launched = {.tiles = forced};
    const int gemms = test->op != RANDOM_GEMM ? 3 : test->gemm.which == MOE_GEMM_DOWN ? 2 : 1;
    report(gpu_has_gemm_tiles(&host, ready->plan, gemms, forced, test->problem.max_tokens), test,
           "the plan has another tile than the forced", 0.0);
    gpu_count_launched(&host, make_call, ready, &launched);
    num_forced++;
    num_replaced += launched.num_replaced > 0;
    report(!is_strict || launched.num_replaced == 0, test, launched.other, launched.num_replaced);
}

/* Runs the case and leaves the arena of that side in `image`. */
static void run(const struct side *side, const struct random_case *test,
                const struct manner *manner, unsigned char *image)
{
    unsigned char guard[GUARD_BYTES];
    uint64_t bytes = 0;
    struct moe_plan *plan = make_plan(side, test, manner->part, &bytes);
    unsigned char *poison = malloc(bytes + GUARD_BYTES);
    unsigned char *workspace = take(side, bytes + GUARD_BYTES);
    struct moe_call call = test->op == RANDOM_LAYER     ? test->layer.call
                           : test->op == RANDOM_EXPERTS ? test->experts.call
                                                        : test->gemm.call;
    memset(poison, RANDOM_POISON, bytes + GUARD_BYTES);
    move_to(side, workspace, poison, bytes + GUARD_BYTES);
    move_to(side, side->arena, before, arena.used);
    call.workspace = bytes > 0 ? workspace : NULL;
    call.workspace_bytes = bytes;
    call.num_tokens_device = manner->count > 0 ? NULL : there(side, call.num_tokens_device);
    call.num_tokens = manner->count > 0 ? manner->count : call.num_tokens;
    struct ready ready = {
        .side = side, .test = test, .plan = plan, .call = call, .first_token = manner->first_token};
    MOE_INIT(ready.error);
    if (manner->tiles != NULL) {
        check_forced(&ready, manner->tiles);
    }
    make_call(&ready, side->is_device ? host.stream : NULL);
    report(ready.status == MOE_STATUS_OK, test, ready.error.message, ready.status);
    if (side->is_device) {
        gpu_synchronize(host.stream);
    }
    move_from(side, image, side->arena, arena.used);
    move_from(side, guard, workspace + bytes, GUARD_BYTES);
    report(memcmp(guard, poison, GUARD_BYTES) == 0, test, "bytes behind the workspace", 0.0);
    give_back(side, workspace);
    free(poison);
    host.api->plan_destroy(plan);
}

/* ---------------------------------------------------------------- comparisons */

static int64_t rows_written(const struct random_case *test, int output_idx)
{
    const int64_t num_rows = test->outputs[output_idx].num_rows;
    return output_idx == 0 && test->op == RANDOM_LAYER ? test->num_real_tokens : num_rows;
}

/* Copies the elements of rows [first_row, first_row + num_rows) of an output between images. */
static void copy_rows(const struct random_output *output, int64_t first_row, int64_t num_rows,
                      unsigned char *to, const unsigned char *from)
{
    const size_t at = (size_t)(output->at - arena.bytes);
    for (int64_t row = first_row; row < first_row + num_rows; row++) {
        const size_t offset = at + (size_t)(row * output->stride) * output->element_bytes;
        memcpy(to + offset, from + offset, (size_t)output->num_columns * output->element_bytes);
    }
}

/* Nothing but the outputs was written. */
static int keeps_the_rest(const struct random_case *test, const unsigned char *image)
{
    memcpy(other, image, arena.used);
    for (int i = 0; i < RANDOM_MAX_OUTPUTS; i++) {
        if (test->outputs[i].at != NULL) {
            copy_rows(&test->outputs[i], 0, rows_written(test, i), other, before);
        }
    }
    return memcmp(other, before, arena.used) == 0;
}

static int is_poison(const unsigned char *element, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (element[i] != RANDOM_POISON) {
            return 0;
        }
    }
    return 1;
}

static int is_row_poison(const struct random_output *output, int64_t row,
                         const unsigned char *image)
{
    const size_t at =
        (size_t)(output->at - arena.bytes) + (size_t)(row * output->stride) * output->element_bytes;
    return is_poison(image + at, (size_t)output->num_columns * output->element_bytes);
}

static int32_t result_kind(const struct random_case *test, int output_idx)
{
    static const int32_t gemms[] = {[MOE_GEMM_GATE_UP] = GPU_RESULT_GATE_UP,
                                    [MOE_GEMM_GATE_UP_ACT] = GPU_RESULT_GATE_UP_ACT,
                                    [MOE_GEMM_DOWN] = GPU_RESULT_DOWN};
    return output_idx == 1              ? GPU_RESULT_WEIGHTS
           : test->op == RANDOM_LAYER   ? GPU_RESULT_LAYER
           : test->op == RANDOM_EXPERTS ? GPU_RESULT_EXPERTS
                                        : gemms[test->gemm.which];
}

/* An output of the image against the CPU's; rows that neither wrote are not looked at. */
static struct gpu_comparison compare(const struct random_case *test, int output_idx,
                                     const unsigned char *image)
{
    const struct random_output *output = &test->outputs[output_idx];
    const size_t at = (size_t)(output->at - arena.bytes);
    const int64_t num_rows = test->op == RANDOM_LAYER ? test->num_real_tokens : output->num_rows;
    unsigned char *is_skipped = calloc((size_t)num_rows + 1, 1);
    for (int64_t row = 0; row < num_rows; row++) {
        is_skipped[row] = (unsigned char)(is_row_poison(output, row, image) &&
                                          is_row_poison(output, row, expected));
    }
    const struct gpu_result result = {&test->problem, result_kind(test, output_idx), 0};
    const struct gpu_rows rows = {image + at,     expected + at, num_rows,  output->num_columns,
                                  output->stride, output->dtype, is_skipped};
    const struct gpu_comparison comparison = gpu_compare(&result, &rows);
    free(is_skipped);
    return comparison;
}

static int has_equal_ids(const struct random_case *test, const unsigned char *image)
{
    const struct random_output *output = &test->outputs[2];
    memcpy(other, image, arena.used);
    copy_rows(output, 0, test->num_real_tokens, other, expected);
    return memcmp(other, image, arena.used) == 0;
}

static void check_values(const struct random_case *test, const unsigned char *image)
{
    for (int i = 0; i < 2 && test->outputs[i].at != NULL; i++) {
        const struct gpu_comparison comparison = compare(test, i, image);
        report(comparison.all <= 1.0, test, "all rows, parts of the tolerance", comparison.all);
        report(comparison.worst <= 1.0, test, "a row, parts of the tolerance", comparison.worst);
    }
    report(test->outputs[2].at == NULL || has_equal_ids(test, image), test, "ids", 0.0);
}

/* Results are noticed when a row is wrong by a sign, and other bytes when one changes. */
static void check_notice(const struct random_case *test, unsigned char *image)
{
    const struct random_output *output = &test->outputs[0];
    double largest = 0.0;
    unsigned char *at = NULL;
    for (int64_t row = 0; row < rows_written(test, 0); row++) {
        double sum = 0.0;
        unsigned char *own = image + (output->at - arena.bytes) +
                             row * output->stride * (int64_t)output->element_bytes;
        for (int64_t i = 0; i < output->num_columns; i++) {
            sum += fabs(gpu_element(own, output->dtype, i)); /* poison is NaN, never larger */
        }
        if (sum > largest) {
            largest = sum;
            at = own;
        }
    }
    for (int pass = 0; at != NULL && pass < 2; pass++) {
        for (int64_t i = 0; i < output->num_columns; i++) {
            at[((size_t)i + 1) * output->element_bytes - 1] ^= 0x80;
        }
        const struct gpu_comparison comparison = compare(test, 0, image);
        report(pass == 1 || comparison.worst > 1.0, test, "a sign is not noticed",
               comparison.worst);
    }
    image[arena.used - 1] ^= 1;
    report(!keeps_the_rest(test, image), test, "a changed byte is not noticed", 0.0);
    image[arena.used - 1] ^= 1;
}

/* ---------------------------------------------------------------- cases */

/* A pair of tiles for both GEMMs from now on. */
static const struct gpu_gemm_tiles *force_tiles(uint64_t *seed)
{
    const struct gpu_gemm_tiles *forced = &tiles[random_draw(seed, 0, num_tiles - 1)];
    gpu_force_gemm_tiles(&host, forced);
    return forced;
}

/* Some of a layer's tokens alone, with another tile: the bits that they have among all. */
static void check_window(const struct side *side, const struct random_case *test, uint64_t *seed)
{
    struct manner manner = {.part = random_draw(seed, 1, 3)};
    if (test->op != RANDOM_LAYER || test->num_real_tokens == 0) {
        return;
    }
    manner.first_token = random_draw(seed, 0, test->num_real_tokens - 1);
    const int64_t left = test->num_real_tokens - manner.first_token;
    manner.count = random_draw(seed, 0, 1) != 0 ? 1 : random_draw(seed, 1, left);
    manner.tiles = force_tiles(seed);
    unsigned char *image = malloc(arena.used);
    run(side, test, &manner, image);
    memcpy(other, before, arena.used);
    for (int i = 0; i < RANDOM_MAX_OUTPUTS; i++) {
        if (test->outputs[i].at != NULL) {
            copy_rows(&test->outputs[i], manner.first_token, manner.count, other, first);
        }
    }
    report(memcmp(other, image, arena.used) == 0, test, "bits of tokens alone",
           (double)manner.count);
    free(image);
}

static void check_seed(uint64_t seed, struct side *cpu, struct side *device)
{
    struct random_case test;
    uint64_t state = seed * 3 + 1;
    const struct manner plain = {.part = 1};
    memset(arena.bytes, RANDOM_POISON, arena.used);
    arena.used = 0;
    random_case_init(&test, &arena, seed);
    random_draw_call(&test, &arena, &state, &host);
    memcpy(before, arena.bytes, arena.used);

    bind_weights(cpu, &test);
    run(cpu, &test, &plain, expected);
    report(keeps_the_rest(&test, expected), &test, "bytes beside the CPU's outputs", 0.0);
    memcpy(arena.bytes, before, arena.used);

    move_to(device, device->arena, before, arena.used); /* weights may be prepared from it */
    bind_weights(device, &test);
    run(device, &test, &plain, first);
    check_values(&test, first);
    report(keeps_the_rest(&test, first), &test, "bytes beside the outputs", 0.0);
    check_notice(&test, first);

    /* A call that is made in chunks does not take its number of tokens from the device. */
    const int is_counted = test.layer.call.num_tokens_device != NULL;
    const struct manner manner = {.part = is_counted ? 1 : random_draw(&state, 1, 40),
                                  .tiles = force_tiles(&state)};
    unsigned char *image = malloc(arena.used);
    run(device, &test, &manner, image);
    report(memcmp(image, first, arena.used) == 0, &test, "bits of other tiles and workspace",
           (double)manner.part);
    free(image);
    check_window(device, &test, &state);
    gpu_force_gemm_tiles(&host, NULL);
    unbind_weights(cpu);
    unbind_weights(device);
    random_case_finish(&test);
}

int main(int argc, char **argv)
{
    const uint64_t first_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    const uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 320;
    const int is_self = argc > 3 && strcmp(argv[3], "self") == 0;
    is_strict = argc > 3 && strcmp(argv[3], "strict") == 0;
    if (argc > 4 || (argc > 3 && !is_self && !is_strict)) {
        fprintf(stderr, "usage: gpu_random [seed [count [self | strict]]]\n");
        return 2;
    }
    if (is_self) {
        gpu_host_init_cpu(&host, argv[0]);
    } else {
        gpu_host_init(&host, argv[0]);
    }
    num_tiles = gpu_list_gemm_tiles(&host, tiles);
    unsigned char **images[] = {&arena.bytes, &before, &expected, &first, &other};
    for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++) {
        *images[i] = aligned_alloc(256, RANDOM_ARENA_BYTES);
        if (*images[i] == NULL) {
            fprintf(stderr, "gpu_random: no host memory\n");
            return 2;
        }
    }
    arena.capacity = arena.used = RANDOM_ARENA_BYTES;
    struct side cpu = {.context = host.cpu, .arena = arena.bytes};
    struct side device = {.context = host.cuda, .is_device = 1};
    device.arena = take(&device, RANDOM_ARENA_BYTES);
    for (uint64_t i = 0; i < count; i++) {
        check_seed(first_seed + i, &cpu, &device);
    }
    give_back(&device, device.arena);
    for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++) {
        free(*images[i]);
    }
    gpu_host_finish(&host);
    printf("%d plans of %d pairs of tiles were forced, %d launch another tile in their place\n",
           num_forced, num_tiles, num_replaced);
    printf("%llu seeds from %llu: %d passed, %d failed\n", (unsigned long long)count,
           (unsigned long long)first_seed, num_checked - num_failed, num_failed);
    return num_failed > 0 || num_checked == 0;
}
