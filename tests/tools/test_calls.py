# SPDX-License-Identifier: Apache-2.0
"""A plugin is a guest: it does not end the process, print, read the environment, depend on the locale or overrun buffers."""

import re

from source_tree import C_SUFFIXES, files, relative, report, source_root, without_comments_and_literals

REASONS = {
    "ends or duplicates the process of the host": "exit _exit _Exit quick_exit abort fork vfork execv execve execvp system popen",
    "prints; use the log callback": "printf fprintf vprintf vfprintf dprintf puts fputs putchar putc fputc perror",
    "reads or changes state of the process": "getenv putenv setenv unsetenv setlocale signal sigaction atexit chdir srand rand",
    "knows no buffer size": "strcpy stpcpy strcat sprintf vsprintf gets strtok alloca",
    "hides errors or depends on the locale": "atoi atol atoll atof scanf fscanf sscanf strtod strtof strtold strerror",
    "unwinds past cleanup": "setjmp longjmp",
}
BANNED = {name: reason for reason, names in REASONS.items() for name in names.split()}
# libm picks variants of these per CPU, so their bits differ between machines; kernels have their own.
TRANSCENDENTAL = {
    name + suffix: "libm's bits depend on the CPU; use the function in kernels/"
    for name in "exp exp2 expm1 log log2 log10 log1p pow sin cos tan sinh cosh tanh erf erfc cbrt".split()
    for suffix in ("", "f", "l")
}
# (file, function): why it is right there.
EXCEPTIONS = {}

_CALL = re.compile(r"(?<![\w.>])([A-Za-z_]\w*)\s*\(")


def problems(root):
    found = []
    for path in files(root, C_SUFFIXES, ("abi", "plugin", "src", "kernels")):
        name = relative(root, path)
        if name.startswith("src/cli/"):
            continue
        banned = dict(BANNED)
        if name.startswith(("src/", "kernels/")):
            banned.update(TRANSCENDENTAL)
        text = without_comments_and_literals(path.read_text(encoding="utf-8"))
        for match in _CALL.finditer(text):
            call = match.group(1)
            if call in banned and (name, call) not in EXCEPTIONS:
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {call}(): {banned[call]}")
    return found


if __name__ == "__main__":
    report(problems(source_root()), "calls")
