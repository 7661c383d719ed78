# SPDX-License-Identifier: Apache-2.0
"""What the checks of this folder share: which files the project consists of, and C text without comments and strings."""

import os
import re
import sys
from pathlib import Path

SOURCE_FOLDERS = ("abi", "plugin", "src", "kernels", "tests")
C_SUFFIXES = (".c", ".h", ".cu", ".cuh")
FIXTURES = "tests/data/"  # inputs of tests, malformed on purpose or not ours to format

_COMMENT_OR_LITERAL = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)


def source_root():
    """The tree to check: the one this file belongs to, unless the caller says otherwise."""
    return Path(os.environ.get("MOE_SOURCE_DIR", Path(__file__).resolve().parents[2]))


def relative(root, path):
    return path.relative_to(root).as_posix()


def files(root, suffixes, folders=SOURCE_FOLDERS):
    """All files with one of the suffixes under the folders, sorted, without fixtures."""
    return [
        path
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in suffixes and path.is_file() and not relative(root, path).startswith(FIXTURES)
    ]


def without_comments_and_literals(text):
    """C text in which comments and literals are blank; line numbers stay."""
    return _COMMENT_OR_LITERAL.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def report(problems, what):
    """Prints the problems and ends the program: 0 without any, 1 with."""
    for problem in problems:
        print(problem)
    print(f"{what}: {len(problems)} problem(s)")
    sys.exit(1 if problems else 0)
