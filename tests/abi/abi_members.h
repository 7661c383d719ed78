/* SPDX-License-Identifier: Apache-2.0 */
/* One member of a struct with a wrong value, and the refusal that it should get. Include it after
 * cmocka.h. */
#ifndef MOE_TESTS_ABI_MEMBERS_H
#define MOE_TESTS_ABI_MEMBERS_H

#include "abi_host.h"

/* One member of an input struct with a wrong value. */
struct bad_member {
    size_t offset;
    size_t bytes;
    int64_t value;
    int32_t status;
    const char *word; /* that the sentence has to contain */
};

#define REFUSE(type, member, value, word)                                         \
    {                                                                             \
        offsetof(struct type, member), sizeof(((struct type *)0)->member), value, \
            MOE_STATUS_INVALID_ARGUMENT, word                                     \
    }
#define LATER(type, member, value, word)                                          \
    {                                                                             \
        offsetof(struct type, member), sizeof(((struct type *)0)->member), value, \
            MOE_STATUS_UNSUPPORTED, word                                          \
    }

/* Prints, and returns 1, if the answer is not the one expected. */
static inline int is_wrong(const char *what, const struct bad_member *bad, int32_t status,
                           const struct moe_error *error)
{
    if (status == bad->status && strstr(error->message, bad->word) != NULL) {
        return 0;
    }
    print_message("%s, %s, bytes at %zu = %lld: status %d instead of %d: \"%s\"\n", what, bad->word,
                  bad->offset, (long long)bad->value, status, bad->status, error->message);
    return 1;
}

#endif
