/* SPDX-License-Identifier: Apache-2.0 */
/* A host whose calls are to be refused, with nothing touched. Include it after cmocka.h. */
#ifndef MOE_TESTS_ABI_REFUSAL_H
#define MOE_TESTS_ABI_REFUSAL_H

#include <string.h>

#include "abi_calls.h"

static struct abi_host host;
static struct abi_memory *before; /* what the memory of calls held */

static int open_host(void **state)
{
    (void)state;
    before = aligned_alloc(_Alignof(struct abi_memory), sizeof(*before));
    return before != NULL && abi_host_open(&host, NULL, 2) ? 0 : -1;
}

static int close_host(void **state)
{
    (void)state;
    abi_host_close(&host);
    free(before);
    return 0;
}

static void poison(void)
{
    abi_reset_memory(host.memory);
    abi_reset_memory(before);
}

static void assert_untouched(const char *form, const char *what)
{
    const unsigned char *was = (const unsigned char *)before, *is = (unsigned char *)host.memory;
    for (size_t i = 0; i < sizeof(*before); i++) {
        if (was[i] != is[i]) {
            fail_msg("%s, %s: refused, but byte %zu of %s was written", form, what, i,
                     i < offsetof(struct abi_memory, in)    ? "the workspace"
                     : i < offsetof(struct abi_memory, out) ? "the inputs"
                                                            : "the outputs");
        }
    }
}

static void assert_refused(const struct abi_call *call, const union abi_args *args,
                           const char *what, int32_t wanted, const char *word)
{
    struct moe_error error;
    MOE_INIT(error);
    int32_t status = call->run(host.api, host.plan, args, &error);
    if (status != wanted || error.status != wanted) {
        fail_msg("%s, %s: status %d instead of %d (%s)", call->form, what, status, wanted,
                 error.message);
    }
    if (strstr(error.message, word) == NULL) {
        fail_msg("%s, %s: \"%s\" does not name %s", call->form, what, error.message, word);
    }
    assert_untouched(call->form, what);
    assert_int_equal(call->run(host.api, host.plan, args, NULL), wanted);
}

#endif
