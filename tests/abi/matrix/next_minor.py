# SPDX-License-Identifier: Apache-2.0
"""A made-up ABI 0.2 from the frozen header of 0.1: a member more in the table, the host struct and one argument struct."""

import re

# struct -> declaration that is appended to it
APPENDED = {
    "moe_plugin_api": "int32_t (*next_call)(int32_t value);",
    "moe_host": "int32_t (*next_service)(int32_t value);",
    "moe_sum_reduce_args": "int64_t next_mode; /* 0: as in 0.1; 1: the sum is negated */",
}


def append_member(header, struct_name, declaration):
    pattern = re.compile(r"^(struct " + struct_name + r" \{\n.*?)^\};", re.MULTILINE | re.DOTALL)
    changed, num_changes = pattern.subn(lambda match: match.group(1) + "    " + declaration + "\n};", header)
    if num_changes != 1:
        raise SystemExit(f"struct {struct_name} was found {num_changes} times in the frozen header")
    return changed


def next_minor(header):
    for struct_name, declaration in APPENDED.items():
        header = append_member(header, struct_name, declaration)
    header, num_minors = re.subn(r"^#define MOE_ABI_MINOR 1$", "#define MOE_ABI_MINOR 2\n#define MATRIX_NEXT 1", header, flags=re.MULTILINE)
    header, num_hashes = re.subn(r"(MOE_ABI_LAYOUT_HASH UINT64_C\(0x)[0-9a-f]{16}\)", r"\g<1>0000000000000002)", header)
    if num_minors != 1 or num_hashes != 1:
        raise SystemExit("the frozen header does not define its minor version and layout hash once each")
    return header
