/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_check.h"

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
            if (id == num_experts && check_draw(2)) { /* an expert's in its low word */
                wide = check_draw(num_experts) + (INT64_C(1) << 32);
            }
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
    call->stream = is_cuda ? check_begin_way() : NULL;
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

void check_fill_map(int32_t *map, const struct moe_problem *problem, int32_t num_ids)
{
    for (int32_t e = 0; e < num_ids; e++) {
        map[e] = check_draw(3) == 0 ? (int32_t)PICK(-1, INT32_MAX, problem->num_experts)
                                    : (int32_t)check_draw(problem->num_experts);
    }
}

void check_count_init(struct check_count *count, int64_t num_tokens)
{
    check_mirror_init(&count->mirror, 4, 0);
    count->is_given = check_draw(3) == 0;
    const int32_t real = (int32_t)PICK(0, num_tokens, check_draw(num_tokens + 1));
    int32_t sent = real;
    if (real == num_tokens) {
        sent = (int32_t)PICK(real, real + 1, INT32_MAX);
    } else if (real == 0) {
        sent = (int32_t)PICK(0, -1, INT32_MIN);
    }
    memcpy(check_on_host(&count->mirror), &sent, sizeof(sent));
    check_mirror_send(&count->mirror);
    memcpy(check_on_host(&count->mirror), &real, sizeof(real));
    count->value = count->is_given ? real : -1;
}

void check_count_finish(struct check_count *count)
{
    check_mirror_finish(&count->mirror);
}

const int32_t *check_count_at(const struct check_count *count, int is_cuda)
{
    if (!count->is_given) {
        return NULL;
    }
    return is_cuda ? check_on_device(&count->mirror) : check_on_host(&count->mirror);
}

void check_fill_destinations(int32_t *out, int64_t num_routes, int64_t num_rows, int64_t most)
{
    const int64_t num_experts = most > 0 ? num_rows / most : 0;
    int32_t *counts = calloc((size_t)num_experts + 1, sizeof(*counts));
    for (int64_t i = 0; i < num_routes; i++) {
        out[i] = (int32_t)i;
        if (most > 0) {
            const int64_t expert = check_draw(num_experts);
            out[i] = counts[expert] < most ? (int32_t)(expert * most + counts[expert]++) : -1;
        }
    }
    for (int64_t i = num_routes - 1; i > 0 && most == 0; i--) {
        const int64_t j = check_draw(i + 1);
        const int32_t swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
    for (int64_t i = 0; i < num_routes; i++) {
        if (out[i] >= num_rows || check_draw(9) == 0) {
            out[i] = (int32_t)PICK(-1, -7, INT32_MIN);
        }
    }
    free(counts);
}

void check_send_destinations(const struct check_mirror *src2dst, int64_t num_routes,
                             int64_t num_rows)
{
    const int32_t *given = check_on_host(src2dst);
    int32_t *sent = malloc((size_t)num_routes * sizeof(*sent) + 1);
    for (int64_t i = 0; i < num_routes; i++) {
        sent[i] = given[i] < 0 && check_draw(2)
                      ? (int32_t)PICK(num_rows, num_rows + 1 + check_draw(1000), INT32_MAX)
                      : given[i];
    }
    check_mirror_send(src2dst);
    gpu_upload(check_on_device(src2dst), sent, (size_t)num_routes * sizeof(*sent));
    free(sent);
}
