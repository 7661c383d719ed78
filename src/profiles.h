/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOE_PROFILES_H
#define MOE_PROFILES_H

#include <stddef.h>

/* One file of plugin/profiles, as it was when the plugin was built. Constant data: any thread may
 * read it at any time. */
struct moe_profile_text {
    const char *name; /* file name without folder, as in "cpu.yaml" */
    const char *text; /* the file's bytes, followed by a NUL that text_bytes does not count */
    size_t text_bytes;
};

/* The built-in profiles in ascending order of name; moe_num_profiles of them, possibly none. */
extern const struct moe_profile_text moe_profiles[];
extern const size_t moe_num_profiles;

#endif
