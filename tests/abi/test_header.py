# SPDX-License-Identifier: Apache-2.0
"""moe_plugin.h compiles without a warning in every language version that hosts are written in, and twice in one unit."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

C_COMPILERS = ("gcc", "clang")
CXX_COMPILERS = ("g++", "clang++")
C_STANDARDS = ("c89", "c99", "c11", "c17")
CXX_STANDARDS = ("c++98", "c++11", "c++14", "c++17", "c++20")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wpadded", "-Wundef", "-Wshadow", "-Wconversion", "-Werror")
VARIANTS = ((), ("-fshort-enums",))

SKIPPED = 77


def compile_unit(compiler, language, standard, variant, unit, include_dir, output):
    command = [compiler, "-x", language, f"-std={standard}", *WARNINGS, *variant, "-I", include_dir,
               "-c", unit, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and not done.stderr:
        return None
    return f"{' '.join(command)}\n{done.stderr}"


def main():
    root = Path(os.environ["MOE_SOURCE_DIR"])
    unit = str(root / "tests" / "abi" / "header_unit.c")
    num_compiled = 0
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "unit.o")
        for language, compilers, standards in (("c", C_COMPILERS, C_STANDARDS), ("c++", CXX_COMPILERS, CXX_STANDARDS)):
            for compiler in compilers:
                if shutil.which(compiler) is None:
                    print(f"{compiler}: missing, skipped")
                    continue
                for standard in standards:
                    for variant in VARIANTS:
                        failure = compile_unit(compiler, language, standard, variant, unit, str(root / "abi"), output)
                        num_compiled += 1
                        if failure:
                            failures.append(failure)
                print(f"{compiler}: {', '.join(standards)}")
    print("\n".join(failures))
    print(f"header: {num_compiled} compilations, {len(failures)} failed")
    if num_compiled == 0:
        return SKIPPED
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
