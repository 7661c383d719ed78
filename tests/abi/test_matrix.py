# SPDX-License-Identifier: Apache-2.0
"""Hosts and plugins of ABI 0.1 and of a made-up 0.2, in all pairs.

While the major is 0, unequal minors refuse each other, on either side, with a sentence. Under the rule from 1.0 on (any minor)
all pairs work: members that the older side does not know are absent or zero, and refused when they are not.
"""

import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(os.environ.get("MOE_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
MATRIX = SOURCE / "tests" / "abi" / "matrix"
sys.path.insert(0, str(MATRIX))
from next_minor import next_minor  # noqa: E402

FLAGS = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", "-fvisibility=hidden"]
UNKNOWN_FIELD = 3
VERSION = 4
failures = []


def check(condition, what):
    if not condition:
        failures.append(what)


def constants(header):
    return re.findall(r"^#define (?:MOE_ABI_M\w+ \d+|MOE_ABI_LAYOUT_HASH .*)$", header, re.MULTILINE)


def build(folder):
    """The path of each (kind, minor, is_relaxed): built by the compiler of this build."""
    frozen = (MATRIX / "moe_plugin_0_1.h").read_text(encoding="utf-8")
    paths = {}
    for minor, text in ((1, frozen), (2, next_minor(frozen))):
        include = folder / str(minor)
        include.mkdir()
        (include / "moe_plugin.h").write_text(text, encoding="utf-8")
        for kind, is_relaxed in itertools.product(("host", "plugin"), (False, True)):
            path = folder / f"{kind}_{minor}_{'relaxed' if is_relaxed else 'strict'}"
            command = shlex.split(os.environ.get("CC", "cc")) + FLAGS + ["-I", str(include), "-I", str(MATRIX)]
            command += ["-DMATRIX_RELAXED"] if is_relaxed else []
            if kind == "plugin":
                command += ["-I", str(SOURCE / "src"), "-shared"]
                sources = [MATRIX / "stub_plugin.c", SOURCE / "src" / "structs.c", SOURCE / "src" / "status.c"]
            else:
                command += ["-D_GNU_SOURCE"]
                sources = [MATRIX / "stub_host.c"]
            command += ["-o", str(path)] + [str(source) for source in sources] + ["-ldl"]
            subprocess.run(command, check=True)
            paths[kind, minor, is_relaxed] = path
    return paths


def talk(paths, host, plugin, *words):
    """What a (minor, is_relaxed) host prints about a (minor, is_relaxed) plugin."""
    command = [str(paths[("host",) + host]), str(paths[("plugin",) + plugin]), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_frozen_header():
    """As long as the header has the version of the frozen one, the frozen one has its layout."""
    header = constants((SOURCE / "abi" / "moe_plugin.h").read_text(encoding="utf-8"))
    frozen = constants((MATRIX / "moe_plugin_0_1.h").read_text(encoding="utf-8"))
    check(len(frozen) == 3, f"version and hash of the frozen header: {frozen}")
    check(header[:2] != frozen[:2] or header == frozen, "moe_plugin_0_1.h has another layout hash than abi/moe_plugin.h: copy it anew")


def check_unequal_minors_refuse(paths):
    for host, plugin in itertools.product((1, 2), (1, 2)):
        for relaxed_host, relaxed_plugin in ((False, False), (True, False), (False, True)):
            out = talk(paths, (host, relaxed_host), (plugin, relaxed_plugin))
            what = f"0.{host} host, 0.{plugin} plugin, {relaxed_host}, {relaxed_plugin}: {out}"
            if host == plugin:
                check(out.startswith("sum_reduce: status 0, 3 7\n"), what)
                continue
            side = "the host" if relaxed_plugin else "the plugin"
            check(out.startswith(f"refused by {side}: "), what)
            check("0.1" in out and "0.2" in out, what)
            check(relaxed_plugin or f"status {VERSION}:" in out, what)


def check_any_minor_works(paths):
    sums = "sum_reduce: status 0, 3 7\n"
    expected = {
        (1, 1): sums,
        (1, 2): sums,
        (2, 1): sums + f"sum_reduce with next_mode: status {UNKNOWN_FIELD}, 0 0\nnext_call: not offered\n",
        (2, 2): sums + "sum_reduce with next_mode: status 0, -3 -7\nnext_call: 21\n",
    }
    for (host, plugin), wanted in expected.items():
        out = talk(paths, (host, True), (plugin, True))
        check(out == wanted, f"1.{host} host, 1.{plugin} plugin: {out}")
    out = talk(paths, (2, True), (2, True), "next_service")
    check("next_call: 40\n" in out, f"next_service to a plugin that knows it: {out}")
    out = talk(paths, (2, True), (1, True), "next_service")
    check(f"refused by the plugin: status {UNKNOWN_FIELD}: struct moe_host" in out, f"next_service to an older plugin: {out}")


def main():
    check_frozen_header()
    with tempfile.TemporaryDirectory(prefix="moe-matrix-") as folder:
        paths = build(pathlib.Path(folder))
        check_unequal_minors_refuse(paths)
        check_any_minor_works(paths)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print(f"matrix: {len(failures)} failure(s)")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
