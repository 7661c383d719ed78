# SPDX-License-Identifier: Apache-2.0
"""C files look as .clang-format says. Versions of clang-format differ, so only the one of Debian 12 is asked."""

import re
import shutil
import subprocess
import sys

from source_tree import C_SUFFIXES, files, relative, report, source_root

MAJOR = "14"


def clang_format():
    """The program, or None."""
    for program in (f"clang-format-{MAJOR}", "clang-format"):
        if shutil.which(program):
            version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
            if re.search(rf"version {MAJOR}\.", version):
                return program
    return None


def problems(root, program):
    paths = files(root, C_SUFFIXES)
    checked = subprocess.run(
        [program, "--style=file", "--dry-run", "-Werror", "--ferror-limit=1"] + [str(path) for path in paths],
        capture_output=True, text=True, cwd=root)
    found = re.findall(r"^(.*?):(\d+):\d+: error: ", checked.stderr, re.MULTILINE)
    places = [f"{relative(root, root / path)}:{line}: run {program} -i on it" for path, line in found]
    if checked.returncode != 0 and not places:
        places.append(checked.stderr.strip())
    return places


if __name__ == "__main__":
    PROGRAM = clang_format()
    if PROGRAM is None:
        print(f"clang-format {MAJOR} is not installed")
        sys.exit(77)
    report(problems(source_root(), PROGRAM), "format")
