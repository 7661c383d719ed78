/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe_plugin.h: the contract between an inference server (the host) and a Mixture-of-Experts
 * plugin, a shared object that the host opens with dlopen. This file is all a host needs.
 *
 *   void *so = dlopen("libmoe_plugin.so", RTLD_NOW | RTLD_LOCAL);
 *   moe_plugin_init_fn *init = (moe_plugin_init_fn *)dlsym(so, MOE_PLUGIN_INIT_SYMBOL);
 *   const struct moe_plugin_api *api = init(&host, &error);      (NULL: error.message says why)
 *   api->context_create(...);   configuration read, device probed, kernels loaded
 *   api->weights_bind(...);     once per layer
 *   api->plan_create(...);      once per problem: a rule and a tile per token bucket
 *   api->layer(plan, &args, &error);                             the hot call
 *
 * RULES THAT HOLD FOR EVERY DECLARATION BELOW, unless it says otherwise
 *
 * Versions.  While MOE_ABI_MAJOR is 0, host and plugin must have been built from headers with the
 *   same major, minor and MOE_ABI_LAYOUT_HASH. From 1.0 on any 1.x host works with any 1.y plugin.
 * Structs.  Every struct whose first member is struct_size is extensible. Set struct_size to sizeof
 *   and everything else to zero first (MOE_INIT does both); zero always means the default.
 *   Inputs: the callee accepts any size from the introduction size up, takes a missing tail as
 *   zero, and refuses unknown non-zero tail bytes with MOE_STATUS_UNKNOWN_FIELD. Outputs: the
 *   callee writes at most struct_size bytes and ignores the rest. Structs without struct_size are
 *   frozen for ever. `reserved` members must be zero.
 * Errors.  Functions return a status of MOE_STATUS_LIST. `error` may be NULL; if not, it is filled
 *   on failure and left alone on success. MOE_STATUS_INVALID_ARGUMENT, _UNSUPPORTED, _UNKNOWN_FIELD
 *   and _WORKSPACE_TOO_SMALL mean that nothing was touched. On failure output pointers are not
 *   written.
 * Memory.  Host memory is obtained through moe_host (or malloc where its members are NULL). All
 *   tensors and the workspace belong to the host, stay valid until the call's work is done, and
 *   live in the plan's backend's memory (CUDA: device memory; CPU: ordinary memory). Nothing needs
 *   to be zeroed by the host.
 * Run calls (the groups "layer" and "single operations").  They never allocate, log, read the
 *   environment or load code. On a GPU they neither lock nor synchronize, and are legal during
 *   stream capture; work is ordered on call.stream. On a CPU they are synchronous and call.stream
 *   is ignored.
 * Threads.  context, weights and plan objects are immutable after creation: any number of threads
 *   may use one at once, with distinct workspaces and outputs. Create and destroy calls on one
 *   context may run concurrently with each other, except context_destroy, which must come after all
 *   else. The log and diagnostic callbacks run on the calling thread only, before the call returns.
 * Shapes.  Row-major, strides in elements, the last dimension contiguous unless a stride is given
 *   for it. A stride of 0 means "packed". T = num_tokens, k = top_k, E = experts, H = hidden, I =
 *   inter. A route is a pair (token, slot) and has the index t * k + slot. num_tokens == 0 is
 *   legal.
 * Aliasing.  Neither an output nor the workspace may overlap an input or another output, unless a
 *   member says so.
 * Alignment.  Pointers to elements are aligned to the element; kernels take care of the rest, or
 *   weights_bind and supports say what they need.
 * Determinism.  Level 0 (default): a token's result has the same bits whatever the batch around it,
 *   the tile, the number of threads and the chunking; see struct moe_problem.
 */
#ifndef MOE_PLUGIN_H
#define MOE_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOE_ABI_MAJOR 0
#define MOE_ABI_MINOR 1

/* FNV-1a of abi/layout-0.1.txt, which lists offset and size of every member; a test recomputes
 * it. */
#define MOE_ABI_LAYOUT_HASH UINT64_C(0x4f4ca85de6bd266f)

/* The one symbol that a plugin exports, for ever. */
#define MOE_PLUGIN_INIT_SYMBOL "moe_plugin_init"

/* Zero a struct and stamp its size: struct moe_problem p; MOE_INIT(p); (needs <string.h>) */
#define MOE_INIT(object) \
    (memset(&(object), 0, sizeof(object)), (void)((object).struct_size = (uint32_t)sizeof(object)))

/* The same for the argument structs of run calls, whose struct_size sits in their first member
 * `call`. */
#define MOE_INIT_CALL(args) \
    (memset(&(args), 0, sizeof(args)), (void)((args).call.struct_size = (uint32_t)sizeof(args)))

/* Does the table (or any struct with struct_size) at `p` of type struct `type` have `member`,
 * set? */
#define MOE_HAS(p, type, member)                                                               \
    ((p)->struct_size >= offsetof(struct type, member) + sizeof(((struct type *)0)->member) && \
     (p)->member != 0)

/* ---------------------------------------------------------------------------------------------
 * Lists. Each list is the only place where its ids are given: constants, names in YAML and in
 * messages expand from it. Constants are enumerators of unnamed enums so that one list can make
 * them; no declaration uses an enum type. Ids are never reused. An id outside its list is refused.
 * ------------------------------------------------------------------------------------------- */
#define MOE_ENUMERATOR_(name, value, text) name = value,

/* X(constant, value, sentence) */
#define MOE_STATUS_LIST(X)                                                                 \
    X(MOE_STATUS_OK, 0, "ok")                                                              \
    X(MOE_STATUS_INVALID_ARGUMENT, 1, "an argument is wrong; nothing was touched")         \
    X(MOE_STATUS_UNSUPPORTED, 2, "legal, but not implemented here; nothing was touched")   \
    X(MOE_STATUS_UNKNOWN_FIELD, 3, "a newer member is set that this plugin does not know") \
    X(MOE_STATUS_VERSION, 4, "host and plugin speak different versions of the ABI")        \
    X(MOE_STATUS_CONFIG, 5, "the configuration has errors")                                \
    X(MOE_STATUS_OUT_OF_MEMORY, 6, "out of host memory")                                   \
    X(MOE_STATUS_WORKSPACE_TOO_SMALL, 7, "the workspace is smaller than the plan says")    \
    X(MOE_STATUS_UNAVAILABLE, 8, "the backend cannot be used on this machine")             \
    X(MOE_STATUS_NO_DEVICE, 9, "no such device")                                           \
    X(MOE_STATUS_DRIVER_TOO_OLD, 10, "the driver is older than the minimum")               \
    X(MOE_STATUS_DEVICE_ERROR, 11, "the device reported an error; outputs are undefined")  \
    X(MOE_STATUS_DEVICE_LOST, 12, "the device context is lost; create a new process")      \
    X(MOE_STATUS_BUSY, 13, "the object is still in use")                                   \
    X(MOE_STATUS_IO, 14, "a file could not be read")                                       \
    X(MOE_STATUS_SELF_TEST, 15, "a known answer was not reproduced")                       \
    X(MOE_STATUS_INTERNAL, 16, "a defect of the plugin")
enum { MOE_STATUS_LIST(MOE_ENUMERATOR_) MOE_STATUS_MAX_ = 0x7fffffff };

/* Element types. X(constant, value, name) */
#define MOE_DTYPE_LIST(X)                \
    X(MOE_DTYPE_FP32, 1, "fp32")         \
    X(MOE_DTYPE_FP16, 2, "fp16")         \
    X(MOE_DTYPE_BF16, 3, "bf16")         \
    X(MOE_DTYPE_FP8_E4M3, 4, "fp8_e4m3") \
    X(MOE_DTYPE_INT8, 5, "int8")         \
    X(MOE_DTYPE_INT4, 6, "int4")         \
    X(MOE_DTYPE_MXFP4, 7, "mxfp4")       \
    X(MOE_DTYPE_NVFP4, 8, "nvfp4")       \
    X(MOE_DTYPE_UE8M0, 9, "ue8m0")
enum { MOE_DTYPE_LIST(MOE_ENUMERATOR_) MOE_DTYPE_MAX_ = 0x7fffffff };

/* Types of expert ids. X(constant, value, name) */
#define MOE_IDS_LIST(X)          \
    X(MOE_IDS_INT32, 0, "int32") \
    X(MOE_IDS_INT64, 1, "int64")
enum { MOE_IDS_LIST(MOE_ENUMERATOR_) MOE_IDS_MAX_ = 0x7fffffff };

/*
 * Activations; g = gate, u = up, both after bias; sigma = logistic function. "Ungated" experts
 * (MOE_PROBLEM_UNGATED) have no gate: the function is applied to u alone.
 *   silu        g * sigma(g) * u                   ungated: u * sigma(u)
 *   gelu        g * Phi(g) * u (erf form)          ungated: u * Phi(u)
 *   gelu_tanh   the tanh approximation of gelu     ungated likewise
 *   swiglu_oai  g' = min(g, limit), u' = clamp(u, -limit, limit):
 *               g' * sigma(alpha * g') * (u' + 1); gated only; alpha and limit are act_alpha and
 *               act_limit (gpt-oss: 1.702 and 7)
 *   relu2       max(g, 0)^2 * u                    ungated: max(u, 0)^2 (Nemotron)
 *   identity    g * u                              ungated: u
 */
#define MOE_ACTIVATION_LIST(X)                    \
    X(MOE_ACTIVATION_SILU, 1, "silu")             \
    X(MOE_ACTIVATION_GELU, 2, "gelu")             \
    X(MOE_ACTIVATION_GELU_TANH, 3, "gelu_tanh")   \
    X(MOE_ACTIVATION_SWIGLU_OAI, 4, "swiglu_oai") \
    X(MOE_ACTIVATION_RELU2, 5, "relu2")           \
    X(MOE_ACTIVATION_IDENTITY, 6, "identity")
enum { MOE_ACTIVATION_LIST(MOE_ENUMERATOR_) MOE_ACTIVATION_MAX_ = 0x7fffffff };

/*
 * Gating rules: how k experts and their weights follow from the logits of a token. All in fp32.
 *   none           ids and weights are given by the host
 *   softmax        s = softmax(logits); the k largest of s (+ correction bias, if any) are chosen;
 *                  weight = s
 *   sigmoid        the same with s = sigma(logits) (DeepSeek-V3, GLM-4.5, MiniMax-M2)
 *   topk_softmax   the k largest logits; weights = softmax over those k (gpt-oss, Granite)
 *   llama4         the k largest logits; weight = sigma(logit) (Llama 4: k = 1, weight on the
 *                  input)
 *   sparsemixer    Phi-3.5-MoE, inference form, k = 2: the first expert is the
 *                  largest logit, its weight the softmax over the logits l with (max - l) /
 *                  max(|l|, max) <= 2 * router_jitter; the second likewise with the first left out
 * Ties: the lower id wins. NaN counts as the lowest finite value, infinities as the largest of
 * their sign, so that ids are always distinct and weights finite. With num_groups > 1 (softmax and
 * sigmoid) only the topk_groups best groups of E / num_groups consecutive experts take part; see
 * MOE_GROUP_SCORE_LIST. MOE_PROBLEM_RENORMALIZE divides the weights by (their sum + 1e-20); it
 * belongs to softmax and sigmoid.
 */
#define MOE_GATING_LIST(X)                        \
    X(MOE_GATING_NONE, 0, "none")                 \
    X(MOE_GATING_SOFTMAX, 1, "softmax")           \
    X(MOE_GATING_SIGMOID, 2, "sigmoid")           \
    X(MOE_GATING_TOPK_SOFTMAX, 3, "topk_softmax") \
    X(MOE_GATING_LLAMA4, 4, "llama4")             \
    X(MOE_GATING_SPARSEMIXER, 5, "sparsemixer")
enum { MOE_GATING_LIST(MOE_ENUMERATOR_) MOE_GATING_MAX_ = 0x7fffffff };

/* Score of a group of experts: the largest score in it (DeepSeek-V2), or the sum of its two
 * largest, bias included (DeepSeek-V3). X(constant, value, name) */
#define MOE_GROUP_SCORE_LIST(X)      \
    X(MOE_GROUP_SCORE_MAX, 0, "max") \
    X(MOE_GROUP_SCORE_TOP2_SUM, 1, "top2_sum")
enum { MOE_GROUP_SCORE_LIST(MOE_ENUMERATOR_) MOE_GROUP_SCORE_MAX_ = 0x7fffffff };

/* Where problem.routed_scaling is applied: nowhere (the host does it), on the weights that gating
 * returns, or on the sum over the slots (post_reorder, sum_reduce, layer).
 * X(constant, value, name) */
#define MOE_SCALING_LIST(X)              \
    X(MOE_SCALING_NONE, 0, "none")       \
    X(MOE_SCALING_WEIGHTS, 1, "weights") \
    X(MOE_SCALING_OUTPUT, 2, "output")
enum { MOE_SCALING_LIST(MOE_ENUMERATOR_) MOE_SCALING_MAX_ = 0x7fffffff };

/* Layout of scales of a quantized operand. X(constant, value, name) */
#define MOE_SCALE_LAYOUT_LIST(X)                         \
    X(MOE_SCALE_NONE, 0, "none")                         \
    X(MOE_SCALE_ROW_MAJOR, 1, "row_major")               \
    X(MOE_SCALE_COLUMN_MAJOR_TMA, 2, "column_major_tma") \
    X(MOE_SCALE_UE8M0_PACKED, 3, "ue8m0_packed")
enum { MOE_SCALE_LAYOUT_LIST(MOE_ENUMERATOR_) MOE_SCALE_LAYOUT_MAX_ = 0x7fffffff };

/* Routes whose expert is not held here: dropped (not scheduled; their rows do not exist), or kept
 * as a last segment of blocks with expert id -1, whose rows a GEMM fills with zeros. X(constant,
 * value, name) */
#define MOE_FILTER_LIST(X)        \
    X(MOE_FILTER_DROP, 0, "drop") \
    X(MOE_FILTER_KEEP, 1, "keep")
enum { MOE_FILTER_LIST(MOE_ENUMERATOR_) MOE_FILTER_MAX_ = 0x7fffffff };

/* Backends. X(constant, value, name) */
#define MOE_BACKEND_LIST(X)        \
    X(MOE_BACKEND_AUTO, 0, "auto") \
    X(MOE_BACKEND_CPU, 1, "cpu")   \
    X(MOE_BACKEND_CUDA, 2, "cuda")
enum { MOE_BACKEND_LIST(MOE_ENUMERATOR_) MOE_BACKEND_MAX_ = 0x7fffffff };

/* Operations, as named in YAML. gemm1 and gemm2 are the two grouped GEMMs of a layer. X(constant,
 * value, name) */
#define MOE_OP_LIST(X)                                \
    X(MOE_OP_ROUTER, 0, "router")                     \
    X(MOE_OP_GATING, 1, "gating")                     \
    X(MOE_OP_ALIGN_BLOCK_SIZE, 2, "align_block_size") \
    X(MOE_OP_EP_PREPROCESS, 3, "ep_preprocess")       \
    X(MOE_OP_PRE_REORDER, 4, "pre_reorder")           \
    X(MOE_OP_QUANTIZE, 5, "quantize")                 \
    X(MOE_OP_ACTIVATION, 6, "activation")             \
    X(MOE_OP_GEMM1, 7, "gemm1")                       \
    X(MOE_OP_GEMM2, 8, "gemm2")                       \
    X(MOE_OP_POST_REORDER, 9, "post_reorder")         \
    X(MOE_OP_SUM_REDUCE, 10, "sum_reduce")            \
    X(MOE_OP_EXPERTS, 11, "experts")                  \
    X(MOE_OP_LAYER, 12, "layer")                      \
    X(MOE_OP_ROUTE, 13, "route")
enum { MOE_OP_LIST(MOE_ENUMERATOR_) MOE_OP_MAX_ = 0x7fffffff };
#define MOE_NUM_OPS 14

/* Severity of log lines and diagnostics. X(constant, value, name) */
#define MOE_LEVEL_LIST(X)              \
    X(MOE_LEVEL_ERROR, 1, "error")     \
    X(MOE_LEVEL_WARNING, 2, "warning") \
    X(MOE_LEVEL_INFO, 3, "info")
enum { MOE_LEVEL_LIST(MOE_ENUMERATOR_) MOE_LEVEL_MAX_ = 0x7fffffff };

/* Determinism of a plan: canonical bits, the same from run to run, atomics allowed. X(constant,
 * value, name) */
#define MOE_DETERMINISM_LIST(X)                    \
    X(MOE_DETERMINISM_CANONICAL, 0, "canonical")   \
    X(MOE_DETERMINISM_RUN_TO_RUN, 1, "run_to_run") \
    X(MOE_DETERMINISM_NONE, 2, "none")
enum { MOE_DETERMINISM_LIST(MOE_ENUMERATOR_) MOE_DETERMINISM_MAX_ = 0x7fffffff };

/* ---------------------------------------------------------------------------------------------
 * Errors, host services
 * ------------------------------------------------------------------------------------------- */

/* Output, caller-owned, 512 bytes. `message` is UTF-8 and always terminated inside struct_size
 * bytes. */
struct moe_error {
    uint32_t struct_size;
    int32_t status; /* a status of MOE_STATUS_LIST */
    int32_t native; /* CUresult or errno behind it; 0: none */
    int32_t line;   /* 1-based position in a configuration; 0: none */
    int32_t column;
    int32_t reserved;
    char message[488]; /* one sentence: the thing that is wrong, and the valid choices */
};

/* Services of the host. Input; given to moe_plugin_init (versions are compared, nothing is kept)
 * and again to context_create (which keeps a copy; `self` must outlive the context). */
struct moe_host {
    uint32_t struct_size;
    uint32_t abi_major; /* MOE_ABI_MAJOR, MOE_ABI_MINOR and MOE_ABI_LAYOUT_HASH of the header */
    uint32_t abi_minor; /*   that the host was compiled with */
    uint32_t flags;     /* 0 */
    uint64_t layout_hash;
    void *self; /* handed to the functions below */
    /* One preformatted UTF-8 line without newline, `text_bytes` long and NUL-terminated; NULL: no
     * log. */
    void (*log)(void *self, int32_t level, const char *text, uint64_t text_bytes);
    /* Host memory, aligned to `alignment` (a power of two), NULL when there is none. Any thread
     * that calls the plugin may call it. Both NULL (malloc and free are used) or both set. */
    void *(*memory_alloc)(void *self, uint64_t bytes, uint64_t alignment);
    void (*memory_free)(void *self, void *memory, uint64_t bytes, uint64_t alignment);
};

/* ---------------------------------------------------------------------------------------------
 * Devices
 * ------------------------------------------------------------------------------------------- */

/*
 * A device, as dispatch sees it. device_probe fills it for a real one; for supports and explain a
 * host may describe any other. Members that do not belong to the backend are zero.
 */
struct moe_device {
    uint32_t struct_size;
    int32_t backend;        /* MOE_BACKEND_CPU or _CUDA */
    int32_t ordinal;        /* CUDA device number */
    int32_t sm;             /* CUDA: 10 * major + minor of the compute capability, e.g. 90 */
    int32_t num_sms;        /* CUDA: streaming multiprocessors. CPU: threads of the pool */
    int32_t smem_bytes;     /* CUDA: shared memory a block can opt in to */
    int64_t l2_bytes;       /* last-level cache */
    int64_t memory_bytes;   /* device memory; CPU: 0 */
    int32_t driver_version; /* CUDA: as cuDriverGetVersion gives it, e.g. 13000 */
    int32_t reserved;
    char isa[16];  /* CPU: "avx2" or "c11" */
    char name[64]; /* marketing name, for the match key `device` */
};

/* ---------------------------------------------------------------------------------------------
 * Configuration
 * ------------------------------------------------------------------------------------------- */

/* A YAML document of schema moe-dispatch/1 (docs/configuration.md): a file, or a text in memory. */
struct moe_config_source {
    uint32_t struct_size;
    uint32_t flags;   /* MOE_CONFIG_REPLACE */
    const char *path; /* file to read, when text is NULL; else the name to show in messages */
    const char *text; /* UTF-8, need not be terminated; not kept */
    uint64_t text_bytes;
};
#define MOE_CONFIG_REPLACE 1u /* drop all earlier layers, the built-in profiles included */

/* One finding in a configuration. Strings live until the callback returns. */
struct moe_diagnostic {
    uint32_t struct_size;
    int32_t level; /* MOE_LEVEL_ERROR or _WARNING */
    int32_t line;  /* 1-based; 0 when it is about the whole file */
    int32_t column;
    const char *code;        /* stable, e.g. "unknown-key" (docs/configuration.md lists them) */
    const char *file;        /* path or name of the source */
    const char *message;     /* what is wrong and the valid choices */
    const char *source_line; /* the text of that line; NULL: none */
};
typedef void moe_diagnostic_fn(void *self, const struct moe_diagnostic *diagnostic);

/* What a context is running with. Output; strings live until the next config_reload or
 * context_destroy. */
struct moe_config_info {
    uint32_t struct_size;
    int32_t num_rules;  /* rules of all layers */
    int32_t num_layers; /* built-in, host sources and environment that are live */
    int32_t reserved;
    uint64_t fingerprint; /* of the rules in their order of precedence; equal on ranks configured
                               alike */
    uint64_t generation;  /* 1 after context_create, one more after each successful reload */
    const char *layers;   /* names of the live layers, comma-separated, lowest first */
};

/* ---------------------------------------------------------------------------------------------
 * Problem
 * ------------------------------------------------------------------------------------------- */

/*
 * How one operand is stored. All zero but dtype: plain elements. Frozen.
 *
 * Quantized rows are fp8 e4m3: q = fp8(x * (1 / scale)), the reciprocal rounded to fp32, one
 * rounding to nearest even, saturated to +-448, NaN kept. Dynamic scales follow from the data:
 * scale = max(amax, 1e-10) / 448 over the group, amax without NaN and at most FLT_MAX; with UE8M0
 * it is rounded up to a power of two. Scales of rows, g = column / group_k (a last group may be
 * narrower; group_k 0: one scale per row, g = 0), element strides with 0 for packed:
 *   row_major         fp32 at [row * stride + g], packed: the number of groups
 *   column_major_tma  fp32 at [g * stride + row], packed: rows rounded up to 4 (DeepGEMM on sm_90)
 *   ue8m0_packed      4-byte words at [g / 4 * stride + row], packed as before; byte g % 4 is the
 *                     exponent + 127, bytes without a group are 0 (DeepGEMM on sm_100)
 * Static scales (dynamic 0) are fp32 and given: one; one per row (group_rows 1); or, where a member
 * says so, one per expert.
 */
struct moe_recipe {
    int32_t dtype;        /* MOE_DTYPE_*; 0 in problem.intermediate: as tokens; 0 elsewhere: not
                             used */
    int32_t scale_dtype;  /* MOE_DTYPE_FP32 or _UE8M0; 0: no scales */
    int32_t scale_layout; /* MOE_SCALE_* */
    int32_t group_rows;   /* rows (output channels, tokens) sharing a scale; 0: all */
    int32_t group_k;      /* columns along k sharing a scale; 0: all */
    int32_t zero_point;   /* 0: symmetric */
    int32_t packing;      /* 0: one element after the other */
    int32_t dynamic;      /* activations: 1 = scales computed from the data, 0 = given */
};

/* Flags of moe_problem. ROUTER_WEIGHT_ON_INPUT: the weight multiplies GEMM1's accumulator, not the
 * output. CORRECTION_BIAS: fp32 [E], added to scores for the choice only. SHARED_SIGMOID: the
 * shared expert's output is multiplied by sigma(x . w). */
#define MOE_PROBLEM_UNGATED                1u /* experts have up and down only */
#define MOE_PROBLEM_RENORMALIZE            2u /* gating divides the weights by their sum */
#define MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT 4u
#define MOE_PROBLEM_GATE_UP_BIAS           8u
#define MOE_PROBLEM_DOWN_BIAS              16u
#define MOE_PROBLEM_ROUTER_BIAS            32u /* added to the logits */
#define MOE_PROBLEM_CORRECTION_BIAS        64u
#define MOE_PROBLEM_SHARED_SIGMOID         128u

/*
 * Ranges of ids and numbers of slots. Gating chooses among num_experts_global logical experts. A
 * physical map turns those into ids below num_physical_experts; appended experts follow after them.
 * Operations behind gating (align_block_size, ep_preprocess, the reorders, sum_reduce, experts,
 * layer) therefore take ids below P = num_physical_experts + num_appended_experts, and
 * k = top_k + num_appended_experts slots per token; filters and expert maps range over P.
 *
 * One MoE layer as this rank sees it. Input. In a plan that is made for single operations, members
 * that those do not need may be zero.
 *
 * Arithmetic of determinism level 0, the same in all kernels of a backend and architecture: a GEMM
 * output is one chain over k = 0..K-1 in fixed steps with fp32 accumulation, then * routing weight
 * (if on the input), + bias, activation, one rounding. An expert's output row is rounded to
 * output_dtype; out = sum over slots j = 0..k-1 of weight_j * row_j (fp32, fused multiply-add, in
 * that order), * routed_scaling (if on the output), + shared_sigmoid * shared row (rounded to
 * output_dtype before), + residual, one rounding.
 *
 * fp8 weights (gate_up, down: static fp32 scales of row_major layout, groups 0 and 0 or 128 and
 * 128) meet rows that are
 *   fp8        tokens with input_scales, the intermediate quantized by its recipe. Where tokens are
 *              plain and gate_up and intermediate fp8, layer and experts quantize the tokens by the
 *              intermediate's recipe. The intermediate is quantized from fp32. With a group of 128
 *              in rows or weights: acc = fma(sum of 128 products, input scale * weight scale, acc)
 *              over k in order; else one sum over all k, * (input scale * weight scale)
 *   plain      weight-only: as fp8 rows with scales of 1
 * fp8 rows with plain weights are refused. With fp8 tokens output_dtype must be set; layer takes
 * logits or ids then, and grouped_gemm of gate and up gives output_dtype.
 */
struct moe_problem {
    uint32_t struct_size;
    uint32_t flags;             /* MOE_PROBLEM_* */
    int32_t num_experts;        /* E held by this rank; the first dimension of the weights */
    int32_t num_experts_global; /* range of ids and of logits; 0: num_experts */
    int32_t top_k;              /* at most num_experts_global */
    int32_t hidden;             /* H: width of tokens and outputs */
    int32_t inter;              /* I of one expert on this rank, one half of gate + up */
    int32_t shared_inter;       /* I of the shared expert on this rank; 0: none. Several shared
                                     experts are one with the sum of their I */
    int32_t activation;         /* MOE_ACTIVATION_* */
    float act_alpha;            /* swiglu_oai */
    float act_limit;            /* swiglu_oai; 0: no limit. Other activations refuse non-zero
                                     values */
    int32_t gating;             /* MOE_GATING_* */
    int32_t num_groups;         /* 0 or 1: not grouped */
    int32_t topk_groups;
    int32_t group_score;          /* MOE_GROUP_SCORE_* */
    float router_jitter;          /* sparsemixer: the model's router_jitter_noise */
    float routed_scaling;         /* routed_scaling_factor; 0: 1.0 */
    int32_t scaling_on;           /* MOE_SCALING_*: where routed_scaling goes */
    int32_t determinism;          /* MOE_DETERMINISM_* */
    int32_t output_dtype;         /* 0: as tokens */
    int32_t logits_dtype;         /* dtype that router logits are rounded to and read as; 0: fp32 */
    int32_t num_appended_experts; /* gating appends the ids num_physical_experts, ...; 0: none */
    float appended_weight;        /* their weight */
    int32_t num_physical_experts; /* range of the ids that a physical map gives out; 0:
                                     num_experts_global (no redundant experts) */
    int64_t max_tokens;           /* largest num_tokens of a call */
    struct moe_recipe tokens;     /* [T, H] */
    struct moe_recipe gate_up;    /* weights of GEMM1 */
    struct moe_recipe intermediate; /* [rows, I], input of GEMM2; all 0: as tokens, dynamic */
    struct moe_recipe down;         /* weights of GEMM2 */
};

/* ---------------------------------------------------------------------------------------------
 * Weights
 * ------------------------------------------------------------------------------------------- */

/*
 * A matrix per expert (or one for all: router, shared). Element (e, row, col) lies at
 *   base + (e * expert_stride + row * row_stride + col * col_stride) elements, or, with a table,
 *   table[e] +                 (row * row_stride + col * col_stride) elements.
 * row = output channel, col = k, the summed dimension; so nn.Linear weights have col_stride 1.
 * Halves of a fused [E, 2I, H] tensor, interleaved rows, transposed [E, H, 2I], experts apart and
 * padded rows are all this one description. Biases: row only. Exactly one of base and table is set;
 * both NULL: absent. `table` (host memory) is read during the call it is given to; the elements
 * stay in place as long as the weights object lives. Strides have no default here: 0 is a stride.
 * Frozen.
 */
struct moe_operand {
    const void *base;
    const void *const *table;
    int64_t expert_stride;
    int64_t row_stride;
    int64_t col_stride;
    int32_t dtype; /* 0: as the problem's recipe says; router, biases and shared: as gate_up, but
                         router, biases and shared_sigmoid as output_dtype where that is fp8;
                         scales and correction bias: fp32 */
    int32_t reserved;
};

/*
 * All weights of a layer. Input. Operands that the problem does not use must be absent. Of the
 * groups gate + up + their biases, down + bias, router + router_bias, correction_bias, and
 * shared_*, each is complete or absent as a whole; calls that need an absent group refuse.
 */
struct moe_weights_desc {
    uint32_t struct_size;
    uint32_t flags;                /* 0 */
    struct moe_operand gate;       /* [E, I, H]; absent when ungated */
    struct moe_operand up;         /* [E, I, H] */
    struct moe_operand down;       /* [E, H, I] */
    struct moe_operand gate_bias;  /* [E, I] */
    struct moe_operand up_bias;    /* [E, I] */
    struct moe_operand down_bias;  /* [E, H] */
    struct moe_operand gate_scale; /* fp32 scales of fp8 weights: (e, row / group_rows, col /
                                        group_k) of the recipe */
    struct moe_operand up_scale;
    struct moe_operand down_scale;
    struct moe_operand router;          /* [E_global, H]; absent when the host makes logits or
                                           ids */
    struct moe_operand router_bias;     /* [E_global] */
    struct moe_operand correction_bias; /* [E_global] */
    struct moe_operand shared_gate;     /* [shared I, H]; expert_stride is not used */
    struct moe_operand shared_up;       /* [shared I, H] */
    struct moe_operand shared_down;     /* [H, shared I] */
    struct moe_operand shared_sigmoid;  /* [1, H] */
    struct moe_operand shared_gate_scale;
    struct moe_operand shared_up_scale;
    struct moe_operand shared_down_scale;
};

/* Output of weights_query. */
struct moe_weights_info {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t prepared_bytes; /* 0: the weights run as they are; else weights_prepare is
                                    needed */
    uint64_t prepared_alignment;
};

/* ---------------------------------------------------------------------------------------------
 * Plans
 * ------------------------------------------------------------------------------------------- */

struct moe_plan_options {
    uint32_t struct_size;
    uint32_t flags;         /* 0 */
    uint64_t workspace_cap; /* bytes; 0: none. The layer then runs in chunks of tokens, with the
                               same bits */
    uint64_t ops;           /* bit set of 1 << MOE_OP_*; an operation brings along what it is made
                               of. 0: all but quantize, and but router and gating where the problem
                               has no gating */
};

/* Output of plan_info. */
struct moe_plan_info {
    uint32_t struct_size;
    int32_t num_buckets;      /* token ranges with their own choice of tiles */
    uint64_t workspace_bytes; /* enough for any call with this plan, up to max_tokens */
    uint64_t workspace_alignment;
    int64_t chunk_tokens;       /* tokens that one pass of the layer takes; max_tokens when not
                                     capped */
    int64_t max_rows;           /* rows that grouped_gemm, activation, post_reorder and experts
                                     take at most. Rows of a masked layout all count: a plan for
                                     them has max_tokens >= num_experts * max_masked_rows / k, k
                                     with appended experts */
    uint64_t config_generation; /* of the configuration that the plan was made from */
};

#define MOE_CHOICE_HEURISTIC 0 /* no rule named the operation: the cost model chose */
#define MOE_CHOICE_RULE      1 /* a rule of the configuration chose */

/* Output of plan_op_info and explain: what runs for one operation and one number of tokens. Strings
 * live as long as the plan (explain: until its callback returns). */
struct moe_choice {
    uint32_t struct_size;
    int32_t op;         /* MOE_OP_* */
    int64_t min_tokens; /* the bucket: min_tokens <= T <= max_tokens */
    int64_t max_tokens;
    int32_t source; /* MOE_CHOICE_* */
    int32_t line;   /* of the bucket in `file`; 0: heuristic */
    int32_t tile;   /* index for tile_info */
    int32_t reserved;
    uint64_t workspace_bytes; /* that this operation needs at the num_tokens asked for; 0 from
                                 explain */
    const char *tile_name;    /* e.g. "cpu.avx2 BLOCK_SIZE_M 16 BLOCK_SIZE_N 32 BLOCK_SIZE_K 512" */
    const char *rule;         /* name of the rule; "heuristic" */
    const char *file;         /* where it stands; "" for the heuristic */
};

/* One line of explain about a rule. Strings live until the callback returns. */
struct moe_explain_rule {
    uint32_t struct_size;
    int32_t chosen; /* 1: this rule decides; 0: it lost */
    int32_t line;
    int32_t precedence; /* 1 is looked at first */
    const char *rule;
    const char *file;
    const char *reason; /* why it decides, or why it does not */
};

/* Callbacks of explain; either may be NULL. Rules come in order of precedence, then one choice per
 * operation. */
struct moe_explain_sink {
    uint32_t struct_size;
    uint32_t flags; /* 0 */
    void *self;
    void (*rule)(void *self, const struct moe_explain_rule *rule);
    void (*choice)(void *self, const struct moe_choice *choice);
};

/* ---------------------------------------------------------------------------------------------
 * Run calls. Every argument struct begins with `struct moe_call call`, whose struct_size is the
 * size of the whole argument struct.
 * ------------------------------------------------------------------------------------------- */

struct moe_call {
    uint32_t struct_size; /* of the argument struct that this begins */
    uint32_t flags;       /* 0 */
    void *stream;         /* CUstream; NULL: the legacy default stream. CPU: not used */
    void *workspace;      /* at least the operation's workspace_bytes; NULL where that
                                         is 0 */
    uint64_t workspace_bytes;
    int64_t num_tokens;               /* T, at most the plan's max_tokens */
    const int32_t *num_tokens_device; /* in the backend's memory: the real T <= num_tokens of a
                                         replayed graph; NULL: num_tokens */
};

/*
 * Which routes are held here, and as which local expert. A route with id x is local if
 * 0 <= x < P (struct moe_problem) and
 *   expert_end > 0:       expert_begin <= x < expert_end (half-open; SGLang's end_expert_id is
 *                         inclusive), local expert = x - expert_begin
 *   expert_map non-NULL:  expert_map[x] >= 0, local expert = expert_map[x]
 *   both:                 x in the range, local expert = expert_map[x]
 *   neither:              local expert = x
 * and the local expert is below num_experts. Any other id (-1, P, INT32_MAX, ...)
 * is filtered and never used as an index. Frozen.
 */
struct moe_route_filter {
    const int32_t *expert_map; /* [P], in the backend's memory */
    int32_t expert_begin;
    int32_t expert_end;
    int32_t mode; /* MOE_FILTER_*; align_block_size only, the others drop */
    int32_t reserved;
};

/* router: logits[t, e] = tokens[t, :] . router[e, :] (+ router_bias[e]), fp32 accumulation, rounded
 * to logits_dtype. */
struct moe_router_args {
    struct moe_call call;
    const struct moe_weights *weights; /* bound with a router */
    const void *tokens;                /* [T, H] of problem.tokens.dtype */
    int64_t token_stride;
    void *logits; /* [T, E_global] of logits_dtype */
    int64_t logits_stride;
};

/* gating: ids and weights from logits by the plan's rule. Source of the rules: MOE_GATING_LIST. */
struct moe_gating_args {
    struct moe_call call;
    const void *logits; /* [T, E_global] of logits_dtype */
    int64_t logits_stride;
    const float *correction_bias;    /* [E_global]; needed if the problem has one */
    void *topk_ids;                  /* out [T, k + appended] of ids_dtype, by descending choice */
    float *topk_weights;             /* out [T, k + appended] */
    int32_t ids_dtype;               /* MOE_IDS_* */
    int32_t max_replicas;            /* second dimension of physical_ids; 0: no map */
    const int32_t *num_valid_tokens; /* tokens from here on are padding: id -1, weight 0. NULL: none
                                        are */
    const int32_t *physical_ids;     /* [E_global, max_replicas]: ids given out instead of logical
                                       ones */
    const int32_t *num_replicas;     /* [E_global]; token t takes replica t % num_replicas */
    int64_t *load_counters;          /* [E_global], in/out: routes per logical expert are added.
                                       NULL: not wanted */
};

/*
 * align_block_size: routes grouped by expert, each group padded to a multiple of the block size
 * (the contract of SGLang's and vLLM's moe_align_block_size, with both filter modes and a stable
 * order). Capacities are checked against the worst case (align_capacity) before anything is
 * written; whole buffers are initialized up to their capacity.
 */
struct moe_align_args {
    struct moe_call call;
    const void *topk_ids; /* [T, k] of ids_dtype; any value */
    int32_t ids_dtype;
    int32_t block_size; /* 0: BLOCK_SIZE_M of the plan's gemm1 for this T */
    struct moe_route_filter filter;
    int32_t *sorted_ids;     /* out: route indices, padding and tail = T * k */
    int64_t sorted_capacity; /* elements */
    int32_t *expert_ids;     /* out: local expert of each block; -1 for kept filtered
                                         routes and tail */
    int64_t expert_capacity;
    int32_t *num_tokens_post_pad; /* out [1]: entries of sorted_ids in use */
    int32_t *expert_counts;       /* out [num_experts]: routes per local expert; NULL: not
                                         wanted. With sorted_ids, expert_ids and num_tokens_post_pad
                                         NULL, counts are all that is made */
    const int32_t *batch_counts;  /* batched form (vLLM's batched_moe_align_block_size):
                                         [num_experts] rows in use of max_batch_rows each, clamped
                                         to [0, max_batch_rows]; sorted ids are expert *
                                         max_batch_rows + i, the sentinel is num_experts *
                                         max_batch_rows, capacities hold num_experts times
                                         max_batch_rows rounded up to blocks. topk_ids is NULL and
                                         call.num_tokens and filter are not used then */
    int64_t max_batch_rows;
};

/*
 * ep_preprocess: the index arrays of expert parallelism by one stable counting sort of the routes
 * (the contract of SGLang's run_moe_ep_preproess without its defects). Rows of local experts come
 * first, in order of local expert, then token and slot; filtered routes have no row.
 */
struct moe_ep_preprocess_args {
    struct moe_call call;
    const void *topk_ids; /* [T, k] of ids_dtype */
    int32_t ids_dtype;
    int32_t segment_alignment; /* each segment starts at a multiple of this; 0: 1 */
    struct moe_route_filter filter;
    int64_t *seg_indptr;     /* out [num_experts + 1]: first row of each segment; end of the
                                        last */
    int32_t *src2dst;        /* out [T * k]: row of each route, -1 if filtered */
    int32_t *dst2src;        /* out [row_capacity]: route of each row, -1 in padding and
                                        tail; NULL: not wanted */
    int32_t *reorder_ids;    /* out [T * k]: local expert ids in row order without padding,
                                        -1 after the last; NULL: not wanted */
    int32_t *m_indices;      /* out [row_capacity]: local expert of each row, -1 in padding
                                        and tail; NULL: not wanted */
    int64_t row_capacity;    /* elements of dst2src and m_indices */
    int32_t *masked_m;       /* masked layout: out [num_experts] counts; rows are expert *
                                        max_masked_rows + i */
    int64_t max_masked_rows; /* 0: contiguous layout; else at least T, and num_experts times it
                                below 2^31. Of an expert that a token names more than once, routes
                                that do not fit have no row (-1). seg_indptr may be NULL; row
                                capacity is num_experts * max_masked_rows */
};

/* pre_reorder: row src2dst[t, j] of `rows` = tokens[t] for every slot j with src2dst >= 0;
 * optionally quantized. */
struct moe_pre_reorder_args {
    struct moe_call call;
    const void *tokens; /* [T, H] of problem.tokens.dtype */
    int64_t token_stride;
    const int32_t *src2dst; /* [T, k]: destination rows; < 0: no row; >= num_rows: refused on a
                                   CPU, skipped on a GPU */
    void *rows;             /* out [num_rows, H]; rows that are nobody's destination keep their
                                   content */
    int64_t row_stride;
    int64_t num_rows;
    const void *topk_ids; /* [T, k]: with per-expert scales only */
    int32_t ids_dtype;
    int32_t output_dtype; /* 0: as tokens */
    struct moe_route_filter filter;
    const float *input_scales; /* static scales, of a quantization that is not dynamic: [1]; [T]
                                  with group_rows 1; [num_experts] by the routes' local experts when
                                  topk_ids is given. NULL: none */
    void *output_scales;       /* dynamic scales, by the recipe in `quantization` */
    int64_t output_scale_stride;
    struct moe_recipe quantization; /* of the rows; dtype 0: not quantized */
};

/* quantize: tokens [T, H] to quantized rows and scales, per token or in groups along H. */
struct moe_quantize_args {
    struct moe_call call;
    const void *tokens;
    int64_t token_stride;
    void *output;
    int64_t output_stride;
    const float *input_scales;
    void *output_scales;
    int64_t output_scale_stride;
    struct moe_recipe quantization;
};

/*
 * activation: output[r, i] = act(gate[r, i], up[r, i]) for r < num_rows, in fp32, rounded once to
 * the intermediate's dtype. gate (r, i) lies at input + r * row_stride + i * col_stride, up at the
 * same + up_offset. Halves: col_stride 1, up_offset I. Interleaved: col_stride 2, up_offset 1.
 * call.num_tokens is not used.
 */
struct moe_activation_args {
    struct moe_call call;
    const void *input;  /* of problem.tokens.dtype */
    int64_t num_rows;   /* at most plan_info.max_rows */
    int64_t row_stride; /* elements; 0: 2 * I, ungated I */
    int64_t col_stride; /* 0: 1 */
    int64_t up_offset;  /* 0: I. Ungated: not used, up lies at `input` */
    void *output;       /* [num_rows, I]; may be `input` itself if row strides and dtypes
                                     are equal */
    int64_t output_stride;
    const int32_t *masked_m; /* masked layout: [num_experts] rows in use of max_masked_rows
                                     each, clamped to [0, max_masked_rows]; num_rows is num_experts
                                     * max_masked_rows, see plan_info.max_rows; other rows keep
                                     their content */
    int64_t max_masked_rows;
    const float *input_scales; /* static scales of the output: [1], or [num_rows] with group_rows
                                  1; NULL: none */
    void *output_scales;       /* dynamic scales of the output */
    int64_t output_scale_stride;
    struct moe_recipe quantization; /* of the output; dtype 0: as problem.intermediate */
};

#define MOE_GEMM_GATE_UP \
    1                          /* [rows, H] x gate and up -> [rows, 2I], gate in the first half; no
                                   activation */
#define MOE_GEMM_GATE_UP_ACT 2 /* the same with activation -> [rows, I] */
#define MOE_GEMM_DOWN        3 /* [rows, I] x down -> [rows, H] */

/*
 * grouped_gemm: each row times its expert's matrix, + bias if the problem has one. The rows'
 * experts come from seg_indptr (rows sorted by expert), from masked_m (counts in fixed strides), or
 * from sorted_ids + expert_ids (row r of the input is token sorted_ids[i] / k for GATE_UP*, and
 * route sorted_ids[i] for DOWN; outputs are written at route indices). Exactly one of the three is
 * set. Blocks with expert id -1 are filled with zeros.
 */
struct moe_grouped_gemm_args {
    struct moe_call call;
    const struct moe_weights *weights;
    const void *input; /* of tokens.dtype, for DOWN of intermediate.dtype */
    int64_t input_stride;
    void *output; /* of tokens.dtype, intermediate.dtype with _ACT,
                                          output_dtype for DOWN */
    int64_t output_stride;
    int64_t num_rows;          /* rows of the input; gathered: of the output */
    int32_t which;             /* MOE_GEMM_* */
    int32_t block_size;        /* gathered: the block size that the ids were made with */
    const int64_t *seg_indptr; /* [num_experts + 1], non-decreasing, last <= num_rows. Rows
                                          outside all segments keep their content */
    const int32_t *masked_m;   /* [num_experts] */
    int64_t max_masked_rows;
    const int32_t *sorted_ids;
    const int32_t *expert_ids;
    const int32_t *num_tokens_post_pad;
    const float *row_weights; /* [num_rows] (gathered: [T * k]) factors of the accumulator,
                                          before bias; NULL: 1 */
    const void *input_scales;
    int64_t input_scale_stride;
};

/* post_reorder: output[t] = combine over the slots of rows[src2dst[t, j]] (struct moe_problem has
 * the arithmetic); a token without local routes gives 0 (+ shared, + residual). */
struct moe_post_reorder_args {
    struct moe_call call;
    const void *rows; /* [num_rows, H] of output_dtype */
    int64_t row_stride;
    int64_t num_rows;
    const int32_t *src2dst;    /* [T, k]; < 0: no row */
    const float *topk_weights; /* [T, k]; NULL: all 1. Not used with ROUTER_WEIGHT_ON_INPUT */
    const void *shared;        /* [T, H] of output_dtype: the shared expert's rows; NULL: none */
    int64_t shared_stride;
    const float *shared_factor; /* [T]; NULL: 1 */
    const void *residual;       /* [T, H] of output_dtype; NULL: none */
    int64_t residual_stride;
    void *output; /* [T, H] of output_dtype; may be `residual` or `shared` with
                                     equal strides */
    int64_t output_stride;
};

/*
 * route: gating and the sorts of align_block_size and ep_preprocess in one call (on a GPU a chain
 * of one to three launches), with the results of the three. What is NULL is not made; at least
 * one of sorted_ids, expert_counts, seg_indptr and masked_m must be wanted.
 */
struct moe_route_args {
    struct moe_call call;
    const void *logits; /* as in gating; NULL: topk_ids are given, nothing is gated */
    int64_t logits_stride;
    const float *correction_bias;
    void *topk_ids;      /* [T, k] of ids_dtype: out, or in without logits */
    float *topk_weights; /* out [T, k]; NULL without logits */
    int32_t ids_dtype;
    int32_t max_replicas;
    const int32_t *num_valid_tokens; /* this and the next three as in gating; with logits only */
    const int32_t *physical_ids;
    const int32_t *num_replicas;
    int64_t *load_counters;
    struct moe_route_filter filter;
    int32_t block_size; /* from here on as in align_block_size */
    int32_t segment_alignment;
    int32_t *sorted_ids;
    int64_t sorted_capacity;
    int32_t *expert_ids;
    int64_t expert_capacity;
    int32_t *num_tokens_post_pad;
    int32_t *expert_counts;
    int64_t *seg_indptr; /* from here on as in ep_preprocess, where filtered routes are dropped
                                        in either mode of the filter */
    int32_t *src2dst;
    int32_t *dst2src;
    int32_t *reorder_ids;
    int32_t *m_indices;
    int64_t row_capacity;
    int32_t *masked_m;
    int64_t max_masked_rows;
};

/* sum_reduce: output[t] = routed scaling * sum over j of input[t, j], fp32, slot order (SGLang's
 * moe_sum_reduce). */
struct moe_sum_reduce_args {
    struct moe_call call;
    const void *input;    /* [T, k, H] of output_dtype, packed but for token_stride */
    int64_t token_stride; /* 0: k * H */
    void *output;         /* [T, H] of output_dtype */
    int64_t output_stride;
};

/* experts: rows already dispatched -> rows: GEMM1, activation, GEMM2. What expert-parallel hosts
 * call. */
struct moe_experts_args {
    struct moe_call call;
    const struct moe_weights *weights;
    const void *rows; /* [num_rows, H] of tokens.dtype */
    int64_t row_stride;
    int64_t num_rows;          /* at most plan_info.max_rows */
    const int64_t *seg_indptr; /* contiguous: [num_experts + 1] */
    const int32_t *masked_m;   /* masked: [num_experts]; num_rows as in moe_activation_args */
    int64_t max_masked_rows;
    const float *row_weights; /* with ROUTER_WEIGHT_ON_INPUT: [num_rows]; else NULL */
    const void *input_scales;
    int64_t input_scale_stride;
    void *output; /* [num_rows, H] of output_dtype; rows outside all segments keep
                                     their content */
    int64_t output_stride;
};

/*
 * layer: tokens -> tokens. Routing comes from the first of these that is given: topk_ids +
 * topk_weights; logits; the bound router (all three NULL). With shared_inter the shared expert is
 * computed and added.
 */
struct moe_layer_args {
    struct moe_call call;
    const struct moe_weights *weights;
    const void *tokens; /* [T, H] of tokens.dtype */
    int64_t token_stride;
    const void *input_scales; /* pre-quantized tokens */
    int64_t input_scale_stride;
    const void *logits; /* [T, E_global] of logits_dtype */
    int64_t logits_stride;
    const void *topk_ids;      /* [T, k] of ids_dtype; filtered and repeated ids are legal */
    const float *topk_weights; /* [T, k] */
    int32_t ids_dtype;         /* of topk_ids and topk_ids_out */
    int32_t reserved;
    struct moe_route_filter filter;
    const int32_t *num_valid_tokens; /* as in gating */
    const int32_t *physical_ids;     /* as in gating */
    const int32_t *num_replicas;
    int64_t max_replicas;
    int64_t *load_counters;
    const void *residual; /* [T, H] of output_dtype; NULL: none */
    int64_t residual_stride;
    void *output; /* [T, H] of output_dtype; may be `tokens` or `residual` with
                                      equal strides and dtypes */
    int64_t output_stride;
    void *logits_out;        /* [T, E_global] of logits_dtype, when the router runs; NULL: not
                                      wanted */
    void *topk_ids_out;      /* [T, k] of ids_dtype; NULL: not wanted */
    float *topk_weights_out; /* [T, k]; NULL: not wanted */
};

/* ---------------------------------------------------------------------------------------------
 * Introspection
 * ------------------------------------------------------------------------------------------- */

/* One compiled variant, a row of kernels/tiles.def. Output; strings are constant for the life of
 * the image. */
struct moe_tile_info {
    uint32_t struct_size;
    int32_t op;           /* the operation it belongs to; MOE_OP_GEMM1 stands for router, gemm1
                                and gemm2 */
    int32_t backend;      /* MOE_BACKEND_* */
    int32_t built;        /* 1: this build contains it */
    int32_t min_sm;       /* CUDA */
    int32_t block_size_m; /* 0: has none */
    int32_t block_size_n;
    int32_t block_size_k;
    int32_t group_size_m;
    int32_t num_warps;
    int32_t num_stages;
    int32_t block_size; /* operations without a GEMM */
    int32_t smem_bytes;
    int32_t reserved;
    const char *kernel; /* e.g. "cpu.avx2" */
    const char *isa;    /* CPU: instruction set it needs */
    const char *name;   /* kernel and numbers, as in moe_choice.tile_name */
};

/* A backend that this source knows. Output; `name` is constant. */
struct moe_backend_info {
    uint32_t struct_size;
    int32_t backend;    /* MOE_BACKEND_* */
    int32_t available;  /* 1: context_create can work on this machine */
    int32_t min_driver; /* CUDA: smallest driver version; 0: none needed */
    const char *name;
    char reason[232]; /* why it is not available; "" if it is */
};

/* Counters of a context. Output. */
struct moe_stats {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t num_plans_created;
    uint64_t num_choices_by_rule;      /* buckets of plans whose GEMM tiles came from a rule */
    uint64_t num_choices_by_heuristic; /* ... from the cost model */
    uint64_t num_buckets_skipped;      /* by on_unavailable: next */
    uint64_t num_reloads;
    uint64_t num_reloads_refused;
};

/* ---------------------------------------------------------------------------------------------
 * Contexts
 * ------------------------------------------------------------------------------------------- */

struct moe_context; /* device, thread pool, configuration */
struct moe_weights; /* the weights of one layer, described and checked */
struct moe_plan;    /* one problem, a tile per operation and token bucket */

#define MOE_CONTEXT_IGNORE_ENVIRONMENT 1u /* do not read MOE_PLUGIN_CONFIG */

struct moe_context_options {
    uint32_t struct_size;
    uint32_t flags;  /* MOE_CONTEXT_* */
    int32_t backend; /* MOE_BACKEND_*; AUTO: CUDA if available and it runs the layer, else CPU */
    int32_t ordinal; /* CUDA device */
    int32_t num_threads; /* CPU: threads of the pool, the caller included; 0: CPUs of the
                                       affinity mask */
    int32_t num_config_sources;
    const struct moe_config_source *config_sources; /* later ones overlay earlier ones; all overlay
                                                       the built-in profiles */
    moe_diagnostic_fn *diagnostic; /* every finding in a configuration; NULL: only the first, in
                                       `error` */
    void *diagnostic_self;
};

/*
 * The function table. Constant data of the plugin's image, never freed. Members marked (mandatory)
 * are non-NULL in every plugin; the others may be NULL, which means what the member says. Append
 * only.
 */
struct moe_plugin_api {
    uint32_t struct_size;
    uint32_t abi_major;
    uint32_t abi_minor;
    uint32_t flags;            /* 0 */
    uint64_t layout_hash;      /* MOE_ABI_LAYOUT_HASH of the plugin's header */
    const char *name;          /* "moe-plugin" */
    const char *version;       /* semantic version of the plugin */
    const char *source_id;     /* revision that it was built from */
    const char *kernel_set_id; /* hash of kernel sources, compiler and flags: equal ids give equal
                                  bits */

    /* ---- context, since 0.1 (mandatory) ---- */

    /* Describe device `ordinal` of a backend of MOE_BACKEND_LIST (AUTO: the one that context_create
     * would take). Needs no context. NO_DEVICE, UNAVAILABLE, DRIVER_TOO_OLD. */
    int32_t (*device_probe)(int32_t backend, int32_t ordinal, struct moe_device *out,
                            struct moe_error *error);

    /* Read the configuration (built-in profiles, then config_sources, then the environment variable
     * MOE_PLUGIN_CONFIG: files separated by ':', a leading '=' replaces all earlier layers; ignored
     * in privileged processes), probe the device, load kernels, start the thread pool. `options`
     * NULL: all defaults. CONFIG, IO, NO_DEVICE, UNAVAILABLE, DRIVER_TOO_OLD, OUT_OF_MEMORY. */
    int32_t (*context_create)(const struct moe_host *host,
                              const struct moe_context_options *options, struct moe_context **out,
                              struct moe_error *error);

    /* Stop the pool, free everything. NULL is legal. Plans and weights of the context must have
     * been destroyed. */
    void (*context_destroy)(struct moe_context *context);

    /* The device that the context runs on. */
    int32_t (*context_device)(const struct moe_context *context, struct moe_device *out,
                              struct moe_error *error);

    /* ---- configuration, since 0.1 (mandatory) ---- */

    /* Check sources without a context, layered as in context_create but without the environment.
     * `device` NULL: rules are not checked against a device. Returns CONFIG if there is any error.
     * `host` may be NULL. */
    int32_t (*config_validate)(const struct moe_host *host, const struct moe_config_source *sources,
                               int32_t num_sources, const struct moe_device *device,
                               moe_diagnostic_fn *diagnostic, void *diagnostic_self,
                               struct moe_error *error);

    /* Read the configuration again from these sources (built-in below, environment above, as at
     * creation) and publish it for plans that are created from now on. On failure the old one
     * stays. */
    int32_t (*config_reload)(struct moe_context *context, const struct moe_config_source *sources,
                             int32_t num_sources, moe_diagnostic_fn *diagnostic,
                             void *diagnostic_self, struct moe_error *error);

    int32_t (*config_info)(const struct moe_context *context, struct moe_config_info *out,
                           struct moe_error *error);

    /* ---- support and plans, since 0.1 (mandatory) ---- */

    /* Can this plugin run `problem` (for the operations in `ops`, a bit set as in moe_plan_options)
     * on `device`? Needs no device and no context, touches nothing. OK, or UNSUPPORTED or
     * INVALID_ARGUMENT with the reason. */
    int32_t (*supports)(const struct moe_device *device, const struct moe_problem *problem,
                        uint64_t ops, struct moe_error *error);

    /* Choose a rule and a tile per operation and token bucket, size the workspace. `options` NULL:
     * all defaults. UNSUPPORTED with the reason, CONFIG when a rule names a tile that is not
     * available here, OUT_OF_MEMORY, WORKSPACE_TOO_SMALL when not even one token fits the cap. */
    int32_t (*plan_create)(struct moe_context *context, const struct moe_problem *problem,
                           const struct moe_plan_options *options, struct moe_plan **out,
                           struct moe_error *error);
    void (*plan_destroy)(struct moe_plan *plan);
    int32_t (*plan_info)(const struct moe_plan *plan, struct moe_plan_info *out,
                         struct moe_error *error);

    /* The choice for operation `op` at `num_tokens` (0..max_tokens). No lock, no allocation. */
    int32_t (*plan_op_info)(const struct moe_plan *plan, int32_t op, int64_t num_tokens,
                            struct moe_choice *out, struct moe_error *error);

    /* What would be chosen for any device, problem and number of tokens with the context's
     * configuration, and why each other rule lost. `device` NULL: the context's. */
    int32_t (*explain)(const struct moe_context *context, const struct moe_device *device,
                       const struct moe_problem *problem, int64_t num_tokens,
                       const struct moe_explain_sink *sink, struct moe_error *error);

    /* ---- weights, since 0.1 (mandatory) ---- */

    /* Bytes of prepared form that this backend needs for these weights. */
    int32_t (*weights_query)(struct moe_context *context, const struct moe_problem *problem,
                             const struct moe_weights_desc *desc, struct moe_weights_info *out,
                             struct moe_error *error);

    /* Fill the prepared form on `stream`. Only needed when weights_query says so; INVALID_ARGUMENT
     * otherwise. */
    int32_t (*weights_prepare)(struct moe_context *context, const struct moe_problem *problem,
                               const struct moe_weights_desc *desc, void *prepared,
                               uint64_t prepared_bytes, void *stream, struct moe_error *error);

    /* Check pointers, strides and alignment, keep the description. `prepared` NULL when query said
     * 0. Any plan of the same context whose problem has the same experts, dimensions, recipes and
     * biases can use the result. */
    int32_t (*weights_bind)(struct moe_context *context, const struct moe_problem *problem,
                            const struct moe_weights_desc *desc, const void *prepared,
                            uint64_t prepared_bytes, struct moe_weights **out,
                            struct moe_error *error);
    void (*weights_destroy)(struct moe_weights *weights);

    /* ---- layer, since 0.1 (mandatory) ---- */
    int32_t (*layer)(const struct moe_plan *plan, const struct moe_layer_args *args,
                     struct moe_error *error);
    int32_t (*experts)(const struct moe_plan *plan, const struct moe_experts_args *args,
                       struct moe_error *error);

    /* ---- single operations, since 0.1 (optional: NULL means not offered) ---- */
    int32_t (*router)(const struct moe_plan *plan, const struct moe_router_args *args,
                      struct moe_error *error);
    int32_t (*gating)(const struct moe_plan *plan, const struct moe_gating_args *args,
                      struct moe_error *error);
    int32_t (*align_block_size)(const struct moe_plan *plan, const struct moe_align_args *args,
                                struct moe_error *error);
    int32_t (*ep_preprocess)(const struct moe_plan *plan, const struct moe_ep_preprocess_args *args,
                             struct moe_error *error);
    int32_t (*pre_reorder)(const struct moe_plan *plan, const struct moe_pre_reorder_args *args,
                           struct moe_error *error);
    int32_t (*quantize)(const struct moe_plan *plan, const struct moe_quantize_args *args,
                        struct moe_error *error);
    int32_t (*activation)(const struct moe_plan *plan, const struct moe_activation_args *args,
                          struct moe_error *error);
    int32_t (*grouped_gemm)(const struct moe_plan *plan, const struct moe_grouped_gemm_args *args,
                            struct moe_error *error);
    int32_t (*post_reorder)(const struct moe_plan *plan, const struct moe_post_reorder_args *args,
                            struct moe_error *error);
    int32_t (*sum_reduce)(const struct moe_plan *plan, const struct moe_sum_reduce_args *args,
                          struct moe_error *error);
    int32_t (*route)(const struct moe_plan *plan, const struct moe_route_args *args,
                     struct moe_error *error);

    /* Smallest capacities that align_block_size accepts for this many routes, experts and block
     * size, in either filter mode: bs * floor((n + min(n, buckets) * (bs - 1)) / bs) ids and that /
     * bs expert ids; buckets = num_experts, + 1 when kept. No plan needed. INVALID_ARGUMENT when a
     * number is negative or the result does not fit int32. */
    int32_t (*align_capacity)(int64_t num_routes, int32_t num_experts, int32_t block_size,
                              int32_t filter_mode, int64_t *sorted_capacity,
                              int64_t *expert_capacity, struct moe_error *error);

    /* ---- introspection, since 0.1 (mandatory) ---- */

    /* Name of a status, e.g. "MOE_STATUS_OK", and its sentence; "unknown status" for others. Never
     * NULL. */
    const char *(*status_name)(int32_t status);
    const char *(*status_text)(int32_t status);

    /* Rows of the tile table, built or not; INVALID_ARGUMENT past the end. */
    int32_t (*tile_info)(int32_t index, struct moe_tile_info *out, struct moe_error *error);

    /* Backends that this source knows, CPU first; INVALID_ARGUMENT past the end. */
    int32_t (*backend_info)(int32_t index, struct moe_backend_info *out, struct moe_error *error);

    int32_t (*stats)(const struct moe_context *context, struct moe_stats *out,
                     struct moe_error *error);

    /* ---- self-test, since 0.1 (mandatory) ---- */

    /* Run the known answers that the plugin carries through the context's kernels. SELF_TEST names
     * the first that is wrong. Allocates its buffers through the host; not a run call. */
    int32_t (*self_test)(struct moe_context *context, struct moe_error *error);
};

/*
 * The entry. Pure: compares versions, keeps nothing, reads no file or environment, starts no
 * thread, touches no device. Legal at any time from any thread. Returns the table, or NULL with the
 * reason in `error` (VERSION, INVALID_ARGUMENT).
 */
typedef const struct moe_plugin_api *moe_plugin_init_fn(const struct moe_host *host,
                                                        struct moe_error *error);
const struct moe_plugin_api *moe_plugin_init(const struct moe_host *host, struct moe_error *error);

#ifdef __cplusplus
}
#endif

#endif /* MOE_PLUGIN_H */
