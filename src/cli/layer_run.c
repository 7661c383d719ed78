/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "layer_run.h"

#include "element.h"
#include "gpu.h"
#include "gpu_weights.h"
#include "terminal.h"
#include "ticker.h"

#include <stdlib.h>
#include <string.h>

/* Calls of a rank are timed until there are min_timed_calls of them and its part of the time is
 * spent. */
enum { min_timed_calls = 3, max_timed_calls = 101 };
static const double time_budget_s = 0.4; /* of all ranks */

/* Memory that the backend works on, and where the host sees it: the same on a CPU. */
struct mirror {
    struct moe_gpu *gpu; /* whose memory `at` is; NULL: the host's */
    void *at;
    void *host; /* NULL: the host does not look at it */
    uint64_t num_bytes;
};

/* A rank while it runs. */
struct rank {
    struct moe_plugin_host *host;
    struct moe_rank_share share;
    struct moe_plan *plan;
    struct moe_weights *weights;
    struct moe_plan_info info;
    struct moe_gpu *gpu; /* NULL: the CPU backend */
    struct moe_gpu_weights gpu_weights;
    struct mirror workspace;
    struct mirror prepared;
    struct mirror tokens;       /* [T, H] of tokens.dtype */
    struct mirror output;       /* [T, H] of output_dtype */
    struct mirror logits;       /* [T, E] of logits_dtype */
    struct mirror topk_ids;     /* int32 [T, k] */
    struct mirror topk_weights; /* fp32 [T, k] */
};

static int32_t get_output_dtype(const struct moe_problem *problem)
{
    return problem->output_dtype != 0 ? problem->output_dtype : problem->tokens.dtype;
}

static int32_t get_logits_dtype(const struct moe_problem *problem)
{
    return problem->logits_dtype != 0 ? problem->logits_dtype : MOE_DTYPE_FP32;
}

static void *allocate(uint64_t bytes, uint64_t alignment)
{
    const size_t step = alignment > 64 ? (size_t)alignment : 64;
    void *memory = NULL;
    return posix_memalign(&memory, step, bytes > 0 ? (size_t)bytes : 1) == 0 ? memory : NULL;
}

/* Memory of the device is aligned to 256 bytes, which is more than any backend asks for. */
static int take(struct mirror *mirror, struct moe_gpu *gpu, uint64_t num_bytes, uint64_t alignment,
                int is_seen, const char *purpose, struct moe_cli_error *error)
{
    *mirror = (struct mirror){.gpu = gpu, .num_bytes = num_bytes};
    if (gpu != NULL && moe_gpu_alloc(gpu, num_bytes, purpose, &mirror->at, error) != 0) {
        return -1;
    }
    if (gpu == NULL || is_seen) {
        mirror->host = allocate(num_bytes, alignment);
        if (mirror->host == NULL) {
            return moe_cli_fail_memory(error, purpose);
        }
    }
    mirror->at = gpu != NULL ? mirror->at : mirror->host;
    return 0;
}

static void give_back(struct mirror *mirror)
{
    if (mirror->gpu != NULL) {
        moe_gpu_free(mirror->gpu, mirror->at);
    }
    free(mirror->host);
}

/* From the host's side to the backend's, and back. */
static int send(const struct mirror *mirror, struct moe_cli_error *error)
{
    return mirror->gpu == NULL
               ? 0
               : moe_gpu_upload(mirror->gpu, mirror->at, mirror->host, mirror->num_bytes, error);
}

static int fetch(const struct mirror *mirror, struct moe_cli_error *error)
{
    return mirror->gpu == NULL
               ? 0
               : moe_gpu_download(mirror->gpu, mirror->host, mirror->at, mirror->num_bytes, error);
}

/* Describes the weights to the plugin, and prepares them when its backend asks for that. */
static int bind_weights(struct rank *rank, struct moe_cli_error *error)
{
    const struct moe_plugin_api *api = rank->host->api;
    struct moe_context *context = rank->host->context;
    const struct moe_rank_share *share = &rank->share;
    const struct moe_weights_desc *desc = &share->weights;
    struct moe_weights_info info;
    struct moe_error cause;
    MOE_INIT(info);
    MOE_INIT(cause);
    if (rank->gpu != NULL) {
        if (moe_gpu_weights_init(&rank->gpu_weights, rank->gpu, &share->problem, desc, error) !=
            0) {
            return -1;
        }
        desc = &rank->gpu_weights.desc;
    }
    if (api->weights_query(context, &share->problem, desc, &info, &cause) != 0) {
        return moe_plugin_host_fail(error, "the weights are refused", &cause);
    }
    if (info.prepared_bytes > 0) {
        void *stream = rank->gpu != NULL ? moe_gpu_stream(rank->gpu) : NULL;
        if (take(&rank->prepared, rank->gpu, info.prepared_bytes, info.prepared_alignment, 0,
                 "preparing the weights", error) != 0) {
            return -1;
        }
        if (api->weights_prepare(context, &share->problem, desc, rank->prepared.at,
                                 info.prepared_bytes, stream, &cause) != 0) {
            return moe_plugin_host_fail(error, "the weights cannot be prepared", &cause);
        }
    }
    if (api->weights_bind(context, &share->problem, desc, rank->prepared.at, info.prepared_bytes,
                          &rank->weights, &cause) != 0) {
        return moe_plugin_host_fail(error, "the weights are refused", &cause);
    }
    return 0;
}

static void finish_rank(struct rank *rank)
{
    if (rank->weights != NULL) {
        rank->host->api->weights_destroy(rank->weights);
    }
    if (rank->plan != NULL) {
        rank->host->api->plan_destroy(rank->plan);
    }
    struct mirror *all[] = {&rank->workspace, &rank->prepared, &rank->tokens,      &rank->output,
                            &rank->logits,    &rank->topk_ids, &rank->topk_weights};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) {
        give_back(all[i]);
    }
    moe_gpu_weights_finish(&rank->gpu_weights);
    moe_gpu_close(rank->gpu);
    moe_rank_share_finish(&rank->share);
}

static int make_buffers(struct rank *rank, const struct moe_layer_run_request *request,
                        struct moe_cli_error *error)
{
    static const char purpose[] = "making room for the layer";
    const struct moe_problem *problem = &rank->share.problem;
    struct moe_gpu *gpu = rank->gpu;
    const uint64_t num_tokens = (uint64_t)request->num_tokens;
    const uint64_t num_routes = num_tokens * (uint64_t)problem->top_k;
    const uint64_t row_elements = num_tokens * (uint64_t)problem->hidden;
    const uint64_t logit_bytes = num_tokens * (uint64_t)problem->num_experts_global *
                                 moe_element_bytes(get_logits_dtype(problem));
    if (take(&rank->workspace, gpu, rank->info.workspace_bytes, rank->info.workspace_alignment, 0,
             purpose, error) != 0 ||
        take(&rank->output, gpu, row_elements * moe_element_bytes(get_output_dtype(problem)), 0, 1,
             purpose, error) != 0 ||
        take(&rank->logits, gpu, logit_bytes, 0, 1, purpose, error) != 0 ||
        take(&rank->tokens, gpu, row_elements * moe_element_bytes(problem->tokens.dtype), 0, 1,
             purpose, error) != 0 ||
        take(&rank->topk_ids, gpu, num_routes * sizeof(int32_t), 0, 1, purpose, error) != 0 ||
        take(&rank->topk_weights, gpu, num_routes * sizeof(float), 0, 1, purpose, error) != 0) {
        return -1;
    }
    memcpy(rank->tokens.host, request->tokens, rank->tokens.num_bytes);
    return send(&rank->tokens, error);
}

/* Takes the share of rank `rank_idx`, and makes a plan, weights and buffers for it. Finish the rank
 * either way. */
static int begin_rank(struct moe_plugin_host *host, const struct moe_layer_run_request *request,
                      int64_t rank_idx, int with_shared, struct rank *rank,
                      struct moe_cli_error *error)
{
    memset(rank, 0, sizeof *rank);
    rank->host = host;
    if (host->device.backend == MOE_BACKEND_CUDA &&
        moe_gpu_open(host->device.ordinal, &rank->gpu, error) != 0) {
        return -1;
    }
    if (moe_rank_share_init(request->layer, &request->split, rank_idx, with_shared, &rank->share,
                            error) != 0) {
        return -1;
    }
    struct moe_problem *problem = &rank->share.problem;
    problem->max_tokens = request->num_tokens;
    struct moe_error cause;
    MOE_INIT(cause);
    MOE_INIT(rank->info);
    struct moe_plan_options options;
    MOE_INIT(options);
    options.ops =
        UINT64_C(1) << MOE_OP_LAYER; /* and what it is made of: that is what is reported */
    if (host->api->plan_create(host->context, problem, &options, &rank->plan, &cause) != 0 ||
        host->api->plan_info(rank->plan, &rank->info, &cause) != 0) {
        return moe_plugin_host_fail(error, "no plan for this layer", &cause);
    }
    if (bind_weights(rank, error) != 0) {
        return -1;
    }
    return make_buffers(rank, request, error);
}

static void fill_args(const struct rank *rank, const struct moe_layer_run_request *request,
                      struct moe_layer_args *args)
{
    MOE_INIT_CALL(*args);
    args->call.stream = rank->gpu != NULL ? moe_gpu_stream(rank->gpu) : NULL;
    args->call.workspace = rank->workspace.at;
    args->call.workspace_bytes = rank->info.workspace_bytes;
    args->call.num_tokens = request->num_tokens;
    args->weights = rank->weights;
    args->tokens = rank->tokens.at;
    args->ids_dtype = MOE_IDS_INT32;
    args->filter = rank->share.filter;
    args->output = rank->output.at;
}

/* Calls the layer once, and waits for it. Returns its seconds, or -1 with a sentence. */
static double call_layer(const struct rank *rank, const struct moe_layer_args *args,
                         struct moe_cli_error *error)
{
    struct moe_error cause;
    MOE_INIT(cause);
    const double start_s = moe_terminal_now_s();
    if (rank->host->api->layer(rank->plan, args, &cause) != 0) {
        moe_plugin_host_fail(error, "the layer does not run", &cause);
        return -1.0;
    }
    if (rank->gpu != NULL && moe_gpu_wait(rank->gpu, error) != 0) {
        return -1.0;
    }
    return moe_terminal_now_s() - start_s;
}

static int compare_seconds(const void *a, const void *b)
{
    const double left = *(const double *)a;
    const double right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Times calls after the first one. */
static int time_layer(const struct rank *rank, const struct moe_layer_args *args, double budget_s,
                      struct moe_layer_run_result *result, double first_s,
                      struct moe_cli_error *error)
{
    double seconds[max_timed_calls];
    int num_calls = 0;
    double spent_s = 0.0;
    while (num_calls < min_timed_calls || (num_calls < max_timed_calls && spent_s < budget_s)) {
        seconds[num_calls] = call_layer(rank, args, error);
        if (seconds[num_calls] < 0.0) {
            return -1;
        }
        spent_s += seconds[num_calls];
        num_calls += 1;
    }
    qsort(seconds, (size_t)num_calls, sizeof seconds[0], compare_seconds);
    const double median_s = seconds[num_calls / 2];
    if (median_s > result->median_s) {
        result->median_s = median_s;
        result->num_timed_calls = num_calls;
    }
    if (first_s > result->first_s) {
        result->first_s = first_s;
    }
    return 0;
}

static void add_output(const struct rank *rank, int64_t num_tokens, float *sum)
{
    const struct moe_problem *problem = &rank->share.problem;
    const int32_t dtype = get_output_dtype(problem);
    for (int64_t i = 0; i < num_tokens * problem->hidden; ++i) {
        sum[i] += moe_element_load(rank->output.host, dtype, i);
    }
}

static char *copy_text(const char *text)
{
    return strdup(text != NULL ? text : "");
}

/* The choices of rank 0's plan, for the operations that a layer is made of. */
static int keep_choices(const struct rank *rank, int64_t num_tokens,
                        struct moe_layer_run_result *result, struct moe_cli_error *error)
{
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        struct moe_choice choice;
        MOE_INIT(choice);
        if (op == MOE_OP_LAYER || op == MOE_OP_EXPERTS ||
            rank->host->api->plan_op_info(rank->plan, op, num_tokens, &choice, NULL) != 0) {
            continue; /* made of others, or not part of this layer */
        }
        struct moe_layer_run_choice *kept = &result->choices[result->num_choices++];
        kept->op = op;
        kept->is_rule = choice.source == MOE_CHOICE_RULE;
        kept->min_tokens = choice.min_tokens;
        kept->max_tokens = choice.max_tokens;
        kept->line = choice.line;
        kept->tile = copy_text(choice.tile_name);
        kept->rule = copy_text(choice.rule);
        kept->file = copy_text(choice.file);
        if (kept->tile == NULL || kept->rule == NULL || kept->file == NULL) {
            return moe_cli_fail_memory(error, "keeping the choices of the plan");
        }
    }
    return 0;
}

/* Gives the layer a routing instead of having it route. */
static int give_routing(const struct rank *rank, const int32_t *topk_ids, const float *topk_weights,
                        struct moe_layer_args *args, struct moe_cli_error *error)
{
    memcpy(rank->topk_ids.host, topk_ids, rank->topk_ids.num_bytes);
    memcpy(rank->topk_weights.host, topk_weights, rank->topk_weights.num_bytes);
    args->topk_ids = rank->topk_ids.at;
    args->topk_weights = rank->topk_weights.at;
    return send(&rank->topk_ids, error) != 0 || send(&rank->topk_weights, error) != 0 ? -1 : 0;
}

/* The routing of rank 0, and its logits where the router ran. */
static int keep_routing(const struct rank *rank, const struct moe_layer_run_request *request,
                        struct moe_layer_run_result *result, struct moe_cli_error *error)
{
    const struct moe_problem *problem = &rank->share.problem;
    if (fetch(&rank->topk_ids, error) != 0 || fetch(&rank->topk_weights, error) != 0) {
        return -1;
    }
    memcpy(result->topk_ids, rank->topk_ids.host, rank->topk_ids.num_bytes);
    memcpy(result->topk_weights, rank->topk_weights.host, rank->topk_weights.num_bytes);
    if (request->topk_ids != NULL) {
        return 0;
    }
    if (fetch(&rank->logits, error) != 0) {
        return -1;
    }
    for (int64_t i = 0; i < request->num_tokens * problem->num_experts_global; ++i) {
        result->logits[i] = moe_element_load(rank->logits.host, get_logits_dtype(problem), i);
    }
    return 0;
}

/* The whole layer on one rank: router, gating, experts, shared experts. */
static int run_block(struct moe_plugin_host *host, const struct moe_layer_run_request *request,
                     int64_t rank_idx, struct moe_layer_run_result *result,
                     struct moe_cli_error *error)
{
    struct rank rank;
    struct moe_layer_args args;
    int status = -1;
    if (begin_rank(host, request, rank_idx, 1, &rank, error) != 0) {
        goto done;
    }
    fill_args(&rank, request, &args);
    if (request->topk_ids != NULL) {
        if (give_routing(&rank, request->topk_ids, request->topk_weights, &args, error) != 0) {
            goto done;
        }
    } else if (rank_idx == 0) {
        args.logits_out = rank.logits.at;
        args.topk_ids_out = rank.topk_ids.at;
        args.topk_weights_out = rank.topk_weights.at;
    }
    const double first_s = call_layer(&rank, &args, error);
    if (first_s < 0.0 || fetch(&rank.output, error) != 0) {
        goto done;
    }
    add_output(&rank, request->num_tokens, result->block_output);
    if (rank_idx == 0 && (keep_routing(&rank, request, result, error) != 0 ||
                          keep_choices(&rank, request->num_tokens, result, error) != 0)) {
        goto done;
    }
    if (rank.info.workspace_bytes > result->workspace_bytes) {
        result->workspace_bytes = rank.info.workspace_bytes;
    }
    const double budget_s = time_budget_s / (double)(request->split.tp * request->split.ep);
    status = time_layer(&rank, &args, budget_s, result, first_s, error);
done:
    finish_rank(&rank);
    return status;
}

/* Routed experts alone on one rank, with the routing of the first run. */
static int run_experts(struct moe_plugin_host *host, const struct moe_layer_run_request *request,
                       int64_t rank_idx, struct moe_layer_run_result *result,
                       struct moe_cli_error *error)
{
    struct rank rank;
    struct moe_layer_args args;
    int status = -1;
    if (begin_rank(host, request, rank_idx, 0, &rank, error) != 0) {
        goto done;
    }
    fill_args(&rank, request, &args);
    if (give_routing(&rank, result->topk_ids, result->topk_weights, &args, error) != 0 ||
        call_layer(&rank, &args, error) < 0.0 || fetch(&rank.output, error) != 0) {
        goto done;
    }
    add_output(&rank, request->num_tokens, result->experts_output);
    status = 0;
done:
    finish_rank(&rank);
    return status;
}

static int make_room(const struct moe_layer_run_request *request,
                     struct moe_layer_run_result *result, struct moe_cli_error *error)
{
    const struct moe_problem *problem = &request->layer->problem;
    const size_t num_tokens = (size_t)request->num_tokens;
    const size_t num_routes = num_tokens * (size_t)problem->top_k;
    const size_t num_outputs = num_tokens * (size_t)problem->hidden;
    result->logits = calloc(num_tokens * (size_t)problem->num_experts, sizeof(float));
    result->topk_ids = calloc(num_routes, sizeof(int32_t));
    result->topk_weights = calloc(num_routes, sizeof(float));
    result->block_output = calloc(num_outputs, sizeof(float));
    result->experts_output =
        request->wants_experts_output ? calloc(num_outputs, sizeof(float)) : NULL;
    if (result->logits == NULL || result->topk_ids == NULL || result->topk_weights == NULL ||
        result->block_output == NULL ||
        (request->wants_experts_output && result->experts_output == NULL)) {
        return moe_cli_fail_memory(error, "making room for the results");
    }
    return 0;
}

int moe_layer_run(struct moe_plugin_host *host, const struct moe_layer_run_request *request,
                  struct moe_layer_run_result *result, struct moe_cli_error *error)
{
    memset(result, 0, sizeof *result);
    const int64_t num_ranks = request->split.tp * request->split.ep;
    int status = make_room(request, result, error);
    struct moe_ticker ticker;
    moe_ticker_begin(&ticker, stderr, "running the layer, ranks", num_ranks);
    for (int64_t rank_idx = 0; status == 0 && rank_idx < num_ranks; ++rank_idx) {
        moe_ticker_set(&ticker, rank_idx);
        status = run_block(host, request, rank_idx, result, error);
        if (status == 0 && request->wants_experts_output) {
            status = run_experts(host, request, rank_idx, result, error);
        }
    }
    moe_ticker_end(&ticker);
    if (status != 0) {
        moe_layer_run_finish(result);
    }
    return status;
}

void moe_layer_run_finish(struct moe_layer_run_result *result)
{
    for (int i = 0; i < result->num_choices; ++i) {
        free(result->choices[i].tile);
        free(result->choices[i].rule);
        free(result->choices[i].file);
    }
    free(result->logits);
    free(result->topk_ids);
    free(result->topk_weights);
    free(result->block_output);
    free(result->experts_output);
    memset(result, 0, sizeof *result);
}
