/* SPDX-License-Identifier: Apache-2.0 */
/* Mistakes planted into a right result, each of which the comparison that is meant for it has to
 * notice: a tolerance that takes them, or a comparison that looks past them, fails here. */
#include "gpu_layer_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Above the tolerance by this factor, so that what it adds to the right difference counts. */
static const double beyond = 2.5;

struct planted {
    struct layer_check *check;
    const struct layer_case *test;
    struct layer_outputs *outputs;
    const struct layer_values *values;
    unsigned char *right; /* a copy of outputs->cuda */
    int64_t row;          /* the one that mistakes are made in */
};

static unsigned char *element_of(const struct planted *planted, int64_t row, int64_t column)
{
    const size_t element_bytes = planted->outputs->row_bytes / (size_t)planted->outputs->stride;
    return planted->outputs->cuda + (size_t)row * planted->outputs->row_bytes +
           (size_t)column * element_bytes;
}

static double value_of(const struct planted *planted, int64_t row, int64_t column)
{
    return gpu_element(element_of(planted, row, column), planted->test->shape.output_dtype, 0);
}

static double norm_of(const struct planted *planted, int64_t row)
{
    double sum = 0.0;
    for (int64_t h = 0; h < planted->test->shape.hidden; h++) {
        sum += value_of(planted, row, h) * value_of(planted, row, h);
    }
    return sqrt(sum);
}

/* Rows of usual size, and the largest element of one. */
static int64_t largest_row(const struct planted *planted)
{
    int64_t largest = 0;
    for (int64_t t = 1; t < planted->values->num_tokens; t++) {
        const int is_skipped =
            planted->values->is_skipped != NULL && planted->values->is_skipped[t];
        if (!is_skipped && norm_of(planted, t) > norm_of(planted, largest)) {
            largest = t;
        }
    }
    return largest;
}

static int64_t largest_column(const struct planted *planted, int64_t row)
{
    int64_t largest = 0;
    for (int64_t h = 1; h < planted->test->shape.hidden; h++) {
        if (fabs(value_of(planted, row, h)) > fabs(value_of(planted, row, largest))) {
            largest = h;
        }
    }
    return largest;
}

/* Multiplies a row's elements, rounded to the type. */
static void scale_row(const struct planted *planted, int64_t row, double by)
{
    for (int64_t h = 0; h < planted->test->shape.hidden; h++) {
        layer_store(element_of(planted, row, h), planted->test->shape.output_dtype, 0,
                    by * value_of(planted, row, h));
    }
}

static int is_close(const struct planted *planted)
{
    const struct gpu_comparison comparison =
        layer_compare(planted->test, planted->outputs, planted->values);
    return gpu_is_close(&comparison);
}

/* Says what was not noticed, and puts the right result back. */
static void conclude(const struct planted *planted, int is_noticed, const char *what)
{
    char text[100];
    snprintf(text, sizeof(text), "not noticed: %s", what);
    layer_report(planted->check, is_noticed, planted->test, planted->values->num_tokens, text,
                 (double)planted->row);
    memcpy(planted->outputs->cuda, planted->right, planted->outputs->bytes);
    planted->check->num_planted++;
}

/* Of the comparison with the CPU backend. */
static void plant_values(const struct planted *planted)
{
    const struct layer_shape *shape = &planted->test->shape;
    const struct gpu_result result = {&planted->test->problem, GPU_RESULT_LAYER, shape->has_router};
    const struct layer_outputs *outputs = planted->outputs;
    const int64_t num_tokens = planted->values->num_tokens, row = planted->row;
    const int64_t column = largest_column(planted, row);
    const int64_t last = (int64_t)(outputs->row_bytes / (size_t)outputs->stride) - 1;
    conclude(planted, is_close(planted), "that nothing is wrong");
    element_of(planted, row, column)[last] ^= 0x80;
    conclude(planted, !is_close(planted), "a sign");
    element_of(planted, row, column)[last] ^= 0x04; /* of the exponent, in every type */
    conclude(planted, !is_close(planted), "a bit of an exponent");
    memset(element_of(planted, row, column), LAYER_POISON, (size_t)last + 1);
    conclude(planted, !is_close(planted), "an element that was not written");
    scale_row(planted, row, 1.0 + beyond * gpu_tolerance(&result, 1));
    conclude(planted, !is_close(planted), "a row that is too large");
    for (int64_t t = 0; t < num_tokens; t++) {
        scale_row(planted, t, 1.0 + beyond * gpu_tolerance(&result, num_tokens));
    }
    conclude(planted, !is_close(planted), "a factor of all rows");
    const int64_t other = row > 0 ? row - 1 : row + 1;
    memcpy(element_of(planted, row, 0), planted->right + (size_t)other * outputs->row_bytes,
           outputs->used_bytes);
    memcpy(element_of(planted, other, 0), planted->right + (size_t)row * outputs->row_bytes,
           outputs->used_bytes);
    conclude(planted, !is_close(planted), "two rows in each other's place");
    memset(element_of(planted, row, 0), 0, outputs->used_bytes);
    conclude(planted, !is_close(planted), "a row of zeros");
}

/* Of the comparison of bits, and of that of what nobody writes. */
static void plant_bits(const struct planted *planted)
{
    const struct layer_outputs *outputs = planted->outputs;
    const int64_t num_tokens = planted->values->num_tokens;
    const int64_t hidden = planted->test->shape.hidden;
    conclude(planted, layer_other_bits(outputs, planted->right, 0, num_tokens) < 0,
             "that all bits are right");
    element_of(planted, num_tokens - 1, hidden - 1)[0] ^= 1;
    conclude(planted, layer_other_bits(outputs, planted->right, 0, num_tokens) == num_tokens - 1,
             "the lowest bit of the last element");
    element_of(planted, planted->row, 0)[0] ^= 1;
    conclude(planted, layer_other_bits(outputs, planted->right, 0, num_tokens) == planted->row,
             "the lowest bit of a first element");
    conclude(planted, layer_keeps_gaps(outputs, num_tokens), "that the guard bands are right");
    element_of(planted, planted->row, hidden)[0] ^= 1;
    conclude(planted, !layer_keeps_gaps(outputs, num_tokens), "a byte between two rows");
    outputs->cuda[outputs->bytes - 1] ^= 1;
    conclude(planted, !layer_keeps_gaps(outputs, num_tokens), "a byte behind all rows");
}

/* Of the comparison with float64. */
static void plant_reference(const struct planted *planted)
{
    const struct layer_shape *shape = &planted->test->shape;
    const struct layer_values *values = planted->values;
    const int64_t row = planted->row, column = largest_column(planted, row);
    const int64_t last =
        (int64_t)(planted->outputs->row_bytes / (size_t)planted->outputs->stride) - 1;
    struct layer_expected expected;
    layer_expected_init(&expected, planted->test);
    layer_reference(planted->test, row, values->ids + row * shape->top_k,
                    values->weights + row * shape->top_k, values->has_residual, &expected);
#define OFF() layer_compare_reference(planted->test, planted->outputs, row, &expected)
    conclude(planted, OFF() <= 1.0, "that float64 agrees");
    element_of(planted, row, column)[last] ^= 0x80;
    conclude(planted, OFF() > 1.0, "a sign, by float64");
    scale_row(planted, row, 1.0 + beyond * expected.row_tolerance / norm_of(planted, row));
    conclude(planted, OFF() > 1.0, "a row that is too large, by float64");
    layer_store(element_of(planted, row, column), shape->output_dtype, 0,
                expected.values[column] * (1.0 + gpu_roundoff(shape->output_dtype) * 4.0) +
                    copysign(beyond * expected.tolerances[column], expected.values[column]));
    conclude(planted, OFF() > 1.0, "an element that is too large, by float64");
#undef OFF
    layer_expected_finish(&expected);
}

void layer_check_planted(struct layer_check *check, const struct layer_case *test,
                         struct layer_outputs *outputs, const struct layer_values *values)
{
    struct planted planted = {check, test, outputs, values, malloc(outputs->bytes), 0};
    memcpy(planted.right, outputs->cuda, outputs->bytes);
    planted.row = largest_row(&planted);
    plant_values(&planted);
    plant_bits(&planted);
    if (!test->shape.has_router) {
        plant_reference(&planted);
    }
    free(planted.right);
}
