# SPDX-License-Identifier: Apache-2.0
"""A host in Python: opens the plugin, runs one small MoE layer, compares with plain loops. host.py [libmoe_plugin.so]"""
import ctypes
import math
import sys

from moe_abi import ROOT, Plugin, constant, get, make

T, E, K, H, I = 3, 4, 2, 8, 6  # tokens, experts, top_k, hidden, inter


def floats(count, phase):
    return (ctypes.c_float * count)(*(math.sin(phase + 1.7 * i) for i in range(count)))


def matrix(name, base, rows, columns):
    return {f"{name}__base": base, f"{name}__expert_stride": rows * columns, f"{name}__row_stride": columns, f"{name}__col_stride": 1}


def expected(t, h):
    total = 0.0
    for e, weight in zip(ids[t * K:t * K + K], route_weights[t * K:t * K + K]):
        for i in range(I):
            g, u = (sum(w[(e * I + i) * H + c] * tokens[t * H + c] for c in range(H)) for w in (gate, up))
            total += weight * g / (1 + math.exp(-g)) * u * down[(e * H + h) * I + i]
    return total


tokens, gate, up, down = floats(T * H, 0.1), floats(E * I * H, 0.2), floats(E * I * H, 0.3), floats(E * H * I, 0.4)
ids, route_weights = (ctypes.c_int32 * (T * K))(2, 0, 1, 3, 3, 1), (ctypes.c_float * (T * K))(0.75, 0.25, 0.5, 0.5, 1, 0)
output, context, weights, plan = (ctypes.c_float * (T * H))(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
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
workspace_bytes = get(info, "moe_plan_info", "workspace_bytes")
workspace = ctypes.create_string_buffer(workspace_bytes + 4096)
plugin.layer(plan, make("moe_layer_args", call__num_tokens=T, call__workspace_bytes=workspace_bytes,
                        call__workspace=(ctypes.addressof(workspace) + 4095) // 4096 * 4096, weights=weights,
                        tokens=tokens, topk_ids=ids, topk_weights=route_weights, output=output))
worst = max(abs(output[i] - expected(i // H, i % H)) for i in range(T * H))
print(f"{', '.join(f'{value:.6f}' for value in output[:4])} ...; largest error {worst:.1e}")
plugin.plan_destroy(plan)
plugin.weights_destroy(weights)
plugin.context_destroy(context)
sys.exit(0 if worst < 1e-5 else 1)
