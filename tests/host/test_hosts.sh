#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The two hosts that documents point to: each compiles and runs as it says, and finds its own numbers right. A host that cannot
# find the plugin says so.
set -eu
plugin=$MOE_BUILD_DIR/lib/libmoe_plugin.so
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${CC:-cc}" -std=c11 -Wall -Wextra -Wpedantic -Werror -I "$MOE_SOURCE_DIR/abi" "$MOE_SOURCE_DIR/tests/host/minihost.c" \
    -ldl -lm -o "$folder/minihost"
"$folder/minihost" "$plugin"
if "$folder/minihost" "$folder/none.so" 2>"$folder/complaint"; then
    echo "minihost ran without a plugin" >&2
    exit 1
fi
grep -q none.so "$folder/complaint"

python3 -B "$MOE_SOURCE_DIR/tests/host/host.py" "$plugin"
if python3 -B "$MOE_SOURCE_DIR/tests/host/host.py" "$folder/none.so" 2>"$folder/complaint"; then
    echo "host.py ran without a plugin" >&2
    exit 1
fi
grep -q none.so "$folder/complaint"
