# SPDX-License-Identifier: Apache-2.0
"""Dependencies between folders point one way: plugin -> src -> kernels, everything -> abi, abi -> nothing else."""

import re

from source_tree import C_SUFFIXES, files, relative, report, source_root

# Folder of a file (longest match) -> folders whose headers it may include. "generated" is moe_build_info.h.
ALLOWED = {
    "abi": ("abi",),
    "kernels": ("kernels", "abi"),
    "src/tree": ("src/tree",),
    "src/cli": ("src/cli", "src/tree", "abi", "generated"),
    "src/loader": ("src/loader", "abi"),
    "src": ("src", "src/tree", "kernels", "abi", "generated"),
    "plugin": ("plugin", "src", "abi", "generated"),
    "tests/ref": ("tests/ref", "abi"),
    "tests/host": ("tests/host", "abi"),
}
# Files (prefix) that may see one folder more: the conformance command compares with the references.
ALLOWED_TOO = {"src/cli/conform_": "tests/ref"}
# Headers of libraries that only the folder which wraps them may see.
OWNED_SYSTEM_HEADERS = {"yaml.h": ("src/tree",), "dlfcn.h": ("src", "src/cli", "src/loader", "tests", "tests/host")}
ABI_SYSTEM_HEADERS = ("stddef.h", "stdint.h")
GENERATED = ("moe_build_info.h",)

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.MULTILINE)


def layer_of(path):
    """The longest key of ALLOWED that holds the path; None for tests that may see everything."""
    keys = [key for key in ALLOWED if path.startswith(key + "/")]
    return max(keys, key=len) if keys else None


def problems(root):
    found = []
    owners = {}
    for path in files(root, C_SUFFIXES + (".def",)):
        name = relative(root, path)
        if path.name in owners:
            found.append(f"{name}: {owners[path.name]} has the same file name")
        owners[path.name] = name
    for path in files(root, C_SUFFIXES + (".def",)):
        name = relative(root, path)
        layer = layer_of(name)
        for match in _INCLUDE.finditer(path.read_text(encoding="utf-8")):
            line = path.read_text(encoding="utf-8").count("\n", 0, match.start()) + 1
            quoted, target = match.group(1) == '"', match.group(2).rsplit("/", 1)[-1]
            where = f"{name}:{line}: #include {match.group(1)}{match.group(2)}"
            if not quoted:
                if target in owners:
                    found.append(f"{where}: a header of this project is included with quotes")
                if layer == "abi" and target not in ABI_SYSTEM_HEADERS:
                    found.append(f"{where}: of the system's headers abi may include {', '.join(ABI_SYSTEM_HEADERS)}")
                if target in OWNED_SYSTEM_HEADERS and layer is not None and layer not in OWNED_SYSTEM_HEADERS[target]:
                    found.append(f"{where}: only {', '.join(OWNED_SYSTEM_HEADERS[target])} may")
                continue
            if target in GENERATED:
                owner_layer = "generated"
            elif target in owners:
                owner_layer = layer_of(owners[target]) or "tests"
            else:
                found.append(f"{where}: no such header in the tree")
                continue
            too = [folder for prefix, folder in ALLOWED_TOO.items() if name.startswith(prefix)]
            if layer is not None and owner_layer not in ALLOWED[layer] and owner_layer not in too:
                found.append(f"{where}: it is in {owner_layer}; {layer} may include {', '.join(ALLOWED[layer])}")
    return found


if __name__ == "__main__":
    report(problems(source_root()), "includes")
