/* SPDX-License-Identifier: Apache-2.0 */
/* What gpu_limits.cu and its host share. */
#ifndef MOE_GPU_LIMITS_H
#define MOE_GPU_LIMITS_H

/* Elements that gpu_random writes. */
enum { GPU_FILL_BF16, GPU_FILL_FP32, GPU_FILL_FP16 };

#endif
