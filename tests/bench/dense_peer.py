#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""cuBLAS on dense matrices with the FLOPs of a layer's two grouped GEMMs, for `gpu_layer bench` to be held against.

A layer of R = tokens x k rows does what R x 2I x H and R x H x I do when all rows meet one expert. Times are of torch.matmul
in CUDA graphs under sustained clocks, random data, buffers in turn beyond the L2; the median of 11 replays. Needs torch and a
GPU. Writes a JSON list that layer_report.py takes beside the benchmark's own.

usage: dense_peer.py FILE.json
"""
import json
import sys
import time

MODELS = [("Mixtral-8x7B", 8, 2, 4096, 14336), ("Qwen3-30B-A3B", 128, 8, 2048, 768)]
TOKENS = [1024, 4096, 8192]
NUM_REPLAYS = 11
ROTATION_BYTES = 256 << 20


def time_matmul(torch, rows, columns, depth):
    num_sets = min(8, ROTATION_BYTES // (2 * (rows * depth + columns * depth)) + 1)
    sets = [(torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16),
             torch.randn(columns, depth, device="cuda", dtype=torch.bfloat16)) for _ in range(num_sets)]
    output = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for left, right in sets:
            torch.matmul(left, right.t(), out=output)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for left, right in sets:
            torch.matmul(left, right.t(), out=output)
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
        samples.append(1000.0 * begin.elapsed_time(end) / num_sets)
    return sorted(samples)[NUM_REPLAYS // 2]


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    import torch
    results = []
    for name, _, top_k, hidden, inter in MODELS:
        for tokens in TOKENS:
            rows = tokens * top_k
            first, second = time_matmul(torch, rows, 2 * inter, hidden), time_matmul(torch, rows, hidden, inter)
            flops = 6.0 * rows * hidden * inter
            results.append({"set": "dense", "model": name, "tokens": tokens, "gemm1_us": first, "gemm2_us": second,
                            "us": first + second, "flops": flops})
            print("%-14s T %5d: %8.1f + %8.1f us, %.0f TFLOP/s" % (name, tokens, first, second,
                                                                   flops / (first + second) / 1e6), flush=True)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
