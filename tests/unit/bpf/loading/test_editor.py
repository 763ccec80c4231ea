"""`make program.c`: clangd's front end accepts the flattened program with the flags of compile_commands.json."""

from __future__ import annotations

import ctypes as ct
import json
import re
from pathlib import Path

import pytest

from bpf.loading import editor


class _String(ct.Structure):
    _fields_ = (("data", ct.c_void_p), ("flags", ct.c_uint))


def diagnostics(arguments: list[str]) -> list[str]:
    """What libclang reports about the command, warnings included; the command must name its source."""
    clang = ct.CDLL(str(min(Path("/usr/lib").glob("*/libclang-[0-9]*.so.*"))))
    for name in ("clang_createIndex", "clang_parseTranslationUnit", "clang_getDiagnostic", "clang_getCString"):
        getattr(clang, name).restype = ct.c_void_p
    clang.clang_formatDiagnostic.restype = _String
    clang.clang_getCString.restype, clang.clang_getCString.argtypes = ct.c_char_p, (_String,)
    index = ct.c_void_p(clang.clang_createIndex(0, 0))
    words = (ct.c_char_p * len(arguments))(*(word.encode() for word in arguments))
    unit = ct.c_void_p(clang.clang_parseTranslationUnit(index, None, words, len(words), None, 0, 0))
    assert unit.value, "libclang could not parse the command"
    found = []
    for number in range(clang.clang_getNumDiagnostics(unit)):
        diagnostic = ct.c_void_p(clang.clang_getDiagnostic(unit, number))
        found.append(clang.clang_getCString(clang.clang_formatDiagnostic(diagnostic, 1)).decode())
    clang.clang_disposeTranslationUnit(unit)
    clang.clang_disposeIndex(index)
    return found


@pytest.fixture
def command(tmp_path: Path) -> dict[str, object]:
    editor.write(tmp_path)
    (entry,) = json.loads((tmp_path / editor.COMMANDS_FILE).read_text())
    return dict(entry)


def test_clang_accepts_the_program(command: dict[str, object], tmp_path: Path) -> None:
    assert command["file"] == str(tmp_path / editor.SOURCE_FILE) and command["directory"] == str(tmp_path)
    words = command["arguments"]
    assert isinstance(words, list) and words[-1] == command["file"]
    assert diagnostics(words[1:]) == []


def test_an_error_is_reported_with_its_line(command: dict[str, object]) -> None:
    source = Path(str(command["file"]))
    text = source.read_text().replace("return finish(", "return finnish(")
    source.write_text(text)
    number = text[: text.index("finnish")].count("\n") + 1
    words = command["arguments"]
    assert isinstance(words, list)
    assert any(line.startswith(f"{source}:{number}:") and "finnish" in line for line in diagnostics(words[1:]))


def test_functions_of_both_families_are_there(command: dict[str, object]) -> None:
    lines = Path(str(command["file"])).read_text().splitlines()
    for name in ("handle_flow_v4", "handle_flow_v6", "translate_error_v4", "check_lease"):
        assert sum(line.startswith("static __always_inline") and f"{name}(" in line for line in lines) == 1, name
    assert "int xlb(struct xdp_md *context)" in lines
    assert not any(re.search(r"_FAM\b", line) for line in lines)


def test_writing_again_replaces_the_files(command: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / editor.HEADERS / "stale").touch()
    editor.write(tmp_path)
    assert not (tmp_path / editor.HEADERS / "stale").exists()
