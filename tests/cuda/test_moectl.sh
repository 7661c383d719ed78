#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest labels: serial no-asan
# ctest timeout: 300
#
# moectl as a host of the CUDA backend, on the driver that plays a device (fake_libcuda.h): kernels do nothing there, but memory,
# copies, graphs and their clean-up are real.
set -u
moectl="$MOE_BUILD_DIR/bin/moectl"
folder=$(mktemp -d "${TMPDIR:-/tmp}/moe-moectl-XXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
export LD_LIBRARY_PATH="$MOE_BUILD_DIR/tests/fake_driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export FAKE_L2_BYTES=1000000
failures=0

fail() {
    echo "FAILED: $*" >&2
    failures=$((failures + 1))
}

"$moectl" info --backend cuda >"$folder/info" 2>&1 || fail "info: $(cat "$folder/info")"
grep -q "Fake H200" "$folder/info" || fail "info does not name the device: $(cat "$folder/info")"

small="--backend cuda --shape 8,2,72,40 -M 1,33 --min-time 5 --weight-mb 10"
# shellcheck disable=SC2086
"$moectl" bench $small --format json >"$folder/all.json" 2>"$folder/err" || fail "bench --format json: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --op pre_reorder,ep_preprocess --format csv --active 2 >"$folder/some.csv" 2>"$folder/err" ||
    fail "bench --format csv: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --op pre_reorder --format table >"$folder/table" 2>"$folder/err" ||
    fail "bench --format table: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --format csv --json >"$folder/out" 2>"$folder/err" && fail "--format csv --json was taken"
grep -q "choose one" "$folder/err" || fail "no sentence for --format csv --json: $(cat "$folder/err")"

# What the backend has no kernel for.
"$moectl" bench --backend cuda --shape 8,2,72,40 -M 1 --op gemm1 --dtype fp32 >"$folder/out" 2>"$folder/err" && fail "gemm1 in fp32 was taken"
grep -q -- "--op gemm1:" "$folder/err" || fail "no sentence for gemm1 in fp32: $(cat "$folder/err")"

# A driver that offers too little memory: a sentence with the purpose, no crash.
FAKE_MEMORY_BYTES=1000000 "$moectl" bench --backend cuda --shape 8,2,72,40 -M 1 --op pre_reorder >"$folder/out" 2>"$folder/err" &&
    fail "bench ran without memory"
grep -q "memory" "$folder/err" || fail "no sentence about memory: $(cat "$folder/err")"

# The layer of a checkpoint: it runs to the end, or is refused because this version has no kernel for a part of it.
model="$MOE_TESTS_DATA_DIR/golden/mixtral"
"$moectl" run --backend cuda --model "$model" --check "$model/golden.safetensors" --json >"$folder/run.json" 2>"$folder/err"
status=$?
case $status in
1) python3 -m json.tool "$folder/run.json" >/dev/null || fail "run --json is not JSON" ;; # kernels that do nothing give wrong results
2) grep -q "has no cuda kernel in this version" "$folder/err" || fail "run: $(cat "$folder/err")" ;;
*) fail "run: exit status $status: $(cat "$folder/err")" ;;
esac

python3 -B - "$folder" <<'PYTHON' || fail "numbers"
import csv, json, sys
folder = sys.argv[1]
document = json.load(open(folder + "/all.json"))
assert document["device"]["backend"] == "cuda" and document["device"]["num_sms"] == 132, document["device"]
limits = document["limits"]
for key in ("memset_gb_per_s", "memcpy_gb_per_s", "mma_gflop_per_s"):
    assert limits[key] > 0, limits
ops = {result["op"] for result in document["results"]}
assert {"align_block_size", "ep_preprocess", "pre_reorder", "post_reorder", "sum_reduce"} <= ops, ops
for result in document["results"]:
    assert result["us"] > 0 and result["host_us"] > 0 and result["calls_per_sample"] >= 20, result
    assert result["limit"] in ("memset", "memcpy", "mma"), result
    assert result["op"] not in {refused["op"] for refused in document["not_measured"]}, result
moves = next(r for r in document["results"] if r["op"] == "pre_reorder" and r["num_tokens"] == 33)
assert moves["bytes"] == 2 * 33 * 72 * (1 + 2) and moves["limit"] == "memcpy", moves
rows = list(csv.DictReader(open(folder + "/some.csv")))
assert [(row["op"], row["num_tokens"]) for row in rows] == [
    ("ep_preprocess", "1"), ("ep_preprocess", "33"), ("pre_reorder", "1"), ("pre_reorder", "33")], rows
assert all(float(row["mean_active_experts"]) == 2 and float(row["host_us"]) > 0 for row in rows), rows
table = open(folder + "/table").read()
assert "host us" in table and "TB/s" in table and "limits (by the driver" in table, table
PYTHON

[ "$failures" -eq 0 ] || exit 1
echo "moectl on the fake driver: all passed"
