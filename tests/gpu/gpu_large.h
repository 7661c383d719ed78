/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of gpu_large share. */
#ifndef MOE_GPU_LARGE_H
#define MOE_GPU_LARGE_H

#include "gpu_bench.h"

/* Queues a kernel of gpu_reference.cu; the last argument of those that check is
 * &large_num_wrong. */
void large_run(const char *name, void **args);
#define LARGE_RUN(name, ...) large_run(name, (void *[]){__VA_ARGS__})

extern unsigned long long *large_num_wrong; /* on the device */
void large_begin(void);                     /* sets it to 0 */
unsigned long long large_end(void);         /* waits and returns it */

/* Device memory of zeros. */
void *large_zeros(size_t bytes);

/* Changes a word in the last eighth of an output: behind 2^31 bytes where it has so many. Twice: as
 * it was. */
void large_flip(void *output, size_t bytes);

/* One more check; where it is not right, a line that says so. */
void large_expect(int is_right, const char *name, const char *text, const char *what,
                  unsigned long long count);

/* Is it among the program's arguments, or are there none? */
int large_is_wanted(const char *name, int argc, char **argv);

/* What a check looks at, and the word that is changed to see whether it notices. */
struct large_check {
    struct bench *bench;
    const struct bench_set *set;
    double *reference; /* on the device; NULL: not wanted */
    void *output;
    size_t output_bytes;
};

/* Loops on the host, for small sizes: the float64 values of an operation's kernel (0: it has none),
 * how many of them differ, all outputs that the operation writes, and whether they are right. */
enum { LARGE_MAX_OUTPUTS = 5 };
struct large_output {
    void *device;
    size_t bytes; /* whole words */
};
int64_t large_num_values(const struct large_check *check);
unsigned long long large_compare_values(const struct large_check *check);
int large_list_outputs(const struct large_check *check, struct large_output *out);
int large_is_right(const struct large_check *check);

/* Parts of the program by their names as arguments. */
#define LARGE_SEGMENTS "route_segments" /* route to the arrays of expert parallelism */
void large_check_segments(void);
#define LARGE_OFFSETS "offsets" /* fp32 rows and sorts beyond 2^31 bytes */
void large_check_offsets(void);

#endif
