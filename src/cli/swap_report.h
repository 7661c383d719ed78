/* SPDX-License-Identifier: Apache-2.0 */
/* What swap-demo prints. */
#ifndef MOE_SWAP_REPORT_H
#define MOE_SWAP_REPORT_H

#include "swap_session.h"

#include <stdio.h>

/* Of a session that has run. max_p99_ratio 0: there is no limit. */
struct moe_swap_verdict {
    double p99_ratio; /* inside over outside; 0: not known */
    double max_p99_ratio;
    int is_too_slow; /* above the limit, or not known though there is one */
    int has_passed;
};
struct moe_swap_verdict moe_swap_verdict_make(const struct moe_swap_session *session,
                                              double max_p99_ratio);

void moe_swap_report_text(const struct moe_swap_session *session,
                          const struct moe_swap_verdict *verdict, FILE *out);
/* Returns 0, or -1 when the stream failed. */
int moe_swap_report_json(const struct moe_swap_session *session,
                         const struct moe_swap_verdict *verdict, FILE *out);

#endif
