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
"$moectl" bench $small --format csv >"$folder/all.csv" 2>"$folder/err" || fail "bench --format csv: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --format table >"$folder/table" 2>"$folder/err" ||
    fail "bench --format table: $(cat "$folder/err")"
# The layer and its stages in the shape of a checkpoint.
"$moectl" bench --backend cuda --model "$MOE_TESTS_DATA_DIR/golden/mixtral" --op layer,router,gating,ep_preprocess,gemm1,gemm2,post_reorder \
    -M 1,7 --min-time 5 --weight-mb 10 --json >"$folder/model.json" 2>"$folder/err" || fail "bench --model: $(cat "$folder/err")"
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

python3 -B - "$folder" "$MOE_SOURCE_DIR/abi/moe_plugin.h" <<'PYTHON' || fail "numbers"
import csv, json, math, re, sys
folder, header = sys.argv[1:]
ops = re.findall(r'X\(MOE_OP_\w+, \d+, "(\w+)"\)', open(header).read())
assert len(ops) == 14, ops
cases = sorted((op, num_tokens) for op in ops for num_tokens in (1, 33))

document = json.load(open(folder + "/all.json"))
assert document["device"]["backend"] == "cuda" and document["device"]["num_sms"] == 132, document["device"]
assert document["not_measured"] == [], document["not_measured"]
limits = document["limits"]
for key in ("memset_gb_per_s", "memcpy_gb_per_s", "mma_gflop_per_s"):
    assert limits[key] > 0, limits
results = {(result["op"], result["num_tokens"]): result for result in document["results"]}
assert sorted(results) == cases and len(document["results"]) == len(cases), sorted(results)
keys = {"memset": "memset_gb_per_s_p90", "memcpy": "memcpy_gb_per_s_p90", "mma": "mma_gflop_per_s_p90"}
for result in results.values():
    assert result["us"] > 0 and result["host_us"] > 0 and result["calls_per_sample"] >= 20, result
    assert result["num_samples"] >= 5 and 0 < result["us_p10"] < result["us_p90"], result
    assert re.match(r"(cuda|sm90)\.\w+ BLOCK_SIZE", result["tile"]) and result["rule"], result
    assert math.isclose(result["gb_per_s"], result["bytes"] / result["us"] / 1e3, rel_tol=1e-6), result
    work = result["flops"] if result["limit"] == "mma" else result["bytes"]
    assert math.isclose(result["floor_us"], work / limits[keys[result["limit"]]] / 1e3, rel_tol=1e-6), result
    assert math.isclose(result["ratio"], result["floor_us"] / result["us"], rel_tol=1e-6), result
moves = results["pre_reorder", 33]
assert moves["bytes"] == 2 * 33 * 72 * (1 + 2) and moves["limit"] == "memcpy", moves

model = json.load(open(folder + "/model.json"))
assert model["problem"]["model_type"] == "mixtral" and model["not_measured"] == [], model
stages = ("layer", "router", "gating", "ep_preprocess", "gemm1", "gemm2", "post_reorder")
assert sorted((r["op"], r["num_tokens"]) for r in model["results"]) == sorted((op, t) for op in stages for t in (1, 7)), model["results"]

# CSV: the same cases, tiles and bytes; its numbers have four digits behind the point.
rows = list(csv.DictReader(open(folder + "/all.csv")))
assert sorted((row["op"], int(row["num_tokens"])) for row in rows) == cases, rows
for row in rows:
    result = results[row["op"], int(row["num_tokens"])]
    assert None not in row and None not in row.values(), row
    shape = [row[key] for key in ("num_experts", "top_k", "hidden", "inter", "dtype")]
    assert shape == ["8", "2", "72", "40", "bf16"] and row["tile"] == result["tile"], row
    us, p10, p90, rate, ratio, floor_us = (float(row[key]) for key in ("us", "us_p10", "us_p90", "gb_per_s", "ratio", "floor_us"))
    assert 0 < p10 < p90 and int(row["num_samples"]) >= 5, row
    half = 0.6e-4 # of the last digit
    assert abs(rate * us * 1e3 - result["bytes"]) <= 1e3 * half * (rate + us) + 1, (row, result)
    assert abs(ratio * us - floor_us) <= half * (ratio + us + 1), row
rows = list(csv.DictReader(open(folder + "/some.csv")))
assert [(row["op"], row["num_tokens"]) for row in rows] == [
    ("ep_preprocess", "1"), ("ep_preprocess", "33"), ("pre_reorder", "1"), ("pre_reorder", "33")], rows
assert all(float(row["mean_active_experts"]) == 2 and float(row["host_us"]) > 0 for row in rows), rows

# Table: shape and limits above it, a line for each case.
lines = open(folder + "/table").read().splitlines()
assert any(line.startswith("E 8, top_k 2, hidden 72, inter 40") for line in lines), lines
assert any("limits (by the driver" in line for line in lines), lines
split = lambda line: re.split(r" {2,}", line.strip())
title = next(i for i, line in enumerate(lines) if line.startswith("op ") and line.endswith("tile"))
columns = split(lines[title])
assert columns == ["op", "T", "active", "us", "p10", "p90", "floor us", "TB/s", "TFLOP/s", "ratio", "host us", "limit", "chosen by", "tile"], columns
table = [dict(zip(columns, split(line))) for line in lines[title + 1:title + 1 + len(cases)]]
assert sorted((row["op"], int(row["T"])) for row in table) == cases, table
for row in table:
    result = results[row["op"], int(row["T"])]
    assert len(row) == len(columns) and row["tile"] == result["tile"] and row["limit"] in keys, row
    assert float(row["p10"]) <= float(row["us"]) <= float(row["p90"]) and re.fullmatch(r"\d+\.\d{3}", row["TB/s"]), row
    assert re.fullmatch(r"\d+\.\d %", row["ratio"]), row
    us, ratio = float(row["us"]), float(row["ratio"].split()[0]) / 100
    assert abs(float(row["floor us"]) - ratio * us) <= 0.01 + 0.001 * us + 0.01 * ratio, row
    assert (row["TFLOP/s"] == "-") == (result["flops"] == 0), (row, result)
PYTHON

[ "$failures" -eq 0 ] || exit 1
echo "moectl on the fake driver: all passed"
