# SPDX-License-Identifier: Apache-2.0
"""The layer on a CPU beside transformers' experts (torch): routed experts with given ids and weights, bf16, Qwen3-30B-A3B's shape,
one layer, in both of transformers' implementations for CPUs (eager, grouped_mm).

    python3 -m venv VENV && VENV/bin/pip install torch transformers
    VENV/bin/python tests/bench/cpu_peers.py [--moectl build/bin/moectl] [--threads N] [--shape 128,8,2048,768] [--tokens 1,16,128,512]

The same number of threads for all; only the ratios within one run mean anything. moectl rotates through copies of the weights;
torch gets as many copies, so that neither finds weights in a cache. Routing is uniform and drawn anew for each call.
Results of the three are compared with each other on the same weights only in the plugin's tests, not here.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

MIN_SECONDS, MIN_CALLS = 1.0, 5


def make_experts(shape, implementation):
    num_experts, top_k, hidden, inter = shape
    config = Qwen3MoeConfig(hidden_size=hidden, moe_intermediate_size=inter, num_experts=num_experts, num_experts_per_tok=top_k)
    config._experts_implementation = implementation
    experts = Qwen3MoeExperts(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return experts


def draw(num_tokens, shape):
    num_experts, top_k, hidden, _ = shape
    ids = torch.rand(num_tokens, num_experts).argsort(dim=1)[:, :top_k]
    return torch.randn(num_tokens, hidden, dtype=torch.bfloat16), ids, torch.rand(num_tokens, top_k).softmax(dim=1).to(torch.bfloat16)


def time_experts(copies, num_tokens, shape):
    """Median microseconds of a call."""
    times = []
    with torch.inference_mode():
        started = time.perf_counter()
        while len(times) < MIN_CALLS + 1 or time.perf_counter() - started < MIN_SECONDS:
            tokens, ids, weights = draw(num_tokens, shape)
            begin = time.perf_counter()
            copies[len(times) % len(copies)](tokens, ids, weights)
            times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times[1:])


def time_moectl(options, shape, tokens):
    command = [options.moectl, "bench", "--backend", "cpu", "--op", "layer", "--shape", ",".join(map(str, shape)),
               "--tokens", ",".join(map(str, tokens)), "--threads", str(options.threads), "--dtype", "bf16", "--json"]
    document = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {result["num_tokens"]: result for result in document["results"]}, document


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moectl", default="build/bin/moectl")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape", default="128,8,2048,768", help="experts, top_k, hidden, inter")
    parser.add_argument("--tokens", default="1,16,128,512")
    options = parser.parse_args()
    shape, tokens = (tuple(int(part) for part in text.split(",")) for text in (options.shape, options.tokens))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ours, document = time_moectl(options, shape, tokens)
    peers = {}
    for implementation in ("eager", "grouped_mm"):
        copies = [make_experts(shape, implementation) for _ in range(2)]
        peers[implementation] = [time_experts(copies, num_tokens, shape) for num_tokens in tokens]
        del copies
    print(f"{document['device']['name']}, {options.threads} threads, torch {torch.__version__}; E, k, H, I = {options.shape}, bf16")
    print(f"{'T':>5} {'moectl us':>12} {'of limit':>9} {'eager us':>12} {'x':>6} {'grouped_mm us':>14} {'x':>6}")
    for i, num_tokens in enumerate(tokens):
        us, eager, grouped = ours[num_tokens]["us"], peers["eager"][i], peers["grouped_mm"][i]
        print(f"{num_tokens:5} {us:12.0f} {100.0 * ours[num_tokens]['ratio']:7.0f} % {eager:12.0f} {eager / us:6.1f} {grouped:14.0f} "
              f"{grouped / us:6.1f}")


if __name__ == "__main__":
    main()
