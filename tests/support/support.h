/* SPDX-License-Identifier: Apache-2.0 */
/* Everything a test needs besides the references: see each header. */
#ifndef MOE_TESTS_SUPPORT_H
#define MOE_TESTS_SUPPORT_H

#include "support_alloc.h"
#include "support_compare.h"
#include "support_grid.h"
#include "support_guard.h"
#include "support_random.h"

#endif
