#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest labels: no-asan
# ctest timeout: 300
#
# `moectl conform`: the plugin keeps every rule, each of the plugins that break one rule fails that one and no other that it keeps, and files that
# are no plugins fail without harm.
set -u
moectl="$MOE_BUILD_DIR/bin/moectl"
folder=$(mktemp -d "${TMPDIR:-/tmp}/moe-conform-XXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
failures=0

fail() {
    echo "FAILED: $*" >&2
    failures=$((failures + 1))
}

for plugin in libmoe_plugin.so libmoe_plugin_b.so; do
    "$moectl" conform "$MOE_BUILD_DIR/lib/$plugin" >"$folder/out" 2>"$folder/err" || fail "$plugin: $(grep failed "$folder/out")"
    grep -q "^[0-9]* passed, 0 failed, 1 skipped$" "$folder/out" || fail "$plugin: $(grep -v passed "$folder/out")"
done

# Every P rule of the document is a line of the command, and the other way round.
sed -n 's/^| \(P[0-9]*\) .*/\1/p' "$MOE_SOURCE_DIR/docs/abi.md" | sort >"$folder/documented"
sed -n 's/^\(P[0-9]*\) .*/\1/p' "$folder/out" | sort >"$folder/checked"
cmp -s "$folder/documented" "$folder/checked" || fail "rules: $(diff "$folder/documented" "$folder/checked")"

for name in P7 P8 P13 P15 P24 P24_padded P24_replicas P24_batched P24_masked P24_route; do
    rule=${name%%_*}
    "$moectl" conform --json "$MOE_BUILD_DIR/tests/plugins/breaks_$name.so" >"$folder/json" 2>"$folder/err"
    status=$?
    [ "$status" -eq 1 ] || fail "breaks_$name: exit status $status"
    python3 -B - "$folder/json" "$rule" <<'PY' || fail "breaks_$name: other rules than $rule fail"
import json, sys
document = json.load(open(sys.argv[1]))
failed = {entry["rule"]: entry["reason"] for entry in document["rules"] if entry["result"] == "failed"}
wanted = [sys.argv[2]] + (["P24"] if sys.argv[2] == "P13" else [])  # what is ignored gives wrong results too
assert list(failed) == wanted and failed[sys.argv[2]], failed
assert document["num_failed"] == len(wanted) and document["num_skipped"] == 1, document
PY
done

# A crash is a failed rule, and the command lives on.
"$moectl" conform "$MOE_BUILD_DIR/tests/plugins/entry_crashes.so" >"$folder/out" 2>&1
[ $? -eq 1 ] || fail "entry_crashes: exit status"
grep -q "^P3 *failed .*crashed" "$folder/out" || fail "entry_crashes: $(cat "$folder/out")"
grep -q "^P25 " "$folder/out" || fail "entry_crashes: the last rule is missing"

"$moectl" conform "$MOE_BUILD_DIR/tests/plugins/exports_two.so" --rule P1 >"$folder/out" 2>&1
grep -q "^P1 *failed .*also_exported" "$folder/out" || fail "exports_two: $(cat "$folder/out")"

echo "no plugin" >"$folder/text.so"
"$moectl" conform "$folder/text.so" --rule P1,P3 >"$folder/out" 2>&1
[ $? -eq 1 ] || fail "text: exit status"
grep -q "^0 passed, 2 failed, 0 skipped$" "$folder/out" || fail "text: $(cat "$folder/out")"

"$moectl" conform "$folder/nothing.so" >"$folder/out" 2>"$folder/err"
[ $? -eq 2 ] || fail "no file: exit status"
grep -q "nothing.so" "$folder/err" || fail "no file: $(cat "$folder/err")"
for words in P99 7 P7,,P8 P7x ""; do
    "$moectl" conform --rule "$words" "$MOE_BUILD_DIR/lib/libmoe_plugin.so" >"$folder/out" 2>"$folder/err"
    [ $? -eq 2 ] || fail "--rule '$words': exit status"
    grep -q "P1 to P25" "$folder/err" || fail "--rule '$words': $(cat "$folder/err")"
done

[ "$failures" -eq 0 ] || exit 1
echo "conform: all passed"
