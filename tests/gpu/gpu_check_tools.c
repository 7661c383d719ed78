/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_check.h"

void check_mirror_init(struct check_mirror *mirror, size_t bytes, size_t misalignment)
{
    mirror->bytes = bytes;
    mirror->offset = GUARD_BYTES + misalignment;
    mirror->host = malloc(bytes + 2 * GUARD_BYTES + misalignment);
    mirror->device = gpu_alloc(bytes + 2 * GUARD_BYTES + misalignment);
    memset(mirror->host, POISON, bytes + 2 * GUARD_BYTES + misalignment);
}

void check_mirror_finish(struct check_mirror *mirror)
{
    free(mirror->host);
    gpu_free(mirror->device);
}

void *check_on_host(const struct check_mirror *mirror)
{
    return mirror->host + mirror->offset;
}

void *check_on_device(const struct check_mirror *mirror)
{
    return mirror->device + mirror->offset;
}

/* Send all of it, guards included. */
void check_mirror_send(const struct check_mirror *mirror)
{
    gpu_upload(mirror->device, mirror->host, mirror->bytes + mirror->offset + GUARD_BYTES);
}

/* Is the device's memory what the host's is, guards included? */
void check_mirror_compare(const struct check_mirror *mirror, const char *what, const char *text)
{
    const size_t total = mirror->bytes + mirror->offset + GUARD_BYTES;
    unsigned char *got = malloc(total);
    gpu_download(got, mirror->device, total);
    check_num_checked++;
    for (size_t i = 0; i < total; i++) {
        if (got[i] != mirror->host[i]) {
            if (check_num_failed++ < 20) {
                printf("FAILED %s, %s: byte %lld of %zu is 0x%02x, the CPU's is 0x%02x\n", text,
                       what, (long long)i - (long long)mirror->offset, mirror->bytes, got[i],
                       mirror->host[i]);
            }
            break;
        }
    }
    free(got);
}

int64_t check_draw(int64_t limit)
{
    return (int64_t)(gpu_random(&check_seed) % (uint64_t)limit);
}

int64_t check_pick(const int64_t *values, int64_t num_values)
{
    return values[check_draw(num_values)];
}
/* Finite random elements of any of the three types: random signs and mantissas, moderate
 * exponents. */
void check_fill_elements(void *out, int32_t dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = gpu_random(&check_seed);
        if (dtype == MOE_DTYPE_FP32) {
            uint32_t word = (uint32_t)(bits & 0x807fffffu) | (uint32_t)(120 + bits / 7 % 12) << 23;
            memcpy((char *)out + 4 * i, &word, 4);
        } else if (dtype == MOE_DTYPE_BF16) {
            uint16_t half = (uint16_t)((bits & 0x807f) | (120 + (bits >> 32) % 12) << 7);
            memcpy((char *)out + 2 * i, &half, 2);
        } else {
            uint16_t half = (uint16_t)((bits & 0x83ff) | (10 + (bits >> 32) % 8) << 10);
            memcpy((char *)out + 2 * i, &half, 2);
        }
    }
}

void check_fill_ids(void *out, int32_t ids_dtype, int64_t count, int32_t num_experts,
                    int64_t pattern)
{
    static const int64_t hostile[] = {-1, INT32_MAX, INT32_MIN, -2};
    for (int64_t i = 0; i < count; i++) {
        int64_t id = check_draw(num_experts);
        if (pattern == 1) {
            id = num_experts / 2; /* one hot expert */
        } else if (pattern == 2 || (pattern == 3 && check_draw(4) == 0)) {
            int64_t which = check_draw(5);
            id = which == 4 ? num_experts : hostile[which];
        } else if (pattern == 4) { /* Zipf-like */
            id = (int64_t)((double)num_experts / (1.0 + (double)check_draw(num_experts))) %
                 num_experts;
        }
        if (ids_dtype == MOE_IDS_INT64) {
            int64_t wide = id < 0 && check_draw(2) ? id - (INT64_C(1) << 40) : id;
            memcpy((char *)out + 8 * i, &wide, 8);
        } else {
            int32_t narrow = (int32_t)id;
            memcpy((char *)out + 4 * i, &narrow, 4);
        }
    }
}

void check_case_init(struct check_case *test, int32_t op)
{
    struct moe_error error;
    struct moe_plan_options options;
    MOE_INIT(error);
    MOE_INIT(options);
    MOE_INIT(test->info);
    options.ops = UINT64_C(1) << op;
    gpu_host_check(
        check_host.api->plan_create(check_host.cpu, &test->problem, &options, &test->cpu, &error),
        &error, "cpu plan");
    gpu_host_check(
        check_host.api->plan_create(check_host.cuda, &test->problem, &options, &test->cuda, &error),
        &error, "cuda plan");
    gpu_host_check(check_host.api->plan_info(test->cpu, &test->info, &error), &error, "plan_info");
    test->workspace = aligned_alloc(64, (test->info.workspace_bytes + 127) / 64 * 64);
    struct moe_plan_info cuda_info;
    MOE_INIT(cuda_info);
    gpu_host_check(check_host.api->plan_info(test->cuda, &cuda_info, &error), &error, "plan_info");
    test->cuda_workspace_bytes = cuda_info.workspace_bytes;
    test->cuda_workspace = NULL;
    if (cuda_info.workspace_bytes > 0) {
        test->cuda_workspace = gpu_alloc(cuda_info.workspace_bytes);
        gpu_poison(test->cuda_workspace, POISON, cuda_info.workspace_bytes);
    }
}

void check_case_finish(struct check_case *test)
{
    check_host.api->plan_destroy(test->cpu);
    check_host.api->plan_destroy(test->cuda);
    free(test->workspace);
    gpu_free(test->cuda_workspace);
}

void check_set_call(const struct check_case *test, int is_cuda, struct moe_call *call)
{
    call->num_tokens = test->num_tokens;
    call->workspace = is_cuda ? test->cuda_workspace : test->workspace;
    call->workspace_bytes = is_cuda ? test->cuda_workspace_bytes : test->info.workspace_bytes;
    call->stream = is_cuda ? check_host.stream : NULL;
}

void check_draw_routes(struct check_case *test)
{
    memset(&test->problem, 0, sizeof(test->problem));
    test->problem.struct_size = sizeof(test->problem);
    test->problem.num_experts = (int32_t)PICK(1, 8, 60, 160, 257, 1500);
    test->problem.num_experts_global = test->problem.num_experts + (int32_t)PICK(0, 0, 5);
    int64_t top_k = PICK(1, 2, 8, 22);
    test->problem.top_k =
        (int32_t)(top_k < test->problem.num_experts ? top_k : test->problem.num_experts);
    test->num_tokens = PICK(0, 1, 2, 17, 64, 1000, 4096);
    test->problem.max_tokens = test->num_tokens > 0 ? test->num_tokens : 1;
    test->problem.tokens.dtype = MOE_DTYPE_BF16;
}

void check_set_filter(struct moe_route_filter *filter, const struct moe_problem *problem,
                      int64_t kind, const int32_t *map)
{
    if (kind == 1) {
        filter->expert_begin = problem->num_experts / 3;
        filter->expert_end = problem->num_experts - problem->num_experts / 4;
        if (filter->expert_end <= filter->expert_begin) {
            filter->expert_begin = 0;
        }
    } else if (kind == 2) {
        filter->expert_map = map;
    }
}

void check_fill_map(int32_t *map, const struct moe_problem *problem)
{
    for (int32_t e = 0; e < problem->num_experts_global; e++) {
        map[e] = check_draw(3) == 0 ? (int32_t)PICK(-1, INT32_MAX, problem->num_experts)
                                    : (int32_t)check_draw(problem->num_experts);
    }
}
