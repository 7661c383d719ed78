/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host that opens the built plugin with dlopen and has one small layer, with every tensor that a
 * run call can be given, and valid arguments for each run call. Nothing here knows the plugin but
 * moe_plugin.h.
 */
#ifndef MOE_TESTS_ABI_HOST_H
#define MOE_TESTS_ABI_HOST_H

#include "moe_plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ABI_PLUGIN_PATH MOE_BUILD_DIR "/lib/libmoe_plugin.so"

enum {
    ABI_TOKENS = 6,
    ABI_EXPERTS = 4,
    ABI_TOP_K = 2,
    ABI_HIDDEN = 16,
    ABI_INTER = 12,
    ABI_SHARED_INTER = 20,
    ABI_BLOCK = 4,
    ABI_ROUTES = ABI_TOKENS * ABI_TOP_K,
    ABI_SORTED = 64, /* more than align_block_size needs */
    ABI_REPLICAS = 2,
    ABI_BATCH_ROWS = 5,  /* of an expert, in the batched align_block_size */
    ABI_MASKED_ROWS = 8, /* of an expert, in the masked layout */
    ABI_MAX_TOKENS = 8,
    ABI_WORKSPACE_BYTES = 1 << 20,
};

struct abi_weights {
    float gate[ABI_EXPERTS * ABI_INTER * ABI_HIDDEN];
    float up[ABI_EXPERTS * ABI_INTER * ABI_HIDDEN];
    float down[ABI_EXPERTS * ABI_HIDDEN * ABI_INTER];
    float gate_bias[ABI_EXPERTS * ABI_INTER];
    float up_bias[ABI_EXPERTS * ABI_INTER];
    float down_bias[ABI_EXPERTS * ABI_HIDDEN];
    float router[ABI_EXPERTS * ABI_HIDDEN];
    float router_bias[ABI_EXPERTS];
    float correction_bias[ABI_EXPERTS];
    float shared_gate[ABI_SHARED_INTER * ABI_HIDDEN];
    float shared_up[ABI_SHARED_INTER * ABI_HIDDEN];
    float shared_down[ABI_HIDDEN * ABI_SHARED_INTER];
    float shared_sigmoid[ABI_HIDDEN];
};

struct abi_inputs {
    float tokens[ABI_TOKENS * ABI_HIDDEN];
    float residual[ABI_TOKENS * ABI_HIDDEN];
    float shared[ABI_TOKENS * ABI_HIDDEN];
    float shared_factor[ABI_TOKENS];
    float logits[ABI_TOKENS * ABI_EXPERTS];
    int32_t topk_ids[ABI_ROUTES];
    float topk_weights[ABI_ROUTES];
    float row_weights[ABI_ROUTES];
    int64_t seg_indptr[ABI_EXPERTS + 1];
    int32_t src2dst[ABI_ROUTES];
    float rows[ABI_ROUTES * ABI_HIDDEN];
    float gate_up_rows[ABI_ROUTES * 2 * ABI_INTER];
    int32_t sorted_ids[ABI_SORTED];
    int32_t expert_ids[ABI_SORTED];
    int32_t num_tokens_post_pad[2];
    int32_t expert_map[ABI_EXPERTS];
    int32_t num_valid_tokens[2];
    int32_t physical_ids[ABI_EXPERTS * ABI_REPLICAS];
    int32_t num_replicas[ABI_EXPERTS];
    int32_t batch_counts[ABI_EXPERTS];
    float scales[ABI_EXPERTS];
    int32_t spare[ABI_SORTED]; /* for members that are not implemented */
};

/* What calls write. */
struct abi_outputs {
    float tokens[ABI_TOKENS * ABI_HIDDEN];
    float rows[ABI_ROUTES * 2 * ABI_INTER + ABI_ROUTES * ABI_HIDDEN];
    float logits[ABI_TOKENS * ABI_EXPERTS];
    int32_t topk_ids[ABI_ROUTES];
    float topk_weights[ABI_ROUTES];
    int32_t sorted_ids[ABI_SORTED];
    int32_t expert_ids[ABI_SORTED];
    int32_t num_tokens_post_pad[2];
    int32_t expert_counts[ABI_EXPERTS];
    int64_t seg_indptr[ABI_EXPERTS + 1];
    int32_t src2dst[ABI_ROUTES];
    int32_t dst2src[ABI_SORTED];
    int32_t reorder_ids[ABI_ROUTES];
    int32_t m_indices[ABI_SORTED];
    int32_t masked_m[ABI_EXPERTS];
    int64_t load_counters[ABI_EXPERTS];
    float scales[ABI_TOKENS * ABI_HIDDEN];
};

/* All memory that a run call is given. */
struct abi_memory {
    _Alignas(64) unsigned char workspace[ABI_WORKSPACE_BYTES];
    struct abi_inputs in;
    struct abi_outputs out;
};

struct abi_host {
    void *so;
    const struct moe_plugin_api *api;
    struct moe_host services;
    struct moe_context *context;
    struct moe_problem problem;
    struct moe_weights_desc desc;
    struct moe_weights *weights;
    struct moe_plan *plan;
    struct abi_weights *values;
    struct abi_memory *memory;
};

static inline void abi_services_init(struct moe_host *services)
{
    MOE_INIT(*services);
    services->abi_major = MOE_ABI_MAJOR;
    services->abi_minor = MOE_ABI_MINOR;
    services->layout_hash = MOE_ABI_LAYOUT_HASH;
}

/* The entry of an open plugin; NULL if it has none. */
static inline moe_plugin_init_fn *abi_entry(void *so)
{
    moe_plugin_init_fn *init = NULL;
    void *symbol = dlsym(so, MOE_PLUGIN_INIT_SYMBOL);
    memcpy(&init, &symbol, sizeof(init));
    return init;
}

/* Small values of both signs that differ from place to place. */
static inline void abi_fill(void *array, size_t num_bytes, uint32_t seed)
{
    float *values = array;
    for (size_t i = 0; i < num_bytes / sizeof(float); i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)((int32_t)(seed >> 20) - 2048) / 4096.0f;
    }
}

static inline void abi_operand(struct moe_operand *operand, const float *base, int32_t rows,
                               int32_t columns)
{
    operand->base = base;
    operand->expert_stride = (int64_t)rows * columns;
    operand->row_stride = columns;
    operand->col_stride = 1;
}

static inline void abi_describe_problem(struct moe_problem *problem)
{
    MOE_INIT(*problem);
    problem->flags = MOE_PROBLEM_RENORMALIZE | MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS |
                     MOE_PROBLEM_ROUTER_BIAS | MOE_PROBLEM_CORRECTION_BIAS |
                     MOE_PROBLEM_SHARED_SIGMOID;
    problem->num_experts = ABI_EXPERTS;
    problem->top_k = ABI_TOP_K;
    problem->hidden = ABI_HIDDEN;
    problem->inter = ABI_INTER;
    problem->shared_inter = ABI_SHARED_INTER;
    problem->activation = MOE_ACTIVATION_SILU;
    problem->gating = MOE_GATING_SIGMOID;
    problem->max_tokens = ABI_MAX_TOKENS;
    problem->tokens.dtype = MOE_DTYPE_FP32;
    problem->gate_up.dtype = MOE_DTYPE_FP32;
    problem->down.dtype = MOE_DTYPE_FP32;
}

static inline void abi_describe_weights(struct moe_weights_desc *desc, const struct abi_weights *w)
{
    MOE_INIT(*desc);
    abi_operand(&desc->gate, w->gate, ABI_INTER, ABI_HIDDEN);
    abi_operand(&desc->up, w->up, ABI_INTER, ABI_HIDDEN);
    abi_operand(&desc->down, w->down, ABI_HIDDEN, ABI_INTER);
    abi_operand(&desc->gate_bias, w->gate_bias, ABI_INTER, 1);
    abi_operand(&desc->up_bias, w->up_bias, ABI_INTER, 1);
    abi_operand(&desc->down_bias, w->down_bias, ABI_HIDDEN, 1);
    abi_operand(&desc->router, w->router, ABI_EXPERTS, ABI_HIDDEN);
    abi_operand(&desc->router_bias, w->router_bias, ABI_EXPERTS, 1);
    abi_operand(&desc->correction_bias, w->correction_bias, ABI_EXPERTS, 1);
    abi_operand(&desc->shared_gate, w->shared_gate, ABI_SHARED_INTER, ABI_HIDDEN);
    abi_operand(&desc->shared_up, w->shared_up, ABI_SHARED_INTER, ABI_HIDDEN);
    abi_operand(&desc->shared_down, w->shared_down, ABI_HIDDEN, ABI_SHARED_INTER);
    abi_operand(&desc->shared_sigmoid, w->shared_sigmoid, 1, ABI_HIDDEN);
}

/* Routes sorted by expert, by plain loops: segments, destinations, and blocks of ABI_BLOCK. */
static inline void abi_sort_routes(struct abi_inputs *in)
{
    int32_t num_rows = 0, num_sorted = 0;
    for (int32_t expert = 0; expert < ABI_EXPERTS; expert++) {
        in->seg_indptr[expert] = num_rows;
        for (int32_t route = 0; route < ABI_ROUTES; route++) {
            if (in->topk_ids[route] == expert) {
                in->src2dst[route] = num_rows++;
                in->sorted_ids[num_sorted++] = route;
            }
        }
        while (num_sorted % ABI_BLOCK != 0) {
            in->sorted_ids[num_sorted++] = ABI_ROUTES;
        }
        for (int32_t block = (int32_t)(in->num_tokens_post_pad[0] / ABI_BLOCK);
             block < num_sorted / ABI_BLOCK; block++) {
            in->expert_ids[block] = expert;
        }
        in->num_tokens_post_pad[0] = num_sorted;
    }
    in->seg_indptr[ABI_EXPERTS] = num_rows;
}

static inline void abi_fill_inputs(struct abi_inputs *in)
{
    memset(in, 0, sizeof(*in));
    abi_fill(in->tokens, sizeof(in->tokens), 1);
    abi_fill(in->residual, sizeof(in->residual), 2);
    abi_fill(in->shared, sizeof(in->shared), 3);
    abi_fill(in->shared_factor, sizeof(in->shared_factor), 4);
    abi_fill(in->logits, sizeof(in->logits), 5);
    abi_fill(in->rows, sizeof(in->rows), 6);
    abi_fill(in->gate_up_rows, sizeof(in->gate_up_rows), 7);
    for (int32_t route = 0; route < ABI_ROUTES; route++) {
        in->topk_ids[route] = (route + route / 3) % ABI_EXPERTS;
        in->topk_weights[route] = 0.25f + 0.125f * (float)(route % 3);
        in->row_weights[route] = 1.0f;
    }
    for (int32_t expert = 0; expert < ABI_EXPERTS; expert++) {
        in->expert_map[expert] = expert;
        in->num_replicas[expert] = expert % ABI_REPLICAS + 1;
        in->batch_counts[expert] = expert + 1;
        for (int32_t i = 0; i < ABI_REPLICAS; i++) {
            in->physical_ids[expert * ABI_REPLICAS + i] = (expert + i) % ABI_EXPERTS;
        }
    }
    in->num_valid_tokens[0] = ABI_TOKENS - 1;
    abi_sort_routes(in);
}

/* Inputs anew, outputs and workspace poisoned. */
static inline void abi_reset_memory(struct abi_memory *memory)
{
    memset(memory, 0xCB, sizeof(*memory));
    abi_fill_inputs(&memory->in);
}

static inline void abi_host_close(struct abi_host *host)
{
    if (host->api != NULL) {
        host->api->plan_destroy(host->plan);
        host->api->weights_destroy(host->weights);
        host->api->context_destroy(host->context);
    }
    if (host->so != NULL) {
        dlclose(host->so);
    }
    free(host->values);
    free(host->memory);
    memset(host, 0, sizeof(*host));
}

/* Plugin, context, weights, plan. `services` NULL: none but versions. False with a line on stderr
 * if a step fails. */
static inline int abi_host_open(struct abi_host *host, const struct moe_host *services,
                                int32_t num_threads)
{
    struct moe_context_options options;
    struct moe_plan_options plan_options;
    struct moe_error error;
    memset(host, 0, sizeof(*host));
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(plan_options);
    plan_options.ops = (UINT64_C(1) << MOE_NUM_OPS) - 1;
    options.backend = MOE_BACKEND_CPU;
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    options.num_threads = num_threads;
    if (services != NULL) {
        host->services = *services;
    } else {
        abi_services_init(&host->services);
    }
    host->values = malloc(sizeof(*host->values));
    host->memory = aligned_alloc(_Alignof(struct abi_memory), sizeof(*host->memory));
    host->so = dlopen(ABI_PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
    if (host->values == NULL || host->memory == NULL || host->so == NULL) {
        fprintf(stderr, "abi_host_open: %s\n", host->so == NULL ? dlerror() : "no memory");
        return 0;
    }
    abi_fill(host->values, sizeof(*host->values), 8);
    abi_reset_memory(host->memory);
    abi_describe_problem(&host->problem);
    abi_describe_weights(&host->desc, host->values);
    moe_plugin_init_fn *init = abi_entry(host->so);
    host->api = init != NULL ? init(&host->services, &error) : NULL;
    if (host->api == NULL ||
        host->api->context_create(&host->services, &options, &host->context, &error) != 0 ||
        host->api->weights_bind(host->context, &host->problem, &host->desc, NULL, 0, &host->weights,
                                &error) != 0 ||
        host->api->plan_create(host->context, &host->problem, &plan_options, &host->plan, &error) !=
            0) {
        fprintf(stderr, "abi_host_open: %s\n", error.message);
        return 0;
    }
    return 1;
}

#endif
