/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "conform_session.h"

#include "conform_calls.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

const struct moe_conform_shape moe_conform_shapes[] = {
    {"fp32, silu, sigmoid gating, biases, shared expert", MOE_DTYPE_FP32, MOE_ACTIVATION_SILU,
     MOE_GATING_SIGMOID,
     MOE_PROBLEM_RENORMALIZE | MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS |
         MOE_PROBLEM_ROUTER_BIAS | MOE_PROBLEM_CORRECTION_BIAS | MOE_PROBLEM_SHARED_SIGMOID,
     1},
    {"fp32, silu, softmax gating", MOE_DTYPE_FP32, MOE_ACTIVATION_SILU, MOE_GATING_SOFTMAX,
     MOE_PROBLEM_RENORMALIZE, 0},
    {"bf16, silu, softmax gating", MOE_DTYPE_BF16, MOE_ACTIVATION_SILU, MOE_GATING_SOFTMAX,
     MOE_PROBLEM_RENORMALIZE, 0},
    {"fp16, silu, softmax gating", MOE_DTYPE_FP16, MOE_ACTIVATION_SILU, MOE_GATING_SOFTMAX, 0, 0},
    {"bf16, swiglu_oai, topk_softmax gating, biases", MOE_DTYPE_BF16, MOE_ACTIVATION_SWIGLU_OAI,
     MOE_GATING_TOPK_SOFTMAX,
     MOE_PROBLEM_GATE_UP_BIAS | MOE_PROBLEM_DOWN_BIAS | MOE_PROBLEM_ROUTER_BIAS, 0},
    {"fp32, gelu, llama4 gating, weights on the input", MOE_DTYPE_FP32, MOE_ACTIVATION_GELU,
     MOE_GATING_LLAMA4, MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT, 0},
    {"fp32, gelu_tanh, sparsemixer gating", MOE_DTYPE_FP32, MOE_ACTIVATION_GELU_TANH,
     MOE_GATING_SPARSEMIXER, 0, 0},
    {"fp32, relu2, softmax gating", MOE_DTYPE_FP32, MOE_ACTIVATION_RELU2, MOE_GATING_SOFTMAX, 0, 0},
    {"fp32, identity, softmax gating", MOE_DTYPE_FP32, MOE_ACTIVATION_IDENTITY, MOE_GATING_SOFTMAX,
     0, 0},
};
const size_t moe_conform_num_shapes = sizeof moe_conform_shapes / sizeof moe_conform_shapes[0];

/* ---------------------------------------------------------------- verdict */

__attribute__((noreturn)) static void end(struct moe_conform *conform, int outcome,
                                          const char *format, va_list values)
{
    vsnprintf(conform->verdict->reason, sizeof conform->verdict->reason, format, values);
    conform->verdict->outcome = outcome;
    _exit(0);
}

void moe_conform_fail(struct moe_conform *conform, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    end(conform, MOE_CONFORM_FAILED, format, values);
}

void moe_conform_skip(struct moe_conform *conform, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    end(conform, MOE_CONFORM_SKIPPED, format, values);
}

void moe_conform_require(struct moe_conform *conform, int32_t status, const struct moe_error *error,
                         const char *what)
{
    switch (status) {
    case MOE_STATUS_OK:
        return;
    case MOE_STATUS_UNSUPPORTED:
    case MOE_STATUS_UNAVAILABLE:
    case MOE_STATUS_NO_DEVICE:
        moe_conform_skip(conform, "%s: %s", what, error->message);
    default:
        moe_conform_fail(conform, "%s: status %d: %s", what, status, error->message);
    }
}

/* The child of moe_conform_session_run. */
__attribute__((noreturn)) static void run_in_child(const char *path, moe_conform_check_fn *check,
                                                   unsigned timeout,
                                                   struct moe_conform_verdict *verdict)
{
    struct moe_conform conform = {.path = path, .verdict = verdict};
    signal(SIGALRM, SIG_DFL);
    alarm(timeout);
    check(&conform);
    verdict->outcome = MOE_CONFORM_PASSED;
    verdict->reason[0] = '\0';
    _exit(0);
}

void moe_conform_session_run(const char *path, moe_conform_check_fn *check, unsigned timeout,
                             struct moe_conform_verdict *verdict)
{
    static const char early_end[] = "the plugin ended the process";
    verdict->outcome = MOE_CONFORM_FAILED;
    struct moe_conform_verdict *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        snprintf(verdict->reason, sizeof verdict->reason, "no memory for the check");
        return;
    }
    shared->outcome = MOE_CONFORM_FAILED;
    memcpy(shared->reason, early_end, sizeof early_end);
    fflush(stdout);
    fflush(stderr);
    const pid_t child = fork();
    if (child == 0) {
        run_in_child(path, check, timeout, shared);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
        snprintf(verdict->reason, sizeof verdict->reason, "no process for the check");
    } else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) {
        snprintf(verdict->reason, sizeof verdict->reason, "no answer within %u seconds", timeout);
    } else if (WIFSIGNALED(status)) {
        snprintf(verdict->reason, sizeof verdict->reason, "the plugin crashed: %s",
                 strsignal(WTERMSIG(status)));
    } else {
        *verdict = *shared;
    }
    munmap(shared, sizeof *shared);
}

/* ---------------------------------------------------------------- services */

/* In front of every block: what it was asked for. */
struct block_header {
    uint64_t bytes;
    uint64_t alignment;
};

static void *allocate(void *self, uint64_t bytes, uint64_t alignment)
{
    struct moe_conform_allocator *allocator = self;
    const uint64_t unit =
        alignment < sizeof(struct block_header) ? sizeof(struct block_header) : alignment;
    void *block = NULL;
    atomic_fetch_add(&allocator->num_calls, 1);
    if (bytes > UINT64_MAX - unit || posix_memalign(&block, unit, unit + bytes) != 0) {
        return NULL;
    }
    unsigned char *data = (unsigned char *)block + unit;
    memset(data, MOE_CONFORM_POISON, bytes);
    const struct block_header header = {bytes, alignment};
    memcpy(data - sizeof header, &header, sizeof header);
    atomic_fetch_add(&allocator->num_live, 1);
    return data;
}

static void release(void *self, void *memory, uint64_t bytes, uint64_t alignment)
{
    struct moe_conform_allocator *allocator = self;
    struct block_header header;
    atomic_fetch_add(&allocator->num_calls, 1);
    if (memory == NULL) {
        return;
    }
    memcpy(&header, (unsigned char *)memory - sizeof header, sizeof header);
    if (header.bytes != bytes || header.alignment != alignment) {
        atomic_fetch_add(&allocator->num_wrong_frees, 1);
    }
    atomic_fetch_sub(&allocator->num_live, 1);
    free((unsigned char *)memory -
         (header.alignment < sizeof header ? sizeof header : header.alignment));
}

static void count_line(void *self, int32_t level, const char *text, uint64_t text_bytes)
{
    struct moe_conform_allocator *allocator = self;
    (void)level;
    (void)text;
    (void)text_bytes;
    atomic_fetch_add(&allocator->num_log_lines, 1);
}

void moe_conform_services_init(struct moe_conform *conform, struct moe_host *services)
{
    MOE_INIT(*services);
    services->abi_major = MOE_ABI_MAJOR;
    services->abi_minor = MOE_ABI_MINOR;
    services->layout_hash = MOE_ABI_LAYOUT_HASH;
    services->self = &conform->allocator;
    services->log = count_line;
    services->memory_alloc = allocate;
    services->memory_free = release;
}

/* ---------------------------------------------------------------- opening */

moe_plugin_init_fn *moe_conform_open_entry(struct moe_conform *conform)
{
    conform->image = dlopen(conform->path, RTLD_NOW | RTLD_LOCAL);
    if (conform->image == NULL) {
        moe_conform_fail(conform, "it cannot be loaded: %s", dlerror());
    }
    void *symbol = dlsym(conform->image, MOE_PLUGIN_INIT_SYMBOL);
    if (symbol == NULL) {
        moe_conform_fail(conform, "it has no symbol " MOE_PLUGIN_INIT_SYMBOL);
    }
    moe_plugin_init_fn *init = NULL;
    memcpy(&init, &symbol, sizeof init); /* ISO C has no cast from an object to a function */
    return init;
}

void moe_conform_open_table(struct moe_conform *conform)
{
    moe_plugin_init_fn *init = moe_conform_open_entry(conform);
    struct moe_error error;
    MOE_INIT(error);
    moe_conform_services_init(conform, &conform->services);
    conform->api = init(&conform->services, &error);
    if (conform->api == NULL) {
        moe_conform_fail(conform, MOE_PLUGIN_INIT_SYMBOL " refuses: %s", error.message);
    }
}

void moe_conform_open_context(struct moe_conform *conform, int32_t num_threads)
{
    struct moe_context_options options;
    struct moe_error error;
    moe_conform_open_table(conform);
    MOE_INIT(error);
    MOE_INIT(options);
    options.backend = MOE_BACKEND_CPU;
    options.flags = MOE_CONTEXT_IGNORE_ENVIRONMENT;
    options.num_threads = num_threads;
    moe_conform_require(
        conform,
        conform->api->context_create(&conform->services, &options, &conform->context, &error),
        &error, "context_create");
    MOE_INIT(conform->device);
    moe_conform_require(conform,
                        conform->api->context_device(conform->context, &conform->device, &error),
                        &error, "context_device");
}

static void *allocate_banded(struct moe_conform *conform, uint64_t bytes, uint64_t alignment)
{
    void *block = NULL;
    alignment = alignment < MOE_CONFORM_BAND_BYTES ? MOE_CONFORM_BAND_BYTES : alignment;
    if (posix_memalign(&block, alignment, alignment + bytes + MOE_CONFORM_BAND_BYTES) != 0) {
        moe_conform_skip(conform, "no memory for a workspace of %llu bytes",
                         (unsigned long long)bytes);
    }
    return (unsigned char *)block + alignment;
}

static enum ref_dtype element_of(int32_t dtype)
{
    return dtype == MOE_DTYPE_BF16 ? REF_BF16 : dtype == MOE_DTYPE_FP16 ? REF_F16 : REF_F32;
}

int moe_conform_open_shape(struct moe_conform *conform, const struct moe_conform_shape *shape,
                           struct moe_error *error)
{
    const struct moe_plugin_api *api = conform->api;
    conform->shape = shape;
    conform->element = element_of(shape->dtype);
    MOE_INIT(*error);
    moe_conform_describe_problem(shape, &conform->problem);
    int32_t status =
        api->plan_create(conform->context, &conform->problem, NULL, &conform->plan, error);
    if (status == MOE_STATUS_UNSUPPORTED) {
        return 0;
    }
    moe_conform_require(conform, status, error, "plan_create");
    conform->in = calloc(1, sizeof *conform->in);
    conform->out = allocate_banded(conform, sizeof *conform->out, 0);
    if (conform->in == NULL) {
        moe_conform_skip(conform, "no memory for the tensors of the check");
    }
    MOE_INIT(conform->info);
    moe_conform_require(conform, api->plan_info(conform->plan, &conform->info, error), error,
                        "plan_info");
    conform->workspace =
        allocate_banded(conform, conform->info.workspace_bytes, conform->info.workspace_alignment);
    moe_conform_reset(conform, MOE_CONFORM_POISON);
    moe_conform_describe_weights(conform, &conform->desc);
    struct moe_weights_info needed;
    MOE_INIT(needed);
    moe_conform_require(
        conform,
        api->weights_query(conform->context, &conform->problem, &conform->desc, &needed, error),
        error, "weights_query");
    void *prepared = NULL;
    if (needed.prepared_bytes > 0) {
        prepared = allocate_banded(conform, needed.prepared_bytes, needed.prepared_alignment);
        moe_conform_require(conform,
                            api->weights_prepare(conform->context, &conform->problem,
                                                 &conform->desc, prepared, needed.prepared_bytes,
                                                 NULL, error),
                            error, "weights_prepare");
    }
    moe_conform_require(conform,
                        api->weights_bind(conform->context, &conform->problem, &conform->desc,
                                          prepared, needed.prepared_bytes, &conform->weights,
                                          error),
                        error, "weights_bind");
    moe_conform_calls_probe(conform);
    return 1;
}

void moe_conform_open(struct moe_conform *conform, int32_t num_threads)
{
    struct moe_error error;
    moe_conform_open_context(conform, num_threads);
    for (size_t i = 0; i < moe_conform_num_shapes; ++i) {
        if (moe_conform_open_shape(conform, &moe_conform_shapes[i], &error)) {
            return;
        }
    }
    moe_conform_skip(conform, "no problem of the checks is supported; the last refusal: %s",
                     error.message);
}

void moe_conform_close_shape(struct moe_conform *conform)
{
    conform->api->plan_destroy(conform->plan);
    conform->api->weights_destroy(conform->weights);
    conform->plan = NULL;
    conform->weights = NULL;
}

void moe_conform_close(struct moe_conform *conform)
{
    moe_conform_close_shape(conform);
    conform->api->context_destroy(conform->context);
    conform->context = NULL;
}
