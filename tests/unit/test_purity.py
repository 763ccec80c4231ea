"""What decides must not act: pure files import nothing that touches the world, directly or by way of each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PURE = (
    *("model", "errors", "validate", "fields", "changes", "farmsfile", "record", "diff"),
    *("maglev", "slotspace", "planner", "health", "expiry"),
)
ALLOWED = {f"ctl.{name}" for name in PURE} | {"bpf", "bpf.constants", "bpf.dataplane", "bpf.maps.columns", "ctl"}
STANDARD = {
    *(
        "__future__",
        "bisect",
        "collections",
        "collections.abc",
        "dataclasses",
        "difflib",
        "enum",
        "functools",
        "hashlib",
        "heapq",
    ),
    *("ipaddress", "json", "math", "numpy", "numpy.typing", "re", "tomllib", "types", "typing"),
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            whole = node.module in ("bpf", "ctl", "sync")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if whole else {node.module}
    return names


@pytest.mark.parametrize("name", PURE)
def test_pure(name: str) -> None:
    assert imports(TOP / "ctl" / f"{name}.py") <= ALLOWED | STANDARD
