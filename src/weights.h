/* SPDX-License-Identifier: Apache-2.0 */
/* Bound weights: a checked description with dtypes resolved and per-expert tables copied. */
#ifndef MOE_WEIGHTS_H
#define MOE_WEIGHTS_H

#include "backend.h"

struct moe_weights {
    struct moe_memory memory;
    const struct moe_context *context; /* they may be used with plans of this one only */
    const struct moe_backend *backend;
    struct moe_problem problem;   /* as bound */
    struct moe_weights_desc desc; /* dtypes set; tables point into `tables` */
    const void **tables;
    size_t tables_bytes;
    const void *prepared; /* NULL: none needed */
    void *backend_data;   /* of the backend's bind; NULL: none */
};

/* Entries of the function table. */
int32_t moe_weights_query(struct moe_context *context, const struct moe_problem *problem,
                          const struct moe_weights_desc *desc, struct moe_weights_info *out,
                          struct moe_error *error);
int32_t moe_weights_prepare(struct moe_context *context, const struct moe_problem *problem,
                            const struct moe_weights_desc *desc, void *prepared,
                            uint64_t prepared_bytes, void *stream, struct moe_error *error);
int32_t moe_weights_bind(struct moe_context *context, const struct moe_problem *problem,
                         const struct moe_weights_desc *desc, const void *prepared,
                         uint64_t prepared_bytes, struct moe_weights **out,
                         struct moe_error *error);
void moe_weights_destroy(struct moe_weights *weights);

#endif
