# SPDX-License-Identifier: Apache-2.0
"""Every source file names its license, stays readable in length, and leaves nothing open."""

import re

from source_tree import C_SUFFIXES, files, relative, report, source_root

MAX_LINES = 600
MAX_COLUMNS = 100  # of C; clang-format sees to code, not to comments
# documents every member of the contract; its frozen copy; a table with a row per model family
LONG_BY_DESIGN = ("abi/moe_plugin.h", "tests/abi/matrix/moe_plugin_0_1.h", "src/cli/families.def")
SUFFIXES = C_SUFFIXES + (".def", ".py", ".sh", ".cmake", ".map", ".in")
# Written apart, so that the check does not find itself.
LEFT_OPEN = re.compile("|".join(("TO" + "DO", "FIX" + "ME", r"\bX" + r"XX\b", "must " + "match", "keep in " + "sync")))


def problems(root):
    found = []
    for path in files(root, SUFFIXES):
        name = relative(root, path)
        lines = path.read_text(encoding="utf-8").split("\n")
        if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:3]) and path.suffix != ".in":
            found.append(f"{name}:1: the SPDX line is missing")
        if len(lines) - 1 > MAX_LINES and name not in LONG_BY_DESIGN:
            found.append(f"{name}: {len(lines) - 1} lines; at most {MAX_LINES}")
        for number, line in enumerate(lines, 1):
            if path.suffix in C_SUFFIXES and len(line) > MAX_COLUMNS:
                found.append(f"{name}:{number}: {len(line)} columns; at most {MAX_COLUMNS}")
            match = LEFT_OPEN.search(line)
            if match:
                found.append(f"{name}:{number}: \"{match.group()}\" leaves something open")
    return found


if __name__ == "__main__":
    report(problems(source_root()), "sources")
