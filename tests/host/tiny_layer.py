# SPDX-License-Identifier: Apache-2.0
"""The layer that host.py runs: its numbers, and the answer by plain loops."""
import ctypes
import math

T, E, K, H, I = 3, 4, 2, 8, 6  # tokens, experts, top_k, hidden, inter


def floats(count, phase):
    return (ctypes.c_float * count)(*(math.sin(phase + 1.7 * i) for i in range(count)))


tokens, gate, up, down = floats(T * H, 0.1), floats(E * I * H, 0.2), floats(E * I * H, 0.3), floats(E * H * I, 0.4)
ids, route_weights = (ctypes.c_int32 * (T * K))(2, 0, 1, 3, 3, 1), (ctypes.c_float * (T * K))(0.75, 0.25, 0.5, 0.5, 1, 0)
output = (ctypes.c_float * (T * H))()


def expected(t, h):
    total = 0.0
    for e, weight in zip(ids[t * K:t * K + K], route_weights[t * K:t * K + K]):
        for i in range(I):
            g, u = (sum(w[(e * I + i) * H + c] * tokens[t * H + c] for c in range(H)) for w in (gate, up))
            total += weight * g / (1 + math.exp(-g)) * u * down[(e * H + h) * I + i]
    return total


def largest_error():
    return max(abs(output[i] - expected(i // H, i % H)) for i in range(T * H))
