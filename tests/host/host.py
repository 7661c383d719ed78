# SPDX-License-Identifier: Apache-2.0
"""A host in Python: opens the plugin and runs one MoE layer, which tiny_layer.py holds and checks. host.py [libmoe_plugin.so]"""
import ctypes
import sys

from moe_abi import ROOT, Plugin, constant, get, make, matrix
from tiny_layer import E, H, I, K, T, down, gate, ids, largest_error, output, route_weights, tokens, up

context, weights, plan = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
fp32 = constant("MOE_DTYPE_FP32")
problem = make("moe_problem", num_experts=E, top_k=K, hidden=H, inter=I, max_tokens=T, tokens__dtype=fp32,
               activation=constant("MOE_ACTIVATION_SILU"), gate_up__dtype=fp32, down__dtype=fp32)
desc = make("moe_weights_desc", **matrix("gate", gate, I, H), **matrix("up", up, I, H), **matrix("down", down, H, I))
info = make("moe_plan_info")

plugin = Plugin(sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "build" / "lib" / "libmoe_plugin.so"))
plugin.context_create(plugin.host, None, ctypes.byref(context))
plugin.weights_bind(context, problem, desc, None, ctypes.c_uint64(0), ctypes.byref(weights))
plugin.plan_create(context, problem, None, ctypes.byref(plan))
plugin.plan_info(plan, info)
workspace_bytes, alignment = (get(info, "moe_plan_info", name) for name in ("workspace_bytes", "workspace_alignment"))
workspace = ctypes.create_string_buffer(workspace_bytes + alignment)
plugin.layer(plan, make("moe_layer_args", call__num_tokens=T, call__workspace_bytes=workspace_bytes,
                        call__workspace=-(-ctypes.addressof(workspace) // alignment) * alignment, weights=weights,
                        tokens=tokens, topk_ids=ids, topk_weights=route_weights, output=output))
print(f"{', '.join(f'{value:.6f}' for value in output[:4])} ...; largest error {largest_error():.1e}")
plugin.plan_destroy(plan)
plugin.weights_destroy(weights)
plugin.context_destroy(context)
sys.exit(0 if largest_error() < 1e-5 else 1)
