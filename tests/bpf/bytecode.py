"""The instructions of a build as the compiler made them: `python -m tests.bpf.bytecode FEATURE…` prints them as JSON.

A process of its own, because only the compile child has bcc in it. What the kernel returns of a loaded program is no longer
what it was given.
"""

from __future__ import annotations

import json
import secrets
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from bpf.constants import OPTIONAL_HANDLERS, Handler
from bpf.loading import compile

Instruction = tuple[int, int, int, int]
"""Operation, registers, offset, immediate: `struct bpf_insn`."""

_BYTES = 8
_JUMP_CLASSES, _WIDE_LOAD = (5, 6), 0x18
_GOTO, _CALL, _EXIT = 0x00, 0x80, 0x90


def instructions(code: bytes) -> list[Instruction]:
    return [struct.unpack_from("<BBhi", code, start) for start in range(0, len(code), _BYTES)]


def _successors(program: list[Instruction], at: int) -> Iterator[tuple[int, bool]]:
    """(next instruction, whether a jump leads there)."""
    operation, _, offset, _ = program[at]
    kind = operation & 0xF0
    if operation & 7 not in _JUMP_CLASSES or kind == _CALL:
        yield at + 1, False
    elif kind != _EXIT:
        if kind != _GOTO:
            yield at + 1, True
        yield at + 1 + offset, True


def refused_back_edges(program: list[Instruction]) -> list[tuple[int, int]]:
    """Edges for which Linux 6.1 refuses a program: back into a loop without a jump (check_cfg in kernel/bpf/verifier.c)."""
    entered, left = {0}, set()
    path = [(0, _successors(program, 0))]
    refused = []
    while path:
        at, waiting = path[-1]
        for following, jumps in waiting:
            if following not in entered:
                entered.add(following)
                path.append((following, _successors(program, following)))
                break
            if following not in left and not jumps:
                refused.append((at, following))
        else:
            left.add(at)
            path.pop()
    return refused


def _print(features: list[str]) -> None:
    pins = Path("/sys/fs/bpf") / f"xlb-bytecode-{secrets.token_hex(4)}"
    pins.mkdir()
    try:
        bcc = compile._import_bcc()
        chosen = dict.fromkeys(features, True)
        request = {"pins": str(pins), "max_flows": 64, "max_embryonic": 64, "features": chosen}
        module = compile._compile(bcc, request, [])
        called = [each for each in Handler if each not in OPTIONAL_HANDLERS or OPTIONAL_HANDLERS[each] in chosen]
        names = [compile.PROGRAM, *(f"{compile.PROGRAM}_{each.name.lower()}" for each in called)]
        sys.stdout.write(json.dumps({name: module.dump_func(name).hex() for name in names}) + "\n")
    finally:
        for pin in pins.iterdir():
            pin.unlink()
        pins.rmdir()


if __name__ == "__main__":
    _print(sys.argv[1:])
