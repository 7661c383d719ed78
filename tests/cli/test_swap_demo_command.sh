#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest labels: serial
#
# `moectl swap-demo` from outside: two plugins take turns and no request fails; mistakes get a sentence; the JSON adds up.
set -u
moectl="$MOE_BUILD_DIR/bin/moectl"
plugin_a="$MOE_BUILD_DIR/lib/libmoe_plugin.so"
plugin_b="$MOE_BUILD_DIR/lib/libmoe_plugin_b.so"
folder=$(mktemp -d "${TMPDIR:-/tmp}/moe-swap-XXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
failures=0

fail() {
    echo "FAILED: $*" >&2
    failures=$((failures + 1))
}

# refuse WORDS ARGUMENTS...: exit status 2, nothing on stdout, and a sentence on stderr that contains WORDS.
refuse() {
    words=$1
    shift
    "$moectl" swap-demo --seconds 0 "$@" >"$folder/out" 2>"$folder/err"
    status=$?
    [ "$status" -eq 2 ] || fail "swap-demo $*: exit status $status, not 2"
    [ -s "$folder/out" ] && fail "swap-demo $*: wrote to stdout"
    grep -qF -- "$words" "$folder/err" || fail "swap-demo $*: no '$words' in: $(cat "$folder/err")"
}

# demo STATUS ARGUMENTS...: the result goes to $folder/out.
demo() {
    expected=$1
    shift
    "$moectl" swap-demo --skip-trust "$@" >"$folder/out" 2>"$folder/err"
    status=$?
    [ "$status" -eq "$expected" ] || fail "swap-demo $*: exit status $status, not $expected: $(cat "$folder/out" "$folder/err")"
    [ -s "$folder/err" ] && fail "swap-demo $*: wrote to stderr: $(cat "$folder/err")"
}

echo "no plugin" >"$folder/text.so"
chmod 666 "$folder/text.so"
refuse "PLUGIN_A PLUGIN_B is missing"
refuse "plugin A: $folder/nosuch.so: cannot be found" --skip-trust "$folder/nosuch.so" "$plugin_b"
refuse "plugin B: $folder/nosuch.so: cannot be found" --skip-trust "$plugin_a" "$folder/nosuch.so"
refuse "not an ELF file" --skip-trust "$plugin_a" "$folder/text.so"
refuse "can be written by others" "$folder/text.so" "$plugin_b"
refuse "'fast' is not a decimal number above 0" --max-p99-ratio fast "$plugin_a" "$plugin_b"
refuse "'0' is not a decimal number above 0" --max-p99-ratio 0 "$plugin_a" "$plugin_b"
refuse "'nan' is not a decimal number above 0" --max-p99-ratio nan "$plugin_a" "$plugin_b"
refuse "--swaps" --swaps 0 "$plugin_a" "$plugin_b"
refuse "--threads" --threads -1 "$plugin_a" "$plugin_b"

demo 0 --seconds 2 --threads 3 "$plugin_a" "$plugin_b"
tail -n 1 "$folder/out" | grep -qx passed || fail "the last line is not 'passed': $(cat "$folder/out")"
grep -q "on 3 threads: 0 failed, 0 answered wrong" "$folder/out" || fail "failures: $(cat "$folder/out")"
for plugin in A B; do
    grep -Eq "^$plugin  [1-9][0-9]* answered" "$folder/out" || fail "$plugin answered nothing: $(cat "$folder/out")"
done

demo 0 --seconds 1 --threads 2 --swaps 4 --json "$plugin_a" "$plugin_b"
mv "$folder/out" "$folder/good.json"
demo 1 --seconds 0 --max-p99-ratio 0.000001 --json "$plugin_a" "$plugin_b"
mv "$folder/out" "$folder/slow.json"
demo 1 --seconds 0 --swaps 3 --json "$plugin_a" "$MOE_BUILD_DIR/tests/plugins/entry_crashes.so"
mv "$folder/out" "$folder/bad.json"

python3 -B - "$folder" <<'EOF_PYTHON' || fail "numbers"
import json, sys
folder = sys.argv[1]
good, slow, bad = (json.load(open(f"{folder}/{name}.json")) for name in ("good", "slow", "bad"))

for result in (good, slow, bad):
    answered = [plugin["num_answered"] for plugin in result["plugins"]]
    assert result["num_requests"] == sum(answered) > 0, result
    assert result["num_failed"] == result["num_wrong"] == result["num_unmeasured"] == 0, result
    phases = result["latency_us"]
    assert sum(phase["num_requests"] for phase in phases.values()) == result["num_requests"], result
    for phase in phases.values():
        assert 0 <= phase["p50"] <= phase["p90"] <= phase["p99"] <= phase["max"], phase
    assert result["failures"] == [], result

assert good["passed"] is True and good["num_threads"] == 2 and good["seconds"] >= 1, good
assert good["num_swaps"] >= 4 and good["num_rejections"] == 0 and good["rejections"] == [], good
assert all(plugin["num_answered"] > 0 for plugin in good["plugins"]), good
assert good["plugins"][0]["kernel_set_id"] != good["plugins"][1]["kernel_set_id"], good
inside, outside = (good["latency_us"][key]["p99"] for key in ("inside", "outside"))
assert abs(good["p99_ratio"] - inside / outside) < 1e-9 and good["max_p99_ratio"] is None, good
assert [*good["steps_ms"]] == ["stage", "verify", "promote", "drain", "park"], good
assert all(step["num_times"] == good["num_swaps"] for step in good["steps_ms"].values()), good

assert slow["passed"] is False and slow["p99_ratio"] > slow["max_p99_ratio"] == 0.000001, slow
assert slow["num_swaps"] == 2, slow

assert bad["passed"] is False and bad["num_swaps"] == 0 and bad["num_rejections"] == 4, bad
assert bad["plugins"][1]["num_answered"] == 0 and bad["plugins"][1]["kernel_set_id"] is None, bad
assert len(bad["rejections"]) == 4, bad
assert all(reason.startswith("B: MOE_LOADER_STATUS_CANARY: ") for reason in bad["rejections"]), bad
EOF_PYTHON

[ "$failures" -eq 0 ] || exit 1
echo "swap-demo: all passed"
