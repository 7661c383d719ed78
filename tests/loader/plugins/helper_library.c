/* SPDX-License-Identifier: Apache-2.0 */
/* A library of a plugin's own: two versions with one SONAME, of which a process gets only the
 * first. */
int helper_version(void);

__attribute__((visibility("default"))) int helper_version(void)
{
    return HELPER_VERSION;
}
