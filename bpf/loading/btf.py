"""The type information (BTF) of the program: what tracing tools need to attach to it, and not more.

Clang's takes a quarter of the compile time, because it describes every line and struct. A tool needs the prototype of each XDP
program, by whose argument the kernel recognises the packet. Pure: bytes in Documentation/bpf/btf.rst's format. Must not know
how a program is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_MAGIC, _VERSION = 0xEB9F, 1
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_WORD = struct.Struct("=I")
_MEMBER = struct.Struct("=III")
_PARAMETER = struct.Struct("=II")
_KIND_INT, _KIND_POINTER, _KIND_STRUCT, _KIND_FUNCTION, _KIND_PROTOTYPE = 1, 2, 4, 12, 13
_SIGNED = 1 << 24
_GLOBAL = 1
_CONTEXT = ("data", "data_end", "data_meta", "ingress_ifindex", "rx_queue_index", "egress_ifindex")
"""The members of struct xdp_md, of four bytes each (include/uapi/linux/bpf.h)."""


class _Writer:
    """Types and strings, in the order in which they are added. Ids count from 1."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self._count = 0

    def name(self, text: str) -> int:
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(self, name: str, kind: int, size_or_type: int, count: int = 0, more: bytes = b"") -> int:
        self.types += _TYPE.pack(self.name(name) if name else 0, kind << 24 | count, size_or_type) + more
        self._count += 1
        return self._count


def program_types(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """The BTF of XDP programs with these names, `int NAME(struct xdp_md *context)`, and the type id of each."""
    writer = _Writer()
    number = writer.add("int", _KIND_INT, 4, more=_WORD.pack(_SIGNED | 32))
    word = writer.add("unsigned int", _KIND_INT, 4, more=_WORD.pack(32))
    members = b"".join(_MEMBER.pack(writer.name(each), word, 32 * place) for place, each in enumerate(_CONTEXT))
    context = writer.add("xdp_md", _KIND_STRUCT, 4 * len(_CONTEXT), len(_CONTEXT), members)
    pointer = writer.add("", _KIND_POINTER, context)
    prototype = writer.add("", _KIND_PROTOTYPE, number, 1, _PARAMETER.pack(writer.name("context"), pointer))
    ids = {name: writer.add(name, _KIND_FUNCTION, prototype, _GLOBAL) for name in names}
    sizes = (0, len(writer.types), len(writer.types), len(writer.strings))
    header = _HEADER.pack(_MAGIC, _VERSION, 0, _HEADER.size, *sizes)
    return header + writer.types + writer.strings, ids
