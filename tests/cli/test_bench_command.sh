#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest labels: serial
# ctest timeout: 300
#
# `moectl bench` from outside: every operation is accounted for, its three kinds of output can be read, mistakes get a sentence.
set -u
moectl="$MOE_BUILD_DIR/bin/moectl"
folder=$(mktemp -d "${TMPDIR:-/tmp}/moe-bench-XXXXXX") || exit 1
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
    "$moectl" bench "$@" >"$folder/out" 2>"$folder/err"
    status=$?
    [ "$status" -eq 2 ] || fail "bench $*: exit status $status, not 2"
    [ -s "$folder/out" ] && fail "bench $*: wrote to stdout"
    grep -qF -- "$words" "$folder/err" || fail "bench $*: no '$words' in: $(cat "$folder/err")"
}

refuse "router, gating, align_block_size, ep_preprocess" --op nosuch
refuse "did you mean layer?" --op layr
refuse "'' is not an operation" --op layer,
refuse "--shape needs four numbers" --shape 8,2,64
refuse "top_k 9 is more than the 8 experts" --shape 8,9,64,32
refuse "'fp8_e4m3' is not one of fp32|fp16|bf16|fp8|fp8-weights" --dtype fp8_e4m3
refuse "'warm' is not one of uniform, zipf:EXPONENT, hot" --routing warm
refuse "1 token with top_k 2 of 8 experts can reach 2 to 2 experts" --shape 8,2,64,32 --active 3 -M 1
refuse "choose one" --json --csv
refuse "choose one" --shape 8,2,64,32 --model "$folder"
refuse "--layer needs --model" --layer 1
refuse "config.json" --model "$folder"
refuse "choose smaller numbers" --shape 16777216,1,16777216,16777216
refuse "MB of memory are available" --op layer --shape 4096,1,65536,65536 -M 1
refuse "--tokens" -M 0
refuse "--plugin" --plugin

small="--shape 8,2,72,40 -M 1,5,33 --min-time 5 --weight-mb 10 --threads 2"

# shellcheck disable=SC2086
"$moectl" bench $small --json >"$folder/all.json" 2>"$folder/err" || fail "bench --json: $(cat "$folder/err")"
python3 -m json.tool "$folder/all.json" >/dev/null || fail "bench --json is not JSON"
# shellcheck disable=SC2086
"$moectl" bench $small --op layer,gemm1,pre_reorder --dtype fp32 --routing zipf:1 --active 2 --csv >"$folder/some.csv" \
    2>"$folder/err" || fail "bench --csv: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --op gating,experts,sum_reduce --dtype fp16 --routing hot >"$folder/some.txt" 2>"$folder/err" ||
    fail "bench: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --dtype fp8 --csv >"$folder/fp8.csv" 2>"$folder/err" || fail "bench --dtype fp8: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --dtype fp8-weights --csv >"$folder/fp8-weights.csv" 2>"$folder/err" ||
    fail "bench --dtype fp8-weights: $(cat "$folder/err")"
# shellcheck disable=SC2086
"$moectl" bench $small --dtype fp8 --op gemm1 >"$folder/out" 2>"$folder/err" && fail "bench --dtype fp8 --op gemm1 went through"
grep -qF "quantized rows" "$folder/err" || fail "bench --dtype fp8 --op gemm1: $(cat "$folder/err")"
# Numbers of tokens that cannot hit so many experts are left out, each with a sentence; the others are measured.
"$moectl" bench --shape 8,2,64,32 --op gating --active 8 -M 1,3,4,9 --min-time 1 --weight-mb 1 --csv >"$folder/out" 2>"$folder/err" ||
    fail "bench --active 8: $(cat "$folder/err")"
[ "$(cut -d, -f2,9 "$folder/out" | tr '\n' ' ')" = "num_tokens,mean_active_experts 4,8.00 9,8.00 " ] || fail "bench --active 8: $(cat "$folder/out")"
[ "$(grep -c "not measured: --active 8: [13] tokens\{0,1\} with top_k 2 of 8 experts can reach 2 to [26] experts$" "$folder/err")" -eq 2 ] &&
    [ "$(wc -l <"$folder/err")" -eq 2 ] || fail "bench --active 8: $(cat "$folder/err")"
# Rounds that end before new limits are due share the last ones, and it is said; a round of 120 ms never does.
for time in 1 600; do
    tiny="--shape 4,2,64,64 -M 1,5 --op gating --weight-mb 1 --threads 2 --min-time $time"
    # shellcheck disable=SC2086
    "$moectl" bench $tiny --json >"$folder/shared_$time.json" 2>"$folder/err" || fail "bench $tiny: $(cat "$folder/err")"
    # shellcheck disable=SC2086
    "$moectl" bench $tiny >"$folder/shared_$time.txt" 2>"$folder/err" || fail "bench $tiny: $(cat "$folder/err")"
done
for model in "$MOE_TESTS_DATA_DIR"/golden/*/config.json; do
    "$moectl" bench --model "${model%/config.json}" --op layer,router,gating -M 3 --min-time 1 --weight-mb 10 --json >"$folder/model.json" 2>"$folder/err" ||
        fail "bench --model $model: $(cat "$folder/err")"
    python3 -m json.tool "$folder/model.json" >/dev/null || fail "bench --model $model --json is not JSON"
done

python3 -B - "$folder" "$MOE_SOURCE_DIR/abi/moe_plugin.h" <<'EOF' || fail "numbers"
import csv, json, math, re, sys
folder, header = sys.argv[1:]
ops = re.findall(r'X\(MOE_OP_\w+, \d+, "(\w+)"\)', open(header).read())
assert len(ops) == 14, ops

document = json.load(open(folder + "/all.json"))
results = document["results"]
refused = {entry["op"]: entry["reason"] for entry in document["not_measured"]}
assert all(reason for reason in refused.values()), refused
for op in ops:
    sizes = [result["num_tokens"] for result in results if result["op"] == op]
    assert (sizes == [1, 5, 33]) != (op in refused), (op, sizes, refused)
assert "layer" not in refused and "gemm1" not in refused, refused

limits = document["limits"]
for key in ("read_gb_per_s", "copy_gb_per_s", "fma_gflop_per_s", "clock_ns"):
    assert math.isfinite(limits[key]) and limits[key] > 0, key
for result in results:
    for key in ("us", "ratio", "gb_per_s", "floor_us", "bytes"):
        assert math.isfinite(result[key]) and result[key] > 0, (key, result)
    assert result["num_samples"] >= 5 and result["tile"] and result["rule"], result
    assert math.isclose(result["gb_per_s"], result["bytes"] / result["us"] / 1e3, rel_tol=1e-6), result
    rate = {"read": "read_gb_per_s_p90", "copy": "copy_gb_per_s_p90", "fma": "fma_gflop_per_s_p90"}[result["limit"]]
    work = result["flops"] if result["limit"] == "fma" else result["bytes"]
    assert math.isclose(result["floor_us"], work / limits[rate] / 1e3, rel_tol=1e-6), result
    assert math.isclose(result["ratio"], result["floor_us"] / result["us"], rel_tol=1e-6), result
    assert 0 < result["paired_ratio_p10"] <= result["paired_ratio"] <= result["paired_ratio_p90"], result

# Shared limits: five rounds of each result; all of the long ones have limits of their own.
rounds = [json.load(open(f"{folder}/shared_{time}.json"))["method"] for time in (1, 600)]
assert all(method["num_paired_rounds"] == 10 for method in rounds), rounds
assert 0 < rounds[0]["num_shared_limits"] <= 10 and rounds[1]["num_shared_limits"] == 0, rounds
told = [re.findall(r"^paired: (\d+) of 10 rounds were over within 50 ms", open(f"{folder}/shared_{time}.txt").read(), re.M)
        for time in (1, 600)]
assert len(told[0]) == 1 and 0 < int(told[0][0]) <= 10 and told[1] == [], told
assert document["method"]["num_paired_rounds"] == 5 * len(results), document["method"]

# The spread is that of the samples, which differ: the median lies strictly between the tenths, but where the clock's steps coincide.
assert all(0 < result["us_p10"] <= result["us"] <= result["us_p90"] for result in results)
between = [0 < result["us_p10"] < result["us"] < result["us_p90"] for result in results]
assert sum(between) >= 0.8 * len(results), [result for result, is_so in zip(results, between) if not is_so]

# The formulas: E 8, k 2, H 72, I 40, bf16; the active experts are those that were drawn.
def find(op, num_tokens):
    return next(r for r in results if r["op"] == op and r["num_tokens"] == num_tokens)
layer = find("layer", 5)
assert 2 <= layer["mean_active_experts"] <= 8, layer
assert math.isclose(layer["bytes"], layer["mean_active_experts"] * 3 * 72 * 40 * 2 + 4 * 5 * 72), layer
assert layer["flops"] == 6 * 5 * 2 * 72 * 40, layer
assert find("layer", 1)["mean_active_experts"] == 2
assert find("pre_reorder", 5)["bytes"] == 2 * 5 * 72 * (1 + 2)
assert find("activation", 5)["bytes"] == 6 * 5 * 2 * 40
assert find("ep_preprocess", 5)["bytes"] == 12 * 5 * 2 + 8 * 8

assert sorted(entry["op"] for entry in document["overheads"]) == sorted(set(ops) - set(refused))
for entry in document["overheads"]:
    assert entry["plan_op_info_ns"] > 0 and entry["empty_call_ns"] > 0, entry
assert document["lookup_below_ns"] == min(entry["plan_op_info_ns"] for entry in document["overheads"])
assert document["device"]["num_threads"] == 2

rows = list(csv.DictReader(open(folder + "/some.csv")))
assert [(row["op"], row["num_tokens"]) for row in rows] == [
    (op, size) for op in ("pre_reorder", "gemm1", "layer") for size in ("1", "5", "33")], rows
assert all(None not in row and None not in row.values() for row in rows)
assert all(float(row["mean_active_experts"]) == 2 and row["dtype"] == "fp32" and float(row["ratio"]) > 0 for row in rows), rows
assert all(float(row["paired_ratio"]) > 0 for row in rows), rows

for dtype, missing in (("fp8", {"gemm1", "gemm2", "activation"}), ("fp8-weights", set())):
    rows = list(csv.DictReader(open(f"{folder}/{dtype}.csv")))
    assert all(row["dtype"] == dtype and float(row["ratio"]) > 0 for row in rows), rows
    assert {row["op"] for row in rows} == set(ops) - set(refused) - missing, (dtype, rows)

lines = open(folder + "/some.txt").read().splitlines()
title = next(line for line in lines if line.startswith("op ") and line.endswith("tile"))
table = lines[lines.index(title) + 1:][:9]
assert [line.split()[0] for line in table] == ["gating"] * 3 + ["sum_reduce"] * 3 + ["experts"] * 3, table
for line in table:
    assert line[title.index("tile"):].startswith("cpu.") and line[title.index("tile") - 1] == " ", line
    assert re.match(r"[\d.]+ ", line[title.index(" us") + 2 - 1:][:1] + " "), line
EOF

[ "$failures" -eq 0 ] || exit 1
echo "bench: all passed"
