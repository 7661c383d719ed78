#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What torch takes for a layer's two GEMMs in the same run, for `gpu_layer bench` to be held against.

`dense`: a layer of R = tokens x k rows does what R x 2I x H and R x H x I do when all rows meet one expert: torch.matmul.
`grouped`: torch's grouped_mm, rows in the order of their experts, uniform routing without repetition inside a token; no gather,
no activation and no combine (torch._grouped_mm; the same rows each time, and each call allocates its output). In CUDA graphs under sustained clocks, random data, weights in turn beyond the L2; the median of 11
replays. Needs torch and a GPU. Writes a JSON list that layer_report.py takes beside the benchmark's own.

usage: dense_peer.py FILE.json
"""
import json
import sys
import time

MODELS = [("Mixtral-8x7B", 8, 2, 4096, 14336), ("Qwen3-30B-A3B", 128, 8, 2048, 768)]
TOKENS = [1024, 4096, 8192]
NUM_REPLAYS = 11
ROTATION_BYTES = 256 << 20


def draw(torch, *shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def segment_ends(torch, tokens, experts, top_k):
    ids = torch.rand(tokens, experts, device="cuda").topk(top_k, dim=1).indices
    return torch.bincount(ids.flatten(), minlength=experts).cumsum(0).to(torch.int32)


def time_matmul(torch, rows, columns, depth):
    num_sets = min(8, ROTATION_BYTES // (2 * (rows * depth + columns * depth)) + 1)
    sets = [(draw(torch, rows, depth), draw(torch, columns, depth)) for _ in range(num_sets)]
    output = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
    return time_calls(torch, [lambda pair=pair: torch.matmul(pair[0], pair[1].t(), out=output) for pair in sets])


def time_grouped(torch, ends, rows, columns, depth):
    weight_bytes = 2 * len(ends) * columns * depth
    num_sets = min(8, ROTATION_BYTES // weight_bytes + 1)
    left = draw(torch, rows, depth)
    sets = [draw(torch, len(ends), columns, depth) for _ in range(num_sets)]
    return time_calls(torch, [lambda right=right: torch._grouped_mm(left, right.transpose(1, 2), offs=ends) for right in sets])


def time_calls(torch, calls):
    """Microseconds of one call, all of them being one replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    start = time.monotonic()
    while time.monotonic() - start < 0.2:
        graph.replay()
        torch.cuda.synchronize()
    samples = []
    for _ in range(NUM_REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(1000.0 * begin.elapsed_time(end) / len(calls))
    return sorted(samples)[NUM_REPLAYS // 2]


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    import torch
    results = []
    for name, experts, top_k, hidden, inter in MODELS:
        for tokens in TOKENS:
            rows = tokens * top_k
            ends = segment_ends(torch, tokens, experts, top_k)
            flops = 6.0 * rows * hidden * inter
            for kind in ("dense", "grouped"):
                first, second = [time_matmul(torch, rows, *shape) if kind == "dense" else time_grouped(torch, ends, rows, *shape)
                                 for shape in ((2 * inter, hidden), (hidden, inter))]
                results.append({"set": kind, "model": name, "tokens": tokens, "gemm1_us": first, "gemm2_us": second,
                                "us": first + second, "flops": flops})
                print("%-7s %-14s T %5d: %8.1f + %8.1f us, %.0f TFLOP/s" %
                      (kind, name, tokens, first, second, flops / (first + second) / 1e6), flush=True)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
