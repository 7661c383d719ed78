#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the tables of docs/performance.md from files that `moectl bench --json` wrote, one per repetition.

For each operation and number of tokens the row is that of the repetition with the median ratio; the last column is the
range of the ratio over all repetitions, so that a noisy machine shows.

usage: performance_table.py FILE...
"""
import json
import sys


def print_limits(documents):
    print("| run | read GB/s | copy GB/s (in + out) | fma GFLOP/s |")
    print("|--:|--:|--:|--:|")
    for number, document in enumerate(documents, 1):
        limits = document["limits"]
        cells = ["%.1f (%.1f, %.1f)" % (limits[key + "_p90"], limits[key + "_p10"], limits[key])
                 for key in ("read_gb_per_s", "copy_gb_per_s", "fma_gflop_per_s")]
        print("| %d | %s |" % (number, " | ".join(cells)))


def print_results(documents):
    print("| op | T | us | 10th..90th | GB/s | GFLOP/s | limit | ratio | ratio of all runs | tile |")
    print("|---|--:|--:|--:|--:|--:|---|--:|--:|---|")
    for index in range(len(documents[0]["results"])):
        repetitions = sorted((document["results"][index] for document in documents), key=lambda result: result["ratio"])
        result = repetitions[len(repetitions) // 2]
        assert all((other["op"], other["num_tokens"]) == (result["op"], result["num_tokens"]) for other in repetitions)
        print("| %s | %d | %.1f | %.1f..%.1f | %.1f | %s | %s | %.0f %% | %.0f..%.0f %% | %s |" % (
            result["op"], result["num_tokens"], result["us"], result["us_p10"], result["us_p90"], result["gb_per_s"],
            "%.1f" % result["gflop_per_s"] if result["flops"] else "-", result["limit"], 100 * result["ratio"],
            100 * repetitions[0]["ratio"], 100 * repetitions[-1]["ratio"], result["tile"]))


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    documents = [json.load(open(path, encoding="utf-8")) for path in sys.argv[1:]]
    plugin, device = documents[0]["plugin"], documents[0]["device"]
    print("%s %s (%s), kernels %s, %s %s, %d threads\n" % (
        plugin["name"], plugin["version"], plugin["source_id"], plugin["kernel_set_id"], device["name"], device["isa"],
        device["num_threads"]))
    print_limits(documents)
    print()
    print_results(documents)


if __name__ == "__main__":
    main()
