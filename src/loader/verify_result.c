/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "loader_status.h"
#include "verify_case.h"
#include "verify_number.h"

#include <stdlib.h>
#include <string.h>

int32_t moe_verify_result_init(const struct moe_verify_case *test, struct moe_verify_result *result,
                               struct moe_error *error)
{
    /* One more byte: a block of none is not a failure. */
    result->output = malloc((size_t)test->output.bytes + 1);
    result->logits = malloc((size_t)test->logits_out.bytes + 1);
    result->ids = malloc((size_t)test->ids_out.bytes + 1);
    result->weights = malloc((size_t)test->weights_out.bytes + 1);
    result->values = malloc((size_t)test->num_outputs * sizeof(double) + 1);
    if (result->output == NULL || result->logits == NULL || result->ids == NULL ||
        result->weights == NULL || result->values == NULL) {
        moe_verify_result_finish(result);
        return moe_loader_status_set(error, MOE_STATUS_OUT_OF_MEMORY,
                                     "verify: no memory for results");
    }
    return MOE_STATUS_OK;
}

void moe_verify_result_finish(struct moe_verify_result *result)
{
    free(result->output);
    free(result->logits);
    free(result->ids);
    free(result->weights);
    free(result->values);
    memset(result, 0, sizeof(*result));
}

bool moe_verify_result_equals(const struct moe_verify_case *test, const struct moe_verify_result *a,
                              const struct moe_verify_result *b)
{
    return memcmp(a->output, b->output, (size_t)test->output.bytes) == 0 &&
           memcmp(a->logits, b->logits, (size_t)test->logits_out.bytes) == 0 &&
           memcmp(a->ids, b->ids, (size_t)test->ids_out.bytes) == 0 &&
           memcmp(a->weights, b->weights, (size_t)test->weights_out.bytes) == 0;
}

/* Sums of squares of a reference and of the distance to it. */
struct distance {
    double reference;
    double difference;
};

static void add(struct distance *distance, double reference, double value)
{
    distance->reference += reference * reference;
    distance->difference += (value - reference) * (value - reference);
}

/* Is the relative L2 distance at most `limit`? Compared as squares; nothing is divided by zero. */
static bool is_within(const struct distance *distance, double limit)
{
    return distance->difference <= limit * limit * distance->reference;
}

static int32_t refuse(const struct moe_verify_case *test, const struct distance *distance,
                      const char *what, double limit, struct moe_error *error)
{
    return moe_loader_status_set(error, MOE_LOADER_STATUS_WRONG_RESULT,
                                 "slot %d, %s: %s differs from the active generation's: squared "
                                 "distance %g at a squared norm of %g; relative L2 may be %g",
                                 test->slot->idx, moe_verify_form_name(test->form), what,
                                 distance->difference, distance->reference, limit);
}

static bool routes_alike(const struct moe_verify_case *test, const struct moe_verify_result *a,
                         const struct moe_verify_result *b, int64_t row)
{
    const int64_t top_k = test->num_ids / test->num_rows;
    return test->form == MOE_VERIFY_LAYER_IDS || test->form == MOE_VERIFY_EXPERTS ||
           memcmp(a->ids + row * top_k, b->ids + row * top_k, (size_t)top_k * sizeof(int32_t)) == 0;
}

int32_t moe_verify_result_compare(const struct moe_verify_case *test,
                                  const struct moe_verify_result *reference,
                                  const struct moe_verify_result *candidate, double max_relative_l2,
                                  struct moe_error *error)
{
    const int64_t hidden = test->slot->problem.hidden;
    const int64_t logit_bytes = moe_verify_number_bytes(test->logits_dtype);
    struct distance outputs = {0}, logits = {0};
    int64_t num_others = 0;
    for (int64_t row = 0; row < test->num_rows; row++) {
        /* Logits that all but tie may be ordered either way: such a row says nothing. */
        if (!routes_alike(test, reference, candidate, row)) {
            num_others++;
            continue;
        }
        for (int64_t i = row * hidden; i < (row + 1) * hidden; i++) {
            add(&outputs, reference->values[i], candidate->values[i]);
        }
    }
    for (int64_t i = 0; test->form == MOE_VERIFY_LAYER_ROUTER && i < test->num_logits; i++) {
        add(&logits,
            moe_verify_number_load(test->logits_dtype, reference->logits + i * logit_bytes),
            moe_verify_number_load(test->logits_dtype, candidate->logits + i * logit_bytes));
    }
    if (!is_within(&outputs, max_relative_l2)) {
        return refuse(test, &outputs, "the output", max_relative_l2, error);
    }
    if (!is_within(&logits, max_relative_l2)) {
        return refuse(test, &logits, "the router", max_relative_l2, error);
    }
    if (num_others > (test->num_rows + 7) / 8) {
        return moe_loader_status_set(error, MOE_LOADER_STATUS_WRONG_RESULT,
                                     "slot %d, %s: %lld of %lld tokens are routed to other experts "
                                     "than by the active generation; one in eight may be",
                                     test->slot->idx, moe_verify_form_name(test->form),
                                     (long long)num_others, (long long)test->num_rows);
    }
    return MOE_STATUS_OK;
}
