/* SPDX-License-Identifier: Apache-2.0 */
/* The P rules of docs/abi.md and what checks each. */
#ifndef MOE_CONFORM_RULES_H
#define MOE_CONFORM_RULES_H

#include "conform_session.h"

/* X(number, name of the check, text) */
#define MOE_CONFORM_RULE_LIST(X)                                                                  \
    X(1, exports, "exports one symbol; needs libc, libm and the dynamic linker at most")          \
    X(2, process_state, "loading leaves the state of the process as it was")                      \
    X(3, pure_entry, "moe_plugin_init is pure: constant data, or NULL with a sentence")           \
    X(4, versions, "hosts of another version or layout are refused")                              \
    X(5, unload, "unloading really unloads, and all memory is given back")                        \
    X(6, input_sizes,                                                                             \
      "input structs of known size and with zero tails are taken, smaller refused")               \
    X(7, input_tails, "unknown tail bytes that are not zero are refused with UNKNOWN_FIELD")      \
    X(8, output_sizes, "output structs are written up to struct_size; on failure not at all")     \
    X(9, values, "ids outside their list, reserved members and unknown flags are refused")        \
    X(10, append_only, "table and structs are append-only")                                       \
    X(11, sentences, "every refusal is a status and a sentence that names the thing")             \
    X(12, untouched, "a refusal touches nothing")                                                 \
    X(13, not_ignored, "what is not implemented is refused, never ignored")                       \
    X(14, silence, "the plugin prints nothing and does not end the process")                      \
    X(15, run_calls, "run calls neither allocate nor log; no system call but futex")              \
    X(16, workspace, "exactly the announced workspace is enough, and nothing outside is written") \
    X(17, any_index, "any value in an index array is safe")                                       \
    X(18, no_tokens, "no tokens, and tokens without a local route, are legal")                    \
    X(19, same_bits, "a token has the same bits whatever batch, threads and chunking")            \
    X(20, many_threads, "several threads use one plan and one weights object at once")            \
    X(21, diagnostics, "every configuration finding has file, line, column and code")             \
    X(22, explained, "explain gives the same answer as the plan")                                 \
    X(23, snapshots, "plans keep the configuration that they were made from")                     \
    X(24, results, "every operation gives what the header defines")                               \
    X(25, known_answers, "the self-test passes and can be repeated")

#define MOE_CONFORM_DECLARE_(number, name, text) moe_conform_check_fn moe_conform_check_##name;
MOE_CONFORM_RULE_LIST(MOE_CONFORM_DECLARE_)
#undef MOE_CONFORM_DECLARE_

/* The part of P24 about gating's ids and the sorts, for the open shape. */
void moe_conform_check_routing_results(struct moe_conform *conform);

#endif
