/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which experts of a token could have been chosen differently by an implementation that rounds
 * differently: those whose score lies within one bf16 step of the border between chosen and
 * rejected.
 */
#ifndef MOE_NEAR_TIE_H
#define MOE_NEAR_TIE_H

#include <stdint.h>

#include "moe_plugin.h"

/*
 * From the logits of one token [E] and the correction bias [E] (NULL: none) marks in is_open[E] the
 * experts on the border. Returns how many there are: 0 when all implementations have to choose the
 * same. `scratch` has room for 2 * E numbers.
 */
int64_t moe_near_tie_find(const struct moe_problem *problem, const float *logits, const float *bias,
                          double *scratch, unsigned char *is_open);

#endif
