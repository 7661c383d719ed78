/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target of the configuration: any text is read as a host's source, on top of nothing. If
 * it is refused, a finding says why; if not, tables made from it cover every number of tokens, and
 * every choice can run on the device.
 */
#include "dispatch.h"
#include "tiles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPS ((UINT64_C(1) << MOE_OP_EXPERTS) - 1 - (UINT64_C(1) << MOE_OP_QUANTIZE))

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        abort();
    }
}

static void count_finding(void *self, const struct moe_diagnostic *finding)
{
    int64_t *num_errors = self;
    *num_errors += finding->level == MOE_LEVEL_ERROR ? 1 : 0;
    require(finding->message[0] != '\0' && finding->code[0] != '\0', "a finding says something");
}

static void check_table(const struct moe_dispatch *dispatch, const struct moe_device *device,
                        int64_t max_tokens)
{
    int64_t next = 0;
    for (int32_t i = 0; i < dispatch->num_buckets; i++) {
        const struct moe_dispatch_bucket *bucket = &dispatch->buckets[i];
        require(bucket->min_tokens == next && bucket->max_tokens >= next,
                "buckets follow each other");
        require(moe_dispatch_find(dispatch, bucket->min_tokens) == bucket,
                "the first token finds it");
        require(moe_dispatch_find(dispatch, bucket->max_tokens) == bucket,
                "the last token finds it");
        for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
            int32_t tile = bucket->choices[op].tile;
            require(tile < 0 || moe_tiles_fits(&moe_tiles[tile], device, NULL), "the tile fits");
            require((tile >= 0) == ((OPS >> op & 1u) != 0), "each operation has a tile");
        }
        int32_t gemm1 = bucket->choices[MOE_OP_GEMM1].tile;
        int32_t gemm2 = bucket->choices[MOE_OP_GEMM2].tile;
        require(moe_tiles[gemm1].block_m == moe_tiles[gemm2].block_m, "one BLOCK_SIZE_M for both");
        next = bucket->max_tokens + 1;
    }
    require(next == max_tokens + 1, "buckets cover all");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    struct moe_memory memory;
    moe_memory_init(&memory, NULL);
    struct moe_device device;
    MOE_INIT(device);
    device.backend = MOE_BACKEND_CPU;
    device.num_sms = 2;
    memcpy(device.isa, "c11", 4);
    memcpy(device.name, "AMD EPYC", 9);
    struct moe_problem problem;
    MOE_INIT(problem);
    problem.num_experts = 128;
    problem.top_k = 8;
    problem.hidden = 2048;
    problem.inter = 768;
    problem.activation = MOE_ACTIVATION_SILU;
    problem.max_tokens = 5000;
    problem.tokens.dtype = MOE_DTYPE_BF16;
    problem.gate_up.dtype = MOE_DTYPE_BF16;
    problem.down.dtype = MOE_DTYPE_BF16;

    struct moe_config_source source;
    MOE_INIT(source);
    source.flags = MOE_CONFIG_REPLACE;
    source.text = data_bytes > 0 ? (const char *)data : "";
    source.text_bytes = data_bytes;
    int64_t num_errors = 0;
    struct moe_config_request request = {&source, 1, 0, &device, count_finding, &num_errors};
    struct moe_config *config = NULL;
    int32_t status = moe_config_create(&memory, &request, &config, NULL);
    require((status == MOE_STATUS_OK) == (num_errors == 0),
            "refused if and only if a finding says why");
    if (status != MOE_STATUS_OK) {
        return 0;
    }
    struct moe_dispatch *dispatch = NULL;
    status = moe_dispatch_create(&memory, config, &device, &problem, OPS, &dispatch, NULL);
    require(status == MOE_STATUS_OK, "what was checked for the device can be planned");
    check_table(dispatch, &device, problem.max_tokens);
    moe_dispatch_destroy(dispatch);
    moe_config_unref(config);
    return 0;
}
