"""The catalogue of error codes, and that no code decides by an error's message."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.errors import Code, InvalidInput, XlbError, code_of, reported, storage_code
from tests.tree import TREE

SOURCES = sorted(path for top in ("bpf", "ctl", "sync") for path in (TREE / top).rglob("*.py"))
DECIDING = {"startswith", "endswith", "removeprefix", "removesuffix", "find", "index", "count", "partition", "rpartition"}


def test_codes_are_snake_case_and_each_has_a_description() -> None:
    for code in Code:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code), code
        assert code.meaning and "\n" not in code.meaning and not code.meaning.endswith(".")
    assert Code.BUSY.value == str(Code.BUSY) == "busy"


def test_every_code_is_used() -> None:
    used = {name for path in SOURCES for name in re.findall(r"\bCode\.([A-Z_]+)\b", path.read_text())}
    assert used == set(Code.__members__)


def test_an_error_keeps_key_detail_and_code() -> None:
    error = InvalidInput("expected 1 to 65535", "farm.web.port")
    assert (str(error), error.detail, error.key) == (
        "farm.web.port: expected 1 to 65535",
        "expected 1 to 65535",
        "farm.web.port",
    )
    assert (error.code, XlbError("no").code) == (Code.INVALID_VALUE, Code.REFUSED)
    again = reported("invalid", str(error), error.key, error.code)
    assert isinstance(again, InvalidInput) and (str(again), again.detail) == (str(error), error.detail)
    assert type(reported("refused", "no", "", "a_later_code")) is XlbError


def test_the_code_of_a_cause_is_kept() -> None:
    assert code_of(XlbError("no", Code.BUSY), Code.KERNEL_REFUSED) == Code.BUSY
    assert code_of(OSError(), Code.KERNEL_REFUSED) == Code.KERNEL_REFUSED
    assert storage_code(OSError(errno.ENOSPC, "")) == Code.DISK_FULL
    assert storage_code(OSError(errno.EACCES, "")) == Code.STORAGE_FAILED


# --- no decision by message ------------------------------------------------------------------------------------------


def decisions_by_text(source: str) -> Iterator[int]:
    """Lines that compare or search the text of an exception bound by `except … as NAME`."""
    for handler in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler) and node.name):
        texts = {f"str({handler.name})", f"repr({handler.name})", f"{handler.name}.detail", f"{handler.name}.args"}
        for node in (inner for statement in handler.body for inner in ast.walk(statement)):
            if isinstance(node, ast.Assign) and ast.unparse(node.value) in texts:
                texts |= {ast.unparse(target) for target in node.targets}
            if isinstance(node, ast.Compare):
                searched = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DECIDING:
                searched = [node.func.value]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
                searched = node.args
            else:
                continue
            if any(ast.unparse(each) in texts for found in searched for each in ast.walk(found) if isinstance(each, ast.expr)):
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TREE)))
def test_no_code_decides_by_an_error_message(path: Path) -> None:
    assert list(decisions_by_text(path.read_text())) == []


@pytest.mark.parametrize(
    "decision",
    [
        'if "serves too" in str(error): raise',
        'detail = str(error).removeprefix("peer: ")',
        'text = str(error)\n    if text == "full": raise',
        'if re.search("full", str(error)): raise',
        'found = error.args[0] == "full"',
        'if error.detail.startswith("x"): raise',
    ],
)
def test_a_decision_by_message_is_found(decision: str) -> None:
    assert list(decisions_by_text(f"try:\n    f()\nexcept XlbError as error:\n    {decision}\n"))
    assert not list(decisions_by_text("try:\n    f()\nexcept XlbError as error:\n    if error.code == Code.BUSY: raise\n"))
