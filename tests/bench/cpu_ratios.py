# SPDX-License-Identifier: Apache-2.0
"""Every share of a limit that the CPU backend is held to, on Qwen3-30B-A3B's layer, in under three minutes.

    python3 tests/bench/cpu_ratios.py [--moectl build/bin/moectl] [--threads N] [--plugin SO] [--min-time MS] [--peers PYTHON]

One line each: what is measured, its aim, and its share of the limit's best tenth, of the limit's median, both of the same run, and
paired: of the limit measured right before and after, the median over rounds. On a machine whose rates wander the last one says most; the
exit status is that of the first, 1 where one falls short.
--peers: a Python with torch and transformers; cpu_peers.py runs after, with the same moectl and threads.
"""
import argparse
import json
import os
import subprocess
import sys

# (label, --dtype, --op, --tokens, aim)
CASES = [
    ("layer, bf16", "bf16", "layer", (1, 16, 128, 512), {1: 0.75, 512: 0.50}),
    ("layer, fp8 (W8A8)", "fp8", "layer", (1, 512), {1: 0.75, 512: 0.50}),
    ("layer, fp8 weight-only", "fp8-weights", "layer", (1, 512), {1: 0.75, 512: 0.50}),
    ("pre_reorder", "bf16", "pre_reorder", (512,), {512: 0.75}),
    ("activation", "bf16", "activation", (512,), {512: 0.75}),
    ("post_reorder", "bf16", "post_reorder", (512,), {512: 0.75}),
    ("quantize, 1x128", "bf16", "quantize", (512,), {}),
]


LIMITS = {"read": "read_gb_per_s", "copy": "copy_gb_per_s", "fma": "fma_gflop_per_s"}


def bench(options, dtype, ops, tokens):
    command = [options.moectl, "bench", "--backend", "cpu", "--dtype", dtype, "--op", ops, "--tokens", ",".join(map(str, tokens)),
               "--threads", str(options.threads), "--min-time", str(options.min_time), "--json"]
    if options.plugin:
        command += ["--plugin", options.plugin]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moectl", default="build/bin/moectl")
    parser.add_argument("--plugin")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--min-time", type=int, default=300)
    parser.add_argument("--peers", metavar="PYTHON")
    options = parser.parse_args()
    failed = False
    for label, dtype, op, tokens, aims in CASES:
        document = bench(options, dtype, op, tokens)
        for result in document["results"]:
            key = LIMITS[result["limit"]]
            best_tenth, median = document["limits"][key + "_p90"], document["limits"][key]
            best, aim = result["ratio"], aims.get(result["num_tokens"])
            verdict = "" if aim is None else f"aim {100 * aim:.0f} %: {'reached' if best >= aim else 'not reached'}"
            failed |= aim is not None and best < aim
            print(f"{label:24} T {result['num_tokens']:<4} {result['us']:10.0f} us  {100 * best:5.1f} % of {result['limit']:4} "
                  f"({100 * best * best_tenth / median:5.1f} % of its median, {100 * result['paired_ratio']:5.1f} % paired)  {verdict}", flush=True)
    if options.peers:
        peers = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cpu_peers.py")
        threads = ["--threads", str(options.threads)] if options.threads else []
        subprocess.run([options.peers, peers, "--moectl", options.moectl] + threads, check=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
