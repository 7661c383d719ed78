#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest labels: no-asan
# ctest timeout: 300
#
# gpu_layer check without a GPU: the CPU backend takes the device's part, with its own tiles. The results agree with float64, the bits
# are the same whatever the batch, tiles and chunks, every planted mistake is noticed, and results that are made wrong fail the check.
set -eu
program=$MOE_BUILD_DIR/bin/gpu_layer
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$program" check 1 "" self >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
}
tail -n 1 "$log" | grep -q "^[1-9][0-9]* passed, 0 failed$"
grep -q "^[1-9][0-9]* planted mistakes looked for$" "$log"
"$program" check 1 "brief, " brief self >>"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
}
grep -q "^[1-9][0-9]* plans with forced tiles, 0 launch another one in their place$" "$log"
for text in "oai, biases" "shared, sigmoid" "router" "bits, one expert" "replay, shared"; do
    if "$program" check 1 "$text" self broken >"$log" 2>&1; then
        echo "gpu_layer takes wrong results of \"$text\"" >&2
        exit 1
    fi
    grep -q "^FAILED" "$log"
    tail -n 1 "$log" | grep -q "^[0-9]* passed, [1-9][0-9]* failed$"
done
for arguments in "check 1 none self" "check 1 plain self other" "chek"; do
    # shellcheck disable=SC2086
    if "$program" $arguments >"$log" 2>&1; then
        echo "gpu_layer $arguments was taken" >&2
        exit 1
    fi
done
grep -q usage "$log"
