# SPDX-License-Identifier: Apache-2.0
"""moe_plugin.h for ctypes: structs and the table, by the layout that the header's hash stands for (abi/layout-0.1.txt)."""
import ctypes
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TEXT = (ROOT / "abi" / "layout-0.1.txt").read_text(encoding="ascii")
_LINES = (line[len("struct "):] if line.startswith("struct ") else line for line in _TEXT.splitlines())
_WORDS = {line.split()[0]: line.split()[1:] for line in _LINES}


def constant(name):
    return int(_WORDS[name][0])


def layout_hash():
    value = 0xCBF29CE484222325
    for byte in _TEXT.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def _place(name, path):
    """Offset and size of a member; path goes into nested structs by "__"."""
    where, num_bytes = 0, 0
    for member in path.split("__"):
        offset, num_bytes, *kind = _WORDS[f"{name}.{member}"]
        where, name = where + int(offset), kind[-1]
    return where, int(num_bytes)


def make(name, **members):
    """A zeroed struct that knows its size, with these members: integers, ctypes arrays and pointers, or None."""
    memory = ctypes.create_string_buffer(int(_WORDS[name][0]))
    size_member = "struct_size" if f"{name}.struct_size" in _WORDS else "call__struct_size"
    for path, value in {size_member: len(memory), **members}.items():
        if isinstance(value, ctypes.Array):
            value = ctypes.addressof(value)
        elif isinstance(value, ctypes.c_void_p):
            value = value.value
        where, num_bytes = _place(name, path)
        memory[where:where + num_bytes] = int(value or 0).to_bytes(num_bytes, "little")
    return memory


def matrix(name, base, rows, columns):
    """Members of an operand: base holds packed matrices of rows x columns, one after the other."""
    return {f"{name}__base": base, f"{name}__expert_stride": rows * columns, f"{name}__row_stride": columns, f"{name}__col_stride": 1}


def get(memory, name, path):
    where, num_bytes = _place(name, path)
    return int.from_bytes(memory[where:where + num_bytes], "little")


class Plugin:
    """The table of a plugin; a method per member, which raises the sentence of an error."""

    def __init__(self, path):
        self.error = make("moe_error")
        self.host = make("moe_host", abi_major=constant("MOE_ABI_MAJOR"), abi_minor=constant("MOE_ABI_MINOR"),
                         layout_hash=layout_hash())
        self.library = ctypes.CDLL(path)
        self.library.moe_plugin_init.restype = ctypes.c_void_p
        self.table = self.library.moe_plugin_init(self.host, self.error)
        self.check(self.table)

    def check(self, is_ok):
        if not is_ok:
            raise RuntimeError(self.error[_place("moe_error", "message")[0]:].split(b"\0")[0].decode())

    def __getattr__(self, member):
        where, _ = _place("moe_plugin_api", member)
        address = ctypes.c_void_p.from_address(self.table + where).value
        if member.endswith("_destroy"):
            return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        return lambda *args: self.check(ctypes.CFUNCTYPE(ctypes.c_int32)(address)(*args, self.error) == 0)
