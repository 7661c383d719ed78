# SPDX-License-Identifier: Apache-2.0
"""What the checks of this folder share: which files the project consists of, and C text without comments and strings."""

import os
import re
import sys
from pathlib import Path

SOURCE_FOLDERS = ("abi", "plugin", "src", "kernels", "tests")
C_SUFFIXES = (".c", ".h", ".cu", ".cuh")
# Inputs of tests, malformed on purpose or not ours to format.
FIXTURE_FOLDERS = ("tests/data", "tests/config")

_COMMENT_OR_LITERAL = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)


def source_root():
    """The tree to check: the one this file belongs to, unless the caller says otherwise."""
    return Path(os.environ.get("MOE_SOURCE_DIR", Path(__file__).resolve().parents[2]))


def relative(root, path):
    return path.relative_to(root).as_posix()


def files(root, suffixes, folders=SOURCE_FOLDERS):
    """All files with one of the suffixes under the folders, sorted. C programs under a fixture folder count, its data does not."""
    found = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            in_fixture = any(relative(root, path).startswith(fixture + "/") for fixture in FIXTURE_FOLDERS)
            if path.is_file() and path.suffix in suffixes and not (in_fixture and path.suffix not in C_SUFFIXES):
                found.append(path)
    return found


def without_comments_and_literals(text):
    """C text in which comments and literals are blank; line numbers stay."""
    return _COMMENT_OR_LITERAL.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def report(problems, what):
    """Prints the problems and ends the program: 0 without any, 1 with."""
    for problem in problems:
        print(problem)
    print(f"{what}: {len(problems)} problem(s)")
    sys.exit(1 if problems else 0)
