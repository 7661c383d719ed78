/* SPDX-License-Identifier: Apache-2.0 */
/* Is a candidate as good as what serves? */
#define _POSIX_C_SOURCE 200809L

#include "generation.h"
#include "loader_status.h"
#include "verify_case.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_TIMED_RUNS = 15, MAX_TIMED_RUNS = 100000, NUM_MEASUREMENTS = 2 };
static const double default_max_relative_l2 = 1e-2;

/* One verification. Results: of the reference, of the candidate, of the candidate again. */
struct job {
    struct moe_loader *loader;
    const struct moe_loader_verify_options *options;
    const struct moe_generation *reference; /* NULL: nothing is ACTIVE */
    const struct moe_generation *candidate;
    bool is_host_fault; /* the comparison could not be made */
};

/* ---- numbers ---- */

static int32_t fail_reference(struct job *job, const struct moe_verify_case *test, int32_t status,
                              const struct moe_error *cause, struct moe_error *error)
{
    job->is_host_fault = true;
    return moe_loader_status_set(error, status,
                                 "verify: the active generation itself fails in slot %d: %.300s",
                                 test->slot->idx, cause->message);
}

static int32_t compare_runs(struct job *job, const struct moe_verify_case *test,
                            const struct moe_loader_view *views[2],
                            struct moe_verify_result results[3], struct moe_error *error)
{
    struct moe_error cause;
    MOE_INIT(cause);
    int32_t status = MOE_STATUS_OK;
    bool is_host_fault = false;
    if (views[1] != NULL) {
        status = moe_verify_case_run(test, views[1], 0xFF, &results[0], &is_host_fault, &cause);
        if (status != MOE_STATUS_OK) {
            return fail_reference(job, test, status, &cause, error);
        }
    }
    status = moe_verify_case_run(test, views[0], 0xFF, &results[1], &job->is_host_fault, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    status = moe_verify_case_run(test, views[0], 0x00, &results[2], &job->is_host_fault, error);
    if (status != MOE_STATUS_OK) {
        return status;
    }
    if (test->slot->problem.determinism != MOE_DETERMINISM_NONE &&
        !moe_verify_result_equals(test, &results[1], &results[2])) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_WRONG_RESULT,
                                     "slot %d, %s: two runs on the same inputs differ; the second "
                                     "found other bytes in its workspace",
                                     test->slot->idx, moe_verify_form_name(test->form));
    }
    return views[1] == NULL ? MOE_STATUS_OK
                            : moe_verify_result_compare(test, &results[0], &results[1],
                                                        job->options->max_relative_l2, error);
}

/* ---- speed ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

static double median(double *values, int32_t num)
{
    qsort(values, (size_t)num, sizeof(*values), compare_doubles);
    return values[num / 2];
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Median seconds of candidate [0] and reference [1], in turns, so that both see the same machine.
 * */
static int32_t measure(const struct moe_verify_case *test, const struct moe_loader_view *views[2],
                       double *samples, double medians[2], struct moe_error *error)
{
    const int32_t num_runs = test->options->num_timed_runs;
    for (int32_t run = 0; run < num_runs; run++) {
        for (int turn = 0; turn < 2; turn++) {
            const int which = (run + turn) % 2; /* neither is always the first */
            const double start = seconds_now();
            const int32_t status = moe_verify_case_call(test, views[which], error);
            if (status != MOE_STATUS_OK) {
                return status;
            }
            samples[which * num_runs + run] = seconds_now() - start;
        }
    }
    medians[0] = median(samples, num_runs);
    medians[1] = median(samples + num_runs, num_runs);
    return MOE_STATUS_OK;
}

static int32_t check_speed(struct job *job, const struct moe_verify_case *test,
                           const struct moe_loader_view *views[2], struct moe_error *error)
{
    const double limit = job->options->max_slowdown;
    double *samples = malloc(2 * (size_t)job->options->num_timed_runs * sizeof(*samples));
    if (samples == NULL) {
        job->is_host_fault = true;
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "verify: no memory for timings");
    }
    double medians[2] = {0.0, 0.0};
    bool is_fast = false;
    int32_t status = MOE_STATUS_OK;
    for (int i = 0; i < NUM_MEASUREMENTS && !is_fast && status == MOE_STATUS_OK; i++) {
        status = measure(test, views, samples, medians, error);
        is_fast = medians[0] <= limit * medians[1];
    }
    free(samples);
    if (status == MOE_STATUS_OK && !is_fast) {
        status = moe_loader_status_set(error, MOE_LOADER_STATUS_TOO_SLOW,
                                       "slot %d, %s: median %.1f us, the active generation's is "
                                       "%.1f us; it may take %.2f times as long",
                                       test->slot->idx, moe_verify_form_name(test->form),
                                       medians[0] * 1e6, medians[1] * 1e6, limit);
    }
    return status;
}

/* ---- slots ---- */

static int32_t verify_form(struct job *job, const struct moe_loader_slot *slot, int32_t form,
                           bool is_timed, struct moe_error *error)
{
    const struct moe_loader_view *views[2] = {
        &job->candidate->views[slot->idx],
        job->reference != NULL ? &job->reference->views[slot->idx] : NULL};
    struct moe_verify_case test;
    struct moe_verify_result results[3];
    memset(results, 0, sizeof(results));
    int32_t status = moe_verify_case_init(&test, slot, form, views, job->options, error);
    for (int i = 0; i < 3 && status == MOE_STATUS_OK; i++) {
        status = moe_verify_result_init(&test, &results[i], error);
    }
    if (status != MOE_STATUS_OK) {
        job->is_host_fault = true;
    } else {
        status = compare_runs(job, &test, views, results, error);
        if (status == MOE_STATUS_OK && is_timed && views[1] != NULL) {
            status = check_speed(job, &test, views, error);
        }
    }
    for (int i = 0; i < 3; i++) {
        moe_verify_result_finish(&results[i]);
    }
    moe_verify_case_finish(&test);
    return status;
}

static int32_t verify_slot(struct job *job, const struct moe_loader_slot *slot,
                           struct moe_error *error)
{
    bool is_timed =
        job->options->max_slowdown > 0.0; /* by one form: the others run the same GEMMs */
    int32_t status = MOE_STATUS_OK;
    for (int32_t form = 0; form < MOE_VERIFY_NUM_FORMS && status == MOE_STATUS_OK; form++) {
        if (moe_verify_form_applies(slot, form)) {
            status = verify_form(job, slot, form, is_timed, error);
            is_timed = false;
        }
    }
    return status;
}

static int32_t verify_all(struct job *job, struct moe_error *error)
{
    struct moe_runtime *runtime = job->candidate->runtime;
    int32_t status = runtime->api->self_test(runtime->context, error);
    for (int32_t i = 0; i < job->loader->options.max_slots && status == MOE_STATUS_OK; i++) {
        if (job->loader->slots[i] != NULL) {
            status = verify_slot(job, job->loader->slots[i], error);
        }
    }
    return status;
}

/* ---- entry ---- */

static int32_t read_options(const struct moe_loader_verify_options *caller,
                            struct moe_loader_verify_options *own, struct moe_error *error)
{
    MOE_INIT(*own);
    if (caller != NULL) {
        const int32_t status = MOE_LOADER_READ(own, caller, moe_loader_verify_options, error);
        if (status != MOE_STATUS_OK) {
            return status;
        }
    }
    const int num_callbacks = (own->memory_alloc != NULL) + (own->memory_free != NULL) +
                              (own->copy_in != NULL) + (own->copy_out != NULL);
    if (own->flags != 0 || own->num_tokens < 0 || own->num_timed_runs < 0 ||
        own->num_timed_runs > MAX_TIMED_RUNS || !(own->max_relative_l2 >= 0.0) ||
        !(own->max_slowdown >= 0.0) || (num_callbacks != 0 && num_callbacks != 4)) {
        return moe_loader_status_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "moe_loader_verify_options: flags is 0; num_tokens, "
            "max_relative_l2 and max_slowdown are not negative, "
            "num_timed_runs is 0 to %d; memory_alloc, memory_free, copy_in "
            "and copy_out are all set or all NULL",
            MAX_TIMED_RUNS);
    }
    own->max_relative_l2 =
        own->max_relative_l2 > 0.0 ? own->max_relative_l2 : default_max_relative_l2;
    own->num_timed_runs = own->num_timed_runs != 0 ? own->num_timed_runs : DEFAULT_TIMED_RUNS;
    return MOE_STATUS_OK;
}

static int32_t begin(struct job *job, uint64_t id, struct moe_generation **out,
                     struct moe_error *error)
{
    struct moe_generation *candidate = moe_generation_find(job->loader, id, error);
    if (candidate == NULL) {
        return MOE_STATUS_INVALID_ARGUMENT;
    }
    const int32_t state = candidate->info.state;
    if (state != MOE_GENERATION_STAGED && state != MOE_GENERATION_WARM) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_STATE,
                                     "generation %llu is %s; staged and warm ones can be verified",
                                     (unsigned long long)id, moe_generation_state_name(state));
    }
    candidate->is_in_use = true;
    job->candidate = candidate;
    job->reference = atomic_load_explicit(&job->loader->active, memory_order_acquire);
    *out = candidate;
    return MOE_STATUS_OK;
}

static void end(struct job *job, struct moe_generation *candidate, int32_t status,
                const struct moe_error *cause)
{
    candidate->is_in_use = false;
    const int32_t state = candidate->info.state;
    if (status == MOE_STATUS_OK && state == MOE_GENERATION_STAGED) {
        moe_generation_move(job->loader, candidate, MOE_GENERATION_WARM, MOE_STATUS_OK, "");
    } else if (status != MOE_STATUS_OK && !job->is_host_fault &&
               (state == MOE_GENERATION_STAGED || state == MOE_GENERATION_WARM)) {
        moe_generation_reject(job->loader, candidate, status, cause->message);
    }
}

int32_t moe_loader_verify(struct moe_loader *loader, uint64_t generation,
                          const struct moe_loader_verify_options *options, struct moe_error *error)
{
    struct moe_loader_verify_options own;
    struct moe_error cause;
    MOE_INIT(cause);
    int32_t status = moe_loader_check_not_null(loader, "loader", &cause);
    if (status == MOE_STATUS_OK) {
        status = read_options(options, &own, &cause);
    }
    if (status != MOE_STATUS_OK) {
        return moe_loader_pass_error(error, status, &cause);
    }
    struct job job = {.loader = loader, .options = &own};
    struct moe_generation *candidate = NULL;
    moe_loader_lock_control(loader);
    pthread_mutex_lock(&loader->state);
    status = begin(&job, generation, &candidate, &cause);
    pthread_mutex_unlock(&loader->state);
    if (candidate != NULL) {
        status = verify_all(&job, &cause);
        pthread_mutex_lock(&loader->state);
        end(&job, candidate, status, &cause);
        pthread_mutex_unlock(&loader->state);
    }
    moe_loader_unlock_control(loader);
    return moe_loader_pass_error(error, status, &cause);
}
