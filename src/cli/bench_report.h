/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers of a bench session as text for people, JSON and CSV. */
#ifndef MOE_BENCH_REPORT_H
#define MOE_BENCH_REPORT_H

#include <stdio.h>

#include "bench_session.h"

/* All return 0, or -1 when `out` failed. */
int moe_bench_report_text(const struct moe_bench_session *session, FILE *out);
int moe_bench_report_json(const struct moe_bench_session *session, FILE *out);
int moe_bench_report_csv(const struct moe_bench_session *session, FILE *out);

#endif
