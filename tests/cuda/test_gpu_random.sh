#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest labels: no-asan
#
# gpu_random without a GPU: the CPU backend takes the device's part, with its own tiles for both GEMMs. Every call that it draws is
# legal, and its comparisons notice wrong signs and a byte that nobody may write.
set -eu
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$MOE_BUILD_DIR/bin/gpu_random" 1 128 self >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
}
tail -n 1 "$log" | grep -q "^128 seeds from 1: [1-9][0-9]* passed, 0 failed$"
grep -q "^[1-9][0-9]* plans of [1-9][0-9]* pairs of tiles were forced, 0 launch another tile in their place$" "$log"
for arguments in "1 1 other" "1 1 self more"; do
    # shellcheck disable=SC2086
    if "$MOE_BUILD_DIR/bin/gpu_random" $arguments >"$log" 2>&1; then
        echo "gpu_random $arguments was taken" >&2
        exit 1
    fi
    grep -q usage "$log"
done
