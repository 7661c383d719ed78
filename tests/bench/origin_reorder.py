# SPDX-License-Identifier: Apache-2.0
"""The origin's benchmark of pre_reorder (SGLang, benchmark_ep_pre_reorder_triton.py) against this plugin's table: batch sizes 64 to
1024 and 4096, k 2, 4, 8, hidden 4096 and 7168, fp16, block size 512. Destinations are a true permutation of the rows; the
origin draws them with repetitions, which writes fewer rows than it counts.

    python3 tests/bench/origin_reorder.py [libmoe_plugin.so]

Needs a GPU and its driver, nothing else. With torch, results are checked element by element and torch's own indexing is timed; with
Triton too, a kernel of the origin's shape (one program per token, blocks of 512) is timed beside it.
`call` is a call on a cold cache between two events, as Triton's do_bench has it; `graph` is one of 20 dependent calls of a graph.
Those repeat one set of buffers, so what fits into the cache comes from there (gpu_bench rotates buffers; compare `call` with peers).
"""
import random
import sys
from array import array

from cuda_host import CudaPlugin, Gpu, constant, default_plugin, make

BLOCK = 512
BATCHES = (64, 128, 256, 512, 640, 768, 1024, 4096)
CONFIG = f"""schema: moe-dispatch/1
rules:
- name: the origin's block size
  match: {{backend: cuda}}
  buckets:
  - max_tokens: inf
    pre_reorder: {{BLOCK_SIZE: {BLOCK}}}
"""

try:
    import torch
    import triton
    import triton.language as tl
except ImportError:
    triton = None
try:
    import torch
except ImportError:
    torch = None

if triton is not None:
    @triton.jit
    def copy_rows(tokens, rows, destinations, top_k, hidden, block: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        for slot in range(top_k):
            row = tl.load(destinations + token * top_k + slot).to(tl.int64)
            for begin in tl.range(0, hidden, block):
                columns = begin + tl.arange(0, block)
                inside = columns < hidden
                values = tl.load(tokens + token * hidden + columns, mask=inside)
                tl.store(rows + row * hidden + columns, values, mask=inside)


def half_bits(generator, count):
    """Random fp16 numbers between 2^-5 and 2^2 of either sign."""
    return array("H", ((generator.getrandbits(11) & 0x3FF) | (generator.randrange(10, 17) << 10) | (generator.getrandbits(1) << 15)
                       for _ in range(count)))


def time_torch(gpu_time, tokens, destinations, rows, top_k):
    sources = torch.arange(destinations.numel(), device="cuda") // top_k
    order = torch.empty_like(sources)
    order[destinations.long()] = sources
    return gpu_time(lambda: torch.index_select(tokens, 0, order, out=rows))


def main():
    plugin = CudaPlugin(sys.argv[1] if len(sys.argv) > 1 else default_plugin(), CONFIG)
    gpu = Gpu()
    fp16 = constant("MOE_DTYPE_FP16")
    generator = random.Random(0)
    print(f"{'hidden':>6} {'k':>2} {'batch':>5} {'call us':>8} {'graph us':>8} {'TB/s':>6} {'torch us':>8} {'triton us':>9}  tile")
    for hidden in (4096, 7168):
        block = half_bits(generator, 64 * hidden)  # tokens repeat it: no kernel looks at one twice
        for top_k in (2, 4, 8):
            for batch in BATCHES:
                plan = plugin.plan("MOE_OP_PRE_REORDER", num_experts=256, top_k=top_k, hidden=hidden, max_tokens=batch,
                                   tokens__dtype=fp16)
                destinations = list(range(batch * top_k))
                generator.shuffle(destinations)
                tokens = (block * (batch // 64)).tobytes()
                device = {"tokens": gpu.send(tokens), "src2dst": gpu.send(array("i", destinations).tobytes()),
                          "rows": gpu.alloc(batch * top_k * hidden * 2)}
                args = make("moe_pre_reorder_args", call__num_tokens=batch, call__stream=gpu.stream, num_rows=batch * top_k,
                            **device)

                def work(plan=plan, args=args):
                    plugin.plugin.pre_reorder(plan, args)

                work()
                rows = gpu.fetch(device["rows"], batch * top_k * hidden * 2)
                for route in generator.sample(range(batch * top_k), 64):
                    row, token = destinations[route] * hidden * 2, route // top_k * hidden * 2
                    if rows[row:row + hidden * 2] != tokens[token:token + hidden * 2]:
                        sys.exit(f"row {destinations[route]} is not token {route // top_k}")
                call_us, graph_us = gpu.time_call(work), gpu.time_graph(work)
                others = ["-", "-"]
                if torch is not None and torch.cuda.is_available():
                    source = torch.frombuffer(bytearray(tokens), dtype=torch.float16).cuda().reshape(batch, hidden)
                    target = torch.tensor(destinations, dtype=torch.int32, device="cuda")
                    result = torch.empty(batch * top_k, hidden, dtype=torch.float16, device="cuda")
                    expected = torch.empty_like(result)
                    expected[target.long()] = source.repeat_interleave(top_k, 0)
                    got = torch.frombuffer(bytearray(rows), dtype=torch.float16).cuda().reshape(batch * top_k, hidden)
                    if not torch.equal(got, expected):
                        sys.exit("rows differ from torch's")
                    if triton is not None:
                        def bench(function):
                            return 1000.0 * triton.testing.do_bench(function, return_mode="median")
                        others[0] = f"{time_torch(bench, source, target, result, top_k):.1f}"
                        others[1] = f"{bench(lambda: copy_rows[(batch,)](source, result, target, top_k, hidden, BLOCK)):.1f}"
                tbps = batch * (top_k + 1) * hidden * 2 / graph_us / 1e6
                print(f"{hidden:6} {top_k:2} {batch:5} {call_us:8.1f} {graph_us:8.1f} {tbps:6.3f} {others[0]:>8} {others[1]:>9}  "
                      f"{plugin.tile(plan, 'MOE_OP_PRE_REORDER', batch)}", flush=True)
                for memory in device.values():
                    gpu.free(memory)
                plugin.plugin.plan_destroy(plan)


if __name__ == "__main__":
    main()
