# SPDX-License-Identifier: Apache-2.0
"""The origin's test of moe_align_block_size (SGLang, vLLM) against this plugin's table: 4096 tokens, 64 experts, top-k 2, block 128.
Every property that those projects rely on is checked by plain Python, then the call is timed.

    python3 tests/bench/origin_align.py [libmoe_plugin.so]

Needs a GPU and its driver, nothing else. `call` is a call on a cold cache between two events, as Triton's do_bench has it; `graph` is
one of 20 dependent calls of a graph.
"""
import ctypes
import random
import sys
from array import array

from cuda_host import CudaPlugin, Gpu, constant, default_plugin, get, make

TOKENS, EXPERTS, TOP_K, BLOCK = 4096, 64, 2, 128


def check(ids, sorted_ids, expert_ids, post_pad):
    """Nothing, or a sentence."""
    num_routes = len(ids)
    by_expert = [[route for route in range(num_routes) if ids[route] == expert] for expert in range(EXPERTS)]
    wanted_sorted, wanted_experts = [], []
    for expert, routes in enumerate(by_expert):
        num_blocks = -(-len(routes) // BLOCK)
        wanted_sorted += routes + [num_routes] * (num_blocks * BLOCK - len(routes))
        wanted_experts += [expert] * num_blocks
    if post_pad != len(wanted_sorted):
        return f"num_tokens_post_pad is {post_pad}, not {len(wanted_sorted)}"
    if list(sorted_ids[:post_pad]) != wanted_sorted:
        return "sorted_ids are not the routes by expert, in order, padded by the number of routes"
    if any(route != num_routes for route in sorted_ids[post_pad:]):
        return "the tail of sorted_ids is not the number of routes"
    if list(expert_ids[:post_pad // BLOCK]) != wanted_experts or any(e != -1 for e in expert_ids[post_pad // BLOCK:]):
        return "expert_ids are not the experts of the blocks, then -1"
    return None


def main():
    plugin = CudaPlugin(sys.argv[1] if len(sys.argv) > 1 else default_plugin())
    gpu = Gpu()
    generator = random.Random(0)
    ids = array("i", [expert for _ in range(TOKENS) for expert in generator.sample(range(EXPERTS), TOP_K)])
    sorted_capacity, expert_capacity = ctypes.c_int64(), ctypes.c_int64()
    plugin.plugin.align_capacity(ctypes.c_int64(len(ids)), EXPERTS, BLOCK, constant("MOE_FILTER_DROP"),
                                 ctypes.byref(sorted_capacity), ctypes.byref(expert_capacity))
    plan = plugin.plan("MOE_OP_ALIGN_BLOCK_SIZE", num_experts=EXPERTS, top_k=TOP_K, max_tokens=TOKENS, hidden=4096,
                       tokens__dtype=constant("MOE_DTYPE_FP16"))
    info = make("moe_plan_info")
    plugin.plugin.plan_info(plan, info)
    outputs = {"sorted_ids": sorted_capacity.value, "expert_ids": expert_capacity.value, "num_tokens_post_pad": 1}
    device = {name: gpu.alloc(4 * count) for name, count in outputs.items()}
    workspace_bytes = get(info, "moe_plan_info", "workspace_bytes")
    args = make("moe_align_args", call__num_tokens=TOKENS, call__stream=gpu.stream, topk_ids=gpu.send(ids.tobytes()),
                call__workspace=gpu.alloc(workspace_bytes), call__workspace_bytes=workspace_bytes, block_size=BLOCK,
                sorted_capacity=sorted_capacity.value, expert_capacity=expert_capacity.value, **device)

    def work():
        plugin.plugin.align_block_size(plan, args)

    work()
    sorted_ids, expert_ids, post_pad = (array("i", gpu.fetch(device[name], 4 * count)) for name, count in outputs.items())
    problem = check(ids, sorted_ids, expert_ids, post_pad[0])
    if problem:
        sys.exit(f"wrong: {problem}")
    print(f"{TOKENS} tokens, {EXPERTS} experts, top {TOP_K}, block {BLOCK}: right; {post_pad[0]} entries; call "
          f"{gpu.time_call(work):.1f} us, graph {gpu.time_graph(work):.1f} us, {plugin.tile(plan, 'MOE_OP_ALIGN_BLOCK_SIZE', TOKENS)}")


if __name__ == "__main__":
    main()
