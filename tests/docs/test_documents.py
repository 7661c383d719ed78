# SPDX-License-Identifier: Apache-2.0
"""What the documents show works: code compiles, commands run, and every file, link, preset and test that they name exists."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

TOP_FOLDERS = ("abi", "plugin", "src", "kernels", "tests", "docs")
FILE_SUFFIXES = "c h cu cuh def py sh md yaml txt map cmake".split()
DIAGRAM = ""  # a fence without a language is a drawing
LANGUAGES = ("c", "yaml", "sh", DIAGRAM)
YAML_TESTED_ELSEWHERE = ("docs/configuration.md",)  # config.document reads its blocks through the parser
MOECTL = ("moectl", "build/bin/moectl")
BRIEF_BENCH = ["--min-time", "1", "--weight-mb", "1", "--tokens", "1", "--shape", "4,2,64,64"]  # for options that are not given

# What a fragment may use without declaring it: the names of the header's own examples.
FRAGMENT = """#include <string.h>
#include "moe_plugin.h"
void fragment(moe_plugin_init_fn *init, struct moe_host host, struct moe_error error, struct moe_problem problem,
              struct moe_weights_desc desc, struct moe_layer_args args, struct moe_context *context,
              struct moe_weights *weights, struct moe_plan *plan);
void fragment(moe_plugin_init_fn *init, struct moe_host host, struct moe_error error, struct moe_problem problem,
              struct moe_weights_desc desc, struct moe_layer_args args, struct moe_context *context,
              struct moe_weights *weights, struct moe_plan *plan)
{
#line 1
%s
}
"""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    +(\S.*)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_RULE = re.compile(r"^\| ([PH])(\d+) \| .* \| ([^|]*) \|$", re.MULTILINE)


class Document:
    """A document with its code apart: `text` keeps neither fences nor their content."""

    def __init__(self, root, name, path=None):
        self.root, self.name, self.path = root, name, path or root / name
        self.whole = whole = self.path.read_text(encoding="utf-8")
        self.blocks = [(m.group(1), m.group(2), whole.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(whole)]
        self.text = _FENCE.sub(lambda m: "\n" * m.group().count("\n"), whole)

    def at(self, line):
        return f"{self.name}:{line}"

    def inline_code(self):
        """(text, line) of everything in backticks."""
        for match in _INLINE.finditer(self.text):
            yield match.group(1).replace("\\|", "|"), self.text.count("\n", 0, match.start()) + 1

    def command_lines(self):
        """(words, line) of each command shown: in sh blocks, indented, or in backticks."""
        shown = [(text, line + 1 + i) for language, block, line in self.blocks if language == "sh"
                 for i, text in enumerate(block.split("\n"))]
        shown += [(m.group(1), self.text.count("\n", 0, m.start()) + 1) for m in _INDENTED.finditer(self.text)]
        shown += [code for code in self.inline_code() if len(code[0].split()) > 2]  # `moectl explain` is a name
        for text, line in shown:
            for command in text.split("&&"):
                try:
                    words = shlex.split(command, comments=True)
                except ValueError:
                    continue
                if words:
                    yield words, line


def slug(heading):
    """The anchor that forges give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def check_languages(document):
    for language, _, line in document.blocks:
        if language not in LANGUAGES:
            yield f"{document.at(line)}: blocks of {language} are not tested; tested: {', '.join(LANGUAGES[:-1])}"


def check_c(document):
    """Blocks that include something are files, others are parts of a function; what parts call, the host that a test runs calls."""
    minihost = (document.root / "tests/host/minihost.c").read_text(encoding="utf-8")
    for language, block, line in document.blocks:
        if language != "c":
            continue
        is_file = block.startswith("#include")
        source = block if is_file else FRAGMENT % block
        done = subprocess.run(
            shlex.split(os.environ.get("CC", "cc")) + ["-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
                                                        "-fsyntax-only", "-I", str(document.root / "abi"), "-x", "c", "-"],
            input=source, text=True, capture_output=True)
        if done.returncode != 0:
            yield f"{document.at(line)}: does not compile:\n{done.stderr}"
        for call in re.findall(r"\b(?:api->\w+|init)\(.*?\)(?=;)", block):
            if not is_file and call not in minihost:
                yield f"{document.at(line)}: tests/host/minihost.c has no {call}"


def brief(words):
    """The command as a test can afford it: a benchmark measures little, and all for a short time."""
    if words[0] == "swap-demo" and "--seconds" not in words:
        return words + ["--seconds", "1"]
    pairs = [BRIEF_BENCH[i:i + 2] for i in range(0, len(BRIEF_BENCH), 2)]
    if words[0] != "bench" or "--help" in words:
        return words
    short = {"--tokens": "-M"}
    missing = [pair for pair in pairs if pair[0] not in words and short.get(pair[0]) not in words
               and not (pair[0] == "--shape" and "--model" in words)]
    return words + [word for pair in missing for word in pair]


def is_done(words, done, moectl):
    """Commands for a GPU run on the driver that plays one, whose kernels do nothing; a build without it has no driver."""
    if "cuda" not in words:
        return done.returncode == 0
    if not fake_driver(moectl).is_dir():
        return done.returncode == 2 and "contains no CUDA kernels" in done.stderr
    return done.returncode == 0 or (words[1] == "run" and done.returncode == 1) or "has no cuda kernel in this version" in done.stderr


def fake_driver(moectl):
    return moectl.parent.parent / "tests/fake_driver"


def run(words, moectl, folder):
    environment = {name: value for name, value in os.environ.items() if name != "MOE_PLUGIN_CONFIG"}
    if "cuda" in words:
        environment.update(LD_LIBRARY_PATH=str(fake_driver(moectl)), FAKE_L2_BYTES="1000000")
    return subprocess.run([str(moectl)] + words, cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
                          capture_output=True)


def check_yaml(document, moectl, folder):
    if document.name in YAML_TESTED_ELSEWHERE:
        return
    for language, block, line in document.blocks:
        if language == "yaml":
            (folder / "block.yaml").write_text(block, encoding="utf-8")
            done = run(["validate", "block.yaml"], moectl, folder)
            if done.returncode != 0:
                yield f"{document.at(line)}: moectl validate ends with {done.returncode}:\n{done.stdout}{done.stderr}"


def presets(root):
    known = json.loads((root / "CMakePresets.json").read_text(encoding="utf-8"))
    return {preset["name"] for preset in known["configurePresets"]} & {preset["name"] for preset in known["buildPresets"]}


def check_commands(document, moectl, plugin, folder):
    """moectl runs with files of the reader's replaced by ours; scripts parse; presets and options exist."""
    yaml_blocks = [block for language, block, _ in document.blocks if language == "yaml"]
    (folder / "my.yaml").write_text(yaml_blocks[0] if yaml_blocks else "schema: moe-dispatch/1\nrules: []\n", encoding="utf-8")
    stand_ins = {"DIR": str(document.root / "tests/data/golden/qwen3_moe"), "FILE": "my.yaml", "NEW.so": str(plugin),
                 "A.so": str(plugin), "B.so": str(plugin.with_name("libmoe_plugin_b.so"))}
    options = (document.root / "CMakeLists.txt").read_text(encoding="utf-8")
    for words, line in document.command_lines():
        if words[0] in MOECTL and len(words) > 1 and "..." not in words:
            done = run(brief([stand_ins.get(word, word) for word in words[1:]]), moectl, folder)
            if not is_done(words, done, moectl):
                yield f"{document.at(line)}: {' '.join(words)} ends with {done.returncode}:\n{done.stdout}{done.stderr}"
        elif words[0] == "sh" and len(words) > 1:
            script = document.root / words[1]
            if not script.is_file():
                yield f"{document.at(line)}: no script {words[1]}"
            elif subprocess.run(["sh", "-n", str(script)]).returncode != 0:
                yield f"{document.at(line)}: {words[1]} is no shell script"
        for before, word in zip([""] + words, words):
            if before == "--preset" and word not in presets(document.root):
                yield f"{document.at(line)}: no preset {word}; there are {', '.join(sorted(presets(document.root)))}"
            match = re.fullmatch(r"-D(MOE_\w+)=\S*", word)
            if match and not re.search(rf"^(?:option|set)\({match.group(1)}\b", options, re.MULTILINE):
                yield f"{document.at(line)}: CMakeLists.txt has no option {match.group(1)}"


def check_links(document):
    for match in _LINK.finditer(document.text):
        target = match.group(1)
        if re.match(r"[a-z]+:", target):
            continue
        where = document.at(document.text.count("\n", 0, match.start()) + 1)
        path, _, anchor = target.partition("#")
        found = document.path.parent / path if path else document.path
        if not found.exists():
            yield f"{where}: the link to {target} leads nowhere"
        elif anchor and anchor not in map(slug, _HEADING.findall(_FENCE.sub("", found.read_text(encoding="utf-8")))):
            yield f"{where}: {path or 'this document'} has no heading #{anchor}"


def files_of(root):
    """Paths of the project, without build trees."""
    return {path.relative_to(root).as_posix() for top in TOP_FOLDERS for path in (root / top).rglob("*")}


def check_paths(document, paths):
    """Code in backticks that looks like a file or folder of the project is one; <x>, * and NNNN stand for any name."""
    names = {path.rsplit("/", 1)[-1] for path in paths}
    for code, line in document.inline_code():
        is_path = code.split("/")[0] in TOP_FOLDERS and "/" in code
        is_file = re.fullmatch(r"[\w*<>-]+\.(?:%s)" % "|".join(FILE_SUFFIXES), code) is not None
        if (not is_path and not is_file) or " " in code or code == "my.yaml":
            continue
        pattern = re.escape(code.rstrip("/"))
        pattern = re.sub(r"<\w+>|\\\*|NNNN", "[^/]+", pattern)
        if not any(re.fullmatch(pattern, path) for path in (paths if is_path else names) | set(TOP_FOLDERS)):
            yield f"{document.at(line)}: there is no {code}"


def check_abi_rules(document, tests):
    """Rules are numbered without a gap, and each of a plugin's names tests that CTest knows."""
    numbers = {"P": [], "H": []}
    for match in _RULE.finditer(document.text):
        party, number, cell = match.group(1), int(match.group(2)), match.group(3).strip()
        where = f"{document.at(document.text.count(chr(10), 0, match.start()) + 1)}: {party}{number}"
        numbers[party].append(number)
        if cell == "-":
            if party == "P":
                yield f"{where} names no test"
            continue
        named = re.findall(r"`([^`]+)`", cell)
        if cell != ", ".join(f"`{name}`" for name in named):
            yield f"{where}: \"{cell}\" is no list of tests"
        for name in named:
            if name not in tests:
                yield f"{where}: CTest has no {name}"
    for party, found in numbers.items():
        if not found or found != list(range(1, len(found) + 1)):
            yield f"{document.name}: the {party} rules are numbered {found}"


def check_changelog(document):
    build = (document.root / "CMakeLists.txt").read_text(encoding="utf-8")
    header = (document.root / "abi/moe_plugin.h").read_text(encoding="utf-8")
    version = re.search(r"^project\(.*? VERSION ([\d.]+)", build, re.MULTILINE).group(1)
    abi = ".".join(re.search(rf"#define MOE_ABI_{part} (\d+)", header).group(1) for part in ("MAJOR", "MINOR"))
    newest = re.search(r"^## ([\d.]+).*?(?=^## |\Z)", document.whole, re.MULTILINE | re.DOTALL)
    if newest is None or newest.group(1) != version:
        yield f"{document.name}: the first version is not {version}"
    elif f"ABI {abi}" not in newest.group():
        yield f"{document.name}: version {version} does not name ABI {abi}"


def check_decisions(document):
    """Every record is in the index, under its own title."""
    listed = dict(re.findall(r"^\| \[(\d{4})\]\([^)]*\) \| (.*) \|$", document.text, re.MULTILINE))
    for path in sorted(document.path.parent.glob("[0-9]*.md")):
        number, _, title = path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ").partition(": ")
        if path.name[:4] != number or listed.pop(number, None) != title:
            yield f"{document.name}: {path.name} should be listed as {number}, {title}"
    for number in listed:
        yield f"{document.name}: there is no record {number}"


def registered_tests(build):
    done = subprocess.run(["ctest", "--test-dir", str(build), "--show-only=json-v1"], text=True, capture_output=True, check=True)
    return {test["name"] for test in json.loads(done.stdout)["tests"]}


def problems_of(document, moectl, plugin, folder, paths, tests):
    yield from check_languages(document)
    yield from check_c(document)
    yield from check_yaml(document, moectl, folder)
    yield from check_commands(document, moectl, plugin, folder)
    yield from check_links(document)
    yield from check_paths(document, paths)
    if document.name == "docs/abi.md":
        yield from check_abi_rules(document, tests)
    elif document.name == "docs/CHANGELOG.md":
        yield from check_changelog(document)
    elif document.name == "docs/adr/README.md":
        yield from check_decisions(document)


# A document in which each line after the heading is wrong in one way, and what is said about it.
WRONG = """# Wrong
```c
args.num_token = 1;
```
```c
api->no_such_call();
```
```yaml
schema: moe-dispatch/2
```
```sh
moectl validate none.yaml
sh plugin/none.sh
cmake --preset none
cmake -DMOE_NONE=ON
```
```perl
```
[nowhere](none.md) [no heading](#none) `src/none.c` `none.h` `src/<x>/none/`
| P1 | rule | `abi.none` |
| P3 | rule | - |
| H1 | rule | tests |
"""
COMPLAINTS = ("does not compile", "has no api->no_such_call()", "moectl validate ends with", "none.yaml ends with",
              "no script plugin/none.sh", "no preset none", "no option MOE_NONE", "blocks of perl", "none.md leads nowhere",
              "no heading #none", "no src/none.c", "no none.h", "no src/<x>/none/", "CTest has no abi.none",
              "P3 names no test", "is no list of tests", "P rules are numbered [1, 3]")


def blind_spots(root, moectl, plugin, folder, paths, tests):
    """The checks themselves: each complaint that a wrong document must raise, and does not."""
    (folder / "wrong.md").write_text(WRONG, encoding="utf-8")
    wrong = Document(root, "wrong.md", folder / "wrong.md")
    said = "\n".join([*problems_of(wrong, moectl, plugin, folder, paths, tests), *check_abi_rules(wrong, tests)])
    return [f"a wrong document is not told: {complaint}" for complaint in COMPLAINTS if complaint not in said]


def main():
    root, build = Path(os.environ["MOE_SOURCE_DIR"]), Path(os.environ["MOE_BUILD_DIR"])
    moectl, plugin = build / "bin/moectl", build / "lib/libmoe_plugin.so"
    paths, tests = files_of(root), registered_tests(build)
    names = ["README.md"] + sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))
    with tempfile.TemporaryDirectory() as scratch:
        found = blind_spots(root, moectl, plugin, Path(scratch), paths, tests)
        for name in names:
            found += problems_of(Document(root, name), moectl, plugin, Path(scratch), paths, tests)
    print("\n".join(found + [f"{len(names)} documents: {len(found)} problem(s)"]))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
