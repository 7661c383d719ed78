# SPDX-License-Identifier: Apache-2.0
"""The built plugin exports moe_plugin_init and nothing else, needs libc, libm and the dynamic linker at most, and is not too large."""

import os
import re
import subprocess
from pathlib import Path

from source_tree import report

EXPORTED = ["moe_plugin_init"]
MAX_BYTES = 25_000_000  # with the kernels of all architectures
NEEDED = re.compile(r"libc\.so\.6|libm\.so\.6|ld-linux[\w.-]*\.so\.\d+")


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def problems(plugin):
    found = []
    num_bytes = os.stat(plugin).st_size
    if num_bytes > MAX_BYTES:
        found.append(f"has {num_bytes} bytes; at most {MAX_BYTES} are allowed")
    symbols = [line.split()[-1].split("@")[0] for line in output_of("nm", "-D", "--defined-only", plugin).splitlines()]
    if symbols != EXPORTED:
        found.append(f"exports {symbols}; only {EXPORTED} may be")
    dynamic = output_of("readelf", "-W", "-d", plugin)
    for library in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
        if not NEEDED.fullmatch(library):
            found.append(f"needs {library}; only libc, libm and the dynamic linker may be")
    for tag in ("RPATH", "RUNPATH", "TEXTREL"):
        if f"({tag})" in dynamic:
            found.append(f"has {tag}")
    if not re.search(r"BIND_NOW|FLAGS_1.*NOW", dynamic):
        found.append("resolves symbols lazily; it is linked with -z now")
    if "NODELETE" in dynamic:
        found.append("cannot be unloaded (NODELETE)")
    segments = output_of("readelf", "-W", "-l", plugin)
    if "GNU_RELRO" not in segments:
        found.append("has no read-only relocations; it is linked with -z relro")
    if re.search(r"GNU_STACK.*RWE", segments):
        found.append("asks for an executable stack")
    if "Build ID" not in output_of("readelf", "-W", "-n", plugin):
        found.append("has no build id")
    return [f"{Path(plugin).name}: {problem}" for problem in found]


if __name__ == "__main__":
    report(problems(str(Path(os.environ["MOE_BUILD_DIR"]) / "lib" / "libmoe_plugin.so")), "plugin")
