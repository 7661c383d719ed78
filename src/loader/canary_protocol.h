/* SPDX-License-Identifier: Apache-2.0 */
/* What moe-canary and the process that starts it have agreed on. */
#ifndef MOE_LOADER_CANARY_PROTOCOL_H
#define MOE_LOADER_CANARY_PROTOCOL_H

/* With --inherited the plugin is open on this descriptor. */
#define MOE_CANARY_DESCRIPTOR 3

/* Lines of its output. Exit status 0 alone is no proof: a plugin can call exit. */
#define MOE_CANARY_STEP    "moe-canary: step "
#define MOE_CANARY_REFUSAL "moe-canary: refused: "
#define MOE_CANARY_PASSED  "moe-canary: passed"

#endif
