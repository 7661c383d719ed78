# SPDX-License-Identifier: Apache-2.0
# ctest labels: serial
# ctest timeout: 900
"""clang-tidy over everything that goes into the plugin and moectl, as .clang-tidy says. Arguments: files to look at instead."""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from source_tree import report, source_root

FOLDERS = ("plugin", "src", "kernels")


def sources(root, build_dir):
    """The compiled C files of FOLDERS, each once, largest first so that no worker ends on a long one."""
    commands = json.loads((build_dir / "compile_commands.json").read_text(encoding="utf-8"))
    paths = {Path(command["file"]) for command in commands}
    wanted = [path for path in paths if any((root / folder) in path.parents for folder in FOLDERS)]
    return sorted(wanted, key=lambda path: (-path.stat().st_size, path))


def problems_in(path, build_dir):
    # The notes about suppressed warnings go to stderr; gcc's flags that clang does not know are no finding.
    checked = subprocess.run(
        ["clang-tidy", "-p", str(build_dir), "--quiet", "--extra-arg=-Wno-unknown-warning-option", str(path)],
        capture_output=True, text=True)
    found = [line for line in checked.stdout.splitlines() if re.search(r": (warning|error): ", line)]
    if checked.returncode != 0 and not found:
        found.append(f"{path}: clang-tidy ended with {checked.returncode}: {checked.stderr.strip()[-400:]}")
    return found


if __name__ == "__main__":
    if not shutil.which("clang-tidy"):
        print("clang-tidy is not installed")
        sys.exit(77)
    ROOT, BUILD_DIR = source_root(), Path(os.environ["MOE_BUILD_DIR"])
    PATHS = [Path(argument).resolve() for argument in sys.argv[1:]] or sources(ROOT, BUILD_DIR)
    if not PATHS:
        report([f"{BUILD_DIR}/compile_commands.json names no file of {', '.join(FOLDERS)}"], "clang-tidy")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        RESULTS = list(pool.map(lambda path: problems_in(path, BUILD_DIR), PATHS))
    print(f"{len(PATHS)} files")
    report(sorted({line for result in RESULTS for line in result}), "clang-tidy")
