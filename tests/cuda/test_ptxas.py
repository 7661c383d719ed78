# SPDX-License-Identifier: Apache-2.0
"""What ptxas says about the kernels of this build (build/cuda/<op>.ptxas.txt): nothing spills, no warp-group MMA is serialized,
and every row of the tile table has its kernel on every architecture that it is compiled for."""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from source_tree import report, source_root  # noqa: E402

# ptxas: wgmma instructions are serialized, and why. The build fails for the same codes.
SERIALIZED = re.findall(r"C\d{4}", re.search(r"set\(moe_ptxas_serialized ([^)]*)\)",
                                            (source_root() / "src/cmake/moe_cuda.cmake").read_text(encoding="utf-8")).group(1))
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
ROW = re.compile(r"^MOE_TILE_BLOCK\((\w+),\s*(\w+),\s*(\d+)\)", re.MULTILINE)
GEMM_ROW = re.compile(r"^MOE_TILE_GEMM\((\w+),\s*((?:\d+,\s*)+\d+)\)", re.MULTILINE)
KERNEL = re.compile(r"^MOE_KERNEL\((\w+),[^,]+,\s*MOE_BACKEND_CUDA,\s*\"(\w*)\",\s*(\d+),", re.MULTILINE)


def problems_in(name, text):
    """Of one report."""
    found = []
    entry = "?"
    for line in text.splitlines():
        match = ENTRY.search(line)
        if match:
            entry = f"{match.group(1)} ({match.group(2)})"
        match = SPILL.search(line)
        if match and any(int(count) != 0 for count in match.groups()):
            found.append(f"{name}: {entry}: {match.group()}")
        if any(code in line for code in SERIALIZED) or "warning" in line.lower():
            found.append(f"{name}: {entry}: {line.strip()}")
    return found


def missing(tiles, texts):
    """Kernels of the tile table that no report names."""
    compiled = {match.groups() for text in texts for match in ENTRY.finditer(text)}
    architectures = {architecture for _, architecture in compiled}
    needs = {kernel: (isa, int(sm)) for kernel, isa, sm in KERNEL.findall(tiles)}
    rows = [(kernel, f"moe_{op}_{kernel}_{size}") for op, kernel, size in ROW.findall(tiles)]
    rows += [(kernel, f"moe_GEMM_{kernel}_" + "_".join(re.findall(r"\d+", numbers))) for kernel, numbers in GEMM_ROW.findall(tiles)]
    found = []
    for kernel, symbol in rows:
        for architecture in sorted(architectures):
            isa, min_sm = needs.get(kernel, ("none", 0))  # kernels of a CPU: no architecture
            number = int(re.sub(r"\D", "", architecture))
            runs = number >= min_sm if isa == "" else architecture == isa
            if runs and (symbol, architecture) not in compiled:
                found.append(f"{symbol} was not compiled for {architecture}")
    return found


def self_check():
    """The patterns find what they are for."""
    bad = ("ptxas info    : Compiling entry function 'k' for 'sm_80'\n"
           "    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
           "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n")
    good = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    assert len(problems_in("x", bad)) == 2 and problems_in("x", good) == []
    tiles = 'MOE_KERNEL(A, "a", MOE_BACKEND_CUDA, "", 90, 1)\nMOE_TILE_BLOCK(OP, A, 64)\nMOE_TILE_BLOCK(OP, A, 32)\n'
    entry = "Compiling entry function 'moe_OP_A_64' for 'sm_90a'\nCompiling entry function 'other' for 'sm_80'\n"
    assert missing(tiles, [entry]) == ["moe_OP_A_32 was not compiled for sm_90a"]
    tiles = 'MOE_KERNEL(A, "a", MOE_BACKEND_CUDA, "sm_90a", 90, 1)\nMOE_TILE_GEMM(A, 8, 32,  64)\n'
    entry = "Compiling entry function 'x' for 'sm_90a'\nCompiling entry function 'x' for 'sm_100'\n"
    assert missing(tiles, [entry]) == ["moe_GEMM_A_8_32_64 was not compiled for sm_90a"]


if __name__ == "__main__":
    self_check()
    REPORTS = sorted((Path(os.environ["MOE_BUILD_DIR"]) / "cuda").glob("*.ptxas.txt"))
    TEXTS = [path.read_text(encoding="utf-8") for path in REPORTS]
    PROBLEMS = [problem for path, text in zip(REPORTS, TEXTS) for problem in problems_in(path.name, text)]
    PROBLEMS += missing((source_root() / "kernels" / "tiles.def").read_text(encoding="utf-8"), TEXTS)
    if sum(len(ENTRY.findall(text)) for text in TEXTS) == 0:
        PROBLEMS.append("no report names a kernel")
    report(PROBLEMS, f"ptxas, {len(REPORTS)} reports")
