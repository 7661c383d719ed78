/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole layers on a GPU.
 *
 *   gpu_layer check [seed] [text]         layers against the CPU backend and double arithmetic;
 *                                         only those whose name contains the text
 *   gpu_layer bench [file.json [text [set...]]]
 *                                         times, and ratios to the read limit of the same run; no
 *                                         report for "" as file; only models whose name contains
 *                                         the text; "tiles:" before it: every tile in turn, with
 *                                         "tiles@T,T:" those numbers of tokens, and the text may be
 *                                         E,k,H,I; sets are layer (bf16, uniform routing), zipf,
 *                                         fp16 and burst
 */
#include "gpu_layer.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* X(function, symbol): graphs that a test keeps, beyond what gpu_host.h offers. */
#define GRAPH_FUNCTIONS(X)                                      \
    X(cuStreamCreate, cuStreamCreate)                           \
    X(cuStreamBeginCapture, cuStreamBeginCapture_v2)            \
    X(cuStreamEndCapture, cuStreamEndCapture)                   \
    X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags) \
    X(cuGraphLaunch, cuGraphLaunch)                             \
    X(cuGraphExecDestroy, cuGraphExecDestroy)                   \
    X(cuGraphDestroy, cuGraphDestroy)

static struct {
#define MEMBER(function, symbol) __typeof__(&function) function;
    GRAPH_FUNCTIONS(MEMBER)
#undef MEMBER
} cuda;

struct layer_graph {
    CUgraph graph;
    CUgraphExec exec;
};

static void check(CUresult result, const char *what)
{
    if (result != CUDA_SUCCESS) {
        fprintf(stderr, "%s: CUresult %d\n", what, (int)result);
        exit(2);
    }
}

static void bind_graphs(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
#define BIND(function, symbol)                                               \
    {                                                                        \
        void *address = library != NULL ? dlsym(library, #symbol) : NULL;    \
        check(address != NULL ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN, #symbol); \
        memcpy((void *)&cuda.function, &address, sizeof(address));           \
    }
    GRAPH_FUNCTIONS(BIND)
#undef BIND
}

struct layer_graph *layer_graph_make(CUstream stream, gpu_record_fn *record, void *self)
{
    struct layer_graph *graph = calloc(1, sizeof(*graph));
    check(graph != NULL ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY, "graph");
    check(cuda.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), "capture");
    record(self, stream);
    check(cuda.cuStreamEndCapture(stream, &graph->graph), "end of capture");
    check(cuda.cuGraphInstantiateWithFlags(&graph->exec, graph->graph, 0), "instantiate");
    return graph;
}

void layer_graph_launch(struct layer_graph *graph, CUstream stream)
{
    check(cuda.cuGraphLaunch(graph->exec, stream), "graph launch");
}

void layer_graph_free(struct layer_graph *graph)
{
    check(cuda.cuGraphExecDestroy(graph->exec), "graph");
    check(cuda.cuGraphDestroy(graph->graph), "graph");
    free(graph);
}

CUstream layer_stream(void)
{
    CUstream stream = NULL;
    check(cuda.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "stream");
    return stream;
}

void layer_force_tile(const struct gpu_host *host, const struct moe_tile_info *tile)
{
    char numbers[256], text[1024];
    struct moe_error error;
    struct moe_config_source source;
    MOE_INIT(error);
    MOE_INIT(source);
    if (tile == NULL) {
        gpu_host_check(host->api->config_reload(host->cuda, NULL, 0, NULL, NULL, &error), &error,
                       "built-in");
        return;
    }
    snprintf(numbers, sizeof(numbers),
             "{kernel: %s, BLOCK_SIZE_M: %d, BLOCK_SIZE_N: %d, BLOCK_SIZE_K: %d, GROUP_SIZE_M: %d, "
             "num_warps: %d, num_stages: %d}",
             tile->kernel, tile->block_size_m, tile->block_size_n, tile->block_size_k,
             tile->group_size_m, tile->num_warps, tile->num_stages);
    snprintf(text, sizeof(text),
             "schema: moe-dispatch/1\nrules:\n- name: forced\n  match: {backend: cuda}\n"
             "  buckets:\n  - max_tokens: inf\n    gemm1: %s\n    gemm2: %s\n",
             numbers, numbers);
    source.flags = MOE_CONFIG_REPLACE;
    source.path = "forced";
    source.text = text;
    source.text_bytes = strlen(text);
    gpu_host_check(host->api->config_reload(host->cuda, &source, 1, NULL, NULL, &error), &error,
                   text);
}

int main(int argc, char **argv)
{
    struct gpu_host host;
    int failed = 2;
    gpu_host_init(&host, argv[0]);
    bind_graphs();
    gpu_limits_open(argv[0]);
    if (argc > 1 && strcmp(argv[1], "check") == 0) {
        failed = layer_check(&host, argc > 2 ? (uint64_t)atoll(argv[2]) : 20261123,
                             argc > 3 ? argv[3] : "");
    } else if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        failed = layer_bench(&host, argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : "", argv + 4,
                             argc > 4 ? argc - 4 : 0);
    } else {
        fprintf(stderr,
                "usage: gpu_layer check [seed] [text] | bench [file.json [text [set...]]]\n");
    }
    gpu_host_finish(&host);
    return failed;
}
