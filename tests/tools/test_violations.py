# SPDX-License-Identifier: Apache-2.0
"""Each check of this folder finds what it is there for, and is content with a tree that keeps the rules."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import test_calls
import test_format
import test_includes
import test_plugin_elf
import test_sources
from source_tree import source_root

SPDX = "/* SPDX-License-Identifier: Apache-2.0 */\n"
HEADERS = {
    "abi/moe_plugin.h": "#include <stdint.h>\n",
    "kernels/ops.h": '#include "moe_plugin.h"\n',
    "abi/moe_loader.h": '#include "moe_plugin.h"\n',
    "src/plan.h": '#include "ops.h"\n',
    "src/tree/tree.h": "#include <yaml.h>\n",
    "src/cli/args.h": '#include "moe_build_info.h"\n#include "moe_plugin.h"\n#include "tree.h"\n',
    "plugin/init.c": '#include "plan.h"\n',
    "tests/ref/ref.h": '#include "moe_plugin.h"\n',
    "tests/unit/test_plan.c": '#include "plan.h"\n#include "ref.h"\n',
}


class Tree(unittest.TestCase):
    def setUp(self):
        self.root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        for name, text in HEADERS.items():
            self.write(name, text)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SPDX + text, encoding="utf-8")

    def assert_one(self, problems, *words):
        self.assertEqual(len(problems), 1, problems)
        for word in words:
            self.assertIn(word, problems[0])


class Includes(Tree):
    def test_rules_kept(self):
        self.assertEqual(test_includes.problems(self.root), [])

    def test_rules_broken(self):
        for name, text, word in (
            ("kernels/gemm.c", '#include "plan.h"\n', "it is in src"),
            ("src/cli/run.c", '#include "plan.h"\n', "it is in src"),
            ("src/cli/run.c", '#include "../../src/plan.h"\n', "it is in src"),
            ("src/cli/run.c", '#include "ops.h"\n', "it is in kernels"),
            ("src/tree/scan.c", '#include "moe_plugin.h"\n', "it is in abi"),
            ("src/plan.c", "#include <yaml.h>\n", "only src/tree"),
            ("abi/more.h", '#include "plan.h"\n', "it is in src"),
            ("abi/more.h", "#include <stdio.h>\n", "system's headers"),
            ("tests/ref/ref.c", '#include "ops.h"\n', "it is in kernels"),
            ("tests/host/host.c", '#include "plan.h"\n', "it is in src"),
            ("plugin/more.c", '#include "ref.h"\n', "it is in tests/ref"),
            ("src/plan.c", '#include "nowhere.h"\n', "no such header"),
            ("src/plan.c", "#include <ops.h>\n", "with quotes"),
            ("src/cli/plan.h", "", "same file name"),
        ):
            with self.subTest(name=name, text=text):
                self.write(name, text)
                self.assert_one(test_includes.problems(self.root), name if "same" not in word else "plan.h", word)
                (self.root / name).unlink()


class Calls(Tree):
    def test_rules_kept(self):
        self.write("src/plan.c", 'int f(void) { /* exit( */ return my_exit(1) + log.printf("exit(1)") + moe_expf(1.0f); }\n')
        self.write("src/cli/run.c", "int g(void) { exit(1); }\n")
        self.assertEqual(test_calls.problems(self.root), [])

    def test_rules_broken(self):
        for call in ("exit (1)", "printf(\"\")", "getenv(\"X\")", "strcpy(a, b)", "atoi(a)", "alloca(1)", "strtod(a, b)", "expf(1.0f)"):
            with self.subTest(call=call):
                self.write("src/plan.c", f"\nint f(void) {{ return (int){call}; }}\n")
                self.assert_one(test_calls.problems(self.root), "src/plan.c:3", call.split("(")[0].strip())


class Sources(Tree):
    def test_rules_kept(self):
        self.write("src/long.c", "\n" * (test_sources.MAX_LINES - 1))
        self.write("abi/moe_plugin.h", "\n" * 700)
        self.assertEqual(test_sources.problems(self.root), [])

    def test_rules_broken(self):
        self.write("src/long.c", "\n" * test_sources.MAX_LINES)
        self.assert_one(test_sources.problems(self.root), "src/long.c", "601 lines")
        self.write("src/long.c", "/* TO" + "DO */\n")
        self.assert_one(test_sources.problems(self.root), "src/long.c:2", "leaves something open")
        self.write("src/long.c", "/*" + "-" * 97 + "*/\n")
        self.assert_one(test_sources.problems(self.root), "src/long.c:2", "101 columns")
        (self.root / "src/long.c").write_text("int x;\n", encoding="utf-8")
        self.assert_one(test_sources.problems(self.root), "src/long.c:1", "SPDX")


class Format(Tree):
    def test_finds_unformatted_file(self):
        program = test_format.clang_format()
        if program is None:
            self.skipTest("no clang-format")
        shutil.copy(source_root() / ".clang-format", self.root)
        self.assertEqual(test_format.problems(self.root, program), [])
        self.write("src/plan.c", "int  f(void){return 1;}\n")
        self.assert_one(test_format.problems(self.root, program), "src/plan.c:2")


class PluginElf(Tree):
    def build(self, source, *flags):
        plugin = str(self.root / "p.so")
        (self.root / "p.c").write_text(source, encoding="utf-8")
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", plugin, str(self.root / "p.c"),
                        "-Wl,--build-id=sha1", "-Wl,-z,relro", *flags], check=True)
        return test_plugin_elf.problems(plugin)

    def test_symbols_and_libraries(self):
        good, now = "int moe_plugin_init(void) { return 0; }\n", "-Wl,-z,now"
        self.assertEqual(self.build(good, now), [])
        self.assert_one(self.build(good + "int other;\n", now), "other")
        self.assert_one(self.build("int f(void) { return 0; }\n", now), "exports ['f']")
        self.assert_one(self.build(good, now, "-Wl,--no-as-needed", "-lgcc_s"), "needs libgcc_s")
        self.assert_one(self.build(good, now, "-Wl,-rpath,/tmp"), "PATH")
        self.assert_one(self.build(good, "-Wl,-z,lazy"), "lazily")
        self.assert_one(self.build(good, now, "-Wl,-z,nodelete"), "NODELETE")
        self.assert_one(self.build(good, now, "-Wl,-z,execstack"), "executable stack")


if __name__ == "__main__":
    unittest.main()
