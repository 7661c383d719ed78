# SPDX-License-Identifier: Apache-2.0
"""A GPU for benchmarks in Python with ctypes alone: libcuda's memory, stream, graphs and events, and the plugin's CUDA context."""
import ctypes
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))
from moe_abi import ROOT, Plugin, constant, get, make  # noqa: E402

FLUSH_BYTES = 256 << 20  # written before each sample: more than a cache holds
NODES = 20


class Gpu:
    """The primary context of device 0; what it allocates lives as long as the process."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        device, context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 1)
        self.events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self.events:
            self.call("cuEventCreate", ctypes.byref(event), 0)
        self.flush = self.alloc(FLUSH_BYTES)

    def call(self, name, *args):
        result = getattr(self.cuda, name)(*args)
        if result != 0:
            raise RuntimeError(f"{name}: CUDA error {result}")

    def alloc(self, num_bytes):
        memory = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(max(num_bytes, 1)))
        return memory.value

    def free(self, memory):
        self.call("cuMemFree_v2", ctypes.c_uint64(memory))

    def send(self, array):
        """A ctypes array, an array.array or bytes; its address on the device."""
        data = bytes(array)
        memory = self.alloc(len(data))
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(memory), data, ctypes.c_size_t(len(data)))
        return memory

    def fetch(self, memory, num_bytes):
        data = ctypes.create_string_buffer(num_bytes)
        self.call("cuStreamSynchronize", self.stream)
        self.call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(memory), ctypes.c_size_t(num_bytes))
        return data.raw

    def _sample(self, work):
        elapsed = ctypes.c_float()
        self.call("cuMemsetD8Async", ctypes.c_uint64(self.flush), ctypes.c_ubyte(1), ctypes.c_size_t(FLUSH_BYTES), self.stream)
        self.call("cuEventRecord", self.events[0], self.stream)
        work()
        self.call("cuEventRecord", self.events[1], self.stream)
        self.call("cuEventSynchronize", self.events[1])
        self.call("cuEventElapsedTime", ctypes.byref(elapsed), *self.events)
        return 1000.0 * elapsed.value

    def time_call(self, work, samples=50):
        """Median microseconds of one call between two events on a cold cache, as Triton's do_bench measures it."""
        return statistics.median([self._sample(work) for _ in range(samples + 3)][3:])

    def time_graph(self, work, samples=21):
        """Median microseconds of one of NODES dependent calls in a captured graph."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, 0)
        for _ in range(NODES):
            work()
        self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        times = [self._sample(lambda: self.call("cuGraphLaunch", executable, self.stream)) for _ in range(samples + 3)]
        self.call("cuGraphExecDestroy", executable)
        self.call("cuGraphDestroy", graph)
        return statistics.median(times[3:]) / NODES


class CudaPlugin:
    """The plugin with a context on the GPU, by the dispatch rules of `config` (YAML text) on top of the built-in ones."""

    def __init__(self, path, config=None):
        self.plugin = Plugin(path)
        self.context = ctypes.c_void_p()
        text = ctypes.create_string_buffer((config or "").encode())
        source = make("moe_config_source", path=ctypes.create_string_buffer(b"benchmark"), text=text, text_bytes=len(text) - 1)
        options = make("moe_context_options", backend=constant("MOE_BACKEND_CUDA"),
                       **({"config_sources": source, "num_config_sources": 1} if config else {}))
        self.plugin.context_create(self.plugin.host, options, ctypes.byref(self.context))

    def plan(self, op, **problem):
        plan = ctypes.c_void_p()
        options = make("moe_plan_options", ops=1 << constant(op))
        self.plugin.plan_create(self.context, make("moe_problem", **problem), options, ctypes.byref(plan))
        return plan

    def tile(self, plan, op, num_tokens):
        choice = make("moe_choice")
        self.plugin.plan_op_info(plan, constant(op), ctypes.c_int64(num_tokens), choice)
        return ctypes.string_at(get(choice, "moe_choice", "tile_name")).decode()


def default_plugin():
    return str(ROOT / "build" / "lib" / "libmoe_plugin.so")
